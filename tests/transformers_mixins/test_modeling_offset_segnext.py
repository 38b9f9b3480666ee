"""transformers' common tests of models, configurations, backbones and pipelines, on SegNeXt and MSCAN."""

import unittest

from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from offseg_hf import MscanBackbone, MscanConfig, OffsetSegNextConfig, OffsetSegNextForSemanticSegmentation
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.transformers_mixins.test_modeling_offseg import CommonTests, ImageModelTester
from tests.transformers_mixins.tiny import TINY_MSCAN, TINY_SEGNEXT, tiny_mscan_config, tiny_segnext_config


# Backbones are known by name: they have no loss to train.
MODEL_FOR_BACKBONE_MAPPING_NAMES[MscanConfig.model_type] = MscanBackbone.__name__


class OffsetSegNextModelTest(CommonTests, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (OffsetSegNextForSemanticSegmentation,)
    pipeline_model_mapping = {"image-segmentation": OffsetSegNextForSemanticSegmentation}
    expected_hidden_states = [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]

    def setUp(self):
        self.model_tester = ImageModelTester(tiny_segnext_config)
        self.config_tester = ConfigTester(
            self,
            config_class=OffsetSegNextConfig,
            has_text_modality=False,
            common_properties=["num_channels", "hidden_sizes", "depths"],
            **TINY_SEGNEXT,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_for_semantic_segmentation(self):
        config, pixel_values, labels = self.model_tester.prepare_config_and_inputs()
        output = OffsetSegNextForSemanticSegmentation(config).eval()(pixel_values, labels=labels)
        assert output.logits.shape == (2, 3, 8, 8)
        assert output.loss > 0

    # The originals want timm, for other models of this task.
    def test_pipeline_image_segmentation(self):
        self.run_task_tests(task="image-segmentation")

    def test_pipeline_image_segmentation_fp16(self):
        self.run_task_tests(task="image-segmentation", dtype="float16")


class MscanModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (MscanBackbone,)
    expected_hidden_states = [(8, 16, 16), *OffsetSegNextModelTest.expected_hidden_states]

    def setUp(self):
        self.model_tester = ImageModelTester(tiny_mscan_config)
        self.config_tester = ConfigTester(
            self,
            config_class=MscanConfig,
            has_text_modality=False,
            common_properties=["num_channels", "hidden_sizes", "depths"],
            **TINY_MSCAN,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_retain_grad_hidden_states_attentions(self):
        """Down to the image: the output is a tuple of maps, no tensor."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        pixel_values = inputs["pixel_values"].requires_grad_()
        output = MscanBackbone(config)(pixel_values, output_hidden_states=True)
        output.hidden_states[-1].retain_grad()
        output.feature_maps[-1].flatten()[0].backward()
        assert output.hidden_states[-1].grad.abs().sum() == 1
        assert pixel_values.grad.abs().sum() > 0


class MscanBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (MscanBackbone,)
    config_class = MscanConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = ImageModelTester(tiny_mscan_config)
