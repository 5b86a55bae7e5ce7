"""Train a classifier on prepared arrays; keep its best and its latest checkpoint; log the run to MLflow.

    python train.py                                  # the bag of words (mlp)
    python train.py --model cnn --name my-cnn        # the sentence CNN; also rnn and transformer
    python train.py --resume my-cnn                  # go on after Ctrl-C, a crash or a kill, to the same bits
    mlflow ui --backend-store-uri sqlite:///mlflow.db

Reads data/prepared/ (prepare.py writes it). Writes runs/NAME/: config.json, vocab.txt, labels.txt, checkpoints/ and
metrics.csv (one row an epoch), and a run in MLflow (sqlite:///mlflow.db, or MLFLOW_TRACKING_URI).
The checkpoint `best` is the one with the highest balanced accuracy on the validation split; the test split is never
looked at. Ctrl-C saves `latest` and says how to go on.
On two cores the built-in SYNTHETIC set takes the bag 28 s and the CNN 79 s, start-up included; balanced accuracy on its
validation split is about 0.83 and 0.86.
"""
import csv
import functools
import math
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import data
from data import UserError

STARTED = time.time()

# --- knobs ------------------------------------------------------------------------------------------------------------
DEFAULTS = {  # by model; a flag overrides them
    "mlp": {"lr": 1e-3, "dropout": 0.5, "hidden": [], "word_ngrams": 2, "epochs": 25},
    "cnn": {"lr": 2e-3, "dropout": 0.4, "hidden": [], "word_ngrams": 2, "epochs": 20},
    "rnn": {"lr": 2e-3, "dropout": 0.4, "hidden": [], "word_ngrams": 2, "epochs": 15},
    "transformer": {"lr": 1e-3, "dropout": 0.3, "hidden": [], "word_ngrams": 2, "epochs": 15},
}
SMALL = 40_000         # training rows up to which these epochs and dropout hold, and characters weigh 1 (size_rule)
CHUNK = 8              # steps in one compiled loop at most; titles of a chunk are all short or all long
FEW = 4000             # with fewer training rows Adagrad's sums begin lower, by the square of their share (size_rule)
TRAIN_SAMPLE = 10_000  # training rows scored after each epoch, to be compared with the validation split


def size_rule(rows, epochs, dropout, vocabulary):
    """The settings that depend on the training rows and words, {name: value}: more rows need larger batches, fewer
    epochs, less dropout and less weight for n-grams of characters, as words can speak for themselves; more words need
    more buckets (16 for each, where that is little memory, else 4; rounded up to a power of 2, 2^21 at most). Adagrad's
    sums of squares begin above zero, so that rare words do not take the largest steps."""
    shrink = min(1, (SMALL / rows) ** 0.6)
    buckets = max(4 * vocabulary, min(16 * vocabulary, 1 << 17))
    return {"batch_size": min(max(2 ** round(math.log2(max(rows, 1) / 500)), 64), 1024),
            "epochs": max(3, round(epochs * shrink)), "dropout": round(dropout * shrink, 3),
            "character_weight": round(shrink, 3),
            "buckets": 2 ** min(21, math.ceil(math.log2(buckets))),
            "accumulator": 0.01 * min(1, rows / FEW) ** 2}


