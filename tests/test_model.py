"""The modules, the sparse table and the scores against plain NumPy and scikit-learn."""
import functools
import itertools
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import WORD_MODELS, config_of
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score

import data
import model
from titles import measures, predict

MAX_LEN = 7
LETTERS = np.random.default_rng(0).choice(list("abcdeñ手"), (53, 12))
WORDS = [*data.SPECIALS, *("".join(row[:1 + i % 12]) for i, row in enumerate(LETTERS))]  # the last five are rare ones


def small_config(name="mlp", *flags, **changes):
    """A configuration of a small model; character n-grams weigh 0.7."""
    extra = {"cnn": ("--filters", 4)}.get(name, ())
    return config_of("--model", name, "--hidden", 8, "--dim", 6, "--buckets", 40, "--character-weight", 0.7, *extra,
                     *flags, **{"max_len": MAX_LEN} | changes)


@functools.cache
def random_predictor(name, seed=0, pairs=True):
    """A Predictor with every number random, biases and the zero-initialized last layer, too."""
    config = small_config(name, *(() if pairs else ("--word-ngrams", 1)))
    variables = jax.eval_shape(lambda: model.init(config, jax.random.key(seed)))
    draw = np.random.default_rng(seed)
    fill = lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32)  # noqa: E731
    variables = {"params": jax.tree.map(fill, variables["params"]), "table": fill(variables["table"]),
                 "weights": jnp.abs(fill(variables["weights"])).at[0].set(0)}
    return predict.make_predictor(config, variables, model.feature_tables(config, WORDS))


def random_titles(rows, seed=0):
    """[rows, max_len] ids: titles of 0 to max_len words."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, len(WORDS), (rows, MAX_LEN))
    ids[np.arange(MAX_LEN) >= draw.integers(0, MAX_LEN + 1, rows)[:, None]] = 0
    return ids.astype(np.uint16)


# --- the same in plain Python -----------------------------------------------------------------------------------------

def fnv(text):
    value = 2166136261
    for character in text:
        value = (value ^ ord(character)) * 16777619 % 2 ** 32
    return value


def rows_of_word(i):
    """Rows of the table that the word with id i is made of."""
    text = f"<{WORDS[i]}>"
    ngrams = [50 + fnv(text[j:j + n]) % 40 for n in (3, 4) for j in range(len(text) - n + 1)] if i > 1 else []
    return [i if i < 50 else 1, *ngrams]


def rows_of_pairs(title):
    words = [zlib.crc32(WORDS[i].encode()) for i in title if i]
    return [50 + (a * 116049371 + b) % 2 ** 32 % 40 for a, b in itertools.pairwise(words)]


def word_vector(ready, rows):
    """(weighted sum of rows of the table, divided by the norm of the weights; the norm)."""
    weights = np.float64(ready.row_weights)[rows] * np.where(np.arange(len(rows)), 0.7, 1)
    norm = np.sqrt((weights ** 2).sum())
    return weights @ np.float64(ready.table)[rows] / max(norm, 1e-9), norm


def dense_head(x, params):
    y = np.maximum(0, x @ np.float64(params["Dense_0"]["kernel"]) + params["Dense_0"]["bias"])
    y = 0.2 * (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6)
    return np.concatenate([x, y], 1) @ np.float64(params["Dense_1"]["kernel"]) + params["Dense_1"]["bias"]


def bag_of(ready, title, pairs=True):
    found = [word_vector(ready, rows_of_word(i)) for i in title if i]
    found += [word_vector(ready, [row]) for row in rows_of_pairs(title) if pairs]
    total = sum((vector * norm for vector, norm in found), np.zeros(6))
    return total / np.sqrt(sum(norm ** 2 for _, norm in found) + 1e-12)


def test_mlp_equals_numpy():
    ready = random_predictor("mlp")
    ids = random_titles(20)
    expected = dense_head(np.stack([5 * bag_of(ready, title) for title in ids]), ready.params["Head_0"])
    np.testing.assert_allclose(predict.logits(ready, data.batch_of({"titles": ids})), expected, rtol=1e-3, atol=1e-3)


def log_softmax(z):
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


def test_cnn_equals_numpy():
    """Window by window, word by word; titles shorter than a filter and without words among them."""
    ready = random_predictor("cnn")
    ids, params = random_titles(20), ready.params
    pooled = np.zeros((len(ids), 3 * 4))
    for row, title in enumerate(ids):
        words = [word_vector(ready, rows_of_word(i))[0] for i in title if i]
        for place, width in enumerate((1, 2, 3)):
            for start in range(len(words)):
                window = np.float64(params[f"bias_{width}"]).copy()
                for offset, vector in enumerate(words[start:start + width]):
                    window += vector @ np.float64(params[f"filters_{width}"])[offset]
                part = slice(place * 4, (place + 1) * 4)
                pooled[row, part] = np.maximum(pooled[row, part], window)
    bags = np.stack([bag_of(ready, title, pairs=False) for title in ids])
    filters = dense_head(np.concatenate([pooled, bags], 1), params["TwoHeads_0"]["Head_0"])
    head = params["TwoHeads_0"]["MLP_0"]["Head_0"]["Dense_0"]
    other = 5 * np.stack([bag_of(ready, title) for title in ids]) @ np.float64(head["kernel"]) + head["bias"]
    expected = (log_softmax(filters) + log_softmax(other)) / 2
    np.testing.assert_allclose(predict.logits(ready, data.batch_of({"titles": ids})), expected, rtol=1e-3, atol=1e-3)


def test_cnn_equals_convolution():
    """The shifted matrix products against XLA's convolution."""
    ready = random_predictor("cnn", pairs=False)
    vectors = jax.random.normal(jax.random.key(1), (3, 7, 6))
    _, state = ready.module.apply(
        {"params": ready.params}, vectors, jnp.ones((3, 7)), (jnp.zeros((3, 0, 6)), jnp.zeros((3, 0))),
        mutable=["intermediates"],
        capture_intermediates=lambda mdl, _: mdl.path == ("TwoHeads_0", "Head_0"))
    parts = [jax.lax.conv_general_dilated(vectors, ready.params[f"filters_{width}"], (1,), [(0, width - 1)],
                                          dimension_numbers=("NWC", "WIO", "NWC"))
             + ready.params[f"bias_{width}"] for width in (1, 2, 3)]
    pooled = jnp.concatenate([jax.nn.relu(part).max(1) for part in parts] + [model.bag(vectors, jnp.ones((3, 7)))], -1)
    expected = model.Head(5, (8,), 0.0).apply({"params": ready.params["TwoHeads_0"]["Head_0"]}, pooled)
    found = state["intermediates"]["TwoHeads_0"]["Head_0"]["__call__"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WORD_MODELS)
