"""The bytes of a file, whatever its format, -> blocks of columns: CSV and TSV, JSON lines, fastText, Parquet, Excel.

A file is read in blocks of whole lines. CSV goes through Arrow, which is quick, as long as a block is in order; a block
with a row that is not is read again line by line by rules that lose no row (`classify.rows_in`). What cannot be read is
counted in a `BadRows`, with the line where it stands, or refused; no row vanishes unsaid. What labels and titles mean
(sources.py) does not belong here.
"""
import base64
import csv
import datetime
import decimal
import io
import itertools
import json
import re
import unicodedata
import warnings
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

import classify
from titles import files
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
BLOCK = 8 << 20      # bytes of a file in memory at a time, for each thread a few
LINE_ROWS = 50_000   # rows of JSON lines and fastText files in a block at most

# By what names we know a column; --title-column and --category-column put others in their place.
COLUMNS = {"title": ("title", "text"), "category": ("category", "label"), "language": ("language",),
           "quality": ("label_quality",), "split": ("split",), "id": ("id",), "group": ()}

SUFFIX = re.compile(r"\.(csv|tsv|jsonl|json|txt|parquet|xlsx)(\.(gz|bz2|xz))?$", re.IGNORECASE)  # of files of titles
FASTTEXT_BLANKS = re.compile("[ \t\n\v\f\r\0]+")  # that divide its words
PARQUET, ZIP = b"PAR1", b"PK\3\4"  # how these files begin; an Excel workbook is a zip archive
MARK = b"\xef\xbb\xbf"  # the byte order mark in UTF-8
HOLE = bytes(64)        # zeros that a crash or a broken copy leaves


# --- what could not be read -------------------------------------------------------------------------------------------

class BadRows(classify.Notes):
    """Counts the rows that had to be skipped, and remembers the first; and notes what was read but is worth a
    warning."""

    def __init__(self, limit, advice="mend them, or allow so many with --max-bad-rows"):
        """limit: the bad rows to allow, as a share of all rows (below 1) or as a number; advice: what to do about
        more."""
        super().__init__()
        self.limit, self.advice, self.count, self.first = limit, advice, 0, None
        self.unlabelled = 0  # rows that are not labelled yet, see Format; they are not bad

    def add(self, path, line, what, times=1):
        """Count a line that has to be skipped, as so many rows."""
        self.first = self.first or f"{path}:{line}: {what}"
        self.count += times

    def empty(self, path, line):
        """What to do about an empty line in a table: nothing, it is no row."""

    def check(self, rows):
        """Raise UserError if more rows than the limit were skipped, beside this many that were read."""
        # A share is one of all rows, the bad ones included.
        limit = self.limit if self.limit >= 1 else self.limit * (rows + self.count)
        if self.count > limit:
            raise UserError(f"{self.first} ({self.count:,} bad rows of {rows + self.count:,}; {self.advice})")


class NoBadRows(BadRows):
    """Refuses the first bad row, as every title to classify needs an answer."""
    empty = classify.Notes.empty

    def __init__(self):
        super().__init__(0)

    def add(self, path, line, what, times=1):
        raise UserError(f"{path}:{line}: {what}")


# --- blocks of lines --------------------------------------------------------------------------------------------------

