"""transformers' common tests of models and configurations, on a SegFormer and a BEiT with offset learning."""

import unittest
from functools import partialmethod
from unittest import mock

from transformers import BeitConfig, SegformerConfig

from offseg_hf import OffsetLearningConfig, OffsetLearningForSemanticSegmentation
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor


IMAGE_SIZE = 64


class ModelTester:
    """Configuration and inputs; the names of its attributes are those that the common tests read."""

    is_training = True
    batch_size = 2

    def __init__(self, get_base_config):
        self.get_base_config = get_base_config

    def get_config(self) -> OffsetLearningConfig:
        return OffsetLearningConfig(base_config=self.get_base_config())

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])
        return self.get_config(), {"pixel_values": pixel_values}


class CommonTests(ModelTesterMixin):
    """The skips are those of SegFormer and BEiT, in transformers' tests/models."""

    all_model_classes = (OffsetLearningForSemanticSegmentation,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    has_attentions = False  # those of the base are its own

    def setUp(self):
        self.model_tester = ModelTester(self.get_base_config)
        self.config_tester = ConfigTester(
            self,
            config_class=OffsetLearningConfig,
            has_text_modality=False,
            common_properties=["classifier", "use_class_offset", "use_feature_offset", "normalize_logits"],
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images have no inputs_embeds (skipped for SegFormer)")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("images have no input and output embeddings (skipped for SegFormer)")
    def test_model_get_set_embeddings(self):
        pass

    def test_reverse_loading_mapping(self):
        """Of the names that transformers writes; without being asked, ours writes those of the model."""
        model_class = OffsetLearningForSemanticSegmentation
        original = partialmethod(model_class.save_pretrained, save_original_format=True)
        with mock.patch.object(model_class, "save_pretrained", original):
            super().test_reverse_loading_mapping()

    def test_hidden_states_output(self):
        """The base's own, whoever asks for them."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = OffsetLearningForSemanticSegmentation(config).eval()
        by_argument = model(**inputs, output_hidden_states=True).hidden_states
        assert len(by_argument) == self.num_hidden_states
        config.output_hidden_states = True
        assert len(model(**inputs).hidden_states) == self.num_hidden_states


class SegformerTest(CommonTests, unittest.TestCase):
    num_hidden_states = 4

    @staticmethod
    def get_base_config():
        return SegformerConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            num_labels=3,
        )


class BeitTest(CommonTests, unittest.TestCase):
    num_hidden_states = 5

    @staticmethod
    def get_base_config():
        return BeitConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            out_indices=[1, 2, 3, 4],
            pool_scales=[1, 2],
            auxiliary_channels=16,
            num_labels=3,
        )
