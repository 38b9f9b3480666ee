"""Prediction of the label map of a photo: through the image processor as it is set, or over scaled and mirrored views.

Test-time augmentation is that of the official recipes (HVision-NKU/OffSeg @ 1414f6d: `tta_pipeline` of
local_configs/_base_/datasets, `SegTTAModel`): each view's scores are brought to the size of the label map, made
probabilities by a softmax over the classes, and averaged over the views.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from offseg_hf.evaluation.calibration import grid, winners_probability
from offseg_hf.inference.windows import averaged_windows, upsampled_at
from offseg_hf.models.image_operations import keep_ratio_size


OFFICIAL_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

# Values that a softmax works on at a time: 64 MiB of float32.
MAX_SOFTMAX_VALUES = 2**24


def prepare(photo: Image.Image, processor: Any, scales: Sequence[float] | None = None) -> list[BatchFeature]:
    """Make the model's inputs for an RGB photo: one view by the settings of the processor, or one for each scale.

    Args:
        photo: of any size.
        processor: the model's.
        scales: relative to the photo's own size, as officially; where the processor has one fixed height and width for
            all photos, relative to these.
    """
    options: dict[str, Any] = {"return_tensors": "pt"}
    if getattr(processor, "do_center_crop", None):
        options["do_center_crop"] = False  # post-processing would stretch the crop's label map over the photo
    if scales is None:
        return [processor(images=photo, **options)]
    sizes = [_scaled_size(photo, processor, scale) for scale in scales]
    return [
        processor(images=photo, do_resize=True, size={"height": height, "width": width}, **options)
        for height, width in sizes
    ]


def predict(
    model: nn.Module,
    processor: Any,
    views: Sequence[BatchFeature],
    size: tuple[int, int],
    flip: bool = False,
    max_values: int = MAX_SOFTMAX_VALUES,
) -> Tensor:
    """Predict the label map of a photo, integers of `size`, from the views that `prepare` made of it.

    Args:
        model: of transformers, for semantic or universal segmentation.
        processor: the model's.
        views: on the model's device.
        size: height and width of the label map.
        flip: look at each of them mirrored as well.
        max_values: that a softmax works on at a time.
    """
    return _predict(model, processor, views, size, flip, max_values, with_probability=False)[0]


def predict_with_probability(
    model: nn.Module, processor: Any, views: Sequence[BatchFeature], size: tuple[int, int], flip: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Predict the label map of a photo, and the probability of its classes at the grid of `calibration`.

    Arguments are those of `predict`. There are no probabilities, but None, of models of masks: what these add up per
    class is no distribution over the classes.
    """
    return _predict(model, processor, views, size, flip, MAX_SOFTMAX_VALUES, with_probability=True)


def _predict(
    model: nn.Module,
    processor: Any,
    views: Sequence[BatchFeature],
    size: tuple[int, int],
    flip: bool,
    max_values: int,
    with_probability: bool,
) -> tuple[Tensor, Tensor | None]:
    if len(views) == 1 and not flip:
        return _predict_view(model, processor, views[0], size, with_probability)
    total = torch.empty(0)
    for inputs in views:
        for mirrored in (False, True) if flip else (False,):
            outputs = model(**(_mirror(inputs) if mirrored else inputs))
            with_probability &= _logits(outputs) is not None
            scores = _scores(processor, outputs, size)
            del outputs
            if not len(total):
                total = torch.zeros(scores.shape, dtype=torch.float32, device=scores.device)
            for rows in _bands(scores, max_values):
                band = scores[:, rows].float().softmax(dim=0)
                total[:, rows] += band.flip(-1) if mirrored else band
            del scores  # or it would live beside the next forward
    label_map = total.argmax(dim=0)
    if not with_probability:
        return label_map, None
    places = [grid(length).to(total.device) for length in size]
    winner = total.index_select(1, places[0]).index_select(2, places[1]).amax(dim=0)
    return label_map, (winner / (len(views) * (2 if flip else 1))).cpu()


def _predict_view(
    model: nn.Module, processor: Any, inputs: BatchFeature, size: tuple[int, int], with_probability: bool
) -> tuple[Tensor, Tensor | None]:
    if "windows" in inputs:
        (image,) = averaged_windows(lambda crops: model(crops).logits, **inputs)
        label_map, num_classes = image.label_map(size), len(image.windows[0].logits)
        scores_at = partial(image.scores_at, size)
    else:
        outputs = model(**inputs)
        label_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        logits = _logits(outputs)
        if logits is None:
            return label_map, None
        num_classes, scores_at = len(logits), partial(upsampled_at, logits, size)
    return label_map, winners_probability(scores_at, num_classes, size) if with_probability else None


def _logits(outputs: Any) -> Tensor | None:
    """Return the logits (classes, height, width) of the one image without its padding; None of models of masks."""
    logits = getattr(outputs, "logits", None)
    if logits is None:
        return None
    image_sizes = getattr(outputs, "image_sizes", None)
    if image_sizes is None:
        return logits[0]
    height, width = image_sizes[0].tolist()
    return logits[0, :, :height, :width]


def _scaled_size(photo: Image.Image, processor: Any, scale: float) -> tuple[int, int]:
    """Return (height, width), rounded as mmcv's Resize does with `scale_factor` and `keep_ratio`."""
    fixed = processor.size.get("height"), processor.size.get("width")
    height, width = fixed if all(fixed) else (photo.height, photo.width)
    scaled = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(scaled) < 1:
        raise ValueError(f"a photo of {width}x{height} has no pixels left at scale {scale}")
    return scaled if all(fixed) else keep_ratio_size(height, width, min(scaled), max(scaled))


def _scores(processor: Any, outputs: Any, size: tuple[int, int]) -> Tensor:
    results = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[size], return_segmentation_scores=True
    )
    return results[0].segmentation_scores


def _mirror(inputs: BatchFeature) -> dict[str, Any]:
    """Mirror the inputs. Where padding is known (`image_sizes`) it stays at the right and bottom."""
    mirrored = dict(inputs)
    pixel_values = inputs["pixel_values"]
    if "image_sizes" in inputs:
        height, width = inputs["image_sizes"][0].tolist()
        mirrored["pixel_values"] = pixel_values.clone()
        mirrored["pixel_values"][..., :height, :width] = pixel_values[..., :height, :width].flip(-1)
        return mirrored
    for name in ("pixel_values", "pixel_mask"):
        if name in inputs:
            mirrored[name] = inputs[name].flip(-1)
    return mirrored


def _bands(scores: Tensor, max_values: int) -> Iterator[slice]:
    """Divide (classes, height, width) into rows that are worked on together."""
    classes, height, width = scores.shape
    step = max(1, max_values // (classes * width))
    return (slice(top, top + step) for top in range(0, height, step))
