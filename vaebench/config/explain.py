"""Turn errors of hydra and omegaconf into one short message that says what to type."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from vaebench import plugins
from vaebench.config.catalog import Listed, config_folders, described, groups, own_keys
from vaebench.errors import RunFailed, UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["OPEN_SETTINGS", "explain", "explained", "no_such_choice", "unknown_hydra_key"]

OPEN_SETTINGS = ("hydra.launcher.additional_parameters.", "hydra.launcher.ray.init.", "hydra.launcher.ray.remote.")
"""Further keys are allowed under these, with ``+``: sbatch and ray check them."""


@contextmanager
def explained(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn every error of hydra, omegaconf and yaml in the block, which composes ``overrides``, into a UserError."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except Exception as error:
        raise explain(error, name, overrides) from error


def explain(error: Exception, name: str, overrides: Sequence[str]) -> UserError:
    """Return the message for ``error``, raised while composing ``configs/<name>.yaml`` with ``overrides``."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MarkedYAMLError):
        return _not_yaml(error)
    if isinstance(error, RecursionError):
        return UserError("a yaml file includes itself through its defaults: remove one of the entries")
    if isinstance(error, UnicodeDecodeError):
        return UserError("a yaml file is not UTF-8 text: save it as UTF-8")
    for word in overrides:
        key, _, value = word.partition("=")
        if value.startswith(("[", "{")) and key.lstrip("+") in groups(config_folders()):
            return UserError(f"{key} must be the name of a choice, got {clipped(value)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(str(error.missing_cfg_file))
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _no_such_key(match[1], name, overrides)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return UserError(
            f"{clipped(match[1])} has several values: add -m to run each, or write a list in brackets [...]"
        )
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return UserError(f"{clipped(match[1])} exists already: write {clipped(match[1])}=... without the +")
    if match := re.search(r"Multiple values for (\S+?)\. ", text):
        key = match[1]
        value = next((word.partition("=")[2] for word in overrides if word.lstrip("+").startswith(f"{key}=")), "...")
        return UserError(f"{clipped(key)} has a choice already: write {clipped(f'{key}={value}')} without the +")
    if "Config group override must be" in text:
        return UserError("null is not a choice of a group: remove this setting to use the default choice")
    first = clipped((text.strip().splitlines() or [type(error).__name__])[0].strip())
    if isinstance(error, HydraException | OmegaConfBaseException):
        return UserError(first)
    return UserError(f"hydra cannot compose these settings ({first}): check them and the yaml files")


def _not_yaml(error: MarkedYAMLError) -> UserError:
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}" if mark else "a yaml file"
    return UserError(f"{place} is not yaml: {clipped(error.problem or 'unreadable')}")


def _unreadable(override: str | None) -> UserError:
    word = clipped(override or "")
    if word.startswith("zip("):
        return UserError(f"'{word}' gives several values: use it with vaebench train -m")
    if "=" not in word:
        return UserError(f"'{word}' is not a setting: write KEY=VALUE, for example {_example(word)}")
    return UserError(f"cannot read '{word}': write, for example, k=16 or 'decoder.hidden=[200,200]'")


def _example(word: str) -> str:
    """Return the settings that a word without a key may mean, or else an example."""
    from vaebench.config.usual_words import settings_for

    folders = config_folders()
    named = [group for group in groups(folders) if any(listed.choice == word for listed in described(group, folders))]
    return " or ".join(f"{group}={word}" for group in named) or settings_for(word) or "k=16 or encoder=hvm"


def _no_such_choice(path: str) -> UserError:
    """Return the message for a missing yaml file; ``path`` is, for example, ``encoder/foo``."""
    group = next((g for g in _all_groups() if path.startswith(g + "/")), "")
    if not group:
        return _no_such_plugin(path)
    return no_such_choice(group, path.removeprefix(group + "/"), config_folders())


def no_such_choice(group: str, choice: str, folders: Sequence[Path]) -> UserError:
    """Return the error for a choice that the group does not have."""
    from vaebench.config.usual_words import choice_for

    choice = clipped(choice)
    choices = [listed.choice for listed in described(group, folders)]
    choices = sorted([*choices, "basic"]) if group == "hydra/launcher" else choices
    usual = choice_for(group, choice) or (f"{group}={choice.lower()}" if choice.lower() in choices else "")
    if usual:
        return UserError(f"there is no {group}={choice}: write {usual}; choices: {', '.join(choices)}")
    more = "; a name of a plug-in needs its package, or --plugin FILE" if group in plugins.KINDS else ""
    return UserError(
        f"there is no {group}={choice}{did_you_mean(choice, choices)}; choices: {', '.join(choices)}{more}"
    )


