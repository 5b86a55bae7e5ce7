"""Turn raw titles into padded NumPy arrays, a vocabulary and labels: everything train.py reads.

    python prepare.py                                   # what lies in data/raw/, else a SYNTHETIC set (synthetic.py)
    python prepare.py --data titles.csv                 # your own file or folder
    python prepare.py --data train.csv --test test.csv  # with a test set of its own
    python prepare.py --data old.csv labelled.csv       # what people have labelled goes back into training
    python prepare.py --download course                 # fetch the course's Spanish and Portuguese files first
    python prepare.py --data titles.csv --encoder use   # for train.py --model encoder, too; requirements-encoder.txt
    python prepare.py --data export.csv --title-column Name --category-column 5 --encoding cp1252
    python prepare.py --data shop.csv --columns brand price         # a row is more than its title
    python prepare.py --data shop.csv --separator ">"               # categories are paths, as Home > Kitchen > Knives
    python prepare.py --data titles.csv --group-column product_id   # no product stands on two sides of a split
    python prepare.py --data more.csv --like data/prepared --out data/more      # then train.py --data with both folders
    printf '%s\\0' more/*.csv | xargs -0 -P 8 -I{} python prepare.py --data {} --like data/prepared --parts data/parts
    python prepare.py --data more --like data/prepared --parts data/parts --check | tr '\\n' '\\0' | xargs -0 ...

Reads, plain or compressed (gzip, bzip2, xz), told apart by content:
  - CSV or TSV with a header that names `title` (or `text`) and `category` (or `label`), in any order; `language`,
    `label_quality` (reliable, unreliable), `split` (train, valid, test; train-only is never drawn for another) and `id`
    (for reports) are used where present
  - Parquet, JSON lines and Excel workbooks (.xlsx, the first sheet; needs openpyxl) with the same names, and fastText
    files (`__label__x some text`)
  - a folder of such files whose names say train, valid or test
Writes data/prepared/ (its files are described in data.py); a failed run leaves what was there before.
Several files, each of any of these formats, are one set of rows. A later file has the last word: where it puts a title
into another category, the rows of earlier files with that title are left out, and a line counts them; a parent and what
is below it agree. Rows of the first stay in the splits that they have without the others. Files after the first may
have rows without a category, which are not labelled yet and are left out; columns with the usual names where flags name
others; and UTF-8 whatever --encoding says. A row of theirs has the group of an earlier one with its title where its own
file says none, and is held out where the earlier file holds that title out.
--columns are read beside the title: words, such as a brand, each a feature of its own whatever its case and accents,
and numbers, such as a price, in steps of equally many training rows. What stands in a column tells which of the two it
is, and a line says it; brand:word and price:number decide it, "price:number," a decimal comma as well. Numbers are read
as people write them (1.234,56, $ 1,299.00, 12 €).
Several title columns, such as title and description, are one text whose parts stay apart.
Titles are read as far as 20 words, and where more than 5 % of those that may train have more, so far that 99 % are read
whole, but 64 at most; --max-len says it instead.
Categories whose names look the same are one, which labels.txt writes as most rows do.
Categories may be paths of a tree: --separator says what divides their levels, several columns of --category-column have
a level each, from the top, and lists in JSON or Parquet are paths as they are. A row that ends above a leaf, as where
the last columns are empty, knows only a parent; the categories are the leaves, and depths may differ. Spaces around
levels do not count, and an empty level between others, or at the top, is left out; a level that repeats the name above
it is one of its own, and the same name below two parents is two.
Splits that the source does not give are drawn: 20 % test, then --valid of the rest. Where a title goes depends on its
words and --seed alone, so next month's file, which has these rows and more, keeps all of them where they were; equal
titles stay on one side, and with --group-column all rows of one product, seller or document. A category without a
training row gets one, until others come to train; where all categories have only one, none validates or tests, and a
warning says what is lacking then. Takes about 4 s for a million rows on two cores; 20 million rows need 4 GB of memory.
Of many rows it says at the end what training on them takes (train.py --costs).
--encoder also cuts titles into pieces of words, about 9,000 titles a second and core.
--like prepares more training rows with the vocabulary, categories and options of another folder, which need not be on
the same machine. Nothing is drawn from them for validation or test: all rows train but those that the source itself
gives to another split (which may have titles that train in other folders), and those whose title the other folder
validates or tests with, which are left out. Rows of other categories are bad rows. Categories may be predicted ones
(evaluate.py --predict FILE --keep); where the other folder knows which labels are reliable and these rows do not say
it, they are not.
--parts prepares so one file into a folder of parts, where its part has the file's name, so that whatever starts
processes (xargs, a Slurm array) makes the parts of a large set side by side. A part that is there, whole, of the same
content, folder and options is not made again, so all can be started once more; one of another file with the same name
is not replaced. A file from which no row is left to train has no part, and is to be taken out of --data. --check
prepares nothing. It prints the files of --data (files, or folders with all the files of titles in them) whose part is
missing, half-written, broken, or not of the file, the folder or the options as they are now, one a line; on standard
error why, which parts no file has, and how many are well. Its status is 0 if all are, else 1. train.py --data takes
data/prepared data/parts then.
"""
import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

if __name__ == "__main__":  # while libraries are loaded, Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from titles import cli
from titles.cli import UserError, readable

if __name__ == "__main__":
    cli.run(lambda: cli.require_packages(("numpy", "pyarrow", "tqdm", "filelock")))  # parts need no others

import numpy as np
import pyarrow as pa

import classify
import data
import synthetic
from data import SPLITS
from titles import categories, columns, encoder, files, formats, parts, sources, tree
from titles.settings import flag_of

# --- knobs ------------------------------------------------------------------------------------------------------------
RAW = Path("data/raw")      # where --download writes and where data is looked for without --data
TEST_SHARE = 0.2            # of the rows, where the source gives no test split
# Titles are read as far as so many words; where a larger share of them than CUT_OFF has more, so far that the share
# WHOLE is read whole, if keys of titles tell so much. Where a flag cuts off more than CUT_OFF a warning comes.
USUAL = 20
CUT_OFF, WHOLE = 0.05, 0.99
PIECE_ROWS = 8192           # titles that a process cuts into pieces at a time
LEFT_OUT = len(SPLITS)      # the split of rows that go to none (--like)
NEAR_ROWS, NEAR_SHARE = 5000, 0.25  # of so many test titles, the share that is near a training title, for a hint
MANY_ROWS = 50_000          # training rows from which on it is told what training takes; fewer take a minute or so, ...
MANY_PIECED = 5000          # ... but of an encoder
PATIENCE = 120              # seconds until that must be told
GOES_WITH = {"value_min_count": "columns", "max_pieces": "encoder"}  # flags, and what they need

MELI = "https://meli-data-challenge.s3.amazonaws.com"
COURSE = "https://cs.famaf.unc.edu.ar/~ccardellino/resources/diplodatos"
DOWNLOADS = {  # name -> (server folder, {file: size in bytes where it is known})
    "meli": (MELI, {"train.csv.gz": 691_651_384, "test.csv": None, "sample_submission.csv": None}),
    "course": (COURSE, {"meli-challenge-2019.tar.bz2": None}),
}

HELD_IN = -2  # the split of rows that train, as chosen ones do, which are harder than others: none is held out
SPLIT_NAMES = {sources.ONLY_TRAINED: HELD_IN, "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1,
               "dev": 1, "test": 2}


# --- which files ------------------------------------------------------------------------------------------------------

def fetch(name, mirror):
    """Download and unpack a public data set; returns the folder to prepare."""
    # A file that is there is not fetched again, a folder not unpacked again.
    server, wanted = DOWNLOADS[name]
    for file, size in wanted.items():
        path = files.download(f"{mirror or server}/{file}", RAW / name / file, size)
        if file.endswith(".tar.bz2") and not (RAW / name / "unpacked").exists():
            files.unpack(path, RAW / name / "unpacked")
    return RAW / name


