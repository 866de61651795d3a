"""Compose the jobs of a sweep: hydra composes each set of yaml files once, and the values are set on copies."""

import pickle
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from vaebench.config.compose import Chosen, checked
from vaebench.config.schema import Config
from vaebench.errors import UserError

__all__ = ["Compositions"]


class Compositions:
    """The configurations of the jobs of one sweep.

    A composition by hydra takes 0.1 s. Only the words that choose yaml files need one, once for each set of such words.
    The other words set values: hydra's own function sets them on a copy. So the configurations and the messages are
    those of hydra. Equal parts of the configurations are one object.

    Args:
        loader: hydra's config loader.
        config: the configuration of the sweep, with hydra's part.
    """

    def __init__(self, loader: ConfigLoaderImpl, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        # Each job gets the times that are resolved by now, so that output_dir=runs/${now:%H-%M-%S} is one folder.
        OmegaConf.select(config, "output_dir", throw_on_resolution_failure=False)
        # With hydra's words, because hydra.searchpath adds folders.
        hydra_words: Any = OmegaConf.to_container(config.hydra.overrides.hydra)
        _, files = loader._parse_overrides_and_create_caching_repo(config.hydra.job.config_name, hydra_words)
        self._is_group = cache(files.group_exists)
        self._parsed = cache(OverridesParser.create().parse_override)
        self._pickled = cache(self._pickled_by_hydra)
        self._parts: dict[str, Any] = {}

    def composed(self, words: Sequence[str]) -> tuple[DictConfig, Chosen]:
        """Return the configuration of the job with the overrides ``words``, without hydra's own part.

        Raises:
            Exception: hydra cannot compose the words; see `explain`.
        """
        try:
            found = self._with_values(words)
        except Exception:
            found = None  # hydra raises its own error for these words
        return found or self._by_hydra(*words)

    def checked(self, cfg: DictConfig, chosen: Chosen) -> Config:
        """Return a composition as Config. UserError if it is invalid; see `from_hydra`."""
        config = checked(cfg, chosen)
        parts = {field.name: getattr(config, field.name) for field in fields(config)}
        return replace(config, **{name: self._parts.setdefault(repr(part), part) for name, part in parts.items()})

    def _with_values(self, words: Sequence[str]) -> tuple[DictConfig, Chosen] | None:
        """Return what hydra would compose, by setting values on a copy; None if that might differ."""
        choices, values = [], []
        for word in words:
            override = self._parsed(word)
            key, is_group = override.key_or_group, self._is_group(override.key_or_group)
            # hydra sets a map as values of a group, in the order of the words.
            if override.is_sweep_override() or key.startswith("hydra") or (is_group and "{" in word):
                return None
            (choices if is_group else values).append(override)
        without_values, chosen = self._pickled(*(str(override.input_line) for override in choices))
        cfg = pickle.loads(without_values)
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg, chosen

    def _by_hydra(self, *words: str) -> tuple[DictConfig, Chosen]:
        whole = self._loader.load_sweep_config(self._config, list(words))
        chosen = Chosen.of(whole.hydra)
        self._check_part_of_hydra(whole)
        with open_dict(whole):
            del whole["hydra"]
        return whole, chosen

    def _check_part_of_hydra(self, job: DictConfig) -> None:
        """Refuse a yaml of one job that changes the sweep: hydra would leave out its values without a word."""
        for part in ("sweeper", "launcher"):
            own, whole = (OmegaConf.to_container(cfg.hydra[part], resolve=False) for cfg in (job, self._config))
            if own != whole:
                choices = self._config.hydra.runtime.choices
                own_choices = job.hydra.runtime.choices.items()
                changed = " ".join(f"{key}={name}" for key, name in own_choices if choices.get(key) != name)
                raise UserError(
                    f"{changed} sets hydra.{part}, which holds for a whole sweep and not for one of its jobs: "
                    f"run it by itself, vaebench train -m {changed}"
                )

    def _pickled_by_hydra(self, *words: str) -> tuple[bytes, Chosen]:
        # To copy an object of omegaconf through pickle takes a fifth of the time of copy.deepcopy.
        cfg, chosen = self._by_hydra(*words)
        return pickle.dumps(cfg), chosen
