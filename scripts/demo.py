"""Demonstration without any download: an OffSeg-T is built, saved, reloaded by transformers' own pipeline, and used.

Its weights are random, so its label map shows that everything runs and not what OffSeg can do.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline
from transformers.utils import logging

from offseg_hf.data.scenes import SCENE_LABELS, render_scene
from offseg_hf.presets import get_preset
from offseg_hf.visualization import draw_overlay, label_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    parser.add_argument("--preset", default="offseg-t-ade", help="recipe of the model (default: offseg-t-ade)")
    parser.add_argument("--seed", type=int, default=9, help="number of the scene (default: 9)")
    arguments = parser.parse_args()
    output, preset = arguments.output, get_preset(arguments.preset)

    logging.disable_progress_bar()
    print(f"Building {preset.name} with random weights ...")
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(preset.config())
    model.save_pretrained(output / "model")
    preset.image_processor().save_pretrained(output / "model")

    print("Generating a scene ...")
    scene, truth = render_scene(arguments.seed)
    scene.save(output / "scene.png")
    draw_overlay(scene, truth, SCENE_LABELS.names, SCENE_LABELS.palette).save(output / "scene_truth.png")

    print('Segmenting it with transformers\' pipeline("image-segmentation") ...')
    segmenter = pipeline("image-segmentation", model=str(output / "model"))
    label_map = label_map_of(segmenter(scene), segmenter.model.config.label2id, scene)
    labels = preset.labels
    label_image(label_map, labels.palette).save(output / "scene_labels.png")
    draw_overlay(scene, label_map, labels.names, labels.palette).save(output / "scene_overlay.png")

    print(
        f"""
Done. The weights are UNTRAINED (random): the label map below is noise, and no sample of the model's quality.

  {output / "scene.png"}          the generated scene
  {output / "scene_truth.png"}    its true classes
  {output / "scene_labels.png"}   the model's label map (pixel values are class ids)
  {output / "scene_overlay.png"}  the same over the scene, with a legend
  {output / "model"}/             the model: config, safetensors, image processor

Photos of your own:  offseg segment PHOTO.jpg --model {output / "model"} --output {output / "photos"}"""
    )


def label_map_of(segments: list[dict], label2id: dict[str, int], scene: Image.Image) -> np.ndarray:
    """The pipeline's masks, one per class present, as one label map (height, width)."""
    label_map = np.zeros((scene.height, scene.width), np.int64)
    for segment in segments:
        label_map[np.asarray(segment["mask"]) > 0] = label2id[segment["label"]]
    return label_map


if __name__ == "__main__":
    main()
