"""What the program survives: kills, and others at work at the same time. The long form of the kills is torture.py."""
import bz2
import gzip
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import fuzz
import pytest
import torture
from conftest import ROOT, assert_one_line_error, assert_same_run, environment, run_here, run_script
from mlflow import MlflowClient

import data


@pytest.mark.parametrize("name, packer", [("titles.csv", gzip), ("titles.jsonl", bz2), ("titles.txt", lzma),
                                          ("words.vec", gzip), ("new.txt", bz2)])
def test_a_decompression_bomb_stops(trained, tmp_path, name, packer):
    """200 MB of white space behind a sound beginning, in a few hundred KB at most."""
    start = {"titles.csv": b"title,category\nfunda,a\n", "titles.jsonl": b'{"title": "funda", "category": "a"}\n',
             "titles.txt": b"__label__a funda\n"}.get(name, b"funda 1 2\n")
    bomb = tmp_path / name
    with packer.open(bomb, "wb") as file:
        file.write(start)
        for _ in range(200):
            file.write((b" " * 9999 + b"\n") * 100)
    flags = ["--vectors", bomb, "--data", trained / "tiny.csv"] if name == "words.vec" else ["--data", bomb]
    if name == "new.txt":
        done = run_here("evaluate", "--ckpt", "bag", "--predict", bomb, "--out", tmp_path / "out", cwd=trained,
                        check=False)
    else:
        done = run_script("prepare", *flags, "--out", tmp_path / "out", "--max-bad-rows", 10_000_000, cwd=tmp_path,
                          check=False)
    assert_one_line_error(done, name, "100-fold")
    assert os.listdir(tmp_path) == [name]


def test_an_endless_line_is_not_read_into_memory(trained, tmp_path):
    for start in (b'{"title": "', b"__label__a "):
        (tmp_path / "titles").write_bytes(start + b"x" * (9 << 20) + b"\n")
        done = run_script("prepare", "--data", "titles", cwd=tmp_path, check=False)
        assert_one_line_error(done, "titles:1", "8 MB")
    for start, line in ((b"", 1), (b"funda\n", 2), (b"title\nfunda\n", 3)):
        (tmp_path / "titles").write_bytes(start + b"x" * (9 << 20) + b"\n")
        done = run_here("evaluate", "--ckpt", "bag", "--predict", tmp_path / "titles", cwd=trained, check=False)
        assert_one_line_error(done, f"titles:{line}", "8 MB")
    (tmp_path / "titles").write_bytes(b'title\nfunda\n"' + (b"x" * 99 + b"\n") * 100_000)
    done = run_here("evaluate", "--ckpt", "bag", "--predict", tmp_path / "titles", cwd=trained)
    assert "titles:3: an unclosed quote" in done.stderr and done.stdout.count("\n") == 100_001


@pytest.mark.slow
def test_a_report_is_the_former_or_the_new_one_whole(trained, tmp_path):
    """On a disk that is full or read-only, where one may be mounted, and after a kill between two renames. The scores
    are shown and logged all the same."""
    def content():
        return {path.name: path.read_bytes() for path in report.iterdir()}

    def is_left(why):
        done = run_script("evaluate", *flags, cwd=trained)
        assert done.stderr == (f"warning: {report}: the report is not written there ({why}), only its scores are shown "
                               "and logged\n")
        assert done.stdout == shown.rpartition("report: ")[0] and shown.endswith(f"report: {report}/\n")
        assert content() == former and os.listdir(report.parent) == files
        assert len(client.get_metric_history(run_id, "valid_brier")) > logged

    flags, report = ("--ckpt", tmp_path / "bag", "--split", "valid"), tmp_path / "bag/valid-best"
    with torture.disk_in(tmp_path) as mounted:
        shutil.copytree(trained / "runs/bag", tmp_path / "bag")
        shown = run_here("evaluate", *flags, cwd=trained).stdout
        (report / "notes.txt").write_text("mine")
        (report / "report.json").write_text("older")
        client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
        run_id = (tmp_path / "bag/mlflow.txt").read_text().strip()
        logged = len(client.get_metric_history(run_id, "valid_brier"))
        former, files = content(), os.listdir(report.parent)
        if mounted:
            torture.remount(tmp_path, f"size={shutil.disk_usage(tmp_path).used + 20_000}")
            is_left("No space left on device")
            torture.remount(tmp_path, "ro")
            is_left("Read-only file system")
            assert run_here("evaluate", "--ckpt", tmp_path / "bag", "--predict", "-", cwd=trained,
                            stdin="funda\n").stdout.startswith("FUNDAS")
            torture.remount(tmp_path, f"rw,size={torture.DISK}")
        report.rename(report.with_name("valid-best.tmp-old"))
        run_here("evaluate", *flags, cwd=trained)
        assert content().keys() == former.keys() and content()["notes.txt"] == b"mine"
        assert content()["report.json"] != b"older"
        assert sorted(os.listdir(report.parent)) == sorted(files)


