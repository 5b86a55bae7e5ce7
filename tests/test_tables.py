"""Whole tables in and out (evaluate.py --keep): dialects, encodings, Excel, JSON lines, and all types of Parquet."""
import csv
import datetime
import decimal
import io
import json
import uuid
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from conftest import meta, save
from pyarrow import parquet
from test_sources import labelled, titles_of

from titles import files, formats, sources, tables
from titles.cli import UserError

ANSWER = [("category", pa.string()), ("probability", pa.float64())]


def passed_through(source, out, encoding="utf-8", names=("A", "=B é")):
    """Read a table, and write it with an answer: two categories in turn."""
    with open(source, "rb") as file:
        header, blocks, dialect = sources.read_titles(file, source, formats.NoBadRows(),
                                                      formats.Format(encoding=encoding), True)
        with tables.writer(out, dialect, header, ANSWER) as write:
            for (titles, _), kept in blocks:
                write(kept, [[names[i % 2] for i in range(len(titles))], [1 / 3] * len(titles)])
    return out


# --- CSV --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8 with a mark", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=ascii)
@pytest.mark.parametrize(("separator", "quoting"), [(";", csv.QUOTE_MINIMAL), (",", csv.QUOTE_ALL), ("\t", 0)])
def test_a_table_in_text_is_written_in_its_own_dialect(tmp_path, separator, quoting, newline, encoding):
    rows = [["sku", "título", "title", "note"], ["007", "Ñandú; 1,5", 'mesa "roja"', ""], ["", "x", "silla", "a b"]]
    answer = [["category", "probability"], ["A", "0.333333"], ["=B é", "0.333333"]]
    name, mark = ("utf-8", "\ufeff") if "mark" in encoding else (encoding, "")

    def content(rows):
        file = io.StringIO()
        csv.writer(file, delimiter=separator, lineterminator=newline, quoting=quoting).writerows(rows)
        return (mark + file.getvalue()).encode(name)

    path = save(tmp_path / "in.csv", content(rows))
    out = passed_through(path, tmp_path / "out.csv", name)
    assert out.read_bytes() == content([row + more for row, more in zip(rows, answer, strict=True)])


def test_carriage_returns_come_back(tmp_path):
    parquet.write_table(pa.table({"title": ["mesa\rroja"], "x": ["a\nb"]}), tmp_path / "in.parquet")
    rows = list(csv.reader(io.StringIO(passed_through(tmp_path / "in.parquet", tmp_path / "out.csv").read_text(),
                                       newline="")))
    assert len(rows) == 2 and rows[1][1] == "a\nb"


def test_numbers_without_quotes_below_a_header_in_quotes_stay_so(tmp_path):
    path = save(tmp_path / "in.csv", '"title","price"\n"mesa",7\n')
    assert passed_through(path, tmp_path / "out.csv").read_text().splitlines()[1] == "mesa,7,A,0.333333"


