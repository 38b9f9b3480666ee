"""What the commands share: consoles, help, errors in one line, progress, quiet libraries, and common options."""

import difflib
import inspect
import os
import textwrap
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


PIPE_WIDTH = 10_000
EXAMPLES = "Examples:"
# What other tools call our commands.
ELSEWHERE = {
    "predict": "segment",
    "infer": "segment",
    "val": "evaluate",
    "validate": "evaluate",
    "test": "evaluate",
    "eval": "evaluate",
    "fit": "train",
    "fine-tune": "finetune",
    "upload": "push",
}

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what exists at the output; otherwise it is kept.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default cuda if there is one.")]


class DType(StrEnum):
    """Name the precisions of a model."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class CommandConsole(Console):
    """A console whose lines are as long as they are where no terminal ends them: in a file or a pipe."""

    @property  # type: ignore[misc] # nobody sets it
    def size(self) -> ConsoleDimensions:
        """Return the terminal's size, or one that breaks no line."""
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(PIPE_WIDTH, size.height)


stdout = CommandConsole(highlight=False, markup=False, soft_wrap=True)
stderr = CommandConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Command(TyperCommand):
    """A command whose help shows no type beside an option that takes no value."""

    def get_params(self, ctx) -> list:
        """Return the parameters as typer does, but for the types of flags."""
        return _without_types_of_flags(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """Commands of which a wrong name is one line that has the right one."""

    def get_params(self, ctx) -> list:
        """Return the parameters as typer does, but for the types of flags."""
        return _without_types_of_flags(super().get_params(ctx))

    def resolve_command(self, ctx, args: list[str]) -> tuple:
        """Return the command that is named, as typer does; end where there is none of that name."""
        name = args[0]
        if name not in self.commands and not ctx.resilient_parsing:
            meant = ELSEWHERE.get(name.lower())
            names = [meant] if meant in self.commands else difflib.get_close_matches(name.lower(), self.commands, n=1)
            hint = f" (did you mean {names[0]}?)" if names else ""
            wrong_usage(f"unknown command {name!r}{hint}: `{ctx.command_path} --help` lists them")
        return super().resolve_command(ctx, args)


def _without_types_of_flags(parameters: list) -> list:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def command_group(text: str, examples: str, add_completion: bool = False) -> typer.Typer:
    """Return an application of commands, with a help text and examples, a command a line."""
    return typer.Typer(
        cls=CommandGroup,
        help=text,
        epilog=_epilog(examples),
        context_settings={"help_option_names": ["--help", "-h"]},
        add_completion=add_completion,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )


def command(app: typer.Typer, panel: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of `app` whose errors are one line on stderr and exit code 1; 130 if interrupted.

    Its docstring is the help text, of which "Examples:" come last. A `~` at the beginning of an argument is the user's
    home: of `--output=~/x` no shell makes that.

    Args:
        app: The application that it is a command of.
        panel: Title of the commands that it stands among in the list; by default "Commands".
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        text, _, examples = (inspect.getdoc(function) or "").partition(f"\n\n{EXAMPLES}\n")

        @app.command(cls=Command, help=_wrapping(text), epilog=_epilog(examples), rich_help_panel=panel)
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


def preset_names(incomplete: str) -> list[str]:
    """Return the presets whose names begin so, for a shell to complete."""
    from offseg_hf.zoo.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def wrong_usage(message: str) -> NoReturn:
    """End the command as one that was called wrongly: one line, exit code 2."""
    stderr.print("error:", message, style="red")
    raise typer.Exit(2)


def _wrapping(text: str) -> str:
    """Return the paragraphs, each in one line, which the terminal wraps where it ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _epilog(examples: str) -> str | None:
    lines = textwrap.dedent(examples.strip("\n")).strip()
    return f"{EXAMPLES}\n\n{escape(lines)}" if lines else None


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def _message(error: Exception) -> str:
    from offseg_hf.utils.hub_errors import explain
    from offseg_hf.utils.texts import one_line

    if explanation := explain(error):
        return explanation
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)} (OFFSEG_DEBUG=1 shows where)"


def progress_bar():
    """Return a progress bar on stderr; nothing where stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


def frames_bar():
    """Return a progress bar for frames of a video, with how many there are a second; where `progress_bar` is one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class FramesPerSecond(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed:.1f} frames/s" if task.speed else "")

    columns = (BarColumn(), MofNCompleteColumn(), FramesPerSecond(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


def quiet_libraries() -> None:
    """Turn off the libraries' warnings, which are for programmers; progress of downloads stays on a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not stderr.is_terminal:
        disable_progress_bars()