def line_blocks(stream, name, bad=None, wait=True, whole_only=True):
    """Yield (number of the first line, bytes) of a binary stream: blocks of whole lines that end in newlines. Other
    carriage returns than those before newlines become spaces, and are noted in `bad`.

    wait: fill every block; without it, a block holds what a pipe or a terminal has brought so far. whole_only: refuse
    text that is in another encoding than UTF-8 as a whole.
    Raises UserError where the content is no text, or a line longer than files.MAX_LINE.
    """
    number, rest, read, checked = 1, b"", True, not whole_only
    while read:
        read = stream.read(BLOCK) if wait else files.read_ready(stream, BLOCK)
        # The last line may go on in what is read next. That of a file may lack its newline; rows are counted by these.
        whole = rest + (read or b"\n" * bool(rest))
        block, newline, rest = whole.rpartition(b"\n")

        # What is no text shows at the beginning; further on, a stray NUL only separates words.
        if number == 1 and (whole.startswith(classify.NOT_TEXT) or b"\0" in whole[:1000]):
            raise UserError(f"{name}: not text in UTF-8, plain or compressed once with gzip, bzip2 or xz; if it is "
                            "text in another encoding, such as utf-16, name that with --encoding")
        if HOLE in whole:
            number += whole.count(b"\n", 0, whole.index(HOLE))
            raise UserError(f"{name}:{number}: many zero bytes, as in a file that was damaged; fetch or copy it again")

        # A line without end, as binary files may have, would fill the memory. Only the first or the last can be long.
        first = whole.find(b"\n")
        if max(first, len(rest)) > files.MAX_LINE:
            number += whole.count(b"\n") if first <= files.MAX_LINE else 0
            raise UserError(f"{name}:{number}: a line of more than {files.MAX_LINE >> 20} MB; is this a file of "
                            "titles?")
        if not newline:
            continue

        # The first characters beyond ASCII tell whether single rows or the whole file are not UTF-8.
        if not (checked or block.isascii()):
            require_utf8(block, name, number)
            checked = True

        # Files put together from several have a byte order mark before the first line of each. Blocks end behind a
        # newline, so none ends between the two bytes of a Windows line end.
        plain = (block + newline).removeprefix(MARK).replace(b"\n" + MARK, b"\n").replace(b"\r\n", b"\n")
        if times := plain.count(b"\r"):
            at = plain.count(b"\n", 0, plain.index(b"\r"))
            if number == 1 and at == 0:
                raise UserError(f"{name}: a carriage return within the first line; end lines with newlines")
            if bad:
                bad.note(name, number + at, classify.SPACED, times)
            plain = plain.replace(b"\r", b" ")
        yield number, plain
        number += block.count(b"\n") + 1


def require_utf8(block, name, number):
    """Raise UserError unless most of the characters beyond ASCII are UTF-8; number: of the first of the lines."""
    try:
        block.decode()
    except UnicodeDecodeError as error:
        text = block.decode("utf-8", "replace")
        broken = text.count("\ufffd")
        if sum(map(len, re.findall("[^\0-\x7f]+", text))) < 2 * broken:
            raise UserError(f"{name}:{number + block.count(10, 0, error.start)}: not UTF-8; name its encoding with "
                            "--encoding, such as cp1252, which is what Excel's CSV has") from None


def format_of(first):
    """The format that the first line of a file tells: "json", "fasttext", or "text" for CSV and lists of titles."""
    if first.startswith(("{", "[")):
        return "json"
    return "fasttext" if first.startswith("__label__") else "text"


# --- columns ----------------------------------------------------------------------------------------------------------

class Format(NamedTuple):
    """How a user says that files are to be read."""
    # {column: [names that it may have in the source, or its number from 1; the first that the source knows count]}.
    # Beside those of COLUMNS they are further parts of the title, see classify.title_key, further levels of the
    # category, see `level_key`, and values, see `value_key`.
    names: dict = {column: [names] for column, names in COLUMNS.items()}  # noqa: RUF012
    encoding: str = "utf-8"
    columns: tuple = ()  # of rows to classify the classify.Columns whose values are read
    separator: str | None = None  # between the levels of a category
    partly: bool = False  # whether labelled files may have rows without a category, which are left out

    @property
    def is_tree(self):
        """Whether all categories are paths, whatever the file."""
        return bool(self.separator) or level_key(1) in self.names

    @property
    def beside(self):
        """The columns that a file may lack, though it was prepared, or a run was trained, with them."""
        return [column for column in self.names if column not in COLUMNS]


def value_key(name):
    """What the column of values with this name is called where others may be called alike."""
    return f"column {name}"


def is_value(column):
    return column.startswith("column ")


def is_title(column):
    return column.partition(" ")[0] == "title"


def level_key(number):
    """What the columns that make a category are called, of which number 0 has the top level."""
    return f"category {number}" if number else "category"


def is_level(column):
    return column.partition(" ")[0] == "category"


@dataclass
class Dialect:
    """How a table in text is written, so that another can be written alike."""
    separator: str = ","
    quote_all: bool = False
    line_end: str = "\n"
    encoding: str = "utf-8"
    mark: bool = False      # whether a byte order mark comes first
    schema: object = None   # what types the columns have where it is no text


