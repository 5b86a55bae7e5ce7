"""Exported models: what classify.py answers with NumPy alone is what evaluate.py answers."""
import ast
import bz2
import csv
import gc
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from conftest import ROOT, assert_documented, assert_one_line_error, run_here, run_script, snapshot, texts

import classify
import data
import evaluate
import export
import model
import train
from titles import measures, predict, runs
from titles.cli import UserError
from titles.settings import all_of, default_of

ODD = ["", "qwzzk", "???", "celulares azules qqq", "Teléfono nuevo x3 &amp; mesa", "x" * 300, "mesa " * 60, "zzmesazz",
       "１２ ﬁn №5 桌子", "una cosa que nadie vio nunca jamas"]
VARIANTS = {  # what they change in the configuration of a run
    "mlp": {"hidden": [8], "word_ngrams": 3, "character_weight": 0.4},
    "cnn": {"filters": 5, "widths": [2, 30], "hidden": [8, 9]},
    "rnn": {"units": 7}, "transformer": {"heads": 3, "layers": 2},
    "words": {"model": "mlp", "word_ngrams": 1, "maxn": 0, "buckets": 0},
    "long n-grams": {"model": "rnn", "units": 3, "word_ngrams": 1, "minn": 5, "maxn": 7, "max_len": 3},
    "frequent": {"model": "transformer", "heads": 1, "layers": 1, "prior": "training", "dim": 24}}


@pytest.fixture
def random_run(trained, monkeypatch):
    """A function of names of VARIANTS and a prior: a predict.Classifier of such runs, whose numbers are random. They
    need no training, and have what is rare after one, such as words without a weight."""
    restore = runs.restore

    def random_restore(folder, name):
        config, vocab, labels, saved, step = restore(folder, "best")
        config = config | {"model": name} | VARIANTS[name]
        config = {setting.name: default_of(setting, config["model"]) for setting in all_of(train.SETTINGS)} | config
        draw, variables = np.random.default_rng(len(name)), model.init(config, jax.random.key(1))
        weights = draw.uniform(0.1, 4, len(variables["table"])) * (draw.random(len(variables["table"])) < 0.6)
        weights[0] = 0
        return config, vocab, labels, saved | {"variables": {
            "params": jax.tree.map(lambda x: x + draw.normal(size=x.shape, scale=0.1), variables["params"]),
            "table": variables["table"], "weights": weights.astype(np.float32)}}, step

    monkeypatch.setattr(runs, "restore", random_restore)
    return lambda *names, prior=None: predict.Classifier([(trained / "runs/bag", name) for name in names], prior)


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """A function of names of runs and flags: the folder that export.py writes of them, once."""
    folders = {}

    def exported(*flags):
        if flags not in folders:
            folders[flags] = tmp_path_factory.mktemp("exported") / "model"
            run_here("export", "--ckpt", *flags, "--out", folders[flags], cwd=trained)
        return folders[flags]

    return exported


def answers(folder, stdin, *args, check=True):
    """classify.py, run from an empty folder with the standard library and NumPy alone."""
    done = subprocess.run([sys.executable, "-I", folder / "classify.py", folder / "model.npz", *map(str, args)],
                          cwd=folder, input=stdin if isinstance(stdin, bytes) else stdin.encode(), capture_output=True)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    assert not check or done.returncode == 0, done.stderr
    return done


def fields_of(found):
    """The fields of what `predict` found, as the command line writes them."""
    return [[str(field) for name, chance in row for field in (name or "", f"{chance:.6f}")] for row in found]


# --- the same answers -------------------------------------------------------------------------------------------------

def assert_the_same(small, run, titles, atol=1e-5):
    """A classify.Classifier of float32 says what its predict.Classifier says."""
    wanted, known, found = run.predict_proba(titles), run.read(titles)[2], small.predict(titles, top=3)
    np.testing.assert_allclose(small.predict_proba(titles), wanted, atol=atol)
    assert [row[0][0] for row in found] == [row[0][0] for row in small.predict(titles)]
    assert [row[0][0] for row in found] == [run.labels[i] if k else None
                                            for i, k in zip(wanted.argmax(1), known, strict=True)]
    assert [row[0][1] > 0 for row in found] == known.tolist()

    # Any precision has the very same threshold.
    for precision in (0.01, 0.5, 0.613, 0.9, 0.99):
        assert small.rule(precision) == run.rule(precision)
        assert small.promising.rule(precision) == run.promising.rule(precision)
    promised = run.promising.likeliest(titles, 1)
    np.testing.assert_allclose(small.promising.likeliest(titles, 1)[1], promised[1], atol=atol)
    assert small.promising.settings["prior"] == run.promising.prior
    expected = np.where(known[:, None], -np.sort(-wanted, 1)[:, :3], 0)
    np.testing.assert_allclose([[chance for _, chance in row] for row in found], expected, atol=atol)

    # One at a time as all at once, with the words of earlier titles forgotten.
    small.forget()
    alone = [small.predict([title], top=3)[0] for title in titles[:40]]
    np.testing.assert_allclose([[chance for _, chance in row] for row in alone], expected[:40], atol=atol)


