"""Have titles changed? New titles, without labels, against the validation rows of a run.

Tests tell whether there is a difference; the mix of categories is estimated where it has changed; and from both comes
the accuracy to expect. All rests on a run's probabilities and the validation rows that its checkpoint keeps; words are
compared where the validation titles are there. Reading files (evaluate.py), what a probability means (calibration.py)
and pages (page.py) do not belong here.
"""
import collections

import numpy as np

import classify
import data
from titles import calibration

# --- knobs ------------------------------------------------------------------------------------------------------------
SAMPLE = 10_000      # titles of a file, drawn at random, that are looked at
FEW = 50             # fewer different titles tell nothing
CELLS = 1 << 24      # probabilities that are held at a time
CERTAINTY = 0.01     # the chance that titles of the same kind are called changed, all tests together
LEAST = {"mix": 0.1, "sure": 0.01, "words": 0.02, "kind": 0.05}  # effects that are worth a word
P = CERTAINTY / len(LEAST)  # of each test, as of several the least counts (Bonferroni)
POOLED = 5           # categories expected less often than this are counted together
SPREAD = 1.0         # how far shares of categories may move, times how far those of the predicted ones have
RATIOS = (0.05, 20)  # bounds of how much more frequent a category may become
TAUGHT, FOLDS = 2000, 5  # titles of either side that the classifier of old and new learns from, in so many folds
CHANGES, WORDS = 10, 20  # categories and words that are shown

# Of the result of `compare`, beside what stands in it of the run.
KEYS = {
    "verdict": "what has changed, in a sentence", "changed": "of mix, sure, words and kind those that have",
    "titles": "how many there are", "sampled": "how many of them, drawn at random, were looked at",
    "trained_titles": "of these have trained the run, and are left out of all that follows",
    "different_titles": "are left, each counted once; tests count what comes again as little as it tells",
    "unknown_titles": "have no word or n-gram that training has seen",
    "expected_accuracy": "share of right categories to expect, under the estimated mix where it has changed",
    "expected_accuracy_interval": "95 % interval, of further titles and of what validation rows do not tell",
    "mean_probability": "of the likeliest categories", "validation": "rows, accuracy and mean probability of those",
    "promises": "{precision: share of the titles that it answers, and of the validation rows; None where not promised}",
    "mix": "test; whether it has changed; the largest changes of categories and, of a tree, of its top level: "
           "[name, share in training, share estimated here]",
    "sure": "test of the probabilities", "words": "test of titles with a word that is not in the vocabulary; share of "
    "such words, the most frequent, and the same of validation titles",
    "kind": "test of a classifier that tells validation titles from these: its AUC, and words that speak for either",
    "left_out": "what was not compared, and why"}


class NoTitles(ValueError):
    """No title is left to compare."""


# --- which titles -----------------------------------------------------------------------------------------------------

def sampled(blocks):
    """(classify.Rows, how many there were): SAMPLE rows at most, drawn at random from blocks of classify.Rows, in
    order. The same rows of the same blocks."""
    draw, titles, values, chances, number = np.random.default_rng(0), [], [], np.zeros(0), 0
    for rows in blocks:
        number += len(rows.titles)
        titles += rows.titles
        values.append(rows.values)
        chances = np.append(chances, draw.random(len(rows.titles)))
        if len(titles) > 2 * SAMPLE:
            titles, values, chances = smallest(titles, values, chances)
    titles, values, _ = smallest(titles, values, chances)
    return classify.Rows(titles, values[0]), number


def smallest(titles, values, chances):
    """The rows with the SAMPLE smallest chances, in order."""
    kept = np.sort(np.argsort(chances, kind="stable")[:SAMPLE])
    return [titles[i] for i in kept], [np.concatenate(values or [np.zeros((0, 0), np.int32)])[kept]], chances[kept]


# --- tests ------------------------------------------------------------------------------------------------------------
# Each gives (p, effect): the probability of such a difference where there is none, and how large it is.

def categories_test(old, new, worth=None):
    """Of predicted categories old [n] and new [N], numbers, which are `worth` so many: chi-square test, rare ones
    counted together; the effect is the root mean square by which a share differs, as a part of it, less what chance
    makes (Cohen's w)."""
    from scipy.stats import chi2_contingency
    worth = worth or len(new)
    size, both = min(len(old), worth) / (len(old) + worth), np.concatenate([old, new])
    counts = np.stack([np.bincount(side, minlength=both.max() + 1) * weight
                       for side, weight in ((old, 1.0), (new, worth / len(new)))])
    rare = counts.sum(0) * size < POOLED
    counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], 1)
    counts = counts[:, counts.sum(0) > 0]
    if counts.shape[1] < 2:
        return 1.0, 0.0
    found = chi2_contingency(counts, correction=False)
    harmonic = len(old) * worth / (len(old) + worth)
    return float(found.pvalue), float(np.sqrt(max(0, found.statistic - found.dof) / harmonic))


