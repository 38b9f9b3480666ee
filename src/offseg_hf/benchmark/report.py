"""A benchmark's figures as a table, and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from offseg_hf.benchmark.benchmark import Report
from offseg_hf.utils.files import whole_file


COLUMNS = ("network, ms", "min", "p90", "images/s", "photo, ms", "memory, MB", "same labels")


def report_table(report: Report) -> Table:
    """Return the table: a row per way, under its model."""
    results = report.facts()["results"]
    devices = {result["device"] for result in results}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for index, result in enumerate(results):
        if index == 0 or results[index - 1]["model"] != result["model"]:
            height, width = result["image"]
            weights = ", random weights" if result["random_weights"] else ""
            table.add_row(f"{result['model']}, {width}x{height}{weights}", style="bold")
        place = f" on {result['device']}" if len(devices) > 1 else ""
        table.add_row(f"  {result['runtime']} {result['precision']}{place}", *_cells(result))
    return table


def report_lines(report: Report) -> list[str]:
    """Return what is to be known of the table, and why something is not in it."""
    machine = report.machine
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino") if machine[name] is not None
    )
    height, width = report.photo["size"]
    chip = machine.get("accelerator", machine["processor"])
    lines = [
        f"{chip} ({machine['instructions']}), {machine['threads']} threads, {versions}",
        f"network: one image; photo: {width}x{height}, {report.photo['file'] or 'generated'}, from its file to its "
        "label map. Times are medians of runs that take turns. Memory: by which a process is larger at its peak than "
        "before it loads the model.",
    ]
    return lines + [f"left out: {what}: {why}" for what, why in report.left_out]


def write_report(report: Report, path: Path) -> None:
    """Write the figures as JSON."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(report.facts(), indent=2) + "\n", encoding="utf-8")


def _cells(result: dict[str, Any]) -> Sequence[str]:
    network, photo = result.get("network"), result.get("photo")
    labels, memory, rate = result["equal_labels"], result["memory_mb"], result.get("images_per_second")
    times = [f"{network[name]:.1f}" for name in ("median", "min", "p90")] if network else [""] * 3
    return (
        *times,
        f"{rate:.2f}" if rate else "",
        f"{photo['median']:.1f}" if photo else "",
        f"{memory:.0f}" if memory is not None else "",
        f"{100 * labels:.2f} %" if labels is not None else "",
    )
