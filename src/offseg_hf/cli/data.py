"""`offseg data`: what can be done with data sets before training."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offseg_hf.cli.console import command, command_group, progress_bar, quiet_libraries, stderr, stdout


data_app = command_group(
    "Data sets: convert annotations, check, show, push to the Hub, generate.",
    """
    offseg data convert annotations.json --images photos --output my_photos
    offseg data check my_photos
    offseg data push my_photos my-name/my-photos
    """,
)


class Uncovered(StrEnum):
    """What pixels in no shape become."""

    background = "background"
    void = "void"


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
def convert(
    source: Annotated[Path, typer.Argument(help="File, zip archive or folder of annotations.")],
    output: Annotated[Path, typer.Option(help="Folder to create.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the photos, if they are not found.")] = None,
    uncovered: Annotated[
        Uncovered, typer.Option(help="Pixels in no shape are a class `background`, or no class.")
    ] = Uncovered.background,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out photos with a problem; otherwise nothing is written.")
    ] = False,
) -> None:
    """Turn annotations of other tools into a folder that `offseg data check` and training read.

    Known are COCO JSON (polygons, run lengths, crowds, panoptic PNGs), YOLO segmentation (data.yaml), Label Studio
    JSON, LabelMe JSON, CVAT's Segmentation mask 1.1, Pascal VOC, and PNGs in color with a labelmap.txt, class_dict.csv
    or label_colors.txt. The content tells which one it is.

    A pixel belongs to a polygon if its center lies inside. Of shapes that overlap the smaller one is on top. Without a
    split, a fifth of the photos is to validate on, in whole groups: a group is a folder and a name without the number
    at its end, so that frames of a video stay on one side.

    Examples:
        offseg data convert annotations.json --images photos --output my_photos
        offseg data convert yolo/data.yaml --output my_photos --uncovered void
        offseg data convert cvat_export.zip --images photos --output my_photos
    """
    from offseg_hf.data.formats.convert import ConversionError, convert_segmentation_data
    from offseg_hf.utils.texts import printable

    with progress_bar() as progress:
        task = progress.add_task("", total=None)
        try:
            result = convert_segmentation_data(
                source,
                output,
                images=images,
                uncovered=uncovered.value,
                leave_out=leave_out,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except ConversionError as error:
            for problem in error.problems:
                stderr.print(f"error: {problem}", style="red")
            stderr.print(f"{len(error.problems)} problems, nothing was written (--leave-out writes the other photos)")
            raise typer.Exit(1) from None
    for problem in result.problems:
        stderr.print(f"left out: {problem}", style="yellow")
    for note in result.notes:
        stderr.print(f"note: {printable(note)}", style="yellow")
    photos = ", ".join(f"{split} {count}" for split, count in result.splits.items())
    stdout.print(f"{output}: from {result.kind}, {len(result.labels)} classes, {photos}")


@command(data_app)
def show(
    source: Source,
    output: Annotated[Path, typer.Option(help="PNG to write.")],
    number: Annotated[int, typer.Option(min=1, help="Samples to show, from all over the split.")] = 6,
    split: Annotated[str, typer.Option(help="Which one: train, validation, test.")] = "train",
    augmented: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Show crops that training by this recipe would see, too.")
    ] = None,
    config_name: ConfigName = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
) -> None:
    """Write a contact sheet: photos beside their label maps with a legend, and augmented crops.

    Examples:
        offseg data show my_photos --output sheet.png
        offseg data show my_photos --split validation --output sheet.png
        offseg data show my_photos --number 3 --augmented offseg-t-ade --output sheet.png
    """
    from offseg_hf.data.dataset import load_data
    from offseg_hf.data.source import DataSource
    from offseg_hf.visualization.contact_sheet import write_contact_sheet

    quiet_libraries()
    transform = None
    if augmented is not None:
        from offseg_hf.training.recipe import load_recipe

        transform = load_recipe(augmented).augmentation
    data = load_data(DataSource(source, config_name, revision, image_column, label_column, labels), split)
    indices = write_contact_sheet(data, output, number, transform)
    stdout.print(f"{output}: {len(indices)} samples of {split}")


@command(data_app)
def push(
    source: Source,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Data set on the Hub, as user/name.")],
    split: Annotated[
        str | None, typer.Option(help="Split to read: train, validation or test; by default all.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private data set.")] = False,
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
