"""What a training leaves: run folders, their configuration and source, checkpoints.

runs/NAME/ holds

    config.json        all that decided the result: settings, sizes, digests of data and source; with its own checksum
    vocab.txt, labels.txt, columns.txt    of the prepared data, so that the folder alone is enough to predict; the last
                       one where that has columns beside titles
    trained.npy        [K] uint64, data.title_keys of the titles that trained it, or the run that it began from
    source/            the scripts as they were; config.json has the checksums of those that train.py loaded
    checkpoints/STEP/  Orbax checkpoints: the best by validation balanced accuracy, and the latest, which is both where
                       nothing tells the best (see `is_judged`); of a pretrained encoder what training changed, the rest
                       is in its package
    metrics.csv, loss.png    one row, and one point of the curves, for every epoch
    mlflow.txt         the id of the run in MLflow
    SPLIT-WHICH/       reports of evaluate.py

What is computed in a training or an evaluation does not belong here, nor what MLflow gets of it (tracking.py).
"""
import ast
import csv
import itertools
import math
import os
import re
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np

import classify
import model
from titles import cli, devices, encoder, files
from titles.cli import UserError
from titles.settings import command as training_command

# EDIT: what tells the best epoch and the best run: a column of metrics.csv, and whether its largest value (max) or its
# smallest (min) is best. All that says "best" asks `rank`.
BEST, BETTER = "valid_balanced_accuracy", max
TOLD_BY = f"{BETTER.__name__} {BEST}"  # what config.json says of that

FORMAT = 5  # of a run's folder: raise it when its files change their meaning
DATA_FILE = 8 << 20  # bytes of a file with a large table, about: Orbax keeps what it has encoded until a file is full
BOOKKEEPING = ("checksum", "created", "files", "trained", "source", "versions", "format", "training_rows",
               "fingerprint", "calibration_rows", "data", "synthetic", "settings", "best")  # no setting, no size
LISTS = ("vocab.txt", "labels.txt", "columns.txt")  # of a run
NO_METRICS = "{path}: not what train.py wrote; name a run with --ckpt"
TAKEN = "{folder}: a run of this name is there; choose another --name, or go on with --resume {folder.name}"


# --- folders ----------------------------------------------------------------------------------------------------------

def free_name(runs, model):
    """The first of MODEL-1, MODEL-2, ... that no run in the folder `runs` has, nor a refit of one that is gone."""
    names = (runs / f"{model}-{i}" for i in itertools.count(1))
    return next(folder.name for folder in names if not (folder.exists() or refit_folder(folder).exists()))


def new_folder(runs, name, model):
    """The folder for a new run: `name`, or a free name where that is None. Raises UserError where it cannot serve."""
    if name is None:
        return runs / free_name(runs, model)

    # A name becomes a folder and a word of --ckpt, where best and latest mean something else; Windows drops a dot at
    # the end.
    if not re.fullmatch(r"\w([\w.-]*[\w-])?", name) or name in ("best", "latest", "all"):
        raise UserError(f"--name {name}: use letters, digits, '-', '_' and '.' within, and not best, latest or all")
    if (runs / name).exists():
        raise UserError(TAKEN.format(folder=runs / name))
    return runs / name


def create(folder, config, meta, trained, named=True):
    """Make the folder of a new run, whole or not at all, and return it.

    meta: of the prepared data, as from data.load_prepared; trained: the content of trained.npy. named: whether the user
    chose the name; if not, and another training has taken it meanwhile, the next free one is used.
    """
    # A name that begins with a dot is no run: --ckpt passes over a folder that is being made.
    with files.temporary_path(folder.with_name(f".{folder.name}")) as temporary:
        temporary.mkdir()
        files.write_json(temporary / "config.json", config)
        for name in LISTS:
            if lines := meta.get(name.removesuffix(".txt")):  # most data has no columns
                files.write_lines(temporary / name, lines)
        np.save(temporary / "trained.npy", trained)

        # All scripts, so that source/train.py runs by itself.
        (temporary / "source/titles").mkdir(parents=True)
        for name, content in SOURCE.items():
            (temporary / "source" / name).write_bytes(content)

        # Another training may have taken the name. Systems differ in the error that this is, so what is there decides.
        while True:
            try:
                files.rename(temporary, folder)
                return folder
            except OSError:
                if not folder.exists():
                    raise
            if named:
                raise UserError(TAKEN.format(folder=folder))
            folder = folder.parent / free_name(folder.parent, config["model"])