def parse_args():
    parser = data.argument_parser(__doc__)
    add = parser.add_argument

    def default(name):
        return "(default: " + ", ".join(f"{model} {knobs[name]}" for model, knobs in DEFAULTS.items()) + ")"

    add("--data", type=Path, default=Path("data/prepared"), help="folder that prepare.py wrote")
    add("--model", choices=DEFAULTS, default="mlp", help="which module of model.py")
    add("--name", help="name of the run (default: model and number)")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--resume", metavar="NAME", help="go on with this run; its own settings hold")
    add("--epochs", type=data.positive(int),
        help="passes over the training rows (default: by size, see size_rule; half as many without any n-grams)")
    add("--batch-size", type=data.positive(int), help="rows a step (default: by size, see size_rule)")
    add("--lr", type=data.positive(float), help=f"Adam's rate, falling to 0 {default('lr')}")
    add("--table-lr", type=data.positive(float), default=0.1, help="Adagrad's rate for word vectors, falling to 0")
    add("--accumulator", type=data.not_negative(float),
        help="where Adagrad's sums of squares begin (default: by size, see size_rule)")
    add("--weight-decay", type=data.not_negative(float), default=0.0, help="L2 penalty on all but the word vectors")
    add("--dim", type=data.positive(int), help="numbers in a word vector (default: the pretrained ones' or 100)")
    add("--hidden", type=data.positive(int), nargs="*", help=f"widths of hidden layers {default('hidden')}")
    add("--word-ngrams", type=data.positive(int), help=f"words of an n-gram at most {default('word_ngrams')}")
    add("--minn", type=data.not_negative(int), default=3, help="characters of an n-gram at least")
    add("--maxn", type=data.not_negative(int), default=4, help="characters of an n-gram at most; 0: no such n-grams")
    add("--character-weight", type=data.positive(float),
        help="factor on the weights of n-grams of characters (default: by size, see size_rule)")
    add("--buckets", type=data.positive(int), help="rows for hashed n-grams (default: by size, see size_rule)")
    add("--filters", type=data.positive(int), default=100, help="cnn: filters of each width")
    add("--widths", type=data.positive(int), nargs="+", default=[1, 2, 3], help="cnn: words a filter looks at")
    add("--dropout", type=data.dropout, help="share left out in training (default: by size, see size_rule)")
    add("--freeze-embeddings", action="store_true", help="leave the word vectors as they are at the start")
    add("--balance", choices=("none", "logit", "weights"), default="logit",
        help="how rare categories get their due: log prior added to the logits in training, or weights on the loss")
    add("--unreliable-weight", type=data.share_or_all, default=1.0, metavar="W",
        help="weight on the loss of rows whose label quality is not `reliable`")
    add("--seed", type=data.seed, default=0, help="decides every random number")
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = data.run(parse_args)  # before JAX is loaded, so that --help answers at once

import jax
import jax.numpy as jnp
import numpy as np
import optax

import model

# --- the step ---------------------------------------------------------------------------------------------------------

def make_optimizer(config):
    rate = optax.linear_schedule(config["lr"], 0, config["steps"])
    return optax.chain(optax.add_decayed_weights(config["weight_decay"]), optax.adam(rate))


def class_terms(balance, labels, classes):
    """(added to the logits in training [C], weight of a row's loss by category [C]) for a --balance method.

    `logit` adds the log prior (Menon et al. 2021, Long-tail learning via logit adjustment), `weights` divides by the
    category's frequency as scikit-learn's class_weight="balanced".
    """
    count = np.bincount(labels, minlength=classes)
    shift, weight = np.zeros(classes, np.float32), np.ones(classes, np.float32)
    if balance == "logit":
        shift = np.log(np.maximum(count, 0.5) / len(labels)).astype(np.float32)
    if balance == "weights":
        weight = (len(labels) / (classes * np.maximum(count, 1))).astype(np.float32)
    return shift, weight


