"""A split of a data set in memory: all photos resized once, to one size."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from offseg_hf.data.check import SplitReport
from offseg_hf.data.dataset import label_set_of, load_segmentation_data, sample_names
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.models.image_operations import read_image, read_label_map


HELD_OUT = "held-out"  # the last fifth of the photos to train on, in the order of their names: whole scenes of a film
SHARE_HELD_OUT = 0.2
STRIDE = 32


@dataclass(frozen=True)
class Photos:
    """Photos, uint8 (number, 3, height, width), and label maps, uint8 (number, height, width)."""

    labels: LabelSet
    names: list[str]
    images: Tensor
    label_maps: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def part(self, first: int, end: int) -> "Photos":
        """Return some of the photos."""
        part = slice(first, end)
        return Photos(self.labels, self.names[part], self.images[part], self.label_maps[part])

    def class_weights(self) -> list[float]:
        """Return weights for the loss: inverse roots of shares of pixels, as `offseg data check --stats` proposes."""
        report = SplitReport("train", self.labels, len(self))
        for label_map in self.label_maps:
            report.add(np.bincount(label_map.flatten().numpy(), minlength=256))
        return report.class_weights()


def read_photos(source: Path, split: str, pixels: int) -> tuple[Photos, Photos]:
    """Read the photos to train on and to test on, of one size: about `pixels`, with sides that are multiples of 32.

    Args:
        source: A data set, as `offseg train` takes it.
        split: To test on; "held-out" for a part of the photos to train on, which are then fewer.
        pixels: Of a photo.
    """
    train = load_segmentation_data(source, "train")
    ratio = median(sample["image"].width / sample["image"].height for sample in train)
    height, width = (
        max(1, round(side / STRIDE)) * STRIDE for side in ((pixels / ratio) ** 0.5, (pixels * ratio) ** 0.5)
    )
    photos = _read(train, height, width)
    if split == HELD_OUT:
        number = round(len(photos) * (1 - SHARE_HELD_OUT))
        return photos.part(0, number), photos.part(number, len(photos))
    return photos, _read(load_segmentation_data(source, split), height, width)


def _read(data, height: int, width: int) -> Photos:
    from PIL import Image

    images, label_maps = [], []
    for sample in data:
        image = Image.fromarray(read_image(sample["image"]).transpose(1, 2, 0))
        images.append(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
        label_map = Image.fromarray(read_label_map(sample["label"]).astype(np.uint8))
        label_maps.append(np.asarray(label_map.resize((width, height), Image.Resampling.NEAREST)))
    names = [Path(name).name for name in sample_names(data)]
    return Photos(label_set_of(data), names, *(torch.from_numpy(np.stack(x)) for x in (images, label_maps)))
