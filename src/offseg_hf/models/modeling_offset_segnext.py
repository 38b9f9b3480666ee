"""MSCAN as a backbone, and SegNeXt with offset learning for semantic segmentation, as transformers models.

Papers: "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation"
(https://arxiv.org/abs/2209.08575) and "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial
and Class Feature Alignment" (https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_offset_segnext import MscanConfig, MscanEncoderConfig, OffsetSegNextConfig
from .encoder_mscan import MscaBlock, MscanEncoder
from .modeling_utils import EncoderBackboneMixin, OffsetModelMixin, SemanticSegmentationMixin
from .offset_learning import OffsetLearning
from .pixel_decoder_hamburger import HamburgerPixelDecoder, NonNegativeMatrixFactorization


class OffsetSegNextPreTrainedModel(OffsetModelMixin, PreTrainedModel):
    """Initialization of the weights, and what transformers wants to know of the models."""

    config: MscanEncoderConfig
    base_model_prefix = "segnext"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MscaBlock", "Hamburger"]

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem, which is to images what embeddings are to tokens."""
        return self.encoder.stem

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize a module as the official code does; parents come after their children and overrule them."""
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            super()._init_weights(module)
        elif isinstance(module, MscaBlock):
            init.constant_(module.attention_scale, module.layer_scale_init_value)
            init.constant_(module.mlp_scale, module.layer_scale_init_value)
        elif isinstance(module, NonNegativeMatrixFactorization):
            init.copy_(module.bases, module.initial_bases())
        elif isinstance(module, OffsetLearning):
            module.reset_parameters(self.config.initializer_range)
            if self.config.start_without_offsets:
                module.start_without_offsets()


class MscanBackbone(EncoderBackboneMixin, OffsetSegNextPreTrainedModel):
    """MSCAN as a backbone for any model of transformers that takes one (UperNet, Mask2Former, ...)."""

    config: MscanConfig

    def __init__(self, config: MscanConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = build_encoder(config)
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and the stages'."""
        stem = self.encoder.stem(pixel_values)
        return (stem, *self.encoder.forward_stages(stem))


class OffsetSegNextBackbone(MscanBackbone):
    """The encoder of a trained SegNeXt as a backbone."""

    config: OffsetSegNextConfig
    _keys_to_ignore_on_load_unexpected = [r"^(pixel_decoder|offset_learning)\."]


class OffsetSegNextForSemanticSegmentation(SemanticSegmentationMixin, OffsetSegNextPreTrainedModel):
    """SegNeXt whose classifier is offset learning: an encoder, a pixel decoder and offset learning."""

    config: OffsetSegNextConfig
    other_auto_classes = {"AutoBackbone": "modeling_offset_segnext.OffsetSegNextBackbone"}

    def __init__(self, config: OffsetSegNextConfig):
        super().__init__(config)
        self.encoder = build_encoder(config)
        self.pixel_decoder = HamburgerPixelDecoder(
            config.hidden_sizes[1:],
            config.decoder_hidden_size,
            config.num_bases,
            config.nmf_train_steps,
            config.nmf_eval_steps,
            config.nmf_seed,
        )
        self.offset_learning = OffsetLearning(
            config.num_labels,
            config.decoder_hidden_size,
            config.use_class_offset,
            config.use_feature_offset,
            class_offset_drop_path_rate=config.class_offset_drop_path_rate,
        )
        self.post_init()

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, ceil(height / 8), ceil(width / 8)) and the encoder's feature maps."""
        feature_maps = self.encoder(pixel_values)
        pixel_features = self.pixel_decoder(feature_maps)
        logits = self.offset_learning(pixel_features)
        return logits, feature_maps


def build_encoder(config: MscanEncoderConfig) -> MscanEncoder:
    """Build the encoder that a configuration describes."""
    return MscanEncoder(
        num_channels=config.num_channels,
        hidden_sizes=config.hidden_sizes,
        depths=config.depths,
        mlp_ratios=config.mlp_ratios,
        drop_path_rate=config.drop_path_rate,
        layer_scale_init_value=config.layer_scale_init_value,
    )


__all__ = [
    "MscanBackbone",
    "OffsetSegNextBackbone",
    "OffsetSegNextForSemanticSegmentation",
    "OffsetSegNextPreTrainedModel",
]
