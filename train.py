"""Train a classifier on prepared arrays; keep its best and its latest checkpoint; log the run to MLflow.

    python train.py                                  # the bag of words (mlp)
    python train.py --model cnn --name my-cnn        # the sentence CNN; also rnn and transformer
    python train.py --model encoder                  # a pretrained encoder, after prepare.py --encoder use
    python train.py --resume my-cnn                  # go on after Ctrl-C, a crash or a kill, to the same bits
    python train.py --name my-cnn --resume           # begin it, or go on with it
    python train.py --refit my-cnn                   # the same again on training and validation rows, as my-cnn-refit
    python train.py --model mlp cnn encoder --refit  # one after the other, their refits, and all of them together
    python train.py --model mlp cnn encoder --refit --within 20m     # as much of that as fits, the most useful first
    python train.py --model mlp cnn --costs          # the minutes and the memory that this would take
    python train.py --init-from my-cnn --epochs 2    # on new data, from what that run knows of its words and categories
    mlflow ui --backend-store-uri sqlite:///mlflow.db
    python -c "import mlflow; print(mlflow.search_runs(experiment_names=['titles']))"   # all runs as a pandas table

All devices that JAX sees share every batch; JAX_NUM_CPU_DEVICES=4 makes four of a processor, to try that. Several
processes, also of several machines, train as one with --coordinator (see docs/cluster.md), and several prepared
folders (prepare.py --like), or folders of parts (--parts), with --data A B C.

Reads data/prepared/ (prepare.py writes it). Writes runs/NAME/ (its files are described in titles/runs.py) and a run in
MLflow (sqlite:///mlflow.db, or MLFLOW_TRACKING_URI). The checkpoint `best` is the one with the highest balanced
accuracy on the validation split; the test split is never looked at. Ctrl-C saves `latest` and says how to go on. A
refit trains for as many epochs as the best checkpoint had, and keeps its temperature; nothing is left to choose an
epoch by, so its checkpoint is the last one. `evaluate.py --ckpt best` takes the refit where the best run has one. Where
the data has no validation rows, as with one row a category, the last checkpoint is the only one as well; then no
temperature is fitted, and no precision can be promised.

Several models, --seeds, --refit without a name and --within are one command for several trainings, which end with the
command that uses them together. Typed again it goes on where it was stopped: what runs of the same settings, data and
scripts are there are not trained again, whoever has trained them. --resume without a name makes that of any command.
--within ends it for certain: what will not fit is left out, or trains for fewer epochs, at least half of them where
there is another run already.

What a training costs is said before its first step, and again where its speed turns out to be another; with memory that
will not do comes a warning. --costs says it of all that a command asks for, and trains nothing.

On two cores the built-in SYNTHETIC set takes the bag 28 s and the CNN 75 s, start-up included; balanced accuracy on its
validation split is about 0.83 and 0.86.

Where to edit: SETTINGS, `schedule`, `make_optimizer` and `loss_of` here; modules and their pooling in model.py; the
tokenizer in classify.py. A Setting is a flag, and config["its_name"] everywhere.
"""
import contextlib
import functools
import math
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # while libraries are loaded, Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from titles import cli, settings
from titles.cli import UserError
from titles.settings import Setting, by_model

STARTED = time.time()
PRIOR = {"none": "training", "logit": "equal", "weights": "equal"}  # how frequent predictions take categories to be
SMALL = 40_000         # training rows up to which these epochs and dropout hold, and characters weigh 1 (size_rule)
FEW = 4000             # training rows below which Adagrad's sums begin lower, by the factor (rows / FEW)^2 (size_rule)
PAIRS, TEMPERATURE = 64, 0.05  # of titles in a contrastive step, and what divides their cosines
CLIP = 1.0             # norm that the gradient of an encoder's layers and head is cut down to
LATER = ("scipy.optimize", "matplotlib.backends.backend_agg")  # what the ends of an epoch and a training need
TRAIN_SAMPLE = 10_000  # training rows evaluated after each epoch, to be compared with the validation split

