"""LabelMe: a JSON file a photo, with polygons, rectangles, circles and masks.

`_background_` is what nothing was drawn on, `__ignore__` void, as in LabelMe's own converters.
"""

import base64
import binascii
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offseg_hf.data.formats.annotations import (
    VOID,
    Annotations,
    Photos,
    Sample,
    Shapes,
    is_void,
    output_name,
    regions_of,
    require_size,
    split_of,
)
from offseg_hf.data.formats.masks import TOLERANCE, Region, crop, fill_rings, read_ring
from offseg_hf.utils.texts import read_text, reading_error


CIRCLE_CORNERS = 128


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(files: dict[Path, dict[str, Any]], root: Path, images: Path | None) -> Annotations:
    """Return the annotations of LabelMe's files; classes are those of a labels.txt, or the labels that occur, by name.

    Args:
        files: their contents.
        root: the source, whose folders may tell splits.
        images: the folder of the photos, if they are not beside the files.
    """
    result = Annotations("LabelMe", [])
    listed = root / "labels.txt"
    if listed.is_file():
        labels = list(dict.fromkeys(line.strip() for line in read_text(listed).splitlines() if line.strip()))
    else:
        found = {str(s.get("label")) for c in files.values() for s in c["shapes"] if isinstance(s, dict)}
        labels = sorted(found)
    result.names = [label for label in labels if not is_void(label)]
    ids = {label: VOID if is_void(label) else result.names.index(label) for label in labels}
    everywhere = Photos(*([images] if images else [root]))
    for path, content in files.items():
        folders = [images] if images else [path.parent, root]
        name = str(content["imagePath"]).replace("\\", "/")
        beside = path.parent / name
        try:
            photo = beside if beside.is_file() and not images else everywhere.find(name)
        except ValueError as error:
            result.add(str(path), str(error))
            continue
        folders = [images] if images else [root]
        split = split_of(path.parent.relative_to(root))
        result.samples.append(Sample(output_name(photo, folders), photo, str(path), _reader(content, ids), split))
    return result


def _reader(content: dict[str, Any], ids: dict[str, int]) -> Callable[[tuple[int, int]], Shapes]:
    def read(size: tuple[int, int]) -> list[Region]:
        require_size((content.get("imageWidth"), content.get("imageHeight")), size)
        shapes = ((f"shape {number}", shape) for number, shape in enumerate(content["shapes"], start=1))
        return regions_of(shapes, lambda shape: _region(shape, ids, size))

    return read


def _region(shape: Any, ids: dict[str, int], size: tuple[int, int]) -> Region | None:
    if not isinstance(shape, dict) or "points" not in shape:
        raise ValueError("expected a shape with `label` and `points`, got something else")
    label, kind = str(shape.get("label")), shape.get("shape_type") or "polygon"
    if label not in ids:
        raise ValueError(f"label {label!r} is none of labels.txt")
    points = shape["points"]
    if kind == "mask":
        return _mask(shape, ids[label], size)
    if kind in ("rectangle", "circle"):
        if len(points) != 2:
            raise ValueError(f"expected two points of a {kind}, got {len(points)}")
        (x0, y0), (x1, y1) = points
        if kind == "rectangle":
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        else:  # its center and a point on it; what lies outside of the photo is cut, as a circle cannot avoid it
            angles = np.linspace(0, 2 * np.pi, CIRCLE_CORNERS, endpoint=False)
            ring = np.hypot(x1 - x0, y1 - y0) * np.stack([np.cos(angles), np.sin(angles)], axis=1) + (x0, y0)
            points = np.clip(ring, -TOLERANCE, np.asarray(size) + TOLERANCE)
    elif kind != "polygon":
        raise ValueError(f"a {kind} has no area; expected polygon, rectangle, circle or mask")
    return fill_rings([read_ring(points, size)], size, ids[label])


def _mask(shape: dict[str, Any], class_id: int, size: tuple[int, int]) -> Region | None:
    """Return a picture of the box between two points, both of whose pixels are in it."""
    try:
        with Image.open(BytesIO(base64.b64decode(shape["mask"], validate=True))) as picture:
            mask = np.asarray(picture.convert("L")) > 0
        left, top = (round(float(value)) for value in shape["points"][0])
    except (binascii.Error, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"its mask cannot be read: {reading_error(error)}") from None
    if left < 0 or top < 0 or left + mask.shape[1] > size[0] or top + mask.shape[0] > size[1]:
        raise ValueError(
            f"a mask of {mask.shape[1]}x{mask.shape[0]} at ({left}, {top}) lies outside of the photo, which is "
            f"{size[0]}x{size[1]}"
        )
    return crop(mask, class_id, top, left)
