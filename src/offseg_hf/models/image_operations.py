"""Images and label maps: reading every kind of input, resizing, and the label map of scores at another size.

The official test pipeline (mmcv on OpenCV) resizes uint8 images with `cv2.INTER_LINEAR`: no antialiasing, and
fixed-point arithmetic whose rounding decides labels at class borders. `resize_bilinear` does the same arithmetic, bit
by bit (compared with OpenCV 4.11 and 5.0). Source: OpenCV, modules/imgproc/src/resize.cpp.

The argmax over classes of bilinearly upsampled scores is found without upsampling all classes. Four neighboring scores
of a class span a *cell*: every pixel in it is a convex combination of the four, with weights that are the same for all
classes. Hence two exact rules:

- Where one class wins at all four corners, it wins in the whole cell. Most cells are so, and are only filled.
- A class whose largest corner is below the smallest corner of another class wins nowhere in the cell. The few that
  remain are interpolated, and compared pixel by pixel.

Bands of rows, or parts of them, are worked on one after the other, so that memory stays bounded, and scores may be
computed as they are asked for. A band in which the rules exclude little (noise) is upsampled whole.
"""

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
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


# Scores in a band: 16 MiB of float32.
BAND_VALUES = 2**22
# Values that are interpolated or gathered at a time, so that they stay in a processor's cache.
CACHED_VALUES = 2**18
# Cells by which a band is judged, before all of it is looked at.
SAMPLED_CELLS = 256
# What a pixel of a mixed cell costs beside one that is upsampled with its neighbors (gathers and scattered writes).
COST_OF_MIXED_PIXEL = 3

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


