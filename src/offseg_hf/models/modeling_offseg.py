"""EfficientFormerV2 as a backbone and OffSeg for semantic segmentation, as transformers models.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d. Changed here: images of any size
(padded to a multiple of 32, logits cropped), attention biases that cannot go stale, and any backbone of transformers
in the encoder's place: pyramids as they are, plain ViTs through a simple feature pyramid as ViTDet's
(https://arxiv.org/abs/2203.16527).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone, AutoConfig, TimmBackbone
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import is_timm_available

from .configuration_offseg import (
    NUM_MAPS,
    OFFSEG_SIZES,
    EfficientFormerV2Config,
    EncoderConfig,
    OffSegConfig,
    spread_out_indices,
)
from .encoder_efficientformer_v2 import AttentionBias, ConvMlp, EfficientFormerV2Encoder, EncoderBlock
from .layers import FixedBatchNorm2d, MlpPixelDecoder, channels_last
from .modeling_utils import EncoderBackboneMixin, OffsetModelMixin, SemanticSegmentationMixin
from .offset_learning import OffsetLearning
from .pixel_decoder_freqfusion import FreqFusion, FreqFusionPixelDecoder


STRIDES = (4, 8, 16, 32)  # of the feature maps that the pixel decoders fuse
STRIDE = STRIDES[-1]


class OffSegPreTrainedModel(OffsetModelMixin, PreTrainedModel):
    """Initialization of the weights, and what transformers wants to know of the models."""

    config: EncoderConfig
    base_model_prefix = "offseg"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock", "FreqFusion"]

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem, which is to images what embeddings are to tokens; of a backbone what it takes for that."""
        return self.encoder.get_input_embeddings() if is_backbone(self.encoder) else self.encoder.stem

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize a module as the official code does; parents come after their children and overrule them."""
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
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

    def __init__(self, config: OffSegConfig):
        backbone: Any = config.backbone_config
        if backbone is not None:
            raise ValueError(
                f"this OffSeg has a {backbone.model_type} of transformers as its encoder: expected one "
                "with an EfficientFormerV2; take the encoder of the whole model"
            )
        super().__init__(config)


class OffSegForSemanticSegmentation(SemanticSegmentationMixin, OffSegPreTrainedModel):
    """OffSeg, the paper's Figure 4: an encoder, a pixel decoder and offset learning."""

    config: OffSegConfig
    other_auto_classes = {"AutoBackbone": "modeling_offseg.OffSegBackbone"}

    def __init__(self, config: OffSegConfig):
        super().__init__(config)
        if config.backbone_config is None:
            self.encoder = build_encoder(config)
            channels = config.hidden_sizes
        else:
            backbone: Any = AutoBackbone.from_config(config.backbone_config)
            self.encoder = backbone
            self.feature_pyramid = FeaturePyramid(backbone.channels, patch_size_of(backbone))
            channels = self.feature_pyramid.channels
        pixel_decoder = FreqFusionPixelDecoder if config.pixel_decoder == "freqfusion" else MlpPixelDecoder
        self.pixel_decoder = pixel_decoder(channels, config.lateral_channels, config.decoder_hidden_size)
        self.offset_learning = OffsetLearning(
            config.num_labels,
            config.decoder_hidden_size,
            config.use_class_offset,
            config.use_feature_offset,
            class_offset_drop_path_rate=config.class_offset_drop_path_rate,
        )
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: str | PathLike, *, out_indices: Sequence[int] | None = None, **kwargs
    ) -> "OffSegForSemanticSegmentation":
        """Make a model, in eval mode, whose encoder is a trained backbone; the rest is new and is to be trained.

        Args:
            backbone: Name on the Hub, or folder, of a model that `AutoBackbone` has a class for, or the name of a
                model of timm.
            out_indices: Which four of the backbone's stages the decoder sees; by default the last four of a pyramid,
                and of a plain ViT the layers at each quarter of its depth.
            **kwargs: Fields of [`OffSegConfig`], such as `num_labels`. Lateral channels are by default those of
                OffSeg-B and OffSeg-L.

        Raises:
            ValueError: for a model that is no backbone.
            OSError: if there is no such model.
        """
        encoder = load_backbone(backbone, out_indices)
        lateral_channels = {"lateral_channels": OFFSEG_SIZES["l"]["lateral_channels"]}
        config = cls.config_class(backbone_config=encoder.config, **(lateral_channels | kwargs))
        weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        return cls.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, ceil(height / 4), ceil(width / 4)) and the encoder's feature maps."""
        feature_maps = self.encode(pad_to_stride(pixel_values))
        pixel_features = self.pixel_decoder(feature_maps)
        logits = self.offset_learning(pixel_features)
        return crop_to_stride(logits, pixel_values, 4), feature_maps

    def encode(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the four maps of images whose sides are multiples of 32."""
        if self.config.backbone_config is None:
            return self.encoder(pixel_values)
        padded = self.feature_pyramid.pad(pixel_values)
        return self.feature_pyramid(self.encoder(padded).feature_maps, pixel_values.shape[-2:])


class FeaturePyramid(nn.Module):
    """Feature maps at strides 4, 8, 16 and 32 of what a backbone gives.

    A pyramid's are these. Those of a plain ViT, of one stride, are upsampled by transposed convolutions and pooled
    (ViTDet, https://arxiv.org/abs/2203.16527, but each level of a layer of its own); where patches have another side
    than a power of two, they are resampled first.
    """

    def __init__(self, channels: Sequence[int], patch_size: int | None):
        super().__init__()
        self.patch_size = patch_size
        self.channels = list(channels)
        self.levels = nn.ModuleList()
        if patch_size is None:
            return
        self.grid_stride = 2 ** round(math.log2(patch_size))
        for level, stride in enumerate(STRIDES):
            doublings = int(math.log2(self.grid_stride / stride))
            widths = [self.channels[level] // 2**step for step in range(doublings + 1)]
            self.levels.append(upsampler(widths) if doublings >= 0 else nn.MaxPool2d(2**-doublings))
            self.channels[level] = widths[-1] if widths else self.channels[level]

    def pad(self, pixel_values: Tensor) -> Tensor:
        """Pad images, whose sides are multiples of 32, with zeros at the bottom and the right to whole patches."""
        if self.patch_size is None or STRIDE % self.patch_size == 0:
            return pixel_values
        return pad_to_stride(pixel_values, self.patch_size)

    def forward(self, feature_maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Map the backbone's maps of images of `size`, multiples of 32, to (batch, channels[i], height / 4 ...).

        Raises:
            ValueError: for maps of other strides.
        """
        if self.patch_size is not None:
            feature_maps = [level(self.to_grid(x, size)) for level, x in zip(self.levels, feature_maps)]
        if not torch.compiler.is_compiling():
            check_strides(feature_maps, size)
        return list(feature_maps)

    def to_grid(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resample a map of patches (batch, channels, ...) to the grid whose stride is a power of two."""
        if self.patch_size != self.grid_stride:
            x = F.interpolate(x, scale_factor=self.patch_size / self.grid_stride, mode="bilinear")
        height, width = (length // self.grid_stride for length in size)
        return x[..., :height, :width]


class ChannelLayerNorm(nn.LayerNorm):
    """A layer norm over the channels of maps; initialized as all are whose class is named so."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every pixel of maps (batch, channels, height, width)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def upsampler(widths: Sequence[int]) -> nn.Module:
    """Double a map once for each pair of neighbors in `widths`, the channels before and after."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(widths):
        if layers:
            layers += [ChannelLayerNorm(in_channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2))
    return nn.Sequential(*layers)


def check_strides(feature_maps: Sequence[Tensor], size: tuple[int, int]) -> None:
    """Raise ValueError for maps that are not those at strides 4, 8, 16 and 32 of an image of `size`."""
    found = [tuple(x.shape[-2:]) for x in feature_maps]
    expected = [tuple(length // stride for length in size) for stride in STRIDES]
    if found != expected:
        raise ValueError(
            f"expected feature maps at strides {', '.join(map(str, STRIDES))} of the backbone, {expected} of "
            f"{size[0]} x {size[1]} pixels, got {found}: choose other stages by out_features of its configuration"
        )


def is_backbone(encoder: nn.Module) -> bool:
    """Return whether an encoder is a model of transformers, and none of ours."""
    return isinstance(encoder, PreTrainedModel)


def patch_size_of(backbone: PreTrainedModel) -> int | None:
    """Return the stride of all maps of a plain ViT, in pixels; None of a pyramid."""
    config = backbone.config
    for child in backbone.children():
        if hasattr(child, "feature_info"):  # a model of timm
            strides = child.feature_info.reduction()
            return strides[0] if len(set(strides)) == 1 else None
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None or hasattr(config, "depths") or getattr(config, "add_fpn", False):
        return None
    height, width = patch_size if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
    if height != width:
        raise ValueError(f"backbone_config: expected square patches, got {height} x {width}")
    return height


def load_backbone(name: str | PathLike, out_indices: Sequence[int] | None) -> PreTrainedModel:
    """Load a trained backbone with four of its stages; see `from_backbone`."""
    name = str(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "/" not in name and is_timm_available():
            return load_timm_backbone(name, out_indices)
        reason = " ".join(str(error).split())
        raise OSError(
            f"{name}: expected a model that AutoBackbone has a class for, as a folder or a name on the Hub (such as "
            f"facebook/dinov2-small), or one of timm, if that is installed; got none: {reason}"
        ) from error
    if config.model_type == "timm_wrapper":
        return load_timm_backbone(name.rpartition("/")[2], out_indices)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        known = ", ".join(sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES))
        raise ValueError(
            f"{name}: expected a model that AutoBackbone has a class for, got a {config.model_type}: choose one of "
            f"the kinds {known}"
        )
    config.out_indices = list(out_indices or spread_out_indices(config))
    # Not AutoBackbone's own `from_pretrained`, which asks the Hub about folders too.
    return MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(name, config=config, dtype=torch.float32)


def load_timm_backbone(name: str, out_indices: Sequence[int] | None) -> PreTrainedModel:
    """Load a trained model of timm, by default with its last four stages or layers."""
    return TimmBackbone.from_pretrained(name, out_indices=list(out_indices or range(-NUM_MAPS, 0)))


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


def pad_to_stride(pixel_values: Tensor, stride: int = STRIDE) -> Tensor:
    """Pad with zeros at the bottom and the right, up to a multiple of the encoder's stride.

    Channels come last in memory, the layout in which convolutions are fastest and pixels are rows.
    """
    # Padded by a constant and cut: graphs for any size go on with multiples of the stride, in simple terms.
    padded = F.pad(pixel_values, (0, stride - 1, 0, stride - 1))
    height, width = (length // stride * stride for length in padded.shape[-2:])
    return channels_last(_first_pixels(padded, height, width))


def crop_to_stride(x: Tensor, pixel_values: Tensor, stride: int) -> Tensor:
    """Return the part of `x`, a map at `stride` of the padded image, that shows the image."""
    # Not `-(-height // stride)`: an exported graph divides towards zero.
    height, width = ((length + stride - 1) // stride for length in pixel_values.shape[-2:])
    return _first_pixels(x, height, width)


def _first_pixels(x: Tensor, height: int, width: int) -> Tensor:
    """Return the first rows and columns of a map (batch, channels, height, width)."""
    if torch.compiler.is_exporting() and not isinstance(height, int):
        # Of a slice torch.export asks whether it is the whole; its program then takes images of the same answer alone.
        rows, columns = (torch.arange(length, dtype=torch.int32, device=x.device) for length in (height, width))
        return x.index_select(2, rows).index_select(3, columns)
    return x[..., :height, :width]


__all__ = [
    "EfficientFormerV2Backbone",
    "OffSegBackbone",
    "OffSegForSemanticSegmentation",
    "OffSegPreTrainedModel",
]
