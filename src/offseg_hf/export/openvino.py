"""A network as OpenVINO's intermediate representation, made of its ONNX."""

from collections.abc import Mapping
from pathlib import Path

from offseg_hf.utils.extras import require


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
    # Not `convert_model`, which writes what it computes of constants: OffSeg-T's 26 MB would be 43.
    network = openvino.Core().read_model(source)
    number, *sizes = network.input(0).get_partial_shape()
    if number.is_dynamic and all(size.is_static for size in sizes):
        network.reshape([1, *(size.get_length() for size in sizes)])
    for name, value in facts.items():
        network.set_rt_info(value, ["offseg_hf", name])
    openvino.save_model(network, target, compress_to_fp16=False)
