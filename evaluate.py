"""Report how good a checkpoint is on a split, or classify new titles with it.

    python evaluate.py --ckpt best                          # the best run on this data, on the test split
    python evaluate.py --ckpt my-cnn/latest --split valid   # a run by name; best is its default checkpoint
    python evaluate.py --ckpt mlp-1 cnn-1 encoder-1         # several runs on the same data, log-probabilities averaged
    python evaluate.py --ckpt best --json                   # the scores as one JSON object
    python evaluate.py --ckpt best --predict titles.txt --top 3 --out predicted.tsv
    echo "zapatillas running talle 42" | python evaluate.py --ckpt best --predict -

The report goes to runs/NAME/SPLIT-WHICH/ (such as test-best): report.json, predictions.csv, categories.csv (precision,
recall, F1 and support of each), confusions.csv with example titles, recall.png and confusions.png; it is added to the
training's MLflow run. Of several runs it goes to the first one's, runs/NAME/SPLIT-WHICH+OTHER..., with --prior to
SPLIT-WHICH-PRIOR. The interval of the balanced accuracy is a bootstrap within categories.

--predict reads a title a line, or a CSV or Parquet file with a `title` (or `text`) column, plain or compressed, `-` for
standard input; --title-column says which column it is, --encoding what is not UTF-8 (cp1252 is what Excel writes).
It writes a line for each title, in order: category TAB probability, K times with --top K. A CSV with an `id` column,
such as the challenge's test.csv, gives `id,category` instead. It needs nothing but the run's folder (an encoder also
its package, see requirements-encoder.txt); best and latest are of the runs on --data, where that is there. Titles are
classified 32,768 at a time, from a terminal one at a time.
Loss, probabilities and predictions assume a prior: that all categories are equally frequent (`equal`, what training
with --balance logit or weights aims at), or as frequent as in training (`training`, as after --balance none). The
default is the first run's own; --prior converts by adding or taking away the log prior.
"""
import json
import os
import sys
from pathlib import Path

if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import files
from files import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
RESAMPLES = 2000      # of the bootstrap
CONFUSIONS = 20       # pairs of categories that the report shows
PREDICT_ROWS = 32768  # titles classified at a time


def parse_args():
    parser = files.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["best"],
        help="best or latest of all runs, or a run: NAME, NAME/best, NAME/latest, or a path; several are averaged")
    add("--data", type=Path, default=Path("data/prepared"), help="folder that prepare.py wrote")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--split", choices=("test", "valid", "train"), default="test", help="which rows to report on")
    add("--prior", choices=("equal", "training"), help="how frequent categories are taken to be (default: as the run)")
    add("--json", action="store_true", help="print the scores as one JSON object and nothing else")
    add("--predict", metavar="FILE", help="classify the titles in this file, or - for standard input")
    add("--top", type=files.positive(int), default=1, metavar="K", help="with --predict: the K likeliest categories")
    add("--out", type=Path, metavar="FILE", help="with --predict: write here instead of standard output")
    add("--title-column", metavar="C", help="with --predict: name or number (from 1) of the column of titles")
    add("--encoding", type=files.encoding, default="utf-8", help="with --predict: of the file, such as cp1252, utf-16")
    args = parser.parse_args()
    if args.out and args.predict is None:
        raise UserError("--out goes with --predict; a report goes to the run's folder")
    if args.predict is None and (args.title_column or args.encoding != "utf-8"):
        raise UserError("--title-column and --encoding go with --predict")
    if args.json and args.predict is not None:
        raise UserError("--json goes with a report, not with --predict")
    return args


if __name__ == "__main__":
    ARGS = files.run(parse_args)  # before JAX is loaded, so that --help answers at once
    files.run(files.clean_environment)

import contextlib
import csv
import functools
import gc
import itertools
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

import data
import encoder
import model
import runs
import sources

# --- the classifier ---------------------------------------------------------------------------------------------------

