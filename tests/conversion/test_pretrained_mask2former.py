"""Training starts from what the Hub has of Swin and Mask2Former: files that transformers' own classes write."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
)
from transformers.models.swin.modeling_swin import SwinPatchMerging

from offseg_hf import OffsetMask2FormerConfig, OffsetMask2FormerForUniversalSegmentation, load_pretrained
from offseg_hf.conversion.convert import load_official_weights
from offseg_hf.conversion.tables.mask2former import order_patch_merging
from offseg_hf.zoo.presets import get_preset
from tests.comparison import assert_same_outputs
from tests.models.test_modeling_offset_mask2former import ALIGNMENT_KEYS, SMALL, images, random_values, small_model


SWIN = "model.pixel_level_module.encoder.swin."
both_forms = pytest.mark.parametrize("original", [True, False], ids=["as on the Hub", "names of transformers 5"])


def stock_mask2former(**fields) -> Mask2FormerForUniversalSegmentation:
    """The kind of `facebook/mask2former-swin-tiny-*`."""
    torch.manual_seed(1)
    return random_values(Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**(SMALL | fields))))


def stock_swin(**fields) -> SwinForImageClassification:
    """The kind of `microsoft/swin-tiny-patch4-window7-224`."""
    torch.manual_seed(1)
    settings = {name: value for name, value in SMALL["backbone_config"].items() if name != "model_type"}
    return random_values(SwinForImageClassification(SwinConfig(**(settings | {"image_size": 64, **fields}))))


def save_with_index_tables(model: nn.Module, folder, original: bool) -> set[str]:
    """As published, with the constants that transformers used to write beside the biases; returns all names."""
    model.save_pretrained(folder, save_original_format=original)
    weights = load_file(folder / "model.safetensors")
    if original:
        tables = [name for name in weights if name.endswith("relative_position_bias_table")]
        weights |= {name.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.long) for name in tables}
        save_file(weights, folder / "model.safetensors")
    return set(weights)


@both_forms
def test_encoder_of_a_classifier(original, tmp_path):
    stock, model = stock_swin(), small_model()
    before = copy.deepcopy(model.state_dict())
    names = save_with_index_tables(stock, tmp_path, original)
    assert any(".attention.self.query." in name for name in names) == original

    report = load_pretrained(model, tmp_path)
    assert report.used + len(report.dropped) == len(names)
    assert all(re.search(r"^classifier\.|^swin\.layernorm\.|_index$", name) for name in report.dropped)
    assert set(report.initial) == {name for name in before if not name.startswith(SWIN)}
    expected = stock.swin.state_dict()
    for name, tensor in model.state_dict().items():
        loaded = expected[name.removeprefix(SWIN)] if name.startswith(SWIN) else before[name]
        assert torch.equal(tensor, loaded), name


@both_forms
@torch.no_grad()
def test_mask2former(original, tmp_path):
    """With `start_without_offsets` the model then is the published one."""
    stock, model = stock_mask2former(), small_model(start_without_offsets=True)
    model.model.transformer_module.decoder.mask_predictor.alignment.start_without_offsets()
    names = save_with_index_tables(stock, tmp_path, original)
    report = load_pretrained(model, tmp_path)
    assert set(report.initial) == ALIGNMENT_KEYS
    assert report.used + len(report.dropped) == len(names)
    assert all(re.search(r"^criterion\.empty_weight$|\.swin\.layernorm\.|_index$", name) for name in report.dropped)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(model(images())[name], stock(images())[name], rtol=1e-4, atol=1e-4)


def test_mask2former_of_other_classes(tmp_path):
    """The class predictor keeps its values, as does the alignment."""
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    names = {"id2label": {i: str(i) for i in range(150)}, "label2id": {str(i): i for i in range(150)}}
    stock_mask2former(**names).save_pretrained(tmp_path)
    report = load_pretrained(model, tmp_path)
    assert set(report.initial) == ALIGNMENT_KEYS | {"class_predictor.weight", "class_predictor.bias"}
    assert {"class_predictor.weight", "class_predictor.bias"} < set(report.dropped)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.initial)


def test_another_size_is_refused(tmp_path):
    stock_swin(embed_dim=32).save_pretrained(tmp_path)
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"expected Swin of transformers of the size of this .*mis-shaped"):
        load_pretrained(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_weights_are_refused(tmp_path):
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Swin of transformers, or Mask2Former of transformers, got conv1.weight"):
        load_pretrained(small_model(), tmp_path)


@torch.no_grad()
def test_patch_merging_is_that_of_unfold():
    """What the official code merges with `nn.Unfold`, transformers' layer gives with the reordered weights."""
    torch.manual_seed(0)
    height, width, channels = 6, 8, 5
    x = torch.randn(2, channels, height, width)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)
    norm.weight.normal_()
    norm.bias.normal_()
    expected = reduction(norm(nn.functional.unfold(x, kernel_size=2, stride=2).transpose(1, 2)))

    merging = SwinPatchMerging(channels)
    for ours, official in ((merging.norm, norm), (merging.reduction, reduction)):
        ours.load_state_dict({name: order_patch_merging(value) for name, value in official.state_dict().items()})
    actual = merging(x.flatten(2).transpose(1, 2), (height, width))
    assert_same_outputs(actual, expected)


