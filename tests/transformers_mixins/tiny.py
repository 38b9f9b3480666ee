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
from tests.tiny import EFFICIENTFORMER, MASK2FORMER, MSCAN, OFFSEG, SEGFORMER, SEGNEXT


def tiny_offseg_config() -> OffSegConfig:
    return OffSegConfig(**OFFSEG, num_labels=3)


def tiny_encoder_config() -> EfficientFormerV2Config:
    return EfficientFormerV2Config(**EFFICIENTFORMER)


def tiny_segformer_config() -> OffsetSegformerConfig:
    return OffsetSegformerConfig(**SEGFORMER, num_labels=3)


def tiny_segnext_config() -> OffsetSegNextConfig:
    return OffsetSegNextConfig(**SEGNEXT, num_labels=3)


def tiny_mscan_config() -> MscanConfig:
    return MscanConfig(**MSCAN)


def tiny_offset_mask2former_config() -> OffsetMask2FormerConfig:
    return OffsetMask2FormerConfig(**MASK2FORMER, num_labels=3)


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
