"""The examples of docs/engines.md, as they stand there, give the answers of classify.py row for row; where an engine is
not installed its examples are skipped. What they rest on: columns in, columns out, one model a process, forks."""
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from benchmark import EXAMPLES
from conftest import environment, run_here

import classify

ODD = [None, "", "mesa silla azul " * 70_000, "???", "qwzzk"]  # the third is a megabyte
ROWS = 6000

pytestmark = pytest.mark.filterwarnings("ignore:.* cannot be promised:UserWarning")  # of so few validation rows


@pytest.fixture(scope="module")
def shop(trained, tmp_path_factory):
    """A folder as the page wants it; offers.parquet in three files, of which one is empty, has also a column `id`."""
    folder = tmp_path_factory.mktemp("engines")
    run_here("export", "--ckpt", "bag", "--out", folder / "exported", cwd=trained)
    draw = np.random.default_rng(0)
    words = [f"{word}{end}" for word in ("mesa", "silla", "celular", "azul", "nuevo", "xyz") for end in ("", "s", "q")]
    titles = [" ".join(draw.choice(words, draw.integers(1, 9)).tolist()) for _ in range(ROWS)]
    titles[5:5 + len(ODD)] = ODD
    titles[-1] = None
    (folder / "offers.parquet").mkdir()
    for i, (start, end) in enumerate(((0, 2500), (2500, 2500), (2500, ROWS))):
        pa.parquet.write_table(pa.table({"id": pa.array(range(start, end), pa.int64()),
                                         "title": pa.array(titles[start:end], pa.string())}),
                               folder / f"offers.parquet/{i}.parquet", row_group_size=700)
    return folder, titles


@pytest.fixture(scope="module")
def small(shop):
    return classify.Classifier(shop[0] / "exported/model.npz")


def run_example(folder, code):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300,
                          env=environment(PYTHONPATH=str(folder / "exported"), PYSPARK_PYTHON=sys.executable))


def require_engine(name):
    pytest.importorskip({"spark": "pyspark"}.get(name, name))
    if name == "spark" and not shutil.which("java"):
        pytest.skip("PySpark needs Java")


def answers_in(folder):
    """The rows that an example has written, in the order of their files."""
    path = next(path for path in (folder / "scored", folder / "scored.parquet") if path.exists())
    table = pyarrow.dataset.dataset(path, format="parquet", exclude_invalid_files=False).to_table()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return table


def test_the_page_has_an_example_of_each_engine_that_is_short():
    assert [*EXAMPLES] == ["Spark with MLflow", "Spark without MLflow", "Ray", "Dask", "DuckDB", "Polars"]
    for code in EXAMPLES.values():
        statements = re.sub(r",\n +", ", ", code)
        assert len([line for line in statements.splitlines() if line and not line.startswith(("import", "from"))]) <= 10


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "Spark" in name or name == "Ray" else ())
                                  for name in EXAMPLES])
def test_an_engine_gives_the_answers_of_the_file(name, shop, small, trained, tmp_path):
    engine, (source, titles) = name.split()[0].lower(), shop
    require_engine(engine)
    folder = shutil.copytree(source, tmp_path / "here")
    if "with MLflow" in name:
        # The same run again, for its database must be its own.
        shutil.copytree(trained / "data/prepared", folder / "data/prepared")
        run_here("train", "--name", "bag", "--epochs", 4, "--dim", 16, cwd=folder)
        run_here("export", "--ckpt", "bag", "--register", "titles", "--alias", "champion", cwd=folder)
    if engine in ("duckdb", "polars"):  # files of a folder have a pattern there
        table = pa.parquet.read_table(folder / "offers.parquet")
        shutil.rmtree(folder / "offers.parquet")
        pa.parquet.write_table(table, folder / "offers.parquet", row_group_size=700)

    # This model cannot promise what the examples ask for, so all is null there; of the other precision some is.
    for precision, nulls in (("0.7", range(3, ROWS)), ("0.9", [ROWS])):
        done = run_example(folder, EXAMPLES[name].replace("0.9", precision))
        assert done.returncode == 0, done.stderr[-3000:]
        found = answers_in(folder)
        assert found.schema.names == ["id", "title", "category", "probability"]
        found = found.sort_by("id")
        assert found["id"].to_pylist() == [*range(ROWS)] and found["title"].to_pylist() == titles
        wanted = small.predict_columns(titles, precision=float(precision))
        assert found["category"].to_pylist() == wanted["category"].tolist()
        assert found["category"].null_count in nulls and found["probability"].null_count == titles.count(None) == 2
        np.testing.assert_allclose(found["probability"].to_numpy(), wanted["probability"], atol=1e-5)

    if "with MLflow" in name:
        code = EXAMPLES[name].replace('{"precision": 0.9}', '{"precision": 0.7, "top": 2}').replace(
            'probability float"', 'probability float, candidate_2 string, probability_2 float"')
        assert run_example(folder, code).returncode == 0
        found, wanted = answers_in(folder).sort_by("id"), small.predict_columns(titles, precision=0.7, top=2)
        assert found.schema.names == ["id", "title", "category", "probability", "candidate_2", "probability_2"]
        for column in ("category", "candidate_2"):
            assert found[column].to_pylist() == wanted[column].tolist()


