"""Our models in transformers' Auto classes and pipelines."""

from functools import cache
from importlib import import_module
from typing import Any

from offseg_hf.zoo.families import FAMILIES, load_class


# Models around others, which are of no family: configuration, Auto class, model. The model inside has its own image
# processor.
WRAPPERS = (
    (
        "configuration_offset_learning.OffsetLearningConfig",
        "AutoModelForSemanticSegmentation",
        "modeling_offset_learning.OffsetLearningForSemanticSegmentation",
    ),
    (
        "configuration_offset_alignment.OffsetAlignmentConfig",
        "AutoModelForUniversalSegmentation",
        "modeling_offset_alignment.OffsetAlignmentForUniversalSegmentation",
    ),
)


@cache
def register() -> None:
    """Make the models known to transformers' Auto classes, and their code part of what `save_pretrained` writes."""
    from transformers import AutoImageProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    # Not `register_pipeline`, which warns of what is there already: this class does all that the stock one does.
    pipeline = import_module("offseg_hf.inference.pipeline").OffSegImageSegmentationPipeline
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = pipeline

    for family in FAMILIES.values():
        _register_model(family.config, family.auto_class, family.model)
        processor_class: Any = load_class(family.image_processor)
        backends = {"torchvision": processor_class, "pil": processor_class}  # one class, whichever is installed
        AutoImageProcessor.register(load_class(family.config), image_processor_classes=backends, exist_ok=True)
        processor_class.register_for_auto_class()
        if family.encoder is not None:
            _register_model(family.encoder.config, "AutoBackbone", family.encoder.model)
        if family.encoder_of_model is not None:
            _register_model(family.config, "AutoBackbone", family.encoder_of_model)
    for wrapper in WRAPPERS:
        _register_model(*wrapper)
    exported = import_module("offseg_hf.export.runtime")  # a model whose network is a file: without code to save
    _register(exported.ExportedConfig, "AutoModelForSemanticSegmentation", exported.ExportedForSemanticSegmentation)
    universal = exported.ExportedForUniversalSegmentation
    _register(exported.ExportedUniversalConfig, "AutoModelForUniversalSegmentation", universal)


def auto_model_class(config) -> Any:
    """Return the Auto class that builds and loads the model of a configuration."""
    import transformers

    register()
    is_universal = type(config) in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    kind = "Universal" if is_universal else "Semantic"
    return getattr(transformers, f"AutoModelFor{kind}Segmentation")


def _register_model(config: str, auto_class: str, model: str) -> None:
    config_class: Any = load_class(config)
    model_class: Any = load_class(model)
    _register(config_class, auto_class, model_class)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(auto_class)


def _register(config_class: Any, auto_class: str, model_class: Any) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
    if auto_class == "AutoModelForUniversalSegmentation":  # where pipelines look for models that predict masks
        transformers.AutoModelForImageSegmentation.register(config_class, model_class, exist_ok=True)
    # The stock pipeline compares with the names in here, and logs an error about a model that is not among them.
    names = {
        "AutoModelForSemanticSegmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        "AutoModelForUniversalSegmentation": modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    }
    if auto_class in names:
        names[auto_class][config_class.model_type] = model_class.__name__
