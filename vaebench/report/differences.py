"""The settings that distinguish methods, and the short names of methods."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache

from omegaconf import OmegaConf

from vaebench.config.catalog import config_folders, own_keys
from vaebench.config.compose import OPEN_GROUPS
from vaebench.report.runs import Scalar, settings_of

__all__ = ["common_values", "differing_settings", "distinguishing_settings", "label"]

ALWAYS = ("encoder", "objective", "k")
Settings = Mapping[str, Scalar]


def differing_settings(methods: Sequence[Settings]) -> list[str]:
    """Return the settings that are not the same in all methods, also those that some methods lack."""
    keys = dict.fromkeys(key for settings in methods for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in methods}) > 1]


def distinguishing_settings(methods: Sequence[Settings]) -> list[str]:
    """Return the settings to show as columns: encoder, objective, k, and the others that differ independently.

    A setting of a choice (``encoder.psi_dim``, ``objective.bound``) that has its default value is redundant beside the
    choice. It is shown if it differs between methods with the same choice, or from the default of the choice.
    """
    others = [key for key in differing_settings(methods) if key not in ALWAYS and _is_independent(key, methods)]
    return [*(key for key in ALWAYS if any(key in settings for settings in methods)), *others]


def _is_independent(key: str, methods: Sequence[Settings]) -> bool:
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
    """Return the default of a setting; its current value where the default is unknown."""
    declared = _defaults(group, str(settings[group]))
    if key not in declared:
        return settings.get(key) if not declared else None
    value = declared[key]
    # A default may refer to another setting: hidden: ${decoder.hidden}.
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return settings.get(reference[1].removesuffix(".name")) if reference else value


@cache
def _defaults(group: str, choice: str) -> dict[str, Scalar]:
    """Return the defaults of a choice of ours or of a plug-in, references unresolved; {} for a user's own yaml."""
    folders = config_folders()
    if not any((folder / group / f"{choice}.yaml").is_file() for folder in folders):
        return {}
    schema = OPEN_GROUPS.get(group)
    typed = {} if schema is None else {f.name: f.default for f in fields(schema) if f.default is not MISSING}
    declared = OmegaConf.to_container(own_keys(group, choice, folders))
    assert isinstance(declared, dict)
    return settings_of({group: typed | {str(name): value for name, value in declared.items()}})


def common_values(methods: Sequence[Settings], keys: Sequence[str]) -> dict[str, Scalar]:
    """Return the most frequent value of each key, without encoder, objective and k."""
    counted = {key: Counter(settings.get(key) for settings in methods) for key in keys if key not in ALWAYS}
    return {key: counts.most_common(1)[0][0] for key, counts in counted.items()}


def label(settings: Settings, keys: Sequence[str], common: Settings) -> str:
    """Return a short name: encoder and objective, then ``key=value`` for each value that is not in ``common``."""
    words = []
    for key in keys:
        value = settings.get(key)
        if key in ("encoder", "objective"):
            words.append(str(value))
        elif key not in common or common[key] != value:
            words.append(f"{key.rpartition('.')[2]}={'null' if value is None else value}")
    return " ".join(words)
