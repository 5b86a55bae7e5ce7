"""Splits of prepare.py: drawn by seed and category, equal titles together, or as the source gives them."""
import hashlib
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import as_csv, as_json, assert_one_line_error, meta, save, texts, tiny_rows

import data
import prepare
from data import SPLITS
from titles import files, formats

NOT_GIVEN = -1


def labels_of(split):
    names = files.read_lines("data/prepared/labels.txt")
    return [names[label] for label in np.load(f"data/prepared/{split}_labels.npy")]


# --- drawn ------------------------------------------------------------------------------------------------------------

def drawn(labels, keys=None, given=None, valid=0.1, seed=0, fold=None):
    keys = data.text_keys(map(str, range(len(labels)))) if keys is None else keys
    given = np.full(len(labels), NOT_GIVEN, np.int8) if given is None else given
    return prepare.draw_splits(keys, labels, given, SimpleNamespace(valid=valid, seed=seed, fold=fold),
                               labels.max() + 1)


def test_shares_of_the_splits():
    labels = np.random.default_rng(0).integers(0, 30, 30_000)
    for valid in (0.02, 0.1, 0.5):
        for seed in (0, 1, 2 ** 32 - 1):
            sizes = np.bincount(drawn(labels, valid=valid, seed=seed)) / len(labels)
            np.testing.assert_allclose(sizes, [0.8 * (1 - valid), 0.8 * valid, 0.2], atol=0.01)


def test_draws_are_uniform_and_independent():
    keys = data.text_keys(map(str, range(50_000)))
    draws = [data.draw(keys, seed, purpose) for seed in (0, 1) for purpose in (0, 1)]
    for draw in draws:
        count, _ = np.histogram(draw, 20, (0, 1))
        assert ((count - 2500) ** 2 / 2500).sum() < 45  # chi-square of 19 degrees of freedom: 0.1 % are above 43.8
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.02


def test_keys_are_those_of_plain_python():
    """The contract that runs rely on for years: a key is a polynomial of the words' BLAKE2 digests."""
    titles = ["Zapatillas Nº 42", "zapatillas  no 42!", "no zapatillas 42", "", " ".join(map(str, range(80)))]
    wanted = []
    for title in titles:
        key = 0
        for i, word in enumerate(data.tokenize(title)[:64]):
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            key += int.from_bytes(digest, "little") * 0x9E3779B97F4A7C15 ** (i + 1)
        wanted.append(key % 2 ** 64)
    assert data.keys_of(titles).tolist() == wanted
    assert wanted[0] == wanted[1] != wanted[2] and data.keys_of([" ".join(map(str, range(90)))]) == wanted[4]
    # Titles of which 20 words are the same, which were one until titles were read further, are not.
    assert len({*data.keys_of([" ".join([*map(str, range(20)), word]) for word in ("a", "b", "")]).tolist()}) == 3


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_folds_hold_out_every_row_once(parts):
    labels = np.repeat(np.arange(20), np.random.default_rng(parts).integers(20, 60, 20))
    folds = [drawn(labels, fold=(part, parts)) for part in range(1, parts + 1)]
    assert (sum((split == 2).astype(int) for split in folds) == 1).all()
    for split in folds:
        assert len({*labels[split == 0]}) == 20 and 0.06 < (split[split != 2] == 1).mean() < 0.15


def test_every_category_trains():
    labels = np.repeat(np.arange(300), np.tile([1, 2, 3], 100))
    for seed in range(5):
        split = drawn(labels, valid=0.5, seed=seed)
        assert (np.bincount(labels[split == 0], minlength=300) > 0).all() and (split == 2).any()
    # Of a category without a training row one key trains, all of its rows.
    split = drawn(np.zeros(6, int), keys=np.array([1, 1, 2, 2, 3, 3], np.uint64), valid=0.999)
    assert (split == 0).sum() == 2 and split[0::2].tolist() == split[1::2].tolist()


