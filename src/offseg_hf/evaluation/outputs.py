"""Sinks for the label maps of an evaluation: a metric, and files, each whole or not at all."""

import hashlib
import json
import math
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from offseg_hf.data.label_sets import LabelSet
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.pictures import PICTURES, draw_comparison, picture_files, write_pictures
from offseg_hf.evaluation.samples import Sample, SampleReader
from offseg_hf.inference.files import make_folder
from offseg_hf.utils.files import whole_file


SECONDS_BETWEEN_SAVES = 10.0
OF_ANOTHER_PROGRAM = (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError)
WRITERS = 2  # threads that write pictures, and pictures that wait for them


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write what every reader of JSON takes: what is no finite number becomes null."""
    with whole_file(path) as temporary:
        text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """Return the same for JSON, which has neither nan nor infinity: they become None."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def file_stems(names: Sequence[str]) -> list[str]:
    """Return the names for outputs of samples: those of their files, with a number where these are not unique.

    Names that differ in case alone are not, as a file system may take them for one.
    """
    stems = [Path(name).stem for name in names]
    count = Counter(stem.casefold() for stem in stems)
    return [f"{stem}_{index}" if count[stem.casefold()] > 1 else stem for index, stem in enumerate(stems)]


def submission_image(prediction: np.ndarray, labels: LabelSet) -> Image.Image:
    """Return the label map in the values of the data set's published annotations, as its evaluation server wants them.

    Of ADE20K these are the class ids plus one, of Cityscapes the labelIds. 8-bit gray, 16-bit beyond 255.
    """
    values = np.asarray(labels.raw_ids)[prediction]
    return Image.fromarray(values.astype(np.uint8 if max(labels.raw_ids) < 256 else np.uint16))


