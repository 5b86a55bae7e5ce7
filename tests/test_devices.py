"""Several devices, here virtual ones that share the processor, and several processes: the same training, and what they
exchange. `python tests/test_devices.py --kills 20` kills one of two or four processes, again and again."""
import argparse
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    ROOT,
    add_database,
    assert_one_line_error,
    environment,
    run_here,
    run_script,
    tiny_rows,
    write_csv,
)

from titles import cli, devices, runs

FLAGS = ("--epochs", 3, "--dim", 16, "--batch-size", 32)
SHARED = "--shard-table"
PATIENCE = 30  # seconds within which the others must end when one is killed


def numbers_of(folder):
    return [[value for key, value in row.items() if key not in ("seconds", "titles_per_second")]
            for row in runs.read_metrics(folder)]


def assert_same_training(folder, name, reference):
    """Sums over a batch are made in another order, so the last digits of float32 differ, and more as steps go on."""
    run, reference = folder / "runs" / name, folder / "runs" / reference
    np.testing.assert_allclose(numbers_of(run), numbers_of(reference), rtol=1e-3, atol=1e-5)
    (*_, one, _), (*_, two, _) = (runs.restore(run, "latest") for run in (run, reference))
    np.testing.assert_allclose(one["variables"]["table"], two["variables"]["table"], rtol=1e-3, atol=1e-4)


def train(folder, devices, *flags):
    return run_script("train", *flags, cwd=folder, env={"JAX_NUM_CPU_DEVICES": str(devices)})


