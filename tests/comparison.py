"""How results are compared: weights bit by bit, outputs to the rounding of their arithmetic.

A product of matrices is a sum, and floating-point sums depend on their order. The order depends on the processor, on
the number of threads and, in MKL and oneDNN, on where in memory the operands lie: weights that `from_pretrained` maps
from a safetensors file lie where the file has them, hardly ever on a 64-byte boundary as tensors that torch allocates
do. So equal weights give outputs that differ in the last digits, on some processors, for some shapes.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


# Units in the last place of the largest value. Measured over models of every family with weights at every alignment:
# outputs differ by up to 20. A weight that is missing or wrong changes them by 10,000 and more.
ROUNDINGS = 256


def assert_same_weights(actual: nn.Module | Mapping[str, Tensor], expected: nn.Module | Mapping[str, Tensor]) -> None:
    """Fail unless both have the same names and, under each, the same type and the same bits."""
    actual, expected = (x.state_dict() if isinstance(x, nn.Module) else x for x in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def assert_same_outputs(
    actual: Tensor | Iterable[Tensor], expected: Tensor | Iterable[Tensor], roundings: float = ROUNDINGS
) -> None:
    """Fail if a value differs by more than `roundings` units in the last place of the largest expected value."""
    if isinstance(expected, Tensor):
        actual, expected = [actual], [expected]
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), index
        if not b.is_floating_point():
            assert torch.equal(a, b), index
            continue
        scale = b.abs().max().item() * torch.finfo(b.dtype).eps
        difference = (a - b).abs().max().item()
        assert difference <= roundings * scale, f"output {index} differs by {difference / scale:.0f} roundings"


def at_alignment(model: nn.Module, offset: int) -> nn.Module:
    """A copy of `model` whose weights lie `offset` bytes behind a 64-byte boundary, as those of a file may."""
    model = deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        memory = torch.empty(tensor.nbytes + 128, dtype=torch.uint8)
        start = -memory.data_ptr() % 64 + offset
        moved = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.data = moved.copy_(tensor.detach())
    return model
