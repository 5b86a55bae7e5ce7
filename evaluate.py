"""Report how good a checkpoint is on a split or on any labelled file, or classify new titles with it.

    python evaluate.py --ckpt best                          # the best run on this data, on the test split
    python evaluate.py --ckpt my-cnn/latest --split valid   # a run by name; best is its default checkpoint
    python evaluate.py --ckpt mlp-1 cnn-1 encoder-1         # several runs on the same data as one
    python evaluate.py --ckpt best --test last-week.csv     # labelled rows in any format that prepare.py reads
    python evaluate.py --ckpt best --json                   # the scores as one JSON object
    python evaluate.py --ckpt best --predict titles.txt --top 3 --out predicted.tsv
    python evaluate.py --ckpt best --predict export.csv --keep --precision 0.95 --out scored.csv
    echo "zapatillas running talle 42" | python evaluate.py --ckpt best --predict - --explain
    python evaluate.py --ckpt mlp-1 --neighbors celular     # the nearest words, with the cosine of their vectors
    python evaluate.py --list                               # all runs on this data, the best first

The report goes to runs/NAME/SPLIT-WHICH/ (such as test-best): report.html (the page to open: scores, figures, worst
categories, mistakes, commands), report.json, predictions.csv, categories.csv (precision, recall, F1 and support of
each), confusions.csv with example titles, suspects.csv (wrong labels are likely among its first rows), unknown.csv
(rows of categories that the run does not know; they count as wrong), recall.png, confusions.png and reliability.png.
Rows have the file and the line that they come from and, where the file has a column `id`, that. The report is added to
the training's MLflow run. Of several runs it goes to the first one's, runs/NAME/SPLIT-WHICH+OTHER..., with --prior to
SPLIT-WHICH-PRIOR, with --test to FILE-WHICH (of a second file of that name, to FILE-DIGEST-WHICH). Where it cannot be
written, a warning says so, and the scores are shown all the same. The interval of the balanced accuracy is a bootstrap
within categories.

The probability of the likeliest category is the chance that it is right, for titles like the validation rows. The
report says from which probability on 90, 95 and 99 % of the categories should be right (a bound that holds with a
certainty of 99 %, from validation rows), and how many are right on the rows reported on. Several runs are averaged
after their temperatures, by the weights that fit the validation rows best, or equal ones where these are as good.
Predictions assume a prior: that all categories are equally frequent (`equal`, what training with --balance logit or
weights aims at), or as frequent as in training (`training`, as after --balance none). The default is the first run's
own; --prior converts by adding or taking away the log prior. What a precision promises counts titles, of which frequent
categories have more: where --prior says nothing, --precision and the promises of a report assume `training` (so their
thresholds are of --prior training, too).

--predict reads a title a line, or a CSV, Parquet or Excel file with a `title` (or `text`) column, plain or compressed,
`-` for standard input; --title-column says which column it is, --encoding what is not UTF-8 (cp1252 is what Excel's CSV
has). For runs on --data both are as that was prepared, where it fits the file.
It writes a line for each title, in order: category TAB probability, K times with --top K. A table with an `id` column,
such as the challenge's test.csv, gives `id,category` instead; --keep gives all columns of a table, then category and
probability: as Parquet, JSON lines or Excel where --out ends in .parquet, .jsonl or .xlsx, else as CSV with the
separator, quotes, line ends and encoding of the table that was read (.csv is never divided by tabs, .tsv always), or
with those that --out-separator and --out-encoding name. --threshold and --precision leave the category empty where the
probability is too low; a precision that the validation rows cannot promise leaves it empty everywhere, and a warning
says which one they can. With --top K they keep the K candidates, in columns behind: category, probability, candidate_1,
probability_1, candidate_2 and so on. A title of which training has seen no word and no n-gram has no category and no
candidates, and the probability 0. It needs nothing but the run's folder (an encoder also its package, see
requirements-encoder.txt); best and latest are of the runs on --data, where that is there. What comes through a pipe is
answered as it comes.
"""
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # while libraries are loaded, Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from titles import cli, files
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
MAX_BAD_ROWS = 0.01   # share of the rows of --test that may be left out
WRITTEN = (".parquet", ".jsonl", ".ndjson", ".xlsx")  # what --keep writes by the name of --out, besides CSV
UNWRITTEN = {".json": ".jsonl", ".xls": ".xlsx", ".xlsm": ".xlsx", ".xlsb": ".xlsx", ".ods": ".xlsx",
             **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "without this and compress it then")}


