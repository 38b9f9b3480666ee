"""The memory that models take: measured in a process of its own, where nothing else grows."""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from offseg_hf.inference.segmenter import Segmenter


STATUS = Path("/proc/self/status")


def memory_of(models: Sequence[str], shape: Sequence[int]) -> list[float | None]:
    """Return the megabytes that each model takes, loaded and run, beyond the libraries; None where no Linux tells.

    Args:
        models: by name, as [`Segmenter`] takes them.
        shape: of what the networks are run on, (batch, channels, height, width).
    """
    if not STATUS.exists():
        return [None] * len(models)
    task = json.dumps([list(models), list(shape)])
    process = subprocess.run([sys.executable, "-m", __spec__.name, task], capture_output=True, text=True, check=False)
    if process.returncode:
        raise ValueError(f"the memory of {' and '.join(models)} could not be measured: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _measure(model: str, images: torch.Tensor) -> float:
    before = _resident_set("VmRSS")
    network = Segmenter(model, "cpu").model
    with suppress(AttributeError, ValueError):  # of models that cannot be fused, and of exported ones
        network = network.fuse()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    with torch.inference_mode():
        network(pixel_values=images)
    return round((_resident_set("VmHWM") - before) / 1e6, 1)


def _resident_set(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _give_back() -> None:
    """Give freed memory back to the system, that the next model asks for it anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _main() -> None:
    models, shape = json.loads(sys.argv[1])
    images, peaks = torch.rand(shape), []
    for model in models:
        _give_back()
        peaks.append(_measure(model, images))
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main()
