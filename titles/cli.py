"""People: one-line errors and exit codes, the environment, argument types, signals; what a process loads and keeps.

What lies on a disk is the matter of files.py; nothing here imports another room.
"""
import argparse
import atexit
import codecs
import ctypes
import difflib
import errno
import functools
import gc
import importlib.util
import os
import re
import shlex
import signal
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

WINDOWS = os.name == "nt"
PREPARED = Path("data/prepared")  # what --data is unless it is typed


# --- errors and exit codes --------------------------------------------------------------------------------------------

class UserError(Exception):
    """Something the user can put right. The message names the file and says what to do."""
    status = 2


class TryAgain(UserError):
    """Something that the same command may not meet again, such as the end of another process."""
    status = 75  # EX_TEMPFAIL of sysexits.h


def run(main):
    """Call a script's `main` and turn what goes wrong into an exit status.

    Errors that the user can put right (UserError, OSError, no memory) end in one line on standard error and status 2,
    or that of the error; Ctrl-C in status 130; a reader of our output that has left in status 1. Defects keep their
    traceback.
    """
    # What libraries make while they are loaded and while programs are traced stays; to search it for garbage again and
    # again takes a sixth of that time, and to take it apart at the very end another second.
    gc.set_threshold(50_000, 20, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)

    # Libraries fail in many ways where few files may be open, and systems begin with fewer than they permit.
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # Output must not fail for a closed stream, or for a terminal that lacks a character.
    signal.signal(signal.SIGINT, interrupt)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    sys.stdout.reconfigure(errors="backslashreplace")

    # Output is flushed here and not by the interpreter, so that a reader who has left is noticed below.
    try:
        result = main()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the imports that follow, Ctrl-C ends the program at once
        return result
    except KeyboardInterrupt:
        exit_with(130)
    except Exception as error:
        # `| head`; Windows has no error of its own for that.
        if isinstance(error, BrokenPipeError) or (
                WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL and not error.filename):
            # What is left in the buffer goes nowhere, or the interpreter's last flush would fail as well.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            exit_with(1)
        # JAX reports "no memory on the device" as a RuntimeError; any other RuntimeError is a defect.
        said = error
        if isinstance(error, OSError) and error.strerror:
            said = f"{error.filename or 'input/output'}: {error.strerror}"
        elif not isinstance(error, (UserError, OSError, MemoryError)) and not (
                isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
            raise
        print("error:", " ".join(str(said).split()) or "out of memory", file=sys.stderr)
        exit_with(error.status if isinstance(error, UserError) else 2)


def interrupt(number, frame):
    """The handler of Ctrl-C: raise KeyboardInterrupt, or end the program at once where that is not safe. An exception
    crashes native libraries that are being imported, and Python swallows those raised while its garbage collector calls
    JAX."""
    # Any caller of the interrupted code may be the one that must not be left by an exception.
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback" or frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


background_threads = []  # that `in_background` has started
leave_at_once = False    # whether other processes wait for this one (devices.py)


def exit_with(status):
    """End the program. The interpreter's own way out crashes while a background thread is in the middle of an import,
    and after Ctrl-C libraries print tracebacks of what they were at, so then the program ends without it."""
    if status == 130 or leave_at_once or any(thread.is_alive() for thread in background_threads):
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status) from None


def in_background(function):
    """Call `function` in a thread that the end of the program does not wait for. Returns its Future."""
    future = Future()

    def call():
        try:
            future.set_result(function())
        except BaseException as error:
            # Whatever it is, who waits for the result must hear of it, or would wait forever.
            future.set_exception(error)

    # A thread of concurrent.futures would be waited for at the end of the program, a daemon is not.
    background_threads[:] = [thread for thread in background_threads if thread.is_alive()]
    background_threads.append(threading.Thread(target=call, daemon=True))
    background_threads[-1].start()
    return future