def format_from(args, remembered=None, values=()):
    """The Format that --title-column, --category-column, --separator, --group-column and --encoding ask for; where
    title and category are not named, `remembered`, the options that other files were prepared with, serves as far as it
    fits. values: names of the columns of values. Raises UserError where a flag names a column twice."""
    names, key_of = dict(Format().names), {"title": classify.title_key, "category": level_key}
    for column in ("title", "category", "group"):
        asked, told = (named(flags.get(f"{column}_column")) for flags in (vars(args), remembered or {}))
        if len({str(name).lower() for name in asked}) < len(asked):
            raise UserError(f"--{column}-column {' '.join(map(str, asked))}: the same column twice")
        for i, name in enumerate(asked or told):
            key = key_of[column](i) if column in key_of else column
            usual = COLUMNS.get(key, ())
            if asked:
                names[key] = [(name,)]
            elif isinstance(name, int):
                # A number by itself does not tell whether this file has the same columns as the others.
                names[key] = [(name, *usual)]
            elif column != "group":  # which prepare.py alone asks for
                names[key] = [(name,), usual]
    return Format(names | {value_key(name): [(name,)] for name in values}, args.encoding,
                  separator=vars(args).get("separator") or (remembered or {}).get("separator"))


def named(columns):
    """The names, or numbers, of columns that a flag, or an option of meta.json, has: one, several or None. Digits are a
    position, so a column whose name is a number can only be asked for by where it stands."""
    columns = columns if isinstance(columns, list) else [columns or ""]
    return [int(text) if re.fullmatch("[0-9]{1,6}", text) else text.strip() for text in columns if text.strip()]


def is_text(stream, encoding):
    """Whether a binary stream is text in an encoding, in UTF-8 but for a few rows."""
    with suppress(UserError):
        for _, block in line_blocks(files.decoded(stream, encoding, ""), ""):
            # The first block with other characters than ASCII tells of UTF-8.
            if encoding == "utf-8" and not block.isascii():
                break
        return True
    return False


def encoding_of(path, encoding):
    """The encoding of a file that is in this one or in UTF-8, which others seldom look like."""
    if encoding != "utf-8":
        with open(path, "rb") as raw, files.archive_errors(path):
            if is_text(files.decompressed(raw), "utf-8"):
                return "utf-8"
    return encoding


def locate(header, wanted, names):
    """{column: position} of those of `wanted` that a header has, in any case, values also in another spelling; names:
    as in a Format. A column that it names twice, or under two of its names, is ambiguous and not taken."""
    found, lowered = {}, [name.lower() for name in header]
    for column in wanted:
        for known in names[column]:
            spellings = [name.lower() for name in known if isinstance(name, str)]
            at = [i for i, name in enumerate(lowered) if name in spellings or i + 1 in known]
            if is_value(column):
                meant = classify.meant(header, known[0])
                at = [] if meant is None else [header.index(meant)]
            if len(at) == 1:
                found[column] = at[0]
            if at:
                break

    # A number may mean a column that was found by its name as well; an id is then what the user says it is. What else
    # is known of a row, such as its language, may be read as a value, too.
    if "id" in found and [found[column] for column in found if not is_value(column)].count(found["id"]) > 1:
        del found["id"]
    for position in found.values():
        both = [column for column in found if found[column] == position]
        if any(map(is_value, both)) and not {"title", "category"}.intersection(both):
            continue
        if len(both) > 1:
            raise UserError(f"the same column for {' and '.join(both)}: {header[position]}; see --title-column, "
                            "--category-column and --columns")
    return found


def require_columns(header, name, wanted, names, shown=None):
    """As `locate`, but raises UserError unless the title, and if wanted the category and the levels below that a user
    has asked for, are found; shown: what the error says of the header."""
    columns = locate(header, wanted, names)
    for column in wanted:
        if column not in columns and (column in ("title", "category") or (
                is_level(column) and len(names[column]) == 1)):
            known = " or ".join(str(one) for known in names[column] for one in known)
            raise UserError(f"{name}:1: the header needs one column {known}, and says "
                            f"{shown or ', '.join(header)[:80]}; name it with --{column.partition(' ')[0]}-column")
    return columns


