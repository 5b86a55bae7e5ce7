"""Turn raw titles into padded NumPy arrays, a vocabulary and labels: everything train.py reads.

    python prepare.py                                   # what lies in data/raw/, else a SYNTHETIC set (synthetic.py)
    python prepare.py --data titles.csv                 # your own file or folder
    python prepare.py --data train.csv --test test.csv  # with a test set of its own
    python prepare.py --download course                 # fetch the course's Spanish and Portuguese files first

Reads, plain or compressed (gzip, bzip2, xz), told apart by content:
  - CSV or TSV with a header that names `title` (or `text`) and `category` (or `label`), in any order; `language`,
    `label_quality` (reliable, unreliable) and `split` (train, valid, test) are used where present
  - JSON lines with the same names, and fastText files (`__label__x some text`)
  - a folder of such files whose names say train, valid or test
Writes data/prepared/ (its files are described in data.py); a failed run leaves what was there before.
Splits that the source does not give are drawn by --seed, stratified by category: 20 % test, then --valid of the rest;
equal titles stay on one side. Takes about 4 s a million rows on two cores.
"""
import contextlib
import os
import re
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import data
import synthetic
from data import SPLITS, UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
RAW = Path("data/raw")      # where --download writes and where data is looked for without --data
TEST_SHARE = 0.2            # of the rows, where the source gives no test split
TOO_FEW = 5                 # categories with fewer distinct titles are not split: all their rows train
BLOCK = 8 << 20             # bytes of a file in memory at a time, for each thread a few
SYNTHETIC_ROWS = 100_000    # size of the built-in set, unless --rows is given
SYNTHETIC_CATEGORIES = 120

MELI = "https://meli-data-challenge.s3.amazonaws.com"
COURSE = "https://cs.famaf.unc.edu.ar/~ccardellino/resources/diplodatos"
DOWNLOADS = {  # name -> (server folder, {file: size in bytes where it is known})
    "meli": (MELI, {"train.csv.gz": 691_651_384, "test.csv": None, "sample_submission.csv": None}),
    "course": (COURSE, {"meli-challenge-2019.tar.bz2": None}),
}

COLUMNS = {"title": ("title", "text"), "category": ("category", "label"), "language": ("language",),
           "quality": ("label_quality",), "split": ("split",)}
SPLIT_NAMES = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
WRITTEN = re.compile(r"(train|valid|test)_(titles|rare|labels|language|reliable)\.npy|(train|valid|test)_text\.txt|"
                     r"(vocab|rare|labels)\.txt|vectors\.npy|meta\.json")  # what may stand in --out when it is replaced
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")
SUFFIX = re.compile(r"\.(csv|tsv|jsonl|json|txt)(\.(gz|bz2|xz))?$", re.IGNORECASE)


# --- download ---------------------------------------------------------------------------------------------------------

def download(url, path, size=None):
    """Fetch `url` to `path` through `path`.part, going on where a broken download stopped. Returns path.

    Raises UserError when the server cannot be reached or what came has not the announced (or given) size.
    """
    import http.client
    import urllib.error
    import urllib.request

    from tqdm import tqdm
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            have = have if answer.status == 206 else 0  # the server may send the whole file again
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else size
            with open(part, "ab" if have else "wb") as file, tqdm(
                    desc=path.name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing left to send, .part is complete or not this file; its size decides
            raise UserError(f"{url}: the server says {error.code} {error.reason}") from None
        total = int((error.headers.get("Content-Range") or "/-1").rpartition("/")[2])
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); try again, or put the file "
                        f"into {path.parent}/ yourself") from None
    for expected in (total, size):
        if expected is not None and part.stat().st_size != expected:
            raise UserError(f"{part}: {part.stat().st_size:,} bytes instead of {expected:,}; run again to go on, or "
                            "delete it to start over")
    part.replace(path)
    return path


def unpack(archive, folder):
    """Unpack a tar archive into `folder`, refusing members that would land outside it, devices and such."""
    import tarfile
    advice = "delete it and fetch it again"
    try:
        with data.reading(archive, advice), open(archive, "rb") as file, data.folder_beside(folder) as beside:
            stream = data.decompressed(file)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(beside, filter="data")
            while stream.read(1 << 20):  # what is broken behind the last member shows
                pass
    except tarfile.TarError as error:
        raise UserError(f"{archive}: not a sound tar archive ({error}); {advice}") from None


def fetch(name, mirror):
    """Download and unpack a public data set; returns the folder or file to prepare."""
    server, files = DOWNLOADS[name]
    paths = [download(f"{mirror or server}/{file}", RAW / name / file, size) for file, size in files.items()]
    for path in paths:
        if path.suffixes[-2:] == [".tar", ".bz2"] and not (RAW / name / "unpacked").exists():
            unpack(path, RAW / name / "unpacked")
    return RAW / name


