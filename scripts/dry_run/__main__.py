"""Train steps of every combination on a GPU that is not there; print what waits, what copies, and launches per step.

WORD selects the combinations that contain it. The exit code is 1 if a combination fails, or if its step does anything
but ask for kernels. One case is known: the step of iaf with stl or dreg waits until its back-substitution converges.

examples:
  python scripts/dry_run                           # 1,000 combinations, each about 1 s of CPU time
  python scripts/dry_run encoder=iwhvi prior=vamp
  python scripts/dry_run --launches                # every encoder
  python scripts/dry_run --launches objective=iwae k=50 objective.gradient=dreg
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    # Run by its folder, which python then searches first. The folder above holds this package.
    sys.path[0] = str(Path(__file__).parents[1])

from dry_run.cells import Step, choices, every_cell, step_of, tiny
from dry_run.device import other_device
from vaebench.errors import UserError


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        "python scripts/dry_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--launches", action="store_true", help="print a table of launches per step with these words")
    given = parser.parse_args()
    if given.launches:
        print("| encoder | launches per step |\n|---|---|")
        for encoder in choices("encoder"):
            with contextlib.suppress(UserError):
                step = tried([f"encoder={encoder}", *given.words])
                print(f"| `{encoder}` | {step.launches:,} |", flush=True)
        return 0
    counts = {"ran": 0, "refused": 0, "failed": 0}
    for words in every_cell():
        if not given.words or set(given.words) & set(words):
            for outcome, line in judged(words):
                counts[outcome] += 1
                if line:
                    print(f"{' '.join(words)}: {line}", flush=True)
    print(", ".join(f"{count} combinations {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] else 0


def judged(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield ran, refused or failed, and what is to be said about it."""
    try:
        step = tried(words)
    except UserError:
        yield "refused", ""
    except Exception as error:  # the others are tried all the same
        yield "failed", f"{type(error).__name__}: {error}"
    else:
        meant = "encoder=iaf" in words and {"objective.gradient=stl", "objective.gradient=dreg"} & set(words)
        found = {line: count for line, count in step.events.items() if not (meant and line.startswith("wait"))}
        yield "failed" if found else "ran", "; ".join(f"{line} ({count} times)" for line, count in found.items())


def tried(words: list[str]) -> Step:
    """Return a step of these words on the other device."""
    with other_device() as seen:
        return step_of(tiny(words), seen)


if __name__ == "__main__":
    sys.exit(main())
