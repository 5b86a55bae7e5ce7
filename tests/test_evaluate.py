"""Reports and predictions, as a user gets them, against scikit-learn."""
import bz2
import csv
import gzip
import io
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, run_script
from mlflow import MlflowClient
from sklearn import metrics

import data
import evaluate
import model
from titles import files, measures, report, runs
from titles import predict as prediction
from titles.cli import UserError


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def reported(trained):
    """The folder of `trained`, and the JSON that evaluate.py printed for the run filters."""
    done = run_script("evaluate", "--ckpt", "filters", "--json", cwd=trained)
    return trained, json.loads(done.stdout)


def test_scores_equal_scikit_learn_on_the_predictions_written(reported):
    folder, scores = reported
    rows = read_csv(folder / "runs/filters/test-best/predictions.csv")
    true, predicted = [row["category"] for row in rows], [row["predicted"] for row in rows]
    assert scores["rows"] == len(rows) == len(np.load(folder / "data/prepared/test_labels.npy"))
    assert abs(scores["balanced_accuracy"] - metrics.balanced_accuracy_score(true, predicted)) < 1e-12
    assert abs(scores["accuracy"] - metrics.accuracy_score(true, predicted)) < 1e-12
    assert abs(scores["macro_f1"] - metrics.f1_score(true, predicted, average="macro")) < 1e-12
    assert (scores["run"], scores["split"], scores["synthetic"]) == ("filters", "test", False)
    assert 0 < scores["loss"] < np.log(4)
    low, high = scores["balanced_accuracy_interval"]
    assert low <= scores["balanced_accuracy"] <= high and high - low < 0.3
    titles = (folder / "data/prepared/test_text.txt").read_text(encoding="utf-8").splitlines()
    assert [row["title"] for row in rows] == titles


def test_the_keys_of_a_report_are_documented(reported, tmp_path):
    """Of a split, and of several runs on a file: no other keys, and none that never comes."""
    folder, scores = reported
    (tmp_path / "few.csv").write_text("title,category\nmesa,MESAS\n", encoding="utf-8")
    others = json.loads(run_here("evaluate", "--ckpt", "bag", "filters", "--test", tmp_path / "few.csv", "--json",
                                 cwd=folder).stdout)
    # See test_shop.py, test_levels.py and test_against.py for these.
    assert scores.keys() | others.keys() | {"columns", "levels", "mistakes", "against"} == report.KEYS.keys()
    for part in scores["slices"].values():
        assert part.keys() == {*report.SCORES, "rows", "balanced_accuracy_interval"}


def test_a_report_reads_titles_as_text_alone(reported, tmp_path):
    """Not the ids of their words, which training alone needs: nothing is said where these files are missing."""
    folder, scores = reported
    shutil.copytree(folder, tmp_path / "copy")
    for kind in ("titles", "oov"):
        (tmp_path / f"copy/data/prepared/test_{kind}.npy").unlink()
    done = run_here("evaluate", "--ckpt", "filters", "--json", cwd=tmp_path / "copy")
    assert json.loads(done.stdout) == scores


def test_slices(reported):
    folder, scores = reported
    rows = read_csv(folder / "runs/filters/test-best/predictions.csv")
    prepared = folder / "data/prepared"
    languages = files.read_json(prepared / "meta.json")["languages"]
    masks = {f"language {name}": np.load(prepared / "test_language.npy") == i for i, name in enumerate(languages)}
    masks["reliable"] = np.load(prepared / "test_reliable.npy")
    assert set(masks) == set(scores["slices"]) and len(masks) == 3
    for name, mask in masks.items():
        part = [row for row, keep in zip(rows, mask, strict=True) if keep]
        expected = metrics.balanced_accuracy_score([row["category"] for row in part],
                                                   [row["predicted"] for row in part])
        assert scores["slices"][name]["rows"] == mask.sum()
        assert abs(scores["slices"][name]["balanced_accuracy"] - expected) < 1e-12


