"""OffSeg and EfficientFormerV2.

Names: HVision-NKU/OffSeg @ 1414f6d; snap-research/EfficientFormer (`eformer_s1_450.pth`); timm 1.0.31.
"""

from offseg_hf.conversion.keys import KeyTable, PretrainedForm
from offseg_hf.conversion.tables.head import OFFSET_LEARNING, UNUSED_CLASSIFIER


# The layers inside of a block or an attention downsampling, named by position in the authors' nn.Sequentials.
EFFICIENTFORMER_V2_LAYERS = (
    (r"\bpatch_embed\.0\.",             "stem.conv1.conv."),
    (r"\bpatch_embed\.1\.",             "stem.conv1.norm."),
    (r"\bpatch_embed\.3\.",             "stem.conv2.conv."),
    (r"\bpatch_embed\.4\.",             "stem.conv2.norm."),
    (r"\bnetwork\.0\.",                 "stages.0."),
    (r"\bnetwork\.1\.proj\.",           "downsample.0.projection.conv."),
    (r"\bnetwork\.1\.norm\.",           "downsample.0.projection.norm."),
    (r"\bnetwork\.2\.",                 "stages.1."),
    (r"\bnetwork\.3\.proj\.",           "downsample.1.projection.conv."),
    (r"\bnetwork\.3\.norm\.",           "downsample.1.projection.norm."),
    (r"\bnetwork\.4\.",                 "stages.2."),
    (r"\bnetwork\.5\.conv\.",           "downsample.2.projection.conv."),
    (r"\bnetwork\.5\.bn\.",             "downsample.2.projection.norm."),
    (r"\bnetwork\.5\.attn\.",           "downsample.2.attention."),
    (r"\bnetwork\.6\.",                 "stages.3."),
    (r"\btoken_mixer\.",                "attention."),
    (r"\bstride_conv\.0\.",             "downsample.conv."),
    (r"\bstride_conv\.1\.",             "downsample.norm."),
    (r"\bq\.local\.0\.",                "query.local."),
    (r"\bq\.proj\.0\.",                 "query.project.conv."),
    (r"\bq\.proj\.1\.",                 "query.project.norm."),
    (r"\bq\.0\.",                       "query.conv."),
    (r"\bq\.1\.",                       "query.norm."),
    (r"\bk\.0\.",                       "key.conv."),
    (r"\bk\.1\.",                       "key.norm."),
    (r"\bv\.0\.",                       "value.conv."),
    (r"\bv\.1\.",                       "value.norm."),
    (r"\bv_local\.0\.",                 "value_local.conv."),
    (r"\bv_local\.1\.",                 "value_local.norm."),
    (r"\bproj\.1\.",                    "project.conv."),
    (r"\bproj\.2\.",                    "project.norm."),
    (r"\blayer_scale_1$",               "attention_scale"),
    (r"\blayer_scale_2$",               "mlp_scale"),
    (r"\bmlp\.fc1\.",                   "mlp.expand.conv."),
    (r"\bmlp\.norm1\.",                 "mlp.expand.norm."),
    (r"\bmlp\.mid\.",                   "mlp.depthwise.conv."),
    (r"\bmlp\.mid_norm\.",              "mlp.depthwise.norm."),
    (r"\bmlp\.fc2\.",                   "mlp.project.conv."),
    (r"\bmlp\.norm2\.",                 "mlp.project.norm."),
)  # fmt: skip

