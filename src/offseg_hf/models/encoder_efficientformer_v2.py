"""The EfficientFormerV2 encoder, at the resolutions of dense prediction.

Paper: "Rethinking Vision Transformers for MobileNet Size and Speed" (https://arxiv.org/abs/2212.08059). Source:
HVision-NKU/OffSeg @ 1414f6d, mmseg/models/backbones/efficientformer_v2.py. Changed here: every block knows an equal
with less arithmetic for inference; attention biases are looked up by arithmetic instead of stored index tables and
never cached where they could go stale; inference takes the queries in chunks, so that attention maps stay small.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import (
    ConvAdd,
    ConvGelu,
    ConvNorm,
    DropPath,
    FixedBatchNorm2d,
    checked_conv,
    concatenate_convs,
    frozen,
    fuse,
    gelu_in_place,
    scale_output,
    weighted_gather,
    with_class,
)


NUM_HEADS = 8
VALUE_RATIO = 4  # channels of a value per channel of a key
QUERIES_AT_A_TIME = 256


class EfficientFormerV2Encoder(nn.Module):
    """Four stages of convolutional blocks, the last two of which end in blocks with global attention."""

    def __init__(
        self,
        num_channels: int,
        hidden_sizes: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[Sequence[int]],
        num_attention_blocks: int,
        image_size: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        learn_batch_norm_statistics: bool,
    ):
        super().__init__()
        conv_norm = partial(ConvNorm, norm=nn.BatchNorm2d if learn_batch_norm_statistics else FixedBatchNorm2d)
        self.stem = Stem(num_channels, hidden_sizes[0], conv_norm)
        self.stages = nn.ModuleList()
        self.downsample = nn.ModuleList()
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (channels, depth, ratios) in enumerate(zip(hidden_sizes, depths, mlp_ratios)):
            grid_size = image_size // 2 ** (i + 2)
            blocks = []
            for j, (mlp_ratio, drop_path) in enumerate(zip(ratios, drop_path_rates)):
                block = partial(EncoderBlock, channels, mlp_ratio, drop_path, layer_scale_init_value, conv_norm)
                if i < 2 or j < depth - num_attention_blocks:
                    blocks.append(block())
                else:
                    stride = 2 if i == 2 else 1
                    blocks.append(block(Attention2d(channels, grid_size // stride, stride, conv_norm)))
            self.stages.append(nn.Sequential(*blocks))
        for i, (channels, out_channels) in enumerate(pairwise(hidden_sizes)):
            attention = AttentionDownsample(channels, out_channels, image_size // 16, conv_norm) if i == 2 else None
            self.downsample.append(Downsample(channels, out_channels, conv_norm, attention))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (batch, channels, height, width), sides a multiple of 32 -> feature maps at strides 4, 8, 16, 32."""
        return self.forward_stages(self.stem(pixel_values))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return what the stem gives -> the four feature maps."""
        feature_maps = [self.stages[0](x)]
        for downsample, stage in zip(self.downsample, self.stages[1:]):
            feature_maps.append(stage(downsample(feature_maps[-1])))
        return feature_maps


class Stem(nn.Module):
    """Two convolutions that bring an image to stride 4."""

    def __init__(self, in_channels: int, out_channels: int, conv_norm: Callable[..., ConvNorm]):
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels // 2, kernel_size=3, stride=2)
        self.conv2 = conv_norm(out_channels // 2, out_channels, kernel_size=3, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / 4, width / 4)."""
        return F.gelu(self.conv2(F.gelu(self.conv1(pixel_values))))

    def fused(self) -> nn.Module:
        """Return the same with its norms inside of the convolutions."""
        return nn.Sequential(*(with_class(fuse(conv), ConvGelu) for conv in (self.conv1, self.conv2)))


class EncoderBlock(GradientCheckpointingLayer):
    """An inverted residual MLP, after attention in the blocks that have it; each branch scaled, per channel."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: int,
        drop_path: float,
        layer_scale_init_value: float,
        conv_norm: Callable[..., ConvNorm],
        attention: nn.Module | None = None,
    ):
        super().__init__()
        self.attention = attention
        if attention is not None:
            self.attention_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.mlp = ConvMlp(channels, channels * mlp_ratio, conv_norm)
        self.mlp_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale_init_value))
        self.layer_scale_init_value = layer_scale_init_value
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        if self.attention is not None:
            x = x + self.drop_path(self.attention_scale * self.attention(x))
        return x + self.drop_path(self.mlp_scale * self.mlp(x))

    def fused(self) -> nn.Module:
        """Return the same block with its scales inside of the convolutions that end its branches."""
        mlp = FusedConvMlp(self.mlp, self.mlp_scale)
        if self.attention is None:
            return mlp
        attention: Any = fuse(self.attention)
        scale_output(attention.project, self.attention_scale)
        return nn.Sequential(Residual(attention), mlp)


class Residual(nn.Module):
    """What is left of a residual branch at inference."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch makes of `x` to it."""
        return x + self.branch(x)


