"""Label maps as pictures: paletted PNG, and the overlay of a photo with a legend of the classes present."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet, distinct_colors
from offseg_hf.visualization.style import BACKGROUND, FAINT_TEXT, LINE, TEXT


Palette = Sequence[tuple[int, int, int]]

FRAME_LEGEND_LINES = 2
MIN_LEGEND_WIDTH = 300  # pixels: the width of three short entries, which photos of a few pixels get as well


def palette_for(names: Sequence[str], own: LabelSet | None = None) -> Palette:
    """Return the palette of the label set with exactly these class names, else colors spread over hue and lightness.

    Args:
        names: of the classes, in the order of their ids.
        own: the label set that came with the model, if one did.
    """
    for labels in (own, *LABEL_SETS.values()):
        if labels is not None and labels.names == tuple(names):
            return labels.palette
    return distinct_colors(len(names))


def class_shares(label_map: np.ndarray, num_classes: int) -> list[tuple[int, int, float]]:
    """Return (class id, pixels, share of the image in 0..1) of every class present, largest first; no other ids."""
    pixels = np.bincount(label_map[(label_map >= 0) & (label_map < num_classes)], minlength=num_classes)
    present = sorted(np.flatnonzero(pixels), key=lambda index: (-pixels[index], index))
    return [(int(index), int(pixels[index]), float(pixels[index] / label_map.size)) for index in present]


def label_image(label_map: np.ndarray, palette: Palette) -> Image.Image:
    """Return the label map as an image whose pixel values are the class ids; `numpy.asarray` gives them back.

    Up to 256 classes it is a paletted image (mode P), shown in the colors of the classes; beyond, 16-bit gray.
    """
    if len(palette) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette([channel for color in palette for channel in color])
    return image


def draw_overlay(
    photo: Image.Image, label_map: np.ndarray, names: Sequence[str], palette: Palette, opacity: float = 0.6
) -> Image.Image:
    """Draw a photo under its label map, with the classes present and their shares in a legend below.

    Args:
        photo: Of the label map's size.
        label_map: Class ids (height, width); where it has another id, the photo stays as it is.
        names: Of the classes.
        palette: Colors of the classes.
        opacity: Of the colors, in 0..1.

    Raises:
        ValueError: for a photo of another size.
    """
    height, width = label_map.shape
    if photo.size != (width, height):
        raise ValueError(f"the label map is {width}x{height}, but the photo {photo.width}x{photo.height}")
    overlay = Image.fromarray(_blend(np.asarray(photo.convert("RGB")), label_map, palette, opacity))

    entries = [
        (names[index], _percent(share), palette[index]) for index, _, share in class_shares(label_map, len(names))
    ]
    legend = draw_legend(entries, width=max(width, MIN_LEGEND_WIDTH), font_size=_font_size(width, height))
    canvas = Image.new("RGB", (legend.width, height + legend.height), BACKGROUND)
    canvas.paste(overlay, ((canvas.width - width) // 2, 0))
    canvas.paste(legend, (0, height))
    return canvas


def draw_legend(entries: Sequence[tuple[str, str, tuple[int, int, int]]], width: int, font_size: int) -> Image.Image:
    """Draw a table of (name, share, color), read down the columns; wider than `width` if an entry needs it."""
    gap = max(font_size // 2, 2)
    line = round(font_size * 1.5)
    cell = _cell_width([name for name, _, _ in entries], font_size)
    columns = max(1, min(len(entries), (width - gap) // (cell + 2 * gap)))
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows) if entries else 1
    width = max(width, columns * (cell + 2 * gap) + gap)
    pitch = (width - gap) // columns

    legend = Image.new("RGB", (width, rows * line + 2 * gap), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for position, entry in enumerate(entries):
        column, row = divmod(position, rows)
        place = (gap + column * pitch + gap // 2, gap + row * line + line // 2)
        _draw_entry(draw, entry, place, cell, font_size)
    return legend


def draw_frame(
    photo: Image.Image, label_map: np.ndarray, names: Sequence[str], palette: Palette, opacity: float = 0.6
) -> Image.Image:
    """Draw a frame of a video under its label map, its largest classes and their shares below.

    Of frames of one size the results are of one, with even sides, as video codecs want them, and what is below keeps
    its place: as many classes as two lines take, in the order of their ids. Arguments are those of `draw_overlay`.
    """
    height, width = label_map.shape
    font_size = _font_size(width, height)
    gap, line = max(font_size // 2, 2), round(font_size * 1.5)
    cell = _cell_width(names, font_size)
    columns = max(1, (width - gap) // (cell + 2 * gap))
    size = (width + width % 2, height + FRAME_LEGEND_LINES * line + 2 * gap)
    canvas = Image.new("RGB", (size[0], size[1] + size[1] % 2), BACKGROUND)
    canvas.paste(Image.fromarray(_blend(np.asarray(photo.convert("RGB")), label_map, palette, opacity)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    largest = class_shares(label_map, len(names))[: columns * FRAME_LEGEND_LINES]
    for position, (index, _, share) in enumerate(sorted(largest)):
        row, column = divmod(position, columns)
        place = (gap + column * (cell + 2 * gap), height + gap + row * line + line // 2)
        _draw_entry(draw, (names[index], _percent(share), palette[index]), place, cell, font_size)
    return canvas


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _cell_width(names: Sequence[str], font_size: int) -> int:
    """Return how wide an entry of a legend is: its color, the longest name, and a share."""
    font = _font(font_size)
    name_width = max((round(font.getlength(name)) for name in names), default=0)
    return round(font_size * 1.1) + 2 * max(font_size // 2, 2) + name_width + round(font.getlength("100.0 %"))


def _draw_entry(
    draw: ImageDraw.ImageDraw,
    entry: tuple[str, str, tuple[int, int, int]],
    place: tuple[int, int],
    cell: int,
    font_size: int,
) -> None:
    """Draw (name, share, color), `cell` wide, to the right of a place."""
    name, share, color = entry
    left, middle = place
    font, swatch = _font(font_size), round(font_size * 1.1)
    top = middle - swatch // 2
    draw.rounded_rectangle((left, top, left + swatch, top + swatch), radius=swatch // 5, fill=color, outline=LINE)
    draw.text((left + swatch + max(font_size // 2, 2), middle), name, fill=TEXT, font=font, anchor="lm")
    draw.text((left + cell, middle), share, fill=FAINT_TEXT, font=font, anchor="rm")


def _blend(rgb: np.ndarray, label_map: np.ndarray, palette: Palette, opacity: float) -> np.ndarray:
    """Blend pixels (height, width, 3) with the colors of their classes, by a table: each channel has 256 values."""
    known = (label_map >= 0) & (label_map < len(palette))
    row = np.where(known, label_map, len(palette)).astype(np.int32) * 256  # the last row changes nothing
    values = np.arange(256, dtype=np.float32)
    blended = np.empty_like(rgb)
    for channel in range(3):
        colors = np.asarray([color[channel] for color in palette], dtype=np.float32)[:, None]
        table = np.concatenate([values + opacity * (colors - values), values[None]]).round().astype(np.uint8)
        blended[..., channel] = table.ravel()[row + rgb[..., channel]]
    return blended


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _font_size(width: int, height: int) -> int:
    """Return a size of text that looks alike on every photo: 1/45 of the sides' geometric mean, at least 12."""
    return max(12, round((width * height) ** 0.5 / 45))
