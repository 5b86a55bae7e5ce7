"""Report how good a checkpoint is on a split or on any labelled file, or classify new titles with it.

    python evaluate.py --ckpt best                          # the best run on this data, on the test split
    python evaluate.py --ckpt my-cnn/latest --split valid   # a run by name; best is its default checkpoint
    python evaluate.py --ckpt all                           # the best run of every model on this data, as one
    python evaluate.py --ckpt mlp-1 cnn-1 encoder-1         # several runs on the same data as one
    python evaluate.py --ckpt best --test last-week.csv     # labelled rows in any format that prepare.py reads
    python evaluate.py --ckpt cnn-1 --against mlp-1         # which of two is better, and whether it could be chance
    python evaluate.py --ckpt best --json                   # the scores as one JSON object
    python evaluate.py --ckpt best --predict titles.txt --top 3 --out predicted.tsv
    python evaluate.py --ckpt best --predict export.csv --keep --precision 0.95 --out scored.csv
    python evaluate.py --ckpt best --predict titles.txt --level 1    # of a tree the nodes of one level
    python evaluate.py --ckpt best --compare new.csv        # are new titles like those that trained it? without labels
    python evaluate.py --ckpt best --prior estimated --predict new.csv    # for the mix of categories that they have
    python evaluate.py --ckpt best --predict new.csv --next 200 --out next.html      # label these next, on this page
    echo "zapatillas running talle 42" | python evaluate.py --ckpt best --predict - --explain
    python evaluate.py --ckpt mlp-1 --neighbors celular     # the nearest words, with the cosine of their vectors
    python evaluate.py --list                               # all runs on this data, the best first

The report goes to runs/NAME/SPLIT-WHICH/ (such as test-best), in place of an earlier one there: report.html (the page
to open: scores, figures, worst categories, mistakes, commands), report.json, predictions.csv, categories.csv
(precision, recall, F1 and support of each), confusions.csv with example titles, suspects.csv (wrong labels are likely
among its first rows), unknown.csv (rows of categories that the run does not know; they count as wrong), values.csv (of
a run that reads columns the values with the most mistakes), nodes.csv (of a tree the recall of every node), recall.png,
confusions.png, reliability.png and answered.png (of a tree how many rows are answered at which precision). Rows have
the file and the line that they come from and, where the file has a column `id`, that. The report is added to the
training's MLflow run. Of several runs it goes to the first one's, as SPLIT-WHICH+OTHER..., with --prior to
SPLIT-WHICH-PRIOR, with --against NAME to SPLIT-WHICH-against-NAME, with --test to FILE-WHICH (of a second file of that
name, to FILE-DIGEST-WHICH). Where it cannot be written, a warning says so, and the scores are shown all the same. The
interval of the balanced accuracy is a bootstrap within categories.

--against compares --ckpt with another run, or several, on the same rows, in a sentence, on the page by language and
other slices, and in against.csv by category: the difference in balanced accuracy with a 95 % interval of a paired
bootstrap, that in accuracy, and McNemar's test. Both have --prior, where it is given, else each its own.

The probability of the likeliest category is the chance that it is right, for titles like the validation rows. The
report says from which probability on 90, 95 and 99 % of the categories should be right (a bound that holds with a
certainty of 99 %, from validation rows), and how many are right on the rows reported on. Several runs are averaged
after their temperatures; those that read words have as much weight together as encoders have, and where validation rows
are better fitted by other weights they go half of the way there.
Predictions assume a prior: that all categories are equally frequent (`equal`, what training with --balance logit or
weights aims at), or as frequent as in training (`training`, as after --balance none). The default is the first run's
own; --prior converts by adding or taking away the log prior. What a precision promises counts titles, of which frequent
categories have more: where --prior says nothing, --precision and the promises of a report assume `training` (so their
thresholds are of --prior training, too). --prior estimated assumes the mix of the titles that are predicted, see below.

Where categories are leaves of a tree (prepare.py --separator), --precision and --threshold answer with the deepest node
above the likeliest category that is sure enough, with the probability of that node. What a precision promises holds for
all answers together, so a category that --leaf-only would write may become a node above it, where more titles are then
answered; a precision in between takes the rule of the next hundredth. --leaf-only answers with categories alone,
--level N with nodes of one level (categories that end above it among them), and --keep --levels writes a column for
each level of the answer. The report says of each level how good it is and of each promise how many rows get a node and
how many a category; rows that know only a parent count at the levels that they know, and a category that the run does
not know counts at those of its known parents.

--compare says whether titles, which need no labels, are like the validation rows of the run, first in one sentence:
the accuracy to expect of them with a 95 % interval, how many the promises still answer, the mix of categories where it
has changed, words that training has not seen, and, where the prepared data of the run is in --data, which words tell
them from its validation titles. What has changed is said where a test finds it, which errs in one of a hundred files
of the same kind, and where it is large enough to matter. Of more than 10,000 titles so many are drawn at random; titles
that trained the run are left out, and counted. It goes to runs/NAME/compare-FILE-WHICH/, as compare.html and
compare.json, which --json prints, and to the training's MLflow run. --prior estimated makes the same test of the mix,
says what it found, and where that has not changed predicts for the one of training; it reads the file twice. What it
estimates holds where the titles of a category are as they were and only their number has changed: a column that is
filled in otherwise may look like another mix.

--predict reads a title a line, or a CSV, Parquet or Excel file with a `title` (or `text`) column, plain or compressed,
`-` for standard input; columns that the run reads beside it (prepare.py --columns) are found by their names, and where
one is lacking a warning says so. --title-column says which column it is, or which several, --encoding what is not UTF-8
(cp1252 is what Excel's CSV has). For runs on --data both are as that was prepared, where it fits the file.
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
answered as it comes. Of 100 titles or more the accuracy to expect of the likeliest categories is said at the end.

A run on data without validation rows (of one row a category there are none) is evaluated and predicts like others, and
so does --next. What its probabilities mean is not known, which a warning and the report say; --precision, --compare and
--prior estimated, which rest on validation rows, are refused.

--next chooses of the titles of --predict those that teach the most: the ones whose two likeliest categories are nearly
as likely, of near-equal titles one, and none that the runs or their data in --data have a label of. It writes their
table, the most useful first, with an empty column for the category, named as the data's (or as --category-column says;
a table that has it keeps it), and K candidates. Where --out ends in .html it writes a page that needs no other file:
on it a person labels some hundred titles with the keyboard, and downloads them as labelled.csv. Both go back with
prepare.py --data old.csv labelled.csv; a column `split` says that these titles only train, for they are harder than
others. Takes as long as predicting the titles.
"""
import argparse
import itertools
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