class Classifier:
    """One or several checkpoints that share vocabulary and labels, and classify together: their log-probabilities are
    averaged. Made by `load`."""

    def __init__(self, checkpoints, prior=None):
        """checkpoints: [(folder of a run, "best" or "latest")]; prior: "equal", "training", or None for the first
        run's own. Raises UserError where they do not go together."""
        # The first run gives its folder to the report, and its name, with the others' behind it.
        (self.folder, self.which), *others = checkpoints
        self.name = "+".join([self.which, *(f"{folder.name}-{which}" for folder, which in others)])
        self.members, self.steps = [], []
        for folder, which in checkpoints:
            config, vocab, labels, variables, step = restore(folder, which)
            if not self.members:
                self.config, self.vocab, self.labels = config, vocab, labels
            if config["files"] != self.config["files"]:
                raise UserError(f"{folder}: has another vocabulary or other labels than {self.folder}; average runs on "
                                "the same prepared data")
            self.members.append((config, variables))
            self.steps.append(step)

        # A run's probabilities are under the prior that its --balance aims at. Adding the log prior of the training
        # rows to the logits, or subtracting it, converts from one to the other.
        self.prior = prior or self.config["prior"]
        count = np.maximum(self.config["training_rows"], 0.5)
        log_prior = np.log(count / count.sum()).astype(np.float32)
        sign = [(self.prior == "training") - (config["prior"] == "training") for config, _ in self.members]
        self.shifts = tuple(int(s) * log_prior for s in sign)

    def predictors(self, words):
        """A model.Predictor for every run, which knows these words."""
        return tuple(model.predictor(config, variables, None if "encoder" in config else model.feature_tables(
            config, words)) for config, variables in self.members)

    @functools.cached_property
    def known(self):
        """(word ids of the vocabulary, the Predictors that know it)."""
        return {word: i for i, word in enumerate(self.vocab)}, self.predictors(self.vocab)

    def in_batches(self, function, titles):
        """Call `function(predictors, ids)` on titles (list of str) in batches; see model.in_batches."""
        # An encoder reads pieces. To the others words out of vocabulary get vectors from their n-grams, for this call.
        (index, known), predictors, ids = self.known, [], []
        words = functools.cache(lambda max_len: data.encode(titles, index, max_len))
        for (config, _), predictor in zip(self.members, known, strict=True):
            if "encoder" in config:
                mine, others = encoder.pieces(config["encoder"]["name"], titles, config["encoder"]["max_len"]), []
            else:
                mine, others = words(config["max_len"])
            predictors.append(model.extended(config, predictor, others) if others else predictor)
            ids.append(mine)
        return model.in_batches(lambda batch: function(tuple(predictors), batch), tuple(ids),
                                batch_size=model.batch_size(predictors))

    def ids(self, meta, rows, where):
        """The ids [N, L] that each member reads, of a split's arrays; where: the folder of the prepared data. Raises
        UserError where they are not there."""
        for config, _ in self.members:
            encoder.require_pieces(config, meta, f"--ckpt of model {config['model']}", where)
        return tuple(rows[model.reads(config["model"])] for config, _ in self.members)

    def likeliest(self, titles, top):
        """The `top` likeliest categories of titles (list of str): (ids [N, top], probabilities [N, top])."""
        found = self.in_batches(lambda predictors, ids: top_batch(predictors, self.shifts, ids, top), titles)
        return found["category"], found["probability"]

    def predict(self, titles, top=1):
        """For every title a list of its `top` likeliest (category, probability), the likeliest first.

        titles: any sequence of str, such as a pandas column; a missing value (None, NaN) gets an empty list. Raises
        TypeError where it is something else.
        """
        # A part at a time, so that memory does not grow with the titles.
        titles, present = check_titles(titles)
        result, top = [[] for _ in titles], min(top, len(self.labels))
        for start in range(0, len(present), PREDICT_ROWS):
            part = present[start:start + PREDICT_ROWS]
            for i, categories, shares in zip(part, *self.likeliest([titles[i] for i in part], top), strict=True):
                result[i] = [(self.labels[c], float(p)) for c, p in zip(categories, shares, strict=True)]
        return result

    def predict_proba(self, titles):
        """The probability of every category, in the order of `labels`: [N, C] float32; NaN for missing titles. Titles
        are as for `predict`."""
        titles, present = check_titles(titles)
        result = np.full((len(titles), len(self.labels)), np.nan, np.float32)
        if present:
            found = self.in_batches(lambda predictors, ids: all_batch(predictors, self.shifts, ids),
                                    [titles[i] for i in present])
            result[present] = found["probability"]
        return result


