"""Titles as numbers: word ids, n-grams, keys, the prepared arrays and the order of batches.

The prepared folder (`data/prepared/`), for each split `train`, `valid`, `test`:

    {split}_titles.npy    [N, max_len] word ids (smallest unsigned type), 0 = padding, 1 = out of vocabulary
    {split}_oov.npy       for each of these 1, row by row, its line in oov.txt (from 0)
    {split}_text.txt      the titles as they came, one a line, for reports
    {split}_keys.npy      [N] uint64, what tells a title from others, see `title_keys`
    {split}_groups.npy    [N] uint64, the same of its group          (after `prepare.py --group-column`)
    {split}_labels.npy    [N] category ids (smallest unsigned type); where categories are paths of a tree, which have
                          several meta["levels"], nodes of classify.Tree: a row may know only what is above a leaf
    {split}_language.npy  [N] uint8, index into meta["languages"]    (where the source names a language)
    {split}_reliable.npy  [N] bool                                   (where the source names a label quality)
    {split}_pieces.npy    [N, max_len of meta["encoder"]] ids of pieces of words   (after `prepare.py --encoder`)
    {split}_line.npy      [N] lines of the source files, from 1; of a Parquet file rows (smallest unsigned type). The
                          rows of a file follow one another, and meta["source"] says how many each has in which split
    {split}_columns.npy   [N, K] ids of the values of columns (smallest unsigned type), 0 = nothing (after --columns)
    {split}_id.txt        what the source's column `id` says of each row, one a line     (where a source has one)
    vocab.txt, labels.txt one entry a line, line number = id, from 0; of a tree the paths of its leaves
    oov.txt               the other words: cut by --vocab or --min-count, or not in training at all
    columns.txt           a line for each column, see classify.Column                     (after `prepare.py --columns`)
    vectors.npy           [V, dim] float32, zero where not found     (after `prepare.py --vectors`)
    meta.json             command, sources, options, counts, format version, checksum of every file, fingerprint of all
                          that decides what is learned

A folder of parts (`prepare.py --parts`) has such folders, each named as the file that it was made of.

What a word is, and what an n-gram, says classify.py, which exported models bring with them; here is what many titles at
once need beside that. How files of titles are read (titles/sources.py), what a model computes (model.py) and what a run
keeps (titles/runs.py) do not belong here.
"""
import functools
import hashlib
import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

import classify
from classify import PLAIN_BYTES, SPECIALS, UNKNOWN, decode_entities, tokenize
from titles import files
from titles.cli import UserError

FORMAT = 6  # of the prepared folder: raise it when its files change their meaning
SPLITS = ("train", "valid", "test")
DESCRIBED = ("command", "source", "fingerprint", "synthetic", "categories", "vocabulary", "languages", "reliable_share",
             "unknown_share", "mean_words", "cut_share", "title_columns", "levels",
             "separator")  # what a run keeps of meta.json
AGAIN = "run prepare.py again"  # what helps where a folder is not what it was
MAX_STEPS = 8  # of a chunk, which is one call of the compiled loop; titles of a chunk are all short or all long
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")  # in files of word vectors

# --- words ------------------------------------------------------------------------------------------------------------

# The checksum of what says what a word is: a section of classify.py, whose networks are edited more often.
TOKENIZER = files.checksum_of(
    Path(classify.__file__).read_bytes().partition(b"# --- tokenizer -")[2].partition(b"# --- ")[0])

tokenize_chunk = functools.lru_cache(1 << 18)(tokenize)  # most chunks come again and again