@pytest.mark.slow
def test_nothing_is_unpickled(trained, tmp_path):
    """Not by a script, nor by a library that it calls: Python's audit sees every class that a pickle asks for."""
    shutil.copytree(trained / "data", tmp_path / "data")
    shutil.copytree(trained / "runs/bag", tmp_path / "runs/bag")
    audited = ("import os, runpy, shlex, sys; sys.path.insert(0, sys.argv[1]); commands = sys.argv[2:];"
               "sys.addaudithook(lambda event, args: os._exit(99) if event == 'pickle.find_class' else None);"
               "[runpy.run_path(sys.argv[0], run_name='__main__') for sys.argv in map(shlex.split, commands)]")

    def status(*commands):
        return subprocess.run([sys.executable, "-c", audited, ROOT, *commands], cwd=tmp_path,
                              stdout=subprocess.DEVNULL, env=environment()).returncode

    (tmp_path / "trap.py").write_text("import collections, pickle; pickle.loads(pickle.dumps(collections.Counter()))")
    assert status("trap.py") == 99
    assert status(*(shlex.join([f"{ROOT}/{script}.py", *args]) for script, *args in (
        ("train", "--resume", "bag"), ("evaluate", "--ckpt", "bag"),
        ("evaluate", "--ckpt", "bag", "--predict", "data/prepared/test_text.txt"),
        ("prepare", "--data", f"{trained}/tiny.csv")))) == 0


def background(name, *args, cwd):
    command = [sys.executable, "-u", str(ROOT / f"{name}.py"), *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment())


def mlflow_status(folder, name):
    runs = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    return [run.info.status for run in runs if run.info.run_name == name]


@pytest.mark.slow
def test_a_round_of_torture(tmp_path):
    torture.torture(1, 5, tmp_path)


@pytest.mark.slow
def test_damaged_files_are_refused_or_harmless(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    count = fuzz.fuzz(150, 1, tmp_path)
    for kind in ("raw", "prepared", "run"):  # it damages what matters
        assert sum(often for what, often in count.items() if what.startswith(kind) and "refused" in what) > 10


def test_a_full_disk_under_mlflow_is_told_in_lines(trained, tmp_path):
    with torture.disk_in(tmp_path) as mounted:
        if not mounted:
            pytest.skip("may not mount a file system")
        shutil.copytree(trained / "data", tmp_path / "data")
        shutil.copy(trained / "mlflow.db", tmp_path)
        torture.remount(tmp_path, f"size={shutil.disk_usage(tmp_path).used + 40_000}")
        done = run_script("train", "--epochs", 1, "--dim", 8, cwd=tmp_path, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[-1].startswith("error: "), done.stderr
    assert all(line.startswith("warning: ") for line in lines[:-1]), done.stderr


@pytest.mark.slow
def test_a_kill_before_the_id_of_the_mlflow_run_is_kept(tiny, tmp_path):
    """Resumed, it goes on with the run that it had begun there."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    kill = ("import os, runpy, sys; script = sys.argv[1]; sys.path.insert(0, os.path.dirname(script));"
            "from titles import files; write = files.atomic_write;"
            "files.atomic_write = lambda path, *mode: write(path, *mode) if path.name != 'mlflow.txt' "
            "else os.kill(os.getpid(), 9);"
            "sys.argv[:] = [script, '--name', 'cut', '--epochs', '1']; runpy.run_path(script, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", kill, ROOT / "train.py"], cwd=tmp_path,
                          env=environment())
    assert done.returncode == -9 and mlflow_status(tmp_path, "cut") == ["RUNNING"]
    run_script("train", "--resume", "cut", cwd=tmp_path)
    assert mlflow_status(tmp_path, "cut") == ["FINISHED"]
    run_id = (tmp_path / "runs/cut/mlflow.txt").read_text().strip()
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id)
    assert "dim" in run.data.params and "valid/loss" in run.data.metrics


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(tiny):
    first = background("train", "--name", "busy", "--epochs", 5000, cwd=tiny)
    for line in first.stdout:
        if line.startswith("epoch   1  "):
            break
    assert_one_line_error(run_script("train", "--resume", "busy", cwd=tiny, check=False), "runs/busy", "at work")
    assert_one_line_error(run_script("train", "--name", "busy", cwd=tiny, check=False), "runs/busy", "--resume busy")
    first.kill()
    first.communicate()
    again = background("train", "--resume", "busy", cwd=tiny)
    assert any(line.startswith("run busy") for line in again.stdout)
    again.kill()
    again.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("script, seconds", [("train", 0.3), ("train", 0.9), ("evaluate", 1.2)])
def test_ctrl_c_while_libraries_load_is_quiet(trained, script, seconds):
    process = background(script, cwd=trained)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "" and process.returncode in (130, -signal.SIGINT)


@pytest.mark.slow
def test_two_trainings_and_an_evaluation_at_the_same_time(trained, tmp_path):
    """They share the prepared data and a new MLflow database, and each does what it does alone."""
    shutil.copytree(trained / "data", tmp_path / "data")
    shutil.copytree(trained / "runs/bag", tmp_path / "runs/bag")
    flags = ("--epochs", 4, "--dim", 16)
    together = [background("train", "--name", "one", *flags, cwd=tmp_path),
                background("train", "--name", "two", "--seed", 1, *flags, cwd=tmp_path),
                background("evaluate", "--ckpt", "bag", "--json", cwd=tmp_path)]
    output = [process.communicate() for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], output
    assert output[2][0] == run_here("evaluate", "--ckpt", "bag", "--json", cwd=tmp_path).stdout
    assert_same_run(tmp_path / "runs/one", trained / "runs/bag")
    assert mlflow_status(tmp_path, "one") == mlflow_status(tmp_path, "two") == ["FINISHED"]
    same = [background("train", "--name", "same", *flags, cwd=tmp_path) for _ in range(2)]
    errors = [process.communicate()[1] for process in same]
    assert sorted(process.returncode for process in same) == [0, 2], errors
    assert_same_run(tmp_path / "runs/same", trained / "runs/bag")
    assert mlflow_status(tmp_path, "same") == ["FINISHED"]
    assert sorted(os.listdir(tmp_path / "runs")) == ["bag", "one", "same", "two"]
    data.load_prepared(tmp_path / "data/prepared")