def test_characters_that_an_encoding_lacks_are_no_loss(tmp_path):
    path = save(tmp_path / "in.csv", "title\nñandú\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"out.csv: cp1252 lacks characters such as '手'; add --out-encoding utf-8"):
        passed_through(path, tmp_path / "out.csv", "cp1252", ["手", "b"])
    assert not (tmp_path / "out.csv").exists()


# --- Parquet ----------------------------------------------------------------------------------------------------------

NOW = datetime.datetime(2024, 5, 1, 10, 30, 15, 123456)
TYPES = {  # name: (type, a value, the value in CSV, in JSON lines or None where it is as in CSV)
    "string": (pa.string(), "a", "a", None), "large_string": (pa.large_string(), "a", "a", None),
    "string_view": (pa.string_view(), "a", "a", None), "binary": (pa.binary(), b"a", "a", None),
    "large_binary": (pa.large_binary(), b"\xff", "/w==", None), "binary_view": (pa.binary_view(), b"a", "a", None),
    "fixed_size_binary": (pa.binary(2), b"ab", "ab", None),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "a", "a", None),
    "list": (pa.list_(pa.int8()), [1, None], "[1, null]", [1, None]),
    "large_list": (pa.large_list(pa.string()), ["é"], '["é"]', ["é"]),
    "list_view": (pa.list_view(pa.int8()), [1], "[1]", [1]),
    "struct": (pa.struct([("a", pa.int8()), ("b", pa.date32())]), {"a": 1, "b": NOW.date()},
               '{"a": 1, "b": "2024-05-01"}', {"a": 1, "b": "2024-05-01"}),
    "map": (pa.map_(pa.string(), pa.int8()), [("k", 1)], '[["k", 1]]', [["k", 1]]), "null": (pa.null(), None, "", None),
    "bool": (pa.bool_(), True, "true", True), "uint64": (pa.uint64(), 2 ** 64 - 1, str(2 ** 64 - 1), 2 ** 64 - 1),
    "half": (pa.float16(), np.float16(1.5), "1.5", 1.5), "float": (pa.float32(), 0.1, "0.1", 0.1),
    "double": (pa.float64(), 0.1 + 0.2, "0.30000000000000004", 0.1 + 0.2),
    "nan": (pa.float64(), float("nan"), "", None), "infinity": (pa.float64(), float("inf"), "inf", None),
    **{f"decimal{bits}": (kind(9, 2), decimal.Decimal("1.50"), "1.50", None) for bits, kind in (
        (32, pa.decimal32), (64, pa.decimal64), (128, pa.decimal128), (256, pa.decimal256))},
    "date32": (pa.date32(), NOW.date(), "2024-05-01", None), "date64": (pa.date64(), NOW.date(), "2024-05-01", None),
    "time32": (pa.time32("ms"), datetime.time(1, 2, 3), "01:02:03", None),
    "time64": (pa.time64("ns"), datetime.time(1, 2, 3), "01:02:03", None),
    "timestamp": (pa.timestamp("us"), NOW, "2024-05-01 10:30:15.123456", None),
    "nanoseconds": (pa.timestamp("ns"), 1714559415123456789, "2024-05-01 10:30:15.123456789", None),
    "zone": (pa.timestamp("us", "America/Bogota"), NOW, "2024-05-01 05:30:15.123456-05:00", None),
    "no zone of this name": (pa.timestamp("us", "Mars/Base"), NOW, "2024-05-01 10:30:15.123456", None),
    "a far year": (pa.timestamp("ms"), 2 ** 50, str(2 ** 50), None),
    "duration": (pa.duration("s"), datetime.timedelta(seconds=5), "0:00:05", None),
    "uuid": (pa.uuid(), uuid.UUID(int=5).bytes, "00000000-0000-0000-0000-000000000005", None),
    "json": (pa.json_(), '{"a":1}', '{"a":1}', None), "bool8": (pa.bool8(), 1, "true", True),
    "opaque": (pa.opaque(pa.string(), "x", "y"), "a", "a", None),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_of_parquet_are_passed_through(tmp_path, name):
    kind, value, text, in_json = TYPES[name]
    values = [value, None] * 3
    column = pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type)) if isinstance(
        kind, pa.BaseExtensionType) else pa.array(values, kind)
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"title": ["x"] * 6, "c": column}), path, row_group_size=4)
    kept = parquet.read_table(passed_through(path, tmp_path / "out.parquet"))
    assert kept.schema.names == ["title", "c", "category", "probability"]
    assert kept.select(["title", "c"]).schema.equals(parquet.read_schema(path), check_metadata=True)
    assert str(kept["c"].combine_chunks()) == str(parquet.read_table(path)["c"].combine_chunks())
    rows = list(csv.reader(io.StringIO(passed_through(path, tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [row[1] for row in rows[1:]] == [text, ""] * 3
    lines = passed_through(path, tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["c"] for line in lines] == [text or None if in_json is None else in_json, None] * 3
    assert json.loads(lines[1]) == {"title": "x", "c": None, "category": "=B é", "probability": 0.333333}

    # As a category it is text, or a path, or each of its rows is counted.
    parquet.write_table(pa.table({"title": ["x"] * 6, "category": column}), path)
    rows, bad = labelled(path)
    levels = " > ".join(str(level) for level in value if level) if "list" in name else text
    assert len(rows) + bad.count == 6 and {row[3] for row in rows} <= {levels}


def test_what_arrow_cannot_read_is_not_the_files_fault(tmp_path):
    kind = pa.list_(pa.int8(), 2)  # with nulls Arrow writes it, but does not read it
    parquet.write_table(pa.table({"title": ["mesa", "silla"], "c": pa.array([[1, 2], None], kind)}), tmp_path / "x")
    with pytest.raises(UserError, match=r"x: not a Parquet file that Arrow can read .Expected all lists to be of"):
        passed_through(tmp_path / "x", tmp_path / "out.csv")
    assert titles_of((tmp_path / "x").read_bytes())[0] == ["mesa", "silla"]


def test_a_table_without_rows_keeps_its_types(tmp_path):
    parquet.write_table(pa.table({"title": pa.array([], pa.string()), "c": pa.array([], pa.int8())}), tmp_path / "x")
    assert parquet.read_schema(passed_through(tmp_path / "x", tmp_path / "y.parquet")).types == [
        pa.string(), pa.int8(), pa.string(), pa.float64()]


def test_json_lines_need_distinct_names(tmp_path):
    path = save(tmp_path / "in.csv", "title,x,x\na,b,c\n")
    with pytest.raises(UserError, match="two columns 'x'"):
        passed_through(path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# --- Excel ------------------------------------------------------------------------------------------------------------

SHEET = [["sku", "title", "category", "price", "added", "new"],
         [7, "=mesa", "MESAS", 2.5, datetime.datetime(2024, 5, 1), True], [8, 24, "SILLAS", None, None, False],
         [None] * 6, ["x9", "funda\x1b", datetime.date(2024, 5, 1), 3, datetime.datetime(2024, 5, 1, 10, 30), None],
         [10, None, "SILLAS", 1, None, None], [None, None, ""], [None] * 6]


@pytest.fixture
def workbook(tmp_path):
    """A function of rows that writes a workbook with these and a second sheet."""
    openpyxl = pytest.importorskip("openpyxl")

    def workbook(rows, name="in.xlsx"):
        book = openpyxl.Workbook()
        for y, row in enumerate(rows, 1):
            for x, value in enumerate(row, 1):
                if value is not None:
                    cell = book.active.cell(y, x)
                    cell.value = value.replace("\x1b", "") if isinstance(value, str) else value
                    cell.data_type = "s" if isinstance(value, str) else cell.data_type
        book.active.cell(len(rows) + 5, 9).value = ""  # formatted, as spreadsheets leave cells
        book.create_sheet().append(["other"])
        book.save(tmp_path / name)
        return tmp_path / name

    return workbook


def test_labelled_rows_of_excel(workbook):
    rows, bad = labelled(workbook(SHEET))
    assert [(row[0], row[3]) for row in rows] == [("=mesa", "MESAS"), ("24", "SILLAS"), ("funda", "2024-05-01")]
    assert bad.skipped == {6: "no title"}
    assert titles_of(workbook([["Text"], ["a"], [None], ["b"], [None]]).read_bytes())[0] == ["a", "", "b"]
    assert titles_of(workbook([[], ["id", "title"], [1, "a"], [], [2.0, None]]).read_bytes())[:2] == (
        ["a", ""], ["1", "2"])
    with pytest.raises(UserError, match=r"x:1: the header needs one column title or text, and says name"):
        titles_of(workbook([["name"], ["a"]]).read_bytes(), "x")
    with pytest.raises(UserError, match=r"x: its first sheet is empty"):
        titles_of(workbook([]).read_bytes(), "x")


def test_tables_of_excel_are_passed_through(workbook, tmp_path):
    path = workbook(SHEET)
    rows = [row for number, row in enumerate(SHEET, 1) if number not in (4, 7, 8)]
    lines = passed_through(path, tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["sku,title,category,price,added,new,category,probability",
                         "7,=mesa,MESAS,2.5,2024-05-01,true,A,0.333333", "8,24,SILLAS,,,false,=B é,0.333333"]
    import openpyxl
    found = list(openpyxl.load_workbook(passed_through(path, tmp_path / "out.xlsx")).active.iter_rows(values_only=True))
    assert len(found) == len(rows) and found[0][-2:] == ("category", "probability")
    assert found[1] == ("7", "=mesa", "MESAS", 2.5, datetime.datetime(2024, 5, 1), True, "A", 0.333333)
    assert found[4][:4] == ("10", None, "SILLAS", 1) and found[4][-2] == "=B é"
    again = list(openpyxl.load_workbook(passed_through(tmp_path / "out.xlsx", tmp_path / "2.xlsx")).active.values)
    assert [row[:6] for row in again] == [row[:6] for row in found]


def test_what_excel_cannot_hold(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    path = save(tmp_path / "in.csv", "title,code,x\nmesa,0012345678901234567890,\x1b[0m\n")
    import openpyxl
    rows = list(openpyxl.load_workbook(passed_through(path, tmp_path / "out.xlsx")).active.values)
    assert rows[1][:3] == ("mesa", "0012345678901234567890", "_x001B_[0m")
    parquet.write_table(pa.table({"title": ["a"], "code": [2 ** 60], "at": pa.array([NOW], pa.timestamp("us", "UTC"))}),
                        tmp_path / "in.parquet")
    rows = list(openpyxl.load_workbook(passed_through(tmp_path / "in.parquet", tmp_path / "out.xlsx")).active.values)
    assert rows[1][1:3] == (str(2 ** 60), "2024-05-01 10:30:15.123456+00:00")
    days = [datetime.date(1899, 12, 31), datetime.date(1900, 3, 1)]  # it has no days before 1900
    parquet.write_table(pa.table({"title": ["a", "b"], "day": days}), tmp_path / "in.parquet")
    rows = list(openpyxl.load_workbook(passed_through(tmp_path / "in.parquet", tmp_path / "out.xlsx")).active.values)
    assert [row[1] for row in rows[1:]] == ["1899-12-31", datetime.datetime(1900, 3, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(tables, "SHEET_ROWS", 2)
        with pytest.raises(UserError, match="a sheet of Excel holds 2 rows; write .csv or .parquet"):
            passed_through(tmp_path / "in.parquet", tmp_path / "long.xlsx")
    save(tmp_path / "in.csv", f"title\n{'x' * 40_000}\n")
    with pytest.raises(UserError, match="a cell of Excel holds 32,767 characters, and row 2 has one of 40,000"):
        passed_through(path, tmp_path / "long.xlsx")
    assert not (tmp_path / "long.xlsx").exists()


def test_bad_workbooks_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("titles.csv", "title\na\n")
    for read in (lambda: labelled(tmp_path / "x"), lambda: titles_of((tmp_path / "x").read_bytes(), "x")):
        with pytest.raises(UserError, match=r"x: a zip archive, and no sound Excel file .*; unpack it"):
            read()
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<workbook")
    content = (tmp_path / "x").read_bytes()
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match="x: to read Excel files, pip install openpyxl, or save it as CSV"):
        titles_of(content, "x")
    monkeypatch.undo()
    pytest.importorskip("openpyxl")
    with pytest.raises(UserError, match=r"x: a zip archive, and no sound Excel file"):
        titles_of(content, "x")
    monkeypatch.setattr(files, "FREE_EXPANSION", 10)
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<workbook" * 10 ** 5)
    with pytest.raises(UserError, match="x: grows more than 100-fold"):
        titles_of((tmp_path / "x").read_bytes(), "x")


def test_a_folder_of_workbooks_is_prepared(prep, workbook):
    for name, count in (("train.xlsx", 60), ("test.xlsx", 20)):
        workbook([["title", "category"], *([f"titulo {i % 9} {name} {i}", i % 3] for i in range(count))], name)
    save("~$train.xlsx", "Excel has it open")
    prep("--data", ".", "--out", "data/prepared")
    assert sum(meta()["rows"].values()) == 80 and meta()["rows"]["test"] == 20
    assert files.read_lines("data/prepared/labels.txt") == ["0", "1", "2"]
