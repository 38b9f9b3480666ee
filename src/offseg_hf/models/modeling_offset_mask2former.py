"""Mask2Former with offset learning between its mask embeddings and its pixel embeddings, as a transformers model.

Papers: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811) and "Masked-attention Mask Transformer for Universal Image Segmentation"
(https://arxiv.org/abs/2112.01527). Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/models/decode_heads/mask2former_head_offset_learning.py. The encoder, the pixel decoder, the transformer decoder
and the loss are those of transformers, which compute what the official ones do; the prediction of masks is ours.

This is the paper's model, with the official weights and mmseg's test protocol. To adapt a trained Mask2Former of one's
own, `apply_offset_learning` makes an `OffsetAlignmentForUniversalSegmentation`, which is transformers' in all else.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerLoss,
    Mask2FormerModel,
    Mask2FormerPreTrainedModel,
)
from transformers.utils import is_scipy_available
from transformers.utils.generic import can_return_tuple

from .configuration_offset_mask2former import OffsetMask2FormerConfig
from .mask_prediction import AlignedMaskPredictor, auto_classes_of
from .modeling_utils import InnerOffsetsMixin
from .offset_learning import OffsetAlignment


@dataclass
class OffsetMask2FormerForUniversalSegmentationOutput(Mask2FormerForUniversalSegmentationOutput):
    """[`Mask2FormerForUniversalSegmentationOutput`] and where in it the images are.

    image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*, returned when passed):
        Height and width of every image without its padding, in pixels of `pixel_values`.
    """

    image_sizes: Tensor | None = None


class OffsetMask2FormerForUniversalSegmentation(InnerOffsetsMixin, Mask2FormerForUniversalSegmentation):
    """Mask2Former whose masks come of embeddings that have been offset, image by image and layer by layer.

    The weights of a [`Mask2FormerForUniversalSegmentation`] are all of its own but the alignment's, under the same
    names: `from_pretrained` loads them, and initializes the alignment (`config.start_without_offsets` says how).
    """

    config: OffsetMask2FormerConfig
    other_auto_classes = auto_classes_of("modeling_offset_mask2former.OffsetMask2FormerForUniversalSegmentation")
    supports_gradient_checkpointing = True  # as the encoder's blocks and the decoder's layers do
    accepts_loss_kwargs = False  # the loss is weighed by the number of masks already
    # Of a Mask2Former: a constant, and the norm of a classifier that segmentation leaves out.
    _keys_to_ignore_on_load_unexpected = [r"^criterion\.empty_weight$", r"\.encoder\.swin\.layernorm\."]

    def __init__(self, config: OffsetMask2FormerConfig):
        Mask2FormerPreTrainedModel.__init__(self, config)  # the parent's would not work without scipy
        self.model = Mask2FormerModel(config)
        self.model.transformer_module.decoder.mask_predictor = AlignedMaskPredictor(
            config.hidden_dim,
            config.num_attention_heads,
            config.mask_feature_size,
            config.use_class_offset,
            config.use_feature_offset,
        )
        encoder = self.model.pixel_level_module.encoder
        if hasattr(encoder, "swin"):
            encoder.swin.layernorm = nn.Identity()
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.weight_dict = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's, which Mask2Former does not name."""
        return self.model.pixel_level_module.encoder.get_input_embeddings()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs
    ) -> None:
        """Refuse reentrant parts: the decoder's layers get by keyword what these cannot send gradients through."""
        if enable and getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                'expected {"use_reentrant": False}, the default, for gradient checkpointing of Mask2Former, got True: '
                "layers of its decoder get tensors by keyword, through which reentrant parts send no gradients"
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def initialize_offsets(self, module: OffsetAlignment) -> None:
        """Initialize an alignment as the configuration says."""
        if self.config.start_without_offsets:
            module.start_without_offsets()
        else:
            module.reset_parameters(self.config.init_std)

    @property
    def criterion(self) -> Mask2FormerLoss:
        """The loss. It holds a constant and no weights, and wants scipy: it is made when labels are there."""
        if not is_scipy_available():
            raise ImportError("training Mask2Former matches masks by an algorithm of scipy: pip install scipy")
        return Mask2FormerLoss(self.config, self.weight_dict).to(self.device)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        image_sizes: Tensor | None = None,
    ) -> OffsetMask2FormerForUniversalSegmentationOutput:
        """Segments images of any size into masks with classes.

        pixel_values: (batch, num_channels, height, width).
        mask_labels, class_labels: per image masks (num_masks, height, width) of zeros and ones and their classes
            (num_masks,), as [`OffsetMask2FormerImageProcessor`] makes them; they go together.
        pixel_mask: taken from Mask2Former's own image processor, and without effect as in Mask2Former.
        output_auxiliary_logits: return the predictions of all layers but the last as well.
        image_sizes: (batch, 2) as [`OffsetMask2FormerImageProcessor`] makes them; they go into the output as they are,
            for its post-processing.

        Masks have a quarter of the height and width of `pixel_values`, rounded up.
        """
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels go together: pass both, or neither")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.config.output_auxiliary_logits

        # The states between the layers, which the classes are predicted from, are among the hidden states.
        outputs = self.model(
            pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True
        )
        masks_queries_logits = outputs.masks_queries_logits
        class_queries_logits = [
            self.class_predictor(states.transpose(0, 1)) for states in outputs.transformer_decoder_intermediate_states
        ]
        auxiliary_logits = self.get_auxiliary_logits(class_queries_logits, masks_queries_logits)

        loss = None
        if mask_labels is not None:
            auxiliary_predictions = auxiliary_logits if self.config.use_auxiliary_loss else ()
            loss_dict = self.get_loss_dict(
                masks_queries_logits[-1].float(),
                class_queries_logits[-1].float(),
                [masks.float() for masks in mask_labels],
                class_labels,
                [{name: logits.float() for name, logits in layer.items()} for layer in auxiliary_predictions],
            )
            loss = self.get_loss(loss_dict)

        return OffsetMask2FormerForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=class_queries_logits[-1],
            masks_queries_logits=masks_queries_logits[-1],
            auxiliary_logits=auxiliary_logits if output_auxiliary_logits else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            pixel_decoder_last_hidden_state=outputs.pixel_decoder_last_hidden_state,
            transformer_decoder_last_hidden_state=outputs.transformer_decoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states if output_hidden_states else None,
            pixel_decoder_hidden_states=outputs.pixel_decoder_hidden_states if output_hidden_states else None,
            transformer_decoder_hidden_states=(
                outputs.transformer_decoder_hidden_states if output_hidden_states else None
            ),
            attentions=outputs.attentions,
            image_sizes=image_sizes,
        )


__all__ = ["OffsetMask2FormerForUniversalSegmentation"]
