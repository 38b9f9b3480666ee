"""How sure a model is of the class that it gives a pixel: the softmax of the scores of all classes, band by band."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


BAND_VALUES = 2**22  # upsampled scores in a band: 16 MiB of float32


def confidence_of_rows(
    read_rows: Callable[[int, int], Tensor],
    shape: tuple[int, int, int],
    label_map: Tensor,
    band_values: int = BAND_VALUES,
) -> Tensor:
    """Return the probability of the class of every pixel, among all classes at that pixel.

    Args:
        read_rows: gives the rows from `top` to `bottom` (exclusive) of the scores: (classes, bottom - top, width).
        shape: (classes, height, width) of all scores, which are upsampled bilinearly to the label map.
        label_map: class ids, integers of any (height, width).
        band_values: how many scores are worked on at a time.

    Returns:
        Numbers from 0 to 1, float32, of the label map's size.
    """
    classes, old_height, old_width = shape
    height, width = label_map.shape
    confidence = torch.empty((height, width), dtype=torch.float32, device=label_map.device)
    rows_each = max(1, -(-old_height // height))  # of scores, for a row of the label map
    step = max(1, band_values // (classes * max(width, old_width) * rows_each))
    for top in range(0, height, step):
        labels = label_map[top : top + step]
        rows = torch.arange(top, top + len(labels), dtype=torch.float64)
        position = ((rows + 0.5) * (old_height / height) - 0.5).clamp(0, old_height - 1)
        first, last = int(position[0]), min(int(position[-1]) + 2, old_height)
        between = (1 - (position[:, None] - torch.arange(first, last)).abs()).clamp(min=0)  # bilinear, where positive
        band = F.interpolate(read_rows(first, last).float().contiguous(), size=width, mode="linear")
        scores = between.to(band) @ band  # (classes, rows, width)
        chosen = scores.gather(0, labels[None].long())[0]
        confidence[top : top + len(labels)] = (chosen - scores.logsumexp(dim=0)).exp()
    return confidence
