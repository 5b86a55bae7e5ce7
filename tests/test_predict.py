"""Titles to act on: thresholds, whole tables, pipes, explanations, and one title at a time."""
import csv
import gc
import io
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import ROOT, assert_one_line_error, environment, run_here, save
from pyarrow import parquet

import data
import evaluate
from titles import files
from titles import predict as prediction

TITLES = ["funda celular negro", "mesa, grande", "qwzzk", "", "silla azul", "celular funda"]


@pytest.fixture(scope="session")
def classifier(trained):
    return evaluate.load("filters", folder=trained / "runs")


@pytest.fixture
def predict(trained):
    def predict(*args, stdin="", check=True):
        return run_here("evaluate", "--ckpt", "filters", "--predict", *args, cwd=trained, stdin=stdin, check=check)

    return predict


def test_a_classifier_that_nobody_has_takes_no_memory(trained):
    """At once, and not when the garbage collector runs: those with an encoder have 250 MB each."""
    found = evaluate.load("filters", folder=trained / "runs")
    assert found.predict(TITLES, precision=0.6) and found.predict(TITLES, top=2)
    kept = weakref.ref(found)
    gc.disable()
    try:
        del found
        assert kept() is None
    finally:
        gc.enable()


def lines_of(done):
    return [line.split("\t") for line in done.stdout.splitlines()]


def listed(titles):
    return "".join(f"{title}\n" for title in titles)


# --- thresholds -------------------------------------------------------------------------------------------------------

def test_categories_below_the_threshold_are_left_empty(predict, classifier):
    plain = lines_of(predict("-", stdin=listed(TITLES)))
    chances = sorted(float(chance) for _, chance in plain)
    threshold = (chances[3] + chances[4]) / 2
    done = predict("-", "--threshold", threshold, stdin=listed(TITLES))
    assert lines_of(done) == [[name if float(chance) >= threshold else "", chance] for name, chance in plain]
    assert f"4 of 6 titles left without a category: its probability is below {threshold:.4f}" in done.stderr
    found = classifier.predict(TITLES, threshold=threshold)
    assert [row[0][0] for row in found] == [name or None for name, _ in lines_of(done)]


def test_precision_takes_the_threshold_that_promises_it(predict, trained, classifier):
    """Under the training prior, unless another is asked for."""
    for flags, prior in (((), "training"), (("--prior", "training"), "training"), (("--prior", "equal"), "equal")):
        other = evaluate.load("filters", folder=trained / "runs", prior=prior)
        threshold = other.threshold(0.6)  # the tiny set has few validation rows
        assert 0 < threshold < 1
        assert predict("-", "--precision", 0.6, *flags, stdin=listed(TITLES)).stdout == predict(
            "-", "--threshold", threshold, "--prior", prior, stdin=listed(TITLES)).stdout
        wanted = other.predict(TITLES, threshold=threshold)
        assert other.predict(TITLES, precision=0.6) == wanted and other.promising is other
        assert (classifier.predict(TITLES, precision=0.6) == wanted) == (prior == "training")
    assert classifier.promising.prior == "training" and classifier.prior == "equal"
    assert classifier.promising.ensemble.predictors is classifier.ensemble.predictors
    assert_one_line_error(predict("-", "--precision", 0.9, "--threshold", 0.9, check=False), "give one")
    for flag in ("--precision", "--threshold"):
        assert_one_line_error(predict("-", flag, 95, check=False), f"{flag}: '95'", "a share between 0 and 1")
    for wrong, reason in (({"precision": 0.9, "threshold": 0.9}, "give one"), ({"precision": 95}, "precision 95"),
                          ({"threshold": 1.5}, "threshold 1.5"), ({"top": 0}, "top 0")):
        with pytest.raises(ValueError, match=reason):
            classifier.predict(TITLES, **wrong)


def test_a_precision_that_cannot_be_promised_answers_nothing_and_says_which_can(predict, classifier):
    plain = lines_of(predict("-", "--prior", "training", stdin=listed(TITLES)))
    said = classifier.promising.rule(0.9999)[1]
    done = predict("-", "--precision", 0.9999, stdin=listed(TITLES))
    assert lines_of(done) == [["", chance] for _, chance in plain]
    assert f"warning: --precision {said}\n" in done.stderr and " can, for " in said
    with pytest.warns(UserWarning) as warned:
        found = classifier.predict(TITLES, precision=0.9999)
    assert [str(warning.message) for warning in warned] == [said] and warned[0].filename == __file__
    assert found == classifier.promising.predict(TITLES, threshold=float("inf"))
    assert [row[0][0] for row in found] == [None] * 6 and classifier.threshold(0.9999) == float("inf")


