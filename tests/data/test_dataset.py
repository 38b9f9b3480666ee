"""Every kind of source becomes the same two columns, with ids mapped exactly and the classes attached."""

import json
import pickle

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from offseg_hf.data.dataset import label_set_of, load_segmentation_data, sample_name
from offseg_hf.data.label_sets import LABEL_SETS
from offseg_hf.data.source import resolve_labels
from tests.data import trees


PLAIN_IDS = np.resize([0, 1, 2, 255, 255], (trees.SIZE[1], trees.SIZE[0]))


def ids_of(sample: dict) -> np.ndarray:
    assert sample["label"].mode == "L"
    return np.asarray(sample["label"])


@pytest.mark.parametrize("layout", trees.BENCHMARKS)
def test_benchmarks(tmp_path, layout):
    benchmark, write = trees.BENCHMARKS[layout]
    write(tmp_path)
    data = load_segmentation_data(tmp_path)
    assert isinstance(data, DatasetDict) and label_set_of(data) == LABEL_SETS[benchmark]
    for split, count in trees.SAMPLES.items():
        assert data[split].column_names == ["image", "label"] and len(data[split]) == count
        for index, sample in enumerate(data[split]):
            assert np.array_equal(ids_of(sample), trees.class_ids(benchmark, split, index))
            assert sample["image"].size == sample["label"].size == trees.SIZE


def test_one_split_by_any_of_its_names(tmp_path):
    trees.plain(tmp_path)
    for name in ("val", "validation"):
        data = load_segmentation_data(tmp_path, name)
        assert isinstance(data, Dataset) and len(data) == 2
    with pytest.raises(ValueError, match="no split 'test', it has train, validation"):
        load_segmentation_data(tmp_path, "test")


def test_classes_of_a_plain_folder(tmp_path):
    trees.plain(tmp_path)
    data = load_segmentation_data(tmp_path, "train")
    labels = label_set_of(data)
    assert labels.names == ("sky", "ground", "tree") and labels.palette[1] == (40, 50, 60)
    assert labels.name == tmp_path.name and labels.ignore_index == 255
    assert np.array_equal(ids_of(data[2]), PLAIN_IDS)


def test_labels_as_an_argument(tmp_path):
    trees.plain(tmp_path / "data")
    classes = tmp_path / "data" / "classes.json"
    classes.rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="expected a classes.json beside images/ and masks/"):
        load_segmentation_data(tmp_path / "data")
    data = load_segmentation_data(tmp_path / "data", "train", labels=tmp_path / "other.json")
    assert np.array_equal(ids_of(data[0]), PLAIN_IDS)

    trees.cityscapes(tmp_path / "cityscapes", converted=True)
    data = load_segmentation_data(tmp_path / "cityscapes", "train", labels="cityscapes")
    assert np.array_equal(ids_of(data[0]), trees.class_ids("cityscapes", "train", 0))
    with pytest.raises(ValueError, match="those of Cityscapes, not ADE20K"):
        load_segmentation_data(tmp_path / "cityscapes", labels="ade")
    with pytest.raises(ValueError, match="expected labels ade, cityscapes, cocostuff, context59 or the path"):
        resolve_labels("coco")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_what_datasets_does_to_it_keeps_ids_and_classes(tmp_path):
    """What `map` writes are ids, which are not to be mapped as the values in the files are."""
    trees.ade20k(tmp_path / "ade")
    data = load_segmentation_data(tmp_path / "ade", "train")
    expected = [trees.class_ids("ade", "train", index) for index in range(3)]
    flipped = data.map(lambda sample: {"label": sample["label"].transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)})
    twice = flipped.map(lambda sample: {"label": sample["label"].transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)})
    data.save_to_disk(tmp_path / "saved")
    variants = {
        "map": twice,
        "map of nothing": data.map(lambda sample: {"length": 1}),
        "pickle": pickle.loads(pickle.dumps(data)),
        "disk": load_segmentation_data(tmp_path / "saved"),
        "shards": data.flatten_indices().shard(1, 0),
        "again": load_segmentation_data(data),
        "stream": load_segmentation_data(tmp_path / "ade", "train", streaming=True),
    }
    for name, variant in variants.items():
        assert label_set_of(variant) == LABEL_SETS["ade"], name
        for sample, ids in zip(variant, expected, strict=True):
            assert np.array_equal(ids_of(sample), ids), name
    assert np.array_equal(ids_of(flipped[0]), expected[0][:, ::-1])
    shuffled = data.shuffle(seed=1)
    assert {ids_of(sample).tobytes() for sample in shuffled} == {ids.astype(np.uint8).tobytes() for ids in expected}
    assert np.array_equal(data.with_format("numpy")[1]["label"], expected[1])
    batches = DataLoader(data.with_format("torch"), num_workers=2, batch_size=None)
    assert [np.array_equal(batch["label"].squeeze(), ids) for batch, ids in zip(batches, expected)] == [True] * 3


