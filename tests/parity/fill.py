"""Weights, images and label maps that are functions of a name: what the goldens were computed with."""

import json
import lzma
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch


KEYS_FILE = Path(__file__).parents[1] / "conversion" / "data" / "official_keys.json.xz"

# Buffers that hold constants. None of them enters the model: poisoned, they would show if one did.
CONSTANTS = (
    "num_batches_tracked",
    "attention_biases",
    "attention_bias_idxs",
    "attention_bias_idxs_seg",
    "relative_position_index",
    "hamming_lowpass",
    "hamming_highpass",
    "init_pos",
)


def generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def weight(name: str, shape: list[int]) -> np.ndarray:
    """The official parameter or running statistic `name`, float32, such that every part of a model matters."""
    x = generator(name).standard_normal(shape).astype(np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        x = 1 + 0.3 * np.abs(x)
    elif leaf == "running_mean":
        x = 0.1 * x
    elif leaf.startswith("layer_scale"):
        x = 0.4 + 0.1 * x
    elif leaf in ("attention_biases_seg", "relative_position_bias_table", "cls_repr"):
        x = 0.5 * x
    elif name.endswith("talking_head2.bias"):
        x = 1e-3 * x
    elif x.ndim > 1:
        x = x / np.sqrt(x[0].size)
    else:
        x = 1 + 0.1 * x if leaf == "weight" else 0.1 * x
    return x.astype(np.float32)


@cache
def official_keys() -> dict[str, dict[str, tuple[str, list[int]]]]:
    """Preset -> key -> (dtype, shape) of the official state dict."""
    return json.loads(lzma.decompress(KEYS_FILE.read_bytes()))


def official_state_dict(preset: str) -> dict[str, torch.Tensor]:
    """A checkpoint of `preset`."""
    state_dict = {}
    for key, (dtype, shape) in official_keys()[preset].items():
        if key.endswith(CONSTANTS):
            state_dict[key] = torch.full(shape, 12345, dtype=getattr(torch, dtype))
        else:
            state_dict[key] = torch.from_numpy(weight(key, shape))
    return state_dict


def image(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normalized images (batch, 3, height, width), float32: a 9 x 9 grid of colors, interpolated, and noise."""
    rng = generator(f"image:{name}")
    grid = rng.standard_normal((*shape[:2], 9, 9))
    y, x = (np.linspace(0, 8, length) for length in shape[2:])
    top, left = np.minimum(y.astype(int), 7)[:, None], np.minimum(x.astype(int), 7)
    down, right = y[:, None] - top, x - left
    smooth = (
        grid[:, :, top, left] * (1 - down) * (1 - right)
        + grid[:, :, top, left + 1] * (1 - down) * right
        + grid[:, :, top + 1, left] * down * (1 - right)
        + grid[:, :, top + 1, left + 1] * down * right
    )
    return (1.2 * smooth + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def rgb_image(name: str, height: int, width: int) -> np.ndarray:
    """A photo (height, width, 3), uint8."""
    normalized = image(f"rgb:{name}", (1, 3, height, width))[0].transpose(1, 2, 0)
    return np.clip(128 + 52 * normalized, 0, 255).round().astype(np.uint8)


def label_maps(name: str, shape: tuple[int, int, int], num_classes: int) -> np.ndarray:
    """Label maps (batch, height, width), int64: 16 x 16 blocks of a class each; 255 at about every 20th pixel."""
    rng = generator(f"labels:{name}")
    _, height, width = shape
    blocks = rng.integers(0, num_classes, size=(shape[0], 16, 16))
    labels = (
        blocks.repeat(-(-height // 16), axis=1).repeat(-(-width // 16), axis=2)[:, :height, :width].astype(np.int64)
    )
    labels[rng.random(shape) < 0.05] = 255
    return labels
