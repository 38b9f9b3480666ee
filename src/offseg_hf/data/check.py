"""Reading all of a data set once before training does: every problem with its file, and the pixels of each class."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from offseg_hf.data.datasets import (
    ReadingOptions,
    dataset_of,
    label_set_of,
    load_segmentation_data,
    refuse_options,
    resolve_labels,
    select_files,
)
from offseg_hf.data.labels import LabelSet
from offseg_hf.data.layouts import Problem, read_layout
from offseg_hf.data.sources import source_folder


if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int, int], None]  # samples done, of how many


@dataclass
class SplitReport:
    """What is in a split, and what is wrong with it.

    pixels, images: of each class, how many pixels and in how many images; `ignored` are the pixels of no class.
        Samples with a problem are not counted.
    """

    name: str
    labels: LabelSet
    num_samples: int
    problems: list[Problem] = field(default_factory=list)
    pixels: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    ignored: int = 0

    def __post_init__(self) -> None:
        self.pixels, self.images = np.zeros((2, len(self.labels)), np.int64)

    def add(self, counts: np.ndarray) -> None:
        """Count a label map, given the pixels of each of its ids."""
        self.pixels += counts[: len(self.labels)]
        self.images += counts[: len(self.labels)] > 0
        self.ignored += int(counts[self.labels.ignore_index])

    def rows(self) -> Iterator[tuple[str, int, float, int]]:
        """Of each class its name, pixels, share of the pixels of all classes, and images that have it."""
        total = max(int(self.pixels.sum()), 1)
        for name, pixels, images in zip(self.labels.names, self.pixels.tolist(), self.images.tolist()):
            yield name, pixels, pixels / total, images

    def class_weights(self) -> list[float]:
        """What the pixels of each class may weigh in a loss so that rare classes are learned: the inverse root of its
        share, with a mean over all pixels of 1, to three digits. A class without pixels weighs 1."""
        roots = np.sqrt(self.pixels / max(int(self.pixels.sum()), 1))
        weights = np.divide(1, roots * roots.sum(), where=roots > 0, out=np.ones_like(roots))
        return [float(f"{weight:.3g}") for weight in weights]


def check_segmentation_data(
    source: str | Path,
    split: str | None = None,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
    **options: Unpack[ReadingOptions],
) -> list[SplitReport]:
    """Read every sample, in `workers` threads (default: one per CPU), and report on each split.

    Problems are found all, not only the first: a missing half of a pair, an unreadable file, a label map of another
    size than its image, values out of range, an empty split. `options` as of `load_segmentation_data`, whose errors
    about the data set as a whole (unknown layout, split, classes) are raised here too.
    """
    labels = options.pop("labels", None)
    labels = None if labels is None else resolve_labels(labels)
    folder = source_folder(source)
    files = None if folder is None else read_layout(folder, labels)
    reports, datasets = [], []
    if files is not None:
        refuse_options(source, "a folder of images", **options)
        for name, part in select_files(str(source), files, split).items():
            datasets.append(dataset_of(part, name))
            reports.append(SplitReport(name, part.labels, len(part.pairs), list(part.problems)))
        if not reports:
            raise ValueError(f"{source}: no split with images")
    else:
        data = load_segmentation_data(source, split, labels=labels, **options)
        for name, dataset in data.items() if isinstance(data, dict) else [(str(data.split or "data"), data)]:
            datasets.append(dataset)
            reports.append(SplitReport(name, label_set_of(dataset), len(dataset)))

    total, done = sum(map(len, datasets)), 0
    for report, dataset in zip(reports, datasets):
        for result in _read_all(dataset, report.name, workers or os.cpu_count() or 1):
            if isinstance(result, np.ndarray):
                report.add(result)
            else:
                report.problems.extend(result)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    return reports


def _read_all(dataset: "Dataset", split: str, workers: int) -> Iterator[np.ndarray | list[Problem]]:
    """Of each sample, in order, the pixels of each id of its label map, or its problems."""
    image_feature, label_feature = dataset.features["image"], dataset.features["label"]
    undecoded = dataset.cast_column("image", replace(image_feature, decode=False))
    undecoded = undecoded.cast_column("label", label_feature.undecoded())
    num_ids = max(len(label_feature.names) - 1, label_feature.ignore_index) + 1

    def read(index: int) -> np.ndarray | list[Problem]:
        sample = undecoded[index]
        decoded, problems = [], []
        for column, feature in (("image", image_feature), ("label", label_feature)):
            name = sample[column]["path"] or f"{split} sample {index}, {column}"
            try:
                decoded.append((name, feature.decode_example(sample[column])))
            except Exception as error:  # whatever a broken file makes of a decoder: the check goes on
                problems.append(Problem(name, _reason(error, name)))
        if problems:
            return problems
        (image_name, image), (label_name, label) = decoded
        if image.size != label.size:
            return [Problem(label_name, _size_message(image_name, image.size, label.size))]
        return np.asarray(label.histogram()) if label.mode == "L" else np.bincount(np.ravel(label), minlength=num_ids)

    executor = ThreadPoolExecutor(workers)
    try:
        yield from executor.map(read, range(len(dataset)))
    finally:
        executor.shutdown(cancel_futures=True)


def _reason(error: Exception, name: str) -> str:
    text = str(error).removeprefix(f"{name}: ")
    return text if isinstance(error, ValueError) else f"unreadable, {type(error).__name__}: {text}"


def _size_message(image_name: str, image_size: tuple[int, int], label_size: tuple[int, int]) -> str:
    message = "the label map is {}x{}, but its image {} is {}x{}".format(*label_size, image_name, *image_size)
    if image_size == label_size[::-1]:
        message += "; images are turned as their EXIF orientation says, label maps have to lie the same way"
    return message
