"""Files and folders that appear whole or not at all, and what is in one.

`whole_file` is for one file; `new_folder` for a folder that a user names, where nothing of theirs may be lost;
`replacing` for one that is written again and again, and may be killed at any moment.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# The folder of an exported model for transformers.js, the only one within a model's.
TRANSFORMERS_JS = "transformers_js"

# What a model does follows from these.
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.onnx", "*.xml", "*.bin", "*.pt2")


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `path`, which becomes `path` when the block ends without error.

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
            f"{path} exists and is kept: only a folder with a model's config.json and weights and without sub-folders "
            "is overwritten; name another output"
        )


def _is_model_folder(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    is_flat = all(entry.is_file() or entry.name == TRANSFORMERS_JS for entry in folder.iterdir())
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", "model.onnx", "model.xml"))
    return is_flat and isinstance(config, dict) and "model_type" in config and has_weights


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the model in a folder by its name; nothing if there is no such folder."""
    digests = {}
    for path in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` if the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `folder` when the block ends without an exception."""
    finish_replacing(folder)
    partial, new, _ = _names(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _flush(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(new)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Do what is left of a replacement, after a kill too: what was not complete goes, what was takes its place."""
    partial, new, old = _names(folder)
    if new.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        _flush(folder.parent)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _names(folder: Path) -> tuple[Path, Path, Path]:
    """Return a replacement that is being written, one that is complete, and what was there before."""
    partial, new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "new", "old"))
    return partial, new, old


def _flush(path: Path) -> None:
    """Wait until what was written is on the disk, where it survives a failure of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
