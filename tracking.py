"""What MLflow gets of trainings and reports, at MLFLOW_TRACKING_URI or in mlflow.db where a command is run.

What a run's folder keeps (runs.py) and what a report says (report.py) do not belong here.
"""
import json
import os
import re
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import files
import runs
from files import UserError


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
            if experiment:
                return client, experiment.experiment_id
            # Files are kept beside the database, wherever a script is run.
            beside = database_file() and (database_file().parent / "mlruns").as_uri()
            return client, client.create_experiment(name, artifact_location=beside)
    except Exception as error:
        raise mlflow_error(error) from None


def mlflow_error(error):
    """What MLflow, its database or its connection raised, as a UserError."""
    return UserError(f"MLflow at {public(mlflow_uri())}: {public(' '.join(str(error).split()))[:300]}")


def public(text):
    """A text without names and passwords that stand before the host of an address."""
    return re.sub(r"//[^/\s]*@", "//", text)


@contextmanager
def mlflow_warnings():
    """Turn what MLflow raises in the block into a warning: a silent server should not cost a training or a report."""
    try:
        yield
    except Exception as error:
        print(f"warning: not logged to MLflow ({public(' '.join(str(error).split()))[:200]})", file=sys.stderr)


def log_metrics(client, run_id, metrics):
    """Log MLflow metrics, 1,000 at a time: more it refuses."""
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start:start + 1000])


def metric_names(names):
    """Names that MLflow takes for these, tuples of str, different for different ones: a language may be anything. The
    page shows what stands before the last slash as a group."""
    result = []
    for name in names:
        group, *parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name)
        plain = "/".join([group[-140:], *(part[:60] for part in parts)])  # 250 characters are too many
        # Names that differ may be equal once characters are replaced; the later ones get a number.
        result.append(next(plain + end for i in range(len(result) + 1)
                           if plain + (end := f"_{i + 1}" if i else "") not in result))
    return result


def named_scores(scores):
    """{(name, ...): number} of all scores, those of slices and the weights of members included, for MLflow's page."""
    # Counts, names, intervals and what is missing are no floats, and are left out.
    values = {(name,): value for name, value in scores.items() if isinstance(value, float)}
    for part, row in scores["slices"].items():
        values |= {(part, name): value for name, value in row.items() if isinstance(value, float)}

    # A threshold that cannot be promised is None, which is no number for MLflow.
    for precision, row in scores["thresholds"].items():
        values |= {(f"precision {precision}", name): value for name, value in row.items() if value is not None}
    return values | {("weight", name): member["weight"] for name, member in scores.get("members", {}).items()}


def log_report(client, members, report, group, scores, command):
    """Log a report, the scores of its report.json as metrics in `group` and the files of the folder `report`, if not
    None: to the MLflow run of the training, or of several members [(folder, "best" or "latest")] to a run of their own.
    command: the one that makes the report."""
    from mlflow.entities import Metric
    run_id, now = member_run(members[0][0]), int(time.time() * 1000)
    if len(members) > 1:
        run_id = ensemble_run(client, members)
    named = named_scores(scores)
    names = metric_names([(group, *name) for name in named])
    log_metrics(client, run_id, [Metric(name, value, now, scores["step"])
                                 for name, value in zip(names, named.values(), strict=True)])
    trained = f", but {scores['trained_rows']} of {scores['rows']} rows trained it" if scores["trained_rows"] else ""
    describe(client, run_id, **{group: f"balanced accuracy {scores['balanced_accuracy']:.4f}, "
                                       f"accuracy {scores['accuracy']:.4f}{trained}, by `{command}`"})
    if report and artifacts_are_here(client, run_id):
        client.log_artifacts(run_id, str(report), report.name)
    # A training's run has ended before; that of several members ends with each report.
    if len(members) > 1:
        client.set_terminated(run_id)


def member_run(folder):
    """The id of a training's MLflow run."""
    return (folder / "mlflow.txt").read_text(encoding="utf-8").strip()


def ensemble_run(client, members):
    """The id of the MLflow run of several checkpoints together: the one that an earlier report began, or a new one,
    which links its members."""
    from mlflow.entities import Param
    # A tag of all members, which finds the run again.
    ids = [member_run(folder) for folder, _ in members]
    key = " ".join(f"{run_id}/{which}" for run_id, (_, which) in zip(ids, members, strict=True))
    experiment = client.get_run(ids[0]).info.experiment_id
    if begun := client.search_runs([experiment], f"tags.ensemble = '{key}'"):
        return begun[0].info.run_id
    names = [f"{folder.name}/{which}" for folder, which in members]
    run_id = client.create_run(experiment, run_name=" + ".join(names), tags=origin() | {"ensemble": key}).info.run_id
    client.log_batch(run_id, params=[Param("model", "several runs averaged"), Param("members", " ".join(names)[:6000])])
    describe(client, run_id, Members=", ".join(
        f"[{name}](#/experiments/{experiment}/runs/{run})" for name, run in zip(names, ids, strict=True)))
    return run_id


def origin():
    """{tag: value}: who began this process, which script, and its git commit, as MLflow itself finds them."""
    from mlflow.tracking.context.registry import resolve_tags
    # The address of a repository may hold a password.
    return {name: value for name, value in resolve_tags().items() if not name.endswith("repoURL")}


def describe(client, run_id, **said):
    """Write lines "- NAME: text" into the description of a run, in place of those that bear these names; what a person
    has written there stays. Where it would be longer than MLflow takes, it is left as it is."""
    lines = client.get_run(run_id).data.tags.get("mlflow.note.content", "").splitlines()
    for name, text in said.items():
        lines = [line for line in lines if not line.startswith(f"- {name}: ")] + [f"- {name}: {text}"]
    if len(note := "\n".join(lines)) <= 8000:
        client.set_tag(run_id, "mlflow.note.content", note)


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


