"""`vaebench data`: list the datasets, or prepare one."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaebench import plugins
from vaebench.cli.flags import DATA, parse, settings
from vaebench.config.schema import Count, Seed, Word
from vaebench.errors import UserError
from vaebench.records.text import table, wrapped

__all__ = ["run"]

HELP = """usage: vaebench data [DATASET ...] [data_dir=DIR] [binarization=...] [split=...] [seed=N] [FLAGS]

Without a DATASET, list all datasets and their state. With one, find its files in data_dir or download them,
verify them, and cache the pixels in one file per protocol. The default data_dir is $VAEBENCH_DATA_DIR, else data/.

flags:
  --no-download    use only files that are already on this machine
  --rebuild        ignore the cached pixels; read and verify the published files again

examples:
  vaebench data
  vaebench data mnist
  vaebench data mnist omniglot data_dir=~/data
  vaebench data mnist binarization=static split=iwae
  vaebench data own path=images.npz
"""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The settings of the command. None: the dataset's default."""

    data_dir: Word | None = None
    """Folder of the data sets; None: $VAEBENCH_DATA_DIR, or data."""
    binarization: Word | None = None
    split: Word = "default"
    seed: Seed = 0
    path: Word | None = None
    shape: tuple[Count, ...] | None = None


def run(words: list[str]) -> int:
    """Run ``vaebench data <words>`` and return the exit code."""
    parsed = parse(words, DATA, HELP)
    # As in `vaebench train`, a setting may start with the name of its group.
    given = [word.removeprefix("dataset.") for word in parsed.rest if "=" in word]
    names = [word for word in parsed.rest if "=" not in word]
    checked = settings(given, DataSettings)
    data_dir = Path(checked.data_dir or os.environ.get("VAEBENCH_DATA_DIR") or "data").expanduser()
    if not names:
        if parsed.flags or any(not word.startswith("data_dir=") for word in given):
            raise UserError("missing DATASET: `vaebench data` lists the datasets, `vaebench data mnist` prepares one")
        show(data_dir)
    for name in names:
        prepare(name, data_dir, checked, parsed.flags)
    return 0


def show(data_dir: Path) -> None:
    """Print the state, sizes and summary of each dataset."""
    from vaebench.datasets.preparation import available

    print(f"data_dir: {data_dir}")
    head, datasets = ("dataset", "state", "images", "summary"), available(data_dir)
    rows = [(each.name, each.state, listed(each.sizes), each.summary) for each in datasets]
    print(table(head, rows, wrap="summary"))
    for each in datasets:
        if each.place is not None:
            root = data_dir.expanduser().absolute()
            inside = each.place.absolute().is_relative_to(root)
            place = each.place.absolute().relative_to(root) if inside else each.place
            print(wrapped(f"{each.name}: {each.state} at {place}"))
    for plugin in plugins.names("dataset"):
        print(wrapped(f"{plugin}: a plug-in; `vaebench list dataset` shows its origin"))
    print("own images: vaebench train dataset=own dataset.path=FILE_OR_FOLDER")


def prepare(name: str, data_dir: Path, checked: DataSettings, flags: dict[str, str]) -> None:
    """Prepare one dataset and print its protocol, fingerprint and cache file."""
    from vaebench.datasets.preparation import prepare as prepare_dataset

    given = {key: value for key in ("path", "shape") if (value := getattr(checked, key)) is not None}
    prepared = prepare_dataset(
        name,
        data_dir,
        binarization=checked.binarization,
        split=checked.split,
        seed=checked.seed,
        download="--no-download" not in flags,
        rebuild="--rebuild" in flags,
        **(given | foreign_settings(name)),
    )
    sizes, place = (
        listed(prepared.protocol.sizes),
        prepared.cache or prepared.place or "not cached: no folder can be written to",
    )
    print(wrapped(f"{prepared.protocol}: {sizes} images, fingerprint {prepared.fingerprint} ({place})"))


def foreign_settings(name: str) -> dict[str, Any]:
    """Return the settings in the yaml file of a plug-in's dataset; {} for ours."""
    from omegaconf import OmegaConf

    from vaebench.config.catalog import config_folders, own_keys
    from vaebench.datasets.catalog import CATALOG

    if plugins.foreign("dataset", name, CATALOG) is None:
        return {}
    declared: Any = OmegaConf.to_container(own_keys("dataset", name, config_folders()), resolve=True)
    return {key: value for key, value in declared.items() if key not in ("name", "binarization", "split", "seed")}


def listed(sizes: Iterable[int]) -> str:
    """Return sizes such as ``55,000/5,000/10,000``."""
    return "/".join(f"{size:,}" for size in sizes)