def make_train_chunk(config):
    """The compiled loop: (state, features, titles [N, L], labels [N], doubtful [N] bool, order [S, B], shift [C],
    weight [C], width) -> (state, mean loss); the titles of `order` have at most `width` words. The state is donated:
    parameters and table change in place. What is drawn depends on seed and step alone."""
    module, optimizer = model.build(config), make_optimizer(config)

    def loss_of(params, vectors, weights, y, row_weight, key, shift):
        z = module.apply({"params": params}, vectors, weights, train=True, rngs={"dropout": key}) + shift
        loss = optax.softmax_cross_entropy_with_integer_labels(z, jnp.broadcast_to(y, z.shape[:-1]))
        return jnp.mean(row_weight * loss)  # of several classifiers their mean

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="width")
    def train_chunk(state, features, titles, labels, doubtful, order, shift, weight, width):
        run_key = jax.random.fold_in(jax.random.key(config["seed"], impl="rbg"), 1)  # rbg: quick, also to compile

        def step(state, rows):
            ids, y = titles[rows, :width].astype(jnp.int32), labels[rows].astype(jnp.int32)
            key = jax.random.fold_in(run_key, state["step"])
            parts = model.draw_features(config, features, state["weights"], ids, key)
            vectors, weights, used = model.lookup(state["table"], parts)
            row_weight = weight[y] * jnp.where(doubtful[rows], config["unreliable_weight"], 1.0)
            loss, (gradient, vector_gradient) = jax.value_and_grad(loss_of, (0, 1))(
                state["params"], vectors, weights, y, row_weight, jax.random.fold_in(key, 1), shift)
            updates, moments = optimizer.update(gradient, state["moments"], state["params"])
            new = dict(state, params=optax.apply_updates(state["params"], updates), moments=moments,
                       step=state["step"] + 1)
            if not config["freeze_embeddings"]:
                rate = config["table_lr"] * (1 - state["step"] / config["steps"])
                new["table"], new["accumulator"] = model.update(
                    state["table"], state["accumulator"], used, vector_gradient * len(rows), rate)
            return new, loss

        state, losses = jax.lax.scan(step, state, order)
        return state, losses.mean()

    return train_chunk


def init_state(config, features, titles, vectors=None):
    """The state before the first step; `titles` [N, L] give the rows' weights, `vectors` [V, D] (zero where not found)
    the start of the words' own rows."""
    @jax.jit
    def start():
        state = model.init(config, jax.random.key(config["seed"]))
        return state | {"moments": make_optimizer(config).init(state["params"]), "step": jnp.zeros((), jnp.int32),
                        "accumulator": jnp.full(len(state["table"]), config["accumulator"])}

    state = start()
    state["weights"] = jax.device_put(model.row_weights(config, features, titles))
    if vectors is not None:
        found = vectors.any(1, keepdims=True)
        if found.any():  # words without a vector start as long as the others
            state["table"] *= vectors[found[:, 0]].std() / state["table"].std()
        state["table"] = state["table"].at[:len(vectors)].set(jnp.where(found, vectors, state["table"][:len(vectors)]))
    return state


def parts(state):
    """A state as the two parts of a checkpoint: what prediction needs, and what only training needs."""
    optimizer = {name: state[name] for name in ("moments", "accumulator", "step")}
    return {"variables": {name: state[name] for name in state if name not in optimizer}, "optimizer": optimizer}


def judge(module, ready, arrays, prefix):
    """Loss, accuracy and balanced accuracy over every row of `arrays` (and over the reliable rows, where known)."""
    result = model.score((module,), (ready,), (0.0,), arrays["titles"], arrays["labels"])
    if not np.abs(result["loss"]).max() < 1e30:  # its sum would overflow; the caller stops
        result["loss"][:] = np.inf
    row = {f"{prefix}_loss": float(result["loss"].mean()),
           f"{prefix}_accuracy": float((result["prediction"] == arrays["labels"]).mean()),
           f"{prefix}_balanced_accuracy": model.balanced_accuracy(arrays["labels"], result["prediction"])}
    reliable = arrays.get("reliable", np.zeros(0, bool))
    if reliable.any():
        row[f"{prefix}_reliable_loss"] = float(result["loss"][reliable].mean())
        row[f"{prefix}_reliable_balanced_accuracy"] = model.balanced_accuracy(
            arrays["labels"][reliable], result["prediction"][reliable])
    return row


# --- configuration ----------------------------------------------------------------------------------------------------

def settings(args):
    return {name: value for name, value in vars(args).items() if name not in ("data", "name", "runs", "resume")}