def test_a_small_file_has_rows_in_all_splits():
    for seed in range(30):
        assert np.bincount(drawn(np.array([0, 0, 0, 1, 1, 1]), seed=seed)).min() > 0
        assert (drawn(np.array([0] * 6 + [1] * 6), seed=seed, fold=(2, 3)) == 1).any()
    assert not drawn(np.arange(6)).any()  # a row of its own each
    # A title that is all of another category is not the one that is held out.
    keys = np.array([7, 7, 8], np.uint64)
    labels = np.array([0, 1, 1])
    for seed in range(10):
        assert {*labels[drawn(labels, keys, seed=seed) == 0]} == {0, 1}


def test_equal_titles_stay_on_one_side():
    draw = np.random.default_rng(1)
    keys, labels = draw.integers(0, 300, 3000).astype(np.uint64), draw.integers(0, 6, 3000)  # under several categories
    split = drawn(labels, keys, valid=0.2)
    sides = defaultdict(set)
    for key, side in zip(keys.tolist(), split.tolist(), strict=True):
        sides[key].add(side)
    assert max(map(len, sides.values())) == 1
    counts = Counter(side for (side,) in sides.values())
    assert 40 <= counts[2] <= 80 and 30 <= counts[1] <= 66


def test_folds_from_the_command_line(prep):
    rows = tiny_rows(60)
    save("titles.csv", as_csv(rows))
    held_out = []
    for part in (1, 2, 3):
        prep("--data", "titles.csv", "--fold", f"{part}/3")
        held_out += texts("test")
    assert sorted(held_out) == sorted(row[0] for row in rows)
    for flags, words in ((("--fold", "4/3"), ["--fold"]), (("--fold", "1/3", "--test", "titles.csv"), ["give one"])):
        assert_one_line_error(prep("--data", "titles.csv", *flags, check=False), *words)
    save("split.csv", as_csv(rows, extra=[("split", ["train", "train", "valid", "test"] * 15)]))
    assert_one_line_error(prep("--data", "split.csv", "--fold", "1/3", check=False), "has a test split")


def test_equal_titles_of_a_file_stay_on_one_side(prep):
    rows = [(f"{title} {word}", *rest) for title, *rest in tiny_rows(100) for word in ("a", "b")]
    rows += [(" ".join(title.split()[::-1]), *rest) for title, *rest in rows[:20]]  # other titles of the same words
    rows += [(title.upper().replace("E", "É") + " !", *rest) for title, *rest in rows] * 2  # equal once tokenized
    random.Random(0).shuffle(rows)
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv")
    sides = [{tuple(data.tokenize(text)) for text in texts(split)} for split in SPLITS]
    assert all(sides) and sum(map(len, sides)) == len(set().union(*sides)) == 220
    assert meta()["also_in_train"] == {"valid": 0, "test": 0}


def test_categories_without_a_test_row_are_counted(prep):
    rows = tiny_rows(100) + [("siempre igual", "reliable", "spanish", "IGUAL")] * 50  # many rows, one title
    save("titles.csv", as_csv(rows))
    done = prep("--data", "titles.csv")
    assert labels_of("train").count("IGUAL") == 50
    assert done.stderr == "warning: 1 categories have no test row; scores do not cover them\n"


def test_a_row_stays_in_its_split(prep):
    """When the file grows, shrinks or is put in another order; with other columns, --max-len and vocabularies."""
    rows = tiny_rows(400)
    save("titles.csv", as_csv(rows))
    prep("--data", "titles.csv")
    first = {text: split for split in SPLITS for text in texts(split)}
    shuffled = tiny_rows(800)
    random.Random(1).shuffle(shuffled)
    for other, flags in ((shuffled, ()), (rows[:100], ("--min-count", 2)), (rows[::-1], ("--max-len", 3)),
                         ([(f"{title.upper()} !", *rest) for title, *rest in rows], ())):
        save("other.csv", as_csv(other))
        prep("--data", "other.csv", *flags)
        now = {text.removesuffix(" !").lower(): split for split in SPLITS for text in texts(split)}
        moved = [text for text in first if now.get(text, first[text]) != first[text]]
        assert len(first.keys() & now.keys()) >= 100 and not moved, moved
    # A share moves the rows between the two shares alone.
    prep("--data", "titles.csv", "--valid", 0.3)
    now = {text: split for split in SPLITS for text in texts(split)}
    assert {(first[text], now[text]) for text in first} == {(s, s) for s in SPLITS} | {("train", "valid")}


