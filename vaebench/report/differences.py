"""In which settings methods differ, and which of these differences say something new."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache

from omegaconf import OmegaConf

from vaebench.config.catalog import config_dir, own_keys
from vaebench.config.compose import OPEN_GROUPS
from vaebench.report.runs import Scalar, settings_of

__all__ = ["differing", "label", "telling", "usual"]

ALWAYS = ("encoder", "objective", "k")
Settings = Mapping[str, Scalar]


def differing(methods: Sequence[Settings]) -> list[str]:
    """Return every setting that is not the same in all methods; one that a method lacks differs."""
    keys = dict.fromkeys(key for settings in methods for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in methods}) > 1]


def telling(methods: Sequence[Settings]) -> list[str]:
    """Return the settings worth a column: encoder, objective and k, and what else differs by itself.

    A setting that follows from a choice (``encoder.psi_dim``, ``objective.bound``) says nothing that the choice does
    not say, unless somebody changed it: it differs between methods of one choice, or from what the choice declares.
    """
    others = [key for key in differing(methods) if key not in ALWAYS and _says_more(key, methods)]
    return [*(key for key in ALWAYS if any(key in settings for settings in methods)), *others]


def _says_more(key: str, methods: Sequence[Settings]) -> bool:
    group = key.partition(".")[0]
    if key == group or not all(group in settings for settings in methods):
        return True
    of_choice: dict[Scalar, set[Scalar]] = {}
    for settings in methods:
        of_choice.setdefault(settings[group], set()).add(settings.get(key))
    if any(len(values) > 1 for values in of_choice.values()):
        return True
    return any(settings.get(key) != _declared(key, group, settings) for settings in methods)


def _declared(key: str, group: str, settings: Settings) -> Scalar:
    """Return what a setting is where nobody changes it; the setting itself where that is not known."""
    declared = _defaults(group, str(settings[group]))
    if key not in declared:
        return settings.get(key) if not declared else None
    value = declared[key]
    # The only references among the defaults are to another setting: hidden: ${decoder.hidden}.
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return settings.get(reference[1].removesuffix(".name")) if reference else value


@cache
def _defaults(group: str, choice: str) -> dict[str, Scalar]:
    """Return the settings that a shipped choice declares, references as they are; {} for somebody's own yaml."""
    if not (config_dir() / group / f"{choice}.yaml").is_file():
        return {}
    schema = OPEN_GROUPS.get(group)
    typed = {} if schema is None else {f.name: f.default for f in fields(schema) if f.default is not MISSING}
    declared = OmegaConf.to_container(own_keys(group, choice, [config_dir()]))
    assert isinstance(declared, dict)
    return settings_of({group: typed | {str(name): value for name, value in declared.items()}})


def usual(methods: Sequence[Settings], keys: Sequence[str]) -> dict[str, Scalar]:
    """Return the value of each key that most methods have; encoder, objective and k are never usual."""
    counted = {key: Counter(settings.get(key) for settings in methods) for key in keys if key not in ALWAYS}
    return {key: counts.most_common(1)[0][0] for key, counts in counted.items()}


def label(settings: Settings, keys: Sequence[str], usual: Settings) -> str:
    """Return a method's short name: its choices as they are, other settings as ``key=value`` if they are not usual."""
    words = []
    for key in keys:
        value = settings.get(key)
        if key in ("encoder", "objective"):
            words.append(str(value))
        elif key not in usual or usual[key] != value:
            words.append(f"{key.rpartition('.')[2]}={'null' if value is None else value}")
    return " ".join(words)
