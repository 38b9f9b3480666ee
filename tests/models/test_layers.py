"""Modules behave as torch's own do: to hooks, to adapters, and to tools that walk over them."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from offseg_hf import (
    MscanBackbone,
    MscanConfig,
    OffsetMask2FormerConfig,
    OffsetMask2FormerForUniversalSegmentation,
    OffsetSegNextForSemanticSegmentation,
)
from offseg_hf.models.configuration_offset_segnext import OffsetSegNextConfig
from offseg_hf.models.layers import FixedBatchNorm2d
from tests.comparison import assert_same_outputs, assert_same_weights
from tests.models import test_modeling_offseg, test_modeling_offset_segformer
from tests.models.test_modeling_offset_mask2former import SMALL as MASK2FORMER
from tests.models.test_modeling_offset_segnext import MSCAN, SEGNEXT


def segnext():
    torch.manual_seed(0)
    return OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig(**SEGNEXT)).eval()


def mask2former():
    torch.manual_seed(0)
    return OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**MASK2FORMER)).eval()


MODELS = {
    "offseg": test_modeling_offseg.small_model,
    "offseg-mlp": lambda: test_modeling_offseg.small_model(pixel_decoder="mlp"),
    "segformer": test_modeling_offset_segformer.small_model,
    "segnext": segnext,
}
FUSED = {f"{name}, fused": lambda build=build: build().fuse() for name, build in MODELS.items()}


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def tensors(output) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output for tensor in tensors(part)] if isinstance(output, list | tuple) else []


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("build", (MODELS | FUSED).values(), ids=MODELS | FUSED)
def test_nothing_that_a_module_returned_is_changed(build, with_gradients):
    """What a forward hook gets is the layer's output, and stays it."""
    model, seen = build(), []

    def keep(name):
        return lambda module, inputs, output: seen.extend((name, x, x.clone()) for x in tensors(output))

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    with torch.set_grad_enabled(with_gradients):
        model(images())
    assert {name for name, kept, value in seen if not torch.equal(kept, value)} == set()
    assert len(seen) > 20


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_full_backward_hooks(build):
    """On every module at once, as tools that explain models have them; gradients are those without."""
    model, called = build().train(), set()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    plain = copy.deepcopy(model)
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: called.add(name))
    gradients = []
    for each in (model, plain):
        torch.manual_seed(0)
        pixel_values = images().requires_grad_()
        each(pixel_values).logits.pow(2).mean().backward()
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
    largest = max(gradient.abs().max().item() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():  # some are zero but for rounding: a softmax sees no constant
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5 * largest)
    leaves = {
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    }
    with_tensors = {name for name in leaves if not name.endswith(("attention_bias", "offset_learning"))}
    assert with_tensors <= called


@pytest.mark.parametrize("build", [*MODELS.values(), mask2former], ids=[*MODELS, "mask2former"])
def test_layers_are_made_as_those_of_torch(build):
    """Adapters (LoRA) make more layers of the class of one: each takes torch's arguments."""
    for name, module in build().named_modules():
        for base in (nn.Conv2d, nn.Linear):
            if isinstance(module, base):
                assert inspect.signature(type(module)) == inspect.signature(base), name


def test_an_adapter_on_the_talking_heads():
    """A product of two smaller convolutions beside it, as LoRA has it, made of its own class."""
    heads = next(
        module for name, module in test_modeling_offseg.small_model().named_modules() if name.endswith("talking_head1")
    )
    down = type(heads)(heads.in_channels, 3, heads.kernel_size, bias=False)
    attention = torch.randn(2, 8, 5, 6)
    assert_same_outputs(heads(attention), nn.functional.conv2d(attention, heads.weight, heads.bias))
    assert_same_outputs(down(attention), nn.functional.conv2d(attention, down.weight))


@torch.no_grad()
def test_tools_leave_fixed_statistics_alone():
    model = test_modeling_offseg.small_model()
    before = copy.deepcopy(model)
    averaged = AveragedModel(model)
    update_bn([images()], averaged)
    assert_same_weights(averaged.module, before)

    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    converted(images())
    assert_same_weights(converted, before)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())


@torch.no_grad()
def test_a_fixed_batch_norm_is_saved_as_any():
    generator = torch.Generator().manual_seed(0)
    plain, fixed = nn.BatchNorm2d(3), FixedBatchNorm2d(3)
    for tensor in (plain.weight, plain.bias, plain.running_mean, plain.running_var):
        tensor.uniform_(0.5, 2, generator=generator)
    fixed.load_state_dict(plain.state_dict())
    assert_same_weights(fixed, plain)
    assert list(fixed.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 4, 5, generator=generator)
    for module in (fixed, fixed.train()):
        assert torch.equal(module(x), plain.eval()(x))
        assert_same_weights(module, plain)


@pytest.mark.parametrize(
    "build",
    [*MODELS.values(), lambda: MscanBackbone(MscanConfig(**MSCAN)), mask2former],
    ids=[*MODELS, "backbone", "mask2former"],
)
def test_input_embeddings(build):
    """Quantization and adapters ask for what sees the input first, and may want gradients of what it gives."""
    model, seen = build(), []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].shape[1], output)))
    model(images())
    ((channels, output),) = seen
    assert channels == 3 and isinstance(output if build is not mask2former else output[0], torch.Tensor)
