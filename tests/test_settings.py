"""Every setting has one meaning, its comment in the yaml file, and is in docs/settings.md; usual words lead to it."""

import re
import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template
from omegaconf import OmegaConf

from vaebench.cli import main
from vaebench.cli.explain import HYDRA_GROUPS, every_setting, of_commands
from vaebench.cli.listing import hydra_types
from vaebench.config import Config, compose, config_dir
from vaebench.config.catalog import described, groups, own_keys
from vaebench.config.meanings import Setting, hint_of, of_choice, of_command, of_group, type_words
from vaebench.config.run import changed
from vaebench.config.usual_words import CHOICES, KEYS
from vaebench.errors import UserError
from vaebench.evaluate.ranges import check_ranges
from vaebench.experiment import _load_data, build

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs/examples/vaebench-since2018/vaebench_since2018/configs"
TEMPLATES = ROOT / "vaebench/cli/new_package"
FOLDERS = [config_dir()]


def without_meaning(folder: Path) -> list[str]:
    """Return the settings without a comment of the yaml files in a folder."""
    found: list[Setting] = []
    for group in [*groups([folder]), *(each for each in HYDRA_GROUPS if (folder / each).is_dir())]:
        for listed in described(group, [folder]):
            found += of_choice(group, listed.choice, [folder, *FOLDERS], hydra_types())
    return [setting.key for setting in found if not setting.meaning]


def keys_by_omegaconf() -> set[str]:
    """Return the keys that a user can set, read in another way than the page's."""
    found = {f"{g}.{key}" for g in groups(FOLDERS) if g != "experiment" for c in described(g, FOLDERS)
             for key in own_keys(g, c.choice, FOLDERS)}  # fmt: skip
    for command in ("train", "evaluate"):
        whole: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{command}.yaml"))
        found |= {key for key in whole if key not in ("defaults", "hydra", "sweep")}
    found |= hydra_types().keys()
    for field in fields(Config):
        if isinstance(field.type, type) and field.name in ("optimizer", "trainer", "sweep"):
            found |= {f"{field.name}.{own.name}" for own in fields(field.type)}
    return {key for key in found if not re.fullmatch(r"\w+\.name", key)}


def test_the_page_is_up_to_date():
    page = runpy.run_path(str(ROOT / "scripts" / "settings"))["page"]
    assert page(FOLDERS) == PAGE, "run scripts/settings > docs/settings.md"


def test_the_page_has_every_key_with_a_meaning_values_and_a_default():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert sorted(keys_by_omegaconf() - rows.keys()) == []
    keys = keys_by_omegaconf()
    incomplete = [key for key, row in rows.items() if key in keys and not re.fullmatch(r"\S.* \| \S.* \| `\S.*", row)]
    assert incomplete == []


@pytest.mark.parametrize("folder", [config_dir(), EXAMPLE], ids=["ours", "example"])
def test_every_key_has_a_meaning(folder: Path):
    assert without_meaning(folder) == []


def test_every_key_of_a_new_package_has_a_meaning(tmp_path: Path):
    for template in TEMPLATES.glob("*.yaml.jinja"):
        path = tmp_path / template.name.removesuffix(".yaml.jinja") / "mine.yaml"
        path.parent.mkdir()
        path.write_text(Template(template.read_text()).render(name="mine"))
    assert len(groups([tmp_path])) == 5
    assert without_meaning(tmp_path) == []


def test_control_a_key_without_a_comment_is_found(tmp_path: Path):
    (tmp_path / "encoder").mkdir()
    text = "# vaebench train encoder=a\n# Mine.\nname: a\ntrunk: mlp\nwidth: 3  # of it (>= 1)\nmute: '#'\n"
    (tmp_path / "encoder" / "a.yaml").write_text(text)
    assert without_meaning(tmp_path) == ["encoder.mute"]
    width = of_choice("encoder", "a", [tmp_path])[1]
    assert width == Setting("encoder.width", "of it", "an integer >= 1", {"3": ["a"]})


def test_commands_have_meanings():
    others = {(command, s.key): s.meaning for command, settings in of_commands().items() for s in settings}
    assert [key for key, meaning in others.items() if len(meaning) < 5] == []
    assert others["data", "path"].startswith("the file or folder")
    assert others["diagnose", "k"].startswith("importance weights for the effective sample size")
    assert [
        setting.key for command in ("train", "evaluate") for setting in of_command(command) if not setting.meaning
    ] == []


def test_a_list_of_values_in_a_comment_is_the_declared_one():
    """A shorter list would hide a value; only a choice of an open group may take fewer."""
    declared = [
        *of_command("train"),
        *of_command("evaluate"),
        *of_group("optimizer", FOLDERS),
        *of_group("trainer", FOLDERS),
    ]
    assert [
        s.key
        for s in declared
        if s.values.removesuffix(", or null") != type_words(hint_of(s.key)).removesuffix(", or null")
    ] == []


