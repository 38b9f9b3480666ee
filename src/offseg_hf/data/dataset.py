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
from typing import TYPE_CHECKING, TypedDict

from offseg_hf.data.classes_json import FILE_NAME, read_classes
from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.layouts import Problem, SplitFiles, find_split, read_layout
from offseg_hf.data.source import classes_beside, open_folder, open_on_hub, source_folder
from offseg_hf.utils.texts import expand, printable


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    Data = Dataset | IterableDataset
    DataDict = DatasetDict | IterableDatasetDict

SHOWN_PROBLEMS = 5


class ReadingOptions(TypedDict, total=False):
    """What functions that read data take beside its source and split, see `load_segmentation_data`."""

    config_name: str | None
    revision: str | None
    image_column: str | None
    label_column: str | None
    labels: LabelSet | str | Path | None


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
    """The data set, or one split of it; nothing is decoded, or downloaded when streaming, before it is read.

    source: a folder in one of the layouts of `data.layouts`, a folder written by `save_to_disk` or of parquet files,
        the id of a data set on the Hub, or a data set that is loaded already.
    split: train, validation (or val) or test. Of a data set on the Hub the others are not downloaded.
    config_name: of a data set that comes in several configurations.
    revision: branch, tag or commit of a data set on the Hub; by default its newest state.
    image_column, label_column: for data sets that name them otherwise; not for folders of images.
    labels: the classes and their values in the files: a label set, the name of a benchmark, or a classes.json. Needed
        where the data does not come with them; a classes.json beside it, also on the Hub, is found. The benchmarks'
        folders have their own.

    Raises ValueError with the names of the files if a half of a pair is missing, a split is empty or unknown, or the
    classes are not known.
    """
    labels = None if labels is None else resolve_labels(labels)
    folder = source_folder(source)
    files = None if folder is None else read_layout(folder, labels)
    if files is not None:
        refuse_options(
            source,
            "a folder of images",
            config_name=config_name,
            revision=revision,
            image_column=image_column,
            label_column=label_column,
        )
        data = _load_files(str(source), files, split)
    else:
        name = str(source) if isinstance(source, str | Path) else "the data set"
        data = _open(source, folder, split, config_name, revision, streaming)
        if isinstance(source, str | Path):
            labels = labels or classes_beside(folder or name, revision)
        if split is not None and isinstance(data, dict):
            data = data[find_split(name, data, split)]
        data = _map_splits(data, partial(_with_columns, name, image_column, label_column, labels))
    for part_name, part in _splits(data):
        if hasattr(part, "__len__") and len(part) == 0:  # of streaming data nobody knows yet
            raise ValueError(f"{source}: {part_name or 'the data set'} is empty")
    return _map_splits(data, _to_streaming) if streaming else data


def label_set_of(data: Data | DataDict) -> LabelSet:
    """Names, palette and ignore index of data that `load_segmentation_data` returned, also after map or shuffle.

    Of a streaming data set ask before `map`, which forgets the types of columns.
    """
    from offseg_hf.data.label_image import LabelImage

    for _, part in _splits(data):
        feature = (part.features or {}).get("label")
        if isinstance(feature, LabelImage):
            return feature.label_set()
    raise ValueError("the data has no column `label` with class names; load it by load_segmentation_data")


def sample_name(data: Dataset, index: int) -> str:
    """The file of a sample as the data set names it, without reading it; its index if it has no name."""
    from datasets import Image

    cell = data.select_columns("image").cast_column("image", Image(decode=False))[index]["image"]
    return (cell or {}).get("path") or f"sample {index}"


def resolve_labels(labels: LabelSet | str | Path) -> LabelSet:
    """A label set by the name of a benchmark or the path of a classes.json."""
    if isinstance(labels, LabelSet):
        return labels
    if str(labels) in LABEL_SETS:
        return LABEL_SETS[str(labels)]
    path = expand(labels) if isinstance(labels, str | Path) else None
    if path is not None and path.is_dir():
        path /= FILE_NAME
    if path is None or not path.is_file():
        known, got = ", ".join(LABEL_SETS), str(labels) if isinstance(labels, Path) else labels
        raise ValueError(printable(f"expected labels {known} or the path of a {FILE_NAME}, got {got!r}"))
    return read_classes(path)


