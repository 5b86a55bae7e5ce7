"""Scores of trees by level, each beside a loop in plain Python, and where they are shown: page, list, MLflow."""
import math
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from test_page import Parsed, assert_sound, labelled

import classify
from titles import files, measures, page, report, runs, tracking, tree

LEAVES = sorted(["Books", "Home > Bath", "Home > Kitchen > Knives", "Home > Kitchen > Pans", "Sport > Ball > Football",
                 "Sport > Ball > Tennis", "Sport > Water"])
# A parent that the run knows, unknown ones below a known parent, below a leaf and deeper than all, and quite unknown.
OTHERS = ["Home > Kitchen > NEW", "Home > NEW > X", "Books > NEW", "Sport > Ball > Tennis > NEW", "NEW", "NEW > X > Y"]


def made(seed, n=300, others=OTHERS):
    """Labelled rows of a tree of three levels, half of them leaves, and what a model might say of them."""
    draw, tree = random.Random(seed), classify.Tree(LEAVES)
    names = [*tree.names, *others]
    labels = [draw.choice([*range(len(LEAVES)), draw.randrange(len(names))]) for _ in range(n)]
    titles = [f"title {i}" for i in range(n)]
    rows = labelled(names, labels, titles, tree)

    def guess(label):
        return label if label < len(LEAVES) and draw.random() < 0.6 else draw.randrange(len(LEAVES))

    prediction, promised = (np.array([guess(label) for label in labels]) for _ in range(2))
    path = np.sort(np.random.default_rng(seed).random((n, 3)).astype(np.float32))[:, ::-1]
    # Of a title of which nothing is known no node is likely.
    path[draw.sample(range(n), n // 20)] = 0
    at_level = tree.above[[guess(label) for label in labels]]
    return rows, {"prediction": prediction, "promised_prediction": promised, "promised_path": path,
                  "promised_probability": path[:, -1], "at_level": at_level}


def true_path(rows, i):
    """The names of the true nodes of a row at every level, None where it does not know one."""
    label, levels = rows.labels[i], rows.tree.levels
    path = rows.names[label].split(" > ")
    found = [" > ".join(path[:level + 1]) for level in range(levels)]
    is_parent = len(LEAVES) <= label < len(rows.tree.names)
    return [None if is_parent and level >= len(path) else found[level] for level in range(levels)]


def path_of(leaf):
    """The names of the nodes above a category, itself from its own level on."""
    path = LEAVES[leaf].split(" > ")
    return [" > ".join(path[:level + 1]) for level in range(3)]


@pytest.mark.parametrize("seed", range(5))
def test_levels_and_mistakes_are_what_plain_python_says(seed):
    rows, result = made(seed)
    truth = tree.true_nodes(rows)
    scores, names = tree.scores(rows, result, truth), [true_path(rows, i) for i in range(len(rows.labels))]
    for level, row in enumerate(scores["levels"]):
        told = [(name[level], rows.tree.names[result["at_level"][i, level]]) for i, name in enumerate(names)
                if name[level] is not None]
        recalls = [np.mean([a == b for a, b in told if a == one]) for one in {a for a, _ in told}]
        assert row["rows"] == len(told) and row["accuracy"] == pytest.approx(np.mean([a == b for a, b in told]))
        assert row["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert row["nodes"] == len({path_of(leaf)[level] for leaf in range(len(LEAVES))})
    assert scores["parent_rows"] == sum(None in name for name in names) > 0

    # The way from one category to the other, over the parents that both have.
    up, top, edges = [], [], []
    for i, label in enumerate(rows.labels):
        if None not in names[i] and label != result["prediction"][i]:
            true, taken = rows.names[label].split(" > "), LEAVES[result["prediction"][i]].split(" > ")
            common = next((k for k in range(min(len(true), len(taken))) if true[k] != taken[k]),
                          min(len(true), len(taken)))
            up.append(len(true) > 1 and common >= len(true) - 1)
            top.append(common == 0)
            edges.append(len(true) - common + len(taken) - common)
    assert scores["mistakes"] == pytest.approx({"right_one_level_up": np.mean(up), "wrong_at_the_top": np.mean(top),
                                                "distance": np.mean(edges)})


@pytest.mark.parametrize("seed", range(5))
def test_nodes_are_what_plain_python_says(seed):
    rows, result = made(seed)
    table = tree.node_table(rows, result, tree.true_nodes(rows))
    found = {name: others for name, *others in zip(*table.values(), strict=True)}
    taken = [path_of(leaf) for leaf in result["prediction"]]
    names, shown = [true_path(rows, i) for i in range(len(rows.labels))], []
    for node in rows.tree.names:
        level = node.count(" > ")
        mine = [i for i, name in enumerate(names) if name[level] == node]
        predicted = [i for i, name in enumerate(names) if taken[i][level] == node and name[level] is not None]
        hits = len({*mine} & {*predicted})
        if mine or predicted:
            shown.append(node)
            assert found[node] == [level + 1, len(mine), hits / len(mine) if mine else None, len(predicted),
                                   hits / len(predicted) if predicted else None]
    assert table["node"] == sorted(shown, key=lambda name: name.split(" > "))


def rule_of(thresholds):
    """A classifier that promises each precision with these thresholds."""
    return SimpleNamespace(
        tree=classify.Tree(LEAVES), rules=[(precision, None, 0.5) for precision in thresholds],
        rule=lambda precision: (classify.Rule(None, thresholds.get(precision, [math.inf] * 3)), None))


@pytest.mark.parametrize("seed", range(5))
def test_answers_of_nodes_are_what_plain_python_says(seed):
    rows, result = made(seed)
    thresholds, truth = {0.9: [0.9, 0.6, math.inf], 0.95: [0.8, 0.5, 0.4]}, tree.true_nodes(rows)
    alone = {"0.90": {"coverage": 0.5}, "0.95": {"coverage": 0.1}, "0.99": {"coverage": 0.0}}
    found = tree.promises(rule_of(thresholds), alone, truth, result)
    assert found["0.90"]["threshold"] == [0.9, 0.6, None] and found["0.99"] == {
        "threshold": None, "answered": 0, "leaf": 0, "precision": None, "leaf_only": alone["0.99"]}
    for precision, least in thresholds.items():
        answered, leaves, right = 0, 0, []
        for i in range(len(rows.labels)):
            passed = [level for level in range(3) if result["promised_path"][i, level] >= np.float32(least[level])]
            if passed:
                taken, own = path_of(result["promised_prediction"][i]), true_path(rows, i)
                answer, true = taken[passed[-1]], own[passed[-1]]
                answered, leaves = answered + 1, leaves + (answer in LEAVES)
                # Below another parent than the row knows nothing is right; below its own nobody knows.
                elsewhere = any(a is not None and a != b for a, b in zip(own, taken, strict=True))
                right += [] if true is None and not elsewhere else [answer == true]
        row = found[f"{precision:.2f}"]
        assert (row["answered"], row["leaf"], row["precision"]) == pytest.approx(
            [answered / len(rows.labels), leaves / len(rows.labels), np.mean(right)])


def test_lines_of_the_figure_are_what_plain_python_says():
    rows, result = made(0)
    promising = rule_of({0.9: [0.9, 0.6, math.inf], 0.95: [0.8, 0.5, 0.4]})
    truth = tree.true_nodes(rows)
    lines = tree.answered_lines(promising, rows, result, truth)
    sure = sorted(((chance, rows.labels[i] == result["promised_prediction"][i])
                   for i, chance in enumerate(result["promised_path"][:, -1]) if rows.has_category[i]),
                  key=lambda row: -row[0])
    for precision, share in lines["categories alone"]:
        count = round(share * len(sure))
        assert precision == pytest.approx(np.mean([right for _, right in sure[:count]])) and sure[count - 1][0] > 0
    found = [tree.node_answers(promising, precision, truth, result) for precision in (0.9, 0.95)]
    assert lines["the deepest node that is sure enough"] == [(row["precision"], row["answered"]) for row in found]

    # Every promise that was made stands beside its point; without a rule there is no line, and no point.
    thresholds = {"0.90": found[0] | {"leaf_only": {"coverage": 0.0, "precision": None}},
                  "0.99": {"answered": 0.0, "precision": None, "leaf_only": {"coverage": 0.2, "precision": 1.0}}}
    axes = report.answered_figure(thresholds, lines, "of a run").axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["90%", "99%"]
    lines["the deepest node that is sure enough"] = []
    report.answered_figure(thresholds, lines, "of a run").canvas.draw()


def test_pairs_name_the_node_that_both_are_below():
    rows, _ = made(0)
    number = {name: i for i, name in enumerate(rows.names)}
    pairs = {("Home > Kitchen > Knives", "Home > Kitchen > Pans"): "Home > Kitchen", ("Books", "Home > Bath"): "",
             ("Home > Kitchen > NEW", "Home > Bath"): "Home", ("Books > NEW", "Books"): "Books", ("NEW", "Books"): ""}
    true, taken = ([number[name] for name in of] for of in zip(*pairs, strict=True))
    assert tree.shared_parents(rows, true, taken) == {"shared": [*pairs.values()]}
    assert tree.shared_parents(labelled(["A > B", "A > C"], [0], "x"), [0], [1]) == {}


def test_a_part_of_rows_has_what_belongs_to_them():
    rows, _ = made(0)
    rows = rows._replace(id=[*map(str, range(300))], reliable=np.arange(300) % 2 == 0)
    part = rows.part(rows.has_category)
    left = np.flatnonzero(rows.has_category)
    assert 0 < len(left) < 300 and part.has_category.all() and part.unknown.sum() == rows.unknown.sum() > 0
    assert part.inputs.titles == [f"title {i}" for i in left] and part.id == [str(i) for i in left]
    assert part.line.tolist() == (left + 2).tolist() and part.reliable.tolist() == (left % 2 == 0).tolist()
    assert len(part.inputs.values) == len(part.file) == len(left) and part.names == rows.names


def test_the_last_level_is_scored_like_the_categories():
    """Each unknown category is one of its own, and wrong."""
    rows, result = made(0, others=["Home > Kitchen > NEW", "Home > Kitchen > NEW 2", "Books > NEW", "NEW"])
    result["at_level"] = rows.tree.above[result["prediction"]]
    last = tree.scores(rows, result, tree.true_nodes(rows))["levels"][-1]
    part, found = rows.part(rows.has_category), result["prediction"][rows.has_category]
    assert part.unknown.any() and last["rows"] == len(found) and last["accuracy"] == np.mean(part.labels == found)
    assert last["balanced_accuracy"] == measures.balanced_accuracy(part.labels, found)


# --- where they are shown ---------------------------------------------------------------------------------------------

def tree_page(names, recall, rows):
    """What `page.tree` shows of nodes, in the order of their paths."""
    nodes = {"node": names, "level": [name.count(" > ") + 1 for name in names], "rows": rows, "recall": recall,
             "predicted": rows, "precision": [None] * len(names)}
    return page.tree(nodes)


def test_the_tree_is_unfolded_down_to_its_worst_nodes(monkeypatch):
    monkeypatch.setattr(page, "UNFOLDED", 1)
    names = ["A", "A > B", "A > B > C", "A > B > D", "A > E", "F", "G", "G > H"]
    content = tree_page(names, [0.9, 0.8, 0.1, 1.0, 0.9, 0.9, 1.0, 1.0], [50] * 8)
    Parsed(content)
    lines = content.splitlines()
    assert [line.split(": ")[0].removeprefix("<li>") for line in lines if ": recall" in line] == [
        "<details open><summary>A", "<details open><summary>B", "<strong>C</strong>", "D", "E", "F",
        "<details><summary>G", "H"]
    assert content.count("<ul") == content.count("</ul>") == 4

    # Of more nodes than are shown the worst stay, with what is above them.
    monkeypatch.setattr(page, "NODES", 1)
    content = tree_page(names, [0.9, 0.8, 0.1, 1.0, 0.9, 0.9, 1.0, 1.0], [50] * 8)
    assert "3 of 8 nodes" in content and content.count("recall 0") == 3 and "D: " not in content


def test_a_tree_of_which_no_row_is_known_is_shown_empty():
    content = tree_page(["A", "A > B"], [None, None], [0, 0])
    assert "0 of 0 nodes" in content and 'class="tree"' in content


def test_a_large_tree_stays_small_and_is_text():
    names = sorted((f"<b>{top} & \" > {'Ñandú y ' * 9}{middle:02} > {leaf:03} {'x' * 90}" for top in range(10)
                    for middle in range(20) for leaf in range(100)), key=lambda name: name.split(" > "))
    nodes = sorted({name.rsplit(" > ", cut)[0] if cut else name for name in names for cut in range(3)},
                   key=lambda name: name.split(" > "))
    draw = np.random.default_rng(0)
    content = tree_page(nodes, draw.random(len(nodes)).tolist(), draw.integers(1, 60, len(nodes)).tolist())
    Parsed(content)
    assert len(content.encode()) < 400_000 and "<b>" not in content and f" of {len(nodes):,} nodes" in content
    assert content.count("<details open>") <= 2 * page.UNFOLDED


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """(folder of a report on rows of a tree, its Report)."""
    folder = tmp_path_factory.mktemp("reported")
    rows, result = made(0)
    draw, n = np.random.default_rng(0), len(rows.labels)
    result |= {name: draw.random(n) for name in ("probability", "given_probability", "loss", "calibrated_loss",
                                                 "brier")} | {
        "rank": draw.integers(0, 9, n), "known": np.ones(n, bool), "label_path": draw.random((n, 3))}
    rows = rows._replace(source={"files": [{"file": "x", "rows": n, "checksum": "ab"}], "folder": None,
                                 "fingerprint": None})
    promising = rule_of({0.9: [0.9, 0.6, math.inf], 0.95: [0.8, 0.5, 0.4]})
    promising.prior, promising.threshold = "training", lambda precision: 0.7 if precision < 0.99 else math.inf
    made_of = SimpleNamespace(
        promising=promising, folder=folder / "run", name="best", steps=[7], prior="equal", smoothing=0.0, columns=(),
        is_calibrated=True, factors=np.ones(1), members=[None], folders=[folder / "run"],
        validated=(draw.random((90, 3)), draw.random((90, 3)) < 0.5),
        combined_kept=lambda: draw.random((90, len(LEAVES))),
        config={"synthetic": False, "training_rows": [5] * len(LEAVES)})
    found = report.make_report(made_of, rows, result)
    report.write(folder, found)
    page.write(folder, found, {folder: ("run", ["train"], {"model": "mlp"}, ())}, "evaluate")
    return folder, found


def test_the_page_says_levels_mistakes_and_nodes(reported):
    folder, found = reported
    content, scores = (folder / "report.html").read_text(encoding="utf-8"), found.scores
    parsed = assert_sound(content)
    assert parsed.tables["Scores by level, from the top"][1:] == [
        [f"level {level}", str(row["nodes"]), str(row["rows"]), f"{row['accuracy']:.4f}",
         f"{row['balanced_accuracy']:.4f}"] for level, row in enumerate(scores["levels"], 1)]
    said = report.mistaken(scores)
    assert said.startswith("mistakes: ") and said[1:] in parsed.text and len(said) <= 120
    for name, recall, rows in zip(*(found.tables["nodes.csv"][key] for key in ("node", "recall", "rows")), strict=True):
        assert not rows or f"{name.rpartition(' > ')[2]}: recall {recall:.2f} of {rows} row" in parsed.text

    # The figure lies beside the page and is in it; a level that answers nothing has a dash.
    assert (folder / "answered.png").read_bytes()[:4] == b"\x89PNG" and "answered.png" in report.FILES
    assert sum("by the deepest node" in image["alt"] for image in parsed.attributes("img")) == 1
    promised = parsed.tables["Precision promised of the deepest nodes that are sure enough, and found here"][1:]
    row = scores["thresholds"]["0.90"]
    assert promised[0] == ["90%", "0.90000.6000-", *(f"{row[name]:.4f}" for name in ("answered", "leaf", "precision"))]
    assert promised[2] == ["99%", "-", "0.0000", "0.0000", "-"]


def test_the_terminal_says_levels_in_short_lines(reported, capsys):
    scores, tables = reported[1].scores, reported[1].tables
    report.show(scores, tables["confusions.csv"])
    lines = capsys.readouterr().out.splitlines()
    row, alone = (scores["thresholds"]["0.95"], scores["thresholds"]["0.95"]["leaf_only"])
    assert (f"promised 95% right: here {row['answered']:.1%} of the titles, {row['precision']:.1%} of them right; "
            f"{row['leaf']:.1%} get a category (with --leaf-only {alone['coverage']:.1%})") in lines
    assert "promised 99% right: by no probability, on these validation rows (with --leaf-only 0.0%)" in lines
    assert sum(line.startswith("level ") for line in lines) == 3 and report.mistaken(scores) in lines
    assert f"{scores['parent_rows']} of 300 rows know only a parent of their category; they " in "".join(lines)
    assert max(map(len, lines)) <= 120 and report.mistaken({}) == report.mistaken({"mistakes": None}) == ""


def test_mlflow_gets_levels_and_promises_of_trees_alone(reported):
    scores, logged = reported[1].scores, []
    client = SimpleNamespace(log_batch=lambda run_id, metrics: logged.extend(metrics))
    tracking.log_report(client, "run", "test-best", report.metrics(scores), None)
    found = {metric.key: metric.value for metric in logged}
    for level, row in enumerate(scores["levels"], 1):
        for name in ("accuracy", "balanced_accuracy"):
            assert found[f"test_level_{level}_{name}"] == row[name]
    for name in ("answered", "precision"):
        assert found[f"test_{name}_95"] == scores["thresholds"]["0.95"][name]
    assert found["test_answered_99"] == 0 and "test_precision_99" not in found and "test_level_4_accuracy" not in found
    flat = {name: value for name, value in scores.items() if name != "levels"}
    assert report.metrics(flat) == {name: scores[name] for name in (*report.SCORES, "expected_accuracy")}


def test_the_list_has_the_levels_above_the_categories(trained, tmp_path, capsys):
    fingerprint = files.read_json(trained / "runs/bag/config.json")["fingerprint"]
    for name, levels in (("one", [0.9, 0.8, 0.7]), ("two", None), ("three", ())):
        shutil.copytree(trained / "runs/bag", tmp_path / name)
        (tmp_path / name / "test-best").mkdir(exist_ok=True)
        report_json = {"balanced_accuracy": 0.5} | (
            {} if levels is None else {"levels": [{"accuracy": accuracy} for accuracy in levels]})
        files.write_json(tmp_path / name / "test-best/report.json", report_json)
    runs.show_all(tmp_path, fingerprint)
    header, *lines = capsys.readouterr().out.splitlines()
    assert "test  level 1  level 2  seconds" in header and len({len(line) for line in lines}) == 1
    shown = {line.split()[0]: line.split()[3:6] for line in lines}
    assert shown == {"one": ["0.5000", "0.9000", "0.8000"], "two": ["0.5000", "-", "-"], "three": ["0.5000", "-", "-"]}

    # Without a tree the columns are what they were.
    shutil.rmtree(tmp_path / "one")
    runs.show_all(tmp_path, fingerprint)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "run                      model        validation     test  seconds     MB  begun"
