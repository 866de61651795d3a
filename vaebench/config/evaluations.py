"""Which evaluations `vaebench evaluate RUN estimator=iwae,ais estimator.k=10,100` asks for."""

import itertools
from collections.abc import Sequence

from vaebench.config.catalog import config_dir, described, own_keys
from vaebench.config.explain import explain
from vaebench.errors import UserError

__all__ = ["evaluations"]


def evaluations(own: str, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each evaluation: one for each combination of comma-separated values.

    Where several estimators are chosen, a setting goes to those that have it; one that none has stays, to be refused.

    Args:
        own: the run's own estimator, which settings change where none is chosen.
        overrides: as typed.

    Raises:
        UserError: a word that cannot be read, or a range without an end.
    """
    lists = dict(_values(override) for override in overrides)
    chosen = lists.pop("estimator", None)
    choices = [word.partition("=")[2] for word in chosen] if chosen else [own]
    found = []
    for choice in choices:
        theirs = [words for key, words in lists.items() if _applies(key, choice, choices)]
        for combination in itertools.product(*theirs):
            found.append((*([f"estimator={choice}"] if chosen else []), *combination))
    return [list(words) for words in dict.fromkeys(found)]


def _values(override: str) -> tuple[str, list[str]]:
    """Return the key of an override, and one override for each of its values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        raise explain(error, "evaluate", [override]) from error
    key = parsed.key_or_group
    if not parsed.is_sweep_override():
        return key, [override]
    if not parsed.is_discrete_sweep() or "glob(" in override:
        raise UserError(f"'{override}' does not say which values: write them out, {key}=A,B")
    return key, [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def _applies(key: str, choice: str, choices: Sequence[str]) -> bool:
    """Whether a setting goes to one of the chosen estimators."""
    group, _, word = key.partition(".")
    if group != "estimator":
        return True
    having = [one for one in choices if _is_known(one) and word in own_keys("estimator", one, [config_dir()])]
    return choice in having or not having


def _is_known(choice: str) -> bool:
    return choice in {listed.choice for listed in described("estimator", [config_dir()])}
