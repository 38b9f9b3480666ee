"""How results are compared: weights bit by bit, outputs to the rounding of their arithmetic.

A product of matrices is a sum, and floating-point sums depend on their order. The order depends on the processor, on
the number of threads and of samples and, in MKL and oneDNN, on where in memory the operands lie: weights that
`from_pretrained` maps from a safetensors file lie where the file has them, hardly ever on a 64-byte boundary as
tensors that torch allocates do. So equal weights give outputs that differ in the last digits, on some processors, for
some shapes; and label maps that differ where two classes are equally good.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn


# Units in the last place of the largest value, `eps` times that. Measured on an AMD EPYC (Zen 3, AVX2), small models
# of every family: at other alignments they differ from themselves by up to 98, on two threads by 208, image by image
# instead of in a batch by 881 (where the few classes of a random model are nearly equal; mostly well under 100). One
# matrix of weights that is 1 % off makes 9,000 to 500,000 in the median, one of zeros millions.
ROUNDINGS = 4096

Outputs = Tensor | Mapping[str, "Outputs"] | Iterable["Outputs"]


def assert_same_weights(actual: nn.Module | Mapping[str, Tensor], expected: nn.Module | Mapping[str, Tensor]) -> None:
    """Fail unless both have the same names and, under each, the same type and the same bits."""
    actual, expected = (x.state_dict() if isinstance(x, nn.Module) else x for x in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def assert_same_outputs(actual: Outputs, expected: Outputs, roundings: float = ROUNDINGS) -> None:
    """Fail if a value differs by more than `roundings` units in the last place of its tensor's largest expected value.

    Outputs are tensors, or mappings and sequences of outputs, with the same names, shapes and types on both sides.
    """
    for name, a, b in _pairs(actual, expected):
        assert_within(a, b, roundings * rounding_of(b), name)


def assert_same_gradients(actual: Outputs, expected: Outputs, roundings: float = ROUNDINGS) -> None:
    """As `assert_same_outputs`; but a gradient whose terms cancel, as those of biases before a norm do, is nothing but
    the rounding of larger ones: what is far below the largest of all gradients is not told from zero."""
    pairs = list(_pairs(actual, expected))
    least = max(rounding_of(b) for _, _, b in pairs) / 64
    for name, a, b in pairs:
        assert_within(a, b, roundings * max(rounding_of(b), least), name)


def assert_other_outputs(actual: Outputs, expected: Outputs, roundings: float = ROUNDINGS) -> None:
    """Fail if every value could be the expected one but for rounding."""
    assert any((a - b).abs().max() > 2 * roundings * rounding_of(b) for _, a, b in _pairs(actual, expected))


def rounding_of(tensor: Tensor) -> float:
    """A unit in the last place of a tensor's largest value; 0 for integers."""
    return tensor.abs().max().item() * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in roundings of the largest expected value."""
    return (actual - expected).abs().max().item() / rounding_of(expected)


def assert_within(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
    if tolerance == 0:
        assert torch.equal(actual, expected), name
    else:
        off = (actual - expected).abs().max().item()
        assert off <= tolerance, f"{name} differs by {off:.3g}, more than {tolerance:.3g}"


def sure_pixels(scores: Tensor, roundings: float = ROUNDINGS) -> Tensor:
    """Where the best class leads the second by more than both may move: (..., classes, height, width) scores to a
    mask (..., height, width). Elsewhere rounding decides which label a pixel gets."""
    best, second = scores.topk(2, dim=-3).values.unbind(-3)
    return best - second > 2 * roundings * rounding_of(scores)


def assert_same_counts(actual: np.ndarray, expected: np.ndarray, share: float = 0.002) -> None:
    """Fail unless two confusion matrices count the same labels, and the same predictions but for a share of them that
    rounding may have decided."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert np.array_equal(actual.sum(axis=1), expected.sum(axis=1))
    moved = np.abs(actual - expected).sum() / 2
    assert moved <= share * expected.sum(), f"{moved:.0f} of {expected.sum()} pixels are predicted otherwise"


def at_alignment(model: nn.Module, offset: int) -> nn.Module:
    """A copy of `model` whose weights lie `offset` bytes behind a 64-byte boundary, as those of a file may."""
    model = deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():  # counters are not computed with
            tensor.data = moved(tensor.detach(), offset)
    return model


def moved(tensor: Tensor, offset: int) -> Tensor:
    """A contiguous copy that lies `offset` bytes behind a 64-byte boundary."""
    memory = torch.empty(tensor.nbytes + 128, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + offset
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _pairs(actual: Outputs, expected: Outputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    actual, expected = dict(_named(actual)), dict(_named(expected))
    assert actual.keys() == expected.keys()
    return ((name, actual[name], tensor) for name, tensor in expected.items())


def _named(outputs: Outputs, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name, outputs
        return
    for key, value in outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs):
        yield from _named(value, f"{name}.{key}")
