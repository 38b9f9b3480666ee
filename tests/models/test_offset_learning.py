"""Offset learning against the formulas of the paper, in float64."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf import (
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffsetAlignment,
    OffsetLearning,
    OffsetSegformerConfig,
    OffsetSegformerForSemanticSegmentation,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
)
from tests.comparison import assert_same_outputs
from tests.oracle import PlainOffsetLearning


BRANCHES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_alignment(alignment: OffsetAlignment, classes: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Both offsets formed, pixel by pixel and class by class. (batch, K, C), (batch, C, H, W) -> (batch, K, H, W)"""
    height, width = pixels.shape[-2:]
    features = pixels.flatten(2).transpose(1, 2)
    attention = features @ classes.transpose(1, 2)  # (batch, pixels, classes)
    aligned_classes, aligned_features = classes, features
    if alignment.class_offset_proj is not None:
        gathered_pixels = torch.einsum("bnk,bnc->bkc", attention.softmax(dim=1), features)
        aligned_classes = classes + gathered_pixels @ alignment.class_offset_proj.weight.T
    if alignment.feature_offset_proj is not None:
        gathered_classes = torch.einsum("bnk,bkc->bnc", attention.softmax(dim=2), classes)
        aligned_features = features + gathered_classes @ alignment.feature_offset_proj.weight.T
    return torch.einsum("bnc,bkc->bkn", aligned_features, aligned_classes).unflatten(2, (height, width))


