"""Rows out of any file of titles: labelled rows, and titles to classify, with what their columns say made sure of.

Labelled rows are read with `read_labelled`, titles to classify with `read_titles`; both take blocks of columns from
formats.py. What a title means to a model (words, ids) does not belong here, and neither does which files make a data
set.
"""
import functools
import itertools
import re

import numpy as np
import pyarrow as pa

import classify
import data
from titles import files, formats
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
LEVELS = 50                    # of a category that is a path at most
LEVEL_MISSING = "a level between others, or at the top, is empty and left out"  # of a path
OWN_PATH = classify.PATH.replace(">", "\u203a")  # a path as the name of a level
OWN_SIGN = "a level has a > of its own, which is written \u203a, for > stands between levels"
ONLY_TRAINED = "train-only"    # what a column `split` says of rows that were chosen to be labelled
IF_TABLE = "if it is a table"  # keep its columns


# --- labelled rows ----------------------------------------------------------------------------------------------------

def read_labelled(path, bad, form=None):
    """Yield blocks of a file's labelled rows: {"title": Arrow string array, "category": its name made tidy, "spelling":
    its name as it came, "line": number, and, where the file has them, "language", "quality", "split", "id", "group"
    and the `value_key`s of the form, null where a row of JSON lacks one}, each with one entry a row. Parts of a
    title are one, with a classify.BORDER between. Where some category is a path, as flags or a list of JSON or Parquet
    have it, `path` says which are [n] bool; such a category, and its spelling, is its levels made tidy, with
    classify.PATH between. Rows that lack a title or a category, or that are not UTF-8, go to `bad`, which counts those
    without a category apart where a form says that there may be some. Raises UserError where the file cannot be read
    at all. form: a Format, where the user has asked for one.
    """
    from tqdm import tqdm
    form, header = form or formats.Format(), {}
    names, encoding = form.names, form.encoding
    files.require_file(path)
    # The bar counts bytes as they lie on the disk, for nobody knows how many a compressed file unpacks to.
    with open(path, "rb") as raw, files.archive_errors(path), tqdm(
            desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as bar:
        stream = files.decompressed(raw)
        # Whatever the format, blocks of it are columns of bytes with line numbers, and `clean` does the rest.
        if formats.has_columns(stream):
            opened = formats.open_columns(stream, path, bad)
            columns = formats.require_columns(opened[0].names, path, names, names)
            formats.note_columns(opened[0].names, columns, form, path, bad)
            found = formats.read_columns(opened, path, columns, bad)
        else:
            blocks = formats.line_blocks(files.decoded(stream, encoding, path), path, bad)
            head = next(blocks, (1, b""))
            first, behind = formats.take_header(itertools.chain([head], blocks), path)
            if (kind := formats.format_of(first)) == "text":
                table = formats.read_table(first, path, names, names)
                formats.require_columns(table.header, path, names, names, f"{first[:80]!r} (JSON lines and fastText's "
                                "__label__ lines are read too)")
                # The names as this header spells them: rows that repeat it are told by these.
                header = {column: table.header[position] for column, position in table.columns.items()}
                if form.is_tree:
                    levels = [before_levels(name.encode(), form.separator) for column, name in header.items()
                              if formats.is_level(column)]
                    header["category"], _ = read_path(b"".join(levels).decode())
                formats.note_columns(table.header, table.columns, form, path, bad)
                found = formats.read_csv(behind, table, bad)
            else:
                parse = formats.parse_fasttext if kind == "fasttext" else functools.partial(
                    formats.parse_json, names=names)
                found = formats.read_lines(itertools.chain([head], blocks), path, parse, bad)
            if kind != "json":  # which alone may have lists
                found = ((block | {"category": formats.without_border(block["category"])}, numbers)
                         for block, numbers in found)
        for block, numbers in found:
            bar.update(raw.tell() - bar.n)
            formats.note_gaps(block, numbers, form, path, bad)
            block = with_paths(block, form) if form.is_tree else block
            if form.partly:
                block, numbers = labelled_part(block, numbers, bad)
            yield clean(block, numbers, path, bad, header)


def first_line(path, encoding="utf-8"):
    """The first line of a file, as text, which tells the format; None where it is Parquet or a workbook."""
    files.require_file(path)
    with open(path, "rb") as raw, files.archive_errors(path):
        stream = files.decompressed(raw)
        if formats.has_columns(stream):
            return None
        return formats.take_header(formats.line_blocks(files.decoded(stream, encoding, path), path), path)[0]


def has_categories(path, form=None):
    """Whether the rows of a file have a category, by its first line or its schema."""
    form = form or formats.Format()
    first = first_line(path, form.encoding) or ""
    # That the name occurs is enough here; whether the line is sound shows when the rows are read.
    if formats.format_of(first) == "json":
        return any(f'"{name}"' in first for known in form.names["category"] for name in known)
    return formats.format_of(first) == "fasttext" or "category" in formats.locate(
        header_names(path, form), ("category",), form.names)


def labelled_part(block, numbers, bad):
    """The rows of a block of columns of bytes that have a category, and their numbers; `bad` counts the others."""
    encoded = block["category"].dictionary_encode()
    named = [bool(formats.tidy(name.decode("utf-8", "replace"))) for name in encoded.dictionary.to_pylist()]
    has = np.array(named, bool)[encoded.indices.to_numpy()]
    bad.unlabelled += int((~has).sum())
    return formats.filtered(block, has), numbers[has]


def clean(block, numbers, path, bad, header):
    """The cleaning step of all formats: columns of bytes become trimmed text, categories and languages tidy, and rows
    that are not UTF-8, lack a title or a category, or repeat the `header` ({column: its name}) go to `bad` instead.
    Returns {column: Arrow string array}, with `spelling`, the categories as they came, and `line`."""
    import pyarrow.compute as pc
    cleaned, good = {}, np.ones(len(numbers), bool)

    def refuse(wrong, what):
        # A row that is bad already is not counted again.
        for i in np.flatnonzero(wrong & good):
            bad.add(path, numbers[i], what)
        good[wrong] = False

    for column, values in block.items():
        text, broken = as_text(values, "ignore")
        if column != "id":
            refuse(broken, f"the {column} is not UTF-8")

        # Distinct names are few, so each is made tidy once.
        if column == "category":
            found, too_deep = tidy_categories(text, numbers, path, bad)
            refuse(too_deep, f"the category has more than {LEVELS} levels")
            cleaned |= found
            continue
        if column == "language":
            encoded = text.dictionary_encode()
            names = [formats.tidy(name) for name in encoded.dictionary.to_pylist()]
            text = pa.array(names, pa.string()).take(encoded.indices)
        cleaned[column] = pc.utf8_trim_whitespace(text)

    # Files put together from several keep the header of each.
    repeated = header and np.logical_and(*(np.asarray(pc.equal(cleaned[column], formats.tidy(header[column])))
                                           for column in ("title", "category")))

    # Without a title or a category, a row teaches nothing.
    parts = [column for column in cleaned if formats.is_title(column)]
    cleaned["title"] = joined_titles([cleaned[column] for column in parts])
    for column in ("title", "category"):
        refuse(np.asarray(pc.equal(cleaned[column], "")), f"no {column}")
    if header:
        refuse(repeated, "repeats the header")
    for column in parts[1:]:
        del cleaned[column]
    cleaned["line"] = pa.array(numbers)
    return cleaned if good.all() else formats.filtered(cleaned, good)


def before_levels(name, separator):
    """A category as it came, bytes, as a path: a BORDER stands before each level. A list has these already."""
    border = classify.BORDER.encode()
    if name.startswith(border):
        return name
    if not separator:
        return border + name.replace(border, b" ")
    # Spaces at the ends make a separator that has some complete, where it is the last of a row.
    levels = (b" " + name + b" ").split(separator.encode())
    return border + border.join(level.replace(border, b" ") for level in levels)


def with_paths(block, form):
    """A block of columns of bytes whose `category` is a path: the levels of all its columns, from the top, each with a
    BORDER before it."""
    import pyarrow.compute as pc
    parts, columns = [], [*filter(formats.is_level, block)]
    # Where a file has one of several columns alone, that may have paths as we write them.
    separator = form.separator or (classify.PATH if len(columns) == 1 else None)
    for column in columns:
        encoded = block[column].fill_null(b"").dictionary_encode()
        names = [before_levels(name, separator) for name in encoded.dictionary.to_pylist()]
        parts.append(pa.array(names, pa.binary()).take(encoded.indices))
    others = {column: values for column, values in block.items() if not formats.is_level(column)}
    return others | {"category": pc.binary_join_element_wise(*parts, b"")}


def read_path(text):
    """(a path with a BORDER before each level as classify.Tree has it, what is odd about it: a list of str)."""
    levels = [formats.tidy(level) for level in text.split(classify.BORDER)[1:]]
    # What is empty at the end is not known.
    while levels and not levels[-1]:
        levels.pop()
    filled = [level for level in levels if level]
    plain = [re.sub(r"(?<!\S)>(?!\S)", "\u203a", level) for level in filled]
    return classify.PATH.join(plain), [LEVEL_MISSING] * (filled != levels) + [OWN_SIGN] * (plain != filled)


def tidy_categories(text, numbers, path, bad):
    """Of the categories of a block, Arrow strings [n]: (what `read_labelled` gives of them, {"category", "spelling" and
    maybe "path"}; which of them have more than LEVELS levels [n] bool). What is odd about paths is noted in `bad`."""
    import pyarrow.compute as pc
    encoded, too_deep = text.dictionary_encode(), np.zeros(len(text), bool)
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()

    # What people join with tables of their own is the name as it came, but for what would divide a line.
    made = {"category": [formats.tidy(name) for name in names],
            "spelling": [re.sub(r"(?a)\s*[\t-\r]\s*", " ", name).strip(" ") for name in names]}
    is_path = np.array([name.startswith(classify.BORDER) for name in names], bool)
    odd = {}
    for i in np.flatnonzero(is_path).tolist():
        made["category"][i], found = read_path(names[i])
        made["spelling"][i] = made["category"][i]
        for what in found:
            odd.setdefault(what, []).append(i)
    for what, mine in odd.items():
        rows = np.flatnonzero(np.isin(codes, mine))
        bad.note(path, numbers[rows[0]], what, len(rows))
    made = {column: pa.array(values, pa.string()).take(encoded.indices) for column, values in made.items()}
    made["category"] = pc.utf8_trim_whitespace(made["category"])
    if is_path.any():
        made["path"] = pa.array(is_path[codes])
        too_deep = is_path[codes] & (np.asarray(pc.count_substring(made["category"], classify.PATH)) >= LEVELS)
    return made, too_deep


def joined_titles(parts):
    """The parts of titles, Arrow string arrays, as titles: those that are not empty, with a BORDER between them."""
    import pyarrow.compute as pc
    parts = [pc.replace_substring(part, classify.BORDER, " ") for part in parts]
    if len(parts) == 1:
        return parts[0]
    parts = [pc.if_else(pc.equal(pc.utf8_trim_whitespace(part), ""), None, part) for part in parts]
    return pc.binary_join_element_wise(*parts, classify.BORDER, null_handling="skip")


def as_text(values, errors):
    """(Arrow strings of an Arrow array of bytes, which of them are not UTF-8 [n] bool); errors: what str's decode does
    about these."""
    import pyarrow.compute as pc
    # A column is valid as a whole in nearly every block; where it is not, the rows that are at fault are looked for.
    try:
        return values.cast(pa.string()), np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        text = pa.array([value and value.decode("utf-8", errors) for value in values.to_pylist()], pa.string())
        # Decoding drops or replaces what is not UTF-8, so a value that it changes was broken.
        return text, np.asarray(pc.not_equal(text.cast(pa.binary()), values).fill_null(False))


def given_quality(path, values):
    """Whether each row of a block is marked reliable: [n] bool. Raises UserError for a mark that is not known."""
    import pyarrow.compute as pc
    # An empty mark is allowed, and does not make a row reliable.
    lowered = pc.utf8_lower(values)
    wrong = [value for value in lowered.unique().to_pylist() if value not in ("", "reliable", "unreliable")]
    if wrong:
        raise UserError(f"{path}: label_quality says {wrong[0]!r}; use reliable or unreliable")
    return np.asarray(pc.equal(lowered, "reliable"))


# --- titles to classify -----------------------------------------------------------------------------------------------

def read_titles(stream, name, bad, form=None, keep=False):
    """Rows to classify, from a binary stream: (header; blocks, each of them classify.Rows and kept columns, an Arrow
    table; the Dialect of a table). Every line of a list, and every row of a CSV or Parquet file with a column title (or
    text), gives one title; an empty line does so in a list and in a table of one column. What is kept is the column
    `id`, where there is one, or with `keep` all columns, which a list has none of and is then refused unless `keep` is
    IF_TABLE; header names these, and where there are none both are None.
    Bytes that are not UTF-8 become the replacement character, and are noted. Raises UserError where the content is
    something else. form: a Format, where the user has asked for one, or rows have columns.
    """
    form = form or formats.Format()
    # Titles to classify have no category, so the columns of its levels are not missed.
    form = form._replace(names={column: known for column, known in form.names.items() if column == "category"
                                or not formats.is_level(column)})
    if not formats.has_columns(stream):
        return read_text_titles(stream, name, bad, form, keep)

    # Parquet and Excel describe their columns, so nothing needs to be guessed.
    opened = formats.open_columns(stream, name, bad)
    schema = opened[0]
    columns = formats.require_columns(schema.names, name, ("title", "id", *form.beside), form.names)
    formats.note_columns(schema.names, columns, form, name, bad)
    found = formats.read_columns(opened, name, columns, bad, keep)
    if keep:
        return schema.names, decoded_titles(found, name, bad, None, form.columns), formats.Dialect(schema=schema)
    kept = [("id", "id")] if "id" in columns else []
    return ["id"] if kept else None, decoded_titles(found, name, bad, kept, form.columns), formats.Dialect()


def read_text_titles(stream, name, bad, form, keep):
    """As `read_titles`, of a stream of text."""
    # What the first lines show decides how the rest is read.
    (names, encoding, columns, *_), wait = form, files.is_patient(stream)
    stream = files.decoded(stream, encoding, name)
    start = stream.peek(4)
    blocks = formats.line_blocks(stream, name, bad, wait, wait or keep)
    head = next(blocks, (1, b""))
    lines = head[1].decode("utf-8", "replace").split("\n")[:classify.SNIFFED]

    # A table is told by a title column. With `keep` columns go by their position, for a header may name two alike.
    first, behind = formats.take_header(itertools.chain([head], blocks))
    table = formats.read_table(first, name, ("title", "id", *form.beside), names)
    if "title" in table.columns:
        formats.note_columns(table.header, table.columns, form, name, bad)
        kept = [("id", "id")] if "id" in table.columns else []
        if keep:
            kept = [(column, position) for position, column in enumerate(table.header)]
            table = table._replace(columns=table.columns | {position: position for _, position in kept})
        # The header may be in quotes where rows are not, as numbers are not to all programs.
        field = r'"(?:[^"]|"")*+"'
        quoted = re.compile(f"{field}({table.delimiter}{field})*+")
        dialect = formats.Dialect(table.delimiter, all(quoted.fullmatch(line.strip()) for line in lines[:2] if line),
                          "\r\n" if start.partition(b"\n")[0].endswith(b"\r") else "\n", encoding,
                          start.startswith(formats.MARK))
        return ([column for column, _ in kept] or None,
                decoded_titles(formats.read_csv(behind, table, bad), name, bad, kept, columns), dialect)

    # Without one these are titles, unless the user or the lines speak for a table.
    asked = [*map(len, names["title"])] == [1]  # what a flag says is one name, and no other serves
    try:
        classify.require_list(lines, name, asked or (keep and keep != IF_TABLE))
    except classify.ModelError as error:
        raise UserError(str(error)) from None
    if columns:
        bad.note(name, None, classify.ALONE.format(", ".join(column.name for column in columns)))
    listed = list_titles(itertools.chain([head] if head[1] else [], blocks))
    return None, decoded_titles(listed, name, bad, [], columns), formats.Dialect()


def list_titles(blocks):
    """Yield ({"title": Arrow array of bytes}, line numbers) for blocks of a list. Every line is a title as it stands,
    the first one, too: quotes and delimiters mean nothing."""
    for number, block in blocks:
        lines = block.split(b"\n")[:-1]
        yield {"title": data.binary_array(lines)}, np.arange(number, number + len(lines))


def decoded_titles(found, name, bad, kept, columns):
    """Yield blocks as `read_titles` gives them, of columns of bytes with line numbers. kept: [(name of a column, its
    key in a block)], or None where a block has them as they are."""
    def decoded(found, numbers):
        # A title that cannot be decoded is classified all the same, for every row needs an answer.
        text, broken = as_text(found, "replace")
        for number in numbers[broken]:
            bad.note(name, number, "bytes that are not UTF-8 were replaced; if all of it looks so, name its "
                     "encoding: --encoding cp1252 is what Excel writes")
        return text

    for block, numbers in found:
        table = block.get("kept")
        if kept:
            table = pa.Table.from_arrays([decoded(block[key], numbers) for _, key in kept], [one for one, _ in kept])
        titles = joined_titles([decoded(block[column], numbers) for column in block
                                if isinstance(column, str) and formats.is_title(column)])
        keys = [formats.value_key(column.name) for column in columns]
        texts = {key: decoded(block[key], numbers).to_pylist() for key in keys if key in block}
        yield classify.Rows(titles.to_pylist(), value_ids(columns, texts, numbers, name, bad)), table


def value_ids(columns, texts, numbers, name, bad):
    """[N, K] ids of the values of classify.Columns in rows with these line numbers [N] of the file `name`: texts
    {`value_key`: list of str, None where a row lacks the column}. What is no number among numbers is noted in `bad`."""
    ids = []
    for column in columns:
        values = texts.get(formats.value_key(column.name), [None] * len(numbers))
        ids.append(column.ids([classify.ABSENT if text is None else text for text in values]))
        if wrong := column.no_numbers(values, ids[-1]):
            i, text = wrong[0]
            bad.note(name, numbers[i], classify.NO_NUMBER.format(column.name, text[:40]), len(wrong))
    return classify.stacked(ids, len(numbers))


def header_names(path, form):
    """The names of the columns of a file; none where it has no header."""
    if (first := first_line(path, form.encoding)) is None:
        with open(path, "rb") as raw, files.archive_errors(path):
            schema, *_ = formats.open_columns(files.decompressed(raw), path, formats.BadRows(0))
            return schema.names
    return [] if formats.format_of(first) != "text" else formats.read_table(first, path, form.names, form.names).header
