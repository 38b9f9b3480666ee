"""Generated scenes as a folder of images and masks that `load_segmentation_data` reads."""

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene, require_size
from offseg_hf.utils.texts import expand


FIRST_VALIDATION_SEED = 1_000_000  # so that more scenes to train on do not change those to validate on


def write_scenes(
    output: str | Path,
    train: int,
    val: int,
    size: tuple[int, int] = (512, 384),
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `train` and `val` scenes of `size` (width, height): images/{train,val}, masks/{train,val}, classes.json.

    The same pixels whenever and wherever; half a second a scene at 512x384 and one worker (process). Raises ValueError
    for a size that is too small, and if `output` exists and is not an empty folder. classes.json comes last: a folder
    without it was interrupted.
    """
    output = expand(output)
    if min(train, val) < 0 or train + val == 0:
        raise ValueError(f"expected numbers of scenes, at least one in all, got train {train}, val {val}")
    require_size(size)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty folder; remove it or name another one")
    jobs = [("train", index, index, size, output) for index in range(train)]
    jobs += [("val", index, FIRST_VALIDATION_SEED + index, size, output) for index in range(val)]
    for split in {job[0] for job in jobs}:
        for kind in ("images", "masks"):
            (output / kind / split).mkdir(parents=True)
    for done, _ in enumerate(_run(jobs, workers), start=1):
        if on_progress is not None:
            on_progress(done, len(jobs))
    (output / FILE_NAME).write_text(classes_json(SCENE_LABELS), encoding="utf-8")
    return output


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(_write_scene, jobs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_all_start_methods, get_context

    method = "fork" if "fork" in get_all_start_methods() else "spawn"  # workers need nothing but numpy and Pillow
    with ProcessPoolExecutor(workers, mp_context=get_context(method)) as executor:
        try:
            yield from executor.map(_write_scene, jobs)
        finally:
            executor.shutdown(cancel_futures=True)


def _write_scene(job: tuple[str, int, int, tuple[int, int], Path]) -> None:
    split, index, seed, size, output = job
    image, label_map = render_scene(seed, size)
    image.save(output / "images" / split / f"{index:06d}.png")
    mask = Image.fromarray(label_map)
    mask.putpalette([channel for color in SCENE_LABELS.palette for channel in color])
    mask.save(output / "masks" / split / f"{index:06d}.png")