def check_titles(titles):
    """(list of titles, the positions of those that are not missing). Raises TypeError where they are no titles."""
    if isinstance(titles, (str, bytes)) or hasattr(titles, "columns"):
        raise TypeError("titles: wanted a list or a column of titles, not a single one or a table")
    titles = titles.to_pylist() if hasattr(titles, "to_pylist") else list(titles)  # Arrow's own values are no str
    present = [i for i, title in enumerate(titles) if isinstance(title, str)]
    for title in titles:
        if not isinstance(title, str) and title is not None and title == title and str(title) != "<NA>":
            raise TypeError(f"titles: {title!r} is no title; wanted str, or None where one is missing")
    return titles, present


def load(*ckpt, folder="runs", prior=None, fingerprint=None):
    """The Classifier of one or several checkpoints, named as for --ckpt ("cnn-1", "cnn-1/latest"; "best" if none is).

    folder: of all runs; fingerprint: of the prepared data that `best` and `latest` must have been trained on, or None.
    Raises UserError where a checkpoint cannot be found or read, or where they do not go together.
    """
    files.require_device()
    ckpt = [os.fspath(name) for name in ckpt or ["best"]]
    found = [runs.find(name, folder, fingerprint) for name in ckpt]
    if len({(path.resolve(), which) for path, which in found}) < len(found):
        raise UserError(f"--ckpt {' '.join(ckpt)}: the same checkpoint twice")
    return Classifier(found, prior)


def restore(folder, which):
    """(config, vocab, labels, variables, step) of a run's best or latest checkpoint."""
    config, vocab, labels = runs.load(folder, model.MODELS)
    if "encoder" in config:
        encoder.require(config["encoder"], folder)
    if changed := runs.changed_source(folder, config):
        print(f"warning: {folder}: {' and '.join(changed)} changed since it was trained; it may predict otherwise than "
              f"it did (its own scripts: {folder / 'source'}/)", file=sys.stderr)
    manager = runs.checkpoint_manager(folder, read_only=True)
    step = manager.best_step() if which == "best" else manager.latest_step()
    if step is None:
        raise UserError(f"{folder}: has no {which} checkpoint" + (
            f"; try {folder}/latest" if manager.latest_step() is not None else ""))

    # The configuration tells the shapes, so nothing but the weights is read.
    try:
        shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    except KeyError as error:
        raise UserError(f"{folder}: was trained without {error}, which its model needs now; use the scripts that it "
                        f"keeps in {folder / 'source'}/") from None
    variables = runs.restore_checkpoint(manager, step, variables=shapes)["variables"]
    if "encoder" in config:
        config, variables = encoder.complete(config, variables)
        variables = jax.device_put(variables)
    return config, vocab, labels, variables, step


@functools.partial(jax.jit, static_argnames="top")
def top_batch(predictors, shifts, ids, top):
    z = model.combined(predictors, shifts, ids)
    best, category = (x[:, None] for x in model.first_maximum(z)) if top == 1 else jax.lax.top_k(z, top)
    return {"category": category, "probability": jnp.exp(best - jax.nn.logsumexp(z, 1, keepdims=True))}


@jax.jit
def all_batch(predictors, shifts, ids):
    return {"probability": jax.nn.softmax(model.combined(predictors, shifts, ids))}


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