# --- which files ------------------------------------------------------------------------------------------------------

def split_of(path):
    """The split that a file's name tells (0, 1, 2 as in SPLITS), or None."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def labelled(first):
    """Whether the rows of a file with this first line have a category."""
    if first.startswith("{"):
        return any(f'"{key}"' in first for key in COLUMNS["category"])
    _, names = data.read_header(first, set(COLUMNS["title"]).intersection)
    return first.startswith("__label__") or bool(set(COLUMNS["category"]).intersection(names))


def find_files(folder):
    """[(path, split or None)] of the data set in a folder; raises UserError when it holds none or several."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and SUFFIX.search(path.name)
                   and ".tmp-" not in str(path.relative_to(folder)))  # what a killed download left
    named = [(path, split_of(path)) for path in files if split_of(path) is not None]
    for path, split in named.copy():
        if split == 2 and not labelled(first_line(path)):
            print(f"{path}: has no category column, so it is no test split (python evaluate.py --predict reads it)")
            named.remove((path, split))
    if named and not any(split == 0 for _, split in named):
        raise UserError(f"{folder}: has no training file (no name says train); name one with --data")
    found = named or [(path, None) for path in files]
    if not found:
        raise UserError(f"{folder}: no .csv, .tsv, .jsonl or .txt file here")
    plain = {SUFFIX.sub(r".\1", str(path)) for path, _ in found}  # the same file, compressed and not, is two sets
    if len({path.parent for path, _ in found}) > 1 or (not named and len(found) > 1) or len(plain) < len(found):
        raise UserError(f"{folder}: holds several data sets ({', '.join(str(path) for path, _ in found[:4])}, ...); "
                        "choose with --data")
    return found


# --- reading ----------------------------------------------------------------------------------------------------------

class BadRows:
    """Counts rows that had to be skipped, and remembers the first."""

    def __init__(self, limit):
        self.limit, self.count, self.first = limit, 0, None

    def add(self, path, row, what, rows=1):
        self.first = self.first or f"{path}:{row}: {what}"
        self.count += rows

    def check(self, rows):
        """Raise UserError if the skipped rows are more than the limit (a share of all rows, or a number from 1 on)."""
        limit = self.limit if self.limit >= 1 else self.limit * (rows + self.count)
        if self.count > limit:
            raise UserError(f"{self.first} ({self.count:,} bad rows of {rows + self.count:,}; mend them, or allow so "
                            "many with --max-bad-rows)")


