"""Set-up of a training before its first iteration: one function for each part, which returns what it made."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import BaseImageProcessor, PreTrainedModel

from offseg_hf.conversion import load_pretrained
from offseg_hf.data.check import first_look
from offseg_hf.data.dataset import label_set_of
from offseg_hf.evaluation import evaluate_model
from offseg_hf.training.batches import Batches, device_batch_size
from offseg_hf.training.build import (
    Splits,
    build_model,
    checkpoint_activations,
    depends_on_device_batch,
    freeze,
    keep_training_mode,
    load_splits,
    require_something_to_learn,
    settings_without_effect,
    synchronize_batch_norms,
    takes_masks,
)
from offseg_hf.training.checkpoint import (
    LastCheckpoint,
    Resumed,
    are_scores_comparable,
    exclusive,
    find_resumable,
    label_facts,
    load_state,
    require_same_held_out,
    require_same_labels,
    require_same_recipe,
)
from offseg_hf.training.environment import check_launcher, launcher_notes, make_accelerator, mixed_precision
from offseg_hf.training.log import check_tracker
from offseg_hf.training.lora import add_adapters, require_peft
from offseg_hf.training.losses import build_loss
from offseg_hf.training.optimization import build_optimizer
from offseg_hf.training.recipe import Recipe, ScheduleRecipe
from offseg_hf.training.state import INITIALIZATION, Progress, WeightAverage, seed_generators
from offseg_hf.training.values import named_settings
from offseg_hf.utils.memory import keep_freed_memory
from offseg_hf.utils.texts import one_line


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Training:
    """One process's part of a training, set up to run.

    Args:
        held_out: fingerprint of what was held out of the training data to validate on, if the recipe says so.
        wrapped_model: the model as the processes train it together.
        loss: of logits and labels, by the recipe; None for the model's own.
        schedule: the recipe's, in iterations.
        epoch: in iterations.
        average: of the weights, if the recipe wants one.
        progress: how far it is, which changes.
        last: where it would go on from, which changes too.
        notes: to be told at the beginning.
    """

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    train_data: Dataset
    validation_data: Dataset
    held_out: str | None
    model: PreTrainedModel
    processor: BaseImageProcessor
    average: WeightAverage[PreTrainedModel] | None
    wrapped_model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor] | None
    schedule: ScheduleRecipe
    epoch: int
    optimizer: Optimizer
    batches: Batches
    progress: Progress
    last: LastCheckpoint
    notes: tuple[str, ...]

    @property
    def shown_model(self) -> PreTrainedModel:
        """The model that is evaluated and given to users: of the averaged weights, if there are any."""
        return self.model if self.average is None else self.average.model

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.progress.iteration >= self.schedule.length or self.has_lost_patience

    @property
    def has_lost_patience(self) -> bool:
        """Whether too many evaluations in a row were not better than the best."""
        patience = self.recipe.training.patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def why_it_ended(self) -> str:
        """Say why it ended before its last iteration."""
        progress, plural = self.progress, "s" * (self.progress.evaluations_since_best > 1)
        best = "none had one" if progress.best_iteration is None else f"best/ is that of {progress.best_iteration}"
        return (
            f"ended at iteration {progress.iteration} of {self.schedule.length}: {progress.evaluations_since_best} "
            f"evaluation{plural} in a row without a better mIoU (training.patience); {best}"
        )

    def how_to_go_on(self) -> str:
        """Say how far the training is, and what to do if it stops here."""
        done = f"after iteration {self.progress.iteration} of {self.schedule.length}"
        return f"{done}, which is in {self.last.folder}; the same command with --resume auto goes on"

    def state_dict(self) -> dict[str, Any]:
        """Return all that the training goes on from, and what must be as it was then."""
        scaler = self.accelerator.scaler
        return {
            "progress": asdict(self.progress),
            "recipe": self.recipe.to_dict(),
            "epoch": self.epoch,
            "labels": label_facts(label_set_of(self.train_data)),
            "samples": len(self.train_data),
            "held_out": self.held_out,
            "device_batch": self.batches.size,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }


def set_up(recipe: Recipe, output: Path, resume: str | Path | None, stack: ExitStack, told: Sequence[str]) -> Training:
    """Set up a training by a recipe, new or to go on; `stack` closes what is opened, `told` begins its notes."""
    recipe, accelerator = start_process(recipe, output, stack)
    resumed = find_resumed(recipe, output, resume, accelerator)
    notes = list(told)
    notes += [] if resumed is None else [f"going on from {resumed.folder}, iteration {resumed.iteration}"]
    notes += launcher_notes(os.environ)
    if recipe.left_out:
        notes.append(f"left out, as it does not apply: {', '.join(recipe.left_out)}")
    data = load_data(recipe, resumed)
    train_data = data.train
    if data.held_out is not None and not any(data.held_out in note for note in notes):
        notes.append(f"no split to validate on: {data.held_out}")
    schedule, epoch = count_iterations(recipe, train_data, resumed)
    if resumed is None:
        notes += first_look(train_data)

    model, processor = make_model(recipe, train_data, resumed, notes)
    if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        synchronize_batch_norms(model)
    model.to(accelerator.device)
    decay = recipe.training.ema_decay
    average = None if decay is None else WeightAverage(model, decay)
    keep_training_mode(model, recipe)
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(model)
    wrapped_model, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
    if recipe.training.compile:
        wrapped_model = torch.compile(wrapped_model)
        notes.append("the model is compiled in the first iteration, which takes minutes (training.compile)")

    progress = Progress() if resumed is None else Progress(**resumed.state["progress"])
    training = Training(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        train_data=train_data,
        validation_data=data.validation,
        held_out=data.fingerprint,
        model=model,
        processor=processor,
        average=average,
        wrapped_model=wrapped_model,
        loss=make_loss(recipe, model, train_data),
        schedule=schedule,
        epoch=epoch,
        optimizer=optimizer,
        batches=Batches(recipe, train_data, model, processor, accelerator, progress.iteration, stack),
        progress=progress,
        last=LastCheckpoint(None if resumed is None else resumed.folder, replace(progress)),
        notes=(),
    )
    if resumed is not None:
        load_training_state(training, resumed)
        notes += what_changed(training, resumed)
    rehearse_evaluation(training)
    return replace(training, notes=tuple(notes))


def start_process(recipe: Recipe, output: Path, stack: ExitStack) -> tuple[Recipe, Accelerator]:
    """Join the other processes, and keep `output` for this training; the recipe's precision is the launcher's then."""
    check_launcher(os.environ)
    precision = mixed_precision(recipe.training.mixed_precision, os.environ)
    recipe = replace(recipe, training=replace(recipe.training, mixed_precision=precision))
    check_tracker(recipe.training.report_to)
    if recipe.model.lora_rank is not None:
        require_peft()
    tracker = None if recipe.training.report_to == "none" else recipe.training.report_to
    accelerator = make_accelerator(precision, tracker, output)
    torch.backends.cudnn.benchmark = True  # all crops are of one size
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    device_batch_size(recipe, accelerator.num_processes)  # an error before anything is read
    if accelerator.num_processes > 1:  # of depthwise weights, whose two layouts in memory are one
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if accelerator.is_main_process:
        stack.enter_context(exclusive(output))
    return recipe, accelerator


def find_resumed(recipe: Recipe, output: Path, resume: str | Path | None, accelerator: Accelerator) -> Resumed | None:
    """Read the checkpoint to go on from, if there is one; raises ValueError if it is of another recipe."""
    with accelerator.main_process_first():  # it puts in order what a kill has left
        folder = find_resumable(output, resume)
    if folder is None:
        return None
    state = load_state(folder)
    require_same_recipe(recipe, state["recipe"], folder)
    return Resumed(folder, state)


def load_data(recipe: Recipe, resumed: Resumed | None) -> Splits:
    """Load the splits to train and to validate on, with the same classes, of which there must be some in either."""
    data, splits = recipe.data, load_splits(recipe)
    labels = label_set_of(splits.train)
    if label_set_of(splits.validation).names != labels.names:
        raise ValueError("expected one list of classes in training and validation data, got two different ones")
    if resumed is not None:
        require_same_labels(recipe, labels, resumed.state, resumed.folder)
        require_same_held_out(recipe, splits.fingerprint, resumed.state, resumed.folder)
    require_something_to_learn(splits.train, f"data.train_split={data.train_split}")
    of = "split" if splits.held_out is None else "share"
    require_something_to_learn(splits.validation, f"data.validation_{of}={getattr(data, f'validation_{of}')}")
    return splits


def count_iterations(recipe: Recipe, data: Dataset, resumed: Resumed | None) -> tuple[ScheduleRecipe, int]:
    """Return the schedule in iterations, and those of an epoch; a training that goes on keeps what it began with."""
    state = {} if resumed is None else resumed.state
    epoch = state.get("epoch") or math.ceil(len(data) / recipe.training.batch_size)
    try:
        return recipe.schedule.in_iterations(epoch), epoch
    except ValueError as error:
        raise ValueError(f"schedule: {error}; an epoch has {epoch}") from None


def make_loss(recipe: Recipe, model: PreTrainedModel, data: Dataset) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Make the loss of the recipe, if the model has logits for it; None for the model's own."""
    if not recipe.loss or takes_masks(model):
        return None
    labels = label_set_of(data)
    return build_loss(recipe.loss, len(labels), labels.ignore_index)


