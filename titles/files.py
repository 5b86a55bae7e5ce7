"""Disk: nothing half-written, nothing trusted.

Atomic files and folders, locks, compressed streams, checksums, downloads. What a title, a run or a model is does not
belong here.
"""
import bz2
import codecs
import errno
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import secrets
import select
import shutil
import stat
import sys
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from titles.cli import WINDOWS, UserError

# --- limits on input that nobody vouches for --------------------------------------------------------------------------
MAX_EXPANSION = 100        # how many times its own size a compressed file may grow to, ...
FREE_EXPANSION = 64 << 20  # ... beyond these bytes, which any file may grow to
MAX_LINE = 8 << 20         # bytes of a line

# --- the system -------------------------------------------------------------------------------------------------------
PATIENCE = 2               # seconds after which a process that waits for another one says so
TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{16}|old)\Z")  # how names end while files and folders are being written


# --- atomic files and folders -----------------------------------------------------------------------------------------
# New content is written under a temporary name in the same folder and then renamed, so whoever reads sees the former
# content or the new one, whole. Whoever writes holds the lock of the final name, so what lies there under a temporary
# name before was left by one that was killed. (Locks of a few network drives do not reach other machines: there two
# machines must not write the same at the same time.)

@contextmanager
def locked(path, wait=True):
    """Keep other processes out of such a block for the same path. Raises BlockingIOError where one is in it, unless
    told to wait. The lock, on a hidden file that is beside the path meanwhile, ends with its process, however that
    ends."""
    from filelock import FileLock, Timeout
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, fallback_to_soft=False)  # where a system has no locks, an error says so
    try:
        try:
            lock.acquire(timeout=PATIENCE if wait else 0)
        except Timeout:
            if not place.exists():
                place.touch()  # where there can be no such file, this says so
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process is at work on it") from None
            print(f"{path}: waiting for another process that is at work on it", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        yield
    finally:
        # Removed while it is locked: whoever waits for it notices, and makes another. Windows removes no open file, and
        # there the library does it afterwards.
        if not WINDOWS:
            place.unlink(missing_ok=True)
        lock.release()


@contextmanager
def temporary_path(path):
    """A name beside `path` to write under, for a block that no other process is in for this path. What still has such a
    name at the end is removed, and before it what killed processes left. Errors name the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(8)}")
    with locked(path):
        # `.tmp-old` stays: it may be the only copy, see `atomic_folder`.
        for stale in path.parent.glob(f"{glob.escape(path.name)}.tmp-{'[0-9a-f]' * 16}"):
            remove(stale)
        try:
            yield temporary
        except OSError as error:
            if error.errno:  # a write that fails does not say where
                error.filename = str(error.filename or path).replace(str(temporary), str(path))
            raise
        finally:
            remove(temporary)


def remove(path):
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def rename(path, target):
    """Rename a file, in the place of another if there is one, or a folder."""
    # Windows refuses while any program has one of them open; a virus scanner that looks at a new file soon has not.
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6) if WINDOWS else ():
        with suppress(PermissionError):
            return os.replace(path, target)
        time.sleep(pause)
    return os.replace(path, target)


@contextmanager
def atomic_write(path, mode="w"):
    """Open a temporary file that takes the name `path` only when the block ends without an error. What is no file,
    such as /dev/null or a pipe, is written to directly."""
    # UTF-8 and plain newlines, whatever the system prefers: the same bytes everywhere.
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    if Path(path).exists() and not Path(path).is_file():
        with open(path, mode, encoding=encoding, newline=newline) as file:
            yield file
        return

    # A link stays a link: the file that it points to is replaced.
    path = Path(path).resolve()
    with temporary_path(path) as temporary:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name with old content
        rename(temporary, path)


@contextmanager
def atomic_folder(folder):
    """A new folder to fill in the block; it takes the place of `folder` only when the block ends without an error.
    Where `folder` is a link, what it points to is replaced. A process killed between the two renames leaves
    `folder`.tmp-old, which `recover_folder` brings back."""
    folder = Path(folder).resolve()
    with temporary_path(folder) as temporary:
        settle(folder)
        temporary.mkdir()
        yield temporary
        try:
            # Folders cannot be exchanged in one step everywhere, so the former one makes room first.
            if folder.exists():
                rename(folder, f"{folder}.tmp-old")
            rename(temporary, folder)
        finally:
            settle(folder)


def settle(folder):
    """Finish what `atomic_folder` began: bring the former folder back, or remove it. Its lock is held."""
    old = Path(f"{folder}.tmp-old")
    if old.exists():
        # No folder: it ended between the renames. A folder: it ended behind both, and only this is missing.
        shutil.rmtree(old, ignore_errors=True) if folder.exists() else rename(old, folder)


def recover_folder(folder):
    """Settle what a process killed in `atomic_folder` began; one that lives does so itself, in a moment."""
    folder = Path(folder).resolve()  # `.` has no name
    while Path(f"{folder}.tmp-old").exists():
        with suppress(BlockingIOError), locked(folder, wait=False):
            return settle(folder)
        time.sleep(0.05)


def recover_folders(folder):
    """`recover_folder` of all that are in this one."""
    for old in folder.glob("*.tmp-old"):
        recover_folder(TEMPORARY.sub("", str(old)))


# --- compressed and unknown input -------------------------------------------------------------------------------------

class ChunkStream(io.RawIOBase):
    """A readable stream over an iterator of bytes, none of them empty."""

    def __init__(self, chunks):
        self.chunks, self.rest = chunks, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        content = self.rest or next(self.chunks, b"")
        content, self.rest = content[:len(buffer)], content[len(buffer):]
        buffer[:len(content)] = content
        return len(content)


def buffered(chunks):
    return io.BufferedReader(ChunkStream(chunks), 1 << 18)


def decompressed(file):
    """A readable stream over a buffered binary file: gzip, bzip2, xz or plain by its first bytes, whatever its name.
    Its reads raise UserError when the output exceeds 64 MB and 100 times what was read of the file (a decompression
    bomb)."""
    def counted(stream, side):
        while content := stream.read1(1 << 18):
            sizes[side] += len(content)
            # Asked at every read, so a bomb is found long before it fills the memory.
            if sizes["unpacked"] > max(FREE_EXPANSION, MAX_EXPANSION * sizes["packed"]):
                raise UserError(f"{getattr(file, 'name', 'input')}: grows more than {MAX_EXPANSION}-fold when "
                                "decompressed; unpack it first if that is meant")
            yield content

    # The compressed side is counted, too, for its size on disk is not known of a pipe.
    start, sizes = file.peek(6), {"packed": 0, "unpacked": 0}
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if start.startswith(magic):
            return buffered(counted(opener(ChunkStream(counted(file, "packed"))), "unpacked"))
    return file


def decoded(stream, encoding, name):
    """A buffered stream of UTF-8 over a buffered binary stream; its reads raise UserError where the content is not in
    this encoding. UTF-8 itself is left as it is, so that single rows of it can be at fault."""
    def chunks():
        try:
            for text in codecs.iterdecode(iter(lambda: stream.read1(1 << 16), b""), encoding):
                yield text.encode("utf-8", "replace")
        except UnicodeError as error:
            raise UserError(f"{name}: not text in {encoding} ({error})") from None

    return stream if encoding == "utf-8" else buffered(chunks())


def is_patient(file):
    """Whether a stream gives all it has without waiting for another program or a person."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError):  # content in memory, or decompressed
        return True


def read_ready(stream, size):
    """Up to `size` bytes of a buffered binary stream: those that have come, without waiting for more than the first."""
    content = new = stream.read1(size)
    # The first read may give only what a look at the first bytes left in the buffer, so more is taken if it is there.
    # Of decompressed content nobody can say whether it is, nor can Windows of files and pipes.
    with suppress(OSError, AttributeError):
        while new and len(content) < size and select.select([stream.fileno()], [], [], 0)[0]:
            new = stream.read1(size)
            content += new
    return content


@contextmanager
def archive_errors(path, advice="fetch it again"):
    """Turn what a broken compressed file raises while it is read into a UserError that names the file."""
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:  # the system failed; gzip and bz2 raise OSErrors without a number
            raise
        raise UserError(f"{path}: broken compressed file ({error}); {advice}") from None


def bounded_lines(stream, path):
    """The lines of a binary stream. Raises UserError where one is longer than MAX_LINE, which would fill the memory."""
    number = 1
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise UserError(f"{path}:{number}: a line of more than {MAX_LINE >> 20} MB; is this a file of titles?")
        yield line
        number += 1


def require_file(path):
    """Raise UserError where `path` is not a file."""
    if not path.is_file():
        raise UserError(f"{path}: not a file" if path.exists() else f"{path}: no such file")


# --- plain files, with checksums --------------------------------------------------------------------------------------

def checksum_of(content):
    """The BLAKE2 digest of bytes, as hexadecimal text."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def checksum(path):
    """The same of a file, which may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def fingerprint(value):
    """A digest of a value that can be written as JSON; of meta["files"] it is the identity of prepared data."""
    # Keys are sorted, for equal dictionaries need not have the same order.
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def with_checksum(value):
    """The dictionary with its own digest as `checksum`, for `read_verified_json`."""
    value = {key: value[key] for key in value if key != "checksum"}
    return value | {"checksum": fingerprint(value)}


def read_verified_json(path, version, advice):
    """A dictionary that `with_checksum` made, from a JSON file. Raises UserError, which ends in `advice`, where it has
    another format version or was changed."""
    value = read_json(path)
    # The version is asked first: a file of another one is not damaged, however its checksum was made.
    if value.get("format") != version:
        raise UserError(f"{path}: format version {value.get('format')}, expected {version}; {advice}")
    if value != with_checksum(value):
        raise UserError(f"{path}: changed since it was written; {advice}")
    return value


def read_json(path):
    """The JSON object in a file, as a dictionary; raises UserError where it holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; make it again")
    return value


def write_json(path, value):
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_lines(path):
    """The lines of a text file as `write_lines` wrote them."""
    # Not by splitlines, which also divides at characters that titles may hold, such as U+2028; nor does a carriage
    # return become a newline.
    with open(path, encoding="utf-8", newline="") as file:
        return file.read().split("\n")[:-1]


def write_lines(path, lines):
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)


# --- downloads --------------------------------------------------------------------------------------------------------

def download(url, path, size=None):
    """Fetch `url` to `path`, whole or not at all, unless it is there. Returns `path`.

    Raises UserError when the server cannot be reached, or when what came has not the announced (or given) size.
    """
    import http.client
    import urllib.error
    import urllib.request

    from tqdm import tqdm
    if path.exists():
        return path
    advice = f"try again, or put the file into {path.parent}/ yourself"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, atomic_write(path, "wb") as file:
            announced = answer.headers.get("Content-Length")
            total = int(announced) if announced else size
            with tqdm.wrapattr(answer, "read", total, desc=path.name, disable=None) as stream:
                shutil.copyfileobj(stream, file)
            for expected in (total, size):
                if expected is not None and file.tell() != expected:
                    raise UserError(f"{url}: {file.tell():,} bytes instead of {expected:,}; {advice}")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({error}); {advice}") from None
    return path


def unpack(archive, folder):
    """Unpack a tar archive into `folder`, whole or not at all. Raises UserError where it is broken, or where a member
    is a device or would land outside the folder."""
    import tarfile
    advice = "delete it and fetch it again"
    try:
        with archive_errors(archive, advice), open(archive, "rb") as file, atomic_folder(folder) as temporary:
            # Read as a stream, for what is being decompressed cannot go back. The filter refuses devices, and what
            # would land outside.
            stream = decompressed(file)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(temporary, filter="data")
            while stream.read(1 << 20):  # what is broken behind the last member shows
                pass
    except tarfile.TarError as error:
        raise UserError(f"{archive}: not a sound tar archive ({error}); {advice}") from None
