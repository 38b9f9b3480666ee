"""From a photo to its masks: `pipeline("image-segmentation")` with OffSeg-T beside SegFormer-B0, B1 and B2.

    python scripts/benchmark/photo.py                      # 512x683; a few minutes on two quiet cores
    python scripts/benchmark/photo.py --contending 10
    python scripts/benchmark/photo.py --size 3000 4000 --repeats 3

Seconds for the whole, and of it for the steps of the pipeline: what prepares the photo, the model (of ours with the
label map), and what makes masks. Medians of interleaved runs in one process; 150 classes. A generated scene and random
weights: a network's time does not depend on them, that of the label map does, and here many classes win somewhere,
which is what takes longest. `--contending` lowers the scores of the others, as a trained model's are of what is not in
the photo; in one of ADE20K 10.5 classes are, on average (Zhou et al., IJCV 2019).
"""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer
from accuracy import SEGFORMERS
from measure import machine, markdown_table
from PIL import Image
from transformers import (
    Pipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    pipeline,
)

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.data.scenes.street import render_scene


CLASSES = 150
OUT_OF_THE_QUESTION = 10.0  # of logits whose standard deviation over the classes is 1
STEPS = {"preprocess": "prepare", "forward": "model", "postprocess": "masks"}


def pipelines(contending: int) -> dict[str, Pipeline]:
    """Return what is compared; of ours so many classes can win."""
    torch.manual_seed(0)
    ours = OffSegForSemanticSegmentation(OffSegConfig.from_size("t", num_labels=CLASSES)).eval()
    with torch.no_grad():
        ours.offset_learning.logit_norm.bias[contending:] -= OUT_OF_THE_QUESTION
    processor = OffSegImageProcessor()
    pairs: dict[str, tuple] = {"OffSeg-T": (ours, processor), "OffSeg-T, fused": (ours.fuse(), processor)}
    for size, options in SEGFORMERS.items():
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES, **options))
        pairs[f"SegFormer-{size}"] = (model.eval(), SegformerImageProcessorPil())
    return {
        name: pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
        for name, (model, processor) in pairs.items()
    }


def timed(find: Pipeline, seconds: dict[str, list[float]]) -> None:
    """Let the steps of a pipeline note the seconds that they take."""

    def noting(function: Callable, step: str) -> Callable:
        def call(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[step].append(time.perf_counter() - begin)
            return result

        return call

    for method, step in STEPS.items():
        setattr(find, method, noting(getattr(find, method), step))


def main(
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of the photo.")] = (512, 683),
    repeats: Annotated[int, typer.Option(min=1)] = 9,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    contending: Annotated[int, typer.Option(min=1, max=CLASSES, help="Classes of OffSeg that can win.")] = CLASSES,
) -> None:
    """Print the medians of all pipelines."""
    torch.set_num_threads(threads)
    photo = render_scene(0)[0].resize(size[::-1], Image.Resampling.BICUBIC)
    compared = pipelines(contending)
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in compared}
    for name, find in compared.items():
        find(photo)
        timed(find, seconds[name])
    for _ in range(repeats):
        for name, find in compared.items():
            begin = time.perf_counter()
            find(photo)
            seconds[name]["whole"].append(time.perf_counter() - begin)
    header = [f"{size[0]}x{size[1]}, s", "whole", "least", *STEPS.values()]
    print(
        markdown_table(
            header,
            [
                [
                    name,
                    f"{median(found['whole']):.2f}",
                    f"{min(found['whole']):.2f}",
                    *(f"{median(found[step]):.2f}" for step in STEPS.values()),
                ]
                for name, found in seconds.items()
            ],
        )
    )
    print(f"\n{machine()}")


if __name__ == "__main__":
    typer.run(main)
