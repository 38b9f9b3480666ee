"""Of a data set on the Hub a split, a configuration or a revision; and what is there without a connection."""

import json
import re
from pathlib import Path

import pytest

from tests.local_hub.clients import WITHOUT_WAITING


pytest_plugins = ["tests.local_hub.fixtures"]

CLASSES = {"classes": ["sky", "tree", "road"]}
# Pixels are 10 times the number of the sample, and 100 more in the configuration "large"; "val" is how it is called.
PUBLISH = """
import json
import sys
import numpy as np
from datasets import Dataset, DatasetDict, Features, Image
from huggingface_hub import HfApi
from PIL import Image as Pictures

features, api = Features(image=Image(), label=Image()), HfApi()


def split(first, count):
    images = [Pictures.fromarray(np.full((8, 8, 3), first + 10 * index, np.uint8)) for index in range(count)]
    labels = [Pictures.fromarray(np.full((8, 8), index % 3, np.uint8)) for index in range(count)]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


for name in ("tester/parts", "tester/one"):
    api.create_repo(name, repo_type="dataset")
    if name == "tester/parts":
        api.upload_file(
            repo_id=name, repo_type="dataset", path_or_fileobj=sys.argv[1].encode(), path_in_repo="classes.json"
        )
    for config, first in {"small": 0, "large": 100}.items() if name == "tester/parts" else [("default", 0)]:
        DatasetDict(train=split(first, 3), val=split(first, 2)).push_to_hub(name, config)
api.create_tag("tester/parts", tag="v1", repo_type="dataset")
DatasetDict(train=split(50, 4), val=split(50, 1)).push_to_hub("tester/parts", "small")
"""
READ = """
import json
import sys
from offseg_hf.data.dataset import label_set_of, load_segmentation_data
from offseg_hf.utils.hub_errors import explain

results = []
for name, split, options in json.loads(sys.argv[1]):
    try:
        data = load_segmentation_data(name, split, **options)
        parts = data.items() if isinstance(data, dict) else [(str(data.split), data)]
        results.append({key: [sample["image"].getpixel((0, 0))[0] for sample in part] for key, part in parts})
    except ValueError as error:
        results.append([str(error), explain(error)])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def hub(local_hub):
    local_hub.run(PUBLISH, json.dumps(CLASSES))
    return local_hub


def read(hub, home: Path, *requests: tuple, script: str = READ, **environment) -> list:
    """What a process gets for each (name, split, options): the first pixels by split, or [error, its explanation]."""
    return json.loads(hub.run(script, json.dumps(requests), HF_HOME=home, **environment).splitlines()[-1])


def downloads(hub, start: int) -> tuple[set[str], int]:
    """Which parquet files were looked at since the log had `start` lines, by configuration and split, and how many
    contents were downloaded."""
    pattern = re.compile(r".*/resolve/\w+/(\w+/\w+)-\d+-of-\d+\.parquet")
    paths = [entry.path for entry in hub.log[start:]]
    return {match[1] for path in paths if (match := pattern.fullmatch(path))}, sum("/cdn/" in path for path in paths)


def test_one_split_is_downloaded(hub, tmp_path):
    start = len(hub.log)
    small = {"config_name": "small"}
    assert read(hub, tmp_path, ("tester/parts", "validation", small)) == [{"val": [50]}]
    assert downloads(hub, start) == ({"small/val"}, 1)
    start = len(hub.log)
    whole, again = read(hub, tmp_path, ("tester/parts", None, small), ("tester/parts", "val", small))
    assert whole == {"train": [50, 60, 70, 80], "val": [50]} and again == {"val": [50]}
    assert downloads(hub, start) == ({"small/train"}, 1)  # the other is there already


def test_configurations_and_revisions(hub, tmp_path):
    name, small = "tester/parts", {"config_name": "small"}
    tag = {"config_name": "small", "revision": "v1"}
    seen = read(
        hub,
        tmp_path,
        (name, "train", {"config_name": "large"}),
        (name, "train", tag),
        (name, "train", tag | {"streaming": True}),
        (name, "train", small | {"streaming": True}),
        (name, "val", {}),
        (name, "val", {"config_name": "huge"}),
        (name, "test", small),
        (name, "val", small | {"revision": "v2"}),
    )
    assert seen[:4] == [{"train": [100, 110, 120]}] + [{"train": [0, 10, 20]}] * 2 + [{"train": [50, 60, 70, 80]}]
    expected = "tester/parts: expected the name of one of its configurations, large, small, as config_name, got "
    assert [error for error, _ in seen[4:6]] == [expected + "None", expected + "huge"]
    assert seen[6][0] == "tester/parts: no split 'test', it has train, val"
    assert "the data set tester/parts has no such revision (" in seen[7][1] and "v2" in seen[7][1]


@pytest.mark.slow
def test_without_a_connection(hub, tmp_path):
    """What was downloaded is found, also by split or by revision; what is not known is the connection's fault."""
    small, labels = {"config_name": "small"}, tmp_path / "classes.json"
    labels.write_text(json.dumps(CLASSES))
    requests = [
        ("tester/parts", "train", small),
        ("tester/parts", "val", small),
        ("tester/parts", "train", small | {"revision": "v1"}),
        ("tester/one", "val", {"labels": str(labels)}),
    ]
    before = read(hub, tmp_path / "home", *requests)
    unknown = [("tester/one", "val", {}), ("tester/parts", "val", {"config_name": "large"})]
    hub.go_away()
    try:
        *offline, classes, other = read(hub, tmp_path / "home", *requests, *unknown, HF_HUB_OFFLINE="1")
        (away,) = read(hub, tmp_path / "home", unknown[0], script=WITHOUT_WAITING + READ)
    finally:
        hub.come_back()
    assert offline == before
    for message, _ in (classes, away):
        assert message.startswith("tester/one: its classes.json cannot be downloaded: ")
    assert "val of tester/parts (large) was not downloaded as a whole before" in other[0]
    assert "offline mode is on" in classes[1] and "offline mode is on" in other[1]
    assert "no connection to " in away[1]


def test_commands_say_the_same(hub, tmp_path):
    command = "import sys; from offseg_hf.cli import main; sys.argv = ['offseg', *sys.argv[1:]]; main()"
    part = ("--config-name", "small", "--revision", "v1", "--split", "val")
    assert hub.run(command, "data", "check", "tester/parts", *part).splitlines()[-1] == "val: 2 samples, 0 problems"
