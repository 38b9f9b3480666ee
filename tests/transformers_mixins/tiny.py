"""The small models that the common tests run on."""

import json
from pathlib import Path

import torch

from offseg_hf import EfficientFormerV2Config, OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor


TINY_ENCODER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 2],
    "mlp_ratios": [[2], [2], [2, 2], [2, 2]],
    "num_attention_blocks": 1,
    "image_size": 64,
}
TINY_OFFSEG = TINY_ENCODER | {"lateral_channels": [32, 32, 32, 64], "decoder_hidden_size": 32}


def tiny_offseg_config() -> OffSegConfig:
    return OffSegConfig(**TINY_OFFSEG, num_labels=3)


def tiny_encoder_config() -> EfficientFormerV2Config:
    return EfficientFormerV2Config(**TINY_ENCODER)


def write_tiny_models(folder: Path) -> None:
    """What the pipeline tests read instead of the Hub: saved models by type and class, and a list of them."""
    name = OffSegForSemanticSegmentation.__name__
    target = folder / "offseg" / name
    torch.manual_seed(0)
    OffSegForSemanticSegmentation(tiny_offseg_config()).save_pretrained(target)
    size = {"shortest_edge": 48, "longest_edge": 96}
    OffSegImageProcessor(size=size, window_size=32, window_stride=24).save_pretrained(target)
    summary = {name: {"tokenizer_classes": [], "processor_classes": [OffSegImageProcessor.__name__]}}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
