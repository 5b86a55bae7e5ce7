"""Several files as one set of rows (prepare.py --data old.csv labelled.csv): what people have labelled goes back into
training, later files have the last word, and what was there stays in its split."""
import gzip
import io
import shutil

import numpy as np
import pytest
from conftest import (
    as_csv,
    as_fasttext,
    as_json,
    assert_one_line_error,
    meta,
    run_here,
    run_script,
    save,
    snapshot,
    texts,
    tiny_rows,
    write_csv,
)

import data
from data import SPLITS
from titles import files

ROWS = tiny_rows(300)
TREE = {"FUNDAS": "Casa > Fundas", "CELULARES": "Casa > Celulares", "MESAS": "Muebles > Mesas",
        "SILLAS": "Muebles > Sillas"}


def plain(rows, names=("title", "category")):
    """CSV of [(title, category)]."""
    return as_csv([(title, "", "", category) for title, category in rows], ("title", "category"),
                  names=dict(zip(("title", "category"), names, strict=True)))


def old_and(labelled, *flags):
    """The flags for these files, old.csv with ROWS first; labelled: {name: content}."""
    save("old.csv", plain(pairs(ROWS)))
    for name, content in labelled.items():
        save(name, content)
    return "--data", "old.csv", *labelled, *flags


def pairs(rows):
    return [(row[0], row[3]) for row in rows]


def prepared(folder="data/prepared"):
    """[(title, category, split, file, line)] of a prepared folder, by title."""
    found = []
    for split in SPLITS:
        about, arrays = data.load_prepared(folder, (split,), text=split)
        rows, names = arrays[split], data.tree_of(about).names
        found += [(*row[:1], names[row[1]], split, *row[2:]) for row in zip(
            rows["text"], rows["labels"].tolist(), rows["file"], rows["line"].tolist(), strict=True)]
    return sorted(found)


def split_of(folder="data/prepared"):
    return {title: split for title, _, split, *_ in prepared(folder)}


# --- later files have the last word -----------------------------------------------------------------------------------

def test_a_later_file_has_the_last_word(prep):
    """Of three files: what the second puts elsewhere the third may put back; the table and meta.json say how many rows
    are left out, and the category that only they had is gone."""
    names = "old.csv", "two.csv", "three.csv"
    first, second, third = (f"estuche {i}" for i in range(3))
    of_file = [[(first, "FUNDAS"), (second, "FUNDAS"), (third, "FUNDAS"), ("una rareza", "TYPO"), ("otra", "TYPO"),
                *pairs(ROWS)[:100]],
               [("Una  Rareza!", "MESAS"), ("otra", "SILLAS"), (first, "MESAS"), (second, "MESAS")],
               [(first, "FUNDAS"), (third, "FUNDAS"), ("Estuche, 2", "FUNDAS")]]
    for name, rows in zip(names, of_file, strict=True):
        save(name, plain(rows))
    done = prep("--data", *names)

    # What is left: of the first file all but four rows, of the second all but one.
    found = prepared()
    kept = [of_file[0][2], *of_file[0][5:], *of_file[1][:2], of_file[1][3], *of_file[2]]
    assert sorted(one[:2] for one in found) == sorted(kept)
    about = meta()
    assert files.read_lines("data/prepared/labels.txt") == sorted(TREE)
    assert about["overruled_rows"] == 5 and about["first_overruled_row"] == "old.csv:2"
    assert ("5 rows whose titles a later file puts into another category, first old.csv:2; they are left out"
            in done.stdout)
    assert about["conflicting_rows"] == 0 and "conflicting" not in done.stdout
    assert [(one["file"], sum(one["rows"].values())) for one in about["source"]] == [*zip(names, (101, 3, 3),
                                                                                          strict=True)]
    # Every row still says where it came from.
    assert all((title, category) == dict(zip(names, of_file, strict=True))[file][line - 2]
               for title, category, _, file, line in found)


def test_within_a_file_labels_are_only_counted(prep):
    title, category = pairs(ROWS)[0]
    other = next(name for name in TREE if name != category)
    done = prep(*old_and({"labelled.csv": plain([(title, other), ("algo nuevo", "MESAS"), (title, category)])}))
    found = [one for one in prepared() if one[0] == title]
    assert sorted(one[1] for one in found) == sorted([category, category, other])  # the old one has not been denied
    assert meta()["overruled_rows"] == 0 and meta()["conflicting_rows"] == 3
    assert "a later file" not in done.stdout


