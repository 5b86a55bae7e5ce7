"""Which titles to label next: from the probabilities of a pool of titles to the few that teach the most.

A title teaches much where its two likeliest categories are nearly as likely (margin sampling: Scheffer, Decomain and
Wrobel 2001, Active Hidden Markov Models for Information Extraction). Taken alone, that rule asks for one title in ten
spellings, so of near-equal titles there is one. How probabilities are made (predict.py) and how a person labels
(labelling.py) do not belong here.
"""
import numpy as np
import pyarrow as pa

import data

# --- knobs ------------------------------------------------------------------------------------------------------------
KEPT, LEAST = 3, 2000  # titles that are kept for each that is wanted, and at least
UNKNOWN = 0.1          # share of the chosen titles of which the classifier knows nothing, at most


class Pool:
    """The most useful of all titles that were added, a part at a time; memory grows with the number wanted alone."""

    def __init__(self, number, labelled):
        """number: of titles that are wanted; labelled: data.keys_of those that have a label."""
        # The largest number stands behind all keys, so that each has a place before the end.
        self.number, self.labelled = number, np.unique(np.append(labelled, np.uint64(2 ** 64 - 1)))
        self.counts = {"titles": 0, "have a label already": 0, "have no word": 0}
        self.kept, self.limit = [], np.inf

    def add(self, titles, **columns):
        """Add titles (list of str), with arrays [N, ...] or Arrow tables that are handed back for those chosen:
        `probability` [N, K] of the likeliest categories, two or more, 0 where nothing of the title is known, and any
        others."""
        margin = columns["probability"][:, 0] - columns["probability"][:, 1]
        _, words, lengths = tokens = data.tokenize_list(titles)
        keys = data.title_keys(data.text_keys(words)[tokens[0]], lengths)
        has_label, has_words = self.labelled[np.searchsorted(self.labelled, keys)] == keys, with_words(*tokens)
        for name, times in (("titles", len(titles)), ("have a label already", has_label.sum()),
                            ("have no word", (~has_words & ~has_label).sum())):
            self.counts[name] += int(times)

        # Few titles of a part are as useful as those that were found before.
        chosen = np.flatnonzero(~has_label & has_words & (margin < self.limit))
        columns |= {"margin": margin, "title": np.array(titles, object)}
        self.kept.append({name: taken(values, chosen) for name, values in columns.items()})
        wanted = max(LEAST, KEPT * self.number)
        if sum(len(part["margin"]) for part in self.kept) > 2 * wanted:
            self.kept = [self.best(wanted)]
            if len(self.kept[0]["margin"]) == wanted:
                self.limit = self.kept[0]["margin"][-1]

    def best(self, number):
        """The columns of the rows with the smallest margins, these first, so many at most; of near-equal titles one."""
        columns = {name: joined([part[name] for part in self.kept]) for name in self.kept[0]}
        order = np.argsort(columns["margin"], kind="stable")
        codes, words, lengths = data.tokenize_list(columns["title"][order].tolist())
        sums, title = data.near_sums(data.text_keys(words)[codes], lengths)
        of_title = np.split(sums[np.argsort(title, kind="stable")], np.cumsum(np.bincount(title)))[:-1]

        seen, chosen, unknown = set(), [], max(1, int(UNKNOWN * number))
        for i, mine in zip(order.tolist(), map(np.ndarray.tolist, of_title), strict=True):
            is_unknown = columns["probability"][i, 0] == 0
            if seen.isdisjoint(mine) and (not is_unknown or unknown):
                seen.update(mine)
                chosen.append(i)
                unknown -= is_unknown
            if len(chosen) == number:
                break
        return {name: taken(values, np.array(chosen, int)) for name, values in columns.items()}

    def chosen(self):
        """The columns of the titles to label, the most useful first, with `title` and `margin`; none where no title was
        added."""
        return self.best(self.number) if self.kept else {}


def with_words(codes, words, lengths):
    """Whether titles have a word [N] bool, as from data.tokenize_list: one that is not between two parts of a title."""
    is_word = np.array([word != "" for word in words], bool)
    title = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(title[is_word[codes]] if len(codes) else title, minlength=len(lengths)) > 0


def taken(values, rows):
    """These rows of an array or an Arrow table."""
    return values.take(rows) if isinstance(values, pa.Table) else values[rows]


def joined(parts):
    return pa.concat_tables(parts) if isinstance(parts[0], pa.Table) else np.concatenate(parts)
