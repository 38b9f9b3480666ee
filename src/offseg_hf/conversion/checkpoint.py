"""Read the weights of an official checkpoint without running anything that it names.

Three formats are recognized by content: PyTorch's zip, PyTorch's older stream
(`torch.save(..., _use_new_zipfile_serialization=False)`) and safetensors. The pickles in the first two are read as
data (see `inert_pickle`), so a training checkpoint of mmengine needs no mmengine, and a hostile one changes nothing.

An exponential moving average needs no option: mmengine's `EMAHook.before_save_checkpoint` swaps the averaged weights
*into* `state_dict` and keeps the raw ones in `ema_state_dict`, and its evaluation loads `state_dict`. So do we, with
every file that has one: an average beside it (`state_dict_ema`, `model_ema`) is left aside, and said to be. Where an
average is all that there is, it is taken.
"""

import io
import math
import mmap
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from offseg_hf.conversion.inert_pickle import Builder, Global, InertUnpickler, Opaque


WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
AVERAGE = re.compile("ema|averag|swa|teacher", re.IGNORECASE)
MAX_DEPTH = 4  # of wrappers in each other
# What wrappers of torch put into the names of what they wrap, wherever that is; DataParallel only before all of them.
WRAPPED = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DATA_PARALLEL_PREFIX = "module."
AVERAGE_COUNTERS = ("n_averaged", "steps")  # beside the weights of torch's AveragedModel and of mmengine's
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_VERSION = 1001
EXPECTED = "expected a PyTorch checkpoint (.pth) or a safetensors file"
DOWNLOAD_AGAIN = "download it again"
# What the readers raise on damaged bytes (a broken pickle is a ValueError).
DAMAGE = (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, struct.error, SafetensorError)

STORAGE_DTYPES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }.items()
}


class CheckpointError(ValueError):
    """A file is not a checkpoint we can read, or not the one that was asked for."""


@dataclass(frozen=True)
class Storage:
    """A flat buffer of `numel` elements that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as the pickle describes it: a strided view of a storage, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of a model: its weights, and the names of its classes if mmengine has written them beside it.

    left_aside: keys of other weights in the file, as averages beside the model's own.
    """

    weights: dict[str, torch.Tensor]
    class_names: tuple[str, ...] | None = None
    left_aside: tuple[str, ...] = ()


StorageLoader = Callable[[Storage], torch.Tensor]


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint, on the CPU, in the dtypes that are stored.

    Names lose what torch's wrappers put into them: `module.` before all, `_orig_mod.` and its like anywhere. Tensors
    that share a storage in the file share memory here.

    Raises:
        CheckpointError: for anything that is not a whole checkpoint.
        OSError: for a file that cannot be opened.
    """
    return open_checkpoint(path).weights


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return what `read_checkpoint` reads, and what else the file says of the model."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: {EXPECTED}, got a directory; name the file in it")
    with path.open("rb") as file:
        try:
            checkpoint = _read(file, path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            message = f"{EXPECTED}, got a truncated or damaged one ({reason}); {DOWNLOAD_AGAIN}"
            raise CheckpointError(f"{path}: {message}") from error
    return replace(checkpoint, weights=_unwrapped(checkpoint.weights))


def _unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same under the names of the module inside of torch's wrappers."""
    while weights:
        bare = {WRAPPED.sub("", name): tensor for name, tensor in weights.items()}
        inner = {name: tensor for name, tensor in bare.items() if name not in AVERAGE_COUNTERS}
        if inner and all(name.startswith(DATA_PARALLEL_PREFIX) for name in inner):
            bare = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in inner.items()}
        if len(bare) == len(weights) and bare.keys() == weights.keys():
            break
        weights = bare
    return weights


