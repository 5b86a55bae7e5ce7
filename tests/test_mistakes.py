"""Ten mistakes that projects on these titles have made, each with a test that it is not made here."""
import csv
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import WORD_MODELS, run_here, write_csv
from mlflow import MlflowClient
from sklearn.metrics import balanced_accuracy_score
from test_model import random_predictor, random_titles

import data
import model
import train
from titles import files, measures, predict, runs


@pytest.mark.parametrize("name", WORD_MODELS)
def test_1_dropout_is_off_in_evaluation_and_on_in_training(name):  # of rows of the table, too: see test_model
    ready = random_predictor(name)
    inputs = jax.jit(predict.inputs)(ready, data.batch_of({"titles": random_titles(50)}))

    @functools.partial(jax.jit, static_argnums=1)
    def logits(key, train_mode):
        return ready.module.apply({"params": ready.params}, *inputs, train=train_mode, rngs={"dropout": key})

    for train_mode, same in ((False, True), (True, False)):
        first, second = (logits(jax.random.key(seed), train_mode) for seed in (1, 2))
        assert np.array_equal(first, second) == same


def test_2_no_sigmoid_before_the_cross_entropy(trained):
    """Squashed to 0..1 the logits could not bring the loss of 632 categories below 5.452, nor of 4 below 0.744."""
    with open(trained / "runs/filters/metrics.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["valid_loss"]) < 0.9 * (math.log(math.e + 3) - 1)


def test_3_balanced_accuracy_is_not_averaged_over_batches():
    """Rows sorted by category, so that each batch holds few categories and a mean over batches would be off."""
    ready = random_predictor("mlp")
    ids = random_titles(3000)
    labels = np.sort(np.random.default_rng(0).choice(5, 3000, p=[0.6, 0.2, 0.1, 0.07, 0.03]))
    predictions = predict.score(predict.Ensemble((ready,)), (data.batch_of({"titles": ids}),), labels)["prediction"]
    exact = balanced_accuracy_score(labels, predictions)
    by_batch = [measures.balanced_accuracy(labels[i:i + 1024], predictions[i:i + 1024]) for i in (0, 1024, 2048)]
    assert abs(measures.balanced_accuracy(labels, predictions) - exact) < 1e-12
    assert abs(np.mean(by_batch) - exact) > 1e-3


@pytest.mark.parametrize("name", WORD_MODELS)
def test_4_padding_is_never_pooled(name):
    """A huge vector in the place of padding changes nothing, neither the logits nor their gradient."""
    ready = random_predictor(name)
    ids = random_titles(40)
    vectors, weights, values = jax.jit(predict.inputs)(ready, data.batch_of({"titles": ids}))
    padding = np.asarray(weights == 0)
    assert padding[:, :ids.shape[1]].sum() >= (ids == 0).sum()
    wild = jnp.where(padding[..., None], 1e6, vectors)

    @jax.jit
    @jax.value_and_grad
    def loss(vectors):
        return ready.module.apply({"params": ready.params}, vectors, weights, values)[..., 0].sum()

    (one, gradient), (two, wild_gradient) = map(loss, (vectors, wild))
    assert one == two
    np.testing.assert_allclose(gradient, wild_gradient, rtol=1e-5)
    assert not np.asarray(wild_gradient)[padding].any()


def test_5_one_vocabulary_from_the_training_titles_alone(tmp_path):
    rows = [(f"mesa roja {i}", "MESAS") for i in range(100)] + [(f"silla azul {i}", "SILLAS") for i in range(100)]
    write_csv(tmp_path / "train.csv", rows, "title,category")
    write_csv(tmp_path / "test.csv", [("mesa inédita", "MESAS"), ("inédita silla", "SILLAS")], "title,category")
    run_here("prepare", "--data", "train.csv", "--test", "test.csv", cwd=tmp_path)
    meta, arrays = data.load_prepared(tmp_path / "data/prepared")
    assert "inedita" not in meta["vocab"]
    mesa, silla = meta["vocab"].index("mesa"), meta["vocab"].index("silla")
    unseen = meta["words"].index("inedita")
    assert arrays["test"]["titles"].tolist() == [[mesa, unseen, 0], [unseen, silla, 0]]
    assert np.load(tmp_path / "data/prepared/test_titles.npy")[0, :2].tolist() == [mesa, data.UNKNOWN]
    assert mesa in arrays["train"]["titles"][:, 0] and mesa in arrays["valid"]["titles"][:, 0]


def test_6_no_word_list_of_another_language():
    """No stop words are dropped: words that mean nothing in English, or everything, stay as they are."""
    title = "el la de para con sin a o the and of not on no me sob um uma"
    assert data.tokenize(title) == title.split()


@pytest.mark.slow
def test_7_the_logged_settings_are_the_used_ones(tiny):
    run_here("train", "--name", "odd", "--model", "cnn", "--epochs", 2, "--batch-size", 33, "--dim", 12,
             "--filters", 7, "--widths", 2, 4, "--hidden", 9, "--lr", 0.002, "--dropout", 0.25, "--seed", 5, cwd=tiny)
    logged = MlflowClient(f"sqlite:///{tiny}/mlflow.db").get_run(
        (tiny / "runs/odd/mlflow.txt").read_text().strip()).data.params
    manager = runs.checkpoint_manager(tiny / "runs/odd", read_only=True)
    step, config = manager.latest_step(), files.read_json(tiny / "runs/odd/config.json")
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    saved = runs.restore_checkpoint(manager, step, variables=shapes)["variables"]
    params = saved["params"]
    assert params["filters_2"].shape == (2, int(logged["dim"]), int(logged["filters"])) == (2, 12, 7)
    assert set(params) == {"filters_2", "bias_2", "filters_4", "bias_4", "TwoHeads_0"}
    assert logged["widths"] == "[2, 4]"
    assert params["TwoHeads_0"]["Head_0"]["Dense_0"]["kernel"].shape == (26, 9) and logged["hidden"] == "[9]"
    groups = data.length_groups(np.load(tiny / "data/prepared/train_titles.npy"), 33)
    steps_an_epoch = sum(group.chunks * group.steps for group in groups)
    with open(tiny / "runs/odd/metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == int(logged["epochs"]) == 2
    assert step == int(logged["steps"]) == 2 * steps_an_epoch and logged["batch_size"] == "33"
    module = model.build(config)
    assert (module.dropout, float(logged["dropout"])) == (0.25, 0.25)
    optimizer, params = train.make_optimizer(config), {"x": jnp.ones(3)}
    update, _ = optimizer.update({"x": jnp.ones(3)}, optimizer.init(params), params)
    expected, _ = optax.adam(float(logged["lr"])).update({"x": jnp.ones(3)}, optax.adam(0.002).init(params))
    np.testing.assert_allclose(update["x"], expected["x"], rtol=1e-6)


def test_8_the_curves_have_their_own_names():
    history = [{"epoch": i, "step": i, "train_loss": 1 / i, "valid_loss": 2 / i, "train_balanced_accuracy": 0.9,
                "valid_balanced_accuracy": 0.8} for i in (1, 2, 3)]
    loss, balanced = (figure := runs.loss_figure(history, "SYNTHETIC data, a run")).axes
    curves = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert curves == {"training (sample)": [1, 1 / 2, 1 / 3], "validation": [2, 1, 2 / 3]}
    assert {line.get_label(): line.get_ydata()[0] for line in balanced.get_lines()} == {
        "training (sample)": 0.9, "validation": 0.8}
    assert loss.get_xlabel() == "epoch" and "cross-entropy" in loss.get_ylabel() and "a run" in figure.get_suptitle()
    assert [entry.get_text() for entry in loss.get_legend().get_texts()][-1] == "best epoch: 3"  # the last of equals


@pytest.mark.parametrize("rows", [1, 5, 1023, 1024, 1025, 2500])
def test_9_every_row_is_judged_once(rows):
    """Whatever the batch size leaves over: the result of row i is that of row i judged alone."""
    ready = random_predictor("mlp")
    ids, labels = random_titles(rows, seed=rows), np.random.default_rng(rows).integers(0, 5, rows)
    result = predict.score(predict.Ensemble((ready,)), (data.batch_of({"titles": ids}),), labels)
    assert {len(values) for values in result.values()} == {rows}
    np.testing.assert_array_equal(result["prediction"], predict.logits(ready, data.batch_of({"titles": ids})).argmax(1))
    last = predict.score(predict.Ensemble((ready,)), (data.batch_of({"titles": ids[-1:]}),), labels[-1:])
    np.testing.assert_allclose(result["loss"][-1], last["loss"][0], rtol=1e-5)


def test_10_training_never_sees_the_test_split_and_judges_every_category(trained, tmp_path):
    shutil.copytree(trained / "data", tmp_path / "data")
    for path in (tmp_path / "data/prepared").glob("test_*"):
        path.unlink()
    run_here("train", "--name", "bag", "--epochs", 4, "--dim", 16, cwd=tmp_path)
    timeless = [[{key: row[key] for key in row if key not in ("seconds", "titles_per_second")}
                 for row in csv.DictReader((folder / "runs/bag/metrics.csv").read_text().splitlines())]
                for folder in (trained, tmp_path)]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4
    valid = np.load(tmp_path / "data/prepared/valid_labels.npy")
    assert len(np.unique(valid)) == json.loads((tmp_path / "data/prepared/meta.json").read_text())["categories"]
    done = run_here("evaluate", "--ckpt", "bag", "--json", "--split", "valid", cwd=tmp_path)
    assert json.loads(done.stdout)["rows"] == len(valid)