# --- settings ---------------------------------------------------------------------------------------------------------
# EDIT: all that decides a run. A Setting is a name, which its flag has, too; a type; a default; help; and what only
# some need, see titles/settings.py. A default is a value, `by_model` (that of most models, and of some), or None where
# size_rule or the data say it. `needs` is what a setting is of no use without: then it is refused if it was typed, and
# config.json does not have it.
MODELS = ("mlp", "cnn", "rnn", "transformer", "encoder")  # the names in model.MODELS
LESS = f"less above {SMALL:,} rows"
SETTINGS = {
    "model": [
        Setting("model", MODELS, "mlp", "which module of model.py; several are trained one after the other",
                shapes=True, several="+"),
        Setting("hidden", cli.positive(int), [], "widths of hidden layers, such as 256 128; on the bag of mlp they "
                "score about as none, and take longer", needs=("field",), shapes=True, several="*"),
        Setting("dim", cli.positive(int), None, "numbers in a word vector", "the pretrained ones' or 100",
                needs=("words",), shapes=True),
        Setting("scale", cli.positive(float), by_model(5.0, encoder=16.0), "length of the vector that a linear "
                "classifier gets of a title", needs=("field",), shapes=True),
        Setting("columns", str, None, "columns beside the title that are read; no name: none", "all that were prepared",
                needs=("columns",), shapes="pieces", several="*"),
        Setting("freeze_embeddings", bool, False, "leave the word vectors as they are at the start", shapes="pieces"),
        Setting("seed", cli.seed, 0, "decides every random number")],
    "training": [
        Setting("epochs", cli.positive(int), by_model(15, mlp=25, cnn=20, encoder=6), "passes over the training rows",
                f"{LESS}, half without any n-grams"),
        Setting("patience", cli.positive(int), None, "stop when N epochs have brought no better validation score",
                "never", needs=("validation",), metavar="N"),
        Setting("batch_size", cli.positive(int), by_model(None, encoder=64), "rows of a step",
                "others a 500th of the training rows, as a power of 2 from 64 to 1,024"),
        Setting("lr", cli.positive(float), by_model(1e-3, cnn=2e-3, rnn=2e-3, encoder=3e-3),
                "Adam's learning rate, falling to 0"),
        Setting("table_lr", cli.positive(float), by_model(0.1, encoder=0.02),
                "Adagrad's rate for vectors of words or pieces, falling to 0", needs=("table",)),
        Setting("dropout", cli.fraction_or_zero, by_model(0.3, mlp=0.5, cnn=0.4, rnn=0.4),
                "share of features left out in training", LESS),
        Setting("value_weight", cli.positive(float), 4.0, "factor on the weights of values of columns beside words",
                needs=("words", "values")),
        Setting("column_dropout", cli.fraction_or_zero, 0.5, "share of rows whose columns are left out in training, so "
                "that titles alone are answered as well", needs=("columns", "values")),
        Setting("weight_decay", cli.not_negative(float), 0.0, "L2 penalty on all but the word vectors"),
        Setting("balance", tuple(PRIOR), "logit", "logit: for balanced accuracy, by adding the log prior to the logits "
                "in training; weights: for the same, by weights on the loss; none: for accuracy"),
        Setting("parent_weight", cli.not_negative(float), 0.0, "weight on the loss of each level above the categories",
                needs=("tree",), metavar="W"),
        Setting("unreliable_weight", cli.fraction_or_one, 1.0,
                "weight on the loss of rows whose label quality is not `reliable`", needs=("quality",), metavar="W")],
    "n-grams, as in fastText": [
        Setting("word_ngrams", cli.positive(int), 2, "words of an n-gram at most", needs=("words",), shapes=True),
        Setting("minn", cli.not_negative(int), 3, "characters of an n-gram at least", needs=("words", "characters"),
                shapes=True),
        Setting("maxn", cli.not_negative(int), 4, "characters of an n-gram at most; 0: no character n-grams",
                needs=("words",), shapes=True),
        Setting("buckets", cli.positive(int), None, "rows for hashed n-grams", "4 to 16 a word, up to 2^21",
                needs=("words", "n-grams"), shapes=True),
        Setting("character_weight", cli.positive(float), None, "factor on the weights of character n-grams",
                f"1, {LESS}", needs=("words", "characters"))],
    "cnn, rnn, transformer": [
        Setting("filters", cli.positive(int), 100, "filters of each width", needs=("field",), shapes=True),
        Setting("widths", cli.positive(int), [1, 2, 3], "words that a filter looks at", needs=("field",), shapes=True,
                several="+"),
        Setting("units", cli.positive(int), 100, "recurrent units in each direction", needs=("field",), shapes=True),
        Setting("layers", cli.positive(int), 2, "layers of attention", needs=("field",), shapes=True),
        Setting("heads", cli.positive(int), 4, "heads of an attention layer", needs=("field",), shapes=True)],
    "encoder": [
        Setting("encoder_lr", cli.positive(float), 2e-4, "learning rate of pretrained layers, rising for a tenth of "
                "the steps", needs=("pieces", "layers")),
        Setting("piece_dropout", cli.fraction_or_zero, 0.1, "share of pieces of words left out in training",
                needs=("pieces", "layers")),
        Setting("name_weight", cli.not_negative(float), 0.0, "factor on the vectors of the categories' names, with "
                "which an encoder's classifier begins; 1 is good where there are few titles", needs=("pieces",)),
        Setting("contrastive_steps", cli.not_negative(int), 0, "steps before the training in which pretrained layers "
                "learn to bring titles of one category together; 100 help where categories have few titles",
                needs=("pieces", "layers", "pairs")),
        Setting("freeze_layers", bool, False, "leave the pretrained layers as they are, and the vectors: only the "
                "classifier on top is trained", needs=("field",), shapes="pieces")],
    "rarely needed": [
        Setting("accumulator", cli.not_negative(float), None, "where Adagrad's sums of squares begin",
                f"0.01, less below {FEW:,} rows", needs=("table",)),
        Setting("shard_table", bool, None, "give each device a part of the table of vectors instead of all of it",
                needs=("words",))],
}