def read_source(path, bad):
    """Yield blocks of a file's rows: {"title": pyarrow string array, "category": ..., and, where the file has them,
    "language", "quality", "split"}, each with one entry a row. Rows without title or category are left out."""
    from tqdm import tqdm
    first = first_line(path)
    with open(path, "rb") as raw, data.reading(path), tqdm(
            desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as bar:
        stream = data.decompressed(raw)
        if first.startswith("{"):
            blocks = read_lines(path, stream, bad, parse_json)
        elif first.startswith("__label__"):
            blocks = read_lines(path, stream, bad, parse_fasttext)
        else:
            blocks = read_csv(path, stream, bad, first)
        for block in blocks:
            bar.update(raw.tell() - bar.n)
            yield block


def require_file(path):
    if not path.is_file():
        raise UserError(f"{path}: not a file" if path.exists() else f"{path}: no such file")


def first_line(path):
    """The first line of a file that may be compressed; it tells the format."""
    require_file(path)
    with open(path, "rb") as raw, data.reading(path):
        first = data.decompressed(raw).readline(BLOCK).decode("utf-8-sig", "replace").strip(" \r\n")
    if not first:
        raise UserError(f"{path}: empty file, or its first line is empty")
    return first


def parse_json(line):
    import json
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return {name: next((str(fields[key]) for key in keys if fields.get(key) is not None), "")
            for name, keys in COLUMNS.items()}


def parse_fasttext(line):
    label, title = [*line.split(None, 1), "", ""][:2]
    if not label.startswith("__label__"):
        raise ValueError("does not start with __label__")
    if title.startswith("__label__"):
        raise ValueError("has several labels; keep one")
    return {"title": title, "category": label.removeprefix("__label__")}


def read_lines(path, stream, bad, parse, rows=50_000):
    """Blocks of a file with one record a line."""
    import pyarrow as pa

    def arrays(block):
        return {name: pa.array([fields[name] for fields in block], pa.string()) for name in block[0]}

    block, size = [], 0
    for number, line in enumerate(data.lines(stream, path), 1):
        size += len(line)
        try:
            fields = parse(line.decode("utf-8-sig"))
            fields = {name: value.encode("utf-8", "replace").decode().strip() for name, value in fields.items()}
            if not (fields["title"] and fields["category"]):
                raise ValueError("no title" if fields["category"] else "no category")
            block.append(fields)
        except (ValueError, RecursionError) as error:
            if line.strip():
                bad.add(path, number, f"{error}")
        if block and (len(block) == rows or size > BLOCK):
            yield arrays(block)
            block, size = [], 0
    if block:
        yield arrays(block)


def read_csv(path, stream, bad, header):
    """Blocks of a CSV or TSV file (also with semicolons); `header` is its first line."""

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    def locate(names):
        return {name: [names.index(key) for key in keys if key in names] for name, keys in COLUMNS.items()}

    delimiter, names = data.read_header(header, lambda names: all(map(locate(names).get, ("title", "category"))))
    places = locate(names)
    for name in ("title", "category"):
        if len(places[name]) != 1 or names.count(names[places[name][0]]) != 1:
            raise UserError(f"{path}:1: the header needs one column {' or '.join(COLUMNS[name])}, and says "
                            f"{header[:80]!r} (JSON lines and fastText's __label__ lines are read too)")
    row = 1  # the number of the last row yielded; first the header's
    skipped = []  # numbers of rows behind it that Arrow could not parse

    def skip(row):
        skipped.append(row.number)
        lines = 1 + row.text.count("\n")  # an unclosed quote swallows what follows: each line of it is a bad row
        bad.add(path, row.number, f"{row.actual_columns} columns instead of {row.expected_columns}" + (
            f" in {lines:,} lines; is a quote unclosed?" if lines > 1 else ""), lines)
        return "skip"

    columns = {name: str(place[0]) for name, place in places.items() if place}
    binary = dict.fromkeys(columns.values(), pa.binary())
    unreadable = []  # Arrow decodes a row before it calls `skip`, and where it cannot, Python would print a traceback
    hook, sys.unraisablehook = sys.unraisablehook, unreadable.append
    try:
        blocks = pyarrow.csv.open_csv(
            stream, pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, skip_rows=1,
                                            column_names=[str(i) for i in range(len(names))]),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            pyarrow.csv.ConvertOptions(column_types=binary, include_columns=list(columns.values())))
        for batch in blocks:
            numbers = np.arange(row + 1, row + 1 + len(batch) + len(skipped))
            numbers = np.setdiff1d(numbers, skipped)[:len(batch)] if skipped else numbers
            row = numbers[-1] if len(batch) else row
            skipped[:] = [number for number in skipped if number > row]  # Arrow may have parsed ahead
            block = {name: batch.column(place) for name, place in columns.items()}
            good = np.ones(len(batch), bool)
            for name, values in block.items():
                try:
                    text = values.cast(pa.string())
                except pa.ArrowInvalid:
                    decoded = [value.decode("utf-8", "ignore") for value in values.to_pylist()]
                    text = pa.array(decoded, pa.string())
                    broken = pc.not_equal(text.cast(pa.binary()), values).to_numpy(zero_copy_only=False)
                    for i in np.flatnonzero(broken & good):
                        bad.add(path, numbers[i], f"the {name} is not UTF-8")
                    good &= ~broken
                block[name] = text = pc.utf8_trim_whitespace(text)
                if name in ("title", "category"):
                    empty = pc.equal(text, "").to_numpy(zero_copy_only=False)
                    for i in np.flatnonzero(empty & good):
                        bad.add(path, numbers[i], f"no {name}")
                    good &= ~empty
            yield block if good.all() else {name: values.filter(pa.array(good)) for name, values in block.items()}
    except pa.ArrowInvalid as error:
        if str(error).startswith("Could not skip"):  # a header without a line end, and nothing behind it
            return
        if unreadable:
            raise UserError(f"{path}:{row + 1}: not UTF-8 (in this row or a later one); save it as UTF-8") from None
        raise UserError(f"{path}:{row + 1}: {str(error).partition(' Row')[0]} (in this row or a later one; is a quote "
                        "unclosed?)") from None
    finally:
        sys.unraisablehook = hook


# --- from files to numbered words -------------------------------------------------------------------------------------

class Codes:
    """Numbers strings in the order in which they come."""

    def __init__(self):
        self.index = {}

    def __call__(self, values):
        """values [N], a pyarrow string array -> [N] codes, of the smallest unsigned type up to here."""
        encoded = values.dictionary_encode()
        codes = self.number([" ".join(name.split()) for name in encoded.dictionary.to_pylist()])
        return codes.astype(data.smallest_uint(len(self.index)))[encoded.indices.to_numpy()]

    def number(self, names):
        index = self.index
        return np.array([index.setdefault(name, len(index)) for name in names], np.int32)

    def alphabetical(self):
        """(names in alphabetical order, [len(names)] their places by code)."""
        names = sorted(self.index)
        places = np.empty(len(names), np.int64)
        places[[self.index[name] for name in names]] = np.arange(len(names))
        return names, places