def parse_args():
    parser = cli.argument_parser(
        __doc__, stray=lambda word: "--predict" if Path(word).is_file() else "--ckpt")
    add = parser.add_argument_group("which runs").add_argument
    add("--ckpt", nargs="+", default=["best"],
        help="best or latest of all runs, or a run: NAME, NAME/best, NAME/latest, or a path; several are averaged")
    cli.add_data_flag(add)
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--prior", choices=("equal", "training"), help="how frequent categories are taken to be (default: as the run)")

    add = parser.add_argument_group("a report").add_argument
    add("--split", choices=("test", "valid", "train"), help="which rows to report on (default: test)")
    add("--test", type=Path, metavar="FILE", help="report on this labelled file instead of a split")
    add("--category-column", metavar="C", help="of FILE: name or number (from 1) of the column of categories")
    add("--json", action="store_true", help="print the scores as one JSON object and nothing else")

    add = parser.add_argument_group("categories for new titles").add_argument
    add("--predict", metavar="FILE", help="classify the titles in this file, or - for standard input")
    add("--top", type=cli.positive(int), metavar="K",
        help="the K likeliest categories (default: 1); with --neighbors: words (default: 10)")
    add("--threshold", type=cli.fraction, metavar="P", help="leave the category empty where its probability is below")
    add("--precision", type=cli.fraction, metavar="P",
        help="leave so many categories empty that of the others this share is right; with --prior training where no "
        "prior is given, for that promises it for more titles")
    add("--keep", action="store_true", help="write the table's own columns, too, as they were read")
    add("--explain", action="store_true", help="write the words that spoke most for the category")
    add("--out", type=Path, metavar="FILE", help="write here instead of standard output")
    add("--out-encoding", type=cli.encoding, metavar="E", help="with --keep: of CSV (default: as the table's own)")
    add("--out-separator", type=cli.separator, metavar="S",
        help="with --keep: of CSV, such as ';' or tab (default: as the table's own)")

    add = parser.add_argument_group("files of --predict and --test").add_argument
    add("--title-column", metavar="C", help="name or number (from 1) of the column of titles")
    add("--encoding", type=cli.encoding, default="utf-8", help="of the file, such as cp1252, utf-16")

    add = parser.add_argument_group("other").add_argument
    add("--list", action="store_true", help="print all runs on the prepared data, the best first")
    add("--neighbors", metavar="WORD", help="print the words whose vectors are nearest to that of this word")
    cli.add_process_flags(add)
    args = parser.parse_args()

    # What a flag goes with.
    flags = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in (
        "--out", "--threshold", "--precision", "--keep", "--explain", "--json", "--test", "--split", "--title-column",
        "--category-column")}
    flags["--top"], flags["--encoding"] = args.top, args.encoding != "utf-8"
    flags["--out-encoding"], flags["--out-separator"] = args.out_encoding, args.out_separator
    flags["--predict"], flags["--neighbors"] = args.predict is not None, args.neighbors is not None
    flags["--list"] = args.list
    groups = (("--predict", flags["--predict"], ("--out", "--threshold", "--precision", "--keep", "--explain")),
              ("--keep", args.keep, ("--out-encoding", "--out-separator")),
              ("--predict or --neighbors", flags["--predict"] or flags["--neighbors"], ("--top",)),
              ("a report", not any(flags[mode] for mode in ("--predict", "--neighbors", "--list")),
               ("--json", "--test", "--split")),
              ("--predict or --test", args.predict is not None or args.test, ("--title-column", "--encoding")),
              ("--test", args.test, ("--category-column",)))
    for mode, is_on, own in groups:
        if not is_on and (wrong := [flag for flag in own if flags[flag]]):
            raise UserError(f"{wrong[0]} goes with {mode}")
    for one, other in (("--test", "--split"), ("--threshold", "--precision"), ("--neighbors", "--predict"),
                       ("--list", "--predict"), ("--list", "--neighbors")):
        if flags[one] and flags[other]:
            raise UserError(f"{one} and {other}: give one")
    suffix = args.out.suffix.lower() if args.out else ""
    if suffix in UNWRITTEN:
        raise UserError(f"--out {args.out}: {suffix} is not written; name it {UNWRITTEN[suffix]}")
    if suffix in WRITTEN and not args.keep:
        raise UserError(f"--out {args.out}: {suffix} is written with --keep")
    if suffix in WRITTEN and (args.out_encoding or args.out_separator):
        raise UserError(f"--out {args.out}: --out-encoding and --out-separator are of CSV")
    if suffix == ".xlsx" and not importlib.util.find_spec("openpyxl"):
        raise UserError(f"--out {args.out}: to write Excel files, pip install openpyxl, or name it .csv")

    # Filled in only here: above, None tells that a flag was not given.
    args.split, args.top = args.split or "test", args.top or (10 if flags["--neighbors"] else 1)
    return args


