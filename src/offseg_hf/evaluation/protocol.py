"""A loaded model over a data set: the official protocol, on one process or many, in constant memory.

What is counted of each image, if it is wanted, is a kilobyte an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BaseImageProcessor

from offseg_hf.data.dataset import label_set_of
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.outputs import Sink
from offseg_hf.evaluation.prediction import predict, predict_with_probability
from offseg_hf.evaluation.samples import Sample, SampleReader, load_samples
from offseg_hf.utils.processes import Processes
from offseg_hf.utils.texts import one_line


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset, IterableDataset


def metric_for(dataset: Dataset | IterableDataset) -> MeanIoU:
    """Return an empty metric of the classes of a data set."""
    labels = label_set_of(dataset)
    return MeanIoU(len(labels), labels.ignore_index)


@torch.no_grad()
def evaluate_model(
    model: nn.Module,
    processor: BaseImageProcessor,
    dataset: Dataset | IterableDataset,
    *,
    accelerator: Accelerator | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    workers: int = 0,
    sink: Sink | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a data set.

    One image at a time goes through the processor and its windows; the scores are compared at the size of the label
    map. The model stays on its device, in its precision; every module gets its training mode back, and no random
    number is drawn.

    Args:
        model: of transformers, for semantic or universal segmentation.
        processor: the model's.
        dataset: from `load_segmentation_data`, streaming or not.
        accelerator: with several processes, each evaluates every n-th image, none twice, and all get the result of
            all; its mixed precision applies. Without, this process evaluates everything.
        scales: of test-time augmentation, see `prediction`; officially `OFFICIAL_SCALES`.
        flip: look at each view mirrored as well, as officially test-time augmentation does.
        workers: processes that read images ahead (of streaming data sets this one reads).
        sink: takes the label maps; by default they are only counted.

    Returns:
        The metrics of `MeanIoU.compute`, with `num_images`, `confusion_matrix` (label, prediction), and
        `image_counts`: those of the sink, if it has any, over all processes.

    Raises:
        ValueError: names the sample at fault.
    """
    processes = Processes(accelerator)
    if accelerator is not None:
        model = accelerator.unwrap_model(model)  # DistributedDataParallel would wait for processes with fewer images
    sink = Sink(metric_for(dataset)) if sink is None else sink
    like = next(model.parameters())
    samples, total = _share(SampleReader(dataset, processor, (), scales), workers, sink.done, processes)
    with _evaluating(model), processes.autocast():
        for sample in samples:
            views = [view.to(like.device, like.dtype) for view in sample.views]
            height, width = sample.label.shape
            try:
                if sink.counts is None:
                    prediction, probability = predict(model, processor, views, (height, width), flip), None
                else:
                    prediction, probability = predict_with_probability(model, processor, views, (height, width), flip)
            except Exception as error:  # of a model that cannot take images of this size, or of a full memory
                what = f"{type(model).__name__} with {type(processor).__name__}"
                raise ValueError(f"{sample.name}: {what} makes no label map of it: {one_line(error)}") from error
            sink.add(sample, prediction, total, probability)
    sink.flush()  # of all processes, before any has the total: then the main one finds what the others wrote
    metric, counts, num_images = _total(sink, accelerator)
    if not num_images:
        raise ValueError("nothing to evaluate: the data set is empty")
    return {
        **metric.compute(),
        "num_images": num_images,
        "confusion_matrix": metric.confusion_matrix.cpu().numpy(),
        "image_counts": counts,
    }


def _share(
    reader: SampleReader, workers: int, start: int, processes: Processes
) -> tuple[Iterator[Sample], int | None]:
    """Return the samples of this process from its `start`-th on, and the number of all of its samples, if known."""
    if not hasattr(reader.rows, "__len__"):
        return reader.stream(processes.index, processes.count, start), None
    indices = range(len(reader.rows))[processes.index :: processes.count]
    reader.indices = indices[start:]
    return load_samples(reader, workers), len(indices)


def _total(sink: Sink, accelerator: Accelerator | None) -> tuple[MeanIoU, ImageCounts | None, int]:
    """Return the metric and the counts of images over all processes, and how many samples they are of."""
    if accelerator is None:
        return sink.metric, sink.counts, sink.done
    from accelerate.utils import gather_object

    done = accelerator.reduce(torch.tensor(sink.done, device=accelerator.device), reduction="sum")
    counts = None if sink.counts is None else ImageCounts.joined(gather_object([sink.counts.to_bytes()]))
    return sink.metric.across_processes(), counts, int(done)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; afterwards every module is in the mode it was in, which need not be one for all."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
