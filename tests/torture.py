"""Kill the scripts at random moments or take their disk away, go on, and compare with what was never disturbed. pytest
runs a round of it (test_faults.py); this is the long form:

    python tests/torture.py --rounds 100           # about 25 minutes on two cores
    python tests/torture.py --rounds 100 --seed 7

Half of the kills come by the clock; the others come just before a file operation (create, rename, remove, make a
folder) that is drawn from all that an undisturbed command does, so inside saves and between renames. Where root may
mount a small disk, every third time it has little room, or is read-only, instead; the script must then succeed, or
end in one line and exit status 2, warnings of what MLflow missed aside. After prepare.py the prepared data must be
the former or the new, whole; prepared again they must equal the undisturbed ones byte for byte. A training is
disturbed one to three times; when it ends at last, the checkpoint (parameters, optimizer, table, history), metrics
and predictions must be those of the undisturbed training, no other file may be left, and MLflow must show one
finished run. A disturbed evaluate.py leaves the former report or the new.
"""
import argparse
import contextlib
import csv
import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import ROOT, assert_one_line_error, assert_same_run, run_here, run_script, tiny_rows, write_csv

import data

TRAINING = ("--epochs", 6, "--dim", 16)
SAVING = ("--save-seconds", 0)  # after every epoch, so that there are saves to be disturbed; or two at the end
DISK = 1 << 30
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def victim(script, fatal):
    """In a process of its own: run a script, die just before its file operation number `fatal`, or say how many there
    were."""
    here, count = os.getcwd() + os.sep, 0

    def hook(event, args):
        nonlocal count
        if event not in CHANGES and not (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(args[0], (str, bytes)) and os.path.abspath(os.fsdecode(args[0])).startswith(here):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        print("operations:", count)


def start(folder, script, *args, fatal=0):
    """A script under `victim`, as a process that runs."""
    command = [sys.executable, __file__, "--victim", ROOT / f"{script}.py", fatal, *args]
    return subprocess.Popen([*map(str, command)], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            env={**os.environ, "MLFLOW_TRACKING_URI": "", "PYTHONPATH": str(ROOT)})


def whole(folder, script, *args):
    """Run a script undisturbed: (seconds, number of file operations, bytes of disk)."""
    started, used = time.time(), shutil.disk_usage(folder).used
    output, _ = (process := start(folder, script, *args)).communicate()
    assert process.returncode == 0, output
    return time.time() - started, int(output.split()[-1]), shutil.disk_usage(folder).used - used


def remount(folder, options):
    return subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True).returncode == 0


def disturbed(folder, draw, cost, script, *args):
    """Run a script that is killed or finds no room, if it does not end before; returns a description."""
    seconds, operations, need = cost[script]
    if os.path.ismount(folder) and draw.random() < 1 / 3:
        options = draw.choice(["ro", f"size={shutil.disk_usage(folder).used + draw.randrange(need)}"])
        assert remount(folder, options), options
        done = run_script(script, *args, cwd=folder, check=False)
        done.stderr = "".join(f"{line}\n" for line in done.stderr.splitlines() if not line.startswith("warning: "))
        assert done.returncode or not done.stderr, done.stderr
        if done.returncode:
            assert_one_line_error(done)
        assert remount(folder, f"rw,size={DISK}")
        return f"disk {options}, status {done.returncode}"
    fatal = draw.randint(1, operations) if draw.random() < 0.5 else 0
    process = start(folder, script, *args, fatal=fatal)
    moment = draw.uniform(0, seconds)
    try:
        output, _ = process.communicate(timeout=None if fatal else moment)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output
    return f"operation {fatal}" if fatal else f"{moment:.2f} s"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in ("seconds", "titles_per_second")}
                for row in csv.DictReader(file)]


def predictions(folder, name):
    return run_here("evaluate", "--ckpt", name, "--predict", "data/prepared/valid_text.txt", "--top", 3,
                    cwd=folder).stdout


