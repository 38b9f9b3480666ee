"""Plots of trainings: every curve with its points, several seeds and their mean, names in any script."""

import io

import numpy as np
import pytest
from matplotlib.font_manager import get_font_names
from PIL import Image

from offseg_hf.visualization import draw_plots, training_plots
from offseg_hf.visualization.plots import mean_curve
from offseg_hf.visualization.style import OTHER_FONTS


def points(line) -> list[tuple[float, float]]:
    return list(zip(*line.get_data(), strict=True))


def saved(plots, form: str) -> bytes:
    file = io.BytesIO()
    draw_plots(plots, (400, 300)).savefig(file, format=form)
    return file.getvalue()


def test_a_curve_has_its_points_and_where_it_ends():
    curve = [(50, 4.0), (100, 0.25)]
    (axes,) = draw_plots({"training loss": {"": [curve]}}).axes
    (line,) = axes.lines
    assert points(line) == curve and axes.get_title("left") == "training loss"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0.250"]
    assert axes.get_xlim()[0] == 0 and axes.get_xlabel() == "iteration"


def test_plots_share_their_iterations():
    """An evaluation at the end of a training is at the right end, below the loss, and can be seen."""
    log = [{"iteration": 10, "loss": 2.0}, {"iteration": 20, "loss": 1.0}, {"iteration": 20, "mIoU": 0.5, "aAcc": 0.9}]
    plots = training_plots(log)
    assert plots == {"training loss": {"": [[(10, 2.0), (20, 1.0)]]}, "mIoU of the validation": {"": [[(20, 0.5)]]}}
    loss, score = draw_plots(plots).axes
    assert loss.get_xlim() == score.get_xlim() and loss.get_position().y0 > score.get_position().y1
    assert points(score.lines[0]) == [(20, 0.5)] and score.lines[0].get_marker() == "o"
    assert training_plots([]) == {}


def test_seeds_and_their_mean():
    seeds = [[(1, 1.0), (2, 3.0), (3, 9.0)], [(1, 2.0), (2, 5.0)]]
    assert mean_curve(seeds) == [(1, 1.5), (2, 4.0)]
    (axes,) = draw_plots({"mIoU": {"arm": seeds, "other": [[(1, 0.5)]]}}).axes
    *thin, mean, other = axes.lines
    assert [points(line) for line in thin] == seeds and points(mean) == [(1, 1.5), (2, 4.0)]
    assert all(line.get_linewidth() < mean.get_linewidth() for line in thin)
    assert mean.get_color() == thin[0].get_color() != other.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["arm 4.000", "other 0.500"]


def test_pictures_have_their_size_and_are_always_the_same():
    plots = {"loss": {"": [[(1, 1.0), (2, 0.5)]]}, "mIoU": {"": [[(2, 0.5)]]}}
    with Image.open(io.BytesIO(saved(plots, "png"))) as picture:
        assert picture.size == (400, 600)
        assert (np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=-1) > 60).any()  # the curves' color
    assert saved(plots, "png") == saved(plots, "png")
    assert b"<svg" in saved(plots, "svg")


@pytest.mark.filterwarnings("error")  # what a missing letter is
@pytest.mark.parametrize("name", ["Straße", "дорога", "cost in $ and $", "道路"])
def test_names_in_any_script(name):
    if name == "道路" and not set(OTHER_FONTS[:-3]) & set(get_font_names()):
        pytest.skip("this system has no font for it")
    saved({"mIoU": {name: [[(1, 0.5), (2, 0.6)]]}}, "png")