MAX_BAD_ROWS = 0.01  # share of the rows of --test that may be left out
LATER = ("scipy.optimize", "scipy.stats", "matplotlib.backends.backend_agg", "pandas")  # for a report; loaded ahead


# --- flags ------------------------------------------------------------------------------------------------------------

# What a flag goes with; `a report` is made where none of --predict, --compare, --neighbors and --list is given.
GOES_WITH = {
    **dict.fromkeys(("--out", "--threshold", "--precision", "--level", "--leaf-only", "--keep", "--explain"),
                    "--predict"),
    **dict.fromkeys(("--out-encoding", "--out-separator"), "--keep or --next"), "--levels": "--keep",
    "--next": "--predict", "--top": "--predict or --neighbors",
    **dict.fromkeys(("--test", "--split", "--against"), "a report"), "--json": "a report or --compare",
    **dict.fromkeys(("--title-column", "--encoding"), "--predict or --test or --compare"),
    **dict.fromkeys(("--category-column", "--separator"), "--test or --next")}
NOT_TOGETHER = (("--test", "--split"), ("--threshold", "--precision"), ("--level", "--leaf-only"),
                *itertools.combinations(("--list", "--neighbors", "--compare", "--predict"), 2),
                *itertools.product(("--next",), ("--threshold", "--precision", "--level", "--leaf-only", "--keep",
                                                 "--explain")))


