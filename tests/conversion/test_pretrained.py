import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offseg_hf import (
    EfficientFormerV2Backbone,
    EfficientFormerV2Config,
    OffSegConfig,
    OffSegForSemanticSegmentation,
    load_pretrained,
)
from offseg_hf.conversion.tables.offseg import EFFICIENTFORMER_V2


TIMM_SUPPORT = Path(__file__).parents[1] / "timm_support.py"
SIZES = ("s0", "s1", "s2", "l")
PRESET_OF = {"s1": "offseg-t-ade", "s2": "offseg-b-ade", "l": "offseg-l-ade"}
every_size = pytest.mark.parametrize("size", SIZES)
# The larger ones differ in numbers only.
every_official_size = pytest.mark.parametrize(
    "size", [size if size == "s1" else pytest.param(size, marks=pytest.mark.slow) for size in PRESET_OF]
)


def backbone(size: str, image_size: int) -> EfficientFormerV2Backbone:
    stages = [f"stage{i}" for i in range(1, 5)]
    return EfficientFormerV2Backbone(
        EfficientFormerV2Config.from_size(size, image_size=image_size, out_features=stages)
    )


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    """Per size, weights in the form of timm's repositories on the Hub, and timm's features of a batch of images."""
    if not (Path(sys.prefix) / "timm" / "timm").is_dir():
        pytest.skip("timm is not installed: make test does that")
    folder = tmp_path_factory.mktemp("timm")
    subprocess.run([sys.executable, TIMM_SUPPORT, folder, *SIZES], check=True)
    return folder


