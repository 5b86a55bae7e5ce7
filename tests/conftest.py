"""Fixtures: a tiny labelled set, and the scripts run as a user runs them."""
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def run_script(name, *args, cwd, check=True, stdin="", env=None):
    """Run a script of the project in a folder; returns the finished process. With check, it must have succeeded."""
    done = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), *map(str, args)], cwd=cwd, input=stdin,
                          capture_output=True, text=True, env={**os.environ, "MLFLOW_TRACKING_URI": "", **(env or {})})
    if check:
        assert done.returncode == 0, done.stderr
    return done


def assert_one_line_error(done, *words):
    """Exit status 2, one line on standard error that starts with `error:` and holds the words, and no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr


def leaves_equal(first, second):
    import jax
    import numpy as np
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def checkpoint(folder):
    """All that the latest checkpoint of a run holds, without the history's times."""
    import orbax.checkpoint as ocp

    import data
    manager = data.checkpoint_manager(folder, read_only=True)
    saved = manager.restore(manager.latest_step(), args=ocp.args.Composite(
        variables=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore(), history=ocp.args.JsonRestore()))
    history = [{key: value for key, value in row.items() if key not in ("seconds", "titles_per_second")}
               for row in saved["history"]]
    return (saved["variables"], saved["optimizer"]), history


def assert_same_run(first, second):
    (one, history), (two, other) = checkpoint(first), checkpoint(second)
    assert history == other
    assert leaves_equal(one, two)


def tiny_rows(rows=400, seed=0):
    """[(title, label_quality, language, category)]: four categories of unequal size that words tell apart, a fifth of
    the titles with a word of another category."""
    draw = random.Random(seed)
    heads = {"FUNDAS": ["funda", "estuche"], "CELULARES": ["celular", "teléfono"], "MESAS": ["mesa", "escritorio"],
             "SILLAS": ["silla", "cadeira"]}
    names, weights = list(heads), (8, 4, 2, 1)
    result = []
    for i in range(rows):
        category = draw.choices(names, weights)[0]
        words = [draw.choice(heads[category]), draw.choice(["negro", "azul", "nuevo"]), f"x{draw.randrange(60)}"]
        if draw.random() < 0.2:
            words.append(draw.choice(heads[draw.choice(names)]))
        result.append((" ".join(words + [str(i)]), "reliable" if draw.random() < 0.3 else "unreliable",
                       draw.choice(["spanish", "portuguese"]), category))
    return result


def write_csv(path, rows, header="title,label_quality,language,category"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with tiny.csv and its prepared arrays in data/prepared/. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_csv(folder / "tiny.csv", tiny_rows())
    run_script("prepare", "--data", "tiny.csv", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def trained(tiny):
    """The folder of `tiny` with two trained runs, bag and filters."""
    run_script("train", "--name", "bag", "--epochs", 4, "--dim", 16, cwd=tiny)
    run_script("train", "--name", "filters", "--model", "cnn", "--epochs", 12, "--dim", 16, "--filters", 8, cwd=tiny)
    return tiny