def give_back_memory():
    """Give the system back the memory that is free, such as what compiling took, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def load_ahead(libraries):
    """Load libraries in the background that are needed later, while something else leaves a core idle."""
    in_background(lambda: [*map(importlib.import_module, libraries)])


def map_ahead(pool, function, items, depth):
    """Like map, with up to `depth` calls and the next item under way in the pool; results come in order."""
    # The next item is read in the pool, too, while the main thread works on the results.
    waiting, items, end = deque(), iter(items), object()
    coming = pool.submit(next, items, end)
    while (item := coming.result()) is not end:
        coming = pool.submit(next, items, end)
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# --- the environment --------------------------------------------------------------------------------------------------

# Variables that change what JAX computes, or make it refuse what we do. Results must not depend on them.
JAX_VARIABLES = [f"JAX_{name}" for name in (
    "ENABLE_X64", "DEFAULT_DTYPE_BITS", "NUMPY_DTYPE_PROMOTION", "NUMPY_RANK_PROMOTION", "DEFAULT_MATMUL_PRECISION",
    "DEFAULT_PRNG_IMPL", "THREEFRY_PARTITIONABLE", "ENABLE_CUSTOM_PRNG", "RANDOM_SEED_OFFSET", "LEGACY_PRNG_KEY",
    "TRANSFER_GUARD", "TRANSFER_GUARD_HOST_TO_DEVICE", "TRANSFER_GUARD_DEVICE_TO_DEVICE",
    "TRANSFER_GUARD_DEVICE_TO_HOST", "DISABLE_JIT", "DEBUG_NANS", "DEBUG_INFS", "CHECK_TRACER_LEAKS",
    "DEBUG_KEY_REUSE", "SOFTMAX_CUSTOM_JVP", "HIGH_DYNAMIC_RANGE_GUMBEL", "EXPLICIT_X64_DTYPES", "ENABLE_CHECKS",
    "NO_TRACING", "NO_EXECUTION")]


PACKAGES = ("numpy", "pyarrow", "jax", "flax", "optax", "orbax", "pandas", "sklearn", "mlflow", "matplotlib", "tqdm",
            "filelock")  # of requirements.txt, as they are imported


def require_packages(names=PACKAGES):
    """Raise UserError where one of these packages is not installed, as in a shell without the environment."""
    for name in names:
        if not importlib.util.find_spec(name):
            raise UserError(f"{name} is not installed for {sys.executable}; activate the environment "
                            "(. .venv/bin/activate), or python -m pip install -r requirements.txt")


def clean_environment():
    """Take JAX_VARIABLES out of the environment, and import JAX, which reads the others. Raises UserError where one of
    them has a value that JAX does not know, or where a package is not installed."""
    require_packages()
    # JAX reads them while it is imported, so they must be gone before.
    for name in JAX_VARIABLES:
        if os.environ.pop(name, None) is not None:
            print(f"warning: {name} is ignored, so that results do not depend on it", file=sys.stderr)
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UserError(f"JAX does not start ({error}); unset that variable") from None


@functools.cache
def require_device():
    """The device that JAX computes on. Raises UserError where there is none, so that nothing else, such as a
    checkpoint, is blamed for it later."""
    import jax
    try:
        return jax.devices()[0]
    except Exception as error:  # JAX raises RuntimeError, and AssertionError for a platform without its plugin
        asked = os.environ.get("JAX_PLATFORMS")
        raise UserError("JAX finds no device to compute on" + (f" with JAX_PLATFORMS={asked}" if asked else "")
                        + f" ({error})") from None


# --- the command line -------------------------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all others are."""
    stray = None  # see `argument_parser`

    def parse_known_args(self, args=None, namespace=None):
        # argparse of Python 3.11 and 3.12 takes `--` out of the values of a flag, and fails where none is left.
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch("--[^=]+=--", word):
                self.error(f"{word}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        # What is left over is a flag that is spelled otherwise, or a word whose flag was forgotten.
        if message.startswith("unrecognized arguments: "):
            word = message.split()[2].partition("=")[0]
            if word.startswith("-"):
                near = difflib.get_close_matches(word, self._option_string_actions, 1)
                message += f"; did you mean {near[0]}?" if near else ""
            elif self.stray:
                message += f"; did you mean {self.stray(word)} {word}?"
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A manual as it is written, and the default of every flag that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def argument_parser(manual, stray=None):
    """A parser with the script's docstring as manual; stray: a function of a word that came without a flag, which flag
    it may belong to."""
    parser = Parser(description=manual, formatter_class=Help, allow_abbrev=False)
    parser.stray = stray
    return parser


def parse_args(parser, argv=None):
    """The arguments of a command line, and as `given` the names of those that were typed, such as {"min_count"}."""
    # argparse gives its default to what has no value yet, so in a second look no default shows. What is typed twice may
    # extend a copy of it, so it is a list.
    args, untyped = parser.parse_args(argv), []
    seen = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), untyped)))
    args.given = {name for name, value in vars(seen).items() if value is not untyped}
    return args


