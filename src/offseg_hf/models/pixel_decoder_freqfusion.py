"""The FreqFusion pixel decoder: fuses the encoder's feature maps, coarse to fine, into one map at stride 4.

Papers: FreqFusion (TPAMI 2024, https://arxiv.org/abs/2408.12879) as used by OffSeg (https://arxiv.org/abs/2508.08811).
Source: HVision-NKU/OffSeg @ 1414f6d, mmseg/models/decode_heads/{offseg_head,freqfusion}.py. Changed here: options that
OffSeg never sets are gone, kernels are normalized once, similarities are dot products of vectors normalized once, and
the sampling positions are written relative to the pixel itself.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import ConvNorm, gathered_products, is_recorded, lateral_convs, products, weighted_gather


NUM_GROUPS = 4  # channel groups, each of which is sampled with displacements of its own
LOW_PASS_SIZE = 5
HIGH_PASS_SIZE = 3
MAX_DISPLACEMENT = 2**14  # pixels; half precision holds it, and beyond lies no image


class FreqFusionPixelDecoder(nn.Module):
    """Projects the feature maps, then fuses them from the coarsest to the finest with [`FreqFusion`]."""

    def __init__(self, in_channels: Sequence[int], lateral_channels: Sequence[int], out_channels: int):
        super().__init__()
        group_norm = partial(nn.GroupNorm, 32)
        self.lateral_convs = lateral_convs(in_channels, lateral_channels, group_norm)
        self.fusions = nn.ModuleList()
        *finer, fused_channels = lateral_channels
        for channels in reversed(finer):
            self.fusions.append(FreqFusion(channels, fused_channels))
            fused_channels += channels
        self.output_conv = ConvNorm(fused_channels, out_channels, bias=False, norm=group_norm)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Map (batch, in_channels[i], height / 2 ** i, width / 2 ** i) -> (batch, out_channels, height, width)."""
        *finer, fused = [conv(feature_map).relu() for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        for fusion, feature_map in zip(self.fusions, reversed(finer)):
            fused = fusion(feature_map, fused)
        return self.output_conv(fused).relu()


class FreqFusion(GradientCheckpointingLayer):
    """Upsamples a coarse map, sharpens a fine one, and concatenates the two.

    With adaptive low-pass kernels the one, with adaptive high-pass kernels the other.
    """

    def __init__(self, high_res_channels: int, low_res_channels: int):
        super().__init__()
        channels = (high_res_channels + low_res_channels) // 4
        self.high_res_compressor = nn.Conv2d(high_res_channels, channels, 1)
        self.low_res_compressor = nn.Conv2d(low_res_channels, channels, 1)
        self.low_pass_generator = nn.Conv2d(channels, LOW_PASS_SIZE**2, 3, padding=1)
        self.high_pass_generator = nn.Conv2d(channels, HIGH_PASS_SIZE**2, 3, padding=1)
        self.sampler = SimilarityGuidedSampler(channels)

    def forward(self, high_res: Tensor, low_res: Tensor) -> Tensor:
        """(batch, c, 2 * height, 2 * width), (batch, d, height, width) -> (batch, c + d, 2 * height, 2 * width)."""
        compressed_high, compressed_low = self.high_res_compressor(high_res), self.low_res_compressor(low_res)

        # Both kernels see both maps. The coarse map's half of them is brought to the fine grid by the kernels so far.
        high_logits = self.high_pass_generator(compressed_high)
        compressed_high = sharpen(compressed_high, high_logits)
        low_logits = self.low_pass_generator(compressed_high)
        low_logits = low_logits + upsample(self.low_pass_generator(compressed_low), low_logits)
        high_logits = high_logits + upsample(self.high_pass_generator(compressed_low), low_logits)

        high_res = sharpen(high_res, high_logits)
        low_res = self.sampler(compressed_high, compressed_low, upsample(low_res, low_logits))
        return concatenate_groups(high_res, low_res)


def upsample(features: Tensor, kernel_logits: Tensor) -> Tensor:
    """Double the resolution with one low-pass kernel per output pixel."""
    return carafe(features, reassembly_kernels(kernel_logits), scale=2)


def sharpen(features: Tensor, kernel_logits: Tensor) -> Tensor:
    """Add what a low-pass kernel per pixel takes away, the high frequencies."""
    return 2 * features - carafe(features, reassembly_kernels(kernel_logits))


def concatenate_groups(*maps: Tensor) -> Tensor:
    """Concatenate maps of equal size inside each of the channel groups, not group after group."""
    grouped = [x.permute(0, 2, 3, 1).unflatten(-1, (NUM_GROUPS, -1)) for x in maps]
    return torch.cat(grouped, dim=-1).flatten(3).permute(0, 3, 1, 2)


class SimilarityGuidedSampler(nn.Module):
    """Resamples an upsampled map, each channel group at displaced positions, to straighten object boundaries.

    The displacements come from the similarity of every pixel to its neighbors, in the fine and in the coarse map.
    """

    def __init__(self, channels: int):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        coordinates = 2 * NUM_GROUPS  # (x, y) per group
        self.displacement = conv(8, 4 * coordinates)
        self.displacement_scale = conv(channels, 4 * coordinates)
        self.high_res_displacement = conv(8, coordinates)
        self.high_res_displacement_scale = conv(channels, coordinates)
        self.high_res_norm = nn.GroupNorm(channels // 8, channels)
        self.low_res_norm = nn.GroupNorm(channels // 8, channels)

    def forward(self, high_res: Tensor, low_res: Tensor, upsampled: Tensor) -> Tensor:
        """Resample `upsampled` (batch, any, 2 * height, 2 * width) at displaced positions.

        The guides are (batch, channels, 2 * height, 2 * width) and (batch, channels, height, width).
        """
        high_res, low_res = self.high_res_norm(high_res), self.low_res_norm(low_res)
        displacement = self.high_res_displacement(local_similarity(high_res)) + F.pixel_shuffle(
            self.displacement(local_similarity(low_res)), 2
        )
        scale = self.high_res_displacement_scale(high_res) + F.pixel_shuffle(self.displacement_scale(low_res), 2)
        # The network speaks of pixels of the coarse map, which are two of the fine one.
        return sample_displaced(upsampled, 2 * displacement * scale.sigmoid())


def local_similarity(features: Tensor, distance: int = 2) -> Tensor:
    """Return the cosine similarity of every pixel to its eight neighbors, row by row; 0 outside of the map.

    Args:
        features: (batch, channels, height, width).
        distance: Of the neighbors, in pixels.

    Returns:
        (batch, 8, height, width).
    """
    height, width = features.shape[2:]
    normalized = F.normalize(features.permute(0, 2, 3, 1), dim=-1, eps=1e-8)
    rows = F.pad(normalized, (0, 0, distance, distance, distance, distance)).flatten(1, 2)
    row_length = width + 2 * distance
    before, after = [], []
    # A neighbor is a constant number of rows away, and similarity is symmetric: four products give all eight.
    for steps in (row_length + 1, row_length, row_length - 1, 1):
        shift = distance * steps
        similarity = (rows[:, :-shift] * rows[:, shift:]).sum(dim=-1)
        before.append(F.pad(similarity, (shift, 0)))
        after.append(F.pad(similarity, (0, shift)))
    similarities = torch.stack(before + after[::-1], dim=1).unflatten(2, (-1, row_length))
    return similarities[:, :, distance : distance + height, distance : distance + width]


def sample_displaced(features: Tensor, displacement: Tensor) -> Tensor:
    """Sample `features` bilinearly, every pixel and channel group at its own position plus a displacement.

    Args:
        features: (batch, channels, height, width), continued beyond its border.
        displacement: In pixels, (batch, 2 * groups, height, width), the groups' x first.

    Returns:
        The shape of `features`.
    """
    batch, channels, height, width = features.shape
    # Corners are integers, displaced from the pixel itself: half precision has no room for a position in the image.
    whole = displacement.detach().floor()
    x, y = to_pairs(displacement - whole)
    # Integers one by one: WebGPU splits floats alone.
    left, top = (side.to(torch.int32) for side in to_pairs(whole.clamp(-MAX_DISPLACEMENT, MAX_DISPLACEMENT)))
    arange = partial(torch.arange, dtype=torch.int32, device=features.device)
    left, top = left + arange(width)[:, None], top + arange(height)[:, None, None]
    left, right = left.clamp(0, width - 1), (left + 1).clamp(0, width - 1)
    top, bottom = top.clamp(0, height - 1), (top + 1).clamp(0, height - 1)

    image = arange(batch)[:, None, None, None] * height
    corners = [(top, left), (top, right), (bottom, left), (bottom, right)]
    indices = torch.stack([((image + j) * width + i) * NUM_GROUPS + arange(NUM_GROUPS) for j, i in corners], dim=-1)
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], dim=-1)
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels // NUM_GROUPS)
    sampled = weighted_gather(rows, indices.flatten(0, -2), weights.flatten(0, -2))
    return sampled.view(batch, height, width, channels).permute(0, 3, 1, 2)


def to_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, 2 * groups, height, width) -> the two (batch, height, width, groups), for horizontal and vertical."""
    horizontal, vertical = x.permute(0, 2, 3, 1).unflatten(-1, (2, -1)).unbind(-2)
    return horizontal, vertical


# CARAFE, content-aware reassembly of features (https://arxiv.org/abs/1905.02188), as one weighted gather, and its
# gradient as another. mmcv's operator exists for CUDA only and is the usual reason to compile it. Here every output
# pixel is a bag: `F.embedding_bag` sums the rows (pixels) of its neighborhood, weighted by its kernel, without ever
# unfolding the neighborhoods. It runs, differentiates and compiles on any device.


def reassembly_kernels(logits: Tensor) -> Tensor:
    """(batch, size ** 2, height, width) -> kernels (batch, height, width, size ** 2) that sum to one."""
    return logits.permute(0, 2, 3, 1).softmax(dim=-1)


def carafe(features: Tensor, kernels: Tensor, scale: int = 1) -> Tensor:
    """Reassemble every output pixel from the neighborhood of the pixel it lies in, with a kernel of its own.

    Args:
        features: (batch, channels, height, width), taken as zero outside.
        kernels: (batch, height * scale, width * scale, size ** 2).
        scale: Output pixels per pixel of `features`, along a side.

    Returns:
        (batch, channels, height * scale, width * scale), channels last in memory.
    """
    if is_recorded(features):
        return FeatureGradient.apply(reassemble(features.detach(), kernels, scale), features, kernels, scale)
    return reassemble(features, kernels, scale)


class FeatureGradient(torch.autograd.Function):
    """The output of a reassembly of detached features, as it is, with its gradient for the features.

    `embedding_bag` has one of its own, which sorts the indices of all neighborhoods: half of the operator's time. The
    gradient for the kernels is the output's own, unless it is recorded: then it depends on the features too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, features: Tensor, kernels: Tensor, scale: int) -> Tensor:
        """Return `output`, which has been computed of detached `features`."""
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the gradient is computed of."""
        _, features, kernels, ctx.scale = inputs
        ctx.save_for_backward(features, kernels)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        """Return the gradients of `output`, `features` and, if it is to be differentiated again, `kernels`."""
        features, kernels = ctx.saved_tensors
        feature_gradient = distribute(gradient, kernels, ctx.scale)
        if not torch.is_grad_enabled():
            return gradient, feature_gradient, None, None
        rows, indices = neighborhoods(features, int(kernels.shape[-1] ** 0.5), ctx.scale)
        bags = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        return None, feature_gradient, products(rows, indices, bags).view_as(kernels), None


def reassemble(features: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """Do what [`carafe`] does, differentiated operator by operator."""
    batch, channels, height, width = features.shape
    size = int(kernels.shape[-1] ** 0.5)
    if torch.compiler.is_exporting():  # the output pixels that lie in one pixel share its neighborhood
        kernels = swap_blocks(kernels, (batch * height, scale, width, scale * size**2))
        output = gathered_products(*neighborhoods(features, size, 1), kernels.reshape(-1, scale**2, size**2))
        output = swap_blocks(output, (batch * height, width, scale, scale * channels))
    else:
        output = weighted_gather(*neighborhoods(features, size, scale), kernels.flatten(0, 2))
    return output.reshape(batch, scale * height, scale * width, channels).permute(0, 3, 1, 2)


def swap_blocks(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return `x`, of that shape, with its two middle axes swapped."""
    return x.reshape(shape).transpose(1, 2)