class ConvMlp(nn.Module):
    """A feed-forward layer with a depthwise convolution between its two 1x1 convolutions."""

    def __init__(self, channels: int, hidden_channels: int, conv_norm: Callable[..., ConvNorm]):
        super().__init__()
        self.expand = conv_norm(channels, hidden_channels)
        self.depthwise = conv_norm(hidden_channels, hidden_channels, kernel_size=3, groups=hidden_channels)
        self.project = conv_norm(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return self.project(F.gelu(self.depthwise(F.gelu(self.expand(x)))))


class FusedConvMlp(nn.Module):
    """A feed-forward layer at inference, with its scale and its shortcut."""

    def __init__(self, mlp: ConvMlp, scale: Tensor):
        super().__init__()
        self.expand = with_class(fuse(mlp.expand), ConvGelu)
        self.depthwise = with_class(fuse(mlp.depthwise), ConvGelu)
        self.project = with_class(fuse(mlp.project), ConvAdd)
        scale_output(self.project, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return self.project(self.depthwise(self.expand(x)), x)


class Downsample(nn.Module):
    """Halves the resolution with a strided convolution, beside which the last one of the encoder attends."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv_norm: Callable[..., ConvNorm],
        attention: nn.Module | None = None,
    ):
        super().__init__()
        self.projection = conv_norm(in_channels, out_channels, kernel_size=3, stride=2)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / 2, width / 2)."""
        projected = self.projection(x)
        return projected if self.attention is None else projected + self.attention(x)


class Attention2d(nn.Module):
    """Global attention whose heads are mixed before and after the softmax, with a local convolution beside it.

    With `stride` 2 it attends at half the resolution and upsamples what it found.
    """

    def __init__(
        self, channels: int, grid_size: int, stride: int, conv_norm: Callable[..., ConvNorm], key_dim: int = 32
    ):
        super().__init__()
        self.stride = stride
        self.scale = key_dim**-0.5
        key_channels, value_channels = NUM_HEADS * key_dim, NUM_HEADS * key_dim * VALUE_RATIO
        depthwise = partial(conv_norm, kernel_size=3)
        self.downsample: nn.Module = (
            depthwise(channels, channels, stride=2, groups=channels) if stride == 2 else nn.Identity()
        )
        self.query = conv_norm(channels, key_channels)
        self.key = conv_norm(channels, key_channels)
        self.value = conv_norm(channels, value_channels)
        self.value_local: nn.Module = depthwise(value_channels, value_channels, groups=value_channels)
        self.talking_head1 = TalkingHeads(NUM_HEADS, NUM_HEADS, kernel_size=1)
        self.talking_head2 = TalkingHeads(NUM_HEADS, NUM_HEADS, kernel_size=1)
        self.attention_bias = AttentionBias(grid_size)
        self.project: nn.Module = conv_norm(value_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        query, key, value = self.project_input(self.downsample(x))
        local = self.value_local(value)
        attended = attend_in_chunks(self.attend, query, key, value, self.attention_bias)
        x = merge_heads(attended, local.shape[-2:]) + local
        if self.stride > 1:
            x = F.interpolate(x, scale_factor=self.stride, mode="bilinear")
        return self.project(gelu_in_place(x))

    def project_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `x` (batch, channels, height, width)."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend with queries, keys and values (batch, heads, positions, channels) and biases of all pairs."""
        attention = self.talking_head1(self.scale * query @ key.transpose(-1, -2) + bias).softmax(dim=-1)
        return self.talking_head2(attention) @ value

    def fused(self) -> nn.Module:
        """Return the same with less arithmetic."""
        return FusedAttention2d(self)


class FusedAttention2d(Attention2d):
    """[`Attention2d`] for inference: one projection of the input, one mixing that holds the scale, and a mixed bias.

    The bias of the first mixing is the same for all keys of a query, so the softmax does not see it.
    """

    def __init__(self, attention: Attention2d):
        nn.Module.__init__(self)
        self.stride = attention.stride
        self.downsample = fuse(attention.downsample)
        projections = [
            checked_conv(fuse(projection)) for projection in (attention.query, attention.key, attention.value)
        ]
        self.query_key_value = concatenate_convs(projections)
        self.split_sizes = [projection.out_channels for projection in projections]
        self.value_local = fuse(attention.value_local)
        mixing = attention.talking_head1.weight.flatten(1)
        self.mixing = frozen(attention.scale * mixing)
        self.talking_head2 = attention.talking_head2
        self.attention_bias = attention.attention_bias
        self.attention_bias.table = frozen(mixing @ self.attention_bias.table)
        self.project = fuse(attention.project)

    def project_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `x` (batch, channels, height, width)."""
        return self.query_key_value(x).split(self.split_sizes, dim=1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend as [`Attention2d`] does."""
        attention = mix_heads(self.mixing, query @ key.transpose(-1, -2)).add_(bias).softmax(dim=-1)
        return self.talking_head2(attention) @ value


class TalkingHeads(nn.Conv2d):
    """A 1x1 convolution over pairs of positions that mixes the heads (https://arxiv.org/abs/2003.02436).

    It is done as the small product that it is, and made as any convolution is, so that adapters can make more of it.
    """

    def forward(self, attention: Tensor) -> Tensor:
        """Mix the heads of attention (batch, heads, queries, keys)."""
        mixed = mix_heads(self.weight.flatten(1), attention)
        return mixed if self.bias is None else mixed + self.bias[:, None, None]


class AttentionDownsample(nn.Module):
    """Attention from every second pixel, in both directions, to all pixels, with a local convolution beside it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        grid_size: int,
        conv_norm: Callable[..., ConvNorm],
        key_dim: int = 16,
    ):
        super().__init__()
        key_channels, value_channels = NUM_HEADS * key_dim, NUM_HEADS * key_dim * VALUE_RATIO
        self.query = LocalGlobalQuery(in_channels, key_channels, conv_norm)
        self.key = conv_norm(in_channels, key_channels)
        self.value = conv_norm(in_channels, value_channels)
        self.value_local = conv_norm(value_channels, value_channels, kernel_size=3, stride=2, groups=value_channels)
        self.attention_bias = AttentionBias(grid_size, query_stride=2)
        self.project = conv_norm(value_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / 2, width / 2)."""
        value = self.value(x)
        local = self.value_local(value)
        attended = attend_in_chunks(self.attend, self.query(x), self.key(x), value, self.attention_bias)
        return self.project(gelu_in_place(merge_heads(attended, local.shape[-2:]) + local))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend with queries, keys and values (batch, heads, positions, channels) and biases of all pairs."""
        # Kernels that never hold the whole attention map want keys as long as values: zeros do not change a product.
        scale, padding = query.shape[-1] ** -0.5, (0, value.shape[-1] - query.shape[-1])
        query, key = F.pad(query, padding), F.pad(key, padding)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


class LocalGlobalQuery(nn.Module):
    """Queries from every second pixel, in both directions, and from a convolution around it."""

    def __init__(self, in_channels: int, out_channels: int, conv_norm: Callable[..., ConvNorm]):
        super().__init__()
        self.local = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels)
        self.project = conv_norm(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / 2, width / 2)."""
        return self.project(self.local(x) + x[..., ::2, ::2])

    def fused(self) -> nn.Module:
        """Return the same with the pixel itself as one more weight at the center of the convolution."""
        self.local.weight = frozen(self.local.weight)
        self.local.weight[:, :, 1, 1] += 1
        return nn.Sequential(self.local, fuse(self.project))


class AttentionBias(nn.Module):
    """One learned bias per head and per distance, in rows and in columns, between a query and a key.

    The distances are those of a square grid of `grid_size` pixels. For another grid the table of all pairs is resized
    over its two axes, queries and keys, as if they were the sides of an image: so does the official code.
    """

    def __init__(self, grid_size: int, query_stride: int = 1):
        super().__init__()
        self.grid_size = grid_size
        self.query_stride = query_stride
        self.table = nn.Parameter(torch.zeros(NUM_HEADS, grid_size**2))

    def forward(self, num_keys: int) -> Tensor:
        """Return the biases between the grid's queries and `num_keys` keys: (heads, grid queries, num_keys)."""
        position = torch.arange(self.grid_size, dtype=torch.int32, device=self.table.device)
        distance = (position[:: self.query_stride, None] - position).abs()
        index = self.grid_size * distance[:, None, :, None] + distance[:, None, :]  # (y, x) of queries, (y, x) of keys
        index = index.flatten(0, 1).flatten(1)
        bias = self.table.index_select(1, index.flatten()).unflatten(1, index.shape)
        return resize_rows(bias.transpose(1, 2), all_rows(num_keys, bias), num_keys).transpose(1, 2).contiguous()


def attend_in_chunks(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_bias: AttentionBias,
) -> Tensor:
    """Apply `attend(query, key, value, bias)` to maps (batch, heads * channels, height, width) split into heads.

    At inference for as many queries at a time as keep their attention maps in cache; all at once where somebody needs
    the graph.

    Returns:
        (batch, heads, queries, channels).
    """
    query, key, value = split_heads(query), split_heads(key), split_heads(value)
    num_queries = query.shape[2]
    grid_bias = attention_bias(key.shape[2])
    rows = all_rows(num_queries, query)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return attend(query, key, value, resize_rows(grid_bias, rows, num_queries))
    attended = [
        attend(query.index_select(2, chunk), key, value, resize_rows(grid_bias, chunk, num_queries))
        for chunk in rows.split(QUERIES_AT_A_TIME)
    ]
    return torch.cat(attended, dim=2)


def all_rows(num_rows: int, like: Tensor) -> Tensor:
    """Return the indices of `num_rows` rows, where `like` is."""
    return torch.arange(num_rows, dtype=torch.int32, device=like.device)


def resize_rows(x: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Return `rows` of what (heads, any, columns) is when resized bicubically to (heads, num_rows, columns).

    `F.interpolate` gives the same, but all rows at once, and of sixteen weights only four are not zero here.
    """
    num_heads, old_num_rows, num_columns = x.shape
    if is_known_to_be(num_rows, old_num_rows):
        return x if rows.shape[0] == num_rows else x.index_select(1, rows)
    # A row lies (2 * row + 1) * old_num_rows / (2 * num_rows) - 0.5 rows down: in integers, which half precision does
    # not round, and one row further, as runtimes divide towards zero.
    position = (2 * rows + 1) * old_num_rows + num_rows
    first = position // (2 * num_rows) - 1
    fraction = (position - (first + 1) * (2 * num_rows)).to(x.dtype) / (2 * num_rows)
    head = old_num_rows * torch.arange(num_heads, dtype=torch.int32, device=x.device)[:, None]
    indices = [(first + i).clamp(0, old_num_rows - 1) + head for i in range(-1, 3)]  # (heads, rows) each
    weights = cubic_weights(fraction)
    x = x.flatten(0, 1)
    if torch.compiler.is_exporting():
        return reduce(torch.add, (weight[:, None] * F.embedding(index, x) for index, weight in zip(indices, weights)))
    bags = torch.stack(indices, dim=-1).flatten(0, 1)
    resized = weighted_gather(x, bags, torch.stack(weights, dim=-1).repeat(num_heads, 1))
    return resized.view(num_heads, rows.shape[0], num_columns)


def cubic_weights(fraction: Tensor) -> list[Tensor]:
    """Return the weights of four neighbors of a position this much after the second, by Keys' cubic with a = -0.75."""

    def near(distance: Tensor) -> Tensor:
        return (1.25 * distance - 2.25) * distance**2 + 1

    def far(distance: Tensor) -> Tensor:
        return ((-0.75 * distance + 3.75) * distance - 6) * distance + 3

    return [far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction)]


def is_known_to_be(length: int, other: int) -> bool:
    """Return whether two lengths are equal in whatever size a graph is made for; eager ones are known."""
    if not torch.compiler.is_compiling():
        return length == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # compilers have paid for it already

    return statically_known_true(length == other)


def mix_heads(mixing: Tensor, attention: Tensor) -> Tensor:
    """Map (new heads, heads), (batch, heads, queries, keys) -> (batch, new heads, queries, keys)."""
    if torch.compiler.is_exporting():  # a product, for runtimes without Einsum
        if isinstance(attention.shape[3], int):
            return (mixing @ attention.flatten(2)).unflatten(2, attention.shape[2:])
        # Of any size, flat maps would come back with a quotient for their width, and a batch of one be refused.
        attention = attention.transpose(1, 2)
        return (mixing.expand(*attention.shape[:2], -1, -1) @ attention).transpose(1, 2)
    return torch.einsum("gh,bhqk->bgqk", mixing, attention)


def split_heads(x: Tensor) -> Tensor:
    """(batch, heads * channels, height, width) -> (batch, heads, height * width, channels)."""
    return x.flatten(2).unflatten(1, (NUM_HEADS, -1)).transpose(-1, -2)


def merge_heads(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, heads, height * width, channels) -> (batch, heads * channels, height, width), channels last."""
    return x.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, size)
