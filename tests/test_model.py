"""The modules, the sparse table and the scores against plain NumPy and scikit-learn."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import balanced_accuracy_score

import model

CONFIG = {"vocabulary": 50, "dim": 6, "max_len": 7, "classes": 5, "filters": 4, "widths": [1, 2, 3], "hidden": [8],
          "dropout": 0.4}


def random_variables(name, seed=0):
    """(module, variables) with every number random, biases and the zero-initialized last layer, too."""
    config = CONFIG | {"model": name}
    variables = model.init(config, jax.random.key(seed))
    draw = np.random.default_rng(seed)
    fill = lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32)  # noqa: E731
    return model.build(config), {"params": jax.tree.map(fill, variables["params"]),
                                 "table": fill(variables["table"]),
                                 "word_weights": jnp.abs(fill(variables["word_weights"])).at[0].set(0)}


def random_titles(rows, seed=0):
    """[rows, max_len] ids: titles of 0 to max_len words."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, CONFIG["vocabulary"], (rows, CONFIG["max_len"]))
    ids[np.arange(CONFIG["max_len"]) >= draw.integers(0, CONFIG["max_len"] + 1, rows)[:, None]] = 0
    return ids.astype(np.uint16)


def dense_head(x, params):
    hidden = np.maximum(0, x @ np.float64(params["Dense_0"]["kernel"]) + params["Dense_0"]["bias"])
    return hidden @ np.float64(params["Dense_1"]["kernel"]) + params["Dense_1"]["bias"]


def test_mlp_equals_numpy():
    module, variables = random_variables("mlp")
    ids = random_titles(20)
    weights = np.float64(variables["word_weights"])[ids]
    weights *= 5 / np.sqrt((weights ** 2).sum(1, keepdims=True) + 1e-12)
    bag = (np.float64(variables["table"])[ids] * weights[..., None]).sum(1)
    expected = dense_head(bag, variables["params"]["Head_0"])
    np.testing.assert_allclose(model.logits(module, variables, ids), expected, rtol=1e-4, atol=1e-4)


def test_cnn_equals_numpy():
    """Window by window, word by word; titles shorter than a filter and without words among them."""
    module, variables = random_variables("cnn")
    ids, table, params = random_titles(20), np.float64(variables["table"]), variables["params"]
    pooled = np.zeros((len(ids), 3 * CONFIG["filters"]))
    for row, title in enumerate(ids):
        words = [table[i] for i in title if i]
        for place, width in enumerate(CONFIG["widths"]):
            for start in range(len(words)):
                window = np.float64(params[f"bias_{width}"]).copy()
                for offset, vector in enumerate(words[start:start + width]):
                    window += vector @ np.float64(params[f"filters_{width}"])[offset]
                part = slice(place * CONFIG["filters"], (place + 1) * CONFIG["filters"])
                pooled[row, part] = np.maximum(pooled[row, part], window)
    expected = dense_head(pooled, params["Head_0"])
    np.testing.assert_allclose(model.logits(module, variables, ids), expected, rtol=1e-4, atol=1e-4)


