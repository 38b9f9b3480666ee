"""Pictures of any size at their own resolution: tile by tile, in the memory of a row of tiles.

The network sees square tiles of the picture's own pixels, at places that are multiples of 32, so that its grid is that
of the whole picture. Scores of neighbors are blended over the overlap with weights that rise and fall smoothly and sum
to one; the label map comes from top to bottom in strips. Of all scores there are never more than a tile's, and those
of the overlap with the tiles below.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offseg_hf.data.reading import to_rgb
from offseg_hf.inference.files import FUSED_FROM, Job, Outcome, written_together
from offseg_hf.inference.outputs import Classes, write_json
from offseg_hf.inference.rasters import ArrayPicture, Picture, label_map_writer, open_picture
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.models.image_operations import upsampled_argmax
from offseg_hf.utils.texts import one_line
from offseg_hf.visualization import draw_overlay


ALIGNMENT = 32  # pixels: the coarsest grid of the networks
TILE, OVERLAP = 1024, 128
MIN_TILE = 64
LONGEST_OVERLAY = 4096  # pixels


@dataclass(frozen=True)
class TileOptions:
    """How a picture is cut into tiles.

    Args:
        tile: Side of a tile, in pixels of the picture; by default 1024, of a model that was exported its one size.
        overlap: Over so many pixels neighbors are blended, at most a quarter of a tile; by default 128, or that.
        batch_size: How many tiles the network looks at together.
        opacity: Of the colors over the picture, in 0..1.
        compile: Compile the network.

    Raises:
        ValueError: For sizes that are no multiples of 32, or too small or too large.
    """

    tile: int | None = None
    overlap: int | None = None
    batch_size: int = 1
    opacity: float = 0.6
    compile: bool = False

    def __post_init__(self):
        for name, value, least in (("tile", self.tile, MIN_TILE), ("overlap", self.overlap, 0)):
            if value is not None and (value % ALIGNMENT or value < least):
                raise ValueError(f"{name}: expected a multiple of {ALIGNMENT}, {least} or more, got {value}")

    def sizes(self, segmenter: Segmenter) -> tuple[tuple[int, int], int]:
        """Return (height, width) of a tile, and the overlap, for a model.

        Raises:
            ValueError: For another tile than an exported model takes, and for an overlap of more than a quarter.
        """
        config = segmenter.model.config
        size = (self.tile or TILE,) * 2
        if is_of_one_size(segmenter):
            size = tuple(config.size)
            if self.tile is not None and size != (self.tile, self.tile):
                raise ValueError(
                    f"this model was exported for images of {size[0]} x {size[1]} (height x width), got tiles of "
                    f"{self.tile}: leave the tile out, or export the model for another size"
                )
        most = min(size) // 4 // ALIGNMENT * ALIGNMENT
        overlap = min(OVERLAP, most) if self.overlap is None else self.overlap
        if overlap > most:
            raise ValueError(f"overlap: expected at most a quarter of the tile, {most}, got {overlap}")
        return size, overlap


def is_of_one_size(segmenter: Segmenter) -> bool:
    """Return whether a model was exported, for images of one size."""
    config = segmenter.model.config
    return config.model_type.startswith("exported_") and config.size is not None


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels.

    Args:
        start: where it begins.
        stop: where it ends, which may be beyond the picture.
        first: where it begins to count: it rises from there over the overlap, unless the picture begins there.
        last: where it ends to count, after it fell.
        after: where the next tile begins to count, or None.
    """

    start: int
    stop: int
    first: int
    last: int
    after: int | None


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Return the tiles along an axis: as few as can be, evenly, at multiples of 32."""
    end = -(-max(length - tile, 0) // ALIGNMENT)  # where the last one begins; in units of 32 pixels, as all here
    step = max(tile - overlap, ALIGNMENT) // ALIGNMENT
    number = -(-end // step) + 1
    starts = [ALIGNMENT * (index * end // max(number - 1, 1)) for index in range(number)]
    middles = [(left + tile + right - overlap) // 2 // ALIGNMENT * ALIGNMENT for left, right in pairwise(starts)]
    firsts, lasts = [0, *middles], [*(middle + overlap for middle in middles), starts[-1] + tile]
    return [
        Span(start, start + tile, first, last, after)
        for start, first, last, after in zip(starts, firsts, lasts, [*middles, None], strict=True)
    ]


def label_map_by_tiles(
    photo: Image.Image | np.ndarray, segmenter: Segmenter, options: TileOptions = TileOptions()
) -> np.ndarray:
    """Segment a picture at its own resolution.

    Args:
        photo: A PIL image, or an array (height, width), (height, width, channels) or (channels, height, width).
        segmenter: The model.
        options: The tiles.

    Returns:
        Class ids (height, width) of the upright picture.
    """
    picture = ArrayPicture.of(to_rgb(photo) if isinstance(photo, Image.Image) else photo)
    return np.concatenate(list(label_strips(picture, segmenter, options)))


def segment_by_tiles(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    options: TileOptions = TileOptions(),
    progress: Callable[[Job, int, int], Any] = lambda job, rows, height: None,
) -> Generator[Outcome]:
    """Segment pictures at their own resolution; one that cannot be read is reported, and the others are done.

    The outputs of a picture appear together and whole, or not at all.

    Args:
        jobs: The pictures, as `plan` returns them with `LargePictures` as their kind.
        segmenter: The model.
        options: The tiles.
        progress: Called with a job, how many rows of it are done, and how many it has.

    Yields:
        What became of each picture, in order.
    """
    options.sizes(segmenter)
    classes = Classes(segmenter.names, segmenter.palette)
    for job in jobs:
        try:
            with written_together(job.outputs) as whole:
                _segment_one(job, whole, segmenter, options, classes, progress)
            yield Outcome(str(job.source), "written", str(job.outputs[0]))
        except Exception as error:
            yield Outcome(str(job.source), "failed", one_line(error))


def _segment_one(
    job: Job,
    whole: list[Path],
    segmenter: Segmenter,
    options: TileOptions,
    classes: Classes,
    progress: Callable[[Job, int, int], Any],
) -> None:
    pixels = np.zeros(len(classes.names), np.int64)
    with open_picture(job.source) as picture:
        step = -(-max(picture.height, picture.width) // LONGEST_OVERLAY)
        seen: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        with label_map_writer(whole[0], picture, classes) as writer:
            top = 0
            for strip in label_strips(picture, segmenter, options, seen=seen, step=step):
                writer.write(strip)
                pixels += np.bincount(strip.ravel(), minlength=classes.ignore_index + 1)[: len(pixels)]
                labels.append(strip[-top % step :: step, ::step])
                top += len(strip)
                progress(job, top, picture.height)
        photo = Image.fromarray(np.concatenate(seen))
        overlay = draw_overlay(photo, np.concatenate(labels), classes.names, classes.palette, options.opacity)
        overlay.save(whole[1], compress_level=1)
        present = sorted(np.flatnonzero(pixels).tolist(), key=lambda index: (-pixels[index], index))
        shares = [
            {"id": index, "name": classes.names[index], "pixels": int(pixels[index]), "share": round(share, 6)}
            for index in present
            for share in (float(pixels[index] / (picture.height * picture.width)),)
        ]
        size = {"width": picture.width, "height": picture.height}
        write_json(whole[2], {"file": str(job.source), **size, "classes": shares}, indent=2)


@torch.inference_mode()
def _scores(segmenter: Segmenter, tiles: list[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Return the scores of tiles (channels, height, width), which may be smaller: (tiles, classes, any size)."""
    processor: Any = segmenter.processor
    settings: dict[str, Any] = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
    if getattr(processor, "do_center_crop", None):
        settings["do_center_crop"] = False
    images = []
    for tile in tiles:
        image = processor(images=tile, **settings)["pixel_values"]
        missing = [length - got for length, got in zip(size, image.shape[2:], strict=True)]
        if min(missing) < 0 or any(got < own for got, own in zip(image.shape[2:], tile.shape[1:], strict=True)):
            raise ValueError(
                f"expected an image processor that leaves a tile of {size[0]} x {size[1]} as it is, got one that "
                f"makes {image.shape[2]} x {image.shape[3]} of it: segment without --native"
            )
        images.append(F.pad(image, (0, missing[1], 0, missing[0])))
    outputs = segmenter.network(torch.cat(images).to(segmenter.device, segmenter.model.dtype))
    scores = getattr(outputs, "logits", None)
    if scores is None:
        try:
            maps = processor.post_process_semantic_segmentation(
                outputs, target_sizes=[size] * len(tiles), return_segmentation_scores=True
            )
        except TypeError:
            raise ValueError(
                f"{type(processor).__name__} gives no scores of classes, which tiles are blended by: segment without "
                "--native"
            ) from None
        return torch.stack([each.segmentation_scores for each in maps]).float()
    scale = size[0] // scores.shape[2]
    fits = (scores.shape[2] * scale, scores.shape[3] * scale) == size and ALIGNMENT % max(scale, 1) == 0
    return scores.float() if fits else F.interpolate(scores.float(), size=size, mode="bilinear")


