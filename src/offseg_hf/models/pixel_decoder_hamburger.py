"""The Hamburger pixel decoder of SegNeXt: global context by factorizing the feature map into a few bases.

Papers: "Is Attention Better Than Matrix Decomposition?" (https://arxiv.org/abs/2109.04553) and SegNeXt
(https://arxiv.org/abs/2209.08575). Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/models/decode_heads/ham_head_offset_learning.py. Changed here: the bases that a factorization starts from are
fixed, where the official code draws them anew at every call; and at inference maps may be squeezed before they are
upsampled.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNorm, frozen


class HamburgerPixelDecoder(nn.Module):
    """Fuses the encoder's last feature maps at the resolution of the first of them, and gives them global context."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_bases: int,
        train_steps: int,
        eval_steps: int,
        seed: int,
    ):
        super().__init__()
        norm = partial(nn.GroupNorm, 32)
        self.squeeze = Squeeze(in_channels, out_channels, norm)
        factorization = NonNegativeMatrixFactorization(out_channels, num_bases, train_steps, eval_steps, seed)
        self.hamburger = Hamburger(out_channels, factorization, norm)
        self.output_conv = ConvNorm(out_channels, out_channels, bias=False, norm=norm)
        self.num_maps = len(in_channels)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Fuse feature maps, the last of which have `in_channels`.

        Returns:
            (batch, out_channels, height, width) of the first of those that are used.
        """
        x = self.squeeze(feature_maps[-self.num_maps :]).relu()
        return self.output_conv(self.hamburger(x)).relu()


class Squeeze(ConvNorm):
    """Brings feature maps to the size of the first, and all of them together to `out_channels`."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, norm: Callable[[int], nn.Module]):
        super().__init__(sum(in_channels), out_channels, bias=False, norm=norm)
        self.in_channels = list(in_channels)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Map (batch, in_channels[i], ...) each to one map (batch, out_channels, ...) of the first one's size."""
        size = feature_maps[0].shape[-2:]
        upsampled = [F.interpolate(x, size=size, mode="bilinear") for x in feature_maps[1:]]
        return super().forward(torch.cat([feature_maps[0], *upsampled], dim=1))

    def fused(self) -> nn.Module:
        """Return the same with each part of the convolution done where its map is still small."""
        return FusedSqueeze(self)


class FusedSqueeze(nn.Module):
    """`Squeeze` at inference: a 1x1 convolution and an interpolation may change places."""

    def __init__(self, squeeze: Squeeze):
        super().__init__()
        self.weights = nn.ParameterList(
            frozen(weight.contiguous()) for weight in squeeze.conv.weight.split(squeeze.in_channels, dim=1)
        )
        self.norm = squeeze.norm

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Do what [`Squeeze`] does."""
        first, *others = (F.conv2d(x, weight) for x, weight in zip(feature_maps, self.weights))
        for other in others:
            first += F.interpolate(other, size=first.shape[-2:], mode="bilinear")
        return self.norm(first)


class Hamburger(nn.Module):
    """Adds to a map the nearest map of low rank to its projection."""

    def __init__(self, channels: int, factorization: nn.Module, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.in_proj = nn.Conv2d(channels, channels, 1)
        self.factorization = factorization
        self.out_proj = ConvNorm(channels, channels, bias=False, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        low_rank = self.factorization(self.in_proj(x).relu())
        return (x + self.out_proj(low_rank)).relu_()


class NonNegativeMatrixFactorization(nn.Module):
    """Approximates the pixels of a map, all non-negative, by combinations of a few bases found for each image.

    Multiplicative updates (https://papers.nips.cc/paper/1861) from bases that depend on `seed` alone, so that an image
    has one result, whatever it is in a batch with.
    """

    epsilon = 1e-6
    bases: Tensor

    def __init__(self, channels: int, num_bases: int, train_steps: int, eval_steps: int, seed: int):
        super().__init__()
        self.shape = (1, channels, num_bases)
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.seed = seed
        self.register_buffer("bases", torch.empty(self.shape, dtype=torch.float32), persistent=False)
        self.reset_bases()

    def initial_bases(self) -> Tensor:
        """(1, channels, num_bases), float32, of length 1 each; on the CPU, whatever the default device is."""
        generator = torch.Generator().manual_seed(self.seed)
        return F.normalize(torch.rand(self.shape, generator=generator, dtype=torch.float32, device="cpu"), dim=1)

    def reset_bases(self) -> None:
        """Draw the bases again, where they are."""
        self.bases = self.initial_bases().to(self.bases.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move the bases, but never casts them: half precision would change them for good.

        Of all that moves or casts a model (`to`, `half`, `cuda`, ...) this alone is called of the modules inside.
        """
        super()._apply(fn, recurse)
        self.reset_bases()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) -> their approximations of rank `num_bases`."""
        # At least float32, under autocast too: sums over thousands of pixels overflow float16, and from step to step
        # the rounding of bfloat16 would pile up.
        with without_autocast(x.device.type):
            low_rank = self.factorize(x.flatten(2).to(torch.promote_types(x.dtype, torch.float32)))
        return low_rank.to(x.dtype).unflatten(2, x.shape[-2:])

    def factorize(self, x: Tensor) -> Tensor:
        """(batch, channels, pixels) -> bases @ coefficients, of the same shape."""
        pixels = x.transpose(1, 2)
        bases = self.bases.to(x.dtype)
        coefficients = (pixels @ bases).softmax(dim=-1)  # (batch, pixels, bases)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            coefficients = self.update(coefficients, pixels, bases)
            bases = self.update(bases, x, coefficients)
        coefficients = self.update(coefficients, pixels, bases)
        return bases @ coefficients.transpose(1, 2)

    def update(self, factor: Tensor, product: Tensor, other: Tensor) -> Tensor:
        """Return a `factor` (batch, n, bases) with which `factor @ other.T` is closer to `product` (batch, n, m)."""
        return factor * (product @ other) / (factor @ (other.transpose(1, 2) @ other) + self.epsilon)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off; where it is off, nothing of this gets into an exported graph."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
