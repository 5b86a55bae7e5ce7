"""Train a classifier on prepared arrays; keep its best and its latest checkpoint; log the run to MLflow.

    python train.py                                  # the bag of words (mlp)
    python train.py --model cnn --name my-cnn        # the sentence CNN; also rnn and transformer
    python train.py --model encoder                  # a pretrained encoder, after prepare.py --encoder use
    python train.py --resume my-cnn                  # go on after Ctrl-C, a crash or a kill, to the same bits
    python train.py --refit my-cnn                   # the same again on training and validation rows, as my-cnn-refit
    python train.py --init-from my-cnn --epochs 2    # on new data, from what that run knows of its words and categories
    mlflow ui --backend-store-uri sqlite:///mlflow.db
    python -c "import mlflow; print(mlflow.search_runs(experiment_names=['titles']))"   # all runs as a pandas table

All devices that JAX sees share every batch; JAX_NUM_CPU_DEVICES=4 makes four of a processor, to try that. Several
processes, also of several machines, train as one with --coordinator (see titles/devices.py), and several prepared
folders (prepare.py --like) with --data A B C.

Reads data/prepared/ (prepare.py writes it). Writes runs/NAME/ (its files are described in titles/runs.py) and a run in
MLflow (sqlite:///mlflow.db, or MLFLOW_TRACKING_URI). The checkpoint `best` is the one with the highest balanced
accuracy on the validation split; the test split is never looked at. Ctrl-C saves `latest` and says how to go on. A
refit trains for as many epochs as the best checkpoint had, and keeps its temperature; nothing is left to choose an
epoch by, so its checkpoint is the last one. `evaluate.py --ckpt best` takes the refit where the best run has one.
On two cores the built-in SYNTHETIC set takes the bag 28 s and the CNN 75 s, start-up included; balanced accuracy on its
validation split is about 0.83 and 0.86.

Where to edit: DEFAULTS, `schedule`, `make_optimizer` and `loss_of` here; modules and their pooling in model.py; the
tokenizer in classify.py. A flag added to `parse_args` is config["its_name"] everywhere.
"""
import contextlib
import dataclasses
import functools
import json
import math
import re
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # while libraries are loaded, Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.flags.safe_path:  # PYTHONSAFEPATH keeps Python from looking for modules beside the script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import data
from titles import cli, files
from titles.cli import UserError

STARTED = time.time()

# --- knobs ------------------------------------------------------------------------------------------------------------
# EDIT: the settings. Epochs and dropout shrink with the size of the data, see size_rule.
DEFAULTS = {  # by model, the fields of its module among them; a flag overrides them
    "mlp": {"lr": 1e-3, "dropout": 0.5, "word_ngrams": 2, "epochs": 25, "hidden": [], "scale": 5.0},
    "cnn": {"lr": 2e-3, "dropout": 0.4, "word_ngrams": 2, "epochs": 20, "hidden": [], "scale": 5.0,
            "filters": 100, "widths": [1, 2, 3]},
    "rnn": {"lr": 2e-3, "dropout": 0.4, "word_ngrams": 2, "epochs": 15, "hidden": [], "scale": 5.0, "units": 100},
    "transformer": {"lr": 1e-3, "dropout": 0.3, "word_ngrams": 2, "epochs": 15, "hidden": [], "scale": 5.0,
                    "layers": 2, "heads": 4},
    "encoder": {"lr": 3e-3, "encoder_lr": 2e-4, "table_lr": 0.02, "dropout": 0.3, "piece_dropout": 0.1, "epochs": 6,
                "batch_size": 64, "scale": 16.0, "name_weight": 0.0},
}
PRIOR = {"none": "training", "logit": "equal", "weights": "equal"}  # how frequent predictions take categories to be
SMALL = 40_000         # training rows up to which these epochs and dropout hold, and characters weigh 1 (size_rule)
FEW = 4000             # training rows below which Adagrad's sums begin lower, by the factor (rows / FEW)^2 (size_rule)
MAX_STEPS = 8          # of a chunk, which is one call of the compiled loop; titles of a chunk are all short or all long
CLIP = 1.0             # norm that the gradient of an encoder's layers and head is cut down to
TRAIN_SAMPLE = 10_000  # training rows evaluated after each epoch, to be compared with the validation split


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
    parser = cli.argument_parser(__doc__, stray=lambda word: "--model" if word in DEFAULTS else "--data")

    # argparse shows one default for a flag; these depend on the model.
    def default(name, *others):
        by_model = [f"{model} {knobs[name]}" for model, knobs in DEFAULTS.items() if name in knobs]
        return f"(default: {', '.join([*by_model, *others])})"

    # Flags without a default here get theirs in `configure`: from DEFAULTS, the size of the data or a former run.
    less = f"less above {SMALL:,} rows"
    add = parser.add_argument_group("run").add_argument
    cli.add_data_flag(add)
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--name", help="name of the run (default: model and number)")
    add("--seed", type=cli.seed, default=0, help="decides every random number")
    add("--resume", metavar="NAME", help="go on with this run; its own settings hold")
    add("--refit", metavar="NAME", help="train anew with the settings of this run, on validation rows, too")
    add("--init-from", metavar="NAME",
        help="begin with what this run (or NAME/latest, or a path) has learned of the same words, n-grams and "
        "categories on other data; its settings hold where no flag says otherwise")

    add = parser.add_argument_group("model").add_argument
    add("--model", choices=DEFAULTS, default="mlp", help="which module of model.py")
    add("--hidden", type=cli.positive(int), nargs="*",
        help="widths of hidden layers, such as 256 128; on the bag of mlp they score about as none, and take longer "
        f"{default('hidden')}")
    add("--dim", type=cli.positive(int), help="numbers in a word vector (default: the pretrained ones' or 100)")
    add("--freeze-embeddings", action="store_true", help="leave the word vectors as they are at the start")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=cli.positive(int),
        help=f"passes over the training rows {default('epochs', less, 'half without any n-grams')}")
    add("--patience", type=cli.positive(int), metavar="N",
        help="stop when N epochs have brought no better validation score (default: never)")
    add("--batch-size", type=cli.positive(int),
        help="rows of a step (default: a 500th of the training rows, as a power of 2 from 64 to 1,024; encoder 64)")
    add("--lr", type=cli.positive(float), help=f"Adam's learning rate, falling to 0 {default('lr')}")
    add("--table-lr", type=cli.positive(float), default=0.1,
        help="Adagrad's rate for vectors of words or pieces, falling to 0 " + default("table_lr", "others %(default)s"))
    add("--dropout", type=cli.fraction_or_zero,
        help=f"share of features left out in training {default('dropout', less)}")
    add("--weight-decay", type=cli.not_negative(float), default=0.0, help="L2 penalty on all but the word vectors")
    add("--balance", choices=PRIOR, default="logit",
        help="logit: for balanced accuracy, by adding the log prior to the logits in training; weights: for the same, "
        "by weights on the loss; none: for accuracy")
    add("--unreliable-weight", type=cli.fraction_or_one, default=1.0, metavar="W",
        help="weight on the loss of rows whose label quality is not `reliable`")

    add = parser.add_argument_group("n-grams", "as in fastText").add_argument
    add("--word-ngrams", type=cli.positive(int), help=f"words of an n-gram at most {default('word_ngrams')}")
    add("--minn", type=cli.not_negative(int), default=3, help="characters of an n-gram at least")
    add("--maxn", type=cli.not_negative(int), default=4,
        help="characters of an n-gram at most; 0: no character n-grams")
    add("--buckets", type=cli.positive(int), help="rows for hashed n-grams (default: 4 to 16 a word, up to 2^21)")
    add("--character-weight", type=cli.positive(float),
        help=f"factor on the weights of character n-grams (default: 1, {less})")

    add = parser.add_argument_group("cnn, rnn, transformer").add_argument
    add("--filters", type=cli.positive(int), help=f"filters of each width {default('filters')}")
    add("--widths", type=cli.positive(int), nargs="+", help=f"words that a filter looks at {default('widths')}")
    add("--units", type=cli.positive(int), help=f"recurrent units in each direction {default('units')}")
    add("--layers", type=cli.positive(int), help=f"layers of attention {default('layers')}")
    add("--heads", type=cli.positive(int), help=f"heads of an attention layer {default('heads')}")

    add = parser.add_argument_group("encoder").add_argument
    add("--encoder-lr", type=cli.positive(float),
        help=f"learning rate of pretrained layers, rising for a tenth of the steps {default('encoder_lr')}")
    add("--piece-dropout", type=cli.fraction_or_zero,
        help=f"share of pieces of words left out in training {default('piece_dropout')}")
    add("--name-weight", type=cli.not_negative(float),
        help="factor on the vectors of the categories' names, with which an encoder's classifier begins; 1 is good "
        f"where there are few titles {default('name_weight')}")
    add("--freeze-layers", action="store_true",
        help="leave the pretrained layers as they are, and the vectors: only the classifier on top is trained")

    add = parser.add_argument_group("rarely needed").add_argument
    add("--accumulator", type=cli.not_negative(float),
        help=f"where Adagrad's sums of squares begin (default: 0.01, less below {FEW:,} rows)")
    add("--save-seconds", type=cli.not_negative(float), default=10.0, metavar="S",
        help="after an epoch, save and log only when the last save is S seconds ago (0: after each); epochs that a "
        "kill loses are trained again by --resume, to the same bits")
    add("--shard-table", action="store_true",
        help="give each device a part of the table of vectors instead of all of it")
    cli.add_process_flags(add)

    # What was typed goes before DEFAULTS and a former run, even where it equals the flag's default.
    args = parser.parse_args(argv)
    args.given = cli.flags_given(argv)
    return args