@pytest.mark.parametrize(("before", "later", "denied"), [
    ("Casa", "Casa > Fundas", False), ("Casa > Fundas", "Casa", False), ("Casa > Fundas", "Casa > Fundas", False),
    ("Casa > Fundas", "Casa > Celulares", True), ("Casa > Fundas", "Muebles", True),
    ("Muebles", "Casa > Fundas", True)])
def test_a_parent_and_what_is_below_it_agree(prep, before, later, denied):
    rows = [(title, TREE[category]) for title, category in pairs(ROWS)]
    save("old.csv", plain([*rows, ("lo mismo", before)]))
    save("labelled.csv", plain([("lo mismo", later)]))
    prep("--data", "old.csv", "labelled.csv", "--separator", ">")
    assert [one[1] for one in prepared() if one[0] == "lo mismo"] == [later] if denied else sorted([before, later])
    assert meta()["overruled_rows"] == denied
    if denied:
        assert meta()["first_overruled_row"] == f"old.csv:{len(rows) + 2}"


def test_a_test_file_denies_nothing(prep):
    """Its labels are for judging: where one differs, the training row stays."""
    one, two = [pair for pair in pairs(ROWS) if pair[1] == "MESAS"][:2]
    arguments = old_and({"labelled.csv": plain([(one[0], "SILLAS"), ("silla nueva", "SILLAS")])})
    prep(*arguments, "--test", save("test.csv", plain([(one[0], "FUNDAS"), (two[0], "FUNDAS")])))
    found = {title: sorted((category, split == "test", file) for name, category, split, file, _ in prepared()
                           if name == title) for title in (one[0], two[0])}
    assert found == {one[0]: [("FUNDAS", True, "test.csv"), ("SILLAS", False, "labelled.csv")],
                     two[0]: [("FUNDAS", True, "test.csv"), ("MESAS", False, "old.csv")]}
    assert meta()["overruled_rows"] == 1
    assert meta()["rows"]["test"] == 2 and [one["split"] for one in meta()["source"]] == ["train", "train", "test"]


# --- splits -----------------------------------------------------------------------------------------------------------

LABELLED = [(f"{title} {i}", category) for i, (title, category) in enumerate(pairs(tiny_rows(60, seed=5)))]


def test_old_titles_keep_their_splits(prep):
    changed = [(title, "SILLAS") for title, category in pairs(ROWS[:40]) if category != "SILLAS"]
    arguments = old_and({"labelled.csv": plain(LABELLED + changed)})
    prep(*arguments[:2], "--out", "before")
    prep(*arguments)
    before, after = split_of("before"), split_of()
    assert {title: after[title] for title in before} == before and len(after) == len(before) + len(LABELLED)
    assert {before[title] for title, _ in changed} == set(SPLITS)  # what is denied in test is right in test
    assert meta()["overruled_rows"] == len(changed)


@pytest.mark.parametrize("has_groups", [True, False])
def test_groups_keep_their_splits(prep, has_groups):
    """A later file may know the products or not: a title that stands in the old file stays with its product."""
    groups = [f"p{i // 5}" for i in range(len(ROWS))]
    save("old.csv", as_csv(ROWS, extra=[("product", groups)]))
    some = [(title, "", "", "SILLAS" if i % 2 else category) for i, (title, _, _, category) in enumerate(ROWS[::3])]
    save("labelled.csv", as_csv(some, extra=[("product", groups[::3])] if has_groups else []))
    prep("--data", "old.csv", "--group-column", "product", "--out", "before")
    done = prep("--data", "old.csv", "labelled.csv", "--group-column", "product")
    before, after = split_of("before"), split_of()
    assert after == before and meta()["left_out_rows"] == 0 and meta()["overruled_rows"] > 20
    of_group = {}
    for title, _, _, _ in ROWS:
        of_group.setdefault(groups[[row[0] for row in ROWS].index(title)], set()).add(after[title])
    assert all(len(splits) == 1 for splits in of_group.values())
    assert not done.stderr


