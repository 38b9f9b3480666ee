"""A network as ONNX, with what it is written into the file's own metadata."""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offseg_hf.export.trace import quiet
from offseg_hf.utils.extras import require


OPSET = 20  # the first with GELU
ACTIVATIONS = ("Relu", "Clip")  # which cut off: a quantized convolution cuts off for them
# What is computed of constants is baked into the file up to so many values; runtimes compute the rest when they load.
FOLDED_INPUT, FOLDED_OUTPUT = 1024, 4096


def export_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str], facts: Mapping[str, str]
) -> None:
    """Write a traced network as ONNX.

    Args:
        program: of `trace`.
        path: the file.
        outputs: their names.
        facts: metadata.

    Raises:
        ValueError: for a network with an operator that ONNX does not have.
    """
    require("onnxscript", "export")
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["pixel_values"],
                output_names=list(outputs),
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # of the exporter, without a base in common
        raise ValueError("this model cannot be exported to ONNX") from error
    assert exported is not None
    _simplify(exported.model)
    exported.model.metadata_props.update(facts)
    exported.save(path)


def _simplify(model: Any) -> None:
    """Compute what is constant and small, and drop what nobody uses or what is there twice.

    onnxscript's optimizer tries a hundred patterns at every node besides, for most of an export's time. Runtimes know
    those patterns themselves.
    """
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

    passes = require("onnx_ir.passes.common", "export")

    passes.InlinePass()(model)
    fold_constants_ir(model, onnx_shape_inference=True, input_size_limit=FOLDED_INPUT, output_size_limit=FOLDED_OUTPUT)
    for simplify in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RewritePass([fuse_batchnorm_into_conv_rule]),  # of models without `fuse`: int8 would leave norms in float32
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),  # of the exporter: where each line of code lies on this machine
    ):
        simplify(model)


def to_half(path: Path) -> None:
    """Turn the weights and the arithmetic of a file into fp16; images and logits stay float32."""
    onnx = require("onnx", "export")
    with _converters():
        from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def quantize(path: Path, images: Iterable[np.ndarray]) -> None:
    """Turn the convolutions of a file into int8, by what they see in images.

    The other operators stay as they are: quantized products of offset learning change a half of the labels. The
    first convolution stays, too, as its 8 bits would be those of the photo. An activation behind a convolution goes
    with it, so that its 8 bits are for what the activation lets through.

    Args:
        path: the file.
        images: float32 (1, channels, height, width).
    """
    with _converters():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"pixel_values": image}

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder, "model.onnx")
        # Its optimizer would write operators that ONNX Runtime alone knows.
        quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *ACTIVATIONS],
            nodes_to_quantize=_convolutions(prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _convolutions(path: Path) -> list[str]:
    """Return the names of the convolutions of a file but the first, and of the activations right behind them."""
    nodes = require("onnx", "export").load(path, load_external_data=False).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"][1:]
    outputs = {node.output[0] for node in convolutions}
    activations = (node for node in nodes if node.op_type in ACTIVATIONS and node.input[0] in outputs)
    return [node.name for node in (*convolutions, *activations)]


@contextmanager
def _converters() -> Iterator[None]:
    """Let modules of onnxruntime.transformers find each other: they add their folder to the search path, for good."""
    before = list(sys.path)
    sys.path.append(str(Path(require("onnxruntime", "export").__file__).parent / "transformers"))
    try:
        yield
    finally:
        sys.path[:] = before