def size_rule(rows, epochs, dropout, vocabulary):
    """The settings that depend on the training rows and words, {name: value}.

    More rows need larger batches, fewer epochs, less dropout and less weight for n-grams of characters, as words can
    speak for themselves; more words need more buckets (16 for each, where that is little memory, else 4; rounded up to
    a power of 2, or near it, 2^21 at most). Adagrad's sums of squares begin above zero, so that rare words do not take
    the largest steps.
    """
    # Chosen on validation rows, see EXPERIMENTS.md: more rows need less of what keeps a model from overfitting.
    shrink = min(1, (SMALL / rows) ** 0.6)
    buckets = 2 ** min(21, math.ceil(math.log2(max(4 * vocabulary, min(16 * vocabulary, 1 << 17)))))
    if vocabulary + buckets > model.LARGE:  # a table whose rows can be divided evenly, see runs.save_checkpoint
        buckets -= (vocabulary + buckets) % model.PARTS
    return {"batch_size": min(max(2 ** round(math.log2(max(rows, 1) / 500)), 64), 1024),
            "epochs": max(3, round(epochs * shrink)), "dropout": round(dropout * shrink, 3),
            "character_weight": round(shrink, 3), "buckets": buckets,
            "accumulator": 0.01 * min(1, rows / FEW) ** 2}


def parse_args(argv=None):
    """The flags of a run; of SETTINGS those that were typed."""
    parser = cli.argument_parser(__doc__, stray=lambda word: "--model" if word in MODELS else "--data")
    add = parser.add_argument_group("run").add_argument
    cli.add_data_flag(add)
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--name", help="name of the run (default: model and number)")
    add("--resume", metavar="NAME", nargs="?", const="",
        help="go on with this run; its own settings hold; without a name: with the run of all these flags, or begin it")
    add("--refit", metavar="NAME", nargs="?", const="",
        help="train anew with the settings of this run, on validation rows, too; without a name: of those just trained")
    add("--seeds", type=cli.positive(int), metavar="N", default=1, help="train each model with N seeds, from --seed on")
    add("--within", type=cli.duration, metavar="TIME",
        help="be done in this time, such as 90s, 20m or 1h30m: the most useful trainings that fit")
    add("--init-from", metavar="NAME",
        help="begin with what this run (or NAME/latest, or a path) has learned of the same words, n-grams and "
        "categories on other data (categories that it lacks begin, in an encoder, with their names); its settings hold "
        "where no flag says otherwise")
    add("--save-seconds", type=cli.not_negative(float), default=10.0, metavar="S",
        help="after an epoch, save and log only when the last save is S seconds ago (0: after each); epochs that a "
        "kill loses are trained again by --resume, to the same bits")
    add("--costs", action="store_true", help="say what all this would take, and train nothing")
    cli.add_process_flags(add)
    settings.add_flags(parser, SETTINGS)
    args = parser.parse_args(argv)

    # A run has one model; of several there is a training each, see titles/series.py.
    args.models = vars(args).pop("model", [])
    if len({*args.models}) < len(args.models):
        parser.error(f"--model {' '.join(args.models)}: the same twice")
    if len(args.models) == 1:
        args.model = args.models[0]
    return args


if __name__ == "__main__":
    ARGS = cli.run(parse_args)  # before JAX is loaded, so that --help answers at once
    cli.run(cli.clean_environment)

import jax
import jax.numpy as jnp
import numpy as np
import optax

import classify
import data
import model
from titles import calibration, configuration, costs, devices, measures, predict, runs, series, start, tracking
from titles.progress import Place, Progress, introduce, leave, print_epoch, requests, sizes_of
from titles.tree import shared_rows

TABLE = configuration.Table(SETTINGS, size_rule, PRIOR)

# --- what people edit -------------------------------------------------------------------------------------------------

RATES = {"lr": "lr", "encoder_lr": "encoder", "table_lr": "table"}  # the learning rates, and their names in a line


