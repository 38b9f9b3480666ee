"""The loss of logits that are upsampled band by band is that of logits which are upsampled whole."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.models.modeling_utils import segmentation_loss
from tests.sizes import sizes_of_results


SIZES = [((8, 11), (32, 44)), ((16, 11), (37, 50)), ((9, 9), (9, 9)), ((20, 12), (10, 7)), ((1, 5), (6, 20))]


def problem(old, new, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, *old, generator=generator, dtype=dtype) * 3
    labels = torch.randint(7, (2, *new), generator=generator)
    labels[:, : new[0] // 3][labels[:, : new[0] // 3] < 3] = 255
    return logits.requires_grad_(), labels


def whole(logits, labels, weights=None):
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    weights = None if weights is None else logits.new_tensor(weights)
    return F.cross_entropy(logits, labels, weights, ignore_index=255, reduction="none").mean()


@pytest.mark.parametrize("weights", [None, [0.5, 1, 2, 1, 3, 0, 1]])
@pytest.mark.parametrize("band_values", [1, 2 * 7 * 44 * 5, 2**22])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bands_change_neither_loss_nor_gradient(old, new, band_values, weights):
    logits, labels = problem(old, new)
    expected = whole(logits, labels, weights)
    loss = segmentation_loss(logits, labels, 255, weights, band_values)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_gradients_by_differences():
    logits, labels = problem((3, 4), (7, 9))
    assert torch.autograd.gradcheck(lambda logits: segmentation_loss(logits, labels, 255, None, 2 * 7 * 9), logits)
    assert torch.autograd.gradgradcheck(lambda logits: segmentation_loss(logits, labels, 255, None, 2 * 7 * 9), logits)


def test_nothing_labeled_is_no_loss():
    logits, labels = problem((8, 11), (32, 44))
    loss = segmentation_loss(logits, torch.full_like(labels, 255), 255, None, 1)
    assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upsampled_and_summed_in_single(dtype):
    logits, labels = problem((16, 11), (37, 50), torch.float32)
    half = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = segmentation_loss(half, labels, 255, [0.5, 1, 2, 1, 3, 0, 1], 2 * 7 * 50 * 4)
    expected = whole(half.detach().float(), labels, [0.5, 1, 2, 1, 3, 0, 1])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_in_functional_transforms():
    logits, labels = problem((8, 11), (32, 44))
    gradient = torch.func.grad(lambda logits: segmentation_loss(logits, labels, 255, None, 1000))(logits.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole(logits, labels), logits)[0])


def test_all_classes_at_all_pixels_are_never_there():
    logits, labels = torch.randn(1, 150, 32, 32, requires_grad=True), torch.randint(150, (1, 128, 128))
    with sizes_of_results() as sizes:
        loss = segmentation_loss(logits, labels, 255, None, 150 * 128 * 8)
    loss.backward()
    assert max(sizes) <= max(150 * 128 * 8, logits.numel())
