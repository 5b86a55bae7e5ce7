"""What people look at while they try things: MLflow's metrics, a line an epoch, the list of runs, early stopping."""
import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, add_database, assert_one_line_error, assert_same_run, copy_scripts, environment, run_here
from mlflow import MlflowClient

from titles import files, runs, tracking


def rows_of(folder, name):
    with open(folder / f"runs/{name}/metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def watched(tiny, tmp_path_factory):
    """A folder with data, and a run that was stopped early; and what train.py printed."""
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(tiny / "data", folder / "data")
    flags = ("--name", "early", "--epochs", 40, "--patience", 3, "--dim", 16, "--batch-size", 16)
    return folder, run_here("train", *flags, cwd=folder).stdout


def logged(folder, name):
    run_id = (folder / f"runs/{name}/mlflow.txt").read_text().strip()
    return MlflowClient(f"sqlite:///{folder}/mlflow.db"), run_id


def sets_of(run):
    """{(name, context)} of the data sets of an MLflow run."""
    return {(used.dataset.name, used.tags[0].value) for used in run.inputs.dataset_inputs}


# --- a training -------------------------------------------------------------------------------------------------------

def test_training_stops_when_no_epoch_gets_better(watched):
    folder, printed = watched
    scores = [float(row["valid_balanced_accuracy"]) for row in rows_of(folder, "early")]
    best = max(i for i, score in enumerate(scores) if score == max(scores))
    assert len(scores) == best + 1 + 3 < 40 and f"best epoch {best + 1}:" in printed
    before = (folder / "runs/early/metrics.csv").read_bytes()
    run_here("train", "--resume", "early", cwd=folder)  # it is over
    assert (folder / "runs/early/metrics.csv").read_bytes() == before
    run_here("train", "--refit", "early", cwd=folder)
    config = files.read_json(folder / "runs/early-refit/config.json")
    assert config["epochs"] == best + 1 and "patience" not in config


def test_a_run_with_patience_is_resumed_to_the_same_bits(watched, tmp_path):
    folder, _ = watched
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "runs/early", tmp_path / "runs/early")
    last = max(int(path.name) for path in (tmp_path / "runs/early/checkpoints").iterdir())
    shutil.rmtree(tmp_path / f"runs/early/checkpoints/{last}")  # as if it had been killed before
    run_here("train", "--resume", "early", cwd=tmp_path)
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path, "early")]
    assert seconds == sorted(seconds)  # of all trainings that a run took
    assert_same_run(tmp_path / "runs/early", folder / "runs/early")


def test_an_epoch_is_a_short_line_and_the_best_are_marked(watched):
    folder, printed = watched
    lines = [line for line in printed.splitlines() if line.startswith("epoch ") and "train" in line]
    best = 0.0
    for line, row in zip(lines, rows_of(folder, "early"), strict=True):
        score, best = float(row["valid_balanced_accuracy"]), max(best, float(row["valid_balanced_accuracy"]))
        assert line == (f"epoch {row['epoch']:>3}  loss {float(row['train_loss']):.4f} train, "
                        f"{float(row['valid_loss']):.4f} valid  balanced accuracy "
                        f"{float(row['train_balanced_accuracy']):.4f} train, {score:.4f} valid"
                        + ("  best" if score == best else ""))
        assert len(line) <= 100
    assert runs.epochs_since_best([]) == 0


# --- MLflow -----------------------------------------------------------------------------------------------------------

def test_mlflow_has_the_best_values_beside_the_last_ones(watched):
    folder, _ = watched
    client, run_id = logged(folder, "early")
    metrics, rows = client.get_run(run_id).data.metrics, rows_of(folder, "early")
    best = max(reversed(rows), key=lambda row: float(row["valid_balanced_accuracy"]))
    assert metrics["valid/loss"] == float(rows[-1]["valid_loss"])
    assert metrics["valid_balanced_accuracy"] == float(best["valid_balanced_accuracy"])
    assert metrics["valid_loss"] == float(best["valid_loss"])
    history = client.get_metric_history(run_id, "train/step_loss")
    assert len({metric.timestamp for metric in history}) > len(rows)  # as they were, not as they were logged

    # Groups come first on the page, by name: so all curves of scores are in one, and no single value.
    assert {name.partition("/")[0] for name in metrics if "/" in name} == {"train", "valid"}
    curves = [name for name in metrics if len(client.get_metric_history(run_id, name)) > 1]
    assert {name for name in metrics if "/" in name} == {name for name in curves if name.startswith(("tr", "valid/"))}


