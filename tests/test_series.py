"""Several trainings with one command (titles/series.py), and all of them as one classifier (--ckpt all)."""
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    ROOT,
    assert_one_line_error,
    assert_same_run,
    environment,
    fail_after_a_checkpoint,
    run_here,
    tiny_rows,
    write_csv,
)

import data
import evaluate
from titles import cli, costs, files, progress, runs, series

SMALL = ("--epochs", 3, "--dim", 16, "--filters", 8)
BOTH = ("--model", "mlp", "cnn", "--refit", *SMALL)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared data of enough rows that an epoch has several chunks."""
    folder = tmp_path_factory.mktemp("series")
    write_csv(folder / "tiny.csv", tiny_rows(900))
    run_here("prepare", "--data", "tiny.csv", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def both(prepared):
    """What the command for two models and their refits has printed."""
    return run_here("train", *BOTH, cwd=prepared).stdout


@pytest.fixture
def copy(both, prepared, tmp_path):
    """A copy of the folder with its runs, to change it."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def fresh(prepared, tmp_path):
    """A copy of the prepared data, without a run."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def expecting(monkeypatch):
    """A function that has the models take so many seconds, {model: seconds}."""
    def expect(seconds):
        monkeypatch.setattr(costs, "expected", lambda plan, loop: costs.Costs(
            before=seconds[plan.config["model"]], compiling=0, steps=plan.config["steps"], step=1e-9,
            epochs=plan.config["epochs"], judging=0, saving=0, bytes=0, device=0))
    return expect


def names(folder):
    return sorted(path.name for path in (folder / "runs").iterdir())


def scores(folder, *ckpt):
    return json.loads(run_here("evaluate", "--ckpt", *ckpt, "--json", cwd=folder).stdout)


def test_one_command_leaves_what_single_ones_do(both, prepared, fresh):
    assert names(prepared) == ["cnn-1", "cnn-1-refit", "mlp-1", "mlp-1-refit"]
    for model in ("mlp", "cnn"):
        run_here("train", "--model", model, *SMALL[:len(SMALL) - 2 * (model == "mlp")], cwd=fresh)
        run_here("train", "--refit", f"{model}-1", cwd=fresh)
    for name in names(prepared):
        assert_same_run(prepared / f"runs/{name}", fresh / f"runs/{name}")


def test_it_ends_with_the_command_that_uses_all(both, prepared):
    *_, together, test = both.splitlines()
    score, mlp, cnn = map(float, re.fullmatch(
        r"all together: balanced accuracy ([\d.]+) on \d+ validation rows, of the runs before their refits; "
        r"weights mlp-1-refit ([\d.]+), cnn-1-refit ([\d.]+)", together).groups())
    assert 0.5 < score <= 1 and mlp + cnn == pytest.approx(1, abs=0.011)
    assert test == "test them: python evaluate.py --ckpt all"
    by_name = scores(prepared, "mlp-1", "cnn-1", "--split", "valid")
    assert score == pytest.approx(by_name["balanced_accuracy"], abs=0.02)
    assert scores(prepared, "all")["run"] in ("mlp-1-refit", "cnn-1-refit")
    assert {folder.name for folder, _ in runs.find_all(prepared / "runs")} == {"mlp-1-refit", "cnn-1-refit"}
    assert both.count("\nlook at it:") == 1 and "test it:" not in both


def test_data_that_was_prepared_anew_meanwhile_is_said(copy, monkeypatch):
    assert "prepared anew" not in run_here("train", *BOTH, cwd=copy).stderr
    monkeypatch.setattr(data, "fingerprint_of", lambda folders: "another month's")
    assert "warning: data/prepared: was prepared anew meanwhile" in run_here("train", *BOTH, cwd=copy).stderr


@pytest.mark.slow
def test_what_is_there_is_not_trained_again(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("*") if path.is_file()}
    said = run_here("train", *BOTH, cwd=copy).stdout.splitlines()
    assert said[:5] == ["0 of 4 trainings to do", *(f"{what}: is there already, as {name}" for what, name in (
        ("mlp", "mlp-1"), ("cnn", "cnn-1"), ("mlp, refit", "mlp-1-refit"), ("cnn, refit", "cnn-1-refit")))]
    assert said[-1] == "test them: python evaluate.py --ckpt all"
    assert before == {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("*") if path.is_file()}

    # A refit alone is missing, and then another setting asks for other runs.
    shutil.rmtree(copy / "runs/cnn-1-refit")
    said = run_here("train", *BOTH, cwd=copy).stdout
    assert "1 of 4 trainings to do" in said and "--- 4 of 4: cnn, refit;" in said
    run_here("train", *BOTH[:3], "--lr", 0.01, *SMALL, cwd=copy)
    assert {"mlp-2", "cnn-2"} < {*names(copy)} and "mlp-2-refit" not in names(copy)


def test_the_same_data_prepared_with_another_command_is_the_same(copy):
    (copy / "tiny.csv").rename(copy / "other.csv")
    run_here("prepare", "--data", "other.csv", cwd=copy)
    assert "0 of 4 trainings to do" in run_here("train", *BOTH, cwd=copy).stdout


@pytest.mark.slow
def test_a_refit_of_a_run_that_is_gone_is_none(copy):
    shutil.rmtree(copy / "runs/mlp-1")
    said = run_here("train", *BOTH, cwd=copy).stdout
    assert "run mlp-2 on" in said and "run mlp-2-refit on" in said  # a new mlp-1 would have the refit of another

    shutil.rmtree(copy / "runs/cnn-1")
    run_here("train", "--model", "cnn", "--name", "cnn-1", "--lr", 0.02, *SMALL, cwd=copy)
    assert runs.finished_refit(copy / "runs/cnn-1") is None
    done = run_here("train", "--model", "cnn", "--name", "mlp-1", "--refit", *SMALL, cwd=copy, check=False)
    assert_one_line_error(done, "mlp-1-refit: a run of this name is there")
    assert not (copy / "runs/mlp-1").exists()


def test_one_training_that_fails_does_not_keep_the_others_from_theirs(fresh, monkeypatch):
    lock = runs.training_lock

    def refuse(folder):
        if folder.name.startswith("cnn"):
            raise cli.UserError("something is wrong")
        return lock(folder)

    monkeypatch.setattr(runs, "training_lock", refuse)
    done = run_here("train", *BOTH, cwd=fresh, check=False)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error: cnn: something is wrong", "error: 1 of 4 trainings failed, see above"]
    assert "cnn, refit: left out" in done.stdout
    assert done.stdout.splitlines()[-1] == "test it: python evaluate.py --ckpt mlp-1-refit"


def test_costs_are_of_what_is_not_there(copy):
    shutil.rmtree(copy / "runs/cnn-1-refit")
    said = run_here("train", *BOTH, "--costs", cwd=copy).stdout.splitlines()
    assert said[:3] == ["mlp: is there already, as mlp-1", "cnn: is there already, as cnn-1",
                        "mlp, refit: is there already, as mlp-1-refit"]
    assert len(said) == 4 and said[3].startswith("all 1 about ")
    done = run_here("train", "--resume", "mlp-1", "--costs", cwd=copy, check=False)
    assert_one_line_error(done, "--costs", "--resume")


@pytest.mark.slow
def test_other_scripts_or_other_data_make_other_runs(copy, monkeypatch):
    monkeypatch.setattr(runs, "changed_source", lambda folder, config: ["train.py"] * (folder.name == "mlp-1"))
    said = run_here("train", *BOTH[:3], *SMALL, cwd=copy).stdout
    assert "cnn: is there already, as cnn-1" in said and "run mlp-2 on" in said
    write_csv(copy / "tiny.csv", tiny_rows(880))
    run_here("prepare", "--data", "tiny.csv", cwd=copy)
    said = run_here("train", "--model", "cnn", "--seeds", 1, "--refit", *SMALL, cwd=copy).stdout
    assert "2 of 2 trainings to do" in said and "run cnn-2 on" in said


@pytest.mark.slow
def test_stopped_it_goes_on_with_the_same_command_to_the_same_bits(both, prepared, fresh):
    command = [sys.executable, str(ROOT / "train.py"), *map(str, BOTH), "--save-seconds", "0"]
    with subprocess.Popen(command, cwd=fresh, env=environment(PYTHONUNBUFFERED="1"), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("ready after") and "cnn-1" in names(fresh):
                process.send_signal(signal.SIGINT)
                break
        output, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    again = cli.quoted(["train.py", *map(str, BOTH)])
    assert f"go on with: python {ROOT / again}" in output
    assert names(fresh) == ["cnn-1", "mlp-1"]

    said = run_here("train", *BOTH, cwd=fresh).stdout
    assert "mlp: is there already, as mlp-1" in said and "--- 2 of 4: cnn;" in said
    for name in names(prepared):
        assert_same_run(prepared / f"runs/{name}", fresh / f"runs/{name}")


@pytest.mark.slow
def test_seeds_are_trained_round_by_round_and_used_together(fresh):
    seeds = ("--seeds", 2, "--seed", 7)
    said = run_here("train", "--model", "mlp", "cnn", *seeds, "--name", "x", *SMALL, cwd=fresh).stdout
    assert names(fresh) == ["x-cnn-7", "x-cnn-8", "x-mlp-7", "x-mlp-8"]
    seeds = {name: files.read_json(fresh / f"runs/{name}/config.json")["seed"] for name in names(fresh)}
    assert all(name.endswith(str(seed)) for name, seed in seeds.items())
    assert [line.split(":")[1].split(";")[0].strip() for line in said.splitlines() if line.startswith("---")] == [
        "mlp, seed 7", "cnn, seed 7", "mlp, seed 8", "cnn, seed 8"]
    assert said.splitlines()[-1] == "test them: python evaluate.py --ckpt x-mlp-7 x-cnn-7 x-mlp-8 x-cnn-8"


@pytest.mark.slow
def test_all_is_the_best_run_of_every_model_or_its_refit(copy):
    assert runs.find_all(copy / "runs")[0] == runs.find("best", copy / "runs")
    assert {folder.name for folder, _ in runs.find_all(copy / "runs")} == {"mlp-1-refit", "cnn-1-refit"}

    # A worse one of a model changes nothing, nor one that is as good but has no refit; else the newer one is taken.
    run_here("train", "--model", "mlp", "--epochs", 1, "--table-lr", 1e-4, "--dim", 16, "--name", "worse", cwd=copy)
    run_here("train", "--model", "cnn", *SMALL, "--name", "newer", cwd=copy)
    assert {folder.name for folder, _ in runs.find_all(copy / "runs")} == {"mlp-1-refit", "cnn-1-refit"}
    shutil.rmtree(copy / "runs/cnn-1-refit")
    found = [folder.name for folder, _ in runs.find_all(copy / "runs")]
    assert sorted(found) == ["mlp-1-refit", "newer"]
    by_name = scores(copy, *found)
    assert scores(copy, "all") == by_name and by_name["run"] == found[0]

    # Of other data than that of the best run there is none among them, where no data is named.
    write_csv(copy / "other.csv", tiny_rows(500, seed=1))
    run_here("prepare", "--data", "other.csv", "--out", "other", cwd=copy)
    run_here("train", "--data", "other", "--model", "rnn", "--units", 4, "--epochs", 1, "--dim", 16, cwd=copy)
    both = {folder.name for folder, _ in runs.find_all(copy / "runs")}
    assert both in ({"rnn-1"}, {*found})

    # The same from Python, and as a file.
    classifier = evaluate.load("all", folder=copy / "runs")
    assert [folder.name for folder in classifier.folders] == found
    run_here("export", "--ckpt", "all", "--out", "small", cwd=copy)
    done = subprocess.run([sys.executable, "small/classify.py", "small/model.npz"], cwd=copy, text=True,
                          input="funda negro\n", capture_output=True)
    assert done.stdout.startswith("FUNDAS\t") and done.returncode == 0


@pytest.mark.slow
def test_all_of_no_run_and_of_one(fresh):
    assert_one_line_error(run_here("evaluate", "--ckpt", "all", cwd=fresh, check=False), "no trained run here")
    run_here("train", *SMALL[:4], "--name", "one", cwd=fresh)
    assert scores(fresh, "all") == scores(fresh, "one")
    assert_one_line_error(run_here("evaluate", "--ckpt", "all", "one", cwd=fresh, check=False), "twice")


# --- within a time ----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_what_does_not_fit_is_left_out_the_most_useful_first(fresh, expecting):
    expecting({"mlp": 10, "cnn": 1e7, "rnn": 300})
    said = run_here("train", "--model", "rnn", "cnn", "mlp", "--within", "10m", *SMALL, "--units", 4, cwd=fresh).stdout
    assert [line.split(":")[1].split(";")[0].strip() for line in said.splitlines() if line.startswith("---")] == [
        "mlp", "rnn"]  # by what they took by then, 300 expected seconds fit
    assert re.search(r"cnn: left out, it would take about [\d:]+, and [\d:]+ are left", said)
    assert said.splitlines()[-1] == "test them: python evaluate.py --ckpt all"
    assert names(fresh) == ["mlp-1", "rnn-1"]


@pytest.mark.slow
def test_the_first_trains_for_the_epochs_that_fit(fresh, expecting):
    expecting({"mlp": 1000, "cnn": 10})
    run_here("train", "--model", "mlp", "--within", "9m", "--epochs", 10, "--dim", 16, cwd=fresh)
    config = files.read_json(fresh / "runs/mlp-1/config.json")
    assert config["epochs"] == 5 and config["steps"] % 5 == 0

    # With a time it counts as done, but not for one of more than twice its epochs; without a time it is not the
    # training that is asked for.
    again = run_here("train", "--model", "mlp", "--within", "1h", "--epochs", 11, "--dim", 16, cwd=fresh).stdout
    assert "1 of 1 trainings" in again and files.read_json(fresh / "runs/mlp-2/config.json")["epochs"] == 11
    shutil.rmtree(fresh / "runs/mlp-2")
    flags = ("--model", "mlp", "--epochs", 10, "--dim", 16)
    assert "0 of 1 trainings" in run_here("train", *flags, "--within", "9m", cwd=fresh).stdout
    assert "1 of 1 trainings" in run_here("train", *flags, "--refit", "--within", "9m", cwd=fresh).stdout.replace(
        "1 of 2", "1 of 1")
    assert "2 of 2 trainings" in run_here("train", *flags, "--refit", cwd=fresh).stdout
    assert files.read_json(fresh / "runs/mlp-2/config.json")["epochs"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_deadline_saves_and_uses_what_is_there(fresh, monkeypatch, epochs):
    """The deadline comes in an epoch after so many: of the first nothing but `latest` is there."""
    shown, real = [], progress.Progress.show

    def show(self, step, loss):  # the first model trains undisturbed
        shown.append(step)
        if self.config["model"] == "cnn" and step > (epochs - 1) * self.config["steps"] // self.config["epochs"]:
            for thread in threading.enumerate():
                if isinstance(thread, threading.Timer) and thread.args == [progress.TIME_UP]:
                    thread.function(*thread.args)
        return real(self, step, loss)

    monkeypatch.setattr(progress.Progress, "show", show)
    flags = ("--model", "mlp", "cnn", "--epochs", 5, "--dim", 16, "--filters", 8, "--batch-size", 8)
    said = run_here("train", *flags, "--within", "2h", cwd=fresh).stdout.splitlines()
    assert any(line.startswith("the time is up: stopped at step ") and "go on with: python " in line for line in said)
    assert said[-1] == "test " + (
        "it: python evaluate.py --ckpt mlp-1" if epochs == 1 else "them: python evaluate.py --ckpt all")
    monkeypatch.undo()
    said = run_here("train", *flags, cwd=fresh).stdout
    assert "mlp: is there already, as mlp-1" in said
    assert runs.is_over(runs.config_of(fresh / "runs/cnn-1"), runs.read_metrics(fresh / "runs/cnn-1"))


def test_a_run_goes_on_within_a_time(copy):
    shutil.rmtree(copy / "runs/mlp-1-refit")
    said = run_here("train", "--refit", "mlp-1", "--within", "1h", cwd=copy).stdout
    assert "test it: python evaluate.py --ckpt mlp-1-refit" in said


def test_the_limit_ends_what_looks_at_no_clock():
    code = ("import time; from titles import series\nwith series.ended_at(time.time() + 0.2):\n    time.sleep(30)")
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert_one_line_error(done, "--within", "the same command goes on")
    assert time.time() - begun < 25
    with series.ended_at(time.time() + 0.2):
        pass
    time.sleep(0.4)  # else this would be the end of the tests


def test_resume_without_a_name_begins_and_goes_on(fresh):
    flags = ("--resume", "--name", "x", *SMALL[:4], "--save-seconds", 0)
    with pytest.MonkeyPatch.context() as patch:  # killed when there is no checkpoint yet, then after the first one
        patch.setattr(runs, "checkpoint_manager", lambda _: 1 / 0)
        fail_after_a_checkpoint(fresh, *flags)
    assert names(fresh) == ["x"] and not runs.history_of(fresh / "runs/x")
    fail_after_a_checkpoint(fresh, *flags)
    assert "all epochs are done" not in run_here("train", *flags, cwd=fresh).stdout
    assert "mlp: is there already, as x\n" in run_here("train", *flags, cwd=fresh).stdout

    # To the same bits. What asks for another run under that name is refused.
    run_here("train", "--name", "y", *flags[3:], cwd=fresh)
    assert names(fresh) == ["x", "y"]
    assert_same_run(fresh / "runs/x", fresh / "runs/y")
    done = run_here("train", *flags, "--lr", 0.01, cwd=fresh, check=False)
    assert_one_line_error(done, "runs/x: a run of this name is there")


# --- what cannot be ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    (["--model", "mlp", "mlp"], ["--model mlp mlp", "twice"]),
    (["--model", "mlp", "cnn", "--resume", "mlp-1"], ["--resume NAME goes on with one run"]),
    (["--seeds", "2", "--refit", "mlp-1"], ["--refit NAME goes on with one run"]),
    (["--refit", "--resume", "mlp-1"], ["--resume NAME goes on with one run"]),
    (["--seed", "4294967295", "--seeds", "2"], ["--seeds 2", "--seed"]),
    (["--within", "5"], ["--within", "'5'", "20m"]),
    (["--within", "0m"], ["--within", "20m"]),
    (["--seeds", "0"], ["--seeds", "0"]),
    (["--model", "mlp", "cnn", "--units", "9"], ["--units", "cnn has no such setting"]),
    (["--model", "mlp", "encoder"], ["has no pieces for --model encoder"]),
])
def test_refused_before_anything_is_trained(prepared, both, flags, words):
    before = names(prepared)
    assert_one_line_error(run_here("train", *flags, cwd=prepared, check=False), *words)
    assert names(prepared) == before


def test_a_name_that_another_run_has_is_refused(copy):
    (copy / "runs/cnn-1").rename(copy / "runs/x-cnn")
    done = run_here("train", "--name", "x", "--model", "mlp", "cnn", "--epochs", 2, "--dim", 16, cwd=copy, check=False)
    assert_one_line_error(done, "x-cnn", "a run of this name is there")
    assert "x-mlp" not in names(copy)
    assert_one_line_error(run_here("train", "--name", "all", cwd=copy, check=False), "--name all")
