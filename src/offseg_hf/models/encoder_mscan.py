"""The multi-scale convolutional attention network (MSCAN), the encoder of SegNeXt.

Paper: "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation" (https://arxiv.org/abs/2209.08575).
Source: HVision-NKU/OffSeg @ 1414f6d, mmseg/models/backbones/mscan.py. Changed here: maps stay maps (they are never
flattened to tokens), and every block knows an equal with less arithmetic for inference.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import (
    ConvAdd,
    ConvGelu,
    ConvNorm,
    DropPath,
    bias_of,
    channels_last,
    frozen,
    scale_and_shift,
    scale_output,
    with_class,
)


STRIP_SIZES = (7, 11, 21)


class MscanEncoder(nn.Module):
    """Four stages of convolutional blocks whose attention is a convolution too, each stage ended by a layer norm."""

    def __init__(
        self,
        num_channels: int,
        hidden_sizes: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int],
        drop_path_rate: float,
        layer_scale_init_value: float,
    ):
        super().__init__()
        self.stem = Stem(num_channels, hidden_sizes[0])
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(MscaBlock(channels, mlp_ratio, next(drop_path_rates), layer_scale_init_value) for _ in range(depth))
            )
            for channels, depth, mlp_ratio in zip(hidden_sizes, depths, mlp_ratios)
        )
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in hidden_sizes)
        self.downsample = nn.ModuleList(
            ConvNorm(channels, out_channels, kernel_size=3, stride=2)
            for channels, out_channels in pairwise(hidden_sizes)
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (batch, channels, height, width) -> feature maps at strides 4, 8, 16, 32, sides rounded up."""
        return self.forward_stages(self.stem(pixel_values))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return what the stem gives -> the four feature maps."""
        feature_maps = [self.norms[0](self.stages[0](x))]
        for downsample, stage, norm in zip(self.downsample, self.stages[1:], self.norms[1:]):
            feature_maps.append(norm(stage(downsample(feature_maps[-1]))))
        return feature_maps


class Stem(nn.Module):
    """Two convolutions that bring an image to stride 4."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels // 2, kernel_size=3, stride=2)
        self.conv2 = ConvNorm(out_channels // 2, out_channels, kernel_size=3, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / 4, width / 4), rounded up."""
        # Channels last in memory: 1x1 convolutions and the layer norms read pixels as rows.
        return self.conv2(F.gelu(self.conv1(channels_last(pixel_values))))


class MscaBlock(GradientCheckpointingLayer):
    """Multi-scale convolutional attention and a feed-forward layer, each after a batch norm and scaled per channel."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float, layer_scale_init_value: float):
        super().__init__()
        self.attention_norm = nn.BatchNorm2d(channels)
        self.attention = MultiScaleAttention(channels)
        self.attention_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.mlp_norm = nn.BatchNorm2d(channels)
        self.mlp = ConvMlp(channels, channels * mlp_ratio)
        self.mlp_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.layer_scale_init_value = layer_scale_init_value
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        x = x + self.drop_path(self.attention_scale * self.attention(self.attention_norm(x)))
        return x + self.drop_path(self.mlp_scale * self.mlp(self.mlp_norm(x)))

    def fused(self) -> nn.Module:
        """Return the same block with its norms and scales inside of the convolutions beside them."""
        return FusedMscaBlock(self)


class FusedMscaBlock(nn.Module):
    """A block at inference.

    Attention adds what it is given, the normed input: on the block's own shortcut that is a factor per channel, and a
    constant that the last bias takes.
    """

    def __init__(self, block: MscaBlock):
        super().__init__()
        attention, mlp = block.attention, block.mlp
        scale, shift = fold_into_next(block.attention_norm, attention.in_proj)
        scale_output(attention.out_proj, block.attention_scale)
        attention.out_proj.bias = frozen(bias_of(attention.out_proj) + block.attention_scale.flatten() * shift)
        self.shortcut_scale = frozen(1 + block.attention_scale * scale[:, None, None])
        self.in_proj = with_class(attention.in_proj, ConvGelu)
        self.gate = attention.gate
        self.out_proj = with_class(attention.out_proj, ConvAdd)
        fold_into_next(block.mlp_norm, mlp.expand)
        scale_output(mlp.project, block.mlp_scale)
        self.expand = mlp.expand
        self.depthwise = with_class(mlp.depthwise, ConvGelu)
        self.project = with_class(mlp.project, ConvAdd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        x = self.out_proj(self.gate(self.in_proj(x)), x * self.shortcut_scale)
        return self.project(self.depthwise(self.expand(x)), x)


class MultiScaleAttention(nn.Module):
    """Weighs every pixel, channel by channel, with what is around it at several scales."""

    def __init__(self, channels: int):
        super().__init__()
        self.in_proj = nn.Conv2d(channels, channels, 1)
        self.gate = MultiScaleGate(channels)
        self.out_proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return x + self.out_proj(self.gate(F.gelu(self.in_proj(x))))


class MultiScaleGate(nn.Module):
    """A local depthwise convolution and, beside it, pairs of horizontal and vertical strips, summed to a weight."""

    def __init__(self, channels: int):
        super().__init__()
        depthwise = partial(nn.Conv2d, channels, channels, groups=channels)
        self.local = depthwise(kernel_size=5, padding=2)
        self.strips = nn.ModuleList(
            nn.Sequential(
                depthwise(kernel_size=(1, size), padding=(0, size // 2)),
                depthwise(kernel_size=(size, 1), padding=(size // 2, 0)),
            )
            for size in STRIP_SIZES
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        context = local = self.local(x)
        for strips in self.strips:
            context = context + strips(local)
        return self.mix(context) * x


class ConvMlp(nn.Module):
    """A feed-forward layer that also looks at the pixels next to each."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden_channels, 1)
        self.depthwise = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels)
        self.project = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return self.project(F.gelu(self.depthwise(self.expand(x))))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of maps (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (batch, channels, height, width) pixel by pixel."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def fold_into_next(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Let `conv` do the work of the batch norm before it, in place and for inference.

    Args:
        norm: The batch norm, which then is not needed.
        conv: 1x1, so that there is no padding that a norm would not reach.

    Returns:
        The factor and the summand per channel (channels,) that the norm was.
    """
    scale, shift = scale_and_shift(norm)
    conv.bias = frozen(bias_of(conv) + conv.weight.flatten(1) @ shift)
    conv.weight = frozen(conv.weight * scale[:, None, None])
    return scale, shift
