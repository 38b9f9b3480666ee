"""The samples of a data set one by one: read, checked and made the model's inputs, by worker processes if wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.utils.data
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from offseg_hf.evaluation.prediction import prepare
from offseg_hf.models.image_operations import read_image


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class Sample:
    """A photo with its label map.

    index: in the data set. name: its file as the data set names it. views: the model's inputs, on the CPU.
    """

    index: int
    name: str
    photo: Image.Image
    label: Tensor  # (height, width)
    views: list[BatchFeature]


class SampleReader(torch.utils.data.Dataset):
    """Sample number `indices[i]` at position i, `photo` and `label` as they are in the files, upright and RGB."""

    def __init__(
        self,
        dataset: "Dataset | IterableDataset",
        processor: BaseImageProcessor,
        indices: Sequence[int],
        scales: Sequence[float] | None = None,
    ):
        from datasets import Image as ImageFeature

        # Cells undecoded: decoding forgets the names of files, and streams are read past the samples of others.
        rows = dataset.select_columns(["image", "label"]).cast_column("image", ImageFeature(decode=False))
        self.label_feature = dataset.features["label"]
        self.rows = rows.cast_column("label", self.label_feature.undecoded())
        self.processor = processor
        self.indices = indices
        self.scales = scales

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        index = self.indices[position]
        return self.read(index, self.rows[index])

    def read(self, index: int, row: dict[str, Any]) -> Sample:
        """Raises ValueError with the name of the file that cannot be used."""
        from datasets import Image as ImageFeature

        name = row["image"]["path"] or f"sample {index}"
        try:
            photo = to_rgb(ImageFeature().decode_example(row["image"]))
        except Exception as error:  # Pillow's decoders raise almost anything on broken files
            raise ValueError(f"{name}: cannot be read as an image: {error}") from error
        label = torch.from_numpy(np.array(self.label_feature.decode_example(row["label"])))
        if tuple(label.shape) != (photo.height, photo.width):
            height, width = label.shape
            raise ValueError(f"{name}: it is {photo.width}x{photo.height}, but its label map {width}x{height}")
        return Sample(index, name, photo, label, prepare(photo, self.processor, self.scales))

    def stream(self, process_index: int, num_processes: int, start: int) -> Iterator[Sample]:
        """Of a streaming data set the samples of one process from its `start`-th on; those before, and those of the
        other processes, are not decoded."""
        first = start * num_processes + process_index
        for index, row in islice(enumerate(self.rows), first, None, num_processes):
            yield self.read(index, row)


def sample_names(dataset: "Dataset") -> list[str]:
    """The files of all samples as the data set names them, without reading them."""
    from datasets import Image as ImageFeature

    cells = dataset.select_columns("image").cast_column("image", ImageFeature(decode=False)).flatten()
    paths = cells.select_columns("image.path")[:]["image.path"]
    return [path or f"sample {index}" for index, path in enumerate(paths)]


def sample_loader(reader: SampleReader, workers: int) -> torch.utils.data.DataLoader:
    """The samples of `reader` in order; `workers` processes read ahead."""
    return torch.utils.data.DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # the global one belongs to training
    )


def to_rgb(photo: Image.Image) -> Image.Image:
    """The photo as the image processors here see it: 8-bit RGB (see `read_image`)."""
    if photo.mode == "RGB":
        return photo
    array = read_image(photo)
    return Image.fromarray(array.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))


def _as_it_is(sample: Sample) -> Sample:
    return sample