def test_tables_and_figures(reported):
    folder, scores = reported
    out = folder / "runs/filters/test-best"
    rows, table = read_csv(out / "predictions.csv"), read_csv(out / "categories.csv")
    true, predicted = [row["category"] for row in rows], [row["predicted"] for row in rows]
    names = [row["category"] for row in table]
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([float(row[column]) for row in table], values, atol=5.1e-5)
    train = np.bincount(np.load(folder / "data/prepared/train_labels.npy"))
    assert [int(row["training_rows"]) for row in table] == train.tolist()
    wrong = [(a, b) for a, b in zip(true, predicted, strict=True) if a != b]
    found = read_csv(out / "confusions.csv")
    assert sum(int(row["rows"]) for row in found) == len(wrong) > 0
    for row in found:
        assert wrong.count((row["category"], row["predicted"])) == int(row["rows"])
        example = row["examples"].split(" | ")[0]
        assert any(r["title"] == example and r["predicted"] == row["predicted"] for r in rows)
    for figure in ("recall.png", "confusions.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "report.json").read_text()) == scores


def test_mlflow_gets_the_test_scores(reported):
    folder, scores = reported
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run_id = (folder / "runs/filters/mlflow.txt").read_text().strip()
    assert client.get_run(run_id).data.metrics["test_balanced_accuracy"] == scores["balanced_accuracy"]
    assert {item.path for item in client.list_artifacts(run_id, "test-best")} >= {
        "test-best/report.json", "test-best/recall.png"}


def test_printed_report(trained):
    text = run_here("evaluate", "--ckpt", "filters", "--split", "train", cwd=trained).stdout
    assert "balanced" in text and "reliable" in text and "language portuguese" in text and " taken for " in text


def test_best_and_latest_are_different_checkpoints(trained):
    """And each has the scores that the training wrote down for it, of all validation rows and of the reliable ones."""
    scores = {which: json.loads(run_here("evaluate", "--ckpt", f"bag/{which}", "--split", "valid", "--json",
                                         cwd=trained).stdout) for which in ("best", "latest")}
    rows = {int(row["step"]): row for row in read_csv(trained / "runs/bag/metrics.csv")}
    values = {step: float(row["valid_balanced_accuracy"]) for step, row in rows.items()}
    assert scores["latest"]["step"] == max(values)
    for score in scores.values():
        for part, found in (("", score), ("reliable_", score["slices"]["reliable"])):
            for name in ("loss", "accuracy", "balanced_accuracy"):
                if f"valid_{part}{name}" in rows[score["step"]]:
                    expected = float(rows[score["step"]][f"valid_{part}{name}"])
                    assert found[name] == pytest.approx(expected, rel=1e-4 if name == "loss" else 1e-12)
    assert scores["best"]["balanced_accuracy"] == max(values.values())


# --- prediction -------------------------------------------------------------------------------------------------------

def test_predictions_equal_the_report(reported, tmp_path):
    """The same titles through --predict, in a folder that holds nothing but the run."""
    folder, _ = reported
    shutil.copytree(folder / "runs/filters", tmp_path / "runs/filters")
    titles = (folder / "data/prepared/test_text.txt").read_text(encoding="utf-8")
    text = run_script("evaluate", "--ckpt", "filters", "--predict", "-", cwd=tmp_path, stdin=titles).stdout
    rows = read_csv(folder / "runs/filters/test-best/predictions.csv")
    assert [line.split("\t")[0] for line in text.splitlines()] == [row["predicted"] for row in rows]
    np.testing.assert_allclose([float(line.split("\t")[1]) for line in text.splitlines()],
                               [float(row["probability"]) for row in rows], atol=1e-4)


def test_predict_formats(trained, tmp_path):
    def predict(*args, stdin=""):
        return run_here("evaluate", "--ckpt", "bag", "--predict", *args, cwd=trained, stdin=stdin).stdout

    titles = ["funda estuche negro", "mesa, grande", "", "日本語 ???", "silla \ud7ff \"azul\""]
    lines = predict("-", "--top", 3, stdin="\n".join(titles) + "\n").splitlines()
    assert len(lines) == len(titles)
    for line in lines:
        fields = line.split("\t")
        chances = [float(field) for field in fields[1::2]]
        assert len(fields) == 6 and chances == sorted(chances, reverse=True)
    assert [line.split("\t")[0] for line in lines[:2]] == ["FUNDAS", "MESAS"]
    everything = predict("-", "--top", 99, stdin="mesa\n").split("\t")
    assert len(everything) == 8 and sum(map(float, everything[1::2])) == pytest.approx(1, abs=3e-6)  # all there are
    assert predict("-", stdin="") == ""

    table = io.StringIO()
    csv.writer(table).writerows([("price", "Title"), *((1, title) for title in titles)])
    (tmp_path / "some.csv").write_text(table.getvalue(), encoding="utf-8")
    assert predict(tmp_path / "some.csv", "--top", 3).splitlines() == lines
    assert predict(tmp_path / "some.csv", "--top", 3, "--out", tmp_path / "new/out.tsv") == ""
    assert (tmp_path / "new/out.tsv").read_text().splitlines() == lines

    table = io.StringIO()
    csv.writer(table).writerows([("id", "title", "language"), *((i, title, "x") for i, title in enumerate(titles))])
    (tmp_path / "meli.csv").write_text(table.getvalue(), encoding="utf-8")
    submission = list(csv.reader(predict(tmp_path / "meli.csv").splitlines()))
    assert submission == [["id", "category"], *([str(i), line.split("\t")[0]] for i, line in enumerate(lines))]
    done = run_script("evaluate", "--ckpt", "bag", "--predict", tmp_path / "meli.csv", "--top", 2, "--out",
                      tmp_path / "none", cwd=trained, check=False)
    assert_one_line_error(done, "--top 2", "meli.csv has ids")
    assert not (tmp_path / "none").exists()


def test_broken_csv_loses_no_row_in_silence(trained, tmp_path):
    path = tmp_path / "titles.csv"
    path.write_text("id,title\n1,mesa\n2,silla,roja\n")
    done = run_here("evaluate", "--ckpt", "bag", "--predict", path, "--out", tmp_path / "out", cwd=trained,
                      check=False)
    assert_one_line_error(done, "titles.csv:3: 3 columns")
    assert not (tmp_path / "out").exists()
    path.write_text('id,title,language\n1,mesa,x\n2,"silla cadeira,x\n3,funda,x\n')
    done = run_here("evaluate", "--ckpt", "bag", "--predict", path, cwd=trained)
    assert done.stdout == "id,category\n1,MESAS\n2,SILLAS\n3,FUNDAS\n"
    assert done.stderr.startswith("warning: ") and "titles.csv:3: an unclosed quote" in done.stderr
    path.write_bytes(b'id,title\r\n1,"mesa\rgrande, ""roja"""\r\n\r\n2,silla cadeira\r\n')
    run_here("evaluate", "--ckpt", "bag", "--predict", path, "--out", tmp_path / "out", cwd=trained)
    assert (tmp_path / "out").read_text() == "id,category\n1,MESAS\n2,SILLAS\n"
    path.write_text("id,title\n")
    assert run_here("evaluate", "--ckpt", "bag", "--predict", path, cwd=trained).stdout == "id,category\n"


def test_bad_input(trained, tmp_path):
    def fails(*args, words, cwd=trained, stdin=""):
        assert_one_line_error(run_here("evaluate", *args, cwd=cwd, check=False, stdin=stdin), *words)

    fails("--ckpt", "nothing", words=["nothing"])
    fails(words=["no prepared data"], cwd=tmp_path)
    fails("--predict", "-", words=["no trained run"], cwd=tmp_path)
    fails("--predict", "nowhere.txt", words=["nowhere.txt"])
    fails("--split", "all", words=["--split"])
    fails("--top", "0", words=["--top"])
    fails("--out", "x", words=["--out"])
    (tmp_path / "bad.csv").write_text("name,price\na,1\n")
    fails("--predict", tmp_path / "bad.csv", words=["bad.csv:1", "title"])
    out = tmp_path / "old.tsv"
    out.write_text("former")
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00 this is no gzip")
    fails("--predict", tmp_path / "cut.gz", "--out", out, words=["cut.gz"])
    for name, content, word in (("utf16.txt", "funda\n".encode("utf-16"), "UTF-8"),
                                ("twice.gz", gzip.compress(gzip.compress(b"funda\n")), "once"),
                                ("mac.txt", b"funda\rmesa\r", "carriage return"),
                                ("titles.jsonl", b'{"title": "funda"}\n', "JSON"),
                                ("labelled.txt", b"__label__MESAS mesa\n", "labels"),
                                ("broken.bz2", bz2.compress(b"funda\n")[:-9] + bytes(9), "broken.bz2: broken")):
        (tmp_path / name).write_bytes(content)
        fails("--predict", tmp_path / name, "--out", out, words=[name, word])
        (tmp_path / name).unlink()
    assert out.read_text() == "former" and {path.name for path in tmp_path.iterdir()} == {
        "bad.csv", "cut.gz", "old.tsv", "mlflow.db"}  # the last one is conftest's


def test_output_may_be_a_pipe_and_a_report_a_link(trained, tmp_path):
    shutil.copytree(trained / "runs/bag", tmp_path / "bag")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        run_script("evaluate", "--ckpt", tmp_path / "bag", "--predict", "-", "--out", tmp_path / "pipe", cwd=trained,
                   stdin="title;x\nfunda;1\n")
        assert reader.stdout.read().startswith("FUNDAS\t")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bag/test-best").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        run_here("evaluate", "--ckpt", tmp_path / "bag", cwd=trained)
        assert (tmp_path / "elsewhere/report.json").exists() and (tmp_path / "bag/test-best").is_symlink()


def test_a_checkpoint_that_does_not_fit(trained, tmp_path):
    def fails(*words):
        with pytest.raises(UserError) as raised:
            runs.restore(tmp_path / "bag", "best")
        assert all(word in str(raised.value) for word in words)

    shutil.copytree(trained / "runs/bag", tmp_path / "bag")
    config = files.read_json(tmp_path / "bag/config.json")
    files.write_json(tmp_path / "bag/config.json", files.with_checksum(config | {"dim": 17}))
    fails("checkpoint")
    files.write_json(tmp_path / "bag/config.json", files.with_checksum(config | {"format": 0}))
    fails("format version")
    files.write_json(tmp_path / "bag/config.json", files.with_checksum(config | {"model": "svm"}))
    fails("svm", "model.py")
    files.write_json(tmp_path / "bag/config.json", config | {"dim": 17})
    fails("config.json", "changed")
    files.write_json(tmp_path / "bag/config.json", files.with_checksum(config | {"fingerprint": "other"}))
    done = run_here("evaluate", "--ckpt", tmp_path / "bag", cwd=trained, check=False)
    assert_one_line_error(done, "other data")
    files.write_json(tmp_path / "bag/config.json", config)
    words = (tmp_path / "bag/vocab.txt").read_text().split("\n")
    (tmp_path / "bag/vocab.txt").write_text("\n".join(words[:2] + words[3:1:-1] + words[4:]))
    fails("vocab.txt")
    (tmp_path / "bag/vocab.txt").write_text("\n".join(words))
    for step in (tmp_path / "bag/checkpoints").iterdir():
        (step / "_CHECKPOINT_METADATA").write_text("[]")
    fails("checkpoints", "damaged")
    shutil.rmtree(tmp_path / "bag/checkpoints")
    (tmp_path / "bag/checkpoints").mkdir()
    fails("no best checkpoint")


# --- from Python ------------------------------------------------------------------------------------------------------

def test_the_classifier_for_python_and_the_command_line_are_one(trained, monkeypatch):
    import pandas as pd
    monkeypatch.chdir(trained)
    titles = ["funda estuche negro", None, "mesa, grande", float("nan"), "", "silla azul"]
    classifier = evaluate.load("bag")
    found = classifier.predict(titles, top=3)
    present = [title for title in titles if isinstance(title, str)]
    lines = run_script("evaluate", "--ckpt", "bag", "--predict", "-", "--top", 3, cwd=trained,
                       stdin="\n".join(present) + "\n").stdout.splitlines()
    assert found[1] == found[3] == []
    assert ["\t".join(f"{category or ''}\t{chance:.6f}" for category, chance in row) for row in found if row] == lines
    assert classifier.predict(pd.Series(titles), top=3) == found
    probabilities = classifier.predict_proba(titles)
    assert probabilities.shape == (6, 4) and np.isnan(probabilities[[1, 3]]).all()
    np.testing.assert_allclose(probabilities[[0, 2, 4, 5]].sum(1), 1, rtol=1e-5)
    assert classifier.labels[probabilities[0].argmax()] == found[0][0][0] == "FUNDAS"
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 4)
    assert len(classifier.predict(["mesa"], top=99)[0]) == 4
    assert len(evaluate.load("bag", "filters").predict(["mesa"])[0]) == 1
    with pytest.raises(UserError, match="nothing"):
        evaluate.load("nothing")


