"""The synthetic data set: the shape it promises, and that one word does not solve it."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from conftest import assert_one_line_error, copy_scripts, run_script

import synthetic

ROWS = 60_000                                            # more than one chunk


def build_world(n):
    tables = synthetic.read_tables()
    return synthetic.build_world(tables, synthetic.choose_categories(tables, n))


def category_names(n):
    return [synthetic.PREFIX + one.name for one in synthetic.choose_categories(synthetic.read_tables(), n)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "made" / "x.csv"      # a folder that is not there yet
    synthetic.write_csv(path, ROWS, 120, 0)
    return path


@pytest.fixture(scope="module")
def rows(path):
    return pd.read_csv(path, keep_default_na=False)


@pytest.fixture(scope="module")
def generated():
    world = build_world(120)
    titles, *arrays = synthetic.generate(world, synthetic.Draw(np.random.default_rng(1), ROWS))
    return world, titles.to_pylist(), *arrays


def test_header_and_fields(path, rows):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("title,label_quality,language,category\n") and text.endswith("\n") and "\r" not in text
    assert len(rows) == ROWS == text.count("\n") - 1
    assert set(rows.language) == {"spanish", "portuguese"}
    assert set(rows.label_quality) == {"reliable", "unreliable"}
    assert set(rows.category) == set(category_names(120))
    with open(path, encoding="utf-8", newline="") as file:               # an independent reader agrees
        assert [row[0] for row in csv.reader(file)][1:] == rows.title.tolist()


def test_titles_are_single_clean_lines(generated):
    for title in generated[1]:
        assert title and title == title.strip() and len(title.splitlines()) == 1


def test_same_arguments_same_bytes(path, tmp_path):
    again = tmp_path / "again.csv"
    done = run_script("synthetic", "--rows", ROWS, "--categories", 120, "--seed", 0, "--out", again, cwd=tmp_path)
    assert done.stdout.startswith("SYNTHETIC DATA") and done.stdout.count("\n") == 1 and done.stderr == ""
    assert again.read_bytes() == path.read_bytes()
    synthetic.write_csv(again, 1000, 120, 1)
    synthetic.write_csv(tmp_path / "other.csv", 1000, 120, 2)
    assert again.read_bytes() != (tmp_path / "other.csv").read_bytes()


# The scores in the README are of these bytes: where they change on purpose, measure again, then change the checksums.
@pytest.mark.parametrize(("rows", "categories", "seed", "checksum"), [
    (3000, 120, 0, "07c9fb104f79756fa471b70f333acaf25532c555f76b23fbbf72a18370e94ccb"),
    (2000, 1588, 1, "52d76555ad667c2eaf8bedf515d90c0e9ffd1b2a874c1bd629aeaad18971be52"),
    (500, 1866, 3, "738c90a64ad540a2b12addffc3b552df74561b3a5655c9f460f3524117cb17cc"),
    (120_000, 632, 5, "4cd1d30eb0bf82de6e77c6abf24bf09f5727ac25e97c7f5b411311002ae56edb")])      # three chunks
def test_bytes_are_those_that_scores_were_measured_on(tmp_path, rows, categories, seed, checksum):
    synthetic.write_csv(tmp_path / "x.csv", rows, categories, seed)
    assert hashlib.sha256((tmp_path / "x.csv").read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize("n", [2, 120, 632, 1588, 1866])
def test_category_names(n):
    names = category_names(n)
    assert len(set(names)) == n and all(name.startswith("SYN_") and name == name.upper() for name in names)
    assert names == category_names(1866)[:n]
    with pytest.raises(synthetic.UserError, match="between 2 and 1866"):  # as the manual says
        category_names(1867)


def test_derived_categories_have_their_own_text():
    world = build_world(1588)
    for field in ("head", "word"):
        flat, start, size = world.choices[field]
        texts = {tuple(flat[a:a + int(n)]) for a, n in zip(start, size, strict=True)}
        assert len(texts) > 0.98 * 2 * 1588              # a few differ in head nouns alone or in words alone
    assert (world.choices["head"].size > 0).all()


@pytest.mark.parametrize("categories", [2, 3, 632, 1588])
def test_any_number_of_categories(tmp_path, categories):
    synthetic.write_csv(tmp_path / "x.csv", 20_000, categories, 0)
    found = set(pd.read_csv(tmp_path / "x.csv", keep_default_na=False).category)
    assert found <= set(category_names(categories)) and len(found) > 0.97 * categories


def test_shape_of_titles(rows):
    words, characters = rows.title.str.split().str.len(), rows.title.str.len()
    assert 7.3 < words.mean() < 8.3 and (words <= 14).mean() > 0.995
    assert 46 < characters.mean() < 50
    assert np.abs(characters.quantile([0.25, 0.5, 0.75]) - [40, 52, 58]).max() <= 3
    assert 0.001 < (characters > 60).mean() < 0.01 and characters.max() < 80
    counts = Counter(word for title in rows.title.str.lower() for word in title.split())
    assert sum(n == 1 for n in counts.values()) > 0.6 * len(counts)     # a long tail


def test_shape_of_labels(rows):
    counts = rows.category.value_counts()
    assert 40 < counts.iloc[0] / counts.iloc[-1] < 120
    assert 0.05 < (rows.label_quality == "reliable").mean() < 0.07
    never = (rows.groupby("category").label_quality.agg(set).map(len) == 1).sum()
    assert 12 <= never <= 24
    assert 0.44 < (rows.language == "spanish").mean() < 0.56
    assert (rows.groupby("category").language.nunique() == 2).sum() >= 116


def test_label_noise_stays_in_the_family_and_off_reliable_rows(generated):
    world, _, truth, label, _, reliable = generated
    wrong = truth != label
    assert not wrong[reliable].any()
    assert 0.045 < wrong[~reliable].mean() < 0.065
    assert (world.family[truth] == world.family[label])[wrong].mean() > 0.75


def test_dirt(rows):
    text = "\n".join(rows.title)
    for dirt in ("&amp;", "&#39;", "!!!", "  ", '"', ", ", "Ã", "\x07", " c/", " X 2", "+"):
        assert dirt in text, dirt
    assert 0.05 < rows.title[rows.title.str.len() > 12].str.isupper().mean() < 0.3
    assert {"camara", "cámara"} <= set(text.lower().split())


def test_titles_name_products_they_are_not(rows):
    phones = rows[rows.title.str.contains(r"\bcelular\b", case=False)].category.value_counts()
    assert len(phones) >= 5 and phones.iloc[0] < 0.6 * phones.sum()


def test_one_keyword_is_not_enough(rows):
    titles, labels = rows.title.str.lower().str.findall(r"\w+").tolist(), rows.category.tolist()
    split = len(titles) * 4 // 5
    words = defaultdict(Counter)
    for title, label in zip(titles[:split], labels[:split], strict=True):
        for word in set(title):
            words[word][label] += 1
    rule = {}
    for word, counts in words.items():                   # how pure a word is (rare ones with care), and what it means
        (label, n), = counts.most_common(1)
        rule[word] = n / (counts.total() + 3), label
    hits = defaultdict(list)
    for title, label in zip(titles[split:], labels[split:], strict=True):
        hits[label].append(max((rule[word] for word in title if word in rule), default=(0, ""))[1] == label)
    balanced_accuracy = np.mean([np.mean(h) for h in hits.values()])
    assert 0.4 < balanced_accuracy < 0.65


def test_no_word_gives_its_category_away(generated):
    _, titles, category, *_ = generated
    counts = defaultdict(Counter)
    for title, truth in zip(titles, category, strict=True):
        for word in set(re.findall(r"\w+", title.lower())):
            counts[word][truth] += 1
    common = {word: count for word, count in counts.items() if count.total() >= 200}
    purity = {word: max(count.values()) / count.total() for word, count in common.items()}
    assert len(common) > 500 and max(purity.values()) < 0.9
    assert all(purity[word] < 0.3 for word in ("funda", "batería", "disco", "juego"))


def test_categories_share_head_nouns():
    for language, least in ((0, 56), (1, 57)):           # of 120: an edit of the words may raise this, not lower it
        heads = [set(product.heads[language]) for product in synthetic.read_tables()["category"]]
        counts = Counter(head for own in heads for head in own)
        assert len(heads) == 120 and sum(any(counts[head] > 1 for head in own) for own in heads) >= least


def test_items_of_a_list():
    assert synthetic.items("vino = vinho, caja  alta,\n\\x2c x") == [["vino", "caja alta", ", x"],
                                                                    ["vinho", "caja alta", ", x"]]


@pytest.mark.parametrize(("old", "new", "words"), [
    ("[family DRINKS]", "[familia DRINKS]", "'familia'; see what the top of the file says"),
    ("[category GINS]", "[category RUMS]", "section 'category RUMS' already exists"),
    ("models: havana club", "modles: havana club", "'models'; see "),
    ("models: havana club", "heads: havana club", "option 'heads'"),
    ("[lists]", "[lists]\nleads", "leads"),
    ("ron=rum", "ron=r\udcfcm", "utf-8")])
def test_broken_words_are_one_line(tmp_path, monkeypatch, old, new, words):
    manual, gap, tables = synthetic.TABLES.read_text(encoding="utf-8").partition("\n\n")
    assert old in tables
    broken = tmp_path / "broken.txt"
    broken.write_bytes((manual + gap + tables.replace(old, new, 1)).encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(synthetic, "TABLES", broken)
    with pytest.raises(synthetic.UserError, match=re.escape(words)) as error:
        synthetic.write_csv(tmp_path / "x.csv", 10, 120, 0)
    assert str(error.value).startswith(f"{broken}: ")
    assert os.listdir(tmp_path) == ["broken.txt"]


def test_words_cut_short_are_noticed_wherever_they_end(tmp_path, monkeypatch):
    content = synthetic.TABLES.read_bytes()
    monkeypatch.setattr(synthetic, "TABLES", tmp_path / "short.txt")
    for size in [0, *range(1, len(content), 997), *range(len(content) - 100, len(content) - 1)]:
        synthetic.TABLES.write_bytes(content[:size])
        with pytest.raises(synthetic.UserError, match=r"short\.txt"):
            category_names(2)


def test_without_its_words_it_says_so_but_helps(tmp_path):
    copy_scripts(tmp_path)

    def run(*arguments):
        command = [sys.executable, "synthetic.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert_one_line_error(run("--out", "x.csv"), "synthetic.txt", "No such file")
    assert run("--help").returncode == 0 and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("arguments", [
    ("--rows", 0), ("--rows", "many"), ("--categories", 1), ("--categories", 10**6), ("--seed", -1), ("--out", "."),
    ("--out", "file/x.csv"), ("--size", 3)])
def test_bad_arguments_are_one_line(tmp_path, arguments):
    (tmp_path / "file").write_text("not a folder")
    done = run_script("synthetic", *arguments, cwd=tmp_path, check=False)
    assert_one_line_error(done, arguments[0] if arguments[0] != "--out" else arguments[1].partition("/")[0])
    assert done.stdout == ""
    assert os.listdir(tmp_path) == ["file"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["wc", "-l", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        run_script("synthetic", "--rows", 10, "--out", "pipe", cwd=tmp_path)
        assert reader.stdout.read().startswith("11 ")


def test_failed_write_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    path.write_text("former")

    def broken(*arguments):
        raise OSError("disk full")
    monkeypatch.setattr(synthetic, "csv_chunk", broken)
    with pytest.raises(OSError, match="disk full"):
        synthetic.write_csv(path, 1000, 10, 0)
    assert os.listdir(tmp_path) == ["x.csv"] and path.read_text() == "former"