# --- groups -----------------------------------------------------------------------------------------------------------

def sides_of(rows):
    """{value: splits in which rows with it stand} of the rows [(title, value)]."""
    of, found = dict(rows), defaultdict(set)
    for split in SPLITS:
        for text in texts(split):
            found[of[text]].add(split)
    return found


@pytest.mark.parametrize("form", ["csv", "json"])
def test_groups_stay_on_one_side(prep, form):
    rows = tiny_rows(600)
    sellers = [f"seller {i % 80}" if i % 10 else "" for i in range(600)]
    save("titles", as_csv(rows, extra=[("seller", sellers)]) if form == "csv" else
         "".join(as_json([row], seller=seller) for row, seller in zip(rows, sellers, strict=True)))
    prep("--data", "titles", "--group-column", "seller")
    sides = sides_of([(row[0], seller) for row, seller in zip(rows, sellers, strict=True)])
    assert len(sides.pop("")) == 3  # rows without a seller are drawn by their title
    assert max(map(len, sides.values())) == 1 and {split for (split,) in sides.values()} == {*SPLITS}
    assert sum(meta()["rows"].values()) == 600 and meta()["left_out_rows"] == 0
    prep("--data", "titles")
    assert len(sides_of([(row[0], seller) for row, seller in zip(rows, sellers, strict=True)])["seller 1"]) > 1


def test_a_title_of_several_groups_stays_on_one_side(prep):
    rows = tiny_rows(300)
    sellers = [f"seller {i % 60}" for i in range(300)] + [f"seller {i}" for i in range(60)]
    save("titles.csv", as_csv(rows + [("mesa de todos", *rows[0][1:])] * 60, extra=[("seller", sellers)]))
    done = prep("--data", "titles.csv", "--group-column", "seller")
    assert [texts(split).count("mesa de todos") > 0 for split in SPLITS] == [True, False, False]
    assert "left out" in done.stdout and "stand in a group on another side" in done.stdout
    assert meta()["also_in_train"] == {"valid": 0, "test": 0}
    assert sum(meta()["rows"].values()) + meta()["left_out_rows"] == 360


def test_a_part_keeps_away_from_the_groups_of_its_base(prep):
    rows = tiny_rows(600)
    sellers = [f"seller {i % 40}" for i in range(600)]
    for name, part in (("base", slice(300)), ("part", slice(300, 600))):
        save(f"{name}.csv", as_csv(rows[part], extra=[("seller", sellers[part])]))
    prep("--data", "base.csv", "--out", "base", "--group-column", "seller")
    prep("--data", "part.csv", "--like", "base", "--out", "part")
    held_out = np.concatenate([np.load(f"base/{split}_groups.npy") for split in ("valid", "test")])
    trains = np.load("part/train_groups.npy")
    assert len(trains) > 100 and not np.isin(trains, held_out).any()
    assert len(trains) + meta("part")["left_out_rows"] == 300


def test_a_part_may_lack_the_groups_of_its_base(prep):
    rows = tiny_rows(300)
    save("base.csv", as_csv(rows, extra=[("seller", [f"seller {i % 40}" for i in range(300)])]))
    save("part.csv", as_csv(tiny_rows(50, seed=8)))
    prep("--data", "base.csv", "--out", "base", "--group-column", "seller")
    prep("--data", "part.csv", "--like", "base", "--out", "part")
    assert meta("part")["rows"]["train"] + meta("part")["left_out_rows"] == 50


def test_groups_on_two_sides_of_a_given_split_are_told(prep):
    rows, split = tiny_rows(200), ["train", "train", "valid", "test"] * 50
    for sellers, told in (([f"seller {i // 4}" for i in range(200)], True), (split, False)):
        save("titles.csv", as_csv(rows, extra=[("seller", sellers), ("split", split)]))
        done = prep("--data", "titles.csv", "--group-column", "seller")
        assert ("100 of 100 validation and test rows are of groups that train" in done.stderr) == told