def test_best_and_all_are_of_the_data_that_is_there(trained, tmp_path, monkeypatch, capsys):
    """From Python as on the command line; only the usual folder may be lacking."""
    shutil.copytree(trained / "data", tmp_path / "data")
    for name in ("bag", "filters"):
        shutil.copytree(trained / "runs" / name, tmp_path / "runs" / name)
    path = tmp_path / "runs/filters/config.json"
    files.write_json(path, files.with_checksum(files.read_json(path) | {"fingerprint": "of last month"}))
    monkeypatch.chdir(tmp_path)
    for names in ((), ("best",), ("all",)):
        assert [folder.name for folder in evaluate.load(*names).folders] == ["bag"]
    assert not capsys.readouterr().err

    # Of data that is not there, nobody knows which runs are meant.
    for ckpt in ("best", "all", "bag"):
        done = run_here("evaluate", "--ckpt", ckpt, "--data", "typo", "--predict", "-", cwd=tmp_path, check=False)
        assert_one_line_error(done, "typo: no prepared data here")
        with pytest.raises(UserError, match="typo: no prepared data here"):
            evaluate.load(ckpt, data="typo")
        with pytest.raises(UserError, match="typo: no prepared data here"):
            evaluate.load(ckpt, data=["data/prepared", "typo"])
    assert_one_line_error(run_here(
        "export", "--ckpt", "best", "--data", "typo", "--out", "x", cwd=tmp_path, check=False), "typo: no prepared")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert len(evaluate.load("best").folders) == 1
    assert "warning: data/prepared: no prepared data here, and runs/ has runs of several" in capsys.readouterr().err
    assert evaluate.load("bag", data=tmp_path / "moved/prepared").folders == [tmp_path / "runs/bag"]
    assert evaluate.load("bag").folders == [tmp_path / "runs/bag"] and not capsys.readouterr().err


