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
    "OffSegConfig": "models.configuration_offseg",
    "OffSegForSemanticSegmentation": "models.modeling_offseg",
    "OffSegImageProcessor": "models.image_processing_offseg",
    "OffsetLearning": "models.offset_learning",
    "convert_checkpoint": "conversion",
    "load_pretrained_encoder": "conversion",
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


@cache
def register() -> None:
    """Makes the models known to transformers' Auto classes, and their code part of what `save_pretrained` writes."""
    from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    from offseg_hf.models.configuration_offseg import EfficientFormerV2Config, OffSegConfig
    from offseg_hf.models.image_processing_offseg import OffSegImageProcessor
    from offseg_hf.models.modeling_offseg import EfficientFormerV2Backbone, OffSegForSemanticSegmentation

    for config, auto_class, model in (
        (OffSegConfig, AutoModelForSemanticSegmentation, OffSegForSemanticSegmentation),
        (EfficientFormerV2Config, AutoBackbone, EfficientFormerV2Backbone),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto_class.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class(auto_class.__name__)

    # The stock pipeline compares with these names, and logs an error about a model that is not among them.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[OffSegConfig.model_type] = OffSegForSemanticSegmentation.__name__

    backends = {"torchvision": OffSegImageProcessor, "pil": OffSegImageProcessor}  # one class, whichever is installed
    AutoImageProcessor.register(OffSegConfig, image_processor_classes=backends, exist_ok=True)
    OffSegImageProcessor.register_for_auto_class()


# Registration imports torch and transformers, some seconds. The `offseg` command, which imports this package too, must
# answer `--help` at once: its commands take the models from here (or call `register`) when they need them.
if Path(sys.argv[0] if sys.argv else "").name not in ("offseg", "offseg.exe"):
    register()
