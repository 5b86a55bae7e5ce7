"""Rows out of any file of titles: CSV and TSV, JSON lines, Parquet, fastText files and plain lists of titles.

prepare.py reads labelled rows with `read_labelled`, evaluate.py titles alone with `read_titles`; both share the readers
below. A file is read in blocks of whole lines. CSV goes through Arrow, which is quick, as long as a block is in order;
a block with a row that is not is read again line by line by rules that lose no row (`parse_carefully`). What cannot be
read is counted in a `BadRows`, with the line where it stands, or refused; no row vanishes unsaid.
What a title means to a model (words, ids) does not belong here, and neither does which files make a data set.
"""
import csv
import functools
import io
import itertools
import re
import sys
import unicodedata
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

import data
import files
from files import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
BLOCK = 8 << 20      # bytes of a file in memory at a time, for each thread a few
SNIFFED = 20         # lines that show whether a file is a list of titles
LINE_ROWS = 50_000   # rows of JSON lines and fastText files in a block at most
ROW_BYTES = 1 << 18  # that a row with line ends in its fields may take

# By what names we know a column; --title-column and --category-column put others in their place.
COLUMNS = {"title": ("title", "text"), "category": ("category", "label"), "language": ("language",),
           "quality": ("label_quality",), "split": ("split",), "id": ("id",)}
LABELLED = ("title", "category", "language", "quality", "split", "id")

# What the first line or the first bytes of a file tell of its format.
JSON = re.compile(r'\s*(\{\s*("|\}|$)|\[\s*([\[{"\]]|$))')  # but a title may begin with "[Oferta]"
DELIMITER_LINE = re.compile(rb'"?sep=([,;\t|])"?')  # above the header, for spreadsheets
PARQUET = b"PAR1"
MARK = b"\xef\xbb\xbf"  # the byte order mark in UTF-8
NOT_TEXT = (PARQUET, b"\xff\xfe", b"\xfe\xff", b"PK\3\4", b"\x1f\x8b")  # UTF-16, zip, gzip within a compressed file


# --- what could not be read -------------------------------------------------------------------------------------------

class BadRows:
    """Counts the rows that had to be skipped, and notes what was read but is worth a warning; of each kind it
    remembers the first."""

    def __init__(self, limit):
        """limit: the bad rows to allow, as a share of all rows (below 1) or as a number."""
        self.limit, self.count, self.first, self.notes = limit, 0, None, {}

    def add(self, path, line, what):
        self.first = self.first or f"{path}:{line}: {what}"
        self.count += 1

    def note(self, path, line, what, times=1):
        """Count a row that is kept, or a category (without a line), under what is odd about it."""
        number, first = self.notes.get(what, (0, path if line is None else f"{path}:{line}"))
        self.notes[what] = number + times, first

    def empty(self, path, line):
        """What to do about an empty line in a table: nothing, it is no row."""

    def check(self, rows):
        """Raise UserError if more rows than the limit were skipped, beside this many that were read."""
        # A share is one of all rows, the bad ones included.
        limit = self.limit if self.limit >= 1 else self.limit * (rows + self.count)
        if self.count > limit:
            raise UserError(f"{self.first} ({self.count:,} bad rows of {rows + self.count:,}; mend them, or allow so "
                            "many with --max-bad-rows)")

    def warn(self):
        """Print a line for each kind of odd rows."""
        for what, (number, first) in self.notes.items():
            print(f"warning: {first}: {what}" + (f" (and {number - 1:,} more)" if number > 1 else ""),
                  file=sys.stderr)


# --- blocks of lines --------------------------------------------------------------------------------------------------

