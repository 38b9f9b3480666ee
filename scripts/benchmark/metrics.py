"""MeanIoU beside evaluate's mean_iou, end to end: adding the batches, then computing.

    python scripts/benchmark/metrics.py                          # 500 images of 512 x 683, 150 classes; some minutes
    python scripts/benchmark/metrics.py --images 50 --repeats 3
    python scripts/benchmark/metrics.py --reference mean_iou     # evaluate's own script, from the Hub or from a path

Without `--reference` the algorithm that evaluate documents stands in: maps as images in an Arrow file, then three
histograms per image. Times are medians of interleaved runs in one process; memory is the growth of the resident set,
in a fresh process per number whose allocator returns what is freed. All contenders must get the same
numbers. The reference is given uint8 arrays, the smallest and fastest it takes.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Annotated

import datasets
import evaluate
import numpy as np
import torch
import typer
from measure import interleaved_medians, machine, markdown_table, peak_memory

from offseg_hf.evaluation.metric import MEAN_IOU_SCRIPT, MeanIoU


CLASSES, HEIGHT, WIDTH, BATCH = 150, 512, 683, 10
REFERENCE, MODULE = "evaluate's mean_iou", "ours through evaluate.load"
ARRAYS, TENSORS = "MeanIoU, uint8 arrays", "MeanIoU, int64 tensors"
CONTENDERS = (REFERENCE, MODULE, ARRAYS, TENSORS)


class DocumentedMeanIou(evaluate.Metric):
    """evaluate's mean_iou by its documentation."""

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Image()
        features = datasets.Features({"predictions": image, "references": image})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, num_labels: int, ignore_index: int) -> dict:
        hits, predicted, labelled = np.zeros((3, num_labels))
        for prediction, reference in zip(predictions, references):
            prediction, reference = np.array(prediction), np.array(reference)
            counted = reference != ignore_index
            prediction, reference = prediction[counted], reference[counted]
            for areas, values in (
                (hits, prediction[prediction == reference]),
                (predicted, prediction),
                (labelled, reference),
            ):
                areas += np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]
        return {"mean_iou": np.nanmean(hits / (predicted + labelled - hits))}


def some_pairs() -> tuple[np.ndarray, np.ndarray]:
    """A batch of (predictions, labels), uint8: blocks of 32 pixels of some 20 classes per image, three of four agree.

    Maps of large areas, as those of photos: noise would be slower to encode as images.
    """
    rng = np.random.default_rng(0)
    rows, columns = -(-HEIGHT // 32), -(-WIDTH // 32)
    present = rng.integers(0, CLASSES, (BATCH, 20))
    labels, others = np.take_along_axis(present[None], rng.integers(0, 20, (2, BATCH, rows * columns)), axis=2)
    predictions = np.where(rng.random(labels.shape) < 0.75, labels, others)
    labels[rng.random(labels.shape) < 0.05] = 255
    predictions, labels = (
        blocks.reshape(BATCH, rows, columns).repeat(32, 1).repeat(32, 2)[:, :HEIGHT, :WIDTH].astype(np.uint8)
        for blocks in (predictions, labels)
    )
    return np.ascontiguousarray(predictions), np.ascontiguousarray(labels)


def evaluation(contender: str, batches: int, reference: str | None, folder: str) -> Callable[[], float]:
    """A function that evaluates `batches` batches and returns the mean IoU."""
    predictions, labels = some_pairs()
    if contender in (ARRAYS, TENSORS):
        metric = MeanIoU(CLASSES)
        if contender is TENSORS:
            predictions, labels = torch.from_numpy(predictions).long(), torch.from_numpy(labels).long()

        def run() -> float:
            metric.reset()
            for _ in range(batches):
                metric.update(predictions, labels)
            return metric.compute()["mIoU"]
    else:
        if contender is MODULE:
            module = evaluate.load(MEAN_IOU_SCRIPT, cache_dir=folder)
        elif reference is not None:
            module = evaluate.load(reference, cache_dir=folder)
        else:
            module = DocumentedMeanIou(cache_dir=folder)

        def run() -> float:
            for _ in range(batches):
                module.add_batch(predictions=list(predictions), references=list(labels))
            return module.compute(num_labels=CLASSES, ignore_index=255)["mean_iou"]

    return run


def measure_memory(contender: str, batches: int, reference: str | None) -> int:
    command = [sys.executable, __file__, "--images", str(batches * BATCH)]
    command += ["--measure", str(CONTENDERS.index(contender)), *(["--reference", reference] if reference else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])


def main(
    images: Annotated[int, typer.Option(min=10, help="How many; memory is also measured with a fifth of them.")] = 500,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    reference: Annotated[str | None, typer.Option(help="evaluate's own mean_iou: its name or a path.")] = None,
    measure: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Prints a table of times, their ratios, and peak memory of the contenders."""
    torch.set_num_threads(threads)
    np.seterr(invalid="ignore")
    datasets.disable_progress_bars()
    batches = images // BATCH
    with tempfile.TemporaryDirectory() as folder:
        if measure is not None:
            print(peak_memory(evaluation(CONTENDERS[measure], batches, reference, folder)))
            return
        runs = {name: evaluation(name, batches, reference, folder) for name in CONTENDERS}
        results = {name: run() for name, run in runs.items()}
        if not np.allclose(list(results.values()), results[REFERENCE], rtol=1e-12):
            raise RuntimeError(f"expected the same mean IoU of all, got {results}")
        medians = interleaved_medians(runs, repeats)
    few = max(1, batches // 5)
    rows = []
    for name, seconds in medians.items():
        memory = [measure_memory(name, count, reference) / 2**20 for count in (few, batches)]
        shown = f"{name} (its documented algorithm)" if name is REFERENCE and reference is None else name
        per_image, ratio = 1000 * seconds / (batches * BATCH), medians[REFERENCE] / seconds
        rows.append([shown, f"{per_image:.2f}", f"{ratio:.1f}", *(f"{value:.0f}" for value in memory)])
    header = ["", "ms per image", "times faster", f"MB, {few * BATCH} images", f"MB, {batches * BATCH} images"]
    print(markdown_table(header, rows))
    print(f"\n{batches * BATCH} images of {HEIGHT} x {WIDTH}, {CLASSES} classes. {machine()}")


if __name__ == "__main__":
    typer.run(main)