def test_splits_that_the_first_file_gives_stay(prep):
    """labelled.csv says no split, so its rows train; but not those whose title the old file tests or validates with."""
    given = [SPLITS[i % 3] for i in range(len(ROWS))]
    save("old.csv", as_csv(ROWS, extra=[("split", given)]))
    save("labelled.csv", plain([*LABELLED, *((title, "SILLAS") for title, category in pairs(ROWS[:30]))]))
    prep("--data", "old.csv", "labelled.csv")
    after = split_of()
    assert [after[row[0]] for row in ROWS] == given and {after[title] for title, _ in LABELLED} == {"train"}


# --- rows that are not labelled yet -----------------------------------------------------------------------------------

def spreadsheet(rows):
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in rows:
        book.active.append([None if value == "" else value for value in row])
    book.save(file)
    return file.getvalue()


def as_table(rows):
    return "".join(";".join(map(str, row)) + "\n" for row in rows)


@pytest.mark.parametrize("written", [as_table, spreadsheet])
def test_a_pool_that_is_partly_filled_in(prep, written):
    """evaluate.py --next: the pool's own columns, the category to be filled in, and candidates behind it."""
    head = ("sku", "title", "brand", "category", "candidate_1", "probability_1")
    pool = [(i, f"mesa ratona {i}", "acme", category, "MESAS", 0.5) for i, category in enumerate(
        ["MESAS", "", " ", "SILLAS", "", "MESAS"])]
    pool += [(7, "", "", "", "MESAS", 0.5)]  # no title, and nobody will give it a category
    name = "next.xlsx" if written is spreadsheet else "next.csv"
    done = prep(*old_and({name: written([head, *pool])}))
    assert {(one[0], one[1], one[4]) for one in prepared() if one[3] == name} == {
        ("mesa ratona 0", "MESAS", 2), ("mesa ratona 3", "SILLAS", 5), ("mesa ratona 5", "MESAS", 7)}
    assert meta()["unlabelled_rows"] == 4 and meta()["bad_rows"] == 0
    assert "4 rows of files after the first have no category and are left out" in done.stdout


def test_nothing_is_labelled_yet(prep):
    prep(*old_and({"next.csv": plain([("mesa", ""), ("silla", "")])}))
    assert meta()["unlabelled_rows"] == 2 and [sum(one["rows"].values()) for one in meta()["source"]] == [len(ROWS), 0]


def test_levels_that_are_partly_filled_in(prep):
    def levels(rows):
        return "title,top,leaf\n" + "".join(f"{title},{','.join([*path.split(' > '), ''][:2])}\n"
                                             for title, path in rows)

    save("old.csv", levels([(title, TREE[category]) for title, category in pairs(ROWS)]))
    save("next.csv", levels([("a", "Casa > Fundas"), ("b", "Casa"), ("c", ""), ("d", " > Mesas")]))
    save("paths.jsonl", '{"title": "e", "category": ["Casa", "Fundas"]}\n{"title": "f", "category": null}\n'
         '{"title": "h", "category": []}\n{"title": "i"}\n')
    save("paths.csv", plain([("g", "Muebles > Mesas"), ("j", "")]))
    prep("--data", "old.csv", "next.csv", "paths.jsonl", "paths.csv", "--category-column", "top", "leaf")
    assert {one[0]: one[1] for one in prepared() if one[3] != "old.csv"} == {
        "a": "Casa > Fundas", "b": "Casa", "d": "Mesas", "e": "Casa > Fundas", "g": "Muebles > Mesas"}
    assert meta()["unlabelled_rows"] == 5 and meta()["bad_rows"] == 0


def test_in_the_first_file_a_missing_category_is_bad(prep):
    save("old.csv", plain([("mesa", "")] * 3 + pairs(ROWS)[:50]))
    save("next.csv", plain(LABELLED))
    done = prep("--data", "old.csv", "next.csv", check=False)
    assert_one_line_error(done, "old.csv:2: no category", "--max-bad-rows")


def test_other_bad_rows_of_later_files_are_bad(prep):
    arguments = old_and({"next.csv": plain([("", "MESAS")] * 10 + [("x", "")])})
    assert_one_line_error(prep(*arguments, check=False), "next.csv:2: no title", "10 bad rows of 310")


