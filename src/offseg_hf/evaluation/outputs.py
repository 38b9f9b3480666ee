"""Files that an evaluation writes, each whole or not at all, and where it goes on after an interruption."""

import hashlib
import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from offseg_hf.data.label_sets import LabelSet
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.pictures import draw_comparison
from offseg_hf.evaluation.samples import Sample, SampleReader
from offseg_hf.utils.files import whole_file


SECONDS_BETWEEN_SAVES = 10.0


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As text that every reader of JSON takes: what is no finite number becomes null."""
    with whole_file(path) as temporary:
        text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """The same for JSON, which has neither nan nor infinity: they become null."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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

    def paths(self, index: int, name: str) -> dict[str, Path]:
        """Of a sample, what is written of it -> its file."""
        stem = Path(name).stem if self.stems is None else self.stems[index]
        wanted = {"submission": self.submission, "overlays": self.overlays}
        return {kind: self.folder / kind / f"{stem}.png" for kind, is_wanted in wanted.items() if is_wanted}

    def __call__(self, sample: Sample, prediction: np.ndarray) -> None:
        for kind, file in self.paths(sample.index, sample.name).items():
            if kind == "submission":
                picture = submission_image(prediction, self.labels)
            else:
                label, palette = sample.label.numpy(), self.labels.palette
                picture = draw_comparison(sample.photo, label, prediction, self.labels.names, palette)
            with whole_file(file) as path:
                picture.save(path)


class SavedState:
    """The counts of one process in a hidden file, so that the same evaluation goes on where it was interrupted.

    identity: what tells this evaluation, and this process in it, from others; but for the samples, whose contents are
        compared before their counts are taken: `content` is of those that the metric holds, in their order.
    """

    def __init__(self, folder: Path, identity: str, metric: MeanIoU):
        self.path = folder / f".evaluation-{identity}.pt"
        self.metric = metric
        self.content = b""
        self.saved_at = time.monotonic()

    def restore(self, reader: SampleReader, place: tuple[int, int], writer: SampleWriter) -> int:
        """Puts the saved counts into the metric; returns how many samples they are of.

        That is 0 if there are none, if one of these samples is no longer what it was, or a picture of it is gone.
        place: index of this process, and number of all.
        """
        try:
            state = torch.load(self.path, weights_only=True)
            done, content, counts = state["done"], state["content"], state["metric"]
        except FileNotFoundError:
            return 0
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError):  # another program's file
            return 0
        found, now = 0, b""
        for index, name, sample in reader.contents(*place, done):
            if not all(path.is_file() for path in writer.paths(index, name).values()):
                return 0
            found, now = found + 1, chain(now, sample)
        if (found, now) != (done, content):
            return 0
        self.metric.load_state_dict(counts)
        self.content = content
        return done

    def add(self, sample: Sample) -> None:
        """A sample that the metric holds from now on."""
        self.content = chain(self.content, sample.content)

    def save(self, done: int) -> None:
        """At most every `SECONDS_BETWEEN_SAVES`."""
        if time.monotonic() - self.saved_at >= SECONDS_BETWEEN_SAVES:
            with whole_file(self.path) as path:
                torch.save({"done": done, "content": self.content, "metric": self.metric.state_dict()}, path)
            self.saved_at = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def chain(before: bytes, content: bytes) -> bytes:
    """A digest of all contents up to this one, in their order, from that of those before it."""
    return hashlib.blake2b(before + content, digest_size=16).digest()


def weights_digest(model: nn.Module) -> str:
    """The same for the same weights, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identify(content: Mapping[str, Any]) -> str:
    """Of what JSON can hold, and what has a text of its own (types of numbers), 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