def config_of(folder):
    """The configuration of a run's folder; an empty one where that is none, or one of another format."""
    config = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return config if config.get("format") == FORMAT else {}


def all_runs(runs, fingerprint=None):
    """[(folder, configuration)] of all runs, or of those on the data with this fingerprint."""
    runs = Path(runs)
    names = sorted(os.listdir(runs)) if runs.is_dir() else []
    found = [(runs / name, config_of(runs / name)) for name in names if not name.startswith(".")]
    return [(folder, config) for folder, config in found
            if config and fingerprint in (None, config.get("fingerprint"))]


def find_all(runs, fingerprint=None):
    """[(folder of a run, "best")] that `--ckpt all` means: of each model the run whose best epoch is best, or its
    refit, the best one first. Raises UserError where there is none."""
    found = []
    for folder, config in all_runs(runs, fingerprint):
        # A refit is chosen by the validation scores of the run that it was made of.
        if "refit" not in config and is_told_alike(config) and (history := read_metrics(folder)):
            best = best_epoch(history)
            if is_judged(config) != (BEST in best):
                raise UserError(NO_METRICS.format(path=folder / "metrics.csv"))
            # Of equally good ones it is one that has a refit, and the last of these.
            place = rank(best), is_over(config, history), finished_refit(folder) is not None, config["created"]
            found.append((*place, folder, config))

    # Only what has learned the same data can answer together, so where none is named it is that of the best run.
    found = sorted(found, key=lambda item: item[:4], reverse=True) or no_run(runs, fingerprint)
    of_model = {}
    for *_, folder, config in found:
        if config["fingerprint"] == found[0][-1]["fingerprint"]:
            of_model.setdefault(config["model"], folder)
    return [(finished_refit(folder) or folder, "best") for folder in of_model.values()]


def finished_refit(folder):
    """The folder of the refit of a run, where that came to its end, or None."""
    refit, config = refit_of(folder) or (None, {})
    # Then it has left a checkpoint of its last step.
    return refit if refit and (refit / f"checkpoints/{config['steps']}").is_dir() else None


def refit_of(folder):
    """(folder, configuration) of the refit of a run, or None; not that of an earlier run of the same name."""
    refit = refit_folder(folder)
    config = config_of(refit)
    is_its = config.get("refit") == folder.name and config["created"] >= config_of(folder).get("created", 0)
    return (refit, config) if is_its else None


def refit_folder(folder):
    return folder.with_name(f"{folder.name}-refit")


def no_run(runs, fingerprint):
    raise UserError(f"{runs}: no trained run here{' on this data' if fingerprint else ''}; run train.py first")


def find(ckpt, runs, fingerprint=None):
    """(folder of a run, "best" or "latest") that `--ckpt` means.

    `best`: of all runs (on the data with this fingerprint, if given) the one whose best epoch is best; where none has
    validation scores, the one begun last of those that came to their end, or of all. `latest`: the run begun last.
    Else the name or path of a run, with /best (the default) or /latest behind.
    Raises UserError where there is none.
    """
    runs, ckpt = Path(runs), str(Path(ckpt))  # without a slash at its end
    if ckpt == "best":
        return find_all(runs, fingerprint)[0]
    if ckpt == "latest":
        # Only a checkpoint that is whole has nothing but a number for a name.
        found = [(config.get("created", 0), folder) for folder, config in all_runs(runs, fingerprint)
                 if any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))]
        return max(found or no_run(runs, fingerprint), key=lambda item: item[0])[1], ckpt

    # The name of a run, or a path to its folder.
    path, which = Path(ckpt), "best"
    if path.name in ("best", "latest"):
        path, which = path.parent, path.name
    for folder in (runs / path, path):
        if (folder / "config.json").is_file():
            return folder.resolve(), which
    raise UserError(f"{ckpt}: no run of this name in {runs}/, nor a path to the folder of a run")


