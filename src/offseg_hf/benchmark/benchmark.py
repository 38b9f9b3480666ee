"""`benchmark`: models in every runtime, each in a process of its own, which take turns."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offseg_hf.benchmark import Runtime
from offseg_hf.benchmark.machine import describe_machine
from offseg_hf.benchmark.subject import Subject, export_subject, subject_of
from offseg_hf.benchmark.worker import Task
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from offseg_hf.export.export import FORMATS, PACKAGES
from offseg_hf.export.runtime import RUNTIMES
from offseg_hf.inference.files import read_photo
from offseg_hf.utils.extras import require
from offseg_hf.utils.texts import one_line


PARTS = ("network", "batch", "photo")
PAUSE = 0.02  # seconds before each run: threads of the one before spin for so long
PHOTO_SIZE = (512, 683)  # height, width
BATCH_SIZE_OF_ACCELERATORS = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured.

    Args:
        runtimes: of those that are installed.
        precisions: by default float32, and bfloat16 where the processor has it.
        devices: of PyTorch; by default the CPU and an accelerator, where there is one.
        threads: of the processor; by default as the libraries choose.
        runs: of each part.
        parts: "network", "batch" (images that the network sees together), "photo" (from its file to its label map).
        batch_size: of the batch; by default 1 on the CPU, on accelerators 8.
    """

    runtimes: Sequence[Runtime] = (Runtime.eager, Runtime.fused, Runtime.onnx, Runtime.openvino)
    precisions: Sequence[Precision] | None = None
    devices: Sequence[str] | None = None
    threads: int | None = None
    runs: int = 15
    parts: Sequence[str] = PARTS
    batch_size: int | None = None


DEFAULTS = BenchmarkOptions()


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    subject: Subject
    runtime: Runtime
    precision: Precision
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Return it in words."""
        return f"{self.subject.name}: {self.runtime} {self.precision}" + (
            "" if self.device == "cpu" else f" on {self.device}"
        )


@dataclass
class Measurement:
    """What was measured of one way: seconds of each run by part, by the clock and of the processor."""

    way: Way
    batch_size: int
    loaded: dict[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    equal_labels: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it: times in milliseconds."""
        facts: dict[str, Any] = {
            "model": self.way.subject.name,
            "random_weights": self.way.subject.built,
            "runtime": self.way.runtime,
            "precision": self.way.precision,
            "device": self.way.device,
            "image": self.loaded["image"],
            "memory_mb": None if self.loaded["memory"] is None else round(self.loaded["memory"] / 2**20, 1),
            "equal_labels": self.equal_labels,
            "loading_s": round(self.loaded["seconds"], 2),
        }
        for part, seconds in self.seconds.items():
            facts[part] = _summary(seconds) | {"cpu_median": round(1000 * float(np.median(self.cpu_seconds[part])), 2)}
        for part, size in (("batch", self.batch_size), ("network", 1)):
            if part in facts:
                facts["images_per_second"] = round(1000 * size / facts[part]["median"], 2)
                facts["batch_size"] = size
                break
        return facts


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum and 90th percentile in milliseconds, and the number of runs."""
    values = 1000 * np.asarray(seconds)
    names = ("median", "min", "p90")
    figures = (np.median(values), values.min(), np.quantile(values, 0.9))
    return {name: round(float(value), 2) for name, value in zip(names, figures)} | {"runs": len(seconds)}


@dataclass
class Report:
    """What was measured, what was not and why, and where."""

    machine: dict[str, Any]
    photo: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "machine": self.machine,
            "photo": self.photo,
            "results": [each.facts() for each in self.measurements if each.seconds],
            "left_out": [{"what": what, "why": why} for what, why in self.left_out],
            "interrupted": self.interrupted,
        }


def benchmark(
    models: Sequence[str],
    *,
    options: BenchmarkOptions = DEFAULTS,
    photos: Sequence[Path] = (),
    size: tuple[int, int] = PHOTO_SIZE,
    exports: Path | None = None,
    progress: Progress = lambda text, done, total: None,
) -> Report:
    """Measure models in the runtimes that are installed.

    Each way to run a model is a process of its own; when all have loaded, they take turns, so that a machine which
    slows down slows all of them down.

    Args:
        models: folders, names on the Hub, exported folders, or presets, which are built if their weights are not here.
        options: what is measured.
        photos: the first is segmented, and int8 is calibrated with all; by default a generated scene.
        size: (height, width) of the generated scene.
        exports: folder that keeps the exports, to be taken again; by default they are deleted.
        progress: is told what is being done, and how many steps of how many are.

    Returns:
        The report; after an interruption, of what had been measured.

    Raises:
        ValueError: if there is no such model.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name = str(photos[0]) if photos else None
        photos = photos or [write_scene(folder / "photo.jpg", size)]
        report = Report(describe_machine(), {"file": name, "size": list(read_photo(photos[0]).size[::-1])})
        try:
            _measure(models, options, photos, folder, exports or folder / "exports", report, progress, stack)
        except KeyboardInterrupt:
            report.interrupted = True
    return report


def write_scene(path: Path, size: tuple[int, int]) -> Path:
    """Write a generated photo of (height, width) pixels, and return its path."""
    render_scene(0, size[::-1])[0].save(path, quality=95)
    return path


