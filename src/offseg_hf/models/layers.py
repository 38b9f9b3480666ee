"""Small layers, and the plain pixel decoder, that several networks share."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size (or divides it by `stride`), and its normalization."""

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
        """Return the one convolution that equals this pair at inference; the pair if its norm looks at the image."""
        if isinstance(self.norm, nn.GroupNorm):
            return self
        scale, shift = scale_and_shift(self.norm)
        conv = deepcopy(self.conv)
        conv.weight = frozen(scale[:, None, None, None] * self.conv.weight)
        conv.bias = frozen(shift if self.conv.bias is None else shift + scale * self.conv.bias)
        return conv


def lateral_convs(
    in_channels: Sequence[int], out_channels: Sequence[int], norm: Callable[[int], nn.Module]
) -> nn.ModuleList:
    """1x1 convolutions that bring the feature maps of an encoder to the channels that a pixel decoder fuses."""
    return nn.ModuleList(ConvNorm(i, o, bias=False, norm=norm) for i, o in zip(in_channels, out_channels))


class MlpPixelDecoder(nn.Module):
    """The pixel decoder of SegFormer, and the plain one of OffSeg's ablation (the paper's Table 6).

    Projects every feature map, upsamples and concatenates them at stride 4.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        lateral_channels: Sequence[int],
        out_channels: int,
        norm: Callable[[int], nn.Module] = partial(nn.GroupNorm, 32),
    ):
        super().__init__()
        self.lateral_convs = lateral_convs(in_channels, lateral_channels, norm)
        self.output_conv = ConvNorm(sum(lateral_channels), out_channels, bias=False, norm=norm)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        """Map (batch, in_channels[i], height / 2 ** i, width / 2 ** i) -> (batch, out_channels, height, width)."""
        laterals = [conv(feature_map).relu() for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        size = laterals[0].shape[-2:]
        upsampled = [F.interpolate(lateral, size=size, mode="bilinear") for lateral in laterals]
        return self.output_conv(torch.cat(upsampled, dim=1)).relu()


class FixedBatchNorm2d(nn.Module):
    """A batch norm that normalizes by its running statistics in training too; weight and bias are trained.

    Saved as an `nn.BatchNorm2d` is, but none: what walks over those would let the statistics learn (`update_bn`,
    `convert_sync_batchnorm`).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize maps (batch, num_features, ...)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Name the settings in `print(model)`."""
        return f"{self.num_features}, eps={self.eps}"


class ConvGelu(nn.Conv2d):
    """A convolution and the GELU of what it gives, at inference: in place, as nobody has seen it yet."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        return torch.ops.aten.gelu_(super().forward(x))


class ConvAdd(nn.Conv2d):
    """A convolution that ends a residual branch, at inference, and the shortcut that is added to what it gives."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:  # type: ignore[override]
        """Map `x` (batch, in_channels, height, width) to the shape of `shortcut`, (batch, out_channels, ...)."""
        return super().forward(x).add_(shortcut)


class DropPath(nn.Module):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): in training, drops whole samples of a residual branch."""

    def __init__(self, probability: float):
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop path: expected a share in [0, 1) of the samples to drop, got {probability}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of `x` (batch, ...) in training, and scale the others up."""
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand((len(x), *(1,) * (x.ndim - 1)), device=x.device) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype)

    def extra_repr(self) -> str:
        """Name the settings in `print(model)`."""
        return f"probability={self.probability:.3f}"


def channels_last(x: Tensor) -> Tensor:
    """Return maps (batch, channels, height, width) whose pixels are rows in memory, by operations that vmap knows."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU of a tensor that no module has returned, as hooks keep what modules return; with gradients of a copy."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def concatenate_convs(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution for inference that gives what `convs`, alike but for their weights, give one after another."""
    conv = deepcopy(convs[0])
    conv.out_channels = sum(conv.out_channels for conv in convs)
    conv.weight = frozen(torch.cat([conv.weight for conv in convs]))
    conv.bias = frozen(torch.cat([bias_of(conv) for conv in convs]))
    return conv


def with_class(conv: nn.Module, conv_class: type[nn.Conv2d]) -> nn.Conv2d:
    """Return a convolution for inference of another class, with the weights of `conv`."""
    conv = checked_conv(conv)
    options = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    copy = conv_class(**{name: getattr(conv, name) for name in options}, padding_mode=conv.padding_mode, device="meta")
    copy.weight, copy.bias = frozen(conv.weight), None if conv.bias is None else frozen(conv.bias)
    return copy.train(conv.training)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand per channel (channels,) that a batch norm is at inference."""
    is_known = isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm | FixedBatchNorm2d)
    mean, variance, weight, bias = (getattr(norm, name, None) for name in NORM_TENSORS)
    if not is_known or mean is None or variance is None or weight is None or bias is None:
        raise ValueError(
            f"fuse() expected a batch norm with weights and running statistics, got {norm}: fuse the model before its "
            "parts are replaced"
        )
    scale = weight * torch.rsqrt(variance + norm.eps)
    return scale, bias - mean * scale


