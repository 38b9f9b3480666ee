"""The stream of training samples: the same whoever reads it, however it is cut, wherever it begins."""

import itertools
import pickle

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from torch.utils.data import DataLoader

from offseg_hf.data.label_image import LabelImage
from offseg_hf.data.label_sets import LabelSet, distinct_colors
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.data.transforms import TrainingTransform
from tests.comparison import assert_same_weights
from tests.processes import run_python


TRANSFORM = TrainingTransform(crop_size=(16, 16), scale=(64, 16))
SAMPLES = 5
LABELS = LabelSet(
    name="seven",
    title="Seven classes",
    names=tuple("abcdefg"),
    palette=distinct_colors(7),
    raw_ids=tuple(range(7)),
    void_ids=(100,),
    reduce_zero_label=False,
    ignore_index=100,
)


LABEL = LabelImage.of(LABELS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> datasets.Dataset:
    folder = tmp_path_factory.mktemp("photos")
    rows = {"image": [], "label": []}
    for index in range(SAMPLES):
        rng = np.random.default_rng(index)
        for column, shape, top in (("image", (20, 24, 3), 256), ("label", (20, 24), 7)):
            path = folder / f"{column}-{index}.png"
            Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(path)
            rows[column].append(str(path))
    return datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(), label=LABEL))


