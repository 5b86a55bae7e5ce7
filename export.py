"""Write a run as a small model file, with a classifier beside it that needs NumPy alone.

    python export.py --ckpt best --out exported             # exported/model.npz and exported/classify.py
    python export.py --ckpt mlp-1 cnn-1 --out exported      # several runs on the same data as one
    python exported/classify.py exported/model.npz --top 3 < titles.txt
    python export.py --ckpt best --register titles --alias champion   # in MLflow, which serves it:
    MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow models serve -m models:/titles@champion --env-manager local
    curl localhost:5000/invocations -H 'Content-Type: application/json' -d '{"inputs": ["zapatillas"]}'
    python export.py --ckpt mlp-1 --vectors words.vec       # its vectors of words, as gensim and fastText read them

model.npz holds what prediction needs: the rows of the table that training used, as integers of up to 8 bits with a
scale for each row (--dtype float32: as they are), the heads, the vocabulary, the labels, settings, temperatures, what
thresholds promise, and where all that comes from; no pickle, and a digest that is verified when it is read. It needs
nothing but the run's folder; best and latest are of the runs on --data, where that is there. --prior is as in
evaluate.py. The folder is written whole or not at all; one that holds anything else is left alone. An encoder needs its
package where the model is used, too; the file holds what training changed of it.

Before, run and classify.py answer some hundred titles: of the validation split of --data, where the run was trained on
that, and made-up ones. Where the two part, because model.py was edited and classify.py was not, nothing is exported.

--log adds the same two files to the training's MLflow run (of several: the first one's) as a model of MLflow, and
--register also makes it the next version of a registered model. Such a model takes titles as JSON (text/csv is
refused), as a list or as the column `title` of a table (one that reads columns beside titles only as a table, which may
lack these), and the parameters top, threshold, precision and level. It answers in the columns of evaluate.py --predict:
category, probability, category_2 and so on, or with a threshold or a precision category, probability, candidate_1 and
so on; with nulls where a title is null.
"""
import sys
from pathlib import Path

if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from titles import cli, files
from titles.cli import UserError

STEPS = 4        # of the numbers in a row that one training title used, to each side of 0; of others see `quantized`
EXACT = 600_000  # the same by so many rows: a small table need not save
CONTENT = {"model.npz", "classify.py", "__pycache__"}  # of an exported folder; Python leaves the last one


def parse_args():
    parser = cli.argument_parser(__doc__, stray=lambda word: "--ckpt")
    add = parser.add_argument
    cli.add_run_flags(add)
    add("--prior", choices=("equal", "training"), help="how frequent categories are taken to be (default: as the run)")
    add("--dtype", choices=("int8", "float32"), default="int8", help="numbers of the table")
    add("--out", type=Path, metavar="DIR", help="folder to write")
    add("--log", action="store_true", help="add the model to the run in MLflow")
    add("--register", metavar="NAME", help="the same, as the next version of this registered model")
    add("--vectors", type=Path, metavar="FILE", help="write the vectors of words as text in word2vec's format")
    add("--alias", metavar="NAME", help="with --register: an alias for this version, such as champion")
    args = parser.parse_args()
    if not (args.out or args.log or args.register or args.vectors):
        raise UserError("nothing to do: give --out, --log, --register or --vectors")
    if args.alias and not args.register:
        raise UserError("--alias goes with --register")
    return args


if __name__ == "__main__":
    ARGS = cli.run(parse_args)  # before JAX is loaded, so that --help answers at once
    cli.run(cli.clean_environment)

import contextlib
import functools
import itertools
import json
import random
import runpy
import tempfile
import warnings

import flax
import jax
import numpy as np
import pandas as pd
import pyarrow as pa

import classify
import data
import model
from titles import calibration, encoder, predict, runs, tracking
from titles.predict import load_named

# --- arrays -----------------------------------------------------------------------------------------------------------

