"""What an evaluation counts in every image: confusions, boundaries and calibration, kept in a Parquet file.

All that the report shows, and every comparison, follows from these integers, without another look at an image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from offseg_hf.evaluation.boundary import boundary_counts
from offseg_hf.evaluation.calibration import BINS, Calibration, calibration_counts
from offseg_hf.utils.files import whole_file


COUNTS_FILE = "image_counts.parquet"

INTEGERS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # in the data set
        ("image", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        # The confusion matrix of the image where it is not zero.
        ("label", INTEGERS),
        ("prediction", INTEGERS),
        ("pixels", INTEGERS),
        # The classes that have a boundary in the label or the prediction.
        ("boundary_class", INTEGERS),
        ("boundary_intersection", INTEGERS),
        ("boundary_union", INTEGERS),
        # Per bin of the winner's probability; empty of models without probabilities.
        ("confidence_pixels", INTEGERS),
        ("confidence_right", INTEGERS),
        ("confidence_sum", INTEGERS),  # in units of 1 / calibration.SCALE
    ]
)


@dataclass
class ImageCounts:
    """The counts of images, one row each as of `SCHEMA`; about a kilobyte of memory an image.

    Args:
        num_classes: number of classes.
        rows: of the images so far.
    """

    num_classes: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(
        self, index: int, name: str, confusion: Tensor, prediction: Tensor, label: Tensor, probability: Tensor | None
    ) -> None:
        """Count an image.

        Args:
            index: of the image in the data set.
            name: its file as the data set names it.
            confusion: pixels (num_classes, num_classes) by label and prediction.
            prediction: class ids (height, width).
            label: class ids (height, width), and another value where nothing is annotated.
            probability: of the winner, at the grid of `calibration`, if the model has any.
        """
        cells = confusion.nonzero()
        boundary = torch.stack(boundary_counts(prediction, label.to(prediction.device), self.num_classes)).cpu()
        (classes,) = boundary[1].nonzero(as_tuple=True)
        calibration: Sequence[np.ndarray] = [np.empty(0, np.int64)] * 3
        if probability is not None:
            calibration = list(calibration_counts(probability, prediction, label, self.num_classes))
        integers = (
            *cells.T.cpu().numpy(),
            confusion[cells[:, 0], cells[:, 1]].cpu().numpy(),
            *(classes.numpy(), *boundary[:, classes].numpy()),
            *calibration,
        )
        self.rows.append(dict(zip(SCHEMA.names, (index, name, *label.shape, *integers), strict=True)))

    # -- to and from files and other processes

    def to_bytes(self) -> bytes:
        """Return all rows, in the order of the images, as the content of a Parquet file."""
        columns = [
            pa.array((row[name] for row in sorted(self.rows, key=lambda row: row["index"])), SCHEMA.field(name).type)
            for name in SCHEMA.names
        ]
        buffer = pa.BufferOutputStream()
        table = pa.table(columns, schema=SCHEMA.with_metadata({"num_classes": str(self.num_classes)}))
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "ImageCounts":
        """Read what `to_bytes` wrote; raises ValueError for anything else."""
        try:
            table = pq.read_table(pa.BufferReader(content))
            num_classes = int((table.schema.metadata or {})[b"num_classes"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise ValueError(f"expected counts of images, got another file ({error})") from None
        if not table.schema.equals(SCHEMA):
            raise ValueError(f"expected the columns {', '.join(SCHEMA.names)}, got {', '.join(table.schema.names)}")
        columns = {name: _values(table[name].combine_chunks()) for name in SCHEMA.names}
        rows = [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
        return cls(num_classes, rows)

    @classmethod
    def joined(cls, contents: Iterable[bytes]) -> "ImageCounts":
        """Return the images of several processes, from the bytes of each."""
        first, *others = (cls.from_bytes(content) for content in contents)
        rows = [row for counts in (first, *others) for row in counts.rows]
        return cls(first.num_classes, sorted(rows, key=lambda row: row["index"]))

    def write(self, folder: Path) -> None:
        """Write `COUNTS_FILE` into the folder of an evaluation."""
        with whole_file(folder / COUNTS_FILE) as path:
            path.write_bytes(self.to_bytes())

    # -- per image, and of all

    @property
    def names(self) -> list[str]:
        """The files of the images as the data set names them."""
        return [row["image"] for row in self.rows]

    def per_image(self) -> "PerImage":
        """Return the counts as tables of images and classes."""
        shape = (len(self), self.num_classes)
        tables = PerImage(*(np.zeros(shape, np.int64) for _ in range(5)))
        for index, row in enumerate(self.rows):
            label, prediction, pixels = row["label"], row["prediction"], row["pixels"]
            hit = label == prediction
            tables.hits[index, label[hit]] = pixels[hit]
            np.add.at(tables.labeled[index], label, pixels)
            np.add.at(tables.predicted[index], prediction, pixels)
            tables.boundary_intersection[index, row["boundary_class"]] = row["boundary_intersection"]
            tables.boundary_union[index, row["boundary_class"]] = row["boundary_union"]
        return tables

    def boundary_iou(self) -> np.ndarray:
        """Return the Boundary IoU of each class over all images, NaN of classes that are nowhere."""
        tables = self.per_image()
        return ratio(tables.boundary_intersection.sum(axis=0), tables.boundary_union.sum(axis=0))

    def calibration(self) -> Calibration | None:
        """Return the calibration over all images; None of models without probabilities."""
        names = ("confidence_pixels", "confidence_right", "confidence_sum")
        counts = [np.stack([row[name] for name in names]) for row in self.rows]
        if not counts or any(count.shape != (3, BINS) for count in counts):
            return None
        return Calibration(np.sum(counts, axis=0))


@dataclass(frozen=True)
class PerImage:
    """Pixels by image and class, int64 (images, classes) each."""

    hits: np.ndarray
    labeled: np.ndarray
    predicted: np.ndarray
    boundary_intersection: np.ndarray
    boundary_union: np.ndarray

    @property
    def union(self) -> np.ndarray:
        """The pixels that have a class in the label, the prediction, or both."""
        return self.labeled + self.predicted - self.hits

    def scores(self) -> Mapping[str, np.ndarray]:
        """Return mIoU, Boundary mIoU and accuracy of every image, over the classes in its label or prediction."""
        return {
            "mIoU": mean_of_numbers(ratio(self.hits, self.union)),
            "mBoundaryIoU": mean_of_numbers(ratio(self.boundary_intersection, self.boundary_union)),
            "aAcc": ratio(self.hits.sum(axis=1), self.labeled.sum(axis=1)),
        }


def ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Divide, with NaN where there is nothing to divide by."""
    return np.divide(parts, wholes, out=np.full(np.shape(wholes), np.nan), where=wholes > 0)


def mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """Average over the last axis what is not NaN; NaN, without a warning, if there is nothing."""
    numbers = ~np.isnan(values)
    return ratio(np.where(numbers, values, 0).sum(axis=-1), numbers.sum(axis=-1))


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values, lists of integers as arrays that share its memory."""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    values, ends = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[begin:end] for begin, end in pairwise(ends)]
