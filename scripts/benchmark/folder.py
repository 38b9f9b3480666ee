"""A folder of a phone's photos, to label maps: `offseg segment` beside transformers' pipeline with SegFormer-B0.

    python scripts/benchmark/folder.py                # 200 photos of 3000x4000; some ten minutes on two quiet cores
    python scripts/benchmark/folder.py --photos 20 --peer-photos 2

Each way is a process of its own: photos per second by the clock, from its first photo to its last, and the peak of its
resident set. Beside them, what each step takes alone: threads overlap the steps, so the slowest one, and the number of
cores, bound the whole. The photos are generated street scenes, the weights random, 150 classes.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from measure import in_fresh_process, interleaved_medians, machine, markdown_table
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil, pipeline

from offseg_command import SPINS
from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.inference.files import Job, plan, read_photo, segment
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.visualization import draw_overlay, label_image


SCENES = 4  # that are told apart; the files of a folder are links to them


def write_photos(folder: Path, number: int) -> None:
    """Write JPEGs of 3000x4000 with the noise of a camera."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        path = folder / f"{index:04}.jpg"
        if index >= SCENES:
            path.hardlink_to(folder / f"{index % SCENES:04}.jpg")
            continue
        photo = np.asarray(render_scene(index)[0].resize((4000, 3000), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = photo + rng.normal(0, 4, photo.shape).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def save_models(folder: Path) -> None:
    """Save an OffSeg-T and a SegFormer-B0 with random weights."""
    torch.manual_seed(0)
    OffSegForSemanticSegmentation(OffSegConfig.from_size("t", num_labels=150)).save_pretrained(folder / "offseg")
    OffSegImageProcessor().save_pretrained(folder / "offseg")
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=150)).save_pretrained(folder / "segformer")
    SegformerImageProcessorPil().save_pretrained(folder / "segformer")


def ours(folder: Path, number: int) -> None:
    """Segment photos as the command does."""
    segmenter = Segmenter(folder / "offseg", device="cpu")
    outcomes = list(segment(plan([folder / "photos"], folder / "out")[0][:number], segmenter))
    assert {outcome.status for outcome in outcomes} == {"written"}


def peer(folder: Path, number: int) -> None:
    """Segment photos as users of transformers do, and write the same label map and overlay."""
    find = pipeline("image-segmentation", model=str(folder / "segformer"), device="cpu")
    names = list(find.model.config.label2id)
    palette = Segmenter(folder / "offseg", device="cpu").palette
    for path in sorted((folder / "photos").iterdir())[:number]:
        photo = Image.open(path)
        label_map = np.zeros((photo.height, photo.width), np.uint8)
        for found in find(photo):
            label_map[np.asarray(found["mask"]) > 0] = find.model.config.label2id[found["label"]]
        label_image(label_map, palette).save(folder / "labels.png")
        draw_overlay(photo.convert("RGB"), label_map, names, palette).save(folder / "overlay.png", compress_level=1)


# With the variables that the command sets for itself.
WAYS = {
    "offseg segment, OffSeg-T": (ours, {"GOMP_SPINCOUNT": SPINS}),
    "transformers' pipeline, SegFormer-B0": (peer, {}),
}


def steps(folder: Path, repeats: int) -> dict[str, float]:
    """Return the median seconds of each step alone, of one photo."""
    segmenter = Segmenter(folder / "offseg", device="cpu")
    (job, *_), _ = plan([folder / "photos"], folder / "steps")
    photo = read_photo(job.source)
    inputs, size = segmenter.prepare(photo), (photo.height, photo.width)
    segmenter.fuse(inputs, size)
    (label_map,) = segmenter.label_maps([inputs], [size])
    crops = torch.stack([inputs["pixel_values"][0, :, t:b, x:r] for t, x, b, r in inputs["windows"][0].tolist()])

    def write(job: Job = job) -> None:
        label_image(label_map, segmenter.palette).save(folder / "labels.png")
        overlay = draw_overlay(photo, label_map, segmenter.names, segmenter.palette)
        overlay.save(folder / "overlay.png", compress_level=1)

    with torch.inference_mode():
        return interleaved_medians(
            {
                "read": lambda: read_photo(job.source),
                "prepare": lambda: segmenter.prepare(photo),
                "network": lambda: segmenter.network(crops),
                "network and label map": lambda: segmenter.label_maps([inputs], [size]),
                "write": write,
            },
            repeats,
        )


def main(
    photos: Annotated[int, typer.Option(min=1)] = 200,
    peer_photos: Annotated[int, typer.Option(min=1, help="Photos for the pipeline, which takes its time.")] = 10,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print photos per second, the peak of memory, and what each step takes alone."""
    torch.set_num_threads(threads)
    if measure is not None:
        way, folder, number = json.loads(measure)
        function, _ = WAYS[way]
        function(Path(folder), 1)  # imports, and the first use of everything
        start = time.perf_counter()
        function(Path(folder), number + 1)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([seconds, peak]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", max(photos, peer_photos) + 1)
        save_models(folder)
        rows = []
        for (way, (_, variables)), number in zip(WAYS.items(), (photos, peer_photos), strict=True):
            order = [way, str(folder), number]
            seconds, peak = json.loads(in_fresh_process(__file__, order, variables))
            rows.append([way, number, f"{number / seconds:.3f}", f"{seconds / number:.2f}", f"{peak / 2**20:.0f}"])
            print(*rows[-1], sep=" | ", file=sys.stderr)
        print(markdown_table(["", "photos", "photos per second", "seconds per photo", "peak memory, MB"], rows))
        print()
        alone = steps(folder, repeats)
        print(markdown_table(["one step alone", "s"], [[step, f"{value:.2f}"] for step, value in alone.items()]))
    print(f"\n{machine()}")


if __name__ == "__main__":
    typer.run(main)
