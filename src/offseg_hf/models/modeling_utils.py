"""What the models here share: what transformers wants of a model, and what a model for semantic segmentation does.

Windows lie where the official test loop puts them (HVision-NKU/OffSeg @ 1414f6d, `EncoderDecoder.slide_inference`).
Ours run together in batches of bounded size instead of one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .configuration_offset import AnyBase
from .layers import fuse
from .offset_learning import OffsetAlignment


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Windows of one shape run together until their pixels exceed this: four of 512 x 512, one of 1024 x 1024. On the CPU
# one of 512 x 512: two of them together take as long as one after the other, or up to 1.07 times that.
MAX_PIXELS_PER_FORWARD, MAX_PIXELS_ON_CPU = 1024 * 1024, 512 * 512

# Upsampled logits that the loss works on at a time: 16 MiB of float32.
BAND_VALUES = 2**22


class OffsetModelMixin(AnyBase):
    """What transformers wants of a model that is not part of it."""

    other_auto_classes: dict[str, str] = {}  # beside the one it is registered for: Auto class -> module.class

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        """Let `_init_weights` see modules without parameters of their own, which overrule those of their children.

        For code that is not its own, transformers passes over modules all of whose own parameters are initialized, so
        over those without any. It need not: what `transformers.initialization` writes to asks every parameter itself
        whether it was loaded. The public `initialize_weights` is called of the outermost model alone, this of each.
        """
        super()._initialize_weights(module)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs
    ) -> None:
        """Set it as of every model; batch norms, whose parts see every batch twice then, learn of it once."""
        norms = [module for module in self.modules() if isinstance(module, BATCH_NORMS)]
        learning_once = partial(checkpoint_learning_once, gradient_checkpointing_func, norms)
        super()._set_gradient_checkpointing(enable, learning_once, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, *args, save_original_format: bool = False, **kwargs):
        """Save as every model does, with all Auto classes that the code beside the weights is for.

        Args:
            save_directory: The folder.
            *args: As every model's.
            save_original_format: Give the weights the names of the first files of the model of transformers that this
                one is built around, instead of those of its modules.
            **kwargs: As every model's.
        """
        if self.is_remote_code() and self.other_auto_classes:
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | self.other_auto_classes
        with own_class(self):
            super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give a model that FSDP2 shards, by a class made of its own, its own one: of that the code is saved."""
    found = type(model)
    own = next(each for each in found.__mro__ if each.__module__.partition(".")[0] != "torch")
    if own is found:
        yield
        return
    model.__class__ = own  # as FSDP2 has set the other
    try:
        yield
    finally:
        model.__class__ = found


def checkpoint_learning_once(checkpoint: Callable, norms: Sequence[nn.Module], function: Callable, *args, **kwargs):
    """Run a part by a function of gradient checkpoints; when it is computed again, batch norms learn nothing anew.

    Args:
        checkpoint: As `torch.utils.checkpoint.checkpoint`, reentrant or not.
        norms: Batch norms, in the part and elsewhere.
        function: The part.
        *args: Its arguments, and those of `checkpoint`.
        **kwargs: The same.
    """
    if torch.compiler.is_compiling():  # what it computes again has no effects
        return checkpoint(function, *args, **kwargs)
    is_again = False

    def learning_once(*args, **kwargs):
        nonlocal is_again
        if is_again:
            with statistics_as_they_are(norms):
                return function(*args, **kwargs)
        is_again = True
        return function(*args, **kwargs)

    return checkpoint(learning_once, *args, **kwargs)


@contextmanager
def statistics_as_they_are(norms: Sequence[Any]) -> Iterator[None]:
    """Let batch norms use the statistics of the batch without learning them."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


class InnerOffsetsMixin(OffsetModelMixin):
    """Initializes offset learning inside of a model that initializes itself and takes it for its own layers."""

    @torch.no_grad()
    @init.guard_torch_init_functions()  # what was loaded stays
    def initialize_weights(self):
        """Initialize all that was not loaded, the offsets last."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, OffsetAlignment):
                self.initialize_offsets(module)

    def initialize_offsets(self, module: OffsetAlignment) -> None:
        """Initialize one alignment."""
        module.reset_parameters()