def split_of(path):
    """The split that a file's name tells (0, 1, 2 as in SPLITS), or None."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def title_files(folder):
    """The files of titles in a folder, by their names; raises UserError where there is none."""
    # What begins with a dot belongs to the system (`._train.csv` to a Mac's), with `~$` to Excel while a file is open;
    # what was being unpacked may be cut short.
    os.listdir(folder)  # to search a folder that cannot be read finds nothing, and says nothing
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and formats.SUFFIX.search(path.name)
                   and not path.name.startswith((".", "~$"))
                   and not any(map(files.TEMPORARY.search, path.relative_to(folder).parts)))
    if not paths:
        raise UserError(f"{folder}: no .csv, .tsv, .jsonl, .txt, .parquet or .xlsx file here")
    return paths


def find_files(folder, form):
    """[(path, split or None)] of the data set in a folder, whose files have this formats.Format; raises UserError when
    it holds none or several."""
    paths = title_files(folder)
    named = [(path, split_of(path)) for path in paths if split_of(path) is not None]

    # The challenge's test.csv has titles without categories.
    for path, split in named.copy():
        if split == 2 and not sources.has_categories(path, form):
            print(f"{path}: has no category column, so it is no test split (python evaluate.py --predict reads it)")
            named.remove((path, split))
    if named and not any(split == 0 for _, split in named):
        raise UserError(f"{folder}: has no training file (no name says train); name one with --data")
    found = named or [(path, None) for path in paths]

    # Files of several folders, several files without a split, or the same file twice, packed and not, are ambiguous.
    distinct = {formats.SUFFIX.sub(r".\1", str(path)) for path, _ in found}
    if len({path.parent for path, _ in found}) > 1 or (not named and len(found) > 1) or len(distinct) < len(found):
        raise UserError(f"{folder}: holds several data sets ({', '.join(str(path) for path, _ in found[:4])}, ...); "
                        "choose with --data")
    print("reading " + ", ".join(f"{path} ({SPLITS[split]})" if split is not None else str(path)
                                 for path, split in found))
    return found


def require_files(paths):
    """Raise UserError unless these are files, each another."""
    for i, path in enumerate(paths):
        if path.is_dir():
            raise UserError(f"{path}: a folder goes alone with --data; name its files instead, of which the later ones "
                            "have the last word")
        files.require_file(path)
        if path.resolve() in (other.resolve() for other in paths[:i]):
            raise UserError(f"{path}: the same file twice; name each once, the one that has the last word at the end")


def choose_files(args):
    """The files to read: [(path, split or None)], of which those of --data come first, in their order."""
    form = formats.format_from(args)
    if args.download and args.data:
        raise UserError("--download and --data: give one; --download prepares what it fetched")
    if args.download:
        found = find_files(fetch(args.download, args.mirror), form)
    elif args.data:
        is_folder = len(args.data) == 1 and args.data[0].is_dir()
        if len(args.data) > 1:
            require_files(args.data)
            if args.rows:
                raise UserError("--rows and several files: give one, for the first rows are all of the first file's")
        found = find_files(args.data[0], form) if is_folder else [(path, None) for path in args.data]
    elif RAW.is_dir() and os.listdir(RAW) and any(formats.SUFFIX.search(path.name) for path in RAW.rglob("*")):
        found = find_files(RAW, form)
    elif args.test:
        raise UserError("--test goes with --data or --download, or with data in data/raw/")
    else:
        rows = args.rows or synthetic.ROWS
        print(f"*** No data in {RAW}/ and no --data: making {rows:,} SYNTHETIC titles. "
              "Scores on them say nothing about real titles. ***")
        path = RAW.parent / "synthetic.csv"
        synthetic.write_csv(path, rows, seed=args.seed)
        found = [(path, None)]

    # With a test file of its own the data trains or validates; what its names call test is left out.
    if args.test:
        if args.fold:
            raise UserError("--fold and --test: give one, both name the test split")
        found = [(path, split or 0) for path, split in found if split != 2] + [(args.test, 2)]
    return found


def forms_of(args, paths):
    """The formats.Format of each chosen file, of which those of --data come first. What goes back into training, such
    as labelled.csv, need not be written as the first file is: it may have the usual names where flags say others, be
    UTF-8 whatever --encoding says, and have rows that are not labelled yet."""
    values = [name for name, _ in args.columns]
    first = formats.format_from(args, values=values)
    unnamed = argparse.Namespace(**vars(args) | {"title_column": None, "category_column": None})
    later = formats.format_from(unnamed, vars(args), values)._replace(partly=True)
    return [later._replace(encoding=formats.encoding_of(path, args.encoding)) if 0 < i < len(args.data or ()) else first
            for i, path in enumerate(paths)]


# --- files -> rows ----------------------------------------------------------------------------------------------------

OPTIONAL = {"language": "language", "reliable": "quality", "group": "group", "id": "id"}  # array of rows -> its column


class Codes:
    """Numbers strings in the order in which they come."""

    def __init__(self):
        self.index = {}

    def __call__(self, values):
        """values [N], an Arrow string array -> [N] codes, of the smallest unsigned type up to here."""
        encoded = values.dictionary_encode()
        codes = self.number(encoded.dictionary.to_pylist())
        return codes.astype(data.smallest_uint(len(self.index)))[encoded.indices.to_numpy()]

    def number(self, names):
        index = self.index
        return np.array([index.setdefault(name, len(index)) for name in names], np.int32)

    def alphabetical(self):
        """(names in alphabetical order, [len(names)] the new number of each code)."""
        names = sorted(self.index)
        ranks = np.empty(len(names), np.int64)
        ranks[[self.index[name] for name in names]] = np.arange(len(names))
        return names, ranks


class Block(NamedTuple):
    """Titles as they are kept until all are read, cut to --max-len words, or to data.KEY_WORDS."""
    rows: slice             # which of all rows they are
    numbers: np.ndarray     # [T] int32, the words of all these titles in turn
    lengths: np.ndarray     # [n] how many of them each title has
    titles: pa.Array        # of strings, as they came


def cut(block, most):
    """A Block whose titles have so many words at most."""
    numbers, lengths = block.numbers, block.lengths.astype(np.int64)
    if lengths.max(initial=0) > most:
        position = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        numbers, lengths = numbers[position < most], np.minimum(lengths, most)
    return block._replace(numbers=numbers, lengths=lengths.astype(data.smallest_uint(most)))


def length_for(lengths, titles):
    """How many words of a title are read where no flag says it: lengths [N], rising, of so many `titles` [N] each."""
    if titles[lengths > USUAL].sum() <= CUT_OFF * titles.sum():
        return USUAL
    return min(data.KEY_WORDS, length_of_whole(lengths, titles))


def by_length(counts):
    """A Counter of lengths as two arrays: the lengths, rising, and how many have each."""
    return [*map(np.array, zip(*sorted(counts.items()), strict=True))]


def length_of_whole(lengths, titles):
    """The length that leaves the share WHOLE of the titles whole."""
    return int(lengths[np.searchsorted(np.cumsum(titles), WHOLE * titles.sum())])


def read_rows(args, chosen, bad, base):
    """Read every file once. base: the folder of --like, as from `read_base`, or None.

    Returns a namespace: `where` rows come from, for messages, and `paths` of these files; a list of `blocks`; the Codes
    of `words`, of `spellings` of categories (see `marked_paths`) and of `languages`, and a list of those of the `texts`
    of --columns; `word_keys`, the keys of the words; arrays with one entry a row, `spelling`, `language`, `values`
    [N, K] (codes of texts), `id` (Arrow strings) and those of `columns_of`, but None for what is OPTIONAL and no row
    has; the number of rows `of_file` each; how many were `read`; and as from `by_length`, before titles are cut, the
    words of all of them, `of_length`, and of those not given to another split than train, `of_length_in_train`. Raises
    UserError where rows or words are missing, or too many rows are bad.
    """
    import pyarrow.compute as pc
    words, spellings, languages, word_keys = Codes(), Codes(), Codes(), np.zeros(0, np.uint64)
    texts = [Codes() for _ in args.columns]
    blocks, parsed, had, of_file, in_train, elsewhere = [], [], set(), Counter(), Counter(), Counter()
    count = read = 0
    for path, split, block, found, codes, distinct, lengths in tokenized_blocks(args, chosen, bad, base):
        # Word numbers in the order of appearance, and the keys of the words that are new.
        numbers = words.number(distinct)[codes]
        new = itertools.islice(reversed(words.index), len(words.index) - len(word_keys))
        word_keys = np.concatenate([word_keys, data.text_keys(reversed([*new]))])

        # What --max-len cuts off is dropped.
        blocks.append(cut(Block(slice(count, count + len(lengths)), numbers, lengths, block["title"]),
                          args.max_len or data.KEY_WORDS))

        # What else the rows have. A column that a file lacks is empty.
        block = dict.fromkeys(("split", *OPTIONAL.values()), pa.repeat("", len(lengths))) | block
        parsed.append(columns_of(block, path, split, data.title_keys(word_keys[numbers], lengths)) | {
            "spelling": spellings(marked_paths(block)), "language": languages(block["language"]), "id": block["id"],
            "values": values_of(block, args.columns, texts)})
        for of_length, mine in ((in_train, parsed[-1]["given"] <= 0), (elsewhere, parsed[-1]["given"] > 0)):
            of_length.update(lengths[mine].tolist())
        if len(languages.index) > 256:
            raise UserError(f"{path}: more than 256 languages; rename the column if it holds something else")
        had.update(name for name, column in OPTIONAL.items() if pc.any(pc.not_equal(block[column], "")).as_py())
        of_file[path, split] += len(lengths)
        count, read = count + len(lengths), read + found

    where = ", ".join(str(path) for path, _ in chosen)
    if "group_column" in args.given and "group" not in had:
        raise UserError(f"--group-column {args.group_column}: no row has a value there")
    bad.check(read)
    for path, split in chosen:
        if not sum(of_file[one] for one in chosen if one[1] == split):
            raise UserError(f"{path}: no rows" + (f" in {' or '.join(args.languages)}" if args.languages else ""))
    of_length = in_train + elsewhere
    if not any(of_length):
        raise UserError(f"{where}: no title has a letter or digit; is the title column the right one?")
    arrays = {name: (pa.chunked_array if name == "id" else np.concatenate)([part[name] for part in parsed])
              for name in parsed[0] if name not in OPTIONAL or name in had}
    return SimpleNamespace(where=where, paths=[path for path, _ in chosen], blocks=blocks, words=words,
                           spellings=spellings, languages=languages, texts=texts, word_keys=word_keys,
                           read=count, of_length=by_length(of_length),
                           of_length_in_train=by_length(in_train or of_length),
                           of_file=[of_file[one] for one in chosen],
                           overruled=0, first_overruled=None,
                           **dict.fromkeys(OPTIONAL) | arrays)


def tokenized_blocks(args, chosen, bad, base):
    """Yield (path, split or None, block, how many rows were read for it, as from `chosen_blocks`; what
    data.bulk_tokenize makes of its titles), tokenized in threads."""
    def tokenized(item):
        return *item, *data.bulk_tokenize(item[2]["title"])

    # One thread more than asked for, as reading the next block takes one.
    categories = base and pa.array([formats.tidy(name) for name in base.tree.names], pa.string())
    with ThreadPoolExecutor(args.threads + 1) as pool:
        yield from cli.map_ahead(pool, tokenized, chosen_blocks(args, chosen, bad, categories), 2 * args.threads)


def chosen_blocks(args, chosen, bad, categories):
    """Yield (path, split or None, block as from sources.read_labelled, how many rows were read for it) with the rows
    that --languages and --rows let through. Rows of others than these categories, if given, go to `bad`."""
    import pyarrow.compute as pc
    # --rows is about training data: test files are read whole.
    left = args.rows
    for (path, split), form in zip(chosen, forms_of(args, [path for path, _ in chosen]), strict=True):
        if form.encoding != args.encoding:
            bad.note(path, None, "is in UTF-8, and read so, whatever --encoding says")
        for block in sources.read_labelled(path, bad, form):
            read = len(block["title"])
            if args.languages:
                if "language" not in block:
                    raise UserError(f"{path}: has no language column, which --languages "
                                    + (f"of {args.like} " if args.like else "") + "needs")
                block = formats.filtered(block, pc.is_in(block["language"], pa.array(args.languages)))
            if categories is not None:
                known = pc.is_in(block["category"], categories)
                others = formats.filtered(block, pc.invert(known))
                for line, name in zip(others["line"].to_pylist(), others["category"].to_pylist(), strict=True):
                    bad.add(path, line, f"{args.like} has no category {name}")
                read -= len(others["line"])  # bad rows are counted by themselves
                block = formats.filtered(block, known)
            if split in (None, 0) and left is not None:
                block = {column: values[:left] for column, values in block.items()}
                left -= len(block["title"])
            yield path, split, block, read
            if split in (None, 0) and left == 0:
                break


def columns_of(block, path, split, keys):
    """What a block says of each of its rows [n]: {`given`: the split that its file or its column `split` gives; `key`:
    as from data.title_keys, `keys`; `group`: the key of its group, or of the title where it has none; `reliable`;
    `line`: of its file}."""
    lines, groups = block["line"].to_numpy(), block["group"].dictionary_encode()
    names, at = groups.dictionary.to_pylist(), groups.indices.to_numpy()
    group = np.where(np.array([name == "" for name in names], bool)[at], keys, data.text_keys(names)[at])
    return {"given": given_split(path, split, block["split"]), "key": keys, "group": group,
            "reliable": sources.given_quality(path, block["quality"]),
            "line": lines.astype(data.smallest_uint(lines.max(initial=0)))}


def values_of(block, columns, texts):
    """The codes of a block's values of --columns [n, K]: texts, their Codes, in which None stands for a value of a file
    that has no such column."""
    codes = []
    for (name, _), of_column in zip(columns, texts, strict=True):
        values = block.get(formats.value_key(name), pa.nulls(len(block["title"]), pa.string()))
        lacking, mine = np.asarray(values.is_null()), np.empty(len(values), np.int32)
        if lacking.any():
            mine[lacking] = of_column.number([None])
        mine[~lacking] = of_column(values.drop_null())
        codes.append(mine)
    return classify.stacked(codes, len(block["title"]))


def marked_paths(block):
    """The spellings of a block's categories, Arrow strings, with a BORDER before those that are paths."""
    import pyarrow.compute as pc
    if "path" not in block:
        return block["spelling"]
    mark = pc.if_else(block["path"], classify.BORDER, "")
    return pc.binary_join_element_wise(mark, block["spelling"], "")


