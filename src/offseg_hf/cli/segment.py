"""`offseg segment`: photos and videos to label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offseg_hf.cli.console import (
    Device,
    DType,
    Overwrite,
    frames_bar,
    progress_bar,
    quiet_libraries,
    stderr,
    stdout,
)


if TYPE_CHECKING:
    from offseg_hf.inference.files import Job, Outcome
    from offseg_hf.inference.outputs import OutputKind
    from offseg_hf.inference.segmenter import Segmenter
    from offseg_hf.inference.tiles import TileOptions
    from offseg_hf.inference.video import VideoJob, VideoOptions

VIDEO, LARGE = "Videos", "Large pictures"


class Format(StrEnum):
    """Name what is written of a photo."""

    pictures = "pictures"
    dataset = "dataset"
    label_studio = "label-studio"
    fiftyone = "fiftyone"


def segment(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Photos: files, folders (with subfolders), globs. Videos: files, addresses, the number of a camera.",
        ),
    ],
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
        int | None,
        typer.Option(min=1, help="Photos or frames that the network sees together.", show_default="1, on GPUs 8"),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network: minutes, worth it for many.")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="Segment one of so many frames.", rich_help_panel=VIDEO)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Segment at most so many frames a second.", rich_help_panel=VIDEO)
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Average scores over frames: a frame's own weigh ALPHA, between 0 and 1, those before the rest.",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    label_maps: Annotated[
        bool, typer.Option("--label-maps", help="Write a label map (PNG) of every frame too.", rich_help_panel=VIDEO)
    ] = False,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Segment photos at their own resolution, tile by tile; TIFF to TIFF, with its georeference.",
            rich_help_panel=LARGE,
        ),
    ] = False,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile, in pixels.", rich_help_panel=LARGE, show_default="1024")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels over which tiles are blended.", rich_help_panel=LARGE, show_default="128"),
    ] = None,
) -> None:
    """Write label map (PNG), overlay with legend (PNG) and class shares (JSON) of every image.

    Of a video, an address of one or a camera: overlay (MP4) and class shares of every frame (CSV). Ctrl-C leaves what
    can be played.

    With --native photos are segmented at their own resolution, of any size, tile by tile.

    With --format dataset: images, masks and classes.json, as training reads them; with label-studio or fiftyone: JSON
    to begin annotating with. --confidence leaves out what the model is not sure of.

    Every input is tried; the exit code is 1 if one failed. Photos whose results exist are left alone: run the same
    command again after an interruption, and it continues. Under `accelerate launch` the processes share the photos.

    Examples:
        offseg segment photo.jpg --model hvision/offseg-t-ade --output segmented
        offseg segment photos/ --model runs/mine/best --output segmented --overwrite
        offseg segment "*.jpg" --model runs/mine/best --output out --format dataset
        offseg segment drive.mp4 --model runs/mine/best --output out --fps 5
        offseg segment map.tif --model runs/mine/best --output out --native
    """
    from offseg_hf.inference.outputs import LargePictures
    from offseg_hf.inference.video import is_video

    videos = [text for text in images if is_video(text)]
    photos = [text for text in images if text not in videos]
    tile_options = _tile_options(native, bool(photos), format, tile, overlap, opacity)
    kind = _kind(format, confidence, opacity)
    if native:
        kind = LargePictures()
    options = {"--every": every, "--fps": fps, "--smooth": smooth, "--label-maps": label_maps or None}
    video_options = _video_options(bool(videos), format, options, opacity)
    import torch

    from offseg_hf.inference.files import make_folder, plan
    from offseg_hf.inference.files import segment as segment_jobs
    from offseg_hf.inference.segmenter import Segmenter
    from offseg_hf.inference.video import plan_videos
    from offseg_hf.utils.processes import Processes

    quiet_libraries()
    processes = Processes.launched(device)
    share = (processes.index, processes.count)
    jobs, outcomes = plan(photos, output, overwrite, share, kind)
    video_jobs, of_videos = plan_videos(videos, output, overwrite, share)
    outcomes += of_videos
    for outcome in outcomes:
        _report(outcome)
    if jobs or video_jobs:
        make_folder(output)
        segmenter = Segmenter(model, processes.device(device), getattr(torch, dtype))
        batch_size = batch_size or (1 if segmenter.device.type == "cpu" else 8)
        if jobs and native:
            how_large = replace(tile_options, batch_size=batch_size, compile=compile)
            for outcome in _segment_large(jobs, segmenter, how_large):
                outcomes.append(outcome)
                _report(outcome)
        elif jobs:
            arguments = (jobs, segmenter, confidence, batch_size, compile)
            # Closed, it writes to its end what it began: after an interruption, too.
            with closing(segment_jobs(*arguments)) as segmented, progress_bar() as progress:
                for outcome in progress.track(segmented, total=len(jobs)):
                    outcomes.append(outcome)
                    _report(outcome)
        for video in video_jobs:
            how = replace(video_options, batch_size=batch_size, compile=compile)
            outcomes.append(_segment_video(video, segmenter, how))
            _report(outcomes[-1])
    count = Counter(outcome.status for outcome in outcomes)
    if count["written"]:
        stdout.print(f"{count['written']} of {len(outcomes)} segmented, see {output}")
    elif count["kept"] == len(outcomes):
        stdout.print(f"nothing to do: the results of all {len(outcomes)} exist, see {output}")
    if count["failed"]:
        raise typer.Exit(1)


def _segment_large(jobs: list[Job], segmenter: Segmenter, options: TileOptions) -> Iterator[Outcome]:
    from offseg_hf.inference.tiles import segment_by_tiles

    with progress_bar() as progress:
        task = progress.add_task("rows", total=None)

        def show(job: Job, rows: int, height: int) -> None:
            progress.update(task, completed=rows, total=height)

        with closing(segment_by_tiles(jobs, segmenter, options, show)) as segmented:
            yield from segmented


def _tile_options(
    native: bool, are_there: bool, format: Format, tile: int | None, overlap: int | None, opacity: float | None
) -> TileOptions:
    """Return how photos are cut into tiles; raises ValueError for an option without effect."""
    from offseg_hf.inference.tiles import TileOptions

    if not native:
        for name, value in {"--tile": tile, "--overlap": overlap}.items():
            if value is not None:
                raise ValueError(f"{name} is for photos at their own resolution: pass --native too")
    elif not are_there:
        raise ValueError("--native is for photos, and none is among the inputs")
    elif format is not Format.pictures:
        raise ValueError(f"--native writes pictures, and --format {format} labels of another kind: pass one of them")
    return TileOptions(tile, overlap) if opacity is None else TileOptions(tile, overlap, opacity=opacity)


def _segment_video(job: VideoJob, segmenter: Segmenter, options: VideoOptions) -> Outcome:
    from offseg_hf.inference.files import Outcome
    from offseg_hf.inference.video import record

    with frames_bar() as progress:
        task = progress.add_task(job.source, total=None)
        try:
            recording = record(
                job, segmenter, options, lambda done, total: progress.update(task, completed=done, total=total)
            )
        except (ValueError, OSError) as error:
            return Outcome(job.source, "failed", str(error))
    for note in recording.notes:
        stderr.print(f"{job.source}: {note}", style="yellow")
    speed = f"{recording.frames_per_second:.1f} a second"
    stdout.print(f"{job.source}: {recording.frames} frames, {speed}, see {recording.files[0]}")
    return Outcome(job.source, "written", str(recording.files[0]))


def _video_options(are_there: bool, format: Format, options: dict[str, Any], opacity: float | None) -> VideoOptions:
    """Return how videos are segmented; raises ValueError for an option without effect."""
    from offseg_hf.inference.video import VideoOptions

    given = {name: value for name, value in options.items() if value is not None}
    if given and not are_there:
        raise ValueError(f"{next(iter(given))} is for videos, and none is among the inputs")
    if are_there and format is not Format.pictures:
        raise ValueError(f"--format {format} is for photos, and there is a video among the inputs: segment it apart")
    given = {name.lstrip("-").replace("-", "_"): value for name, value in given.items()}
    return VideoOptions(**given | ({} if opacity is None else {"opacity": opacity}))


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
