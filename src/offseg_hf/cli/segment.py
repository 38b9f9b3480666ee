"""`offseg segment`: photos to label maps."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offseg_hf.cli.console import Device, DType, Overwrite, progress_bar, quiet_libraries, stderr, stdout


if TYPE_CHECKING:
    from offseg_hf.inference.files import Outcome
    from offseg_hf.inference.outputs import OutputKind


class Format(StrEnum):
    """Name what is written of a photo."""

    pictures = "pictures"
    dataset = "dataset"
    label_studio = "label-studio"
    fiftyone = "fiftyone"


def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders (with subfolders), globs.")],
    model: Annotated[str, typer.Option(help="Folder of a model, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the model.")] = DType.float32,
    format: Annotated[
        Format,
        typer.Option(help="To look at; or labels: a folder to train on, or pre-annotations for a tool."),
    ] = Format.pictures,
    confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Leave pixels without a label whose class is less probable than this."),
    ] = None,
    opacity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Opacity of the colors over the photo.", show_default="0.6"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Photos that the network sees together.", show_default="1, on GPUs 8")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network: minutes, worth it for many.")
    ] = False,
) -> None:
    """Write label map (PNG), overlay with legend (PNG) and class shares (JSON) of every image.

    With --format dataset: images, masks and classes.json, as training reads them; with label-studio or fiftyone: JSON
    to begin annotating with. --confidence leaves out what the model is not sure of.

    Every input is tried; the exit code is 1 if one failed. Photos whose results exist are left alone: run the same
    command again after an interruption, and it continues. Under `accelerate launch` the processes share the photos.

    Examples:
        offseg segment photo.jpg --model hvision/offseg-t-ade --output segmented
        offseg segment photos/ --model runs/mine/best --output segmented --overwrite
        offseg segment "*.jpg" --model runs/mine/best --output out --format dataset
    """
    kind = _kind(format, confidence, opacity)
    import torch

    from offseg_hf.inference.files import make_folder, plan
    from offseg_hf.inference.files import segment as segment_jobs
    from offseg_hf.inference.segmenter import Segmenter
    from offseg_hf.utils.processes import Processes

    quiet_libraries()
    processes = Processes.launched(device)
    jobs, outcomes = plan(images, output, overwrite, (processes.index, processes.count), kind)
    for outcome in outcomes:
        _report(outcome)
    if jobs:
        make_folder(output)
        segmenter = Segmenter(model, processes.device(device), getattr(torch, dtype))
        batch_size = batch_size or (1 if segmenter.device.type == "cpu" else 8)
        arguments = (jobs, segmenter, confidence, batch_size, compile)
        # Closed, it writes to its end what it began: after an interruption, too.
        with closing(segment_jobs(*arguments)) as segmented, progress_bar() as progress:
            for outcome in progress.track(segmented, total=len(jobs)):
                outcomes.append(outcome)
                _report(outcome)
    count = Counter(outcome.status for outcome in outcomes)
    if count["written"]:
        stdout.print(f"{count['written']} of {len(outcomes)} segmented, see {output}")
    elif count["kept"] == len(outcomes):
        stdout.print(f"nothing to do: the results of all {len(outcomes)} exist, see {output}")
    if count["failed"]:
        raise typer.Exit(1)


def _kind(format: Format, confidence: float | None, opacity: float | None) -> OutputKind:
    """Return what to write; raises ValueError for an option without effect on it."""
    from offseg_hf.inference.outputs import FiftyOne, LabelStudio, Pictures, TrainingData

    if format is Format.pictures:
        if confidence is not None:
            others = ", ".join(each for each in Format if each is not Format.pictures)
            raise ValueError(f"--confidence is for labels, and these are pictures: pass --format ({others}) too")
        return Pictures() if opacity is None else Pictures(opacity)
    if opacity is not None:
        raise ValueError(f"--opacity is for pictures, and --format {format} writes none")
    kinds: dict[Format, OutputKind] = {
        Format.dataset: TrainingData(),
        Format.label_studio: LabelStudio(),
        Format.fiftyone: FiftyOne(),
    }
    return kinds[format]


def _report(outcome: Outcome) -> None:
    if outcome.status == "failed":
        stderr.print(f"error: {outcome.source}: {outcome.message}", style="red")
    elif outcome.status == "kept":
        stderr.print(f"kept: {outcome.source}: {outcome.message} (--overwrite replaces it)", style="yellow")
