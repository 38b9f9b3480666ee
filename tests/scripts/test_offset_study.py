"""The paired study: its network, its arms, its runs and what is made of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from study.analysis import DataSetResults, Difference
from study.arms import ARMS, PLAIN, LinearResidual, parameter_groups
from study.network import DEPTHS, EfficientNetLite0, Segmenter, name_in_file
from study.photos import HELD_OUT, read_photos
from study.runs import BASE, DataSetRuns, read_runs
from study.training import Maps, Phase, Recipe, View, batches, train

from offseg_hf.data.scenes.folder import write_scenes
from tests.comparison import assert_same_outputs
from tests.processes import run_script


SCRIPTS = Path(__file__).parents[2] / "scripts"
SECTIONS = ("base", "continued")
TINY = Recipe(
    pixels=96 * 64,
    batch_size=2,
    warmup_iterations=1,
    base=Phase(3, 1e-3, frozen_maps=2, mirrored=True),
    continued=Phase(3, 1e-2, frozen_maps=4, mirrored=False),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Segmenter(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, and a file of weights as that of the package."""
    folder = tmp_path_factory.mktemp("study")
    write_scenes(folder / "scenes", 5, 3, (96, 64))
    torch.manual_seed(0)
    encoder = EfficientNetLite0()
    torch.save({name_in_file(name): tensor for name, tensor in encoder.state_dict().items()}, folder / "lite0.pth")
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    runs = DataSetRuns(folder / "scenes", "validation", folder / "lite0.pth", folder / "runs" / "scenes", TINY)
    for seed in (0, 1):
        runs.run(seed, [PLAIN, "offsets", "control"])
    return runs


@pytest.mark.slow
def test_network_is_that_of_timm(tmp_path):
    """With weights at random, by way of the names in the file; beside timm in a process of its own."""
    script = Path(__file__).with_name("timm_lite0.py")
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    encoder, saved = EfficientNetLite0().eval(), load_file(tmp_path / "maps.safetensors")
    torch.save({name_in_file(name): saved.pop(name) for name in encoder.state_dict()}, tmp_path / "lite0.pth")
    encoder.load(tmp_path / "lite0.pth")
    with torch.no_grad():
        maps = encoder(saved.pop("pixel_values"))
    assert sorted(saved) == ["map0", "map1", "map2", "map3"]
    for index, found in enumerate(maps):
        assert_same_outputs(found, saved[f"map{index}"])


