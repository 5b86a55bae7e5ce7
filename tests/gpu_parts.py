"""The parts of gpu.py: what is checked and timed on a GPU. Not a test; gpu.py is the command and the manual.

A part is a generator: it takes a job (`data`, the folder of its prepared data; `folder`, where it may write; `sizes`;
`found`, what the parts before it found; `deadline`, the time when it is stopped) and yields dictionaries of findings.
"""
import functools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import distributions, version
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gpu import ROOT

import data
import evaluate
import model
import train
from titles import configuration, files, measures, runs, start
from titles import predict as prediction
from titles.encoder import ENCODERS

TOLERANCE, STEPS = 1e-3, 20  # how far a loss may deviate from the CPU's, as a share of it, over so many steps

# --- what is taken from the program -----------------------------------------------------------------------------------

load, CHUNK = functools.cache(data.load_prepared), data.MAX_STEPS


class Problem:
    """A training as train.py would begin it, from a prepared folder and flags. Nearly all that the parts need of the
    program is used here, so that a change there is followed in one place; what else is used stands in `scatter` and
    `step_until`."""

    def __init__(self, folder, *flags):
        self.args = train.parse_args(["--data", str(folder), *map(str, flags)])
        self.meta, self.arrays = load(folder, ("train", "valid"))
        self.rows = self.arrays["train"]
        self.config = configuration.configure(train.TABLE, self.args, self.meta, self.rows["titles"])
        self.features = model.feature_tables(self.config, self.meta["words"])

    def start(self):
        """The state before the first step, on the default device."""
        return start.state_of_words(self.config, train.make_optimizer(self.config), self.features,
                                    self.rows["titles"])

    def inputs(self):
        """What the training loop reads, on the default device."""
        return train.training_arrays(self.config, self.features, self.rows)

    def plan(self, batch_size, chunk=CHUNK):
        """Groups of titles, as data.LengthGroup."""
        return data.length_groups(self.rows["titles"], batch_size, chunk)

    def lower(self, state, inputs, shape, **changes):
        """The training loop for orders of this shape (steps, batch size, width of the titles), ready to be compiled for
        `advance`."""
        *order, width = shape
        return train.make_train_chunk(self.config | changes).lower(
            state, inputs, jax.ShapeDtypeStruct(order, np.uint32), width=width)

    def epoch(self, programs, plan, batch_size, state, inputs, number=0, seconds=float("inf")):
        """Train for an epoch, or so many seconds of it, as train.py's loop does. Returns (state, titles/s, seconds)."""
        begun, losses, done = time.perf_counter(), [], 0
        for width, order in data.batches(plan, batch_size, self.config["seed"], number):
            state, loss = advance(state, programs[width], inputs, jax.device_put(order))
            losses.append(loss)
            float(losses[max(0, len(losses) - 2)])
            done += order.size
            if time.perf_counter() - begun > seconds:
                break
        jax.block_until_ready(state)
        taken = time.perf_counter() - begun
        once = len(self.rows["labels"]) / (batch_size * sum(chunks * steps for _, _, chunks, steps in plan))
        return state, done * min(once, 1) / taken, taken  # rows that come twice in an epoch count once

    def predictor(self, state):
        return prediction.make_predictor(self.config, state["variables"], self.features)

    def score(self, ready, split="valid"):
        """Arrays [N]: `prediction`, `loss` and others."""
        rows = self.arrays[split]
        return prediction.score(prediction.Ensemble((ready,)), (data.batch_of(rows),), rows["labels"])

    def save(self, state, folder):
        """Make a run of this state that evaluate.py can use."""
        runs.create(folder, files.with_checksum(self.config | {"created": time.time()}), self.meta,
                    self.arrays["train"]["keys"])
        drawn = {kind: self.arrays["valid"][kind][:self.config["calibration_rows"]] for kind in ("titles", "labels")}
        state = state | {"validation": train.calibrate(self.predictor(state), drawn)}
        runs.save_checkpoint(runs.checkpoint_manager(folder), 1, state, [], {"valid_balanced_accuracy": 0.0})

    def restore(self, state, folder):
        """The saved state of a run whose arrays have the shapes of those of `state`."""
        return runs.restore_checkpoint(runs.checkpoint_manager(folder, read_only=True), 1, **state)


