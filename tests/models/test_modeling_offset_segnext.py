"""SegNeXt and MSCAN: one function however they are run, saved and loaded, and clear about what they cannot take."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from offseg_hf import (
    MscanBackbone,
    MscanConfig,
    OffsetSegNextBackbone,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
)
from offseg_hf.models.encoder_mscan import MscaBlock
from tests.comparison import assert_same_outputs, assert_same_weights
from tests.parity.test_modes import graphs
from tests.processes import run_python


MSCAN = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "mlp_ratios": [2, 2, 3, 2]}
SEGNEXT = MSCAN | {"decoder_hidden_size": 64, "num_bases": 4, "num_labels": 7}
STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


@torch.no_grad()
def all_matter(model: nn.Module) -> nn.Module:
    """The model, in eval mode, with values that show in every parameter, and the statistics that they lead to."""
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1
    model.train()(torch.randn(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def small_model(**overrides) -> OffsetSegNextForSemanticSegmentation:
    torch.manual_seed(0)
    return all_matter(OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig(**(SEGNEXT | overrides))))


def small_backbone(out_features: list[str] = STAGES) -> MscanBackbone:
    torch.manual_seed(0)
    return all_matter(MscanBackbone(MscanConfig(**MSCAN, out_features=out_features)))


@pytest.fixture(scope="module")
def model() -> OffsetSegNextForSemanticSegmentation:
    """Tests share it and leave it as it is."""
    return small_model()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def labels(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.arange(batch * height * width).view(batch, height, width) % 7


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 32), (33, 65), (301, 7)])
def test_any_size(size, model):
    """Sides are rounded up, level by level; nothing is padded."""
    output = model(images(2, 3, *size), output_hidden_states=True)
    sides = [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape[2:]) for x in output.hidden_states] == sides
    assert output.logits.shape == (2, 7, *sides[1])
    assert output.logits.isfinite().all()


def test_batch_norms_learn_their_statistics():
    model = small_model().train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    model(images(2, 3, 64, 64))
    assert len(norms) == 2 + 3 + 2 * sum(SEGNEXT["depths"])
    assert not any(torch.equal(norm.running_mean, before[name]) for name, norm in norms.items())
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms.values())


def test_initialization_is_the_official_one():
    torch.manual_seed(0)
    model = OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig.from_size("t"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert module.bias is None or (module.bias == 0).all(), name
        elif isinstance(module, MscaBlock):
            assert (module.attention_scale == 1e-2).all() and (module.mlp_scale == 1e-2).all(), name
    assert model.offset_learning.class_representation.std().item() == pytest.approx(0.02, rel=0.1)


def test_drop_path_drops_whole_samples():
    model = small_model(drop_path_rate=0.9).train()
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    pixel_values = images(1, 3, 64, 64).expand(8, -1, -1, -1)
    torch.manual_seed(0)
    logits = model(pixel_values).logits
    assert any(not torch.allclose(logits[0], other, atol=1e-3) for other in logits[1:])


# What is traced in eval mode but not in a training step is the same code as OffSeg's (tests/parity/test_modes.py).
@pytest.mark.slow
@torch.no_grad()
@graphs
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_is_one_graph(fused, backend, model):
    model = model.fuse() if fused else model
    pixel_values = images(2, 3, 70, 90)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_same_outputs(compiled(pixel_values).logits, model(pixel_values).logits)


@graphs
def test_training_step_is_one_graph(backend):
    model = small_model(drop_path_rate=0.0, depths=[1, 1, 1, 1], nmf_train_steps=2).train()
    inputs = {"pixel_values": images(2, 3, 64, 64), "labels": labels(2, 64, 64)}
    torch.compiler.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = copy.deepcopy(model)(**inputs).loss
        actual = torch.compile(model, fullgraph=True, backend=backend)(**inputs).loss
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_exported(fused, model):
    """One exported program for all batches of two and more and all sides that are multiples of 32, from 64 up."""
    model = model.fuse() if fused else model
    side = {name: 32 * torch.export.Dim(name, min=2, max=64) for name in ("height", "width")}
    dynamic = {0: torch.export.Dim("batch", min=2, max=16), 2: side["height"], 3: side["width"]}
    program = torch.export.export(
        model, (), {"pixel_values": images(2, 3, 128, 96)}, dynamic_shapes={"pixel_values": dynamic}
    )
    assert not any("autocast" in str(node.target) for node in program.graph.nodes)
    for shape in ((2, 3, 128, 96), (3, 3, 64, 64), (5, 3, 320, 64)):
        pixel_values = images(*shape)
        actual = program.module()(pixel_values=pixel_values).logits
        assert_same_outputs(actual, model(pixel_values).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_half_precision(dtype, fused, model):
    pixel_values = images(1, 3, 64, 64)
    expected = model(pixel_values).logits
    model = (model.fuse() if fused else copy.deepcopy(model)).to(dtype)
    logits = model(pixel_values.to(dtype)).logits
    assert logits.dtype == dtype
    assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


def test_bases_are_no_weights_and_in_half_precision_the_same(tmp_path):
    model, bases = small_model(nmf_seed=3), "pixel_decoder.hamburger.factorization.bases"
    assert bases not in model.state_dict()
    model.save_pretrained(tmp_path)
    half = OffsetSegNextForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert torch.equal(half.get_buffer(bases), model.get_buffer(bases))


HUB_SCRIPT = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
import torch
from transformers import AutoBackbone, AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("segnext", trust_remote_code=True)
# The method itself takes names on the Hub only: before this, it asks there whether the name exists.
backbone = super(AutoBackbone.__base__, AutoBackbone).from_pretrained("mscan", trust_remote_code=True)
assert all(type(part).__module__.startswith("transformers_modules.") for part in (model, backbone))
pixel_values = torch.load("images.pt")
with torch.no_grad():
    outputs = [model(pixel_values).logits, model.fuse()(pixel_values).logits, *backbone(pixel_values).feature_maps]
torch.save(outputs, "outputs.pt")
model.save_pretrained("again")
"""


