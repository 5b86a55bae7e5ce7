"""Report how good a checkpoint is on a split, or classify new titles with it.

    python evaluate.py --ckpt best                          # the best run on this data, on the test split
    python evaluate.py --ckpt my-cnn/latest --split valid   # a run by name; best is its default checkpoint
    python evaluate.py --ckpt my-mlp my-cnn                 # several runs on the same data, log-probabilities averaged
    python evaluate.py --ckpt best --json                   # the scores as one JSON object
    python evaluate.py --ckpt best --predict titles.txt --top 3 --out predicted.tsv
    echo "zapatillas running talle 42" | python evaluate.py --ckpt best --predict -

The report goes to runs/NAME/SPLIT-WHICH/ (such as test-best): report.json, predictions.csv, categories.csv (precision,
recall, F1 and support of each), confusions.csv with example titles, recall.png and confusions.png; it is added to the
training's MLflow run. Of several runs it goes to the first one's, runs/NAME/SPLIT-WHICH+OTHER..., with --prior to
SPLIT-WHICH-PRIOR. The interval of the balanced accuracy is a bootstrap within categories.

--predict reads a title a line, or a CSV with a `title` (or `text`) column, plain or compressed, `-` for standard input.
It writes a line for each title, in order: category TAB probability, K times with --top K. A CSV with an `id` column,
such as the challenge's test.csv, gives `id,category` instead. It needs nothing but the run's folder; best and latest
are of the runs on --data, where that is there. Titles are classified 32,768 at a time, from a terminal one at a time.
Loss, probabilities and predictions assume a prior: that all categories are equally frequent (`equal`, what training
with --balance logit or weights aims at), or as frequent as in training (`training`, as after --balance none). The
default is the first run's own; --prior converts by adding or taking away the log prior.
"""
import json
import re
import sys
import time
from pathlib import Path

import data
from data import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
RESAMPLES = 2000      # of the bootstrap
CONFUSIONS = 20       # pairs of categories that the report shows
PREDICT_ROWS, PREDICT_CHARACTERS = 32768, 1 << 25  # titles classified at a time with --predict
PRIOR = {"none": "training", "logit": "equal", "weights": "equal"}  # what a --balance method assumes


def parse_args():
    parser = data.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["best"],
        help="best or latest of all runs, or a run: NAME, NAME/best, NAME/latest, or a path; several are averaged")
    add("--data", type=Path, default=Path("data/prepared"), help="folder that prepare.py wrote")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--split", choices=("test", "valid", "train"), default="test", help="which rows to report on")
    add("--prior", choices=("equal", "training"), help="how frequent categories are taken to be (default: as the run)")
    add("--json", action="store_true", help="print the scores as one JSON object and nothing else")
    add("--predict", metavar="FILE", help="classify the titles in this file, or - for standard input")
    add("--top", type=data.positive(int), default=1, metavar="K", help="with --predict: the K likeliest categories")
    add("--out", type=Path, metavar="FILE", help="with --predict: write here instead of standard output")
    args = parser.parse_args()
    if args.out and args.predict is None:
        raise UserError("--out goes with --predict; a report goes to the run's folder")
    if args.json and args.predict is not None:
        raise UserError("--json goes with a report, not with --predict")
    return args


if __name__ == "__main__":
    ARGS = data.run(parse_args)  # before JAX is loaded, so that --help answers at once

import contextlib
import csv
import functools
import gc
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

import model


class Ensemble:
    """One or several checkpoints that share vocabulary and labels."""

    def __init__(self, args, fingerprint):
        """fingerprint: of the prepared data the runs must have been trained on, or None."""
        runs = [data.find_run(ckpt, args.runs, fingerprint) for ckpt in args.ckpt]
        if len({(folder.resolve(), which) for folder, which in runs}) < len(runs):
            raise UserError(f"--ckpt {' '.join(args.ckpt)}: the same checkpoint twice")
        (self.folder, self.which), *others = runs
        self.name = "+".join([self.which, *(f"{folder.name}-{which}" for folder, which in others)])
        self.config, self.vocab, self.labels, variables, self.step = restore(self.folder, self.which)
        self.configs, self.variables = [self.config], (variables,)
        for folder, which in others:
            config, _, _, variables, _ = restore(folder, which)
            if config["files"] != self.config["files"]:
                raise UserError(f"{folder}: has another vocabulary or other labels than {self.folder}; average runs on "
                                "the same prepared data")
            self.configs, self.variables = [*self.configs, config], (*self.variables, variables)
        self.modules = tuple(map(model.build, self.configs))
        self.prior = args.prior or PRIOR[self.config["balance"]]
        count = np.maximum(self.config["training_rows"], 0.5)
        log_prior = np.log(count / count.sum()).astype(np.float32)
        sign = [(self.prior == "training") - (PRIOR[config["balance"]] == "training") for config in self.configs]
        self.shifts = tuple(int(s) * log_prior for s in sign)

    def ready(self, words):
        """The runs' predictors, see model.predictor."""
        return tuple(model.predictor(variables, model.feature_tables(config, words))
                     for config, variables in zip(self.configs, self.variables, strict=True))


