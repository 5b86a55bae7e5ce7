"""What decides a run: the configuration of a new, resumed, refitted or continued one, and the rows that train it.

config.json of a run holds the settings that it uses (each by the name that train.py's table gives it), and

    settings            the names of these settings
    prior               how frequent its predictions take categories to be: equal, or as in training
    rows, classes, vocabulary, max_len, steps    sizes: training rows, categories, words, words of a title, all steps
    encoder, pieces     of an encoder: its package as encoder.describe tells it, and the pieces in its table
    pretrained_vectors  whether the words' vectors began as pretrained ones
    training_rows       [C] training rows of each category
    calibration_rows    validation rows that a checkpoint keeps logits of; 0 where there are none, see runs.is_judged
    best                which score told the best epoch, see runs.TOLD_BY
    values              ids of the values of all columns that were prepared, whichever it reads
    refit               the run that it is a refit of
    init_from, earlier_rows    the checkpoint that it began from, and the rows that had trained it
    trained             the checksum of trained.npy
    data, fingerprint, synthetic, files    of the prepared data: data.described, its identity, whether it is made by
                        rules, checksums of runs.LISTS
    source, versions    checksums of the scripts that train.py had loaded; versions of libraries that compute
    format, created, checksum    of this file: the version of its form, seconds since 1970, its own checksum
"""
import dataclasses
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import classify
import data
import model
from titles import calibration, cli, devices, encoder, files, runs, tree
from titles.cli import UserError
from titles.settings import all_of, default_of, flag_of, typed

# What a setting may need, and why nothing uses it where that is not met.
NEEDS = {"field": "{model} has no such setting", "pieces": "{model} has no such setting",
         "words": "{model} reads pieces of words, which have vectors of their own",
         "layers": "--freeze-layers makes a title's vector only once",
         "characters": "--maxn 0 leaves no character n-grams", "n-grams": "there are no n-grams",
         "table": "--freeze-embeddings leaves the table as it is, and no column has another",
         "quality": "the prepared data says of no row how reliable its label is",
         "validation": "the prepared data has no validation rows, so no epoch is known to be better than another",
         "columns": "the prepared data has no columns beside the titles; run prepare.py again, with --columns",
         "values": "no column is read",
         "pairs": "fewer than two categories have two training titles",
         "tree": "the categories are no tree; see prepare.py --separator"}


class InVain(UserError):
    """A setting was typed that nothing uses."""

    def __init__(self, name, message):
        super().__init__(message)
        self.name = name


class Plan(NamedTuple):
    """The run to begin, to resume or to refit, and what it trains on."""
    folder: Path
    config: dict
    meta: dict           # of the prepared data; of an encoder with its `pieces`
    arrays: dict         # of the splits that it trains and validates on
    trained: np.ndarray  # the content of trained.npy
    is_new: bool         # whether it is not begun yet
    named: bool          # whether its name may be no other


class Table(NamedTuple):
    """What train.py says of settings."""
    settings: dict       # {group: [Setting]}
    size_rule: object    # function of (rows, epochs, dropout, words) -> {name: value}
    prior: dict          # {value of `balance`: prior}


# --- settings -> configuration ----------------------------------------------------------------------------------------

def configure(table, args, meta, titles, former=None):
    """All that decides the result, as one dictionary: the settings, and the sizes that the data gives. What this model
    does not use is not in it.

    table: a Table; args: as from train.parse_args; meta and titles [N, L] of the training rows; former: with
    --init-from that run's configuration, whose settings are the defaults. Raises UserError where settings do not go
    together.
    """
    given = typed(table.settings, args)
    config = chosen(table, given, meta, len(titles), former or {})

    # What nothing would use is left out, and refused if it was asked for.
    lacks = {setting.name: lacking(setting, config, meta) for setting in all_of(table.settings)}
    for name, value in given.items():
        if lacks[name] and (name, value) != ("minn", 0):  # fastText's way to have none
            raise InVain(name, f"{flag_of(name)}: {NEEDS[lacks[name]].format(model=config['model'])}; leave it out")
    config = {name: value for name, value in config.items() if value is not None and not lacks.get(name)}
    config["settings"] = [name for name in lacks if name in config]
    if "encoder" not in config:
        config.setdefault("buckets", 0)  # the size of the table is asked for even where there are no n-grams

    # A module's own fields that are no settings.
    for name, value in model.fields(config["model"]).items():
        if name not in config and name != "classes":
            if value is dataclasses.MISSING:
                raise UserError(f"train.py: SETTINGS has no {name}, which the module of {config['model']} needs")
            config[name] = value

    # Sizes and identity of the data.
    config |= {"prior": table.prior[config["balance"]]} | sizes(config, meta, titles)
    if former:
        config["earlier_rows"] = former["rows"] + former.get("earlier_rows", 0)
    config |= {"best": runs.TOLD_BY, "synthetic": meta["synthetic"], "fingerprint": meta["fingerprint"],
               "data": data.described(meta), "format": runs.FORMAT,
               "files": {name: meta["files"][name] for name in runs.LISTS if name in meta["files"]},
               "source": runs.source_checksums(), "versions": runs.versions()}
    require_sound(config, meta)
    return config


