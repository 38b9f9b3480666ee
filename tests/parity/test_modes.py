"""However a model is run, it is the same function: in half precision, in batches, at any size, compiled, exported."""

import copy

import pytest
import torch
import torch.nn.functional as F

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.zoo.presets import get_preset
from tests.comparison import assert_same_gradients, assert_same_outputs
from tests.parity.conftest import converted
from tests.parity.fill import image


# torch.compile finds no graph break. Whether the graph can be decomposed into torch's core operators takes minutes, as
# do the slow tests of what compilers make of it.
graphs = pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def small_model() -> OffSegForSemanticSegmentation:
    """Every kind of module once, so that tracing is quick."""
    config = OffSegConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 2],
        mlp_ratios=[[2], [2], [2, 2], [2, 2]],
        num_attention_blocks=1,
        lateral_channels=[32, 32, 32, 64],
        decoder_hidden_size=32,
        image_size=64,
        layer_scale_init_value=0.5,
        num_labels=5,
    )
    torch.manual_seed(0)
    return OffSegForSemanticSegmentation(config).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(image("modes", shape))


@pytest.fixture(scope="module")
def scene() -> tuple[OffSegForSemanticSegmentation, torch.Tensor]:
    """An OffSeg-T whose last layers have learned one scene, and the scene.

    Random weights leave the two best classes of every twentieth pixel within the resolution of bfloat16, whoever
    computes them; a model that has learned something is what half precision is for.
    """
    picture, labels = render_scene(3, (192, 128))
    processor = get_preset("offseg-t-ade").image_processor(do_resize=False)
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    model = copy.deepcopy(converted("offseg-t-ade"))
    with torch.no_grad():
        pixel_features = model.pixel_decoder(model.encoder(pixel_values))
    labels = torch.from_numpy(labels[2::4, 2::4].astype("int64"))[None]
    optimizer = torch.optim.AdamW(model.offset_learning.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model.offset_learning(pixel_features), labels).backward()
        optimizer.step()
    return model, pixel_values


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_half_precision(dtype, fused, scene):
    model, pixel_values = scene
    expected = label_map(model(pixel_values).logits, pixel_values)
    model = model.fuse() if fused else copy.deepcopy(model)
    logits = model.to(dtype)(pixel_values.to(dtype)).logits
    assert logits.dtype == dtype
    assert (label_map(logits.float(), pixel_values) == expected).float().mean() >= 0.99


def label_map(logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear").argmax(dim=1)


@torch.no_grad()
def test_fused_is_equal(model):
    pixel_values = images(1, 3, 200, 333)
    expected, actual = (m(pixel_values, output_hidden_states=True) for m in (model, model.fuse()))
    assert_same_outputs((actual.logits, *actual.hidden_states), (expected.logits, *expected.hidden_states))


@torch.no_grad()
def test_batch_is_its_images(model_of):
    model = model_of("offseg-t-ade")
    pixel_values = images(3, 3, 96, 160)
    separate = torch.cat([model(one).logits for one in pixel_values.split(1)])
    assert_same_outputs(model(pixel_values).logits, separate)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 32), (33, 65), (64, 64), (301, 7)])
def test_any_size(size, model_of):
    """As the official code on the image padded with zeros to a multiple of 32, without the logits of the padding."""
    model = model_of("offseg-t-ade")
    pixel_values = images(2, 3, *size)
    padded = F.pad(pixel_values, (0, -size[1] % 32, 0, -size[0] % 32))
    logits = model(pixel_values).logits
    height, width = (size[0] + 3) // 4, (size[1] + 3) // 4
    assert logits.shape == (2, 150, height, width)
    assert logits.isfinite().all()
    assert_same_outputs(logits, model(padded).logits[:, :, :height, :width])


@torch.no_grad()
def test_outputs(model):
    pixel_values = images(1, 3, 64, 96)
    output = model(pixel_values)
    assert output.hidden_states is None and output.loss is None and output.image_sizes is None
    output = model(pixel_values, output_hidden_states=True)
    assert [tuple(x.shape) for x in output.hidden_states] == [
        (1, 32, 16, 24),
        (1, 48, 8, 12),
        (1, 120, 4, 6),
        (1, 224, 2, 3),
    ]
    logits, hidden_states = model(pixel_values, output_hidden_states=True, return_dict=False)
    assert_same_outputs((logits, *hidden_states), (output.logits, *output.hidden_states))

    labels = torch.zeros(1, 64, 96, dtype=torch.long)
    loss, logits = model(pixel_values, labels=labels, return_dict=False)
    assert_same_outputs((loss, logits), (model(pixel_values, labels=labels).loss, output.logits))