def note_columns(header, columns, form, name, bad):
    """Note in `bad` which columns beside the title a file lacks, or has in another spelling: `columns` as from
    `locate`, for a header. Raises UserError where a user has asked for a part of the title that is not there."""
    for column in form.beside:
        [wanted, *_], *others = form.names[column]
        if column not in columns and not (others or is_value(column)):
            raise UserError(f"{name}:1: --title-column {wanted}: the header has no such column, or several")
        if column not in columns:
            bad.note(name, None, classify.LACKING.format(wanted))
        elif is_value(column) and (found := header[columns[column]]) != wanted:
            bad.note(name, None, classify.OTHERWISE.format(found, wanted))


def note_gaps(block, numbers, form, name, bad):
    """Note in `bad` how many rows of a block lack a column beside the title: those of JSON lines may each have
    others."""
    for column in form.beside:
        if block.get(column) is not None and (times := block[column].null_count):
            first = int(np.argmax(np.asarray(block[column].is_null())))
            bad.note(name, numbers[first], classify.LACKING.format(form.names[column][0][0]), times)


def tidy(name):
    """A category or language so that names that look the same are the same, to compare them: composed (NFC), without
    invisible characters, with single spaces."""
    # Tabs and the like are control characters, too, but they separate, so they stay until the split.
    return " ".join("".join(c for c in unicodedata.normalize("NFC", name)
                            if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")).split())


def filtered(block, mask):
    """The rows of a block, {column: Arrow array}, for which `mask` [n] is true."""
    return {column: values.filter(mask) for column, values in block.items()}


# --- CSV --------------------------------------------------------------------------------------------------------------

def take_header(blocks, path=None):
    """(first line as text, blocks behind). Raises UserError where the first line of a file `path` is empty."""
    number, block = next(blocks, (1, b""))
    line, _, block = block.partition(b"\n")
    first = line.decode("utf-8", "replace").strip(" ")
    if path and not first:
        raise UserError(f"{path}: empty file, or its first line is empty")
    # Rows keep the numbers that their lines have in the file, for messages.
    return first, itertools.chain([(number + 1, block)] if block else [], blocks)


def read_table(first, name, wanted, names):
    """The Table of a CSV file with this first line; only columns of `wanted` that the header names are in it. The
    delimiter is the first of comma, tab and semicolon with which the header has a title (and a category, if wanted), or
    comma."""
    tables = []
    for delimiter in ",\t;":
        header = [field.strip(" ") for field in classify.csv_fields(first, delimiter)[0]]  # a tab may delimit
        tables.append(classify.Table(name, delimiter, header, locate(header, wanted, names)))
    needed = {"title", "category"}.intersection(wanted)
    return next((table for table in tables if needed <= table.columns.keys()), tables[0])


def read_csv(blocks, table, bad):
    """Yield ({column: Arrow array of bytes}, line numbers [N]) for blocks of lines behind the header of `table`. Rows
    of another width go to `bad`."""
    # Lines that a block did not use wait for the next; the empty block at the end makes the last of them do.
    rest, rest_number = b"", None
    for number, block in itertools.chain(blocks, [(None, b"")]):
        last = not block
        if rest:
            number, block = rest_number, rest + block
        if not block:
            return
        found, rest = parse_quickly(block, table), b""
        if found is not None:
            yield found, np.arange(number, number + block.count(b"\n"))
            continue

        # The careful way, for this block alone: the next one may be in order again.
        lines = block.decode("latin-1").split("\n")[:-1]  # every byte is a character, so none is lost
        rows, numbers, used = classify.rows_in(lines, number, table, bad, last)
        rest, rest_number = "".join(f"{line}\n" for line in lines[used:]).encode("latin-1"), number + used
        # Bytes again, as the quick way gives them: whether they are UTF-8 is for `clean` to say.
        if rows:
            yield ({column: pa.array([row[position].encode("latin-1") for row in rows], pa.binary())
                    for column, position in table.columns.items()}, np.array(numbers))


def parse_quickly(block, table):
    """{column: Arrow array of bytes} of a block of lines, or None unless every line is a row of the right width."""
    # Arrow takes an empty line for a row of empty fields, which it is in a table of one column alone.
    if table.width > 1 and (block.startswith(b"\n") or b"\n\n" in block):
        return None

    # Arrow takes a quote that stands between a space and a field as text. One that is left open swallows line ends, so
    # that rows are too few; but not in the last line.
    if b' "' in block and re.search(classify.SPACED_QUOTE.format(table.delimiter).encode(), block):
        return None
    if classify.csv_fields(block[block.rfind(b"\n", 0, -1) + 1:-1].decode("latin-1"), table.delimiter)[1]:
        return None

    # Columns are named by their position, and stay bytes: whether they are UTF-8 is for `clean` to say.
    wanted = sorted({str(position) for position in table.columns.values()})
    try:
        found = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1,
                               column_names=[str(position) for position in range(table.width)]),
            pa.csv.ParseOptions(delimiter=table.delimiter, ignore_empty_lines=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.binary()), include_columns=wanted))
    except pa.ArrowInvalid:
        return None
    if len(found) != block.count(b"\n"):  # a row has swallowed another
        return None

    return {column: found.column(str(position)).combine_chunks() for column, position in table.columns.items()}