def scale_output(module: nn.Module, scale: Tensor) -> None:
    """Multiply what a convolution gives by `scale` (out_channels, 1, 1), in place and for inference."""
    conv = checked_conv(module)
    conv.weight = frozen(scale[:, None] * conv.weight)
    conv.bias = frozen(scale.flatten() * bias_of(conv))


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the bias of a convolution, zeros (out_channels,) where it has none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def checked_conv(module: nn.Module) -> nn.Conv2d:
    """Return the convolution that a module is; raise ValueError if it is none."""
    if not isinstance(module, nn.Conv2d):
        raise ValueError(f"fuse() expected a convolution, got {module}: fuse the model before its parts are replaced")
    return module


def frozen(value: Tensor) -> nn.Parameter:
    """Return a parameter that holds `value` and takes no gradient."""
    return nn.Parameter(value.detach(), requires_grad=False)


def fuse(module: nn.Module) -> nn.Module:
    """Replace every part of `module` that knows a simpler equal for inference (`fused()`), in place."""
    fused = getattr(module, "fused", None)
    if fused is not None:
        return fused()
    for name, child in module.named_children():
        setattr(module, name, fuse(child))
    return module


def weighted_gather(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum `rows[indices]` weighted by `weights`.

    Args:
        rows: (num_rows, channels).
        indices: (num_bags, bag_size).
        weights: (num_bags, bag_size).

    Returns:
        (num_bags, channels).
    """
    weights = weights.to(rows.dtype)
    if torch.compiler.is_exporting():
        return gathered_products(rows, indices, weights[:, None])[:, 0]
    gathered = F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights)
    if is_recorded(rows, weights):
        return GatherGradient.apply(gathered, rows, indices, weights)
    return gathered


def gathered_products(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum `rows[indices]` once for each set of weights: what runtimes know that have no `embedding_bag`.

    Args:
        rows: (num_rows, channels).
        indices: (num_bags, bag_size).
        weights: (num_bags, sets, bag_size).

    Returns:
        (num_bags, sets, channels).
    """
    return weights.to(rows.dtype) @ F.embedding(indices, rows)


def products_with_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the products of all rows of two batches: (batch, n, channels), (batch, m, channels) -> (batch, n, m).

    Where nobody needs the graph, m is filled up to a multiple of 8 on the way: a product whose rows begin anywhere in
    memory takes some CPUs 1.4 times as long.
    """
    missing = -rows.shape[1] % 8
    if missing == 0 or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return x @ rows.transpose(1, 2)
    return (x @ F.pad(rows, (0, 0, 0, missing)).transpose(1, 2))[..., : rows.shape[1]]


def is_recorded(*tensors: Tensor) -> bool:
    """Return whether eager autograd wants the gradient for one of these; a compiler takes graphs apart itself."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return any(tensor.requires_grad for tensor in tensors)


class GatherGradient(torch.autograd.Function):
    """A weighted gather as it is, with a gradient that has a gradient: that of `embedding_bag` has none.

    Where the gradient is not recorded, `embedding_bag` computes it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gathered: Tensor, rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Return `gathered`, which has been computed of the other three."""
        return gathered.view_as(gathered)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the gradient is computed of."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        """Return the gradients of `gathered`, `rows` and `weights`, as far as they are this function's."""
        if not torch.is_grad_enabled():
            return gradient, None, None, None
        rows, indices, weights = ctx.saved_tensors
        given = (weights[..., None] * gradient[:, None]).flatten(0, 1)  # (num_bags * bag_size, channels)
        row_gradient = torch.zeros_like(rows).index_add(0, indices.flatten(), given)
        return None, row_gradient, None, products(rows, indices, gradient)


def products(rows: Tensor, indices: Tensor, bags: Tensor) -> Tensor:
    """Return the dot products of each of `bags` (num_bags, channels) with its rows: (num_bags, bag_size)."""
    return (rows.index_select(0, indices.flatten()).unflatten(0, indices.shape) * bags[:, None]).sum(dim=-1)
