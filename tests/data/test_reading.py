"""One way to read a sample: what the check passes, training takes; what it does not, both tell in the same words."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from offseg_hf.data.check import check_segmentation_data
from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.label_image import LabelImage
from offseg_hf.data.label_sets import LabelSet, distinct_colors
from offseg_hf.data.reading import PairReader, to_rgb
from offseg_hf.data.source import DataSource
from offseg_hf.data.training_set import TrainingSet
from offseg_hf.data.transforms import TrainingTransform


SIZE = (8, 6)
LABELS = LabelSet("two", "Two", ("a", "b"), distinct_colors(2), (0, 1), (255,), False)
TRANSFORM = TrainingTransform(crop_size=(6, 8), photometric=False, flip=0)
GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)

PHOTOS = {
    "gray.png": Image.fromarray(GRAY),
    "palette.png": Image.fromarray(GRAY).convert("P"),
    "palette.gif": Image.fromarray(GRAY).convert("P"),
    "alpha.png": Image.fromarray(np.dstack([GRAY] * 4)),
    "gray alpha.png": Image.fromarray(GRAY).convert("LA"),
    "cmyk.tif": Image.new("CMYK", SIZE, (9, 9, 9, 9)),
    "bits.png": Image.fromarray(GRAY > 9),
    "16 bits.png": Image.fromarray(GRAY.astype(np.uint16) * 999),
    "32 bits.tif": Image.fromarray(GRAY.astype(np.int32) * 999),
}
REFUSED = {
    "float.tif": (
        Image.fromarray(GRAY.astype(np.float32) / 255),
        "expected a photo of 8 or 16 bits per value, got fl",
    ),
    "wide.tif": (Image.fromarray(GRAY.astype(np.int32) * 99999), "expected values in 0..65535 in mode I, got values"),
}


def data_of(image: str | Path | None, label: str | Path | None, count: int = 1) -> Dataset:
    features = Features(image=ImageFeature(), label=LabelImage.of(LABELS))
    cells = {"image": image and str(image), "label": label and str(label)}
    return Dataset.from_dict({name: [cell] * count for name, cell in cells.items()}, features=features, split="train")


@pytest.fixture
def mask(tmp_path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (6, 8), np.uint8)).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def error_of(data: Dataset, **loader) -> str:
    """What training says to a sample, which is what the check says."""
    batches = iter(DataLoader(TrainingSet(data, TRANSFORM), sampler=[(0, 0)], **loader))
    with pytest.raises(ValueError) as error:
        next(batches)
    if loader.get("num_workers"):
        batches._shutdown_workers()  # left to the garbage collector, it waits for five seconds
    told = [
        str(problem)
        for report in check_segmentation_data(DataSource(data, labels=LABELS))
        for problem in report.problems
    ]
    line = str(error.value).strip().splitlines()[-1].removeprefix("ValueError: ")
    assert line == "; ".join(told)
    return line


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_that_are_taken(tmp_path, mask, name):
    PHOTOS[name].save(tmp_path / name)
    data = data_of(tmp_path / name, mask)
    (report,) = check_segmentation_data(DataSource(data, labels=LABELS))
    assert report.problems == [] and report.num_counted == 1
    photo, label_map = PairReader(data).read(0)
    assert (photo.mode, photo.size, label_map.mode) == ("RGB", SIZE, "L")
    pixels = TrainingSet(data, TRANSFORM)[0, 0]["pixel_values"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (TRANSFORM.mean, TRANSFORM.std))
    assert torch.allclose(pixels * std + mean, torch.from_numpy(np.array(photo)).permute(2, 0, 1).float(), atol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_photos_that_are_refused(tmp_path, mask, name):
    image, message = REFUSED[name]
    image.save(tmp_path / name)
    assert error_of(data_of(tmp_path / name, mask)).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_are_named_in_one_line(tmp_path, photo, mask, workers):
    for path in (photo, mask):
        (tmp_path / f"half {path.name}").write_bytes(path.read_bytes()[:50])
    (tmp_path / "text.png").write_text("no picture")
    loader = {"num_workers": workers}
    begin = f"{tmp_path}/half photo.png: cannot be read as an image: "
    assert error_of(data_of(tmp_path / "half photo.png", mask), **loader).startswith(begin)
    if not workers:
        begin = f"{tmp_path}/half mask.png: cannot be read as a label map: "
        assert error_of(data_of(photo, tmp_path / "half mask.png")).startswith(begin)
        reason = "no picture, or of a format that Pillow does not know"
        both = error_of(data_of(tmp_path / "text.png", tmp_path / "text.png"))
        name = tmp_path / "text.png"
        assert both == (
            f"{name}: cannot be read as an image: {reason}; {name}: cannot be read as a label map: {reason}"
        )


def test_what_is_not_there(tmp_path, photo, mask):
    gone = tmp_path / "gone.png"
    assert error_of(data_of(gone, mask)) == f"{gone}: cannot be read as an image: No such file or directory"
    assert error_of(data_of(photo, None)) == (
        f"the label map of {photo}: cannot be read as a label map: there is none (null)"
    )
    assert error_of(data_of(None, mask)) == "train sample 0, image: cannot be read as an image: there is none (null)"
    embedded = data_of(photo, mask).cast_column("image", ImageFeature(decode=False))
    embedded = embedded.map(lambda row: {"image": {"bytes": photo.read_bytes()[:50], "path": None}})
    assert error_of(embedded.cast_column("image", ImageFeature())).startswith("train sample 0, image: cannot be read")


def test_sizes(tmp_path, photo):
    Image.new("L", (6, 8)).save(tmp_path / "turned.png")
    assert error_of(data_of(photo, tmp_path / "turned.png")) == (
        f"{tmp_path}/turned.png: the label map is 6x8, but its image {photo} is 8x6; images are turned as their EXIF "
        "orientation says, label maps have to lie the same way"
    )


def test_columns_that_are_not_decoded(tmp_path, photo, mask):
    data = Dataset.from_dict({"image": [str(photo)], "label": [str(mask)]})
    data = data.cast_column("image", ImageFeature(decode=False)).cast_column("label", ImageFeature(decode=False))
    loaded = load_segmentation_data(data, labels=LABELS)
    assert loaded[0]["image"].size == loaded[0]["label"].size == SIZE
    again = load_segmentation_data(loaded.cast_column("label", LabelImage.of(LABELS, decode=False)))
    assert again[0]["label"].size == SIZE


def test_formats_and_transforms_of_datasets(photo, mask):
    """A format is how others are given the samples; a transform of the user's own is obeyed."""
    data = data_of(photo, mask)
    expected = TrainingSet(data, TRANSFORM)[0, 0]
    for variant in (data.with_format("torch"), data.with_format("numpy"), pickle.loads(pickle.dumps(data))):
        assert torch.equal(TrainingSet(variant, TRANSFORM)[0, 0]["pixel_values"], expected["pixel_values"])
    black = data.with_transform(lambda rows: rows | {"image": [image.point(lambda _: 0) for image in rows["image"]]})
    assert TrainingSet(black, TRANSFORM)[0, 0]["pixel_values"].max() < 0


def test_streams(photo, mask):
    reader = PairReader(data_of(photo, mask, count=2).to_iterable_dataset())
    sizes = [reader.read(index, row)[0].size for index, row in enumerate(reader.rows)]
    assert sizes == [SIZE, SIZE]


def test_to_rgb_leaves_rgb_alone(photo):
    image = Image.open(photo)
    assert to_rgb(image) is image


def test_names_are_shown_in_one_line(tmp_path, mask):
    name = tmp_path / "a\nb.png"
    assert error_of(data_of(name, mask)).startswith(f"{tmp_path}{os.sep}a\\nb.png: cannot be read as an image")