def bulk_tokenize(titles):
    """The words that classify.tokenize gives, of many titles, quickly.

    Titles are cut into chunks at ASCII separators by whole-array operations, which release the interpreter lock; each
    distinct chunk is then cut by `tokenize`.

    Args: titles, a pyarrow string array without nulls.
    Returns: (codes [T] int32, words, lengths [N] int32): the words of all titles one after the other, as indices into
    the list `words` (which may hold a word twice), and how many words each title has.
    """
    import pyarrow.compute as pc

    # Two things reach across a separator: HTML entities, and capital sigma, whose lower case depends on what stands
    # behind it. Titles that hold one are decoded and made lower case as a whole first. Doing so twice would change
    # nothing, for no chunk of a title holds the ampersand that an entity begins with.
    whole = pc.match_substring_regex(titles, "&[#0-9a-zA-Z]+;|Σ")
    if pc.any(whole).as_py():
        decoded = [decode_entities(title).lower() for title in titles.filter(whole).to_pylist()]
        titles = pc.replace_with_mask(titles, whole, pa.array(decoded, titles.type))

    # The bytes of all titles one after the other, and where each title begins.
    _, offsets, content = titles.buffers()
    offsets = np.frombuffer(offsets, np.int32)[titles.offset:titles.offset + len(titles) + 1]
    text = content[offsets[0]:offsets[-1]].to_pybytes().translate(PLAIN_BYTES) if content else b""
    offsets = offsets - offsets[0]

    # A chunk is a run of bytes that are no space, within one title.
    inside = np.frombuffer(text, np.uint8) != ord(" ")
    edge = np.ones(len(text) + 1, bool)
    edge[1:-1] = inside[1:] != inside[:-1]
    edge[offsets] = True
    starts, ends = np.flatnonzero(edge[:-1] & inside), np.flatnonzero(edge[1:] & inside) + 1
    bounds = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
    chunks = pa.StringArray.from_buffers(len(starts), pa.py_buffer(bounds), pa.py_buffer(text.translate(None, b" ")))

    # A chunk holds one word in most cases, but may hold none or several.
    chunks = chunks.dictionary_encode()
    codes = np.frombuffer(chunks.indices.buffers()[1] or b"", np.int32)[:len(chunks)]  # to_numpy would load pandas
    words = [tokenize_chunk(chunk) for chunk in chunks.dictionary.to_pylist()]
    count = np.array([len(found) for found in words], np.int32)
    first = (np.cumsum(count) - count).astype(np.int32)
    word_ends = np.concatenate([[0], np.cumsum(count[codes])]).astype(np.int32)
    flat = np.repeat(first[codes] - word_ends[:-1], count[codes]) + np.arange(word_ends[-1], dtype=np.int32)
    lengths = np.diff(word_ends[np.searchsorted(starts, offsets)])
    return flat, list(itertools.chain.from_iterable(words)), lengths


def pad(flat, lengths, max_len):
    """Cut or pad: flat [T] ids of all titles in turn, lengths [N] -> [N, max_len] ids, 0 behind the last word."""
    # The row and the column of every word; those beyond the last column are left out.
    padded = np.zeros((len(lengths), max_len), flat.dtype)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    column = np.arange(len(flat)) - np.repeat(starts, lengths)
    keep = column < max_len
    padded[row[keep], column[keep]] = flat[keep]
    return padded


