"""Which of two is better: from which rows each has right to a difference of scores, and whether it could be chance.

Both have predicted the same rows, so they are compared row by row: what both have right, or both wrong, tells nothing.
Scores of one classifier (measures.py) do not belong here.
"""
import numpy as np

# --- knobs ------------------------------------------------------------------------------------------------------------
RESAMPLES, PARTS = 2000, 40  # of the bootstrap, drawn in so many parts, for there may be many categories
KEYS = {"rows": "how many",
        "accuracy": "difference in accuracy, the first less the second", "accuracy_interval": "95 % interval of it",
        "p": "of McNemar's exact test: the chance of such a difference where both are as accurate",
        "balanced_accuracy": "difference in balanced accuracy", "balanced_accuracy_interval": "95 % interval of it"}


def mcnemar(first, second):
    """McNemar's exact test (McNemar 1947; two-sided binomial test of the rows that only one has right): the probability
    of such a difference where both are as often right. first, second [N] bool."""
    from scipy.stats import binomtest
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def difference(labels, first, second, seed=0):
    """KEYS of rows with these labels [N], numbers, of which two classifiers have these right, first and second [N]
    bool. The intervals are of a paired bootstrap (Efron and Tibshirani 1993, percentile method): rows are drawn again
    within their categories, as measures.recall_interval does, so that only their counts need be drawn."""
    names, category, size = np.unique(labels, return_inverse=True, return_counts=True)
    gained, lost = (np.bincount(category[rows], minlength=len(names)) for rows in (first & ~second, second & ~first))
    of_category = (gained - lost) / size

    # Half a row is shared among the outcomes, so that a category of two rows is not taken to be certain.
    shares = np.stack([gained, lost, size - gained - lost], 1) + 1 / 6
    shares /= shares.sum(1, keepdims=True)
    weights = np.stack([size / size.sum(), np.full(len(size), 1 / len(size))], 1)
    draw, moved = np.random.default_rng(seed), []
    for _ in range(PARTS):
        drawn = draw.multinomial(size, shares, (RESAMPLES // PARTS, len(size)))
        moved.append(((drawn[..., 0] - drawn[..., 1]) / size - (shares[:, 0] - shares[:, 1])) @ weights)
    low, high = np.quantile(np.concatenate(moved), [0.025, 0.975], axis=0)
    found = {"rows": len(labels), "p": mcnemar(first, second)}
    for i, name in enumerate(("accuracy", "balanced_accuracy")):
        middle = float(weights[:, i] @ of_category)
        found |= {name: middle, f"{name}_interval": [float(middle + low[i]), float(middle + high[i])]}
    return found


def by_category(labels, first, second, names):
    """The table against.csv, the largest gains first: of the categories [C] among labels [N], their names of all
    `names`, rows, the recall of both, and the p of `mcnemar`."""
    found, order = [], np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        mine, others = first[rows], second[rows]
        found.append((names[labels[rows[0]]], len(rows), float(mine.mean()), float(others.mean()),
                      mcnemar(mine, others)))
    found.sort(key=lambda row: row[3] - row[2])
    return {name: [*values] for name, values in zip(("category", "rows", "recall", "other_recall", "p"), zip(
        *found, strict=True), strict=True)}


def said(found, first, second):
    """Which is better, in a sentence: found, as from `difference`; the names of both."""
    points, (low, high) = 100 * found["balanced_accuracy"], found["balanced_accuracy_interval"]
    if points < 0:
        first, second, points, low, high = second, first, -points, -high, -low
    sign = 1 if found["balanced_accuracy"] >= 0 else -1
    return (f"{first} is {points:.1f} points of balanced accuracy better than {second} ({100 * low:.1f} to "
            f"{100 * high:.1f}); could be chance: {'yes' if low <= 0 else 'no'}. In accuracy it is "
            f"{100 * sign * found['accuracy']:+.1f} points (McNemar's p = {found['p']:.2g})")
