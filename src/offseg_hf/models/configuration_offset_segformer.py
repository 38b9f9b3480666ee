"""Configuration of SegFormer with offset learning.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(https://arxiv.org/abs/2508.08811) and "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers" (https://arxiv.org/abs/2105.15203). Figures from HVision-NKU/OffSeg @ 1414f6d.
"""

from huggingface_hub.dataclasses import strict
from transformers import SegformerConfig

from .configuration_offset import OffsetConfigMixin, row_of


SEGFORMER_SIZES = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2]},
    "b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2]},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]},
    "b3": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 18, 3]},
    "b4": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3]},
    "b5": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3]},
}
PER_STAGE = ("depths", "hidden_sizes", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios")


@strict
class OffsetSegformerConfig(OffsetConfigMixin, SegformerConfig):
    r"""Configuration of [`OffsetSegformerForSemanticSegmentation`], by default of a B0.

    That of SegFormer, whose encoder it describes, and the fields below.

    layer_norm_eps (`float`, *optional*, defaults to 1e-6):
        Of all layer norms of the encoder. (transformers' SegFormer has the field and uses 1e-5.)
    decoder_hidden_size (`int`, *optional*, defaults to 256):
        Channels of the pixel decoder, which are those of the class representations. The paper has 256 for all sizes,
        SegFormer 768 from B2 on.
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
    >>> from offseg_hf import OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation

    >>> config = OffsetSegformerConfig.from_size("b2", num_labels=19)
    >>> model = OffsetSegformerForSemanticSegmentation(config)
    ```
    """

    model_type = "offset_segformer"

    use_class_offset: bool = True
    use_feature_offset: bool = True
    start_without_offsets: bool = False
    class_offset_drop_path_rate: float | int = 0.0
    semantic_loss_class_weights: list[float | int] | tuple[float | int, ...] | None = None

    # Trainer and pipelines gather every output that is not named here; the sizes are an echo of the input.
    keys_to_ignore_at_inference = ["hidden_states", "image_sizes"]

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "OffsetSegformerConfig":
        """Return the configuration of `size`, one of b0 to b5; `kwargs` override its fields."""
        return cls(**(row_of(SEGFORMER_SIZES, size) | kwargs))

    def validate_architecture(self):
        """Part of the `strict` validation: one number per stage, heads that divide channels, maps from every stage."""
        for name in PER_STAGE:
            numbers = getattr(self, name)
            if len(numbers) != self.num_encoder_blocks:
                raise ValueError(f"{name} wants one number per stage ({self.num_encoder_blocks}), got {numbers}")
        for channels, heads in zip(self.hidden_sizes, self.num_attention_heads):
            if channels % heads:
                raise ValueError(
                    "hidden_sizes must be multiples of num_attention_heads, stage by stage: got "
                    f"{self.hidden_sizes} and {self.num_attention_heads}"
                )
        if self.decoder_hidden_size < 1:
            raise ValueError(f"decoder_hidden_size must be at least 1, got {self.decoder_hidden_size}")
        if not self.reshape_last_stage:
            raise ValueError("the pixel decoder reads the last stage as a map: reshape_last_stage must be True")


__all__ = ["OffsetSegformerConfig"]