def processes(count, folder, script, *flags, devices=1, last=()):
    """A script as several processes, which have begun: what they print goes to files beside the data. last: further
    flags of the last one."""
    add_database(script, folder, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = []
    for number in range(count):
        command = [sys.executable, "-u", ROOT / f"{script}.py", *flags, "--coordinator", address, "--processes", count,
                   "--process", number, *(last if number == count - 1 else ())]
        with open(folder / f"{number}.out", "w") as out, open(folder / f"{number}.err", "w") as err:
            begun.append(subprocess.Popen([*map(str, command)], cwd=folder, stdout=out, stderr=err,
                                          env=environment() | {"JAX_NUM_CPU_DEVICES": str(devices)}))
    return begun


def ended(begun, seconds):
    """The exit statuses of processes, which must all end within so many seconds."""
    limit, found = time.time() + seconds, []
    try:
        for process in begun:
            found.append(process.wait(max(0.1, limit - time.time())))
    finally:
        for process in begun:
            process.kill()
    return found


def said(folder, number, kind):
    return (folder / f"{number}.{kind}").read_text()


def trained_by(count, folder, *flags, **options):
    statuses = ended(processes(count, folder, "train", *flags, **options), 300)
    assert statuses == [0] * count, said(folder, 0, "err") + said(folder, 1, "err")
    return said(folder, 0, "out")


@pytest.fixture(scope="module")
def one_device(tiny, tmp_path_factory):
    """A folder with prepared data and the run `mlp`, and `cnn` or `sharded` where `trained_alone` makes them."""
    folder = tmp_path_factory.mktemp("devices")
    shutil.copytree(tiny / "data", folder / "data")
    trained_alone(folder, "mlp")
    return folder


def trained_alone(folder, name):
    """Train a model on one device, unless this was done."""
    if not (folder / "runs" / name).exists():
        flags = ("--model", "cnn") if name == "cnn" else (SHARED,) if name == "sharded" else ()
        assert f"run {name} on cpu:0: " in run_script("train", "--name", name, *flags, *FLAGS, cwd=folder).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name, devices", [("mlp", 8), ("cnn", 2)])
def test_several_devices_train_as_one(one_device, name, devices):
    trained_alone(one_device, name)
    other = f"{name}-{devices}"
    done = train(one_device, devices, "--model", name, "--name", other, *FLAGS)
    assert f"run {other} on {devices} devices, cpu:0 to cpu:{devices - 1}: " in done.stdout and not done.stderr
    assert_same_training(one_device, other, name)


@pytest.mark.slow
def test_evaluated_by_several_processes(one_device):
    trained_alone(one_device, "sharded")
    alone = json.loads(run_here("evaluate", "--ckpt", "sharded", "--json", cwd=one_device).stdout)
    assert ended(processes(2, one_device, "evaluate", "--ckpt", "sharded", "--json", devices=2), 120) == [0, 0]
    together = json.loads(said(one_device, 0, "out"))
    assert said(one_device, 1, "out") == "" and together["accuracy"] == alone["accuracy"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.slow
def test_resume_on_another_number_of_devices(one_device):
    """A table that is parted among two devices, then among four, then on one."""
    command = [sys.executable, "-u", ROOT / "train.py", "--name", "moved", SHARED, *FLAGS]
    process = subprocess.Popen([*map(str, command)], cwd=one_device, stdout=subprocess.PIPE, text=True,
                               env=environment() | {"JAX_NUM_CPU_DEVICES": "2"})
    for line in process.stdout:
        if line.startswith("epoch   1  "):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    train(one_device, 4, "--resume", "moved")
    trained_alone(one_device, "sharded")
    assert_same_training(one_device, "moved", "sharded")


@pytest.mark.slow
def test_batches_that_cannot_be_shared(one_device):
    done = train(one_device, 3, "--name", "uneven", *FLAGS)
    assert done.stderr.startswith("warning: 3 devices cannot share batches of 32 rows") and done.stderr.count("\n") == 1
    np.testing.assert_allclose(numbers_of(one_device / "runs/uneven"), numbers_of(one_device / "runs/mlp"), rtol=1e-3,
                               atol=1e-5)


def kill_and_resume(folder, draw, name, count, resumed_by, seconds):
    """Train by several processes, kill one of them at a random moment of so many seconds, and resume. Returns all exit
    statuses, and what happened as text."""
    begun, victim = processes(count, folder, "train", "--name", name, *FLAGS), draw.randrange(count)
    while not (folder / "runs" / name).exists() and begun[0].poll() is None:
        time.sleep(0.1)
    time.sleep(seconds * draw.random())
    begun[victim].kill()
    killed = time.time()
    statuses = ended(begun, PATIENCE)
    taken = time.time() - killed

    # They end with a status and a line of ours, unless JAX was quicker: it aborts, and says that another task died.
    for number in set(range(count)) - {victim}:
        error = said(folder, number, "err")
        assert statuses[number] == 0 or (
            statuses[number] == cli.TryAgain.status and "another process has ended" in error) or (
            statuses[number] == -signal.SIGABRT and "another task died" in error), (statuses, error)
    trained_by(resumed_by, folder, "--resume", name) if resumed_by > 1 else train(folder, 1, "--resume", name)
    assert_same_training(folder, name, "mlp")
    return statuses, f"process {victim} of {count} killed, others ended after {taken:.1f} s with {statuses}"


@pytest.mark.slow
def test_a_killed_process_ends_the_others(one_device):
    """And four processes then train to the same end as one."""
    statuses, _ = kill_and_resume(one_device, random.Random(0), "killed", 2, resumed_by=4, seconds=0.5)
    assert -signal.SIGKILL in statuses and 0 not in statuses  # it was killed before the training had ended
    assert "on 4 devices, " in said(one_device, 0, "out") and " of 4 processes: " in said(one_device, 0, "out")


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all(one_device):
    begun = processes(2, one_device, "train", "--name", "stopped", SHARED, *FLAGS, "--epochs", 3000)
    while "epoch   1  " not in said(one_device, 0, "out") and begun[0].poll() is None:
        time.sleep(0.1)
    begun[1].send_signal(signal.SIGTERM)
    assert ended(begun, PATIENCE) == [128 + signal.SIGTERM] * 2, said(one_device, 0, "err") + said(one_device, 1, "err")
    assert "go on with: python " in said(one_device, 0, "out")


@pytest.mark.slow
def test_processes_that_differ(one_device):
    """They would train on, each something else, or wait for each other for ever."""
    begun = processes(2, one_device, "train", "--name", "split", *FLAGS, last=("--seed", 1))
    assert ended(begun, 120) == [2, 2]
    for number in range(2):
        assert "error: the processes do not have the same flags, scripts, data" in said(one_device, number, "err")
    assert not (one_device / "runs/split").exists()


def test_a_port_that_is_taken(one_device):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_script("train", "--coordinator", f"127.0.0.1:{port}", "--processes", 1, "--process", 0,
                          cwd=one_device, check=False)
    assert_one_line_error(done, f"port {port} of this machine cannot be used")


@pytest.mark.parametrize("flags, words", [
    (("--coordinator", "127.0.0.1:0", "--processes", 1, "--process", 0), "wanted HOST:PORT"),
    (("--coordinator", "127.0.0.1:1", "--processes", 2), "--process from 0 to N - 1"),
    (("--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 2), "--process from 0 to N - 1"),
    (("--process", 0), "go with --coordinator"),
    (("--coordinator", "auto"), "coordinator_address should be defined"),
    (("--coordinator", "nowhere", "--processes", 2, "--process", 0), "wanted HOST:PORT"),
])
def test_wrong_flags_of_processes(one_device, flags, words):
    assert_one_line_error(run_script("train", *flags, cwd=one_device, check=False), words)


@pytest.mark.parametrize("address, words", [
    ("127.0.0.1:1", "start them together"), ("auto", "start them together"),
    ("a.invalid:1", "does not know that name")])
def test_processes_that_do_not_come(monkeypatch, capsys, address, words):
    def leave(status):
        assert status == cli.TryAgain.status
        raise SystemExit

    monkeypatch.setattr(devices.os, "_exit", leave)
    with pytest.raises(SystemExit):
        devices.give_up(address)
    error = capsys.readouterr().err
    assert error.startswith(f"error: --coordinator {address}: not all processes") and words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_name_that_nobody_knows(one_device):
    """JAX asks for it until the time is up; here that is a second."""
    code = (f"import runpy, sys; sys.path[0] = {str(ROOT)!r}; from titles import devices; devices.CONNECT = 1\n"
            f"sys.argv[0] = {str(ROOT / 'train.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')")
    flags = ["--coordinator", "a.invalid:1", "--processes", "2", "--process", "1"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=one_device, capture_output=True, text=True,
                          env=environment())
    assert done.returncode == cli.TryAgain.status and "a.invalid:1: not all processes were there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("count, kind, words", [
    (1, cli.UserError, "checkpoints: step 4 is not saved"),
    (2, cli.TryAgain, "checkpoints: another process has ended, or step 4 is not saved")])
def test_what_another_process_may_have_caused_is_tried_again(one_device, monkeypatch, count, kind, words):
    """A full disk looks like the end of another process, with which a checkpoint is written."""
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    manager = runs.checkpoint_manager(one_device / "runs/mlp", read_only=True)
    monkeypatch.setattr(devices.jax, "process_count", lambda: count)
    with pytest.raises(cli.UserError, match=words) as error:
        runs.save_checkpoint(manager, 4, {}, [])
    assert type(error.value) is kind


COLLECTIVES = """
import re, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import jax, numpy as np
import data, model, train
from titles import configuration, devices, start
for vocabulary in (500, 50_000):
    titles = np.random.default_rng(0).integers(2, 500, (512, 9)).astype(np.uint32)
    meta = {"vocab": range(vocabulary), "labels": range(7), "vectors": None, "reliable_share": None, "max_len": 9,
            "rows": {"valid": 1}, "training_rows": [1] * 7, "synthetic": True, "fingerprint": "",
            "files": {"vocab.txt": "", "labels.txt": ""}, "columns": [], "levels": 1}
    meta = dict.fromkeys(data.DESCRIBED, "") | meta
    args = train.parse_args(["--dim", "16", "--model", *sys.argv[2:]])
    config = configuration.configure(train.TABLE, args, meta, titles)
    features = model.feature_tables(config, [*data.SPECIALS, *(f"word{i}" for i in range(vocabulary - 2))])
    state = start.state_of_words(config, train.make_optimizer(config), features, titles)
    state = devices.put(state, model.shardings(config, state))
    arrays = train.training_arrays(config, features, {"titles": titles, "labels": np.zeros(512, np.uint8)})
    order = devices.put(np.zeros((2, config["batch_size"]), np.uint32), devices.parted(config["batch_size"], 1))
    compiled = train.make_train_chunk(config).lower(state, arrays, order, width=9).compile()
    found = re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\\(",
                       compiled.as_text())
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for result, _ in found
             for shape in re.findall(r"\\w+\\[([\\d,]*)\\]", result)]
    params = sum(x.size for x in jax.tree.leaves(state["variables"]["params"]))
    apart = sum(np.asarray(x).nbytes for name, x in features.items() if name != "word")  # which no step reads
    print(config["batch_size"], params, len(state["variables"]["table"]),
          compiled.memory_analysis().argument_size_in_bytes - apart, *sorted(sizes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("mlp",), ("cnn",), ("mlp", SHARED)])
def test_devices_exchange_a_batch_and_not_the_table(flags):
    """Read off the compiled program of a step on eight devices."""
    done = subprocess.run([sys.executable, "-c", COLLECTIVES, str(ROOT), *flags], capture_output=True, text=True,
                          env=environment() | {"JAX_NUM_CPU_DEVICES": "8"})
    assert done.returncode == 0, done.stderr
    small, large = ([int(number) for number in re.findall(r"\d+", line)] for line in done.stdout.splitlines())
    (batch, params, rows, memory, *sizes), (_, _, more_rows, more_memory, *same) = small, large
    assert more_rows > 3 * rows and sizes == same  # nothing grows with the table

    # Of each title 18 vectors of words and pairs and their gradients, made of 54 rows of the table; the 9 words, the
    # label and the weight of its loss, as each device has a part of the titles; else the gradients of the parameters.
    vectors = 18 * 16
    assert batch * vectors in sizes and batch * 54 in sizes
    once = vectors + 54 + 54 + 9 + 3 + 3
    # Where the table is parted also the vectors themselves, in two parts, and the numbers and weights of their rows.
    parted = vectors + 4 * 54 + 9 if SHARED in flags else 0
    assert max(sizes) <= max(batch * vectors, params) and sum(sizes) <= batch * (once + parted) + params + 9

    # A device holds all of the table or an eighth, 16 numbers of each row, its weight and its sum.
    assert more_memory - memory == (more_rows - rows) * (16 + 2) * 4 / (8 if SHARED in flags else 1)


def kill_often(kills, seed):
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_csv(folder / "tiny.csv", tiny_rows())
        run_script("prepare", "--data", "tiny.csv", cwd=folder)
        train(folder, 1, "--name", "mlp", *FLAGS)
        for number in range(kills):
            count, resumed_by = draw.choice([2, 2, 4]), draw.choice([1, 2, 4])
            print(number, kill_and_resume(folder, draw, f"kill-{number}", count, resumed_by, 4)[1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    kill_often(**vars(parser.parse_args()))
