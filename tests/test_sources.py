"""sources.py: every format gives the same rows, bad rows are told with their line, and no row vanishes unsaid."""
import csv
import io
import lzma
import os
import random
import re
from types import SimpleNamespace

import pytest
from conftest import COLUMNS, PACKED, as_csv, as_fasttext, as_json, corrupted, save, tiny_rows

import classify
from classify import AS_TEXT, SPANS
from titles import files, formats, sources
from titles.cli import UserError

BLOCKS = [1, 60, 8 << 20]  # bytes of a file read at a time; the last is what the program uses


class Recorder(formats.BadRows):
    """Keeps what is said of every line: `skipped` and `odd`, {line: what}."""

    def __init__(self, limit=1e9):
        super().__init__(limit)
        self.skipped, self.odd = {}, {}

    def add(self, path, line, what, times=1):
        super().add(path, line, what, times)
        self.skipped[int(line)] = what

    def note(self, path, line, what, times=1):
        super().note(path, line, what, times)
        self.odd[int(line)] = what


def form(encoding="utf-8", **columns):
    """The Format that flags such as --title-column ask for."""
    return formats.format_from(SimpleNamespace(encoding=encoding, **{f"{name}_column": columns.get(name)
                                                                     for name in ("title", "category")}))


def labelled(path, limit=1e9, **asked):
    """([(title, label_quality, language, category)] of a file, "" for columns that it lacks; a Recorder)."""
    bad, rows = Recorder(limit), []
    for block in sources.read_labelled(path, bad, form(**asked)):
        nothing = [""] * len(block["title"])
        rows += zip(*(block[name].to_pylist() if name in block else nothing
                      for name in ("title", "quality", "language", "category")), strict=True)
    return rows, bad


# --- every format -----------------------------------------------------------------------------------------------------

ROWS = tiny_rows(40) + [
    ('Silla "gamer", 24" roja; nueva', "reliable", "spanish", "SILLAS"),
    ("mesa\nde dos líneas", "unreliable", "portuguese", "MESAS"),
    ("mesa\tde\r\ncafé", "reliable", "spanish", "MESAS"),
    ('"funda"', "unreliable", "spanish", "FUNDAS"),
    ("São Paulo ½ 手机 Привет 😀", "unreliable", "portuguese", "CELULARES"),
    ("¡¿!?", "reliable", "spanish", "CELULARES"),
    ("{funda} __label__x", "reliable", "spanish", "FUNDAS"),
]
FLAT = [(" ".join(title.split()), *rest) for title, *rest in ROWS]  # without line ends, Arrow can read them


def unix(rows):
    """The rows with newlines alone as line ends."""
    return [(title.replace("\r\n", "\n"), *rest) for title, *rest in rows]


def with_index(rows, delimiter):
    """CSV with the row numbers in an unnamed first column."""
    file = io.StringIO()
    lines = [["", *COLUMNS], *([i, *row] for i, row in enumerate(rows))]
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return file.getvalue()


def written(rows):
    """The rows in every form that keeps all of them: {name: content}."""
    order, numbers = ("category", "title", "language", "label_quality"), list(range(len(rows)))
    spaced = [(f"  {row[0]} ", f" {row[1]}", f"{row[2]}\u00a0", f" {row[3]} ") for row in rows]
    return {
        "columns in another order": as_csv(rows, order),
        "text and label": as_csv(rows, names={"title": "text", "category": "label"}),
        "names in capitals": as_csv(rows, names={"title": " Title", "category": "CATEGORY "}),
        "everything quoted": as_csv(rows, quoting=csv.QUOTE_ALL),
        "CRLF": as_csv(rows, newline="\r\n"),
        "no newline at the end": as_csv(rows).rstrip("\n"),
        "empty lines": as_csv(rows).replace("\nfunda", "\n\nfunda") + "\n\n",
        "byte order mark and quotes": "\ufeff" + as_csv(rows, quoting=csv.QUOTE_ALL),
        "semicolons as Excel writes them": "\ufeff" + as_csv(rows, order, delimiter=";", newline="\r\n"),
        "TSV": as_csv(rows, delimiter="\t"),
        "TSV, CRLF, another order": as_csv(rows, order, delimiter="\t", newline="\r\n"),
        "a space behind each comma": re.sub('","', '", "', as_csv(rows, quoting=csv.QUOTE_ALL)),
        "more columns": as_csv(rows, extra=[("price, in $", ["1,5"] * len(rows)), ("id", numbers)]),
        "TSV with an unnamed last column": as_csv(rows, delimiter="\t", extra=[("", ["x"] * len(rows))]),
        "CSV with the unnamed index of pandas": with_index(rows, ","),
        "TSV with the unnamed index of pandas": with_index(rows, "\t"),
        "spaces around": as_csv(spaced),
        "JSON lines": as_json(rows),
        "JSON lines in ASCII": as_json(rows, ascii_only=True),
        "JSON lines, text and label": as_json(rows, names={"title": "text", "category": "label"}),
        "JSON lines, more fields": as_json(rows, price=1.5, data=[1, 2], nested={"title": "no"}, other=None),
        "JSON lines, empty lines, mark, CRLF": "\ufeff" + as_json(rows).replace("\n", "\r\n\r\n"),
    }


