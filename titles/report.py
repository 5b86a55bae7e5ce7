"""From labels and predictions to a report: scores, tables and figures, and the files that hold them.

Reading checkpoints, data and flags, and classifying (evaluate.py, predict.py), and report.html (page.py) do not belong
here.
"""
import itertools
import re
import warnings
from typing import NamedTuple

import numpy as np

import classify
from titles import calibration, change, files, measures, paired, tree

# --- knobs ------------------------------------------------------------------------------------------------------------
CONFUSIONS = 20       # pairs of categories that the report shows
WORST = 5             # categories that the figure of the recall names
CONFUSED = ("category", "predicted", "rows", "share_of_category", "examples")  # columns that are shown of these
NAME, SHOWN = 30, 60  # characters of a name in a figure, and of one that is printed
SHOWN_WORDS = 10      # of new titles that are printed
FILES = ("report.json", "report.html", "predictions.csv", "categories.csv", "confusions.csv", "suspects.csv",
         "unknown.csv", "values.csv", "nodes.csv", "against.csv", "recall.png", "confusions.png", "reliability.png",
         "answered.png")  # of a report, all replaced
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

# The keys of report.json: scores, which are also of every slice, what is to be noted, and the rest.
SCORES = {"balanced_accuracy": "balanced accuracy: mean recall of the categories",
          "accuracy": "accuracy: share of rows that are right",
          "top5_accuracy": "top-5 accuracy: share of rows whose category is among the five likeliest",
          "macro_f1": "macro-F1: mean F1 of the categories",
          "loss": "loss: cross-entropy in nats",
          "calibrated_loss": "calibrated loss: the same, of the probabilities that are given",
          "brier": "Brier score: squared error of the probabilities, summed over the categories",
          "expected_calibration_error": "calibration error: how far probabilities are from shares that are right"}
NOTES = {"unknown_category_rows": "have a category that the run does not know, and count as wrong",
         "unknown_title_rows": "have no word or n-gram that training has seen",
         "trained_rows": "have titles that trained the run",
         "parent_rows": "know only a parent of their category; they count at the levels that they know"}
KEYS = SCORES | NOTES | {
    "rows": "how many", "balanced_accuracy_interval": "95 % bootstrap interval",
    "slices": "these scores by language, of reliable labels, of titles that trained no run",
    "run": "name of the first run", "checkpoint": "its checkpoint, and those of other runs", "step": "of the first",
    "members": "of several runs: step, weight and temperature of each",
    "split": "test, valid, train, or the name of a file", "file": "its path",
    "expected_accuracy": "mean probability of the predictions: the accuracy that they promised",
    "expected_accuracy_interval": "95 % interval of that, of rows like the validation rows; None of no such rows",
    "changed": "of mix and sure what differs from the validation rows (see --compare); None where rows are few",
    "calibration_rows": "validation rows that say what probabilities mean; 0: nothing says it, and nothing is expected",
    "data": "files of the rows, folder and fingerprint of a split", "synthetic": "whether rules made the data",
    "prior": "that predictions assume", "temperature": "that divides the logits of all runs together",
    "smoothing": "part of the probability that is spread evenly", "promising_prior": "that --precision assumes",
    "thresholds": "{precision: threshold that promises it, coverage and precision here}; of a tree a threshold for "
                  "each level, the shares of rows that get a node and a leaf, their precision, and the first of leaves "
                  "alone",
    "columns": "of a run that reads columns: accuracies with all of them, without each, and without any",
    "against": "which is better, these runs or the `other` (see paired.KEYS), also of the slices",
    "levels": "of a tree, from the top: nodes, rows that know theirs, accuracy and balanced accuracy",
    "mistakes": "of a tree: share that are right one level up, that are wrong at the top, and edges from the true "
                "category to the predicted one"}


