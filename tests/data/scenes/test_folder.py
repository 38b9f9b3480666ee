"""Generated scenes as a data set: reproducible, and read back as they were rendered."""

import numpy as np
import pytest

from offseg_hf.data.dataset import label_set_of, load_segmentation_data
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene


SIZE = (48, 32)


def test_written_and_read(tmp_path):
    seen = []
    write_scenes(tmp_path / "a", train=2, val=1, size=SIZE, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    data = load_segmentation_data(tmp_path / "a")
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "validation": 1}
    labels = label_set_of(data)
    assert (labels.names, labels.palette) == (SCENE_LABELS.names, SCENE_LABELS.palette)
    image, label_map = render_scene(1, SIZE)
    assert np.array_equal(data["train"][1]["image"], image) and np.array_equal(data["train"][1]["label"], label_map)
    assert not np.array_equal(data["train"][0]["image"], data["validation"][0]["image"])


def test_the_same_files_every_time_and_with_any_number_of_workers(tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        write_scenes(tmp_path / name, train=2, val=1, size=SIZE, workers=workers)
    files = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    assert len(files) == 7
    assert files == {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        write_scenes(tmp_path, train=1, val=1)
    with pytest.raises(ValueError, match="at least one in all, got train 0, val 0"):
        write_scenes(tmp_path / "new", train=0, val=0)
