"""Builders of what a recipe names: data, model and image processor."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedModel,
)

from offseg_hf.adaptation import apply_offset_learning
from offseg_hf.data.dataset import label_set_of, load_data, sample_names
from offseg_hf.data.formats.grouping import hold_out
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.data.layouts import UnknownSplitError
from offseg_hf.models.configuration_offseg import OffSegConfig
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.models.modeling_offseg import OffSegForSemanticSegmentation
from offseg_hf.models.modeling_utils import BATCH_NORMS, statistics_as_they_are
from offseg_hf.training.going_on import load_trained
from offseg_hf.training.optimization import OFFSETS, encoder_modules, encoder_of, without_effect
from offseg_hf.training.recipe import Recipe, config_without_effect, refuse_written
from offseg_hf.training.values import check_settings, named_settings, require_known
from offseg_hf.zoo.registration import auto_model_class, register


if TYPE_CHECKING:
    from datasets import Dataset


def load_split(recipe: Recipe, split: str) -> Dataset:
    """Load a split of the recipe's data."""
    data = load_data(recipe.data.data_source(), split)
    assert not isinstance(data, dict)
    return data


@dataclass(frozen=True)
class Splits:
    """The data to train on, and to validate on.

    Args:
        held_out: how the latter was taken out of the former, in words; None if it is a split of its own.
        fingerprint: of the names of what was held out.
    """

    train: Dataset
    validation: Dataset
    held_out: str | None = None
    fingerprint: str | None = None


class NoValidationSplitError(ValueError):
    """There is nothing to validate on."""


def load_splits(recipe: Recipe) -> Splits:
    """Load the splits to train and to validate on; the latter is held out of the former by `data.validation_share`.

    Raises ValueError for a share to be held out though there is a split to validate on, and for neither.
    """
    data, share = recipe.data, recipe.data.validation_share
    train = load_split(recipe, data.train_split)
    try:
        validation = load_split(recipe, data.validation_split)
        is_same = bool(train.cache_files) and train.cache_files == validation.cache_files  # as saved without splits
        is_wanted = data.validation_split == data.train_split
        missing = f"{data.source}: all is one split, to train on" if is_same and not is_wanted else None
    except UnknownSplitError as error:
        missing = str(error)
    if missing is None and share is None:
        return Splits(train, validation)
    if missing is None:
        raise ValueError(
            f"data.validation_share={share:g} has no effect, as the data has the split {data.validation_split} "
            "(data.validation_split): remove it"
        )
    if share is None:
        raise NoValidationSplitError(f"{missing}; data.validation_share=0.2 holds out a fifth of it to validate on")
    return _hold_out(train, share)


def _hold_out(data: Dataset, share: float) -> Splits:
    """Hold out a share of the samples, by their names below the folder that they have in common."""
    names = [os.path.splitext(name)[0] for name in sample_names(data)]
    if len(names) < 2:
        raise ValueError(
            f"data.validation_share={share:g}: expected two photos or more, of which one is to validate on, got "
            f"{len(names)}: add photos, or evaluate on what it is trained on (data.validation_split=train)"
        )
    if all(map(os.path.isabs, names)):
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, folder).replace(os.sep, "/") for name in names]
    chosen, told = hold_out(names, share)
    kept: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(names):
        kept[name in chosen].append(index)
    fingerprint = hashlib.sha256("\n".join(sorted(chosen)).encode()).hexdigest()
    return Splits(data.select(kept[False]), data.select(kept[True]), told, fingerprint)


