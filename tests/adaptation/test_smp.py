"""Offset learning in models of segmentation_models.pytorch: what `smp_support` found, in processes of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.adaptation.smp_support import CLASSES, MODELS, SMP_PATH
from tests.comparison import assert_other_outputs, assert_same_outputs, sure_pixels


pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parent / "smp_support.py"
every_model = pytest.mark.parametrize("case", MODELS)
every_start = pytest.mark.parametrize("start", ["warm", "from scratch"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if not (SMP_PATH / "segmentation_models_pytorch").is_dir():
        pytest.skip("segmentation_models_pytorch is not installed: make test does that")
    folder = tmp_path_factory.mktemp("smp")
    process = subprocess.run(
        [sys.executable, SUPPORT, folder], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def outputs(folder: Path, case: str, moment: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / case / "outputs.safetensors")
    return {name.rpartition("/")[2]: x for name, x in tensors.items() if name.rpartition("/")[0] == moment}


@every_model
def test_warm_start_equals_the_model(folder, case):
    stock, warm = outputs(folder, case, "stock"), outputs(folder, case, "warm")
    assert_same_outputs(warm, stock)
    sure = sure_pixels(stock["masks"])
    assert sure.float().mean() > 0.9
    assert torch.equal(warm["masks"].argmax(1)[sure], stock["masks"].argmax(1)[sure])
    assert len(stock["masks"].argmax(1).unique()) > 1


@every_model
def test_model_stays_of_its_class(results, case):
    found = results["models"][case]
    assert found["is instance"] and found["one class"] and found["stock unchanged"]
    assert found["class"] == f"Offset{MODELS[case][0]}"
    first, *rest = found["head"]
    assert first == ("Sequential" if MODELS[case][0] == "Unet" else "OffsetLearning")  # 3x3, or 1x1
    assert len(rest) == 2  # upsampling and activation


@every_model
@every_start
def test_every_parameter_of_the_head_has_a_gradient(results, case, start):
    assert results["models"][case]["without gradient"][start] == []


@every_model
@every_start
def test_saved_is_loaded(folder, case, start):
    trained = outputs(folder, case, f"{start}, trained")
    loaded = outputs(folder, case, f"{start}, loaded")
    assert_other_outputs(trained["masks"], outputs(folder, case, start)["masks"])
    assert_same_outputs(loaded, trained)
    for file in ("config.json", "model.safetensors"):
        first, again = (folder / case / name / file for name in (start, f"{start}, again"))
        assert first.read_bytes() == again.read_bytes()


@every_model
def test_a_fresh_process_loads_the_same(folder, case):
    reloaded = load_file(folder / case / "reloaded.safetensors")
    trained = outputs(folder, case, "warm, trained")
    assert_same_outputs(reloaded, trained)


@every_model
def test_loading_downloads_nothing(results, case):
    assert results["models"][case]["downloads"] is None


@every_model
def test_pickled_and_copied(folder, case):
    trained = outputs(folder, case, "warm, trained")
    for way in ("warm, pickled", "warm, copied"):
        assert_same_outputs(outputs(folder, case, way), trained)


def test_from_scratch_logits_are_normalised(folder):
    """Over classes, at the positions that offset learning sees: where nothing is upsampled after it."""
    masks = outputs(folder, "Unet", "from scratch")["masks"]
    assert masks.shape[1] == CLASSES
    torch.testing.assert_close(masks.mean(1), torch.zeros_like(masks[:, 0]), rtol=0, atol=1e-5)
    assert not torch.allclose(masks, outputs(folder, "Unet", "stock")["masks"], atol=0.1)


def test_auxiliary_head(folder):
    """Of the classification head everything stays."""
    stock, warm = (outputs(folder, "auxiliary head", moment) for moment in ("stock", "warm"))
    assert stock["labels"].shape == (2, 3)
    assert_same_outputs(warm["labels"], stock["labels"])


def test_activation(folder):
    masks = outputs(folder, "activation", "warm")["masks"]
    torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))


def test_frozen_encoder_stays_frozen(results):
    assert results["frozen encoder"] == {"encoder learns": False, "encoder's norms train": False, "head learns": True}


def test_classifier_by_name(results):
    assert results["by name"] is True


def test_card_tells_how_to_load(folder):
    card = (folder / "Unet" / "warm" / "README.md").read_text()
    assert "from offseg_hf import with_offset_learning" in card
    assert "with_offset_learning(smp.Unet).from_pretrained(" in card
    assert "smp.from_pretrained(" not in card


@pytest.mark.parametrize(
    "case, expected",
    [
        ("one class", "got one output"),
        ("norm after the classifier", "looked for a convolution with 5 outputs .* found BatchNorm2d.*classifier="),
        ("other number of classes", "looked for a convolution with 5 outputs .* found Conv2d.*classifier="),
        ("no weights", "looked for a convolution with 5 outputs .* found None.*classifier="),
        ("unknown name", "Unet has no submodule 'segmentation_head.7'.*segmentation_head.0"),
        ("twice", "OffsetUnet has offset learning already"),
    ],
)
def test_errors(results, case, expected):
    assert re.search(expected, results["messages"][case])
