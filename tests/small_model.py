"""A small OffSeg with random weights, for tests of what is around the model."""

from pathlib import Path

import torch

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.data.scenes import SCENE_LABELS


def save_small_model(folder: Path) -> Path:
    """Model and image processor, which cuts photos of more than 64 pixels into windows."""
    torch.manual_seed(0)
    config = OffSegConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 2, 2],
        mlp_ratios=[[2], [2], [2, 2], [2, 2]],
        num_attention_blocks=1,
        image_size=64,
        lateral_channels=[32] * 4,
        decoder_hidden_size=32,
        id2label=SCENE_LABELS.id2label(),
        label2id=SCENE_LABELS.label2id(),
    )
    OffSegForSemanticSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 256}
    OffSegImageProcessor(size=size, window_size=64, window_stride=48).save_pretrained(folder)
    return folder
