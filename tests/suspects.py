"""How well suspects.csv finds wrong labels, on SYNTHETIC titles, where they are known. Not a test; pytest skips it.

    pip install cleanlab==2.9.0                         # optional: its scores beside ours
    python tests/suspects.py                            # 20,000 titles, three folds: about 4 minutes on two cores
    python tests/suspects.py --rows 100000 --model cnn

As a user would: `prepare.py --fold I/K` for every I, a training each, and `evaluate.py`, whose suspects.csv together
rank all rows, each by a model that has not seen it (out of fold). Beside it, the suspects of the training split by
the model that was trained on them (in sample). Printed are the share of labels that are wrong among the first 1 % of
the rows, and the share of all wrong labels that are among the first 10 %.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from benchmark import measured, script

import evaluate
import synthetic


def known_labels(rows, categories, seed):
    """[(title, label, true category)] of the synthetic set, by the generator itself."""
    tables = synthetic.read_tables()
    world, found = synthetic.build_world(tables, synthetic.choose_categories(tables, categories)), []
    for chunk, start in enumerate(range(0, rows, synthetic.CHUNK)):
        draw = synthetic.Draw(np.random.default_rng([seed, chunk]), min(synthetic.CHUNK, rows - start))
        titles, category, label, _, _ = synthetic.generate(world, draw)
        found += [(title, world.names[given], world.names[true]) for title, given, true in zip(
            titles.to_pylist(), label, category, strict=True)]
    return found


def show(name, order, wrong):
    """order [M]: the rows that are suspected, the most suspect first; wrong [N] bool."""
    first, more = order[:len(wrong) // 100], order[:len(wrong) // 10]
    print(f"{name:<44}{wrong[first].mean():>18.1%}{wrong[more].sum() / wrong.sum():>18.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--categories", type=int, default=120)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--model", default="mlp")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        measured(*script("synthetic", "--rows", args.rows, "--categories", args.categories, "--out", "s.csv"),
                 folder=folder)
        truth = known_labels(args.rows, args.categories, 0)
        titles = pd.read_csv(folder / "s.csv", dtype=str, keep_default_na=False)
        assert [(title, label) for title, label, _ in truth] == list(zip(
            titles["title"], titles["category"], strict=True)), "not the rows that synthetic.py writes"
        wrong_of = {(title, label): label != true for title, label, true in truth}
        print(f"{args.rows:,} SYNTHETIC titles, {np.mean(list(wrong_of.values())):.1%} of them with a wrong label\n"
              f"{args.model + ', ranked by':<44}{'wrong in first 1 %':>18}{'found in first 10 %':>18}")

        suspects, rows, probabilities = [], [], []
        for part in range(1, args.folds + 1):
            measured(*script("prepare", "--data", "s.csv", "--fold", f"{part}/{args.folds}"), folder=folder)
            measured(*script("train", "--model", args.model, "--name", f"fold-{part}"), folder=folder)
            for split in ("test", "train") if part == 1 else ("test",):
                measured(*script("evaluate", "--ckpt", f"fold-{part}", "--split", split), folder=folder)
                found = pd.read_csv(folder / f"runs/fold-{part}/{split}-best/suspects.csv", keep_default_na=False)
                if split == "test":
                    suspects.append(found)
                    rows.append(pd.read_csv(folder / f"runs/fold-{part}/test-best/predictions.csv",
                                            keep_default_na=False))
                    classifier = evaluate.load(f"fold-{part}", folder=folder / "runs")
                    probabilities.append(classifier.predict_proba(rows[-1]["title"]))
                else:
                    seen = pd.read_csv(folder / f"runs/fold-{part}/train-best/predictions.csv", keep_default_na=False)
                    wrong = np.array([wrong_of[pair] for pair in zip(seen["title"], seen["category"], strict=True)])
                    show("suspects.csv, in sample", pd.Index(seen["line"]).get_indexer(found["line"]), wrong)

        # Rows of all folds together; their lines in the one file tell them apart.
        suspects, rows = pd.concat(suspects), pd.concat(rows)
        wrong = np.array([wrong_of[pair] for pair in zip(rows["title"], rows["category"], strict=True)])
        order = pd.Index(rows["line"]).get_indexer(
            suspects.sort_values("category_probability", kind="stable")["line"])
        show("suspects.csv, out of fold", order, wrong)
        try:
            from cleanlab.rank import get_label_quality_scores
        except ImportError:
            return print("cleanlab is not installed")
        number = {name: i for i, name in enumerate(classifier.labels)}
        labels, chances = rows["category"].map(number).to_numpy(), np.concatenate(probabilities)
        for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            scores = get_label_quality_scores(labels, chances, method=method)
            show(f"cleanlab, {method}, out of fold", np.argsort(scores, kind="stable"), wrong)


if __name__ == "__main__":
    main()