# Ranges -----------------------------------------------------------------------------------------------------


def bound(values: str) -> str:
    """Return the range in words such as ``an integer >= 1, or null``; "" if there is none."""
    match = re.search(r"(?:[<>]|between).*?(?=, or null|$)", values)
    return match[0] if match else ""


def outside(values: str) -> float:
    """Return the first number below a range."""
    low = re.search(r"-?\d+", bound(values))
    assert low, values
    return int(low[0]) - 1 if "integer" in values else float(low[0]) - (">=" in values)


WITH_RANGES = [
    setting
    for group in ("encoder", "prior", "likelihood", "objective", "estimator")
    for setting in of_group(group, FOLDERS)
    if hint_of(setting.key) is None and not setting.values.startswith("a list") and bound(setting.values)
]
"""Settings whose range is in a comment alone."""


@cache
def composed(group: str, choice: str) -> Config:
    words = [f"{group}={choice}", "latent_dim=4", "decoder.hidden=[8]", "device=cpu", "trainer.compile=false"]
    return compose([*words, *{"likelihood": ["dataset.binarization=none"], "objective": ["k=4"]}.get(group, [])])


def refusal(setting: Setting) -> str:
    """Return the message about a value outside the range of a setting; "" if the value is accepted."""
    group, choice = setting.key.partition(".")[0], next(iter(setting.defaults.values()))[0]
    try:
        config = changed(composed(group, choice), {setting.key: outside(setting.values)})
        check_ranges(config.estimator) if group == "estimator" else build(config)
    except UserError as error:
        return str(error)
    return ""


def test_ranges_in_comments_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch):
    loaded = {choice: _load_data(compose([f"dataset.binarization={choice}"])) for choice in ("dynamic", "none")}
    monkeypatch.setattr("vaebench.experiment._load_data", lambda config: loaded[config.dataset.binarization])
    assert len(WITH_RANGES) > 40
    messages = [(setting, refusal(setting)) for setting in WITH_RANGES]
    assert [
        (s.key, s.values, m) for s, m in messages if s.key.partition(".")[2] not in m or bound(s.values) not in m
    ] == []


# Usual words ------------------------------------------------------------------------------------------------


def test_usual_words_lead_to_settings_that_exist():
    keys = {setting.key: setting for setting in every_setting(FOLDERS)}
    choices = {f"{group}={c.choice}" for group in groups(FOLDERS) for c in described(group, FOLDERS)}
    words = [advice for table in CHOICES.values() for advice in table.values()] + list(KEYS.values())
    for word in (word for advice in words for word in advice.split()):
        assert word in choices or word.partition("=")[0] in {*keys, *groups(FOLDERS)}, word


def test_usual_words_are_no_names_of_vaebench():
    taken = [f"{group}={name}" for group, table in CHOICES.items() for name in table
             if name in {listed.choice for listed in described(group, FOLDERS)}]  # fmt: skip
    assert taken == []
    assert KEYS.keys() & {setting.key for setting in every_setting(FOLDERS)} == set()


# Commands ---------------------------------------------------------------------------------------------------

SHOWN = {
    "explain optimizer.schedule": "constant | exponential | burda | cosine",
    "explain encoder=iwhvi": "encoder.inner_k=5   an integer >= 0",
    "explain inner_k": "estimator.inner_k: ",
    "explain learning_rate": "optimizer.lr: learning rate",
    "explain vae": "vae: write encoder=gaussian objective=elbo",
    "explain hydra.launcher.timeout_min": "an integer >= 1",
    "list encoder iwhvi": "inner samples in log q(z|x)",
    "train encoder=iwhvi optimizer.lr=1 --help": "optimizer.lr: learning rate",
    "evaluate estimator=gaps --help": "estimator.fit_draws=16   an integer >= 1",
}


@pytest.mark.parametrize("words", SHOWN)
def test_shown(words: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 0
    assert SHOWN[words] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("explain", "missing KEY"),
        ("explain optimizer.schedul", "there is no setting 'optimizer.schedul' (did you mean 'optimizer.schedule'?)"),
        ("explain encoder=vae", "there is no encoder=vae: write encoder=gaussian objective=elbo"),
        ("list encoder vae", "there is no encoder=vae: write encoder=gaussian objective=elbo"),
        ("list iwhvi", "there is no group 'iwhvi'"),
    ],
)
def test_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_plug_ins_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "configs" / "encoder").mkdir(parents=True)
    (tmp_path / "mine.py").write_text('PLUGINS = {"encoder": {"mine": print}}\n')
    (tmp_path / "configs" / "encoder" / "mine.yaml").write_text("# a\n# Mine.\nname: mine\nodd: 3  # oddness (>= 1)\n")
    assert main(["explain", "odd", f"--plugin={tmp_path / 'mine.py'}"]) == 0
    assert "encoder.odd: oddness\n  values   an integer >= 1" in capsys.readouterr().out
