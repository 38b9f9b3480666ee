"""What fine-tuning takes from the data and the model: sizes, batch, warm-up, learning rates, class weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
)

from offseg_hf.data.check import SHOWN_CLASSES, SplitReport
from offseg_hf.data.dataset import label_set_of
from offseg_hf.data.formats.grouping import SHARE
from offseg_hf.evaluation.prediction import prepare
from offseg_hf.hub.training_card import RECIPE_FILE
from offseg_hf.models.configuration_offseg import OffSegConfig
from offseg_hf.training.build import NoValidationSplitError, Splits, load_splits, processor_on_backbone
from offseg_hf.training.checkpoint import find_resumable
from offseg_hf.training.environment import launched_precision
from offseg_hf.training.pixels import pixel_arithmetic
from offseg_hf.training.recipe import FINETUNE, Recipe, load_recipe
from offseg_hf.utils.yaml_files import parse_yaml
from offseg_hf.zoo.registration import register


if TYPE_CHECKING:
    from datasets import Dataset

COUNTED_SAMPLES = 500  # whose label maps are read; the shares of classes in more are the same
STEPS = 1000  # that a training should have, if that takes no smaller batch than the smallest
BATCHES = (4, 8, 16)
CROP_PIXELS = 512  # side of the largest crop, of models that take any size
SIZE_DIVISOR = 32
RARE = 0.1  # of the share that a class would have if all had the same
LARGEST_WEIGHT = 10.0
ADAPTERS = 10.0  # times the rate of an encoder: they begin anew
# Of models that predict masks, as Mask2Former and EoMT are trained; other models have what is in the recipe.
OF_MASKS = {
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "encoder_multiplier": 0.1,
    "head_multiplier": 1.0,
    "max_gradient_norm": 0.01,
}
# What is fitted, which a training that goes on keeps.
FITTED = {
    "data": ("validation_share",),
    "augmentation": ("crop_size", "scale", "mean", "std"),
    "optimizer": tuple(OF_MASKS),
    "schedule": ("warmup_iterations",),
    "training": ("batch_size", "log_interval", "mixed_precision"),
}


@dataclass(frozen=True)
class Facts:
    """What is known of the data before training.

    Args:
        num_samples: to train on.
        size: height and width, their medians.
        report: of the pixels of each class.
        held_out: how photos to validate on were taken out of them, in words; None if there is a split of them.
    """

    num_samples: int
    size: tuple[int, int]
    report: SplitReport
    held_out: str | None = None

    def rare_classes(self) -> list[str]:
        """Return the names of the classes that are there, with a small part of an equal share of the pixels."""
        rows = list(self.report.rows())
        return [name for name, pixels, share, _ in rows if pixels and share < RARE / len(rows)]


def fit_recipe(overrides: list[str], output: Path, resume: str | None = None) -> tuple[Recipe, list[str]]:
    """Make the recipe to fine-tune by, and five lines that say what it is.

    Args:
        overrides: `key=value`, with the model (`model.checkpoint` or `model.backbone`) and the data (`data.source`);
            they win.
        output: folder of the training.
        resume: as of `train`; a training that goes on keeps what was fitted when it began.

    Raises:
        ValueError: for a model or data that cannot be trained with; it names the setting.
        FileExistsError: if `output` holds a training that is not to be resumed.
    """
    register()
    asked = load_recipe(FINETUNE, overrides)
    saved = _saved(output.expanduser(), resume)
    config, processor = model_parts(asked)
    splits, share = load_fitting(asked, None if saved is None else saved["data"].get("validation_share"))
    facts = replace(look_at(splits.train), held_out=splits.held_out)
    look_at(splits.validation)  # what is wrong there is better known now than after an epoch
    if saved is None:
        fitted = fit(asked, facts, config, processor) | {"data": {"validation_share": share}}
    else:
        kept = {section: [name for name in names if name in saved[section]] for section, names in FITTED.items()}
        fitted = {section: {name: saved[section][name] for name in names} for section, names in kept.items()}
        fitted["loss"] = saved.get("loss", [])
    recipe = load_recipe(FINETUNE, overrides, fitted)
    return recipe, in_words(recipe, facts)


def load_fitting(recipe: Recipe, share: float | None) -> tuple[Splits, float | None]:
    """Load the data, of which a share is held out where there is no split to validate on; returns that share.

    Args:
        recipe: as it is asked for; a share or a split that its user wrote is taken as it is.
        share: of a training that goes on.
    """
    is_written = {"data.validation_share", "data.validation_split"} & recipe.written
    if share is not None and not is_written:
        recipe = _with_share(recipe, share)
    try:
        return load_splits(recipe), recipe.data.validation_share
    except NoValidationSplitError:
        if is_written:
            raise
        return load_splits(_with_share(recipe, SHARE)), SHARE


def _with_share(recipe: Recipe, share: float) -> Recipe:
    return replace(recipe, data=replace(recipe.data, validation_share=share))


def model_parts(recipe: Recipe) -> tuple[PreTrainedConfig, BaseImageProcessor]:
    """Return a configuration of the model's kind, and its image processor."""
    if (backbone := recipe.model.backbone) is not None:
        return OffSegConfig(), processor_on_backbone(backbone, recipe)
    checkpoint = recipe.model.checkpoint
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    return config, AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)


