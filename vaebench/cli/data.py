"""`vaebench data`: what is there, and making a dataset ready."""

import os
from pathlib import Path

from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import parse
from vaebench.errors import UserError, did_you_mean

__all__ = ["run"]

HELP = """usage: vaebench data [DATASET ...] [data_dir=DIR] [binarization=...] [split=...] [seed=N] [FLAGS]

Without a DATASET: show which are there. With one: find its files in data_dir or download them, verify them,
and keep one compact file per protocol. data_dir is $VAEBENCH_DATA_DIR, or data/, unless you say otherwise.

flags:
  --no-download    use only what data_dir holds
  --rebuild        read and verify the original files again

examples:
  vaebench data
  vaebench data mnist
  vaebench data mnist omniglot data_dir=~/data
  vaebench data mnist binarization=static split=iwae
"""

FLAGS = HELP_FLAGS | {"--no-download": "--no-download", "--rebuild": "--rebuild"}
SETTINGS = ("data_dir", "binarization", "split", "seed")


def run(words: list[str]) -> int:
    """Carry out ``vaebench data <words>`` and return the exit code."""
    parsed = parse(words, FLAGS)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    settings = dict(setting(word) for word in parsed.rest if "=" in word)
    names = [word for word in parsed.rest if "=" not in word]
    data_dir = Path(settings.pop("data_dir", os.environ.get("VAEBENCH_DATA_DIR") or "data")).expanduser()
    if not names:
        if settings or parsed.flags:
            raise UserError("which dataset? `vaebench data` shows them, `vaebench data mnist` prepares one")
        show(data_dir)
    for name in names:
        prepare(name, data_dir, settings, parsed.flags)
    return 0


def setting(word: str) -> tuple[str, str]:
    """Return a word such as ``split=iwae`` as (key, value); the long name dataset.split is understood too."""
    key, _, value = word.partition("=")
    short = key.removeprefix("dataset.")
    if short not in SETTINGS:
        raise UserError(f"unknown key {key}{did_you_mean(short, SETTINGS)}; keys: {', '.join(SETTINGS)}")
    return short, value


def show(data_dir: Path) -> None:
    """Print each dataset, its sizes, and what of it is in ``data_dir``."""
    from vaebench.datasets.preparation import available

    print(f"data_dir: {data_dir}")
    for entry in available(data_dir):
        sizes = "/".join(f"{size:,}" for size in entry.sizes)
        print(f"  {entry.name:<18} {entry.state:<9} {sizes:<22} {entry.summary}")


def prepare(name: str, data_dir: Path, settings: dict[str, str], flags: dict[str, str]) -> None:
    """Prepare one dataset and print where it is."""
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
    sizes = "/".join(f"{size:,}" for size in prepared.protocol.sizes)
    place = prepared.cache or "in memory only: no folder to write to"
    print(f"{prepared.protocol}: {sizes} images, fingerprint {prepared.fingerprint} ({place})")


def whole_number(text: str) -> int:
    """Return the seed as an int."""
    try:
        return int(text)
    except ValueError:
        raise UserError(f"seed must be a whole number, not '{text}'") from None