# --- several runs -----------------------------------------------------------------------------------------------------

def logits_of(folder, name, split="test"):
    """([N, C] float64 logits, labels) of a run on a split, by the model alone, from the prepared arrays."""
    config, _, _, saved, _ = runs.restore(folder / "runs" / name, "best")
    meta, arrays = data.load_prepared(folder / "data/prepared", (split,))
    predictor = prediction.make_predictor(config, saved["variables"], model.feature_tables(config, meta["words"]))
    z = np.asarray(prediction.logits(predictor, data.batch_of(arrays[split])), np.float64)
    return z, arrays[split]["labels"].astype(int)


def loss_of(z, labels, scores):
    """Mean cross-entropy of logits after their temperature, smoothed as the scores say."""
    probabilities = np.exp(log_softmax(z)) * (1 - scores["smoothing"]) + scores["smoothing"] / z.shape[1]
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def log_prior_of(folder):
    count = np.array(files.read_json(folder / "data/prepared/meta.json")["training_rows"])
    return np.log(count / count.sum())


def log_softmax(z):
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


def test_several_runs_are_averaged_after_their_temperatures(trained, tmp_path):
    scores = json.loads(run_script("evaluate", "--ckpt", "bag", "filters", "--json", cwd=trained).stdout)
    (first, labels), (second, _) = logits_of(trained, "bag"), logits_of(trained, "filters")
    one, other = (member["weight"] / member["temperature"] for member in scores["members"].values())
    assert sum(member["weight"] for member in scores["members"].values()) == pytest.approx(1)
    z = (one * first + other * second) / (one + other) / scores["temperature"]
    assert scores["accuracy"] == (z.argmax(1) == labels).mean()
    np.testing.assert_allclose(scores["calibrated_loss"], loss_of(z, labels, scores), rtol=1e-4)
    raw = log_softmax((log_softmax(first) + log_softmax(second)) / 2)
    np.testing.assert_allclose(scores["loss"], -raw[np.arange(len(labels)), labels].mean(), rtol=1e-4)
    assert (trained / "runs/bag/test-best+filters-best/report.json").is_file()
    titles = (trained / "data/prepared/test_text.txt").read_text(encoding="utf-8")
    text = run_here("evaluate", "--ckpt", "bag", "filters", "--predict", "-", cwd=trained, stdin=titles).stdout
    names = files.read_lines(trained / "data/prepared/labels.txt")
    assert [line.split("\t")[0] for line in text.splitlines()] == [names[i] for i in z.argmax(1)]