@pytest.mark.parametrize(("names", "prior"), [
    *(pytest.param([name], None, marks=[pytest.mark.slow] * (name in ("rnn", "transformer")))
      for name in VARIANTS if name in model.MODELS),
    pytest.param(["cnn", "words", "frequent", "long n-grams"], "training", marks=pytest.mark.slow)], ids=str)
def test_every_network_says_what_the_run_says(names, prior, random_run, trained):
    run = random_run(*names, prior=prior)
    small = classify.Classifier(export.model_arrays(run, "float32"))
    assert small.settings["prior"] == run.prior
    # What random networks are calibrated to may be very sharp, and rounding errors grow with the weight of the logits.
    titles = [*ODD, *texts("test", trained / "data/prepared")]
    assert_the_same(small, run, titles, 1e-5 * max(1, float(run.factors.sum())))


@pytest.mark.parametrize("names", [["bag"], ["filters"], ["bag", "filters"]], ids="+".join)
def test_every_title_gets_the_category_of_the_run(names, trained, exported):
    run = evaluate.load(*names, folder=trained / "runs")
    small = classify.Classifier(exported(*names, "--dtype", "float32") / "model.npz")
    assert small.labels == run.labels
    assert_the_same(small, run, [*ODD, *texts("test", trained / "data/prepared")])


@pytest.mark.parametrize("name", ["bag", "filters"])
def test_small_integers_cost_no_accuracy(name, trained, exported):
    run = evaluate.load(name, folder=trained / "runs")
    small = classify.Classifier(exported(name) / "model.npz")
    titles = texts("test", trained / "data/prepared")
    labels = np.load(trained / "data/prepared/test_labels.npy").astype(int)
    whole, cut = (measures.balanced_accuracy(labels, each.likeliest(titles, 1)[0][:, 0]) for each in (run, small))
    assert abs(whole - cut) <= 0.005
    assert small.members[0].table.dtype == np.int8
    np.testing.assert_allclose(small.predict_proba(titles), run.predict_proba(titles), atol=0.02)


def test_rows_that_training_did_not_use_are_left_out(trained, exported):
    (config, variables), = evaluate.load("bag", folder=trained / "runs").members
    member = classify.Classifier(exported("bag") / "model.npz").members[0]
    used = np.asarray(variables["weights"])[config["vocabulary"]:] > 0
    assert len(member.table) == config["vocabulary"] + used.sum() < len(variables["table"]) / 2
    np.testing.assert_array_equal(member.weights[member.row_of_bucket], variables["weights"][config["vocabulary"]:])


def test_words_are_forgotten_when_there_are_too_many(exported, monkeypatch):
    small = classify.Classifier(exported("bag") / "model.npz")
    titles = [f"mesa w{i} silla v{i}" for i in range(3000)]
    expected = small.predict_proba(titles)
    monkeypatch.setattr(classify, "WORDS", 100)
    monkeypatch.setattr(classify, "PART", 70)
    np.testing.assert_allclose(small.predict_proba(titles), expected, atol=1e-6)
    assert len(small.positions) < 300


TEXTS = ["", " \n\t ", "a\x1eb c", "\x1e", "mesa\x1fsilla", "\x1f", "ΑΣ ΟΔΟΣ Σ&sigma;", "İ ẞ K", "niño·mesa ½kg №5",
         "&amp;mesa &#10;&#x1e;&#31;&eacute;", "\ud800 mesa\ud800", "日本語のタイトル mesa", "·–", "x" * 5000 + " mesa",
         "silla\xa0azul\u2028roja", "mesa " * 500, "é" * 3000 + " mesa", "&" * 999 + "amp; mesa",
         " " * 9999 + "mesa silla" * 99, "ΑΣ.ΒΓ ΑΣ'Δ",
         *(" ".join(f"{i:0{width}}" for i in range(99)) for width in range(12, 33))]