def upsampled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return scores (classes, height, width) at another size, in float32, interpolated bilinearly."""
    scores = scores.float()
    if tuple(scores.shape[1:]) == tuple(size):
        return scores
    # Of classes that come last in memory, torch would put the large result in order, and slowly.
    return F.interpolate(scores[None].contiguous(), size=size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Upsampled:
    """Scores at another size, of which parts are computed when they are asked for.

    Args:
        scores: float32 (classes, height, width).
        size: (height, width) that they are interpolated to, bilinearly.
    """

    scores: Tensor
    size: tuple[int, int]

    def part(self, rows: slice, columns: slice, classes: Tensor | None = None) -> Tensor:
        """Return some rows and columns of `upsampled(scores, size)`, to rounding; of all classes, or of some."""
        return _upsampled_part(self.scores, self._rows, self._columns, rows, columns, classes)

    @cached_property
    def _rows(self) -> "_Axis":
        """Return where the rows lie between those of the scores."""
        return _Axis.of(self.scores.shape[1], self.size[0], self.scores.device)

    @cached_property
    def _columns(self) -> "_Axis":
        """Return where the columns lie between those of the scores."""
        return _Axis.of(self.scores.shape[2], self.size[1], self.scores.device)


def upsampled_argmax(scores: Tensor, size: tuple[int, int], band_values: int = BAND_VALUES) -> Tensor:
    """Return `F.interpolate(scores, size, mode="bilinear").argmax(0)`, but for ties to rounding.

    Args:
        scores: (classes, height, width), of any floating-point type; compared in float32.
        size: (height, width) of the label map.
        band_values: how many scores are worked on at a time.

    Returns:
        Label map, int64, of `size`.
    """
    height, width = scores.shape[1:]
    if size[0] * size[1] <= height * width:  # what comes of it is no larger than what is there
        return upsampled(scores, size).argmax(dim=0)
    return upsampled_argmax_of_rows(
        lambda top, bottom: scores[:, top:bottom], (len(scores), height, width), size, scores.device, band_values
    )


def upsampled_argmax_of_rows(
    read_rows: Callable[[int, int], Tensor],
    shape: tuple[int, int, int],
    size: tuple[int, int],
    device: torch.device,
    band_values: int = BAND_VALUES,
) -> Tensor:
    """Return what `upsampled_argmax` does, of scores that are computed band by band.

    Args:
        read_rows: gives the rows from `top` to `bottom` (exclusive) of the scores: (classes, bottom - top, width).
            Asked for from top to bottom, every row at most twice.
        shape: (classes, height, width) of all scores.
        size: (height, width) of the label map.
        device: of the scores and the label map.
        band_values: how many scores are worked on at a time.

    Returns:
        Label map, int64, of `size`.
    """
    return upsampled_argmax_of_parts(
        lambda rows, *_: read_rows(rows.start, rows.stop), shape[1:], size, device, band_size(shape, band_values)
    )


def band_size(shape: tuple[int, int, int], band_values: int = BAND_VALUES) -> tuple[int, int]:
    """Return the rows and columns of bands as wide as scores (classes, height, width), with so many values at most."""
    classes, _, width = shape
    return max(1, band_values // (classes * width)), width


def upsampled_argmax_of_parts(
    read: Callable[[slice, slice, Tensor | None], Tensor],
    shape: tuple[int, int],
    size: tuple[int, int],
    device: torch.device,
    part_size: tuple[int, int],
    contenders: Callable[[slice, Sequence[slice]], Sequence[Tensor | None]] | None = None,
) -> Tensor:
    """Return what `upsampled_argmax` does, of scores that are computed part by part.

    Args:
        read: gives some rows and columns of the scores, (classes, rows, columns); its third argument are the classes
            that are wanted, int64 in their order, or None for all.
        shape: (height, width) of all scores.
        size: (height, width) of the label map.
        device: of the scores and the label map.
        part_size: most rows and columns of the scores in a part, beside one row and one column of the next ones.
        contenders: tells which classes can win in some rows, in each of some columns: as `read` is asked for them.

    Returns:
        Label map, int64, of `size`.
    """
    down, across = _Axis.of(shape[0], size[0], device), _Axis.of(shape[1], size[1], device)
    label_map = torch.empty(size, dtype=torch.int64, device=device)
    has_cells = size[0] * size[1] > shape[0] * shape[1]
    parts = [across.between(left, min(left + part_size[1], shape[1])) for left in range(0, shape[1], part_size[1])]
    parts = [columns for columns in parts if len(columns.low)]
    places = [columns.reach for columns in parts]
    for top in range(0, shape[0], part_size[0]):
        rows = down.between(top, min(top + part_size[0], shape[0]))
        if not len(rows.low):
            continue
        classes = [None] * len(parts) if contenders is None else contenders(rows.reach, places)
        for columns, place, names in zip(parts, places, classes, strict=True):
            target = label_map[rows.pixels, columns.pixels]
            if names is not None and len(names) == 1:
                target.fill_(names[0])
                continue
            part = read(rows.reach, place, names).float()
            if shape == size:
                target.copy_(part[:, : target.shape[0], : target.shape[1]].max(dim=0).indices)  # faster than argmax
            elif has_cells and _few_can_win(part):
                _fill_by_cells(part, rows, columns, target)
            else:
                _fill_whole(part, rows, columns, target)
            if names is not None:
                target.copy_(names[target])
    return label_map


@dataclass(frozen=True)
class _Axis:
    """Where the pixels of one axis lie between scores, or some of the pixels between some of the scores.

    Of every pixel: `low`, the score before it, and the weights of that one and the next. Of every score: how many
    pixels follow before the next score (`count`), and the first of them (`start`). `begin` and `first` tell which
    score and which pixel of the axis are the first here; there are `old` scores in the whole axis.
    """

    low: Tensor
    low_weight: Tensor
    high_weight: Tensor
    count: Tensor
    start: Tensor
    old: int
    begin: int = 0
    first: int = 0

    @classmethod
    def of(cls, old: int, new: int, device: torch.device) -> "_Axis":
        """Ask `F.interpolate` itself, whose rounding decides which class wins by little.

        Of three signals, one for each residue of the position by 3, it gives the two weights of every pixel, each in
        the signal that tells which score it belongs to.
        """
        residue = torch.arange(old, device=device) % 3
        signals = F.one_hot(residue, 3).T.float()[None, :, None]
        weights = F.interpolate(signals, size=(1, new), mode="bilinear", align_corners=False)[0, :, 0]
        places = torch.arange(new, dtype=torch.float64)  # on the CPU: accelerators of Apple have no float64
        position = ((places + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
        low = position.floor().long()
        other = torch.where(position - low > 0.5, 1, -1).to(device)
        low = low.to(device)
        # At an integer, rounding may have put the pixel on its other side: then a score beyond the two has a weight.
        beyond = weights.gather(0, ((low + 2) % 3)[None])[0] > 0
        low += torch.where(beyond, other, 0)
        low_weight, high_weight = (weights.gather(0, ((low + after) % 3)[None])[0] for after in (0, 1))
        high_weight = torch.where(low == old - 1, 0.0, high_weight)
        count = torch.bincount(low, minlength=old)
        return cls(low, low_weight, high_weight, count, count.cumsum(0) - count, old)

    def between(self, begin: int, end: int) -> "_Axis":
        """Return the pixels after the scores from `begin` to `end` (exclusive), counted from `begin`."""
        if (begin, end) == (0, self.old):
            return self
        first, number = int(self.start[begin]), int(self.count[begin:end].sum())
        pixels = slice(first, first + number)
        return _Axis(
            self.low[pixels] - begin,
            self.low_weight[pixels],
            self.high_weight[pixels],
            self.count[begin:end],
            self.start[begin:end] - first,
            self.old,
            begin,
            first,
        )

    @property
    def pixels(self) -> slice:
        """Return which pixels of the axis are here."""
        return slice(self.first, self.first + len(self.low))

    @property
    def reach(self) -> slice:
        """Return which scores of the axis the pixels here lie between: those here, and the next one."""
        return slice(self.begin, min(self.begin + len(self.count) + 1, self.old))

    def needed(self, pixels: slice) -> slice:
        """Return which scores some pixels lie between."""
        low = self.low[pixels]
        return slice(int(low[0]), min(int(low[-1]) + 2, self.reach.stop - self.begin))

    @cached_property
    def weights(self) -> Tensor:
        """Return how much of each score is in each pixel: (pixels, scores), the next one among them."""
        reach = self.reach.stop - self.begin
        weights = self.low_weight.new_zeros(len(self.low), reach)
        weights.scatter_(1, self.low[:, None], self.low_weight[:, None])
        return weights.scatter_add_(1, (self.low[:, None] + 1).clamp(max=reach - 1), self.high_weight[:, None])

    def pixels_of(self, cells: Tensor) -> Tensor:
        """Return the pixels (cells, most pixels of any cell) after each of some scores; the last one is repeated."""
        steps = torch.arange(int(self.count.max()), device=cells.device)
        return self.start[cells, None] + torch.minimum(steps, self.count[cells, None] - 1)


def _few_can_win(band: Tensor) -> bool:
    """Whether, by a sample of its cells, a band takes less time by cells than it would take whole."""
    classes, height, width = band.shape
    cells = torch.linspace(0, height * width - 1, SAMPLED_CELLS, device=band.device).long()
    corners = _corners(band, cells // width, cells % width)
    winners = corners.max(dim=1).indices
    is_mixed = (winners != winners[0]).any(dim=0)
    cost = COST_OF_MIXED_PIXEL * (_could_win(corners) * is_mixed).sum() / SAMPLED_CELLS
    return bool(cost < classes)


def _corners(band: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the scores around some cells of a band: (top left and right, bottom left and right; classes; cells)."""
    height, width = band.shape[1:]
    below, right = (y + 1).clamp(max=height - 1), (x + 1).clamp(max=width - 1)
    scores = band.flatten(1)
    return torch.stack([scores[:, i * width + j] for i in (y, below) for j in (x, right)])


