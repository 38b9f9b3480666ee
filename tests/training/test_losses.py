"""The losses against the same written plainly in numpy, pixel by pixel, and their gradients."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from offseg_hf.models.modeling_utils import sum_over_bands, upsampled_bands
from offseg_hf.training import losses
from offseg_hf.training.losses import LOSSES, build_loss
from offseg_hf.training.recipe import LOSS_SETTINGS, LossRecipe
from tests.sizes import sizes_of_results


IGNORED = 9
CLASSES = 4
# Settings of each loss that are tried; the first of each kind is what it is without any.
CASES = [
    ("cross_entropy", {}),
    ("cross_entropy", {"class_weights": (0.5, 1.0, 2.0, 0.0)}),
    ("cross_entropy", {"label_smoothing": 0.2, "class_weights": (0.5, 1.0, 2.0, 0.25)}),
    ("cross_entropy", {"ohem_threshold": 0.2, "ohem_min_kept": 1}),
    ("cross_entropy", {"ohem_threshold": 0.01, "ohem_min_kept": 7}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "class_weights": (0.5, 1.0, 2.0, 0.25)}),
    ("dice", {}),
    ("dice", {"smooth": 0.0}),
    ("lovasz", {}),
    ("boundary", {}),
    ("boundary", {"radius": 1, "boundary_weight": 3.0, "class_weights": (0.5, 1.0, 2.0, 0.25)}),
]
every_case = pytest.mark.parametrize(
    ("kind", "settings"), CASES, ids=[f"{kind} {' '.join(settings)}".strip() for kind, settings in CASES]
)


def sample(size: tuple[int, int] = (7, 9), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, and label maps of blocks with void pixels, in which class 3 is not."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, CLASSES, *size, generator=generator, dtype=torch.float64)
    blocks = torch.randint(3, (2, 2, 3), generator=generator).repeat_interleave(4, 1).repeat_interleave(3, 2)
    labels = blocks[:, : size[0], : size[1]].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.15] = IGNORED
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def pixels_of(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[tuple[int, int, int], int, np.ndarray]]:
    """The place, class and probabilities of every labeled pixel."""
    return [
        (place, int(label), softmax(logits[place[0], :, place[1], place[2]].numpy()))
        for place, label in np.ndenumerate(labels.numpy())
        if label != IGNORED
    ]


def reference(kind: str, logits: torch.Tensor, labels: torch.Tensor, **settings) -> float:
    pixels, number = pixels_of(logits, labels), settings.get
    weights = settings.get("class_weights") or [1.0] * CLASSES
    if kind == "cross_entropy":
        smoothing, threshold = number("label_smoothing", 0.0), settings.get("ohem_threshold")
        if threshold is not None:
            lowest = sorted(p[c] for _, c, p in pixels)
            bound = max(threshold, lowest[min(settings["ohem_min_kept"] * len(labels), len(lowest)) - 1])
            pixels = [(place, c, p) for place, c, p in pixels if p[c] <= bound]
        total = 0.0
        for _, c, p in pixels:
            target = np.full(CLASSES, smoothing / CLASSES)
            target[c] += 1 - smoothing
            total += sum(-target[k] * weights[k] * math.log(p[k]) for k in range(CLASSES))
        return total / sum(weights[c] for _, c, _ in pixels)
    if kind == "focal":
        total = sum(weights[c] * (1 - p[c]) ** number("gamma", 2.0) * -math.log(p[c]) for _, c, p in pixels)
        return total / sum(weights[c] for _, c, _ in pixels)
    if kind == "boundary":
        total = count = 0.0
        radius = number("radius", 3)
        for (image, y, x), c, p in pixels:
            around = labels[image, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].tolist()
            others = {label for row in around for label in row} - {IGNORED, c}
            weight = weights[c] * (number("boundary_weight", 5.0) if others else 1.0)
            total, count = total - weight * math.log(p[c]), count + weight
        return total / count
    present = sorted({c for _, c, _ in pixels})
    if kind == "dice":
        smooth = number("smooth", 1.0)
        scores = []
        for k in present:
            both = sum(p[k] for _, c, p in pixels if c == k)
            size = sum(p[k] for _, _, p in pixels) + sum(c == k for _, c, _ in pixels)
            scores.append(1 - (2 * both + smooth) / (size + smooth))
        return float(np.mean(scores))
    of_classes = []
    for k in present:  # the Lovasz extension by its definition: the loss of sets that grow by the largest errors
        errors = sorted(((1 - p[k] if c == k else p[k], c == k) for _, c, p in pixels), reverse=True)
        size = sum(is_k for _, is_k in errors)
        total, before, missed, wrong = 0.0, 0.0, 0, 0
        for error, is_k in errors:
            missed, wrong = missed + is_k, wrong + (not is_k)
            jaccard = (missed + wrong) / (size + wrong)  # 1 - intersection / union, with these mistaken
            total, before = total + error * (jaccard - before), jaccard
        of_classes.append(total)
    return float(np.mean(of_classes))


def test_every_loss_is_tried():
    assert {kind for kind, _ in CASES} == LOSSES.keys() == LOSS_SETTINGS.keys()
    tried = {(kind, name) for kind, settings in CASES for name in settings}
    assert tried == {(kind, name) for kind, names in LOSS_SETTINGS.items() for name in names}


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_values(kind, settings, seed):
    logits, labels = sample(seed=seed)
    loss = LOSSES[kind](logits, labels, IGNORED, **settings)
    assert float(loss) == pytest.approx(reference(kind, logits, labels, **settings), rel=1e-9)


@every_case
def test_gradients(kind, settings):
    logits, labels = sample(size=(4, 5))
    assert torch.autograd.gradcheck(lambda x: LOSSES[kind](x, labels, IGNORED, **settings), logits.requires_grad_())


@pytest.fixture
def bands_of_two_rows(monkeypatch):
    """Of a batch of two, up to 9 pixels wide."""
    for function in (sum_over_bands, upsampled_bands):
        monkeypatch.setattr(losses, function.__name__, partial(function, band_values=2 * CLASSES * 9 * 2))


@every_case
@pytest.mark.parametrize("size", [(3, 5), (7, 9), (14, 4)])
def test_bands_of_smaller_and_larger_logits(request, kind, settings, size):
    """Value and gradient are those of logits that are upsampled whole."""
    (logits, _), (_, labels) = sample(size, seed=1), sample()
    logits.requires_grad_()
    whole = torch.nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    expected = LOSSES[kind](whole, labels, IGNORED, **settings)
    request.getfixturevalue("bands_of_two_rows")
    loss = LOSSES[kind](logits, labels, IGNORED, **settings)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@every_case
def test_gradients_of_bands(bands_of_two_rows, kind, settings):
    (logits, _), (_, labels) = sample((3, 4)), sample()
    assert torch.autograd.gradcheck(lambda x: LOSSES[kind](x, labels, IGNORED, **settings), logits.requires_grad_())


@pytest.mark.parametrize("kind", sorted(LOSSES.keys() - {"lovasz"}))
def test_all_classes_at_all_pixels_are_never_there(bands_of_two_rows, kind):
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    labels = torch.randint(CLASSES, (2, 64, 9))
    with sizes_of_results() as sizes:
        loss = LOSSES[kind](logits, labels, IGNORED)
    loss.backward()
    assert max(sizes) <= max(2 * CLASSES * 9 * 2, labels.numel()) and logits.grad.any()


@every_case
def test_a_batch_without_a_labeled_pixel_is_zero(kind, settings):
    logits, labels = sample()
    inputs = logits.float().requires_grad_()
    loss = build_loss([LossRecipe(kind=kind, **settings)], CLASSES, IGNORED)(inputs, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0 and torch.equal(inputs.grad, torch.zeros_like(inputs))


@every_case
def test_sure_and_right_or_wrong(kind, settings):
    """Gradients stay numbers where probabilities are 0 and 1, and right is better than wrong."""
    _, labels = sample()
    classes = labels.where(labels != IGNORED, 0)
    right = 200.0 * torch.nn.functional.one_hot(classes, CLASSES).permute(0, 3, 1, 2).float()
    values = []
    for logits in (right, right.roll(1, dims=1)):
        loss = LOSSES[kind](logits.requires_grad_(), labels, IGNORED, **settings)
        loss.backward()
        assert logits.grad.isfinite().all()
        values.append(loss.item())
        right = right.detach()
    assert values[0] < values[1]


def test_terms_add_up_at_the_size_of_the_labels():
    logits, labels = sample()
    small = logits[..., ::2, ::2].float()
    terms = [LossRecipe(kind="cross_entropy"), LossRecipe(kind="dice", weight=0.5)]
    upsampled = torch.nn.functional.interpolate(small, size=labels.shape[-2:], mode="bilinear")
    expected = LOSSES["cross_entropy"](upsampled, labels, IGNORED) + 0.5 * LOSSES["dice"](upsampled, labels, IGNORED)
    assert torch.allclose(build_loss(terms, CLASSES, IGNORED)(small, labels), expected)
    half = build_loss(terms, CLASSES, IGNORED)(small.bfloat16(), labels)
    assert half.dtype == torch.float32 and torch.allclose(half, expected, rtol=2e-2)


def test_class_weights_are_one_per_class():
    terms = [LossRecipe(kind="dice"), LossRecipe(kind="focal", class_weights=(1.0, 2.0))]
    with pytest.raises(ValueError, match=r"loss\[1\].class_weights: expected 4 weights, one per class, got 2"):
        build_loss(terms, CLASSES, IGNORED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dice", "gamma": 1.0}, "gamma=1.0 has no effect, as kind=dice does not take it: remove it"),
        ({"kind": "lovasz", "class_weights": (1.0,)}, "class_weights=.* has no effect, as kind=lovasz"),
        ({"kind": "cross_entropy", "ohem_min_kept": 5}, "ohem_min_kept=5 has no effect, as ohem_threshold is null"),
        ({"kind": "focal", "gamma": -1.0}, "a gamma of 0 or more"),
        ({"kind": "focal", "class_weights": (0.0, 0.0)}, "class_weights of 0 or more, of which one is above 0"),
        ({"kind": "focal", "weight": 0.0}, "a weight above 0"),
        ({"kind": "cross_entropy", "label_smoothing": 1.0}, "a label_smoothing in"),
    ],
)
def test_wrong_terms_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossRecipe(**settings)