csv.field_size_limit(1 << 30)  # lines have a limit of their own, files.MAX_LINE


# --- JSON lines and fastText ------------------------------------------------------------------------------------------

def parse_json(line, names):
    """{column: text} of a line of JSON, None for what it lacks beside the first part of a title; names: as in a Format.
    Raises ValueError where the line is no object, or has a value that is no text."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object; wanted: JSON lines, an object each")
    row = {}
    for column, (first, *others) in names.items():
        if len(first) == 1 and isinstance(first[0], int):
            raise ValueError("columns of JSON lines have names and no numbers; see "
                             f"--{column.partition(' ')[0]}-column")
        if is_value(column):
            name = classify.meant(fields, first[0])
            row[column] = None if name is None else json_text(column, name, fields[name])
            continue
        # A null is as good as no value, so another name of the column may serve.
        found = next(filter(None, ([name for name in known if fields.get(name) is not None]
                                   for known in (first, *others))), [])
        if len(found) > 1:
            raise ValueError(f"has both {' and '.join(found)}; name one with --{column}-column")
        row[column] = json_text(column, found[0], fields[found[0]]) if found else (
            None if (is_title(column) or is_level(column)) and " " in column and first[0] not in fields else "")
    return row


def json_text(column, name, value):
    """A JSON value as text. Whole numbers and booleans are names, too; NaN is a missing value, as pandas writes it. A
    list is the path of a category: a BORDER stands before each level. What else there is raises ValueError, unless it
    is an id or a value of the row, which may be anything."""
    kinds = {list: "a list", tuple: "a list", dict: "an object", float: "not a whole number"}
    if is_level(column) and isinstance(value, list):
        levels = ["" if level is None else json_text("", f"level of the {name}", level) for level in value]
        return "".join(classify.BORDER + level.replace(classify.BORDER, " ") for level in levels)
    if is_level(column) and isinstance(value, str):
        return value.replace(classify.BORDER, " ")
    if is_value(column) and isinstance(value, (float, decimal.Decimal)):
        return classify.value_text(value)
    # A whole float counts as an integer: pandas makes floats of a column of integers with gaps.
    whole = isinstance(value, (float, decimal.Decimal)) and (value != value or value == value // 1)
    if whole or column == "id" or is_value(column) or isinstance(value, (str, int, datetime.date, datetime.time)):
        return plain_text(value)
    raise ValueError(f"the {name} is {kinds.get(type(value), type(value).__name__)}; wanted: text")


def plain_text(value):
    """Any value of a table as text: nothing for one that is missing, lists and the like as JSON."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    # Asked before numbers, for Python takes a boolean for an integer.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, decimal.Decimal)) and value == value // 1:
        return str(int(value))
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=plain_text)
    # Spreadsheets know no dates without a time.
    if isinstance(value, datetime.datetime) and value.tzinfo is None and value.time() == datetime.time():
        value = value.date()
    return str(value)