@torch.no_grad()
def test_remote_code(model, tmp_path):
    """In another process, which has nothing but the saved folders and offseg_hf not at all."""
    backbone, pixel_values = small_backbone(["stage1", "stage4"]), images(2, 3, 50, 70)
    model.save_pretrained(tmp_path / "segnext")
    backbone.save_pretrained(tmp_path / "mscan")
    torch.save(pixel_values, tmp_path / "images.pt")
    run_python(HUB_SCRIPT, cwd=tmp_path)
    logits, fused, *feature_maps = torch.load(tmp_path / "outputs.pt")
    assert_same_outputs((logits, fused), (model(pixel_values).logits,) * 2)
    assert_same_outputs(feature_maps, backbone(pixel_values).feature_maps)
    for folder in ("segnext", "again"):
        assert {path.name for path in (tmp_path / folder).glob("*.py")} >= {"modeling_offset_segnext.py", "layers.py"}


@torch.no_grad()
def test_backbone():
    backbone = small_backbone()
    output = backbone(images(1, 3, 70, 33), output_hidden_states=True)
    shapes = [tuple(x.shape) for x in output.feature_maps]
    assert shapes == [(1, 8, 18, 9), (1, 8, 18, 9), (1, 16, 9, 5), (1, 24, 5, 3), (1, 32, 3, 2)]
    assert backbone.channels == [8, 8, 16, 24, 32]
    some = AutoBackbone.from_config(MscanConfig(**MSCAN, out_features=["stage2", "stage4"])).eval()
    some.load_state_dict(backbone.state_dict())
    maps = some(images(1, 3, 70, 33)).feature_maps
    assert_same_outputs(maps, output.feature_maps[2::2])


@torch.no_grad()
def test_backbone_of_a_trained_model(tmp_path):
    """The encoder of a SegNeXt, by the Auto class alone."""
    model = small_model().eval()
    model.save_pretrained(tmp_path)
    load = super(AutoBackbone.__base__, AutoBackbone).from_pretrained  # AutoBackbone's own asks the Hub about folders
    backbone, report = load(tmp_path, out_features=["stage2", "stage4"], output_loading_info=True)
    assert type(backbone) is OffsetSegNextBackbone and not any(report.values())
    pixel_values = images(1, 3, 64, 96)
    expected = model(pixel_values, output_hidden_states=True).hidden_states
    maps = backbone(pixel_values).feature_maps
    assert_same_outputs(maps, (expected[1], expected[3]))


def test_backbone_in_upernet():
    config = UperNetConfig(
        backbone_config=MscanConfig(**MSCAN, out_features=STAGES[1:]), hidden_size=16, pool_scales=[1, 2], num_labels=7
    )
    config.auxiliary_in_channels = 24
    model = UperNetForSemanticSegmentation(config)
    output = model(images(2, 3, 70, 90), labels=labels(2, 70, 90))
    output.loss.backward()
    assert output.logits.shape == (2, 7, 70, 90)
    assert model.backbone.encoder.stem.conv1.conv.weight.grad.abs().sum() > 0


def test_encoder_of_a_backbone_checkpoint(tmp_path):
    """A backbone's folder initializes the encoder through `from_pretrained` alone."""
    backbone = small_backbone()
    backbone.save_pretrained(tmp_path)
    model, report = OffsetSegNextForSemanticSegmentation.from_pretrained(
        tmp_path, config=OffsetSegNextConfig(**SEGNEXT), output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not any(name.startswith("encoder.") for name in report["missing_keys"])
    loaded = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    assert_same_weights(loaded, backbone)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"depths": [1, 1, 1]}, "four stages: expected 4 hidden_sizes, 4 depths and 4 mlp_ratios, got 4, 3 and 4"),
        ({"decoder_hidden_size": 100}, "decoder_hidden_size must be a positive multiple of 32, got 100"),
        ({"num_bases": 0}, "num_bases must be at least 1, got 0"),
    ],
)
def test_wrong_configuration(overrides, message):
    with pytest.raises(Exception, match=message):
        OffsetSegNextConfig(**(SEGNEXT | overrides))


def test_unknown_size():
    with pytest.raises(ValueError, match="unknown size 'l': expected one of t, s, b"):
        OffsetSegNextConfig.from_size("l")
