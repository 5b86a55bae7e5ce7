"""Runs that come from others: train.py --refit, on training and validation rows together, and --init-from."""
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import (
    assert_one_line_error,
    assert_same_run,
    fail_after_a_checkpoint,
    new_state,
    run_here,
    texts,
    tiny_rows,
    write_csv,
)

import classify
import data
import evaluate
import model
import train
from titles import configuration, files, runs, start


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


def test_a_refit_is_made_again_by_two_commands(tmp_path):
    bag = {"model": "mlp", "epochs": 3, "settings": ["model", "epochs"]}
    for name, config in (("bag", bag), ("bag-refit", bag | {"refit": "bag"})):
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / "config.json", config)
    assert runs.training_of(tmp_path / "bag-refit", " --data elsewhere") == ("bag-refit", [
        "python train.py --name bag --model mlp --epochs 3 --data elsewhere",
        "python train.py --refit bag --data elsewhere"], bag | {"refit": "bag"}, [])


def test_a_refit_trains_on_both_splits_with_the_settings_of_the_run(refit):
    first, again = (files.read_json(refit / f"runs/{name}/config.json") for name in ("bag", "bag-refit"))
    _, arrays = data.load_prepared(refit / "data/prepared", ("train", "valid"))
    labels = np.concatenate([arrays[split]["labels"] for split in ("train", "valid")])
    assert again["rows"] == len(labels) > first["rows"] and again["refit"] == "bag"
    assert again["training_rows"] == np.bincount(labels, minlength=4).tolist()
    changed = {name for name in again if first.get(name) != again[name]}
    assert changed <= {"rows", "training_rows", "steps", "epochs", "refit", "created", "checksum", "source",
                       "trained"}
    assert again.keys() - first.keys() == {"refit"}
    best = runs.checkpoint_manager(refit / "runs/bag", read_only=True).best_step()
    assert again["epochs"] == best * first["epochs"] // first["steps"]
    steps = [path.name for path in (refit / "runs/bag-refit/checkpoints").iterdir()]
    assert steps == [str(again["steps"])]
    metrics = (refit / "runs/bag-refit/metrics.csv").read_text().splitlines()
    assert len(metrics) == 1 + again["epochs"] and "valid" not in metrics[0]
    assert (refit / "runs/bag-refit/loss.png").is_file()


