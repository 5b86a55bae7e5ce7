"""Training: the compiled loop against simple ones, runs as a user starts, stops and resumes them, MLflow."""
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
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, assert_same_run, checkpoint, leaves_equal, run_script
from mlflow import MlflowClient

import data
import model
import train
from data import UserError

CONFIG = {"model": "mlp", "word_ngrams": 2, "minn": 3, "maxn": 4, "character_weight": 0.9, "buckets": 64,
          "vocabulary": 30, "dim": 6, "max_len": 4, "classes": 3, "hidden": [], "dropout": 0.3, "lr": 0.01,
          "table_lr": 0.1, "accumulator": 0.01, "weight_decay": 1e-4, "steps": 40, "freeze_embeddings": False,
          "balance": "logit", "unreliable_weight": 1.0, "batch_size": 8, "seed": 0, "filters": 4, "widths": [1, 2]}


def small_problem(**changes):
    """(config, new state, arguments of the train chunk after state and order)."""
    config = CONFIG | changes
    draw = np.random.default_rng(0)
    titles = draw.integers(0, 20, (64, 4)).astype(np.uint16)  # ids 20 to 29 never occur
    labels = draw.integers(0, 3, 64).astype(np.uint8)
    features = model.feature_tables(config, words_of(config["vocabulary"]))
    state = train.init_state(config, features, titles)
    return config, state, (features, titles, labels, labels == 3), train.class_terms(config["balance"], labels, 3)


def words_of(count):
    return [*data.SPECIALS, *(f"word{i}" for i in range(2, count))]


@pytest.mark.parametrize("name", model.MODELS)
def test_a_scanned_chunk_equals_single_steps(name):
    config, state, arrays, terms = small_problem(model=name)
    order = np.random.default_rng(0).permutation(64)[:40].reshape(5, 8)
    chunk = train.make_train_chunk(config)
    together, loss = chunk(jax.tree.map(np.copy, state), *arrays, order, *terms, width=4)
    losses = []
    for rows in order:
        state, one = chunk(state, *arrays, rows[None], *terms, width=4)
        losses.append(one)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_changes_the_rows_it_used_and_no_other():
    config, state, arrays, terms = small_problem()
    before = np.array(state["table"])
    state["params"]["Head_0"]["Dense_0"]["kernel"] += 1.0 + np.arange(3)  # at zero it passes no gradient back
    after, _ = train.make_train_chunk(config)(state, *arrays, np.array([[3, 4]]), *terms, width=4)
    changed = np.flatnonzero((before != after["table"]).any(1))
    features, titles, *_ = arrays
    ids = titles[[3, 4]]
    used = set(features["own"][ids].ravel()) | set(model.word_ngrams(features, ids, 2).ravel()) | {
        row for i in ids.ravel() for row in features["ngrams"][features["start"][i]:features["start"][i + 1]]}
    assert any(row >= config["vocabulary"] for row in changed)
    assert set(changed) <= used - {0} and len(changed)
    assert after["step"] == 1


def test_frozen_vectors_stay():
    config, state, arrays, terms = small_problem(freeze_embeddings=True)
    before, head = np.array(state["table"]), np.array(state["params"]["Head_0"]["Dense_0"]["bias"])
    after, _ = train.make_train_chunk(config)(state, *arrays, np.arange(64).reshape(8, 8), *terms, width=4)
    assert np.array_equal(before, after["table"])
    assert not np.array_equal(head, after["params"]["Head_0"]["Dense_0"]["bias"])


def test_pretrained_vectors_are_the_start():
    vectors = np.zeros((30, 6), np.float32)
    vectors[5:9] = np.random.default_rng(0).normal(size=(4, 6)) * 7
    titles = np.arange(1, 29).reshape(7, 4)
    state = train.init_state(CONFIG, model.feature_tables(CONFIG, words_of(30)), titles, vectors)
    assert np.array_equal(state["table"][5:9], vectors[5:9])
    assert 0.3 < np.std(state["table"][9:]) / vectors[5:9].std() < 3 and not state["table"][0].any()


def test_class_terms():
    labels = np.array([0, 0, 0, 1])
    shift, weight = train.class_terms("logit", labels, 3)
    np.testing.assert_allclose(shift, np.log([0.75, 0.25, 0.125]), rtol=1e-6)
    assert weight.tolist() == [1, 1, 1]
    shift, weight = train.class_terms("weights", labels, 2)
    np.testing.assert_allclose(weight, [4 / 6, 2], rtol=1e-6)  # as scikit-learn's class_weight="balanced"
    assert shift.tolist() == [0, 0]
    assert [x.tolist() for x in train.class_terms("none", labels, 2)] == [[0, 0], [1, 1]]