def prepare_round(folder, draw, cost, wanted):
    seed = draw.choice(list(wanted))
    flags = ("--data", "tiny.csv", "--seed", seed)
    moment = disturbed(folder, draw, cost, "prepare", *flags)
    if draw.random() < 0.5:  # whoever reads next tidies up
        data.load_prepared(folder / "data/prepared", data.SPLITS)
        assert content(folder / "data/prepared") in wanted.values(), "prepared data that nobody asked for"
    whole(folder, "prepare", *flags)
    assert content(folder / "data/prepared") == wanted[seed], "prepared data differ"
    assert os.listdir(folder / "data") == ["prepared"], "a temporary folder was left"
    return f"prepare, {moment}"


def train_round(folder, draw, cost, name):
    moments = []
    for _ in range(draw.randint(1, 3)):
        begun = (folder / "runs" / name / "config.json").exists()
        moments.append(disturbed(folder, draw, cost, "train", *(
            ("--resume", name) if begun else ("--name", name, *TRAINING)), *draw.choice([SAVING, ()])))
    begun = (folder / "runs" / name / "config.json").exists()
    whole(folder, "train", *(("--resume", name) if begun else ("--name", name, *TRAINING)), *SAVING)
    run, reference = folder / "runs" / name, folder / "runs/reference"
    assert_same_run(reference, run)
    assert metrics(run) == metrics(reference), "metrics differ"
    assert predictions(folder, name) == predictions(folder, "reference"), "predictions differ"
    for place, extra in (("", 0), ("checkpoints", 1)):  # killed after the last save it keeps the one before
        left, wanted = (set(os.listdir(path / place)) for path in (run, reference))
        assert wanted <= left and len(left - wanted) <= extra, f"files: {left}, not {wanted}; {moments}"
    assert not list((folder / "runs").glob(".*")), "a temporary folder was left"
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:  # MLflow's client would keep it open
        runs = database.execute("select status from runs where name = ?", [name]).fetchall()
    assert runs == [("FINISHED",)], f"MLflow has {runs}"
    return f"train, {', '.join(moments)}"


def evaluate_round(folder, draw, cost, wanted):
    report, former = folder / "runs/tested/test-best", wanted
    if draw.random() < 0.5:
        shutil.rmtree(report)
        former = {}
    moment = disturbed(folder, draw, cost, "evaluate", "--ckpt", "tested")
    assert content(report) in (former, wanted), "half a report"
    whole(folder, "evaluate", "--ckpt", "tested")
    assert content(report) == wanted, "the report differs"
    assert {path.name for path in report.parent.iterdir()} - {"test-best"} == set(
        os.listdir(folder / "runs/reference")), "a temporary file was left"
    return f"evaluate, {moment}"


@contextlib.contextmanager
def disk_in(folder):
    """A file system of its own in a folder, where that is permitted."""
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def torture(rounds, seed, folder):
    """Raises AssertionError at the first loss."""
    draw, wanted, cost = random.Random(seed), {}, {}
    with disk_in(folder):
        write_csv(folder / "tiny.csv", tiny_rows())
        for data_seed in (1, 0):
            cost.setdefault("prepare", whole(folder, "prepare", "--data", "tiny.csv", "--seed", data_seed))
            wanted[data_seed] = content(folder / "data/prepared")
        assert wanted[0] != wanted[1]
        cost["train"] = whole(folder, "train", "--name", "reference", *TRAINING, *SAVING)
        shutil.copytree(folder / "runs/reference", folder / "runs/tested")
        cost["evaluate"] = whole(folder, "evaluate", "--ckpt", "tested")
        report = content(folder / "runs/tested/test-best")
        for number in range(rounds):
            if number % 4 == 0:
                done = prepare_round(folder, draw, cost, wanted)
                whole(folder, "prepare", "--data", "tiny.csv", "--seed", 0)
            elif number % 4 == 2:
                done = evaluate_round(folder, draw, cost, report)
            else:
                done = train_round(folder, draw, cost, f"round-{number}")
            print(number, done, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torture(args.rounds, args.seed, Path(folder))
    print(f"{args.rounds} rounds, nothing lost")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        _, _, script, fatal, *sys.argv[1:] = sys.argv
        sys.argv[0] = script
        victim(script, int(fatal))
    else:
        main()
