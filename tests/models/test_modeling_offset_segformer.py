"""SegFormer with offset learning: transformers' encoder, the official head, and all the ways to run them."""

import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import SegformerConfig, SegformerModel

from offseg_hf import OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation
from tests.comparison import assert_same_outputs
from tests.parity.test_modes import graphs


ENCODER = {
    "hidden_sizes": [8, 16, 20, 32],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 5, 8],
    "drop_path_rate": 0.0,
}
SMALL = ENCODER | {
    "decoder_hidden_size": 16,
    "id2label": {0: "sky", 1: "tree", 2: "road"},
    "label2id": {"sky": 0, "tree": 1, "road": 2},
}


def small_model(**fields) -> OffsetSegformerForSemanticSegmentation:
    """In eval mode, with values unlike those of any initialization in every parameter and buffer."""
    model = OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig(**SMALL | fields)).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


@pytest.fixture
def model() -> OffsetSegformerForSemanticSegmentation:
    return small_model()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def labels_like(pixel_values: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = pixel_values.shape
    return torch.randint(0, 3, (batch, height, width), generator=torch.Generator().manual_seed(2))


# Architecture


@torch.no_grad()
def test_encoder_is_that_of_transformers():
    """With the eps that transformers has, which is not the official one."""
    model, pixel_values = small_model(layer_norm_eps=1e-5), images(2, 3, 64, 96)
    stock = SegformerModel(SegformerConfig(**ENCODER)).eval()
    stock.load_state_dict(model.segformer.state_dict())
    expected = stock(pixel_values, output_hidden_states=True).hidden_states
    actual = model(pixel_values, output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in actual] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 20, 4, 6), (2, 32, 2, 3)]
    assert_same_outputs(actual, expected)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_eps_of_every_layer_norm(eps):
    """Embeddings, before and after attention, of reduced sequences, and at the end of every stage."""
    model = small_model(layer_norm_eps=eps)
    norms = [module for module in model.segformer.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 4 + 2 * 5 + 4 + 4 and {norm.eps for norm in norms} == {eps}
    assert OffsetSegformerConfig().layer_norm_eps == 1e-6


@torch.no_grad()
def test_head_in_plain_arithmetic(model):
    """Convolution, norm and ReLU per stage, the first stage first, then fused, pooled and compared with classes."""
    pixel_values = images(2, 3, 70, 93)
    output = model(pixel_values, output_hidden_states=True)

    def conv_norm_relu(x, name):
        weights = {key: model.state_dict()[f"pixel_decoder.{name}.{key}"] for key in ("conv.weight", "norm.weight")}
        norm = model.get_submodule(f"pixel_decoder.{name}.norm")
        x = torch.einsum("bihw,oi->bohw", x, weights["conv.weight"][:, :, 0, 0])
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        return (x * weights["norm.weight"][:, None, None] + norm.bias[:, None, None]).clamp(min=0)

    laterals = [conv_norm_relu(x, f"lateral_convs.{i}") for i, x in enumerate(output.hidden_states)]
    laterals = [F.interpolate(x, size=(18, 24), mode="bilinear", align_corners=False) for x in laterals]
    fused = conv_norm_relu(torch.cat(laterals, dim=1), "output_conv")
    pooled = fused[:, :, :18, :24].unflatten(2, (9, 2)).unflatten(4, (12, 2)).amax(dim=(3, 5))
    assert_same_outputs(output.logits, model.offset_learning(pooled))


@torch.no_grad()
@pytest.mark.parametrize("size", [(29, 29), (33, 65), (36, 100), (101, 35), (64, 64)])
def test_logits_have_an_eighth_of_the_size(model, size):
    """A quarter, rounded up, and half of it, rounded down; nothing is padded."""
    expected = tuple(math.ceil(length / 4) // 2 for length in size)
    logits = model(images(1, 3, *size)).logits
    assert logits.shape == (1, 3, *expected) and logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("sr_ratios", "smallest"), [([8, 4, 2, 1], 29), ([1, 1, 1, 1], 5), ([1, 1, 8, 1], 113)])
def test_smallest_image(sr_ratios, smallest):
    model = small_model(sr_ratios=sr_ratios)
    assert model(images(1, 3, smallest, smallest + 3)).logits.numel() > 0
    with pytest.raises(ValueError, match=rf"at least {smallest} pixels on either side, got \({smallest + 9}, "):
        model(images(1, 3, smallest + 9, smallest - 1))
    with pytest.raises(RuntimeError):  # there is nothing to compute, be it checked or not
        F.max_pool2d(model.segformer(images(1, 3, smallest, smallest - 1), output_hidden_states=True)[1][0], 2)


@torch.no_grad()
@pytest.mark.parametrize("use_class_offset", [False, True])
@pytest.mark.parametrize("use_feature_offset", [False, True])
def test_ablation(use_class_offset, use_feature_offset):
    """The switches of the paper's Table 6: without an offset there is no projection, without both only a product."""
    model = small_model(use_class_offset=use_class_offset, use_feature_offset=use_feature_offset)
    head = model.offset_learning
    names = {name for name in model.state_dict() if "offset_proj" in name}
    assert names == {
        f"offset_learning.{kind}_offset_proj.weight"
        for kind, used in (("class", use_class_offset), ("feature", use_feature_offset))
        if used
    }
    pixel_values = images(1, 3, 64, 64)
    logits = model(pixel_values).logits
    features = F.max_pool2d(model.pixel_decoder(model.encode(pixel_values)), 2)
    products = torch.einsum("bchw,kc->bhwk", features, head.class_representation[0])
    plain = head.logit_norm(products).permute(0, 3, 1, 2)
    assert torch.allclose(logits, plain, rtol=1e-4, atol=1e-4) == (not names)


@torch.no_grad()
def test_attention_implementations():
    pixel_values, logits = images(2, 3, 64, 96), {}
    for implementation in ("eager", "sdpa"):
        model = small_model(attn_implementation=implementation)
        assert model.segformer.config._attn_implementation == implementation
        logits[implementation] = model(pixel_values).logits
    assert_same_outputs(logits["eager"], logits["sdpa"])
    model.set_attn_implementation("eager")
    assert_same_outputs(model(pixel_values).logits, logits["eager"])


# Configuration


def test_sizes():
    assert OffsetSegformerConfig.from_size("b0").to_dict() == OffsetSegformerConfig().to_dict()
    config = OffsetSegformerConfig.from_size("b5", num_labels=19, drop_path_rate=0.3)
    assert (config.depths, config.num_labels, config.drop_path_rate) == ([3, 6, 40, 3], 19, 0.3)
    assert config.decoder_hidden_size == 256 and config.layer_norm_eps == 1e-6
    with pytest.raises(ValueError, match="unknown size 'b6': expected one of b0, b1, b2, b3, b4, b5"):
        OffsetSegformerConfig.from_size("b6")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [2, 2, 2]}, r"depths wants one number per stage \(4\), got \[2, 2, 2\]"),
        ({"num_encoder_blocks": 3}, r"wants one number per stage \(3\)"),
        ({"num_attention_heads": [1, 2, 3, 8]}, "must be multiples of num_attention_heads, stage by stage: got "),
        ({"reshape_last_stage": False}, "reshape_last_stage must be True"),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        OffsetSegformerConfig(**fields)