def binary_array(values):
    """A list of bytes as a pyarrow array. pa.array would load pandas, a sixth of the time to classify one title."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))])


def tokenize_list(titles):
    """`bulk_tokenize` of a list of str. A lone surrogate only separates."""
    return bulk_tokenize(binary_array([title.encode("utf-8", "replace") for title in titles]).view(pa.string()))


def encode(titles, index, max_len):
    """Titles (list of str) -> ([N, max_len] uint32 word ids, list of the words that have none in `index`).

    index: a dictionary from word to id, 0 to len(index) - 1; other words get the ids behind them, and the empty ones of
    a classify.BORDER 0.
    """
    # Each distinct word is looked up once.
    codes, words, lengths = tokenize_list(titles)
    others = {}
    ids = np.array([index[word] if word in index else others.setdefault(word, len(index) + len(others)) if word else 0
                    for word in words], np.uint32)
    return pad(ids[codes] if len(codes) else ids, lengths, max_len), list(others)


def ngram_places(count):
    """The length of the array of so many n-grams: a power of two, so that few sizes are compiled."""
    return 1 << max(12, count.bit_length())


def character_ngrams(words, minn, maxn, buckets):
    """classify.character_ngrams of words that begin with SPECIALS, which have none, as (start [W + 1] int32, bucket [T]
    int32), T as `ngram_places` says; what stands behind start[W] is 0."""
    start, found = classify.character_ngrams(words[len(SPECIALS):], minn, maxn, buckets)
    bucket = np.zeros(ngram_places(len(found)), np.int32)
    bucket[:len(found)] = found
    return np.pad(start, (len(SPECIALS), 0)).astype(np.int32), bucket


# --- keys of titles ---------------------------------------------------------------------------------------------------
# A key tells whether a title has been seen before: in another split, another file, an earlier training. It depends on
# the words of the title alone, so it is the same in every file, and whatever --max-len and the vocabulary are.

KEY_WORDS = 64  # titles whose first so many words are the same are equal; prepare.py reads as many at most by itself
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: an odd number without a pattern
POWERS = np.array([pow(GOLDEN, i + 1, 1 << 64) for i in range(KEY_WORDS)], np.uint64)


def text_keys(texts):
    """[len(texts)] uint64: the first 8 bytes of each text's BLAKE2 digest."""
    digests = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "<u8")


