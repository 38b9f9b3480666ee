import re

import pytest
import torch
from transformers import PreTrainedModel

from offseg_hf.conversion.convert import build_model
from offseg_hf.conversion.keys import KeyTable, fit
from offseg_hf.conversion.tables import OFFICIAL_TABLES
from offseg_hf.zoo.presets import PRESETS


every_preset = pytest.mark.parametrize("preset", PRESETS)
OFFSEG = OFFICIAL_TABLES["offseg"]

# What the official state dicts have and the functions have not: constants, and a classifier that is never called.
DROPPED_SUFFIXES = {
    "attention_biases",
    "attention_bias_idxs",
    "attention_bias_idxs_seg",
    "hamming_lowpass",
    "hamming_highpass",
    "dysampler.init_pos",
    "relative_position_index",
    "conv_seg.weight",
    "conv_seg.bias",
}


def meta_model(preset: str) -> PreTrainedModel:
    with torch.device("meta"):
        return build_model(PRESETS[preset])


def table_of(preset: str) -> KeyTable:
    return OFFICIAL_TABLES[PRESETS[preset].config().model_type]


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
    fitted = fit(official(preset), table_of(preset), model.state_dict())

    assert fitted.problems() == fitted.counts() == "" and fitted.is_complete
    assert set(fitted.weights) == set(model.state_dict())
    assert {*fitted.origins.values(), *fitted.dropped} == set(official(preset))
    assert not set(fitted.origins.values()) & set(fitted.dropped)
    dropped = {key for key in official(preset) if any(key.endswith(f".{suffix}") for suffix in DROPPED_SUFFIXES)}
    assert set(fitted.dropped) == dropped


@pytest.mark.parametrize("model_type", OFFICIAL_TABLES)
def test_no_row_is_idle(official, model_type):
    """Every rename and every drop meets a key, but for the cache `ab`, which only some versions of the code save."""
    table = OFFICIAL_TABLES[model_type]
    preset = next(preset for preset in PRESETS if table_of(preset) is table)
    keys = [*official(preset), "backbone.network.5.attn.ab"]
    renamed = keys
    for pattern, replacement in table.renames:
        assert any(re.search(pattern, key) for key in renamed), pattern
        renamed = [re.sub(pattern, replacement, key) for key in renamed]
    for pattern, reason in table.drops:
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


IN_PROJ = KeyTable(
    renames=((r"^old\.", "new."),),
    splits=((r"\.in_proj_(weight|bias)$", (r".query.\1", r".key.\1", r".value.\1")),),
    transforms=((r"key\.weight", torch.Tensor.t),),
)
PARTS = {f"new.{part}.{kind}": kind for part in ("query", "key", "value") for kind in ("weight", "bias")}


def test_one_tensor_that_is_several_of_ours():
    """Parts are equal, in order and along the first dimension; each is then transformed by its own name."""
    weight, bias = torch.arange(36.0).reshape(12, 3)[:9], torch.arange(9.0)
    ours = {name: torch.empty(3, 3) if kind == "weight" else torch.empty(3) for name, kind in PARTS.items()}
    fitted = fit({"old.in_proj_weight": weight, "old.in_proj_bias": bias}, IN_PROJ, ours)

    assert fitted.is_complete and fitted.weights.keys() == ours.keys()
    assert torch.equal(fitted.weights["new.query.weight"], weight[:3])
    assert torch.equal(fitted.weights["new.key.weight"], weight[3:6].t())
    assert torch.equal(fitted.weights["new.value.weight"], weight[6:])
    assert [fitted.weights[f"new.{part}.bias"].tolist() for part in ("query", "key", "value")] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]
    assert fitted.origins == {name: f"old.in_proj_{kind}" for name, kind in PARTS.items()}
    assert fitted.used == {"old.in_proj_weight", "old.in_proj_bias"}


@pytest.mark.parametrize("length", [0, 2, 6, 10])
def test_parts_of_another_size_are_listed(length):
    ours = {name: torch.empty(3) for name, kind in PARTS.items() if kind == "bias"}
    fitted = fit({"old.in_proj_bias": torch.empty(length)}, IN_PROJ, ours)
    assert not fitted.is_complete and fitted.misshaped and not fitted.missing and not fitted.left_over


def test_parts_that_cannot_be_are_listed():
    """A number has no parts; and a place that is taken, or that we lack, is refused as for a whole tensor."""
    ours = {name: torch.empty(3) for name, kind in PARTS.items() if kind == "bias"}
    assert len(fit({"old.in_proj_bias": torch.tensor(0.0)}, IN_PROJ, ours).misshaped) == 3

    taken = {"new.key.bias": torch.empty(3), "old.in_proj_bias": torch.empty(9)}
    assert fit(taken, IN_PROJ, ours).left_over == ["old.in_proj_bias"]

    fitted = fit({"old.in_proj_bias": torch.empty(9)}, IN_PROJ, {"new.query.bias": torch.empty(3)})
    assert fitted.left_over == ["old.in_proj_bias"] and fitted.missing == ["new.query.bias"]
