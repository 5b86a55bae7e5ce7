"""Downloads that break, archives that reach outside, and the public data sets, from a server of our own."""
import bz2
import gzip
import http.server
import io
import json
import lzma
import random
import socket
import tarfile
import threading
from pathlib import Path

import pytest
from conftest import COLUMNS, as_csv, as_json, assert_one_line_error, corrupted, save, texts, tiny_rows

import prepare
from data import SPLITS
from titles import files
from titles.cli import UserError


class Server:
    """An HTTP server on this machine that can break off, or announce too much."""

    def __init__(self):
        server = self
        self.files, self.cut, self.announce, self.chunked, self.asked = {}, None, 0, False, []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append(self.path.lstrip("/"))
                self.close_connection = True
                body = server.files.get(self.path.lstrip("/"))
                if body is None:
                    return self.send_error(404)
                self.send_response(200)
                if server.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    return self.wfile.write(b"%x\r\n" % len(body) + body[:server.cut])
                self.send_header("Content-Length", str(len(body) + server.announce))
                self.end_headers()
                self.wfile.write(body[:server.cut])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


# --- one file ---------------------------------------------------------------------------------------------------------

BODY = random.Random(0).randbytes(50_000)


def test_download_fetches_a_whole_file_once(server, tmp_path, capsys):
    server.files["x"] = BODY
    path = tmp_path / "new" / "x"
    assert files.download(f"{server.url}/x", path, len(BODY)) == path
    assert path.read_bytes() == BODY and list(path.parent.iterdir()) == [path]
    files.download(f"{server.url}/x", path)
    assert server.asked == ["x"] and capsys.readouterr().err == ""


