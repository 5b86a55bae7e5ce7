"""From the names of categories that rows write to the tree of all categories; and what is odd about the names.

The tree itself is classify.Tree, what it is worth stands in tree.py.
"""
import unicodedata
from collections import Counter

import numpy as np

import classify
import data
from titles import formats, sources
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
# fastText files may not mean what they say. A warning comes where so many labels begin alike before a comma (or all
# labels have one), and where a category has so many titles, and so large a share of its titles' first words is its own.
GLUED = 12
CUT_TITLES, CUT_SHARE = 8, 0.95
# A hint comes where so many names or more are flat, and look like paths: so large a share has the same of these signs,
# and their first parts are less than half as many.
NAMES, ALIKE = 10, 0.8
SIGNS = (" > ", ">", " / ", "/", "|", " :: ", "::", "\xbb")


def numbered(rows, base, bad):
    """(the classify.Tree of the categories, that of the base or in alphabetical order; [N] which of its nodes each row
    has). Of names that look the same the one that most rows write counts; a note goes to `bad`."""
    index, times = rows.spellings.index, np.bincount(rows.spelling)
    names = [name.removeprefix(classify.BORDER) for name in index]
    is_tree = not base and any(name.startswith(classify.BORDER) for name in index)
    if is_tree:
        # A name among lists is a path as we write it.
        names = [name[1:] if name[:1] == classify.BORDER else sources.read_path(
            "".join(classify.BORDER + level for level in name.split(classify.PATH)))[0] for name in index]

    # Of equally frequent ones the first in alphabetical order, so that the order of rows does not matter.
    ways = {}
    for i in sorted(range(len(names)), key=lambda i: (-times[i], names[i])):
        ways.setdefault(formats.tidy(names[i]), []).append(names[i])
    found = base.tree if base else make_tree(sorted(first for first, *_ in ways.values()), is_tree)
    for first, *others in ways.values():
        if {*others} - {first} and not base:
            bad.note(f"category {first}", None, "is written in several ways that look the same; the most frequent one "
                     "is its name")
    if found.leaves < 2:
        raise UserError(f"{rows.where}: only one category ({found.names[0]}); a classifier needs two or more")
    number = {formats.tidy(name): i for i, name in enumerate(found.names)}
    of_spelling = [number[formats.tidy(name)] for name in names]
    return found, np.array(of_spelling, data.smallest_uint(len(found.names) - 1))[rows.spelling]


def make_tree(names, is_tree):
    """The classify.Tree of these names, of which those above others are no leaves."""
    parents = {classify.PATH.join(levels[:end]) for levels in (name.split(classify.PATH) for name in names)
               for end in range(1, len(levels))} if is_tree else ()
    return classify.Tree([name for name in names if name not in parents], is_tree)


def note_odd(rows, tree, label, forms, bad):
    """Note in `bad` what is odd about the names of the categories of a tree: where they are one read as several, or the
    other way round. label [N]: of the rows; forms: the formats.Format of each of their files."""
    note_similar_names(tree, bad)
    firsts = [sources.first_line(path, form.encoding) or "" for path, form in zip(rows.paths, forms, strict=True)]
    separator = forms[0].separator
    if "fasttext" in map(formats.format_of, firsts):
        note_misread_labels(rows, tree.names, label, bad)
    elif tree.levels == 1 and not separator:
        note_paths(tree.names, bad)
    if tree.levels == 1 and separator:
        bad.note(f"--separator {separator!r}", None, "no category has it between two levels, so the tree has one "
                 "level")


def note_similar_names(found, bad):
    """Note in `bad` which categories of one parent in a classify.Tree differ in case, accents or HTML entities only:
    seldom are they meant to be two."""
    plain = {}
    for name in found.names:
        parent, _, own = name.rpartition(classify.PATH) if found.levels > 1 else ("", "", name)
        folded = unicodedata.normalize("NFKD", data.decode_entities(own).casefold())
        folded = "".join(c for c in folded if not unicodedata.combining(c))
        plain.setdefault((parent, " ".join(folded.split())), []).append(name)
    for same in plain.values():
        if len(same) > 1:
            bad.note(f"category {same[0]}", None, f"differs from {same[1]} in case, accents or HTML entities "
                     "only; are they one?")


def note_paths(names, bad):
    """Note in `bad` where flat names look like paths."""
    for sign in SIGNS:
        paths = [name for name in names if sign in name]
        first = {name.split(sign)[0].strip() for name in names}
        if len(names) < NAMES or len(paths) < ALIKE * len(names) or 2 * len(first) >= len(names):
            continue
        # Without its spaces a sign is easier to type, if it is the same sign.
        bare = sign.strip()
        shown = bare if all(name.count(bare) == name.count(sign) for name in names) else sign
        deepest = max(paths, key=lambda name: name.count(sign))
        bad.note(f"category {deepest} ...", None, f"{len(paths) / len(names):.0%} of the names look like paths; "
                 f'--separator "{shown}" reads them as a tree')
        return


def note_misread_labels(rows, names, label, bad):
    """Note in `bad` which labels of fastText files seem joined by commas, or cut at a space."""
    # `__label__a,b` is one label to fastText.
    before = Counter(name.partition(",")[0] for name in names if "," in name)
    for prefix, count in before.most_common(1):
        if count >= GLUED or sum(before.values()) == len(names):
            bad.note(f"category {prefix}", None, f"{count} categories begin with this and a comma, as if several "
                     "labels were joined; keep one label a line")

    # `__label__Home Decor lamp` is a title "Decor lamp" to fastText. Then few words begin all titles of a category,
    # and stand nowhere else.
    lengths = np.concatenate([block.lengths for block in rows.blocks]).astype(np.int64)
    numbers = np.concatenate([block.numbers for block in rows.blocks])
    begun = np.flatnonzero(lengths)
    first = numbers[(np.cumsum(lengths) - lengths)[begun]]
    often = np.bincount(numbers)
    pairs, counts = np.unique(label[begun].astype(np.int64) * len(often) + first, return_counts=True)
    category, word = np.divmod(pairs, len(often))
    exclusive = np.where(counts >= CUT_SHARE * often[word], counts, 0)  # titles that begin with such a word
    words, titles, exclusive = (np.bincount(category, weights, len(names)) for weights in (None, counts, exclusive))
    cut = (titles >= CUT_TITLES) & (words <= titles / 4) & (exclusive >= CUT_SHARE * titles)
    for name in np.array(names, object)[cut]:
        bad.note(f"category {name}", None, "all its titles begin with a few words that stand nowhere else, as if the "
                 "label had been cut at a space; write labels without spaces")
