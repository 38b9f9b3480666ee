"""`DataSource`: a data set by its folder or its name on the Hub, and how it is read; opened, or why it cannot be.

`datasets` answers a mistyped path by what it did last, which is to ask the Hub for it. Here what looks like a path is
one, and is never asked for; of a name that may be either, the Hub's answer is told together with the folders nearby.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Union

from offseg_hf.data.classes_json import FILE_NAME, label_set_beside, read_classes
from offseg_hf.data.hub_splits import known_configuration, load_from_hub
from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.layouts import LAYOUTS, SPLITS, is_layout, looks_like_split
from offseg_hf.utils.texts import expand, is_utf8, printable


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

SHOWN_NAMES = 8
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.parquet")  # as `push_to_hub` names files


@dataclass(frozen=True)
class DataSource:
    """A data set: where it is, and how it is read.

    Args:
        path: a folder in one of the layouts of `data.layouts`, a folder written by `save_to_disk` or of parquet files,
            the name of a data set on the Hub, or a data set that is loaded already.
        config_name: of a data set that comes in several configurations.
        revision: branch, tag or commit of a data set on the Hub; by default its newest state.
        image_column: of the images, where it is not `image`; not for folders of images.
        label_column: of the label maps, where it is not `label`; not for folders of images.
        labels: the classes and their values in the files: a label set, the name of a benchmark, or a classes.json.
            Needed where the data does not come with them; a classes.json beside it, also on the Hub, is found. The
            benchmarks' folders have their own.
    """

    path: str | Path | Dataset | DatasetDict
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    labels: LabelSet | str | Path | None = None

    @classmethod
    def of(cls, data: AnySource) -> DataSource:
        """Return a data source as it is, and anything else as the path of one."""
        return data if isinstance(data, DataSource) else cls(data)

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.path) if isinstance(self.path, str | Path) else "the data set"

    def label_set(self) -> LabelSet | None:
        """Return the label set that `labels` names; None if it names none."""
        return None if self.labels is None else resolve_labels(self.labels)

    def refuse(self, kind: str, *options: str) -> None:
        """Raise ValueError for the first of some options that is given, though a source of this kind has none."""
        for option in options:
            if (value := getattr(self, option)) is not None:
                raise ValueError(f"{self.name}: expected no {option}, which {kind} does not have, got {value!r}")


AnySource = Union[DataSource, str, Path, "Dataset", "DatasetDict"]


def resolve_labels(labels: LabelSet | str | Path) -> LabelSet:
    """Return a label set by the name of a benchmark or the path of a classes.json."""
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


def source_folder(source: object) -> Path | None:
    """Return the folder that a source is; None if it is something else, such as a name on the Hub.

    `~` is expanded. Raises ValueError for a path where no folder is, and for one whose name is no text.
    """
    if not isinstance(source, str | Path):
        return None
    path = expand(source)
    if path.is_dir() and str(source):
        if not is_utf8(str(path.absolute())):
            raise ValueError(printable(f"{path.absolute()}: its name is no UTF-8, which tables need: rename it"))
        return path
    if isinstance(source, Path) or path.exists() or not _may_be_on_hub(source):
        raise ValueError(printable(_no_folder(str(source))))
    return None


def open_folder(folder: Path, config_name: str | None, streaming: bool) -> Dataset | DatasetDict | IterableDatasetDict:
    """Open a folder written by `save_to_disk`, or of parquet files.

    Raises ValueError if it is neither, or a file is broken.
    """
    from datasets import load_dataset, load_from_disk

    from offseg_hf.data import label_image  # noqa: F401 - its type of columns may be in the files

    place = str(folder.absolute())  # what is opened later is there still after a chdir
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return load_from_disk(place)
    files = sorted(path for path in folder.rglob("*.parquet") if not _is_hidden(path.relative_to(folder)))
    if not files:
        raise ValueError(printable(_no_layout(folder)))
    for path in files:
        _require_parquet(path)
    if config_name is None and not (folder / "README.md").is_file():  # which may say what belongs where
        paths = {
            split: [glob.escape(str(path.absolute())) for path in parts]
            for split, parts in _parquet_splits(folder, files).items()
        }
        return load_dataset("parquet", data_files=paths, streaming=streaming)
    if glob.has_magic(place):
        raise ValueError(f"{folder}: expected a path without * ? [, which `datasets` takes for patterns: rename it")
    with known_configuration(str(folder), config_name):
        return load_dataset(place, config_name, streaming=streaming)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _parquet_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Sort files into splits by the words in their names, or else in those of their folders; all "train" without.

    As `datasets` does it, but in any case, and without taking what speaks of a split otherwise for "train".
    """
    splits: dict[str, list[Path]] = {}
    for path in files:
        if shard := SHARD.fullmatch(path.relative_to(folder).as_posix()):
            splits.setdefault(shard[1], []).append(path)
    if splits:
        return splits
    loose: list[Path] = []
    for path in files:
        inner = path.relative_to(folder)
        parts = (inner.stem, *reversed(inner.parts[:-1]))
        found = sorted(next((words for part in parts if (words := _splits_in(part))), ()))
        if len(found) > 1:
            raise ValueError(f"{path}: expected the name of one split in its name, got {' and '.join(found)}")
        if not found and any(map(looks_like_split, parts)):
            raise ValueError(f"{path}: looks like a split, expected train, val or test as a word of its name")
        (splits.setdefault(found[0], []) if found else loose).append(path)
    order = [*dict.fromkeys(SPLITS.values())]
    return {split: splits[split] for split in order if split in splits} or {"train": loose}


