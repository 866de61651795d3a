"""`vaebench new`: write a package with an encoder, prior, objective, estimator or dataset of one's own."""

import keyword
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaebench.cli.flags import NEW, parse
from vaebench.config.catalog import config_dir, described
from vaebench.errors import RunFailed, UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["run", "write_package"]

HELP = """usage: vaebench new encoder|prior|objective|estimator|dataset NAME [--folder DIR]

Write a package that works: the code, its yaml, an entry point, and a test of its contract. Change the code, then run
`pytest` and `vaebench check` in its folder. NAME is the word on the command line, as in encoder=NAME.

flags:
  --folder DIR    the folder of the package (default: vaebench-NAME)

examples:
  vaebench new encoder laplace
  vaebench new prior wide --folder ~/packages/wide
"""


@dataclass(frozen=True)
class Kind:
    """What the template of a kind defines."""

    title: str
    example: str
    entry: str
    """The name that the entry point has after the module; {klass} is the name of the class."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the yaml that the test repeats."""


KINDS = {
    "encoder": Kind("An encoder", "vaebench train encoder={name}", "{klass}.build", {"width": 0.7}),
    "prior": Kind("A prior", "vaebench train prior={name}", "{klass}.build", {"scale": 1.0}),
    "objective": Kind("An objective", "vaebench train objective={name} k=16", "build", {"share": 0.5}),
    "estimator": Kind("An estimator", "vaebench evaluate RUN estimator={name}", "job", {"k": 1000}),
    "dataset": Kind("A data set", "vaebench train dataset={name}", "images", {"count": 1000}),
}


def run(words: list[str]) -> int:
    """Run ``vaebench new <words>`` and return the exit code."""
    parsed = parse(words, NEW, HELP)
    if len(parsed.rest) != 2:
        raise UserError("give a kind and a name: vaebench new encoder|prior|objective|estimator|dataset NAME")
    kind, name = parsed.rest
    folder = Path(parsed.flags.get("--folder", f"vaebench-{name.replace('_', '-')}")).expanduser()
    for path in write_package(kind, name, folder):
        print(path)
    print(f"next: pip install -e {folder}, then vaebench check {kind}={name}")
    return 0


def write_package(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the package of a part and return its files.

    Args:
        kind: a key of ``KINDS``.
        name: of the part.
        folder: of the package; it must not exist, or be empty.

    Raises:
        UserError: an unknown kind, an invalid name or one of ours, or a folder with content.
        RunFailed: a file cannot be written.
    """
    if kind not in KINDS:
        word = clipped(kind)
        raise UserError(f"there is no kind '{word}'{did_you_mean(word, KINDS)}; kinds: {', '.join(KINDS)}")
    _check_name(kind, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: give another folder (--folder DIR); nothing is overwritten")
    texts = _texts(kind, name)
    try:
        for place, text in texts.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}") from error
    return [folder / place for place in texts]


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that is no module name, or that vaebench has."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,60}", name) or keyword.iskeyword(name):
        raise UserError(f"NAME must be lower-case letters, digits and _, as in my_{kind}, got '{clipped(name)}'")
    ours = {listed.choice for listed in described(kind, [config_dir()])}
    if name in ours:
        raise UserError(f"{kind}={name} is a choice of vaebench: choose another name")


def _texts(kind: str, name: str) -> dict[str, str]:
    """Return the text of each file of the package by its place."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "new_package"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    package, about = f"vaebench_{name}", KINDS[kind]
    words = name.removesuffix(f"_{kind}").split("_")
    klass = "".join(word.capitalize() for word in [*words, kind])
    values = {
        "kind": kind,
        "name": name,
        "package": package,
        "distribution": package.replace("_", "-"),
        "klass": klass,
        "entry": about.entry.format(klass=klass),
        "a_kind": about.title,
        "example": about.example.format(name=name),
        "settings": about.settings,
    }
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "init.py",
        f"{package}/{name}.py": f"{kind}.py",
        f"{package}/configs/{kind}/{name}.yaml": f"{kind}.yaml",
        f"tests/test_{name}.py": "test.py",
    }
    return {place: environment.get_template(f"{file}.jinja").render(values) for place, file in templates.items()}