def test_unreliable_rows_count_less():
    config, state, (features, titles, labels, _), terms = small_problem(dropout=0.0, unreliable_weight=0.25)
    chunk, order = train.make_train_chunk(config), np.arange(8)[None]

    def loss(doubtful):
        return float(chunk(jax.tree.map(np.copy, state), features, titles, labels, doubtful, order, *terms, width=4)[1])

    doubtful = np.arange(64) % 2 == 0
    rows = [loss(np.arange(64) == i) for i in range(8)]  # each takes away three quarters of one row's loss
    full = loss(np.zeros(64, bool))
    np.testing.assert_allclose(loss(doubtful), full - sum(full - row for row in rows[::2]), rtol=1e-5)
    np.testing.assert_allclose(loss(np.ones(64, bool)), full / 4, rtol=1e-5)


def test_size_rule():
    def rule(rows, vocabulary):
        return tuple(train.size_rule(rows, 25, 0.5, vocabulary).values())

    assert rule(500, 300) == (64, 25, 0.5, 1, 1 << 13, 0.01 / 64)
    assert rule(5_000, 4_000) == (64, 25, 0.5, 1, 1 << 16, 0.01)
    assert rule(5_000_000, 1_000_000) == (1024, 3, 0.028, 0.055, 1 << 21, 0.01)
    sizes = [rule(rows, rows // 9 + 1) for rows in (10, 3_000, 100_000, 1_000_000, 10_000_000)]
    assert sizes == sorted(sizes, key=lambda size: (size[0], *(-x for x in size[1:4]), *size[4:]))


def test_flags_override_the_rule(tiny, monkeypatch):
    meta, arrays = data.load_prepared(tiny / "data/prepared", ("train",))

    def config(flags):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
        return train.configure(train.parse_args(), meta, arrays["train"]["titles"])

    wanted = {"batch_size": 5, "epochs": 2, "dropout": 0, "character_weight": 0.5, "buckets": 7, "accumulator": 0,
              "word_ngrams": 1, "lr": 3}
    assert config("--batch-size 5 --epochs 2 --dropout 0 --character-weight 0.5 --buckets 7 --accumulator 0 "
                  "--word-ngrams 1 --lr 3").items() >= wanted.items()
    assert config("--maxn 0 --word-ngrams 1 --buckets 7").items() >= {"buckets": 0, "epochs": 13}.items()
    assert config("").items() >= train.size_rule(len(arrays["train"]["titles"]), 25, 0.5, len(meta["vocab"])).items()


@pytest.mark.parametrize("start", [0, 0.25])
def test_start_of_adagrads_sums(start):
    _, state, _, _ = small_problem(accumulator=start)
    np.testing.assert_array_equal(state["accumulator"], np.full(30 + 64, start, np.float32))


def test_a_name_taken_meanwhile(tmp_path):
    meta = {"vocab": ["a"], "labels": ["A", "B"]}
    (tmp_path / "mlp-1").mkdir()
    args = SimpleNamespace(runs=tmp_path, name=None, model="mlp")
    assert train.make_run(args, tmp_path / "mlp-1", {}, meta) == tmp_path / "mlp-2"
    args.name = "mlp-2"
    with pytest.raises(UserError, match="a run of this name is there"):
        train.make_run(args, tmp_path / "mlp-2", {}, meta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp-1", "mlp-2"]
    assert data.read_lines(tmp_path / "mlp-2/labels.txt") == ["A", "B"]


# --- what makes it fast -----------------------------------------------------------------------------------------------

def test_a_weight_for_unreliable_rows_needs_label_quality(tiny):
    args = SimpleNamespace(model="mlp", batch_size=None, epochs=None, dropout=None, dim=None, unreliable_weight=0.5,
                           data="here")
    meta, arrays = data.load_prepared(tiny / "data/prepared", ("train",))
    with pytest.raises(UserError, match="how reliable its label is"):
        train.configure(args, meta | {"reliable_share": None}, arrays["train"]["titles"])


@pytest.mark.parametrize("name", model.MODELS)
def test_the_loop_copies_no_table(name):
    """Scratch memory stays far below the table, no instruction copies it, and its buffer is the same one afterwards."""
    config, state, arrays, terms = small_problem(model=name, vocabulary=200_000)
    order, chunk = np.arange(64).reshape(8, 8), train.make_train_chunk(config)
    program = chunk.lower(state, *arrays, order, *terms, width=4).compile()
    assert program.memory_analysis().temp_size_in_bytes < state["table"].nbytes / 4
    copies = [line for line in program.as_text().splitlines() if " copy(" in line and f"[{len(state['table'])}" in line]
    assert not copies
    before = {key: state[key].unsafe_buffer_pointer() for key in ("table", "accumulator")}
    after, _ = program(state, *arrays, order, *terms)
    assert {key: after[key].unsafe_buffer_pointer() for key in before} == before


def test_a_copy_of_the_table_would_show():
    """The test above sees what it looks for: without donation the table is copied."""
    config, state, arrays, terms = small_problem(vocabulary=200_000)
    chunk = jax.jit(train.make_train_chunk(config).__wrapped__, static_argnames="width")
    program = chunk.lower(state, *arrays, np.arange(64).reshape(8, 8), *terms, width=4).compile()
    assert any(" copy(" in line and f"[{len(state['table'])}" in line for line in program.as_text().splitlines())


def test_nothing_moves_between_host_and_device_in_the_loop():
    config, state, arrays, terms = small_problem()
    order, chunk = np.arange(64).reshape(8, 8), train.make_train_chunk(config)
    state, arrays, terms = jax.device_put((state, arrays, terms))
    with jax.transfer_guard("disallow"):
        state, _ = chunk(state, *arrays, jax.device_put(order), *terms, width=4)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):  # the guard is at work
            chunk(state, *arrays, order, *terms, width=4)


def test_more_epochs_compile_nothing_more(tiny, tmp_path):
    compiled = []
    for epochs in (1, 3):
        done = run_script("train", "--data", tiny / "data/prepared", "--epochs", epochs, cwd=tmp_path,
                          env={"JAX_LOG_COMPILES": "1"})
        compiled.append(re.findall(r"Finished XLA compilation of jit\((\w+)\)", done.stderr))
    assert compiled[0] == compiled[1] == ["start", "train_chunk", "compose", "score_batch"]


# --- as a user runs it ------------------------------------------------------------------------------------------------

def interrupted(folder, name, number, epochs):
    """Start a training, send it a signal after its second epoch, and return (exit status, output)."""
    command = [sys.executable, "-u", str(ROOT / "train.py"), "--name", name, "--epochs", str(epochs), "--dim", "16"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "MLFLOW_TRACKING_URI": ""})
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny, long_run, number):
    name = f"stopped-{number}"
    status, output = interrupted(tiny, name, number, 20)
    assert status == (-9 if number == signal.SIGKILL else 128 + number), output
    if number != signal.SIGKILL:
        assert f"go on with: python train.py --resume {name}" in output
    assert not (tiny / f"runs/{name}/checkpoints/{checkpoint(long_run)[1][-1]['step']}").exists()
    run_script("train", "--resume", name, cwd=tiny)
    assert_same_run(long_run, tiny / "runs" / name)
    assert len(list((tiny / f"runs/{name}/checkpoints").iterdir())) <= 2  # best and latest, no leftovers
    runs = [run for run in MlflowClient(f"sqlite:///{tiny}/mlflow.db").search_runs(["1"]) if run.info.run_name == name]
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"