def parse_fasttext(line):
    """{column: text} of a line of a fastText file; raises ValueError where it has no label, or several."""
    # Other blanks, such as a no-break space, are part of a label, as they are to fastText.
    label, title = [*FASTTEXT_BLANKS.split(line.lstrip(" \t\v\f\r\0"), maxsplit=1), ""][:2]
    if not label.startswith("__label__"):
        raise ValueError("does not start with __label__")
    if line.count("__label__") > 1:
        raise ValueError("has several labels; keep one")
    return {"title": title, "category": label.removeprefix("__label__")}


def read_lines(blocks, name, parse, bad):
    """Yield ({column: Arrow array of bytes}, line numbers) for blocks with one record a line; `parse` gives the columns
    of a line, or raises ValueError."""
    for number, block in blocks:
        rows = []
        for at, line in enumerate(block.split(b"\n")[:-1], number):
            try:
                if line.strip():
                    rows.append((at, parse(line.decode())))
            except (ValueError, RecursionError) as error:
                bad.add(name, at, str(error))
        for start in range(0, len(rows), LINE_ROWS):
            numbers, part = zip(*rows[start:start + LINE_ROWS], strict=True)
            # Lone surrogates come from JSON's escapes.
            yield ({column: pa.array([row[column] and row[column].encode("utf-8", "replace") for row in part],
                                     pa.binary())
                    for column in part[0]}, np.array(numbers))


# --- Parquet and Excel ------------------------------------------------------------------------------------------------

def has_columns(stream):
    """Whether a stream is no text but Parquet or an Excel workbook."""
    return stream.peek(4).startswith((PARQUET, ZIP))


def open_columns(stream, name, bad):
    """(schema, function from names of columns or None to record batches, iterator of the numbers of rows) of a Parquet
    file or the first sheet of an Excel workbook. What describes them stands at their end, so a stream that cannot go
    back is read whole."""
    excel = stream.peek(4).startswith(ZIP)
    with column_errors(name):
        content = stream if stream.seekable() else io.BytesIO(stream.read())
        if excel:
            table, numbers = read_sheet(content, name, bad)
            return table.schema, lambda columns: (table if columns is None else table.select(columns)).to_batches(
                LINE_ROWS), iter(numbers)
        from pyarrow.parquet import ParquetFile
        file = ParquetFile(content)
        return file.schema_arrow, lambda columns: file.iter_batches(LINE_ROWS, columns=columns), itertools.count(1)


