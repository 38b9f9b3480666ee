"""Generated scenes: reproducible, exact, and with every class."""

import numpy as np
import pytest

from offseg_hf.data.scenes.canvas import Canvas
from offseg_hf.data.scenes.street import ROAD, SCENE_LABELS, SKY, render_scene


SIZE = (96, 72)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(image), labels) for image, labels in (render_scene(seed, SIZE) for seed in range(12))]


def test_a_seed_is_a_scene(scenes):
    image, labels = render_scene(3, SIZE)
    assert np.array_equal(image, scenes[3][0]) and np.array_equal(labels, scenes[3][1])
    assert len({image.tobytes() for image, _ in scenes}) == len(scenes)


def test_types_and_sizes(scenes):
    for image, labels in scenes:
        assert image.shape == (72, 96, 3) and image.dtype == np.uint8
        assert labels.shape == (72, 96) and labels.dtype == np.uint8
        assert labels.max() < len(SCENE_LABELS)


def test_every_class_occurs(scenes):
    pixels = sum(np.bincount(labels.ravel(), minlength=len(SCENE_LABELS)) for _, labels in scenes)
    share = pixels / pixels.sum()
    assert share.min() > 0.001, dict(zip(SCENE_LABELS.names, share))
    assert share.max() < 0.5, dict(zip(SCENE_LABELS.names, share))


def test_place_is_as_in_the_world(scenes):
    """Sky is in the upper part and road in the lower one: context means something."""
    rows = np.arange(SIZE[1])[:, None]
    for _, labels in scenes:
        assert (rows * (labels == SKY)).max() < 0.6 * SIZE[1]
        assert (labels[-1] == ROAD).any()


def test_no_class_has_a_color_of_its_own(scenes):
    """Guessing the class by the nearest mean color must fail often: texture and place are needed."""
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in scenes]).astype(float)
    labels = np.concatenate([labels.ravel() for _, labels in scenes])
    means = np.stack([pixels[labels == index].mean(axis=0) for index in range(len(SCENE_LABELS))])
    guess = ((pixels[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    recall = [(guess[labels == index] == index).mean() for index in range(len(SCENE_LABELS))]
    assert np.mean(recall) < 0.6


def test_labels_are_those_at_the_pixel_centers():
    """A black square on white, its edges on pixel edges: labels and colors agree in every pixel."""
    canvas = Canvas(np.random.default_rng(0), 20, 16, haze=(255, 255, 255))
    canvas.image[:] = 255
    box = (15, 12, 45, 36)
    canvas.paint(box, np.ones((24, 30), bool), np.zeros((24, 30, 3), np.float32), label=1)
    image, labels = canvas.finish(tint=(1, 1, 1))
    expected = np.zeros((16, 20), np.uint8)
    expected[4:12, 5:15] = 1
    assert np.array_equal(labels, expected)
    assert np.array_equal(np.asarray(image.convert("L")) < 128, expected == 1)


def test_other_sizes():
    assert render_scene(0, (16, 33))[0].size == (16, 33)
    with pytest.raises(ValueError, match="at least 16x16 pixels, got 15x100"):
        render_scene(0, (15, 100))