def _measure(
    models: Sequence[str],
    options: BenchmarkOptions,
    photos: Sequence[Path],
    folder: Path,
    exports: Path,
    report: Report,
    progress: Progress,
    stack: ExitStack,
) -> None:
    subjects = [subject_of(name, folder / "built" / str(index)) for index, name in enumerate(models)]
    ways = [way for subject in subjects for way in ways_of(subject, options)]
    workers: list[tuple[Worker, Measurement]] = []

    def tell(index: int, text: str) -> None:
        progress(text, index, len(ways))

    for index, way in enumerate(ways):
        try:
            tell(index, f"loading {way.label}")
            source = _source_of(way, photos, exports, partial(tell, index))
            batch_size = options.batch_size or (1 if way.device == "cpu" else BATCH_SIZE_OF_ACCELERATORS)
            label_map = folder / f"{index}.npy"
            task = Task(
                *(str(source), way.runtime, way.precision, way.device, options.threads),
                *(str(photos[0].resolve()), batch_size, str(label_map)),
            )
            worker = stack.enter_context(Worker(task))
            loaded = worker.answer()
        except ValueError as error:
            report.left_out.append((way.label, one_line(error)))
            continue
        if loaded["computes_in"] != way.precision:
            worker.close()
            if options.precisions is not None:
                report.left_out.append((way.label, f"this processor has no {way.precision}"))
            continue
        measurement = Measurement(way, batch_size, loaded, equal_labels=_equal_labels(way, label_map, folder))
        workers.append((worker, measurement))
        report.measurements.append(measurement)
    steps = [
        (worker, measurement, part)
        for part in options.parts
        for worker, measurement in workers
        if part in measurement.loaded["parts"]
    ]
    for run in range(options.runs):
        for index, (worker, measurement, part) in enumerate(steps):
            progress(measurement.way.label, run * len(steps) + index, options.runs * len(steps))
            time.sleep(PAUSE)
            try:
                answer = worker.run(part)
            except ValueError as error:  # such as one for which memory has run out
                report.left_out.append((f"{measurement.way.label}, {part}", one_line(error)))
                steps = [step for step in steps if step[0] is not worker]
                continue
            measurement.seconds.setdefault(part, []).append(answer["seconds"])
            measurement.cpu_seconds.setdefault(part, []).append(answer["cpu_seconds"])


def ways_of(subject: Subject, options: BenchmarkOptions = DEFAULTS) -> Iterator[Way]:
    """Yield the ways in which a model is run: an export as it is, a model in all runtimes, precisions and devices."""
    if subject.exported is not None:
        format, precision = subject.exported
        yield Way(subject, Runtime(format), precision)
        return
    for device in options.devices or _devices():
        for runtime in options.runtimes:
            is_exported = runtime in RUNTIMES
            if is_exported and device != "cpu":
                continue
            for precision in Precision:
                if precision in _precisions(runtime, device, options):
                    yield Way(subject, runtime, precision, device)


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def _precisions(runtime: Runtime, device: str, options: BenchmarkOptions) -> set[Precision]:
    """Return those of a runtime that were asked for, or that it computes in without asking for photos or patience."""
    if runtime in RUNTIMES:
        possible = {precision for precision, formats in FORMATS.items() if runtime in formats}
        usual = {Precision.fp32, Precision.bf16}
    else:
        possible = {Precision.fp32, Precision.bf16} | (set() if device == "cpu" else {Precision.fp16})
        usual = {Precision.fp32} if device == "cpu" else possible
    return possible & (usual if options.precisions is None else set(options.precisions))


def _source_of(way: Way, photos: Sequence[Path], exports: Path, progress: Callable[[str], None]) -> Path | str:
    """Return the folder, or the name on the Hub, that a worker loads."""
    if way.runtime not in RUNTIMES or way.subject.exported is not None:
        return way.subject.source
    for package in PACKAGES[Format(way.runtime)]:
        require(package, "export")
    progress(f"exporting {way.label}")
    # A file in bf16 is that of fp32: it is the runtime that rounds.
    precision = Precision.fp32 if way.precision == Precision.bf16 else way.precision
    return export_subject(way.subject, Format(way.runtime), precision, photos, exports)


def _equal_labels(way: Way, label_map: Path, folder: Path) -> float | None:
    """Return the share of pixels whose label is that of the model's first way."""
    first = folder / f"{way.subject.slug}.npy"
    if not label_map.exists():
        return None
    if not first.exists():
        label_map.rename(first)
        return None
    return round(float((np.load(first) == np.load(label_map)).mean()), 6)


class Worker:
    """A process that runs one model in one runtime; see `worker`."""

    def __init__(self, task: Task):
        environment = dict(os.environ)
        if task.threads is not None:
            environment["OMP_NUM_THREADS"] = str(task.threads)
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "offseg_hf.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # an interruption is the business of the process that reports
        )
        self._tell(json.dumps(asdict(task)))

    def run(self, part: str) -> dict[str, Any]:
        """Run a part, and return how long it took."""
        self._tell(part)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            ValueError: for an error there, and for a process that has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().splitlines() or [f"exit code {code}"]
            raise ValueError(f"its process ended: {lines[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
