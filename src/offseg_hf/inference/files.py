"""Segmenting files: photos on disk to label maps, overlays and class shares on disk, or to labels for other programs.

`plan` finds the photos and names their outputs, `Segmenter` is a loaded model, `segment` does the work:

    jobs, outcomes = plan(["photos/", "extra/*.jpg"], output=Path("out"))
    for outcome in segment(jobs, Segmenter("hvision/offseg-t-ade")):
        print(outcome)

Of `photos/beach/sun.jpg` come, in `out/beach/`:
- `sun_labels.png`, as large as the upright photo: pixel values are class ids, shown in the colors of the classes
  (a paletted PNG: `numpy.asarray(PIL.Image.open(path))` gives the ids);
- `sun_overlay.png`, the photo under its label map, with a legend;
- `sun_classes.json`: file, width, height, and of each class present its id, name, number of pixels and share.

`outputs` has the other kinds.
"""

import glob
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers import BatchFeature

from offseg_hf.data.reading import to_rgb
from offseg_hf.inference.outputs import Classes, Labeled, OutputKind, Pictures
from offseg_hf.inference.segmenter import FUSED_FROM, Segmenter
from offseg_hf.utils.texts import one_line


# What counts as a photo in folders and patterns. Pillow's own list has .pdf and .mpg in it.
PHOTO_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff"),
    *(".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".pbm", ".tga"),
)
# That read, and that write.
THREADS = 2

PICTURES = Pictures()


@dataclass(frozen=True)
class Job:
    """A photo, and what is written of it.

    Args:
        source: its file.
        place: its file below the folder that was searched.
        name: that its outputs have, in the output folder.
        output: the folder.
        kind: of the outputs.
    """

    source: Path
    place: Path
    name: Path
    output: Path
    kind: OutputKind

    @property
    def outputs(self) -> list[Path]:
        """Return the paths of what is written."""
        name = self.name.relative_to(self.output)
        return [self.output / file for file in self.kind.files(name, self.source)]


@dataclass(frozen=True)
class Outcome:
    """What became of one input: written, kept because it has outputs already (nothing was computed), or failed."""

    source: str
    status: Literal["written", "kept", "failed"]
    message: str


# -- finding the photos -----------------------------------------------------------------------------------------------


def plan(
    inputs: Iterable[str | Path],
    output: Path,
    overwrite: bool = False,
    share: tuple[int, int] = (0, 1),
    kind: OutputKind = PICTURES,
) -> tuple[list[Job], list[Outcome]]:
    """Return the photos that `inputs` name and that are to be segmented, and the outcomes that are certain before.

    An input that yields nothing becomes a failed outcome. A photo named twice is segmented once; photos that would
    share their outputs get longer names: `cat.jpg` and `cat.png`, then `a/cat.jpg` and `b/cat.jpg`.

    Args:
        inputs: Files, folders (searched with their subfolders, which the outputs mirror) and glob patterns, `**`
            included. Folders and patterns yield the files with one of `PHOTO_EXTENSIONS`; a file named outright is
            always tried.
        output: The folder of the outputs. What `segment` wrote there is not taken for a photo.
        overwrite: Photos with an existing output are otherwise kept as they are.
        share: Which of how many processes this one is: each takes every n-th photo, whatever the others have done.
        kind: What is to be written.
    """
    index, count = share
    photos: dict[Path, Path] = {}  # resolved path -> path below the input that named it
    shown: dict[Path, Path] = {}  # resolved path -> path as the user would write it
    outcomes = []
    for text in map(str, inputs):
        found = _find(text, output, kind)
        if isinstance(found, str):
            if index == 0:
                outcomes.append(Outcome(text, "failed", found))
            continue
        for path, relative in found:
            photos.setdefault(path.resolve(), relative)
            shown.setdefault(path.resolve(), path)

    jobs = []
    for path, name in islice(unique_names(photos).items(), index, None, count):
        job = Job(shown[path], photos[path], output / name, output, kind)
        existing = [file for file in job.outputs[kind.copies :] if file.exists()]
        if any(file.resolve() in photos for file in existing):
            outcomes.append(Outcome(str(job.source), "failed", f"its output {existing[0]} is one of the inputs"))
        elif existing and not overwrite:
            outcomes.append(Outcome(str(job.source), "kept", f"{existing[0]} exists"))
        else:
            jobs.append(job)
    return jobs, outcomes