def test_same_command_same_bits(tiny, long_run, tmp_path):
    shutil.copytree(tiny / "data", tmp_path / "data")
    run_script("train", "--name", "again", "--epochs", 20, "--dim", 16, cwd=tmp_path)
    assert_same_run(long_run, tmp_path / "runs/again")
    run_script("train", "--name", "other", "--epochs", 20, "--dim", 16, "--seed", 1, cwd=tmp_path)
    assert not leaves_equal(checkpoint(long_run)[0], checkpoint(tmp_path / "runs/other")[0])


def test_what_a_run_leaves(trained):
    folder = trained / "runs/filters"
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 13)] and int(rows[-1]["step"]) == config["steps"]
    for key in ("train_loss", "valid_loss", "train_balanced_accuracy", "valid_balanced_accuracy",
                "valid_reliable_balanced_accuracy", "titles_per_second"):
        assert all(float(row[key]) >= 0 for row in rows)
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])
    for name in ("vocab.txt", "labels.txt"):
        assert (folder / name).read_bytes() == (trained / "data/prepared" / name).read_bytes()


def test_mlflow_has_it_all(trained):
    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    run_id = (trained / "runs/filters/mlflow.txt").read_text().strip()
    run = client.get_run(run_id)
    config = json.loads((trained / "runs/filters/config.json").read_text())
    assert run.info.run_name == "filters" and run.info.status == "FINISHED"
    assert all(run.data.params[key] == str(value) for key, value in config.items())
    assert {"unknown_share", "source", "reliable_share"} <= set(run.data.params)
    history = client.get_metric_history(run_id, "valid_balanced_accuracy")
    with open(trained / "runs/filters/metrics.csv", newline="") as file:
        assert [m.value for m in history] == [float(row["valid_balanced_accuracy"]) for row in csv.DictReader(file)]
    assert len(client.get_metric_history(run_id, "step_loss")) >= 4
    artifacts = trained / "mlruns/1" / run_id / "artifacts"
    assert (artifacts / "loss.png").stat().st_size > 5000
    assert (artifacts / "source/train.py").read_text() == (ROOT / "train.py").read_text()


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
        run_script("evaluate", "--ckpt", "served", cwd=tmp_path, env=env)
        run = MlflowClient(uri).get_run((tmp_path / "runs/served/mlflow.txt").read_text().strip())
        assert run.info.status == "FINISHED" and "test_balanced_accuracy" in run.data.metrics
        assert "loss.png" in [item.path for item in MlflowClient(uri).list_artifacts(run.info.run_id)]
        assert not (tmp_path / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


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
        run_script("train", "--name", "roomy", *flags[2:], cwd=tiny)
        assert_same_run(small / "runs/big", tiny / "runs/roomy")
    finally:
        subprocess.run(["umount", small], check=True)


def test_bad_input(trained, tmp_path):
    def fails(*args, words, cwd=trained):
        assert_one_line_error(run_script("train", *args, cwd=cwd, check=False), *words)

    fails("--data", "nowhere", words=["nowhere", "prepare.py"])
    fails("--name", "bag", words=["bag", "--resume bag"])
    fails("--name", "../escape", words=["--name ../escape"])
    fails("--name", "best", words=["--name best"])
    fails("--resume", "nothing", words=["nothing", "no such run"])
    fails("--resume", "bag", "--lr", "1", words=["--lr"])
    shutil.copytree(trained / "runs/bag", tmp_path / "others/old")
    config, _, _ = data.load_run(trained / "runs/bag", model.MODELS)
    del config["accumulator"]
    data.write_json(tmp_path / "others/old/config.json", data.signed(config))
    fails("--resume", "old", "--runs", tmp_path / "others", words=["old", "another train.py, one without accumulator"])
    for flags in (["--epochs", "0"], ["--batch-size", "-1"], ["--lr", "nan"], ["--lr", "x"], ["--dropout", "1"],
                  ["--model", "svm"], ["--seed", "-1"], ["--balance", "maybe"], ["--epoch", "3"], ["--widths"]):
        fails(*flags, words=[flags[0], "--help"])
    fails("--minn", "5", "--maxn", "4", words=["--minn 5", "--maxn 4"])
    fails("--word-ngrams", "0", words=["--word-ngrams"])
    fails("--model", "cnn", "--widths", "2", "3", "2", words=["--widths 2 3 2", "the same width twice"])
    fails("--buckets", "0", words=["--buckets"])
    fails("--buckets", "5000000000", words=["--buckets 5000000000"])
    fails("--epochs", "1000000000000", words=["--epochs 1000000000000"])
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
    done = run_script("train", "--name", "wilder", "--lr", "1e38", "--batch-size", 9999, "--hidden", 8, cwd=tiny,
                      check=False)
    assert_one_line_error(done, "no longer finite")
    assert not list((tiny / "runs/wilder/checkpoints").iterdir()) and not (tiny / "runs/wilder/metrics.csv").exists()


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
    assert len(client.get_metric_history(run_id, "valid_loss")) == 20


def test_what_mlflow_missed_is_logged_by_resume(tiny, tmp_path):
    """Its store of artifacts is broken; the run is finished all the same, and nothing is logged twice."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    (tmp_path / "mlruns").write_text("no folder")
    done = run_script("train", "--name", "lame", "--epochs", 2, "--dim", 8, cwd=tmp_path)
    assert all(line.startswith("warning: not logged to MLflow") for line in done.stderr.splitlines())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = (tmp_path / "runs/lame/mlflow.txt").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    (tmp_path / "mlruns").unlink()
    assert run_script("train", "--resume", "lame", cwd=tmp_path).stderr == ""
    assert len(client.get_metric_history(run_id, "valid_loss")) == 2
    assert {file.path for file in client.list_artifacts(run_id)} == {"source", "loss.png"}


def test_unreachable_mlflow(tiny):
    done = run_script("train", "--name", "lonely", cwd=tiny, check=False, env={
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    assert_one_line_error(done, "MLflow", "127.0.0.1:9")
    assert not (tiny / "runs/lonely").exists()
