"""The counts of each image: what the metric counts, in a file and across processes, and their scores."""

import numpy as np
import pytest
import torch

from offseg_hf.evaluation.calibration import grid
from offseg_hf.evaluation.image_counts import COUNTS_FILE, ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from tests.evaluation.counted import counted


def test_counts_add_up_to_the_metric():
    counts, metric = counted(6, classes=4)
    result, tables = metric.compute(), counts.per_image()
    iou = tables.hits.sum(axis=0) / tables.union.sum(axis=0)
    np.testing.assert_allclose(iou, result["IoU_per_class"])
    np.testing.assert_array_equal(tables.labeled.sum(axis=0), metric.confusion_matrix.sum(dim=1))
    np.testing.assert_array_equal(tables.predicted.sum(axis=0), metric.confusion_matrix.sum(dim=0))
    assert 0 < np.nanmean(counts.boundary_iou()) < result["mIoU"]
    assert counts.calibration().counts[0].sum() == 6 * 5 * 8 - 6 * 2  # the grid, but for what is not annotated


def test_files_give_back_what_was_counted(tmp_path):
    counts, _ = counted(5, classes=4)
    counts.write(tmp_path)
    again = ImageCounts.from_bytes((tmp_path / COUNTS_FILE).read_bytes())
    assert again.to_bytes() == counts.to_bytes() and again.names == counts.names and again.num_classes == 4
    for row, expected in zip(again.rows, counts.rows, strict=True):
        assert all(np.array_equal(row[name], expected[name]) for name in expected)


def test_processes_that_shared_the_images_make_the_same_file():
    counts, _ = counted(5, classes=4)
    shares = [ImageCounts(4, counts.rows[place::2]) for place in (1, 0)]
    assert ImageCounts.joined([share.to_bytes() for share in shares]).to_bytes() == counts.to_bytes()
    none = ImageCounts.joined([ImageCounts(4).to_bytes(), counts.to_bytes()])  # of a process without an image
    assert none.to_bytes() == counts.to_bytes()


def test_another_file_is_refused():
    with pytest.raises(ValueError, match="expected counts of images, got another file"):
        ImageCounts.from_bytes(b"half a file")


def add(counts: ImageCounts, label: torch.Tensor, prediction: torch.Tensor, probability=None) -> None:
    metric = MeanIoU(counts.num_classes)
    metric.update(prediction, label)
    counts.add(len(counts), "x.png", metric.confusion_matrix, prediction, label, probability)


def test_scores_of_images_by_hand():
    counts = ImageCounts(4)
    label = torch.zeros(10, 20, dtype=torch.uint8)
    label[:, 10:] = 1
    add(counts, label, label.long())
    prediction = label.long()
    prediction[:, 10:] = 2  # wrong: class 1 is there, class 2 is not
    add(counts, label, prediction)
    add(counts, torch.full((10, 20), 255, dtype=torch.uint8), prediction)
    add(counts, torch.zeros(1, 1, dtype=torch.uint8), torch.full((1, 1), 3))
    scores = counts.per_image().scores()
    np.testing.assert_allclose(scores["mIoU"], [1, 1 / 3, np.nan, 0])
    np.testing.assert_allclose(scores["mBoundaryIoU"], [1, 1 / 3, np.nan, 0])
    np.testing.assert_allclose(scores["aAcc"], [1, 0.5, np.nan, 0])
    assert np.isfinite(counts.boundary_iou()).all() and counts.calibration() is None


def test_nothing_is_annotated_anywhere():
    counts = ImageCounts(3)
    void = torch.full((9, 9), 255, dtype=torch.uint8)
    add(counts, void, torch.zeros(9, 9, dtype=torch.int64), torch.ones(len(grid(9)), len(grid(9))))
    again = ImageCounts.from_bytes(counts.to_bytes())
    assert np.isnan(again.boundary_iou()).all() and np.isnan(again.calibration().error)
    assert all(np.isnan(values).all() for values in again.per_image().scores().values())
