"""`model.backbone`: a new OffSeg on a trained backbone, fine-tuned, interrupted and resumed."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BitImageProcessorPil, Dinov2Model

from offseg_hf import OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.hub.training_card import training_card_files
from offseg_hf.training.build import build_model, depends_on_device_batch, freeze, keep_training_mode
from offseg_hf.training.finetuning import fit_recipe
from offseg_hf.training.loop import train
from offseg_hf.training.lora import adapted_layers
from offseg_hf.training.optimization import parameter_multipliers
from offseg_hf.training.recipe import FINETUNE, load_recipe
from tests.backbones import backbone_config
from tests.comparison import assert_same_weights
from tests.models.test_backbones import on_backbone
from tests.tiny import random_values
from tests.training.tiny import NAMES, write_own


IMAGE_SIZE = "model.image_processor={size: {shortest_edge: 64, longest_edge: 64}, window_size: 64, window_stride: 32}"
SMALL = ("model.config={lateral_channels: [32, 32, 32, 32], decoder_hidden_size: 32}", IMAGE_SIZE)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "dinov2"
    torch.manual_seed(0)
    random_values(Dinov2Model(backbone_config("dinov2"))).save_pretrained(folder)
    BitImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


def asked(data: Path, backbone: Path, *settings: str) -> list[str]:
    return [f"data.source={data}", f"model.backbone={backbone}", "data.num_workers=0", *SMALL, *settings]


def encoder_of(model) -> dict[str, torch.Tensor]:
    weights = model.state_dict().items()
    return {name.removeprefix("encoder."): value for name, value in weights if name.startswith("encoder.")}


def test_fine_tuning_and_what_goes_on(in_process, dinov2, tmp_path):
    """With the encoder frozen, so that it is still the backbone's; then from the checkpoint, as any model."""
    data = write_own(tmp_path / "data")
    settings = asked(data, dinov2, "schedule.epochs=2", "model.freeze=encoder", "training.ema_decay=null")
    recipe, lines = fit_recipe(settings, tmp_path / "run")
    assert recipe.augmentation.mean == (127.5,) * 3 and recipe.augmentation.crop_size == (64, 64)
    assert "the encoder frozen" in lines[3] and recipe.optimizer.head_multiplier == 20
    train(recipe, tmp_path / "run")
    best = tmp_path / "run" / "best"
    model = AutoModelForSemanticSegmentation.from_pretrained(best)
    assert_same_weights(encoder_of(model), Dinov2Model.from_pretrained(dinov2))
    assert list(model.config.id2label.values()) == list(NAMES)
    processor = AutoImageProcessor.from_pretrained(best)
    assert type(processor) is OffSegImageProcessor and set(processor.image_std) == {0.25}
    card = training_card_files(best, "someone/mine")["README.md"]
    assert "beginning from dinov2" in card and "OffSegForSemanticSegmentation for the 3 classes" in card

    in_process()
    go_on = [f"data.source={data}", f"model.checkpoint={best}", "data.num_workers=0", "schedule.epochs=1"]
    recipe, _ = fit_recipe([*go_on, "training.ema_decay=null"], tmp_path / "more")
    train(recipe, tmp_path / "more")
    assert (tmp_path / "more" / "best" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="unknown key model.config.hidden_sizes"):
        build_model(load_recipe(FINETUNE, [*go_on, "model.config.hidden_sizes=[8, 8, 16, 16]"]), labels(data))


def test_adapters_in_the_backbone(in_process, dinov2, tmp_path):
    """Of its own weights none learns, all else whole; what is saved is a model, and what peft adds to it."""
    data = write_own(tmp_path / "data")
    recipe, lines = fit_recipe(
        asked(data, dinov2, "schedule.epochs=2", "model.lora_rank=2", "training.ema_decay=null"), tmp_path / "run"
    )
    assert "for adapters in the encoder (LoRA, rank 2)" in lines[3]
    train(recipe, tmp_path / "run")
    best = tmp_path / "run" / "best"
    model = AutoModelForSemanticSegmentation.from_pretrained(best)
    before, after = Dinov2Model.from_pretrained(dinov2).state_dict(), encoder_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name.removeprefix('encoder.')}.weight" for name in adapted_layers(model)}
    fields = {"num_labels": len(NAMES), "lateral_channels": [32] * 4, "decoder_hidden_size": 32}
    base = OffSegForSemanticSegmentation.from_backbone(dinov2, **fields)
    adapted = PeftModel.from_pretrained(base, best / "adapter").eval()
    with torch.no_grad():
        expected, logits = (made(torch.ones(1, 3, 64, 64)).logits for made in (model, adapted))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    card = training_card_files(best, "me/mine")["README.md"]
    arguments = ", ".join(f"{name}={value}" for name, value in fields.items())
    assert f'base = OffSegForSemanticSegmentation.from_backbone("dinov2", {arguments})' in card


def labels(data: Path):
    from offseg_hf.data.classes_json import label_set_beside

    return label_set_beside(data)


def test_multipliers_are_those_of_encoder_and_head(dinov2, tmp_path):
    """The new pyramid learns like the head; vectors of the backbone do not decay."""
    model = on_backbone("dinov2")
    settings = [*asked(tmp_path, dinov2), "optimizer.encoder_multiplier=0.5"]
    multipliers = {name: rest for name, *rest in parameter_multipliers(model, load_recipe(FINETUNE, settings))}
    assert multipliers["encoder.layernorm.weight"] == [0.5, 0.0]
    assert multipliers["encoder.embeddings.patch_embeddings.projection.weight"] == [0.5, 1.0]
    assert multipliers["feature_pyramid.levels.0.0.weight"] == [20.0, 1.0]
    assert multipliers["offset_learning.class_representation"] == [20.0, 1.0]


@pytest.mark.parametrize("freezes", [False, True])
def test_what_is_frozen(dinov2, tmp_path, freezes):
    model = on_backbone("swin").train()
    recipe = load_recipe(FINETUNE, asked(tmp_path, dinov2, *["model.freeze=encoder"] * freezes))
    freeze(model, recipe)
    keep_training_mode(model, recipe)
    unused = {"encoder.swin.layernorm.weight", "encoder.swin.layernorm.bias"}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == (
        {name for name, _ in model.named_parameters() if name.startswith("encoder.")} if freezes else unused
    )
    assert model.encoder.training is not freezes and model.pixel_decoder.training
    assert not depends_on_device_batch(model)
    model.config.backbone_config.drop_path_rate = 0.1
    assert depends_on_device_batch(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.checkpoint=there",), "model.backbone=.* beside which model.checkpoint=there would have no effect"),
        (("model.offset_learning=true",), "no effect, as a model on a backbone has it already"),
        (("model.config={hidden_size: 3}",), "unknown key model.config.hidden_size"),
        (("model.config={depths: [1, 1, 1, 1]}",), "depths describes OffSeg's own encoder"),
        (("model.image_processor={window: 3}",), "unknown key model.image_processor.window"),
    ],
)
def test_mistakes(dinov2, tmp_path, settings, message):
    data = write_own(tmp_path / "data", train=2, val=1)
    with pytest.raises(ValueError, match=message):
        recipe, _ = fit_recipe([*asked(data, dinov2), *settings], tmp_path / "run")
        build_model(recipe, labels(data))


def test_an_official_recipe_with_another_backbone(dinov2):
    """What belongs to the preset is left out, as with a checkpoint."""
    recipe = load_recipe("offseg-t-ade", [f"model.backbone={dinov2}"])
    assert recipe.model.preset is None and recipe.model.pretrained is None and recipe.model.config == {}
