"""`pipeline("image-segmentation")` end to end, from a photo to its masks: OffSeg beside SegFormer, on the CPU.

    python scripts/benchmark/pipeline.py                  # everything, as a table for the documents; about 10 minutes
    python scripts/benchmark/pipeline.py --only OffSeg-T --only SegFormer-B0 --repeats 3

Times are medians of interleaved runs in one process, float32, 150 classes; memory is how much the resident set
grows, in a process for each. The photo is a generated street scene unless one is given. The weights are random: times
of networks do not depend on them; those of label maps and masks depend on how many classes meet, which the table says.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from measure import in_fresh_process, interleaved_medians, machine, markdown_table, peak_memory
from PIL import Image
from transformers import (
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    pipeline,
)

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.data.scenes.street import render_scene


SIZES = {"512x683": (512, 683), "3000x4000": (3000, 4000)}
DEEP = {"hidden_sizes": [64, 128, 320, 512]}
SEGFORMERS = {
    "SegFormer-B0": {},
    "SegFormer-B1": DEEP,
    "SegFormer-B2": {**DEEP, "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
}
OFFSEGS = {"OffSeg-T": "t", "OffSeg-B": "b"}
VARIANTS = ["OffSeg-T", "OffSeg-T, fused", "OffSeg-B, fused", *SEGFORMERS]


def photo_of(size: tuple[int, int], path: Path | None) -> Image.Image:
    """Return a photo of (height, width) pixels."""
    photo = render_scene(0)[0] if path is None else Image.open(path)
    return photo.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)


def build(name: str) -> ImageSegmentationPipeline:
    """Return the pipeline of a model by its name in the table."""
    torch.manual_seed(0)
    network, _, fused = name.partition(", ")
    if network in SEGFORMERS:
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150, **SEGFORMERS[network]))
        return pipeline("image-segmentation", model=model.eval(), image_processor=SegformerImageProcessorPil())
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size(OFFSEGS[network], num_labels=150)).eval()
    model = model.fuse() if fused else model
    return pipeline("image-segmentation", model=model, image_processor=OffSegImageProcessor())


def rows_of(label: str, names: list[str], path: Path | None, repeats: int) -> list[list[object]]:
    """Measure every model on a photo of one size."""
    photo = photo_of(SIZES[label], path)
    pipelines = {name: build(name) for name in names}
    prepared = {name: segment.preprocess(photo) for name, segment in pipelines.items()}
    parts = {}
    for name, segment in pipelines.items():
        parts[f"{name}: whole"] = lambda segment=segment: segment(photo)
        parts[f"{name}: prepare"] = lambda segment=segment: segment.preprocess(photo)
        parts[f"{name}: network"] = lambda segment=segment, name=name: segment.forward(prepared[name].copy())
    seconds = interleaved_medians(parts, repeats)
    rows = []
    for name, segment in pipelines.items():
        whole, prepare, network = (seconds[f"{name}: {part}"] for part in ("whole", "prepare", "network"))
        rows.append(
            [
                f"{label}, {name}",
                f"{prepare:.2f}",
                f"{network:.2f}",
                f"{max(whole - prepare - network, 0):.2f}",
                f"{whole:.2f}",
                f"{seconds.get('SegFormer-B0: whole', whole) / whole:.2f}",
                len(segment(photo)),
                f"{measure_memory(label, name, path) / 2**20:.0f}",
            ]
        )
        print(*rows[-1], sep=" | ", file=sys.stderr)
    return rows


def measure_memory(label: str, name: str, path: Path | None) -> int:
    """Return the bytes by which a process grows at most while it segments a photo."""
    return int(in_fresh_process(__file__, [label, name, None if path is None else str(path)]))


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Models, of {'; '.join(VARIANTS)}.")] = None,
    photo: Annotated[Path | None, typer.Option(exists=True, help="A photo of yours in place of a scene.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table of seconds, of the speed beside SegFormer-B0, and of memory."""
    torch.set_num_threads(threads)
    if measure is not None:
        label, name, path = json.loads(measure)
        segment, image = build(name), photo_of(SIZES[label], path and Path(path))
        print(peak_memory(lambda: segment(image)))
        return
    names = only or VARIANTS
    if unknown := set(names) - set(VARIANTS):
        raise typer.BadParameter(f"unknown model {', '.join(unknown)}: expected {'; '.join(VARIANTS)}")
    print(machine(), file=sys.stderr)
    rows = [row for label in SIZES for row in rows_of(label, names, photo, repeats)]
    header = ["photo, model", "prepare, s", "forward, s", "rest, s", "whole, s"]
    print(markdown_table([*header, "times SegFormer-B0", "classes seen", "memory, MB"], rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    typer.run(main)