def strong(module: torch.nn.Module) -> torch.nn.Module:
    """With weights so large that offsets count."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("branches", BRANCHES)
def test_alignment(branches):
    alignment = strong(OffsetAlignment(8, *branches))
    classes, pixels = torch.randn(2, 5, 8), torch.randn(2, 8, 6, 7)
    expected = plain_alignment(alignment, classes, pixels)
    torch.testing.assert_close(alignment(classes, pixels), expected, rtol=1e-12, atol=1e-12)
    if any(branches):
        assert (expected - torch.einsum("bkc,bchw->bkhw", classes, pixels)).abs().max() > 0.5


def test_alignment_with_the_same_classes_for_all():
    alignment = strong(OffsetAlignment(8))
    classes, pixels = torch.randn(1, 5, 8), torch.randn(3, 8, 4, 4)
    assert_same_outputs(alignment(classes, pixels), alignment(classes.expand(3, -1, -1), pixels))


@pytest.mark.parametrize("branches", BRANCHES)
def test_learning(branches):
    head = strong(OffsetLearning(5, 8, *branches))
    plain = PlainOffsetLearning(5, 8, *branches)
    plain.load_state_dict(head.state_dict())
    pixels = torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(head(pixels), plain(pixels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize_logits", [True, False])
@pytest.mark.parametrize("num_classes", [5, 8, 9])
def test_without_gradients_products_are_of_whole_vectors(num_classes, normalize_logits):
    head = strong(OffsetLearning(num_classes, 8, normalize_logits=normalize_logits))
    pixels = torch.randn(2, 8, 6, 7)
    expected = head(pixels)
    with torch.no_grad():
        logits = head(pixels)
    assert logits.shape == (2, num_classes, 6, 7)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("branches", BRANCHES)
def test_learning_without_norm_adds_the_bias_to_every_comparison(branches):
    """The bias is part of the classifier that pixels and classes are first compared by, so of the attention too."""
    head = strong(OffsetLearning(5, 8, *branches, normalize_logits=False))
    pixels = torch.randn(2, 8, 6, 7)
    # A channel that is 1 in all pixels carries the bias through the plain formulas.
    alignment = OffsetAlignment(9, *branches)
    for proj, small in zip(alignment.offset_projs(), head.offset_projs()):
        torch.nn.init.zeros_(proj.weight)
        proj.weight.data[:8, :8] = small.weight
    classes = torch.cat([head.class_representation, head.bias[None, :, None]], dim=2).expand(2, -1, -1)
    with_one = torch.cat([pixels, torch.ones(2, 1, 6, 7)], dim=1)
    torch.testing.assert_close(head(pixels), plain_alignment(alignment, classes, with_one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("branches", BRANCHES)
def test_from_classifier(branches, bias):
    weight, bias = torch.randn(5, 8), torch.randn(5) if bias else None
    head = OffsetLearning.from_classifier(weight, bias, *branches)
    pixels = torch.randn(2, 8, 6, 7)
    expected = F.conv2d(pixels, weight[:, :, None, None], bias)
    torch.testing.assert_close(head(pixels), expected, rtol=1e-12, atol=1e-12)
    assert len(head.offset_projs()) == sum(branches)
    assert weight.data_ptr() != head.class_representation.data_ptr()  # a copy: the classifier may train on


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_from_classifier_keeps_the_dtype(dtype):
    head = OffsetLearning.from_classifier(torch.randn(5, 8, dtype=dtype), torch.randn(5, dtype=dtype))
    assert {parameter.dtype for parameter in head.parameters()} == {dtype}


def test_from_classifier_learns_in_every_parameter():
    """Projections that are zero have gradients: they start to move with the first step."""
    head = OffsetLearning.from_classifier(torch.randn(5, 8), torch.randn(5))
    F.cross_entropy(head(torch.randn(2, 8, 6, 7)), torch.randint(5, (2, 6, 7))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("normalize_logits", [True, False])
@pytest.mark.parametrize("branches", BRANCHES)
def test_gradients(branches, normalize_logits):
    """The formula that never forms the feature offset has the right derivatives, by finite differences."""
    head = strong(OffsetLearning(3, 4, *branches, normalize_logits=normalize_logits))
    names, values = zip(*head.named_parameters())

    def logits(pixels, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters)), pixels)

    pixels = torch.randn(1, 4, 2, 3, requires_grad=True)
    assert torch.autograd.gradcheck(logits, (pixels, *values))


def test_samples_do_not_see_each_other():
    head = strong(OffsetLearning(5, 8))
    pixels = torch.randn(3, 8, 6, 7)
    one_by_one = torch.cat([head(sample[None]) for sample in pixels])
    torch.testing.assert_close(head(pixels), one_by_one, rtol=1e-12, atol=1e-12)


def test_logits_are_normalized_over_classes():
    logits = OffsetLearning(5, 8)(torch.randn(2, 8, 6, 7) * 100)
    torch.testing.assert_close(logits.mean(dim=1), torch.zeros(2, 6, 7), rtol=0, atol=1e-9)
    torch.testing.assert_close(logits.var(dim=1, correction=0), torch.ones(2, 6, 7), rtol=0, atol=1e-2)


def test_initialization():
    head = OffsetLearning(64, 64)
    for weight in (head.class_representation, head.class_offset_proj.weight, head.feature_offset_proj.weight):
        assert abs(weight.std().item() - 0.02) < 0.001
    assert head.logit_norm.weight.eq(1).all() and head.logit_norm.bias.eq(0).all() and head.bias is None
    continued = OffsetLearning(64, 64, normalize_logits=False)
    assert continued.bias.eq(0).all() and continued.logit_norm is None
    head.start_without_offsets()
    assert all(proj.weight.eq(0).all() for proj in head.offset_projs())
    assert head.class_representation.std() > 0.01


def test_class_offsets_are_dropped_of_whole_images():
    """In training only: half of the images have none, the others have it twice as long."""
    head = strong(OffsetLearning(5, 8, class_offset_drop_path_rate=0.5))
    pixels = torch.randn(1, 8, 6, 7).expand(400, -1, -1, -1)
    weight = head.class_offset_proj.weight.data
    expected = {}
    for scale in (0, 1, 2):
        head.class_offset_proj.weight = torch.nn.Parameter(scale * weight)
        expected[scale] = head.eval()(pixels[:1])
    head.class_offset_proj.weight = torch.nn.Parameter(weight)
    assert_same_outputs(head(pixels), expected[1].expand(400, -1, -1, -1))
    logits = head.train()(pixels)
    dropped, kept = (logits.sub(expected[scale]).abs().amax(dim=(1, 2, 3)) < 1e-9 for scale in (0, 2))
    assert (dropped ^ kept).all() and 150 < dropped.sum() < 250


@pytest.mark.parametrize(
    "model_class, config",
    [
        (OffSegForSemanticSegmentation, OffSegConfig),
        (OffsetSegformerForSemanticSegmentation, OffsetSegformerConfig),
        (OffsetSegNextForSemanticSegmentation, OffsetSegNextConfig),
    ],
)
def test_class_offset_drop_path_of_the_models(model_class, config):
    with torch.device("meta"):
        assert model_class(config()).offset_learning.class_offset_drop_path.probability == 0
        head = model_class(config(class_offset_drop_path_rate=0.3)).offset_learning
    assert head.class_offset_drop_path.probability == 0.3
    with pytest.raises(ValueError, match=r"expected a share in \[0, 1\) .*, got 1"):
        model_class(config(class_offset_drop_path_rate=1))


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="expected at least 2 classes.*got 1"):
        OffsetLearning(1, 8)
    with pytest.raises(ValueError, match="at least 2 classes"):
        OffsetLearning.from_classifier(torch.randn(1, 8))
