"""Weights are loaded as they were saved, bit by bit, also by another process, and files hold nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from offseg_hf import (
    EfficientFormerV2Backbone,
    EfficientFormerV2Config,
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffSegImageProcessor,
)
from tests.comparison import assert_same_outputs, assert_same_weights
from tests.processes import run_python
from tests.tiny import EFFICIENTFORMER as ENCODER
from tests.tiny import NAMES, OFFSEG


OFFSEG = OFFSEG | NAMES
MODELS = {
    "backbone": lambda: EfficientFormerV2Backbone(EfficientFormerV2Config(**ENCODER, out_features=["stem", "stage3"])),
    "offseg": lambda: OffSegForSemanticSegmentation(OffSegConfig(**OFFSEG)),
    "plain decoder": lambda: OffSegForSemanticSegmentation(OffSegConfig(**OFFSEG, pixel_decoder="mlp")),
    "no offsets": lambda: OffSegForSemanticSegmentation(
        OffSegConfig(**OFFSEG, use_class_offset=False, use_feature_offset=False)
    ),
    "learned statistics": lambda: OffSegForSemanticSegmentation(
        OffSegConfig(**OFFSEG, learn_batch_norm_statistics=True)
    ),
}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """In eval mode, with values unlike those of any initialization in every parameter and buffer."""
    generator = torch.Generator().manual_seed(0)
    models = {name: make().eval() for name, make in MODELS.items()}
    for model in models.values():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.02 + 0.1 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(7)
    return models


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory) -> Path:
    """A folder with a folder of each."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(params=MODELS)
def model(request, models) -> PreTrainedModel:
    return models[request.param]


@pytest.fixture
def folder(request, model, saved) -> Path:
    """Where the model is saved."""
    return saved / request.node.callspec.params["model"]


def pixel_values() -> torch.Tensor:
    return torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(1))


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(pixel_values())
    tensors = [output.logits] if "logits" in output else list(output.feature_maps)
    assert all(tensor.isfinite().all() for tensor in tensors)
    return tensors


def assert_same_model(loaded: torch.nn.Module, model: torch.nn.Module) -> None:
    assert type(loaded) is type(model)
    assert not loaded.training
    # Buffers that are not saved count too: on loading they are made on the meta device.
    for tensors in ("state_dict", "named_parameters", "named_buffers"):
        expected, actual = (dict(getattr(m, tensors)()) for m in (model, loaded))
        assert_same_weights(actual, expected)
    assert_same_outputs(outputs(loaded), outputs(model))


def test_class(model, folder, tmp_path):
    """What was loaded can be saved again, the same to the byte."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_model(loaded, model)
    loaded.save_pretrained(tmp_path)
    for first in folder.iterdir():
        assert (tmp_path / first.name).read_bytes() == first.read_bytes(), first.name


def test_auto_class(model, folder):
    if isinstance(model, EfficientFormerV2Backbone):
        # The method itself takes names on the Hub only: before this, it asks there whether the name exists.
        loaded = super(AutoBackbone.__base__, AutoBackbone).from_pretrained(folder)
    else:
        loaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert_same_model(loaded, model)
    assert type(AutoConfig.from_pretrained(folder)) is type(model.config)


def test_file(model, folder):
    """One entry per parameter and statistic under its own name, none shared and none left over."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        assert file.metadata() == {"format": "pt"}
    names = model.state_dict().keys()
    expected = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name in names
    }
    assert_same_weights(tensors, expected)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size < (folder / "model.safetensors").stat().st_size < size + 200 * len(tensors)


def test_fresh_process(models, saved, tmp_path):
    """All of them in one that only imports offseg_hf."""
    script = """
import sys
import torch
import offseg_hf
from tests.models.test_round_trip import outputs

saved, results, *names = sys.argv[1:]
for name, kind in zip(names[::2], names[1::2]):
    model = getattr(offseg_hf, kind).from_pretrained(f"{saved}/{name}")
    torch.save((model.state_dict(), outputs(model)), f"{results}/{name}.pt")
"""
    names = [name for item in models.items() for name in (item[0], type(item[1]).__name__)]
    run_python(script, saved, tmp_path, *names)
    for name, model in models.items():
        state_dict, loaded_outputs = torch.load(tmp_path / f"{name}.pt")
        assert_same_weights(state_dict, model)
        assert_same_outputs(loaded_outputs, outputs(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    model = MODELS["offseg"]().to(dtype)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = OffSegForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert_same_weights(loaded, model)
    assert OffSegForSemanticSegmentation.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32


def test_config(tmp_path):
    config = OffSegConfig.from_size("b", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}, drop_path_rate=0.3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is OffSegConfig
    assert loaded.to_json_string() == OffSegConfig.from_pretrained(tmp_path).to_json_string()
    for name in ("hidden_sizes", "depths", "mlp_ratios", "lateral_channels", "id2label", "label2id", "drop_path_rate"):
        assert getattr(loaded, name) == getattr(config, name)


def test_image_processor(tmp_path):
    processor = OffSegImageProcessor(
        size={"shortest_edge": 100, "longest_edge": 300}, window_size=64, window_stride=48, do_reduce_labels=True
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is OffSegImageProcessor
    assert loaded.to_dict() == processor.to_dict()


def test_fused_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="cannot be saved: save the model it was made of"):
        MODELS["offseg"]().eval().fuse().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
