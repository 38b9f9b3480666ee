"""What `torch.onnx.export` and `torch.export` make of the models, without a patch: one graph for every size.

Graphs must run anywhere, in a browser too: without control flow and sequences (torch turns an `embedding_bag` into a
loop over pixels), with no operator of anyone's own, and without arithmetic in int64 but on shapes: WebGPU has none.
"""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from offseg_hf.models.encoder_efficientformer_v2 import Attention2d, AttentionBias, AttentionDownsample
from offseg_hf.models.layers import ConvNorm, fuse
from offseg_hf.models.pixel_decoder_freqfusion import FreqFusion, carafe, sample_displaced
from tests.comparison import assert_same_outputs
from tests.tiny import random_values, tiny_model
from tests.webgpu import data_nodes


ANY = torch.export.Dim.DYNAMIC
ANY_IMAGES = {0: ANY, 2: ANY, 3: ANY}
SEMANTIC = ("offseg", "segformer", "segnext")
CONTROL_FLOW = {"Loop", "If", "Scan"}
# These move int64 to where it is wanted, and compute nothing.
MOVES = {"Cast", "Gather", "Reshape", "Unsqueeze", "Squeeze", "Shape"}


def export(model: nn.Module, inputs: dict[str, Tensor], dynamic: dict, path: Path) -> onnxruntime.InferenceSession:
    """Export, check what the graph holds, and load it."""
    torch.onnx.export(model.eval(), (), str(path), kwargs=inputs, dynamic_shapes=dynamic, dynamo=True, verbose=False)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    assert not {node.op_type for node in graph.node if node.op_type in CONTROL_FLOW or "Sequence" in node.op_type}
    assert {node.domain for node in graph.node} == {""}
    assert not int64_arithmetic(graph)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def int64_arithmetic(graph: onnx.GraphProto) -> list[str]:
    """Nodes that compute in int64, on anything but shapes."""
    return [
        node.op_type
        for node, kind in data_nodes(graph)
        if kind == onnx.TensorProto.INT64 and node.op_type not in MOVES
    ]


def run(session: onnxruntime.InferenceSession, inputs: dict[str, Tensor]) -> list[Tensor]:
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