def quantized(table, titles, dtype="int8"):
    """[V, D] float32, the number of training titles that used each row [V] -> ([V, D] int8, scales [V] float16), whose
    product is about the table; with another dtype the table as it is, and ones."""
    if dtype != "int8":
        return table, np.ones(len(table), np.float16)

    # A row that comes n times as often takes part in n times as many errors, so it is kept sqrt(n) times as exactly:
    # `steps` to each side of 0. The integers of rare rows are small, and compressed small.
    steps = np.clip(np.rint(max(STEPS, EXACT / max(len(table), 1)) * np.sqrt(np.maximum(titles, 1))), 1, 127)

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
    # A row's weight tells how many titles used it, see model.idf.
    titles = model.counts(weights, config["rows"] + config.get("earlier_rows", 0))
    table, scale = quantized(table, titles, dtype)

    settings, of_values = value_arrays(config, variables, dtype)

    # What the module is made with, and what makes features of titles: a run without character n-grams has no settings
    # for these, and gets zeros.
    settings |= {name: config[name] for name in sorted(model.fields(config["model"]).keys() | {
        "model", "max_len", "word_ngrams", "maxn", "buckets"})}
    settings |= {name: config[name] if config["maxn"] else 0 for name in ("minn", "character_weight")}

    # A file of arrays has no tree, so parameters are named by their paths.
    params = flax.traverse_util.flatten_dict({"params": variables["params"]}, sep="/")
    return settings, {"table": table, "scale": scale, "weights": weights, "used": np.packbits(used),
                      "shift": np.asarray(shift, np.float32)} | of_values | {
                          name: np.asarray(value, np.float32) for name, value in params.items()}


def value_arrays(config, variables, dtype):
    """(settings, {name: array}) of the columns that a run reads, as classify.Values takes them; nothing where it reads
    none."""
    if not config.get("columns"):
        return {}, {}
    weights = np.asarray(variables["value_weights"])
    table = np.where(weights[:, None] > 0, np.asarray(variables["values"]), 0)
    table, scale = quantized(table, np.full(len(table), np.inf), dtype)
    settings = {name: config[name] for name in ("columns", "value_weight") if name in config}
    return settings, {"values": table, "value_scale": scale, "value_weights": weights}


def encoder_arrays(config, variables, shift, dtype):
    """The same of a run with an encoder, as classify.EncoderMember takes them: what its package lacks."""
    table, layers = encoder.pretrained(config["encoder"]["name"])
    change = np.asarray(variables["table"]) - table
    pieces = np.flatnonzero(change.any(1))
    change, scale = quantized(change[pieces], np.full(len(pieces), np.inf), dtype)

    # Layers that training left as they were are those of the package.
    params, number = {"head": variables["params"]["head"]}, np.float16 if dtype == "int8" else np.float32
    if not all(np.array_equal(variables["params"]["layers"][name][kind], array)
               for name, layer in layers.items() for kind, array in layer.items()):
        params["layers"] = jax.tree.map(lambda array: np.asarray(array, number), variables["params"]["layers"])
    package = encoder.ENCODERS[config["encoder"]["name"]]
    settings, of_values = value_arrays(config, variables, dtype)
    settings |= {"model": config["model"], "scale": config["scale"], "encoder": config["encoder"] | {
        "package": package.package, "module": package.module, "file": next(iter(package.files))}}
    params = flax.traverse_util.flatten_dict({"params": params}, sep="/")
    return settings, {"pieces": pieces, "table": change, "scale": scale, "shift": np.asarray(shift, np.float32)} | (
        of_values) | {name: np.asarray(array) for name, array in params.items()}


def model_arrays(classifier, dtype):
    """{name: array} of a predict.Classifier, as classify.Classifier takes them."""
    arrays, members, provenance, promising = {}, [], [], classifier.promising
    for i, ((config, variables), shift, (folder, which), step) in enumerate(zip(
            classifier.members, classifier.shifts, classifier.checkpoints, classifier.steps, strict=True)):
        # Names begin with the number of the run, so that several fit into one file.
        arrays_of = encoder_arrays if "encoder" in config else member_arrays
        settings, found = arrays_of(config, variables, shift, dtype)
        if part := classify.unknown_part(settings, found):
            raise UserError(f"{folder}: classify.py does not know its {part}; write there what model.py computes "
                            "(NETWORKS), and export it then")
        found["promising_shift"] = np.asarray(promising.shifts[i], np.float32)
        arrays |= {f"{i}/{name}": array for name, array in found.items()}
        members.append(settings)

        # A refit has no validation scores, nor has a run that was stopped in its first epoch.
        history = runs.history_of(folder) or [{}]
        row = runs.best_epoch(history) if which == "best" else history[-1]
        provenance.append({"run": folder.name, "checkpoint": which, "step": step, "prior": config["prior"],
                           "refit": config.get("refit"),
                           "validation_balanced_accuracy": row.get("valid_balanced_accuracy")})

    # Weights, smoothing and promises are of all runs together; the provenance is for people, no code reads it.
    def together(one):
        of_tree = {name: getattr(one, name) for name in ("level_promises", "rules") if one.tree.levels > 1}
        return {"weights": [float(factor) for factor in one.factors], "smoothing": float(one.smoothing),
                "prior": one.prior, "promises": one.promises} | of_tree

    settings = {
        "format": classify.FORMAT, "members": members, **together(classifier), "promising": together(promising),
        "title_columns": classifier.title_columns,
        "provenance": provenance, "fingerprint": classifier.config["fingerprint"],
        "synthetic": classifier.config["synthetic"]}
    if classifier.tree.levels > 1:
        settings["levels"] = classifier.tree.levels

    # Text goes in as bytes: NumPy's own arrays of text take four bytes a character, or need pickle.
    lists = {"settings": [json.dumps(settings)], "labels": classifier.labels, "vocabulary": classifier.vocab,
             "columns": [column.line for column in classifier.prepared if classifier.columns]}
    for name, lines in lists.items():
        if lines:  # most have no columns
            arrays[name] = np.frombuffer("\n".join(lines).encode(), np.uint8)
    return arrays | {"digest": classify.digest(arrays)}


