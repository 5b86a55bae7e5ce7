"""What a training prints: what is trained and where, a line for each epoch, and how far it is; what asks it to stop."""
import math
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

import model
from titles import costs, devices, runs

SURE = 3       # seconds of training after which its speed is known: the first chunks are slower than the others
DIFFERS = 1.1  # times as long, or as short, as was expected, is worth a line
TIME_UP = 1  # beside the numbers of signals that end a training, for none of them has it


class Place(NamedTuple):
    """Where a training stands among all that its command does."""
    started: float          # when it was asked for, as from time.time()
    deadline: float = None  # when it must stop
    others: float = 0.0     # seconds that those after it will take
    command: str = None     # that goes on, where it is not --resume with the run's name
    expected: costs.Costs = None    # of this training, where they are known before


class TimeIsUp(Exception):
    """Raised by a training that its deadline has ended, after saving; the message is for the user."""

    def __init__(self, message, folder):
        super().__init__(message)
        self.folder = folder


def sizes_of(variables):
    """{what: number} of a model's parameters and its table of vectors; megabytes as they are in memory."""
    table, params = variables["table"], jax.tree.leaves(variables["params"])
    return {"parameters": sum(x.size for x in params), "table_rows": len(table), "table_columns": table.shape[1],
            "megabytes": round((table.nbytes + sum(x.nbytes for x in params)) / 1e6, 1)}


def introduce(name, config, sizes):
    """Print what is trained and where: the configuration, sizes, and the loss that chance would give."""
    if not config["calibration_rows"] and devices.is_first():
        print("warning: the data has no validation rows, so the last epoch is kept, be it the best or not, what "
              "probabilities mean is not known, and no precision can be promised", file=sys.stderr)
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


def print_epoch(row, is_best=False):
    """One line of at most 100 characters; metrics.csv has the rest."""
    said = [f"{kind.replace('_', ' ')} " + ", ".join(f"{row[f'{split}_{kind}']:.4f} {split}" for split in (
        "train", "valid") if f"{split}_{kind}" in row) for kind in ("loss", "balanced_accuracy")]
    print(f"epoch {row['epoch']:>3}  " + "  ".join(said) + "  best" * is_best)


class Progress:
    """Prints how far a training is: every second on a terminal, else every ten seconds. Once, as soon as its speed is
    known, it says what the training costs by that, where it was expected to cost something else."""

    def __init__(self, config, rates, schedule, step, place):
        """rates: {a setting: the learning rate's name in a line}; schedule: train.schedule; step: of the begin; place:
        the training's Place."""
        self.config, self.rates = config, {rate: name for rate, name in rates.items() if rate in config}
        factor_of = {rate: schedule(config, rate) for rate in self.rates}

        def factors(step):
            return {rate: factor(step) for rate, factor in factor_of.items()}

        self.factors = jax.jit(factors)  # one program instead of one for each operation
        self.begun, self.first_step, self.printed = time.time(), step, 0
        self.place, self.expected = place, place.expected
        self.pauses, self.is_sure = [], False
        self.chunks, self.last = [], (step, None)  # (steps that are done, seconds) of the first chunk and of now

    def pause(self, seconds):
        """These seconds at the end of an epoch, which judging and saving took, are no part of the training's speed."""
        self.pauses.append(seconds)

    def speed(self):
        """Seconds of a step: without the first chunk, which is slower than the others, as soon as there is another."""
        (first, begun), (done, seconds) = self.chunks[0], self.chunks[-1]
        return (seconds - begun) / (done - first) if done > first else seconds / (done - self.first_step)

    def left(self, step):
        """Seconds that the training still takes after this step, by its speed so far."""
        config, epochs = self.config, self.config["epochs"]
        pauses = epochs - self.first_step * epochs // config["steps"] - len(self.pauses)
        pause = extra = 0.0
        if len(self.pauses) > 1:  # in the first one programs are compiled
            pause = sum(self.pauses[1:]) / len(self.pauses[1:])
        elif self.expected:
            # As slow as the steps are in comparison, but compiling.
            pause = (self.expected.judging * self.speed() / self.expected.step + self.expected.saving / epochs)
            extra = 0 if self.pauses else self.expected.compiling / 2  # the other half is done before the first step
        elif self.pauses:
            pause = self.pauses[0]
        return (config["steps"] - step) * self.speed() + pauses * pause + extra

    def show(self, step, loss):
        """step: of the chunk that was begun last. It is done where it is the first one of an epoch; else the one before
        it is, see train.train_chunks."""
        config, now = self.config, time.time()
        seconds, before = now - self.begun - sum(self.pauses), self.last
        self.last = step, len(self.pauses)
        self.chunks = [*self.chunks[:1], (step if before[1] != self.last[1] else before[0], seconds)]
        if not self.is_sure and seconds > SURE:
            self.is_sure = True
            self.correct(now - self.place.started + self.left(step))
        if now - self.printed < (1 if sys.stdout.isatty() else 10):
            return

        # Speed is that of this process: what came before --resume does not count, nor do pauses.
        self.printed = now
        epoch_steps = config["steps"] // config["epochs"]
        factors = self.factors(step)
        rates = ", ".join(f"{name} {config[rate] * float(factors[rate]):.1e}" for rate, name in self.rates.items())
        print(f"epoch {-(-step // epoch_steps):>3}/{config['epochs']} {step / config['steps']:6.1%}  loss {loss:7.4f}  "
              f"{rates}  {config['rows'] / epoch_steps / self.speed():9,.0f} titles/s  "
              f"{clock(now - self.begun)} elapsed  {clock(self.left(step))} left"
              + (f", {clock(self.left(step) + self.place.others)} of all" if self.place.others else ""), flush=True)

    def correct(self, seconds):
        """Say that the command will have taken so many seconds, where that is not what was expected."""
        if self.expected and not 1 / DIFFERS < seconds / self.expected.seconds < DIFFERS:
            print(f"costs about {costs.duration(seconds)} by the speed of its first steps", flush=True)


def clock(seconds):
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


@contextmanager
def requests(deadline=None):
    """A list that gets what asks a training to stop: TIME_UP at the deadline, and the numbers of Ctrl-C and SIGTERM,
    which in this block only ask."""
    stop, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda number, frame: stop.append(number))
    timer = threading.Timer(max(0, (deadline or 0) - time.time()), stop.append, [TIME_UP])
    timer.daemon = True
    if deadline:
        timer.start()
    try:
        yield stop
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(command, folder, step, number):
    """End a training after what has asked for it, of this number; command: the one that goes on."""
    said = f"stopped at step {step:,}; go on with: python {command}"
    if number == TIME_UP:
        raise TimeIsUp(f"the time is up: {said}", Path(folder))
    print(said)
    # The status that a shell gives to what a signal has ended.
    raise SystemExit(128 + number)
