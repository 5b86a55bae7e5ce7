"""Damage files at random and see what the program makes of them; pytest does some of it (test_faults.py). At length:

    python tests/fuzz.py --mutants 10000           # about 6 minutes on two cores

A mutant is a file with a bit flipped, bytes cut away, zeroed, repeated or put in at random, or taken from a list of
troublesome ones. Of raw titles and vectors (CSV, JSON lines, fastText, Parquet, compressed or not, in several
encodings) prepare.py makes arrays that load, or says in one line what is wrong; every line is a row, a bad row or
blank. Titles to classify are as many as their lines, or what is odd is said. Of prepared data and of a run
(configuration, vocabulary, checkpoint) nothing is let in that differs from what was written. Whatever variables are in
the environment, predictions stay the same, or one line says what is wrong.
"""
import argparse
import bz2
import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import run_script, tiny_rows, write_csv

import data
import prepare
from titles import cli, files, formats, runs, sources
from titles.cli import UserError

TROUBLE = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b'""', b"\r", b"\n\n", b"\t", b",", b"\\", b"{", b"]", b"NaN",
           b"__label__", b"1e999", b"-1", b'"\n', b'\n"', b', "', b';', b"|", b"&eacute;", b"&#0;", b"&",
           "\u200b\u00ad".encode(), "e\u0301".encode(), b"\xe9", b"\x81", b"[1]", b"1.5", b'{"a": 1}', b"null", b"true",
           b"NaN,", b"Reliable", b"__label__a,__label__b ", b"\ntitle,label_quality,language,category\n", b"$", b"\\N",
           b"999999999999999999999", "\u0301\u202e\U0001f600".encode(), b"\xed\xa0\x80",
           b"x" * 70_000]
LIMIT = 20  # seconds that a mutant may take
SPANS = "a field in quotes spans lines"  # what is said where a row has more than one line

ENVIRONMENT = [*cli.JAX_VARIABLES, "JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_LOG_COMPILES", "JAX_LOGGING_LEVEL",
               "JAX_TRACEBACK_FILTERING", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "JAX_DEFAULT_DEVICE",
               "PYTHONSAFEPATH", "PYTHONOPTIMIZE", "LC_ALL", "MPLBACKEND"]
VALUES = ["0", "1", "true", "x", "-1", "cpu", "cuda", "raise", "disallow", "32", "latin-1", "C", "é"]


def mutated(content, draw):
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 3])):
        place = draw.randrange(len(content) + 1)
        end = min(len(content), place + draw.choice([1, 4, 16, 300]))
        kind = draw.choice(["flip", "cut", "end", "zero", "repeat", "trouble"])
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[place:end]
        elif kind == "end":
            del content[place:]
        elif kind == "zero":
            content[place:end] = bytes(end - place)
        elif kind == "repeat":
            content[place:place] = content[place:end] * draw.choice([1, 50])
        else:
            content[place:place] = draw.choice(TROUBLE)
    return bytes(content)


def raw_files(folder):
    """{name: content} of small files of every form."""
    rows = tiny_rows(60)
    titles = write_csv(folder / "titles.csv", rows).read_bytes()
    lines = "".join(json.dumps({"title": title, "category": category, "language": language}) + "\n"
                    for title, _, language, category in rows).encode()
    labelled = "".join(f"__label__{category} {title}\n" for title, _, _, category in rows).encode()
    table = io.BytesIO()
    names = ("title", "label_quality", "language", "category")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), table)
    semicolons = titles.decode().replace(",", ";").replace("\n", "\r\n")
    quoted = "".join('"' + line.replace(",", '","') + '"\n' for line in titles.decode().splitlines())
    return {"titles.csv": titles, "titles.jsonl": lines, "titles.txt": labelled, "titles.csv.gz": gzip.compress(titles),
            "titles.jsonl.bz2": bz2.compress(lines), "titles.txt.xz": lzma.compress(labelled),
            "titles.parquet": table.getvalue(), "semicolons.csv": semicolons.encode("utf-8-sig"),
            "quoted.csv": quoted.encode(), "titles.utf-16": titles.decode().encode("utf-16"),
            "titles.cp1252": semicolons.encode("cp1252")}


