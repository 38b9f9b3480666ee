"""The arithmetic of the page, in JavaScript, against the image processor and `label_maps_of_windows`."""

import base64
import json
import shutil
import subprocess
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf.export.web.page import protocol_of
from offseg_hf.inference.windows import AveragedWindows
from offseg_hf.models.image_operations import upsampled
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor
from offseg_hf.visualization import label_image


NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node, to run the page's arithmetic without a browser")

MARGIN = 1e-5  # between the best two scores: below, the order of the sums decides

# Settings of the processor, and the sizes (height, width) of photos.
PHOTOS = [
    ({"size": {"shortest_edge": 64, "longest_edge": 256}, "window_size": 64, "window_stride": 48}, (150, 201)),
    ({"size": {"shortest_edge": 64, "longest_edge": 256}, "window_size": 64, "window_stride": 48}, (30, 23)),
    ({"size": {"shortest_edge": 64, "longest_edge": 256}, "window_size": 64, "window_stride": 40}, (20, 333)),
    ({"size": {"shortest_edge": 50}, "window_size": 48, "window_stride": 31, "size_divisor": 32}, (77, 100)),
    ({"size": {"shortest_edge": 40, "longest_edge": 90}, "window_size": None, "size_divisor": 32}, (91, 57)),
    ({"size": {"height": 45, "width": 31}, "window_size": None, "do_pad": False, "size_divisor": 8}, (90, 62)),
    ({"size": {"height": 24, "width": 33}, "window_size": 16, "window_stride": 16, "image_mean": [0.5]}, (24, 33)),
    ({"do_resize": False, "window_size": 32, "window_stride": 20, "do_normalize": False}, (33, 70)),
    ({"size": {"shortest_edge": 16, "longest_edge": 64}, "do_rescale": False, "image_std": [2.0, 3.0, 4.0]}, (1, 9)),
]
# Classes, size of the image, size of the label map, windows with the sizes of their logits, and how rough these are.
SCORES = [
    (7, (60, 90), (150, 211), [((0, 0, 60, 64), (15, 16)), ((0, 26, 60, 90), (15, 16))], "smooth"),
    (7, (60, 90), (31, 40), [((0, 0, 60, 64), (15, 16)), ((0, 26, 60, 90), (15, 16))], "smooth"),
    (5, (50, 41), (50, 41), [((0, 0, 64, 64), (16, 16))], "smooth"),
    (20, (32, 32), (97, 64), [((0, 0, 32, 32), (8, 8))], "noise"),
    (300, (16, 24), (40, 60), [((0, 0, 16, 24), (16, 24))], "noise"),
    (1, (9, 9), (20, 20), [((0, 0, 9, 9), (3, 3))], "noise"),
]


def packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def unpacked(text: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def photo(index: int, size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(index)
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


def logits_of(index: int, classes: int, shape: tuple[int, int], kind: str) -> torch.Tensor:
    noise = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(index))
    return noise if kind == "noise" else upsampled(noise[:, ::4, ::4].contiguous(), shape)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """What node computes: once for all."""
    photos = []
    for index, (settings, size) in enumerate(PHOTOS):
        rgba = np.asarray(photo(index, size).convert("RGBA"))
        protocol = protocol_of(OffSegImageProcessor(**settings))
        photos.append({"rgba": packed(rgba), "height": size[0], "width": size[1], "protocol": protocol})
    scores = [
        {
            "classes": classes,
            "size": size,
            "target": target,
            "windows": [
                {"box": box, "shape": shape, "logits": packed(logits_of(place, classes, shape, kind).numpy())}
                for place, (box, shape) in enumerate(windows)
            ],
        }
        for classes, size, target, windows, kind in SCORES
    ]
    cases = tmp_path_factory.mktemp("web") / "cases.json"
    cases.write_text(json.dumps({"photos": photos, "scores": scores}))
    folder = files("offseg_hf.export.web").joinpath("templates")
    runner = Path(__file__).with_name("protocol_cases.mjs")
    done = subprocess.run([NODE, runner, str(folder), cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", range(len(PHOTOS)))
def test_what_the_network_sees_is_what_the_processor_makes(results, index):
    """Sizes, windows, and pixels bit by bit."""
    settings, size = PHOTOS[index]
    expected = OffSegImageProcessor(**settings)(images=photo(index, size), return_tensors="pt")
    got = results["photos"][index]
    assert got["size"] == expected["image_sizes"][0].tolist()
    assert got["windows"] == expected["windows"][0].tolist()
    for (top, left, bottom, right), crop in zip(got["windows"], got["crops"], strict=True):
        pixels = unpacked(crop, np.float32, (3, bottom - top, right - left))
        assert np.array_equal(pixels, expected["pixel_values"][0, :, top:bottom, left:right].numpy())


@pytest.mark.parametrize("index", range(len(SCORES)))
def test_label_maps_are_those_of_averaged_windows(results, index):
    classes, size, target, windows, kind = SCORES[index]
    averaged = AveragedWindows(size)
    for place, ((top, left, bottom, right), shape) in enumerate(windows):
        averaged.add(slice(top, bottom), slice(left, right), logits_of(place, classes, shape, kind))
    expected = averaged.label_map(target).numpy()
    got = unpacked(results["scores"][index]["labels"], np.uint8 if classes <= 256 else np.uint16, target)
    best = upsampled(averaged.rows(0, size[0]), target).topk(min(2, classes), dim=0).values
    sure = ((best[0] - best[-1]) > MARGIN).numpy() | (classes == 1)
    assert sure.mean() > 0.999 and np.array_equal(got[sure], expected[sure])
    assert results["scores"][index]["counts"] == np.bincount(got.ravel(), minlength=classes).tolist()
    assert results["scores"][index]["progress"] == 1


@pytest.mark.parametrize("index", range(len(SCORES)))
def test_saved_label_maps_are_those_of_offseg_segment(results, index):
    """Mode, palette and ids."""
    classes, target = SCORES[index][0], SCORES[index][2]
    labels = unpacked(results["scores"][index]["labels"], np.uint8 if classes <= 256 else np.uint16, target)
    palette = [(label % 256, 7, 255 - label % 256) for label in range(classes)]
    expected, got = (
        label_image(labels, palette),
        Image.open(BytesIO(base64.b64decode(results["scores"][index]["png"]))),
    )
    assert got.mode == expected.mode and np.array_equal(np.asarray(got), np.asarray(expected))
    assert classes > 256 or got.getpalette()[: 3 * classes] == expected.getpalette()[: 3 * classes]
