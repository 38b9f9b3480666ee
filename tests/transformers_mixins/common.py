"""What transformers' common tests want of a segmenter and of the backbone it is built on, when both are ours.

`config_class`, `model_class`, `tiny` (fields of a small one), and what it gives for images of 64x64.
"""

import unittest

from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin


class ImageModelTester:
    """Sizes and inputs; the names of its attributes are those that the common tests read."""

    is_training = True
    batch_size = 2
    image_size = 64
    num_channels = 3
    num_labels = 3

    def __init__(self, get_config):
        self.get_config = get_config

    def prepare_config_and_inputs(self):
        shape = [self.batch_size, self.image_size, self.image_size]
        pixel_values = floats_tensor([shape[0], self.num_channels, *shape[1:]])
        return self.get_config(), pixel_values, ids_tensor(shape, self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class CommonTests(ModelTesterMixin):
    """What is the same for all models. The skips are SegFormer's, in transformers' tests/models/segformer."""

    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    has_attentions = False

    def setUp(self):
        self.model_tester = ImageModelTester(self.tiny_config)
        self.config_tester = ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            common_properties=["num_channels", "hidden_sizes", "depths"],
            **self.tiny,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images have no inputs_embeds (skipped for SegFormer)")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("images have no input and output embeddings (skipped for SegFormer)")
    def test_model_get_set_embeddings(self):
        pass

    def test_hidden_states_output(self):
        """One map per stage, from stride 4 on (SegFormer overrides the test likewise)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            by_argument = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
            config.output_hidden_states = True
            by_config = model_class(config).eval()(**inputs).hidden_states
            for hidden_states in (by_argument, by_config):
                assert [tuple(x.shape[1:]) for x in hidden_states] == self.expected_hidden_states


class SegmenterTests(CommonTests, PipelineTesterMixin):
    expected_hidden_states = [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]

    def test_for_semantic_segmentation(self):
        config, pixel_values, labels = self.model_tester.prepare_config_and_inputs()
        (model_class,) = self.all_model_classes
        output = model_class(config).eval()(pixel_values, labels=labels)
        assert output.logits.shape == (2, 3, *self.expected_size)
        assert output.loss > 0

    # The originals want timm, for other models of this task.
    def test_pipeline_image_segmentation(self):
        self.run_task_tests(task="image-segmentation")

    def test_pipeline_image_segmentation_fp16(self):
        self.run_task_tests(task="image-segmentation", dtype="float16")


class EncoderTests(CommonTests):
    expected_hidden_states = [(8, 16, 16), *SegmenterTests.expected_hidden_states]  # the stem's first

    def test_retain_grad_hidden_states_attentions(self):
        """Down to the image: hidden states are views of what the next stage reads, and the output is no tensor."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        pixel_values = inputs["pixel_values"].requires_grad_()
        (model_class,) = self.all_model_classes
        output = model_class(config)(pixel_values, output_hidden_states=True)
        output.hidden_states[-1].retain_grad()
        output.feature_maps[-1].flatten()[0].backward()
        assert output.hidden_states[-1].grad.abs().sum() == 1
        assert pixel_values.grad.abs().sum() > 0


class EncoderBackboneTests(BackboneTesterMixin):
    has_attentions = False

    def setUp(self):
        self.model_tester = ImageModelTester(self.tiny_config)
