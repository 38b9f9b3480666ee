"""Any annotations as the plain layout: which format they are in, what is wrong with them, a split, and the files.

Of shapes that overlap, the smaller area is on top. Pixels without a shape become the class `background`, the last one,
or void if so asked; where there is none, no class is made of them. With a problem in any photo nothing is written, if
such photos are not to be left out. Photos are copied as they are, label maps are palette PNGs of class ids.
"""

import json
import os
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from PIL import Image

from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.formats.annotations import (
    BACKGROUND,
    UNCOVERED,
    VOID,
    Annotations,
    Sample,
    is_background,
    photo_size,
    walk,
)
from offseg_hf.data.formats.coco import is_coco, read_coco
from offseg_hf.data.formats.colors import find_list, is_voc, read_colors
from offseg_hf.data.formats.grouping import split_by_groups
from offseg_hf.data.formats.label_studio import is_label_studio, read_label_studio
from offseg_hf.data.formats.labelme import is_labelme, read_labelme
from offseg_hf.data.formats.masks import paint
from offseg_hf.data.formats.yolo import read_yaml, read_yolo
from offseg_hf.data.label_sets import IGNORE_INDEX, LabelSet, distinct_colors
from offseg_hf.data.layouts import Problem
from offseg_hf.utils.files import new_folder
from offseg_hf.utils.texts import expand, printable, read_text


KNOWN = (
    "COCO JSON, YOLO segmentation (data.yaml), Label Studio JSON, LabelMe JSON, CVAT's Segmentation mask 1.1, Pascal "
    "VOC, or PNGs in color with a labelmap.txt, class_dict.csv or label_colors.txt"
)
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
WIDE_IGNORE_INDEX = 65534  # of label maps of 16 bits, for 255 classes or more
JSON_READERS: tuple[tuple[Callable[[Any], bool], Callable[..., Annotations]], ...] = (
    (is_coco, read_coco),
    (is_label_studio, read_label_studio),
    (is_labelme, read_labelme),
)
OTHER_FORM = (AttributeError, IndexError, KeyError, TypeError)  # of files that are not as their format says
Progress = Callable[[int, int], None]  # photos done, of how many


def _other_form(kind: str, error: Exception) -> str:
    """Return a message on what has another form than its format: a text for a number, no key."""
    return f"expected {kind}, got a file of another form ({type(error).__name__}: {error})"


class ConversionError(ValueError):
    """Nothing was written, because of these problems."""

    def __init__(self, problems: list[Problem]):
        """Name all problems in the message, and keep them."""
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass
class Conversion:
    """What was written, and what a user should know of it.

    Attributes:
        kind: of the annotations, in words.
        folder: that was written.
        splits: photos of each split.
        labels: the classes.
        problems: of the photos that were left out.
        notes: what was decided that may not be what was meant.
    """

    kind: str
    folder: Path
    splits: dict[str, int]
    labels: LabelSet
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert_segmentation_data(
    source: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    uncovered: Literal["background", "void"] = "background",
    leave_out: bool = False,
    on_progress: Progress | None = None,
) -> Conversion:
    """Write annotations in any known format as images/, masks/ and classes.json.

    Args:
        source: a file, a zip archive or a folder; what it is, its content tells.
        output: the folder to create.
        images: where the photos are, if the source does not have them or they are not found there.
        uncovered: what pixels without a shape are: a class `background`, or no class.
        leave_out: whether photos with a problem are left out; otherwise nothing is written if there is one.
        on_progress: called with the photos done and their number.

    Returns:
        What was written.

    Raises:
        ConversionError: there are problems; it has them all, each with its file.
        ValueError: the source is none of the formats, or the output exists.
    """
    output = expand(output)
    if uncovered not in ("background", "void"):
        raise ValueError(f"expected background or void for uncovered pixels, got {uncovered!r}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty folder; remove it or name another one")
    if images is not None and not expand(images).is_dir():
        raise ValueError(f"{images}: expected the folder of the photos, there is no such folder")
    with _unpacked(expand(source)) as place:
        try:
            annotations = open_annotations(place, None if images is None else expand(images))
        except OTHER_FORM as error:
            raise ValueError(f"{place}: {_other_form('a known format', error)}") from error
        with new_folder(output) as folder:
            result = _write(annotations, folder, uncovered, leave_out, on_progress)
    # An archive's content is not at the place where it was read.
    shown = [replace(p, file=p.file.replace(str(place), str(source))) for p in result.problems]
    return replace(result, folder=output, problems=shown)


