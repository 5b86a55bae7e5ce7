"""What is above a category: which node of the tree of all categories can be promised, what rows say of leaves, and how
good predictions are at every level.

The nodes themselves are classify.Tree's. What a probability means (calibration.py) and how scores are shown (report.py)
do not belong here.
"""
import itertools

import numpy as np

import classify
from titles import measures

# --- knobs ------------------------------------------------------------------------------------------------------------
RULED = [0.995, *(hundredths / 100 for hundredths in range(99, 49, -1))]  # precisions that have a rule of their own
STEPS = 50          # shares of the titles that are left, which a level may answer: 2 %, 4 %, ...
STRICTER = 0.1      # part of the errors allowed that all levels but the first leave to it
CERTAINTY = 0.995   # of the bound: more than in calibration.promises, for more rules are tried than thresholds there


# --- promises ---------------------------------------------------------------------------------------------------------

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


# --- rows that know only a parent -------------------------------------------------------------------------------------

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


# --- reports ----------------------------------------------------------------------------------------------------------

def true_nodes(rows):
    """[N, L] the true node of report.Labelled rows at every level, from the top, as classify.Tree.above has it of a
    category; -1 below the parent that is all that a row knows. Nodes that the run does not know have numbers behind its
    own."""
    # Of each distinct label once.
    tree, number = rows.tree, dict(rows.tree.number)
    of_label = np.full((len(rows.names), tree.levels), -1)
    for label in np.unique(rows.labels).tolist():
        path, is_parent = rows.names[label].split(classify.PATH), tree.leaves <= label < len(tree.names)
        for level in range(len(path) if is_parent else tree.levels):
            of_label[label, level] = number.setdefault(classify.PATH.join(path[:level + 1]), len(number))
    return of_label[rows.labels]


def scores(rows, result, truth):
    """What report.json says of the levels and the mistakes of report.Labelled rows: result as from report.score_rows,
    truth as from `true_nodes`."""
    levels = []
    for level in range(rows.tree.levels):
        known = truth[:, level] >= 0
        labels, predictions = truth[known, level], result["at_level"][known, level]
        levels.append({"nodes": rows.tree.size(level + 1), "rows": len(labels),
                       "accuracy": float((labels == predictions).mean()) if len(labels) else None,
                       "balanced_accuracy": measures.balanced_accuracy(labels, predictions) if len(labels) else None})

    # Mistakes are of rows that know their category. From it to the predicted one the way leads over the deepest node
    # that both are below.
    wrong = rows.has_category & (result["prediction"] != rows.labels)
    taken, depth = result["prediction"][wrong], np.array([name.count(classify.PATH) + 1 for name in rows.names])
    own, common = depth[rows.labels[wrong]], (truth[wrong] == rows.tree.above[taken]).cumprod(1).sum(1)
    mistakes = {"right_one_level_up": float(((own > 1) & (common >= own - 1)).mean()),
                "wrong_at_the_top": float((common == 0).mean()),
                "distance": float((own + depth[taken] - 2 * common).mean())} if len(taken) else None
    return {"parent_rows": int((~rows.has_category).sum()), "levels": levels, "mistakes": mistakes}


def node_answers(promising, precision, truth, result):
    """What the deepest nodes answer that a precision is promised of: {"answered": the share of the rows, "leaf": the
    share that gets a category, "precision": how many are right, of the answers of which the rows tell it}."""
    rows, at = np.arange(len(truth)), classify.deepest(
        result["promised_path"], promising.rule(precision)[0].thresholds)
    above = promising.tree.above[result["promised_prediction"]]
    answers, true = above[rows, at], truth[rows, at]
    # A node that is deeper than what a row knows is wrong at least where it stands below another parent.
    told = (at >= 0) & ((true >= 0) | ((truth >= 0) & (truth != above)).any(1))
    leaf = (at >= 0) & (answers < promising.tree.leaves)
    return {"answered": float((at >= 0).mean()), "leaf": float(leaf.mean()),
            "precision": float((answers == true)[told].mean()) if told.any() else None}


def promises(promising, alone, truth, result):
    """The `thresholds` of report.json, of a tree: {precision: what `node_answers` says, "threshold" of each level from
    the top, and of categories "leaf_only" what report.promises says, alone}."""
    found = {}
    for precision, leaf_only in alone.items():
        thresholds = promising.rule(float(precision))[0].thresholds
        found[precision] = {
            "threshold": [least if np.isfinite(least) else None for least in thresholds] if np.isfinite(
                thresholds).any() else None,
            **node_answers(promising, float(precision), truth, result), "leaf_only": leaf_only}
    return found


def answered_lines(promising, rows, result, truth):
    """What report.answered_figure draws: {what is answered: [(precision found, share of the rows answered)]}."""
    # A hundred thresholds let through one part in a hundred more each. Nothing is answered where nothing is known.
    known = rows.has_category
    chances, right = result["promised_probability"][known], (result["promised_prediction"] == rows.labels)[known]
    hits = np.cumsum(right[np.argsort(-chances, kind="stable")])
    count = np.unique((chances > 0).sum() * np.arange(1, 101) // 100)
    nodes = [node_answers(promising, precision, truth, result) for precision, _, _ in promising.rules]
    return {"categories alone": [(hits[n - 1] / n, n / len(hits)) for n in count[count > 0]],
            "the deepest node that is sure enough": [
                (row["precision"], row["answered"]) for row in nodes if row["precision"] is not None]}


def shared_parents(rows, true, taken):
    """{"shared": of pairs of categories [K] the deepest node that both are below, or ""}; nothing without a tree."""
    if rows.tree.levels == 1:
        return {}
    paths = ([rows.names[node].split(classify.PATH) for node in of] for of in (true, taken))
    return {"shared": [classify.PATH.join(a for a, _ in itertools.takewhile(
        lambda names: names[0] == names[1], zip(*pair, strict=False))) for pair in zip(*paths, strict=True)]}


def node_table(rows, result, truth):
    """Of the nodes of the tree that have rows or are predicted, each before those below it: {"node", "level", "rows",
    "recall": the share that is predicted somewhere below the node, "predicted", "precision"}."""
    tree, taken = rows.tree, rows.tree.above[result["prediction"]]

    # A node counts at its own level alone: a leaf stands for itself at those below. Rows count that know that level.
    def count(of, mask):
        by_level = [np.bincount(of[mask[:, level], level], minlength=len(tree.names))[:len(tree.names)]
                    for level in range(tree.levels)]
        return np.stack(by_level)[tree.level - 1, np.arange(len(tree.names))].tolist()

    size, hits, predicted = count(truth, truth >= 0), count(truth, truth == taken), count(taken, truth >= 0)
    order = sorted((node for node in range(len(tree.names)) if size[node] or predicted[node]),
                   key=lambda node: tree.names[node].split(classify.PATH))
    return {"node": [tree.names[node] for node in order], "level": tree.level[order].tolist(),
            "rows": [size[node] for node in order],
            "recall": [hits[node] / size[node] if size[node] else None for node in order],
            "predicted": [predicted[node] for node in order],
            "precision": [hits[node] / predicted[node] if predicted[node] else None for node in order]}