def title_lines(titles):
    """The titles of an Arrow string array as bytes, one a line; line ends within a title become spaces."""
    import pyarrow.compute as pc
    titles = pc.replace_substring_regex(titles, r"[\r\n]+", " ")
    lines = pc.binary_join(pa.ListArray.from_arrays([0, len(titles)], titles), "\n")
    return lines[0].as_buffer().to_pybytes() + b"\n" if len(titles) else b""


def given_split(path, split, values):
    """The split of each row of a block, [n] int8: of its file, or of its column `split`; -1 where neither says."""
    # A column `split` may repeat what the file's name says, not contradict it; of a training file it may part rows off.
    codes = {value: SPLIT_NAMES.get(value.lower(), -1) for value in values.unique().to_pylist()}
    for value, code in codes.items():
        if value and code == -1:
            raise UserError(f"{path}: the split column says {value!r}; use train, valid or test")
        named = max(code, 0)
        if value and split not in (None, named) and (split, named) != (0, 1):
            raise UserError(f"{path}: its split column names {SPLITS[named]} rows, but --test or the file's name makes "
                            f"it the {SPLITS[split]} split; drop the column, or leave --test out")
    codes[""] = -1 if split is None else split
    if len(codes) == 1:
        return np.full(len(values), codes[""], np.int8)
    return np.array([codes[value] for value in values.to_pylist()], np.int8)


# --- several files ----------------------------------------------------------------------------------------------------

