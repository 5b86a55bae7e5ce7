"""What a training will cost before it is paid: seconds and peak memory, from its sizes and a few measured operations.

The loop and the judging are traced, not compiled: that tells which operations they are made of, also where a module or
the loss was edited. Those that take longest are run by themselves, at their own sizes, on the device that is here; the
others are taken to be as quick as their like. Memory is that of the arrays, by their shapes. What comes on top whatever
the model is (libraries, MLflow, compiling) are the constants below; docs/performance.md compares all with trainings.

How far a training is, and what is left of it by its own speed, is told by progress.py.
"""
import functools
import math
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

import classify
import data
import model
from titles import calibration, devices, predict, start

# --- knobs ------------------------------------------------------------------------------------------------------------
TIMED = 8            # operations that are run by themselves, at most
TURNS, LONG = 5, 0.05  # times that each is run, and seconds after which no further turn begins; the quickest counts
PART = 1 << 22       # bytes of rows gathered or added while that is timed, and of their table: most words come often
ALL = 1.3            # times as long as by themselves operations take together, which do not find their arrays in caches
ROWS = 8             # training rows that the loop is traced with; no operation of a step looks at all rows
COMPILE = {"cpu": 0.005}, 0.015  # seconds to compile an operation, by the kind of device, and on any other
ARRANGE = 1.5e-7     # seconds for an id of a training row before the first step: counts, weights, the way to the device
FITTING = 30         # times that the loss is computed while a temperature is fitted
SAVE, DISK = 0.3, 2e8    # seconds of a save (Orbax, MLflow, the figure), and bytes of arrays that are written a second
BEGIN, END = 2.5, 1.0  # seconds of random numbers and until MLflow is connected, and of MLflow's end
PROGRAMS = 3         # that score, compiled in half the time: by length of titles; for scores, samples and calibration
PRODUCT = 0.03       # of the time that it takes to gather a number, a multiplication
NUMBER = 1e-10       # seconds for a number of what is no operation by itself, until that is measured
QUICK = 2.0          # seconds of all steps, guessed, below which they are little beside all else, and none is measured
LIBRARIES = 2.6e8    # bytes of MLflow, Orbax, SciPy and Matplotlib, which are loaded after the plan is made
PROGRAM = 1e5        # bytes that stay of compiling an operation
# Operations that the compiler makes a part of others, and those that it runs by themselves. Any other takes its time
# for every number that comes out of it, or of a sum that goes in.
FREE = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "sharding_constraint", "slice", "iota",
        "stop_gradient"}
ALONE = {"dot_general", "gather", "scatter-add"}


class Costs(NamedTuple):
    """What a training takes, from its plan to its end."""
    before: float   # seconds until its first step: arrays, compiling the loop, MLflow
    compiling: float    # seconds to compile what judges, most of it in the first epoch
    steps: int
    step: float     # seconds, on average
    epochs: int
    judging: float  # seconds of an epoch: vectors of words, scores, calibration
    saving: float   # seconds of all saves, and of the end
    bytes: int      # that the process has at its peak
    device: int     # bytes of arrays on the device; on a CPU they are among the others

    @property
    def seconds(self):
        return self.before + self.compiling + self.steps * self.step + self.epochs * self.judging + self.saving


class Loop(NamedTuple):
    """What train.py makes of a configuration."""
    optimizer: object    # of make_optimizer
    chunk: object        # of make_train_chunk
    arrays: object       # function of (features, rows, frozen variables): training_arrays
    sample: int          # training rows that are judged after an epoch
    save_seconds: float  # from one save to the next, at least


# --- operations -------------------------------------------------------------------------------------------------------

def operations(jaxpr, times=1):
    """[(equation, how often it is run)] of a jaxpr, and of the loops and calls in it. Of a loop that ends by a
    condition once."""
    found = []
    for equation in jaxpr.eqns:
        inner = [part for value in equation.params.values() for part in jaxprs(value)]
        if inner and equation.primitive.name not in ALONE:  # how rows are added is such a part of it, too
            often = times * equation.params["length"] if equation.primitive.name == "scan" else times
            found += [one for part in inner for one in operations(part, often)]
        else:
            found.append((equation, times))
    return found