def test_many_titles_are_cut_into_words_as_each_of_them(exported):
    small = classify.Classifier(exported("bag") / "model.npz")
    draw = random.Random(0)
    titles = TEXTS + ["".join(draw.choices("aáE9 ·-_&;#xΣς\x1e\x1f\xa0\u0301漢ﬁ½İ\ud800\n", k=draw.randrange(30)))
                      for _ in range(3000)]
    ids, lengths = small.encode(titles)
    found = [[small.words[word] for word in row[:length]] for row, length in zip(ids.tolist(), lengths, strict=True)]
    assert found == [classify.tokenize(title)[:small.max_len] for title in titles]
    assert not ids[np.arange(ids.shape[1]) >= lengths[:, None]].any()

    # One by one, and when they come again; of long ones little is kept.
    for title, words in zip(titles[:200], found, strict=False):
        assert [[small.words[word] for word in row] for row in small.encode([title])[0].tolist()] == [words or [""]]
    assert (small.encode(titles)[0] == ids).all()
    small.encode(["mesa", " ".join(map(str, range(10 ** 6)))])
    assert len(small.words) < 10_000


def test_titles_keep_their_order(exported):
    """Titles of a length go into a block, and blocks into parts."""
    small = classify.Classifier(exported("bag") / "model.npz")
    draw = random.Random(0)
    titles = [" ".join(draw.choices(["mesa", "silla", "celular", "azul", "nuevo"], k=draw.randrange(12)))
              for _ in range(classify.PART + classify.BLOCK + 1)]
    titles[7::1000] = [None] * len(titles[7::1000])
    distinct = list(dict.fromkeys(titles))
    answer = dict(zip(distinct, small.predict(distinct, top=2), strict=True))
    for title, row in zip(titles, small.predict(titles, top=2), strict=True):
        assert [name for name, _ in row] == [name for name, _ in answer[title]]
        assert [p for _, p in row] == pytest.approx([p for _, p in answer[title]], abs=1e-6)


def test_the_garbage_collector_runs_on(exported, monkeypatch):
    small = classify.Classifier(exported("bag") / "model.npz")
    assert gc.isenabled() and small.predict(["mesa"]) and gc.isenabled()
    gc.disable()
    try:
        assert small.predict(["mesa"]) and not gc.isenabled()
    finally:
        gc.enable()

    # Another thread, which had turned it off, turns it on between a look at it and what follows.
    told = []
    monkeypatch.setattr(classify, "gc", SimpleNamespace(
        isenabled=lambda: False, disable=lambda: told.append("off"), enable=lambda: told.append("on")))
    assert small.predict(["mesa"]) and not told


def test_threads_may_share_a_classifier(exported):
    small = classify.Classifier(exported("bag") / "model.npz")
    parts = [[f"mesa w{i} x{k} silla v{i}" for i in range(200)] for k in range(16)]
    expected = [small.predict(part) for part in parts]
    small.forget()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: [small.predict([title])[0] for title in part], parts))
    assert [[row[0][0] for row in part] for part in found] == [[row[0][0] for row in part] for part in expected]


# --- other answers ----------------------------------------------------------------------------------------------------

def otherwise(function, change):
    return lambda *args: change(function(*args))


@pytest.mark.parametrize(("owner", "name", "change", "words"), [
    (classify, "tokenize", lambda words: words[:3], ["the tokenizer", "data.py"]),
    (model, "word_ngrams", lambda rows: rows - (rows > 0), ["filters: ", "vectors", "n-grams"]),
    (classify, "bag", lambda x: x * np.float32(1.001), ["filters: ", "logits", "network cnn", "pooling"]),
    (classify, "log_softmax", lambda z: z[:, :1], ["filters: ", "logits", "network cnn"]),
    (classify, "two_heads", lambda z: {}["x"], ["filters: ", "network cnn", "KeyError('x')"]),
    (classify.Classifier, "probabilities", lambda p: p * np.float32(0.999), ["probabilities"]),
    (classify.Classifier, "known", lambda known: known | True, ["known", "of '"])], ids=lambda x: str(x)[:20])
