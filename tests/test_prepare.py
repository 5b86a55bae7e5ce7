"""prepare.py: every kind of source, the splits, the vocabulary, vectors, downloads, and bad input of every kind."""
import bz2
import csv
import gzip
import http.server
import io
import json
import lzma
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, run_script, tiny_rows, write_csv

import data
import prepare
from data import SPLITS, UserError

pytestmark = pytest.mark.filterwarnings("error")  # a warning of NumPy's would reach the user's terminal

COLUMNS = ("title", "label_quality", "language", "category")
ROWS = tiny_rows(150) + [
    ('Silla "gamer", 24" roja; nueva', "reliable", "spanish", "SILLAS"),
    ("mesa\nde dos líneas", "unreliable", "portuguese", "MESAS"),
    ("mesa\tde\r\ncafé", "reliable", "spanish", "MESAS"),
    ('"funda"', "unreliable", "spanish", "FUNDAS"),
    ("São Paulo ½ 手机 Привет 😀", "unreliable", "portuguese", "CELULARES"),
    ("¡¿!?", "reliable", "spanish", "CELULARES"),
    ("{funda} __label__x", "reliable", "spanish", "FUNDAS"),
]


@pytest.fixture
def prep(tmp_path, monkeypatch, capsys):
    """prepare.py as run_script runs it, but in this process; the working folder is empty at first."""
    def prep(*args, check=True):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            data.run(prepare.main)
        except SystemExit as stop:
            status = stop.code
        done = subprocess.CompletedProcess(args, status, *capsys.readouterr())
        assert not check or status == 0, done.stderr
        return done

    monkeypatch.chdir(tmp_path)
    return prep


def save(path, content):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows, columns=COLUMNS, delimiter=",", newline="\n", quoting=csv.QUOTE_MINIMAL, names=None, extra=()):
    """CSV of rows given in the order of COLUMNS."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerow([(names or {}).get(name, name) for name in columns] + [name for name, _ in extra])
    for i, row in enumerate(rows):
        writer.writerow([dict(zip(COLUMNS, row, strict=True))[name] for name in columns] + [x[i] for _, x in extra])
    return file.getvalue()


def with_index(rows, delimiter):
    """CSV with the row numbers in an unnamed first column."""
    file = io.StringIO()
    lines = [["", *COLUMNS], *([i, *row] for i, row in enumerate(rows))]
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return file.getvalue()


def as_json(rows, columns=COLUMNS, names=None, ascii_only=False, **extra):
    return "".join(json.dumps({(names or {}).get(name, name): value for name, value in zip(COLUMNS, row, strict=True)
                               if name in columns} | extra, ensure_ascii=ascii_only) + "\n" for row in rows)


def as_fasttext(rows):
    return "".join(f"__label__{row[3]} {' '.join(row[0].split())}\n" for row in rows)


def given(rows, seed=0):
    """The rows' titles and categories with a split for each: [(split, title, category)]."""
    draw = random.Random(seed)
    return [(draw.choices(SPLITS, (6, 2, 2))[0], row[0], row[3]) for row in rows]


def with_split(rows):
    return "split,title,category\n" + "".join(",".join(row) + "\n" for row in rows)


def meta(folder="data/prepared"):
    return json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))


def back(folder="data/prepared"):
    """What is prepared, as rows again: {split: [(text, words, category, language, reliable)]}."""
    about, arrays = data.load_prepared(folder)
    words = about["vocab"] + ["<unknown>"] * (len(about["words"]) - len(about["vocab"]))
    result = {}
    for split, array in arrays.items():
        nothing = [None] * len(array["labels"])
        result[split] = [
            (text, [words[i] for i in ids if i], about["labels"][label],
             None if language is None else about["languages"][language], reliable)
            for text, ids, label, language, reliable in zip(
                data.read_lines(Path(folder) / f"{split}_text.txt"), array["titles"].tolist(), array["labels"].tolist(),
                array.get("language", np.array(nothing)).tolist(), array.get("reliable", np.array(nothing)).tolist(),
                strict=True)]
    return result


def texts(split, folder="data/prepared"):
    return data.read_lines(Path(folder) / f"{split}_text.txt")


def all_texts():
    return [text for split in SPLITS for text in texts(split)]


def fingerprint_of(prep, path, *args):
    """The fingerprint covers the bytes of every prepared file."""
    prep("--data", path, *args)
    return meta()["fingerprint"]


def snapshot(folder="."):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


# --- the arrays -------------------------------------------------------------------------------------------------------

def test_arrays_hold_the_rows(prep):
    save("titles.csv", as_csv(ROWS))
    prep("--data", "titles.csv", "--max-len", 4)
    found = back()
    rows = {re.sub("[\r\n]+", " ", row[0]): row for row in ROWS}
    assert sorted(text for split in SPLITS for text, *_ in found[split]) == sorted(rows)
    known = {word for _, words, *_ in found["train"] for word in words}
    for split in SPLITS:
        for text, words, category, language, reliable in found[split]:
            title, quality, tongue, name = rows[text]
            expected = [word if word in known else "<unknown>" for word in data.tokenize(title)[:4]]
            assert (words, category, language, reliable) == (expected, name, tongue, quality == "reliable")
    positions = {text: i for i, text in enumerate(rows)}  # the rows of a split stay in the order of the source
    for split in SPLITS:
        places = [positions[text] for text in texts(split)]
        assert places == sorted(places)


def test_array_files_have_the_documented_types_and_shapes(prep):
    save("titles.csv", as_csv(tiny_rows(600)))
    prep("--data", "titles.csv", "--max-len", 9)
    folder, about = Path("data/prepared"), meta()
    assert {path.name for path in folder.iterdir()} == {"vocab.txt", "rare.txt", "labels.txt", "meta.json"} | {
        f"{split}_{kind}" for split in SPLITS
        for kind in ("titles.npy", "rare.npy", "labels.npy", "language.npy", "reliable.npy", "text.txt")}
    assert 256 < about["vocabulary"] <= 65_536
    for split in SPLITS:
        rows = about["rows"][split]
        for kind, dtype, shape in (("titles", np.uint16, (rows, 9)), ("labels", np.uint8, (rows,)),
                                   ("language", np.uint8, (rows,)), ("reliable", np.bool_, (rows,))):
            array = np.load(folder / f"{split}_{kind}.npy", allow_pickle=False)
            assert array.dtype == dtype and array.shape == shape, (split, kind)
        titles = np.load(folder / f"{split}_titles.npy")
        lengths = [min(9, len(data.tokenize(text))) for text in texts(split)]
        np.testing.assert_array_equal(titles != 0, np.arange(9) < np.array(lengths)[:, None])
        assert titles.max() < about["vocabulary"]


def test_a_vocabulary_of_more_than_65536_words_takes_four_bytes(prep):
    lines = [" ".join(f"w{i}x{j}" for j in range(20)) for i in range(5000)]
    save("titles.csv", "title,category\n" + "".join(f"{line},c{i % 2}\n" for i, line in enumerate(lines)))
    prep("--data", "titles.csv")
    assert np.load("data/prepared/train_titles.npy").dtype == np.uint32 and meta()["vocabulary"] > 65_536
    assert back()["train"][7][1] == texts("train")[7].split()
    prep("--data", "titles.csv", "--vocab", 65_534)
    assert np.load("data/prepared/train_titles.npy").dtype == np.uint16 and meta()["vocabulary"] == 65_536


def test_meta_and_table_count_what_is_there(prep):
    rows = tiny_rows(200) + tiny_rows(3, seed=9) * 4 + [("x9 negro raro", "reliable", "spanish", f"C{i}") for i in "12"]
    save("titles.csv", as_csv(rows) + "one,two\n")
    done = prep("--data", "titles.csv", "--max-len", 3, "--seed", 5, "--max-bad-rows", 3)
    about, found = meta(), back()
    everything = [row for split in SPLITS for row in found[split]]
    lengths = [len(data.tokenize(row[0])) for row in rows]
    unknown = {split: np.mean([word == "<unknown>" for row in found[split] for word in row[1]]) for split in SPLITS}
    train_words = {tuple(row[1]) for row in found["train"]}
    assert about["rows"] == {split: len(found[split]) for split in SPLITS} and len(everything) == len(rows)
    assert (about["bad_rows"], about["first_bad_row"]) == (1, f"titles.csv:{len(rows) + 2}: 2 columns instead of 4")
    assert about["categories"] == 6 and about["languages"] == ["portuguese", "spanish"]
    assert about["vocabulary"] == len(data.read_lines("data/prepared/vocab.txt"))
    assert about["reliable_share"] == np.mean([row[1] == "reliable" for row in rows])
    assert about["unknown_share"] == pytest.approx(unknown) and unknown["train"] == 0 < unknown["test"]
    assert about["cut_share"] == np.mean([length > 3 for length in lengths])
    assert about["mean_words"] == pytest.approx(np.mean(lengths))
    assert about["not_split_categories"] == 2 and about["not_in_train_categories"] == 0
    assert about["also_in_train"] == {"valid": 0, "test": 0}
    assert train_words.isdisjoint(tuple(row[1]) for row in found["test"] if "<unknown>" not in row[1])
    assert about["source"] == [{"file": "titles.csv", "split": None}] and about["format"] == data.FORMAT
    assert about["options"]["seed"] == 5 and about["options"]["max_len"] == about["max_len"] == 3
    assert about["synthetic"] is False and about["vectors_found"] is None
    for line in (f"rows {len(rows)} (train {len(found['train'])}, valid {len(found['valid'])}, test "
                 f"{len(found['test'])})", f"bad rows skipped 1, first titles.csv:{len(rows) + 2}: 2 columns",
                 "categories 6", "languages portuguese, spanish", f"reliable labels {about['reliable_share']:.2%}",
                 f"vocabulary {about['vocabulary']:,} words, from the training split alone",
                 f"unknown words valid {unknown['valid']:.2%}, test {unknown['test']:.2%}",
                 f"words a title {np.mean(lengths):.1f}; {about['cut_share']:.2%} of titles cut at 3 words",
                 "titles also in train valid 0.00%, test 0.00%", f"fingerprint {about['fingerprint']}"):
        assert line in " ".join(done.stdout.split()), line
    assert done.stderr == "warning: 2 categories have no test row; scores do not cover them\n"
    assert f"{sum(path.stat().st_size for path in Path('data/prepared').iterdir()):,} bytes to data/prepared/" \
        in done.stdout


