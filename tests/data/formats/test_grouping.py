"""A split where there is none."""

import pytest

from offseg_hf.data.formats.grouping import group_of, split_by_groups


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("0001TP_006690", "0001TP"),
        ("Seq05VD_f00000", "Seq05VD_f"),
        ("drive/frame (12)", "drive/frame"),
        ("1f2e3d4c-park_01", "park"),
        ("park_01_jpg.rf.0a1b2c", "park"),
        ("city", "city"),
        ("day 1/0001", "day 1/"),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


def test_a_video_is_on_one_side():
    names = [f"video{video}_{frame:04d}" for video in "abcdefgh" for frame in range(10)]
    splits, told = split_by_groups(names)
    sides = {group_of(name): set() for name in names}
    for name, split in splits.items():
        sides[group_of(name)].add(split)
    assert all(len(split) == 1 for split in sides.values())
    assert sorted(splits.values()).count("validation") == 10 and "1 of 8" in told
    assert split_by_groups(names[::-1])[0] == splits


def test_one_group_is_cut_once():
    names = [f"frame_{number}" for number in range(10)]
    splits, told = split_by_groups(names[::-1])
    assert [name for name in names if splits[name] == "validation"] == ["frame_8", "frame_9"]
    assert "scores are too good" in told


def test_names_without_numbers():
    names = [f"place {letter}" for letter in "abcdefghijklmnopqrst"]
    splits, _ = split_by_groups(names)
    assert sorted(splits.values()).count("validation") == 4


def test_two_large_groups():
    """The smaller one if it is not most of the photos; a cut otherwise."""
    names = [f"a_{number}" for number in range(6)] + [f"b_{number}" for number in range(4)]
    splits, _ = split_by_groups(names)
    assert {name[0] for name, split in splits.items() if split == "validation"} == {"b"}
    names = [f"a_{number}" for number in range(5)] + [f"b_{number}" for number in range(5)]
    splits, told = split_by_groups(names)
    assert [name for name, split in splits.items() if split == "validation"] == ["b_3", "b_4"]
    assert "too large" in told


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_to_split(number):
    assert [*split_by_groups(["a_1"][:number])[0].values()] == ["train"][:number]
