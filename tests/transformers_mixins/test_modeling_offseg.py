"""transformers' common tests of models, configurations, backbones and pipelines, on OffSeg and its encoder."""

import unittest

from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config, OffSegConfig, OffSegForSemanticSegmentation
from tests.tiny import EFFICIENTFORMER, OFFSEG
from tests.transformers_mixins.common import EncoderBackboneTests, EncoderTests, SegmenterTests
from tests.transformers_mixins.tiny import tiny_encoder_config, tiny_offseg_config


class OffSegModelTest(SegmenterTests, unittest.TestCase):
    all_model_classes = (OffSegForSemanticSegmentation,)
    pipeline_model_mapping = {"image-segmentation": OffSegForSemanticSegmentation}
    config_class, tiny, tiny_config = OffSegConfig, OFFSEG, staticmethod(tiny_offseg_config)
    expected_size = (16, 16)


class EfficientFormerV2ModelTest(EncoderTests, unittest.TestCase):
    all_model_classes = (EfficientFormerV2Backbone,)
    config_class, tiny, tiny_config = EfficientFormerV2Config, EFFICIENTFORMER, staticmethod(tiny_encoder_config)


class EfficientFormerV2BackboneTest(EncoderBackboneTests, unittest.TestCase):
    all_model_classes = (EfficientFormerV2Backbone,)
    config_class, tiny_config = EfficientFormerV2Config, staticmethod(tiny_encoder_config)