def test_cnn_equals_convolution():
    """The shifted matrix products against XLA's convolution."""
    module, variables = random_variables("cnn")
    vectors = jax.random.normal(jax.random.key(1), (3, 7, 6))
    _, state = module.apply({"params": variables["params"]}, vectors, jnp.ones((3, 7)), mutable=["intermediates"],
                            capture_intermediates=lambda mdl, _: mdl.name == "Head_0")
    parts = [jax.lax.conv_general_dilated(vectors, variables["params"][f"filters_{width}"], (1,), [(0, width - 1)],
                                          dimension_numbers=("NWC", "WIO", "NWC"))
             + variables["params"][f"bias_{width}"] for width in CONFIG["widths"]]
    pooled = jnp.concatenate([jax.nn.relu(part).max(1) for part in parts], -1)
    expected = model.Head(5, (8,)).apply({"params": variables["params"]["Head_0"]}, pooled)
    np.testing.assert_allclose(state["intermediates"]["Head_0"]["__call__"][0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", model.MODELS)
def test_prediction_depends_on_nothing_but_the_title(name):
    module, variables = random_variables(name)
    ids = random_titles(30)
    together = model.logits(module, variables, ids)
    alone = jnp.concatenate([model.logits(module, variables, ids[i:i + 1]) for i in range(30)])
    padded = model.logits(module, variables, np.pad(ids, ((0, 0), (0, 9))))
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together, padded, rtol=1e-5, atol=1e-5)


def test_word_order_matters_to_the_cnn_alone():
    ids = np.array([[3, 4, 5, 0, 0, 0, 0], [5, 4, 3, 0, 0, 0, 0]], np.uint16)
    for name, same in (("mlp", True), ("cnn", False)):
        module, variables = random_variables(name)
        first, second = model.logits(module, variables, ids)
        assert np.allclose(first, second, atol=1e-5) == same


def test_update_equals_dense_adagrad():
    """Against a plain loop, with ids that come several times in a batch, over several steps."""
    draw = np.random.default_rng(0)
    table, accumulator = draw.normal(size=(12, 3)).astype(np.float32), np.zeros(12, np.float32)
    dense, sums = table.astype(np.float64), np.zeros(12)
    for _ in range(4):
        ids, gradients = draw.integers(0, 8, (5, 4)), draw.normal(size=(5, 4, 3)).astype(np.float32)
        table, accumulator = model.update(jnp.asarray(table), jnp.asarray(accumulator), ids, gradients, 0.1)
        used = list(zip(ids.ravel(), gradients.reshape(-1, 3), strict=True))
        for i, gradient in used:
            sums[i] += (gradient.astype(np.float64) ** 2).mean() if i else 0
        for i, gradient in used:
            dense[i] -= 0.1 * gradient / np.sqrt(sums[i] + 1e-6) if i else 0
    np.testing.assert_allclose(table, dense, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(accumulator, sums, rtol=1e-5)
    assert np.array_equal(table[8:], np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)[8:])


def test_idf_equals_scikit_learn():
    ids = random_titles(300)
    counts = np.stack([np.bincount(title[title > 0], minlength=CONFIG["vocabulary"] + 5) for title in ids])
    expected = TfidfTransformer().fit(counts).idf_.copy()
    expected[counts.sum(0) == 0] = 0
    np.testing.assert_allclose(model.idf(ids, CONFIG["vocabulary"] + 5), expected, rtol=1e-6)


def test_best_is_the_first_maximum():
    z = np.random.default_rng(0).integers(0, 4, (500, 9)).astype(np.float32)  # many ties
    top, place = model.best(jnp.asarray(z))
    np.testing.assert_array_equal(place, z.argmax(1))
    np.testing.assert_array_equal(top, z.max(1))


@pytest.mark.parametrize("rows", [1, 5, 8, 21])
def test_in_batches_gives_every_row_its_own_result(rows):
    ids = random_titles(rows)
    widths = set()

    def function(ids, others):
        widths.add(ids.shape)
        return {"sum": ids.sum(1), "other": others}

    result = model.in_batches(function, ids, np.arange(rows), batch_size=8)
    np.testing.assert_array_equal(result["sum"], ids.sum(1))
    np.testing.assert_array_equal(result["other"], np.arange(rows))
    assert widths <= {(8, -(-ids.shape[1] // 2)), (8, ids.shape[1])}


def test_score_equals_float64():
    module, variables = random_variables("mlp")
    ids, labels = random_titles(2500), np.random.default_rng(1).integers(0, 5, 2500)
    result = model.score((module,), (variables,), (0.0,), ids, labels)
    logits = np.asarray(model.logits(module, variables, ids), np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_array_equal(result["prediction"], logits.argmax(1))
    np.testing.assert_allclose(result["loss"], -np.log(shares[np.arange(2500), labels]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["probability"], shares.max(1), rtol=1e-5)
    order = np.argsort(-logits, 1)
    np.testing.assert_array_equal(result["rank"], np.argmax(order == labels[:, None], 1))


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_equals_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    labels = draw.choice([0, 2, 3, 7, 11], 500, p=[0.5, 0.3, 0.15, 0.04, 0.01])  # categories without rows between
    predictions = np.where(draw.random(500) < 0.6, labels, draw.integers(0, 13, 500))
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected = balanced_accuracy_score(labels, predictions)
    assert abs(model.balanced_accuracy(labels, predictions) - expected) < 1e-12
