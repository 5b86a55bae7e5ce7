"""What prepare.py, train.py and evaluate.py agree on: the tokenizer, word ids, the arrays on disk, batches, errors.

The prepared folder (`data/prepared/`), for each split `train`, `valid`, `test`:

    {split}_titles.npy    [N, max_len] word ids (smallest unsigned type), 0 = padding, 1 = not in vocab.txt
    {split}_rare.npy      for each of these 1, row by row, its line in rare.txt (from 0)
    {split}_text.txt      the titles as they came, one a line, for reports
    {split}_labels.npy    [N] category ids (smallest unsigned type)
    {split}_language.npy  [N] uint8, index into meta["languages"]    (where the source names a language)
    {split}_reliable.npy  [N] bool                                   (where the source names a label quality)
    vocab.txt, labels.txt one entry a line, line number = id, from 0
    rare.txt              the other words: cut by --vocab or --min-count, or not in training at all
    vectors.npy           [V, dim] float32, zero where not found     (after `prepare.py --vectors`)
    meta.json             source, options, counts, format version, checksum of every file, fingerprint of them all
"""
import argparse
import bz2
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import shutil
import signal
import sys
import threading
import unicodedata
import zlib
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

FORMAT = 3  # raise it when the prepared files or the runs change their meaning
SPLITS = ("train", "valid", "test")
UNKNOWN = 1  # the id of words that the vocabulary lacks; 0 is padding
INFLATION, LONGEST_LINE = 100, 8 << 20  # how far compressed files may grow, and bytes of a line (titles, vectors)
SPECIALS = ["<pad>", "<unknown>"]  # no title can contain them: the tokenizer leaves no punctuation


# --- errors and files -------------------------------------------------------------------------------------------------

class UserError(Exception):
    """Something the user can put right; the message names the file and says what to do."""


def run(main):
    """Call a script's `main`; what the user can put right ends in one line on standard error and exit status 2."""
    signal.signal(signal.SIGINT, interrupt)
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    try:
        result = main()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the imports that follow Ctrl-C ends the program at once
        return result
    except BrokenPipeError:  # the reader of our output has left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except KeyboardInterrupt:
        leave(130)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):  # JAX: no memory on the device
            raise
        if isinstance(error, OSError) and error.strerror:
            error = f"{error.filename or 'input/output'}: {error.strerror}"
        print("error:", " ".join(str(error).split()) or "out of memory", file=sys.stderr)
        leave(2)


def interrupt(number, frame):
    """On Ctrl-C raise KeyboardInterrupt, or leave at once where the garbage collector has called JAX, for there Python
    swallows exceptions."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        os._exit(130)
    raise KeyboardInterrupt


background = []  # threads of `in_background`


def leave(status):
    """End the program with this exit status; the interpreter's own way out crashes where one of our threads is in the
    middle of an import."""
    if any(thread.is_alive() for thread in background):
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status) from None


def in_background(function):
    """Call `function` in a thread that the end of the program does not wait for. Returns its Future."""
    future = Future()

    def call():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    background.append(threading.Thread(target=call, daemon=True))
    background[-1].start()
    return future


def argument_parser(manual):
    """An argparse parser with the script's docstring as manual; its help shows every default."""
    class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):  # no "(default: None)"
            return action.help if action.default is None else super()._get_help_string(action)
    return Parser(description=manual, formatter_class=Help, allow_abbrev=False)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def positive(kind, or_zero=False):
    """An argparse type: a number of this kind above 0."""
    def number(text):
        value = kind(text)
        if not (0 < value < float("inf") or (or_zero and value == 0)):
            raise ValueError
        return value
    number.__name__ = f"{'not negative' if or_zero else 'positive'} {kind.__name__}"
    return number


def not_negative(kind):
    """An argparse type: a number of this kind, 0 or above."""
    return positive(kind, or_zero=True)


def share(text):
    """An argparse type: a number above 0 and below 1."""
    if not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def share_or_all(text):
    """An argparse type: a number above 0, up to 1."""
    return 1.0 if float(text) == 1 else share(text)


