"""Splits of prepare.py: drawn by seed and category, equal titles together, or as the source gives them."""
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import as_csv, as_json, assert_one_line_error, meta, save, texts, tiny_rows

import data
import files
import prepare
import sources
from data import SPLITS

NOT_GIVEN = -1


def labels_of(split):
    names = files.read_lines("data/prepared/labels.txt")
    return [names[label] for label in np.load(f"data/prepared/{split}_labels.npy")]


# --- drawn ------------------------------------------------------------------------------------------------------------

def test_drawn_splits_are_stratified():
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), draw.integers(1, 200, 30))
    draw.shuffle(labels)
    split = prepare.draw_splits(labels, draw.permutation(len(labels)), np.full(len(labels), NOT_GIVEN, np.int8), 0.1, 0)
    for label, size in enumerate(np.bincount(labels)):
        train, valid, test = np.bincount(split[labels == label], minlength=3)
        assert test == (round(0.2 * size) if size >= 5 else 0)
        assert valid == (max(1, round(0.1 * (size - test))) if size >= 5 else 0) and train > 0


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_folds_hold_out_every_row_once(parts):
    draw = np.random.default_rng(parts)
    labels = np.repeat(np.arange(20), draw.integers(1, 60, 20))
    groups = draw.permutation(len(labels))
    folds = [prepare.draw_splits(labels, groups, np.full(len(labels), NOT_GIVEN, np.int8), 0.1, 0, (part, parts))
             for part in range(1, parts + 1)]
    held_out = sum((split == 2).astype(int) for split in folds)
    enough = np.bincount(labels)[labels] >= 5
    np.testing.assert_array_equal(held_out, enough)  # categories with too few titles train in all folds
    for split in folds:
        for label, size in enumerate(np.bincount(labels)):
            test = (split[labels == label] == 2).sum()
            assert test in ((size // parts, -(-size // parts)) if size >= 5 else (0,))


def test_folds_from_the_command_line(prep):
    rows = tiny_rows(60)
    save("titles.csv", as_csv(rows))
    held_out = []
    for part in (1, 2, 3):
        prep("--data", "titles.csv", "--fold", f"{part}/3")
        held_out += texts("test")
    assert sorted(held_out) == sorted(row[0] for row in rows if Counter(r[3] for r in rows)[row[3]] >= 5)
    for flags, words in ((("--fold", "4/3"), ["--fold"]), (("--fold", "1/3", "--test", "titles.csv"), ["give one"])):
        assert_one_line_error(prep("--data", "titles.csv", *flags, check=False), *words)
    save("split.csv", as_csv(rows, extra=[("split", ["train", "train", "valid", "test"] * 15)]))
    assert_one_line_error(prep("--data", "split.csv", "--fold", "1/3", check=False), "has a test split")


def test_equal_titles_stay_on_one_side():
    draw = np.random.default_rng(1)
    groups, labels = draw.integers(0, 300, 3000), draw.integers(0, 6, 3000)  # equal titles under several categories
    split = prepare.draw_splits(labels, groups, np.full(3000, NOT_GIVEN, np.int8), 0.2, seed=0)
    sides = defaultdict(set)
    for group, side in zip(groups.tolist(), split.tolist(), strict=True):
        sides[group].add(side)
    assert max(map(len, sides.values())) == 1
    counts = Counter(side for (side,) in sides.values())
    assert 50 <= counts[2] <= 70 and 40 <= counts[1] <= 56


def test_equal_titles_count_for_the_category_of_the_first():
    groups = np.array([*range(10), *range(10), 10, 11, 12])  # 10 of category 0, and again of 1; 3 of category 1 alone
    labels = np.array([0] * 10 + [1] * 13)
    split = prepare.draw_splits(labels, groups, np.full(23, NOT_GIVEN, np.int8), 0.1, seed=0)
    assert np.bincount(split[:10]).tolist() == [7, 1, 2] and split[20:].tolist() == [0, 0, 0]


def test_equal_titles_of_a_file_stay_on_one_side(prep):
    rows = [(f"{title} {word}", *rest) for title, *rest in tiny_rows(100) for word in ("a", "b")]
    rows += [(" ".join(title.split()[::-1]), *rest) for title, *rest in rows[:20]]  # other titles of the same words
    rows += [(title.upper().replace("E", "É") + " !", *rest) for title, *rest in rows] * 2  # equal once tokenized
    random.Random(0).shuffle(rows)
    save("titles.csv", as_csv(rows))
    for flags in ((), ("--max-len", 3)):  # some are equal only once they are cut
        prep("--data", "titles.csv", *flags)
        sides = [{tuple(data.tokenize(text)[:meta()["max_len"]]) for text in texts(split)} for split in SPLITS]
        together = set().union(*sides)
        assert all(sides) and sum(map(len, sides)) == len(together) and (len(together) == 220 or flags)
        assert meta()["also_in_train"] == {"valid": 0, "test": 0}


def test_small_categories_train_and_are_counted(prep):
    rows = tiny_rows(100)
    rows += [(f"raro nuevo {i} {j}", "reliable", "spanish", f"RARO{i}") for i in range(3) for j in range(4)]
    rows += [("siempre igual", "reliable", "spanish", "IGUAL")] * 50  # many rows, one title
    rows += [(f"justo {j}", "reliable", "spanish", "JUSTO") for j in range(5)]
    save("titles.csv", as_csv(rows))
    done = prep("--data", "titles.csv")
    counts = {split: Counter(labels_of(split)) for split in SPLITS}
    for name in ("RARO0", "RARO1", "RARO2", "IGUAL"):
        assert not counts["test"][name] and not counts["valid"][name]
    assert (counts["train"]["RARO1"], counts["train"]["IGUAL"]) == (4, 50)
    assert [counts[split]["JUSTO"] for split in SPLITS] == [3, 1, 1]
    assert done.stderr == "warning: 4 categories have no test row; scores do not cover them\n"


def test_seed_decides_the_splits(prep):
    save("titles.csv", as_csv(tiny_rows(500)))
    held_out, fingerprints = [], []
    for seed in (0, 0, 1):
        prep("--data", "titles.csv", "--seed", seed)
        held_out.append(texts("test"))
        fingerprints.append(meta()["fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len({*held_out[0]} & {*held_out[2]}) < 0.4 * len(held_out[0]) and len(held_out[0]) == len(held_out[2])


def test_valid_is_a_share_of_what_is_not_test(prep):
    save("titles.csv", as_csv(tiny_rows(400)))
    prep("--data", "titles.csv", "--valid", 0.5)
    rows = meta()["rows"]
    assert abs(rows["test"] - 80) <= 4 and abs(rows["valid"] - 160) <= 4


# --- given ------------------------------------------------------------------------------------------------------------

def test_given_splits_are_kept():
    draw = np.random.default_rng(2)
    labels, groups = draw.integers(0, 5, 2000), np.arange(2000)
    for named in ((0, 1, 2), (0, 2), (0, 1), (0, 2, NOT_GIVEN)):
        told = draw.choice(named, 2000).astype(np.int8)
        split = prepare.draw_splits(labels, groups, told, 0.1, seed=0)
        for side in {1, 2} & {*named}:
            np.testing.assert_array_equal(split == side, told == side)
        assert (split == 1).any() and (split == 2).any() and split.min() == 0


@pytest.mark.parametrize("form", [as_csv, as_json])
def test_a_split_column_is_kept(prep, form):
    rows, names = tiny_rows(150), ["train", "Training", "valid", "validation", "VAL", "dev", "test", "train"]
    told = [names[i % len(names)] for i in range(len(rows))]
    save("source", as_csv(rows, extra=[("split", told)]) if form is as_csv else
         "".join(as_json([row], split=name) for row, name in zip(rows, told, strict=True)))
    prep("--data", "source")
    spelled = {"train": ("train", "Training"), "valid": ("valid", "validation", "VAL", "dev"), "test": ("test",)}
    for split, mine in spelled.items():
        assert texts(split) == [row[0] for row, name in zip(rows, told, strict=True) if name in mine]


def test_a_split_that_the_column_does_not_name_is_drawn_from_train(prep):
    rows = tiny_rows(300)
    told = random.Random(0).choices(["train", "test", ""], (6, 2, 2), k=300)
    save("titles.csv", as_csv(rows, extra=[("split", told)]))
    prep("--data", "titles.csv")
    assert texts("test") == [row[0] for row, name in zip(rows, told, strict=True) if name == "test"]
    assert 0.05 < len(texts("valid")) / (300 - len(texts("test"))) < 0.15


def test_a_test_file_is_the_test_split(prep):
    rows = tiny_rows(200)
    save("titles.csv", as_csv(rows[:150]))
    save("test.jsonl", as_json([*rows[150:], rows[0], ("nuevo", "reliable", "spanish", "NUEVA")]))
    done = prep("--data", "titles.csv", "--test", "test.jsonl")
    assert texts("test") == [row[0] for row in [*rows[150:], rows[0]]] + ["nuevo"]
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:150]) and texts("valid")
    assert "warning: 1 categories have no training row and cannot be learned" in done.stderr
    assert meta()["also_in_train"]["test"] == (1 / 52 if rows[0][0] in texts("train") else 0)
    assert [source["split"] for source in meta()["source"]] == ["train", "test"]


def test_a_test_file_takes_the_place_of_a_folders_own(prep):
    rows = tiny_rows(200)
    save("folder/train.csv", as_csv(rows[:120]))
    save("folder/test.csv", as_csv(rows[120:160]))
    save("mine.csv", as_csv(rows[160:]))
    prep("--data", "folder", "--test", "mine.csv")
    assert texts("test") == [row[0] for row in rows[160:]]
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:120])


