"""Calibration: whether a model is right as often as it says, from the probability of the winner at a grid of pixels.

Expected calibration error: "On Calibration of Modern Neural Networks" (Guo et al., ICML 2017,
https://arxiv.org/abs/1706.04599). Label maps are made without the scores of all classes at all pixels; a grid of them
costs a sixty-fourth, and over a data set has enough of them. Counts are integers, and the same in any order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


STEP = 8  # pixels between the pixels of the grid, along both sides
BINS = 15
SCALE = 2**16 - 1  # probabilities are summed in units of 1 / SCALE

MAX_SCORES = 2**22  # worked on at a time: 16 MiB of float32


def grid(length: int) -> Tensor:
    """Return the places of the grid along one side: every `STEP`-th from the middle of the first step."""
    return torch.arange(min(STEP // 2, (length - 1) // 2), length, STEP)


def winners_probability(
    scores_at: Callable[[Tensor, Tensor], Tensor], num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Return the highest probability of any class at the pixels of the grid, float32, on the CPU.

    Args:
        scores_at: gives the logits (classes, rows, columns) of some rows and columns of the label map.
        num_classes: number of classes.
        size: (height, width) of the label map.
    """
    rows, columns = (grid(length) for length in size)
    step = max(1, MAX_SCORES // (num_classes * len(columns)))
    parts = []
    for part in rows.split(step):
        scores = scores_at(part, columns)
        parts.append((scores.amax(dim=0) - scores.logsumexp(dim=0)).exp())
    return torch.cat(parts).cpu()


def calibration_counts(probability: Tensor, prediction: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    """Count, in one image and per bin of equal width, pixels, those that are right, and the probabilities.

    Args:
        probability: of the winner, at the pixels of the grid.
        prediction: class ids (height, width).
        label: class ids (height, width); where there is another value a pixel is not counted.
        num_classes: number of classes.

    Returns:
        int64 (3, BINS); the last are in units of 1 / SCALE.
    """
    rows, columns = (grid(length) for length in label.shape)
    truth, winner = (label_map[rows][:, columns].long() for label_map in (label.cpu(), prediction.cpu()))
    annotated = (truth >= 0) & (truth < num_classes)
    units = (probability[annotated].double() * SCALE).round().long().clamp(0, SCALE)
    bins = (units * BINS // (SCALE + 1)).numpy()
    right = (truth == winner)[annotated].numpy()
    sums = [np.bincount(bins, weights, BINS) for weights in (None, right, units.numpy())]
    return np.stack(sums).round().astype(np.int64)


@dataclass(frozen=True)
class Calibration:
    """Whether a model is right as often as it says, over a data set.

    Args:
        counts: sums of what `calibration_counts` returns.
    """

    counts: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: by how much bins are off, over all pixels; NaN without a pixel."""
        pixels, right, units = self.counts
        total = pixels.sum()
        return float(np.abs(right - units / SCALE).sum() / total) if total else float("nan")

    def bins(self) -> Iterator[dict[str, Any]]:
        """Yield of every bin where it begins and ends, its pixels, and if it has any what is said and what is true."""
        for index, (pixels, right, units) in enumerate(self.counts.T.tolist()):
            ratios = (units / SCALE / pixels, right / pixels) if pixels else (None, None)
            yield {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "pixels": pixels,
                "confidence": ratios[0],
                "accuracy": ratios[1],
            }