def test_candidates_stand_behind_the_answer(predict, classifier, tmp_path):
    """With a threshold and --top, a reviewer sees what was refused."""
    candidates = classifier.predict(TITLES, top=2)
    threshold = sorted(row[0][1] for row in candidates)[-2]  # refuses all but two
    found = classifier.predict(TITLES, top=2, threshold=threshold)
    assert [row[1:] for row in found] == candidates and [len(row) for row in found] == [3] * 6
    assert [row[0] for row in found] == [row[0] for row in classifier.predict(TITLES, threshold=threshold)]
    assert [row[0][0] is None for row in found].count(True) == 4
    lines = [[str(field) for name, chance in row for field in (name or "", f"{chance:.6f}")] for row in found]
    flags = ("--top", 2, "--threshold", repr(threshold))
    assert lines_of(predict("-", *flags, stdin=listed(TITLES))) == lines
    path = save(tmp_path / "table.csv", as_text(TABLE))
    header, *rows = csv.reader(predict(path, "--keep", *flags).stdout.splitlines())
    assert header[4:] == ["predicted_category", "probability", "candidate_1", "probability_1", "candidate_2",
                          "probability_2"]
    assert [row[4:] for row in rows] == lines
    predict(path, "--keep", *flags, "--out", tmp_path / "out.parquet")
    columns = parquet.read_table(tmp_path / "out.parquet")
    assert columns.column_names[4:] == header[4:]
    assert columns["predicted_category"].to_pylist() == [row[0][0] for row in found]  # a null where there is none
    assert columns["candidate_1"].to_pylist() == [row[1][0] for row in found]


def test_a_title_of_which_nothing_is_known_has_no_category_and_probability_0(predict, classifier):
    done = predict("-", "--top", 2, stdin=listed(TITLES))
    assert [line[1] for line in lines_of(done)].count("0.000000") == 2  # qwzzk and the empty one
    assert lines_of(done)[2:4] == [["", "0.000000"] * 2] * 2
    assert "2 of 6 titles of which training has seen no word" in done.stderr
    for title in ("qwzzk", "", "???"):
        for threshold in (None, 0.0001, 0):
            assert set(classifier.predict([title], top=2, threshold=threshold)[0]) == {(None, 0.0)}
        assert classifier.predict_proba([title]).sum() == pytest.approx(1)


# --- whole tables -----------------------------------------------------------------------------------------------------

TABLE = [("sku", "Title", "category", "note"),
         *((f"00{i}", title, "old", 'a "b", c') for i, title in enumerate(TITLES))]


def as_text(table):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def test_tables_are_passed_through(predict, tmp_path):
    plain = lines_of(predict("-", "--top", 2, stdin=listed(TITLES)))
    expected = [[*TABLE[0], "predicted_category", "probability", "category_2", "probability_2"],
                *([*row, *line] for row, line in zip(TABLE[1:], plain, strict=True))]
    path = save(tmp_path / "table.csv", as_text(TABLE))
    assert list(csv.reader(predict(path, "--keep", "--top", 2).stdout.splitlines())) == expected
    assert predict(path, "--keep", "--top", 2, "--out", tmp_path / "out.csv").stdout == ""
    assert list(csv.reader((tmp_path / "out.csv").read_text().splitlines())) == expected
    piped = predict("-", "--keep", "--top", 2, stdin=as_text(TABLE))
    assert list(csv.reader(piped.stdout.splitlines())) == expected


