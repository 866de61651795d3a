"""`vaebench train`: train one run, or with -m one run for each combination of values."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vaebench import plugins
from vaebench.cli.explain import help_of
from vaebench.cli.flags import TRAIN, Parsed, parse
from vaebench.cli.sweep.launchers import require_launcher
from vaebench.config.catalog import config_folders, default_choices, described, groups
from vaebench.config.words import is_zip, key_value
from vaebench.errors import UserError
from vaebench.typed import clipped

__all__ = ["run"]

RESUMABLE = ("trainer.epochs", "device", "data_dir")
"""The settings that ``--resume`` may change."""

HELP = """usage: vaebench train [GROUP=CHOICE ...] [KEY=VALUE ...] [FLAGS]

Train one model and estimate log p(x) of the test images. Run the same command again to resume.

groups (* default):
{groups}
keys: k, seed, latent_dim, device (auto|cpu|cuda|mps|xpu), data_dir, output_dir, name,
      and the keys of the groups, for example optimizer.lr=3e-4 (--cfg job shows all keys)
      `vaebench explain KEY` prints the meaning of a key; `vaebench train encoder=iwhvi --help` those of a choice

flags:
  -m, --multirun       one run for each combination of comma-separated values; zip(A,B)=(a,b),(c,d) pairs values
  --dry-run            with -m: list the jobs and the expected time, and exit
  --cfg job            print the settings and exit (--resolve: with references replaced by values)
  --resume RUN         resume the run in folder RUN, with its own settings; trainer.epochs=N continues it to epoch N in
                       a new folder; device=... and data_dir=... may change
  --fresh              train from the start; an earlier run is kept in a folder with .replaced-1 in its name
  --config-dir DIR     also use the yaml files in DIR
  --plugin FILE.py     use the encoders, priors, ... of a file or module, and the yaml files in configs/ beside it
  --hydra-help         show hydra's other flags

examples:
  vaebench train encoder=hvm objective=iwae k=16
  vaebench train encoder=iwhvi encoder.inner_k=10 dataset=mnist data_dir=~/data
  vaebench train -m encoder=gaussian,hvm objective=elbo,iwae k=1,16 'seed=range(3)'
  vaebench train -m 'zip(objective,k)=(elbo,1),(iwae,16)' 'seed=range(3)' --dry-run
  vaebench train experiment=iwhvi_paper/mnist_iwhvi trainer.epochs=100
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench train <words>`` and return the exit code."""
    parsed = parse(words, TRAIN)
    if "--config-dir" in parsed.flags:  # absolute, because it is recorded
        parsed.flags["--config-dir"] = os.path.abspath(os.path.expanduser(parsed.flags["--config-dir"]))
    folders = [Path(parsed.flags["--config-dir"])] if "--config-dir" in parsed.flags else []
    if "--help" in parsed.flags:
        searched = [*folders, *config_folders()]
        text = help_of(parsed.rest, searched)
        print(text or HELP.format(groups="\n".join(group_lines(searched))), end="\n" if text else "")
        return 0
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir: there is no folder {folder}")
    if "--fresh" in parsed.flags and (other := {"--resume", "--multirun"} & parsed.flags.keys()):
        raise UserError(f"--fresh trains one run from the start: use it without {other.pop()}")
    if "--dry-run" in parsed.flags and "--multirun" not in parsed.flags:
        raise UserError("--dry-run lists the jobs of a sweep: add -m")
    if "--resume" in parsed.flags:
        return resume_run(parsed)
    return through_hydra(parsed)


def group_lines(folders: list[Path]) -> Iterator[str]:
    """Yield one line for each group with its choices; * marks the default, and PAPER/... the experiments of a paper."""
    defaults = default_choices()
    for group in groups(folders):
        names = [re.sub("/.*", "/...", listed.choice) for listed in described(group, folders)]
        marked = [f"*{name}" if name == defaults.get(group) else name for name in dict.fromkeys(names)]
        yield f"  {group:<10} {' '.join(marked)}"


def resume_run(parsed: Parsed) -> int:
    """Resume the run in a folder."""
    others = [word for word in parsed.rest if key_value(word)[0] not in RESUMABLE or key_value(word)[1] is None]
    others += [flag for flag in parsed.flags if flag != "--resume"]
    if others:
        raise UserError(
            f"--resume takes {', '.join(RESUMABLE)}, and all other settings from the run folder, got "
            f"{clipped(' '.join(others))}: remove it"
        )
    changes: dict[str, Any] = dict(map(key_value, parsed.rest))
    if changes.get("trainer.epochs", "").isdecimal():
        changes["trainer.epochs"] = int(changes["trainer.epochs"])
    from vaebench.train.session import resume

    resume(Path(parsed.flags["--resume"]), changes)
    return 0


def through_hydra(parsed: Parsed) -> int:
    """Compose and train the job; with -m, hydra calls `vaebench.cli.sweep.run` instead."""
    from omegaconf import DictConfig

    from vaebench.cli.hydra_app import start

    plugins.use(*plugins.given())  # a defect in one is one message, not one for each job
    require_launcher(parsed.rest)
    if "--multirun" in parsed.flags and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("torchrun starts several processes for one run, but -m starts several runs: use one of them")
    for word in parsed.rest:
        if is_zip(word) and "--multirun" not in parsed.flags:
            raise UserError(f"'{clipped(word)}' gives several values: add -m to run each")
    refused: list[Exception] = []

    dry_run = ["hydra.sweeper.dry_run=true"] if parsed.flags.pop("--dry-run", None) is not None else []
    fresh = parsed.flags.pop("--fresh", None) is not None

    def job(cfg: DictConfig) -> None:
        try:
            run_job(cfg, fresh=fresh)
        except Exception as error:  # otherwise hydra prints its own message
            refused.append(error)

    start(job, "train", [*parsed.as_words(), *dry_run])
    if refused:
        raise refused[0]
    return 0


def run_job(cfg: object, *, fresh: bool) -> None:
    """Train the job that hydra composed."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from vaebench.cli.argv import command_line, lasting_flags
    from vaebench.config import from_hydra
    from vaebench.config.words import as_typed

    assert isinstance(cfg, DictConfig)
    # Unresolved: an override may contain a reference; from_hydra reports an invalid one.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    config = from_hydra(cfg)
    from vaebench.train.session import train

    # Without --fresh, which would set this run aside: the recorded command makes the run, and resumes it.
    with command_line(["vaebench", "train", *lasting_flags(), *map(as_typed, overrides)]):
        train(config, fresh=fresh)
