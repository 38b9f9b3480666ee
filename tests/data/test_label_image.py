"""Reading label maps: modes of PNG files, values out of range, many classes, photos turned by EXIF."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Features
from PIL import Image as PILImage

from offseg_hf.data.classes_json import read_classes
from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.label_image import LabelImage
from offseg_hf.data.label_sets import LABEL_SETS
from tests.data import trees


VALUES = np.array([[7, 3, 9], [0, 200, 7]])
IDS = np.array([[0, 1, 2], [255, 255, 0]])


@pytest.fixture
def column(tmp_path) -> LabelImage:
    (tmp_path / "classes.json").write_text(json.dumps(trees.PLAIN_CLASSES | {"title": "three things"}))
    return LabelImage.of(read_classes(tmp_path / "classes.json"), raw=True)


def decode(column: LabelImage, path: Path) -> PILImage.Image:
    return column.decode_example(column.encode_example(str(path)))


def palette_image(values: np.ndarray) -> PILImage.Image:
    image = PILImage.fromarray(values.astype(np.uint8))
    image.putpalette(bytes(reversed(range(256))) * 3)
    return image


@pytest.mark.parametrize(
    "write",
    [
        lambda values: PILImage.fromarray(values.astype(np.uint8)),
        palette_image,
        lambda values: PILImage.fromarray(values.astype(np.uint16)),
    ],
    ids=["8 bits", "palette: the indices count", "16 bits"],
)
def test_modes(tmp_path, column, write):
    write(VALUES).save(tmp_path / "mask.png")
    ids = decode(column, tmp_path / "mask.png")
    assert ids.mode == "L" and np.array_equal(ids, IDS)


def test_one_bit(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["off", "on"]}))
    column = LabelImage.of(read_classes(tmp_path / "classes.json"), raw=True)
    PILImage.fromarray(np.array([[True, False, True]])).save(tmp_path / "mask.png")
    assert np.array_equal(decode(column, tmp_path / "mask.png"), [[1, 0, 1]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colors_are_no_ids(tmp_path, column, mode):
    PILImage.new(mode, (3, 2)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=rf"mask\.png: expected a label map of one id per pixel, got .* mode {mode}"):
        decode(column, tmp_path / "mask.png")


def test_a_jpeg_changes_ids(tmp_path, column):
    """Whatever it is called."""
    PILImage.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(ValueError, match=r"mask\.png: .* got a JPEG, which changes ids: use PNG"):
        decode(column, tmp_path / "mask.png")


def test_a_class_of_255(tmp_path):
    """0 and 255 are the commonest values of two classes; 255 is no void value then."""
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["off", "on"], "values": [0, 255]}))
    column = LabelImage.of(read_classes(tmp_path / "classes.json"), raw=True)
    for dtype in (np.uint8, np.uint16):
        PILImage.fromarray(np.array([[0, 255, 0]], dtype)).save(tmp_path / "mask.png")
        assert np.array_equal(decode(column, tmp_path / "mask.png"), [[0, 1, 0]])
    assert column.label_set() == read_classes(tmp_path / "classes.json")


def test_values_that_count_from_one(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    column = LabelImage.of(read_classes(tmp_path / "classes.json"), raw=True)
    PILImage.fromarray(np.array([[1, 2, 3]], np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match='value 3 out of range, .*; if they count from 1, "values" .* are 1 to 3$'):
        decode(column, tmp_path / "mask.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_out_of_range(tmp_path, column, dtype):
    values = VALUES.astype(dtype)
    values[0] = 8, 255, 7
    PILImage.fromarray(values).save(tmp_path / "mask.png")
    message = r"mask\.png: values 8, 255 out of range, in three things there are 0, 3, 7, 9, 200; classes\.json says"
    with pytest.raises(ValueError, match=message):
        decode(column, tmp_path / "mask.png")


def test_every_value_of_every_benchmark(tmp_path):
    for labels in LABEL_SETS.values():
        column = LabelImage.of(labels, raw=True)
        table = labels.raw_to_train_id()
        PILImage.fromarray(np.array([list(table)], np.uint8)).save(tmp_path / "mask.png")
        assert np.asarray(decode(column, tmp_path / "mask.png")).tolist() == [list(table.values())]
        unknown = sorted(set(range(256)) - set(table))
        for value in (unknown[0], unknown[-1]):
            PILImage.new("L", (2, 2), value).save(tmp_path / "mask.png")
            with pytest.raises(ValueError, match=f"value {value} out of range, in {labels.title} there are"):
                decode(column, tmp_path / "mask.png")


def test_more_classes_than_fit_into_eight_bits(tmp_path):
    facts = {"classes": [str(index) for index in range(1000)], "ignore_index": 65534, "void_value": 5000}
    (tmp_path / "classes.json").write_text(json.dumps(facts))
    column = LabelImage.of(read_classes(tmp_path / "classes.json"), raw=True)
    PILImage.fromarray(np.array([[0, 999, 5000, 256]], np.uint16)).save(tmp_path / "mask.png")
    ids = decode(column, tmp_path / "mask.png")
    assert ids.mode == "I;16" and np.array_equal(ids, [[0, 999, 65534, 256]])


def test_the_column_comes_back_from_its_description(column):
    features = Features(label=column)
    assert Features.from_dict(features.to_dict()) == features
    assert Features.from_arrow_schema(features.arrow_schema) == features


def test_photos_are_upright(tmp_path):
    trees.plain(tmp_path, {"train": 1})
    photo = PILImage.open(tmp_path / "images/train/0.png")
    exif = PILImage.Exif()
    exif[PILImage.ExifTags.Base.Orientation] = 6  # to be shown turned by a quarter
    photo.transpose(PILImage.Transpose.ROTATE_90).save(tmp_path / "images/train/0.png", exif=exif)
    (sample,) = load_segmentation_data(tmp_path, "train")
    assert np.array_equal(sample["image"], photo) and sample["label"].size == photo.size