def restore(folder, which):
    """(config, vocab, labels, variables, step) of a run's best or latest checkpoint."""
    config, vocab, labels = data.load_run(folder, model.MODELS)
    if config["balance"] not in PRIOR:
        raise UserError(f"{folder}/config.json: unknown --balance {config['balance']}")
    manager = data.checkpoint_manager(folder, read_only=True)
    step = manager.best_step() if which == "best" else manager.latest_step()
    if step is None:
        raise UserError(f"{folder}: has no {which} checkpoint" + (
            f"; try {folder}/latest" if manager.latest_step() is not None else ""))
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    variables = data.restore_checkpoint(manager, step, variables=shapes)["variables"]
    return config, vocab, labels, variables, step


# --- scores -----------------------------------------------------------------------------------------------------------

def interval(labels, predictions, seed=0, resamples=RESAMPLES):
    """95 % bootstrap interval of the balanced accuracy, rows drawn again within each category: there the number of
    right ones among n is binomial, so no row need be drawn (Efron and Tibshirani 1993, percentile method). It is drawn
    with recall (right + 1/2) / (n + 1), so that a small category without a mistake is not taken to be perfect; the
    deviations are added to the recall measured."""
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

def recall_figure(recall, size, title):
    """Recall of each category over its number of training rows."""
    from matplotlib.figure import Figure
    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(np.maximum(size, 0.5), recall, s=12, alpha=0.5)
    axes.set(xscale="log", xlabel="training rows of the category", ylabel="recall", ylim=(-0.03, 1.03), title=title)
    axes.grid(alpha=0.3)
    return figure


def confusion_figure(labels, predictions, names, pairs, title):
    """The categories of the largest confusions against each other, as shares of the true category."""
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix
    shown = sorted({category for true, wrong, _ in pairs for category in (true, wrong)}, key=lambda i: names[i])
    counts = confusion_matrix(labels, predictions, labels=shown)
    shares = counts / np.maximum(1, np.bincount(labels, minlength=len(names))[shown])[:, None]
    figure = Figure((3 + 0.3 * len(shown), 2.5 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(shown)), [names[i][:30] for i in shown], rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), [names[i][:30] for i in shown], fontsize=7)
    axes.set(xlabel="predicted category", ylabel="true category", title=title)
    figure.colorbar(image, label="share of the true category", shrink=0.6)
    return figure