def add_data_flag(add):
    """Add --data by a parser's or a group's add_argument."""
    add("--data", type=Path, nargs="+", default=PREPARED,
        help="folder that prepare.py wrote, or several that were prepared --like one of them, or "
        "a folder of such parts")


def add_run_flags(add):
    """Add the flags that say which runs, --ckpt, --data and --runs, in the same way."""
    add("--ckpt", nargs="+", default=["best"],
        help="best or latest of all runs; all: the best run of every model, averaged; or a run: NAME, NAME/best, "
        "NAME/latest, or a path; several are averaged")
    add_data_flag(add)
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")


def listed(paths):
    """A path, or a list of paths, as a shell reads it."""
    return quoted(map(str, [paths] if isinstance(paths, Path) else paths))


def quoted(words):
    """The words of a command as the shell of this system reads them."""
    from subprocess import list2cmdline
    return list2cmdline(words) if WINDOWS else shlex.join(words)


def add_process_flags(add):
    """Add the flags of devices.together, by a parser's or a group's add_argument."""
    add("--coordinator", metavar="HOST:PORT",
        help="with several processes: the first one's machine and a free port of it; auto: as the launcher says")
    add("--processes", type=positive(int), metavar="N", help="with --coordinator: how many there are")
    add("--process", type=not_negative(int), metavar="I", help="with --coordinator: which one this is, from 0")


def positive(kind, or_zero=False):
    """An argparse type: a finite number of this kind (int or float) above 0, or 0 as well."""
    def number(text):
        value = kind(text)
        # NaN is refused, too: it fails every comparison.
        if not (0 < value < float("inf") or (or_zero and value == 0)):
            raise ValueError
        return value

    number.__name__ = f"{'not negative' if or_zero else 'positive'} {kind.__name__}"  # argparse shows it in errors
    return number


not_negative = functools.partial(positive, or_zero=True)


def fraction(text, wanted="a share between 0 and 1, such as 0.95", ends=()):
    """An argparse type: a number above 0 and below 1, or one of `ends`."""
    with suppress(ValueError):
        if 0 < float(text) < 1 or float(text) in ends:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: wanted {wanted}")


fraction_or_one = functools.partial(fraction, wanted="a share above 0, up to 1, such as 0.5", ends=(1,))
fraction_or_zero = functools.partial(fraction, wanted="0, or a share below 1, such as 0.1", ends=(0,))


def duration(text):
    """An argparse type: `90s`, `20m`, `1h30m` -> seconds."""
    found = re.fullmatch("(?:([0-9]{1,4})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?", text)
    parts = found.groups() if found else ()
    seconds = sum(int(part or 0) * size for part, size in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a time such as 90s, 20m or 1h30m")
    return seconds


def fold(text):
    """An argparse type: `2/5` -> (2, 5), the second of five parts."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts or parts < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted I/K, the part I of K, such as 1/3, 2/3 and 3/3")
    return part, parts


def seed(text):
    """An argparse type: an integer that fits 32 bits."""
    if not 0 <= int(text) < 2 ** 32:
        raise ValueError
    return int(text)


def encoding(text):
    """An argparse type: the name of a text encoding that Python knows."""
    try:
        # One name for all spellings of an encoding. Codecs that are not for text, such as hex, fail to encode one.
        name = codecs.lookup(text).name
        "".encode(name)
    except (LookupError, TypeError):
        raise ValueError from None
    return name


def separator(text):
    """An argparse type: what divides the fields of a table in text."""
    text = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if text not in (*",;|\t",):
        raise ValueError
    return text


def level_separator(text):
    """An argparse type: what divides the levels of a category."""
    text = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if not text:
        raise argparse.ArgumentTypeError("'': wanted a text such as '>'")
    text.encode()  # a ValueError where it is not UTF-8
    return text


def public(text):
    """A text without names and passwords that stand before the host of an address."""
    return re.sub(r"//[^/\s]*@", "//", text)


def readable(path):
    """What the shell or a file system gave, as text; bytes that are not UTF-8 become the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")
