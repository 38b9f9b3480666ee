"""What a reader makes of annotations, whatever their format: classes, photos, and the shapes in each."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image

from offseg_hf.data.formats.masks import Region
from offseg_hf.data.layouts import IMAGE_ENDINGS, SPLITS, Problem, canonical_split
from offseg_hf.utils.texts import reading_error


UNCOVERED, VOID = -1, -2  # in place of a class: nothing said, and said to be none
BACKGROUND = "background"
BACKGROUND_NAMES = {"background", "_background_", "__background__"}
VOID_NAMES = {"void", "ignore", "__ignore__", "unlabeled", "unlabelled"}

Shapes = Sequence[Region] | np.ndarray  # regions, or (height, width) int32 of class indices, UNCOVERED and VOID


@dataclass(frozen=True)
class Sample:
    """A photo and how its annotation is read.

    Attributes:
        name: of the files to write, without ending; it may have folders.
        photo: its file.
        file: the annotation's, for messages.
        read: gives the shapes for a photo's (width, height), and raises ValueError for what is wrong with them.
        split: as the format says; None if it does not.
    """

    name: str
    photo: Path
    file: str
    read: Callable[[tuple[int, int]], Shapes] = field(repr=False)
    split: str | None = None


@dataclass
class Annotations:
    """All that a source has.

    Attributes:
        kind: what it is, in words.
        names: of the classes, in the order of their indices.
        palette: their colors, if the format has any.
        void_pixels_only: whether pixels without a class are void whatever is asked, as the format defines it.
    """

    kind: str
    names: list[str]
    samples: list[Sample] = field(default_factory=list)
    palette: list[tuple[int, int, int]] | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    void_pixels_only: bool = False

    def add(self, file: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(file, message))


def regions_of(shapes: Iterable[tuple[str, Any]], region_of: Callable[[Any], Region | None]) -> list[Region]:
    """Return the regions of the shapes of a photo, but for those without a pixel.

    Args:
        shapes: what an error calls each of them, and what it is.
        region_of: reads one.

    Raises:
        ValueError: of `region_of`, with the shape's name.
    """
    regions = []
    for name, shape in shapes:
        try:
            region = region_of(shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if region is not None:
            regions.append(region)
    return regions


class Photos:
    """The photos that annotations name, wherever they lie."""

    def __init__(self, *folders: Path):
        """Look in these folders, of which the most likely one is first."""
        self.folders = list(dict.fromkeys(folders))

    def find(self, name: str) -> Path:
        """Return the file of a photo: by its path below one of the folders, or by its name if there is only one.

        Raises:
            ValueError: there is none, or several of this name.
        """
        name = name.replace("\\", "/")
        for folder in self.folders:
            for path in (folder / name, folder / "images" / name):
                if path.is_file():
                    return path
        base = name.rsplit("/", 1)[-1]
        found = self._by_name.get(base, [])
        if len(found) > 1:
            inner = [path for path in found if path.as_posix().endswith(f"/{name.lstrip('./')}")]
            found = inner if len(inner) == 1 else found
        if len(found) == 1:
            return found[0]
        place = ", ".join(map(str, self.folders))
        if found:
            raise ValueError(f"{len(found)} photos are called {base} below {place}: --images names the right folder")
        raise ValueError(f"its photo {name} is not below {place}; --images names the folder with the photos")

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder in self.folders:
            for path in walk(folder):
                if path.suffix.lower() in IMAGE_ENDINGS and path not in found.setdefault(path.name, []):
                    found[path.name].append(path)
        return found


def walk(folder: Path) -> list[Path]:
    """Return the files below a folder in order, without what begins with a dot or is of macOS' archives."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def photo_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a photo as it is seen, turned by its EXIF orientation.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as photo:
            turned = photo.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return photo.size[::-1] if turned else photo.size
    except Exception as error:  # whatever a broken file makes of a decoder
        raise ValueError(f"its photo {path} cannot be read: {reading_error(error)}") from error


def require_size(told: tuple[object, object], size: tuple[int, int]) -> None:
    """Raise ValueError if a photo has another size than its annotation says; None is nothing said."""
    if None not in told and told != size:
        hint = "; the photo lies on its side (EXIF), annotate it as it is shown" if told == size[::-1] else ""
        raise ValueError(f"annotated as {told[0]}x{told[1]}, but the photo is {size[0]}x{size[1]}{hint}")


def split_of(path: Path | str) -> str | None:
    """Return the split that a relative path tells by its name or a folder: train/, instances_val2017.json."""
    for part in reversed(Path(path).parts):
        words = re.split(r"[-._ ]+", part.lower())
        found = {SPLITS[word] for word in words if word in SPLITS}
        if len(found) == 1:
            return canonical_split(found.pop())
    return None


def output_name(photo: Path, folders: Sequence[Path]) -> str:
    """Return the name of what is written: the photo's below the first of the folders that has it, without ending.

    Folders that only tell kind or split (images/, train/) are left out.
    """
    inner = next((photo.relative_to(folder) for folder in folders if photo.is_relative_to(folder)), Path(photo.name))
    kept = [part for part in inner.parts[:-1] if part.lower() not in {*SPLITS, "images", "jpegimages", "data"}]
    return "/".join([*kept, inner.stem])


def name_in_url(address: str) -> str:
    """Return the path in an address as Label Studio has it: /data/upload/1/ab12cd34-a.jpg, ...?d=a/b.jpg."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return (local[0] if local else unquote(parts.path)).lstrip("/")


def is_void(name: str) -> bool:
    """Return whether this is a usual name of what is no class."""
    return name.strip().lower() in VOID_NAMES


def is_background(name: str) -> bool:
    """Return whether this is a usual name of what nothing was drawn on."""
    return name.strip().lower() in BACKGROUND_NAMES
