"""A training of seconds: an OffSeg of some thousand parameters on generated scenes of 96x64 pixels."""

from pathlib import Path

from offseg_hf.data.scene_folder import write_scenes


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
  num_workers: 2
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
