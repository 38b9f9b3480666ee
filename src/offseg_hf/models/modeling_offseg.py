"""EfficientFormerV2 as a backbone and OffSeg for semantic segmentation, as transformers models.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d. Changed here: images of any size
(padded to a multiple of 32, logits cropped), and attention biases that cannot go stale.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .attention import AttentionBias
from .configuration_offseg import EfficientFormerV2Config, EncoderConfig, OffSegConfig
from .encoder_efficientformer_v2 import ConvMlp, EfficientFormerV2Encoder, EncoderBlock
from .layers import fuse
from .offset_learning import OffsetLearning
from .pixel_decoder_freqfusion import FreqFusion, FreqFusionPixelDecoder
from .pixel_decoder_mlp import MlpPixelDecoder
from .sliding_window import sliding_window_logits


STRIDE = 32  # of the coarsest feature map


@dataclass
class OffSegSemanticSegmenterOutput(SemanticSegmenterOutput):
    """[`SemanticSegmenterOutput`] and the windows that the logits were assembled from.

    windows (`torch.LongTensor` of shape `(batch_size, num_windows, 4)`, *optional*, returned when passed):
        Boxes (top, left, bottom, right); together they cover the part of the logits that is image, not padding.
    """

    windows: torch.LongTensor | None = None


class OffSegPreTrainedModel(PreTrainedModel):
    """Initialisation of the weights, and what transformers wants to know of the models."""

    config: EncoderConfig
    base_model_prefix = "offseg"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock", "FreqFusion"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As in the official code; parents come after their children and overrule them."""
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            super()._init_weights(module)
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
            init.trunc_normal_(module.class_representation, std=std)
            for proj in (module.class_offset_proj, module.feature_offset_proj):
                if proj is not None:
                    init.trunc_normal_(proj.weight, std=std)