def seed(text):
    """An argparse type: an integer that fits 32 bits."""
    if not 0 <= int(text) < 2 ** 32:
        raise ValueError
    return int(text)


def dropout(text):
    """An argparse type: 0, or a number below 1."""
    return 0.0 if float(text) == 0 else share(text)


def running(process):
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def neighbour(path):
    """The temporary name beside `path` that this process writes under; what killed processes left there is removed."""
    for stale in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
        process = stale.name.rpartition("-")[2]
        if process.isdigit() and not running(int(process)):
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


@contextmanager
def write_beside(path, mode="w"):
    """Open a temporary neighbour of `path`; it takes the name `path` only when the block ends without an error.
    What is no file, such as /dev/null or a pipe, is written to directly."""
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    if Path(path).exists() and not Path(path).is_file():
        with open(path, mode, encoding=encoding, newline=newline) as file:
            yield file
        return
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = neighbour(path)
    try:
        with open(beside, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno:  # a write that fails does not say where
            error.filename = error.filename or str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def decompressed(file):
    """A readable stream over a buffered binary file, whatever its name: gzip, bzip2, xz or plain by its first bytes.
    Reading on raises UserError where the content grows beyond INFLATION times what was read, and beyond 64 MB."""
    def check():
        if content.size > max(64 << 20, INFLATION * packed.size):
            raise UserError(f"{getattr(file, 'name', 'input')}: grows more than {INFLATION}-fold when decompressed; "
                            "unpack it first if that is meant")

    start = file.peek(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if start.startswith(magic):
            packed = Counted(file)
            content = Counted(opener(packed, "rb"), check)
            return io.BufferedReader(content, 1 << 18)
    return file


class Counted(io.RawIOBase):
    """A stream that counts the bytes read from it; `check` may raise after each read."""

    def __init__(self, stream, check=lambda: None):
        self.stream, self.check, self.size = stream, check, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        read = self.stream.readinto(buffer)
        self.size += read
        self.check()
        return read


def lines(stream, path):
    """The lines of a binary stream; raises UserError where one is longer than LONGEST_LINE."""
    number = 1
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MB; is this a file of titles?")
        yield line
        number += 1


def read_header(line, fits):
    """(delimiter, names in lower case) of the header of a CSV file: the first of comma, tab and semicolon with which
    `fits(names)` holds, or comma."""
    def divided(delimiter):
        try:
            return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:  # carriage returns or endless fields, as in binary files
            return []

    delimiter = next((delimiter for delimiter in ",\t;" if fits(divided(delimiter))), ",")
    return delimiter, divided(delimiter)


@contextmanager
def reading(path, advice="fetch it again"):
    """Turn what a broken archive raises while it is read into a UserError that names the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: broken compressed file ({error}); {advice}") from None
    except OSError as error:
        if error.errno is None:  # bz2 raises a bare OSError
            raise UserError(f"{path}: broken compressed file ({error}); {advice}") from None
        raise


# --- tokenizer --------------------------------------------------------------------------------------------------------
# Lower case, compatibility decomposition, accents dropped, letters and digits of any script kept, everything else
# separates. Chinese and Japanese are written without spaces, so there each character is a word.

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
WORD = re.compile(f"(?!\\W)[{CJK}]|[^\\W_{CJK}]+")  # the block of Japanese letters holds punctuation too

# ASCII letters and digits in lower case, other ASCII as spaces, bytes of other characters as they are.
PIECES = bytes(byte if byte > 127 or chr(byte).isalnum() else ord(" ") for byte in bytes(range(256)).lower())


def tokenize(title):
    """Words of a title: str -> list of str. This is the specification; `bulk_tokenize` must agree with it."""
    decomposed = unicodedata.normalize("NFKD", title.lower())
    return WORD.findall("".join(c.lower() for c in decomposed if unicodedata.category(c)[0] != "M"))  # № became No


def bulk_tokenize(titles):
    """Words of many titles: cut into pieces at ASCII separators by whole-array operations, which release the
    interpreter lock; each distinct piece that is not ASCII is then cut by `tokenize`.

    Args: titles, a pyarrow string array without nulls.
    Returns: (codes [T] int32, words, lengths [N] int32): the words of all titles on end as indices into the list
    `words` (which may hold a word twice), and how many words each title has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    sigma = pc.match_substring(titles, "Σ")  # the one letter whose lower case depends on what is beyond a separator
    if pc.any(sigma).as_py():
        exact = [title.lower() for title in titles.filter(sigma).to_pylist()]  # lower twice is lower once
        titles = pc.replace_with_mask(titles, sigma, pa.array(exact, titles.type))
    _, offsets, content = titles.buffers()
    offsets = np.frombuffer(offsets, np.int32)[titles.offset:titles.offset + len(titles) + 1]
    text = content[offsets[0]:offsets[-1]].to_pybytes().translate(PIECES) if content else b""
    offsets = offsets - offsets[0]
    within = np.frombuffer(text, np.uint8) != ord(" ")
    edge = np.ones(len(text) + 1, bool)  # a piece or a title begins or ends before this byte
    edge[1:-1] = within[1:] != within[:-1]
    edge[offsets] = True
    starts, ends = np.flatnonzero(edge[:-1] & within), np.flatnonzero(edge[1:] & within) + 1
    places = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
    pieces = pa.StringArray.from_buffers(len(starts), pa.py_buffer(places), pa.py_buffer(text.translate(None, b" ")))
    pieces = pieces.dictionary_encode()
    codes, words = pieces.indices.to_numpy(), [
        [piece] if piece.isascii() else tokenize(piece) for piece in pieces.dictionary.to_pylist()]
    count = np.array([len(found) for found in words], np.int32)  # words of each distinct piece, mostly one
    ends = np.concatenate([[0], np.cumsum(count[codes])]).astype(np.int32)
    first = (np.cumsum(count) - count).astype(np.int32)
    flat = np.repeat(first[codes] - ends[:-1], count[codes]) + np.arange(ends[-1], dtype=np.int32)
    return flat, list(itertools.chain.from_iterable(words)), np.diff(ends[np.searchsorted(starts, offsets)])


def pad(flat, lengths, max_len):
    """Cut or pad: flat [T] ids of titles on end, lengths [N] -> [N, max_len] ids, 0 behind the last word."""
    padded = np.zeros((len(lengths), max_len), flat.dtype)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    column = np.arange(len(flat)) - np.repeat(starts, lengths)
    keep = column < max_len
    padded[row[keep], column[keep]] = flat[keep]
    return padded


def encode(titles, index, max_len):
    """Titles (list of str) -> ([N, max_len] uint32 word ids, list of the words that have none).

    index: a dictionary from word to id, 0 to len(index) - 1; other words get the ids behind them.
    """
    import pyarrow as pa
    try:
        array = pa.array(titles, pa.string())
    except UnicodeEncodeError:  # a lone surrogate only separates
        array = pa.array([title.encode("utf-8", "replace").decode() for title in titles], pa.string())
    codes, words, lengths = bulk_tokenize(array)
    others = {}
    ids = np.array([index[word] if word in index else others.setdefault(word, len(index) + len(others))
                    for word in words], np.uint32)
    return pad(ids[codes] if len(codes) else ids, lengths, max_len), list(others)


# --- n-grams ----------------------------------------------------------------------------------------------------------

LONGEST = 32  # characters of a word that its n-grams come from

def character_ngrams(words, minn, maxn, buckets):
    """Hashed character n-grams of `<word>`, as in fastText (Bojanowski et al. 2017; FNV-1a, here over code points).

    Args: words, a list of str that begins with SPECIALS, which have none; lengths minn to maxn (maxn 0: no n-grams).
    Returns: (start [W + 1] int32, bucket [T] int32): those of word i are bucket[start[i]:start[i + 1]], in 0 to
    buckets - 1. T is a power of two; what stands behind start[W] is 0.
    """
    text = [f"<{word[:LONGEST]}>" for word in words]
    text[:len(SPECIALS)] = [""] * len(SPECIALS)
    length = np.array([len(word) for word in text])
    sizes = np.arange(max(minn, 1), maxn + 1)
    count = np.maximum(0, length - sizes[:, None] + 1)                  # [sizes, W]
    start = np.concatenate([[0], np.cumsum(count.sum(0))])
    code = np.frombuffer("".join(text).encode("utf-32-le"), np.uint32)
    word = np.repeat(np.arange(len(words)), length)
    place = np.arange(len(code)) - np.repeat(np.cumsum(length) - length, length)
    bucket = np.zeros(1 << max(12, int(start[-1]).bit_length()), np.int32)
    for size, before in zip(sizes, np.cumsum(count, 0) - count, strict=True):
        first = np.flatnonzero(place + size <= length[word])
        value = np.full(len(first), 2166136261, np.uint32)
        for offset in range(size):
            value = (value ^ code[first + offset]) * np.uint32(16777619)
        bucket[start[word[first]] + before[word[first]] + place[first]] = value % np.uint32(buckets)
    return start.astype(np.int32), bucket


def word_hashes(words):
    """[W] uint32, what the hashes of word n-grams are made of."""
    return np.array([zlib.crc32(word.encode()) for word in words], np.uint32)


# --- prepared arrays --------------------------------------------------------------------------------------------------

def smallest_uint(largest):
    """The smallest unsigned integer dtype that holds `largest`."""
    return np.min_scalar_type(int(largest))


def checksum(path):
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value):
    """A digest of what can be written as JSON; of the checksums in meta["files"] it is the identity of the data."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def signed(value):
    """The dictionary with its own digest as `checksum`, for `read_signed`."""
    value = {key: value[key] for key in value if key != "checksum"}
    return value | {"checksum": fingerprint(value)}


def read_signed(path, again):
    """A dictionary that `signed` made, from a JSON file; raises UserError, which says what to do `again`, where it has
    another format version or was changed."""
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise UserError(f"{path}: format version {value.get('format')}, expected {FORMAT}; {again}")
    if value != signed(value):
        raise UserError(f"{path}: changed since it was written; {again}")
    return value


def read_lines(path):
    return Path(path).read_text(encoding="utf-8").split("\n")[:-1]


def write_lines(path, lines):
    with write_beside(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def write_json(path, value):
    with write_beside(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path):
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; make it again")
    return value


@contextmanager
def alone(folder):
    """Do a block while no other process is in such a block for this folder."""
    import fcntl
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def swap_in(new, folder):
    """Put the finished folder `new` in the place of `folder`. Killed between the two renames it leaves
    `folder`.tmp-old, which `settle` brings back."""
    old = folder.with_name(folder.name + ".tmp-old")
    with alone(folder.parent):
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def folder_beside(folder):
    """A new folder to fill in the block; it takes the place of `folder` (where that is a link, of what it points to)
    only when the block ends without an error."""
    folder = Path(folder).resolve()
    settle(folder)
    beside = neighbour(folder)
    beside.mkdir(parents=True)
    try:
        yield beside
        swap_in(beside, folder)
    except OSError as error:
        if error.errno:
            error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def settle(folder):
    """Undo or finish what a killed `swap_in` left."""
    old = folder.with_name(folder.name + ".tmp-old")
    if old.exists():
        with alone(folder.parent):
            shutil.rmtree(old, ignore_errors=True) if folder.exists() or not old.exists() else old.rename(folder)


def load_prepared(folder, splits=SPLITS, text=None):
    """The prepared data of some splits, every file checked against its checksum.

    Returns: (meta, arrays): meta.json as a dictionary with `vocab`, `words` (vocab and rare.txt behind it) and `labels`
    (lists of str) added, and a dictionary arrays[split][kind] with kinds `titles` (ids of `words`, without columns that
    are padding throughout), `labels` and, where known, `language` and `reliable`; for the split `text` also kind
    `text`, a list of str.
    Raises UserError where a file is missing, was changed, or has another format version.
    """
    folder = Path(folder)
    settle(folder.resolve())
    again = "run prepare.py again"
    if not (folder / "meta.json").is_file():
        raise UserError(f"{folder}: no prepared data here; run prepare.py, or name its folder with --data")
    meta = read_signed(folder / "meta.json", again)
    files = meta["files"]

    def checked(name):
        path = folder / name
        if Path(name).name != name:
            raise UserError(f"{folder}/meta.json: names a file outside its folder ({name}); {again}")
        if not path.is_file():
            raise UserError(f"{path}: missing; {again}")
        if checksum(path) != files[name]:
            raise UserError(f"{path}: not what prepare.py wrote (cut short or changed); {again}")
        return path

    arrays = {split: {} for split in splits}
    for name in files:
        split, _, kind = name.removesuffix(".npy").rpartition("_")
        if split in arrays and name.endswith(".npy"):
            arrays[split][kind] = array_of(checked(name))
    longest = max(np.flatnonzero(array["titles"].any(0)).max(initial=0) for array in arrays.values()) + 1
    meta["vocab"] = read_lines(checked("vocab.txt"))
    meta["words"] = meta["vocab"] + read_lines(checked("rare.txt"))
    meta["labels"] = read_lines(checked("labels.txt"))
    for array in arrays.values():
        rare = array["titles"] == UNKNOWN
        array["titles"] = array["titles"].astype(smallest_uint(len(meta["words"]) - 1), copy=False)
        array["titles"][rare] = len(meta["vocab"]) + array.pop("rare").astype(np.int64)
        array["titles"] = np.ascontiguousarray(array["titles"][:, :longest])
    if text:
        arrays[text]["text"] = read_lines(checked(f"{text}_text.txt"))
    meta["vectors"] = array_of(checked("vectors.npy")) if "vectors.npy" in files else None
    return meta, arrays


def array_of(path):
    """The array in an .npy file; one of Python objects, which would have to be unpickled, is refused."""
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: no plain array ({error}); run prepare.py again") from None


def length_groups(titles, batch_size, chunk):
    """Where to cut the rows in short and long titles, so that the short ones need not be padded as far.

    Args: titles [N, L] ids; batch_size in rows; chunk, steps in one compiled loop at most.
    Returns: a list of (row numbers, width in words, chunks an epoch, steps a chunk). One group if both would not be
    large enough, else the two with the least padding in all. Chunks are as even as can be, so that few rows come twice.
    """
    length = titles.shape[1] - (titles[:, ::-1] != 0).argmax(1)
    length[~titles.any(1)] = 0
    widths = np.arange(1, titles.shape[1] + 1)
    short = np.cumsum(np.bincount(length, minlength=len(widths) + 1))[1:]  # rows of at most so many words
    cells = short * widths + (len(titles) - short) * titles.shape[1]
    width = widths[cells.argmin()]
    groups = [(np.flatnonzero(length <= width), width), (np.flatnonzero(length > width), titles.shape[1])]
    if min(len(rows) for rows, _ in groups) < 10 * batch_size:
        groups = [(np.arange(len(titles)), titles.shape[1])]
    plan = []
    for rows, width in groups:
        steps = -(-len(rows) // batch_size)
        chunks = -(-steps // chunk)
        plan.append((rows.astype(np.uint32), int(width), chunks, -(-steps // chunks)))
    return plan


def batches(groups, batch_size, seed, epoch):
    """The chunks of an epoch in their order: [(width, row numbers [steps a chunk, batch_size] uint32)].

    A function of (seed, epoch) alone, so a resumed run needs no saved generator. Every row comes at least once; every
    chunk is full, for which the first rows of a group's permutation come a second time.
    """
    draw = np.random.default_rng([seed, epoch])
    found = [(width, order) for rows, width, chunks, steps in groups
             for order in np.resize(draw.permutation(rows), (chunks, steps, batch_size))]
    return [found[i] for i in draw.permutation(len(found))]


# --- runs -------------------------------------------------------------------------------------------------------------
# runs/NAME/ holds config.json, vocab.txt, labels.txt, metrics.csv, mlflow.txt (the id of its MLflow run), checkpoints/
# with a folder for each kept step, and the reports of evaluate.py.

def find_run(ckpt, runs, fingerprint=None):
    """(folder of a run, "best" or "latest") that `--ckpt` means.

    `best`: of all runs (on the data with this fingerprint, if given) the one with the highest validation balanced
    accuracy. `latest`: the run begun last. Else the name or path of a run, with /best (the default) or /latest behind.
    """
    runs, ckpt = Path(runs), ckpt.rstrip("/")
    if ckpt in ("best", "latest"):
        found = []
        for folder in sorted(runs.iterdir() if runs.is_dir() else []):
            config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
            if config.get("format") != FORMAT or fingerprint not in (None, config.get("fingerprint")):
                continue
            if ckpt == "best" and (folder / "metrics.csv").is_file():
                try:
                    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
                        scores = [float(row["valid_balanced_accuracy"]) for row in csv.DictReader(file)]
                except (ValueError, TypeError, KeyError, csv.Error):
                    raise UserError(f"{folder}/metrics.csv: not what train.py wrote; name a run with --ckpt") from None
                found += [(max(scores), folder)] if scores else []
            if ckpt == "latest" and any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):
                found.append((config.get("created", 0), folder))
        if not found:
            raise UserError(f"{runs}: no trained run here{' on this data' if fingerprint else ''}; run train.py first")
        return max(found, key=lambda item: item[0])[1], ckpt
    path, which = Path(ckpt), "best"
    if path.name in ("best", "latest"):
        path, which = path.parent, path.name
    for folder in (runs / path, path):
        if (folder / "config.json").is_file():
            return folder.resolve(), which
    raise UserError(f"--ckpt {ckpt}: no run of this name in {runs}/, nor a path to the folder of a run")


def load_run(folder, models):
    """(config, vocab, labels) of a run: a dictionary, and two lists of str, checked to be those it was trained with.
    Raises UserError where they are not, or its model is not among `models`."""
    config = read_signed(folder / "config.json", "train again")
    if config["model"] not in models:
        raise UserError(f"{folder}: its model {config['model']} is not in model.py")
    for name in ("vocab.txt", "labels.txt"):
        if not (folder / name).is_file() or checksum(folder / name) != config["files"][name]:
            raise UserError(f"{folder / name}: missing, or not the one that this run was trained with")
    return config, read_lines(folder / "vocab.txt"), read_lines(folder / "labels.txt")


@contextmanager
def held(folder):
    """Keep other trainings away from a run in this block; raises UserError where one is at work on it."""
    import fcntl
    with open(folder / "config.json") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another training is at work on this run") from None
        yield


def checksums(step, part):
    """{path in the folder of a checkpoint: checksum} of its files, or of those in its folder `part`."""
    return {str(path.relative_to(step)): checksum(path) for path in sorted((step / part).rglob("*"))
            if path.is_file() and path != step / "sums.json"}


def check_files(step, part=""):
    """Raise UserError where files of a checkpoint's folder are not what `save_checkpoint` wrote: Orbax does not see
    every change. A save killed at its very end has no sums.json and is whole."""
    if not (step / "sums.json").exists():
        return
    wanted, found = read_json(step / "sums.json"), checksums(step, part)
    for name in sorted(found.keys() | {name for name in wanted if not part or name.startswith(f"{part}/")}):
        if found.get(name) != wanted.get(name):
            raise UserError(f"{step / name}: not what train.py saved (cut short, changed or missing); remove {step} to "
                            "do without this checkpoint")


def checkpoint_manager(folder, read_only=False):
    """Orbax's manager of a run's checkpoints: keeps the latest and the best by validation balanced accuracy. Saves are
    synchronous and atomic: a killed save leaves a temporary folder, which the next training removes. Raises UserError
    where what tells the best from the others is damaged."""
    import logging

    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for step in (Path(folder) / "checkpoints").glob("[0-9]*"):
        check_files(step, "metrics")

    def metric(metrics):
        return metrics["valid_balanced_accuracy"]

    options = ocp.CheckpointManagerOptions(
        read_only=read_only, best_fn=metric, best_mode="max", enable_async_checkpointing=False,
        cleanup_tmp_directories=not read_only, preservation_policy=policies.AnyPreservationPolicy(
            [policies.LatestN(1), policies.BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False)]))
    try:
        return ocp.CheckpointManager((Path(folder) / "checkpoints").absolute(), options=options)
    except OSError:
        raise
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        raise UserError(f"{folder}/checkpoints: cannot be read ({str(error)[:200]}); remove the damaged step") from None


def save_checkpoint(manager, step, variables, optimizer, history, metrics):
    """Save all that --resume needs. variables and optimizer: pytrees; history: list of dictionaries, one an epoch.
    Raises UserError where it cannot be written; the checkpoints before it stay."""
    import jax
    import orbax.checkpoint as ocp
    need = 1.1 * sum(x.nbytes for x in jax.tree.leaves((variables, optimizer))) + (1 << 20)
    free = shutil.disk_usage(manager.directory).free
    saved, failure = False, None if free >= need else f"needs {need / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free"
    try:
        saved = not failure and manager.save(step, metrics=metrics, force=True, args=ocp.args.Composite(
            variables=ocp.args.StandardSave(variables), optimizer=ocp.args.StandardSave(optimizer),
            history=ocp.args.JsonSave(history)))
        if saved:
            folder = Path(manager.directory) / str(step)
            write_json(folder / "sums.json", checksums(folder, ""))
    except (OSError, ValueError) as error:  # TensorStore raises ValueError where it cannot write
        failure = str(error)[:200]
    if not saved:
        raise UserError(f"{manager.directory}: step {step} is not saved ({failure}); mend that, then go on with "
                        f"train.py --resume {manager.directory.parent.name}")


def restore_checkpoint(manager, step, **targets):
    """Restore the named parts of a checkpoint: `variables`, `optimizer` with a pytree of shapes and dtypes that they
    must have, `history` with None. Raises UserError where it cannot be read or has other shapes."""
    import jax
    import orbax.checkpoint as ocp
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # not the device it was saved from

    def as_here(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    def shapes(tree):
        return sorted((x.shape, str(x.dtype)) for x in jax.tree.leaves(tree))

    folder, arguments = Path(manager.directory) / str(step), {}
    check_files(folder)
    try:
        for name, target in targets.items():
            if target is None:
                arguments[name] = ocp.args.JsonRestore()
                continue
            # Compared before reading: Orbax's reading threads print tracebacks where a shape differs.
            with ocp.StandardCheckpointer() as reader:
                if shapes(reader.metadata(folder / name).item_metadata.tree) != shapes(target):
                    raise ValueError("its arrays have other shapes than its config.json says")
            arguments[name] = ocp.args.StandardRestore(jax.tree.map(as_here, target))
        return manager.restore(step, args=ocp.args.Composite(**arguments))
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise UserError(f"{folder}: cannot be read as this run's checkpoint ({str(error)[:200]})") from None


def mlflow_client():
    """(MLflow client, id of the experiment) at MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db."""
    import fcntl
    import logging
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    name, uri = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "titles", mlflow_uri()
    from mlflow import MlflowClient
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is said in one line, see below
    with mlflow_needed():
        # Two processes that create the same database race in its migrations, so one waits for the other.
        lock = f"{uri.removeprefix('sqlite:///')}.lock" if uri.startswith("sqlite:///") else os.devnull
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                raise ValueError(f"the experiment {name} was deleted; restore it, or set MLFLOW_EXPERIMENT_NAME")
            return client, experiment.experiment_id if experiment else client.create_experiment(name)


def mlflow_uri():
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


@contextmanager
def mlflow_needed():
    """Turn what MLflow, its database or its connection raises in the block into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(f"MLflow at {mlflow_uri()}: {' '.join(str(error).split())[:300]}") from None


def log_metrics(client, run_id, metrics):
    """Log MLflow metrics, 1,000 at a time: more it refuses."""
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start:start + 1000])


@contextmanager
def mlflow_warnings():
    """Turn what MLflow raises in the block into a warning: a silent server should not cost a training or a report."""
    try:
        yield
    except Exception as error:
        print(f"warning: not logged to MLflow ({' '.join(str(error).split())[:200]})", file=sys.stderr)
