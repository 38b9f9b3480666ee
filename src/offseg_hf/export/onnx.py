"""A network as ONNX: traced by `torch.export`, with what it is written into the file's own metadata."""

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from offseg_hf.export.runtime import require


OPSET = 20  # the first with GELU
# What is computed of constants is baked into the file up to so many values; runtimes compute the rest when they load.
FOLDED_INPUT, FOLDED_OUTPUT = 1024, 4096


class Logits(nn.Module):
    """A model as a function from images to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits of images."""
        return self.model(pixel_values=pixel_values).logits


def export_onnx(model: nn.Module, path: Path, example: Tensor, facts: Mapping[str, str]) -> None:
    """Write a model as ONNX, for images of one size, one at a time.

    Args:
        model: of transformers, whose outputs are `logits`.
        path: the file.
        example: an image (1, channels, height, width) of the size.
        facts: metadata.

    Raises:
        ValueError: for a model that cannot be traced.
    """
    require("onnxscript")
    from onnxscript.optimizer import optimize_ir

    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                Logits(model).eval(),
                (),
                kwargs={"pixel_values": example},
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # of the tracer, of the exporter and of the model: they have no base in common
        raise ValueError("this model cannot be exported to ONNX") from error
    assert program is not None
    optimize_ir(program.model, input_size_limit=FOLDED_INPUT, output_size_limit=FOLDED_OUTPUT)
    program.model.metadata_props.update(facts)
    program.save(path)


def to_half(path: Path) -> None:
    """Turn the weights and the arithmetic of a file into fp16; images and logits stay float32."""
    onnx = require("onnx")
    with _converters():
        from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def quantize(path: Path, images: Iterable[np.ndarray]) -> None:
    """Turn the convolutions of a file into int8, by what they see in images.

    The other operators stay as they are: quantized products of offset learning change a half of the labels.

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

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "model.onnx")
        # Its optimizer would write operators that ONNX Runtime alone knows.
        quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _converters() -> Iterator[None]:
    """Let modules of onnxruntime.transformers find each other: they add their folder to the search path, for good."""
    before = list(sys.path)
    sys.path.append(str(Path(require("onnxruntime").__file__).parent / "transformers"))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own future and insides from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
