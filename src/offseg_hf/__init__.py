"""Offset Learning for semantic segmentation (ICCV 2025, https://arxiv.org/abs/2508.08811) as transformers models.

Importing the package makes its models known to transformers' Auto classes and to `pipeline`.
"""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path


__version__ = "0.1.0"

_MODULE_OF = {
    "EfficientFormerV2Backbone": "models.modeling_offseg",
    "EfficientFormerV2Config": "models.configuration_offseg",
    "MeanIoU": "metrics",
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
    "apply_offset_learning": "adaptation",
    "convert_checkpoint": "conversion",
    "label_set_of": "data.datasets",
    "load_pretrained": "conversion",
    "load_recipe": "training.recipe",
    "load_segmentation_data": "data.datasets",
    "with_offset_learning": "adaptation_smp",
}

__all__ = ["register", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# What transformers' Auto classes are to know: module of the configuration, configuration, Auto class of the model,
# module of the model, model, and module and class of the image processor that goes with it.
_REGISTERED = (
    (
        ("configuration_offseg", "OffSegConfig"),
        ("AutoModelForSemanticSegmentation", "modeling_offseg", "OffSegForSemanticSegmentation"),
        ("image_processing_offseg", "OffSegImageProcessor"),
    ),
    (
        ("configuration_offseg", "EfficientFormerV2Config"),
        ("AutoBackbone", "modeling_offseg", "EfficientFormerV2Backbone"),
        None,
    ),
    (("configuration_offseg", "OffSegConfig"), ("AutoBackbone", "modeling_offseg", "OffSegBackbone"), None),
    (
        ("configuration_offset_learning", "OffsetLearningConfig"),
        ("AutoModelForSemanticSegmentation", "modeling_offset_learning", "OffsetLearningForSemanticSegmentation"),
        None,  # the wrapped model has its own
    ),
    (
        ("configuration_offset_alignment", "OffsetAlignmentConfig"),
        (
            "AutoModelForUniversalSegmentation",
            "modeling_offset_alignment",
            "OffsetAlignmentForUniversalSegmentation",
        ),
        None,  # each base has its own
    ),
    (
        ("configuration_offset_segnext", "OffsetSegNextConfig"),
        ("AutoModelForSemanticSegmentation", "modeling_offset_segnext", "OffsetSegNextForSemanticSegmentation"),
        ("image_processing_offseg", "OffSegImageProcessor"),
    ),
    (
        ("configuration_offset_segnext", "MscanConfig"),
        ("AutoBackbone", "modeling_offset_segnext", "MscanBackbone"),
        None,
    ),
    (
        ("configuration_offset_segnext", "OffsetSegNextConfig"),
        ("AutoBackbone", "modeling_offset_segnext", "OffsetSegNextBackbone"),
        None,
    ),
    (
        ("configuration_offset_segformer", "OffsetSegformerConfig"),
        (
            "AutoModelForSemanticSegmentation",
            "modeling_offset_segformer",
            "OffsetSegformerForSemanticSegmentation",
        ),
        ("image_processing_offseg", "OffSegImageProcessor"),
    ),
    (
        ("configuration_offset_mask2former", "OffsetMask2FormerConfig"),
        (
            "AutoModelForUniversalSegmentation",
            "modeling_offset_mask2former",
            "OffsetMask2FormerForUniversalSegmentation",
        ),
        ("image_processing_offset_mask2former", "OffsetMask2FormerImageProcessor"),
    ),
)


@cache
def register() -> None:
    """Makes the models known to transformers' Auto classes, and their code part of what `save_pretrained` writes."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.pipelines import PIPELINE_REGISTRY

    # Not `register_pipeline`, which warns of what is there already: this class does all that the stock one does.
    pipeline_class = getattr(import_module(f"{__name__}.pipeline"), "OffSegImageSegmentationPipeline")
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = pipeline_class

    # The stock pipeline compares with the names in here, and logs an error about a model that is not among them.
    names_of = {
        "AutoModelForSemanticSegmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        "AutoModelForUniversalSegmentation": modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    }
    for configuration, (auto_class, *model), processor in _REGISTERED:
        config_class, model_class = _model_code(*configuration), _model_code(*model)
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
        if auto_class == "AutoModelForUniversalSegmentation":  # where pipelines look for models that predict masks
            transformers.AutoModelForImageSegmentation.register(config_class, model_class, exist_ok=True)
        config_class.register_for_auto_class()
        model_class.register_for_auto_class(auto_class)
        if auto_class in names_of:
            names_of[auto_class][config_class.model_type] = model_class.__name__
        if processor is not None:
            processor_class = _model_code(*processor)
            backends = {"torchvision": processor_class, "pil": processor_class}  # one class, whichever is installed
            transformers.AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)
            processor_class.register_for_auto_class()


def auto_model_class(config) -> type:
    """The Auto class that builds and loads the model of a configuration."""
    import transformers

    register()
    is_universal = type(config) in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    kind = "Universal" if is_universal else "Semantic"
    return getattr(transformers, f"AutoModelFor{kind}Segmentation")


def _model_code(module: str, name: str) -> type:
    return getattr(import_module(f"{__name__}.models.{module}"), name)


# Registration imports torch and transformers, some seconds. The `offseg` command, which imports this package too, must
# answer `--help` at once: its commands take the models from here (or call `register`) when they need them.
if Path(sys.argv[0] if sys.argv else "").name not in ("offseg", "offseg.exe"):
    register()
