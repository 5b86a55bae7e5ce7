"""Several devices, here virtual ones that share the processor: the same training, and what they exchange."""
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment, run_script

import runs

FLAGS = ("--epochs", 3, "--dim", 16, "--batch-size", 32)


def metrics_of(folder):
    return [[value for key, value in row.items() if key not in ("seconds", "titles_per_second")]
            for row in runs.read_metrics(folder)]


def train(folder, devices, *flags):
    return run_script("train", *flags, cwd=folder, env={"JAX_NUM_CPU_DEVICES": str(devices)})


@pytest.fixture(scope="module")
def one_device(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    shutil.copytree(tiny / "data", folder / "data")
    for name in ("mlp", "cnn"):
        assert f"run {name} on cpu:0: " in train(folder, 1, "--model", name, "--name", name, *FLAGS).stdout
    return folder


# Sums over a batch are made in another order, so the last digits of float32 differ, and more as steps go on.
@pytest.mark.parametrize("name, devices", [("mlp", 8), ("cnn", 4)])
def test_several_devices_train_as_one(one_device, name, devices):
    other = f"{name}-{devices}"
    done = train(one_device, devices, "--model", name, "--name", other, *FLAGS)
    assert f"run {other} on {devices} devices, cpu:0 to cpu:{devices - 1}: " in done.stdout and not done.stderr
    np.testing.assert_allclose(metrics_of(one_device / "runs" / other), metrics_of(one_device / "runs" / name),
                               rtol=1e-3, atol=1e-5)
    (*_, one, _), (*_, two, _) = (runs.restore(one_device / "runs" / run, "latest") for run in (name, other))
    np.testing.assert_allclose(two["variables"]["table"], one["variables"]["table"], rtol=1e-3, atol=1e-4)


def test_evaluated_on_another_number_of_devices(one_device):
    scores = [json.loads(run_script("evaluate", "--ckpt", "mlp", "--json", cwd=one_device,
                                    env={"JAX_NUM_CPU_DEVICES": count}).stdout) for count in ("1", "4")]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-5)


def test_resume_on_another_number_of_devices(one_device):
    command = [sys.executable, "-u", ROOT / "train.py", "--name", "moved", *FLAGS]
    process = subprocess.Popen([*map(str, command)], cwd=one_device, stdout=subprocess.PIPE, text=True,
                               env=environment() | {"JAX_NUM_CPU_DEVICES": "2"})
    for line in process.stdout:
        if line.startswith("epoch   1  "):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    train(one_device, 4, "--resume", "moved")
    np.testing.assert_allclose(metrics_of(one_device / "runs/moved"), metrics_of(one_device / "runs/mlp"), rtol=1e-3,
                               atol=1e-5)


def test_batches_that_cannot_be_shared(one_device):
    done = train(one_device, 3, "--name", "uneven", *FLAGS)
    assert done.stderr.startswith("warning: 3 devices cannot share batches of 32 rows") and done.stderr.count("\n") == 1
    np.testing.assert_allclose(metrics_of(one_device / "runs/uneven"), metrics_of(one_device / "runs/mlp"), rtol=1e-3,
                               atol=1e-5)


COLLECTIVES = """
import re, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import jax, numpy as np
import data, model, train
for vocabulary in (500, 50_000):
    titles = np.random.default_rng(0).integers(2, 500, (512, 9)).astype(np.uint32)
    meta = {"vocab": range(vocabulary), "labels": range(7), "vectors": None, "reliable_share": None, "max_len": 9,
            "rows": {"valid": 1}, "training_rows": [1] * 7, "synthetic": True, "fingerprint": "",
            "files": {"vocab.txt": "", "labels.txt": ""}}
    config = train.configure(train.parse_args(["--dim", "16", "--model", sys.argv[2]]), meta, titles)
    features = model.feature_tables(config, [*data.SPECIALS, *(f"word{i}" for i in range(vocabulary - 2))])
    state = jax.device_put(train.init_state(config, features, titles), model.whole())
    arrays = train.training_arrays(config, features, {"titles": titles, "labels": np.zeros(512, np.uint8)})
    order = jax.device_put(np.zeros((2, config["batch_size"]), np.uint32), model.parted(config["batch_size"], 1))
    program = train.make_train_chunk(config).lower(state, arrays, order, width=9).compile().as_text()
    found = re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)", program)
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for result, _ in found
             for shape in re.findall(r"\\w+\\[([\\d,]*)\\]", result)]
    params = sum(x.size for x in jax.tree.leaves(state["variables"]["params"]))
    print(config["batch_size"], params, len(state["variables"]["table"]), *sorted(sizes))
"""


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_devices_exchange_a_batch_and_not_the_table(name):
    """Read off the compiled program of a step on eight devices."""
    done = subprocess.run([sys.executable, "-c", COLLECTIVES, str(ROOT), name], capture_output=True, text=True,
                          env=environment() | {"JAX_NUM_CPU_DEVICES": "8"})
    assert done.returncode == 0, done.stderr
    small, large = ([int(number) for number in re.findall(r"\d+", line)] for line in done.stdout.splitlines())
    (batch, params, rows, *sizes), (_, _, more_rows, *same) = small, large
    assert more_rows > 3 * rows and sizes == same  # nothing grows with the table

    # Of each title 18 vectors of words and pairs and their gradients, made of 54 rows; else the parameters.
    assert batch * 18 * 16 in sizes and batch * 54 in sizes
    assert max(sizes) <= max(batch * 18 * 16, params) and sum(sizes) <= batch * (18 * 16 + 2 * 54) + 2 * params + 9