# --- formats, names and encodings -------------------------------------------------------------------------------------

def test_files_of_any_format(prep):
    parts = [[(f"{title} {name}", quality, language, category) for title, quality, language, category in ROWS[i::5]]
             for i, name in enumerate("abcde")]
    save("a.csv", as_csv(parts[0]))
    save("b.jsonl.gz", gzip.compress(as_json(parts[1]).encode()))
    save("c.txt", as_fasttext(parts[2]))
    save("d.tsv", as_csv(parts[3], delimiter="\t"))
    save("e.xlsx", spreadsheet([("category", "title"), *((row[3], row[0]) for row in parts[4])]))
    prep("--data", *("a.csv", "b.jsonl.gz", "c.txt", "d.tsv", "e.xlsx"))
    assert sorted((one[0], one[1]) for one in prepared()) == sorted(pairs(sum(parts, [])))
    assert [one["file"] for one in meta()["source"]] == ["a.csv", "b.jsonl.gz", "c.txt", "d.tsv", "e.xlsx"]


@pytest.mark.parametrize("flags", [("--title-column", "Name", "--category-column", "Kind"),
                                   ("--title-column", 1, "--category-column", 2)])
@pytest.mark.parametrize("names", [("Name", "Kind"), ("title", "Kind"), ("text", "label")])
def test_named_columns(prep, flags, names):
    """A later file has the columns that flags name, or those with the usual names."""
    save("old.csv", plain(pairs(ROWS), ("Name", "Kind")))
    save("labelled.csv", plain(LABELLED, names))
    save("lines.jsonl", "".join(f'{{"{"title"}": "{title} x", "category": "{category}"}}\n'
                                for title, category in LABELLED))
    prep("--data", "old.csv", "labelled.csv", "lines.jsonl", *flags)
    assert meta()["source"][1]["rows"]["train"] > 30 and sum(meta()["rows"].values()) == 420


def test_the_first_file_has_the_columns_that_flags_name(prep):
    save("old.csv", plain(pairs(ROWS)))
    save("labelled.csv", plain(LABELLED, ("Name", "Kind")))
    done = prep("--data", "old.csv", "labelled.csv", "--title-column", "Name", "--category-column", "Kind", check=False)
    assert_one_line_error(done, "old.csv:1: the header needs one column Name")
    done = prep("--data", "old.csv", "labelled.csv", check=False)
    assert_one_line_error(done, "labelled.csv:1: the header needs one column title", "--title-column")


def test_the_encoding_of_later_files(prep):
    """Excel's file of last year, and one that a program has written in UTF-8."""
    save("old.csv", plain([(f"sillón {title}", category) for title, category in pairs(ROWS)]).encode("cp1252"))
    save("utf8.csv", plain([(f"sillón {title}", category) for title, category in LABELLED]))
    save("cp.csv", plain([(f"año {title}", category) for title, category in LABELLED]).encode("cp1252"))
    done = prep("--data", "old.csv", "utf8.csv", "cp.csv", "--encoding", "cp1252")
    found = [one for one in prepared() if one[3] != "old.csv"]
    assert {one[0].split()[0] for one in found} == {"sillón", "año"} and len(found) == 2 * len(LABELLED)
    assert done.stderr == "warning: utf8.csv: is in UTF-8, and read so, whatever --encoding says\n"


def test_columns_are_those_of_all_files(prep):
    """What a column has is decided over all files; where one lacks it, its rows have no value and a note says so."""
    codes = [str(i % 7) for i in range(100)]
    save("old.csv", as_csv(ROWS[:100], extra=[("brand", codes)]))
    save("labelled.csv", as_csv(ROWS[100:], extra=[("brand", ["Acme", "Bel"] * 100)]))
    save("plain.csv", plain(LABELLED))
    done = prep("--data", "old.csv", "labelled.csv", "plain.csv", "--columns", "brand")
    assert meta()["columns"] == ["brand: words, 9 values"]
    assert "plain.csv: has no column brand, or several that may be meant; its rows are read without it" in done.stderr
    about, arrays = data.load_prepared("data/prepared", ("train",), text="train")
    of_file, values = np.array(arrays["train"]["file"]), arrays["train"]["columns"][:, 0]
    assert not values[of_file == "plain.csv"].any() and values[of_file != "plain.csv"].all()
    assert about["columns"]


