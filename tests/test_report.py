"""Reports on any labelled file, suspects, promises and calibration, as a user gets them."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, run_script, save, tiny_rows, write_csv
from mlflow import MlflowClient
from test_page import HOSTILE, PROMISES, assert_sound, labelled, made_up

import classify
import evaluate
from titles import calibration, files, measures, report, runs


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_of(folder, *flags):
    return json.loads(run_here("evaluate", *flags, "--json", cwd=folder).stdout)


def report_of(folder, name):
    """The folder of the report on the first file of this name."""
    return folder / f"runs/filters/{name}-best"


def test_a_labelled_file_is_scored_like_the_split_it_equals(trained, tmp_path):
    """The rows of the test split, written as CSV: every score is the same."""
    split = scores_of(trained, "--ckpt", "filters")
    titles = (trained / "data/prepared/test_text.txt").read_text(encoding="utf-8").splitlines()
    given = {row[0]: row for row in tiny_rows()}
    path = write_csv(tmp_path / "last week$.csv", [given[title] for title in titles])
    scores = scores_of(trained, "--ckpt", "filters", "--test", path)
    assert scores.pop("split") == "last_week_.csv" and scores.pop("file") == str(path) and split.pop("split") == "test"
    source, of_split = scores.pop("data"), split.pop("data")
    assert scores == split and scores["trained_rows"] == 0 and of_split["fingerprint"] and not source["fingerprint"]
    assert source["files"] == [{"file": str(path), "rows": scores["rows"], "checksum": files.checksum(path)}]
    folders = trained / "runs/filters/last_week_.csv-best", trained / "runs/filters/test-best"
    of_file, of_test = (read_csv(folder / "predictions.csv") for folder in folders)
    assert not (folders[0] / "unknown.csv").exists()

    # Each row says where it stands in its file: that one, or the source of the split.
    for rows, read in ((of_file, path), (of_test, trained / "tiny.csv"), (read_csv(folders[0] / "suspects.csv"), path),
                       (read_csv(folders[1] / "suspects.csv"), trained / "tiny.csv")):
        lines = read.read_text(encoding="utf-8").splitlines()
        assert rows and all(lines[int(row["line"]) - 1].startswith(f"{row['title']},") for row in rows)
        assert {Path(row["file"]).name for row in rows} == {read.name} and "id" not in rows[0]


def test_a_file_named_like_a_split_replaces_no_report(trained, tmp_path):
    run_here("evaluate", "--ckpt", "filters", cwd=trained)
    before = (trained / "runs/filters/test-best/report.json").read_bytes()
    save(tmp_path / "test", "title,category\nmesa,MESAS\n")
    run_here("evaluate", "--ckpt", "filters", "--test", tmp_path / "test", cwd=trained)
    assert (trained / "runs/filters/test-best/report.json").read_bytes() == before
    assert files.read_json(report_of(trained, "file-test") / "report.json")["rows"] == 1


def test_files_of_one_name_have_reports_of_their_own(trained, tmp_path):
    """The same file has the same one again; in MLflow, too, each is a group of its own."""
    run_id = (trained / "runs/filters/mlflow.txt").read_text().strip()

    def reports():
        metrics = MlflowClient(f"sqlite:///{trained}/mlflow.db").get_run(run_id).data.metrics
        return ({path.name for path in (trained / "runs/filters").glob("twin.csv-*")},
                {name.replace("_balanced_accuracy", "-best") for name in metrics
                 if name.startswith("twin.csv") and "balanced" in name})

    for place, others in (("a", 0), ("b", 1)):
        path = save(tmp_path / place / "twin.csv", "title,category\nmesa,MESAS\n")
        for _ in range(2):
            assert scores_of(trained, "--ckpt", "filters", "--test", path)["split"] == "twin.csv"
            assert len(reports()[0]) == 1 + others and reports()[0] == reports()[1]


def test_categories_that_the_run_does_not_know_are_wrong_and_listed(trained, tmp_path):
    rows = [{"text": "funda negro", "label": "FUNDAS"}, {"text": "mesa azul", "label": "PUERTAS"},
            {"text": "mesa azul", "label": "MESAS"}, {"text": "silla", "label": "VENTANAS"}]
    save(tmp_path / "new.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = run_here("evaluate", "--ckpt", "filters", "--test", tmp_path / "new.jsonl", cwd=trained)
    assert "2 of 4 rows have a category that the run does not know" in done.stdout
    scores = files.read_json(report_of(trained, "new.jsonl") / "report.json")
    assert scores["rows"] == 4 and scores["accuracy"] == 0.5 and scores["unknown_category_rows"] == 2
    assert scores["balanced_accuracy"] == 0.5  # of four categories two are known and right
    assert 0 < scores["calibrated_loss"] < 1 and scores["top5_accuracy"] == 0.5
    unknown = read_csv(report_of(trained, "new.jsonl") / "unknown.csv")
    assert [(row["line"], row["category"], row["predicted"]) for row in unknown] == [
        ("2", "PUERTAS", "MESAS"), ("4", "VENTANAS", "SILLAS")]
    table = {row["category"]: row for row in read_csv(report_of(trained, "new.jsonl") / "categories.csv")}
    assert table["PUERTAS"]["support"] == "1" and table["PUERTAS"]["training_rows"] == "0"


@pytest.mark.slow
def test_files_of_which_little_is_left(trained, tmp_path):
    """No row is right, none is of a known category, there is one row, nothing of a title is known, all is right."""
    for rows, accuracy, unknown in (
            ("mesa,PUERTAS\nsilla,VENTANAS\n", 0, 2), ("mesa,FUNDAS\n", 0, 0), ("mesa,MESAS\n", 1, 0),
            ("mesa,X\n", 0, 1), ("qqq,FUNDAS\nqqq,MESAS\nqqq,SILLAS\nqqq,CELULARES\n", 0.25, 0)):
        path = save(tmp_path / "few.csv", f"title,category\n{rows}")
        done = run_here("evaluate", "--ckpt", "filters", "--test", path, cwd=trained)
        folder, confused = trained / "runs/filters/few.csv-best", "most frequent confusions" in done.stdout
        scores = files.read_json(folder / "report.json")
        assert scores["accuracy"] == accuracy and scores["unknown_category_rows"] == unknown
        assert (folder / "unknown.csv").exists() == (unknown > 0)
        assert_sound((folder / "report.html").read_text(encoding="utf-8"))
        assert confused == (accuracy != 1) and done.stderr == ""


def test_labelled_files_that_do_not_serve(trained, tmp_path):
    def fails(content, *words, flags=()):
        path = save(tmp_path / "bad.csv", content)
        done = run_here("evaluate", "--ckpt", "bag", "--test", path, *flags, cwd=trained, check=False)
        assert_one_line_error(done, *words)

    fails("", "bad.csv: empty")
    fails("title,price\nmesa,2\n", "bad.csv:1", "category")
    fails("title,category\n", "no rows")
    fails("title,category\nmesa\nsilla\n", "bad.csv:2", "2 bad rows of 2")
    fails("title,label_quality,category\nmesa,relable,MESAS\n", "bad.csv: label_quality says 'relable'")
    fails("title,category\nmesa,MESAS\n", "--test and --split", flags=("--split", "valid"))
    fails("title,category\nmesa,MESAS\n", "--top", flags=("--top", 2))
    done = run_script("evaluate", "--ckpt", "bag", "--test", tmp_path / "none.csv", cwd=trained, check=False)
    assert_one_line_error(done, "none.csv: no such file")


def test_columns_and_encoding_of_a_labelled_file(trained, tmp_path):
    save(tmp_path / "export.csv", "Nombre;Familia;ID\nteléfono negro;CELULARES;a-1\nmesa;MESAS;\n".encode("cp1252"))
    scores = scores_of(trained, "--ckpt", "bag", "--test", tmp_path / "export.csv", "--title-column", "Nombre",
                       "--category-column", 2, "--encoding", "cp1252")
    assert scores["accuracy"] == 1.0 and scores["rows"] == 2
    rows = read_csv(trained / "runs/bag/export.csv-best/predictions.csv")
    assert [(row["line"], row["id"]) for row in rows] == [("2", "a-1"), ("3", "")]


def test_suspects_begin_with_the_labels_that_are_least_likely(trained, tmp_path):
    """Two labels are exchanged for wrong ones: the report finds them."""
    right = [("funda estuche negro", "FUNDAS"), ("mesa escritorio", "MESAS"), ("celular teléfono", "CELULARES")] * 5
    rows = [(title, "reliable", "spanish", category) for title, category in right]
    rows[3] = (*rows[3][:3], "SILLAS")
    rows[7] = (*rows[7][:3], "CELULARES")
    path = write_csv(tmp_path / "wrong.csv", rows)
    scores = scores_of(trained, "--ckpt", "filters", "--test", path)
    suspects = read_csv(report_of(trained, "wrong.csv") / "suspects.csv")
    assert {int(row["line"]) for row in suspects} == {3 + 2, 7 + 2} and scores["accuracy"] == 13 / 15
    likely = [float(row["category_probability"]) for row in suspects]
    assert likely == sorted(likely) and likely[1] < 0.3
    classifier = evaluate.load("filters", folder=trained / "runs")
    for row, chance in zip(suspects, likely, strict=True):
        given = classifier.predict_proba([row["title"]])[0, classifier.labels.index(row["category"])]
        assert chance == pytest.approx(given, abs=2e-6)


def test_scores_suspects_and_confusions_by_hand():
    """The least likely labels first, wherever the model is of another opinion on a category that it knows; a confusion
    is a share of its true category."""
    rows = labelled(["A", "B", "C", "NEW"], [0, 0, 0, 1, 1, 2, 3], "abcdefg", classify.Tree([*"ABC"], False))
    result = {"prediction": np.array([0, 1, 1, 1, 0, 0, 2]),
              "given_probability": np.array([0.9, 0.3, 0.1, 0.8, 0.2, 0.05, 0.01]),
              "probability": np.array([0.9, 0.6, 0.7, 0.8, 0.75, 0.9, 0.5])}
    tables = report.make_tables(rows, np.array([30, 20, 10]), result)
    suspects = tables["suspects.csv"]
    assert [*suspects["title"]] == [*"fceb"] and suspects["line"].tolist() == [7, 4, 6, 3]
    assert suspects["category_probability"].tolist() == [0.05, 0.1, 0.2, 0.3]
    assert suspects["probability"].tolist() == [0.9, 0.7, 0.75, 0.6] and [*tables["unknown.csv"]["title"]] == ["g"]
    confused = [*zip(*tables["confusions.csv"].values(), strict=True)]
    assert confused == [("A", "B", 2, 2 / 3, "b | c"), ("B", "A", 1, 1 / 2, "e"), ("C", "A", 1, 1, "f"),
                        ("NEW", "C", 1, 1, "g")]
    result |= {"rank": np.array([0, 4, 5, 0, 1, 9, 7]), "loss": np.array([1, 2, 3, 4, 5, 6, np.nan]),
               "calibrated_loss": np.full(7, np.nan), "brier": np.array([0, 0, 0, 0, 0, 0, np.nan])}
    scores = report.summarize(rows.labels, result)
    assert (scores["accuracy"], scores["top5_accuracy"], scores["loss"]) == (2 / 7, 4 / 7, 3.5)
    axes = report.confusion_figure(rows.labels, result["prediction"], rows.names, "").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B", "C", "NEW"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0, 2 / 3, 0, 0], [1 / 2, 0, 0, 0], [1, 0, 0, 0],
                                                            [0, 0, 1, 0]])


def test_calibration_and_promises_in_the_report(trained):
    scores = scores_of(trained, "--ckpt", "filters")
    rows = read_csv(trained / "runs/filters/test-best/predictions.csv")
    confidence = np.array([float(row["probability"]) for row in rows])
    right = np.array([row["category"] == row["predicted"] for row in rows])
    error = calibration.expected_error(confidence, right)
    assert scores["expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    kept = runs.restore(trained / "runs/filters", "best")[3]["validation"]
    assert [scores[name] for name in ("temperature", "smoothing")] == pytest.approx(
        [float(kept[name]) for name in ("temperature", "smoothing")])
    assert list(scores["thresholds"]) == ["0.90", "0.95", "0.99"]

    # What --precision gives, which assumes the training prior where --prior says nothing.
    classifier = evaluate.load("filters", folder=trained / "runs", prior="training")
    assert (scores["prior"], scores["promising_prior"]) == ("equal", "training")
    found, chances = classifier.likeliest([row["title"] for row in rows], 1)
    confidence, right = chances[:, 0], np.array([classifier.labels[i] for i in found[:, 0]]) == [
        row["category"] for row in rows]
    for precision, row in scores["thresholds"].items():
        assert (row["threshold"] or np.inf) == classifier.threshold(float(precision))
        passed = confidence >= (row["threshold"] or np.inf) - 1e-6
        assert row["coverage"] == pytest.approx(passed.mean(), abs=1e-9)
        assert row["precision"] == (pytest.approx(right[passed].mean()) if passed.any() else None)
    assert (trained / "runs/filters/test-best/reliability.png").stat().st_size > 5000


def test_what_a_checkpoint_keeps_to_calibrate_with_are_its_validation_rows(trained, tmp_path):
    """The thresholds of the report come from the very rows that evaluating the validation split shows."""
    shutil.copytree(trained, tmp_path / "copy")
    scores_of(tmp_path / "copy", "--ckpt", "filters", "--split", "valid")
    rows = read_csv(tmp_path / "copy/runs/filters/valid-best/predictions.csv")
    chances, right, *_ = evaluate.load("filters", folder=trained / "runs").validated
    np.testing.assert_allclose(np.sort(chances[:, 0]), np.sort([float(row["probability"]) for row in rows]), atol=2e-3)
    assert right.sum() == sum(row["category"] == row["predicted"] for row in rows)


def test_what_was_promised_is_printed_beside_what_was_kept(capsys):
    rows, result, tables = made_up([*"ABCD"], ["uno", "dos"])
    scores = report.summarize(rows.labels, result) | {
        "slices": {}, "prior": "equal", "promising_prior": "equal", "thresholds": PROMISES,
        "unknown_category_rows": 7, "unknown_title_rows": 0, "trained_rows": 0, "parent_rows": 0, "calibration_rows": 9,
        "expected_accuracy": 0.81, "expected_accuracy_interval": [0.79, 0.83], "changed": ["mix"]}
    report.show(scores, tables["confusions.csv"])
    lines = capsys.readouterr().out.splitlines()
    assert ("accuracy that the probabilities promised: 0.8100 (0.7900 to 0.8300); not like the validation rows: "
            "the mix of categories (see --compare)") in lines
    assert [line for line in lines if line.startswith("promised ")] == [
        "promised 90% right: from probability 0.5000 on; here 80.0% of the titles, 91.0% of them right",
        "promised 95% right: from probability 0.7000 on; here 50.0% of the titles, 94.0% of them right",
        "promised 97% right: from probability 0.9900 on; here 0.0% of the titles, - of them right",
        "promised 99% right: by no probability, on these validation rows"]
    [note] = [line for line in lines if f" of {scores['rows']} rows " in line]
    assert note.startswith("7 of ") and note.endswith("have a category that the run does not know, and count as wrong")


# --- figures ----------------------------------------------------------------------------------------------------------

def test_the_figure_of_confusions_counts_errors_alone():
    names = [f"category {i} " + "x" * 100 for i in range(6)]
    rows, result, _ = made_up(names, ["title"])
    wrong = rows.labels != result["prediction"]
    pairs = [*zip(*report.confusions(rows.labels, result["prediction"]), strict=True)]
    axes = report.confusion_figure(rows.labels, result["prediction"], names, "of a run").axes[0]
    shown = [int(label.get_text().split()[1]) for label in axes.get_yticklabels()]
    counts = {(shown[round(cell.get_position()[1])], shown[round(cell.get_position()[0])]): int(cell.get_text())
              for cell in axes.texts}
    assert sum(counts.values()) == wrong.sum() and all(counts[true, taken] == rows for true, taken, rows in pairs)
    assert all(true != taken for true, taken in counts) and axes.get_title() == "errors (rows): of a run"
    assert shown == [*dict.fromkeys(category for true, taken, _ in pairs for category in (true, taken))]
    assert {len(label.get_text()) for label in axes.get_yticklabels()} == {report.NAME}
    image = axes.images[0]
    assert np.all(np.diag(image.get_array()) == 0) and image.norm(0.02) > 0.2


def test_the_figure_of_the_recall_names_the_surely_worst():
    """Two rows that are wrong say less than fifty of which a tenth is right."""
    categories = {"category": np.array([*"abcdefg"], object), "recall": np.array([0, 0.1, 0.2, 0.5, 0.8, 1, 0]),
                  "support": np.array([2, 50, 50, 50, 50, 50, 0]), "training_rows": np.array([0, 1, 2, 3, 400, 5, 6])}
    order = measures.worst_first(categories)
    assert [*categories["category"][order]] == ["b", "c", "d", "a", "e", "f"]
    figure = report.recall_figure(categories, "of a run")
    figure.canvas.draw()
    said = [entry.get_text() for legend in figure.legends for entry in legend.get_texts()]
    assert "1 b: 0.10 of 50" in said and "4 a: 0.00 of 2" in said and not [entry for entry in said if " f: " in entry]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels() if "$" in tick.get_text()] == []
    areas = figure.axes[0].collections[0].get_sizes()
    assert areas[0] == max(areas) > 4 * areas[3]
    low, high = measures.wilson_interval(np.array([0, 1, 1]), np.array([5, 5, 50]))
    np.testing.assert_allclose([low, high], [[0, 0.5655, 0.9287], [0.4345, 1, 1]], atol=1e-4)


def test_the_axis_of_training_rows_has_room_for_any_sizes():
    """Powers of ten that are all the same, and none at all; a category without training rows stands at a half."""
    for sizes, ends in (([100, 100], (100, 1000)), ([0, 1], (0.1, 1)), ([0, 10], (0.1, 10)), ([1, 1000], (1, 1000))):
        table = {"category": np.array(["a", "b"]), "recall": np.ones(2), "support": np.full(2, 5),
                 "training_rows": np.array(sizes)}
        axes = report.recall_figure(table, "of a run").axes[0]
        assert axes.get_xlim() == pytest.approx((0.8 * ends[0], 1.25 * ends[1]))
        low, high = axes.get_xlim()
        assert all(low < x < high for x in axes.collections[0].get_offsets()[:, 0])


def test_figures_of_hostile_names(tmp_path, capsys):
    rows, result, tables = made_up(HOSTILE, HOSTILE)
    figures = report.make_figures(rows, tables["categories.csv"], result, HOSTILE[0])
    report.write(tmp_path, report.Report(HOSTILE[0], {}, {}, figures))
    assert {path.name for path in tmp_path.glob("*.png")} == {"recall.png", "confusions.png", "reliability.png"}
    assert capsys.readouterr().err == ""
