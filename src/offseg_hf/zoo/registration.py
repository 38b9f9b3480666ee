"""Our models in transformers' Auto classes and pipelines."""

from functools import cache
from importlib import import_module


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
    pipeline_class = getattr(import_module("offseg_hf.inference.pipeline"), "OffSegImageSegmentationPipeline")
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
    return getattr(import_module(f"offseg_hf.models.{module}"), name)
