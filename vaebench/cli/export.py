"""`vaebench export`: a finished run as one file, with which others measure the run again without training."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.cli.flags import EXPORT, parse
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.records import RunFolder

__all__ = ["run"]

HELP = """usage: vaebench export RUN -o FILE.vae.zip

Write a finished run as one file: its settings, best weights, results and curves, the fingerprint of its data and a
digest of the whole. Every command that takes a RUN takes such a file, and checks it first. Left out are absolute paths,
the name of the machine, the numbers of single images, and the state of the optimizer.

flags:
  -o, --output FILE.vae.zip    the file to write

examples:
  vaebench export outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d -o hvm.vae.zip
  vaebench evaluate hvm.vae.zip estimator=iwae estimator.k=5000
"""

_LARGE = 4_000_000
_OF_A_SESSION = ("time", "device", "git", "versions", "code", "step")
_OF_A_RUN = ("identity", "dataset", "parameters", "wall_seconds", "stopped_early", "written", "validation", "measure")


def run(words: list[str]) -> int:
    """Carry out ``vaebench export <words>`` and return the exit code."""
    from vaebench.records.exported import ENDING

    parsed = parse(words, EXPORT, HELP)
    if len(parsed.rest) != 1:
        raise UserError(f"give one RUN, got {len(parsed.rest)}; `vaebench list runs` lists them")
    if not (name := parsed.flags.get("--output", "")).endswith(ENDING):
        raise UserError(f"give the file to write, with a name that ends in {ENDING}: -o NAME{ENDING}")
    from vaebench.records import RunFolder
    from vaebench.records.exported import packed
    from vaebench.records.files import write_whole

    content = packed(members(RunFolder.open(Path(parsed.rest[0]))))
    output = Path(name).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, content)
    large = ": large, because the model has many weights" if len(content) > _LARGE else ""
    print(f"{output.resolve()}\n  {len(content) / 1e6:.2f} MB{large}\n  sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


def members(folder: "RunFolder") -> dict[str, bytes]:
    """Return the files of a finished run as they are exported, by name.

    Raises:
        UserError: the run is not finished, or one of its files is corrupt.
    """
    from vaebench.config import identity, to_yaml
    from vaebench.config.run import changed
    from vaebench.experiment import best_of
    from vaebench.records import exported
    from vaebench.records.checkpoint import Checkpoints
    from vaebench.records.results import to_json
    from vaebench.records.stored import read_whole
    from vaebench.report.runs import Run

    found = Run.read(folder)
    if found.status is None or found.state != "finished":
        raise UserError(f"{folder.path} is {found.state}: train it to the end, then export it")
    loaded = Checkpoints(folder.checkpoints).load("best", identity=identity(found.config))
    best = best_of(loaded, found.manifest)
    places = {"data_dir": "data", "output_dir": "outputs"}
    if path := found.config.dataset.arguments.get("path"):
        places["dataset.path"] = Path(path).name
    return {
        exported.CONFIG: to_yaml(changed(found.config, places)).encode(),
        exported.MANIFEST: _json(public(found.manifest) | {"best": {"epoch": best.epoch, "weights": best.weights}}),
        exported.METRICS: read_whole(folder.metrics),
        exported.RESULTS: _json([to_json(replace(record, per_image=None)) for record in found.results]),
        exported.STATUS: _json(asdict(replace(found.status, pid=1, host="", instance=""))),
        exported.WEIGHTS: read_whole(loaded.path, loaded.path.stat().st_size),
    }


def public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the run and not of its place: no hosts, processes and absolute paths."""
    kept = {name: manifest[name] for name in _OF_A_RUN if name in manifest}
    return {**_session(manifest), **kept, "restarts": [_session(one) for one in manifest.get("restarts", [])]}


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: session[name] for name in _OF_A_SESSION if name in session}
    if "command" in session:
        words = [word for word in session["command"] if word.partition("=")[0] not in ("data_dir", "output_dir")]
        kept["command"] = [_without_folder(word) for word in words]
    if "plugins" in session:
        files = [_without_folder(one["file"]) if one["file"] else None for one in session["plugins"]]
        kept["plugins"] = [{**one, "file": file} for one, file in zip(session["plugins"], files, strict=True)]
    return kept


def _without_folder(word: str) -> str:
    """Return a word of a command with the file name in place of an absolute path."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{os.path.basename(value) if os.path.isabs(value) else value}"


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
