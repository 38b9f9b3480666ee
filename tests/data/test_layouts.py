"""Pairs are found in every layout, and what has no pair is named."""

import json
from pathlib import Path

import pytest

from offseg_hf.data.layouts import read_layout
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
