"""A tree of categories changes between runs: what its leaves begin with, of those of a former run (--init-from)."""
import jax
import numpy as np
import pytest
from conftest import config_of, new_state

import data
import model
from titles import start

# The same changes for most tests: a path that stays, a leaf that moved, one that was split, two that became one, one
# that is new, and one that is gone.
OLD = ["Garden > Knives", "Garden > Pots > Clay", "Garden > Pots > Iron",
       "Home > Chairs", "Home > Lamps", "Home > Rugs"]
NEW = ["Garden > Pots", "Home > Chairs", "Home > Kitchen > Knives",
       "Home > Lamps > Desk", "Home > Lamps > Floor > Tall", "Toys"]
BEGINS = {"Garden > Pots": ["Garden > Pots > Clay", "Garden > Pots > Iron"], "Home > Chairs": ["Home > Chairs"],
          "Home > Kitchen > Knives": ["Garden > Knives"], "Home > Lamps > Desk": ["Home > Lamps"],
          "Home > Lamps > Floor > Tall": ["Home > Lamps"]}
SAID = "1 moved, 2 split, 1 merged"


def begins(names, others):
    """({leaf: those that it begins with}, the text that says so)."""
    mine, theirs, said = start.matched_leaves(names, others)
    assert mine.dtype == theirs.dtype == np.int64 and len(mine) == len(theirs) and (np.diff(mine) >= 0).all()
    found = {}
    for i, j in zip(mine, theirs, strict=True):
        found.setdefault(names[i], []).append(others[j])
    return found, said


def test_what_leaves_begin_with():
    assert begins(NEW, OLD) == (BEGINS, SAID)


def test_the_way_back():
    """What was split is merged again, and the other way round."""
    found, said = begins(OLD, NEW)
    assert said == "1 moved, 2 split, 1 merged" and found == {
        "Garden > Knives": ["Home > Kitchen > Knives"], "Garden > Pots > Clay": ["Garden > Pots"],
        "Garden > Pots > Iron": ["Garden > Pots"], "Home > Chairs": ["Home > Chairs"],
        "Home > Lamps": ["Home > Lamps > Desk", "Home > Lamps > Floor > Tall"]}


@pytest.mark.parametrize(("names", "others", "found", "said"), [
    # The same tree, and one with leaves that are new.
    (["A > X", "B > X"], ["A > X", "B > X"], {"A > X": ["A > X"], "B > X": ["B > X"]}, ""),
    (["A > X", "A > Y"], ["A > X"], {"A > X": ["A > X"]}, ""),
    # Nothing is in common, or there is nothing.
    (["A > X"], ["B > Y"], {}, ""),
    ([], ["A > X"], {}, ""),
    (["A > X"], [], {}, ""),
    # A name that two have, here or there, says nothing; nor does that of a leaf which stayed.
    (["B > X", "C > X"], ["A > X"], {}, ""),
    (["C > X"], ["A > X", "B > X"], {}, ""),
    (["A > X", "B > X"], ["A > X", "C > Y"], {"A > X": ["A > X"]}, ""),
    # But of two with a name one may have stayed.
    (["A > X", "C > X"], ["A > X", "B > X"], {"A > X": ["A > X"], "C > X": ["B > X"]}, "1 moved"),
    # Only the leaf's own name tells, not an inner node's, or a part of one.
    (["B > X > Z"], ["A > X"], {}, ""),
    (["B > X Z"], ["A > Z"], {}, ""),
    # To the top, and from there: a run's categories were none of a tree.
    (["X"], ["A > X"], {"X": ["A > X"]}, "1 moved"),
    (["A > X", "B > Y"], ["X", "Z"], {"A > X": ["X"]}, "1 moved"),
    # A leaf within one of its own name is no moved one: all that were beside it count.
    (["A"], ["A > A", "A > B"], {"A": ["A > A", "A > B"]}, "1 merged"),
    (["A > A", "A > B"], ["A"], {"A > A": ["A"], "A > B": ["A"]}, "2 split"),
    # What moved out of a merged node, or into a split one, goes by its name.
    (["A", "C > Y"], ["A > X", "A > Y"], {"A": ["A > X"], "C > Y": ["A > Y"]}, "1 moved, 1 merged"),
    (["A > X", "A > Y"], ["A", "C > Y"], {"A > X": ["A"], "A > Y": ["C > Y"]}, "1 moved, 1 split"),
    # A name that begins alike is not above.
    (["Pots and pans > Iron"], ["Pots"], {}, ""),
    (["Pots"], ["Pots and pans > Iron"], {}, ""),
])
def test_a_change(names, others, found, said):
    assert begins(names, others) == (found, said)


