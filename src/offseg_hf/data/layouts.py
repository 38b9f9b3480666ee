"""Layouts: where images and label maps of a data set lie, in the benchmarks' folders as published and in plain ones.

They are (`...` is any name, what is in braces one of these):

    ADE20K           images/{training,validation}/....jpg, annotations/{training,validation}/....png
    Cityscapes       leftImg8bit/{train,val,test}/<city>/..._leftImg8bit.png,
                     gtFine/<split>/<city>/..._gtFine_{labelIds,labelTrainIds}.png
    COCO-Stuff 164k  images/{train2017,val2017}/....jpg, annotations/<split>/...{,_labelTrainIds}.png
    Pascal Context   JPEGImages/....jpg, SegmentationClassContext/....png,
                     ImageSets/SegmentationContext/{train,val}.txt
    plain            classes.json, images/, masks/: the same names below both. Splits are the folders images/train ...,
                     or the lists train.txt ... of names beside images/; without either everything is "train".

Where files in the published ids and `_labelTrainIds` lie side by side, the published ones are read. In plain folders
splits may be written in any case, and so may the halves of a pair; all masks may have an ending of their own, as in
0_mask.png. Nothing is opened here: names are listed and paired.
"""

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

from offseg_hf.data.classes_json import FILE_NAME, read_classes
from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.utils.texts import is_utf8, printable, read_text


SPLITS = {  # in lower case
    "train": "train",
    "training": "train",
    "train2017": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "val2017": "validation",
    "test": "test",
    "testing": "test",
}
ROOTS = ("", "ADEChallengeData2016", "coco_stuff164k", "VOCdevkit/VOC2010", "VOC2010", "cityscapes")
IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".avif",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".pbm",
    ".tga",
)
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp")
NOT_FOR_MASKS = {  # pictures, but not of ids
    **dict.fromkeys((".jpg", ".jpeg", ".jfif"), "JPEG changes ids"),
    ".webp": "WebP holds colors",
    ".gif": "GIF may renumber ids",
}
SEPARATORS = "._- "  # between the name of a file and what is added to it
SHOWN_NAMES = 5
SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "evaluation")
LIST_WORDS = {"list", "lists", "file", "files", "name", "names", "image", "images", "id", "ids", "set", "split", "txt"}


