"""Any of transformers' models for semantic segmentation, with offset learning in the place of its classifier."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from .configuration_offset_learning import OffsetLearningConfig, take_attention_of_base
from .modeling_utils import InnerOffsetsMixin
from .offset_classifier import replace_classifier
from .offset_learning import OffsetLearningOptions


class OffsetLearningForSemanticSegmentation(InnerOffsetsMixin, PreTrainedModel):
    """A model for semantic segmentation that classifies pixels by offset learning.

    Everything else is the wrapped `model`'s own: its inputs, its outputs, its loss and its auxiliary heads.
    [`apply_offset_learning`] makes one of a trained model; from a configuration alone the weights are new.

    config: of which `base_config` builds the wrapped model.
    model: the wrapped model, in which the classifier is replaced already and which keeps its weights.

    Example:
    ```python
    >>> from transformers import AutoModelForSemanticSegmentation
    >>> from offseg_hf import apply_offset_learning

    >>> model = AutoModelForSemanticSegmentation.from_pretrained("openmmlab/upernet-convnext-tiny")
    >>> model = apply_offset_learning(model)
    >>> model.save_pretrained("upernet-convnext-tiny-offset")
    ```
    """

    config: OffsetLearningConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the losses of these models are means over pixels, which Trainer must not weigh anew
    # Which of them it is, the wrapped model decides.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: OffsetLearningConfig, model: PreTrainedModel | None = None):
        super().__init__(config)
        if model is None:
            model = _build(config)
        else:
            _keep_weights(model)
        self.model = model
        config.base_config = model.config  # one object: what is set on the one is read by the other
        take_attention_of_base(config)
        self.supports_gradient_checkpointing = model.supports_gradient_checkpointing
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs):
        """Return what the wrapped model's `forward` returns for the same arguments, of which it may take more."""
        return self.model(pixel_values=pixel_values, labels=labels, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return those of the wrapped model."""
        return self.model.get_input_embeddings()


def _build(config: OffsetLearningConfig) -> PreTrainedModel:
    # In the dtype that is being built in: the base's own may be that of an older file.
    model = AutoModelForSemanticSegmentation.from_config(config.base_config, dtype=torch.get_default_dtype())
    options = OffsetLearningOptions(not config.normalize_logits, config.use_class_offset, config.use_feature_offset)
    replace_classifier(model, config.classifier, options)
    return model


def _keep_weights(model: nn.Module) -> None:
    """Mark all weights as transformers marks loaded ones, which no initialization overwrites.

    Not `post_init`, nor that of a model of someone's own around this one, for which `no_init_weights` around
    `post_init` would not do.
    """
    parts: list[Any] = [*model.modules(), *model.parameters(), *model.buffers()]
    for part in parts:
        part._is_hf_initialized = True


__all__ = ["OffsetLearningForSemanticSegmentation"]