def short_name(folder, runs):
    """What `--ckpt` calls a run's folder: its name where it is among `runs`, else its path."""
    return folder.name if (runs / folder.name).resolve() == folder.resolve() else str(folder.resolve())


def show_all(runs, fingerprint):
    """Print a line for each run on the data with this fingerprint, the best by its validation score first; a refit,
    which has none, behind the run that it comes from."""
    found = []
    for folder, config in all_runs(runs, fingerprint):
        base = folder.with_name(config.get("refit", folder.name))
        best, report = best_epoch(history_of(base)), folder / "test-best/report.json"
        scores = files.read_json(report) if report.is_file() else {}
        found.append((-rank(best), base, "refit" in config, folder, config, best.get(BEST), scores))

    # Where categories are a tree, its upper levels have the test accuracy.
    upper = range(max((len(row[-1].get("levels", ())) - 1 for row in found), default=0))
    line = ("{:24} {:12} {:>10} {:>8} " + "{:>8} " * len(upper) + "{:>8} {:>6}  {}").format
    print(line("run", "model", "validation", "test", *(f"level {level + 1}" for level in upper), "seconds", "MB",
               "begun"))
    for _, _, is_refit, folder, config, score, scores in sorted(found, key=lambda row: row[:4]):
        # What is not known yet, such as the test score of a run that was never evaluated, is a dash.
        test, levels = scores.get("balanced_accuracy"), scores.get("levels") or [{}] * len(upper)
        above = [levels[level].get("accuracy") for level in upper]
        above = ["-" if accuracy is None else f"{accuracy:.4f}" for accuracy in above]
        seconds = (history_of(folder) or [{}])[-1].get("seconds")
        size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file()) / 1e6
        print(line(folder.name, config["model"], f"{score:.4f}" if score and not is_refit else "-",
                   f"{test:.4f}" if test else "-", *above, f"{seconds:.0f}" if seconds else "-", f"{size:.1f}",
                   time.strftime("%Y-%m-%d %H:%M", time.localtime(config["created"]))))


def other_folders(args):
    """--runs and --data, as a user types them, where they are not the usual ones."""
    return "".join(f" --{flag} {cli.listed(value)}" for flag, value, usual in (
        ("runs", args.runs, Path("runs")), ("data", args.data, cli.PREPARED))
        if cli.listed(value) != cli.listed(usual))


def settings(config):
    """The settings and sizes of a configuration, which a person would compare."""
    return {key: value for key, value in config.items() if key not in BOOKKEEPING}


def load(folder, models):
    """(config, vocab, labels) of a run: a dictionary, and two lists of str, verified to be those it was trained with.
    Raises UserError where they are not, or where its model is not among `models`."""
    config = files.read_verified_json(folder / "config.json", FORMAT, "train again")
    if config["model"] not in models:
        raise UserError(f"{folder}: its model {config['model']} is not in model.py")

    # Line numbers are ids: a line added or lost would change what predictions mean, and nothing would fail.
    for name in LISTS[:2] + LISTS[2:] * ("columns.txt" in config["files"]):
        if not (folder / name).is_file() or files.checksum(folder / name) != config["files"][name]:
            raise UserError(f"{folder / name}: missing, or not the one that this run was trained with")
    return config, files.read_lines(folder / "vocab.txt"), files.read_lines(folder / "labels.txt")


def columns_of(folder, config):
    """The classify.Columns of the data that a run was trained on, from its folder."""
    return classify.columns_of(files.read_lines(folder / "columns.txt") if "columns.txt" in config["files"] else [])


def trained_titles(folder):
    """The content of a run's trained.npy. Of a run that older scripts have trained, which kept none, it is empty, and a
    warning says so. Raises UserError where it is damaged."""
    path, wanted = folder / "trained.npy", files.read_json(folder / "config.json").get("trained")
    if wanted is None:
        print(f"warning: {folder}: does not say which titles trained it; rows that did may count as new ones",
              file=sys.stderr)
        return np.zeros(0, np.uint64)
    try:
        keys = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        keys = np.zeros(0, np.uint64)
    if files.checksum_of(keys.tobytes()) != wanted:
        raise UserError(f"{path}: missing, or not what train.py wrote; train again")
    return keys