def test_what_classify_computes_otherwise_is_not_exported(owner, name, change, words, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, otherwise(getattr(owner, name), change))
    done = run_here("export", "--ckpt", "filters", "--out", tmp_path / "out", cwd=trained, check=False)
    assert_one_line_error(done, "not exported: ", "classify.py", *words)
    assert not list(tmp_path.iterdir())


def test_integers_that_are_too_coarse_are_refused():
    wanted = np.array([[0.9, 0.1], [0.51, 0.49], [0.1, 0.9]])
    export.require_near(wanted[:, ::-1] * [[0], [1], [0]] + wanted * [[1], [0], [1]], wanted, ["a", "near-tie", "c"])
    for found in (wanted * 0.96, wanted[:, ::-1]):
        with pytest.raises(UserError, match=r"8-bit integers .* 'a'; export it with --dtype float32"):
            export.require_near(found, wanted, ["a", "b", "c"])


def test_titles_to_compare_are_those_of_the_data_where_it_is_there(trained, tmp_path):
    run, valid = evaluate.load("bag", folder=trained / "runs"), texts("valid", trained / "data/prepared")
    titles, made_up = (export.sample_rows(run, folder).titles for folder in (trained / "data/prepared", tmp_path))
    assert titles[:len(valid)] == valid and titles[len(valid):-len(export.ODD) - 2] == made_up[:-len(export.ODD) - 2]
    assert set(export.ODD) < set(made_up) and len(set(made_up)) > export.SAMPLE
    known = run.read(made_up)[2]
    assert known.any() and not known.all()


# --- anywhere ---------------------------------------------------------------------------------------------------------

def test_the_file_runs_with_numpy_alone(exported):
    folder = exported("filters")
    code = ("import sys; before = set(sys.modules); sys.path.insert(0, '.'); import classify\n"
            "print(classify.Classifier('model.npz').predict(['silla azul'])[0][0][0])\n"
            "left = {name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)\n"
            "print(sorted(name for name in left if not name.startswith('_')))")
    done = subprocess.run([sys.executable, "-I", "-B", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["SILLAS", "['classify', 'numpy']"], done.stdout + done.stderr
    ast.parse((ROOT / "classify.py").read_text(encoding="utf-8"), feature_version=(3, 9))


def test_answers_on_the_command_line(exported, tmp_path):
    folder = exported("bag")
    small = classify.Classifier(folder / "model.npz")
    stdin = "".join(f"{title}\n" for title in ODD)
    found = [line.split("\t") for line in answers(folder, stdin, "--top", 3).stdout.splitlines()]
    assert found == fields_of(small.predict(ODD, top=3))
    refused = [line.split("\t") for line in answers(folder, stdin, "--threshold", 0.5).stdout.splitlines()]
    assert refused == [[row[0] if float(row[1]) >= 0.5 else "", row[1]] for row in found]
    done = answers(folder, stdin, "--precision", 0.6, "--top", 2)
    assert [line.split("\t") for line in done.stdout.splitlines()] == fields_of(
        small.predict(ODD, top=2, precision=0.6)) and done.stderr == ""
    done = answers(folder, stdin, "--precision", 0.9999, "--top", 3)
    likely = fields_of(small.promising.predict(ODD, top=3))
    assert [line.split("\t") for line in done.stdout.splitlines()] == [["", row[1], *row] for row in likely]
    assert done.stderr == f"warning: --precision {small.promising.rule(0.9999)[1]}\n"
    assert answers(folder, "").stdout == "" and answers(folder, "\n").stdout.endswith("\t0.000000\n")
    (tmp_path / "titles.txt").write_bytes(b"mesa\r\nsi\xfflla")
    assert answers(folder, "", tmp_path / "titles.txt").stdout.startswith("MESAS\t")
    assert answers(folder, "", tmp_path / "titles.txt").stdout.count("\n") == 2
    for args in (["--top", 0], ["--threshold", 2], ["--precision", 95], ["--nonsense"], ["--top=--"],
                 [tmp_path / "none.txt"]):
        assert_one_line_error(answers(folder, "mesa\n", *args, check=False), str(args[-2:][0]))
    done = answers(folder, "mesa\n", "--precision", 0.9, "--threshold", 0.9, check=False)
    assert_one_line_error(done, "give one")


TABLE = [("sku", "Title", "category", "note"),
         *((f"00{i}", title, "old", 'a "b",; c\nd') for i, title in enumerate(["mesa, x", "", "qwzzk", "silla; x"]))]


def test_hidden_layers_of_an_earlier_version(exported, tmp_path):
    arrays = dict(np.load(exported("bag") / "model.npz"))
    arrays["0/params/Head_0/Dense_1/kernel"] = np.zeros((4, 4), np.float32)  # sees the layer before it alone
    arrays["digest"] = classify.digest({name: arrays[name] for name in arrays if name != "digest"})
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(classify.ModelError, match="does not know the model's hidden layers of mlp; take the one that"):
        classify.Classifier(tmp_path / "model.npz")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_answered_row_by_row(delimiter, exported, tmp_path):
    def read(text):
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))

    folder, file = exported("bag"), io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(TABLE)
    (tmp_path / "offers.csv").write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    small, titles = classify.Classifier(folder / "model.npz"), [row[1] for row in TABLE[1:]]
    wanted, likely = (fields_of(one.predict(titles, top=2)) for one in (small, small.promising))
    assert [line.split("\t") for line in answers(folder, "", tmp_path / "offers.csv", "--top", 2).stdout.splitlines(
        )] == wanted
    header = [*TABLE[0], "predicted_category", "probability"]
    expected = [[*header, "category_2", "probability_2"], *([*row, *added] for row, added in zip(
        TABLE[1:], wanted, strict=True))]
    for stdin, args in (("", [tmp_path / "offers.csv"]), (file.getvalue(), [])):
        done = answers(folder, stdin, *args, "--keep", "--top", 2)
        assert read(done.stdout) == expected
    done = answers(folder, file.getvalue(), "--keep", "--top", 2, "--precision", 0.9999)
    assert read(done.stdout) == [[*header, "candidate_1", "probability_1", "candidate_2", "probability_2"], *(
        [*row, "", added[1], *added] for row, added in zip(TABLE[1:], likely, strict=True))]
    named = file.getvalue().replace("Title", "Artículo")
    for column in ("artículo", "2"):
        assert read(answers(folder, named, "--keep", "--title-column", column).stdout)[1][-2:] == wanted[0][:2]


