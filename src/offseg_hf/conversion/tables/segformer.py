"""SegFormer with offset learning, and SegFormer to start training from.

Names: HVision-NKU/OffSeg @ 1414f6d; transformers 5.23, which reads and writes the older names of `nvidia/mit-b*` and
`nvidia/segformer-b*`; openmmlab's `mit_b*.pth`, which are the backbone of the official code.
"""

import torch
from torch import Tensor

from offseg_hf.conversion.keys import KeyTable, PretrainedForm
from offseg_hf.conversion.tables.head import OFFSET_LEARNING, UNUSED_CLASSIFIER


def as_linear(weight: Tensor) -> Tensor:
    """Return a 1x1 convolution's weight (out, in, 1, 1) -> a linear layer's (out, in)."""
    return weight.squeeze((2, 3)) if weight.ndim == 4 else weight


def as_conv(weight: Tensor) -> Tensor:
    """Return a linear layer's weight (out, in) -> a 1x1 convolution's (out, in, 1, 1)."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def last_stage_last(weight: Tensor) -> Tensor:
    """Turn a layer (out, stages * in, 1, 1) that reads the last stage first into one that reads it last."""
    return torch.cat(weight.chunk(4, dim=1)[::-1], dim=1) if weight.ndim == 4 else weight


MIT = (
    (r"^(backbone\.)?layers\.(\d)\.0\.projection\.",       r"segformer.stages.\2.patch_embeddings.proj."),
    (r"^(backbone\.)?layers\.(\d)\.0\.norm\.",             r"segformer.stages.\2.patch_embeddings.layer_norm."),
    (r"^(backbone\.)?layers\.(\d)\.1\.",                   r"segformer.stages.\2.blocks."),
    (r"^(backbone\.)?layers\.(\d)\.2\.",                   r"segformer.stages.\2.layer_norm."),
    (r"\.norm1\.",                                          ".layernorm_before."),
    (r"\.norm2\.",                                          ".layernorm_after."),
    (r"\.attn\.sr\.",                                       ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attn\.norm\.",                                     ".attention.sequence_reduction.layer_norm."),
    (r"\.attn\.attn\.out_proj\.",                           ".attention.o_proj."),
    (r"\.attn\.attn\.in_proj_",                             ".attention.in_proj_"),
    (r"\.ffn\.layers\.0\.",                                 ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.",                                 ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.",                                 ".mlp.fc2."),
)  # fmt: skip
MIT_SPLITS = ((r"\.in_proj_(weight|bias)$", (r".q_proj.\1", r".k_proj.\1", r".v_proj.\1")),)
MIT_TRANSFORMS = ((r"\.mlp\.fc[12]\.weight", as_linear),)

MARKER = "decode_head.offset_learning.cls_repr"
OFFICIAL = KeyTable(
    renames=(
        *MIT,
        (r"^decode_head\.convs\.(\d)\.conv\.",             r"pixel_decoder.lateral_convs.\1.conv."),
        (r"^decode_head\.convs\.(\d)\.bn\.",               r"pixel_decoder.lateral_convs.\1.norm."),
        (r"^decode_head\.fusion_conv\.conv\.",              "pixel_decoder.output_conv.conv."),
        (r"^decode_head\.fusion_conv\.bn\.",                "pixel_decoder.output_conv.norm."),
        *OFFSET_LEARNING,
    ),
    drops=(UNUSED_CLASSIFIER,),
    splits=MIT_SPLITS,
    transforms=MIT_TRANSFORMS,
)  # fmt: skip

# The decoder of SegFormer is linear layers per stage, without norm and activation, and reads the last stage first. Its
# layers become convolutions, their biases those of the norms. Its classifier has no place here: its logits are not
# normalized over classes, and as many classes need not be the same ones.
SEGFORMER = KeyTable(
    renames=(
        (r"^segformer\.encoder\.patch_embeddings\.(\d)\.", r"segformer.stages.\1.patch_embeddings."),
        (r"^segformer\.encoder\.block\.(\d)\.",            r"segformer.stages.\1.blocks."),
        (r"^segformer\.encoder\.layer_norm\.(\d)\.",       r"segformer.stages.\1.layer_norm."),
        (r"\.layer_norm_1\.",                               ".layernorm_before."),
        (r"\.layer_norm_2\.",                               ".layernorm_after."),
        (r"\.attention\.self\.query\.",                     ".attention.q_proj."),
        (r"\.attention\.self\.key\.",                       ".attention.k_proj."),
        (r"\.attention\.self\.value\.",                     ".attention.v_proj."),
        (r"\.attention\.self\.sr\.",                        ".attention.sequence_reduction.sequence_reduction."),
        (r"\.attention\.self\.layer_norm\.",                ".attention.sequence_reduction.layer_norm."),
        (r"\.attention\.output\.dense\.",                   ".attention.o_proj."),
        (r"\.mlp\.dense([12])\.",                          r".mlp.fc\1."),
        (r"^decode_head\.linear_(c|projections)\.(\d)\.proj\.weight$", r"pixel_decoder.lateral_convs.\2.conv.weight"),
        (r"^decode_head\.linear_(c|projections)\.(\d)\.proj\.bias$",   r"pixel_decoder.lateral_convs.\2.norm.bias"),
        (r"^decode_head\.linear_fuse\.",                    "pixel_decoder.output_conv.conv."),
        (r"^decode_head\.batch_norm\.",                     "pixel_decoder.output_conv.norm."),
    ),
    drops=(
        (r"classifier\.(weight|bias)",                      "ImageNet classifier"),
        (r"decode_head\.classifier\.(weight|bias)",         "pixel classifier"),
    ),
    transforms=(
        (r"lateral_convs\.\d\.conv\.weight",                as_conv),
        (r"output_conv\.conv\.weight",                      last_stage_last),
    ),
)  # fmt: skip

KEPT = r"(?!segformer\.).*"  # all but the encoder

PRETRAINED = (
    PretrainedForm("SegFormer", "segformer.encoder.patch_embeddings.0.proj.weight", SEGFORMER, KEPT),
    PretrainedForm("SegFormer of transformers 5", "segformer.stages.0.patch_embeddings.proj.weight", SEGFORMER, KEPT),
    PretrainedForm(
        "MiT of openmmlab",
        "layers.0.0.projection.weight",
        KeyTable(renames=MIT, splits=MIT_SPLITS, transforms=MIT_TRANSFORMS),
        KEPT,
    ),
)
