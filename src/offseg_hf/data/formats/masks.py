"""Shapes and run lengths as pixels.

The rule for polygons, the same for all formats: coordinates are continuous, (0, 0) is the upper left corner of the
upper left pixel. So the pixel in column x and row y has its center at (x + 0.5, y + 0.5), and it belongs to a polygon
if its center lies inside. Inside is even-odd: what a polygon encloses twice is a hole, and a bridge of no width to a
hole (as YOLO's one ring needs it) changes nothing. A center exactly on an edge belongs to the polygon on its right, or
below: of two polygons that share an edge, every pixel gets exactly one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


TOLERANCE = 2.0  # pixels: so far outside of the photo a point may lie; it is a rounding then, and the shape is cut


@dataclass(frozen=True)
class Region:
    """The pixels of one annotated shape.

    Attributes:
        class_id: index of its class, or `annotations.VOID`.
        top: row of the upper left corner of `mask` in the photo.
        left: column of it.
        mask: (height, width) bool, the part of the photo around the shape.
    """

    class_id: int
    top: int
    left: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Return the number of its pixels."""
        return int(np.count_nonzero(self.mask))


def read_ring(points: object, size: tuple[int, int], scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Return the corners of a polygon in pixels.

    Args:
        points: x and y of each, in a flat list or in pairs.
        size: (width, height) of the photo.
        scale: (x, y) pixels of a unit: the size for coordinates in 0..1, a hundredth of it for percent.

    Returns:
        (corners, 2) of float64.

    Raises:
        ValueError: these are no numbers, fewer than three corners, or some are outside of the photo.
    """
    try:
        ring = np.asarray(points, np.float64)
        ring = ring.reshape(-1, 2) if ring.ndim == 1 else ring
    except (TypeError, ValueError):
        raise ValueError("expected a polygon of x and y in turn, got something else") from None
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise ValueError("expected a polygon of x and y in turn, got something else")
    if len(ring) < 3:
        raise ValueError(f"expected a polygon of three corners or more, got {len(ring)}")
    ring = ring * scale
    outside = (ring < -TOLERANCE) | (ring > np.asarray(size) + TOLERANCE)
    if outside.any():
        x, y = ring[outside.any(axis=1)][0]
        raise ValueError(
            f"a polygon lies outside of the photo: corner ({x:.6g}, {y:.6g}) in pixels, the photo is "
            f"{size[0]}x{size[1]}; it may be another photo's, or in another unit"
        )
    return ring


def fill_rings(rings: Sequence[np.ndarray], size: tuple[int, int], class_id: int) -> Region | None:
    """Return the pixels whose centers an odd number of rings encloses; None if there is none.

    Args:
        rings: of each (corners, 2) x and y in pixels.
        size: (width, height) of the photo, where the shape is cut.
        class_id: of the region.
    """
    points = np.concatenate(rings)
    left, top = (int(value) for value in np.clip(np.ceil(points.min(axis=0) - 0.5), 0, size))
    right, bottom = (int(value) for value in np.clip(np.ceil(points.max(axis=0) - 0.5), 0, size))
    if right <= left or bottom <= top:
        return None
    crossings = np.zeros((bottom - top, right - left + 1), np.uint8)  # of the scan line before this center, modulo 2
    for ring in rings:
        ends = np.roll(ring, -1, axis=0)
        upward = (ring[:, 1] > ends[:, 1])[:, None]  # from above to below, so that shared edges are computed alike
        upper, lower = np.where(upward, ends, ring), np.where(upward, ring, ends)
        first = np.clip(np.ceil(upper[:, 1] - 0.5), top, bottom).astype(np.int64)
        counts = np.clip(np.ceil(lower[:, 1] - 0.5), top, bottom).astype(np.int64) - first
        edges = np.repeat(np.arange(len(ring)), counts)
        rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
        (x0, y0), (x1, y1) = upper[edges].T, lower[edges].T
        x = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
        columns = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
        np.add.at(crossings, (rows - top, columns - left), 1)
    mask = np.cumsum(crossings, axis=1, dtype=np.uint8)[:, :-1] % 2 == 1  # of 8 bits: what overflows is even
    return Region(class_id, top, left, mask) if mask.any() else None


def crop(mask: np.ndarray, class_id: int, top: int = 0, left: int = 0) -> Region | None:
    """Return the region of a mask; None if it has no pixel.

    Args:
        mask: (height, width) bool.
        class_id: of the region.
        top: row of the mask's upper left corner in the photo.
        left: column of it.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return Region(class_id, top + int(rows[0]), left + int(columns[0]), part)


def unite(regions: Sequence[Region]) -> Region | None:
    """Return the region of all pixels of several of one class; None if there is none."""
    if len(regions) < 2:
        return regions[0] if regions else None
    top, left = min(region.top for region in regions), min(region.left for region in regions)
    bottom = max(region.top + region.mask.shape[0] for region in regions)
    right = max(region.left + region.mask.shape[1] for region in regions)
    mask = np.zeros((bottom - top, right - left), bool)
    for region in regions:
        _part(mask, region, top, left)[region.mask] = True
    return Region(regions[0].class_id, top, left, mask)


def paint(regions: Sequence[Region], size: tuple[int, int], uncovered: int) -> tuple[np.ndarray, int]:
    """Return the class of each pixel, and how many pixels more than one class claims.

    Of what overlaps, the smaller area is on top (a rider on a horse on a meadow); of equal ones, the later.

    Args:
        regions: in the order of the file.
        size: (width, height) of the photo.
        uncovered: the value of pixels in no region.

    Returns:
        (height, width) int32, and the number of disputed pixels.
    """
    label_map = np.full(size[::-1], uncovered, np.int32)
    disputed = np.zeros(size[::-1], bool)
    for region in sorted(regions, key=lambda region: -region.area):
        part = _part(label_map, region)
        _part(disputed, region)[:] |= region.mask & (part != uncovered) & (part != region.class_id)
        part[region.mask] = region.class_id
    return label_map, int(np.count_nonzero(disputed))


def _part(array: np.ndarray, region: Region, top: int = 0, left: int = 0) -> np.ndarray:
    """Return the part of an array, whose corner is there, that a region is of."""
    height, width = region.mask.shape
    return array[region.top - top :, region.left - left :][:height, :width]


# -- run lengths -----------------------------------------------------------------------------------------------------


def decode_coco_rle(segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of COCO's run lengths: `counts` as a list, or compressed in a text; down the columns.

    Args:
        segmentation: with `counts` and `size` [height, width].
        size: (width, height) of the photo.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: these are no run lengths, or those of another size.
    """
    counts = segmentation.get("counts")
    if segmentation.get("size") != [size[1], size[0]]:
        raise ValueError(
            f"run lengths of `size` (height, width) {segmentation.get('size')}, but the photo is {size[0]}x{size[1]}"
        )
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("expected run lengths as `counts`, got something else")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels, but the photo has {size[0] * size[1]}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size).T


def _uncompressed(text: str) -> list[int]:
    """COCO's LEB128 in ASCII: five bits a character; from the fourth number on, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError("expected compressed run lengths as `counts`, got something else")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the compressed run lengths end in the middle of a number")
    return counts


def decode_brush(rle: object, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of Label Studio's brush: bytes of RGBA in run lengths of its own, of which alpha counts.

    Args:
        rle: a list of bytes as integers.
        size: (width, height) of the photo.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: these are no run lengths, or those of another size.
    """
    try:
        data = bytes(rle)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError("expected brush run lengths as a list of bytes, got something else") from None
    position = 8 * len(data)  # bits that are left

    def read(count: int) -> int:
        nonlocal position
        position -= count
        if position < 0:
            raise ValueError("the brush run lengths end too early")
        start = len(data) - (position + count + 7) // 8
        window = int.from_bytes(data[start : len(data) - position // 8])
        return window >> position % 8 & (1 << count) - 1

    total = read(32)
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"brush run lengths of {total // 4} pixels, but the photo has {size[0] * size[1]}")
    word = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeats = read(1)
        end = done + 1 + read(lengths[read(2)])
        if end > total:
            raise ValueError("the brush run lengths go beyond the photo")
        if repeats:
            values[done:end] = min(read(word), 255)
        else:
            values[done:end] = [min(read(word), 255) for _ in range(end - done)]
        done = end
    return values.reshape(size[1], size[0], 4)[..., 3] > 0


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return a mask (height, width) bool as Label Studio's brush: what `decode_brush` reads."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=len(flat))  # of RGBA, whose channels are alike
    sizes = (3, 4, 8, 16)  # bits of a length; longer runs are divided
    bits = [f"{4 * len(flat):032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        while length:
            part = min(length, 1 << sizes[-1])
            which = next(index for index, size in enumerate(sizes) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{sizes[which]}b}{255 * value:08b}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))