def test_parquet_goes_in_and_out_with_its_types(predict, tmp_path):
    plain = lines_of(predict("-", stdin=listed(TITLES)))
    table = pa.table({"id": range(6), "text": TITLES, "price": [1.5, None, 3.0, 4.0, 5.0, 6.0]})
    parquet.write_table(table, tmp_path / "in.parquet")
    predict(tmp_path / "in.parquet", "--keep", "--out", tmp_path / "out.parquet")
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names) == table and found["probability"].type in (pa.float64(), pa.float32())
    assert found["category"].to_pylist() == [name or None for name, _ in plain]
    np.testing.assert_allclose(found["probability"].to_pylist(), [float(chance) for _, chance in plain], atol=1e-6)

    save(tmp_path / "table.csv", as_text(TABLE))
    predict(tmp_path / "table.csv", "--keep", "--out", tmp_path / "again.parquet")
    assert parquet.read_table(tmp_path / "again.parquet")["sku"].to_pylist() == [row[0] for row in TABLE[1:]]
    save(tmp_path / "empty.csv", "title,x\n")
    predict(tmp_path / "empty.csv", "--keep", "--out", tmp_path / "none.parquet")
    assert parquet.read_table(tmp_path / "none.parquet").column_names == ["title", "x", "category", "probability"]


