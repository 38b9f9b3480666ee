"""The record of a training, which the main process alone keeps: files, log, display, trackers, uploads."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any

from offseg_hf.hub.training_card import LOG_FILE, RECIPE_FILE
from offseg_hf.training.environment import write_environment
from offseg_hf.training.log import Display, JsonLines, start_trackers
from offseg_hf.training.optimization import learning_rate_factor
from offseg_hf.training.publication import Publication
from offseg_hf.training.setup import Training


def _on_main_process(method):
    """Let a method do nothing, and return None, on any other process."""

    @wraps(method)
    def on_main_process(self: "Run", *args, **kwargs):
        return method(self, *args, **kwargs) if self.training.accelerator.is_main_process else None

    return on_main_process


class Run:
    """The record of a training, for people, trackers and the Hub; on other processes than the main one nothing of it.

    Args:
        stack: closes what is opened here.
    """

    def __init__(self, training: Training, stack: ExitStack):
        self.training = training
        stack.callback(training.accelerator.end_training)  # of every process
        self._seconds, self._iterations = 0.0, 0  # since the last line in the log
        self._first, self._started = training.progress.iteration, time.perf_counter()
        self._open(stack)

    @_on_main_process
    def _open(self, stack: ExitStack) -> None:
        recipe, output, progress = self.training.recipe, self.training.output, self.training.progress
        self._display = Display(self.training.schedule.length, progress.iteration)
        (output / RECIPE_FILE).write_text(recipe.dump(), encoding="utf-8")
        write_environment(output, self.training.accelerator)
        self._log_file = JsonLines(output / LOG_FILE, keep=progress.includes)
        stack.callback(self._log_file.close)
        start_trackers(self.training.accelerator, recipe, progress.iteration)
        stack.enter_context(self._display)
        number = self.training.accelerator.num_processes
        parts = f"{number} process{'es' if number > 1 else ''} on {self.training.accelerator.device.type}"
        self._display.say(f"{recipe.name}: {recipe.training.batch_size} samples per iteration, {parts}")
        repository = recipe.training.hub_repository
        self._publication = (
            None
            if repository is None
            else Publication(repository, recipe.training.hub_private, output / "best", self._display.say)
        )
        for note in self.training.notes:
            self._display.say(note)

    @_on_main_process
    def advance(self, seconds: float) -> None:
        """Count an iteration, which took so long."""
        self._seconds += seconds
        self._iterations += 1
        self._display.advance()

    @_on_main_process
    def evaluating(self, done: int, total: int | None) -> None:
        """Show how far an evaluation is."""
        self._display.evaluating(done, total)

    @_on_main_process
    def log_training(self, loss: float, norm: float) -> None:
        """Log the iterations since the line before: their mean loss, and the last one's norm of the gradients."""
        recipe, iteration = self.training.recipe, self.training.progress.iteration
        factor = learning_rate_factor(iteration - 1, self.training.schedule)
        line = {
            "iteration": iteration,
            "loss": loss,
            "learning_rate": recipe.optimizer.learning_rate * factor,
            "gradient_norm": norm,
            "images_per_second": self._iterations * recipe.training.batch_size / self._seconds,
        }
        self._seconds, self._iterations = 0.0, 0
        self._log(line)
        seconds_each = (time.perf_counter() - self._started) / (iteration - self._first)
        self._display.training(line, seconds_each * (self.training.schedule.length - iteration))

    @_on_main_process
    def log_evaluation(self, result: Mapping[str, Any], seconds: float, is_best: bool) -> None:
        """Log what `evaluate_model` found."""
        progress = self.training.progress
        scores = {name: result[name] for name in ("mIoU", "mAcc", "aAcc")}
        self._log({"iteration": progress.iteration, **scores, "seconds": seconds})
        best = ", the best so far" if is_best else ""
        if not is_best and progress.best_score is not None:
            best = f", best {progress.best_score:.4f} at {progress.best_iteration}"
        self._display.say(f"iteration {progress.iteration}: mIoU {scores['mIoU']:.4f}{best}")

    @_on_main_process
    def say(self, message: str) -> None:
        """Show a line."""
        self._display.say(message)

    @_on_main_process
    def publish(self, is_best: bool) -> None:
        """Send the best model to the Hub, if the recipe says where and it is not there."""
        if self._publication is not None and (is_best or self._publication.is_behind):
            self._publication.push()

    @_on_main_process
    def finish(self) -> None:
        """Send the best model once more, with the whole curve in its card."""
        if self._publication is not None:
            self._publication.finish()

    def _log(self, line: dict[str, float]) -> None:
        self._log_file.write(line)
        self.training.accelerator.log(line, step=self.training.progress.iteration)