def test_a_test_file_needs_data(prep):
    save("test.csv", as_csv(tiny_rows(50)))
    assert_one_line_error(prep("--test", "test.csv", check=False), "--test", "--data")


def test_a_split_column_and_a_test_file_must_agree(prep):
    rows = tiny_rows(200)
    save("test.csv", as_csv(rows[150:]))
    save("titles.csv", as_csv(rows[:150], extra=[("split", ["train"] * 150)]))
    prep("--data", "titles.csv", "--test", "test.csv")
    save("titles.csv", as_csv(rows[:150], extra=[("split", ["train"] * 90 + ["valid"] * 20 + [""] * 40)]))
    prep("--data", "titles.csv", "--test", "test.csv")  # it says of no row that it tests
    assert [texts(split) for split in SPLITS] == [[row[0] for row in part] for part in (
        rows[:90] + rows[110:150], rows[90:110], rows[150:])]
    save("titles.csv", as_csv(rows[:150], extra=[("split", ["train"] * 100 + ["test"] * 50)]))
    done = prep("--data", "titles.csv", "--test", "test.csv", check=False)
    assert_one_line_error(done, "titles.csv", "split column", "--test")


# --- only some rows ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("block", [900, 8 << 20])
def test_rows_reads_the_first_rows_of_the_training_data(prep, monkeypatch, block):
    monkeypatch.setattr(sources, "BLOCK", block)
    rows = tiny_rows(300)
    save("titles.csv", as_csv(rows))
    for number, expected in ((101, rows[:101]), (1000, rows)):
        prep("--data", "titles.csv", "--rows", number)
        assert sorted(text for split in SPLITS for text in texts(split)) == sorted(row[0] for row in expected)
    save("folder/train.csv", as_csv(rows[:200]))
    save("folder/test.csv", as_csv(rows[200:]))
    prep("--data", "folder", "--rows", 60)
    assert sorted(texts("train") + texts("valid")) == sorted(row[0] for row in rows[:60])
    assert texts("test") == [row[0] for row in rows[200:]]


def test_languages_keeps_only_these(prep):
    rows = [*tiny_rows(200), ("table", "reliable", "english", "MESAS")]
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv", "--languages", "spanish", "english", "--rows", 70)
    kept = [row[0] for row in rows if row[2] in ("spanish", "english")]
    assert sorted(text for split in SPLITS for text in texts(split)) == sorted(kept[:70])
    assert meta()["languages"] == ["spanish"] and meta()["options"]["languages"] == ["spanish", "english"]
