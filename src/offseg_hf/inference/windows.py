"""A network on the windows of images, and the label maps of their averaged scores.

What a model averages into scores of all classes at every pixel (`sliding_window_logits`) is averaged here row by row,
and only the label map is kept. The network is any function of crops: a model, or what was exported of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offseg_hf.inference.confidence import confidence_of_rows
from offseg_hf.models.image_operations import upsampled_argmax_of_rows, upsampled_rows
from offseg_hf.models.modeling_utils import window_logits


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


@dataclass
class AveragedWindows:
    """The scores of an image, averaged over the windows that see a pixel; computed when they are asked for.

    Args:
        size: (height, width) of the image. Windows may reach beyond it, at the right and the bottom.
    """

    size: tuple[int, int]
    windows: list[tuple[slice, slice, Tensor]] = field(default_factory=list)

    def add(self, rows: slice, columns: slice, logits: Tensor) -> None:
        """Take the logits (classes, any height, any width) of the window at some rows and columns."""
        self.windows.append((rows, columns, logits.float().contiguous()))

    def rows(self, begin: int, end: int) -> Tensor:
        """Return the scores of the rows from `begin` to `end` (exclusive): (classes, end - begin, width), float32."""
        width = max(columns.stop for _, columns, _ in self.windows)
        logits = self.windows[0][2]
        total = logits.new_zeros((len(logits), end - begin, width))
        count = logits.new_zeros((end - begin, width))
        for rows, columns, logits in self.windows:
            first, last = max(begin, rows.start), min(end, rows.stop)
            if first < last:
                size = (rows.stop - rows.start, columns.stop - columns.start)
                seen = slice(first - begin, last - begin)
                total[:, seen, columns] += upsampled_rows(logits, size, first - rows.start, last - rows.start)
                count[seen, columns] += 1
        if (count != 1).any():
            total.div_(count.clamp_(min=1))
        return total[..., : self.size[1]]

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel, int64, at another size (height, width), usually that of the photo."""
        return upsampled_argmax_of_rows(self.rows, self.shape, size, self.windows[0][2].device)

    def confidence(self, label_map: Tensor) -> Tensor:
        """Return how probable the class of every pixel of a label map is, from 0 to 1: `confidence_of_rows`."""
        return confidence_of_rows(self.rows, self.shape, label_map)

    def scores_at(self, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
        """Return the scores that `label_map(size)` compares, at some pixels of it: (classes, rows, columns)."""
        (y, low, high, down), (x, left, right, along) = (
            _neighbors(*lengths, places) for lengths, places in zip(zip(self.size, size), (rows, columns))
        )
        logits = self.windows[0][2]
        total = logits.new_zeros((len(logits), len(y), len(x)))
        count = logits.new_zeros((len(y), len(x)))
        for window_rows, window_columns, logits in self.windows:
            window_size = (window_rows.stop - window_rows.start, window_columns.stop - window_columns.start)
            seen = [
                slice(*torch.searchsorted(places, torch.tensor([part.start, part.stop])).tolist())
                for places, part in ((y, window_rows), (x, window_columns))
            ]
            places = (y[seen[0]] - window_rows.start, x[seen[1]] - window_columns.start)
            if all(map(len, places)):
                total[:, seen[0], seen[1]] += upsampled_at(logits, window_size, *places)
                count[seen[0], seen[1]] += 1
        return _interpolated(total.div_(count), (low, high, down), (left, right, along))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (classes, height, width) of all scores."""
        return len(self.windows[0][2]), *self.size


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
        averages = self([scores for _, _, scores in image.windows])
        boxes = [(rows, columns) for rows, columns, _ in image.windows]
        image.windows = [(*box, scores) for box, scores in zip(boxes, averages, strict=True)]


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


def _neighbors(old: int, new: int, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the scores that pixels of an axis lie between, when `old` scores are interpolated to `new` pixels.

    Returns them in order, of each pixel the index of that before and of that after it, and the weight of the latter.
    """
    position = ((places.double() + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
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
