"""A network as a graph, by `torch.export`: what all formats are made of."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


# An example of images of any size: not of one side or number, as what is equal in it would be taken for equal always.
ANY_EXAMPLE = (2, 96, 64)


class Outputs(nn.Module):
    """A model of transformers as a function from images to some of its outputs."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = list(names)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of images (batch, channels, height, width)."""
        outputs = self.model(pixel_values=pixel_values)
        return tuple(outputs[name] for name in self.names)


def trace(
    model: nn.Module, outputs: Sequence[str], example: Tensor, *, dynamic: bool = False, batches: bool = False
) -> torch.export.ExportedProgram:
    """Trace a model.

    Args:
        model: of transformers.
        outputs: names of those that are wanted.
        example: an image (1, channels, height, width), of the size that the graph is for.
        dynamic: the graph is for any number of images of any size.
        batches: the graph is for any number of images of that size, where the model can be traced so.

    Raises:
        ValueError: for a model that cannot be traced.
    """
    if dynamic:
        batch, *size = ANY_EXAMPLE
        return _trace(model, outputs, torch.rand(batch, example.shape[1], *size), (0, 2, 3))
    if batches:
        with suppress(ValueError):
            return _trace(model, outputs, example.expand(ANY_EXAMPLE[0], -1, -1, -1).contiguous(), (0,))
    return _trace(model, outputs, example, ())


def takes_batches(program: torch.export.ExportedProgram) -> bool:
    """Return whether a graph is for any number of images."""
    (images,) = (node for node in program.graph.nodes if node.name == "pixel_values")
    return not isinstance(images.meta["val"].shape[0], int)


def _trace(
    model: nn.Module, outputs: Sequence[str], example: Tensor, any_axes: Sequence[int]
) -> torch.export.ExportedProgram:
    """Trace a model of an example some of whose axes may have any length."""
    sizes = {"pixel_values": dict.fromkeys(any_axes, torch.export.Dim.DYNAMIC)} if any_axes else None
    try:
        with quiet(), plain_attention(model), torch.no_grad():
            return torch.export.export(
                Outputs(model, outputs).eval(), (), {"pixel_values": example}, dynamic_shapes=sizes
            )
    except Exception as error:  # of the tracer and of the model: they have no base in common
        is_of_any_size = len(any_axes) > 1
        what = "images of any size: export it for one, without --dynamic" if is_of_any_size else "other runtimes"
        raise ValueError(f"this model cannot be exported for {what}") from error


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Let models of transformers attend by plain products: exporters do not know how Swin's fused attention lies."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own future and insides from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
