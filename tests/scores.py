"""Scores on real data, ours beside those of peers. Not a test; pytest skips it.

    pip install fasttext==0.9.3                                             # a peer, optional
    python tests/scores.py FOLDER --seeds 3 --refit                         # hours
    python tests/scores.py FOLDER --only svm fasttext mlp cnn both --json > scores.json
    python tests/scores.py --draw scores.png    # the README's picture, from the first table of EXPERIMENTS.md

Measures on every folder in FOLDER with a train.csv and a test.csv (columns title and category): train.py with its
defaults for each model, for mlp and cnn together (`both`) and with the encoder (`all`; needs
requirements-encoder.txt), over --seeds, with --refit also on all rows; and beside them a linear SVM on TF-IDF of
words, pairs and characters, plain and class-balanced, and fastText with three settings. The peers train on all rows of
train.csv, we on the nine tenths that prepare.py does not set aside for validation. A second table has the calibration
error of every training, and what became of the promise that 95 % are right.
"""
import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark import ROOT, THREADS, measured, script

import data

MODELS = ["mlp", "cnn", "rnn", "transformer", "encoder"]
TOGETHER = {"both": ["mlp", "cnn"], "all": ["mlp", "cnn", "encoder"]}
SCORED = ["svm", "fasttext", *MODELS, *TOGETHER]
FASTTEXT = {"fastText, 25 epochs, lr 0.5, pairs": {"epoch": 25, "lr": 0.5, "wordNgrams": 2},
            "fastText, 100 epochs, lr 1, pairs": {"epoch": 100, "lr": 1.0, "wordNgrams": 2},
            "fastText, 50 epochs, lr 1, characters 3-6": {"epoch": 50, "lr": 1.0, "minn": 3, "maxn": 6}}
DRAWN = {  # name in the picture -> rows of the table in EXPERIMENTS.md, of which the best is drawn
    "best of three fastText settings": [*FASTTEXT],
    "best of two linear SVMs": ["linear SVM", "linear SVM, class-balanced"],
    "cnn": ["`cnn`"],
    "mlp, cnn and encoder averaged, refit on all training rows": ["all three averaged, refit"],
}


def rivals(wanted):
    """What runs in a process of its own, in a folder with train.csv and test.csv; prints one JSON object: {name:
    [seconds to fit and predict, accuracy, balanced accuracy]}."""
    import pandas as pd
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC
    train, test = (pd.read_csv(f"{name}.csv", dtype=str, keep_default_na=False) for name in ("train", "test"))
    titles, new = ([" ".join(data.tokenize(title)) for title in table["title"]] for table in (train, test))
    result = {}

    def judge(name, started, predicted):
        result[name] = [time.perf_counter() - started, accuracy_score(test["category"], predicted),
                        balanced_accuracy_score(test["category"], predicted)]

    for weight in (None, "balanced") if "svm" in wanted else ():
        started = time.perf_counter()
        model = make_pipeline(make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)),
            LinearSVC(C=0.5, class_weight=weight)).fit(titles, train["category"])
        judge(f"TF-IDF + LinearSVC{', class-balanced' if weight else ''}", started, model.predict(new))
    for name, settings in FASTTEXT.items() if "fasttext" in wanted else ():
        import fasttext
        names = {label: f"__label__{i}" for i, label in enumerate(sorted(set(train["category"])))}
        with open("fasttext.txt", "w", encoding="utf-8") as file:
            file.writelines(f"{names[label]} {title}\n" for label, title in zip(train["category"], titles, strict=True))
        started = time.perf_counter()
        model = fasttext.train_supervised("fasttext.txt", thread=THREADS, verbose=0, **settings)
        found, _ = model.f.multilinePredict([f"{title}\n" for title in new], 1, 0.0, "strict")
        back = {code: label for label, code in names.items()}
        judge(name, started, [back[labels[0]] if labels else "" for labels in found])
    print(json.dumps(result))