def _weights(span: Span, overlap: int, cell: int) -> Tensor:
    """Return what scores of a tile count, from its first to its last: they rise and fall as 3 x² - 2 x³."""
    weights = torch.ones((span.last - span.first) // cell)
    number = overlap // cell
    if number:
        x = (torch.arange(number) + 0.5) / number
        rise = x * x * (3 - 2 * x)
        if span.first:
            weights[:number] = rise
        if span.after is not None:
            weights[-number:] = rise.flip(0)
    return weights


def label_strips(
    picture: Picture,
    segmenter: Segmenter,
    options: TileOptions = TileOptions(),
    seen: list[np.ndarray] | None = None,
    step: int = 1,
) -> Iterator[np.ndarray]:
    """Yield the label map of a picture from top to bottom, in strips (rows, width).

    Args:
        picture: Read once, from top to bottom.
        segmenter: The model.
        options: The tiles.
        seen: Takes every `step`-th row and column of the picture, as uint8 (rows, columns, 3).
        step: That.
    """
    (height, width), overlap = options.sizes(segmenter)
    if not is_of_one_size(segmenter):  # no larger than the picture
        height, width = (
            min(side, -(-length // ALIGNMENT) * ALIGNMENT)
            for side, length in ((height, picture.height), (width, picture.width))
        )
    rows, columns = spans(picture.height, height, overlap), spans(picture.width, width, overlap)
    may_fuse = len(rows) * len(columns) >= FUSED_FROM and not is_of_one_size(segmenter)
    blender = _Blender(segmenter, (height, width), overlap, columns, options.batch_size)
    is_ready = False
    ignore_index = Classes(segmenter.names, segmenter.palette).ignore_index
    pixels = valid = None
    top = emitted = 0  # the first row of `pixels`, and of the next strip
    for row in rows:
        begin = 0 if pixels is None else top + pixels.shape[1]
        new, is_new_valid = picture.read(begin, min(row.stop, picture.height))
        if seen is not None:
            small = np.moveaxis(new[:, -begin % step :: step, ::step], 0, -1)
            seen.append(np.broadcast_to(small, (*small.shape[:2], 3)).clip(0, 255).astype(np.uint8))
        if pixels is None or valid is None:
            pixels, valid = new, is_new_valid
        else:  # a strip begins up to a score above its tiles
            keep = max(row.start - ALIGNMENT, 0) - top
            pixels = np.concatenate([pixels[:, keep:], new], axis=1)
            valid = np.concatenate([valid[keep:], is_new_valid])
            top += keep
        tiles = [
            pixels[:, row.start - top :, column.start : column.stop]
            if valid[row.start - top :, column.start : column.stop].any()
            else None
            for column in columns
        ]
        if not is_ready and (some := next((tile for tile in tiles if tile is not None), None)) is not None:
            settings = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
            inputs = segmenter.processor(images=some, **settings)
            segmenter.speed_up(inputs, some.shape[1:], may_fuse, options.compile)
            is_ready = True
        strip = blender.strip(row, tiles)[: picture.height - emitted, : picture.width]
        strip = strip.astype(np.min_scalar_type(ignore_index))
        strip[~valid[emitted - top :][: len(strip)]] = ignore_index
        emitted += len(strip)
        yield strip


class _Blender:
    """Scores of tiles to label maps, a row of tiles after the other.

    A block of scores begins with one that was known before, since pixels lie between scores: `left` and `below` are
    sums over the overlap with the next tile, and that one before it.
    """

    def __init__(
        self, segmenter: Segmenter, size: tuple[int, int], overlap: int, columns: list[Span], batch_size: int
    ):
        self.segmenter, self.size, self.overlap = segmenter, size, overlap
        self.columns, self.batch_size = columns, batch_size
        self.below: Tensor | None = None
        self.shape: tuple[int, ...] | None = None  # of the scores of a tile

    def strip(self, row: Span, tiles: list[np.ndarray | None]) -> np.ndarray:
        """Return the label map of what a row of tiles decides: (rows, columns)."""
        parts = []
        left = below = None
        filled = 0  # columns that have what the row above left
        for column, scores in zip(self.columns, self._scores(tiles), strict=True):
            cell = self.size[0] // scores.shape[1]
            (y, x), (y_end, x_end) = (
                [max(span.first // cell - 1, 0) for span in (row, column)],
                [span.last // cell for span in (row, column)],
            )
            block = scores.new_zeros((len(scores), y_end - y, x_end - x))
            counting = scores[
                :,
                (row.first - row.start) // cell : (row.last - row.start) // cell,
                (column.first - column.start) // cell : (column.last - column.start) // cell,
            ]
            weights = _weights(row, self.overlap, cell)[:, None] * _weights(column, self.overlap, cell)
            block[:, row.first // cell - y :, column.first // cell - x :] = counting * weights.to(scores)
            if left is not None:
                block[:, :, : left.shape[2]] += left
            if self.below is not None:
                block[:, : self.below.shape[1], filled - x :] += self.below[:, :, filled:x_end]
            filled = x_end
            done = [
                (end if span.after is None else span.after // cell) - begin
                for span, begin, end in ((row, y, y_end), (column, x, x_end))
            ]
            parts.append(self._labels(block[:, : done[0], : done[1]], cell, row, column))
            if column.after is not None:
                left = block[:, :, done[1] - 1 :].clone()
            if row.after is not None:
                if below is None:
                    width = self.columns[-1].last // cell
                    below = scores.new_empty((len(scores), y_end - y - done[0] + 1, width))
                below[:, :, x : x + done[1]] = block[:, done[0] - 1 :, : done[1]]
        self.below = below
        return np.concatenate(parts, axis=1)

    @staticmethod
    def _labels(scores: Tensor, cell: int, row: Span, column: Span) -> np.ndarray:
        """Return the label map between the first and the last scores, and to the edges of the picture."""
        labels = upsampled_argmax(scores, (scores.shape[1] * cell, scores.shape[2] * cell))
        (top, bottom), (left, right) = (
            (cell // 2 if span.first else 0, length * cell - (cell - cell // 2 if span.after is not None else 0))
            for span, length in ((row, scores.shape[1]), (column, scores.shape[2]))
        )
        return labels[top:bottom, left:right].cpu().numpy()

    def _scores(self, tiles: list[np.ndarray | None]) -> Iterator[Tensor]:
        """Yield the scores of the tiles of a row; zeros, without a look, of those that have no pixel."""
        device = self.segmenter.device
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            looked_at = [tile for tile in batch if tile is not None or self.shape is None]
            zeros = np.zeros((3, *self.size), np.uint8)
            scores: Iterator[Tensor] = iter(())
            if looked_at:
                images = [zeros if tile is None else tile for tile in looked_at]
                found = _scores(self.segmenter, images, self.size)
                is_first, self.shape = self.shape is None, tuple(found.shape[1:])
                scores = iter(found)
                if is_first:
                    yield from scores
                    continue
            for tile in batch:
                yield next(scores) if tile is not None else torch.zeros(self.shape or (), device=device)
