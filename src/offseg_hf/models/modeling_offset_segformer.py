"""SegFormer with offset learning, as a transformers model.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811) and "SegFormer: Simple and Efficient Design for Semantic Segmentation
with Transformers" (https://arxiv.org/abs/2105.15203). Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/models/decode_heads/segformer_head_offset_learning.py and mmseg/models/backbones/mit.py. The encoder is
transformers' own, with the layer norms' eps and the initialization of the source.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerModel, SegformerPreTrainedModel
from transformers import initialization as init
from transformers.models.segformer.modeling_segformer import SegformerAttention, SegformerMixMLP

from .configuration_offset_segformer import OffsetSegformerConfig
from .layers import MlpPixelDecoder
from .modeling_utils import OffsetModelMixin, SemanticSegmentationMixin
from .offset_learning import OffsetLearning


class OffsetSegformerPreTrainedModel(OffsetModelMixin, SegformerPreTrainedModel):
    """Initialization and names of the weights; all else that transformers wants to know is as for SegFormer."""

    config: OffsetSegformerConfig
    # Not whole stages, as for SegFormer: of the first one, FSDP2 shards the input embeddings by themselves.
    _no_split_modules = ["SegformerLayer"]

    def get_input_embeddings(self) -> nn.Module:
        """Return the projection of patches, which is to images what embeddings are to tokens."""
        return self.segformer.stages[0].patch_embeddings.proj

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize a module as the official code does; the model comes last and overrules the encoder's own way."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, OffsetLearning):
            module.reset_parameters(self.config.initializer_range)
            if self.config.start_without_offsets:
                module.start_without_offsets()
        elif isinstance(module, OffsetSegformerForSemanticSegmentation):
            init_encoder(module.segformer)


class OffsetSegformerForSemanticSegmentation(SemanticSegmentationMixin, OffsetSegformerPreTrainedModel):
    """SegFormer whose classifier is offset learning, at 1/8 of the image's size.

    `from_pretrained` takes repositories of SegFormer too, such as "nvidia/mit-b2" (with `decoder_hidden_size=256`, for
    the decoder of the paper): it loads the encoder, and reports all else.
    """

    def __init__(self, config: OffsetSegformerConfig):
        super().__init__(config)
        self.segformer = SegformerModel(config)
        for module in self.segformer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps  # transformers leaves it at torch's default
        self.pixel_decoder = MlpPixelDecoder(
            config.hidden_sizes,
            [config.decoder_hidden_size] * config.num_encoder_blocks,
            config.decoder_hidden_size,
            norm=nn.BatchNorm2d,
        )
        self.offset_learning = OffsetLearning(
            config.num_labels,
            config.decoder_hidden_size,
            config.use_class_offset,
            config.use_feature_offset,
            class_offset_drop_path_rate=config.class_offset_drop_path_rate,
        )
        self.segformer._no_split_modules = ["SegformerLayer"]  # those of all parts count
        self.post_init()

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, ceil(height / 4) // 2, ceil(width / 4) // 2) and the encoder's feature maps."""
        feature_maps = self.encode(pixel_values)
        pixel_features = F.max_pool2d(self.pixel_decoder(feature_maps), kernel_size=2)
        logits = self.offset_learning(pixel_features)
        return logits, feature_maps

    def encode(self, pixel_values: Tensor) -> list[Tensor]:
        """Return a feature map per stage, (batch, hidden_sizes[i], height / 2 ** (i + 2), width / 2 ** (i + 2)).

        Sides are rounded up.

        Raises:
            ValueError: for images (batch, num_channels, height, width) that have less than the stages need.
        """
        smallest = smallest_side(self.config)
        if min(pixel_values.shape[-2:]) < smallest:
            raise ValueError(
                f"images must have at least {smallest} pixels on either side, got {tuple(pixel_values.shape[-2:])}: "
                "resize or pad them"
            )
        feature_maps: list[Tensor] = []
        for stage in self.segformer.stages:
            feature_maps.append(stage(feature_maps[-1] if feature_maps else pixel_values))
        return feature_maps


def smallest_side(config: OffsetSegformerConfig) -> int:
    """Return the pixels that either side of an image needs for the sequence reductions and the pooling."""
    needed = 1
    for stage in reversed(range(config.num_encoder_blocks)):
        needed = max(needed, config.sr_ratios[stage], 2 if stage == 0 else 1)
        patch = config.patch_sizes[stage]
        needed = (needed - 1) * config.strides[stage] + patch - 2 * (patch // 2)
    return needed


@torch.no_grad()
def init_encoder(encoder: SegformerModel) -> None:
    """Initialize the encoder as the official code does, where transformers does not.

    That are convolutions, and layers that are a convolution or a part of a larger matrix in the official code.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel() // module.groups
            init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, SegformerMixMLP):
            for linear in (module.fc1, module.fc2):
                init.normal_(linear.weight, std=(2 / linear.out_features) ** 0.5)
        elif isinstance(module, SegformerAttention):
            for linear in (module.q_proj, module.k_proj, module.v_proj):
                bound = (6 / (4 * linear.in_features)) ** 0.5  # Xavier's, of the three as one
                init.uniform_(linear.weight, -bound, bound)


__all__ = ["OffsetSegformerForSemanticSegmentation", "OffsetSegformerPreTrainedModel"]
