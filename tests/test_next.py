"""Titles to label next: which are chosen, and the tables that they come in."""
import argparse
import csv
import io
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import browser
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import assert_one_line_error, run_here, save, texts, tiny_rows
from pyarrow import parquet

import classify
import data
import evaluate
from titles import choose, formats, labelling, predict


@pytest.fixture
def label_next(trained):
    """Calls evaluate.py --next on a pool with the run `filters`."""
    def call(pool, number, *args, stdin="", check=True, ckpt=("filters",)):
        return run_here("evaluate", "--ckpt", *ckpt, "--predict", pool, "--next", number, *args, cwd=trained,
                        stdin=stdin, check=check)

    return call


def table_of(done):
    return [*csv.DictReader(io.StringIO(done.stdout))]


# --- which titles -----------------------------------------------------------------------------------------------------

def words_of(title):
    return [word for word in classify.tokenize(title) if word]


def are_near(one, other):
    """The same words or, of four or more, all but one that is added, dropped or exchanged."""
    one, other = sorted(words_of(one)), sorted(words_of(other))
    def shorter(words):
        yield words
        if len(words) > 3:
            for i in range(len(words)):
                yield words[:i] + words[i + 1:]
    return any(a == b for a, b in itertools.product(shorter(one), shorter(other)))


def made_pool(rows, seed):
    """(titles, probabilities [N, 2]): few words, so that many titles are near equal; a tenth is unknown."""
    draw = np.random.default_rng(seed)
    titles = [" ".join(draw.choice([*"abcdefg"], draw.integers(1, 6))) for _ in range(rows)]
    chances = np.sort(draw.dirichlet(np.ones(3), rows), 1)[:, :0:-1].astype(np.float32)
    chances[draw.random(rows) < 0.1] = 0
    return titles, chances


@pytest.mark.parametrize("seed", range(3))
def test_titles_are_chosen_as_plain_python_would(seed):
    titles, chances = made_pool(300, seed)
    labelled = titles[:20]
    pool = choose.Pool(30, data.keys_of(labelled))
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        pool.add(titles[part], probability=chances[part], row=np.arange(300)[part])

    taken, unknown = [], 0
    for i in sorted(range(300), key=lambda i: (chances[i, 0] - chances[i, 1], i)):
        known_title = any(words_of(titles[i]) == words_of(one) for one in labelled)
        if known_title or any(are_near(titles[i], titles[j]) for j in taken) or (
                not chances[i].any() and unknown == 3):
            continue
        taken.append(i)
        unknown += not chances[i].any()
        if len(taken) == 30:
            break
    found = pool.chosen()
    assert found["row"].tolist() == taken and 0 < unknown <= 3 and len(taken) > 10
    assert found["title"].tolist() == [titles[i] for i in taken]
    assert pool.counts["titles"] == 300 and pool.counts["have a label already"] >= 20


def test_of_a_large_pool_few_titles_are_kept(monkeypatch):
    monkeypatch.setattr(choose, "LEAST", 30)
    draw = np.random.default_rng(0)
    chances = np.sort(draw.dirichlet(np.ones(2), 20_000), 1)[:, ::-1]
    titles = [f"word{i} other{i} third{i} fourth{i}" for i in range(20_000)]
    pool = choose.Pool(10, np.zeros(0, np.uint64))
    for start in range(0, 20_000, 500):
        part = slice(start, start + 500)
        pool.add(titles[part], probability=chances[part], row=np.arange(20_000)[part])
        assert sum(len(kept["row"]) for kept in pool.kept) <= 60
    assert pool.chosen()["row"].tolist() == np.argsort(chances[:, 0] - chances[:, 1], kind="stable")[:10].tolist()


def test_titles_without_a_word_and_with_parts():
    border = classify.BORDER
    titles = ["", "???", f"{border}", f"mesa{border}roja", "silla"]
    chances = np.tile(np.float32([[0.5, 0.4]]), (5, 1))
    pool = choose.Pool(5, np.zeros(0, np.uint64))
    pool.add(titles, probability=chances)
    assert pool.chosen()["title"].tolist() == titles[3:] and pool.counts["have no word"] == 3
    assert not choose.Pool(5, np.zeros(0, np.uint64)).chosen()


