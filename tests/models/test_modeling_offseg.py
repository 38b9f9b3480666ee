"""The models: equal to the plain arithmetic whatever the configuration, and clear about what they cannot take."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from offseg_hf import (
    EfficientFormerV2Backbone,
    EfficientFormerV2Config,
    OffSegBackbone,
    OffSegConfig,
    OffSegForSemanticSegmentation,
)
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.models.modeling_offseg import crop_to_stride, pad_to_stride
from tests.comparison import assert_other_outputs, assert_same_outputs, assert_same_weights
from tests.oracle import plain


SMALL = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 2, 3, 2],
    "mlp_ratios": [[2], [2, 3], [2, 3, 2], [3, 2]],
    "num_attention_blocks": 1,
    "image_size": 64,
}
SMALL_DECODER = {"lateral_channels": [32, 32, 32, 64], "decoder_hidden_size": 32, "num_labels": 7}


def small_model(**overrides) -> OffSegForSemanticSegmentation:
    """A model all of whose parameters and statistics matter."""
    torch.manual_seed(0)
    model = OffSegForSemanticSegmentation(OffSegConfig(**(SMALL | SMALL_DECODER | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "scale" in name or "attention_bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, FixedBatchNorm2d | nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "size, overrides",
    [
        ((64, 64), {}),
        ((64, 96), {}),  # only the encoder asks whether this is the size that its attention has learned
        ((64, 64), {"use_class_offset": False}),
        ((64, 64), {"use_feature_offset": False}),
        ((64, 64), {"use_class_offset": False, "use_feature_offset": False}),
        ((64, 64), {"use_class_offset": False, "use_feature_offset": False, "pixel_decoder": "mlp"}),
    ],
    ids=["offseg", "other-grid", "feature-offset-only", "class-offset-only", "per-pixel", "per-pixel-mlp"],
)
def test_equals_plain_arithmetic(overrides, size):
    """Every row of the paper's Table 6: logits, also fused, and all gradients."""
    model = small_model(**overrides).double()  # with what rounding does out of the way
    reference = plain(model)
    pixel_values, labels = images(2, 3, *size).double(), torch.arange(7).repeat(2, *size)[:, :, : size[1]]
    with torch.no_grad():
        expected = reference(pixel_values).logits
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.fuse()(pixel_values).logits, expected, rtol=0, atol=1e-5)

    for module in (model, reference):
        module.train()(pixel_values, labels=labels).loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_switches_leave_no_unused_parameters():
    names = set(small_model().state_dict())
    assert names - set(small_model(use_class_offset=False).state_dict()) == {
        "offset_learning.class_offset_proj.weight"
    }
    assert names - set(small_model(use_feature_offset=False).state_dict()) == {
        "offset_learning.feature_offset_proj.weight"
    }
    assert not any("fusions" in name for name in small_model(pixel_decoder="mlp").state_dict())


@torch.no_grad()
def test_attention_bias_is_never_stale():
    """Biases follow the table through in-place changes of every kind, loading and casting."""
    model, pixel_values = small_model(), images(1, 3, 64, 96)
    before = model(pixel_values).logits
    table = model.encoder.downsample[2].attention.attention_bias.table
    table.data.add_(1 - torch.rand(table.shape))
    changed = model(pixel_values).logits
    assert not torch.allclose(before, changed, atol=1e-4)
    torch.testing.assert_close(plain(model)(pixel_values).logits, changed, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.double()(pixel_values.double()).logits.float(), changed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
def test_batch_norm_statistics(learned):
    """The official training keeps the statistics; training from scratch learns them."""
    model = small_model(learn_batch_norm_statistics=learned).train()
    norm = model.encoder.stem.conv1.norm
    before = norm.running_mean.clone()
    model(images(2, 3, 64, 64))
    assert torch.equal(norm.running_mean, before) is not learned
    assert norm.weight.requires_grad and norm.bias.requires_grad


def test_initialization():
    """As in the official code, where what contains a layer overrules the layer's own initialization."""
    torch.manual_seed(0)
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size("t"))
    fusion, block = model.pixel_decoder.fusions[0], model.encoder.stages[3][0]
    stds = {
        0.001: [fusion.low_pass_generator, fusion.high_pass_generator],
        0.02: [block.mlp.expand.conv, block.mlp.project.conv, model.offset_learning.class_offset_proj],
        (2 / 256) ** 0.5: [model.pixel_decoder.output_conv.conv],  # Kaiming's, over what goes out
        (2 / (9 * (64 + 32))) ** 0.5: [fusion.sampler.displacement_scale],  # Xavier's
    }
    for std, layers in stds.items():
        for layer in layers:
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1), layer
    assert not any(conv.bias.any() for conv in fusion.modules() if isinstance(conv, nn.Conv2d))
    assert set(block.mlp_scale.flatten().tolist()) == {torch.tensor(1e-5).item()}

    # Under transformers' rules: what a file lacks is initialized in this way, and what was loaded stays.
    state_dict = {key: value for key, value in model.state_dict().items() if "fusions.0.low_pass" not in key}
    loaded = OffSegForSemanticSegmentation.from_pretrained(None, config=model.config, state_dict=state_dict)
    assert_same_weights({key: value for key, value in loaded.state_dict().items() if key in state_dict}, state_dict)
    assert loaded.pixel_decoder.fusions[0].low_pass_generator.weight.std().item() == pytest.approx(0.001, rel=0.1)


