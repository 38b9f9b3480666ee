"""Configuration of a model for semantic segmentation whose classifier became offset learning."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_offset import OffsetConfigMixin


# What code outside of the model reads from its configuration and the wrapped model from its own: kept equal.
SHARED = ("id2label", "label2id", "num_labels", "output_hidden_states", "output_attentions", "return_dict")


@strict
class OffsetLearningConfig(OffsetConfigMixin, PreTrainedConfig):
    r"""Configuration of [`OffsetLearningForSemanticSegmentation`].

    That of the model whose classifier was replaced, and how. [`apply_offset_learning`] makes it.

    base_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a `SegformerConfig`):
        Configuration of the wrapped model, of any type that `AutoModelForSemanticSegmentation` knows. Its labels are
        those of this configuration, which overrule them where both are given.
    classifier (`str`, *optional*, defaults to `"decode_head.classifier"`):
        Dotted name, in the wrapped model, of the classifier that offset learning took the place of.
    use_class_offset (`bool`, *optional*, defaults to `True`):
        Whether offset learning moves the class representations towards the image.
    use_feature_offset (`bool`, *optional*, defaults to `True`):
        Whether offset learning moves the pixel features towards the classes.
    normalize_logits (`bool`, *optional*, defaults to `True`):
        Whether logits are layer-normalized over classes, as in the paper. Not where a trained classifier was
        continued: its bias is kept instead.

    Example:
    ```python
    >>> from transformers import SegformerConfig
    >>> from offseg_hf import OffsetLearningConfig, OffsetLearningForSemanticSegmentation

    >>> config = OffsetLearningConfig(base_config=SegformerConfig(num_labels=150))
    >>> model = OffsetLearningForSemanticSegmentation(config)
    ```
    """

    model_type = "offset_learning"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="segformer")}

    base_config: PreTrainedConfig | dict | None = None
    classifier: str = "decode_head.classifier"
    use_class_offset: bool = True
    use_feature_offset: bool = True
    normalize_logits: bool = True

    def __post_init__(self, **kwargs):
        has_names, num_labels = self.id2label is not None, kwargs.pop("num_labels", None)
        if has_names and self.label2id is None:
            self.label2id = {label: int(i) for i, label in self.id2label.items()}
        if kwargs.get("attn_implementation") is None and hasattr(self.base_config, "to_dict"):
            # None would reach all nested configurations: what a model has resolved in its own stays.
            kwargs["attn_implementation"] = {"base_config": _attention_implementations(self.base_config)}
        super().__post_init__(**kwargs)
        base: Any = self.base_config
        if not has_names and num_labels is not None:
            base.num_labels = num_labels  # which keeps the base's names where their number is the same
        source, target = (self, base) if has_names else (base, self)
        target.id2label, target.label2id = source.id2label, source.label2id
        # Of the outputs, what either of them asks for.
        self.output_hidden_states: bool = self.output_hidden_states or base.output_hidden_states
        self.output_attentions: bool = self.output_attentions or base.output_attentions
        self.return_dict: bool = self.return_dict and base.return_dict
        self._is_set_up = True

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in SHARED and self.__dict__.get("_is_set_up"):
            setattr(self.base_config, name, value)

    def to_dict(self) -> dict:
        """All fields, without the mark that they are set up."""
        output = super().to_dict()
        output.pop("_is_set_up", None)
        return output

    def to_diff_dict(self) -> dict:
        """Return what is written, without the dtypes of nested configurations.

        Their weights are in that of the whole.
        """
        output = super().to_diff_dict()
        nested = [output["base_config"]]
        for config in nested:
            config.pop("dtype", None)
            nested += [value for value in config.values() if isinstance(value, dict) and "model_type" in value]
        return output


def take_attention_of_base(config: OffsetLearningConfig) -> None:
    """Let `config` name the attention that its base has resolved; the base's and those below stay as they are."""
    below = _attention_implementations(config.base_config)
    config._attn_implementation = {"": below[""], "base_config": below}


def _attention_implementations(config: PreTrainedConfig) -> dict:
    """Return them as transformers takes those of nested configurations: one's own under "", others by name."""
    nested = {name: getattr(config, name) for name in config.sub_configs}
    below = {name: _attention_implementations(value) for name, value in nested.items() if value is not None}
    return {"": config._attn_implementation, **below}


__all__ = ["OffsetLearningConfig"]