def advance(state, program, inputs, order):
    """One call of the compiled training loop: (new state, loss). The state is donated."""
    return program(state, inputs, order)


def predict(run, titles, out):
    """`evaluate.py --predict`; returns its seconds."""
    begun = time.perf_counter()
    sys.argv = ["evaluate.py", "--ckpt", str(run), "--predict", str(titles), "--out", str(out)]
    evaluate.predict(evaluate.parse_args())
    return time.perf_counter() - begun


# --- measuring --------------------------------------------------------------------------------------------------------

def milliseconds(seconds, call, state, *others):
    """(median time of `state = call(state, *others)` over about so many seconds, the last state). Two calls warm up;
    short calls are timed several at once, as launching one overlaps with computing the one before."""
    state = jax.block_until_ready(call(state, *others))
    begun = time.perf_counter()
    state = jax.block_until_ready(call(state, *others))
    calls = int(np.clip(0.02 / (time.perf_counter() - begun), 1, 100))
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(calls):
            state = call(state, *others)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - begun) / calls * 1000)
    return float(np.median(times)), state


def host(tree):
    return jax.tree.map(np.array, tree)


def differing(one, other):
    """Paths of the arrays in two trees that are not the same bits."""
    return [jax.tree_util.keystr(path) for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()]


def zipf(draw, shape, rows):
    """Ids [shape] of words in the order of their frequency, by the law of Zipf and Mandelbrot."""
    cumulative = np.cumsum(1 / (np.arange(rows) + 2.7))
    return np.searchsorted(cumulative, draw.random(shape) * cumulative[-1]).astype(np.int32)


def memory(key):
    return (jax.devices()[0].memory_stats() or {}).get(key)  # a CPU has none


# --- device -----------------------------------------------------------------------------------------------------------

def device(job):
    names = sorted({name.lower() for package in distributions() if (name := package.metadata["Name"])})
    yield {"python": sys.version.split()[0], "cores": os.cpu_count(), "versions": {
        name: version(name) for name in names
        if name.startswith("jax") or name in ("flax", "numpy", "optax", "orbax-checkpoint")}}
    card = jax.devices()[0]
    yield {"platform": card.platform, "kind": card.device_kind, "runtime": card.client.platform_version,
           "memory_bytes": memory("bytes_limit"), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    if shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv,noheader"]
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=10)
        yield {"nvidia_smi": done.stdout.strip()}
    yield {"sum": float(jnp.arange(10.0).sum())}  # a first program, so that a broken installation is seen here


# --- correctness ------------------------------------------------------------------------------------------------------

def correctness(job):
    # Where both sides draw the same random bits, the step is compared as it is; else without dropout and drawn n-grams.
    cpu, card = jax.devices("cpu")[0], jax.devices()[0]
    bits = []
    for place in (cpu, card):
        with jax.default_device(place):
            bits.append(host(jax.random.bits(jax.random.key(0, impl="rbg"), (1000,))))
    equal = not differing(*bits)
    flags = ("--batch-size", 256, *(() if equal else ("--dropout", 0, "--maxn", 0)))
    yield {"random_bits_equal": equal, "tolerance": TOLERANCE, "steps": STEPS}

    # Compiling takes most of the time, so all models are compared side by side.
    wrong, trained = [], None
    with ThreadPoolExecutor() as pool:
        comparing = {pool.submit(compare, job, name, flags, cpu, card): name for name in job.sizes["models"]}
        for future in as_completed(comparing):
            name, (row, problem, state) = comparing[future], future.result()
            yield {"models": {name: row}}
            if name == job.sizes["models"][0]:
                trained = (*flags, "--model", name), problem, state
            if not row["loss_deviation"] <= TOLERANCE:  # also where it is not a number
                wrong.append(f"{name}: losses deviate from the CPU's by {row['loss_deviation']:.2g}")
            if row["other_predictions"]:
                wrong.append(f"{name}: {row['other_predictions']} predictions are not the CPU's")

    yield {"same_bits": repeated(16 * job.sizes["scatters"][-1])}
    way = checkpoint_way(job, *trained)
    yield {"checkpoint": way}
    if way["differing"] or way["other_predictions"]:
        wrong.append("a checkpoint is not the same after its way to the CPU and back")
    if wrong:
        raise ArithmeticError("; ".join(wrong))


