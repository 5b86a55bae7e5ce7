"""Check and time the program on an NVIDIA GPU, in at most nine minutes; or rehearse that on a CPU, small, in two.

    tests/gpu.sh gpu.json                  # needs a GPU and JAX for CUDA: pip install "jax[cuda13]"
    tests/gpu.sh gpu.json --rehearse       # needs neither; its times mean nothing

It needs no network, and makes its data itself: synthetic titles, a million with 632 categories. Where MLflow or the
encoder's package is missing, the parts that need it say so and do nothing. Each part is a process with a time limit of
its own, so a part that fails, crashes or hangs costs no other part. What a part finds is printed and written to the
JSON file at once. The exit status is 0 where all parts are ok, 1 where one is not, and 2 where the command is wrong or
there is no GPU.

    device       versions, card, memory
    correctness  the GPU against the CPU: losses of 20 steps within a tolerance and predictions equal, with exact
                 float32 products (how far JAX's default products deviate is said beside it); whether two trainings
                 with one seed give the same bits, and which operations do; a checkpoint's way from GPU to CPU and back
    compiling    seconds to compile the training loops, one after the other and side by side, as it is and where XLA
                 does not try kernels out, and titles/s with what comes of it
    commands     seconds of prepare.py, train.py and evaluate.py on all titles, with MLflow; evaluate.py once more
                 without the GPU, on what was saved with it
    encoder      the same of the small data with --model encoder, and a refit
    same_bits    whether XLA's deterministic operations make two trainings the same bits, and what speed they cost
    scatter      the scatter-add into the table, where words repeat as in real titles and padding is dropped: as it is;
                 with sorted rows; and summed: sort, segment sum, a scatter of distinct sorted rows
    training     titles/s and memory by model, batch size and steps in a compiled loop (chunk)
    profile      the step cut off after each stage; the differences are the stages' shares, less than nothing where a
                 stage must write what the whole step never does
    evaluation   titles/s of scoring and of `evaluate.py --predict`
    learning     balanced accuracy of the default batch and of the fastest, after the default epochs and after a fixed
                 time, at the end of which the rates are 0

`program_bytes` is what one compiled program needs (arguments, results and temporary arrays), `peak_bytes` the most that
the process had in use until then. `kernels_share` estimates how much of a step it takes to launch its kernels: their
number in the compiled program, times what a kernel with next to nothing to do takes. What one part has compiled the
others find on disk. gpu_parts.py holds the parts.
"""
import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from titles import cli, files
from titles.cli import UserError

# --- knobs ------------------------------------------------------------------------------------------------------------
TOTAL = 520  # seconds for all parts; to start and to end takes a few more
PARTS = {    # module, seconds at most, prepared data that it needs
    "device": ("gpu_parts", 30, None),
    "correctness": ("gpu_parts", 160, "small"),
    "compiling": ("gpu_parts", 90, "large"),
    "commands": ("gpu_parts", 90, "large"),
    "encoder": ("gpu_parts", 120, "small"),
    "scatter": ("gpu_parts", 40, None),
    "training": ("gpu_parts", 80, "large"),
    "same_bits": ("gpu_parts", 50, "large"),
    "profile": ("gpu_parts", 60, "large"),
    "evaluation": ("gpu_parts", 60, "large"),
    "learning": ("gpu_parts", 90, "large"),
}
WORDS_ALONE = ("--word-ngrams", 1, "--maxn", 0)
FULL = {
    "small": (4000, 20), "large": (1_000_000, 632),  # titles and categories of the prepared data
    "models": ("mlp", "cnn", "rnn", "transformer"),  # that are compared with the CPU
    "tables": (50_000, 2_000_000), "scatters": (1024, 16384),         # rows, and titles of a batch
    "trained": {"mlp": (), "mlp, words alone": WORDS_ALONE, "cnn": ("--model", "cnn")},
    "batches": (1024, 16384, 4096, 65536), "chunks": (8, 64),
    "profiles": (1024, 16384),                       # batches
    "encoder": ("--refit",),                         # flags of train.py
    "timing": 0.5, "fixed": 10}                      # seconds of one measurement, and of a training in `learning`
REHEARSAL = FULL | {
    "small": (1000, 10), "large": (1000, 10), "models": ("mlp",), "tables": (500, 20_000), "scatters": (32, 128),
    "trained": {"mlp": (), "cnn": ("--model", "cnn", "--filters", 8, "--widths", 1, 2)},
    "batches": (64, 256), "chunks": (8, 16), "profiles": (64,),
    "encoder": ("--epochs", 1, "--freeze-layers"), "timing": 0.05, "fixed": 0.5}


def parse_args():
    parser = cli.argument_parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="file to write")
    parser.add_argument("--rehearse", action="store_true", help="all parts on the CPU, small")
    return parser.parse_args()