def open_annotations(source: Path, images: Path | None = None) -> Annotations:
    """Return the annotations of a file or folder in any known format; no photo is read yet.

    Args:
        source: where they are.
        images: where the photos are, if the source does not have them.

    Raises:
        ValueError: it is none of the formats, or broken as a whole.
    """
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml"):
            content = read_yaml(source)
            if content is None:
                raise ValueError(f"{source}: expected a data.yaml with `names` and `train` or `val`, got another")
            return read_yolo(source, content, images)
        return _read_json({source: _json(source)}, source.parent, images)
    if not source.is_dir():
        raise ValueError(f"{source}: expected {KNOWN}; there is no such file or folder")
    files = walk(source)
    for path in sorted((p for p in files if p.suffix.lower() in (".yaml", ".yml")), key=lambda p: len(p.parts)):
        if content := read_yaml(path):
            return read_yolo(path, content, images)
    if find_list(source) or is_voc(source):
        return read_colors(source, images)
    if found := {path: _json(path) for path in files if path.suffix.lower() == ".json"}:
        return _read_json(found, source, images)
    names = sorted(path.name for path in source.iterdir())[:8]
    raise ValueError(printable(f"{source}: expected {KNOWN}; found {', '.join(names) or 'nothing'}"))


def _json(path: Path) -> Any:
    try:
        text = read_text(path)
        if not text.strip():
            return ValueError("expected JSON, got an empty file")
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return ValueError(f"expected JSON, got something else: {error}")


def _read_json(files: dict[Path, Any], root: Path, images: Path | None) -> Annotations:
    """Return the annotations in files of one format; what cannot be read is a problem, another format a note."""
    for is_kind, read in JSON_READERS:
        own = {path: content for path, content in files.items() if is_kind(content)}
        if own:
            result = read(own, root, images)
            others = {path: content for path, content in files.items() if path not in own}
            for path, content in others.items():
                if isinstance(content, ValueError):
                    result.add(str(path), str(content))
            if ignored := [path.name for path, content in others.items() if not isinstance(content, ValueError)]:
                result.notes.append(
                    f"not read, no {result.kind}: {', '.join(ignored[:5])}{', ...' * (len(ignored) > 5)}"
                )
            return result
    path, content = next(iter(files.items()))
    if isinstance(content, ValueError):
        raise ValueError(f"{path}: {content}")
    raise ValueError(f"{path}: expected {KNOWN}; its JSON is none of these, or has nothing to segment")


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """Yield the source, or a temporary folder with what is in it if it is an archive."""
    if not source.is_file() or not zipfile.is_zipfile(source):
        yield source
        return
    with TemporaryDirectory(prefix="offseg-convert-") as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"{source}: cannot be unpacked: {error}") from error
        try:
            yield Path(folder)
        except ConversionError as error:
            problems = [replace(p, file=p.file.replace(folder, str(source))) for p in error.problems]
            raise ConversionError(problems) from None
        except ValueError as error:
            raise ValueError(str(error).replace(folder, str(source))) from error


# -- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Counts:
    """What the pixels of all photos came to."""

    pixels: int = 0
    uncovered: int = 0
    disputed: int = 0
    without_shape: int = 0


def _write(
    annotations: Annotations, folder: Path, uncovered: str, leave_out: bool, on_progress: Progress | None
) -> Conversion:
    problems, notes = list(annotations.problems), list(annotations.notes)
    samples = _distinct(_without_common_folders(annotations.samples), problems)
    if not samples and not problems:
        raise ValueError(f"{annotations.kind}: expected annotated photos, got none")
    labels, ids = _classes(annotations, uncovered)
    samples, told = _with_splits(samples)
    notes += told
    counts = _Counts()

    def convert(sample: Sample) -> tuple[int, int, int, bool] | Problem:
        try:
            return _write_sample(sample, folder, labels, ids)
        except ValueError as error:
            return Problem(sample.file, " ".join(str(error).split()))
        except OTHER_FORM as error:
            return Problem(sample.file, _other_form(annotations.kind, error))

    done: list[Sample] = []
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for index, result in enumerate(executor.map(convert, samples), start=1):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                done.append(samples[index - 1])
                pixels, bare, disputed, is_bare = result
                counts.pixels += pixels
                counts.uncovered += bare
                counts.disputed += disputed
                counts.without_shape += is_bare
            if on_progress is not None:
                on_progress(index, len(samples))
    finally:
        executor.shutdown(cancel_futures=True)
    if problems and (not leave_out or not done):
        raise ConversionError(problems)
    if not counts.uncovered and len(labels) > max(1, len(annotations.names)):
        labels = replace(labels, names=labels.names[:-1], palette=labels.palette[:-1], raw_ids=labels.raw_ids[:-1])
    (folder / FILE_NAME).write_text(classes_json(labels), encoding="utf-8")
    notes += _told(counts, annotations, uncovered)
    found = Counter(sample.split or "train" for sample in done)
    splits = {split: found[split] for split in (*FOLDERS, *found) if split in found}
    return Conversion(annotations.kind, folder, splits, labels, problems, notes)


def _without_common_folders(samples: list[Sample]) -> list[Sample]:
    """Return the samples by names without the folders that all of them are in."""
    folders = [sample.name.split("/")[:-1] for sample in samples]
    common = os.path.commonprefix(folders) if folders else []  # noqa: RUF071 # of lists, it compares their items
    return [replace(sample, name="/".join(sample.name.split("/")[len(common) :])) for sample in samples]