def compare(job, name, flags, cpu, card):
    """(findings, problem, the state that the card has trained) of one model."""
    problem = Problem(job.data, *flags, "--model", name)
    (expected, reference), (exact, _), (usual, state), (_, again) = trainings(problem, cpu, card)

    # All predictions are made from the state that the CPU trained, so that only prediction is compared.
    scores = []
    for place, precision in ((cpu, "highest"), (card, "highest"), (card, "default")):
        with jax.default_device(place), jax.default_matmul_precision(precision):
            scores.append(problem.score(problem.predictor(jax.device_put(reference)))["prediction"])
    others = differing(state, again)
    return {"losses": [expected[0], expected[-1]], "loss_deviation": np.abs(exact / expected - 1).max(),
            "loss_deviation_default_precision": np.abs(usual / expected - 1).max(),
            "same_bits": not others, "differing": others, "predictions": len(scores[0]),
            "other_predictions": int((scores[1] != scores[0]).sum()),
            "other_predictions_default_precision": int((scores[2] != scores[0]).sum())}, problem, state


def trainings(problem, cpu, card):
    """Train STEPS steps from one start: on the CPU, on the card with exact float32 products, and twice with JAX's
    default ones. Returns four pairs: losses [STEPS] and the last state, on the host."""
    size, width = problem.config["batch_size"], problem.rows["titles"].shape[1]
    order = np.random.default_rng(0).permutation(len(problem.rows["labels"]))
    order, plans, results = np.resize(order, (STEPS, 1, size)).astype(np.uint32), [], []
    with jax.default_device(cpu):
        start = host(problem.start())
    with ThreadPoolExecutor() as pool:  # the compilers work side by side
        for place, precision in ((cpu, "highest"), (card, "highest"), (card, "default")):
            with jax.default_device(place), jax.default_matmul_precision(precision):
                inputs = problem.inputs()
                plans.append((place, inputs, pool.submit(problem.lower(start, inputs, (1, size, width)).compile)))
    for place, inputs, program in (*plans, plans[-1]):
        state, losses = jax.device_put(start, place), []
        for rows in order:
            state, loss = advance(state, program.result(), inputs, rows)
            losses.append(float(loss))
        results.append((np.array(losses), host(state)))
    return results


def repeated(rows):
    """Whether each operation of a step gives the same bits five times: {operation: bool}."""
    operations = {
        "gather": lambda x, ids, w: x[ids],
        "scatter-add of rows": lambda x, ids, w: jnp.zeros_like(x).at[ids].add(x),
        "scatter-add of numbers": lambda x, ids, w: jnp.zeros(rows).at[ids].add(x[:, 0]),
        "matrix product": lambda x, ids, w: x @ w,
        "gradient of its weights": lambda x, ids, w: x.T @ (x @ w),
        "sum over the batch": lambda x, ids, w: x.sum(0),
        "softmax": lambda x, ids, w: jax.nn.log_softmax(x @ w),
        "random numbers": lambda x, ids, w: x * jax.random.uniform(jax.random.key(0, impl="rbg"), x.shape)}
    draw, result = np.random.default_rng(0), {}
    inputs = jax.device_put((draw.normal(size=(rows, 100)).astype(np.float32), zipf(draw, (rows,), rows),
                             draw.normal(size=(100, 632)).astype(np.float32)))
    for name, operation in operations.items():
        program = jax.jit(operation)
        first = host(program(*inputs))
        result[name] = not any(differing(first, program(*inputs)) for _ in range(4))
    return result