class Labelled(NamedTuple):
    """Labelled rows, N of them, which a report is on."""
    inputs: classify.Rows     # titles, and what else a model reads
    labels: np.ndarray    # [N] numbers of `names`
    names: list           # nodes of the run's tree and, behind them, categories that it does not know
    tree: classify.Tree   # whose leaves the categories are
    trained: np.ndarray   # [N] bool, whether a title has trained the run
    file: list            # where each row comes from, ...
    line: np.ndarray      # ... and [N] its line there
    split: str            # test, valid, train, or the name of a file
    source: dict          # `data` of report.json
    id: list = None       # what a column of this name says of each row
    language: np.ndarray = None  # [N] numbers of `languages`
    languages: list = None
    reliable: np.ndarray = None  # [N] bool
    path: str = None      # of a file
    prepared: dict = None  # of a split, as from data.described

    @property
    def unknown(self):
        """[N] bool, whether the run does not know the category."""
        return self.labels >= len(self.tree.names)

    @property
    def has_category(self):
        """[N] bool, whether a row knows its category, and not only a parent of it."""
        return (self.labels < self.tree.leaves) | self.unknown

    def part(self, mask):
        """The rows of a mask [N] bool, all of them if it has all."""
        if mask.all():
            return self
        chosen = np.flatnonzero(mask)

        def of(values):
            return values if values is None else (
                values[chosen] if isinstance(values, np.ndarray) else [values[i] for i in chosen])

        return self._replace(inputs=classify.Rows(of(self.inputs.titles), of(self.inputs.values)), **{
            name: of(getattr(self, name)) for name in ("labels", "trained", "file", "line", "id", "language",
                                                       "reliable")})


# --- scores -----------------------------------------------------------------------------------------------------------

def summarize(labels, result):
    """The SCORES of some rows: labels [N], result as from predict.score. The losses and the Brier score (Brier
    1950, summed over the categories) are means over the rows that have them, whose category is known."""
    predictions = result["prediction"]
    known = np.isfinite(result["brier"])
    means = {name: float(result[name][known].mean(dtype=np.float64)) if known.any() else None
             for name in ("loss", "calibrated_loss", "brier")}
    return {
        "rows": len(labels), **means, "accuracy": float((predictions == labels).mean()),
        "balanced_accuracy": measures.balanced_accuracy(labels, predictions),
        "balanced_accuracy_interval": measures.recall_interval(*measures.hits(labels, predictions)),
        "macro_f1": measures.macro_f1(labels, predictions),
        "top5_accuracy": float((result["rank"] < 5).mean()),
        "expected_calibration_error": calibration.expected_error(result["probability"], predictions == labels)}


def promises(threshold_of, probability, right, precisions=calibration.PRECISIONS):
    """{precision: {"threshold", and here "coverage" and "precision"}} for some precisions; a threshold is what
    threshold_of(precision) promises, or None where that is infinite. probability [N], right [N] bool."""
    found = {}
    for precision in precisions:
        threshold = threshold_of(precision)
        passed = probability >= threshold
        # Text, for JSON has no numbers as keys, and no infinity.
        found[f"{precision:.2f}"] = {
            "threshold": threshold if np.isfinite(threshold) else None, "coverage": float(passed.mean()),
            "precision": float(right[passed].mean()) if passed.any() else None}
    return found


def slices(rows):
    """Named subsets of rows: {"language spanish": [N] bool, ..., "reliable": [N] bool}; none that has all rows."""
    masks = {f"language {name}": rows.language == i for i, name in enumerate(rows.languages or [])}
    if rows.reliable is not None:
        masks["reliable"] = rows.reliable
    if rows.trained.any():
        masks["new titles"] = ~rows.trained
    # Of no rows there is no score.
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def confusions(labels, predictions):
    """The most frequent wrong answers, most frequent first: true [K], predicted [K], how often [K]."""
    wrong = labels != predictions
    # Pairs come out sorted, and a stable sort keeps that order among equals: the report is the same every time.
    pairs, count = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-count, kind="stable")[:CONFUSIONS]
    return *pairs[:, order], count[order]


