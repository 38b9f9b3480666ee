"""Sliding-window inference: a network trained on crops sees a large image crop by crop, and the logits are averaged.

Windows lie where the official test loop puts them (HVision-NKU/OffSeg @ 1414f6d, `EncoderDecoder.slide_inference`).
Ours run together in batches of bounded size instead of one by one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


# Windows of one shape run together until their pixels exceed this: four of 512 x 512, one of 1024 x 1024.
MAX_PIXELS_PER_FORWARD = 1024 * 1024


def sliding_windows(height: int, width: int, window_size: int, window_stride: int) -> Tensor:
    """Boxes (top, left, bottom, right), row by row, that cover an image: int64 (num_windows, 4).

    Windows start every `window_stride` pixels; the last of a row or column is shifted back inside the image. Along a
    side shorter than `window_size` there is one window, as long as the side.
    """
    if height < 1 or width < 1:
        raise ValueError(f"expected an image of at least 1 x 1 pixels, got {height} x {width}")
    if not 1 <= window_stride <= window_size:
        raise ValueError(
            f"expected 1 <= window_stride <= window_size, got window_stride={window_stride} and "
            f"window_size={window_size}: a larger stride leaves pixels that no window covers"
        )
    rows = _intervals(height, window_size, window_stride)
    columns = _intervals(width, window_size, window_stride)
    return torch.tensor([(top, left, bottom, right) for top, bottom in rows for left, right in columns])


def sliding_window_logits(
    predict: Callable[[Tensor], Tensor], pixel_values: Tensor, windows: Tensor, num_labels: int
) -> Tensor:
    """Logits of `pixel_values`, averaged over the windows that see a pixel: (batch, num_labels, height, width).

    pixel_values: (batch, channels, height, width).
    windows: integers (batch, num_windows, 4), boxes (top, left, bottom, right) in pixels. Boxes of zeros are padding,
        for images with fewer windows, and are skipped. Pixels under no window get logits of 0.
    predict: takes crops (n, channels, h, w), returns logits (n, num_labels, any height, any width), which are
        upsampled bilinearly to the window.

    Sums are kept in float32 at least, whatever the precision of `predict`, and returned so.
    Raises ValueError for boxes that are not inside the image.
    """
    batch, _, height, width = pixel_values.shape
    boxes_by_shape = _group_by_shape(windows, pixel_values)
    dtype = torch.promote_types(pixel_values.dtype, torch.float32)
    canvas = pixel_values.new_zeros((batch, num_labels, height, width), dtype=dtype)
    count = pixel_values.new_zeros((batch, 1, height, width), dtype=dtype)

    for shape, boxes in boxes_by_shape.items():
        batch_size = max(1, MAX_PIXELS_PER_FORWARD // (shape[0] * shape[1]))
        for start in range(0, len(boxes), batch_size):
            chunk = boxes[start : start + batch_size]
            crops = torch.stack([pixel_values[index][:, rows, columns] for index, rows, columns in chunk])
            logits = predict(crops)
            # One window at a time: at full size, logits of many classes outweigh the network's activations.
            for (index, rows, columns), window_logits in zip(chunk, logits, strict=True):
                canvas[index, :, rows, columns] += _upsample(window_logits.to(dtype), shape)
                count[index, :, rows, columns] += 1
    return canvas.div_(count.clamp_(min=1))


def _intervals(length: int, window_size: int, window_stride: int) -> list[tuple[int, int]]:
    """Windows along one side: (start, end)."""
    number = max(length - window_size + window_stride - 1, 0) // window_stride + 1
    ends = [min(i * window_stride + window_size, length) for i in range(number)]
    return [(max(end - window_size, 0), end) for end in ends]


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    # Of channels that come last, torch would put the large result in order, at a fraction of the memory's speed.
    return F.interpolate(logits[None].contiguous(), size=size, mode="bilinear", align_corners=False)[0]


def _group_by_shape(windows: Tensor, pixel_values: Tensor) -> dict[tuple[int, int], list[tuple[int, slice, slice]]]:
    """Windows as (image index, rows, columns), sorted into lists by (height, width), in order; checks every box."""
    batch, _, height, width = pixel_values.shape
    if windows.is_floating_point() or windows.is_complex() or windows.dtype == torch.bool:
        raise ValueError(f"windows: expected integers (pixels), got {windows.dtype}; do not cast them with the images")
    if windows.ndim != 3 or windows.shape[0] != batch or windows.shape[2] != 4:
        raise ValueError(
            f"windows: expected shape ({batch}, num_windows, 4) for pixel_values of shape "
            f"{tuple(pixel_values.shape)}, got {tuple(windows.shape)}"
        )
    groups = {}
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
