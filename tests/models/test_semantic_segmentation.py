"""fuse(): the right copy of what is not as it was loaded, or words that say what to do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.comparison import assert_same_outputs
from tests.models.test_layers import MODELS, images


@torch.no_grad()
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_fused_twice_and_with_synchronized_norms(build):
    model = build()
    expected = model(images()).logits
    fused = model.fuse()
    assert fused is not model and not model.is_fused
    again = fused.fuse()
    assert again is not fused and again.is_fused
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).fuse()
    for each in (fused, again, synchronized):
        torch.testing.assert_close(each(images()).logits, expected, rtol=0, atol=2e-4 * expected.abs().max().item())
    assert_same_outputs(again(images()).logits, fused(images()).logits)


class Adapter(nn.Module):
    """As adapters are: a layer of its own around the layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.base_layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return 2 * self.base_layer(x)


def put(model, name, change):
    model.set_submodule(name, change(model.get_submodule(name)))


def patched(module):
    module.forward = lambda x, forward=module.forward: forward(x)
    return module


def pruned(module):
    return prune.l1_unstructured(module, "weight", amount=0.5)


CONV = "encoder.stages.2.2.attention.query.conv"
NORM = "encoder.stages.2.2.attention.query.norm"
CHANGES = {
    "on the meta device: load the model without offloading": lambda model: put(
        model, CONV, lambda conv: conv.to("meta")
    ),
    "knows nothing of encoder.stages.2.2.attention.query.conv, a tests.*Adapter": lambda model: put(
        model, CONV, Adapter
    ),
    "replaced the forward of encoder.stages.2.2.attention.query.conv": lambda model: put(model, CONV, patched),
    "those of encoder.stages.2.2.attention.query.conv are computed": lambda model: put(
        model, CONV, parametrizations.weight_norm
    ),
    "are computed from others": lambda model: put(model, CONV, pruned),
    "expected a batch norm with weights and running statistics, got Identity": lambda model: put(
        model, NORM, lambda norm: nn.Identity()
    ),
    "running statistics, got BatchNorm2d": lambda model: put(
        model, NORM, lambda norm: nn.BatchNorm2d(norm.num_features, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("message, change", CHANGES.items())
def test_what_cannot_be_fused_is_refused(message, change):
    model = MODELS["offseg"]()
    change(model)
    with pytest.raises(ValueError, match=message):
        model.fuse()