def report(args):
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv
    from sklearn import metrics
    meta, arrays = data.load_prepared(args.data, (args.split,), text=args.split)
    runs = Ensemble(args, meta["fingerprint"])
    folder, config, names = runs.folder, runs.config, runs.labels
    if config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{folder}: was trained on other data ({config['fingerprint']}) than {args.data} holds "
                        f"({meta['fingerprint']}); name its data with --data, or classify titles with --predict")
    connecting = data.in_background(data.mlflow_client)  # takes seconds; meanwhile we score
    rows, train_size = arrays[args.split], np.array(meta["training_rows"])
    labels = rows["labels"].astype(np.int64)
    result = model.score(runs.modules, runs.ready(meta["words"]), runs.shifts, rows["titles"], labels)
    predictions = result["prediction"]
    scores = {"run": folder.name, "checkpoint": runs.name, "step": runs.step, "split": args.split, "prior": runs.prior,
              "synthetic": meta["synthetic"]} | summarize(labels, result)
    scores["slices"] = {name: summarize(labels[mask], {key: value[mask] for key, value in result.items()})
                        for name, mask in slices(meta, rows).items()}

    kind = f"{'SYNTHETIC data, ' if meta['synthetic'] else ''}{folder.name}, {args.split} split"
    name, text, found = np.array(names, object), rows["text"], confusions(labels, predictions)
    table = metrics.precision_recall_fscore_support(labels, predictions, labels=np.arange(len(names)), zero_division=0)
    support = table[3]
    examples = [[text[i] for i in np.flatnonzero((labels == true) & (predictions == wrong))[:3]]
                for true, wrong, _ in found]
    tables = {
        "predictions.csv": {"title": text, "category": name[labels], "predicted": name[predictions],
                            "probability": result["probability"].astype(float)},
        "categories.csv": {"category": name, "precision": table[0], "recall": table[1], "f1": table[2],
                           "support": support, "training_rows": train_size},
        "confusions.csv": {"category": [names[true] for true, _, _ in found],
                           "predicted": [names[wrong] for _, wrong, _ in found],
                           "rows": [count for _, _, count in found],
                           "share_of_category": [count / support[true] for true, _, count in found],
                           "examples": [" | ".join(titles) for titles in examples]}}
    figures = {"recall.png": recall_figure(table[1][support > 0], train_size[support > 0], kind)}
    if found:
        figures["confusions.png"] = confusion_figure(labels, predictions, names, found, kind)
    out = folder / f"{args.split}-{runs.name}{f'-{args.prior}' if args.prior else ''}"
    with data.folder_beside(out) as beside:
        if out.exists():  # what else is kept there stays
            shutil.copytree(out, beside, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(
                "report.json", *tables, "recall.png", "confusions.png"))
        data.write_json(beside / "report.json", scores)
        for file, columns in tables.items():
            pa.csv.write_csv(pa.Table.from_pandas(pd.DataFrame(columns).round(4), preserve_index=False), beside / file)
        for file, figure in figures.items():
            figure.savefig(beside / file, dpi=120)
    own = runs.name == runs.which and not args.prior  # else its scores stand beside the run's own
    log_to_mlflow(connecting, folder, out, args.split if own else out.name, scores)
    if args.json:
        print(json.dumps(scores))
        return
    print(f"{kind}, {runs.name} checkpoint (step {runs.step:,}) of {config['model']}:")
    print(f"  {'':<22}{'rows':>10}{'loss':>8}{'accuracy':>10}{'balanced':>10}{'95 % interval':>18}{'macro-F1':>10}"
          f"{'top-5':>8}")
    for name, row in {"all": scores, **scores["slices"]}.items():
        low, high = row["balanced_accuracy_interval"]
        print(f"  {name:<22}{row['rows']:>10,}{row['loss']:>8.3f}{row['accuracy']:>10.4f}"
              f"{row['balanced_accuracy']:>10.4f}{f'{low:.4f} to {high:.4f}':>18}{row['macro_f1']:>10.4f}"
              f"{row['top5_accuracy']:>8.4f}")
    print("loss, probabilities and predictions take all categories to be "
          + ("equally frequent" if runs.prior == "equal" else "as frequent as in training") + " (see --prior)")
    print("most frequent confusions:")
    for (true, wrong, count), titles in zip(found[:8], examples, strict=False):
        print(f"  {count:>5} x {names[true]} taken for {names[wrong]} ({count / support[true]:.0%} of its rows), "
              f"such as: {titles[0]}")
    print(f"report: {out}/")


def log_to_mlflow(connecting, folder, out, prefix, scores):
    """Add the scores and the report's files to the training's MLflow run."""
    values = {f"{prefix}_{key}": value for key, value in scores.items() if isinstance(value, float)}
    for name, part in scores["slices"].items():
        values |= {f"{prefix}_{name.replace(' ', '_')}_{key}": value for key, value in part.items()
                   if isinstance(value, float)}
    with data.mlflow_warnings():
        from mlflow.entities import Metric
        client, _ = connecting.result()
        run_id, now = (folder / "mlflow.txt").read_text().strip(), int(time.time() * 1000)
        data.log_metrics(client, run_id, [Metric(re.sub(r"[^\w.\- /]", "_", key), value, now, scores["step"])
                                          for key, value in values.items()])
        client.log_artifacts(run_id, str(out), out.name)


# --- prediction -------------------------------------------------------------------------------------------------------

