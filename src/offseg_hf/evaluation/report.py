"""The result of an evaluation as JSON, for model cards, and as a table for the terminal."""

import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from offseg_hf import __version__
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.evaluation.boundary import WIDTH
from offseg_hf.evaluation.calibration import STEP
from offseg_hf.evaluation.image_counts import ImageCounts, mean_of_numbers


MEANS = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall")
COLUMNS = {
    "IoU": "IoU",
    "BoundaryIoU": "Boundary IoU",
    "Acc": "Acc",
    "Fscore": "F-score",
}  # key in the report -> title in the table
PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")


def metric_report(result: Mapping[str, Any], labels: LabelSet) -> dict[str, Any]:
    """Report `metrics`, in the order of the ids `classes`, and `calibration` of what `evaluate_model` found.

    Ratios are from 0 to 1. None stands where a class has nothing to divide by: JSON has no NaN. It stands for the
    calibration of models without probabilities, too.
    """
    counts: ImageCounts = result["image_counts"]
    calibration, boundary_iou = counts.calibration(), counts.boundary_iou()
    pixels = result["confusion_matrix"].sum(axis=1).tolist()
    classes = [
        {"id": index, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*labels.palette[index])}
        | {"pixels": pixels[index]}
        | {key: _number(result[f"{key}_per_class"][index]) for key in PER_CLASS}
        | {"BoundaryIoU": _number(boundary_iou[index])}
        for index, name in enumerate(labels.names)
    ]
    metrics = {key: _number(result[key]) for key in MEANS} | {
        "mBoundaryIoU": _number(mean_of_numbers(boundary_iou)),
        "ECE": None if calibration is None else _number(calibration.error),
    }
    return {
        "metrics": metrics,
        "classes": classes,
        "calibration": None if calibration is None else {"grid": STEP, "bins": list(calibration.bins())},
        "boundary": {"width_of_diagonal": WIDTH},
    }


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Tell where numbers come from: versions, device, processes."""
    import datasets
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "offseg_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "processes": processes,
    }


def result_table(report: Mapping[str, Any]) -> Table:
    """Make a table of IoU, accuracy, F-score and share of the pixels per class, and means, in percent."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    metrics, classes = report["metrics"], report["classes"]
    total = sum(row["pixels"] for row in classes)
    table.add_column("class", footer="mean", no_wrap=True)
    for key, title in COLUMNS.items():
        table.add_column(title, footer=_percent(metrics[f"m{key}"]), justify="right")
    table.add_column("of pixels", justify="right")
    for row in classes:
        share = row["pixels"] / total if total else None
        table.add_row(row["name"], *(_percent(row[key]) for key in COLUMNS), _percent(share))
    return table


def result_line(report: Mapping[str, Any]) -> str:
    """Write the result in one line."""
    metrics, data = report["metrics"], report["dataset"]
    numbers = ", ".join(f"{key} {_percent(metrics[key])}" for key in MEANS[:3])
    return f"{numbers} on {data['num_images']} images of {data['title']}, {data['split']}"


def comparison_lines(report: Mapping[str, Any]) -> list[str]:
    """Write the differences to the evaluation that this one was compared with, if there is one."""
    comparison = report.get("comparison")
    if comparison is None:
        return []
    lines = [f"compared with {comparison['with']} (95 % intervals over images):"]
    for key, title in (("mIoU", "mIoU"), ("mBoundaryIoU", "Boundary mIoU"), ("aAcc", "aAcc")):
        row = comparison["metrics"][key]
        if row["difference"] is not None:
            between = "({:+.2f} to {:+.2f})".format(*(100 * end for end in row["interval"])) if row["interval"] else ""
            lines.append(f"  {title} {100 * row['difference']:+.2f} {between}".rstrip())
    images = comparison["images"]
    return [*lines, f"  images: {images['better']} better, {images['worse']} worse, of {images['of']}"]


def _number(value: float | np.floating | np.ndarray) -> float | None:
    return None if math.isnan(float(value)) else round(float(value), 6)


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.2f}"
