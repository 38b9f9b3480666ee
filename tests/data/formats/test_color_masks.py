"""Label maps in color directly as a data source, where the palette of classes.json says which color is which class."""

import json

import numpy as np
import pytest
from PIL import Image

from offseg_hf.data.check import check_segmentation_data
from offseg_hf.data.dataset import load_segmentation_data
from tests.data.formats import cases


PALETTE = [list(color) for color in cases.COLORS.values()]


def source(root, palette=PALETTE, classes=("car", "road"), mode="RGB", **facts):
    cases.photo(root / "images" / "a.png")
    (root / "masks").mkdir()
    colors = np.asarray([(0, 0, 0), *cases.COLORS.values()], np.uint8)
    Image.fromarray(colors[cases.expected(0, 1, 2)]).convert(mode).save(root / "masks" / "a.png")
    (root / "classes.json").write_text(json.dumps({"classes": classes, "palette": palette} | facts))
    return root


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_are_classes(tmp_path, mode):
    data = load_segmentation_data(source(tmp_path, mode=mode), "train")
    assert data[0]["label"].mode == "L"
    assert np.array_equal(data[0]["label"], cases.expected(255, 0, 1))
    assert check_segmentation_data(tmp_path)[0].problems == []


def test_black_may_be_a_class(tmp_path):
    data = load_segmentation_data(source(tmp_path, [*PALETTE, [0, 0, 0]], ("car", "road", "night")), "train")
    assert np.array_equal(data[0]["label"], cases.expected(2, 0, 1))


def test_an_ignore_index_of_16_bits(tmp_path):
    data = load_segmentation_data(source(tmp_path, ignore_index=1000), "train")
    assert np.array_equal(data[0]["label"], cases.expected(1000, 0, 1))


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([PALETTE[0]] * 2, r"colors cannot be turned back into classes where car and road are both \(64, 0, 128\)"),
        ([PALETTE[0], [1, 2, 3]], r"whose color \(128, 64, 128\) is none of the `palette`"),
    ],
)
def test_colors_that_are_no_classes(tmp_path, palette, message):
    data = load_segmentation_data(source(tmp_path, palette), "train")
    with pytest.raises(ValueError, match=r"a\.png: expected a label map of one id per pixel, .*" + message):
        data[0]


def test_transparent_pixels(tmp_path):
    picture = Image.open(source(tmp_path) / "masks" / "a.png").convert("RGBA")
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match="transparent pixels"):
        load_segmentation_data(tmp_path, "train")[0]