def make_parser():
    parser = cli.argument_parser(
        __doc__, stray=lambda word: "--predict" if Path(word).is_file() else "--ckpt")
    add = parser.add_argument_group("which runs").add_argument
    cli.add_run_flags(add)
    add("--prior", choices=("equal", "training", "estimated"),
        help="how frequent categories are taken to be (default: as the run); estimated: as in the titles predicted")

    add = parser.add_argument_group("a report").add_argument
    add("--split", choices=("test", "valid", "train"), help="which rows to report on (default: test)")
    add("--test", type=Path, metavar="FILE", help="report on this labelled file instead of a split")
    add("--category-column", nargs="+", metavar="C",
        help="of FILE, or to be filled in with --next: name or number (from 1) of the column of categories, or of "
        "several, the levels from the top")
    add("--separator", type=cli.level_separator, metavar="S",
        help="of FILE: what divides the levels of a category, such as '>' (default: as the data was prepared)")
    add("--against", nargs="+", metavar="CKPT",
        help="say whether --ckpt is better on these rows than this run, or than several that are averaged")
    add("--json", action="store_true", help="print scores, or what --compare finds, as one JSON object, nothing else")

    add("--compare", type=Path, metavar="FILE",
        help="say whether the titles of this file, which need no labels, are like those that trained the run")

    add = parser.add_argument_group("categories for new titles").add_argument
    add("--predict", metavar="FILE", help="classify the titles in this file, or - for standard input")
    add("--top", type=cli.positive(int), metavar="K",
        help="the K likeliest categories (default: 1; with --next 5, on a page 9); with --neighbors: words (default: "
        "10)")
    add("--threshold", type=cli.fraction, metavar="P", help="leave the category empty where its probability is below")
    add("--precision", type=cli.fraction, metavar="P",
        help="leave so many categories empty that of the others this share is right; with --prior training where no "
        "prior is given, for that promises it for more titles")
    add("--level", type=cli.positive(int), metavar="N",
        help="of a tree: answer with nodes of this level, from 1 at the top, whatever else would be sure enough")
    add("--leaf-only", action="store_true", help="of a tree: answer with categories alone, which are its leaves")
    add("--keep", action="store_true", help="write the table's own columns, too, as they were read")
    add("--levels", action="store_true", help="with --keep, of a tree: write the answer's levels in columns, too")
    add("--explain", action="store_true", help="write the words that spoke most for the category")
    add("--next", type=cli.positive(int), metavar="N",
        help="write the N titles to label next, the most useful first, with their likeliest categories; where --out "
        "ends in .html a page to label them on")
    add("--out", type=Path, metavar="FILE", help="write here instead of standard output")
    add("--out-encoding", type=cli.encoding, metavar="E",
        help="with --keep or --next: of CSV (default: as the table's own)")
    add("--out-separator", type=cli.separator, metavar="S",
        help="with --keep or --next: of CSV, such as ';' or tab (default: as the table's own)")

    add = parser.add_argument_group("files of --predict, --test and --compare").add_argument
    add("--title-column", nargs="+", metavar="C", help="name or number (from 1) of the column of titles, or of several")
    add("--encoding", type=cli.encoding, default="utf-8", help="of the file, such as cp1252, utf-16")

    add = parser.add_argument_group("other").add_argument
    add("--list", action="store_true", help="print all runs on the prepared data, the best first")
    add("--neighbors", metavar="WORD", help="print the words whose vectors are nearest to that of this word")
    cli.add_process_flags(add)
    return parser


def parse_args():
    parser = make_parser()
    args = parser.parse_args()
    given = {f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value != parser.get_default(name)}
    if not given & {"--predict", "--compare", "--neighbors", "--list"}:
        given.add("a report")
    for flag, wanted in GOES_WITH.items():
        if flag in given and not given.intersection(wanted.split(" or ")):
            raise UserError(f"{flag} goes with {wanted}")
    for one, other in NOT_TOGETHER:
        if {one, other} <= given:
            raise UserError(f"{one} and {other}: give one")
    if args.prior == "estimated" and (args.predict == "-" or given & {"--compare", "--neighbors", "--list"}):
        raise UserError("--prior estimated goes with --predict FILE or a report, for titles are read twice" if
                        args.predict == "-" else "--prior estimated goes with --predict or a report")
    if args.out:
        cli.require_packages()
        from titles import tables  # which --help must not wait for
        tables.check_out(args)

    # Filled in only here: above, None tells that a flag was not given.
    args.split = args.split or "test"
    is_page = args.out and tables.suffix_of(args.out) in tables.PAGES
    args.top = args.top or (10 if args.neighbors is not None else 9 if is_page else 5 if args.next else 1)
    return args


if __name__ == "__main__":
    ARGS = cli.run(parse_args)  # before JAX is loaded, so that --help answers at once
    cli.run(cli.clean_environment)

import contextlib
import functools
import gc
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa

import classify
import data
from titles import (
    calibration,
    change,
    choose,
    devices,
    formats,
    labelling,
    page,
    report,
    runs,
    sources,
    tables,
    tracking,
)
from titles.predict import PREDICT_ROWS, load, load_named  # noqa: F401 - `load` is for Python

# --- a report ---------------------------------------------------------------------------------------------------------