def probability_test(old, new):
    """Of probabilities old [n] and new [N]: Kolmogorov-Smirnov; the effect is the difference of their means."""
    from scipy.stats import ks_2samp
    return float(ks_2samp(old, new, method="asymp").pvalue), float(new.mean() - old.mean())


def share_test(old, new):
    """Of old [n] and new [N], bool: Fisher's exact test; the effect is the difference of the shares."""
    from scipy.stats import fisher_exact
    counts = [[int(side.sum()), int((~side).sum())] for side in (old, new)]
    return float(fisher_exact(counts)[1]), float(new.mean() - old.mean())


def kind_test(old, new):
    """A classifier of words is to tell old titles from new ones (lists of str), the classifier two-sample test of
    Lopez-Paz and Oquab 2017, in folds: (p, AUC - 0.5, words that speak for new ones, and for old ones, the most telling
    first)."""
    from scipy.stats import mannwhitneyu, norm
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    draw = np.random.default_rng(0)
    titles = [[side[i] for i in draw.permutation(len(side))[:TAUGHT]] for side in (old, new)]
    labels, fold = (np.concatenate([make(len(side)) for side in titles]) for make in (
        np.ones, lambda size: np.arange(size) % FOLDS))
    labels[:len(titles[0])] = 0
    words = CountVectorizer(analyzer=lambda title: filter(None, data.tokenize(title)), binary=True, min_df=2)
    try:
        rows = words.fit_transform([*titles[0], *titles[1]])
    except ValueError:  # no word stands in two titles
        return 1.0, 0.0, [], []

    def taught(chosen):
        return LogisticRegression(C=0.1, max_iter=500, class_weight="balanced").fit(rows[chosen], labels[chosen])

    # In each fold a rank test of titles that it has not learned; by Stouffer's rule they are one.
    deviates, areas = [], []
    for one in range(FOLDS):
        scores, is_new = taught(fold != one).decision_function(rows[fold == one]), labels[fold == one] == 1
        ranks = mannwhitneyu(scores[is_new], scores[~is_new], alternative="greater", method="asymptotic")
        deviates.append(norm.isf(np.clip(ranks.pvalue, 1e-300, 1 - 1e-12)))
        areas.append(ranks.statistic / is_new.sum() / (~is_new).sum())
    weights, names = taught(slice(None)).coef_[0], words.get_feature_names_out()
    order = np.argsort(-weights, kind="stable")
    telling = [[str(names[i]) for i in side[:WORDS] if sign * weights[i] > 0]
               for side, sign in ((order, 1), (order[::-1], -1))]
    return float(norm.sf(np.sum(deviates) / FOLDS ** 0.5)), float(np.mean(areas) - 0.5), *telling


def repeated(titles):
    """(the number of the first row of each distinct title, how many rows all are worth): as many as rows that count so
    unequally (Kish 1965), for a title that comes again tells nothing new."""
    _, first, times = np.unique(data.keys_of(titles), return_index=True, return_counts=True)
    return np.sort(first), float(times.sum() ** 2 / max(1, (times ** 2).sum()))


def is_changed(name, p, effect):
    return p < P and abs(effect) >= LEAST[name]


# --- the mix ----------------------------------------------------------------------------------------------------------

def log_ratios(kept, labels, mean, titles, spread):
    """[C] float32, logarithms of how much more frequent each category is than among labelled rows: by which mix of
    these their mean probabilities become those of new titles.

    kept [n, C]: probabilities of the rows with these labels [n]; mean [C]: those of so many new titles; spread: how far
    ratios may be from 1, the standard deviation of their prior. As the rows of each category are taken with the
    probabilities that they really get, these need not be calibrated, unlike in EM on them (Saerens et al. 2002), which
    ran away from us; the penalty is that of Azizzadenesheli et al. 2019, on the equations of Lipton et al. 2018 with
    probabilities in place of predictions."""
    from scipy.sparse.linalg import LinearOperator, lsqr
    rows, categories = kept.shape
    own = kept.mean(0, dtype=np.float64)
    # Each equation by the standard error of its counts, a tenth of a row added.
    factor = 1 / np.sqrt((own + 0.1 / categories) * (1 / rows + 1 / titles))

    def apart(change):
        return factor * ((change[labels] / rows).astype(np.float32) @ kept)

    def back(errors):
        return np.bincount(labels, kept @ (factor * errors).astype(np.float32) / rows, categories)

    equations = LinearOperator((categories, categories), matvec=apart, rmatvec=back, dtype=np.float64)
    change = lsqr(equations, factor * (mean - own), damp=1 / spread, atol=1e-5, btol=1e-5, iter_lim=300)[0]
    return np.log(np.clip(1 + change, *RATIOS)).astype(np.float32)