def experiment_page(experiment):
    """Where a browser finds an experiment, and for a file what serves it, as one line; None for other stores."""
    uri, page = mlflow_uri(), f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"{public(uri).rstrip('/')}/{page}"
    # The usual port of `mlflow ui`.
    return f"mlflow ui --backend-store-uri {uri}, then http://127.0.0.1:5000/{page}" if database_file() else None


class Tracker:
    """The MLflow run of a training, as a context. A server that stops answering costs warnings, not the training; what
    could not be logged is logged with the next save, or by --resume.

    Metrics are grouped: train/ and valid/ of every epoch, valid-best/ of the best one, system/ of the machine every ten
    seconds. Reports have the group of their name, such as test-best/.
    """

    def __init__(self, client, experiment, folder, config, meta, sizes):
        """Start the MLflow run, or go on with the one that this training has in this store: it is found by its tag,
        even if the training was killed just after it began the run. meta: of the prepared data; sizes: {name:
        number} of the model."""
        self.client, self.folder, self.config = client, folder, config
        self.history, self.losses, self.logged, self.keeps_files, self.monitor = [], [], -1, True, None

        # The tag is written with the run, so a training killed just after finds it again.
        key = f"{folder.name} {config['created']}"
        try:
            begun = client.search_runs([experiment], f"tags.training = '{key}'")
            self.run_id = (begun[0] if begun else client.create_run(
                experiment, run_name=folder.name, tags=origin() | {"training": key})).info.run_id
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
                self.introduce(meta, sizes)
            self.keeps_files = artifacts_are_here(client, self.run_id)
            if self.keeps_files and not client.list_artifacts(self.run_id, "source"):
                client.log_artifact(self.run_id, str(folder / "config.json"))
                client.log_artifacts(self.run_id, str(folder / "source"), "source")
            self.monitor = system_monitor(self.run_id)

    def introduce(self, meta, sizes):
        """Log what is known before the first step: parameters, sizes, the data set and a description."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        import devices
        config = self.config

        # Parameters are what a person would compare; config.json, an artifact, has the rest.
        self.client.log_batch(
            self.run_id, tags=[RunTag("data", "synthetic" if config["synthetic"] else "real"),
                               RunTag("device", devices.names())],
            params=[Param(name, str(value)[:6000]) for name, value in (runs.settings(config) | sizes).items()])

        # The data set has the fingerprint of the prepared arrays as its digest.
        paths = [source["file"] for source in meta["source"]]
        name = "/".join(Path(paths[0]).parts[-2:]) if paths and not config["synthetic"] else "synthetic titles"
        facts = {key: meta[key] for key in ("rows", "categories", "vocabulary", "languages", "reliable_share",
                                            "unknown_share", "mean_words", "cut_share")}
        self.client.log_inputs(self.run_id, [DatasetInput(Dataset(
            name=name[-400:], digest=config["fingerprint"], source_type="local",
            source=json.dumps({"uri": " ".join(paths)})[:60_000], profile=json.dumps(facts)),
            [InputTag("mlflow.data.context", "training")])])
        describe(
            self.client, self.run_id, Data=f"{name}, {config['rows']:,} training rows, {config['classes']:,} categories"
            f"{' (SYNTHETIC)' * config['synthetic']}", Model=config["model"],
            Command=f"`{runs.training_command(self.folder, config)}`")

    def log(self, history, losses):
        """Log the epochs not yet logged, and the training loss [(step, loss, time)] of chunks since the last call. The
        best epoch's values stand beside the last one's, as valid-best/loss and so on."""
        from mlflow.entities import Metric
        self.history, self.losses = history, [*self.losses, *losses]
        # Epochs stand at their last step; chunks have the time at which they were done, as well.
        now = int(time.time() * 1000)
        metrics = [Metric(grouped(key), value, now, row["step"]) for row in history if row["step"] > self.logged
                   for key, value in row.items() if key not in ("epoch", "step")]
        best = runs.best_epoch(history) if history else {"step": -1}
        metrics += [Metric(key.replace("valid_", "valid-best/"), value, now, best["step"])
                    for key, value in best.items() if best["step"] > self.logged and key.startswith("valid_")]
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
            if self.monitor:
                self.monitor.finish()
            if self.history:
                figure = runs.loss_figure(self.history, self.config["synthetic"])
                with files.atomic_write(self.folder / "loss.png", "wb") as file:
                    figure.savefig(file, format="png", dpi=120)
                if self.keeps_files:
                    self.client.log_artifact(self.run_id, str(self.folder / "loss.png"))
                best = runs.best_epoch(self.history)
                if "valid_balanced_accuracy" in best:
                    describe(self.client, self.run_id, Validation=f"balanced accuracy "
                             f"{best['valid_balanced_accuracy']:.4f} at the best of {len(self.history)} epochs, "
                             f"{best['epoch']}")
        with mlflow_warnings():
            # In a block of its own: a figure that fails must not leave the run as running.
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "KILLED" if kind in (
                SystemExit, KeyboardInterrupt) else "FAILED")


def grouped(key):
    """The MLflow metric for a column of metrics.csv."""
    if key.startswith(("train_", "valid_")):
        return key.replace("_", "/", 1)
    # What is fitted to validation rows, and the speed of the training.
    return f"{'valid' if key in ('temperature', 'smoothing') else 'train'}/{key}"


def system_monitor(run_id):
    """MLflow's own thread that logs the load of processors, memory and disk until its `finish`."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=mlflow_uri())
    monitor.start()
    return monitor