def schedule(config, rate):
    """A function of the step: the factor on --lr, --table-lr or --encoder-lr, which `rate` names."""
    # What is pretrained must not be overwritten while the classifier on top knows nothing yet.
    if rate == "encoder_lr":
        return optax.warmup_cosine_decay_schedule(0, 1, config["steps"] // 10, config["steps"])
    # EDIT: the schedule, of the dense part and of the table. It begins at step 0 and ends at config["steps"].
    return optax.linear_schedule(1, 0, config["steps"])


def make_optimizer(config):
    """The optimizer of all parameters but the table, whose optimizer is model.update. Pretrained layers have a rate of
    their own."""
    if "encoder_lr" not in config:
        return optimizer_of(config, "lr")

    # `layers` and `head` are model.Encoder's names of its parts; clipping looks at the gradients of both together.
    groups = {rate: optimizer_of(config, rate) for rate in ("lr", "encoder_lr")}
    return optax.chain(optax.clip_by_global_norm(CLIP),
                       optax.partition(groups, {"layers": "encoder_lr", "head": "lr"}))


def optimizer_of(config, rate):
    """The optimizer of parameters with this learning rate."""
    factor = schedule(config, rate)
    # EDIT: the optimizer.
    return optax.chain(optax.add_decayed_weights(config["weight_decay"]),
                       optax.adam(lambda step: config[rate] * factor(step)))


def loss_of(config, logits, labels):
    """The loss of every row: logits [..., C], labels [...] -> [...]. In training the logits hold the log prior, where
    --balance asks for it; `config` is for settings of your own."""
    # EDIT: the loss.
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def tree_loss(config, logits, labels, nodes):
    """The loss of every row, also where categories are leaves of a tree: logits [..., C], labels [...] numbers of nodes
    -> [...]; nodes: as in `training_arrays`. Of a row that knows only a parent it is -log of the sum of the
    probabilities of the leaves below."""
    if not nodes:
        return loss_of(config, logits, labels)
    categories = logits.shape[-1]

    def of(numbers, steps):
        below, is_below = calibration.of_leaves(logits.reshape(-1, categories),
                                                nodes["below"][numbers].reshape(-1, 2), steps)
        return jax.nn.logsumexp(logits, -1) - jax.nn.logsumexp(below, 1, where=is_below).reshape(labels.shape)

    # EDIT: what a row says of the levels above its category. parent_weight adds the losses of the nodes there.
    loss = jnp.where(labels < categories, loss_of(config, logits, jnp.minimum(labels, categories - 1)),
                     of(labels, nodes["steps"]))
    if config["parent_weight"]:
        above = jnp.moveaxis(nodes["above"][labels], -1, 0)[:-1]
        loss += config["parent_weight"] * sum(jnp.where(node == labels, 0, of(node, jnp.arange(categories)))
                                              for node in above)
    return loss


def class_terms(balance, count):
    """(added to the logits in training [C], weight of a row's loss by category [C]) for a --balance method; count [C]:
    training rows of each category.

    `logit` adds the log prior (Menon et al. 2021, Long-tail learning via logit adjustment), `weights` divides by the
    category's frequency as scikit-learn's class_weight="balanced".
    """
    # EDIT: the methods against class imbalance; PRIOR says what predictions then assume.
    # A category without a training row counts as half a row, so that its logarithm is finite.
    shift, weight = np.zeros(len(count), np.float32), np.ones(len(count), np.float32)
    if balance == "logit":
        shift = np.log(np.maximum(count, 0.5) / count.sum()).astype(np.float32)
    if balance == "weights":
        weight = (count.sum() / (len(count) * np.maximum(count, 1))).astype(np.float32)
    return shift, weight


# --- the step ---------------------------------------------------------------------------------------------------------

def training_arrays(config, features, rows, frozen=None, tree=None):
    """What the compiled loop reads, on the device: `features` as from model.feature_tables; of the training rows
    their data.Batch, `labels` [N] and their loss's weight `row_weight` [N], of which each device has a part; `shift`
    [C] of the logits; the `keys` of all steps; variables that are `frozen` and not in the state; and where the loss
    asks for `nodes` of the classify.Tree the leaves `below` them [M, 2], the nodes `above` [M, L] and `steps` from the
    first leaf of the widest that is a label to its last."""
    # A row's weight on the loss is its category's, or the mean of those that it may have, times that of its quality.
    tree, nodes = tree or classify.Tree([*map(str, range(config["classes"]))], False), {}
    count = shared_rows(rows["labels"], tree)
    shift, class_weight = class_terms(config["balance"], count)
    if config.get("parent_weight") or (rows["labels"] >= tree.leaves).any():
        widest = np.diff(tree.below[np.unique(rows["labels"])]).max()
        nodes = {"below": tree.below.astype(np.int32), "above": tree.above.astype(np.int32), "steps": np.arange(widest)}
        means = [np.average(class_weight[low:high], weights=np.maximum(count[low:high], 0.5))
                 for low, high in tree.below[tree.leaves:]]
        class_weight = np.append(class_weight, np.array(means, np.float32))
    row_weight = class_weight[rows["labels"]]
    if "unreliable_weight" in config:
        row_weight = np.where(rows["reliable"], row_weight, row_weight * np.float32(config["unreliable_weight"]))

    # All rows go to the device once; a chunk then brings nothing but row numbers.
    return devices.put({"features": features, "shift": shift, "frozen": frozen or {}, "nodes": nodes,
                        "keys": model.step_keys(config["seed"], config["steps"])}, devices.whole()) | {
        "batch": jax.tree.map(devices.put_rows, data.batch_of(rows)), "labels": devices.put_rows(rows["labels"]),
        "row_weight": devices.put_rows(row_weight)}


def make_train_chunk(config):
    """The compiled loop: (state, training_arrays, order [S, B] of rows, width) -> (state, mean loss). The titles of
    `order` have at most `width` words. The state is donated: parameters and table change in place. What is drawn
    depends on seed and step alone."""
    module, optimizer, factor = model.build(config), make_optimizer(config), schedule(config, "table_lr")
    pieces, parted, has_columns = "encoder" in config, config.get("shard_table", False), bool(config.get("columns"))

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="width")
    def train_chunk(state, arrays, order, width):
        def step(state, rows):
            variables, optimizer_state = state["variables"], state["optimizer"]
            number = optimizer_state["step"]
            key, *keys = jax.random.wrap_key_data(arrays["keys"][number], impl="rbg")  # quick, also to compile

            # The batch, its categories, and the rows of the table that make the words' vectors.
            batch = data.chosen(arrays["batch"], rows, width)
            ids = batch.ids.astype(jnp.int32)
            labels = arrays["labels"][rows].astype(jnp.int32)
            drawn_rows = model.draw_pieces(config, ids, key) if pieces else model.draw_features(
                config, arrays["features"], variables["weights"], ids, keys)
            vectors, weights, gathered = model.lookup((arrays["frozen"] | variables)["table"], drawn_rows, parted)

            # The values of its columns have a table of their own.
            values, value_weights = jnp.zeros((len(ids), 0, vectors.shape[-1])), jnp.zeros((len(ids), 0))
            if has_columns:
                values, value_weights, gathered_values = model.lookup(variables["values"], model.draw_values(
                    arrays["features"], variables["value_weights"], batch.values.astype(jnp.int32),
                    keys[2], config["column_dropout"]))

            # The loss, and its gradient with respect to the parameters and to the vectors, not to the table.
            def mean_loss(params, vectors, values):
                logits = module.apply({"params": params}, vectors, weights, (values, value_weights), train=True,
                                      rngs={"dropout": keys[1]})
                logits += arrays["shift"]
                loss = tree_loss(config, logits, jnp.broadcast_to(labels, logits.shape[:-1]), arrays["nodes"])
                return jnp.mean(arrays["row_weight"][rows] * loss)  # of several heads their mean

            loss, (gradient, vector_gradient, value_gradient) = jax.value_and_grad(mean_loss, (0, 1, 2))(
                variables["params"], vectors, values)

            # The update: dense parameters by optax, rows of the table in place.
            updates, dense = optimizer.update(gradient, optimizer_state["dense"], variables["params"])
            variables = variables | {"params": optax.apply_updates(variables["params"], updates)}
            optimizer_state = optimizer_state | {"dense": dense, "step": number + 1}
            changes = {} if config["freeze_embeddings"] else {("table", "accumulator"): (gathered, vector_gradient)}
            if has_columns:
                changes["values", "value_sums"] = gathered_values, value_gradient
            for (table, sums), change in changes.items():
                variables[table], optimizer_state[sums] = updated_table(
                    variables[table], optimizer_state[sums], *change, config["table_lr"] * factor(number))
            return {"variables": variables, "optimizer": optimizer_state}, loss

        # Python and transfers take their time once a chunk, not once a step.
        state, losses = jax.lax.scan(step, state, order)
        places = model.shardings(config, state), devices.whole()
        return jax.lax.with_sharding_constraint((state, losses.mean()), places)

    return train_chunk