def checkpoint_way(job, flags, problem, state):
    """Save a state from the card; restore it on the card, and in a process without a card, which predicts and saves it
    again; restore that on the card. Says what has changed."""
    problem.save(jax.device_put(state), job.folder / "card")
    here = problem.restore(state, job.folder / "card")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    os.environ["JAX_PLATFORMS"] = "cpu"
    process = multiprocessing.get_context("spawn").Process(target=without_card, args=(job, flags))
    process.start()
    os.environ["JAX_PLATFORMS"] = platforms
    process.join()
    if process.exitcode:
        raise RuntimeError("the process without a card could not restore, use or save the checkpoint")
    back = problem.restore(state, job.folder / "cpu")
    with jax.default_matmul_precision("highest"):
        other = problem.score(problem.predictor(back))["prediction"] != np.load(job.folder / "cpu.npy")
    return {"differing": differing(state, here) + differing(state, back), "other_predictions": int(other.sum())}


def without_card(job, flags):
    problem = Problem(job.data, *flags)
    state = problem.restore(problem.start(), job.folder / "card")
    np.save(job.folder / "cpu.npy", problem.score(problem.predictor(state))["prediction"])
    problem.save(state, job.folder / "cpu")


# --- compiling --------------------------------------------------------------------------------------------------------

def compiling(job):
    # What the parts before have compiled must not be found.
    jax.config.update("jax_enable_compilation_cache", False)
    for name, flags in job.sizes["trained"].items():
        problem = Problem(job.data, *flags)
        inputs, state, batch_size = problem.inputs(), problem.start(), problem.config["batch_size"]
        plan = problem.plan(batch_size)
        for tries, options in (("tried out", {}), ("not tried out", {"xla_gpu_autotune_level": 0})):
            for workers in (1, len(plan)):
                begun = time.perf_counter()
                lowered = {width: problem.lower(state, inputs, (steps, batch_size, width))
                           for _, width, _, steps in plan}
                traced = time.perf_counter() - begun
                with ThreadPoolExecutor(workers) as pool:
                    programs = dict(zip(lowered, pool.map(lambda one, options=options: one.compile(options),
                                                          lowered.values()), strict=True))
                seconds = time.perf_counter() - begun
                for limit in (job.sizes["timing"] / 2, job.sizes["timing"] * 2):  # the first warms up
                    state, speed, _ = problem.epoch(programs, plan, batch_size, state, inputs, seconds=limit)
                yield {"loops": [{"model": name, "kernels": tries, "at_a_time": workers, "programs": len(plan),
                                  "tracing_seconds": traced, "seconds": seconds, "titles_per_second": speed}]}


# --- whole commands ---------------------------------------------------------------------------------------------------

def commands(job):
    yield from trained_by_command(job, job.data.with_suffix(".csv"), (), ("--model", "mlp"))


def encoder(job):
    if find_spec(ENCODERS["use"].module) is None:
        yield {"skipped": ["the encoder's package is not installed"]}
        return
    yield from trained_by_command(job, job.data.with_suffix(".csv"), ("--encoder", "use"),
                                  ("--model", "encoder", *job.sizes["encoder"]))