class EncoderBackboneMixin(OffsetModelMixin, BackboneMixin):
    """The forward of a backbone that says, in `encode`, what its stem and its stages give."""

    has_attentions = False

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return what the stem gives, and the feature maps of the stages."""
        raise NotImplementedError

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """Images (batch, num_channels, height, width) of any size -> the maps named by `config.out_features`.

        Stage i, and the stem as stage 1, gives (batch, channels, ceil(height / 2 ** (i + 1)), ceil(width / ...)).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.encode(pixel_values)
        return BackboneOutput(
            feature_maps=tuple(x for name, x in zip(self.stage_names, hidden_states) if name in self.out_features),
            hidden_states=hidden_states if output_hidden_states else None,
        )


@dataclass
class OffSegSemanticSegmenterOutput(SemanticSegmenterOutput):
    """[`SemanticSegmenterOutput`] and where in it the images are.

    image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*, returned when passed):
        Height and width of every image without its padding, in pixels of `pixel_values`.
    """

    image_sizes: Tensor | None = None


class SemanticSegmentationMixin(OffsetModelMixin):
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
        """Segment images of any size, whole or window by window.

        Args:
            pixel_values: (batch, num_channels, height, width).
            labels: Class ids (batch, height, width), `config.semantic_loss_ignore_index` where there is none. Beside
                `image_sizes` they may be those of photos of another size, to which the images without padding are
                brought, all of one size.
            windows: Boxes (batch, num_windows, 4) as [`OffSegImageProcessor`] makes them. The logits of the windows
                are upsampled and averaged, so that logits have the size of `pixel_values`; without windows they have
                the size that the decoder gives.
            image_sizes: (batch, 2) as [`OffSegImageProcessor`] makes them, beside `windows`; they go into the output
                as they are, for its post-processing.
            output_hidden_states: Return the encoder's four feature maps as `hidden_states`; not with windows.

        Raises:
            ValueError: for inputs of other shapes, and for labels that are no class.
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
            config, class_weights, size = self.config, self.config.semantic_loss_class_weights, pixel_values.shape[-2:]
            scores = logits
            if image_sizes is not None and labels.shape[-2:] != size:
                scores, size = without_padding(logits, image_sizes), labels.shape[-2:]
            check_labels(labels, (len(pixel_values), *size), config.num_labels, config.semantic_loss_ignore_index)
            check_class_weights(class_weights, config.num_labels)
            loss = segmentation_loss(scores, labels, config.semantic_loss_ignore_index, class_weights)

        return OffSegSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            image_sizes=image_sizes,
        )

    def fuse(self) -> Self:
        """Return a copy for inference that gives the same logits (to 2e-4 in float32) with less arithmetic.

        What is constant at inference (batch norms, layer scales, query scales) is folded into the convolutions beside
        it, or kept. The copy can be moved, cast and compiled, but neither trained nor saved.

        Raises:
            ValueError: for a model that is not all there, or of which others have made something else.
        """
        check_fusible(self)
        model = deepcopy(self).eval().requires_grad_(False)
        if not self.is_fused:
            fuse(model)
            model.is_fused = True
        return model

    is_fused = False

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as every model does; raise ValueError for a fused one."""
        if self.is_fused:
            raise ValueError("a fused model is for inference only and cannot be saved: save the model it was made of")
        super().save_pretrained(save_directory, *args, **kwargs)