def test_as_a_script_and_without_any_data_it_makes_the_synthetic_set(tmp_path):
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/notes.md").write_text("no data")
    done = run_script("prepare", "--rows", 2500, cwd=tmp_path)
    assert "making 2,500 SYNTHETIC titles" in done.stdout and "SYNTHETIC DATA, prepared:" in done.stdout
    about, _ = data.load_prepared(tmp_path / "data/prepared")
    assert about["synthetic"] is True and sum(about["rows"].values()) == 2500
    assert all(label.startswith("SYN_") for label in about["labels"])


# --- sources ----------------------------------------------------------------------------------------------------------

ORDER = ("category", "title", "language", "label_quality")
SOURCES = {
    "columns in another order": as_csv(ROWS, ORDER),
    "text and label": as_csv(ROWS, names={"title": "text", "category": "label"}),
    "names in capitals": as_csv(ROWS, names={"title": " Title", "category": "CATEGORY "}),
    "everything quoted": as_csv(ROWS, quoting=csv.QUOTE_ALL),
    "CRLF": as_csv(ROWS, newline="\r\n"),
    "no newline at the end": as_csv(ROWS).rstrip("\n"),
    "empty lines": as_csv(ROWS).replace("\nfunda", "\n\nfunda") + "\n\n",
    "byte order mark": "\ufeff" + as_csv(ROWS),
    "byte order mark and quotes": "\ufeff" + as_csv(ROWS, quoting=csv.QUOTE_ALL),
    "semicolons": as_csv(ROWS, delimiter=";"),
    "semicolons as Excel writes them": "\ufeff" + as_csv(ROWS, ORDER, delimiter=";", newline="\r\n"),
    "TSV": as_csv(ROWS, delimiter="\t"),
    "TSV, CRLF, another order": as_csv(ROWS, ORDER, delimiter="\t", newline="\r\n"),
    "more columns": as_csv(ROWS, extra=[("price, in $", ["1,5"] * len(ROWS)), ("id", list(range(len(ROWS))))]),
    "CSV with the unnamed index of pandas": with_index(ROWS, ","),
    "TSV with the unnamed index of pandas": with_index(ROWS, "\t"),
    "TSV with an unnamed last column": as_csv(ROWS, delimiter="\t", extra=[("", ["x"] * len(ROWS))]),
    "spaces around": as_csv([(f"  {row[0]} ", f" {row[1]}", f"{row[2]}\u00a0", f" {row[3]} ") for row in ROWS]),
    "JSON lines": as_json(ROWS),
    "JSON lines in ASCII": as_json(ROWS, ascii_only=True),
    "JSON lines, text and label": as_json(ROWS, names={"title": "text", "category": "label"}),
    "JSON lines, more fields": as_json(ROWS, price=1.5, data=[1, 2], nested={"title": "no"}, other=None),
    "JSON lines, empty lines, mark, CRLF": "\ufeff" + as_json(ROWS).replace("\n", "\r\n\r\n"),
}
PACKED = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
MISLEADING = {"CSV": "titles.jsonl.bz2", "TSV": "titles.csv.gz", "JSON lines": "titles.csv", "fastText": "titles.tsv"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_arrays(prep, name):
    save("plain.csv", as_csv(ROWS))
    save("source", SOURCES[name])
    assert fingerprint_of(prep, "source") == fingerprint_of(prep, "plain.csv")
    assert meta()["bad_rows"] == 0 and sum(meta()["rows"].values()) == len(ROWS)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("form", MISLEADING)
def test_content_and_not_the_name_tells_form_and_compression(prep, form, packed):
    content = {"CSV": as_csv, "TSV": lambda rows: as_csv(rows, delimiter="\t"), "JSON lines": as_json,
               "fastText": as_fasttext}[form](ROWS)
    flat = [(" ".join(title.split()), *rest) for title, *rest in ROWS]  # fastText knows no line breaks, nor languages
    save("plain.csv", as_csv(flat, ("title", "category")) if form == "fastText" else as_csv(ROWS))
    expected = fingerprint_of(prep, "plain.csv")
    assert fingerprint_of(prep, save(MISLEADING[form], PACKED[packed](content.encode()))) == expected
    assert (meta()["languages"] is None) == (form == "fastText")


def test_fasttext_files_may_separate_with_tabs(prep):
    save("spaces", as_fasttext(ROWS))
    save("tabs", re.sub("^([^ ]+) ", "\\1\t", as_fasttext(ROWS), flags=re.MULTILINE))
    assert fingerprint_of(prep, "tabs") == fingerprint_of(prep, "spaces")


@pytest.mark.parametrize("block", [700, 5000])
@pytest.mark.parametrize("packed", ["plain", "xz"])
def test_a_file_read_in_many_blocks_gives_the_same_arrays(prep, monkeypatch, block, packed):
    rows = [(title.replace(" ", "\n", i % 3), *rest) for i, (title, *rest) in enumerate(ROWS)]
    save("source", PACKED[packed](as_csv(rows).encode()))
    whole = fingerprint_of(prep, "source")
    monkeypatch.setattr(prepare, "BLOCK", block)
    monkeypatch.setattr(prepare.read_lines, "__defaults__", (7,))
    assert fingerprint_of(prep, "source", "--threads", 3) == whole
    save("source", PACKED[packed](as_json(rows).encode()))
    assert fingerprint_of(prep, "source", "--threads", 1) == whole


@pytest.mark.parametrize("absent", [["label_quality"], ["language"], ["label_quality", "language"]], ids=str)
@pytest.mark.parametrize("form", ["CSV", "CSV, empty column", "JSON", "JSON, empty", "JSON, null"])
def test_what_the_source_does_not_say_is_not_made_up(prep, form, absent):
    rows = tiny_rows(60)
    kept = [name for name in COLUMNS if name not in absent]
    none = {"JSON": {}, "JSON, empty": dict.fromkeys(absent, ""), "JSON, null": dict.fromkeys(absent)}
    empty = [(name, [""] * len(rows)) for name in absent] if "empty" in form else []
    save("source", as_json(rows, kept, **none[form]) if form in none else as_csv(rows, kept, extra=empty))
    table = prep("--data", "source").stdout
    for name, said, kind, line in (("label_quality", "reliable_share", "reliable", "reliable labels       not given"),
                                   ("language", "languages", "language", "languages             not given")):
        assert (meta()[said] is None) == (line in table) == (name in absent)
        assert Path(f"data/prepared/train_{kind}.npy").exists() == (name not in absent)


def course_line(row, split):
    title, quality, language, category = row
    words = data.tokenize(title)
    return json.dumps({"language": language, "label_quality": quality, "title": title, "category": category,
                       "split": split, "tokenized_title": words, "data": [7] * len(words), "target": 3, "n_labels": 4,
                       "size": 999}, ensure_ascii=False) + "\n"


def course_files(rows=ROWS):
    """{name: content} of the course's folder, and {split: titles in the order in which the files are read}."""
    files, expected = defaultdict(str), {split: [] for split in SPLITS}
    ordered = sorted(zip(rows, given(rows), strict=True), key=lambda pair: pair[0][2])
    for row, (split, *_) in ordered:
        name = "validation" if split == "valid" else split
        files[f"{row[2]}.{name}.jsonl.gz"] += course_line(row, name)
        expected[split].append(re.sub("[\r\n]+", " ", row[0]))
    for language in ("spanish", "portuguese"):
        files[f"{language}_token_to_index.json.gz"] = json.dumps({"title": 1, "category": 2})
    return {name: gzip.compress(content.encode(), mtime=0) for name, content in files.items()}, expected


def test_the_folder_of_the_course_keeps_its_splits(prep):
    files, expected = course_files()
    for name, content in files.items():
        save(Path("course") / name, content)
    done = prep("--data", "course")
    assert {split: texts(split) for split in SPLITS} == expected
    assert meta()["languages"] == ["portuguese", "spanish"] and "token_to_index" not in done.stdout
    by_title = {re.sub("[\r\n]+", " ", row[0]): row for row in ROWS}
    for text, words, category, language, reliable in back()["train"]:
        title, quality, tongue, name = by_title[text]
        assert words == data.tokenize(title)  # not the token ids of the file
        assert (category, language, reliable) == (name, tongue, quality == "reliable")
    prep("--data", "course", "--languages", "spanish")
    assert meta()["languages"] == ["spanish"]
    assert texts("test") == [text for text in expected["test"] if by_title[text][2] == "spanish"]


@pytest.mark.parametrize("names", [("train.csv", "val.csv", "test.csv"), ("A-Train.tsv", "a-dev.tsv", "A_TEST.tsv"),
                                   ("x.training.txt.bz2", "x.valid.csv", "x-validation.jsonl.xz")], ids=" ".join)
def test_a_folder_whose_names_tell_the_splits(prep, names):
    rows = given(ROWS)
    for name in names:
        split = SPLITS[prepare.split_of(Path(name))]
        mine = [row for row, (own, *_) in zip(ROWS, rows, strict=True) if own == split]
        pack = {".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
        content = as_json(mine) if ".jsonl" in name else as_csv(mine, delimiter="\t" if ".tsv" in name else ",")
        save(Path("folder") / name, pack(content.encode()))
    if names[0] == "x.training.txt.bz2":  # two files of one split, and no test
        shutil.copy("folder/x.valid.csv", "folder/x.test.csv")
    prep("--data", "folder")
    for split in SPLITS[:2]:
        counted = Counter(re.sub("[\r\n]+", " ", title) for own, title, _ in rows if own == split)
        doubled = 2 if split == "valid" and names[0] == "x.training.txt.bz2" else 1
        assert Counter(texts(split)) == Counter({text: n * doubled for text, n in counted.items()})


@pytest.mark.parametrize("first, expected", [
    ("title;label_quality", False), ("id,title,language", False), ("Text\tLABEL", True), ("category,title", True),
    ('{"title": "a", "label_quality": "reliable"}', False), ('{"label": "b", "title": "a"}', True),
    ("__label__a b", True)])
def test_what_names_categories(first, expected):
    assert prepare.labelled(first) == expected


def test_the_folder_of_the_challenge(prep):
    save("raw/train.csv.gz", gzip.compress(as_csv(ROWS, ("title", "label_quality", "language", "category")).encode()))
    save("raw/test.csv", "id,title,label_quality,language\n0,Silla gamer,reliable,spanish\n")
    save("raw/sample_submission.csv", "id,category\n0,SILLAS\n")
    done = prep("--data", "raw")
    assert "raw/test.csv: has no category column, so it is no test split" in done.stdout
    assert sum(meta()["rows"].values()) == len(ROWS) and meta()["source"][0]["file"] == "raw/train.csv.gz"
    assert len(meta()["source"]) == 1 and all(meta()["rows"].values())


@pytest.mark.parametrize("form", ["CSV", "JSON"])
def test_a_split_column_is_kept(prep, form):
    rows = given(ROWS)
    names = {"train": ["train", "Training"], "valid": ["valid", "validation", "VAL", "dev"], "test": ["test"]}
    told = [names[split][i % len(names[split])] for i, (split, *_) in enumerate(rows)]
    lines = [course_line(row, split) for row, split in zip(ROWS, told, strict=True)]
    save("source", as_csv(ROWS, extra=[("split", told)]) if form == "CSV" else "".join(lines))
    prep("--data", "source")
    for split in SPLITS:
        assert texts(split) == [re.sub("[\r\n]+", " ", title) for own, title, _ in rows if own == split]


def test_a_split_that_the_column_does_not_name_is_drawn_from_train(prep):
    rows = given(tiny_rows(300))
    save("source.csv", with_split([("train" if split == "valid" else split, *rest) for split, *rest in rows]))
    prep("--data", "source.csv")
    assert texts("test") == [title for split, title, _ in rows if split == "test"]
    assert 0.05 < len(texts("valid")) / (300 - len(texts("test"))) < 0.15


def test_what_lies_in_data_raw_needs_no_flag(prep):
    save("data/raw/mine/titles.csv", as_csv(ROWS))
    save("data/raw/README", "not data")
    prep()
    assert sum(meta()["rows"].values()) == len(ROWS) and meta()["source"][0]["file"] == "data/raw/mine/titles.csv"


@pytest.mark.parametrize("other", ["titles.csv", "mine/more.csv", "deeper/titles.jsonl.gz", "deeper/train.csv"])
def test_several_data_sets_in_data_raw_need_a_choice(prep, other):
    first = save("data/raw/mine/train.csv" if "train" in other else "data/raw/mine/titles.csv", as_csv(ROWS))
    save(Path("data/raw") / other, as_csv(ROWS))
    assert_one_line_error(prep(check=False), "data/raw: holds several data sets", first, other, "--data")
    prep("--data", first)


def test_a_folder_without_training_data_is_named(prep):
    save("folder/test.csv", as_csv(ROWS))
    assert_one_line_error(prep("--data", "folder", check=False), "folder: has no training file", "--data")
    save("empty/notes.md", "no data")
    assert_one_line_error(prep("--data", "empty", check=False), "empty: no .csv, .tsv, .jsonl or .txt file here")


# --- splits -----------------------------------------------------------------------------------------------------------

def test_drawn_splits_are_stratified():
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), draw.integers(1, 200, 30))
    draw.shuffle(labels)
    keys = draw.permutation(len(labels)).astype(np.uint64)
    split = prepare.draw_splits(labels, keys, np.full(len(labels), -1, np.int8), 0.1, seed=0)
    for label, size in enumerate(np.bincount(labels)):
        train, valid, test = np.bincount(split[labels == label], minlength=3)
        assert test == (round(0.2 * size) if size >= 5 else 0)
        assert valid == (max(1, round(0.1 * (size - test))) if size >= 5 else 0) and train > 0
    assert abs((split == 2).mean() - 0.2) < 0.01


