"""EfficientFormerV2 as a backbone and OffSeg for semantic segmentation, as transformers models.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d. Changed here: images of any size
(padded to a multiple of 32, logits cropped), and attention biases that cannot go stale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_offseg import EfficientFormerV2Config, EncoderConfig, OffSegConfig
from .encoder_efficientformer_v2 import AttentionBias, ConvMlp, EfficientFormerV2Encoder, EncoderBlock
from .layers import FixedBatchNorm2d, MlpPixelDecoder, channels_last
from .modeling_utils import EncoderBackboneMixin, OffsetModelMixin, SemanticSegmentationMixin
from .offset_learning import OffsetLearning
from .pixel_decoder_freqfusion import FreqFusion, FreqFusionPixelDecoder


STRIDE = 32  # of the coarsest feature map


class OffSegPreTrainedModel(OffsetModelMixin, PreTrainedModel):
    """Initialization of the weights, and what transformers wants to know of the models."""

    config: EncoderConfig
    base_model_prefix = "offseg"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock", "FreqFusion"]

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem, which is to images what embeddings are to tokens."""
        return self.encoder.stem

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize a module as the official code does; parents come after their children and overrule them."""
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            super()._init_weights(module)
        elif isinstance(module, FixedBatchNorm2d):
            for ones, zeros in ((module.weight, module.bias), (module.running_var, module.running_mean)):
                init.ones_(ones)
                init.zeros_(zeros)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, ConvMlp):
            for conv in (module.expand.conv, module.project.conv):
                init.trunc_normal_(conv.weight, std=std)
                init.zeros_(conv.bias)
        elif isinstance(module, EncoderBlock):
            init.constant_(module.mlp_scale, module.layer_scale_init_value)
            if module.attention is not None:
                init.constant_(module.attention_scale, module.layer_scale_init_value)
        elif isinstance(module, AttentionBias):
            init.zeros_(module.table)
        elif isinstance(module, FreqFusion):
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d):
                    init.xavier_uniform_(conv.weight)
                    init.zeros_(conv.bias)
            for generator in (module.low_pass_generator, module.high_pass_generator):
                init.normal_(generator.weight, std=0.001)
        elif isinstance(module, FreqFusionPixelDecoder | MlpPixelDecoder):
            for conv_norm in (*module.lateral_convs, module.output_conv):
                init.kaiming_normal_(conv_norm.conv.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, OffsetLearning):
            module.reset_parameters(std)
            if self.config.start_without_offsets:
                module.start_without_offsets()


class EfficientFormerV2Backbone(EncoderBackboneMixin, OffSegPreTrainedModel):
    """EfficientFormerV2 as a backbone for any model of transformers that takes one (UperNet, Mask2Former, ...)."""

    config: EfficientFormerV2Config

    def __init__(self, config: EfficientFormerV2Config):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = build_encoder(config)
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and the stages', without what shows the padding."""
        stem = self.encoder.stem(pad_to_stride(pixel_values))
        maps = zip((4, 4, 8, 16, 32), (stem, *self.encoder.forward_stages(stem)))
        return tuple(crop_to_stride(x, pixel_values, stride) for stride, x in maps)


class OffSegBackbone(EfficientFormerV2Backbone):
    """The encoder of a trained OffSeg as a backbone."""

    config: OffSegConfig
    _keys_to_ignore_on_load_unexpected = [r"^(pixel_decoder|offset_learning)\."]


class OffSegForSemanticSegmentation(SemanticSegmentationMixin, OffSegPreTrainedModel):
    """OffSeg, the paper's Figure 4: an encoder, a pixel decoder and offset learning."""

    config: OffSegConfig
    other_auto_classes = {"AutoBackbone": "modeling_offseg.OffSegBackbone"}

    def __init__(self, config: OffSegConfig):
        super().__init__(config)
        self.encoder = build_encoder(config)
        pixel_decoder = FreqFusionPixelDecoder if config.pixel_decoder == "freqfusion" else MlpPixelDecoder
        self.pixel_decoder = pixel_decoder(config.hidden_sizes, config.lateral_channels, config.decoder_hidden_size)
        self.offset_learning = OffsetLearning(
            config.num_labels,
            config.decoder_hidden_size,
            config.use_class_offset,
            config.use_feature_offset,
            class_offset_drop_path_rate=config.class_offset_drop_path_rate,
        )
        self.post_init()

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, ceil(height / 4), ceil(width / 4)) and the encoder's feature maps."""
        feature_maps = self.encoder(pad_to_stride(pixel_values))
        pixel_features = self.pixel_decoder(feature_maps)
        logits = self.offset_learning(pixel_features)
        return crop_to_stride(logits, pixel_values, 4), feature_maps


def build_encoder(config: EncoderConfig) -> EfficientFormerV2Encoder:
    """Build the encoder that a configuration describes."""
    return EfficientFormerV2Encoder(
        num_channels=config.num_channels,
        hidden_sizes=config.hidden_sizes,
        depths=config.depths,
        mlp_ratios=config.mlp_ratios,
        num_attention_blocks=config.num_attention_blocks,
        image_size=config.image_size,
        drop_path_rate=config.drop_path_rate,
        layer_scale_init_value=config.layer_scale_init_value,
        learn_batch_norm_statistics=config.learn_batch_norm_statistics,
    )


def pad_to_stride(pixel_values: Tensor) -> Tensor:
    """Pad with zeros at the bottom and the right, up to a multiple of the encoder's stride.

    Channels come last in memory, the layout in which convolutions are fastest and pixels are rows.
    """
    # Padded by a constant and cut: graphs for any size go on with multiples of the stride, in simple terms.
    padded = F.pad(pixel_values, (0, STRIDE - 1, 0, STRIDE - 1))
    height, width = (length // STRIDE * STRIDE for length in padded.shape[-2:])
    return channels_last(padded.narrow(2, 0, height).narrow(3, 0, width))


def crop_to_stride(x: Tensor, pixel_values: Tensor, stride: int) -> Tensor:
    """Return the part of `x`, a map at `stride` of the padded image, that shows the image."""
    # Not `-(-height // stride)`: an exported graph divides towards zero.
    height, width = ((length + stride - 1) // stride for length in pixel_values.shape[-2:])
    return x[..., :height, :width]


__all__ = [
    "EfficientFormerV2Backbone",
    "OffSegBackbone",
    "OffSegForSemanticSegmentation",
    "OffSegPreTrainedModel",
]