@dataclass(frozen=True)
class Problem:
    """A problem with a file or folder.

    Args:
        file: or folder.
        message: what is wrong with it.
        cause: the error that told, if one did.
    """

    file: str
    message: str
    cause: Exception | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.message}")


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split.

    Args:
        labels: how its label maps are encoded.
        pairs: (image, label map), by name.
        problems: what keeps the split from being read as a whole.
        notes: what was done that may not be what was meant.
    """

    labels: LabelSet
    pairs: list[tuple[str, str]]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def canonical_split(name: str) -> str:
    """Return train, validation or test for what these are called elsewhere; any other name as it is."""
    return SPLITS.get(str(name).lower(), name)


def looks_like_split(name: str) -> bool:
    """Return whether a name that is none of `SPLITS` speaks of one: train_images, ValSet, vaildation."""
    words = re.findall("[a-z]+", name.lower())
    return any(_is_like_split(re.sub("(set|data|images?|imgs?|masks?|split)$", "", word)) for word in words)


def _is_like_split(word: str) -> bool:
    if word in SPLIT_WORDS:
        return True
    near = get_close_matches(word, SPLIT_WORDS, n=1, cutoff=0.85 if len(word) > 5 else 1)
    turned = [known for known in SPLIT_WORDS if len(word) > 3 and sorted(known) == sorted(word)]
    return any(known[0] == word[0] for known in near + turned)


class UnknownSplitError(ValueError):
    """The data has no such split."""


def find_split(source: str, names: Iterable[str], split: str) -> str:
    """Return what `split` is called in `source`, whose splits have these names; ValueError if it is none of them."""
    names = list(names)
    if split in names:
        return split
    found = [name for name in names if canonical_split(name) == canonical_split(split)]
    if len(found) > 1:
        raise ValueError(f"{source}: {split!r} may be any of its splits {', '.join(found)}, name one of them")
    if not found:
        raise UnknownSplitError(f"{source}: no split {split!r}, it has {', '.join(names)}")
    return found[0]


def read_layout(folder: str | Path, labels: LabelSet | None = None) -> dict[str, SplitFiles] | None:
    """List the files of each split of a folder in one of the layouts above; None if it is in none of them.

    Args:
        folder: may also be the one that the archive of a benchmark was unpacked to.
        labels: of a plain folder, instead of its classes.json. A benchmark's folder has its own: others are an error.
    """
    if labels is not None and all(_inside(Path(folder), name).is_dir() for name in ("images", "masks")):
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
    """Return whether `read_layout` finds something in a folder."""
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
    """Find how the label maps in a folder are encoded, and how their names end: in published ids if one is."""
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
    folders = _inside(root, "images"), _inside(root, "masks")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                printable(f"{folder}: no such folder, in {root} there is {_listed(sorted(os.listdir(root)))}")
            )
    inner = [_inner_folders(folder) for folder in folders]
    lists = sorted((name for name in _names(root, ".txt") if name[:-4].lower() in SPLITS), key=_order_of_splits)
    if any(name.lower() in SPLITS for names in inner for name in names):
        return _plain_folders(root, folders, inner, lists, labels)
    if not lists:
        alike = sorted({name for names in inner for name in names if looks_like_split(name)})
        alike += [name for name in _names(root, ".txt", ".lst", ".csv") if _looks_like_list(name[:-4])]
        if alike:  # else what is to validate would be trained on
            raise ValueError(
                printable(f"{root}: {_listed(alike)}: looks like a split, expected the names train, val and test")
            )
        return {"train": _pair_folders(*folders, labels, is_plain=True)}
    _check_distinct(root, [name[:-4] for name in lists])
    images, masks = _files(folders[0], IMAGE_ENDINGS), _files(folders[1], MASK_ENDINGS)
    masks, notes = _named_alike(images, masks)
    splits = {
        canonical_split(name[:-4]): _pair_list(root / name, images, masks, *folders, labels, notes) for name in lists
    }
    return _without_leaks(root, lists, splits)


def _plain_folders(
    root: Path, folders: tuple[Path, Path], inner: list[list[str]], lists: list[str], labels: LabelSet
) -> dict[str, SplitFiles]:
    """Pair images/train ... and masks/train ..., which may differ in case or be another word for the same split."""
    split_names = [[name for name in names if name.lower() in SPLITS] for names in inner]
    for names in split_names:
        _check_distinct(root, names)
    called = [{canonical_split(name): name for name in names} for names in split_names]
    splits = {}
    for split in dict.fromkeys(SPLITS.values()):
        if split in called[0] or split in called[1]:
            names = [own.get(split) or other[split] for own, other in (called, called[::-1])]
            images, masks = (folder / name for folder, name in zip(folders, names, strict=True))
            splits[split] = _pair_folders(images, masks, labels, is_plain=True)
    loose = sorted({name for names in inner for name in names if name.lower() not in SPLITS})
    problems = [Problem(str(root / "*" / name), "is none of the splits " + ", ".join(SPLITS)) for name in loose]
    notes = [f"{root / name} is not read, the splits are folders" for name in lists]
    for folder, endings in zip(folders, (IMAGE_ENDINGS, MASK_ENDINGS), strict=True):
        if files := _names(folder, *endings):
            notes.append(f"in no split of {folder}, and not read: {_listed(files)}")
    first = next(iter(splits))
    part = splits[first]
    return splits | {first: replace(part, problems=[*problems, *part.problems], notes=[*notes, *part.notes])}


def _looks_like_list(name: str) -> bool:
    words = {*re.findall("[a-z]+", name.lower())} - LIST_WORDS
    return bool(words) and all(map(_is_like_split, words))


def _inside(root: Path, name: str) -> Path:
    """Find the folder of this name in any case, if there is one; the name as it is comes first."""
    if (root / name).is_dir() or not root.is_dir():
        return root / name
    return next(
        (Path(entry) for entry in os.scandir(root) if entry.name.lower() == name and entry.is_dir()), root / name
    )


def _inner_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return sorted(names, key=_order_of_splits)


def _names(folder: Path, *endings: str) -> list[str]:
    """List the files in a folder, not below it, that end so in any case."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    return sorted(name for name in names if name.lower().endswith(endings))


def _order_of_splits(name: str) -> tuple[int, str]:
    order = list(SPLITS)
    split = os.path.splitext(name)[0].lower()
    return order.index(split) if split in order else len(order), name


def _check_distinct(root: Path, names: list[str]) -> None:
    if len({canonical_split(name) for name in names}) < len(names):
        raise ValueError(printable(f"{root}: expected one name for each split, got {', '.join(names)}"))


