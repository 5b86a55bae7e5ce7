"""Trees of categories: the loss of rows that know a parent, nodes that can be promised, answers at every level."""
import csv
import io
import json
import math
import random

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_documented, assert_one_line_error, config_of, run_here, run_script
from scipy.special import logsumexp
from scipy.stats import binom

import classify
import data
import evaluate
import export
import train
from titles import calibration, tree

LEAVES = ["A > B > C", "A > B > D", "A > E", "A2 > B > C", "A2 > B > F", "A2 > G > A2", "H"]
TREE = classify.Tree(LEAVES)
PRECISIONS = (0.5, 0.7, 0.8, 0.9, 0.95)


# --- nodes ------------------------------------------------------------------------------------------------------------

def test_a_tree_is_what_plain_python_says():
    inner = sorted({" > ".join(name.split(" > ")[:end]) for name in LEAVES for end in range(1, name.count(">") + 1)})
    assert TREE.names == LEAVES + inner and TREE.levels == 3 and TREE.leaves == 7
    for node, name in enumerate(TREE.names):
        path = name.split(" > ")
        assert TREE.level[node] == len(path) and TREE.number[name] == node
        below = [i for i, leaf in enumerate(LEAVES) if leaf == name or leaf.startswith(name + " > ")]
        assert list(range(*TREE.below[node])) == below
        assert [TREE.names[i] for i in TREE.above[node]] == [" > ".join(path[:level]) for level in (1, 2, 3)]
    for level in (1, 2, 3):
        nodes, first = TREE.at_level(level)
        wanted = list(dict.fromkeys(" > ".join(name.split(" > ")[:level]) for name in LEAVES))
        assert [TREE.names[node] for node in nodes] == wanted and TREE.size(level) == len(wanted)
        assert [TREE.below[node, 0] for node in nodes] == first.tolist()
    assert TREE.level_names([0, 2, -1, 7]) == [["A", "A", "", "A"], ["B", "E", "", ""], ["C", "", "", ""]]


def test_flat_categories_are_a_tree_of_one_level_whatever_their_names():
    flat = classify.Tree(LEAVES, False)
    assert flat.names == LEAVES and flat.levels == 1 and flat.above.tolist() == [[i] for i in range(7)]


def test_rows_that_know_a_parent_are_shared_among_its_leaves():
    label = TREE.number.get
    labels = [0, 0, 0, 1, label("A > B"), label("A > B"), label("A2"), label("A2 > B"), 6]
    # A > B: 3 to 1 of its two rows; A2: nothing is known, so a third for each; A2 > B: half.
    wanted = [3 + 1.5, 1 + 0.5, 0, 1 / 3 + 0.5, 1 / 3 + 0.5, 1 / 3, 1]
    np.testing.assert_allclose(tree.shared_rows(np.array(labels), TREE), wanted)
    whole = tree.shared_rows(np.array([0, 0, 6]), TREE)
    assert whole.tolist() == [2, 0, 0, 0, 0, 0, 1] and whole.dtype.kind == "i"


# --- the loss ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("heads", [(), (2,)])
@pytest.mark.parametrize("narrow", [1, 8])  # nodes are looked up, or gone through
def test_the_loss_of_a_node_is_that_of_the_leaves_below_together(weight, heads, narrow, monkeypatch):
    labels = np.arange(len(TREE.names))
    logits = np.random.default_rng(0).normal(size=(*heads, len(labels), len(LEAVES))).astype(np.float32)
    monkeypatch.setattr(calibration, "NARROW", narrow)
    nodes = {"below": jnp.array(TREE.below), "above": jnp.array(TREE.above), "steps": jnp.arange(3)}
    found = train.tree_loss({"parent_weight": weight}, jnp.array(logits), jnp.broadcast_to(
        labels, logits.shape[:-1]), nodes)

    def loss(row, name):
        below = [i for i, leaf in enumerate(LEAVES) if leaf == name or leaf.startswith(name + " > ")]
        return logsumexp(row) - logsumexp(row[below])

    for place in np.ndindex(logits.shape[:-1]):
        path = TREE.names[place[-1]].split(" > ")
        wanted = loss(logits[place], TREE.names[place[-1]]) + weight * sum(
            loss(logits[place], " > ".join(path[:end])) for end in range(1, len(path)))
        assert found[place] == pytest.approx(wanted, rel=1e-5)


