"""One small model per family, with random weights that let signals through: what tests take that need any model of it.

The tests of a family's own architecture have models of their own, whose stages all differ.
"""

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from offseg_hf import (
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffSegImageProcessor,
    OffsetMask2FormerConfig,
    OffsetMask2FormerForUniversalSegmentation,
    OffsetMask2FormerImageProcessor,
    OffsetSegformerConfig,
    OffsetSegformerForSemanticSegmentation,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
)


LABELS = {0: "sky", 1: "tree", 2: "road"}
NAMES = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
STAGES = ["stage1", "stage2", "stage3", "stage4"]

EFFICIENTFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 2],
    "mlp_ratios": [[2], [2], [2, 2], [2, 2]],
    "num_attention_blocks": 1,
    "image_size": 64,
}
OFFSEG = EFFICIENTFORMER | {"lateral_channels": [32, 32, 32, 64], "decoder_hidden_size": 32}
SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 2],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "decoder_hidden_size": 16,
}
MSCAN = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 2], "mlp_ratios": [2, 2, 2, 2]}
SEGNEXT = MSCAN | {"decoder_hidden_size": 32, "num_bases": 4}
MASK2FORMER = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 16,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_features": STAGES,
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
# Name -> classes of configuration and model, and fields of the configuration.
_PARTS = {
    "offseg": (OffSegConfig, OffSegForSemanticSegmentation, OFFSEG),
    "segformer": (OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation, SEGFORMER),
    "segnext": (OffsetSegNextConfig, OffsetSegNextForSemanticSegmentation, SEGNEXT),
    "mask2former": (OffsetMask2FormerConfig, OffsetMask2FormerForUniversalSegmentation, MASK2FORMER),
}
FAMILIES = tuple(_PARTS)


def tiny_config(family: str, **overrides) -> PreTrainedConfig:
    """The configuration of a family's small model, of three classes unless told otherwise."""
    config_class, _, fields = _PARTS[family]
    return config_class(**fields | NAMES | overrides)


def tiny_model(family: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """The small model of a family, in eval mode, with every parameter unlike that of any initialisation."""
    torch.manual_seed(seed)
    return random_values(_PARTS[family][1](tiny_config(family, **overrides)), seed)


def tiny_processor(family: str) -> BaseImageProcessor:
    """Its image processor, which cuts photos of more than 64 pixels into windows if the family has any."""
    size = {"shortest_edge": 64, "longest_edge": 256}
    if family == "mask2former":
        return OffsetMask2FormerImageProcessor(size=size)
    return OffSegImageProcessor(size=size, window_size=64, window_stride=48)


@torch.no_grad()
def random_values(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In eval mode, with every parameter unlike that of any initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