def test_official_checkpoint(official_state_dict):
    """Every key is used once, or dropped by name; queries, keys and values are parted in this order."""
    name = "mask2former-swin-t-offset-ade"
    weights = official_state_dict(name)
    model, fitted = load_official_weights(get_preset(name), weights, name)
    assert len(fitted.used) + len(fitted.dropped) == len(weights)
    assert all(key.endswith(".relative_position_index") for key in fitted.dropped)
    assert fitted.weights.keys() == model.state_dict().keys()

    decoder = model.model.transformer_module.decoder
    in_proj = weights["decode_head.transformer_decoder.layers.3.self_attn.attn.in_proj_weight"]
    attention = decoder.layers[3].self_attn
    parts = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
    assert all(torch.equal(part, expected) for part, expected in zip(parts, in_proj.chunk(3), strict=True))
    assert torch.equal(
        decoder.mask_predictor.alignment.class_offset_proj.weight,
        weights["decode_head.offset_learning.cls_offset_proj.weight"],
    )


@torch.no_grad()
def test_encoder_gives_the_features_of_the_classifier(tmp_path):
    """transformers' own backbone, from the same file, but for the norms of its outputs."""
    stock_swin().save_pretrained(tmp_path)
    model = OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**SMALL)).eval()
    load_pretrained(model, tmp_path)
    stock = SwinBackbone.from_pretrained(tmp_path, out_features=SMALL["backbone_config"]["out_features"]).eval()
    actual = model(images(), output_hidden_states=True).encoder_hidden_states
    for feature_map, expected in zip(actual, stock(images()).feature_maps, strict=True):
        torch.testing.assert_close(feature_map, expected, rtol=1e-4, atol=1e-4)


def test_our_own_weights_are_taken_as_they_are(tmp_path):
    """Patch merging is in transformers' order already."""
    own, model, others = small_model(), small_model(), small_model(num_labels=9)
    for parameter in own.parameters():
        parameter.data += torch.randn_like(parameter)
    own.save_pretrained(tmp_path)
    report = load_pretrained(model, tmp_path)
    assert not report.dropped and not report.initial
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in model.state_dict().items())

    before = copy.deepcopy(others.state_dict())
    report = load_pretrained(others, tmp_path)
    assert set(report.initial) == set(report.dropped) == {"class_predictor.weight", "class_predictor.bias"}
    for name, tensor in others.state_dict().items():
        assert torch.equal(tensor, (before if name in report.initial else own.state_dict())[name]), name