def test_a_row_that_knows_a_parent_trains_and_weighs_as_its_leaves_do():
    """The shift of --balance stands within the sum; --balance weights gives it the mean weight of its leaves."""
    labels = np.array([0, 0, 0, 1, TREE.number["A > B"], 2, 3, 6])
    rows = {"titles": np.zeros((8, 3), np.uint8), "labels": labels, "reliable": np.ones(8, bool)}
    config = config_of("--balance", "weights", classes=7)
    arrays = train.training_arrays(config, {}, rows, tree=TREE)
    count, weight = tree.shared_rows(labels, TREE), np.asarray(arrays["row_weight"])
    assert weight[4] == pytest.approx(np.average(weight[[0, 3]], weights=count[:2]))
    shift = np.asarray(train.training_arrays(config_of(classes=7), {}, rows, tree=TREE)["shift"])
    np.testing.assert_allclose(shift[:4], np.log(count[:4] / 8), rtol=1e-6)
    # Without such rows nothing of a tree goes to the device.
    assert not train.training_arrays(config, {}, rows | {"labels": labels % 7}, tree=TREE)["nodes"]


# --- promises ---------------------------------------------------------------------------------------------------------

def made_rows(n, seed, levels=3):
    """(probabilities of nodes on the way to the likeliest leaf, whether they are right) of which all is known: a
    probability is the chance to be right."""
    draw = np.random.default_rng(seed)
    shares = draw.random((n, levels)) ** ([0.1, 0.3, 0.5][:levels] if levels > 1 else 0.2)
    path = np.cumprod(shares, 1).astype(np.float32)
    return path, np.cumprod(draw.random((n, levels)) < shares, 1).astype(bool)