@contextmanager
def training_lock(folder):
    """Keep other trainings away from a run in this block; raises UserError where one is at work on it. Of several
    processes of a training the first one has the lock."""
    with ExitStack() as stack:
        if devices.is_first():
            try:
                stack.enter_context(files.locked(folder / "training", wait=False))
            except BlockingIOError:
                raise UserError(f"{folder}: another training is at work on this run") from None
        yield


# --- metrics ----------------------------------------------------------------------------------------------------------

def write_metrics(folder, history):
    """Write metrics.csv: one row for every dictionary of `history`, which has one for every epoch."""
    with files.atomic_write(folder / "metrics.csv") as file:
        # A column for every score that any epoch has, in the order in which they first come.
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in history for key in row)))
        writer.writeheader()
        writer.writerows(history)


def read_metrics(folder):
    """What `write_metrics` wrote: a dictionary of numbers for every epoch; nothing where no epoch has ended."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            # A score that an epoch does not have is an empty field.
            history = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        if not all("epoch" in row and all(map(math.isfinite, row.values())) for row in history):
            raise ValueError
        return history
    except (ValueError, TypeError, csv.Error):
        raise UserError(NO_METRICS.format(path=path)) from None


def history_of(folder):
    """What `read_metrics` returns; nothing where it is damaged, for the run can be used all the same."""
    try:
        return read_metrics(folder)
    except UserError:
        return []


def rank(row):
    """What is larger the better an epoch is, of its row of metrics.csv; of one without such a score (see
    `is_judged`) it is the least."""
    score = row.get(BEST)
    return -math.inf if score is None else score if BETTER is max else -score


def best_epoch(history):
    """The row of the best epoch. Of several equally good ones it is the last, whose checkpoint Orbax keeps, as where
    they have no validation scores. Before the first epoch it is empty."""
    return max(reversed(history), key=rank, default={})


def best_said(config, history):
    """The best epoch as a text; where nothing tells it, how long the run was trained."""
    best = best_epoch(history)
    if not is_judged(config):
        said = f"trained on {config['rows']:,} rows for {len(history)} epochs"
        return f"{said}, as was best for {config['refit']}" if "refit" in config else said
    return f"best epoch {best['epoch']}: {BEST.replace('valid_', 'validation ').replace('_', ' ')} {best[BEST]:.4f}"


def is_judged(config):
    """Whether the epochs of a run have validation scores. Those of a refit, which has trained on the validation rows,
    and of a run on data without any have none: then the last checkpoint counts as the best."""
    return "refit" not in config and config["calibration_rows"] > 0


def is_told_alike(config):
    """Whether the best epoch of a run was told as these scripts tell it, or nothing told it; older ones did not say
    it."""
    return config["calibration_rows"] == 0 or config.get("best", "max valid_balanced_accuracy") == TOLD_BY


def epochs_since_best(history):
    """How many epochs came after the best one."""
    return len(history) - 1 - history.index(best_epoch(history)) if history else 0


def is_over(config, history):
    """Whether no epoch is left to train."""
    return len(history) == config["epochs"] or (
        "patience" in config and epochs_since_best(history) >= config["patience"])


def training_of(folder, others=""):
    """(name, commands that train it again, configuration, rows of metrics.csv) of a run; others: as from
    `other_folders`."""
    config = files.read_json(folder / "config.json")
    # A refit comes after the run that it was made of.
    base, found = folder.with_name(config.get("refit", folder.name)), []
    if "refit" in config and (base / "config.json").is_file():
        found.append(training_command(base.name, files.read_json(base / "config.json")))
    found.append(training_command(folder.name, config))
    return folder.name, [one + others for one in found if one], config, history_of(folder)


def loss_figure(history, title):
    """Loss and balanced accuracy of the training and the validation split over the epochs, and a line that marks the
    best one; without validation scores (see `is_judged`) only the first of these."""
    from matplotlib.figure import Figure
    figure = Figure((9, 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "balanced_accuracy"), strict=True):
        for split, name in (("train", "training (sample)"), ("valid", "validation")):
            if f"{split}_{kind}" not in history[0]:
                continue
            axes.plot([row["epoch"] for row in history], [row[f"{split}_{kind}"] for row in history], "o-", label=name)
        if BEST in (best := best_epoch(history)):
            axes.vlines(best["epoch"], 0, 1, transform=axes.get_xaxis_transform(), color="gray", linestyle="dashed",
                        label=f"best epoch: {best['epoch']:.0f}")
        axes.set(xlabel="epoch", ylabel="cross-entropy (nats)" if kind == "loss" else "balanced accuracy",
                 title=kind.replace("_", " "))
        axes.legend()
    return figure


# --- source -----------------------------------------------------------------------------------------------------------

# The scripts as they were when this process began: who edits them while a training runs does not change what it keeps.
TOP = Path(__file__).resolve().parent.parent
SOURCE = {path.relative_to(TOP).as_posix(): path.read_bytes()
          for path in sorted([*TOP.glob("*.py"), *TOP.glob("titles/*.py"), *TOP.glob("titles/*.html")])}


def source_checksums():
    """{file name: checksum} of the scripts that this process has loaded, modules of the user's own included."""
    # To resolve the paths of all modules would take half a second, so the others are told by their names.
    names = {os.path.basename(name) for name in SOURCE}
    paths = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    loaded = {Path(path).resolve() for path in paths if os.path.basename(path) in names}
    return {name: files.checksum_of(content) for name, content in SOURCE.items() if (TOP / name).resolve() in loaded}


