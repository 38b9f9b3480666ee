"""Boundary IoU of label maps: how well the boundaries of classes lie on each other, in integers that add up.

Paper: "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (Cheng et al., CVPR 2021,
https://arxiv.org/abs/2103.16562), for one mask. Of a label map each class is a mask; as a mask's boundary is what an
erosion takes from it, a pixel is in the boundary of its class exactly if its square has a pixel of another one. So one
pass does for all classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


WIDTH = 0.02  # of the image's diagonal, as of the official boundary-iou-api


def boundary_width(height: int, width: int) -> int:
    """Return the width of a boundary in pixels, in an image of some size."""
    return max(1, round(WIDTH * (height**2 + width**2) ** 0.5))


def boundary_counts(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count the pixels of the boundaries of each class, in one image.

    Where the label is no class, neither map is looked at: a mask ends there as it does at the border of the image.

    Args:
        prediction: class ids (height, width).
        label: class ids (height, width), and others where nothing is annotated.
        num_classes: number of classes.

    Returns:
        Intersection and union of the boundaries in label and prediction, int64 (num_classes,) each.
    """
    dtype = torch.int16 if num_classes < 2**15 else torch.int32  # passes over memory are what this costs
    label, prediction = label.to(dtype), prediction.to(dtype)
    annotated = (label >= 0) & (label < num_classes)
    masked = torch.stack([label, prediction]).where(annotated, num_classes)
    masked = masked.where(in_boundary(masked, boundary_width(*label.shape)), num_classes)
    hits = masked[0].where(masked[0] == masked[1], num_classes)
    intersection, labeled, predicted = (
        torch.bincount(classes.flatten(), minlength=num_classes + 1)[:num_classes] for classes in (hits, *masked)
    )
    return intersection, labeled + predicted - intersection


def in_boundary(label_maps: Tensor, width: int) -> Tensor:
    """Tell which pixels lie in the boundary of their class: what `width` erosions by 3x3 take, with nothing outside.

    Args:
        label_maps: integers (maps, height, width).
        width: of boundaries, in pixels.

    Returns:
        Booleans (maps, height, width).
    """
    side = 2 * width + 1
    # A square has one class only if each of its rows has, and its middle column.
    across = _any_of(label_maps[..., 1:] != label_maps[..., :-1], width, side - 1, -1)
    down = label_maps[:, 1:] != label_maps[:, :-1]
    band = _any_of(across, width, side, -2) | _any_of(down, width, side - 1, -2)
    for edge in (band[:, :width], band[:, -width:], band[..., :width], band[..., -width:]):
        edge.fill_(True)
    return band


def _any_of(values: Tensor, margin: int, length: int, dim: int) -> Tensor:
    """Tell of each `length` neighbors along `dim`, -1 or -2, whether any is true; beyond the ends none is."""
    values = F.pad(values, (margin, margin) if dim == -1 else (0, 0, margin, margin))
    covered = 1
    while covered < length:  # from two windows, one of up to twice the length
        step = min(covered, length - covered)
        number = values.shape[dim] - step
        values = values.narrow(dim, 0, number) | values.narrow(dim, step, number)
        covered += step
    return values