def report(args):
    # Everything is read and matched before it is scored.
    meta, arrays = data.load_prepared(args.data, (args.split,), text=args.split)
    classifier = load(*args.ckpt, folder=args.runs, prior=args.prior, fingerprint=meta["fingerprint"])
    folder, rows = classifier.folder, arrays[args.split]
    if classifier.config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{folder}: was trained on other data ({classifier.config['fingerprint']}) than {args.data} "
                        f"holds ({meta['fingerprint']}); name its data with --data, or classify titles with --predict")
    connecting = files.in_background(runs.mlflow_client)  # takes seconds; meanwhile we score

    # Score every row, and every slice of them.
    labels = rows["labels"].astype(np.int64)
    ids = classifier.ids(meta, rows, args.data)
    result = model.score(classifier.predictors(meta["words"]), classifier.shifts, ids, labels)
    scores = {"run": folder.name, "checkpoint": classifier.name, "step": classifier.steps[0], "split": args.split,
              "prior": classifier.prior, "synthetic": meta["synthetic"]} | summarize(labels, result)
    scores["slices"] = {name: summarize(labels[mask], {key: value[mask] for key, value in result.items()})
                        for name, mask in slices(meta, rows).items()}

    # The report's folder is replaced whole; what else is kept there stays.
    title = f"{'SYNTHETIC data, ' if meta['synthetic'] else ''}{folder.name}, {args.split} split"
    found = confusions(labels, result["prediction"])
    tables, figures = make_tables(meta, rows, result, found), {}
    support, size = tables["categories.csv"]["support"], np.array(meta["training_rows"])
    figures["recall.png"] = recall_figure(
        tables["categories.csv"]["recall"][support > 0], size[support > 0], title)
    if found:
        figures["confusions.png"] = confusion_figure(labels, result["prediction"], meta["labels"], found, title)
    out = folder / f"{args.split}-{classifier.name}{f'-{args.prior}' if args.prior else ''}"
    with files.atomic_folder(out) as temporary:
        if out.exists():
            shutil.copytree(out, temporary, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(
                "report.json", *tables, "recall.png", "confusions.png"))
        write_report(temporary, scores, tables, figures)

    # Scores of an ensemble, or under another prior, stand beside the run's own in MLflow.
    own = classifier.name == classifier.which and not args.prior
    with runs.mlflow_warnings():
        client, _ = connecting.result()
        runs.log_report(client, folder, out, named_scores(args.split if own else out.name, scores), scores["step"])
    if args.json:
        print(json.dumps(scores))
    else:
        print(f"{title}, {classifier.name} checkpoint (step {scores['step']:,}) of {classifier.config['model']}:")
        print_report(scores, tables["confusions.csv"])
        print(f"report: {out}/")


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


# --- prediction -------------------------------------------------------------------------------------------------------

def predict(args):
    # best and latest are of the runs on --data, where that is there.
    meta = args.data / "meta.json"
    known = meta.is_file() and {"best", "latest"}.intersection(args.ckpt)
    fingerprint = files.read_json(meta).get("fingerprint") if known else None
    classifier = load(*args.ckpt, folder=args.runs, prior=args.prior, fingerprint=fingerprint)
    names, top = np.array(classifier.labels, object), min(args.top, len(classifier.labels))

    # Lines are made by one format for all columns, which is much faster than a field at a time.
    form = "\t".join(["{}\t{:.6f}"] * top) + "\n"

    def write(ids, categories, probabilities):
        columns = [names[column].tolist() for column in categories.T]
        if with_ids:
            csv.writer(out, lineterminator="\n").writerows(zip(ids, columns[0], strict=True))
        else:
            shares = [column.tolist() for column in probabilities.T]
            out.writelines(map(form.format, *itertools.chain.from_iterable(zip(columns, shares, strict=True))))
        out.flush()

    # Output is UTF-8 whatever the locale. What is loaded by now need not be searched for garbage again and again.
    sys.stdout.reconfigure(encoding="utf-8")
    gc.freeze()
    bad = sources.NoBadRows()
    with contextlib.ExitStack() as stack:
        if args.predict == "-" and sys.stdin is None:
            raise UserError("--predict -: standard input is closed")
        file = sys.stdin.buffer if args.predict == "-" else stack.enter_context(open(args.predict, "rb"))
        stack.enter_context(files.archive_errors(args.predict))
        out = stack.enter_context(files.atomic_write(args.out)) if args.out else sys.stdout
        pool = stack.enter_context(ThreadPoolExecutor(1))
        with_ids, blocks = sources.read_titles(
            files.decompressed(file), args.predict, bad, sources.format_from(args))
        if with_ids and args.top > 1:
            raise UserError(f"--top {args.top}: {args.predict} has ids, for which one category each is written")
        if with_ids:
            print("id,category", file=out)

        # A part of a block is classified while the one before is written; from a terminal, each line at once.
        waiting = []
        try:
            for titles, ids in blocks:
                for start in range(0, len(titles), PREDICT_ROWS):
                    part = slice(start, start + PREDICT_ROWS)
                    waiting.append((ids and ids[part], pool.submit(classifier.likeliest, titles[part], top)))
                    while len(waiting) > (not file.isatty()):
                        write(waiting[0][0], *waiting.pop(0)[1].result())
        finally:  # also what came before a bad row
            while waiting:
                write(waiting[0][0], *waiting.pop(0)[1].result())
    bad.warn()


if __name__ == "__main__":
    files.run(lambda: report(ARGS) if ARGS.predict is None else predict(ARGS))