def read_titles(stream, name):
    """(whether they have ids, blocks) of a binary stream of lines, or of CSV with a title (or text) column; a block is
    a list of (title, id or None). Bytes that are not UTF-8 become the replacement character, so no line is lost."""
    raw = data.lines(stream, name)
    first = next(raw, b"")
    if first.startswith((b"\xff\xfe", b"\xfe\xff", b"PK\3\4", b"\x1f\x8b")) or b"\0" in first:
        raise UserError(f"{name}: not text in UTF-8, plain or compressed once with gzip, bzip2 or xz")
    lines = (line.decode("utf-8", "replace") for line in raw)
    first = first.decode("utf-8-sig", "replace")
    if "\r" in first.rstrip("\r\n"):
        raise UserError(f"{name}: a carriage return within the first line; end lines with newlines")
    if first.startswith(('{"', "__label__")):
        raise UserError(f"{name}:1: JSON lines or labels; give titles, one a line, or CSV with a title column")
    delimiter, fields = data.read_header(first.strip(), {"title", "text"}.intersection)
    column = next((fields.index(key) for key in ("title", "text") if key in fields), None)
    number = fields.index("id") if "id" in fields and column is not None else None
    if column is None and ".csv" in Path(name).suffixes:
        raise UserError(f"{name}:1: no title (or text) column in the header ({first.strip()[:80]})")

    def from_lines():
        for line in itertools.chain([first] if first else [], lines):
            yield line.rstrip("\r\n"), None

    def from_csv():
        csv.field_size_limit(data.LONGEST_LINE)
        clean = (line.rstrip("\r\n").replace("\r", " ") + "\n" for line in lines)
        reader = csv.reader(clean, delimiter=delimiter)
        start = 2  # the line on which a row begins
        try:
            for row in reader:
                if row and len(row) != len(fields):
                    raise UserError(f"{name}:{start}: {len(row)} columns instead of {len(fields)}" + (
                        "; is a quote unclosed?" if reader.line_num >= start else ""))
                if row:
                    yield row[column], None if number is None else row[number]
                start = reader.line_num + 2
        except csv.Error as error:
            raise UserError(f"{name}:{start}: {error}; is a quote unclosed?") from None

    def blocks():
        block, size, rows = [], 0, 1 if stream.isatty() else PREDICT_ROWS
        for pair in from_lines() if column is None else from_csv():
            block.append(pair)
            size += len(pair[0])
            if len(block) == rows or size > PREDICT_CHARACTERS:
                yield block
                block, size = [], 0
        if block:
            yield block

    return number is not None, blocks()


@functools.partial(jax.jit, static_argnames=("modules", "k"))
def top_batch(modules, ready, shifts, ids, k):
    z = model.combined(modules, ready, shifts, ids)
    top, category = (x[:, None] for x in model.best(z)) if k == 1 else jax.lax.top_k(z, k)
    return {"category": category, "probability": jnp.exp(top - jax.nn.logsumexp(z, 1, keepdims=True))}


def predict(args):
    meta = args.data / "meta.json"
    known = meta.is_file() and {"best", "latest"}.intersection(args.ckpt)
    runs = Ensemble(args, data.read_json(meta).get("fingerprint") if known else None)
    index, names = {word: i for i, word in enumerate(runs.vocab)}, np.array(runs.labels, object)
    k, ready = min(args.top, len(names)), runs.ready(runs.vocab)
    form = "\t".join(["{}\t{:.6f}"] * k) + "\n"

    def classify(block):
        ids, others = data.encode([title for title, _ in block], index, runs.config["max_len"])
        members = tuple(model.extended(config, member, others)
                        for config, member in zip(runs.configs, ready, strict=True)) if others else ready
        return block, model.in_batches(lambda batch: top_batch(runs.modules, members, runs.shifts, batch, k), ids)

    def write(block, result):
        columns = [names[column].tolist() for column in result["category"].T]
        if with_ids:
            csv.writer(out, lineterminator="\n").writerows(zip((name for _, name in block), columns[0], strict=True))
        else:
            shares = [column.tolist() for column in result["probability"].T]
            out.writelines(map(form.format, *itertools.chain.from_iterable(zip(columns, shares, strict=True))))
        out.flush()

    sys.stdout.reconfigure(encoding="utf-8")
    gc.freeze()  # what is loaded by now need not be searched for garbage again and again
    with contextlib.ExitStack() as stack:
        if args.predict == "-" and sys.stdin is None:
            raise UserError("--predict -: standard input is closed")
        file = sys.stdin.buffer if args.predict == "-" else stack.enter_context(open(args.predict, "rb"))
        stack.enter_context(data.reading(args.predict))
        out = stack.enter_context(data.write_beside(args.out)) if args.out else sys.stdout
        pool = stack.enter_context(ThreadPoolExecutor(1))
        with_ids, blocks = read_titles(data.decompressed(file), args.predict)
        if with_ids and args.top > 1:
            raise UserError(f"--top {args.top}: {args.predict} has ids, for which one category each is written")
        if with_ids:
            print("id,category", file=out)
        waiting = []  # a block is classified while the one before is written
        try:
            for block in blocks:
                waiting.append(pool.submit(classify, block))
                while len(waiting) > (not file.isatty()):
                    write(*waiting.pop(0).result())
        finally:  # also what came before a bad row
            while waiting:
                write(*waiting.pop(0).result())


if __name__ == "__main__":
    data.run(lambda: report(ARGS) if ARGS.predict is None else predict(ARGS))