def plain_rule(path, right, precision):
    """By the definition: from the leaves up, the most of the rows that are left, so that of all answers so many are
    right that under a lower precision it would be a surprise."""
    left, answered, hits, thresholds = list(range(len(path))), 0, 0, [None] * path.shape[1]
    for level in reversed(range(path.shape[1])):
        ordered = sorted(left, key=lambda i: -path[i, level])
        wanted = precision + (1 - precision) * (0.1 if level else 0)
        for share in range(50, 0, -1):
            chosen = ordered[:len(ordered) * share // 50]
            total, good = answered + len(chosen), hits + sum(right[i, level] for i in chosen)
            if chosen and good and binom.sf(good - 1, total, wanted) <= 0.005:
                thresholds[level], answered, hits = float(path[chosen[-1], level]), total, good
                left = ordered[len(chosen):]
                break
    return thresholds, answered / len(path)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("n", [40, 700])
def test_rules_equal_the_plain_definition(n, levels):
    path, right = made_rows(n, n + levels, levels)
    for precision in PRECISIONS:
        thresholds, share = tree.rule(path, right, precision)
        wanted, wanted_share = plain_rule(path, right, precision)
        assert thresholds == wanted and share == pytest.approx(wanted_share)


def test_a_promise_of_nodes_is_kept_on_new_rows():
    """Of 200 draws of validation rows at most two in a hundred may break it, and more rows are answered than by leaves
    alone."""
    everyone, truth = made_rows(200_000, 99)
    chance = everyone  # each probability is the chance that the node is right
    for precision in (0.8, 0.9):
        kept, more = [], []
        for seed in range(200):
            thresholds, share = tree.rule(*made_rows(1500, seed), precision)
            at = classify.deepest(everyone, [math.inf if t is None else t for t in thresholds])
            rows = np.flatnonzero(at >= 0)
            kept.append(chance[rows, at[rows]].mean() >= precision)
            alone, _ = tree.rule(*(of[:, 2:] for of in made_rows(1500, seed)), precision)
            more.append(share > (everyone[:, 2] >= (alone[0] or math.inf)).mean() + 0.1)
        assert sum(kept) >= 196 and all(more), (precision, sum(kept))


def test_the_deepest_node_that_is_sure_enough():
    path = np.array([[0.9, 0.8, 0.7], [0.9, 0.6, 0.2], [0.4, 0.3, 0.3], [0.9, 0.1, 0.1]], np.float32)
    assert classify.deepest(path, [0.9, 0.6, 0.7]).tolist() == [2, 1, -1, 0]
    assert classify.deepest(path, [math.inf, 0.6, 0.8]).tolist() == [1, 1, -1, -1]
    assert classify.deepest(path, [math.inf] * 3).tolist() == [-1] * 4


def test_a_precision_takes_the_rule_of_the_next_one_that_can_be_promised():
    classifier = classify.BaseClassifier()
    classifier.tree, classifier.promises = TREE, (500, [(1.0, 0.2, 0.6)])
    classifier.level_promises = [[(1.0, 0.1, 0.9)], [(1.0, 0.15, 0.705)]]
    classifier.rules = [(0.6, [0.5, 0.6, 0.7], 0.8), (0.9, [0.7, None, 0.9], 0.5)]
    assert classifier.rule(0.6) == ((None, [0.5, 0.6, 0.7]), None)
    assert classifier.rule(0.61) == ((None, [0.7, math.inf, 0.9]), None)
    rule, said = classifier.rule(0.91)
    assert rule == (None, [math.inf] * 3) and "0.90 can, for 50 % of titles" in said
    assert classifier.rule(0.9, level=1) == ((1, [0.1]), None) and classifier.rule(0.6, level=3) == ((3, [0.2]), None)
    assert "0.70 can, for 100 % of titles" in classifier.rule(0.9, level=2)[1]
    assert classifier.rule(threshold=0.5) == ((None, [0.5] * 3), None)
    assert classifier.rule(threshold=0.5, level=2) == ((2, [0.5]), None)
    assert classifier.rule() == ((3, None), None) and classifier.rule(level=1) == ((1, None), None)
    for wrong in ({"level": 0}, {"level": 4}, {"precision": 2}, {"precision": 0.9, "threshold": 0.9}):
        with pytest.raises(ValueError, match="level|precision"):
            classifier.rule(**wrong)


# --- a shop with a tree -----------------------------------------------------------------------------------------------

WORDS = {"Home": ["casa", "hogar"], "Kitchen": ["cocina", "chef"], "Knives": ["cuchillo", "filo"], "Pans": ["sarten"],
         "Bath": ["bano"], "Towels": ["toalla"], "Sport": ["deporte"], "Ball": ["pelota"], "Books": ["libro"]}
SHOP = ["Books", "Home > Bath > Towels", "Home > Kitchen > Knives", "Home > Kitchen > Pans", "Sport > Ball"]


def shop_rows(n, seed):
    draw, rows = random.Random(seed), []
    for i in range(n):
        path = draw.choice(SHOP).split(" > ")
        words = [draw.choice(WORDS[name]) for name in path if draw.random() < 0.5] + [f"x{draw.randrange(40)}"]
        draw.shuffle(words)
        # One row in eight says no more than a parent.
        known = path[:-1] if len(path) > 1 and i % 8 == 0 else path
        rows.append((" ".join(words), " > ".join(known)))
    return rows


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name, rows in (("shop", shop_rows(1500, 0)), ("new", shop_rows(300, 1))):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("title", "category"), *rows])
    run_here("prepare", "--data", "shop.csv", "--separator", ">", cwd=folder)
    flags = ("--epochs", 6, "--dim", 16)
    run_here("train", "--name", "bag", *flags, cwd=folder)
    run_here("train", "--name", "filters", "--model", "cnn", "--filters", 8, *flags, cwd=folder)
    return folder


@pytest.fixture(scope="module", params=[("bag",), ("bag", "filters")], ids=["one", "two"])
def both(request, shop):
    """(a Classifier of runs, the same exported)."""
    run = evaluate.load(*request.param, folder=shop / "runs")
    return run, classify.Classifier(export.model_arrays(run, "float32"))


TITLES = ["cuchillo cocina", "casa", "sarten x1", "libro", "qqqq zzzz", "", "toalla bano hogar", "pelota", "x3 x4"]


def test_probabilities_of_nodes_are_sums_of_leaves_without_what_is_spread_evenly(both):
    run, small = both
    chances = run.predict_proba(TITLES)

    def of_node(row, first, behind):
        spread = run.smoothing / len(SHOP)
        return sum((p - spread) / (1 - run.smoothing) for p in row[first:behind]) if behind - first > 1 else row[first]

    for classifier in (run, small):
        for level in (1, 2, 3):
            nodes, first = classifier.tree.at_level(level)
            sums = np.array([[of_node(row, *classifier.tree.below[node]) for node in nodes] for row in chances])
            for row, of_row in zip(classifier.predict(TITLES, top=2, level=level), sums, strict=True):
                if row[0][0] is not None:
                    order = np.argsort(-of_row, kind="stable")[:2]
                    assert [name for name, _ in row] == [classifier.tree.names[nodes[i]] for i in order]
                    np.testing.assert_allclose([p for _, p in row], of_row[order], atol=1e-5)
        _, _, path = classifier.climb(classifier.present(TITLES)[2], 1)
        for title, chance, of_row in zip(TITLES, path, chances, strict=True):
            if chance.any():
                above = classifier.tree.above[of_row.argmax()]
                wanted = [of_node(of_row, *classifier.tree.below[node]) for node in above]
                np.testing.assert_allclose(chance, wanted, atol=1e-5, err_msg=title)


