"""Label maps of windows, averaged row by row, are those of the scores that a model averages at every pixel."""

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.inference.windows import AveragedWindows
from offseg_hf.models.image_operations import sliding_windows
from offseg_hf.models.modeling_utils import sliding_window_logits


def network(crops):
    """Some scores that depend on where a window lies, as those of a network do."""
    features = F.avg_pool2d(crops, 4, ceil_mode=True)
    mixed = torch.einsum("kc,nchw->nkhw", torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), features)
    return mixed + 0.1 * crops.mean(dim=(1, 2, 3))[:, None, None, None]


@pytest.mark.parametrize("size", [(32, 32), (32, 43), (70, 95), (20, 51)])
@pytest.mark.parametrize("target", [None, (150, 203), (17, 24)])
def test_equals_averaging_at_every_pixel(size, target):
    pixel_values = F.interpolate(torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(1)), size=size)
    windows = sliding_windows(*size, 32, 21)
    canvas = sliding_window_logits(network, pixel_values, windows[None], 7)[0]
    boxes = [tuple(box) for box in windows.tolist()]
    crops = torch.stack([pixel_values[0, :, top:bottom, left:right] for top, left, bottom, right in boxes])
    averaged = AveragedWindows(network(crops), boxes, size)

    rows = torch.cat([averaged.rows(top, min(top + 7, size[0])) for top in range(0, size[0], 7)], dim=1)
    torch.testing.assert_close(rows, canvas, rtol=0, atol=1e-5)

    target = target or size
    scores = F.interpolate(canvas[None], size=target, mode="bilinear", align_corners=False)[0]
    given = scores.gather(0, averaged.label_map(target)[None])[0]
    assert (scores.amax(dim=0) - given).max() < 1e-5
    assert (averaged.label_map(target) == scores.argmax(dim=0)).float().mean() > 0.999