def _distinct(samples: list[Sample], problems: list[Problem]) -> list[Sample]:
    """Return the samples whose name and photo are there once; of the others nobody knows which counts."""
    count = Counter((sample.split, sample.name.casefold()) for sample in samples)
    twice = [sample for sample in samples if count[sample.split, sample.name.casefold()] > 1]
    problems += [
        Problem(
            s.file, f"its photo {s.photo.name} is annotated twice, or another has its name; give one file as source"
        )
        for s in twice
    ]
    splits: dict[Path, set[str | None]] = {}
    for sample in samples:
        splits.setdefault(sample.photo, set()).add(sample.split)
    leaks = [sample for sample in samples if len(splits[sample.photo]) > 1]
    problems += [
        Problem(s.file, f"its photo {s.photo.name} is in several splits; scores on what was trained on tell nothing")
        for s in leaks
    ]
    left_out = {id(sample) for sample in (*twice, *leaks)}
    return [sample for sample in samples if id(sample) not in left_out]


def _classes(annotations: Annotations, uncovered: str) -> tuple[LabelSet, np.ndarray]:
    """Return the classes to write, and an id for each index of the annotations' (the last: VOID and UNCOVERED)."""
    names = list(annotations.names)
    palette = list(annotations.palette or distinct_colors(len(names)))
    own = next((index for index, name in enumerate(names) if is_background(name)), None)
    is_class = uncovered == "background" and not annotations.void_pixels_only
    order = list(range(len(names)))
    if is_class and own is None:
        own = len(names)  # the last one: ids stay the source's, and it can be left out where nothing is uncovered
        names, palette = [*names, BACKGROUND], [*palette, _free(palette)]
    elif own is not None and uncovered == "void":
        del names[own], palette[own]
        order = [VOID if index == own else index - (index > own) for index in order]
    if not names:
        raise ValueError(f"{annotations.kind}: expected at least one class, got none")
    ignore_index = IGNORE_INDEX if len(names) <= IGNORE_INDEX else WIDE_IGNORE_INDEX
    ids = np.full(len(order) + 2, ignore_index, np.int64)
    ids[: len(order)] = [ignore_index if index == VOID else index for index in order]
    if is_class and own is not None:
        ids[UNCOVERED] = own
    labels = LabelSet(
        name="custom",
        title="Custom",
        names=tuple(names),
        palette=tuple(palette),
        raw_ids=tuple(range(len(names))),
        void_ids=(ignore_index,),
        reduce_zero_label=False,
        ignore_index=ignore_index,
    )
    return labels, ids


def _free(palette: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return a color for the background, black if no class has it."""
    return next(color for level in range(256) if (color := (level, level, level)) not in palette)


def _with_splits(samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """Return the samples with a split each, and how it was found."""
    told = {sample.split for sample in samples}
    if told - {None, "train"}:
        missing = sum(sample.split is None for sample in samples)
        notes = [f"{missing} photos are in no split, and taken to train on"] if missing else []
        return [replace(s, split=s.split or "train") for s in samples], notes
    if not samples:
        return [], []
    splits, how = split_by_groups([sample.name for sample in samples])
    return [replace(sample, split=splits[sample.name]) for sample in samples], [how]


def _write_sample(sample: Sample, folder: Path, labels: LabelSet, ids: np.ndarray) -> tuple[int, int, int, bool]:
    """Write a photo and its label map; the pixels, those uncovered, those of two classes, and whether all are bare."""
    size = photo_size(sample.photo)
    shapes = sample.read(size)
    if isinstance(shapes, np.ndarray):
        label_map, disputed = shapes, 0
    else:
        label_map, disputed = paint(shapes, size, UNCOVERED)
    bare = int(np.count_nonzero(label_map == UNCOVERED))
    split = FOLDERS.get(sample.split or "train", sample.split)
    image = folder / "images" / str(split) / f"{sample.name}{sample.photo.suffix}"
    mask = folder / "masks" / str(split) / f"{sample.name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sample.photo, image)
    picture = Image.fromarray(ids[label_map].astype(np.uint8 if labels.ignore_index < 256 else np.uint16))
    if labels.ignore_index < 256:
        # Of all 256 colors: a shorter palette would make Pillow write fewer bits, and void another value.
        palette = [channel for color in labels.palette for channel in color]
        picture.putpalette(palette + [224] * (3 * 256 - len(palette)))
    picture.save(mask)
    return label_map.size, bare, disputed, bare == label_map.size


def _told(counts: _Counts, annotations: Annotations, uncovered: str) -> list[str]:
    notes = []
    total = max(counts.pixels, 1)
    if counts.uncovered:
        if annotations.void_pixels_only:
            fate = "void, as panoptic PNGs define it"
        elif uncovered == "void":
            fate = "void (--uncovered background makes a class of them)"
        else:
            fate = "the class background (--uncovered void makes them no class)"
        notes.append(f"{counts.uncovered / total:.2%} of the pixels are in no shape: {fate}")
    if counts.disputed:
        notes.append(
            f"{counts.disputed / total:.2%} of the pixels are in shapes of several classes: the smaller one's"
        )
    if counts.without_shape:
        notes.append(f"{counts.without_shape} photos have no shape at all")
    return notes