def line_blocks(stream, name, bad, wait=True):
    """Yield (number of the first line, bytes) of a binary stream: blocks of whole lines, each ended by a newline alone.

    bad: notes carriage returns that are no line ends. wait: fill every block; without it, a block holds what a pipe or
    a terminal has brought so far.
    Raises UserError where the content is no text, or a line longer than files.MAX_LINE.
    """
    # The last line of a piece may go on in the next one.
    number, rest = 1, b""
    while piece := stream.read(BLOCK) if wait else files.read_ready(stream, BLOCK):
        # What is no text shows at the beginning; further on, a stray NUL only separates words.
        if number == 1 and ((rest + piece).startswith(NOT_TEXT) or b"\0" in piece[:1000]):
            raise UserError(f"{name}: not text in UTF-8, plain or compressed once with gzip, bzip2 or xz; if it is "
                            "text in another encoding, name that with --encoding, such as utf-16")
        whole = rest + piece
        block, newline, rest = whole.rpartition(b"\n")
        first = whole.find(b"\n") if newline else 0  # only the first line and the last can be that long

        # A line without end, as binary files may have, would fill the memory.
        if max(first, len(rest)) > files.MAX_LINE:
            number += 0 if first > files.MAX_LINE else block.count(b"\n") + len(newline)
            raise UserError(f"{name}:{number}: a line of more than {files.MAX_LINE >> 20} MB; is this a file of "
                            "titles?")
        if newline:
            yield number, plain_ends(block + newline, name, number, bad)
            number += block.count(b"\n") + 1

    # The last line of a file may lack its newline; rows are counted by newlines, so it gets one.
    if rest:
        yield number, plain_ends(rest + b"\n", name, number, bad)


def plain_ends(block, name, number, bad):
    """A block whose lines end in newlines alone. A carriage return within a line becomes a space; within the first
    line it shows a file of an old Macintosh, whose lines cannot be told. Files put together from several have a byte
    order mark before the first line of each; it is dropped."""
    if MARK in block:
        block = block.removeprefix(MARK).replace(b"\n" + MARK, b"\n")

    # Blocks end behind a newline, so none ends between the two bytes of a Windows line end.
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
        if number == 1 and b"\r" in block.partition(b"\n")[0]:
            raise UserError(f"{name}: a carriage return within the first line; end lines with newlines")
        if times := block.count(b"\r"):
            bad.note(name, number + block.count(b"\n", 0, block.index(b"\r")),
                     "a carriage return within a line was taken as a space; if it ends a title, end it with a newline",
                     times)
            block = block.replace(b"\r", b" ")
    return block


def first_line(path, encoding="utf-8"):
    """The first line of a file that may be compressed, as text; it tells the format. A spreadsheet's line `sep=;` is
    passed over."""
    files.require_file(path)
    with open(path, "rb") as raw, files.archive_errors(path):
        stream = files.decompressed(raw)
        # Parquet is never decoded as text: its magic number stands for the first line.
        if is_parquet(stream):
            return PARQUET.decode()
        stream = files.decoded(stream, encoding, path)
        first = stream.readline(files.MAX_LINE).removeprefix(MARK).strip(b" \r\n")
        if DELIMITER_LINE.fullmatch(first):
            first = stream.readline(files.MAX_LINE).strip(b" \r\n")
    if not first:
        raise UserError(f"{path}: empty file, or its first line is empty")
    return first.decode("utf-8", "replace")


def format_of(first):
    """The format that the first line of a file tells: "json", "fasttext", or "text" for CSV and lists of titles."""
    if JSON.match(first):
        return "json"
    return "fasttext" if first.startswith("__label__") else "text"


# --- columns ----------------------------------------------------------------------------------------------------------

class Format(NamedTuple):
    """How a user says that files are to be read."""
    names: dict = COLUMNS       # {column: names that it may have in the source, or its number from 1}
    encoding: str = "utf-8"


def format_from(args):
    """The Format that --title-column, --category-column and --encoding ask for."""
    names = dict(COLUMNS)
    for column in ("title", "category"):
        # Digits are a position, so a column whose name is a number can only be asked for by where it stands.
        if asked := getattr(args, f"{column}_column", None):
            names[column] = (int(asked),) if re.fullmatch("[0-9]{1,6}", asked) else (asked.strip(),)
    return Format(names, args.encoding)


