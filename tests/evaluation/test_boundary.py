"""Boundary IoU: what the official boundary-iou-api finds mask by mask, of all classes at once."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.evaluation.boundary import boundary_counts, boundary_width, in_boundary


def official_boundary(mask: torch.Tensor) -> torch.Tensor:
    """boundary_iou/utils/boundary_utils.py: the mask without its erosions by 3x3, and background outside the image."""
    height, width = mask.shape
    steps = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    eroded = F.pad(mask.float()[None, None], (1, 1, 1, 1))
    for _ in range(steps):
        eroded = -F.max_pool2d(-eroded, 3, stride=1, padding=1)  # beyond the padding nothing erodes, as of OpenCV
    return mask & (eroded[0, 0, 1:-1, 1:-1] == 0)


def official_counts(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> list[list[int]]:
    annotated = (label >= 0) & (label < num_classes)
    counts = []
    for index in range(num_classes):
        truth = official_boundary((label == index) & annotated)
        guess = official_boundary((prediction == index) & annotated)
        counts.append([int((truth & guess).sum()), int((truth | guess).sum())])
    return counts


def blobs(height: int, width: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1, classes, 2 + height // 40, 2 + width // 40, generator=generator)
    return F.interpolate(scores, size=(height, width), mode="bicubic").argmax(dim=1)[0]


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (7, 1), (2, 3), (31, 47), (120, 200), (257, 129)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@pytest.mark.parametrize("void", [255, -1])
def test_counts_are_the_official_ones(size, void):
    label, prediction = blobs(*size, 5, seed=1), blobs(*size, 5, seed=2)
    label[: size[0] // 3, : size[1] // 2] = void
    expected = official_counts(prediction, label, 6)  # of which one is nowhere
    label = label.to(torch.uint8 if void == 255 else torch.int16)
    intersection, union = boundary_counts(prediction, label, 6)
    assert torch.stack([intersection, union], dim=1).tolist() == expected
    assert intersection.dtype == torch.int64
    if min(size) > 100:
        assert (intersection > 0).sum() > 2 and (union > intersection).sum() > 2 and union[5] == 0


def test_by_hand():
    """One erosion takes the ring of pixels along the border of the image and along the other class."""
    label = torch.zeros(6, 12, dtype=torch.int64)
    label[:, 6:] = 1
    (band,) = in_boundary(label[None], 1)
    assert (~band).nonzero().tolist() == [[y, x] for y in range(1, 5) for x in (1, 2, 3, 4, 7, 8, 9, 10)]
    prediction = label.roll(1, dims=1)
    prediction[:, 0] = 0  # class 1 begins at column 7
    intersection, union = boundary_counts(prediction, label, 2)
    # Rings of 20 pixels in the label, of 22 and 18 in the prediction; they share what is not beside the other class.
    assert intersection.tolist() == [16, 14]
    assert union.tolist() == [20 + 22 - 16, 20 + 18 - 14]


def test_what_is_right_has_one_and_nothing_annotated_has_none():
    label = blobs(90, 70, 4, seed=3)
    intersection, union = boundary_counts(label, label, 4)
    assert torch.equal(intersection, union) and union.sum() > 0
    for counts in boundary_counts(label, torch.full_like(label, 255), 4):
        assert counts.tolist() == [0, 0, 0, 0]


def test_what_is_predicted_where_nothing_is_annotated_does_not_matter():
    label, prediction = blobs(80, 80, 4, seed=4), blobs(80, 80, 4, seed=5)
    label[20:50, 30:60] = 255
    other = prediction.clone()
    other[20:50, 30:60] = (other[20:50, 30:60] + 1) % 4
    for counts, expected in zip(boundary_counts(other, label, 4), boundary_counts(prediction, label, 4)):
        assert torch.equal(counts, expected)


def test_width_is_two_percent_of_the_diagonal():
    assert [boundary_width(*size) for size in ((300, 400), (1024, 2048), (10, 10), (1, 1))] == [10, 46, 1, 1]