def settle(rows, count, base):
    """Of rows of several files, of which the first `count` are --data's, each has the last word over those before it:
    where it puts a title into another category, their rows are left out; `overruled` says how many, `first_overruled`
    where the first stands. base: as from `read_base`, or None."""
    of_file = np.repeat(np.arange(len(rows.of_file)), rows.of_file)

    # Where the file of an old title says its split or its group, and a later file says none, the title stays there.
    for file in range(1, count):
        later, earlier = of_file == file, of_file < file
        adopt(rows.given, rows.key, earlier & (rows.given > 0), later & (rows.given <= 0))
        if rows.group is not None:
            adopt(rows.group, rows.key, earlier & (rows.group != rows.key), later & (rows.group == rows.key))

    out = overruled(rows, of_file, count, base)
    if out.any():
        first = int(out.argmax())
        rows.overruled, rows.first_overruled = int(out.sum()), f"{rows.paths[of_file[first]]}:{rows.line[first]}"
        leave_out(rows, out)


def adopt(values, keys, told, asking):
    """Give those of the rows `asking` [N] whose key a row of `told` [N] has the value of the first such row."""
    told, asking = np.flatnonzero(told), np.flatnonzero(asking)
    known, first = np.unique(keys[told], return_index=True)
    at = np.searchsorted(known, keys[asking])
    same = np.append(known, np.uint64(0))[at] == keys[asking]
    same &= at < len(known)
    values[asking[same]] = values[told[first[at[same]]]]


def overruled(rows, of_file, count, base):
    """Which rows [N] have a title that a later one of the first `count` files puts into another category, and not into
    one above or below theirs. of_file [N]: the file of each."""
    out = np.zeros(len(rows.key), bool)
    found, label = categories.numbered(rows, base, formats.BadRows(0))  # what is odd is said when all rows are settled
    nodes = len(found.names)
    for file in range(1, count):
        later = np.flatnonzero(of_file == file)
        titles = np.unique(rows.key[later])
        earlier = np.flatnonzero((of_file < file) & np.isin(rows.key, titles))
        (now, now_above), (before, before_above) = (
            (title * nodes + label[some], title[:, None] * nodes + found.above[label[some]])
            for some in (later, earlier) for title in [np.searchsorted(titles, rows.key[some])])
        out[earlier] |= ~(np.isin(before_above, now).any(1) | np.isin(before, now_above))
    return out


def leave_out(rows, out):
    """Take the rows `out` [N] out of what `read_rows` gives, and the categories that they alone have."""
    keep, blocks, count = ~out, [], 0
    for block in rows.blocks:
        mine = keep[block.rows]
        blocks.append(Block(slice(count, count + int(mine.sum())), block.numbers[np.repeat(mine, block.lengths)],
                            block.lengths[mine], block.titles.filter(pa.array(mine))))
        count += int(mine.sum())
    rows.blocks = blocks
    rows.of_file = [int(mine.sum()) for mine in np.split(keep, np.cumsum(rows.of_file)[:-1])]
    for name in ("given", "key", "line", "spelling", "values", *OPTIONAL):
        values = getattr(rows, name)
        if values is not None:
            setattr(rows, name, values.filter(pa.array(keep)) if name == "id" else values[keep])
    names, (used, rows.spelling) = [*rows.spellings.index], np.unique(rows.spelling, return_inverse=True)
    rows.spellings = Codes()
    rows.spellings.number([names[code] for code in used])


# --- the folder of --like ---------------------------------------------------------------------------------------------

OF_BASE = ("vocab", "min_count", "max_len", "fold", "valid", "seed", "vectors", "encoder", "max_pieces", "columns",
           "value_min_count")
CHOSEN = ("languages", "title_column", "category_column", "separator", "group_column",  # or as a part asks
          "max_bad_rows")


def read_base(args):
    """What a part takes from the folder of --like: (the options, of which most are that folder's; a namespace of the
    `folder`, its `fingerprint`, `encoder`, `vocab` and `tree` of categories, the keys of the titles, and of the groups,
    that it has `held_out` for validation and test, its `vectors`, and whether it `knows_quality` of labels). Raises
    UserError where the options do not go together."""
    if args.data is None or args.out.resolve() == args.like.resolve():
        raise UserError("--like goes with --data, and with an --out of its own")
    meta, arrays = data.read_prepared(args.like, SPLITS[1:])
    if meta["options"].get("like"):
        raise UserError(f"--like {args.like}: was itself prepared --like {meta['options']['like']}; name that")
    if meta["tokenizer"] != data.TOKENIZER:
        raise UserError(f"--like {args.like}: was prepared with another classify.py; use the same, or prepare it again")

    # What makes the ids is the base's; where its files' options do not fit this one, flags say so.
    if refused := [name for name in OF_BASE if name in args.given]:
        raise UserError(f"--{refused[0].replace('_', '-')}: --like takes it from {args.like}; leave it out")
    taken = {name: meta["options"].get(name) for name in OF_BASE + CHOSEN if name not in args.given}
    if described := meta["encoder"]:
        encoder.require(described, args.like)
    held_out = [rows[kind] for rows in arrays.values() for kind in ("keys", "groups") if kind in rows]
    return (argparse.Namespace(**vars(args) | taken | {"fold": None}),  # no split is drawn
            SimpleNamespace(folder=args.like, fingerprint=meta["fingerprint"], encoder=described, vocab=meta["vocab"],
                            columns=meta["columns"], tree=data.tree_of(meta), held_out=np.concatenate(held_out),
                            vectors=meta["vectors"], knows_quality=meta["reliable_share"] is not None))


# --- rows -> splits ---------------------------------------------------------------------------------------------------

def split_rows(rows, label, args, base, leaves):
    """Which split each row belongs to: [N] int8 indices into SPLITS, or LEFT_OUT. label, leaves: as `draw_splits` has
    them."""
    # No title may train here that the base holds out.
    if base:
        held_out = np.isin(rows.key, base.held_out)
        if rows.group is not None:
            held_out |= np.isin(rows.group, base.held_out)
        return np.where((rows.given <= 0) & held_out, LEFT_OUT, np.maximum(rows.given, 0))
    if args.fold and (rows.given == 2).any():
        raise UserError(f"{rows.where}: has a test split; --fold holds out a part of the training rows instead, so "
                        "name their file alone with --data")
    split = draw_splits(rows.key if rows.group is None else rows.group, label, rows.given, args, leaves)

    # Groups may share a title, and no title may stand on two sides.
    if rows.group is not None:
        for s in (1, 2):
            split[(rows.given <= 0) & (split == s) & np.isin(rows.key, rows.key[split < s])] = LEFT_OUT
    return split


def draw_splits(keys, labels, given, args, leaves):
    """Which split each row belongs to: [N] int8 indices into SPLITS.

    Rows with a given split [N] (-1: none) keep it, but a split that the source does not name is drawn from the training
    rows, by keys [N] uint64 and --seed alone, whatever other rows there are; not from those that are HELD_IN,
    unless all are, or others have their key. With --fold (i, k) the test split is the i-th of k parts. Every category
    (labels [N] below `leaves`; others know only a parent) that has no training row gets those of one key; these alone
    move when others of their category come.
    """
    split, is_leaf = np.maximum(given, 0), labels < leaves
    drawn_from = (given <= 0) & (given != HELD_IN)
    pool = (given <= 0) & np.isin(keys, keys[drawn_from]) if drawn_from.any() else given <= 0
    test, valid = (data.draw(keys, args.seed, purpose) for purpose in (0, 1))
    if not (given == 1).any():
        split[pool & (valid < args.valid)] = 1
    if args.fold:
        split[pool & (np.floor(test * args.fold[1]) == args.fold[0] - 1)] = 2
    elif not (given == 2).any():
        split[pool & (test < TEST_SHARE)] = 2

    # A category without a training row cannot be learned. The row that is farthest from validation trains.
    lacks = np.bincount(labels[split == 0], minlength=labels.max() + 1) == 0
    rows = np.flatnonzero(pool & is_leaf & lacks[labels])
    rows = rows[np.lexsort((-valid[rows], labels[rows]))]
    _, first = np.unique(labels[rows], return_index=True)
    split[pool & np.isin(keys, keys[rows[first]])] = 0

    # Of a small file the row that is nearest to a split without rows is held out, if its categories keep other keys.
    for s, drawn in ((2, test), (1, valid)):
        if not (((split == s) & (is_leaf | (given == s))).any() or (args.fold and s == 2)):
            rows = np.flatnonzero(pool & is_leaf & (split == 0))
            pairs = np.unique(np.stack([labels[rows].astype(np.uint64), keys[rows]]), axis=1)
            lone = np.bincount(pairs[0].astype(int))[labels[rows]] == 1
            rows = rows[~np.isin(keys[rows], keys[rows[lone]])]
            if len(rows):
                split[pool & (keys == keys[rows[drawn[rows].argmin()]])] = s
    return split