def trained_by_command(job, titles, prepare_flags, train_flags):
    """From a file of titles to a tested classifier by the commands that a user types; then the same test on a CPU. This
    process leaves the device to theirs."""
    if find_spec("mlflow") is None:
        yield {"skipped": ["MLflow is not installed"]}
        return
    folder = job.folder / f"commands-{train_flags[1]}"
    folder.mkdir()
    tests = []
    for name, platforms, *flags in (("prepare", "", "--data", titles, *prepare_flags), ("train", "", *train_flags),
                                    ("evaluate", "", "--ckpt", "best", "--json"),
                                    ("evaluate", "cpu", "--ckpt", "best", "--json")):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, ROOT / f"{name}.py", *map(str, flags)], cwd=folder, text=True,
                              capture_output=True, env=os.environ | ({"JAX_PLATFORMS": platforms} if platforms else {}))
        if done.returncode:
            raise RuntimeError(f"{name}.py: {done.stderr.strip()[-300:]}")
        row = {"command": f"{name}.py", "on": platforms or "the device", "seconds": time.perf_counter() - begun}
        if name == "train":
            row["titles_per_second"] = [float(speed.replace(",", "")) for speed in re.findall(
                r"([\d,]+) titles/s", done.stdout)][-1:]
        if name == "evaluate":
            tests.append(json.loads(done.stdout))
            row["balanced_accuracy"] = tests[-1]["balanced_accuracy"]
        yield {"commands": [row]}
    if abs(tests[0]["balanced_accuracy"] - tests[1]["balanced_accuracy"]) > TOLERANCE:
        raise ArithmeticError("what the GPU has trained scores otherwise on the CPU")


# --- scatter ----------------------------------------------------------------------------------------------------------

def scatter(job):
    draw = np.random.default_rng(0)
    for batch_size in job.sizes["scatters"]:
        # A title has 3 to 10 words, a word six rows of the table: its own, four n-grams of characters, one of words.
        word = np.repeat(np.arange(10) < draw.integers(3, 11, (batch_size, 1)), 6, 1)
        gradients = draw.normal(size=(batch_size, 20, 100)).astype(np.float32) / 1000
        places = np.repeat(np.arange(20), 3)
        values = jax.device_put(gradients[:, places].reshape(-1, 100))
        for rows in job.sizes["tables"]:
            ids = np.where(word, zipf(draw, word.shape, rows), rows)
            row = {"batch_size": batch_size, "table": rows, "ids": ids.size, "padding": float(1 - word.mean()),
                   "most_frequent": int(np.bincount(ids[word]).max())}
            sums, flat = [], jax.device_put(ids.ravel())
            for name, add in (("as it is", scatter_add), ("sorted", sorted_add), ("summed", summed_add)):
                program = jax.jit(add, donate_argnums=0)
                sums.append(program(jnp.ones((rows, 100)), flat, values))
                row[f"{name}, ms"], _ = milliseconds(
                    job.sizes["timing"], program, jnp.zeros((rows, 100)), flat, values)
            row["deviation"] = max(float(jnp.abs(other - sums[0]).max()) for other in sums)

            def update(state, rows, shares, gradients, places=places):
                return model.update(*state, model.Gathered(rows, shares, places), gradients, 0.1)

            row["model.update, ms"], _ = milliseconds(
                job.sizes["timing"], jax.jit(update, donate_argnums=0), (jnp.zeros((rows, 100)), jnp.ones(rows)),
                *jax.device_put((np.where(word, ids, 0), word * np.float32(0.5), gradients)))
            yield {"timings": [row]}
            if not row["deviation"] <= TOLERANCE:
                raise ArithmeticError(f"sums of {ids.size} rows differ by {row['deviation']:.2g}")


def scatter_add(table, ids, values):
    """As model.update has it: rows out of range are padding and dropped."""
    return table.at[ids].add(values, mode="drop")


def sorted_add(table, ids, values):
    order = jnp.argsort(ids)
    return table.at[ids[order]].add(values[order], mode="drop", indices_are_sorted=True)


def summed_add(table, ids, values):
    order = jnp.argsort(ids)
    ids = ids[order]
    segment = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ids[1:] != ids[:-1]]))
    sums = jax.ops.segment_sum(values[order], segment, len(ids), indices_are_sorted=True)
    distinct = len(table) + 1 + jnp.arange(len(ids), dtype=ids.dtype)  # what no segment fills stays out of range
    distinct = distinct.at[segment].set(ids, indices_are_sorted=True)
    return table.at[distinct].add(sums, mode="drop", unique_indices=True, indices_are_sorted=True)


# --- training ---------------------------------------------------------------------------------------------------------