@pytest.mark.parametrize("rows", [ROWS, FLAT], ids=["lines", "flat"])
@pytest.mark.parametrize("name", written(FLAT))
def test_every_source_gives_the_same_rows(tmp_path, name, rows):
    found, bad = labelled(save(tmp_path / "source", written(rows)[name]))
    assert unix(found) == unix(rows)
    assert not bad.skipped and {*bad.odd.values()} <= {SPANS}


MISLEADING = {"titles.jsonl.bz2": as_csv, "titles.csv.gz": lambda rows: as_csv(rows, delimiter="\t"),
              "titles.csv": as_json, "titles.tsv": as_fasttext}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", MISLEADING)
def test_content_and_not_the_name_tells_form_and_compression(tmp_path, name, packed):
    rows = [(title, "", "", category) for title, _, _, category in tiny_rows(40)]
    path = save(tmp_path / name, PACKED[packed](MISLEADING[name](rows).encode()))
    assert labelled(path)[0] == rows


def test_fasttexts_labels_end_where_it_ends_them(tmp_path):
    assert labelled(save(tmp_path / "x", "__label__a\tb c\n __label__d  e\tf\n"))[0] == [
        ("b c", "", "", "a"), ("e\tf", "", "", "d")]
    lines = "".join(f"__label__a{blank}b c\n" for blank in " \t\v\f\r") + "x" * 1000
    assert {row[3] for row in labelled(save(tmp_path / "x", f"{lines}\n__label__a\0b\n"))[0]} == {"a"}
    others = [c for c in map(chr, range(0x85, 0x3001)) if c.isspace()]
    rows = labelled(save(tmp_path / "x", "".join(f"__label__a{blank}b c\n" for blank in others)))[0]
    assert len(rows) == len(others) > 10 and {row[0] for row in rows} == {"c"} and {row[3] for row in rows} == {"a b"}


@pytest.mark.parametrize("block", [1, 700, 5000])
@pytest.mark.parametrize("packed", ["plain", "xz"])
def test_a_file_read_in_many_blocks_gives_the_same_rows(tmp_path, monkeypatch, block, packed):
    rows = [(title.replace(" ", "\n", i % 3), *rest) for i, (title, *rest) in enumerate(unix(ROWS))]
    monkeypatch.setattr(formats, "BLOCK", block)
    monkeypatch.setattr(formats, "LINE_ROWS", 7)
    for content in (as_csv(rows, newline="\r\n"), as_json(rows)):
        assert labelled(save(tmp_path / "x", PACKED[packed](content.encode())))[0] == rows


@pytest.mark.parametrize("name", ["label_quality", "language"])
@pytest.mark.parametrize("form", ["absent", "empty", "null"])
def test_what_a_source_does_not_say_is_empty(tmp_path, name, form):
    rows = tiny_rows(9)
    expected = [tuple("" if column == name else cell for column, cell in zip(COLUMNS, row, strict=True))
                for row in rows]
    if form == "absent":
        kept = [column for column in COLUMNS if column != name]
        assert labelled(save(tmp_path / "x.csv", as_csv(rows, kept)))[0] == expected
        assert labelled(save(tmp_path / "x.json", as_json(rows, kept)))[0] == expected
    else:
        more = {name: {"empty": "", "null": None}[form]}
        assert labelled(save(tmp_path / "x.json", as_json(rows, **more)))[0] == expected


# --- bad rows ---------------------------------------------------------------------------------------------------------

PAIRS = b"title,category\n" + b"".join(b"title %d,C%d\n" % (i, i % 3) for i in range(1000))


