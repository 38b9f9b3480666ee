"""Where the images and label maps of a data set lie: the benchmarks' folders as published, and plain folders.

Layouts (`...` is any name, what is in braces one of these):

    ADE20K           images/{training,validation}/....jpg, annotations/{training,validation}/....png
    Cityscapes       leftImg8bit/{train,val,test}/<city>/..._leftImg8bit.png,
                     gtFine/<split>/<city>/..._gtFine_{labelIds,labelTrainIds}.png
    COCO-Stuff 164k  images/{train2017,val2017}/....jpg, annotations/<split>/...{,_labelTrainIds}.png
    Pascal Context   JPEGImages/....jpg, SegmentationClassContext/....png,
                     ImageSets/SegmentationContext/{train,val}.txt
    plain            classes.json, images/, masks/: the same names below both. Splits are the folders images/train ...,
                     or the lists train.txt ... of names beside images/; without either everything is "train".

Where files in the published ids and `_labelTrainIds` lie side by side, the published ones are read. Nothing is opened
here: names are listed and paired.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from offseg_hf.data.classes_json import FILE_NAME, read_classes
from offseg_hf.data.labels import LABEL_SETS, LabelSet


SPLITS = {
    "train": "train",
    "training": "train",
    "train2017": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "val2017": "validation",
    "test": "test",
    "testing": "test",
}
ROOTS = ("", "ADEChallengeData2016", "coco_stuff164k", "VOCdevkit/VOC2010", "VOC2010", "cityscapes")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Problem:
    """What is wrong with which file or folder."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class SplitFiles:
    """The (image, label map) pairs of a split, by name; `labels` says how these label maps are encoded."""

    labels: LabelSet
    pairs: list[tuple[str, str]]
    problems: list[Problem] = field(default_factory=list)


def canonical_split(name: str) -> str:
    """train, validation or test for what these are called elsewhere; any other name as it is."""
    return SPLITS.get(name, name)


def find_split(source: str, names: Iterable[str], split: str) -> str:
    """What `split` is called in `source`, whose splits have these names; ValueError if it is none of them."""
    names = list(names)
    found = next((name for name in names if canonical_split(name) == canonical_split(split)), None)
    if found is None:
        raise ValueError(f"{source}: no split {split!r}, it has {', '.join(names)}")
    return found


def read_layout(folder: str | Path, labels: LabelSet | None = None) -> dict[str, SplitFiles] | None:
    """The files of each split of a folder in one of the layouts above; None if it is in none of them.

    folder: may also be the one that the archive of a benchmark was unpacked to.
    labels: of a plain folder, instead of its classes.json. A benchmark's folder knows its own: others are an error.
    """
    if labels is not None and _has(Path(folder), "images") and _has(Path(folder), "masks"):
        return _plain(Path(folder), labels)
    for root in (Path(folder, name) for name in ROOTS):
        for _, _, matches, read in LAYOUTS:
            if matches(root):
                splits = read(root)
                for part in splits.values():
                    if labels is not None and labels.names != part.labels.names:
                        raise ValueError(f"{root}: its classes are those of {part.labels.title}, not {labels.title}")
                return splits
    return None


def is_layout(folder: Path) -> bool:
    """Whether `read_layout` finds something in a folder."""
    return any(matches(folder / name) for name in ROOTS for _, _, matches, _ in LAYOUTS)


# -- the layouts -----------------------------------------------------------------------------------------------------


def _ade20k(root: Path) -> dict[str, SplitFiles]:
    labels = LABEL_SETS["ade"]
    return {
        SPLITS[name]: _pair_folders(root / "images" / name, root / "annotations" / name, labels)
        for name in ("training", "validation")
        if _has(root, "images", name) or _has(root, "annotations", name)
    }