def test_what_is_exported_answers_as_the_run(both):
    run, small = both
    for asked in ({"precision": 0.8}, {"precision": 0.99}, {"threshold": 0.6}, {"level": 1}, {"level": 3},
                  {"precision": 0.8, "level": 2}, {"precision": 0.8, "top": 3}, {"level": 2, "top": 9}, {}):
        of_run, of_small = (found.predict(TITLES, **asked) for found in both)
        assert [[name for name, _ in row] for row in of_run] == [[name for name, _ in row] for row in of_small], asked
        np.testing.assert_allclose([p for row in of_run for _, p in row], [p for row in of_small for _, p in row],
                                   atol=1e-5)
    assert {"levels", "level_promises", "rules"} <= assert_documented(export.model_arrays(run, "int8"))[2]
    assert small.tree.names == run.tree.names
    for one, other in ((small, run), (small.promising, run.promising)):
        assert one.rules == json.loads(json.dumps(other.rules)) and one.level_promises == json.loads(
            json.dumps(other.level_promises))


def test_a_title_that_tells_no_leaf_gets_a_parent(both):
    for classifier in both:
        (answer, chance), = classifier.predict(["casa hogar"], precision=0.9)[0]
        assert answer == "Home" and chance > 0.8 > classifier.predict(["casa hogar"])[0][0][1]
        assert classifier.predict(["casa hogar"], precision=0.9, level=3)[0][0][0] is None
        assert classifier.predict(["casa hogar"], threshold=0.7)[0][0][0] == "Home"
        with pytest.raises(ValueError, match="level 4: wanted 1 to 3"):
            classifier.predict(TITLES, level=4)


