"""Label maps of windows, averaged row by row, are those of the scores that a model averages at every pixel."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.inference.windows import AveragedWindows, label_maps_of_windows
from offseg_hf.models.image_operations import sliding_windows
from offseg_hf.models.modeling_utils import sliding_window_logits


def network(crops):
    """Some scores that depend on where a window lies, as those of a network do."""
    features = F.avg_pool2d(crops, 4, ceil_mode=True)
    mixed = torch.einsum("kc,nchw->nkhw", torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), features)
    return mixed + 0.1 * crops.mean(dim=(1, 2, 3))[:, None, None, None]


def pictures(number, height, width):
    coarse = torch.randn(number, 3, 5, 6, generator=torch.Generator().manual_seed(number))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


@pytest.mark.parametrize("size", [(32, 32), (32, 43), (70, 95), (20, 51), (33, 65)])
@pytest.mark.parametrize("target", [None, (150, 203), (17, 24)])
def test_equals_averaging_at_every_pixel(size, target):
    pixel_values = pictures(1, *size)
    windows = sliding_windows(*size, 32, 21)[None]
    canvas = sliding_window_logits(network, pixel_values, windows, 7)
    target = target or size
    scores = F.interpolate(canvas, size=target, mode="bilinear", align_corners=False)[0]
    (label_map,) = label_maps_of_windows(network, pixel_values, windows, torch.tensor([size]), [target])
    given = scores.gather(0, label_map[None])[0]
    assert (scores.amax(dim=0) - given).max() < 1e-5
    assert (label_map == scores.argmax(dim=0)).float().mean() > 0.999


def test_rows_are_those_of_the_canvas():
    pixel_values, windows = pictures(1, 70, 95), sliding_windows(70, 95, 32, 21)
    canvas = sliding_window_logits(network, pixel_values, windows[None], 7)[0]
    image = AveragedWindows((70, 95))
    for top, left, bottom, right in windows.tolist():
        crop = pixel_values[..., top:bottom, left:right]
        image.add(slice(top, bottom), slice(left, right), network(crop)[0])
    rows = torch.cat([image.rows(top, min(top + 7, 70)) for top in range(0, 70, 7)], dim=1)
    torch.testing.assert_close(rows, canvas, rtol=0, atol=1e-5)


def test_images_of_a_batch_have_their_own_sizes_and_windows():
    """What lies in the padding, at the right and the bottom, reaches no label map."""
    pixel_values = pictures(2, 64, 96)
    pixel_values[0, :, 33:], pixel_values[0, :, :, 41:] = 1e3, 1e3
    few = F.pad(sliding_windows(36, 44, 32, 21), (0, 0, 0, len(sliding_windows(64, 96, 32, 21)) - 4))
    windows = torch.stack([few, sliding_windows(64, 96, 32, 21)])
    sizes, targets = torch.tensor([[33, 41], [64, 96]]), [(66, 82), (64, 96)]
    batch = label_maps_of_windows(network, pixel_values, windows, sizes, targets)
    canvas = sliding_window_logits(network, pixel_values, windows, 7)
    for label_map, scores, size, target in zip(batch, canvas, sizes.tolist(), targets, strict=True):
        scores = scores[:, : size[0], : size[1]]
        scores = F.interpolate(scores[None], size=target, mode="bilinear", align_corners=False)[0]
        assert (label_map == scores.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("kind", ["smooth", "steep", "noise", "constant"])
@pytest.mark.parametrize("target", [(60, 91), (149, 203), (31, 40)])
def test_classes_that_cannot_win_change_nothing_when_left_out(kind, target, monkeypatch):
    """Of 40 classes a few win anywhere; the others are not even interpolated, and no label differs."""
    generator = torch.Generator().manual_seed(len(kind))
    size, steepness = (60, 91), {"steep": 30.0, "constant": 0.0}.get(kind, 1.0)
    coarse = steepness * torch.randn(1, 40, 4, 5, generator=generator)
    scores = F.interpolate(coarse, size=(15, 23), mode="bicubic")[0]
    if kind == "noise":
        scores = torch.randn(40, 15, 23, generator=generator)
    scores[6:] -= 4.0 * (1 + steepness)
    image = AveragedWindows(size)
    for top, left, bottom, right in sliding_windows(*size, 32, 21).tolist():
        part = scores[:, top // 4 : -(-bottom // 4), left // 4 : -(-right // 4)]
        crop = F.interpolate(part[None], size=(8, 8), mode="bilinear")[0]
        image.add(slice(top, bottom), slice(left, right), crop + 0.1 * torch.randn(40, 1, 1, generator=generator))
    asked, part = [], AveragedWindows.part
    monkeypatch.setattr(AveragedWindows, "part", lambda self, *args: asked.append(args[2]) or part(self, *args))
    label_map = image.label_map(target)
    monkeypatch.undo()
    assert max(len(classes) for classes in asked) <= 10
    everything = torch.cat([image.rows(top, min(top + 9, 60)) for top in range(0, 60, 9)], dim=1)
    expected = F.interpolate(everything[None], size=target, mode="bilinear")[0]
    given = expected.gather(0, label_map[None])[0]
    torch.testing.assert_close(given, expected.amax(dim=0), rtol=0, atol=1e-5 * max(1.0, steepness))


def test_what_is_not_a_number_leaves_no_class_out():
    scores = torch.randn(40, 8, 8, generator=torch.Generator().manual_seed(0))
    scores[3, 5, 5] = torch.nan
    image = AveragedWindows((32, 32))
    image.add(slice(0, 32), slice(0, 32), scores)
    assert torch.equal(image.label_map((32, 32)), image.rows(0, 32).max(dim=0).indices)