def encoding_of(name):
    return {".utf-16": "utf-16", ".cp1252": "cp1252"}.get(Path(name).suffix, "utf-8")


def lines_of(path):
    """(lines of a file as the readers see them, how many of them are blank); None of a Parquet file."""
    with open(path, "rb") as raw:
        stream = files.decoded(files.decompressed(raw), encoding_of(path), path)
        if formats.has_columns(stream):
            return None
        content = stream.read().replace(b"\r\n", b"\n")
    lines = content.removesuffix(b"\n").decode("latin-1").split("\n")
    return len(lines), sum(not line.removeprefix("\xef\xbb\xbf").strip() for line in lines)


def main_of(module, *args):
    """Exit status and standard error of a script's main, in this process."""
    errors, sys.argv = io.StringIO(), [f"{module.__name__}.py", *map(str, args)]
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            cli.run(module.main)
            return 0, errors.getvalue()
        except SystemExit as leave:
            return leave.code or 0, errors.getvalue()


def fuzz_raw(folder, draw):
    """prepare.py on a mutant of a raw file, or of a file of vectors."""
    sound = raw_files(folder)
    name, flags = draw.choice(list(sound)), []
    (folder / name).write_bytes(mutated(sound[name], draw))
    if draw.random() < 0.3:
        vectors = b"funda 1 2\nmesa 0.5 -1\nsilla 3 4\nazul 1e-3 0\n"
        (folder / name).write_bytes(sound[name])
        (folder / "words.vec").write_bytes(mutated(vectors, draw))
        flags = ["--vectors", folder / "words.vec"]
    status, errors = main_of(prepare, "--data", folder / name, "--out", folder / "out", "--max-bad-rows", 0.5,
                             "--encoding", encoding_of(name), *flags)
    shown = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert (status, len(shown)) in ((0, 0), (2, 1)), (status, errors)
    if status == 0:
        meta, arrays = data.load_prepared(folder / "out")
        assert sum(len(split["labels"]) for split in arrays.values()) == sum(meta["rows"].values()) > 0
        assert all(split["labels"].max(initial=0) < len(meta["labels"]) for split in arrays.values())
        assert meta["vectors"] is None or np.isfinite(meta["vectors"]).all()
        told, found = sum(meta["rows"].values()) + meta["bad_rows"], lines_of(folder / name)
        if found:
            lines, blank = found
            assert lines - blank - 1 <= told or SPANS in errors, (found, told)
            assert told <= lines or "many rows in" in str(meta["first_bad_row"]), (found, told)
    return f"{name}{' and vectors' if flags else ''}: {'taken' if status == 0 else 'refused'}"


def fuzz_titles(folder, draw):
    """Titles to classify out of a mutant of a list or a table: as many as there are lines, or what is odd is said."""
    sound = raw_files(folder)
    titles = "".join(f"{title}\n" for title, *_ in tiny_rows(60))
    numbered = "".join(f"{i},{title}\n" for i, title in enumerate(titles.splitlines()))
    sound |= {"list.txt": titles.encode(), "list.utf-16": titles.encode("utf-16"),
              "column.csv": b"title\n" + titles.encode(), "ids.csv": b"id,title\n" + numbered.encode()}
    name = draw.choice(list(sound))
    path, bad = folder / name, formats.NoBadRows()
    path.write_bytes(mutated(sound[name], draw))
    try:
        with open(path, "rb") as raw, files.archive_errors(path):
            form = formats.Format(encoding=encoding_of(name))
            _, blocks, _ = sources.read_titles(files.decompressed(raw), path, bad, form)
            found = [title for rows, _ in blocks for title in rows.titles]
    except UserError as error:
        assert "\n" not in str(error), error
        return f"{name}: refused"
    if counted := lines_of(path):
        lines, blank = counted
        spans = any(SPANS in what for what in bad.notes)
        assert lines - blank - 1 <= len(found) <= lines or spans, (counted, len(found))
        first = path.read_bytes().decode(encoding_of(name), "replace").split("\n")[0].lower()
        if name.startswith("list.") and not {"title", "text"}.intersection(first.split()):
            assert len(found) == lines
    return f"{name}: taken"


