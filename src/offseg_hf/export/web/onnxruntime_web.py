"""ONNX Runtime Web for a page: its files beside the page, so that it needs no other server, or their address."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any
from urllib.request import urlopen

from huggingface_hub import cached_assets_path
from huggingface_hub.constants import HF_HUB_OFFLINE

from offseg_hf.utils.files import whole_file


VERSION = "1.30.0"
ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
BESIDE = "./"
TIMEOUT = 30  # seconds


@dataclass(frozen=True)
class RuntimeFile:
    """A file of the npm package, in `dist/`."""

    name: str
    bytes: int
    sha256: str


# Backend -> the module, and the WebAssembly that it runs.
RUNTIME_FILES = {
    "webgpu": (
        RuntimeFile(
            "ort.webgpu.bundle.min.mjs", 117732, "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2"
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.asyncify.wasm",
            26781914,
            "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
        ),
    ),
    "wasm": (
        RuntimeFile(
            "ort.wasm.bundle.min.mjs", 73054, "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
        ),
        RuntimeFile(
            "ort-wasm-simd-threaded.wasm", 14239897, "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
        ),
    ),
}


def place_runtime(folder: Path) -> str:
    """Copy the files into the folder of a page; they are fetched once, into the assets of huggingface_hub's cache.

    Returns:
        Where the page finds them: beside it, or, if they are not there and cannot be fetched, at `ADDRESS`.
    """
    kept = runtime_folder()
    files = [file for both in RUNTIME_FILES.values() for file in both]
    try:
        for file in files:
            if not _is_whole(kept / file.name, file):
                _fetch(file, kept / file.name)
    except OSError:  # no network, or one that does not let us there
        return ADDRESS
    for file in files:
        copyfile(kept / file.name, folder / file.name)
    return BESIDE


def runtime_folder() -> Path:
    """Return the folder that the files are kept in; where there is no network, they may be put there."""
    return cached_assets_path("offseg_hf", namespace="onnxruntime-web", subfolder=VERSION)


def runtime_settings(base: str) -> dict[str, Any]:
    """Return what the page knows of the files at `base`."""
    backends = {
        backend: {"module": module.name, "binary": vars(binary)} for backend, (module, binary) in RUNTIME_FILES.items()
    }
    return {"base": base, **backends}


def _fetch(file: RuntimeFile, path: Path) -> None:
    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    with urlopen(ADDRESS + file.name, timeout=TIMEOUT) as response, whole_file(path) as whole:
        whole.write_bytes(response.read())
        if not _is_whole(whole, file):
            raise OSError(f"{ADDRESS}{file.name} has other contents than version {VERSION} is known to have")


def _is_whole(path: Path, file: RuntimeFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