def test_what_is_neither_titles_nor_a_table_is_refused(exported, tmp_path):
    """In one line, with what to do; and no row of a table is swallowed."""
    folder = exported("bag")
    packed = [gzip.compress(b"mesa\n"), bz2.compress(b"mesa\n"), lzma.compress(b"mesa\n"), b"PAR1\x15\4\n",
              b"PK\3\4\x14\n", "mesa\n".encode("utf-16")]
    cases = [*((content, "not text in UTF-8; unpack it") for content in packed),
             (b'{"title": "mesa"}\n', "JSON"), (b"[\n", "JSON"), (b"__label__a x\n", "labels"), (b"<?xml ?>\n", "XML"),
             (b"mesa\rsilla\r", "carriage return"), (b"id,x\n1,2\n", "no title (or text) column in the header (id,x)"),
             (b"a;b\nmesa;1\n", "--title-column"), (b"sku,name,price\n1,mesa,2\n2,silla,3\n", "--title-column"),
             (b"title,text\nmesa,1\n", "--title-column"), (b"sku,title\n1,mesa\n2\n", ":3: 1 columns instead of 2"),
             (b'sku,title\n1,"mesa,x\n2,silla\n', ":2: 3 columns instead of 2; is a quote unclosed?")]
    for content, reason in cases:
        assert_one_line_error(answers(folder, content, check=False), "-:", reason)
    for args, reason in ((["--keep"], "header (mesa)"), (["--title-column", "x"], "header (mesa)")):
        assert_one_line_error(answers(folder, "mesa\nsilla\n", *args, check=False), reason)
    (tmp_path / "list.csv").write_text("mesa\n")
    assert_one_line_error(answers(folder, "", tmp_path / "list.csv", check=False), "list.csv:1: no title")
    (tmp_path / "empty.csv").touch()
    assert_one_line_error(answers(folder, "", tmp_path / "empty.csv", check=False), "empty.csv:1: empty file")
    done = answers(folder, "", folder / "model.npz", check=False)
    assert_one_line_error(done, "model.npz: not text in UTF-8")
    done = subprocess.run([sys.executable, folder / "classify.py", tmp_path / "list.csv", folder / "model.npz"],
                          capture_output=True, text=True)
    assert_one_line_error(done, "list.csv: no model that export.py wrote; the model comes first")