def configure(args, meta, titles):
    """All that decides the result, as one dictionary: the flags, defaults filled in, and the sizes the data gives."""
    if args.unreliable_weight < 1 and meta["reliable_share"] is None:
        raise UserError(f"--unreliable-weight: {args.data} says of no row how reliable its label is; leave it away")
    if len(set(args.widths)) < len(args.widths):
        raise UserError(f"--widths {' '.join(map(str, args.widths))}: the same width twice")
    if 0 < args.maxn < args.minn:
        raise UserError(f"--minn {args.minn}: larger than --maxn {args.maxn}")
    rows = len(titles)
    config = settings(args)
    usual = DEFAULTS[args.model]
    longest = args.word_ngrams or usual["word_ngrams"]
    if longest > 1 and usual["word_ngrams"] == 1:
        raise UserError(f"--word-ngrams {args.word_ngrams}: {args.model} takes no n-grams of words")
    ngrams = args.maxn > 0 or longest > 1
    epochs = usual["epochs"] if ngrams else (usual["epochs"] + 1) // 2
    for name, value in (usual | size_rule(rows, epochs, usual["dropout"], len(meta["vocab"]))).items():
        config[name] = value if config[name] is None else config[name]
    config["batch_size"] = min(config["batch_size"], rows)
    if not ngrams:
        config["buckets"] = 0
    pretrained = meta["vectors"] is not None
    if pretrained and args.dim not in (None, meta["vectors"].shape[1]):
        raise UserError(f"--dim {args.dim}: the prepared vectors have {meta['vectors'].shape[1]} numbers; leave --dim "
                        "away, or run prepare.py without --vectors")
    config["dim"] = meta["vectors"].shape[1] if pretrained else args.dim or 100
    groups = data.length_groups(titles, config["batch_size"], CHUNK)
    steps = config["epochs"] * sum(chunks * steps for _, _, chunks, steps in groups)
    if steps >= 1 << 31:
        raise UserError(f"--epochs {config['epochs']}: more than 2^31 steps")
    if len(meta["vocab"]) + config["buckets"] >= 1 << 31:
        raise UserError(f"--buckets {config['buckets']}: a table of more than 2^31 rows")
    return config | {
        "format": data.FORMAT, "fingerprint": meta["fingerprint"], "synthetic": meta["synthetic"],
        "files": {name: meta["files"][name] for name in ("vocab.txt", "labels.txt")},
        "classes": len(meta["labels"]), "vocabulary": len(meta["vocab"]), "max_len": meta["max_len"],
        "pretrained_vectors": pretrained, "rows": rows, "training_rows": meta["training_rows"],
        "steps": steps}


def choose_run(args, meta, titles):
    """(folder, config) of the run to begin or to resume; writes nothing."""
    if args.resume is not None:
        given = {flag.partition("=")[0] for flag in sys.argv[1:] if flag.startswith("--")}
        if others := given - {"--resume", "--data", "--runs"}:
            raise UserError(f"--resume goes on with the run's own settings; leave {' '.join(sorted(others))} away")
        folder = args.runs / args.resume
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no such run to resume")
        config, _, _ = data.load_run(folder, model.MODELS)
        if unknown := settings(args).keys() - config.keys():
            raise UserError(f"{folder}: was begun by another train.py, one without {', '.join(sorted(unknown))}; train "
                            "again")
        if config["fingerprint"] != meta["fingerprint"]:
            raise UserError(f"{folder}: was trained on other data ({config['fingerprint']}) than {args.data} holds "
                            f"({meta['fingerprint']}); name its data with --data")
        return folder, config
    name = args.name if args.name is not None else free_name(args)
    if not re.fullmatch(r"\w[\w.-]*", name) or name in ("best", "latest"):
        raise UserError(f"--name {name}: use letters, digits, '-', '_' and '.', and not best or latest")
    if (args.runs / name).exists():
        raise UserError(TAKEN.format(folder=args.runs / name))
    return args.runs / name, data.signed(configure(args, meta, titles) | {"created": time.time()})


