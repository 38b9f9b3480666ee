"""MaskFormer, Mask2Former and EoMT with offset alignment: masks and pixels move towards each other, image by image.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). The models are transformers' own; here only the product of mask and
pixel embeddings is replaced, wherever they form it: one alignment serves all their layers.

So any trained model of theirs can be adapted, and keeps its image processor. The paper's Mask2Former, with official
weights and mmseg's test protocol, is a model of its own: `OffsetMask2FormerForUniversalSegmentation`.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import (
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    MaskFormerForInstanceSegmentation,
)
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration_offset import AnyBase
from .configuration_offset_alignment import OffsetAlignmentConfig
from .mask_prediction import AlignedMaskPredictor, auto_classes_of
from .modeling_utils import InnerOffsetsMixin
from .offset_learning import OffsetAlignment, OffsetLearningOptions


class AlignedMaskFormer(MaskFormerForInstanceSegmentation):
    """MaskFormer, its masks aligned."""

    def __init__(self, config: PreTrainedConfig, use_class_offset: bool = True, use_feature_offset: bool = True):
        super().__init__(config)
        self.alignment = OffsetAlignment(config.mask_feature_size, use_class_offset, use_feature_offset)

    def forward(self, *args, output_hidden_states: bool | None = None, **kwargs):
        """Do what MaskFormer's forward does.

        In transformers 5.23 that one fails to make auxiliary predictions unless it is asked for the hidden states that
        they are made of.
        """
        output_hidden_states = True if self.config.use_auxiliary_loss else output_hidden_states
        return super().forward(*args, output_hidden_states=output_hidden_states, **kwargs)

    def get_logits(self, outputs: ModelOutput) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        """Return class logits (batch, queries, classes + 1) and masks (batch, queries, height, width).

        And both of every layer before the last, if the configuration asks for auxiliary losses.
        """
        layers = (outputs.transformer_decoder_last_hidden_state,)
        if self.config.use_auxiliary_loss:
            layers = outputs.transformer_decoder_hidden_states
        masks = [self.alignment(self.mask_embedder(x), outputs.pixel_decoder_last_hidden_state) for x in layers]
        classes = [self.class_predictor(x) for x in layers]
        auxiliary = [
            {"masks_queries_logits": layer_masks, "class_queries_logits": layer_classes}
            for layer_masks, layer_classes in zip(masks[:-1], classes[:-1])
        ]
        return classes[-1], masks[-1], auxiliary


class AlignedMask2Former(Mask2FormerForUniversalSegmentation):
    """Mask2Former, its masks aligned: also those that tell the next layer where to look."""

    def __init__(self, config: PreTrainedConfig, use_class_offset: bool = True, use_feature_offset: bool = True):
        super().__init__(config)
        self.model.transformer_module.decoder.mask_predictor = AlignedMaskPredictor(
            config.hidden_dim,
            config.num_attention_heads,
            config.mask_feature_size,
            use_class_offset,
            use_feature_offset,
        )


class AlignedEomtMixin(AnyBase):
    """The masks of an EoMT, aligned: also those that tell the next layer where to look."""

    def __init__(self, config: PreTrainedConfig, use_class_offset: bool = True, use_feature_offset: bool = True):
        super().__init__(config)
        self.alignment = OffsetAlignment(config.hidden_size, use_class_offset, use_feature_offset)

    def predict(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Predict masks (batch, queries, height, width) and class logits (batch, queries, classes + 1).

        Of tokens (batch, queries + prefix + patches, channels).
        """
        num_queries, num_prefix = self.config.num_queries, self.embeddings.num_prefix_tokens
        queries, _, patches = logits.split((num_queries, num_prefix, logits.shape[1] - num_queries - num_prefix), 1)
        pixel_embeddings = self.upscale_block(patches.transpose(1, 2).unflatten(2, self.grid_size))
        return self.alignment(self.mask_head(queries), pixel_embeddings), self.class_predictor(queries)


class AlignedEomt(AlignedEomtMixin, EomtForUniversalSegmentation):
    """EoMT, its masks aligned."""


class AlignedEomtDinov3(AlignedEomtMixin, EomtDinov3ForUniversalSegmentation):
    """EoMT on DINOv3, its masks aligned."""


