"""`offseg data`: what can be done with data sets before training."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offseg_hf.cli.console import command, command_group, progress_bar, quiet_libraries, stderr, stdout


data_app = command_group(
    "Data sets: check, push to the Hub, generate.",
    """
    offseg data check my_photos
    offseg data push my_photos my-name/my-photos
    offseg data scenes scenes
    """,
)

Source = Annotated[str, typer.Argument(help="Folder of a data set, or its name on the Hub.")]
ConfigName = Annotated[str | None, typer.Option(help="Configuration of the data set, if it comes in several.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the data set on the Hub.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images, if it is not `image`.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label maps, if it is not `label`.")]
Labels = Annotated[
    str | None,
    typer.Option(help="Classes, if not in the data: ade, cityscapes, cocostuff, context59, or a classes.json."),
]


@command(data_app)
def check(
    source: Source,
    split: Annotated[
        str | None, typer.Option(help="Split to read: train, validation or test; by default all.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print how many pixels each class has, and loss weights.")
    ] = False,
    config_name: ConfigName = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
) -> None:
    """Read all of a data set and name every file with a problem; exit code 1 if there is one.

    Files are read as training reads them. Notes point out what may be unintended, such as a class without pixels.

    Examples:
        offseg data check my_photos
        offseg data check my_photos --split train --stats
        offseg data check my-name/my-photos --label-column mask
    """
    from offseg_hf.data.check import check_segmentation_data
    from offseg_hf.data.source import DataSource
    from offseg_hf.utils.texts import printable

    quiet_libraries()
    with progress_bar() as progress:
        task = progress.add_task("", total=None)
        reports = check_segmentation_data(
            DataSource(source, config_name, revision, image_column, label_column, labels),
            split,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for report in reports:
        for problem in report.problems:
            stderr.print(f"error: {problem}", style="red")
        for note in report.notes:
            stderr.print(f"note: {report.name}: {printable(note)}", style="yellow")
        stdout.print(f"{report.name}: {report.num_samples} samples, {len(report.problems)} problems")
        if stats:
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column("id", justify="right")
            table.add_column("class", no_wrap=True)
            for title in ("pixels", "share", "images"):
                table.add_column(title, justify="right")
            for index, (name, pixels, share, images) in enumerate(report.rows()):
                table.add_row(str(index), name, f"{pixels:,}", f"{share:.2%}", str(images))
            table.add_row("", "no class", f"{report.ignored:,}", "", "")
            stdout.print(table, width=None if stdout.is_terminal else 120)
            stdout.print(f"semantic_loss_class_weights: {report.class_weights()}\n", soft_wrap=True)
    if any(report.problems for report in reports):
        raise typer.Exit(1)


@command(data_app)
def push(
    source: Source,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Data set on the Hub, as user/name.")],
    split: Annotated[
        str | None, typer.Option(help="Split to read: train, validation or test; by default all.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it as a private one.")] = False,
    config_name: ConfigName = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
) -> None:
    """Pack a data set into parquet files on the Hub: images as they are, label maps as class ids.

    Examples:
        offseg data push my_photos my-name/my-photos
        offseg data push my_photos my-name/my-photos --private
        offseg data push my_photos my-name/my-photos --labels classes.json
    """
    import datasets

    from offseg_hf.data.push import push_segmentation_data
    from offseg_hf.data.source import DataSource

    quiet_libraries()
    if not stderr.is_terminal:
        datasets.disable_progress_bars()
    data = DataSource(source, config_name, revision, image_column, label_column, labels)
    url = push_segmentation_data(data, repository, split=split, private=private)
    stdout.print(url)


@command(data_app)
def scenes(
    output: Annotated[Path, typer.Argument(help="Folder to create.")],
    train: Annotated[int, typer.Option(min=0, help="Scenes to train on.")] = 400,
    val: Annotated[int, typer.Option(min=0, help="Scenes to validate on.")] = 100,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height.")] = (512, 384),
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 1,
) -> None:
    """Write generated street scenes with exact label maps, always the same: data without any download.

    Examples:
        offseg data scenes scenes
        offseg data scenes scenes --train 40 --val 10 --size 256 192
        offseg data scenes scenes --workers 4
    """
    from offseg_hf.data.scenes.folder import write_scenes

    with progress_bar() as progress:
        task = progress.add_task("", total=train + val)
        write_scenes(output, train, val, size, workers, lambda done, _: progress.update(task, completed=done))
    stdout.print(f"{output}: {train} scenes to train on, {val} to validate on")
