"""A network as OpenVINO's intermediate representation, made of its ONNX."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offseg_hf.utils.extras import require


if TYPE_CHECKING:
    from openvino import Model, Node

SMALL = 64  # bytes of what may be larger than what it is computed of


def convert_to_openvino(source: Path, target: Path, facts: Mapping[str, str]) -> None:
    """Write an ONNX file as `target` (.xml) and, beside it, its weights (.bin).

    A network of one size is written for one image at a time: for any number it takes OffSeg-T 1.06 times as long, and
    two images together take no less than two alone.

    Args:
        source: the ONNX file, which may be quantized.
        target: where to write.
        facts: metadata, below `offseg_hf` in the runtime information.
    """
    openvino = require("openvino", "export")
    # Not `convert_model`, which computes all that is constant, tables of positions too: 43 MB of OffSeg-T for 25.
    network = openvino.Core().read_model(source)
    number, *sizes = network.input(0).get_partial_shape()
    if number.is_dynamic and all(size.is_static for size in sizes):
        network.reshape([1, *(size.get_length() for size in sizes)])
    _compute_small_constants(network)
    for name, value in facts.items():
        network.set_rt_info(value, ["offseg_hf", name])
    openvino.save_model(network, target, compress_to_fp16=False)
    target.write_text(re.sub(r">\s+<", "><", target.read_text("utf-8")), "utf-8")  # a fifth of it is indentation


def _compute_small_constants(network: "Model") -> None:
    """Replace nodes by their values where these are known and take no more space: shapes, most of all."""
    from openvino import opset13

    for node in network.get_ordered_ops():
        for output, value in zip(node.outputs(), _values(node), strict=False):
            output.replace(opset13.constant(value).output(0))


def _values(node: "Node") -> list[np.ndarray]:
    """Return the values of a node's outputs, nothing if they are not known or take more space than its inputs do."""
    from openvino import Tensor

    outputs = node.outputs()
    if node.get_type_name() == "ShapeOf" and node.input(0).get_partial_shape().is_static:
        return [np.array(node.input(0).get_shape(), outputs[0].get_element_type().to_dtype())]
    sources = [output.get_node() for output in node.input_values()]
    is_known = sources and all(source.get_type_name() == "Constant" for source in sources)
    if not is_known or any(output.get_partial_shape().is_dynamic for output in outputs):
        return []
    inputs = [Tensor(source.get_data()) for source in sources]
    results = [Tensor(output.get_element_type(), output.get_shape()) for output in outputs]
    is_smaller = sum(result.byte_size for result in results) <= max(SMALL, sum(given.byte_size for given in inputs))
    return [result.data for result in results] if is_smaller and node.evaluate(results, inputs) else []