def test_prediction_depends_on_nothing_but_the_title(name):
    ready = random_predictor(name)
    ids = random_titles(30)
    together = predict.logits(ready, data.batch_of({"titles": ids}))
    alone = jnp.concatenate([predict.logits(ready, data.batch_of({"titles": ids[i:i + 1]})) for i in range(30)])
    padded = predict.logits(ready, data.batch_of({"titles": np.pad(ids, ((0, 0), (0, 9)))}))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together, padded, rtol=1e-4, atol=1e-5)


def test_word_order_matters_to_all_but_a_bag_of_words():
    ids = np.array([[3, 4, 5, 0, 0, 0, 0], [5, 4, 3, 0, 0, 0, 0]], np.uint16)
    for name, pairs, same in (("mlp", False, True), ("mlp", True, False), ("cnn", False, False)):
        ready = random_predictor(name, pairs=pairs)
        first, second = predict.logits(ready, data.batch_of({"titles": ids}))
        assert np.allclose(first, second, atol=1e-5) == same


def test_composed_vectors_equal_plain_python():
    ready = random_predictor("cnn")
    for i in range(2, len(WORDS)):
        vector, norm = word_vector(ready, rows_of_word(i))
        np.testing.assert_allclose(ready.words[0][i], vector, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ready.words[1][i], norm, rtol=1e-5)
    assert not ready.words[1][0] and not ready.words[0][0].any()


def test_words_added_later_are_like_words_known_before():
    """A title with words that no split held, as --predict meets them."""
    config, ready = small_config(), random_predictor("mlp")
    variables = {"params": ready.params, "table": ready.table, "weights": ready.row_weights}
    short = predict.make_predictor(config, variables, model.feature_tables(config, WORDS[:50]))
    ids = random_titles(30).astype(np.uint32)  # as data.encode gives them
    assert (ids >= 50).any()
    batch, longer = data.batch_of({"titles": ids}), predict.extended(config, short, WORDS[50:])
    np.testing.assert_allclose(predict.logits(longer, batch), predict.logits(ready, batch), rtol=1e-4, atol=1e-4)


