"""Losses of logits, which a recipe weighs and adds up: functions of logits and label maps, whose size need not be one.

Each is 0, with gradients of 0, where no pixel has a class. All but Lovasz-softmax, which sorts the pixels of the whole
batch by class, see the upsampled logits band by band: their memory does not grow with classes times pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from offseg_hf.models.modeling_utils import single_or_double, sum_over_bands, upsampled_bands
from offseg_hf.training.recipe import LOSS_SETTINGS, LossRecipe


def build_loss(terms: Sequence[LossRecipe], num_classes: int, ignore_index: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the weighted sum of losses, as a function of logits and label maps, in float32 or more.

    Args:
        terms: the losses.
        num_classes: how many there are.
        ignore_index: the label of pixels that do not count.

    Raises:
        ValueError: for another number of class weights than classes.
    """
    functions = []
    for index, term in enumerate(terms):
        weights = term.class_weights
        if weights is not None and len(weights) != num_classes:
            raise ValueError(
                f"loss[{index}].class_weights: expected {num_classes} weights, one per class, got {len(weights)}"
            )
        settings = {name: getattr(term, name) for name in LOSS_SETTINGS[term.kind]}
        functions.append((term.weight, partial(LOSSES[term.kind], ignore_index=ignore_index, **settings)))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return sum((weight * function(logits, labels) for weight, function in functions), logits.new_zeros(()))

    return loss


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ohem_threshold: float | None = None,
    ohem_min_kept: int = 10_000,
) -> Tensor:
    """Compute the cross-entropy, a mean over labeled pixels by the weights of their classes, as torch does.

    Args:
        logits: (batch, classes, any height, any width), upsampled bilinearly to the size of the labels.
        labels: class ids (batch, height, width).
        ignore_index: the label of pixels that do not count.
        class_weights: one per class.
        label_smoothing: share of a label that is spread over all classes.
        ohem_threshold: only pixels count whose class has less than this probability, or one of the lowest.
        ohem_min_kept: how many of the lowest count in any case, times the batch.
    """
    if ohem_threshold is not None:
        is_hard = _hard_pixels(logits, labels, ignore_index, ohem_threshold, ohem_min_kept * len(labels))
        labels = labels.where(is_hard, ignore_index)
    weight = None if class_weights is None else logits.new_tensor(class_weights, dtype=single_or_double(logits))

    def losses_of(logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, labels, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
        )

    return _mean_of_pixels(losses_of, logits, labels, _pixel_weights(logits, labels, ignore_index, class_weights))


