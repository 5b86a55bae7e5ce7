"""What breaks for people: devices, environment variables, moved projects, odd names and odd files, by the scripts."""
import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import (
    ROOT,
    assert_one_line_error,
    assert_same_run,
    run_here,
    run_script,
    save,
    snapshot,
    tiny_rows,
    write_csv,
)

from titles import cli, report

TITLES = ["funda azul ñandú", "teléfono móvil", "mesa 24\" café", "silla"]


def predicted(folder, *args, stdin="", env=None, check=True):
    run = run_script if env else run_here
    return run("evaluate", "--ckpt", "bag", "--predict", *args, cwd=folder, stdin=stdin, env=env, check=check)


@pytest.fixture(scope="module")
def expected(trained):
    """What TITLES are classified as, a line each."""
    return predicted(trained, "-", stdin="".join(f"{title}\n" for title in TITLES)).stdout


# --- the environment --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "value", "word"), [
    ("JAX_PLATFORMS", "cuda", "no device to compute on with JAX_PLATFORMS=cuda"),
    ("JAX_PLATFORMS", "abacus", "no device to compute on with JAX_PLATFORMS=abacus"),
    ("JAX_LOG_COMPILES", "perhaps", "JAX does not start (invalid truth value 'perhaps'"),
    ("JAX_TRACEBACK_FILTERING", "7", "JAX does not start (")])
def test_what_the_environment_forbids_is_not_blamed_on_the_data(trained, tmp_path, name, value, word):
    before = snapshot(trained / "runs")
    assert_one_line_error(predicted(trained, "-", "--out", tmp_path / "found.csv", stdin="silla\n", env={name: value},
                                    check=False), word)
    if value == "cuda":  # the others go the same way
        assert_one_line_error(run_script("train", "--name", "never", cwd=trained, env={name: value}, check=False), word)
    assert snapshot(trained / "runs") == before


STRICT = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_TRANSFER_GUARD": "disallow",
          "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_DEBUG_NANS": "1"}


@pytest.mark.slow
def test_results_do_not_depend_on_jax_variables(trained, tmp_path, expected):
    warnings = sorted(f"warning: {name} is ignored, so that results do not depend on it" for name in STRICT)
    done = predicted(trained, "-", stdin="".join(f"{title}\n" for title in TITLES), env=STRICT)
    assert done.stdout == expected and sorted(done.stderr.splitlines()) == warnings
    shutil.copytree(trained / "data", tmp_path / "data")
    done = run_script("train", "--name", "bag", "--epochs", 4, "--dim", 16, cwd=tmp_path, env=STRICT)
    assert_same_run(trained / "runs/bag", tmp_path / "runs/bag")


def test_scripts_find_their_modules_on_a_safe_path(trained, tmp_path, expected):
    safe = {"PYTHONSAFEPATH": "1"}
    run_script("synthetic", "--rows", 300, "--out", "titles.csv", cwd=tmp_path, env=safe)
    run_script("prepare", "--data", "titles.csv", cwd=tmp_path, env=safe)
    assert "--dropout" in run_script("train", "--help", cwd=tmp_path, env=safe).stdout
    assert predicted(trained, "-", stdin="".join(f"{title}\n" for title in TITLES), env=safe).stdout == expected


def test_the_packages_asked_for_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split("[<>=!]", line)[0] for line in lines if line and not line.startswith("#")}
    imported = {"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}
    assert {imported.get(name, name) for name in names} == set(cli.PACKAGES)


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "export", "synthetic"])
def test_a_python_without_the_packages_is_told_which_one_to_use(name, tmp_path):
    flags = ["--out", "x", *["--predict", "-"] * (name == "evaluate")] if name in ("export", "evaluate") else []
    done = subprocess.run([sys.executable, "-S", ROOT / f"{name}.py", *flags], cwd=tmp_path, capture_output=True,
                          text=True, check=False)
    assert_one_line_error(done, "numpy is not installed for ", "activate the environment", "requirements.txt")


# --- a project that was copied ----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_copied_project_leaves_the_original_alone(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    before = snapshot(trained)
    done = run_script("evaluate", "--ckpt", "bag", "--split", "valid", cwd=copy)
    assert snapshot(trained) == before and (copy / "runs/bag/valid-best/report.json").is_file()
    assert done.stderr.startswith("warning: not logged to MLflow: its database ") and str(trained) in done.stderr
    run_script("evaluate", "--ckpt", "bag", "--split", "valid", cwd=trained)
    assert [*(trained / "mlruns").rglob("valid-best/report.json")]


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {"FUNDAS": "$5 a $10", "CELULARES": "手机/电话", "MESAS": "_^{\\frac", "SILLAS": "Café <b> & \"x\""}
LANGUAGES = {"spanish": "pt br", "portuguese": "pt_br"}