def test_keys_of_steps_are_those_of_jax():
    for seed in (0, 7, 2**32 - 1):
        key, found = jax.random.fold_in(jax.random.key(seed, impl="rbg"), 1), model.step_keys(seed, 300)
        for step in (0, 1, 299):
            mine = jax.random.fold_in(key, step)
            keys = [mine, *(jax.random.fold_in(mine, number) for number in range(3))]
            np.testing.assert_array_equal(found[step], np.stack([jax.random.key_data(one) for one in keys]))
            np.testing.assert_array_equal(found[step, 1:], jax.random.key_data(jax.random.split(mine, 3)))


def test_drawn_features_are_those_of_the_words():
    """Rows come from the word's own; dropout leaves out its share; over many draws all n-grams come, evenly."""
    config = small_config(dropout=0.25)
    features = jax.device_put(model.feature_tables(config, WORDS))
    weights = jnp.asarray(np.random.default_rng(0).random(90), jnp.float32).at[0].set(0)
    title = np.array([13, 52, 5, 1, 0], np.int32)
    draw = jax.jit(lambda keys: model.draw_features(config, features, weights, jnp.tile(title, (20_000, 1)), keys))
    (rows, weight), (pairs, pair_weight) = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), 3)))
    assert rows.shape == (20_000, 5, 1 + model.NGRAM_SAMPLES) and pairs.shape == (20_000, 5, 1)
    np.testing.assert_array_equal(pairs[7, :, 0], [*rows_of_pairs(title), 0, 0])
    for place, word in enumerate(title):
        own, *ngrams = rows_of_word(word) if word else [0]
        assert (rows[:, place, 0] == own).all()
        if not ngrams:
            assert not weight[:, place, 1:].any()
            continue
        drawn = np.bincount(rows[:, place, 1:].ravel(), minlength=90) / 20_000
        expected = np.bincount(ngrams, minlength=90) * model.NGRAM_SAMPLES / len(ngrams)
        np.testing.assert_allclose(drawn, expected, atol=0.03)
        share = weight[:, place, 1:] / np.asarray(weights)[rows[:, place, 1:]]
        kept = 0.7 * (len(ngrams) / model.NGRAM_SAMPLES) ** 0.75
        np.testing.assert_allclose(np.unique(share.round(4)), [0, kept], atol=1e-3)
        assert abs((share > 0).mean() - 0.75) < 0.02
    assert abs((pair_weight[:, :3] > 0).mean() - 0.75) < 0.02 and not pair_weight[:, 4:].any()