def test_groups_that_are_not_there(prep):
    save("titles.csv", as_csv(tiny_rows(50)))
    assert_one_line_error(prep("--data", "titles.csv", "--group-column", "seller", check=False), "seller",
                          "--group-column")
    save("titles.jsonl", as_json(tiny_rows(50)))
    assert_one_line_error(prep("--data", "titles.jsonl", "--group-column", "seller", check=False), "no row has a value")


def test_near_equal_titles_are_a_hint(prep):
    draw = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    products = [" ".join(draw.sample(words, 5)) for _ in range(300)]
    rows = [(f"{product} {size}", "reliable", "spanish", f"C{i % 3}")
            for i, product in enumerate(products) for size in ("rojo", "azul", "negro")]
    save("titles.csv", as_csv(rows, extra=[("product", [i // 3 for i in range(900)])]))
    done = prep("--data", "titles.csv")
    assert meta()["near_equal_share"] > 0.8 and "--group-column" in done.stdout
    # Two others of a product are both held out for 8 % of the test rows.
    near = [any(len({*text.split()} & {*other.split()}) == 5 for other in texts("train")) for text in texts("test")]
    assert abs(meta()["near_equal_share"] - np.mean(near)) < 1e-9
    done = prep("--data", "titles.csv", "--group-column", "product")
    assert "near-equal" not in done.stdout
    save("titles.csv", as_csv([(" ".join(draw.sample(words, 6)), *row[1:]) for row in rows]))
    assert "near-equal" not in prep("--data", "titles.csv").stdout and meta()["near_equal_share"] == 0


def test_seed_decides_the_splits(prep):
    save("titles.csv", as_csv(tiny_rows(500)))
    held_out, fingerprints = [], []
    for seed in (0, 0, 1):
        prep("--data", "titles.csv", "--seed", seed)
        held_out.append(texts("test"))
        fingerprints.append(meta()["fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len({*held_out[0]} & {*held_out[2]}) < 0.4 * len(held_out[0])


def test_valid_is_a_share_of_what_is_not_test(prep):
    save("titles.csv", as_csv(tiny_rows(400)))
    prep("--data", "titles.csv", "--valid", 0.5)
    rows = meta()["rows"]
    assert abs(rows["test"] - 80) <= 24 and abs(rows["valid"] - 160) <= 30


# --- given ------------------------------------------------------------------------------------------------------------

def test_given_splits_are_kept():
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 5, 2000)
    for named in ((0, 1, 2), (0, 2), (0, 1), (0, 2, NOT_GIVEN)):
        told = draw.choice(named, 2000).astype(np.int8)
        split = drawn(labels, given=told)
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


def test_rows_that_were_chosen_only_train():
    """But no key stands on two sides, and where all rows were chosen some are held out."""
    keys = np.random.default_rng(0).integers(1, 2 ** 63, 2000, np.uint64)
    labels, args = np.arange(2000) % 4, SimpleNamespace(seed=0, valid=0.1, fold=None)
    given = np.where(np.arange(2000) < 500, prepare.HELD_IN, -1).astype(np.int8)
    keys[:50] = keys[600:650]
    alone = prepare.draw_splits(keys[500:], labels[500:], given[500:], args, 4)
    split = prepare.draw_splits(keys, labels, given, args, 4)
    assert split[500:].tolist() == alone.tolist() and (alone == 2).any() and (alone == 1).any()
    assert not split[50:500].any() and split[:50].tolist() == split[600:650].tolist() and split[:50].any()
    assert set(prepare.draw_splits(keys[:500], labels[:500], given[:500], args, 4).tolist()) == {0, 1, 2}


def test_a_split_column_tells_which_rows_only_train(prep):
    rows = tiny_rows(300)
    save("titles.csv", as_csv(rows, extra=[("split", ["Train-Only"] * 100 + [""] * 100 + ["train"] * 100)]))
    prep("--data", "titles.csv")
    held_out = {*texts("test"), *texts("valid")}
    assert held_out.isdisjoint(row[0] for row in rows[:100]) and len(held_out) > 30
    save("chosen.csv", as_csv(rows[:100], extra=[("split", ["train-only"] * 100)]))
    assert_one_line_error(prep("--data", "titles.csv", "--test", "chosen.csv", check=False), "chosen.csv",
                          "names train rows")


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
    monkeypatch.setattr(formats, "BLOCK", block)
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
