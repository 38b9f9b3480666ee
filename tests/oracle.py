"""OffSeg in the plain arithmetic of the official code: what the package computes faster, it must compute equally.

`plain(model)` returns a copy of a model with the same parameters whose modules run these forwards. Written after
HVision-NKU/OffSeg @ 1414f6d; CARAFE, a CUDA operator of mmcv there, is an unfold and a weighted sum here. It also is
the reference that scripts/benchmark.py measures against.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_hf.models import encoder_efficientformer_v2 as efficientformer
from offseg_hf.models import pixel_decoder_freqfusion as freqfusion
from offseg_hf.models.modeling_offseg import OffSegForSemanticSegmentation
from offseg_hf.models.offset_learning import OffsetLearning


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model`, in the same mode, that computes as the official code does."""
    model = deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def to_heads(x: Tensor) -> Tensor:
    """(batch, heads * channels, height, width) -> (batch, heads, height * width, channels)."""
    return x.flatten(2).reshape(len(x), efficientformer.NUM_HEADS, -1, x.shape[2] * x.shape[3]).permute(0, 1, 3, 2)


class PlainAttentionBias(efficientformer.AttentionBias):
    """Every bias looked up through a table of indices (once, at inference), and resized."""

    lookup = None

    def forward(self, num_queries: int, num_keys: int) -> Tensor:
        bias = self.look_up() if self.training or self.lookup is None else self.lookup
        self.lookup = None if self.training else bias
        return F.interpolate(bias[None], size=(num_queries, num_keys), mode="bicubic")

    def look_up(self) -> Tensor:
        keys = [(y, x) for y in range(self.grid_size) for x in range(self.grid_size)]
        queries = keys if self.query_stride == 1 else [(y, x) for y, x in keys if y % 2 == 0 and x % 2 == 0]
        keys, queries = torch.tensor(keys), torch.tensor(queries)
        distance = (queries[:, None] - keys).abs()
        return self.table[:, distance[..., 0] * self.grid_size + distance[..., 1]]


class PlainAttention2d(efficientformer.Attention2d):
    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        batch, _, height, width = x.shape
        query, key, value = to_heads(self.query(x)), to_heads(self.key(x)), self.value(x)
        local = self.value_local(value)
        attention = query @ key.transpose(2, 3) * self.scale
        attention = attention + self.attention_bias(*attention.shape[-2:])
        attention = self.talking_head2(self.talking_head1(attention).softmax(dim=-1))
        x = (attention @ to_heads(value)).transpose(2, 3).reshape(batch, -1, height, width) + local
        if self.stride > 1:
            x = F.interpolate(x, scale_factor=self.stride, mode="bilinear")
        return self.project(F.gelu(x))


class PlainAttentionDownsample(efficientformer.AttentionDownsample):
    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        query, key, value = to_heads(self.query(x)), to_heads(self.key(x)), self.value(x)
        local = self.value_local(value)
        attention = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        attention = (attention + self.attention_bias(*attention.shape[-2:])).softmax(dim=-1)
        x = (attention @ to_heads(value)).transpose(2, 3).reshape(batch, -1, height // 2, width // 2) + local
        return self.project(F.gelu(x))


class PlainLocalGlobalQuery(efficientformer.LocalGlobalQuery):
    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.local(x) + F.avg_pool2d(x, 1, 2))