def test_times_begin_with_the_command(watched):
    folder, _ = watched
    client, run_id = logged(folder, "early")
    begun, rows = client.get_run(run_id).info.start_time, rows_of(folder, "early")
    for metric, row in zip(client.get_metric_history(run_id, "valid/loss"), rows, strict=True):
        assert abs(metric.timestamp - begun - 1000 * float(row["seconds"])) < 2 and metric.step == int(row["step"])
    losses = client.get_metric_history(run_id, "train/step_loss")
    assert begun < min(metric.timestamp for metric in losses)
    assert {int(row["step"]) for row in rows} <= {metric.step for metric in losses}  # an epoch ends with a chunk


def test_the_table_of_runs_has_a_view_with_scores(watched):
    folder, printed = watched
    client, _ = logged(folder, "early")
    view = json.loads(client.get_experiment("1").tags["mlflow.sharedViewState.scores"])
    assert {"metrics.`valid_balanced_accuracy`", "metrics.`test_balanced_accuracy`"} <= {*view["selectedColumns"]}
    assert printed.splitlines()[-1].endswith("&viewStateShareKey=scores")


@pytest.mark.slow
def test_evaluating_latest_changes_no_number_of_best(watched):
    folder, _ = watched
    scores = json.loads(run_here("evaluate", "--ckpt", "early", "--json", cwd=folder).stdout)
    client, run_id = logged(folder, "early")
    before = client.get_run(run_id).data.metrics
    assert before["test_balanced_accuracy"] == scores["balanced_accuracy"]
    for flags in (("--ckpt", "early/latest"), ("--ckpt", "early", "--split", "valid"),
                  ("--ckpt", "early", "--prior", "training"), ("--ckpt", "early", "early/latest")):
        run_here("evaluate", *flags, cwd=folder)
    after = client.get_run(run_id).data.metrics
    assert {name: after[name] for name in before} == pytest.approx(before, rel=1e-6)  # valid was judged twice
    new = after.keys() - before.keys()
    assert {"test-latest_balanced_accuracy", "valid_brier", "test-best-training_loss",
            "test-best_early-latest_accuracy"} <= new


def test_mlflow_has_the_settings_data_and_files_of_a_run(watched):
    folder, _ = watched
    run_here("evaluate", "--ckpt", "early", cwd=folder)
    client, run_id = logged(folder, "early")
    run, config = client.get_run(run_id), files.read_json(folder / "runs/early/config.json")
    assert run.data.params.items() >= {"model": "mlp", "epochs": "40", "rows": str(config["rows"])}.items()
    assert run.data.tags["mlflow.source.name"] == str(ROOT / "train.py") and run.data.tags["mlflow.user"]
    meta = files.read_json(folder / "data/prepared/meta.json")
    assert sets_of(run) == {(f"tiny.csv, {split} split", context) for split, context in (
        ("train", "training"), ("valid", "validation"), ("test", "testing"))}
    for used in run.inputs.dataset_inputs:
        profile, split = json.loads(used.dataset.profile), used.dataset.name.split()[1]
        assert used.dataset.digest == config["fingerprint"] and "tiny.csv" in used.dataset.source
        assert profile["num_rows"] == meta["rows"][split] and profile["categories"] == 4
        assert profile["files"] == [{"file": "tiny.csv", "rows": meta["rows"][split],
                                     "checksum": meta["source"][0]["checksum"]}]
    sizes = {name: int(run.data.params[name]) for name in ("parameters", "table_rows", "table_columns")}
    assert sizes == {"parameters": 16 * 4 + 4, "table_rows": config["vocabulary"] + config["buckets"],
                     "table_columns": 16} and "checksum" not in run.data.params  # a linear classifier of 4 categories
    assert {item.path for item in client.list_artifacts(run_id)} >= {"config.json", "loss.png", "source", "test-best"}


def test_any_number_of_metrics_is_logged():
    """MLflow takes 1,000 at a time."""
    class Client:
        batches = []

        def log_batch(self, run_id, metrics):
            self.batches.append(metrics)

    tracking.log_metrics(Client(), "run", [*range(2500)])
    assert [*map(len, Client.batches)] == [1000, 1000, 500] and sum(Client.batches, []) == [*range(2500)]


def test_the_page_of_an_experiment_has_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/path/")
    assert tracking.experiment_page(7) == (
        "https://host/path/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=scores")
    error = tracking.mlflow_error(ValueError("no answer from postgresql://me:secret@host:1/x"))
    assert "secret" not in str(error) and "host:1/x" in str(error)