def test_what_is_odd_in_a_file_is_said(exported):
    """And is read all the same, as evaluate.py reads it."""
    folder = exported("bag")
    done = answers(folder, b"mesa\nsi\xfflla\n\n\xff\n")
    assert done.stdout.count("\n") == 4
    assert done.stderr == "warning: -:2: bytes that are not UTF-8 were replaced; save the file as UTF-8 (and 1 more)\n"
    done = answers(folder, 'sku,title\n1,"mesa\nazul"\n\n2,silla\n')
    assert [line[0] for line in done.stdout.splitlines()] == ["M", "S"]
    assert done.stderr.splitlines() == [
        "warning: -:2: a field in quotes spans lines; if it should not, a quote is unclosed",
        "warning: -:4: an empty line in a table is no row, so nothing is written for it"]
    assert answers(folder, "title\nmesa\n\nsilla\n").stdout.count("\n") == 3  # in one column it is an empty title
    assert answers(folder, "title,x\n", "--keep").stdout == "title,x,category,probability\n"
    done = answers(folder, 'sku,title\n1,"mesa\n2,silla\n3,"Pro" mesa\n')
    assert [line[0] for line in done.stdout.splitlines()] == ["M", "S", "M"]
    assert done.stderr == "warning: -:2: an unclosed quote was taken as text\n"
    done = answers(folder, "mesa\nsi\rlla\n")
    assert done.stdout.count("\n") == 2 and done.stderr.startswith("warning: -:2: a carriage return within a line")


@pytest.mark.parametrize("header", ["", "title\n"])
def test_a_line_is_answered_while_the_producer_pauses(header, exported):
    folder, pipes = exported("bag"), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-I", folder / "classify.py", folder / "model.npz"], **pipes) as done:
        done.stdin.write(header.encode())
        for title, category in (("mesa", "MESAS"), ("silla", "SILLAS"), ("celular x1", "CELULARES")):
            done.stdin.write(f"{title}\n".encode())
            done.stdin.flush()
            assert done.stdout.readline().decode().split("\t")[0] == category  # hangs if it is not answered
        done.stdin.close()
        assert not done.stdout.read() and done.wait() == 0


def test_titles_from_python(exported):
    small = classify.Classifier(exported("bag") / "model.npz")
    found = small.predict(pd.Series(["mesa", None, float("nan"), pd.NA, ""]), top=100, threshold=0.3)
    assert [len(row) for row in found] == [1 + len(small.labels), 0, 0, 0, 1 + len(small.labels)]
    assert found[0][0] == found[0][1] and found[0][0][0] == "MESAS" and found[0][2][0] is not None
    assert set(found[4]) == {(None, 0.0)}
    assert np.isnan(small.predict_proba(["mesa", None])).all(1).tolist() == [False, True]
    assert small.predict([]) == [] and small.predict_proba([]).shape == (0, len(small.labels))
    for wrong in ("mesa", [1], [b"mesa"]):
        with pytest.raises(TypeError, match="no title|not a single one"):
            small.predict(wrong)
    with pytest.warns(UserWarning, match=" can, for "):
        assert small.predict(["mesa"], precision=0.9999) == [[(None, small.promising.predict(["mesa"])[0][0][1])]]


# --- files ------------------------------------------------------------------------------------------------------------

def test_every_key_of_the_model_file_is_documented(random_run):
    """All that models of words have; tests/test_encoder.py does it for encoders, tests/test_shop.py for columns,
    tests/test_levels.py for trees."""
    keys = assert_documented(export.model_arrays(random_run(*classify.NETWORKS), "int8"))
    others = {"pieces", "encoder", "columns", "values", "value_scale", "value_weights", "value_weight",
              "levels", "level_promises", "rules"}
    assert [*map(set, keys)] == [set(documented) - others for documented in (
        classify.ARRAYS, classify.ARRAYS_OF_RUN, classify.SETTINGS, classify.SETTINGS_OF_RUN)]


def test_files_that_are_no_model_are_refused(exported, tmp_path):
    folder, target = exported("bag"), tmp_path / "model.npz"
    (tmp_path / "classify.py").write_bytes((folder / "classify.py").read_bytes())
    arrays = dict(np.load(folder / "model.npz"))
    newer = arrays | {"settings": np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8)}
    newer["digest"] = classify.digest({name: newer[name] for name in newer if name != "digest"})
    for content, words in (
            ({"x": np.ones(3)}, "export it again"), (arrays | {"0/weights": arrays["0/weights"] * 2}, "changed"),
            (newer, "version 99"), (arrays | {"0/table": np.array([Path()])}, "export it again"),
            (b"", "model comes first"), (b"mesa\n", "model comes first")):
        if isinstance(content, dict):
            file = io.BytesIO()
            np.savez(file, **content)
        target.write_bytes(file.getvalue() if isinstance(content, dict) else content)
        assert_one_line_error(answers(tmp_path, "mesa\n", check=False), "model.npz: ", words)
    target.unlink()
    assert_one_line_error(answers(tmp_path, "mesa\n", check=False), "model.npz: No such file")


