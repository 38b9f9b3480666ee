"""Published keys -> ours: per family a module with the official checkpoints and the forms to start training from."""

from offseg_hf.conversion.tables import mask2former, offseg, segformer, segnext


# By `model_type` of the config.
OFFICIAL_TABLES = {
    "offseg": offseg.OFFICIAL,
    "offset_segformer": segformer.OFFICIAL,
    "offset_segnext": segnext.OFFICIAL,
    "offset_mask2former": mask2former.OFFICIAL,
}
OFFICIAL_MARKERS = {
    "offseg": "decode_head.offset_learning.cls_repr",
    "offset_segformer": "decode_head.offset_learning.cls_repr",
    "offset_segnext": "decode_head.offset_learning.cls_repr",
    "offset_mask2former": "decode_head.offset_learning.cls_offset_proj.weight",
}
PRETRAINED_FORMS = {
    "offseg": offseg.PRETRAINED,
    "efficientformer_v2": offseg.PRETRAINED,
    "offset_segformer": segformer.PRETRAINED,
    "offset_segnext": segnext.PRETRAINED,
    "offset_mask2former": mask2former.PRETRAINED,
    "mscan": segnext.PRETRAINED_ENCODER,
}
