"""One step of a training, and the steps after it, against plain NumPy: a second program for the same sums."""
import zlib
from itertools import pairwise
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import config_of
from scipy.special import softmax

import data
import model
import train
from titles import calibration, devices, predict

WORDS = [*data.SPECIALS, "a", "bb", "cccc", "dd", "eeee", "f"]  # of 1, 2 or 4 n-grams of 3 characters, all are drawn
TITLES = np.array([[2, 3, 4, 0, 0], [4, 4, 5, 6, 0], [7, 0, 0, 0, 0], [6, 5, 0, 0, 0], [3, 7, 2, 4, 0],
                   [5, 6, 7, 2, 0], [1, 4, 0, 0, 0], [2, 2, 2, 0, 0]], np.uint8)
LABELS, RELIABLE = np.array([0, 0, 0, 0, 0, 1, 1, 2], np.uint8), np.arange(8) % 3 > 0
ORDER = np.array([[0, 1, 2, 5], [3, 7, 6, 1], [4, 5, 7, 0], [1, 6, 7, 3]])  # of rows, four steps of four
STEPS, BUCKETS, SCALE = 8, 6, 3.0
FEATURES = {
    "words": ("--maxn", 0, "--word-ngrams", 1), "pairs": ("--maxn", 0, "--word-ngrams", 2, "--buckets", BUCKETS),
    "characters": ("--minn", 3, "--maxn", 3, "--character-weight", 0.7, "--word-ngrams", 1, "--buckets", BUCKETS)}


def configured(*flags):
    return config_of("--dim", 3, "--dropout", 0, "--scale", SCALE, "--batch-size", 4, "--accumulator", 0.5, *flags,
                     titles=TITLES, classes=3, vocabulary=len(WORDS), steps=STEPS)


def begun(config):
    """(state of random numbers, in which a word weighs nothing; features of the words)."""
    draw, shapes = np.random.default_rng(0), jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    variables = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), shapes)
    variables["weights"] = np.abs(variables["weights"]) + np.float32(0.5)
    variables["weights"][[0, 6]] = 0
    state = {"variables": variables, "optimizer": {
        "dense": train.make_optimizer(config).init(variables["params"]), "step": np.int32(0),
        "accumulator": np.full(len(variables["table"]), 0.5, np.float32)}}
    return devices.put(state, devices.whole()), model.feature_tables(config, WORDS)  # where the loop leaves it


def trained(config, state, arrays, width):
    """(the state after all steps of ORDER, the loss of each)."""
    chunk, losses = train.make_train_chunk(config), []
    for rows in ORDER:
        state, loss = chunk(state, arrays, rows[None], width=width)
        losses.append(float(loss))
    return state, losses


ROWS = {"titles": TITLES, "labels": LABELS, "reliable": RELIABLE}


# --- the same in plain NumPy ------------------------------------------------------------------------------------------

def fnv(text):
    value = 2166136261
    for character in text:
        value = (value ^ ord(character)) * 16777619 % 2 ** 32
    return value