def evaluate(args):
    # Everything is read and matched before it is scored; meanwhile what a report needs is loaded.
    cli.load_ahead(LATER if devices.is_first() else ())
    classifier, rows = read_file(args) if args.test else read_split(args)
    if not rows.has_category.any():
        raise UserError(f"{args.test or cli.listed(args.data)}: no row knows its category, but only a parent of it")
    devices.require_same([classifier.identity, rows.inputs.titles, files.checksum_of(rows.labels.tobytes())])
    if rows.trained.any() and args.split != "train" and devices.is_first():
        print(f"warning: {rows.trained.sum():,} of {len(rows.labels):,} rows have titles that trained "
              f"{' or '.join(folder.name for folder in classifier.folders)}; their scores do not hold for new titles",
              file=sys.stderr)
    if devices.is_first():
        connecting = cli.in_background(tracking.mlflow_client)  # takes seconds; meanwhile we score
    if args.prior == "estimated":
        classifier = estimated(classifier, change.sampled([rows.inputs])[0])
    result = report.score_rows(classifier, rows)
    other = predicted_by_other(args, classifier, rows) if args.against else None
    if not devices.is_first():
        return

    made = report.make_report(classifier, rows, result)
    if other:
        report.add_paired(made, rows, result, *other)
    name = report_name(args, classifier, rows.split, rows.path, "report.json")
    folder = write_report(args, classifier, made, name)
    if args.json:
        print(json.dumps(made.scores))
    else:
        print(f"{made.title}, {report.checkpoints(made.scores)} of "
              f"{' and '.join(dict.fromkeys(config['model'] for config, _ in classifier.members))}:")
        report.show(made.scores, made.tables["confusions.csv"])
        if folder:
            print(f"report: {folder}/")

    with tracking.mlflow_warnings():
        client, _ = connecting.result()
        run_id = tracking.run_id_of(classifier.folder)
        client.log_inputs(run_id, [*tracking.training_sets(classifier.config), data_set(args, rows)])
        tracking.log_report(client, run_id, name, report.metrics(made.scores), folder)


def predicted_by_other(args, one, rows):
    """(name of the classifier of --against, which of these rows it has right [N] bool). Raises UserError where it is
    the classifier `one` itself, or does not read the same rows."""
    args = argparse.Namespace(**vars(args) | {"ckpt": args.against})
    classifier, its = read_file(args) if args.test else read_split(args)
    if its.inputs.titles != rows.inputs.titles:
        raise UserError(f"--against {cli.quoted(args.against)}: reads other rows of {args.test}; name the columns with "
                        "--title-column and --category-column")
    if args.prior == "estimated":
        classifier = estimated(classifier, change.sampled([its.inputs])[0])
    names = " + ".join(folder.name for folder in classifier.folders)
    if classifier.identity == one.identity:
        raise UserError(f"--against {cli.quoted(args.ckpt)}: is {names}, as --ckpt is; name another run")
    return names, (
        classifier.likeliest(its.inputs, 1)[0][:, 0] == its.labels)


def read_split(args):
    """(Classifier, report.Labelled) of a prepared split. Raises UserError where they do not go together."""
    meta, arrays = data.load_prepared(args.data, (args.split,), text=args.split, ids=False)
    if not meta["rows"][args.split]:
        where = "name the folder that it was prepared --like with it" if meta["options"]["like"] else (
            "report on a labelled file with --test")
        raise UserError(f"{cli.listed(args.data)}: has no {args.split} rows; {where}")
    classifier = load_named(args)
    if classifier.config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{classifier.folder}: was trained on other data ({classifier.config['fingerprint']}) than "
                        f"{cli.listed(args.data)} holds ({meta['fingerprint']}); name its data with --data, report "
                        "on a file with --test, or classify titles with --predict")
    refits = [folder for folder in classifier.folders if "refit" in files.read_json(folder / "config.json")]
    if refits and args.split == "valid":
        raise UserError(f"{refits[0]}: is a refit, so the validation rows trained it; report on another split, or on "
                        "the run that it was made of (--ckpt NAME)")
    found = arrays[args.split]
    return classifier, report.Labelled(
        inputs=classify.Rows(found["text"], found["columns"][:, classifier.column_numbers]) if classifier.columns else
        classifier.rows(found["text"]),
        labels=found["labels"].astype(np.int64), names=classifier.tree.names, tree=classifier.tree,
        trained=classifier.has_trained_on(found["keys"]), language=found.get("language"), languages=meta["languages"],
        reliable=found.get("reliable"), file=found["file"], line=found["line"], id=found.get("id"), split=args.split,
        prepared=data.described(meta), source={
            "files": data.files_of(meta["source"], args.split), "folder": cli.listed(args.data),
            "fingerprint": meta["fingerprint"]})


