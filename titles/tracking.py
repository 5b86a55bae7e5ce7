"""What MLflow gets of trainings and reports, at MLFLOW_TRACKING_URI or in mlflow.db where a command is run.

A training is an MLflow run, to which reports are added, those of several runs together to the first one's. Its
metrics:

    train/loss, train/balanced_accuracy, ...    after every epoch, of a sample of the training rows;
    train/step_loss                             of every chunk of steps
    valid/loss, valid/balanced_accuracy, ...    after every epoch, of the validation rows
    seconds, titles_per_second, temperature, smoothing    after every epoch
    valid_loss, valid_balanced_accuracy, ...    single values, of the best epoch
    test_balanced_accuracy, test_accuracy, ...  single values of reports, by split or file: those of the best
                                                checkpoint; test-latest_loss, test-best-training_loss (--prior)
    test_level_1_accuracy, test_answered_95, ...    the same of trees: of each level from the top, and what nodes
                                                answer where 95 % are promised to be right, test_precision_95 of it

MLflow's page draws groups (what stands before a slash) first, by name, so it begins with the curves; single values are
bars behind them. Its table of runs shows no metric by itself, so `experiment_page` leads to a view that does.

What a run's folder keeps (runs.py) and what a report says (report.py) do not belong here.
"""
import json
import os
import re
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import data
from titles import devices, files, runs
from titles.cli import UserError, public

# --- knobs ------------------------------------------------------------------------------------------------------------
VIEW = "scores"  # a view of MLflow's table of runs, which has these ...
COLUMNS = ("attributes.`Created`", "attributes.`Duration`", "attributes.`Dataset`", f"metrics.`{runs.BEST}`",
           "metrics.`test_balanced_accuracy`", "metrics.`test_accuracy`", "params.`model`")  # ... columns


def mlflow_uri():
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def mlflow_client():
    """(MLflow client, id of the experiment) at MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db. Raises UserError
    where it cannot be reached."""
    import logging
    # By default MLflow waits for minutes for a server that does not answer, and reports its use to its makers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    name, uri = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "titles", mlflow_uri()
    try:
        from mlflow import MlflowClient
        for noisy in ("alembic", "mlflow", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is said in one line, see below
        # Two processes that create the same database race in its migrations, so one waits for the other.
        with files.locked(database_file()) if database_file() else nullcontext():
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                raise ValueError(f"the experiment {name} was deleted; restore it, or set MLFLOW_EXPERIMENT_NAME")
            # Files are kept beside the database, wherever a script is run.
            beside = database_file() and (database_file().parent / "mlruns").as_uri()
            found = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=beside)
            # As MLflow's page itself keeps a view that somebody shares.
            if not experiment or f"mlflow.sharedViewState.{VIEW}" not in experiment.tags:
                with mlflow_warnings():
                    client.set_experiment_tag(found, f"mlflow.sharedViewState.{VIEW}", json.dumps({
                        "selectedColumns": COLUMNS, "orderByKey": COLUMNS[3], "orderByAsc": runs.BETTER is min}))
            return client, found
    except Exception as error:
        raise mlflow_error(error) from None


def mlflow_error(error):
    """What MLflow, its database or its connection raised, as a UserError."""
    return UserError(f"MLflow at {public(mlflow_uri())}: {public(' '.join(str(error).split()))[:300]}")


@contextmanager
def mlflow_warnings():
    """Turn what MLflow raises in the block into a warning: a silent server should not cost a training or a report."""
    try:
        yield
    except Exception as error:
        print(f"warning: not logged to {mlflow_error(error)}", file=sys.stderr)


def log_metrics(client, run_id, metrics):
    """Log MLflow metrics, 1,000 at a time: more it refuses."""
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start:start + 1000])


