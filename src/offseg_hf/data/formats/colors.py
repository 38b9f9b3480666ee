"""Label maps in color with a list of the colors: CVAT's "Segmentation mask 1.1" and CamVid, Pascal VOC, plain folders.

The list is a labelmap.txt (CVAT: `name:r,g,b:parts:actions`), a class_dict.csv (`name,r,g,b`) or a label_colors.txt
(`r g b name`). Folders of VOC without one have VOC's 21 classes. Label maps are the PNGs in folders whose names speak
of it (SegmentationClass, masks, train_labels, testannot, LabeledApproved), photos the pictures elsewhere, paired by
name. Black that no class has is uncovered, and so is the class `background`; any other color that is not in the list
is an error. A class called void, ignore or unlabeled is no class.
"""

import csv
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from offseg_hf.data.formats.annotations import (
    UNCOVERED,
    VOID,
    Annotations,
    Sample,
    is_background,
    is_void,
    output_name,
    split_of,
    walk,
)
from offseg_hf.data.label_image import color_values
from offseg_hf.data.layouts import IMAGE_ENDINGS, MASK_ENDINGS, SPLITS, canonical_split
from offseg_hf.utils.texts import read_text, reading_error


LISTS = ("labelmap.txt", "class_dict.csv", "label_colors.txt")
MASK_FOLDER = re.compile(r"segmentationclass|label|annot|mask|^gt|ground.?truth", re.IGNORECASE)
MASK_ENDING = re.compile(r"[-_. ](l|gt|masks?|labels?|colou?r|seg|annotation)$", re.IGNORECASE)
VOC_NAMES = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""
VOC_VOID = (224, 224, 192)


def find_list(root: Path) -> Path | None:
    """Return the list of colors in a folder or one of its folders; None if there is none."""
    for name in LISTS:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.is_file():
                return path
    return None


def is_voc(root: Path) -> bool:
    """Return whether a folder, or one below it, has label maps as VOC has them."""
    return any(path.is_dir() for pattern in ("", "*/", "*/*/") for path in root.glob(f"{pattern}SegmentationClass"))


