"""Fixtures: a tiny labelled set, and the scripts run as a user runs them."""
import bz2
import csv
import ctypes
import gc
import gzip
import io
import json
import lzma
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).resolve().parent.parent
WORD_MODELS = ("mlp", "cnn", "rnn", "transformer")  # test_encoder.py has the tests of the other one
sys.path.insert(0, str(ROOT))


def pytest_configure(config):
    """What JAX has compiled is kept while the tests run, for all their processes: half of their time went there. The
    workers of pytest-xdist inherit the folder, as do two calls of pytest whose caller names one."""
    if "KEPT_FOR_TESTS" not in os.environ:
        kept = tempfile.TemporaryDirectory()
        os.environ["KEPT_FOR_TESTS"] = kept.name
        config.add_cleanup(kept.cleanup)
    # Programs that run for a moment need not be good ones: to compile bad ones saves a third of the time.
    if "optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{os.environ['KEPT_FOR_TESTS']}/compiled",
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                   "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                   "TF_CPP_MIN_LOG_LEVEL": "3"}  # XLA takes hints that it compiled with for unknown processors


def pytest_addoption(parser):
    parser.addoption("--quarter", type=int, choices=range(4), help="one of four parts of the tests, as in .ci/run")


@pytest.hookimpl(trylast=True)  # of those that -m leaves
def pytest_collection_modifyitems(config, items):
    """Neighbours, which often take equally long, are in different parts."""
    if (quarter := config.getoption("--quarter")) is not None:
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % 4 != quarter])
        items[:] = items[quarter::4]


def pytest_collection_finish():
    """What is imported by now stays, so that no collection of garbage goes through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*forks.FEW_COLLECTIONS)


@pytest.fixture(scope="module", autouse=True)
def released():
    """What a file of tests has compiled, and what it leaves in cycles, is not kept while others are tested."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    if data := sys.modules.get("data"):
        data.tokenize_chunk.cache_clear()
        data.classify.PLAIN.clear()
    gc.collect()
    if sys.platform == "linux":  # else malloc keeps hundreds of megabytes for itself
        ctypes.CDLL(None).malloc_trim(0)


