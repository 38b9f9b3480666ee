"""SegNeXt's official checkpoints, and the published weights that training starts from, by their names and shapes."""

import pytest
import torch

from offseg_hf import (
    MscanBackbone,
    MscanConfig,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
    load_pretrained,
)
from offseg_hf.conversion.convert import build_model, load_official_weights
from offseg_hf.conversion.keys import fit
from offseg_hf.conversion.tables.segnext import OFFICIAL
from offseg_hf.zoo.presets import PRESETS, get_preset
from tests.comparison import assert_same_outputs
from tests.parity.fill import official_keys, official_state_dict


SIZES = ("t", "s", "b")
SEGNEXT_PRESETS = [name for name, preset in PRESETS.items() if preset.family == "segnext"]


def mscan(size: str) -> dict[str, torch.Tensor]:
    """openmmlab's ImageNet checkpoint of that size, with the classifier that it may have."""
    official = official_state_dict(f"segnext-{size}-offset-ade")
    weights = {key.removeprefix("backbone."): value for key, value in official.items() if key.startswith("backbone.")}
    return weights | {"head.weight": torch.zeros(1000, len(weights["norm4.bias"])), "head.bias": torch.ones(1000)}


def backbone(size: str) -> MscanBackbone:
    return MscanBackbone(MscanConfig.from_size(size, out_features=["stage1", "stage2", "stage3", "stage4"])).eval()


@pytest.mark.parametrize("name", SEGNEXT_PRESETS)
def test_official_names_and_sizes(name):
    """Every official key has one place, and the model has as many parameters as the official one."""
    official = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in official_keys()[name].items()
    }
    with torch.device("meta"):
        model = build_model(get_preset(name))
    fitted = fit(official, OFFICIAL, model.state_dict())
    assert fitted.is_complete, fitted.problems()
    assert set(fitted.dropped) == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert model.num_parameters() == get_preset(name).num_parameters


@torch.no_grad()
@pytest.mark.parametrize("size", ["t", *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES if size != "t")])
@pytest.mark.parametrize("deeper", [False, True], ids=["openmmlab", "authors"])
def test_encoder(tmp_path, size, deeper):
    """Into a backbone, whose feature maps are then those of the same weights in an official checkpoint."""
    weights = mscan(size)
    if deeper:
        weights = {key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value for key, value in weights.items()}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "mscan.pth")
    model = backbone(size)
    report = load_pretrained(model, tmp_path / "mscan.pth")
    assert report.initial == []
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert report.used + len(report.dropped) == len(weights)

    name = f"segnext-{size}-offset-ade"
    official, _ = load_official_weights(get_preset(name), official_state_dict(name), name)
    pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = official(pixel_values, output_hidden_states=True).hidden_states
    actual = model(pixel_values).feature_maps
    assert all(feature_map.isfinite().all() for feature_map in actual)
    assert_same_outputs(actual, expected)


def test_encoder_of_a_segmenter(tmp_path):
    """The encoder is loaded; pixel decoder and offset learning keep their values, and the report names them."""
    torch.save({"state_dict": mscan("t")}, tmp_path / "mscan.pth")
    model = OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig.from_size("t", num_labels=3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_pretrained(model, tmp_path / "mscan.pth")
    after = model.state_dict()
    others = [key for key in before if not key.startswith("encoder.")]
    assert sorted(report.initial) == sorted(others)
    assert all(torch.equal(after[key], before[key]) for key in report.initial)
    assert torch.equal(after["encoder.stages.0.0.mlp_scale"].flatten(), mscan("t")["block1.0.layer_scale_2"])
    assert report.used == len(before) - len(others)


def test_whole_segnext(tmp_path):
    """A published SegNeXt gives the pixel decoder too: offset learning takes the place of its classifier."""
    weights = {k: v for k, v in official_state_dict("segnext-t-offset-ade").items() if "offset_learning" not in k}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "segnext.pth")
    model = OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig.from_size("t", num_labels=3))
    report = load_pretrained(model, tmp_path / "segnext.pth")
    assert {name.split(".")[0] for name in report.initial} == {"offset_learning"}
    weight = model.pixel_decoder.hamburger.out_proj.norm.weight
    assert torch.equal(weight, weights["decode_head.hamburger.ham_out.gn.weight"])


def test_another_size(tmp_path):
    torch.save({"state_dict": mscan("s")}, tmp_path / "mscan.pth")
    with pytest.raises(ValueError, match="expected MSCAN of openmmlab or of its authors of the size of this MscanB"):
        load_pretrained(backbone("t"), tmp_path / "mscan.pth")


def test_something_else(tmp_path):
    torch.save({"state_dict": {"layer1.weight": torch.ones(1)}}, tmp_path / "resnet.pth")
    model = OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig.from_size("t", num_labels=3))
    with pytest.raises(ValueError, match="MSCAN of openmmlab .*, or SegNeXt of openmmlab, got layer1.weight"):
        load_pretrained(model, tmp_path / "resnet.pth")