def ahead(pool, function, items, depth):
    """Like map, with up to `depth` calls under way in the pool, and the next item; results in order."""
    waiting, items, end = deque(), iter(items), object()
    coming = pool.submit(next, items, end)
    while (item := coming.result()) is not end:
        coming = pool.submit(next, items, end)
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def ingest(sources, scratch, text, languages, limit, max_len, threads, bad):
    """Read every source once, tokenize in threads, and write the first max_len words of each title to the file
    `scratch`, as int32 numbers in order of appearance, and the title to the file `text` as a line, so that memory does
    not grow with the titles.

    Args: sources [(path, split or None)]; languages, those to keep, or None; limit, rows of training data at most.
    Returns: a dictionary of arrays with one entry a row (label, language, reliable, split, key, length in words up to
    max_len; None where the source says nothing) and with `blocks`, for `written`, and the numbers of `words` before
    titles are cut, of titles to be `cut` and of rows `read`, kept or not; the Codes of words, labels and languages.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    words, labels, names = Codes(), Codes(), Codes()
    parts = {kind: [] for kind in ("label", "language", "reliable", "split", "key", "length")}
    blocks, all_words, cut = [], 0, 0
    known = set()
    mix = np.random.default_rng(0).integers(1, 1 << 63, max_len, np.uint64) | np.uint64(1)
    left, seen = limit, 0

    def read():
        nonlocal left, seen
        for path, split in sources:
            for block in read_source(path, bad):
                seen += len(block["title"])
                if languages:
                    if "language" not in block:
                        raise UserError(f"{path}: has no language column, which --languages needs")
                    block = filtered(block, pc.is_in(block["language"], pa.array(languages)))
                if split in (None, 0) and left is not None:
                    block = {name: values[:left] for name, values in block.items()}
                    left -= len(block["title"])
                yield path, split, block
                if split in (None, 0) and left == 0:
                    break

    def filtered(block, mask):
        return {name: values.filter(mask) for name, values in block.items()}

    def tokenized(item):
        titles = item[2]["title"]
        codes, distinct, lengths = data.bulk_tokenize(titles)
        place = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        codes, place = codes[place < max_len], place[place < max_len]
        return *item, lines(titles), codes, distinct, lengths, mix[place]

    with ThreadPoolExecutor(threads + 1) as pool:
        for path, split, block, line, codes, distinct, lengths, factor in ahead(
                pool, tokenized, read(), 2 * threads):
            rows = len(lengths)
            numbers = words.number(distinct)[codes]
            scratch.write(numbers)
            text.write(line)
            blocks.append((rows, len(codes), len(line)))
            all_words, cut = all_words + lengths.sum(), cut + (lengths > max_len).sum()
            lengths = np.minimum(lengths, max_len)
            sums = np.zeros(len(codes) + 1, np.uint64)
            np.cumsum((1 + numbers).astype(np.uint64) * factor, out=sums[1:])
            sums = sums[np.cumsum(lengths)]
            parts["key"].append(np.diff(sums, prepend=sums.dtype.type(0)))  # equal titles, equal keys (mod 2^64)
            parts["length"].append(lengths.astype(data.smallest_uint(max_len)))
            parts["label"].append(labels(block["category"]))
            known.update(name for name in ("language", "quality")
                         if name in block and pc.any(pc.not_equal(block[name], "")).as_py())
            none = pa.array([""] * rows, pa.string())
            parts["language"].append(names(block.get("language", none)))
            if len(names.index) > 256:
                raise UserError(f"{path}: more than 256 languages; rename the column if it holds something else")
            parts["reliable"].append(pc.equal(block.get("quality", none), "reliable").to_numpy(zero_copy_only=False))
            told = given_splits(path, block["split"]) if "split" in block else np.full(rows, -1, np.int8)
            if split is not None and len(other := told[(told >= 0) & (told != split)]):
                raise UserError(f"{path}: its split column names {SPLITS[other[0]]} rows, but --test or the file's "
                                f"name makes it the {SPLITS[split]} split; drop the column, or leave --test away")
            parts["split"].append(told if split is None else np.full(rows, split, np.int8))
    arrays = {kind: np.concatenate(parts.pop(kind)) if blocks else np.zeros(0) for kind in list(parts)}
    if "language" not in known:
        arrays["language"] = None
    if "quality" not in known:
        arrays["reliable"] = None
    return arrays | {"blocks": blocks, "words": int(all_words), "cut": int(cut), "read": seen}, words, labels, names


def lines(titles):
    """The titles as bytes, one a line."""
    import pyarrow as pa
    import pyarrow.compute as pc
    ended = pc.binary_join_element_wise(titles.cast(pa.binary()), b"", b"\n")
    offsets = np.frombuffer(ended.buffers()[1], np.int32)
    text = ended.buffers()[2].to_pybytes()[:offsets[len(titles)]] if len(titles) else b""
    if text.count(b"\n") > len(titles) or b"\r" in text:
        text = lines(pc.replace_substring_regex(titles, r"[\r\n]+", " "))
    return text


def given_splits(path, values):
    codes = {value: SPLIT_NAMES.get(value.lower(), -1) for value in values.unique().to_pylist()}
    wrong = [value for value, code in codes.items() if value and code < 0]
    if wrong:
        raise UserError(f"{path}: the split column says {wrong[0]!r}; use train, valid or test")
    return np.array([codes[value] for value in values.to_pylist()], np.int8)


# --- splits, vocabulary, vectors --------------------------------------------------------------------------------------

def number_equal(keys):
    """keys [N] -> [N] int32, equal numbers for equal keys, in the order of the keys; np.unique's inverse in a third of
    the memory."""
    order = np.argsort(keys)
    keys = keys[order]
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(np.concatenate([[False], keys[1:] != keys[:-1]]), dtype=np.int32)
    return numbers


def draw_splits(labels, groups, given, valid_share, seed):
    """Which split each row belongs to: [N] int8 indices into SPLITS.

    Rows with a given split keep it, but a split that the source does not name is drawn from the training rows:
    stratified by category, equal titles (equal groups) together, under the category of the first of them.
    """
    pool = given <= 0
    members, drawable = groups[pool], np.zeros(groups.max() + 1, bool)
    drawable[members] = True
    category = np.zeros(len(drawable), labels.dtype)
    category[members[::-1]] = labels[pool][::-1]
    size = np.bincount(category[drawable])
    test = np.round(TEST_SHARE * size) if not (given == 2).any() else 0 * size
    valid = np.maximum(1, np.round(valid_share * (size - test))) if not (given == 1).any() else 0 * size
    test, valid = np.where(size < TOO_FEW, 0, (test, valid)).astype(np.int64)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(drawable).astype(groups.dtype))
    order = order[np.argsort(category[order], kind="stable")]  # by category, in each as shuffled
    side = np.zeros(len(drawable), np.int8)
    side[order] = np.repeat(np.tile(np.array([2, 1, 0], np.int8), len(size)),
                            np.stack([test, valid, size - test - valid], 1).ravel())
    split = np.maximum(given, 0)
    split[pool] = side[members]
    return split


def choose_words(words, counts, used, min_count, largest):
    """The vocabulary: (list of words after SPECIALS, most frequent first, equals in alphabetical order; list of the
    other words that are used; [len(words)] id in the two lists on end of each word number of `ingest`).
    counts [len(words)]: how often each number comes in training; used [len(words)] bool: whether in any split."""
    names, places = words.alphabetical()
    count = np.empty_like(counts)
    count[places] = counts
    order = np.argsort(-count, kind="stable")[:(count >= max(1, min_count)).sum()][:largest]
    rare = np.zeros(len(names), bool)
    rare[places] = used
    rare[order] = False
    ids = np.full(len(names), data.UNKNOWN)
    rare = np.flatnonzero(rare)
    ids[np.concatenate([order, rare])] = len(data.SPECIALS) + np.arange(len(order) + len(rare))
    return data.SPECIALS + [names[i] for i in order.tolist()], [names[i] for i in rare.tolist()], ids[places]


def read_vectors(path, vocab, bad):
    """Pretrained vectors of the vocabulary's words, streamed from a word2vec, GloVe or fastText text file.

    A word written in capitals or with accents serves the normalized word too, unless that has a vector of its own.
    Returns: [len(vocab), dim] float32, zero rows for words without a vector. Lines that do not parse go to `bad`.
    """
    index = {word: i for i, word in enumerate(vocab) if i >= len(data.SPECIALS)}
    vectors, exact, dim, rows = None, np.zeros(len(vocab), bool), None, 0
    require_file(path)
    with open(path, "rb") as raw, data.reading(path):
        for number, line in enumerate(data.lines(data.decompressed(raw), path), 1):
            fields = line.decode("utf-8", "replace").rstrip().split(" ")
            if number == 1 and len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                dim = int(fields[1])  # word2vec's header: words, dim
                continue
            if vectors is None:
                dim = dim or len(fields) - 1
                if dim < 1:
                    raise UserError(f"{path}:{number}: no vector here; wanted: a word and its numbers on each line")
                vectors = np.zeros((len(vocab), dim), np.float32)
            rows += 1
            word, numbers = " ".join(fields[:-dim]), fields[-dim:]
            normal = word if word in index else "".join(data.tokenize(word))
            place = index.get(normal)
            try:
                if len(fields) <= dim or (len(fields) > dim + 1 and NUMBER.fullmatch(fields[1])):
                    raise ValueError  # but words with spaces are fine
                if place is None or exact[place] or (normal != word and vectors[place].any()):
                    continue
                with np.errstate(over="ignore"):  # what does not fit is infinite
                    values = np.array(numbers, np.float32)
                if not np.isfinite(values).all():
                    raise ValueError
                vectors[place], exact[place] = values, normal == word
            except ValueError:
                bad.add(path, number, f"not a word and {dim} numbers")
    if vectors is None:
        raise UserError(f"{path}: empty file")
    bad.check(rows - bad.count)
    if not vectors.any():
        raise UserError(f"{path}: no word of the vocabulary has a vector here; is it the right file?")
    return vectors


# --- writing ----------------------------------------------------------------------------------------------------------

def write_titles(folder, blocks, threads, split, lengths, ids, max_len, vocabulary):
    """Write {split}_titles.npy, {split}_rare.npy and {split}_text.txt in pieces; `blocks` as from `written`; ids from
    `vocabulary` on are rare words. Returns the share of rare words by split."""
    import pyarrow as pa
    dtype, rare_type = data.smallest_uint(vocabulary - 1), data.smallest_uint(max(0, ids.max() - vocabulary))
    words, rare = np.zeros(3, np.int64), [[], [], []]

    def divided(block):
        rows, numbers, text = block
        titles = data.pad(ids[numbers], lengths[rows], max_len)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
        text = pa.Array.from_buffers(pa.large_binary(), len(titles), [
            None, pa.py_buffer(np.concatenate([[0], ends])), pa.py_buffer(text)])
        unknown = titles >= vocabulary
        known = np.where(unknown, data.UNKNOWN, titles).astype(dtype)
        masks = [split[rows] == s for s in range(3)]
        return [(known[mine], (titles[mine][unknown[mine]].astype(np.int64) - vocabulary).astype(rare_type),
                 text.filter(pa.array(mine)).buffers()[2] or b"") for mine in masks]

    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}_titles.npy", "wb")) for name in SPLITS]
        texts = [stack.enter_context(open(folder / f"{name}_text.txt", "wb")) for name in SPLITS]
        for file, size in zip(files, np.bincount(split, minlength=3), strict=True):
            np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                                                        "fortran_order": False, "shape": (int(size), max_len)})
        pool = stack.enter_context(ThreadPoolExecutor(threads + 1))
        ids = ids.astype(data.smallest_uint(ids.max()))
        for parts in ahead(pool, divided, blocks, 2 * threads):
            for s, (titles, numbers, text) in enumerate(parts):
                files[s].write(titles)
                texts[s].write(text)
                rare[s].append(numbers)
                words[s] += (titles > 0).sum()
    for name, numbers in zip(SPLITS, rare, strict=True):
        np.save(folder / f"{name}_rare.npy", np.concatenate(numbers))
    return np.array([sum(map(len, numbers)) for numbers in rare]) / np.maximum(words, 1)


def written(scratch, text, blocks):
    """What `ingest` wrote, by block: yields (rows as a slice, words of all their titles on end [T] int32, text)."""
    scratch.seek(0)
    text.seek(0)
    start = 0
    for titles, words, size in blocks:
        yield slice(start, start + titles), np.fromfile(scratch, np.int32, words), text.read(size)
        start += titles


def prepare(args):
    started = time.time()
    sources = choose_sources(args)
    out = args.out.resolve()  # where it is a link, what it points to is replaced
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    foreign = sorted(name for name in names if "meta.json" not in names or not WRITTEN.fullmatch(name))
    if foreign:
        raise UserError(f"{args.out}: is there and holds something else than prepared data ({foreign[0]}); choose "
                        "another --out")
    with data.folder_beside(out) as beside:
        with open(beside / "scratch", "w+b") as scratch, open(beside / "text", "w+b") as text:
            summary = build(args, sources, scratch, text, beside)
        (beside / "scratch").unlink()
        (beside / "text").unlink()
        paths = sorted(beside.iterdir())
        with ThreadPoolExecutor(args.threads) as pool:
            files = {path.name: digest for path, digest in zip(paths, pool.map(data.checksum, paths), strict=True)}
        summary |= {"files": files, "fingerprint": data.fingerprint(files)}
        data.write_json(beside / "meta.json", data.signed(summary))
        written = sum(path.stat().st_size for path in beside.iterdir())
    report(summary, args.out, written, time.time() - started)


def choose_sources(args):
    """The files to read: [(path, split or None)]."""
    if args.download and args.data:
        raise UserError("--download and --data: give one; --download prepares what it fetched")
    if args.download:
        sources = find_files(fetch(args.download, args.mirror))
    elif args.data:
        sources = find_files(args.data) if args.data.is_dir() else [(args.data, None)]
    elif RAW.is_dir() and any(SUFFIX.search(path.name) for path in RAW.rglob("*")):
        sources = find_files(RAW)
    elif args.test:
        raise UserError("--test goes with --data or --download, or with data in data/raw/")
    else:
        rows = args.rows or SYNTHETIC_ROWS
        print(f"*** No data in {RAW}/ and no --data: making {rows:,} SYNTHETIC titles. "
              "Scores on them say nothing about real titles. ***")
        path = RAW.parent / "synthetic.csv"
        synthetic.write_csv(path, rows, SYNTHETIC_CATEGORIES, args.seed)
        sources = [(path, None)]
    if args.test:
        sources = [(path, split or 0) for path, split in sources if split != 2] + [(args.test, 2)]
    return sources


def build(args, sources, scratch, text, folder):
    """From sources to the files in `folder`, all but meta.json, whose content is returned."""
    bad = BadRows(args.max_bad_rows)
    rows, words, labels, languages = ingest(
        sources, scratch, text, args.languages, args.rows, args.max_len, args.threads, bad)
    count, given = len(rows["label"]), rows.pop("split")
    where = ", ".join(str(path) for path, _ in sources)
    bad.check(rows["read"])
    for files, found in [(where, count), *((path, (given == s).any()) for path, s in sources if s is not None)]:
        if not found:
            raise UserError(f"{files}: no rows" + (f" in {' or '.join(args.languages)}" if args.languages else ""))
    if len(labels.index) < 2:
        raise UserError(f"{where}: only one category ({next(iter(labels.index))}); a classifier needs two or more")
    if not rows["words"]:
        raise UserError(f"{where}: no title has a letter or digit; is the title column the right one?")

    names, places = labels.alphabetical()
    label = places.astype(data.smallest_uint(len(names) - 1))[rows.pop("label")]
    groups = number_equal(rows.pop("key"))
    split = draw_splits(label, groups, given, args.valid, args.seed)
    sizes = np.bincount(split, minlength=3)
    for s, name in enumerate(SPLITS):
        if not sizes[s]:
            raise UserError(f"{where}: the {name} split is empty" + (
                "" if s == 0 else f"; no category has {TOO_FEW} different titles to hold some out"))

    train = split == 0
    counts, used = np.zeros(len(words.index), np.int64), np.zeros(len(words.index), bool)
    for mine, numbers, _ in written(scratch, text, rows["blocks"]):
        counts += np.bincount(numbers[np.repeat(train[mine], rows["length"][mine])], minlength=len(counts))
        used[numbers] = True
    vocab, rare, ids = choose_words(words, counts, used, args.min_count, args.vocab)
    if len(vocab) == len(data.SPECIALS):
        raise UserError(f"{where}: no word comes {args.min_count} times in the training split; lower --min-count")
    unknown = write_titles(folder, written(scratch, text, rows["blocks"]), args.threads, split, rows["length"], ids,
                           args.max_len, len(vocab))
    tongues, tongue_places = languages.alphabetical()
    for s, name in enumerate(SPLITS):
        np.save(folder / f"{name}_labels.npy", label[split == s])
        if rows["language"] is not None:
            language = tongue_places[rows["language"]].astype(np.uint8)
            np.save(folder / f"{name}_language.npy", language[split == s])
        if rows["reliable"] is not None:
            np.save(folder / f"{name}_reliable.npy", rows["reliable"][split == s])
    data.write_lines(folder / "vocab.txt", vocab)
    data.write_lines(folder / "rare.txt", rare)
    data.write_lines(folder / "labels.txt", names)
    found = None
    if args.vectors:
        vectors = read_vectors(args.vectors, vocab, BadRows(args.max_bad_rows))
        np.save(folder / "vectors.npy", vectors)
        found = float(vectors[2:].any(1).mean())
    per_category = np.array([np.bincount(label[split == s], minlength=len(names)) for s in range(3)])
    in_train = np.zeros(groups.max() + 1, bool)
    in_train[groups[train]] = True
    return {
        "format": data.FORMAT, "synthetic": all(name.startswith(synthetic.PREFIX) for name in names),
        "source": [{"file": readable(path), "split": None if s is None else SPLITS[s]} for path, s in sources],
        "options": {name: readable(value) if isinstance(value, Path) else value for name, value in vars(args).items()
                    if name not in ("data", "test", "out", "threads", "mirror", "download")},
        "rows": dict(zip(SPLITS, sizes.tolist(), strict=True)), "bad_rows": bad.count,
        "first_bad_row": bad.first and readable(bad.first), "categories": len(names),
        "training_rows": per_category[0].tolist(),
        "languages": [tongue or "unknown" for tongue in tongues] if rows["language"] is not None else None,
        "reliable_share": None if rows["reliable"] is None else float(rows["reliable"].mean()),
        "vocabulary": len(vocab), "max_len": args.max_len,
        "unknown_share": dict(zip(SPLITS, unknown.tolist(), strict=True)),
        "cut_share": rows["cut"] / count,
        "mean_words": rows["words"] / count,
        "not_split_categories": int(((per_category[0] > 0) & (per_category[2] == 0)).sum()),
        "not_in_train_categories": int((per_category[0] == 0).sum()),
        "also_in_train": {name: float(in_train[groups[split == s]].mean()) for s, name in enumerate(SPLITS) if s},
        "vectors_found": found,
    }


def readable(path):
    """What the shell or a file system gave, as text; bytes that are not UTF-8 become the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def report(summary, out, written, seconds):
    """Print the table at the end."""
    total = sum(summary["rows"].values())
    percent = "{:.2%}".format
    lines = {
        "rows": f"{total:,} (" + ", ".join(f"{name} {n:,}" for name, n in summary["rows"].items()) + ")",
        "bad rows skipped": summary["bad_rows"] and f"{summary['bad_rows']:,}, first {summary['first_bad_row']}",
        "categories": f"{summary['categories']:,}",
        "languages": ", ".join(summary["languages"] or []) or "not given",
        "reliable labels": "not given" if summary["reliable_share"] is None else percent(summary["reliable_share"]),
        "vocabulary": f"{summary['vocabulary']:,} words, from the training split alone",
        "unknown words": ", ".join(f"{name} {percent(summary['unknown_share'][name])}" for name in SPLITS[1:]),
        "words a title": f"{summary['mean_words']:.1f}; {percent(summary['cut_share'])} of titles cut at "
                         f"{summary['max_len']} words",
        "titles also in train": ", ".join(f"{name} {percent(x)}" for name, x in summary["also_in_train"].items()),
        "vectors found": None if summary["vectors_found"] is None else percent(summary["vectors_found"]) + " of words",
        "written": f"{written:,} bytes to {out}/, fingerprint {summary['fingerprint']}",
        "time": f"{seconds:.1f} s, {total / seconds:,.0f} titles/s",
    }
    print(("SYNTHETIC DATA, " if summary["synthetic"] else "") + "prepared:")
    for name, line in lines.items():
        if line:
            print(f"  {name:<22}{line}")
    if summary["not_split_categories"]:
        print(f"warning: {summary['not_split_categories']:,} categories have no test row; scores do not cover them",
              file=sys.stderr)
    if summary["not_in_train_categories"]:
        print(f"warning: {summary['not_in_train_categories']:,} categories have no training row and cannot be learned",
              file=sys.stderr)


