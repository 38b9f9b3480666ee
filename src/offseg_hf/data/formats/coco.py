"""COCO JSON: polygons, run lengths (crowds and stuff, compressed or not), and panoptic PNGs.

Several polygons of one annotation are parts of one thing: their union. Crowds are of their class as any other thing: a
label map does not count things. In panoptic PNGs 0 is void by COCO's definition, whatever is asked for uncovered
pixels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offseg_hf.data.formats.annotations import (
    UNCOVERED,
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
from offseg_hf.data.formats.masks import Region, crop, decode_coco_rle, fill_rings, read_ring, unite
from offseg_hf.utils.texts import reading_error


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's, with something to segment."""
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        return False
    first = next((a for a in content["annotations"] if isinstance(a, dict)), None)
    return first is None or "segmentation" in first or "segments_info" in first


def read_coco(files: dict[Path, dict[str, Any]], root: Path, images: Path | None) -> Annotations:
    """Return the annotations of COCO's files, one for each split or one in all.

    Args:
        files: their contents.
        root: the source, from which on names tell splits.
        images: the folder of the photos, if it is not near the files.
    """
    first = next(iter(files.values()))
    result = Annotations("COCO", [])
    result.void_pixels_only = any("segments_info" in a for a in first["annotations"][:1])
    result.kind = "COCO panoptic" if result.void_pixels_only else "COCO"
    classes: dict[str, int] = {}
    for path, content in files.items():
        ids = _categories(path, content, classes, result)
        split = split_of(path.relative_to(root)) if path.is_relative_to(root) else split_of(path.name)
        folders = [images] if images else [path.parent, *_near(path), root]
        photos = Photos(*folders)
        by_image: dict[Any, list[dict]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation.get("image_id"), []).append(annotation)
        for record in content["images"]:
            file = f"{path}: {record.get('file_name')}"
            annotations = by_image.pop(record.get("id"), [])
            try:
                photo = photos.find(str(record.get("file_name")))
            except ValueError as error:
                result.add(file, str(error))
                continue
            make = _panoptic if result.void_pixels_only else _shapes
            read = make(path, record, annotations, ids)
            result.samples.append(Sample(output_name(photo, folders), photo, file, read, split))
        for image_id, annotations in by_image.items():
            result.add(str(path), f"{len(annotations)} annotations of image_id {image_id}, which is none of `images`")
    result.names = list(classes)
    return result


def _categories(path: Path, content: dict, classes: dict[str, int], result: Annotations) -> dict[Any, int]:
    """Return the index of the class by category id. Files of one data set share their classes by name."""
    categories = content.get("categories")
    if not categories:
        raise ValueError(f"{path}: expected `categories` with the classes, got none")
    # Roboflow puts a category 0 before all others that is the group of them and has no annotation.
    above = {c.get("supercategory") for c in categories}
    used = {a.get("category_id") for a in content["annotations"]}
    used |= {s.get("category_id") for a in content["annotations"] for s in a.get("segments_info") or []}
    ids: dict[Any, int] = {}
    for category in sorted(categories, key=lambda c: c.get("id", 0)):
        name, number = str(category.get("name")), category.get("id")
        if number == 0 and name in above and number not in used and len(categories) > 1:
            result.notes.append(f"{path}: category 0, {name}, is the others' group and not annotated: no class")
        elif is_void(name):
            ids[number] = VOID
        else:
            ids[number] = classes.setdefault(name, len(classes))
    return ids


def _near(path: Path) -> list[Path]:
    """Return where photos usually lie: beside the annotations/ folder, in images/, in a folder of its split."""
    above = path.parent.parent
    names = {"images", path.stem.rpartition("_")[2], f"images/{path.stem.rpartition('_')[2]}"}
    return [above / name for name in sorted(names) if (above / name).is_dir()]


def _shapes(path: Path, record: dict, annotations: list[dict], ids: dict) -> Callable[[tuple[int, int]], Shapes]:
    def read(size: tuple[int, int]) -> list[Region]:
        require_size((record.get("width"), record.get("height")), size)
        shapes = ((f"annotation {annotation.get('id')}", annotation) for annotation in annotations)
        return regions_of(shapes, lambda annotation: _region(annotation, _class_id(annotation, ids), size))

    return read


def _class_id(annotation: dict, ids: dict[Any, int]) -> int:
    number = annotation.get("category_id")
    if number not in ids:
        raise ValueError(f"category_id {number} is none of `categories`")
    return ids[number]


def _region(annotation: dict, class_id: int, size: tuple[int, int]) -> Region | None:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return crop(decode_coco_rle(segmentation, size), class_id)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("expected polygons or run lengths as `segmentation`, got nothing; a box is no segmentation")
    if not isinstance(segmentation[0], list):
        segmentation = [segmentation]
    parts = [fill_rings([read_ring(points, size)], size, class_id) for points in segmentation]
    return unite([part for part in parts if part is not None])


def _panoptic(path: Path, record: dict, annotations: list[dict], ids: dict) -> Callable[[tuple[int, int]], Shapes]:
    def read(size: tuple[int, int]) -> np.ndarray:
        require_size((record.get("width"), record.get("height")), size)
        if len(annotations) != 1:
            raise ValueError(f"expected one panoptic PNG of the photo, got {len(annotations)}")
        (annotation,) = annotations
        png = Photos(path.with_suffix(""), path.parent, path.parent.parent).find(str(annotation.get("file_name")))
        try:
            with Image.open(png) as picture:
                rgb = np.asarray(picture.convert("RGB"), np.int64)
        except Exception as error:
            raise ValueError(f"its PNG {png} cannot be read: {reading_error(error)}") from error
        if rgb.shape[:2] != size[::-1]:
            raise ValueError(f"its PNG {png.name} is {rgb.shape[1]}x{rgb.shape[0]}, but the photo {size[0]}x{size[1]}")
        values, inverse = np.unique(rgb @ [1, 256, 65536], return_inverse=True)
        segments = {segment.get("id"): _class_id(segment, ids) for segment in annotation.get("segments_info") or []}
        if unknown := sorted({*values.tolist()} - {*segments, 0}):
            raise ValueError(f"its PNG {png.name} has the segment {unknown[0]}, which is not in `segments_info`")
        classes = [segments.get(value, UNCOVERED) for value in values.tolist()]
        return np.asarray(classes, np.int32)[inverse].reshape(rgb.shape[:2])

    return read