def neighborhoods(features: Tensor, size: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return the pixels of features, and which of them every output pixel is made of.

    Rows (pixels, channels), a margin of zeros among them, and indices (batch * height * scale * width * scale, size **
    2).
    """
    rows, padded_size = pad_to_rows(features, size // 2)
    arange = partial(torch.arange, dtype=torch.int32, device=features.device)
    top, left = (arange(length)[:, None].expand(-1, scale).flatten() for length in features.shape[2:])
    return rows, window_indices(top, left, size, features.shape[0], padded_size)


def distribute(x: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """Return the transpose of [`reassemble`]: to every pixel of the features, what it has given to each output pixel.

    Those are the output pixels in a window around it, with the kernels of all of them: again a weighted gather.
    """
    batch, channels, *high_size = x.shape
    size = int(kernels.shape[-1] ** 0.5)
    height, width = (length // scale for length in high_size)
    margin = scale * (size // 2)
    rows, padded_size = pad_to_rows(x, margin)
    top, left = (torch.arange(length, device=x.device) * scale for length in (height, width))
    indices = window_indices(top, left, size * scale, batch, padded_size)
    # Seen from an output pixel the features lie the other way: what is first in a window is last in the kernel.
    place = size - 1 - torch.arange(size * scale, device=x.device) // scale
    place = (place[:, None] * size + place).flatten()
    kernel_rows, _ = pad_to_rows(kernels.permute(0, 3, 1, 2), margin)
    weights = kernel_rows.flatten().take(indices * size**2 + place)
    return weighted_gather(rows, indices, weights).view(batch, height, width, channels).permute(0, 3, 1, 2)


def pad_to_rows(x: Tensor, margin: int) -> tuple[Tensor, tuple[int, int]]:
    """(batch, channels, height, width) with zeros around it, as rows (pixels, channels), and its height and width."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))  # width, then height
    return padded.reshape(-1, x.shape[1]), (padded.shape[1], padded.shape[2])


def window_indices(top: Tensor, left: Tensor, size: int, batch: int, map_size: tuple[int, int]) -> Tensor:
    """Return which rows of `batch` maps the windows with these corners hold.

    Indices (batch * len(top) * len(left), size ** 2).
    """
    height, width = map_size
    side = torch.arange(size, dtype=top.dtype, device=top.device)
    corner = (top[:, None] * width + left).flatten()
    indices = corner[:, None] + (side[:, None] * width + side).flatten()
    image = torch.arange(batch, dtype=top.dtype, device=top.device)[:, None, None] * (height * width)
    return (indices + image).flatten(0, 1)
