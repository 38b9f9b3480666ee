"""`offseg segment`: photos to label maps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offseg_hf.cli.console import Device, DType, Overwrite, progress_bar, quiet_libraries, stderr, stdout


if TYPE_CHECKING:
    from offseg_hf.inference.files import Outcome


def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders (with subfolders), globs.")],
    model: Annotated[str, typer.Option(help="Folder of a model, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the model.")] = DType.float32,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the classes' colors on the photo.")] = 0.6,
) -> None:
    """Write label map (PNG), overlay with legend (PNG) and class shares (JSON) of every image.

    Every input is tried; the exit code is 1 if one failed. Photos whose results exist are left alone, so that the same
    command goes on after an interruption.

    Examples:
        offseg segment photo.jpg --model hvision/offseg-t-ade --output segmented
        offseg segment photos/ --model runs/mine/best --output segmented --overwrite
        offseg segment "photos/*.jpg" --model runs/mine/best --output out
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
    count = Counter(outcome.status for outcome in outcomes)
    if count["written"]:
        stdout.print(f"{count['written']} of {len(outcomes)} segmented, see {output}")
    elif count["kept"] == len(outcomes):
        stdout.print(f"nothing to do: the results of all {len(outcomes)} exist, see {output}")
    if count["failed"]:
        raise typer.Exit(1)


def _report(outcome: Outcome) -> None:
    if outcome.status == "failed":
        stderr.print(f"error: {outcome.source}: {outcome.message}", style="red")
    elif outcome.status == "kept":
        stderr.print(f"kept: {outcome.source}: {outcome.message} (--overwrite replaces it)", style="yellow")
