"""The files that evaluate.py is given: how they are read, and tables of answers written as they were read.

--keep hands over a table's own columns and those of its answer, a block at a time, and gets CSV in its own dialect or
what the name of --out says: JSON lines, an Excel workbook or Parquet. How rows are read is the matter of formats.py and
sources.py.
"""
import csv
import dataclasses
import datetime
import importlib.util
import io
import json
import os
import stat
import sys
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import pyarrow as pa

import classify
import data
from titles import files, formats
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
SHEET_ROWS, CELL = 1 << 20, 32767  # rows of a sheet of Excel and characters of a cell at most
PAGES = (".html", ".htm")
EXACT = 10 ** 15                   # integers above this, such as barcodes, are rounded by Excel
UNWRITTEN = {".json": ".jsonl", ".xls": ".xlsx", ".xlsm": ".xlsx", ".xlsb": ".xlsx", ".ods": ".xlsx",
             **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "without this and compress it then")}


# --- what flags say of files ------------------------------------------------------------------------------------------

def suffix_of(out):
    """The suffix of --out, "" where that is None."""
    return out.suffix.lower() if out else ""


def check_out(args):
    """Raise UserError where nothing can be written as the name of --out says."""
    suffix = suffix_of(args.out)
    if suffix in UNWRITTEN:
        raise UserError(f"--out {args.out}: {suffix} is not written; name it {UNWRITTEN[suffix]}")
    if suffix in FORMATS and not (args.keep or args.next):
        raise UserError(f"--out {args.out}: {suffix} is written with --keep or --next")
    if suffix in PAGES and not args.next:
        raise UserError(f"--out {args.out}: a page is written with --next")
    if suffix in (*FORMATS, *PAGES) and (args.out_encoding or args.out_separator):
        raise UserError(f"--out {args.out}: --out-encoding and --out-separator are of CSV")
    if suffix == ".xlsx" and not importlib.util.find_spec("openpyxl"):
        raise UserError(f"--out {args.out}: to write Excel files, pip install openpyxl, or name it .csv")


def require_other_file(file, out):
    """Raise UserError where --out is the file that is open, by whatever name."""
    with suppress(OSError, ValueError):  # there is no such file yet, or what is read is none
        read = os.fstat(file.fileno())
        if stat.S_ISREG(read.st_mode) and out and os.path.samestat(read, os.stat(out)):
            raise UserError(f"--out {out}: is the file that --predict reads; choose another")


def file_format(args, classifier, file):
    """The formats.Format of the file to read: what flags say, and where they say nothing what the data of the run was
    prepared with, if it lies in --data and where that fits. file: what is read, open in binary."""
    remembered = {}
    with suppress(UserError, OSError):  # a run needs no data to classify
        if data.fingerprint_of(args.data) == classifier.config["fingerprint"]:
            remembered = files.read_json(data.folders_of(args.data)[0] / "meta.json")["options"]
    # A run knows itself which columns make a title, and whether its categories are paths, which one column may hold as
    # the run writes them.
    remembered = {"title_column": classifier.title_columns, "separator": classifier.config.get("data", {}).get(
        "separator")} | remembered
    columns = args.category_column or remembered.get("category_column")
    if classifier.tree.levels > 1 and len(formats.named(columns)) < 2:
        remembered["separator"] = remembered.get("separator") or classify.PATH
    form = formats.format_from(args, remembered, [column.name for column in classifier.columns])
    form = form._replace(columns=tuple(classifier.columns))
    encoding = remembered.get("encoding", args.encoding)
    if args.encoding != "utf-8" or encoding == "utf-8":
        return form

    # Of what comes through a pipe only the first lines can be looked at.
    def opened():
        if not files.is_patient(file):
            return io.BufferedReader(io.BytesIO(b"".join(file.peek().rpartition(b"\n")[:2]) or file.peek()))
        file.seek(0)
        return files.decompressed(file)

    with files.archive_errors(args.test or args.compare or args.predict):
        other = not formats.is_text(opened(), "utf-8") and formats.is_text(opened(), encoding)
    if files.is_patient(file):
        file.seek(0)
    return form._replace(encoding=encoding) if other else form