class EfficientFormerV2Backbone(BackboneMixin, OffSegPreTrainedModel):
    """EfficientFormerV2 as a backbone for any model of transformers that takes one (UperNet, Mask2Former, ...)."""

    config: EfficientFormerV2Config
    has_attentions = False

    def __init__(self, config: EfficientFormerV2Config):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = build_encoder(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """Images (batch, num_channels, height, width) of any size -> the maps named by `config.out_features`.

        Stage i, and the stem as stage 1, gives (batch, channels, ceil(height / 2 ** (i + 1)), ceil(width / ...)).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        stem = self.encoder.stem(pad_to_stride(pixel_values))
        maps = zip((4, 4, 8, 16, 32), (stem, *self.encoder.forward_stages(stem)))
        hidden_states = tuple(crop_to_stride(x, pixel_values, stride) for stride, x in maps)
        return BackboneOutput(
            feature_maps=tuple(x for name, x in zip(self.stage_names, hidden_states) if name in self.out_features),
            hidden_states=hidden_states if output_hidden_states else None,
        )


class OffSegForSemanticSegmentation(OffSegPreTrainedModel):
    """OffSeg, the paper's Figure 4: an encoder, a pixel decoder and offset learning."""

    config: OffSegConfig
    accepts_loss_kwargs = False  # the loss is a mean over all pixels, which Trainer must not weigh anew

    def __init__(self, config: OffSegConfig):
        super().__init__(config)
        self.encoder = build_encoder(config)
        pixel_decoder = FreqFusionPixelDecoder if config.pixel_decoder == "freqfusion" else MlpPixelDecoder
        self.pixel_decoder = pixel_decoder(config.hidden_sizes, config.lateral_channels, config.decoder_hidden_size)
        self.offset_learning = OffsetLearning(
            config.num_labels, config.decoder_hidden_size, config.use_class_offset, config.use_feature_offset
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        windows: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> OffSegSemanticSegmenterOutput:
        """Segments images of any size, whole or window by window.

        pixel_values: (batch, num_channels, height, width).
        labels: class ids (batch, height, width), `config.semantic_loss_ignore_index` where there is none.
        windows: boxes (batch, num_windows, 4) as [`OffSegImageProcessor`] makes them. The logits of the windows are
            upsampled and averaged, so that logits have the size of `pixel_values`; without windows it is a quarter of
            that, rounded up.

        With `output_hidden_states`, `hidden_states` are the encoder's four feature maps; not with windows.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states and windows is None
        if windows is None:
            logits, hidden_states = self.segment(pixel_values)
        elif output_hidden_states:
            raise ValueError(
                "hidden states are those of one image: call the model with them or with windows, not both"
            )
        else:
            logits = sliding_window_logits(
                lambda crops: self.segment(crops)[0], pixel_values, windows, self.config.num_labels
            )

        loss = None
        if labels is not None:
            check_labels(labels, pixel_values, self.config.num_labels, self.config.semantic_loss_ignore_index)
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)

        return OffSegSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            windows=windows,
        )

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, ceil(height / 4), ceil(width / 4)) and the encoder's feature maps."""
        feature_maps = self.encoder(pad_to_stride(pixel_values))
        pixel_features = self.pixel_decoder(feature_maps)
        logits = self.offset_learning(pixel_features)
        return crop_to_stride(logits, pixel_values, 4), feature_maps

    def fuse(self) -> "OffSegForSemanticSegmentation":
        """A copy for inference that gives the same logits (to 2e-4 in float32) with less arithmetic.

        Batch norms, layer scales and query scales are folded into the convolutions beside them, and attention biases
        are kept. The copy can be moved, cast and compiled, but neither trained nor saved.
        """
        model = fuse(deepcopy(self).eval().requires_grad_(False))
        model.is_fused = True
        return model

    is_fused = False

    def save_pretrained(self, save_directory, *args, **kwargs):
        if self.is_fused:
            raise ValueError("a fused model is for inference only and cannot be saved: save the model it was made of")
        super().save_pretrained(save_directory, *args, **kwargs)


def build_encoder(config: EncoderConfig) -> EfficientFormerV2Encoder:
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
    """Zeros at the bottom and the right, up to a multiple of the encoder's stride; channels last in memory, the layout
    in which convolutions are fastest and pixels are rows."""
    height, width = pixel_values.shape[-2:]
    # Not `-width % STRIDE`: torch.compile cannot do with what may be negative.
    right, bottom = ((STRIDE - length % STRIDE) % STRIDE for length in (width, height))
    padded = F.pad(pixel_values, (0, right, 0, bottom))
    return padded.contiguous(memory_format=torch.channels_last)


def crop_to_stride(x: Tensor, pixel_values: Tensor, stride: int) -> Tensor:
    """The part of `x`, a map at `stride` of the padded image, that shows the image."""
    height, width = pixel_values.shape[-2:]
    return x[..., : -(-height // stride), : -(-width // stride)]


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy of the upsampled logits over all pixels; ignored ones count as zero, as in mmseg."""
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none").mean()


def check_pixel_values(pixel_values: Tensor, num_channels: int) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must have the shape (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}"
        )


def check_labels(labels: Tensor, pixel_values: Tensor, num_labels: int, ignore_index: int) -> None:
    expected = (len(pixel_values), *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must have the size of the images, (batch, height, width) = {expected}, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers (class ids), got {labels.dtype}")
    # On an accelerator the look at the values would wait for the queue; there, out of range is a device-side assert.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
        if len(wrong):
            values = ", ".join(str(value) for value in wrong.unique().tolist()[:5])
            raise ValueError(
                f"labels must be in [0, {num_labels - 1}] or {ignore_index} (ignored), got {len(wrong)} pixels with "
                f"other values, such as {values}"
            )


__all__ = [
    "EfficientFormerV2Backbone",
    "OffSegForSemanticSegmentation",
    "OffSegPreTrainedModel",
    "OffSegSemanticSegmenterOutput",
]
