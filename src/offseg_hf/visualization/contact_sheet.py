"""A contact sheet of a data set: photos, their label maps with a legend, and crops as training would see them."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from offseg_hf.data.dataset import label_set_of
from offseg_hf.data.reading import PairReader
from offseg_hf.data.training_set import TrainingSet
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.utils.files import whole_file
from offseg_hf.visualization.label_maps import draw_overlay
from offseg_hf.visualization.style import BACKGROUND


HEIGHT = 320  # pixels, of every photo
GAP = 8
CROPS = 2  # augmented ones of a photo


def write_contact_sheet(
    data: Dataset, output: str | Path, number: int = 6, transform: TrainingTransform | None = None, seed: int = 0
) -> list[int]:
    """Write a PNG with a row for each of some samples: photo, overlay with legend, and augmented crops under theirs.

    Args:
        data: a split, as `load_segmentation_data` returns it.
        output: the file to write.
        number: of samples, from all over the split.
        transform: that training would augment with; None for no crops.
        seed: of the augmentation.

    Returns:
        The indices of the samples.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output}: expected a name that ends in .png")
    if number < 1 or not len(data):
        raise ValueError(f"expected a number of samples from 1 and some in the split, got {number} of {len(data)}")
    labels, reader = label_set_of(data), PairReader(data)
    indices = np.unique(np.linspace(0, len(data) - 1, number).round().astype(int)).tolist()
    samples = None if transform is None else TrainingSet(data, transform, seed)
    rows = []
    for index in indices:
        photo, label_map = reader.read(index)
        pairs = [(photo, np.asarray(label_map).astype(np.int64))]
        if samples is not None and transform is not None:
            pairs += [_crop(samples, transform, (epoch, index)) for epoch in range(CROPS)]
        overlays = [draw_overlay(*_scaled(*pair), labels.names, labels.palette) for pair in pairs]
        rows.append([_scaled(photo, pairs[0][1])[0], *overlays])
    with whole_file(output) as path:
        _sheet(rows).save(path, format="PNG")
    return indices


def _crop(samples: TrainingSet, transform: TrainingTransform, key: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Return an augmented sample as a photo and its label map."""
    sample = samples[key]
    pixels = sample["pixel_values"].permute(1, 2, 0).numpy() * np.asarray(transform.std) + np.asarray(transform.mean)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)), sample["labels"].numpy().astype(np.int64)


def _scaled(photo: Image.Image, label_map: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Both of the sheet's height; ids are picked, not mixed."""
    width = max(1, round(photo.width * HEIGHT / photo.height))
    rows, columns = (
        ((np.arange(count) + 0.5) * size / count).astype(int)
        for count, size in zip((HEIGHT, width), label_map.shape, strict=True)
    )
    return photo.resize((width, HEIGHT), Image.Resampling.BILINEAR), label_map[np.ix_(rows, columns)]


def _sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Return the pictures in rows and columns."""
    widths = [max(row[column].width for row in rows) for column in range(len(rows[0]))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1)
    sheet = Image.new("RGB", size, BACKGROUND)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for picture, width in zip(row, widths, strict=True):
            sheet.paste(picture, (x, y))
            x += width + GAP
        y += height + GAP
    return sheet
