"""`offseg benchmark`: how fast models are here, in every runtime, and what memory they take."""

from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.benchmark import Runtime
from offseg_hf.cli.console import quiet_libraries, stderr, stdout
from offseg_hf.export import Precision


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Folders, exported folders, names on the Hub, or presets."),
    ],
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Photo, folder or pattern: the first is segmented; int8 is calibrated with all."),
    ] = None,
    size: Annotated[
        tuple[int, int], typer.Option(metavar="HEIGHT WIDTH", help="Size of the generated photo without --photos.")
    ] = (512, 683),
    runtime: Annotated[
        list[Runtime] | None,
        typer.Option(help="Only these; by default eager, fused, onnx and openvino.", show_default=False),
    ] = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(help="Only these; by default fp32, and bf16 where the processor has it.", show_default=False),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Measure torch.compile, too: minutes to begin.")] = False,
    device: Annotated[
        list[str] | None, typer.Option(help="Only these, of PyTorch; by default the CPU and the GPU.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor; by default all cores.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of everything that is timed.")] = 15,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images together, of which throughput is measured.", show_default="1, on GPUs 8"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder that keeps the exports for the next time.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure latency, throughput and memory of models in every runtime that is installed here.

    PyTorch as loaded and fused, ONNX Runtime and OpenVINO: the network alone, on what it sees of the photo, and from
    the photo's file to its label map. Each is a process of its own, and they take turns. A preset, and a folder with a
    configuration alone, are built with random weights: times do not depend on them.

    Interrupted, it prints what it has.

    Examples:
        offseg benchmark runs/mine/best --photos photo.jpg
        offseg benchmark offseg-t-ade offseg-b-ade --threads 4 --json speed.json
        offseg benchmark runs/mine/best --runtime openvino --precision int8 --photos my_photos
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from offseg_hf.benchmark.benchmark import DEFAULTS, BenchmarkOptions
    from offseg_hf.benchmark.benchmark import benchmark as measure
    from offseg_hf.benchmark.report import report_lines, report_table, write_report
    from offseg_hf.inference.files import plan

    quiet_libraries()
    jobs, failed = plan(photos or [], Path(), overwrite=True)
    if failed:
        raise ValueError(f"{failed[0].source}: {failed[0].message}")
    runtimes = list(runtime or DEFAULTS.runtimes)
    if compile and Runtime.compiled not in runtimes:
        runtimes.append(Runtime.compiled)
    options = BenchmarkOptions(
        runtimes=[each for each in Runtime if each in runtimes],
        precisions=precision,
        devices=device,
        threads=threads,
        runs=runs,
        batch_size=batch_size,
    )
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        shown = bar.add_task("")

        def show(text: str, done: int, total: int) -> None:
            bar.update(shown, description=text, completed=done, total=total)

        report = measure(
            models,
            options=options,
            photos=[job.source for job in jobs],
            size=size,
            exports=output,
            progress=show,
        )
    if any(each.seconds for each in report.measurements):
        stdout.print(report_table(report))
    for line in report_lines(report):
        stdout.print(line)
    if json is not None:
        write_report(report, json)
        stdout.print("written:", json)
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.measurements:
        raise ValueError("nothing could be measured")
