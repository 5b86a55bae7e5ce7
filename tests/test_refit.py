"""train.py --refit: the settings of a run, on training and validation rows together."""
import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line_error, assert_same_run, run_here

import data
import evaluate
import files
import runs


@pytest.fixture(scope="module")
def refit(trained, tmp_path_factory):
    """A copy of `trained` with the refit of the run bag."""
    folder = tmp_path_factory.mktemp("refit") / "copy"
    shutil.copytree(trained, folder)
    for run in (folder / "runs").iterdir():  # other tests may have added some
        if run.name not in ("bag", "filters"):
            shutil.rmtree(run)
    run_here("train", "--refit", "bag", cwd=folder)
    return folder


def test_a_refit_trains_on_both_splits_with_the_settings_of_the_run(refit):
    first, again = (files.read_json(refit / f"runs/{name}/config.json") for name in ("bag", "bag-refit"))
    _, arrays = data.load_prepared(refit / "data/prepared", ("train", "valid"))
    labels = np.concatenate([arrays[split]["labels"] for split in ("train", "valid")])
    assert again["rows"] == len(labels) > first["rows"] and again["refit"] == "bag"
    assert again["training_rows"] == np.bincount(labels, minlength=4).tolist()
    changed = {name for name in again if first.get(name) != again[name]}
    assert changed <= {"rows", "training_rows", "steps", "epochs", "refit", "created", "checksum", "source"}
    best = runs.checkpoint_manager(refit / "runs/bag", read_only=True).best_step()
    assert again["epochs"] == best * first["epochs"] // first["steps"]
    steps = [path.name for path in (refit / "runs/bag-refit/checkpoints").iterdir()]
    assert steps == [str(again["steps"])]
    metrics = (refit / "runs/bag-refit/metrics.csv").read_text().splitlines()
    assert len(metrics) == 1 + again["epochs"] and "valid" not in metrics[0]
    assert (refit / "runs/bag-refit/loss.png").is_file()


def test_what_probabilities_mean_comes_from_the_run_before(refit):
    one, other = (evaluate.load(name, folder=refit / "runs") for name in ("bag", "bag-refit"))
    np.testing.assert_array_equal(one.weights, other.weights)
    for mine, theirs in zip(one.validated, other.validated, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    titles = ["mesa azul", "funda nueva x3"]
    assert np.abs(one.predict_proba(titles) - other.predict_proba(titles)).max() > 1e-6
    together = evaluate.load("bag-refit", "filters", folder=refit / "runs")
    assert together.shares.sum() == pytest.approx(1)


def test_best_is_the_refit_where_the_best_run_has_one(refit, tmp_path):
    def run_of(*flags):
        return json.loads(run_here("evaluate", *flags, "--json", cwd=refit).stdout)["run"]

    assert run_of("--ckpt", "best") == "filters" and run_of("--ckpt", "bag") == "bag"
    shutil.move(refit / "runs/filters", tmp_path / "filters")
    try:
        assert run_of("--ckpt", "best") == "bag-refit"
        kept = files.read_json(refit / "runs/bag-refit/config.json")["steps"]
        shutil.move(refit / f"runs/bag-refit/checkpoints/{kept}", tmp_path / "step")  # not yet at its end
        assert run_of("--ckpt", "best") == "bag"
        shutil.move(tmp_path / "step", refit / f"runs/bag-refit/checkpoints/{kept}")
    finally:
        shutil.move(tmp_path / "filters", refit / "runs/filters")


def test_a_refit_goes_on_to_the_same_bits(refit, tmp_path, monkeypatch):
    import train
    copy = tmp_path / "copy"
    shutil.copytree(refit, copy)
    shutil.rmtree(copy / "runs/bag-refit")
    stopped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_metrics", lambda *_: stopped.append(1) or 1 / 0)
        patch.chdir(copy)
        with pytest.raises(ZeroDivisionError):
            train.train(train.parse_args(["--refit", "bag"]))
    assert stopped
    run_here("train", "--resume", "bag-refit", cwd=copy)
    assert_same_run(refit / "runs/bag-refit", copy / "runs/bag-refit")


def test_what_cannot_be_refit(refit):
    def fails(*flags, words):
        assert_one_line_error(run_here("train", *flags, cwd=refit, check=False), *words)

    fails("--refit", "nobody", words=["runs/nobody: no such run to refit"])
    fails("--refit", "bag", words=["bag-refit", "a run of this name is there"])
    fails("--refit", "bag-refit", words=["is a refit itself"])
    fails("--refit", "filters", "--epochs", 3, words=["--refit goes on with the run's own settings", "--epochs out"])