def read_file(args):
    """(Classifier, report.Labelled) of a labelled file."""
    files.require_file(args.test)
    classifier = load_named(args)
    found = read_columns(args, classifier)

    # Categories that the run does not know get numbers behind those it does. Names that look the same are the same.
    names = list(classifier.tree.names)
    number = {formats.tidy(name): i for i, name in enumerate(names)}
    # A path as we write it is one level to who divides levels otherwise.
    number = {name.replace(classify.PATH, sources.OWN_PATH): i for name, i in number.items()} | number
    for name, spelling in zip(found["category"], found["spelling"], strict=True):
        if name not in number:
            number[name] = len(names)
            names.append(spelling)
    labels = np.array([number[name] for name in found["category"]])

    # Rows without a language are a slice of their own, unless no row has one.
    languages = sorted({name or "unknown" for name in found["language"]}) if any(found["language"]) else None
    language = languages and np.array([languages.index(name or "unknown") for name in found["language"]])
    reliable = np.array([quality.lower() == "reliable" for quality in found["quality"]])

    # A file may be named like a split.
    split = place_of(args.test)
    split = f"file-{split}" if split in data.SPLITS else split
    file = {"file": cli.readable(args.test), "rows": len(labels), "checksum": files.checksum(args.test)}
    return classifier, report.Labelled(
        inputs=classify.Rows(found["title"], found["values"]), labels=labels, names=names, tree=classifier.tree,
        trained=classifier.has_trained_on(data.keys_of(found["title"])), language=language, languages=languages,
        reliable=reliable if any(found["quality"]) else None, file=[file["file"]] * len(labels),
        line=np.array(found["line"]), id=found["id"] if any(found["id"]) else None, split=split,
        path=cli.readable(args.test.resolve()),
        source={"files": [file], "folder": None, "fingerprint": None})


def read_columns(args, classifier):
    """{column: list} of a labelled file; "" for what it does not have; `values` [N, K] ids of the columns that the
    classifier reads."""
    bad = formats.BadRows(MAX_BAD_ROWS, "mend them")
    found = {column: [] for column in ("title", "category", "spelling", "language", "quality", "id", "line", *(
        formats.value_key(column.name) for column in classifier.columns))}
    with open(args.test, "rb") as file:
        form = tables.file_format(args, classifier, file)
    for block in sources.read_labelled(args.test, bad, form):
        # Called for its check alone: marks other than reliable and unreliable are refused.
        sources.given_quality(args.test, block.get("quality", pa.array([], pa.string())))
        for column, values in found.items():
            lacking = None if formats.is_value(column) else ""
            values += block[column].to_pylist() if column in block else [lacking] * len(block["title"])
    found["values"] = sources.value_ids(classifier.columns, found, found["line"], args.test, bad)
    bad.check(len(found["title"]))
    bad.warn()
    if not found["title"]:
        raise UserError(f"{args.test}: no rows")
    if bad.count:
        print(f"warning: {bad.count:,} bad rows left out, first {bad.first}", file=sys.stderr)
    return found


def place_of(path):
    """The name of a file as that of a folder may hold it."""
    return re.sub(r"[^\w.-]", "_", path.name)[:60]


def report_name(args, classifier, place, path, file):
    """The name of a report and its folder: of its place, such as a split or the name of a file, the checkpoints and,
    where it was asked for, the prior. Where `file` in that folder says another path than this one (None: it has none),
    a digest of the path stands behind the place."""
    def name(place):
        other = [re.sub(r"[^\w.-]", "_", f"against-{'+'.join(args.against)}")] if args.against else []
        return "-".join([place, classifier.name, *([args.prior] if args.prior else []), *other])

    with contextlib.suppress(OSError, UserError):
        if path and files.read_json(classifier.folder / name(place) / file).get("file") != path:
            return name(f"{place}-{files.checksum_of(path.encode())[:6]}")
    return name(place)


def command(args, classifier):
    """The command that makes a report again, also when `best` has come to mean another run."""
    words = ["python", "evaluate.py", "--ckpt", *(
        f"{runs.short_name(folder, args.runs)}/{which}" for folder, which in classifier.checkpoints)]
    for name, usual in {"split": "test", "encoding": "utf-8", **dict.fromkeys((
            "test", "compare", "against", "prior", "title_column", "category_column", "separator"))}.items():
        if (value := getattr(args, name)) is not None and str(value) != usual:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return cli.quoted(words) + runs.other_folders(args)


