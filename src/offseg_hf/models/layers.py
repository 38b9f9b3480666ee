"""Small layers that several encoders and pixel decoders share."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size (or divides it by `stride`), and its normalisation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias
        )
        self.norm = norm(out_channels)

    def fused(self) -> nn.Module:
        """The one convolution that equals this pair at inference; the pair itself if the norm is not a batch norm."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return self
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        conv = deepcopy(self.conv)
        shift = self.norm.bias - self.norm.running_mean * scale
        conv.weight = frozen(scale[:, None, None, None] * self.conv.weight)
        conv.bias = frozen(shift if self.conv.bias is None else shift + scale * self.conv.bias)
        return conv


def lateral_convs(in_channels: list[int], out_channels: list[int], norm: Callable[[int], nn.Module]) -> nn.ModuleList:
    """1x1 convolutions that bring the feature maps of an encoder to the channels that a pixel decoder fuses."""
    return nn.ModuleList(ConvNorm(i, o, bias=False, norm=norm) for i, o in zip(in_channels, out_channels))


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that normalises by its running statistics in training too; weight and bias are trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class DropPath(nn.Module):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): in training, drops whole samples of a residual branch."""

    def __init__(self, probability: float):
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop path: expected a share in [0, 1) of the samples to drop, got {probability}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand((len(x), *(1,) * (x.ndim - 1)), device=x.device) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3f}"


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nothing else reads; without gradients in place, which spares memory traffic."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def concatenate_convs(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """One convolution for inference that gives what `convs`, alike but for their weights, give one after another."""
    conv = deepcopy(convs[0])
    conv.out_channels = sum(conv.out_channels for conv in convs)
    conv.weight = frozen(torch.cat([conv.weight for conv in convs]))
    conv.bias = frozen(torch.cat([conv.bias for conv in convs]))
    return conv


def scale_output(conv: nn.Conv2d, scale: Tensor) -> None:
    """Multiplies what `conv` gives by `scale` (out_channels, 1, 1), in place and for inference."""
    conv.weight = frozen(scale[:, None] * conv.weight)
    conv.bias = frozen(scale.flatten() * conv.bias)


def frozen(value: Tensor) -> nn.Parameter:
    """A parameter that holds `value` and takes no gradient."""
    return nn.Parameter(value.detach(), requires_grad=False)


def fuse(module: nn.Module) -> nn.Module:
    """Replaces every part of `module` that knows a simpler equal for inference (`fused()`), in place."""
    if hasattr(module, "fused"):
        return module.fused()
    for name, child in module.named_children():
        setattr(module, name, fuse(child))
    return module