def title_keys(word_keys, lengths):
    """[N] uint64, equal for titles that begin with the same KEY_WORDS words: a polynomial in GOLDEN of the words' keys,
    modulo 2^64. word_keys [T]: `text_keys` of the words of all titles in turn; lengths [N]: words of each title."""
    position = np.arange(len(word_keys)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    first = position < KEY_WORDS
    terms = np.zeros(len(word_keys) + 1, np.uint64)
    terms[1:][first] = word_keys[first] * POWERS[position[first]]

    # A running sum: its difference between the bounds of a title is the sum of the terms in it.
    sums, ends = np.cumsum(terms), np.cumsum(lengths, dtype=np.int64)
    return sums[ends] - sums[ends - lengths]


def keys_of(titles):
    """`title_keys` of titles (list of str)."""
    codes, words, lengths = tokenize_list(titles)
    return title_keys(text_keys(words)[codes], lengths)


def near_sums(word_keys, lengths):
    """(sums [S] uint64, the title of each [S]): titles are near equal where they share one, which those of the same
    words do, in any order, and of four words or more those that differ in one word, which is added, dropped or
    exchanged. word_keys [T]: `text_keys` of the words of all titles in turn; lengths [N]: words of each title."""
    # The sum of the keys of all words, and of long titles also those of all but one.
    title = np.repeat(np.arange(len(lengths)), lengths)
    sums, ends = np.pad(np.cumsum(word_keys, dtype=np.uint64), (1, 0)), np.cumsum(lengths, dtype=np.int64)
    total, is_long = sums[ends] - sums[ends - lengths], lengths[title] > 3
    return (np.concatenate([total, (total[title] - word_keys)[is_long]]),
            np.concatenate([np.arange(len(lengths)), title[is_long]]))


def draw(keys, seed, purpose):
    """[N] float64 in [0, 1) of keys [N] uint64: random numbers that depend on key, seed and purpose (0 or 1) alone, by
    the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = keys + np.uint64((2 * seed + purpose + 1) * GOLDEN % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0 ** -53


# --- prepared arrays --------------------------------------------------------------------------------------------------

def smallest_uint(largest):
    """The smallest unsigned integer dtype that holds `largest`."""
    return np.min_scalar_type(int(largest))


class Titles:
    """Word ids [N, L] of the titles of a split, of one prepared folder or of several. A slice, or an array of row
    numbers, reads these rows from the disk. Only where a folder has unknown words, a number for each row is kept in
    memory."""

    def __init__(self, parts, longest, dtype):
        """parts: [(array [n, max_len] as prepare.py writes it, ids [U] of the words that it has as UNKNOWN)]; longest:
        columns that count."""
        self.dtype, self.parts, self.ends = dtype, [], np.cumsum([len(array) for array, _ in parts])
        self.shape = int(self.ends[-1]), longest
        for array, unknown in parts:
            # Where the unknown words of each row begin among those of all rows.
            count = [(array[rows] == UNKNOWN).sum(1) for rows in blocks(len(array))] if len(unknown) else []
            self.parts.append((array, unknown, np.cumsum(np.concatenate([[0], *count]))))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        result, part_of = np.empty((len(rows), self.shape[1]), self.dtype), np.searchsorted(self.ends, rows, "right")
        for number, (array, unknown, first) in enumerate(self.parts):
            mine = np.flatnonzero(part_of == number)
            begin = self.ends[number] - len(array)
            for block in blocks(len(mine)):
                at = rows[mine[block]] - begin
                ids = array[at, :self.shape[1]].astype(self.dtype)
                if len(unknown):
                    # The number of each unknown word within its row.
                    here = ids == UNKNOWN
                    ids[here] = unknown[(first[at][:, None] + here.cumsum(1) - 1)[here]]
                result[mine[block]] = ids
        return result


def blocks(rows, size=100_000):
    """Slices of so many rows, a block of them at a time."""
    return [slice(start, start + size) for start in range(0, rows, size)]


def load_prepared(folders, splits=SPLITS, text=None, on_disk=(), ids=True):
    """The prepared data of some splits, of one folder or of several that share vocabulary and labels (prepare.py
    --like), as if they were one; every file checked against its checksum.

    Args: folders, as of `folders_of`; text, the split whose titles are wanted as they came, or None; on_disk,
    splits whose titles stay there, as Titles; ids, False where `titles` and `pieces` are not wanted, nor read.
    Returns: (meta, arrays). meta: the content of meta.json with `vocab`, `words` (vocab, then oov.txt), `labels`, the
    lines of columns.txt as `columns`, and `vectors` (or None). arrays[split][kind]: `titles` [N, L] ids in `words`,
    columns that are padding in every row cut off; `labels`; `keys`; where there are any `groups`, `language`,
    `reliable`, `columns` and `pieces` (of one folder left on the disk); with `text` lists of str: the titles, the
    `file` that each comes from and, where all have one, its `id`; and its `line` there [N].
    Raises UserError where a folder holds no prepared data, or not what prepare.py wrote, or where they do not go
    together.
    """
    known = {}
    found = [(*read_prepared(folder, splits, text, ids, known), folder) for folder in folders_of(folders)]
    # In an order of their own, so that it does not matter how they are named.
    found.sort(key=lambda item: item[0]["fingerprint"])
    for (one, _, folder), (other, _, its_folder) in itertools.pairwise(found):
        if one["fingerprint"] == other["fingerprint"]:
            raise UserError(f"{folder} and {its_folder}: the same prepared data twice; leave one of them out")
    require_alike([(folder, meta) for meta, _, folder in found])
    meta, languages = joined_meta([meta for meta, *_ in found])

    # On disk words out of vocabulary have the id 1, so that ids stay small; here they get ids of their own, for their
    # character n-grams are known.
    index = {word: i for i, word in enumerate(meta["words"])}
    oov_ids = [np.array([index[word] for word in one["oov"]], smallest_uint(len(index) - 1)) for one, *_ in found]
    longest = max(np.flatnonzero(rows["titles"].any(0)).max(initial=0) for _, arrays, _ in found
                  for rows in arrays.values()) + 1 if splits and ids else 0
    arrays = {}
    for split in splits:
        parts = [rows[split] for _, rows, _ in found]
        arrays[split] = {}
        if ids:
            titles = Titles([(part["titles"], words[part["oov"]]) for part, words in zip(parts, oov_ids, strict=True)],
                            longest, smallest_uint(len(index) - 1))
            arrays[split]["titles"] = titles if split in on_disk else titles[:]
        for part, codes in zip(parts, languages, strict=True):
            if "language" in part:
                part["language"] = codes[part["language"]]
        for kind in parts[0].keys() - {"titles", "oov"}:
            # What not all folders have is left out.
            if all(kind in part for part in parts):
                values = [part[kind] for part in parts]
                arrays[split][kind] = values[0] if len(parts) == 1 else (
                    [*itertools.chain(*values)] if isinstance(values[0], list) else np.concatenate(values))
    return meta, arrays


def folders_of(named):
    """The prepared folders that --data names, a path or a list of paths: for a folder of parts these, by their
    names."""
    named = [named] if isinstance(named, (str, Path)) else named
    return [part for folder in map(Path, named) for part in parts_in(folder) or [folder]]


def parts_in(folder):
    """The parts in a folder of parts (prepare.py --parts), sorted by name: the folders there that do not begin with a
    dot. Of any other folder []. Raises UserError where one of them is half-written."""
    if (folder / "meta.json").is_file() or not folder.is_dir():
        return []
    files.recover_folders(folder)
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in parts:
        if files.TEMPORARY.search(path.name):
            raise UserError(f"{path}: half-written, by a process that is at work or was killed; wait for it, or "
                            f"prepare {files.TEMPORARY.sub('', path.name)} again")
    return parts if any((path / "meta.json").is_file() for path in parts) else []


def described(meta):
    """What a run keeps of the meta.json of its data."""
    return {name: meta[name] for name in DESCRIBED}


def tree_of(meta):
    """The classify.Tree whose leaves the categories of prepared data are."""
    return classify.Tree(meta["labels"], meta["levels"] > 1)


def files_of(source, split):
    """Where the rows of a split come from, of meta["source"]: [{"file", "rows", "checksum"}], in their order."""
    return [{"file": one["file"], "rows": one["rows"][split], "checksum": one["checksum"]}
            for one in source if one["rows"][split]]


def require_alike(found):
    """Raise UserError unless what was prepared in these folders can be used as one: found, [(folder, meta.json)]."""
    # The folder that others are like is what these are compared with.
    (folder, meta), *others = sorted(found, key=lambda one: bool(one[1]["options"]["like"]))
    bases = {one["fingerprint"] for _, one in found if not one["options"]["like"]}
    for other, its in others:
        different = [name for name in ("vocab.txt", "labels.txt", "columns.txt", "vectors.npy")
                     if its["files"].get(name) != meta["files"].get(name)]
        different += [name for name in ("tokenizer", "max_len", "encoder", "levels") if its[name] != meta[name]]
        if different:
            raise UserError(f"{other}: was prepared with another {different[0]} than {folder}; prepare one of them "
                            "--like the other")
        # With other rows held out some of these could train.
        if bases and its["base"] not in {None, *bases}:
            raise UserError(f"{other}: was prepared --like other data than {folder} now holds; prepare it again --like "
                            f"{folder}")
        if (its["reliable_share"] is None) != (meta["reliable_share"] is None):
            raise UserError(f"{folder} and {other}: one of them alone says which labels are reliable; add the column "
                            "label_quality to the other's source, or drop it from both")


def joined_meta(metas):
    """(meta.json of several folders as if they were one, for each folder the new numbers of its languages)."""
    names = [meta["languages"] or [] for meta in metas]
    languages = sorted(set().union(*names)) if len(metas) > 1 else names[0]
    codes = [np.array([languages.index(name) for name in mine], np.uint8) for mine in names]
    meta, words = metas[0], metas[0]["vocab"] + sorted(set().union(*(one["oov"] for one in metas)))
    if len(metas) == 1:
        return meta | {"words": words}, codes

    # The folder that others are like comes first. Counts are added; shares are averaged by the rows that they are of.
    ordered = sorted(metas, key=lambda one: bool(one["options"]["like"]))
    size = [sum(one["rows"].values()) for one in metas]
    rows = {split: sum(one["rows"][split] for one in metas) for split in SPLITS}

    def mean(values, weights):
        return None if None in values else float(np.average(values, weights=weights) if any(weights) else 0)

    return meta | {
        "words": words, "languages": languages if all(names) else None, "rows": rows,
        "synthetic": all(one["synthetic"] for one in metas),
        "source": [file for one in metas for file in one["source"]],
        "command": "\n".join(one["command"] for one in ordered), "options": ordered[0]["options"],
        "training_rows": np.sum([one["training_rows"] for one in metas], 0).tolist(),
        "unknown_share": {split: mean([one["unknown_share"][split] for one in metas],
                                      [one["rows"][split] for one in metas]) for split in SPLITS},
        "fingerprint": joined_fingerprint([one["fingerprint"] for one in metas]),
        **{name: mean([one[name] for one in metas], size) for name in ("reliable_share", "mean_words", "cut_share")},
    }, codes


def joined_fingerprint(fingerprints):
    """The identity of prepared folders together: of one its own."""
    return fingerprints[0] if len(fingerprints) == 1 else files.fingerprint(sorted(fingerprints))


def fingerprint_of(folders):
    """The fingerprint that `load_prepared` would give; None where there is no prepared data. Raises OSError where one
    of several folders has none."""
    paths = [folder / "meta.json" for folder in folders_of(folders)]
    if not any(path.is_file() for path in paths):
        return None
    return joined_fingerprint([files.read_json(path).get("fingerprint", "") for path in paths]) or None


def read_meta(folder):
    """The content of the meta.json of a prepared folder. Raises UserError where there is none, or not as it was
    written."""
    files.recover_folder(folder)
    if not (folder / "meta.json").is_file():
        raise UserError(f"{folder}: no prepared data here; run prepare.py, whose --data takes titles, or name the "
                        "folder that it wrote with --data")
    # What older scripts did not write has this meaning.
    return {"title_columns": [], "levels": 1, "separator": None, "base": None, "part_of": None} | (
        files.read_verified_json(folder / "meta.json", FORMAT, AGAIN))


def verified(folder, meta, name):
    """The path of a file in a prepared folder. Raises UserError where it is not as meta.json, `meta`, says."""
    # meta.json may come from others: it must not lead outside its folder.
    path = folder / name
    if Path(name).name != name:
        raise UserError(f"{folder}/meta.json: names a file outside its folder ({name}); {AGAIN}")
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    if files.checksum(path) != meta["files"][name]:
        raise UserError(f"{path}: not what prepare.py wrote (cut short or changed); {AGAIN}")
    return path


def read_prepared(folder, splits, text=None, ids=True, known=None):
    """(meta, arrays) of one folder: the content of its meta.json, with `vocab`, `oov`, `labels`, `columns` and
    `vectors`; these splits as prepare.py wrote them, without ids of words and pieces if not `ids`. known: {checksum:
    content} of lists and vectors that other folders share, each of which is in memory once."""
    meta, known = read_meta(folder), {} if known is None else known
    if meta["tokenizer"] != TOKENIZER:
        print(f"warning: {folder}: was prepared with another classify.py; if its tokenizer was changed, {AGAIN}",
              file=sys.stderr)

    def content(name, read):
        path, checksum = verified(folder, meta, name), meta["files"][name]
        if checksum not in known:
            known[checksum] = read(path)
        return known[checksum]

    arrays = {split: {} for split in splits}
    for name in meta["files"]:
        split, _, kind = name.removesuffix(".npy").rpartition("_")
        if split in arrays and name.endswith(".npy") and (kind != "line" or split == text) and (
                ids or kind not in ("titles", "oov", "pieces")):
            arrays[split][kind] = load_array(verified(folder, meta, name),
                                             "r" if kind in ("titles", "pieces") else None)
    if text:
        arrays[text] |= {kind: files.read_lines(verified(folder, meta, f"{text}_{kind}.txt")) for kind in ("text", "id")
                         if f"{text}_{kind}.txt" in meta["files"]}
        arrays[text]["file"] = [one["file"] for one in meta["source"] for _ in range(one["rows"][text])]
    lists = {name: content(f"{name}.txt", files.read_lines) for name in ("vocab", "oov", "labels")}
    lists["columns"] = content("columns.txt", files.read_lines) if "columns.txt" in meta["files"] else []
    vectors = content("vectors.npy", load_array) if "vectors.npy" in meta["files"] else None
    return meta | lists | {"vectors": vectors}, arrays


def load_array(path, mmap_mode=None):
    """The array in an .npy file; one of Python objects, which would have to be unpickled, is refused."""
    try:
        if mmap_mode and path.stat().st_size < 1 << 12:  # what has no rows cannot be mapped
            mmap_mode = None
        return np.load(path, mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: no plain array ({error}); {AGAIN}") from None


def compact(arrays):
    """Ids that are few of many, numbered anew: arrays [[N, L], ...] -> (the ids that occur, 0 first [K]; the arrays
    with the position of each id there, columns that are 0 in every row cut off)."""
    # There may be hundreds of millions of ids: so flags instead of a sort, and a block of rows at a time.
    used = np.zeros(1 + max(int(array.max(initial=0)) for array in arrays), bool)
    used[0] = True
    parts = [(i, rows) for i, array in enumerate(arrays) for rows in blocks(len(array))]
    for i, rows in parts:
        used[arrays[i][rows]] = True
    longest = max(np.flatnonzero(array.any(0)).max(initial=0) for array in arrays) + 1
    position = (np.cumsum(used) - 1).astype(smallest_uint(used.sum() - 1))
    result = [np.empty((len(array), longest), position.dtype) for array in arrays]
    for i, rows in parts:
        result[i][rows] = position[arrays[i][rows, :longest]]
    return np.flatnonzero(used), result


def read_vectors(path, vocab, bad):
    """Pretrained vectors of the vocabulary's words, streamed from a word2vec, GloVe or fastText text file.

    A word written in capitals or with accents serves the normalized word too, unless that has a vector of its own.
    Returns: [len(vocab), dim] float32, zero rows for words without a vector. Lines that do not parse go to `bad`.
    """
    # Files may be larger than memory, so lines are read one at a time, and only the vocabulary's are kept.
    index = {word: i for i, word in enumerate(vocab) if i >= len(SPECIALS)}
    vectors, exact, dim, rows = None, np.zeros(len(vocab), bool), None, 0
    files.require_file(path)
    with open(path, "rb") as raw, files.archive_errors(path):
        for number, line in enumerate(files.bounded_lines(files.decompressed(raw), path), 1):
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
            normal = word if word in index else "".join(tokenize(word))
            row = index.get(normal)
            try:
                # Words with spaces are fine, vectors that are too long are not.
                if len(fields) <= dim or (len(fields) > dim + 1 and NUMBER.fullmatch(fields[1])):
                    raise ValueError
                if row is None or exact[row] or (normal != word and vectors[row].any()):
                    continue
                with np.errstate(over="ignore"):  # what does not fit is infinite
                    values = np.array(numbers, np.float32)
                if not np.isfinite(values).all():
                    raise ValueError
                vectors[row], exact[row] = values, normal == word
            except ValueError:
                bad.add(path, number, f"not a word and {dim} numbers")
    if vectors is None:
        raise UserError(f"{path}: empty file")
    bad.check(rows - bad.count)
    if not vectors.any():
        raise UserError(f"{path}: no word of the vocabulary has a vector here; is it the right file?")
    return vectors


# --- batches ----------------------------------------------------------------------------------------------------------

class Batch(NamedTuple):
    """What a model gets of rows, wherever they come from: made by `batch_of` alone, and passed on whole."""
    # EDIT: what a model gets of rows. A kind of input more is an array here, and what model.py makes of it.
    ids: np.ndarray     # [N, L] ids of words or of pieces of words, 0 behind the last one and between parts of a title
    values: np.ndarray  # [N, K] ids of the values of those columns that the model reads


def batch_of(rows):
    """The Batch of rows: {kind: array [N, ...]}, in which `titles` are the ids and `columns`, if any, those of
    values."""
    return Batch(rows["titles"], rows.get("columns", np.zeros((len(rows["titles"]), 0), np.uint8)))


def chosen(batch, rows, width=None):
    """The Batch of these rows [B] of another; of their ids the first `width`. NumPy or JAX arrays."""
    return Batch(batch.ids[rows, :width], batch.values[rows])


class LengthGroup(NamedTuple):
    """Titles of similar length, whose batches are padded to one width."""
    rows: np.ndarray  # [n] uint32 row numbers
    width: int        # words
    chunks: int       # of an epoch; a chunk is what one call of the compiled loop trains on
    steps: int        # of a chunk, a batch each


def length_groups(titles, batch_size, max_steps=MAX_STEPS):
    """Divide the rows into short and long titles, so that the short ones need not be padded as far.

    Args: titles [N, L] ids; batch_size in rows; max_steps of a chunk.
    Returns: a list of LengthGroups. It is one where both would not be large enough, else the two with the least padding
    in all. Chunks are as even as can be, so that few rows come twice.
    """
    # How many cells each width would leave to compute, for all words up to it and all rows beyond it.
    length = np.concatenate([lengths_of(titles[rows]) for rows in blocks(len(titles))])
    widths = np.arange(1, titles.shape[1] + 1)
    short = np.cumsum(np.bincount(length, minlength=len(widths) + 1))[1:]  # rows of at most so many words
    cells = short * widths + (len(titles) - short) * titles.shape[1]
    width = widths[cells.argmin()]
    parted = [(np.flatnonzero(length <= width), width), (np.flatnonzero(length > width), titles.shape[1])]
    if min(len(rows) for rows, _ in parted) < 10 * batch_size:
        parted = [(np.arange(len(titles)), titles.shape[1])]

    # As few chunks as possible, and as even as possible.
    groups = []
    for rows, width in parted:
        steps = -(-len(rows) // batch_size)
        chunks = -(-steps // max_steps)
        groups.append(LengthGroup(rows.astype(np.uint32), int(width), chunks, -(-steps // chunks)))
    return groups


def epoch_steps(titles, batch_size):
    """The steps of an epoch on these titles."""
    return sum(group.chunks * group.steps for group in length_groups(titles, batch_size))


def lengths_of(titles):
    """[N, L] ids, 0 = padding -> [N] how many ids each title has."""
    length = (titles.shape[1] - (titles[:, ::-1] != 0).argmax(1)).astype(smallest_uint(titles.shape[1]))
    length[~titles.any(1)] = 0
    return length


def batches(groups, batch_size, seed, epoch):
    """The chunks of an epoch in their order: [(width, row numbers [steps of a chunk, batch_size] uint32)].

    A function of (seed, epoch) alone, so a resumed run needs no saved generator. Every row comes at least once; every
    chunk is full, for which the first rows of a group's permutation come a second time.
    """
    generator = np.random.default_rng([seed, epoch])
    found = [(group.width, order) for group in groups
             for order in np.resize(generator.permutation(group.rows), (group.chunks, group.steps, batch_size))]
    return [found[i] for i in generator.permutation(len(found))]