def test_categories_and_languages_may_have_any_name(tmp_path):
    rows = [json.dumps({"title": title, "language": LANGUAGES[language], "category": NAMES[category]})
            for title, _, language, category in tiny_rows()]
    save(tmp_path / "titles.jsonl", "\n".join(rows))
    run_here("prepare", "--data", "titles.jsonl", cwd=tmp_path)
    run_here("train", "--name", "odd", "--epochs", 2, "--dim", 8, cwd=tmp_path)
    done = run_here("evaluate", "--ckpt", "odd", cwd=tmp_path)
    assert done.stderr == "" and {path.name for path in (tmp_path / "runs/odd/test-best").iterdir()} == {
        *report.FILES} - {"unknown.csv", "values.csv", "nodes.csv", "against.csv", "answered.png"}
    scores = json.loads((tmp_path / "runs/odd/test-best/report.json").read_text())["slices"]
    assert {f"language {name}" for name in LANGUAGES.values()} <= scores.keys()


# --- files to classify ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_titles_in_another_encoding(trained, tmp_path, expected, encoding):
    for name, content in (("list.txt", "".join(f"{title}\r\n" for title in TITLES)),
                          ("table.txt", "x\ttitle\r\n" + "".join(f"1\t{title}\r\n" for title in TITLES))):
        path = save(tmp_path / name, content.encode(encoding))
        assert predicted(trained, path, "--encoding", encoding).stdout == expected
    if encoding != "utf-8-sig":  # without the flag, the line says which one it is
        for name, flags in (("list.txt", ()), ("table.txt", ("--keep",))):
            done = predicted(trained, tmp_path / name, *flags, check=False)
            assert_one_line_error(done, "not ", "UTF-8", f"--encoding, such as {encoding}" if encoding == "cp1252"
                                  else f"such as {encoding}, name that with --encoding")
            assert not done.stdout
        done = run_here("evaluate", "--ckpt", "bag", "--test", tmp_path / "table.txt", "--category-column", "x",
                        cwd=trained, check=False)
        assert_one_line_error(done, "UTF-8", encoding, "--encoding")
    if encoding == "cp1252":  # a list of which some is UTF-8 is classified
        path = save(tmp_path / "mixed.txt", "ñandú\n".encode() * 3 + (tmp_path / "list.txt").read_bytes())
        done = predicted(trained, path)
        assert done.stdout.count("\n") == len(TITLES) + 3
        assert f"warning: {tmp_path}/mixed.txt:4: bytes that are not UTF-8 were replaced" in done.stderr
        assert "(and 2 more)" in done.stderr and "--encoding cp1252" in done.stderr


@pytest.mark.parametrize("column", ["Nombre", "2"])
def test_the_column_of_titles_may_be_named_or_numbered(trained, tmp_path, expected, column):
    table = pa.table({"price": np.arange(len(TITLES)) / 3, "Nombre": TITLES})
    pa.parquet.write_table(table, tmp_path / "titles.parquet")
    save(tmp_path / "titles.parquet.gz", gzip.compress((tmp_path / "titles.parquet").read_bytes()))
    save(tmp_path / "titles.csv", "price;Nombre\n" + "".join(f"1;{title}\n" for title in TITLES))
    for name in ("titles.parquet", "titles.parquet.gz", "titles.csv"):
        assert predicted(trained, tmp_path / name, "--title-column", column).stdout == expected
        assert_one_line_error(predicted(trained, tmp_path / name, check=False), tmp_path / name, "--title-column")


def test_flags_that_go_with_predict(trained):
    for flags in (("--title-column", "x"), ("--encoding", "utf-16")):
        assert_one_line_error(run_here("evaluate", *flags, cwd=trained, check=False), "goes with --predict")
    done = run_script("evaluate", "--predict", "-", "--encoding", "utf-17", cwd=trained, check=False)
    assert_one_line_error(done, "argument --encoding: invalid encoding value: 'utf-17'")


