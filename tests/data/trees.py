"""Small data sets written as files, in the layouts of the benchmarks and as plain folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from offseg_hf.data.label_sets import LABEL_SETS


SIZE = (24, 16)  # width, height
SAMPLES = {"train": 3, "validation": 2}
RAW_VOID = {"ade": 0, "cityscapes": 4, "cocostuff": 255, "context59": 0}


def class_ids(benchmark: str, split: str, index: int) -> np.ndarray:
    """Class ids of a label map as they are to be read: first, last and random ones, and some of no class."""
    rng = np.random.default_rng([index, *split.encode()])
    ids = rng.integers(0, len(LABEL_SETS[benchmark]), (SIZE[1], SIZE[0]))
    ids[0, 0], ids[0, 1], ids[1] = 0, len(LABEL_SETS[benchmark]) - 1, 255
    return ids


def raw_values(benchmark: str, ids: np.ndarray) -> np.ndarray:
    """The label map as the benchmark publishes it, written down here without the package's tables."""
    if benchmark in ("ade", "context59"):  # classes count from 1
        return np.where(ids == 255, 0, ids + 1)
    published = np.asarray(LABEL_SETS[benchmark].raw_ids)
    return np.where(ids == 255, RAW_VOID[benchmark], published[np.minimum(ids, len(published) - 1)])


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def _samples(benchmark: str) -> Iterator[tuple[str, int, np.ndarray]]:
    for split, count in SAMPLES.items():
        for index in range(count):
            yield split, index, class_ids(benchmark, split, index)


def ade20k(root: Path) -> None:
    for split, index, ids in _samples("ade"):
        folder, name = {"train": "training", "validation": "validation"}[split], f"ADE_{split[:5]}_{index:08d}"
        write_image(root / "ADEChallengeData2016" / "images" / folder / f"{name}.jpg", seed=index)
        write_mask(root / "ADEChallengeData2016" / "annotations" / folder / f"{name}.png", raw_values("ade", ids))


def cityscapes(root: Path, converted: bool = False) -> None:
    for split, index, ids in _samples("cityscapes"):
        place = f"{split[:5].removesuffix('id')}/ulm/ulm_{index:06d}_000019"
        ending = "labelTrainIds" if converted else "labelIds"
        write_image(root / "leftImg8bit" / f"{place}_leftImg8bit.png", seed=index)
        write_mask(
            root / "gtFine" / f"{place}_gtFine_{ending}.png", ids if converted else raw_values("cityscapes", ids)
        )
        write_image(root / "gtFine" / f"{place}_gtFine_color.png")  # is part of the download, and not to be read


def cocostuff(root: Path, converted: bool = False) -> None:
    for split, index, ids in _samples("cocostuff"):
        place = f"{'train2017' if split == 'train' else 'val2017'}/{index:012d}"
        ending = "_labelTrainIds" if converted else ""
        write_image(root / "images" / f"{place}.jpg", seed=index)
        write_mask(root / "annotations" / f"{place}{ending}.png", ids if converted else raw_values("cocostuff", ids))


def pascal_context(root: Path) -> None:
    root = root / "VOCdevkit" / "VOC2010"
    lists = {"train": root / "ImageSets/SegmentationContext/train.txt"}
    lists["validation"] = lists["train"].with_name("val.txt")
    lists["train"].parent.mkdir(parents=True)
    write_image(root / "JPEGImages" / "2008_999999.jpg")  # of VOC, but not of Context
    for split, index, ids in _samples("context59"):
        name = f"2008_{split[0]}{index:05d}"
        write_image(root / "JPEGImages" / f"{name}.jpg", seed=index)
        write_mask(root / "SegmentationClassContext" / f"{name}.png", raw_values("context59", ids))
        with lists[split].open("a") as file:
            file.write(f"{name}\n")


BENCHMARKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ADE20K": ("ade", ade20k),
    "Cityscapes labelIds": ("cityscapes", cityscapes),
    "Cityscapes labelTrainIds": ("cityscapes", lambda root: cityscapes(root, converted=True)),
    "COCO-Stuff": ("cocostuff", cocostuff),
    "COCO-Stuff labelTrainIds": ("cocostuff", lambda root: cocostuff(root, converted=True)),
    "Pascal Context": ("context59", pascal_context),
}


PLAIN_CLASSES = {
    "classes": ["sky", "ground", "tree"],
    "palette": [[10, 20, 30], [40, 50, 60], [10, 20, 30]],
    "values": [7, 3, 9],
    "void_values": [0, 200],
}


def plain(root: Path, samples: dict[str, int] | None = None, classes: dict = PLAIN_CLASSES) -> None:
    """images/<split>, masks/<split>, classes.json; all values of `PLAIN_CLASSES` in every mask."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(classes))
    for split, count in (samples or {"train": 3, "val": 2}).items():
        for index in range(count):
            write_image(root / "images" / split / f"{index}.png", seed=index)
            values = np.resize([7, 3, 9, 0, 200], (SIZE[1], SIZE[0]))
            write_mask(root / "masks" / split / f"{index}.png", values)
