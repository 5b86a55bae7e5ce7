"""Runs: as a user starts, stops and resumes them; which run is meant; what it keeps; MLflow."""
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_one_line_error,
    assert_same_run,
    checkpoint,
    environment,
    leaves_equal,
    run_here,
    run_script,
)
from mlflow import MlflowClient

import model
from titles import calibration, cli, files, runs
from titles.cli import UserError


def test_a_name_taken_meanwhile(tmp_path):
    meta, config = {"vocab": ["a"], "labels": ["A", "B"]}, {"model": "mlp"}
    (tmp_path / "mlp-1/source").mkdir(parents=True)
    assert runs.create(tmp_path / "mlp-1", config, meta, np.zeros(0, np.uint64), named=False) == tmp_path / "mlp-2"
    with pytest.raises(UserError, match="a run of this name is there"):
        runs.create(tmp_path / "mlp-2", config, meta, np.zeros(0, np.uint64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp-1", "mlp-2"]
    assert files.read_lines(tmp_path / "mlp-2/labels.txt") == ["A", "B"]


@pytest.mark.parametrize("name", ["best", "latest", "", ".", "-x", "a/b", "../a", "a:b", "a b", "a.", "--"])
def test_names_that_no_folder_should_have(tmp_path, name):
    with pytest.raises(UserError, match="--name"):
        runs.new_folder(tmp_path, name, "mlp")


def test_a_run_may_have_most_names(tmp_path):
    for name in ("ñandú-1", "a.b", "7"):
        assert runs.new_folder(tmp_path, name, "mlp") == tmp_path / name


def test_a_run_keeps_the_scripts(trained):
    source = trained / "runs/bag/source"
    config = files.read_json(trained / "runs/bag/config.json")
    assert set(config["source"]) == {
        "train.py", "model.py", "data.py", "classify.py", *(f"titles/{name}.py" for name in (
            "__init__", "calibration", "cli", "configuration", "costs", "devices", "encoder", "files", "measures",
            "predict", "progress", "runs", "series", "settings", "start", "tracking", "tree"))}
    for name, digest in config["source"].items():
        assert files.checksum(source / name) == digest and (source / name).read_text() == (ROOT / name).read_text()
    kept = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert kept == {path.relative_to(ROOT) for path in [
        *ROOT.glob("*.py"), *ROOT.glob("titles/*.py"), ROOT / "titles/labelling.html"]}


def test_which_run(trained, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(trained / "runs/bag", folder / "one")
    shutil.copytree(trained / "runs/bag", folder / "two")
    for name, best, created in (("one", 2.0, 1), ("two", 1.0, 2)):
        config = files.read_json(folder / name / "config.json")
        files.write_json(folder / name / "config.json", files.with_checksum(config | {"created": created}))
        (folder / name / "metrics.csv").write_text(f"epoch,valid_balanced_accuracy\n1,0.5\n2,{best}\n3,0\n")
    mark = config["fingerprint"]
    assert runs.find("best", folder, mark) == (folder / "one", "best")
    assert runs.find("latest", folder, mark) == (folder / "two", "latest")
    for ckpt, expected in {"two": "best", "two/best": "best", "two/latest": "latest", folder / "two": "best",
                           f"{folder}/two/latest": "latest"}.items():
        assert runs.find(str(ckpt), folder, mark) == (folder / "two", expected)
    for ckpt, fingerprint in (("best", "other data"), ("three", mark), ("../one", mark)):
        with pytest.raises(cli.UserError):
            runs.find(ckpt, folder, fingerprint)
    for name, text in (("odd", "{}"), ("odder", '{"format": 1, "fingerprint": "' + mark + '"}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
        (folder / name / "metrics.csv").write_text("epoch,valid_balanced_accuracy\n")
    shutil.copytree(folder / "one", folder / "begun")  # stopped in its first epoch, so without a row
    (folder / "begun/metrics.csv").unlink()
    files.write_json(folder / "begun/config.json", files.with_checksum(config | {"created": 3}))
    assert runs.find("best", folder, mark) == (folder / "one", "best")
    assert runs.find("latest", folder, mark) == (folder / "begun", "latest")
    files.write_json(folder / "one/config.json", files.with_checksum(config | {"fingerprint": "other data"}))
    assert runs.find("best", folder, mark) == (folder / "two", "best")


def interrupted(folder, name, number, epochs):
    """Start a training, send it a signal after its second epoch, and return (exit status, output)."""
    command = [sys.executable, "-u", str(ROOT / "train.py"), "--name", name, "--epochs", str(epochs), "--dim", "16",
               "--save-seconds", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=environment())
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("epoch   2  "):
            process.send_signal(number)
            break
    output += process.stdout.read()
    return process.wait(), output


@pytest.fixture(scope="session")
def long_run(tiny):
    run_script("train", "--name", "long", "--epochs", 20, "--dim", 16, cwd=tiny)
    return tiny / "runs/long"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny, long_run, number):
    name = f"stopped-{number}"
    status, output = interrupted(tiny, name, number, 20)
    assert status == (-9 if number == signal.SIGKILL else 128 + number), output
    if number != signal.SIGKILL:
        assert f"train.py --resume {name}" in output
    assert not (tiny / f"runs/{name}/checkpoints/{checkpoint(long_run)[1][-1]['step']}").exists()
    run_script("train", "--resume", name, cwd=tiny)
    assert_same_run(long_run, tiny / "runs" / name)
    assert len(list((tiny / f"runs/{name}/checkpoints").iterdir())) <= 2  # best and latest, no leftovers
    runs = [run for run in MlflowClient(f"sqlite:///{tiny}/mlflow.db").search_runs(["1"]) if run.info.run_name == name]
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"


@pytest.mark.slow
def test_quick_epochs_are_saved_together(tiny, long_run, tmp_path):
    """Two saves at most instead of twenty; the best and the latest epoch are the same, and what is told of all."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    save = runs.save_checkpoint
    saved = {}
    for name, flags in {"eager": ("--save-seconds", 0), "patient": ()}.items():
        steps = saved[name] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "save_checkpoint", lambda manager, step, *rest, **named: (
                steps.append(step), save(manager, step, *rest, **named)))
            run_here("train", "--name", name, "--epochs", 20, "--dim", 16, *flags, cwd=tmp_path)
        assert_same_run(long_run, tmp_path / "runs" / name)
    kept = [sorted(path.name for path in (tmp_path / f"runs/{name}/checkpoints").iterdir()) for name in saved]
    assert len(saved["eager"]) == 20 and len(saved["patient"]) == len(kept[1]) <= 2 and kept[0] == kept[1]
    one, two = (runs.restore(tmp_path / "runs" / name, "best") for name in saved)
    assert one[4] == two[4] and leaves_equal(one[3], two[3])
    one, two = (runs.read_metrics(tmp_path / "runs" / name) for name in saved)
    clocks = {"seconds", "titles_per_second"}
    assert [{k: v for k, v in row.items() if k not in clocks} for row in one] == [
        {k: v for k, v in row.items() if k not in clocks} for row in two]


@pytest.mark.slow
def test_an_error_does_not_lose_the_best_epoch(tiny, long_run, tmp_path):
    shutil.copytree(tiny / "data", tmp_path / "data")
    fit, calls = calibration.fit, []

    def fail(*args):
        calls.append(1)
        if len(calls) == 15:
            raise RuntimeError("in the fifteenth epoch")
        return fit(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "fit", fail)
        with pytest.raises(RuntimeError):
            run_here("train", "--name", "failed", "--epochs", 20, "--dim", 16, cwd=tmp_path)
    rows = runs.read_metrics(tmp_path / "runs/failed")
    assert rows[-1] == runs.best_epoch(rows)
    assert runs.restore(tmp_path / "runs/failed", "best")[4] == rows[-1]["step"]

    # What was lost is trained again, and logged once.
    run_here("train", "--resume", "failed", cwd=tmp_path)
    assert_same_run(long_run, tmp_path / "runs/failed")
    run_id = (tmp_path / "runs/failed/mlflow.txt").read_text().strip()
    steps = [m.step for m in MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        run_id, "train/step_loss")]
    assert len(steps) == len(set(steps)) > 0


@pytest.mark.slow
def test_a_signal_while_an_epoch_waits_to_be_saved(tiny, long_run, tmp_path):
    """It ends the next epoch, after a save."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    best_epoch, calls = runs.best_epoch, []

    def interrupt(history):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return best_epoch(history)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "best_epoch", interrupt)
        done = run_here("train", "--name", "late", "--epochs", 20, "--dim", 16, cwd=tmp_path, check=False)
    assert done.returncode == 128 + signal.SIGTERM and "--resume late" in done.stdout
    assert os.listdir(tmp_path / "runs/late/checkpoints")
    run_id = (tmp_path / "runs/late/mlflow.txt").read_text().strip()
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).info.status == "KILLED"
    run_here("train", "--resume", "late", cwd=tmp_path)
    assert_same_run(long_run, tmp_path / "runs/late")


@pytest.mark.slow
def test_same_command_same_bits(tiny, long_run, tmp_path):
    """And the epochs that it calls the best are those that were no worse than all before."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    done = run_script("train", "--name", "again", "--epochs", 20, "--dim", 16, cwd=tmp_path)
    assert_same_run(long_run, tmp_path / "runs/again")
    scores = [row["valid_balanced_accuracy"] for row in runs.read_metrics(long_run)]
    lines = [line for line in done.stdout.splitlines() if re.match("epoch +[1-9][0-9]*  loss", line)]
    printed = [line.endswith("  best") for line in lines]
    assert printed == [score == max(scores[:i]) for i, score in enumerate(scores, 1)] and False in printed
    run_here("train", "--name", "other", "--epochs", 20, "--dim", 16, "--seed", 1, cwd=tmp_path)
    assert not leaves_equal(checkpoint(long_run)[0], checkpoint(tmp_path / "runs/other")[0])


def test_what_a_run_leaves(trained):
    folder = trained / "runs/filters"
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 13)] and int(rows[-1]["step"]) == config["steps"]
    scores = [f"{split}_{part}{score}" for split in ("train", "valid") for part, score in (
        ("", "loss"), ("", "accuracy"), ("", "balanced_accuracy"), ("reliable_", "loss"),
        ("reliable_", "balanced_accuracy"))]
    assert [*rows[0]] == ["epoch", "step", *scores, "temperature", "smoothing", "titles_per_second", "seconds"]
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])
    for name in ("vocab.txt", "labels.txt"):
        assert (folder / name).read_bytes() == (trained / "data/prepared" / name).read_bytes()


def test_mlflow_has_it_all(trained):
    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    run_id = (trained / "runs/filters/mlflow.txt").read_text().strip()
    run = client.get_run(run_id)
    config = json.loads((trained / "runs/filters/config.json").read_text())
    assert run.info.run_name == "filters" and run.info.status == "FINISHED"
    params = {key: str(value) for key, value in runs.settings(config).items()}
    assert params.items() <= run.data.params.items() and run.data.params.keys() - params.keys() == {
        "parameters", "table_rows", "table_columns", "megabytes"}
    history = client.get_metric_history(run_id, "valid/balanced_accuracy")
    with open(trained / "runs/filters/metrics.csv", newline="") as file:
        assert [m.value for m in history] == [float(row["valid_balanced_accuracy"]) for row in csv.DictReader(file)]
    assert len(client.get_metric_history(run_id, "train/step_loss")) >= 4
    artifacts = trained / "mlruns" / run_id / "artifacts"
    assert (artifacts / "loss.png").stat().st_size > 5000
    assert (artifacts / "source/train.py").read_text() == (ROOT / "train.py").read_text()


@pytest.mark.slow
def test_mlflow_server(tiny, tmp_path):
    """A real server on the loopback address gets the training and the test scores."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2],
         "--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts", "--workers", "1"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(uri.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.5)
        env = {"MLFLOW_TRACKING_URI": uri}
        run_script("train", "--name", "served", "--epochs", 2, cwd=tmp_path, env=env)
        run_here("evaluate", "--ckpt", "served", cwd=tmp_path, env=env)
        run = MlflowClient(uri).get_run((tmp_path / "runs/served/mlflow.txt").read_text().strip())
        assert run.info.status == "FINISHED" and "test_balanced_accuracy" in run.data.metrics
        assert "loss.png" in [item.path for item in MlflowClient(uri).list_artifacts(run.info.run_id)]
        assert not (tmp_path / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_what_a_kill_leaves_beside_checksums_damages_no_checkpoint(tmp_path):
    for name in ("metrics/metrics", "variables/d/1"):
        files.write_lines(tmp_path / name, [name])
    files.write_json(tmp_path / "sums.json", runs.file_checksums(tmp_path))
    assert files.read_json(tmp_path / "sums.json").keys() == {"metrics/metrics", "variables/d/1"}
    (tmp_path / ".sums.json.lock").touch()
    runs.verify_checkpoint(tmp_path)
    runs.verify_checkpoint(tmp_path, "metrics")
    (tmp_path / "variables/d/2").touch()
    runs.verify_checkpoint(tmp_path, "metrics")
    with pytest.raises(UserError, match="variables/d/2"):
        runs.verify_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_saved(tiny, tmp_path):
    """On a small file system, where root may mount one: one line, and --resume goes on once there is room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        flags = ["--runs", small / "runs", "--epochs", 6, "--dim", 300, "--minn", 0, "--maxn", 0, "--word-ngrams", 1]
        done = run_script("train", "--name", "big", *flags, cwd=tiny, check=False)
        assert_one_line_error(done, "checkpoints", "not saved", "--resume big")
        assert len(list((small / "runs/big/checkpoints").iterdir())) in (1, 2)  # best and latest may be one
        subprocess.run(["mount", "-o", "remount,size=30m", small], check=True)
        run_script("train", "--resume", "big", "--runs", small / "runs", cwd=tiny)
        run_here("train", "--name", "roomy", *flags[2:], cwd=tiny)
        assert_same_run(small / "runs/big", tiny / "runs/roomy")
    finally:
        subprocess.run(["umount", small], check=True)


def test_bad_input(trained, tmp_path):
    def fails(*args, words, cwd=trained):
        assert_one_line_error(run_here("train", *args, cwd=cwd, check=False), *words)

    for flags, words in ((("--data", "nowhere"), ["nowhere", "prepare.py"]), (("--epochs", 0), ["--epochs"])):
        assert_one_line_error(run_script("train", *flags, cwd=trained, check=False), *words)
    fails("--name", "bag", words=["bag", "--resume bag"])
    fails("--name", "../escape", words=["--name ../escape"])
    fails("--name", "best", words=["--name best"])
    fails("--resume", "nothing", words=["nothing", "no such run"])
    fails("--resume", "bag", "--lr", "1", words=["--lr"])
    for flags in (["--epochs", "0"], ["--batch-size", "-1"], ["--lr", "nan"], ["--lr", "x"], ["--dropout", "1"],
                  ["--model", "svm"], ["--seed", "-1"], ["--balance", "maybe"], ["--epoch", "3"], ["--widths"]):
        fails(*flags, words=[flags[0], "--help"])
    fails("--minn", "5", "--maxn", "4", words=["--minn 5", "--maxn 4"])
    fails("--word-ngrams", "0", words=["--word-ngrams"])
    fails("--model", "cnn", "--widths", "2", "3", "2", words=["--widths 2 3 2", "the same width twice"])
    fails("--buckets", "0", words=["--buckets"])
    fails("--buckets", "5000000000", words=["--buckets 5000000000"])
    assert not list((trained / "runs").glob(".*"))
    shutil.copytree(trained / "data", tmp_path / "data")
    labels = tmp_path / "data/prepared/train_labels.npy"
    labels.write_bytes(labels.read_bytes()[:-5])
    fails(words=["train_labels.npy"], cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny):
    done = run_script("train", "--name", "wild", "--lr", "1e38", "--epochs", 9, "--hidden", 8, cwd=tiny, check=False)
    assert_one_line_error(done, "no longer finite", "--lr")
    client = MlflowClient(f"sqlite:///{tiny}/mlflow.db")
    assert client.get_run((tiny / "runs/wild/mlflow.txt").read_text().strip()).info.status == "FAILED"


def test_a_single_wild_step_is_not_saved(tiny):
    """One step an epoch: its own loss is finite, what it left is not."""
    done = run_here("train", "--name", "wilder", "--lr", "1e38", "--batch-size", 9999, "--hidden", 8, cwd=tiny,
                    check=False)
    assert_one_line_error(done, "no longer finite")
    assert not list((tiny / "runs/wilder/checkpoints").iterdir()) and not (tiny / "runs/wilder/metrics.csv").exists()


@pytest.mark.slow
def test_resume_where_mlflow_does_not_know_the_run(tiny, tmp_path):
    """Another store gets the whole run anew."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    status, output = interrupted(tmp_path, "moved", signal.SIGTERM, 20)
    assert status == 143, output
    (tmp_path / "mlflow.db").unlink()
    assert run_script("train", "--resume", "moved", cwd=tmp_path).stderr == ""
    run_id = (tmp_path / "runs/moved/mlflow.txt").read_text().strip()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(run_id).info.status == "FINISHED" and "dim" in client.get_run(run_id).data.params
    assert len(client.get_metric_history(run_id, "valid/loss")) == 20


def test_what_mlflow_missed_is_logged_by_resume(tiny, tmp_path):
    """Its store of artifacts is broken; the run is finished all the same, and nothing is logged twice."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    (tmp_path / "mlruns").write_text("no folder")
    done = run_here("train", "--name", "lame", "--epochs", 2, "--dim", 8, cwd=tmp_path)
    assert all(line.startswith("warning: not logged to MLflow") for line in done.stderr.splitlines())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = (tmp_path / "runs/lame/mlflow.txt").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    (tmp_path / "mlruns").unlink()
    assert run_script("train", "--resume", "lame", cwd=tmp_path).stderr == ""
    assert len(client.get_metric_history(run_id, "valid/loss")) == 2
    assert {file.path for file in client.list_artifacts(run_id)} == {"source", "config.json", "loss.png"}


def test_unreachable_mlflow(tiny):
    done = run_script("train", "--name", "lonely", cwd=tiny, check=False, env={
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    assert_one_line_error(done, "MLflow", "127.0.0.1:9")
    assert not (tiny / "runs/lonely").exists()


@pytest.mark.parametrize("rows, several", [(8192, True), (8191, False)])
def test_a_large_table_is_saved_in_several_files(tmp_path, monkeypatch, rows, several):
    """Where its rows can be divided evenly; a save then needs no memory for all of it."""
    monkeypatch.setattr(runs, "DATA_FILE", 1 << 17)
    monkeypatch.setattr(model, "LARGE", 4096)
    table = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32)
    state = jax.device_put({"variables": {"table": table}, "optimizer": {"step": np.int32(3)}})
    (tmp_path / "checkpoints").mkdir()
    runs.save_checkpoint(runs.checkpoint_manager(tmp_path), 1, state, [], {"valid_balanced_accuracy": 0.5})
    saved = runs.restore_checkpoint(runs.checkpoint_manager(tmp_path, read_only=True), 1, **state)
    assert np.array_equal(saved["variables"]["table"], table) and saved["optimizer"]["step"] == 3
    large = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1 << 15]
    assert (len(large) > 4) == several