def test_mutants_are_refused_or_say_the_same(exported, tmp_path):
    content, path = (exported("bag") / "model.npz").read_bytes(), tmp_path / "model.npz"
    expected = classify.Classifier(exported("bag") / "model.npz").predict_proba(ODD)
    draw, refused = np.random.default_rng(0), 0
    ends = [info.header_offset for info in zipfile.ZipFile(exported("bag") / "model.npz").infolist()]
    for i in range(200):
        # Bytes anywhere, in the headers of members, and at the end, where the index is; or the file cut short.
        at = int((draw.integers(len(content)), draw.choice(ends) + draw.integers(200), -draw.integers(1, 1500))[i % 3])
        mutant = bytearray(content)
        mutant[at % len(content)] ^= 1 << int(draw.integers(8))
        path.write_bytes(mutant if i % 10 else content[:at])
        try:
            assert np.array_equal(classify.Classifier(path).predict_proba(ODD), expected)
        except classify.ModelError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 150


def test_a_second_export_gives_the_same_bits(trained, exported, tmp_path):
    # Only the run's folder is there.
    run_script("export", "--ckpt", trained / "runs/bag", "--out", tmp_path / "out", cwd=tmp_path)
    assert (tmp_path / "out/model.npz").read_bytes() == (exported("bag") / "model.npz").read_bytes()
    assert (tmp_path / "out/classify.py").read_bytes() == (ROOT / "classify.py").read_bytes()
    (origin,) = classify.Classifier(tmp_path / "out/model.npz").settings["provenance"]
    with open(trained / "runs/bag/metrics.csv", encoding="utf-8", newline="") as file:
        best = max(reversed([*csv.DictReader(file)]), key=lambda row: float(row["valid_balanced_accuracy"]))
    assert origin == {"run": "bag", "checkpoint": "best", "step": int(best["step"]), "prior": "equal", "refit": None,
                      "validation_balanced_accuracy": float(best["valid_balanced_accuracy"])}


