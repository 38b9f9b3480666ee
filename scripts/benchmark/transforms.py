"""Training samples per second on one core: the package, its steps done plainly, OpenCV's as mmseg, albumentations.

    python scripts/benchmark/transforms.py [--libraries FOLDER] [--seconds 5]

--libraries: where OpenCV and albumentations lie, if they are not installed; what is missing is left out:
    pip install --target FOLDER albumentations opencv-python-headless
With OpenCV the samples are also compared, value by value: they are the same but for up to 31 columns at the right end
of images narrower than the crop (see offseg_hf.data.photometric). Images are decoded beforehand; figures are CPU time
on one thread. albumentations' list is the nearest there is: no `cat_max_ratio`, and one trip to HSV instead of two.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from measure import machine, markdown_table

from offseg_hf.data import photometric
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.models.image_operations import resize_bilinear, resize_nearest


@dataclass(frozen=True)
class Case:
    """A pipeline of the recipes, and the size of the images that it reads."""

    name: str
    size: tuple[int, int]  # height, width
    transform: TrainingTransform

    def base_scale(self) -> float:
        """What a ratio of 1 does to the images."""
        return min(min(self.transform.scale) / min(self.size), max(self.transform.scale) / max(self.size))


CASES = [
    Case("512 of 512x683", (512, 683), TrainingTransform(crop_size=(512, 512), scale=(2048, 512))),
    Case("512 of 1024x2048", (1024, 2048), TrainingTransform(crop_size=(512, 512), scale=(2048, 512))),
    Case("1024 of 1024x2048", (1024, 2048), TrainingTransform(crop_size=(1024, 1024), scale=(2048, 1024))),
]
IMAGES = 4  # of each size

Pair = tuple[np.ndarray, np.ndarray]
Sample = Callable[[np.ndarray, np.ndarray, np.random.Generator], Any]


class NumpySteps:
    """What OpenCV does, in numpy."""

    @staticmethod
    def resize(image: np.ndarray, labels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        resized = resize_bilinear(image.transpose(2, 0, 1), height, width)
        return resized.transpose(1, 2, 0), resize_nearest(labels, height, width)

    @staticmethod
    def to_hsv(image: np.ndarray) -> np.ndarray:
        return np.stack(photometric.rgb_to_hsv(image.swapaxes(1, 2)), axis=-1).astype(np.uint8)

    @staticmethod
    def to_rgb(hsv: np.ndarray) -> np.ndarray:
        hue, saturation, value = np.moveaxis(hsv, -1, 0)
        return photometric.hsv_to_rgb(hue.astype(np.int32), saturation, value).swapaxes(1, 2)


class OpenCVSteps:
    """OpenCV itself, as mmcv calls it."""

    @staticmethod
    def resize(image: np.ndarray, labels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return resized, cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)

    @staticmethod
    def to_hsv(image: np.ndarray) -> np.ndarray:
        import cv2

        return cv2.cvtColor(image, cv2.COLOR_RGB2HSV)

    @staticmethod
    def to_rgb(hsv: np.ndarray) -> np.ndarray:
        import cv2

        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def plain(transform: TrainingTransform, steps: type) -> Sample:
    """The official steps one after the other, each on all that there is, as mmseg does them."""

    def sample(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        height, width = transform.sample_size(*labels.shape, rng)
        image, labels = steps.resize(image, labels, height, width)
        for _ in range(11):
            top, left = (rng.integers(max(e - c, 0) + 1) for e, c in zip((height, width), transform.crop_size))
            box = slice(top, top + transform.crop_size[0]), slice(left, left + transform.crop_size[1])
            ids, counts = np.unique(labels[box], return_counts=True)
            counts = counts[ids != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < transform.cat_max_ratio:
                break
        image, labels = image[box], labels[box]
        if rng.random() < transform.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        image = plain_distortion(np.ascontiguousarray(image), rng, steps)
        pixel_values = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
        mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (transform.mean, transform.std))
        padding = (0, transform.crop_size[1] - labels.shape[1], 0, transform.crop_size[0] - labels.shape[0])
        pixel_values = torch.nn.functional.pad((pixel_values - mean) / std, padding)
        labels = torch.from_numpy(labels.astype(np.int64))
        return {"pixel_values": pixel_values, "labels": torch.nn.functional.pad(labels, padding, value=255)}

    return sample


def plain_distortion(image: np.ndarray, rng: np.random.Generator, steps: type) -> np.ndarray:
    def convert(values: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)

    def contrast(image: np.ndarray) -> np.ndarray:
        return convert(image, factor=rng.uniform(0.5, 1.5)) if rng.integers(2) else image

    if rng.integers(2):
        image = convert(image, shift=rng.uniform(-32, 32))
    contrast_first = rng.integers(2)
    if contrast_first:
        image = contrast(image)
    if rng.integers(2):
        hsv = steps.to_hsv(image)
        hsv[..., 1] = convert(hsv[..., 1], factor=rng.uniform(0.5, 1.5))
        image = steps.to_rgb(hsv)
    if rng.integers(2):
        hsv = steps.to_hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = steps.to_rgb(hsv)
    return image if contrast_first else contrast(image)


def with_albumentations(case: Case) -> Sample:
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    height, width = case.transform.crop_size
    low, high = (ratio * case.base_scale() - 1 for ratio in case.transform.ratio_range)
    pipeline = A.Compose(
        [
            A.RandomScale((low, high), p=1),
            A.PadIfNeeded(height, width, position="top_left", border_mode=0, fill=(124, 116, 104), fill_mask=255),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast((-32 / 255, 32 / 255), (-0.5, 0.5), p=0.75),
            A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=64, val_shift_limit=0, p=0.75),
            A.Normalize(),
            ToTensorV2(),
        ]
    )

    def sample(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        made = pipeline(image=image, mask=labels)
        return {"pixel_values": made["image"], "labels": made["mask"].long()}

    return sample


def measure(samples: dict[str, Sample], pairs: list[Pair], seconds: float) -> dict[str, float]:
    """Samples per second of CPU time; the ways take turns, and all of them see the same draws."""
    spent, count = dict.fromkeys(samples, 0.0), 0
    generators = {name: np.random.default_rng(0) for name in samples}
    for sample in samples.values():
        sample(*pairs[0], np.random.default_rng(1))
    while count < 8 or sum(spent.values()) < seconds * len(samples):
        for name, sample in samples.items():
            start = time.process_time()
            sample(*pairs[count % len(pairs)], generators[name])
            spent[name] += time.process_time() - start
        count += 1
    return {name: count / total for name, total in spent.items()}


def check_equal(case: Case, pairs: list[Pair], count: int = 20) -> float:
    """Share of pixel values that differ between OpenCV's samples and the package's."""
    different = total = 0
    reference = plain(case.transform, OpenCVSteps)
    for seed in range(count):
        image, labels = pairs[seed % len(pairs)]
        ours, theirs = (make(image, labels, np.random.default_rng(seed)) for make in (case.transform, reference))
        for name in ours:
            different += int((ours[name] != theirs[name]).sum())
            total += ours[name].numel()
    return different / total


def main(
    libraries: Annotated[str | None, typer.Option(help="Folder with OpenCV and albumentations.")] = None,
    seconds: Annotated[float, typer.Option(help="Of CPU time per way and case.")] = 5,
) -> None:
    """Print the table of samples per second."""
    if libraries:
        sys.path.append(libraries)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    torch.set_num_threads(1)
    found = {name: importable(name) for name in ("cv2", "albumentations")}
    if found["cv2"]:
        import cv2

        cv2.setNumThreads(1)
    rows = []
    for case in CASES:
        pairs = [render_scene(seed, case.size[::-1]) for seed in range(IMAGES)]
        pairs = [(np.array(image), labels) for image, labels in pairs]
        samples = {"offseg_hf": case.transform, "plain numpy": plain(case.transform, NumpySteps)}
        if found["cv2"]:
            samples["mmseg's steps on OpenCV"] = plain(case.transform, OpenCVSteps)
            print(f"{case.name}: {check_equal(case, pairs):.2%} of values differ from OpenCV", file=sys.stderr)
        if found["albumentations"]:
            samples["albumentations"] = with_albumentations(case)
        speeds = measure(samples, pairs, seconds)
        rows.append([case.name, *(f"{speed:.0f}" for speed in speeds.values())])
    print(f"Samples per second and core ({machine()}):\n")
    print(markdown_table(["crop", *samples], rows))


def importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    typer.run(main)