def test_a_connection_that_breaks_leaves_nothing(server, tmp_path):
    server.files["x"], server.cut = BODY, 20_000
    with pytest.raises(UserError, match=f"{server.url}/x: 20,000 bytes instead of 50,000; try again"):
        files.download(f"{server.url}/x", tmp_path / "x")
    assert not list(tmp_path.iterdir())
    server.cut = None
    files.download(f"{server.url}/x", tmp_path / "x", len(BODY))
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_connection_that_breaks_without_an_announced_length(server, tmp_path):
    server.files["x"], server.cut, server.chunked = BODY, 20_000, True
    with pytest.raises(UserError, match=f"{server.url}/x: cannot be fetched"):
        files.download(f"{server.url}/x", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_sizes_must_be_those_that_are_announced_and_known(server, tmp_path):
    server.files["x"], server.announce = BODY, 7
    with pytest.raises(UserError, match=r"x: 50,000 bytes instead of 50,007"):
        files.download(f"{server.url}/x", tmp_path / "x")
    server.announce = 0
    with pytest.raises(UserError, match=r"x: 50,000 bytes instead of 49,999"):
        files.download(f"{server.url}/x", tmp_path / "y", len(BODY) - 1)
    assert not list(tmp_path.iterdir())


def test_a_server_that_has_not_the_file_or_is_none(server, tmp_path):
    with pytest.raises(UserError, match=f"{server.url}/x: cannot be fetched .*404"):
        files.download(f"{server.url}/x", tmp_path / "x")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
    for url in (nobody, "nowhere", "http://127.0.0.1:x", "http://a b", "ftpx://127.0.0.1", "http://"):
        with pytest.raises(UserError, match=f"{url}: cannot be fetched .*put the file into {tmp_path}/ yourself"):
            files.download(url, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_server_that_speaks_something_else(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        def greet():
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{other.getsockname()[1]}/x"
        with pytest.raises(UserError, match=f"{url}: cannot be fetched"):
            files.download(url, tmp_path / "x")
        thread.join()


# --- archives ---------------------------------------------------------------------------------------------------------

def tar_of(contents, *more):
    """A tar archive of {name: content} and more TarInfo members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return file.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def assert_not_unpacked(folder, message="delete it and fetch it again"):
    """The archive `folder`/x is refused, and nothing is left of it, in the folder or above."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=f"{folder}/x: .*{message}"):
        files.unpack(folder / "x", folder / "unpacked")
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_is_unpacked_whatever_its_compression(tmp_path, pack):
    save(tmp_path / "x", pack(tar_of({"a/b": b"one", "/c": b"two"})))  # what is absolute lands inside
    files.unpack(tmp_path / "x", tmp_path / "unpacked")
    found = {path.relative_to(tmp_path / "unpacked").as_posix(): path.read_bytes()
             for path in (tmp_path / "unpacked").rglob("*") if path.is_file()}
    assert found == {"a/b": b"one", "c": b"two"}


@pytest.mark.parametrize(("contents", "members"), [
    ({"../evil": b"x"}, []), ({"a/../../evil": b"x"}, []), ({}, [link("here", "/etc")]), ({}, [link("here", "../..")]),
    ({}, [link("here", "../secret", tarfile.LNKTYPE)]), ({}, [link("here", "", tarfile.CHRTYPE)])],
    ids=["above", "above from within", "absolute link", "link above", "hard link above", "device"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path, contents, members):
    save(tmp_path / "secret", "unseen")
    save(tmp_path / "work/x", bz2.compress(tar_of({"a.csv": b"x"} | contents, *members)))
    assert_not_unpacked(tmp_path / "work")


@pytest.mark.parametrize("damage", ["cut", "flipped", "flipped behind", "no archive", "xz cut", "gzip flipped"])
def test_a_broken_archive_is_named(tmp_path, damage):
    whole = tar_of({"a.csv": b"x", "big": BODY * 25})
    content, packed = bz2.compress(whole), gzip.compress(whole + bytes(1 << 20))
    save(tmp_path / "work/x", {
        "cut": content[:len(content) // 2], "flipped": bytes(100).join((content[:1000], content[1100:])),
        "flipped behind": packed[:-8] + bytes(4) + packed[-4:],  # the checksum, behind the last member
        "no archive": BODY, "xz cut": lzma.compress(whole)[:2000], "gzip flipped": corrupted(packed)}[damage])
    assert_not_unpacked(tmp_path / "work")


def test_an_archive_that_is_a_bomb_stops(tmp_path):
    """200 MB in a few hundred bytes."""
    save(tmp_path / "work/x", bz2.compress(tar_of({"a.csv": b"x", "big": bytes(200 << 20)})))
    assert_not_unpacked(tmp_path / "work", "100-fold")


# --- the public data sets ---------------------------------------------------------------------------------------------

def test_the_course_is_fetched_unpacked_and_prepared(prep, server):
    rows = tiny_rows(120)
    parts = {"train": rows[:80], "validation": rows[80:100], "test": rows[100:]}
    contents = {f"spanish.{name}.jsonl.gz": as_json(part, split=name) for name, part in parts.items()}
    contents["spanish_token_to_index.json.gz"] = json.dumps({"title": 1, "category": 2})
    server.files["meli-challenge-2019.tar.bz2"] = bz2.compress(tar_of({
        f"meli-challenge-2019/{name}": gzip.compress(content.encode()) for name, content in contents.items()}))
    server.cut = 1000
    done = prep("--download", "course", "--mirror", server.url, check=False)
    assert_one_line_error(done, "/meli-challenge-2019.tar.bz2: 1,000 bytes instead of ", "try again")
    server.cut = None
    unpacked = set()
    for _ in range(2):  # the second time nothing is fetched or unpacked again
        prep("--download", "course", "--mirror", server.url)
        for split, part in zip(SPLITS, parts.values(), strict=True):
            assert texts(split) == [row[0] for row in part]
        unpacked |= {(path, path.stat().st_mtime_ns) for path in Path("data/raw/course/unpacked").iterdir()}
    assert len(server.asked) == 2 and len(unpacked) == 1
    prep()  # finds it in data/raw
    assert {path.name for path in Path("data/raw/course").iterdir()} == {"meli-challenge-2019.tar.bz2", "unpacked"}


def test_the_challenge_is_fetched_and_its_size_checked(prep, server, monkeypatch):
    content = gzip.compress(as_csv(tiny_rows(100), COLUMNS).encode())
    server.files |= {"train.csv.gz": content, "test.csv": b"id,title,language\n0,Silla,spanish\n",
                     "sample_submission.csv": b"id,category\n0,SILLAS\n"}
    assert prepare.DOWNLOADS["meli"][1]["train.csv.gz"] == 691_651_384
    done = prep("--download", "meli", "--mirror", server.url, check=False)
    assert_one_line_error(done, "/train.csv.gz: ", f"{len(content):,} bytes instead of 691,651,384")
    assert not Path("data/prepared").exists() and not Path("data/raw/meli/train.csv.gz").exists()
    monkeypatch.setitem(prepare.DOWNLOADS, "meli", (prepare.MELI, {
        "train.csv.gz": len(content), "test.csv": None, "sample_submission.csv": None}))
    prep("--download", "meli", "--mirror", server.url)
    assert sum(len(texts(split)) for split in SPLITS) == 100


def test_data_are_downloaded_or_given(prep):
    save("titles.csv", as_csv(tiny_rows(50)))
    done = prep("--download", "meli", "--data", "titles.csv", check=False)
    assert_one_line_error(done, "--download and --data: give one")
