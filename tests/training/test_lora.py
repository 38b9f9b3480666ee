"""Adapters in the encoder: what learns, what is saved, and that it goes on."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessorPil

from offseg_hf.hub.push import model_files
from offseg_hf.hub.training_card import training_card_files
from offseg_hf.training import loop
from offseg_hf.training.finetuning import fit_recipe
from offseg_hf.training.loop import train
from offseg_hf.training.lora import adapted_layers, add_adapters, merged
from tests import semantic_models
from tests.models.test_backbones import on_backbone
from tests.tiny import FAMILIES, tiny_model, tiny_processor
from tests.training.tiny import NAMES, killed_in, own_recipe, write_own, write_segformer


LORA = ("model.lora_rank=2", "optimizer.learning_rate=0.01")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with small models by name."""
    folder = tmp_path_factory.mktemp("models")
    write_segformer(folder / "segformer")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    semantic_models.small_model("mobilenet_v2", **labels).save_pretrained(folder / "mobilenet_v2")
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "mobilenet_v2")
    tiny_model("segnext", **labels).save_pretrained(folder / "segnext")
    tiny_processor("segnext").save_pretrained(folder / "segnext")
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return write_own(tmp_path / "data")


def scores(model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(pixel_values)
    return outputs.logits if hasattr(outputs, "logits") else outputs.masks_queries_logits


BACKBONES = ("dinov2", "dinov3_vit", "swin")


@pytest.mark.parametrize("name", [*FAMILIES, *BACKBONES, "upernet-swin", "dpt", "mobilenet_v2", "mobilevit"])
def test_adapters_begin_without_effect_learn_and_merge(name):
    """Each of them is in the way of the gradients; merged the model has the weights that it had, by name."""
    build = tiny_model if name in FAMILIES else on_backbone if name in BACKBONES else semantic_models.small_model
    model, pixel_values = build(name), torch.randn(1, 3, 64, 64)
    before, names = scores(model.eval(), pixel_values), model.state_dict().keys()
    layers = adapted_layers(model)
    add_adapters(model, "base", 2)
    assert torch.equal(scores(model, pixel_values), before) and len(layers) > 4
    outputs = model(pixel_values)
    (outputs.logits if hasattr(outputs, "logits") else outputs.masks_queries_logits).square().mean().backward()
    parameters = dict(model.named_parameters())
    reached = [f"{layer}.lora_B.default.weight" for layer in layers if layer != "mobilenet_v2.conv_1x1.convolution"]
    assert all(parameters[name].grad.any() for name in reached)
    assert all(parameter.grad is None for name, parameter in parameters.items() if ".base_layer." in name)
    with torch.no_grad():
        for layer in layers:
            parameters[f"{layer}.lora_B.default.weight"].normal_(std=0.02)
    after = scores(model, pixel_values)
    assert not torch.allclose(after, before, atol=1e-3)
    plain = merged(model)
    assert plain.state_dict().keys() == names
    torch.testing.assert_close(scores(plain, pixel_values), after, atol=2e-3, rtol=1e-3)
    assert torch.equal(scores(model, pixel_values), after)  # which is as it was


@pytest.mark.parametrize("name", ["segformer", "mobilenet_v2", "segnext"])
def test_what_is_saved_is_a_model(in_process, models, data, tmp_path, name):
    """With plain `from_pretrained`; and what peft adds to the checkpoint is the same model."""
    train(own_recipe(data, models / name, *LORA, "training.ema_decay=0.5"), tmp_path / "run")
    best = tmp_path / "run" / "best"
    model = AutoModelForSemanticSegmentation.from_pretrained(best).eval()
    base = AutoModelForSemanticSegmentation.from_pretrained(models / name).eval()
    before, after = base.state_dict(), model.state_dict()
    layers = adapted_layers(base)
    assert all(before[key].shape == after[key].shape for key in after) and before.keys() == after.keys()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    adapted = {f"{layer}.weight" for layer in layers} - {"mobilenet_v2.conv_1x1.convolution.weight"}
    assert adapted <= moved
    encoder = {"segformer": "segformer.", "mobilenet_v2": "mobilenet_v2.", "segnext": "encoder."}[name]
    assert {key for key in moved if key.startswith(encoder)} == adapted  # neither statistics of norms nor biases
    assert {key for key in after if not key.startswith(encoder) and after[key].ndim > 1} <= moved
    config = json.loads((best / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name and config["r"] == 2
    assert {f"adapter/{path.name}" for path in (best / "adapter").iterdir()} < model_files(best).keys()
    card = training_card_files(best, "me/mine")["README.md"]
    assert f'.from_pretrained("{name}", num_labels=3, ignore_mismatched_sizes=True)' in card
    assert 'PeftModel.from_pretrained(base, "me/mine", subfolder="adapter")' in card
    adapter = PeftModel.from_pretrained(base, best / "adapter").merge_and_unload().eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(scores(adapter, pixel_values), scores(model, pixel_values), atol=1e-4, rtol=1e-3)


def test_it_goes_on_bitwise(in_process, models, data, tmp_path):
    """Averaged weights too, when it was killed between two checkpoints."""
    settings = ("schedule.iterations=4", "training.ema_decay=0.9")
    recipe = own_recipe(data, models / "segformer", *LORA, *settings)
    train(recipe, tmp_path / "whole")
    with killed_in(iteration=3):
        train(recipe, tmp_path / "parts")
    train(recipe, tmp_path / "parts", "auto")
    whole, parts = (torch.load(tmp_path / name / "last" / "training_state.pt") for name in ("whole", "parts"))
    for kind in ("model", "average"):
        assert any("lora_A" in key for key in whole[kind])
        assert all(torch.equal(whole[kind][key], parts[kind][key]) for key in whole[kind])
    with pytest.raises(
        ValueError, match=r"expected the recipe that it was trained by, with model.lora_rank=2 \(now 3"
    ):
        train(
            own_recipe(data, models / "segformer", *LORA, *settings, "model.lora_rank=3"), tmp_path / "parts", "auto"
        )


def test_adapters_learn_faster_than_an_encoder(models, data, tmp_path):
    settings = [f"data.source={data}", f"model.checkpoint={models / 'segformer'}", "model.lora_rank=4"]
    recipe, lines = fit_recipe(settings, tmp_path / "run")
    assert (recipe.optimizer.encoder_multiplier, recipe.optimizer.head_multiplier) == (10, 20)
    assert "0.0005 for adapters in the encoder (LoRA, rank 4)" in lines[3]


def test_what_does_not_go_with_adapters(models, data):
    def recipe(*settings: str):
        return own_recipe(data, models / "segformer", *settings)

    with pytest.raises(ValueError, match="lora_rank=2 adapts the encoder, which freeze=encoder leaves as it is"):
        recipe("model.lora_rank=2", "model.freeze=encoder")
    with pytest.raises(ValueError, match="model.lora_alpha=4 has no effect, as there are no adapters without"):
        recipe("model.lora_alpha=4")
    with pytest.raises(ValueError, match="expected checkpoint or backbone, whose weights lora_rank=2 adapts, got nei"):
        loop.Recipe(**{**vars(recipe()), "model": type(recipe().model)(preset="offseg-t-ade", lora_rank=2)})
    with pytest.raises(ValueError, match="nothing in this Sequential is known as a linear layer or a 1x1"):
        add_adapters(torch.nn.Sequential(torch.nn.Linear(2, 2)), "base", 2)


def test_without_peft(models, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'needs the package peft: pip install "offseg-hf\[lora\]"'):
        train(own_recipe(data, models / "segformer", *LORA), tmp_path / "run")
