"""Measure this program against its peers: one run, one machine, the same synthetic data. Not a test; pytest skips it.

    pip install fasttext==0.9.3 torch==2.13.0      # peers, optional; PyTorch's CPU build will do
    python tests/benchmark.py                      # about an hour on two cores
    python tests/benchmark.py --json > speed.json
    python tests/benchmark.py --rows 100000 --only mlp fasttext-hs-all
    python tests/benchmark.py --rows 20000000 --turns 1 --only prepare mlp-1-epoch    # needs 8 GB of disk
    python tests/benchmark.py --only mlp exported --turbo turbo/bin/python    # exported files; pin it to one core
    python tests/benchmark.py --rows 150000 --only felt --turbo turbo/bin/python     # what users feel; 14 minutes
    python tests/benchmark.py --rows 150000 --only mlp engines      # Spark, Ray, ..., those that are installed

Scores on real data are measured by scores.py.

Peers: fastText with 2 threads and a rate of 0.5, softmax, hierarchical softmax (hs) and one against all (ova), on
the same normalized words, `-all` with the n-grams that `mlp` has, too, and as many buckets for them; the course's
models in PyTorch (words averaged, layers of 256 and 128; 100 filters over each of 2, 3 and 4 words), a table of 50,000
words, Adam, batches of 128. Every model has 100 numbers a word vector. `mlp` and `cnn` have their n-grams, `-pairs` is
without those of characters, `-words` without any. Ratios compare like with like. `titles/s` counts training alone (for
fastText without the reading of its file); `wall` is the whole command from start-up to the last checkpoint; scores are
on the same test split. Machines are noisy: all parts run in --turns, one after another, and what counts are the medians
and ranges of the ratios of one turn.

`exported` has the file that export.py makes of `mlp` answer the test titles, in turns with fastText's softmax model of
the same features, which is given the titles' words, and with fasttext-turbo 0.1.0, which reads that model: as both
packages are imported by one name, --turbo names the Python of an environment that has it. Counted are titles a second
of the processor's time, all at once, and milliseconds of a title by itself, see answering.py.

`felt` is `exported` and four parts more, each beside its peer in every turn. `core`: processor seconds of an epoch on
one core, with what is judged in it (the difference of --epochs and one epoch, so without start-up), and what the other
cores bring by the clock; `wait`: from command to result of 4,901 titles of 6 categories, by the clock; `load`: Python
calls beside --predict; `memory`: the peak of an epoch of a million titles. What counts by the clock needs idle cores.
`engines` has the examples of docs/engines.md and classify.py score a million titles: titles a second of the processor,
that of all processes they start, on one core, where the same job has been done once before.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data

DIM, THREADS = 100, 2
LOSSES = ("softmax", "hs", "ova")  # of fastText
SCRIPTS = ("prepare", "train", "evaluate", "synthetic")
PACKAGES = {"jax": ["jax"], "fasttext": ["fasttext", "fasttext-wheel"], "torch": ["torch"]}  # names that each has


class Ran(NamedTuple):
    """What a command took: seconds by the clock and of the processor, peak resident memory in MB; what it printed."""
    wall_s: float
    processor_s: float
    peak_mb: float
    text: str


def measured(*command, folder, python=sys.executable, cores=None):
    """Run a Python command in `folder`, on `cores` alone if these are named; returns a Ran."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([python, *map(str, command)], cwd=folder, stdout=output,
                                   preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read().decode()
    if status:
        raise SystemExit(f"error: {' '.join(map(str, command))} failed")
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def script(name, *flags):
    return ROOT / f"{name}.py", *flags


# --- peers, each in a process of its own ------------------------------------------------------------------------------

def write_fasttext(folder):
    """Write the prepared splits as fastText files."""
    meta, arrays = data.load_prepared(folder / "prepared")
    vocab = np.array(meta["words"], object)
    for split, rows in arrays.items():
        with open(folder / f"{split}.txt", "w", encoding="utf-8") as file:
            for ids, label in zip(rows["titles"], rows["labels"].tolist(), strict=True):
                file.write(f"__label__{label} {' '.join(vocab[ids[ids > 1]])}\n")