ALIGNED: dict[str, Any] = {
    "maskformer": AlignedMaskFormer,
    "mask2former": AlignedMask2Former,
    "eomt": AlignedEomt,
    "eomt_dinov3": AlignedEomtDinov3,
}


class OffsetAlignmentForUniversalSegmentation(InnerOffsetsMixin, PreTrainedModel):
    """A mask classification model of transformers whose masks come from offset alignment.

    Inputs and outputs are those of the model that `config.base_config` describes, and so is its image processor.
    """

    config: OffsetAlignmentConfig
    other_auto_classes = auto_classes_of("modeling_offset_alignment.OffsetAlignmentForUniversalSegmentation")
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True  # every base does, at least in its backbone
    accepts_loss_kwargs = False  # the base divides its loss by the number of masks itself

    def __init__(self, config: OffsetAlignmentConfig):
        super().__init__(config)
        # Labels may be set on a configuration after it was made: `from_pretrained(..., num_labels=3)` does.
        base_config: Any = config.base_config
        base_config.id2label, base_config.label2id = config.id2label, config.label2id
        aligned_class = ALIGNED[base_config.model_type]
        self.model = aligned_class(base_config, config.use_class_offset, config.use_feature_offset)
        self.post_init()

    def alignments(self) -> list[OffsetAlignment]:
        """Return all alignments in the model."""
        return [module for module in self.modules() if isinstance(module, OffsetAlignment)]

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        patch_offsets: list[Tensor] | None = None,
        **kwargs,
    ) -> ModelOutput:
        """Segment images (batch, num_channels, height, width) into masks with classes.

        Args:
            pixel_values: The images.
            mask_labels: For every image, (masks, height, width).
            class_labels: For every image, (masks,).
            pixel_mask: (batch, height, width), of MaskFormer and Mask2Former; see there.
            patch_offsets: Of EoMT; see there.
            **kwargs: Whatever else the base takes.

        Returns:
            The outputs of the base: class logits (batch, queries, classes + 1), masks (batch, queries, mask height,
            mask width), and the loss where there are labels.
        """
        optional = {"pixel_mask": pixel_mask, "patch_offsets": patch_offsets}
        kwargs |= {name: value for name, value in optional.items() if value is not None}
        return self.model(pixel_values, mask_labels=mask_labels, class_labels=class_labels, **kwargs)


def align_masks(
    model: PreTrainedModel, options: OffsetLearningOptions = OffsetLearningOptions()
) -> OffsetAlignmentForUniversalSegmentation:
    """Return a copy of a mask classification model whose masks come from offset alignment.

    Args:
        model: A MaskFormerForInstanceSegmentation, a Mask2FormerForUniversalSegmentation, or an EoMT.
        options: With `warm_start`, offsets are zero at first, so that the masks are the model's own.

    Raises:
        ValueError: for any other model.
    """
    aligned_class = ALIGNED.get(getattr(model.config, "model_type", ""))
    if aligned_class is None or type(model) not in aligned_class.__bases__:
        expected = ", ".join(known.__bases__[-1].__name__ for known in ALIGNED.values())
        raise ValueError(f"offset alignment is for the masks of {expected}; got {type(model).__name__}")
    config = OffsetAlignmentConfig(base_config=deepcopy(model.config), **options.branches)
    with init.no_init_weights():  # all of them are replaced
        aligned = OffsetAlignmentForUniversalSegmentation(config)
    aligned.to(device=model.device, dtype=model.dtype)
    _continue_from(aligned.model, model)
    for alignment in aligned.alignments():
        alignment.start_without_offsets() if options.warm_start else alignment.reset_parameters()
    return aligned


def _continue_from(aligned: nn.Module, model: nn.Module) -> None:
    """Give an aligned model what its base has learned, and its state: dtypes, frozen parameters, training mode."""
    missing, unexpected = aligned.load_state_dict(deepcopy(model.state_dict()), strict=False, assign=True)
    if unexpected or not all(".alignment." in f".{name}" for name in missing):
        raise ValueError(f"{type(model).__name__} has been changed: weights {missing} miss, {unexpected} are unknown")
    for name, parameter in model.named_parameters():
        aligned.get_parameter(name).requires_grad_(parameter.requires_grad)
    aligned.train(model.training)


__all__ = ["OffsetAlignmentForUniversalSegmentation"]