def chosen(table, given, meta, rows, former):
    """{setting: value}: what was typed, else what the former run had, else the default, fitted to the data; and the
    `encoder`, which tells a model that reads pieces from one that reads words."""
    name = model_of(table, given, former)
    usual = {setting.name: default_of(setting, name) for setting in all_of(table.settings)}
    # A former run has learned of pairs already; more of them would part its layers from its classifier.
    kept = {name: former[name] for name in usual.keys() & former.keys() - {"contrastive_steps"}}
    config = usual | kept | given | ({} if model.encoder_of(name) is None else {"encoder": meta["encoder"]})

    # Defaults of epochs and dropout are for little data, those of epochs also for titles with n-grams. What else
    # depends on the size holds where nothing else says it.
    ngrams = "encoder" in config or config["maxn"] > 0 or config["word_ngrams"] > 1
    epochs = config["epochs"] if ngrams else (config["epochs"] + 1) // 2
    for name, value in table.size_rule(rows, epochs, config["dropout"], len(meta["vocab"])).items():
        if name not in given and name not in kept and (usual[name] is None or name in ("epochs", "dropout")):
            config[name] = value
    config["columns"] = chosen_columns(given.get("columns"), meta, former)
    config["batch_size"] = min(config["batch_size"], rows)
    config["dim"] = config["dim"] or (meta["vectors"].shape[1] if meta["vectors"] is not None else 100)

    # With frozen layers titles become vectors before the training begins, so the table cannot change either.
    config["freeze_embeddings"] |= config["freeze_layers"]
    return config


def chosen_columns(asked, meta, former):
    """The names of the columns that a run reads, of those that were prepared and in their order: those that are asked
    for; those that the former run read, where it begins from one; or all. Raises UserError where one is not there, but
    where a former run alone asks for it: then a warning says so."""
    there = [column.name for column in classify.columns_of(meta["columns"])]
    wanted = asked if asked is not None else former.get("columns", []) if former else there
    names = [name for name in there if classify.meant(wanted, name) is not None]
    if asked and not there:
        raise UserError(f"--columns: {NEEDS['columns']}")
    if len(names) == len(wanted):
        return names
    if asked is not None:
        raise UserError(f"--columns {cli.quoted(asked)}: was prepared with {cli.quoted(there)}; name some of these, "
                        "each once")
    if "encoder" in former:
        raise UserError(f"--init-from: the former run reads {cli.quoted(wanted)}, and the data was prepared with "
                        f"{cli.quoted(there) or 'none'}; prepare it with the same --columns")
    print(f"warning: the former run reads {cli.quoted(wanted)}; of these the data was prepared with "
          f"{cli.quoted(names) or 'none'}", file=sys.stderr)
    return names


def model_of(table, given, former):
    """The model that was typed, else that of the former run, else the default."""
    default = next(setting.default for setting in all_of(table.settings) if setting.name == "model")
    return given.get("model", former.get("model", default))


def lacking(setting, config, meta):
    """What is not there and a setting is of no use without, one of NEEDS, or None."""
    words, ngrams = "encoder" not in config, config["maxn"] > 0 or config["word_ngrams"] > 1
    met = {"field": setting.name in model.fields(config["model"]), "words": words,
           "pieces": not words, "layers": not config["freeze_layers"], "characters": config["maxn"] > 0,
           "n-grams": ngrams, "table": not config["freeze_embeddings"] or config["columns"],
           "quality": meta["reliable_share"] is not None, "validation": meta["rows"]["valid"],
           "columns": meta["columns"], "values": config["columns"], "tree": meta["levels"] > 1,
           "pairs": sum(rows > 1 for rows in meta["training_rows"]) > 1}
    return next((need for need in setting.needs if not met[need]), None)