def test_maps_go_on(model):
    pixel_values = torch.randn(1, 3, 64, 96)
    maps = model.encoder(pixel_values)
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
    for number in range(1, 5):
        known = model.encoder(pixel_values, number)
        assert len(known) == number
        for found, expected in zip(model.encoder.continued(known), maps, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("arm", ARMS)
def test_arms_begin_with_the_logits_of_the_plain_model(model, arm):
    maps = model.encoder(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        assert_same_outputs(ARMS[arm].apply(clone(model))(maps), model(maps))


def test_control_has_the_parameters_of_offset_learning_and_no_attention(model):
    control, offsets = (ARMS[arm].apply(clone(model)) for arm in ("control", "offsets"))
    shapes = [{name: x.shape for name, x in other.named_parameters()} for other in (control, offsets)]
    assert shapes[0] == shapes[1] and isinstance(control.classifier, LinearResidual)
    features = torch.randn(1, control.classifier.class_representation.shape[-1], 4, 4)
    others = features.clone()
    others[..., 2:] = 0
    for head, sees_others in ((control.classifier, False), (offsets.classifier, True)):
        for proj in head.offset_projs():
            torch.nn.init.normal_(proj.weight, std=0.05)
        with torch.no_grad():
            left, left_alone = head(features)[..., :2], head(others)[..., :2]
        assert torch.allclose(left, left_alone, atol=1e-5) != sees_others


def test_rates_of_what_is_new(model):
    groups = parameter_groups(ARMS["offsets-slow"].apply(clone(model)), 1.0, 0.5, 0.25, 0.1)
    rates = {}
    for group in groups:
        (parameter,) = group["params"]
        rates.setdefault((group["lr"], group["weight_decay"]), []).append(parameter.ndim)
    assert set(rates) == {(0.25, 0.5), (0.25, 0.0), (1.0, 0.5), (1.0, 0.0), (0.1, 0.5)}
    assert rates[0.1, 0.5] == [2, 2] and 1 not in rates[1.0, 0.5] + rates[0.25, 0.5]


def test_batches_are_of_whole_epochs_and_the_same_for_all_arms():
    views = [View(Maps([torch.zeros(5, 1)]), torch.zeros(5, 1, 1)) for _ in range(2)]

    def order(seed):
        return [(view is views[0], indices.tolist()) for view, indices in batches(views, 2, 5, seed)]

    found = order(3)
    assert found == order(3) != order(4)
    seen = [index for _, indices in found for index in indices]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]


def test_photos_that_are_held_out(folder):
    train_photos, test_photos = read_photos(folder / "scenes", HELD_OUT, 96 * 64)
    assert (len(train_photos), len(test_photos)) == (4, 1) and not set(train_photos.names) & set(test_photos.names)
    assert train_photos.images.shape == (4, 3, 64, 96) and train_photos.label_maps.shape == (4, 64, 96)


def test_what_is_frozen_stays(folder, model):
    photos, _ = read_photos(folder / "scenes", HELD_OUT, 96 * 64)
    trained = Segmenter(len(photos.labels))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    train(trained, [View.of(trained, photos, 2)], photos.class_weights(), TINY, TINY.base, seed=0)
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    blocks = {int(name.split(".")[2]) for name in changed if name.startswith("encoder.blocks")}
    assert blocks == set(range(DEPTHS[1], DEPTHS[-1])) and not any("stem" in name for name in changed)
    assert any(name.startswith("pixel_decoder") for name in changed) and "classifier.weight" in changed


def test_runs_are_paired_and_done_once(runs, folder, capsys):
    folders = {path.name for path in runs.output.iterdir()}
    assert folders == {f"{arm}-{seed}" for arm in (BASE, PLAIN, "offsets", "control") for seed in (0, 1)}
    found = {(run.arm, run.seed): run for run in read_runs(runs.output)}
    losses = {key: run.record["loss"] for key, run in found.items()}
    assert losses["plain", 0][0] == pytest.approx(losses["offsets", 0][0], abs=2e-4)  # same batch, same logits
    assert losses["plain", 0] != losses["offsets", 0] != losses["control", 0]
    assert losses["plain", 0] != losses["plain", 1]

    written = {path: path.stat().st_mtime_ns for path in runs.output.rglob("*")}
    again = DataSetRuns(folder / "scenes", "validation", folder / "lite0.pth", runs.output, TINY)
    again.run(0, [PLAIN, "offsets"])
    assert {path: path.stat().st_mtime_ns for path in runs.output.rglob("*")} == written

    other = replace(TINY, continued=replace(TINY.continued, iterations=2))
    changed = DataSetRuns(folder / "scenes", "validation", folder / "lite0.pth", runs.output, other)
    with pytest.raises(ValueError, match=r"plain-0/run.json: expected a run .* name another --output"):
        changed.run(0, [PLAIN])


def test_a_run_can_be_repeated(runs, folder, tmp_path):
    again = DataSetRuns(folder / "scenes", "validation", folder / "lite0.pth", tmp_path, TINY)
    again.run(1, ["offsets"])
    (first,) = [run.record for run in read_runs(runs.output) if (run.arm, run.seed) == ("offsets", 1)]
    (second,) = [run.record for run in read_runs(tmp_path) if run.arm == "offsets"]
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_differences_are_those_of_the_runs(runs):
    results = DataSetResults([run for run in read_runs(runs.output) if (run.arm, run.seed) != ("control", 1)])
    records = {(run.arm, run.seed): run.record for run in results.runs.values()}
    offsets = results.differences["offsets"]
    for score in ("mIoU", "mBoundaryIoU", "aAcc"):
        expected = [100 * (records["offsets", seed][score] - records[PLAIN, seed][score]) for seed in (0, 1)]
        assert list(offsets[score].by_seed.values()) == pytest.approx(expected)
        assert offsets[score].mean == pytest.approx(np.mean(expected))
        low, high = offsets[score].over_photos
        assert low <= high
    assert results.differences["control"]["mIoU"].by_seed.keys() == {0}
    ious = results.class_ious(PLAIN, [0])
    assert np.nanmean(ious) == pytest.approx(100 * records[PLAIN, 0]["mIoU"])


def test_interval_over_seeds():
    """Of 1, 2 and 3: 2 +- 4.303 / sqrt(3)."""
    low, high = Difference({0: 1.0, 1: 2.0, 2: 3.0}, (0.0, 0.0)).over_seeds
    assert (low, high) == pytest.approx((-0.4843, 4.4843), abs=1e-4)
    assert Difference({0: 1.0}, (0.0, 0.0)).over_seeds is None


@pytest.mark.slow
def test_command(runs, folder, tmp_path):
    """It finds the runs done, and writes tables into the page around them."""
    settings = [f"{section}.{name}={int(value) if name == 'mirrored' else value}"
                for section in SECTIONS for name, value in asdict(getattr(TINY, section)).items()]  # fmt: skip
    settings += ["pixels=6144", "batch_size=2", "warmup_iterations=1"]
    options = [part for setting in settings for part in ("--setting", setting)]
    arms = [part for arm in (PLAIN, "offsets", "control") for part in ("--arm", arm)]
    done = run_script(
        *(SCRIPTS / "offset_study.py", "run", "--data", folder / "scenes", "--weights", folder / "lite0.pth"),
        *("--output", runs.output.parent, "--seeds", 2, "--split", "validation", *options, *arms),
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    page = tmp_path / "README.md"
    page.write_text(
        "# Before\n\n<!-- generated by scripts/offset_study.py -->\n<!-- end of what is generated -->\nAfter\n"
    )
    shown = run_script(SCRIPTS / "offset_study.py", "report", "--runs", runs.output.parent, "--output", tmp_path)
    assert shown.returncode == 0, shown.stderr
    text, figures = page.read_text(), json.loads((tmp_path / "results.json").read_text())["scenes"]
    assert text.startswith("# Before\n") and text.endswith("-->\nAfter\n")
    difference = figures["differences"]["offsets"]["mIoU"]
    assert f"**{difference['mean']:+.2f}**" in text
    assert len(figures["runs"]) == 8 and (tmp_path / "differences.png").is_file()


def clone(model: Segmenter) -> Segmenter:
    other = Segmenter(model.classifier.out_channels)
    other.load_state_dict(model.state_dict())
    return other