def test_equal_titles_stay_on_one_side():
    draw = np.random.default_rng(1)
    keys = draw.integers(0, 300, 3000).astype(np.uint64)
    labels = draw.integers(0, 6, 3000)  # equal titles under several categories
    split = prepare.draw_splits(labels, keys, np.full(3000, -1, np.int8), 0.2, seed=0)
    sides = defaultdict(set)
    for key, side in zip(keys.tolist(), split.tolist(), strict=True):
        sides[key].add(side)
    assert max(map(len, sides.values())) == 1
    counts = Counter(side for (side,) in sides.values())
    assert 50 <= counts[2] <= 70 and 40 <= counts[1] <= 56


def test_given_splits_are_kept():
    draw = np.random.default_rng(2)
    labels, keys = draw.integers(0, 5, 2000), np.arange(2000, dtype=np.uint64)
    for named in ((0, 1, 2), (0, 2), (0, 1), (0, 2, -1)):
        told = draw.choice(named, 2000).astype(np.int8)
        split = prepare.draw_splits(labels, keys, told, 0.1, seed=0)
        for side in {1, 2} & {*named}:
            np.testing.assert_array_equal(split == side, told == side)
        assert (split == 1).any() and (split == 2).any() and split.min() == 0


def test_equal_titles_of_a_file_stay_on_one_side(prep):
    rows = [(f"{title} {word}", *rest) for title, *rest in tiny_rows(100) for word in ("a", "b")]
    rows += [(row[0].upper().replace("E", "É") + " !", *row[1:]) for row in rows] * 2  # equal once tokenized
    random.Random(0).shuffle(rows)
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv")
    sides = {split: {tuple(data.tokenize(text)) for text in texts(split)} for split in SPLITS}
    assert sum(map(len, sides.values())) == 200 and len(set().union(*sides.values())) == 200
    assert meta()["also_in_train"] == {"valid": 0, "test": 0}


def test_small_categories_train_and_are_counted(prep):
    rows = tiny_rows(100)
    rows += [(f"raro nuevo {i} {j}", "reliable", "spanish", f"RARO{i}") for i in range(3) for j in range(4)]
    rows += [("siempre igual", "reliable", "spanish", "IGUAL")] * 50  # many rows, one title
    rows += [(f"justo {j}", "reliable", "spanish", "JUSTO") for j in range(5)]
    save("titles.csv", as_csv(rows))
    done = prep("--data", "titles.csv")
    counts = {split: Counter(row[2] for row in back()[split]) for split in SPLITS}
    for name in ("RARO0", "RARO1", "RARO2", "IGUAL"):
        assert not counts["test"][name] and not counts["valid"][name]
    assert (counts["train"]["RARO1"], counts["train"]["IGUAL"]) == (4, 50)
    assert [counts[split]["JUSTO"] for split in SPLITS] == [3, 1, 1]
    assert done.stderr == "warning: 4 categories have no test row; scores do not cover them\n"


