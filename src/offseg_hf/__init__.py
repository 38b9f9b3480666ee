"""Offset Learning for semantic segmentation (ICCV 2025, https://arxiv.org/abs/2508.08811) as transformers models.

Importing the package makes its models known to transformers' Auto classes and to `pipeline`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from offseg_hf.adaptation.apply import apply_offset_learning as apply_offset_learning
    from offseg_hf.adaptation.smp import with_offset_learning as with_offset_learning
    from offseg_hf.conversion import convert_checkpoint as convert_checkpoint
    from offseg_hf.conversion import load_pretrained as load_pretrained
    from offseg_hf.data.dataset import label_set_of as label_set_of
    from offseg_hf.data.dataset import load_segmentation_data as load_segmentation_data
    from offseg_hf.data.training_set import TrainingSet as TrainingSet
    from offseg_hf.data.transforms import TrainingTransform as TrainingTransform
    from offseg_hf.evaluation.evaluation_set import EvaluationSet as EvaluationSet
    from offseg_hf.evaluation.metric import MEAN_IOU_SCRIPT as MEAN_IOU_SCRIPT
    from offseg_hf.evaluation.metric import MeanIoU as MeanIoU
    from offseg_hf.inference.segmenter import Segmenter as Segmenter
    from offseg_hf.inference.tiles import TileOptions as TileOptions
    from offseg_hf.inference.tiles import label_map_by_tiles as label_map_by_tiles
    from offseg_hf.inference.video import VideoOptions as VideoOptions
    from offseg_hf.inference.video import label_video as label_video
    from offseg_hf.inference.video import segment_video as segment_video
    from offseg_hf.models.configuration_offseg import EfficientFormerV2Config as EfficientFormerV2Config
    from offseg_hf.models.configuration_offseg import OffSegConfig as OffSegConfig
    from offseg_hf.models.configuration_offset_alignment import OffsetAlignmentConfig as OffsetAlignmentConfig
    from offseg_hf.models.configuration_offset_learning import OffsetLearningConfig as OffsetLearningConfig
    from offseg_hf.models.configuration_offset_mask2former import OffsetMask2FormerConfig as OffsetMask2FormerConfig
    from offseg_hf.models.configuration_offset_segformer import OffsetSegformerConfig as OffsetSegformerConfig
    from offseg_hf.models.configuration_offset_segnext import MscanConfig as MscanConfig
    from offseg_hf.models.configuration_offset_segnext import OffsetSegNextConfig as OffsetSegNextConfig
    from offseg_hf.models.image_processing_offseg import OffSegImageProcessor as OffSegImageProcessor
    from offseg_hf.models.image_processing_offset_mask2former import (
        OffsetMask2FormerImageProcessor as OffsetMask2FormerImageProcessor,
    )
    from offseg_hf.models.modeling_offseg import EfficientFormerV2Backbone as EfficientFormerV2Backbone
    from offseg_hf.models.modeling_offseg import OffSegBackbone as OffSegBackbone
    from offseg_hf.models.modeling_offseg import OffSegForSemanticSegmentation as OffSegForSemanticSegmentation
    from offseg_hf.models.modeling_offset_alignment import (
        OffsetAlignmentForUniversalSegmentation as OffsetAlignmentForUniversalSegmentation,
    )
    from offseg_hf.models.modeling_offset_learning import (
        OffsetLearningForSemanticSegmentation as OffsetLearningForSemanticSegmentation,
    )
    from offseg_hf.models.modeling_offset_mask2former import (
        OffsetMask2FormerForUniversalSegmentation as OffsetMask2FormerForUniversalSegmentation,
    )
    from offseg_hf.models.modeling_offset_segformer import (
        OffsetSegformerForSemanticSegmentation as OffsetSegformerForSemanticSegmentation,
    )
    from offseg_hf.models.modeling_offset_segnext import MscanBackbone as MscanBackbone
    from offseg_hf.models.modeling_offset_segnext import OffsetSegNextBackbone as OffsetSegNextBackbone
    from offseg_hf.models.modeling_offset_segnext import (
        OffsetSegNextForSemanticSegmentation as OffsetSegNextForSemanticSegmentation,
    )
    from offseg_hf.models.offset_learning import OffsetAlignment as OffsetAlignment
    from offseg_hf.models.offset_learning import OffsetLearning as OffsetLearning
    from offseg_hf.training.recipe import load_recipe as load_recipe

__version__ = "0.1.0"

_MODULE_OF = {
    "EfficientFormerV2Backbone": "models.modeling_offseg",
    "EfficientFormerV2Config": "models.configuration_offseg",
    "EvaluationSet": "evaluation.evaluation_set",
    "MEAN_IOU_SCRIPT": "evaluation.metric",
    "MeanIoU": "evaluation.metric",
    "MscanBackbone": "models.modeling_offset_segnext",
    "MscanConfig": "models.configuration_offset_segnext",
    "OffSegBackbone": "models.modeling_offseg",
    "OffSegConfig": "models.configuration_offseg",
    "OffSegForSemanticSegmentation": "models.modeling_offseg",
    "OffSegImageProcessor": "models.image_processing_offseg",
    "OffsetAlignment": "models.offset_learning",
    "OffsetAlignmentConfig": "models.configuration_offset_alignment",
    "OffsetAlignmentForUniversalSegmentation": "models.modeling_offset_alignment",
    "OffsetLearning": "models.offset_learning",
    "OffsetLearningConfig": "models.configuration_offset_learning",
    "OffsetLearningForSemanticSegmentation": "models.modeling_offset_learning",
    "OffsetMask2FormerConfig": "models.configuration_offset_mask2former",
    "OffsetMask2FormerForUniversalSegmentation": "models.modeling_offset_mask2former",
    "OffsetMask2FormerImageProcessor": "models.image_processing_offset_mask2former",
    "OffsetSegNextBackbone": "models.modeling_offset_segnext",
    "OffsetSegNextConfig": "models.configuration_offset_segnext",
    "OffsetSegNextForSemanticSegmentation": "models.modeling_offset_segnext",
    "OffsetSegformerConfig": "models.configuration_offset_segformer",
    "OffsetSegformerForSemanticSegmentation": "models.modeling_offset_segformer",
    "Segmenter": "inference.segmenter",
    "TileOptions": "inference.tiles",
    "TrainingSet": "data.training_set",
    "TrainingTransform": "data.transforms",
    "VideoOptions": "inference.video",
    "apply_offset_learning": "adaptation.apply",
    "convert_checkpoint": "conversion",
    "label_map_by_tiles": "inference.tiles",
    "label_set_of": "data.dataset",
    "label_video": "inference.video",
    "load_pretrained": "conversion",
    "load_recipe": "training.recipe",
    "load_segmentation_data": "data.dataset",
    "segment_video": "inference.video",
    "with_offset_learning": "adaptation.smp",
}

__all__ = ["register", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def register() -> None:
    """Make the models known to transformers' Auto classes, and their code part of what `save_pretrained` writes."""
    from offseg_hf.zoo.registration import register

    register()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Registration imports torch and transformers, for seconds: the `offseg` command registers what it needs when it does.
if "offseg_command" not in sys.modules:
    register()