@pytest.mark.slow
def test_a_report_of_several_runs_goes_to_the_first(watched):
    folder, _ = watched
    run_here("train", "--name", "other", "--epochs", 2, "--dim", 4, cwd=folder)
    client, second = logged(folder, "other")
    before = client.get_run(second).data.metrics
    scores = json.loads(run_here("evaluate", "--ckpt", "early", "other", "--json", cwd=folder).stdout)
    _, first = logged(folder, "early")
    assert client.get_run(second).data.metrics == before
    assert client.get_run(first).data.metrics["test-best_other_accuracy"] == scores["accuracy"]
    assert "test-best+other-best" in [item.path for item in client.list_artifacts(first)]


@pytest.mark.slow
def test_a_report_of_a_file_logs_the_file(watched):
    """Of a name that MLflow would not take, twice, and of no category that the run knows; and a report of a split that
    the training has logged."""
    folder, _ = watched
    name = f"última-{'x' * 200}$.csv"
    (folder / name).write_text("title,category\nmesa,NADA\n", encoding="utf-8")
    run_here("train", "--name", "filed", "--epochs", 1, "--dim", 4, cwd=folder)
    for flags in (("--test", name), ("--test", name), ("--split", "train")):
        assert run_here("evaluate", "--ckpt", "filed", *flags, cwd=folder).stderr == ""
    client, run_id = logged(folder, "filed")
    run = client.get_run(run_id)
    assert sets_of(run) == {(name, "evaluation"), ("tiny.csv, train split", "training"),
                            ("tiny.csv, valid split", "validation")}
    [value] = [value for key, value in run.data.metrics.items() if key.endswith("x_accuracy")]
    assert value == 0 and run.data.metrics["train_accuracy"] > 0.2


@pytest.mark.slow
def test_the_sweep_that_is_documented(tiny, tmp_path):
    """Two trials of a small model, in a copy of the scripts."""
    text = (ROOT / "docs/sweep.md").read_text(encoding="utf-8")
    [code] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import optuna" in code]
    for old, new in (("n_trials=20", "n_trials=2"), ('"mlp", ', '"mlp", "--epochs", 2, "--dim", 4, ')):
        assert code.count(old) == 1
        code = code.replace(old, new)
    copy_scripts(tmp_path)
    shutil.copytree(tiny / "data", tmp_path / "data")
    add_database("train", tmp_path, {})
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [left] = (tmp_path / "runs").iterdir()
    scores = [float(row["valid_balanced_accuracy"]) for row in rows_of(tmp_path, left.name)]
    assert done.stdout.splitlines()[-1].startswith(f"{max(scores)} {{'table_lr': ")
    client, run_id = logged(tmp_path, left.name)
    [sweep] = [run.info.run_id for run in client.search_runs(["1"]) if run.info.run_name == "sweep"]
    below = client.search_runs(["1"], f"tags.mlflow.parentRunId = '{sweep}'")
    assert len(below) == 2 and run_id in [run.info.run_id for run in below]
    assert client.get_run(sweep).data.metrics["valid_balanced_accuracy"] == max(scores)


# --- the list of runs -------------------------------------------------------------------------------------------------

def test_runs_are_listed_the_best_first(watched):
    folder, _ = watched
    run_here("train", "--name", "worse", "--epochs", 1, "--dim", 2, "--lr", "1e-5", cwd=folder)
    run_here("evaluate", "--ckpt", "early", cwd=folder)
    (folder / "runs/strange").mkdir()
    header, *lines = run_here("evaluate", "--list", cwd=folder).stdout.splitlines()
    found = [dict(zip(header.split(), line.split(), strict=False)) for line in lines]
    names = [row["run"] for row in found]
    assert names.index("early") < names.index("worse") and "strange" not in names
    early = found[names.index("early")]
    best = max(float(row["valid_balanced_accuracy"]) for row in rows_of(folder, "early"))
    report = files.read_json(folder / "runs/early/test-best/report.json")
    assert early["validation"] == f"{best:.4f}" and early["test"] == f"{report['balanced_accuracy']:.4f}"
    assert found[names.index("worse")]["test"] == "-"
    if "early-refit" in names:
        assert names.index("early-refit") == names.index("early") + 1
        assert found[names.index("early-refit")]["validation"] == "-"
    (folder / "runs/worse/metrics.csv").write_text("damaged")
    lines = run_here("evaluate", "--list", cwd=folder).stdout.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("worse ")] == ["-"] and len(lines) == len(names) + 1
    assert_one_line_error(run_here("evaluate", "--list", "--data", "nowhere", cwd=folder, check=False), "nowhere")
    assert_one_line_error(run_here("evaluate", "--list", "--json", cwd=folder, check=False), "--json")
    assert_one_line_error(run_here("evaluate", "--list", "--predict", "-", cwd=folder, check=False), "give one")