def test_columns_of_training_data_may_be_named_or_numbered(tmp_path):
    rows = [(row[0], row[3]) for row in tiny_rows(100)]
    for flags in (("Name", "Kind"), (1, 2)):
        write_csv(tmp_path / "titles.csv", rows, "Name,Kind")
        pa.parquet.write_table(pa.table({"Name": [row[0] for row in rows], "Kind": [row[1] for row in rows]}),
                               tmp_path / "titles.parquet")
        for name in ("titles.csv", "titles.parquet"):
            run_here("prepare", "--data", name, "--title-column", flags[0], "--category-column", flags[1],
                       "--out", name[7:], cwd=tmp_path)
        first, second = ((tmp_path / name / "train_text.txt").read_text() for name in ("csv", "parquet"))
        assert first == second and first.count("\n") > 60
    assert_one_line_error(run_here("prepare", "--data", "titles.parquet", cwd=tmp_path, check=False),
                          "titles.parquet:1: the header needs one column title or text, and says Name, Kind")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_what_data_was_prepared_with_serves_its_runs(tmp_path, encoding):
    """Column flags and encoding, where they fit the file; then nothing is said."""
    content = "".join(f"{row[0]};5;{row[3]}\n" for row in tiny_rows(200))
    save(tmp_path / "titles.csv", f"Título;price;Rubro\n{content}".encode(encoding))
    flags = ("--title-column", "Título", "--encoding", encoding)
    run_here("prepare", "--data", "titles.csv", *flags, "--category-column", 3, cwd=tmp_path)
    run_here("train", "--name", "bag", "--epochs", 2, "--dim", 8, cwd=tmp_path)

    def said(*args, stdin=""):
        done = run_here("evaluate", "--ckpt", "bag", *args, cwd=tmp_path, stdin=stdin)
        assert not [line for line in done.stderr.splitlines() if "titles that trained bag" not in line]
        return done.stdout

    titles = ["mesa ñandú", "teléfono móvil"]
    expected = said("--predict", "-", stdin="".join(f"{title}\n" for title in titles))
    save(tmp_path / "new.csv", ("x;Título\r\n" + "".join(f"1;{title}\r\n" for title in titles)).encode(encoding))
    save(tmp_path / "list.txt", "".join(f"{title}\n" for title in titles).encode(encoding))
    save(tmp_path / "usual.csv", "x,title\n" + "".join(f"1,{title}\n" for title in titles))
    save(tmp_path / "own.csv", "title,Título\n" + "".join(f"no,{title}\n" for title in titles))
    for name in ("new.csv", "list.txt", "usual.csv", "own.csv"):
        assert said("--predict", name) == expected
    said("--predict", "new.csv", "--keep", "--out", "out.csv")
    assert (tmp_path / "out.csv").read_bytes().decode(encoding).startswith("x;Título;category;probability\r\n")
    scores = [json.loads(said("--test", "titles.csv", "--json", *more))
              for more in ((), (*flags, "--category-column", 3))]
    assert scores[0] == scores[1] and scores[0]["rows"] == 200
    save(tmp_path / "plain.csv", "title,category\n" + content.replace(";5;", ","))
    assert json.loads(said("--test", "plain.csv", "--json"))["accuracy"] == scores[0]["accuracy"]

    save(tmp_path / "bad.csv", "title,category\nmesa,A,B\n")
    done = run_here("evaluate", "--ckpt", "bag", "--test", "bad.csv", cwd=tmp_path, check=False)
    assert_one_line_error(done, "3 columns instead of 2 (1 bad rows of 1; mend them)")

    # A number may mean a column of another kind here, and other data has nothing to do with the run.
    save(tmp_path / "doubt.csv", "category,title,price\nMESAS,mesa,5\n")
    done = run_here("evaluate", "--ckpt", "bag", "--test", "doubt.csv", cwd=tmp_path, check=False)
    assert_one_line_error(done, "the header needs one column 3 or category or label", "--category-column")
    save(tmp_path / "other.csv", "title,category\n" + content.replace(";5;", ","))
    run_here("prepare", "--data", "other.csv", cwd=tmp_path)
    done = run_here("evaluate", "--ckpt", "bag", "--predict", "new.csv", cwd=tmp_path, check=False)
    assert_one_line_error(done, "UTF-8", encoding, "--encoding")


# --- messages ---------------------------------------------------------------------------------------------------------

MISTYPED = [  # (script, flags, words of the one line)
    ("train", ["--epoch", 2], ["--epoch 2", "did you mean --epochs?"]),
    ("train", ["cnn"], ["did you mean --model cnn?"]),
    ("train", ["--data", "raw"], ["raw: no prepared data here", "run prepare.py, whose --data takes titles"]),
    ("train", ["--data", "tiny.csv"], ["tiny.csv: no prepared data here", "run prepare.py, whose --data"]),
    ("evaluate", ["bag"], ["did you mean --ckpt bag?"]),
    ("evaluate", ["tiny.csv"], ["did you mean --predict tiny.csv?"]),
    ("evaluate", ["--predict", "zapatillas running"], ["no such file", "echo 'zapatillas running' | python"]),
    ("export", ["bag"], ["did you mean --ckpt bag?"]),
    ("prepare", ["tiny.csv"], ["did you mean --data tiny.csv?"]),
    ("prepare", ["--data", "raw"], ["the train split is empty", "says test of all rows", "--test"])]


@pytest.mark.parametrize(("script", "flags", "words"), MISTYPED)
def test_what_was_meant_is_said(trained, tmp_path, script, flags, words):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copyfile(trained / "tiny.csv", tmp_path / "tiny.csv")
    save(tmp_path / "raw/sample.csv", "title,category,split\nmesa,A,test\nsilla,B,test\n")
    assert_one_line_error(run_here(script, *flags, cwd=tmp_path, check=False), *words)


def test_a_finished_run_says_so_when_it_is_resumed(trained):
    done = run_here("train", "--resume", "bag", cwd=trained)
    assert "nothing is left to train" in done.stdout and "ready after" in done.stdout and not done.stderr