def jaxprs(value):
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, (tuple, list)):
        return [part for one in value for part in jaxprs(one)]
    closed = isinstance(value, jax.extend.core.ClosedJaxpr)
    return [value.jaxpr] if closed else [value] if isinstance(value, jax.extend.core.Jaxpr) else []


def shapes_of(variables):
    return [x.aval.shape for x in variables]


def size_of(equation):
    """How much an equation has to do: numbers, or of a product of matrices multiplications."""
    name, out = equation.primitive.name, (shapes_of(equation.outvars) or [(0,)])[0]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(out) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, axes = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
        return math.prod(out) * math.prod(kernel) // kernel[axes[0]]
    if name == "scatter-add":
        return math.prod(equation.invars[2].aval.shape)
    return max(map(math.prod, [out, *shapes_of(equation.invars)] if name.startswith(("reduce", "arg")) else [out]))


def is_alone(equation):
    """Whether the compiler runs an operation by itself. What is gathered from elsewhere than rows is a part of what it
    is gathered for."""
    name, numbers = equation.primitive.name, equation.params.get("dimension_numbers")
    has_keys = any(jnp.issubdtype(x.aval.dtype, jax.dtypes.extended) for x in equation.invars)  # of random numbers
    return name in ALONE and not has_keys and (name != "gather" or 0 in numbers.start_index_map)


class Rates:
    """How quick this device is. What was measured once is kept."""

    def __init__(self):
        self.measured = {}  # {what decides how long an operation takes: (its name, its size, seconds)}
        self.number = NUMBER

    @functools.cached_property
    def measured_number(self):
        """The same seconds as this device takes: those of a loss and its gradient, by their count."""
        x = np.random.default_rng(0).random((512, 256), np.float32)
        traced = jax.jit(jax.grad(
            lambda x, y: (jax.nn.logsumexp(jnp.tanh(x * y) + x, -1) ** 2).sum(), (0, 1))).trace(x, x)
        x = jax.device_put(x)
        return quickest(traced.lower().compile(), x, x) / sum(
            size_of(equation) for equation, _ in operations(traced.jaxpr.jaxpr) if equation.primitive.name not in FREE)

    @functools.cached_property
    def call(self):
        """Seconds to call a program, which is no part of what it does."""
        return quickest(jax.jit(lambda x: x + 1).lower(np.float32(0)).compile(), np.float32(0))

    def seconds(self, found, measure=TIMED):
        """Seconds that `operations` take. Those that take longest are measured, at most so many."""
        counted, total = {}, 0.0
        self.number = self.measured_number if measure else self.number
        for equation, times in found:
            if is_alone(equation):
                key = (equation.primitive.name, *shapes_of(equation.invars), str(equation.params["dimension_numbers"]))
                counted[key] = equation, counted.get(key, (None, 0))[1] + times
            elif equation.primitive.name not in FREE:
                total += times * size_of(equation) * self.number

        def guess(key):
            equation, times = counted[key]
            return times * size_of(equation) * (PRODUCT if key[0] == "dot_general" else 1)

        for key in sorted(counted, key=guess, reverse=True)[:measure]:
            if key not in self.measured:
                size, seconds = timed(counted[key][0])
                self.measured[key] = key[0], size, max(seconds - self.call, 1e-7)
        return ALL * (total + sum(times * self.of(key, size_of(one)) for key, (one, times) in counted.items()))

    def of(self, key, size):
        """Seconds of an operation of this size, as it was measured, or as the one that is most like it."""
        name = key[0]
        like = [self.measured[key]] if key in self.measured else [one for one in self.measured.values()
                                                                  if one[0] == name]
        if not like:
            return size * self.number * (PRODUCT if name == "dot_general" else 1)
        _, its, seconds = min(like, key=lambda one: abs(math.log(max(one[1], 1) / max(size, 1))))
        return seconds * size / its