def read(data, count: int, start: int = 0, **loader) -> torch.Tensor:
    """Pixels and labels of the samples from `start` (batches, 2, values)."""
    sampler = TrainingSampler(len(data), seed=3, start=start)
    batches = DataLoader(TrainingSet(data, TRANSFORM, seed=3), batch_size=2, sampler=sampler, **loader)
    batches = itertools.islice(batches, count // 2)
    return torch.stack([torch.cat([value.flatten(1) for value in batch.values()], dim=1) for batch in batches])


@pytest.fixture(scope="module")
def expected(data) -> torch.Tensor:
    return read(data, 4 * SAMPLES)


@pytest.mark.parametrize(
    "loader",
    [
        {"num_workers": 1},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
        pytest.param({"num_workers": 1, "multiprocessing_context": "spawn"}, marks=pytest.mark.slow),
    ],
)
def test_workers_do_not_matter(data, expected, loader):
    assert torch.equal(read(data, 4 * SAMPLES, **loader), expected)


def test_neither_global_generators_nor_order_matter(data, expected):
    np.random.seed(9)
    torch.manual_seed(9)
    samples = TrainingSet(data, TRANSFORM, seed=3)
    sampler = TrainingSampler(SAMPLES, seed=3)
    for position in reversed(range(4)):
        sample = samples[sampler.key(position)]
        row = torch.cat([value.flatten() for value in sample.values()])
        assert torch.equal(row, expected[position // 2][position % 2])


@pytest.mark.parametrize("start", [2, 6, 10, 14])
def test_resuming_continues(data, expected, start):
    assert torch.equal(read(data, 4 * SAMPLES - start, start), expected[start // 2 :])


def test_seed_epoch_and_index_matter(data):
    first, other = (TrainingSet(data, TRANSFORM, seed=seed) for seed in (0, 1))
    samples = [first[0, 0], first[1, 0], first[0, 1], first[1, 1], other[0, 0], other[1, 0]]
    assert len({sample["pixel_values"].numpy().tobytes() for sample in samples}) == len(samples)


def test_every_epoch_is_a_new_permutation():
    keys = list(itertools.islice(TrainingSampler(50, seed=1), 200))
    epochs = [[index for epoch, index in keys if epoch == wanted] for wanted in range(4)]
    assert [epoch for epoch, _ in keys] == np.repeat(range(4), 50).tolist()
    assert all(sorted(indices) == list(range(50)) for indices in epochs)
    assert len({*map(tuple, epochs), tuple(range(50))}) == 5
    assert next(iter(TrainingSampler(50, seed=2))) != keys[0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_one_order(processes):
    batch, start = 12, 24
    order = list(itertools.islice(TrainingSampler(7, seed=1), start, start + 4 * batch))
    parts = [
        list(itertools.islice(TrainingSampler(7, 1, start, process, processes), 4 * batch // processes))
        for process in range(processes)
    ]
    for first in range(0, 4 * batch, batch):  # every iteration, together the same global batch
        own = slice(first // processes, (first + batch) // processes)
        assert sorted(key for part in parts for key in part[own]) == sorted(order[first : first + batch])


def test_key_is_the_stream():
    sampler = TrainingSampler(7, seed=1)
    keys = list(itertools.islice(sampler, 30))
    assert [sampler.key(position) for position in range(30)] == keys
    assert [pickle.loads(pickle.dumps(sampler)).key(position) for position in reversed(range(30))] == keys[::-1]
    assert list(itertools.islice(sampler, 30)) == keys  # from its start again


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_loaders_that_give_indices(data, workers):
    """As accelerate's, which tells the epoch: the samples of each epoch are those of the training loop."""
    samples = TrainingSet(data, TRANSFORM, seed=3)
    loader = Accelerator(cpu=True).prepare(DataLoader(samples, batch_size=2, shuffle=True, **workers))
    for epoch in range(3):
        seen = {values.numpy().tobytes() for batch in loader for values in batch["pixel_values"]}
        assert seen == {samples[epoch, index]["pixel_values"].numpy().tobytes() for index in range(SAMPLES)}


def shards(data, **options) -> list[DataLoader]:
    """What the two processes have in which accelerate has prepared a loader."""
    parts = []
    for process in range(2):
        samples = TrainingSet(data, TRANSFORM, seed=3)
        loader = DataLoader(samples, shuffle=True, generator=torch.Generator().manual_seed(0))
        parts.append(prepare_data_loader(loader, num_processes=2, process_index=process, **options))
    return parts


def test_loaders_of_several_processes(data):
    samples = TrainingSet(data, TRANSFORM, seed=3)
    loaders = shards(data, use_seedable_sampler=False)
    for epoch in range(2):
        seen = {batch["pixel_values"][0].numpy().tobytes() for loader in loaders for batch in loader}
        assert seen == {samples[epoch, index]["pixel_values"].numpy().tobytes() for index in range(SAMPLES)}
    rest = skip_first_batches(shards(data, use_seedable_sampler=False)[0], 1)
    rest.set_epoch(1)
    seen = [batch["pixel_values"][0].numpy().tobytes() for batch in rest]
    assert len(seen) == 2 and all(
        pixels in {samples[1, i]["pixel_values"].numpy().tobytes() for i in range(SAMPLES)} for pixels in seen
    )


def test_loaders_that_do_not_tell_the_epoch(data):
    """As accelerate's of several processes by default: they tell it to their samplers alone."""
    with pytest.raises(TypeError, match="Trainer takes, in several processes or to resume, accelerator_config="):
        next(iter(shards(data, use_seedable_sampler=True)[0]))


def test_padding_is_what_the_data_ignores(data):
    small = TrainingTransform(crop_size=(32, 32), photometric=False)
    sample = TrainingSet(data, small)[0, 0]
    assert (sample["labels"] == 100).sum() == 32 * 32 - 20 * 24
    assert (sample["labels"][20:] == 100).all() and (sample["labels"][:, 24:] == 100).all()


def test_pickle(data, tmp_path):
    """In another process, as that of a loader that does not fork."""
    samples = TrainingSet(data, TRANSFORM, seed=3)
    (tmp_path / "samples.pickle").write_bytes(pickle.dumps(samples))
    script = (
        "import pickle, torch\n"
        "samples = pickle.load(open('samples.pickle', 'rb'))\n"
        "torch.save((len(samples), samples[2, 1]), 'sample.pt')\n"
    )
    run_python(script, cwd=tmp_path)
    length, sample = torch.load(tmp_path / "sample.pt")
    assert length == SAMPLES
    assert_same_weights(sample, samples[2, 1])


def test_errors_name_the_file(data, tmp_path):
    Image.new("L", (7, 9)).save(tmp_path / "small.png")
    labels = [*data.cast_column("label", datasets.Image(decode=False))["label"]]
    labels[1] = {"path": str(tmp_path / "small.png"), "bytes": None}
    broken = data.remove_columns("label").add_column("label", labels).cast_column("label", LABEL)
    samples = TrainingSet(broken, TRANSFORM)
    assert samples[0, 0]
    with pytest.raises(ValueError, match=r"small\.png: the label map is 7x9, but its image .*image-1\.png is 24x20$"):
        samples[0, 1]


def test_wrong_arguments(data):
    with pytest.raises(TypeError, match=r"\(epoch, index\) as a key, got 0 before .* TrainingSampler .* Trainer"):
        TrainingSet(data, TRANSFORM)[0]
    with pytest.raises(ValueError, match="no column `label` with class names"):
        TrainingSet(data.cast_column("label", datasets.Image()), TRANSFORM)
    with pytest.raises(ValueError, match="columns image and label, got image"):
        TrainingSet(data.remove_columns("label"), TRANSFORM)
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match="whole number from 0 as seed"):
            TrainingSet(data, TRANSFORM, seed=seed)
        with pytest.raises(ValueError, match="whole number from 0 as seed"):
            TrainingSampler(5, seed=seed)
    with pytest.raises(ValueError, match="empty data set"):
        TrainingSampler(0)
    with pytest.raises(ValueError, match="process_index from 0 to 1, got 2"):
        TrainingSampler(5, process_index=2, num_processes=2)
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 3"):
        TrainingSampler(5, start=3, num_processes=2)