def sliding_window_logits(
    predict: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    windows: Tensor,
    num_labels: int,
    max_pixels: int | None = None,
) -> Tensor:
    """Return the logits of images, averaged over the windows that see a pixel: (batch, num_labels, height, width).

    Sums are kept in float32 at least, whatever the precision of `predict`, and returned so.

    Args:
        predict: Takes crops (n, channels, h, w), returns logits (n, num_labels, any height, any width), which are
            upsampled bilinearly to the window.
        pixel_values: (batch, channels, height, width).
        windows: Integers (batch, num_windows, 4), boxes (top, left, bottom, right) in pixels. Boxes of zeros are
            padding, for images with fewer windows, and are skipped. Pixels under no window get logits of 0.
        num_labels: How many logits `predict` gives.
        max_pixels: Of the windows that are predicted together; a window alone may have more. None for what suits the
            device.

    Raises:
        ValueError: for boxes that are not inside the image.
    """
    batch, _, height, width = pixel_values.shape
    dtype = torch.promote_types(pixel_values.dtype, torch.float32)
    canvas = pixel_values.new_zeros((batch, num_labels, height, width), dtype=dtype)
    count = pixel_values.new_zeros((batch, 1, height, width), dtype=dtype)
    # One window at a time: at full size, logits of many classes outweigh the network's activations.
    for (index, rows, columns), logits in window_logits(predict, pixel_values, windows, max_pixels):
        size = (rows.stop - rows.start, columns.stop - columns.start)
        canvas[index, :, rows, columns] += _upsample(logits.to(dtype), size)
        count[index, :, rows, columns] += 1
    return canvas.div_(count.clamp_(min=1))


def window_logits(
    predict: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    windows: Tensor,
    max_pixels: int | None = None,
) -> Iterator[tuple[tuple[int, slice, slice], Tensor]]:
    """Run `predict` on all windows in batches of bounded size: of each window (image, rows, columns), and its logits.

    Arguments and errors are those of `sliding_window_logits`.
    """
    if max_pixels is None:
        max_pixels = MAX_PIXELS_ON_CPU if pixel_values.device.type == "cpu" else MAX_PIXELS_PER_FORWARD
    for (height, width), boxes in _group_by_shape(windows, pixel_values).items():
        batch_size = max(1, max_pixels // (height * width))
        for start in range(0, len(boxes), batch_size):
            chunk = boxes[start : start + batch_size]
            crops = torch.stack([pixel_values[index][:, rows, columns] for index, rows, columns in chunk])
            yield from zip(chunk, predict(crops), strict=True)


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    # Of channels that come last, torch would put the large result in order, at a fraction of the memory's speed.
    return F.interpolate(logits[None].contiguous(), size=size, mode="bilinear", align_corners=False)[0]


def _group_by_shape(windows: Tensor, pixel_values: Tensor) -> dict[tuple[int, int], list[tuple[int, slice, slice]]]:
    """Sort windows, as (image index, rows, columns), into lists by (height, width), in order; check every box."""
    batch, _, height, width = pixel_values.shape
    if windows.is_floating_point() or windows.is_complex() or windows.dtype == torch.bool:
        raise ValueError(f"windows: expected integers (pixels), got {windows.dtype}; do not cast them with the images")
    if windows.ndim != 3 or windows.shape[0] != batch or windows.shape[2] != 4:
        raise ValueError(
            f"windows: expected shape ({batch}, num_windows, 4) for pixel_values of shape "
            f"{tuple(pixel_values.shape)}, got {tuple(windows.shape)}"
        )
    groups: dict[tuple[int, int], list[tuple[int, slice, slice]]] = {}
    for index, boxes in enumerate(windows.tolist()):
        for top, left, bottom, right in boxes:
            if top == left == bottom == right == 0:
                continue
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise ValueError(
                    "windows: expected (top, left, bottom, right) with top < bottom and left < right inside "
                    f"{height} x {width} (height x width), got {(top, left, bottom, right)} for image {index}"
                )
            box = (index, slice(top, bottom), slice(left, right))
            groups.setdefault((bottom - top, right - left), []).append(box)
    return groups


def check_fusible(model: nn.Module) -> None:
    """Raise ValueError where fusing would lose or not find what a part of the model computes with."""
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
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None,
    band_values: int = BAND_VALUES,
) -> Tensor:
    """Compute the cross-entropy of upsampled logits over all pixels; ignored ones count as zero, as in mmseg.

    Args:
        logits: (batch, num_labels, any height, any width), upsampled bilinearly to the size of the labels.
        labels: class ids (batch, height, width).
        ignore_index: the label of pixels that count as zero.
        class_weights: what the loss of a pixel is multiplied by, by class; the mean is over pixels nevertheless.
        band_values: how many upsampled logits are worked on at a time.
    """
    weight = None if class_weights is None else logits.new_tensor(class_weights, dtype=single_or_double(logits))

    def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, reduction="none").sum()

    return sum_over_bands(loss_of, logits, (labels.long(),), band_values) / labels.numel()


