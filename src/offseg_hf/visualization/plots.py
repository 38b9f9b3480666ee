"""Curves of trainings: loss and scores over the iterations, one plot under another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from offseg_hf.data.label_sets import distinct_colors
from offseg_hf.visualization.style import DPI, chart_style


if TYPE_CHECKING:
    from matplotlib.figure import Figure


Curve = Sequence[tuple[float, float]]  # (x, y), x in order
Plot = Mapping[str, Sequence[Curve]]  # name -> curves that are of one kind, such as of several seeds


def training_plots(log: Iterable[Mapping[str, float]]) -> dict[str, Plot]:
    """Return what `draw_plots` takes, of the lines of a training's log: its loss, and the mIoU of its validation."""
    lines = list(log)
    points = {
        title: [(line["iteration"], line[key]) for line in lines if key in line]
        for title, key in (("training loss", "loss"), ("mIoU of the validation", "mIoU"))
    }
    return {title: {"": [curve]} for title, curve in points.items() if curve}


def draw_plots(plots: Mapping[str, Plot], size: tuple[int, int] = (640, 300)) -> Figure:
    """Draw plots by title, one under another, over one axis of iterations.

    Of several curves of one name the mean is drawn thick and they are drawn thin; a legend says where names end.

    Args:
        plots: What to draw.
        size: Width and height of each plot, in pixels.

    Returns:
        A figure, for `savefig` with a path that ends in .png or .svg.
    """
    from matplotlib.figure import Figure

    width, height = size
    with chart_style():
        figure = Figure((width / DPI, height * len(plots) / DPI), dpi=DPI, layout="constrained")
        all_axes = figure.subplots(len(plots), sharex=True, squeeze=False)[:, 0]
        for axes, (title, plot) in zip(all_axes, plots.items(), strict=True):
            for (name, curves), color in zip(plot.items(), distinct_colors(len(plot)), strict=True):
                rgb = tuple(channel / 255 for channel in color)
                for curve in curves if len(curves) > 1 else ():
                    axes.plot(*zip(*curve, strict=True), color=rgb, alpha=0.35, linewidth=1)
                middle = mean_curve(curves)
                label = f"{name} {middle[-1][1]:.3f}".strip()
                marker = "o" if len(middle) == 1 else ""
                axes.plot(*zip(*middle, strict=True), color=rgb, linewidth=2, marker=marker, label=label)
            axes.set_title(title)
            axes.grid(axis="y")
            axes.legend(ncols=len(plot), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        all_axes[-1].set_xlabel("iteration")
        all_axes[-1].set_xlim(left=0)
    return figure


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves, at every x that all of them have."""
    by_x = [dict(curve) for curve in curves]
    return [(x, mean(ys[x] for ys in by_x)) for x in by_x[0] if all(x in ys for ys in by_x)]
