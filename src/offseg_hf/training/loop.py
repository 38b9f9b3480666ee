"""The training loop: iterations over an endless stream of samples, on any number of processes, that can be resumed.

What an iteration does is a function of the weights, the optimizer's moments, the recipe and the number of the
iteration: its samples, its learning rate and its random numbers follow from the last two. So a training that was
killed anywhere goes on from its last checkpoint as if it had not been.
"""

import inspect
import math
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offseg_hf.conversion import load_pretrained
from offseg_hf.data.check import first_look
from offseg_hf.data.dataset import label_set_of, sample_name
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.evaluation import evaluate_model
from offseg_hf.hub.training_card import LOG_FILE, RECIPE_FILE
from offseg_hf.training.build import (
    SampleError,
    build_model,
    depends_on_device_batch,
    device_batch_size,
    load_split,
    model_inputs,
    require_something_to_learn,
    settings_without_effect,
    synchronize_batch_norms,
    training_loader,
)
from offseg_hf.training.checkpoint import (
    are_scores_comparable,
    exclusive,
    find_resumable,
    label_facts,
    load_state,
    require_same_labels,
    require_same_recipe,
    save_checkpoint,
)
from offseg_hf.training.environment import (
    check_launcher,
    launcher_notes,
    make_accelerator,
    mixed_precision,
    write_environment,
)
from offseg_hf.training.interruption import Interruption, TrainingInterrupted
from offseg_hf.training.log import Display, JsonLines, check_tracker, start_trackers
from offseg_hf.training.optimization import build_optimizer, learning_rate_factor, set_learning_rates
from offseg_hf.training.pixels import require_same_pixels
from offseg_hf.training.publication import Publication
from offseg_hf.training.recipe import Recipe
from offseg_hf.training.settings_errors import named_settings
from offseg_hf.training.state import Progress, WeightAverage, seed_generators
from offseg_hf.utils.texts import one_line


INITIALIZATION, ITERATION = range(2)  # what random numbers are drawn for


def _say_nothing(message: str) -> None:
    """Of a training that goes on: it was told when it began."""


class NonFiniteError(FloatingPointError, ValueError):
    """A loss or a gradient is no finite number."""


def train(recipe: Recipe, output: str | Path, resume: str | Path | None = None) -> Progress:
    """Train by a recipe, into a folder: `last/`, `best/` (by mIoU), `log.jsonl`, `recipe.yaml`, `environment.json`.

    The checkpoints are models for `from_pretrained` and `pipeline`, with the state of the training beside them.
    resume: "auto" to go on from the newest checkpoint in `output`, if there is one, or a checkpoint's folder.

    Runs alone or under `accelerate launch`, in every process. SIGINT and SIGTERM end it after the current iteration:
    `last/` is written and TrainingInterrupted raised. Raises NonFiniteError for a loss or gradients that are no finite
    numbers, ValueError for a recipe that does not fit data, processes or checkpoint, and FileExistsError if `output`
    holds a training that is not to be resumed.
    """
    with Interruption() as interruption, ExitStack() as stack:
        with interruption.breakable("before the first iteration"):
            run = TrainingRun(recipe, Path(output).expanduser(), resume, interruption, stack)
        return run.run()


