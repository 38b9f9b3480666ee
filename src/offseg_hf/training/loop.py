"""The training loop: iterations over an endless stream of samples, on any number of processes, that can be resumed.

What an iteration does is a function of the weights, the optimizer's moments, the recipe and the number of the
iteration: its samples, its learning rate and its random numbers follow from the last two. So a training that was
killed anywhere goes on from its last checkpoint as if it had not been.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from offseg_hf.data.dataset import label_set_of
from offseg_hf.evaluation import Sink, evaluate_model, metric_for
from offseg_hf.training.checkpoint import save_checkpoint
from offseg_hf.training.interruption import Interruption, TrainingInterrupted
from offseg_hf.training.optimization import set_learning_rates
from offseg_hf.training.recipe import Recipe
from offseg_hf.training.run import Run
from offseg_hf.training.setup import Training, set_up
from offseg_hf.training.state import ITERATION, Progress, seed_generators


def train(recipe: Recipe, output: str | Path, resume: str | Path | None = None, notes: Sequence[str] = ()) -> Progress:
    """Train by a recipe, into a folder: `last/`, `best/` (by mIoU), `log.jsonl`, `recipe.yaml`, `environment.json`.

    The checkpoints are models for `from_pretrained` and `pipeline`, with the state of the training beside them. Runs
    alone or under `accelerate launch`, in every process. SIGINT and SIGTERM end it after the current iteration.

    Args:
        recipe: from `load_recipe`.
        output: the folder.
        resume: "auto" to go on from the newest checkpoint in `output`, if there is one, or a checkpoint's folder.
        notes: to be told when it begins, once for all processes.

    Raises:
        TrainingInterrupted: by a signal, after `last/` was written.
        NonFiniteError: for a loss or gradients that are no finite numbers.
        ValueError: for a recipe that does not fit data, processes or checkpoint.
        FileExistsError: if `output` holds a training that is not to be resumed.
    """
    with Interruption() as interruption, ExitStack() as stack:
        with interruption.breakable("before the first iteration"):
            training = set_up(recipe, Path(output).expanduser(), resume, stack, notes)
            run = Run(training, stack)
        progress, settings = training.progress, training.recipe.training
        finish_iteration(training, run, interruption)  # what a training that goes on was killed before
        while not training.is_done:
            begin = time.perf_counter()
            norm, signal = training_step(training, interruption)
            run.advance(time.perf_counter() - begin)
            if progress.is_due(settings.log_interval):
                run.log_training(progress.take_mean_loss(), norm)
            finish_iteration(training, run, interruption, signal)
        if training.has_lost_patience:
            run.say(training.why_it_ended())
        if settings.hub_repository is not None:
            with interruption.breakable(training.how_to_go_on()):
                run.finish()
        return progress


def training_step(training: Training, interruption: Interruption) -> tuple[float, int]:
    """Do an iteration; returns the gradients' norm, and the signal that any of the processes got so far, or 0."""
    accelerator, progress, recipe = training.accelerator, training.progress, training.recipe
    seed_generators(recipe.training.seed, ITERATION, progress.iteration, accelerator.process_index)
    set_learning_rates(training.optimizer, progress.iteration, training.schedule)
    steps = training.batches.accumulation
    losses = [backward(training, is_last=step == steps - 1) for step in range(steps)]
    norm = clip_gradients(training)
    # One message to all processes and one wait for the device: losses, what might be wrong with them, signals.
    message = torch.stack([*losses, norm, losses[0].new_tensor(interruption.signal)])
    rows = accelerator.gather(message[None]).tolist()  # (processes, losses + 2)
    require_finite(training, losses=[row[:-2] for row in rows], norm=rows[0][-2])
    training.optimizer.step()
    training.optimizer.zero_grad()
    progress.add_iteration(loss=sum(loss for row in rows for loss in row[:-2]) / (len(rows) * steps))
    if training.average is not None:
        training.average.update(training.model, progress.iteration)
    return rows[0][-2], int(max(row[-1] for row in rows))


def backward(training: Training, is_last: bool) -> Tensor:
    """Add the gradients of one batch on this device; processes exchange them after the last. Returns the loss."""
    inputs, counts = next(training.batches)
    with nullcontext() if is_last else training.accelerator.no_sync(training.wrapped_model):
        loss = forward(training, inputs) * counts
        training.accelerator.backward(loss / training.batches.accumulation)
    return loss.detach().float().reshape(())


