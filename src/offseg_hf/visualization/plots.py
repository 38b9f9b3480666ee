"""Curves of trainings as a picture: loss and scores over the iterations, one plot under another."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from PIL import Image, ImageDraw, ImageFont

from offseg_hf.data.label_sets import distinct_colors
from offseg_hf.visualization.style import BACKGROUND, FAINT_LINE, FAINT_TEXT, LINE, TEXT


Curve = Sequence[tuple[float, float]]  # (x, y), x in order
Plot = Mapping[str, Sequence[Curve]]  # name -> curves that are of one kind, such as of several seeds

LEFT, TOP, RIGHT, BOTTOM = 56, 40, 24, 32  # margins of a plot, in pixels


def training_plots(log: Iterable[Mapping[str, float]]) -> dict[str, Plot]:
    """What `draw_plots` takes, of the lines of a training's log: its loss, and the mIoU of its validation."""
    lines = list(log)
    points = {
        title: [(line["iteration"], line[key]) for line in lines if key in line]
        for title, key in (("training loss", "loss"), ("mIoU of the validation", "mIoU"))
    }
    return {title: {"": [curve]} for title, curve in points.items() if curve}


def draw_plots(plots: Mapping[str, Plot], size: tuple[int, int] = (640, 300)) -> Image.Image:
    """Plots by title, each of `size`, over one axis of x from 0.

    Of several curves of one name the mean is drawn thick and they are drawn thin; a legend says where names end.
    """
    width, height = size
    image = Image.new("RGB", (width, height * len(plots)), BACKGROUND)
    furthest = max(x for plot in plots.values() for curves in plot.values() for curve in curves for x, _ in curve)
    for row, (title, plot) in enumerate(plots.items()):
        image.paste(_draw_plot(title, plot, size, furthest), (0, row * height))
    return image


def _draw_plot(title: str, plot: Plot, size: tuple[int, int], furthest: float) -> Image.Image:
    image = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = LEFT, TOP, size[0] - RIGHT, size[1] - BOTTOM
    values = [y for curves in plot.values() for curve in curves for _, y in curve]
    heights, lengths = ticks(min(values), max(values)), ticks(0, furthest)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        share = (y - heights[0]) / (heights[-1] - heights[0])
        return left + (right - left) * x / furthest, bottom - (bottom - top) * share

    for y in heights:
        draw.line((place((0, y)), place((furthest, y))), FAINT_LINE)
        draw.text((left - 8, place((0, y))[1]), f"{y:g}", FAINT_TEXT, font, anchor="rm")
    for x in lengths:
        if x <= furthest:
            draw.text((place((x, 0))[0], bottom + 8), f"{x:g}", FAINT_TEXT, font, anchor="mt")
    draw.line((left, top, left, bottom, right, bottom), LINE)
    draw.text((left, 20), title, TEXT, font, anchor="lm")

    legend = right
    for (name, curves), colour in zip(plot.items(), distinct_colors(len(plot))):
        middle = mean_curve(curves)
        for curve in curves if len(curves) > 1 else ():
            draw.line([place(point) for point in curve], _faint(colour))
        draw.line([place(point) for point in middle], colour, width=2)
        text = f"{name} {middle[-1][1]:.3f}".strip()
        draw.text((legend, 20), text, FAINT_TEXT, font, anchor="rm")
        legend -= round(font.getlength(text)) + 18
        draw.rectangle((legend, 14, legend + 12, 26), colour)
        legend -= 16
    return image


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves, at every x that all of them have."""
    by_x = [dict(curve) for curve in curves]
    return [(x, mean(ys[x] for ys in by_x)) for x in by_x[0] if all(x in ys for ys in by_x)]


def ticks(low: float, high: float) -> list[float]:
    """Some four to eight round numbers, the first not above `low`, the last not below `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / 4 < power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def _faint(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple((channel + 2 * 255) // 3 for channel in colour)
