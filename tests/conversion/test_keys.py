import re

import pytest
import torch

from offseg_hf import OffSegForSemanticSegmentation
from offseg_hf.conversion.keys import fit
from offseg_hf.conversion.tables import OFFSEG
from offseg_hf.presets import PRESETS


every_preset = pytest.mark.parametrize("preset", PRESETS)

# What the official state dict has and the function has not, per attention and per fusion.
DROPPED_SUFFIXES = {
    "attention_biases",
    "attention_bias_idxs",
    "attention_bias_idxs_seg",
    "hamming_lowpass",
    "hamming_highpass",
    "dysampler.init_pos",
    "conv_seg.weight",
    "conv_seg.bias",
}


def meta_model(preset: str) -> OffSegForSemanticSegmentation:
    with torch.device("meta"):
        return OffSegForSemanticSegmentation(PRESETS[preset].config())


@pytest.fixture
def official(official_keys):
    """A function preset -> official state dict on the meta device."""
    return lambda preset: {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in official_keys[preset].items()
    }


@every_preset
def test_every_official_key_has_its_place(official, preset):
    model = meta_model(preset)
    fitted = fit(official(preset), OFFSEG, model.state_dict())

    assert fitted.problems() == fitted.counts() == "" and fitted.is_complete
    assert set(fitted.weights) == set(model.state_dict())
    assert sorted([*fitted.origins.values(), *fitted.dropped]) == sorted(official(preset))  # each exactly once
    assert all(any(key.endswith(f".{suffix}") for suffix in DROPPED_SUFFIXES) for key in fitted.dropped)
    num_attentions = sum(key.endswith("attention_biases_seg") for key in official(preset))
    assert len(fitted.dropped) == 3 * num_attentions + 3 * 3 + 2


@every_preset
def test_number_of_parameters(preset):
    model = meta_model(preset)
    assert model.num_parameters() == PRESETS[preset].num_parameters


def test_no_row_is_idle(official):
    """Every rename and every drop meets a key, but for the cache `ab`, which only some versions of the code save."""
    keys = [*official("offseg-t-ade"), "backbone.network.5.attn.ab"]
    for row, (pattern, _) in enumerate(OFFSEG.renames):
        before = [type(OFFSEG)(OFFSEG.renames[:row]).rename(key) for key in keys]
        assert any(re.search(pattern, key) for key in before), pattern
    for pattern, reason in OFFSEG.drops:
        assert any(re.fullmatch(pattern, key) for key in keys), pattern
        assert reason


def test_batch_counters_may_be_missing_on_either_side(official):
    ours, weights = meta_model("offseg-t-ade").state_dict(), official("offseg-t-ade")
    counters = [key for key in weights if key.endswith("num_batches_tracked")]

    without = {key: value for key, value in weights.items() if key not in counters}
    assert fit(without, OFFSEG, ours).is_complete

    frozen = {key: value for key, value in ours.items() if not key.endswith("num_batches_tracked")}
    fitted = fit(weights, OFFSEG, frozen)
    assert fitted.is_complete and len(counters) == 95 and set(counters) <= set(fitted.dropped)


def test_what_does_not_fit_is_listed(official):
    ours, weights = meta_model("offseg-t-ade").state_dict(), official("offseg-t-ade")
    for key in [key for key in weights if ".k.0." in key]:
        weights[key.replace(".k.0.", ".kk.0.")] = weights.pop(key)
    weights["decode_head.align.conv.weight"] = torch.empty(256, 255, 1, 1, device="meta")
    weights["decode_head.align.gn.weight"] = torch.empty(256, dtype=torch.int64, device="meta")
    fitted = fit(weights, OFFSEG, ours)

    assert len(fitted.missing) == len(fitted.left_over) == 10 and not fitted.is_complete
    assert fitted.counts() == "10 missing, 10 left over, 2 mis-shaped"
    problems = fitted.problems()
    assert "10 missing: encoder.stages.2.7.attention.key.conv.weight, " in problems
    assert "10 left over: backbone.network.4.7.token_mixer.kk.0.weight, " in problems
    assert "decode_head.align.conv.weight is float32 (256, 255, 1, 1) instead of float32 (256, 256, 1, 1)" in problems
    assert "decode_head.align.gn.weight is int64 (256,) instead of float32 (256,)" in problems


def test_long_lists_are_cut(official):
    fitted = fit({}, OFFSEG, meta_model("offseg-t-ade").state_dict())
    assert re.fullmatch(r"698 missing: (\S+, ){10}\.\.\.", fitted.problems())


def test_two_keys_for_one_place_are_refused(official):
    weights = official("offseg-t-ade")
    weights["encoder.stem.conv1.conv.weight"] = weights["backbone.patch_embed.0.weight"]
    fitted = fit(weights, OFFSEG, meta_model("offseg-t-ade").state_dict())
    assert fitted.left_over == ["encoder.stem.conv1.conv.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_fit(official, dtype):
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in official("offseg-t-ade").items()}
    assert fit(weights, OFFSEG, meta_model("offseg-t-ade").state_dict()).is_complete