def changed_source(folder, config):
    """Names of the scripts that this process and the training of a run both use, but whose code differs. Comments
    are no code. A copy that is not what the run has kept cannot tell, so its script counts as changed."""
    changed = []
    for name, checksum in source_checksums().items():
        # A script that the run has not loaded counts as unchanged.
        kept, known = folder / "source" / name, config["source"].get(name, checksum)
        if checksum != known and not (kept.is_file() and files.checksum(kept) == known
                                      and code_of(kept.read_bytes()) == code_of(SOURCE[name])):
            changed.append(name)
    return changed


def versions():
    """{library: version} of those that compute: another one may round otherwise."""
    from importlib.metadata import version
    return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def code_of(content):
    """The syntax tree of a script, which knows no comments, as text."""
    return ast.dump(ast.parse(content))


# --- checkpoints ------------------------------------------------------------------------------------------------------

def file_checksums(step, part=""):
    """{path in the folder of a checkpoint: checksum} of its files, or of those in its folder `part`."""
    # Slashes on every system, as a run may be copied to another one. A kill may leave the lock of sums.json behind.
    return {path.relative_to(step).as_posix(): files.checksum(path) for path in sorted((step / part).rglob("*"))
            if path.is_file() and path.name not in ("sums.json", ".sums.json.lock")}


def verify_checkpoint(step, part=""):
    """Raise UserError where files of a checkpoint's folder are not what `save_checkpoint` wrote: Orbax does not see
    every change. A save that was killed at its very end has no sums.json, and is whole."""
    if not (step / "sums.json").exists():
        return
    # The names of both, so that a file too many or too few shows as well.
    wanted, found = files.read_json(step / "sums.json"), file_checksums(step, part)
    for name in sorted(found.keys() | wanted.keys()):
        if name.startswith(part) and found.get(name) != wanted.get(name):
            raise UserError(f"{step / name}: not what train.py saved (cut short, changed or missing); remove {step} to "
                            "do without this checkpoint")


