"""Reports of a training while it runs: a file of JSON lines, a progress bar or plain lines, and trackers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from offseg_hf.evaluation.outputs import finite
from offseg_hf.training.recipe import Recipe
from offseg_hf.utils.files import whole_file


RUN_ID_FILE = ".run_id"  # beside the log: by which trackers know the training again
PROJECT = "offseg-hf"  # of all trainings, where a tracker sorts by projects


class JsonLines:
    """Write a file with a JSON object per line, complete lines only, to which a training that goes on appends.

    Args:
        keep: which of the lines that are there already stay.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool] = lambda line: False):
        kept = [line for line in read_log(path) if keep(line)] if path.exists() else []
        lines = (json.dumps(finite(line)) + "\n" for line in kept)
        with whole_file(path) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; a number that JSON does not have, nan or infinite, becomes null."""
        self._file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; one that a kill cut short, the last, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Display:
    """Show progress on stderr: a bar with the time that is left on a terminal, elsewhere a line for every message."""

    def __init__(self, total: int, done: int):
        self.total = total
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count an iteration."""
        self._bar.advance(self._task)

    def training(self, line: dict[str, float], seconds_left: float) -> None:
        """Show loss and speed, as in the log."""
        text = f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  {line['images_per_second']:.1f} images/s"
        self._bar.update(self._task, description=text)
        if not self.console.is_terminal:
            self.say(f"{line['iteration']:>{len(str(self.total))}}/{self.total}  {text}  {_clock(seconds_left)} left")

    def evaluating(self, done: int, total: int | None) -> None:
        """Show how far an evaluation is."""
        self._bar.update(self._task, description=f"evaluating, {done} of {total} images of this process")

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def check_tracker(name: str) -> None:
    """Raise ValueError, with the command that installs it, if a tracker is missing: accelerate would go without."""
    if name != "none" and name not in map(str, get_available_trackers()):
        raise ValueError(f"training.report_to={name} needs the package {name}: pip install {name}")


def start_trackers(accelerator: Accelerator, recipe: Recipe, iteration: int) -> None:
    """Start the tracker that the recipe names and tell it all settings, one value per key.

    A training that goes on, after `iteration`, goes on in its run, by an id that is kept in its folder. What it does
    once more since its checkpoint it logs once more, with the same values: TensorBoard shows the second of the two,
    wandb keeps the first, trackio both. What trackio and wandb had not sent when they were killed, they lack:
    `log.jsonl` alone is complete.

    Raises ValueError if the tracker does not start, such as wandb without an account.
    """
    tracker, output = recipe.training.report_to, Path(accelerator.project_dir)
    if tracker == "none":
        return
    name, run_id = output.resolve().name, _run_id(output)
    project = PROJECT
    settings: dict[str, Any] | None = _settings(recipe)
    options: dict[str, Any]
    if tracker == "tensorboard":
        project, options = "tensorboard", {"purge_step": iteration + 1}  # the project is a folder in `output`
        if (output / project).exists():
            settings = None  # once: they make a run of their own
    elif tracker == "trackio":  # knows runs by name, and gets settings with one of accelerate's own otherwise
        options, settings = {"name": f"{name}-{run_id}", "resume": "allow", "config": settings}, None
    else:
        options = {"name": name, "id": run_id, "resume": "allow"}
    try:
        accelerator.init_trackers(project, config=settings, init_kwargs={tracker: options})
    except Exception as error:  # each has its own
        raise ValueError(
            f"training.report_to={tracker} did not start: {error} (wandb without an account: WANDB_MODE=offline); "
            "training.report_to=none trains without a tracker"
        ) from error


def _run_id(output: Path) -> str:
    """Return the id of the training in a folder, made when it is first asked for."""
    path = output / RUN_ID_FILE
    if not path.exists() or not path.read_text(encoding="utf-8").strip():  # empty after a kill
        path.write_text(f"{uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _settings(recipe: Recipe) -> dict[str, int | float | str | bool]:
    """Return the values of a recipe by `section.name`; what trackers have no type for as JSON."""
    settings: dict[str, Any] = {}
    for section, values in recipe.to_dict().items():
        is_section = isinstance(values, dict)
        settings |= {f"{section}.{name}": value for name, value in values.items()} if is_section else {section: values}
    return {
        key: value if isinstance(value, int | float | str | bool) else json.dumps(value)
        for key, value in settings.items()
    }
