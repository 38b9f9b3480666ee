"""transformers' common tests of models, configurations and pipelines, on SegFormer with offset learning."""

import unittest
from functools import partialmethod
from unittest import mock

from offseg_hf import OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.tiny import SEGFORMER
from tests.transformers_mixins.tiny import tiny_segformer_config


class OffsetSegformerModelTester:
    """Sizes and inputs; the names of its attributes are those that the common tests read."""

    is_training = True
    batch_size = 2
    image_size = 64
    num_channels = 3

    def get_config(self):
        return tiny_segformer_config()

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": floats_tensor(shape)}


class OffsetSegformerModelTest(ModelTesterMixin, PipelineTesterMixin, unittest.TestCase):
    """The skips are SegFormer's, in transformers' tests/models/segformer, and those of outputs that ours has not: maps
    come straight from the stages, attentions not at all."""

    all_model_classes = (OffsetSegformerForSemanticSegmentation,)
    pipeline_model_mapping = {"image-segmentation": OffsetSegformerForSemanticSegmentation}
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = OffsetSegformerModelTester()
        self.config_tester = ConfigTester(
            self,
            config_class=OffsetSegformerConfig,
            has_text_modality=False,
            common_properties=["num_channels", "hidden_sizes", "depths", "num_attention_heads"],
            **SEGFORMER,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_for_semantic_segmentation(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        labels = ids_tensor([2, 64, 64], config.num_labels)
        output = OffsetSegformerForSemanticSegmentation(config).eval()(**inputs, labels=labels)
        assert output.logits.shape == (2, 3, 8, 8)
        assert output.loss > 0

    @unittest.skip("images have no inputs_embeds (skipped for SegFormer)")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("images have no input and output embeddings (skipped for SegFormer)")
    def test_model_get_set_embeddings(self):
        pass

    def test_hidden_states_output(self):
        """One map per stage (SegFormer overrides the test likewise)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        by_argument = OffsetSegformerForSemanticSegmentation(config).eval()(**inputs, output_hidden_states=True)
        config.output_hidden_states = True
        by_config = OffsetSegformerForSemanticSegmentation(config).eval()(**inputs)
        for output in (by_argument, by_config):
            shapes = [tuple(x.shape[1:]) for x in output.hidden_states]
            assert shapes == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]

    def test_attention_outputs(self):
        self.has_attentions = False
        super().test_attention_outputs()

    def test_model_outputs_equivalence(self):
        self.has_attentions = False
        super().test_model_outputs_equivalence()

    def test_retain_grad_hidden_states_attentions(self):
        self.has_attentions = False
        super().test_retain_grad_hidden_states_attentions()

    @unittest.skip("nothing is recorded by `capture_outputs`: see above")
    def test_capture_outputs_decorator(self):
        pass

    @unittest.skip("nothing is recorded by `capture_outputs`: see above")
    def test_can_capture_specific_layers_hidden_states(self):
        pass

    def test_reverse_loading_mapping(self):
        """Of the names that transformers writes; without being asked, ours writes those of the model."""
        model_class = OffsetSegformerForSemanticSegmentation
        original = partialmethod(model_class.save_pretrained, save_original_format=True)
        with mock.patch.object(model_class, "save_pretrained", original):
            super().test_reverse_loading_mapping()

    # The originals want timm, for other models of this task.
    def test_pipeline_image_segmentation(self):
        self.run_task_tests(task="image-segmentation")

    def test_pipeline_image_segmentation_fp16(self):
        self.run_task_tests(task="image-segmentation", dtype="float16")