def test_seed_decides_the_splits_and_threads_do_not(prep, monkeypatch):
    save("titles.csv", as_csv(tiny_rows(500)))
    monkeypatch.setattr(prepare, "BLOCK", 3000)
    one = fingerprint_of(prep, "titles.csv", "--threads", 1)
    held_out = texts("test")
    assert fingerprint_of(prep, "titles.csv", "--threads", 4, "--seed", 0) == one
    assert fingerprint_of(prep, "titles.csv", "--seed", 1) != one
    other = texts("test")
    assert len(set(held_out) & set(other)) < 0.4 * len(held_out) and len(held_out) == len(other)


def test_a_test_file_is_the_test_split(prep):
    rows = tiny_rows(200)
    save("titles.csv", as_csv(rows[:150]))
    save("test.jsonl", as_json([*rows[150:], rows[0], ("nuevo", "reliable", "spanish", "NUEVA")]))
    done = prep("--data", "titles.csv", "--test", "test.jsonl")
    assert texts("test") == [row[0] for row in [*rows[150:], rows[0]]] + ["nuevo"]
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:150]) and texts("valid")
    assert "warning: 1 categories have no training row and cannot be learned" in done.stderr
    assert meta()["also_in_train"]["test"] == (1 / 52 if rows[0][0] in texts("train") else 0)
    assert [source["split"] for source in meta()["source"]] == ["train", "test"]


def test_a_test_file_needs_data(prep):
    save("test.csv", as_csv(tiny_rows(50)))
    assert_one_line_error(prep("--test", "test.csv", check=False), "--test", "--data")


def test_a_split_column_and_a_test_file_must_agree(prep):
    rows = tiny_rows(200)
    save("test.csv", as_csv(rows[150:]))
    save("titles.csv", as_csv(rows[:150], extra=[("split", ["train"] * 150)]))
    prep("--data", "titles.csv", "--test", "test.csv")
    save("titles.csv", as_csv(rows[:150], extra=[("split", ["train"] * 100 + ["test"] * 50)]))
    done = prep("--data", "titles.csv", "--test", "test.csv", check=False)
    assert_one_line_error(done, "titles.csv", "split column", "--test")


def test_a_test_file_takes_the_place_of_a_folders_own(prep):
    rows = tiny_rows(200)
    save("folder/train.csv", as_csv(rows[:120]))
    save("folder/test.csv", as_csv(rows[120:160]))
    save("mine.csv", as_csv(rows[160:]))
    prep("--data", "folder", "--test", "mine.csv")
    assert texts("test") == [row[0] for row in rows[160:]]
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:120])


@pytest.mark.parametrize("block", [900, 4 << 20])
def test_rows_reads_the_first_rows_of_the_training_data(prep, monkeypatch, block):
    monkeypatch.setattr(prepare, "BLOCK", block)
    rows = tiny_rows(300)
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv", "--rows", 101)
    assert sorted(all_texts()) == sorted(row[0] for row in rows[:101])
    save("folder/train.csv", as_csv(rows[:200]))
    save("folder/test.csv", as_csv(rows[200:]))
    prep("--data", "folder", "--rows", 60)
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:60])
    assert texts("test") == [row[0] for row in rows[200:]]
    prep("--data", "titles.csv", "--rows", 1000)
    assert sum(meta()["rows"].values()) == 300


def test_languages_keeps_only_these(prep):
    rows = [*tiny_rows(200), ("table", "reliable", "english", "MESAS")]
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv", "--languages", "spanish", "english", "--rows", 70)
    kept = [row for row in rows if row[2] in ("spanish", "english")]
    assert sorted(all_texts()) == sorted(row[0] for row in kept[:70])
    assert meta()["languages"] == ["spanish"] and meta()["options"]["languages"] == ["spanish", "english"]


def test_valid_is_a_share_of_what_is_not_test(prep):
    save("titles.csv", as_csv(tiny_rows(400)))
    prep("--data", "titles.csv", "--valid", 0.5)
    rows = meta()["rows"]
    assert abs(rows["test"] - 80) <= 4 and abs(rows["valid"] - 160) <= 4


# --- vocabulary -------------------------------------------------------------------------------------------------------

COUNTED = with_split([
    ("train", "beta alfa gamma", "B"), ("train", "Beta ALFA delta", "A"), ("train", "béta zeta", "B"),
    ("train", "uno dos tres cuatro cinco beta", "A"), ("valid", "alfa soloval gamma gamma", "A"),
    ("test", "solotest beta zeta solotest", "B")])


def test_vocabulary_is_of_the_training_split_and_ordered(prep):
    save("titles.csv", COUNTED)
    prep("--data", "titles.csv")
    assert data.read_lines("data/prepared/vocab.txt") == [
        "<pad>", "<unknown>", "beta", "alfa", "cinco", "cuatro", "delta", "dos", "gamma", "tres", "uno", "zeta"]
    assert np.load("data/prepared/test_titles.npy")[0, :5].tolist() == [1, 2, 11, 1, 0]
    assert data.read_lines("data/prepared/rare.txt") == ["soloval", "solotest"][::-1]
    assert [np.load(f"data/prepared/{split}_rare.npy").tolist() for split in SPLITS] == [[], [1], [0, 0]]
    assert back()["valid"][0][1] == ["alfa", "<unknown>", "gamma", "gamma"]
    assert data.read_lines("data/prepared/labels.txt") == ["A", "B"]
    assert np.load("data/prepared/train_labels.npy").tolist() == [1, 0, 1, 0]
    assert meta()["unknown_share"] == {"train": 0, "valid": 1 / 4, "test": 2 / 4}


@pytest.mark.parametrize(("flags", "words"), [
    (["--vocab", 3], ["beta", "alfa", "cinco"]), (["--min-count", 2], ["beta", "alfa"]),
    (["--min-count", 2, "--vocab", 1], ["beta"]), (["--max-len", 1, "--vocab", 2], ["beta", "uno"])], ids=str)
def test_vocab_and_min_count_drop_the_rare_words(prep, flags, words):
    save("titles.csv", COUNTED)
    prep("--data", "titles.csv", *flags)
    assert data.read_lines("data/prepared/vocab.txt") == [*data.SPECIALS, *words]
    for _, found, *_ in back()["train"]:
        assert set(found) <= {"<unknown>", *words}
    about, arrays = data.load_prepared("data/prepared", text="train")  # with the rare ones nothing is lost
    longest = about["max_len"]
    assert [[about["words"][i] for i in row if i] for row in arrays["train"]["titles"]] == [
        data.tokenize(text)[:longest] for text in arrays["train"]["text"]]


def test_labels_are_alphabetical_and_tidy(prep):
    names = ["b  c", "b c", "Z", "á", "a", "手", "1"]
    save("titles.csv", as_csv([(f"titulo {i} {j}", "", "", name) for i, name in enumerate(names) for j in range(9)]))
    prep("--data", "titles.csv")
    assert data.read_lines("data/prepared/labels.txt") == sorted({*names} - {"b  c"})
    assert Counter(row[2] for rows in back().values() for row in rows)["b c"] == 18


# --- vectors ----------------------------------------------------------------------------------------------------------

VOCAB = [*data.SPECIALS, "mesa", "telefono", "nandu", "x9", "nada", "silla"]
VECTORS = ["mesa 1 2 3", "Mesa 9 9 9", "Teléfono 4 5 6", "TELÉFONO 8 8 8", "ñandú 7 7 7", "nandu -0.5 1e-3 .25",
           "otra 1 1 1", ", 0 0 0", "new york 5 5 5", "silla 0.1 0.2 0.3"]