def updated_table(table, sums, gathered, gradient, rate):
    """(a table, its sums of squares) after a step: gathered as from model.lookup; gradient [B, P, D] of the mean loss
    with respect to the vectors."""
    # Every device does the whole update, so they exchange row numbers and the gradients of the batch's vectors: never
    # a table, nor a gradient for every n-gram.
    *exchanged, gradient = jax.lax.with_sharding_constraint(
        (gathered.rows, gathered.weights, gradient), devices.whole())
    # The mean over the batch is undone, so that a title's gradient counts in full: where Adagrad's sums begin
    # (--accumulator) then means the same for every batch size.
    return model.update(table, sums, model.Gathered(*exchanged, gathered.positions), gradient * len(gradient), rate)


# --- before the first step --------------------------------------------------------------------------------------------

def contrastive_loss(vectors, labels):
    """The supervised contrastive loss (Khosla et al. 2020, outside the logarithm) of vectors [B, D] of length 1 with
    labels [B], each of which at least two have: minus the mean logarithm of p(other | one) over the others of its
    category, where p is the softmax of cosines over all others."""
    # EDIT: what pretrained layers learn of titles before there is a classifier.
    itself = jnp.eye(len(vectors), dtype=bool)
    same = (labels[:, None] == labels) & ~itself
    likely = jax.nn.log_softmax(jnp.where(itself, -jnp.inf, vectors @ vectors.T / TEMPERATURE))
    return -jnp.mean(jnp.sum(likely, -1, where=same) / jnp.sum(same, -1))