def log_report(client, run_id, name, scores, folder):
    """Log a report of this name, such as test-best: scores {name: number or None} and, unless its folder is None, its
    files."""
    from mlflow.entities import Metric
    # MLflow takes few characters besides letters and digits, and no more than 250. A single value, at step 0, is a bar
    # on its page.
    prefix, now = re.sub(r"[^\w.-]", "_", name.removesuffix("-best"))[-200:], int(time.time() * 1000)
    log_metrics(client, run_id, [Metric(f"{prefix}_{key}", value, now, 0) for key, value in scores.items()
                                 if value is not None])
    if folder and artifacts_are_here(client, run_id):
        client.log_artifacts(run_id, str(folder), folder.name)


def data_set(sources, name, digest, context, **facts):
    """A data set that a run has used, for MLflow's page. sources: the files of its rows, as from data.files_of; name
    and digest (at most 36 characters) tell it from others; context: training, validation, testing or evaluation; facts:
    what else is known of it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    profile = {"num_rows": sum(source["rows"] for source in sources), "files": sources, **facts}
    return DatasetInput(
        Dataset(name=name[-400:], digest=digest, source_type="local", profile=json.dumps(profile),
                source=json.dumps({"uri": " ".join(source["file"] for source in sources)})[:60_000]),
        [InputTag("mlflow.data.context", context)])


def split_set(prepared, split, context):
    """The same of a split of prepared data, as data.described tells it: it gets the names of the files that its rows
    come from, and the fingerprint of all that was prepared."""
    sources = data.files_of(prepared["source"], split)
    name = "synthetic titles" if prepared["synthetic"] else " + ".join(
        "/".join(Path(source["file"]).parts[-2:]) for source in sources)
    facts = {key: value for key, value in prepared.items() if key not in ("source", "fingerprint")}
    return data_set(sources, f"{name}, {split} split", prepared["fingerprint"], context, **facts)


def training_sets(config):
    """The data sets that a run has trained on and was chosen by; none of a run that was begun before it told them."""
    contexts = {"train": "training"} | ({"valid": "training" if "refit" in config else "validation"} if (
        config["calibration_rows"]) else {})
    return [split_set(config["data"], split, context) for split, context in contexts.items() if "data" in config]


def run_id_of(folder):
    """The id of the MLflow run of a training, in whose folder it stands."""
    return (folder / "mlflow.txt").read_text(encoding="utf-8").strip()


def artifacts_are_here(client, run_id):
    """Whether files can be logged to a run without writing into another project. The database keeps absolute paths,
    so a copy of a project still points to the original: then a warning says so."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    location, database = client.get_run(run_id).info.artifact_uri, database_file()
    if database is None or not location.startswith(("file:", "/")):
        return True
    # The files of a run lie in ROOT/mlruns/..., and ROOT is another project where it has a database of that name.
    path = Path(local_file_uri_to_path(location))
    root = next((folder.parent for folder in path.parents if folder.name == "mlruns"), None)
    if root in (None, database.parent) or (root.is_dir() and not (root / database.name).exists()):
        return True
    print(f"warning: not logged to MLflow: its database {database} keeps files in {root}/, as if it had been copied or "
          "moved from there", file=sys.stderr)
    return False


def database_file():
    """The path of MLflow's database; None where it is no SQLite file."""
    uri = mlflow_uri()
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def experiment_page(experiment):
    """Where a browser finds the runs of an experiment with their scores, and for a file what serves it, as one line;
    None for other stores."""
    uri = mlflow_uri()
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    if uri.startswith("http"):
        return f"{public(uri).rstrip('/')}/{page}"
    # The usual port of `mlflow ui`.
    return f"mlflow ui --backend-store-uri {uri}, then http://127.0.0.1:5000/{page}" if database_file() else None