def score_rows(classifier, rows):
    """What Classifier.score says of Labelled rows, with what is promised; where the run reads columns also predictions
    without each of them, and of `titles alone`, as `without NAME`. Rows whose category the run does not
    know are wrong, and have no loss."""
    result, unknown = classifier.score(rows.inputs, np.where(rows.unknown, 0, rows.labels), True), rows.unknown
    result["rank"][unknown] = np.iinfo(np.int32).max
    for name in ("loss", "calibrated_loss", "brier"):
        result[name][unknown] = np.nan

    # What the columns are worth: the same rows once more without each, and without any.
    names = [column.name for column in classifier.columns]
    left_out = {f"without {name}": [i] for i, name in enumerate(names) if len(names) > 1}
    left_out["titles alone"] = [*range(len(names))]
    for name, columns in left_out.items() if rows.inputs.values.any() else ():
        values = rows.inputs.values.copy()
        values[:, columns] = 0
        result[name] = classifier.likeliest(classify.Rows(rows.inputs.titles, values), 1)[0][:, 0]
    return result


def worth(rows, result):
    """What the columns of Labelled rows are worth: {"with all columns", "without brand", ..., "titles alone":
    accuracies}; nothing where none is read."""
    found = {"with all columns": result["prediction"]} | {
        name: values for name, values in result.items() if name == "titles alone" or name.startswith("without ")}
    return {name: {"accuracy": float((predictions == rows.labels).mean()),
                   "balanced_accuracy": measures.balanced_accuracy(rows.labels, predictions)}
            for name, predictions in found.items()} if len(found) > 1 else {}


def worst_values(classifier, rows, result):
    """The values of columns with mistakes, most first: {"column", "value", "rows", "wrong", "share_wrong"}."""
    wrong, found = rows.labels != result["prediction"], []
    for column, ids in zip(classifier.columns, rows.inputs.values.T, strict=True):
        size, mistakes = np.bincount(ids), np.bincount(ids, wrong).astype(int)
        found += [(column.name, column.text(value), int(size[value]), int(mistakes[value]))
                  for value in np.flatnonzero(mistakes).tolist() if value]
    found = sorted(found, key=lambda row: -row[3])
    names, values, size, mistakes = zip(*found, strict=True) if found else ([], [], [], [])
    return {"column": [*names], "value": [*values], "rows": [*size], "wrong": [*mistakes],
            "share_wrong": [n / of for n, of in zip(mistakes, size, strict=True)]}


def make_scores(classifier, rows, result):
    """The content of report.json, see KEYS, for Labelled rows and the result of `score_rows`."""
    promising = classifier.promising
    scores = {"run": classifier.folder.name, "checkpoint": classifier.name, "step": classifier.steps[0],
              "split": rows.split, "data": rows.source, "prior": classifier.prior,
              "synthetic": classifier.config["synthetic"], "temperature": float(1 / classifier.factors.sum()),
              "smoothing": float(classifier.smoothing)} | summarize(rows.labels, result)
    if rows.path:
        scores["file"] = rows.path
    if len(classifier.members) > 1:
        scores["members"] = {
            f"{folder.name}/{which}": {"step": step, "weight": float(weight), "temperature": float(temperature)}
            for (folder, which), step, weight, temperature in zip(
                classifier.checkpoints, classifier.steps, classifier.weights, classifier.temperatures, strict=True)}

    # What probabilities promised, and whether these rows are like those that they were calibrated on.
    chances, was_right = (values[:, -1] for values in classifier.validated[:2])
    expected = float(result["probability"].mean(dtype=np.float64)) if len(chances) else None
    scores |= {"calibration_rows": len(chances), "expected_accuracy": expected,
               "expected_accuracy_interval": change.interval(
                   expected, len(rows.labels), was_right - chances) if len(chances) else None,
               "changed": change.of_report(classifier, rows, result["prediction"], result["probability"])}

    # What thresholds from validation rows give here, and the scores of every slice.
    right, columns = result["promised_prediction"] == rows.labels, worth(rows, result)
    return scores | {
        "unknown_category_rows": int(rows.unknown.sum()),
        "unknown_title_rows": int((~result["known"]).sum()), "trained_rows": int(rows.trained.sum()),
        "parent_rows": 0, "promising_prior": promising.prior,
        "thresholds": promises(promising.threshold, result["promised_probability"], right),
        "slices": {name: summarize(rows.labels[mask], {key: values[mask] for key, values in result.items()})
                   for name, mask in slices(rows).items()}} | ({"columns": columns} if columns else {})