def require_splits(rows, made, args, base):
    """Raise UserError where no row trains, or none of those that train or validate knows its leaf."""
    split, is_leaf = made.split, made.label < made.tree.leaves
    if (split == LEFT_OUT).all():
        raise UserError(f"{rows.where}: all its titles validate or test in {args.like}, so none is left to train")
    for s, name in enumerate(SPLITS if base is None else ()):
        if not (split == s).any():
            if s:
                continue  # too few different titles to hold some out: `report` says so
            raise UserError(f"{rows.where}: the {name} split is empty; the split column, or a file's name, says "
                            f"{SPLITS[rows.given.max()]} of all rows: leave it out, or read them with --test beside "
                            "the training file")
        if s < 2 and not is_leaf[split == s].any():
            raise UserError(f"{rows.where}: no {name} row has all levels of its category; those that know only a "
                            f"parent cannot {'teach' if s == 0 else 'tell'} which leaf is right")


def note_split_groups(rows, split, chosen, bad):
    """Note in `bad` how many validation and test rows have a group that trains, too."""
    held_out = (split > 0) & (split < LEFT_OUT)
    if rows.group is not None and (leaks := np.isin(rows.group[held_out], rows.group[split == 0]).sum()):
        bad.note(chosen[0][0], None, f"{leaks:,} of {held_out.sum():,} validation and test rows are of groups that "
                 "train, too, for the source gives these splits")


# --- training rows -> vocabulary --------------------------------------------------------------------------------------

def choose_words(rows, split, args, base):
    """A namespace: `vocab`, that of the base or the words of the training rows, most frequent first, equals in
    alphabetical order; `oov`, the other words of any split; `ids` [len(rows.words)], the position of each word in the
    two lists, one after the other."""
    # How often each word comes in training, and whether any split uses it: --max-len cuts words off.
    counts, used = np.zeros(len(rows.words.index), np.int64), np.zeros(len(rows.words.index), bool)
    for block in rows.blocks:
        mine = np.repeat(split[block.rows], block.lengths)
        counts += np.bincount(block.numbers[mine == 0], minlength=len(counts))
        used[block.numbers[mine != LEFT_OUT]] = True

    # A stable sort by count keeps equals in alphabetical order, so the vocabulary does not depend on the rows' order.
    names, ranks = rows.words.alphabetical()
    if "" in rows.words.index:  # of a BORDER, which has the id of padding
        counts[rows.words.index[""]], used[rows.words.index[""]] = 0, False
    count, used_names, ids = np.empty_like(counts), np.empty_like(used), np.full(len(names), -1)
    count[ranks], used_names[ranks] = counts, used
    if base:
        vocab, index = base.vocab, {word: i for i, word in enumerate(base.vocab)}
        ids = np.array([index.get(name, -1) for name in names])
    else:
        order = np.argsort(-count, kind="stable")[:(count >= max(1, args.min_count)).sum()][:args.vocab]
        vocab = data.SPECIALS + [names[i] for i in order.tolist()]
        ids[order] = len(data.SPECIALS) + np.arange(len(order))
    if len(vocab) == len(data.SPECIALS):
        raise UserError(f"{rows.where}: no word comes {args.min_count} times in the training split; lower --min-count")

    # Words that only stood beyond --max-len are in neither list, and by now in no title.
    oov = np.flatnonzero(used_names & (ids < 0))
    ids[oov] = len(vocab) + np.arange(len(oov))
    ids[ids < 0] = data.UNKNOWN
    ids[:names[0] == ""] = 0
    return SimpleNamespace(vocab=vocab, oov=[names[i] for i in oov.tolist()], ids=ids[ranks])


# --- arrays and lists -------------------------------------------------------------------------------------------------

def write_titles(folder, rows, split, words, args):
    """Write {split}_titles.npy, {split}_oov.npy and {split}_text.txt, a block at a time. Returns {split: the share of
    its words that are out of vocabulary}."""
    size, ids = len(words.vocab), words.ids.astype(data.smallest_uint(words.ids.max()))
    dtype, oov_dtype = data.smallest_uint(size - 1), data.smallest_uint(max(0, words.ids.max() - size))

    def divided(block):
        """For each split: (titles [n, max_len] as stored, which words of the others they hold, text)."""
        titles = data.pad(ids[block.numbers], block.lengths, args.max_len)
        unknown = titles >= size
        stored = np.where(unknown, data.UNKNOWN, titles).astype(dtype)
        masks = [split[block.rows] == s for s in range(3)]
        return [(stored[mine], (titles[mine][unknown[mine]].astype(np.int64) - size).astype(oov_dtype),
                 title_lines(block.titles.filter(pa.array(mine)))) for mine in masks]

    # The header of an .npy file says how many rows follow, and that is known; so rows are written as they come.
    count, oov = np.zeros(3, np.int64), [[], [], []]
    with contextlib.ExitStack() as stack:
        arrays = [stack.enter_context(array_file(folder / f"{name}_titles.npy", dtype, size, args.max_len))
                  for name, size in zip(SPLITS, np.bincount(split, minlength=3), strict=False)]
        texts = [stack.enter_context(open(folder / f"{name}_text.txt", "wb")) for name in SPLITS]
        pool = stack.enter_context(ThreadPoolExecutor(args.threads + 1))
        for by_split in cli.map_ahead(pool, divided, rows.blocks, 2 * args.threads):
            for s, (titles, numbers, text) in enumerate(by_split):
                arrays[s].write(titles)
                texts[s].write(text)
                oov[s].append(numbers)
                count[s] += (titles > 0).sum()
    unknown_share = {}
    for name, numbers, of in zip(SPLITS, map(np.concatenate, oov), count.tolist(), strict=True):
        np.save(folder / f"{name}_oov.npy", numbers)
        unknown_share[name] = len(numbers) / max(1, of)
    return unknown_share


def array_file(path, dtype, rows, columns):
    """A new file that begins as an .npy file of this shape; its rows are to be written behind."""
    file = open(path, "wb")
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                                                "fortran_order": False, "shape": (int(rows), columns)})
    return file


def write_columns(folder, rows, split, label, columns):
    """Write what else there is of each row: {split}_labels.npy and so on, and {split}_id.txt. Returns the names of the
    languages, or None."""
    names, ranks = rows.languages.alphabetical()
    language = None if rows.language is None else ranks[rows.language].astype(np.uint8)
    for kind, values in (("labels", label), ("keys", rows.key), ("groups", rows.group), ("language", language),
                         ("reliable", rows.reliable), ("line", rows.line), ("columns", columns)):
        for s, name in enumerate(SPLITS if values is not None else ()):
            np.save(folder / f"{name}_{kind}.npy", values[split == s])
    for s, name in enumerate(SPLITS if rows.id else ()):
        chunks = rows.id.filter(pa.array(split == s)).chunks
        (folder / f"{name}_id.txt").write_bytes(b"".join(map(title_lines, chunks)))
    return None if language is None else [name or "unknown" for name in names]


