"""Configuration of Mask2Former with offset learning.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(https://arxiv.org/abs/2508.08811) and "Masked-attention Mask Transformer for Universal Image Segmentation"
(https://arxiv.org/abs/2112.01527). Figures from HVision-NKU/OffSeg @ 1414f6d.
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Mask2FormerConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_offset import OffsetConfigMixin, row_of


SWIN_SIZES = {
    "swin-t": {
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "drop_path_rate": 0.3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}


@strict
class OffsetMask2FormerConfig(OffsetConfigMixin, Mask2FormerConfig):
    r"""Configuration of [`OffsetMask2FormerForUniversalSegmentation`], by default with a Swin-T.

    That of a Mask2Former, whose fields see in [`~transformers.Mask2FormerConfig`], and of the alignment between masks
    and pixels.

    backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a Swin-T):
        Configuration of the encoder, of any kind that has an `AutoBackbone` with four feature maps.
    use_class_offset (`bool`, *optional*, defaults to `True`):
        Whether the alignment moves the mask embeddings towards the image.
    use_feature_offset (`bool`, *optional*, defaults to `True`):
        Whether the alignment moves the pixel embeddings towards the masks.
    start_without_offsets (`bool`, *optional*, defaults to `False`):
        Whether an alignment that is not loaded begins with projections of zero instead of the official random ones.
        With the weights of a Mask2Former (`from_pretrained`, `load_pretrained`), the model then begins as that
        Mask2Former; so set it to fine-tune one.

    Example:
    ```python
    >>> from offseg_hf import OffsetMask2FormerConfig, OffsetMask2FormerForUniversalSegmentation

    >>> config = OffsetMask2FormerConfig.from_size("swin-t", num_labels=150)
    >>> model = OffsetMask2FormerForUniversalSegmentation(config)
    ```
    """

    model_type = "offset_mask2former"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="swin", init_kwargs=SWIN_SIZES["swin-t"])
    }
    # Trainer and pipelines gather every output that is not named here.
    keys_to_ignore_at_inference = [
        "auxiliary_logits",
        "encoder_last_hidden_state",
        "pixel_decoder_last_hidden_state",
        "transformer_decoder_last_hidden_state",
        "encoder_hidden_states",
        "pixel_decoder_hidden_states",
        "transformer_decoder_hidden_states",
        "attentions",
        "image_sizes",
    ]

    use_class_offset: bool = True
    use_feature_offset: bool = True
    start_without_offsets: bool = False

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "OffsetMask2FormerConfig":
        """Return the configuration of `size`, which is swin-t; `kwargs` override its fields."""
        return cls(**({"backbone_config": {"model_type": "swin"} | row_of(SWIN_SIZES, size)} | kwargs))


__all__ = ["OffsetMask2FormerConfig"]
