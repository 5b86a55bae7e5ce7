"""Write a run as a small model file, with a classifier beside it that needs NumPy alone.

    python export.py --ckpt best --out exported             # exported/model.npz and exported/classify.py
    python export.py --ckpt mlp-1 cnn-1 --out exported      # several runs on the same data as one
    python exported/classify.py exported/model.npz --top 3 < titles.txt

model.npz holds what prediction needs: the rows of the table that training used, as integers of up to 8 bits with a
scale for each row (--dtype float32: as they are), the heads, the vocabulary, the labels, settings, temperatures,
thresholds, and where all that comes from; no pickle, and a digest that is verified when it is read. It needs nothing
but the run's folder; best and latest are of the runs on --data, where that is there. --prior is as in evaluate.py. The
folder is written whole or not at all; one that holds anything else is left alone.
"""
import sys
from pathlib import Path

if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import files
from files import UserError

STEPS = 4        # of the numbers in a row that one training title used, to each side of 0; of others see `quantized`
EXACT = 600_000  # the same by so many rows: a small table need not save
CONTENT = {"model.npz", "classify.py", "__pycache__"}  # of an exported folder; Python leaves the last one


def parse_args():
    parser = files.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["best"],
        help="best or latest of all runs, or a run: NAME, NAME/best, NAME/latest, or a path; several are averaged")
    add("--data", type=Path, default=Path("data/prepared"), help="folder that prepare.py wrote")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--prior", choices=("equal", "training"), help="how frequent categories are taken to be (default: as the run)")
    add("--dtype", choices=("int8", "float32"), default="int8", help="numbers of the table")
    add("--out", type=Path, metavar="DIR", required=True, help="folder to write")
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = files.run(parse_args)  # before JAX is loaded, so that --help answers at once
    files.run(files.clean_environment)

import json

import flax
import numpy as np

import calibration
import classify
import evaluate
import model
import runs


def quantized(table, titles):
    """[V, D] float32, the number of training titles that used each row [V] -> ([V, D] int8, scales [V] float16), whose
    product is about the table."""
    # A row that comes n times as often takes part in n times as many errors, so it is kept sqrt(n) times as exactly:
    # `steps` to each side of 0. The integers of rare rows are small, and compressed small.
    steps = np.clip(np.rint(max(STEPS, EXACT / len(table)) * np.sqrt(np.maximum(titles, 1))), 1, 127)

    # The scale is rounded first, so that the integers belong to it as it is kept.
    scale = (np.abs(table).max(1) / steps).astype(np.float16)
    numbers = table / np.maximum(scale, np.float16(1e-7)).astype(np.float32)[:, None]
    return np.clip(np.rint(numbers), -steps[:, None], steps[:, None]).astype(np.int8), scale


def member_arrays(config, variables, shift, dtype):
    """(settings, {name: array}) of one run, as classify.Member takes them."""
    table, weights = np.asarray(variables["table"]), np.asarray(variables["weights"])

    # Rows that training did not use have weight 0. Those of the vocabulary keep their number, the buckets close up.
    used = weights[config["vocabulary"]:] > 0
    rows = np.concatenate([np.ones(config["vocabulary"], bool), used])
    table, weights = np.where(weights[rows, None] > 0, table[rows], 0), weights[rows]
    if dtype == "int8":  # a row's weight tells how many titles used it, see model.idf
        titles = (1 + sum(config["training_rows"])) / np.exp(weights - 1) - 1
        table, scale = quantized(table, titles)
    else:
        scale = np.ones(len(table), np.float16)
    settings = {name: config[name] for name in sorted(model.fields(config["model"]).keys() | {
        "model", "max_len", "word_ngrams", "maxn", "buckets"})}
    settings |= {name: config[name] if config["maxn"] else 0 for name in ("minn", "character_weight")}
    params = flax.traverse_util.flatten_dict({"params": variables["params"]}, sep="/")
    return settings, {"table": table, "scale": scale, "weights": weights, "used": np.packbits(used),
                      "shift": np.asarray(shift, np.float32)} | {
                          name: np.asarray(value, np.float32) for name, value in params.items()}


def model_arrays(classifier, dtype):
    """{name: array} of an evaluate.Classifier, as classify.Classifier takes them. Raises UserError where one of its
    runs has an encoder."""
    arrays, members, provenance = {}, [], []
    for i, ((config, variables), shift, (folder, which), step) in enumerate(zip(
            classifier.members, classifier.shifts, classifier.checkpoints, classifier.steps, strict=True)):
        if "encoder" in config:
            raise UserError(f"{folder}: an encoder cannot be exported yet; export a run without one")
        settings, found = member_arrays(config, variables, shift, dtype)
        arrays |= {f"{i}/{name}": array for name, array in found.items()}
        members.append(settings)
        scores = runs.validation_scores(folder)
        provenance.append({"run": folder.name, "checkpoint": which, "step": step, "prior": config["prior"],
                           "validation_balanced_accuracy": max(scores) if which == "best" else scores[-1]})

    settings = {
        "format": classify.FORMAT, "members": members, "weights": [float(weight) for weight in classifier.weights],
        "smoothing": float(classifier.smoothing), "prior": classifier.prior,
        "thresholds": [(precision, classifier.threshold(precision)) for precision in calibration.PRECISIONS],
        "provenance": provenance, "fingerprint": classifier.config["fingerprint"],
        "synthetic": classifier.config["synthetic"]}
    for name, text in (("settings", json.dumps(settings)), ("labels", "\n".join(classifier.labels)),
                       ("vocabulary", "\n".join(classifier.vocab))):
        arrays[name] = np.frombuffer(text.encode(), np.uint8)
    return arrays | {"digest": classify.digest(arrays)}


def main(args):
    if args.out.exists() and (not args.out.is_dir() or {path.name for path in args.out.iterdir()} - CONTENT):
        raise UserError(f"{args.out}: holds other things than an exported model; name a new folder with --out")
    classifier = evaluate.load_named(args)
    arrays = model_arrays(classifier, args.dtype)
    with files.atomic_folder(args.out) as folder:
        np.savez_compressed(folder / "model.npz", **arrays)
        (folder / "classify.py").write_bytes(runs.SOURCE["classify.py"])
        size = (folder / "model.npz").stat().st_size
    print(f"{args.out}/model.npz: {size / 1e6:.1f} MB, {len(classifier.vocab):,} words, "
          f"{len(classifier.labels):,} categories\n"
          f"try it: echo zapatillas running | python {args.out}/classify.py {args.out}/model.npz --top 3")


if __name__ == "__main__":
    files.run(lambda: main(ARGS))