def pairs(line, place=500, times=30):
    """1,000 sound rows of title and category, and this line so many times as rows from number `place` + 2 on."""
    rows = PAIRS.splitlines(keepends=True)
    return b"".join([*rows[:place + 1], *[line] * times, *rows[place + 1:]])


def partly(content):
    """Rows of which some have accents in UTF-8."""
    return content.replace(b"title 1", "título 1".encode())


GOOD = as_csv(tiny_rows(60)).encode()
BAD = {  # name: (content of bad.csv, how the message begins, what else is in it)
    "missing file": (None, ": no such file"),
    "empty file": (b"", ": empty file"),
    "empty once unpacked": (lzma.compress(b""), ": empty file"),
    "empty first line": (b"\n" + GOOD, ": empty file, or its first line is empty"),
    "broken compressed file": (corrupted(lzma.compress(GOOD * 9)), ": broken compressed file", "fetch it again"),
    "wrong columns": (b"name,kind\na,b\n", ":1: the header needs one column title or text", "name,kind"),
    "no category": (b"id,title\n1,a\n", ":1: the header needs one column category or label"),
    "two titles": (b"title,title,category\na,b,c\n", ":1: the header needs one column title or text"),
    "title and text": (b"title,category,text\na,b,c\n", ":1: the header needs one column title or text"),
    "no header": (b"silla,SILLAS\nmesa,MESAS\n", ":1: the header", "silla,SILLAS"),
    "CR line ends": (GOOD.replace(b"\n", b"\r"), ": a carriage return within the first line"),
    "CR within the header": (b"id\r,title,category\na,b,c\n", ": a carriage return within the first line"),
    "CR within the first line": (b"__label__a b\r__label__c d\n", ": a carriage return within the first line"),
    "a very long first line": (b"x" * 300_000, ":1: "),
    "UTF-16": (GOOD.decode().encode("utf-16"), ": not text in UTF-8", "another encoding, such as utf-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), ": not text in UTF-8", "--encoding"),
    "UTF-32": (GOOD.decode().encode("utf-32"), ": not text in UTF-8", "--encoding"),
    "zeros": (GOOD + bytes(99) + GOOD, f":{GOOD.count(10) + 1}: many zero bytes"),
    "NUL": (GOOD[:60] + b"\0" + GOOD[60:], ": not text in UTF-8"),
    "compressed twice": (lzma.compress(lzma.compress(GOOD)), ": not text in UTF-8, plain or compressed once"),
    "binary": (b"\x7fELF" + random.Random(1).randbytes(100_000), ": not text"),
    "binary with CR": (b"\x00\r\xff\r" + bytes(range(256)) * 99, ": not text"),
    "broken zip archive": (b"PK\x03\x04\x14\x00" + random.Random(2).randbytes(5000), ": a zip archive, and no"),
    "broken JSON line": (as_json(tiny_rows(9)).encode() + b'{"title": "a", \n', ":10: ", "--max-bad-rows"),
    "JSON without objects": (as_json(tiny_rows(2)).encode() + b"[1]\n", ":3: not a JSON object"),
    "a JSON array": (b'[{"title": "a", "category": "b"}]\n', ":1: not a JSON object; wanted: JSON lines"),
    "JSON of other fields": (b'{"name": "a", "kind": "b"}\n' * 9, ":1: no title"),
    "JSON without category": (b'{"title": "a", "category": null}\n' * 9, ":1: no category"),
    "deep JSON": (b'{"title":' + b"[" * 100_000 + b"\n", ":1: "),
    "JSON that is not UTF-8": ('{"title": "á", "category": "b"}\n\n'.encode() + b'{"title": "\xff"}\n',
                               ":3: 'utf-8' codec"),
    "JSON in cp1252": (b'{"title": "a", "category": "b"}\n\n{"title": "\xff"}\n', ":3: not UTF-8; name its encoding"),
    "many JSON records that carriage returns end": (
        as_json(tiny_rows(9)).encode() + b'{"title": "x"}\r' * 20, ":10: Extra data"),
    "fastText line without label": (b"__label__a b\n" * 9 + b"a b\n", ":10: does not start with __label__"),
    "fastText line of two labels": (b"__label__a b\n" * 9 + b"__label__a __label__b c\n",
                                    ":10: has several labels; keep one"),
    "fastText label alone": (b"__label__a\n__label__b x\n", ":1: no title"),
    "cp1252": (pairs(b"caf\xe9,A\n"), ":502: not UTF-8; name its encoding with --encoding, such as cp1252"),
    "one row in cp1252": (pairs(b"caf\xe9,A\n", times=1), ":502: not UTF-8; name its encoding with --encoding"),
    "neither UTF-8 nor the right columns": (pairs("cámara\n".encode("latin-1")), ":502: not UTF-8; name its encoding"),
    "Cyrillic": (pairs("стол,мебель\n".encode("cp1251")), ":502: not UTF-8; name its encoding with --encoding"),
    "DOS": (pairs("cámara réflex español,óptica\n".encode("cp850")), ":502: not UTF-8; name its encoding"),
    "Macintosh": (pairs("cámara réflex español,óptica\n".encode("mac_roman")), ":502: not UTF-8; name its encoding"),
    "Chinese": (pairs("鞋手机,表\n".encode("gbk")), ":502: not UTF-8; name its encoding with --encoding"),
    "title not UTF-8": (partly(pairs(b"caf\xe9,A\n")), ":502: the title is not UTF-8 (30 bad rows of 1,030"),
    "category not UTF-8": (partly(pairs(b'"cafe, x",\xe9\n')), ":502: the category is not UTF-8 (30 bad rows"),
    "no title": (pairs(b" ,A\n"), ":502: no title (30 bad rows of 1,030"),
    "no category in rows": (pairs(b'"a, b",\n'), ":502: no category (30 bad rows of 1,030"),
    "too many columns": (pairs(b"a,b,c\n"), ":502: 3 columns instead of 2 (30 bad rows of 1,030", "--max-bad-rows"),
    "too few columns": (pairs(b"a\n"), ":502: 1 columns instead of 2 (30 bad rows"),
    "unclosed quote": (pairs(b'"a, b,C1\n'), ":502: 3 columns instead of 2; is a quote unclosed? (30 bad rows"),
    "lines without ends": (pairs(b"a,b " * 40 + b"\n", times=1),
                           ":502: 41 columns instead of 2; are many rows in one line? (40 bad rows of 1,040"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    content, message, *more = BAD[name]
    path = tmp_path / "bad.csv"
    if content is not None:
        save(path, content)
    with pytest.raises(UserError) as raised:
        rows, bad = labelled(path, limit=0.01)
        bad.check(len(rows))
    assert str(raised.value).startswith(f"{path}{message}"), raised.value
    assert all(word in str(raised.value) for word in more), raised.value


def test_a_line_of_any_length_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 5000)
    monkeypatch.setattr(formats, "BLOCK", 1000)
    assert len(labelled(save(tmp_path / "x", b"title,category\n" + b"x" * 4990 + b",y\n"))[0]) == 1
    with pytest.raises(UserError, match="x:3: a line of more than 0 MB"):
        labelled(save(tmp_path / "x", b"title,category\na,b\n" + b"x" * 9000))


@pytest.mark.parametrize(("limit", "bad", "rows", "refused"), [
    (0.01, 10, 990, False), (0.01, 10, 980, True), (3, 3, 4, False), (3, 4, 10 ** 6, True), (1, 1, 0, False)])
def test_a_limit_is_a_share_below_1_and_else_a_number(limit, bad, rows, refused):
    found = formats.BadRows(limit)
    for line in range(bad):
        found.add("x.csv", line + 5, "wrong")
    if refused:
        with pytest.raises(UserError, match=rf"x.csv:5: wrong \({bad} bad rows of {rows + bad:,}; .*--max-bad-rows\)"):
            found.check(rows)
    else:
        found.check(rows)


def test_odd_rows_are_warned_of(capsys):
    bad = formats.BadRows(1)
    for line, what in ((4, "odd"), (5, "strange"), (7, "odd"), (9, "odd")):
        bad.note("x.csv", line, what)
    bad.warn()
    assert bad.count == 0 and capsys.readouterr().err == (
        "warning: x.csv:4: odd (and 2 more)\nwarning: x.csv:5: strange\n")


@pytest.mark.parametrize("block", [600, 3000, 8 << 20])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_bad_rows_are_numbered_as_an_editor_numbers_lines(tmp_path, monkeypatch, block, newline):
    monkeypatch.setattr(formats, "BLOCK", block)
    draw, expected, lines, rows = random.Random(block), {}, [b"title,category"], []
    while (number := len(lines) + 1) < 1500:
        kind = draw.choices(["row", "columns", "no title", "UTF-8", "", "two"], (90, 3, 3, 3, 3, 3))[0]
        lines += {"row": [b"a %d,\xc3\x84" % number], "columns": [b"a,b,c"], "no title": [b" ,A"], "UTF-8": [b"\xff,A"],
                  "": [b""], "two": [b'"a %d' % number, b'b",A']}[kind]
        if kind in ("row", "two"):
            rows.append(f"a {number}" + "\nb" * (kind == "two"))
        elif kind:
            expected[number] = kind
    found, bad = labelled(save(tmp_path / "x.csv", newline.join(lines) + newline))
    assert [row[0] for row in found] == rows
    assert bad.skipped.keys() == expected.keys() and all(expected[line] in what for line, what in bad.skipped.items())


def test_a_carriage_return_or_a_nul_within_a_row_separates(tmp_path):
    rows = "".join(f"title {i},A\n" for i in range(200))
    found, bad = labelled(save(tmp_path / "x.csv", "title,category\n" + rows + "a\rb,A\r\nc\0d,A\n"))
    assert [row[0] for row in found[200:]] == ["a b", "c\0d"] and not bad.skipped
    assert [*bad.odd] == [202] and "a carriage return within a line was taken as a space" in bad.odd[202]
    assert [*titles_of("a\r\nb\rc\r\n")[2].odd] == [2]


def test_rows_that_carriage_returns_end_are_counted(tmp_path):
    found, bad = labelled(save(tmp_path / "x", "title,category\na,b\n" + "c,d,e\r" * 300 + "\n" + '"x\ry",z\n'))
    assert [row[0] for row in found] == ["a", "x y"] and bad.count == 600 and [*bad.skipped] == [3]
    assert bad.notes[classify.SPACED][0] == 300


def test_titles_that_one_line_swallows_are_counted():
    """Carriage returns in a list, and a pair of quotes in a table of one column, may each take many titles for one."""
    many = "a\n" + "b\r" * 300 + "\nc\n"
    for content in (many, "title\n" + many):
        assert [times for times, _ in titles_of(content)[2].notes.values()] == [299]
    lines = ['"Gaming', *(f"silla {i}" for i in range(30)), 'tv 24"']
    titles, _, bad = titles_of("title\n" + "\n".join(lines) + "\n")
    assert titles == lines and bad.odd == {2: AS_TEXT}


# --- titles to classify -----------------------------------------------------------------------------------------------

def titles_of(content, name="titles", **asked):
    """(titles, ids or None, a Recorder) of titles to classify."""
    content, bad = content if isinstance(content, bytes) else content.encode(), Recorder()
    header, blocks, _ = sources.read_titles(io.BufferedReader(io.BytesIO(content)), name, bad, form(**asked))
    found = list(blocks)
    titles = [title for rows, _ in found for title in rows.titles]
    assert header in (None, ["id"]) and all((kept is not None) == (header is not None) for _, kept in found)
    return titles, [each for _, kept in found for each in kept["id"].to_pylist()] if header else None, bad


TITLES = ["mesa roja", "", "日本語", 'silla 24"', "  \ufb01ltro, 2", ""]
LIST, TABLE = "".join(f"{title}\n" for title in TITLES), as_csv([(title, "", "", "") for title in TITLES], ["title"])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("content", [
    LIST, LIST[:-1] + "\n", LIST.replace("\n", "\r\n"), "\ufeff" + LIST, TABLE, TABLE.replace("\n", "\r\n"),
    re.sub('(?m)^""$', "", TABLE.replace("title", "Text")), TABLE.replace("title", '\ufeff"title"'),
    as_csv([(title, "", "", "") for title in TITLES], ["language", "title"], ";", quoting=csv.QUOTE_ALL),
    as_csv([(title, "", "", "") for title in TITLES], ["title"], "\t", extra=[("", TITLES)])], ids=ascii)
def test_titles_of_a_list_or_a_table(monkeypatch, content, block):
    """One for every line or row, also for an empty line where there is one column."""
    monkeypatch.setattr(formats, "BLOCK", block)
    titles, ids, bad = titles_of(content)
    assert [title.strip() for title in titles] == [title.strip() for title in TITLES] and ids is None
    assert not bad.skipped and not bad.odd


def test_titles_with_ids():
    for content in ("id,price,title\na,1,b\n7,2,\"c, d\"\n", "\tid\tTITLE\n0\ta\tb\n1\t7\tc, d\n"):
        assert titles_of(content)[:2] == (["b", "c, d"], ["a", "7"])
    assert titles_of("id,title\n\n1,a\n\n2,\n")[:2] == (["a", ""], ["1", "2"])  # where an empty line is no row
    assert titles_of("id,title\n")[:2] == ([], []) and titles_of("")[:2] == ([], None)
    assert titles_of("silla,name\na,b\n")[:2] == (["silla,name", "a,b"], None)


def test_a_list_of_titles_knows_no_quotes():
    content = '"Gaming silla\nzapatillas\n"Pro" smart tv\n[Oferta] mesa\n'
    titles, _, bad = titles_of(content)
    assert titles == content.split("\n")[:-1] and not bad.odd


def test_titles_behind_broken_quotes_are_kept_and_noted():
    titles, ids, bad = titles_of('id,title\n1,"Gaming silla\n2,zapatillas\n3,"Pro" smart tv\n4,"celular\ngalaxy"\n')
    assert (titles, ids) == (['"Gaming silla', "zapatillas", "Pro smart tv", "celular\ngalaxy"], ["1", "2", "3", "4"])
    assert bad.odd == {2: AS_TEXT, 5: SPANS}


TABLES = ["id,name\n1,silla\n", "nombre;precio\nsilla;2\n", "sku\tname\n1\tsilla\n", "a;b;c\n1;2;3\n",
          "1,silla,5\n2,mesa,6\n3,funda,7\n", '1,"silla, roja",5\n2,mesa,6\n3,funda,7\n', "name,label\n",
          "p|q|r\n1|2|3\n4|5|6\n"]
LISTS = ["silla, roja, grande\nmesa\n", "silla\n", "silla, roja, 24\nmesa, azul, 15\n", "a | b\nc | d\n", "label\nx\n",
         "<b>silla</b>\n", "mesa, roja\nsilla, azul\nfunda, negra\n"]


def test_what_is_a_table_and_what_is_a_list():
    for content in TABLES:
        with pytest.raises(UserError, match=r"titles:1: no title .*name the column of titles with --title-column"):
            titles_of(content)
    for content in LISTS:
        assert titles_of(content)[0] == content.split("\n")[:-1]


@pytest.mark.parametrize("content", [b"title,x\na,b\n\xe1,b\n\xe2,b\n", b"\na\n\xe1\n\xe2\n"])
def test_titles_that_are_not_utf8_are_replaced_and_noted(content):
    with pytest.raises(UserError, match="titles:3: not UTF-8; name its encoding with --encoding, such as cp1252"):
        titles_of(content)
    titles, _, bad = titles_of(content.replace(b"a", "áé".encode()))  # half of it is UTF-8
    assert titles[-3:] == ["áé", "\ufffd", "\ufffd"] and {3, 4} == bad.odd.keys() and "not UTF-8" in bad.odd[3]


@pytest.mark.parametrize(("content", "message"), [
    (b'{"title": "a"}\n', ":1: JSON, XML or labels"), (b'[\n{"title": "a"}]\n', ":1: JSON, XML or labels"),
    (b"__label__a b\n", ":1: JSON, XML or labels"), (b'<?xml version="1.0"?>\n<rss/>\n', ":1: JSON, XML or labels"),
    (b"name,kind\na,b\n", r":1: no title \(or text\) column in the header"),
    (b"title,title\na,b\n", ":1: no title"), (b"a\rb\r", ": a carriage return"), (b"a\0b\n", ": not text in UTF-8"),
    ("a\n".encode("utf-16"), ": not text in UTF-8"),
    (lzma.compress(b"a\n"), ": not text|:1: no title")], ids=ascii)
def test_what_is_no_file_of_titles_is_refused(content, message):
    with pytest.raises(UserError, match=f"titles.csv{message}"):
        titles_of(content, "titles.csv")


def test_the_first_bad_row_of_titles_is_refused():
    _, blocks, _ = sources.read_titles(
        io.BufferedReader(io.BytesIO(b"id,title\n1,a\n2,b,c\n")), "x.csv", formats.NoBadRows())
    with pytest.raises(UserError, match=r"x\.csv:3: 3 columns"):
        list(blocks)


def test_lines_of_a_pipe_are_read_as_they_come():
    """What a terminal has brought is a block, though more may come."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        blocks = formats.line_blocks(pipe, "-", wait=False)
        for number, line in enumerate((b"a\n", b"b\nc\n"), 1):
            os.write(writing, line)
            assert next(blocks) == (number, line)
        os.close(writing)
        assert not list(blocks)