def make_model(
    recipe: Recipe, data: Dataset, resumed: Resumed | None, notes: list[str]
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Build the model for the classes of the data as a training by the recipe begins with it, and its processor.

    Args:
        recipe: of the training.
        data: to train on.
        resumed: what it goes on from.
        notes: gets what of the recipe does not apply, and what of a checkpoint begins anew.
    """
    seed_generators(recipe.training.seed, INITIALIZATION)
    told: list[str] = []
    model, processor = build_model(recipe, label_set_of(data), told.append)
    if resumed is None:  # one that goes on was told when it began
        notes += told
    if inherited := settings_without_effect(recipe, model, processor):
        notes.append(f"left out, as it does not apply to this model: {', '.join(inherited)}")
    if resumed is None and recipe.model.pretrained is not None:
        load_pretrained(model, recipe.model.pretrained)
    if recipe.model.lora_rank is not None:
        base = recipe.model.checkpoint or recipe.model.backbone
        assert base is not None  # as the recipe has been checked
        add_adapters(model, base, recipe.model.lora_rank, recipe.model.lora_alpha)
    if resting := freeze(model, recipe):
        notes.append(f"do not learn, as `loss` takes the logits alone: {', '.join(resting)}")
    return model, processor


def load_training_state(training: Training, resumed: Resumed) -> None:
    """Load what `Training.state_dict` gave."""
    state = resumed.state
    try:
        training.model.load_state_dict(state["model"])
        if training.average is not None:
            training.average.model.load_state_dict(state["average"])
        training.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{resumed.folder}: expected the weights of the model of this recipe, got others: {one_line(error)}"
        ) from error
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])


def what_changed(training: Training, resumed: Resumed) -> list[str]:
    """Say what is free to change, and makes a difference nevertheless; scores that it makes incomparable are left."""
    notes = []
    samples, size, progress = len(training.train_data), training.batches.size, training.progress
    before, size_before = resumed.state.get("samples"), resumed.state.get("device_batch")
    if before not in (None, samples):
        notes.append(f"{samples} samples to train on, where there were {before}: they come in another order")
    is_mean = training.loss is not None  # over the labeled pixels of what a device takes
    if size_before not in (None, size) and (is_mean or depends_on_device_batch(training.model)):
        notes.append(
            f"a device takes {size} samples at once, where it took {size_before}: batch norms, losses "
            "or what is dropped at random will differ from those of a training that goes on as it was"
        )
    if not are_scores_comparable(training.recipe, resumed.state["recipe"]) and progress.best_score is not None:
        notes.append(
            f"evaluated otherwise than before: the best so far, {progress.best_score:.4f} at "
            f"{progress.best_iteration}, does not count any more"
        )
        progress.forget_best()
    return notes


def rehearse_evaluation(training: Training) -> None:
    """Evaluate one image, so that what cannot be evaluated is told before it is trained."""
    image, settings = training.validation_data.select(range(1)), training.recipe.model.image_processor
    with named_settings("model.image_processor", settings):
        evaluate_model(training.shown_model, training.processor, image, accelerator=training.accelerator)
