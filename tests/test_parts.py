"""A folder of parts: prepared by many processes (prepare.py --parts), checked (--check), and trained on as one."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, run_here, tiny_rows, write_csv

import data
from titles import files, runs
from titles.cli import UserError

NAMES = ("0001.csv", "a b 'c'.csv", "número.csv")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with base/, more/ of three files, and their parts in parts/."""
    folder = tmp_path_factory.mktemp("made")
    write_csv(folder / "base.csv", tiny_rows(300))
    (folder / "more").mkdir()
    run_here("prepare", "--data", "base.csv", "--out", "base", cwd=folder)
    for i, name in enumerate(NAMES):
        write_csv(folder / "more" / name, tiny_rows(40, seed=i + 1))
        prepare(folder, f"more/{name}")
    return folder


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def prepare(folder, *paths, check=True, flags=()):
    return run_here("prepare", "--data", *paths, "--like", "base", "--parts", "parts", *flags, cwd=folder, check=check)


def check(folder, *paths, flags=()):
    """(status, lines on standard output, those on standard error) of --check."""
    done = prepare(folder, *paths or ["more"], check=False, flags=["--check", *flags])
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def assert_only_fault(folder, name, reason, flags=()):
    """--check finds this fault alone; to prepare that file again mends it, and leaves the other parts alone."""
    status, paths, (said, count) = check(folder, flags=flags)
    assert (status, paths, count) == (1, [f"more/{name}"], "2 of 3 parts are well"), (paths, said)
    assert said.startswith(f"parts/{name}: ") and reason in said
    others = {path: path.stat().st_mtime_ns for path in folder.glob("parts/*/meta.json") if name not in str(path)}
    prepare(folder, f"more/{name}", flags=flags)
    assert others == {path: path.stat().st_mtime_ns for path in others}
    assert check(folder, flags=flags) == (0, [], ["3 of 3 parts are well"])


def test_a_part_is_what_out_would_have_prepared(made, tmp_path):
    assert sorted(path.name for path in (made / "parts").iterdir()) == sorted(NAMES)
    for name in NAMES:
        run_here("prepare", "--data", made / "more" / name, "--like", made / "base", "--out", "out", cwd=tmp_path)
        one, two = (files.read_json(folder / "meta.json") for folder in (made / "parts" / name, tmp_path / "out"))
        assert one["files"] == two["files"]
        assert one["base"] == two["base"] == files.read_json(made / "base/meta.json")["fingerprint"]
        assert (one["part_of"], two["part_of"]) == (f"../more/{name}", None)


def test_what_is_there_is_not_prepared_again(copied):
    before = [path.stat().st_mtime_ns for path in sorted(copied.glob("parts/*/*"))]
    for name in NAMES:
        done = prepare(copied, f"more/{name}")
        assert done.stdout == f"parts/{name}: is there, whole, of more/{name} as it is\n" and not done.stderr
    assert [path.stat().st_mtime_ns for path in sorted(copied.glob("parts/*/*"))] == before
    assert not [*copied.glob("parts/.*")]

    # The folder of parts and its files may be named from elsewhere, or have moved.
    done = run_here("prepare", "--data", NAMES[0], "--like", "../base", "--parts", "../parts", cwd=copied / "more")
    assert "is there" in done.stdout
    (copied / "more").rename(copied / "moved")
    assert check(copied, "moved") == (0, [], ["3 of 3 parts are well"])