def parts_of(title, kind):
    """[(row of the table, factor on its weight)] of all that a title is made of."""
    words = [i for i in title if i]
    found = [(i, 1.0) for i in words]
    if kind == "pairs":
        crc = [zlib.crc32(WORDS[i].encode()) for i in words]
        found += [(len(WORDS) + (a * 116049371 + b) % 2 ** 32 % BUCKETS, 1.0) for a, b in pairwise(crc)]
    for i in words if kind == "characters" else ():
        text = f"<{WORDS[i]}>"
        ngrams = [text[j:j + 3] for j in range(len(text) - 2)] if i > 1 else []
        drawn = np.repeat(ngrams, 4 // max(len(ngrams), 1))  # four of them, each equally often
        found += [(len(WORDS) + fnv(ngram) % BUCKETS, 0.7 * (len(ngrams) / 4) ** 0.75) for ngram in drawn]
    return found


class Adam:
    """Adam (Kingma and Ba 2015), algorithm 1."""

    def __init__(self):
        self.step, self.mean, self.square = 0, 0.0, 0.0

    def __call__(self, gradient):
        self.step += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient ** 2
        return self.mean / (1 - 0.9 ** self.step) / (np.sqrt(self.square / (1 - 0.999 ** self.step)) + 1e-8)


def plain_training(config, dense, table, titles, shift, row_weight):
    """[loss of each step], kernel, bias, table and the sums of its squares after all steps of ORDER, in float64.
    titles: for each a list of (row of the table, weight)."""
    params, adam, losses = [np.float64(dense[name]) for name in ("kernel", "bias")], [Adam(), Adam()], []
    table, sums = np.float64(table), np.full(len(table), 0.5)
    for number, rows in enumerate(ORDER):
        # Forward: the weighted sum of rows over the norm of the weights, a linear layer, softmax.
        batch = [titles[i] for i in rows]
        norms = [np.sqrt(sum(weight ** 2 for _, weight in title)) for title in batch]
        x = np.stack([SCALE * sum(weight * table[row] for row, weight in title) / norm
                      for title, norm in zip(batch, norms, strict=True)])
        z = x @ params[0] + params[1] + shift
        chance = softmax(z, 1)
        losses.append(-(row_weight[rows] * np.log(chance[np.arange(4), LABELS[rows]])).mean())

        # Backward: of the mean for the layer, of each title's own loss for the table.
        of_logits = row_weight[rows][:, None] * (chance - np.eye(3)[LABELS[rows]])
        gradients = [x.T @ of_logits / 4, of_logits.mean(0)]
        of_parts = [(row, SCALE * weight / norm * of_x)
                    for title, norm, of_x in zip(batch, norms, of_logits @ params[0].T, strict=True)
                    for row, weight in title]
        factor = 1 - number / STEPS
        params = [value - config["lr"] * factor * step(gradient + config["weight_decay"] * value)
                  for value, gradient, step in zip(params, gradients, adam, strict=True)]
        for row, gradient in of_parts:
            sums[row] += (gradient ** 2).mean()
        for row, gradient in of_parts:
            table[row] -= config.get("table_lr", 0) * factor * gradient / np.sqrt(sums[row] + 1e-6)
    return losses, *params, table, sums


BALANCED = {"none": (0, np.ones(8)), "logit": (np.log([5 / 8, 2 / 8, 1 / 8]), np.ones(8)),
            "weights": (0, 8 / 3 / np.array([5, 2, 1])[LABELS])}  # as scikit-learn's class_weight="balanced"


@pytest.mark.parametrize("kind, balance", [("words", "weights"), ("pairs", "logit"), ("characters", "none")])
def test_steps_equal_numpy(kind, balance):
    config = configured(*FEATURES[kind], "--balance", balance, "--weight-decay", 0.2, "--unreliable-weight", 0.25,
                        "--lr", 0.05)
    state, features = begun(config)
    shift, row_weight = BALANCED[balance]
    variables = jax.tree.map(np.array, state["variables"])
    titles = [[(row, factor * float(variables["weights"][row])) for row, factor in parts_of(title, kind)]
              for title in TITLES]
    expected = plain_training(config, variables["params"]["Head_0"]["Dense_0"], variables["table"], titles, shift,
                              row_weight * np.where(RELIABLE, 1, 0.25))
    state, losses = trained(config, state, train.training_arrays(config, features, ROWS), width=4)
    dense, table = state["variables"]["params"]["Head_0"]["Dense_0"], state["variables"]["table"]
    found = losses, dense["kernel"], dense["bias"], table, state["optimizer"]["accumulator"]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert ((variables["table"] != table).any(1) == (expected[4] > 0.5)).all()
    assert expected[4][6] == expected[4][0] == 0.5  # what weighs nothing stays


# --- an encoder -------------------------------------------------------------------------------------------------------

DESCRIBED = {"encoder": {"name": "use", "max_len": 5}, "pieces": np.arange(9)}  # the package is not needed


def test_rates_decay_and_clipping_of_an_encoder_equal_numpy():
    """Gradients of two parts are cut to a norm of 1 together; each has its own rate, that of the layers rises first."""
    config = config_of("--model", "encoder", "--lr", 0.03, "--encoder-lr", 0.004, "--weight-decay", 0.5, titles=TITLES,
                       meta=DESCRIBED, steps=20)
    draw, optimizer = np.random.default_rng(0), train.make_optimizer(config)

    def parts(values):
        values = values.astype(np.float32)
        return {"layers": {"a": values[:6].reshape(2, 3)}, "head": {"b": values[6:]}}

    expected = draw.normal(size=9)
    params = parts(expected)
    adam, state = Adam(), optimizer.init(params)
    for step, size in enumerate((10.0, 0.1, 3.0, 0.2, 30.0)):
        gradient = draw.normal(size=9) * size
        updates, state = optimizer.update(parts(gradient), state, params)
        params = jax.tree.map(np.add, params, updates)
        rising = step / 2 if step < 2 else (1 + np.cos(np.pi * (step - 2) / 18)) / 2
        rates = np.repeat([0.004 * rising, 0.03 * (1 - step / 20)], [6, 3])
        cut = gradient * min(1, train.CLIP / np.linalg.norm(gradient))
        expected = expected - rates * adam(cut + 0.5 * expected)
    found = np.concatenate([params["layers"]["a"].ravel(), params["head"]["b"]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dropout_of_an_encoder_is_of_the_titles_vector():
    """Whose features it leaves out or doubles, in training alone."""
    module = model.Encoder(classes=40, dropout=0.5, scale=3.0, freeze_layers=True)
    params = {"head": {"Dense_0": {"kernel": np.eye(40, dtype=np.float32), "bias": np.zeros(40, np.float32)}}}
    vectors = np.random.default_rng(0).uniform(1, 2, (50, 1, 40)).astype(np.float32)

    none = np.zeros((50, 0, 40)), np.zeros((50, 0))

    def logits(**how):
        return np.asarray(module.apply({"params": params}, vectors, np.ones((50, 1)), none, **how)) / vectors[:, 0]

    np.testing.assert_allclose(logits(), 3, rtol=1e-5)
    found = logits(train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(found.round(4)), [0, 6])
    assert abs((found > 0).mean() - 0.5) < 0.05


def frozen_encoder(*flags):
    """(config, a state of random numbers, what the compiled loop reads) of a linear classifier of ready vectors, the
    rows of a table that stays."""
    config = config_of("--model", "encoder", "--freeze-layers", "--scale", SCALE, "--weight-decay", 0.2, *flags,
                       titles=TITLES, meta=DESCRIBED, classes=3, steps=STEPS)
    draw, dim = np.random.default_rng(0), model.Encoder.dim
    table = draw.normal(size=(9, dim)).astype(np.float32)
    dense = {"kernel": draw.normal(size=(dim, 3)).astype(np.float32) / 20, "bias": np.ones(3, np.float32)}
    params, rows = {"head": {"Dense_0": dense}}, ROWS | {"titles": np.arange(1, 9, dtype=np.uint32)[:, None]}
    state = {"variables": {"params": params}, "optimizer": {
        "dense": train.make_optimizer(config).init(params), "step": np.int32(0)}}
    return config, devices.put(state, devices.whole()), train.training_arrays(config, {}, rows, {"table": table})


def test_steps_of_an_encoder_with_frozen_layers_equal_numpy():
    config, state, arrays = frozen_encoder("--dropout", 0, "--lr", 0.05)
    dense = jax.tree.map(np.array, state["variables"]["params"]["head"]["Dense_0"])
    losses, kernel, bias, *_ = plain_training(config, dense, arrays["frozen"]["table"], [[(i, 1.0)] for i in range(
        1, 9)], *BALANCED["logit"])
    state, found = trained(config, state, arrays, width=1)
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    dense = state["variables"]["params"]["head"]["Dense_0"]
    np.testing.assert_allclose(dense["kernel"], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dense["bias"], bias, rtol=1e-4, atol=1e-5)


def test_the_loss_of_two_heads_is_their_mean(monkeypatch):
    def heads(variables, vectors, *_, **__):
        dense = variables["params"]["head"]["Dense_0"]
        return jax.numpy.stack([vectors[:, 0] @ dense["kernel"], dense["bias"] + 3 * vectors[:, 0, :3]])

    monkeypatch.setattr(model, "build", lambda config: SimpleNamespace(apply=heads))
    config, state, arrays = frozen_encoder("--balance", "none")
    dense = state["variables"]["params"]["head"]["Dense_0"]
    vectors = np.asarray(arrays["frozen"]["table"])[1 + ORDER[0]]
    logits = np.stack([vectors @ dense["kernel"], dense["bias"] + 3 * vectors[:, :3]])
    losses = -np.log(softmax(logits, 2)[:, np.arange(4), LABELS[ORDER[0]]]).mean(1)
    _, found = train.make_train_chunk(config)(state, arrays, ORDER[:1], width=1)
    assert abs(losses[0] - losses[1]) > 0.1
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-5)


# --- what is drawn ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["words", "features of a vector"])
def test_what_is_left_out_is_drawn_anew_at_each_step(what):
    """At rates that change nothing; the numbers depend on the seed and the step, and on nothing else."""
    def losses(steps, *flags):
        flags, found = ("--dropout", 0.5, "--lr", 1e-12, *flags), []
        if what == "words":
            config = configured(*FEATURES["words"], "--table-lr", 1e-12, *flags)
            state, features = begun(config)
            arrays, width = train.training_arrays(config, features, ROWS), 4
        else:
            (config, state, arrays), width = frozen_encoder(*flags), 1
        chunk = train.make_train_chunk(config)
        for step in steps:
            state["optimizer"]["step"] = devices.put(np.int32(step), devices.whole())
            state, loss = chunk(state, arrays, ORDER[:1], width=width)
            found.append(float(loss))
        return found

    first, second, third, again = losses([0, 1, 2, 1])
    assert min(abs(first - second), abs(second - third), abs(third - first)) > 1e-3
    assert again == pytest.approx(second, rel=1e-5)
    assert what == "words" or abs(losses([0], "--seed", 1)[0] - first) > 1e-3


# --- scores -----------------------------------------------------------------------------------------------------------

def test_scores_of_reliable_rows_are_of_these_alone(monkeypatch):
    """And equal those of a file that has no others."""
    loss, prediction = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float32), np.array([0, 1, 0, 2, 0, 1, 0, 2])
    monkeypatch.setattr(predict, "score", lambda ensemble, batches, labels: {
        "loss": loss[batches[0].ids[:, 0]], "prediction": prediction[batches[0].ids[:, 0]]})
    rows = {"titles": np.arange(8)[:, None], "labels": LABELS.astype(int), "reliable": RELIABLE}
    found = train.evaluate_rows(None, rows, "valid")
    assert found == {"valid_loss": 4.5, "valid_accuracy": 5 / 8, "valid_balanced_accuracy": (3 / 5 + 1 / 2 + 1) / 3,
                     "valid_reliable_loss": pytest.approx((2 + 3 + 5 + 6 + 8) / 5),
                     "valid_reliable_balanced_accuracy": (2 / 3 + 1 + 1) / 3}
    assert set(train.evaluate_rows(None, rows | {"reliable": RELIABLE & False}, "train")) == {
        "train_loss", "train_accuracy", "train_balanced_accuracy"}


def test_the_rows_that_are_scored(monkeypatch):
    """A sample of the training rows by the run's seed; for the calibration the same validation rows in all runs."""
    monkeypatch.setattr(train, "TRAIN_SAMPLE", 20)
    arrays = {"train": {"labels": np.arange(100), "language": np.zeros(100)}, "valid": {"labels": np.arange(50)}}
    one, other = (train.scored_rows({"seed": seed, "classes": 100, "calibration_rows": 30}, arrays)
                  for seed in (0, 1))
    assert one["valid"] is arrays["valid"] and "language" not in one["train"]
    assert one["calibration"]["labels"].tolist() == other["calibration"]["labels"].tolist()
    for drawn, rows in ((one["train"], 20), (other["train"], 20), (one["calibration"], 30)):
        assert len({*drawn["labels"].tolist()}) == rows and drawn["labels"].max() > rows
    assert {*one["train"]["labels"].tolist()} != {*other["train"]["labels"].tolist()}


def test_what_is_kept_to_calibrate_with(monkeypatch):
    """Logits relative to the largest of their row, so that float16 is finest where the likeliest are."""
    z = np.array([[2000, 2000.25, 1990], [-3000, -3000.5, -3001]], np.float32)
    monkeypatch.setattr(predict, "in_batches", lambda *_, **__: {"logits": z})
    monkeypatch.setattr(calibration, "fit", lambda logits, labels: (logits.min(), len(labels)))
    kept = train.calibrate(SimpleNamespace(module=None), {"titles": np.zeros((2, 1)), "labels": np.array([1, 2])})
    assert kept["logits"].dtype == np.float16 and kept["logits"].tolist() == [[-0.25, 0, -10.25], [0, -0.5, -1]]
    assert kept["labels"].tolist() == [1, 2] and (kept["temperature"], kept["smoothing"]) == (-10.25, 2)
