"""What the official heads of OffSeg, SegFormer and SegNeXt have in common.

Names: HVision-NKU/OffSeg @ 1414f6d.
"""

OFFSET_LEARNING = (
    (r"^decode_head\.offset_learning\.cls_repr$",         "offset_learning.class_representation"),
    (r"^decode_head\.offset_learning\.cls_offset_proj",   "offset_learning.class_offset_proj"),
    (r"^decode_head\.offset_learning\.feat_offset_proj",  "offset_learning.feature_offset_proj"),
    (r"^decode_head\.offset_learning\.mask_norm\.",       "offset_learning.logit_norm."),
)  # fmt: skip
UNUSED_CLASSIFIER = (r"decode_head\.conv_seg\.(weight|bias)", "the base class's classifier, never called")