# --- command line -----------------------------------------------------------------------------------------------------

def main():
    parser = data.argument_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="file or folder of titles and categories (default: what lies in data/raw/)")
    add("--test", type=Path, help="file with the test split (default: a folder's own, else 20 %% of the rows)")
    add("--out", type=Path, default=Path("data/prepared"), help="folder to write")
    add("--download", choices=DOWNLOADS, help="fetch this public data set into data/raw/ first")
    add("--mirror", metavar="URL", help="fetch from this address instead of the public server")
    add("--languages", nargs="+", type=readable, metavar="L", help="keep only these languages, e.g. spanish")
    add("--rows", type=data.positive(int), help="read at most so many rows of training data, from the start")
    add("--vocab", type=data.positive(int), default=1_000_000, help="keep at most so many words, the most frequent")
    add("--min-count", type=data.positive(int), default=1, help="drop words rarer than this in the training split")
    add("--max-len", type=data.positive(int), default=20, help="cut titles to so many words")
    add("--valid", type=data.share, default=0.1, help="share of the rest for validation, where the source has none")
    add("--seed", type=data.seed, default=0, help="decides the splits, and the synthetic titles")
    add("--vectors", type=Path, help="pretrained vectors: word2vec, GloVe or fastText text file, plain or compressed")
    add("--max-bad-rows", type=data.positive(float), default=0.01, help="bad rows to skip: a share below 1, or a count")
    add("--threads", type=data.positive(int), default=min(8, os.cpu_count()), help="threads that tokenize")
    prepare(parser.parse_args())


if __name__ == "__main__":
    data.run(main)
