"""files.py: nothing is half-written, nothing is trusted, and what goes wrong is one line."""
import argparse
import gzip
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKED, ROOT, corrupted, save

import files
from files import UserError

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

    monkeypatch.setattr(files.os, "_exit", sys.exit)  # after Ctrl-C, which would end the tests
    with pytest.raises(SystemExit) as stop:
        files.run(main)
    assert (stop.value.code, capsys.readouterr().err) == (status, line)


@pytest.mark.parametrize("error", [RuntimeError("INTERNAL: a defect"), ValueError("a defect"), KeyError("defect")])
def test_defects_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match="defect"):
        files.run(main)


@pytest.mark.parametrize(("kind", "good", "bad"), [
    (files.positive(int), ["1", "70"], ["0", "-1", "1.5", "x", ""]),
    (files.positive(float), ["0.5", "1e-9"], ["0", "-1", "nan", "inf"]),
    (files.not_negative(float), ["0", "0.5"], ["-0.1", "nan", "inf"]),
    (files.fraction, ["0.5"], ["0", "1", "nan", "-0.5", "95", "x", ""]),
    (files.fraction_or_one, ["0.5", "1"], ["0", "1.01"]), (files.fraction_or_zero, ["0.5", "0"], ["1", "-1"]),
    (files.seed, ["0", str(2 ** 32 - 1)], ["-1", str(2 ** 32), "0.5"])])
def test_arguments_have_limits(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            kind(text)


def test_errors_of_arguments_are_one_line_and_say_what_is_wanted(capsys):
    parser = files.argument_parser("Manual.")
    parser.add_argument("--rows", type=files.positive(int), default=7, help="rows")
    parser.add_argument("--name", help="name")
    parser.add_argument("--valid", type=files.fraction)
    parser.add_argument("--dropout", type=files.fraction_or_zero)
    parser.add_argument("--fold", type=files.fold)
    for flags, words in ((["--rows", "0"], "--rows: invalid positive int value: '0'"), (["--row", "1"], "--row 1"),
                         (["--valid", "95"], "--valid: '95': wanted a share between 0 and 1, such as 0.95"),
                         (["--dropout", "x"], "--dropout: 'x': wanted 0, or a share below 1, such as 0.1"),
                         (["--fold", "4/3"], "--fold: '4/3': wanted I/K"), (["--fold", "x"], "wanted I/K")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert "rows (default: 7)" in parser.format_help() and "name (default" not in parser.format_help()


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
    code = "import files\nwith files.atomic_write('/dev/stdout') as file: file.write('\\xdf\\u20ac')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONUTF8": "0", "LC_ALL": "POSIX"})
    assert (done.stdout.decode("utf-8", "replace"), done.stderr) == ("\xdf\u20ac", b"")


def test_what_dead_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for process in (1, ended.pid, 10 ** 30, os.getpid(), "x"):  # a container may give every process the same number
        (tmp_path / f"a.txt.tmp-{process}").touch()
    files.write_lines(tmp_path / "a.txt", ["one"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.txt.tmp-1", "a.txt.tmp-x"}


# --- atomic folders ---------------------------------------------------------------------------------------------------

class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_leaves_the_former_or_the_new_folder_whole(tmp_path, monkeypatch, renames):
    folder, new = tmp_path / "prepared", tmp_path / "prepared.tmp-1"
    for path, content in ((folder, "old"), (new, "new")):
        save(path / "content", content)
    rename, done = Path.rename, []

    def dying_rename(self, target):
        if len(done) == renames:
            raise Killed
        done.append(rename(self, target))

    def dying_rmtree(path, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying_rename)
        patch.setattr(shutil, "rmtree", dying_rmtree)
        with pytest.raises(Killed):
            files.replace_folder(new, folder)
    for _ in range(2):  # settled is settled
        files.recover_folder(folder)
        assert (folder / "content").read_text() == ("new" if renames == 2 else "old")
        assert not (tmp_path / "prepared.tmp-old").exists()


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
    code = ("import sys, files\nfor _ in range(300):\n"
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
    for lines in (["", "a b", "ñ\u2028手", "\x0b\x1c\x85", ""], []):
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000], ids=lambda x: repr(x[:5]))
def test_what_is_no_json_object_is_named(tmp_path, content):
    with pytest.raises(UserError, match=r"x\.json: not (valid JSON|a JSON object).*; make it again"):
        files.read_json(save(tmp_path / "x.json", content))