def test_the_folder_is_whole_or_left_alone(trained, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    for out in (tmp_path, tmp_path / "mine.txt"):
        assert_one_line_error(run_here("export", "--ckpt", "bag", "--out", out, cwd=trained, check=False), "--out")
    monkeypatch.setattr(np, "savez_compressed", lambda *args, **arrays: (_ for _ in ()).throw(OSError(28, "No space")))
    done = run_here("export", "--ckpt", "bag", "--out", tmp_path / "new", cwd=trained, check=False)
    assert_one_line_error(done, "No space")
    assert snapshot(tmp_path) == before


def test_small_integers_are_the_nearest():
    table = np.random.default_rng(0).normal(size=(200_000, 2)).astype(np.float32)
    table *= np.logspace(-9, 3, len(table), dtype=np.float32)[:, None]
    table[3] = 0
    for titles, steps in ((1, 4), (16, 16), (10 ** 6, 127)):
        numbers, scale = export.quantized(table, np.full(len(table), titles))
        error = np.abs(numbers * scale.astype(np.float32)[:, None] - table).max(1)
        assert (error <= np.maximum(np.abs(table).max(1) / steps * 0.52, 1e-5)).all() and not numbers[3].any()
        assert np.abs(numbers).max() == steps
    assert np.abs(export.quantized(table[-100:], np.ones(100))[0]).max() == 127


def test_frequent_rows_are_kept_more_exactly(trained, monkeypatch):
    """Where a table is large: a word of n training titles in steps of 4 sqrt(n) to each side, 127 at most."""
    monkeypatch.setattr(export, "EXACT", 0)
    run = evaluate.load("bag", folder=trained / "runs")
    [(config, variables)] = run.members
    titles = [set(ids.tolist()) for ids in np.load(trained / "data/prepared/train_titles.npy")]
    count = np.array([sum(word in title for title in titles) for word in range(len(run.vocab))])[2:]
    steps = np.minimum(np.rint(4 * np.sqrt(count)), 127)
    for earlier in (0, 100):  # as if they had trained a former run
        run.members = [(config | {"rows": config["rows"] - earlier, "earlier_rows": earlier}, variables)]
        table = export.model_arrays(run, "int8")["0/table"]
        assert np.abs(table).max(1)[2:len(run.vocab)].tolist() == steps.tolist()
    assert (count == 1).any() and steps.max() > 40


# --- vectors of words -------------------------------------------------------------------------------------------------

def test_vectors_are_those_the_model_reads(trained, tmp_path):
    """word2vec's text: a line with their number and length, then a word and its numbers on each."""
    run_here("export", "--ckpt", "bag", "--vectors", tmp_path / "words.vec", cwd=trained)
    first, *lines = (tmp_path / "words.vec").read_text(encoding="utf-8").splitlines()
    classifier = evaluate.load("bag", folder=trained / "runs")
    assert first == f"{len(classifier.vocab) - 2} {classifier.config['dim']}"
    assert [line.split(" ")[0] for line in lines] == classifier.vocab[2:]
    ids, ensemble = classifier.index, classifier.ensemble
    for line in lines[:3]:
        word, *numbers = line.split(" ")
        batch = data.batch_of({"titles": np.array([[ids[word]]], np.int32)})
        vectors, *_ = predict.inputs(ensemble.predictors[0], batch)
        np.testing.assert_allclose([float(number) for number in numbers], vectors[0, 0], rtol=1e-5)


def test_neighbors_are_the_nearest_by_cosine(trained):
    def neighbors(word, *flags, check=True):
        return run_here("evaluate", "--ckpt", "bag", "--neighbors", word, *flags, cwd=trained, check=check)

    words, vectors = evaluate.load("bag", folder=trained / "runs").word_vectors(["celularr"])
    assert words[-1] == "celularr"
    cosine = sklearn.metrics.pairwise.cosine_similarity(vectors)
    for word, own in (("Funda", words.index("funda")), ("celularr", len(words) - 1)):
        found = [line.split("\t") for line in neighbors(word).stdout.splitlines()]
        wanted = [i for i in np.argsort(-cosine[own][:-1]) if i != own][:10]
        assert [name for name, _ in found] == [words[i] for i in wanted]
        np.testing.assert_allclose([float(x) for _, x in found], cosine[own][wanted], atol=1e-4)
    assert neighbors("celularr", "--top", 1).stdout.startswith("celular\t0.")
    for flags, reason in (((["funda azul"], "one word")), (["qwzzk"], "neither the word nor an n-gram"),
                          (["funda", "--predict", "-"], "give one"), (["funda", "--json"], "--json goes with a report"),
                          (["funda", "--ckpt", "bag", "filters"], "name one run")):
        assert_one_line_error(neighbors(*flags, check=False), reason)


# --- what older versions wrote ----------------------------------------------------------------------------------------

def test_runs_and_models_of_this_format_stay_readable(tmp_path):
    """run-5.zip holds a run of six epochs, what `export.py --dtype float32` made of it, titles, and the answers of
    `evaluate.py --predict titles.txt --top 4`, all by the version that began format 5 of runs and 1 of models. Where a
    format changes, make such a file of the new one, and drop this one once nobody has such runs."""
    with zipfile.ZipFile(ROOT / "tests/data/run-5.zip") as kept:
        kept.extractall(tmp_path)
    (tmp_path / "exported/classify.py").write_bytes((ROOT / "classify.py").read_bytes())
    wanted = (tmp_path / "answers.tsv").read_text(encoding="utf-8")
    done = run_here("evaluate", "--ckpt", "old", "--predict", "titles.txt", "--top", 4, cwd=tmp_path)
    found = answers(tmp_path / "exported", (tmp_path / "titles.txt").read_text(encoding="utf-8"), "--top", 4).stdout
    for answer in (done.stdout, found):
        for one, other in zip(answer.splitlines(), wanted.splitlines(), strict=True):
            # That version named a category where nothing of a title was known.
            assert one.split("\t")[::2] == (other.split("\t")[::2] if float(other.split("\t")[1]) else [""] * 4)
            np.testing.assert_allclose([*map(float, one.split("\t")[1::2])], [*map(float, other.split("\t")[1::2])],
                                       atol=2e-6)
    done = answers(tmp_path / "exported", "mesa\n", "--precision", 0.9, check=False)
    assert_one_line_error(done, "earlier version", "export it again")
