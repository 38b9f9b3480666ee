"""Offset learning: class representations and pixel features that move towards each other, image by image.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811). Source: HVision-NKU/OffSeg @ 1414f6d,
mmseg/models/decode_heads/offset_learning.py. Changed here: the feature offset is never formed (see `similarity`), and
a trained classifier can be continued (`OffsetLearning.from_classifier`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import DropPath, products_with_rows


@dataclass(frozen=True)
class OffsetLearningOptions:
    """How offset learning takes the place of a classifier.

    Args:
        warm_start: Continue the trained classifier, so that the model gives its own logits at first (to rounding,
            about 1e-5). Otherwise begin anew, with the official initialization.
        use_class_offset: Move the class representations towards the image.
        use_feature_offset: Move the pixel features towards the classes.
    """

    warm_start: bool = True
    use_class_offset: bool = True
    use_feature_offset: bool = True

    @property
    def branches(self) -> dict[str, bool]:
        """The two branches, as [`OffsetLearning`] and the configurations call them."""
        return {"use_class_offset": self.use_class_offset, "use_feature_offset": self.use_feature_offset}


class OffsetAlignment(nn.Module):
    """Compares pixels with classes, or with masks, after both have been offset.

    With either branch off it is the paper's ablation (Table 6); with both off, a plain product.

    Args:
        channels: Of classes and pixels.
        use_class_offset: Move the class representations towards the image.
        use_feature_offset: Move the pixel features towards the classes.
        class_offset_drop_path_rate: Share of the images whose class offsets are left out in training. The paper has 0;
            on little data, classes left to the image to tell apart are told apart on the photos to train on alone.
    """

    def __init__(
        self,
        channels: int,
        use_class_offset: bool = True,
        use_feature_offset: bool = True,
        class_offset_drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.class_offset_proj = nn.Linear(channels, channels, bias=False) if use_class_offset else None
        self.feature_offset_proj = nn.Linear(channels, channels, bias=False) if use_feature_offset else None
        self.class_offset_drop_path = DropPath(class_offset_drop_path_rate)
        OffsetAlignment.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Apply the official initialization, from scratch."""
        for proj in self.offset_projs():
            nn.init.trunc_normal_(proj.weight, std=std)

    @torch.no_grad()
    def start_without_offsets(self) -> None:
        """Set the projections to zero: nothing moves, until training moves it."""
        for proj in self.offset_projs():
            nn.init.zeros_(proj.weight)

    def offset_projs(self) -> list[nn.Linear]:
        """Return the projections of the branches that are on."""
        return [proj for proj in (self.class_offset_proj, self.feature_offset_proj) if proj is not None]

    def forward(self, class_embeddings: Tensor, pixel_features: Tensor) -> Tensor:
        """Compare classes (1 or batch, classes, channels) with pixels (batch, channels, height, width).

        Returns:
            Their similarity (batch, classes, height, width).
        """
        height, width = pixel_features.shape[-2:]
        similarity = self.similarity(class_embeddings, pixel_features.flatten(2).transpose(1, 2))
        return similarity.transpose(1, 2).unflatten(2, (height, width))

    def similarity(self, classes: Tensor, features: Tensor) -> Tensor:
        """Compare classes (1 or batch, classes, channels) and pixels (batch, pixels, channels), pair by pair."""
        aligned_classes = classes
        similarity = coupled_attention = self.compare(features, classes)  # (batch, pixels, classes)

        if self.class_offset_proj is not None:
            # Every class gathers pixels. Transposed first: a softmax over thousands of pixels is faster, and loses no
            # digits in its sum, where they are neighbors in memory.
            gathered = coupled_attention.transpose(1, 2).softmax(dim=-1) @ features
            aligned_classes = classes + self.class_offset_drop_path(self.class_offset_proj(gathered))
            similarity = self.compare(features, aligned_classes)

        if self.feature_offset_proj is not None:
            # Every pixel gathers classes: feature_offset = feature_offset_proj(position_attention @ classes). All that
            # the result wants of it are its products with the aligned classes: a classes x classes matrix is enough.
            offset_similarity = aligned_classes @ self.feature_offset_proj(classes).transpose(1, 2)
            similarity = similarity + products_with_rows(coupled_attention.softmax(dim=-1), offset_similarity)

        return similarity

    def compare(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the products (batch, pixels, classes) of every pixel with every class."""
        return products_with_rows(features, classes)


class OffsetLearning(OffsetAlignment):
    """Classifies pixels by their similarity to class representations, after both have been offset.

    Args:
        num_classes: Two or more.
        channels: Of the pixel features and the class representations.
        use_class_offset: Move the class representations towards the image.
        use_feature_offset: Move the pixel features towards the classes.
        normalize_logits: Layer-normalize the logits over classes, as in the paper. Without, they are as they come,
            plus a bias per class: what a trained classifier gives is kept (see `from_classifier`).
        class_offset_drop_path_rate: As of [`OffsetAlignment`].

    Raises:
        ValueError: for fewer than two classes.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        use_class_offset: bool = True,
        use_feature_offset: bool = True,
        normalize_logits: bool = True,
        class_offset_drop_path_rate: float = 0.0,
    ):
        super().__init__(channels, use_class_offset, use_feature_offset, class_offset_drop_path_rate)
        if num_classes < 2:
            raise ValueError(f"expected at least 2 classes, which pixels are compared with; got {num_classes}")
        self.class_representation = nn.Parameter(torch.empty(1, num_classes, channels))
        self.logit_norm = nn.LayerNorm(num_classes) if normalize_logits else None
        self.bias = None if normalize_logits else nn.Parameter(torch.empty(num_classes))
        self.reset_parameters()

    @classmethod
    def from_classifier(
        cls, weight: Tensor, bias: Tensor | None = None, use_class_offset: bool = True, use_feature_offset: bool = True
    ) -> "OffsetLearning":
        """Continue a linear classifier of pixels: at first it gives the classifier's own logits.

        Args:
            weight: (num_classes, channels), becomes the class representations.
            bias: (num_classes,).
            use_class_offset: Move the class representations towards the image; the projection is zero at first.
            use_feature_offset: Move the pixel features towards the classes; the projection is zero at first.
        """
        num_classes, channels = weight.shape
        head = cls(num_classes, channels, use_class_offset, use_feature_offset, normalize_logits=False)
        head.to(device=weight.device, dtype=weight.dtype)
        head.start_without_offsets()
        with torch.no_grad():
            head.class_representation.copy_(weight[None])
            if bias is not None and head.bias is not None:
                head.bias.copy_(bias)
        return head

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Apply the official initialization, from scratch."""
        super().reset_parameters(std)
        nn.init.trunc_normal_(self.class_representation, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.logit_norm is not None:
            nn.init.ones_(self.logit_norm.weight)
            nn.init.zeros_(self.logit_norm.bias)

    def forward(self, pixel_features: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, channels, height, width) -> logits (batch, num_classes, height, width)."""
        return super().forward(self.class_representation, pixel_features)

    def similarity(self, classes: Tensor, features: Tensor) -> Tensor:
        """Return the logits (batch, pixels, classes), normalized where the paper does."""
        logits = super().similarity(classes, features)
        return logits if self.logit_norm is None else self.logit_norm(logits)

    def compare(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the products of every pixel with every class, plus the bias of a continued classifier."""
        logits = super().compare(features, classes)
        return logits if self.bias is None else logits + self.bias
