"""In which settings methods differ, and which of these differences say something new."""

from collections.abc import Mapping, Sequence

from vaebench.report.runs import Scalar

__all__ = ["differing", "label", "telling"]

ALWAYS = ("encoder", "objective", "k")
Settings = Mapping[str, Scalar]


def differing(methods: Sequence[Settings]) -> list[str]:
    """Return every setting that is not the same in all methods; one that a method lacks differs."""
    keys = dict.fromkeys(key for settings in methods for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in methods}) > 1]


def telling(methods: Sequence[Settings]) -> list[str]:
    """Return the settings worth a column: encoder, objective and k, and what else differs by itself.

    A setting that only one choice of a group has (``encoder.psi_dim``) follows from the choice unless it differs
    between methods that have it, and one that repeats the choice's name (``objective.bound``) says nothing new.
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
    having = {settings[key] for settings in methods if key in settings}
    return len(having) > 1 and not having <= of_choice.keys()


def label(settings: Settings, keys: Sequence[str]) -> str:
    """Return a method's short name: its choices as they are, other settings as ``key=value``."""
    words = [
        str(settings[key]) if key in ("encoder", "objective") else f"{key.rpartition('.')[2]}={settings.get(key)}"
        for key in keys
        if settings.get(key) is not None
    ]
    return " ".join(words)
