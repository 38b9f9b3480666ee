"""A data set on the Hub: packed, and the same when it comes back, for clients with and without this package."""

import json

import numpy as np
import pytest

from tests.data import trees


pytest_plugins = ["tests.local_hub.fixtures"]

ROUND_TRIPS = """
import json
import sys
import numpy as np
from datasets import load_dataset
from huggingface_hub import HfApi, hf_hub_download
from offseg_hf.data.dataset import label_set_of, load_segmentation_data, sample_name
from offseg_hf.data.push import push_segmentation_data


def same(a, b):
    return all(
        np.array_equal(x[column], y[column]) for x, y in zip(a, b, strict=True) for column in ("image", "label")
    )


def round_trip(folder, repository, private):
    before = load_segmentation_data(folder)
    url = push_segmentation_data(folder, repository, private=private)
    after = load_segmentation_data(repository)
    stream = load_segmentation_data(repository, "val", streaming=True)
    plain = load_dataset(repository, split="train")
    labels = label_set_of(after)
    info = HfApi().dataset_info(repository)
    return {
        "url": url,
        "same": [same(before[name], after[name]) for name in before],
        "stream": same(before["validation"], stream),
        "mapped": same(before["train"], after["train"].map(lambda sample: sample)),
        "plain": [str(plain.features["label"]), np.asarray(plain[0]["label"]).tolist()],
        "name": labels.name,
        "classes": [list(labels.names), list(map(list, labels.palette)), labels.ignore_index],
        "file": sample_name(after["train"], 1),
        "card": info.card_data.to_dict(),
        "private": info.private,
        "files": [file.rfilename for file in info.siblings],
        "id2label": json.load(open(hf_hub_download(repository, "id2label.json", repo_type="dataset"))),
    }


seen = {
    "plain": round_trip(sys.argv[1] + "/plain", "tester/plain", True),
    "cityscapes": round_trip(sys.argv[1] + "/cityscapes", "tester/cityscapes", False),
}
try:
    load_segmentation_data("tester/nothing")
except ValueError as error:
    seen["nothing"] = str(error)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(local_hub, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    trees.plain(folder / "plain")
    trees.cityscapes(folder / "cityscapes")
    return json.loads(local_hub.run(ROUND_TRIPS, folder).splitlines()[-1])


@pytest.mark.parametrize("name", ["plain", "cityscapes"])
def test_what_was_pushed_comes_back(local_hub, seen, name):
    trip = seen[name]
    assert trip["url"] == f"{local_hub.endpoint}/datasets/tester/{name}"
    assert trip["same"] == [True, True] and trip["stream"] and trip["mapped"]
    assert trip["name"] == name
    assert trip["private"] == (name == "plain")
    assert trip["card"]["task_categories"] == ["image-segmentation"]
    assert [split["num_examples"] for split in trip["card"]["dataset_info"]["splits"]] == [3, 2]
    assert {"classes.json", "id2label.json", "README.md"} < set(trip["files"])


def test_id2label_of_the_examples(seen):
    """As transformers' run_semantic_segmentation.py downloads it."""
    names = seen["cityscapes"]["classes"][0]
    assert seen["cityscapes"]["id2label"] == {str(index): name for index, name in enumerate(names)}


def test_names_palette_and_ignore_index(seen):
    plain, cityscapes = seen["plain"]["classes"], seen["cityscapes"]["classes"]
    assert plain == [trees.PLAIN_CLASSES["classes"], trees.PLAIN_CLASSES["palette"], 255]
    assert len(cityscapes[0]) == 19 and cityscapes[0][0] == "road" and cityscapes[1][0] == [128, 64, 128]


def test_other_clients_see_ordinary_images_of_ids(seen):
    feature, ids = seen["cityscapes"]["plain"]
    assert feature == "Image(mode=None, decode=True)"
    assert np.array_equal(ids, trees.class_ids("cityscapes", "train", 0))
    assert seen["cityscapes"]["file"] == "ulm_000001_000019_leftImg8bit.png"


def test_a_repository_that_is_not_there(seen):
    assert seen["nothing"].startswith("tester/nothing: no such folder, and Dataset 'tester/nothing' doesn't exist")
