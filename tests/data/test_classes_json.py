"""classes.json: what may be left out, what comes back, and what is wrong with it."""

import codecs
import json

import pytest

from offseg_hf.data.classes_json import classes_json, read_classes
from offseg_hf.data.label_sets import LABEL_SETS


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
    ("facts", "names", "values", "void"),
    [
        ({"classes": {"0": "sky", "1": "road"}}, ("sky", "road"), (0, 1), (255,)),  # as id2label of a model
        ({"classes": {"7": "sky", "3": "road"}}, ("road", "sky"), (3, 7), (255,)),
        ({"classes": {"0": "sky", "255": "road"}}, ("sky", "road"), (0, 255), ()),
        ({"classes": {"sky": 2, "road": 0, "car": 1}}, ("road", "car", "sky"), (0, 1, 2), (255,)),  # as label2id
        ({"classes": ["a", "b"], "values": [0, 255]}, ("a", "b"), (0, 255), ()),  # a class has what would be void
        ({"classes": ["a", "b"], "values": [1, 254], "ignore_index": 254}, ("a", "b"), (1, 254), ()),
        ({"classes": ["a", "b"], "void_value": None}, ("a", "b"), (0, 1), ()),
        ({"classes": ["a", "b"], "void_values": None}, ("a", "b"), (0, 1), ()),
        ({"classes": ["a", "b"], "void_value": [7, 255]}, ("a", "b"), (0, 1), (7, 255)),
        ({"classes": ["a", "b"], "void_values": 7}, ("a", "b"), (0, 1), (7,)),
        ({"classes": ["a", "b"], "values": None, "palette": None, "name": None}, ("a", "b"), (0, 1), (255,)),
    ],
)
def test_the_obvious_meaning(path, facts, names, values, void):
    path.write_text(json.dumps(facts))
    labels = read_classes(path)
    assert (labels.names, labels.raw_ids, labels.void_ids) == (names, values, void)
    assert labels.raw_to_train_id() == dict.fromkeys(void, labels.ignore_index) | {v: i for i, v in enumerate(values)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark"])
def test_any_editor(path, encoding):
    text = json.dumps({"classes": ["Straße", "Café"]}, ensure_ascii=False)
    path.write_bytes(codecs.BOM_UTF16_LE + text.encode("utf-16-le") if "mark" in encoding else text.encode(encoding))
    assert read_classes(path).names == ("Straße", "Café")


def test_home(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    path.write_text(json.dumps({"classes": ["a", "b"]}))
    assert read_classes("~/classes.json").names == ("a", "b")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "no 'classes'"),
        ([], "classes.json: got an empty list where an object"),
        (["a", "b"], "where an object with the key `classes` belongs"),
        ({"0": "a", "1": "b"}, "no 'classes': put these names below that key"),
        ({"classes": "abc"}, "must be a list of names, got one text"),
        ({"classes": None}, "must be a list of names, got null"),
        ({"classes": 3}, "must be a list of names, got a number"),
        ({"classes": []}, "must be a list of names, got an empty list"),
        ({"classes": {}}, "must be a list of names, {"),
        ({"classes": ["a", " "]}, "must be a list of names"),
        ({"classes": ["a", "\ud800"]}, "must be a list of names"),
        ({"classes": [{"name": "a"}]}, "must be a list of names, got a list with something else in it"),
        ({"classes": {"0": "a", "b": 1}}, "an object of others"),
        ({"classes": {"a": True, "b": 1}}, "an object of others"),
        ({"classes": {"0": "a", "00": "b"}}, "`values` must all differ"),
        ({"classes": {"0": "a", "1": "b"}, "values": [1, 0]}, "`values` must be left out"),
        ({"classes": ["a", "b"], "value": [1, 0]}, r"unknown key 'value' \(did you mean 'values'\?\)"),
        ({"classes": ["a", "b"], "ignore_label": 0}, r"unknown key 'ignore_label' \(did you mean 'void_value'\?\)"),
        ({"classes": ["a", "b"], "colors": []}, r"unknown key 'colors' \(did you mean 'palette'\?\)"),
        ({"classes": ["a", "b"], "x": []}, "unknown key 'x' .there are classes, palette, values"),
        ({"classes": ["a", "b"], "void_value": 7, "void_values": [8]}, "are two words for one thing"),
        ({"classes": ["a", "b"], "void_value": "255"}, "`void_value` must be an integer"),
        ({"classes": ["a", "b"], "void_value": 1}, "must all differ, 1 is in both"),
        ({"classes": ["a", "b"], "values": "01"}, "must be 2 integers"),
        ({"classes": ["a", "b"], "values": [True, False]}, "must be 2 integers"),
        ({"classes": ["a", "b"], "palette": "abab"}, "must be 2 colors"),
        ({"classes": ["a", "b"], "palette": [1, 2]}, "must be 2 colors"),
        ({"classes": ["a", "b"], "ignore_index": None}, "`ignore_index` must lie beyond"),
        ({"classes": ["a", "b"], "name": 3}, "`name` and `title` must be texts"),
        ({"classes": ["a", "a"]}, "must be different names, 'a' is there twice"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "must be 2 colors"),
        ({"classes": ["a"], "palette": [[0, 0, 256]]}, "three integers in 0..255"),
        ({"classes": ["a", "b"], "values": [1]}, "must be 2 integers"),
        ({"classes": ["a", "b"], "values": [1, 255], "void_value": 255}, "must all differ, 255 is in both"),
        ({"classes": [str(i) for i in range(256)]}, "must lie beyond the 256 classes"),
    ],
)
def test_mistakes(path, facts, message):
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=message) as error:
        read_classes(path)
    assert str(path) in str(error.value) and "expected {" in str(error.value) and "\n" not in str(error.value)


def test_a_key_twice(path):
    path.write_text('{"classes": {"0": "a", "0": "b"}}')
    with pytest.raises(ValueError, match="classes.json: the key '0' is there twice"):
        read_classes(path)


def test_no_json(path):
    path.write_text("sky, road")
    with pytest.raises(ValueError, match="classes.json: expected JSON"):
        read_classes(path)
    path.write_bytes('{"classes": ["Straße"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match="classes.json: expected JSON"):
        read_classes(path)