def training(job):
    problems, seen, taken = {}, set(), {}
    for chunk in job.sizes["chunks"]:
        for name, flags in job.sizes["trained"].items():
            if time.time() + taken.get(name, 0) > job.deadline:
                yield {"skipped": [f"{name}, chunks of {chunk}: no time is left"]}
                continue
            if name not in problems:
                problem = Problem(job.data, *flags)
                problems[name] = problem, problem.inputs(), problem.start()
            problem, inputs, state = problems[name]
            begun = time.time()

            # All batch sizes are compiled side by side, then timed one by one.
            compiling = {}
            with ThreadPoolExecutor(8) as pool:
                for batch_size in job.sizes["batches"]:
                    plan = problem.plan(batch_size, chunk)
                    shapes = [(steps, batch_size, width) for _, width, _, steps in plan]
                    if (name, *shapes) in seen:  # an epoch is shorter than a chunk
                        yield {"skipped": [f"{name}, batches of {batch_size}, chunks of {chunk}: as shorter chunks"]}
                        continue
                    seen.add((name, *shapes))
                    compiling[batch_size] = plan, {shape[2]: pool.submit(
                        problem.lower(state, inputs, shape).compile) for shape in shapes}
            for batch_size, (plan, futures) in compiling.items():
                row = {"model": name, "batch_size": batch_size, "chunk": chunk, "widths": list(futures)}
                try:
                    programs = {width: future.result() for width, future in futures.items()}
                    row["program_bytes"] = max(map(program_bytes, programs.values()))
                    for seconds in (job.sizes["timing"] / 2, job.sizes["timing"] * 2):  # the first warms up
                        state, row["titles_per_second"], _ = problem.epoch(
                            programs, plan, batch_size, state, inputs, seconds=seconds)
                except jax.errors.JaxRuntimeError as error:  # no memory, most likely; the donated state may be lost
                    row["error"], state = str(error)[:200], problem.start()
                yield {"grid": [row | {"peak_bytes": memory("peak_bytes_in_use")}]}
            problems[name] = problem, inputs, state
            taken[name] = time.time() - begun


def program_bytes(program):
    plan = program.memory_analysis()
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes


# --- same_bits --------------------------------------------------------------------------------------------------------

def same_bits(job):
    # JAX reads this when it is first used.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    for name, flags in job.sizes["trained"].items():
        problem = Problem(job.data, *flags)
        start, inputs, batch_size = problem.start(), problem.inputs(), problem.config["batch_size"]
        plan = [group._replace(chunks=min(group.chunks, 10)) for group in problem.plan(batch_size)]  # not all titles
        with ThreadPoolExecutor() as pool:
            compiling = {width: pool.submit(problem.lower(start, inputs, (steps, batch_size, width)).compile)
                         for _, width, _, steps in plan}
        programs = {width: future.result() for width, future in compiling.items()}
        ends = []
        for _ in range(2):
            state, speed, _ = problem.epoch(programs, plan, batch_size, jax.tree.map(jnp.copy, start), inputs)
            ends.append(host(state))
        yield {"epochs": [{"model": name, "batch_size": batch_size, "same_bits": not differing(*ends),
                           "titles_per_second": speed}]}
        if differing(*ends):
            raise ArithmeticError(f"{name}: deterministic operations give other bits the second time")


# --- profile ----------------------------------------------------------------------------------------------------------

