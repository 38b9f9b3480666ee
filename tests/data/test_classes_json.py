"""classes.json: what may be left out, what comes back, and what is wrong with it."""

import json

import pytest

from offseg_hf.data.classes_json import classes_json, read_classes
from offseg_hf.data.labels import LABEL_SETS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "classes.json"


def test_names_are_enough(path):
    path.write_text(json.dumps({"classes": ["a", "b", "c"]}))
    labels = read_classes(path)
    assert (labels.names, labels.raw_ids, labels.void_ids) == (("a", "b", "c"), (0, 1, 2), (255,))
    assert len(set(labels.palette)) == 3 and labels.ignore_index == 255 and not labels.reduce_zero_label


def test_counting_from_one(path):
    path.write_text(json.dumps({"classes": ["a", "b"], "values": [1, 2], "void_value": 0}))
    assert read_classes(path).reduce_zero_label


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS)
def test_written_and_read(path, labels):
    path.write_text(classes_json(labels), encoding="utf-8")
    read = read_classes(path)
    assert (read.name, read.title, read.names, read.palette) == (
        labels.name,
        labels.title,
        labels.names,
        labels.palette,
    )
    assert (read.raw_ids, read.void_ids) == (tuple(range(len(labels))), (255,))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "no 'classes'"),
        ([], "classes.json: "),
        ({"classes": ["a", "a"]}, "must be different names"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "must be 2 colours"),
        ({"classes": ["a"], "palette": [[0, 0, 256]]}, "three integers in 0..255"),
        ({"classes": ["a", "b"], "values": [1]}, "must be 2 integers"),
        ({"classes": ["a", "b"], "values": [1, 255]}, "must all differ"),
        ({"classes": [str(i) for i in range(256)]}, "must lie beyond the 256 classes"),
    ],
)
def test_mistakes(path, facts, message):
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=message) as error:
        read_classes(path)
    assert str(path) in str(error.value) and "expected {" in str(error.value)


def test_no_json(path):
    path.write_text("sky, road")
    with pytest.raises(ValueError, match="classes.json: expected JSON"):
        read_classes(path)