def _cityscapes(root: Path) -> dict[str, SplitFiles]:
    splits = {}
    for name in ("train", "val", "test"):
        folders = root / "leftImg8bit" / name, root / "gtFine" / name
        if folders[1].is_dir() or (folders[0].is_dir() and name != "test"):  # test has no public label maps
            labels, ending = _encoding(LABEL_SETS["cityscapes"], folders[1], "_gtFine_labelIds.png", "_gtFine_")
            images = _files(folders[0], ("_leftImg8bit.png",))
            splits[SPLITS[name]] = _pair(images, _files(folders[1], (ending,)), *folders, labels)
    return splits


def _cocostuff(root: Path) -> dict[str, SplitFiles]:
    splits = {}
    for name in ("train2017", "val2017"):
        folders = root / "images" / name, root / "annotations" / name
        if any(folder.is_dir() for folder in folders):
            labels, ending = _encoding(LABEL_SETS["cocostuff"], folders[1], ".png", "_")
            masks = _files(folders[1], (ending,))
            if ending == ".png":
                masks = {key: path for key, path in masks.items() if not key.endswith("_labelTrainIds")}
            splits[SPLITS[name]] = _pair(_files(folders[0], (".jpg",)), masks, *folders, labels)
    return splits


def _encoding(labels: LabelSet, folder: Path, raw_ending: str, prefix: str) -> tuple[LabelSet, str]:
    """How the label maps in a folder are encoded, and how their names end: in published ids if there is one such."""
    converted_ending = f"{prefix}labelTrainIds.png"
    names = (name for _, _, files in os.walk(folder) for name in files)
    if any(name.endswith(raw_ending) and not name.endswith(converted_ending) for name in names):
        # 255 is what an id of -1 becomes in 8 bits (Cityscapes: license plates), and no class of either benchmark.
        return replace(labels, void_ids=tuple(sorted({*labels.void_ids, labels.ignore_index}))), raw_ending
    if any(name.endswith(converted_ending) for _, _, files in os.walk(folder) for name in files):
        ids = tuple(range(len(labels)))
        return replace(labels, raw_ids=ids, void_ids=(labels.ignore_index,)), converted_ending
    return labels, raw_ending


def _pascal_context(root: Path) -> dict[str, SplitFiles]:
    labels = LABEL_SETS["context59"]
    folders = root / "JPEGImages", root / "SegmentationClassContext"
    images, masks = _files(folders[0], (".jpg",)), _files(folders[1], (".png",))
    lists = root / "ImageSets" / "SegmentationContext"
    found = {SPLITS[name]: lists / f"{name}.txt" for name in ("train", "val") if (lists / f"{name}.txt").is_file()}
    if not found:
        problem = Problem(str(lists), "expected the lists train.txt and val.txt of the ids of the splits")
        return {"train": SplitFiles(labels, [], [problem])}
    return {split: _pair_list(path, images, masks, *folders, labels) for split, path in found.items()}


def _plain(root: Path, labels: LabelSet | None = None) -> dict[str, SplitFiles]:
    labels = labels or read_classes(root / FILE_NAME)
    folders = root / "images", root / "masks"
    names = {entry.name for folder in folders if folder.is_dir() for entry in os.scandir(folder) if entry.is_dir()}
    split_names = sorted(names & SPLITS.keys(), key=list(SPLITS).index)
    if split_names:
        _check_distinct(root, split_names)
        splits = {SPLITS[name]: _pair_folders(*(folder / name for folder in folders), labels) for name in split_names}
        loose = sorted(name for name in names - {*split_names} if not name.startswith("."))
        problems = [Problem(str(root / "*" / name), "is none of the splits " + ", ".join(SPLITS)) for name in loose]
        first = next(iter(splits))
        return splits | {first: replace(splits[first], problems=[*problems, *splits[first].problems])}
    list_names = [name for name in SPLITS if (root / f"{name}.txt").is_file()]
    if not list_names:
        return {"train": _pair_folders(*folders, labels)}
    _check_distinct(root, list_names)
    images, masks = _files(folders[0], IMAGE_ENDINGS), _files(folders[1], MASK_ENDINGS)
    return {SPLITS[n]: _pair_list(root / f"{n}.txt", images, masks, *folders, labels) for n in list_names}


