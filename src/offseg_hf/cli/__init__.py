"""The `offseg` command: a file per command, of which this is the list.

What is heavy is imported inside the commands, so that `--help` answers at once. Exit codes: 0 all done, or done
already; 1 an error, or an input that failed; 2 wrong usage; 130 interrupted. `OFFSEG_DEBUG=1` shows the traceback of
an error.
"""

import atexit
import gc
from collections.abc import Callable
from typing import Annotated

import typer

from offseg_hf import __version__
from offseg_hf.cli import (
    benchmark,
    convert,
    env,
    evaluate,
    export,
    finetune,
    presets,
    publish,
    push,
    recipe,
    segment,
    train,
)
from offseg_hf.cli.console import command, command_group, stdout
from offseg_hf.cli.data import data_app


app = command_group(
    "Semantic segmentation by offset learning: train, evaluate, use and share models.",
    """
    offseg segment photos/ --model hvision/offseg-t-ade --output segmented
    offseg finetune --data my_photos --model runs/before/best --output runs/mine
    offseg evaluate --model runs/mine/best --data my_photos
    """,
    add_completion=True,
)


@app.callback(invoke_without_command=True)
def offseg(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Run one of the commands, or show the version."""
    if show_version:
        stdout.print(f"offseg-hf {__version__}")
        raise typer.Exit


commands: tuple[Callable[..., None], ...] = (
    segment.segment,
    train.train,
    finetune.finetune,
    evaluate.evaluate,
    export.export,
    benchmark.benchmark,
    presets.presets,
    recipe.recipe,
    push.push,
    env.env,
)
for function in commands:
    command(app)(function)
app.add_typer(data_app, name="data")
for function in (convert.convert, publish.publish):
    command(app, panel="For maintainers")(function)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process; by default that of the command line."""
    # At its end Python would look for cycles among all that torch and transformers are made of, for a second.
    atexit.register(gc.freeze)
    app(arguments, prog_name="offseg")
