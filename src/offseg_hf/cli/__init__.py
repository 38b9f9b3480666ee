"""The `offseg` command. What is heavy is imported inside the commands, so that `--help` answers at once.

Exit codes: 0 all done; 1 an error, an input that failed, or an output that exists and was kept; 2 wrong usage;
130 interrupted. `OFFSEG_DEBUG=1` shows the traceback of an error.
"""

import atexit
import gc
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offseg_hf import __version__
from offseg_hf.cli.console import command, progress_bar, quiet_libraries, stderr, stdout
from offseg_hf.cli.data import ConfigName, ImageColumn, LabelColumn, Labels, Revision, data_app
from offseg_hf.cli.hub import publish, push


app = typer.Typer(
    help="Semantic segmentation by offset learning.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what exists at the output; otherwise it is kept.")
]


class DType(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.callback(invoke_without_command=True)
def offseg(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        stdout.print(f"offseg-hf {__version__}")
        raise typer.Exit


@command(app)
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the official code (.pth).")],
    preset: Annotated[str, typer.Option(help="What it is a checkpoint of; see `offseg presets`.")],
    output: Annotated[Path, typer.Option(help="Folder for model, image processor and code.")],
    num_labels: Annotated[
        int | None, typer.Option(min=1, help="Number of its classes; by default what its weights have.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIST",
            help="Names of its classes: a classes.json, a file of a name per line, ade, or sky,road,car; by default "
            "those in the checkpoint, or the preset's.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of the official code to a transformers model, complete for the Hub.

    The authors' checkpoints, and those of one's own trainings by the official code, on classes of one's own. Averaged
    weights (EMA) beside a state dict are left aside: mmengine's are in the state dict already.
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


@command(app)
def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders (with subfolders), globs.")],
    model: Annotated[str, typer.Option(help="Folder of a model, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    overwrite: Overwrite = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default cuda if there is.")] = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the model.")] = DType.float32,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the classes' colours on the photo.")] = 0.6,
) -> None:
    """Write label map (PNG), overlay with legend (PNG) and class shares (JSON) of every image.

    Every input is tried; the exit code is 1 if one failed, or was left alone because its results exist.
    """
    import torch

    from offseg_hf.inference.files import make_folder, plan
    from offseg_hf.inference.files import segment as segment_jobs
    from offseg_hf.inference.segmenter import Segmenter

    quiet_libraries()
    jobs, outcomes = plan(images, output, overwrite)
    for outcome in outcomes:
        _report(outcome)
    if jobs:
        make_folder(output)
        segmenter = Segmenter(model, device, getattr(torch, dtype))
        with progress_bar() as progress:
            for outcome in progress.track(segment_jobs(jobs, segmenter, opacity), total=len(jobs)):
                outcomes.append(outcome)
                _report(outcome)
    written = sum(outcome.status == "written" for outcome in outcomes)
    if written:
        stdout.print(f"{written} of {len(outcomes)} segmented, see {output}")
    if written < len(outcomes):
        raise typer.Exit(1)


@command(app)
def train(
    config: Annotated[str, typer.Option(help="A recipe: a file, or the name of a preset.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Replace the recipe's, as data.source=photos.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and log; runs/NAME by default.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="auto: from the newest checkpoint in the output; or a checkpoint's folder.")
    ] = None,
) -> None:
    """Train a model by a recipe.

    The same under `accelerate launch` (scripts/train.py) trains in several processes. SIGINT and SIGTERM end it with a
    checkpoint; `--resume auto` goes on as if nothing had happened.
    """
    from offseg_hf.training.recipe import load_recipe

    recipe = load_recipe(config, settings or [])  # a mistake in it is an error before torch is imported

    from offseg_hf.training.loop import train as train_by_recipe

    quiet_libraries()
    train_by_recipe(recipe, output or Path("runs", Path(config).stem), resume)


@command(app)
def recipe(
    name: Annotated[str, typer.Argument(help="A file, or the name of a preset.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Replace the recipe's.")] = None,
) -> None:
    """Print a recipe as YAML, with all that it inherits."""
    from offseg_hf.training.recipe import load_recipe

    stdout.print(load_recipe(name, settings or []).dump(), end="")


@command(app)
def evaluate(
    model: Annotated[str, typer.Option(help="Folder of a model, or its name on the Hub.")],
    dataset: Annotated[str, typer.Option(help="Folder of a data set, or its name on the Hub.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    tta: Annotated[bool, typer.Option("--tta", help="Average over six scales, each mirrored too.")] = False,
    save_dir: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and pictures.")] = None,
    overlays: Annotated[bool, typer.Option("--overlays", help="Draw both label maps, in --save-dir.")] = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Write label maps in the data set's own values, in --save-dir.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="File for the result, as in evaluation.json.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    config_name: ConfigName = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read from the Hub as it goes.")] = False,
    no_check_names: Annotated[
        bool, typer.Option("--no-check-names", help="Let class names differ; their number must not.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images ahead.")] = 2,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default cuda if there is.")] = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the model.")] = DType.float32,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a model on a data set by the official protocol: mIoU and its relatives, in all and per class.

    The same command under `torchrun` or `accelerate launch` shares the images among processes. With --save-dir, what
    was interrupted goes on where it was.
    """
    import torch

    from offseg_hf.evaluation import evaluate as evaluate_files
    from offseg_hf.evaluation import result_line, result_table

    quiet_libraries()
    tasks = []
    with progress_bar() as progress:

        def show(done: int, total: int | None) -> None:  # of several processes, the main one calls it
            tasks[:] = tasks or [progress.add_task("")]
            progress.update(tasks[0], completed=done, total=total)

        report = evaluate_files(
            model,
            dataset,
            split,
            config_name=config_name,
            revision=revision,
            labels=labels,
            image_column=image_column,
            label_column=label_column,
            streaming=streaming,
            check_names=not no_check_names,
            tta=tta,
            limit=limit,
            device=device,
            dtype=getattr(torch, dtype),
            workers=workers,
            save_dir=save_dir,
            overlays=overlays,
            submission=submission,
            json_file=json,
            overwrite=overwrite,
            progress=show,
        )
    if report is not None:
        stdout.print(result_table(report))
        stdout.print(result_line(report))
        for path in (save_dir, json):
            if path is not None:
                stdout.print("written:", path)


@command(app)
def presets() -> None:
    """List the recipes: names, sizes, data sets and how they are tested."""
    from offseg_hf.zoo.presets import PRESETS

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for title in ("parameters", "classes", "resized to", "windows"):
        table.add_column(title, justify="right" if title in ("parameters", "classes") else "left")
    for preset in PRESETS.values():
        size = f"{preset.scale[0]}x{preset.scale[1]}"
        windows = f"{preset.window}/{preset.stride}" if preset.window else "whole"
        parameters = f"{preset.num_parameters / 1e6:.2f} M"
        table.add_row(preset.name, parameters, str(len(preset.labels)), size, windows)
    stdout.print(table)


command(app)(publish)
command(app)(push)


def _report(outcome) -> None:
    if outcome.status == "failed":
        stderr.print(f"error: {outcome.source}: {outcome.message}", style="red")
    elif outcome.status == "kept":
        stderr.print(f"kept: {outcome.source}: {outcome.message} (--overwrite replaces it)", style="yellow")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process; by default that of the command line."""
    # At its end Python would look for cycles among all that torch and transformers are made of, for a second.
    atexit.register(gc.freeze)
    app(arguments, prog_name="offseg")


if __name__ == "__main__":
    main()