class TrainingRun:
    """One process's part of a training, set up to run; what it opens is closed by `stack`."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        resume: str | Path | None,
        interruption: Interruption,
        stack: ExitStack,
    ):
        check_launcher(os.environ)
        precision = mixed_precision(recipe.training.mixed_precision, os.environ)
        settings = replace(recipe.training, mixed_precision=precision)
        self.recipe, self.output, self.interruption = replace(recipe, training=settings), output, interruption
        check_tracker(settings.report_to)
        tracker = None if settings.report_to == "none" else settings.report_to
        self.accelerator = accelerator = make_accelerator(precision, tracker, output)
        torch.backends.cudnn.benchmark = True  # all crops are of one size
        self.batch_size = device_batch_size(recipe, accelerator.num_processes)
        self.accumulation = settings.batch_size // accelerator.num_processes // self.batch_size

        if accelerator.num_processes > 1:  # of depthwise weights, whose two layouts in memory are one
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        if accelerator.is_main_process:
            stack.enter_context(exclusive(output))
        self.checkpoint = self._choose_checkpoint(resume)
        state = None if self.checkpoint is None else load_state(self.checkpoint)
        if state is not None:
            require_same_recipe(self.recipe, state["recipe"], self.checkpoint)
        self.progress = Progress() if state is None else Progress(**state["progress"])
        self.saved = replace(self.progress)  # as it was in the checkpoint
        self.notes = launcher_notes(os.environ)
        if recipe.left_out:
            self.notes.append(f"left out, as it does not apply: {', '.join(recipe.left_out)}")

        self._load_data(state)
        self._build_model(state)
        self._load_batches(stack)
        if state is not None:
            self._tell_what_changed(state)
        self._rehearse_evaluation()
        self._open_log(stack)

    # -- set up ------------------------------------------------------------------------------------------------------

    def _choose_checkpoint(self, resume: str | Path | None) -> Path | None:
        with self.accelerator.main_process_first():  # it puts in order what a kill has left
            return find_resumable(self.output, resume)

    def _load_data(self, state: dict | None) -> None:
        data = self.recipe.data
        self.train_data = load_split(self.recipe, data.train_split)
        self.validation_data = load_split(self.recipe, data.validation_split)
        self.labels = label_set_of(self.train_data)
        if label_set_of(self.validation_data).names != self.labels.names:
            raise ValueError("expected one list of classes in training and validation data, got two different ones")
        if state is not None:
            require_same_labels(self.recipe, self.labels, state, self.checkpoint)
        require_something_to_learn(self.train_data, f"data.train_split={data.train_split}")
        require_something_to_learn(self.validation_data, f"data.validation_split={data.validation_split}")
        if state is None and (note := first_look(self.train_data)):
            self.notes.append(note)

    def _build_model(self, state: dict | None) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        seed_generators(recipe.training.seed, INITIALIZATION)
        model, self.processor = build_model(recipe, self.labels, self.notes.append if state is None else _say_nothing)
        if inherited := settings_without_effect(recipe, model, self.processor):
            self.notes.append(f"left out, as it does not apply to this model: {', '.join(inherited)}")
        if state is None and recipe.model.pretrained is not None:
            load_pretrained(model, recipe.model.pretrained)
        if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
            model = synchronize_batch_norms(model)
        model.to(accelerator.device)
        decay = recipe.training.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
        self.model = model.train()
        self.takes_masks = "mask_labels" in inspect.signature(type(model).forward).parameters
        self.wrapped_model, self.optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
        if state is not None:
            self._load_state(state)

    def _load_batches(self, stack: ExitStack) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        seed = recipe.training.seed
        with named_settings("model.image_processor", recipe.model.image_processor):
            self.channels = require_same_pixels(recipe.augmentation, self.processor)
        self.sampler = TrainingSampler(
            len(self.train_data),
            seed,
            self.progress.iteration * recipe.training.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = training_loader(
            TrainingSet(self.train_data, recipe.augmentation, seed),
            self.sampler,
            self.batch_size,
            recipe.data.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.batches = iter(loader)
        if recipe.data.num_workers:  # nothing public ends workers while an error of theirs still holds the iterator
            stack.callback(self.batches._shutdown_workers)

    def _tell_what_changed(self, state: dict) -> None:
        """What is free to change, and makes a difference nevertheless."""
        samples, before, device_batch = len(self.train_data), state.get("samples"), state.get("device_batch")
        if before not in (None, samples):
            self.notes.append(f"{samples} samples to train on, where there were {before}: they come in another order")
        if device_batch not in (None, self.batch_size) and depends_on_device_batch(self.model):
            self.notes.append(
                f"a device takes {self.batch_size} samples at once, where it took {device_batch}: batch norms, losses "
                "or what is dropped at random will differ from those of a training that goes on as it was"
            )
        if not are_scores_comparable(self.recipe, state["recipe"]) and self.progress.best_score is not None:
            self.notes.append(
                f"evaluated otherwise than before: the best so far, {self.progress.best_score:.4f} at "
                f"{self.progress.best_iteration}, does not count any more"
            )
            self.progress.forget_best()

    def _rehearse_evaluation(self) -> None:
        """One picture through image processor, model and metric: what cannot be evaluated is told before it trains."""
        settings = self.recipe.model.image_processor
        with named_settings("model.image_processor", settings):
            evaluate_model(
                self._best_weights(),
                self.processor,
                self.validation_data.select(range(1)),
                accelerator=self.accelerator,
            )

    def _open_log(self, stack: ExitStack) -> None:
        progress, is_main = self.progress, self.accelerator.is_main_process
        self.display = Display(self.recipe.schedule.iterations, progress.iteration, is_shown=is_main)
        if is_main:
            (self.output / RECIPE_FILE).write_text(self.recipe.dump(), encoding="utf-8")
            write_environment(self.output, self.accelerator)
            self.log = JsonLines(self.output / LOG_FILE, keep=progress.includes)
            stack.callback(self.log.close)
        start_trackers(self.accelerator, self.recipe, progress.iteration)
        stack.callback(self.accelerator.end_training)
        stack.enter_context(self.display)
        number = self.accelerator.num_processes
        parts = f"{number} process{'es' if number > 1 else ''} on {self.accelerator.device.type}"
        self.display.say(f"{self.recipe.name}: {self.recipe.training.batch_size} samples per iteration, {parts}")
        publishes = is_main and self.recipe.training.hub_repository is not None
        self.publication = Publication(self.recipe, self.output / "best", self.display.say) if publishes else None
        if self.checkpoint is not None:
            self.display.say(f"going on from {self.checkpoint}, iteration {progress.iteration}")
        for note in self.notes:
            self.display.say(note)
        self.started, self.seconds = (time.perf_counter(), progress.iteration), 0.0

    def _load_state(self, state: dict) -> None:
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.model.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.checkpoint}: expected the weights of the model of this recipe, got others: {one_line(error)}"
            ) from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    # -- run ---------------------------------------------------------------------------------------------------------

    def run(self) -> Progress:
        progress, settings = self.progress, self.recipe.training
        signal = 0
        while True:
            is_done = progress.iteration == self.recipe.schedule.iterations
            to_evaluate = progress.evaluated < progress.iteration and (
                is_done or self._is_due(settings.evaluation_interval)
            )
            if signal or is_done or to_evaluate or self._is_due(settings.checkpoint_interval):
                self._save()
            if signal:
                raise TrainingInterrupted(signal, self._how_to_go_on())
            if to_evaluate:
                self._evaluate()
            if is_done:
                if self.publication is not None:
                    with self.interruption.breakable(self._how_to_go_on()):
                        self.publication.finish()
                return progress
            signal = self._step()

    def _is_due(self, interval: int) -> bool:
        return self.progress.iteration > 0 and self.progress.iteration % interval == 0

    def _step(self) -> int:
        """An iteration; returns the signal that any of the processes got during it, or 0."""
        begin = time.perf_counter()
        accelerator, progress, settings = self.accelerator, self.progress, self.recipe.training
        seed_generators(settings.seed, ITERATION, progress.iteration, accelerator.process_index)
        set_learning_rates(self.optimizer, progress.iteration, self.recipe.schedule)
        losses = [self._backward(is_last=step == self.accumulation - 1) for step in range(self.accumulation)]
        norm = self._clip_gradients()
        # One message to all processes and one wait for the device: losses, what might be wrong with them, signals.
        signal = losses[0].new_tensor(self.interruption.signal)
        rows = accelerator.gather(torch.stack([*losses, norm, signal])[None]).tolist()  # (processes, losses + 2)
        self._require_finite(rows)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.iteration += 1
        if self.average is not None:
            self.average.update(self.model, progress.iteration)
        progress.loss_sum += sum(loss for *row, _, _ in rows for loss in row) / (len(rows) * self.accumulation)
        progress.loss_count += 1
        self.seconds += time.perf_counter() - begin
        self.display.advance()
        if self._is_due(settings.log_interval):
            self._log_training(norm=rows[0][-2])
        return int(max(row[-1] for row in rows))

    def _backward(self, is_last: bool) -> Tensor:
        """The gradients of one batch on this device; processes exchange them after the last. Returns the loss."""
        batch, counts = self._next_batch()
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        inputs = model_inputs(batch, self.takes_masks, self.labels.ignore_index)
        with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped_model):
            loss = self._forward(inputs) * counts
            self.accelerator.backward(loss / self.accumulation)
        return loss.detach().float().reshape(())

    def _forward(self, inputs: dict[str, Tensor | list[Tensor]]) -> Tensor:
        try:
            return self.wrapped_model(**inputs).loss
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):  # of torch's batch norms
                raise
            size = "x".join(map(str, self.recipe.augmentation.crop_size))
            raise ValueError(
                f"a batch norm gets one value per channel, which has no statistics, from {self.batch_size} x {size} "
                "pixels at once: make augmentation.crop_size, training.batch_size or training.device_batch_size larger"
            ) from error

    def _next_batch(self) -> tuple[dict[str, Tensor], float]:
        """A batch, on the CPU, and what its loss counts: 0 if no pixel in it has a class, and else 1.

        Of such a batch the losses of transformers' models are 0 / 0, whose gradients are no numbers either. It gets a
        labelled pixel, so that all parameters have a gradient as ever, of which nothing counts.
        """
        try:
            batch = next(self.batches)
        except SampleError as error:  # of a worker's the message is a traceback, which ends with what was wrong
            last_line = str(error).splitlines()[-1]
            raise ValueError(last_line.partition("SampleError: ")[2] or last_line) from error
        labels = batch["labels"]
        if list(self.channels) != sorted(self.channels):
            batch["pixel_values"] = batch["pixel_values"][:, self.channels]
        if (labels != self.labels.ignore_index).any():
            return batch, 1.0
        labels[:, 0, 0] = 0
        return batch, 0.0

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients, if the recipe says so; returns their norm before that."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        max_norm = self.recipe.optimizer.max_gradient_norm
        if max_norm is not None:
            return self.accelerator.clip_grad_norm_(parameters, max_norm)
        self.accelerator.unscale_gradients()
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters])

    def _require_finite(self, rows: list[list[float]]) -> None:
        """Raise NonFiniteError if a loss or the gradients' norm is no finite number, before the weights take it in."""
        for process, (*losses, _, _) in enumerate(rows):
            for step, loss in enumerate(losses):
                if not math.isfinite(loss):
                    raise NonFiniteError(self._what_went_wrong(f"the loss is {loss}", self._names(process, [step])))
        norm = rows[0][-2]
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # a scaler looks for a scale without overflow
            names = [name for process in range(len(rows)) for name in self._names(process, range(self.accumulation))]
            raise NonFiniteError(self._what_went_wrong(f"the norm of the gradients is {norm}", names))

    def _names(self, process: int, steps: Iterable[int]) -> list[str]:
        """The files of the samples that a process took in some steps of the accumulation of this iteration."""
        first = self.progress.iteration * self.recipe.training.batch_size + process
        places = [step * self.batch_size + index for step in steps for index in range(self.batch_size)]
        keys = [self.sampler.key(first + place * self.accelerator.num_processes) for place in places]
        return [f"{sample_name(self.train_data, index)} (epoch {epoch}, index {index})" for epoch, index in keys]

    def _what_went_wrong(self, problem: str, names: list[str]) -> str:
        if self.checkpoint is None:
            way_back = "There is no checkpoint before it"
        else:
            way_back = f"The last good checkpoint is {self.checkpoint}, of iteration {self.saved.iteration}"
        return (
            f"{problem} in iteration {self.progress.iteration}, of {', '.join(names)}: stopped before the weights "
            f"changed. {way_back}; look at these samples, or lower optimizer.learning_rate"
        )

    def _how_to_go_on(self) -> str:
        done = f"after iteration {self.progress.iteration} of {self.recipe.schedule.iterations}"
        return f"{done}, which is in {self.checkpoint}; the same command with --resume auto goes on"

    # -- save, evaluate, report --------------------------------------------------------------------------------------

    def _save(self, name: str = "last") -> None:
        """Write a checkpoint; `last` only if what is there is not of this moment."""
        folder = self.output / name
        if name == "last" and self.checkpoint == folder and self.saved == self.progress:
            return
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "progress": asdict(self.progress),
                "recipe": self.recipe.to_dict(),
                "labels": label_facts(self.labels),
                "samples": len(self.train_data),
                "device_batch": self.batch_size,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.model.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_checkpoint(folder, self._best_weights(), self.processor, state)
        self.accelerator.wait_for_everyone()
        if name == "last":
            self.checkpoint, self.saved = folder, replace(self.progress)

    def _best_weights(self) -> PreTrainedModel:
        """What is evaluated and given to users: the averaged weights, if there are any."""
        return self.model if self.average is None else self.average.model

    def _evaluate(self) -> None:
        progress, begin = self.progress, time.perf_counter()
        with self.interruption.breakable(self._how_to_go_on()):
            result = evaluate_model(
                self._best_weights(),
                self.processor,
                self.validation_data,
                accelerator=self.accelerator,
                workers=self.recipe.data.num_workers,
                progress=self.display.evaluating,
            )
        seconds = time.perf_counter() - begin
        score = result["mIoU"]
        is_best = not math.isnan(score) and (progress.best_score is None or score > progress.best_score)
        progress.evaluated = progress.iteration
        if is_best:
            progress.best_score, progress.best_iteration = score, progress.iteration
        line = {name: result[name] for name in ("mIoU", "mAcc", "aAcc")}
        self._log({"iteration": progress.iteration, **line, "seconds": seconds})
        best = ", the best so far" if is_best else ""
        if not is_best and progress.best_score is not None:
            best = f", best {progress.best_score:.4f} at {progress.best_iteration}"
        self.display.say(f"iteration {progress.iteration}: mIoU {score:.4f}{best}")
        if is_best:
            self._save("best")
        self._save()
        self._publish(is_best)

    def _publish(self, is_best: bool) -> None:
        """Send the best model to the Hub, if the recipe says where and it is not there; other processes wait."""
        if self.recipe.training.hub_repository is None:
            return
        with self.interruption.breakable(self._how_to_go_on()):
            if self.publication is not None and (is_best or self.publication.is_behind):
                self.publication.push()
            self.accelerator.wait_for_everyone()

    def _log_training(self, norm: float) -> None:
        progress, settings = self.progress, self.recipe.training
        factor = learning_rate_factor(progress.iteration - 1, self.recipe.schedule)
        line = {
            "iteration": progress.iteration,
            "loss": progress.loss_sum / progress.loss_count,
            "learning_rate": self.recipe.optimizer.learning_rate * factor,
            "gradient_norm": norm,
            "images_per_second": progress.loss_count * settings.batch_size / self.seconds,
        }
        progress.loss_sum, progress.loss_count, self.seconds = 0.0, 0, 0.0
        self._log(line)
        started, first = self.started
        seconds_each = (time.perf_counter() - started) / (progress.iteration - first)
        self.display.training(line, seconds_each * (self.recipe.schedule.iterations - progress.iteration))

    def _log(self, line: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.log.write(line)
        self.accelerator.log(line, step=self.progress.iteration)
