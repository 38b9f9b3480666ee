"""A loaded model over a data set: the official protocol, on one process or many, in constant memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor

from offseg_hf.data.dataset import label_set_of
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.prediction import predict
from offseg_hf.evaluation.samples import Sample, SampleReader, load_samples
from offseg_hf.utils.texts import one_line


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset, IterableDataset


@torch.no_grad()
def evaluate_model(
    model: nn.Module,
    processor: BaseImageProcessor,
    dataset: "Dataset | IterableDataset",
    *,
    metric: MeanIoU | None = None,
    accelerator: "Accelerator | None" = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    workers: int = 0,
    start: int = 0,
    on_sample: Callable[[Sample, np.ndarray], None] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """The metrics of `MeanIoU.compute` over a data set, with `num_images` and `confusion_matrix` (label, prediction).

    One image at a time goes through the processor and its windows; the scores are compared at the size of the label
    map. The model stays on its device, in its precision; every module gets its training mode back, and no random
    number is drawn.

    dataset: from `load_segmentation_data`, streaming or not.
    metric: what the counts of this process are added to; by default a new one.
    accelerator: with several processes, each evaluates every n-th image, none twice, and all get the result of all;
        its mixed precision applies. Without, this process evaluates everything.
    scales, flip: test-time augmentation, see `prediction`; officially `OFFICIAL_SCALES` and True.
    workers: processes that read images ahead (of streaming data sets this one reads).
    start: how many images of this process `metric` holds already: of an evaluation that was interrupted.
    on_sample: called with each sample and its label map, (height, width) integers.
    progress: called after each sample with the number done and the number of all, on this process; of a streaming
        data set that is None.

    Raises ValueError that names the sample at fault.
    """
    if metric is None:
        labels = label_set_of(dataset)
        metric = MeanIoU(len(labels), labels.ignore_index)
    if accelerator is not None:
        model = accelerator.unwrap_model(model)  # DistributedDataParallel would wait for processes with fewer images
    like = next(model.parameters())
    samples, total = _share(dataset, processor, scales, workers, start, accelerator)

    done = start
    with _evaluating(model), accelerator.autocast() if accelerator is not None else nullcontext():
        for sample in samples:
            views = [view.to(like.device, like.dtype) for view in sample.views]
            try:
                prediction = predict(model, processor, views, tuple(sample.label.shape), flip)
            except Exception as error:  # of a model that cannot take images of this size, or of a full memory
                what = f"{type(model).__name__} with {type(processor).__name__}"
                raise ValueError(f"{sample.name}: {what} makes no label map of it: {one_line(error)}") from error
            try:
                metric.update(prediction, sample.label)
            except ValueError as error:
                raise ValueError(f"{sample.name}: {error}") from error
            if on_sample is not None:
                on_sample(sample, prediction.cpu().numpy())
            done += 1
            if progress is not None:
                progress(done, total)

    if accelerator is not None:
        metric = metric.across_processes()
        done = int(accelerator.reduce(torch.tensor(done, device=accelerator.device), reduction="sum"))
    if not done:
        raise ValueError("nothing to evaluate: the data set is empty")
    return {**metric.compute(), "num_images": done, "confusion_matrix": metric.confusion_matrix.cpu().numpy()}


def _share(
    dataset: "Dataset | IterableDataset",
    processor: BaseImageProcessor,
    scales: Sequence[float] | None,
    workers: int,
    start: int,
    accelerator: "Accelerator | None",
) -> tuple[Iterator[Sample], int | None]:
    """The samples of this process from its `start`-th on, and the number of all of its samples, if it is known."""
    place = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    if not hasattr(dataset, "__len__"):
        reader = SampleReader(dataset, processor, (), scales)
        return reader.stream(*place, start), None
    indices = range(len(dataset))[place[0] :: place[1]]
    reader = SampleReader(dataset, processor, indices[start:], scales)
    return load_samples(reader, workers), len(indices)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in, which need not be one for all."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