def sizes(config, meta, titles):
    """The sizes that the data gives, for the training rows' titles [N, L]."""
    if "encoder" in config:
        found = {} if config["freeze_embeddings"] else {"pieces": len(meta["pieces"])}
    else:
        found = {"vocabulary": len(meta["vocab"]), "max_len": meta["max_len"],
                 "pretrained_vectors": meta["vectors"] is not None}
    if config.get("columns"):
        found["values"] = classify.columns_of(meta["columns"])[-1].behind
    titles = titles[:, :1] if config.get("freeze_layers") else titles  # then a title is one vector
    return found | {"classes": len(meta["labels"]), "rows": len(titles), "training_rows": meta["training_rows"],
                    "calibration_rows": min(calibration.ROWS, meta["rows"]["valid"]),
                    "steps": config["epochs"] * data.epoch_steps(titles, config["batch_size"])}


def require_sound(config, meta):
    """Raise UserError where a configuration cannot be trained."""
    if len(set(config.get("widths", []))) < len(config.get("widths", [])):
        raise UserError(f"--widths {' '.join(map(str, config['widths']))}: the same width twice")
    if config.get("minn", 0) > config.get("maxn", 0):
        raise UserError(f"--minn {config['minn']}: larger than --maxn {config['maxn']}")
    if config.get("pretrained_vectors") and config["dim"] != meta["vectors"].shape[1]:
        raise UserError(f"--dim {config['dim']}: the prepared vectors have {meta['vectors'].shape[1]} numbers; leave "
                        "--dim out, or run prepare.py without --vectors")

    if max(config.get("widths", [0])) > classify.GAP + 1 and len(meta.get("title_columns", [])) > 1:
        raise UserError(f"--widths {max(config['widths'])}: such a filter would reach from one column of a title into "
                        f"the next; {classify.GAP + 1} at most")

    if config.get("contrastive_steps") and config.get("name_weight"):
        raise UserError("--contrastive-steps and --name-weight: give one, for these steps move the layers that the "
                        "vectors of names are made with")

    # Rows of the table are numbered in int32.
    if len(meta["vocab"]) + config.get("buckets", 0) + model.PARTS > 1 << 31:
        raise UserError(f"--buckets {config['buckets']}: a table of more than 2^31 rows")


# --- which run --------------------------------------------------------------------------------------------------------

def read_prepared(args):
    """(meta, arrays) of the prepared data that a training reads. Raises UserError where it cannot be trained on."""
    meta, arrays = data.load_prepared(args.data, ("train", "valid"), on_disk=("train",))
    is_part = not meta["rows"]["valid"] and meta["options"]["like"]
    if not meta["rows"]["train"] or is_part:
        raise UserError(f"{cli.listed(args.data)}: has no {'validation' if is_part else 'training'} rows; name the "
                        "folder that it was prepared --like with it")
    return meta, arrays


def plan(table, args, prepared):
    """The Plan of the run that flags ask for, prepared: as from `read_prepared`; writes nothing. Raises UserError where
    it cannot be."""
    meta, arrays = prepared
    if args.refit is not None:
        return plan_refit(table, args, meta, arrays)
    if args.resume is not None:
        return plan_resumed(table, args, meta, arrays)
    given, former, before = typed(table.settings, args), {}, []
    if args.init_from:
        path, which = runs.find(args.init_from, args.runs)
        former, _, _ = runs.load(path, model.MODELS)
        require_shapes(table, given, former, path)
        before = [runs.trained_titles(path)]
    name = model_of(table, given, former)
    folder = runs.new_folder(args.runs, args.name, name)
    meta, arrays = read_as(name, args.data, meta, arrays)
    trained = np.unique(np.concatenate([arrays["train"]["keys"], *before]))
    meta, arrays = without_trained(args.data, meta, arrays, trained, bool(former))
    meta, arrays = without_parents(args.data, meta, arrays)
    if meta["levels"] > 1:  # several folders have shared the rows that know only a parent by rows of their own
        meta = meta | {"training_rows": tree.shared_rows(arrays["train"]["labels"], data.tree_of(meta)).tolist()}
    config = configure(table, args, meta, arrays["train"]["titles"], former)
    arrays = read_columns(config, meta, arrays)
    if former:
        # A resumed run must begin with the same checkpoint, whatever best and latest of all runs are by then.
        config["init_from"] = f"{runs.short_name(path, args.runs)}/{which}"
    return Plan(folder, finished(config, trained), meta, arrays, trained, True, args.name is not None)


