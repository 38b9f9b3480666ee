"""The label sets against facts stated elsewhere: counts, official ids, repeated colors, well-known rows."""

import pytest

from offseg_hf.data.label_sets import LABEL_SETS


# classes, different colors, and what happens to a few values of the annotation files
FACTS = {
    "ade": (150, 149, {0: 255, 1: 0, 7: 6, 13: 12, 150: 149}),
    "cityscapes": (19, 19, {0: 255, 3: 255, 7: 0, 11: 2, 26: 13, 29: 255, 33: 18}),
    "cocostuff": (171, 162, {0: 0, 10: 10, 12: 11, 91: 80, 181: 170, 255: 255}),
    "context59": (59, 58, {0: 255, 1: 0, 59: 58}),
}


def test_the_four_benchmarks():
    assert list(LABEL_SETS) == list(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_sizes_and_ids(name):
    labels = LABEL_SETS[name]
    num_classes, num_colors, raw_to_train = FACTS[name]
    assert len(labels) == len(labels.names) == len(labels.palette) == len(labels.raw_ids) == num_classes
    assert len(set(labels.palette)) == num_colors
    mapping = labels.raw_to_train_id()
    assert {raw: mapping[raw] for raw in raw_to_train} == raw_to_train
    assert sorted(set(mapping.values()) - {labels.ignore_index}) == list(range(num_classes))


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=lambda labels: labels.name)
def test_names_are_clean_unique_and_inverse(labels):
    assert all(name == name.strip() and name for name in labels.names)
    assert len(set(labels.names)) == len(labels)
    assert {index: name for name, index in labels.label2id().items()} == labels.id2label()
    assert list(labels.id2label()) == list(range(len(labels)))


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=lambda labels: labels.name)
def test_reduce_zero_label_is_what_the_ids_say(labels):
    minus_one = {0: labels.ignore_index} | {i + 1: i for i in range(len(labels))}
    assert labels.reduce_zero_label == (labels.raw_to_train_id() == minus_one)


def test_the_unused_ids_of_coco_are_unknown():
    unused = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert set(range(182)) - set(LABEL_SETS["cocostuff"].raw_to_train_id()) == unused


@pytest.mark.parametrize(
    ("name", "label", "index", "color"),
    [
        ("ade", "wall", 0, (120, 120, 120)),
        ("ade", "bed", 7, (204, 5, 255)),
        ("ade", "flag", 149, (92, 0, 255)),
        ("cityscapes", "road", 0, (128, 64, 128)),
        ("cityscapes", "bicycle", 18, (119, 11, 32)),
        ("cocostuff", "person", 0, (0, 192, 64)),
        ("cocostuff", "wood", 170, (64, 64, 0)),
        ("context59", "aeroplane", 0, (180, 120, 120)),
        ("context59", "wood", 58, (31, 0, 255)),
    ],
)
def test_known_rows(name, label, index, color):
    labels = LABEL_SETS[name]
    assert (labels.names[index], labels.palette[index]) == (label, color)
