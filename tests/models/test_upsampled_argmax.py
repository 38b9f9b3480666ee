"""The label map of upsampled scores equals the plain way's, whatever the scores, the sizes and the memory."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.models import image_operations as module
from offseg_hf.models.image_operations import (
    Upsampled,
    upsampled,
    upsampled_argmax,
    upsampled_argmax_of_parts,
    upsampled_argmax_of_rows,
)


SIZES = [
    ((6, 9), (6, 9)),
    ((6, 9), (12, 18)),
    ((16, 21), (97, 131)),
    ((17, 23), (24, 25)),
    ((32, 43), (750, 1000)),
    ((40, 30), (39, 31)),
    ((40, 30), (13, 200)),
    ((40, 30), (11, 7)),
    ((1, 1), (5, 7)),
    ((1, 8), (9, 3)),
    ((7, 1), (1, 64)),
]


def noise(classes, height, width):
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(classes * height + width))


def smooth(classes, height, width):
    coarse = noise(classes, max(height // 8, 2), max(width // 8, 2)) * 3
    return F.interpolate(coarse[None], size=(height, width), mode="bicubic")[0] + 0.05 * noise(classes, height, width)


def between_winners(classes, height, width):
    """Neighbors always differ, and a class that wins at none of them wins between them."""
    scores = torch.zeros(classes, height, width)
    checkers = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    scores[0], scores[-1] = checkers, 1 - checkers
    if classes > 2:
        scores[1] = 0.6
    return scores + 1e-3 * noise(classes, height, width)


def far_apart(classes, height, width):
    """A large common part, beside which what decides is small."""
    return 1000 + smooth(classes, height, width)


def half_noise(classes, height, width):
    scores = smooth(classes, height, width)
    scores[:, height // 2 :] += 5 * noise(classes, height - height // 2, width)
    return scores


KINDS = [noise, smooth, between_winners, far_apart, half_noise]


def require_same(label_map, scores, size):
    assert label_map.dtype == torch.int64 and tuple(label_map.shape) == size
    all_scores = F.interpolate(scores.float()[None], size=size, mode="bilinear", align_corners=False)[0]
    best, plain = all_scores.max(dim=0)
    given = all_scores.gather(0, label_map[None])[0]
    rounding = 4 * torch.finfo(torch.float32).eps * scores.float().abs().max()
    assert (best - given).max() <= rounding  # what differs ties, to the rounding of float32
    assert (label_map != plain).float().mean() <= 1e-3


@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_equals_argmax_of_upsampled_scores(old, new, kind, classes):
    scores = kind(classes, *old)
    require_same(upsampled_argmax(scores, new), scores, new)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_compared_in_float32(kind, dtype):
    scores = kind(11, 16, 21).to(dtype)
    require_same(upsampled_argmax(scores, (97, 131)), scores, (97, 131))


@pytest.mark.parametrize("kind", [noise, smooth])
def test_a_thousand_classes(kind):
    scores = kind(1000, 12, 16)
    require_same(upsampled_argmax(scores, (60, 81)), scores, (60, 81))


@pytest.mark.parametrize("band_values", [1, 11 * 23, 11 * 23 * 5, 2**22])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(81, 100), (9, 250), (17, 23), (10, 11)])
def test_memory_changes_nothing(size, kind, band_values):
    scores = kind(11, 17, 23)
    read = []

    def read_rows(top, bottom):
        read.append((top, bottom))
        return scores[:, top:bottom]

    label_map = upsampled_argmax_of_rows(read_rows, scores.shape, size, scores.device, band_values)
    require_same(label_map, scores, size)
    assert read == sorted(read)
    most_rows = max(1, band_values // (11 * 23)) + 1
    assert all(bottom - top <= most_rows for top, bottom in read)


@pytest.mark.parametrize("part_size", [(1, 1), (5, 7), (100, 2)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(81, 100), (9, 250), (17, 23), (3, 2)])
def test_parts_change_nothing(size, kind, part_size):
    """Whether all classes are asked for, or those that win somewhere in a part."""
    scores = kind(11, 17, 23)
    read = []

    def read_part(rows, columns, classes):
        part = scores[:, rows, columns]
        read.append((len(part) if classes is None else len(classes), *part.shape[1:]))
        return part if classes is None else part[classes]

    def contenders(rows, places):
        parts = [scores[:, rows, columns] for columns in places]
        could_win = [part.amax(dim=(1, 2)) >= part.amin(dim=(1, 2)).max() for part in parts]
        return [could.nonzero()[:, 0] for could in could_win]

    arguments = (scores.shape[1:], size, scores.device, part_size)
    require_same(upsampled_argmax_of_parts(read_part, *arguments), scores, size)
    require_same(upsampled_argmax_of_parts(read_part, *arguments, contenders), scores, size)
    assert all(rows <= part_size[0] + 1 and columns <= part_size[1] + 1 for _, rows, columns in read)
    assert min(number for number, _, _ in read) > 1  # where one class alone can win, nothing is computed


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_part_of_upsampled_scores(old, new):
    scores = smooth(5, *old)
    whole, some = upsampled(scores, new), torch.tensor([0, 3])
    part = Upsampled(scores, new)
    middle = slice(new[0] // 3, new[0] // 3 + (new[0] + 1) // 2), slice(new[1] // 4, new[1] // 4 + (new[1] + 1) // 2)
    for rows, columns in (middle, (middle[0], slice(0, new[1])), (slice(0, new[0]), slice(new[1] - 1, new[1]))):
        torch.testing.assert_close(part.part(rows, columns), whole[:, rows, columns], rtol=0, atol=1e-5)
        torch.testing.assert_close(part.part(rows, columns, some), whole[some][:, rows, columns], rtol=0, atol=1e-5)


def test_the_first_of_equal_classes_wins():
    scores = smooth(11, 17, 23).mul(2).round()
    scores[7] = scores[2]
    label_map = upsampled_argmax(scores, (81, 100))
    assert 2 in label_map and 7 not in label_map
    assert not upsampled_argmax(torch.zeros(5, 4, 4), (9, 9)).any()
    assert not upsampled_argmax(torch.randn(1, 4, 4), (9, 9)).any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_layout(channels_last):
    scores = smooth(19, 32, 43)
    laid_out = scores.permute(1, 2, 0).contiguous().permute(2, 0, 1) if channels_last else scores[:, ::1]
    assert torch.equal(upsampled_argmax(laid_out, (300, 401)), upsampled_argmax(scores, (300, 401)))


def test_smooth_scores_are_not_upsampled_whole(monkeypatch):
    """What makes it fast: of smooth scores, nearly all classes are excluded before anything is upsampled."""
    whole, mixed = [], []
    fill_whole, fill_mixed = module._fill_whole, module._fill_mixed
    monkeypatch.setattr(module, "_fill_whole", lambda *a: (whole.append(1), fill_whole(*a)))
    monkeypatch.setattr(module, "_fill_mixed", lambda *a: (mixed.append(a[1].numel()), fill_mixed(*a)))
    scores = smooth(150, 64, 86)
    require_same(upsampled_argmax(scores, (375, 500)), scores, (375, 500))
    assert not whole and 0 < sum(mixed) < 0.02 * scores.numel()
    upsampled_argmax(noise(150, 16, 21), (64, 84))
    assert whole
