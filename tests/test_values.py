"""formats.py: what a file may say otherwise: its encoding, its columns, Parquet, and values that are no plain text."""
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PACKED, as_csv, as_json, corrupted, save
from test_sources import BLOCKS, PAIRS, ROWS, labelled, titles_of

from titles import cli, formats
from titles.cli import UserError


def assert_rows(path, rows, **asked):
    """That these rows are in the file, and no other lines."""
    found, bad = labelled(path, **asked)
    assert found == rows and not bad.skipped


# --- encodings and columns --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32", "iso8859-15", "gbk"])
def test_other_encodings(tmp_path, encoding):
    title = "鞋 手机" if encoding == "gbk" else "Ñandú ½ €" if encoding != "iso8859-15" else "Ñandú €"
    rows = [(f"{title} {i}", "", "", "Ü" if encoding != "gbk" else "表") for i in range(3000)]
    content = as_csv(rows, ("title", "category"), "\t", "\r\n").encode(encoding)
    for packed in PACKED.values():
        assert_rows(save(tmp_path / "x", packed(content)), rows, encoding=encoding)
    assert titles_of(content, encoding=encoding)[0] == [row[0] for row in rows]


def test_a_file_in_another_encoding_than_was_said_is_refused(tmp_path):
    for encoding, content in (("utf-16", b"title,category\n\xff"), ("utf-8-sig", PAIRS + b"\xff,A\n"),
                              ("utf-16", PAIRS.decode().encode("utf-16")[:-1]),  # cut short
                              ("cp1252", b"\x81")):
        with pytest.raises(UserError, match=f"x: not text in {encoding} "):
            labelled(save(tmp_path / "x", content), encoding=encoding)
    for name in ("utf_16", "LATIN1", "Windows-1252", "U8"):
        assert cli.encoding(name) in ("utf-16", "iso8859-1", "cp1252", "utf-8")
    for name in ("utf-17", "rot13", "base64", "", "undefined"):
        with pytest.raises(ValueError):
            cli.encoding(name)


@pytest.mark.parametrize(("title", "category"), [("Name", "Kind"), ("NAME ", "kind"), ("2", "4"), ("2", "kind")])
def test_columns_may_be_named_or_numbered(tmp_path, title, category):
    content = "title,Name,price,Kind\n" + "".join(f"no,silla {i},5,SILLAS\n" for i in range(9))
    rows, asked = [(f"silla {i}", "", "", "SILLAS") for i in range(9)], {"title": title, "category": category}
    assert_rows(save(tmp_path / "x", content), rows, **asked)
    assert_rows(save(tmp_path / "x", content.replace(",", ";")), rows, **asked)
    assert titles_of(content, title=title)[0] == [row[0] for row in rows]
    table = pa.table({"title": ["no"] * 9, "Name": [row[0] for row in rows], "price": [5] * 9, "Kind": ["SILLAS"] * 9})
    pq.write_table(table, tmp_path / "x")
    assert_rows(tmp_path / "x", rows, **asked)
    assert titles_of((tmp_path / "x").read_bytes(), title=title)[0] == [row[0] for row in rows]


@pytest.mark.parametrize(("asked", "flag"), [("kind of", "category"), ("7", "category"), ("0", "category"),
                                             ("²", "title"), ("x", "title")])
def test_a_column_that_is_not_there_is_named(tmp_path, asked, flag):
    content = "title,category\na,b\n"
    with pytest.raises(UserError, match=rf"x:1: the header needs one column {asked}, and says .*--{flag}-column"):
        labelled(save(tmp_path / "x", content), **{flag: asked})
    with pytest.raises(UserError, match=r"titles:1: no title .*--title-column"):
        titles_of(content, title=asked)


def test_json_names_its_columns(tmp_path):
    content = '{"name": "silla", "title": "no", "kind": "SILLAS"}\n' * 3
    assert_rows(save(tmp_path / "x", content), [("silla", "", "", "SILLAS")] * 3, title="name", category="kind")
    assert set(labelled(tmp_path / "x", title="1", category="kind")[1].skipped.values()) == {
        "columns of JSON lines have names and no numbers; see --title-column"}


def test_a_column_that_is_meant_twice_is_named(tmp_path):
    content = "lang,title,kind\nes,silla,SILLAS\n"
    with pytest.raises(UserError, match="the same column for title and category: kind;"):
        labelled(save(tmp_path / "x", content), title="kind", category="3")


# --- Parquet ----------------------------------------------------------------------------------------------------------

def test_parquet_gives_the_same_rows(tmp_path, monkeypatch):
    names = ("title", "Label_Quality", "language", "LABEL")
    columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
    monkeypatch.setattr(formats, "LINE_ROWS", 7)
    for kind in kinds:
        table = pa.table({name: pa.array(values).cast(kind) for name, values in columns.items()})
        pq.write_table(table.append_column("price", pa.array([1.5] * len(ROWS))), tmp_path / "x", row_group_size=11)
        content = (tmp_path / "x").read_bytes()
        for packed in PACKED.values():
            assert_rows(save(tmp_path / "y", packed(content)), ROWS)
        with_ids = table.append_column("id", pa.array(range(len(ROWS))))
        pq.write_table(with_ids, tmp_path / "x")
        assert titles_of((tmp_path / "x").read_bytes())[:2] == (
            [row[0] for row in ROWS], [str(i) for i in range(len(ROWS))])