def profile(job):
    problem = Problem(job.data)
    inputs, state, launch = problem.inputs(), problem.start(), kernel_ms(job.sizes["timing"])
    for batch_size in job.sizes["profiles"]:
        group, width, _, _ = max(problem.plan(batch_size), key=lambda group: len(group[0]))
        order = jax.device_put(np.random.default_rng(0).choice(group, (16, batch_size)))
        # Every stage in a loop of 16 steps, and the whole step; they are compiled side by side.
        stages = {}
        for name in ("empty loop", "random numbers", "gather of features", "gather of rows", "matrix products", "Adam"):
            stage = functools.partial(step_until, problem, name, width)
            carry = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                                 jax.eval_shape(stage, 0, state, inputs, order))
            loop = jax.jit(lambda carry, *rest, stage=stage: jax.lax.fori_loop(
                0, 16, lambda i, _: stage(i, *rest), carry), donate_argnums=0)
            stages[name] = carry, loop.lower(carry, state, inputs, order)
        with ThreadPoolExecutor() as pool:
            compiling = {name: pool.submit(lowered.compile) for name, (_, lowered) in stages.items()}
            whole = problem.lower(state, inputs, (*order.shape, width)).compile()

        times = {name: milliseconds(job.sizes["timing"], compiling[name].result(), carry, state, inputs, order)[0]
                 for name, (carry, _) in stages.items()}
        times["scatter"], state = milliseconds(
            job.sizes["timing"], lambda state, *others: advance(state, *others)[0], state, whole, inputs, order)

        # A stage's time is what its loop takes longer than that of the stage before.
        step = times["scatter"] / 16
        shares = dict(zip(times, np.diff([0, *times.values()]) / times["scatter"], strict=True))
        kernels = len(re.findall(r" (?:fusion|custom-call|sort|scatter)\(", whole.as_text()))
        yield {"steps": [{"batch_size": batch_size, "width": width, "step_ms": step, "shares": shares,
                          "kernels": kernels, "kernels_share": kernels * launch / step}]}


def step_until(problem, last, width, i, state, inputs, order):
    """The step of train.make_train_chunk up to the stage `last`; returns all that the stage has made."""
    config = problem.config
    key, *keys = jax.random.wrap_key_data(inputs["keys"][i], impl="rbg")
    ids, y = inputs["batch"].ids[order[i], :width].astype(jnp.int32), inputs["labels"][order[i]].astype(jnp.int32)
    features, variables = inputs["features"], state["variables"]
    if last == "empty loop":
        return order[i, 0]
    draw_features = functools.partial(model.draw_features, config)
    if last == "random numbers":
        shapes = [rows.shape for rows, _ in jax.eval_shape(draw_features, features, variables["weights"], ids, keys)]
        return [jax.random.uniform(key, (*ids.shape, 1)), *(jax.random.bernoulli(key, 0.5, shape) for shape in shapes)]
    parts = draw_features(features, variables["weights"], ids, keys)
    if last == "gather of features":
        return parts
    vectors, weights, (rows, shares, _) = model.lookup(variables["table"], parts)
    if last == "gather of rows":
        return vectors, weights, rows, shares

    def loss(params, vectors):
        none = vectors[:, :0], weights[:, :0]
        z = model.build(config).apply({"params": params}, vectors, weights, none, train=True, rngs={"dropout": key})
        return train.loss_of(config, z, jnp.broadcast_to(y, z.shape[:-1])).mean()

    gradient, vector_gradient = jax.grad(loss, (0, 1))(variables["params"], vectors)
    if last == "matrix products":
        return gradient, vector_gradient, rows, shares
    updates, dense = train.make_optimizer(config).update(gradient, state["optimizer"]["dense"], variables["params"])
    return optax.apply_updates(variables["params"], updates), dense, vector_gradient, rows, shares


def kernel_ms(seconds, kernels=50):
    """What a kernel with next to nothing to do takes in a loop: products of small matrices, which XLA does not fuse."""
    def loop(x, products):
        def body(_, x):
            for _ in range(products):
                x = x @ x
            return x
        return jax.lax.fori_loop(0, 20, body, x)

    short, long = (milliseconds(seconds, jax.jit(functools.partial(loop, products=products)), jnp.eye(64))[0]
                   for products in (1, 1 + kernels))
    return (long - short) / 20 / kernels


# --- evaluation -------------------------------------------------------------------------------------------------------