def write_pieces(folder, args, sizes):
    """Write {split}_pieces.npy, ids of pieces of the titles in {split}_text.txt, a block at a time; sizes: rows of the
    splits. Returns the share of titles that fill all columns."""
    from tqdm import tqdm
    full, total = 0, int(sum(sizes))
    workers = min(args.threads, -(-total // PIECE_ROWS), 61)  # Windows allows no more processes
    with contextlib.ExitStack() as stack:
        # The tokenizer is plain Python, so it takes processes; few titles are done before these have begun. They start
        # afresh: a copy of this process (fork) could hold a lock that a thread of Arrow's had at that moment.
        processes = workers > 1 and stack.enter_context(ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=encoder.begin_worker))
        pool = stack.enter_context(ThreadPoolExecutor(workers + 1))
        bar = stack.enter_context(tqdm(desc="pieces", total=total, unit=" titles", disable=None))

        # A thread only waits for a process, so that map_ahead keeps the order; without processes it does the work.
        def cut(lines):
            job = encoder.pieces, args.encoder, [line[:-1] for line in lines], args.max_pieces
            return processes.submit(*job).result() if processes else job[0](*job[1:])

        for name, size in zip(SPLITS, sizes, strict=True):
            lines = stack.enter_context(open(folder / f"{name}_text.txt", encoding="utf-8", newline="\n"))
            file = stack.enter_context(array_file(folder / f"{name}_pieces.npy", encoder.dtype(args.encoder), size,
                                                  args.max_pieces))
            blocks = iter(lambda lines=lines: list(itertools.islice(lines, PIECE_ROWS)), [])
            try:
                for ids in cli.map_ahead(pool, cut, blocks, 2 * workers):
                    file.write(ids)
                    bar.update(len(ids))
                    full += int((ids[:, -1] > 0).sum())
            except BrokenExecutor:
                raise UserError("--encoder: a process that cut titles into pieces has died (no memory?); try fewer "
                                "--threads") from None
    return full / total


# --- meta.json --------------------------------------------------------------------------------------------------------
# Shares are of rows or words, from 0 to 1; {split} has a value for train, valid and test each.
#
#   format, tokenizer         data.FORMAT; checksum of the tokenizer in classify.py that cut the titles
#   command, options          as it was typed; {flag: value} of those that decide what is prepared
#   source                    [{file, split that its name gives or null, checksum, rows {split}}], in order of the rows
#   synthetic                 whether all categories are synthetic.py's
#   rows, left_out_rows       {split}; rows that go to no split (--like, --group-column)
#   bad_rows, first_bad_row   those skipped; where and why the first, or null
#   overruled_rows            left out, as a later file puts their titles into another category
#   first_overruled_row       where the first of these stands, or null
#   unlabelled_rows           of files after the first, left out, as they have no category
#   categories, training_rows how many; [rows of each that train], with a share of those that know only a parent
#   levels, separator         of the tree of categories, 1 where they are flat; what divides them, or null
#   parent_rows               that know only a parent
#   not_split_categories      how many train, but have no test row
#   not_in_train_categories   how many have no training row
#   languages                 their names, as {split}_language.npy numbers them, or null
#   reliable_share            of labels marked reliable, or null where nothing marks them
#   vocabulary, unknown_share its words, SPECIALS included; {split}, of words that are not in it
#   max_len, cut_share        words of a title at most; of titles that had more
#   mean_words, most_words    of a title, before it is cut; that 99 of 100 have at most
#   conflicting_rows          whose title comes with another category, too
#   also_in_train             {valid, test}, of rows whose title trains, too
#   near_equal_share          of test titles that differ in one word from a training title, or null if not drawn here
#   vectors_found             of words that have a pretrained vector, or null
#   title_columns, columns    names of those that make a title, if not the usual ones; what is said of the others
#   encoder, full_share       name, version, weights and max_len of the encoder, or null; of titles that fill that
#   base, part_of             fingerprint of the folder of --like; where the file is from the folder of --parts; or null
#   files, fingerprint        {file: checksum}; a digest of those that decide what is learned
#   checksum                  of meta.json itself

def options_of(args):
    """The options that decide what is prepared, as meta.json has them."""
    return {name: readable(value) if isinstance(value, Path) else value for name, value in vars(args).items()
            if name not in ("data", "test", "out", "threads", "mirror", "download", "given", "parts", "check")}


def describe(args, chosen, rows, made, bad):
    """What meta.json says, but for the checksums. made: a namespace of what `prepare` has made of the rows."""
    sizes = np.bincount(made.split, minlength=3)[:3].tolist()
    leaves, nodes = made.tree.leaves, len(made.tree.names)
    of_category = [np.bincount(made.label[made.split == s], minlength=nodes)[:leaves] for s in range(3)]
    by_file = [np.bincount(mine, minlength=3).tolist() for mine in np.split(made.split, np.cumsum(rows.of_file)[:-1])]
    words, titles = rows.of_length
    held_out = {name: rows.key[made.split == s] for s, name in enumerate(SPLITS) if s}
    drawn = not args.like and rows.group is None and not (rows.given == 2).any()
    return {
        "format": data.FORMAT, "tokenizer": data.TOKENIZER,
        "synthetic": all(name.startswith(synthetic.PREFIX) for name in made.tree.names),
        "command": cli.public(readable(shlex.join(["python", "prepare.py", *sys.argv[1:]]))),
        "source": [{"file": readable(path), "split": None if s is None else SPLITS[s], "checksum": files.checksum(path),
                    "rows": dict(zip(SPLITS, counts, strict=False))}
                   for (path, s), counts in zip(chosen, by_file, strict=True)],
        "options": options_of(args),
        "base": made.base, "part_of": args.parts and parts.place_of(args.data[0], args.parts),
        "rows": dict(zip(SPLITS, sizes, strict=True)), "left_out_rows": int((made.split == LEFT_OUT).sum()),
        "bad_rows": bad.count, "first_bad_row": bad.first and readable(bad.first),
        "overruled_rows": rows.overruled,
        "first_overruled_row": rows.first_overruled and readable(rows.first_overruled),
        "unlabelled_rows": bad.unlabelled,
        "categories": leaves, "training_rows": tree.shared_rows(made.label[made.split == 0], made.tree).tolist(),
        "levels": made.tree.levels, "separator": args.separator,
        "parent_rows": int((made.label[made.split != LEFT_OUT] >= leaves).sum()),
        "not_split_categories": int(((of_category[0] > 0) & (of_category[2] == 0)).sum()),
        "not_in_train_categories": int((of_category[0] == 0).sum()),
        "languages": made.languages,
        "reliable_share": None if rows.reliable is None else float(rows.reliable[made.split != LEFT_OUT].mean()),
        "vocabulary": len(made.words.vocab), "unknown_share": made.unknown_share,
        "max_len": args.max_len, "cut_share": float(titles[words > args.max_len].sum() / titles.sum()),
        "mean_words": float(np.average(words, weights=titles)),
        "most_words": length_of_whole(words, titles),
        "conflicting_rows": conflicting_rows(rows.key, made.label, made.tree),
        "also_in_train": {name: float(np.isin(keys, rows.key[made.split == 0]).sum() / max(1, len(keys)))
                          for name, keys in held_out.items()},
        "near_equal_share": near_equal_share(rows, made.split) if drawn else None,
        "vectors_found": made.vectors_found, "encoder": made.encoder,
        "title_columns": title_names(args, chosen),
        "columns": [*map(columns.said_of, made.columns)],
    }


def conflicting_rows(keys, label, found):
    """How many rows have a title, told by keys [N], that comes with another category, too: with nodes [N] of the tree
    `found` of which one is not above the other."""
    # The distinct pairs of a title and a node, those of a title from the top; the last is its deepest.
    _, title = np.unique(keys, return_inverse=True)
    nodes = len(found.names)
    titles, node = np.divmod(np.unique(title * nodes + label), nodes)
    order = np.lexsort((found.level[node], titles))
    titles, node = titles[order], node[order]
    deepest = node[np.searchsorted(titles, titles, "right") - 1]
    odd = found.above[deepest, found.level[node] - 1] != node
    return int(np.isin(title, titles[odd]).sum())


def title_names(args, chosen):
    """The names of the columns that --title-column means; those that it numbers are named by the first file."""
    names = formats.named(args.title_column)
    header = sources.header_names(chosen[0][0], formats.format_from(args)) if {int} & {*map(type, names)} else []
    return [header[name - 1] if isinstance(name, int) and name <= len(header) else str(name) for name in names]


def near_equal_share(rows, split):
    """Of a sample of the test rows of four words or more, the share with a near-equal title in training."""
    def sums(chosen):
        """Yield (data.near_sums of these rows [N] bool, the row of each), a block at a time."""
        for block in rows.blocks:
            mine = chosen[block.rows] & (block.lengths > 3)
            found, title = data.near_sums(rows.word_keys[block.numbers[np.repeat(mine, block.lengths)]],
                                          block.lengths[mine])
            yield found, block.rows.start + np.flatnonzero(mine)[title]

    sample, near = np.zeros(len(split), bool), np.zeros(len(split), bool)
    sample[np.random.default_rng(0).permutation(np.flatnonzero(split == 2))[:NEAR_ROWS]] = True
    wanted, row = map(np.concatenate, zip(*sums(sample), strict=True))

    # Of the sums of all training rows few are wanted; a table of 2^22 flags sorts out most others.
    flags = np.zeros(1 << 22, bool)
    flags[wanted >> np.uint64(42)] = True
    for found, _ in sums(split == 0):
        near[row[np.isin(wanted, found[flags[found >> np.uint64(42)]])]] = True
    return float(near.sum() / max(1, len(np.unique(row))))


# --- the whole way ----------------------------------------------------------------------------------------------------

def prepare(args):
    """What main does with the arguments. Files become rows, rows get splits, training rows give the vocabulary, and all
    of it becomes arrays."""
    started = time.time()
    args, base = read_base(args) if args.like else (args, None)
    args.columns = args.columns or []
    columns.require_distinct(args.columns)
    described = args.encoder and encoder.describe(args.encoder, args.max_pieces)  # a missing package shows at once
    chosen = choose_files(args)
    require_own(args.out)
    bad = formats.BadRows(args.max_bad_rows)
    with files.atomic_folder(args.out) as folder:
        # Under the lock, so that two files of one name that are prepared at once do not replace each other.
        if args.parts and not (why := parts.why_again(args.data[0], args.out, options_of(args), base)):
            raise parts.AlreadyThere
        if args.parts and why != "missing":
            print(f"{args.out}: {why}; prepared again")
        rows = read_rows(args, chosen, bad, base)
        if not args.max_len:
            args.max_len = length_for(*rows.of_length_in_train)
            rows.blocks = [cut(block, args.max_len) for block in rows.blocks]
        if len(args.data or ()) > 1:
            settle(rows, len(args.data), base)
        # Labels of which nothing is said, such as predicted ones, are not reliable beside those that are.
        if base and base.knows_quality and rows.reliable is None:
            rows.reliable = np.zeros(len(rows.key), bool)

        # What the rows are made into, see `describe`.
        made = SimpleNamespace(encoder=described, base=base and base.fingerprint)
        made.tree, made.label = categories.numbered(rows, base, bad)
        made.split = split_rows(rows, made.label, args, base, made.tree.leaves)
        require_splits(rows, made, args, base)
        if not base:
            categories.note_odd(rows, made.tree, made.label, forms_of(args, rows.paths), bad)
        note_split_groups(rows, made.split, chosen, bad)
        made.words = choose_words(rows, made.split, args, base)
        made.columns, values = columns.choose(rows, made.split, args, base, bad)

        made.unknown_share = write_titles(folder, rows, made.split, made.words, args)
        made.languages = write_columns(folder, rows, made.split, made.label, values)
        for name, lines in (("vocab", made.words.vocab), ("oov", made.words.oov),
                            ("labels", made.tree.names[:made.tree.leaves]), ("columns", made.columns)):
            if lines or name != "columns":
                files.write_lines(folder / f"{name}.txt", lines)
        made.vectors_found = None
        if args.vectors:
            vectors = base.vectors if base else data.read_vectors(args.vectors, made.words.vocab,
                                                                  formats.BadRows(args.max_bad_rows))
            np.save(folder / "vectors.npy", vectors)
            made.vectors_found = float(vectors[len(data.SPECIALS):].any(1).mean())  # these never have one
        meta = describe(args, chosen, rows, made, bad)
        if described:
            meta["full_share"] = write_pieces(folder, args, meta["rows"].values())

        meta |= identity(folder, made.tree.levels, args.threads)
        files.write_json(folder / "meta.json", files.with_checksum(meta))
        written = sum(path.stat().st_size for path in folder.iterdir())
    bad.warn()
    say(meta, made.tree, args.out, written, time.time() - started)
    tell_costs(args, meta["rows"]["train"])


def check_parts(args):
    """What --check does."""
    args, base = read_base(args)
    paths = [path for one in args.data for path in (title_files(one) if one.is_dir() else [one])]
    if not parts.check(paths, args.parts, options_of(args), base, args.threads):
        sys.stdout.flush()
        cli.exit_with(1)


def identity(folder, levels, threads):
    """What meta.json says of the files in a folder: `files` and `fingerprint`."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(threads) as pool:
        sums = dict(zip((path.name for path in paths), pool.map(files.checksum, paths), strict=True))

    # Pieces follow from the text and the encoder: without them, runs on the same data can be compared and averaged.
    # Where rows stand in their files decides nothing. The same files say something else where names are no paths.
    deciding = {name: digest for name, digest in sums.items()
                if not name.endswith(("_pieces.npy", "_line.npy", "_id.txt"))}
    return {"files": sums, "fingerprint": files.fingerprint(deciding | ({"levels": levels} if levels > 1 else {}))}


def require_own(out):
    """Raise UserError where the folder --out, which is replaced as a whole, holds anything but prepared data: meta.json
    and the files that it lists."""
    folder = out.resolve()  # where --out is a link, what it points to is replaced
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {out.name} if folder.exists() else set()
    own = set()
    if "meta.json" in names:
        try:
            own = {"meta.json", *files.read_json(folder / "meta.json").get("files", ())}
        except (UserError, TypeError):
            raise UserError(f"{out}/meta.json: damaged, so nothing tells which files here are prepared data; delete "
                            "the folder, or choose another --out") from None
    if foreign := sorted(names - own):
        raise UserError(f"{out}: is there and holds something else than prepared data ({foreign[0]}); choose "
                        "another --out")


# --- what is said at the end ------------------------------------------------------------------------------------------

def say(meta, found, out, written, seconds):
    """Print the table at the end; found: the classify.Tree of the categories."""
    total = sum(meta["rows"].values())
    percent = "{:.2%}".format

    # What there is none of, such as bad rows, gets no line.
    lines = {
        "rows": f"{total:,} (" + ", ".join(f"{name} {n:,}" for name, n in meta["rows"].items()) + ")",
        "left out": meta["left_out_rows"] and f"{meta['left_out_rows']:,} rows whose titles " + (
            f"or groups validate or test in {meta['options']['like']}" if meta["options"]["like"]
            else "stand in a group on another side, too"),
        "overruled": meta["overruled_rows"] and f"{meta['overruled_rows']:,} rows whose titles a later file puts into "
                     f"another category, first {meta['first_overruled_row']}; they are left out",
        "not labelled yet": meta["unlabelled_rows"] and f"{meta['unlabelled_rows']:,} rows of files after the first "
                            "have no category and are left out",
        "bad rows skipped": meta["bad_rows"] and f"{meta['bad_rows']:,}, first {meta['first_bad_row']}",
        "categories": f"{meta['categories']:,}" + (meta["levels"] > 1) * (
            f" in {meta['levels']} levels ({', '.join(f'{found.size(i + 1):,}' for i in range(found.levels))} nodes)"),
        "know only a parent": meta["parent_rows"] and f"{meta['parent_rows']:,} rows",
        "languages": ", ".join(meta["languages"] or []) or "not given",
        "reliable labels": "not given" if meta["reliable_share"] is None else percent(meta["reliable_share"]),
        "vocabulary": f"{meta['vocabulary']:,} words, from the training split alone",
        "unknown words": ", ".join(f"{name} {percent(meta['unknown_share'][name])}" for name in SPLITS[1:]),
        "columns": "; ".join(meta["columns"]),
        "words a title": f"{meta['mean_words']:.1f}; {percent(meta['cut_share'])} of titles cut at "
                         f"{meta['max_len']} words",
        "conflicting labels": meta["conflicting_rows"] and f"{meta['conflicting_rows']:,} rows have a title that comes "
                              "with another category, too",
        "titles also in train": ", ".join(f"{name} {percent(x)}" for name, x in meta["also_in_train"].items()
                                          if meta["rows"][name]),
        "near-equal titles": (meta["near_equal_share"] or 0) >= NEAR_SHARE and (
            f"{meta['near_equal_share']:.0%} of the test titles differ in one word from a training title; if these are "
            "variants of one product, keep them on one side with --group-column"),
        "vectors found": None if meta["vectors_found"] is None else percent(meta["vectors_found"]) + " of words",
        "pieces": meta["encoder"] and f"of encoder {meta['encoder']['name']}; {percent(meta['full_share'])} of titles "
                                      f"have {meta['encoder']['max_len']} or were cut there",
        "written": f"{written:,} bytes to {out}/, fingerprint {meta['fingerprint']}",
        "time": f"{seconds:.1f} s, {total / seconds:,.0f} titles/s",
    }
    print(("SYNTHETIC DATA, " if meta["synthetic"] else "") + "prepared:")
    for name, line in lines.items():
        if line:
            print(f"  {name:<22}{line}")
    warn_of_cut(meta)
    if meta["options"]["like"]:
        return  # what a part lacks, the folder that it is like may have
    for split, what in (("valid", "a training keeps its last epoch, what probabilities mean is not known, and no "
                         "precision can be promised"), ("test", "name test rows with --test")):
        if not meta["rows"][split]:
            print(f"warning: the {split} split is empty, for there are too few different titles to hold some out: "
                  f"{what}", file=sys.stderr)
    lacks_test = meta["rows"]["test"] and meta["not_split_categories"]
    for number, what in ((lacks_test, "have no test row; scores do not cover them"),
                         (meta["not_in_train_categories"], "have no training row and cannot be learned")):
        if number:
            print(f"warning: {number:,} categories {what}", file=sys.stderr)


def warn_of_cut(meta):
    """Say on standard error where much of the titles is cut off, and what reads more."""
    like = meta["options"]["like"]
    where = f"prepare {like} again with " if like else ""
    if meta["cut_share"] > CUT_OFF:
        print(f"warning: {meta['cut_share']:.0%} of the titles have more than {meta['max_len']} words, and what comes "
              f"behind these is not read; {WHOLE:.0%} have at most {meta['most_words']}: {where}--max-len "
              f"{meta['most_words']}", file=sys.stderr)
    if (meta.get("full_share") or 0) > CUT_OFF:
        print(f"warning: {meta['full_share']:.0%} of the titles may have more than {meta['encoder']['max_len']} "
              f"pieces, and an encoder does not read what comes behind; {where}a larger --max-pieces reads more, and "
              "trains slower", file=sys.stderr)


def tell_costs(args, rows):
    """Print what training takes on what was prepared, where these are many training rows, as train.py says it; a
    warning where it cannot."""
    if rows < (MANY_PIECED if args.encoder else MANY_ROWS) or args.like:
        return
    # What a step costs only JAX can tell, which is not loaded here.
    models = ["mlp", "cnn", *["encoder"] * bool(args.encoder)]
    command = ["train.py", "--data", str(args.out), "--costs", "--model", *models]
    try:
        done = subprocess.run([sys.executable, Path(__file__).resolve().parent / command[0], *command[1:]],
                              capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE,
                              stdin=subprocess.DEVNULL)
        failed = done.returncode and (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    if failed:
        print(f"warning: what training takes is not known ({failed[:200]}); try python {cli.quoted(command)}",
              file=sys.stderr)
        return
    print("training on this machine:")
    for line in done.stdout.splitlines():
        print(f"  {line.replace(' costs', ':', 1)}")
    print(done.stderr, end="", file=sys.stderr)


# --- command line -----------------------------------------------------------------------------------------------------

def column_flag(text):
    """An argparse type: (name, "word", "number", "number.", "number," or None) of a column."""
    name, _, kind = text.rpartition(":")
    name, kind = (name, kind) if kind in ("word", "number", "number.", "number,") and name else (text, None)
    if not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: wanted the name of a column")
    return readable(name).strip(), kind


def main():
    parser = cli.argument_parser(__doc__, stray=lambda word: "--data")
    add = parser.add_argument
    add("--data", type=Path, nargs="+", action="extend", metavar="PATH",
        help="file of titles and categories, several of which the later ones have the last word, or a folder (default: "
        "what lies in data/raw/)")
    add("--test", type=Path, help="file with the test split (default: a folder's own, else 20 %% of the rows)")
    add("--out", type=Path, default=cli.PREPARED, help="folder to write")
    add("--like", type=Path, metavar="DIR", help="prepare with the vocabulary, categories and options of this folder")
    add("--parts", type=Path, metavar="DIR",
        help="with --like, instead of --out: folder of parts, where the part of a file has the file's name")
    add("--check", action="store_true", help="with --parts: prepare nothing, but print which files have no sound part")
    add("--download", choices=DOWNLOADS, help="fetch this public data set into data/raw/ first")
    add("--mirror", metavar="URL", help="fetch from this address instead of the public server")
    add("--languages", nargs="+", type=readable, metavar="L", help="keep only these languages, e.g. spanish")
    add("--rows", type=cli.positive(int), help="read at most so many rows of training data, from the start")
    add("--vocab", type=cli.positive(int), default=1_000_000, help="keep at most so many words, the most frequent")
    add("--min-count", type=cli.positive(int), default=1, help="drop words rarer than this in the training split")
    add("--max-len", type=cli.positive(int),
        help=f"cut titles to so many words (default: {USUAL}; where more than {100 * CUT_OFF:.0f} %% have more, what "
        f"leaves {100 * WHOLE:.0f} %% whole, {data.KEY_WORDS} at most)")
    add("--fold", type=cli.fold, metavar="I/K",
        help="make the test split of the I-th of K equal parts, so that K runs see every row once as a test row")
    add("--valid", type=cli.fraction, default=0.1, help="share of the rest for validation, where the source has none")
    add("--seed", type=cli.seed, default=0, help="decides the splits, and the synthetic titles")
    add("--vectors", type=Path, help="pretrained vectors: word2vec, GloVe or fastText text file, plain or compressed")
    add("--encoder", choices=encoder.ENCODERS, help="also cut titles into pieces for this pretrained encoder")
    add("--max-pieces", type=cli.positive(int), default=28, help="with --encoder: pieces of a title, marks included")
    add("--title-column", nargs="+", metavar="C",
        help="name or number (from 1) of the column of titles (default: title or text), or of several, which are one "
        "text whose parts stay apart")
    add("--columns", nargs="+", type=column_flag, metavar="C",
        help="names of columns that are read beside the title, such as brand and price; :word or :number behind a name "
        "says what the column has")
    add("--value-min-count", type=cli.positive(int), default=1, metavar="N",
        help="values of --columns in fewer training rows are unknown")
    add("--category-column", nargs="+", metavar="C",
        help="the same of categories (default: category or label); several are the levels of a tree, from the top")
    add("--separator", type=cli.level_separator, metavar="S",
        help="categories are paths of a tree, whose levels are divided by this, such as '>'")
    add("--group-column", metavar="C",
        help="name or number of a column, such as the product or seller; its rows stay on one side of a drawn split")
    add("--encoding", type=cli.encoding, default="utf-8", help="of the files, such as cp1252 (Excel) or utf-16")
    add("--max-bad-rows", type=cli.positive(float), default=0.01,
        help="bad rows to skip: a share below 1, or a count")
    add("--threads", type=cli.positive(int), default=min(8, os.cpu_count()),
        help="threads that tokenize, and processes that cut titles into pieces")
    args = cli.parse_args(parser)
    for flag, wanted in GOES_WITH.items():
        if flag in args.given and not (vars(args)[wanted] or args.like):  # which says itself what it takes
            raise UserError(f"{flag_of(flag)} goes with {flag_of(wanted)}")
    if args.parts or args.check:
        parts.require(args)
        args.out = args.parts if args.check else parts.part_of(args.data[0], args.parts)
    if args.check:
        return check_parts(args)
    try:
        prepare(args)
    except parts.AlreadyThere:
        print(f"{args.out}: is there, whole, of {args.data[0]} as it is")


if __name__ == "__main__":
    cli.run(main)