MARKER = "decode_head.offset_learning.cls_repr"
OFFICIAL = KeyTable(
    renames=(
        (r"^backbone\.",                                           "encoder."),
        *EFFICIENTFORMER_V2_LAYERS,
        (r"\.attention_biases_seg$",                               ".attention_bias.table"),
        (r"^decode_head\.pre\.(\d)\.conv\.",                      r"pixel_decoder.lateral_convs.\1.conv."),
        (r"^decode_head\.pre\.(\d)\.gn\.",                        r"pixel_decoder.lateral_convs.\1.norm."),
        (r"^decode_head\.freqfusions\.",                           "pixel_decoder.fusions."),
        (r"\.hr_channel_compressor\.",                             ".high_res_compressor."),
        (r"\.lr_channel_compressor\.",                             ".low_res_compressor."),
        (r"\.content_encoder\.",                                   ".low_pass_generator."),
        (r"\.content_encoder2\.",                                  ".high_pass_generator."),
        (r"\.dysampler\.offset\.",                                 ".sampler.displacement."),
        (r"\.dysampler\.direct_scale\.",                           ".sampler.displacement_scale."),
        (r"\.dysampler\.hr_offset\.",                              ".sampler.high_res_displacement."),
        (r"\.dysampler\.hr_direct_scale\.",                        ".sampler.high_res_displacement_scale."),
        (r"\.dysampler\.norm_hr\.",                                ".sampler.high_res_norm."),
        (r"\.dysampler\.norm_lr\.",                                ".sampler.low_res_norm."),
        (r"^decode_head\.align\.conv\.",                           "pixel_decoder.output_conv.conv."),
        (r"^decode_head\.align\.gn\.",                             "pixel_decoder.output_conv.norm."),
        *OFFSET_LEARNING,
    ),
    drops=(
        UNUSED_CLASSIFIER,
        (r"backbone\..*\.attention_biases",                        "zeros, for the grid of ImageNet, never read"),
        (r"backbone\..*\.attention_bias_idxs(_seg)?",              "constant index table"),
        (r"backbone\..*\.ab",                                      "cache of the biases looked up"),
        (r"decode_head\..*\.hamming_(low|high)pass",               "constant window, all ones"),
        (r"decode_head\..*\.init_pos",                             "constant sampling grid"),
    ),
)  # fmt: skip

CLASSIFIER_DROPS = (
    (r"norm\..*",                                           "ImageNet classifier"),
    (r"head\..*",                                           "ImageNet classifier"),
    (r"(dist_head|head_dist)\..*",                          "ImageNet classifier of the distillation token"),
    (r".*\.attention_bias_idxs",                            "constant index table"),
    (r".*\.ab",                                             "cache of the biases looked up"),
)  # fmt: skip

EFFICIENTFORMER_V2 = KeyTable(
    renames=(*EFFICIENTFORMER_V2_LAYERS, (r"\.attention_biases$", ".attention_bias.table"), (r"^", "encoder.")),
    drops=CLASSIFIER_DROPS,
)

TIMM_EFFICIENTFORMER_V2 = KeyTable(
    renames=(
        (r"^stages\.1\.downsample\.",   "downsample.0."),
        (r"^stages\.2\.downsample\.",   "downsample.1."),
        (r"^stages\.3\.downsample\.",   "downsample.2."),
        (r"^(downsample\.\d)\.conv\.", r"\1.projection."),
        (r"^(downsample\.\d)\.attn\.", r"\1.attention."),
        (r"^(stages\.\d)\.blocks\.",   r"\1."),
        (r"\.token_mixer\.",            ".attention."),
        (r"\.stride_conv\.",            ".downsample."),
        (r"\.q\.",                      ".query."),
        (r"\.k\.",                      ".key."),
        (r"\.v\.",                      ".value."),
        (r"\.v_local\.",                ".value_local."),
        (r"\.proj\.",                   ".project."),
        (r"\.ls1\.gamma$",              ".attention_scale"),
        (r"\.ls2\.gamma$",              ".mlp_scale"),
        (r"\.mlp\.fc1\.",               ".mlp.expand."),
        (r"\.mlp\.mid\.",               ".mlp.depthwise."),
        (r"\.mlp\.fc2\.",               ".mlp.project."),
        (r"\.bn\.",                     ".norm."),
        (r"\.attention_biases$",        ".attention_bias.table"),
        (r"^",                          "encoder."),
    ),
    drops=CLASSIFIER_DROPS,
    transforms=(
        (r"_scale", lambda scale: scale.reshape(-1, 1, 1)),
    ),
)  # fmt: skip

# The published attention biases belong to the grid of 224-pixel images: a model of another `image_size` keeps its own,
# as in the official training.
KEPT = r"encoder\..*\.attention_bias\.table|(?!encoder\.).*"

PRETRAINED = (
    PretrainedForm("EfficientFormerV2 of its authors", "patch_embed.0.weight", EFFICIENTFORMER_V2, KEPT),
    PretrainedForm("EfficientFormerV2 of timm", "stem.conv1.conv.weight", TIMM_EFFICIENTFORMER_V2, KEPT),
)
PRETRAINED_ENCODER = PRETRAINED