if __name__ == "__main__":
    ARGS = cli.run(parse_args)  # before JAX is loaded, so that --help answers at once
    cli.run(cli.clean_environment)

import jax
import jax.numpy as jnp
import numpy as np
import optax

import model
from titles import calibration, devices, encoder, runs, tracking

# --- the step ---------------------------------------------------------------------------------------------------------

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


def class_terms(balance, labels, classes):
    """(added to the logits in training [C], weight of a row's loss by category [C]) for a --balance method.

    `logit` adds the log prior (Menon et al. 2021, Long-tail learning via logit adjustment), `weights` divides by the
    category's frequency as scikit-learn's class_weight="balanced".
    """
    # EDIT: the methods against class imbalance; PRIOR says what predictions then assume.
    # A category without a training row counts as half a row, so that its logarithm is finite.
    count = np.bincount(labels, minlength=classes)
    shift, weight = np.zeros(classes, np.float32), np.ones(classes, np.float32)
    if balance == "logit":
        shift = np.log(np.maximum(count, 0.5) / len(labels)).astype(np.float32)
    if balance == "weights":
        weight = (len(labels) / (classes * np.maximum(count, 1))).astype(np.float32)
    return shift, weight


def training_arrays(config, features, rows, frozen=None):
    """What the compiled loop reads, on the device: `features` as from model.feature_tables; of the training rows
    `titles` [N, L] ids, `labels` [N] and their loss's weight `row_weight` [N], of which each device has a part; `shift`
    [C] of the logits; variables that are `frozen` and not in the state."""
    # A row's weight on the loss is its category's times that of its label quality.
    shift, class_weight = class_terms(config["balance"], rows["labels"], config["classes"])
    row_weight = class_weight[rows["labels"]]
    if "unreliable_weight" in config:
        row_weight = np.where(rows["reliable"], row_weight, row_weight * np.float32(config["unreliable_weight"]))

    # All rows go to the device once; a chunk then brings nothing but row numbers.
    return devices.put({"features": features, "shift": shift, "frozen": frozen or {}}, devices.whole()) | {
        name: devices.put_rows(array) for name, array in (
            ("titles", rows["titles"]), ("labels", rows["labels"]), ("row_weight", row_weight))}


