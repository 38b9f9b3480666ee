"""Segmentation data as `datasets.Dataset` with the columns `image` and `label`, whatever it is stored as.

`label` decodes to class ids 0..K-1, 255 where there is none (`label_image`): they are reduced already, an image
processor must not reduce them again (`do_reduce_labels=False`). `image` decodes to the file as it is, turned upright
by its EXIF orientation; `models.image_operations.read_image` reads every mode that occurs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from offseg_hf.data.classes_json import FILE_NAME
from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.layouts import Problem, SplitFiles, find_split, read_layout
from offseg_hf.data.source import DataSource, classes_beside, open_folder, open_on_hub, source_folder


if TYPE_CHECKING:
    from typing import TypeAlias

    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    Data: TypeAlias = Dataset | IterableDataset
    DataDict: TypeAlias = DatasetDict | IterableDatasetDict

SHOWN_PROBLEMS = 5
NOT_OF_FOLDERS = ("config_name", "revision", "image_column", "label_column")


def load_segmentation_data(
    source: str | Path | Dataset | DatasetDict,
    split: str | None = None,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: LabelSet | str | Path | None = None,
    streaming: bool = False,
) -> Data | DataDict:
    """Load a data set, or one split of it; nothing is decoded, or downloaded when streaming, before it is read.

    Args:
        source: a folder, the name of a data set on the Hub, or a data set that is loaded already: see `DataSource`,
            which has the next five options.
        config_name: of a data set that comes in several configurations.
        revision: branch, tag or commit of a data set on the Hub.
        image_column: of the images, where it is not `image`.
        label_column: of the label maps, where it is not `label`.
        labels: the classes, where the data does not come with them.
        split: train, validation (or val) or test. Of a data set on the Hub the others are not downloaded.
        streaming: read from the Hub without downloading it first.

    Raises:
        ValueError: with the names of the files if a half of a pair is missing, a split is empty or unknown, or the
            classes are not known.
    """
    data = DataSource(source, config_name, revision, image_column, label_column, labels)
    return load_data(data, split, streaming)


def load_data(source: DataSource, split: str | None = None, streaming: bool = False) -> Data | DataDict:
    """Load a data set, or one split of it, as `load_segmentation_data` does."""
    labels, folder = source.label_set(), source_folder(source.path)
    files = None if folder is None else read_layout(folder, labels)
    if files is not None:
        source.refuse("a folder of images", *NOT_OF_FOLDERS)
        data = _load_files(source.name, files, split)
    else:
        data = _open(source, folder, split, streaming)
        if isinstance(source.path, str | Path):
            labels = labels or classes_beside(folder or source.name, source.revision)
        if split is not None and isinstance(data, dict):
            data = data[find_split(source.name, data, split)]
        data = _map_splits(data, partial(_with_columns, source, labels))
    for part_name, part in _splits(data):
        if hasattr(part, "__len__") and len(part) == 0:  # of streaming data nobody knows yet
            raise ValueError(f"{source.name}: {part_name or 'the data set'} is empty")
    return _map_splits(data, _to_streaming) if streaming else data


def label_set_of(data: Data | DataDict) -> LabelSet:
    """Return names, palette and ignore index of data that `load_segmentation_data` returned.

    It may have been mapped or shuffled since. Of a streaming data set ask before `map`, which forgets the types of
    columns.
    """
    from offseg_hf.data.label_image import LabelImage

    for _, part in _splits(data):
        feature = (part.features or {}).get("label")
        if isinstance(feature, LabelImage):
            return feature.label_set()
    raise ValueError("the data has no column `label` with class names; load it by load_segmentation_data")


def sample_name(data: Dataset, index: int) -> str:
    """Return the file of a sample as the data set names it, without reading it; its index if it has no name."""
    from datasets import Image

    cell = data.select_columns("image").cast_column("image", Image(decode=False))[index]["image"]
    return (cell or {}).get("path") or f"sample {index}"


def sample_names(data: Dataset) -> list[str]:
    """Return what `sample_name` does of all samples, without reading them either."""
    from datasets import Image as ImageFeature

    cells = data.select_columns("image").cast_column("image", ImageFeature(decode=False)).flatten()
    paths = cells.select_columns("image.path")[:]["image.path"]  # the photos in it are not copied
    return [path or f"sample {index}" for index, path in enumerate(paths)]


def select_files(source: str, files: dict[str, SplitFiles], split: str | None) -> dict[str, SplitFiles]:
    """Return the splits asked for: all, or the one named."""
    if split is None:
        return files
    name = find_split(source, files, split)
    return {name: files[name]}


# -- folders of images -----------------------------------------------------------------------------------------------


def _load_files(source: str, files: dict[str, SplitFiles], split: str | None) -> Dataset | DatasetDict:
    from datasets import DatasetDict

    files = select_files(source, files, split)
    if not files:
        raise ValueError(f"{source}: no split with images")
    problems = [problem for part in files.values() for problem in part.problems]
    if problems:
        raise ValueError(problem_text(problems))
    parts = {name: dataset_of(part, name) for name, part in files.items()}
    return DatasetDict(parts) if split is None else next(iter(parts.values()))


def dataset_of(files: SplitFiles, split: str) -> Dataset:
    """Return the pairs of a split, as paths that are opened when they are read."""
    from datasets import Dataset, Features, Image

    from offseg_hf.data.label_image import LabelImage

    images, masks = ([os.path.abspath(pair[half]) for pair in files.pairs] for half in (0, 1))  # wherever one goes
    features = Features(image=Image(), label=LabelImage.of(files.labels, raw=True))
    dataset = Dataset.from_dict({"image": images, "label": masks}, features=features, split=split)
    return dataset.cast_column("label", LabelImage.of(files.labels))


def problem_text(problems: list[Problem]) -> str:
    """Return the first problems, and how many more there are."""
    shown = [str(problem) for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"and {len(problems) - SHOWN_PROBLEMS} more (`offseg data check` lists all)")
    return "\n".join(shown)


def _to_streaming(data: Data) -> IterableDataset:
    from datasets import Dataset

    return data.to_iterable_dataset(num_shards=min(len(data), 64)) if isinstance(data, Dataset) else data


# -- columns of data sets --------------------------------------------------------------------------------------------


def _open(source: DataSource, folder: Path | None, split: str | None, streaming: bool) -> Data | DataDict:
    """Open what is not a folder of images, with its own columns; of what is on the Hub perhaps one split only."""
    if not isinstance(source.path, str | Path):
        source.refuse("what is loaded already", "config_name", "revision")
        return source.path
    if folder is None:
        return open_on_hub(source, split, streaming)
    source.refuse("a folder", "revision")
    return open_folder(folder, source.config_name, streaming)


def _with_columns(source: DataSource, labels: LabelSet | None, data: Data) -> Data:
    from datasets import Dataset, Image, IterableDataset

    from offseg_hf.data.label_image import LabelImage

    if data.features is None:  # of streaming data that does not say so itself, by its first samples
        data = data.cast(Dataset.from_list(list(data.take(5))).features)
    place, features = source.name, data.features
    names = {"image": source.image_column or "image", "label": source.label_column or "label"}
    for role, name in names.items():
        if name not in features:
            columns = ", ".join(features)
            raise ValueError(
                f"{source.name}: no column {name!r}, it has {columns}; pass the right one as {role}_column"
            )
        if not isinstance(features[name], Image):
            raise ValueError(f"{place}: column {name!r} must hold images, it is {type(features[name]).__name__}")
    data = data.select_columns(list(names.values()))
    for role, name in names.items():
        data = data if role == name else data.rename_column(name, role)
        if not features[name].decode:
            data = data.cast_column(role, replace(features[name], decode=True))
    if isinstance(features[names["label"]], LabelImage):
        if labels is not None and tuple(features[names["label"]].names) != labels.names:
            raise ValueError(f"{place}: it has class names already, others than {labels.title}")
        return data
    if labels is None:
        known = ", ".join(LABEL_SETS)
        raise ValueError(
            f"{source.name}: its classes are not known; pass labels: {known} or the path of a {FILE_NAME}"
        )
    # Cells are marked as files of the data set's encoding, and what `map` writes into the column later is not. `map`
    # of a streaming data set does not write into it: there the type itself may say so.
    data = data.cast_column("label", LabelImage.of(labels, raw=True))
    return data if isinstance(data, IterableDataset) else data.cast_column("label", LabelImage.of(labels))


def _map_splits(data: Data | DataDict, change: Callable[[Data], Data]) -> Data | DataDict:
    """Return what `change` makes of each split, whose types may become others."""
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if not isinstance(data, dict):
        return change(data)
    parts = {name: change(part) for name, part in data.items()}
    are_loaded = all(isinstance(part, Dataset) for part in parts.values())
    return DatasetDict(parts) if are_loaded else IterableDatasetDict(parts)


def _splits(data: Data | DataDict) -> Iterator[tuple[str, Data]]:
    yield from data.items() if isinstance(data, dict) else [(str(getattr(data, "split", "") or ""), data)]
