"""Calibration: the probabilities of a softmax over full-size scores, at a grid of pixels, and the error of these."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offseg_hf.evaluation.calibration import (
    BINS,
    SCALE,
    Calibration,
    calibration_counts,
    grid,
    winners_probability,
)
from offseg_hf.inference.windows import AveragedWindows, upsampled_at
from offseg_hf.models.image_operations import sliding_windows


ROUNDING = {"atol": 1e-4, "rtol": 1e-4}  # torch finds positions between scores in float32


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 683])
def test_the_grid_lies_inside(length):
    places = grid(length).tolist()
    assert places and places[0] >= 0 and places[-1] < length
    assert all(after - before == 8 for before, after in pairwise(places))
    assert len(places) in (length // 8, length // 8 + 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [((5, 7), (40, 53)), ((9, 9), (9, 9)), ((20, 31), (11, 40)), ((1, 1), (3, 2)), ((64, 85), (512, 683))],
)
def test_scores_at_pixels_are_those_of_interpolation(old, new):
    logits = scores(4, *old)
    rows, columns = grid(new[0]), grid(new[1])
    expected = F.interpolate(logits[None], size=new, mode="bilinear")[0][:, rows][:, :, columns]
    torch.testing.assert_close(upsampled_at(logits, new, rows, columns), expected, **ROUNDING)


@pytest.mark.parametrize("size", [(90, 130), (45, 65), (77, 131)])
def test_scores_of_windows_are_those_that_their_label_map_compares(size):
    """At the image's own size, a smaller and an odd one; windows overlap, and reach beyond the image."""
    image_size = (90, 130)
    image = AveragedWindows(image_size)
    total, count = torch.zeros(5, 96, 132), torch.zeros(96, 132)
    for index, (top, left, bottom, right) in enumerate(sliding_windows(96, 132, 64, 40).tolist()):
        logits = scores(5, 16, 16, seed=index)
        image.add(slice(top, bottom), slice(left, right), logits)
        total[:, top:bottom, left:right] += F.interpolate(logits[None], size=(64, 64), mode="bilinear")[0]
        count[top:bottom, left:right] += 1
    full = F.interpolate((total / count)[None, :, :90, :130], size=size, mode="bilinear")[0]
    rows, columns = grid(size[0]), grid(size[1])
    torch.testing.assert_close(image.scores_at(size, rows, columns), full[:, rows][:, :, columns], **ROUNDING)
    expected = full.softmax(dim=0).amax(dim=0)[rows][:, columns]
    probability = winners_probability(lambda y, x: image.scores_at(size, y, x), 5, size)
    torch.testing.assert_close(probability, expected, **ROUNDING)


def test_memory_is_bounded():
    asked = []

    def scores_at(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        asked.append(1000 * len(rows) * len(columns))
        return torch.zeros(1000, len(rows), len(columns))

    probability = winners_probability(scores_at, 1000, (1600, 1600))
    assert probability.shape == (200, 200) and len(asked) > 5 and max(asked) <= 2**22
    assert probability.unique().item() == pytest.approx(0.001)


def test_counts_by_hand():
    label = torch.zeros(40, 24, dtype=torch.uint8)
    label[:8] = 255  # the first row of the grid
    prediction = torch.zeros(40, 24, dtype=torch.int64)
    prediction[8:24, 8:16] = 1  # two of its twelve other pixels
    probability = torch.full((5, 3), 0.75)
    probability[1, 1], probability[2, 2], probability[4, 0] = 1.0, 0.0, 0.7
    pixels, right, units = calibration_counts(probability, prediction, label, 2)
    assert pixels.tolist() == [1] + [0] * 9 + [1] + [9] + [0] * 2 + [1]  # 0.7 and 0.75 of 15 bins: the 11th and 12th
    assert pixels.sum() == 12 and right.sum() == 10 and right[-1] == 0
    assert units.sum() == pytest.approx((9 * 0.75 + 1.0 + 0.7) * SCALE, abs=6)
    calibration = Calibration(np.stack([pixels, right, units]))
    expected = (abs(1 - 0) + abs(1 - 0.7) + abs(8 - 9 * 0.75) + abs(0 - 1)) / 12
    assert calibration.error == pytest.approx(expected, abs=1e-4)
    bins = list(calibration.bins())
    assert len(bins) == BINS and bins[1]["accuracy"] is None
    assert bins[11] == {
        "from": pytest.approx(11 / 15),
        "to": pytest.approx(12 / 15),
        "pixels": 9,
        "confidence": pytest.approx(0.75, abs=1e-4),
        "accuracy": pytest.approx(8 / 9),
    }


def test_a_model_that_draws_from_its_own_probabilities_is_calibrated():
    generator = torch.Generator().manual_seed(0)
    probability = 0.5 + 0.5 * torch.rand(250, 250, generator=generator)
    is_right = torch.rand(250, 250, generator=generator) < probability
    label = torch.zeros(2000, 2000, dtype=torch.int64)
    prediction = torch.zeros_like(label)
    prediction[4::8, 4::8] = (~is_right).long()
    assert Calibration(calibration_counts(probability, prediction, label, 2)).error < 0.01
    surer = Calibration(calibration_counts(probability.sqrt(), prediction, label, 2)).error
    assert surer == pytest.approx(float((probability.sqrt() - probability).mean()), abs=0.01)


def test_without_an_annotated_pixel():
    label = torch.full((20, 20), 255)
    counts = calibration_counts(torch.ones(2, 2), torch.zeros(20, 20, dtype=torch.int64), label, 2)
    assert not counts.any() and math.isnan(Calibration(counts).error)
