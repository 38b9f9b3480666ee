"""Plots of trainings: everything in its place, several seeds and their mean, round numbers at the axes."""

import numpy as np
import pytest

from offseg_hf.visualization import draw_plots, training_plots
from offseg_hf.visualization.plots import BOTTOM, LEFT, RIGHT, TOP, mean_curve, ticks


def coloured(plots) -> np.ndarray:
    """Where a picture is not gray: (height, width)."""
    return np.ptp(np.asarray(draw_plots(plots, (400, 300))).astype(int), axis=-1) > 60


def test_points_are_where_they_belong():
    picture = coloured({"loss": {"": [[(50, 4.0), (100, 0.0)]]}})
    inside = picture[TOP : 300 - BOTTOM + 1, LEFT : 400 - RIGHT + 1]
    rows, columns = np.nonzero(inside)
    assert columns.min() == pytest.approx(inside.shape[1] / 2, abs=2) and columns.max() >= inside.shape[1] - 2
    assert rows[columns.argmin()] <= 2 and rows[columns.argmax()] >= inside.shape[0] - 3


def test_plots_share_their_iterations():
    """An evaluation at the end of a training is at the right end, below the loss."""
    log = [{"iteration": 10, "loss": 2.0}, {"iteration": 20, "loss": 1.0}, {"iteration": 20, "mIoU": 0.5, "aAcc": 0.9}]
    plots = training_plots(log)
    assert plots == {"training loss": {"": [[(10, 2.0), (20, 1.0)]]}, "mIoU of the validation": {"": [[(20, 0.5)]]}}
    assert draw_plots(plots, (400, 300)).size == (400, 600)
    assert training_plots([]) == {}


def test_seeds_and_their_mean():
    seeds = [[(1, 1.0), (2, 3.0), (3, 9.0)], [(1, 2.0), (2, 5.0)]]
    assert mean_curve(seeds) == [(1, 1.5), (2, 4.0)]
    inside = coloured({"mIoU": {"arm": seeds}})[TOP : 300 - BOTTOM + 1, LEFT : 400 - RIGHT + 1]
    rows, columns = np.nonzero(inside)
    assert rows[columns.argmax()] == pytest.approx(inside.shape[0] / 10, abs=2)  # one goes on, to 9 of 10


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 2750, [0, 1000, 2000, 3000]),
        (0.216, 0.347, [0.2, 0.25, 0.3, 0.35]),
        (0.41, 1.96, [0, 0.5, 1, 1.5, 2]),
        (0.5, 0.5, [0.4, 0.6]),
        (0, 0, [0, 0.5]),
    ],
)
def test_ticks(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
