"""The small models that the common tests run on."""

import json
from pathlib import Path

import torch

from offseg_hf import (
    EfficientFormerV2Config,
    MscanConfig,
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffSegImageProcessor,
    OffsetMask2FormerConfig,
    OffsetSegformerConfig,
    OffsetSegformerForSemanticSegmentation,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
)


TINY_ENCODER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 2],
    "mlp_ratios": [[2], [2], [2, 2], [2, 2]],
    "num_attention_blocks": 1,
    "image_size": 64,
}
TINY_OFFSEG = TINY_ENCODER | {"lateral_channels": [32, 32, 32, 64], "decoder_hidden_size": 32}
TINY_SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 2],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "decoder_hidden_size": 16,
}
TINY_MSCAN = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 2], "mlp_ratios": [2, 2, 2, 2]}
TINY_SEGNEXT = TINY_MSCAN | {"decoder_hidden_size": 32, "num_bases": 4}
TINY_OFFSET_MASK2FORMER = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 16,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "num_attention_heads": 2,
    "num_queries": 6,
    "train_num_points": 64,
}


def tiny_offseg_config() -> OffSegConfig:
    return OffSegConfig(**TINY_OFFSEG, num_labels=3)


def tiny_encoder_config() -> EfficientFormerV2Config:
    return EfficientFormerV2Config(**TINY_ENCODER)


def tiny_segformer_config() -> OffsetSegformerConfig:
    return OffsetSegformerConfig(**TINY_SEGFORMER, num_labels=3)


def tiny_segnext_config() -> OffsetSegNextConfig:
    return OffsetSegNextConfig(**TINY_SEGNEXT, num_labels=3)


def tiny_mscan_config() -> MscanConfig:
    return MscanConfig(**TINY_MSCAN)


def tiny_offset_mask2former_config() -> OffsetMask2FormerConfig:
    return OffsetMask2FormerConfig(**TINY_OFFSET_MASK2FORMER, num_labels=3)


# What the pipeline tests run on.
TINY_MODELS = (
    (OffSegForSemanticSegmentation, tiny_offseg_config),
    (OffsetSegformerForSemanticSegmentation, tiny_segformer_config),
    (OffsetSegNextForSemanticSegmentation, tiny_segnext_config),
)


def write_tiny_models(folder: Path) -> None:
    """What the pipeline tests read instead of the Hub: saved models by type and class, and a list of them."""
    summary = {}
    for model_class, get_config in TINY_MODELS:
        config, name = get_config(), model_class.__name__
        target = folder / config.model_type / name
        torch.manual_seed(0)
        model_class(config).save_pretrained(target)
        size = {"shortest_edge": 48, "longest_edge": 96}
        OffSegImageProcessor(size=size, window_size=32, window_stride=24).save_pretrained(target)
        summary[name] = {"tokenizer_classes": [], "processor_classes": [OffSegImageProcessor.__name__]}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