# --- figures ----------------------------------------------------------------------------------------------------------

def new_figure(width, height):
    """A figure in which any text stands as it is: two dollar signs are no formula."""
    # Without pyplot, which would keep every figure in memory and may look for a display.
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams["text.parse_math"] = False
    return Figure((width, height), layout="constrained")


def plain(text, limit, end=0):
    """A text as it can be shown: one line, cut but for so many characters of its end, a mark for characters that cannot
    be seen or turn others around."""
    # What lies far from both ends is not looked at: a title may have a million characters.
    words = " ".join((text if len(text) <= 8 * limit else text[:4 * limit] + text[-4 * limit:]).split())
    if len(words) > limit:
        words = f"{words[:limit - 1 - end]}…{words[len(words) - end:]}"
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", words)


def plain_name(name, limit):
    """The name of a category as it can be shown: cut in its middle, for the end of a path tells most."""
    return plain(name, limit, limit // 2)


def recall_figure(categories, title):
    """Recall of each category over its number of training rows, as a larger dot where more rows tell it; the worst
    have a number, an interval and a name."""
    figure = new_figure(9, 4.5)
    axes, order = figure.subplots(), measures.worst_first(categories)
    recall, support = categories["recall"], categories["support"]
    # A logarithmic axis has no 0, so categories without training rows stand at a half.
    size = np.maximum(categories["training_rows"], 0.5)
    axes.scatter(size[order], recall[order], s=4 * support[order] ** 0.45, alpha=0.5, linewidths=0)
    # From a power of ten to another, for these alone have numbers, which are not written as formulas.
    low = np.floor(np.log10(size[order].min()))
    high = max(low + 1, np.ceil(np.log10(size[order].max())))
    axes.set(xscale="log", xlabel="training rows of the category", ylabel="recall", title=title, ylim=(-0.03, 1.03),
             xlim=(0.8 * 10 ** low, 1.25 * 10 ** high))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)

    # Names stand beside the figure, where they hide no dots, and numbers at the upper ends of intervals.
    named = []
    for number, i in enumerate(order[:WORST], 1):
        low, high = measures.wilson_interval(recall[i], support[i])
        named.append(axes.vlines(
            size[i], low, high, color="tab:red", linewidth=1,
            label=f"{number} {plain_name(categories['category'][i], NAME)}: {recall[i]:.2f} of {support[i]:,}"))
        axes.annotate(str(number), (size[i], high), (3, -3), textcoords="offset points", color="tab:red")
    figure.legend(handles=named, loc="outside right upper", fontsize=7, handlelength=0, handletextpad=0,
                  title="lowest recall (of so many rows), by\nthe upper end of its 95 % interval", title_fontsize=7)
    return figure


def confusion_figure(labels, predictions, names, title):
    """The categories of the largest confusions against each other: counts, coloured by their rates of the true
    category. What is right is left out, or it would hide the errors."""
    from matplotlib.colors import PowerNorm
    true, taken, _ = confusions(labels, predictions)
    shown = list(dict.fromkeys(np.stack([true, taken], 1).ravel().tolist()))
    # Rates are of all rows of the true category, also of those taken for a category that is not shown.
    place = np.full(len(names), -1)
    place[shown] = np.arange(len(shown))
    pairs = np.stack([place[labels], place[predictions]])[:, labels != predictions]
    counts = np.zeros((len(shown), len(shown)), int)
    np.add.at(counts, tuple(pairs[:, (pairs >= 0).all(0)]), 1)
    rates = counts / np.maximum(1, np.bincount(labels, minlength=len(names))[shown])[:, None]

    # The figure grows with the categories, and long names are cut, so that names stay legible. Under a square root 2 %
    # can still be told from nothing.
    figure = new_figure(4 + 0.3 * len(shown), 3 + 0.3 * len(shown))
    axes = figure.subplots()
    image = axes.imshow(rates, cmap="Blues", norm=PowerNorm(0.5, 0, rates.max()))
    for true, taken in zip(*np.nonzero(counts), strict=True):
        axes.text(taken, true, counts[true, taken], ha="center", va="center", fontsize=8,
                  color="white" if rates[true, taken] > 0.5 * rates.max() else "black")
    short = [plain_name(names[i], NAME) for i in shown]
    axes.set_xticks(range(len(shown)), short, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), short, fontsize=8)
    axes.grid(color="gray", alpha=0.2, linewidth=0.5)
    axes.set(xlabel="predicted category", ylabel="true category", title=f"errors (rows): {title}")
    figure.colorbar(image, label="share of the true category's rows", shrink=0.6)
    return figure


