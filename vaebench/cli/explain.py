"""`vaebench explain`: the meaning, values and default of settings. The help of other commands prints them too."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import parse
from vaebench.cli.listing import choice_text, choices_of, hydra_types
from vaebench.config.catalog import config_folders, described, groups
from vaebench.config.meanings import COMMANDS, Setting, of_choice, of_class, of_command, of_group
from vaebench.config.usual_words import settings_for
from vaebench.config.words import key_value
from vaebench.errors import UserError, did_you_mean
from vaebench.records.text import encodable, wrapped
from vaebench.typed import clipped

__all__ = ["HYDRA_GROUPS", "every_setting", "explanation", "help_of", "of_commands", "run"]

HELP = """usage: vaebench explain KEY|GROUP=CHOICE ... [--plugin FILE.py|MODULE]

Print what a setting means, its values and its default. docs/settings.md lists all settings.
A key may be given without its group (lr), and by a usual name (learning_rate).

examples:
  vaebench explain optimizer.schedule
  vaebench explain encoder=iwhvi                # the settings of a choice
  vaebench explain inner_k                      # in all groups
  vaebench explain learning_rate vae
"""
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")


def run(words: list[str]) -> int:
    """Carry out ``vaebench explain <words>`` and return the exit code."""
    parsed = parse(words, HELP_FLAGS, HELP)
    if not parsed.rest:
        raise UserError("missing KEY: give a setting, for example `vaebench explain optimizer.lr`")
    folders = config_folders()
    print("\n\n".join(explanation(word, folders) for word in parsed.rest))
    return 0


def explanation(word: str, folders: Sequence[Path]) -> str:
    """Return the text about a setting, a choice ``GROUP=CHOICE``, or a usual word.

    Raises:
        UserError: there is no such setting or choice.
    """
    name, value = key_value(word.lstrip("+~"))
    if name in known_groups(folders):
        return choice_text(name, value, folders) if value else choices_of(name, folders)
    if found := settings_of(name, folders):
        return "\n".join(map(block, found))
    choices = [
        f"{group}={name}" for group in known_groups(folders) if any(c.choice == name for c in described(group, folders))
    ]
    if choices:
        return "\n\n".join(explanation(choice, folders) for choice in choices)
    if usual := settings_for(name):
        parts = [explanation(part, folders) for part in usual.split() if not part.startswith("k=")]
        return "\n\n".join([f"{name}: write {usual}", *parts])
    every = [*known_groups(folders), *(setting.key for setting in every_setting(folders))]
    name = clipped(name)
    raise UserError(f"there is no setting '{name}'{did_you_mean(name, every)}; docs/settings.md lists all settings")


def known_groups(folders: Sequence[Path]) -> list[str]:
    """Return all groups, hydra's included."""
    return [*groups(folders), *HYDRA_GROUPS]


def settings_of(key: str, folders: Sequence[Path]) -> list[Setting]:
    """Return the settings with this key, and those whose last part it is."""
    group = max((g for g in known_groups(folders) if key.startswith(f"{g.replace('/', '.')}.")), key=len, default="")
    if group:
        return [setting for setting in of_group(group, folders, hydra_types()) if setting.key == key]
    every = [*every_setting(folders), *(setting for part in of_commands().values() for setting in part)]
    exact = [setting for setting in every if setting.key == key]
    return merged([*exact, *(setting for setting in every if setting.key.endswith(f".{key}"))])


def every_setting(folders: Sequence[Path]) -> list[Setting]:
    """Return the settings of all commands and groups."""
    of_groups = (of_group(group, folders, hydra_types()) for group in known_groups(folders))
    return [setting for part in (*map(of_command, COMMANDS), *of_groups) for setting in part]


@cache
def of_commands() -> dict[str, list[Setting]]:
    """Return the settings of the other commands; a key that `vaebench evaluate` has too means the same there."""
    from vaebench.cli.data import DataSettings
    from vaebench.cli.selftest import SelftestSettings
    from vaebench.config.diagnosis import Diagnosis
    from vaebench.config.encoding import Encoding
    from vaebench.config.pictures import Interpolate, Reconstruct, Sample, Traverse

    shared = [*of_choice("estimator", "iwae", config_folders()), *of_command("evaluate")]
    of_data = of_choice("dataset", "own", config_folders())
    classes = {"diagnose": Diagnosis, "encode": Encoding, "sample": Sample, "reconstruct": Reconstruct}
    classes |= {"interpolate": Interpolate, "traverse": Traverse, "selftest": SelftestSettings, "data": DataSettings}
    return {
        command: [
            setting._replace(defaults={default: [command] for default in setting.defaults})
            for setting in of_class(schema, by_name(of_data if command == "data" else shared))
        ]
        for command, schema in classes.items()
    }


def by_name(settings: Iterable[Setting]) -> dict[str, Setting]:
    """Return the settings by the last part of their keys."""
    return {setting.key.rpartition(".")[2]: setting for setting in settings}


def merged(settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings with those of one key, meaning and range as one."""
    found: dict[tuple[str, str, str], Setting] = {}
    for setting in settings:
        same = found.setdefault(setting[:3], setting._replace(defaults={}))
        for default, names in setting.defaults.items():
            same.defaults[default] = [*same.defaults.get(default, []), *names]
    return list(found.values())


def block(setting: Setting) -> str:
    """Return the paragraph of one setting."""
    lines = [
        wrapped(f"{setting.key}: {setting.meaning or 'its yaml file has no comment on it'}"),
        wrapped(f"  values   {setting.values}", rest=" " * 11),
        wrapped(f"  default  {defaults_text(setting)}", rest=" " * 11),
    ]
    return encodable("\n".join(lines))


def defaults_text(setting: Setting) -> str:
    """Return the defaults of a setting; the choices that have each, unless the group has one choice."""
    group = setting.key.rpartition(".")[0].replace(".", "/")
    if not group:
        pairs = [(default, ", ".join(names)) for default, names in setting.defaults.items()]
        return "; ".join(f"{default} (vaebench {names})" for default, names in pairs)
    if group in ("sweep", "trainer"):
        return ", ".join(setting.defaults)
    return "; ".join(f"{default} ({group}={'|'.join(names)})" for default, names in setting.defaults.items())


def help_of(words: Iterable[str], folders: Sequence[Path]) -> str:
    """Return the text about the settings among the words beside ``--help``; "" if there are none."""
    return "\n\n".join(explanation(word, folders) for word in words if key_value(word)[1] is not None)