def pairs_of(config, labels):
    """[steps, 2 PAIRS] rows of the contrastive steps, a function of the seed: pairs of titles of one category, of as
    many categories as there are. In none are rows that are alone in their category, or know only a parent of it."""
    draw, order = np.random.default_rng(config["seed"]), np.argsort(labels, kind="stable")
    groups = [rows for rows in np.split(order, np.flatnonzero(np.diff(labels[order].astype(int))) + 1)
              if len(rows) > 1 and labels[rows[0]] < config["classes"]]
    if len(groups) < 2:
        return np.zeros((0, 2 * PAIRS), np.uint32)

    # Where categories are fewer than pairs, they come round after round.
    rounds, steps = -(-PAIRS // len(groups)), []
    for _ in range(config["contrastive_steps"]):
        chosen = np.concatenate([draw.permutation(len(groups)) for _ in range(rounds)])[:PAIRS]
        steps.append(np.concatenate([draw.choice(groups[i], 2, replace=False) for i in chosen]))
    return np.array(steps, np.uint32)


def contrast(config, state, arrays, labels):
    """The state after --contrastive-steps, where there are any, in which the pretrained layers alone learn, before a
    classifier is trained on them (as Tunstall et al. 2022, SetFit, train theirs). arrays: as from training_arrays;
    labels [N] of the rows."""
    if not config.get("contrastive_steps"):
        return state
    module = model.MODELS[config["model"]].below()
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optimizer_of(
        config | {"steps": config["contrastive_steps"]}, "encoder_lr"))

    @functools.partial(jax.jit, out_shardings=devices.whole())
    def learn(layers, variables, arrays, order):
        def step(before, item):
            (layers, learned), (number, rows) = before, item
            ids = data.chosen(arrays["batch"], rows, arrays["batch"].ids.shape[1]).ids.astype(jnp.int32)
            vectors, weights, _ = model.lookup((arrays["frozen"] | variables)["table"], model.draw_pieces(
                config, ids, jax.random.fold_in(jax.random.key(config["seed"]), number)))
            loss, gradient = jax.value_and_grad(lambda layers: contrastive_loss(
                module.apply({"params": layers}, vectors, weights), arrays["labels"][rows]))(layers)
            updates, learned = optimizer.update(gradient, learned, layers)
            return (optax.apply_updates(layers, updates), learned), loss

        (layers, _), losses = jax.lax.scan(step, (layers, optimizer.init(layers)), (jnp.arange(len(order)), order))
        return layers, losses

    started, order = time.time(), pairs_of(config, labels)
    if not len(order):  # of the titles that are left where others have trained a former run
        raise UserError("--contrastive-steps: fewer than two categories have two titles; leave it out")
    variables = state["variables"]
    layers, losses = learn(variables["params"]["layers"], variables, arrays, devices.put(order, devices.whole()))
    print(f"contrastive: {len(order)} steps of {PAIRS} pairs, loss {float(losses[0]):.4f} to {float(losses[-1]):.4f}, "
          f"{time.time() - started:.1f} s")
    params = variables["params"] | {"layers": layers}
    return state | {"variables": variables | {"params": params}}


# --- scores -----------------------------------------------------------------------------------------------------------

def evaluate_rows(predictor, arrays, prefix):
    """Loss, accuracy and balanced accuracy over every row of `arrays` (and over the reliable rows, where known)."""
    # A loss that is not finite must not pass for a number; the caller stops.
    result = predict.score(predict.Ensemble((predictor,)), (data.batch_of(arrays),), arrays["labels"])
    if not np.abs(result["loss"]).max() < 1e30:
        result["loss"][:] = np.inf  # its sum would overflow
    row = {f"{prefix}_loss": float(result["loss"].mean()),
           f"{prefix}_accuracy": float((result["prediction"] == arrays["labels"]).mean()),
           f"{prefix}_balanced_accuracy": measures.balanced_accuracy(arrays["labels"], result["prediction"])}

    # On rows whose label the source vouches for, scores are not blurred by wrong labels.
    reliable = arrays.get("reliable", np.zeros(0, bool))
    if reliable.any():
        row[f"{prefix}_reliable_loss"] = float(result["loss"][reliable].mean())
        row[f"{prefix}_reliable_balanced_accuracy"] = measures.balanced_accuracy(
            arrays["labels"][reliable], result["prediction"][reliable])
    return row


def calibrate(predictor, rows):
    """What a checkpoint keeps so that its probabilities can be trusted: of some validation rows (`titles`, `labels`)
    the `logits` [n, C] float16, minus the largest of each row, and the `labels`; `temperature` and `smoothing`."""
    logits = predict.in_batches(lambda batch: {"logits": predict.logits(predictor, *batch)}, (data.batch_of(rows),),
                                largest=predict.largest_batch_of((predictor,)))["logits"]

    # Softmax does not see what a whole row has lost, and float16 is finest near 0, where the likeliest now are.
    with np.errstate(over="ignore", invalid="ignore"):  # of losses that are not finite the caller speaks
        logits = logits - logits.max(1, keepdims=True)
        kept = logits.astype(np.float16)
    temperature, smoothing = map(np.float32, calibration.fit(logits, rows["labels"]))
    return {"logits": kept, "labels": rows["labels"].astype(np.int32),
            "temperature": temperature, "smoothing": smoothing}


# --- the loop ---------------------------------------------------------------------------------------------------------

class Ready(NamedTuple):
    """What the loop needs beside the state."""
    programs: dict      # of `compile_chunks`
    groups: list        # of data.length_groups
    rows: dict          # {what they are for: rows}, of `scored_rows`
    predictor: object   # function of the state: a predict.Predictor
    place: Place        # with the command that goes on, and what the training is expected to cost
    stop: list          # as from progress.requests


def expected(plan, save_seconds):
    """The costs.Costs of a training that has not begun; None on several devices."""
    def arrays(features, rows, frozen):
        return training_arrays(plan.config, features, rows, frozen, data.tree_of(plan.meta))

    found = costs.expected(plan, costs.Loop(make_optimizer(plan.config), make_train_chunk(plan.config), arrays,
                                            TRAIN_SAMPLE, save_seconds))
    if not found or not plan.config.get("contrastive_steps"):
        return found

    # A contrastive step reads all places of its titles, those of others are as wide as the longest of them.
    some = plan.arrays["train"]["titles"][:TRAIN_SAMPLE]
    rows = plan.config["contrastive_steps"] * 2 * PAIRS * some.size / max(1, np.count_nonzero(some))
    return found._replace(before=found.before + rows / plan.config["batch_size"] * found.step)