def written_dialect(args, dialect):
    """The Dialect in which --keep writes CSV: as the table is that was read, unless flags or the name of --out say
    otherwise."""
    suffix, separator = suffix_of(args.out), dialect.separator
    if suffix in FORMATS:
        return dataclasses.replace(dialect, encoding="utf-8")
    if suffix in (".csv", ".tsv") and (separator == "\t") != (suffix == ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
    return dataclasses.replace(dialect, separator=args.out_separator or separator, encoding=args.out_encoding or
                               dialect.encoding, mark=dialect.mark and not args.out_encoding)


# --- writers ----------------------------------------------------------------------------------------------------------

@contextmanager
def answer_writer(args, out, header, dialect, tree):
    """A function of (kept columns or None, columns of the answer) that writes rows to the file `out` or, where it is
    None, to standard output: with --keep behind the columns of a table, see `writer`; after ids as CSV; else as lines
    that are divided by tabs. header and dialect: of the table that is read; tree: the run's."""
    # The challenge's own form, id,category, has no room for more.
    top = min(args.top, tree.size(args.level))
    if header == ["id"] and not args.keep and (top > 1 or args.explain):
        flag = f"--top {args.top}" if top > 1 else "--explain"
        raise UserError(f"{flag}: {args.predict} has ids, for which one category each is written; --keep writes "
                        "whole tables")

    # A table's own columns keep their names, such as the category of labelled rows.
    taken = header if args.keep else ()
    names = classify.answer_columns(top, args.threshold or args.precision, taken)
    pairs = len(names) // 2
    if args.keep:
        answer = [*zip(names, [pa.string(), pa.float64()] * pairs, strict=True)]
        if args.levels:
            answer += [(classify.free_name(f"level_{i}", taken), pa.string()) for i in range(1, tree.levels + 1)]
        if args.explain:
            answer.append((classify.free_name("explanation", taken), pa.string()))
        with writer(out, written_dialect(args, dialect), header, answer) as write:
            yield write
        return

    with files.atomic_write(out) if out else nullcontext(sys.stdout) as file:
        rows = csv.writer(file, lineterminator="\n")
        if header:
            rows.writerow(["id", "category"])

        # Lines are made by one format for all columns, which is much faster than a field at a time.
        form = "\t".join(["{}\t{:.6f}"] * pairs + ["{}"] * args.explain) + "\n"

        def write(kept, columns):
            if header:
                rows.writerows(zip(kept["id"].to_pylist(), columns[0], strict=True))
            else:
                file.writelines(map(form.format, *columns))
            file.flush()  # whoever reads the other end of a pipe gets each part at once

        yield write


@contextmanager
def writer(path, dialect, header, answer):
    """A function of (kept, an Arrow table; columns of the answer, lists) that writes rows to `path`, or to standard
    output where that is None.

    dialect: a formats.Dialect, for CSV and the types of kept columns; header: names of the kept columns; answer:
    [(name, Arrow type)] of the others. Raises UserError where a format or an encoding cannot hold the rows.
    """
    names = [*header, *(name for name, _ in answer)]
    begin = FORMATS.get(suffix_of(path), text)
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
        columns = [*map(as_text, kept.columns),
                   *([f"{x:.6f}" if isinstance(x, float) else x or "" for x in column] for column in columns)]
        # Not all versions of Python put a carriage return in quotes.
        written = safe if any("\r" in value for column in columns for value in column) else rows
        written.writerows(zip(*columns, strict=True))
        file.flush()

    try:
        out.write("\ufeff" * dialect.mark)
        rows.writerow(names)
        yield write
    except UnicodeEncodeError as error:  # also of rows, which are written meanwhile
        raise UserError(f"{path}: {dialect.encoding} lacks characters such as {error.object[error.start]!r}; add "
                        "--out-encoding utf-8") from None
    finally:
        out.detach()  # standard output stays open


@contextmanager
def json_lines(file, path, names, dialect, schema):
    """An object a line."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: the table has two columns {twice[0]!r}, an object one; write .csv or .parquet")

    def write(kept, columns):
        columns = [*map(for_json, kept.columns), *map(rounded, columns)]
        for row in zip(*columns, strict=True):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False,
                                  default=formats.plain_text).encode("utf-8", "backslashreplace") + b"\n")

    yield write


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
        columns = [*map(for_excel, kept.columns), *map(rounded, columns)]
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


FORMATS = {".parquet": parquet, ".jsonl": json_lines, ".ndjson": json_lines, ".xlsx": excel}  # else it is CSV


# --- values -----------------------------------------------------------------------------------------------------------

def rounded(values):
    """Values of an answer, probabilities to six digits."""
    return [round(value, 6) if isinstance(value, float) else value for value in values]


def as_text(values):
    """A chunked array as a list of str: "" for what is missing."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or str(kind) in (
            "string", "large_string", "string_view"):
        # The shortest text that means a number of this precision.
        return ["" if text is None or (text == "nan" and pa.types.is_floating(kind)) else text
                for text in values.cast(pa.string()).to_pylist()]
    return [formats.plain_text(value) for value in python_values(values)]


def python_values(values):
    """The values of a chunked array for Python."""
    return [value for chunk in values.chunks for value in formats.python_values(chunk)]


def for_json(values):
    """A chunked array as values of JSON."""
    if pa.types.is_floating(values.type):
        return [text or None if text.lstrip("-") in ("", "inf") else float(text) for text in as_text(values)]
    return [finite(value) for value in python_values(values)]


def finite(value):
    """A value without numbers that JSON lacks, in lists and dictionaries, too."""
    if isinstance(value, dict):
        return {formats.plain_text(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return formats.plain_text(value) or None if isinstance(value, float) and not abs(value) < float("inf") else value


def for_excel(values):
    """A chunked array as values of a sheet."""
    if pa.types.is_floating(values.type):
        return for_json(values)
    return [value if value is None or isinstance(value, (bool, float))
            or (isinstance(value, int) and abs(value) <= EXACT)
            or (isinstance(value, (datetime.date, datetime.time)) and getattr(value, "tzinfo", None) is None
                and getattr(value, "year", 1900) >= 1900)
            else formats.plain_text(value) for value in python_values(values)]
