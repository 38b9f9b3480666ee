"""`offseg convert`: from a checkpoint of the official code to a folder of a model."""

from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.cli.console import Overwrite, preset_names, quiet_libraries, stdout


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the official code (.pth).")],
    preset: Annotated[
        str, typer.Option(help="What it is a checkpoint of; see `offseg presets`.", autocompletion=preset_names)
    ],
    output: Annotated[Path, typer.Option(help="Folder for model, image processor and code.")],
    num_labels: Annotated[
        int | None, typer.Option(min=1, help="Number of classes; by default that of the weights.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIST",
            help="Class names: a classes.json, a file with a name per line, ade, or sky,road,car; by default "
            "those in the checkpoint, or the preset's.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of the official code to a transformers model, complete for the Hub.

    It takes the authors' checkpoints and those that you trained with the official code, whatever their classes.
    Averaged weights (EMA) beside a state dict are ignored: mmengine has them in the state dict already.

    Examples:
        offseg convert offseg_t.pth --preset offseg-t-ade --output offseg-t-ade
        offseg convert mine.pth --preset offseg-b-ade --names sky,road --output mine
        offseg convert mine.pth --preset offseg-b-ade --num-labels 2 --output mine
    """
    from offseg_hf.zoo.presets import get_preset

    get_preset(preset)  # a wrong name is an error before torch is imported

    from offseg_hf.conversion import convert_checkpoint
    from offseg_hf.conversion.class_names import read_names

    quiet_libraries()
    report = convert_checkpoint(
        checkpoint,
        preset,
        output,
        num_labels=num_labels,
        names=None if names is None else read_names(names),
        overwrite=overwrite,
    )
    for name in report.dropped:
        stdout.print("dropped", name)
    for name in report.left_aside:
        stdout.print("left aside", name)
    if report.names != get_preset(preset).labels.names:
        stdout.print(f"{len(report.names)} classes:", ", ".join(report.names))
    stdout.print(
        f"{report.output}: {preset}, {report.num_parameters:,} parameters, from {report.used} tensors of {checkpoint} "
        f"({len(report.dropped)} dropped)"
    )