def _splits_in(name: str) -> set[str]:
    known = SPLITS | {"eval": "test", "evaluation": "test"}
    return {known[word] for word in re.split(r"[-._ 0-9]+", name.lower()) if word in known}


def open_on_hub(source: DataSource, split: str | None, streaming: bool) -> DatasetDict | IterableDatasetDict:
    """Open a data set on the Hub, with one split if it is named and would have to be downloaded.

    Raises ValueError if it cannot be had; its cause is the error of the client.
    """
    from datasets.exceptions import DatasetNotFoundError, FileNotFoundDatasetsError
    from huggingface_hub.errors import LocalEntryNotFoundError

    from offseg_hf.data import label_image  # noqa: F401 - as in folders

    name = source.name
    try:
        with known_configuration(name, source.config_name):
            return load_from_hub(name, split, source.config_name, source.revision, streaming)
    except (DatasetNotFoundError, ConnectionError, LocalEntryNotFoundError) as error:
        near = _near(Path(name))
        hint = f" (did you mean {near}?)" if near else ""
        is_folder = near or "/" not in name  # most likely, and then the Hub's answer is no reason
        raise ValueError(f"{name}: no such folder{hint}, and {error}") from None if is_folder else error
    except FileNotFoundDatasetsError as error:
        raise ValueError(
            f"{name}: expected a data set of parquet files or images on the Hub, got one without files that "
            f"`datasets` reads ({error}); download it, and give the folder"
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{name}: its data comes by a script, which `datasets` does not run any more; download the data where "
            "its authors publish it and give the folder, or name a copy of it in parquet files"
        ) from error


def classes_beside(source: str | Path, revision: str | None) -> LabelSet | None:
    """Read the classes.json of a folder or of a data set's repository on the Hub; None if there is none.

    Raises ValueError if nobody knows, its cause the error of the client.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if isinstance(source, Path):
        return label_set_beside(source)
    try:
        return read_classes(hf_hub_download(source, FILE_NAME, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:  # no connection
        cached = try_to_load_from_cache(source, FILE_NAME, repo_type="dataset", revision=revision)
        if cached is not None:  # no path either, or there were no error: known not to exist
            return None
        raise ValueError(f"{source}: its {FILE_NAME} cannot be downloaded: {error}") from error
    except EntryNotFoundError:
        return None


def _may_be_on_hub(source: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _no_folder(source: str) -> str:
    path, wanted = expand(source), "expected a folder, or the name of a data set on the Hub (user/name)"
    if not source:
        return f"{wanted}, got nothing"
    if path.exists():
        return f"{source}: {wanted}, got a file; give the folder it is in, or unpack it first if it is an archive"
    if near := _near(path):
        return f"{source}: no such folder (did you mean {near}?)"
    above = next((folder for folder in path.parents if folder.is_dir()), Path())
    return f"{source}: no such folder, in {above}/ there is {_listing(above)}; {wanted}"


def _near(path: Path) -> Path | None:
    """Find a folder of nearly this path: its first part that does not exist, replaced by the name most like it."""
    missing = next(part for part in (*reversed(path.parents), path) if not part.is_dir())
    if not missing.parent.is_dir():
        return None
    names = {entry.name.lower(): entry for entry in missing.parent.iterdir() if entry.is_dir()}
    alike = get_close_matches(missing.name.lower(), names, n=1)
    if not alike:
        return None
    whole = names[alike[0]] / path.relative_to(missing)
    return whole if whole.is_dir() else None


def _no_layout(folder: Path) -> str:
    """Say what was looked for in a folder and what is there; and if the right one is next to it, which."""
    found = f"found {_listing(folder)}"
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    if {"images", "masks"} <= names:
        return (
            f"{folder}: expected a {FILE_NAME} beside images/ and masks/, {found}; write one, such as "
            f'{{"classes": ["sky", "road"]}} (see offseg_hf.data.classes_json), or pass labels'
        )
    around = [folder.parent, *sorted(entry for entry in folder.iterdir() if entry.is_dir())]
    right = next((place for place in around if is_layout(place)), None)
    hint = f"did you mean {right}?" if right else "see offseg_hf.data.layouts"
    known = ", ".join(f"{needed} ({name})" for name, needed, _, _ in LAYOUTS)
    return f"{folder}: expected {known}, or parquet files; {found} ({hint})"


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:SHOWN_NAMES] + ["..."] * (len(names) > SHOWN_NAMES)) or "nothing"


def _require_parquet(path: Path) -> None:
    """Raise ValueError, with the name that `datasets` leaves out, if a file has no readable footer."""
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a parquet file, got one that cannot be read: {error}") from error
