"""What takes the place of a classifier is, from a warm start, that classifier."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

from offseg_hf import OffsetLearning
from offseg_hf.models.offset_classifier import offset_classifier, replace_classifier
from offseg_hf.models.offset_learning import OffsetLearningOptions
from tests.comparison import assert_same_outputs


CONVOLUTIONS = {
    "1x1": {"kernel_size": 1},
    "1x1 without bias": {"kernel_size": 1, "bias": False},
    "1x1 padded": {"kernel_size": 1, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 without padding": {"kernel_size": 3, "bias": False},
    "3x3 dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "4x4 same": {"kernel_size": 4, "padding": "same"},  # one more on the right and at the bottom
    "1x3 reflected": {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": "reflect"},
    "5x3 circular": {"kernel_size": (5, 3), "padding": (2, 1), "padding_mode": "circular", "dilation": (1, 1)},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_continued(arguments):
    conv = nn.Conv2d(8, 5, **arguments).double()
    head = offset_classifier(conv, OffsetLearningOptions(warm_start=True))
    pixels = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(head(pixels), conv(pixels), rtol=1e-12, atol=1e-12)
    head(pixels).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_what_others_read_of_the_layer_is_there(kernel_size):
    """MobileNetV2 pads by the stride, the window and the dilation of the layer that follows."""
    conv = nn.Conv2d(8, 5, kernel_size, dilation=2, padding=1)
    head = offset_classifier(conv, OffsetLearningOptions(warm_start=True))
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(head, name) == getattr(conv, name)
    linear = offset_classifier(nn.Linear(8, 5), OffsetLearningOptions(warm_start=True))
    assert (linear.in_features, linear.out_features) == (8, 5)


@pytest.mark.parametrize("shape", [(2, 8), (2, 7, 8), (2, 3, 4, 8), (2, 2, 3, 4, 8)])
def test_linear_is_continued(shape):
    linear = nn.Linear(8, 5).double()
    head = offset_classifier(linear, OffsetLearningOptions(warm_start=True))
    features = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 2:
        with pytest.raises(ValueError, match=r"expected \(batch, ..., channels\), got \(2, 8\)"):
            head(features)
    else:
        torch.testing.assert_close(head(features), linear(features), rtol=1e-12, atol=1e-12)


def test_linear_is_offset_learning_with_channels_last():
    head = offset_classifier(nn.Linear(8, 5), OffsetLearningOptions(warm_start=False))
    plain = OffsetLearning(5, 8)
    plain.load_state_dict(head.state_dict())
    pixels = torch.randn(2, 8, 6, 7)
    assert_same_outputs(head(pixels.permute(0, 2, 3, 1)), plain(pixels).permute(0, 2, 3, 1))


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 40, 1), nn.Conv2d(8, 40, 3), nn.Linear(64, 40)])
def test_from_scratch(layer):
    head = offset_classifier(layer, OffsetLearningOptions(warm_start=False, use_class_offset=False))
    (head,) = (module for module in head.modules() if isinstance(module, OffsetLearning))
    assert head.class_representation.shape == (1, 40, layer.weight[0].numel())
    assert head.class_offset_proj is None and head.bias is None and head.logit_norm is not None
    for weight in (head.class_representation, head.feature_offset_proj.weight):
        assert abs(weight.std().item() - 0.02) < 0.002


@pytest.mark.parametrize("warm_start", [True, False])
def test_device_dtype_and_mode_are_the_layers(warm_start):
    options = OffsetLearningOptions(warm_start=warm_start)
    head = offset_classifier(nn.Conv2d(8, 5, 3, dtype=torch.bfloat16).eval(), options)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in head.modules())
    head = offset_classifier(nn.Linear(8, 5, device="meta"), options)
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}
    assert head.training


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(8, 4, 3, stride=2), r"stride 1 and without groups.*got Conv2d\(8, 4.*stride=\(2, 2\)"),
        (nn.Conv2d(8, 4, 1, groups=2), "groups=2"),
        (nn.ConvTranspose2d(8, 4, 2), "got a ConvTranspose2d"),
        (nn.Conv2d(8, 1, 1), "one output.*two classes"),
        (nn.Linear(8, 1), "one output.*two classes"),
        (OffsetLearning(4, 8), "offset learning already"),
    ],
)
def test_no_classifier_of_pixels(layer, message):
    model = nn.Sequential(nn.Identity(), layer)
    with pytest.raises(ValueError, match=r"^Sequential\.1 cannot be replaced by offset learning: .*" + message):
        replace_classifier(model, "1", OffsetLearningOptions())
    assert model[1] is layer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("head.clasifier", r"no submodule 'head\.clasifier'.* nearby: head\.conv, head\.classifier$"),
        ("head.classifier.weight", r"nearby: head\.conv, head\.classifier$"),
        ("neck", r"nearby: stem, head\.conv, head\.classifier$"),
        ("", "no submodule ''"),
    ],
)
def test_unknown_name(name, message):
    head = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3), "classifier": nn.Conv2d(8, 4, 1)})
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "depthwise": nn.Conv2d(8, 8, 3, groups=8), "head": head})
    with pytest.raises(ValueError, match=message):
        replace_classifier(model, name, OffsetLearningOptions())


def test_state_dict_of_the_other_start():
    def heads(kernel_size):
        layer = nn.Conv2d(8, 4, kernel_size)
        options = [OffsetLearningOptions(warm_start=warm_start) for warm_start in (True, False)]
        return [nn.Sequential(offset_classifier(layer, option)) for option in options]

    for kernel_size in (1, 3):
        continued, new = heads(kernel_size)
        with pytest.raises(RuntimeError, match="warm_start=False and is loaded into one with warm_start=True: build"):
            continued.load_state_dict(new.state_dict())
        with pytest.raises(RuntimeError, match="build the model with warm_start=True"):
            new.load_state_dict(continued.state_dict(), strict=False)
        for copy in (deepcopy(continued), pickle.loads(pickle.dumps(continued))):
            copy.load_state_dict(continued.state_dict())
