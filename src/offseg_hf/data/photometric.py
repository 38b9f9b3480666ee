"""mmseg's photometric distortion of uint8 pixels: brightness, contrast, saturation, hue, each in half of the images.

The official code (mmseg's PhotoMetricDistortion, on OpenCV) leaves uint8 only within a step: every step truncates, and
saturation and hue each go to OpenCV's 8-bit HSV (hue in 0..179) and back. The arithmetic here is the same, bit by bit
(all 2^24 colors and all HSV triples compared with OpenCV 4.11 and 5.0): brightness and contrast are tables of 256
entries, the way back from HSV a table over hue and saturation. One exception: OpenCV rounds instead of truncating at
the right end of rows whose width is no multiple of its vectors (32), on the way back from HSV. Here all pixels are
alike. Source: OpenCV, modules/imgproc/src/color_hsv.simd.hpp.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np


BRIGHTNESS = 32.0  # largest shift
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18  # shifts from -18 to 17: the upper end is exclusive in the official code
HUES = 180
HUE_MARGIN = 48  # hues are -30..150 before a shift, so -48..167 after it

# OpenCV's fixed point on the way to HSV: quotients are integers of 12 fractional bits.
HSV_SHIFT = 12
HSV_HALF = 1 << (HSV_SHIFT - 1)
HUE_UNIT = np.float32((HUES << HSV_SHIFT) / 6)

# By sector of the color circle, which of (v, v (1 - s), v (1 - s f), v (1 - s (1 - f))) red, green and blue are.
SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


class Distortion(NamedTuple):
    """The changes of one image, in this order; None where nothing changes.

    Args:
        before: new values of the 256 old ones, of all channels.
        saturation: new values of the 256 saturations.
        hue: shift in units of 2 degrees.
        after: as before.
    """

    before: np.ndarray | None
    saturation: np.ndarray | None
    hue: int | None
    after: np.ndarray | None


def sample_distortion(rng: np.random.Generator) -> Distortion:
    """Draw a distortion. Contrast comes before saturation and hue in half of the cases, after them otherwise."""
    before = _table(shift=rng.uniform(-BRIGHTNESS, BRIGHTNESS)) if rng.integers(2) else None
    contrast_first = rng.integers(2)
    contrast = _sample_contrast(rng) if contrast_first else None
    saturation = _table(factor=rng.uniform(*SATURATION)) if rng.integers(2) else None
    hue = int(rng.integers(-HUE, HUE)) if rng.integers(2) else None
    after = None if contrast_first else _sample_contrast(rng)
    if contrast is not None:
        before = contrast if before is None else contrast[before]
    return Distortion(before, saturation, hue, after)


def distort(pixels: np.ndarray, distortion: Distortion) -> np.ndarray:
    """Distort uint8 pixels (height, 3, width), red first; the input keeps its values."""
    pixels = _look_up(pixels, distortion.before)
    if distortion.saturation is not None:
        hue, saturation, value = _to_hsv(pixels, _saturations(distortion.saturation.tobytes()))
        pixels = hsv_to_rgb(hue, saturation, value)
    if distortion.hue is not None:
        hue, saturation, value = _to_hsv(pixels, _saturations())
        hue += distortion.hue
        pixels = hsv_to_rgb(hue, saturation, value)
    return _look_up(pixels, distortion.after)


def rgb_to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute `cv2.COLOR_RGB2HSV` of uint8 (height, 3, width).

    Returns:
        Hue in 0..179, saturation and value in 0..255, each (height, width).
    """
    hue, saturation, value = _to_hsv(pixels, _saturations())
    hue[hue < 0] += HUES
    return hue, saturation, value