if __name__ == "__main__":
    ARGS = cli.run(parse_args)  # before JAX is loaded, so that --help answers at once
    cli.run(cli.clean_environment)

import contextlib
import csv
import dataclasses
import gc
import io
import math
import re
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa

import classify
import data
from titles import devices, page, report, runs, sources, tables, tracking
from titles.predict import PREDICT_ROWS, load, load_named

# --- report -----------------------------------------------------------------------------------------------------------

def prepared_rows(args, classifier, meta, arrays):
    """The rows of a prepared split, see `read_rows`; meta and arrays as from data.load_prepared. Raises UserError where
    the classifier was trained on other data."""
    if classifier.config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{classifier.folder}: was trained on other data ({classifier.config['fingerprint']}) than "
                        f"{cli.listed(args.data)} holds ({meta['fingerprint']}); name its data with --data, report "
                        "on a file with --test, or classify titles with --predict")
    refits = [folder for folder, _ in classifier.checkpoints if "refit" in files.read_json(folder / "config.json")]
    if refits and args.split == "valid":
        raise UserError(f"{refits[0]}: is a refit, so the validation rows trained it; report on another split, or on "
                        "the run that it was made of (--ckpt NAME)")
    if not meta["rows"][args.split]:
        raise UserError(f"{cli.listed(args.data)}: has no {args.split} rows; name the folder that it was prepared "
                        "--like with it")

    rows = SimpleNamespace(**{"language": None, "reliable": None, "id": None} | arrays[args.split])
    rows.labels = rows.labels.astype(np.int64)
    rows.names, rows.languages = classifier.labels, meta["languages"]
    return rows


def file_format(args, classifier, file):
    """The sources.Format of the file to read: what flags say, and where they say nothing what the data of the run was
    prepared with, if it lies in --data and where that fits. file: what is read, open in binary."""
    remembered = {}
    with contextlib.suppress(UserError):  # a run needs no data to classify
        if data.fingerprint_of(args.data) == classifier.config["fingerprint"]:
            folder = args.data if isinstance(args.data, Path) else args.data[0]
            remembered = files.read_json(folder / "meta.json")["options"]
    form, encoding = sources.format_from(args, remembered), remembered.get("encoding", args.encoding)
    if args.encoding != "utf-8" or encoding == "utf-8":
        return form

    # Of what comes through a pipe only the first lines can be looked at.
    def opened():
        if not files.is_patient(file):
            return io.BufferedReader(io.BytesIO(b"".join(file.peek().rpartition(b"\n")[:2]) or file.peek()))
        file.seek(0)
        return files.decompressed(file)

    with files.archive_errors(args.test or args.predict):
        other = not sources.is_text(opened(), "utf-8") and sources.is_text(opened(), encoding)
    if files.is_patient(file):
        file.seek(0)
    return form._replace(encoding=encoding) if other else form