EXPECTED = {"mesa": [1, 2, 3], "telefono": [4, 5, 6], "nandu": [-0.5, 1e-3, 0.25], "silla": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("header", [["10 3"], []], ids=["word2vec", "GloVe"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"], ids=ascii)
def test_vectors_are_read(tmp_path, packed, header, end):
    path = save(tmp_path / "vectors.txt", PACKED[packed]("".join(line + end for line in header + VECTORS).encode()))
    bad = prepare.BadRows(0.01)
    vectors = prepare.read_vectors(path, VOCAB, bad)
    assert vectors.dtype == np.float32 and vectors.shape == (len(VOCAB), 3) and bad.count == 0
    for word, vector in zip(VOCAB, vectors, strict=True):
        np.testing.assert_array_equal(vector, np.float32(EXPECTED.get(word, [0, 0, 0])))


def test_an_exact_word_wins_wherever_it_stands(tmp_path):
    for lines in (["Mesa 9 9", "mesa 1 2"], ["mesa 1 2", "MESA 9 9"], ["MÉSA 8 8", "mesa 1 2", "Mesa 9 9"],
                  ["mesa 1 2", "mesa 9 9"]):
        path = save(tmp_path / "vectors.txt", "\n".join(lines))
        assert prepare.read_vectors(path, VOCAB, prepare.BadRows(1))[2].tolist() == [1, 2]


def test_bad_lines_of_vectors_are_counted(tmp_path):
    lines = [f"w{i} 1 2 3" for i in range(300)] + VECTORS
    for place, line in ((250, "mesa 1 x 3"), (100, "silla 1 2"), (50, "x9 1 nan 3"), (20, "")):
        lines.insert(place, line)
    path = save(tmp_path / "vectors.txt", "\n".join(lines) + "\n")
    bad = prepare.BadRows(4)
    vectors = prepare.read_vectors(path, VOCAB, bad)
    assert (bad.count, bad.first) == (4, f"{path}:21: not a word and 3 numbers")
    assert vectors[VOCAB.index("mesa")].tolist() == [1, 2, 3] and not vectors[VOCAB.index("x9")].any()
    with pytest.raises(UserError, match=re.escape(f"{path}:21: not a word and 3 numbers (4 bad rows of 314; ")):
        prepare.read_vectors(path, VOCAB, prepare.BadRows(0.01))


@pytest.mark.parametrize("header", [[], ["3 3\n"]])
def test_vectors_of_another_length_are_bad_lines(tmp_path, header):
    first = "mesa 1 2 3\n" if not header else "mesa 1 2\n"
    path = save(tmp_path / "vectors.txt", "".join([*header, first, "silla 1 2 3 4 5\n", "azul 4 5 6\n", "x y 7 8 9\n"]))
    bad = prepare.BadRows(4)
    vectors = prepare.read_vectors(path, ["<pad>", "<unknown>", "mesa", "silla", "azul"], bad)
    assert bad.count == 1 + len(header) and vectors[4].tolist() == [4, 5, 6] and not vectors[3].any()


def test_a_number_too_large_for_float32_makes_a_bad_line(tmp_path, recwarn):
    bad = prepare.BadRows(4)
    vectors = prepare.read_vectors(save(tmp_path / "v.txt", "mesa 1 2\nx9 1e99 1\n"), VOCAB, bad)
    assert bad.count == 1 and not vectors[VOCAB.index("x9")].any() and not recwarn.list


def test_vectors_are_prepared_and_the_share_found_is_told(prep):
    save("titles.csv", COUNTED)
    vectors = "5 2\nALFA 1 2 \nbéta 3 4 \nsoloval 5 6 \n<pad> 7 7\n<unknown> 8 8\n"
    save("vectors.gz", gzip.compress(vectors.encode()))
    done = prep("--data", "titles.csv", "--vectors", "vectors.gz")
    about, _ = data.load_prepared("data/prepared")
    assert about["vectors"][:4].tolist() == [[0, 0], [0, 0], [3, 4], [1, 2]] and not about["vectors"][4:].any()
    assert about["vectors_found"] == 0.2 and "vectors found         20.00% of words" in done.stdout
    assert about["options"]["vectors"] == "vectors.gz" and "vectors.npy" in about["files"]
    prep("--data", "titles.csv")
    assert data.load_prepared("data/prepared")[0]["vectors"] is None


# --- download ---------------------------------------------------------------------------------------------------------

class Server:
    """An HTTP server on this machine that can lack ranges, break off, or announce too much."""

    def __init__(self):
        server = self
        self.files, self.ranges, self.cut, self.announce, self.chunked, self.asked = {}, True, None, 0, False, []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append((self.path.lstrip("/"), self.headers["Range"]))
                self.close_connection = True
                body = server.files.get(self.path.lstrip("/"))
                if body is None:
                    return self.send_error(404)
                start = int(re.search(r"\d+", self.headers["Range"] or "0").group()) if server.ranges else 0
                if start and start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206 if start else 200)
                if server.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    return self.wfile.write(b"%x\r\n" % len(body) + body[:server.cut])
                self.send_header("Content-Length", str(len(body) - start + server.announce))
                self.end_headers()
                self.wfile.write(body[start:server.cut])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


BODY = random.Random(0).randbytes(50_000)


def test_download_fetches_a_whole_file_once(server, tmp_path, capsys):
    server.files["x"] = BODY
    path = tmp_path / "new" / "x"
    assert prepare.download(f"{server.url}/x", path, len(BODY)) == path
    assert path.read_bytes() == BODY and list(path.parent.iterdir()) == [path]
    prepare.download(f"{server.url}/x", path)
    assert server.asked == [("x", None)] and capsys.readouterr().err == ""


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(server, tmp_path, ranges):
    server.files["x"], server.ranges = BODY, ranges
    path = tmp_path / "x"
    save(tmp_path / "x.part", BODY[:1234])
    prepare.download(f"{server.url}/x", path, len(BODY))
    assert path.read_bytes() == BODY and server.asked == [("x", "bytes=1234-")]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_loses_nothing(server, tmp_path, ranges):
    server.files["x"], server.cut, server.ranges = BODY, 20_000, ranges
    path = tmp_path / "x"
    with pytest.raises(UserError, match=r"x\.part: 20,000 bytes instead of 50,000; run again to go on"):
        prepare.download(f"{server.url}/x", path)
    assert not path.exists() and (tmp_path / "x.part").read_bytes() == BODY[:20_000]
    server.cut = None
    prepare.download(f"{server.url}/x", path)
    assert path.read_bytes() == BODY and server.asked == [("x", None), ("x", "bytes=20000-")]


def test_a_connection_that_breaks_without_an_announced_length(server, tmp_path):
    server.files["x"], server.cut, server.chunked = BODY, 20_000, True
    with pytest.raises(UserError, match=f"{server.url}/x: cannot be fetched"):
        prepare.download(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_more_announced_than_sent(server, tmp_path):
    server.files["x"], server.announce = BODY, 7
    with pytest.raises(UserError, match=r"x\.part: 50,000 bytes instead of 50,007"):
        prepare.download(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_complete_part_takes_its_name_and_a_longer_one_does_not(server, tmp_path):
    server.files["x"] = BODY
    save(tmp_path / "x.part", BODY)
    prepare.download(f"{server.url}/x", tmp_path / "x", len(BODY))
    assert (tmp_path / "x").read_bytes() == BODY
    save(tmp_path / "y.part", BODY + b"?")
    with pytest.raises(UserError, match=r"y\.part: 50,001 bytes instead of 50,000; .* delete it to start over"):
        prepare.download(f"{server.url}/x", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def archive(files, *more):
    """A tar.bz2 of {name: content} and more TarInfo members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:bz2") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return file.getvalue()


def test_the_course_is_fetched_unpacked_and_prepared(prep, server):
    files, expected = course_files()
    server.files["meli-challenge-2019.tar.bz2"] = archive(
        {f"meli-challenge-2019/{name}": content for name, content in files.items()})
    server.cut = 1000
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, "data/raw/course/meli-challenge-2019.tar.bz2.part: 1,000 bytes", "run again to go on")
    server.cut = None
    unpacked = set()
    for _ in range(2):  # the second time nothing is fetched or unpacked again
        prep("--download", "course", "--mirror", server.url)
        assert {split: texts(split) for split in SPLITS} == expected
        unpacked |= {(path, path.stat().st_mtime_ns) for path in Path("data/raw/course/unpacked").iterdir()}
    assert [span for _, span in server.asked] == [None, "bytes=1000-"] and len(unpacked) == 1
    prep()
    assert {path.name for path in Path("data/raw/course").iterdir()} == {"meli-challenge-2019.tar.bz2", "unpacked"}


def test_the_challenge_is_fetched_and_its_size_checked(prep, server, monkeypatch):
    content = gzip.compress(as_csv(ROWS).encode())
    server.files |= {"train.csv.gz": content, "test.csv": b"id,title,language\n0,Silla,spanish\n",
                     "sample_submission.csv": b"id,category\n0,SILLAS\n"}
    assert prepare.DOWNLOADS["meli"][1]["train.csv.gz"] == 691_651_384
    done = prep("--download", "meli", "--mirror", server.url, check=False)
    assert_one_line_error(done, "data/raw/meli/train.csv.gz.part", f"{len(content):,} bytes instead of 691,651,384")
    assert not Path("data/prepared").exists() and not Path("data/raw/meli/train.csv.gz").exists()
    monkeypatch.setitem(prepare.DOWNLOADS, "meli", (prepare.MELI, {
        "train.csv.gz": len(content), "test.csv": None, "sample_submission.csv": None}))
    prep("--download", "meli", "--mirror", server.url)
    assert sum(meta()["rows"].values()) == len(ROWS)


def test_a_file_that_the_server_has_not(prep, server):
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, f"{server.url}/meli-challenge-2019.tar.bz2: the server says 404")
    assert not [path for path in Path("data").rglob("*") if path.is_file()]


def test_no_server(prep):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = prep("--download", "course", "--mirror", url, check=False)
    assert_one_line_error(done, f"{url}/meli-challenge-2019.tar.bz2: cannot be fetched", "data/raw/course/ yourself")


def test_a_server_that_speaks_something_else(prep):
    with socket.create_server(("127.0.0.1", 0)) as other:
        def greet():
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        assert_one_line_error(prep("--download", "course", "--mirror", url, check=False), url, "cannot be fetched")
        thread.join()


@pytest.mark.parametrize("mirror", ["nowhere", "http://127.0.0.1:x", "http://a b", "ftpx://127.0.0.1", "http://"])
def test_a_mirror_that_is_no_address(prep, mirror):
    assert_one_line_error(prep("--download", "course", "--mirror", mirror, check=False), mirror, "cannot be fetched")


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EVIL = {
    "above": lambda place: ({"../../../../evil": b"x"}, []),
    "above from within": lambda place: ({"a/../../../../../evil": b"x"}, []),
    "absolute link": lambda place: ({}, [link("here", str(place))]),
    "link above": lambda place: ({}, [link("here", "../../../../..")]),
    "hard link above": lambda place: ({}, [link("here", "../../../../secret", tarfile.LNKTYPE)]),
    "device": lambda place: ({}, [link("here", "", tarfile.CHRTYPE)]),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_reaches_outside_is_refused(prep, server, tmp_path, monkeypatch, name):
    (tmp_path / "work").mkdir()
    save("secret", "unseen")
    monkeypatch.chdir(tmp_path / "work")
    files, _ = course_files()
    evil, members = EVIL[name](tmp_path)
    server.files["meli-challenge-2019.tar.bz2"] = archive(files | evil, *members)
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, "data/raw/course/meli-challenge-2019.tar.bz2", "delete it and fetch it again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "work"]
    assert [path.name for path in (tmp_path / "work/data/raw/course").iterdir()] == ["meli-challenge-2019.tar.bz2"]


def test_an_absolute_member_lands_inside(prep, server, tmp_path):
    files, _ = course_files()
    server.files["meli-challenge-2019.tar.bz2"] = archive(files | {f"{tmp_path}/evil.md": b"x"})
    prep("--download", "course", "--mirror", server.url)
    assert not Path("evil.md").exists() and list(Path("data/raw/course/unpacked").rglob("evil.md"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "flipped behind", "no archive", "xz cut", "gzip flipped"])
def test_a_broken_archive_is_named(prep, server, damage):
    content = archive({"x.train.csv": as_csv(ROWS).encode(), "x.big": BODY * 25})
    server.files["meli-challenge-2019.tar.bz2"] = {
        "cut": content[:len(content) // 2], "flipped": bytes(100).join((content[:1000], content[1100:])),
        "flipped behind": bytes(100).join((content[:-1000], content[-900:])), "no archive": BODY,
        "xz cut": lzma.compress(bz2.decompress(content))[:2000],
        "gzip flipped": corrupt(gzip.compress(bz2.decompress(content)))}[damage]
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, "data/raw/course/meli-challenge-2019.tar.bz2", "delete it and fetch it again")
    assert not Path("data/raw/course/unpacked").exists()


def test_an_archive_that_is_a_bomb_stops(prep, server):
    """200 MB in a few hundred bytes."""
    server.files["meli-challenge-2019.tar.bz2"] = archive({"x.train.csv": as_csv(ROWS).encode(),
                                                           "x.big": bytes(200 << 20)})
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, "data/raw/course/meli-challenge-2019.tar.bz2", "100-fold")
    assert [path.name for path in Path("data/raw/course").iterdir()] == ["meli-challenge-2019.tar.bz2"]


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = as_csv(tiny_rows(60)).encode()
PAIRS = b"title,category\n" + b"".join(b"title %d,C%d\n" % (i, i % 3) for i in range(1000))


def pairs(*lines, place=500, after=b""):
    """1,000 sound rows of title and category, with these lines as rows from number `place` + 2 on."""
    rows = PAIRS.splitlines(keepends=True)
    return b"".join([*rows[:place + 1], *lines, *rows[place + 1:], after])


def corrupt(content):
    middle = len(content) // 2
    return content[:middle] + bytes(60) + content[middle + 60:]


def bad_lines(line, n=30):
    return pairs(*[line] * n)


CSV = as_csv(tiny_rows(400)).encode()
BAD = {  # name: (content of bad.csv, flags, words of the message)
    "missing file": (None, [], ["bad.csv: no such file"]),
    "empty file": (b"", [], ["bad.csv: empty file"]),
    "empty once unpacked": (gzip.compress(b""), [], ["bad.csv: empty file"]),
    "empty first line": (b"\n" + GOOD, [], ["bad.csv: empty file, or its first line is empty"]),
    "header only": (b"title,category\n", [], ["bad.csv: no rows"]),
    "header only, no newline": (b"title,category", [], ["bad.csv: no rows"]),
    "header only, packed": (bz2.compress(b"title,category"), [], ["bad.csv: no rows"]),
    "wrong columns": (b"name,kind\na,b\n", [], ["bad.csv:1: the header needs one column title or text", "name,kind"]),
    "no category": (b"id,title\n1,a\n", [], ["bad.csv:1: the header needs one column category or label"]),
    "two titles": (b"title,title,category\na,b,c\n", [], ["bad.csv:1: the header needs one column title or text"]),
    "no header": (b"silla,SILLAS\nmesa,MESAS\n", [], ["bad.csv:1: the header", "silla,SILLAS"]),
    "CR line ends": (GOOD.replace(b"\n", b"\r"), [], ["bad.csv:1: "]),
    "a very long first line": (b"x" * 300_000, [], ["bad.csv:1: "]),
    "UTF-16": (GOOD.decode().encode("utf-16"), [], ["bad.csv:1: the header"]),
    "binary garbage": (b"\x7fELF" + random.Random(1).randbytes(100_000), [], ["bad.csv:1: "]),
    "binary garbage with CR": (b"\x00\r\xff\r" + bytes(range(256)) * 99, [], ["bad.csv:1: "]),
    "zip archive": (b"PK\x03\x04\x14\x00" + random.Random(2).randbytes(5000), [], ["bad.csv:1: "]),
    "one category": (b"title,category\na,b\nc,b\n", [], ["bad.csv: only one category (b)"]),
    "no letters": (b"title,category\n!,b\n?,c\n", [], ["bad.csv: no title has a letter or digit"]),
    "few titles": (b"title,category\na,b\nc,d\n", [], ["bad.csv: the valid split is empty", "5 different titles"]),
    "gzip cut": (gzip.compress(CSV)[:2000], [], ["bad.csv: broken compressed file", "fetch it again"]),
    "gzip cut at its start": (gzip.compress(CSV)[:11], [], ["bad.csv: broken compressed file"]),
    "gzip corrupted": (corrupt(gzip.compress(CSV)), [], ["bad.csv: broken compressed file"]),
    "gzip with garbage behind": (gzip.compress(CSV) + b"garbage", [], ["bad.csv: broken compressed file"]),
    "bzip2 cut": (bz2.compress(CSV)[:2000], [], ["bad.csv: broken compressed file"]),
    "bzip2 corrupted": (corrupt(bz2.compress(CSV)), [], ["bad.csv: broken compressed file"]),
    "xz cut": (lzma.compress(CSV)[:2000], [], ["bad.csv: broken compressed file"]),
    "xz corrupted": (corrupt(lzma.compress(CSV)), [], ["bad.csv: broken compressed file"]),
    "JSON lines in a cut gzip": (gzip.compress(as_json(tiny_rows(300)).encode())[:2000], [], ["bad.csv: broken compr"]),
    "broken JSON line": (as_json(tiny_rows(9)).encode() + b'{"title": "a", \n', [], ["bad.csv:10: ", "--max-bad-rows"]),
    "JSON without objects": (as_json(tiny_rows(2)).encode() + b"[1]\n", [], ["bad.csv:3: not a JSON object"]),
    "a JSON array": (b'[{"title": "a", "category": "b"}]\n', [], ["bad.csv:1: ", "JSON lines"]),
    "JSON of other fields": (b'{"name": "a", "kind": "b"}\n' * 9, [], ["bad.csv:1: no category"]),
    "JSON without title": (b'{"title": null, "category": "b"}\n' * 9, [], ["bad.csv:1: no title"]),
    "deep JSON": (b'{"title":' + b"[" * 100_000 + b"\n", [], ["bad.csv:1: "]),
    "fastText line without label": (as_fasttext(tiny_rows(9)).encode() + b"a b\n", [], ["bad.csv:10: does not start"]),
    "fastText line of two labels": (as_fasttext(tiny_rows(9)).encode() + b"__label__a __label__b c\n", [],
                                    ["bad.csv:10: has several labels; keep one"]),
    "fastText label alone": (b"__label__a\n__label__b x\n", [], ["bad.csv:1: no title"]),
    "not UTF-8": (bad_lines(b"caf\xe9,A\n"), [], ["bad.csv:502: the title is not UTF-8", "30 bad rows of 1,030"]),
    "Latin-1": (b"title,category\n" + "cámara,CÁMARAS\nteléfono,FONOS\n".encode("latin-1") * 20, [],
                ["bad.csv:2: the title is not UTF-8"]),
    "neither UTF-8 nor the right columns": (pairs("cámara\n".encode("latin-1")), [], ["bad.csv:2: not UTF-8", "later"]),
    "category not UTF-8": (bad_lines(b"cafe,\xe9\n"), [], ["bad.csv:502: the category is not UTF-8"]),
    "no title in rows": (bad_lines(b" ,A\n"), [], ["bad.csv:502: no title (30 bad rows of 1,030"]),
    "no category in rows": (bad_lines(b'"a, b",\n'), [], ["bad.csv:502: no category"]),
    "too many columns": (bad_lines(b"a,b,c\n"), [], ["bad.csv:502: 3 columns instead of 2", "--max-bad-rows"]),
    "too few columns": (bad_lines(b"a\n"), [], ["bad.csv:502: 1 columns instead of 2"]),
    "unclosed quote": (pairs(b'"a,C1\n'), [], ["bad.csv:502: 1 columns instead of 2 in 501 lines; is a quote unclosed?",
                                               "501 bad rows of 1,001"]),
    "unclosed quote at the end": (pairs(b'"a,C1\n', place=1000), ["--max-bad-rows", "0.0001"], ["bad.csv:1002: "]),
    "split of another name": (b"title,category,split\na,b,\nc,d,exam\n", [], ["bad.csv: the split column says 'exam'"]),
    "no such language": (GOOD, ["--languages", "klingon"], ["bad.csv: no rows in klingon"]),
    "no language column": (PAIRS, ["--languages", "spanish"], ["bad.csv: has no language column"]),
    "too many languages": (b"title,category,language\n" + b"".join(b"a,C%d,%d\n" % (i % 3, i) for i in range(300)), [],
                           ["bad.csv: more than 256 languages"]),
    "no frequent word": (PAIRS, ["--min-count", "5000"], ["bad.csv", "--min-count"]),
    "data without rows": (b"title,category\n", ["--test", "good.csv"], ["bad.csv: no rows"]),
    "test without rows": (GOOD, ["--test", "header.csv"], ["header.csv: no rows"]),
    "missing test": (GOOD, ["--test", "nowhere.csv"], ["nowhere.csv: no such file"]),
    "test of other columns": (GOOD, ["--test", "unlabelled.csv"], ["unlabelled.csv:1: the header"]),
    "missing vectors": (GOOD, ["--vectors", "nowhere.vec"], ["nowhere.vec: no such file"]),
    "vectors in a folder": (GOOD, ["--vectors", "folder"], ["folder: "]),
    "empty vectors": (GOOD, ["--vectors", "empty"], ["empty: empty file"]),
    "vectors without numbers": (GOOD, ["--vectors", "unlabelled.csv"], ["unlabelled.csv:1: no vector here"]),
    "vectors of other words": (GOOD, ["--vectors", "other.vec"], ["other.vec: ", "no word"]),
    "vectors that are prose": (GOOD, ["--vectors", "prose.txt"], ["prose.txt:1: not a word and 6 numbers"]),
    "vectors cut": (GOOD, ["--vectors", "cut.gz"], ["cut.gz: broken compressed file"]),
    "unknown flag": (GOOD, ["--vocabulary", "7"], ["unrecognized arguments: --vocabulary 7", "--help"]),
    "shortened flag": (GOOD, ["--max-l", "7"], ["unrecognized arguments"]),
    "rows 0": (GOOD, ["--rows", "0"], ["--rows", "positive int"]),
    "rows 1.5": (GOOD, ["--rows", "1.5"], ["--rows", "'1.5'"]),
    "valid 1.5": (GOOD, ["--valid", "1.5"], ["--valid", "'1.5'"]),
    "valid 0": (GOOD, ["--valid", "0"], ["--valid"]),
    "valid nan": (GOOD, ["--valid", "nan"], ["--valid"]),
    "seed -1": (GOOD, ["--seed", "-1"], ["--seed", "'-1'"]),
    "vocab 0": (GOOD, ["--vocab", "0"], ["--vocab"]),
    "max-len x": (GOOD, ["--max-len", "x"], ["--max-len"]),
    "threads 0": (GOOD, ["--threads", "0"], ["--threads"]),
    "max-bad-rows -1": (GOOD, ["--max-bad-rows", "-1"], ["--max-bad-rows"]),
    "download of another": (GOOD, ["--download", "imagenet"], ["--download", "imagenet", "meli"]),
    "out is a file": (GOOD, ["--out", "header.csv"], ["header.csv: is there and holds something else"]),
    "out under a file": (GOOD, ["--out", "header.csv/prepared"], ["header.csv/prepared", "Not a directory"]),
    "out where nothing can be made": (GOOD, ["--out", "/proc/nowhere/prepared"], ["/proc/nowhere"]),
    "out is the working folder": (GOOD, ["--out", "."], ["choose another --out"]),
    "out is above": (GOOD, ["--out", ".."], ["choose another --out"]),
    "out is all there is": (GOOD, ["--out", "/"], ["choose another --out"]),
    "out is nothing": (GOOD, ["--out", ""], ["choose another --out"]),
    "out is a folder of files": (GOOD, ["--out", "folder"], ["folder: is there and holds something else"]),
    "out is no prepared folder": (GOOD, ["--out", "other"], ["other: is there and holds something else"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_and_nothing_is_lost(prep, tiny, name):
    content, flags, words = BAD[name]
    shutil.copytree(tiny / "data", "data")
    for path, text in (("header.csv", "title,category\n"), ("unlabelled.csv", "id,title\n1,Silla\n"), ("empty", ""),
                       ("good.csv", GOOD), ("other.vec", "2 3\nrueda 1 2 3\nluz 4 5 6\n"), ("folder/vocab.txt", "mine"),
                       ("other/meta.json", '{"format": 1}'), ("other/thesis.txt", "mine"),
                       ("prose.txt", "funda de color azul para el celular\nlos nuevos son\n"),
                       ("cut.gz", gzip.compress(b"mesa 1 2\n" * 999)[:20])):
        save(path, text)
    if content is not None:
        save("bad.csv", content)
    before = snapshot()
    done = prep("--data", "bad.csv", *flags, check=False)
    assert_one_line_error(done, *words)
    assert snapshot() == before
    data.load_prepared("data/prepared")


def test_a_prepared_folder_with_a_file_of_mine_is_not_replaced(prep):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    save("data/prepared/notes.txt", "mine")
    before = snapshot()
    assert_one_line_error(prep("--data", "good.csv", check=False), "data/prepared: ", "notes.txt", "--out")
    assert snapshot() == before


@pytest.mark.parametrize("damage", ["meta.json", "vocab.txt"])
def test_a_damaged_prepared_folder_can_be_made_again(prep, damage):
    save("good.csv", GOOD)
    whole = fingerprint_of(prep, "good.csv")
    save(Path("data/prepared") / damage, "{")
    assert fingerprint_of(prep, "good.csv") == whole
    data.load_prepared("data/prepared")


def test_an_empty_folder_and_folders_that_are_not_there_serve_as_out(prep):
    save("good.csv", GOOD)
    Path("empty").mkdir()
    for out in ("empty", "a/b/c"):
        prep("--data", "good.csv", "--out", out)
        assert back(out)["train"] and [path.name for path in Path(out).parent.glob("*.*")] in ([], ["good.csv"])


def test_out_may_be_a_link_to_a_folder_elsewhere(prep):
    save("good.csv", GOOD)
    Path("big/disk").mkdir(parents=True)
    Path("data").mkdir()
    Path("data/prepared").symlink_to("../big/disk")
    for _ in range(2):
        prep("--data", "good.csv")
        assert Path("data/prepared").is_symlink() and back()["train"]
        assert [path.name for path in Path("big").iterdir()] == ["disk"]
        assert [path.name for path in Path("data").iterdir()] == ["prepared"]


def test_a_few_bad_rows_are_skipped_and_counted(prep, monkeypatch):
    lines = [b"a,b,c\n", b"caf\xe9,C1\n", b",C1\n", b"x,\n", b"x\n", b'"y\nz\nw"\n']
    save("titles.csv", pairs(*lines))
    done = prep("--data", "titles.csv")  # the last row has three lines, and each counts
    assert "bad rows skipped      8, first titles.csv:502: 3 columns instead of 2" in done.stdout
    assert (meta()["bad_rows"], sum(meta()["rows"].values())) == (8, 1000)
    monkeypatch.setattr(prepare, "BLOCK", 1000)
    assert_one_line_error(prep("--data", "titles.csv", "--max-bad-rows", "0.005", check=False),
                          "titles.csv:502: 3 columns", "8 bad rows of 1,008", "--max-bad-rows")
    prep("--data", "titles.csv", "--max-bad-rows", 8)
    assert_one_line_error(prep("--data", "titles.csv", "--max-bad-rows", 7, check=False), "8 bad rows")
    save("many.csv", pairs(*lines * 3))
    assert_one_line_error(prep("--data", "many.csv", check=False), "many.csv:502: 3 columns", "24 bad rows of 1,024")
    prep("--data", "many.csv", "--max-bad-rows", 0.03)
    assert meta()["bad_rows"] == 24


@pytest.mark.parametrize("flags", [("--rows", 300), ("--languages", "spanish")])
def test_bad_rows_are_a_share_of_all_rows_read(prep, flags):
    rows = "".join(f"w{i} x,C{i % 4},{'spanish' if i % 5 == 0 else 'portuguese'}\n" for i in range(2000))
    save("titles.csv", "title,category,language\n" + rows + "a,b\n" * 15)
    prep("--data", "titles.csv", *flags)
    assert meta()["bad_rows"] == 15 and sum(meta()["rows"].values()) < 401
    assert_one_line_error(prep("--data", "titles.csv", *flags, "--max-bad-rows", "0.007", check=False),
                          "15 bad rows of 2,015")


def test_names_that_are_not_utf8(tmp_path):
    def prepare(*args, check=True):
        return run_script("prepare", *args, cwd=tmp_path, check=check)

    titles, vectors = (os.fsdecode(name) for name in (b"caf\xe9.csv", b"v\xe9.vec"))
    save(tmp_path / titles, pairs(b"x\n"))
    save(tmp_path / vectors, PAIRS.split()[1].decode().partition(",")[0].lower() + " 1 2\n")
    prepare("--data", titles, "--vectors", vectors)
    about, _ = data.load_prepared(tmp_path / "data/prepared")
    assert about["source"][0]["file"] == "caf\ufffd.csv" and about["options"]["vectors"] == "v\ufffd.vec"
    assert about["first_bad_row"].startswith("caf\ufffd.csv:502: ")
    save(tmp_path / "good.csv", as_csv(ROWS))
    done = prepare("--data", "good.csv", "--languages", os.fsdecode(b"espa\xf1ol"), check=False)
    assert_one_line_error(done, "no rows in espa\ufffdol")


@pytest.mark.parametrize("block", [600, 1000, 3000, 4 << 20])
@pytest.mark.parametrize("shape", ["runs", "sparse", "random"])
def test_bad_rows_are_numbered_as_they_stand(tmp_path, monkeypatch, block, shape):
    draw, expected, lines = random.Random(block), [], [b"title,category\n"]
    for number in range(2, 1500):
        bad = {"runs": number % 100 < 40, "sparse": number % 97 == 0, "random": draw.random() < 0.1}[shape]
        kind = draw.choice([b"a,b,c\n", b",C1\n", b"\xff,C1\n", b"x\n"]) if bad else b"title %d,C1\n" % number
        lines.append(kind)
        expected += [number] if bad else []
    path, found = save(tmp_path / "titles.csv", b"".join(lines)), []

    class Bad(prepare.BadRows):
        def add(self, path, row, *rest):
            found.append(row)

    monkeypatch.setattr(prepare, "BLOCK", block)
    rows = [title for part in prepare.read_source(path, Bad(1)) for title in part["title"].to_pylist()]
    assert sorted(found) == expected
    assert rows == [f"title {number}" for number in range(2, 1500) if number not in set(expected)]


def test_bad_rows_in_json_and_fasttext_are_numbered_by_line(tmp_path):
    for parse, sound in (("json", b'{"title": "a", "category": "b"}\n'), ("fasttext", b"__label__b a\n")):
        path = save(tmp_path / parse, sound + b"\n" + sound + b"\xff\n" + sound + b"nothing\n")
        bad = prepare.BadRows(2)
        blocks = list(prepare.read_source(path, bad))
        assert blocks[0]["title"].to_pylist() == ["a"] * 3 and bad.count == 2 and bad.first.startswith(f"{path}:4: ")


def test_a_quote_that_never_closes_is_found_in_small_blocks(prep, monkeypatch):
    monkeypatch.setattr(prepare, "BLOCK", 1000)
    save("titles.csv", pairs(b'"a,C1\n', place=100))
    assert_one_line_error(prep("--data", "titles.csv", check=False), "titles.csv:", "is a quote unclosed?")


@pytest.mark.parametrize("new", [False, True])
def test_what_a_kill_between_two_renames_left_is_settled(prep, new):
    save("good.csv", GOOD)
    save("bad.csv", PAIRS.replace(b"C1", b"C0").replace(b"C2", b"C0"))
    prep("--data", "good.csv")
    before = snapshot("data")
    if new:
        shutil.copytree("data/prepared", "data/prepared.tmp-old")
        save("data/prepared.tmp-old/vocab.txt", "former")
    else:
        Path("data/prepared").rename("data/prepared.tmp-old")
    assert_one_line_error(prep("--data", "bad.csv", check=False), "only one category")
    assert snapshot("data") == before
    prep("--data", "good.csv")
    assert snapshot("data") == before


def test_a_backup_beside_the_prepared_folder_is_not_touched(prep):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    for name in ("prepared.old", "prepared.tmp", "prepared.tmp-backup", "prepared.bak"):
        shutil.copytree("data/prepared", Path("data") / name)
    save("data/prepared.tmp-2024x/mine", "mine")
    before = snapshot("data")
    prep("--data", "good.csv")
    data.load_prepared("data/prepared")
    assert snapshot("data") == before


@pytest.mark.parametrize("when", ["ingest", "swap_in"])
def test_a_kill_leaves_the_former_result_and_the_next_run_tidies_up(prep, tiny, tmp_path, when):
    save("good.csv", GOOD)
    shutil.copytree(tiny / "data", "data")
    before = snapshot(tmp_path)
    save(tmp_path / "data/prepared.tmp-mine/thesis.txt", "mine")  # not one of ours
    kill = ("import os, signal, sys; sys.path.insert(0, sys.argv.pop(1)); import data, prepare;"
            f"setattr({'prepare' if when == 'ingest' else 'data'}, {when!r}, lambda *a: os.kill(os.getpid(), 9));"
            "prepare.main()")
    killed = subprocess.run([sys.executable, "-c", kill, ROOT, "--data", "good.csv", "--seed", "1"], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "data").glob("prepared.tmp-*"))) == 2
    assert {path: content for path, content in snapshot(tmp_path).items() if ".tmp-" not in path} == before
    prep("--data", "good.csv")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["prepared", "prepared.tmp-mine"]
    assert (tmp_path / "data/prepared.tmp-mine/thesis.txt").read_text() == "mine"


def test_an_interrupt_leaves_no_trace(prep, monkeypatch):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    before = snapshot()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "choose_words", interrupted)
    assert prep("--data", "good.csv", check=False).returncode == 130
    assert snapshot() == before


def test_a_full_disk_ends_in_one_line_and_nothing_is_lost(prep, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        save("good.csv", GOOD)
        save("titles.csv", as_csv(tiny_rows(2000)))
        prep("--data", "good.csv", "--out", place / "prepared")
        before = snapshot(place)
        assert_one_line_error(prep("--data", "titles.csv", "--out", place / "prepared", check=False), place, "space")
        assert snapshot(place) == before
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        done = prep("--data", "good.csv", "--out", place / "prepared", check=False)
        assert_one_line_error(done, place / "prepared", "Read-only file system")
        assert snapshot(place) == before
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("limit", [2_000, 60_000])
def test_a_file_that_cannot_grow_ends_in_one_line_and_nothing_is_lost(tiny, tmp_path, limit):
    save(tmp_path / "titles.csv", as_csv(tiny_rows(2000)))
    shutil.copytree(tiny / "data", tmp_path / "data")
    before = snapshot(tmp_path)
    limited = ("import resource, runpy, sys; sys.path.insert(0, sys.argv[1].rpartition('/')[0]);"
               f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); del sys.argv[0];"
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-B", "-c", limited, ROOT / "prepare.py", "--data", "titles.csv",
                           "--max-len", "60"], cwd=tmp_path, capture_output=True, text=True)
    assert_one_line_error(done, "data/prepared", "File too large")
    assert snapshot(tmp_path) == before


def test_one_file_is_not_read_twice(tmp_path):
    """A file and its compressed twin, or what a killed unpacking left, never double the rows in silence."""
    write_csv(tmp_path / "raw/train.csv", tiny_rows())
    assert len(prepare.find_files(tmp_path / "raw")) == 1
    write_csv(tmp_path / "raw/unpacked.tmp-123/train.csv", tiny_rows())
    assert len(prepare.find_files(tmp_path / "raw")) == 1
    (tmp_path / "raw/train.csv.gz").write_bytes(gzip.compress((tmp_path / "raw/train.csv").read_bytes()))
    with pytest.raises(data.UserError, match="several data sets"):
        prepare.find_files(tmp_path / "raw")
    assert_one_line_error(run_script("prepare", "--download", "meli", "--data", "raw", cwd=tmp_path, check=False),
                          "--download and --data")


def test_peak_memory_grows_with_the_block_and_not_with_the_file(tmp_path):
    draw, words = random.Random(0), [f"word{i}" for i in range(1000)]

    def peak(rows):
        """(size, peak resident memory) in bytes, of a file of long titles and of preparing it in small blocks."""
        path = tmp_path / f"{rows}.csv"
        with open(path, "w") as file:
            file.write("title,category\n")
            file.writelines(f"{' '.join(draw.choices(words, k=60))},c{i % 9}\n" for i in range(rows))
        code = ("import resource, sys; sys.path.insert(0, sys.argv[1]); import prepare; prepare.BLOCK = 1 << 18;"
                "sys.argv[:2] = ['prepare.py']; prepare.main();"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
        done = subprocess.run([sys.executable, "-c", code, ROOT, "--data", path, "--threads", "2"], cwd=tmp_path,
                              capture_output=True, text=True, check=True)
        return path.stat().st_size, 1024 * int(done.stdout.split()[-1])

    small, large = peak(10_000), peak(110_000)
    assert large[0] - small[0] > 40e6
    assert large[1] - small[1] < 0.75 * (large[0] - small[0])  # a file held in memory would be twice there