def _read(file: BinaryIO, path: Path) -> Checkpoint:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise CheckpointError(f"{EXPECTED}, got an empty file; {DOWNLOAD_AGAIN}")
    if head[8:9] == b"{":  # first: the length before it may begin like either of the others
        return Checkpoint(load_safetensors(path))
    if head.startswith(b"PK"):
        return _read_zip(file)
    if head.startswith(b"\x80"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_stream(content)
    raise CheckpointError(f"{EXPECTED}, got {_describe(head, path.stat().st_size)}")


def _describe(head: bytes, size: int) -> str:
    """Return what a file that is no checkpoint probably is, and what to do about it."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page of {size} bytes; use the link of the file itself, not of the page that shows it"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file it points to with `git lfs pull`"
    if b"ustar" in head:
        return "a tar archive; unpack it, or save a PyTorch < 0.2 checkpoint again with a newer PyTorch"
    kind = "a text file" if head.isascii() and b"\0" not in head else "bytes of another format"
    return f"{kind} of {size} bytes starting with {head[:16]!r}; {DOWNLOAD_AGAIN}"


def _read_zip(file: BinaryIO) -> Checkpoint:
    """PyTorch's format since 1.6: `<root>/data.pkl` and one uncompressed member `<root>/data/<key>` per storage."""
    with zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise CheckpointError(f"{EXPECTED}, got a zip archive without one data.pkl; unpack it")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise CheckpointError(f"{EXPECTED}, got a TorchScript archive; use the checkpoint it was made from")
        if f"{root}byteorder" in members and _read_member(archive, f"{root}byteorder") != b"little":
            raise CheckpointError("expected little-endian weights, got big-endian ones; save them on x86 or ARM")
        contents = InertUnpickler(BUILDERS, _storage).load(io.BytesIO(_read_member(archive, f"{root}data.pkl")))

        def load_storage(storage: Storage) -> torch.Tensor:
            return _flat_tensor(_read_member(archive, f"{root}data/{storage.key}"), storage)

        return _checkpoint(contents, load_storage)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(f"{EXPECTED}, got a damaged one without {name!r}; {DOWNLOAD_AGAIN}") from None
    if member.compress_type != zipfile.ZIP_STORED:  # PyTorch never compresses; a zip bomb must
        raise CheckpointError(f"{EXPECTED}, got a compressed zip archive; unpack it and name the checkpoint in it")
    try:
        return archive.read(member)
    except OSError as error:  # a damaged directory may send the reader anywhere
        raise zipfile.BadZipFile(f"{name!r}: {error}") from error


def _read_stream(content: mmap.mmap) -> Checkpoint:
    """PyTorch's format before 1.6: five pickles, then for every storage its length (int64) and its elements."""
    storages: dict[str, Storage] = {}

    def persistent_load(pid: object) -> object:
        storage = _storage(pid)
        if isinstance(storage, Storage):
            storages[storage.key] = storage
        return storage

    if InertUnpickler({}, persistent_load).load(content) != STREAM_MAGIC:
        raise CheckpointError(f"{EXPECTED}, got a pickle of something else; save model.state_dict() with torch.save")
    version, system = (InertUnpickler({}, persistent_load).load(content) for _ in range(2))
    if version != STREAM_VERSION or not isinstance(system, dict) or not system.get("little_endian", True):
        raise CheckpointError(f"expected a little-endian stream, version {STREAM_VERSION}, got another; save it again")
    contents = InertUnpickler(BUILDERS, persistent_load).load(content)
    keys = InertUnpickler({}, persistent_load).load(content)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise CheckpointError(f"{EXPECTED}, got one that lists storages which it does not use; {DOWNLOAD_AGAIN}")

    position, starts = content.tell(), {}
    for key in keys:
        starts[key] = position + 8
        position += 8 + storages[key].numel * storages[key].dtype.itemsize
    if position > len(content):
        missing = position - len(content)
        raise CheckpointError(f"{EXPECTED}, got one whose last {missing} bytes are missing; {DOWNLOAD_AGAIN}")

    def load_storage(storage: Storage) -> torch.Tensor:
        if storage.key not in starts:
            raise CheckpointError(f"{EXPECTED}, got a damaged one without storage {storage.key!r}; {DOWNLOAD_AGAIN}")
        start = starts[storage.key]
        numel = int.from_bytes(content[start - 8 : start], "little", signed=True)
        if numel != storages[storage.key].numel:
            raise CheckpointError(f"{EXPECTED}, got a damaged one (storage {storage.key!r} has {numel} elements)")
        return _flat_tensor(content[start : start + storage.numel * storage.dtype.itemsize], storage)

    return _checkpoint(contents, load_storage)


def _flat_tensor(data: bytes, storage: Storage) -> torch.Tensor:
    expected = storage.numel * storage.dtype.itemsize
    if len(data) != expected:
        message = f"storage {storage.key!r} has {len(data)} bytes instead of {expected}"
        raise CheckpointError(f"{EXPECTED}, got a damaged one ({message}); {DOWNLOAD_AGAIN}")
    return torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


def _storage(pid: object) -> Storage | Global | Opaque:
    """Return what a persistent id names.

    That is ("storage", type, key, location, numel); or, in a stream, ("module", class, ...).
    """
    match pid:
        case ("module", Global() as module_class, *_):
            return module_class
        case ("storage", Global(name), str(key), _, int(numel), *rest) if name in STORAGE_DTYPES and numel >= 0:
            if not any(rest):
                return Storage(key, STORAGE_DTYPES[name], numel)
    return Opaque("persistent id")


def _view(storage: object, offset: Any, size: object, stride: object, *_: object) -> TensorView | Opaque:
    """`torch._utils._rebuild_tensor_v2` as a record; gradients, hooks and metadata are of no use to a conversion."""
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        return Opaque("torch.Tensor")
    return TensorView(storage, offset, size, stride)


def _ordered_dict(*pairs: object) -> dict | Opaque:
    """Return an empty one, which the pickle then fills; only Python 2 passed the pairs as an argument."""
    return Opaque("collections.OrderedDict") if pairs else {}


BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
}


