"""What an evaluation shows: photos with annotations and predictions, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from offseg_hf.utils.files import whole_file
from offseg_hf.visualization import BACKGROUND, TEXT, Palette, draw_overlay
from offseg_hf.visualization.style import DPI, chart_style


if TYPE_CHECKING:
    from matplotlib.figure import Figure


PICTURES = "report"  # folder beside the report
KINDS = {"photo": ".jpg", "annotation": ".png", "prediction": ".png", "difference": ".png"}
MAX_SIDE = 2048  # pixels
TILE = (112, 84)  # pixels: the box of each picture in a thumbnail
RIGHT, WRONG, UNANNOTATED = (225, 229, 234), (204, 41, 54), (150, 154, 160)

ABSENT = "#ececec"  # rows of classes that are nowhere annotated
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


def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """Draw which share of the pixels of each class (row) is taken for which class (column).

    Colors go by the square root of the share, so that rare confusions show. Rows of classes that are nowhere annotated
    are gray.

    Args:
        matrix: Integers (classes, classes), pixels by label and prediction.
        names: Of the classes.

    Returns:
        A figure, for `savefig` with a path that ends in .png or .svg.
    """
    import matplotlib as mpl
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    total = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    cell = min(max(960 // len(names), 12), 44)  # pixels
    font_size = max(7, cell / 6)  # points
    side = (cell * len(names) + 9 * max(len(name) for name in names) + 60) / DPI
    with chart_style():
        figure = Figure((max(side, 4), max(side, 4)), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap=mpl.colormaps["Blues"].with_extremes(bad=ABSENT), norm=PowerNorm(0.5, 0, 1))
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=90, fontsize=font_size)
        axes.set_yticks(places, names, fontsize=font_size)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_title("% of the pixels of a class (row) predicted as (column)", loc="center")
        for row, column in np.argwhere(shares >= 0.005) if cell >= NUMBERS_FROM else ():
            share = shares[row, column]
            ink = "white" if share > 0.3 else "black"
            axes.text(column, row, f"{100 * share:.0f}", color=ink, fontsize=font_size, ha="center", va="center")
    return figure


def picture_files(folder: Path, index: int) -> dict[str, Path]:
    """Return the report's pictures of a sample and their files, which have the index of the sample as their name."""
    return {kind: folder / kind / f"{index}{suffix}" for kind, suffix in KINDS.items()}


def write_pictures(
    folder: Path, index: int, photo: Image.Image, label: np.ndarray, prediction: np.ndarray, palette: Palette
) -> None:
    """Write what the report shows of a sample, no larger than `MAX_SIDE`.

    Args:
        folder: `PICTURES` in that of the evaluation.
        index: of the sample in the data set.
        photo: of the label maps' size.
        label: class ids (height, width); another value where nothing is annotated.
        prediction: class ids (height, width).
        palette: colors of the classes.
    """
    scale = min(1, MAX_SIDE / max(photo.size))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    annotated = (label >= 0) & (label < len(palette))
    difference = np.where(annotated, label != prediction, 2)
    pictures = {
        "photo": photo.resize(size, reducing_gap=2.0) if scale < 1 else photo,
        "annotation": draw_classes(label, palette),
        "prediction": draw_classes(prediction, palette),
        "difference": draw_classes(difference, (RIGHT, WRONG)),
    }
    for kind, file in picture_files(folder, index).items():
        options = {"quality": 85} if kind == "photo" else {"compress_level": 3}
        picture = (
            pictures[kind] if pictures[kind].size == size else pictures[kind].resize(size, Image.Resampling.NEAREST)
        )
        with whole_file(file) as path:
            picture.save(path, format="JPEG" if kind == "photo" else "PNG", **options)


def draw_classes(label_map: np.ndarray, palette: Palette) -> Image.Image:
    """Draw a label map in the colors of the classes, transparent where it has another value."""
    known = (label_map >= 0) & (label_map < len(palette))
    if len(palette) < 256:
        image = Image.fromarray(np.where(known, label_map, len(palette)).astype(np.uint8))
        image.putpalette([channel for color in palette for channel in (*color, 255)] + [0] * 4, "RGBA")
        return image
    table = np.array([(*color, 255) for color in palette] + [(0, 0, 0, 0)], dtype=np.uint8)
    return Image.fromarray(table[np.where(known, label_map, len(palette))])


def draw_thumbnail(folder: Path, index: int) -> Image.Image | None:
    """Draw the report's pictures of a sample in a row, each in a tile of `TILE`; None if any is missing."""
    strip = Image.new("RGB", (len(KINDS) * TILE[0], TILE[1]), UNANNOTATED)
    for place, file in enumerate(picture_files(folder, index).values()):
        try:
            with Image.open(file) as picture:
                picture.draft("RGB", (2 * TILE[0], 2 * TILE[1]))
                picture.thumbnail(
                    TILE, Image.Resampling.BILINEAR if file.suffix == ".jpg" else Image.Resampling.NEAREST
                )
                tile = picture.convert("RGBA")
        except FileNotFoundError:
            return None
        left, top = place * TILE[0] + (TILE[0] - tile.width) // 2, (TILE[1] - tile.height) // 2
        strip.paste(tile, (left, top), tile)
    return strip


def _titled(title: str, picture: Image.Image) -> Image.Image:
    size = max(12, picture.width // 40)
    canvas = Image.new("RGB", (picture.width, picture.height + 2 * size), BACKGROUND)
    ImageDraw.Draw(canvas).text((size // 2, size), title, fill=TEXT, font=ImageFont.load_default(size), anchor="lm")
    canvas.paste(picture, (0, 2 * size))
    return canvas
