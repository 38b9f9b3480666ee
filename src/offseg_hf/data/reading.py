"""Reading of a photo and its label map: the one way of training, evaluation and the check of data.

Whatever goes wrong is told with the name of the file, or the place in the data set of what has no name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

from offseg_hf.data.layouts import Problem
from offseg_hf.models.image_operations import read_image
from offseg_hf.utils.texts import reading_error


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Pair = tuple[Image.Image, Image.Image]  # a photo and its label map


class PairReader:
    """The samples of a data set as (photo, label map): upright RGB of 8 bits, and class ids, of one size.

    Args:
        dataset: what `load_segmentation_data` returned, streaming or not.
        split: what it is called where a sample has no file to name; by default its split.
    """

    def __init__(self, dataset: Dataset | IterableDataset, split: str | None = None):
        self.image_feature = replace(dataset.features["image"], decode=True)
        self.label_feature = replace(dataset.features["label"], decode=True)
        self.place = f"{split or dataset.split or ''} sample".strip()
        # Cells undecoded: decoding forgets the names of files, and streams are read past the samples of others.
        rows = dataset.with_format(None).select_columns(["image", "label"])
        rows = rows.cast_column("image", replace(self.image_feature, decode=False))
        self.rows = rows.cast_column("label", self.label_feature.undecoded())

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, row: dict[str, Any] | None = None) -> Pair:
        """Return a sample by its index; of a streaming data set also its `row` of `rows`.

        Raises ValueError, in one line, for what cannot be read or used.
        """
        result = self.try_read(index, row)
        if isinstance(result, list):
            raise ValueError("; ".join(map(str, result))) from result[0].cause
        return result

    def try_read(self, index: int, row: dict[str, Any] | None = None) -> Pair | list[Problem]:
        """Return a sample as `read` does, or all that is wrong with it."""
        row = self.rows[index] if row is None else row
        image_path, label_path = ((row[column] or {}).get("path") for column in ("image", "label"))
        image_name = image_path or f"{self.place} {index}, image"
        label_name = label_path or (f"the label map of {image_path}" if image_path else f"{self.place} {index}, label")
        photo = _try(self._read_photo, row["image"], image_name, "an image")
        label_map = _try(self.label_feature.read, row["label"], label_name, "a label map")
        if isinstance(photo, Problem) or isinstance(label_map, Problem):
            return [result for result in (photo, label_map) if isinstance(result, Problem)]
        if photo.size != label_map.size:
            return [Problem(label_name, _size_message(image_name, photo.size, label_map.size))]
        return photo, label_map

    def _read_photo(self, cell: dict[str, Any]) -> Image.Image:
        try:
            photo = self.image_feature.decode_example(cell)
        except Exception as error:  # whatever a broken file makes of a decoder
            raise ValueError(f"cannot be read as an image: {reading_error(error)}") from error
        return to_rgb(photo)


def to_rgb(photo: Image.Image) -> Image.Image:
    """Return a photo as the image processors here see it: turned by its EXIF orientation, 8-bit RGB (`read_image`).

    Whatever asks for the size of a photo asks this one: of a photo that lies on its side it is another.

    Raises ValueError for floats: what is black and what is white in them, nobody says.
    """
    if photo.mode == "RGB" and photo.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return photo
    array = read_image(photo)
    if array.dtype != np.uint8:
        raise ValueError(
            f"expected a photo of 8 or 16 bits per value, got floats (mode {photo.mode}): scale them to 0..255 and "
            "save them as 8 bits"
        )
    return Image.fromarray(array.transpose(1, 2, 0))


def _try(
    read: Callable[[dict[str, Any]], Image.Image], cell: dict[str, Any] | None, name: str, kind: str
) -> Image.Image | Problem:
    """Return what `read` makes of a cell, or what is wrong with it."""
    if cell is None or (cell["path"] is None and cell["bytes"] is None):
        return Problem(name, f"cannot be read as {kind}: there is none (null)")
    try:
        return read(cell)
    except ValueError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
        return Problem(name, " ".join(str(error).split()), cause)


def _size_message(photo_name: str, photo_size: tuple[int, int], label_size: tuple[int, int]) -> str:
    message = "the label map is {}x{}, but its image {} is {}x{}".format(*label_size, photo_name, *photo_size)
    if photo_size == label_size[::-1]:
        message += "; images are turned as their EXIF orientation says, label maps have to lie the same way"
    return message
