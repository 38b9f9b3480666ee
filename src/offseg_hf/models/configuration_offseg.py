"""Configurations of EfficientFormerV2 and OffSeg.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(https://arxiv.org/abs/2508.08811) and "Rethinking Vision Transformers for MobileNet Size and Speed"
(https://arxiv.org/abs/2212.08059). Figures from HVision-NKU/OffSeg @ 1414f6d.
"""

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_offset import OffsetConfigMixin, row_of


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

    An EfficientFormerV2 encoder, a pixel decoder and offset learning. For the encoder's fields see
    [`EfficientFormerV2Config`].

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


__all__ = ["EfficientFormerV2Config", "OffSegConfig"]