def test_a_large_table_is_drawn_in_blocks():
    key = jax.random.key(1)
    once = np.asarray(model.init_table(key, 700, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "LARGE", 699)
        patch.setattr(model, "BLOCK", 64)  # the last block begins within the one before
        blocks = np.asarray(jax.jit(model.init_table, static_argnums=(1, 2))(key, 700, 12))
    for table in (once, blocks):
        assert table.shape == (700, 12) and table.dtype == np.float32 and not table[0].any()
        assert len(np.unique(table[1:])) > 0.99 * 699 * 12 and np.abs(table).max() <= 12 ** -0.5
        np.testing.assert_allclose(table[1:].std(), 36 ** -0.5, rtol=0.02)


def test_lookup_and_update_equal_dense_adagrad():
    """Against a plain loop, with rows that come several times in a batch, over several steps."""
    draw = np.random.default_rng(0)
    table, accumulator = draw.normal(size=(12, 3)).astype(np.float32), np.zeros(12, np.float32)
    dense, sums = table.astype(np.float64), np.zeros(12)
    for _ in range(4):
        rows = [draw.integers(0, 8, (5, 4, 2)), draw.integers(0, 8, (5, 3, 1))]
        weights = [np.where(part == 0, 0, draw.random(part.shape) + 0.1).astype(np.float32) for part in rows]
        gradients = draw.normal(size=(5, 7, 3)).astype(np.float32)
        vectors, norms, used = model.lookup(jnp.asarray(table), list(zip(rows, weights, strict=True)))
        norm = np.concatenate([np.sqrt((part ** 2).sum(-1)) for part in weights], 1)
        sums_of_rows = np.concatenate([(dense[part] * weight[..., None]).sum(2)
                                       for part, weight in zip(rows, weights, strict=True)], 1)
        np.testing.assert_allclose(norms, norm, rtol=1e-5)
        np.testing.assert_allclose(vectors, sums_of_rows / np.maximum(norm, 1e-6)[..., None], rtol=1e-3, atol=1e-5)
        table, accumulator = model.update(jnp.asarray(table), jnp.asarray(accumulator), used, gradients, 0.1)
        steps = []
        for part, weight, place in ((rows[0], weights[0], slice(0, 4)), (rows[1], weights[1], slice(4, 7))):
            share = weight / np.maximum(np.sqrt((weight ** 2).sum(-1, keepdims=True)), 1e-6)
            gradient = share[..., None] * np.float64(gradients)[:, place, None]
            steps += zip(part.ravel(), gradient.reshape(-1, 3), strict=True)
        for i, g in steps:
            sums[i] += (g ** 2).mean()
        for i, g in steps:
            dense[i] -= 0.1 * g / np.sqrt(sums[i] + 1e-6)
    np.testing.assert_allclose(table, dense, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(accumulator, sums, rtol=1e-5)
    assert np.array_equal(table[8:], np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)[8:])


def test_row_weights_equal_scikit_learn(monkeypatch):
    """Words: as TfidfTransformer. N-grams: from the titles that hold a word with them, each word counted. In blocks of
    titles."""
    blocks = data.blocks
    monkeypatch.setattr(data, "blocks", lambda rows: blocks(rows, 70))
    config, ids = small_config(buckets=5000), random_titles(300)
    features = model.feature_tables(config, WORDS)
    found = model.row_weights(config, features, ids)
    counts = np.stack([np.bincount(title[title > 0], minlength=len(WORDS)) for title in ids])
    expected = TfidfTransformer().fit(counts).idf_.copy()
    expected[counts.sum(0) == 0] = 0
    np.testing.assert_allclose(found[2:50], expected[2:50], rtol=1e-6)
    titles_with = (counts > 0).sum(0)
    rare = min(300, titles_with[1] + titles_with[50:].sum())  # these share a row
    total = {0: 0, 1: rare}
    for i in range(2, len(WORDS)):
        for place in range(features["start"][i], features["start"][i + 1]):
            row = features["ngrams"][place]
            total[row] = total.get(row, 0) + titles_with[i]
    for row in model.word_ngrams(features, ids, 2).ravel():
        total[row] = total.get(row, 0) + 1
    for row in range(50, 5050):
        count = min(total.get(row, 0), 300)
        assert np.isclose(found[row], np.log(301 / (1 + count)) + 1 if count else 0, rtol=1e-5), row
    assert found[0] == 0 and np.isclose(found[1], np.log(301 / (1 + rare)) + 1)

    # All n-grams in one row, which titles use many times: they count once each.
    config = small_config(buckets=1)
    found = model.row_weights(config, model.feature_tables(config, WORDS), ids)
    assert np.isclose(found[config["vocabulary"]], 1, atol=0.01)


@pytest.mark.parametrize("name", WORD_MODELS)
def test_gradients_equal_finite_differences(name, monkeypatch):
    """Of the loss with respect to all parameters and to the vectors, in float64 along random directions."""
    monkeypatch.setattr(model.nn, "GRUCell", functools.partial(model.nn.GRUCell, param_dtype=jnp.float64))
    ready = random_predictor(name)
    vectors, weights, values = predict.inputs(ready, data.batch_of({"titles": jnp.asarray(random_titles(12))}))
    labels, draw = np.random.default_rng(1).integers(0, 5, 12), np.random.default_rng(2)
    with jax.enable_x64(True):
        point = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) * 0.3, (ready.params, vectors))
        weights = jnp.asarray(weights, jnp.float64)

        @jax.jit
        def loss(point):
            z = jax.nn.log_softmax(ready.module.apply({"params": point[0]}, point[1], weights, values))
            return -z[..., np.arange(12), labels].mean()

        gradient = jax.grad(loss)(point)
        for _ in range(5):
            way = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape)), point)
            there, back = (loss(jax.tree.map(lambda x, d, h=h: x + h * d, point, way)) for h in (1e-7, -1e-7))
            expected = (there - back) / 2e-7
            slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
            np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


def test_this_jax_computes_right():
    """jax 0.10.2 does not on a CPU: its jit fuses this product wrongly (jax-ml/jax#39103), so requirements.txt leaves
    it out."""
    x = np.zeros((32769, 3), np.float32)
    x[:, 0] = np.arange(len(x))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)),
                      compiler_options={"xla_backend_optimization_level": 3})(x)
    assert squares[-1] == 32768.0 ** 2 == 1_073_741_824