def fasttext_peer(loss, epochs, file=None, **settings):
    """Returns (training seconds, predicted categories of the test split); file: where to write the model, if at all."""
    import fasttext

    def fit(epochs):
        started = time.perf_counter()
        model = fasttext.train_supervised("train.txt", loss=loss, epoch=epochs, dim=DIM, thread=THREADS, lr=0.5,
                                          verbose=0, **settings)
        return time.perf_counter() - started, model

    reading = fit(0)[0]  # and its model is freed: two would double the peak
    seconds, model = fit(epochs)
    if file:
        model.save_model(file)
    with open("test.txt", encoding="utf-8") as file:
        lines = [line.partition(" ")[2] for line in file]
    found, _ = model.f.multilinePredict(lines, 1, 0.0, "strict")  # its own predict breaks on NumPy 2
    return seconds - reading, [int(labels[0].removeprefix("__label__")) if labels else 0 for labels in found]


def torch_peer(kind, epochs, words=50_000, batch_size=128):
    """Returns (training seconds, predicted categories of the test split)."""
    import torch
    from torch import nn
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    meta, arrays = data.load_prepared(Path("prepared"), ("train", "test"))

    def tensors(split):  # ids are in the order of frequency
        ids = arrays[split]["titles"].astype(np.int64)
        return torch.from_numpy(np.where(ids < words, ids, 1)), torch.from_numpy(
            arrays[split]["labels"].astype(np.int64))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(words, DIM, padding_idx=0)
            self.layers = nn.Sequential(nn.Linear(DIM, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
                                        nn.Linear(128, len(meta["labels"])))

        def forward(self, ids):
            return self.layers(self.table(ids).sum(1) / (ids > 0).sum(1, keepdim=True).clamp(min=1))

    class CNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(words, DIM, padding_idx=0)
            self.filters = nn.ModuleList(nn.Conv1d(DIM, 100, width) for width in (2, 3, 4))
            self.layers = nn.Sequential(nn.Linear(300, 128), nn.ReLU(), nn.Linear(128, len(meta["labels"])))

        def forward(self, ids):
            vectors = self.table(ids).transpose(1, 2)
            return self.layers(torch.cat([torch.relu(filters(vectors)).amax(2) for filters in self.filters], 1))

    model = {"mlp": MLP, "cnn": CNN}[kind]()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    (titles, labels), (test, _) = tensors("train"), tensors("test")
    started = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(titles)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(titles[rows]), labels[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        return seconds, torch.cat([model(rows).argmax(1) for rows in test.split(1024)]).tolist()


def peer(name, epochs, settings):
    """What runs in a peer's process; prints one JSON object."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    package, kind = name.split("-")[:2]
    seconds, predicted = (fasttext_peer if package == "fasttext" else torch_peer)(kind, epochs, **settings)
    labels = np.load("prepared/test_labels.npy")
    print(json.dumps({"seconds": seconds, "accuracy": accuracy_score(labels, predicted),
                      "balanced_accuracy": balanced_accuracy_score(labels, predicted)}))


# --- the measurements -------------------------------------------------------------------------------------------------

def table_step(folder, rows=100_000, small=50_000, large=2_000_000, batch_size=1024, width=9, repeats=25):
    """Milliseconds of an mlp step with a small and a large table, on the same batches: {table rows: ms}; medians of
    turns about. All but the sizes is as in the folder's prepared data."""
    import model
    import train
    from titles import configuration, start
    draw = np.random.default_rng(0)
    batch = {"titles": draw.integers(2, small, (rows, width)).astype(np.uint32),
             "labels": draw.integers(0, 632, rows).astype(np.uint16)}
    order = draw.integers(0, rows, (data.MAX_STEPS, batch_size))
    flags = ["--dim", DIM, "--maxn", 0, "--word-ngrams", 1, "--dropout", 0.1]
    meta, programs, times = data.load_prepared(folder / "prepared", ())[0], {}, {}
    for vocabulary in (small, large):
        meta |= {"vocab": range(vocabulary), "labels": range(632), "training_rows": [1] * 632, "max_len": width,
                 "reliable_share": None}
        config = configuration.configure(train.TABLE, train.parse_args([*map(str, flags)]), meta, batch["titles"])
        features = model.feature_tables(config, [""] * vocabulary)
        state = start.state_of_words(config, train.make_optimizer(config), features, batch["titles"])
        programs[vocabulary] = train.make_train_chunk(config), state, train.training_arrays(config, features, batch)
        times[vocabulary] = []
    for _ in range(repeats):
        for vocabulary, (step, state, arrays) in programs.items():
            started = time.perf_counter()
            state, loss = step(state, arrays, order, width=width)
            loss.block_until_ready()
            times[vocabulary].append((time.perf_counter() - started) / len(order) * 1000)
            programs[vocabulary] = step, state, arrays
    return {vocabulary: float(np.median(found[2:])) for vocabulary, found in times.items()}


def prepared(folder, rows, categories, peers):
    """Make a folder's titles.csv, prepared/ and, if there are peers, fastText's files; returns what prepare.py took."""
    folder.mkdir(exist_ok=True)
    measured(*script("synthetic", "--rows", rows, "--categories", categories, "--out", "titles.csv"), folder=folder)
    ran = measured(*script("prepare", "--data", "titles.csv", "--out", "prepared"), folder=folder)
    if peers:
        write_fasttext(folder)
    return ran


def ours(folder, name, run, model, epochs, flags):
    """A row of the table: train.py and evaluate.py."""
    rows = count_rows(folder)
    ran = trained(folder, run, epochs, "--model", model, *flags)
    scores = json.loads(measured(*script("evaluate", "--data", "prepared", "--ckpt", f"{run}/latest", "--json"),
                                 folder=folder).text)
    training = training_seconds(folder, run, rows)
    return {"model": name, "epochs": epochs, "titles_per_second": epochs * rows / training, "training_s": training,
            "wall_s": ran.wall_s, "peak_mb": ran.peak_mb, "accuracy": scores["accuracy"],
            "balanced_accuracy": scores["balanced_accuracy"]}


def trained(folder, run, epochs, *flags, cores=None):
    return measured(*script("train", "--data", "prepared", "--name", run, "--epochs", epochs, "--dim", DIM, *flags),
                    folder=folder, cores=cores)


def training_seconds(folder, run, rows):
    """Seconds that the steps of a run's epochs took, by the clock."""
    header, *lines = (folder / "runs" / run / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("titles_per_second")
    return sum(rows / float(line.split(",")[place]) for line in lines)


def theirs(folder, name, epochs, rows, cores=None, **more):
    """A row of the table: a peer, with mlp's n-grams if its name says so, and more settings."""
    settings = {}
    if name.endswith("-all"):
        import train
        words = len(data.load_prepared(folder / "prepared", ())[0]["vocab"])
        settings = {"wordNgrams": 2, "minn": 3, "maxn": 4,
                    "bucket": train.size_rule(rows, 1, 0, words)["buckets"]}
    ran = measured(__file__, "--peer", name, "--epochs", epochs, "--settings", json.dumps(settings | more),
                   folder=folder, cores=cores)
    found = json.loads(ran.text.splitlines()[-1])
    return {"model": name, "epochs": epochs, "titles_per_second": epochs * rows / found["seconds"],
            "training_s": found["seconds"], "wall_s": ran.wall_s, "processor_s": ran.processor_s,
            "peak_mb": ran.peak_mb, "accuracy": found["accuracy"], "balanced_accuracy": found["balanced_accuracy"]}


def classify_speed(folder, name):
    """Titles a second after start-up, of a report and of --predict: from the difference of a large and a small job."""
    speed = {}
    sizes = {split: len(np.load(folder / f"prepared/{split}_labels.npy", mmap_mode="r")) for split in data.SPLITS}
    titles = [(folder / f"prepared/{split}_text.txt") for split in ("valid", "train")]
    for kind, flags in {"report": [["--data", "prepared", "--split", split, "--json"] for split in ("valid", "train")],
                        "predict": [["--predict", path, "--out", "predicted.tsv"] for path in titles]}.items():
        small, large = (measured(*script("evaluate", "--ckpt", name, *flag), folder=folder).wall_s for flag in flags)
        speed[kind] = (sizes["train"] - sizes["valid"]) / (large - small)
    return speed


def has_turbo(python):
    """Whether this Python, None for none, has fasttext-turbo."""
    command = [python, "-c", "from importlib.metadata import version; version('fasttext-turbo')"]
    with contextlib.suppress(OSError):
        return python and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


# --- what users feel: {what: {who: figure}} of one turn, ours first, behind it what it is divided by ------------------

def exported(folder, args, turn, peers):
    """The exported file of mlp beside fastText and fasttext-turbo, whose Pythons `peers` names."""
    if not turn:
        measured(*script("export", "--ckpt", "mlp-0", "--out", "exported"), folder=folder)
        titles = (folder / "prepared/test_text.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
        (folder / "words.txt").write_text("".join(" ".join(data.tokenize(title)) + "\n" for title in titles), "utf-8")
        if peers:
            theirs(folder, "fasttext-softmax-all", args.epochs, count_rows(folder), file="fasttext.bin")
    told = [answered(folder, sys.executable, "classify.py", "exported/model.npz", "prepared/test_text.txt"),
            *(answered(folder, python, "fastText", "fasttext.bin", "words.txt") for python in peers)]
    return {f"exported file, {what}": {found["who"]: found[key] for found in told}
            for what, key in (("titles a processor second", "titles_per_second"), ("ms a title", "one_ms"))}


def core(folder, args, turn, peers):
    """Titles of an epoch by seconds of the processor, all on one core, and what the other cores bring by the clock."""
    rows, one = count_rows(folder), {min(os.sched_getaffinity(0))}

    def by_epochs(many, ran):
        return rows * (many - 1) / (ran(many) - ran(1))

    # Ours start up for longer, so it takes more epochs to see these.
    found = {"mlp": by_epochs(3 * args.epochs, lambda epochs: trained(
        folder, f"core-{turn}-{epochs}", epochs, cores=one).processor_s)}
    for name in peers and ("fasttext-softmax-all", "fasttext-hs-all"):
        found[name] = by_epochs(args.epochs, lambda epochs, name=name: theirs(
            folder, name, epochs, rows, one)["processor_s"])
    trained(folder, f"cores-{turn}", 3 * args.epochs)
    return {"one core, titles of an epoch a processor second": found, "mlp, titles/s": {
        cores: 3 * args.epochs * rows / training_seconds(folder, run, rows)
        for cores, run in (("all cores", f"cores-{turn}"), ("one core", f"core-{turn}-{3 * args.epochs}"))}}


def wait(folder, args, turn, peers):
    """Seconds from a command to its result: 4,901 titles of 6 categories."""
    here, run = folder / "small", f"wait-{turn}"
    if not turn:
        prepared(here, 4901, 6, peers)
        (here / "one.txt").write_text(first_line(here / "prepared/test_text.txt"), "utf-8")
    found = {"train.py": measured(*script("train", "--data", "prepared", "--name", run), folder=here).wall_s}
    if peers:
        epochs = len((here / "runs" / run / "metrics.csv").read_text().splitlines()) - 1
        found["fasttext-softmax-all"] = theirs(here, "fasttext-softmax-all", epochs, count_rows(here))["wall_s"]
    report, one = (measured(*script("evaluate", "--ckpt", run, *flags), folder=here).wall_s
                   for flags in (("--data", "prepared"), ("--predict", "one.txt")))
    return {"s until trained and judged": found, "s of a report": {"evaluate.py": report},
            "s of one title": {"evaluate.py --predict": one}}


def load(folder, args, turn, peers):
    """What answers in Python by evaluate.load: a first title, and a DataFrame beside a file of --predict."""
    titles = folder / "prepared/train_text.txt"
    (folder / "one.txt").write_text(first_line(titles), "utf-8")
    told = answered(folder, sys.executable, "evaluate.load", "mlp-0", titles)
    small, large = (measured(*script("evaluate", "--ckpt", "mlp-0", "--predict", path, "--out", "predicted.tsv"),
                             folder=folder).processor_s for path in ("one.txt", titles))
    return {"s to load and answer a first title": {"evaluate.load": told["first_s"]},
            "titles a processor second": {"predict of a DataFrame": told["titles_per_second"],
                                          "--predict after start-up": (count_rows(folder) - 1) / (large - small)}}


def memory(folder, args, turn, peers):
    """MB at most while a million titles train for an epoch."""
    here = folder / "million"
    if not turn:
        prepared(here, 1_000_000, args.categories, peers)
    found = {"mlp": trained(here, f"memory-{turn}", 1).peak_mb}
    if peers:
        found["fasttext-hs-all"] = theirs(here, "fasttext-hs-all", 1, count_rows(here))["peak_mb"]
    return {"MB at most, a million titles": found}


EXAMPLES = dict(re.findall(r"^## (.*?)$.*?^```python\n(.*?)^```", (ROOT / "docs/engines.md").read_text("utf-8"),
                           re.MULTILINE | re.DOTALL))


def engines(folder, args, turn, peers):
    """Titles that classify.py and the engines score, by seconds of the processor, on one core."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet
    one, rows = {min(os.sched_getaffinity(0))}, 1_000_000
    if not turn:
        measured(*script("export", "--ckpt", "mlp-0", "--out", "exported", "--register", "titles", "--alias",
                         "champion"), folder=folder)
        measured(*script("synthetic", "--rows", rows, "--seed", 7, "--out", "new.csv"), folder=folder)
        titles = pa.csv.read_csv(folder / "new.csv", convert_options=pa.csv.ConvertOptions(include_columns=["title"]))
        pa.parquet.write_table(titles, folder / "offers.parquet", row_group_size=rows // 8)
        (folder / "new.txt").write_text("\n".join(titles["title"].to_pylist()), "utf-8")
        (folder / "one.txt").write_text(first_line(folder / "new.txt"), "utf-8")
    small, large = (measured("exported/classify.py", "exported/model.npz", name, folder=folder, cores=one).processor_s
                    for name in ("one.txt", "new.txt"))
    found = {"classify.py": rows / (large - small)}
    for name, code in EXAMPLES.items():
        package = name.split()[0].lower()
        if importlib.util.find_spec({"spark": "pyspark"}.get(package, package)):
            (folder / "example.py").write_text(code, "utf-8")
            found[name] = rows / json.loads(measured(ROOT / "tests/answering.py", "example", "exported", "example.py",
                                                     folder=folder, cores=one).text.splitlines()[-1])
    return {"titles a processor second, a million of them": found}


FELT = {"exported": exported, "core": core, "wait": wait, "load": load, "memory": memory}
PARTS = FELT | {"engines": engines}


def answered(folder, python, *job):
    """What answering.py tells of one model."""
    return json.loads(measured(ROOT / "tests/answering.py", *job, folder=folder, python=python).text)


def count_rows(folder):
    return len(np.load(folder / "prepared/train_labels.npy", mmap_mode="r"))


def first_line(path):
    return path.read_text(encoding="utf-8").partition("\n")[0]


def ratios(table):
    """What the table says about speed for equal scores; above 1 is better for us."""
    mlp, once = "mlp-words", "mlp-words-1-epoch"
    found, by = {}, {row["model"]: row for row in table}
    for peer, model in [(f"fasttext-{loss}{features}", "mlp" if features else mlp) for features in ("", "-all")
                        for loss in LOSSES] + [("torch-mlp", mlp), ("torch-cnn", "cnn-words-1-epoch")]:
        if peer in by and model in by:
            found[f"titles/s, {model} / {peer}"] = by[model]["titles_per_second"] / by[peer]["titles_per_second"]
            found[f"balanced accuracy, {model} - {peer}"] = (
                by[model]["balanced_accuracy"] - by[peer]["balanced_accuracy"])
    for peer, kind in (("fasttext-softmax", "wall_s"), ("fasttext-hs", "training_s")):
        enough = [by[name][kind] for name in (once, mlp) if name in by and peer in by
                  and by[name]["balanced_accuracy"] >= by[peer]["balanced_accuracy"]]
        if enough:
            found[f"{kind.removesuffix('_s')} time, {peer} / {mlp} until as good"] = by[peer][kind] / min(enough)
    return found


def benchmark(args, folder):
    words, pairs = ("--maxn", 0, "--word-ngrams", 1), ("--maxn", 0)
    rows = {"mlp": ("mlp", args.epochs, ()), "mlp-pairs": ("mlp", args.epochs, pairs),
            "mlp-words": ("mlp", args.epochs, words), "mlp-1-epoch": ("mlp", 1, ()),
            "mlp-words-1-epoch": ("mlp", 1, words), "cnn-1-epoch": ("cnn", 1, ()),
            "cnn-words-1-epoch": ("cnn", 1, words)}
    peers = {f"fasttext-{loss}{features}": args.epochs for features in ("", "-all") for loss in LOSSES}
    peers |= {"torch-mlp": 1, "torch-cnn": 1}
    parts = ["prepare", *rows, *peers, "classify", *PARTS, "table-size", "help"]
    asked = {*(args.only or parts)}
    if unknown := asked - {*parts, "felt"}:
        raise SystemExit(f"error: --only {min(unknown)}: choose from {' '.join(parts)} felt")
    if "felt" in asked:
        asked |= {"mlp", *FELT}
    wanted = [part for part in parts if part in asked]  # mlp comes before what needs it
    if "core" in wanted and args.epochs < 2:
        raise SystemExit("error: --epochs: `core` wants 2 or more, for it times what others take longer than one")
    result = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
              "versions": {}, "data": f"SYNTHETIC, {args.rows:,} rows, {args.categories} categories"}

    def say(*words):
        print(*words, file=sys.stderr, flush=True)

    for package, names in PACKAGES.items():
        for name in names:
            with contextlib.suppress(PackageNotFoundError):
                result["versions"][package] = version(name)
        if package not in result["versions"]:
            say(f"{package} is not installed: left out")
            wanted = [part for part in wanted if not part.startswith(package)]
    ran = prepared(folder, args.rows, args.categories, "fasttext" in result["versions"])
    result["prepare"] = {"titles_per_second": args.rows / ran.wall_s, "wall_s": ran.wall_s, "peak_mb": ran.peak_mb}
    say("prepare", result["prepare"])
    answering = [sys.executable] if "fasttext" in result["versions"] else []
    if answering and has_turbo(args.turbo):
        answering.append(args.turbo)
    elif "exported" in wanted:
        say("fasttext-turbo is left out: it needs fastText, and --turbo a Python that has it")
    if "mlp" not in wanted and (needing := {"exported", "load", "engines"} & set(wanted)):
        say(f"{' '.join(sorted(needing))}: left out, for they need mlp")
        wanted = [part for part in wanted if part not in needing]

    # The parts come one after another, turn by turn, so that a busy minute meets ours and the peers'.
    result["table"], result["felt"] = table, felt = [], {}
    for turn in range(args.turns):
        for name in wanted:
            if name in PARTS:
                for what, found in PARTS[name](folder, args, turn, answering).items():
                    say(what, found)
                    for who, figure in found.items():
                        felt.setdefault(what, {}).setdefault(who, []).append(figure)
            elif name in rows or name in peers:
                table.append({"turn": turn} | (ours(folder, name, f"{name}-{turn}", *rows[name]) if name in rows
                                               else theirs(folder, name, peers[name], count_rows(folder))))
                say(table[-1])
    if "classify" in wanted:
        result["classify"] = {name: classify_speed(folder, f"{name}-0") for name in wanted
                              if name in ("mlp", "mlp-words-1-epoch", "cnn-1-epoch")}
    if "table-size" in wanted:
        result["step_ms_by_table_rows"] = table_step(folder)
    if "help" in wanted:
        result["help_s"] = {name: min(measured(*script(name, "--help"), folder=folder).wall_s for _ in range(3))
                            for name in SCRIPTS}
    by_turn = [ratios([row for row in table if row["turn"] == turn]) for turn in range(args.turns)]
    result["ratios"] = {name: [found[name] for found in by_turn if name in found]
                        for name in dict.fromkeys(name for found in by_turn for name in found)}
    return result


def median_and_range(values, form):
    """Numbers as text: their median, and the least and the greatest."""
    text = format(float(np.median(values)), form)
    return text + (f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else "")


def short_median_and_range(values):
    """The same with three digits, or as whole numbers."""
    digits = max(0, 2 - int(np.floor(np.log10(np.median(values)))))
    return median_and_range(values, f",.{digits}f")


def show(result):
    print(f"{result['data']}; {result['machine']}; "
          + ", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    print(f"prepare.py: {result['prepare']['titles_per_second']:,.0f} titles/s, {result['prepare']['wall_s']:.1f} s, "
          f"peak {result['prepare']['peak_mb']:,.0f} MB\n")
    print("| model | epochs | titles/s | wall, s | peak, MB | accuracy | balanced accuracy |")
    print("|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["model"] for row in result["table"]):
        turns = [row for row in result["table"] if row["model"] == name]
        speed, wall = ([row[key] for row in turns] for key in ("titles_per_second", "wall_s"))
        peak, accuracy, balanced = (np.median([row[key] for row in turns]) for key in (
            "peak_mb", "accuracy", "balanced_accuracy"))
        print(f"| {name} | {turns[0]['epochs']} | {median_and_range(speed, ',.0f')} | "
              f"{median_and_range(wall, '.1f')} | {peak:,.0f} | {accuracy:.4f} | {balanced:.4f} |")
    print()
    for name, values in result["ratios"].items():
        print(f"{name}: {median_and_range(values, '.4f' if 'accuracy' in name else '.2f')}")
    for name, speed in result.get("classify", {}).items():
        print(f"{name}, after start-up: " + ", ".join(f"{kind} {x:,.0f} titles/s" for kind, x in speed.items()))
    for what, found in result["felt"].items():
        own, *others = found
        for who, figures in found.items():
            print(f"{what}, {who}: {short_median_and_range(figures)}")
        for who in others:
            print(f"{what}, {own} / {who}: " + short_median_and_range(
                [one / other for one, other in zip(found[own], found[who], strict=True)]))
    if "step_ms_by_table_rows" in result:
        print("mlp step by table size: " + ", ".join(
            f"{int(rows):,} rows {ms:.2f} ms" for rows, ms in result["step_ms_by_table_rows"].items()))
    for name, seconds in result.get("help_s", {}).items():
        print(f"{name}.py --help: {seconds:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="synthetic titles")
    parser.add_argument("--turns", type=int, default=3, help="how often every part is measured")
    parser.add_argument("--categories", type=int, default=632)
    parser.add_argument("--epochs", type=int, default=3, help="of mlp and fastText")
    parser.add_argument("--only", nargs="+", metavar="PART", help="measure only these rows or parts")
    parser.add_argument("--turbo", type=os.path.abspath, metavar="PYTHON",
                        help="of an environment that has fasttext-turbo, for `exported`")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.epochs, args.settings)
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(args, Path(folder))
    print(json.dumps(result, indent=1)) if args.json else show(result)


if __name__ == "__main__":
    main()
