"""What a recipe names, made: data, model, image processor and the batches that a process trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedModel,
)

from offseg_hf import auto_model_class, register
from offseg_hf.data.datasets import load_segmentation_data
from offseg_hf.data.labels import LabelSet
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.training.interruption import ignore_signals
from offseg_hf.training.recipe import Recipe
from offseg_hf.training.values import require_known


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


def build_model(recipe: Recipe, labels: LabelSet) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model, with random weights or those of `model.checkpoint`, and its image processor.

    A classifier of the checkpoint that is one of other classes begins anew.
    """
    register()
    classes = {
        "id2label": labels.id2label(),
        "label2id": labels.label2id(),
        "semantic_loss_ignore_index": labels.ignore_index,
    }
    checkpoint = recipe.model.checkpoint
    if checkpoint is None:
        config = recipe.model_config(**classes)
        return auto_model_class(config).from_config(config), recipe.image_processor()
    classes["semantic_loss_class_weights"] = None  # those of the checkpoint were for its own data
    own = {"trust_remote_code": False}  # nor is there a question whether to run the code of others
    config = AutoConfig.from_pretrained(checkpoint, **own, **(classes | recipe.model.config))
    require_known(recipe.model.config, list(config.to_dict()), "model.config.")
    model = auto_model_class(config).from_pretrained(
        checkpoint, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **own
    )
    return model, AutoImageProcessor.from_pretrained(checkpoint, **own, **recipe.model.image_processor)


def require_same_normalization(transform: TrainingTransform, processor: BaseImageProcessor) -> None:
    """Raise ValueError if training would normalise pixels otherwise than the image processor does."""
    for name, own in (("mean", processor.image_mean), ("std", processor.image_std)):
        expected, got = [255 * value for value in own], list(getattr(transform, name))
        if not np.allclose(expected, got, atol=0.1):
            raise ValueError(
                f"augmentation.{name}: expected what the model's image processor normalises by, {expected}, got {got}"
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


def training_loader(
    samples: TrainingSet, sampler: TrainingSampler, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Endless batches of a process."""
    return DataLoader(
        samples,
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


def synchronize_batch_norms(module: nn.Module) -> nn.Module:
    """Batch norms over all processes, in place. torch's own conversion would let fixed statistics learn, too."""
    if isinstance(module, FixedBatchNorm2d):
        return module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronize_batch_norms(child))
    return module
