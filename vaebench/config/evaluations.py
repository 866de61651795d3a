"""List the evaluations that ``vaebench evaluate RUN estimator=iwae,ais estimator.k=10,100`` asks for."""

import itertools
from collections.abc import Sequence

from vaebench.config.catalog import config_folders, described, own_keys
from vaebench.config.words import for_hydra, key_value, override, values_of

__all__ = ["evaluations"]


def evaluations(own: str, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each evaluation: one for each combination of comma-separated values.

    If several estimators are chosen, each gets the settings that it has. A setting that no estimator has stays in
    the overrides, so that it is refused later.

    Args:
        own: the run's own estimator, whose settings change if no estimator is chosen.
        overrides: as typed.

    Raises:
        UserError: a word cannot be read, or does not list its values.
    """
    lists = dict(_values(for_hydra(word)) for word in overrides)
    chosen = lists.pop("estimator", [])
    choices = [str(key_value(word)[1]) for word in chosen] or [own]
    found = []
    for choice, word in itertools.zip_longest(choices, chosen):
        theirs = [words for key, words in lists.items() if _applies(key, choice, choices)]
        found += [([word] if word else []) + list(rest) for rest in itertools.product(*theirs)]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


def _values(word: str) -> tuple[str, list[str]]:
    """Return the key of a setting, and one setting for each of its values."""
    parsed = override(word, "evaluate")
    if not parsed.is_sweep_override():
        return parsed.key_or_group, [word]
    return parsed.key_or_group, [f"{parsed.get_key_element()}={value}" for value in values_of(parsed)]


def _applies(key: str, choice: str, choices: Sequence[str]) -> bool:
    """Whether a setting goes to one of the chosen estimators."""
    group, _, setting = key.partition(".")
    if group != "estimator":
        return True
    known = {listed.choice for listed in described("estimator", config_folders())}
    having = [one for one in choices if one in known and setting in own_keys("estimator", one, config_folders())]
    return choice in having or not having