def forward(training: Training, inputs: dict[str, Tensor | list[Tensor]]) -> Tensor:
    """Compute the loss; raises ValueError for batch norms that get a single value."""
    try:
        if training.loss is None:
            return training.wrapped_model(**inputs).loss
        logits = training.wrapped_model(pixel_values=inputs["pixel_values"]).logits
        return training.loss(logits, cast(Tensor, inputs["labels"]))
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):  # of torch's batch norms
            raise
        size = "x".join(map(str, training.recipe.augmentation.crop_size))
        raise ValueError(
            f"a batch norm gets one value per channel, which has no statistics, from {training.batches.size} x {size} "
            "pixels at once: make augmentation.crop_size, training.batch_size or training.device_batch_size larger"
        ) from error


def clip_gradients(training: Training) -> Tensor:
    """Clip the gradients, if the recipe says so; returns their norm before that."""
    max_norm = training.recipe.optimizer.max_gradient_norm
    if max_norm is not None:
        return training.accelerator.clip_grad_norm_(training.model.parameters(), max_norm)
    training.accelerator.unscale_gradients()
    return nn.utils.get_total_norm([p.grad for p in training.model.parameters() if p.grad is not None])


class NonFiniteError(FloatingPointError, ValueError):
    """A loss or a gradient is no finite number."""


def require_finite(training: Training, losses: list[list[float]], norm: float) -> None:
    """Raise NonFiniteError if a loss or the gradients' norm is no finite number, before the weights take it in.

    Args:
        training: whose samples are named.
        losses: of each process, those of its batches in this iteration.
        norm: of the gradients.
    """
    names, iteration = training.batches.names, training.progress.iteration
    for process, of_process in enumerate(losses):
        for step, loss in enumerate(of_process):
            if not math.isfinite(loss):
                raise NonFiniteError(
                    _what_went_wrong(training, f"the loss is {loss}", names(iteration, process, step))
                )
    if not math.isfinite(norm) and training.accelerator.scaler is None:  # a scaler looks for a scale without overflow
        places = [(process, step) for process, row in enumerate(losses) for step in range(len(row))]
        samples = [name for place in places for name in names(iteration, *place)]
        raise NonFiniteError(_what_went_wrong(training, f"the norm of the gradients is {norm}", samples))


def _what_went_wrong(training: Training, problem: str, samples: list[str]) -> str:
    last = training.last
    way_back = (
        "There is no checkpoint before it"
        if last.folder is None
        else f"The last good checkpoint is {last.folder}, of iteration {last.progress.iteration}"
    )
    return (
        f"{problem} in iteration {training.progress.iteration}, of {', '.join(samples)}: stopped before the weights "
        f"changed. {way_back}; look at these samples, or lower optimizer.learning_rate"
    )


def finish_iteration(training: Training, run: Run, interruption: Interruption, signal: int = 0) -> None:
    """Save, evaluate and publish what is due after an iteration; raises TrainingInterrupted if a signal came."""
    progress, settings = training.progress, training.recipe.training
    is_last = progress.iteration == training.schedule.length
    to_evaluate = progress.evaluated < progress.iteration and (
        is_last or progress.is_due(settings.evaluation_interval or training.epoch)
    )
    if signal or is_last or to_evaluate or progress.is_due(settings.checkpoint_interval or training.epoch):
        save(training)
    if signal:
        raise TrainingInterrupted(signal, training.how_to_go_on())
    if to_evaluate:
        is_best = evaluate(training, run, interruption)
        if is_best:
            save(training, "best")
        save(training)
        if settings.hub_repository is not None:
            with interruption.breakable(training.how_to_go_on()):
                run.publish(is_best)
                training.accelerator.wait_for_everyone()


def save(training: Training, name: str = "last") -> None:
    """Write a checkpoint; `last` only if what is there is not of this moment."""
    folder, last = training.output / name, training.last
    if name == "last" and last.folder == folder and last.progress == training.progress:
        return
    if training.accelerator.is_main_process:
        labels = label_set_of(training.train_data)
        save_checkpoint(folder, training.shown_model, training.processor, labels, training.state_dict())
    training.accelerator.wait_for_everyone()
    if name == "last":
        last.folder, last.progress = folder, replace(training.progress)


def evaluate(training: Training, run: Run, interruption: Interruption) -> bool:
    """Evaluate the model of this iteration; returns whether it is the best so far."""
    begin = time.perf_counter()
    with interruption.breakable(training.how_to_go_on()):
        result = evaluate_model(
            training.shown_model,
            training.processor,
            training.validation_data,
            accelerator=training.accelerator,
            workers=training.recipe.data.workers,
            sink=Sink(metric_for(training.validation_data), run.evaluating),
        )
    is_best = training.progress.add_evaluation(result["mIoU"])
    run.log_evaluation(result, time.perf_counter() - begin, is_best)
    return is_best
