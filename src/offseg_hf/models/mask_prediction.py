"""Masks from offset alignment, in the place of the plain product of mask and pixel embeddings.

Paper: "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial and Class Feature Alignment"
(ICCV 2025, https://arxiv.org/abs/2508.08811), which aligns the masks of Mask2Former in every decoder layer.
"""

import torch.nn.functional as F
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskPredictor

from .offset_learning import OffsetAlignment


def auto_classes_of(code: str) -> dict[str, str]:
    """Return the Auto classes that find a model of masks, whose code is `module.class`.

    `pipeline("image-segmentation", ...)` looks for transformers' own such models by their class names, and for others
    in AutoModelForImageSegmentation.
    """
    return dict.fromkeys(("AutoModelForImageSegmentation", "AutoModelForUniversalSegmentation"), code)


class AlignedMaskPredictor(Mask2FormerMaskPredictor):
    """Mask2Former's mask predictor, called after every decoder layer, with one alignment that all of them share."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mask_feature_size: int,
        use_class_offset: bool = True,
        use_feature_offset: bool = True,
    ):
        super().__init__(hidden_size, num_heads, mask_feature_size)
        self.alignment = OffsetAlignment(mask_feature_size, use_class_offset, use_feature_offset)

    def forward(
        self, outputs: Tensor, pixel_embeddings: Tensor, attention_mask_target_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict masks, and where the next layer must not look.

        Args:
            outputs: Queries (queries, batch, hidden_size).
            pixel_embeddings: (batch, mask_feature_size, height, width).
            attention_mask_target_size: Height and width of the next layer's map.

        Returns:
            Masks (batch, queries, height, width), and what to ignore (batch * heads, queries, target pixels).
        """
        masks = self.alignment(self.mask_embedder(outputs.transpose(0, 1)), pixel_embeddings)
        resized = F.interpolate(masks.detach(), size=attention_mask_target_size, mode="bilinear", align_corners=False)
        ignored = resized.flatten(2).sigmoid() < 0.5  # (batch, queries, target pixels)
        return masks, ignored.repeat_interleave(self.num_heads, dim=0)