def _checkpoint(contents: object, load_storage: StorageLoader) -> Checkpoint:
    views, left_aside = _state_dict(contents)
    return Checkpoint(_tensors(views, load_storage), _class_names(contents), left_aside)


def _state_dict(contents: object) -> tuple[dict[str, TensorView], tuple[str, ...]]:
    """Return the named tensors in a checkpoint's contents, and the keys of others beside them.

    They are taken out of their wrappers (`state_dict`, `model`, ...).
    """
    left_aside: list[str] = []
    for _ in range(MAX_DEPTH):
        parts = _items(contents)
        wrapped = {key: value for key, value in parts if key in WRAPPERS and isinstance(value, dict)}
        has_tensors = any(isinstance(value, TensorView) for _, value in parts)
        inner = {key: value for key, value in parts if _has_weights(value, MAX_DEPTH)} or wrapped
        if not inner or (has_tensors and not wrapped):
            break
        key = _chosen(list(inner))
        contents = inner.pop(key)
        left_aside += inner
    if not isinstance(contents, dict):
        raise CheckpointError(f"expected a state dict, got {_kind(contents)}; save model.state_dict() instead")
    others = [f"{key!r} ({_kind(value)})" for key, value in contents.items() if not _is_named_tensor(key, value)]
    if others or not contents:
        listed = ", ".join(others[:10]) or "nothing"
        message = f"got {len(others)} other entries: {listed}" if others else "got an empty one"
        raise CheckpointError(f"expected a state dict of named tensors, {message}; save model.state_dict() instead")
    return contents, tuple(left_aside)


def _items(contents: object) -> list[tuple[str, object]]:
    if isinstance(contents, dict) and all(isinstance(key, str) for key in contents):
        return list(contents.items())
    return []


def _has_weights(value: object, depth: int) -> bool:
    """Return whether there are named tensors in it; the state of an optimizer has numbers for names."""
    items = _items(value)
    has_tensors = any(isinstance(part, TensorView) for _, part in items)
    return has_tensors or (depth > 0 and any(_has_weights(part, depth - 1) for _, part in items))


def _chosen(keys: list[str]) -> str:
    """Return the key of the model's own state dict, of several: it has one of the known names, or is no average."""
    known = [key for key in WRAPPERS if key in keys]
    own = [key for key in keys if not AVERAGE.search(key)]
    if not known and len(own or keys) > 1:
        raise CheckpointError(
            f"expected the weights of one model, got those of several: {', '.join(keys)}; save the state dict of the "
            "one that you want"
        )
    return (known or own or keys)[0]


def _class_names(contents: object) -> tuple[str, ...] | None:
    """Return them as mmengine writes them (`meta.dataset_meta.classes`), and mmcv before it (`meta.CLASSES`)."""
    meta = contents.get("meta") if isinstance(contents, dict) else None
    for facts in (meta.get("dataset_meta"), meta) if isinstance(meta, dict) else ():
        if isinstance(facts, dict):
            for names in (facts.get("classes"), facts.get("CLASSES")):
                if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                    return tuple(names)
    return None


def _is_named_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, TensorView)


def _kind(value: object) -> str:
    return f"an object of {value.name!r}" if isinstance(value, Opaque | Global) else type(value).__name__


def _tensors(views: dict[str, TensorView], load_storage: StorageLoader) -> dict[str, torch.Tensor]:
    flat: dict[Storage, torch.Tensor] = {}
    tensors = {}
    for name, view in views.items():
        _check_bounds(name, view)
        if view.storage not in flat:
            flat[view.storage] = load_storage(view.storage)
        tensors[name] = flat[view.storage].as_strided(view.size, view.stride, view.offset)
    return tensors


def _check_bounds(name: str, view: TensorView) -> None:
    """Refuse a view that reaches outside its storage, or whose description is not made of sane integers."""
    numbers = (view.offset, *view.size, *view.stride)
    sane = len(view.size) == len(view.stride) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    if sane and math.prod(view.size) <= sys.maxsize:
        reach = sum((n - 1) * stride for n, stride in zip(view.size, view.stride, strict=True)) + 1
        end = view.offset + (reach if 0 not in view.size else 0)
        if end <= view.storage.numel:
            return
    message = f"{name!r} does not fit into its storage of {view.storage.numel} elements"
    raise CheckpointError(f"{EXPECTED}, got a damaged one ({message}); {DOWNLOAD_AGAIN}")
