"""A training of seconds: an OffSeg of some thousand parameters on generated scenes of 96x64 pixels."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.training import loop
from offseg_hf.training.recipe import Recipe, load_recipe


# With all that draws random numbers or carries a state: drop path, statistics of batch norms, averaged weights.
RECIPE = """
model:
  preset: offseg-t-ade
  config:
    hidden_sizes: [8, 8, 16, 16]
    depths: [1, 1, 2, 2]
    mlp_ratios: [[2], [2], [2, 2], [2, 2]]
    num_attention_blocks: 1
    image_size: 64
    lateral_channels: [32, 32, 32, 32]
    decoder_hidden_size: 32
    drop_path_rate: 0.2
    learn_batch_norm_statistics: true
  image_processor:
    size: {shortest_edge: 64, longest_edge: 96}
    window_size: 64
    window_stride: 32
    do_reduce_labels: false
data:
  source: scenes
  num_workers: 0
augmentation:
  scale: [96, 64]
  ratio_range: [1.0, 2.0]
  crop_size: [64, 64]
optimizer:
  learning_rate: 1e-3
  weight_decay: 0.01
schedule:
  iterations: 8
  warmup_iterations: 2
training:
  batch_size: 4
  evaluation_interval: 4
  checkpoint_interval: 4
  log_interval: 1
  ema_decay: 0.9
"""


def write_tiny(folder: Path) -> Path:
    """The recipe `tiny.yaml` and its data, 7 scenes to train on (so that epochs end within batches) and 5 others."""
    write_scenes(folder / "scenes", train=7, val=5, size=(96, 64))
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    return recipe


NAMES = ("sky", "road", "car")


def write_own(folder: Path, train: int = 4, val: int = 2, **facts) -> Path:
    """A plain folder with a classes.json: photos of 64x64 whose classes, in blocks, differ in brightness."""
    folder.mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES} | facts))
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            ids = rng.integers(0, len(NAMES), (8, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            photo = 40 + 60 * ids[..., None] + rng.integers(0, 20, (64, 64, 3), dtype=np.uint8)
            for kind, array in (("images", photo), ("masks", ids)):
                path = folder / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return folder


def write_segformer(folder: Path, names: Sequence[str] = NAMES, **config) -> Path:
    """A model of transformers, as small, with random weights and its image processor."""
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(
        SegformerConfig(**sizes, decoder_hidden_size=16, **labels, **config)
    ).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def own_recipe(data: Path, checkpoint: Path, *settings: str) -> Recipe:
    """Two iterations from a checkpoint, on data of `write_own`."""
    values = yaml.safe_load(RECIPE)
    values["name"] = "own"
    values["model"] = {"checkpoint": str(checkpoint)}
    values["data"] = {"source": str(data), "num_workers": 0}
    values["schedule"] = {"iterations": 2}
    values["training"] |= {"evaluation_interval": 2, "checkpoint_interval": 2, "ema_decay": None}
    path = data.with_name("own.yaml")
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path, settings)


@contextmanager
def killed_in(iteration: int) -> Iterator[None]:
    """Let a training in this process fail in the step after `iteration`, and expect that."""
    step = loop.training_step

    def failing_step(training, interruption):
        if training.progress.iteration == iteration:
            raise RuntimeError("killed")
        return step(training, interruption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", failing_step)
        with pytest.raises(RuntimeError, match="killed"):
            yield