def test_the_prior_of_predictions_can_be_chosen(trained):
    """A run with --balance logit assumes equal frequencies; --prior training adds the log of the training ones. Each is
    calibrated."""
    z, labels = logits_of(trained, "bag")
    for flags, shift in (((), 0), (("--prior", "equal"), 0), (("--prior", "training"), log_prior_of(trained))):
        scores = json.loads(run_here("evaluate", "--ckpt", "bag", *flags, "--json", cwd=trained).stdout)
        assert scores["prior"] == (flags or ("", "equal"))[1]
        assert scores["accuracy"] == ((z + shift).argmax(1) == labels).mean()
        calibrated = loss_of((z + shift) / scores["temperature"], labels, scores)
        np.testing.assert_allclose(scores["calibrated_loss"], calibrated, rtol=1e-4)
        raw = log_softmax(z + shift)
        np.testing.assert_allclose(scores["loss"], -raw[np.arange(len(labels)), labels].mean(), rtol=1e-4)


def test_runs_that_do_not_go_together(trained, tmp_path):
    for again in ("bag/best", "best"):  # `filters` has the best score
        done = run_here("evaluate", "--ckpt", "bag", "filters", again, cwd=trained, check=False)
        assert_one_line_error(done, "twice")
    other = tmp_path / "other"
    shutil.copytree(trained / "runs/bag", other)
    config = files.read_json(other / "config.json")
    labels = files.read_lines(other / "labels.txt")
    files.write_lines(other / "labels.txt", [label.lower() for label in labels])
    sums = config["files"] | {"labels.txt": files.checksum(other / "labels.txt")}
    files.write_json(other / "config.json", files.with_checksum(config | {"files": sums}))
    done = run_here("evaluate", "--ckpt", "bag", other, cwd=trained, check=False)
    assert_one_line_error(done, "other labels")


