"""A network on the windows of images, and the label maps of their averaged scores.

What a model averages into scores of all classes at every pixel (`sliding_window_logits`) is averaged here row by row,
and only the label map is kept. The network is any function of crops: a model, or what was exported of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offseg_hf.models.upsampled_argmax import upsampled_argmax_of_rows, upsampled_rows


Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels of the resized image


@dataclass(frozen=True)
class AveragedWindows:
    """The scores of an image, averaged over the windows that see a pixel; computed as they are asked for.

    Args:
        logits: what the network gives for every window, (windows, classes, any height, any width).
        boxes: where the windows lie.
        size: (height, width) of the image; every pixel of it is under a window.
    """

    logits: Tensor
    boxes: Sequence[Box]
    size: tuple[int, int]

    def rows(self, begin: int, end: int) -> Tensor:
        """Return the scores of the rows from `begin` to `end` (exclusive): (classes, end - begin, width), float32."""
        total = self.logits.new_zeros((self.logits.shape[1], end - begin, self.size[1]), dtype=torch.float32)
        count = total.new_zeros((end - begin, self.size[1]))
        for logits, (top, left, bottom, right) in zip(self.logits, self.boxes, strict=True):
            first, last = max(begin, top), min(end, bottom)
            if first < last:
                rows, columns = slice(first - begin, last - begin), slice(left, right)
                window_size = (bottom - top, right - left)
                total[:, rows, columns] += upsampled_rows(logits, window_size, first - top, last - top)
                count[rows, columns] += 1
        return total.div_(count)

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel, int64, at another size (height, width), usually that of the photo."""
        shape = (self.logits.shape[1], *self.size)
        return upsampled_argmax_of_rows(self.rows, shape, size, self.logits.device)
