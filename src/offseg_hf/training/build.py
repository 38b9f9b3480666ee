"""What a recipe names, made: data, model, image processor and the batches that a process trains on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedModel,
)

from offseg_hf.data.dataset import label_set_of, load_segmentation_data, sample_name
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.training.going_on import load_trained
from offseg_hf.training.interruption import ignore_signals
from offseg_hf.training.optimization import OFFSETS, encoder_of
from offseg_hf.training.recipe import Recipe, config_without_effect, refuse_written
from offseg_hf.training.settings_errors import check_types, named_settings
from offseg_hf.training.values import require_known
from offseg_hf.utils.texts import one_line
from offseg_hf.zoo.registration import auto_model_class, register


if TYPE_CHECKING:
    from datasets import Dataset


def load_split(recipe: Recipe, split: str) -> Dataset:
    """A split of the recipe's data."""
    data = recipe.data
    return load_segmentation_data(
        data.source,
        split,
        config_name=data.config_name,
        revision=data.revision,
        image_column=data.image_column,
        label_column=data.label_column,
        labels=data.labels,
    )


def build_model(
    recipe: Recipe, labels: LabelSet, say: Callable[[str], None] = lambda message: None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Build the model, with random weights or those of `model.checkpoint`, and its image processor.

    say: told what of the checkpoint does not go on: classes of its classifier, and what else begins anew.

    Raises ValueError that names the setting of the recipe that does not fit.
    """
    register()
    classes = {
        "id2label": labels.id2label(),
        "label2id": labels.label2id(),
        "semantic_loss_ignore_index": labels.ignore_index,
    }
    checkpoint, changes = recipe.model.checkpoint, recipe.model.image_processor
    if checkpoint is None:
        with named_settings("model.config", recipe.model.config):
            config = recipe.model_config(**classes)
            model = auto_model_class(config).from_config(config)
        processor = recipe.image_processor()
    else:
        model = load_trained(checkpoint, labels, recipe.model.config, say)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # out of the file into aligned memory: a resumed training rounds alike
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        require_known(changes, _processor_settings(processor), "model.image_processor.")
        check_types("model.image_processor", changes, processor.valid_kwargs)
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False, **changes)
    require_trainable(model)
    return model, processor


def _processor_settings(processor: BaseImageProcessor) -> list[str]:
    """What its `__init__` takes, set or not."""
    return sorted({*processor.to_dict(), *getattr(processor.valid_kwargs, "__annotations__", {})})


def require_trainable(model: PreTrainedModel) -> None:
    """Raise ValueError if the forward of a model wants other inputs than images and their label maps."""
    parameters = inspect.signature(type(model).forward).parameters
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    others = [name for name in needed if name not in ("self", "pixel_values")]
    learns = "labels" in parameters or {"mask_labels", "class_labels"} <= parameters.keys()
    if others or not learns:
        wants = f"wants {', '.join(others)} too" if others else "takes no label maps"
        raise ValueError(
            f"expected a model that learns from images and their label maps; the forward of {type(model).__name__} "
            f"{wants}, which offseg train does not support"
        )


def settings_without_effect(recipe: Recipe, model: PreTrainedModel, processor: BaseImageProcessor) -> list[str]:
    """Name the inherited settings that mean nothing for the model and its image processor.

    Raises ValueError for one that the recipe's user wrote.
    """
    found = []
    for name, reason in config_without_effect(model.config.to_dict()):
        if recipe.model.config.get(name):
            found.append((f"model.config.{name}", reason))
    for name, (switch, is_off) in PROCESSOR_SWITCHES.items():
        if recipe.model.image_processor.get(name) is not None and getattr(processor, switch, None) in is_off:
            value = str(getattr(processor, switch, None)).lower().replace("none", "null")
            found.append((f"model.image_processor.{name}", f"its {switch} is {value}"))
    optimizer = recipe.optimizer
    names = [name for name, _ in model.named_parameters()]
    if optimizer.offset_multiplier != 1 and not any(OFFSETS.match(name) for name in names):
        found.append(("optimizer.offset_multiplier", f"this {type(model).__name__} has no offsets"))
    encoder = encoder_of(model)
    if not any(encoder.match(name) for name in names):
        for name in ("encoder_multiplier", "head_multiplier"):
            if getattr(optimizer, name) != 1:
                found.append((f"optimizer.{name}", f"nothing in this {type(model).__name__} is known as its encoder"))
    for key, reason in found:
        refuse_written(recipe, key, reason)
    return [key for key, _ in found]


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Settings of image processors, by the other setting that switches them off, and what it is then.
PROCESSOR_SWITCHES = {
    "window_stride": ("window_size", (None,)),
    "image_mean": ("do_normalize", (False, None)),
    "image_std": ("do_normalize", (False, None)),
    "rescale_factor": ("do_rescale", (False, None)),
    "size": ("do_resize", (False, None)),
    "resample": ("do_resize", (False, None)),
    "size_divisor": ("do_pad", (False,)),
    "pad_size": ("do_pad", (False,)),
}


def require_something_to_learn(data: Dataset, split: str) -> None:
    """Raise ValueError if no pixel of a split has a class; reads label maps until one has."""
    ignore_index = label_set_of(data).ignore_index
    for row in data.select_columns("label"):
        if (np.asarray(row["label"]) != ignore_index).any():
            return
    raise ValueError(
        f"{split}: expected label maps with classes, got {len(data)} in which every pixel is void ({ignore_index}): "
        "look at the values in them and in classes.json (`offseg data check` counts them)"
    )


def device_batch_size(recipe: Recipe, num_processes: int) -> int:
    """Samples that a process takes at once, so that all take `training.batch_size` together in whole steps."""
    total = recipe.training.batch_size
    part, rest = divmod(total, num_processes)
    if rest:
        raise ValueError(
            f"training.batch_size: expected a multiple of the {num_processes} processes, got {total}; it counts the "
            "samples of all processes together"
        )
    size = recipe.training.device_batch_size or part
    if part % size:
        raise ValueError(
            f"training.device_batch_size: expected a divisor of {part}, which is the batch of {total} over "
            f"{num_processes} processes, got {size}"
        )
    return size


class SampleError(ValueError):
    """A sample cannot be used; the message is one line, which names its file."""


class NamedSamples(torch.utils.data.Dataset):
    """Samples whose errors, of whatever kind, are SampleErrors: the text of a worker's ends with its one line."""

    def __init__(self, samples: TrainingSet):
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        try:
            return self.samples[key]
        except ValueError as error:  # which names it
            raise SampleError(one_line(error)) from error
        except Exception as error:  # decoders raise almost anything on broken files
            name = sample_name(self.samples.dataset, key[1])
            raise SampleError(f"{name}: cannot be read: {one_line(error)}") from error


def training_loader(
    samples: TrainingSet, sampler: TrainingSampler, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Endless batches of a process."""
    return DataLoader(
        NamedSamples(samples),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=pin_memory,
    )


def model_inputs(
    batch: Mapping[str, Tensor], takes_masks: bool, ignore_index: int
) -> dict[str, Tensor | list[Tensor]]:
    """The arguments of a model's forward for images and label maps; a model of masks takes a mask for every class."""
    if not takes_masks:
        return dict(batch)
    classes = [labels.unique() for labels in batch["labels"]]
    classes = [present[present != ignore_index] for present in classes]
    masks = [(labels == present[:, None, None]).float() for labels, present in zip(batch["labels"], classes)]
    return {"pixel_values": batch["pixel_values"], "mask_labels": masks, "class_labels": classes}


def depends_on_device_batch(model: PreTrainedModel) -> bool:
    """Whether it makes a difference to training which samples a device takes together, beyond rounding."""
    if not hasattr(model, "segment"):  # not of ours: its loss is a mean over labelled pixels, or over masks
        return True
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    learns = any(not isinstance(norm, FixedBatchNorm2d) for norm in norms)
    settings = model.config.to_dict().items()
    rates = [value for name, value in settings if "drop" in name and isinstance(value, int | float)]
    return learns or any(rate > 0 for rate in rates)


def synchronize_batch_norms(module: nn.Module) -> nn.Module:
    """Batch norms over all processes, in place. torch's own conversion would let fixed statistics learn, too."""
    if isinstance(module, FixedBatchNorm2d):
        return module
    if isinstance(module, BATCH_NORMS):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronize_batch_norms(child))
    return module