def test_a_refit_has_as_many_epochs_as_the_best_checkpoint(refit, tmp_path, monkeypatch):
    """Which is the second of four here."""
    shutil.copytree(refit / "runs/bag", tmp_path / "bag")
    config = files.read_json(tmp_path / "bag/config.json")
    second = SimpleNamespace(best_step=lambda: 2 * config["steps"] // config["epochs"])
    monkeypatch.setattr(runs, "checkpoint_manager", lambda *args, **options: second)
    monkeypatch.chdir(refit)
    args = train.parse_args(["--refit", "bag", "--runs", str(tmp_path)])
    plan = configuration.plan(train.TABLE, args, configuration.read_prepared(args))
    assert config["epochs"] == 4 and plan.config["epochs"] == 2


def test_what_probabilities_mean_comes_from_the_run_before(refit):
    one, other = (evaluate.load(name, folder=refit / "runs") for name in ("bag", "bag-refit"))
    np.testing.assert_array_equal(one.factors, other.factors)
    for mine, theirs in zip(one.validated, other.validated, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    titles = ["mesa azul", "funda nueva x3"]
    assert np.abs(one.predict_proba(titles) - other.predict_proba(titles)).max() > 1e-6
    together = evaluate.load("bag-refit", "filters", folder=refit / "runs")
    assert together.weights.sum() == pytest.approx(1)


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


def test_a_refit_goes_on_to_the_same_bits(refit, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(refit, copy)
    shutil.rmtree(copy / "runs/bag-refit")
    fail_after_a_checkpoint(copy, "--refit", "bag")
    run_here("train", "--resume", "bag-refit", cwd=copy)
    assert_same_run(refit / "runs/bag-refit", copy / "runs/bag-refit")


def test_what_cannot_be_refit(refit):
    def fails(*flags, words):
        assert_one_line_error(run_here("train", *flags, cwd=refit, check=False), *words)

    fails("--refit", "nobody", words=["runs/nobody: no such run to refit"])
    fails("--refit", "bag", words=["bag-refit", "a run of this name is there"])
    fails("--refit", "bag-refit", words=["is a refit itself"])
    fails("--refit", "filters", "--epochs", 3, words=["--refit goes on with the run's own settings", "--epochs out"])


# --- train.py --init-from ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def next_year(refit):
    """The folder of `refit` with data/next: other titles, one category gone and one new."""
    rows = [row for row in tiny_rows(300, seed=1) if row[3] != "MESAS"]
    rows += [(f"lámpara roja {i}", "reliable", "spanish", "LAMPARAS") for i in range(30)]
    write_csv(refit / "next.csv", rows)
    run_here("prepare", "--data", "next.csv", "--out", "data/next", cwd=refit)
    return refit


@pytest.mark.parametrize("name", ["bag", "filters"])
def test_a_new_run_begins_with_what_a_former_one_knows(name, next_year):
    meta, arrays = data.load_prepared(next_year / "data/next", ("train", "valid"))
    old, vocab, labels, saved, _ = runs.restore(next_year / "runs" / name, "best")
    args = train.parse_args(["--init-from", name, "--runs", str(next_year / "runs"), "--lr", "0.5"])
    config = configuration.configure(train.TABLE, args, meta, arrays["train"]["titles"], old)
    same = {"model", "dim", "word_ngrams", "buckets", "epochs", "batch_size", "dropout", "accumulator", "scale"}
    assert {key: config[key] for key in same} == {key: old[key] for key in same} and config["lr"] == 0.5
    parted = configuration.configure(train.TABLE, args, meta, arrays["train"]["titles"], old | {"shard_table": True})
    assert parted["shard_table"] and "shard_table" not in config
    third = configuration.configure(train.TABLE, args, meta, arrays["train"]["titles"], old | {"earlier_rows": 50})
    assert config["earlier_rows"] == old["rows"] and third["earlier_rows"] == old["rows"] + 50
    features = model.feature_tables(config, meta["words"])
    fresh = new_state(config, features, arrays["train"]["titles"])
    fresh = jax.device_get(fresh)
    state, said = start.with_knowledge(jax.device_put(fresh), config, meta, (old, vocab, labels, saved, 0))
    words = set(meta["vocab"][2:]) & set(vocab)
    assert said == f"{len(words)} of {len(meta['vocab']) - 2} words, 3 of 4 categories"

    # Word by word and category by category, in plain Python.
    begun, learned, first = jax.device_get(state["variables"]), jax.device_get(saved["variables"]), fresh["variables"]
    for i, word in enumerate(meta["vocab"]):
        expected = learned["table"][vocab.index(word)] if word in vocab else first["table"][i]
        np.testing.assert_array_equal(begun["table"][i], expected)
    np.testing.assert_array_equal(begun["table"][len(meta["vocab"]):], learned["table"][len(vocab):])
    leaves = [jax.tree.leaves(tree["params"]) for tree in (begun, learned, first)]
    heads = 0
    for mine, theirs, random in zip(*leaves, strict=True):
        if mine.shape[-1:] != (4,):
            np.testing.assert_array_equal(mine, theirs)
            continue
        heads += 1
        for i, label in enumerate(meta["labels"]):
            expected = theirs[..., labels.index(label)] if label in labels else random[..., i]
            np.testing.assert_array_equal(mine[..., i], expected)
    assert heads == (2 if name == "bag" else 4)

    # Weights are those of the titles of both, counted as if they had been one set.
    for word in ("funda", "lampara", meta["vocab"][-1]):
        holds = sum(word in data.tokenize(title) for folder in ("prepared", "next")
                    for title in texts("train", next_year / "data" / folder))
        weight = model.idf(np.array(holds), config["rows"] + old["rows"])
        np.testing.assert_allclose(begun["weights"][meta["vocab"].index(word)], weight, rtol=1e-5)


@pytest.mark.slow
def test_a_run_begun_from_another_is_resumed_refitted_and_exported(next_year):
    flags = ("--data", "data/next", "--name", "more", "--init-from", "runs/bag/", "--epochs", 2)
    done = run_here("train", *flags, cwd=next_year)
    assert "begins with what bag/best knows" in done.stdout
    config = files.read_json(next_year / "runs/more/config.json")
    before = files.read_json(next_year / "runs/bag/config.json")["rows"]
    assert config["init_from"] == "bag/best" and config["earlier_rows"] == before and config["epochs"] == 2
    first = next(line for line in done.stdout.splitlines() if line.startswith("epoch   0"))
    assert float(first.rpartition("balanced accuracy ")[2][:6]) > 0.4  # of four categories it knows three

    # Killed before the first checkpoint, it begins with the former run again, to the same bits.
    shutil.copytree(next_year / "runs/more", next_year / "runs/again")
    shutil.rmtree(next_year / "runs/again/checkpoints")
    (next_year / "runs/again/metrics.csv").unlink()
    run_here("train", "--data", "data/next", "--resume", "again", cwd=next_year)
    assert_same_run(next_year / "runs/more", next_year / "runs/again")
    assert "begins" not in run_here("train", "--data", "data/next", "--resume", "more", cwd=next_year).stdout

    assert "begins" in run_here("train", "--data", "data/next", "--refit", "more", cwd=next_year).stdout
    run_here("export", "--ckpt", "more", "--out", "exported", cwd=next_year)
    small, run = classify.Classifier(next_year / "exported/model.npz"), evaluate.load("more", folder=next_year / "runs")
    titles = texts("test", next_year / "data/next")
    np.testing.assert_allclose(small.predict_proba(titles), run.predict_proba(titles), atol=0.02)


def test_what_a_run_cannot_begin_from(next_year):
    for flags, words in ((["bag", "--dim", 7], ["--dim", "has 16"]), (["bag", "--model", "cnn"], ["--model", "mlp"]),
                         (["nothing"], ["no run of this name"]), (["filters", "--widths", 9], ["--widths"])):
        done = run_here("train", "--data", "data/next", "--init-from", *flags, cwd=next_year, check=False)
        assert_one_line_error(done, *words)