def test_nothing_is_opened_before_it_is_read(tmp_path):
    trees.plain(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    data = load_segmentation_data(tmp_path)
    assert sample_name(data["train"], 1) == str(tmp_path / "images" / "train" / "1.png")
    with pytest.raises(PILImage.UnidentifiedImageError):
        data["train"][0]


def test_missing_halves_and_empty_splits_are_errors_at_once(tmp_path):
    trees.plain(tmp_path, {"train": 9, "val": 1})
    for index in range(8):
        (tmp_path / "masks" / "train" / f"{index}.png").unlink()
    with pytest.raises(ValueError, match=r"images/train/0\.png: no label map of this name") as error:
        load_segmentation_data(tmp_path)
    assert "and 3 more (`offseg data check` lists all)" in str(error.value)
    assert len(load_segmentation_data(tmp_path, "val")) == 1
    (tmp_path / "images" / "test").mkdir()
    with pytest.raises(ValueError, match="images/test: no images"):
        load_segmentation_data(tmp_path, "test")


def columns(values: list[np.ndarray], image: str = "image", label: str = "label") -> Dataset:
    photo = PILImage.new("RGB", trees.SIZE)
    cells = {image: [photo] * len(values), label: [PILImage.fromarray(v.astype(np.uint8)) for v in values]}
    return Dataset.from_dict(cells, features=Features({image: Image(), label: Image()}))


def test_columns_of_any_data_set(tmp_path):
    """A data set on this machine, with columns of other names, values as published, and one column too many."""
    ids = [trees.class_ids("context59", "train", index) for index in range(3)]
    data = columns([trees.raw_values("context59", i) for i in ids], "pixels", "annotation").add_column("n", [1, 2, 3])
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train-0.parquet")
    names = {"image_column": "pixels", "label_column": "annotation"}
    with pytest.raises(ValueError, match="no column 'image', it has pixels, annotation, n; pass .* image_column"):
        load_segmentation_data(tmp_path)
    with pytest.raises(ValueError, match="column 'n' must hold images, it is Value"):
        load_segmentation_data(tmp_path, image_column="pixels", label_column="n")
    with pytest.raises(ValueError, match="its classes are not known; pass labels"):
        load_segmentation_data(tmp_path, **names)
    for streaming in (False, True):
        loaded = load_segmentation_data(tmp_path, "train", labels="context59", streaming=streaming, **names)
        assert isinstance(loaded, IterableDataset if streaming else Dataset)
        assert label_set_of(loaded) == LABEL_SETS["context59"]
        for sample, expected in zip(loaded, ids, strict=True):
            assert list(sample) == ["image", "label"] and np.array_equal(ids_of(sample), expected)
    mapped = load_segmentation_data(tmp_path, "train", labels="context59", **names).map(lambda sample: sample)
    assert np.array_equal(ids_of(mapped[0]), ids[0])
    with pytest.raises(ValueError, match="no split 'test', it has train"):
        load_segmentation_data(tmp_path, "test", labels="context59", **names)


@pytest.mark.parametrize("change", [{}, {"more": 1}])
def test_streaming_data_that_does_not_say_what_its_columns_are(change):
    """As `map` of streaming data leaves it; its images may be opened already."""
    ids = [trees.class_ids("context59", "train", index) for index in range(7)]
    data = columns([trees.raw_values("context59", i) for i in ids]).to_iterable_dataset().map(lambda sample: change)
    assert data.features is None
    loaded = load_segmentation_data(data, labels="context59")
    for sample, expected in zip(loaded, ids, strict=True):
        assert list(sample) == ["image", "label"] and np.array_equal(ids_of(sample), expected)


def test_streaming_data_without_samples():
    with pytest.raises(ValueError, match="no column 'image'"):
        load_segmentation_data(IterableDataset.from_generator(lambda: iter(())), labels="context59")


def test_classes_json_beside_parquet(tmp_path):
    columns([np.resize([7, 3, 9, 0, 200], PLAIN_IDS.shape)]).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "classes.json").write_text(json.dumps(trees.PLAIN_CLASSES))
    assert np.array_equal(ids_of(load_segmentation_data(tmp_path, "train")[0]), PLAIN_IDS)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"expected classes.json with images/ and masks/ \(plain\), .*found nothing"):
        load_segmentation_data(tmp_path)
    trees.plain(tmp_path / "plain")
    with pytest.raises(
        ValueError, match="expected no image_column, which a folder of images does not have, got 'photo'"
    ):
        load_segmentation_data(tmp_path / "plain", image_column="photo")
    with pytest.raises(ValueError, match="the data has no column `label` with class names"):
        label_set_of(columns([PLAIN_IDS]))
