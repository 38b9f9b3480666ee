"""The all-MLP pixel decoder: projects every feature map, upsamples and concatenates them at stride 4.

Papers: SegFormer (https://arxiv.org/abs/2105.15203); the plain decoder of OffSeg's ablation
(https://arxiv.org/abs/2508.08811, Table 6).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNorm, lateral_convs


class MlpPixelDecoder(nn.Module):
    """Fuses the encoder's feature maps with 1x1 convolutions and bilinear upsampling alone."""

    def __init__(
        self,
        in_channels: list[int],
        lateral_channels: list[int],
        out_channels: int,
        norm: Callable[[int], nn.Module] = partial(nn.GroupNorm, 32),
    ):
        super().__init__()
        self.lateral_convs = lateral_convs(in_channels, lateral_channels, norm)
        self.output_conv = ConvNorm(sum(lateral_channels), out_channels, bias=False, norm=norm)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Maps (batch, in_channels[i], height / 2 ** i, width / 2 ** i) -> (batch, out_channels, height, width)."""
        laterals = [conv(feature_map).relu() for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        size = laterals[0].shape[-2:]
        upsampled = [F.interpolate(lateral, size=size, mode="bilinear") for lateral in laterals]
        return self.output_conv(torch.cat(upsampled, dim=1)).relu()
