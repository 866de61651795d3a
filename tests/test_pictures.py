"""Pictures of runs: what is in them, where it stands, and that they are the same each time."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from vaebench import cli, experiment
from vaebench.config import compose, config_dir, identity, to_yaml
from vaebench.config.pictures import Interpolate, PictureSettings, Reconstruct, Sample, Traverse
from vaebench.draw import (
    _spherical,
    decoded,
    draw,
    interpolations,
    latent_positions,
    latent_spread,
    observed,
    reconstructions,
    samples,
)
from vaebench.priors import MixturePrior
from vaebench.records import RunFolder
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.pictures import MARGIN, WHITE, Sheet, grid
from vaebench.train.session import train

COMMANDS = {"sample": Sample, "reconstruct": Reconstruct, "interpolate": Interpolate, "traverse": Traverse}
SMALL = ["latent_dim=4", "decoder.hidden=[8]", "device=cpu", "trainer.threads=1", "trainer.progress=false"]
LOOK = {"device": "cpu", "threads": 1}


def untrained(folder: Path, data: Path, overrides: list[str]) -> Path:
    """Return a run folder with fresh weights as its best ones."""
    config = compose([*SMALL, *overrides, f"data_dir={data}"])
    run = RunFolder(folder).create(to_yaml(config))
    state = {"identity": identity(config), "epoch": 7, "step": 1, "validation_log_likelihood": 0.0}
    modules = experiment.build(config).modules
    Checkpoints(run.checkpoints).save({**state, "modules": modules.state_dict()}, "best")
    return run.path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """The run folder of a small model that has seen its images a few times."""
    torch.set_default_dtype(torch.float32)
    words = ["latent_dim=8", "encoder=gaussian", "decoder.hidden=[100]", "optimizer.lr=3e-3", "trainer.epochs=4"]
    words += ["trainer.evaluate=false", "trainer.validation_k=1", "device=cpu", "trainer.threads=1"]
    words += ["trainer.progress=false", "trainer.kl_warmup=0", f"data_dir={default_data_dir}"]
    return train(compose([*words, f"output_dir={tmp_path_factory.mktemp('trained')}"]))


@pytest.fixture(scope="module")
def loaded(trained: Path) -> experiment.Experiment:
    return experiment.load(trained)


def pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "L"
        return numpy.asarray(picture)


def cells(path: Path, rows: int, columns: int, scale: int, breaks: tuple[int, ...] = ()) -> numpy.ndarray:
    """Cut the images out of a picture without labels at its sides, (rows * columns, 28, 28)."""
    picture, size, gap = pixels(path), 28 * scale, max(1, scale - 1)
    lefts = [MARGIN]
    for column in range(1, columns):
        lefts.append(lefts[-1] + size + (5 * scale if column in breaks else gap))
    top = picture.shape[0] - MARGIN - rows * (size + gap) + gap
    found = [
        picture[top + row * (size + gap) :, left:][:size, :size][::scale, ::scale]
        for row in range(rows)
        for left in lefts
    ]
    return numpy.stack(found)


def as_bytes(images: Tensor) -> numpy.ndarray:
    return (255 * images.double().clamp(0, 1)).round().reshape(-1, 28, 28).numpy().astype(numpy.uint8)


# What is drawn --------------------------------------------------------------------------------------------


def test_a_reconstruction_resembles_its_original_more_than_others(loaded: experiment.Experiment):
    pairs = reconstructions(loaded, loaded.modules, loaded.data.test[:100])
    assert pairs.shape == (200, 784)
    assert 0 <= pairs.min() <= pairs.max() <= 1
    originals, found = pairs[::2], pairs[1::2]
    distance = torch.cdist(found, originals)

    def nearest(distance: Tensor) -> float:
        return (distance.argmin(1) == torch.arange(100)).double().mean().item()

    def nearer_than(distance: Tensor) -> float:
        return (distance.diagonal().unsqueeze(1) <= distance).double().mean().item()

    assert nearest(distance) > 0.5
    assert nearer_than(distance) > 0.95
    # Control: the reconstruction of another image.
    assert nearest(distance.roll(1, 0)) < 0.1
    assert nearer_than(distance.roll(1, 0)) < 0.7


def test_the_originals_are_what_the_encoder_sees(loaded: experiment.Experiment):
    intensities = loaded.data.test[:5]
    pairs = reconstructions(loaded, loaded.modules, intensities, draws=3, seed=4)
    assert pairs.shape == (20, 784)
    assert torch.equal(pairs[::4], observed(loaded, intensities, seed=4))
    assert set(pairs[::4].unique().tolist()) == {0.0, 1.0}
    # Three draws of z, not one.
    assert not torch.equal(pairs[1::4], pairs[2::4])


def test_samples_come_from_the_real_prior(tmp_path: Path, default_data_dir: Path):
    folder = untrained(tmp_path / "run", default_data_dir, ["prior=mixture", "prior.components=3"])
    found = experiment.load(folder)
    prior = found.model.latent_prior
    assert isinstance(prior, MixturePrior)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[4.0], [-4.0], [0.0]]).expand(3, 4))
        prior.log_scales.fill_(-9)
        prior.raw_log_weights.copy_(torch.tensor([50.0, -50.0, -50.0]))
        images = samples(found, found.modules, 20)
        expected = found.model.likelihood(torch.full((1, 4), 4.0)).mean
        other = found.model.likelihood(torch.full((1, 4), -4.0)).mean
    assert (images - expected).abs().max() < 1e-2
    assert (other - expected).abs().max() > 0.05


def test_samples_of_a_trained_model_are_probabilities_of_ink(loaded: experiment.Experiment):
    images = samples(loaded, loaded.modules, 50)
    assert images.shape == (50, 784)
    assert 0 <= images.min() <= images.max() <= 1
    assert images.std(0).max() > 0.2
    # About as much ink as the data have.
    assert images.mean().item() == pytest.approx(loaded.data.train.double().mean().item() / 255, abs=0.04)


def test_a_straight_way(loaded: experiment.Experiment):
    z = torch.randn(3, 2, 8)
    images = interpolations(loaded.modules, z[:, 0], z[:, 1], 5)
    assert images.shape == (3, 5, 784)
    for step, place in ((0, z[:, 0]), (2, z.mean(1)), (4, z[:, 1])):
        torch.testing.assert_close(images[:, step], decoded(loaded.modules, place))
    turned = interpolations(loaded.modules, z[:, 0], z[:, 1], 5, "spherical")
    torch.testing.assert_close(turned[:, [0, 4]], images[:, [0, 4]], rtol=1e-4, atol=1e-4)
    assert (turned[:, 2] - images[:, 2]).abs().max() > 0.01


def test_a_turned_way_keeps_its_pace():
    start, end = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    share = torch.linspace(0, 1, 11, dtype=torch.float64).view(-1, 1, 1)
    way = _spherical(start, end, share)
    near, far = start.norm(dim=-1), end.norm(dim=-1)
    torch.testing.assert_close(way.norm(dim=-1), torch.lerp(near, far, share[..., 0]))
    direction = way / way.norm(dim=-1, keepdim=True)
    turns = (direction[1:] * direction[:-1]).sum(-1).clamp(-1, 1).acos()
    torch.testing.assert_close(turns, turns[:1].expand_as(turns))
    # Control: a straight line dips towards the origin.
    assert (torch.lerp(start, end, share).norm(dim=-1)[5] < 0.9 * torch.minimum(near, far)).any()


@pytest.mark.parametrize("end", [1.0, -1.0, 0.0])
def test_a_turned_way_where_there_is_nothing_to_turn(end: float):
    start = torch.randn(4, 5, dtype=torch.float64)
    share = torch.linspace(0, 1, 3, dtype=torch.float64).view(-1, 1, 1)
    way = _spherical(start, end * start, share)
    torch.testing.assert_close(way, torch.lerp(start, end * start, share))


def test_the_most_active_coordinates_come_first(loaded: experiment.Experiment):
    spread = latent_spread(loaded, loaded.modules, loaded.data.test)
    assert ((spread.activity >= 0) & (spread.activity <= 1)).all()
    # What the posterior's own width says: the closer to the prior's, the less a coordinate knows.
    x = observed(loaded, loaded.data.test[:500])
    posterior = loaded.encoder.exact_posterior(x)
    assert posterior is not None
    within, between = posterior.variance.mean(0), posterior.mean.var(0)
    torch.testing.assert_close(spread.activity, between / (between + within), rtol=0, atol=0.03)
    torch.testing.assert_close(spread.std.square(), between + within, rtol=0.1, atol=0.05)


# Every family ---------------------------------------------------------------------------------------------

FAMILIES = [f"encoder={path.stem}" for path in sorted((config_dir() / "encoder").glob("*.yaml"))]
PRIORS = [f"prior={path.stem}" for path in sorted((config_dir() / "prior").glob("*.yaml"))]
MORE = ["decoder=gated_conv"]


@pytest.mark.parametrize("choice", [*FAMILIES, *PRIORS, *MORE])
def test_every_choice_can_be_drawn(choice: str, tmp_path: Path, default_data_dir: Path):
    words = [choice] + (["encoder=two_layer"] if choice == "prior=chained" else [])
    folder = untrained(tmp_path / "run", default_data_dir, words)
    looks: list[PictureSettings] = [
        Sample(n=6, columns=3, scale=1, **LOOK),
        Reconstruct(n=4, columns=2, scale=1, **LOOK),
        Interpolate(n=2, steps=3, scale=1, **LOOK),
        Traverse(n=2, steps=3, scale=1, **LOOK),
    ]
    found = [draw(look, folder) for look in looks]
    assert [path.name for path in found] == [f"{command}.png" for command in COMMANDS]
    assert all(path.parent == folder / "pictures" for path in found)
    for path in found:
        assert pixels(path).shape[0] > 2 * 28


# The picture ----------------------------------------------------------------------------------------------


def test_the_picture_shows_what_python_returns(trained: Path, loaded: experiment.Experiment, tmp_path: Path):
    path = draw(Sample(n=10, columns=4, scale=2, seed=3, **LOOK), trained, tmp_path / "s.png")
    found = cells(path, 3, 4, 2)
    assert numpy.array_equal(found[:10], as_bytes(samples(loaded, loaded.modules, 10, seed=3)))
    assert (found[10:] == WHITE).all()


def test_pairs_stand_side_by_side_and_apart_from_others(trained: Path, loaded: experiment.Experiment, tmp_path: Path):
    look = Reconstruct(n=6, columns=3, scale=3, split="validation", **LOOK)
    found = cells(draw(look, trained, tmp_path / "r.png"), 2, 6, 3, breaks=(2, 4))
    expected = reconstructions(loaded, loaded.modules, loaded.data.validation[:6])
    assert numpy.array_equal(found, as_bytes(expected))


def test_chosen_images(trained: Path, loaded: experiment.Experiment, tmp_path: Path):
    look = Reconstruct(images=(17, 3), columns=2, scale=1, **LOOK)
    found = cells(draw(look, trained, tmp_path / "r.png"), 1, 4, 1, breaks=(2,))
    expected = reconstructions(loaded, loaded.modules, loaded.data.test[[17, 3]])
    assert numpy.array_equal(found, as_bytes(expected))


def test_interpolations_stand_between_their_images(trained: Path, loaded: experiment.Experiment, tmp_path: Path):
    look = Interpolate(images=(5, 9, 2, 11), steps=4, scale=2, path="spherical", **LOOK)
    found = cells(draw(look, trained, tmp_path / "i.png"), 2, 6, 2, breaks=(1, 5)).reshape(2, 6, 28, 28)
    x = observed(loaded, loaded.data.test[[5, 9, 2, 11]])
    assert numpy.array_equal(found[:, 0], as_bytes(x[::2]))
    assert numpy.array_equal(found[:, 5], as_bytes(x[1::2]))
    z, known = latent_positions(loaded, loaded.modules, x)
    assert known
    way = interpolations(loaded.modules, z[::2], z[1::2], 4, "spherical")
    assert numpy.array_equal(found[:, 1:5].reshape(-1, 28, 28), as_bytes(way))


def test_a_traversal_moves_one_coordinate(trained: Path, loaded: experiment.Experiment, tmp_path: Path):
    look = Traverse(coordinates=(2, 6), steps=3, reach=2.0, scale=1, image=8, **LOOK)
    picture = pixels(draw(look, trained, tmp_path / "t.png"))
    # Labels stand halfway down a row: at its top the first dark pixel is the first image's.
    found = picture[-MARGIN - 57 : -MARGIN]
    found = found[:, int((found[0] < 128).argmax()) :]
    x = observed(loaded, loaded.data.test[8:9])
    z, _ = latent_positions(loaded, loaded.modules, x)
    std = latent_spread(loaded, loaded.modules, loaded.data.test).std
    for row, coordinate in enumerate((2, 6)):
        for column, step in enumerate((-2.0, 0.0, 2.0)):
            moved = z.clone()
            moved[0, coordinate] += step * std[coordinate]
            cell = found[29 * row :, 29 * column :][:28, :28].astype(int)
            # A batch of another size may round otherwise.
            assert abs(cell - as_bytes(decoded(loaded.modules, moved))[0]).max() <= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_gives_the_same_file(command: str, trained: Path, tmp_path: Path):
    look = COMMANDS[command](n=3, scale=1, **LOOK)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(trained, elsewhere)
    torch.manual_seed(11)
    first = draw(look, trained, tmp_path / "first.png").read_bytes()
    torch.manual_seed(12)
    assert draw(look, elsewhere).read_bytes() == first
    other = draw(replace(look, seed=1), trained, tmp_path / "other.png").read_bytes()
    # The means of a Gaussian encoder know of no seed, and the images of mnist5k are binarized once.
    assert (other == first) == (command == "interpolate")


def test_the_random_state_is_left_alone(loaded: experiment.Experiment):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    samples(loaded, loaded.modules, 3)
    reconstructions(loaded, loaded.modules, loaded.data.test[:3])
    latent_positions(loaded, loaded.modules, observed(loaded, loaded.data.test[:3]))
    latent_spread(loaded, loaded.modules, loaded.data.test)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_picture_says_what_it_shows(trained: Path, tmp_path: Path):
    path = draw(Sample(n=2, **LOOK), trained, tmp_path / "s.png")
    with Image.open(path) as picture:
        about = picture.text["Description"]  # pyright: ignore[reportAttributeAccessIssue]
    assert "mnist5k gaussian elbo k=1, seed 0, epoch" in about
    assert "draws from the prior (standard)" in about


# Sheets ---------------------------------------------------------------------------------------------------


def test_a_grid_is_one_pixel_apart():
    images = numpy.arange(5 * 16, dtype=numpy.uint8).reshape(5, 4, 4)
    sheet = grid(images, 3)
    assert sheet.shape == (2 * 5 - 1, 3 * 5 - 1)
    assert numpy.array_equal(sheet[5:, 5:9], images[4])
    assert (sheet[4] == 128).all()
    assert (sheet[5:, 10:] == 128).all()


def test_sheets_keep_text_and_images_apart():
    images = numpy.zeros((6, 28, 28), dtype=numpy.uint8)
    plain = Sheet(images, 3, scale=2).pixels()
    assert plain.shape == (2 * MARGIN + 2 * 57 - 1, 2 * MARGIN + 3 * 57 - 1)
    labelled = Sheet(images, 3, "a title\nand more", ["a", "b", "c"], ["one", "two"], scale=2).pixels()
    assert labelled.shape[0] > plain.shape[0] + 3 * 15
    assert labelled.shape[1] > plain.shape[1] + 20
    # Below the labels and right of them the picture is the same: no text runs into an image.
    assert numpy.array_equal(labelled[-plain.shape[0] + MARGIN :, -plain.shape[1] + MARGIN :], plain[MARGIN:, MARGIN:])
    above = labelled[: -plain.shape[0] + MARGIN]
    assert above.min() < 110
    assert (labelled[:, :4] == WHITE).all()


def test_a_long_title_widens_the_picture():
    sheet = Sheet(numpy.zeros((1, 28, 28), dtype=numpy.uint8), 1, "a title that is longer than the image " * 2)
    found = sheet.pixels()
    assert found.shape[1] > 300
    assert (found[:, -MARGIN // 2 :] == WHITE).all()


def test_labels_do_not_run_into_one_another():
    images, heads = numpy.zeros((6, 28, 28), dtype=numpy.uint8), ["-0.625"] * 6
    room, crowded = (Sheet(images, 6, column_labels=heads, scale=scale).pixels() for scale in (3, 1))
    one = Sheet(images[:1], 1, column_labels=heads[:1], scale=3).pixels()

    def ink(picture: numpy.ndarray) -> float:
        return (255.0 - picture[: MARGIN + 12]).sum()

    assert ink(room) == pytest.approx(6 * ink(one), rel=0.05)
    assert ink(crowded) == pytest.approx(3 * ink(one), rel=0.05)


def test_breaks_are_wider_than_gaps():
    images = numpy.zeros((4, 28, 28), dtype=numpy.uint8)
    found = Sheet(images, 4, breaks=(2,), scale=2).pixels()[MARGIN + 5]
    runs = [len(run) for run in "".join("w" if value == WHITE else "." for value in found).split(".") if run]
    assert runs == [MARGIN, 1, 10, 1, MARGIN]


@pytest.mark.parametrize("value", [math.nan, -3.0, 7.0])
def test_numbers_outside_are_clipped(value: float):
    found = grid(numpy.full((1, 4, 4), value), 1)
    assert found.max() == (255 if value == 7.0 else 0)


# The commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_says_where_the_picture_is(command: str, trained: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main([command, str(trained), "n=2", "device=cpu", "scale=1"]) == 0
    path = trained / "pictures" / f"{command}.png"
    assert capsys.readouterr().out == f"{path}\n"
    assert pixels(path).size > 0


def test_several_runs_get_a_picture_each_and_a_bad_one_stops_none(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("a", "b", "c"):
        shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("pictures"))
    (tmp_path / "b" / "checkpoints" / "best.pt").unlink()
    assert cli.main(["sample", str(tmp_path), "n=1", "device=cpu"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / name / "pictures" / "sample.png") for name in ("a", "c")]
    assert "failed: " in err
    assert "no checkpoint 'best'" in err
    assert "1 of 3 pictures failed" in err


def test_output_may_be_a_file_in_a_new_folder(trained: Path, tmp_path: Path):
    target = tmp_path / "new" / "folder" / "x.PNG"
    assert cli.main(["sample", str(trained), "n=1", "device=cpu", "-o", str(target)]) == 0
    assert target.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample"], "missing RUN: give a run folder"),
        (["sample", "RUN", "n=0"], "n must be from 1 to 4096, got 0"),
        (["sample", "RUN", "n=many"], "n must be an integer"),
        (["sample", "RUN", "colums=3"], "unknown key colums (did you mean 'columns'?)"),
        (["sample", "RUN", "split=test"], "unknown key split"),
        (["reconstruct", "RUN", "split=tset"], "split must be one of train, validation, test, got 'tset' (did you"),
        (["reconstruct", "RUN", "images=[]"], "images must be a list of at least one number"),
        (["reconstruct", "RUN", "images=[1000000]"], "there is no image 1000000 in test"),
        (["interpolate", "RUN", "path=curved"], "path must be one of linear, spherical"),
        (["interpolate", "RUN", "steps=1"], "steps must be >= 2 (both ends)"),
        (["interpolate", "RUN", "images=[1,2,3]"], "give two numbers for each pair"),
        (["traverse", "RUN", "coordinates=[99]"], "there is no coordinate 99: the decoder sees 8 of them"),
        (["traverse", "RUN", "reach=0"], "reach must be > 0"),
        (["traverse", "RUN", "image=1000000"], "there is no image 1000000 in test"),
        (["sample", "RUN", "--out", "x.png"], "unknown flag --out (did you mean '--output'?)"),
        (["sample", "RUN", "-o", "x.jpg"], "the name must end in .png"),
        (["sample", "RUN", "RUN/..", "-o", "x.png"], "-o names one file, but there are"),
        (["sample", "nowhere"], "there is no folder nowhere"),
        (["sample", "RUN", "device=tpu"], "device must be auto, cpu, cuda, cuda:N, mps, xpu or xpu:N"),
    ],
)
def test_refused_in_one_line(
    words: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if "RUN/.." in words:
        for name in ("a", "b"):
            shutil.copytree(trained, tmp_path / name)
    runs = {"RUN": str(trained), "RUN/..": str(tmp_path)}
    assert cli.main([runs.get(word, word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


RECORDS = (
    "checkpoint",
    "files",
    "folder",
    "manifest",
    "metrics",
    "pictures",
    "process",
    "provenance",
    "source",
    "stored",
    "text",
)


def test_a_picture_needs_no_result_records_and_no_tensorboard(trained: Path):
    code = f"import sys; from vaebench.cli import main; main({['sample', str(trained), 'n=1', 'device=cpu']}); "
    code += "print(sorted(m for m in sys.modules if m.startswith(('vaebench.records.', 'tensorboard.'))))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    files = [f"vaebench.records.{name}" for name in RECORDS]
    assert done.stdout.splitlines()[-1] == str(files)


@pytest.mark.parametrize("words", [["sample", "--help"], ["traverse", "RUN", "steps=1"], ["sample", "nowhere"]])
def test_torch_is_not_imported_before_the_words_are_checked(words: list[str], trained: Path):
    given = [str(trained) if word == "RUN" else word for word in words]
    code = f"import sys; from vaebench.cli import main; main({given}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
