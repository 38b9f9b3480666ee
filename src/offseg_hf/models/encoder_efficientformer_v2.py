"""The EfficientFormerV2 encoder, at the resolutions of dense prediction.

Paper: "Rethinking Vision Transformers for MobileNet Size and Speed" (https://arxiv.org/abs/2212.08059). Source:
HVision-NKU/OffSeg @ 1414f6d, mmseg/models/backbones/efficientformer_v2.py. Changed here: every block knows an equal
with less arithmetic for inference.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention2d, AttentionDownsample
from .layers import ConvAdd, ConvGelu, ConvNorm, DropPath, FixedBatchNorm2d, fuse, scale_output, with_class


class EfficientFormerV2Encoder(nn.Module):
    """Four stages of convolutional blocks, the last two of which end in blocks with global attention."""

    def __init__(
        self,
        num_channels: int,
        hidden_sizes: list[int],
        depths: list[int],
        mlp_ratios: list[list[int]],
        num_attention_blocks: int,
        image_size: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        learn_batch_norm_statistics: bool,
    ):
        super().__init__()
        conv_norm = partial(ConvNorm, norm=nn.BatchNorm2d if learn_batch_norm_statistics else FixedBatchNorm2d)
        self.stem = Stem(num_channels, hidden_sizes[0], conv_norm)
        self.stages = nn.ModuleList()
        self.downsample = nn.ModuleList()
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (channels, depth, ratios) in enumerate(zip(hidden_sizes, depths, mlp_ratios)):
            grid_size = image_size // 2 ** (i + 2)
            blocks = []
            for j, (mlp_ratio, drop_path) in enumerate(zip(ratios, drop_path_rates)):
                block = partial(EncoderBlock, channels, mlp_ratio, drop_path, layer_scale_init_value, conv_norm)
                if i < 2 or j < depth - num_attention_blocks:
                    blocks.append(block())
                else:
                    stride = 2 if i == 2 else 1
                    blocks.append(block(Attention2d(channels, grid_size // stride, stride, conv_norm)))
            self.stages.append(nn.Sequential(*blocks))
        for i, (channels, out_channels) in enumerate(zip(hidden_sizes, hidden_sizes[1:])):
            attention = AttentionDownsample(channels, out_channels, image_size // 16, conv_norm) if i == 2 else None
            self.downsample.append(Downsample(channels, out_channels, conv_norm, attention))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (batch, channels, height, width), sides a multiple of 32 -> feature maps at strides 4, 8, 16, 32."""
        return self.forward_stages(self.stem(pixel_values))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """What the stem gives -> the four feature maps."""
        feature_maps = [self.stages[0](x)]
        for downsample, stage in zip(self.downsample, self.stages[1:]):
            feature_maps.append(stage(downsample(feature_maps[-1])))
        return feature_maps


class Stem(nn.Module):
    """Two convolutions that bring an image to stride 4."""

    def __init__(self, in_channels: int, out_channels: int, conv_norm: Callable[..., ConvNorm]):
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels // 2, kernel_size=3, stride=2)
        self.conv2 = conv_norm(out_channels // 2, out_channels, kernel_size=3, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(pixel_values))))

    def fused(self) -> nn.Module:
        return nn.Sequential(*(with_class(fuse(conv), ConvGelu) for conv in (self.conv1, self.conv2)))


class EncoderBlock(GradientCheckpointingLayer):
    """An inverted residual MLP, after attention in the blocks that have it; each branch scaled, per channel."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: int,
        drop_path: float,
        layer_scale_init_value: float,
        conv_norm: Callable[..., ConvNorm],
        attention: nn.Module | None = None,
    ):
        super().__init__()
        self.attention = attention
        if attention is not None:
            self.attention_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.mlp = ConvMlp(channels, channels * mlp_ratio, conv_norm)
        self.mlp_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.layer_scale_init_value = layer_scale_init_value
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            x = x + self.drop_path(self.attention_scale * self.attention(x))
        return x + self.drop_path(self.mlp_scale * self.mlp(x))

    def fused(self) -> nn.Module:
        """The same block with its scales inside of the convolutions that end its branches."""
        mlp = FusedConvMlp(self.mlp, self.mlp_scale)
        if self.attention is None:
            return mlp
        attention = fuse(self.attention)
        scale_output(attention.project, self.attention_scale)
        return nn.Sequential(Residual(attention), mlp)


class Residual(nn.Module):
    """What is left of a residual branch at inference."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ConvMlp(nn.Module):
    """A feed-forward layer with a depthwise convolution between its two 1x1 convolutions."""

    def __init__(self, channels: int, hidden_channels: int, conv_norm: Callable[..., ConvNorm]):
        super().__init__()
        self.expand = conv_norm(channels, hidden_channels)
        self.depthwise = conv_norm(hidden_channels, hidden_channels, kernel_size=3, groups=hidden_channels)
        self.project = conv_norm(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.depthwise(F.gelu(self.expand(x)))))


class FusedConvMlp(nn.Module):
    """A feed-forward layer at inference, with its scale and its shortcut."""

    def __init__(self, mlp: ConvMlp, scale: Tensor):
        super().__init__()
        self.expand = with_class(fuse(mlp.expand), ConvGelu)
        self.depthwise = with_class(fuse(mlp.depthwise), ConvGelu)
        self.project = with_class(fuse(mlp.project), ConvAdd)
        scale_output(self.project, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)), x)


class Downsample(nn.Module):
    """Halves the resolution with a strided convolution, beside which the last one of the encoder attends."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv_norm: Callable[..., ConvNorm],
        attention: nn.Module | None = None,
    ):
        super().__init__()
        self.projection = conv_norm(in_channels, out_channels, kernel_size=3, stride=2)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(x)
        return projected if self.attention is None else projected + self.attention(x)
