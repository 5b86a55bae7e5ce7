"""Tables written as they were read: CSV in its own dialect, JSON lines, Excel workbooks and Parquet.

evaluate.py --keep hands over a table's own columns and those of its answer, a block at a time; the name of the file
says what is written. How tables are read is the matter of sources.py.
"""
import csv
import datetime
import io
import json
import sys
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from titles import files, sources
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
SHEET_ROWS, CELL = 1 << 20, 32767  # rows of a sheet of Excel and characters of a cell at most
EXACT = 10 ** 15                   # integers above this, such as barcodes, are rounded by Excel


@contextmanager
def writer(path, dialect, header, answer):
    """A function of (kept, an Arrow table; columns of the answer, lists) that writes rows to `path`, or to standard
    output where that is None.

    dialect: a sources.Dialect, for CSV and the types of kept columns; header: names of the kept columns; answer:
    [(name, Arrow type)] of the others. Raises UserError where a format or an encoding cannot hold the rows.
    """
    names = [*header, *(name for name, _ in answer)]
    begin = {".parquet": parquet, ".jsonl": json_lines, ".ndjson": json_lines, ".xlsx": excel}.get(
        path.suffix.lower() if path else None, text)
    with ExitStack() as stack:
        file = stack.enter_context(files.atomic_write(path, "wb")) if path else sys.stdout.buffer
        schema = dialect.schema or pa.schema([(name, pa.string()) for name in header])
        for name, kind in answer:
            schema = schema.append(pa.field(name, kind))
        yield stack.enter_context(begin(file, path or "standard output", names, dialect, schema))


@contextmanager
def text(file, path, names, dialect, schema):
    """A table in text, in the dialect in which another was read."""
    out = io.TextIOWrapper(file, dialect.encoding, newline="", write_through=True)
    rows, safe = (csv.writer(out, delimiter=dialect.separator, lineterminator=dialect.line_end, quoting=quoting)
                  for quoting in (csv.QUOTE_ALL if dialect.quote_all else csv.QUOTE_MINIMAL, csv.QUOTE_ALL))

    def write(kept, columns):
        columns = [*(as_text(column, name) for name, column in zip(kept.column_names, kept.columns, strict=True)),
                   *([f"{x:.6f}" if isinstance(x, float) else x or "" for x in column] for column in columns)]
        # Not all versions of Python put a carriage return in quotes.
        written = safe if any("\r" in value for column in columns for value in column) else rows
        try:
            written.writerows(zip(*columns, strict=True))
        except UnicodeEncodeError as error:
            raise lacking(path, dialect, error) from None
        file.flush()  # whoever reads the other end of a pipe gets each part at once

    try:
        out.write("\ufeff" * dialect.mark + f"sep={dialect.separator}{dialect.line_end}" * dialect.told)
        rows.writerow(names)
        yield write
    except UnicodeEncodeError as error:
        raise lacking(path, dialect, error) from None
    finally:
        out.detach()  # standard output stays open


def lacking(path, dialect, error):
    """The UserError for characters that an encoding lacks."""
    return UserError(f"{path}: {dialect.encoding} lacks characters such as {error.object[error.start]!r}; add "
                     "--out-encoding utf-8")


def require_writable(names, encoding):
    """Raise UserError unless names of categories can be written in an encoding."""
    for name in names:
        try:
            name.encode(encoding)
        except UnicodeEncodeError:
            raise UserError(f"--keep: {encoding} lacks characters of the category {name}; add --out-encoding utf-8"
                            ) from None


@contextmanager
def json_lines(file, path, names, dialect, schema):
    """An object a line."""
    require_distinct(names, path)

    def write(kept, columns):
        columns = [*map(for_json, kept.columns), *([round(x, 6) if isinstance(x, float) else x for x in column]
                                                   for column in columns)]
        for row in zip(*columns, strict=True):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False,
                                  default=sources.plain_text).encode("utf-8", "backslashreplace") + b"\n")

    yield write


def require_distinct(names, path):
    """Raise UserError where two columns have one name."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: the table has two columns {twice[0]!r}, an object one; write .csv or .parquet")


@contextmanager
def parquet(file, path, names, dialect, schema):
    """Parquet, where all columns keep their types."""
    from pyarrow.parquet import ParquetWriter
    with ParquetWriter(file, schema) as out:
        def write(kept, columns):
            added = map(pa.array, columns, schema.types[len(kept.columns):])
            out.write_table(pa.Table.from_arrays([*kept.columns, *added], schema=schema))

        yield write


@contextmanager
def excel(file, path, names, dialect, schema):
    """A workbook of one sheet, which holds numbers, dates and text."""
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    book, rows = openpyxl.Workbook(write_only=True), 1
    sheet = book.create_sheet()

    def cell(value):
        # A title that begins with = is no formula. Excel writes characters that XML forbids by their numbers.
        if isinstance(value, str):
            if len(value) > CELL:
                raise UserError(f"{path}: a cell of Excel holds {CELL:,} characters, and row {rows + 1:,} has one of "
                                f"{len(value):,}; write .csv or .parquet")
            found = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub(lambda c: f"_x{ord(c[0]):04X}_", value))
            found.data_type = "s"
            return found
        return value

    def write(kept, columns):
        nonlocal rows
        columns = [*map(for_excel, kept.columns),
                   *([round(x, 6) if isinstance(x, float) else x for x in column] for column in columns)]
        for row in zip(*columns, strict=True):
            sheet.append([cell(value) for value in row])
            rows += 1
            if rows > SHEET_ROWS:
                raise UserError(f"{path}: a sheet of Excel holds {SHEET_ROWS:,} rows; write .csv or .parquet")

    sheet.append([cell(name) for name in names])
    try:
        yield write
    except BaseException:
        sheet.close()  # else Python closes its file too late, and complains
        raise
    book.save(file)


# --- values -----------------------------------------------------------------------------------------------------------

def as_text(values, name=""):
    """An Arrow array or chunked array as a list of str: "" for what is missing."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or str(kind) in (
            "string", "large_string", "string_view"):
        # The shortest text that means a number of this precision.
        return ["" if text is None or (text == "nan" and pa.types.is_floating(kind)) else text
                for text in values.cast(pa.string()).to_pylist()]
    return [sources.plain_text(value) for value in python_values(values)]


def python_values(values):
    """The values of a chunked array for Python."""
    return [value for chunk in values.chunks for value in sources.python_values(chunk)]


def for_json(values):
    """A chunked array as values of JSON."""
    if pa.types.is_floating(values.type):
        return [float(text) if text and text.lstrip("-") not in ("nan", "inf") else {"nan": None, "": None}.get(
            text, text) for text in as_text(values)]
    return [finite(value) for value in python_values(values)]


def finite(value):
    """A value without numbers that JSON lacks, in lists and dictionaries, too."""
    if isinstance(value, dict):
        return {sources.plain_text(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return sources.plain_text(value) or None if isinstance(value, float) and not abs(value) < float("inf") else value


def for_excel(values):
    """A chunked array as values of a sheet."""
    if pa.types.is_floating(values.type):
        return for_json(values)
    return [value if value is None or isinstance(value, (bool, float))
            or (isinstance(value, int) and abs(value) <= EXACT)
            or (isinstance(value, (datetime.date, datetime.time)) and getattr(value, "tzinfo", None) is None
                and getattr(value, "year", 1900) >= 1900)
            else sources.plain_text(value) for value in python_values(values)]