def train(args, plan, place):
    """Train what a configuration.Plan says, to the end or until a signal or its Place among other trainings of the
    command ends it. Returns the run's folder."""
    config, folder, is_new = plan.config, plan.folder, plan.is_new
    devices.require_same({name: value for name, value in config.items() if name not in ("created", "checksum")})

    # What it costs is said before it is paid.
    passed, found = time.time() - place.started, place.expected or expected(plan, args.save_seconds)
    place = place._replace(expected=found and found._replace(before=found.before + passed))
    if is_new and found:
        print(costs.said(place.expected))
        costs.warn(found)

    # MLflow takes seconds to connect; meanwhile the loop is compiled.
    connecting = cli.in_background(tracking.mlflow_client) if devices.is_first() else None
    begins = is_new or runs.checkpoint_manager(folder, read_only=True).latest_step() is None
    former = start.former_run(plan.config, args.runs) if begins else None
    state, features, frozen, arrays = start.begin(plan, make_optimizer(config), former)
    groups = data.length_groups(arrays["train"]["titles"], config["batch_size"])
    of_rows = training_arrays(config, features, arrays["train"], frozen, data.tree_of(plan.meta))
    programs = compile_chunks(config, state, of_rows, groups)
    state = contrast(config, state, of_rows, arrays["train"]["labels"]) if begins else state
    mlflow = connecting and connecting.result()
    # What only the ends of an epoch and of the training need is loaded while the first one is trained.
    if mlflow:
        cli.load_ahead(LATER)

    # Only now, with all compiled, a new run gets its folder: what fails before this leaves none behind.
    if is_new and devices.is_first():
        folder = runs.create(folder, config, plan.meta, plan.trained, plan.named)
    if is_new:
        folder = Path(devices.from_first(str(folder)))
    is_alone, place = place.command is None, place._replace(command=place.command or (
        f"{cli.listed(Path(sys.argv[0]))} --resume {folder.name}{runs.other_folders(args)}"))
    scored = scored_rows(config, arrays)
    plan = arrays = of_rows = former = None  # the devices have all training rows
    cli.give_back_memory()          # and what compiling took is free

    # A resumed run goes on from its latest checkpoint. A kill may have kept its last epochs from being logged.
    with runs.training_lock(folder), contextlib.ExitStack() as stack:
        # From here on Ctrl-C only asks: the loop ends after a chunk and saves a checkpoint.
        stop = stack.enter_context(requests(place.deadline))
        manager, sizes = runs.checkpoint_manager(folder), sizes_of(state["variables"] | frozen)
        state, history = runs.restore_latest(manager, state)
        began = place.started - (history[-1]["seconds"] if history else 0)  # as if nothing had come between
        tracker = mlflow and stack.enter_context(tracking.Tracker(mlflow, folder, config, sizes, began))
        saves = stack.enter_context(runs.Saves(manager, folder, tracker, args.save_seconds))
        saves.log_again(history)
        introduce(folder.name, config, sizes)
        ready = Ready(programs, groups, scored, lambda state: predict.make_predictor(
            config, state["variables"] | frozen, features), place, stop)
        history = loop(config, ready, state, saves, history)

    print(f"{runs.best_said(config, history)}{' on SYNTHETIC data' if config['synthetic'] else ''}; "
          f"{time.time() - place.started:.1f} s in all")
    if is_alone:  # else something is said of all at the end
        print(f"test it: python evaluate.py --ckpt {folder.name}{runs.other_folders(args)}")
    if mlflow and not place.others and (page := tracking.experiment_page(mlflow[1])):
        print(f"look at it: {page}")
    return folder


