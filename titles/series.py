"""Several trainings with one command: which ones, what is there already, what fits into a time, what comes of them.

A training is the same as that of a command of its own; here is only in which order they come and which are left out.
train.py trains, configuration.py says what decides a run, costs.py what a training will take.
"""
import gc
import json
import math
import os
import sys
import threading
import time
from argparse import Namespace
from contextlib import contextmanager, suppress
from typing import NamedTuple

import jax

import data
from titles import cli, configuration, costs, devices, measures, predict, runs
from titles.cli import UserError
from titles.progress import Place, TimeIsUp, clock
from titles.settings import all_of

# --- knobs ------------------------------------------------------------------------------------------------------------
# With --within: the model that adds the most to those before it comes first (EXPERIMENTS.md, "All scores").
USEFUL = ("mlp", "encoder", "cnn", "rnn", "transformer")
LEAST_EPOCHS = 0.5  # share of a training's epochs: where fewer fit and another run is there, it is left out
RESERVE = 0.05, 3   # share of the time, and seconds, that are kept for the last checkpoint and for what comes of all


class Calls(NamedTuple):
    """What train.py does with a training."""
    train: object      # function of (args, plan, place): trains, and returns the run's folder
    expected: object   # function of (plan, save_seconds): its costs.Costs, or None where they are not known before


class Step(NamedTuple):
    """A training that a command asks for."""
    says: str                  # what it is, such as `cnn, seed 1`
    plan: configuration.Plan   # as of a new run; of a refit that of its base
    expected: costs.Costs      # of that plan, or None
    base: int = None           # of a refit: the number of the step that it is a refit of
    more: float = 1.0          # times as many rows as the plan's

    @property
    def seconds(self):
        return self.expected.seconds * self.more if self.expected else 0.0


# --- the command ------------------------------------------------------------------------------------------------------

def run(table, args, calls, started):
    """Do what a command of train.py asks for. table: a configuration.Table; calls: Calls; started: when the command
    began, as from time.time(). All that can be refused is refused by a UserError before the first training begins."""
    one = "--resume" if args.resume else "--refit" if args.refit else None
    several = len(args.models) > 1 or args.seeds > 1 or "" in (args.refit, args.resume)
    if several and one:
        raise UserError(f"{one} NAME goes on with one run; leave several models, --seeds and what has no name "
                        "(--refit, --resume) out")
    if args.costs and args.resume:
        raise UserError("--costs: tells what a new training takes; leave --resume out")
    deadline = args.within and started + args.within * (1 - RESERVE[0]) - RESERVE[1]
    with ended_at(args.within and started + args.within):
        prepared = configuration.read_prepared(args)
        if several or (deadline and not one):
            series = Series(table, args, prepared, calls, deadline)
            return series.say_costs(started) if args.costs else series.run(calls.train, started)
        plans = [configuration.plan(table, args, prepared)]
        if args.costs:
            return say_costs(plans[0].config["model"], calls.expected(plans[0], args.save_seconds),
                             time.time() - started)
        prepared = None
        try:
            calls.train(args, plans.pop(), Place(started, deadline))  # which has it alone, to let its arrays go
        except TimeIsUp as error:
            print(error)