def sum_over_bands(
    function: Callable[..., Tensor], logits: Tensor, maps: Sequence[Tensor], band_values: int = BAND_VALUES
) -> Tensor:
    """Sum what a function makes of upsampled logits, band by band of rows, with its gradient beside it.

    Of all classes at every pixel there is never more than a band.

    Args:
        function: of logits (batch, num_labels, rows, width), float32 or more, and of maps (batch, rows, width);
            returns a number that adds up over bands.
        logits: (batch, num_labels, any height, any width), upsampled bilinearly to the size of the maps.
        maps: what else is known of each pixel, such as labels, (batch, height, width).
        band_values: how many upsampled logits are worked on at a time.
    """
    bands = _bands(logits, maps, band_values)
    if len(bands) == 1:
        return function(_upsampled(logits.contiguous(), None, maps[0]), *maps)
    if torch.is_grad_enabled() and logits.requires_grad:
        return SumOverBands.apply(function, logits, band_values, *maps)[0]
    return _sum_over_bands(logits, function, maps, band_values)


def upsampled_bands(
    logits: Tensor, maps: Sequence[Tensor], band_values: int = BAND_VALUES
) -> Iterator[tuple[Tensor, ...]]:
    """Yield of each band of rows its upsampled logits and its maps; arguments are those of `sum_over_bands`."""
    # In order before they are many: torch does it with the large result, if channels come last, and slowly.
    logits = logits.contiguous()
    for rows, between, of_band in _bands(logits, maps, band_values):
        yield _upsampled(logits[..., rows, :], between, of_band[0]), *of_band


