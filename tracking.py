"""What MLflow gets of trainings and reports, at MLFLOW_TRACKING_URI or in mlflow.db where a command is run.

What a run's folder keeps (runs.py) and what a report says (report.py) do not belong here.
"""
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import files
import runs
from files import UserError


def mlflow_uri():
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def mlflow_client():
    """(MLflow client, id of the experiment) at MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db. Raises UserError
    where it cannot be reached."""
    import fcntl
    import logging
    # By default MLflow waits for minutes for a server that does not answer, and reports its use to its makers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    name, uri = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "titles", mlflow_uri()
    try:
        from mlflow import MlflowClient
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is said in one line, see below
        # Two processes that create the same database race in its migrations, so one waits for the other.
        lock = f"{uri.removeprefix('sqlite:///')}.lock" if uri.startswith("sqlite:///") else os.devnull
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                raise ValueError(f"the experiment {name} was deleted; restore it, or set MLFLOW_EXPERIMENT_NAME")
            if experiment:
                return client, experiment.experiment_id
            # Files are kept beside the database, wherever a script is run.
            beside = database_file() and (database_file().parent / "mlruns").as_uri()
            return client, client.create_experiment(name, artifact_location=beside)
    except Exception as error:
        raise mlflow_error(error) from None


def mlflow_error(error):
    """What MLflow, its database or its connection raised, as a UserError."""
    return UserError(f"MLflow at {mlflow_uri()}: {' '.join(str(error).split())[:300]}")


@contextmanager
def mlflow_warnings():
    """Turn what MLflow raises in the block into a warning: a silent server should not cost a training or a report."""
    try:
        yield
    except Exception as error:
        print(f"warning: not logged to MLflow ({' '.join(str(error).split())[:200]})", file=sys.stderr)


def log_metrics(client, run_id, metrics):
    """Log MLflow metrics, 1,000 at a time: more it refuses."""
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start:start + 1000])


def metric_names(names):
    """{name: one that MLflow takes}, different for different names: a language may be anything."""
    result = {}
    for name in names:
        plain = re.sub(r"[^\w.\- ]", "_", name)[:200]
        taken = set(result.values())
        # Names that differ may be equal once characters are replaced; the later ones get a number.
        result[name] = next(plain + end for i in range(len(taken) + 1)
                            if plain + (end := f"_{i + 1}" if i else "") not in taken)
    return result


def log_report(client, folder, report, scores, step):
    """Add scores {name: float} and the files in the folder `report` to the MLflow run of the training in `folder`."""
    from mlflow.entities import Metric
    run_id, now = (folder / "mlflow.txt").read_text().strip(), int(time.time() * 1000)
    names = metric_names(scores)
    log_metrics(client, run_id, [Metric(names[name], value, now, step) for name, value in scores.items()])
    if artifacts_are_here(client, run_id):
        client.log_artifacts(run_id, str(report), report.name)


def artifacts_are_here(client, run_id):
    """Whether files can be logged to a run without writing into another project. The database keeps absolute paths,
    so a copy of a project still points to the original: then a warning says so."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    location, database = client.get_run(run_id).info.artifact_uri, database_file()
    if database is None or not location.startswith(("file:", "/")):
        return True
    # The files of a run lie in ROOT/mlruns/..., and ROOT is another project where it has a database of that name.
    path = Path(local_file_uri_to_path(location))
    at = len(path.parts) - path.parts[::-1].index("mlruns") - 1 if "mlruns" in path.parts else len(path.parts) - 3
    root = Path(*path.parts[:at])
    if root == database.parent or (root.is_dir() and not (root / database.name).exists()):
        return True
    print(f"warning: not logged to MLflow: its database {database} keeps files in {root}/, as if it had been copied or "
          "moved from there", file=sys.stderr)
    return False


def database_file():
    """The path of MLflow's database; None where it is no SQLite file."""
    uri = mlflow_uri()
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


class Tracker:
    """The MLflow run of a training, as a context. A server that stops answering costs warnings, not the training; what
    could not be logged is logged with the next epoch, or by --resume."""

    def __init__(self, client, experiment, folder, config, statistics):
        """Start the MLflow run, or go on with the one that this training has in this store: it is found by its tag,
        even if the training was killed just after it began the run. `statistics` are logged beside the configuration.
        """
        from mlflow.entities import Param, RunTag
        self.client, self.folder, self.config = client, folder, config
        self.history, self.losses, self.logged, self.keeps_files = [], [], -1, True

        # The tag is written with the run, so a training killed just after finds it again.
        key = f"{folder.name} {config['created']}"
        try:
            begun = client.search_runs([experiment], f"tags.training = '{key}'")
            self.run_id = (begun[0] if begun else client.create_run(
                experiment, run_name=folder.name, tags={"training": key})).info.run_id
        except Exception as error:
            raise mlflow_error(error) from None
        with files.atomic_write(folder / "mlflow.txt") as file:
            file.write(self.run_id + "\n")

        # What this store already has is not logged again.
        with mlflow_warnings():
            client.update_run(self.run_id, "RUNNING")
            logged = client.get_metric_history(self.run_id, "train_loss")
            self.logged = max((m.step for m in logged), default=-1)
            # MLflow takes a parameter once, and no more than 6,000 characters of it.
            if not client.get_run(self.run_id).data.params:
                client.log_batch(
                    self.run_id, params=[Param(key, str(value)[:6000]) for key, value in (statistics | config).items()],
                    tags=[RunTag("data", "synthetic" if config["synthetic"] else "real")])
            self.keeps_files = artifacts_are_here(client, self.run_id)
            if self.keeps_files and not client.list_artifacts(self.run_id, "source"):
                client.log_artifacts(self.run_id, str(folder / "source"), "source")

    def log(self, history, losses):
        """Log the epochs not yet logged, and the training loss [(step, loss, time)] of the chunks of the last one. The
        best epoch's values stand beside the last one's, as best_valid_loss and so on."""
        from mlflow.entities import Metric
        self.history, self.losses = history, [*self.losses, *losses]
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, row["step"]) for row in history if row["step"] > self.logged
                   for key, value in row.items() if key not in ("epoch", "step")]
        best = runs.best_epoch(history) if history else {"step": -1}
        metrics += [Metric(f"best_{key}", value, now, best["step"]) for key, value in best.items()
                    if best["step"] > self.logged and key.startswith("valid")]
        metrics += [Metric("step_loss", float(loss), int(1000 * at), step) for step, loss, at in self.losses]
        with mlflow_warnings():
            # Where this fails, what follows is not reached, and the next epoch tries again.
            log_metrics(self.client, self.run_id, metrics)
            self.logged, self.losses = max([self.logged, *(row["step"] for row in history)]), []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # Also after an error: the curves then show where it went wrong.
        with mlflow_warnings():
            if self.history:
                figure = runs.loss_figure(self.history, self.config["synthetic"])
                with files.atomic_write(self.folder / "loss.png", "wb") as file:
                    figure.savefig(file, format="png", dpi=120)
                if self.keeps_files:
                    self.client.log_artifact(self.run_id, str(self.folder / "loss.png"))
        with mlflow_warnings():
            # In a block of its own: a figure that fails must not leave the run as running.
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "KILLED" if kind in (
                SystemExit, KeyboardInterrupt) else "FAILED")