def test_drop_path_grows_with_depth():
    """As in the official code: linearly from none in the first layer; the other dropouts are off."""
    model = OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig(**SMALL | {"drop_path_rate": 0.1}))
    blocks = [block for stage in model.segformer.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0) for block in blocks]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0}


def test_initialization():
    """As the official code starts from scratch."""
    torch.manual_seed(0)
    config = OffsetSegformerConfig(hidden_sizes=[32, 64, 160, 256], depths=[1, 1, 1, 1], num_labels=150)
    model = OffsetSegformerForSemanticSegmentation(config)
    block = model.segformer.stages[1].blocks[0]
    expected = {
        model.segformer.stages[0].patch_embeddings.proj: (2 / (32 * 49)) ** 0.5,
        block.mlp.dwconv.dwconv: (2 / 9) ** 0.5,
        block.mlp.fc1: (2 / 256) ** 0.5,
        block.mlp.fc2: (2 / 64) ** 0.5,
        block.attention.sequence_reduction.sequence_reduction: (2 / (64 * 16)) ** 0.5,
        block.attention.q_proj: (2 / (4 * 64)) ** 0.5,
        block.attention.v_proj: (2 / (4 * 64)) ** 0.5,
        block.attention.o_proj: 0.02,
        model.pixel_decoder.lateral_convs[1].conv: (2 / 256) ** 0.5,
        model.pixel_decoder.output_conv.conv: (2 / 256) ** 0.5,
        model.offset_learning.class_offset_proj: 0.02,
    }
    for module, std in expected.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.1), module
    assert block.attention.k_proj.weight.abs().max() < (6 / (4 * 64)) ** 0.5
    assert model.offset_learning.class_representation.std().item() == pytest.approx(0.02, rel=0.1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name


# Training


# Ways to run it


# What is traced in eval mode but not in a training step is the same code as OffSeg's (tests/parity/test_modes.py).
@graphs
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_is_one_graph(training, backend):
    model, pixel_values = small_model(depths=[1, 1, 1, 1]), images(2, 3, 70, 90)
    inputs = {"pixel_values": pixel_values} | ({"labels": labels_like(pixel_values)} if training else {})
    torch.compiler.reset()
    compiled = torch.compile(model.train(training), fullgraph=True, backend=backend)
    with torch.set_grad_enabled(training):
        actual, expected = compiled(**inputs), model(**inputs)
    assert_same_outputs(actual.logits, expected.logits)
    if training:
        assert_same_outputs(actual.loss, expected.loss)


@pytest.mark.slow
@torch.no_grad()
def test_exported(model):
    """One exported program for all batches of two and more and all sides that are multiples of 32, from 64 up."""
    side = {name: 32 * torch.export.Dim(name, min=2, max=64) for name in ("height", "width")}
    dynamic = {0: torch.export.Dim("batch", min=2, max=16), 2: side["height"], 3: side["width"]}
    program = torch.export.export(
        model, (), {"pixel_values": images(2, 3, 128, 96)}, dynamic_shapes={"pixel_values": dynamic}
    ).module()
    for shape in ((2, 3, 128, 96), (3, 3, 64, 64), (5, 3, 320, 64)):
        actual = program(pixel_values=images(*shape)).logits
        assert_same_outputs(actual, model(images(*shape)).logits)
