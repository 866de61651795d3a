"""Readable names of runs: the settings that differ among them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vaebench.config import Config, identity
from vaebench.config.identity import defining_with_nulls
from vaebench.report.differences import differing_settings, distinguishing_settings
from vaebench.report.runs import Scalar, settings_of

__all__ = ["RunNames"]

_LONGEST = 160  # bytes: file systems allow 255 for a name


class _Named(NamedTuple):
    config: Config
    settings: Mapping[str, Scalar]


class RunNames:
    """Names of a growing set of runs, for example ``encoder=hvm k=16 seed=0``.

    A name has the run's own name if it has one, the encoder, the settings that differ, and the seed. It is unique, a
    valid name of a file, and does not change when further runs are added.
    """

    def __init__(self) -> None:
        self._runs: list[_Named] = []
        self._taken: set[str] = set()

    def add(self, configs: Mapping[Path, Config]) -> dict[Path, str]:
        """Return the names of further runs, by folder."""
        new = {path: _Named(config, _settings(config)) for path, config in configs.items()}
        self._runs += new.values()
        methods = [run.settings for run in self._runs]
        differing = set(differing_settings(methods))
        keys = [key for key in distinguishing_settings(methods) if key in differing or key == "encoder"]
        return {path: self.unique(_name(run, keys), identity(run.config)) for path, run in new.items()}

    def unique(self, name: str, suffix: str) -> str:
        """Return ``name`` as a valid name of a file, with ``suffix`` or a number if another run has it."""
        safe = re.sub(r"[^\w.,=+\- \[\]{}()~%@]", "_", name).strip(". ") or suffix
        if len(safe.encode()) > _LONGEST:
            safe = f"{safe.encode()[:_LONGEST].decode(errors='ignore')} {suffix}"
        found = next(one for one in _candidates(safe, suffix) if one not in self._taken)
        self._taken.add(found)
        return found


def _candidates(name: str, suffix: str) -> Iterable[str]:
    yield name
    yield f"{name} {suffix}"
    number = 2
    while True:
        yield f"{name} {suffix} {number}"
        number += 1


def _settings(config: Config) -> dict[str, Scalar]:
    return settings_of({key: value for key, value in defining_with_nulls(config).items() if key != "seed"})


def _name(run: _Named, keys: Sequence[str]) -> str:
    """Return ``key=value`` for each key that is not null; the last part of a key where no other key ends in it."""
    lasts = Counter(key.rpartition(".")[2] for key in keys)
    values = {} if run.config.name is None else {"name": run.config.name}
    values |= {key: value for key in keys if (value := run.settings.get(key)) is not None}
    values |= {"seed": run.config.seed}
    return " ".join(
        f"{key if lasts[last := key.rpartition('.')[2]] > 1 else last}={_shown(value)}" for key, value in values.items()
    )


def _shown(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.replace(", ", ",").replace(": ", ":") if text.startswith(("[", "{")) else text
