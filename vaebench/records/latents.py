"""Files of latents: .npz with arrays, .csv with a row for each vector. Written whole; imports no torch."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vaebench.errors import UserError
from vaebench.files import read_npz
from vaebench.records.files import write_failed, write_whole
from vaebench.records.stored import Unreadable, read_whole

__all__ = ["Latents", "read_latents", "write_latents"]

_LARGEST = 1 << 35  # bytes


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of N images under q(z|x), D coordinates each."""

    images: np.ndarray
    """Indices of the images in their split, (N,)."""
    mean: np.ndarray
    """E z, (N, D): in closed form, or the mean of ``mean_draws`` draws."""
    provenance: Mapping[str, Any]
    """What made the numbers: `vaebench.records.provenance.Provenance`, and split, protocol and settings."""
    mean_draws: int = 0
    """0 for a mean in closed form."""
    mean_stderr: np.ndarray | None = None
    """Standard error of ``mean`` over its draws, (N, D); None for a mean in closed form."""
    draws: np.ndarray | None = None
    """(N, K, D)."""
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, (N,) each: ``labels``, and ``alphabets`` of Omniglot."""

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of an .npz file by name."""
        optional = {"mean_stderr": self.mean_stderr, "draws": self.draws}
        return {
            "images": self.images,
            "mean": self.mean,
            "mean_draws": np.array(self.mean_draws),
            **{name: array for name, array in optional.items() if array is not None},
            **self.labels,
            "split": np.array(self.provenance["split"]),
            "provenance": np.array(json.dumps(self.provenance)),
        }


def write_latents(path: Path, latents: Latents) -> None:
    """Write latents in the format of the suffix of ``path``; create its folder. UserError if it cannot be written."""
    content = _csv(latents) if path.suffix.lower() == ".csv" else _npz(latents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(path.parent, error) from error
    write_whole(path, content)


def read_latents(path: Path) -> Latents:
    """Return the content of an .npz file of latents. UserError if it is none."""
    try:
        arrays = read_npz(io.BytesIO(read_whole(path, _LARGEST)), _LARGEST)
        provenance = json.loads(arrays.pop("provenance").item())
        del arrays["split"]
        known = {name: arrays.pop(name, None) for name in ("mean_stderr", "draws")}
        images, mean, mean_draws = (arrays.pop(name) for name in ("images", "mean", "mean_draws"))
        return Latents(images, mean, provenance, int(mean_draws), labels=arrays, **known)
    except (FileNotFoundError, Unreadable, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: it is no .npz file of `vaebench encode` ({error})") from error


def _npz(latents: Latents) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **latents.arrays())
    return buffer.getvalue()


def _csv(latents: Latents) -> bytes:
    """Return comment lines with the provenance, a header, and rows: the mean, its standard error, and each draw.

    Numbers have the digits that give the same float32 again.
    """
    import pandas as pd  # slow to import

    rows = {"mean": latents.mean}
    if latents.mean_stderr is not None:
        rows["stderr"] = latents.mean_stderr
    if latents.draws is not None:
        rows |= {str(number): latents.draws[:, number] for number in range(latents.draws.shape[1])}
    parts = []
    for vector, values in rows.items():
        part = pd.DataFrame(values, columns=[f"z{coordinate}" for coordinate in range(values.shape[1])])
        heads = {"image": latents.images, "split": latents.provenance["split"], **latents.labels, "vector": vector}
        for place, (name, column) in enumerate(heads.items()):
            part.insert(place, name, column)
        parts.append(part)
    table = pd.concat(parts).sort_values("image", kind="stable")
    comments = "".join(
        f"# {name}: {json.dumps(value)}\n"
        for name, value in {"mean_draws": latents.mean_draws, **latents.provenance}.items()
    )
    return (comments + table.to_csv(index=False, lineterminator="\n", float_format="%.9g")).encode()
