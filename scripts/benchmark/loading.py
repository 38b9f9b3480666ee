"""Training samples per second from files: decoding, augmentation and both, beside mmseg's steps and albumentations.

    python scripts/benchmark/loading.py [--libraries FOLDER] [--seconds 5]

Photos of 512x683 as JPEG and label maps as PNG, crops of 512: the training of ADE20K. The other two decode with
OpenCV; they are those of transforms.py, which says more about them and about --libraries. "Per core" is CPU
time on one thread of one process; "2 workers" is the clock, of a DataLoader that makes batches of 8. The ways take
turns, so that other work on the machine slows all of them: read the ratios.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from measure import machine, markdown_table
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transforms import CASES, OpenCVSteps, Sample, importable, plain, with_albumentations

from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.models.image_operations import read_image


CASE = CASES[0]
PHOTOS = 8
NOISE = 6  # standard deviation; makes files as large as those of ADE20K, about 50 kB a pair
BATCH, WORKERS = 8, 2


def write_data(folder: Path) -> None:
    """Scenes with the noise of a camera, as JPEG, and their label maps."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for seed in range(PHOTOS):
        image, label_map = render_scene(seed, CASE.size[::-1])
        noise = np.random.default_rng(seed).normal(0, NOISE, (*CASE.size, 3))
        Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{seed}.jpg")
        Image.fromarray(label_map).save(folder / "masks" / f"{seed}.png")
    (folder / FILE_NAME).write_text(classes_json(SCENE_LABELS))


def decode_with_opencv(photo: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """As mmcv reads files, with the table that maps ids."""
    import cv2

    table = np.arange(256, dtype=np.uint8)
    image = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    return image, table[cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)]


class Samples(Dataset):
    """A way to make samples as a data set, by the keys (epoch, index) of the package's."""

    def __init__(self, make: Callable[[int, np.random.Generator], Any]):
        self.make = make

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.make(key[1], np.random.default_rng(key))


def ways(folder: Path, libraries: set[str]) -> dict[str, tuple[Dataset, bool]]:
    """What makes samples, by name, and whether they are whole ones, which a DataLoader makes batches of."""
    data = load_segmentation_data(folder, "train")
    files = [(folder / "images" / f"{i}.jpg", folder / "masks" / f"{i}.png") for i in range(PHOTOS)]
    pairs = [(np.asarray(row["image"]), np.asarray(row["label"])) for row in data]

    def decode(index: int, _) -> tuple[np.ndarray, np.ndarray]:
        row = data[index]
        return read_image(row["image"]), np.asarray(row["label"])

    def from_files(sample: Sample) -> tuple[Dataset, bool]:
        return Samples(lambda index, rng: sample(*decode_with_opencv(*files[index]), rng)), True

    found = {
        "offseg_hf": (TrainingSet(data, CASE.transform), True),
        "offseg_hf, decoding alone": (Samples(decode), False),
        "offseg_hf, augmentation alone": (Samples(lambda index, rng: CASE.transform(*pairs[index], rng)), False),
    }
    if "cv2" in libraries:
        found["OpenCV, mmseg's steps"] = from_files(plain(CASE.transform, OpenCVSteps))
        found["OpenCV, decoding alone"] = Samples(lambda index, _: decode_with_opencv(*files[index])), False
    if {"cv2", "albumentations"} <= libraries:
        found["OpenCV, albumentations"] = from_files(with_albumentations(CASE))
    return found


def per_core(samples: dict[str, Dataset], seconds: float) -> dict[str, float]:
    """Samples per second of CPU time."""
    spent, count = dict.fromkeys(samples, 0.0), 0
    for dataset in samples.values():
        dataset[0, 0]
    while sum(spent.values()) < seconds * len(samples):
        for name, dataset in samples.items():
            start = time.process_time()
            dataset[divmod(count, PHOTOS)]
            spent[name] += time.process_time() - start
        count += 1
    return {name: count / total for name, total in spent.items()}


def with_workers(samples: dict[str, Dataset], seconds: float, turns: int = 6) -> dict[str, float]:
    """Samples per second by the clock; in each of its turns, a way first uses up what it has made in advance."""
    loaders = {name: batches(dataset) for name, dataset in samples.items()}
    spent, count = dict.fromkeys(samples, 0.0), dict.fromkeys(samples, 0)
    for name, loader in [item for _ in range(turns) for item in loaders.items()]:
        for _ in range(2 * WORKERS + 1):
            next(loader)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds / turns:
            next(loader)
            count[name] += BATCH
        spent[name] += time.perf_counter() - start
    return {name: count[name] / spent[name] for name in samples}


def batches(dataset: Dataset) -> Iterator[Any]:
    return iter(DataLoader(dataset, BATCH, sampler=TrainingSampler(PHOTOS), num_workers=WORKERS))


def main(
    libraries: Annotated[str | None, typer.Option(help="Folder with OpenCV and albumentations.")] = None,
    seconds: Annotated[float, typer.Option(help="Per way, once of CPU time and once by the clock.")] = 5,
) -> None:
    """Print the table of samples per second."""
    if libraries:
        sys.path.append(libraries)
    torch.set_num_threads(1)
    present = {name for name in ("cv2", "albumentations") if importable(name)}
    if "cv2" in present:
        import cv2

        cv2.setNumThreads(1)
    with TemporaryDirectory(prefix="offseg-benchmark-") as name:
        write_data(Path(name))
        sizes = [path.stat().st_size / 1000 for path in Path(name).glob("*/*")]
        samples = ways(Path(name), present)
        cores = per_core({name: dataset for name, (dataset, _) in samples.items()}, seconds)
        clock = with_workers({name: dataset for name, (dataset, is_whole) in samples.items() if is_whole}, seconds)
    print(f"{CASE.name}, a pair of files {sum(sizes) / PHOTOS:.0f} kB ({machine()}), samples per second:\n")
    rows = [[name, *(relative(speeds, name) for speeds in (cores, clock))] for name in samples]
    print(markdown_table(["", "per core", f"{WORKERS} workers"], rows))


def relative(speeds: dict[str, float], name: str) -> str:
    """A speed, and how many times that of the package it is."""
    return f"{speeds[name]:.0f} ({speeds[name] / speeds['offseg_hf']:.2f} x)" if name in speeds else ""


if __name__ == "__main__":
    typer.run(main)
