"""Configurations of EfficientFormerV2 and OffSeg.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(https://arxiv.org/abs/2508.08811) and "Rethinking Vision Transformers for MobileNet Size and Speed"
(https://arxiv.org/abs/2212.08059). Figures from HVision-NKU/OffSeg @ 1414f6d.
"""

import json
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_offset import BACKBONE_ARGUMENTS, OffsetConfigMixin, row_of


ENCODER_SIZES = {
    "s0": {
        "hidden_sizes": [32, 48, 96, 176],
        "depths": [2, 2, 6, 4],
        "num_attention_blocks": 2,
        "mlp_ratios": [[4, 4], [4, 4], [4, 3, 3, 3, 4, 4], [4, 3, 3, 4]],
        "drop_path_rate": 0.0,
    },
    "s1": {
        "hidden_sizes": [32, 48, 120, 224],
        "depths": [3, 3, 9, 6],
        "num_attention_blocks": 2,
        "mlp_ratios": [[4, 4, 4], [4, 4, 4], [4, 4, 3, 3, 3, 3, 4, 4, 4], [4, 4, 3, 3, 4, 4]],
        "drop_path_rate": 0.0,
    },
    "s2": {
        "hidden_sizes": [32, 64, 144, 288],
        "depths": [4, 4, 12, 8],
        "num_attention_blocks": 4,
        "mlp_ratios": [[4] * 4, [4] * 4, [4, 4, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4], [4, 4, 3, 3, 3, 3, 4, 4]],
        "drop_path_rate": 0.02,
    },
    "l": {
        "hidden_sizes": [40, 80, 192, 384],
        "depths": [5, 5, 15, 10],
        "num_attention_blocks": 6,
        "mlp_ratios": [
            [4] * 5,
            [4] * 5,
            [4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4],
            [4, 4, 4, 3, 3, 3, 3, 4, 4, 4],
        ],
        "drop_path_rate": 0.1,
    },
}

OFFSEG_SIZES = {
    "t": {**ENCODER_SIZES["s1"], "lateral_channels": [32, 32, 64, 128]},
    "b": {**ENCODER_SIZES["s2"], "lateral_channels": [32, 64, 128, 256]},
    "l": {**ENCODER_SIZES["l"], "lateral_channels": [32, 64, 128, 256]},
}

# What describes an EfficientFormerV2, and has no meaning beside a `backbone_config`.
OWN_ENCODER = (
    "hidden_sizes",
    "depths",
    "num_attention_blocks",
    "mlp_ratios",
    "image_size",
    "drop_path_rate",
    "layer_scale_init_value",
    "learn_batch_norm_statistics",
)
NUM_MAPS = 4  # that the pixel decoders fuse
MOST_STAGES = 7  # of a pyramid; what has more is a ViT, whose stages are layers
# Of a pyramid whose stages end with the downsampling that others begin the next with.
OTHER_STAGES = {"focalnet": [0, 1, 2, 4]}