def test_loss_ignores(small_model):
    """The mean is over all pixels; an image of ignored ones gives 0 and gradients of 0, not NaN."""
    pixel_values = images(1, 3, 64, 64)
    labels = torch.full((1, 64, 64), 255)
    loss = small_model(pixel_values, labels=labels).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in small_model.parameters())
    small_model.zero_grad()

    labels[:, :16] = 1
    quarter = small_model(pixel_values, labels=labels).loss
    upsampled = F.interpolate(small_model(pixel_values).logits, size=(64, 64), mode="bilinear")
    assert_same_outputs(quarter, F.cross_entropy(upsampled[:, :, :16], labels[:, :16]) / 4)


def test_gradient_checkpointing(small_model):
    def step() -> dict[str, torch.Tensor]:
        small_model.zero_grad()
        labels = torch.arange(64 * 64).view(1, 64, 64).expand(2, -1, -1) % 5
        small_model(images(2, 3, 64, 64), labels=labels).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in small_model.named_parameters()}

    small_model.train()
    plain = step()
    small_model.activation_checkpointing_enable()
    calls = count_recomputations(small_model)
    checkpointed = step()
    small_model.activation_checkpointing_disable()
    small_model.eval().zero_grad()
    assert set(calls.values()) == {2}  # every block of the encoder and every fusion ran forward twice
    assert sum(gradient.abs().sum() for gradient in plain.values()) > 0
    assert_same_gradients(checkpointed, plain)


def count_recomputations(model: torch.nn.Module) -> dict[str, int]:
    """Counts the forward passes of what each checkpointed module contains."""
    calls = {}
    for name, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", None) is True:
            first = next(module.children())
            calls[name] = 0
            first.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    return calls


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_is_one_graph(fused, backend, small_model):
    assert_one_graph(small_model.fuse() if fused else small_model, backend)


@pytest.mark.slow
@torch.no_grad()
def test_what_only_inference_does_is_one_graph(small_model):
    """The padding, offset learning in eval mode and fused layers; the rest is traced in the training step below."""
    config = copy.deepcopy(small_model.config)
    config.pixel_decoder = "mlp"
    assert_one_graph(OffSegForSemanticSegmentation(config).eval().fuse(), "eager")


def assert_one_graph(model: OffSegForSemanticSegmentation, backend: str) -> None:
    pixel_values = images(2, 3, 70, 90)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_same_outputs(compiled(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.slow
@graphs
def test_training_step_is_one_graph(backend, small_model):
    pixel_values, labels = images(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.long)
    torch.compiler.reset()
    compiled = torch.compile(small_model.train(), fullgraph=True, backend=backend)
    actual = compiled(pixel_values, labels=labels).loss
    expected = small_model(pixel_values, labels=labels).loss
    small_model.eval()
    assert_same_outputs(actual, expected)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_compiled(fused, model):
    """By the default compiler, which needs a C++ compiler on the machine; the whole OffSeg-T, once per size."""
    model = model.fuse() if fused else model
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    for size in ((128, 160), (65, 33)):
        pixel_values = images(1, 3, *size)
        torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits, rtol=1e-3, atol=5e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
def test_exported(fused, small_model):
    """One exported program for all batches of two and more and all sides that are multiples of 32, from 64 up."""
    model = small_model.fuse() if fused else small_model
    side = {name: 32 * torch.export.Dim(name, min=2, max=64) for name in ("height", "width")}
    dynamic = {0: torch.export.Dim("batch", min=2, max=16), 2: side["height"], 3: side["width"]}
    program = torch.export.export(
        model, (), {"pixel_values": images(2, 3, 128, 96)}, dynamic_shapes={"pixel_values": dynamic}
    ).module()
    for shape in ((2, 3, 128, 96), (3, 3, 64, 64), (2, 3, 96, 256), (5, 3, 320, 64)):
        pixel_values = images(*shape)
        actual = program(pixel_values=pixel_values).logits
        assert_same_outputs(actual, model(pixel_values).logits)
