"""CARAFE: equal to unfolded neighborhoods, weighted and summed, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_hf.models.layers import weighted_gather
from offseg_hf.models.pixel_decoder_freqfusion import carafe, reassemble
from tests.comparison import assert_same_gradients, assert_same_outputs


def unfolded(features: Tensor, kernels: Tensor, scale: int) -> Tensor:
    size = int(kernels.shape[-1] ** 0.5)
    height, width = features.shape[-2:]
    neighbors = F.unfold(features, size, padding=size // 2).unflatten(1, (-1, size**2)).unflatten(3, (height, width))
    for axis in (-2, -1):
        neighbors = neighbors.repeat_interleave(scale, dim=axis)
    return (neighbors * kernels.permute(0, 3, 1, 2)[:, None]).sum(dim=2)


def example(size: int, scale: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 7, generator=generator, dtype=dtype)
    kernels = torch.randn(2, 5 * scale, 7 * scale, size**2, generator=generator, dtype=dtype)
    return features.requires_grad_(), kernels.requires_grad_()


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_equals_unfolding(size, scale):
    features, kernels = example(size, scale)
    output, expected = carafe(features, kernels, scale), unfolded(features, kernels, scale)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(output, (features, kernels), upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (features, kernels), upstream))


def test_gradient_is_the_one_of_the_operators():
    """Those that a compiler sees, which makes one of its own."""
    features, kernels = example(5, 2, torch.float32)
    outputs = [function(features, kernels, 2) for function in (carafe, reassemble)]
    assert_same_outputs(*outputs)
    assert_same_gradients(*[torch.autograd.grad(output.square().sum(), (features, kernels)) for output in outputs])


def test_gradient_in_half_precision():
    """As good as the type allows: sums over hundreds of neighbors are not rounded one by one."""
    inputs = example(5, 2, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    gradients, expected = (torch.autograd.grad(carafe(*x, 2).square().sum(), x) for x in (inputs, exact))
    for gradient, right in zip(gradients, expected):
        assert (gradient - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("fixed", [0, 1], ids=["features", "kernels"])
def test_one_of_the_two_is_fixed(fixed):
    inputs = example(3, 2)
    inputs[fixed].requires_grad_(False)
    expected = torch.autograd.grad(unfolded(*inputs, 2).square().sum(), inputs[1 - fixed])
    torch.testing.assert_close(torch.autograd.grad(carafe(*inputs, 2).square().sum(), inputs[1 - fixed]), expected)


@pytest.mark.parametrize("scale", [1, 2])
def test_gradients_have_gradients(scale):
    """Second derivatives, whichever of the two is wanted."""
    features, kernels = example(3, scale)

    def apply(features, kernels):
        return carafe(features, kernels, scale)

    inputs = features[:1, :2, :2, :2].detach().requires_grad_(), kernels[:1, : 2 * scale, : 2 * scale].detach()
    both = inputs[0], inputs[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(apply, both) and torch.autograd.gradgradcheck(apply, both)
    assert torch.autograd.gradgradcheck(apply, inputs)
    assert torch.autograd.gradgradcheck(apply, (inputs[0].detach(), both[1]))


def test_a_weighted_gather_has_second_derivatives():
    generator = torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3), (5, 4)))
    indices = torch.randint(6, (5, 4), generator=generator)
    inputs = rows.requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda rows, weights: weighted_gather(rows, indices, weights), inputs)


def test_torch_func():
    """Gradients of transforms are those of autograd; for each sample too."""
    features, kernels = (x.detach() for x in example(3, 2))

    def loss(features, kernels):
        return carafe(features, kernels, 2).pow(3).sum()

    gradients = torch.func.grad(loss, argnums=(0, 1))(features, kernels)
    leaves = features.clone().requires_grad_(), kernels.clone().requires_grad_()
    torch.testing.assert_close(gradients, torch.autograd.grad(loss(*leaves), leaves))
    per_sample = torch.func.vmap(torch.func.grad(lambda f, k: loss(f[None], k[None]), argnums=(0, 1)))
    with pytest.warns(UserWarning, match="performance drop"):  # torch has no rule for embedding_bag
        torch.testing.assert_close(per_sample(features, kernels), gradients)