def read_rows(args, classifier):
    """The rows of a labelled file, as a namespace: `text`, list of titles; `labels` [N], numbers of `names`, which are
    the run's and behind them those it does not know; `file` and `id` (or None), lists of str, and `line` [N], which
    say where they stand; `keys` [N] as from data.title_keys; `language` [N], number of `languages`, and `reliable` [N]
    bool, or None."""
    bad, blocks = sources.BadRows(MAX_BAD_ROWS, "mend them"), []
    with open(args.test, "rb") as file:
        form = file_format(args, classifier, file)
    for block in sources.read_labelled(args.test, bad, form):
        # Called for its check alone: marks other than reliable and unreliable are refused.
        sources.given_quality(args.test, block.get("quality", pa.array([], pa.string())))
        blocks.append({column: block[column].to_pylist() if column in block else [""] * len(block["title"])
                       for column in ("title", "category", "spelling", "language", "quality", "id", "line")})
    rows = {column: [value for block in blocks for value in block[column]] for column in blocks[0]} if blocks else {}
    bad.check(len(rows.get("title", [])))
    bad.warn()
    if not rows or not rows["title"]:
        raise UserError(f"{args.test}: no rows")
    if bad.count:
        print(f"warning: {bad.count:,} bad rows left out, first {bad.first}", file=sys.stderr)

    # Categories that the run does not know get numbers behind those it does. Names that look the same are the same.
    names = list(classifier.labels)
    number = {sources.tidy(name): i for i, name in enumerate(names)}
    for name, spelling in zip(rows["category"], rows["spelling"], strict=True):
        if name not in number:
            number[name] = len(names)
            names.append(spelling)

    # Rows without a language are a slice of their own, unless no row has one.
    languages = sorted({name or "unknown" for name in rows["language"]})
    return SimpleNamespace(
        text=rows["title"], labels=np.array([number[name] for name in rows["category"]]), names=names,
        file=[cli.readable(args.test)] * len(rows["line"]), line=np.array(rows["line"]),
        id=rows["id"] if any(rows["id"]) else None, keys=data.keys_of(rows["title"]),
        languages=languages if any(rows["language"]) else None,
        language=np.array([languages.index(name or "unknown") for name in rows["language"]]),
        reliable=np.array([quality.lower() == "reliable" for quality in rows["quality"]])
        if any(rows["quality"]) else None)


def origin(args, rows, meta):
    """Where the rows of a report come from: {"files" as from data.files_of, "folder" and "fingerprint" of prepared data
    or None}. meta: of prepared data, or None for --test."""
    if meta:
        return {"files": data.files_of(meta["source"], args.split), "folder": cli.listed(args.data),
                "fingerprint": meta["fingerprint"]}
    return {"files": [{"file": cli.readable(args.test), "rows": len(rows.text),
                       "checksum": files.checksum(args.test)}], "folder": None, "fingerprint": None}


def command(args, classifier):
    """The command that makes a report again, also when `best` has come to mean another run."""
    words = ["python", "evaluate.py", "--ckpt", *(
        f"{runs.short_name(folder, args.runs)}/{which}" for folder, which in classifier.checkpoints)]
    for name, usual in {"split": "test", "test": None, "prior": None, "title_column": None, "category_column": None,
                        "encoding": "utf-8"}.items():
        if (value := getattr(args, name)) is not None and str(value) != usual:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return cli.quoted(words) + runs.other_folders(args)


def report_name(folder, split, name, file):
    """How the report on a file is called: `split`, its name, or where a run's folder has that report of another file,
    with a digest of its path behind."""
    with contextlib.suppress(OSError, UserError):
        if files.read_json(folder / f"{split}-{name}/report.json").get("file") != cli.readable(file.resolve()):
            return f"{split}-{files.checksum_of(os.fsencode(file.resolve()))[:6]}"
    return split