def make_train_chunk(config):
    """The compiled loop: (state, training_arrays, order [S, B] of rows, width) -> (state, mean loss). The titles of
    `order` have at most `width` words. The state is donated: parameters and table change in place. What is drawn
    depends on seed and step alone."""
    module, optimizer, factor = model.build(config), make_optimizer(config), schedule(config, "table_lr")
    pieces, parted = model.reads(config["model"]) == "pieces", config.get("shard_table", False)

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="width")
    def train_chunk(state, arrays, order, width):
        run_key = jax.random.fold_in(jax.random.key(config["seed"], impl="rbg"), 1)  # rbg: quick, also to compile

        def step(state, rows):
            variables, optimizer_state = state["variables"], state["optimizer"]
            number = optimizer_state["step"]
            key = jax.random.fold_in(run_key, number)

            # The batch: word ids, categories, and the rows of the table that make the words' vectors.
            ids = arrays["titles"][rows, :width].astype(jnp.int32)
            labels = arrays["labels"][rows].astype(jnp.int32)
            drawn_rows = model.draw_pieces(config, ids, key) if pieces else model.draw_features(
                config, arrays["features"], variables["weights"], ids, key)
            vectors, weights, gathered = model.lookup((arrays["frozen"] | variables)["table"], drawn_rows, parted)

            # The loss, and its gradient with respect to the parameters and to the vectors, not to the table.
            def mean_loss(params, vectors):
                dropout = {"dropout": jax.random.fold_in(key, 1)}
                logits = module.apply({"params": params}, vectors, weights, train=True, rngs=dropout) + arrays["shift"]
                loss = loss_of(config, logits, jnp.broadcast_to(labels, logits.shape[:-1]))
                return jnp.mean(arrays["row_weight"][rows] * loss)  # of several heads their mean

            loss, (gradient, vector_gradient) = jax.value_and_grad(mean_loss, (0, 1))(variables["params"], vectors)

            # The update: dense parameters by optax, rows of the table in place.
            updates, dense = optimizer.update(gradient, optimizer_state["dense"], variables["params"])
            variables = variables | {"params": optax.apply_updates(variables["params"], updates)}
            optimizer_state = optimizer_state | {"dense": dense, "step": number + 1}
            if not config["freeze_embeddings"]:
                # Every device does the whole update, so they exchange row numbers and the gradients of the batch's
                # vectors: never a table, nor a gradient for every n-gram.
                *exchanged, vector_gradient = jax.lax.with_sharding_constraint(
                    (gathered.rows, gathered.weights, vector_gradient), devices.whole())
                gathered = model.Gathered(*exchanged, gathered.positions)
                # The mean over the batch is undone, so that a title's gradient counts in full: where Adagrad's sums
                # begin (--accumulator) then means the same for every batch size.
                rate = config["table_lr"] * factor(number)
                variables["table"], optimizer_state["accumulator"] = model.update(
                    variables["table"], optimizer_state["accumulator"], gathered, vector_gradient * len(labels), rate)
            return {"variables": variables, "optimizer": optimizer_state}, loss

        # Python and transfers take their time once a chunk, not once a step.
        state, losses = jax.lax.scan(step, state, order)
        places = model.shardings(config, state), devices.whole()
        return jax.lax.with_sharding_constraint((state, losses.mean()), places)

    return train_chunk


def init_state(config, features, titles, vectors=None, pretrained=None):
    """The state before the first step: `variables`, all that prediction needs, and `optimizer`, the rest.

    titles [N, L] give the rows' weights; vectors [V, D] (zero where not found) are the start of the words' own rows.
    pretrained: of an encoder the start of all its variables, those among them that are in its state.
    """
    # Made under jit, so that the table comes into being where it stays.
    begin = 0.0 if config["freeze_embeddings"] else config["accumulator"]

    def start():
        variables = model.init(config, jax.random.key(config["seed"]))
        return {"variables": variables, "optimizer": {
            "dense": make_optimizer(config).init(variables["params"]), "step": jnp.zeros((), jnp.int32)} | (
                {"accumulator": jnp.full(len(variables["table"]), begin)} if "table" in variables else {})}

    places = model.shardings(config, jax.eval_shape(start))
    state, place = jax.jit(start, out_shardings=places)(), places["variables"]
    variables = state["variables"]
    if pretrained:
        # Table and pieces are variables, layers are parameters; what is frozen is in neither and stays out.
        for tree in (variables, variables["params"]):
            known = {name: pretrained[name] for name in pretrained.keys() & tree.keys()}
            tree.update(devices.put(known, devices.whole()))
        return state

    # A row that no training title uses gets weight 0: its numbers are random and must not count in predictions.
    variables["weights"] = devices.put(model.row_weights(config, features, titles), place["weights"])

    # The words' own rows are the first of the table, so that is where their pretrained vectors go.
    if vectors is not None:
        found, table = vectors.any(1, keepdims=True), variables["table"]
        if found.any():  # words without a vector start as long as the others
            table *= vectors[found[:, 0]].std() / table.std()
        variables["table"] = table.at[:len(vectors)].set(jnp.where(found, vectors, table[:len(vectors)]))
    return state


def pretrained_variables(config, meta, arrays, learned=None):
    """What an encoder begins with: `table` [V, D] of the `pieces` [V], `layers`, and with a name_weight the `head`;
    where given, as a former run has trained them on. Where the layers are frozen, vectors of all titles take the place
    of those of pieces, and in `arrays` the titles become [N, 1], the row of their vector."""
    def begun(pieces):
        # A former run brings the table of all pieces (runs.restore); those that are needed are taken.
        if learned:
            return np.asarray(learned["table"])[pieces], learned["params"]["layers"]
        return encoder.pretrained(config["encoder"]["name"], pieces)

    table, layers = begun(meta["pieces"])
    head = name_head(config, meta["labels"], begun) if config.get("name_weight") else {}
    if config["freeze_layers"]:
        # Nothing below the classifier changes, so each title goes through the layers once. Row 0 stays padding's.
        vectors = [np.zeros((1, table.shape[1]), np.float32)]
        for rows in arrays.values():
            vectors.append(model.title_vectors(config, table, layers, rows["titles"]))
            end = sum(map(len, vectors))
            rows["titles"] = np.arange(end - len(vectors[-1]), end, dtype=np.uint32)[:, None]
        table = np.concatenate(vectors)
    return {"table": table, "pieces": meta["pieces"].astype(np.int32), "layers": layers} | head


def name_head(config, labels, begun):
    """A linear classifier made of the vectors of the categories' names, which say much where there are few titles.
    begun: pieces -> (their table, layers)."""
    names = [" ".join(re.findall(r"[^\W_]+", label)).lower() for label in labels]
    pieces, (ids,) = data.compact([encoder.pieces(config["encoder"]["name"], names, config["encoder"]["max_len"])])
    vectors = model.title_vectors(config, *begun(pieces), ids)
    # Names without a letter, such as numbers, say nothing and begin with zeros, as all do without these vectors.
    weight = np.array([config["name_weight"] * any(map(str.isalpha, name)) for name in names], np.float32)
    return {"head": {"Dense_0": {"kernel": vectors.T * weight, "bias": np.zeros(len(names), np.float32)}}}


def begin_from(state, config, meta, former):
    """The state before the first step, with what a former run (as from runs.restore) has learned of the same words,
    n-grams and categories; the rest stays as it is. Returns it, and how much was matched, as text."""
    old, vocab, labels, saved, _ = former
    variables, learned = state["variables"], saved["variables"]

    # Arrays of the head that differ in shape where there is a category more have one entry for each along their last
    # axis; these are matched by the categories' names.
    more = jax.eval_shape(lambda: model.init(config | {"classes": config["classes"] + 1}, jax.random.key(0)))["params"]
    mine, theirs = matched(meta["labels"], labels)
    variables["params"] = jax.tree.map(
        lambda new, other, former: former if new.shape == other.shape else new.at[..., mine].set(former[..., theirs]),
        variables["params"], more, {part: learned["params"][part] for part in variables["params"]})
    said = f"{len(mine):,} of {config['classes']:,} categories"
    if "encoder" in config:  # its vectors and layers are taken where the pretrained ones would be
        return state, said

    # Rows of the table: of words by their text, of n-grams by their hash. Their weights count the titles of both.
    mine, theirs = matched(meta["vocab"], vocab)
    said = f"{len(mine) - len(data.SPECIALS):,} of {len(meta['vocab']) - len(data.SPECIALS):,} words, {said}"
    mine = np.concatenate([mine, np.arange(config["buckets"]) + config["vocabulary"]])
    theirs = np.concatenate([theirs, np.arange(config["buckets"]) + old["vocabulary"]])
    variables["table"] = variables["table"].at[mine].set(learned["table"][theirs])
    now, before = devices.shared((variables["weights"], learned["weights"]))
    count = model.counts(now, config["rows"])
    count[mine] += model.counts(before, config["earlier_rows"])[theirs]
    variables["weights"] = devices.put(
        model.idf(count, config["rows"] + config["earlier_rows"]), variables["weights"].sharding)
    return state, said