def test_the_report_counts_rows_at_the_levels_that_they_know(shop):
    done = run_here("evaluate", "--ckpt", "bag", "--test", "new.csv", "--json", cwd=shop)
    scores, run = json.loads(done.stdout), evaluate.load("bag", folder=shop / "runs")
    rows = shop_rows(300, 1)
    knows = [title for title, name in rows if name in SHOP]
    assert scores["rows"] == len(knows) and scores["parent_rows"] == 300 - len(knows) > 20
    for level, row in enumerate(scores["levels"], 1):
        told = [(title, name) for title, name in rows if name in SHOP or name.count(">") + 1 >= level]
        truth = [" > ".join(name.split(" > ")[:level]) for _, name in told]
        found = [row[0][0] or run.tree.names[0] for row in run.predict([title for title, _ in told], level=level)]
        assert row["rows"] == len(told) and row["nodes"] == run.tree.size(level)
        assert row["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(truth, found, strict=True)]), abs=0.01)
    for promised, row in scores["thresholds"].items():
        answers = run.promising.predict([title for title, _ in rows], precision=float(promised))
        answered = [(one[0][0], name) for one, (_, name) in zip(answers, rows, strict=True) if one[0][0]]
        assert row["answered"] == pytest.approx(len(answered) / 300)
        assert row["leaf"] == pytest.approx(sum(name in SHOP for name, _ in answered) / 300)
        assert row["leaf_only"]["coverage"] <= row["answered"]


def test_the_command_line_answers_at_every_level(shop, tmp_path):
    predict_flags = ("--ckpt", "bag", "--predict", shop / "new.csv")
    run_here("export", "--ckpt", "bag", "--out", tmp_path / "model", "--dtype", "float32", cwd=shop)

    def answers(*flags):
        """What both write."""
        first = run_here("evaluate", *predict_flags, *flags, cwd=shop).stdout
        second = run_script("classify", tmp_path / "model/model.npz", shop / "new.csv", *flags, cwd=shop).stdout
        if "--keep" in flags:
            first, second = ([*csv.reader(io.StringIO(text))] for text in (first, second))
            assert first[0] == second[0]
            return [dict(zip(first[0], row, strict=True)) for row in first[1:]]
        one, other = ([line.split("\t") for line in text.splitlines()] for text in (first, second))
        assert [row[::2] for row in one] == [row[::2] for row in other]
        return one

    leaves, tops = {*SHOP}, {name.split(" > ")[0] for name in SHOP}
    assert {row[0] for row in answers()} <= leaves | {""}
    assert {row[0] for row in answers("--level", 1)} <= tops | {""}
    deep = answers("--precision", 0.9)
    alone = answers("--precision", 0.9, "--leaf-only")
    assert sum(row[0] != "" for row in deep) > sum(row[0] != "" for row in alone)
    assert {row[0] for row in deep} - leaves - {""}
    kept = answers("--precision", 0.9, "--keep", "--levels")
    for row, (answer, _) in zip(kept, deep, strict=True):
        path = answer.split(" > ") if answer else []
        assert row["predicted_category"] == answer
        assert [row[f"level_{level}"] for level in (1, 2, 3)] == path + [""] * (3 - len(path))


def report_of(folder, *flags):
    return json.loads(run_here("evaluate", *flags, "--json", cwd=folder).stdout)


@pytest.mark.slow
def test_paths_as_we_write_them_are_known_whatever_divides_the_levels_of_the_data(shop, tmp_path):
    """Also without the prepared data, and where it had several columns or lists among plain names."""
    ours = [("cuchillo cocina", "Home > Kitchen > Knives"), ("toalla", "Home > Bath > Towels")]
    rows = shop_rows(400, 7)
    sources = {
        "slash.csv": (("--separator", "/"), [("title", "category"), *(
            (title, name.replace(" > ", "/")) for title, name in rows)]),
        "columns.csv": (("--category-column", "a", "b", "c"), [("title", "a", "b", "c"), *(
            (title, *(name.split(" > ") + ["", ""])[:3]) for title, name in rows)])}
    for name, (flags, lines) in sources.items():
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows(lines)
        with open(tmp_path / "ours.csv", "w", newline="") as file:
            csv.writer(file).writerows([("title", "category"), *ours])
        run_here("prepare", "--data", name, *flags, "--out", name[:-4], cwd=tmp_path)
        run_here("train", "--data", name[:-4], "--name", name[:-4], "--epochs", 1, "--dim", 8, cwd=tmp_path)
        scores = report_of(tmp_path, "--data", name[:-4], "--ckpt", name[:-4], "--test", "ours.csv")
        assert scores["unknown_category_rows"] == 0 and scores["rows"] == 2, name
    # Its own file, where only the run tells what divides the levels.
    scores = report_of(tmp_path, "--ckpt", "slash", "--test", "slash.csv")
    assert scores["unknown_category_rows"] == 0 and scores["parent_rows"] == sum(
        name not in SHOP for _, name in rows)


@pytest.mark.slow
def test_names_among_lists_are_paths_as_we_write_them(tmp_path):
    rows = [{"title": title, "category": name.split(" > ") if i % 2 else name}
            for i, (title, name) in enumerate(shop_rows(300, 8))]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_here("prepare", "--data", "lists.jsonl", cwd=tmp_path)
    assert (tmp_path / "data/prepared/labels.txt").read_text().split("\n")[:-1] == SHOP
    run_here("train", "--name", "lists", "--epochs", 1, "--dim", 8, cwd=tmp_path)
    assert report_of(tmp_path, "--ckpt", "lists", "--test", "lists.jsonl")["unknown_category_rows"] == 0


@pytest.mark.slow
def test_a_tree_with_one_root(tmp_path):
    """Its node is as sure as can be, and there is one candidate at its level."""
    with open(tmp_path / "root.csv", "w", newline="") as file:
        csv.writer(file).writerows([("title", "category"), *(
            (title, f"All > {name}") for title, name in shop_rows(600, 9))])
    run_here("prepare", "--data", "root.csv", "--separator", ">", cwd=tmp_path)
    run_here("train", "--name", "root", "--epochs", 3, "--dim", 8, cwd=tmp_path)
    run = evaluate.load("root", folder=tmp_path / "runs")
    small = classify.Classifier(export.model_arrays(run, "float32"))
    titles = [title for title, _ in shop_rows(100, 10)]
    for asked in ({"precision": 0.85}, {"precision": 0.85, "level": 1}, {"threshold": 1.0, "level": 1}):
        one, other = run.predict(titles, **asked), small.predict(titles, **asked)
        assert [row[0][0] for row in one] == [row[0][0] for row in other] and all(row[0][0] for row in one), asked
    flags = ("--level", 1, "--top", 3, "--threshold", 0.5, "--keep")
    done = run_here("evaluate", "--ckpt", "root", "--predict", "root.csv", *flags, cwd=tmp_path)
    found = [*csv.reader(io.StringIO(done.stdout))]
    assert {len(row) for row in found} == {4} and found[1][2:] == ["All", "1.000000"]
    assert run.predict(["casa"], level=1, top=3, threshold=0.5) == [[("All", pytest.approx(1))]]


def test_folders_together_share_the_rows_that_know_a_parent(shop, tmp_path):
    with open(tmp_path / "more.csv", "w", newline="") as file:
        csv.writer(file).writerows([("title", "category"), *(
            (f"hogar cocina y{i}", "Home > Kitchen") for i in range(90))])
    run_here("prepare", "--data", tmp_path / "more.csv", "--like", "data/prepared", "--out", "data/more", cwd=shop)
    run_here("train", "--data", "data/prepared", "data/more", "--name", "parts", "--epochs", 1, "--dim", 8, cwd=shop)
    config = json.loads((shop / "runs/parts/config.json").read_text())
    _, arrays = data.load_prepared([shop / "data/prepared", shop / "data/more"], ("train",))
    wanted = tree.shared_rows(arrays["train"]["labels"], classify.Tree(SHOP))
    assert config["training_rows"] == wanted.tolist() and sum(wanted) == pytest.approx(config["rows"])


def test_wrong_levels_are_refused_in_one_line(shop):
    for flags, words in ((("--level", 4), ("--level 4", "wanted 1 to 3")), (("--level", 0), ("--level",)),
                         (("--level", 1, "--leaf-only"), ("give one",)), (("--levels",), ("--keep",))):
        done = run_here("evaluate", "--ckpt", "bag", "--predict", "new.csv", *flags, cwd=shop, check=False)
        assert_one_line_error(done, *words)


def test_levels_of_flat_categories_are_refused(trained):
    for flags in (("--level", 1), ("--level", 2), ("--leaf-only",), ("--keep", "--levels")):
        done = run_here("evaluate", "--ckpt", "bag", "--predict", "-", *flags, cwd=trained, stdin="title\nmesa\n",
                        check=False)
        flag = next(flag for flag in flags if "le" in str(flag))
        assert_one_line_error(done, f"{flag}: the categories are no tree")


def test_validation_rows_that_know_a_parent_are_left_out_of_scores(shop):
    config = json.loads((shop / "runs/bag/config.json").read_text())
    assert config["calibration_rows"] < config["data"]["source"][0]["rows"]["valid"]
    assert sum(config["training_rows"]) == pytest.approx(config["rows"]) and config["data"]["levels"] == 3
    kept = evaluate.load("bag", folder=shop / "runs").validation[0]["labels"]
    assert len(kept) == config["calibration_rows"] and kept.max() < len(SHOP)


@pytest.mark.slow
def test_rows_that_know_a_parent_are_worth_something(tmp_path):
    """Of few rows that know their leaf, and many that know its parent, the parents are learned."""
    rows = shop_rows(1200, 3)
    hidden = [(title, name if i % 40 == 0 or " > " not in name else name.rpartition(" > ")[0])
              for i, (title, name) in enumerate(rows)]
    scores = {}
    for name, mine in (("with", hidden), ("without", [row for row in hidden if row[1] in SHOP])):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("title", "category"), *mine])
        with open(tmp_path / "test.csv", "w", newline="") as file:
            csv.writer(file).writerows([("title", "category"), *shop_rows(600, 4)])
        run_here("prepare", "--data", f"{name}.csv", "--separator", ">", "--test", "test.csv", "--out", name,
                 cwd=tmp_path)
        run_here("train", "--data", name, "--name", name, "--epochs", 6, "--dim", 16, cwd=tmp_path)
        done = run_here("evaluate", "--data", name, "--ckpt", name, "--json", cwd=tmp_path)
        scores[name] = [level["accuracy"] for level in json.loads(done.stdout)["levels"]]
    assert scores["with"][1] > scores["without"][1] + 0.04 and scores["with"][0] > scores["without"][0], scores
