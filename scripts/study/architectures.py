"""The plain models of the study: THE table of what they are made of, and where their weights come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import MobileNetV2ForSemanticSegmentation

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation
from offseg_hf.models.layers import FixedBatchNorm2d, MlpPixelDecoder
from study.network import CHANNELS, EfficientNetLite0, Encoder, Segmenter


LATERAL_CHANNELS = (32, 32, 64, 128)  # of OffSeg-T
MLP_CHANNELS, FREQFUSION_CHANNELS, DEEPLAB_CHANNELS = 128, 256, 256
# Of MobileNetV2's blocks: where its strides are 4, 8 and 16, and the end.
MOBILENET_DEPTHS = (2, 5, 12, 16)


@dataclass(frozen=True)
class Architecture:
    """A plain model.

    Args:
        title: In headings.
        parts: Makes the pretrained encoder, of its weights, and the pixel decoder.
        channels: Of what the classifier sees.
    """

    title: str
    parts: Callable[[Path], tuple[Encoder, nn.Module]]
    channels: int

    def build(self, weights: Path, num_classes: int) -> Segmenter:
        """Return the model with a new classifier."""
        model = Segmenter(*self.parts(weights), self.channels, num_classes)
        return model.to(memory_format=torch.channels_last)


def lite0_mlp(weights: Path) -> tuple[Encoder, nn.Module]:
    """Make EfficientNet-Lite0 of its file, and OffSeg's plain pixel decoder."""
    return EfficientNetLite0().load(weights), MlpPixelDecoder(CHANNELS, LATERAL_CHANNELS, MLP_CHANNELS)


def lite0_freqfusion(weights: Path) -> tuple[Encoder, nn.Module]:
    """Make EfficientNet-Lite0 of its file, and the pixel decoder of an OffSeg-T, initialized as there."""
    config = OffSegConfig.from_size("t", hidden_sizes=list(CHANNELS), depths=[0] * 4, mlp_ratios=[[]] * 4)
    return EfficientNetLite0().load(weights), OffSegForSemanticSegmentation(config).pixel_decoder


def deeplabv3(weights: Path) -> tuple[Encoder, nn.Module]:
    """Take a trained DeepLabV3 of transformers, a folder, apart; without dropout, as the others."""
    model = MobileNetV2ForSemanticSegmentation.from_pretrained(weights, classifier_dropout_prob=0.0)
    fix_batch_norms(model)
    network = model.mobilenet_v2
    return Encoder(network.conv_stem, network.layer, MOBILENET_DEPTHS, 127.5, 127.5), DeepLabDecoder(model)


class DeepLabDecoder(nn.Module):
    """All of DeepLabV3's head but its classifier.

    Args:
        model: Whose head it is.
    """

    def __init__(self, model: MobileNetV2ForSemanticSegmentation):
        super().__init__()
        self.head = model.segmentation_head
        self.head.classifier = nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the last of the encoder's maps (batch, 320, height, width) to (batch, 256, height, width)."""
        return self.head(maps[-1])


def fix_batch_norms(model: nn.Module) -> None:
    """Let all batch norms normalize by their own statistics in training too, as those of the other encoder do."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            fixed = FixedBatchNorm2d(norm.num_features, norm.eps)
            fixed.load_state_dict(norm.state_dict())
            model.set_submodule(name, fixed)


ARCHITECTURES = {
    "lite0-mlp": Architecture("EfficientNet-Lite0, plain pixel decoder", lite0_mlp, MLP_CHANNELS),
    "lite0-freqfusion": Architecture("EfficientNet-Lite0, FreqFusion", lite0_freqfusion, FREQFUSION_CHANNELS),
    "deeplabv3": Architecture("DeepLabV3 on MobileNetV2, trained on VOC", deeplabv3, DEEPLAB_CHANNELS),
}