def _without_leaks(root: Path, lists: list[str], splits: dict[str, SplitFiles]) -> dict[str, SplitFiles]:
    """Find a problem of the other lists if they share with the list to train on: scores on it tell nothing."""
    called = {canonical_split(name[:-4]): name for name in lists}
    trained = {*splits["train"].pairs} if "train" in splits else set()
    for split, part in splits.items():
        shared = [Path(image).name for image, mask in part.pairs if (image, mask) in trained]
        if shared and split != "train":
            message = f"{_listed(shared)} in {called['train']} too; scores on what was trained on tell nothing"
            problem = Problem(str(root / called[split]), message)
            splits = splits | {split: replace(part, problems=[*part.problems, problem])}
    return splits


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _has(root: Path, *folders: str) -> bool:
    return root.joinpath(*folders).is_dir()


# Name, what it is known by, whether it is that, and its files.
LAYOUTS = (
    (
        "plain",
        f"{FILE_NAME} with images/ and masks/",
        lambda root: (root / FILE_NAME).is_file() and any(_inside(root, n).is_dir() for n in ("images", "masks")),
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
    """List the files below a folder by their relative name without ending; not those that begin with a dot.

    Letters with accents are one character in the names: some systems write two, and a file has either name there.
    """
    files: dict[str, str] = {}
    for name, path in _walk(folder):
        ending = next((e for e in endings if name.endswith(e) or name.lower().endswith(e)), None)
        if ending is not None:
            key = normalize("NFC", name[: -len(ending)])
            if files.setdefault(key, path) != path:
                text = f"{path}: has the name of {files[key]}, with another ending or form; remove one of them"
                raise ValueError(printable(text))
    return files


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder, as (name relative to it, path); none if there is no such folder."""
    if not folder.is_dir():
        return
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith("."):
                yield (name if inner == "." else f"{inner}/{name}"), os.path.join(place, name)


def _raise(error: OSError) -> None:
    raise error


def _pair_folders(images: Path, masks: Path, labels: LabelSet, is_plain: bool = False) -> SplitFiles:
    files = _files(images, IMAGE_ENDINGS), _files(masks, MASK_ENDINGS)
    renamed, notes = _named_alike(*files) if is_plain else (files[1], [])
    return _pair(files[0], renamed, images, masks, labels, notes)


def _named_alike(images: dict[str, str], masks: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Name masks as their images, where the names differ in a way that leaves no doubt; and note it."""
    notes = []
    if images.keys().isdisjoint(masks):
        image_ending, mask_ending = _common_endings(images, masks)
        if image_ending or mask_ending:
            masks = {key[: len(key) - len(mask_ending)] + image_ending: path for key, path in masks.items()}
            both = (("images", image_ending), ("masks", mask_ending))
            notes = ["all " + " and all ".join(f"{kind} end in {e}" for kind, e in both if e) + ": paired so"]
    free, loose = images.keys() - masks.keys(), masks.keys() - images.keys()
    for simplify in (_without_image_ending, str.casefold):
        count = Counter(map(simplify, free))
        called = {simplify(key): key for key in free if count[simplify(key)] == 1}
        count = Counter(map(simplify, loose))
        pairs = {key: called[simplify(key)] for key in loose if count[simplify(key)] == 1 and simplify(key) in called}
        masks = {pairs.get(key, key): path for key, path in masks.items()}
        free, loose = free - {*pairs.values()}, loose - pairs.keys()
    return masks, notes


def _common_endings(images: Iterable[str], masks: Iterable[str]) -> tuple[str, str]:
    """Find what all images and all masks end in, such as "" and "_mask", beside names that are the same."""
    images, masks = list(images), list(masks)
    for mask_ending in ("", *_endings_of_all(masks)):
        for image_ending in ("", *(_endings_of_all(images) if len(images) > 1 else ())):
            names = {key[: len(key) - len(image_ending)] for key in images}
            if not names.isdisjoint(key[: len(key) - len(mask_ending)] for key in masks):
                return image_ending, mask_ending
    return "", ""


def _endings_of_all(names: list[str]) -> list[str]:
    """Find the words that all names end in, each with the character that sets it off, from the shortest."""
    last = os.path.basename(names[0]) if names else ""
    places = [place for place in range(len(last) - 1, 0, -1) if last[place] in SEPARATORS]
    endings = [last[place:] for place in places if re.search("[^\\W\\d_]", last[place:])]
    return [ending for ending in endings if all(name.endswith(ending) for name in names)]


def _without_image_ending(name: str) -> str:
    """Return 0 for 0.jpg: some tools add the ending of masks to the whole name of the image."""
    return next((name[: -len(ending)] for ending in IMAGE_ENDINGS if name.lower().endswith(ending)), name)


def _pair(
    images: Mapping[str, str],
    masks: Mapping[str, str],
    image_folder: Path,
    mask_folder: Path,
    labels: LabelSet,
    notes: Iterable[str] = (),
) -> SplitFiles:
    """Pair what has the same name in both; the rest is a problem each, and so is having nothing at all."""
    if not images and not masks:
        others = [name for name, _ in _walk(image_folder)]
        found = f", but {_listed(others)}; photos end in {', '.join(IMAGE_ENDINGS)}" if others else ""
        return SplitFiles(labels, [], [Problem(str(image_folder), f"no images{found}")])
    pairs = [(images[key], masks[key]) for key in sorted(images.keys() & masks.keys())]
    problems = []
    if lonely := sorted(images.keys() - masks.keys()):
        near = _OtherFiles(mask_folder, {mask for _, mask in pairs}, MASK_ENDINGS)
        problems += [
            Problem(images[key], f"no label map of this name in {mask_folder}{near.like(key)}") for key in lonely
        ]
    if lonely := sorted(masks.keys() - images.keys()):
        near = _OtherFiles(image_folder, {image for image, _ in pairs}, IMAGE_ENDINGS)
        problems += [Problem(masks[key], f"no image of this name in {image_folder}{near.like(key)}") for key in lonely]
    pairs, unreadable = _with_names_of_text(pairs)
    return SplitFiles(labels, pairs, [*problems, *unreadable], list(notes))


class _OtherFiles:
    """What lies in a folder, beside the files of pairs, where others are missed."""

    def __init__(self, folder: Path, paired: set[str], endings: tuple[str, ...]):
        self.names = sorted(normalize("NFC", name) for name, path in _walk(folder) if path not in paired)
        self.endings = endings

    def like(self, key: str) -> str:
        """Say, for a message on a missing file of this name, what is there instead and what is wrong with it."""
        found = []
        for beginning in (key + separator for separator in SEPARATORS):
            first = bisect_left(self.names, beginning)
            found += [name for name in self.names[first : first + SHOWN_NAMES] if name.startswith(beginning)]
        if not found:
            return ""
        ending = os.path.splitext(found[0])[1].lower()
        if ending in self.endings:
            reason = "under another name"
        elif self.endings is MASK_ENDINGS and ending in NOT_FOR_MASKS:
            reason = f"but {NOT_FOR_MASKS[ending]}, use PNG"
        else:
            reason = f"expected one of {' '.join(self.endings)}"
        return f": {_listed(found)} is there, {reason}"


def _with_names_of_text(pairs: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Keep the pairs whose names are text, which columns of paths are made of; each other file is a problem."""
    pairs, message = list(pairs), "its name is no UTF-8, which tables of paths need: rename it"
    problems = [Problem(name, message) for pair in pairs for name in pair if not is_utf8(name)]
    return [pair for pair in pairs if all(map(is_utf8, pair))], problems


def _pair_list(
    path: Path,
    images: Mapping[str, str],
    masks: Mapping[str, str],
    image_folder: Path,
    mask_folder: Path,
    labels: LabelSet,
    notes: Iterable[str] = (),
) -> SplitFiles:
    """Pair the names that a text file lists, with or without an ending, one in a line."""
    lines = [normalize("NFC", line.strip()) for line in read_text(path, "surrogateescape").split("\n")]
    lines = [line for line in lines if line]
    keys = dict.fromkeys(_listed_key(line, images, masks) for line in lines)
    pairs, problems, notes = [], [], list(notes)
    for key in keys:
        missing = [str(folder) for folder, files in ((image_folder, images), (mask_folder, masks)) if key not in files]
        if missing:
            problems.append(Problem(f"{path}: {key}", f"no file of this name in {' and '.join(missing)}"))
        else:
            pairs.append((images[key], masks[key]))
    if not keys:
        problems.append(Problem(str(path), "the list is empty"))
    if len(lines) > len(keys):
        notes.append(f"{path} has {len(lines) - len(keys)} lines of names that are there already, read once")
    pairs, unreadable = _with_names_of_text(pairs)
    return SplitFiles(labels, pairs, [*problems, *unreadable], notes)


def _listed_key(line: str, images: Mapping[str, str], masks: Mapping[str, str]) -> str:
    """Find the name that a line of a list means: with an ending perhaps, or as Windows or a shell write paths."""
    for name in (line, line.replace("\\", "/").removeprefix("./")):
        for key in (name, os.path.splitext(name)[0]):
            if key in images or key in masks:
                return key
    return os.path.splitext(line)[0]
