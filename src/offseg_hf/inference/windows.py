"""A network on the windows of images, and the label maps of their averaged scores.

What a model averages into scores of all classes at every pixel (`sliding_window_logits`) is averaged here part by
part, of the classes that could win there, and only the label map is kept. The network is any function of crops: a
model, or what was exported of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

from offseg_hf.inference.confidence import confidence_of_rows
from offseg_hf.models.image_operations import Upsampled, band_size, upsampled_argmax_of_parts
from offseg_hf.models.modeling_utils import window_logits


# Rows and columns whose scores are averaged together, of the classes that can win there: the smaller, the fewer. Where
# the label map is larger than the image, each part takes more steps, and fewer of them less time.
PART_SIZE, UPSAMPLED_PART_SIZE = (32, 64), (64, 128)
# Columns of which is asked together which classes can win there: some strides of the networks here.
COLUMNS_OF_BLOCK = 32
# Above this share of the classes, leaving out the others takes as long as it saves.
MOST_CONTENDERS = 0.75


def label_maps_of_windows(
    network: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    windows: Tensor,
    image_sizes: Tensor,
    target_sizes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Segment images through their windows, as [`OffSegImageProcessor`] prepares them.

    Args:
        network: takes crops (n, channels, height, width), gives logits (n, classes, any height, any width).
        pixel_values: (batch, channels, height, width).
        windows: integers (batch, num_windows, 4).
        image_sizes: integers (batch, 2), height and width of every image without its padding.
        target_sizes: (height, width) of every label map.

    Returns:
        The class of every pixel: an int64 (height, width) per image.

    Raises:
        ValueError: for windows that are not inside `pixel_values`.
    """
    images = averaged_windows(network, pixel_values, windows, image_sizes)
    return [image.label_map(size) for image, size in zip(images, target_sizes, strict=True)]


def averaged_windows(
    network: Callable[[Tensor], Tensor], pixel_values: Tensor, windows: Tensor, image_sizes: Tensor
) -> list["AveragedWindows"]:
    """Return the scores of images, of which `label_maps_of_windows` makes label maps; arguments are as there."""
    images = [AveragedWindows((height, width)) for height, width in image_sizes.tolist()]
    for (index, rows, columns), logits in window_logits(network, pixel_values, windows):
        images[index].add(rows, columns, logits)
    return images


@dataclass(frozen=True)
class Window:
    """What the network says of a part of an image.

    Args:
        rows: of the image, that it sees.
        columns: of the image.
        logits: float32 (classes, any height, any width), contiguous.
    """

    rows: slice
    columns: slice
    logits: Tensor

    @cached_property
    def upsampled(self) -> Upsampled:
        """Return the scores of every pixel that it sees."""
        return Upsampled(self.logits, (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start))


