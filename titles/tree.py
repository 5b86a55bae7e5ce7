"""What is above a category: which node of the tree of all categories can be promised, and what rows say of leaves.

The nodes themselves are classify.Tree's. What a probability means (calibration.py) and how scores are shown (report.py)
do not belong here.
"""
import numpy as np

# --- knobs ------------------------------------------------------------------------------------------------------------
RULED = [0.995, *(hundredths / 100 for hundredths in range(99, 49, -1))]  # precisions that have a rule of their own
STEPS = 50          # shares of the titles that are left, which a level may answer: 2 %, 4 %, ...
STRICTER = 0.1      # part of the errors allowed that all levels but the first leave to it
CERTAINTY = 0.995   # of the bound: more than in calibration.promises, for more rules are tried than thresholds there


def rules(path, right):
    """[(precision, thresholds by level from the top, the share of the rows that they answer)], for rising precisions
    that some rule promises: a row is answered by its deepest node whose probability is at least its level's threshold
    (None: no node of that level is), and so many answers are right, all levels together.

    path [n, L]: probabilities of the nodes above the likeliest category of validation rows, from the top; right [n, L]
    bool: whether they are the label's.
    """
    found = [(precision, *rule(path, right, precision)) for precision in reversed(RULED)]
    return [one for one in found if one[2] > 0]


def rule(path, right, precision):
    """(thresholds, share of the rows) that promise a precision, see `rules`."""
    # From the leaves up each level answers as many of the rows that are left as it can, so that answers are deep. What
    # is promised is a bound for all answers up to here. Deep levels are a bit stricter than asked, which leaves the
    # first one room to answer many more.
    from scipy.stats import beta
    left, thresholds, answers, hits = np.ones(len(path), bool), [None] * path.shape[1], 0, 0
    for level in reversed(range(path.shape[1])):
        rows = np.flatnonzero(left)
        order = rows[np.argsort(-path[rows, level], kind="stable")]
        count = np.unique(len(order) * np.arange(1, STEPS + 1) // STEPS)
        count = count[count > 0]
        good = hits + np.cumsum(right[order, level])[count - 1]
        bound = beta.ppf(1 - CERTAINTY, np.maximum(good, 1), answers + count - good + 1)
        least = np.where(good > 0, bound, 0)
        kept = np.flatnonzero(least >= precision + (1 - precision) * (STRICTER if level else 0))
        if len(kept):
            # Equal probabilities are answered together.
            thresholds[level] = float(path[order[count[kept[-1]] - 1], level])
            mine = rows[path[rows, level] >= thresholds[level]]
            left[mine], answers, hits = False, answers + len(mine), hits + int(right[mine, level].sum())
    return thresholds, answers / max(1, len(path))


def shared_rows(labels, tree):
    """[C] how many rows each category of a classify.Tree has, for labels [N], numbers of nodes. Those that know only a
    parent are shared among the categories below as their own rows are, or evenly where these have none: then floats,
    else integers."""
    count = np.bincount(labels, minlength=len(tree.names))
    own, of_parents = count[:tree.leaves], np.flatnonzero(count[tree.leaves:]) + tree.leaves
    shared = own.astype(float) if len(of_parents) else own
    for node in of_parents:
        below = slice(*tree.below[node])
        share = own[below] if own[below].any() else np.ones(own[below].shape)
        shared[below] += count[node] * share / share.sum()
    return shared
