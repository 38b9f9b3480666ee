"""The paired study: its network, its arms, its runs and what is made of them."""

import json
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from study.analysis import DataSetResults, Difference, table_of_all
from study.architectures import ARCHITECTURES
from study.arms import ARMS, BASE, PLAIN, TABLES, LinearResidual, parameter_groups
from study.network import DEPTHS, EfficientNetLite0, name_in_file
from study.photos import HELD_OUT, read_photos
from study.runs import DataSetRuns, read_runs
from study.training import Maps, Phase, Recipe, View, batches, train
from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.evaluation.boundary import boundary_width, in_boundary
from tests.comparison import assert_same_outputs
from tests.processes import run_script


SCRIPTS = Path(__file__).parents[2] / "scripts"
SECTIONS = ("base", "continued")
TINY = Recipe(
    pixels=96 * 64,
    batch_size=2,
    warmup_iterations=1,
    base=Phase(4, 1e-3, frozen_maps=2, mirrored=True),
    continued=Phase(3, 1e-2, frozen_maps=4, mirrored=False),
)
MLP = ARCHITECTURES["lite0-mlp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, a file of weights as that of the package, and a folder of DeepLabV3."""
    folder = tmp_path_factory.mktemp("study")
    write_scenes(folder / "scenes", 5, 3, (96, 64))
    torch.manual_seed(0)
    encoder = EfficientNetLite0()
    torch.save({name_in_file(name): tensor for name, tensor in encoder.state_dict().items()}, folder / "lite0.pth")
    deeplab = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(tf_padding=True, output_stride=16))
    for name, buffer in deeplab.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
    deeplab.save_pretrained(folder / "deeplab")
    return folder


@pytest.fixture(scope="module")
def models(folder):
    """Of every architecture one, with five classes."""
    torch.manual_seed(0)
    return {name: of.build(folder / weights_of(name), 5) for name, of in ARCHITECTURES.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["lite0-mlp"]


@pytest.fixture(scope="module")
def runs(folder):
    runs = runs_in(folder / "runs" / "lite0-mlp" / "scenes", folder)
    for seed in (0, 1):
        runs.run(seed, [PLAIN, "offsets", "control"])
    runs.run(0, [BASE, "paper", "last-quarter"])
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_go_on(models, name):
    encoder, pixel_values = models[name].encoder, torch.randn(1, 3, 64, 96)
    maps = encoder(pixel_values)
    channels, last = ((24, 40, 112, 320), (2, 3)) if name.startswith("lite0") else ((24, 32, 96, 320), (4, 6))
    assert [x.shape[1] for x in maps] == list(channels)
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), last]
    for number in range(1, 5):
        known = encoder(pixel_values, number)
        assert len(known) == number
        for found, expected in zip(encoder.continued(known), maps, strict=True):
            assert torch.equal(found, expected)


def test_deeplab_is_that_of_transformers(folder, models):
    """In training mode too: it has no dropout, and its norms do not look at the batch."""
    expected = MobileNetV2ForSemanticSegmentation.from_pretrained(folder / "deeplab").eval()
    model = deepcopy(models["deeplabv3"]).train()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    pixel_values = (images / 255 - 0.5) / 0.5  # of its image processor
    with torch.no_grad():
        features = model.pixel_features(model.encoder(model.encoder.pixel_values(images)))
        assert_same_outputs(expected.segmentation_head.classifier(features), expected(pixel_values).logits)


def test_freqfusion_is_that_of_offseg_and_begins_like_it(models):
    model = models["lite0-freqfusion"]
    with torch.no_grad():
        assert model(model.encoder(torch.randn(1, 3, 64, 96))).shape == (1, 5, 16, 24)
    for fusion in model.pixel_decoder.fusions:
        assert fusion.low_pass_generator.weight.std().item() == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.goes_on or arm.plain_before])
