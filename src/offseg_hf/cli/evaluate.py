"""`offseg evaluate`: mIoU and other metrics of a model on a data set."""

from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.cli.console import Device, DType, Overwrite, progress_bar, quiet_libraries, stdout
from offseg_hf.cli.data import ConfigName, ImageColumn, LabelColumn, Labels, Revision


def evaluate(
    model: Annotated[str | None, typer.Option(help="Folder of a model, or its name on the Hub.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", "--dataset", help="Folder of a data set, or its name on the Hub.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "val",
    tta: Annotated[bool, typer.Option("--tta", help="Average over six scales, each mirrored too.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--save-dir", help="Folder for report.html and evaluation.json."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OTHER/evaluation.json", help="Older evaluation of the same images to compare with."),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Write overlays of annotation and prediction to --output.")
    ] = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Write label maps in the data set's published ids to --output.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="File for the result, as in evaluation.json.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Evaluate only the first N images.")] = None,
    config_name: ConfigName = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a data set on the Hub without downloading it first.")
    ] = False,
    no_check_names: Annotated[
        bool, typer.Option("--no-check-names", help="Accept other class names; their number must be the same.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images ahead.")] = 2,
    device: Device = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the model.")] = DType.float32,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a model on a data set by the official protocol: mIoU and other metrics, overall and per class.

    The same command under `torchrun` or `accelerate launch` shares the images among processes. With --output, an
    interrupted evaluation resumes, and report.html shows where the model fails. Without --model and --data, the
    report of the evaluation in --output is written again, from its counts.

    Examples:
        offseg evaluate --model runs/mine/best --data my_photos --output evaluated
        offseg evaluate --model hvision/offseg-t-ade --data ADEChallengeData2016 --tta
        offseg evaluate --output evaluated --compare older/evaluation.json
    """
    import torch

    from offseg_hf.data.source import DataSource
    from offseg_hf.evaluation import (
        EvaluationOptions,
        Outputs,
        comparison_lines,
        report_again,
        result_line,
        result_table,
    )
    from offseg_hf.evaluation import evaluate as evaluate_files

    quiet_libraries()
    if model is None or data is None:
        if model is not None or data is not None or output is None:
            raise ValueError(
                "expected --model and --data, or neither and --output, the folder of a finished evaluation, "
                "whose report is written again"
            )
        again = report_again(output, compare)
        for line in (result_line(again), *comparison_lines(again)):
            stdout.print(line)
        stdout.print("written:", output / "report.html")
        return
    tasks: list = []
    with progress_bar() as progress:

        def show(done: int, total: int | None) -> None:  # of several processes, the main one calls it
            tasks[:] = tasks or [progress.add_task("")]
            progress.update(tasks[0], completed=done, total=total)

        report = evaluate_files(
            model,
            DataSource(data, config_name, revision, image_column, label_column, labels),
            split,
            options=EvaluationOptions(
                tta=tta,
                limit=limit,
                check_names=not no_check_names,
                streaming=streaming,
                workers=workers,
                device=device,
                dtype=getattr(torch, dtype),
            ),
            outputs=Outputs(output, overlays, submission, json, overwrite),
            compare_with=compare,
            progress=show,
        )
    if report is not None:
        stdout.print(result_table(report))
        for line in (result_line(report), *comparison_lines(report)):
            stdout.print(line)
        for path in (output, json):
            if path is not None:
                stdout.print("written:", path)