def checkpoint_manager(folder, read_only=False):
    """Orbax's manager of a run's checkpoints: keeps the latest and that of the best epoch. Saves are synchronous and
    atomic: a killed save leaves a temporary folder, which the next training removes. Raises UserError where what tells
    the best from the others is damaged."""
    import logging

    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    # Orbax logs what it also raises. It trusts the metrics that tell the best checkpoint, so they are verified first.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for step in (Path(folder) / "checkpoints").glob("[0-9]*"):
        verify_checkpoint(step, "metrics")

    # `best_fn` alone would keep the best and drop the latest, which --resume needs.
    options = ocp.CheckpointManagerOptions(
        read_only=read_only, best_fn=rank, best_mode="max", enable_async_checkpointing=False,
        cleanup_tmp_directories=not read_only, preservation_policy=policies.AnyPreservationPolicy(
            [policies.LatestN(1), policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]))
    try:
        return ocp.CheckpointManager((Path(folder) / "checkpoints").absolute(), options=options)
    except OSError:
        # What the system refuses is no damage, and says itself what it is.
        raise
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        advice = "" if jax.process_count() > 1 else "; remove the damaged step"
        raise devices.failed(f"{folder}/checkpoints", f"cannot be read ({str(error)[:200]}){advice}") from None


def save_checkpoint(manager, step, state, history, metrics=None):
    """Save all that --resume needs.

    state: {"variables": what prediction needs, "optimizer": what only training needs}, two pytrees of arrays;
    history: list of dictionaries, one for every epoch; metrics: of this epoch, or None within one.
    Raises UserError where it cannot be written; the checkpoints before it stay.
    """
    import orbax.checkpoint as ocp

    # In several files, or a large table would lie encoded in memory until all of it is. Orbax cuts it for that into
    # equal pieces; where the rows cannot be divided well these are tiny, and a restore takes many seconds.
    def in_files(tree):
        large = [x for x in jax.tree.leaves(tree) if x.shape and len(x) > model.LARGE]
        even = large and all(len(x) % model.PARTS == 0 for x in large)
        return ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=DATA_FILE if even else None)

    try:
        # Orbax's threads print tracebacks on a full disk, so look before.
        need = 1.1 * sum(x.nbytes for x in jax.tree.leaves(state)) + (1 << 20)
        if (free := shutil.disk_usage(manager.directory).free) < need:
            raise OSError(f"needs {need / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free")
        manager.save(step, metrics=metrics, force=True, args=ocp.args.Composite(
            history=ocp.args.JsonSave(history), **{part: in_files(tree) for part, tree in state.items()}))
        if devices.is_first():
            # Here Orbax has given the checkpoint its name; killed before the next line, it stays without checksums.
            folder = Path(manager.directory) / str(step)
            files.write_json(folder / "sums.json", file_checksums(folder))
    except (OSError, ValueError) as error:  # TensorStore raises ValueError where it cannot write
        raise devices.failed(manager.directory, f"step {step} is not saved ({str(error)[:200]}); mend that, then go on "
                             f"with train.py --resume {manager.directory.parent.name}") from None


def restore_checkpoint(manager, step, **targets):
    """Restore the named parts of a checkpoint: `variables`, `optimizer` with a pytree of shapes and dtypes that they
    must have, `history` with None. Returns {part: value}. Raises UserError where a part cannot be read or differs."""
    import orbax.checkpoint as ocp

    # Not the devices it was saved from.
    def on_these_devices(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or devices.whole())

    def shapes(tree):
        return sorted((x.shape, str(x.dtype)) for x in jax.tree.leaves(tree))

    folder, arguments = Path(manager.directory) / str(step), {}
    verify_checkpoint(folder)
    try:
        for part, target in targets.items():
            if target is None:
                arguments[part] = ocp.args.JsonRestore()
                continue
            # Shapes are compared before reading: Orbax's reading threads print tracebacks where they differ.
            with ocp.StandardCheckpointer() as reader:
                if shapes(reader.metadata(folder / part).item_metadata.tree) != shapes(target):
                    raise ValueError("its arrays have other shapes than its config.json says")
            target = jax.tree.map(on_these_devices, target)
            arguments[part] = ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target))
        restored = manager.restore(step, args=ocp.args.Composite(**arguments))
        return {part: restored[part] for part in targets}
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise devices.failed(folder, f"cannot be read as this run's checkpoint ({str(error)[:200]})") from None


