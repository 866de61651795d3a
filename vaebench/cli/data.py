"""`vaebench data`: list the datasets, or prepare one."""

import os
from collections.abc import Iterable
from pathlib import Path

from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import parse
from vaebench.errors import UserError, did_you_mean

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
"""

FLAGS = HELP_FLAGS | {"--no-download": "--no-download", "--rebuild": "--rebuild"}
SETTINGS = ("data_dir", "binarization", "split", "seed")


def run(words: list[str]) -> int:
    """Run ``vaebench data <words>`` and return the exit code."""
    parsed = parse(words, FLAGS)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    settings = dict(setting(word) for word in parsed.rest if "=" in word)
    names = [word for word in parsed.rest if "=" not in word]
    data_dir = Path(settings.pop("data_dir", os.environ.get("VAEBENCH_DATA_DIR") or "data")).expanduser()
    if not names:
        if settings or parsed.flags:
            raise UserError("missing DATASET: `vaebench data` lists the datasets, `vaebench data mnist` prepares one")
        show(data_dir)
    for name in names:
        prepare(name, data_dir, settings, parsed.flags)
    return 0


def setting(word: str) -> tuple[str, str]:
    """Return a word such as ``split=iwae`` or ``dataset.split=iwae`` as (key, value)."""
    key, _, value = word.partition("=")
    short = key.removeprefix("dataset.")
    if short not in SETTINGS:
        raise UserError(f"unknown key {key}{did_you_mean(short, SETTINGS)}; choose from: {', '.join(SETTINGS)}")
    return short, value


def show(data_dir: Path) -> None:
    """Print the state, sizes and summary of each dataset."""
    from vaebench.datasets.preparation import available

    print(f"data_dir: {data_dir}")
    for dataset in available(data_dir):
        print(f"  {dataset.name:<18} {dataset.state:<9} {listed(dataset.sizes):<22} {dataset.summary}")


def prepare(name: str, data_dir: Path, settings: dict[str, str], flags: dict[str, str]) -> None:
    """Prepare one dataset and print its protocol, fingerprint and cache file."""
    from vaebench.datasets.preparation import prepare as prepare_dataset

    prepared = prepare_dataset(
        name,
        data_dir,
        binarization=settings.get("binarization"),
        split=settings.get("split", "default"),
        seed=whole_number(settings.get("seed", "0")),
        download="--no-download" not in flags,
        rebuild="--rebuild" in flags,
    )
    sizes, place = listed(prepared.protocol.sizes), prepared.cache or "not cached: no folder can be written to"
    print(f"{prepared.protocol}: {sizes} images, fingerprint {prepared.fingerprint} ({place})")


def listed(sizes: Iterable[int]) -> str:
    """Return sizes such as ``55,000/5,000/10,000``."""
    return "/".join(f"{size:,}" for size in sizes)


def whole_number(text: str) -> int:
    """Return the seed as an int."""
    try:
        return int(text)
    except ValueError:
        raise UserError(f"seed must be a whole number, not '{text}'") from None