def copy_scripts(folder):
    """Copy the scripts, and what they share, into a folder."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "titles", folder / "titles", ignore=shutil.ignore_patterns("__pycache__"))


def environment(**changes):
    """The environment for a script: MLflow in the folder where it runs."""
    return {**os.environ, "MLFLOW_TRACKING_URI": "", **changes}


def add_database(name, folder, env):
    """Put an empty database of MLflow into a folder where a script would make one: that takes MLflow seconds."""
    from titles import files
    if "KEPT_FOR_TESTS" not in os.environ:  # torture.py by itself
        return
    kept, database = Path(os.environ["KEPT_FOR_TESTS"]), Path(folder) / "mlflow.db"
    if name not in ("train", "evaluate", "export") or "MLFLOW_TRACKING_URI" in (env or {}):
        return
    if database.exists() or not os.access(folder, os.W_OK):
        return
    with files.locked(kept / "mlflow.db"):
        if not (kept / "mlflow.db").exists():
            from mlflow import MlflowClient
            MlflowClient(f"sqlite:///{kept}/new.db").search_experiments()
            (kept / "new.db").rename(kept / "mlflow.db")
    shutil.copyfile(kept / "mlflow.db", database)


def run_script(name, *args, cwd, check=True, stdin="", env=None, root=ROOT, fresh=False):
    """Run a script of the project, or of a copy of it in `root`, in a folder; returns the finished process. With check,
    it must have succeeded.

    The process is a fork of one that has imported the libraries (forks.py); with `fresh`, or where the environment is
    another than that one began with (MLflow's variables aside), it is a Python that has just started. Take that to test
    how a script starts, what it imports itself, and what the hash seed or an environment variable changes."""
    add_database(name, cwd, env)
    script, env = root / f"{name}.py", environment(**(env or {}))
    if not fresh and forks.serves(env):
        done = forks.run(script, *args, cwd=cwd, stdin=stdin, env=env)
    else:
        done = subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, input=stdin,
                              capture_output=True, text=True, env=env)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_here(name, *args, cwd, check=True, stdin="", env=None):
    """As run_script, but in this process, where JAX, MLflow and the others are loaded: a second instead of ten. It
    cannot show what a process does: signals, its end, what libraries write past sys.stderr, what another hash seed
    changes. Tests of that take run_script, and so does one test at least of each flag."""
    from titles import cli
    add_database(name, cwd, env)
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode())), encoding="utf-8")
    stdout, stderr, status = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        # MLflow keeps its connection to an address, so a relative one would lead to the folder of an earlier call.
        database = f"sqlite:///{Path(cwd).resolve()}/mlflow.db"
        for variable, value in {"MLFLOW_TRACKING_URI": database, **(env or {})}.items():
            patch.setenv(variable, value)
        patch.chdir(cwd)
        for attribute, value in (("argv", [f"{name}.py", *map(str, args)]), ("stdin", stdin), ("stdout", stdout),
                                 ("stderr", stderr)):
            patch.setattr(sys, attribute, value)
        patch.setattr(cli, "exit_with", sys.exit)  # the original may end the process at once
        try:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            for thread in cli.background_threads:  # each belongs to this folder
                thread.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    stdout.flush()
    done = subprocess.CompletedProcess(args, status, stdout.buffer.getvalue().decode(), stderr.getvalue())
    assert not check or status == 0, done.stderr
    return done


def assert_one_line_error(done, *words):
    """Exit status 2, one line on standard error that starts with `error:` and holds the words, and no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr


def config_of(*flags, titles=None, meta=None, **changes):
    """The configuration that train.py makes of flags, for titles [N, L] of ids below 50; `changes` override it, `meta`
    what the data says. No test spells out a configuration, so a new setting turns none red."""
    import numpy as np

    import data
    import train
    from titles import configuration
    titles = np.arange(2, 42).reshape(8, 5) if titles is None else titles
    meta = {"vocab": [*map(str, range(50))], "labels": [*map(str, range(5))], "columns": [], "levels": 1,
            "vectors": None, "reliable_share": 0.5, "max_len": titles.shape[1], "rows": {"valid": len(titles)},
            "training_rows": [len(titles) // 5] * 5, "synthetic": False, "fingerprint": "",
            "files": {"vocab.txt": "", "labels.txt": ""}} | (meta or {})
    meta = dict.fromkeys(data.DESCRIBED, "") | meta
    return configuration.configure(train.TABLE, train.parse_args([*map(str, flags)]), meta, titles) | changes


def new_state(config, features, titles, vectors=None):
    """The state before the first step of a model of words, as train.py begins."""
    import train
    from titles import start
    return start.state_of_words(config, train.make_optimizer(config), features, titles, vectors)


def assert_documented(arrays):
    """A model file has no key, and no parameter matches no pattern, that classify.py does not document. Returns which
    keys it has: ARRAYS, ARRAYS_OF_RUN, SETTINGS, SETTINGS_OF_RUN."""
    import classify
    settings = json.loads(arrays["settings"].tobytes())
    of_run = {name.partition("/")[2].partition("/")[0] for name in arrays if name[0].isdigit()}
    keys = ({name for name in arrays if not name[0].isdigit()}, (of_run - {"params"}) | {"params/*"}, set(settings),
            set().union(*settings["members"]))
    for found, documented in zip(keys, (classify.ARRAYS, classify.ARRAYS_OF_RUN, classify.SETTINGS,
                                        classify.SETTINGS_OF_RUN), strict=True):
        assert found <= set(documented)
    assert set(settings["promising"]) < set(settings)
    for i, run in enumerate(settings["members"]):
        known = classify.ENCODERS[run["encoder"]["name"]] if "encoder" in run else classify.NETWORKS[run["model"]]
        paths = [name.partition("/params/")[2] for name in arrays if name.startswith(f"{i}/params/")]
        assert all(any(fnmatchcase(path, pattern) for pattern in known.parameters) for path in paths)
        if "encoder" not in run:
            assert all(any(fnmatchcase(path, pattern) for path in paths) for pattern in known.parameters)
    return keys


def leaves_equal(first, second):
    import jax
    import numpy as np
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def checkpoint(folder):
    """All that the latest checkpoint of a run holds, without the history's times."""
    import orbax.checkpoint as ocp

    from titles import runs
    manager = runs.checkpoint_manager(folder, read_only=True)
    saved = manager.restore(manager.latest_step(), args=ocp.args.Composite(
        variables=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore(), history=ocp.args.JsonRestore()))
    history = [{key: value for key, value in row.items() if key not in ("seconds", "titles_per_second")}
               for row in saved["history"]]
    return (saved["variables"], saved["optimizer"]), history


def fail_after_a_checkpoint(folder, *flags):
    """Train in a folder with these flags, until the first checkpoint is saved and what comes then fails."""
    import train
    from titles import runs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_metrics", lambda *_: 1 / 0)
        patch.chdir(folder)
        with pytest.raises(ZeroDivisionError):
            train.main(train.parse_args([*map(str, flags)]))


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


# --- files of titles --------------------------------------------------------------------------------------------------

COLUMNS = ("title", "label_quality", "language", "category")
PACKED = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def save(path, content):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows, columns=COLUMNS, delimiter=",", newline="\n", quoting=csv.QUOTE_MINIMAL, names=None, extra=()):
    """CSV of rows given in the order of COLUMNS, and of extra columns [(name, values)]."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerow([(names or {}).get(name, name) for name in columns] + [name for name, _ in extra])
    for i, row in enumerate(rows):
        writer.writerow([dict(zip(COLUMNS, row, strict=True))[name] for name in columns] + [x[i] for _, x in extra])
    return file.getvalue()


def as_json(rows, columns=COLUMNS, names=None, ascii_only=False, **extra):
    return "".join(json.dumps({(names or {}).get(name, name): value for name, value in zip(COLUMNS, row, strict=True)
                               if name in columns} | extra, ensure_ascii=ascii_only) + "\n" for row in rows)


def as_fasttext(rows):
    return "".join(f"__label__{row[3]} {' '.join(row[0].split())}\n" for row in rows)


def corrupted(content):
    """The bytes with zeros in their middle."""
    middle = len(content) // 2
    return content[:middle] + bytes(60) + content[middle + 60:]


def snapshot(folder="."):
    """What lies in a folder: {path: content, or None for a folder}."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


@pytest.fixture
def prep(tmp_path, monkeypatch, capsys):
    """prepare.py as run_script runs it, but in this process; the working folder is empty at first."""
    import prepare
    from titles import cli

    def prep(*args, check=True):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        monkeypatch.setattr(cli, "exit_with", sys.exit)  # the original may end the process at once
        capsys.readouterr()
        status = 0
        try:
            cli.run(prepare.main)
        except SystemExit as stop:
            status = stop.code
        done = subprocess.CompletedProcess(args, status, *capsys.readouterr())
        assert not check or status == 0, done.stderr
        return done

    monkeypatch.chdir(tmp_path)
    return prep


def meta(folder="data/prepared"):
    """What meta.json says of a prepared folder."""
    return json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))


def texts(split, folder="data/prepared"):
    """The titles of a prepared split as they came."""
    return (Path(folder) / f"{split}_text.txt").read_text(encoding="utf-8").split("\n")[:-1]
