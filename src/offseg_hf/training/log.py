"""What a training says while it runs: a file of JSON lines, a progress bar or plain lines, and trackers."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from offseg_hf.training.recipe import Recipe


LOG_FILE = "log.jsonl"


class JsonLines:
    """A file with a JSON object per line, complete lines only, to which a training that goes on appends."""

    def __init__(self, path: Path, keep=lambda line: False):
        """keep: which of the lines that are there already stay."""
        kept = [line for line in read_log(path) if keep(line)] if path.exists() else []
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a kill cut short, the last, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Display:
    """Progress on stderr: a bar with the time that is left on a terminal, elsewhere a line for every message."""

    def __init__(self, total: int, done: int, is_shown: bool = True):
        self.total = total
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=not is_shown)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self.console, disable=not (is_shown and self.console.is_terminal))
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def training(self, line: dict[str, float], seconds_left: float) -> None:
        """Loss and speed, as in the log."""
        text = f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  {line['images_per_second']:.1f} images/s"
        self._bar.update(self._task, description=text)
        if not self.console.is_terminal:
            self.say(f"{line['iteration']:>{len(str(self.total))}}/{self.total}  {text}  {_clock(seconds_left)} left")

    def evaluating(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, description=f"evaluating, {done} of {total} images of this process")

    def say(self, message: str) -> None:
        self.console.print(message)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def check_tracker(name: str) -> None:
    """Raise ValueError, with the command that installs it, if a tracker is missing: accelerate would go without."""
    packages = {"tensorboard": ("tensorboard", "tensorboardX"), "none": ("accelerate",)}.get(name, (name,))
    if not any(importlib.util.find_spec(package) for package in packages):
        raise ValueError(f"training.report_to={name} needs the package {packages[0]}: pip install {packages[0]}")


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Name the run and its settings, one value per key, to the trackers that the accelerator has."""
    settings = {}
    for section, values in recipe.to_dict().items():
        for name, value in values.items() if isinstance(values, dict) else ((section, values),):
            is_plain = isinstance(value, int | float | str | bool)
            settings[f"{section}.{name}"] = value if is_plain else json.dumps(value)
    accelerator.init_trackers("offseg-hf", config=settings)
