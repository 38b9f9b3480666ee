"""Mask2Former with offset learning.

Names: HVision-NKU/OffSeg @ 1414f6d, which has the encoder of mmseg and the head of mmdet; transformers 5.23.
"""

import re

from torch import Tensor

from offseg_hf.conversion.keys import KeyTable, PretrainedForm


ENCODER = "model.pixel_level_module.encoder."
SWIN = f"{ENCODER}swin."
PIXEL_DECODER = "model.pixel_level_module.decoder."
TRANSFORMER = "model.transformer_module."
MASK_PREDICTOR = f"{TRANSFORMER}decoder.mask_predictor."

QUERY_KEY_VALUE = (r".attention.q_proj.\1", r".attention.k_proj.\1", r".attention.v_proj.\1")
QUERY_KEY_VALUE_OF_DECODER = (r".self_attn.q_proj.\1", r".self_attn.k_proj.\1", r".self_attn.v_proj.\1")


def order_patch_merging(tensor: Tensor) -> Tensor:
    """Put the channels (last dimension) of 2 x 2 merged patches into transformers' order.

    The official code merges by `nn.Unfold`: channel by channel, in each row by row. transformers concatenates whole
    patches, column by column.
    """
    if tensor.ndim == 0 or tensor.shape[-1] % 4:
        return tensor  # of another model: its shape will not fit
    return tensor.unflatten(-1, (-1, 2, 2)).movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)


MARKER = "decode_head.offset_learning.cls_offset_proj.weight"
OFFICIAL = KeyTable(
    renames=(
        (r"^backbone\.patch_embed\.projection\.",              f"{SWIN}embeddings.patch_embeddings.projection."),
        (r"^backbone\.patch_embed\.norm\.",                    f"{SWIN}embeddings.norm."),
        (r"^backbone\.stages\.",                               f"{SWIN}encoder.layers."),
        (r"(\.blocks\.\d+)\.norm1\.",                         r"\1.layernorm_before."),
        (r"(\.blocks\.\d+)\.norm2\.",                         r"\1.layernorm_after."),
        (r"(\.blocks\.\d+)\.ffn\.layers\.0\.0\.",            r"\1.mlp.fc1."),
        (r"(\.blocks\.\d+)\.ffn\.layers\.1\.",               r"\1.mlp.fc2."),
        (r"\.attn\.w_msa\.(relative_position_bias)_table$",    r".attention.\1.\1_table"),
        (r"\.attn\.w_msa\.proj\.",                             ".attention.o_proj."),
        (r"\.attn\.w_msa\.qkv\.",                              ".attention.qkv_proj."),
        (r"^backbone\.norm0\.",                                f"{ENCODER}hidden_states_norms.stage1."),
        (r"^backbone\.norm1\.",                                f"{ENCODER}hidden_states_norms.stage2."),
        (r"^backbone\.norm2\.",                                f"{ENCODER}hidden_states_norms.stage3."),
        (r"^backbone\.norm3\.",                                f"{ENCODER}hidden_states_norms.stage4."),
        (r"^decode_head\.pixel_decoder\.(\w+)\.(\d)\.conv\.",  r"decode_head.pixel_decoder.\1.\2.0."),
        (r"^decode_head\.pixel_decoder\.(\w+)\.(\d)\.gn\.",    r"decode_head.pixel_decoder.\1.\2.1."),
        (r"^decode_head\.pixel_decoder\.input_convs\.",        f"{PIXEL_DECODER}input_projections."),
        (r"^decode_head\.pixel_decoder\.lateral_convs\.0\.",   f"{PIXEL_DECODER}adapter_1."),
        (r"^decode_head\.pixel_decoder\.output_convs\.0\.",    f"{PIXEL_DECODER}layer_1."),
        (r"^decode_head\.pixel_decoder\.mask_feature\.",       f"{PIXEL_DECODER}mask_projection."),
        (r"^decode_head\.pixel_decoder\.level_encoding\.weight", f"{PIXEL_DECODER}level_embed"),
        (r"^decode_head\.pixel_decoder\.encoder\.",            f"{PIXEL_DECODER}encoder."),
        (r"(\.decoder\.encoder\.layers\.\d)\.norms\.0\.",     r"\1.self_attn_layer_norm."),
        (r"(\.decoder\.encoder\.layers\.\d)\.norms\.1\.",     r"\1.final_layer_norm."),
        (r"^decode_head\.transformer_decoder\.post_norm\.",    f"{TRANSFORMER}decoder.layernorm."),
        (r"^decode_head\.transformer_decoder\.",               f"{TRANSFORMER}decoder."),
        (r"\.norms\.0\.",                                      ".cross_attn_layer_norm."),
        (r"\.norms\.1\.",                                      ".self_attn_layer_norm."),
        (r"\.norms\.2\.",                                      ".final_layer_norm."),
        (r"\.(cross_attn|self_attn)\.attn\.",                  r".\1."),
        (r"\.ffn\.layers\.0\.0\.",                             ".fc1."),
        (r"\.ffn\.layers\.1\.",                                ".fc2."),
        (r"^decode_head\.query_embed\.",                       f"{TRANSFORMER}queries_embedder."),
        (r"^decode_head\.query_feat\.",                        f"{TRANSFORMER}queries_features."),
        (r"^decode_head\.level_embed\.",                       f"{TRANSFORMER}level_embed."),
        (r"^decode_head\.mask_embed\.0\.",                     f"{MASK_PREDICTOR}mask_embedder.0.0."),
        (r"^decode_head\.mask_embed\.2\.",                     f"{MASK_PREDICTOR}mask_embedder.1.0."),
        (r"^decode_head\.mask_embed\.4\.",                     f"{MASK_PREDICTOR}mask_embedder.2.0."),
        (r"^decode_head\.offset_learning\.",                   f"{MASK_PREDICTOR}alignment."),
        (r"\.cls_offset_proj\.",                               ".class_offset_proj."),
        (r"\.feat_offset_proj\.",                              ".feature_offset_proj."),
        (r"^decode_head\.cls_embed\.",                         "class_predictor."),
    ),
    drops=(
        (r"backbone\..*\.relative_position_index",             "constant index table"),
    ),
    splits=(
        (r"\.attention\.qkv_proj\.(\w+)$",                     QUERY_KEY_VALUE),
        (r"\.self_attn\.in_proj_(\w+)$",                       QUERY_KEY_VALUE_OF_DECODER),
    ),
    transforms=(
        (r"\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)", order_patch_merging),
    ),
)  # fmt: skip