def _find(text: str, output: Path, kind: OutputKind) -> list[tuple[Path, Path]] | str:
    """Return the photos as (path, path below the folder searched), or why there are none."""
    path = Path(text)
    if path.is_dir():
        found = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if _is_photo(file, output, kind)]
        return found or f"no images in this folder (looked for {' '.join(PHOTO_EXTENSIONS)})"
    if path.exists():
        return [(path, Path(path.name))]
    if glob.has_magic(text):
        files = sorted(map(Path, glob.glob(text, recursive=True)))
        found = [(file, Path(file.name)) for file in files if _is_photo(file, output, kind)]
        return found or "no image matches this pattern"
    return "no such file or folder"


def _is_photo(path: Path, output: Path, kind: OutputKind) -> bool:
    if path.suffix.lower() not in PHOTO_EXTENSIONS or not path.is_file():
        return False
    file, folder = path.resolve(), output.resolve()
    own = file.is_relative_to(folder) and kind.owns(file.relative_to(folder))
    return not own and not path.name.startswith(".")


def unique_names(photos: dict[Path, Path]) -> dict[Path, Path]:
    """Return per file the shortest name that no other has: without extension, with it, with more and more parents.

    Args:
        photos: Of each file, by its whole path, the path below the input that named it.
    """
    level = dict.fromkeys(photos, 0)

    def name(path: Path) -> Path:
        if level[path] == 0:
            return photos[path].with_suffix("")
        if level[path] == 1:
            return photos[path]
        return Path(*path.parts[1:][-level[path] :])

    while True:
        names = {path: name(path) for path in photos}
        # Upper and lower case are one on some file systems.
        count = Counter(str(name).casefold() for name in names.values())
        shared = [path for path, name in names.items() if count[str(name).casefold()] > 1]
        if not shared or all(level[path] > len(path.parts) for path in shared):
            return names
        for path in shared:
            level[path] += 1


# -- segmenting them --------------------------------------------------------------------------------------------------


@dataclass
class Photo:
    """A photo on its way from its file to its outputs, or the error that ends it."""

    job: Job
    image: Image.Image | None = None
    inputs: BatchFeature | None = None
    label_map: np.ndarray | None = None
    error: Exception | None = None

    def attempt(self, step: Callable[["Photo"], None]) -> "Photo":
        """Go one step further, if nothing is wrong yet."""
        if self.error is None:
            try:
                step(self)
            except Exception as error:  # of the disk, of decoders, and of a model that cannot take every size
                self.error = error
        return self


def segment(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    min_confidence: float | None = None,
    batch_size: int = 1,
    compile: bool = False,
) -> Generator[Outcome]:
    """Segment photos; one that cannot be read or written is reported, and the others are done.

    Threads read the next photos and write the last ones while the network runs. The outputs of a photo appear together
    and whole, or not at all. Of many photos the model is fused, if that leaves the label map of the first as it is.

    Args:
        jobs: The photos, as `plan` returns them.
        segmenter: The model.
        min_confidence: Pixels whose class is less probable, from 0 to 1, are left without one.
        batch_size: How many photos the network looks at together, if it looks through windows.
        compile: Compile the network, for each shape of its input when it first comes.

    Yields:
        What became of each photo, in order.
    """
    classes = Classes(segmenter.names, segmenter.palette)
    for kind, output in dict.fromkeys((job.kind, job.output) for job in jobs):
        kind.begin(output, classes)
    read = ahead(lambda job: Photo(job).attempt(lambda photo: _read(photo, segmenter)), jobs, batch_size + 1)
    photos = _prepared(read, segmenter, fuse=len(jobs) >= FUSED_FROM, compile=compile)
    labeled = _label(photos, _LabelMaps(segmenter, classes, min_confidence), batch_size)
    for photo in ahead(lambda photo: photo.attempt(lambda photo: _write(photo, classes)), labeled, 2):
        if photo.error is not None:
            yield Outcome(str(photo.job.source), "failed", one_line(photo.error))
        else:
            yield Outcome(str(photo.job.source), "written", str(photo.job.outputs[0]))


