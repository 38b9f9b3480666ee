"""Offset learning: class representations and pixel features that move towards each other, image by image.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/models/decode_heads/offset_learning.py. Changed here: the feature offset is never formed (see `forward`).
"""

import torch
from torch import Tensor, nn


class OffsetLearning(nn.Module):
    """Classifies pixels by their similarity to class representations, after both have been offset.

    With either branch off it is the paper's ablation (Table 6); with both off, per-pixel classification.
    """

    def __init__(
        self, num_classes: int, channels: int, use_class_offset: bool = True, use_feature_offset: bool = True
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"expected at least 2 classes, for logits are normalised over classes; got {num_classes}")
        self.class_representation = nn.Parameter(torch.empty(1, num_classes, channels))
        self.class_offset_proj = nn.Linear(channels, channels, bias=False) if use_class_offset else None
        self.feature_offset_proj = nn.Linear(channels, channels, bias=False) if use_feature_offset else None
        self.logit_norm = nn.LayerNorm(num_classes)

    def forward(self, pixel_features: Tensor) -> Tensor:
        """(batch, channels, height, width) -> logits (batch, num_classes, height, width)."""
        height, width = pixel_features.shape[-2:]
        features = pixel_features.flatten(2).transpose(1, 2)  # (batch, pixels, channels)
        classes = aligned_classes = self.class_representation  # (1, classes, channels)
        logits = coupled_attention = features @ classes.transpose(1, 2)  # (batch, pixels, classes)

        if self.class_offset_proj is not None:
            # Every class gathers pixels. Transposed first: a softmax over thousands of pixels is faster, and loses no
            # digits in its sum, where they are neighbours in memory.
            gathered = coupled_attention.transpose(1, 2).softmax(dim=-1) @ features
            aligned_classes = classes + self.class_offset_proj(gathered)
            logits = features @ aligned_classes.transpose(1, 2)

        if self.feature_offset_proj is not None:
            # Every pixel gathers classes: feature_offset = feature_offset_proj(position_attention @ classes). All that
            # the logits want of it are its products with the aligned classes, so a classes x classes matrix is enough.
            offset_logits = self.feature_offset_proj(classes) @ aligned_classes.transpose(1, 2)
            logits = logits + coupled_attention.softmax(dim=-1) @ offset_logits

        return self.logit_norm(logits).transpose(1, 2).unflatten(2, (height, width))