class EncoderConfig(OffsetConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    """The fields that describe an EfficientFormerV2, shared by the backbone and by OffSeg; by default an S1."""

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (32, 48, 120, 224)
    depths: list[int] | tuple[int, ...] = (3, 3, 9, 6)
    num_attention_blocks: int = 2
    mlp_ratios: list[list[int]] | tuple[tuple[int, ...], ...] = (
        (4, 4, 4),
        (4, 4, 4),
        (4, 4, 3, 3, 3, 3, 4, 4, 4),
        (4, 4, 3, 3, 4, 4),
    )
    image_size: int = 512
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float = 1e-5
    learn_batch_norm_statistics: bool = False
    initializer_range: float = 0.02

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of the `strict` validation: one number per stage, one ratio per block."""
        if not len(self.hidden_sizes) == len(self.depths) == len(self.mlp_ratios) == 4:
            raise ValueError(
                "EfficientFormerV2 has four stages: expected 4 hidden_sizes, 4 depths and 4 lists of mlp_ratios, got "
                f"{len(self.hidden_sizes)}, {len(self.depths)} and {len(self.mlp_ratios)}"
            )
        if min(self.hidden_sizes) < 2 or min(self.depths) < 0 or self.num_channels < 1:
            raise ValueError(
                "expected hidden_sizes of at least 2, depths of at least 0 and num_channels of at least 1, got "
                f"{self.hidden_sizes}, {self.depths} and {self.num_channels}"
            )
        for stage, (depth, ratios) in enumerate(zip(self.depths, self.mlp_ratios)):
            if len(ratios) != depth:
                raise ValueError(
                    f"mlp_ratios wants one ratio per block: stage {stage} has {depth} blocks and {len(ratios)} ratios"
                )
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size must be a positive multiple of 32, got {self.image_size}")


@strict
class EfficientFormerV2Config(EncoderConfig):
    r"""Configuration of [`EfficientFormerV2Backbone`].

    num_attention_blocks (`int`, *optional*, defaults to 2):
        Blocks with attention at the end of the last two stages, each.
    mlp_ratios (`list[list[int]]`, *optional*):
        Expansion of the feed-forward layer of every block, one list per stage.
    image_size (`int`, *optional*, defaults to 512):
        Side of the square image whose grid of positions the attention biases are learned for; other images get them
        resized. A multiple of 32.
    layer_scale_init_value (`float`, *optional*, defaults to 1e-5):
        Initial value of the factors that scale every residual branch.
    learn_batch_norm_statistics (`bool`, *optional*, defaults to `False`):
        Whether training updates the running statistics of the batch norms. The official training keeps those of
        ImageNet; training from scratch needs them learned.

    Example:
    ```python
    >>> from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config

    >>> config = EfficientFormerV2Config.from_size("s2", out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> backbone = EfficientFormerV2Backbone(config)
    ```
    """

    model_type = "efficientformer_v2"

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "EfficientFormerV2Config":
        """Return the configuration of `size`, one of s0, s1, s2 and l; `kwargs` override its fields."""
        return cls(**(row_of(ENCODER_SIZES, size) | kwargs))


@strict
class OffSegConfig(EncoderConfig):
    r"""Configuration of [`OffSegForSemanticSegmentation`], by default an OffSeg-T.

    An EfficientFormerV2 encoder, or any backbone of transformers, a pixel decoder and offset learning. For the
    EfficientFormerV2's fields see [`EfficientFormerV2Config`]; beside `backbone_config` they are refused.

    backbone_config (`dict` or `PreTrainedConfig`, *optional*):
        Configuration of another encoder, of any kind that has an `AutoBackbone`, with four `out_features`: of a
        pyramid (ConvNeXt, Swin, ...) those at strides 4, 8, 16 and 32, of a plain ViT (DINOv2, BEiT, ...) any layers.
    pixel_decoder (`str`, *optional*, defaults to `"freqfusion"`):
        `"freqfusion"`, or `"mlp"`, the plain decoder of the first row of the paper's Table 6: bilinear upsampling and
        concatenation.
    lateral_channels (`list[int]`, *optional*, defaults to `[32, 32, 64, 128]`):
        Channels that each feature map is projected to before the maps are fused.
    decoder_hidden_size (`int`, *optional*, defaults to 256):
        Channels of the fused map, which are those of the class representations.
    use_class_offset (`bool`, *optional*, defaults to `True`):
        Whether offset learning moves the class representations towards the image.
    use_feature_offset (`bool`, *optional*, defaults to `True`):
        Whether offset learning moves the pixel features towards the classes.
    start_without_offsets (`bool`, *optional*, defaults to `False`):
        Whether both offsets begin at zero, and the training moves them, instead of at random as in the paper.
    class_offset_drop_path_rate (`float`, *optional*, defaults to 0.0):
        Share of the images whose class offsets training leaves out, so that the class representations serve alone too.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        The label of pixels that do not count in the loss.
    semantic_loss_class_weights (`list[float]`, *optional*):
        What the loss of a pixel is multiplied by, for every class; by default 1. `offseg data check --stats` proposes
        some for data with rare classes.

    Example:
    ```python
    >>> from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation

    >>> config = OffSegConfig.from_size("b", num_labels=19)
    >>> model = OffSegForSemanticSegmentation(config)
    ```
    """

    model_type = "offseg"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="swin", optional=True)  # None by default
    }

    backbone_config: dict | PreTrainedConfig | None = None
    pixel_decoder: str = "freqfusion"
    lateral_channels: list[int] | tuple[int, ...] = (32, 32, 64, 128)
    decoder_hidden_size: int = 256
    use_class_offset: bool = True
    use_feature_offset: bool = True
    start_without_offsets: bool = False
    class_offset_drop_path_rate: float | int = 0.0
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float | int] | tuple[float | int, ...] | None = None

    # Trainer and pipelines gather every output that is not named here; the sizes are an echo of the input.
    keys_to_ignore_at_inference = ["hidden_states", "image_sizes"]

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "OffSegConfig":
        """Return the configuration of `size`, one of t, b and l; `kwargs` override its fields."""
        return cls(**(row_of(OFFSEG_SIZES, size) | kwargs))

    def __post_init__(self, **kwargs):
        for name in BACKBONE_ARGUMENTS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"OffSegConfig has no setting {name!r}: pass a configuration as backbone_config, or load a "
                    "trained backbone by OffSegForSemanticSegmentation.from_backbone"
                )
        if self.backbone_config is None:
            super().__post_init__(**kwargs)
            return
        self._refuse_own_encoder(kwargs)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = read_backbone_config(self.backbone_config)
        check_backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)
        num_channels = getattr(self.backbone_config, "num_channels", 3)
        if self.num_channels not in (3, num_channels):
            raise ValueError(
                f"num_channels comes with the backbone_config, which has {num_channels}, got {self.num_channels}: set "
                "it there"
            )
        self.num_channels = num_channels

    def _refuse_own_encoder(self, kwargs: dict[str, Any]) -> None:
        """Raise ValueError for what describes an encoder that the backbone stands in the place of."""
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name in OWN_ENCODER if json.dumps(getattr(self, name)) != json.dumps(defaults[name])]
        given += [name for name in ("out_features", "out_indices") if kwargs.get(name) is not None]
        if given:
            raise ValueError(
                f"{given[0]} describes OffSeg's own encoder, which backbone_config replaces: leave out "
                f"{', '.join(given)}, or set what the backbone has of it in backbone_config"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without those of the encoder that a `backbone_config` replaces."""
        settings = super().to_dict()
        if self.backbone_config is not None:
            for name in (*OWN_ENCODER, "stage_names", "out_features", "out_indices"):
                settings.pop(name, None)
        return settings

    def validate_architecture(self):
        """Part of the `strict` validation."""
        super().validate_architecture()
        if self.pixel_decoder not in ("freqfusion", "mlp"):
            raise ValueError(f'pixel_decoder must be "freqfusion" or "mlp", got {self.pixel_decoder!r}')
        if len(self.lateral_channels) != len(self.hidden_sizes):
            raise ValueError(
                f"lateral_channels wants one number per stage ({len(self.hidden_sizes)}), got {self.lateral_channels}"
            )
        # Their maps are normalized in 32 groups of channels.
        if any(channels < 32 or channels % 32 for channels in self.lateral_channels):
            raise ValueError(f"lateral_channels must be positive multiples of 32, got {self.lateral_channels}")
        if self.decoder_hidden_size < 32 or self.decoder_hidden_size % 32:
            raise ValueError(f"decoder_hidden_size must be a positive multiple of 32, got {self.decoder_hidden_size}")


def read_backbone_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """Make a configuration of what a saved one has; raise ValueError for one that transformers does not know."""
    model_type = settings.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            "backbone_config: expected the model_type of a backbone of transformers, such as convnext, swin or "
            f"dinov2, got {model_type!r}"
        )
    return CONFIG_MAPPING[model_type].from_dict(settings)


