"""From labels and predictions to a report: scores, tables and figures, and the files that hold them.

Reading checkpoints, data and flags, and classifying (evaluate.py) do not belong here.
"""
import itertools
import sys
import warnings

import numpy as np

import files
import model

# --- knobs ------------------------------------------------------------------------------------------------------------
RESAMPLES = 2000      # of the bootstrap
CONFUSIONS = 20       # pairs of categories that the report shows


# --- scores -----------------------------------------------------------------------------------------------------------

def interval(labels, predictions, seed=0, resamples=RESAMPLES):
    """95 % bootstrap interval of the balanced accuracy, rows drawn again within each category: there the number of
    right ones among n is binomial, so no row need be drawn (Efron and Tibshirani 1993, percentile method). It is drawn
    with recall (right + 1/2) / (n + 1), so that a small category without a mistake is not taken to be perfect; the
    deviations are added to the recall measured."""
    # Categories without a row have no recall.
    size = np.bincount(labels)
    right = np.bincount(labels[labels == predictions], minlength=len(size))[size > 0]
    size = size[size > 0]
    recall = (right + 0.5) / (size + 1)
    draw = np.random.default_rng(seed)
    draws = [np.mean(draw.binomial(size, recall) / size - recall) for _ in range(resamples)]
    return [float(x) for x in np.clip(np.mean(right / size) + np.quantile(draws, [0.025, 0.975]), 0, 1)]


def summarize(labels, result):
    """The scores of some rows: labels [N], result as model.score returns it."""
    from sklearn import metrics
    predictions = result["prediction"]
    return {
        "rows": len(labels), "loss": float(result["loss"].mean(dtype=np.float64)),
        "accuracy": float((predictions == labels).mean()),
        "balanced_accuracy": model.balanced_accuracy(labels, predictions),
        "balanced_accuracy_interval": interval(labels, predictions),
        "macro_f1": float(metrics.f1_score(labels, predictions, average="macro", zero_division=0)),
        "top5_accuracy": float((result["rank"] < 5).mean())}


def slices(meta, arrays):
    """Named subsets of a split's rows: {"language spanish": [N] bool, ..., "reliable": [N] bool}."""
    masks = {}
    for i, name in enumerate(meta["languages"] or []):
        masks[f"language {name}"] = arrays["language"] == i
    if "reliable" in arrays:
        masks["reliable"] = arrays["reliable"]
    return {name: mask for name, mask in masks.items() if mask.any()}


def confusions(labels, predictions):
    """The most frequent wrong answers: [(true, predicted, how often)], most frequent first."""
    wrong = labels != predictions
    pairs, count = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-count, kind="stable")[:CONFUSIONS]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(count[i])) for i in order]


# --- report -----------------------------------------------------------------------------------------------------------

def new_figure(width, height):
    """A figure in which any text stands as it is: two dollar signs are no formula."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams["text.parse_math"] = False
    return Figure((width, height), layout="constrained")


def recall_figure(recall, size, title):
    """Recall of each category over its number of training rows."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.scatter(np.maximum(size, 0.5), recall, s=12, alpha=0.5)
    axes.set(xscale="log", xlabel="training rows of the category", ylabel="recall", ylim=(-0.03, 1.03), title=title)
    axes.grid(alpha=0.3)
    return figure


def confusion_figure(labels, predictions, names, pairs, title):
    """The categories of the largest confusions against each other, as shares of the true category."""
    from sklearn.metrics import confusion_matrix
    shown = sorted({category for true, wrong, _ in pairs for category in (true, wrong)}, key=lambda i: names[i])
    # Shares are of all rows of the true category, also of those taken for a category that is not shown.
    counts = confusion_matrix(labels, predictions, labels=shown)
    shares = counts / np.maximum(1, np.bincount(labels, minlength=len(names))[shown])[:, None]
    figure = new_figure(3 + 0.3 * len(shown), 2.5 + 0.3 * len(shown))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(shown)), [names[i][:30] for i in shown], rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), [names[i][:30] for i in shown], fontsize=7)
    axes.set(xlabel="predicted category", ylabel="true category", title=title)
    figure.colorbar(image, label="share of the true category", shrink=0.6)
    return figure


