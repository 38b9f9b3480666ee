"""SegNeXt with offset learning, and MSCAN.

Names: HVision-NKU/OffSeg @ 1414f6d, whose encoder and decoder are mmseg's; openmmlab's `mscan_{t,s,b}_20230227-*.pth`
and the authors' `mscan_{t,s,b}.pth` (Visual-Attention-Network/SegNeXt), in which one layer lies one level deeper.
"""

from offseg_hf.conversion.keys import KeyTable, PretrainedForm
from offseg_hf.conversion.tables.head import OFFSET_LEARNING, UNUSED_CLASSIFIER


MSCAN_LAYERS = (
    (r"\bpatch_embed1\.proj\.0\.",                     "stem.conv1.conv."),
    (r"\bpatch_embed1\.proj\.1\.",                     "stem.conv1.norm."),
    (r"\bpatch_embed1\.proj\.3\.",                     "stem.conv2.conv."),
    (r"\bpatch_embed1\.proj\.4\.",                     "stem.conv2.norm."),
    (r"\bpatch_embed2\.proj\.",                        "downsample.0.conv."),
    (r"\bpatch_embed2\.norm\.",                        "downsample.0.norm."),
    (r"\bpatch_embed3\.proj\.",                        "downsample.1.conv."),
    (r"\bpatch_embed3\.norm\.",                        "downsample.1.norm."),
    (r"\bpatch_embed4\.proj\.",                        "downsample.2.conv."),
    (r"\bpatch_embed4\.norm\.",                        "downsample.2.norm."),
    (r"(\.\d+)\.norm1\.",                             r"\1.attention_norm."),
    (r"(\.\d+)\.norm2\.",                             r"\1.mlp_norm."),
    (r"\bnorm1\.",                                     "norms.0."),
    (r"\bnorm2\.",                                     "norms.1."),
    (r"\bnorm3\.",                                     "norms.2."),
    (r"\bnorm4\.",                                     "norms.3."),
    (r"\bblock1\.",                                    "stages.0."),
    (r"\bblock2\.",                                    "stages.1."),
    (r"\bblock3\.",                                    "stages.2."),
    (r"\bblock4\.",                                    "stages.3."),
    (r"\.layer_scale_1$",                              ".attention_scale"),
    (r"\.layer_scale_2$",                              ".mlp_scale"),
    (r"\.attn\.proj_1\.",                              ".attention.in_proj."),
    (r"\.attn\.proj_2\.",                              ".attention.out_proj."),
    (r"\.attn\.spatial_gating_unit\.",                 ".attention.gate."),
    (r"\.gate\.conv0\.",                               ".gate.local."),
    (r"\.gate\.conv0_1\.",                             ".gate.strips.0.0."),
    (r"\.gate\.conv0_2\.",                             ".gate.strips.0.1."),
    (r"\.gate\.conv1_1\.",                             ".gate.strips.1.0."),
    (r"\.gate\.conv1_2\.",                             ".gate.strips.1.1."),
    (r"\.gate\.conv2_1\.",                             ".gate.strips.2.0."),
    (r"\.gate\.conv2_2\.",                             ".gate.strips.2.1."),
    (r"\.gate\.conv3\.",                               ".gate.mix."),
    (r"\.mlp\.fc1\.",                                  ".mlp.expand."),
    (r"\.mlp\.dwconv\.(dwconv\.)?",                    ".mlp.depthwise."),
    (r"\.mlp\.fc2\.",                                  ".mlp.project."),
)  # fmt: skip

MSCAN_TRANSFORMS = (
    (r"_scale", lambda scale: scale.reshape(-1, 1, 1)),
)  # fmt: skip

MARKER = "decode_head.offset_learning.cls_repr"
OFFICIAL = KeyTable(
    renames=(
        (r"^backbone\.",                                       "encoder."),
        *MSCAN_LAYERS,
        (r"^decode_head\.squeeze\.conv\.",                     "pixel_decoder.squeeze.conv."),
        (r"^decode_head\.squeeze\.gn\.",                       "pixel_decoder.squeeze.norm."),
        (r"^decode_head\.hamburger\.ham_in\.conv\.",           "pixel_decoder.hamburger.in_proj."),
        (r"^decode_head\.hamburger\.ham_out\.conv\.",          "pixel_decoder.hamburger.out_proj.conv."),
        (r"^decode_head\.hamburger\.ham_out\.gn\.",            "pixel_decoder.hamburger.out_proj.norm."),
        (r"^decode_head\.align\.conv\.",                       "pixel_decoder.output_conv.conv."),
        (r"^decode_head\.align\.gn\.",                         "pixel_decoder.output_conv.norm."),
        *OFFSET_LEARNING,
    ),
    drops=(UNUSED_CLASSIFIER,),
    transforms=MSCAN_TRANSFORMS,
)  # fmt: skip

MSCAN = KeyTable(
    renames=(*MSCAN_LAYERS, (r"^", "encoder.")),
    drops=((r"head\..*", "ImageNet classifier"),),
    transforms=MSCAN_TRANSFORMS,
)

PRETRAINED_ENCODER = (
    PretrainedForm("MSCAN of openmmlab or of its authors", "patch_embed1.proj.0.weight", MSCAN, r"(?!encoder\.).*"),
)
# A whole SegNeXt has all but offset learning, in the place of which it has the classifier.
PRETRAINED = (
    *PRETRAINED_ENCODER,
    PretrainedForm("SegNeXt of openmmlab", "backbone.patch_embed1.proj.0.weight", OFFICIAL, r"offset_learning\..*"),
)
