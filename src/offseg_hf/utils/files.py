"""Folders that appear whole or not at all, and what is in one."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")  # what a model does follows from these


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder on the file system of `path`, which becomes `path` when the block ends without an exception.

    An existing folder with something in it is kept (FileExistsError); with `overwrite` it is replaced at the end, if
    it is a model's. Raises OSError if nothing can be written there. A failure leaves nothing behind.
    """
    path = Path(path)
    target = path.resolve()
    _check_replaceable(path, target, overwrite)
    parent = next(ancestor for ancestor in target.parents if ancestor.exists())
    temporary, replaced = (parent / f".{target.name}.{uuid.uuid4().hex}.{suffix}" for suffix in ("new", "old"))
    try:
        temporary.mkdir()
    except OSError as error:
        raise type(error)(f"expected to write {path}, but {parent} takes no folder: {error.strerror}") from error
    try:
        yield temporary
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _check_replaceable(path, target, overwrite)  # it may have changed in the meantime
            target.rename(replaced)
        try:
            temporary.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(path: Path, target: Path, overwrite: bool) -> None:
    """Raise an OSError if `path`, which `target` resolves, exists and must be kept."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{path}: expected a folder to write into, got a file; name another output")
    if not os.listdir(target):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists and is kept; name another output or pass overwrite (--overwrite)")
    if not _is_model_folder(target):
        raise FileExistsError(
            f"{path} exists and is kept: only a folder with a model's config.json and model.safetensors and without "
            "sub-folders is overwritten; name another output"
        )


def _is_model_folder(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    is_flat = all(entry.is_file() for entry in folder.iterdir())
    return is_flat and isinstance(config, dict) and "model_type" in config and (folder / "model.safetensors").is_file()


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the model in a folder by its name; nothing if there is no such folder."""
    digests = {}
    for path in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
