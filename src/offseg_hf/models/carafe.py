"""CARAFE, content-aware reassembly of features, as one weighted gather.

Paper: https://arxiv.org/abs/1905.02188. mmcv's operator exists for CUDA only and is the usual reason to compile it.
Here every output pixel is a bag: `F.embedding_bag` sums the rows (pixels) of its neighbourhood, weighted by its
kernel, without ever unfolding the neighbourhoods. It runs, differentiates, compiles and exports on any device.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_gather(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sums `rows[indices]` weighted by `weights`.

    rows: (num_rows, channels); indices, weights: (num_bags, bag_size). Returns (num_bags, channels).
    """
    return F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))


def reassembly_kernels(logits: Tensor) -> Tensor:
    """(batch, size ** 2, height, width) -> kernels (batch, height, width, size ** 2) that sum to one."""
    return logits.permute(0, 2, 3, 1).softmax(dim=-1)


def carafe(features: Tensor, kernels: Tensor, scale: int = 1) -> Tensor:
    """Reassembles every output pixel from the neighbourhood of the pixel it lies in, with a kernel of its own.

    features: (batch, channels, height, width), taken as zero outside; kernels: (batch, height * scale, width * scale,
    size ** 2). Returns (batch, channels, height * scale, width * scale), channels last in memory.
    """
    batch, channels, height, width = features.shape
    size = int(kernels.shape[-1] ** 0.5)
    radius = size // 2
    rows = F.pad(features.permute(0, 2, 3, 1), (0, 0, radius, radius, radius, radius))  # pad width, then height
    padded_height, padded_width = height + 2 * radius, width + 2 * radius

    arange = partial(torch.arange, device=features.device)
    corner = arange(height * scale)[:, None] // scale * padded_width + arange(width * scale) // scale
    neighbour = arange(size)[:, None] * padded_width + arange(size)
    indices = corner.flatten()[:, None] + neighbour.flatten()  # (height * width, size ** 2)
    indices = indices + arange(batch)[:, None, None] * (padded_height * padded_width)

    output = weighted_gather(rows.reshape(-1, channels), indices.flatten(0, 1), kernels.flatten(0, 2))
    return output.view(batch, height * scale, width * scale, channels).permute(0, 3, 1, 2)