def build_model(
    recipe: Recipe, labels: LabelSet, say: Callable[[str], None] = lambda message: None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Build the model, with random weights or those of its checkpoint or its backbone, and its image processor.

    Args:
        recipe: of the training.
        labels: the classes.
        say: told what of the checkpoint does not go on: classes of its classifier, and what else begins anew.

    Raises:
        ValueError: names the setting of the recipe that does not fit.
    """
    register()
    classes = {
        "id2label": labels.id2label(),
        "label2id": labels.label2id(),
        "semantic_loss_ignore_index": labels.ignore_index,
    }
    checkpoint, changes = recipe.model.checkpoint, recipe.model.image_processor
    if (backbone := recipe.model.backbone) is not None:
        return build_on_backbone(backbone, recipe, classes), processor_on_backbone(backbone, recipe)
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
        kinds = getattr(processor.valid_kwargs, "__annotations__", {})
        require_known(changes, sorted({*processor.to_dict(), *kinds}), "model.image_processor.")
        changes = check_settings("model.image_processor", changes, kinds)
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False, **changes)
    if recipe.model.offset_learning:
        model = with_offset_learning(model, checkpoint)
    return model, processor


def build_on_backbone(backbone: str, recipe: Recipe, classes: Mapping[str, Any]) -> PreTrainedModel:
    """Build OffSeg on a trained backbone; raises ValueError and OSError for what is none."""
    kinds = {item.name: item.type for item in fields(OffSegConfig)}
    require_known(recipe.model.config, list(kinds), "model.config.")
    changes = check_settings("model.config", recipe.model.config, kinds)
    with named_settings("model.config", changes):
        model = OffSegForSemanticSegmentation.from_backbone(backbone, **classes, **changes)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # as of a checkpoint
    return model


def processor_on_backbone(backbone: str, recipe: Recipe) -> BaseImageProcessor:
    """Build the image processor of a model on a backbone, with the recipe's changes."""
    kinds = OffSegImageProcessor.valid_kwargs.__annotations__
    require_known(recipe.model.image_processor, list(OffSegImageProcessor().to_dict()), "model.image_processor.")
    changes = check_settings("model.image_processor", recipe.model.image_processor, kinds)
    return OffSegImageProcessor.from_backbone(backbone, **changes)


def with_offset_learning(model: PreTrainedModel, checkpoint: str | None) -> PreTrainedModel:
    """Apply offset learning, which continues the classifier; raises ValueError where that has no effect or place."""
    try:
        adapted = apply_offset_learning(model)
    except ValueError as error:
        raise ValueError(f"model.offset_learning=true does not go with {checkpoint}: {error}") from None
    assert isinstance(adapted, PreTrainedModel)
    return adapted


def freeze(model: PreTrainedModel, recipe: Recipe) -> list[str]:
    """Take the gradients of what is not to learn; returns the auxiliary heads among it, of which nobody has said so.

    Raises ValueError if the encoder is to be frozen and nothing is known as one.
    """
    if recipe.model.freeze == "encoder":
        if not (encoder := encoder_modules(model)):
            raise ValueError(f"model.freeze=encoder: nothing in this {type(model).__name__} is known as its encoder")
        for module in encoder.values():
            module.requires_grad_(False)
    for _, parameter in without_effect(model):  # which processes that train together would wait for
        parameter.requires_grad_(False)
    if not recipe.loss or takes_masks(model):
        return []
    heads = {name: module for name, module in model.named_modules() if name.split(".")[-1].startswith("auxiliary")}
    for module in heads.values():
        module.requires_grad_(False)
    return list(heads)


def keep_training_mode(model: PreTrainedModel, recipe: Recipe) -> None:
    """Set training mode, but for a frozen encoder: norms in it keep their statistics, and nothing is dropped.

    Of an encoder with adapters the norms alone rest.
    """
    model.train()
    for encoder in encoder_modules(model).values():
        if recipe.model.freeze == "encoder":
            encoder.eval()
        elif recipe.model.lora_rank is not None:
            for module in encoder.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()


def takes_masks(model: PreTrainedModel) -> bool:
    """Return whether a model learns from masks and their classes, and not from label maps."""
    return "mask_labels" in inspect.signature(type(model).forward).parameters


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
    if recipe.loss and takes_masks(model):
        found.append(("loss", f"{type(model).__name__} predicts masks, and has a loss of its own"))
    optimizer = recipe.optimizer
    names = [name for name, _ in model.named_parameters()]
    if optimizer.offset_multiplier != 1 and not any(OFFSETS.match(name) for name in names):
        found.append(("optimizer.offset_multiplier", f"this {type(model).__name__} has no offsets"))
    encoder = encoder_of(model)
    if not any(encoder.match(name) for name in names):
        reason = f"nothing in this {type(model).__name__} is known as its encoder"
        names = [name for name in ("encoder_multiplier", "head_multiplier") if getattr(optimizer, name) != 1]
        found += [(f"optimizer.{name}", reason) for name in names]
    for key, reason in found:
        refuse_written(recipe, key, reason)
    return [key for key, _ in found]


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
    """Raise ValueError if no pixel of a split has a class, or all must have the same; reads until one has."""
    names, ignore_index = label_set_of(data).names, label_set_of(data).ignore_index
    if len(names) == 1:
        raise ValueError(
            f"{split}: expected two classes or more to tell apart, got {names[0]} alone, which every pixel would be: "
            'give what else is in the photos a name in classes.json, such as {"classes": {"0": "background", "255": '
            f'"{names[0]}"}}}}, by the values in the masks'
        )
    for row in data.select_columns("label"):
        if (np.asarray(row["label"]) != ignore_index).any():
            return
    raise ValueError(
        f"{split}: expected label maps with classes, got {len(data)} in which every pixel is void ({ignore_index}): "
        "look at the values in them and in classes.json (`offseg data check` counts them)"
    )


def depends_on_device_batch(model: PreTrainedModel) -> bool:
    """Return whether it makes a difference to training, beyond rounding, which samples a device takes together."""
    if not hasattr(model, "segment"):  # not of ours: its loss is a mean over labeled pixels, or over masks
        return True
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    learns = any(not isinstance(norm, FixedBatchNorm2d) for norm in norms)
    parts = (model.config.to_dict(), model.config.to_dict().get("backbone_config") or {})
    settings = [item for part in parts for item in part.items()]
    rates = [value for name, value in settings if "drop" in name and isinstance(value, int | float)]
    return learns or any(rate > 0 for rate in rates)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Make batch norms in a module those of all processes; torch's own conversion lets fixed statistics learn, too."""
    for name, child in module.named_children():
        if isinstance(child, FixedBatchNorm2d):
            continue
        if isinstance(child, BATCH_NORMS):
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            synchronize_batch_norms(child)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let a model compute its activations again for the gradients; raises ValueError for one that cannot."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"training.gradient_checkpointing=true: {type(model).__name__} has no parts that compute their "
            "activations again; leave it out, and make training.device_batch_size smaller to save memory"
        )
    contexts = partial(_contexts_of_checkpoints, model)
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def _contexts_of_checkpoints(model: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return what the first and the second computation of a part run under."""
    return nullcontext(), statistics_as_they_are([norm for norm in model.modules() if isinstance(norm, BATCH_NORMS)])