def fuzz_environment(folder, draw):
    """Predictions with odd variables in the environment are the same, or one line says what is wrong."""
    def predict(**env):
        return run_script("evaluate", "--ckpt", "bag", "--predict", "-", cwd=folder, stdin="funda azul\nmesa\n",
                          env=env, check=False)

    env = {name: draw.choice(VALUES) for name in draw.sample(ENVIRONMENT, draw.choice([1, 1, 2]))}
    done, wanted = predict(**env), predict()
    shown = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(shown)) in ((0, 0), (2, 1)), (env, done)
    assert "Traceback" not in done.stderr, (env, done)
    assert done.returncode or done.stdout == wanted.stdout, (env, done)
    return "taken" if done.returncode == 0 else "refused"


def damaged(source, target, draw):
    """Copy a folder and damage one of its files; returns its name."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = draw.choice([path for path in sorted(target.rglob("*")) if path.is_file()])
    content, others = path.read_bytes(), [other for other in target.rglob("*") if other.is_file() and other != path]
    kind = draw.choice(["mutant"] * 8 + ["gone", "other"])
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(draw.choice(others).read_bytes() if kind == "other" else mutated(content, draw))
    return path.relative_to(target)


def equal(first, second):
    """Equal nested lists, dictionaries, arrays and plain values."""
    return jax.tree.structure(first) == jax.tree.structure(second) and all(
        np.array_equal(a, b, equal_nan=not isinstance(a, str)) if isinstance(a, (np.ndarray, jax.Array)) else a == b
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def fuzz_folder(load, source, target, draw):
    """Loading a damaged folder gives what the sound one holds, or says in one line what is wrong."""
    name, wanted = damaged(source, target, draw), load(source)
    try:
        found = load(target)
    except (UserError, OSError) as error:
        assert "\n" not in str(error), error
        return f"{name.parts[0]}: refused"
    assert equal(found, wanted), f"a changed {name} was let in"
    return f"{name.parts[0]}: harmless"


def fuzz(mutants, seed, folder):
    """Raises what a mutant raises that no user should see; returns how often each thing happened."""
    draw, count = random.Random(seed), collections.Counter()
    write_csv(folder / "tiny.csv", tiny_rows())
    run_script("prepare", "--data", "tiny.csv", cwd=folder)
    run_script("train", "--name", "bag", "--epochs", 2, "--dim", 8, cwd=folder)
    for number in range(mutants):
        kind = draw.choices(["raw", "titles", "prepared", "run", "environment"], [40, 30, 15, 15, 1])[0]
        started = time.time()
        try:
            if kind == "raw":
                done = fuzz_raw(folder, draw)
            elif kind == "titles":
                done = fuzz_titles(folder, draw)
            elif kind == "environment":
                done = fuzz_environment(folder, draw)
            elif kind == "prepared":
                done = fuzz_folder(lambda path: data.load_prepared(path, text="test"), folder / "data/prepared",
                                   folder / "damaged", draw)
            else:
                done = fuzz_folder(lambda path: runs.restore(path, "best"), folder / "runs/bag", folder / "damaged",
                                   draw)
        except BaseException:
            print(f"mutant {number} of seed {seed} ({kind})", file=sys.stderr)
            raise
        assert time.time() - started < LIMIT, f"mutant {number} of seed {seed} took {time.time() - started:.0f} s"
        count[f"{kind}, {done}"] += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["MLFLOW_TRACKING_URI"] = ""
    with tempfile.TemporaryDirectory() as folder:
        for what, often in sorted(fuzz(args.mutants, args.seed, Path(folder)).items()):
            print(f"{often:6,}  {what}")


if __name__ == "__main__":
    main()