PARTS = {  # how they are made, and their maps: channels, and how many times the size of the coarsest
    "fusion": (lambda: FreqFusion(32, 32), {"high_res": (32, 2), "low_res": (32, 1)}),
    "attention": (
        lambda: nn.Sequential(Attention2d(8, 4, 2, ConvNorm), AttentionDownsample(8, 8, 4, ConvNorm)),
        {"input": (8, 2)},
    ),
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_offseg(part, tmp_path):
    """Those whose eager arithmetic no runtime has, or that depends on the size."""
    make, maps = PARTS[part]
    torch.manual_seed(0)
    model = fuse(random_values(make()))

    def inputs(batch, height, width):
        return {name: images(batch, c, s * height, s * width) for name, (c, s) in maps.items()}

    size = [torch.export.Dim(name, min=1, max=64) for name in ("height", "width")]
    dynamic = {name: {0: ANY, 2: s * size[0], 3: s * size[1]} for name, (_, s) in maps.items()}
    session = export(model, inputs(2, 6, 5), dynamic, tmp_path / "part.onnx")
    for shape in ((2, 6, 5), (1, 4, 4), (3, 7, 11), (1, 1, 2)):
        assert_same_outputs(run(session, inputs(*shape)), [model(**inputs(*shape))])


class Operators(nn.Module):
    """What no runtime has, or what depends on the size, of all that OffSeg is made of."""

    def __init__(self):
        super().__init__()
        self.attention_bias = random_values(AttentionBias(4))

    def forward(self, features: Tensor, kernels: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
        upsampled = carafe(features, kernels, scale=2)
        return sample_displaced(upsampled, displacement), self.attention_bias(features.shape[3])


OPERATORS = Operators()


def operands(batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Of values that float16 holds, or holds well."""
    features, kernels = images(batch, 8, height, width), images(batch, 2 * height, 2 * width, 25).softmax(dim=-1)
    displacement = (64 * 4 * images(batch, 8, 2 * height, 2 * width)).round() / 64
    return {"features": features, "kernels": kernels, "displacement": displacement}


@pytest.fixture(scope="module")
def operators(tmp_path_factory) -> Path:
    """OPERATORS as a file, for maps of every size."""
    path = tmp_path_factory.mktemp("operators") / "operators.onnx"
    size = [torch.export.Dim(name, min=1, max=8192) for name in ("height", "width")]
    once, twice = size, [2 * side for side in size]
    dynamic = {
        "features": {0: ANY, 2: once[0], 3: once[1]},
        "kernels": {0: ANY, 1: twice[0], 2: twice[1]},
        "displacement": {0: ANY, 2: twice[0], 3: twice[1]},
    }
    export(OPERATORS, operands(2, 5, 6), dynamic, path)
    return path


@torch.no_grad()
def test_operators(operators):
    session = onnxruntime.InferenceSession(operators, providers=["CPUExecutionProvider"])
    for shape in ((2, 5, 6), (1, 4, 16), (3, 7, 11), (1, 1, 2)):
        inputs = operands(*shape)
        assert_same_outputs(run(session, inputs), OPERATORS(**inputs))


@torch.no_grad()
def test_positions_outlive_half_precision(operators, tmp_path):
    """In a runtime that computes all floats in float16, which does not tell columns apart that lie beyond 2048."""
    inputs = operands(1, 2, 2500)
    expected = OPERATORS(**inputs)
    half = convert_float_to_float16(onnx.load(operators), keep_io_types=True)
    onnx.save(half, tmp_path / "half.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    for actual, right in zip(run(session, inputs), expected):
        torch.testing.assert_close(actual, right, rtol=0, atol=0.02)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        features = displacement = inputs["displacement"].to(dtype)
        exact = sample_displaced(features.float(), displacement.float())
        actual = sample_displaced(features, displacement).float()
        assert (actual - exact).abs().max() < tolerance * features.float().abs().max()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
@pytest.mark.parametrize("family", SEMANTIC)
def test_models(family, fused, tmp_path):
    model = tiny_model(family).fuse() if fused else tiny_model(family)
    session = export(model, {"pixel_values": images(2, 3, 96, 64)}, {"pixel_values": ANY_IMAGES}, tmp_path / "m.onnx")
    # Where the few classes of a random model are nearly equal, eager float32 is far from exact.
    exact = model.double()
    for shape in ((2, 3, 96, 64), (1, 3, 64, 64), (1, 3, 333, 501), (3, 3, 61, 97)):
        pixel_values = images(*shape)
        logits = exact(pixel_values.double()).logits.float()
        assert_same_outputs(run(session, {"pixel_values": pixel_values}), [logits])


@pytest.mark.slow
@torch.no_grad()
def test_programs_of_torch_for_any_size():
    model = tiny_model("offseg")
    inputs = {"pixel_values": images(2, 3, 96, 64)}
    program = torch.export.export(model, (), inputs, dynamic_shapes={"pixel_values": ANY_IMAGES}).module()
    for shape in ((2, 3, 96, 64), (1, 3, 333, 501), (3, 3, 61, 97)):
        inputs = {"pixel_values": images(*shape)}
        assert_same_outputs(program(**inputs).logits, model(**inputs).logits)


@pytest.mark.slow
@torch.no_grad()
def test_all_sizes_are_compiled_twice_at_most():
    """Once for the first size, and once for all others; once more where the coarsest map has a single row.

    PyTorch itself tells one row from more: the order of a convolution's strides is another.
    """
    model, graphs = tiny_model("offseg").fuse(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for most, sizes in ((2, ((96, 64), (70, 90), (128, 160), (333, 501), (64, 64))), (3, ((32, 200), (32, 500)))):
        for size in sizes:
            pixel_values = images(2, 3, *size)
            assert_same_outputs(compiled(pixel_values).logits, model(pixel_values).logits)
        assert len(graphs) <= most
