"""How fast one model answers titles, for tests/benchmark.py; it runs in every Python that has the peer's package.

    python tests/answering.py {classify.py,evaluate.load,fastText} MODEL TITLES
    python tests/answering.py example EXPORTED SCRIPT

TITLES has a title a line. Prints one JSON object: who answered, in which version; titles a second of the processor's
time where all titles come at once to a model that has just been read; milliseconds of one title, the median of the
first 2,000, which come one at a time behind that; and seconds to read the model and answer a first title, by the clock,
in a model that is read for it. evaluate.load is given them as a DataFrame.

SCRIPT is an example of docs/engines.md, of which the last line does the work: it is run twice, and what is printed are
the seconds of the processor that all processes took the second time. Linux alone.
"""
import contextlib
import ctypes
import json
import os
import shutil
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor_seconds():
    """Of this process and all below it, those included that have ended and were waited for."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))

    def is_below(process):
        return process == os.getpid() or (process in found and is_below(found[process][0]))

    return sum(ticks for process, (_, ticks) in found.items() if is_below(process)) / os.sysconf("SC_CLK_TCK")


def example(exported, script):
    """What an example's last line takes when it is run the second time."""
    # Processes of an engine whose parent has ended stay below this one (PR_SET_CHILD_SUBREAPER).
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    sys.path.insert(0, exported)
    os.environ |= {"PYTHONPATH": exported, "PYSPARK_PYTHON": sys.executable}
    *before, last = Path(script).read_text(encoding="utf-8").splitlines()
    names, seconds = {"__name__": "__main__"}, []
    exec("\n".join(before), names)
    for _ in range(2):
        for path in Path().glob("scored*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        started = processor_seconds()
        exec(last, names)
        seconds.append(processor_seconds() - started)
    print(f"\n{json.dumps(seconds[1])}")


def main():
    if sys.argv[1] == "example":
        return example(*sys.argv[2:])
    kind, path, titles = sys.argv[1:]
    titles = Path(titles).read_text(encoding="utf-8").rstrip("\n").split("\n")
    if kind == "classify.py":
        sys.path.insert(0, str(Path(path).parent))
        from classify import Classifier

        def read():
            return (Classifier(path).predict,) * 2
    elif kind == "evaluate.load":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        import pandas as pd

        from evaluate import load

        def read():
            predict = load(path).predict
            return (lambda titles: predict(pd.DataFrame({"title": titles}))), predict
    else:
        import fasttext

        def read():
            model = fasttext.load_model(path).f  # the predict of the class breaks on NumPy 2
            return (lambda titles: model.multilinePredict([title + "\n" for title in titles], 1, 0.0, "strict"),
                    lambda titles: model.predict(titles[0] + "\n", 1, 0.0, "strict"))

    started = time.perf_counter()
    read()[1](titles[:1])
    first = time.perf_counter() - started
    many, one = read()
    started = time.process_time()
    many(titles)
    seconds, times = time.process_time() - started, []
    for title in titles[:2000]:
        started = time.perf_counter()
        one([title])
        times.append(time.perf_counter() - started)
    who = f"{kind} with NumPy {version('numpy')}"
    for package in ("fasttext", "fasttext-wheel", "fasttext-turbo") if kind == "fastText" else ():
        with contextlib.suppress(PackageNotFoundError):
            who = f"{package} {version(package)}"
    print(json.dumps({"who": who, "titles_per_second": len(titles) / seconds,
                      "one_ms": 1000 * statistics.median(times), "first_s": first}))


if __name__ == "__main__":
    main()