def carafe(features: Tensor, kernels: Tensor, size: int, scale: int) -> Tensor:
    """Reassembly with kernels (batch, size ** 2, height * scale, width * scale), by way of all neighbourhoods."""
    batch, channels, height, width = features.shape
    neighbours = F.unfold(features, size, padding=size // 2).view(batch, channels, -1, height, width)
    output = features.new_empty(batch, channels, height * scale, width * scale)
    for i in range(scale):
        for j in range(scale):
            output[:, :, i::scale, j::scale] = (neighbours * kernels[:, None, :, i::scale, j::scale]).sum(dim=2)
    return output


def normalize_kernels(logits: Tensor) -> Tensor:
    kernels = logits.softmax(dim=1)
    return kernels / kernels.sum(dim=1, keepdim=True)


class PlainFreqFusion(freqfusion.FreqFusion):
    def forward(self, high_res: Tensor, low_res: Tensor) -> Tensor:
        compressed_high, compressed_low = self.high_res_compressor(high_res), self.low_res_compressor(low_res)
        high_logits = self.high_pass_generator(compressed_high)
        smooth = carafe(compressed_high, normalize_kernels(high_logits), 3, 1)
        compressed_high = compressed_high + compressed_high - smooth
        low_logits = self.low_pass_generator(compressed_high)
        low_of_low = carafe(self.low_pass_generator(compressed_low), normalize_kernels(low_logits), 5, 2)
        low_logits = low_logits + F.interpolate(low_of_low, size=high_res.shape[-2:], mode="nearest")
        high_of_low = carafe(self.high_pass_generator(compressed_low), normalize_kernels(low_logits), 5, 2)
        high_logits = high_logits + F.interpolate(high_of_low, size=high_res.shape[-2:], mode="nearest")

        low_res = carafe(low_res, normalize_kernels(low_logits), 5, 2)
        high_res = high_res - carafe(high_res, normalize_kernels(high_logits), 3, 1) + high_res
        low_res = self.sampler(compressed_high, compressed_low, low_res)
        batch, _, height, width = high_res.shape
        grouped = [x.reshape(batch * 4, -1, height, width) for x in (high_res, low_res)]
        return torch.cat(grouped, dim=1).reshape(batch, -1, height, width)


def cosine_similarity(features: Tensor) -> Tensor:
    batch, channels, height, width = features.shape
    neighbours = F.unfold(features, 3, padding=2, dilation=2).view(batch, channels, 9, height, width)
    similarity = F.cosine_similarity(neighbours[:, :, 4:5], neighbours, dim=1)
    return torch.cat([similarity[:, :4], similarity[:, 5:]], dim=1)


class PlainSampler(freqfusion.SimilarityGuidedSampler):
    def forward(self, high_res: Tensor, low_res: Tensor, upsampled: Tensor) -> Tensor:
        high_res, low_res = self.high_res_norm(high_res), self.low_res_norm(low_res)
        high_similarity, low_similarity = cosine_similarity(high_res), cosine_similarity(low_res)
        displacement = self.displacement(low_similarity) + F.pixel_unshuffle(
            self.high_res_displacement(high_similarity), 2
        )
        scale = self.displacement_scale(low_res) + F.pixel_unshuffle(self.high_res_displacement_scale(high_res), 2)
        batch, _, height, width = low_res.shape
        sub_pixel = torch.tensor([-0.25, 0.25])
        x, y = sub_pixel.repeat(2).repeat(4), sub_pixel.repeat_interleave(2).repeat(4)  # (groups * 4)
        displacement = displacement * scale.sigmoid() + torch.cat([x, y]).to(displacement)[:, None, None]

        position = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")) + 0.5
        position = displacement.view(batch, 2, -1, height, width) + position[:, None].to(displacement)
        position = 2 * position / displacement.new_tensor([width, height]).view(2, 1, 1, 1) - 1
        position = F.pixel_shuffle(position.view(batch, -1, height, width), 2)
        grid = position.view(batch, 2, -1, 2 * height, 2 * width).permute(0, 2, 3, 4, 1).contiguous().flatten(0, 1)
        groups = upsampled.reshape(len(grid), -1, 2 * height, 2 * width)
        sampled = F.grid_sample(groups, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.view(batch, -1, 2 * height, 2 * width)


class PlainOffsetLearning(OffsetLearning):
    def forward(self, pixel_features: Tensor) -> Tensor:
        batch, channels, height, width = pixel_features.shape
        classes = self.class_representation.expand(batch, -1, -1)
        features = pixel_features.permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)
        coupled_attention = (features @ classes.transpose(1, 2)).permute(0, 2, 1)
        aligned_classes, aligned_features = classes, features
        if self.class_offset_proj is not None:
            aligned_classes = classes + self.class_offset_proj(coupled_attention.softmax(dim=2) @ features)
        if self.feature_offset_proj is not None:
            position_attention = coupled_attention.softmax(dim=1)
            aligned_features = features + self.feature_offset_proj(position_attention.transpose(1, 2) @ classes)
        logits = self.logit_norm(aligned_features @ aligned_classes.transpose(1, 2))
        return logits.permute(0, 2, 1).contiguous().view(batch, -1, height, width)


class PlainOffSeg(OffSegForSemanticSegmentation):
    """Without padding and channels-last memory: the official code takes multiples of 32 only."""

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        feature_maps = self.encoder(pixel_values)
        return self.offset_learning(self.pixel_decoder(feature_maps)), feature_maps


PLAIN = {
    OffSegForSemanticSegmentation: PlainOffSeg,
    efficientformer.AttentionBias: PlainAttentionBias,
    efficientformer.Attention2d: PlainAttention2d,
    efficientformer.AttentionDownsample: PlainAttentionDownsample,
    efficientformer.LocalGlobalQuery: PlainLocalGlobalQuery,
    freqfusion.FreqFusion: PlainFreqFusion,
    freqfusion.SimilarityGuidedSampler: PlainSampler,
    OffsetLearning: PlainOffsetLearning,
}