def reliability_figure(confidence, right, title):
    """The share of right predictions over their probability, in bins of equally many rows."""
    confidences, accuracies, _ = zip(*calibration.reliability(confidence, right), strict=True)
    figure = new_figure(4.5, 4.5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.plot(confidences, accuracies, "o-")
    axes.set(xlabel="probability of the category", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    return figure


def answered_figure(thresholds, lines, title):
    """The share of the rows answered over the precision found, of categories alone and of nodes: lines as from
    `answered_lines`, and what was promised as points. thresholds: those of report.json."""
    figure = new_figure(6, 4.5)
    axes = figure.subplots()
    points = [[(promise, row["leaf_only"]["precision"], row["leaf_only"]["coverage"])
               for promise, row in thresholds.items()],
              [(promise, row["precision"], row["answered"]) for promise, row in thresholds.items()]]
    for (name, line), style, mark, promised in zip(lines.items(), ("--", "-"), "so", points, strict=True):
        [drawn] = axes.plot(*np.array(line).reshape(-1, 2).T, style, label=name)
        for promise, precision, share in promised:
            if precision is not None:
                axes.plot(precision, share, mark, color=drawn.get_color())
                axes.annotate(f"{float(promise):.0%}", (precision, share), (5, 3), textcoords="offset points",
                              color=drawn.get_color())
    axes.set(xlabel="precision found", ylabel="share of the rows that is answered", ylim=(0, 1.03), title=title)
    axes.set_xlim(right=1.005)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def make_figures(rows, categories, result, title):
    """The figures of a report: {file: figure}; categories as from `make_tables`."""
    figures = {"recall.png": recall_figure(categories, title),
               "reliability.png": reliability_figure(result["probability"], result["prediction"] == rows.labels, title)}
    if (rows.labels != result["prediction"]).any():
        figures["confusions.png"] = confusion_figure(rows.labels, result["prediction"], rows.names, title)
    return figures


# --- files ------------------------------------------------------------------------------------------------------------

class Report(NamedTuple):
    title: str      # which runs and rows it is of
    scores: dict    # see KEYS
    tables: dict    # as from `make_tables`
    figures: dict   # as from `make_figures`


def make_report(classifier, rows, result):
    """The Report on Labelled rows with the result of `score_rows`."""
    # Scores of categories are of the rows that know theirs; those of the levels above are of all.
    known, all_rows, all_results = rows.has_category, rows, result
    rows, result = rows.part(known), result if known.all() else {name: of[known] for name, of in result.items()}
    scores = make_scores(classifier, rows, result)
    tables = make_tables(rows, classifier.config["training_rows"], result)
    if classifier.columns:
        tables["values.csv"] = worst_values(classifier, rows, result)
    title = (f"{'SYNTHETIC data, ' if scores['synthetic'] else ''}"
             f"{' + '.join(folder.name for folder in classifier.folders)}, {rows.split}{'' if rows.path else ' split'}")
    figures = make_figures(rows, tables["categories.csv"], result, title)
    if rows.tree.levels > 1:
        truth, promising = tree.true_nodes(all_rows), classifier.promising
        scores |= tree.scores(all_rows, all_results, truth)
        scores["thresholds"] = tree.promises(promising, scores["thresholds"], truth, all_results)
        tables["nodes.csv"] = tree.node_table(all_rows, all_results, truth)
        figures["answered.png"] = answered_figure(
            scores["thresholds"], tree.answered_lines(promising, all_rows, all_results, truth), title)
    return Report(title, scores, tables, figures)


def add_paired(made, rows, result, other, right):
    """Add to a Report on Labelled rows with the result of `score_rows` whether it is better than the classifier
    `other`, a name, which has these rows right [N] bool."""
    known = rows.has_category
    rows, first, second = rows.part(known), (result["prediction"] == rows.labels)[known], right[known]
    masks = {"all": np.ones(len(first), bool), **slices(rows)}
    found = {name: paired.difference(rows.labels[mask], first[mask], second[mask]) for name, mask in masks.items()}
    made.scores["against"] = {"other": other, **found.pop("all"), "slices": found}
    made.tables["against.csv"] = paired.by_category(rows.labels, first, second, rows.names)


def make_tables(rows, training_rows, result):
    """The tables of a report on Labelled rows: {file: {column: values}}. training_rows [C] of each category that the
    run knows; result as from `score_rows`."""
    # Categories that nobody predicted have no precision; it counts as 0, as in macro-F1.
    names, labels, predictions = np.array(rows.names, object), rows.labels, result["prediction"]
    leaves = np.delete(np.arange(len(names)), np.arange(rows.tree.leaves, len(rows.tree.names)))  # no inner nodes
    precision, recall, f1, support = measures.by_category(labels, predictions, len(names))

    # A confusion is easier to understand with a few of its titles.
    titles = np.array([title.replace(classify.BORDER, " / ") for title in rows.inputs.titles], object)
    true, taken, count = confusions(labels, predictions)
    examples = [" | ".join(titles[(labels == i) & (predictions == j)][:3]) for i, j in zip(true, taken, strict=True)]

    # Labels that the model finds least likely, where it knows them and is of another opinion. In a tree the nodes above
    # count as well: a wrong parent is the worse suspicion.
    is_known = ~rows.unknown
    suspect = np.flatnonzero(is_known & (predictions != labels))
    doubt = result["label_path"].mean(1) if "label_path" in result else result["given_probability"]
    suspect = suspect[np.argsort(doubt[suspect], kind="stable")]

    columns = {"category": names[labels], "category_probability": result["given_probability"].astype(float),
               "predicted": names[predictions], "probability": result["probability"].astype(float), "title": titles}
    place = {"file": np.array(rows.file, object), "line": rows.line} | (
        {"id": np.array(rows.id, object)} if rows.id else {})

    def table(chosen, *names):
        return {name: (columns | place)[name][chosen] for name in names}

    # Categories that the run does not know stand behind its own, and have no training rows.
    return {
        "predictions.csv": table(slice(None), "title", "category", "predicted", "probability", *place),
        "categories.csv": {"category": names[leaves], "precision": precision[leaves], "recall": recall[leaves],
                           "f1": f1[leaves], "support": support[leaves],
                           "training_rows": np.pad(training_rows, (0, len(leaves) - len(training_rows)))},
        "confusions.csv": {"category": names[true], "predicted": names[taken], "rows": count,
                           "share_of_category": count / support[true]} | tree.shared_parents(rows, true, taken) | {
                               "examples": examples},
        "suspects.csv": table(suspect, *place, *columns),
        "unknown.csv": table(~is_known, *place, "category", "predicted", "probability", "title")}


def checkpoints(scores):
    """Which checkpoints the scores are of, as a text."""
    return "average of " + " and ".join(
        f"{name} (step {member['step']:,}, weight {member['weight']:.2f})" for name, member in scores["members"].items()
    ) if "members" in scores else f"{scores['checkpoint']} checkpoint (step {scores['step']:,})"


def write(folder, report):
    """Write report.json, the tables and the figures into a folder."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv
    files.write_json(folder / "report.json", report.scores)
    for file, columns in report.tables.items():
        # Most reports have no rows of unknown categories, and then no such file.
        if file != "unknown.csv" or len(columns["line"]):
            frame = pd.DataFrame(columns).round(6 if "probability" in columns else 4)
            pa.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), folder / file)
    for file, figure in report.figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scripts that the font lacks
            figure.savefig(folder / file, dpi=120)


def frequent(scores):
    """How frequent predictions take all categories to be, as a text."""
    return {"equal": "equally frequent", "training": "as frequent as in training",
            "estimated": "as frequent as is estimated of these titles"}[scores["prior"]]


def changed_said(scores):
    """What differs from the validation rows, as a text."""
    said = {"mix": "the mix of categories", "sure": "how sure predictions are"}
    return f"not like the validation rows: {' and '.join(said[name] for name in scores['changed'])} (see --compare)"


def better(scores):
    """Which of two is better, as a text."""
    members, found = [name.partition("/")[0] for name in scores.get("members", ())], scores["against"]
    return paired.said(found, " + ".join(dict.fromkeys(members)) or scores["run"], found["other"])


def notes(scores):
    """What is to be said of some rows, see NOTES, and of what probabilities mean: a list of texts."""
    # Rows that know only a parent are not among those of the scores.
    rows = {"parent_rows": scores["rows"] + scores["parent_rows"]}
    return [f"{scores[name]:,} of {rows.get(name, scores['rows']):,} rows {what}"
            for name, what in NOTES.items() if scores[name]] + (
                [] if scores["calibration_rows"] else [f"{scores['run']} {classify.UNCALIBRATED}"])


def mistaken(scores):
    """How far mistakes are from the true category in the tree, as a text; "" where there is no tree or no mistake."""
    found = scores.get("mistakes")
    return (f"mistakes: {found['right_one_level_up']:.1%} are right one level up, "
            f"{found['wrong_at_the_top']:.1%} are wrong at the top already; {found['distance']:.1f} edges from the "
            "true category, on average") if found else ""


def metrics(scores):
    """{name: number, or None} of what MLflow gets of report.json: SCORES and, of a tree, those of its levels, and what
    its nodes answer where a precision is promised."""
    found = {name: scores[name] for name in (*SCORES, "expected_accuracy")}
    for level, row in enumerate(scores.get("levels", ()), 1):
        found |= {f"level_{level}_{name}": row[name] for name in ("accuracy", "balanced_accuracy")}
    for precision, row in scores["thresholds"].items() if "levels" in scores else ():
        found |= {f"{name}_{precision[2:]}": row[name] for name in ("answered", "precision")}
    return found


def show(scores, found):
    """Print the scores of all rows and of their slices, the promises kept, and the most frequent confusions."""
    print(f"  {'':<22}{'rows':>10}{'loss':>8}{'accuracy':>10}{'balanced':>10}{'95 % interval':>18}{'macro-F1':>10}"
          f"{'top-5':>8}")
    for name, row in {"all": scores, **scores["slices"]}.items():
        low, high = row["balanced_accuracy_interval"]
        # Where the run knows no category of the rows, there is no loss.
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        print(f"  {name:<22}{row['rows']:>10,}{loss:>8}{row['accuracy']:>10.4f}"
              f"{row['balanced_accuracy']:>10.4f}{f'{low:.4f} to {high:.4f}':>18}{row['macro_f1']:>10.4f}"
              f"{row['top5_accuracy']:>8.4f}")
    print(f"predictions take all categories to be {frequent(scores)} (see --prior); calibration error of their "
          f"probabilities {scores['expected_calibration_error']:.4f}")

    if scores["calibration_rows"]:
        low, high = scores["expected_accuracy_interval"]
        print(f"accuracy that the probabilities promised: {scores['expected_accuracy']:.4f} ({low:.4f} to {high:.4f})"
              + (f"; {changed_said(scores)}" if scores["changed"] else ""))

    if "against" in scores:
        print(f"{better(scores)}.")

    # What validation rows promised beside what came true on these rows.
    if scores["calibration_rows"] and scores["promising_prior"] != scores["prior"]:
        print("with --precision they take them to be as frequent as in training:")
    for precision, row in scores["thresholds"].items() if scores["calibration_rows"] else ():
        kept = "-" if row["precision"] is None else f"{row['precision']:.1%}"
        alone = f" (with --leaf-only {row['leaf_only']['coverage']:.1%})" if "leaf_only" in row else ""
        if row["threshold"] is None:
            print(f"promised {float(precision):.0%} right: by no probability, on these validation rows{alone}")
        elif alone:
            print(f"promised {float(precision):.0%} right: here {row['answered']:.1%} of the titles, {kept} of "
                  f"them right; {row['leaf']:.1%} get a category{alone}")
        else:
            print(f"promised {float(precision):.0%} right: from probability {row['threshold']:.4f} on; here "
                  f"{row['coverage']:.1%} of the titles, {kept} of them right")
    for level, row in enumerate(scores.get("levels", ()), 1):
        if row["rows"]:
            print(f"level {level}, {row['nodes']:,} nodes: accuracy {row['accuracy']:.4f}, balanced "
                  f"{row['balanced_accuracy']:.4f}")
    if said := mistaken(scores):
        print(said)
    for note in notes(scores):
        print(note)
    for name, row in scores.get("columns", {}).items():
        print(f"{name + ':':<24}accuracy {row['accuracy']:.4f}, balanced {row['balanced_accuracy']:.4f}")

    # The first few with one title each; confusions.csv has more.
    if found["examples"]:
        print("most frequent confusions:")
    for true, wrong, count, rate, examples in itertools.islice(
            zip(*(found[name] for name in CONFUSED), strict=True), 8):
        print(f"  {count:>5} x {plain_name(true, SHOWN)} taken for {plain_name(wrong, SHOWN)} ({rate:.0%} of its "
              f"rows), such as: {examples.partition(' | ')[0]}")


def show_change(found):
    """Print the result of change.compare."""
    def short(name):
        return plain_name(name, SHOWN)

    say = found["verdict"]
    print(f"{say[0].upper()}{say[1:]}.")
    left = f", of which {found['sampled']:,} drawn at random" if found["sampled"] < found["titles"] else ""
    print(f"{found['titles']:,} titles{left}; {found['trained_titles']:,} of these have trained the run and are left "
          f"out; {found['unknown_titles']:,} have no word or n-gram that training has seen")
    low, high = found["expected_accuracy_interval"]
    under = ", under the estimated mix" if found["mix"]["is_estimated"] else ""
    was = found["validation"]
    print(f"accuracy to expect{under}: {found['expected_accuracy']:.4f} ({low:.4f} to {high:.4f}); of "
          f"{was['rows']:,} validation rows {was['accuracy']:.4f}, by probability {was['mean_probability']:.4f}")
    for precision, row in found["promises"].items():
        print(f"promised {float(precision):.0%} right: " + (
            "by no probability, on these validation rows" if row["answered"] is None else
            f"{row['answered']:.1%} of the titles, {row['validation']:.1%} of validation rows"))
    for name, key in (("categories", "categories"), ("nodes of the top level", "top_level")):
        if rows := found["mix"].get(key):
            print(f"the largest changes of {name}, from the share in training to the one estimated here:")
            for category, before, here in rows:
                print(f"  {before:>8.2%} {here:>8.2%}  {short(category)}")
    words = found["words"]
    beside = f" ({words['validation']['unseen_words']:.2%} of validation titles')" if "validation" in words else ""
    print(f"words that are not in the vocabulary: {words['unseen_words']:.2%}{beside}"
          + (", most often " if words["most_frequent"] else "")
          + ", ".join(f"{short(word)} ({times:,})" for word, times in words["most_frequent"][:SHOWN_WORDS]))
    if "kind" in found:
        print(f"a classifier tells these titles from validation titles with an AUC of {found['kind']['auc']:.3f}, by "
              f"words of these: {' '.join(map(short, found['kind']['new'][:SHOWN_WORDS]))}; of validation titles: "
              f"{' '.join(map(short, found['kind']['old'][:SHOWN_WORDS]))}")
    else:
        print(f"not compared with the words of validation titles: {found['left_out']}")
