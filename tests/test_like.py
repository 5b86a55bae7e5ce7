"""Parts of a large set, each prepared with the vocabulary of the first (prepare.py --like), and trained on as one."""
import csv
import json
import random
import shutil

import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, run_script, tiny_rows, write_csv

import data
import evaluate
from titles import files, runs
from titles.cli import UserError

FLAGS = ("--epochs", 1, "--dim", 8)


def as_words(meta, titles):
    return [[meta["words"][i] for i in row if i] for row in titles.tolist()]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with base/ and two parts like it. Of the first part 30 titles stand in the base, too, one row has a
    category and some titles have words that the base lacks; all of the second are in Spanish."""
    folder = tmp_path_factory.mktemp("parts")
    write_csv(folder / "base.csv", tiny_rows(400))
    write_csv(folder / "one.csv", tiny_rows(150, seed=1) + tiny_rows(400)[:30] + [
        ("mesa inaudita redonda", "reliable", "spanish", "MESAS"), ("torno", "reliable", "spanish", "TORNOS")])
    write_csv(folder / "two.csv", [(*row[:2], "spanish", row[3]) for row in tiny_rows(100, seed=2)] + [
        ("silla inaudita", "unreliable", "spanish", "SILLAS")])
    run_script("prepare", "--data", "base.csv", "--out", "base", "--max-len", 7, cwd=folder)
    for name in ("one", "two"):
        run_script("prepare", "--data", f"{name}.csv", "--like", "base", "--out", name, cwd=folder)
    return folder


def test_a_part_has_the_ids_of_its_base(parts):
    base, one = (data.read_prepared(parts / name, ("train",), "train") for name in ("base", "one"))
    for name in ("vocab", "labels"):
        assert one[0][name] == base[0][name]
    assert one[0]["max_len"] == base[0]["max_len"] == 7 and one[1]["train"]["titles"].shape[1] == 7
    assert one[0]["oov"] and not set(one[0]["oov"]) & set(base[0]["vocab"])
    meta, arrays = data.load_prepared(parts / "one", text="train")
    text = arrays["train"]["text"]
    assert as_words(meta, arrays["train"]["titles"]) == [data.tokenize(title)[:7] for title in text]
    labels = {title: label for title, _, _, label in tiny_rows(150, seed=1)}
    named = [(meta["labels"][i], labels[title]) for i, title in zip(arrays["train"]["labels"], text, strict=True)
             if title in labels]
    assert len(named) > 100 and all(found == wanted for found, wanted in named)


def test_no_title_trains_that_the_base_holds_out(parts):
    held_out = {tuple(data.tokenize(title)[:7]) for split in ("valid", "test")
                for title in files.read_lines(parts / f"base/{split}_text.txt")}
    rows = [row for row in tiny_rows(150, seed=1) + tiny_rows(400)[:30] if row[3] != "TORNOS"]
    meta = files.read_json(parts / "one/meta.json")
    kept = [title for title, *_ in rows if tuple(data.tokenize(title)[:7]) not in held_out]
    assert files.read_lines(parts / "one/train_text.txt") == [*kept, "mesa inaudita redonda"]
    assert meta["rows"] == {"train": len(kept) + 1, "valid": 0, "test": 0}
    assert meta["left_out_rows"] == len(rows) - len(kept) > 5
    assert meta["bad_rows"] == 1 and "base has no category TORNOS" in meta["first_bad_row"]


def test_what_is_said_of_a_part(parts):
    done = run_here("prepare", "--data", "one.csv", "--like", "base", "--out", "again", cwd=parts)
    assert "rows whose titles or groups validate or test in base" in done.stdout and not done.stderr
    assert "1, first one.csv:183: base has no category TORNOS" in done.stdout
    assert files.read_json(parts / "again/meta.json")["fingerprint"] == files.read_json(
        parts / "one/meta.json")["fingerprint"]


def test_rows_keep_the_split_that_their_source_gives(parts, tmp_path):
    rows = tiny_rows(60, seed=3)
    splits = ["train", "test", ""] * 20
    write_csv(tmp_path / "more.csv", [(*row, split) for row, split in zip(rows, splits, strict=True)],
              header="title,label_quality,language,category,split")
    run_here("prepare", "--data", "more.csv", "--like", parts / "base", "--out", "more", cwd=tmp_path)
    meta = files.read_json(tmp_path / "more/meta.json")
    assert meta["rows"]["test"] == 20 and meta["rows"]["valid"] == 0
    assert meta["rows"]["train"] + meta["left_out_rows"] == 40


def test_a_base_that_is_a_fold_takes_parts_with_a_test_file(parts, tmp_path):
    run_here("prepare", "--data", parts / "base.csv", "--fold", "1/3", "--out", "fold", cwd=tmp_path)
    run_here("prepare", "--data", parts / "one.csv", "--test", parts / "two.csv", "--like", "fold", "--out", "part",
             cwd=tmp_path)
    assert files.read_json(tmp_path / "part/meta.json")["rows"]["test"] == 101


@pytest.mark.parametrize("on_disk", [(), ("train",)])
def test_several_folders_are_read_as_one(parts, on_disk):
    names = ["base", "one", "two"]
    together, arrays = data.load_prepared([parts / name for name in names], text="train", on_disk=on_disk)
    alone = sorted((data.load_prepared(parts / name, text="train") for name in names),
                   key=lambda found: found[0]["fingerprint"])
    assert together["words"] == together["vocab"] + sorted({word for meta, _ in alone for word in meta["words"]}
                                                           - set(together["vocab"]))
    for split in data.SPLITS:
        rows = arrays[split]
        assert as_words(together, rows["titles"][:]) == [
            words for meta, one in alone for words in as_words(meta, one[split]["titles"])]
        for kind in ("labels", "reliable"):
            assert np.array_equal(rows[kind], np.concatenate([one[split][kind] for _, one in alone]))
        assert [together["languages"][i] for i in rows["language"]] == [
            meta["languages"][i] for meta, one in alone for i in one[split]["language"]]
        assert together["rows"][split] == len(rows["labels"]) == len(rows["titles"])
        sizes = [meta["rows"][split] for meta, _ in alone]
        unknown = sum(meta["unknown_share"][split] * size for (meta, _), size in zip(alone, sizes, strict=True))
        assert together["unknown_share"][split] == pytest.approx(unknown / sum(sizes))
    assert arrays["train"]["text"] == [title for _, one in alone for title in one["train"]["text"]]
    assert together["training_rows"] == np.bincount(arrays["train"]["labels"]).tolist()
    assert together["reliable_share"] == pytest.approx(np.mean(np.concatenate(
        [arrays[split]["reliable"] for split in data.SPLITS])))


def test_titles_on_the_disk_are_those_in_memory(parts):
    folders = [parts / "base", parts / "one", parts / "two"]
    memory, disk = (data.load_prepared(folders, on_disk=on_disk)[1]["train"]["titles"] for on_disk in ((), ("train",)))
    assert isinstance(disk, data.Titles) and disk.shape == memory.shape and disk.dtype == memory.dtype
    draw = np.random.default_rng(0)
    for rows in (slice(0, 5), slice(300, None), slice(None), draw.integers(0, len(disk), 50), np.array([], int)):
        np.testing.assert_array_equal(disk[rows], memory[rows])
    assert data.length_groups(disk, 8, 4)[0].width == data.length_groups(memory, 8, 4)[0].width


@pytest.mark.slow
def test_parts_train_in_any_order_to_the_same_bits(parts):
    orders = (["base", "one", "two"], ["two", "base", "one"])
    for order, run in zip(orders, "ab", strict=True):
        done = run_script("train", "--data", *order, "--name", run, *FLAGS, cwd=parts)
        assert f"evaluate.py --ckpt {run} --data {' '.join(order)}\n" in done.stdout
    (*_, one, _), (*_, two, _) = (runs.restore(parts / "runs" / run, "best") for run in "ab")
    assert np.array_equal(one["variables"]["table"], two["variables"]["table"])
    scores = json.loads(run_here("evaluate", "--data", "one", "base", "two", "--ckpt", "best", "--json",
                                 cwd=parts).stdout)
    assert scores["rows"] == files.read_json(parts / "base/meta.json")["rows"]["test"]
    listed = run_here("evaluate", "--data", "one", "two", "base", "--list", cwd=parts).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] in (["a", "b"], ["b", "a"])
    done = run_here("train", "--resume", "a", "--data", "two", "one", "base", cwd=parts)
    assert "best epoch 1" in done.stdout
    assert_one_line_error(run_here("evaluate", "--data", "base", "--ckpt", "a", cwd=parts, check=False), "other data")
    done = run_here("evaluate", "--data", "base", "no", "--list", cwd=parts, check=False)
    assert_one_line_error(done, "no/meta.json")

    # A suspect stands where its file and line say; the page tells how all of it is made.
    run_here("evaluate", "--data", "one", "base", "two", "--ckpt", "a", "--split", "train", cwd=parts)
    with open(parts / "runs/a/train-best/suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} >= {"base.csv", "one.csv"}
    for row in rows:
        lines = (parts / row["file"]).read_text(encoding="utf-8").splitlines()
        assert lines[int(row["line"]) - 1].startswith(f"{row['title']},")
    shown = (parts / "runs/a/train-best/report.html").read_text(encoding="utf-8")
    commands = ["--data base.csv --out base", "--data one.csv --like base", "--data two.csv --like base"]
    at = [shown.index(f"python prepare.py {command}") for command in commands]
    assert at[0] < min(at[1:]) and max(at) < shown.index("python train.py")


@pytest.mark.parametrize("flags, words", [
    (("--like", "base", "--max-len", 9), "--max-len: --like takes it from base"),
    (("--like", "base", "--out", "base"), "an --out of its own"),
    (("--like", "one"), "was itself prepared --like "),
    (("--like", "nowhere"), "no prepared data here"),
])
def test_parts_that_cannot_be(parts, tmp_path, flags, words):
    flags = [parts / value if value in ("base", "one") else value for value in flags]
    out = tmp_path / "out"
    done = run_here("prepare", "--data", parts / "two.csv", "--out", out, *flags, cwd=tmp_path, check=False)
    assert_one_line_error(done, words.replace("base", str(parts / "base")))
    assert not out.exists()


@pytest.mark.parametrize("category, words", [("MESAS", "none is left to train"),
                                             ("TORNOS", "base has no category TORNOS")])
def test_a_part_of_nothing_that_can_be_used(parts, tmp_path, category, words):
    titles = files.read_lines(parts / "base/test_text.txt")
    write_csv(tmp_path / "old.csv", [(title, "", "", category) for title in titles])
    done = run_here("prepare", "--data", "old.csv", "--like", parts / "base", "--out", "old", cwd=tmp_path, check=False)
    assert_one_line_error(done, words)


def test_folders_that_do_not_go_together(parts, tmp_path):
    rows = tiny_rows(300, seed=9)
    random.Random(0).shuffle(rows)
    write_csv(tmp_path / "other.csv", rows)
    run_here("prepare", "--data", "other.csv", "--out", "other", "--max-len", 7, cwd=tmp_path)
    for folders, words in (((parts / "base", tmp_path / "other"), "was prepared with another vocab.txt than"),
                           ((parts / "base", parts / "base"), "the same prepared data twice"),
                           ((parts / "one", parts / "two"), "has no validation rows; name the folder"),
                           ((parts / "one",), "has no validation rows; name the folder")):
        done = run_here("train", "--data", *folders, *FLAGS, cwd=tmp_path, check=False)
        assert_one_line_error(done, words)
    assert not (tmp_path / "runs").exists()
    about = files.read_json(parts / "one/meta.json")
    for name, value in (("tokenizer", "0" * 32), ("max_len", 9)):
        shutil.copytree(parts / "one", tmp_path / name)
        files.write_json(tmp_path / name / "meta.json", files.with_checksum(about | {name: value, "fingerprint": name}))
        with pytest.raises(UserError, match=f"was prepared with another {name} than"):
            data.load_prepared([parts / "base", tmp_path / name])


@pytest.mark.slow
def test_a_bag_learns_what_another_run_says_of_titles_without_categories(parts, tmp_path):
    """Predicted categories are rows like others; beside labels that are reliable they are not."""
    shutil.copytree(parts / "base", tmp_path / "base")
    titles = [(title,) for title, *_ in tiny_rows(90, seed=3)]
    write_csv(tmp_path / "others.csv", titles, header="title")
    run_here("train", "--data", "base", "--name", "teacher", "--epochs", 3, cwd=tmp_path)
    run_here("evaluate", "--data", "base", "--ckpt", "teacher", "--predict", "others.csv", "--keep", "--out",
             "taught.csv", cwd=tmp_path)
    run_here("prepare", "--data", "taught.csv", "--like", "base", "--out", "taught", cwd=tmp_path)
    meta, arrays = data.load_prepared(tmp_path / "taught", text="train")
    said = dict(zip((title for title, in titles), evaluate.load(tmp_path / "runs/teacher").predict(
        [title for title, in titles]), strict=True))
    rows = arrays["train"]
    assert len(rows["text"]) + meta["left_out_rows"] == 90 and len(rows["text"]) > 50
    assert [meta["labels"][i] for i in rows["labels"]] == [said[text][0][0] for text in rows["text"]]
    assert not rows["reliable"].any() and meta["reliable_share"] == 0
    run_here("train", "--data", "base", "taught", "--name", "pupil", *FLAGS, "--unreliable-weight", 0.5, cwd=tmp_path)
    config = files.read_json(tmp_path / "runs/pupil/config.json")
    assert config["rows"] == files.read_json(tmp_path / "base/meta.json")["rows"]["train"] + len(rows["text"])


@pytest.mark.slow
def test_categories_of_parts_and_of_files_are_compared_tidy(tmp_path):
    rows = [(f"x{i % 7} {i}", "", "", ("Cafe\u0301", "té\u00a0y 👩\u200d🔧")[i % 2]) for i in range(80)]
    plain = [(*row[:3], ("Café", "té y 👩🔧")[i % 2]) for i, row in enumerate(tiny_rows(40))]
    write_csv(tmp_path / "base.csv", rows)
    write_csv(tmp_path / "more.csv", plain)
    run_here("prepare", "--data", "base.csv", cwd=tmp_path)
    run_here("prepare", "--data", "more.csv", "--like", "data/prepared", "--out", "more", cwd=tmp_path)
    assert files.read_lines(tmp_path / "more/labels.txt") == ["Cafe\u0301", "té\u00a0y 👩\u200d🔧"]
    assert files.read_json(tmp_path / "more/meta.json")["training_rows"] == [20, 20]
    run_here("train", "--name", "a", *FLAGS, cwd=tmp_path)
    scores = json.loads(run_here("evaluate", "--ckpt", "a", "--test", "more.csv", "--json", cwd=tmp_path).stdout)
    assert (scores["rows"], scores["unknown_category_rows"]) == (40, 0)


def test_a_part_has_an_encoding_of_its_own(parts, tmp_path):
    for name in ("base", "one"):
        text = (parts / f"{name}.csv").read_text(encoding="utf-8")
        (tmp_path / f"{name}.csv").write_text(text, encoding="cp1252" if name == "base" else "utf-8")
    run_here("prepare", "--data", "base.csv", "--encoding", "cp1252", "--out", "base", cwd=tmp_path)
    run_here("prepare", "--data", "one.csv", "--like", "base", "--out", "one", cwd=tmp_path)
    assert any("teléfono" in title for title in files.read_lines(tmp_path / "one/train_text.txt"))