def check_backbone_config(config: Any) -> None:
    """Raise ValueError for what is not the configuration of a backbone that gives four feature maps."""
    if not hasattr(config, "out_indices"):
        got = repr(config) if isinstance(config, str) else getattr(config, "model_type", None) or type(config).__name__
        raise ValueError(
            "backbone_config: expected the configuration of a backbone (a model of AutoBackbone, such as convnext, "
            f"swin or dinov2), got {got}; a trained one is loaded by its name by "
            "OffSegForSemanticSegmentation.from_backbone"
        )
    found = len(config.out_indices)
    if found != NUM_MAPS:
        stages = getattr(config, "stage_names", None)
        write = f"out_features={[stages[i] for i in spread_out_indices(config)]}" if stages else "out_indices"
        raise ValueError(
            f"backbone_config: expected {NUM_MAPS} feature maps of the {config.model_type}, fine to coarse, got "
            f"{found} ({config.out_features or config.out_indices}): set {write} in it"
        )


def spread_out_indices(config: PreTrainedConfig) -> list[int]:
    """Return which stages of a backbone the decoder is to see: the last of a pyramid, of a ViT one at each quarter."""
    last = len(config.stage_names) - 1
    if config.model_type in OTHER_STAGES:
        return OTHER_STAGES[config.model_type]
    if last < MOST_STAGES:
        return list(range(last + 1))[-NUM_MAPS:]
    return [last * quarter // NUM_MAPS for quarter in range(1, NUM_MAPS + 1)]


__all__ = ["EfficientFormerV2Config", "OffSegConfig"]