def evaluate(args):
    # Everything is read and matched before it is scored.
    if args.test:
        files.require_file(args.test)
        classifier = load_named(args)
        rows, meta = read_rows(args, classifier), None
    else:
        meta, arrays = data.load_prepared(args.data, (args.split,), text=args.split)
        classifier = load(*args.ckpt, folder=args.runs, prior=args.prior, fingerprint=meta["fingerprint"])
        rows = prepared_rows(args, classifier, meta, arrays)
    devices.require_same([classifier.identity, rows.text, files.checksum_of(rows.labels.tobytes())])
    rows.trained = classifier.has_trained_on(rows.keys)
    if rows.trained.any() and args.split != "train" and devices.is_first():
        print(f"warning: {rows.trained.sum():,} of {len(rows.labels):,} rows have titles that trained "
              f"{' or '.join(dict.fromkeys(member.name for member, _ in classifier.checkpoints))}; their scores do not "
              "hold for new titles", file=sys.stderr)
    if devices.is_first():
        connecting = cli.in_background(tracking.mlflow_client)  # takes seconds; meanwhile we score

    # Score every row. Categories that the run does not know have no probability: they are wrong.
    classes, folder = len(classifier.labels), classifier.folder
    result, promising = classifier.score(rows.text, np.minimum(rows.labels, classes - 1), True), classifier.promising
    promised = {name: result.pop(f"promised_{name}") for name in ("prediction", "probability")}
    if not devices.is_first():
        return
    unknown = rows.labels >= classes
    result["rank"][unknown] = np.iinfo(np.int32).max
    for name in ("loss", "calibrated_loss", "brier"):
        result[name][unknown] = np.nan

    # The scores of all rows and of every slice of them, and what thresholds from validation rows give here.
    split = place = args.split
    if args.test:
        split = re.sub(r"[^\w.-]", "_", args.test.name)[:60]
        split = f"file-{split}" if split in data.SPLITS else split  # a file of such a name is no split
        place = report_name(folder, split, classifier.name, args.test)
    synthetic = classifier.config["synthetic"]
    source = origin(args, rows, meta)
    scores = {"run": folder.name, "checkpoint": classifier.name, "step": classifier.steps[0], "split": split,
              "data": source, "prior": classifier.prior, "synthetic": synthetic,
              "temperature": float(1 / classifier.factors.sum()),
              "smoothing": float(classifier.smoothing)} | report.summarize(rows.labels, result)
    if args.test:
        scores["file"] = cli.readable(args.test.resolve())
    if len(classifier.members) > 1:
        scores["members"] = {
            f"{member.name}/{which}": {"step": step, "weight": float(share), "temperature": float(temperature)}
            for (member, which), step, share, temperature in zip(
                classifier.checkpoints, classifier.steps, classifier.weights,
                classifier.temperatures, strict=True)}
    scores["unknown_category_rows"] = int(unknown.sum())
    scores["unknown_title_rows"] = int((~result["known"]).sum())
    scores["trained_rows"] = int(rows.trained.sum())
    scores["promising_prior"] = promising.prior
    scores["thresholds"] = report.promises(promising.threshold, rows.labels, promised)
    scores["slices"] = {name: report.summarize(rows.labels[mask], {key: value[mask] for key, value in result.items()})
                        for name, mask in report.slices(rows).items()}

    # The report's folder is replaced whole; what else is kept there stays.
    members = list(dict.fromkeys(member for member, _ in classifier.checkpoints))
    who, again = " + ".join(member.name for member in members), command(args, classifier)
    title = f"{'SYNTHETIC data, ' if synthetic else ''}{who}, {split}{'' if args.test else ' split'}"
    made = report.make_tables(rows, classifier.config["training_rows"], result)
    figures = report.make_figures(rows, made["categories.csv"], result, title)
    out = folder / f"{place}-{classifier.name}{f'-{args.prior}' if args.prior else ''}"
    try:
        with files.atomic_folder(out) as temporary:
            if out.exists():
                shutil.copytree(out, temporary, symlinks=True, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns(*report.FILES))
            report.write(temporary, scores, made, figures)
            page.write(temporary / "report.html", title, scores, made,
                       [runs.training_of(member, runs.other_folders(args)) for member in members], again)
    except OSError as error:  # of a read-only folder, or a full disk; the scores can be told all the same
        why = os.strerror(error.errno) if error.errno else "what else is there cannot be copied"
        print(f"warning: {out}: the report is not written there ({why}), only its scores are shown and logged",
              file=sys.stderr)
        out = None

    if args.json:
        print(json.dumps(scores))
    else:
        print(f"{title}, {report.checkpoints(scores)} of "
              f"{' and '.join(dict.fromkeys(config['model'] for config, _ in classifier.members))}:")
        report.show(scores, made["confusions.csv"])
        if out:
            print(f"report: {out}/")

    # In MLflow a report bears a name such as test-best. Several runs together have an MLflow run of their own, and
    # there the members' names need not be repeated.
    group = f"{place}-{'+'.join(dict.fromkeys(which for _, which in classifier.checkpoints))}"
    with tracking.mlflow_warnings():
        if meta:
            context = {"train": "training", "valid": "validation", "test": "testing"}[args.split]
            used = [tracking.split_set(data.described(meta), args.split, context)]
        else:
            used = [tracking.data_set(source["files"], cli.readable(args.test.name), source["files"][0]["checksum"],
                                      "evaluation")]
        client, _ = connecting.result()
        tracking.log_report(client, classifier.checkpoints, out, f"{group}{f'-{args.prior}' if args.prior else ''}",
                            scores, again, tracking.training_sets(classifier.config) + used)