def _to_hsv(pixels: np.ndarray, saturations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute hue in -30..150, around the circle, and saturation as this table has it by value and spread."""
    red, green, blue = (channel.copy() for channel in pixels.swapaxes(0, 1))  # contiguous
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    index = value.astype(np.uint16)
    index <<= 8
    index |= spread
    saturation = saturations.take(index.astype(np.intp))

    # Of equal maxima red counts before green, green before blue. Masks of all bits are faster than numpy's `where`.
    is_red = -(value == red).astype(np.int16)
    is_green = -(value == green).astype(np.int16) & ~is_red
    red, green, blue = (channel.astype(np.int16) for channel in (red, green, blue))
    twice = spread.astype(np.int16)
    twice += twice
    position = red - green
    position += twice
    position += twice
    position &= ~(is_red | is_green)
    position |= (green - blue) & is_red
    twice += blue
    twice -= red
    twice &= is_green
    position |= twice
    hue = HUE_UNIT / np.maximum(spread, 1)
    hue = np.rint(hue, out=hue).astype(np.int32)
    hue *= position
    hue += HSV_HALF
    hue >>= HSV_SHIFT
    return hue.astype(np.int16), saturation, value


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Compute `cv2.COLOR_HSV2RGB` as uint8 (height, 3, width).

    Args:
        hue: (height, width), from -`HUE_MARGIN` to 179, around the circle.
        saturation: in 0..255, (height, width).
        value: in 0..255, (height, width).
    """
    index = (hue + HUE_MARGIN).astype(np.uint16)
    index <<= 8
    index |= saturation.astype(np.uint8)
    index = index.astype(np.intp)
    brightness = value.astype(np.float32)
    brightness *= np.float32(1 / 255)
    pixels = np.empty((len(value), 3, value.shape[1]), np.uint8)
    for channel, share in enumerate(_shares()):
        color = share.take(index)
        color *= brightness
        color *= np.float32(255)
        pixels[:, channel] = color
    return pixels


def _table(factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(values, 0, 255).astype(np.uint8)


def _sample_contrast(rng: np.random.Generator) -> np.ndarray | None:
    return _table(factor=rng.uniform(*CONTRAST)) if rng.integers(2) else None


def _look_up(pixels: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    if table is None:
        return pixels
    flat = pixels.ravel()
    if flat.size % 2:
        flat = np.append(flat, flat[-1:])
    changed = _pairs(table.tobytes()).take(flat.view(np.uint16).astype(np.intp)).view(np.uint8)
    return changed[: pixels.size].reshape(pixels.shape)


@lru_cache(maxsize=2)  # an image's
def _pairs(table: bytes) -> np.ndarray:
    """Return the table for two bytes at a time, which are looked up as fast as one."""
    values = np.frombuffer(table, np.uint8).astype(np.uint16)
    return (values[:, None] << 8 | values).ravel()


@lru_cache(maxsize=2)  # that of no change, and an image's
def _saturations(table: bytes = bytes(range(256))) -> np.ndarray:
    """Return what `table` has for the saturation of each value and spread, uint8 (256 * 256)."""
    value = np.arange(256)[:, None]
    quotient = np.rint((255 << HSV_SHIFT) / np.maximum(value, 1)).astype(np.int64)
    saturation = (np.arange(256) * quotient + HSV_HALF) >> HSV_SHIFT  # a spread is no larger than its value
    return np.frombuffer(table, np.uint8).take(saturation.ravel(), mode="clip")


@cache
def _shares() -> np.ndarray:
    """Compute what share of the value red, green and blue have, float32 (3, hues * 256) by hue and saturation."""
    position = np.arange(HUES, dtype=np.float32) * np.float32(6 / HUES)
    sector = np.floor(position).astype(np.int64)
    fraction = position - sector.astype(np.float32)
    saturation = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    # OpenCV subtracts a product from 1 in one instruction, rounded once: float64 holds the product.
    weights = np.stack([np.zeros_like(fraction), np.ones_like(fraction), fraction, np.float32(1) - fraction])
    share = (1 - weights[..., None].astype(np.float64) * saturation).astype(np.float32)  # (4, hue, saturation)
    shares = np.stack([share[SECTORS[sector, channel], np.arange(HUES)] for channel in range(3)])
    return shares.take(np.arange(-HUE_MARGIN, HUES) % HUES, axis=1).reshape(3, -1)
