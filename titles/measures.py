"""How good predictions are: numbers of labels and predictions alone, and how sure they are.

Which of two is better (paired.py), what nodes of a tree are worth (tree.py) and the tables of a report (report.py) do
not belong here.
"""
import numpy as np

RESAMPLES = 2000  # of the bootstrap


def hits(labels, predictions):
    """Of the categories that occur in `labels`, in rising order: how many of their rows are right, and how many rows
    they have."""
    size = np.bincount(labels)
    right = np.bincount(labels[labels == predictions], minlength=len(size))
    return right[size > 0], size[size > 0]


def balanced_accuracy(labels, predictions):
    """Mean recall over the categories that occur in `labels`, as scikit-learn's balanced_accuracy_score."""
    right, size = hits(labels, predictions)
    return float(np.mean(right / size))


def by_category(labels, predictions, size):
    """(precision, recall, F1, support) [C] of so many categories, as scikit-learn's precision_recall_fscore_support has
    them, 0 where nothing can be told. labels [N], predictions [N]."""
    support, taken, right = (np.bincount(of, minlength=size) for of in (
        labels, predictions, labels[labels == predictions]))

    def share(part, whole):
        return np.divide(part, whole, out=np.zeros(size), where=whole > 0)

    return share(right, taken), share(right, support), share(2 * right, support + taken), support


def macro_f1(labels, predictions):
    """The mean F1 of the categories that rows have or are predicted to have."""
    _, _, f1, _ = by_category(labels, predictions, 1 + max(labels.max(), predictions.max()))
    return float(f1[np.union1d(labels, predictions)].mean())


def recall_interval(right, size, seed=0, resamples=RESAMPLES):
    """95 % bootstrap interval of the balanced accuracy, from how many rows of each category are right, right [C] of
    size [C], none of them 0: rows are drawn again within each category, where the number of right ones is binomial, so
    no row need be drawn (Efron and Tibshirani 1993, percentile method). It is drawn with recall
    (right + 1/2) / (n + 1), so that a small category without a mistake is not taken to be perfect; the deviations are
    added to the recall measured."""
    recall, draw = (right + 0.5) / (size + 1), np.random.default_rng(seed)
    draws = np.mean(draw.binomial(size, recall, (resamples, len(size))) / size - recall, axis=1)
    return [float(x) for x in np.clip(np.mean(right / size) + np.quantile(draws, [0.025, 0.975]), 0, 1)]


def wilson_interval(proportion, rows):
    """(low, high): 95 % interval of a proportion of so many rows, numbers or arrays (Wilson 1927), which is wide where
    rows are few, and also where all of them are right."""
    square = 1.96 ** 2 / rows
    middle, half = proportion + square / 2, np.sqrt(square * (proportion * (1 - proportion) + square / 4))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def worst_first(categories):
    """The categories that have rows, as numbers, those whose recall is surely low first: by the upper end of its
    interval, so that two rows that are wrong weigh less than fifty. categories as from report.make_tables."""
    seen = np.flatnonzero(categories["support"])
    _, high = wilson_interval(categories["recall"][seen], categories["support"][seen])
    return seen[np.argsort(high, kind="stable")]