def evaluation(job):
    ready = {}
    for name in ("mlp", "cnn"):
        problem = Problem(job.data, *job.sizes["trained"][name])
        state = problem.start()
        ready[name] = problem, state
        for _ in range(2):  # the first time compiles
            begun = time.perf_counter()
            predictor = jax.block_until_ready(problem.predictor(state))
            predictor_seconds, begun = time.perf_counter() - begun, time.perf_counter()
            problem.score(predictor, "train")
            seconds = time.perf_counter() - begun
        yield {"scoring": [{"model": name, "titles_per_second": len(problem.rows["labels"]) / seconds,
                            "predictor_seconds": predictor_seconds, "peak_bytes": memory("peak_bytes_in_use")}]}

    # Reading the run takes as long for few titles as for many, so the difference is the time of the others.
    few, many, out = (job.folder / file for file in ("few.txt", "many.txt", "predicted.tsv"))
    lines = (job.data / "train_text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:len(lines) // 10]), encoding="utf-8")
    many.write_text("".join(lines), encoding="utf-8")
    slowest = 0
    for name, (problem, state) in ready.items():
        begun = time.time()
        if begun + slowest > job.deadline:
            yield {"skipped": [f"{name}, prediction: no time is left"]}
            continue
        problem.save(state, job.folder / name)
        predict(job.folder / name, many, out)  # compiles
        start, end = (predict(job.folder / name, file, out) for file in (few, many))
        speed = (len(lines) - len(lines) // 10) / (end - start)
        yield {"prediction": [{"model": name, "titles": len(lines), "seconds": end,  # with the reading of the run
                               "titles_per_second": speed if speed > 0 else None}]}
        slowest = time.time() - begun


# --- learning ---------------------------------------------------------------------------------------------------------

def learning(job):
    speeds = {(row["batch_size"], row["chunk"]): row["titles_per_second"]
              for row in job.found.get("training", {}).get("grid", [])
              if row["model"] == "mlp" and "titles_per_second" in row}
    if not speeds:
        raise RuntimeError("the part `training` has found no speeds")
    problem = Problem(job.data)
    default = problem.config["batch_size"], CHUNK
    contenders = dict.fromkeys([default, max(speeds, key=speeds.get)])

    # The default number of epochs first. It also shows what compiling and scoring take, so that the time that is left
    # can be divided.
    start, inputs = problem.start(), problem.inputs()
    begun = time.time()
    for batch_size, chunk in contenders:
        yield {"trainings": [trained(problem, start, inputs, batch_size, chunk, problem.config["epochs"])]}
    overhead = (time.time() - begun) / len(contenders)
    seconds = min(job.sizes["fixed"], (job.deadline - time.time() - 5) / len(contenders) - overhead)
    for batch_size, chunk in contenders:
        speed = speeds.get((batch_size, chunk), min(speeds.values()))
        epochs = max(1, int(0.95 * seconds * speed / len(problem.rows["labels"])))
        yield {"trainings": [trained(problem, start, inputs, batch_size, chunk, epochs) | {"seconds_given": seconds}]}


def trained(problem, start, inputs, batch_size, chunk, epochs):
    """Train from `start` and score the validation rows; the rates are 0 after so many epochs."""
    plan = problem.plan(batch_size, chunk)
    changes = {"batch_size": batch_size, "epochs": epochs,
               "steps": epochs * sum(chunks * steps for _, _, chunks, steps in plan)}
    with ThreadPoolExecutor() as pool:
        compiling = {width: pool.submit(problem.lower(start, inputs, (steps, batch_size, width), **changes).compile)
                     for _, width, _, steps in plan}
    programs = {width: future.result() for width, future in compiling.items()}
    state, taken = jax.tree.map(jnp.copy, start), 0
    for number in range(epochs):
        state, _, seconds = problem.epoch(programs, plan, batch_size, state, inputs, number)
        taken += seconds
    labels = problem.arrays["valid"]["labels"].astype(np.int64)
    predictions = problem.score(problem.predictor(state))["prediction"]
    return {"batch_size": batch_size, "chunk": chunk, "epochs": epochs, "seconds": taken,
            "balanced_accuracy": measures.balanced_accuracy(labels, predictions)}
