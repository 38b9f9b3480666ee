"""The whole of it without any download: an OffSeg is trained on generated scenes, saved, reloaded, used and evaluated.

Takes some minutes on two cores, and can be interrupted: the same command goes on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from transformers import pipeline
from transformers.utils import logging

from offseg_hf.data.dataset import label_set_of, load_segmentation_data
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.evaluation import Outputs, evaluate
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.training.log import read_log
from offseg_hf.training.loop import train
from offseg_hf.training.recipe import load_recipe
from offseg_hf.visualization import draw_overlay, draw_plots, label_image, training_plots


SIZE = (192, 144)
# A small OffSeg with all its parts, from scratch: so its batch norms learn their statistics.
SETTINGS = (
    "model.pretrained=null",
    "model.config={hidden_sizes: [16, 32, 48, 96], depths: [1, 1, 2, 2], mlp_ratios: [[2], [2], [2, 2], [2, 2]]}",
    "model.config.num_attention_blocks=1",
    "model.config.image_size=128",
    "model.config.lateral_channels=[32, 32, 32, 64]",
    "model.config.decoder_hidden_size=64",
    "model.config.layer_scale_init_value=0.1",
    "model.config.learn_batch_norm_statistics=true",
    "model.image_processor={size: {shortest_edge: 144, longest_edge: 192}, do_reduce_labels: false}",
    "model.image_processor.window_size=null",
    "model.image_processor.window_stride=null",
    "data.num_workers=0",
    "augmentation.scale=[192, 144]",
    "augmentation.ratio_range=[0.75, 1.5]",
    "augmentation.crop_size=[128, 128]",
    "optimizer.learning_rate=1e-3",
    "optimizer.head_multiplier=1",
    "schedule.iterations=600",
    "schedule.warmup_iterations=30",
    "training.batch_size=8",
    "training.evaluation_interval=200",
    "training.checkpoint_interval=100",
    "training.log_interval=20",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    parser.add_argument("settings", nargs="*", help="key=value of the recipe, as schedule.iterations=200")
    arguments = parser.parse_args()
    scenes, training, output = (arguments.output / name for name in ("scenes", "training", "results"))
    logging.disable_progress_bar()

    print(f"Generating scenes in {scenes} ...")
    if not (scenes / "classes.json").is_file():
        write_scenes(scenes, train=240, val=40, size=SIZE)
    data = load_segmentation_data(scenes)
    labels = label_set_of(data["train"])

    print("Training a small OffSeg from scratch ...")
    recipe = load_recipe("offseg-t-ade", (*SETTINGS, f"data.source={scenes}", *arguments.settings))
    progress = train(recipe, training, resume="auto")

    print("Reloading it with transformers' pipeline, for every scene that it was not trained on ...")
    segment = pipeline("image-segmentation", model=str(training / "best"))
    train_maps, val_maps = (np.stack(data[split]["label"]) for split in ("train", "validation"))
    predictions = [label_map_of(segment(image), labels.names) for image in data["validation"]["image"]]
    scores = {
        "the model": score(predictions, val_maps, len(labels)),
        "the commonest class everywhere": score(commonest(train_maps.ravel()[None])[0], val_maps, len(labels)),
        "the commonest class at each place": score(commonest(train_maps), val_maps, len(labels)),
    }

    output.mkdir(exist_ok=True)
    for index in range(4):
        image = data["validation"][index]["image"].convert("RGB")
        for name, label_map in (("model", predictions[index]), ("truth", val_maps[index])):
            draw_overlay(image, label_map, labels.names, labels.palette).save(output / f"scene{index}_{name}.png")
        label_image(predictions[index], labels.palette).save(output / f"scene{index}_labels.png")
    draw_plots(training_plots(read_log(training / "log.jsonl"))).savefig(output / "curve.png")

    print("Evaluating it ...")
    evaluation = arguments.output / "evaluation"
    evaluate(training / "best", scenes, "val", outputs=Outputs(evaluation, overwrite=True))

    print(f"\nmIoU and pixel accuracy on {len(val_maps)} scenes of {len(labels)} classes:")
    for name, (miou, accuracy) in scores.items():
        print(f"  {name:36} {miou:6.1%} {accuracy:6.1%}")
    print(
        f"""
  {scenes}/    the data: images, masks, classes.json
  {training / "best"}/    the model of iteration {progress.best_iteration}: safetensors, config, image processor
  {training / "log.jsonl"}    losses and scores
  {output}/    overlays of model and truth, label maps (pixel values are class ids), curve.png
  {evaluation / "report.html"}    where it fails: open it in a browser

Images of your own:  offseg segment IMAGE --model {training / "best"} --output {arguments.output / "own"}"""
    )


def label_map_of(segments: list[dict], names: tuple[str, ...]) -> np.ndarray:
    """The pipeline's masks, one per class present, as one label map (height, width)."""
    masks = np.stack([np.asarray(segment["mask"]) > 0 for segment in segments])
    return np.array([names.index(segment["label"]) for segment in segments])[masks.argmax(axis=0)]


def commonest(label_maps: np.ndarray) -> np.ndarray:
    """The class that most label maps (number, ...) have, place by place."""
    return np.stack([(label_maps == index).sum(axis=0) for index in range(label_maps.max() + 1)]).argmax(axis=0)


def score(predictions: np.ndarray | list[np.ndarray], label_maps: np.ndarray, num_classes: int) -> tuple[float, float]:
    """mIoU and pixel accuracy of label maps, or of one and the same for all."""
    metric = MeanIoU(num_classes)
    metric.update(np.broadcast_to(predictions, label_maps.shape), label_maps)
    result = metric.compute()
    return result["mIoU"], result["aAcc"]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as error:  # a training writes its checkpoint first, and knows the exit code
        print("interrupted: the same command continues", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))
