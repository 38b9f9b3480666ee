"""The official training augmentation: random resize, crop, flip, photometric distortion, normalization, padding.

The same steps, order and arithmetic as the pipelines of mmseg and mmcv (on OpenCV), pixel by pixel, but only the
pixels of the crop are ever computed: the crop is drawn first and resizing fills it alone, flipped, in blocks of rows.
Files are decoded whole: `Image.draft` halves a JPEG in the frequency domain, which gives other pixels than OpenCV's
resizing does, and Pillow cannot decode a part of a file. Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/datasets/transforms/transforms.py; mmcv @ a8073c7, mmcv/transforms/processing.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from transformers.image_utils import ChannelDimension

from offseg_hf.data.label_sets import IGNORE_INDEX
from offseg_hf.data.own_function import augment
from offseg_hf.data.photometric import distort, sample_distortion
from offseg_hf.models.image_operations import (
    fixed_point,
    keep_ratio_size,
    linear_taps,
    read_image,
)


# Crops looked at for one in which no class fills more than `cat_max_ratio`; the one drawn after these is taken as is.
CROP_TRIES = 10

# Pixels handled at a time, which bounds memory. Blocks that fit into a second-level cache are slower: a call of numpy
# has its price, too.
BLOCK_PIXELS = 1 << 17

BLUR = (0.1, 2.0)  # standard deviations, in pixels


class Rework(NamedTuple):
    """What becomes of a crop beside flips and colors.

    Args:
        angle: in degrees, against the clock.
        deviation: of the blur, in pixels.
        seed: of the user's function.
    """

    angle: float = 0.0
    deviation: float = 0.0
    seed: int | None = None


AS_IT_IS = Rework()


@dataclass(frozen=True, kw_only=True)
class TrainingTransform:
    """Make a training sample of an image and its label map; a call draws everything random from its generator.

    Args:
        crop_size: Height and width of the samples.
        scale: Long and short edge, in either order, that the image is resized to fit in, times a random ratio (mmcv's
            RandomResize); without this and `shortest_edges`, no resizing.
        ratio_range: Smallest and largest ratio that `scale` is multiplied by.
        shortest_edges: Lengths of which one is drawn for the short edge, instead of `scale` (mmseg's
            RandomChoiceResize with ResizeShortestEdge; Mask2Former).
        longest_edge: Bound of the long edge then.
        cat_max_ratio: Draw the crop again, up to ten times, while one class has this share of it or more; 1 takes any.
        flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip, for photos without an up and down.
        rotation: Largest angle, in degrees, by which crops are turned either way; what comes in from outside of the
            photo has no class.
        blur: Probability of a Gaussian blur, of a standard deviation of 0.1 to 2 pixels.
        extra: A function of your own as `module:function`, which gets each crop as uint8 (height, width, 3) and its
            class ids (height, width) and returns both; what random, numpy.random and torch draw in it is seeded.
        photometric: Distort brightness, contrast, saturation and hue.
        mean: Mean of red, green and blue, in 0..255, that is subtracted.
        std: Standard deviation of red, green and blue, in 0..255, that is divided by.

    Raises:
        ValueError: for settings that contradict each other.
    """

    crop_size: Sequence[int]
    scale: Sequence[int] | None = None
    ratio_range: Sequence[float] = (0.5, 2.0)
    shortest_edges: Sequence[int] | None = None
    longest_edge: int = 2048
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 0.0
    blur: float = 0.0
    extra: str | None = None
    photometric: bool = True
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        for field in fields(self):  # lists, as configuration files have them, would make it unhashable
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        for name, length in {"crop_size": 2, "scale": 2, "ratio_range": 2, "mean": 3, "std": 3}.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, tuple) or len(value) != length):
                raise ValueError(f"expected {length} numbers as {name}, got {value!r}")
        if self.scale is not None and self.shortest_edges is not None:
            raise ValueError("expected scale or shortest_edges, got both")
        if self.shortest_edges is not None and not (isinstance(self.shortest_edges, tuple) and self.shortest_edges):
            raise ValueError(f"expected at least one length as shortest_edges, got {self.shortest_edges!r}")
        lengths = (*self.crop_size, *(self.scale or ()), *(self.shortest_edges or ()), self.longest_edge)
        if not all(isinstance(length, int) and length > 0 for length in lengths):
            raise ValueError(f"expected whole pixels, above 0, as sizes, got {lengths}")
        low, high = self.ratio_range
        if not 0 < low <= high:
            raise ValueError(f"expected a ratio_range of a smaller and a larger number above 0, got {low} to {high}")
        if not (0 < self.cat_max_ratio <= 1 and 0 <= self.flip <= 1):
            raise ValueError(
                f"expected cat_max_ratio above 0 and up to 1, and flip from 0 to 1, got {self.cat_max_ratio} and "
                f"{self.flip}"
            )
        for name in ("vertical_flip", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected a probability from 0 to 1 as {name}, got {getattr(self, name)}")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"expected a rotation from 0 to 180 degrees, got {self.rotation}")
        if self.extra is not None and not all(self.extra.partition(":")):
            raise ValueError(f"expected a function as module:function as extra, got {self.extra!r}")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"expected std above 0, got {self.std}")

    def __call__(
        self,
        image: np.ndarray | Image.Image,
        label_map: np.ndarray | Image.Image,
        rng: np.random.Generator,
        ignore_index: int = IGNORE_INDEX,
    ) -> dict[str, Tensor]:
        """Make a sample; image and label map keep their values. Padding is 0 and `ignore_index`.

        Args:
            image: 8 bits per value, (height, width, 3), or what `read_image` turns into that.
            label_map: class ids (height, width), and `ignore_index` where there is none.
            rng: draws everything random.
            ignore_index: the id of what is no class.

        Returns:
            `pixel_values` float32 (3, *crop_size) and `labels` int64 crop_size.

        Raises:
            ValueError: if image and label map are something else or differ in size.
        """
        pixels, labels = _read_pair(image, label_map)
        height, width = labels.shape
        size = self.sample_size(height, width, rng)
        label_map = labels
        rows, columns, labels = self._sample_crop(label_map, size, rng, ignore_index)
        is_flipped = rng.random() < self.flip
        is_turned_over = self.vertical_flip > 0 and rng.random() < self.vertical_flip
        rework = self._sample_rework(rng)
        if rework != AS_IT_IS:
            pixels, labels = self._rework(pixels, label_map, size, rows, columns, rework, ignore_index)
            size, rows, columns = labels.shape, *map(np.arange, labels.shape)
        if is_flipped:
            columns, labels = columns[::-1], labels[:, ::-1]
        if is_turned_over:
            rows, labels = rows[::-1], labels[::-1]
        distortion = sample_distortion(rng) if self.photometric else None

        padded_labels = np.full(self.crop_size, ignore_index, np.int64)
        padded_labels[: len(rows), : len(columns)] = labels
        pixel_values = np.zeros((3, *self.crop_size), np.float32)
        mean, std = (np.asarray(value, np.float32)[:, None, None] for value in (self.mean, self.std))
        for block, crop in resize_crop(pixels, size, rows, columns):
            if distortion is not None:
                crop = distort(crop, distortion)
            normalized = pixel_values[:, block, : len(columns)]
            normalized[:] = crop.swapaxes(0, 1)
            normalized -= mean
            normalized /= std
        return {"pixel_values": torch.from_numpy(pixel_values), "labels": torch.from_numpy(padded_labels)}

    def _sample_rework(self, rng: np.random.Generator) -> Rework:
        """Draw what a crop is made into; nothing is drawn for what is not asked for."""
        angle = rng.uniform(-self.rotation, self.rotation) if self.rotation else 0.0
        is_blurred = self.blur > 0 and rng.random() < self.blur
        deviation = rng.uniform(*BLUR) if is_blurred else 0.0
        return Rework(angle, deviation, None if self.extra is None else int(rng.integers(2**32)))

    def _rework(
        self,
        image: np.ndarray,
        label_map: np.ndarray,
        size: tuple[int, int],
        rows: np.ndarray,
        columns: np.ndarray,
        rework: Rework,
        ignore_index: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make a crop, turned, blurred and by the user's function: uint8 (rows, columns, 3) and its labels."""
        if rework.angle:
            fill = tuple(round(value) for value in self.mean)
            pixels, labels = rotated_crop(image, label_map, size, rows, columns, rework.angle, fill, ignore_index)
        else:
            pixels = _crop_of(image, size, rows, columns)
            labels = resize_label_crop(label_map, size, rows, columns)
        if rework.deviation:
            pixels = np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rework.deviation)))
        if self.extra is not None and rework.seed is not None:
            pixels, labels = augment(self.extra, pixels, labels, rework.seed)
        return pixels, labels

    def sample_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the (height, width) that an image of this size is resized to."""
        if self.scale is not None:
            low, high = self.ratio_range
            ratio = rng.uniform(low, high)
            edges = [int(edge * ratio) for edge in self.scale]
        elif self.shortest_edges is not None:
            drawn = self.shortest_edges[int(rng.integers(len(self.shortest_edges)))]
            edges = self._shortest_edge_size(height, width, drawn)
        else:
            return height, width
        return keep_ratio_size(height, width, max(1, min(edges)), max(1, max(edges)))

    def _shortest_edge_size(self, height: int, width: int, shortest_edge: int) -> list[int]:
        # mmseg rounds here, then has mmcv fit the image into the rounded size: a pixel less now and then.
        scale = shortest_edge / min(height, width)
        edges = sorted((float(shortest_edge), scale * max(height, width)))
        if edges[1] > self.longest_edge:
            scale = self.longest_edge / edges[1]
            edges = [edge * scale for edge in edges]
        return [int(edge + 0.5) for edge in edges]

    def _sample_crop(
        self, label_map: np.ndarray, size: tuple[int, int], rng: np.random.Generator, ignore_index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the rows and columns of the resized image that make the crop, and look up the labels there."""
        tries = CROP_TRIES if self.cat_max_ratio < 1 else 0
        while True:
            rows, columns = (
                np.arange(min(edge, crop)) + rng.integers(max(edge - crop, 0) + 1)
                for edge, crop in zip(size, self.crop_size, strict=True)
            )
            labels = resize_label_crop(label_map, size, rows, columns)
            if tries == 0 or _is_varied(labels, self.cat_max_ratio, ignore_index):
                return rows, columns, labels
            tries -= 1


