"""`vaebench encode`: write the latents of a run's images."""

from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run, run_words
from vaebench.cli.flags import ENCODE, settings
from vaebench.config.encoding import Encoding
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench encode RUN... [KEY=VALUE ...] [-o FILE.npz|FILE.csv] [--projector]

Encode images with a run's best weights, and write the mean of q(z|x), draws of it, and the images' labels.
Without a closed form, the mean is that of mean_draws draws, and its standard error is written too.
RUN is a run folder or a folder of runs; each run gets a file.

keys: split (train|validation|test), images (random subset; null: all), draws (written for each image: 0),
      mean_draws (100), seed, batch, device, data_dir, threads, progress

flags:
  -o, --output FILE    .npz or .csv, for one RUN (default: RUN/latents/SPLIT.npz)
  --projector          write the means for the projector of `vaebench board`, and no other file without -o

examples:
  vaebench encode outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d -o latents.npz
  vaebench encode outputs/mnist split=train draws=10 images=1000
  vaebench encode outputs/mnist --projector
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench encode <words>`` and return the exit code."""
    given = run_words(words, ENCODE, HELP)
    checked = settings(given.settings, Encoding)
    output = target(given.flags.get("--output"), len(given.folders))
    projector = "--projector" in given.flags
    jobs = [RunJob(folder, [], partial(encode_run, folder, checked, output, projector)) for folder in given.folders]
    return each_run(jobs, "encodings")


def encode_run(folder: Path, checked: Encoding, output: Path | None, projector: bool) -> None:
    """Encode the images of one run and print the paths of the files."""
    from vaebench.encode import encode

    for path in encode(folder, checked, output, projector=projector):
        print(path, flush=True)


def target(output: str | None, runs: int) -> Path | None:
    """Return the path after -o. UserError unless it can be the file of a single run."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if runs > 1:
        raise UserError(f"-o names one file, but there are {runs} runs: leave -o out to write one file for each run")
    if path.suffix.lower() not in (".npz", ".csv"):
        raise UserError(f"-o {output}: the name must end in .npz or .csv")
    if path.is_dir():
        raise UserError(f"-o {output}: this is a folder, give a file name")
    return path
