"""OffSeg on the backbones of transformers: pyramids as they are, plain ViTs through a feature pyramid."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BitImageProcessorPil,
    ConvNextForImageClassification,
    Dinov2Model,
    PreTrainedModel,
    SwinConfig,
    ViTConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from offseg_hf import OffSegBackbone, OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.models.modeling_offseg import FeaturePyramid, crop_to_stride, pad_to_stride
from offseg_hf.training.optimization import encoder_of, without_effect
from tests.backbones import NAMES, STAGES, backbone_config
from tests.comparison import assert_same_gradients, assert_same_outputs, assert_same_weights
from tests.processes import run_python
from tests.tiny import NAMES as LABELS
from tests.tiny import random_values


DECODER = {"lateral_channels": [32, 32, 32, 64], "decoder_hidden_size": 32}
ODD = (50, 75)
every_backbone = pytest.mark.parametrize("name", NAMES)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def size_for(name: str) -> tuple[int, int]:
    return (128, 128) if name == "hiera" else ODD  # whose positions are of its own size


def on_backbone(name: str, **fields) -> OffSegForSemanticSegmentation:
    torch.manual_seed(0)
    config = OffSegConfig(backbone_config=backbone_config(name), **(DECODER | LABELS | fields))
    return random_values(OffSegForSemanticSegmentation(config))


@pytest.fixture(scope="module")
def models() -> dict[str, OffSegForSemanticSegmentation]:
    return {name: on_backbone(name) for name in NAMES}


# -- what it computes -------------------------------------------------------------------------------------------------


@every_backbone
@torch.no_grad()
def test_any_size(models, name):
    """Logits and feature maps are of the sizes that an OffSeg with its own encoder gives."""
    model, (height, width) = models[name], size_for(name)
    output = model(images(2, 3, height, width), output_hidden_states=True)
    assert output.logits.shape == (2, 3, math.ceil(height / 4), math.ceil(width / 4))
    padded = [32 * math.ceil(length / 32) for length in (height, width)]
    assert [tuple(x.shape[2:]) for x in output.hidden_states] == [
        tuple(length // stride for length in padded) for stride in (4, 8, 16, 32)
    ]


@pytest.mark.parametrize("name", ["swin", "dinov3_convnext"])
@torch.no_grad()
def test_pyramid_is_decoded_as_it_is(models, name):
    model, pixel_values = models[name], images(1, 3, *ODD)
    maps = model.encoder(pad_to_stride(pixel_values)).feature_maps
    logits = crop_to_stride(model.offset_learning(model.pixel_decoder(list(maps))), pixel_values, 4)
    assert_same_outputs(model(pixel_values).logits, logits)


@torch.no_grad()
def test_patches_of_another_side_lie_where_they_are_seen():
    """Each patch of 14 pixels tells the column of its center; on the grid of 16 it is the center of what is there."""
    pyramid = FeaturePyramid([16] * 4, patch_size=14)
    assert pyramid.grid_stride == 16 and pyramid.channels == [4, 8, 16, 16]
    padded = pyramid.pad(images(1, 3, 96, 160))
    assert padded.shape[2:] == (98, 168)
    rows, columns = (14 * (torch.arange(length // 14) + 0.5) for length in padded.shape[2:])
    grid = pyramid.to_grid(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None], (96, 160))
    expected = torch.meshgrid(*(16 * (torch.arange(length) + 0.5) for length in (6, 10)), indexing="ij")
    torch.testing.assert_close(grid[0, 0], expected[0])
    torch.testing.assert_close(grid[0, 1], expected[1])


@pytest.mark.parametrize(("patch_size", "channels"), [(8, [8, 16, 16, 16]), (16, [4, 8, 16, 16]), (32, [2, 4, 8, 16])])
@torch.no_grad()
def test_levels_of_plain_maps(patch_size, channels):
    pyramid = FeaturePyramid([16] * 4, patch_size)
    maps = pyramid([images(1, 16, 64 // patch_size, 96 // patch_size)] * 4, (64, 96))
    assert [tuple(x.shape) for x in maps] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (4, 8, 16, 32))
    ]
    assert pyramid.channels == channels


def test_plain_decoder(models):
    model = on_backbone("dinov2", pixel_decoder="mlp")
    assert model(images(1, 3, *ODD)).logits.shape == models["dinov2"](images(1, 3, *ODD)).logits.shape
    assert not any("fusions" in name for name in model.state_dict())


@pytest.mark.parametrize("name", ["resnet", "dinov2"])
@torch.no_grad()
def test_fused_is_equal(models, name):
    assert_same_outputs(models[name].fuse()(images(1, 3, *ODD)).logits, models[name](images(1, 3, *ODD)).logits)


# -- how it is trained ------------------------------------------------------------------------------------------------


@every_backbone
def test_every_parameter_learns(name):
    """But for what is the backbone's, and no feature map depends on."""
    model, size = on_backbone(name).train(), size_for(name)
    labels = torch.arange(2 * size[0] * size[1]).view(2, *size) // 5 % 3
    model(images(2, 3, *size), labels=labels).loss.backward()
    unused = {parameter for parameter, _ in without_effect(model)}
    assert all(parameter.startswith("encoder.") for parameter in unused)
    for parameter, value in model.named_parameters():
        assert (value.grad is None) == (parameter in unused), parameter
        may_rest = re.search(r"\.(key|k_proj|attn\.qkv)\.bias$|convolution\.bias$", parameter)
        assert value.grad is None or may_rest or value.grad.abs().max() > 0, parameter
        # A new pyramid learns like the head, not like what was trained before.
        assert bool(encoder_of(model).match(parameter)) == parameter.startswith("encoder."), parameter


