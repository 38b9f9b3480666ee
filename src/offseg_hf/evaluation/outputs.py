"""Files that an evaluation writes, each whole or not at all, and where it goes on after an interruption."""

import hashlib
import json
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from offseg_hf.data.labels import LabelSet
from offseg_hf.evaluation.pictures import draw_comparison
from offseg_hf.evaluation.samples import Sample
from offseg_hf.metrics import MeanIoU


SECONDS_BETWEEN_SAVES = 10.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_stems(names: Sequence[str]) -> list[str]:
    """What the outputs of the samples are called: as their files; with the number of the sample where that is not
    unique, as upper and lower case may be one."""
    stems = [Path(name).stem for name in names]
    count = Counter(stem.casefold() for stem in stems)
    return [f"{stem}_{index}" if count[stem.casefold()] > 1 else stem for index, stem in enumerate(stems)]


def submission_image(prediction: np.ndarray, labels: LabelSet) -> Image.Image:
    """The label map in the values of the data set's published annotations, as its evaluation server wants them.

    Of ADE20K these are the class ids plus one, of Cityscapes the labelIds. 8-bit gray, 16-bit beyond 255.
    """
    values = np.asarray(labels.raw_ids)[prediction]
    return Image.fromarray(values.astype(np.uint8 if max(labels.raw_ids) < 256 else np.uint16))


class SampleWriter:
    """Writes `submission/<name>.png` and `overlays/<name>.png` of the samples that it is called with.

    stems: names of all samples by index; None for streams, where a file is called as its image.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelSet,
        stems: Sequence[str] | None,
        submission: bool,
        overlays: bool,
    ):
        self.folder = folder
        self.labels = labels
        self.stems = stems
        self.submission = submission
        self.overlays = overlays

    def __call__(self, sample: Sample, prediction: np.ndarray) -> None:
        stem = Path(sample.name).stem if self.stems is None else self.stems[sample.index]
        pictures = {}
        if self.submission:
            pictures["submission"] = submission_image(prediction, self.labels)
        if self.overlays:
            label, palette = sample.label.numpy(), self.labels.palette
            pictures["overlays"] = draw_comparison(sample.photo, label, prediction, self.labels.names, palette)
        for folder, picture in pictures.items():
            with whole_file(self.folder / folder / f"{stem}.png") as path:
                picture.save(path)


class SavedState:
    """The counts of one process in a hidden file, so that the same evaluation goes on where it was interrupted.

    identity: what tells this evaluation, and this process in it, from others.
    """

    def __init__(self, folder: Path, identity: str, metric: MeanIoU):
        self.path = folder / f".evaluation-{identity}.pt"
        self.metric = metric
        self.saved_at = time.monotonic()

    def restore(self) -> int:
        """Puts the saved counts into the metric; returns how many samples they are of, 0 if there are none."""
        try:
            state = torch.load(self.path, weights_only=True)
            self.metric.load_state_dict(state["metric"])
        except FileNotFoundError:
            return 0
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError):  # another program's file
            return 0
        return state["done"]

    def save(self, done: int) -> None:
        """At most every `SECONDS_BETWEEN_SAVES`."""
        if time.monotonic() - self.saved_at >= SECONDS_BETWEEN_SAVES:
            with whole_file(self.path) as path:
                torch.save({"done": done, "metric": self.metric.state_dict()}, path)
            self.saved_at = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def weights_digest(model: nn.Module) -> str:
    """The same for the same weights, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identify(content: Mapping[str, Any]) -> str:
    """Of what JSON can hold, 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
