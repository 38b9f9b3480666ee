"""What of a model learns: frozen encoders, offset learning in a checkpoint, losses of a recipe."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    SegformerImageProcessorPil,
)

from offseg_hf.models.modeling_offset_learning import OffsetLearningForSemanticSegmentation
from offseg_hf.training.loop import train
from offseg_hf.training.optimization import encoder_modules
from offseg_hf.training.recipe import load_recipe
from tests import semantic_models
from tests.tiny import tiny_model, tiny_processor
from tests.training.tiny import NAMES, own_recipe, write_own, write_segformer


EOMT = {"num_hidden_layers": 3, "num_blocks": 2, "num_attention_heads": 2, "hidden_size": 32, "num_queries": 5}
MASKS = ("mask2former", "eomt")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with small models by name."""
    folder = tmp_path_factory.mktemp("models")
    write_segformer(folder / "segformer")
    for name in ("upernet-convnext", "mobilenet_v2"):
        semantic_models.small_model(name).save_pretrained(folder / name)
        SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / name)
    for name in ("offseg", "mask2former"):
        tiny_model(name).save_pretrained(folder / name)
        tiny_processor(name).save_pretrained(folder / name)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    torch.manual_seed(0)
    eomt = EomtConfig(**EOMT, image_size=64, patch_size=8, num_register_tokens=2, train_num_points=64, **labels)
    EomtForUniversalSegmentation(eomt).save_pretrained(folder / "eomt")
    EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True).save_pretrained(folder / "eomt")
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return write_own(tmp_path / "data")


def weights_of(folder: Path, name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    auto = AutoModelForUniversalSegmentation if name in MASKS else AutoModelForSemanticSegmentation
    model = auto.from_pretrained(folder)
    return model, model.state_dict()


@pytest.mark.parametrize("name", ["segformer", "mobilenet_v2", "offseg", *MASKS])
def test_a_frozen_encoder_stays_bitwise(in_process, models, data, tmp_path, name):
    """Weights and statistics of norms, through evaluations too; everything else learns."""
    settings = ("model.freeze=encoder", "training.evaluation_interval=1")
    recipe = own_recipe(data, models / name, *settings)
    train(recipe, tmp_path / "run")
    model, after = weights_of(tmp_path / "run" / "last", name)
    _, before = weights_of(models / name, name)
    encoder = tuple(f"{part}." for part in encoder_modules(model))
    assert encoder
    inside = {key for key in after if key.startswith(encoder)}
    assert any("norm" in key or "bn" in key for key in inside)
    assert all(torch.equal(before[key], after[key]) for key in inside)
    trained = {key for key, _ in model.named_parameters()} - inside
    moved = {
        key for key in trained if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    }
    assert len(moved) > len(trained) / 2


def test_norms_learn_without_it(in_process, models, data, tmp_path):
    """Or the test above would see nothing."""
    train(own_recipe(data, models / "mobilenet_v2"), tmp_path / "run")
    (_, after), (_, before) = (weights_of(f, "") for f in (tmp_path / "run" / "last", models / "mobilenet_v2"))
    statistics = [key for key in before if key.startswith("mobilenet_v2.") and key.endswith("running_mean")]
    assert statistics and not any(torch.equal(before[key], after[key]) for key in statistics)


@pytest.mark.parametrize("name", ["segformer", "upernet-convnext", "mobilenet_v2", "mask2former", "eomt"])
def test_offset_learning_in_a_checkpoint(in_process, models, data, tmp_path, name):
    if name == "mask2former":  # ours has it already
        with pytest.raises(ValueError, match="model.offset_learning=true does not go with .* has offset learning alr"):
            train(own_recipe(data, models / name, "model.offset_learning=true"), tmp_path / "run")
        return
    train(own_recipe(data, models / name, "model.offset_learning=true"), tmp_path / "run")
    if name == "segformer":
        train(own_recipe(data, models / name, "model.offset_learning=true"), tmp_path / "run", resume="auto")
    model, weights = weights_of(tmp_path / "run" / "best", name)
    assert name == "eomt" or isinstance(model, OffsetLearningForSemanticSegmentation)
    assert any("offset_proj" in key for key in weights)


LOSS = "loss=[{kind: cross_entropy, class_weights: [1, 2, 3]}, {kind: dice, weight: 0.5}]"


@pytest.mark.parametrize("name", ["segformer", "upernet-convnext", "offseg"])
def test_losses_train_models_of_logits(in_process, models, data, tmp_path, name, capfd):
    """All parameters move, but for auxiliary heads, of which it is told."""
    train(own_recipe(data, models / name, LOSS, "optimizer.learning_rate=0.1"), tmp_path / "run")
    has_auxiliary = name == "upernet-convnext"
    assert (
        "do not learn, as `loss` takes the logits alone: auxiliary_head" in capfd.readouterr().err
    ) == has_auxiliary
    model, after = weights_of(tmp_path / "run" / "last", name)
    _, before = weights_of(models / name, name)
    still = {key for key, _ in model.named_parameters() if torch.equal(before[key], after[key])}
    assert all(key.startswith("auxiliary_head.") for key in still)


@pytest.mark.parametrize("name", MASKS)
def test_losses_of_logits_are_refused_for_masks(in_process, models, data, tmp_path, name):
    with pytest.raises(ValueError, match=r"loss=.* has no effect, as \w+ predicts masks, and has a loss of its own"):
        train(own_recipe(data, models / name, LOSS), tmp_path / "run")


def test_weights_of_classes_stand_once(models, data):
    with pytest.raises(ValueError, match="model.config.semantic_loss_class_weights=.* has no effect, as `loss` has"):
        own_recipe(data, models / "offseg", LOSS, "model.config.semantic_loss_class_weights=[1, 2, 3]")


def test_presets_have_offset_learning():
    with pytest.raises(ValueError, match="model.offset_learning=true has no effect, as the model of a preset has it"):
        load_recipe("offseg-t-ade", ["model.offset_learning=true"])
