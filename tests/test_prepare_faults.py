"""prepare.py on bad input, on kills and on full disks: one line is said, and the former result stays as it was."""
import gzip
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, as_csv, assert_one_line_error, meta, save, snapshot, texts, tiny_rows

import prepare
from titles import files, formats

GOOD = as_csv(tiny_rows(60))
PAIRS = ["title,category", *(f"title {i},C{i % 3}" for i in range(1000))]


def pairs(*lines, place=500):
    """1,000 sound rows of title and category, and these lines behind so many of them."""
    return "\n".join([*PAIRS[:place + 1], *lines, *PAIRS[place + 1:]]) + "\n"


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {  # name: (content of bad.csv, flags, words of the message)
    "missing file": (None, [], ["bad.csv: no such file"]),
    "broken compressed file": (gzip.compress(GOOD.encode())[:-9], [], ["bad.csv: broken compressed file"]),
    "no header": ("silla,SILLAS\nmesa,MESAS\n", [], ["bad.csv:1: the header"]),
    "no rows": ("title,category\n", [], ["bad.csv: no rows"]),
    "no rows, nor a newline": ("title,category", [], ["bad.csv: no rows"]),
    "bad rows": (pairs(*["a,b,c"] * 30), [], ["bad.csv:502: 3 columns instead of 2", "30 bad rows of 1,030", "--max-"]),
    "one category": ("title,category\na,b\nc,b\n", [], ["bad.csv: only one category (b)"]),
    "no letters": ("title,category\n!,b\n?,c\n", [], ["bad.csv: no title has a letter or digit"]),
    "split of another name": ("title,category,split\na,b,\nc,d,exam\n", [], ["bad.csv: the split column says 'exam'"]),
    "no such language": (GOOD, ["--languages", "klingon"], ["bad.csv: no rows in klingon"]),
    "no language column": (pairs(), ["--languages", "spanish"], ["bad.csv: has no language column"]),
    "too many languages": ("title,category,language\n" + "".join(f"a,C{i % 3},{i}\n" for i in range(300)), [],
                           ["bad.csv: more than 256 languages"]),
    "no frequent word": (pairs(), ["--min-count", "5000"], ["bad.csv", "--min-count"]),
    "data without rows": ("title,category\n", ["--test", "good.csv"], ["bad.csv: no rows"]),
    "test without rows": (GOOD, ["--test", "header.csv"], ["header.csv: no rows"]),
    "missing test": (GOOD, ["--test", "nowhere.csv"], ["nowhere.csv: no such file"]),
    "missing vectors": (GOOD, ["--vectors", "nowhere.vec"], ["nowhere.vec: no such file"]),
    "vectors of other words": (GOOD, ["--vectors", "other.vec"], ["other.vec: ", "no word"]),
    "unknown flag": (GOOD, ["--vocabulary", "7"], ["unrecognized arguments: --vocabulary 7", "--help"]),
    "shortened flag": (GOOD, ["--max-l", "7"], ["unrecognized arguments"]),
    "rows 0": (GOOD, ["--rows", "0"], ["--rows", "positive int"]),
    "valid 1.5": (GOOD, ["--valid", "1.5"], ["--valid", "'1.5'"]),
    "seed -1": (GOOD, ["--seed", "-1"], ["--seed", "'-1'"]),
    "vocab 0": (GOOD, ["--vocab", "0"], ["--vocab"]),
    "min-count 0": (GOOD, ["--min-count", "0"], ["--min-count"]),
    "max-len x": (GOOD, ["--max-len", "x"], ["--max-len"]),
    "threads 0": (GOOD, ["--threads", "0"], ["--threads"]),
    "max-bad-rows -1": (GOOD, ["--max-bad-rows", "-1"], ["--max-bad-rows"]),
    "download of another": (GOOD, ["--download", "imagenet"], ["--download", "imagenet", "meli"]),
    "out is a file": (GOOD, ["--out", "header.csv"], ["header.csv: is there and holds something else"]),
    "out under a file": (GOOD, ["--out", "header.csv/prepared"], ["header.csv/prepared", "Not a directory"]),
    "out where nothing can be made": (GOOD, ["--out", "/proc/nowhere/prepared"], ["/proc/nowhere"]),
    "out is the working folder": (GOOD, ["--out", "."], ["choose another --out"]),
    "out is above": (GOOD, ["--out", ".."], ["choose another --out"]),
    "out is all there is": (GOOD, ["--out", "/"], ["choose another --out"]),
    "out is nothing": (GOOD, ["--out", ""], ["choose another --out"]),
    "out is a folder of files": (GOOD, ["--out", "folder"], ["folder: is there and holds something else"]),
    "out is no prepared folder": (GOOD, ["--out", "other"], ["other: is there and holds something", "(thesis.txt)"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_and_nothing_is_lost(prep, tiny, name):
    content, flags, words = BAD[name]
    shutil.copytree(tiny / "data", "data")
    for path, text in (("header.csv", "title,category\n"), ("good.csv", GOOD), ("other.vec", "rueda 1 2\nluz 4 5\n"),
                       ("folder/vocab.txt", "mine"), ("other/meta.json", '{"format": 1}'), ("other/thesis.txt", "")):
        save(path, text)
    if content is not None:
        save("bad.csv", content)
    before = snapshot()
    done = prep("--data", "bad.csv", *flags, check=False)
    assert_one_line_error(done, *words)
    assert snapshot() == before


def test_a_few_bad_rows_are_skipped_and_counted(prep, monkeypatch):
    lines = ["a,b,c", ",C1", "x,", "x", '"y', "w"]
    save("titles.csv", pairs(*lines))
    done = prep("--data", "titles.csv")
    assert "bad rows skipped      6, first titles.csv:502: 3 columns instead of 2" in done.stdout and done.stderr == ""
    assert (meta()["bad_rows"], sum(meta()["rows"].values())) == (6, 1000)
    monkeypatch.setattr(formats, "BLOCK", 1000)
    assert_one_line_error(prep("--data", "titles.csv", "--max-bad-rows", "0.005", check=False),
                          "titles.csv:502: 3 columns", "6 bad rows of 1,006", "--max-bad-rows")
    prep("--data", "titles.csv", "--max-bad-rows", 6)
    assert_one_line_error(prep("--data", "titles.csv", "--max-bad-rows", 5, check=False), "6 bad rows")


@pytest.mark.parametrize("flags", [("--rows", 300), ("--languages", "spanish")])
def test_bad_rows_are_a_share_of_all_rows_read(prep, flags):
    rows = "".join(f"w{i} x,C{i % 4},{'spanish' if i % 5 == 0 else 'portuguese'}\n" for i in range(2000))
    save("titles.csv", "title,category,language\n" + rows + "a,b\n" * 15)
    prep("--data", "titles.csv", *flags)
    assert meta()["bad_rows"] == 15 and sum(meta()["rows"].values()) < 401
    assert_one_line_error(prep("--data", "titles.csv", *flags, "--max-bad-rows", "0.007", check=False),
                          "15 bad rows of 2,015")


def test_rows_behind_broken_quotes_are_kept_and_warned_of(prep):
    save("titles.csv", pairs('"Gaming silla,C1', "x,C1", '"Pro tv,C1', '"mesa', 'larga",C1'))
    done = prep("--data", "titles.csv")
    assert sum(meta()["rows"].values()) == 1004 and meta()["bad_rows"] == 0
    assert done.stderr.splitlines() == [
        "warning: titles.csv:502: an unclosed quote was taken as text (and 1 more)",
        "warning: titles.csv:505: a field in quotes spans lines; if it should not, a quote is unclosed"]


# --- what stands in --out ---------------------------------------------------------------------------------------------

def test_a_prepared_folder_with_a_file_of_mine_is_not_replaced(prep):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    save("data/prepared/notes.txt", "mine")
    before = snapshot()
    assert_one_line_error(prep("--data", "good.csv", check=False), "data/prepared: ", "notes.txt", "--out")
    assert snapshot() == before


@pytest.mark.parametrize("damage", ["vocab.txt", "train_shapes.npy"])
def test_a_damaged_or_older_prepared_folder_can_be_made_again(prep, damage):
    """What its own meta.json lists is replaced, whatever its name: other formats have other files."""
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    whole = snapshot("data")
    save(Path("data/prepared") / damage, "{")
    older = meta() | {"format": 1}
    older["files"][damage] = ""
    files.write_json(Path("data/prepared/meta.json"), older)
    prep("--data", "good.csv")
    assert snapshot("data") == whole


@pytest.mark.parametrize("content", ["{", "[]", '{"files": null}', '{"files": [[]]}', b"\xff"])
def test_a_folder_whose_meta_json_is_damaged_is_not_replaced(prep, content):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    save("data/prepared/meta.json", content)
    before = snapshot()
    assert_one_line_error(prep("--data", "good.csv", check=False), "data/prepared/meta.json: damaged", "delete the")
    assert snapshot() == before


def test_an_empty_folder_and_folders_that_are_not_there_serve_as_out(prep):
    save("good.csv", GOOD)
    Path("empty").mkdir()
    for out in ("empty", "a/b/c"):
        prep("--data", "good.csv", "--out", out)
        assert texts("train", out) and [path.name for path in Path(out).parent.glob("*.*")] in ([], ["good.csv"])


def test_out_may_be_a_link_to_a_folder_elsewhere(prep):
    save("good.csv", GOOD)
    Path("big/disk").mkdir(parents=True)
    Path("data").mkdir()
    Path("data/prepared").symlink_to("../big/disk")
    for _ in range(2):
        prep("--data", "good.csv")
        assert Path("data/prepared").is_symlink() and texts("train")
        assert [path.name for path in Path("big").iterdir()] == ["disk"]
        assert [path.name for path in Path("data").iterdir()] == ["prepared"]


def test_a_backup_beside_the_prepared_folder_is_not_touched(prep):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    for name in ("prepared.old", "prepared.tmp", "prepared.tmp-backup", "prepared.bak"):
        shutil.copytree("data/prepared", Path("data") / name)
    save("data/prepared.tmp-2024x/mine", "mine")
    before = snapshot("data")
    prep("--data", "good.csv")
    assert snapshot("data") == before


# --- kills and full disks ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("new", [False, True])
def test_what_a_kill_between_two_renames_left_is_settled(prep, new):
    save("good.csv", GOOD)
    save("bad.csv", "title,category\na,b\n")
    prep("--data", "good.csv")
    before = snapshot("data")
    if new:
        shutil.copytree("data/prepared", "data/prepared.tmp-old")
        save("data/prepared.tmp-old/vocab.txt", "former")
    else:
        Path("data/prepared").rename("data/prepared.tmp-old")
    assert_one_line_error(prep("--data", "bad.csv", check=False), "only one category")
    assert snapshot("data") == before


@pytest.mark.parametrize("when", ["prepare.read_rows", "prepare.write_titles", "files.rename"])
def test_a_kill_leaves_the_former_result_and_the_next_run_tidies_up(prep, tiny, tmp_path, when):
    save("good.csv", GOOD)
    shutil.copytree(tiny / "data", "data")
    before = snapshot(tmp_path)
    save("data/prepared.tmp-mine/thesis.txt", "mine")  # not one of ours
    module, name = when.split(".")
    kill = ("import os, sys; sys.path.insert(0, sys.argv.pop(1)); import prepare; from titles import files;"
            f"{module}.{name} = lambda *a: os.kill(os.getpid(), 9); prepare.main()")
    killed = subprocess.run([sys.executable, "-c", kill, ROOT, "--data", "good.csv", "--seed", "1"], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path("data").glob("prepared.tmp-*"))) == 2
    assert {path: content for path, content in snapshot(tmp_path).items()
            if ".tmp-" not in path and not path.endswith(".lock")} == before
    prep("--data", "good.csv")
    assert sorted(path.name for path in Path("data").iterdir()) == ["prepared", "prepared.tmp-mine"]
    assert Path("data/prepared.tmp-mine/thesis.txt").read_text() == "mine"


def test_an_interrupt_leaves_no_trace(prep, monkeypatch):
    save("good.csv", GOOD)
    prep("--data", "good.csv")
    before = snapshot()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "choose_words", interrupted)
    assert prep("--data", "good.csv", check=False).returncode == 130
    assert snapshot() == before


def test_a_full_disk_ends_in_one_line_and_nothing_is_lost(prep, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        save("good.csv", GOOD)
        save("titles.csv", as_csv(tiny_rows(4000)))
        prep("--data", "good.csv", "--out", place / "prepared")
        before = snapshot(place)
        assert_one_line_error(prep("--data", "titles.csv", "--out", place / "prepared", check=False), place, "space")
        assert snapshot(place) == before
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        done = prep("--data", "good.csv", "--out", place / "prepared", check=False)
        assert_one_line_error(done, place / "prepared", "Read-only file system")
        assert snapshot(place) == before
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("limit", [2_000, 60_000])
def test_a_file_that_cannot_grow_ends_in_one_line_and_nothing_is_lost(tiny, tmp_path, limit):
    save(tmp_path / "titles.csv", as_csv(tiny_rows(2000)))
    shutil.copytree(tiny / "data", tmp_path / "data")
    before = snapshot(tmp_path)
    limited = ("import resource, runpy, sys; sys.path.insert(0, sys.argv[1].rpartition('/')[0]);"
               f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); del sys.argv[0];"
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-B", "-c", limited, ROOT / "prepare.py", "--data", "titles.csv",
                           "--max-len", "60"], cwd=tmp_path, capture_output=True, text=True)
    assert_one_line_error(done, "data/prepared", "File too large")
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_memory_for_a_row_has_a_bound(tmp_path):
    """20 million titles of usual length are to need about 4 GB: 200 bytes a row; twice that are allowed here."""
    draw, words = random.Random(0), [f"word{i}" for i in range(20_000)]
    code = ("import resource, sys; sys.path.insert(0, sys.argv[1]); import prepare; from titles import formats;"
            "formats.BLOCK = 1 << 20; sys.argv[:2] = ['prepare.py']; prepare.main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")

    def peak(rows):
        """Peak resident memory, in bytes, of preparing a file of so many rows."""
        save(tmp_path / "titles.csv", "title,category\n" + "".join(
            f"{' '.join(draw.choices(words, k=8))},c{i % 9}\n" for i in range(rows)))
        done = subprocess.run([sys.executable, "-c", code, ROOT, "--data", "titles.csv", "--threads", "2"],
                              cwd=tmp_path, capture_output=True, text=True, check=True)
        return 1024 * int(done.stdout.split()[-1])

    assert (peak(350_000) - peak(50_000)) / 300_000 < 400