def ahead(function: Callable[[Any], Any], items: Iterable[Any], depth: int, threads: int = THREADS) -> Generator[Any]:
    """Yield `function(item)` of all items in order, computed by threads while up to `depth` results wait."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def make_folder(path: Path) -> None:
    """Make the folder, if need be, and try whether files can be written in it.

    Raises:
        OSError: That says why not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise OSError(f"cannot write to the folder {path}: {reason}") from error


def read_photo(path: Path) -> Image.Image:
    """Return the photo in `path` as upright RGB, as the image processor sees it.

    Raises:
        ValueError: If it is not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()  # to_rgb leaves what is RGB as it is, to be read when the file is closed
            return to_rgb(image)
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise ValueError(f"cannot be read as an image: {one_line(error)}") from error


def _read(photo: Photo, segmenter: Segmenter) -> None:
    photo.image = read_photo(photo.job.source)
    photo.inputs = segmenter.prepare(photo.image)


def _prepared(photos: Iterator[Photo], segmenter: Segmenter, fuse: bool, compile: bool) -> Iterator[Photo]:
    """Make the network ready for many photos, once the first of them has been read."""
    for photo in photos:
        if photo.error is None:
            if fuse:
                photo.attempt(lambda photo: _fuse(photo, segmenter))
                fuse = False
            if compile:
                segmenter.compile()
                compile = False
        yield photo


def _fuse(photo: Photo, segmenter: Segmenter) -> None:
    segmenter.fuse(*_of(photo))


@dataclass(frozen=True)
class _LabelMaps:
    """Label maps of photos, without what the model is not sure of."""

    segmenter: Segmenter
    classes: Classes
    min_confidence: float | None

    def __call__(self, inputs: Sequence[BatchFeature], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        if self.min_confidence is None:
            return self.segmenter.label_maps(inputs, sizes)
        left_out = self.classes.ignore_index
        return [
            np.where(confidence < self.min_confidence, left_out, label_map).astype(np.min_scalar_type(left_out))
            for label_map, confidence in self.segmenter.with_confidence(inputs, sizes)
        ]


def _label(photos: Iterator[Photo], label_maps: _LabelMaps, batch_size: int) -> Iterator[Photo]:
    """Segment photos in batches; where a batch fails, one by one, so that one bad photo is no other one's error."""
    while batch := list(islice(photos, batch_size)):
        good = [photo for photo in batch if photo.error is None]
        if len(good) > 1 and all("windows" in (photo.inputs or ()) for photo in good):
            inputs, sizes = zip(*map(_of, good), strict=True)
            with suppress(Exception):
                for photo, label_map in zip(good, label_maps(inputs, sizes), strict=True):
                    photo.label_map = label_map
        for photo in good:
            if photo.label_map is None:
                photo.attempt(lambda photo: _label_one(photo, label_maps))
        for photo in batch:
            photo.inputs = None
            yield photo


def _label_one(photo: Photo, label_maps: _LabelMaps) -> None:
    inputs, size = _of(photo)
    (photo.label_map,) = label_maps([inputs], [size])


def _of(photo: Photo) -> tuple[BatchFeature, tuple[int, int]]:
    """Return what the network gets of a photo that has been read, and the (height, width) of its label map."""
    assert photo.inputs is not None and photo.image is not None
    return photo.inputs, (photo.image.height, photo.image.width)


def _write(photo: Photo, classes: Classes) -> None:
    image, label_map, job = photo.image, photo.label_map, photo.job
    assert image is not None and label_map is not None
    with written_together(job.outputs) as whole:
        job.kind.write(Labeled(job.source, job.place, image, label_map, classes), whole, job.outputs)


@contextmanager
def written_together(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary files, which become the targets if the block ends without an exception."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".offseg-", dir=targets[0].parent) as scratch:
        whole = [Path(scratch, f"{index}{file.suffix}") for index, file in enumerate(targets)]
        yield whole
        for file, target in zip(whole, targets, strict=True):
            os.replace(file, target)