def matched(names, others):
    """The positions in two lists of str of what stands in both: two arrays of the same length."""
    position = {name: i for i, name in enumerate(others)}
    both = [(i, position[name]) for i, name in enumerate(names) if name in position]
    return np.array(both, np.int64).reshape(-1, 2).T


def evaluate_rows(predictor, arrays, prefix):
    """Loss, accuracy and balanced accuracy over every row of `arrays` (and over the reliable rows, where known)."""
    # A loss that is not finite must not pass for a number; the caller stops.
    result = model.score(model.ensemble_of_one(predictor), (arrays["titles"],), arrays["labels"])
    if not np.abs(result["loss"]).max() < 1e30:
        result["loss"][:] = np.inf  # its sum would overflow
    row = {f"{prefix}_loss": float(result["loss"].mean()),
           f"{prefix}_accuracy": float((result["prediction"] == arrays["labels"]).mean()),
           f"{prefix}_balanced_accuracy": model.balanced_accuracy(arrays["labels"], result["prediction"])}

    # On rows whose label the source vouches for, scores are not blurred by wrong labels.
    reliable = arrays.get("reliable", np.zeros(0, bool))
    if reliable.any():
        row[f"{prefix}_reliable_loss"] = float(result["loss"][reliable].mean())
        row[f"{prefix}_reliable_balanced_accuracy"] = model.balanced_accuracy(
            arrays["labels"][reliable], result["prediction"][reliable])
    return row


def calibrate(predictor, rows):
    """What a checkpoint keeps so that its probabilities can be trusted: of some validation rows (`titles`, `labels`)
    the `logits` [n, C] float16, minus the largest of each row, and the `labels`; `temperature` and `smoothing`."""
    logits = model.in_batches(lambda ids: {"logits": model.logits(predictor, *ids)}, (rows["titles"],),
                              largest=model.largest_batch_of((predictor,)))["logits"]

    # Softmax does not see what a whole row has lost, and float16 is finest near 0, where the likeliest now are.
    logits = logits - logits.max(1, keepdims=True)
    temperature, smoothing = map(np.float32, calibration.fit(logits, rows["labels"]))
    return {"logits": logits.astype(np.float16), "labels": rows["labels"].astype(np.int32),
            "temperature": temperature, "smoothing": smoothing}


# --- configuration ----------------------------------------------------------------------------------------------------

def configure(args, meta, titles, former=None):
    """All that decides the result, as one dictionary: the flags with defaults filled in, and the sizes that the data
    gives. What this model does not use is not in it. With --init-from, `former` is that run's configuration, whose
    settings are the defaults. Raises UserError where flags do not go together."""
    rows, usual = len(titles), DEFAULTS[args.model]
    fields = model.fields(args.model)
    others = set().union(*map(model.fields, model.MODELS)) - fields.keys() - {"dropout", "word_ngrams"}  # see unused
    pieces = model.reads(args.model) == "pieces"

    # Flags that only name files and runs are no settings.
    config = {name: value for name, value in vars(args).items()
              if name not in ("data", "name", "runs", "resume", "refit", "init_from", "save_seconds", "given",
                              "coordinator", "processes", "process") and (name, value) != ("shard_table", False)}

    # An edit of DEFAULTS or of a module may forget the other.
    for name in ("lr", "dropout", "word_ngrams", "epochs"):
        if name not in usual and not (pieces and name == "word_ngrams"):
            raise UserError(f"train.py: DEFAULTS has no {name} for {args.model}")
    for name in usual:
        if name in others or name not in config.keys() | fields.keys():
            raise UserError(f"train.py: DEFAULTS has {name} for {args.model}, which is neither a flag nor a field of "
                            "its module")

    # What flags leave open comes from the model, then from the size of the data; or all of it from the former run.
    kept = {name: former[name] for name in (
        config.keys() | fields.keys() | {"shard_table"}) & (former or {}).keys() - {"classes"}}
    usual = usual | kept
    config |= {name: value for name, value in usual.items() if flag_of(name) not in args.given}

    # DEFAULTS gives epochs and dropout for little data, and epochs for titles with n-grams: both are fitted to this
    # data. What else depends on the size holds where neither DEFAULTS nor a former run says anything.
    ngrams = pieces or config["maxn"] > 0 or config["word_ngrams"] > 1
    epochs = config["epochs"] if ngrams else (config["epochs"] + 1) // 2
    for name, value in size_rule(rows, epochs, config["dropout"], len(meta["vocab"])).items():
        if flag_of(name) not in args.given and (
                name not in usual or name in ("epochs", "dropout")) and name not in kept:
            config[name] = value
    config["batch_size"] = min(config["batch_size"], rows)
    pretrained = meta["vectors"] is not None and not pieces
    config["dim"] = config["dim"] or (meta["vectors"].shape[1] if pretrained else 100)
    config["prior"] = PRIOR[config["balance"]]

    # With frozen layers titles become vectors before the training begins, so the table cannot change either.
    config["freeze_embeddings"] |= config["freeze_layers"]

    # What nothing would use is left out, and refused if it was asked for.
    for name, reason in unused(config, others, meta).items():
        if flag_of(name) in args.given and not (name == "minn" and args.minn == 0):  # fastText's way to have none
            raise UserError(f"{flag_of(name)}: {reason}; leave it out")
        config.pop(name, None)

    # The size of the table is asked for even where there are no n-grams.
    if not pieces:
        config.setdefault("buckets", 0)

    # What cannot be trained.
    if len(set(config.get("widths", []))) < len(config.get("widths", [])):
        raise UserError(f"--widths {' '.join(map(str, config['widths']))}: the same width twice")
    if config.get("minn", 0) > config.get("maxn", 0):
        raise UserError(f"--minn {config['minn']}: larger than --maxn {config['maxn']}")
    if pretrained and config["dim"] != meta["vectors"].shape[1]:
        raise UserError(f"--dim {config['dim']}: the prepared vectors have {meta['vectors'].shape[1]} numbers; leave "
                        "--dim out, or run prepare.py without --vectors")

    # Steps and rows of the table are numbered in int32.
    titles = titles[:, :1] if config.get("freeze_layers") else titles  # then a title is one vector
    groups = data.length_groups(titles, config["batch_size"], MAX_STEPS)
    steps = config["epochs"] * sum(group.chunks * group.steps for group in groups)
    if steps >= 1 << 31:
        raise UserError(f"--epochs {config['epochs']}: more than 2^31 steps")
    if len(meta["vocab"]) + config.get("buckets", 0) + model.PARTS > 1 << 31:
        raise UserError(f"--buckets {config['buckets']}: a table of more than 2^31 rows")

    if config["patience"] is None:
        del config["patience"]

    # Sizes and identity of the data, and the fields that the module has a default for.
    if pieces:
        config |= {"encoder": meta["encoder"]} | ({} if config["freeze_embeddings"] else {
            "pieces": len(meta["pieces"])})
    else:
        config |= {"vocabulary": len(meta["vocab"]), "max_len": meta["max_len"], "pretrained_vectors": pretrained}
    if former:
        config |= {"init_from": args.init_from, "earlier_rows": former["rows"] + former.get("earlier_rows", 0)}
    config |= {"classes": len(meta["labels"]), "rows": rows, "steps": steps, "training_rows": meta["training_rows"],
               "calibration_rows": min(calibration.ROWS, meta["rows"]["valid"]), "synthetic": meta["synthetic"],
               "fingerprint": meta["fingerprint"], "data": data.described(meta), "format": runs.FORMAT,
               "files": {name: meta["files"][name] for name in ("vocab.txt", "labels.txt")},
               "source": runs.source_checksums(), "versions": runs.versions()}
    for name, value in fields.items():
        if config.get(name) is None:
            if value is dataclasses.MISSING:
                raise UserError(f"train.py: DEFAULTS has no {name} for {args.model}, whose module needs it")
            config[name] = value

    # Refused here, by name, and not when the folder of the run is being written.
    for name, value in config.items():
        try:
            json.dumps(value)
        except TypeError:
            raise UserError(f"train.py: {name} is {value!r}, which config.json cannot hold; use numbers, text or lists"
                            ) from None
    return config