def mix(classifier, rows, predicted):
    """((p, effect) of the test of categories, log_ratios or None where they have not changed): of classify.Rows, and
    the categories [N] that a predict.Classifier predicts of them under the prior of training, which it must have."""
    kept = classifier.combined_kept()
    worth = repeated(rows.titles)[1]
    found = categories_test(kept.argmax(1), predicted, worth)
    if not is_changed("mix", *found):
        return found, None
    old, chosen = validation_chances(classifier)
    total = sum(p.sum(0, dtype=np.float64) for p in in_parts(classifier, rows))
    return found, log_ratios(old, classifier.validation[0]["labels"][chosen], total / len(predicted), worth,
                             SPREAD * found[1])


def validation_chances(classifier):
    """(probabilities of all categories [n, C] of validation rows, which of these, a slice): of many categories fewer
    rows must do."""
    kept = classifier.combined_kept()
    chosen = slice(None, None, max(1, -(-kept.size // (2 * CELLS))))
    return np.asarray(calibration.smoothed(kept[chosen], classifier.smoothing)), chosen


def in_parts(classifier, rows):
    """The probabilities of classify.Rows, [B, C] of some rows at a time."""
    for part in data.blocks(len(rows.titles), max(1, CELLS // classifier.tree.leaves)):
        yield classifier.probabilities(rows.part(part))


def untrained(classifier, rows):
    """The classify.Rows whose titles have not trained the run."""
    kept = np.flatnonzero(~classifier.has_trained_on(data.keys_of(rows.titles)))
    return classify.Rows([rows.titles[i] for i in kept], rows.values[kept])


def estimated(classifier, rows):
    """(the Classifier that takes categories to be as frequent as in these classify.Rows, what is to be said of it):
    itself, under the prior of training, where they have not changed or too few titles tell it."""
    rows = untrained(classifier, rows)
    distinct = len(repeated(rows.titles)[0])
    if distinct < FEW:
        return classifier, (f"{distinct:,} different titles that have not trained the run do not tell their mix of "
                            "categories: predicts for the training's")
    (p, effect), ratios = mix(classifier, rows, classifier.likeliest(rows, 1)[0][:, 0])
    if ratios is None:
        return classifier, ("the mix of categories has not changed (shares of predicted ones differ by "
                            f"{effect:.0%}, p = {p:.2g}): predicts for the training's")
    training, here = shares(classifier, ratios)
    i = np.abs(here - training).argmax()
    return classifier.under_mix(ratios), (
        f"the mix of categories has changed (shares of predicted ones differ by {effect:.0%}, p = {p:.2g}): predicts "
        f"for the one of {len(rows.titles):,} titles, where {classifier.labels[i]} is {here[i]:.1%}, in training "
        f"{training[i]:.1%}")


def shares(classifier, ratios):
    """The shares of categories in training [C] and, by `log_ratios`, in new titles [C]."""
    training = np.exp(calibration.log_prior(classifier.config["training_rows"]).astype(np.float64))
    here = training * np.exp(ratios.astype(np.float64))
    return training, here / here.sum()


def largest_changes(names, training, here):
    return [[names[i], float(training[i]), float(here[i])] for i in np.argsort(-np.abs(here - training), kind="stable")[
        :CHANGES]]


# --- what to expect ---------------------------------------------------------------------------------------------------

def interval(accuracy, titles, errors, weights=None, moved=0.0):
    """95 % interval of an accuracy that is expected of so many titles: of their labels, which are chance; of
    probabilities, whose mean validation rows tell by their errors [n], right less probability, with weights [n]; and of
    a change of mix, which is known no better than by how much it has `moved` the accuracy."""
    weights = np.ones(len(errors)) if weights is None else weights
    weights = weights / weights.sum()
    variance = accuracy * (1 - accuracy) / titles + moved ** 2
    variance += (weights ** 2 * (errors - (weights * errors).sum()) ** 2).sum()
    half = 1.96 * variance ** 0.5
    return [float(max(0, accuracy - half)), float(min(1, accuracy + half))]


def expected(classifier, rows, predicted, chance, ratios):
    """(accuracy to expect, its interval) of what a Classifier predicts, with its probabilities, of classify.Rows;
    ratios as from `mix`."""
    chances, right, *_ = classifier.validated
    usual, right, worth = float(chance.mean(dtype=np.float64)), right[:, -1], repeated(rows.titles)[1]
    if ratios is None:
        return usual, interval(usual, worth, right - chances[:, -1])
    # Under the new mix: the mean probability of what is predicted, and by how much validation rows say it is off.
    training, factor = classifier.under_training_prior, np.exp(ratios)

    def shifted(p, categories):
        return p[np.arange(len(p)), categories] * factor[categories] / (p @ factor)

    start, found = 0, []
    for p in in_parts(training, rows):
        found.append(shifted(p, predicted[start:start + len(p)]))
        start += len(p)
    old, chosen = validation_chances(training)
    old, right = shifted(old, classifier.combined_kept()[chosen].argmax(1)), right[chosen]
    weights = factor[classifier.validation[0]["labels"][chosen]]
    accuracy = float(np.where(chance > 0, np.concatenate(found), 0).mean() + np.average(right - old, weights=weights))
    accuracy = min(1.0, max(0.0, accuracy))
    return accuracy, interval(accuracy, worth, right - old, weights, accuracy - usual)


def promises(classifier, rows):
    """{precision: {"answered", "validation"}}: the shares of classify.Rows and of validation rows that get an answer
    where a precision is promised, None where it cannot be."""
    promising, found = classifier.promising, {}
    is_tree = promising.tree.levels > 1
    chances, _, path, _ = promising.validated
    sides = (promising.climb(rows, 1)[2], path) if is_tree else (promising.likeliest(rows, 1)[1], chances[:, -1:])
    for precision in calibration.PRECISIONS:
        thresholds = promising.rule(precision)[0].thresholds
        here, old = (float((classify.deepest(side, thresholds) >= 0).mean()) for side in sides)
        kept = np.isfinite(thresholds).any()
        found[f"{precision:.2f}"] = {"answered": here if kept else None, "validation": old if kept else None}
    return found


# --- words ------------------------------------------------------------------------------------------------------------

def unseen(classifier, titles):
    """(whether each title has a word that is not in the vocabulary [N], {"share" of such words, the "most_frequent":
    [[word, times]]})."""
    counted, words, has = collections.Counter(), 0, np.zeros(len(titles), bool)
    for i, title in enumerate(titles):
        found = [*filter(None, data.tokenize(title))]
        new = [word for word in found if word not in classifier.index]
        words, has[i] = words + len(found), bool(new)
        counted.update(new)
    frequent = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:WORDS]
    return has, {"share": counted.total() / max(1, words), "most_frequent": [[*item] for item in frequent]}


def compare_words(classifier, titles, old):
    """What `compare` says of `words` and `kind`: lists of str, old None where the validation titles are not there."""
    has, found = unseen(classifier, titles)
    words = {"unseen_words": found["share"], "titles_with_unseen": float(has.mean()),
             "most_frequent": found["most_frequent"]}
    if old is None:
        return {"words": words}
    # Each title once, for that it comes again tells nothing of its words.
    sides = [[*dict.fromkeys(side)] for side in (old, titles)]
    (p, effect), (had, before) = share_test(*(unseen(classifier, side)[0] for side in sides)), unseen(classifier, old)
    words |= {"p": p, "effect": effect, "validation": {
        "unseen_words": before["share"], "titles_with_unseen": float(had.mean())}}
    p, effect, new, olds = kind_test(*sides)
    return {"words": words, "kind": {"p": p, "effect": effect, "auc": 0.5 + effect, "new": new, "old": olds}}


# --- all of it --------------------------------------------------------------------------------------------------------

def compare(classifier, rows, titles, old=None, why="the validation titles were not given"):
    """What new titles are like, beside the validation rows of a predict.Classifier: a dictionary of KEYS, for JSON.
    rows: classify.Rows of them, as from `sampled`; titles: how many there are; old: the validation titles (list of str)
    or None, and `why`. Raises NoTitles where none is left that has not trained the run."""
    new = untrained(classifier, rows)
    if not new.titles:
        raise NoTitles(f"no titles that have not trained {classifier.folder.name}")
    predicted, chance = (values[:, 0] for values in classifier.likeliest(new, 1))
    training = classifier if classifier.prior == "training" else classifier.under_training_prior
    test, ratios = mix(training, new, predicted if training is classifier else training.likeliest(new, 1)[0][:, 0])
    first, chances = repeated(new.titles)[0], classifier.validated[0][:, -1]
    is_few = len(first) < FEW
    ratios = None if is_few else ratios
    accuracy, bounds = expected(classifier, new, predicted, chance, ratios)
    before, here = shares(classifier, np.zeros(1, np.float32) if ratios is None else ratios)
    found = {
        "run": classifier.folder.name, "checkpoint": classifier.name, "prior": classifier.prior,
        "synthetic": classifier.config["synthetic"], "titles": titles, "sampled": len(rows.titles),
        "trained_titles": len(rows.titles) - len(new.titles), "different_titles": len(first),
        "unknown_titles": int((chance == 0).sum()),
        "expected_accuracy": accuracy, "expected_accuracy_interval": bounds,
        "mean_probability": float(chance.mean(dtype=np.float64)),
        "validation": {"rows": len(chances), "accuracy": float(classifier.validated[1][:, -1].mean()),
                       "mean_probability": float(chances.mean(dtype=np.float64))},
        "promises": promises(classifier, new),
        "mix": {"p": test[0], "effect": test[1], "is_estimated": ratios is not None,
                "categories": [] if ratios is None else largest_changes(classifier.labels, before, here)},
        "sure": dict(zip(("p", "effect"), probability_test(chances, chance[first]), strict=True))}
    if ratios is not None and classifier.tree.levels > 1:
        nodes, first = classifier.tree.at_level(1)
        found["mix"]["top_level"] = largest_changes([classifier.tree.names[node] for node in nodes], *(
            np.add.reduceat(of, first) for of in (before, here)))
    if is_few or (old is not None and len({*old}) < FEW):
        old, why = None, f"{len(first):,} different titles are too few" if is_few else why
    found |= compare_words(classifier, new.titles, old)
    found["left_out"] = None if old is not None else why
    found["changed"] = [] if is_few else [name for name in LEAST if "p" in found.get(name, ()) and is_changed(
        name, found[name]["p"], found[name]["effect"])]
    return {"verdict": verdict(found)} | found


def metrics(found):
    """{name: number} of what MLflow gets of the result of `compare`."""
    return {name: found[name] for name in ("expected_accuracy", "mean_probability", "titles")} | {
        "unseen_words": found["words"]["unseen_words"], "tests_changed": len(found["changed"])} | {
        f"answered_{precision[2:]}": row["answered"] for precision, row in found["promises"].items()}


def verdict(found):
    """What has changed, in a sentence."""
    number = found["different_titles"]
    if number < FEW:
        return f"{number:,} different titles are too few to tell whether they are like the training's: it takes {FEW}"
    if not found["changed"]:
        return (f"these titles are like the training's: no test tells {number:,} different ones from "
                f"{found['validation']['rows']:,} validation rows"
                + (" by mix or probability" if found["left_out"] else ""))
    said = {"mix": lambda one: f"the mix of categories (shares of predicted ones differ by {one['effect']:.0%})",
            "sure": lambda one: f"how sure predictions are (on average {found['mean_probability']:.1%}, of validation "
                                f"rows {found['validation']['mean_probability']:.1%})",
            "words": lambda one: f"words ({one['titles_with_unseen']:.1%} of the titles have one that is not in the "
                                 f"vocabulary, of validation titles {one['validation']['titles_with_unseen']:.1%})",
            "kind": lambda one: f"their wording (a classifier tells them from validation titles with an AUC of "
                                f"{one['auc']:.2f})"}
    # Other categories have other words.
    parts = [said[name](found[name]) for name in found["changed"]]
    is_worded = {"words", "kind"} & ({*found["changed"]} - ({"kind"} if "mix" in found["changed"] else set()))
    return ("these titles are not like the training's, for these have changed: " + "; ".join(parts)
            + ". Of titles that are worded otherwise fewer may be right than their probabilities say" * bool(is_worded))


def of_report(classifier, rows, predicted, chance):
    """Which of `mix` and `sure` have changed in rows of a report that a Classifier predicts so, [N] each, those that
    trained it left out; None where they are too few, or there are no validation rows."""
    new = np.flatnonzero(~rows.trained)
    first, worth = repeated([rows.inputs.titles[i] for i in new])
    if len(first) < FEW or not classifier.is_calibrated:
        return None
    found = {"mix": categories_test(classifier.combined_kept().argmax(1), predicted[new], worth),
             "sure": probability_test(classifier.validated[0][:, -1], chance[new[first]])}
    return [name for name, of in found.items() if is_changed(name, *of)]