def test_drop_path_drops_whole_samples():
    model = small_model(drop_path_rate=0.9).train()
    pixel_values = images(1, 3, 64, 64).expand(8, -1, -1, -1)
    torch.manual_seed(0)
    logits = model(pixel_values).logits
    assert_other_outputs(logits, logits[:1].expand_as(logits))
    logits = model.eval()(pixel_values).logits
    assert_same_outputs(logits, logits[:1].expand_as(logits))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"image_size": 100}, "multiple of 32, got 100"),
        ({"depths": [1, 1, 1]}, "four stages"),
        ({"mlp_ratios": [[2], [2], [2, 3, 2], [3, 2]]}, "stage 1 has 2 blocks and 1 ratios"),
        ({"pixel_decoder": "fpn"}, "got 'fpn'"),
        ({"lateral_channels": [32]}, "one number per stage"),
    ],
)
def test_wrong_configuration(overrides, message):
    with pytest.raises(Exception, match=message):
        OffSegConfig(**(SMALL | SMALL_DECODER | overrides))


def test_one_class():
    with pytest.raises(ValueError, match="at least 2 classes"):
        small_model(num_labels=1)


def test_unknown_size():
    with pytest.raises(ValueError, match="unknown size 's': expected one of t, b, l"):
        OffSegConfig.from_size("s")


def test_backbone_takes_any_size():
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    backbone = AutoBackbone.from_config(EfficientFormerV2Config(**SMALL, out_features=stages)).eval()
    assert isinstance(backbone, EfficientFormerV2Backbone)
    shapes = [tuple(x.shape) for x in backbone(images(1, 3, 70, 33)).feature_maps]
    assert shapes == [(1, 8, 18, 9), (1, 8, 18, 9), (1, 16, 9, 5), (1, 24, 5, 3), (1, 32, 3, 2)]


def test_backbone_in_upernet():
    backbone = EfficientFormerV2Config(**SMALL, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=5)
    config.auxiliary_in_channels = 24
    model = UperNetForSemanticSegmentation(config)
    output = model(images(2, 3, 70, 90), labels=torch.ones(2, 70, 90, dtype=torch.long))
    output.loss.backward()
    assert output.logits.shape == (2, 5, 70, 90)
    assert model.backbone.encoder.stem.conv1.conv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_backbone_of_a_trained_model(tmp_path):
    """The encoder of an OffSeg, by the Auto class alone."""
    model = small_model()
    model.save_pretrained(tmp_path)
    # Past AutoBackbone's own `from_pretrained`, which asks the Hub about folders too.
    load = super(AutoBackbone.__base__, AutoBackbone).from_pretrained
    backbone, report = load(tmp_path, out_features=["stage2", "stage4"], output_loading_info=True)
    assert type(backbone) is OffSegBackbone and not any(report.values())
    pixel_values = images(1, 3, 64, 96)
    expected = model(pixel_values, output_hidden_states=True).hidden_states
    maps = backbone(pixel_values).feature_maps
    assert_same_outputs(maps, (expected[1], expected[3]))
    assert backbone.channels == [16, 32]


def test_encoder_of_a_backbone_checkpoint(tmp_path):
    """A backbone's folder initializes the encoder of OffSeg through `from_pretrained` alone."""
    backbone = EfficientFormerV2Backbone(EfficientFormerV2Config(**SMALL))
    backbone.save_pretrained(tmp_path)
    model, report = OffSegForSemanticSegmentation.from_pretrained(
        tmp_path, config=OffSegConfig(**(SMALL | SMALL_DECODER)), output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not any(name.startswith("encoder.") for name in report["missing_keys"])
    loaded = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    assert_same_weights(loaded, backbone)


def test_sides_are_rounded_up_in_arithmetic_that_exports():
    """Divisions of an exported graph truncate, so the dividend is never negative: the same for every side."""
    pixel_values = images(1, 3, 70, 90)
    maps = F.avg_pool2d(pad_to_stride(pixel_values), 4)
    for height in range(1, 71):
        cropped = crop_to_stride(maps, pixel_values[..., :height, :], 4)
        assert cropped.shape[-2:] == (math.ceil(height / 4), 23)


def test_second_derivatives_and_torch_func():
    model, labels = small_model(), torch.zeros(1, 64, 64, dtype=torch.long)
    pixel_values = images(1, 3, 64, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixel_values).logits.pow(2).sum(), pixel_values, create_graph=True)
    (second,) = torch.autograd.grad(gradient.pow(2).sum(), pixel_values)
    assert second.isfinite().all() and second.abs().max() > 0

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters):
        return torch.func.functional_call(
            model, (parameters, buffers), (pixel_values.detach(),), {"labels": labels}
        ).loss

    gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), parameters.values(), allow_unused=True)
    scale = max(gradient.abs().max() for gradient in expected)
    for name, gradient in zip(parameters, expected):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale.item())