@dataclass
class AveragedWindows:
    """The scores of an image, averaged over the windows that see a pixel; computed when they are asked for.

    Args:
        size: (height, width) of the image. Windows may reach beyond it, at the right and the bottom.
    """

    size: tuple[int, int]
    windows: list[Window] = field(default_factory=list)

    def add(self, rows: slice, columns: slice, logits: Tensor) -> None:
        """Take the logits (classes, any height, any width) of the window at some rows and columns."""
        self.windows.append(Window(rows, columns, logits.float().contiguous()))

    def part(self, rows: slice, columns: slice, classes: Tensor | None = None) -> Tensor:
        """Return the scores of some rows and columns, float32 (classes, rows, columns); of all classes, or of some."""
        size = (rows.stop - rows.start, columns.stop - columns.start)
        seen = []
        for window in self.windows:
            y, x = _common(rows, window.rows), _common(columns, window.columns)
            if y.start < y.stop and x.start < x.stop:
                scores = window.upsampled.part(_from(y, window.rows.start), _from(x, window.columns.start), classes)
                seen.append((_from(y, rows.start), _from(x, columns.start), scores))
        whole = [scores for _, _, scores in seen if scores.shape[1:] == size]
        if len(whole) == len(seen):
            return reduce(torch.add, whole) / len(seen)
        total = seen[0][2].new_zeros((len(seen[0][2]), *size))
        count = total.new_zeros(size)
        for y, x, scores in seen:
            total[:, y, x] += scores
            count[y, x] += 1
        return total.div_(count)

    def rows(self, begin: int, end: int) -> Tensor:
        """Return the scores of the rows from `begin` to `end` (exclusive): (classes, end - begin, width), float32."""
        return self.part(slice(begin, end), slice(0, self.size[1]))

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel, int64, at another size (height, width), usually that of the photo."""
        device = self.windows[0].logits.device
        part_size = UPSAMPLED_PART_SIZE if math.prod(size) > math.prod(self.size) else PART_SIZE
        if device.type != "cpu":  # many small steps are what accelerators are slow at
            part_size = band_size(self.shape)
        return upsampled_argmax_of_parts(self.part, self.size, size, device, part_size, self._contenders)

    def confidence(self, label_map: Tensor) -> Tensor:
        """Return how probable the class of every pixel of a label map is, from 0 to 1: `confidence_of_rows`."""
        return confidence_of_rows(self.rows, self.shape, label_map)

    def scores_at(self, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
        """Return the scores that `label_map(size)` compares, at some pixels of it: (classes, rows, columns)."""
        (y, low, high, down), (x, left, right, along) = (
            _neighbors(*lengths, places) for lengths, places in zip(zip(self.size, size), (rows, columns))
        )
        logits = self.windows[0].logits
        total = logits.new_zeros((len(logits), len(y), len(x)))
        count = logits.new_zeros((len(y), len(x)))
        for window in self.windows:
            seen = [
                slice(*torch.searchsorted(places, torch.tensor([part.start, part.stop])).tolist())
                for places, part in ((y, window.rows), (x, window.columns))
            ]
            places = (y[seen[0]] - window.rows.start, x[seen[1]] - window.columns.start)
            if all(map(len, places)):
                total[:, seen[0], seen[1]] += upsampled_at(window.logits, window.upsampled.size, *places)
                count[seen[0], seen[1]] += 1
        return _interpolated(total.div_(count), (low, high, down), (left, right, along))

    def _contenders(self, rows: slice, columns: Sequence[slice]) -> list[Tensor | None]:
        """Return the classes that could be the best somewhere in some rows, for each of some columns; None for all.

        An interpolated score is between those around it, and an average between those of the windows. So a class is
        out where another one's least score is above its largest. This is asked of blocks of columns, each of which
        has the first column of the next one too: whatever is interpolated again lies in one of them.
        """
        logits = self.windows[0].logits
        starts = torch.arange(0, self.size[1], COLUMNS_OF_BLOCK)
        stops = (starts + COLUMNS_OF_BLOCK).clamp(max=self.size[1] - 1)  # inclusive
        largest = logits.new_full((len(logits), len(starts)), -torch.inf)
        least = logits.new_full((len(logits), len(starts)), torch.inf)
        for window in self.windows:
            y, x, logits = _common(rows, window.rows), window.columns, window.logits
            seen = ((starts < x.stop) & (stops >= x.start)).nonzero()[:, 0]
            if y.start >= y.stop or not len(seen):
                continue
            places = torch.tensor([y.start, y.stop - 1]) - window.rows.start
            height, width = window.upsampled.size
            first, last = _span(logits.shape[1], height, *places)
            part = logits[:, first : last + 1]
            left, right = _span(
                logits.shape[2],
                width,
                starts[seen].clamp(min=x.start) - x.start,
                stops[seen].clamp(max=x.stop - 1) - x.start,
            )
            steps = torch.arange(int((right - left).max()) + 1)
            index = torch.minimum(left[:, None] + steps, right[:, None]).to(logits.device)
            blocks = seen.to(logits.device)
            largest[:, blocks] = torch.maximum(largest[:, blocks], part.amax(dim=1)[:, index].amax(dim=2))
            least[:, blocks] = torch.minimum(least[:, blocks], part.amin(dim=1)[:, index].amin(dim=2))
        could_win = ~(largest < least.amax(dim=0))  # what is not a number excludes none
        found = []
        for place in columns:
            block = place.start // COLUMNS_OF_BLOCK
            stop = max(block + 1, -(-(place.stop - 1) // COLUMNS_OF_BLOCK))
            classes = could_win[:, block:stop].any(dim=1).nonzero()[:, 0]
            found.append(classes if len(classes) <= MOST_CONTENDERS * len(could_win) else None)
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (classes, height, width) of all scores."""
        return len(self.windows[0].logits), *self.size


