"""YOLO segmentation: data.yaml, and for each photo a text file of lines `class x y x y ...` in 0..1.

One ring a line; things with holes or of several parts come as one ring with bridges of no width, which even-odd
filling undoes. A photo without a text file has nothing on it: that is YOLO's convention.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from offseg_hf.data.formats.annotations import VOID, Annotations, Photos, Sample, Shapes, is_void, output_name, walk
from offseg_hf.data.formats.masks import Region, fill_rings, read_ring
from offseg_hf.data.layouts import IMAGE_ENDINGS, SPLITS, canonical_split
from offseg_hf.utils.texts import read_text


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return the content of a data.yaml; None if the file is something else."""
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(content, dict) or "names" not in content or not {"train", "val", "test"} & content.keys():
        return None
    return content


def read_yolo(path: Path, content: dict[str, Any], images: Path | None) -> Annotations:
    """Return the annotations that a data.yaml tells of.

    Args:
        path: of the data.yaml.
        content: of it.
        images: the folder of the photos, if it has moved.
    """
    names = content["names"]
    by_id = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(by_id, dict) or not by_id or not all(isinstance(key, int) for key in by_id):
        raise ValueError(f"{path}: expected `names` as a list, or by class number, got {names!r}")
    result = Annotations("YOLO segmentation", [])
    classes: dict[str, int] = {}
    ids = {
        number: VOID if is_void(str(by_id[number])) else classes.setdefault(str(by_id[number]), len(classes))
        for number in sorted(by_id)
    }
    result.names = list(classes)
    without_text = 0
    for key in ("train", "val", "valid", "test"):
        places = content.get(key) or []
        for place in places if isinstance(places, list) else [places]:
            try:
                photos, root = _photos(path, content, str(place), images, result)
            except ValueError as error:
                result.add(str(path), f"`{key}`: {error}")
                continue
            for photo in photos:
                text = _text_of(photo, path.parent)
                without_text += not text.is_file()
                split = canonical_split(SPLITS[key])
                result.samples.append(Sample(output_name(photo, [root]), photo, str(text), _reader(text, ids), split))
    if without_text and without_text == len(result.samples):
        result.add(str(path), f"none of the {without_text} photos has a text file: expected labels/ beside images/")
    elif without_text:
        result.notes.append(f"{without_text} photos have no text file: nothing is on them")
    return result


def _photos(
    path: Path, content: dict, place: str, images: Path | None, result: Annotations
) -> tuple[list[Path], Path]:
    """Return the photos of a split, and the folder that they are in; those that are not there are problems."""
    home = Path(str(content.get("path") or "."))
    bases = [path.parent / home, path.parent, path.parent / home.name]
    # Roboflow writes ../train/images, which is meant from a folder below.
    tries = [base / place for base in bases] + [path.parent / place.removeprefix("../")]
    if images is not None:
        tries = [images / place, images / Path(place).name, images]
    found = next((t for t in tries if t.is_dir()), None) or next((t for t in tries if t.is_file()), None)
    if found is None:
        raise ValueError(f"no folder {place} below {images or path.parent}")
    if found.is_dir():
        photos = [file for file in walk(found) if file.suffix.lower() in IMAGE_ENDINGS]
        if not photos:
            raise ValueError(f"no photo in {found}")
        return photos, found
    look, photos = Photos(*(folder for folder in (images, found.parent, path.parent) if folder is not None)), []
    for line in filter(None, map(str.strip, read_text(found).splitlines())):
        try:
            photos.append(look.find(line))
        except ValueError as error:
            result.add(f"{found}: {line}", str(error))
    return photos, path.parent


def _text_of(photo: Path, root: Path) -> Path:
    """Return the text file of a photo: in labels/ where it is in images/, or beside it."""
    before, mark, after = str(photo).rpartition(f"{os.sep}images{os.sep}")
    tries = [Path(f"{before}{os.sep}labels{os.sep}{after}")] if mark else []
    if not photo.is_relative_to(root) or not mark:
        tries += [photo, root / "labels" / photo.name]
    tries = [path.with_suffix(".txt") for path in tries]
    return next((path for path in tries if path.is_file()), tries[0])


def _reader(text: Path, ids: dict[int, int]) -> Callable[[tuple[int, int]], Shapes]:
    def read(size: tuple[int, int]) -> list[Region]:
        if not text.is_file():
            return []
        try:
            lines = read_text(text).splitlines()
        except UnicodeDecodeError:
            raise ValueError("expected lines of numbers, got bytes that are no text") from None
        regions = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    region = _region(line.split(), ids, size)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                if region is not None:
                    regions.append(region)
        return regions

    return read


def _region(words: list[str], ids: dict[int, int], size: tuple[int, int]) -> Region | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError("expected a class and coordinates, all numbers") from None
    if len(numbers) == 5:
        raise ValueError("a box of four numbers is no segmentation; export the polygons")
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        raise ValueError(f"expected a class and x and y of three corners or more, got {len(numbers)} numbers")
    if numbers[0] not in ids:
        raise ValueError(f"class {words[0]} is none of `names`, which has {', '.join(map(str, sorted(ids)))}")
    return fill_rings([read_ring(numbers[1:], size, size)], size, ids[int(numbers[0])])
