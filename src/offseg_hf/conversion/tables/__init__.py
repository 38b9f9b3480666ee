"""Published keys -> ours: per family a module with the official checkpoints and the forms to start training from."""

from offseg_hf.conversion.tables import mask2former, offseg, segformer, segnext


# By `model_type` of the config.
OFFICIAL_TABLES = {
    "offseg": offseg.OFFICIAL,
    "offset_segformer": segformer.OFFICIAL,
    "offset_segnext": segnext.OFFICIAL,
    "offset_mask2former": mask2former.OFFICIAL,
}
PRETRAINED_FORMS = {
    "offseg": offseg.PRETRAINED,
    "efficientformer_v2": offseg.PRETRAINED,
    "offset_segformer": segformer.PRETRAINED,
    "offset_segnext": segnext.PRETRAINED,
    "offset_mask2former": mask2former.PRETRAINED,
    "mscan": segnext.PRETRAINED_ENCODER,
}