def test_several_processes_make_one_folder(copied):
    """Two of each part at once, of which the second finds what the first has made."""
    shutil.rmtree(copied / "parts")
    started = [subprocess.Popen([sys.executable, ROOT / "prepare.py", "--data", f"more/{name}", "--like", "base",
                                 "--parts", "parts"], cwd=copied, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for name in NAMES[:2] for _ in range(2)]
    said = [process.communicate()[0].decode() for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert sorted("is there, whole" in text for text in said) == [False, False, True, True]
    prepare(copied, f"more/{NAMES[2]}")
    assert check(copied)[0] == 0 and len([*(copied / "parts").iterdir()]) == 3


def test_a_part_of_another_file_is_not_replaced(copied):
    (copied / "other").mkdir()
    write_csv(copied / "other/0001.csv", tiny_rows(30, seed=9))
    before = files.checksum(copied / "parts/0001.csv/meta.json")
    done = prepare(copied, "other/0001.csv", check=False)
    assert_one_line_error(done, "parts/0001.csv: is the part of another file than other/0001.csv (../more/0001.csv)")
    # Neither is one that is broken, nor one whose file is named alike from its folder.
    (copied / "parts/0001.csv/vocab.txt").write_text("x\n")
    done = run_here("prepare", "--data", "0001.csv", "--like", "../base", "--parts", "../parts", cwd=copied / "other",
                    check=False)
    assert_one_line_error(done, "is the part of another file than 0001.csv")
    assert files.checksum(copied / "parts/0001.csv/meta.json") == before
    status, paths, said = check(copied, "other")
    assert (status, paths) == (1, ["other/0001.csv"]) and "is the part of another file" in said[0]
    done = prepare(copied, "more", "other", check=False, flags=["--check"])
    assert_one_line_error(done, "other/0001.csv and more/0001.csv: would have the same part")


def test_all_is_well(made):
    assert check(made) == (0, [], ["3 of 3 parts are well"])
    assert check(made, *(f"more/{name}" for name in NAMES)) == (0, [], ["3 of 3 parts are well"])


def test_a_missing_part(copied):
    shutil.rmtree(copied / "parts" / NAMES[1])
    assert_only_fault(copied, NAMES[1], "missing")


@pytest.mark.parametrize("path", sorted(["vocab.txt", "train_titles.npy", "train_text.txt", "train_line.npy"]))
def test_a_broken_part(copied, path):
    with open(copied / "parts" / NAMES[0] / path, "ab") as file:
        file.write(b"x")
    assert_only_fault(copied, NAMES[0], f"{path}: not what prepare.py wrote")


def test_a_part_that_lacks_a_file_or_has_another_meta(copied):
    (copied / "parts" / NAMES[0] / "oov.txt").unlink()
    assert_only_fault(copied, NAMES[0], "oov.txt: missing")
    for change, reason in (({"base": "0" * 16}, "changed since it was written"), ({"format": 1}, "format version 1")):
        path = copied / "parts" / NAMES[0] / "meta.json"
        files.write_json(path, files.read_json(path) | change)
        assert_only_fault(copied, NAMES[0], reason)
    path.write_text("{")
    status, paths, said = check(copied)
    assert (status, paths) == (1, [f"more/{NAMES[0]}"]) and "not valid JSON" in said[0]
    assert_one_line_error(prepare(copied, f"more/{NAMES[0]}", check=False), "damaged", "delete the folder")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_half_written_part(copied, is_there):
    left = copied / "parts" / f"{NAMES[0]}.tmp-{'0' * 16}"
    shutil.copytree(copied / "parts" / NAMES[0], left)
    if not is_there:
        shutil.rmtree(copied / "parts" / NAMES[0])
    with pytest.raises(UserError, match=f"{left.name}: half-written.*prepare {NAMES[0]} again"):
        data.load_prepared([copied / "base", copied / "parts"])
    assert_only_fault(copied, NAMES[0], "half-written")
    assert not left.exists()


def test_a_part_that_is_between_two_renames(copied):
    """What a process that was killed there left is the former part, whole."""
    (copied / "parts" / NAMES[0]).rename(copied / "parts" / f"{NAMES[0]}.tmp-old")
    assert len(data.folders_of(copied / "parts")) == 3
    (copied / "parts" / NAMES[0]).rename(copied / "parts" / f"{NAMES[0]}.tmp-old")
    assert check(copied) == (0, [], ["3 of 3 parts are well"])


def test_a_changed_file(copied):
    write_csv(copied / "more" / NAMES[2], tiny_rows(41, seed=3))
    assert_only_fault(copied, NAMES[2], "of an earlier version of the file")
    assert files.read_json(copied / "parts" / NAMES[2] / "meta.json")["source"][0]["rows"]["train"] > 0


def test_another_base(copied):
    """Its words and categories need not be others: other rows held out are enough."""
    for change in (["--seed", 1], []):
        run_here("prepare", "--data", "base.csv", "--out", "base", *change, cwd=copied)
        status, paths, said = check(copied)
        assert (status, len(paths)) == ((1, 3) if change else (0, 0)), said
        assert not change or all("of other data than base now holds" in line for line in said[:3])

    meta = copied / "base/meta.json"
    files.write_json(meta, files.with_checksum(files.read_json(meta) | {"fingerprint": "0" * 16}))
    with pytest.raises(UserError, match=r"parts/.*csv: was prepared --like other data than .*base now holds"):
        data.load_prepared([copied / "parts", copied / "base"])
    for name in NAMES[1:]:
        prepare(copied, f"more/{name}")
    with pytest.raises(UserError, match=f"{NAMES[0]}: was prepared --like other data"):
        data.load_prepared([copied / "parts", copied / "base"])
    assert_only_fault(copied, NAMES[0], "of other data than base now holds")
    data.load_prepared([copied / "parts", copied / "base"])


def test_other_options(copied):
    flags = ["--max-bad-rows", 5]
    status, paths, said = check(copied, flags=flags)
    assert (status, len(paths)) == (1, 3) and said[0].endswith(": of another --max-bad-rows")
    for name in NAMES[1:]:
        done = prepare(copied, f"more/{name}", flags=flags)
        assert done.stdout.startswith(f"parts/{name}: of another --max-bad-rows; prepared again\n")
    assert_only_fault(copied, NAMES[0], "of another --max-bad-rows", flags=flags)


def test_another_tokenizer(copied):
    for name in ("base", f"parts/{NAMES[0]}"):
        path = copied / name / "meta.json"
        tokenizer = data.TOKENIZER if name == "base" else "0" * 32
        files.write_json(path, files.with_checksum(files.read_json(path) | {"tokenizer": tokenizer}))
    assert_only_fault(copied, NAMES[0], "of another classify.py")


def test_parts_that_no_file_claims(copied):
    (copied / "more" / NAMES[0]).unlink()
    (copied / "parts/logs").mkdir()
    (copied / "parts/slurm.txt").write_text("a file is no part")
    status, paths, said = check(copied)
    assert (status, paths, said[-1]) == (1, [], "2 of 2 parts are well")
    assert [line.partition(": no file of --data has this part")[0] for line in said[:-1]] == [
        f"parts/{NAMES[0]}", "parts/logs"]


def test_a_file_that_is_there_twice(copied):
    shutil.copy(copied / "more" / NAMES[0], copied / "more/twin.csv")
    prepare(copied, "more/twin.csv")
    status, paths, said = check(copied)
    assert (status, paths) == (1, ["more/twin.csv"]) and f"has the rows of parts/{NAMES[0]}" in said[0]
    with pytest.raises(UserError, match="twin.csv: the same prepared data twice"):
        data.load_prepared([copied / "base", copied / "parts"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("xargs"), reason="needs xargs")
def test_what_is_printed_goes_into_xargs(copied):
    """Names with blanks, quotes and letters beyond ASCII, and where the system has them, bytes that are no text."""
    names = [*NAMES]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff.csv"))
        write_csv(copied / "more" / names[-1], tiny_rows(40, seed=8))
    shutil.rmtree(copied / "parts")
    command = [sys.executable, str(ROOT / "prepare.py"), "--like", "base", "--parts", "parts"]
    found = subprocess.run([*command, "--data", "more", "--check"], cwd=copied, capture_output=True)
    assert found.returncode == 1
    assert found.stdout.split(b"\n")[:-1] == [os.fsencode(f"more/{name}") for name in sorted(names)]
    subprocess.run(["xargs", "-0", "-I{}", *command, "--threads", "1", "--data", "{}"], cwd=copied, check=True,
                   input=found.stdout.replace(b"\n", b"\0"), capture_output=True)
    assert check(copied) == (0, [], [f"{len(names)} of {len(names)} parts are well"])


def test_a_folder_of_parts_is_each_of_them(made):
    folders = [made / "base", *(made / "parts" / name for name in sorted(NAMES))]
    assert data.folders_of([made / "base", made / "parts"]) == folders
    assert data.folders_of(str(made / "base")) == folders[:1]
    assert data.fingerprint_of([made / "base", made / "parts"]) == data.fingerprint_of(folders)
    (one, its), (other, others) = (data.load_prepared(named, text="train")
                                   for named in ([made / "parts", made / "base"], folders))
    assert one["fingerprint"] == other["fingerprint"] and one["words"] == other["words"]
    for split in data.SPLITS:
        assert its[split].keys() == others[split].keys()
        assert all(np.array_equal(its[split][kind], others[split][kind]) for kind in its[split])
    assert len(its["train"]["labels"]) == sum(
        files.read_json(folder / "meta.json")["rows"]["train"] for folder in folders)


@pytest.mark.slow
def test_it_trains_to_the_same_bits(copied):
    named = ["base", *(f"parts/{name}" for name in NAMES)]
    for run, folders in (("a", ["base", "parts"]), ("b", named)):
        run_here("train", "--data", *folders, "--name", run, "--epochs", 1, "--dim", 8, cwd=copied)
    (*_, one, _), (*_, two, _) = (runs.restore(copied / "runs" / run, "best") for run in "ab")
    assert np.array_equal(one["variables"]["table"], two["variables"]["table"])
    assert len(run_here("evaluate", "--data", "parts", "base", "--list", cwd=copied).stdout.splitlines()) == 3
    scores = json.loads(run_here("evaluate", "--data", "parts", "base", "--ckpt", "best", "--json", cwd=copied).stdout)
    assert scores["rows"] == files.read_json(copied / "base/meta.json")["rows"]["test"]
    run_here("export", "--data", "base", "parts", "--ckpt", "a", "--out", "exported", cwd=copied)

    # The parts alone have no rows to validate with.
    done = run_here("train", "--data", "parts", cwd=copied, check=False)
    assert_one_line_error(done, "parts: has no validation rows; name the folder that it was prepared --like")


def test_a_run_names_the_part_that_is_at_fault(copied):
    def refused(*words):
        done = run_here("train", "--data", "base", "parts", "--epochs", 1, cwd=copied, check=False)
        assert_one_line_error(done, *words)

    (copied / "parts/logs").mkdir()
    refused("parts/logs: no prepared data here")
    (copied / "parts/logs").rmdir()
    write_csv(copied / "foreign.csv", tiny_rows(300, seed=5) + [("palabra nueva", "", "", "MESAS")] * 3)
    run_here("prepare", "--data", "foreign.csv", "--out", "foreign", cwd=copied)
    run_here("prepare", "--data", f"more/{NAMES[1]}", "--like", "foreign", "--out", "parts/x.csv", cwd=copied)
    refused("parts/x.csv: was prepared with another vocab.txt than base; prepare one of them --like the other")
    shutil.rmtree(copied / "parts/x.csv")
    (copied / "parts" / NAMES[0] / "labels.txt").write_text("x\n")
    refused(f"parts/{NAMES[0]}/labels.txt: not what prepare.py wrote", "run prepare.py again")


@pytest.mark.parametrize("flags, words", [
    (("--data", "more/0001.csv", "--parts", "parts"), "--parts goes with --data and --like"),
    (("--like", "base", "--parts", "parts"), "--parts goes with --data and --like"),
    (("--data", "more", "--like", "base", "--check"), "--check goes with --parts"),
    (("--data", "more/0001.csv", "--like", "base", "--parts", "parts", "--out", "x"), "--parts and --out: give one"),
    (("--data", "more/0001.csv", "--like", "base", "--parts", "parts", "--test", "x"), "--parts and --test: give one"),
    (("--data", "more/0001.csv", "base.csv", "--like", "base", "--parts", "parts"), "prepares one file at a time"),
    (("--data", "more", "--like", "base", "--parts", "parts"), "more: not a file"),
    (("--data", "no.csv", "--like", "base", "--parts", "parts"), "no.csv: no such file"),
    (("--data", "no", "--like", "base", "--parts", "parts", "--check"), "no: no such file"),
    (("--data", "empty", "--like", "base", "--parts", "parts", "--check"), "empty: no .csv"),
    (("--data", "more", "--like", "base", "--parts", "base.csv", "--check"), "base.csv: not a folder"),
    (("--data", "more/0001.csv", "--like", "base", "--parts", "base.csv"), "base.csv: not a folder"),
    (("--data", "more/0001.csv", "--like", "base", "--parts", "base"), "base: is prepared data itself"),
    (("--data", "more/0001.csv", "--like", "no", "--parts", "parts"), "no: no prepared data here"),
    (("--data", "more/0001.csv", "--like", "parts/0001.csv", "--parts", "parts"), "with an --out of its own"),
    (("--data", ".x.csv", "--like", "base", "--parts", "parts"), ".x.csv: no part can have this name"),
    (("--data", "x.tmp-old", "--like", "base", "--parts", "parts"), "x.tmp-old: no part can have this name"),
    (("--data", "x\ny.csv", "--like", "base", "--parts", "parts"), "x y.csv: no part can have this name"),
    (("--data", "x\ny.csv", "--like", "base", "--parts", "parts", "--check"), "x y.csv: no part can have this name"),
])
def test_flags_and_names_that_cannot_be(made, tmp_path, flags, words):
    folder = tmp_path / "made"
    shutil.copytree(made, folder)
    (folder / "empty").mkdir()
    for name in (".x.csv", "x.tmp-old", "x\ny.csv") if os.name != "nt" else ():
        write_csv(folder / name, tiny_rows(5))
    before = sorted(folder.rglob("*"))
    assert_one_line_error(run_here("prepare", *flags, cwd=folder, check=False), words)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_of_parts_that_cannot_be_written(made, tmp_path, monkeypatch):
    """One that is not there yet, on a system that makes no folder there."""
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *args, **flags: (_ for _ in ()).throw(
        PermissionError(13, "Permission denied", str(path))) if path.name == "sealed" else mkdir(path, *args, **flags))
    done = run_here("prepare", "--data", made / "more" / NAMES[0], "--like", made / "base", "--parts", "sealed",
                    cwd=tmp_path, check=False)
    assert_one_line_error(done, "sealed: Permission denied")


def test_an_empty_folder_is_no_folder_of_parts(tmp_path):
    (tmp_path / "parts").mkdir()
    assert_one_line_error(run_here("train", "--data", "parts", cwd=tmp_path, check=False), "parts: no prepared data")
