"""A loaded segmentation model: RGB photo in, label map out."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
)

from offseg_hf.data.classes_json import label_set_beside
from offseg_hf.data.reading import to_rgb
from offseg_hf.utils.texts import one_line
from offseg_hf.visualization import palette_for
from offseg_hf.zoo.registration import auto_model_class, register


class Segmenter:
    """A semantic segmentation model with its image processor, from a folder or the Hub: RGB photo in, label map out.

    Args:
        model: A folder, or a repository on the Hub.
        device: As torch names it; by default a CUDA GPU where there is one, else the CPU.
        dtype: Precision of the model.

    Raises:
        ValueError: If there is no such device, or no complete segmentation model at `model`.
    """

    def __init__(self, model: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32):
        self.device = _device(device)
        self.processor, self.model = _load(str(model), dtype)
        self.model.to(self.device).eval()
        self.names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.palette = palette_for(self.names, label_set_beside(model))

    @torch.inference_mode()
    def __call__(self, photo: Image.Image) -> np.ndarray:
        """Return the label map (height, width) of a photo, of its size when it is seen upright."""
        photo = to_rgb(photo)
        inputs = self.processor(images=photo, return_tensors="pt").to(self.device, self.model.dtype)
        outputs = self.model(**inputs)
        size = (photo.height, photo.width)
        return self.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].cpu().numpy()


class UnsupportedModelError(ValueError):
    """A model, or one with an image processor, of a kind that is not supported."""


def require_segmentation_model(
    name: str,
    config: PreTrainedConfig,
    processor: BaseImageProcessor | None = None,
    *,
    every_size: bool = False,
    training: bool = False,
) -> None:
    """Raise UnsupportedModelError, in one line, unless the commands can take a model.

    Evaluation, segmentation and training ask here, before they load its weights. They take a model of this package or
    of transformers for semantic or universal segmentation that needs an image and nothing else, and whose image
    processor makes a label map of its outputs.

    Args:
        name: Name of the model, for the errors.
        config: Configuration of the model, which need not be built.
        processor: Its image processor, where that is to be checked too.
        every_size: Whether images of several sizes are to be looked at, and the scores of all classes averaged, as
            test-time augmentation does.
        training: Whether the model is to learn: from label maps, or from masks and their classes.
    """
    register()
    is_universal = type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    kind = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING if is_universal else MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    model_class: Any = kind.get(type(config), None)
    if model_class is None:
        got = " or ".join(config.architectures or [f"a {config.model_type or type(config).__name__}"])
        raise UnsupportedModelError(f"{name}: expected a model for semantic or universal segmentation, got {got}")
    forward = inspect.signature(model_class.forward).parameters
    needed = [
        argument.name
        for argument in forward.values()
        if argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD
    ]
    others = [argument for argument in needed if argument not in ("self", "pixel_values")]
    if "pixel_values" not in forward:
        others = [model_class.main_input_name]
    if others:
        raise UnsupportedModelError(
            f"{name}: expected a model that segments an image alone (pixel_values), got {model_class.__name__}, which "
            f"needs {', '.join(others)}: it is not supported"
        )
    learns_from = {"mask_labels", "class_labels"} if is_universal else {"labels"}
    if training and not learns_from <= forward.keys():
        raise UnsupportedModelError(
            f"{name}: expected a model that learns from {' and '.join(sorted(learns_from))}, got "
            f"{model_class.__name__}, which does not: its training is not supported"
        )
    if processor is None:
        return
    make_map = getattr(processor, "post_process_semantic_segmentation", None)
    options = {} if make_map is None else inspect.signature(make_map).parameters
    if "target_sizes" not in options:
        raise UnsupportedModelError(
            f"{name}: expected an image processor that makes label maps of photos' sizes "
            f"(post_process_semantic_segmentation with target_sizes), got {type(processor).__name__}: save the one of "
            "the model's family beside it"
        )
    if every_size and ("return_segmentation_scores" not in options or "size" in options):
        raise UnsupportedModelError(
            f"{name}: expected a model that takes images of every size and gives the scores of all classes, got "
            f"{model_class.__name__} with {type(processor).__name__}, which has one size: test-time augmentation "
            "(--tta) is not supported for it, evaluate it without"
        )


def _load(name: str, dtype: torch.dtype):
    _check_model_name(name)
    register()
    try:
        own = {"trust_remote_code": False}  # nor is there a question whether to run the code of others
        _check_model_type(name)
        config = AutoConfig.from_pretrained(name, **own)
        require_segmentation_model(name, config)
        processor = AutoImageProcessor.from_pretrained(name, **own)
        require_segmentation_model(name, config, processor)
        auto_class = auto_model_class(config)
        model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **own)
    except UnsupportedModelError:
        raise
    except Exception as error:  # of transformers, huggingface_hub, safetensors and json, with no base in common
        raise ValueError(f"cannot load a segmentation model from {name!r}: {one_line(error)}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        raise ValueError(f"{name!r} lacks {len(wrong)} tensors of the model, or has other shapes: first {wrong[0]}")
    return processor, model


def _check_model_name(name: str) -> None:
    """Say what is wrong with `name` in terms of folders, where transformers would go on and ask the Hub."""
    if Path(name).exists():
        if not Path(name, "config.json").is_file():
            raise ValueError(f"{name} is not the folder of a model: it has no config.json")
        return
    try:
        hf_hub_download(name, "config.json")
    except HFValidationError:
        raise ValueError(f"no model at {name}: no such folder, and not the name of one on the Hub") from None
    except Exception as error:  # of the client and of the network below it
        raise ValueError(f"no model at {name}: no such folder, and the Hub gives none") from error


def _check_model_type(name: str) -> None:
    settings, _ = PreTrainedConfig.get_config_dict(name)
    kind = settings.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        own_code = " and brings code of its own, which the commands do not run" if "auto_map" in settings else ""
        raise UnsupportedModelError(
            f"{name}: nothing installed here knows its model type, {kind}{own_code}. If it is a newer one of this "
            "package or of transformers: `pip install -U offseg-hf transformers`; if you trust its code: load it in "
            "Python, with trust_remote_code=True"
        )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ValueError(f"cannot use the device {name!r}: {one_line(error)}") from error