def _no_such_plugin(path: str) -> UserError:
    group, _, choice = clipped(path).rpartition("/")
    return UserError(f"there is no {group}={choice}" if group else f"there is no config file named {choice}.yaml")


def _no_such_key(key: str, name: str, overrides: Sequence[str]) -> UserError:
    from vaebench.config.usual_words import key_for

    group, _, word = key.partition(".")
    value = next((each.partition("=")[2] for each in overrides if each.partition("=")[0] == key), None)
    usual = clipped(key_for(key, value))
    if owners := [choice.choice for choice in _choices_with(group, word)]:
        other = f"; or write {usual}" if usual else ""
        return UserError(f"{key} is a setting of {group}={'|'.join(owners)}, not of the chosen {group}{other}")
    if usual:
        return UserError(f"unknown key {clipped(key)}: write {usual}")
    known, key = _known_keys(name, overrides, hydra_too=key.startswith("hydra.")), clipped(key)
    if key.startswith("hydra."):
        chosen = [word.partition("=")[2] for word in overrides if word.startswith("hydra/launcher=")]
        return unknown_hydra_key(key, known, *chosen[-1:])
    return UserError(f"unknown key {key}{_meant(key, known)}; `vaebench train --cfg job` shows every key")


def unknown_hydra_key(key: str, known: Iterable[str], launcher: str = "") -> UserError:
    """Return the error for an unknown key under ``hydra``; ``launcher`` is the chosen one, "" if it is not known."""
    owners = [choice.choice for choice in _choices_with("hydra/launcher", key.removeprefix("hydra.launcher."))]
    if owners and key.startswith("hydra.launcher."):
        return UserError(f"{key} is a setting of hydra/launcher={'|'.join(owners)}, not of the chosen one")
    known = [full for full in known if full.startswith("hydra.")]
    if key.startswith(OPEN_SETTINGS):
        inside = [full for full in known if full.rpartition(".")[0] == key.rpartition(".")[0]]
        return UserError(f"unknown key {key}{did_you_mean(key, inside)}; write +{key}=... to pass it on unchecked")
    section = ".".join(key.split(".")[:2])
    inside = [full for full in known if full.startswith(f"{section}.")]
    words = f"-p {section if inside else 'hydra'}"
    words += f" hydra/launcher={launcher}" if launcher and section == "hydra.launcher" else ""
    hint = did_you_mean(key, inside or known)
    return UserError(f"unknown key {key}{hint}; `vaebench train --cfg hydra {words}` shows every key")


def _all_groups() -> list[str]:
    return [*groups(config_folders()), "hydra/launcher", "hydra/sweeper"]


def _choices_with(group: str, word: str) -> list[Listed]:
    """Return the choices of ``group`` that have the setting ``word``."""
    folders = config_folders()
    return [c for c in described(group, folders) if word and word in own_keys(group, c.choice, folders)]


def _meant(key: str, known: Iterable[str]) -> str:
    """Return a "did you mean": keys with the same last part (lr: optimizer.lr), or else the key spelt most alike."""
    known, word = list(known), key.rpartition(".")[2]
    namesakes = [full for full in known if full.rpartition(".")[2] == word]
    if 1 <= len(namesakes) <= 3:
        return f" (did you mean {' or '.join(repr(full) for full in namesakes)}?)"
    inside = [full for full in known if full.rpartition(".")[0] == key.rpartition(".")[0]]
    return did_you_mean(key, inside) or did_you_mean(key, known)


def _known_keys(name: str, overrides: Sequence[str], *, hydra_too: bool) -> list[str]:
    """Return the full names of all keys and groups, with the choices in ``overrides`` if these compose."""
    import hydra

    from vaebench.config.search_path import initialized

    words = set(_all_groups())
    choices = [override for override in overrides if override.partition("=")[0] in words and "," not in override]
    with initialized():
        try:
            cfg = hydra.compose(name, choices, return_hydra_config=hydra_too)
        except Exception:  # a choice that does not compose either
            cfg = hydra.compose(name, return_hydra_config=hydra_too)
    return sorted({*_flat(cfg), *words})


def _flat(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for key, value in node.items_ex(resolve=False):
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(value):
            yield from _flat(value, f"{prefix}{key}.")