def rotated_crop(
    image: np.ndarray,
    label_map: np.ndarray,
    size: tuple[int, int],
    rows: np.ndarray,
    columns: np.ndarray,
    angle: float,
    fill: tuple[int, ...],
    ignore_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute a crop of the resized image that is turned around the crop's center, and of its label map.

    Args:
        image: uint8 (height, width, 3).
        label_map: class ids (height, width).
        size: height and width of the whole resized image.
        rows: of that image, ascending.
        columns: of that image, ascending.
        angle: in degrees, against the clock.
        fill: color of what is outside of the photo, whose label is `ignore_index`.
        ignore_index: the id of what is no class.

    Returns:
        uint8 (rows, columns, 3), interpolated, and labels (rows, columns), each that of the nearest pixel.
    """
    height, width = len(rows), len(columns)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = (abs(cosine) * height + abs(sine) * width, abs(sine) * height + abs(cosine) * width)
    insides, around = [], []  # of rows and columns: what there is of the part that is turned into the crop
    for lines, length, wanted in zip((rows, columns), size, reach, strict=True):
        margin = max(math.ceil((wanted - len(lines)) / 2) + 1, 0)
        first, last = int(lines[0]) - margin, int(lines[-1]) + margin + 1
        insides.append(np.arange(max(first, 0), min(last, length)))
        around.append((max(-first, 0), max(last - length, 0)))
    pixels, labels = _crop_of(image, size, *insides), resize_label_crop(label_map, size, *insides)
    canvas = np.empty((*(len(i) + sum(a) for i, a in zip(insides, around, strict=True)), 3), np.uint8)
    canvas[:] = fill
    classes = np.full(canvas.shape[:2], ignore_index, np.int32)
    inner = tuple(slice(a[0], a[0] + len(i)) for i, a in zip(insides, around, strict=True))
    canvas[inner], classes[inner] = pixels, labels
    middle_y, middle_x = canvas.shape[0] / 2, canvas.shape[1] / 2
    backward = (  # from a place in the crop to that in the canvas
        cosine, -sine, middle_x - cosine * width / 2 + sine * height / 2,
        sine, cosine, middle_y - sine * width / 2 - cosine * height / 2,
    )  # fmt: skip
    turn = partial(Image.Image.transform, size=(width, height), method=Image.Transform.AFFINE, data=backward)
    turned = turn(Image.fromarray(canvas), resample=Image.Resampling.BILINEAR, fillcolor=fill)
    turned_classes = turn(Image.fromarray(classes), resample=Image.Resampling.NEAREST, fillcolor=ignore_index)
    dtype = np.result_type(label_map.dtype, np.min_scalar_type(ignore_index))
    return np.array(turned), np.array(turned_classes).astype(dtype)


def _crop_of(image: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute a crop of the resized image as uint8 (rows, columns, 3)."""
    blocks = [block for _, block in resize_crop(image, size, rows, columns)]
    return np.ascontiguousarray(np.concatenate(blocks).swapaxes(1, 2))


def resize_crop(
    image: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Compute the given rows and columns of `resize_bilinear` to (height, width) `size`, without the rest.

    With channels in between, gathering the taps tells the channels apart, without another copy.

    Args:
        image: uint8 (height, width, 3).
        size: height and width of the whole resized image.
        rows: of that image.
        columns: of that image.

    Yields:
        Blocks of `rows` as slices, and their pixels as uint8 (rows of the block, 3, columns).
    """
    height, width, _ = image.shape
    shape = len(rows), len(columns)
    blocks = [rows[block] for block in _blocks(*shape)]
    if (height, width) == size:
        resized = (_take(image, block, columns) for block in blocks)
    elif (height, width) == (2 * size[0], 2 * size[1]):  # OpenCV averages four pixels then
        resized = (_average_of_four(image, 2 * block, 2 * columns) for block in blocks)
    else:
        x0, x1, x_weight = (taps[columns] for taps in linear_taps(width, size[1]))
        x_weight[x0 == x1] = 0  # see resize_bilinear
        column_taps = x0, x1, *fixed_point(x_weight)
        y0, y1, y_weight = (taps[rows] for taps in linear_taps(height, size[0]))
        row_taps = y0, y1, *fixed_point(y_weight)
        resized = (_interpolate(image, [tap[block] for tap in row_taps], column_taps) for block in _blocks(*shape))
    yield from zip(_blocks(*shape), resized, strict=True)


def _average_of_four(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    a, b, c, d = (_take(image, rows + y, columns + x).astype(np.uint16) for y in (0, 1) for x in (0, 1))
    return ((a + b + c + d + 2) >> 2).astype(np.uint8)


def _interpolate(image: np.ndarray, row_taps: Sequence[np.ndarray], column_taps: Sequence[np.ndarray]) -> np.ndarray:
    """Interpolate in OpenCV's fixed point; taps are two positions, and the weights of what is there."""
    y0, y1, top_weight, bottom_weight = row_taps
    first = y0.min()
    is_used = np.zeros(y1.max() - first + 1, bool)
    is_used[y0 - first] = is_used[y1 - first] = True
    lines = _interpolate_columns(image, np.flatnonzero(is_used) + first, column_taps)
    position = np.cumsum(is_used) - 1

    def weighted(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        values = lines.take(position[y - first], axis=0).astype(np.int32)
        values *= weight[:, None, None]
        values >>= 16
        return values

    pixels = weighted(y0, top_weight)
    pixels += weighted(y1, bottom_weight)
    pixels += 2
    pixels >>= 2
    return pixels.astype(np.uint8)


def _interpolate_columns(image: np.ndarray, rows: np.ndarray, column_taps: Sequence[np.ndarray]) -> np.ndarray:
    """Compute (left * left_weight + right * right_weight) >> 4 as uint16 (rows, 3, columns).

    The sum has 19 bits. Of weights in two parts, the upper 8 bits and the lower 4, each sum fits into 16, which
    processors handle twice as fast as 32.
    """
    x0, x1, left_weight, right_weight = column_taps
    left, right = (_take(image, rows, x).astype(np.uint16) for x in (x0, x1))
    lines = left * (left_weight >> 4).astype(np.uint16)
    lines += right * (right_weight >> 4).astype(np.uint16)
    left *= (left_weight & 15).astype(np.uint16)
    right *= (right_weight & 15).astype(np.uint16)
    left += right
    left >>= 4
    lines += left
    return lines


def resize_label_crop(
    label_map: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Compute the given rows and columns of `resize_nearest` to (height, width) `size`."""
    rows, columns = (
        np.minimum(np.floor(index * (1 / (new / old))).astype(np.int64), old - 1)
        for index, old, new in zip((rows, columns), label_map.shape, size, strict=True)
    )
    return label_map.take(rows, axis=0).take(columns, axis=1)


def _take(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Take image[rows][:, columns] with channels in between, (rows, 3, columns)."""
    flat = (columns * 3 + np.arange(3)[:, None]).ravel()
    first, last = rows[0], rows[-1]
    lines = image[first : last + 1] if last - first + 1 == len(rows) else image[rows]
    return lines.reshape(len(rows), -1).take(flat, axis=1).reshape(len(rows), 3, len(columns))


def _blocks(height: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_PIXELS // width)
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))


def _is_varied(labels: np.ndarray, cat_max_ratio: float, ignore_index: int) -> bool:
    """Return whether there are two classes or more, none of them with this share of the labeled pixels or more."""
    counts = np.bincount(labels.ravel(), minlength=ignore_index + 1)
    counts[ignore_index] = 0
    largest = counts.max()
    return 0 < largest < counts.sum() and largest / counts.sum() < cat_max_ratio


def _read_pair(image: np.ndarray | Image.Image, label_map: np.ndarray | Image.Image) -> tuple[np.ndarray, np.ndarray]:
    pixels = read_image(image, input_data_format=ChannelDimension.LAST)
    if pixels.dtype != np.uint8:
        raise ValueError(f"expected an image of 8 bits per value, got {pixels.dtype}")
    labels = np.asarray(label_map)
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise ValueError(
            f"expected a label map of one class id per pixel, (height, width), got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"expected class ids from 0, or the ignore index, got {labels.min()}")
    if pixels.shape[1:] != labels.shape:
        raise ValueError(
            f"expected an image and a label map of one size, got {pixels.shape[1:]} and {labels.shape} (height, width)"
        )
    return pixels.transpose(1, 2, 0), labels