def write_report(args, classifier, made, name):
    """Write a report of this name into the run's folder, and return where it is; None, after a warning, where that
    cannot be."""
    members = {member: runs.training_of(member, runs.other_folders(args)) for member in classifier.folders}

    def write(temporary):
        report.write(temporary, made)
        page.write(temporary, made, members, command(args, classifier))

    return write_folder(classifier.folder / name, report.FILES, write)


def write_folder(folder, replaced, write):
    """Call write(folder) to write a report there, in place of the files of an earlier one, and return the folder; None,
    after a warning, where that cannot be."""
    try:
        # The report's folder is replaced whole; what else is kept there stays.
        with files.atomic_folder(folder) as temporary:
            if folder.exists():
                shutil.copytree(folder, temporary, symlinks=True, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns(*replaced))
            write(temporary)
        return folder
    except OSError as error:  # of a read-only folder, or a full disk; the scores can be told all the same
        why = os.strerror(error.errno) if error.errno else error
        print(f"warning: {folder}: the report is not written there ({why}), only its scores are shown and logged",
              file=sys.stderr)
        return None


def data_set(args, rows):
    """The rows of a report as a data set of MLflow."""
    if rows.prepared:
        context = {"train": "training", "valid": "validation", "test": "testing"}
        return tracking.split_set(rows.prepared, args.split, context[args.split])
    [file] = rows.source["files"]
    return tracking.data_set([file], cli.readable(args.test.name), file["checksum"], "evaluation")


# --- new titles -------------------------------------------------------------------------------------------------------

def compare(args):
    files.require_file(args.compare)
    classifier = load_named(args)
    if devices.is_first():
        connecting = cli.in_background(tracking.mlflow_client)  # see `evaluate`
    rows, titles = sampled_file(args, classifier, args.compare)
    old, why = validation_titles(args, classifier)
    devices.require_same([classifier.identity, rows.titles, old])
    try:
        found = change.compare(classifier, rows, titles, old, why)
    except change.NoTitles as error:
        raise UserError(f"{args.compare}: {error}") from None
    if not devices.is_first():
        return
    path = cli.readable(args.compare.resolve())
    found |= {"file": path}
    name = report_name(args, classifier, f"compare-{place_of(args.compare)}", path, "compare.json")

    def write(temporary):
        files.write_json(temporary / "compare.json", found)
        page.write_change(temporary, found, command(args, classifier))

    folder = write_folder(classifier.folder / name, ("compare.json", "compare.html"), write)
    if args.json:
        print(json.dumps(found))
    else:
        report.show_change(found)
        if folder:
            print(f"report: {folder}/")
    with tracking.mlflow_warnings():
        client, _ = connecting.result()
        tracking.log_report(client, tracking.run_id_of(classifier.folder), name, change.metrics(found), folder)


def sampled_file(args, classifier, path):
    """(classify.Rows, how many rows there were): of the titles in a file, see change.sampled. Raises UserError where
    there are none."""
    bad = formats.NoBadRows()
    with open(path, "rb") as file, files.archive_errors(path):
        form = tables.file_format(args, classifier, file)
        _, blocks, _ = sources.read_titles(files.decompressed(file), path, bad, form)
        rows, titles = change.sampled(rows for rows, _ in blocks)
    if not titles:
        raise UserError(f"{path}: no titles")
    if args.compare:  # else it is read again, and warned about then
        bad.warn()
    return rows, titles


def validation_titles(args, classifier):
    """(the validation titles of the run, a list of str, or None where --data has not got them; why it has not)."""
    why = "--data does not hold the data that the run was prepared with"
    try:
        if data.fingerprint_of(args.data) != classifier.config["fingerprint"]:
            return None, why
        _, arrays = data.load_prepared(args.data, ("valid",), text="valid", ids=False)
    except (UserError, OSError) as error:
        return None, str(error)
    valid = arrays["valid"]
    old = [title for title, trained in zip(valid["text"], classifier.has_trained_on(valid["keys"]), strict=True)
           if not trained]
    return old, f"only {len(old):,} validation titles have not trained the run"


def estimated(classifier, rows):
    """The Classifier that takes categories to be as frequent as in classify.Rows, after saying so."""
    classifier, said = change.estimated(classifier, rows)
    if devices.is_first():
        print(f"--prior estimated: {said}", file=sys.stderr)
    return classifier


