"""Settings as a table: train.py says each of them once, and here its flags and their help are made of it.

What a configuration is made of the settings is the matter of configuration.py. JAX is not needed here, so that --help
answers at once.
"""
import argparse
from typing import NamedTuple

from titles import cli


class Setting(NamedTuple):
    """One of the things that decide a run; a flag of the same name sets it."""
    name: str
    kind: object             # function of a text, a tuple of choices, or bool for a switch
    default: object          # a value, `by_model`, or None where train.size_rule or the data say it
    help: str
    more: str = ""           # behind the default in the help, or instead of it
    needs: tuple = ()        # of configuration.NEEDS: where one is not met, nothing uses the setting
    shapes: object = False   # whether it gives arrays their shape or rows their meaning; "pieces": with an encoder
    several: str = None      # "+" or "*" for a list of values
    metavar: str = None


def by_model(others, **models):
    """A default that is another one for some models: {model: default}, that of all others by None."""
    return {None: others} | models


def default_of(setting, model):
    """The default of a setting for a model."""
    default = setting.default
    return default.get(model, default[None]) if isinstance(default, dict) else default


def all_of(table):
    """The settings of a table {group: [Setting]} in their order."""
    return [setting for group in table.values() for setting in group]


def flag_of(name):
    return "--" + name.replace("_", "-")


def help_of(setting):
    """The help of a setting's flag, with its default."""
    said = []
    for model, value in (setting.default if isinstance(setting.default, dict) else {None: setting.default}).items():
        if value is not None and value is not False:
            value = " ".join(map(str, value)) or "none" if isinstance(value, list) else value
            said.append(f"{model} {value}" if model else f"{value}")
    said += [setting.more] if setting.more else []
    return setting.help + (f" (default: {', '.join(said)})" if said else "").replace("%", "%%")


def add_flags(parser, table):
    """Add a flag for each setting of a table to a parser. One that is not typed is not in its namespace."""
    for group, settings in table.items():
        add = parser.add_argument_group(group).add_argument
        for setting in settings:
            how = {"action": "store_true"} if setting.kind is bool else {"nargs": setting.several} | (
                {"choices": setting.kind} if isinstance(setting.kind, tuple) else
                {"type": setting.kind, "metavar": setting.metavar})
            add(flag_of(setting.name), help=help_of(setting), default=argparse.SUPPRESS, **how)


def typed(table, args):
    """{name: value} of the settings that were typed, of a namespace whose parser has their flags."""
    return {setting.name: getattr(args, setting.name) for setting in all_of(table) if hasattr(args, setting.name)}


def command(name, config):
    """The command that trains a run of this name again on the same data: all its settings. None of a run that older
    scripts have trained, which do not tell them."""
    if "refit" in config:
        return cli.quoted(["python", "train.py", "--refit", config["refit"]])
    if "settings" not in config:
        return None
    words = ["python", "train.py", "--name", name]
    for setting in [*config["settings"], *({"init_from"} & config.keys())]:
        value = config[setting]
        if value is not False:  # a switch that was left out
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [flag_of(setting), *map(str, values)]
    return cli.quoted(words)
