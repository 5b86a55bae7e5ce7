"""A folder of parts, each prepared from one file by a process of its own (prepare.py --parts): which part is whose, and
which has to be prepared again.

What trains on a folder of parts (data.py) does not belong here.
"""
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import data
from titles import files, formats
from titles.cli import UserError, readable


class AlreadyThere(Exception):
    """A part is there and need not be prepared."""


def require(args):
    """Raise UserError unless --parts and --check go with the other flags of prepare.py."""
    if not (args.parts and args.like and args.data):
        raise UserError("--check goes with --parts, and --parts with --data and --like" if args.check else
                        "--parts goes with --data and --like")
    for name in ("out", "test", "download"):
        if name in args.given:
            raise UserError(f"--parts and --{name}: give one")
    if args.parts.exists() and not args.parts.is_dir():
        raise UserError(f"--parts {args.parts}: not a folder")
    if (args.parts / "meta.json").exists():
        raise UserError(f"--parts {args.parts}: is prepared data itself; name a folder that holds parts alone")
    if not args.check and len(args.data) > 1:
        raise UserError("--parts prepares one file at a time; start a process for each (--help shows how)")


def part_of(path, parts):
    """The folder of a file's part in the folder of parts."""
    # A name that begins with a dot, or ends as what is half-written does, would be no part to who reads the folder.
    files.require_file(path)
    if (path.name.startswith(".") or files.TEMPORARY.search(path.name) or set("\r\n") & set(str(path))
            or not formats.SUFFIX.search(path.name)):
        raise UserError(f"{path}: no part can have this name (a dot at its beginning, a temporary file's end, a line "
                        "end in the path, or no ending such as .csv, .jsonl.gz or .parquet); rename it")
    return parts / path.name


def place_of(path, parts):
    """Where a file is as the folder of parts sees it, as text: it tells files of one name apart, whatever folder they
    are named from."""
    try:
        return readable(os.path.relpath(path.resolve(), parts.resolve()))
    except ValueError:  # on another drive of Windows
        return readable(path.resolve())


def why_again(path, part, options, base):
    """Why the part of a file has to be prepared (again), or None where it is whole and of the file, the base (as from
    prepare.read_base) and the `options` of meta.json as they are. Raises UserError where it is the part of another
    file."""
    if not (part / "meta.json").exists():
        return "missing"
    said, broken, changed = files.read_json(part / "meta.json"), None, True
    try:
        meta = data.read_meta(part)
        for name in meta["files"]:
            data.verified(part, meta, name)
        changed = [one["checksum"] for one in meta["source"]] != [files.checksum(path)]
    except (UserError, OSError) as error:
        broken = f"broken ({error})"
    if changed and said.get("part_of") != place_of(path, part.parent):
        raise UserError(f"{part}: is the part of another file than {path} ({said.get('part_of') or 'from --out'}); "
                        "rename one of the two, or choose another --parts")
    if broken or changed:
        return broken or "of an earlier version of the file"

    now = json.loads(json.dumps(options))
    other = [name for name in now if name != "like" and meta["options"].get(name) != now[name]]
    return (f"of other data than {base.folder} now holds" if meta["base"] != base.fingerprint else
            f"of another --{other[0].replace('_', '-')}" if other else
            "of another classify.py or encoder" if (meta["tokenizer"], meta["encoder"]) != (
                data.TOKENIZER, base.encoder) else None)


def check(paths, folder, options, base, threads):
    """Whether each of these files has a whole part in a folder, as `why_again` says it. Prints the paths of those that
    lack one and, on standard error, why, and what else is wrong in the folder."""
    files.recover_folders(folder)
    there = {path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")}
    half = {files.TEMPORARY.sub("", name) for name in there if files.TEMPORARY.search(name)}
    path_of = {}
    for path in paths:
        if (same := path_of.setdefault(part_of(path, folder), path)) is not path:
            raise UserError(f"{path} and {same}: would have the same part; rename one of the two, or give it another "
                            "--parts")

    def fault(part):
        if part.name in half:
            return "half-written, by a process that is at work or was killed"
        try:
            return why_again(path_of[part], part, options, base)
        except (UserError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        faults = dict(zip(path_of, pool.map(fault, path_of), strict=True))
    whole = {}
    for part in [part for part, why in faults.items() if not why]:
        if (twin := whole.setdefault(data.fingerprint_of(part), part)) is not part:
            faults[part] = f"has the rows of {twin}; leave one of the two out"
    faults = {part: why for part, why in faults.items() if why}
    unclaimed = {files.TEMPORARY.sub("", name) for name in there} - {part.name for part in path_of}

    # Paths go out as they came, also where these are not UTF-8.
    sys.stdout.reconfigure(errors="surrogateescape")
    for part, why in faults.items():
        print(path_of[part])
        print(f"{part}: {why}", file=sys.stderr)
    for name in sorted(unclaimed):
        print(f"{folder / name}: no file of --data has this part; train.py would train on it", file=sys.stderr)
    print(f"{len(path_of) - len(faults):,} of {len(path_of):,} parts are well", file=sys.stderr)
    return not (faults or unclaimed)