def test_interval_narrows_with_rows():
    draw = np.random.default_rng(0)
    widths = []
    for rows in (200, 20_000):
        labels = draw.integers(0, 5, rows)
        predictions = np.where(draw.random(rows) < 0.7, labels, (labels + 1) % 5)
        low, high = measures.recall_interval(*measures.hits(labels, predictions))
        assert low < metrics.balanced_accuracy_score(labels, predictions) < high
        widths.append(high - low)
    assert 8 < widths[0] / widths[1] < 12  # 1 / sqrt(rows)


@pytest.mark.parametrize("categories, rows, recall", [
    (120, (5, 300), (0.6, 0.98)), (300, (1, 30), (0.3, 0.95)), (6, (9, 140), (0.75, 0.95)), (3, (5, 20), (0.9, 1))])
def test_the_interval_covers_the_true_value(categories, rows, recall):
    """Of 300 simulated test sets with known recall; 0.95 - 3 standard errors is 0.91. Drawn with the recall measured it
    would be 0.88 for many small categories and 0.74 for three."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(300):
        size, truth = draw.integers(*rows, categories), draw.uniform(*recall, categories)
        labels = np.repeat(np.arange(categories), size)
        predictions = np.where(draw.random(len(labels)) < truth[labels], labels, -1)
        low, high = measures.recall_interval(*measures.hits(labels, predictions), resamples=300)
        covered += low <= truth.mean() <= high
    assert covered / 300 > 0.91


def test_the_interval_of_a_perfect_score_has_a_width():
    labels = np.repeat(np.arange(4), 10)
    low, high = measures.recall_interval(*measures.hits(labels, labels))
    assert 0.85 < low < 0.99 and high == 1
