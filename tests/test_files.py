"""files.py: nothing is half-written, nothing is trusted, and what goes wrong is one line."""
import argparse
import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PACKED, ROOT, corrupted, save

from titles import cli, files
from titles.cli import UserError

# --- errors and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status", "line"), [
    (UserError("x.csv:7: is\nwrong"), 2, "error: x.csv:7: is wrong\n"),
    (FileNotFoundError(2, "No such file", "x.csv"), 2, "error: x.csv: No such file\n"),
    (OSError(28, "No space left"), 2, "error: input/output: No space left\n"),
    (MemoryError(), 2, "error: out of memory\n"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "error: RESOURCE_EXHAUSTED: Out of memory\n"),  # of a device
    (KeyboardInterrupt(), 130, "")], ids=repr)
def test_what_goes_wrong_ends_in_one_line_and_a_status(capsys, monkeypatch, error, status, line):
    def main():
        raise error

    monkeypatch.setattr(cli.os, "_exit", sys.exit)  # after Ctrl-C, which would end the tests
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert (stop.value.code, capsys.readouterr().err) == (status, line)


@pytest.mark.parametrize("error", ["BrokenPipeError(32, 'Broken pipe')", "OSError(22, 'Invalid argument')"])
def test_a_reader_that_has_left_is_no_error(error):
    """Windows calls it an invalid argument."""
    code = f"from titles import cli\ncli.WINDOWS = True\ndef main(): raise {error}\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("error", [RuntimeError("INTERNAL: a defect"), ValueError("a defect"), KeyError("defect")])
def test_defects_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match="defect"):
        cli.run(main)


def test_as_many_files_may_be_open_as_the_system_permits():
    code = "import resource\nfrom titles import cli\ncli.run(lambda: print(resource.getrlimit(resource.RLIMIT_NOFILE)))"
    limited = f"ulimit -Sn 32; ulimit -Hn 400; exec {shlex.join([sys.executable, '-c', code])}"
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(400, 400)\n", "")


@pytest.mark.parametrize(("kind", "good", "bad"), [
    (cli.positive(int), ["1", "70"], ["0", "-1", "1.5", "x", ""]),
    (cli.positive(float), ["0.5", "1e-9"], ["0", "-1", "nan", "inf"]),
    (cli.not_negative(float), ["0", "0.5"], ["-0.1", "nan", "inf"]),
    (cli.fraction, ["0.5"], ["0", "1", "nan", "-0.5", "95", "x", ""]),
    (cli.fraction_or_one, ["0.5", "1"], ["0", "1.01"]), (cli.fraction_or_zero, ["0.5", "0"], ["1", "-1"]),
    (cli.seed, ["0", str(2 ** 32 - 1)], ["-1", str(2 ** 32), "0.5"])])