def _could_win(corners: Tensor) -> Tensor:
    """Return how many classes no other one excludes in each cell: (cells,)."""
    return (corners.amax(dim=0) >= corners.amin(dim=0).amax(dim=0)).sum(dim=0)


def _fill_by_cells(band: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor) -> None:
    """Fill `label_map` with the winners of the cells of a band, and those with several winners pixel by pixel."""
    classes, height, width = band.shape
    winner = band.flatten(1).max(dim=0).indices.view(1, height, width).float()  # faster than argmax
    missing = len(columns.count) + 1 - width, len(rows.count) + 1 - height  # beyond the last ones there are no scores
    winner = F.pad(winner, (0, missing[0], 0, missing[1]), mode="replicate")[0].long()
    here = winner[:-1, :-1]
    is_mixed = (here != winner[:-1, 1:]) | (here != winner[1:, :-1]) | (here != winner[1:, 1:])
    is_mixed &= (rows.count > 0)[:, None] & (columns.count > 0)
    torch.index_select(here[:, columns.low], 0, rows.low, out=label_map)

    mixed = is_mixed.flatten().nonzero()[:, 0]
    step = max(1, 4 * CACHED_VALUES // classes)
    for start in range(0, len(mixed), step):
        cells = mixed[start : start + step]
        corners = _corners(band, cells // len(columns.count), cells % len(columns.count))
        number, largest = _could_win(corners), corners.amax(dim=0)
        most = 1
        while most < int(number.max()):
            fewest, most = most, 2 * most
            chosen = ((number > fewest) & (number <= most)).nonzero()[:, 0]
            if len(chosen):
                candidates = largest[:, chosen].topk(min(most, classes), dim=0).indices.sort(dim=0).values
                _fill_mixed(corners[..., chosen], candidates, cells[chosen], rows, columns, label_map)


def _fill_mixed(
    corners: Tensor, candidates: Tensor, cells: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor
) -> None:
    """Fill some cells of `label_map` with the best of their candidates, (candidates, cells), at each pixel."""
    step = max(1, CACHED_VALUES // (int(rows.count.max()) * int(columns.count.max())))
    corners = corners.gather(1, candidates.expand(4, -1, -1))
    width = len(columns.count)
    for start in range(0, len(cells), step):
        part = slice(start, start + step)
        y, x = rows.pixels_of(cells[part] // width), columns.pixels_of(cells[part] % width)
        left_weight, right_weight = columns.low_weight[x], columns.high_weight[x]
        top_weight, bottom_weight = rows.low_weight[y][..., None], rows.high_weight[y][..., None]
        best = torch.full((), -torch.inf, device=cells.device)
        label = candidates[0, part, None, None]
        for name, (top_left, top_right, bottom_left, bottom_right) in zip(
            candidates[:, part, None, None], corners[..., part, None].transpose(0, 1), strict=True
        ):
            top = top_left * left_weight + top_right * right_weight
            bottom = bottom_left * left_weight + bottom_right * right_weight
            score = top[:, None] * top_weight + bottom[:, None] * bottom_weight  # (cells, rows, columns)
            label = torch.where(score > best, name, label)
            best = torch.maximum(best, score)
        label_map[y[:, :, None], x[:, None]] = label


def _fill_whole(band: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor) -> None:
    """Fill `label_map` with the winners among all classes, upsampled some rows at a time."""
    width = len(columns.low)
    step = max(1, CACHED_VALUES // (len(band) * width))
    for start in range(0, len(rows.low), step):
        pixels = slice(start, min(start + step, len(rows.low)))
        part = _upsampled_part(band, rows, columns, pixels, slice(0, width))
        label_map[pixels] = part.max(dim=0).indices


def _upsampled_part(
    scores: Tensor, rows: _Axis, columns: _Axis, down: slice, across: slice, classes: Tensor | None = None
) -> Tensor:
    """Return the pixels `down` and `across` of upsampled scores, which begin where the axes do: (classes, ...)."""
    y, x = rows.needed(down), columns.needed(across)
    is_whole = (columns.old, across) == (len(columns.count), slice(0, len(columns.low)))
    scores = scores[:, y] if is_whole else scores[:, y, x]
    scores = scores if classes is None else scores[classes]
    if is_whole:  # which torch interpolates in less time than a product takes
        wide = F.interpolate(scores.contiguous(), size=len(columns.low), mode="linear")
    else:
        wide = scores @ columns.weights[across, x].T
    # One product in place of four gathers and sums of the large result.
    return rows.weights[down, y] @ wide