def real_scores(sources, wanted, seeds, refit, folder):
    """{set: {model: [(seconds, accuracy, balanced accuracy), one a seed]}}, and behind these of our models the expected
    calibration error, and coverage and precision at the threshold that promises 95 %. The seconds are those of the
    whole training command, of the peers those to fit and predict."""
    together = {name: members for name, members in TOGETHER.items() if name in wanted}
    models = [model for model in MODELS if model in {*wanted}.union(*together.values())]
    result = {}
    for source in sorted(path.parent for path in sources.glob("*/train.csv") if (path.parent / "test.csv").exists()):
        here = folder / source.name
        here.mkdir()
        for name in ("train.csv", "test.csv"):
            (here / name).symlink_to((source / name).resolve())
        found = result[source.name] = {}
        if {"svm", "fasttext"} & set(wanted):
            text = measured(__file__, "--rivals", *wanted, folder=here).text
            found |= {name: [row] for name, row in json.loads(text.splitlines()[-1]).items()}
        measured(*script("prepare", "--data", "train.csv", "--test", "test.csv",
                         *(["--encoder", "use"] if "encoder" in models else [])), folder=here)
        seconds = {}

        def judge(row, names, here=here, found=found, seconds=seconds):
            scores = json.loads(measured(*script("evaluate", "--ckpt", *names, "--json"), folder=here).text)
            promised = scores["thresholds"]["0.95"]
            found.setdefault(row, []).append((
                sum(seconds[name] for name in names), scores["accuracy"], scores["balanced_accuracy"],
                scores["expected_calibration_error"], promised["coverage"], promised["precision"]))

        # Every training, then the refit of each; each alone, then those of one seed together, then those of all seeds.
        for end, said in (("", ""), ("-refit", ", refit"))[:1 + refit]:
            for model in models:
                for seed in range(seeds):
                    name = f"{model}-{seed}"
                    flags = ["--refit", name] if end else ["--model", model, "--seed", seed, "--name", name]
                    seconds[name + end] = measured(*script("train", *flags), folder=here).wall_s
                    judge(model + said, [name + end])
            for members in together.values():
                for seed in range(seeds):
                    judge(f"{' and '.join(members)} together{said}", [f"{model}-{seed}{end}" for model in members])
                if seeds > 1:
                    judge(f"{' and '.join(members)}, {seeds} seeds of each, together{said}", [
                        f"{model}-{seed}{end}" for model in members for seed in range(seeds)])
        print(source.name, found, file=sys.stderr, flush=True)
    return result


def show_scores(result):
    def cell(values):
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        return f"{100 * np.mean(values):.1f}{spread}"

    print("| model | " + " | ".join(result) + " |\n|" + "---|" * (len(result) + 1))
    for model in dict.fromkeys(name for found in result.values() for name in found):
        columns = [np.array([row[:3] for row in found[model]]).T for found in result.values()]
        print(f"| {model} | " + " | ".join(f"{cell(accuracy)} / {cell(balanced)} ({seconds.mean():.0f} s)"
                                           for seconds, accuracy, balanced in columns) + " |")

    # Of every training the calibration error, and what the promise of 95 % gives: precision @ coverage.
    print("\n| model | " + " | ".join(result) + " |\n|" + "---|" * (len(result) + 1))
    for model in dict.fromkeys(name for found in result.values() for name in found if len(found[name][0]) > 3):
        print(f"| {model} | " + " | ".join("; ".join(
            f"{error:.3f}, " + ("none" if precision is None else f"{precision:.1%} @ {coverage:.0%}")
            for *_, error, coverage, precision in found[model]) for found in result.values()) + " |")


def balanced_scores(text):
    """{model: {set: balanced accuracy in percent}} of the first table in a Markdown text, whose cells say
    accuracy / balanced accuracy; what was not measured is left out."""
    lines = re.search(r"(^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    (_, *sets), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {model: {name: float(found[1]) for name, cell in zip(sets, cells, strict=True)
                    if (found := re.search(r"/ ([\d.]+)", cell))} for model, *cells in rows}


def draw_scores(table, path):
    """Draw the balanced accuracies of DRAWN into an image: a line for each set, a mark for each model."""
    from matplotlib.figure import Figure
    sets = [*table["`cnn`"]]
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.subplots()

    # Where a mark hides another one, the number of the last one, the best for the most part, still stands beside it.
    for (said, models), mark, color in zip(DRAWN.items(), "^sDo", ("0.65", "0.4", "tab:blue", "tab:orange"),
                                           strict=True):
        best = {y: max(found) for y, name in enumerate(sets)
                if (found := [table[model][name] for model in models if name in table[model]])}
        axes.plot([*best.values()], [*best], mark, color=color, markersize=8, label=said)
    for y, score in best.items():
        axes.annotate(f"{score:.1f}", (score, y), (8, 0), textcoords="offset points", va="center", color=color)

    axes.set_yticks(range(len(sets)), sets)
    axes.invert_yaxis()
    axes.set_xlim(right=104)
    axes.set_xlabel("balanced accuracy on test titles, %")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, metavar="FOLDER", nargs="?", help="of data sets to measure on")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=SCORED, default=SCORED, help=" ".join(SCORED))
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each model")
    parser.add_argument("--refit", action="store_true", help="also of every training its refit")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the scores that EXPERIMENTS.md lists")
    parser.add_argument("--rivals", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rivals:
        return rivals(args.rivals)
    if args.draw:
        return draw_scores(balanced_scores((ROOT / "EXPERIMENTS.md").read_text(encoding="utf-8")), args.draw)
    if not args.sources:
        parser.error("name a FOLDER, or --draw a picture")
    with tempfile.TemporaryDirectory() as folder:
        result = real_scores(args.sources, args.only, args.seeds, args.refit, Path(folder))
    print(json.dumps(result, indent=1)) if args.json else show_scores(result)


if __name__ == "__main__":
    main()