@pytest.fixture(scope="module")
def official_weights(official_keys) -> Callable[[str], dict[str, torch.Tensor]]:
    """A function size -> the authors' ImageNet checkpoint: the biases of 7x7 positions only, and two classifiers."""

    def build(size: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for key, (dtype, shape) in official_keys[PRESET_OF[size]].items():
            if key.startswith("backbone.") and not key.endswith("_seg"):
                value = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
                weights[key.removeprefix("backbone.")] = value
        channels = weights["network.6.0.layer_scale_2"].shape[0]
        for key, shape in {
            "norm.weight": [channels],
            "head.weight": [1000, channels],
            "dist_head.bias": [1000],
        }.items():
            weights[key] = torch.randn(shape, generator=generator)
        return weights

    return build


@every_size
def test_features_equal_those_of_timm(timm_folder, size):
    """At 224 pixels, where the published attention biases fit."""
    model = backbone(size, 224).eval()
    report = load_pretrained(model, timm_folder / f"{size}.safetensors")
    assert report.initial == []
    assert all(re.match(r"(norm|head|head_dist)\.", key) for key in report.dropped)
    assert report.used == len(model.state_dict())

    expected = load_file(timm_folder / f"{size}.features.safetensors")
    with torch.no_grad():
        feature_maps = model(expected["pixel_values"]).feature_maps
    for i, feature_map in enumerate(feature_maps):
        torch.testing.assert_close(feature_map, expected[f"feature_map{i}"], rtol=1e-4, atol=1e-4)


@every_official_size
def test_both_forms_hold_the_same_encoder(timm_folder, official_keys, tmp_path, size):
    """Weights that went from timm's names to ours and to the official ones come back from those bit for bit."""
    model = backbone(size, 224)
    load_pretrained(model, timm_folder / f"{size}.safetensors")
    ours = model.state_dict()
    official = {}
    for key in official_keys[PRESET_OF[size]]:
        key = key.removeprefix("backbone.")
        if EFFICIENTFORMER_V2.rename(key) in ours:
            official[key] = ours[EFFICIENTFORMER_V2.rename(key)]
    torch.save({"model": official}, tmp_path / "eformer.pth")

    again = backbone(size, 224)
    report = load_pretrained(again, tmp_path / "eformer.pth")
    assert report.used == len(ours) and report.initial == report.dropped == []
    for key, value in again.state_dict().items():
        assert torch.equal(value, ours[key]), key


@every_official_size
def test_official_weights_in_a_segmenter(official_weights, tmp_path, size):
    """The attention biases of 512 pixels, and all else but the encoder, stay; every other key is used or named."""
    weights = official_weights(size)
    torch.save({"model": weights, "epoch": 450}, tmp_path / "eformer_450.pth")
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size({"s1": "t", "s2": "b", "l": "l"}[size], num_labels=3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_pretrained(model, tmp_path / "eformer_450.pth")

    biases = [key for key in before if key.endswith("attention_bias.table")]
    others = [key for key in before if not key.startswith("encoder.")]
    assert sorted(report.initial) == sorted(biases + others)
    assert report.used == sum(key.startswith("encoder.") for key in before) - len(biases)
    assert report.used + len(report.dropped) == len(weights)
    assert {"norm.weight", "head.weight", "dist_head.bias"} < set(report.dropped)
    assert sum(key.endswith((".attention_biases", ".attention_bias_idxs")) for key in report.dropped) == 2 * len(
        biases
    )
    for key, value in model.state_dict().items():
        kept = not key.startswith("encoder.") or key in biases
        assert torch.equal(value, before[key]) == kept or "num_batches_tracked" in key, key
    first = next(block for block in weights if block.endswith("token_mixer.q.0.weight"))
    loaded = model.get_parameter(EFFICIENTFORMER_V2.rename(first))
    assert torch.equal(loaded, weights[first])


def test_biases_fit_the_grid_they_were_trained_for(official_weights, tmp_path):
    torch.save(official_weights("s1"), tmp_path / "eformer_450.pth")
    model = backbone("s1", 224)
    assert load_pretrained(model, tmp_path / "eformer_450.pth").initial == []


def test_a_bias_that_is_missing_stays(official_weights, tmp_path):
    weights = {key: value for key, value in official_weights("s1").items() if "attention_biases" not in key}
    torch.save(weights, tmp_path / "eformer_450.pth")
    assert len(load_pretrained(backbone("s1", 224), tmp_path / "eformer_450.pth").initial) == 5


def test_another_size_is_named(official_weights, tmp_path):
    torch.save(official_weights("s2"), tmp_path / "eformer_s2_450.pth")
    model = backbone("s1", 512)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = (
        r"expected EfficientFormerV2 of its authors of the size of this EfficientFormerV2Backbone, got .* mis-shaped"
    )
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, tmp_path / "eformer_s2_450.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_listed(official_weights, tmp_path):
    weights = official_weights("s1")
    weights["network.7.weight"] = weights.pop("network.6.5.layer_scale_1")
    torch.save(weights, tmp_path / "edited.pth")
    with pytest.raises(
        ValueError, match=r"1 missing: encoder\.stages\.3\.5\.attention_scale; 1 left over: network\.7\.weight$"
    ):
        load_pretrained(backbone("s1", 512), tmp_path / "edited.pth")


def test_other_weights_are_refused(tmp_path):
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(
        ValueError,
        match="the weights of EfficientFormerV2 of its authors, or EfficientFormerV2 of timm, got conv1.weight",
    ):
        load_pretrained(backbone("s0", 224), tmp_path / "resnet.safetensors")


FROM_THE_HUB = """
import sys
from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config, load_pretrained

model = EfficientFormerV2Backbone(EfficientFormerV2Config.from_size("s0"))
for revision in (None, "main", "1" * 40):
    print(load_pretrained(model, "timm/efficientformerv2_s0.snap_dist_in1k", revision).used)
for source, revision in (("timm/efficientformerv2_s1.snap_dist_in1k", None), (sys.argv[1], None), ("a/b/c", None)):
    try:
        load_pretrained(model, source, revision)
    except FileNotFoundError as error:
        print(str(error).split(", got")[0])
"""


@pytest.mark.slow
def test_sources(timm_folder, tmp_path):
    """A folder, a repository on the Hub (here: in the client's cache, without a network), and what is neither."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").symlink_to(timm_folder / "s0.safetensors")
    expected = load_pretrained(backbone("s0", 512), tmp_path / "folder").used

    cache = tmp_path / "home" / "hub" / "models--timm--efficientformerv2_s0.snap_dist_in1k"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    (cache / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (cache / "snapshots" / ("1" * 40) / "model.safetensors").symlink_to(timm_folder / "s0.safetensors")
    process = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB, tmp_path / "nowhere"],
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    what = (
        "expected a checkpoint file, a folder with model.safetensors or pytorch_model.bin or a repository on the Hub"
    )
    names = ("timm/efficientformerv2_s1.snap_dist_in1k", tmp_path / "nowhere", "a/b/c")
    assert process.stdout.splitlines() == [str(expected)] * 3 + [f"{name}: {what}" for name in names]
