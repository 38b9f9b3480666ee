"""What a user gives as the source of data: a folder or the name of a data set on the Hub, opened, or why it cannot be.

`datasets` answers a mistyped path by what it did last, which is to ask the Hub for it. Here what looks like a path is
one, and is never asked for; of a name that may be either, the Hub's answer is told together with the folders nearby.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from offseg_hf.data.classes_json import FILE_NAME, read_classes
from offseg_hf.data.hub_splits import known_configuration, load_from_hub
from offseg_hf.data.labels import LabelSet
from offseg_hf.data.layouts import LAYOUTS, is_layout


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

SHOWN_NAMES = 8


def source_folder(source: object) -> Path | None:
    """The folder that a source is; None if it is something else, such as a name on the Hub.

    `~` is expanded: shells do not do it in `data.source=~/data`. Raises ValueError for a path where no folder is.
    """
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    if path.is_dir() and str(source):
        return path
    if isinstance(source, Path) or path.exists() or not _may_be_on_hub(source):
        raise ValueError(_no_folder(str(source)))
    return None


def open_folder(folder: Path, config_name: str | None, streaming: bool) -> Dataset | DatasetDict | IterableDatasetDict:
    """A folder written by `save_to_disk`, or of parquet files; ValueError if it is neither, or a file is broken."""
    from datasets import load_dataset, load_from_disk

    from offseg_hf.data import label_image  # noqa: F401 - its type of columns may be in the files

    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return load_from_disk(str(folder))
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ValueError(_no_layout(folder))
    for path in files:
        _require_parquet(path)
    with known_configuration(str(folder), config_name):
        return load_dataset(str(folder), config_name, streaming=streaming)


def open_on_hub(
    name: str, split: str | None, config_name: str | None, revision: str | None, streaming: bool
) -> DatasetDict | IterableDatasetDict:
    """A data set on the Hub, with one split if it is named and would have to be downloaded.

    Raises ValueError if it cannot be had; its cause is the error of the client.
    """
    from datasets.exceptions import DatasetNotFoundError, FileNotFoundDatasetsError
    from huggingface_hub.errors import LocalEntryNotFoundError

    from offseg_hf.data import label_image  # noqa: F401 - as in folders

    try:
        with known_configuration(name, config_name):
            return load_from_hub(name, split, config_name, revision, streaming)
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
    """The classes.json of a folder or of a data set's repository on the Hub; None if there is none.

    Raises ValueError if nobody knows, its cause the error of the client.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if isinstance(source, Path):
        path = source / FILE_NAME
        return read_classes(path) if path.is_file() else None
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
    path, wanted = Path(source).expanduser(), "expected a folder, or the name of a data set on the Hub (user/name)"
    if not source:
        return f"{wanted}, got nothing"
    if path.exists():
        return f"{source}: {wanted}, got a file; give the folder it is in, or unpack it first if it is an archive"
    if near := _near(path):
        return f"{source}: no such folder (did you mean {near}?)"
    above = next((folder for folder in path.parents if folder.is_dir()), Path())
    return f"{source}: no such folder, in {above}/ there is {_listing(above)}; {wanted}"


def _near(path: Path) -> Path | None:
    """A folder of nearly this path: the first part of it that does not exist, replaced by the name most like it."""
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
    """What was looked for in a folder and what is there; and if the right one is next to it, which."""
    found = f"found {_listing(folder)}"
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
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
