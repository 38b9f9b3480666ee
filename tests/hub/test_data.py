"""Data sets of parquet files on the Hub: downloaded and streamed, by LFS and by xet, with lost connections too."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.local_hub import MODES
from tests.local_hub.faults import CutDownload


pytest_plugins = ["tests.local_hub.fixtures"]

SAMPLES = {"train": 5, "validation": 3}
SIZE = (96, 128)  # height, width
CLASSES = {
    "classes": ["sky", "tree", "road"],
    "palette": [[0, 0, 255], [0, 255, 0], [90, 90, 90]],
    "ignore_index": 255,
}
DATA = {"lfs": "/cdn/.*", "xet": "/xet/data/.*"}  # paths that contents come from


def image(split: str, index: int) -> np.ndarray:
    return np.random.default_rng([index, split == "train"]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def label(split: str, index: int) -> np.ndarray:
    label = np.random.default_rng([index, split == "train"]).integers(0, 4, SIZE, dtype=np.uint8)
    return np.where(label == 3, 255, label).astype(np.uint8)


# Someone else's data set, made without this package: of images and their masks, and a classes.json.
PUBLISH = """
import sys
import numpy as np
from datasets import Dataset, DatasetDict, Features, Image
from huggingface_hub import HfApi
from PIL import Image as Pictures

folder, name = sys.argv[1:]
features = Features(image=Image(), label=Image())
splits = {}
for split in ("train", "validation"):
    arrays = np.load(f"{folder}/{split}.npz")
    columns = {column: [Pictures.fromarray(array) for array in arrays[column]] for column in ("image", "label")}
    splits[split] = Dataset.from_dict(columns, features=features)
DatasetDict(splits).push_to_hub(name, private=True)
HfApi().upload_file(
    repo_id=name, repo_type="dataset", path_or_fileobj=f"{folder}/classes.json", path_in_repo="classes.json"
)
"""
READ = """
import json
import sys
import numpy as np
from datasets import load_dataset
from offseg_hf.data.dataset import label_set_of, load_segmentation_data
from offseg_hf.utils.hub_errors import is_temporary

folder, name, tries = sys.argv[1:]
arrays = {split: np.load(f"{folder}/{split}.npz") for split in ("train", "validation")}


def is_same(data, split):
    return [
        [np.array_equal(sample[column], array) for sample, array in zip(data, arrays[split][column], strict=True)]
        for column in ("image", "label")
    ]


failed = []
for _ in range(int(tries)):
    try:
        load_segmentation_data(name)
    except Exception as error:
        failed.append("for a while" if is_temporary(error) else repr(error))
data = load_segmentation_data(name)
print(json.dumps({
    "failed": failed,
    "names": list(label_set_of(data).names),
    "downloaded": {split: is_same(part, split) for split, part in data.items()},
    "streamed": is_same(load_segmentation_data(name, "train", streaming=True), "train"),
    "plain": is_same(load_dataset(name, split="validation"), "validation"),
    "plain stream": is_same(load_dataset(name, split="validation", streaming=True), "validation"),
}))
"""
STREAM = """
import json
import sys
import numpy as np
from datasets import config
from offseg_hf.data.dataset import load_segmentation_data

config.STREAMING_READ_RETRY_INTERVAL = 0.1  # seconds, of five
arrays = np.load(f"{sys.argv[1]}/train.npz")
stream = load_segmentation_data(sys.argv[2], "train", streaming=True)
pairs = zip(stream, arrays["image"], strict=True)
print(json.dumps([np.array_equal(sample["image"], array) for sample, array in pairs]))
"""


@pytest.fixture(scope="module")
def folder(local_hub, tmp_path_factory) -> Path:
    """The arrays; they are on the Hub as tester/lfs and tester/xet."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in SAMPLES.items():
        images, labels = ([make(split, index) for index in range(count)] for make in (image, label))
        np.savez(folder / f"{split}.npz", image=images, label=labels)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    for mode, environment in MODES.items():
        local_hub.run(PUBLISH, folder, f"tester/{mode}", **environment)
    return folder


@pytest.fixture(autouse=True)
def no_faults(local_hub):
    yield
    local_hub.faults.clear()
    local_hub.come_back()


@pytest.mark.parametrize("mode", ["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def test_comes_back(local_hub, folder, tmp_path, mode):
    """After a connection that was lost: in the same call by xet, in the next one by LFS."""
    reset = CutDownload(after=10_000, reset=True)
    fault = local_hub.faults.add("GET", DATA[mode], reset)
    tries = "1" if mode == "lfs" else "0"
    seen = json.loads(
        local_hub.run(READ, folder, f"tester/{mode}", tries, HF_HOME=tmp_path, **MODES[mode]).splitlines()[-1]
    )
    assert fault.happened.wait(5)
    assert seen["failed"] == ["for a while"] * int(tries)
    assert seen["names"] == CLASSES["classes"]
    for split, count in SAMPLES.items():
        assert seen["downloaded"][split] == [[True] * count] * 2
    assert seen["streamed"] == [[True] * SAMPLES["train"]] * 2
    assert seen["plain"] == seen["plain stream"] == [[True] * SAMPLES["validation"]] * 2


def test_stream_goes_on(local_hub, folder, tmp_path):
    """Where the connection was lost, in the same loop."""
    fault = local_hub.faults.add("GET", DATA["lfs"], CutDownload(after=10_000, reset=True), times=2)
    seen = json.loads(local_hub.run(STREAM, folder, "tester/lfs", HF_HOME=tmp_path).splitlines()[-1])
    assert fault.happened.wait(5)
    assert seen == [True] * SAMPLES["train"]
