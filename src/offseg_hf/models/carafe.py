"""CARAFE, content-aware reassembly of features, as one weighted gather, and its gradient as another.

Paper: https://arxiv.org/abs/1905.02188. mmcv's operator exists for CUDA only and is the usual reason to compile it.
Here every output pixel is a bag: `F.embedding_bag` sums the rows (pixels) of its neighbourhood, weighted by its
kernel, without ever unfolding the neighbourhoods. It runs, differentiates, compiles and exports on any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_gather(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sums `rows[indices]` weighted by `weights`.

    rows: (num_rows, channels); indices, weights: (num_bags, bag_size). Returns (num_bags, channels).
    """
    weights = weights.to(rows.dtype)
    gathered = F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights)
    if is_recorded(rows, weights):
        return GatherGradient.apply(gathered, rows, indices, weights)
    return gathered


def is_recorded(*tensors: Tensor) -> bool:
    """Whether eager autograd wants the gradient for one of these; a compiler takes what it is given apart itself."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return any(tensor.requires_grad for tensor in tensors)


class GatherGradient(torch.autograd.Function):
    """A weighted gather as it is, with a gradient that has a gradient: that of `embedding_bag` has none.

    Where the gradient is not recorded, `embedding_bag` computes it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gathered: Tensor, rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        return gathered.view_as(gathered)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        if not torch.is_grad_enabled():
            return gradient, None, None, None
        rows, indices, weights = ctx.saved_tensors
        given = (weights[..., None] * gradient[:, None]).flatten(0, 1)  # (num_bags * bag_size, channels)
        row_gradient = torch.zeros_like(rows).index_add(0, indices.flatten(), given)
        return None, row_gradient, None, products(rows, indices, gradient)


def products(rows: Tensor, indices: Tensor, bags: Tensor) -> Tensor:
    """The dot products of each of `bags` (num_bags, channels) with its rows: (num_bags, bag_size)."""
    return (rows.index_select(0, indices.flatten()).unflatten(0, indices.shape) * bags[:, None]).sum(dim=-1)


def reassembly_kernels(logits: Tensor) -> Tensor:
    """(batch, size ** 2, height, width) -> kernels (batch, height, width, size ** 2) that sum to one."""
    return logits.permute(0, 2, 3, 1).softmax(dim=-1)


def carafe(features: Tensor, kernels: Tensor, scale: int = 1) -> Tensor:
    """Reassembles every output pixel from the neighbourhood of the pixel it lies in, with a kernel of its own.

    features: (batch, channels, height, width), taken as zero outside; kernels: (batch, height * scale, width * scale,
    size ** 2). Returns (batch, channels, height * scale, width * scale), channels last in memory.
    """
    if is_recorded(features):
        return FeatureGradient.apply(reassemble(features.detach(), kernels, scale), features, kernels, scale)
    return reassemble(features, kernels, scale)


class FeatureGradient(torch.autograd.Function):
    """The output of a reassembly of detached features, as it is, with its gradient for the features.

    `embedding_bag` has one of its own, which sorts the indices of all neighbourhoods: half of the operator's time. The
    gradient for the kernels is the output's own, unless it is recorded: then it depends on the features too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, features: Tensor, kernels: Tensor, scale: int) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, features, kernels, ctx.scale = inputs
        ctx.save_for_backward(features, kernels)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        features, kernels = ctx.saved_tensors
        feature_gradient = distribute(gradient, kernels, ctx.scale)
        if not torch.is_grad_enabled():
            return gradient, feature_gradient, None, None
        rows, indices = neighborhoods(features, int(kernels.shape[-1] ** 0.5), ctx.scale)
        bags = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        return None, feature_gradient, products(rows, indices, bags).view_as(kernels), None


def reassemble(features: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """[`carafe`], differentiated operator by operator."""
    batch, channels, *low_size = features.shape
    height, width = (scale * length for length in low_size)
    rows, indices = neighborhoods(features, int(kernels.shape[-1] ** 0.5), scale)
    output = weighted_gather(rows, indices, kernels.flatten(0, 2))
    return output.view(batch, height, width, channels).permute(0, 3, 1, 2)


def neighborhoods(features: Tensor, size: int, scale: int) -> tuple[Tensor, Tensor]:
    """The pixels of features and of a margin of zeros, as rows (pixels, channels), and which of them every output
    pixel is made of: (batch * height * scale * width * scale, size ** 2)."""
    rows, padded_size = pad_to_rows(features, size // 2)
    corners = (torch.arange(scale * length, device=features.device) // scale for length in features.shape[2:])
    return rows, window_indices(*corners, size, features.shape[0], padded_size)


def distribute(x: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """The transpose of [`reassemble`]: to every pixel of the features, what it has given to each output pixel.

    Those are the output pixels in a window around it, with the kernels of all of them: again a weighted gather.
    """
    batch, channels, *high_size = x.shape
    size = int(kernels.shape[-1] ** 0.5)
    height, width = (length // scale for length in high_size)
    margin = scale * (size // 2)
    rows, padded_size = pad_to_rows(x, margin)
    corners = (torch.arange(length, device=x.device) * scale for length in (height, width))
    indices = window_indices(*corners, size * scale, batch, padded_size)
    # Seen from an output pixel the features lie the other way: what is first in a window is last in the kernel.
    place = size - 1 - torch.arange(size * scale, device=x.device) // scale
    place = (place[:, None] * size + place).flatten()
    kernel_rows, _ = pad_to_rows(kernels.permute(0, 3, 1, 2), margin)
    weights = kernel_rows.flatten().take(indices * size**2 + place)
    return weighted_gather(rows, indices, weights).view(batch, height, width, channels).permute(0, 3, 1, 2)


def pad_to_rows(x: Tensor, margin: int) -> tuple[Tensor, tuple[int, int]]:
    """(batch, channels, height, width) with zeros around it, as rows (pixels, channels), and its height and width."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))  # width, then height
    return padded.reshape(-1, x.shape[1]), tuple(padded.shape[1:3])


def window_indices(top: Tensor, left: Tensor, size: int, batch: int, map_size: tuple[int, int]) -> Tensor:
    """Which rows of `batch` maps the windows with these corners hold: (batch * len(top) * len(left), size ** 2)."""
    height, width = map_size
    side = torch.arange(size, device=top.device)
    corner = (top[:, None] * width + left).flatten()
    indices = corner[:, None] + (side[:, None] * width + side).flatten()
    image = torch.arange(batch, device=top.device)[:, None, None] * (height * width)
    return (indices + image).flatten(0, 1)
