"""How fast one model answers titles, for tests/benchmark.py; it runs in every Python that has the peer's package.

    python tests/answering.py {classify.py,fastText} MODEL TITLES

TITLES has a title a line. Prints one JSON object: who answered, in which version; titles a second of the processor's
time where all titles come at once to a model that has just been read; and milliseconds of one title, the median of the
first 2,000, which come one at a time behind that.
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
        many = one = Classifier(path).predict
    else:
        import fasttext
        model = fasttext.load_model(path).f  # the predict of the class breaks on NumPy 2

        def many(titles):
            return model.multilinePredict([title + "\n" for title in titles], 1, 0.0, "strict")

        def one(titles):
            return model.predict(titles[0] + "\n", 1, 0.0, "strict")

    started = time.process_time()
    many(titles)
    seconds, times = time.process_time() - started, []
    for title in titles[:2000]:
        started = time.perf_counter()
        one([title])
        times.append(time.perf_counter() - started)
    who = f"classify.py with NumPy {version('numpy')}"
    for package in ("fasttext", "fasttext-wheel", "fasttext-turbo") if kind == "fastText" else ():
        with contextlib.suppress(PackageNotFoundError):
            who = f"{package} {version(package)}"
    print(json.dumps({"who": who, "titles_per_second": len(titles) / seconds,
                      "one_ms": 1000 * statistics.median(times)}))


if __name__ == "__main__":
    main()