def test_best_is_the_first_maximum():
    z = np.random.default_rng(0).integers(0, 4, (500, 9)).astype(np.float32)  # many ties
    np.testing.assert_array_equal(predict.first_maximum(jnp.asarray(z)), z.argmax(1))


@pytest.mark.parametrize("rows", [1, 5, 8, 21])
def test_in_batches_gives_every_row_its_own_result(rows):
    ids = random_titles(rows)
    widths = set()

    def function(batches, others):
        ids = batches[0].ids
        widths.add(ids.shape)
        return {"sum": ids.sum(1), "other": others}

    result = predict.in_batches(function, (data.batch_of({"titles": ids}),), np.arange(rows), largest=8)
    np.testing.assert_array_equal(result["sum"], ids.sum(1))
    np.testing.assert_array_equal(result["other"], np.arange(rows))
    size = 1 if rows == 1 else 8
    assert widths <= {(size, -(-ids.shape[1] // 2)), (size, ids.shape[1])}
    predict.in_batches(function, (data.batch_of({"titles": ids}),), np.arange(rows), largest=1024)
    assert widths & {(1 if rows == 1 else 64, -(-ids.shape[1] // 2)), (1 if rows == 1 else 64, ids.shape[1])}


@pytest.mark.slow
def test_a_gpu_is_given_more_titles_at_a_time(monkeypatch):
    bag = random_predictor("mlp")
    on_cpu = predict.largest_batch(True), predict.largest_batch_of((bag,))
    card = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")]))
    monkeypatch.setattr(model.devices, "mesh", lambda: card)
    on_gpu = predict.largest_batch(True), predict.largest_batch_of((bag,))
    assert on_cpu[0] < on_cpu[1] <= on_gpu[0] < on_gpu[1] and {*on_cpu, *on_gpu} <= {*predict.BATCH_SIZES}


def test_score_equals_float64_and_scikit_learn():
    ready = random_predictor("mlp")
    ids, labels = random_titles(2500), np.random.default_rng(1).choice([0, 1, 3, 4], 2500)  # 2 is absent
    result = predict.score(predict.Ensemble((ready,)), (data.batch_of({"titles": ids}),), labels)
    logits = np.asarray(predict.logits(ready, data.batch_of({"titles": ids})), np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_array_equal(result["prediction"], logits.argmax(1))
    np.testing.assert_allclose(result["loss"], -np.log(shares[np.arange(2500), labels]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["calibrated_loss"], result["loss"], rtol=1e-5, atol=1e-5)
    likely = shares[np.arange(2500), labels] > 1e-12  # scikit-learn clips
    np.testing.assert_allclose(result["loss"][likely].mean(dtype=np.float64),
                               log_loss(labels[likely], shares[likely], labels=range(5)), rtol=1e-5)
    np.testing.assert_allclose(result["brier"].mean(), brier_score_loss(
        labels, shares, labels=range(5), scale_by_half=False), rtol=1e-5)
    np.testing.assert_allclose(result["given_probability"], shares[np.arange(2500), labels], rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(result["probability"], shares.max(1), rtol=1e-5)
    order = np.argsort(-logits, 1)
    np.testing.assert_array_equal(result["rank"], np.argmax(order == labels[:, None], 1))
    mixed = predict.score(predict.Ensemble((ready,)).replace(smoothing=0.3), (data.batch_of({"titles": ids}),), labels)
    np.testing.assert_allclose(mixed["given_probability"], 0.7 * shares[np.arange(2500), labels] + 0.06, rtol=1e-4)
    np.testing.assert_allclose(mixed["calibrated_loss"], -np.log(mixed["given_probability"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mixed["loss"], result["loss"], rtol=1e-5, atol=1e-5)
    for k in (1, 2, 4):
        assert (result["rank"] < k).mean() == top_k_accuracy_score(labels, logits, k=k, labels=range(5))


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_equals_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    labels = draw.choice([0, 2, 3, 7, 11], 500, p=[0.5, 0.3, 0.15, 0.04, 0.01])  # categories without rows between
    predictions = np.where(draw.random(500) < 0.6, labels, draw.integers(0, 13, 500))
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected = balanced_accuracy_score(labels, predictions)
    assert abs(measures.balanced_accuracy(labels, predictions) - expected) < 1e-12