@dataclass
class RunningScores:
    """Scores of the frames of a video, each averaged with those before: an exponential average.

    Args:
        weight: of a frame's own scores, between 0 and 1; those of before have the rest.
    """

    weight: float
    before: list[Tensor] = field(default_factory=list, repr=False)

    def __call__(self, scores: list[Tensor]) -> list[Tensor]:
        """Return the average with the scores before; of another size, they begin anew."""
        if [each.shape for each in scores] == [each.shape for each in self.before]:
            scores = [old.lerp(new, self.weight) for old, new in zip(self.before, scores, strict=True)]
        self.before = scores
        return scores

    def add_windows(self, image: AveragedWindows) -> None:
        """Average the scores of a frame that is seen through windows."""
        averages = self([window.logits for window in image.windows])
        image.windows = [
            Window(window.rows, window.columns, logits) for window, logits in zip(image.windows, averages, strict=True)
        ]


def upsampled_at(scores: Tensor, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Return `upsampled(scores, size)[:, rows][..., columns]`, to rounding, without the rest of it.

    Args:
        scores: (classes, height, width).
        size: (height, width) that they are interpolated to.
        rows: int64, on the CPU.
        columns: int64, on the CPU.

    Returns:
        float32 (classes, rows, columns).
    """
    axes = [
        _neighbors(old, new, places) for old, new, places in zip(scores.shape[1:], size, (rows, columns), strict=True)
    ]
    (y, *vertical), (x, *horizontal) = axes
    needed = scores.index_select(1, y.to(scores.device)).index_select(2, x.to(scores.device)).float()
    return _interpolated(needed, vertical, horizontal)


def _common(one: slice, other: slice) -> slice:
    """Return what is in both; it may be empty, or less."""
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _from(places: slice, begin: int) -> slice:
    """Return places counted from another one."""
    return slice(places.start - begin, places.stop - begin)


def _span(old: int, new: int, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores, first and last of them, that pixels from `first` to `last` of an axis lie between."""
    return _positions(old, new, first).floor().long(), _positions(old, new, last).ceil().long()


def _positions(old: int, new: int, places: Tensor) -> Tensor:
    """Return where pixels of an axis lie among `old` scores that are interpolated to `new` pixels; on the CPU.

    In float64, which accelerators of Apple do not have.
    """
    return ((places.double() + 0.5) * (old / new) - 0.5).clamp(0, old - 1)


def _neighbors(old: int, new: int, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the scores that pixels of an axis lie between, when `old` scores are interpolated to `new` pixels.

    Returns them in order, of each pixel the index of that before and of that after it, and the weight of the latter.
    """
    position = _positions(old, new, places)
    low = position.floor().long()
    high = (low + 1).clamp(max=old - 1)
    needed, index = torch.cat([low, high]).unique(return_inverse=True)
    return needed, index[: len(places)], index[len(places) :], (position - low).float()


def _interpolated(scores: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    """Interpolate (classes, height, width) at rows and columns, of each the index before and after and a weight."""
    (low, high, down), (left, right, along) = (
        [tensor.to(scores.device) for tensor in axis] for axis in (vertical, horizontal)
    )
    rows = scores.index_select(1, low).lerp(scores.index_select(1, high), down[:, None])
    return rows.index_select(2, left).lerp(rows.index_select(2, right), along)