def test_arguments_have_limits(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            kind(text)


def test_errors_of_arguments_are_one_line_and_say_what_is_wanted(capsys):
    parser = cli.argument_parser("Manual.")
    parser.add_argument("--rows", type=cli.positive(int), default=7, help="rows")
    parser.add_argument("--name", help="name")
    parser.add_argument("--valid", type=cli.fraction)
    parser.add_argument("--dropout", type=cli.fraction_or_zero)
    parser.add_argument("--fold", type=cli.fold)
    for flags, words in ((["--rows", "0"], "--rows: invalid positive int value: '0'"), (["--row", "1"], "--row 1"),
                         (["--name=--"], "--name=--: -- is no value"), (["--name", "--"], "--name: expected one"),
                         (["--name"], "--name: expected one"), (["--name=a", "--", "b"], "arguments: "),
                         (["--valid", "95"], "--valid: '95': wanted a share between 0 and 1, such as 0.95"),
                         (["--dropout", "x"], "--dropout: 'x': wanted 0, or a share below 1, such as 0.1"),
                         (["--fold", "4/3"], "--fold: '4/3': wanted I/K"), (["--fold", "x"], "wanted I/K"),
                         (["--fold", "1/1"], "wanted I/K")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert "rows (default: 7)" in parser.format_help() and "name (default" not in parser.format_help()


def test_the_flags_that_were_typed_are_told():
    parser = cli.argument_parser("Manual.")
    parser.add_argument("--min-count", type=int, default=1)
    parser.add_argument("--encoding", type=cli.encoding, default="U8")
    parser.add_argument("--refit", nargs="?", const=True)
    for flags, given in (([], set()), (["--min-count", "1"], {"min_count"}),
                         (["--min-count=1", "--refit"], {"min_count", "refit"})):
        args = cli.parse_args(parser, flags)
        assert args.given == given and (args.min_count, args.encoding) == (1, "utf-8")


# --- atomic files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("former", [None, "whole"])
def test_a_file_stays_as_it_was_when_its_block_raises(tmp_path, error, former):
    path = tmp_path / "a.json"
    if former:
        path.write_text(former)
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write("half")
        file.flush()
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([("a.json", "whole")] if former else [])


def test_a_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.atomic_write(path) as file:
        file.write("ñ\r\n\n")
        assert not path.exists()
    assert path.read_bytes() == "ñ\r\n\n".encode() and len(list(path.parent.iterdir())) == 1
    with files.atomic_write(path, "wb") as file:
        file.write(b"\xff")
        assert path.read_bytes() == "ñ\r\n\n".encode()
    assert path.read_bytes() == b"\xff"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, call=call: (done.append(name), call(*args)))
    files.write_lines(tmp_path / "a.txt", ["one"])
    assert done == ["fsync", "replace"]


def test_windows_lets_go_of_a_file_after_a_while(tmp_path, monkeypatch):
    replace, refusals, pauses = os.replace, [PermissionError(13, "Access is denied")] * 3, []

    def refusing(path, target):
        if refusals:
            raise refusals.pop()
        return replace(path, target)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    with pytest.raises(PermissionError):
        files.write_lines(tmp_path / "a.txt", ["one"])
    assert not pauses and not os.listdir(tmp_path)  # elsewhere it is no matter of time
    monkeypatch.setattr(files, "WINDOWS", True)
    files.rename(save(tmp_path / "b.txt", "two"), tmp_path / "a.txt")
    assert len(pauses) == 2 and (tmp_path / "a.txt").read_text() == "two"


def test_commands_are_quoted_for_the_shell_that_is_there(monkeypatch):
    assert cli.listed([Path("a b"), Path("c")]) == "'a b' c"
    monkeypatch.setattr(cli, "WINDOWS", True)
    assert cli.listed([Path("a b"), Path("c")]) == '"a b" c'


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real/a.txt")
    files.write_lines(tmp_path / "link", ["one"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/a.txt").read_text() == "one\n"


def test_what_cannot_be_written_is_named(tmp_path):
    save(tmp_path / "file", "")
    for path in (tmp_path / "file/a.txt", Path("/proc/nowhere/a.txt"), tmp_path):
        with pytest.raises(OSError) as raised:
            files.write_lines(path, [])
        assert str(raised.value.filename).startswith(str(path.parent)) and raised.value.strerror


def test_a_pipe_is_written_as_utf8_whatever_the_locale():
    code = "from titles import files\nwith files.atomic_write('/dev/stdout') as file: file.write('\\xdf\\u20ac')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONUTF8": "0", "LC_ALL": "POSIX"})
    assert (done.stdout.decode("utf-8", "replace"), done.stderr) == ("\xdf\u20ac", b"")


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    left = {"a.txt.tmp-0123456789abcdef", ".a.txt.lock"}
    others = {"a.txt.tmp-old", "a.txt.tmp-20240131", "a.txt.tmp-x", "b.txt.tmp-0123456789abcdef",
              "a.txt.tmp-x.tmp-0123456789abcdef", ".b.txt.lock"}
    for name in left | others:
        save(tmp_path / name, "")
    save(tmp_path / "a.txt.tmp-fedcba9876543210/a", "")
    files.write_lines(tmp_path / "a.txt", ["one"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *others}


def test_a_writer_waits_for_one_that_lives(tmp_path, monkeypatch):
    """Also where both have the same number, as in two containers: neither looks at it."""
    inside, heard, said = threading.Event(), threading.Event(), []
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    monkeypatch.setattr(files, "print", lambda text, **_: (said.append(text), heard.set()), raising=False)

    def write():
        with files.atomic_folder(tmp_path / "folder") as new:
            save(new / "first", "")
            inside.set()
            heard.wait()
            assert (new / "first").exists()

    first = threading.Thread(target=write)
    first.start()
    inside.wait()
    with files.atomic_folder(tmp_path / "folder") as new:
        assert os.listdir(tmp_path / "folder") == ["first"]
        save(new / "second", "")
    first.join()
    assert said == [f"{tmp_path}/folder: waiting for another process that is at work on it"]
    assert os.listdir(tmp_path / "folder") == ["second"] and os.listdir(tmp_path) == ["folder"]


def test_a_lock_can_be_asked_for(tmp_path):
    def ask():
        with pytest.raises(BlockingIOError) as raised, files.locked(tmp_path / "x", wait=False):
            pass
        refused.append(raised.value.filename)

    refused = []
    with files.locked(tmp_path / "x"):
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        assert os.listdir(tmp_path) == [".x.lock"]
    with files.locked(tmp_path / "x", wait=False):
        assert refused == [str(tmp_path / "x")]
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc, where nothing can be written")
@pytest.mark.parametrize("wait", [True, False])
def test_where_there_can_be_no_lock_nobody_waits_for_one(monkeypatch, capsys, wait):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(OSError) as raised, files.locked(Path("/proc/no_such_file"), wait):
        pass
    assert raised.value.filename == "/proc/no_such_file" and not isinstance(raised.value, BlockingIOError)
    assert not capsys.readouterr().err


# --- atomic folders ---------------------------------------------------------------------------------------------------

class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_leaves_the_former_or_the_new_folder_whole(tmp_path, monkeypatch, renames):
    folder = tmp_path / "prepared"
    save(folder / "content", "old")
    rename, done = os.replace, []

    def dying_rename(path, target):
        if len(done) == renames:
            raise Killed
        done.append(rename(path, target))

    def dying_rmtree(path, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_rename)
        patch.setattr(shutil, "rmtree", dying_rmtree)
        with pytest.raises(Killed), files.atomic_folder(folder) as new:
            save(new / "content", "new")
    for _ in range(2):  # settled is settled
        files.recover_folder(folder)
        assert (folder / "content").read_text() == ("new" if renames == 2 else "old")
        assert not (tmp_path / "prepared.tmp-old").exists()


def test_a_folder_that_cannot_take_its_name_leaves_the_former_one(tmp_path, monkeypatch):
    save(tmp_path / "folder/a", "")
    rename = os.replace

    def refused(path, target):
        if ".tmp-" in str(path) and not str(path).endswith(".tmp-old"):
            raise PermissionError(13, "Access is denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError) as raised, files.atomic_folder(tmp_path / "folder"):
        pass
    assert raised.value.filename == str(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize("link", [False, True])
def test_the_whole_folder_is_replaced(tmp_path, link):
    save(tmp_path / "disk/folder/a", "")
    folder = tmp_path / "link" if link else tmp_path / "disk/folder"
    (tmp_path / "link").symlink_to("disk/folder")
    for error in (ValueError, None):
        with pytest.raises(error) if error else open(os.devnull), files.atomic_folder(folder) as new:
            save(new / "b", "")
            if error:
                raise error
        assert [path.name for path in folder.iterdir()] == (["a"] if error else ["b"])
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["folder"] and (tmp_path / "link").is_symlink()


def test_processes_may_replace_the_same_folder_at_once(tmp_path):
    code = ("import sys\nfrom titles import files\nfor _ in range(300):\n"
            " with files.atomic_folder('folder') as new: (new / 'content').write_text(sys.argv[1])")
    together = [subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, stderr=subprocess.PIPE,
                                 env={**os.environ, "PYTHONPATH": str(ROOT)}) for name in ("one", "two")]
    assert [process.communicate()[1] for process in together] == [b"", b""]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder/content").read_text() in ("one", "two")


# --- compressed input -------------------------------------------------------------------------------------------------

TEXT = b"".join(b"title %d,C%d\n" % (i, i % 3) for i in range(1000))


def read(path):
    with open(path, "rb") as raw, files.archive_errors(path):
        return files.decompressed(raw).read()


@pytest.mark.parametrize("packed", PACKED)
def test_compression_is_told_by_content(tmp_path, packed):
    for content in (TEXT, b"", b"a"):
        assert read(save(tmp_path / "x.csv", PACKED[packed](content))) == content
    two = PACKED[packed](TEXT) + PACKED[packed](b"end")  # as from `cat a.gz b.gz`
    assert read(save(tmp_path / "x.bz2", two)) == TEXT + b"end"


@pytest.mark.parametrize("packed", ["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "cut at its start", "corrupted"])
def test_a_broken_compressed_file_is_named(tmp_path, packed, damage):
    content = PACKED[packed](TEXT)
    path = save(tmp_path / "x", {"cut": content[:-20], "cut at its start": content[:11],
                                 "corrupted": corrupted(content)}[damage])
    with pytest.raises(UserError, match=re.escape(f"{path}: broken compressed file (") + ".*; fetch it again"):
        read(path)


def test_garbage_behind_a_gzip_file_is_named(tmp_path):
    with pytest.raises(UserError, match="x: broken compressed file"):
        read(save(tmp_path / "x", gzip.compress(TEXT) + b"garbage"))


@pytest.mark.parametrize("packed", ["gzip", "bzip2", "xz"])
def test_a_decompression_bomb_stops(tmp_path, monkeypatch, packed):
    """Beyond what any file may grow to, the output is at most 100 times the input."""
    monkeypatch.setattr(files, "FREE_EXPANSION", 1 << 20)
    assert len(read(save(tmp_path / "x", PACKED[packed](bytes(1 << 20))))) == 1 << 20
    noise = os.urandom(100_000)
    assert read(save(tmp_path / "x", PACKED[packed](noise * 20))) == noise * 20
    with pytest.raises(UserError, match="x: grows more than 100-fold when decompressed; unpack it first"):
        read(save(tmp_path / "x", PACKED[packed](bytes(30 << 20))))


def test_lines_have_a_limit(monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    assert list(files.bounded_lines(io.BytesIO(b"a\n123456789\nb"), "x")) == [b"a\n", b"123456789\n", b"b"]
    with pytest.raises(UserError, match="x:2: a line of more than"):
        list(files.bounded_lines(io.BytesIO(b"a\n1234567890\nb"), "x"))


def test_a_file_is_required(tmp_path):
    files.require_file(save(tmp_path / "x", ""))
    for path, what in ((tmp_path, "not a file"), (tmp_path / "y", "no such file")):
        with pytest.raises(UserError, match=f"{path}: {what}"):
            files.require_file(path)


# --- plain files, with checksums --------------------------------------------------------------------------------------

def test_lines_come_back_as_they_were_written(tmp_path):
    for lines in (["", "a b", "ñ\u2028手", "\x0b\x1c\x85", "a\rb\r", ""], []):
        files.write_lines(tmp_path / "lines", lines)
        assert files.read_lines(tmp_path / "lines") == lines


def test_a_verified_file_is_the_one_that_was_written(tmp_path):
    path, value = tmp_path / "x.json", {"format": 3, "name": "ñ", "list": [1, 2.5, None]}
    signed = files.with_checksum(value)
    files.write_json(path, signed)
    assert files.read_verified_json(path, 3, "again") == signed == files.with_checksum(signed)
    with pytest.raises(UserError, match=r"x\.json: format version 3, expected 4; again"):
        files.read_verified_json(path, 4, "again")
    for changed in (signed | {"name": "n"}, signed | {"more": 1}, value):
        files.write_json(path, changed)
        with pytest.raises(UserError, match=r"x\.json: changed since it was written; again"):
            files.read_verified_json(path, 3, "again")


def test_the_checksum_is_of_all_that_a_file_holds(tmp_path):
    content = bytes(5 << 20)
    assert files.checksum(save(tmp_path / "x", content)) == files.checksum_of(content)
    assert files.checksum_of(content) != files.checksum_of(content[:-1] + b"x")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000], ids=lambda x: repr(x[:5]))
def test_what_is_no_json_object_is_named(tmp_path, content):
    with pytest.raises(UserError, match=r"x\.json: not (valid JSON|a JSON object).*; make it again"):
        files.read_json(save(tmp_path / "x.json", content))