# --- comparison -------------------------------------------------------------------------------------------------------
# Who edits model.py may forget classify.py, whose networks are the same in NumPy. So both answer some titles, and where
# they part nothing is exported: else the file would name other categories than the run, in silence.

SAMPLE, SAMPLE_OF_ENCODER = 150, 20  # validation titles to compare on, and as many made up; an encoder is slow
EXACTLY = 1e-5  # of the largest number in float32; rounding makes up to 1e-6 (measured on all kinds of models)
# Of 8-bit integers: by how much the probability of the likeliest category differs on average (measured: 0.003), and the
# share of titles with another category that is no near-tie, which is less likely by so much (measured: 0).
ON_AVERAGE, OTHERS, NEAR_TIE = 0.02, 0.02, 0.05
ODD = ["", " ", "qwzzk", "???", "Teléfono ÑANDÚ coraça\u0303o", "M&amp;M caf&eacute; &#39;5&Prime; AT&T", "１２ ﬁn №5",
       "手机壳 カメラ 한국", "ΟΔΟΣ Σ", "rojo😀azul tele\u00advisor", "c++ 1.500,50 100% wi-fi a/b x_y", "x" * 300]


def sample_rows(classifier, folders):
    """Rows to compare on, with values drawn from those of all columns: titles of the validation split, where the
    prepared data of the run is in these folders; made of words of its vocabulary, changed, glued together and with
    marks; and ODD."""
    size = SAMPLE_OF_ENCODER if any("encoder" in config for config, _ in classifier.members) else SAMPLE
    titles, draw = [], random.Random(0)
    with contextlib.suppress(OSError, UserError):  # a run needs no data to be exported
        if data.fingerprint_of(folders) == classifier.config["fingerprint"]:
            with open(data.folders_of(folders)[0] / "valid_text.txt", encoding="utf-8") as file:
                titles += [line.rstrip("\n") for line in itertools.islice(file, size)]
    for _ in range(size):
        words = draw.choices(classifier.vocab[len(data.SPECIALS):], k=draw.randrange(1, 15))
        words[0] = draw.choice([str.upper, str.title, lambda word: word[::-1], lambda word: f"{word}s"])(words[0])
        marks = draw.choices(["", " ", "-", ".", "é ", "/12 ", "+"], (1, 9, 1, 1, 1, 1, 1), k=len(words))
        titles.append("".join(map("{}{}".format, words, marks)))
    titles = [*titles, " ".join(titles[-20:]), classify.BORDER.join(titles[-2:]), *ODD]
    values = [[draw.choice([0, draw.randrange(column.first, column.behind)]) for column in classifier.columns]
              for _ in titles]
    return classify.Rows(titles, np.array(values, int).reshape(len(titles), -1))


@functools.partial(jax.jit, compiler_options=model.QUICK_COMPILE)
def computed(ensemble, batches):
    """Of rows, step by step: [(vectors, weights and those of values that a module takes, logits that it gives)] of all
    modules, and the probabilities of all together."""
    of_modules = [(*predict.inputs(predictor, batch), predict.forward(predictor, batch))
                  for predictor, batch in zip(ensemble.predictors, batches, strict=True)]
    return of_modules, calibration.smoothed(predict.combined(ensemble, batches)[0], ensemble.smoothing)


def summed(vectors, weights):
    """[B, P, D], [B, P] -> [B, D + 1], sums that do not ask where the padding is."""
    return np.concatenate([(weights[:, None] @ vectors)[:, 0], weights.sum(1, keepdims=True)], 1)


