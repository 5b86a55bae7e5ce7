"""How fast one model answers titles, for tests/benchmark.py; it runs in every Python that has the peer's package.

    python tests/answering.py {classify.py,evaluate.load,fastText} MODEL TITLES

TITLES has a title a line. Prints one JSON object: who answered, in which version; titles a second of the processor's
time where all titles come at once to a model that has just been read; milliseconds of one title, the median of the
first 2,000, which come one at a time behind that; and seconds to read the model and answer a first title, by the clock,
in a model that is read for it. evaluate.load is given them as a DataFrame.
"""
import contextlib
import json
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main():
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
