"""What is above a category: rows that know only a parent. The tree itself is classify.Tree, for exported models need it
as well; what its scores and losses are is the matter of those who compute them."""
import numpy as np


def shared_rows(labels, tree):
    """How many rows each leaf of a classify.Tree has, [C] int64: those of `labels` [N], nodes, that are the leaf. Where
    rows know only a parent, [C] float64 with these shared among the leaves below, in proportion to their own rows, or
    evenly where none of them has any."""
    rows = np.bincount(labels, minlength=len(tree.names))
    own, parents = rows[:tree.leaves], tree.leaves + np.flatnonzero(rows[tree.leaves:])
    shared = own.astype(float if len(parents) else int)
    for node in parents:
        first, behind = tree.below[node]
        part = own[first:behind] if own[first:behind].any() else np.ones(behind - first)
        shared[first:behind] += rows[node] * part / part.sum()
    return shared
