"""A network as OpenVINO's intermediate representation, made of its ONNX."""

from collections.abc import Mapping
from pathlib import Path

from offseg_hf.utils.extras import require


def convert_to_openvino(source: Path, target: Path, facts: Mapping[str, str]) -> None:
    """Write an ONNX file as `target` (.xml) and, beside it, its weights (.bin).

    Args:
        source: the ONNX file, which may be quantized.
        target: where to write.
        facts: metadata, below `offseg_hf` in the runtime information.
    """
    openvino = require("openvino", "export")
    network = openvino.convert_model(source)
    for name, value in facts.items():
        network.set_rt_info(value, ["offseg_hf", name])
    openvino.save_model(network, target, compress_to_fp16=False)