@contextmanager
def ended_at(limit):
    """End the program at this time, as from time.time(), where it is still in the block: in the middle of something
    that looks at no clock, such as compiling. What it has kept is whole, as after any kill."""
    def end():
        print("error: --within: the time is over in the middle of what cannot be cut short; nothing that was saved is "
              "lost, the same command goes on", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(max(0, (limit or 0) - time.time()), end)
    timer.daemon = True
    if limit:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say_costs(what, found, passed):
    """Print what a training costs; passed: seconds that its command has taken."""
    if found is None:
        return print(f"{what}: how long several devices take together is told while they train", flush=True)
    print(f"{what} {costs.said(found._replace(before=found.before + passed))}", flush=True)
    costs.warn(found)


def single(args, left_out=(), **changes):
    """The arguments of a command for one training, of one for several; left_out: names of those it does not have."""
    kept = {name: value for name, value in vars(args).items() if name not in left_out}
    return Namespace(**kept | {"models": [], "seeds": 1, "name": None, "refit": None, "resume": None} | changes)


# --- which trainings --------------------------------------------------------------------------------------------------

def steps_of(table, args, prepared, calls):
    """[Step] of a command in their order: all models of a seed, then their refits, then the next seed."""
    models = args.models or [None]
    if args.within:
        models = sorted(models, key=lambda name: USEFUL.index(name) if name in USEFUL else len(USEFUL))
    plans = plans_of(table, args, prepared, models)
    if plans[0].config["seed"] + args.seeds > 1 << 32:
        raise UserError(f"--seeds {args.seeds}: the last seed is too large; begin with a smaller --seed")
    expected = [calls.expected(plan, args.save_seconds) for plan in plans]

    steps = []
    for number in range(args.seeds):
        first = len(steps)
        for plan, found in zip(plans, expected, strict=True):
            model, seed = plan.config["model"], plan.config["seed"] + number
            plan = configuration.changed(plan, seed=seed)
            if args.name:
                parts = [args.name, *([model] if len(models) > 1 else []), *([str(seed)] if args.seeds > 1 else [])]
                plan = plan._replace(folder=args.runs / "-".join(parts), named=True)
            steps.append(Step(f"{model}, seed {seed}" if args.seeds > 1 else model, plan, found))
        if args.refit == "":
            if not plans[0].meta["rows"]["valid"]:
                raise UserError("--refit: there are no validation rows, so a refit would have the same rows; leave it "
                                "out")
            for i, step in enumerate(steps[first:], first):
                rows = step.plan.meta["rows"]
                more = 1 + rows["valid"] / rows["train"]
                steps.append(Step(f"{step.says}, refit", step.plan, step.expected, i, more))
    return steps


def plans_of(table, args, prepared, models):
    """The Plan of a new run of each model. A setting that only some of them use is of these alone."""
    plans, unused = [], []
    for name in models:
        unused.append({})
        while len(plans) < len(unused):
            try:
                one = single(args, unused[-1], **{"model": name} if name else {})
                plans.append(configuration.plan(table, one, prepared))
            except configuration.InVain as error:
                unused[-1][error.name] = error
    for setting in set.intersection(*map(set, unused)):
        raise unused[-1][setting]
    return plans


def same_run(plan, runs_folder, least):
    """(folder of the run that a plan of a new one would only repeat, by settings, data and scripts, whether nothing is
    left to train of it), or None. least: epochs that are enough."""
    # Where the data came from does not matter, if it is the same.
    free = {"created", "checksum", "source", "versions", "data"}
    free |= {"epochs", "steps"} if least < plan.config["epochs"] else set()

    def compared(config):
        return {name: value for name, value in json.loads(json.dumps(config)).items() if name not in free}

    found, wanted = [], compared(plan.config)
    for folder, config in runs.all_runs(runs_folder, plan.config["fingerprint"]):
        if (not plan.named or folder.name == plan.folder.name) and compared(config) == wanted and (
                config["epochs"] >= least and not runs.changed_source(folder, config)):
            history = runs.history_of(folder)
            found.append((runs.is_over(config, history), len(history), config["created"], folder))
    is_over, *_, folder = max(found, default=(None, None))
    return folder and (folder, is_over)


# --- one after the other ----------------------------------------------------------------------------------------------

class Series:
    """The trainings of a command while they are done."""

    def __init__(self, table, args, prepared, calls, deadline):
        self.table, self.args, self.prepared, self.deadline = table, args, prepared, deadline
        self.steps = steps_of(table, args, prepared, calls)
        self.folders = {}                    # number of a step: the folder of its run
        self.stopped = False                 # whether the time is up
        self.took, self.expected = 0.0, 0.0  # seconds of the trainings that were done here, and what was expected

        # A name that another run has is refused before anything is trained.
        for number, step in enumerate(self.steps):
            if step.plan.named and not self.there(number):
                folder = step.plan.folder if step.base is None else runs.refit_folder(step.plan.folder)
                runs.new_folder(args.runs, folder.name, step.plan.config["model"])

    def there(self, number):
        """(folder of the run that a step would only repeat, whether nothing is left to train of it), or None."""
        step = self.steps[number]
        if step.base is None:
            epochs = step.plan.config["epochs"]
            least = min(self.fit(number), math.ceil(LEAST_EPOCHS * epochs)) if self.deadline else epochs
            return same_run(step.plan, self.args.runs, least)
        base = self.folders.get(step.base) or (self.there(step.base) or [None])[0]
        refit = base and runs.refit_of(base)
        return refit and (refit[0], runs.is_over(refit[1], runs.history_of(refit[0])))

    def left(self):
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.time()) if self.deadline else math.inf

    def fit(self, number):
        """The epochs of a step that fit into the time that is left."""
        epochs, seconds, left = self.steps[number].plan.config["epochs"], self.seconds_of(number), self.left()
        return epochs if seconds <= left else int(epochs * left / seconds)

    def seconds_of(self, number):
        """The seconds that a step will take, by what those before it took."""
        step, base = self.steps[number], self.folders.get(self.steps[number].base)
        if base and (history := runs.history_of(base)):
            # A refit has the epochs of the best checkpoint.
            epochs = runs.best_epoch(history)["epoch"] / history[-1]["epoch"]
            return history[-1]["seconds"] * epochs * step.more
        return step.seconds * (self.took / self.expected if self.expected else 1)

    def decided(self, number):
        """What to do with a step: {what: of which run, why, or how many epochs}."""
        step, there = self.steps[number], self.there(number)
        if there and there[1]:
            return {"there": there[0].name}
        if step.base is not None and step.base not in self.folders:
            return {"left out": "as what it would be a refit of"}
        if self.stopped:
            return {"left out": "as the time is up"}
        if there:
            return {"resume": there[0].name}
        epochs, fit = step.plan.config["epochs"], self.fit(number)
        if fit < epochs and (step.base is not None or (self.folders and fit < LEAST_EPOCHS * epochs)):
            return {"left out": f"it would take about {clock(self.seconds_of(number))}, and {clock(self.left())} are "
                    "left"}
        return {"refit": self.folders[step.base].name} if step.base is not None else {"epochs": max(1, fit)}

    def plan(self, step, decided):
        """The Plan of a step, after `decided`."""
        if "epochs" in decided:
            return configuration.changed(step.plan, epochs=decided["epochs"])
        run_settings = {setting.name for setting in all_of(self.table.settings)}
        return configuration.plan(self.table, single(self.args, run_settings, init_from=None, **decided), self.prepared)

    def run(self, train, started):
        """Do all, by train(args, plan, place)."""
        self.announce()
        failed = 0
        for number, step in enumerate(self.steps):
            # All processes must do the same, whatever each sees of the disk and the clock.
            decided = json.loads(devices.from_first(json.dumps(self.decided(number))))
            if name := decided.get("there"):
                print(f"{step.says}: is there already, as {name}")
                self.folders[number] = self.args.runs / name
                continue
            if why := decided.get("left out"):
                print(f"{step.says}: left out, {why}")
                continue
            elapsed, begun = clock(time.time() - started), time.time()
            print(f"--- {number + 1} of {len(self.steps)}: {step.says}; {elapsed} elapsed ---")
            try:
                self.folders[number] = train(self.args, self.plan(step, decided), Place(
                    begun if number else started, self.deadline, self.seconds_after(number),
                    cli.quoted(sys.argv), self.expected_of(step, decided)))
            except TimeIsUp as error:
                print(error)
                self.stopped = True
                if step.base is None and runs.best_epoch(runs.history_of(error.folder)):
                    self.folders[number] = error.folder
            except UserError as error:
                # Such as a loss that is no longer finite: the other models can be trained all the same. Of several
                # processes each has errors of its own.
                if jax.process_count() > 1:
                    raise
                print(f"error: {step.says}: {error}", file=sys.stderr)
                failed += 1
            else:
                if "epochs" in decided:
                    self.took += time.time() - begun
                    self.expected += step.seconds * decided["epochs"] / step.plan.config["epochs"]
            gc.collect()  # what one training had in memory must not lie beside the next one's

        self.end()
        if failed:
            raise UserError(f"{failed} of {len(self.steps)} trainings failed, see above")

    def expected_of(self, step, decided):
        """The costs.Costs of a step, where they are those of a new run for all its epochs."""
        return step.expected if decided.get("epochs") == step.plan.config["epochs"] else None

    def seconds_after(self, number):
        """Seconds that the steps behind one will take."""
        return sum(self.seconds_of(i) for i in range(number + 1, len(self.steps)) if not self.there(i))

    def say_costs(self, started):
        """Print what each training costs, and all that are not there yet."""
        passed, left = time.time() - started, self.not_there()
        for i, step in enumerate(self.steps):
            if i not in left:
                print(f"{step.says}: is there already, as {self.there(i)[0].name}")
            elif step.base is None:
                say_costs(step.says, step.expected, passed)
        if left and all(step.expected for step in self.steps):
            print(f"all {len(left)} about {costs.duration(passed + sum(self.steps[i].seconds for i in left))}" + (
                ", with their refits" if self.args.refit == "" else ""))

    def not_there(self):
        """The numbers of the steps that are to be trained."""
        return [i for i in range(len(self.steps)) if not (there := self.there(i)) or not there[1]]

    def announce(self):
        """Print what is to be done and, where it is known, how long it will take."""
        left, said = [self.steps[i] for i in self.not_there()], ""
        if left and all(step.expected for step in left):
            said = f", in about {clock(sum(step.seconds for step in left))}"
            said += ": " + ", ".join(f"{step.says} {clock(step.seconds)}" for step in left)
        print(f"{len(left)} of {len(self.steps)} trainings to do{said}")

    def members(self):
        """The folders of what came of all: of each training its refit, where there is one."""
        found = dict(self.folders)
        for number, step in enumerate(self.steps):
            if step.base is not None and number in found:
                found[step.base] = found.pop(number)
        return [*found.values()]

    def end(self):
        """Calibrate together what was trained, and say how to use it."""
        folders, others = self.members(), runs.other_folders(self.args)
        if not folders:
            raise UserError("no training came to the end of an epoch, so there is nothing to use yet; the same command "
                            "goes on")
        names = [folder.name for folder in folders]
        if len(names) > 1:
            # Weights and temperature are fitted as evaluate.py and export.py will fit them.
            together = predict.load(*names, folder=self.args.runs)
            weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, together.weights, strict=True))
            has_refits = any("refit" in config for config, _ in together.members)
            if together.is_calibrated:
                labels = together.validation[0]["labels"]
                score = measures.balanced_accuracy(labels, together.combined_kept().argmax(1))
                print(f"all together: balanced accuracy {score:.4f} on {len(labels):,} validation rows"
                      f"{', of the runs before their refits' if has_refits else ''}; weights {weights}")
        is_all, fingerprint = False, self.steps[0].plan.config["fingerprint"]
        if data.fingerprint_of(self.args.data) != fingerprint:
            print(f"warning: {cli.listed(self.args.data)}: was prepared anew meanwhile, so these runs have learned "
                  "other data than it holds now; classify with them (--predict), or train again", file=sys.stderr)
        with suppress(UserError):  # of a damaged run that is none of these
            of_all = runs.find_all(self.args.runs, fingerprint)
            is_all = {folder.resolve() for folder, _ in of_all} == {folder.resolve() for folder in folders}
        print(f"test {'them' if len(names) > 1 else 'it'}: python evaluate.py --ckpt "
              f"{'all' if is_all and len(names) > 1 else ' '.join(names)}{others}")
