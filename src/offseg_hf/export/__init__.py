"""Models as files for other runtimes: `export` writes and checks one, `runtime` runs it as the model is run."""

from enum import StrEnum


class Format(StrEnum):
    """Name the formats of files, by what runs them."""

    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"
    aotinductor = "aotinductor"


class Precision(StrEnum):
    """Name what networks compute in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