def require_equal(found, wanted, tolerance, what, titles):
    """Raise UserError, which says what differs, unless arrays [N, ...] of N titles are equal but for rounding."""
    apart = np.abs(found - wanted).max(1, initial=0)
    if not (apart <= tolerance * np.abs(wanted).max(initial=1)).all():
        raise UserError(f"not exported: {what}, by up to {apart.max():.2g}, such as of {titles[apart.argmax()]!r}; "
                        "make the same change in classify.py as in model.py")


def require_same_words(titles):
    """Raise UserError unless the tokenizer of classify.py cuts titles as that of all other scripts does."""
    for title in titles:
        codes, words, _ = data.bulk_tokenize(pa.array([title], pa.string()))
        if (found := classify.tokenize(title)) != (wanted := [words[code] for code in codes]):
            raise UserError(f"not exported: the tokenizer of classify.py cuts {title!r} into {found}, bulk_tokenize in "
                            f"data.py into {wanted}; ASCII other than letters and digits must separate in both")


def require_same_network(classifier, exact, rows):
    """Raise UserError unless a classify.Classifier of float32 computes of rows what a predict.Classifier does, at
    each step. Returns the probabilities [N, C]."""
    titles, (ensemble, batches, known) = rows.titles, classifier.read(rows)
    # A GPU multiplies matrices less exactly unless it is asked to.
    with jax.default_matmul_precision("highest"):
        of_modules, chances = jax.device_get(computed(ensemble, batches))
    positions, _ = exact.encode(titles)
    hashes = exact.hashes[positions]

    for (config, _), (folder, _), member, (vectors, weights, of_values, z), shift in zip(
            classifier.members, classifier.checkpoints, exact.members, of_modules, classifier.shifts, strict=True):
        who = f"{folder.name}: classify.py"
        try:
            if config.get("columns"):
                require_equal(summed(*member.values.vectors(rows.values)), summed(*of_values), EXACTLY,
                              f"{who} makes other vectors or weights of the values of columns", titles)
            if "encoder" in config:
                found, _ = member.logits(*rows)
            else:
                inputs = member.inputs(positions, hashes, rows.values)
                require_equal(summed(inputs.vectors, inputs.weights), summed(vectors, weights), EXACTLY,
                              f"{who} makes other vectors or weights of words and n-grams", titles)
                found = member.logits(positions, hashes, rows.values)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"not exported: {who} fails in the network {config['model']} ({error!r}); make the same "
                            "change there as in model.py") from None
        require_equal(found, z + shift, EXACTLY, f"{who} computes other logits in the network {config['model']}, its "
                      "pooling or head", titles)

    # What is left is how several runs go together, temperatures, and whether anything of a title is known.
    answers, answered = np.zeros_like(chances), np.zeros_like(known)
    for numbers, z, is_known in exact.in_blocks(rows):
        answers[numbers], answered[numbers] = exact.probabilities(z), is_known
    largest = classifier.factors.sum() * max(np.abs(z).max() for *_, z in of_modules)
    require_equal(answers, chances, EXACTLY * max(1, largest),
                  "classify.py makes other probabilities of the same logits", titles)
    require_equal(answered[:, None].astype(int), known[:, None].astype(int), 0,
                  "classify.py says otherwise whether anything of a title is known", titles)
    return chances


def require_near(found, wanted, titles):
    """Raise UserError unless probabilities [N, C] of 8-bit integers are near those of the run."""
    best, other = wanted.argmax(1), found.argmax(1)
    rows = np.arange(len(titles))
    apart = np.abs(found[rows, best] - wanted[rows, best])
    others = wanted[rows, best] - wanted[rows, other] > NEAR_TIE
    if apart.mean() > ON_AVERAGE or others.mean() > OTHERS:
        raise UserError(f"not exported: as 8-bit integers it names another category for {others.mean():.1%} of the "
                        f"titles, with probabilities that differ by {apart.mean():.3f} on average, such as of "
                        f"{titles[apart.argmax()]!r}; export it with --dtype float32")


