"""Configurations of MSCAN and of SegNeXt with offset learning.

Papers: "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation"
(https://arxiv.org/abs/2209.08575) and "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial
and Class Feature Alignment" (https://arxiv.org/abs/2508.08811). Figures from HVision-NKU/OffSeg @ 1414f6d.
"""

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_offset import OffsetConfigMixin, row_of


MSCAN_SIZES = {
    "t": {"hidden_sizes": [32, 64, 160, 256], "depths": [3, 3, 5, 2], "drop_path_rate": 0.1},
    "s": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 4, 2], "drop_path_rate": 0.1},
    "b": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 3, 12, 3], "drop_path_rate": 0.1},
    "l": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 5, 27, 3], "drop_path_rate": 0.3},
}

SEGNEXT_SIZES = {
    "t": {**MSCAN_SIZES["t"], "decoder_hidden_size": 256},
    "s": {**MSCAN_SIZES["s"], "decoder_hidden_size": 256},
    "b": {**MSCAN_SIZES["b"], "decoder_hidden_size": 512},
}


class MscanEncoderConfig(OffsetConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    """The fields that describe an MSCAN, shared by the backbone and by SegNeXt; by default an MSCAN-T."""

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 160, 256)
    depths: list[int] | tuple[int, ...] = (3, 3, 5, 2)
    mlp_ratios: list[int] | tuple[int, ...] = (8, 8, 4, 4)
    drop_path_rate: float | int = 0.1
    layer_scale_init_value: float = 1e-2
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
        """Part of the `strict` validation: one number per stage."""
        if not len(self.hidden_sizes) == len(self.depths) == len(self.mlp_ratios) == 4:
            raise ValueError(
                "MSCAN has four stages: expected 4 hidden_sizes, 4 depths and 4 mlp_ratios, got "
                f"{len(self.hidden_sizes)}, {len(self.depths)} and {len(self.mlp_ratios)}"
            )
        if min(self.hidden_sizes) < 2 or min(self.depths) < 0 or self.num_channels < 1:
            raise ValueError(
                "expected hidden_sizes of at least 2, depths of at least 0 and num_channels of at least 1, got "
                f"{self.hidden_sizes}, {self.depths} and {self.num_channels}"
            )


@strict
class MscanConfig(MscanEncoderConfig):
    r"""Configuration of [`MscanBackbone`].

    mlp_ratios (`list[int]`, *optional*, defaults to `[8, 8, 4, 4]`):
        Expansion of the feed-forward layers of every stage.
    layer_scale_init_value (`float`, *optional*, defaults to 1e-2):
        Initial value of the factors that scale every residual branch.

    Example:
    ```python
    >>> from offseg_hf import MscanBackbone, MscanConfig

    >>> config = MscanConfig.from_size("s", out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> backbone = MscanBackbone(config)
    ```
    """

    model_type = "mscan"

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "MscanConfig":
        """Return the configuration of `size`, one of t, s, b and l; `kwargs` override its fields."""
        return cls(**(row_of(MSCAN_SIZES, size) | kwargs))


@strict
class OffsetSegNextConfig(MscanEncoderConfig):
    r"""Configuration of [`OffsetSegNextForSemanticSegmentation`], by default of the smallest, T.

    An MSCAN encoder, the Hamburger pixel decoder and offset learning. For the encoder's fields see [`MscanConfig`].

    decoder_hidden_size (`int`, *optional*, defaults to 256):
        Channels of the pixel decoder, which are those of the class representations. A multiple of 32.
    num_bases (`int`, *optional*, defaults to 16):
        Bases that the non-negative matrix factorization describes an image with.
    nmf_train_steps (`int`, *optional*, defaults to 6):
        Steps of the factorization in training.
    nmf_eval_steps (`int`, *optional*, defaults to 7):
        Steps of the factorization at inference.
    nmf_seed (`int`, *optional*, defaults to 0):
        What the bases that every factorization starts from are drawn with.
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
    >>> from offseg_hf import OffsetSegNextConfig, OffsetSegNextForSemanticSegmentation

    >>> config = OffsetSegNextConfig.from_size("b", num_labels=19)
    >>> model = OffsetSegNextForSemanticSegmentation(config)
    ```
    """

    model_type = "offset_segnext"

    decoder_hidden_size: int = 256
    num_bases: int = 16
    nmf_train_steps: int = 6
    nmf_eval_steps: int = 7
    nmf_seed: int = 0
    use_class_offset: bool = True
    use_feature_offset: bool = True
    start_without_offsets: bool = False
    class_offset_drop_path_rate: float | int = 0.0
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float | int] | tuple[float | int, ...] | None = None

    # Trainer and pipelines gather every output that is not named here; the sizes are an echo of the input.
    keys_to_ignore_at_inference = ["hidden_states", "image_sizes"]

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "OffsetSegNextConfig":
        """Return the configuration of `size`, one of t, s and b; `kwargs` override its fields."""
        return cls(**(row_of(SEGNEXT_SIZES, size) | kwargs))

    def validate_architecture(self):
        """Part of the `strict` validation."""
        super().validate_architecture()
        if self.decoder_hidden_size < 32 or self.decoder_hidden_size % 32:
            raise ValueError(f"decoder_hidden_size must be a positive multiple of 32, got {self.decoder_hidden_size}")
        if self.num_bases < 1:
            raise ValueError(f"num_bases must be at least 1, got {self.num_bases}")


__all__ = ["MscanConfig", "OffsetSegNextConfig"]