def locate(header, wanted, names):
    """{column: position} of those of `wanted` that a header has, in any case. A column that it names twice, or under
    two of its names, is a doubt and not taken."""
    found = {}
    for column in wanted:
        spellings = [str(name).lower() for name in names[column] if isinstance(name, str)]
        at = [i for i, name in enumerate(header) if name.lower() in spellings or i + 1 in names[column]]
        if len(at) == 1:
            found[column] = at[0]

    # A number may mean a column that was found by its name as well; an id is then what the user says it is.
    if "id" in found and [*found.values()].count(found["id"]) > 1:
        del found["id"]
    for position in found.values():
        if len(both := [column for column in found if found[column] == position]) > 1:
            raise UserError(f"the same column for {' and '.join(both)}: {header[position]}; see --title-column and "
                            "--category-column")
    return found


def tidy(name):
    """A category or language so that names that look the same are the same: composed (NFC), without invisible
    characters, with single spaces."""
    # Tabs and the like are control characters, too, but they separate, so they stay until the split.
    return " ".join("".join(c for c in unicodedata.normalize("NFC", name)
                            if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")).split())


# --- CSV --------------------------------------------------------------------------------------------------------------

class Table(NamedTuple):
    """How to read the rows behind a header."""
    name: object          # of the file, for messages
    delimiter: str
    header: list          # names of the columns, as they stand
    columns: dict         # {column: position} of those wanted

    @property
    def width(self):
        return len(self.header)


def take_header(blocks):
    """(first line as text, the delimiter that a spreadsheet's line `sep=;` before it tells or None, blocks behind)."""
    number, block = next(blocks, (1, b""))
    line, _, block = block.partition(b"\n")
    told = DELIMITER_LINE.fullmatch(line.strip(b" "))
    if told:  # what comes from a pipe may end here for now
        number, block = (number + 1, block) if block else next(blocks, (number + 1, b""))
        line, _, block = block.partition(b"\n")

    # Rows keep the numbers that their lines have in the file, for messages.
    behind = itertools.chain([(number + 1, block)] if block else [], blocks)
    return line.decode("utf-8", "replace").strip(" "), told and told[1].decode(), behind


def read_table(first, name, wanted, names=COLUMNS, delimiter=None):
    """The Table of a CSV file with this first line; only columns of `wanted` that the header names are in it. Unless
    it is known, the delimiter is the first of comma, tab and semicolon with which the header has a title (and a
    category, if wanted), or comma."""
    # Quotes count in a header, too, but a file may be anything.
    def divided(delimiter):
        try:
            return [field.strip(" ") for field in quoted_fields(first, delimiter)]  # a tab may delimit
        except csv.Error:  # a carriage return within the line, as in binary files
            return []

    needed, tables = {"title", "category"}.intersection(wanted), []
    for candidate in delimiter or ",\t;":
        header = divided(candidate)
        tables.append(Table(name, candidate, header, locate(header, wanted, names)))
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
        text = block.decode("latin-1")  # every byte is a character, so none is lost
        rows, numbers, used = parse_carefully(text, number, table, bad, last)
        rest, rest_number = block[used:], number + text.count("\n", 0, used)
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
    # that rows are too few; but not in the last line. Such lines are looked at one by one.
    if b'"' in block:
        tight, _, _ = row_patterns(table.delimiter)
        for place in (len(block) - 1, *(found.end() for found in re.finditer(b' "', block))):
            line = block[block.rfind(b"\n", 0, place) + 1:block.index(b"\n", place)]
            if not tight.fullmatch(line.decode("latin-1")):
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


def parse_carefully(text, number, table, bad, last):
    """The rows in a block of lines, however their quotes are broken.

    A field in quotes may span lines where the quotes close as they should and the row then has the right width; but
    where a line between is a row by itself, an unclosed quote has swallowed it. Such a quote is taken as text.

    text: whole lines; number: of the first of them; last: whether no lines follow. Returns (rows, lists of fields;
    their line numbers; how many characters were used: the others need the lines that follow).
    """
    delimiter, width = table.delimiter, table.width
    _, complete, sound = row_patterns(delimiter)

    def is_row(line):
        return complete.fullmatch(line) and len(quoted_fields(line, delimiter)) == width

    # A row is what a line gives when it is divided at the delimiters, unless its quotes say otherwise.
    rows, numbers, position = [], [], 0
    while position < len(text):
        end = text.index("\n", position)
        line, lines = text[position:end], 1
        fields = line.split(delimiter)
        if '"' in line and complete.fullmatch(line):
            # A row of one line. Quotes are as in CSV where that fits, else they are text (`24" tv`).
            fields = quoted if len(quoted := quoted_fields(line, delimiter)) == width else fields
        elif '"' in line:
            # A quote is open. Look for the end of the row, which may not be here yet.
            found = sound.match(text, position, position + ROW_BYTES)
            # Then it waits for more lines, but not for so many that a quote that never closes gathers the whole file.
            if not found and not last and len(text) - position < ROW_BYTES:
                break
            joined, between = [], []
            if found:
                joined, between = quoted_fields(found[0], delimiter), found[0].split("\n")[1:-1]
            if len(joined) == width and not (width > 1 and any(map(is_row, between))):
                fields, end, lines = joined, found.end(), len(between) + 2
                bad.note(table.name, number, "a field in quotes spans lines; if it should not, a quote is unclosed")
            elif len(fields) == width:
                bad.note(table.name, number, "an unclosed quote was taken as text")

        # Whatever the quotes were, the line is now part of a row, a bad row or an empty line: none is lost.
        if len(fields) == width:
            rows.append(fields)
            numbers.append(number)
        elif line.strip():
            bad.add(table.name, number, f"{len(fields)} columns instead of {width}"
                    + ("; is a quote unclosed?" if '"' in line else ""))
        else:
            bad.empty(table.name, number)
        position, number = end + 1, number + lines
    return rows, numbers, position


csv.field_size_limit(1 << 30)  # lines have a limit of their own, files.MAX_LINE


def quoted_fields(row, delimiter):
    """The fields of a row of text, as CSV has quotes; spaces before a field are dropped."""
    return next(csv.reader([row], delimiter=delimiter, skipinitialspace=True), [])


@functools.cache
def row_patterns(delimiter):
    """Patterns of rows: (in one line, with no quote open at its end and none that stands between a space and a field;
    in one line, with no quote open at its end; in any number of lines, with all quotes as they should be)."""
    # Possessive repeats (*+) never try again what they have matched, so matching takes linear time.
    stop = re.escape(delimiter)

    # A field in quotes, in which two stand for one; and one that does not begin with a quote, where quotes further on
    # are text.
    quoted, plain = r'"(?:[^"]++|"")*+"', rf'(?! *+")[^{stop}\n]*+'

    def row(field):
        return rf"(?:{field})(?:{stop}(?:{field}))*+"

    # Behind a closing quote a line may go on with text (`"Pro" tv`). Not so a row of several lines, where that quote
    # may well open a field of a later row.
    return (re.compile(row(rf"{quoted}[^{stop}\n]*+|{plain}")), re.compile(row(rf" *+{quoted}[^{stop}\n]*+|{plain}")),
            re.compile(row(rf" *+{quoted}(?=[{stop}\n])|{plain}") + r"(?=\n)"))


# --- JSON lines and fastText ------------------------------------------------------------------------------------------

def parse_json(line, names):
    """{column: text} of a line of JSON; `names` are those that each column may have. Raises ValueError where it
    is no object, or has a value that is no text."""
    import json
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object; wanted: JSON lines, an object each")
    row = {}
    for column, spellings in names.items():
        # A null is as good as no value, so another spelling of the column may serve.
        if isinstance(spellings[0], int):
            raise ValueError(f"columns of JSON lines have names and no numbers; see --{column}-column")
        found = [name for name in spellings if fields.get(name) is not None]
        if len(found) > 1:
            raise ValueError(f"has both {' and '.join(found)}; name one with --{column}-column")
        row[column] = json_text(found[0], fields[found[0]], column == "id") if found else ""
    return row


def json_text(name, value, anything=False):
    """A JSON value as text. Whole numbers and booleans are names, too; NaN is a missing value, as pandas writes it.
    What else there is raises ValueError, unless it may be anything."""
    if isinstance(value, str):
        return value
    # Asked before numbers, for Python takes a boolean for an integer.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != value:
        return ""
    # A whole float counts as an integer: pandas makes floats of a column of integers with gaps.
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if anything:
        return str(value)
    kinds = {list: "a list", dict: "an object", float: "not a whole number"}
    raise ValueError(f"the {name} is {kinds.get(type(value), type(value).__name__)}; wanted: text")


def parse_fasttext(line, names):
    """{column: text} of a line of a fastText file; raises ValueError where it has no label, or several."""
    label, title = [*line.split(None, 1), "", ""][:2]
    if not label.startswith("__label__"):
        raise ValueError("does not start with __label__")
    if line.count("__label__") > 1:
        raise ValueError("has several labels; keep one")
    return {"title": title, "category": label.removeprefix("__label__")}


def read_lines(blocks, name, parse, bad):
    """Yield ({column: Arrow array of bytes}, line numbers) for blocks with one record a line; `parse` gives the columns
    of a line, or raises ValueError."""
    for number, block in blocks:
        # A line that cannot be parsed is a bad row, an empty one none at all.
        rows, numbers = [], []
        for line in block.split(b"\n")[:-1]:
            try:
                if line.strip():
                    rows.append({column: value.encode("utf-8", "replace")  # lone surrogates come from JSON's escapes
                                 for column, value in parse(line.decode("utf-8")).items()})
                    numbers.append(number)
            except (ValueError, RecursionError) as error:
                bad.add(name, number, f"{error}")
            number += 1
        for start in range(0, len(rows), LINE_ROWS):
            part = rows[start:start + LINE_ROWS]
            yield ({column: pa.array([row[column] for row in part], pa.binary()) for column in part[0]},
                   np.array(numbers[start:start + LINE_ROWS]))


# --- Parquet ----------------------------------------------------------------------------------------------------------

def is_parquet(stream):
    return stream.peek(len(PARQUET)).startswith(PARQUET)


def open_parquet(stream):
    """A Parquet file, from a stream. The description of its columns stands at its end, so what cannot go back is read
    whole."""
    from pyarrow.parquet import ParquetFile
    raw = isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO) and stream.seekable()
    return ParquetFile(stream if raw else io.BytesIO(stream.read()))


@contextmanager
def parquet_errors(name):
    """Turn what a broken Parquet file raises while it is read into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # With a number it is the system that failed, and not the content of the file.
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{name}: not a sound Parquet file ({' '.join(str(error).split())[:200]})") from None


def read_parquet(stream, name, wanted, names, bad, keep=False):
    """Yield ({column: Arrow array of bytes}, row numbers [n]) for blocks of a Parquet file. Values are as in JSON.

    keep: add all columns as they are, as `kept`, an Arrow table; the first block has nothing but these, without rows.
    """
    number = 1
    with parquet_errors(name):
        file = open_parquet(stream)
        header = file.schema_arrow.names
        columns = locate(header, wanted, names)
        require_columns(name, columns, wanted, names, ", ".join(header)[:80])

        # Ahead of all rows, so that a table without rows has its columns, too.
        if keep:
            yield {"kept": file.schema_arrow.empty_table()}, []

        # Columns are read by their names, so all are read where several have one and a number tells which is meant.
        needed = [header[position] for position in columns.values()]
        if keep or any(header.count(column) > 1 for column in needed):
            needed = None
        for batch in file.iter_batches(LINE_ROWS, columns=needed):
            block, good = {}, np.ones(len(batch), bool)
            for column, position in columns.items():
                block[column], wrong = parquet_text(column, batch.column(
                    header[position] if needed else position))
                # A row with several faults is counted once, for its first.
                for i in [i for i in wrong if good[i]]:
                    bad.add(name, number + i, wrong[i])
                    good[i] = False
            numbers = number + np.flatnonzero(good)
            number += len(batch)

            # The kept columns lose the bad rows, too, so that their rows go on to belong to the titles.
            block |= {"kept": pa.Table.from_batches([batch])} if keep else {}
            yield {column: values.filter(pa.array(good)) for column, values in block.items()}, numbers


def parquet_text(column, values):
    """(a column of a Parquet file as an Arrow array of bytes, {index of a value that is no text: what it is})."""
    kind = values.type
    # This is how pandas writes a categorical column.
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if str(kind).partition("[")[0] in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view",
                                       "fixed_size_binary"):
        return values.cast(pa.binary()).fill_null(b""), {}
    text, wrong = [], {}
    for i, value in enumerate(values.to_pylist()):
        try:
            text.append("" if value is None else json_text(column, value, column == "id"))
        except ValueError as error:
            text.append("")
            wrong[i] = str(error)
    return pa.array([value.encode() for value in text], pa.binary()), wrong


# --- labelled rows ----------------------------------------------------------------------------------------------------

def read_labelled(path, bad, form=None):
    """Yield blocks of a file's labelled rows: {"title": Arrow string array, "category": ..., "line": number, and, where
    the file has them, "language", "quality", "split", "id"}, each with one entry a row. Rows that lack a title or a
    category, or that are not UTF-8, go to `bad`. Raises UserError where the file cannot be read at all.

    form: a Format, where the user has asked for one.
    """
    names, encoding = form or Format()
    first, header = first_line(path, encoding), None
    with open_with_progress(path) as (stream, show):
        # Whatever the format, blocks of it are columns of bytes with line numbers, and `clean` does the rest.
        if is_parquet(stream):
            found = read_parquet(stream, path, LABELLED, names, bad)
        elif (kind := format_of(first)) != "text":
            parse = functools.partial({"json": parse_json, "fasttext": parse_fasttext}[kind],
                                      names={column: names[column] for column in LABELLED})
            found = read_lines(line_blocks(files.decoded(stream, encoding, path), path, bad), path, parse, bad)
        else:
            line, delimiter, blocks = take_header(line_blocks(files.decoded(stream, encoding, path), path, bad))
            table = read_table(line, path, LABELLED, names, delimiter)
            require_columns(path, table.columns, LABELLED, names, f"{line[:80]!r} (JSON lines and fastText's __label__ "
                            "lines are read too)")
            # The names as this header spells them: rows that repeat it are told by these.
            header = {column: table.header[position] for column, position in table.columns.items()}
            found = read_csv(blocks, table, bad)
        for block, numbers in found:
            show()
            yield clean(block, numbers, path, bad, header)


def require_columns(path, columns, wanted, names, header):
    """Raise UserError unless the title, and the category if wanted, are among the columns that a header has."""
    for column in ("title", "category"):
        if column in wanted and column not in columns:
            raise UserError(f"{path}:1: the header needs one column {' or '.join(map(str, names[column]))}, and says "
                            f"{header}; name it with --{column}-column")


def has_categories(path, form=None):
    """Whether the rows of a file have a category, by its first line."""
    names, encoding = form or Format()
    first = first_line(path, encoding)
    if first == PARQUET.decode():
        with open(path, "rb") as raw, files.archive_errors(path), parquet_errors(path):
            return "category" in locate(open_parquet(files.decompressed(raw)).schema_arrow.names, ("category",), names)

    # That the name occurs is enough here; whether the line is sound shows when the rows are read.
    if format_of(first) == "json":
        return any(f'"{name}"' in first for name in names["category"])
    return first.startswith("__label__") or "category" in read_table(first, path, LABELLED, names).columns


@contextmanager
def open_with_progress(path):
    """(decompressed stream of a file, function that moves a progress bar to where the stream is)."""
    from tqdm import tqdm
    with open(path, "rb") as raw, files.archive_errors(path), tqdm(
            desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as bar:
        # The bar counts bytes as they lie on the disk, for nobody knows how many a compressed file unpacks to.
        yield files.decompressed(raw), lambda: bar.update(raw.tell() - bar.n)


def clean(block, numbers, path, bad, header=None):
    """The cleaning step of all formats: columns of bytes become trimmed text, categories and languages tidy, and rows
    that are not UTF-8, lack a title or a category, or repeat the `header` ({column: its name}) go to `bad` instead.
    Returns {column: Arrow string array}."""
    import pyarrow.compute as pc
    # A column is valid as a whole in nearly every block; where it is not, the rows that are at fault are looked for.
    good = np.ones(len(numbers), bool)
    for column, values in block.items():
        try:
            text = values.cast(pa.string())
        except pa.ArrowInvalid:
            # Decoding drops what is not UTF-8, so a value that it changes was broken.
            text = pa.array([value.decode("utf-8", "ignore") for value in values.to_pylist()], pa.string())
            broken = (column != "id") & pc.not_equal(text.cast(pa.binary()), values).to_numpy(zero_copy_only=False)
            for i in np.flatnonzero(broken & good):
                bad.add(path, numbers[i], f"the {column} is not UTF-8")
            good &= ~broken
        text = pc.utf8_trim_whitespace(text)

        # Distinct names are few, so each is made tidy once.
        if column in ("category", "language"):
            encoded = text.dictionary_encode()
            text = pa.array([tidy(name) for name in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
        block[column] = text

        # Without a title or a category, a row teaches nothing. One that is bad already is not counted again.
        if column in ("title", "category"):
            empty = pc.equal(text, "").to_numpy(zero_copy_only=False)
            for i in np.flatnonzero(empty & good):
                bad.add(path, numbers[i], f"no {column}")
            good &= ~empty

    # Files put together from several keep the header of each.
    if header:
        repeated = np.logical_and(*(pc.equal(block[column], tidy(header[column])).to_numpy(zero_copy_only=False)
                                    for column in ("title", "category")))
        for i in np.flatnonzero(repeated & good):
            bad.add(path, numbers[i], "repeats the header")
        good &= ~repeated
    block["line"] = pa.array(numbers)
    return block if good.all() else {column: values.filter(pa.array(good)) for column, values in block.items()}


def given_quality(path, values):
    """Whether each row of a block is marked reliable: [n] bool. Raises UserError for a mark that is not known."""
    import pyarrow.compute as pc
    # An empty mark is allowed, and does not make a row reliable.
    lowered = pc.utf8_lower(values)
    wrong = [value for value in lowered.unique().to_pylist() if value not in ("", "reliable", "unreliable")]
    if wrong:
        raise UserError(f"{path}: label_quality says {wrong[0]!r}; use reliable or unreliable")
    return pc.equal(lowered, "reliable").to_numpy(zero_copy_only=False)


# --- titles alone -----------------------------------------------------------------------------------------------------

class NoBadRows(BadRows):
    """Refuses the first bad row."""

    def __init__(self):
        super().__init__(0)

    def add(self, path, line, what):
        raise UserError(f"{path}:{line}: {what}")

    def empty(self, path, line):
        self.note(path, line, "an empty line in a table is no row, so nothing is written for it")


def read_titles(stream, name, bad, form=None, keep=False):
    """Titles to classify, from a binary stream: (header, blocks), a block being (titles, list of str; kept columns, an
    Arrow table). Every line of a list, and every row of a CSV or Parquet file with a column title (or text), gives one
    title; an empty line does so in a list and in a table of one column. What is kept is the column `id`, where there is
    one, or with `keep` all columns; header names these, and where there are none both are None. Bytes that are not
    UTF-8 become the replacement character, and are noted. Raises UserError where the content is something else.

    form: a Format, where the user has asked for one.
    """
    # A title that cannot be decoded is classified all the same, for every row needs an answer.
    def text(values, numbers):
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            found = [value.decode("utf-8", "replace") for value in values.to_pylist()]
            for number, value in zip(numbers, found, strict=False):
                if "\ufffd" in value:
                    bad.note(name, number, "bytes that are not UTF-8 were replaced; --encoding cp1252 reads what Excel "
                             "writes")
            return pa.array(found, pa.string())

    def columns(found, kept):
        """kept: [(name, key in a block)], or None where a block has the kept columns as they are."""
        for block, numbers in found:
            if kept is None:
                table = block["kept"]
            else:
                table = pa.Table.from_arrays([text(block[key], numbers) for _, key in kept], [one for one, _ in kept])
            yield text(block["title"], numbers).to_pylist(), table if kept != [] else None

    # Parquet describes its columns, so nothing needs to be guessed. Whether there is an id shows in the first block,
    # which is then put back in front.
    names, encoding = form or Format()
    if is_parquet(stream):
        found = read_parquet(stream, name, ("title", "id"), names, bad, keep)
        head = next(found, ({"title": pa.array([], pa.binary())}, []))
        if keep:
            return head[0]["kept"].column_names, columns(found, None)
        kept = [("id", "id")] if "id" in head[0] else []
        return ["id"] if kept else None, columns(itertools.chain([head], found), kept)

    # What the first lines show decides how the rest is read.
    wait = files.is_patient(stream)
    blocks = line_blocks(files.decoded(stream, encoding, name), name, bad, wait)
    head = next(blocks, (1, b""))
    lines = head[1].decode("utf-8", "replace").split("\n")[:SNIFFED]

    # Lines of these formats would pass for titles, and get categories that mean nothing.
    if format_of(lines[0].strip()) != "text" or re.match("<(?:[?!]|rss|html)", lines[0]):
        raise UserError(f"{name}:1: JSON, XML or labels; give titles, one a line, or CSV with a title column")

    # A table is told by a title column. With `keep` columns go by their position, for a header may name two alike.
    first, delimiter, behind = take_header(itertools.chain([head], blocks))
    table = read_table(first, name, ("title", "id"), names, delimiter)
    if "title" in table.columns:
        kept = [("id", "id")] if "id" in table.columns else []
        if keep:
            kept = [(column, position) for position, column in enumerate(table.header)]
            table = table._replace(columns=table.columns | {position: position for _, position in kept})
        return [column for column, _ in kept] or None, columns(read_csv(behind, table, bad), kept)

    # Without one these are titles, unless the user, the file's name or the lines speak for a table.
    if (names["title"] != COLUMNS["title"] or re.search(r"\.[ct]sv(\.|$)", str(name), re.IGNORECASE)
            or looks_like_a_table(lines)):
        raise UserError(f"{name}:1: no title (or text) column in the header ({first[:80]}); name the column of titles "
                        "with --title-column")
    if keep:
        raise UserError(f"{name}: a list of titles; --keep goes with a table, whose header names the column of titles")

    # In a list every line is a title as it stands, the first one, too: quotes and delimiters mean nothing.
    def listed():
        for number, block in itertools.chain([head] if head[1] else [], blocks):
            yield text(data.binary_array(block.split(b"\n")[:-1]), itertools.count(number)).to_pylist(), None

    return None, listed()


def looks_like_a_table(lines):
    """Whether lines are rows of a table rather than titles: the first names columns that we know, or all have as many
    fields as it has, and there are some."""
    lines = [line for line in lines if line.strip()]

    # Bars, and above all commas, occur in titles, too, so they must divide more fields or lines.
    for delimiter, least_fields, least_lines in (("\t", 2, 2), (";", 2, 2), ("|", 3, 2), (",", 3, 3)):
        fields = [quoted_fields(line, delimiter) for line in lines]
        names = {name.strip().lower() for name in fields[0]} if lines else set()
        if len(names) > 1 and names & {"id", "label_quality", *COLUMNS["category"]}:
            return True
        if len(lines) >= least_lines and len(fields[0]) >= least_fields and len({*map(len, fields)}) == 1:
            return True
    return False