def flag_of(name):
    return "--" + name.replace("_", "-")


def unused(config, others, meta):
    """{setting that nothing would use: why}. others: fields of other models' modules."""
    found = dict.fromkeys(others & config.keys(), f"{config['model']} has no such setting")

    # Words and pieces have tables of different kinds, each with settings that the other lacks.
    if model.reads(config["model"]) == "titles":
        found |= dict.fromkeys(("encoder_lr", "piece_dropout", "name_weight"), f"{config['model']} has no such setting")
    else:
        found |= dict.fromkeys(("word_ngrams", "minn", "maxn", "character_weight", "buckets", "dim"),
                               f"{config['model']} reads pieces of words, which have vectors of their own")
        found["shard_table"] = "the table of pieces is small, so every device has all of it"
        if config["freeze_layers"]:
            found |= dict.fromkeys(("encoder_lr", "piece_dropout"), "--freeze-layers makes a title's vector only once")
    if not config["maxn"]:
        found |= dict.fromkeys(("minn", "character_weight"), "--maxn 0 leaves no character n-grams")
        if config["word_ngrams"] == 1:
            found["buckets"] = "there are no n-grams"
    if config["freeze_embeddings"]:
        found |= dict.fromkeys(("table_lr", "accumulator"), "--freeze-embeddings leaves the table as it is")
    if meta["reliable_share"] is None:
        found["unreliable_weight"] = "the prepared data says of no row how reliable its label is"
    return found


def choose_ids(args, name, meta, arrays):
    """Make arrays[split]["titles"] what a model reads. For an encoder these are its pieces, numbered anew, as only
    those that occur are on the device: meta["pieces"] are their ids. Raises UserError where there are none."""
    if model.reads(name) == "titles":
        return
    wanted = model.MODELS[name].encoder
    if (meta.get("encoder") or {}).get("name") != wanted:
        raise UserError(f"{cli.listed(args.data)}: has no pieces for --model {name}; run prepare.py again, with "
                        f"--encoder {wanted}")
    encoder.require(meta["encoder"], cli.listed(args.data))
    meta["pieces"], ids = data.compact([rows["pieces"] for rows in arrays.values()])
    for rows, mine in zip(arrays.values(), ids, strict=True):
        rows["titles"] = mine
        del rows["pieces"]


def choose_run(args, meta, arrays):
    """(folder, config, keys of the titles that train it, see runs.trained_titles) of the run to begin, to resume or to
    refit; writes nothing, but makes `arrays` what it trains on. Raises UserError where it cannot be."""
    if args.refit is not None:
        return choose_refit(args, meta, arrays)
    if args.resume is None:
        former = choose_former(args) if args.init_from else None
        folder = runs.new_folder(args.runs, args.name, args.model)
        choose_ids(args, args.model, meta, arrays)
        before = [runs.trained_titles(runs.find(args.init_from, args.runs)[0])] if former else []
        trained = np.unique(np.concatenate([arrays["train"]["keys"], *before]))
        leave_out_trained(args, meta, arrays, former is not None, trained)
        config = configure(args, meta, arrays["train"]["titles"], former)
        config |= {"trained": files.checksum_of(trained.tobytes()), "created": time.time()}
        return folder, files.with_checksum(config), trained

    # Other code would make another run of it, so it is refused; other libraries may only round otherwise.
    folder, config = load_run(args, "--resume", args.resume, meta)
    if changed := runs.changed_source(folder, config):
        raise UserError(f"{folder}: {' and '.join(changed)} changed since it was begun; go on with the scripts that it "
                        f"keeps: python {cli.listed(folder / 'source/train.py')} "
                        + resume_flags(args, args.resume))
    if (now := runs.versions()) != config["versions"]:
        print(f"warning: {folder}: was begun with {config['versions']}, and goes on with {now}: its bits may differ",
              file=sys.stderr)
    choose_ids(args, config["model"], meta, arrays)
    trained = runs.trained_titles(folder)
    if "refit" in config:
        add_validation_rows(arrays)
    else:
        leave_out_trained(args, meta, arrays, "init_from" in config, trained)
    return folder, config, trained


def leave_out_trained(args, meta, arrays, has_former, trained):
    """Where a run begins from a former one, or trains on several folders, leave those rows out of the validation rows
    whose titles are among `trained`: their score, and promises made of it, would not hold for new titles. Raises
    UserError where no row is left."""
    # In a single folder equal titles stand on one side, unless its source has divided them; prepare.py says so.
    folders = args.data if isinstance(args.data, list) else [args.data]
    seen = np.isin(arrays["valid"]["keys"], trained)
    if not seen.any() or not (has_former or len(folders) > 1):
        return
    if seen.all():
        raise UserError(f"{cli.listed(args.data)}: all its validation rows have titles that trained the former run, "
                        "or that train in another folder; prepare the data with the same --seed, or other rows")
    if devices.is_first():
        print(f"warning: {seen.sum():,} of {len(seen):,} validation rows have titles that trained the former run, or "
              "that train in another folder; they are left out", file=sys.stderr)
    arrays["valid"] = {kind: array[~seen] for kind, array in arrays["valid"].items()}
    meta["rows"] = meta["rows"] | {"valid": int((~seen).sum())}


