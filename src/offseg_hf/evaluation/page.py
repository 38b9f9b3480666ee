"""The report of an evaluation: one page that needs nothing but itself, and its pictures beside it.

It works offline and from a file. `templates/` has HTML, style and script; what they show is JSON in the page.
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from offseg_hf.evaluation.comparison import SavedEvaluation
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.pictures import KINDS, PICTURES, draw_thumbnail
from offseg_hf.utils.files import whole_file


PAGE = "report.html"
THUMBNAIL_BYTES = 4 * 2**20  # of all thumbnails in the page: those of the worst images
MAX_IMAGES = 5000  # listed in the page: the worst
SMALLEST_CONFUSION = 0.001  # of an image's annotated pixels: below, the page does not say where it occurs


def write_page(
    folder: Path, report: Mapping[str, Any], counts: ImageCounts, other: SavedEvaluation | None = None
) -> None:
    """Write `report.html` into the folder of an evaluation, with thumbnails of the pictures that are there.

    Args:
        folder: of the evaluation.
        report: as in `evaluation.json`.
        counts: of its images.
        other: that it was compared with.
    """
    data = page_data(report, counts, other)
    worst = np.argsort([np.inf if score is None else score for score in data["images"]["mIoU"]], kind="stable")
    data["thumbnails"] = _thumbnails(folder / PICTURES, data["images"]["index"], worst.tolist())
    with whole_file(folder / PAGE) as path:
        path.write_text(page(data), encoding="utf-8")


def page(data: Mapping[str, Any]) -> str:
    """Return the page that shows `page_data`."""
    templates = files("offseg_hf.evaluation").joinpath("templates")
    text = {name: templates.joinpath(f"report.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    # Nothing that a script can hold ends it, nor begins a comment.
    content = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    title = f"{data['model']['name']} on {data['dataset']['title']}"
    parts = {"title": html.escape(title), "style": text["css"], "script": text["js"], "data": content}
    return re.sub(r"{{ (\w+) }}", lambda match: parts[match[1]], text["html"])


def page_data(report: Mapping[str, Any], counts: ImageCounts, other: SavedEvaluation | None = None) -> dict[str, Any]:
    """Return what the page shows, but for thumbnails: the report, and per image its scores and its confusions."""
    tables = counts.per_image()
    scores = tables.scores()
    listed = np.sort(np.argsort(scores["mIoU"], kind="stable")[:MAX_IMAGES])  # numpy puts NaN last
    rows = [counts.rows[place] for place in listed]
    images: dict[str, Any] = {
        "index": [row["index"] for row in rows],
        "name": [row["image"].rpartition("/")[2] for row in rows],
        "size": [f"{row['width']} × {row['height']}" for row in rows],
        "annotated": tables.labeled[listed].sum(axis=1).tolist(),
        **{name: _numbers(values[listed]) for name, values in scores.items()},
        "confusions": [_confusions(row, SMALLEST_CONFUSION * row["pixels"].sum()) for row in rows],
    }
    if other is not None:
        images["before"] = _numbers(other.counts.per_image().scores()["mIoU"][listed])
    return {
        **{key: report[key] for key in ("model", "dataset", "protocol", "environment", "metrics", "classes")},
        **{key: report.get(key) for key in ("calibration", "comparison", "boundary")},
        "confusions": _total_confusions(counts),
        "smallest_confusion": SMALLEST_CONFUSION,
        "images": images,
        "pictures": {kind: f"{PICTURES}/{kind}/*{suffix}" for kind, suffix in KINDS.items()},
        "thumbnails": {},
    }


def _confusions(row: Mapping[str, Any], smallest: float) -> list[int]:
    """Return label, prediction and pixels of the confusions of an image one after the other, the largest first."""
    label, prediction, pixels = row["label"], row["prediction"], row["pixels"]
    chosen = np.flatnonzero((label != prediction) & (pixels >= smallest))
    chosen = chosen[np.argsort(-pixels[chosen], kind="stable")]
    return np.stack([label, prediction, pixels])[:, chosen].T.ravel().tolist()


def _total_confusions(counts: ImageCounts) -> list[int]:
    """Return label, prediction and pixels of the cells of the confusion matrix that are not zero."""
    matrix = np.zeros((counts.num_classes, counts.num_classes), np.int64)
    for row in counts.rows:
        matrix[row["label"], row["prediction"]] += row["pixels"]
    return np.stack([*matrix.nonzero(), matrix[matrix.nonzero()]]).T.ravel().tolist()


def _thumbnails(folder: Path, indices: list[int], order: list[int]) -> dict[int, str]:
    """Return pictures as data URIs by the place of their image, until `THUMBNAIL_BYTES` are used up."""
    thumbnails, used = {}, 0
    for place in order:
        picture = draw_thumbnail(folder, indices[place])
        if picture is None:
            continue
        content = io.BytesIO()
        picture.save(content, "WEBP", quality=55, method=2)
        uri = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
        used += len(uri)
        if used > THUMBNAIL_BYTES:
            break
        thumbnails[place] = uri
    return thumbnails


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
