"""The check for a GPU, rehearsed on the CPU, so that it works on the day when there is one."""
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path

import gpu
import pytest
from conftest import ROOT, assert_one_line_error


def command(*args, **environment):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(["bash", str(ROOT / "tests" / "gpu.sh"), *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, "PATH": path, **environment})


@pytest.mark.slow
def test_rehearsal_measures_everything(tmp_path):
    done = command(tmp_path / "out.json", "--rehearse")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    parts, sizes = result["parts"], gpu.REHEARSAL
    assert result["rehearsal"] and list(parts) == list(gpu.PARTS)
    assert [part["status"] for part in parts.values()] == ["ok"] * len(parts)
    assert result["seconds"] == pytest.approx(sum(part["seconds"] for part in parts.values()), abs=2)

    assert parts["device"]["platform"] == "cpu" and parts["device"]["versions"]["jax"] == version("jax")

    correctness = parts["correctness"]
    assert list(correctness["models"]) == ["mlp"] and correctness["random_bits_equal"] and "skipped" not in correctness
    mlp = correctness["models"]["mlp"]  # the CPU against itself
    assert mlp["losses"][1] < 0.5 * mlp["losses"][0] and mlp["loss_deviation"] == 0
    assert mlp["same_bits"] and not mlp["differing"]
    assert mlp["predictions"] > 50 and mlp["other_predictions"] == mlp["other_predictions_default_precision"] == 0
    assert len(correctness["same_bits"]) == 8 and all(correctness["same_bits"].values())
    assert correctness["checkpoint"] == {"differing": [], "other_predictions": 0}

    loops = parts["compiling"]["loops"]
    assert [(row["model"], row["kernels"]) for row in loops[::2]] == [
        *product(sizes["trained"], ("tried out", "not tried out"))]
    assert all(row["seconds"] > row["tracing_seconds"] > 0 and row["titles_per_second"] > 100 for row in loops)
    for name in ("commands", "encoder"):
        steps = parts[name].get("commands", [])
        assert [row["command"] for row in steps] == ["prepare.py", "train.py", "evaluate.py", "evaluate.py"] or (
            parts[name]["skipped"])
        assert len({row["balanced_accuracy"] for row in steps[2:]}) < 2 and all(row["seconds"] > 0 for row in steps)

    timings = parts["scatter"]["timings"]
    assert [(row["batch_size"], row["table"]) for row in timings] == list(product(sizes["scatters"], sizes["tables"]))
    for row in timings:
        assert row["ids"] == 60 * row["batch_size"] and 0.2 < row["padding"] < 0.5
        assert 20 < row["most_frequent"] < row["ids"] / 10 and row["deviation"] < 1e-4
        assert all(row[f"{name}, ms"] > 0 for name in ("as it is", "sorted", "summed", "model.update"))

    grid, skipped = parts["training"]["grid"], parts["training"]["skipped"]
    assert [(row["model"], row["batch_size"], row["chunk"]) for row in grid] == [
        *product(sizes["trained"], sizes["batches"], (8,)), *product(sizes["trained"], (64,), (16,))]
    assert len(skipped) == 2 and all("batches of 256, chunks of 16" in text for text in skipped)
    assert all(row["titles_per_second"] > 100 and row["program_bytes"] > 4e5 for row in grid)

    for row, name in zip(parts["same_bits"]["epochs"], sizes["trained"], strict=True):
        assert row["model"] == name and row["same_bits"] and row["titles_per_second"] > 100

    step, = parts["profile"]["steps"]
    assert step["step_ms"] > 0 and sum(step["shares"].values()) == pytest.approx(1, abs=1e-3)
    stages = list(step["shares"])
    assert (stages[0], stages[-1]) == ("empty loop", "scatter") and step["kernels"] > 20

    scoring, prediction = parts["evaluation"]["scoring"], parts["evaluation"]["prediction"]
    assert [row["model"] for row in scoring] == [row["model"] for row in prediction] == ["mlp", "cnn"]
    assert all(row["titles_per_second"] > 100 for row in scoring)
    assert all(row["seconds"] > 0 and 650 < row["titles"] < 750 for row in prediction)

    trainings = parts["learning"]["trainings"]
    assert len(trainings) in (2, 4) and all(row["balanced_accuracy"] > 0.2 for row in trainings)  # chance: 0.1
    assert trainings[0]["batch_size"] == 64 and trainings[0]["epochs"] == 25
    assert [row.get("seconds_given") for row in trainings[len(trainings) // 2:]] == [0.5] * (len(trainings) // 2)


# --- parts that fail, each run in a process of its own ----------------------------------------------------------------

def raises(job):
    yield {"found": [1]}
    yield {"found": [2.0000001, float("nan")]}
    raise ValueError("broken,\nas planned")


def dies(job):
    yield {"found": [1]}
    os._exit(7)


def hangs(job):
    yield {"found": [1]}
    time.sleep(600)


def works(job):
    yield {"found": {"a": 1}}
    yield {"found": {"b": job.found["raises"]["found"]}}


def no_data(folder, rows, categories):
    raise RuntimeError("no data today")


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    limits = {"raises": 60, "dies": 60, "hangs": 1, "waits": 60, "works": 60}
    monkeypatch.setattr(gpu, "PARTS", {name: ("test_gpu", limit, "small" if name == "waits" else None)
                                       for name, limit in limits.items()})
    monkeypatch.setattr(gpu, "make_data", no_data)
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):  # undone after the test
        monkeypatch.setenv(name, "")
    assert not gpu.run(tmp_path / "out.json", rehearse=True)
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(limits, "error") | {"works": "ok"}
    assert parts["raises"]["found"] == [1, 2, "nan"] and parts["raises"]["error"] == "ValueError: broken, as planned"
    assert parts["dies"]["found"] == [1] and "exit code 7" in parts["dies"]["error"]
    assert parts["hangs"]["error"] == "took too long" and parts["hangs"]["seconds"] < 10
    assert "no data today" in parts["waits"]["error"]
    assert parts["works"]["found"] == {"a": 1, "b": [1, 2, "nan"]}
    assert "NOT all parts ok" in capsys.readouterr().out


@pytest.mark.parametrize("args, words", [
    ((), ["OUT.json"]), (("out.json", "--rehearsal"), ["--rehearsal"]), (("folder/", "--rehearse"), ["folder"]),
    pytest.param(("out.json",), ["no GPU", "--rehearse"], marks=pytest.mark.slow)])
def test_a_wrong_command_gets_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert_one_line_error(command(*args, JAX_PLATFORMS="cpu"), *words)
