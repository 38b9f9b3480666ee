"""A network on the windows of images, and the label maps of their averaged scores.

What a model averages into scores of all classes at every pixel (`sliding_window_logits`) is averaged here row by row,
and only the label map is kept. The network is any function of crops: a model, or what was exported of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (classes, height, width) of all scores."""
        return len(self.windows[0][2]), *self.size
