"""What all models for semantic segmentation here share: their inputs and output, windows and the loss."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .layers import fuse
from .sliding_window import sliding_window_logits


@dataclass
class OffSegSemanticSegmenterOutput(SemanticSegmenterOutput):
    """[`SemanticSegmenterOutput`] and where in it the images are.

    image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*, returned when passed):
        Height and width of every image without its padding, in pixels of `pixel_values`.
    """

    image_sizes: torch.LongTensor | None = None


class SemanticSegmentationMixin:
    """The forward of a model that says, in `segment`, what it computes for images it sees whole."""

    accepts_loss_kwargs = False  # the loss is a mean over all pixels, which Trainer must not weigh anew

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, num_labels, any height, any width) and the encoder's feature maps."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        windows: Tensor | None = None,
        image_sizes: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> OffSegSemanticSegmenterOutput:
        """Segments images of any size, whole or window by window.

        pixel_values: (batch, num_channels, height, width).
        labels: class ids (batch, height, width), `config.semantic_loss_ignore_index` where there is none.
        windows: boxes (batch, num_windows, 4) as [`OffSegImageProcessor`] makes them. The logits of the windows are
            upsampled and averaged, so that logits have the size of `pixel_values`; without windows they have the
            size that the decoder gives.
        image_sizes: (batch, 2) as [`OffSegImageProcessor`] makes them, beside `windows`; they go into the output as
            they are, for its post-processing.

        With `output_hidden_states`, `hidden_states` are the encoder's four feature maps; not with windows.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states and windows is None
        if windows is None and image_sizes is not None:
            raise ValueError("image_sizes are for logits at the size of pixel_values: pass windows too, or neither")
        if windows is None:
            logits, hidden_states = self.segment(pixel_values)
        elif output_hidden_states:
            raise ValueError(
                "hidden states are those of one image: call the model with them or with windows, not both"
            )
        else:
            logits = sliding_window_logits(
                lambda crops: self.segment(crops)[0], pixel_values, windows, self.config.num_labels
            )

        loss = None
        if labels is not None:
            config, class_weights = self.config, self.config.semantic_loss_class_weights
            check_labels(labels, pixel_values, config.num_labels, config.semantic_loss_ignore_index)
            check_class_weights(class_weights, config.num_labels)
            loss = segmentation_loss(logits, labels, config.semantic_loss_ignore_index, class_weights)

        return OffSegSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            image_sizes=image_sizes,
        )

    def fuse(self) -> Self:
        """A copy for inference that gives the same logits (to 2e-4 in float32) with less arithmetic.

        What is constant at inference (batch norms, layer scales, query scales) is folded into the convolutions beside
        it, or kept. The copy can be moved, cast and compiled, but neither trained nor saved.

        Raises ValueError for a model that is not all there, or of which others have made something else.
        """
        check_fusible(self)
        model = deepcopy(self).eval().requires_grad_(False)
        if self.is_fused:
            return model
        model = fuse(model)
        model.is_fused = True
        return model

    is_fused = False

    def save_pretrained(self, save_directory, *args, **kwargs):
        if self.is_fused:
            raise ValueError("a fused model is for inference only and cannot be saved: save the model it was made of")
        super().save_pretrained(save_directory, *args, **kwargs)


def check_fusible(model: nn.Module) -> None:
    """Raises ValueError where fusing would lose or not find what a part of the model computes with."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ValueError(
                f"fuse() needs all weights, and {name} is on the meta device: load the model without offloading "
                "(without device_map, or with all of it on one device)"
            )
        if type(value.detach()) is not Tensor:
            raise ValueError(
                f"fuse() wants plain tensors, and {name} is a {type(value.detach()).__name__}: fuse the model before "
                "it is quantized or sharded"
            )
    own = (__name__.rpartition(".")[0], "torch.nn.modules", "transformers")
    for name, module in model.named_modules():
        if is_parametrized(module) or any(isinstance(value, Tensor) for value in vars(module).values()):
            raise ValueError(
                f"fuse() wants weights that are parameters, and those of {name} are computed from others: make what "
                "parametrizes or prunes them permanent before (remove_parametrizations, prune.remove)"
            )
        if not type(module).__module__.startswith(own):
            raise ValueError(
                f"fuse() knows nothing of {name}, a {type(module).__module__}.{type(module).__name__}: take it out "
                "before (an adapter with merge_and_unload())"
            )
        if "forward" in vars(module):
            raise ValueError(
                f"fuse() cannot keep what has replaced the forward of {name or 'the model'}: load the model without "
                "device_map, or take the hooks off (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
            )


def segmentation_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Sequence[float] | None
) -> Tensor:
    """Cross-entropy of the upsampled logits over all pixels; ignored ones count as zero, as in mmseg.

    class_weights: what the loss of a pixel is multiplied by, for every class. The mean is over pixels, not weights.
    """
    # In order before they are many: torch does it with the large result, if channels come last, and slowly.
    logits = F.interpolate(logits.contiguous(), size=labels.shape[-2:], mode="bilinear")
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    return F.cross_entropy(logits, labels.long(), weight, ignore_index=ignore_index, reduction="none").mean()


def check_pixel_values(pixel_values: Tensor, num_channels: int) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must have the shape (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}"
        )


def check_class_weights(class_weights: Sequence[float] | None, num_labels: int) -> None:
    if class_weights is None:
        return
    name = "semantic_loss_class_weights"
    if len(class_weights) != num_labels:
        raise ValueError(f"{name} must be {num_labels} numbers, one per class, or None; got {len(class_weights)}")
    if not all(0 <= weight < math.inf for weight in class_weights):
        raise ValueError(f"{name} must be finite and 0 or more, got {list(class_weights)}")


def check_labels(labels: Tensor, pixel_values: Tensor, num_labels: int, ignore_index: int) -> None:
    expected = (len(pixel_values), *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must have the size of the images, (batch, height, width) = {expected}, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers (class ids), got {labels.dtype}")
    # On an accelerator the look at the values would wait for the queue; there, out of range is a device-side assert.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
        if len(wrong):
            values = ", ".join(str(value) for value in wrong.unique().tolist()[:5])
            raise ValueError(
                f"labels must be in [0, {num_labels - 1}] or {ignore_index} (ignored), got {len(wrong)} pixels with "
                f"other values, such as {values}"
            )
