"""Images and label maps as numpy arrays: reading every kind of input, and resizing as the official pipeline does.

The official test pipeline (mmcv on OpenCV) resizes uint8 images with `cv2.INTER_LINEAR`: no antialiasing, and
fixed-point arithmetic whose rounding decides labels at class borders. `resize_bilinear` does the same arithmetic, bit
by bit (compared with OpenCV 4.11 and 5.0). Source: OpenCV, modules/imgproc/src/resize.cpp.
"""

import base64
import os
from collections.abc import Callable, Iterator
from http.client import HTTPException
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


# OpenCV's fixed point: interpolation weights are integers of 11 bits.
WEIGHT_SCALE = 1 << 11

# Label of pixels that count neither in the loss nor in the metric, and of padding.
IGNORE_INDEX = 255

# PIL's modes of one wide integer per pixel, and those that convert to RGB only, or only without a warning, through
# another one.
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
MODE_BEFORE_RGB = {"P": "RGBA", "RGBa": "RGBA", "La": "LA"}


# Seconds that a server may take for every part of its answer.
URL_TIMEOUT = 60.0

Picture = Image.Image | np.ndarray | Tensor


def to_list(images: Any, ndim: int) -> list[Any]:
    """Return one image, an array of them (`ndim` + 1 dimensions) or (nested) lists of them as a flat list."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == ndim + 1:
        return list(images)
    return list(_flatten(images))


def open_picture(source: Any, timeout: float | None = URL_TIMEOUT) -> Picture:
    """Open the picture that a path, a URL or base64 text names; return others as they are.

    Nothing of it is converted: transformers' `load_image` makes colors of label maps, and saturates 16 bits.

    Args:
        source: A picture, a path, a URL, or base64 text, with "data:image/...," before it or not.
        timeout: Seconds that a server may take for every part of its answer.

    Raises:
        ValueError: which says why there is no picture.
    """
    if isinstance(source, Picture):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            "expected PIL images, numpy arrays, torch tensors, paths, URLs, base64 text, or lists of them, "
            f"got {type(source).__name__}"
        )
    text = os.fspath(source)
    try:
        if isinstance(text, str) and text.startswith(("http://", "https://")):
            return Image.open(BytesIO(_download(text, timeout)))
        if os.path.isfile(text):
            return Image.open(text)
        if os.path.exists(text):
            raise ValueError("expected the file of an image, got a folder")
        return Image.open(BytesIO(_decode_base64(text)))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image, or of a format that Pillow does not know") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on broken files
        raise error if isinstance(error, ValueError) else ValueError(f"cannot be opened: {error}") from error


def read_from(
    source: Any, place: str, read: Callable[[Picture], np.ndarray], timeout: float | None = URL_TIMEOUT
) -> np.ndarray:
    """Return `read` of the picture that `source` is or names.

    Raises:
        ValueError: which says the `place`, and the path or URL if there is one.
    """
    try:
        return read(open_picture(source, timeout))
    except ValueError as error:
        is_text = isinstance(source, str | os.PathLike)
        name = os.fsdecode(source) if is_text else str(getattr(source, "filename", "") or "")
        name = name if len(name) <= 300 else f"{name[:40]}..."  # base64 text
        raise ValueError(f"{place} ({name}): {error}" if name else f"{place}: {error}") from error


def read_image(
    image: Image.Image | np.ndarray | Tensor,
    convert_rgb: bool = True,
    input_data_format: str | ChannelDimension | None = None,
) -> np.ndarray:
    """Return an image as uint8 or float32 (channels, height, width), upright; three channels if `convert_rgb`.

    As OpenCV loads files: alpha is dropped, not blended; of 16 bits the upper 8 are kept; a PIL image with an EXIF
    orientation is turned upright. Booleans become 0 and 255, other integers must be in 0..255, floats keep their
    values. The result may share memory with the input.

    Raises:
        ValueError: for what is not an image.
    """
    if isinstance(image, Image.Image):
        image = _decoded(image)
        _check_not_empty(image.size[::-1])
        array = _pil_to_array(image, convert_rgb)
        input_data_format = ChannelDimension.LAST
    else:
        array = _to_numpy(image)
        _check_not_empty(array.shape)
    array = _to_uint8_or_float32(array)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3:
        array = _channels_first(array, input_data_format, convert_rgb)
    else:
        raise ValueError(f"expected an array of 2 or 3 dimensions per image, got shape {array.shape}")
    if convert_rgb:
        array = np.repeat(array, 3, axis=0) if len(array) == 1 else array[:3]
    return array


def read_label_map(label_map: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """Return a label map as int64 (height, width), upright. Of a palette image the indices count, not the colors.

    Raises:
        ValueError: for what does not hold one integer per pixel.
    """
    array = np.array(_decoded(label_map)) if isinstance(label_map, Image.Image) else _to_numpy(label_map)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2:
        raise ValueError(
            f"expected a label map of one class id per pixel, (height, width), got shape {array.shape}; "
            "colors have to be mapped to ids first"
        )
    if array.dtype.kind not in "bui":
        raise ValueError(f"expected a label map of integers, got {array.dtype}")
    _check_not_empty(array.shape)
    return array.astype(np.int64)


def reduce_labels(label_map: np.ndarray) -> np.ndarray:
    """Turn labels that start at 1 into labels that start at 0: 0, no class, becomes 255, which stays."""
    return np.where((label_map == 0) | (label_map == IGNORE_INDEX), IGNORE_INDEX, label_map - 1)


def pad_label_map(label_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pad (height, width) with 255 at the bottom and the right."""
    padding = ((0, height - label_map.shape[0]), (0, width - label_map.shape[1]))
    return np.pad(label_map, padding, constant_values=IGNORE_INDEX)


