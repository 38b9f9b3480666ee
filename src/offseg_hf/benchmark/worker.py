"""A process that loads one model in one runtime and runs it when it is told: its memory is that model's alone.

Orders come as JSON lines on stdin, and answers go as JSON lines to stdout. The process ends with its stdin.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from offseg_hf.benchmark import Runtime
from offseg_hf.benchmark.machine import reset_peak, resident_bytes
from offseg_hf.export import Format, Precision
from offseg_hf.export.runtime import FILES, RUNTIMES, open_network
from offseg_hf.inference.files import read_photo
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.utils.extras import require
from offseg_hf.utils.texts import one_line


DTYPES = {Precision.fp32: torch.float32, Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16}


@dataclass(frozen=True)
class Task:
    """What a worker is to load and to run.

    Args:
        source: folder of a model, or of an export; or a name on the Hub.
        runtime: in which it runs.
        precision: in which it computes.
        device: of PyTorch; what is exported runs on the CPU.
        threads: of the processor; None as the libraries choose.
        photo: the file to segment.
        batch_size: images that the network sees together when throughput is measured.
        label_map: file for the label map of the photo, as numpy's.
    """

    source: str
    runtime: Runtime
    precision: Precision
    device: str
    threads: int | None
    photo: str
    batch_size: int
    label_map: str


@dataclass(frozen=True)
class Loaded:
    """What a worker tells when it is ready.

    Args:
        image: height and width of what the network sees.
        computes_in: the precision, as the runtime says.
        parts: what can be timed.
        memory: bytes by which the process is larger at its peak in a forward than before the model was loaded, or
            that the accelerator's tensors take then; None where the system does not tell.
        seconds: from the beginning of loading to the end of the first forward.
    """

    image: list[int]
    computes_in: str
    parts: list[str]
    memory: int | None
    seconds: float


class Runner:
    """A loaded model, and what can be timed of it: "network", "batch" and "photo"."""

    def __init__(self, task: Task):
        exported = task.runtime in RUNTIMES
        if exported:  # before memory is looked at: importing it is not the model's
            require(RUNTIMES[Format(task.runtime)], "export")
        before, start = resident_bytes(), time.perf_counter()
        self.segmenter = Segmenter(task.source, task.device, torch.float32 if exported else DTYPES[task.precision])
        computes_in = str(task.precision)
        if exported:
            model = self.segmenter.model
            if model.config.precision != task.precision:  # bf16: the file is that of fp32
                model.network = open_network(
                    Path(task.source, FILES[model.config.format][0]), model.config.format, task.precision
                )
            computes_in = model.network.computes_in
        elif task.runtime != Runtime.eager:
            self._fuse(task)
        inputs = self.segmenter.prepare(read_photo(Path(task.photo)))
        self.image = view_of(inputs).to(self.segmenter.device, self.segmenter.model.dtype).contiguous()
        self.batch = self.image.expand(task.batch_size, -1, -1, -1).contiguous()
        self.photo = Path(task.photo)
        self.parts: dict[str, Callable[[], Any]] = {"network": partial(self.forward, self.image)}
        if task.batch_size > 1:
            self.parts["batch"] = partial(self.forward, self.batch)
        if task.runtime != Runtime.compiled or len(inputs.get("windows", [[0]])[0]) == 1:
            self.parts["photo"] = self.segment  # several windows run together: a compiler would begin anew
        self.run("network")
        seconds = time.perf_counter() - start
        self.loaded = Loaded(list(self.image.shape[-2:]), computes_in, list(self.parts), self.memory(before), seconds)

    def _fuse(self, task: Task) -> None:
        if hasattr(self.segmenter.model, "fuse"):
            self.segmenter.network = self.segmenter.model.fuse()
        elif task.runtime == Runtime.fused:
            raise ValueError(f"{type(self.segmenter.model).__name__} has no fuse()")
        if task.runtime == Runtime.compiled:
            self.segmenter.compile()

    def memory(self, before: int | None) -> int | None:
        """Return the bytes of a forward at its peak, over `before`."""
        is_cpu = self.segmenter.device.type == "cpu"
        if not is_cpu:
            torch.accelerator.reset_peak_memory_stats()
        reset_peak()
        self.run("network")
        if not is_cpu:
            return torch.accelerator.max_memory_allocated()
        peak = resident_bytes(peak=True)
        return None if peak is None or before is None else peak - before

    def run(self, part: str) -> tuple[float, float]:
        """Return the seconds that a part takes, by the clock and of the processor."""
        start, cpu = time.perf_counter(), time.process_time()
        self.parts[part]()
        if self.segmenter.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start, time.process_time() - cpu

    @torch.inference_mode()
    def forward(self, images: Tensor) -> None:
        """Run the network alone."""
        self.segmenter.network(images)

    def segment(self) -> np.ndarray:
        """Return the label map of the photo's file."""
        return self.segmenter(read_photo(self.photo))


def view_of(inputs: BatchFeature) -> Tensor:
    """Return the first image that a network sees of a photo: a window, or the whole; (1, channels, height, width)."""
    pixel_values = inputs["pixel_values"]
    if "windows" not in inputs:
        return pixel_values
    top, left, bottom, right = inputs["windows"][0, 0].tolist()
    return pixel_values[..., top:bottom, left:right]


def main() -> None:
    """Load what the first line says, then run the part that each further line names."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        values = json.loads(sys.stdin.readline())
        task = Task(**values | {"runtime": Runtime(values["runtime"]), "precision": Precision(values["precision"])})
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        runner = Runner(task)
        if "photo" in runner.parts:
            np.save(task.label_map, runner.segment())
        answer(asdict(runner.loaded))
        for line in iter(sys.stdin.readline, ""):
            seconds, cpu_seconds = runner.run(line.strip())
            answer({"seconds": seconds, "cpu_seconds": cpu_seconds})
    except Exception as error:  # of models, runtimes and compilers
        answer({"error": one_line(error)})


if __name__ == "__main__":
    main()