# --- prediction -------------------------------------------------------------------------------------------------------

class Opened(NamedTuple):
    """The file of --predict, as from sources.read_titles."""
    form: formats.Format
    header: list
    blocks: Iterator
    dialect: formats.Dialect
    ahead: int    # parts that may be answered before the one that is written


@contextlib.contextmanager
def opened(args, classifier, out, keep):
    """The Opened file of --predict. out: where answers go; keep: as for sources.read_titles. What is odd is said at the
    end."""
    # The same bytes on every system. What is loaded by now need not be searched for garbage again and again.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    gc.freeze()
    bad = formats.NoBadRows()
    source = contextlib.nullcontext(sys.stdin.buffer) if args.predict == "-" else open(args.predict, "rb")
    with source as file, files.archive_errors(args.predict):
        tables.require_other_file(file, out)
        form = tables.file_format(args, classifier, file)
        found = sources.read_titles(files.decompressed(file), args.predict, bad, form, keep)
        # What comes from a terminal or a pipe is answered at once.
        yield Opened(form, *found, ahead=1 if files.is_patient(file) else 0)
    bad.warn()


def require_titles(args):
    """Raise UserError where --predict names nothing that can be read."""
    if args.predict == "-" and (sys.stdin is None or jax.process_count() > 1):
        raise UserError("--predict -: standard input is closed, or one process's alone; name a file that all can read")
    if " " in args.predict and not Path(args.predict).exists():
        raise UserError(f"--predict {args.predict}: no such file; to classify a title, pipe it: echo "
                        f"{cli.quoted([args.predict])} | python evaluate.py --predict -")


def load_predicting(args):
    """The Classifier of --predict, under its prior."""
    if args.prior == "estimated" and Path(args.predict).exists() and not Path(args.predict).is_file():
        raise UserError(f"--prior estimated: {args.predict} can be read only once; it goes with a file")
    classifier = load_named(args)
    return estimated(classifier, sampled_file(args, classifier, args.predict)[0]) if args.prior == "estimated" else (
        classifier)


def predict(args):
    require_titles(args)
    out = args.out if devices.is_first() else None  # what the others print goes nowhere
    classifier = load_predicting(args)
    devices.require_same([classifier.identity, args.predict, args.top, args.explain, args.precision, args.threshold,
                          args.level, args.leaf_only])
    try:
        classifier, rule = classify.asked(classifier, args)
    except classify.ModelError as error:
        raise UserError(str(error)) from None

    with opened(args, classifier, out, args.keep) as file, tables.answer_writer(
            args, out, file.header, file.dialect, classifier.tree) as write:
        answer = functools.partial(answered, args, classifier, rule)
        counts = write_answers(file.blocks, answer, write, file.ahead)
    (titles, refused, unknown), sums = counts[:3].astype(int), counts[3:]
    if refused and rule.thresholds and min(rule.thresholds) < math.inf:
        least = " or ".join(f"{least:.4f}" for least in dict.fromkeys(rule.thresholds) if least < math.inf)
        print(f"{refused:,} of {titles:,} titles left without a category: its probability is below {least}"
              + (", by level from the top" if " or " in least else ""), file=sys.stderr)
    if unknown:
        print(f"{unknown:,} of {titles:,} titles of which training has seen no word and no n-gram: no category, "
              "probability 0", file=sys.stderr)
    if titles >= classify.SUMMED:
        summarize(classifier, rule, titles, sums)


def summarize(classifier, rule, titles, sums):
    """Say how many of the likeliest categories, or nodes of a level, should be right, and how many titles promises
    answer: sums of probabilities, and of the latter where these were counted, as from `answered`."""
    level = rule.level or classifier.tree.levels
    what = f"accuracy to expect of the likeliest {'categories' if level == classifier.tree.levels else 'nodes'}"
    if not classifier.is_calibrated:
        return
    if classifier.prior == "estimated":
        print(f"{what}: {sums[0] / titles:.1%}, if nothing but the mix of categories has changed", file=sys.stderr)
    else:
        chances, right = (values[:, level - 1] for values in classifier.validated[:2])
        low, high = change.interval(sums[0] / titles, titles, right - chances)
        print(f"{what}: {sums[0] / titles:.1%} ({low:.1%} to {high:.1%}), if titles are like the validation rows, of "
              f"which {right.mean():.1%} are right; --compare tells that", file=sys.stderr)
    if len(sums) > 1:
        print("a promise would answer " + ", ".join(f"{share / titles:.1%} ({precision:.0%} right)" for precision, share
                                                   in zip(calibration.PRECISIONS, sums[1:], strict=True)),
              file=sys.stderr)