def test_the_nearest_leaf_counts():
    assert begins(["A > B > C > D"], ["A", "A > B", "A > B > X"])[0] == {"A > B > C > D": ["A > B"]}


def test_many_leaves_take_no_long():
    """Twenty thousand, all of them split: nothing compares each with each."""
    others = [f"{i % 20} > {i}" for i in range(10_000)]
    names = [f"{other} > {part}" for other in others for part in "ab"]
    mine, theirs, said = start.matched_leaves(names, others)
    np.testing.assert_array_equal(mine, np.arange(20_000))
    np.testing.assert_array_equal(theirs, np.arange(20_000) // 2)
    assert said == "20,000 split"


# --- the head ---------------------------------------------------------------------------------------------------------

def knowledge(names, others, levels=1, old_levels=1):
    """(the classifier's head before, that of the former run, the one that begins, the line) of a bag of words."""
    def described(labels, levels):
        words = [*data.SPECIALS, *map(str, range(48))]
        return {"labels": labels, "levels": levels, "vocab": words, "words": words, "vectors": None,
                "training_rows": [1] * len(labels)}

    flags, titles = ("--hidden", 8, "--dim", 6, "--buckets", 40), np.arange(2, 42).reshape(8, 5)
    meta, before = described(names, levels), described(others, old_levels)
    config, old = config_of(*flags, meta=meta), config_of(*flags, meta=before)
    old["data"] = old["data"] | {"levels": old_levels}
    config["earlier_rows"] = old["rows"]
    state = new_state(config, model.feature_tables(config, meta["words"]), titles)

    # Every number of a former run is its own, also of biases and of the last layer, which start at zero.
    def drawn(x):
        return draw.normal(size=x.shape).astype(np.float32)

    draw = np.random.default_rng(0)
    variables = jax.tree.map(drawn, jax.eval_shape(lambda: model.init(old, jax.random.key(0))))
    saved = {"variables": variables | {"weights": np.abs(variables["weights"]) + 1}}
    mine, theirs = (jax.tree.map(np.array, tree["variables"]["params"]["Head_0"]) for tree in (state, saved))
    found, said = start.with_knowledge(state, config, meta, (old, before["vocab"], others, saved, 0))
    return mine, theirs, jax.device_get(found["variables"]["params"]["Head_0"]), said


def assert_entries(mine, theirs, found, expected):
    """Kernel and bias of the last layer have an entry a category: the mean of those that `expected` lists, positions in
    the former run, or what was there before. The layer below is the former run's."""
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(found["Dense_0"][part], theirs["Dense_0"][part])
        new, old, now = (head["Dense_1"][part] for head in (mine, theirs, found))
        assert now.shape == new.shape and now.shape[-1] == len(expected) and now.dtype == np.float32
        for i, its in enumerate(expected):
            np.testing.assert_array_equal(now[..., i], old[..., its].mean(-1) if its else new[..., i])


@pytest.mark.parametrize(("levels", "old_levels"), [(4, 3), (1, 3), (4, 1)])
def test_the_head_of_a_tree(levels, old_levels):
    mine, theirs, found, said = knowledge(NEW, OLD, levels, old_levels)
    expected = [[OLD.index(name) for name in BEGINS.get(leaf, [])] for leaf in NEW]
    assert_entries(mine, theirs, found, expected)
    assert said == f"48 of 48 words, 5 of 6 categories ({SAID})"


def test_the_head_of_a_tree_that_stayed():
    mine, theirs, found, said = knowledge(OLD, OLD, 3, 3)
    assert_entries(mine, theirs, found, [[i] for i in range(len(OLD))])
    assert said == "48 of 48 words, 6 of 6 categories"


def test_names_of_no_tree_are_no_paths():
    """Also a category without a tree may have such a name."""
    mine, theirs, found, said = knowledge(NEW, OLD)
    expected = [[OLD.index(name)] if name in OLD else [] for name in NEW]
    assert_entries(mine, theirs, found, expected)
    assert said == "48 of 48 words, 1 of 6 categories"


def test_an_entry_that_is_taken_over_keeps_its_bits():
    old = np.float32([[-0.0, 1e-45, 3e38, 0.1, np.inf]])
    found = start.with_entries(jax.numpy.ones((1, 3)), old, np.array([0, 2]), np.array([0, 2]))
    assert np.asarray(found).tobytes() == np.float32([-0.0, 1, 3e38]).tobytes()
    none = np.zeros(0, np.int64)
    assert np.asarray(start.with_entries(jax.numpy.ones((1, 3)), old, none, none)).tolist() == [[1, 1, 1]]
