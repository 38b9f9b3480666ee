"""A small OffSeg with random weights, for tests of what is around the model."""

from pathlib import Path

import torch

from offseg_hf import OffSegForSemanticSegmentation
from offseg_hf.data.scenes.street import SCENE_LABELS
from tests.tiny import tiny_config, tiny_processor


def save_small_model(folder: Path) -> Path:
    """Model and image processor, which cuts photos of more than 64 pixels into windows."""
    torch.manual_seed(0)
    config = tiny_config("offseg", id2label=SCENE_LABELS.id2label(), label2id=SCENE_LABELS.label2id())
    OffSegForSemanticSegmentation(config).save_pretrained(folder)
    tiny_processor("offseg").save_pretrained(folder)
    return folder
