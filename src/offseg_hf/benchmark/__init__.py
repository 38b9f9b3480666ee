"""Latency, throughput and memory of models in the runtimes that are installed here: `benchmark` measures them."""

from enum import StrEnum


class Runtime(StrEnum):
    """Name what runs a network."""

    eager = "eager"  # PyTorch, the model as loaded
    fused = "fused"  # PyTorch, `model.fuse()`
    compiled = "compiled"  # PyTorch, `torch.compile` of the fused model, or of the model where it cannot be fused
    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"  # PyTorch, a program of `torch.export`
    aotinductor = "aotinductor"  # PyTorch, that program compiled by AOTInductor
