"""The samples of a data set one by one: read, checked and made the model's inputs, by worker processes if wanted."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.utils.data
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from offseg_hf.data.reading import PairReader
from offseg_hf.evaluation.prediction import prepare
from offseg_hf.utils.texts import one_line


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class Sample:
    """A photo with its label map.

    Args:
        index: in the data set.
        name: its file as the data set names it.
        content: tells it from any other photo with any other label map.
        photo: RGB, upright.
        label: its label map, (height, width).
        views: the model's inputs, on the CPU.
    """

    index: int
    name: str
    content: bytes
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
        self.pairs = PairReader(dataset)
        self.rows = self.pairs.rows
        self.processor = processor
        self.indices = indices
        self.scales = scales

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> "Sample | ValueError":
        """Return the sample, or why it cannot be used: of what a worker process raises, the loader makes pages."""
        index = self.indices[position]
        try:
            return self.read(index, self.rows[index])
        except ValueError as error:
            return error

    def read(self, index: int, row: dict[str, Any]) -> Sample:
        """Read a sample; raises ValueError with the name of the file that cannot be used, and the reason."""
        name = sample_name_of(index, row)
        photo, label_map = self.pairs.read(index, row)
        label = torch.from_numpy(np.array(label_map))
        try:
            views = prepare(photo, self.processor, self.scales)
        except Exception as error:  # of an image processor of transformers, whose settings it does not go with
            what = type(self.processor).__name__
            raise ValueError(
                f"{name}: {what} does not take its {photo.width}x{photo.height}: {one_line(error)}"
            ) from error
        return Sample(index, name, _content(row), photo, label, views)

    def contents(self, process_index: int, num_processes: int, count: int) -> Iterator[tuple[int, str, bytes]]:
        """Yield index, name and content (as of `Sample`) of the first `count` samples of a process, not decoded."""
        if hasattr(self.rows, "__len__"):
            indices = range(len(self.rows))[process_index::num_processes][:count]
            rows: Iterator[tuple[int, Any]] = ((index, self.rows[index]) for index in indices)
        else:
            stop = process_index + count * num_processes
            rows = islice(enumerate(self.rows), process_index, stop, num_processes)
        for index, row in rows:
            yield index, sample_name_of(index, row), _content(row)

    def stream(self, process_index: int, num_processes: int, start: int) -> Iterator[Sample]:
        """Yield, of a streaming data set, the samples of one process from its `start`-th on.

        Those before, and those of the other processes, are not decoded.
        """
        first = start * num_processes + process_index
        for index, row in islice(enumerate(self.rows), first, None, num_processes):
            yield self.read(index, row)


def load_samples(reader: SampleReader, workers: int) -> Iterator[Sample]:
    """Yield the samples of `reader` in order, which `workers` processes read ahead, or raise their errors."""
    loader = torch.utils.data.DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type] # without batches it gets the sample
        generator=torch.Generator(),  # the global one belongs to training
    )
    for sample in loader:
        if isinstance(sample, ValueError):
            raise sample
        yield sample


def sample_name_of(index: int, row: dict[str, Any]) -> str:
    """Return the file of a sample as the data set names it, or else its index."""
    return (row["image"] or {}).get("path") or f"sample {index}"


def _content(row: dict[str, Any]) -> bytes:
    """Digest the bytes of both files. Of one elsewhere, its address: on the Hub that has the commit in it."""
    digest = hashlib.blake2b(digest_size=16)
    for column in ("image", "label"):
        cell = row[column] or {}
        content, path = cell.get("bytes"), cell.get("path") or ""
        if content is None:
            content = Path(path).read_bytes() if Path(path).is_file() else path.encode()
        digest.update(f"{column} {len(content)} {cell.get('raw')} ".encode())
        digest.update(content)
    return digest.digest()


def _as_it_is(sample: "Sample | ValueError") -> "Sample | ValueError":
    return sample