def choose_former(args):
    """The configuration of the run that --init-from names; args.model becomes its model. Raises UserError where a flag
    asks for arrays of another shape."""
    folder, which = runs.find(args.init_from, args.runs)
    config, _, _ = runs.load(folder, model.MODELS)

    # A resumed run must begin with the same checkpoint, whatever best and latest of all runs are by then.
    args.init_from = f"{runs.short_name(folder, args.runs)}/{which}"

    # What gives arrays their shape, and their rows a meaning, cannot be chosen anew.
    shapes = {"model", "dim", "word_ngrams", "minn", "maxn", "buckets", *model.fields(config["model"])}
    shapes |= {"freeze_embeddings", "freeze_layers"} if "encoder" in config else set()
    for name in sorted(shapes & vars(args).keys() - {"dropout"}):
        if flag_of(name) in args.given and getattr(args, name) != config.get(name):
            raise UserError(f"{flag_of(name)}: {folder} has {config.get(name)}; leave it out, or begin anew")
    args.model = config["model"]
    return config


def load_run(args, flag, name, meta):
    """(folder, config) of a run on this data, whose settings hold."""
    if others := args.given - {flag, "--data", "--runs", "--save-seconds", "--coordinator", "--processes", "--process"}:
        raise UserError(f"{flag} goes on with the run's own settings; leave {' '.join(sorted(others))} out")
    folder = args.runs / name
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no such run to {flag[2:]}")
    config, _, _ = runs.load(folder, model.MODELS)

    # On other data the same ids would be other words and categories.
    if config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{folder}: was trained on other data ({config['fingerprint']}) than {cli.listed(args.data)} "
                        f"holds ({meta['fingerprint']}); name its data with --data")
    encoder.require_pieces(config, meta, folder, cli.listed(args.data))
    return folder, config


def choose_refit(args, meta, arrays):
    """The same as `choose_run` of the refit of a run: its settings, for the rows of both splits and the epochs of its
    best checkpoint."""
    folder, config = load_run(args, "--refit", args.refit, meta)
    best = runs.checkpoint_manager(folder, read_only=True).best_step()
    if "refit" in config or best is None:
        raise UserError(f"{folder}: {'is a refit itself' if 'refit' in config else 'has no best checkpoint to refit'}")
    if changed := runs.changed_source(folder, config):
        print(f"warning: {folder}: {' and '.join(changed)} changed since it was trained", file=sys.stderr)

    # A checkpoint's name is its step, and all epochs have equally many steps; more rows make more of them.
    epochs = best * config["epochs"] // config["steps"]
    choose_ids(args, config["model"], meta, arrays)
    add_validation_rows(arrays)
    rows = arrays["train"]
    groups = data.length_groups(rows["titles"], config["batch_size"], MAX_STEPS)
    config.pop("patience", None)
    trained = np.unique(np.concatenate([rows["keys"], runs.trained_titles(folder)]))
    config |= {"refit": args.refit, "epochs": epochs, "trained": files.checksum_of(trained.tobytes()),
               "rows": len(rows["labels"]),
               "steps": epochs * sum(group.chunks * group.steps for group in groups),
               "training_rows": np.bincount(rows["labels"], minlength=config["classes"]).tolist(),
               "source": runs.source_checksums(), "versions": runs.versions(), "created": time.time()}
    return runs.new_folder(args.runs, f"{args.refit}-refit", config["model"]), files.with_checksum(config), trained


def add_validation_rows(arrays):
    """Make arrays["train"] the rows of both splits."""
    arrays["train"] = {kind: np.concatenate([array[:], arrays["valid"][kind]])
                       for kind, array in arrays["train"].items()}


def resume_flags(args, name):
    """The flags with which train.py goes on with a run, as a user types them."""
    return f"--resume {name}{runs.other_folders(args)}"


# --- the loop ---------------------------------------------------------------------------------------------------------