def select_files(source: str, files: dict[str, SplitFiles], split: str | None) -> dict[str, SplitFiles]:
    """The splits asked for: all, or the one named."""
    if split is None:
        return files
    name = find_split(source, files, split)
    return {name: files[name]}


def refuse_options(source: str | Path, kind: str, **options: str | None) -> None:
    """Raise ValueError for the first option that is given, though a source of this kind has no such thing."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{source}: expected no {name}, which {kind} does not have, got {value!r}")


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
    """The pairs of a split, as paths that are opened when they are read."""
    from datasets import Dataset, Features, Image

    from offseg_hf.data.label_image import LabelImage

    images, masks = ([os.path.abspath(pair[half]) for pair in files.pairs] for half in (0, 1))  # wherever one goes
    features = Features(image=Image(), label=LabelImage.of(files.labels, raw=True))
    dataset = Dataset.from_dict({"image": images, "label": masks}, features=features, split=split)
    return dataset.cast_column("label", LabelImage.of(files.labels))


def problem_text(problems: list[Problem]) -> str:
    """The first problems, and how many more there are."""
    shown = [str(problem) for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"and {len(problems) - SHOWN_PROBLEMS} more (`offseg data check` lists all)")
    return "\n".join(shown)


def _to_streaming(data: Data) -> IterableDataset:
    from datasets import Dataset

    return data.to_iterable_dataset(num_shards=min(len(data), 64)) if isinstance(data, Dataset) else data


# -- columns of data sets --------------------------------------------------------------------------------------------


def _open(
    source: str | Path | Dataset | DatasetDict,
    folder: Path | None,
    split: str | None,
    config_name: str | None,
    revision: str | None,
    streaming: bool,
) -> Data | DataDict:
    """What is not a folder of images, with the columns that it has; of what is on the Hub perhaps one split only."""
    if not isinstance(source, str | Path):
        refuse_options("the data set", "what is loaded already", config_name=config_name, revision=revision)
        return source
    if folder is None:
        return open_on_hub(str(source), split, config_name, revision, streaming)
    refuse_options(source, "a folder", revision=revision)
    return open_folder(folder, config_name, streaming)


def _with_columns(
    source: str, image_column: str | None, label_column: str | None, labels: LabelSet | None, data: Data
) -> Data:
    from datasets import Dataset, Image, IterableDataset

    from offseg_hf.data.label_image import LabelImage

    if data.features is None:  # of streaming data that does not say so itself, by its first samples
        data = data.cast(Dataset.from_list(list(data.take(5))).features)
    features = data.features
    names = {"image": image_column or "image", "label": label_column or "label"}
    for role, name in names.items():
        if name not in features:
            columns = ", ".join(features)
            raise ValueError(f"{source}: no column {name!r}, it has {columns}; pass the right one as {role}_column")
        if not isinstance(features[name], Image):
            raise ValueError(f"{source}: column {name!r} must hold images, it is {type(features[name]).__name__}")
    data = data.select_columns(list(names.values()))
    for role, name in names.items():
        data = data if role == name else data.rename_column(name, role)
        if not features[name].decode:
            data = data.cast_column(role, replace(features[name], decode=True))
    if isinstance(features[names["label"]], LabelImage):
        if labels is not None and tuple(features[names["label"]].names) != labels.names:
            raise ValueError(f"{source}: it has class names already, others than {labels.title}")
        return data
    if labels is None:
        known = ", ".join(LABEL_SETS)
        raise ValueError(f"{source}: its classes are not known; pass labels: {known} or the path of a {FILE_NAME}")
    # Cells are marked as files of the data set's encoding, and what `map` writes into the column later is not. `map`
    # of a streaming data set does not write into it: there the type itself may say so.
    data = data.cast_column("label", LabelImage.of(labels, raw=True))
    return data if isinstance(data, IterableDataset) else data.cast_column("label", LabelImage.of(labels))


def _map_splits(data: Data | DataDict, change: Callable[[Data], Data]) -> Data | DataDict:
    """`change` on each split, whose types may become others."""
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if not isinstance(data, dict):
        return change(data)
    parts = {name: change(part) for name, part in data.items()}
    are_loaded = all(isinstance(part, Dataset) for part in parts.values())
    return DatasetDict(parts) if are_loaded else IterableDatasetDict(parts)


def _splits(data: Data | DataDict) -> Iterator[tuple[str, Data]]:
    yield from data.items() if isinstance(data, dict) else [(str(getattr(data, "split", "") or ""), data)]
