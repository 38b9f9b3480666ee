"""How large tensors become on the way to a result."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def sizes_of_results() -> Iterator[list[int]]:
    """Yield a list, to which the number of values of each tensor is added that torch's functions return meanwhile."""
    sizes: list[int] = []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            sizes.extend([result.numel()] if isinstance(result, torch.Tensor) else [])
            return result

    with Sizes():
        yield sizes
