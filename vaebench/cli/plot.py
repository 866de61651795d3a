"""`vaebench plot`: figures for papers."""

import io
from pathlib import Path

from vaebench.cli.flags import PLOT
from vaebench.cli.selection import DEFAULT_FOLDER, selection
from vaebench.errors import UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["run"]

KINDS = ("curves", "forest", "differences", "samples", "grid")
ENDINGS = (".pdf", ".svg", ".png")
HELP = """usage: vaebench plot KIND [RUN ...] -o FILE.pdf [--baseline CONDITION] [--filter CONDITION]

Draw a figure of runs as pdf (with TrueType fonts), svg or png. RUN is a run folder or a folder of runs (default:
outputs). It needs matplotlib: pip install 'vaebench[plot]'. From Python: vaebench.plot.

kinds:
  curves         learning curves: the mean and the range over seeds
  forest         the results of all methods with their errors, best first
  differences    paired differences from the method that --baseline names, with intervals
  samples        samples of all methods side by side
  grid           all of these in one figure; differences only with --baseline

flags:
  -o FILE, --output FILE    the file to write; its name ends in .pdf, .svg or .png
  --baseline CONDITION      as in `vaebench compare`
  --filter CONDITION        as in `vaebench compare`; repeat it to require several conditions

examples:
  vaebench plot curves -o curves.pdf
  vaebench plot grid outputs/mnist5k --baseline encoder=gaussian -o figure.pdf
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench plot <words>`` and return the exit code."""
    chosen = selection(words, PLOT, HELP)
    kind, *paths = chosen.paths
    if kind not in KINDS:
        raise UserError(f"KIND must be one of {', '.join(KINDS)}, got '{clipped(kind)}'{did_you_mean(kind, KINDS)}")
    name = chosen.flags.get("--output", "")
    output = Path(name).expanduser()
    if output.suffix not in ENDINGS:
        raise UserError(f"-o must name a file that ends in {', '.join(ENDINGS)}, got '{clipped(name)}'")
    options = {"baseline": chosen.flags["--baseline"]} if "--baseline" in chosen.flags else {}
    if options and kind not in ("differences", "grid"):
        raise UserError(f"--baseline is for differences and grid, not for {kind}: remove it")
    if kind == "differences" and not options:
        raise UserError("differences need a baseline: add --baseline CONDITION, for example encoder=gaussian")
    from vaebench import notebook, plot
    from vaebench.records.files import write_whole

    runs = notebook.runs(*(paths or [DEFAULT_FOLDER]), filters=chosen.filters)
    figure = getattr(plot, kind)(runs, **options)
    picture = io.BytesIO()
    figure.savefig(picture, format=output.suffix[1:])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, picture.getvalue())
    print(output.resolve())
    return 0
