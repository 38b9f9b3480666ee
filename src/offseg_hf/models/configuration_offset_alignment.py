"""Configuration of mask classification models whose masks come from offset alignment.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811).
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_offset import OffsetConfigMixin


BASE_MODEL_TYPES = ("maskformer", "mask2former", "eomt", "eomt_dinov3")


@strict
class OffsetAlignmentConfig(OffsetConfigMixin, PreTrainedConfig):
    r"""Configuration of [`OffsetAlignmentForUniversalSegmentation`]. By default a Mask2Former with offset alignment.

    base_config (`dict` or `PreTrainedConfig`, *optional*):
        The configuration of the model that is aligned: a MaskFormer, a Mask2Former or an EoMT. Its labels are this
        configuration's, where none are given.
    use_class_offset (`bool`, *optional*, defaults to `True`):
        Whether alignment moves the mask embeddings towards the image.
    use_feature_offset (`bool`, *optional*, defaults to `True`):
        Whether alignment moves the pixel embeddings towards the masks.

    Example:
    ```python
    >>> from transformers import EomtConfig
    >>> from offseg_hf import OffsetAlignmentConfig, OffsetAlignmentForUniversalSegmentation

    >>> config = OffsetAlignmentConfig(base_config=EomtConfig(num_labels=150))
    >>> model = OffsetAlignmentForUniversalSegmentation(config)
    ```
    """

    model_type = "offset_alignment"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="mask2former")}

    base_config: dict | PreTrainedConfig | None = None
    use_class_offset: bool = True
    use_feature_offset: bool = True

    def __post_init__(self, **kwargs):
        has_labels = self.id2label is not None or kwargs.get("num_labels") is not None
        super().__post_init__(**kwargs)
        if not has_labels:
            base: Any = self.base_config
            self.id2label: dict[int, str] | None = base.id2label
            self.label2id: dict[str, int] | None = base.label2id

    def validate_architecture(self):
        """Part of the `strict` validation."""
        base: Any = self.base_config
        if base.model_type not in BASE_MODEL_TYPES:
            raise ValueError(
                f"offset alignment is for {', '.join(BASE_MODEL_TYPES)}; got a base_config of model type "
                f"{base.model_type!r}"
            )


__all__ = ["OffsetAlignmentConfig"]
