"""mmseg's photometric distortion of uint8 pixels: brightness, contrast, saturation, hue, each in half of the images.

The official code (mmseg's PhotoMetricDistortion, on OpenCV) leaves uint8 only within a step: every step truncates, and
saturation and hue each go to OpenCV's 8-bit HSV (hue in 0..179) and back. The arithmetic here is the same, bit by bit
(all 2^24 colors and all HSV triples compared with OpenCV 4.11 and 5.0): brightness and contrast are tables of 256
entries, the way back from HSV a table over hue and saturation. One exception: OpenCV rounds instead of truncating at
the right end of rows whose width is no multiple of its vectors (32), on the way back from HSV. Here all pixels are
alike. Source: OpenCV, modules/imgproc/src/color_hsv.simd.hpp.
"""

from functools import cache
from typing import NamedTuple

import numpy as np


BRIGHTNESS = 32.0  # largest shift
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18  # shifts from -18 to 17: the upper end is exclusive in the official code
HUES = 180

# OpenCV's fixed point on the way to HSV: quotients are integers of 12 fractional bits.
HSV_SHIFT = 12
HSV_HALF = 1 << (HSV_SHIFT - 1)

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
        hue, saturation, value = rgb_to_hsv(pixels)
        pixels = hsv_to_rgb(hue, distortion.saturation.take(saturation), value)
    if distortion.hue is not None:
        hue, saturation, value = rgb_to_hsv(pixels)
        shifted = (np.arange(HUES, dtype=np.int32) + distortion.hue) % HUES
        pixels = hsv_to_rgb(shifted.take(hue), saturation, value)
    return _look_up(pixels, distortion.after)


def rgb_to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute `cv2.COLOR_RGB2HSV` of uint8 (height, 3, width).

    Returns:
        Hue in 0..179, saturation and value in 0..255, each (height, width).
    """
    saturation_of, hue_of = _quotients()
    value = pixels.max(axis=1)
    spread = value - pixels.min(axis=1)
    red, green, blue = pixels.astype(np.int16).swapaxes(0, 1)
    twice = spread.astype(np.int16) * np.int16(2)
    # Of equal maxima red counts before green, green before blue.
    position = np.where(value == pixels[:, 1], blue - red + twice, red - green + twice * np.int16(2))
    position = np.where(value == pixels[:, 0], green - blue, position)
    saturation = (spread * saturation_of.take(value) + HSV_HALF) >> HSV_SHIFT
    hue = (position * hue_of.take(spread) + HSV_HALF) >> HSV_SHIFT
    hue += (hue < 0) * np.int32(HUES)
    return hue, saturation, value


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Compute `cv2.COLOR_HSV2RGB` of integers, each (height, width), as uint8 (height, 3, width)."""
    share = _shares()
    index = hue * 256 + saturation
    brightness = value.astype(np.float32) * np.float32(1 / 255)
    pixels = np.empty((len(value), 3, value.shape[1]), np.uint8)
    for channel in range(3):
        color = share[channel].take(index)
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
    # bytes.translate looks bytes up three times faster than numpy, which turns them into 64-bit indices first.
    return np.frombuffer(pixels.tobytes().translate(table.tobytes()), np.uint8).reshape(pixels.shape)


@cache
def _quotients() -> tuple[np.ndarray, np.ndarray]:
    """Compute 255 / value and 180 / (6 spread) in fixed point, by value and by spread; 0 where those are 0."""
    divisor = np.arange(1, 256)
    saturation, hue = (np.rint((top << HSV_SHIFT) / (parts * divisor)) for top, parts in ((255, 1.0), (HUES, 6.0)))
    return np.concatenate([[0], saturation]).astype(np.int32), np.concatenate([[0], hue]).astype(np.int32)


@cache
def _shares() -> np.ndarray:
    """Compute what share of the value red, green and blue have, float32 (3, 180 * 256) by hue and saturation."""
    position = np.arange(HUES, dtype=np.float32) * np.float32(6 / HUES)
    sector = np.floor(position).astype(np.int64)
    fraction = position - sector.astype(np.float32)
    saturation = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    # OpenCV subtracts a product from 1 in one instruction, rounded once: float64 holds the product.
    weights = np.stack([np.zeros_like(fraction), np.ones_like(fraction), fraction, np.float32(1) - fraction])
    share = (1 - weights[..., None].astype(np.float64) * saturation).astype(np.float32)  # (4, hue, saturation)
    return np.stack([share[SECTORS[sector, channel], np.arange(HUES)].ravel() for channel in range(3)])
