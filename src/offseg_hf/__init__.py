"""Offset Learning for semantic segmentation (ICCV 2025, https://arxiv.org/abs/2508.08811) as transformers models.

Importing the package makes its models known to transformers' Auto classes and to `pipeline`.
"""

import sys
from importlib import import_module
from pathlib import Path


__version__ = "0.1.0"

_MODULE_OF = {
    "EfficientFormerV2Backbone": "models.modeling_offseg",
    "EfficientFormerV2Config": "models.configuration_offseg",
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
    "apply_offset_learning": "adaptation.apply",
    "convert_checkpoint": "conversion",
    "label_set_of": "data.dataset",
    "load_pretrained": "conversion",
    "load_recipe": "training.recipe",
    "load_segmentation_data": "data.dataset",
    "with_offset_learning": "adaptation.smp",
}

__all__ = ["register", *_MODULE_OF]


def __getattr__(name: str):
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


# Registration imports torch and transformers, some seconds. The `offseg` command, which imports this package too, must
# answer `--help` at once: its commands take the models from here (or call `register`) when they need them.
if Path(sys.argv[0] if sys.argv else "").name not in ("offseg", "offseg.exe"):
    register()