def train(args):
    # All that can be refused is refused before anything is written.
    meta, arrays = data.load_prepared(args.data, ("train", "valid"), on_disk=("train",))
    if not (meta["rows"]["train"] and meta["rows"]["valid"]):
        raise UserError(f"{cli.listed(args.data)}: has no training or no validation rows; name the folder that it "
                        "was prepared --like with it")
    folder, config, trained = choose_run(args, meta, arrays)
    devices.require_same({name: value for name, value in config.items() if name not in ("created", "checksum")})

    # A run begins with what a former one has learned, unless it goes on from a checkpoint of its own.
    former = None
    if "init_from" in config and (
            args.resume is None or runs.checkpoint_manager(folder, read_only=True).latest_step() is None):
        former = runs.restore(*runs.find(config["init_from"], args.runs))

    # MLflow takes seconds to connect; meanwhile the loop is compiled.
    connecting = cli.in_background(tracking.mlflow_client) if devices.is_first() else None
    if "encoder" in config:
        features, pretrained = {}, pretrained_variables(config, meta, arrays, former and former[3]["variables"])
        state = init_state(config, features, arrays["train"]["titles"], pretrained=pretrained)
        frozen = {"table": pretrained["table"]} if config["freeze_embeddings"] else {}
    else:
        features, frozen = model.feature_tables(config, meta["words"]), {}
        state = init_state(config, features, arrays["train"]["titles"], meta["vectors"])
    if former:
        state, said = begin_from(state, config, meta, former)
        print(f"begins with what {config['init_from']} knows: {said}")
    state = devices.put(state, model.shardings(config, state))
    features, frozen = devices.put((features, frozen), devices.whole())
    groups = data.length_groups(arrays["train"]["titles"], config["batch_size"], MAX_STEPS)
    if args.resume is not None and is_finished(folder, config):
        print(f"run {folder.name} has been trained to its end, all {config['epochs']} epochs or as --patience said: "
              "nothing is left to train")
        programs = {}
    else:
        programs = compile_chunks(config, state, training_arrays(config, features, arrays["train"], frozen), groups)
    mlflow = connecting and connecting.result()

    if args.resume is None:
        # Only now, with all compiled: what fails before this leaves no folder behind.
        if devices.is_first():
            folder = runs.create(folder, config, meta, trained, named=args.name is not None or args.refit is not None)
        folder = Path(devices.from_first(str(folder)))
    sizes = sizes_of(state["variables"] | frozen)
    with runs.training_lock(folder):
        # A resumed run goes on from its latest checkpoint. A kill may have kept its last epochs from being logged.
        manager, history = runs.checkpoint_manager(folder), []
        if manager.latest_step() is not None:
            state = runs.restore_checkpoint(manager, manager.latest_step(), **state, history=None)
            history = state.pop("history")
        before = history[-1]["seconds"] if history else 0  # that the trainings took which this one goes on from
        tracking_run = contextlib.nullcontext() if mlflow is None else tracking.Tracker(
            *mlflow, folder, config, sizes, STARTED - before)
        with tracking_run as tracker, Saves(manager, folder, tracker, args.save_seconds) as saves:
            if history and tracker:
                runs.write_metrics(folder, history)
                tracker.log(history, [])
            introduce(folder.name, config, sizes)

            # The same training rows after every epoch, so that their scores can be compared.
            sample = np.random.default_rng(config["seed"]).permutation(config["rows"])[:TRAIN_SAMPLE]
            sample = {kind: array[sample] for kind, array in arrays["train"].items() if kind != "language"}
            del arrays["train"]  # the device has all rows
            # The same validation rows for all runs, so that several can be weighted against each other.
            drawn = np.random.default_rng(0).permutation(meta["rows"]["valid"])[:config["calibration_rows"]]
            calibration_rows = {kind: arrays["valid"][kind][drawn] for kind in ("titles", "labels")}
            # A refit has trained on these rows; what the run before it learned from them holds.
            validation = runs.restore_validation(folder.parent / config["refit"]) if "refit" in config else None

            # From here on Ctrl-C only asks: the loop ends after a chunk and saves a checkpoint.
            stop = stop_signals()
            epoch_steps, step = config["steps"] // config["epochs"], int(state["optimizer"]["step"])

            # What comes before the first step: scores by chance, or what a former run's knowledge is worth here.
            if step == 0 and not validation:
                begun = model.predictor(config, state["variables"] | frozen, features)
                print_epoch({"epoch": 0} | evaluate_rows(begun, arrays["valid"], "valid"))
                del begun
            print(f"ready after {time.time() - STARTED:.1f} s (reading, compiling)")
            progress = Progress(config, step)

            # A signal to one process ends all at the same step, for they must go on together.
            def signal_number():
                return int(devices.largest(max(stop, default=0)))

            for epoch in range(step // epoch_steps, config["epochs"]):
                if is_over(config, history):
                    break

                # Train on every row once. Chunks that were done before this run was resumed are left out.
                begun, done, chunks = time.time(), epoch * epoch_steps, []
                for width, order in data.batches(groups, config["batch_size"], config["seed"], epoch):
                    done += len(order)
                    chunks += [(width, order)] if done > step else []
                state, losses, number = train_chunks(programs, state, chunks, step, progress, stop)
                begun_step, step = step, losses[-1][0]
                check_finite([loss for _, loss, _ in losses], folder.name, config, step)
                seconds = time.time() - begun

                # Calibrate: a checkpoint holds what its probabilities mean.
                ready = model.predictor(config, state["variables"] | frozen, features)
                if "refit" not in config:
                    validation = calibrate(ready, calibration_rows)
                if step < done:  # a signal came
                    saves.save(step, state | {"validation": validation}, history, losses)
                    leave(args, folder.name, step, number)

                # Evaluate on a sample of the training rows and on all validation rows.
                row = {"epoch": epoch + 1, "step": step} | evaluate_rows(ready, sample, "train")
                if "refit" not in config:
                    row |= evaluate_rows(ready, arrays["valid"], "valid")
                del ready  # it has the vectors of all words
                check_finite([row["train_loss"], row.get("valid_loss", 0)], folder.name, config, step)
                row |= {name: float(validation[name]) for name in ("temperature", "smoothing")} | {
                            "titles_per_second": (step - begun_step) / epoch_steps * config["rows"] / seconds,
                            "seconds": time.time() - STARTED + before}
                history.append(row)

                # Save and log, or let a quick epoch wait. A signal that comes while it waits ends the next epoch.
                is_best = "refit" not in config and epochs_since_best(history) == 0
                saved = saves.epoch(step, state | {"validation": validation}, history, losses, is_best,
                                    at_once=signal_number() or is_over(config, history))
                print_epoch(row, is_best)
                if saved and (number := signal_number()) and not is_over(config, history):
                    leave(args, folder.name, step, number)
                progress.pause(time.time() - begun - seconds)  # evaluating and saving are not training time

    if "refit" in config:
        said = f"trained on {config['rows']:,} rows for {config['epochs']} epochs, as was best for {config['refit']}"
    else:
        best = runs.best_epoch(history)
        said = f"best epoch {best['epoch']}: validation balanced accuracy {best['valid_balanced_accuracy']:.4f}"
    print(f"{said}{' on SYNTHETIC data' if config['synthetic'] else ''}; {time.time() - STARTED:.1f} s in all\n"
          f"test it: python evaluate.py --ckpt {folder.name}{runs.other_folders(args)}")
    if mlflow and (page := tracking.experiment_page(mlflow[1])):
        print(f"look at it: {page}")


def compile_chunks(config, state, arrays, groups):
    """{width of a group: (state, order) -> (state, loss)}: the compiled loop for each group of titles."""
    train_chunk = make_train_chunk(config)

    parted = devices.parted(config["batch_size"], axis=1)  # steps come first

    def compiled(group):
        # Compiled ahead, for which only the shapes count; so no epoch's speed is spoilt by compiling.
        order = devices.put(np.zeros((group.steps, config["batch_size"]), np.uint32), parted)
        program = train_chunk.lower(state, arrays, order, width=group.width).compile()
        return lambda state, order: program(state, arrays, devices.put(order, parted))

    return {group.width: compiled(group) for group in groups}


class Saves:
    """Saves and logs epochs: a long one at its end, quick ones together. A context that saves, after an error, the best
    one that still waited. tracker: None in all processes but the first."""

    def __init__(self, manager, folder, tracker, seconds):
        self.manager, self.folder, self.tracker = manager, folder, tracker
        # Several processes would not wait equally long, and save together.
        self.seconds = seconds if jax.process_count() == 1 else 0
        self.best, self.losses, self.at = None, [], time.monotonic()

    def epoch(self, step, state, history, losses, is_best, at_once):
        """After an epoch: save it where `at_once` or the last save was long ago, else keep it if it is the best.
        Returns whether it was saved."""
        metrics = history[-1] if "valid_loss" in history[-1] else None
        if is_best:
            self.best = None  # what waited is second now
        if at_once or time.monotonic() - self.at >= self.seconds:
            self.save(step, state, history, losses, metrics)
            return True
        self.losses += losses
        if is_best:  # a copy, for the next step changes the state in place
            self.best = step, jax.tree.map(np.array, state), list(history), metrics
        return False

    def save(self, step, state, history, losses=(), metrics=None):
        """Save the best epoch that waited, and this step; write metrics.csv and log to MLflow. metrics: None within an
        epoch."""
        best, self.best = self.best, None
        for saved in ((best,) if best else ()) + ((step, state, history, metrics),):
            runs.save_checkpoint(self.manager, *saved)
            if self.tracker:
                runs.write_metrics(self.folder, saved[2])
        if self.tracker:
            self.tracker.log(history, [*self.losses, *losses])
        self.losses, self.at = [], time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if best := self.best:
            # What came after it is gone, and comes again with --resume.
            self.best, self.losses = None, [loss for loss in self.losses if loss[0] <= best[0]]
            self.save(*best[:3], metrics=best[3])


def is_finished(folder, config):
    """Whether the latest checkpoint of a run is that of its last epoch."""
    manager = runs.checkpoint_manager(folder, read_only=True)
    step = manager.latest_step()
    return step is not None and is_over(config, runs.restore_checkpoint(manager, step, history=None)["history"])


def is_over(config, history):
    """Whether no epoch is left to train."""
    return len(history) == config["epochs"] or (
        "patience" in config and epochs_since_best(history) >= config["patience"])


def train_chunks(programs, state, chunks, step, progress, stop):
    """Train on chunks [(width, order)], from `step` on, until `stop` of some process has the number of a signal, or the
    loss is broken: check_finite then says so, before anything is saved. Returns the state, [(step, loss, time)] of the
    chunks that were trained on, and the signal's number or 0."""
    losses, signals = [], []
    for width, order in chunks:
        state, loss = programs[width](state, order)
        step += len(order)
        losses.append((step, loss, time.time()))
        signals.append(devices.largest(max(stop, default=0)))
        # What came of the chunk before is looked at, so that the device is busy with this one meanwhile.
        before = max(0, len(losses) - 2)
        progress.show(step, loss := float(losses[before][1]))
        if int(signals[before]) or not math.isfinite(loss):
            break
    return state, losses, max(map(int, signals))


def check_finite(values, name, config, step):
    """Raise UserError unless all these losses are numbers: nothing that came out of a broken step is saved."""
    if not all(math.isfinite(float(value)) for value in values):
        rates = " or ".join(f"{flag_of(rate)} (now {config[rate]})" for rate in RATES if rate in config)
        raise UserError(f"the loss is no longer finite at step {step:,} of run {name}; try a lower {rates}")


def stop_signals():
    """A list that gets the number of every SIGINT and SIGTERM from now on; the loop looks at it after each chunk."""
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    return stop


def leave(args, name, step, number):
    """End the program after a signal of this number."""
    print(f"stopped at step {step:,}; go on with: python {cli.listed(Path(sys.argv[0]))} {resume_flags(args, name)}")
    # The status that a shell gives to what a signal has ended.
    raise SystemExit(128 + number)


def sizes_of(variables):
    """{what: number} of a model's parameters and its table of vectors; megabytes as they are in memory."""
    table, params = variables["table"], jax.tree.leaves(variables["params"])
    return {"parameters": sum(x.size for x in params), "table_rows": len(table), "table_columns": table.shape[1],
            "megabytes": round((table.nbytes + sum(x.nbytes for x in params)) / 1e6, 1)}


def introduce(name, config, sizes):
    """Print what is trained and where: the configuration, sizes, and the loss that chance would give."""
    count = devices.mesh().size
    if config["batch_size"] % count and devices.is_first():
        print(f"warning: {count} devices cannot share batches of {config['batch_size']} rows evenly, so each computes "
              f"all of them; a new run may have a --batch-size that is a multiple of {count}", file=sys.stderr)
    if config.get("shard_table") and model.table_rows(config) % count and devices.is_first():
        print(f"warning: {count} devices cannot share the {model.table_rows(config):,} rows of the table evenly, so "
              "each holds all of them; 2, 4, 8, 16, ... devices can", file=sys.stderr)
    print(f"run {name}{' (SYNTHETIC DATA)' if config['synthetic'] else ''} on {devices.names()}: "
          + ", ".join(f"{key}={value}" for key, value in runs.settings(config).items()))
    print(f"{config['rows']:,} rows, {config['steps']:,} steps of {config['batch_size']}; {sizes['parameters']:,} "
          f"parameters and a table of {sizes['table_rows']:,} x {sizes['table_columns']}, {sizes['megabytes']:,} MB"
          f"; chance loss ln {config['classes']} = {math.log(config['classes']):.3f}")


def epochs_since_best(history):
    """How many epochs came after the best one."""
    return len(history) - 1 - history.index(runs.best_epoch(history)) if history else 0


def print_epoch(row, is_best=False):
    """One line of at most 100 characters; metrics.csv has the rest."""
    said = [f"{kind.replace('_', ' ')} " + ", ".join(f"{row[f'{split}_{kind}']:.4f} {split}" for split in (
        "train", "valid") if f"{split}_{kind}" in row) for kind in ("loss", "balanced_accuracy")]
    print(f"epoch {row['epoch']:>3}  " + "  ".join(said) + "  best" * is_best)


class Progress:
    """Prints how far a training is: every second on a terminal, else every ten seconds."""

    def __init__(self, config, step):
        self.config, rates = config, {rate: schedule(config, rate) for rate in RATES if rate in config}

        def factors(step):
            return {rate: factor(step) for rate, factor in rates.items()}

        self.factors = jax.jit(factors)  # one program instead of one for each operation
        self.begun, self.first_step, self.printed = time.time(), step, 0

    def pause(self, seconds):
        """Leave these seconds out of the time that the training has taken, and so out of its speed."""
        self.begun += seconds

    def show(self, step, loss):
        if time.time() - self.printed < (1 if sys.stdout.isatty() else 10):
            return
        config, self.printed = self.config, time.time()

        # Speed is that of this process: what came before --resume does not count, nor do pauses.
        seconds, steps, left = self.printed - self.begun, step - self.first_step, self.config["steps"] - step
        epoch_steps = config["steps"] // config["epochs"]
        factors = self.factors(step)
        rates = ", ".join(f"{name} {config[rate] * float(factors[rate]):.1e}" for rate, name in RATES.items()
                          if rate in factors)
        print(f"epoch {-(-step // epoch_steps):>3}/{config['epochs']} {step / config['steps']:6.1%}  loss {loss:7.4f}  "
              f"{rates}  {steps / epoch_steps * config['rows'] / seconds:9,.0f} titles/s  "
              f"{clock(seconds)} elapsed  {clock(seconds / steps * left)} left", flush=True)


def clock(seconds):
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


if __name__ == "__main__":
    cli.run(lambda: devices.together(train, ARGS))
