"""transformers' common tests of models, configurations, backbones and pipelines, on SegNeXt and MSCAN."""

import unittest

from offseg_hf import MscanBackbone, MscanConfig, OffsetSegNextConfig, OffsetSegNextForSemanticSegmentation
from tests.tiny import MSCAN, SEGNEXT
from tests.transformers_mixins.common import EncoderBackboneTests, EncoderTests, SegmenterTests
from tests.transformers_mixins.tiny import tiny_mscan_config, tiny_segnext_config


class OffsetSegNextModelTest(SegmenterTests, unittest.TestCase):
    all_model_classes = (OffsetSegNextForSemanticSegmentation,)
    pipeline_model_mapping = {"image-segmentation": OffsetSegNextForSemanticSegmentation}
    config_class, tiny, tiny_config = OffsetSegNextConfig, SEGNEXT, staticmethod(tiny_segnext_config)
    expected_size = (8, 8)


class MscanModelTest(EncoderTests, unittest.TestCase):
    all_model_classes = (MscanBackbone,)
    config_class, tiny, tiny_config = MscanConfig, MSCAN, staticmethod(tiny_mscan_config)


class MscanBackboneTest(EncoderBackboneTests, unittest.TestCase):
    all_model_classes = (MscanBackbone,)
    config_class, tiny_config = MscanConfig, staticmethod(tiny_mscan_config)