def write(folder, arrays, rows, chances):
    """Write model.npz and classify.py into a folder, and raise UserError unless the one answers with the other what the
    run says of rows, probabilities [N, C]. Returns the bytes of the first."""
    np.savez_compressed(folder / "model.npz", **arrays)
    # The script as it was when this process began, which is the one that these arrays were made for.
    (folder / "classify.py").write_bytes(runs.SOURCE["classify.py"])
    written = runpy.run_path(str(folder / "classify.py"))
    answers = np.zeros_like(chances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a run without validation rows, which was said when it was loaded
        exported = written["Classifier"](folder / "model.npz")
    for numbers, z, _ in exported.in_blocks(written["Rows"](*rows)):
        answers[numbers] = exported.probabilities(z)
    require_near(answers, chances, rows.titles)
    return (folder / "model.npz").stat().st_size


def log(folder, run_folder, columns, register=None, alias=None):
    """Log what `write` wrote as a model of the training in `run_folder`, and register it under a name and an alias.
    columns: names of those that rows have, of which only the first, the title, must be there. Returns its address in
    MLflow."""
    client, _ = tracking.mlflow_client()  # first: its errors are one line
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    # Model.log takes store and experiment from MLflow's global settings, not from a client.
    mlflow.set_tracking_uri(tracking.mlflow_uri())
    mlflow.environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    run_id = tracking.run_id_of(run_folder)
    try:
        if not tracking.artifacts_are_here(client, run_id):
            raise UserError(f"{run_folder}: MLflow keeps its files elsewhere, see above; export with --out alone")
        mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
        # A model from code: script and arrays are logged as they are, nothing is pickled, and it asks for NumPy alone.
        logged = Model.log(
            None, mlflow.pyfunc, registered_model_name=register, name="classifier", run_id=run_id,
            python_model=str(folder / "classify.py"), artifacts={"model": str(folder / "model.npz")},
            signature=ModelSignature(
                # As text, MLflow would make the word None of a null, and words of numbers.
                Schema([ColSpec(AnyType(), name, required=not i) for i, name in enumerate(columns)]),
                Schema([ColSpec("string", "category", required=False),
                        ColSpec("float", "probability", required=False)]),
                ParamSchema([ParamSpec("top", "long", 1), ParamSpec("threshold", "double", None),
                             ParamSpec("precision", "double", None), ParamSpec("level", "long", None)])),
            input_example=pd.DataFrame({columns[0]: ["zapatillas running talle 42", "funda celular silicona"]} | {
                name: ["", ""] for name in columns[1:]}),
            pip_requirements=[f"numpy=={np.__version__}"])
        if alias:
            client.set_registered_model_alias(register, alias, logged.registered_model_version)
    except mlflow.MlflowException as error:
        raise tracking.mlflow_error(error) from None
    return f"models:/{register}/{logged.registered_model_version}" if register else logged.model_uri


def main(args):
    # The folder is replaced whole, so it must not hold anything else.
    if args.out and args.out.exists() and (
            not args.out.is_dir() or {path.name for path in args.out.iterdir()} - CONTENT):
        raise UserError(f"{args.out}: holds other things than an exported model; name a new folder with --out")
    classifier = load_named(args)
    if args.out or args.log or args.register:
        arrays, rows = model_arrays(classifier, "float32"), sample_rows(classifier, args.data)
        require_same_words(rows.titles)
        chances = require_same_network(classifier, classify.Classifier(arrays), rows)
        arrays = model_arrays(classifier, args.dtype)
    if args.vectors:
        words, vectors = classifier.word_vectors()
        with files.atomic_write(args.vectors) as file:
            file.write(f"{len(words)} {vectors.shape[1]}\n")
            file.writelines(f"{word} {' '.join(map('{:.6g}'.format, row))}\n"
                            for word, row in zip(words, vectors.tolist(), strict=True))
        print(f"{args.vectors}: {len(words):,} words, {vectors.shape[1]} numbers each")
    if args.out:
        with files.atomic_folder(args.out) as folder:
            size = write(folder, arrays, rows, chances)
        print(f"{args.out}/model.npz: {size / 1e6:.1f} MB, {len(classifier.vocab):,} words, "
              f"{len(classifier.labels):,} categories\n"
              f"try it: echo zapatillas running | python {args.out}/classify.py {args.out}/model.npz --top 3")
    if args.log or args.register:
        # MLflow keeps copies, so these files are needed for a moment only.
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), arrays, rows, chances)
            names = classifier.title_columns if len(classifier.title_columns) > 1 else ["title"]
            columns = [*names, *(column.name for column in classifier.columns)]
            if len({*columns}) < len(columns):
                raise UserError(f"{', '.join(columns)}: two columns of one name, which MLflow cannot tell apart; use "
                                "--out")
            address = log(Path(folder), classifier.folder, columns, args.register, args.alias)
        print(f"{address}\nserve it: MLFLOW_TRACKING_URI={tracking.public(tracking.mlflow_uri())} mlflow models serve "
              f"-m {address} --env-manager local")


if __name__ == "__main__":
    cli.run(lambda: main(ARGS))
