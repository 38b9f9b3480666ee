"""Pairs are found in every layout, and what has no pair is named."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.layouts import IMAGE_ENDINGS, find_split, looks_like_split, read_layout
from offseg_hf.inference.files import PHOTO_EXTENSIONS
from tests.data import trees


@pytest.mark.parametrize("layout", trees.BENCHMARKS)
def test_benchmarks(tmp_path, layout):
    benchmark, write = trees.BENCHMARKS[layout]
    write(tmp_path)
    splits = read_layout(tmp_path)
    assert {name: len(part.pairs) for name, part in splits.items()} == trees.SAMPLES
    for part in splits.values():
        assert part.labels.name == benchmark and part.problems == []
        for image, mask in part.pairs:
            assert Path(mask).name.startswith(Path(image).stem.removesuffix("_leftImg8bit"))
        assert part.pairs == sorted(part.pairs)


@pytest.mark.parametrize(("write", "ending"), [(trees.cityscapes, "_gtFine_labelIds.png"), (trees.cocostuff, "0.png")])
def test_published_ids_are_read_where_converted_ones_lie_beside(tmp_path, write, ending):
    write(tmp_path, converted=True)
    write(tmp_path)
    pairs = read_layout(tmp_path)["train"].pairs
    assert len(pairs) == 3 and pairs[0][1].endswith(ending)


def test_a_folder_of_another_kind(tmp_path):
    trees.write_image(tmp_path / "pictures" / "a.png")
    assert read_layout(tmp_path) is None


def test_half_pairs_are_named(tmp_path):
    trees.ade20k(tmp_path)
    root = tmp_path / "ADEChallengeData2016"
    (root / "annotations/training/ADE_train_00000001.png").unlink()
    (root / "images/training/ADE_train_00000002.jpg").unlink()
    part = read_layout(tmp_path)["train"]
    assert len(part.pairs) == 1
    assert [str(problem) for problem in part.problems] == [
        f"{root}/images/training/ADE_train_00000001.jpg: no label map of this name in {root}/annotations/training",
        f"{root}/annotations/training/ADE_train_00000002.png: no image of this name in {root}/images/training",
    ]


def test_empty_split(tmp_path):
    trees.plain(tmp_path)
    (tmp_path / "images" / "test").mkdir()
    (problem,) = read_layout(tmp_path)["test"].problems
    assert str(problem) == f"{tmp_path}/images/test: no images"


def test_cityscapes_test_has_no_label_maps(tmp_path):
    trees.cityscapes(tmp_path)
    trees.write_image(tmp_path / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png")
    assert list(read_layout(tmp_path)) == ["train", "validation"]


def test_pascal_context_needs_its_lists(tmp_path):
    trees.pascal_context(tmp_path)
    lists = tmp_path / "VOCdevkit/VOC2010/ImageSets/SegmentationContext"
    (lists / "val.txt").write_text("2008_v00000\n2008_v00009\n\n2008_v00000\n")
    part = read_layout(tmp_path)["validation"]
    assert len(part.pairs) == 1
    assert str(part.problems[0]).startswith(f"{lists}/val.txt: 2008_v00009: no file of this name in ")
    for path in lists.iterdir():
        path.unlink()
    assert "expected the lists train.txt and val.txt" in str(read_layout(tmp_path)["train"].problems[0])


def test_plain_folder_with_lists(tmp_path):
    for name in ("a", "b", "c"):
        trees.write_image(tmp_path / "images" / f"{name}.jpg")
        trees.write_image(tmp_path / "masks" / f"{name}.png")
    trees.write_image(tmp_path / "images" / ".hidden.jpg")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["x"]}))
    assert {name: len(part.pairs) for name, part in read_layout(tmp_path).items()} == {"train": 3}
    (tmp_path / "train.txt").write_text("c\na.jpg\n")
    (tmp_path / "val.txt").write_text("b\n")
    splits = read_layout(tmp_path)
    assert [Path(image).name for image, _ in splits["train"].pairs] == ["c.jpg", "a.jpg"]
    assert [Path(mask).name for _, mask in splits["validation"].pairs] == ["b.png"]
    (tmp_path / "val.txt").write_text("\n")
    assert str(read_layout(tmp_path)["validation"].problems[0]) == f"{tmp_path}/val.txt: the list is empty"


def test_ambiguous_names(tmp_path):
    trees.plain(tmp_path)
    trees.write_image(tmp_path / "images" / "train" / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.png: has the name of .*0\.jpg, with another ending"):
        read_layout(tmp_path)
    (tmp_path / "images" / "train" / "0.jpg").unlink()
    (tmp_path / "images" / "training").mkdir()
    with pytest.raises(ValueError, match="one name for each split, got train, training, val"):
        read_layout(tmp_path)
    (tmp_path / "images" / "training").rename(tmp_path / "images" / "trees")
    assert "trees: is none of the splits" in str(read_layout(tmp_path)["train"].problems[0])


# -- names as people give them ---------------------------------------------------------------------------------------


def touch(root: Path, *files: str) -> Path:
    """A plain folder of these files, which are empty: pairing opens none."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["x", "y"]}))
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def names_of(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each split, relative to the folder, where nothing is wrong."""
    splits = read_layout(root)
    assert [problem for part in splits.values() for problem in part.problems] == []
    return {
        split: [tuple(os.path.relpath(name, root) for name in pair) for pair in part.pairs]
        for split, part in splits.items()
    }


def messages(root: Path, split: str = "train") -> list[str]:
    return [str(problem).replace(f"{root}/", "") for problem in read_layout(root)[split].problems]


def test_photos_are_those_of_segment():
    assert {*IMAGE_ENDINGS} == {*PHOTO_EXTENSIONS}


@pytest.mark.parametrize(
    "train, val", [("Train", "Val"), ("TRAIN", "VALID"), ("training", "Validation"), ("train", "dev")]
)
def test_splits_in_any_case(tmp_path, train, val):
    places = [f"{kind}/{split}/0.png" for kind in ("images", "masks") for split in (train, val)]
    assert list(names_of(touch(tmp_path, *places))) == ["train", "validation"]


def test_splits_that_differ_between_images_and_masks(tmp_path):
    root = touch(tmp_path, "images/Train/0.png", "masks/training/0.png")
    assert names_of(root) == {"train": [("images/Train/0.png", "masks/training/0.png")]}


def test_folders_in_any_case(tmp_path):
    assert names_of(touch(tmp_path, "Images/0.png", "MASKS/0.png")) == {"train": [("Images/0.png", "MASKS/0.png")]}


def test_a_half_of_another_name_is_told(tmp_path):
    with pytest.raises(ValueError, match="masks: no such folder, in .* there is classes.json, images, labels$"):
        read_layout(touch(tmp_path, "images/0.png", "labels/0.png"))


@pytest.mark.parametrize("name", ["train_set", "valSet", "val-images", "01_test", "vaildation", "trian", "Eval"])
def test_what_looks_like_a_split_is_not_trained_on(tmp_path, name):
    root = touch(tmp_path, f"images/{name}/0.png", f"masks/{name}/0.png", "images/a/1.png", "masks/a/1.png")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"{name}: looks like a split, expected the names train, val and test$"):
            load_segmentation_data(root, split)


@pytest.mark.parametrize("name", ["rain", "trier", "vail", "western", "evening", "city_1", "contest"])
def test_places_that_are_no_splits(tmp_path, name):
    assert not looks_like_split(name)
    root = touch(tmp_path, f"images/{name}/0.png", f"masks/{name}/0.png")
    assert names_of(root) == {"train": [(f"images/{name}/0.png", f"masks/{name}/0.png")]}


@pytest.mark.parametrize("name, is_told", [("val_list.txt", True), ("train.csv", True), ("train_log.txt", False)])
def test_lists_of_another_name(tmp_path, name, is_told):
    root = touch(tmp_path, "images/0.png", "masks/0.png", name)
    with pytest.raises(ValueError, match=f"{name}: looks like a split") if is_told else nullcontext():
        assert list(names_of(root)) == ["train"]


def test_lists_of_any_editor(tmp_path):
    files = [f"{kind}/{name}.png" for kind in ("images", "masks") for name in ("0", "1", "2", "sub/3", "caf\u00e9")]
    root = touch(tmp_path, *files)
    (root / "Train.txt").write_bytes("\ufeff0\r\n./1.png\r\nsub\\3\r\n0\r\n".encode())
    (root / "VAL.TXT").write_bytes("2\r\ncafe\u0301\r\n".encode("utf-16"))
    found = {split: [Path(image).stem for image, _ in pairs] for split, pairs in names_of(root).items()}
    assert found == {"train": ["0", "1", "3"], "validation": ["2", "caf\u00e9"]}
    assert read_layout(root)["train"].notes == [
        f"{root}/Train.txt has 1 lines of names that are there already, read once"
    ]


def test_what_is_trained_on_does_not_validate(tmp_path):
    root = touch(tmp_path, *(f"{kind}/{index}.png" for kind in ("images", "masks") for index in range(8)))
    (root / "train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (root / "val.txt").write_text("7\n0.png\n1\n2\n3\n4\n5\n")
    shown = "0.png, 1.png, 2.png, 3.png, 4.png and 1 more in train.txt too"
    assert messages(root, "validation") == [f"val.txt: {shown}; scores on what was trained on tell nothing"]
    assert messages(root) == []
    with pytest.raises(ValueError, match="in train.txt too"):
        load_segmentation_data(root, "val")


def test_what_is_in_no_split_is_noted(tmp_path):
    root = touch(tmp_path, "images/train/0.png", "masks/train/0.png", "images/1.png", "train.txt")
    assert [note.replace(f"{root}/", "") for note in read_layout(root)["train"].notes] == [
        "train.txt is not read, the splits are folders",
        "in no split of images, and not read: 1.png",
    ]


@pytest.mark.parametrize(
    "images, masks, note",
    [
        (["0", "1"], ["0_mask", "1_mask"], "all masks end in _mask: paired so"),
        (["0"], ["0.jpg"], "all masks end in .jpg: paired so"),
        (["0_sat", "1_sat"], ["0_mask", "1_mask"], "all images end in _sat and all masks end in _mask: paired so"),
        (["a_image", "b_image"], ["a", "b"], "all images end in _image: paired so"),
        (["a_1", "b_2"], ["a_1_seg_x", "b_2_seg_x"], "all masks end in _seg_x: paired so"),
        (["0", "1"], ["0", "1.PNG"], None),
        (["IMG_1", "b"], ["img_1", "B"], None),
        (["cafe\u0301"], ["caf\u00e9"], None),
        (["Ulm/0"], ["ulm/0"], None),
    ],
)
def test_halves_of_other_names(tmp_path, images, masks, note):
    root = touch(tmp_path, *(f"images/{name}.png" for name in images), *(f"masks/{name}.png" for name in masks))
    expected = [(f"images/{image}.png", f"masks/{mask}.png") for image, mask in zip(images, masks)]
    assert sorted(names_of(root)["train"]) == sorted(expected)
    assert read_layout(root)["train"].notes == [note] * bool(note)


@pytest.mark.parametrize("images, masks", [(["f_1"], ["f_2"]), (["a_x"], ["a_y"]), (["1"], ["10"]), (["1"], ["1_2"])])
def test_halves_that_need_not_belong_together(tmp_path, images, masks):
    root = touch(tmp_path, *(f"images/{name}.png" for name in images), *(f"masks/{name}.png" for name in masks))
    assert len(messages(root)) == 2


@pytest.mark.parametrize(
    "image, mask, expected",
    [
        (
            "0.png",
            "0.jpg",
            "images/0.png: no label map of this name in masks: 0.jpg is there, but JPEG changes ids, use PNG",
        ),
        (
            "0.png",
            "0.gif",
            "images/0.png: no label map of this name in masks: 0.gif is there, but GIF may renumber ids, use PNG",
        ),
        (
            "0.png",
            "0.webp",
            "images/0.png: no label map of this name in masks: 0.webp is there, but WebP holds colors, use PNG",
        ),
        (
            "0.png",
            "0.npy",
            "images/0.png: no label map of this name in masks: 0.npy is there, expected one of .png .tif .tiff .bmp",
        ),
        ("0.heic", "0.png", "images: no images, but 0.heic; photos end in "),
    ],
)
def test_what_is_there_in_another_form_is_told(tmp_path, image, mask, expected):
    root = touch(tmp_path, f"images/{image}", f"masks/{mask}")
    if image.endswith("heic"):
        (root / "masks" / mask).unlink()
    (message,) = messages(root)
    assert message.replace(str(root / "masks"), "masks").startswith(expected)


def test_some_masks_with_an_ending_of_their_own(tmp_path):
    root = touch(tmp_path, "images/0.png", "images/1.png", "masks/0.png", "masks/1_mask.png", "masks/1_color.png")
    assert messages(root)[0].endswith("in masks: 1_color.png, 1_mask.png is there, under another name")


def test_names_that_are_no_text(tmp_path):
    """They are told in a form that a terminal shows, and the others are read."""
    root = touch(tmp_path, "images/train/0.png", "masks/train/0.png")
    for kind in ("images", "masks"):
        Path(os.fsdecode(os.fsencode(root / kind / "train") + b"/\xe9t\xe9.png")).touch()
    message = r"\xe9t\xe9.png: its name is no UTF-8, which tables of paths need: rename it"
    assert messages(root) == [f"images/train/{message}", f"masks/train/{message}"]
    assert len(read_layout(root)["train"].pairs) == 1
    with pytest.raises(ValueError, match="its name is no UTF-8"):
        load_segmentation_data(root, "train")


def test_find_split():
    assert find_split("x", ["Train", "VAL"], "validation") == "VAL"
    assert find_split("x", ["val", "validation"], "validation") == "validation"
    with pytest.raises(ValueError, match="x: 'validation' may be any of its splits val, valid, name one of them"):
        find_split("x", ["val", "valid"], "validation")