def test_a_table_of_excel_comes_back_as_it_went(predict, tmp_path):
    """Semicolons, Windows line ends and cp1252, as Excel writes CSV, to a file and to standard output."""
    content = 'sku;título;price\r\n007;"mesa; ""ñandú""";1,5\r\n008;silla;\r\n'
    path, flags = save(tmp_path / "in.csv", content.encode("cp1252")), ("--title-column", "título", "--keep")
    assert_one_line_error(predict(path, *flags, check=False), "in.csv:1: not UTF-8; name its encoding with --encoding")
    predict(path, *flags, "--encoding", "cp1252", "--out", tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_bytes().decode("cp1252").split("\r\n")
    assert lines[0] == "sku;título;price;category;probability" and len(lines) == 4
    assert lines[1].startswith('007;"mesa; ""ñandú""";1,5;MESAS;0.') and lines[2].startswith("008;silla;;SILLAS;0.")
    save(tmp_path / "in.csv", content)
    assert predict(path, *flags).stdout.split("\r\n") == lines
    for suffix, separator in ((".csv", ";"), (".txt", ";"), (".tsv", "\t")):
        out = tmp_path / f"out{suffix}"
        predict(path, *flags, "--out", out, "--out-encoding", "utf-16")
        assert out.read_bytes().decode("utf-16").startswith(separator.join(["sku", "título", "price", "category"]))
    predict(path, *flags, "--out-separator", "tab", "--out", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith("sku\ttítulo\t".encode())


def test_the_name_of_out_says_what_is_written(predict, tmp_path):
    path = save(tmp_path / "in.csv", "title,category\nmesa,x\n")
    predict(path, "--keep", "--out", tmp_path / "out.jsonl")
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert list(found) == ["title", "category", "predicted_category", "probability"]
    assert found["predicted_category"] == "MESAS"
    for name, word in (("x.json", ".jsonl"), ("x.xls", ".xlsx"), ("x.csv.gz", "compress it then")):
        assert_one_line_error(predict(path, "--keep", "--out", tmp_path / name, check=False), name, "not written", word)
    for name in ("x.jsonl", "x.xlsx"):
        assert_one_line_error(predict(path, "--out", tmp_path / name, check=False), "is written with --keep")
    done = predict(path, "--keep", "--out", tmp_path / "x.jsonl", "--out-encoding", "cp1252", check=False)
    assert_one_line_error(done, "are of CSV")
    assert_one_line_error(predict(path, "--out-separator", ";", check=False), "--out-separator goes with --keep")
    assert_one_line_error(predict(path, "--keep", "--out-separator", "::", check=False), "--out-separator")
    assert [*tmp_path.glob("x.*")] == []


def test_out_is_never_the_file_that_is_read(predict, tmp_path, monkeypatch):
    path = save(tmp_path / "in.csv", "title\nmesa\n")
    (tmp_path / "link.csv").symlink_to("in.csv")
    os.link(path, tmp_path / "hard.csv")
    for name in ("in.csv", "./in.csv", "link.csv", "hard.csv"):
        done = predict(path, "--keep", "--out", f"{tmp_path}/{name}", check=False)
        assert_one_line_error(done, f"--out {tmp_path}/{name.removeprefix('./')}: is the file that --predict reads")
    assert path.read_text() == "title\nmesa\n"


def test_ids_are_kept_with_the_table(predict, tmp_path):
    save(tmp_path / "ids.csv", "id,title\n7,mesa\n8,silla\n")
    assert predict(tmp_path / "ids.csv").stdout == "id,category\n7,MESAS\n8,SILLAS\n"
    rows = list(csv.reader(predict(tmp_path / "ids.csv", "--keep").stdout.splitlines()))
    assert [row[:3] for row in rows] == [["id", "title", "category"], ["7", "mesa", "MESAS"], ["8", "silla", "SILLAS"]]


def test_what_cannot_be_kept_is_refused(predict, tmp_path):
    assert_one_line_error(predict("-", "--keep", stdin="mesa\nsilla\n", check=False), "no title", "--title-column")
    path = save(tmp_path / "in.csv", "title\nmesa\n")
    assert_one_line_error(predict(path, "--out", tmp_path / "x.parquet", check=False), "--keep")
    broken = save(tmp_path / "broken.csv", "title,x\nmesa,1\nsilla\n")
    assert_one_line_error(predict(broken, "--keep", "--out", tmp_path / "y.csv", check=False), "broken.csv:3")
    assert not (tmp_path / "y.csv").exists()


# --- blocks of titles -------------------------------------------------------------------------------------------------

MANY = ["funda negro", "mesa azul", "silla", "celular x1", "", "funda estuche", "silla cadeira", "mesa nuevo", "qwzzk",
        "teléfono azul", "cadeira"]  # whatever block they are in, neighbours differ


@pytest.fixture
def small_blocks(monkeypatch):
    """Titles are classified three at a time."""
    monkeypatch.setattr(prediction, "PREDICT_ROWS", 3)


def test_each_title_of_many_blocks_gets_its_own_answer(classifier, small_blocks):
    labels, alone = np.arange(len(MANY)) % 4, [classifier.predict([title], top=2)[0] for title in MANY]
    together = classifier.predict(MANY, top=2)
    assert [[name for name, _ in row] for row in together] == [[name for name, _ in row] for row in alone]
    np.testing.assert_allclose([[p for _, p in row] for row in together], [[p for _, p in row] for row in alone],
                               atol=1e-5)
    chances = classifier.predict_proba(MANY)
    names = [classifier.labels[i] if row[0][0] else None for i, row in zip(chances.argmax(1), alone, strict=True)]
    assert names == [row[0][0] for row in alone] and len({*names}) == 5
    found = classifier.score(MANY, labels)
    np.testing.assert_allclose(found["given_probability"], chances[np.arange(len(MANY)), labels], rtol=1e-4)
    assert found["known"].tolist() == [name is not None for name in names] == (found["probability"] > 0).tolist()


@pytest.mark.parametrize("keep", [(), ("--keep",)], ids=["answers", "tables"])
def test_answers_of_many_blocks_stand_in_the_order_of_the_titles(predict, classifier, small_blocks, tmp_path, keep):
    """Of a file, where a block is classified while another is written, and of a pipe."""
    wanted = [[name or "", f"{chance:.4f}"] for [(name, chance)] in (classifier.predict([title])[0] for title in MANY)]
    path = save(tmp_path / "many.csv", as_text([("note", "title"), *enumerate(MANY)]))
    for done in (predict(path, *keep), predict("-", *keep, stdin=path.read_text())):
        rows = [*csv.reader(done.stdout.splitlines())][1:] if keep else lines_of(done)
        assert [[row[-2], f"{float(row[-1]):.4f}"] for row in rows] == wanted
        assert not keep or [row[:2] for row in rows] == [[str(i), title] for i, title in enumerate(MANY)]
    save(tmp_path / "ids.csv", as_text([("id", "title"), *enumerate(MANY)]))
    lines = predict(tmp_path / "ids.csv").stdout.splitlines()
    assert lines[1:] == [f"{i},{name}" for i, (name, _) in enumerate(wanted)]


# --- explanations -----------------------------------------------------------------------------------------------------

def test_the_words_that_spoke_most(predict, classifier):
    done = predict("-", "--explain", stdin="nuevo azul silla\n\nqwzzk\n")
    (name, _, words), *others = lines_of(done)
    assert name == "SILLAS" and words.startswith("silla:")
    gains = [float(found.split(":")[1]) for found in words.split(" ")]
    assert gains == sorted(gains, reverse=True)
    assert [line[2] for line in others] == ["", ""]

    # By the definition: the logarithm of the probability with and without the word.
    at = classifier.labels.index("SILLAS")
    for word, gain in (found.split(":") for found in words.split(" ")):
        rest = " ".join(each for each in ["nuevo", "azul", "silla"] if each != word)
        both = classifier.predict_proba(["nuevo azul silla", rest])[:, at]
        assert float(gain) == pytest.approx(np.log(both[0] / both[1]), abs=0.006)


# --- pipes ------------------------------------------------------------------------------------------------------------

def test_a_line_is_answered_while_the_producer_pauses(trained):
    command = [sys.executable, str(ROOT / "evaluate.py"), "--ckpt", "bag", "--predict", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=trained, env=environment(), **pipes) as done:
        for title, category in (("mesa", "MESAS"), ("silla", "SILLAS"), ("celular x1", "CELULARES")):
            done.stdin.write(f"{title}\n".encode())
            done.stdin.flush()
            assert done.stdout.readline().decode().split("\t")[0] == category  # hangs if it is not answered
        done.stdin.close()
        assert not done.stdout.read() and done.wait() == 0


def test_a_fast_pipe_is_read_in_large_blocks():
    """What has come by the time it is read is one block."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as producer:
        for _ in range(3):
            producer.write(b"x" * 9000 + b"\n")
        assert len(files.read_ready(pipe, 1 << 20)) == 27_003
        producer.write(b"y" * 9000)
        assert len(files.read_ready(pipe, 5000)) == 5000


# --- from Python ------------------------------------------------------------------------------------------------------

def test_a_pandas_column_is_classified_as_the_readme_says(classifier):
    frame = pd.DataFrame({"title": ["mesa grande", None, "funda negro"]})
    frame["category"] = [found[0][0] if found else None for found in classifier.predict(frame["title"])]
    assert frame["category"].tolist()[::2] == ["MESAS", "FUNDAS"] and pd.isna(frame["category"][1])
    assert classifier.predict([pd.NA, "mesa"])[0] == []


def test_one_title_at_a_time_gives_what_many_give(classifier):
    titles = [*TITLES, "teléfono nuevo x3 mesa", "una cosa que nadie vio nunca jamas"]
    many = classifier.predict(titles, top=2)
    for title, expected in zip(titles, many, strict=True):
        (found,) = classifier.predict([title], top=2)
        assert [name for name, _ in found] == [name for name, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=1e-5)


def test_one_title_compiles_nothing_after_the_first(classifier):
    """A shop asks for one title at a time: only calls of compiled programs, whatever words it has."""
    import jax
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for title in ("mesa azul", "mesa xyzw nueva qqq", "una mesa muy grande y otra cosa mas larga aun que sigue"):
        classifier.predict([title])
    assert [event for event in compiled if event.endswith("backend_compile_duration")]
    compiled.clear()
    classifier.predict(["silla xyzq vieja rrr"])
    classifier.predict(["otra silla"])
    assert not [event for event in compiled if event.endswith("backend_compile_duration")]


def test_new_words_do_not_copy_the_vectors_of_the_others(classifier):
    index, ensemble = classifier.index, classifier.ensemble
    ids, words = data.encode(["mesa zzzyx"], index, 5)
    assert words == ["zzzyx"] and ids.max() == len(index)
    predictor = prediction.extended(classifier.config, ensemble.predictors[0], words)
    assert predictor.words[0] is ensemble.predictors[0].words[0]


def test_importing_the_scripts_has_no_effect(tmp_path):
    """No file, no flag parsed, nothing printed, no signal handler set."""
    code = ("import signal, sys; sys.argv = ['x', '--nonsense']; before = signal.getsignal(signal.SIGINT)\n"
            "import data, evaluate, export, model, prepare, synthetic, train\n"
            "from titles import calibration, files, page, predict, report, runs, sources, tables, tracking\n"
            "assert signal.getsignal(signal.SIGINT) is before")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=environment(PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_a_few_titles_load_no_large_library_for_nothing(trained):
    """Each of these would be a sixth or more of the time that one title takes."""
    script = ROOT / "evaluate.py"
    code = (f"import runpy, sys; sys.argv = ['evaluate.py', '--ckpt', 'filters', '--predict', '-']\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
            "print(sorted({'matplotlib', 'mlflow', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], input="funda celular\n\n", cwd=trained, env=environment(),
                          capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
