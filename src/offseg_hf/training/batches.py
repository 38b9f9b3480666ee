"""The batches that a process trains on: an endless stream, which begins at any iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from offseg_hf.data.dataset import sample_name
from offseg_hf.data.own_function import load_function
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.training.build import takes_masks
from offseg_hf.training.interruption import ignore_signals
from offseg_hf.training.pixels import require_same_pixels
from offseg_hf.training.recipe import Recipe
from offseg_hf.training.values import named_settings
from offseg_hf.utils.texts import one_line


if TYPE_CHECKING:
    from datasets import Dataset


Inputs = dict[str, Tensor | list[Tensor]]


class Batches(Iterator[tuple[Inputs, float]]):
    """Batches of one process without end: the inputs of the model on its device, and what their loss counts.

    That is 0 if no pixel of the batch has a class, and else 1. Of such a batch the losses of transformers' models are
    0 / 0, whose gradients are no numbers either. It gets a labeled pixel, so that all parameters have a gradient as
    ever, of which nothing counts.

    Args:
        data: the split to train on.
        iteration: the number of the first one, from 0.
        stack: ends the workers that read.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
        iteration: int,
        stack: ExitStack,
    ):
        seed, processes = recipe.training.seed, accelerator.num_processes
        self.size = device_batch_size(recipe, processes)
        self.accumulation = recipe.training.batch_size // processes // self.size
        self._recipe, self._accelerator = recipe, accelerator
        self._takes_masks = takes_masks(model)
        with named_settings("model.image_processor", recipe.model.image_processor):
            self._channels = require_same_pixels(recipe.augmentation, processor)
        if recipe.augmentation.extra is not None:
            load_function(recipe.augmentation.extra)  # an error before anything is read
        start = iteration * recipe.training.batch_size
        self._sampler = TrainingSampler(len(data), seed, start, accelerator.process_index, processes)
        self._samples = TrainingSet(data, recipe.augmentation, seed)
        loader: DataLoader = DataLoader(
            NamedSamples(self._samples),
            batch_size=self.size,
            sampler=self._sampler,
            num_workers=recipe.data.workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        self._batches = iter(loader)
        if recipe.data.workers:  # nothing public ends workers while an error of theirs still holds the iterator
            stack.callback(self._batches._shutdown_workers)  # type: ignore[attr-defined]

    def __next__(self) -> tuple[Inputs, float]:
        try:
            batch = next(self._batches)
        except SampleError as error:  # of a worker's the message is a traceback, which ends with what was wrong
            last_line = str(error).splitlines()[-1]
            raise ValueError(last_line.partition("SampleError: ")[2] or last_line) from error
        if list(self._channels) != sorted(self._channels):
            batch["pixel_values"] = batch["pixel_values"][:, self._channels]
        labels, ignore_index = batch["labels"], self._samples.ignore_index
        counts = float((labels != ignore_index).any())
        if not counts:
            labels[:, 0, 0] = 0
        batch = {name: value.to(self._accelerator.device, non_blocking=True) for name, value in batch.items()}
        return model_inputs(batch, self._takes_masks, ignore_index), counts

    def names(self, iteration: int, process: int, step: int) -> list[str]:
        """Return the files of the samples that a process took in one step of the accumulation of an iteration."""
        first = iteration * self._recipe.training.batch_size + process
        places = range(step * self.size, (step + 1) * self.size)
        keys = [self._sampler.key(first + place * self._accelerator.num_processes) for place in places]
        data = self._samples.dataset
        return [f"{sample_name(data, index)} (epoch {epoch}, index {index})" for epoch, index in keys]


def device_batch_size(recipe: Recipe, num_processes: int) -> int:
    """Return how many samples a process takes at once, so that all take `training.batch_size` in whole steps."""
    total = recipe.training.batch_size
    part, rest = divmod(total, num_processes)
    if rest:
        raise ValueError(
            f"training.batch_size: expected a multiple of the {num_processes} processes, got {total}; it counts the "
            "samples of all processes together"
        )
    size = recipe.training.device_batch_size or part
    if part % size:
        raise ValueError(
            f"training.device_batch_size: expected a divisor of {part}, which is the batch of {total} over "
            f"{num_processes} processes, got {size}"
        )
    return size


class SampleError(ValueError):
    """A sample cannot be used; the message is one line, which names its file."""


class NamedSamples(torch.utils.data.Dataset):
    """Samples whose errors, of whatever kind, are SampleErrors: the text of a worker's ends with its one line."""

    def __init__(self, samples: TrainingSet):
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        try:
            return self.samples[key]
        except ValueError as error:  # which names it
            raise SampleError(one_line(error)) from error
        except Exception as error:  # decoders raise almost anything on broken files
            name = sample_name(self.samples.dataset, key[1])
            raise SampleError(f"{name}: cannot be read: {one_line(error)}") from error


def model_inputs(batch: Mapping[str, Tensor], takes_masks: bool, ignore_index: int) -> Inputs:
    """Return the arguments of a model's forward for images and label maps; of a model of masks one per class."""
    if not takes_masks:
        return dict(batch)
    classes = [labels.unique() for labels in batch["labels"]]
    classes = [present[present != ignore_index] for present in classes]
    masks = [
        (labels == present[:, None, None]).float() for labels, present in zip(batch["labels"], classes, strict=True)
    ]
    return {"pixel_values": batch["pixel_values"], "mask_labels": masks, "class_labels": classes}
