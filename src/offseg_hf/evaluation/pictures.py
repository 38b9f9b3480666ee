"""What an evaluation shows: a photo with its annotation beside the prediction, and the confusion matrix."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from offseg_hf.visualization import BACKGROUND, FAINT_TEXT, TEXT, Palette, draw_overlay


RAMP = np.array([(255, 255, 255), (198, 219, 239), (66, 146, 198), (8, 48, 107)], dtype=np.float64)
ABSENT = (236, 236, 236)  # rows of classes that are nowhere annotated
NUMBERS_FROM = 34  # pixels: cells this large have their percentage written in them


def draw_comparison(
    photo: Image.Image,
    label: np.ndarray,
    prediction: np.ndarray,
    names: Sequence[str],
    palette: Palette,
    opacity: float = 0.6,
) -> Image.Image:
    """Draw the photo under its annotation, and beside it under the prediction, each with a legend.

    Where the annotation has the id of no class the photo shows, and the pixel does not count in the percentage that is
    right.

    Args:
        photo: of the label maps' size.
        label: class ids (height, width).
        prediction: class ids (height, width).
        names: of the classes.
        palette: their colors.
        opacity: of the colors, in 0..1.
    """
    counted = (label >= 0) & (label < len(names))
    right = f"{100 * (label == prediction)[counted].mean():.1f} % of pixels right" if counted.any() else "unannotated"
    halves = [
        _titled(title, draw_overlay(photo, label_map, names, palette, opacity))
        for title, label_map in (("annotation", label), (f"prediction: {right}", prediction))
    ]
    gap = 8
    size = (sum(half.width for half in halves) + gap, max(half.height for half in halves))
    canvas = Image.new("RGB", size, BACKGROUND)
    canvas.paste(halves[0], (0, 0))
    canvas.paste(halves[1], (halves[0].width + gap, 0))
    return canvas


def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Of the pixels of each class (row), which share is taken for which class (column).

    matrix: integers (classes, classes), pixels by label and prediction. Colours go by the square root of the share,
    so that rare confusions show.
    """
    count = len(names)
    cell = min(max(960 // count, 12), 44)
    font = ImageFont.load_default(max(10, cell // 3))
    line = 2 * max(10, cell // 3)
    total = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(total, 1)
    margin = round(max(font.getlength(name) for name in names)) + 12
    top = margin + line
    width = max(margin + count * cell + 12, round(font.getlength(_CAPTION)) + 24)
    canvas = Image.new("RGB", (width, top + count * cell + 12), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((12, line // 2), _CAPTION, fill=FAINT_TEXT, font=font, anchor="lm")
    canvas.paste(_column_names(names, margin, cell, font), (margin, line))

    colours = _colours(shares)
    colours[total[:, 0] == 0] = ABSENT
    cells = Image.fromarray(np.kron(colours, np.ones((cell, cell, 1), dtype=np.uint8)))
    canvas.paste(cells, (margin, top))
    for row, name in enumerate(names):
        middle = top + row * cell + cell // 2
        draw.text((margin - 6, middle), name, fill=TEXT, font=font, anchor="rm")
        for column in np.flatnonzero(shares[row] >= 0.005) if cell >= NUMBERS_FROM else ():
            place = (margin + column * cell + cell // 2, middle)
            ink = BACKGROUND if shares[row, column] > 0.3 else TEXT
            draw.text(place, f"{100 * shares[row, column]:.0f}", fill=ink, font=font, anchor="mm")
    draw.rectangle((margin - 1, top - 1, margin + count * cell, top + count * cell), outline=FAINT_TEXT)
    return canvas


_CAPTION = "% of the pixels of a class (row) predicted as (column)"


def _colours(shares: np.ndarray) -> np.ndarray:
    """Shares in 0..1 to uint8 colours (..., 3)."""
    position = np.sqrt(shares)
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(position, stops, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _column_names(names: Sequence[str], height: int, cell: int, font: ImageFont.ImageFont) -> Image.Image:
    """Names that read upwards, one over each column."""
    lying = Image.new("RGB", (height, len(names) * cell), BACKGROUND)
    draw = ImageDraw.Draw(lying)
    for index, name in enumerate(names):
        # Turned by a quarter to the left, the last line becomes the last column, and the left end the lower one.
        draw.text((6, index * cell + cell // 2), name, fill=TEXT, font=font, anchor="lm")
    return lying.transpose(Image.Transpose.ROTATE_90)


def _titled(title: str, picture: Image.Image) -> Image.Image:
    size = max(12, picture.width // 40)
    canvas = Image.new("RGB", (picture.width, picture.height + 2 * size), BACKGROUND)
    ImageDraw.Draw(canvas).text((size // 2, size), title, fill=TEXT, font=ImageFont.load_default(size), anchor="lm")
    canvas.paste(picture, (0, 2 * size))
    return canvas
