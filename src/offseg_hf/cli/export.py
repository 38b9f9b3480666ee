"""`offseg export`: a model as a file for another runtime."""

from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.cli.console import Overwrite, quiet_libraries, stderr, stdout
from offseg_hf.export import Format, Precision


def export(
    model: Annotated[str, typer.Argument(help="Folder of a model, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the file and all that belongs to it.")],
    format: Annotated[Format, typer.Option(help="What is to run it.")] = Format.onnx,
    precision: Annotated[
        Precision, typer.Option(help="What it computes in: bf16 with OpenVINO, fp16 as ONNX, int8 of convolutions.")
    ] = Precision.fp32,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="HEIGHT WIDTH",
            help="Of the images that the network takes: photos are stretched to it.",
            show_default="what the model sees of the first photo",
        ),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="For any number of images of any size, instead of one.")
    ] = False,
    end_to_end: Annotated[
        bool,
        typer.Option("--end-to-end", help="Also a graph from pixels to labels, which is not the official protocol."),
    ] = False,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Photo, folder or pattern to check with, and to calibrate int8; else generated scenes."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "--data", help="Folder of a data set, or its name on the Hub: mIoU of both."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set: train, val or test.")] = "val",
    web: Annotated[
        bool, typer.Option("--web", help="Add a page that runs it in a browser, and a folder for transformers.js.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a model for another runtime, and check it against the model itself.

    `offseg segment`, `offseg evaluate` and `pipeline` take the folder as they take a model. What differs from the
    model by more than its precision explains is an error, and nothing is written.

    Examples:
        offseg export runs/mine/best --output exported
        offseg export runs/mine/best --format openvino --precision bf16 --dataset my_photos --output exported
        offseg export runs/mine/best --size 256 320 --dataset my_photos --output exported
        offseg export runs/mine/best --precision int8 --photos my_photos --end-to-end --output exported
        offseg export runs/mine/best --web --output page
    """
    from offseg_hf.data.source import DataSource
    from offseg_hf.evaluation import EvaluationOptions, evaluate
    from offseg_hf.export.card import check_lines
    from offseg_hf.export.export import ExportOptions, export_model
    from offseg_hf.export.web.onnxruntime_web import BESIDE, runtime_folder
    from offseg_hf.inference.files import plan

    quiet_libraries()
    options = ExportOptions(format, precision, size, dynamic=dynamic, end_to_end=end_to_end, web=web)
    options.check()
    jobs, failed = plan(photos or [], output, overwrite=True)
    if failed:
        raise ValueError(f"{failed[0].source}: {failed[0].message}")

    def miou(name: str) -> float:
        report = evaluate(name, DataSource(dataset), split, options=EvaluationOptions(device="cpu"))
        assert report is not None  # one process
        return 100 * report["metrics"]["mIoU"]

    report = export_model(
        model,
        output,
        options=options,
        photos=[job.source for job in jobs],
        score=None if dataset is None else miou,
        overwrite=overwrite,
    )
    for line in check_lines(report):
        stdout.print(line)
    if web and report["onnxruntime_web"] != BESIDE:
        stderr.print(
            f"ONNX Runtime Web cannot be fetched: the page takes it from {report['onnxruntime_web']} when it is "
            f"opened. For a page that needs no other server, put its files into {runtime_folder()} and export again",
            style="yellow",
        )
    if web:
        stdout.print(f"a page in {output}: `python -m http.server --directory {output}`, then http://localhost:8000")
    stdout.print(f"exported to {output}: `offseg segment photo.jpg --model {output} --output segmented`")
