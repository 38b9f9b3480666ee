"""Training samples as a function of (seed, epoch, index), and the one global order in which all processes see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from offseg_hf.data.dataset import label_set_of, sample_name
from offseg_hf.data.reading import PairReader
from offseg_hf.data.transforms import TrainingTransform


if TYPE_CHECKING:
    import datasets


NO_EPOCH = -1


class TrainingSet(Dataset):
    """Augmented samples of a data set with the columns `image` and `label`, as `load_segmentation_data` returns it.

    A key is (epoch, index), as `TrainingSampler` yields them, and the sample is a function of it and `seed` alone:
    neither workers nor processes nor what was read before matter. Loaders that know no epochs give the index alone:
    then the epoch is the one that `set_epoch` was last told, as accelerate's DataLoader does in transformers' Trainer.
    Padding is the data's ignore index. Errors name the sample's file.
    """

    def __init__(self, dataset: datasets.Dataset, transform: TrainingTransform, seed: int = 0):
        if not {"image", "label"} <= set(dataset.column_names):
            raise ValueError(f"expected columns image and label, got {', '.join(dataset.column_names)}")
        from datasets import Image

        self.dataset = dataset
        self.transform = transform
        self._has_files = isinstance(dataset.features["image"], Image)  # once: asking copies all names and colors
        self.seed = _check_seed(seed)
        self.ignore_index = label_set_of(dataset).ignore_index
        self._pairs: PairReader | None = None  # made where it is used: a copy of the data set is not pickled along
        self._epoch = torch.tensor(NO_EPOCH).share_memory_()  # with workers that live on from epoch to epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of keys that are indices, here and in the workers that read this set already."""
        self._epoch.fill_(epoch)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (int(self._epoch), key)
        if epoch == NO_EPOCH:
            raise TypeError(
                f"expected (epoch, index) as a key, got {key!r} before `set_epoch` was called: every epoch would be "
                "augmented alike. A DataLoader of your own takes a TrainingSampler as `sampler`; Trainer takes, in "
                'several processes or to resume, accelerator_config={"use_seedable_sampler": False}'
            )
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, index)))
        photo, label_map = self._read(index)
        try:
            return self.transform(photo, label_map, rng, self.ignore_index)
        except ValueError as error:
            raise ValueError(f"{sample_name(self.dataset, index)}: {error}") from error

    def _read(self, index: int) -> tuple[Any, Any]:
        """Read a photo and its label map as they are in the files, or as the data set's own transform makes them."""
        if self.dataset.format["type"] == "custom" or not self._has_files:
            row = self.dataset[index]
            return row["image"], row["label"]
        self._pairs = self._pairs or PairReader(self.dataset)
        photo, label_map = self._pairs.read(index)
        return np.asarray(photo), label_map  # upright RGB: the transform would make sure of that, by two copies

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pairs": None}


class TrainingSampler(Sampler[tuple[int, int]]):
    """An endless stream of (epoch, index): the data set in a new order every epoch, epochs joined without a gap.

    All processes share one order. Process p of n takes positions p, p + n, p + 2n, ...: whatever n, the processes'
    batches together are the same global batch. To resume, start at the number of samples that all processes together
    have trained on: iteration times global batch.

    Raises ValueError for an empty data set, or a start that would shift the processes against each other.
    """

    def __init__(self, length: int, seed: int = 0, start: int = 0, process_index: int = 0, num_processes: int = 1):
        if length < 1:
            raise ValueError("expected at least one sample to train on, got an empty data set")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"expected a process_index from 0 to {num_processes - 1}, got {process_index}")
        if start < 0 or start % num_processes:
            raise ValueError(f"expected a start of 0 or a multiple of the {num_processes} processes, got {start}")
        self.length = length
        self.seed = _check_seed(seed)
        self.start = start
        self.process_index = process_index
        self.num_processes = num_processes
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # of the epoch looked at last

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.process_index
        while True:
            yield self.key(position)
            position += self.num_processes

    def key(self, position: int) -> tuple[int, int]:
        """Return (epoch, index) at a position of the global order, without reading the sample."""
        epoch, step = divmod(position, self.length)
        if self._order[0] != epoch:
            # Of the same family of seeds as the samples' (epoch, index), and different from all of them.
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
            self._order = epoch, rng.permutation(self.length)
        return epoch, int(self._order[1][step])


def _check_seed(seed: int) -> int:
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected a whole number from 0 as seed, got {seed!r}")
    return seed
