"""Training shows a model the pixels that its image processor makes, whatever processor that is."""

import numpy as np
import pytest
from PIL import Image
from transformers import (
    EomtImageProcessorPil,
    Mask2FormerImageProcessorPil,
    MobileViTImageProcessorPil,
    SegformerImageProcessorPil,
)

from offseg_hf import OffSegImageProcessor
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.training.pixels import pixel_arithmetic, require_same_pixels


COLOR = (255, 128, 0)
SIZE = {"height": 64, "width": 64}
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
RANGE = {"mean": (0.0,) * 3, "std": (255.0,) * 3}
PROCESSORS = [
    (OffSegImageProcessor(), IMAGENET, (0, 1, 2)),
    (OffSegImageProcessor(do_normalize=False), RANGE, (0, 1, 2)),
    (
        OffSegImageProcessor(do_normalize=False, do_rescale=False),
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        (0, 1, 2),
    ),
    (SegformerImageProcessorPil(size=SIZE), IMAGENET, (0, 1, 2)),
    (SegformerImageProcessorPil(size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3), HALF, (0, 1, 2)),
    (MobileViTImageProcessorPil(size={"shortest_edge": 72}, crop_size=SIZE), RANGE, (2, 1, 0)),
    (Mask2FormerImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 100}), IMAGENET, (0, 1, 2)),
    (EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True), IMAGENET, (0, 1, 2)),
]


@pytest.mark.parametrize(("processor", "settings", "order"), PROCESSORS)
def test_training_makes_what_the_processor_makes(processor, settings, order):
    transform = TrainingTransform(crop_size=(8, 8), flip=0, photometric=False, **settings)
    assert require_same_pixels(transform, processor) == order
    made = transform(Image.new("RGB", (8, 8), COLOR), np.zeros((8, 8), np.uint8), np.random.default_rng(0))
    expected = processor(Image.new("RGB", (64, 64), COLOR), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(
        made["pixel_values"].numpy()[list(order), 0, 0], expected[0][..., 0, 0].ravel(), atol=1e-4
    )


@pytest.mark.parametrize(("processor", "settings", "_"), PROCESSORS[1:3] + PROCESSORS[4:6])
def test_other_pixels_are_refused_with_the_words_that_make_them(processor, settings, _):
    words = "augmentation.mean={} augmentation.std={}".format(
        *(list(map(float, value)) for value in settings.values())
    )
    with pytest.raises(ValueError) as error:
        require_same_pixels(TrainingTransform(crop_size=(8, 8)), processor)
    assert words in str(error.value)


def test_more_than_scaling_is_refused():
    class Gray(OffSegImageProcessor):
        def preprocess(self, images, *args, **kwargs):
            return super().preprocess(images.convert("L").convert("RGB"), *args, **kwargs)

    with pytest.raises(ValueError, match="got a Gray that makes"):
        pixel_arithmetic(Gray())
