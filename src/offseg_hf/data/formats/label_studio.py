"""Label Studio's JSON export: brush strokes (its own run lengths), polygons and rectangles (percent of the photo).

Tasks that nobody has annotated, or whose annotation was cancelled, are left out; of several annotations the last
counts. Where no task has a place for annotations, as in files to import, predictions count.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from offseg_hf.data.formats.annotations import (
    VOID,
    Annotations,
    Photos,
    Sample,
    Shapes,
    is_void,
    name_in_url,
    output_name,
    regions_of,
    require_size,
)
from offseg_hf.data.formats.grouping import without_upload_prefix
from offseg_hf.data.formats.masks import Region, crop, decode_brush, fill_rings, read_ring


DONE = ("annotations", "completions")  # the older word
KINDS = ("brushlabels", "polygonlabels", "rectanglelabels")


def is_label_studio(content: Any) -> bool:
    """Return whether the content of a JSON file is an export of Label Studio (JSON, not JSON-MIN)."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    return "data" in content[0] and any(kind in content[0] for kind in (*DONE, "predictions"))


def read_label_studio(files: dict[Path, list], root: Path, images: Path | None) -> Annotations:
    """Return the annotations of exports; the classes are the labels that occur, by name.

    Args:
        files: their contents.
        root: the source.
        images: the folder of the photos, if they are not below the source.
    """
    result = Annotations("Label Studio", [])
    folders = [images] if images else [root]
    photos = Photos(*folders)
    tasks = [(path, task) for path, content in files.items() for task in content]
    to_import = not any(kind in task for _, task in tasks for kind in DONE)
    results = [_results(task, to_import) for _, task in tasks]
    labels = {label for parts in results for part in parts or [] for label in _labels(part)}
    result.names = sorted(label for label in labels if not is_void(label))
    ids = {label: VOID if is_void(label) else result.names.index(label) for label in labels}
    waiting = 0
    for (path, task), parts in zip(tasks, results, strict=True):
        if parts is None:
            waiting += 1
            continue
        address = next((v for v in (task.get("data") or {}).values() if isinstance(v, str) and "." in v), "")
        name = name_in_url(address)
        file = f"{path}: task {task.get('id')}, {name}"
        try:
            photo = _find(photos, name)
        except ValueError as error:
            result.add(file, str(error))
            continue
        result.samples.append(Sample(output_name(photo, folders), photo, file, _reader(parts, ids)))
    if to_import:
        result.notes.append("these are predictions of a model (tasks to import into Label Studio), not annotations")
    if waiting:
        result.notes.append(f"{waiting} tasks are not annotated and left out")
    return result


def _find(photos: Photos, name: str) -> Path:
    """Return a photo by its name, or by the one that it had before it was uploaded."""
    try:
        return photos.find(name)
    except ValueError as error:
        original = without_upload_prefix(name.rpartition("/")[2])
        try:
            return photos.find(original)
        except ValueError:
            raise error from None


def _results(task: dict, to_import: bool) -> list[dict] | None:
    """Return what the last annotation of a task that counts has; None if there is none.

    In tasks `to_import`, which have no place for annotations, predictions stand for them.
    """
    done = task.get("predictions") if to_import else task.get("annotations") or task.get("completions")
    done = [annotation for annotation in done or [] if not annotation.get("was_cancelled")]
    return done[-1].get("result") or [] if done else None


def _labels(part: dict) -> list[str]:
    value = part.get("value") or {}
    return [str(label) for kind in KINDS for label in value.get(kind) or []]


def _reader(parts: list[dict], ids: dict[str, int]) -> Callable[[tuple[int, int]], Shapes]:
    def read(size: tuple[int, int]) -> list[Region]:
        shapes = ((f"result {part.get('id')}", part) for part in parts if _has_shape(part))
        return regions_of(shapes, lambda part: _region(part, ids, size))

    return read


def _has_shape(part: dict) -> bool:
    """Return whether a result is none of the whole photo, nor a stroke whose labels stand beside it by the same id."""
    return "value" in part and part.get("type") not in ("choices", "textarea", "rating", "brush", "polygon")


def _region(part: dict, ids: dict[str, int], size: tuple[int, int]) -> Region | None:
    require_size((part.get("original_width"), part.get("original_height")), size)
    value, labels = part["value"], _labels(part)
    if part.get("type") not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {part.get('type')}")
    if len(labels) != 1:
        raise ValueError(f"expected one label of a shape, got {', '.join(labels) or 'none'}")
    class_id, percent = ids[labels[0]], (size[0] / 100, size[1] / 100)
    if part["type"] == "brushlabels":
        return crop(decode_brush(value.get("rle"), size), class_id)
    if part["type"] == "rectanglelabels":
        if value.get("rotation"):
            raise ValueError("a rotated rectangle is not read; draw a polygon")
        x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
        points = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    else:
        points = value.get("points")
    return fill_rings([read_ring(points, size, percent)], size, class_id)
