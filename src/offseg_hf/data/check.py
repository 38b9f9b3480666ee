"""A check that reads all of a data set before training does: every problem by file, and pixels of each class."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offseg_hf.data.classes_json import FILE_NAME
from offseg_hf.data.dataset import NOT_OF_FOLDERS, dataset_of, label_set_of, load_data, select_files
from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.layouts import Problem, read_layout
from offseg_hf.data.reading import PairReader
from offseg_hf.data.source import DataSource, source_folder


if TYPE_CHECKING:
    from datasets import Dataset

    from offseg_hf.data.label_image import LabelImage

SHOWN_CLASSES = 8
DARK = 32  # of 255: a picture of the night has lamps, one of 12 bits in 16 has nothing above 15
Progress = Callable[[int, int], None]  # samples done, of how many


@dataclass
class SplitReport:
    """Report on a split. Samples with a problem are not counted.

    Args:
        name: of the split.
        labels: its classes.
        num_samples: all samples.
        problems: what is wrong with it.
        notes: what may be meant otherwise.
        num_counted: the samples without a problem.
        pixels: of each class.
        images: that have each class.
        ignored: pixels of no class.
    """

    name: str
    labels: LabelSet
    num_samples: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_counted: int = 0
    pixels: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    ignored: int = 0

    def __post_init__(self) -> None:
        self.pixels, self.images = np.zeros((2, len(self.labels)), np.int64)

    def add(self, counts: np.ndarray) -> None:
        """Count a label map, given the pixels of each of its ids."""
        self.pixels += counts[: len(self.labels)]
        self.images += counts[: len(self.labels)] > 0
        self.num_counted += 1
        self.ignored += int(counts[self.labels.ignore_index])

    def rows(self) -> Iterator[tuple[str, int, float, int]]:
        """Yield for each class its name, pixels, share of the pixels of all classes, and images that have it."""
        total = max(int(self.pixels.sum()), 1)
        for name, pixels, images in zip(self.labels.names, self.pixels.tolist(), self.images.tolist(), strict=True):
            yield name, pixels, pixels / total, images

    def class_weights(self) -> list[float]:
        """Return weights of the classes' pixels for a loss, so that rare classes are learned.

        They are the inverse root of a class's share, with a mean over all pixels of 1, to three digits. A class
        without pixels weighs 1.
        """
        roots = np.sqrt(self.pixels / max(int(self.pixels.sum()), 1))
        weights = np.divide(1, roots * roots.sum(), where=roots > 0, out=np.ones_like(roots))
        return [float(f"{weight:.3g}") for weight in weights]


def check_segmentation_data(
    data: DataSource | str | Path,
    split: str | None = None,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> list[SplitReport]:
    """Read every sample of a data set, and report on each split.

    All problems are found, not only the first: a missing half of a pair, an unreadable file, a label map of another
    size than its image, values out of range, an empty split, no two classes to tell apart. Samples are read as
    training and evaluation read them: what the check passes, they take.

    Args:
        data: the data set, or only its folder or name on the Hub.
        split: only this one.
        workers: threads that read; by default one per CPU.
        on_progress: called after each sample with the number of samples done, and of all.

    Raises:
        ValueError: for the data set as a whole (unknown layout, split, classes), as `load_segmentation_data` does.
    """
    source = DataSource.of(data)
    folder = source_folder(source.path)
    files = None if folder is None else read_layout(folder, source.label_set())
    reports, datasets = [], []
    if files is not None:
        source.refuse("a folder of images", *NOT_OF_FOLDERS)
        for name, part in select_files(source.name, files, split).items():
            datasets.append(dataset_of(part, name))
            reports.append(SplitReport(name, part.labels, len(part.pairs), list(part.problems), list(part.notes)))
        if not reports:
            raise ValueError(f"{source.name}: no split with images")
    else:
        loaded = load_data(source, split)
        for name, dataset in loaded.items() if isinstance(loaded, dict) else [(str(loaded.split or "data"), loaded)]:
            datasets.append(dataset)
            reports.append(SplitReport(name, label_set_of(dataset), len(dataset)))

    total, done = sum(map(len, datasets)), 0
    for report, dataset in zip(reports, datasets, strict=True):
        for result in _read_all(dataset, report.name, workers or os.cpu_count() or 1):
            if isinstance(result, np.ndarray):
                report.add(result)
            else:
                report.problems.extend(result)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        report.notes.extend(_missing_classes(report, dataset.features["label"]))
    if problem := _nothing_to_learn(source.name, reports):
        reports[0].problems.append(problem)
    return reports


def _read_all(dataset: "Dataset", split: str, workers: int) -> Iterator[np.ndarray | list[Problem]]:
    """Yield for each sample, in order, the pixels of each id of its label map, or its problems."""
    reader = PairReader(dataset, split)
    num_ids = max(len(reader.label_feature.names) - 1, reader.label_feature.ignore_index) + 1

    def read(index: int) -> np.ndarray | list[Problem]:
        result = reader.try_read(index)
        if isinstance(result, list):
            return result
        _, label = result
        return (
            np.asarray(label.histogram())
            if label.mode == "L"
            else np.bincount(np.asarray(label).ravel(), minlength=num_ids)
        )

    executor = ThreadPoolExecutor(workers)
    try:
        yield from executor.map(read, range(len(dataset)))
    finally:
        executor.shutdown(cancel_futures=True)


def first_look(dataset: "Dataset", samples: int = 32) -> list[str]:
    """Return what to look at before a training: photos without light, label maps of one class or none in all.

    Args:
        dataset: a split, as `load_segmentation_data` returns it.
        samples: how many are read, from all over the data set. Those that cannot be are left out.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, samples).round().astype(int))
    reader = PairReader(dataset)
    report = SplitReport(str(dataset.split or "data"), label_set_of(dataset), len(indices))
    brightest = 0
    for index in indices.tolist():
        result = reader.try_read(index)
        if not isinstance(result, list):
            report.add(np.bincount(np.asarray(result[1]).ravel(), minlength=report.labels.ignore_index + 1))
            brightest = max(brightest, int(np.asarray(result[0]).max()))
    notes = []
    if report.num_counted and brightest < DARK:
        notes.append(
            f"{report.name}: in the {report.num_counted} photos looked at no value is above {brightest} of 255, which "
            "is nearly black: save them as 8 bits, or scaled to 0..65535 (of 16 bits the upper 8 are seen)"
        )
    problem = _nothing_to_learn(report.name, [report])
    missing = _missing_classes(report, dataset.features["label"])
    if problem is not None and report.ignored:
        notes.append(
            f"{report.name}: in the {report.num_counted} label maps looked at {missing[0]}; `offseg data check` reads "
            "all"
        )
    return notes