class Tracker:
    """The MLflow run of a training, as a context. A server that stops answering costs warnings, not the training; what
    could not be logged is logged with the next save, or by --resume.
    """

    def __init__(self, store, folder, config, sizes, started):
        """Start the MLflow run, or go on with the one that this training has in this store: it is found by its tag,
        even if the training was killed just after it began the run. store: as from `mlflow_client`; sizes: {name:
        number} of the model; started: the time at which the seconds of its history are 0."""
        from mlflow.entities import Param, RunTag
        from mlflow.tracking.context.registry import resolve_tags
        client, experiment = store
        self.client, self.folder, self.config, self.started = client, folder, config, started
        self.history, self.losses, self.logged, self.keeps_files = [], [], -1, True

        # Who began this process, which script, and its git commit, as MLflow itself finds them; the address of a
        # repository may hold a password. Tags are written with the run, so a training killed just after finds it again.
        key = f"{folder.name} {config['created']}"
        tags = {name: value for name, value in resolve_tags().items() if not name.endswith("repoURL")}
        try:
            begun = client.search_runs([experiment], f"tags.training = '{key}'")
            self.run_id = (begun[0] if begun else client.create_run(
                experiment, int(1000 * started), tags | {"training": key}, folder.name)).info.run_id
        except Exception as error:
            raise mlflow_error(error) from None
        with files.atomic_write(folder / "mlflow.txt") as file:
            file.write(self.run_id + "\n")

        # What this store already has is not logged again.
        with mlflow_warnings():
            client.update_run(self.run_id, "RUNNING")
            logged = client.get_metric_history(self.run_id, "train/loss")
            self.logged = max((m.step for m in logged), default=-1)
            if not client.get_run(self.run_id).data.params:
                # Parameters are what a person would compare; config.json, an artifact, has the rest.
                params = [Param(name, str(value)[:6000]) for name, value in (runs.settings(config) | sizes).items()]
                client.log_batch(self.run_id, params=params, tags=[
                    RunTag("data", "synthetic" if config["synthetic"] else "real"), RunTag("device", devices.names())])
                client.log_inputs(self.run_id, training_sets(config))
            self.keeps_files = artifacts_are_here(client, self.run_id)
            if self.keeps_files and not client.list_artifacts(self.run_id, "source"):
                client.log_artifact(self.run_id, str(folder / "config.json"))
                client.log_artifacts(self.run_id, str(folder / "source"), "source")

    def log(self, history, losses):
        """Log the epochs not yet logged, and the training loss [(step, loss, time)] of chunks since the last call; the
        best epoch's values also as single ones, valid_loss and so on."""
        from mlflow.entities import Metric
        self.history, self.losses = history, [*self.losses, *losses]
        # Epochs and chunks stand at their last step, and at the time at which they were done.
        metrics = [Metric(re.sub("^(train|valid)_", r"\1/", key), value, int(1000 * (self.started + row["seconds"])),
                          row["step"])
                   for row in history if row["step"] > self.logged
                   for key, value in row.items() if key not in ("epoch", "step")]
        best = runs.best_epoch(history) if history else {"step": -1}
        metrics += [Metric(key, value, int(1000 * time.time()), 0) for key, value in best.items()
                    if best["step"] > self.logged and re.match("valid_(?!reliable)", key)]
        metrics += [Metric("train/step_loss", float(loss), int(1000 * at), step) for step, loss, at in self.losses]
        with mlflow_warnings():
            # Where this fails, what follows is not reached, and the next epoch tries again.
            log_metrics(self.client, self.run_id, metrics)
            self.logged, self.losses = max([self.logged, *(row["step"] for row in history)]), []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # Also after an error: what came before it is worth a look.
        with mlflow_warnings():
            if self.history:
                figure = runs.loss_figure(
                    self.history, f"{'SYNTHETIC data, ' if self.config['synthetic'] else ''}{self.folder.name}")
                with files.atomic_write(self.folder / "loss.png", "wb") as file:
                    figure.savefig(file, format="png", dpi=120)
                if self.keeps_files:
                    self.client.log_artifact(self.run_id, str(self.folder / "loss.png"))
        with mlflow_warnings():
            # In a block of its own: a figure that fails must not leave the run as running.
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "KILLED" if kind in (
                SystemExit, KeyboardInterrupt) else "FAILED")