def test_arms_begin_with_the_logits_of_the_plain_model(model, arm):
    maps = model.encoder(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        assert_same_outputs(ARMS[arm].head(deepcopy(model))(maps), model(maps))


def test_new_heads(model):
    """What each begins with; the representations are the same for one seed."""
    features, logits, heads = torch.randn(1, 128, 8, 8), {}, {}
    for arm in ("norm", "paper", "zero-slow", "zero-slow-no-norm"):
        torch.manual_seed(0)
        heads[arm] = ARMS[arm].head(deepcopy(model)).classifier
        with torch.no_grad():
            logits[arm] = heads[arm](features)
    assert {arm: len(head.offset_projs()) for arm, head in heads.items()} == {
        "norm": 0, "paper": 2, "zero-slow": 2, "zero-slow-no-norm": 2,
    }  # fmt: skip
    for arm in ("norm", "paper", "zero-slow"):
        assert torch.allclose(logits[arm].std(dim=1, correction=0), torch.ones(1, 8, 8), atol=0.05)
    assert heads["paper"].class_offset_proj.weight.any() and not heads["zero-slow"].class_offset_proj.weight.any()
    with torch.no_grad():
        assert_same_outputs(logits["zero-slow-no-norm"], model.classifier(features))


def test_control_has_the_parameters_of_offset_learning_and_no_attention(model):
    control, offsets = (ARMS[arm].head(deepcopy(model)) for arm in ("control", "offsets"))
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
    groups = parameter_groups(ARMS["offsets-slow"].head(deepcopy(model)), 1.0, 0.5, 0.25, 0.1)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_frozen_stays(folder, name):
    photos, _ = read_photos(folder / "scenes", HELD_OUT, 96 * 64)
    trained = ARCHITECTURES[name].build(folder / weights_of(name), len(photos.labels))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    train([View.of(trained, photos, 2)], photos.class_weights(), TINY, TINY.base, 0, trained, 1.0, range(2))
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    blocks = {int(name.split(".")[2]) for name in changed if name.startswith("encoder.blocks")}
    assert blocks == set(range(DEPTHS[1], DEPTHS[-1])) and not any("stem" in name for name in changed)
    assert any(name.startswith("pixel_decoder") for name in changed) and "classifier.weight" in changed
    assert not any("running" in name for name in changed)


def test_runs_are_paired_and_done_once(runs, folder):
    folders = {path.name for path in runs.output.iterdir()}
    going_on = {f"{arm}-{seed}" for arm in (BASE, PLAIN, "offsets", "control") for seed in (0, 1)}
    assert folders == going_on | {"paper-0", "last-quarter-0"}
    found = {(run.arm, run.seed): run for run in read_runs(runs.output)}
    losses = {key: run.record["loss"] for key, run in found.items()}
    assert losses["plain", 0][0] == pytest.approx(losses["offsets", 0][0], abs=2e-4)  # same batch, same logits
    assert losses["plain", 0] != losses["offsets", 0] != losses["control", 0]
    assert losses["plain", 0] != losses["plain", 1]
    assert losses["last-quarter", 0][:3] == losses["base", 0][:3] != losses["paper", 0][:3]
    assert losses["last-quarter", 0][3] == pytest.approx(losses["base", 0][3], abs=2e-4)
    assert found["base", 0].record["offsets"] is None is not found["last-quarter", 0].record["offsets"]

    written = {path: path.stat().st_mtime_ns for path in runs.output.rglob("*")}
    again = runs_in(runs.output, folder)
    again.run(0, [PLAIN, "offsets", "paper"])
    assert {path: path.stat().st_mtime_ns for path in runs.output.rglob("*")} == written

    changed = runs_in(runs.output, folder, replace(TINY, continued=replace(TINY.continued, iterations=2)))
    changed.run(0, [BASE, "paper"])  # which are not continued
    with pytest.raises(ValueError, match=r"plain-0/run.json: expected a run .* name another --output"):
        changed.run(0, [PLAIN])


def test_a_run_can_be_repeated(runs, folder, tmp_path):
    again = runs_in(tmp_path, folder)
    again.run(1, ["offsets"])
    (first,) = [run.record for run in read_runs(runs.output) if (run.arm, run.seed) == ("offsets", 1)]
    (second,) = [run.record for run in read_runs(tmp_path) if run.arm == "offsets"]
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_differences_are_those_of_the_runs(runs):
    found = [run for run in read_runs(runs.output) if (run.arm, run.seed) != ("control", 1)]
    results = DataSetResults(found, TABLES["warm-start"])
    assert results.others == ["offsets", "control"] and ("paper", 0) not in results.runs
    records = {(run.arm, run.seed): run.record for run in results.runs.values()}
    offsets = results.differences["offsets", PLAIN]
    for score in ("mIoU", "mBoundaryIoU", "aAcc"):
        expected = [100 * (records["offsets", seed][score] - records[PLAIN, seed][score]) for seed in (0, 1)]
        assert list(offsets[score].by_seed.values()) == pytest.approx(expected)
        assert offsets[score].mean == pytest.approx(np.mean(expected))
        low, high = offsets[score].over_photos
        assert low <= high
    control = results.differences["control", PLAIN]["mIoU"].by_seed
    beyond = results.differences["offsets", "control"]["mIoU"].by_seed
    assert control.keys() == beyond.keys() == {0}
    assert beyond[0] == pytest.approx(offsets["mIoU"].by_seed[0] - control[0])
    assert np.nanmean(results.class_ious(PLAIN, 0)) == pytest.approx(100 * records[PLAIN, 0]["mIoU"])


def test_where_an_arm_gains(runs):
    results = DataSetResults(list(read_runs(runs.output)), TABLES["warm-start"])
    pixels, groups = results.labeled.sum(axis=0), [part for _, part in results.class_groups()]
    assert sorted(np.concatenate(groups)) == list(np.flatnonzero(pixels))
    rare, middle, common = (pixels[part] for part in groups)
    assert rare.max() <= middle.min() and middle.max() <= common.min()
    photos = [part for _, part in results.photo_groups()]
    assert np.array_equal(sum(photos), np.ones(len(results.labeled)))
    everywhere = results.accuracy_gains("offsets", np.ones(len(results.labeled), bool))
    assert everywhere.tolist() == pytest.approx(list(results.differences["offsets", PLAIN]["aAcc"].by_seed.values()))


def test_boundaries_and_the_rest_make_the_whole(runs):
    results = DataSetResults(list(read_runs(runs.output)), TABLES["warm-start"])
    regions = [in_boundaries for _, in_boundaries in results.region_groups()]
    assert regions == [True, False]
    of_labels = np.zeros((2, results.labeled.shape[1]))
    for label_map in runs.photos[1].label_maps:
        inside = in_boundary(label_map[None], boundary_width(*label_map.shape))[0]
        for row, where in zip(of_labels, (inside, ~inside), strict=True):
            row += np.bincount(label_map[where].numpy(), minlength=256)[: len(row)]
    assert np.array_equal(np.sum(results.first.record["in_boundaries"], axis=1), of_labels[0])
    shares = of_labels.sum(axis=1) / of_labels.sum()
    gains = [results.region_gains("offsets", region)[1] for region in regions]
    whole = results.differences["offsets", PLAIN]["aAcc"].by_seed
    assert list(np.average(gains, axis=0, weights=shares)) == pytest.approx(list(whole.values()))


def test_new_heads_are_compared_with_the_plain_one(runs):
    results = DataSetResults(list(read_runs(runs.output)), TABLES["new-head"])
    assert results.differences.keys() == {("paper", BASE), ("last-quarter", BASE), ("last-quarter", "paper")}


def test_all_data_sets_together(runs):
    """Twice the same are twice as many pairs, and no other difference."""
    results = DataSetResults(list(read_runs(runs.output)), TABLES["warm-start"])
    of = results.differences["offsets", PLAIN]["mIoU"]
    low, high = of.over_seeds
    ahead = 2 * sum(value > 0 for value in of.by_seed.values())
    row = f"| 2 | {of.mean:+.2f} [{low:+.2f}, {high:+.2f}] | {ahead} of 4 | {min(of.by_seed.values()):+.2f} |"
    assert f"| *offsets* minus *{PLAIN}* {row}" in table_of_all([results, results])


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
        *("--output", folder / "runs", "--seeds", 2, "--split", "validation", *options, *arms),
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    page = tmp_path / "README.md"
    page.write_text(
        "# Before\n\n<!-- generated by scripts/offset_study.py -->\n<!-- end of what is generated -->\nAfter\n"
    )
    shown = run_script(
        SCRIPTS / "offset_study.py", "report", "--runs", runs.output.parent.parent, "--output", tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    text, figures = page.read_text(), json.loads((tmp_path / "results.json").read_text())
    assert text.startswith("# Before\n") and text.endswith("-->\nAfter\n")
    going_on, new_head = (figures[f"lite0-mlp, {table}"]["scenes"] for table in TABLES)
    results = {name: DataSetResults(list(read_runs(runs.output)), table) for name, table in TABLES.items()}
    for table, pair in (("warm-start", ("offsets", PLAIN)), ("warm-start", ("offsets", "control")),
                        ("new-head", ("paper", BASE))):  # fmt: skip
        difference = results[table].differences[pair]["mIoU"].mean
        assert f"**{difference:+.2f}**" in text
        written = figures[f"lite0-mlp, {table}"]["scenes"]["differences"][" - ".join(pair)]["mIoU"]
        assert written["mean"] == pytest.approx(difference, abs=1e-3)
    assert (len(going_on["runs"]), len(new_head["runs"])) == (8, 4) and (tmp_path / "differences.png").is_file()


def weights_of(architecture):
    return "deeplab" if architecture == "deeplabv3" else "lite0.pth"


def runs_in(output, folder, recipe=TINY):
    return DataSetRuns(folder / "scenes", "validation", MLP, folder / "lite0.pth", output, recipe)