@pytest.mark.parametrize("name", ["swin", "dinov2"])
def test_gradient_checkpointing(name):
    model, pixel_values = on_backbone(name).train(), images(2, 3, *ODD)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(pixel_values, labels=torch.ones(2, *ODD, dtype=torch.long)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    runs = []
    block = next(module for module in model.encoder.modules() if isinstance(module, GradientCheckpointingLayer))
    leaf = next(part for part in block.modules() if not list(part.children()))
    leaf.register_forward_hook(lambda *_: runs.append(1))
    plain = gradients()
    model.activation_checkpointing_enable()
    assert_same_gradients(gradients(), plain)
    assert len(runs) >= 3  # a block of Swin is in a stage that computes again, too


# -- how it is saved and loaded ---------------------------------------------------------------------------------------


@every_backbone
@torch.no_grad()
def test_round_trip(models, name, tmp_path):
    model = models[name]
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is OffSegForSemanticSegmentation and not any(info.values())
    assert_same_weights(loaded, model)
    assert type(loaded.config.backbone_config) is type(model.config.backbone_config)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.keys().isdisjoint({"hidden_sizes", "depths", "image_size", "out_features", "stage_names"})
    pixel_values = images(1, 3, *size_for(name))
    assert_same_outputs(loaded(pixel_values).logits, model(pixel_values).logits)


def test_configuration_of_the_own_encoder_is_as_before():
    saved = OffSegConfig().to_dict()
    assert saved["backbone_config"] is None and list(saved["hidden_sizes"]) == [32, 48, 120, 224]
    old = {name: value for name, value in saved.items() if name != "backbone_config"}
    assert OffSegConfig.from_dict(old).to_dict() == saved


REMOTE = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
import torch
from transformers import AutoModelForSemanticSegmentation

for name in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{name}"
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    with torch.no_grad():
        logits = model(torch.load(f"{sys.argv[1]}/images.pt")).logits
    model.save_pretrained(f"{folder}/again")
    again = AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/again", trust_remote_code=True)
    torch.save((logits, again.state_dict()), f"{folder}/outputs.pt")
"""


@torch.no_grad()
def test_remote_code(models, tmp_path):
    names = ("convnext", "dinov2")
    torch.save(images(1, 3, *ODD), tmp_path / "images.pt")
    for name in names:
        models[name].save_pretrained(tmp_path / name)
    run_python(REMOTE, tmp_path, *names, cwd=tmp_path)
    for name in names:
        logits, weights = torch.load(tmp_path / name / "outputs.pt")
        assert_same_outputs(logits, models[name](images(1, 3, *ODD)).logits)
        assert_same_weights(weights, models[name])


@pytest.mark.slow
def test_backbones_of_timm(tmp_path):
    if not (Path(sys.prefix) / "timm" / "timm").is_dir():
        pytest.skip("timm is not installed: make test does that")
    subprocess.run([sys.executable, Path(__file__).with_name("timm_backbones.py"), tmp_path], check=True)


# -- from a trained backbone ------------------------------------------------------------------------------------------


def save_trained(folder: Path, name: str) -> PreTrainedModel:
    """As its like lie on the Hub: a classifier's backbone is in a classifier, a ViT alone, each with a processor."""
    model_class = {"convnext": ConvNextForImageClassification, "dinov2": Dinov2Model}.get(name)
    torch.manual_seed(0)
    config = backbone_config(name)
    model = random_values((model_class or MODEL_FOR_BACKBONE_MAPPING[type(config)])(config))
    model.save_pretrained(folder)
    BitImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"shortest_edge": 7}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["convnext", "dinov2", "dinov3_convnext"])