@pytest.mark.parametrize(("name", "words"), [
    ("DuckDB", ["row 3, counted from 0", "no title"]), ("Polars", ["row 3, counted from 0", "no title"]),
    ("Dask", ["row 3, counted from 0", "no title"])])
def test_a_column_that_is_no_text_and_a_file_that_is_no_model_end_the_job(name, words, shop, tmp_path):
    require_engine(name.lower())
    (tmp_path / "exported").symlink_to(shop[0] / "exported")
    types = pa.table({"id": [0, 1, 2, 3], "title": pa.array([None, None, None, 7], pa.int64())})
    pa.parquet.write_table(types, tmp_path / "offers.parquet")
    code = EXAMPLES[name].replace("VARCHAR\"]", "BIGINT\"]")
    done = run_example(tmp_path, code)
    assert done.returncode == 1 and all(word in done.stderr for word in words), done.stderr[-2000:]
    (tmp_path / "exported").unlink()
    shutil.copytree(shop[0] / "exported", tmp_path / "exported")
    (tmp_path / "exported/model.npz").write_bytes(b"an older one")
    done = run_example(tmp_path, code)
    assert done.returncode == 1 and "exported/model.npz: " in done.stderr
    assert not any(path.stat().st_size for path in tmp_path.glob("scored*") if path.is_file())


# --- what they rest on ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["list", "NumPy", "pandas", "objects", "Arrow", "chunks", "table", "frame"])
def test_columns_of_all_kinds_are_answered_alike(kind, shop, small):
    titles = shop[1][:300]
    given = {"list": lambda: titles, "NumPy": lambda: np.array(titles, object), "pandas": lambda: pd.Series(titles),
             "objects": lambda: pd.Series(titles, dtype=object, index=range(300, 600)),
             "Arrow": lambda: pa.array(titles), "chunks": lambda: pa.chunked_array([titles[:5], titles[5:]]),
             "table": lambda: pa.table({"title": titles}),
             "frame": lambda: pd.DataFrame({"title": titles})}[kind]()
    for options in ({}, {"top": 3}, {"threshold": 0.5}, {"precision": 0.9, "top": 2}):
        found, rows = small.predict_columns(given, **options), small.predict(titles, **options)
        assert [*found] == classify.answer_columns(options.get("top", 1), len(options) > 1 or "threshold" in options)
        assert {column.dtype for column in found.values()} == {np.dtype(object), np.dtype(np.float32)}
        columns = [[None if value != value else value for value in column.tolist()] for column in found.values()]
        width = len(columns)
        assert [*zip(*columns, strict=True)] == [
            tuple(value for pair in row for value in pair) or (None,) * width for row in rows]


@pytest.mark.parametrize("titles", [[], [None], [None, None]])
def test_where_no_row_has_a_title_columns_are_empty(titles, small):
    found = small.predict_columns(titles, top=2, precision=0.9)
    assert [*found] == classify.answer_columns(2, True)
    assert all(len(column) == len(titles) for column in found.values())
    assert found["category"].tolist() == titles and np.isnan(found["probability"]).all()


@pytest.mark.parametrize("title", [7, 7.5, b"mesa", ["mesa"] * 1000, {"a": 1}])
def test_what_is_no_text_names_its_row(title, small):
    of_list = [] if isinstance(title, dict) else [[None, "mesa", title]]  # there it is a row with columns
    for given in (*of_list, pd.DataFrame({"title": [None, "mesa", title]})):
        with pytest.raises(TypeError, match=r"^row 2, counted from 0: .{1,110} is no title; wanted str"):
            small.predict_columns(given)


def test_a_process_reads_a_model_once(shop):
    path, together = str(shop[0] / "exported/model.npz"), threading.Barrier(8)

    def load(_):
        together.wait()
        return classify.load(path)

    with ThreadPoolExecutor(8) as pool:
        assert len({*map(id, pool.map(load, range(8)))}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_answers_though_a_thread_was_at_work(shop, small):
    wanted = small.predict(["mesa silla"])
    held, go_on = threading.Event(), threading.Event()

    def work():
        with small.lock:
            small.positions["mesa"] = 10 ** 6  # half learnt
            held.set()
            go_on.wait()
        small.forget()

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        child = os.fork()
    if not child:
        answerer = threading.Thread(target=lambda: os._exit(small.predict(["mesa silla"]) != wanted), daemon=True)
        answerer.start()
        answerer.join(20)
        os._exit(3)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nulls_stay_nulls_in_spark(small, shop, monkeypatch):
    """mlflow.pyfunc.spark_udf asks a column of text for NumPy's str, elsewhere it is objects."""
    mlflow = pytest.importorskip("mlflow")
    model = classify.mlflow_model()
    assert isinstance(model, mlflow.pyfunc.PythonModel)
    model.classifier = small
    titles = pd.DataFrame({"title": ["mesa silla azul", None]})
    plain = model.predict(None, titles)
    assert [*plain.dtypes] == [object, object] and plain.iloc[1].tolist() == [None, None]
    inside = type(sys)("pyspark")
    inside.TaskContext = type("TaskContext", (), {"get": staticmethod(lambda: 1)})
    monkeypatch.setitem(sys.modules, "pyspark", inside)
    column = pd.DataFrame(model.predict(None, titles))["category"].astype(np.str_)
    assert column.tolist() == [plain["category"][0], None] and column.isnull().tolist() == [False, True]