def look_at(data: Dataset) -> Facts:
    """Read label maps, of at most `COUNTED_SAMPLES` samples all over the data."""
    labels = label_set_of(data)
    report, sizes = SplitReport("train", labels, len(data)), []
    count = min(len(data), COUNTED_SAMPLES)
    rows = data.select_columns("label").select(np.linspace(0, len(data) - 1, count).round().astype(int))
    for row in rows:
        ids = np.asarray(row["label"])
        sizes.append(ids.shape)
        report.add(np.bincount(ids.ravel(), minlength=max(labels.ignore_index, len(labels)) + 1))
    height, width = np.median(sizes, axis=0).round().astype(int).tolist()
    return Facts(len(data), (height, width), report)


def fit(recipe: Recipe, facts: Facts, config: PreTrainedConfig, processor: BaseImageProcessor) -> dict[str, Any]:
    """Choose values for the data and the model, by section.

    Args:
        recipe: as it is asked for, whose length and batch the rest follows from.
        facts: of the data.
        config: the model's.
        processor: the model's, whose size training is at.
    """
    scale, crop = sizes(facts.size, processor)
    if config.model_type.startswith("eomt"):  # the only one of its kind whose processor need not make it so
        crop = (config.image_size, config.image_size)
    arithmetic = pixel_arithmetic(processor)
    written = recipe.written
    batch = recipe.training.batch_size if "training.batch_size" in written else _batch_size(recipe, facts, crop)
    epoch = math.ceil(facts.num_samples / batch)
    length = recipe.schedule.in_iterations(epoch).length
    masks = type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    optimizer: dict[str, Any] = dict(OF_MASKS) if masks else {}
    if recipe.model.lora_rank is not None:
        optimizer["encoder_multiplier"] = optimizer.get("head_multiplier", ADAPTERS)
    base = optimizer.get("learning_rate", recipe.optimizer.learning_rate)
    optimizer["learning_rate"] = float(f"{base * math.sqrt(batch / BATCHES[-1]):.2g}")
    fitted: dict[str, Any] = {
        "augmentation": {
            "crop_size": list(crop),
            "scale": list(scale),
            "mean": [round(value, 3) for value in arithmetic.mean],
            "std": [round(value, 3) for value in arithmetic.std],
        },
        "optimizer": optimizer,
        "schedule": {} if recipe.schedule.kind == "constant" else {"warmup_iterations": length // 20},
        "training": {"batch_size": batch, "log_interval": min(50, epoch), "mixed_precision": available_precision()},
    }
    has_weights = bool(recipe.model.config.get("semantic_loss_class_weights"))
    if facts.rare_classes() and not masks and not has_weights:
        weights = [min(weight, LARGEST_WEIGHT) for weight in facts.report.class_weights()]
        fitted["loss"] = [{"kind": "cross_entropy", "class_weights": weights}]
    return fitted


def sizes(size: tuple[int, int], processor: BaseImageProcessor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the scale (long and short edge) and the crop (height, width) to train at, as the model is evaluated.

    Args:
        size: height and width of the photos.
        processor: the model's; what it makes of a photo of this size is what the model is evaluated on.
    """
    height, width = size
    (view,) = prepare(Image.new("RGB", (width, height)), processor)
    seen = tuple(view["pixel_values"].shape[-2:])
    named = dict(processor.size)
    is_resized, window = getattr(processor, "do_resize", True), getattr(processor, "window_size", None)
    if is_resized and named.get("shortest_edge"):
        factor = named["shortest_edge"] / min(size)
        if longest := named.get("longest_edge"):
            factor = min(factor, longest / max(size))
    elif is_resized:
        factor = math.sqrt(seen[0] * seen[1] / (height * width))  # of photos that are stretched, as large in area
    else:
        factor = 1.0
    scale = (max(round(max(size) * factor), 1), max(round(min(size) * factor), 1))
    if window:
        return scale, (window, window)
    if is_resized and named.get("height"):
        return scale, (int(seen[0]), int(seen[1]))  # of a model that may be made for this size alone
    height, width = (min(round(edge * factor), CROP_PIXELS) for edge in size)
    return scale, (_next_multiple(height), _next_multiple(width))


def available_precision() -> str | None:
    """Return bf16 where there is a GPU that has it, and the launcher is told nothing else; None without."""
    if launched_precision() is not None or not torch.cuda.is_available():
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else None


def in_words(recipe: Recipe, facts: Facts) -> list[str]:
    """Say in five lines what the training is going to be."""
    report, augmentation, schedule = facts.report, recipe.augmentation, recipe.schedule
    optimizer, training = recipe.optimizer, recipe.training
    epoch = math.ceil(facts.num_samples / training.batch_size)
    length = schedule.in_iterations(epoch).length
    height, width = augmentation.crop_size
    if augmentation.scale is None:
        resized = "at their own size"
    else:
        low, high = augmentation.ratio_range
        resized = f"resized to {max(augmentation.scale)}x{min(augmentation.scale)}, times {low:g} to {high:g}"
    every = training.evaluation_interval
    patience = "" if training.patience is None else f", and the end after {training.patience} without a better mIoU"
    rank = recipe.model.lora_rank
    part = "the encoder" if rank is None else f"adapters in the encoder (LoRA, rank {rank})"
    rates = f"{optimizer.learning_rate * optimizer.head_multiplier:.2g} for the head, " + (
        f"{optimizer.learning_rate * optimizer.encoder_multiplier:.2g} for {part}"
        if recipe.model.freeze is None
        else "the encoder frozen"
    )
    average = "no averaged weights" if training.ema_decay is None else f"averaged weights (EMA {training.ema_decay:g})"
    kinds = " + ".join(f"{term.weight:g} x {term.kind}" if term.weight != 1 else term.kind for term in recipe.loss)
    precision = training.mixed_precision or launched_precision()
    rare = facts.rare_classes()
    weighted = any(term.class_weights for term in recipe.loss)
    names = ", ".join(rare[:SHOWN_CLASSES]) + (", ..." if len(rare) > SHOWN_CLASSES else "")
    about = f"rare classes: {names}" if rare else "no class is rare"
    held_out = "" if facts.held_out is None else f"; no split to validate on: {facts.held_out}"
    return [
        f"data: {_count(facts.num_samples, 'sample')} to train on, {_count(len(report.labels), 'class')}, "
        f"photos of {facts.size[1]}x{facts.size[0]}{held_out}",
        f"size: photos {resized}, in crops of {width}x{height}",
        f"length: {_count(length, 'iteration')} of {_count(training.batch_size, 'sample')}, {epoch} an epoch; an "
        f"evaluation {'each epoch' if every is None else f'every {every} iterations'}{patience}",
        f"learning: {optimizer.kind}, {rates}, {schedule.warmup_iterations} iterations of warm-up; {average}; "
        f"precision {'float32' if precision in (None, 'no') else precision}",
        f"loss: {kinds or 'that of the model'}{', classes weighted' if weighted else ''}; {about}",
    ]


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural * (number != 1)}"


def _saved(output: Path, resume: str | None) -> Mapping[str, Any] | None:
    """Return the recipe of the training to go on with, if there is one."""
    folder = find_resumable(output, resume)
    if folder is None or not (file := folder.parent / RECIPE_FILE).is_file():
        return None
    return parse_yaml(file.read_text(encoding="utf-8"))


def _batch_size(recipe: Recipe, facts: Facts, crop: tuple[int, int]) -> int:
    """Choose the largest batch with which there are `STEPS` iterations, and that is not too large for a device."""
    epochs = recipe.schedule.epochs
    fits = [size for size in BATCHES if size * math.prod(crop) <= BATCHES[-1] * CROP_PIXELS**2] or [BATCHES[0]]
    enough = [size for size in fits if epochs is None or facts.num_samples * epochs >= STEPS * size]
    return max(enough, default=BATCHES[0])


def _next_multiple(edge: int) -> int:
    return max(-(-edge // SIZE_DIVISOR), 1) * SIZE_DIVISOR