def read_list(path: Path) -> list[tuple[str, tuple[int, int, int]]]:
    """Return names and colors in the order of a list.

    Raises:
        ValueError: a line is none, or a color is there twice.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            if path.name == "labelmap.txt":
                name, numbers = line.split(":")[:2]
                values = numbers.split(",")
            elif path.name == "class_dict.csv":
                name, *values = next(csv.reader(StringIO(line)))[:4]
                if number == 1 and not any(value.strip().isdecimal() for value in values):
                    continue
            else:
                *values, name = line.split(maxsplit=3)
            red, green, blue = (int(value) for value in values)
            if not all(0 <= value < 256 for value in (red, green, blue)):
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}: line {number}: expected a name and r, g, b in 0..255, got {line!r}") from None
        rows.append((name.strip(), (red, green, blue)))
    if not rows:
        raise ValueError(f"{path}: expected names and colors, got none")
    for index, (name, own) in enumerate(rows):
        twice = next((other for other, same in rows[:index] if same == own and other != name), None)
        if twice is not None:
            raise ValueError(f"{path}: {twice} and {name} have the same color {own}: nobody can tell them apart")
    return rows


def _voc_color(index: int) -> tuple[int, int, int]:
    """VOC's color of an id, whose bits are spread over the three channels from the highest on."""
    red, green, blue = (sum((index >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3))
    return red, green, blue


def read_colors(root: Path, images: Path | None) -> Annotations:
    """Return the annotations of a folder of label maps in color.

    Args:
        root: the folder.
        images: the folder of the photos, if it is another.
    """
    listed = find_list(root)
    rows = (
        read_list(listed)
        if listed
        else [*((name, _voc_color(i)) for i, name in enumerate(VOC_NAMES.split())), ("void", VOC_VOID)]
    )
    classes = [(name, color) for name, color in rows if not is_void(name) and not is_background(name)]
    result = Annotations("label maps in color", [n for n, _ in classes], palette=[c for _, c in classes])
    table = {color: index for index, (_, color) in enumerate(classes)}
    for name, color in rows:
        if is_void(name) or is_background(name):
            table[color] = VOID if is_void(name) else UNCOVERED
    table.setdefault((0, 0, 0), UNCOVERED)
    if listed is None:
        result.kind, note = "Pascal VOC", "no labelmap.txt: the 21 classes and colors of Pascal VOC"
        result.notes.append(note)
    pictures = [p for p in walk(root) if p.suffix.lower() in IMAGE_ENDINGS and "SegmentationObject" not in p.parts]
    masks = [p for p in pictures if p.suffix.lower() in MASK_ENDINGS and _is_mask(p, root)]
    home = images or root
    photos = [p for p in (walk(images) if images else pictures) if p.suffix.lower() in IMAGE_ENDINGS]
    photos = [p for p in photos if p not in {*masks}]
    by_name: dict[str, list[Path]] = {}
    for photo in photos:
        by_name.setdefault(photo.stem, []).append(photo)
    lists = _lists(root)
    used = set()
    for mask in masks:
        split = _split(mask, root)
        try:
            photo = _photo_of(mask, by_name, split, home)
        except ValueError as error:
            result.add(str(mask), str(error))
            continue
        used.add(photo)
        split = lists.get(photo.stem) if lists else split
        name = output_name(photo, [home])
        result.samples.append(Sample(name, photo, str(mask), _reader(mask, table, listed), split))
    if alone := len({*photos} - used):
        result.notes.append(f"{alone} photos have no label map and are left out")
    if lists and (loose := [s for s in result.samples if s.split is None]):
        result.notes.append(f"{len(loose)} photos are in no list of ImageSets/ and left out")
        result.samples = [s for s in result.samples if s.split is not None]
    return result


def _is_mask(path: Path, root: Path) -> bool:
    folders = path.relative_to(root).parts[:-1]
    return any(MASK_FOLDER.search(part) for part in folders)


def _split(path: Path, root: Path) -> str | None:
    """Return the split in the name of a folder: train, train_labels, valannot."""
    for part in path.relative_to(root).parts[:-1]:
        word = re.sub(r"[-_. ]?(labels?|annot(ations)?|masks?|gt)$", "", part.lower())
        if word in SPLITS:
            return canonical_split(word)
    return split_of(path.relative_to(root).parent)


def _lists(root: Path) -> dict[str, str]:
    """Return splits by name of the photo, of ImageSets/Segmentation/{train,val,test}.txt; empty if these tell none."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("ImageSets/Segmentation/*.txt")):
        if path.stem.lower() in SPLITS:
            for line in read_text(path).split("\n"):
                if line.strip():
                    found.setdefault(Path(line.strip()).name, canonical_split(path.stem))
    return found


def _photo_of(mask: Path, by_name: dict[str, list[Path]], split: str | None, home: Path) -> Path:
    found = by_name.get(mask.stem) or by_name.get(MASK_ENDING.sub("", mask.stem)) or []
    if len(found) > 1:
        found = [photo for photo in found if photo.is_relative_to(home) and _split(photo, home) == split] or found
    if len(found) > 1:
        found = [photo for photo in found if photo.parent.name == mask.parent.name] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{len(found)} photos have its name below {home}: which one is meant?")
    raise ValueError(f"no photo of this name below {home}; --images names the folder with the photos")


def _reader(mask: Path, table: dict[tuple[int, int, int], int], listed: Path | None) -> Callable:
    def read(size: tuple[int, int]) -> np.ndarray:
        try:
            with Image.open(mask) as picture:
                if picture.format in ("JPEG", "MPO"):
                    raise ValueError("expected a label map without loss, got a JPEG, which changes colors")
                rgb = np.asarray(picture.convert("RGB"))
        except Exception as error:
            raise ValueError(f"cannot be read as a label map: {reading_error(error)}") from error
        if rgb.shape[:2] != size[::-1]:
            raise ValueError(f"the label map is {rgb.shape[1]}x{rgb.shape[0]}, but the photo {size[0]}x{size[1]}")
        colors = np.asarray(list(table), np.int64)
        ids, unknown = color_values(rgb, colors, np.asarray(list(table.values()), np.int32))
        if unknown is not None:
            where = listed.name if listed else "VOC's classes"
            raise ValueError(f"the color {unknown} is none of {where}")
        return ids

    return read