@dataclass(frozen=True)
class Outputs:
    """What an evaluation writes, and where.

    Args:
        save_dir: folder for `evaluation.json`, `report.html` with its pictures, `image_counts.parquet` and
            `confusion_matrix.png`; an evaluation that was interrupted goes on there.
        overlays: write `overlays/<image>.png`: annotation and prediction over the photo, side by side.
        submission: write `submission/<image>.png`: label maps in the values of the data set's published annotations.
        json_file: file for the report alone.
        overwrite: replace what exists; otherwise that is an error.
    """

    save_dir: str | Path | None = None
    overlays: bool = False
    submission: bool = False
    json_file: str | Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Make the folders; raises ValueError or OSError for what cannot be written or must be kept."""
        if (self.overlays or self.submission) and self.save_dir is None:
            raise ValueError("overlays and label maps for submission need a folder: pass save_dir (--output)")
        for file in self.report_files:
            if file.exists() and not self.overwrite:
                raise ValueError(f"{file} exists and is kept: name another output or pass overwrite (--overwrite)")
            make_folder(file.parent)

    @property
    def report_files(self) -> list[Path]:
        """The files for the report."""
        files = [] if self.json_file is None else [Path(self.json_file)]
        return files if self.save_dir is None else [*files, Path(self.save_dir, "evaluation.json")]


class Sink:
    """Count the label maps of an evaluation in a metric.

    Args:
        metric: for the counts of this process.
        progress: called after each sample with the number done and the number of all, on this process; of a streaming
            data set the latter is None.
        done: how many samples of this process the metric holds already: of an evaluation that was interrupted.
        counts: for those of each image, if they are wanted.
    """

    def __init__(
        self,
        metric: MeanIoU,
        progress: Callable[[int, int | None], None] | None = None,
        done: int = 0,
        counts: ImageCounts | None = None,
    ):
        self.metric, self.done, self.counts, self._progress = metric, done, counts, progress

    def add(self, sample: Sample, prediction: Tensor, total: int | None, probability: Tensor | None = None) -> None:
        """Take in a sample with its label map, integers (height, width); raises ValueError that names it.

        `probability` is that of the winner, at the grid of `calibration`: for the counts of each image.
        """
        before = None if self.counts is None else self.metric.confusion_matrix.clone()
        try:
            self.metric.update(prediction, sample.label)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from error
        if self.counts is not None and before is not None:
            confusion = self.metric.confusion_matrix - before.to(self.metric.confusion_matrix.device)
            self.counts.add(sample.index, sample.name, confusion, prediction, sample.label, probability)
        self.done += 1
        self.keep(sample, prediction)
        if self._progress is not None:
            self._progress(self.done, total)

    def keep(self, sample: Sample, prediction: Tensor) -> None:
        """Write what is to be kept of a sample, which is counted already: nothing here."""

    def flush(self) -> None:
        """Write what still waits to be written: nothing here."""

    def finish(self) -> None:
        """End an evaluation of which all samples were taken in, by all processes."""


class FolderSink(Sink):
    """Keep label maps as pictures too, and the counts so far, with which an interrupted evaluation goes on.

    Args:
        outputs: with a `save_dir`.
        labels: of the data set.
        names: of all samples by index; None for streams, where a picture is called as its image.
        identity: what tells this evaluation, and this process in it, from others; but for the samples, whose contents
            are compared before their counts are taken.
    """

    def __init__(
        self,
        outputs: Outputs,
        labels: LabelSet,
        names: Sequence[str] | None,
        identity: str,
        metric: MeanIoU,
        progress: Callable[[int, int | None], None] | None = None,
    ):
        super().__init__(metric, progress, counts=ImageCounts(len(labels)))
        assert outputs.save_dir is not None
        self.counts: ImageCounts
        self._folder, self._labels = Path(outputs.save_dir), labels
        self._kinds = [kind for kind in ("submission", "overlays") if getattr(outputs, kind)]
        self._stems = None if names is None else file_stems(names)
        self._state = self._folder / f".evaluation-{identity}.pt"
        self._content = b""  # a digest of the samples that the metric holds, in their order
        self._saved_at = time.monotonic()
        # Encoding pictures needs no interpreter: it goes on beside the next forward.
        self._writers, self._written = ThreadPoolExecutor(WRITERS), deque[Future[None]]()

    def keep(self, sample: Sample, prediction: Tensor) -> None:
        """Let a thread write the pictures of a sample, and from time to time write the counts."""
        self._wait(pending=WRITERS)
        self._written.append(self._writers.submit(self._write, sample, prediction.cpu().numpy()))
        self._content = chain(self._content, sample.content)
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES:
            self.flush()
            state = {
                "done": self.done,
                "content": self._content,
                "metric": self.metric.state_dict(),
                "images": self.counts.to_bytes(),
            }
            with whole_file(self._state) as path:
                torch.save(state, path)
            self._saved_at = time.monotonic()

    def flush(self) -> None:
        """Wait until all pictures are there; raises their errors."""
        self._wait(pending=0)

    def _wait(self, pending: int) -> None:
        """Wait until the pictures of all samples but the last `pending` are there; raises their errors."""
        while len(self._written) > pending:
            self._written.popleft().result()

    def _write(self, sample: Sample, label_map: np.ndarray) -> None:
        label = sample.label.numpy()
        write_pictures(self._folder / PICTURES, sample.index, sample.photo, label, label_map, self._labels.palette)
        for kind, file in self._paths(sample.index, sample.name).items():
            if kind in self._kinds:
                with whole_file(file) as path:
                    self._picture(kind, sample, label_map).save(path)

    def _picture(self, kind: str, sample: Sample, label_map: np.ndarray) -> Image.Image:
        if kind == "submission":
            return submission_image(label_map, self._labels)
        return draw_comparison(sample.photo, sample.label.numpy(), label_map, self._labels.names, self._labels.palette)

    def _paths(self, index: int, name: str) -> dict[str, Path]:
        """Return what is written of a sample -> its file."""
        stem = Path(name).stem if self._stems is None else self._stems[index]
        pictures = {kind: self._folder / kind / f"{stem}.png" for kind in self._kinds}
        return pictures | picture_files(self._folder / PICTURES, index)

    def go_on(self, reader: SampleReader, index: int, count: int) -> None:
        """Take in the counts of an interrupted evaluation.

        They are left if one of their samples is no longer what it was, or a picture of it is gone.

        Args:
            reader: of the samples.
            index: of this process.
            count: of all processes.
        """
        try:
            state = torch.load(self._state, weights_only=True)
            done, content, counts = state["done"], state["content"], state["metric"]
            images = ImageCounts.from_bytes(state["images"])
        except FileNotFoundError:
            return
        except OF_ANOTHER_PROGRAM:
            return
        found, now = 0, b""
        for place, name, sample in reader.contents(index, count, done):
            if not all(path.is_file() for path in self._paths(place, name).values()):
                return
            found, now = found + 1, chain(now, sample)
        if (found, now) == (done, content):
            self.metric.load_state_dict(counts)
            self.done, self._content, self.counts = done, content, images

    def finish(self) -> None:
        """Remove what only an interruption needs."""
        self.flush()
        self._writers.shutdown()
        self._state.unlink(missing_ok=True)


def chain(before: bytes, content: bytes) -> bytes:
    """Return a digest of all contents up to this one, in their order, from that of those before it."""
    return hashlib.blake2b(before + content, digest_size=16).digest()


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all weights, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identify(content: Mapping[str, Any]) -> str:
    """Return a digest, in 16 hexadecimal digits, of what JSON can hold and of what has a text (types of numbers)."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