def make_tables(meta, rows, result, found):
    """The tables of a report: {file: {column: values}}; found as from `confusions`."""
    from sklearn import metrics
    # Categories that nobody predicted have no precision; it counts as 0, as in macro-F1.
    names, text = np.array(meta["labels"], object), rows["text"]
    labels, predictions = rows["labels"].astype(np.int64), result["prediction"]
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(names)), zero_division=0)

    # A confusion is easier to understand with a few of its titles.
    examples = [[text[i] for i in np.flatnonzero((labels == true) & (predictions == wrong))[:3]]
                for true, wrong, _ in found]
    return {
        "predictions.csv": {"title": text, "category": names[labels], "predicted": names[predictions],
                            "probability": result["probability"].astype(float)},
        "categories.csv": {"category": names, "precision": precision, "recall": recall, "f1": f1, "support": support,
                           "training_rows": meta["training_rows"]},
        "confusions.csv": {"category": [names[true] for true, _, _ in found],
                           "predicted": [names[wrong] for _, wrong, _ in found],
                           "rows": [count for _, _, count in found],
                           "share_of_category": [count / support[true] for true, _, count in found],
                           "examples": [" | ".join(titles) for titles in examples]}}


def write_report(folder, scores, tables, figures):
    """Write report.json, the tables and the figures into a folder."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv
    files.write_json(folder / "report.json", scores)
    for file, columns in tables.items():
        pa.csv.write_csv(pa.Table.from_pandas(pd.DataFrame(columns).round(4), preserve_index=False), folder / file)
    for file, figure in figures.items():
        # Categories may be in a script that the font lacks, or break it: that costs a warning, never the tables.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure.savefig(folder / file, dpi=120)
        except Exception as error:
            if isinstance(error, OSError):
                raise
            print(f"warning: {file} could not be drawn ({' '.join(str(error).split())[:200]})", file=sys.stderr)


def named_scores(prefix, scores):
    """{name: number} of all scores, those of slices included, as MLflow's page shows them."""
    values = {f"{prefix}_{name}": value for name, value in scores.items() if isinstance(value, float)}
    for part, row in scores["slices"].items():
        part = part.replace(" ", "_", 1)  # a language that has a space keeps it: another may have "_" there
        values |= {f"{prefix}_{part}_{name}": value for name, value in row.items()
                   if isinstance(value, float)}
    return values


def print_report(scores, found):
    """Print the scores of all rows and of their slices, and the most frequent confusions."""
    print(f"  {'':<22}{'rows':>10}{'loss':>8}{'accuracy':>10}{'balanced':>10}{'95 % interval':>18}{'macro-F1':>10}"
          f"{'top-5':>8}")
    for name, row in {"all": scores, **scores["slices"]}.items():
        low, high = row["balanced_accuracy_interval"]
        print(f"  {name:<22}{row['rows']:>10,}{row['loss']:>8.3f}{row['accuracy']:>10.4f}"
              f"{row['balanced_accuracy']:>10.4f}{f'{low:.4f} to {high:.4f}':>18}{row['macro_f1']:>10.4f}"
              f"{row['top5_accuracy']:>8.4f}")
    print("loss, probabilities and predictions take all categories to be "
          + ("equally frequent" if scores["prior"] == "equal" else "as frequent as in training") + " (see --prior)")
    print("most frequent confusions:")
    for true, wrong, count, share, examples in itertools.islice(zip(*found.values(), strict=True), 8):
        print(f"  {count:>5} x {true} taken for {wrong} ({share:.0%} of its rows), such as: "
              f"{examples.partition(' | ')[0]}")
