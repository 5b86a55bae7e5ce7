"""Columns beside the title: from the values of training rows to what a value means, a line of columns.txt for each.

classify.Column reads such a line, and makes numbers of values. Which columns a file has (sources.py), and vectors of
values (model.py) do not belong here.
"""
import json
import math
from collections import Counter

import numpy as np

import classify
import data
from titles import formats, sources
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
STEPS = 16     # that the numbers of a column are cut into, of equally many training rows
NUMBERS = 0.8  # of a column's values, the share that tells that it has numbers
CODE = 9       # digits from which on whole numbers are names, such as those of bar codes


def require_distinct(columns):
    """Raise UserError where two of the --columns, [(name, kind)], mean one."""
    keys = [classify.name_key(name) for name, _ in columns]
    if twice := [name for (name, _), key in zip(columns, keys, strict=True) if keys.count(key) > 1]:
        raise UserError(f"--columns {' '.join(twice)}: the same column twice")


def choose(rows, split, args, base, bad):
    """(lines of columns.txt, those of the base or made of the training rows; [N, K] the id of each value). What is odd
    about a column is noted in `bad`, or raises UserError."""
    lines, ids = [], []
    for i, ((name, kind), texts) in enumerate(zip(args.columns, rows.texts, strict=True)):
        # Distinct texts, how many rows have each, and how many of these train; one that is missing tells nothing.
        found, codes = [*texts.index], rows.values[:, i]
        times, train = (np.bincount(mine, minlength=len(found)) for mine in (codes, codes[split == 0]))
        told = [(text, n) for text, n in zip(found, train.tolist(), strict=True) if text and n]
        if not (told or base):
            header = sources.header_names(rows.paths[0], formats.format_from(args))
            raise UserError(f"--columns {name}: no training row has a value there" + (
                "" if any(text is not None for text in found) else
                f", or {rows.paths[0]} has no such column, or several: {', '.join(header)[:200]}"))
        lines.append(base.columns[i] if base else line_of(name, kind, told, args.value_min_count, bad))
        *_, column = classify.columns_of(lines)
        of_text = column.ids([classify.ABSENT if text is None else text for text in found])
        ids.append(of_text[codes])

        # What is no number among numbers is missing.
        wrong = np.array([bool(text) for text in found], bool) & (of_text == column.first)
        if column.kind == "number" and wrong.any():
            row = int(np.argmax(wrong[codes]))
            file = int(np.searchsorted(np.cumsum(rows.of_file), row, "right"))
            bad.note(rows.paths[file], int(rows.line[row]), classify.NO_NUMBER.format(name, found[codes[row]][:40]),
                     int(times[wrong].sum()))
        if len(told) == 1:
            bad.note(f"--columns {name}", None, "all training rows that have a value have the same; that says nothing")
        if column.kind == "word" and not column.values:
            bad.note(f"--columns {name}", None, f"no value has {args.value_min_count} training rows; all are unknown")
    largest = max([0, *(int(one.max(initial=0)) for one in ids)])
    return lines, classify.stacked(ids, len(rows.key)).astype(data.smallest_uint(largest)) if ids else None


def line_of(name, kind, told, min_count, bad):
    """The line of columns.txt of a column with this name and kind (None: told by its values; number. and number, say
    the decimal sign, too), whose training rows have these values: [(text, number of rows)]."""
    texts, times = zip(*told, strict=True)
    times, numbers = np.array(times), np.full(len(texts), np.nan)
    if kind != "word":
        decimal = kind[len("number"):] if kind else ""
        decimal = decimal or decimal_of(name, told, bad)
        numbers = np.array([classify.number_of(text, decimal) for text in texts])
    is_number = ~np.isnan(numbers)
    if kind is None:
        is_code = np.array([text.isdecimal() and (len(text) >= CODE or (len(text) > 1 and text[0] == "0"))
                            for text in texts])
        share = times[is_number & ~is_code].sum() / times.sum()
        kind = "number" if share >= NUMBERS else "word"
    if kind != "word":
        kind = "number"
        if not is_number.any():
            raise UserError(f"--columns {name}: no training row has a number there, but such as {texts[0][:40]!r}")
        values = np.repeat(numbers[is_number], times[is_number])
        borders = np.unique(np.quantile(values, np.arange(1, STEPS) / STEPS, method="higher"))
        borders = borders[borders > values.min()]  # below the least there is nothing
        return json.dumps({"name": name, "kind": kind, "decimal": decimal, "borders": borders.tolist()})

    # Spellings of one value count together.
    count = Counter()
    for text, n in told:
        count[classify.word_key(text)] += n
    known = sorted((key for key, n in count.items() if n >= min_count and key), key=lambda key: (-count[key], key))
    return json.dumps({"name": name, "kind": kind, "values": known}, ensure_ascii=False)


def decimal_of(name, told, bad):
    """The decimal sign of a column of numbers, by those of its values [(text, number of rows)] that tell it. Where none
    does, a sign before three digits is more often between thousands; then a note in `bad` says so."""
    certain, likely = Counter(), Counter()
    for text, n in told:
        sign, is_certain = classify.decimal_sign(text)
        if sign and not math.isnan(classify.number_of(text, sign)):
            (certain if is_certain else likely)[sign if is_certain else ".,".replace(sign, "")] += n
    decimal = max(certain or likely, key=(certain or likely).get, default=".")
    if likely and not certain:
        bad.note(f"--columns {name}", None, "nothing tells whether the sign before three digits, as in 1.299, stands "
                 f"before a fraction; it is taken to divide thousands; {name}:number. or {name}:number, names the "
                 "decimal sign")
    return decimal


def said_of(line):
    """A column as a text, for people."""
    column = classify.Column(line, 1)
    if column.kind == "word":
        return f"{column.name}: words, {len(column.values):,} values"
    sign = "point" if column.decimal == "." else "comma"
    return f"{column.name}: numbers (decimal {sign}), {len(column.borders) + 1} steps"