def test_a_column_of_parquet_is_found_by_its_number_among_others_of_its_name(tmp_path):
    columns = [pa.array(values) for values in (["no"], ["silla"], [5], ["SILLAS"])]
    pq.write_table(pa.Table.from_arrays(columns, ["x", "x", "price", "x"]), tmp_path / "x")
    assert_rows(tmp_path / "x", [("silla", "", "", "SILLAS")], title="2", category="4")
    assert titles_of((tmp_path / "x").read_bytes(), title="2")[0] == ["silla"]


def test_parquet_values_are_as_in_json(tmp_path):
    pq.write_table(pa.table({"title": ["a", None, "c", "d"], "category": [1.0, 2, float("nan"), 2.5]}), tmp_path / "x")
    rows, bad = labelled(tmp_path / "x")
    assert rows == [("a", "", "", "1")]
    assert bad.skipped == {2: "no title", 3: "no category", 4: "the category is not a whole number; wanted: text"}
    pq.write_table(pa.table({"title": [["x"], []], "category": ["a", "b"]}), tmp_path / "x")
    assert labelled(tmp_path / "x")[1].skipped == dict.fromkeys((1, 2), "the title is a list; wanted: text")


def test_bad_parquet_is_refused(tmp_path):
    pq.write_table(pa.table({"title": ["a"], "text": ["b"], "category": ["c"]}), tmp_path / "x")
    for read in (lambda: labelled(tmp_path / "x"), lambda: titles_of((tmp_path / "x").read_bytes(), "x")):
        with pytest.raises(UserError, match=r"x:1: the header needs one column title or text, and says title, text"):
            read()
        save(tmp_path / "x", (tmp_path / "x").read_bytes())
    save(tmp_path / "x", corrupted((tmp_path / "x").read_bytes()))
    with pytest.raises(UserError, match="x: not a Parquet file that Arrow can read"):
        labelled(tmp_path / "x")


# --- values -----------------------------------------------------------------------------------------------------------

def test_names_that_look_the_same_are_the_same(tmp_path):
    same = ["Té y más", "Te\u0301 y ma\u0301s", "Té\u200b y\u00a0más", "\ufeffTé  y más", "T\u00adé y\tmás\u200e"]
    rows = [(f"x {i}", "", ("es", "e\u200ds")[i % 2], name) for i, name in enumerate(same)]
    for content in (as_csv(rows), as_json(rows)):
        assert {row[2:] for row in labelled(save(tmp_path / "x", content))[0]} == {("es", "Té y más")}


@pytest.mark.parametrize("block", BLOCKS)
def test_files_put_together_repeat_mark_and_header(tmp_path, monkeypatch, block):
    monkeypatch.setattr(formats, "BLOCK", block)
    part = "\ufeff Title;Category \r\n" + "".join(f"silla {i};Más\r\n" for i in range(9))
    rows, bad = labelled(save(tmp_path / "x", part * 3))
    assert rows == [(f"silla {i}", "", "", "Más") for i in range(9)] * 3
    assert bad.skipped == {11: "repeats the header", 21: "repeats the header"}
    assert titles_of("".join(f"\ufeffsilla {i}\n" for i in range(9)))[0] == [f"silla {i}" for i in range(9)]


def test_a_space_behind_the_delimiter_does_not_make_quotes_text(tmp_path):
    rows, _ = labelled(save(tmp_path / "x", 'title, category\n"silla, roja", "Sillas"\nmesa, "Mesas"\n'))
    assert [(row[0], row[3]) for row in rows] == [("silla, roja", "Sillas"), ("mesa", "Mesas")]


VALUES = {'"a"': "a", "7": "7", "7.0": "7", "-1e3": "-1000", "true": "true", "false": "false", '"NaN"': "NaN",
          "NaN": None, "null": None, '""': None, "1.5": "not a whole number", "Infinity": "not a whole number",
          '["a"]': "a list", '{"a": 1}': "an object", "[]": "a list"}
PATHS = {'["a"]': "a", "[]": None}  # of a category


@pytest.mark.parametrize("column", ["title", "category"])
@pytest.mark.parametrize("value", VALUES)
def test_json_values(tmp_path, column, value):
    other = "category" if column == "title" else "title"
    rows, bad = labelled(save(tmp_path / "x", f'{{"{column}": {value}, "{other}": "x"}}\n'))
    if (expected := (VALUES | (PATHS if column == "category" else {}))[value]) is None:
        assert (rows, bad.skipped) == ([], {1: f"no {column}"})
    elif expected.startswith(("a ", "an ", "not ")):
        assert (rows, bad.skipped) == ([], {1: f"the {column} is {expected}; wanted: text"})
    else:
        assert rows == [(expected, "", "", "x") if column == "title" else ("x", "", "", expected)]


def test_json_that_names_a_column_twice_is_a_doubt(tmp_path):
    path = save(tmp_path / "x", '{"title": "a", "text": "b", "category": "c"}\n{"title": "a", "label": "c"}\n')
    assert labelled(path)[1].skipped == {1: "has both title and text; name one with --title-column"}
    assert [row[0] for row in labelled(path, title="title")[0]] == ["a", "a"]


@pytest.mark.parametrize("line", ["__label__a __label__b x", "__label__a,__label__b x", "__label__a__label__b x",
                                  "__label__a , __label__b x", "__label__a x __label__b", "__label__a\t__label__b"])
def test_several_labels_however_written(tmp_path, line):
    assert labelled(save(tmp_path / "x", f"__label__a b\n{line}\n"))[1].skipped == {2: "has several labels; keep one"}