def timed(equation):
    """(size, seconds) of an operation by itself, with random arrays. Of a large table, and of many rows, a part will
    do."""
    draw, name, arrays = np.random.default_rng(0), equation.primitive.name, []
    shapes, most = shapes_of(equation.invars), 1
    if name != "dot_general":
        numbers = equation.params["dimension_numbers"]
        by_index, window = (numbers.start_index_map, numbers.offset_dims) if name == "gather" else (
            numbers.scatter_dims_to_operand_dims, numbers.update_window_dims)
        whole = equation.params.get("slice_sizes", (1,) * len(shapes[0]))
        if 0 in by_index and whole[0] == 1 and not numbers.operand_batching_dims:
            shapes[0] = min(shapes[0][0], 1 + PART // 4 // max(1, math.prod(shapes[0][1:]))), *shapes[0][1:]
            if 0 not in window and len(shapes[1]) > 1:
                out = size_of(equation)
                few = min(shapes[1][0], 1 + PART // 4 * shapes[1][0] // max(out, 1))
                shapes[1:] = [(few, *shape[1:]) for shape in shapes[1:]]
        most = np.array([shapes[0][i] - whole[i] + 1 for i in by_index])
    for i, (shape, x) in enumerate(zip(shapes, equation.invars, strict=True)):
        is_index = i == 1 and name != "dot_general"
        arrays.append(jax.device_put((draw.integers(0, most, shape) if is_index else draw.random(
            shape, np.float32)).astype(x.aval.dtype)))

    # Rows are added in place, as in the loop.
    changes = name == "scatter-add"
    program = jax.jit(lambda *arrays: equation.primitive.bind(*arrays, **equation.params),
                      donate_argnums=0 if changes else ()).lower(*arrays).compile()
    shape = equation.invars[1].aval.shape
    part = shapes[1][0] / shape[0] if name != "dot_general" and math.prod(shape[:1]) else 1
    return size_of(equation) * part, quickest(program, *arrays, changes=changes)


def quickest(program, *arrays, changes=False):
    """Seconds of a compiled program, of several calls the quickest; changes: whether its result takes the place of its
    first array."""
    taken, on_cpu = [], platform() == "cpu"
    while len(taken) < 2 or (len(taken) <= TURNS and sum(taken) < LONG):
        begun, worked = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(program(*arrays))
        seconds = time.perf_counter() - begun
        # On a busy machine a program waits for its turn; it has then worked for less.
        taken.append(min(seconds, time.process_time() - worked) if on_cpu else seconds)
        arrays = (result, *arrays[1:]) if changes else arrays
    return min(taken[1:])


def platform():
    return devices.mesh().devices.flat[0].platform


RATES = Rates()


# --- a training -------------------------------------------------------------------------------------------------------

def expected(plan, loop):
    """The Costs of a training that has not begun, of which nothing is compiled or on the device. None on several
    devices, which share what one would do. plan: a configuration.Plan."""
    if devices.mesh().size > 1:
        return None
    config, rows, base = plan.config, plan.arrays["train"], used() or 0
    titles = rows["titles"][:, :1] if config.get("freeze_layers") else rows["titles"]
    groups = data.length_groups(titles, config["batch_size"])
    epoch_steps = config["steps"] // config["epochs"]

    # What a step does grows with the width, nearly in proportion: the mean width has the mean step.
    width = round(sum(group.chunks * group.steps * group.width for group in groups) / epoch_steps)
    state = jax.eval_shape(lambda: start.random_state(config, loop.optimizer))
    features = shapes_of_features(plan)
    step = traced_step(plan, loop, state, width)
    vectors, scored, batch, fit = traced_judging(plan, state, features, width)
    judged = min(loop.sample, config["rows"]) + ("refit" not in config) * (
        plan.meta["rows"]["valid"] + config["calibration_rows"])
    is_long = config["steps"] * RATES.seconds(step, 0) > QUICK
    rates = [RATES.seconds(found, is_long * most) for found, most in (
        (step, TIMED), (vectors, 2), (scored, 2), (fit, 0))]
    judging = rates[1] + judged / batch * rates[2] + ("refit" not in config) * FITTING * rates[3]
    loops, judges = len(groups) * len(step), len(vectors) + PROGRAMS * len(scored) + len(fit)

    own, fallback = COMPILE
    compiling = own.get(platform(), fallback)
    before = loops * compiling + ARRANGE * math.prod(titles.shape) + BEGIN
    if config.get("freeze_layers"):  # each title goes through the layers once
        before += sum(plan.meta["rows"].values()) / batch * rates[2]
    saved = nbytes(state)
    epoch = epoch_steps * rates[0] + judging
    saves = 1 + config["epochs"] * epoch / max(epoch, loop.save_seconds, 1e-9)
    device, host = bytes_of(plan, state, features, (step, scored), epoch < loop.save_seconds)
    base += PROGRAM * (loops + judges) + LIBRARIES * ("orbax.checkpoint" not in sys.modules)
    return Costs(float(before), judges * compiling, config["steps"], rates[0], config["epochs"], judging,
                 END + saves * (SAVE + saved / DISK), int(base + host + device * (platform() == "cpu")), int(device))


def shapes_of_features(plan):
    """What model.feature_tables and model.value_features give, as shapes."""
    config, found = plan.config, {}
    if "encoder" not in config:
        words, sizes = plan.meta["words"], range(max(config.get("minn", 0), 1), config["maxn"] + 1)
        length = np.minimum([len(word) for word in words[len(data.SPECIALS):]], classify.NGRAM_CHARACTERS) + 2
        count = sum(int(np.maximum(0, length - size + 1).sum()) for size in sizes)
        few = model.feature_tables(config, words[:len(data.SPECIALS)])
        sizes = {"own": len(words), "start": len(words) + 1, "hashes": len(words),
                 **dict.fromkeys(("ngrams", "word"), data.ngram_places(count))}
        found = {name: np.asarray(value) for name, value in few.items()}
        found = {name: jax.ShapeDtypeStruct((sizes[name], *value.shape[1:]) if name in sizes else value.shape,
                                            value.dtype) for name, value in found.items()}
    if config.get("columns"):
        found |= jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                              model.value_features(config, classify.columns_of(plan.meta["columns"])))
    return found


def traced_step(plan, loop, state, width):
    """The `operations` of a step on titles of this width."""
    config, rows = plan.config, plan.arrays["train"]
    # The array of a few rows has the types of all; that with the largest number of a node tells whether parents are
    # labels.
    few = np.unique([*range(min(ROWS, len(rows["labels"]))), int(rows["labels"].argmax())])
    rows = {kind: array[few] for kind, array in rows.items()}
    frozen = {}
    if "encoder" in config and config["freeze_embeddings"]:
        frozen = {"table": np.zeros((1, encoder_dim(config)), np.float32)}
    if config.get("freeze_layers"):
        rows["titles"] = np.zeros((len(few), 1), np.uint32)
    features = {} if "encoder" in config else model.feature_tables(config, plan.meta["words"][:ROWS])
    if config.get("columns"):
        features |= model.value_features(config, classify.columns_of(plan.meta["columns"]))
    arrays = loop.arrays(features, rows, frozen)
    order = jax.ShapeDtypeStruct((1, config["batch_size"]), np.uint32)
    return operations(loop.chunk.trace(state, arrays, order, width=width).jaxpr.jaxpr)


def encoder_dim(config):
    return model.MODELS[config["model"]].dim


def frozen_table(plan):
    """The shapes of the variables that no step changes, where an encoder has such."""
    config = plan.config
    if "encoder" not in config or not config["freeze_embeddings"]:
        return {}
    rows = 1 + sum(plan.meta["rows"][split] for split in ("train", "valid")) if config["freeze_layers"] else len(
        plan.meta["pieces"])
    return {"table": jax.ShapeDtypeStruct((rows, encoder_dim(config)), np.float32)}


def traced_judging(plan, state, features, width):
    """The `operations` that make the vectors of all words, that score a batch, its rows, and those that a loss of
    calibration is made of."""
    config = plan.config
    variables = state["variables"] | frozen_table(plan)
    made, predictor = jax.make_jaxpr(lambda variables, features: predict.make_predictor(
        config, variables, features, model.compose.__wrapped__), return_shape=True)(variables, features)
    rows = predict.largest_batch("encoder" in config)
    ids = jax.ShapeDtypeStruct((rows, width), np.uint32)
    values = jax.ShapeDtypeStruct((rows, len(config.get("columns") or ())), np.uint32)
    scored = jax.make_jaxpr(lambda predictor, batch, labels: predict.scores(
        predict.Ensemble((predictor,)), (batch,), labels))
    logits = jax.ShapeDtypeStruct((config["calibration_rows"], config["classes"]), np.float32)
    fit = jax.make_jaxpr(calibration.calibration_loss)(np.zeros(2), logits, logits.update(shape=logits.shape[:1]))
    return operations(made.jaxpr), operations(scored(predictor, data.Batch(ids, values), jax.ShapeDtypeStruct(
        (rows,), np.int32)).jaxpr), rows, operations(fit.jaxpr)


# --- memory -----------------------------------------------------------------------------------------------------------

def nbytes(tree):
    """Bytes of the arrays of a tree, or of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def largest_of(found):
    """Bytes of the largest array that comes out of operations that are not made in place, or a part of others."""
    return max((math.prod(x.aval.shape) * x.aval.dtype.itemsize for equation, _ in found
                if equation.primitive.name not in FREE | {"scatter-add"} for x in equation.outvars
                if hasattr(x.aval.dtype, "itemsize")), default=0)


def bytes_of(plan, state, features, traced, waits):
    """(bytes of arrays on the device, bytes of others that a save needs). traced: `operations` of a step, and of a
    batch that is scored; waits: whether quick epochs are saved together, for which the best of them is copied."""
    config, rows, saved = plan.config, plan.arrays["train"], nbytes(state)
    count, width = rows["titles"].shape
    columns = len(config.get("columns") or ())
    row = rows["titles"].dtype.itemsize * width + rows["labels"].dtype.itemsize + 4 + (
        rows["columns"].dtype.itemsize * columns if columns else 0)

    # The state, all training rows, what is frozen, the vectors of words with what they are made of, and what a batch is
    # computed with, or the temperature.
    words = 0 if "encoder" in config else 4 * features["own"].shape[0] * (config["dim"] + 1)
    scratch = max(*(2 * largest_of(found) for found in traced),
                  12 * config["calibration_rows"] * config["classes"])
    device = saved + count * row + nbytes(features) + nbytes(frozen_table(plan)) + words * 3 // 2 + scratch

    # A table that Orbax cuts into files (see runs.save_checkpoint) is encoded part by part, any other as a whole.
    table = state["variables"].get("table")
    in_files = table is not None and len(table) > model.LARGE and len(table) % model.PARTS == 0
    return device, (7e7 if in_files else saved) + saved * waits


def used():
    """Bytes of memory that this process has; None where the system does not say."""
    with suppress(OSError, TypeError):
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1])
    return None


def free():
    """Bytes of memory that this process may still get, by the machine and by the limits on its group; None where the
    system does not say."""
    found = []
    with suppress(OSError, TypeError):
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text("utf-8"))[1]))

    # Limits of a group hold for the groups in it. What was read from files and can be dropped does not count.
    with suppress(OSError):
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text("utf-8").rpartition("::/")[2].strip()
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError, TypeError):
                limit, now = (int((folder / f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
                cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text("utf-8"), re.M)
                found.append(max(0, limit - now + int(cached[1])))
    return min(found, default=None)


def free_on_device():
    """Bytes of the device's own memory that are free; None of a CPU, and where the device does not say."""
    device = devices.mesh().devices.flat[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    return stats and "bytes_limit" in stats and stats["bytes_limit"] - stats.get("bytes_in_use", 0) or None


# --- said -------------------------------------------------------------------------------------------------------------

def said(costs):
    """A line of what a training takes."""
    epoch = costs.steps // costs.epochs * costs.step + costs.judging
    return (f"costs about {duration(costs.seconds)} ({duration(epoch)} an epoch) and "
            f"{memory_said(costs.bytes)} of memory")


def duration(seconds):
    """Seconds as a person says them."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{int(seconds < 10 * length)}f} {unit}"
    return f"{seconds:.{int(seconds < 10)}f} s"


def memory_said(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def warn(costs):
    """Say on standard error where memory will not do."""
    for need, there, whose in ((costs.bytes - (used() or 0), free(), "of memory"),
                               (costs.device, free_on_device(), "on the device")):
        if there is not None and need > there:
            print(f"warning: this training needs about {memory_said(need)} more {whose}, and {memory_said(there)} are "
                  "free; fewer --buckets, a smaller --dim or fewer rows need less", file=sys.stderr)