def _check_distinct(root: Path, names: list[str]) -> None:
    if len({SPLITS[name] for name in names}) < len(names):
        raise ValueError(f"{root}: expected one name for each split, got {', '.join(names)}")


def _has(root: Path, *folders: str) -> bool:
    return root.joinpath(*folders).is_dir()


# Name, what it is known by, whether it is that, and its files.
LAYOUTS = (
    (
        "plain",
        f"{FILE_NAME} with images/ and masks/",
        lambda root: (root / FILE_NAME).is_file() and (_has(root, "images") or _has(root, "masks")),
        _plain,
    ),
    (
        "Cityscapes",
        "leftImg8bit/ and gtFine/",
        lambda root: _has(root, "leftImg8bit") or _has(root, "gtFine"),
        _cityscapes,
    ),
    (
        "Pascal Context",
        "JPEGImages/ and SegmentationClassContext/",
        lambda root: _has(root, "SegmentationClassContext"),
        _pascal_context,
    ),
    (
        "ADE20K",
        "images/ and annotations/ with training/ and validation/",
        lambda root: any(_has(root, f"annotations/{name}") for name in ("training", "validation")),
        _ade20k,
    ),
    (
        "COCO-Stuff",
        "images/ and annotations/ with train2017/ and val2017/",
        lambda root: any(_has(root, f"annotations/{name}") for name in ("train2017", "val2017")),
        _cocostuff,
    ),
)


# -- pairing ---------------------------------------------------------------------------------------------------------


def _files(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """Files below a folder by their relative name without ending; names that begin with a dot are not of the data."""
    files: dict[str, str] = {}
    for key, path in _walk(folder, endings):
        if files.setdefault(key, path) != path:
            raise ValueError(f"{path}: has the name of {files[key]}, with another ending; remove one of them")
    return files


def _walk(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = os.path.relpath(place, folder)
        for name in sorted(names):
            ending = next((e for e in endings if name.endswith(e) or name.lower().endswith(e)), None)
            if ending is not None and not name.startswith("."):
                stem = name[: -len(ending)]
                yield (stem if inner == "." else f"{inner}/{stem}"), os.path.join(place, name)


def _pair_folders(images: Path, masks: Path, labels: LabelSet) -> SplitFiles:
    return _pair(_files(images, IMAGE_ENDINGS), _files(masks, MASK_ENDINGS), images, masks, labels)


def _pair(
    images: Mapping[str, str], masks: Mapping[str, str], image_folder: Path, mask_folder: Path, labels: LabelSet
) -> SplitFiles:
    """What has the same name in both; the rest is a problem each, and so is having nothing at all."""
    if not images and not masks:
        return SplitFiles(labels, [], [Problem(str(image_folder), "no images")])
    pairs = [(images[key], masks[key]) for key in sorted(images.keys() & masks.keys())]
    problems = [
        Problem(images[key], f"no label map of this name in {mask_folder}")
        for key in sorted(images.keys() - masks.keys())
    ]
    problems += [
        Problem(masks[key], f"no image of this name in {image_folder}") for key in sorted(masks.keys() - images.keys())
    ]
    return SplitFiles(labels, pairs, problems)


def _pair_list(
    path: Path,
    images: Mapping[str, str],
    masks: Mapping[str, str],
    image_folder: Path,
    mask_folder: Path,
    labels: LabelSet,
) -> SplitFiles:
    """The pairs whose names a text file lists, with or without an ending, one in a line."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    keys = dict.fromkeys(key if key in images or key in masks else os.path.splitext(key)[0] for key in lines if key)
    pairs, problems = [], []
    for key in keys:
        missing = [str(folder) for folder, files in ((image_folder, images), (mask_folder, masks)) if key not in files]
        if missing:
            problems.append(Problem(f"{path}: {key}", f"no file of this name in {' and '.join(missing)}"))
        else:
            pairs.append((images[key], masks[key]))
    if not keys:
        problems.append(Problem(str(path), "the list is empty"))
    return SplitFiles(labels, pairs, problems)
