"""The pixels that an image processor makes of colors: training shows a model what evaluation shows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor

from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.evaluation.prediction import prepare


# No two channels are alike over these.
COLORS = ((0, 0, 0), (255, 128, 0), (0, 64, 255), (32, 224, 96))
SIDE = 64
SCALE_TOLERANCE = 1e-3  # of what a color becomes
MEAN_TOLERANCE = 0.1  # of 0..255


@dataclass(frozen=True)
class PixelArithmetic:
    """(color - mean) / std, for the channels of the color in `order`.

    Args:
        order: which of red, green and blue each channel is.
        mean: of red, green and blue, in 0..255.
        std: of red, green and blue, in 0..255.
    """

    order: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pixel_arithmetic(processor: BaseImageProcessor) -> PixelArithmetic:
    """Find out by some pictures of one color each what an image processor does to pixels, whatever its settings say.

    Raises ValueError if that is more than to scale, shift and order the channels.
    """
    made = np.array([_made_of(processor, color) for color in COLORS])
    colors = np.array(COLORS, float)
    if made.shape != colors.shape:
        raise ValueError(f"expected an image processor that gives 3 channels, got {made.shape[1]}")
    order, mean, std = [], [0.0] * 3, [1.0] * 3
    for channel in made.T:
        fits = [np.polyfit(values, channel, 1) for values in colors.T]
        errors = [np.abs(np.polyval(fit, values) - channel).max() for fit, values in zip(fits, colors.T, strict=True)]
        source = int(np.argmin(errors))
        slope, shift = fits[source]
        if errors[source] > SCALE_TOLERANCE * max(1.0, np.ptp(channel)) or slope <= 0 or source in order:
            raise ValueError(
                f"expected an image processor that scales and shifts the channels of a color, got a "
                f"{type(processor).__name__} that makes {_rounded(made[1])} of {COLORS[1]}"
            )
        order.append(source)
        mean[source], std[source] = float(-shift / slope), float(1 / slope)
    return PixelArithmetic(tuple(order), tuple(mean), tuple(std))


def require_same_pixels(transform: TrainingTransform, processor: BaseImageProcessor) -> tuple[int, ...]:
    """Raise ValueError if training would show other pixels than the image processor makes; return its channels' order.

    The transform's channels are red, green and blue: (2, 1, 0) is what makes the same of them.
    """
    found = pixel_arithmetic(processor)
    for name, expected, tolerance in (("mean", found.mean, 0), ("std", found.std, SCALE_TOLERANCE)):
        got = getattr(transform, name)
        if not np.allclose(expected, got, atol=MEAN_TOLERANCE, rtol=tolerance):
            raise ValueError(
                f"augmentation.{name}: expected what the model's image processor normalizes by, {_rounded(expected)}, "
                f"got {list(got)}: augmentation.mean={_rounded(found.mean)} augmentation.std={_rounded(found.std)} "
                "trains on the pixels that it makes"
            )
    return found.order


def _made_of(processor: BaseImageProcessor, color: tuple[int, int, int]) -> np.ndarray:
    """Find what a picture of one color becomes, channel by channel; at its edges there may be padding."""
    (view,) = prepare(Image.new("RGB", (SIDE, SIDE), color), processor)
    pixels = np.asarray(view["pixel_values"], dtype=float)  # (..., channels, height, width)
    return np.median(np.moveaxis(pixels, -3, 0).reshape(pixels.shape[-3], -1), axis=1)


def _rounded(values: Sequence[float]) -> list[float]:
    """Round numbers as a person would write them."""
    return [round(float(value), 3) + 0.0 for value in values]  # 0.0 for -0.0
