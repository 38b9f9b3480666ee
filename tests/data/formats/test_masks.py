"""The rule for polygons, and run lengths, by their definitions."""

import numpy as np
import pytest

from offseg_hf.data.formats.masks import Region, decode_brush, decode_coco_rle, fill_rings, paint, read_ring
from tests.data.formats.cases import brush_rle


def filled(rings, size) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    region = fill_rings([np.asarray(ring, float) for ring in rings], size, 0)
    if region is not None:
        height, width = region.mask.shape
        mask[region.top : region.top + height, region.left : region.left + width] = region.mask
    return mask


def by_definition(ring, size) -> np.ndarray:
    """Of each center, whether a ray to the right crosses an odd number of edges; one pixel at a time."""
    mask = np.zeros(size[::-1], bool)
    for row in range(size[1]):
        for column in range(size[0]):
            x, y = column + 0.5, row + 0.5
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
                    mask[row, column] ^= True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_random_polygons(seed):
    """Crossing themselves and leaving the picture."""
    rng = np.random.default_rng(seed)
    ring = rng.uniform(-2, 14, (rng.integers(3, 9), 2))
    assert np.array_equal(filled([ring], (12, 10)), by_definition(ring, (12, 10)))


def test_neighbors_share_no_pixel_and_leave_none():
    """Triangles around a point on a center, which has edges on centers too."""
    corners = [(0, 0), (4.5, 0), (9, 0), (9, 9), (4.5, 9), (0, 9)]
    total = sum(
        filled([[(4.5, 4.5), a, b]], (9, 9)).astype(int)
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)
    )
    assert (total == 1).all()


def test_holes():
    outer, hole = [(0, 0), (6, 0), (6, 6), (0, 6)], [(2, 2), (4, 2), (4, 4), (2, 4)]
    wanted = np.ones((6, 6), bool)
    wanted[2:4, 2:4] = False
    assert np.array_equal(filled([outer, hole], (6, 6)), wanted)
    bridged = [*outer, outer[0], *hole, hole[0], outer[0]]  # as YOLO's one ring has it
    assert np.array_equal(filled([bridged], (6, 6)), wanted)


def test_half_a_pixel_is_none():
    assert not filled([[(0, 0), (3, 0), (3, 0.4), (0, 0.4)]], (3, 3)).any()
    assert filled([[(0, 0), (3, 0), (3, 0.6), (0, 0.6)]], (3, 3)).sum() == 3


def test_smaller_on_top_whatever_the_order():
    large, small = Region(0, 0, 0, np.ones((4, 4), bool)), Region(1, 1, 1, np.ones((2, 2), bool))
    for regions in ([large, small], [small, large]):
        label_map, disputed = paint(regions, (5, 4), -1)
        assert disputed == 4 and (label_map[1:3, 1:3] == 1).all() and (label_map[:, 4] == -1).all()
        assert (label_map == 0).sum() == 12


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([1, 2, 3], "x and y in turn"),
        ([0, 0, 1, 1], "three corners or more, got 2"),
        ([0, 0, 1, 1, None, 2], "x and y in turn"),
        (["a", 0, 1, 1, 2, 2], "x and y in turn"),
        (None, "x and y in turn"),
        ([0, 0, float("nan"), 1, 2, 2], "x and y in turn"),
        ([0, 0, 12.1, 1, 2, 2], r"corner \(12.1, 1\) in pixels, the photo is 10x8"),
    ],
)
def test_no_polygon(points, message):
    with pytest.raises(ValueError, match=message):
        read_ring(points, (10, 8))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 48)])
def test_brush(size):
    rng = np.random.default_rng(size)
    mask = np.where(rng.random(size[::-1]) < 0.3, 255, 0)
    mask[: size[1] // 2] = 255
    assert np.array_equal(decode_brush(brush_rle(mask), size), mask > 0)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([], "end too early"),
        ([0, 0, 0, 8, 57], "of 2 pixels, but the photo has 6"),
        (brush_rle(np.full((2, 3), 255))[:-1], "end too early"),
        ([300], "list of bytes"),
        ("text", "list of bytes"),
    ],
)
def test_no_brush(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_brush(rle, (3, 2))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], "of 7 pixels, but the photo has 6"),
        ([7, -1], "expected run lengths"),
        ("P", "end in the middle"),
        ("é", "expected compressed"),
        (None, "expected run lengths"),
    ],
)
def test_no_run_lengths(counts, message):
    with pytest.raises(ValueError, match=message):
        decode_coco_rle({"size": [2, 3], "counts": counts}, (3, 2))
    with pytest.raises(ValueError, match="run lengths of `size`"):
        decode_coco_rle({"size": [3, 2], "counts": [6]}, (3, 2))