class SumOverBands(torch.autograd.Function):
    """`_sum_over_bands` with its gradient, which is computed beside it: no band is kept, and none computed again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        function: Callable[..., Tensor], logits: Tensor, band_values: int, *maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum, and its gradient."""
        logits = logits.contiguous()
        total, gradient = _nothing(logits), torch.zeros_like(logits)
        for rows, between, of_band in _bands(logits, maps, band_values):
            of_rows = partial(_of_rows, function=function, between=between, maps=of_band)
            of_logits, value = torch.func.grad_and_value(of_rows)(logits[..., rows, :])
            gradient[..., rows, :] += of_logits
            total = total + value
        return total, gradient

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        """Keep the gradient, and what has a gradient of its own."""
        function, logits, band_values, *maps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, output[1], *maps)
        ctx.options = function, band_values

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient; where it is recorded, compute it once more."""
        logits, of_logits, *maps = ctx.saved_tensors
        if torch.is_grad_enabled():
            function, band_values = ctx.options
            of_logits = torch.func.grad(_sum_over_bands)(logits, function, maps, band_values)
        return None, (gradient * of_logits).to(logits.dtype), None, *(None for _ in maps)


def _sum_over_bands(
    logits: Tensor, function: Callable[..., Tensor], maps: Sequence[Tensor], band_values: int
) -> Tensor:
    """Do what `sum_over_bands` does, with a gradient that keeps all bands."""
    return sum((function(*band) for band in upsampled_bands(logits, maps, band_values)), start=_nothing(logits))


def _bands(
    logits: Tensor, maps: Sequence[Tensor], band_values: int
) -> list[tuple[slice, Tensor | None, Sequence[Tensor]]]:
    """Return of each band the rows of logits it lies between, its matrix (rows, rows of logits), and its maps.

    Without a matrix it is the whole.
    """
    batch, classes, old, _ = logits.shape
    height, width = maps[0].shape[-2:]
    if torch.compiler.is_compiling() or band_values >= batch * classes * height * width:  # a compiler has its own
        return [(slice(None), None, maps)]
    bands: list[tuple[slice, Tensor | None, Sequence[Tensor]]] = []
    step = max(1, band_values // (batch * classes * width))
    for top in range(0, height, step):
        of_band = [rows[:, top : top + step] for rows in maps]
        position = (torch.arange(top, top + of_band[0].shape[1], dtype=torch.float64) + 0.5) * (old / height) - 0.5
        position = position.clamp(0, old - 1)
        first, last = int(position[0]), min(int(position[-1]) + 2, old)
        between = 1 - (position[:, None] - torch.arange(first, last)).abs()  # bilinear, where positive
        bands.append((slice(first, last), between.clamp(min=0), of_band))
    return bands


def _of_rows(
    logits: Tensor, function: Callable[..., Tensor], between: Tensor | None, maps: Sequence[Tensor]
) -> Tensor:
    """Return what a function makes of a band."""
    return function(_upsampled(logits, between, maps[0]), *maps)


def _upsampled(logits: Tensor, between: Tensor | None, like: Tensor) -> Tensor:
    """Upsample rows of logits to a map of a band by its matrix, or all to one of all rows."""
    logits = logits.to(single_or_double(logits))
    if between is None:
        return F.interpolate(logits, size=like.shape[-2:], mode="bilinear")
    with torch.autocast(logits.device.type, enabled=False):  # which would round the positions
        logits = F.interpolate(logits, size=(logits.shape[-2], like.shape[-1]), mode="bilinear")
        return between.to(logits) @ logits


def _nothing(logits: Tensor) -> Tensor:
    """Return 0 as sums begin."""
    return logits.new_zeros((), dtype=single_or_double(logits))


def single_or_double(logits: Tensor) -> torch.dtype:
    """Return float32, or the type of logits that are of more."""
    return torch.promote_types(logits.dtype, torch.float32)


def check_pixel_values(pixel_values: Tensor, num_channels: int) -> None:
    """Raise ValueError for anything but images (batch, num_channels, height, width)."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must have the shape (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}"
        )


def check_class_weights(class_weights: Sequence[float] | None, num_labels: int) -> None:
    """Raise ValueError for anything but one finite weight per class, or None."""
    if class_weights is None:
        return
    name = "semantic_loss_class_weights"
    if len(class_weights) != num_labels:
        raise ValueError(f"{name} must be {num_labels} numbers, one per class, or None; got {len(class_weights)}")
    if not all(0 <= weight < math.inf for weight in class_weights):
        raise ValueError(f"{name} must be finite and 0 or more, got {list(class_weights)}")


def without_padding(logits: Tensor, image_sizes: Tensor) -> Tensor:
    """Cut logits at the size of `pixel_values` to the images; raise ValueError if these are not of one size."""
    sizes = image_sizes.unique(dim=0).tolist()
    if len(sizes) != 1:
        raise ValueError(f"labels of photos beside images of {len(sizes)} sizes: pass the images one by one")
    height, width = sizes[0]
    return logits[..., :height, :width]


def check_labels(labels: Tensor, expected: tuple[int, int, int], num_labels: int, ignore_index: int) -> None:
    """Raise ValueError for labels that are not class ids, or not of the images' size."""
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