# --- one part ---------------------------------------------------------------------------------------------------------

def findings(module, name, job):
    """Run a part in a process of its own; yield what it finds, a dictionary at a time, the last one with its status."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(module, name, job, sender))
    process.start()
    sender.close()  # so that the end of the process ends the pipe
    try:
        finding = {}
        while "status" not in finding:
            if not receiver.poll(max(0, job.deadline - time.time())):
                finding = {"status": "error", "error": "took too long"}
            else:
                try:
                    finding = receiver.recv()
                except EOFError:
                    process.join()
                    finding = {"status": "error", "error": f"the process died with exit code {process.exitcode}"}
            yield finding
    finally:  # with the processes that it began
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def work(module, name, job, sender):
    """What runs in the process of a part."""
    os.setsid()
    try:
        for finding in getattr(importlib.import_module(module), name)(job):
            sender.send(rounded(finding))
        sender.send({"status": "ok"})
    except Exception as error:
        traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())
        sender.send({"status": "error", "error": message[:500]})


def rounded(value):
    """A finding as JSON has it: numbers with six digits, "nan" and "inf" as text."""
    if isinstance(value, dict):
        return {str(key): rounded(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]
    value = getattr(value, "item", lambda: value)()  # a number of NumPy's
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def add(part, finding):
    """Add a finding to those before: lists are continued, dictionaries too."""
    for key, value in finding.items():
        if isinstance(value, list) and key in part:
            part[key] += value
        elif isinstance(value, dict) and key in part:
            add(part[key], value)
        else:
            part[key] = value


# --- all parts --------------------------------------------------------------------------------------------------------

def make_data(folder, rows, categories):
    """Write a prepared folder of synthetic titles, and return it."""
    csv = folder.with_suffix(".csv")
    for script, *flags in (("synthetic", "--rows", rows, "--categories", categories, "--out", csv),
                           ("prepare", "--data", csv, "--out", folder)):
        done = subprocess.run([sys.executable, ROOT / f"{script}.py", *map(str, flags)], timeout=100, text=True,
                              capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{script}.py: {done.stderr.strip()[-200:]}")
    return folder


def run(out, rehearse):
    """Run all parts and write the JSON file `out` after each finding. Returns whether all parts are ok."""
    sizes, begun, made = REHEARSAL if rehearse else FULL, time.time(), {}
    result = {"rehearsal": rehearse, "code": files.fingerprint([files.checksum(path) for path in sorted(
        [*ROOT.glob("*.py"), *ROOT.glob("titles/*.py"), *ROOT.glob("tests/gpu*")])]), "seconds": 0, "parts": {}}
    files.write_json(out, result)  # what cannot be written is known before the work
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        # The processes of the parts inherit these.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder) / "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for name, (module, limit, needs) in PARTS.items():
            part, started = result["parts"].setdefault(name, {}), time.time()
            deadline = min(started + limit, begun + TOTAL)
            print(f"--- {name}, {deadline - started:.0f} s at most", flush=True)
            for size in (sizes["small"], sizes["large"]) if needs else ():  # the large one beside the parts that follow
                if size not in made:
                    made[size] = pool.submit(make_data, Path(folder) / f"titles-{size[0]}", *size)
            job = SimpleNamespace(folder=Path(folder), sizes=sizes, found=result["parts"], deadline=deadline)
            for finding in prepared_findings(module, name, job, needs and made[sizes[needs]]):
                add(part, finding)
                part["seconds"] = round(time.time() - started, 1)
                result["seconds"] = round(time.time() - begun, 1)
                print(f"{part['seconds']:5.1f} s  {json.dumps(finding)}", flush=True)
                files.write_json(out, result)
            if part.get("platform") == "cpu" and not rehearse:
                raise UserError("JAX finds no GPU here; --rehearse runs everything small on the CPU")
    ok = all(part["status"] == "ok" for part in result["parts"].values())
    print(f"{'all parts ok' if ok else 'NOT all parts ok'} after {result['seconds']:.0f} s: {out}")
    return ok


def prepared_findings(module, name, job, making):
    """The findings of a part, once its data is made."""
    try:
        job.data = making and making.result(timeout=max(0, job.deadline - time.time()))
    except Exception as error:
        yield {"status": "error", "error": f"no data: {type(error).__name__}: {error}"[:500]}
    else:
        yield from findings(module, name, job)


def main():
    args = parse_args()
    if args.rehearse:  # the parts inherit these; programs that are not optimized compile sooner
        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    elif "cpu" not in (os.environ.get("JAX_PLATFORMS") or "cpu"):  # the GPU is compared with the CPU
        os.environ["JAX_PLATFORMS"] += ",cpu"
    return run(args.out, args.rehearse)


if __name__ == "__main__":
    sys.exit(0 if cli.run(main) else 1)
