"""Models are functions of their weights, wherever in memory these lie: to rounding, which is far from any fault."""

import pytest
import torch
from torch import Tensor, nn

from offseg_hf import apply_offset_learning
from offseg_hf.models.modeling_offset_alignment import align_masks
from tests import semantic_models
from tests.comparison import ROUNDINGS, assert_other_outputs, assert_same_outputs, at_alignment, difference
from tests.models import test_modeling_offset_alignment as mask_models
from tests.tiny import FAMILIES, tiny_model


# Bytes behind a 64-byte boundary. Files have their weights at multiples of 4 or 8 of these.
OFFSETS = (4, 16)


def outputs(model: nn.Module) -> list[Tensor]:
    output = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return [output.logits] if "logits" in output else [output.class_queries_logits, output.masks_queries_logits]


def build(name: str) -> nn.Module:
    if name in FAMILIES:
        return tiny_model(name)
    if name in semantic_models.NAMES:
        return apply_offset_learning(semantic_models.small_model(name)).eval()
    return align_masks(mask_models.stock_model(name))


@torch.no_grad()
@pytest.mark.parametrize("name", [*FAMILIES, *semantic_models.NAMES, *mask_models.STOCK])
def test_weights_at_any_alignment(name):
    model = build(name)
    expected = outputs(model)
    for offset in OFFSETS:
        actual = outputs(at_alignment(model, offset))
        assert_same_outputs(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_weight_is_no_rounding(name):
    """The median of all weights, 2 % off."""
    model = build(name)
    expected, differences = outputs(model), []
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    for weight in weights[::8]:
        right = weight.clone()
        weight.mul_(1.02)
        actual = outputs(model)
        weight.copy_(right)
        differences.append(max(map(difference, actual, expected)))
        if differences[-1] > 4 * ROUNDINGS:
            assert_other_outputs(actual, expected)
    assert sorted(differences)[len(differences) // 2] > 2 * ROUNDINGS
