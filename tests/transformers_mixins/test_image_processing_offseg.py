"""transformers' common tests of image processors, on ours."""

import unittest
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from offseg_hf import OffSegImageProcessor
from offseg_hf.models.image_operations import keep_ratio_size
from tests import test_image_processing_common as common


def generated_photo(url):
    """Stands in for photos on the Hub: tests run offline."""
    return Image.linear_gradient("L").resize((640, 480)).convert("RGB")


class OffSegImageProcessingTester(common.ImageProcessingTester):
    num_labels = 19

    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 48, "longest_edge": 150})
        kwargs.setdefault("window_size", 40)
        kwargs.setdefault("window_stride", 32)
        kwargs.setdefault("image_mean", [0.5, 0.4, 0.3])
        kwargs.setdefault("image_std", [0.2, 0.3, 0.4])
        kwargs.setdefault("do_reduce_labels", True)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        """One class for both backends, as `import offseg_hf` registers it (the original looks up its own models)."""
        return {"torchvision": OffSegImageProcessor, "pil": OffSegImageProcessor}

    def expected_output_image_shape(self, images):
        """The padded batch, with mmcv's rounding of sizes (the original has transformers')."""
        sizes = []
        for image in images:
            if isinstance(image, Image.Image):
                height, width = image.size[::-1]
            elif isinstance(image, np.ndarray):
                height, width = image.shape[:2]
            else:
                height, width = image.shape[1:]
            sizes.append(keep_ratio_size(height, width, **self.size))
        return self.num_channels, *(max(lengths) for lengths in zip(*sizes))

    def prepare_post_process_semantic_segmentation_inputs(self):
        """Logits of a fixed size (the original takes it from `size`, which is no height and width here)."""
        logits = torch.randn(self.batch_size, self.num_labels, 20, 30)
        expected = {"num_labels": self.num_labels, "height": 20, "width": 30}
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, expected


class OffSegImageProcessingTest(
    common.PostProcessSemanticSegmentationTestMixin, common.ImageProcessingTestMixin, unittest.TestCase
):
    image_processor_tester_class = OffSegImageProcessingTester
    test_cast_dtype = True

    def test_backends_equivalence(self):
        with mock.patch.object(common, "load_test_image", generated_photo):
            super().test_backends_equivalence()

    def test_pil_can_run_without_torchvision(self):
        """The original starts a process that knows transformers only: there our class is code to be trusted."""
        run = common.subprocess.run

        def run_trusting(command, **kwargs):
            script = command[2].replace('backend="pil"', 'backend="pil", trust_remote_code=True')
            return run([*command[:2], script, *command[3:]], **kwargs)

        with mock.patch.object(common.subprocess, "run", run_trusting):
            super().test_pil_can_run_without_torchvision()
