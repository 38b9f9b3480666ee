"""A loaded segmentation model: RGB photo in, label map out."""

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedConfig,
)

from offseg_hf.data.classes_json import label_set_beside
from offseg_hf.data.reading import to_rgb
from offseg_hf.inference.confidence import confidence_of_rows
from offseg_hf.inference.windows import RunningScores, averaged_windows
from offseg_hf.utils.texts import one_line
from offseg_hf.visualization import palette_for
from offseg_hf.zoo.registration import auto_model_class, register


# Share of equal labels from which a fused model is taken for the same: rounding changes ties alone.
SAME_LABELS = 0.999
# From so many photos on, a model is fused: comparing its label map takes as long as some photos gain.
FUSED_FROM = 8


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
        self.network = self.model
        self.names = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.palette = palette_for(self.names, label_set_beside(model))

    def __call__(self, photo: Image.Image) -> np.ndarray:
        """Return the label map (height, width) of a photo, of its size when it is seen upright."""
        photo = to_rgb(photo)
        return self.label_maps([self.prepare(photo)], [(photo.height, photo.width)])[0]

    def prepare(self, photo: Image.Image) -> BatchFeature:
        """Return the model's inputs for an upright RGB photo, on the CPU."""
        return self.processor(images=photo, return_tensors="pt")

    @torch.inference_mode()
    def label_maps(
        self,
        inputs: Sequence[BatchFeature],
        sizes: Sequence[tuple[int, int]],
        average: RunningScores | None = None,
    ) -> list[np.ndarray]:
        """Segment photos together; those of a model that looks through windows may be of any sizes.

        Args:
            inputs: What `prepare` returns, of each photo.
            sizes: (height, width) of each label map.
            average: Of the scores of photos that are frames of one video, in order, with those before.

        Returns:
            Label maps of the smallest unsigned integers that hold the classes.

        Raises:
            ValueError: for an average of a model of masks, which has no scores of classes.
        """
        batch = collate(inputs).to(self.device, self.model.dtype)
        if "windows" in batch:
            images = averaged_windows(lambda crops: self.network(crops).logits, **batch)
            if average is not None:
                for image in images:
                    average.add_windows(image)
            maps = [image.label_map(size) for image, size in zip(images, sizes, strict=True)]
        else:
            outputs = self.network(**batch)
            if average is not None:
                if getattr(outputs, "logits", None) is None:
                    raise ValueError(
                        f"{type(self.model).__name__} classifies masks, and has no scores of classes to average: "
                        "segment without --smooth"
                    )
                outputs.logits = torch.stack([average([scores])[0] for scores in outputs.logits])
            maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=list(sizes))
        dtype = np.min_scalar_type(len(self.names) - 1)
        return [label_map.cpu().numpy().astype(dtype) for label_map in maps]

    @torch.inference_mode()
    def with_confidence(
        self, inputs: Sequence[BatchFeature], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Segment photos as `label_maps` does, and tell of every pixel how probable its class is, from 0 to 1.

        Args:
            inputs: What `prepare` returns, of each photo.
            sizes: (height, width) of each label map.

        Raises:
            ValueError: for a model of masks, whose scores are no probabilities.
        """
        batch = collate(inputs).to(self.device, self.model.dtype)
        if "windows" in batch:
            images = averaged_windows(lambda crops: self.network(crops).logits, **batch)
            maps = [image.label_map(size) for image, size in zip(images, sizes, strict=True)]
            shares = [image.confidence(label_map) for image, label_map in zip(images, maps, strict=True)]
        else:
            outputs = self.network(**batch)
            logits = getattr(outputs, "logits", None)
            if logits is None:
                raise ValueError(
                    f"{type(self.model).__name__} classifies masks, and has no probabilities of classes at pixels: "
                    "segment without a confidence"
                )
            maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=list(sizes))
            shares = [
                confidence_of_rows(partial(_rows, each), tuple(each.shape), label_map)
                for each, label_map in zip(logits, maps, strict=True)
            ]
        dtype = np.min_scalar_type(len(self.names) - 1)
        return [
            (ids.cpu().numpy().astype(dtype), share.cpu().numpy()) for ids, share in zip(maps, shares, strict=True)
        ]

    def fuse(self, inputs: BatchFeature, size: tuple[int, int]) -> bool:
        """Run the fused model from now on, if it gives a photo the same label map, up to ties to rounding.

        Args:
            inputs: What `prepare` returns, of the photo.
            size: (height, width) of its label map.

        Returns:
            Whether it is run: not for models that cannot be fused, nor in half precision, where it rounds otherwise.
        """
        if self.model.dtype != torch.float32 or not hasattr(self.model, "fuse"):
            return False
        before = self.label_maps([inputs], [size])[0]
        try:
            self.network = self.model.fuse()
        except ValueError:  # quantized, adapted or partly on another device
            return False
        if (self.label_maps([inputs], [size])[0] == before).mean() < SAME_LABELS:
            self.network = self.model
        return self.network is not self.model

    def speed_up(self, inputs: BatchFeature, size: tuple[int, int], fuse: bool = True, compile: bool = False) -> None:
        """Fuse, by `fuse`, and compile what is run from now on, unless that was done before.

        Args:
            inputs: What `prepare` returns, of the photo to fuse by.
            size: (height, width) of its label map.
            fuse: Whether there is enough to do.
            compile: Compile the network.
        """
        if self.network is self.model:
            if fuse:
                self.fuse(inputs, size)
            if compile:
                self.compile()

    def compile(self) -> None:
        """Compile what is run from now on, for each shape of its input when it first comes."""
        compiled = torch.compile(self.network)
        # Weights as constants, which oneDNN lays out once. As an option of `torch.compile` it has no effect: the
        # tracer looks at the setting itself.
        is_cpu = self.device.type == "cpu"
        self.network = torch._inductor.config.patch(freezing=True)(compiled) if is_cpu else compiled


def collate(inputs: Sequence[BatchFeature]) -> BatchFeature:
    """Put the inputs of photos together: images padded at the right and the bottom, windows with boxes of zeros.

    Raises:
        ValueError: for images of several sizes, where nothing says how they lie in the padding.
    """
    if len(inputs) == 1:
        return inputs[0]
    shapes = {each["pixel_values"].shape[2:] for each in inputs}
    if "windows" not in inputs[0] and len(shapes) > 1:
        raise ValueError(f"expected images of one size in a batch, got {' and '.join(str(tuple(s)) for s in shapes)}")
    batch = {}
    for name in inputs[0]:
        values = [each[name] for each in inputs]
        most = [max(lengths) for lengths in zip(*(value.shape[1:] for value in values), strict=True)]
        padding = [
            [
                end
                for length, longest in zip(value.shape[:0:-1], most[::-1], strict=True)
                for end in (0, longest - length)
            ]
            for value in values
        ]
        batch[name] = torch.cat([F.pad(value, pad) for value, pad in zip(values, padding, strict=True)])
    return BatchFeature(batch)


def _rows(scores: Tensor, top: int, bottom: int) -> Tensor:
    return scores[:, top:bottom]


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