# --- prediction -------------------------------------------------------------------------------------------------------

def predict(args):
    if args.predict == "-" and jax.process_count() > 1:
        raise UserError("--predict -: only one process has this input; name a file that all can read")
    args.out = args.out if devices.is_first() else None  # what the others print goes nowhere
    classifier = load_named(args)
    devices.require_same([classifier.identity, args.predict, args.top, args.explain, args.precision, args.threshold])
    threshold = args.threshold
    if args.precision:
        # What cannot be promised leaves all categories empty; candidates may still be wanted.
        classifier = classifier.promising
        threshold, unkept = classifier.promised(args.precision)
        if unkept:
            print(f"warning: --precision {unkept}", file=sys.stderr)

    # Behind the categories stands no name, for titles that are left without one; lines of text need an empty one.
    nothing = None if args.keep else ""
    top, names = min(args.top, len(classifier.labels)), np.array([*classifier.labels, nothing], object)

    def classified(titles):
        """[column of the answer, a list with an entry for each title]; how many have no category, and no known word."""
        likeliest, chances = classifier.likeliest(titles, top)
        categories, chances = classify.answered(likeliest, chances, threshold)
        columns = [column for ids, p in zip(categories.T, chances.T, strict=True)
                   for column in (names[ids].tolist(), p.tolist())]
        # The likeliest category is explained even where it is refused.
        if args.explain:
            columns.append([" ".join(f"{word}:{gain:.2f}" for word, gain in words)
                            for words in classifier.explain(titles, likeliest[:, 0])])
        return columns, np.array([len(titles), (categories[:, 0] < 0).sum(), (chances[:, 0] == 0).sum()])

    # The same bytes on every system. What is loaded by now need not be searched for garbage again and again.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    gc.freeze()
    bad, counts = sources.NoBadRows(), np.zeros(3, int)
    with contextlib.ExitStack() as stack:
        if args.predict != "-" and " " in args.predict and not Path(args.predict).exists():
            raise UserError(f"--predict {args.predict}: no such file; to classify a title, pipe it: echo "
                            f"{cli.quoted([args.predict])} | python evaluate.py --predict -")
        if args.predict == "-" and sys.stdin is None:
            raise UserError("--predict -: standard input is closed")
        file = sys.stdin.buffer if args.predict == "-" else stack.enter_context(open(args.predict, "rb"))
        stack.enter_context(files.archive_errors(args.predict))
        require_other_file(file, args.out)
        form = file_format(args, classifier, file)
        header, blocks, dialect = sources.read_titles(files.decompressed(file), args.predict, bad, form, args.keep)
        if args.keep:
            dialect = written_dialect(args, dialect)
            tables.require_writable(classifier.labels, dialect.encoding)

        # The challenge's own form, id,category, has no room for more.
        if header == ["id"] and not args.keep and (top > 1 or args.explain):
            flag = f"--top {args.top}" if top > 1 else "--explain"
            raise UserError(f"{flag}: {args.predict} has ids, for which one category each is written; --keep writes "
                            "whole tables")
        write = stack.enter_context(writer(args, header, top, dialect))
        pool = stack.enter_context(ThreadPoolExecutor(1))

        # A part of a block is classified while the one before is written; what comes from a terminal or a pipe is
        # answered at once.
        waiting, ahead = [], 1 if files.is_patient(file) else 0

        def finish(left):
            nonlocal counts
            while len(waiting) > left:
                kept, answer = waiting.pop(0)
                columns, found = answer.result()
                write(kept, columns)
                counts += found

        try:
            for titles, kept in blocks:
                for start in range(0, len(titles), PREDICT_ROWS):
                    part = slice(start, start + PREDICT_ROWS)
                    waiting.append((kept and kept[part], pool.submit(classified, titles[part])))
                    finish(ahead)
        finally:  # also what came before a bad row
            finish(0)
    bad.warn()
    notes = [(counts[2], "of which training has seen no word and no n-gram: no category, probability 0")]
    if threshold not in (None, math.inf):
        notes.insert(0, (counts[1], f"left without a category: its probability is below {threshold:.4f}"))
    for number, what in notes:
        if number:
            print(f"{number:,} of {counts[0]:,} titles {what}", file=sys.stderr)