@contextmanager
def column_errors(name):
    """Turn what a file that Arrow cannot read raises into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # With a number it is the system that failed, and not the content of the file.
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{name}: not a Parquet file that Arrow can read ({' '.join(str(error).split())[:200]})"
                        ) from None


def read_columns(opened, name, columns, bad, keep=False):
    """Yield ({column: Arrow array of bytes}, row numbers [n]) for blocks of what `open_columns` gives; columns:
    {column: position}. Values are as in JSON. keep: add all columns as they are, as `kept`, an Arrow table."""
    schema, batches, rows = opened
    # Columns are read by their names, so all are read where several have one and a number tells which is meant.
    needed = None
    if not keep and len({*schema.names}) == len(schema.names):
        needed = [schema.names[position] for position in columns.values()]
    with column_errors(name):
        for batch in batches(needed):
            block, good = {}, np.ones(len(batch), bool)
            numbers = np.fromiter(itertools.islice(rows, len(batch)), np.int64, len(batch))
            for column, position in columns.items():
                block[column], wrong = column_text(column, batch.column(schema.names[position] if needed else position))
                # A row with several faults is counted once, for its first.
                for i in [i for i in wrong if good[i]]:
                    bad.add(name, numbers[i], wrong[i])
                    good[i] = False

            # Not all types can be filtered, but titles to classify have no bad rows: `bad` refuses the first.
            if keep:
                block["kept"] = pa.Table.from_batches([batch])
            yield block if good.all() else filtered(block, good), numbers[good]


def column_text(column, values):
    """(a column as an Arrow array of bytes, {index of a value that is no text: what it is})."""
    kind = values.type
    # This is how pandas writes a categorical column.
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if str(kind).partition("[")[0] in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view",
                                       "fixed_size_binary"):
        values = values.cast(pa.binary()).fill_null(b"")
        return without_border(values) if is_level(column) else values, {}
    if is_level(column) and kind in (pa.list_(pa.string()), pa.large_list(pa.string())):
        return joined_levels(values), {}
    text, wrong = [], {}
    for i, value in enumerate(python_values(values)):
        try:
            text.append("" if value is None else json_text(column, column, value))
        except ValueError as error:
            text.append("")
            wrong[i] = str(error)
    return pa.array([value.encode() for value in text], pa.binary()), wrong


def joined_levels(values):
    """An Arrow array of lists of text as bytes, as `json_text` has a list of levels."""
    import pyarrow.compute as pc
    names = without_border(values.flatten().cast(pa.binary()).fill_null(b""))
    ends = np.cumsum([0, *pc.list_value_length(values).fill_null(0).to_pylist()], dtype=np.int32)
    names = pc.binary_join_element_wise(classify.BORDER.encode(), names, b"")
    return pc.binary_join(pa.ListArray.from_arrays(ends, names), b"")


def without_border(names):
    """Categories, an Arrow array of bytes, without the sign that tells levels of a path."""
    import pyarrow.compute as pc
    return pc.replace_substring(names, classify.BORDER.encode(), b" ")


def python_values(values):
    """The values of an Arrow array for Python; dates that it does not know, and times of a zone that nobody knows, as
    text."""
    try:
        return values.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        if not pa.types.is_temporal(values.type):
            raise
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp(values.type.unit))
        return [text and text.removeprefix("<value out of range: ").removesuffix(">")
                for text in values.cast(pa.string()).to_pylist()]


def read_sheet(content, name, bad):
    """(the first sheet of an Excel workbook as an Arrow table, the numbers of its rows). The first row that is not
    empty names the columns. Raises UserError where it cannot be read."""
    try:
        # What it unpacks to has the limit of other compressed files.
        with zipfile.ZipFile(content) as archive:
            packed, unpacked = (sum(getattr(info, size) for info in archive.infolist())
                                for size in ("compress_size", "file_size"))
            if unpacked > max(files.FREE_EXPANSION, files.MAX_EXPANSION * packed):
                raise UserError(f"{name}: grows more than {files.MAX_EXPANSION}-fold when decompressed; save it as CSV "
                                "if that is meant")
        import openpyxl
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles that it does not know
            book = openpyxl.load_workbook(content, read_only=True, data_only=True)
            book.worksheets[0].reset_dimensions()  # which some programs write wrongly
            rows = [*enumerate(book.worksheets[0].iter_rows(values_only=True), 1)]
            book.close()
    except UserError:
        raise
    except ImportError:
        raise UserError(f"{name}: to read Excel files, pip install openpyxl, or save it as CSV") from None
    except Exception as error:  # openpyxl, zipfile and the XML parser raise many kinds
        raise UserError(f"{name}: a zip archive, and no sound Excel file ({' '.join(str(error).split())[:200]}); "
                        "unpack it, or save it as .xlsx or CSV") from None

    def has_value(values):
        return any(value not in (None, "") for value in values)

    # Rows and columns without a value at the ends are none; an empty row between others is as an empty line in CSV.
    used = [i for i, (_, row) in enumerate(rows) if has_value(row)]
    if not used:
        raise UserError(f"{name}: its first sheet is empty")
    numbers, rows = zip(*rows[used[0]:used[-1] + 1], strict=True)
    columns = [*itertools.zip_longest(*rows)]
    while not has_value(columns[-1]):
        columns.pop()
    good = [len(columns) == 1 or has_value(row) for row in rows[1:]]
    for number in itertools.compress(numbers[1:], [not one for one in good]):
        bad.empty(name, number)
    return (pa.Table.from_arrays([sheet_column([*itertools.compress(values, good)]) for _, *values in columns],
                                 [plain_text(header).strip() for header, *_ in columns]),
            [*itertools.compress(numbers[1:], good)])


def sheet_column(values):
    """A column of a sheet as an Arrow array of their type, or of text where types differ."""
    kinds = {type(value) for value in values} - {type(None)}
    with suppress(pa.ArrowException, OverflowError):
        if values and (len(kinds) < 2 or kinds == {int, float}):
            return pa.array(values)
    return pa.array([None if value is None else plain_text(value) for value in values], pa.string())