def answered(args, classifier, rule, rows):
    """The columns of the answer to classify.Rows, lists with an entry for each; and how many titles there are, how many
    of them are left without a category, of how many nothing is known, the sum of the probabilities of the likeliest
    categories and, with --precision, how many titles each of calibration.PRECISIONS answers [4 or 7]."""
    # Behind the nodes stands no name, for titles that are left without one; lines of text need an empty one.
    names = np.array([*classifier.tree.names, None if args.keep else ""], object)
    nodes, probabilities, likeliest, chances = classifier.answers(rows, args.top, rule)
    columns = [column for ids, p in zip(nodes.T, probabilities.T, strict=True)
               for column in (names[ids].tolist(), p.tolist())]
    if args.levels:
        columns += classifier.tree.level_names(nodes[:, 0].tolist())
    # The likeliest category is explained even where it is refused.
    if args.explain:
        columns.append([" ".join(f"{word}:{gain:.2f}" for word, gain in words)
                        for words in classifier.explain(rows, likeliest)])
    # Promises take a while to load, so they are asked only where one was wanted; nodes of a tree have other rules.
    tells = args.precision and classifier.tree.levels == 1
    return columns, np.array([
        len(rows.titles), (nodes[:, 0] < 0).sum(), (probabilities[:, 0] == 0).sum(), chances.sum(dtype=np.float64),
        *((chances >= classifier.threshold(precision)).sum() for precision in calibration.PRECISIONS if tells)])


def write_answers(blocks, answer, write, ahead):
    """Answer blocks of rows, as from sources.read_titles, a part at a time: so many parts `ahead` of the one that is
    written. Returns the sums of what `answer` counts."""
    waiting, counts = [], None

    def finish(left):
        nonlocal counts
        while len(waiting) > left:
            kept, answering = waiting.pop(0)
            columns, found = answering.result()
            write(kept, columns)
            counts = found if counts is None else counts + found

    with ThreadPoolExecutor(1) as pool:
        try:
            for rows, kept in blocks:
                for part in data.blocks(len(rows.titles), PREDICT_ROWS):
                    waiting.append((kept and kept[part], pool.submit(answer, rows.part(part))))
                    finish(ahead)
        finally:  # also what came before a bad row
            finish(0)
    return np.zeros(4) if counts is None else counts


# --- labels -----------------------------------------------------------------------------------------------------------

def label_next(args):
    """Write the titles of --predict to label next, as a table or as a page to label them on."""
    require_titles(args)
    out, classifier = args.out if devices.is_first() else None, load_predicting(args)
    devices.require_same([classifier.identity, args.predict, args.next, args.top])
    pool, candidates = choose.Pool(args.next, labelled_keys(args, classifier)), max(2, args.top)

    def add(kept, columns):
        titles, number, probability = columns
        kept = pa.table({"title": titles}) if kept is None else kept
        pool.add(titles, kept=kept, number=number, probability=probability)

    def answer(rows):
        return (rows.titles, *classifier.likeliest(rows, candidates)), 0

    with opened(args, classifier, out, sources.IF_TABLE) as file:
        write_answers(file.blocks, answer, add, file.ahead)
    found, size = pool.chosen(), pool.counts.pop("titles")
    left_out = "".join(f"; {times:,} {why}" for why, times in pool.counts.items() if times)
    if not len(found.get("margin", ())):
        raise UserError(f"{args.predict}: no title to label, of {size:,}{left_out}")
    labelling.write_next(args, out, file, found, classifier.tree)
    print(f"{len(found['margin']):,} of {size:,} titles to label next{left_out}", file=sys.stderr)


def labelled_keys(args, classifier):
    """data.keys_of titles that have a label: those that trained the runs and, where their data is in --data, those held
    out."""
    keys = [classifier.trained_keys]
    with contextlib.suppress(UserError, OSError):  # a run needs no data to classify
        if data.fingerprint_of(args.data) == classifier.config["fingerprint"]:
            _, arrays = data.load_prepared(args.data, data.SPLITS[1:], ids=False)
            keys += [rows["keys"] for rows in arrays.values()]
    return np.concatenate(keys)


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
    if args.compare:
        return compare(args)
    if args.next:
        return label_next(args)
    return evaluate(args) if args.predict is None else predict(args)


if __name__ == "__main__":
    cli.run(lambda: devices.together(main, ARGS))