def changed(plan, **settings):
    """The Plan of a new run with another seed, or for other epochs."""
    config = plan.config | settings
    config["steps"] = config["epochs"] * (plan.config["steps"] // plan.config["epochs"])
    return plan._replace(config=finished(config, plan.trained))


def finished(config, trained):
    """A configuration with what is known only now: when it was made, and the checksums of trained.npy and itself."""
    return files.with_checksum(config | {"trained": files.checksum_of(trained.tobytes()), "created": time.time()})


def plan_resumed(table, args, meta, arrays):
    """The Plan of a run that goes on. Other code would make another run of it, so it is refused; other libraries may
    only round otherwise."""
    folder, config = load_run(table, args, "resume", meta)
    if changed := runs.changed_source(folder, config):
        raise UserError(f"{folder}: {' and '.join(changed)} changed since it was begun; go on with the scripts that it "
                        f"keeps: python {cli.listed(folder / 'source/train.py')} "
                        f"--resume {args.resume}{runs.other_folders(args)}")
    if (now := runs.versions()) != config["versions"]:
        print(f"warning: {folder}: was begun with {config['versions']}, and goes on with {now}: its bits may differ",
              file=sys.stderr)
    meta, arrays = read_as(config["model"], args.data, meta, arrays)
    arrays = read_columns(config, meta, arrays)
    trained = runs.trained_titles(folder)
    if "refit" in config:
        arrays = with_validation_rows(arrays)
    else:
        meta, arrays = without_trained(args.data, meta, arrays, trained, "init_from" in config)
        meta, arrays = without_parents(args.data, meta, arrays)
    return Plan(folder, config, meta, arrays, trained, False, True)


def plan_refit(table, args, meta, arrays):
    """The Plan of the refit of a run: its settings, for the rows of both splits and the epochs of its best
    checkpoint."""
    folder, config = load_run(table, args, "refit", meta)
    best = runs.checkpoint_manager(folder, read_only=True).best_step()
    if best is None or not runs.is_judged(config):
        why = "is a refit itself" if "refit" in config else "has no best checkpoint to refit" if (
            config["calibration_rows"]) else "was trained without validation rows, so a refit would have the same rows"
        raise UserError(f"{folder}: {why}")
    if changed := runs.changed_source(folder, config):
        print(f"warning: {folder}: {' and '.join(changed)} changed since it was trained", file=sys.stderr)

    # A checkpoint's name is its step, and all epochs have equally many steps; more rows make more of them.
    epochs = best * config["epochs"] // config["steps"]
    meta, arrays = read_as(config["model"], args.data, meta, arrays)
    arrays = with_validation_rows(read_columns(config, meta, arrays))
    rows = arrays["train"]
    trained = np.unique(np.concatenate([rows["keys"], runs.trained_titles(folder)]))
    config = {name: value for name, value in config.items() if name != "patience"} | {
        "refit": args.refit, "epochs": epochs, "rows": len(rows["labels"]),
        "steps": epochs * data.epoch_steps(rows["titles"], config["batch_size"]),
        "training_rows": tree.shared_rows(rows["labels"], data.tree_of(meta)).tolist(),
        "source": runs.source_checksums(), "versions": runs.versions()}
    folder = runs.new_folder(args.runs, runs.refit_folder(folder).name, config["model"])
    return Plan(folder, finished(config, trained), meta, arrays, trained, True, True)


def load_run(table, args, flag, meta):
    """(folder, configuration) of the run on this data that --resume or --refit names, whose settings hold."""
    others = {*typed(table.settings, args), *(name for name in ("name", "init_from", "resume", "refit")
                                              if name != flag and getattr(args, name) is not None)}
    if others:
        raise UserError(f"--{flag} goes on with the run's own settings; leave "
                        f"{' '.join(sorted(map(flag_of, others)))} out")
    folder = args.runs / getattr(args, flag)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no such run to {flag}")
    config, _, _ = runs.load(folder, model.MODELS)

    # On other data the same ids would be other words and categories.
    if config["fingerprint"] != meta["fingerprint"]:
        raise UserError(f"{folder}: was trained on other data ({config['fingerprint']}) than {cli.listed(args.data)} "
                        f"holds ({meta['fingerprint']}); name its data with --data")
    encoder.require_pieces(config, meta, folder, cli.listed(args.data))
    return folder, config


def require_shapes(table, given, former, folder):
    """Raise UserError where a setting that was typed asks for arrays of another shape, or rows of another meaning, than
    the run in `folder`, of this configuration, has."""
    for setting in all_of(table.settings):
        shapes = "encoder" in former if setting.shapes == "pieces" else setting.shapes
        if shapes and setting.name in given and given[setting.name] != former.get(setting.name):
            raise UserError(f"{flag_of(setting.name)}: {folder} has {former.get(setting.name)}; leave it out, or begin "
                            "anew")


# --- its rows ---------------------------------------------------------------------------------------------------------

def read_as(name, folders, meta, arrays):
    """(meta, arrays) with what a model reads as `titles`. For an encoder these are pieces, numbered anew, as only those
    that occur are on the device: meta["pieces"] are their ids. Raises UserError where there are none."""
    if (wanted := model.encoder_of(name)) is None:
        return meta, arrays
    if (meta.get("encoder") or {}).get("name") != wanted:
        raise UserError(f"{cli.listed(folders)}: has no pieces for --model {name}; run prepare.py again, with "
                        f"--encoder {wanted}")
    encoder.require(meta["encoder"], cli.listed(folders))
    known, ids = data.compact([rows["pieces"] for rows in arrays.values()])
    arrays = {split: {kind: array for kind, array in rows.items() if kind != "pieces"} | {"titles": mine}
              for (split, rows), mine in zip(arrays.items(), ids, strict=True)}
    return meta | {"pieces": known}, arrays


def read_columns(config, meta, arrays):
    """The arrays, with those columns alone that a run of this configuration reads."""
    chosen = [i for i, column in enumerate(classify.columns_of(meta["columns"]))
              if column.name in config.get("columns", [])]
    return {split: rows | ({"columns": rows["columns"][:, chosen]} if "columns" in rows else {})
            for split, rows in arrays.items()}


def without_trained(folders, meta, arrays, trained, has_former):
    """(meta, arrays) without the validation rows whose titles are among `trained`, where a run begins from a former
    one, or trains on several folders: their score, and promises made of it, would not hold for new titles. Raises
    UserError where no row is left."""
    # In a single folder equal titles stand on one side, unless its source has divided them; prepare.py says so.
    several = len(data.folders_of(folders)) > 1
    seen = np.isin(arrays["valid"]["keys"], trained)
    if not seen.any() or not (has_former or several):
        return meta, arrays
    if seen.all():
        raise UserError(f"{cli.listed(folders)}: all its validation rows have titles that trained the former run, or "
                        "that train in another folder; prepare the data with the same --seed, or other rows")
    if devices.is_first():
        print(f"warning: {seen.sum():,} of {len(seen):,} validation rows have titles that trained the former run, or "
              "that train in another folder; they are left out", file=sys.stderr)
    return (meta | {"rows": meta["rows"] | {"valid": int((~seen).sum())}},
            arrays | {"valid": {kind: array[~seen] for kind, array in arrays["valid"].items()}})


def without_parents(folders, meta, arrays):
    """(meta, arrays) without the validation rows that know only a parent of their category, for scores and promises of
    a run are of categories; reports have them at the levels that they know. Raises UserError where no row is left."""
    known = arrays["valid"]["labels"] < len(meta["labels"])
    if known.all():
        return meta, arrays
    if not known.any():
        raise UserError(f"{cli.listed(folders)}: all its validation rows know only a parent of their category, so "
                        "nothing tells how good a model is; prepare it with rows that know theirs")
    return (meta | {"rows": meta["rows"] | {"valid": int(known.sum())}},
            arrays | {"valid": {kind: array[known] for kind, array in arrays["valid"].items()}})


def with_validation_rows(arrays):
    """The arrays, with the rows of both splits for training."""
    return arrays | {"train": {kind: np.concatenate([array[:], arrays["valid"][kind]])
                               for kind, array in arrays["train"].items()}}