@torch.no_grad()
def test_from_backbone(name, tmp_path):
    trained = save_trained(tmp_path, name)
    model = OffSegForSemanticSegmentation.from_backbone(tmp_path, **LABELS, decoder_hidden_size=64)
    assert not model.training and model.config.num_labels == 3 and model.config.decoder_hidden_size == 64
    assert model.config.lateral_channels == [32, 64, 128, 256]
    assert model.config.backbone_config.out_features == STAGES
    trained = {key.removeprefix("convnext."): value for key, value in trained.state_dict().items()}
    loaded = model.encoder.state_dict()
    kept = {key: value for key, value in loaded.items() if key in trained}
    assert_same_weights(kept, {key: trained[key] for key in kept})
    assert all(key.startswith("hidden_states_norms") for key in loaded.keys() - kept)  # which no classifier has
    # The head is initialized as any.
    assert model.pixel_decoder.fusions[0].low_pass_generator.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model(images(1, 3, *ODD)).logits.isfinite().all()


def test_processor_of_a_backbone(tmp_path):
    save_trained(tmp_path, "convnext")
    processor = OffSegImageProcessor.from_backbone(tmp_path, window_size=64, window_stride=48)
    assert (set(processor.image_mean), set(processor.image_std)) == ({0.5}, {0.25})
    assert (processor.size["shortest_edge"], processor.window_size, processor.size_divisor) == (512, 64, 32)
    processor.save_pretrained(tmp_path / "both")
    on_backbone("convnext").save_pretrained(tmp_path / "both")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "both")
    assert type(loaded) is OffSegImageProcessor and loaded.to_dict() == processor.to_dict()
    given = OffSegImageProcessor.from_backbone("of_no_file", image_mean=[0.0] * 3, image_std=[1.0] * 3)
    assert set(given.image_std) == {1.0}
    with pytest.raises(OSError, match="got neither: pass the image_mean and the image_std"):
        OffSegImageProcessor.from_backbone(tmp_path / "nothing")


# -- what it cannot take ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": ViTConfig()}, "expected the configuration of a backbone .*, got vit"),
        ({"backbone_config": {"model_type": "nothing"}}, "expected the model_type of a backbone .* got 'nothing'"),
        ({"backbone_config": {"depths": [1]}}, "got None"),
        ({"backbone_config": SwinConfig()}, r"4 feature maps of the swin.*got 1 .*set out_features=\['stage1', 's"),
        ({"backbone_config": SwinConfig(out_features=STAGES[1:])}, "expected 4 feature maps of the swin.*got 3"),
        ({"backbone": "resnet50"}, "has no setting 'backbone'.*OffSegForSemanticSegmentation.from_backbone"),
        ({"use_timm_backbone": True}, "has no setting 'use_timm_backbone'"),
    ],
    ids=["not-a-backbone", "unknown", "nameless", "one-map", "three-maps", "name", "timm"],
)
def test_wrong_backbones(fields, message):
    with pytest.raises(ValueError, match=message):
        OffSegConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": [8, 8, 16, 16]}, "hidden_sizes describes OffSeg's own encoder"),
        ({"drop_path_rate": 0.1}, "drop_path_rate describes OffSeg's own encoder"),
        ({"learn_batch_norm_statistics": True}, "learn_batch_norm_statistics describes OffSeg's own encoder"),
        ({"out_features": ["stage4"]}, "out_features describes OffSeg's own encoder"),
        ({"num_channels": 4}, "num_channels comes with the backbone_config, which has 3, got 4"),
    ],
)
def test_fields_of_the_own_encoder_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OffSegConfig(backbone_config=backbone_config("resnet"), **fields)
    with pytest.raises(ValueError, match="leave out hidden_sizes, depths"):
        OffSegConfig.from_size("l", backbone_config=backbone_config("resnet"))


def test_other_strides_are_refused():
    model = OffSegForSemanticSegmentation(
        OffSegConfig(backbone_config=backbone_config("resnet", downsample_in_first_stage=True), **DECODER)
    ).eval()
    with pytest.raises(ValueError, match=r"strides 4, 8, 16, 32 of the backbone, .*got \[\(8, 8\).*other stages"):
        model(images(1, 3, 64, 64))


def test_encoder_of_a_model_on_a_backbone_is_refused(models):
    with pytest.raises(ValueError, match="has a swin of transformers as its encoder"):
        OffSegBackbone(models["swin"].config)


def test_unknown_backbone(tmp_path):
    with pytest.raises(OSError, match="expected a model that AutoBackbone has a class for"):
        OffSegForSemanticSegmentation.from_backbone(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoBackbone has a class for, got a vit: choose one of the kinds beit, "):
        OffSegForSemanticSegmentation.from_backbone(tmp_path)
