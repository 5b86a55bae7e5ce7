"""A shop's file with columns beside the title, all the way: prepared, trained on, reported on, exported, answered."""
import csv
import json
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import (
    assert_documented,
    assert_one_line_error,
    checkpoint,
    leaves_equal,
    meta,
    run_here,
    run_script,
)

import classify
import data
import evaluate
from titles import files, runs

CATEGORIES = {"MESAS": ("acme", 10), "SILLAS": ("bolt", 10), "CAMAS": ("acme", 900), "LAMPARAS": ("bolt", 900)}
HEADER = ("title", "brand", "price", "category")
COLUMNS = ("--columns", "brand", "price")
FLAGS = ("--epochs", 20, "--dim", 16, "--lr", 0.02)


def shop_rows(rows=400, seed=0):
    """[(title, brand, price, category)]: brand and price tell the category; one title in two has a word of it."""
    draw = random.Random(seed)
    found = []
    for i in range(rows):
        name = draw.choice([*CATEGORIES])
        brand, price = CATEGORIES[name]
        word = draw.choice([name.lower(), "mueble"])
        found.append((f"{word} x{i}", draw.choice([brand, brand.upper()]), f"{price + draw.random():.2f}", name))
    return found


def write(path, rows, header=HEADER, separator=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows([header, *rows])
    return path


def values_of(folder="data/prepared"):
    """{title: its values, as people read them} of all rows of a prepared folder."""
    found, columns = {}, classify.columns_of(files.read_lines(data.Path(folder) / "columns.txt"))
    for split in data.SPLITS:
        rows = data.load_prepared(folder, (split,), text=split)[1][split]
        found |= {title: [column.text(i) if i else None for column, i in zip(columns, ids, strict=True)]
                  for title, ids in zip(rows["text"], rows["columns"].tolist(), strict=True)}
    return found


# --- prepare ----------------------------------------------------------------------------------------------------------

def test_values_become_ids_by_what_trains(prep):
    rows = shop_rows()
    write("shop.csv", rows)
    done = prep("--data", "shop.csv", *COLUMNS)
    assert "brand: words, 2 values; price: numbers (decimal point), 16 steps" in done.stdout and not done.stderr
    found = values_of()
    assert [found[title][0] for title, *_ in rows] == [brand.lower() for _, brand, *_ in rows]

    # Steps of equally many training rows, by NumPy's quantiles.
    price = {title: float(price) for title, _, price, _ in rows}
    train = np.array([price[title] for title in files.read_lines(data.Path("data/prepared/train_text.txt"))])
    borders = json.loads(files.read_lines(data.Path("data/prepared/columns.txt"))[1])["borders"]
    np.testing.assert_allclose(borders, np.quantile(train, np.arange(1, 16) / 16, method="higher"))
    sizes = np.bincount(np.searchsorted(borders, train, "right"))
    assert len(sizes) == 16 and sizes.max() - sizes.min() <= 4
    assert np.load("data/prepared/train_columns.npy").dtype == np.uint8


def told(prep, values, *flags, name="x", check=True):
    """What prepare.py makes of a column with these values, over and over: (its line of columns.txt, what it prints)."""
    write("told.csv", [(f"mesa {i}", values[i % len(values)], "AB"[i % 2]) for i in range(200)],
          ("title", name, "category"))
    done = prep("--data", "told.csv", "--columns", *(flags or (name,)), check=check)
    return check and json.loads(files.read_lines(data.Path("data/prepared/columns.txt"))[0]), done


@pytest.mark.parametrize(("values", "decimal", "number"), [
    (["1.299", "12.990", "999"], ",", 1299), (["1.299", "0.250", "1.125"], ".", 1.125),
    (["1.299,50", "3,5"], ",", 1299.5), (["1,299", "2,450"], ".", 2450), (["$ 1,299.00", "$ 5.50"], ".", 1299),
    (["R$ 10", "R$ 20,90"], ",", 20.9),
    (["12 €", "13 €"], ".", 13), (["1.299.000", "2.450"], ",", 1299000)])
def test_the_decimal_sign_is_that_of_the_column(prep, values, decimal, number):
    line, done = told(prep, values)
    assert (line["kind"], line["decimal"]) == ("number", decimal) and number in line["borders"]
    assert f"decimal {'point' if decimal == '.' else 'comma'}" in done.stdout


def test_words_and_numbers_are_told_apart(prep):
    for values in (["a", "b"], ["007", "012"], ["7790001234567", "7790001234568"], ["500 g", "1 kg"], ["true", "false"],
                   ["2024-01-05", "2024-02-07"], ["x", "y", "1"]):
        assert told(prep, values)[0]["kind"] == "word", values
    assert told(prep, ["1", "2"], "x:word")[0] == {"name": "x", "kind": "word", "values": ["1", "2"]}
    assert told(prep, ["007", "012"], "x:number")[0]["kind"] == "number"
    line, done = told(prep, ["5", "6", "7", "8", "9", "Consultar", ""])
    assert line["kind"] == "number" and line["borders"] == [6, 7, 8, 9]
    assert done.stderr == "warning: told.csv:7: the x 'Consultar' is no number, so it counts as missing (and 27 more)\n"
    line, _ = told(prep, ["acme", "Acme", "No disponible", "x" * 300, "a\x01b", "", "-"])
    assert line["values"][0] == "acme" and {*line["values"]} == {"acme", "no disponible", "x" * 300, "a b", "-"}


def test_values_of_few_rows_are_unknown(prep):
    rows = [(f"mesa {i}", f"b{i % 37}" if i < 74 else f"rare{i}", "AB"[i % 2]) for i in range(300)]
    write("x.csv", rows, ("title", "brand", "category"))
    for flags, least in (((), 1), (("--value-min-count", 2), 2), (("--value-min-count", 3), 3)):
        prep("--data", "x.csv", "--columns", "brand", *flags)
        train = files.read_lines(data.Path("data/prepared/train_text.txt"))
        count = pd.Series({title: brand for title, brand, _ in rows})[train].value_counts()
        values = json.loads(files.read_lines(data.Path("data/prepared/columns.txt"))[0])["values"] if (
            data.Path("data/prepared/columns.txt").exists()) else []
        assert {*values} == {*count.index[count >= least]}
    prep("--data", "x.csv")
    assert not data.Path("data/prepared/columns.txt").exists() and meta()["columns"] == []


@pytest.mark.parametrize(("flags", "words"), [
    (("--columns", "brand", "Brand"), ("same column twice",)), (("--columns", "category"), ("same column", "category")),
    (("--columns", "title"), ("same column", "title")), (("--columns", "empty"), ("empty", "no training row")),
    (("--columns", "nowhere"), ("nowhere", "no such column", "title, brand")),
    (("--columns", "brand:number"), ("brand", "no", "number")),
    (("--title-column", "title", "nowhere"), ("nowhere",)), (("--columns",), ("--columns",))])
def test_columns_that_cannot_be_read_are_refused(prep, flags, words):
    write("shop.csv", [(*row, "") for row in shop_rows(60)], (*HEADER, "empty"))
    assert_one_line_error(prep("--data", "shop.csv", *flags, check=False), *words)
    assert not data.Path("data/prepared").exists()


def test_odd_columns_are_said(prep):
    assert "all training rows that have a value have the same" in told(prep, ["acme", ""])[1].stderr
    rows = shop_rows(60)
    write("a.csv", rows[:40])
    write("b.csv", [(title, category) for title, *_, category in rows[40:]], ("title", "category"))
    done = prep("--data", "a.csv", "--test", "b.csv", *COLUMNS)
    for name in ("brand", "price"):
        assert f"b.csv: has no column {name}" in done.stderr
    assert {tuple(values_of()[title]) for title, *_ in rows[40:]} == {(None, None)}  # and not (missing)
    with open("c.jsonl", "w") as file:
        file.writelines(json.dumps({"title": title, "category": name} | ({"price": price} if i % 2 else {})) + "\n"
                        for i, (title, _, price, name) in enumerate(rows[40:]))
    done = prep("--data", "a.csv", "--test", "c.jsonl", *COLUMNS)
    assert "c.jsonl:1: has no column brand, or several that may be meant; its rows are read without it (and 19 more)" \
        in done.stderr
    assert {tuple(values_of()[title]) for title, *_ in rows[40::2]} == {(None, None)}
    write("d.csv", [(title, "", price, name) for title, _, price, name in rows])
    done = prep("--data", "d.csv", "--columns", "price")
    write("e.csv", [(f"x {i}", "abc"[i % 3], f"{i}.{i:03}", "AB"[i % 2]) for i in range(100, 999)])
    assert "nothing tells whether the sign before three digits" in prep("--data", "e.csv", "--columns", "price").stderr
    assert not prep("--data", "e.csv", "--columns", "price:number.").stderr
    assert "no value has 500 training rows" in prep("--data", "e.csv", "--columns", "brand", "--value-min-count",
                                                    500).stderr


def test_formats_say_the_same(prep):
    """CSV, JSON lines and Parquet, in any order and spelling; numbers as numbers; a language as a column."""
    rows = [(title, brand if i % 7 else "", price if i % 5 else "", category, "es")
            for i, (title, brand, price, category) in enumerate(shop_rows(200))]
    write("x.csv", rows, (*HEADER, "language"))
    frame = pd.DataFrame(rows, columns=(*HEADER, "language"))
    frame["price"] = pd.to_numeric(frame["price"], errors="coerce")
    frame["brand"] = frame["brand"].where(frame["brand"] != "", None)
    turned = frame[["price", "title", "category", "language", "brand"]].rename(columns={"brand": "BRAND"})
    turned.to_parquet("x.parquet")
    frame.to_json("x.jsonl", orient="records", lines=True)
    write("semicolon.csv", [(*row[:2], row[2].replace(".", ","), *row[3:]) for row in rows],
          ("title", "Brand", "PRICE", "category", "language"), ";")
    found = []
    for name in ("x.csv", "x.parquet", "x.jsonl", "semicolon.csv"):
        prep("--data", name, *COLUMNS, "language")
        found.append((values_of(), meta()["columns"]))
    assert found[0][0] == found[1][0] == found[2][0] == found[3][0]
    assert found[0][1] == found[1][1] == found[2][1] and "decimal comma" in found[3][1][1]
    for title, brand, price, *_ in rows:
        of_brand, of_price, of_language = found[0][0][title]
        assert of_brand == (brand.lower() or "(missing)") and (of_price == "(missing)") == (not price)
        assert of_language == "es"


@pytest.mark.slow
def test_a_million_values(prep):
    """Distinct ones, most of them unknown: in seconds."""
    with open("x.csv", "w", encoding="utf-8") as file:
        file.write("title,sku,category\n")
        file.writelines(f"mesa {i % 1000},k{i // 2 if i < 1000 else i},{'AB'[i % 2]}\n" for i in range(1_000_000))
    prep("--data", "x.csv", "--columns", "sku", "--threads", 2, "--value-min-count", 2)
    assert 200 < len(json.loads(files.read_lines(data.Path("data/prepared/columns.txt"))[0])["values"]) <= 500


# --- train, evaluate --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with shop.csv, prepared with its columns; the runs rich (mlp) and rich-cnn that read them, and plain,
    which does not."""
    folder = tmp_path_factory.mktemp("shop")
    write(folder / "shop.csv", shop_rows())
    run_script("prepare", "--data", "shop.csv", *COLUMNS, cwd=folder)
    for name, flags in (("rich", ()), ("plain", ("--columns",)), ("rich-cnn", ("--model", "cnn", "--filters", 8))):
        run_here("train", "--name", name, *FLAGS, *flags, cwd=folder)
    return folder


def scores_of(folder, *ckpt, **flags):
    return json.loads(run_here("evaluate", "--ckpt", *ckpt, "--json", *flags.get("flags", ()), cwd=folder).stdout)


def test_columns_are_learned_and_their_worth_is_said(shop):
    for name in ("rich", "rich-cnn"):
        scores = scores_of(shop, name)
        worth = scores["columns"]
        assert [*worth] == ["with all columns", "without brand", "without price", "titles alone"]
        assert worth["with all columns"]["balanced_accuracy"] == scores["balanced_accuracy"] > 0.9
        for left in ("without brand", "without price"):
            assert worth[left]["accuracy"] < 0.9
        assert 0.5 < worth["titles alone"]["accuracy"] < 0.85
    plain = scores_of(shop, "plain")
    assert plain["balanced_accuracy"] < 0.85 and "columns" not in plain
    assert not (shop / "runs/plain/test-best/values.csv").exists()
    with open(shop / "runs/rich/test-best/values.csv", newline="") as file:
        assert {row["column"] for row in csv.DictReader(file)} <= {"brand", "price"}
    assert "What the columns are worth" in (shop / "runs/rich/test-best/report.html").read_text()
    both = scores_of(shop, "rich", "plain", "rich-cnn")
    assert both["columns"]["with all columns"]["accuracy"] > 0.9


def test_a_run_that_reads_no_column_is_that_of_data_without(shop, tmp_path):
    """To the bit, for the columns have tables and random numbers of their own."""
    write(tmp_path / "shop.csv", shop_rows())
    run_here("prepare", "--data", "shop.csv", cwd=tmp_path)
    run_here("train", "--name", "plain", *FLAGS, cwd=tmp_path)
    (one, history), (two, other) = checkpoint(shop / "runs/plain"), checkpoint(tmp_path / "runs/plain")
    assert leaves_equal(one, two) and history == other
    config = files.read_json(tmp_path / "runs/plain/config.json")
    assert not {"columns", "column_dropout", "values"} & config.keys()
    done = run_here("train", "--columns", "brand", cwd=tmp_path, check=False)
    assert_one_line_error(done, "--columns", "prepare.py")


@pytest.mark.parametrize(("flags", "words"), [
    (("--columns", "nowhere"), ("nowhere", "brand price")), (("--columns", "brand", "Brand"), ("brand price",)),
    (("--columns", "--column-dropout", 0.1), ("--column-dropout", "no column is read"))])
def test_settings_of_columns_that_make_no_sense(shop, flags, words):
    assert_one_line_error(run_here("train", *flags, cwd=shop, check=False), *words)


WANTED = ["MESAS", "SILLAS", "CAMAS", "LAMPARAS"]


def new_rows():
    """[(title, brand, price)] of which the categories are WANTED."""
    return [(f"mueble y{i}", brand, str(price + 0.5)) for i, (brand, price) in enumerate(map(CATEGORIES.get, WANTED))]


def predicted(folder, file, *flags, name="rich"):
    done = run_here("evaluate", "--ckpt", name, "--predict", file, *flags, cwd=folder)
    return [line.partition("\t")[0] for line in done.stdout.splitlines()], done.stderr


def test_files_to_predict_have_their_columns_by_name(shop):
    rows = new_rows()
    write(shop / "new.csv", rows, HEADER[:3])
    assert predicted(shop, "new.csv") == (WANTED, "")
    turned = [(f"$ {price.replace('.', ',')}0", title, brand.upper()) for title, brand, price in rows]
    write(shop / "turned.csv", turned, ("PRICE ", "Title", "marca/brand"), ";")
    found, said = predicted(shop, "turned.csv")
    assert found != WANTED and "has no column brand" in said and "its column PRICE is taken for price" in said
    assert said.count("\n") == 2
    write(shop / "turned.csv", turned, ("price", "title", "Brand"), ";")
    assert predicted(shop, "turned.csv") == (WANTED, "warning: turned.csv: its column Brand is taken for brand\n")
    frame = pd.DataFrame(rows, columns=HEADER[:3]).astype({"price": float})
    frame.to_parquet(shop / "new.parquet")
    assert predicted(shop, "new.parquet") == (WANTED, "")
    kept = run_here("evaluate", "--ckpt", "rich", "--predict", "new.csv", "--keep", cwd=shop).stdout
    assert [(row["category"], row["brand"]) for row in csv.DictReader(kept.splitlines())] == [
        (name, CATEGORIES[name][0]) for name in WANTED]

    # Titles alone still get an answer, after one warning.
    (shop / "list.txt").write_text("mesas y0\nmueble y1\n")
    found, said = predicted(shop, "list.txt")
    assert found[0] == "MESAS"
    assert said == "warning: list.txt: is a list of titles, which are answered without brand, price\n"
    assert predicted(shop, "list.txt", name="plain")[1] == ""


def test_python_takes_tables_dictionaries_and_titles(shop):
    classifier = evaluate.load("rich", folder=shop / "runs")
    rows = [dict(zip(HEADER[:3], row, strict=True)) for row in new_rows()]
    frame = pd.DataFrame(rows)

    def answers(rows):
        return [found[0][0] for found in classifier.predict(rows)]

    assert answers(rows) == answers(frame) == answers(pa.Table.from_pandas(frame)) == WANTED
    assert answers(frame.assign(price=frame["price"].astype(float))) == WANTED
    chances = classifier.predict_proba(frame)
    assert np.array_equal(chances, classifier.predict_proba(rows)) and chances.max(1).min() > 0.5
    with pytest.warns(UserWarning, match="no column brand"):
        alone = classifier.predict(frame[["title", "price"]])
    assert len(alone) == 4 and classifier.predict(frame["title"]) == classifier.predict([*frame["title"]])
    assert classifier.predict([{"title": None, "brand": "acme"}, {"title": "mesas"}])[0] == []


def test_values_explain_an_answer(shop):
    write(shop / "new.csv", new_rows(), HEADER[:3])
    told = run_here("evaluate", "--ckpt", "rich", "--predict", "new.csv", "--explain", cwd=shop).stdout
    assert "brand=acme:" in told and "brand=bolt:" in told and "price=" in told


def test_labelled_files_have_columns_too(shop):
    write(shop / "later.csv", shop_rows(80, seed=1))
    scores = scores_of(shop, "rich", flags=("--test", "later.csv"))
    assert scores["balanced_accuracy"] > 0.9 and scores["columns"]["titles alone"]["accuracy"] < 0.85
    write(shop / "titles.csv", [row[::3] for row in shop_rows(80, seed=1)], HEADER[::3])
    done = run_here("evaluate", "--ckpt", "rich", "--test", "titles.csv", "--json", cwd=shop)
    alone = json.loads(done.stdout)
    assert alone["accuracy"] == scores["columns"]["titles alone"]["accuracy"]
    assert all(f"titles.csv: has no column {name}" in done.stderr for name in ("brand", "price"))
    assert "columns" not in alone  # which would say nothing


# --- export -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ckpt", [
    ("rich",), *(pytest.param(names, marks=pytest.mark.slow) for names in (
        ("rich-cnn",), ("plain",), ("rich", "plain", "rich-cnn")))], ids="+".join)
def test_an_exported_model_reads_columns(shop, tmp_path, ckpt):
    """With NumPy alone: CSV with a header, lists, dictionaries; the categories are those of the run."""
    run_here("export", "--ckpt", *ckpt, "--out", tmp_path / "out", "--dtype", "float32", cwd=shop)
    rows = [row[:3] for row in shop_rows(200, seed=2)]
    write(tmp_path / "new.csv", rows, ("Title", "Brand", "price"))
    (tmp_path / "list.txt").write_text("".join(f"{title}\n" for title, *_ in rows))
    run, exported = evaluate.load(*ckpt, folder=shop / "runs"), classify.Classifier(tmp_path / "out/model.npz")
    dicts = [dict(zip(HEADER[:3], row, strict=True)) for row in rows]
    for given in (dicts, pd.DataFrame(dicts), [title for title, *_ in rows]):
        np.testing.assert_allclose(exported.predict_proba(given), run.predict_proba(given), atol=1e-4)
    for name, given in (("new.csv", dicts), ("list.txt", [title for title, *_ in rows])):
        done = subprocess.run([sys.executable, "-I", "out/classify.py", "out/model.npz", name], cwd=tmp_path,
                              capture_output=True, text=True)
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
            found[0][0] for found in run.predict(given)]
        noted = {"new.csv": "new.csv: its column Brand is taken for brand", "list.txt": "is a list of titles"}[name]
        summary, *notes = done.stderr.splitlines()
        assert "should be right" in summary and len(notes) == (ckpt != ("plain",)) and all(noted in n for n in notes)
    keys = assert_documented(dict(np.load(tmp_path / "out/model.npz")))
    assert ("columns" in keys[0]) == (ckpt != ("plain",)) == ({"values", "value_scale", "value_weights"} <= keys[1])


@pytest.mark.slow
def test_a_model_served_by_mlflow_takes_rows_with_columns_and_without(shop):
    import mlflow
    address = run_here("export", "--ckpt", "rich", "--log", cwd=shop).stdout.splitlines()[0]
    mlflow.set_tracking_uri(f"sqlite:///{shop}/mlflow.db")
    served = mlflow.pyfunc.load_model(address)
    names = [(one.name, one.required) for one in served.metadata.signature.inputs]
    assert names == [("title", True), ("brand", False), ("price", False)]
    frame = pd.DataFrame(new_rows(), columns=HEADER[:3])
    assert served.predict(frame)["category"].tolist() == WANTED
    assert served.predict(frame.astype({"price": float}))["category"].tolist() == WANTED
    alone = evaluate.load("rich", folder=shop / "runs").predict(frame["title"])
    assert served.predict(frame[["title"]])["category"].tolist() == [found[0][0] for found in alone]


# --- other ways to train ----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_resumed_refit_and_begun_from_another(shop, tmp_path):
    """A new run of the shop's rows and more takes the values by name, though their ids are others."""
    run_here("train", "--refit", "rich", cwd=shop)
    assert scores_of(shop, "rich-refit")["balanced_accuracy"] > 0.9
    run_here("train", "--resume", "rich", cwd=shop)
    more = [(title, "zzz" if i % 3 else brand, price, name) for i, (title, brand, price, name) in enumerate(
        shop_rows(150, seed=3))]
    write(tmp_path / "more.csv", shop_rows() + [("x" + row[0], *row[1:]) for row in more] * 2)
    run_here("prepare", "--data", "more.csv", *COLUMNS, cwd=tmp_path)
    flags = ("--epochs", 1, "--lr", 1e-9, "--table-lr", 1e-9)
    done = run_here("train", "--init-from", shop / "runs/rich", *flags, "--name", "next", cwd=tmp_path)
    assert "values of columns" in done.stdout
    old, new = runs.restore(shop / "runs/rich", "best"), runs.restore(tmp_path / "runs/next", "latest")
    for column, other in zip(old[3]["columns"], new[3]["columns"], strict=True):
        names = [column.text(i) for i in range(column.first, column.behind)]
        its = [other.text(i) for i in range(other.first, other.behind)]
        if column.kind == "word":
            assert "zzz" in its and "zzz" not in names
            for name in names[1:]:
                np.testing.assert_allclose(new[3]["variables"]["values"][other.first + its.index(name)],
                                           old[3]["variables"]["values"][column.first + names.index(name)], atol=1e-5)
    run_here("train", "--init-from", shop / "runs/plain", "--epochs", 1, "--name", "plain", cwd=tmp_path)
    assert files.read_json(tmp_path / "runs/plain/config.json")["columns"] == []

    # Of the columns that the former run read those count that are there; others are added where they are asked for.
    run_here("prepare", "--data", "more.csv", "--columns", "price", "--out", "priced", cwd=tmp_path)
    done = run_here("train", "--data", "priced", "--init-from", shop / "runs/rich", *flags, "--name", "p", cwd=tmp_path)
    assert "warning: the former run reads brand price; of these the data was prepared with price\n" in done.stderr
    run_here("train", "--init-from", shop / "runs/plain", "--columns", "brand", *flags, "--name", "b", cwd=tmp_path)
    assert files.read_json(tmp_path / "runs/b/config.json")["columns"] == ["brand"]


@pytest.mark.slow
def test_parts_and_folds_have_the_values_of_their_base(shop, tmp_path):
    write(tmp_path / "shop.csv", shop_rows())
    write(tmp_path / "part.csv", shop_rows(90, seed=5) + [("mesa sola", "unheard", "12", "MESAS")])
    run_here("prepare", "--data", "shop.csv", *COLUMNS, "--fold", "1/3", "--out", "base", cwd=tmp_path)
    run_here("prepare", "--data", "part.csv", "--like", "base", "--out", "part", cwd=tmp_path)
    assert (tmp_path / "base/columns.txt").read_bytes() == (tmp_path / "part/columns.txt").read_bytes()
    assert values_of(tmp_path / "part")["mesa sola"][0] is None
    run_here("train", "--data", "base", "part", "--name", "both", *FLAGS, cwd=tmp_path)
    scores = scores_of(tmp_path, "both", flags=("--data", "base", "part"))
    assert scores["balanced_accuracy"] > 0.9
    done = run_here("prepare", "--data", "part.csv", "--like", "base", "--columns", "brand", "--out", "x", cwd=tmp_path,
                    check=False)
    assert_one_line_error(done, "--columns", "--like")
    write(tmp_path / "poor.csv", [row[::3] for row in shop_rows(30, seed=6)], HEADER[::3])
    done = run_here("prepare", "--data", "poor.csv", "--like", "base", "--out", "poor", cwd=tmp_path)
    assert "poor.csv: has no column brand" in done.stderr and {
        value for values in values_of(tmp_path / "poor").values() for value in values} == {None}


@pytest.mark.slow
def test_an_encoder_reads_columns_beside_its_pieces(shop, tmp_path):
    write(tmp_path / "shop.csv", shop_rows())
    run_here("prepare", "--data", "shop.csv", *COLUMNS, "--encoder", "use", cwd=tmp_path)
    for name, flags in (("tuned", ()), ("frozen", ("--freeze-layers", "--epochs", 40))):
        run_here("train", "--model", "encoder", "--name", name, "--epochs", 8, "--lr", 0.02, *flags, cwd=tmp_path)
        worth = scores_of(tmp_path, name)["columns"]
        assert worth["with all columns"]["accuracy"] > max(0.9, worth["titles alone"]["accuracy"] + 0.1)
    run_here("export", "--ckpt", "tuned", "frozen", "--out", "out", cwd=tmp_path)
    rows = [dict(zip(HEADER[:3], row, strict=True)) for row in new_rows()]
    assert [found[0][0] for found in classify.Classifier(tmp_path / "out/model.npz").predict(rows)] == WANTED


# --- several columns of text ------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_titles_of_several_columns(prep, tmp_path):
    """Prepared, trained on, predicted and exported as one text, whose parts stay apart."""
    rows = [(f"mueble x{i}", f"{name.lower()} de casa" if i % 5 else "", name)
            for i, (*_, name) in enumerate(shop_rows())]
    header = ("title", "description", "category")
    write("x.csv", rows, header)
    prep("--data", "x.csv", "--title-column", "title", "description")
    found, arrays = data.load_prepared("data/prepared", text="train")
    assert found["title_columns"] == ["title", "description"]
    wanted = {title + (classify.BORDER + text if text else "") for title, text, _ in rows}
    assert {*arrays["train"]["text"]} <= wanted
    ids = arrays["train"]["titles"]
    assert (ids[:, 2:2 + classify.GAP] == 0).all() and (ids[:, :2] > 0).all() and (ids[:, 2 + classify.GAP] > 0).any()
    done = run_here("train", "--model", "cnn", "--widths", 1, 4, cwd=tmp_path, check=False)
    assert_one_line_error(done, "--widths 4")
    run_here("train", "--model", "cnn", "--filters", 8, "--name", "parts", *FLAGS, cwd=tmp_path)
    new = [(f"mueble y{i}", f"{name.lower()} de casa") for i, name in enumerate(WANTED)]
    write("new.csv", new, ("Description", "title")[::-1])
    assert predicted(tmp_path, "new.csv", name="parts") == (WANTED, "")
    classifier = evaluate.load("parts", folder=tmp_path / "runs")
    assert [one[0][0] for one in classifier.predict(pd.DataFrame(new, columns=header[:2]))] == WANTED
    run_here("export", "--ckpt", "parts", "--out", "out", cwd=tmp_path)
    done = subprocess.run([sys.executable, "out/classify.py", "out/model.npz", "new.csv"], capture_output=True,
                          text=True)
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == WANTED
    explained = run_here("evaluate", "--ckpt", "parts", "--predict", "new.csv", "--explain", cwd=tmp_path).stdout
    assert all(f"{name.lower()}:" in line for name, line in zip(WANTED, explained.splitlines(), strict=True))
    run_here("evaluate", "--ckpt", "parts", cwd=tmp_path)
    with open("runs/parts/test-best/predictions.csv", newline="") as file:
        assert any(" / " in row["title"] for row in csv.DictReader(file))


def test_an_encoder_reads_parts_as_sentences():
    seen = []
    classify.piece_ids(lambda text: seen.append(text) or [1, 2], [f"mesa{classify.BORDER}de casa"], 5)
    assert seen == ["mesa. de casa"]
