"""Which of two is better: the differences and their intervals against plain references, and the command."""
import csv
import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, tiny_rows, write_csv
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score

from titles import paired, report


def made(rows, seed, sizes=(8, 4, 2, 1), rates=(0.8, 0.75)):
    """(labels [rows], which rows two made classifiers have right [rows] each, of which some are right of both)."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(len(sizes), rows, p=np.array(sizes) / sum(sizes))
    easy = draw.random(rows)
    return labels, *((easy * 0.7 + draw.random(rows) * 0.3 < np.quantile(easy, rate)) for rate in rates)


def test_differences_are_those_of_scikit_learn():
    labels, first, second = made(500, 0)
    found = paired.difference(labels, first, second)
    wanted = [balanced_accuracy_score(labels, np.where(right, labels, -1)) for right in (first, second)]
    assert found["balanced_accuracy"] == pytest.approx(wanted[0] - wanted[1], abs=1e-12)
    assert found["accuracy"] == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert set(found) == set(paired.KEYS) and found["rows"] == 500
    turned = paired.difference(labels, second, first)
    assert turned["balanced_accuracy"] == pytest.approx(-found["balanced_accuracy"]) and turned["p"] == found["p"]
    assert found == paired.difference(labels, first, second)  # the same bits again


def test_mcnemar_is_a_sum_of_binomial_probabilities():
    first, second = np.arange(40) < 30, np.arange(40) >= 12  # 12 rows are right of the first alone, 10 of the second
    assert paired.mcnemar(first, second) == pytest.approx(2 * binom.cdf(10, 22, 0.5))
    assert paired.mcnemar(first, first) == 1.0


def test_intervals_are_those_of_a_bootstrap_of_rows():
    labels, first, second = made(600, 1)
    draw, means = np.random.default_rng(5), []
    for _ in range(1500):
        chosen = np.concatenate([draw.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(4)])
        moved = first[chosen].astype(int) - second[chosen]
        means.append(np.mean([moved[labels[chosen] == c].mean() for c in range(4)]))
    found = paired.difference(labels, first, second)
    np.testing.assert_allclose(found["balanced_accuracy_interval"], np.quantile(means, [0.025, 0.975]), atol=0.008)
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high


def test_intervals_hold_what_is_true_and_equal_ones_are_called_chance():
    chance = 0
    for seed in range(100):
        found = paired.difference(*made(400, seed, rates=(0.8, 0.8)))
        low, high = found["balanced_accuracy_interval"]
        chance += low <= 0 <= high
    assert 90 <= chance <= 99
    assert "could be chance: no" in paired.said(paired.difference(*made(2000, 0, rates=(0.8, 0.6))), "a", "b")


def test_the_sentence_names_the_better_one_first():
    found = {"balanced_accuracy": -0.008, "balanced_accuracy_interval": [-0.013, -0.003], "accuracy": -0.007,
             "p": 0.004}
    assert paired.said(found, "mlp", "cnn") == (
        "cnn is 0.8 points of balanced accuracy better than mlp (0.3 to 1.3); could be chance: no. In accuracy it is "
        "+0.7 points (McNemar's p = 0.004)")


def test_categories_with_the_largest_gain_come_first():
    labels, first, second = made(300, 2)
    found = paired.by_category(labels, first, second, ["a", "b", "c", "d"])
    gains = np.subtract(found["recall"], found["other_recall"])
    assert (np.diff(gains) <= 0).all() and sorted(found["category"]) == [*"abcd"] and sum(found["rows"]) == 300
    at = found["category"].index("b")
    assert found["recall"][at] == first[labels == 1].mean() and found["p"][at] == paired.mcnemar(
        first[labels == 1], second[labels == 1])


@pytest.mark.slow
def test_two_runs_on_a_split_and_on_a_file(trained, tmp_path):
    trained = shutil.copytree(trained, tmp_path / "shop")  # reports are written beside the runs
    done = run_here("evaluate", "--ckpt", "filters", "--against", "bag", cwd=trained)
    assert " points of balanced accuracy better than " in done.stdout and "could be chance: " in done.stdout
    folder = trained / "runs/filters/test-best-against-bag"
    scores = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    one, other = (json.loads(run_here("evaluate", "--ckpt", name, "--json", cwd=trained).stdout)
                  for name in ("filters", "bag"))
    for score in ("accuracy", "balanced_accuracy"):
        assert scores["against"][score] == pytest.approx(one[score] - other[score])
    assert scores["against"]["other"] == "bag" and "language spanish" in scores["against"]["slices"]
    assert {*scores} <= {*report.KEYS} and "against" not in one
    with open(folder / "against.csv", encoding="utf-8") as file:
        assert len([*csv.DictReader(file)]) == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="Against"' in page and "--against bag" in page

    # Also of a file with a category that they do not know, and of several runs.
    write_csv(tmp_path / "new.csv", [*tiny_rows(80, seed=3), ("lámpara", "reliable", "spanish", "LÁMPARAS")])
    found = json.loads(run_here("evaluate", "--ckpt", "bag", "--against", "bag", "filters", "--test",
                                tmp_path / "new.csv", "--json", cwd=trained).stdout)
    assert found["against"]["rows"] == 81 and found["against"]["other"] == "bag + filters"


def test_what_cannot_be_compared_is_said(trained):
    def told(*flags):
        return run_here("evaluate", "--ckpt", "filters", *flags, cwd=trained, check=False)

    assert_one_line_error(told("--against", "nobody"), "nobody")
    assert_one_line_error(told("--against", "filters/best"), "is filters, as --ckpt is")
    assert_one_line_error(told("--against", "bag", "--predict", "tiny.csv"), "--against goes with a report")