def test_load_names_the_rows(trained, monkeypatch):
    classifier = evaluate.load("filters", folder=trained / "runs")
    titles = [None, "funda mesa", "mesa funda", "celular", "", "silla funda rara"]
    found = classifier.next(titles, 10).tolist()
    assert sorted(found) == [1, 3, 5]
    margins = {i: np.subtract(*np.sort(classifier.predict_proba(titles)[i])[:-3:-1]) for i in found}
    assert found == sorted(found, key=margins.get)
    monkeypatch.setattr(predict, "PREDICT_ROWS", 2)
    assert classifier.next(pd.DataFrame({"title": titles}), 2).tolist() == found[:2]
    assert classifier.next([]).tolist() == []
    with pytest.raises(ValueError, match="number 0"):
        classifier.next(titles, 0)


# --- tables -----------------------------------------------------------------------------------------------------------

POOL = [("funda mesa", "7", "a, b"), ("mesa funda", "8", ""), ("celular silla", "9", "=1+1"), ("", "10", "x"),
        ("escritorio raro", "11", 'say "x"')]


def as_table(rows, header="title,number,note"):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header.split(","), *rows])
    return out.getvalue().encode()


def test_a_table_to_fill_in(label_next, trained, tmp_path):
    path = save(tmp_path / "pool.csv", as_table(POOL))
    done = label_next(path, 10)
    rows = table_of(done)
    assert [*rows[0]] == ["title", "number", "note", "category", "split", *(
        f"{name}_{k}" for k in range(1, 5) for name in ("candidate", "probability"))]  # of four categories
    notes = {title: (number, note) for title, number, note in POOL}
    assert len(rows) == 3 and all((row["number"], row["note"]) == notes[row["title"]] for row in rows)
    assert {(row["category"], row["split"]) for row in rows} == {("", "train-only")}
    chances = [[float(row[f"probability_{k}"]) for k in range(1, 5)] for row in rows]
    assert all(abs(sum(row) - 1) < 1e-4 and row == sorted(row, reverse=True) for row in chances)
    margins = [first - second for first, second, *_ in chances]
    assert margins == sorted(margins)
    assert done.stderr == "3 of 5 titles to label next; 1 have no word\n"
    assert len(table_of(label_next(path, 1, "--top", 2))[0]) == 9

    # The same through a pipe, and in other formats.
    assert label_next("-", 10, stdin=path.read_text(encoding="utf-8")).stdout == done.stdout
    assert label_next(path, 10, "--out", tmp_path / "next.csv").stdout == ""
    assert (tmp_path / "next.csv").read_text(encoding="utf-8") == done.stdout
    pa_table = pa.table({"title": [row[0] for row in POOL], "number": [int(row[1]) for row in POOL]})
    parquet.write_table(pa_table, tmp_path / "pool.parquet")
    label_next(tmp_path / "pool.parquet", 10, "--out", tmp_path / "next.parquet")
    found = parquet.read_table(tmp_path / "next.parquet")
    assert found["number"].type == pa.int64() and found["category"].null_count == 3
    assert found["title"].to_pylist() == [row["title"] for row in rows]
    label_next(path, 2, "--out", tmp_path / "next.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["title"] for line in lines] == [row["title"] for row in rows[:2]] and lines[0]["category"] is None
    assert label_next(path, 10, "--out-separator", ";").stdout.startswith("title;number;note;category;split;")


def test_a_list_of_titles_becomes_a_table(label_next):
    rows = table_of(label_next("-", 5, "--top", 1, stdin="funda mesa, linda\nsilla mesa\n"))
    assert {row["title"] for row in rows} == {"funda mesa, linda", "silla mesa"}
    assert [*rows[0]] == ["title", "category", "split", "candidate_1", "probability_1"]


def test_a_column_of_categories_stays_where_it_is(label_next, tmp_path):
    rows = [("funda mesa", "", "1"), ("silla celular", "SILLAS", "2")]
    found = table_of(label_next(save(tmp_path / "pool.csv", as_table(rows, "title,Category,candidate_1")), 5))
    assert [*found[0]][:5] == ["title", "Category", "candidate_1", "split", "predicted_candidate_1"]
    assert {row["title"]: row["Category"] for row in found} == {"funda mesa": "", "silla celular": "SILLAS"}
    path = save(tmp_path / "pool.csv", as_table(rows, "title,kind,number"))
    found = table_of(label_next(path, 5, "--category-column", "kind"))
    assert "category" not in found[0] and found[0]["kind"] in ("", "SILLAS")
    assert "clase" in table_of(label_next(path, 5, "--category-column", "clase"))[0]


def form_of(**flags):
    return formats.format_from(argparse.Namespace(**{"title_column": None, "category_column": None, "encoding": "utf-8",
                                                     "separator": None} | flags))


def test_columns_are_called_as_flags_and_the_table_say():
    assert labelling.category_columns(form_of(), ["Title", "Label"]) == ["Label"]
    assert labelling.category_columns(form_of(), ["title"]) == ["category"]
    several = form_of(category_column=["aisle", "Shelf"], title_column=["Name", "2"])
    assert labelling.category_columns(several, ["x", "y", "shelf"]) == ["aisle", "shelf"]
    assert labelling.title_columns(several, ["x", "y", "name"]) == [2, 1]
    assert labelling.usual_name(several, "title") == "Name"
    assert labelling.category_columns(form_of(category_column=["3"]), ["a", "b"]) == ["category"]
    assert labelling.level_sign(form_of(separator=">")) == " > " == labelling.level_sign(form_of())
    assert labelling.level_sign(form_of(separator="\t")) == "\t"


def test_a_title_is_not_overwritten_by_its_category(label_next, tmp_path):
    remembered = formats.format_from(argparse.Namespace(title_column=["name"], category_column=None, encoding="utf-8",
                                                        separator=None), {"category_column": "1"})
    assert labelling.category_columns(remembered, ["name", "brand"]) == ["category"]
    path = save(tmp_path / "pool.csv", as_table(POOL))
    for out in ("next.csv", "next.html"):
        done = label_next(path, 3, "--category-column", "title", "--out", tmp_path / out, check=False)
        assert_one_line_error(done, "--category-column: title is a column of the title")
        assert not (tmp_path / out).exists()


def test_a_column_of_splits_is_filled_in(label_next, tmp_path):
    rows = [("funda mesa", "", "1"), ("silla celular", "test", "2")]
    path = save(tmp_path / "pool.csv", as_table(rows, "title,Split,number"))
    found = table_of(label_next(path, 5))
    assert {row["title"]: row["Split"] for row in found} == {"funda mesa": "train-only", "silla celular": "test"}
    assert "split" not in found[0]
    label_next(path, 5, "--out", tmp_path / "next.html")
    page = (tmp_path / "next.html").read_text(encoding="utf-8")
    assert '"funda mesa","train-only","1"' in page and '"constants":{}' in page


def test_candidates_of_a_tree_are_written_as_its_data_has_them(tmp_path):
    found = {"kept": pa.table({"title": ["a"]}), "number": np.array([[1, 0]]), "probability": np.array([[0.5, 0.4]])}
    file = SimpleNamespace(header=None, form=form_of(separator="/"), dialect=formats.Dialect())
    args = argparse.Namespace(top=2, predict="-", out=tmp_path / "next.csv", out_separator=None, out_encoding=None)
    labelling.write_next(args, args.out, file, found, classify.Tree(["A > B", "A > C"]))
    assert args.out.read_text() == ("title,category,split,candidate_1,probability_1,candidate_2,probability_2\n"
                                    "a,,train-only,A / C,0.500000,A / B,0.400000\n")


def test_a_page_to_label_on(label_next, tmp_path):
    path = save(tmp_path / "pool.csv", as_table(POOL))
    label_next(path, 2, "--top", 3, "--out", tmp_path / "next.html")
    found = re.search('<script type="application/json"[^>]*>(.*?)</script>', (tmp_path / "next.html").read_text())
    task, rows = json.loads(found[1]), table_of(label_next(path, 2))
    assert task["fields"] == [[row[name] for name in ("title", "number", "note")] for row in rows]
    assert task["title_columns"] == [0] and task["category_columns"] == ["category"] and not task["is_tree"]
    assert task["constants"] == {"split": "train-only"} and task["heading"].startswith("2 titles of ")
    for row, candidates in zip(rows, task["candidates"], strict=True):
        assert [task["names"][number] for number, _ in candidates] == [row[f"candidate_{k}"] for k in (1, 2, 3)]


def test_titles_with_a_label_are_left_out(label_next, trained, tmp_path):
    done = label_next("tiny.csv", 5, check=False)
    assert_one_line_error(done, "tiny.csv: no title to label, of 400; 400 have a label already")
    # Without its data a run knows only those that trained it.
    done = run_here("evaluate", "--ckpt", trained / "runs/filters", "--predict", trained / "tiny.csv", "--next", 500,
                    cwd=tmp_path)
    assert "have a label already" in done.stderr and 0 < len(table_of(done)) <= 120


def test_several_runs_choose_together(label_next, tmp_path):
    path = save(tmp_path / "pool.csv", as_table(POOL))
    both = table_of(label_next(path, 5, ckpt=("filters", "bag")))
    assert {row["title"] for row in both} == {row["title"] for row in table_of(label_next(path, 5))}
    assert both != table_of(label_next(path, 5))


@pytest.mark.parametrize("flags, words", [
    (["--keep"], ["--next", "--keep"]), (["--precision", "0.9"], ["--next", "--precision"]),
    (["--explain"], ["--next", "--explain"]), (["--level", "1"], ["--next", "--level"]),
    (["--out", "x.json"], [".json is not written"]), (["--out", "x.html", "--out-separator", ";"], ["are of CSV"])])
def test_flags_that_do_not_go_together(label_next, flags, words):
    assert_one_line_error(label_next("tiny.csv", 5, *flags, check=False), *words)


def test_what_cannot_be_done_is_said(label_next, trained, tmp_path):
    assert_one_line_error(label_next(tmp_path / "none.csv", 5, check=False), "none.csv")
    done = label_next(save(tmp_path / "empty.csv", b"title\n"), 5, check=False)
    assert_one_line_error(done, "no title to label, of 0")
    assert_one_line_error(label_next("tiny.csv", 0, check=False), "--next")
    done = run_here("evaluate", "--next", 5, cwd=trained, check=False)
    assert_one_line_error(done, "--next goes with --predict")
    done = run_here("evaluate", "--ckpt", "filters", "--predict", "tiny.csv", "--out", tmp_path / "x.html", cwd=trained,
                    check=False)
    assert_one_line_error(done, "a page is written with --next")


# --- the way back -----------------------------------------------------------------------------------------------------

def split_of_titles(folder):
    return {title: split for split in data.SPLITS for title in texts(split, folder)}


@pytest.fixture
def pool(trained, tmp_path):
    """A folder with tiny.csv, its prepared data and runs, and in pool.csv other titles with a number each."""
    shutil.copytree(trained, tmp_path / "shop")
    rows = [(title, str(i)) for i, (title, *_) in enumerate(tiny_rows(120, seed=5))]
    save(tmp_path / "shop/pool.csv", as_table(rows, "title,number"))
    return tmp_path / "shop"


@pytest.mark.slow
def test_a_table_that_was_filled_in_trains(label_next, pool):
    before = split_of_titles(pool / "data/prepared")
    label_next(pool / "pool.csv", 30, "--out", pool / "next.csv")
    rows = [*csv.DictReader(io.StringIO((pool / "next.csv").read_text(encoding="utf-8")))]
    for i, row in enumerate(rows):
        row["category"] = "" if i % 3 == 0 else "LÁMPARAS" if i % 3 == 1 else row["candidate_1"]
    pd.DataFrame(rows).to_csv(pool / "next.csv", index=False)
    done = run_here("prepare", "--data", "tiny.csv", "next.csv", "--out", "data/more", cwd=pool)
    assert "10 rows of files after the first have no category" in done.stdout

    # Old titles stay where they were, and those that were chosen only train.
    after = split_of_titles(pool / "data/more")
    assert {title: after[title] for title in before} == before
    assert {after[row["title"]] for row in rows if row["category"]} == {"train"} and len(after) == len(before) + 20
    done = run_here("train", "--data", "data/more", "--init-from", "bag", "--epochs", 1, "--name", "bag-2", cwd=pool)
    assert "begins with what" in done.stdout
    assert "LÁMPARAS" in evaluate.load("bag-2", folder=pool / "runs").labels


@pytest.mark.slow
@pytest.mark.skipif(browser.MISSING is not None, reason=browser.MISSING or "")
def test_the_month_after(label_next, pool, tmp_path):
    """From a pool over a page on which a person labels to a run that has learned it."""
    label_next(pool / "pool.csv", 20, "--out", pool / "next.html")
    with browser.opened(tmp_path / "chromium") as window:
        window.open(pool / "next.html")
        window.press("1" * 19 + "nLÁMPARAS" + browser.ENTER)
        window.click("#download")
        save(pool / "labelled.csv", window.downloaded("labelled.csv"))
        assert window.errors() == []
    rows = [*csv.DictReader(io.StringIO((pool / "labelled.csv").read_text(encoding="utf-8")))]
    assert len(rows) == 20 and [*rows[0]] == ["title", "number", "split", "category"]
    run_here("prepare", "--data", "tiny.csv", "labelled.csv", cwd=pool)
    assert {row["title"] for row in rows} <= {*texts("train", pool / "data/prepared")}
    run_here("train", "--init-from", "bag", "--epochs", 2, "--name", "bag-2", cwd=pool)
    # What has a label by now is not asked for again.
    done = run_here("evaluate", "--ckpt", "bag-2", "--predict", "pool.csv", "--next", 200, cwd=pool)
    assert "20 have a label already" in done.stderr