def keep_ratio_size(height: int, width: int, shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """Return the largest (height, width) of the same aspect ratio within both edges, rounded as mmcv does."""
    scale = shortest_edge / min(height, width)
    if longest_edge is not None:
        scale = min(longest_edge / max(height, width), scale)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (channels, height, width) as `cv2.resize` does (INTER_LINEAR): uint8 bit by bit, float32 to rounding."""
    old_height, old_width = image.shape[-2:]
    if (old_height, old_width) == (height, width):
        return image
    x0, x1, x_weight = linear_taps(old_width, width)
    y0, y1, y_weight = linear_taps(old_height, height)
    # Past the left and right border OpenCV gives the border pixel all weight, past top and bottom it repeats the row.
    x_weight[x0 == x1] = 0
    if image.dtype != np.uint8:
        upper, lower = (image[:, y] for y in (y0, y1))
        upper, lower = (row[..., x0] * (1 - x_weight) + row[..., x1] * x_weight for row in (upper, lower))
        return upper * (1 - y_weight[:, None]) + lower * y_weight[:, None]
    if (old_height, old_width) == (2 * height, 2 * width):
        pixels = image.astype(np.int32)
        total: Any = sum(pixels[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
        return ((total + 2) >> 2).astype(np.uint8)

    used, position = np.unique(np.concatenate([y0, y1]), return_inverse=True)
    left_weight, right_weight = fixed_point(x_weight)
    rows = image[:, used]
    rows = (rows[..., x0] * left_weight + rows[..., x1] * right_weight) >> 4
    top_weight, bottom_weight = (weight[:, None] for weight in fixed_point(y_weight))
    top = (rows[:, position[:height]] * top_weight) >> 16
    bottom = (rows[:, position[height:]] * bottom_weight) >> 16
    return ((top + bottom + 2) >> 2).astype(np.uint8)


def resize_nearest(label_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (height, width) as `cv2.resize` with INTER_NEAREST does, which rounds source positions down."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(label_map.shape, (height, width))
    )
    return label_map[rows[:, None], columns]


def _flatten(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def _download(url: str, timeout: float | None) -> bytes:
    try:
        with urlopen(Request(url, headers={"User-Agent": "offseg-hf"}), timeout=timeout) as response:
            return response.read()
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"cannot be fetched: {error or type(error).__name__}") from error


def _decode_base64(text: Any) -> bytes:
    try:
        if isinstance(text, str) and text.startswith("data:image/"):
            text = text.partition(",")[2]
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, TypeError):
        raise ValueError("no such file, and neither a URL nor base64 text") from None


def _decoded(image: Image.Image) -> Image.Image:
    """Return an image read to its end, and upright: its EXIF data may say that it is to be turned."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise ValueError(f"cannot be decoded: {error}") from error


def linear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two old positions that every new one lies between, and the float32 weight of the second."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position)
    index = first.astype(np.int64)
    return np.clip(index, 0, old - 1), np.clip(index + 1, 0, old - 1), position - first


def fixed_point(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the first and the second of two neighbors, in units of 1 / WEIGHT_SCALE."""
    first, second = (np.rint(w * np.float32(WEIGHT_SCALE)).astype(np.int32) for w in (np.float32(1) - weight, weight))
    return first, second


def _pil_to_array(image: Image.Image, convert_rgb: bool) -> np.ndarray:
    if image.mode in WIDE_MODES:
        array = np.asarray(image)
        low, high = array.min(), array.max()
        if low < 0 or high > 65535:
            raise ValueError(f"expected values in 0..65535 in mode {image.mode}, got values from {low} to {high}")
        return array.astype(np.uint16)
    if convert_rgb and image.mode != "F":
        if image.mode in MODE_BEFORE_RGB:
            image = image.convert(MODE_BEFORE_RGB[image.mode])
        image = image.convert("RGB")
    return np.asarray(image)


def _to_numpy(image: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    return image


def _to_uint8_or_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind in "ui":
        low, high = array.min(), array.max()
        if low < 0 or high > 255:
            raise ValueError(
                f"expected {array.dtype} pixels from 0 to 255, got values from {low} to {high}; "
                "16-bit images are recognized by the dtype uint16"
            )
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        broken = array.size - np.count_nonzero(np.isfinite(array))
        if broken:
            raise ValueError(f"expected finite pixels, got {broken} values that are NaN or infinite")
        return array
    raise ValueError(f"expected pixels of booleans, integers or floats, got {array.dtype}")


def _channels_first(
    array: np.ndarray, input_data_format: str | ChannelDimension | None, convert_rgb: bool
) -> np.ndarray:
    if input_data_format is None:
        if not {1, 3, 4} & {array.shape[0], array.shape[-1]}:
            raise ValueError(f"expected 1, 3 or 4 channels in the first or last dimension, got shape {array.shape}")
        input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
    if input_data_format == ChannelDimension.LAST:
        array = np.moveaxis(array, -1, 0)
    if convert_rgb and len(array) not in (1, 3, 4):
        raise ValueError(f"expected 1, 3 or 4 channels, got {len(array)} (input_data_format={input_data_format})")
    return array


def _check_not_empty(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ValueError(f"expected at least one pixel, got an array of shape {tuple(shape)}")


def sliding_windows(height: int, width: int, window_size: int, window_stride: int) -> Tensor:
    """Return boxes (top, left, bottom, right), row by row, that cover an image: int64 (num_windows, 4).

    Windows start every `window_stride` pixels; the last of a row or column is shifted back inside the image. Along a
    side shorter than `window_size` there is one window, as long as the side.

    Raises:
        ValueError: for no image, and for windows that leave pixels uncovered.
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


def _intervals(length: int, window_size: int, window_stride: int) -> list[tuple[int, int]]:
    """Return the windows along one side: (start, end)."""
    number = max(length - window_size + window_stride - 1, 0) // window_stride + 1
    ends = [min(i * window_stride + window_size, length) for i in range(number)]
    return [(max(end - window_size, 0), end) for end in ends]