def _missing_classes(report: SplitReport, feature: "LabelImage") -> list[str]:
    """Note the classes that a split does not have, and what is no class there, perhaps in their place."""
    missing = [name for name, count in zip(report.labels.names, report.images.tolist(), strict=True) if not count]
    if not missing or not report.num_counted:
        return []
    if len(missing) == 1:
        text = f"`{missing[0]}` occurs in no image"
    else:
        shown = ", ".join(missing[:SHOWN_CLASSES]) + ", ..." * (len(missing) > SHOWN_CLASSES)
        text = f"{len(missing)} of {len(report.labels)} classes occur in no image ({shown})"
    if report.ignored and feature.void_ids and report.labels.name not in LABEL_SETS:
        values = " or ".join(map(str, feature.void_ids))
        text += f"; {report.ignored:,} pixels have {values}, which is void unless {FILE_NAME} gives it to a class"
    return [text]


def _nothing_to_learn(source: str, reports: list[SplitReport]) -> Problem | None:
    """Find a problem if all that was read, being something, has one class or none, of several."""
    names = reports[0].labels.names
    if any(report.labels.names != names for report in reports):
        return None
    pixels = np.sum([report.pixels for report in reports], axis=0).tolist()
    found = [name for name, count in zip(names, pixels, strict=True) if count]
    if len(names) == 1 or len(found) > 1 or not any(report.num_counted for report in reports):
        return None
    only = f"only `{found[0]}` occurs" if found else "no class occurs"
    return Problem(source, f"{only} in all of its label maps, nothing to tell apart")
