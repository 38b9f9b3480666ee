"""What the commands share: consoles, errors in one line, progress, quiet libraries."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleDimensions


PIPE_WIDTH = 10_000


class CommandConsole(Console):
    """A console whose lines are as long as they are where no terminal ends them: in a file or a pipe."""

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(PIPE_WIDTH, size.height)


stdout = CommandConsole(highlight=False, markup=False, soft_wrap=True)
stderr = CommandConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of `app` whose errors are one line on stderr and exit code 1; 130 if interrupted.

    A `~` at the beginning of an argument is the user's home: of `--output=~/x` no shell makes that.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @app.command()
        @wraps(function)
        def run(*args, **kwargs) -> None:
            try:
                function(*args, **{name: _at_home(value) for name, value in kwargs.items()})
            except KeyboardInterrupt as error:  # or a kind of it that knows more
                stderr.print(str(error) or "interrupted")
                raise typer.Exit(getattr(error, "exit_code", 130)) from None
            except Exception as error:
                if isinstance(error, typer.Exit) or os.environ.get("OFFSEG_DEBUG"):
                    raise
                message = _message(error).encode(errors="backslashreplace").decode()  # names need not be UTF-8
                stderr.print("error:", message, style="red")
                raise typer.Exit(1) from None

        return run

    return register


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def _message(error: Exception) -> str:
    from offseg_hf.utils.hub_errors import explain, one_line

    if explanation := explain(error):
        return explanation
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)} (OFFSEG_DEBUG=1 shows where)"


def progress_bar():
    """A progress bar on stderr; nothing where stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


def quiet_libraries() -> None:
    """Their warnings are for programmers; progress of downloads stays, where someone watches."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not stderr.is_terminal:
        disable_progress_bars()