def loop(config, ready, state, saves, history):
    """Train until all epochs are done or --patience says so. Returns the scores of all epochs."""
    epoch_steps, step = config["steps"] // config["epochs"], int(state["optimizer"]["step"])
    before = history[-1]["seconds"] if history else 0
    is_judged = runs.is_judged(config)
    # What the run before has learned of validation rows holds for a refit, which has trained on them.
    validation = {"validation": runs.restore_validation(saves.folder.with_name(config["refit"]))} if (
        "refit" in config) else {}

    # What comes before the first step: scores by chance, or what a former run's knowledge is worth here.
    if step == 0 and is_judged:
        print_epoch({"epoch": 0} | evaluate_rows(ready.predictor(state), ready.rows["valid"], "valid"))
    print(f"ready after {time.time() - ready.place.started:.1f} s (reading, compiling)")
    if runs.is_over(config, history):
        print("all epochs are done, or --patience has ended them: nothing is left to train")

    progress = Progress(config, RATES, schedule, step, ready.place)
    while not runs.is_over(config, history):
        # Train on every row once. Chunks that were done before this run was resumed are left out.
        begun, epoch, chunks = time.time(), len(history), []
        done = epoch * epoch_steps
        for width, order in data.batches(ready.groups, config["batch_size"], config["seed"], epoch):
            done += len(order)
            chunks += [(ready.programs[width], order)] if done > step else []
        state, losses = train_chunks(state, chunks, step, progress, ready.stop)
        begun_step, step = step, losses[-1][0]
        check_finite([loss for _, loss, _ in losses], saves.folder.name, config, step)
        seconds = time.time() - begun

        # Calibrate: a checkpoint holds what its probabilities mean.
        predictor = ready.predictor(state)
        if is_judged:
            calibrating = devices.beside(functools.partial(calibrate, predictor, ready.rows["calibration"]))
        if step < done:  # a signal came
            validation = {"validation": calibrating.result()} if is_judged else validation
            saves.save(step, state | validation, history, losses)
            leave(ready.place.command, saves.folder, step, asked(ready.stop))

        # Evaluate on a sample of the training rows and on all validation rows.
        row = {"epoch": epoch + 1, "step": step} | evaluate_rows(predictor, ready.rows["train"], "train")
        if is_judged:
            row |= evaluate_rows(predictor, ready.rows["valid"], "valid")
            validation = {"validation": calibrating.result()}
        del predictor  # it has the vectors of all words
        check_finite([row["train_loss"], row.get("valid_loss", 0)], saves.folder.name, config, step)
        row |= {name: float(kept[name]) for kept in validation.values() for name in ("temperature", "smoothing")} | {
                "titles_per_second": (step - begun_step) / epoch_steps * config["rows"] / seconds,
                "seconds": time.time() - ready.place.started + before}
        history = [*history, row]

        # Save and log, or let a quick epoch wait. A signal that comes while it waits ends the next epoch.
        is_best, is_last = is_judged and runs.epochs_since_best(history) == 0, runs.is_over(config, history)
        saved = saves.epoch(step, state | validation, history, losses, asked(ready.stop) or is_last)
        print_epoch(row, is_best)
        if saved and not is_last and (number := asked(ready.stop)):
            leave(ready.place.command, saves.folder, step, number)
        progress.pause(time.time() - begun - seconds)  # evaluating and saving are not training time
    return history


def scored_rows(config, arrays):
    """{what they are for: rows}: "train", the same training rows after every epoch, so that their scores can be
    compared; "valid"; and "calibration", the same validation rows for all runs, so that several can be weighted
    against each other."""
    leaves = np.flatnonzero(arrays["train"]["labels"] < config["classes"])  # what knows only a parent has no score
    sample = leaves[np.random.default_rng(config["seed"]).permutation(len(leaves))[:TRAIN_SAMPLE]]
    valid = arrays["valid"]
    drawn = np.random.default_rng(0).permutation(len(valid["labels"]))[:config["calibration_rows"]]
    return {"train": {kind: array[sample] for kind, array in arrays["train"].items() if kind != "language"},
            "valid": valid, "calibration": {kind: array[drawn] for kind, array in valid.items()}}


def compile_chunks(config, state, arrays, groups):
    """{width of a group: (state, order) -> (state, loss)}: the compiled loop for each group of titles."""
    train_chunk = make_train_chunk(config)
    parted = devices.parted(config["batch_size"], axis=1)  # steps come first

    def lowered(group):
        # Compiled ahead, for which only the shapes count; so no epoch's speed is spoilt by compiling.
        order = devices.put(np.zeros((group.steps, config["batch_size"]), np.uint32), parted)
        return train_chunk.lower(state, arrays, order, width=group.width)

    def ready(program):
        return lambda state, order: program(state, arrays, devices.put(order, parted))

    # The compiler lets other threads work, so each core compiles one. Several processes must do all in one order.
    with ThreadPoolExecutor(1 if jax.process_count() > 1 else os.cpu_count()) as pool:
        compiling = {group.width: pool.submit(lowered(group).compile) for group in groups}
    return {width: ready(program.result()) for width, program in compiling.items()}


def train_chunks(state, chunks, step, progress, stop):
    """Train on chunks [(program, order)], from `step` on, until `stop` of some process has a number (all end at the
    same step then, for they must go on together), or the loss is broken: check_finite then says so, before anything is
    saved. Returns the state, and [(step, loss, time)] of the chunks that were trained on."""
    losses, signals = [], []
    for program, order in chunks:
        state, loss = program(state, order)
        step += len(order)
        losses.append((step, loss, time.time()))
        signals.append(devices.largest(max(stop, default=0)))
        # What came of the chunk before is looked at, so that the device is busy with this one meanwhile.
        before = max(0, len(losses) - 2)
        progress.show(step, loss := float(losses[before][1]))
        if int(signals[before]) or not math.isfinite(loss):
            break
    return state, losses


def check_finite(values, name, config, step):
    """Raise UserError unless all these losses are numbers: nothing that came out of a broken step is saved."""
    if not all(math.isfinite(float(value)) for value in values):
        rates = " or ".join(f"{settings.flag_of(rate)} (now {config[rate]})" for rate in RATES if rate in config)
        raise UserError(f"the loss is no longer finite at step {step:,} of run {name}; try a lower {rates}")


def asked(stop):
    """What asks some process to stop, see progress.requests, or 0."""
    return int(devices.largest(max(stop, default=0)))


def main(args):
    series.run(TABLE, args, series.Calls(train, expected), STARTED)


if __name__ == "__main__":
    cli.run(lambda: devices.together(main, ARGS))