def focal(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """Compute the focal loss of a softmax: the cross-entropy times (1 - probability of the class) ** gamma.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017. Arguments are those of `cross_entropy`.
    """

    def losses_of(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        # Of a probability of 1 the power of 0 has no gradient for a gamma below 1.
        wrong = (1 - (-losses).exp()).clamp(min=torch.finfo(losses.dtype).eps)
        return losses * wrong**gamma * weights

    return _mean_of_pixels(losses_of, logits, labels, _pixel_weights(logits, labels, ignore_index, class_weights))


def dice(logits: Tensor, labels: Tensor, ignore_index: int, smooth: float = 1.0) -> Tensor:
    """Compute 1 - the dice coefficient over the labeled pixels of the batch, a mean over the classes in it.

    Milletari et al., V-Net, 3DV 2016, without squares. Arguments are those of `cross_entropy`. Second derivatives
    are left out.
    """
    is_labeled, num_classes = labels != ignore_index, logits.shape[1]
    classes = labels.where(is_labeled, 0)
    weights = is_labeled.to(single_or_double(logits))
    sizes = weights.new_zeros(num_classes).index_add(0, classes.flatten(), weights.flatten())

    def sums_of(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
        """Sum probabilities by class, of the pixels of the class and of all: (2, classes)."""
        probabilities = logits.softmax(1) * weights[:, None]
        of_class = probabilities.gather(1, classes[:, None]).flatten()
        right = sizes.new_zeros(num_classes).index_add(0, classes.flatten(), of_class)
        return torch.stack([right, probabilities.sum((0, 2, 3))])

    def loss_of(sums: Tensor) -> Tensor:
        dice = (2 * sums[0] + smooth) / (sums[1] + sizes + smooth).clamp(min=_TINY)
        return _mean((1 - dice) * (sizes > 0), (sizes > 0).to(dice))

    with torch.no_grad():
        sums = torch.stack([sums_of(*band) for band in upsampled_bands(logits, (classes, weights))]).sum(0)
    slopes, loss = torch.func.grad_and_value(loss_of)(sums)
    linear = sum_over_bands(lambda *band: (slopes * sums_of(*band)).sum(), logits, (classes, weights))
    return loss + (linear - linear.detach())  # whose gradient is the loss's


def lovasz(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Compute Lovasz-softmax over the labeled pixels of the batch, a mean over the classes in it.

    Berman et al., The Lovasz-Softmax loss, CVPR 2018. Arguments are those of `cross_entropy`.
    """
    logits = logits.to(single_or_double(logits)).contiguous()
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    probabilities, truth = _by_class(logits, labels, ignore_index)
    is_there = truth.any(1)
    probabilities, truth = probabilities[is_there], truth[is_there]  # others do not count, and would be sorted
    sizes = truth.sum(1, keepdim=True)
    errors, order = (truth - probabilities).abs().sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    jaccard = 1 - (sizes - truth.cumsum(1)) / (sizes + (1 - truth).cumsum(1)).clamp(min=1)
    steps = jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
    return (errors * steps).sum() / max(len(errors), 1)


def boundary(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    radius: int = 3,
    boundary_weight: float = 5.0,
) -> Tensor:
    """Compute a cross-entropy in which a pixel counts `boundary_weight` if another class is within `radius` pixels.

    Arguments are those of `cross_entropy`; distances are the larger of the horizontal and the vertical one.
    """
    weights = _pixel_weights(logits, labels, ignore_index, class_weights)
    weights = weights * torch.where(_is_near_border(labels, ignore_index, radius), boundary_weight, 1.0)

    def losses_of(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none") * weights

    return _mean_of_pixels(losses_of, logits, labels, weights)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "boundary": boundary,
}
_TINY = torch.finfo(torch.float32).tiny


def _mean_of_pixels(losses_of: Callable[..., Tensor], logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Divide the losses of all pixels, weighted, by the sum of the weights.

    Args:
        losses_of: returns the losses of a band, of its logits, labels and weights.
        logits: (batch, classes, any height, any width).
        labels: (batch, height, width).
        weights: likewise.
    """
    total = sum_over_bands(lambda *band: losses_of(*band).sum(), logits, (labels, weights))
    return _mean(total, weights)


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Divide a sum by another, of weights, which may be 0 as the first then is."""
    return losses.sum() / weights.sum().clamp(min=_TINY)


def _pixel_weights(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Sequence[float] | None) -> Tensor:
    """Return what each pixel counts: the weight of its class, by default 1, and 0 where there is none."""
    is_labeled, dtype = labels != ignore_index, single_or_double(logits)
    if class_weights is None:
        return is_labeled.to(dtype)
    return logits.new_tensor(class_weights, dtype=dtype)[labels.where(is_labeled, 0)] * is_labeled


@torch.no_grad()
def _hard_pixels(logits: Tensor, labels: Tensor, ignore_index: int, threshold: float, min_kept: int) -> Tensor:
    """Find the labeled pixels whose class has less than a probability, or one of the lowest (OHEM, as in mmseg)."""
    is_labeled = labels != ignore_index
    bands = upsampled_bands(logits, (labels.where(is_labeled, 0),))
    losses = [F.cross_entropy(of_band, classes, reduction="none") for of_band, classes in bands]
    probabilities = (-torch.cat(losses, dim=1)).exp()
    lowest = probabilities[is_labeled].sort().values
    if len(lowest):
        threshold = max(threshold, float(lowest[min(min_kept, len(lowest)) - 1]))
    return is_labeled & (probabilities <= threshold)


def _by_class(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return probabilities and ones for the class of a pixel, (classes, pixels); 0 both where there is none."""
    is_labeled = (labels != ignore_index)[:, None]
    probabilities = logits.softmax(1) * is_labeled
    truth = torch.zeros_like(probabilities).scatter_(1, labels[:, None].where(is_labeled, 0), 1.0) * is_labeled
    return probabilities.transpose(0, 1).flatten(1), truth.transpose(0, 1).flatten(1)


def _is_near_border(labels: Tensor, ignore_index: int, radius: int) -> Tensor:
    """Return whether the square around a pixel has more than one class."""
    is_labeled = labels != ignore_index
    ids, side = labels.float(), 2 * radius + 1
    highest = F.max_pool2d(ids.where(is_labeled, -torch.inf), side, stride=1, padding=radius)
    lowest = -F.max_pool2d((-ids).where(is_labeled, -torch.inf), side, stride=1, padding=radius)
    return highest > lowest