def require_other_file(file, out):
    """Raise UserError where --out is the file that is open, by whatever name."""
    with contextlib.suppress(OSError, ValueError):  # there is no such file yet, or what is read is none
        read = os.fstat(file.fileno())
        if stat.S_ISREG(read.st_mode) and out and os.path.samestat(read, os.stat(out)):
            raise UserError(f"--out {out}: is the file that --predict reads; choose another")


def written_dialect(args, dialect):
    """The Dialect in which --keep writes CSV: as the table is that was read, unless flags or the name of --out say
    otherwise."""
    suffix, separator = args.out.suffix.lower() if args.out else "", dialect.separator
    if suffix in WRITTEN:
        return dataclasses.replace(dialect, encoding="utf-8")
    if suffix in (".csv", ".tsv") and (separator == "\t") != (suffix == ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
    return dataclasses.replace(dialect, separator=args.out_separator or separator, encoding=args.out_encoding or
                               dialect.encoding, mark=dialect.mark and not args.out_encoding)


@contextlib.contextmanager
def writer(args, header, top, dialect):
    """A function of (kept columns or None, columns of the answer) that writes rows to --out or standard output: behind
    the columns of a table, in its own dialect or as the name of --out says; after ids as CSV; else divided by tabs."""
    # A table's own columns keep their names, such as the category of labelled rows.
    taken = header if args.keep else ()
    added = classify.answer_columns(top, args.threshold or args.precision, taken)
    pairs = len(added) // 2
    added += [classify.free_name("explanation", taken)] if args.explain else []
    if args.keep:
        kinds = [pa.string(), pa.float64()] * pairs + [pa.string()] * args.explain
        with tables.writer(args.out, dialect, header, [*zip(added, kinds, strict=True)]) as write:
            yield write
        return

    with files.atomic_write(args.out) if args.out else contextlib.nullcontext(sys.stdout) as out:
        rows = csv.writer(out, lineterminator="\n")
        if header:
            rows.writerow(["id", "category"])

        # Lines are made by one format for all columns, which is much faster than a field at a time.
        form = "\t".join(["{}\t{:.6f}"] * pairs + ["{}"] * args.explain) + "\n"

        def write_text(kept, columns):
            if header:
                rows.writerows(zip(kept["id"].to_pylist(), columns[0], strict=True))
            else:
                out.writelines(map(form.format, *columns))
            # Whoever reads the other end of a pipe gets each part at once.
            out.flush()

        yield write_text


# --- words ------------------------------------------------------------------------------------------------------------

def neighbors(args):
    classifier, word = load_named(args), data.tokenize(args.neighbors)
    if len(word) != 1:
        raise UserError(f"--neighbors {args.neighbors!r}: wanted one word, this is {len(word)}")
    words, vectors = classifier.word_vectors([] if word[0] in classifier.vocab else word)
    own = words.index(word[0])

    # Where training has seen no part of a word its vector is zero, or chance where hashes meet.
    if not classifier.read(word)[2][0]:
        raise UserError(f"--neighbors {word[0]}: training has seen neither the word nor an n-gram of it")
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = units @ units[own]
    # No word is nearer to a word than itself.
    cosines[own] = -np.inf
    for i in np.argsort(-cosines, kind="stable")[:min(args.top, len(words) - 1)]:
        print(f"{words[i]}\t{cosines[i]:.4f}")


def main(args):
    if args.list:
        if (fingerprint := data.fingerprint_of(args.data)) is None:
            raise UserError(f"{cli.listed(args.data)}: no prepared data here; run prepare.py, or name it with --data")
        return runs.show_all(args.runs, fingerprint)
    if args.neighbors is not None:
        return neighbors(args)
    return evaluate(args) if args.predict is None else predict(args)


if __name__ == "__main__":
    cli.run(lambda: devices.together(main, ARGS))
