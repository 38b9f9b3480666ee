"""A function of the user's in the augmentation."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from offseg_hf.data.dataset import load_data
from offseg_hf.data.own_function import load_function
from offseg_hf.data.source import DataSource
from offseg_hf.data.training_set import TrainingSampler, TrainingSet
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.training.batches import NamedSamples
from offseg_hf.training.recipe import load_recipe
from tests.training.tiny import write_own


FUNCTIONS = """
import random
import numpy, torch

def darken(image, labels):
    assert image.dtype == numpy.uint8 and image.shape == (*labels.shape, 3)
    image //= 2
    labels[:, :3] = 2
    image[0, 0] = random.randrange(256), numpy.random.randint(256), torch.randint(256, ()).item()
    return image, labels

def nothing(image, labels): pass
def fails(image, labels): raise KeyError("lost")
def floats(image, labels): return image / 255, labels
def wide(image, labels): return image, labels.astype(numpy.int64)
def smaller(image, labels): return image[:-1], labels[:-1]
number = 3
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Of one photo, in a folder with a module `mine`."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    load_function.cache_clear()
    yield load_data(DataSource(write_own(tmp_path / "data", train=1, val=1)), "train")
    sys.modules.pop("mine", None)
    load_function.cache_clear()


def transform(**settings) -> TrainingTransform:
    return TrainingTransform(**{"crop_size": (48, 48), "flip": 0, "photometric": False} | settings)


def test_it_gets_crops_and_gives_them_back(data):
    plain, sample = (TrainingSet(data, transform(extra=extra))[0, 0] for extra in (None, "mine:darken"))
    assert (sample["labels"][:, :3] == 2).all() and torch.equal(sample["labels"][:, 3:], plain["labels"][:, 3:])
    mean = torch.tensor(transform().mean)[:, None, None]
    std = torch.tensor(transform().std)[:, None, None]
    before, after = ((values["pixel_values"] * std + mean).round()[:, 1:] for values in (plain, sample))
    assert torch.equal(after, before // 2)


def test_what_it_draws_is_a_function_of_the_sample(data):
    """In whatever process; and nothing else draws other numbers for it."""
    samples = TrainingSet(data, transform(extra="mine:darken"))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first, other = samples[0, 0]["pixel_values"], samples[1, 0]["pixel_values"]
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert (first[:, 0, 0] != other[:, 0, 0]).all()
    loader = DataLoader(NamedSamples(samples), batch_size=1, sampler=TrainingSampler(1), num_workers=1)
    assert torch.equal(next(iter(loader))["pixel_values"][0], first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"extra=mine:nothing: expected a tuple \(image, label map\) from it, got NoneType"),
        ("fails", r"extra=mine:fails failed: KeyError: 'lost'"),
        ("floats", r"expected the image that it was given, uint8 of shape \(48, 48, 3\), got float64 of shape"),
        ("wide", r"expected the label map that it was given, uint8 of shape \(48, 48\), got int64 of"),
        ("smaller", r"expected the image that it was given, uint8 of shape \(48, 48, 3\), got uint8 of shape \(47"),
    ],
)
def test_errors_say_which_function_on_which_photo(data, name, message):
    with pytest.raises(ValueError, match=rf"images/train/0\.png: .*{message}"):
        TrainingSet(data, transform(extra=f"mine:{name}"))[0, 0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine:no", "extra=mine:no: cannot be imported: module 'mine' has no attribute 'no'"),
        ("no.such:function", "extra=no.such:function: cannot be imported: No module named 'no'"),
        ("mine:number", "extra=mine:number: expected a function, got int"),
    ],
)
def test_what_cannot_be_imported(data, path, message):
    with pytest.raises(ValueError, match=message):
        load_function(path)


def test_a_recipe_names_it(data):
    """Without importing it: a recipe of others is only looked at."""
    recipe = load_recipe("finetune", ["model.checkpoint=x", "data.source=x", "augmentation.extra=mine:darken"])
    assert recipe.augmentation.extra == "mine:darken" and "mine" not in sys.modules
    assert Path("mine.py").exists()
    with pytest.raises(ValueError, match="expected a function as module:function as extra, got 'mine.darken'"):
        load_recipe("finetune", ["model.checkpoint=x", "data.source=x", "augmentation.extra=mine.darken"])
