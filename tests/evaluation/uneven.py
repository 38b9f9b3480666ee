"""Scenes of unequal sizes, partly not annotated."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import render_scene


def write_uneven(folder: Path, sizes: Sequence[tuple[int, int]], train: int = 0) -> Path:
    """Write scenes of `sizes`, (width, height), to validate on, and `train` others."""
    write_scenes(folder, train=train, val=len(sizes), size=(96, 64))
    for index, size in enumerate(sizes):
        photo, label_map = render_scene(index, size)
        label_map[:6, :20] = 255
        photo.save(folder / "images" / "val" / f"{index:06d}.png")
        Image.fromarray(label_map).save(folder / "masks" / "val" / f"{index:06d}.png")
    return folder