def free_name(args):
    taken = {path.name for path in args.runs.iterdir()} if args.runs.exists() else set()
    return next(name for i in range(1, len(taken) + 2) if (name := f"{args.model}-{i}") not in taken)


def make_run(args, folder, config, meta):
    """Make the folder of a new run, whole or not at all; without --name under the next name if this one was taken
    meanwhile. Returns the folder."""
    beside = data.neighbour(folder.with_name(f".{folder.name}"))
    try:
        beside.mkdir(parents=True)
        data.write_json(beside / "config.json", config)
        data.write_lines(beside / "vocab.txt", meta["vocab"])
        data.write_lines(beside / "labels.txt", meta["labels"])
        while folder.exists() or not renamed(beside, folder):
            if args.name is not None:
                raise UserError(TAKEN.format(folder=folder))
            folder = args.runs / free_name(args)
        return folder
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def renamed(source, target):
    """Rename a folder; False where the target is there."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    return True


TAKEN = "{folder}: a run of this name is there; choose another --name, or go on with --resume {folder.name}"


# --- MLflow -----------------------------------------------------------------------------------------------------------

class Tracker:
    """The MLflow run of a training, as a context. A server that stops answering costs warnings, not the training; what
    could not be logged is logged with the next epoch, or by --resume."""

    def __init__(self, client, experiment, folder, config, statistics):
        """Start the MLflow run, or go on with the one that this training has in this store: it is found by its tag,
        even if the training was killed just after it began the run. `folder`/mlflow.txt tells evaluate.py its id."""
        from mlflow.entities import Param, RunTag
        self.client, self.config, self.history, self.losses, self.logged = client, config, [], [], -1
        key = f"{folder.name} {config['created']}"
        with data.mlflow_needed():
            begun = self.client.search_runs([experiment], f"tags.training = '{key}'")
            self.run_id = (begun[0] if begun else self.client.create_run(
                experiment, run_name=folder.name, tags={"training": key})).info.run_id
        with data.write_beside(folder / "mlflow.txt") as file:
            file.write(self.run_id + "\n")
        with data.mlflow_warnings():
            self.client.update_run(self.run_id, "RUNNING")
            logged = self.client.get_metric_history(self.run_id, "valid_loss")
            self.logged = max((m.step for m in logged), default=-1)
            if not self.client.get_run(self.run_id).data.params:
                self.client.log_batch(
                    self.run_id, params=[Param(key, str(value)[:6000]) for key, value in (statistics | config).items()],
                    tags=[RunTag("data", "synthetic" if config["synthetic"] else "real")])
            if not self.client.list_artifacts(self.run_id, "source"):
                for script in Path(__file__).parent.glob("*.py"):
                    self.client.log_artifact(self.run_id, str(script), "source")

    def log(self, history, losses):
        """Log the epochs not yet logged, and the training loss [(step, loss)] of the chunks of the last one."""
        from mlflow.entities import Metric
        self.history, self.losses = history, [*self.losses, *losses]
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, row["step"]) for row in history if row["step"] > self.logged
                   for key, value in row.items() if key not in ("epoch", "step")]
        metrics += [Metric("step_loss", float(loss), now, step) for step, loss in self.losses]
        with data.mlflow_warnings():
            data.log_metrics(self.client, self.run_id, metrics)
            self.logged, self.losses = max([self.logged, *(row["step"] for row in history)]), []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        with data.mlflow_warnings():
            if self.history:
                self.client.log_figure(self.run_id, loss_figure(self.history, self.config["synthetic"]), "loss.png")
        with data.mlflow_warnings():
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "KILLED" if kind in (
                SystemExit, KeyboardInterrupt) else "FAILED")


def loss_figure(history, synthetic):
    """Loss of the training and the validation split over the epochs, and their balanced accuracy."""
    from matplotlib.figure import Figure
    figure = Figure((9, 3.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "balanced_accuracy"), strict=True):
        for split, name in (("train", "training (sample)"), ("valid", "validation")):
            axes.plot([row["epoch"] for row in history], [row[f"{split}_{kind}"] for row in history], "o-", label=name)
        axes.set(xlabel="epoch", ylabel="cross-entropy (nats)" if kind == "loss" else "balanced accuracy",
                 title=("SYNTHETIC data: " if synthetic else "") + kind.replace("_", " "))
        axes.legend()
    return figure


# --- the loop ---------------------------------------------------------------------------------------------------------

def train(args):
    meta, arrays = data.load_prepared(args.data, ("train", "valid"))
    folder, config = choose_run(args, meta, arrays["train"]["titles"])
    connecting = data.in_background(data.mlflow_client)  # takes seconds; meanwhile we compile
    features = model.feature_tables(config, meta["words"])
    state, groups, train_chunk = compiled(config, features, arrays["train"], meta["vectors"])
    mlflow = connecting.result()
    if args.resume is None:
        folder = make_run(args, folder, config, meta)
    statistics = {key: meta[key] for key in
                  ("source", "categories", "reliable_share", "unknown_share", "mean_words", "cut_share")}
    with data.held(folder):
        manager, history = data.checkpoint_manager(folder), []
        if manager.latest_step() is not None:
            saved = data.restore_checkpoint(manager, manager.latest_step(), **parts(state), history=None)
            state, history = saved["variables"] | saved["optimizer"], saved["history"]
        with Tracker(*mlflow, folder, config, statistics | {"device": str(jax.devices()[0])}) as tracker:
            loop(args, folder, config, jax.device_put(features), arrays, state, history, groups, train_chunk, manager,
                 tracker)


def compiled(config, features, arrays, vectors):
    """The state before the first step, the groups of titles, and the compiled loop, with the arrays on the device:
    {width of a group: (state, order) -> (state, loss)}."""
    groups = data.length_groups(arrays["titles"], config["batch_size"], CHUNK)
    state = init_state(config, features, arrays["titles"], vectors)
    doubtful = ~arrays.get("reliable", np.ones(len(arrays["labels"]), bool))
    device = jax.device_put([features, arrays["titles"], arrays["labels"], doubtful])
    terms = jax.device_put(class_terms(config["balance"], arrays["labels"], config["classes"]))
    train_chunk = make_train_chunk(config)

    def bound(width, steps):
        order = np.zeros((steps, config["batch_size"]), np.uint32)
        program = train_chunk.lower(state, *device, order, *terms, width=width).compile()
        return lambda state, order: program(state, *device, jax.device_put(order), *terms)

    return state, groups, {width: bound(width, steps) for _, width, _, steps in groups}


def loop(args, folder, config, features, arrays, state, history, groups, train_chunk, manager, tracker):
    name, rows, module = folder.name, config["rows"], model.build(config)
    epoch_steps = config["steps"] // config["epochs"]
    step = int(state["step"])
    if history:  # a killed run may not have written and logged the epochs that it saved
        write_metrics(folder, history)
        tracker.log(history, [])

    parameters = sum(x.size for x in jax.tree.leaves(state["params"]))
    print(f"run {name}{' (SYNTHETIC DATA)' if config['synthetic'] else ''} on {jax.devices()[0]}: "
          + ", ".join(f"{key}={value}" for key, value in config.items()
                      if key not in ("checksum", "created", "files", "format", "training_rows")))
    print(f"{rows:,} rows, {config['steps']:,} steps of {config['batch_size']}; {parameters:,} parameters and a table "
          f"of {len(state['table']):,} x {config['dim']} ({state['table'].nbytes / 1e6:,.0f} MB); chance loss "
          f"ln {config['classes']} = {math.log(config['classes']):.3f}")

    sample = np.random.default_rng(config["seed"]).permutation(rows)[:TRAIN_SAMPLE]
    sample = {kind: array[sample] for kind, array in arrays["train"].items() if kind != "language"}
    if step == 0:
        report_epoch({"epoch": 0} | judge(module, model.predictor(parts(state)["variables"], features), arrays["valid"],
                                          "valid"))
    print(f"ready after {time.time() - STARTED:.1f} s (reading, compiling)")

    stop = []  # a signal that came; the loop answers at the end of a chunk
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))

    def save(metrics=None):
        data.save_checkpoint(manager, step, **parts(state), history=history, metrics=metrics)

    def check_finite(values):
        if not all(map(math.isfinite, values)):
            raise UserError(f"the loss is no longer finite at step {step:,} of run {name}; try a lower --lr (now "
                            f"{config['lr']}) or --table-lr (now {config['table_lr']})")

    def leave():
        print(f"stopped at step {step:,}; go on with: python train.py --resume {name}"
              + "".join(f" --{flag} {shlex.quote(str(value))}" for flag, value, usual in (
                  ("runs", args.runs, "runs"), ("data", args.data, "data/prepared")) if str(value) != usual))
        raise SystemExit(128 + stop[0])

    begun, begun_step, printed = time.time(), step, 0
    for epoch in range(step // epoch_steps, config["epochs"]):
        losses, epoch_begun, epoch_step, end = [], time.time(), step, epoch * epoch_steps
        for width, order in data.batches(groups, config["batch_size"], config["seed"], epoch):
            end += len(order)
            if end <= step:  # done before this run was resumed
                continue
            state, loss = train_chunk[width](state, order)
            step = end
            losses.append((step, loss))
            loss = float(losses[max(0, len(losses) - 2)][1])  # the chunk before, so that the device is never idle
            if not math.isfinite(loss):
                break
            if stop and step < (epoch + 1) * epoch_steps:
                check_finite([float(loss) for _, loss in losses])
                save()
                tracker.log(history, losses)
                leave()
            if time.time() - printed > (1 if sys.stdout.isatty() else 10):
                printed, seconds = time.time(), time.time() - begun
                done = (step - begun_step) / (config["steps"] - begun_step)
                print(f"epoch {epoch + 1:>3}/{config['epochs']} {step / config['steps']:6.1%}  loss {loss:7.4f}  "
                      f"lr {config['lr'] * (1 - step / config['steps']):.1e}  "
                      f"{(step - begun_step) / epoch_steps * rows / seconds:9,.0f} titles/s  "
                      f"{clock(seconds)} elapsed  {clock(seconds / done - seconds)} left", flush=True)
        check_finite([float(loss) for _, loss in losses])
        seconds = time.time() - epoch_begun
        ready = model.predictor(parts(state)["variables"], features)
        row = {"epoch": epoch + 1, "step": step} | judge(module, ready, sample, "train") | judge(
            module, ready, arrays["valid"], "valid") | {
            "titles_per_second": (step - epoch_step) / epoch_steps * rows / seconds, "seconds": time.time() - STARTED}
        check_finite([row["train_loss"], row["valid_loss"]])
        history.append(row)
        save(row)
        write_metrics(folder, history)
        tracker.log(history, losses)
        report_epoch(row)
        if stop and epoch < config["epochs"] - 1:
            leave()
        begun += time.time() - epoch_begun - seconds  # judging and saving are not training time
    best = max(reversed(history), key=lambda row: row["valid_balanced_accuracy"])
    print(f"best epoch {best['epoch']}: validation balanced accuracy {best['valid_balanced_accuracy']:.4f}"
          f"{' on SYNTHETIC data' if config['synthetic'] else ''}; {time.time() - STARTED:.1f} s in all\n"
          f"test it: python evaluate.py --ckpt {name}")


def clock(seconds):
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def report_epoch(row):
    print(f"epoch {row['epoch']:>3}  " + "  ".join(
        f"{key.replace('_', ' ')} {value:.4f}" for key, value in row.items() if "loss" in key or "balanced" in key))


def write_metrics(folder, history):
    with data.write_beside(folder / "metrics.csv") as file:
        names = list(dict.fromkeys(key for row in history for key in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)


if __name__ == "__main__":
    data.run(lambda: train(ARGS))
