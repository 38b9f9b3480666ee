"""Counts of images whose predictions are shifted and partly wrong."""

import torch

from offseg_hf.evaluation.calibration import grid
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from tests.evaluation.test_boundary import blobs


def counted(images: int, classes: int, seed: int = 0, share: float = 0.2) -> tuple[ImageCounts, MeanIoU]:
    """Of 40 x 64 pixels, the upper 4 x 16 of which are not annotated: the same labels for every seed.

    In `share` of every image the prediction is another class.
    """
    counts, metric = ImageCounts(classes), MeanIoU(classes)
    generator = torch.Generator().manual_seed(seed)
    for index in range(images):
        label = blobs(40, 64, classes, seed=index).to(torch.uint8)
        noise = torch.rand(40, 64, generator=generator)
        prediction = torch.where(noise < share, (label.long() + 1) % classes, label.long()).roll(1, dims=1)
        label[:5, :16] = 255
        before = metric.confusion_matrix.clone()
        metric.update(prediction, label)
        probability = 1 - noise[grid(40)][:, grid(64)] / 2
        confusion = metric.confusion_matrix - before
        counts.add(index, f"val/{index:03d}.jpg", confusion, prediction, label, probability)
    return counts, metric