def restore(folder, which):
    """(config, vocab, labels, {"variables", "validation", "columns"}, step) of a run's best or latest checkpoint, of an
    encoder with all its pieces and layers, and with the classify.Columns of its data. Says so where its code has
    changed. Raises UserError where it cannot be used."""
    config, vocab, labels = load(folder, model.MODELS)
    if which == "best" and not is_told_alike(config):
        raise UserError(f"{folder}: its best epoch was told by {config.get('best', 'another score')}, now it would be "
                        f"by {TOLD_BY}; name {folder.name}/latest, or change runs.BEST back")
    if "encoder" in config:
        encoder.require(config["encoder"], folder)
    if changed := changed_source(folder, config):
        print(f"warning: {folder}: {' and '.join(changed)} changed since it was trained; it may predict otherwise than "
              f"it did (its own scripts: {folder / 'source'}/)", file=sys.stderr)
    manager = checkpoint_manager(folder, read_only=True)
    step = manager.best_step() if which == "best" and is_judged(config) else manager.latest_step()
    if step is None:
        raise UserError(f"{folder}: has no {which} checkpoint" + (
            f"; try {folder}/latest" if manager.latest_step() is not None else ""))

    # The configuration tells the shapes, so nothing but what prediction needs is read.
    try:
        variables = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
        shapes = validation_shapes(config) | {"variables": jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), variables,
            model.shardings(config, variables))}
    except KeyError as error:
        raise UserError(f"{folder}: was trained without {error}, which its model needs now; use the scripts that it "
                        f"keeps in {folder / 'source'}/") from None
    saved = no_validation(config) | restore_checkpoint(manager, step, **shapes) | {
        "columns": columns_of(folder, config)}
    if "encoder" in config:
        config, variables = encoder.complete(config, saved["variables"])
        saved["variables"] = devices.put(variables, devices.whole())
    return config, vocab, labels, saved, step


def restore_validation(folder):
    """What the best checkpoint of a run keeps of its validation rows: a dictionary of arrays."""
    manager = checkpoint_manager(folder, read_only=True)
    if (step := manager.best_step()) is None:
        raise UserError(f"{folder}: has no best checkpoint")
    return restore_checkpoint(manager, step, **validation_shapes(files.read_json(folder / "config.json")))["validation"]


def validation_shapes(config):
    """{"validation": the arrays that a checkpoint keeps of validation rows, see train.calibrate}; nothing where there
    are none."""
    rows = config["calibration_rows"]
    return {"validation": {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in (
        ("logits", (rows, config["classes"]), np.float16), ("labels", (rows,), np.int32),
        ("temperature", (), np.float32), ("smoothing", (), np.float32))}} if rows else {}


def no_validation(config):
    """The same arrays of no rows, which leave probabilities as they are."""
    return {"validation": {
        "logits": np.zeros((0, config["classes"]), np.float16), "labels": np.zeros(0, np.int32),
        "temperature": np.float32(1), "smoothing": np.float32(0)}}


def restore_latest(manager, state):
    """(state, metrics of its epochs) of the latest checkpoint; the state that is given where there is none."""
    if (step := manager.latest_step()) is None:
        return state, []
    found = restore_checkpoint(manager, step, **state, history=None)
    return {part: found[part] for part in state}, found["history"]


# --- saves ------------------------------------------------------------------------------------------------------------

class Saves:
    """Saves and logs epochs: a long one at its end, quick ones together. A context that saves, after an error, the best
    one that still waited. tracker: None in all processes but the first."""

    def __init__(self, manager, folder, tracker, seconds):
        self.manager, self.folder, self.tracker = manager, folder, tracker
        # Several processes would not wait equally long, and save together.
        self.seconds = seconds if jax.process_count() == 1 else 0
        self.best, self.losses, self.at = None, [], time.monotonic()

    def log_again(self, history):
        """Write and log the epochs of a checkpoint: a kill may have kept the last ones from that."""
        if history and self.tracker:
            write_metrics(self.folder, history)
            self.tracker.log(history, [])

    def epoch(self, step, state, history, losses, at_once):
        """After an epoch: save it where `at_once` or the last save was long ago, else keep it if it is the best.
        Returns whether it was saved."""
        metrics = history[-1] if BEST in history[-1] else None
        is_best = metrics is not None and epochs_since_best(history) == 0
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
            save_checkpoint(self.manager, *saved)
            if self.tracker:
                write_metrics(self.folder, saved[2])
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
