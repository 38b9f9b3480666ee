"""A small model with random weights, for tests of what is around the model."""

from pathlib import Path

import torch
from transformers import AutoModelForSemanticSegmentation

from offseg_hf.data.scenes.street import SCENE_LABELS
from tests.tiny import tiny_config, tiny_processor


def save_small_model(folder: Path, family: str = "offseg") -> Path:
    """Model and image processor, which cuts photos of more than 64 pixels into windows.

    A SegFormer is loaded and run several times as fast as an OffSeg.
    """
    torch.manual_seed(0)
    config = tiny_config(family, id2label=SCENE_LABELS.id2label(), label2id=SCENE_LABELS.label2id())
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return folder