# --- refused ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("paths", "words"), [
    (["old.csv", "folder"], ["folder: a folder goes alone", "name its files"]),
    (["folder", "folder"], ["folder: a folder goes alone"]),
    (["old.csv", "labelled.csv", "./old.csv"], ["old.csv: the same file twice", "name each once"]),
    (["old.csv", "missing.csv"], ["missing.csv: no such file"]),
    (["old.csv", "empty.csv"], ["empty.csv: empty file"])])
def test_what_does_not_go_together(prep, paths, words):
    old_and({"labelled.csv": plain(LABELLED), "folder/train.csv": plain(LABELLED), "empty.csv": ""})
    prep("--data", "old.csv")
    before = snapshot()
    assert_one_line_error(prep("--data", *paths, check=False), *words)
    assert snapshot() == before


def test_data_twice_are_both_read(prep):
    arguments = old_and({"labelled.csv": plain(LABELLED)})
    prep("--data", "old.csv", "--data", "labelled.csv", "--out", "one")
    prep(*arguments)
    assert meta("one")["fingerprint"] == meta()["fingerprint"]


def test_the_first_rows_are_of_one_file(prep):
    done = prep(*old_and({"labelled.csv": plain(LABELLED)}), "--rows", 310, check=False)
    assert_one_line_error(done, "--rows and several files")


# --- what follows -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A folder with old.csv, labelled.csv, a run on the first and data of both."""
    folder = tmp_path_factory.mktemp("grown")
    write_csv(folder / "old.csv", tiny_rows())
    changed = [(*row[:3], "SILLAS") for row in tiny_rows()[:20]]
    write_csv(folder / "labelled.csv", changed + [(f"{row[0]} n", *row[1:]) for row in tiny_rows(50, seed=9)])
    run_script("prepare", "--data", "old.csv", "--out", "old", cwd=folder)
    run_script("train", "--data", "old", "--name", "old", "--epochs", 1, "--dim", 8, cwd=folder)
    run_script("prepare", "--data", "old.csv", "labelled.csv", cwd=folder)
    return folder


@pytest.mark.slow
def test_labels_return_into_training(grown):
    """The story: prepare both, train on what the old run knows, evaluate; mistakes name the file that each row is
    of."""
    done = run_here("train", "--init-from", "old", "--epochs", 1, "--name", "new", cwd=grown)
    assert "begins with what old/best knows" in done.stdout and "4 of 4 categories" in done.stdout
    config = files.read_json(grown / "runs/new/config.json")
    assert [one["file"] for one in config["data"]["source"]] == ["old.csv", "labelled.csv"]
    assert "old.csv labelled.csv" in config["data"]["command"]
    run_here("evaluate", "--ckpt", "new", cwd=grown)
    report = (grown / "runs/new/test-best/report.html").read_text(encoding="utf-8")
    assert "old.csv" in report and "labelled.csv" in report


def test_a_part_of_several_files(grown, tmp_path):
    """--like: categories that the base lacks are bad rows, titles that it holds out are left out."""
    shutil.copytree(grown / "data", tmp_path / "data")
    write_csv(tmp_path / "one.csv", tiny_rows(80, seed=3))
    titles = [row[0] for row in tiny_rows(80, seed=3)[:5]]
    save(tmp_path / "two.csv", plain([(title, "MESAS") for title in titles] + [("x", ""), ("mesa otra", "MESAS")]))
    run_here("prepare", "--data", "one.csv", "two.csv", "--like", "data/prepared", "--out", "part", cwd=tmp_path)
    about = files.read_json(tmp_path / "part/meta.json")
    wrong = sum(row[3] != "MESAS" for row in tiny_rows(80, seed=3)[:5])
    assert about["overruled_rows"] == wrong > 2 and about["unlabelled_rows"] == 1
    assert {"MESAS"} == {row[1] for row in prepared(tmp_path / "part") if row[0] in titles}
    assert len(texts("train", tmp_path / "part")) == about["rows"]["train"]