# transformers publishes Swin under older names, which its own loading replaces; weights saved under today's pass too.
SWIN_LAYERS = (
    (r"\.attention\.self\.query\.",                            ".attention.q_proj."),
    (r"\.attention\.self\.key\.",                              ".attention.k_proj."),
    (r"\.attention\.self\.value\.",                            ".attention.v_proj."),
    (r"\.attention\.self\.(relative_position_bias)_table$",    r".attention.\1.\1_table"),
    (r"\.attention\.output\.dense\.",                          ".attention.o_proj."),
    (r"\.intermediate\.dense\.",                               ".mlp.fc1."),
    (r"\.output\.dense\.",                                     ".mlp.fc2."),
)  # fmt: skip

SWIN_CLASSIFIER = KeyTable(
    renames=((r"^swin\.", SWIN), *SWIN_LAYERS),
    drops=(
        (r"swin\.layernorm\..*",                               "ImageNet classifier"),
        (r"classifier\..*",                                    "ImageNet classifier"),
        (r".*\.relative_position_index",                       "constant index table"),
    ),
)  # fmt: skip

MASK2FORMER = KeyTable(
    renames=(
        (r"^model\.pixel_level_module\.encoder\.(embeddings|encoder)\.", rf"{SWIN}\1."),
        *SWIN_LAYERS,
    ),
    drops=(
        (r"criterion\.empty_weight",                           "constant of the loss"),
        (r".*\.encoder\.swin\.layernorm\..*",                  "norm of a classifier, never used"),
        (r".*\.relative_position_index",                       "constant index table"),
    ),
)  # fmt: skip

PRETRAINED = (
    PretrainedForm(
        "Swin of transformers",
        "swin.embeddings.patch_embeddings.projection.weight",
        SWIN_CLASSIFIER,
        rf"(?!{re.escape(SWIN)}).*",
    ),
    PretrainedForm(
        "Mask2Former of transformers",
        "model.transformer_module.queries_features.weight",
        MASK2FORMER,
        r".*\.alignment\..*|class_predictor\..*",
    ),
)
