"""Offset learning in the place of a classifier: what a network's last convolution or linear layer is replaced by.

A k x k convolution is a linear classifier of the k x k neighborhood of every pixel, and a linear layer one of tokens:
both are continued as a 1x1 convolution is.
"""

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from .offset_learning import OffsetLearning, OffsetLearningOptions


class TokenOffsetLearning(OffsetLearning):
    """Offset learning with channels last, as a linear layer has them."""

    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, ..., channels) -> logits (batch, ..., num_classes); all positions of a sample see each other."""
        if features.ndim < 3:
            raise ValueError(
                "offset learning compares the positions of an image with classes: expected (batch, ..., channels), "
                f"got {tuple(features.shape)}, which has no positions. Was this the classifier of pixels?"
            )
        tokens = features.flatten(1, -2)
        return self.similarity(self.class_representation, tokens).unflatten(1, features.shape[1:-1])


class Neighborhoods(nn.Module):
    """What a convolution sees of every pixel, as channels: as much memory as there are weights in its window."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size = conv.kernel_size
        self.dilation = conv.dilation
        self.padding = _padding(conv)
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def extra_repr(self) -> str:
        """Name the settings in `print(model)`."""
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding}"

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels * window, height and width of the conv's output)."""
        x = F.pad(x, self.padding, self.padding_mode)
        height, width = (
            length - dilation * (kernel - 1)
            for length, dilation, kernel in zip(x.shape[-2:], self.dilation, self.kernel_size)
        )
        return F.unfold(x, self.kernel_size, self.dilation).unflatten(2, (height, width))


def offset_classifier(layer: nn.Module, options: OffsetLearningOptions) -> nn.Module:
    """Return what takes the place of a classifier of pixels, on its device and in its dtype.

    Continued, it begins with the classifier's own logits ([`OffsetLearning.from_classifier`]); anew, its logits are
    normalized.

    Raises:
        ValueError: for a layer that is no classifier of pixels by one comparison with each of two classes or more.
    """
    layer = _checked_classifier(layer)
    weight = layer.weight.detach().flatten(1)  # (classes, channels), of a convolution (classes, channels * window)
    head_class = TokenOffsetLearning if isinstance(layer, nn.Linear) else OffsetLearning
    if options.warm_start:
        bias = None if layer.bias is None else layer.bias.detach()
        offset_learning = head_class.from_classifier(weight, bias, **options.branches)
    else:
        offset_learning = head_class(*weight.shape, **options.branches).to(device=weight.device, dtype=weight.dtype)
    offset_learning.register_load_state_dict_pre_hook(_explain_other_start)
    head: nn.Module = offset_learning
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or any(_padding(layer))):
        head = nn.Sequential(Neighborhoods(layer), offset_learning)
    for name in layer.__constants__:  # sizes, strides and the like, by which MobileNetV2 pads what it gives to a layer
        setattr(head, name, getattr(layer, name))
    return head.train(layer.training)


def replace_classifier(model: nn.Module, name: str, options: OffsetLearningOptions) -> None:
    """Put [`offset_classifier`] in the place of the submodule `name`, a dotted name as in `model.named_modules()`.

    Raises:
        ValueError: where there is no such submodule, or none that can be replaced.
    """
    layer = _submodule(model, name)
    try:
        head = offset_classifier(layer, options)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__}.{name} cannot be replaced by offset learning: {error}") from None
    model.set_submodule(name, head)


def is_linear_layer(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Return whether a layer compares every pixel, or its neighborhood, with one set of weights per output channel."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.stride == (1, 1)
    return isinstance(module, nn.Linear)


def _explain_other_start(head: OffsetLearning, state_dict: dict, prefix: str, *arguments) -> None:
    """Say, beside the keys that `load_state_dict` misses, why it misses them.

    An error without `strict` too: with a norm or with a bias, class representations mean different things.
    """
    *_, errors = arguments
    was_continued, is_continued = f"{prefix}bias" in state_dict, head.bias is not None
    if f"{prefix}class_representation" in state_dict and was_continued != is_continued:
        errors.append(
            f"{prefix.rstrip('.')} was saved from offset learning with warm_start={was_continued} and is loaded into "
            f"one with warm_start={is_continued}: build the model with warm_start={was_continued}"
        )


def _checked_classifier(layer: nn.Module) -> nn.Conv2d | nn.Linear:
    possible = "expected a Conv2d with stride 1 and without groups, or a Linear, with one output per class"
    if isinstance(layer, OffsetLearning):
        raise ValueError("it is offset learning already")
    if not is_linear_layer(layer):
        found = repr(layer) if isinstance(layer, nn.Conv2d) else f"a {type(layer).__name__}"
        raise ValueError(f"{possible}; got {found}")
    if len(layer.weight) < 2:
        raise ValueError(
            f"{possible}, 2 or more; got one output. Offset learning compares pixels with classes against each other: "
            "train a binary task with two classes (background, object) and cross-entropy"
        )
    return layer


def _submodule(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name in modules and name:
        return modules[name]
    layers = [known for known, module in modules.items() if known and is_linear_layer(module)]
    parent = name
    while parent and not (nearby := [known for known in layers if known.startswith(f"{parent}.")]):
        parent = parent.rpartition(".")[0]
    nearby = nearby if parent else layers
    listed = ", ".join(nearby[-8:]) or "none"
    more = f" (and {len(nearby) - 8} before them)" if len(nearby) > 8 else ""
    raise ValueError(
        f"{type(model).__name__} has no submodule {name!r}. Convolutions and linear layers nearby: {listed}{more}"
    )


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """Return left, right, top and bottom, as `F.pad` takes them; also where a convolution says "same" or "valid"."""
    sides = []
    for axis in (1, 0):
        if conv.padding == "same":  # the odd one goes to the end, as in torch
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        elif isinstance(conv.padding, str):
            sides += [0, 0]
        else:
            sides += [conv.padding[axis]] * 2
    return tuple(sides)
