"""The argmax over classes of bilinearly upsampled scores, without upsampling all classes.

Four neighboring scores of a class span a *cell*: every pixel in it is a convex combination of the four, with weights
that are the same for all classes. Hence two exact rules:

- Where one class wins at all four corners, it wins in the whole cell. Most cells are so, and are only filled.
- A class whose largest corner is below the smallest corner of another class wins nowhere in the cell. The few that
  remain are interpolated, and compared pixel by pixel.

Bands of rows are worked on one after the other, so that memory stays bounded, and scores may be computed as they are
asked for. A band in which the rules exclude little (noise) is upsampled whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


# Scores in a band: 16 MiB of float32.
BAND_VALUES = 2**22
# Values that are interpolated or gathered at a time, so that they stay in a processor's cache.
CACHED_VALUES = 2**18
# Cells by which a band is judged, before all of it is looked at.
SAMPLED_CELLS = 256
# What a pixel of a mixed cell costs beside one that is upsampled with its neighbors (gathers and scattered writes).
COST_OF_MIXED_PIXEL = 3


def upsampled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return scores (classes, height, width) at another size, in float32, interpolated bilinearly."""
    scores = scores.float()
    if tuple(scores.shape[1:]) == tuple(size):
        return scores
    # Of classes that come last in memory, torch would put the large result in order, and slowly.
    return F.interpolate(scores[None].contiguous(), size=size, mode="bilinear", align_corners=False)[0]


def upsampled_rows(scores: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Return the rows from `top` to `bottom` (exclusive) of `upsampled(scores, size)`, to rounding."""
    rows = _Axis.of(scores.shape[1], size[0], scores.device)
    return _upsampled_part(scores, rows, slice(top, bottom), size[1])


def upsampled_argmax(scores: Tensor, size: tuple[int, int], band_values: int = BAND_VALUES) -> Tensor:
    """Return `F.interpolate(scores, size, mode="bilinear").argmax(0)`, but for ties to rounding.

    Args:
        scores: (classes, height, width), of any floating-point type; compared in float32.
        size: (height, width) of the label map.
        band_values: how many scores are worked on at a time.

    Returns:
        Label map, int64, of `size`.
    """
    height, width = scores.shape[1:]
    if size[0] * size[1] <= height * width:  # what comes of it is no larger than what is there
        return upsampled(scores, size).argmax(dim=0)
    return upsampled_argmax_of_rows(
        lambda top, bottom: scores[:, top:bottom], tuple(scores.shape), size, scores.device, band_values
    )


def upsampled_argmax_of_rows(
    read_rows: Callable[[int, int], Tensor],
    shape: tuple[int, int, int],
    size: tuple[int, int],
    device: torch.device,
    band_values: int = BAND_VALUES,
) -> Tensor:
    """Return what `upsampled_argmax` does, of scores that are computed band by band.

    Args:
        read_rows: gives the rows from `top` to `bottom` (exclusive) of the scores: (classes, bottom - top, width).
            Asked for from top to bottom, every row at most twice.
        shape: (classes, height, width) of all scores.
        size: (height, width) of the label map.
        device: of the scores and the label map.
        band_values: how many scores are worked on at a time.

    Returns:
        Label map, int64, of `size`.
    """
    classes, height, width = shape
    rows, columns = _Axis.of(height, size[0], device), _Axis.of(width, size[1], device)
    label_map = torch.empty(size, dtype=torch.int64, device=device)
    step = max(1, band_values // (classes * width))
    has_cells = size[0] * size[1] > height * width
    for top in range(0, height, step):
        bottom = min(top + step, height)
        band_rows = rows.between(top, bottom)
        if not len(band_rows.low):
            continue
        band = read_rows(top, min(bottom + 1, height)).float()
        target = label_map[band_rows.first : band_rows.first + len(band_rows.low)]
        if size == (height, width):
            target.copy_(band[:, : len(target)].max(dim=0).indices)
        elif has_cells and _few_can_win(band):
            _fill_by_cells(band, band_rows, columns, target)
        else:
            _fill_whole(band, band_rows, columns, target)
    return label_map


@dataclass(frozen=True)
class _Axis:
    """Where the pixels of one axis lie between scores.

    Of every pixel: `low`, the score before it, and the weights of that one and the next. Of every score: how many
    pixels follow before the next score (`count`), and the first of them (`start`).
    """

    low: Tensor
    low_weight: Tensor
    high_weight: Tensor
    count: Tensor
    start: Tensor
    first: int = 0

    @classmethod
    def of(cls, old: int, new: int, device: torch.device) -> "_Axis":
        """Ask `F.interpolate` itself, whose rounding decides which class wins by little.

        Of three signals, one for each residue of the position by 3, it gives the two weights of every pixel, each in
        the signal that tells which score it belongs to.
        """
        residue = torch.arange(old, device=device) % 3
        signals = F.one_hot(residue, 3).T.float()[None, :, None]
        weights = F.interpolate(signals, size=(1, new), mode="bilinear", align_corners=False)[0, :, 0]
        position = ((torch.arange(new, device=device, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(
            0, old - 1
        )
        low = position.floor().long()
        # At an integer, rounding may have put the pixel on its other side: then a score beyond the two has a weight.
        beyond = weights.gather(0, ((low + 2) % 3)[None])[0] > 0
        low += torch.where(beyond, torch.where(position - low > 0.5, 1, -1), 0)
        low_weight, high_weight = (weights.gather(0, ((low + after) % 3)[None])[0] for after in (0, 1))
        high_weight = torch.where(low == old - 1, 0.0, high_weight)
        count = torch.bincount(low, minlength=old)
        return cls(low, low_weight, high_weight, count, count.cumsum(0) - count)

    def between(self, begin: int, end: int) -> "_Axis":
        """The pixels after the scores from `begin` to `end` (exclusive), counted from `begin`."""
        first, number = int(self.start[begin]), int(self.count[begin:end].sum())
        pixels = slice(first, first + number)
        return _Axis(
            self.low[pixels] - begin,
            self.low_weight[pixels],
            self.high_weight[pixels],
            self.count[begin:end],
            self.start[begin:end] - first,
            first,
        )

    def pixels_of(self, cells: Tensor) -> Tensor:
        """The pixels (cells, most pixels of any cell) after each of some scores; the last one is repeated."""
        steps = torch.arange(int(self.count.max()), device=cells.device)
        return self.start[cells, None] + torch.minimum(steps, self.count[cells, None] - 1)


def _few_can_win(band: Tensor) -> bool:
    """Whether, by a sample of its cells, a band takes less time by cells than it would take whole."""
    classes, height, width = band.shape
    corners = _corners(band, torch.linspace(0, height * width - 1, SAMPLED_CELLS, device=band.device).long())
    winners = corners.max(dim=1).indices
    is_mixed = (winners != winners[0]).any(dim=0)
    cost = COST_OF_MIXED_PIXEL * (_could_win(corners) * is_mixed).sum() / SAMPLED_CELLS
    return bool(cost < classes)


def _corners(band: Tensor, cells: Tensor) -> Tensor:
    """Return the scores around some cells of a band: (top left and right, bottom left and right; classes; cells)."""
    height, width = band.shape[1:]
    y, x = cells // width, cells % width
    below, right = (y + 1).clamp(max=height - 1), (x + 1).clamp(max=width - 1)
    scores = band.flatten(1)
    return torch.stack([scores[:, i * width + j] for i in (y, below) for j in (x, right)])


def _could_win(corners: Tensor) -> Tensor:
    """Return how many classes no other one excludes in each cell: (cells,)."""
    return (corners.amax(dim=0) >= corners.amin(dim=0).amax(dim=0)).sum(dim=0)


def _fill_by_cells(band: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor) -> None:
    """Fill `label_map` with the winners of the cells of a band, and those with several winners pixel by pixel."""
    classes, height, width = band.shape
    winner = band.flatten(1).max(dim=0).indices.view(1, height, width).float()  # faster than argmax
    missing = len(rows.count) + 1 - height  # below the last band there is no row
    winner = F.pad(winner, (0, 1, 0, missing), mode="replicate")[0].long()
    here = winner[:-1, :-1]
    is_mixed = (here != winner[:-1, 1:]) | (here != winner[1:, :-1]) | (here != winner[1:, 1:])
    is_mixed &= (rows.count > 0)[:, None] & (columns.count > 0)
    torch.index_select(here[:, columns.low], 0, rows.low, out=label_map)

    mixed = is_mixed.flatten().nonzero()[:, 0]
    step = max(1, 4 * CACHED_VALUES // classes)
    for start in range(0, len(mixed), step):
        cells = mixed[start : start + step]
        corners = _corners(band, cells)
        number, largest = _could_win(corners), corners.amax(dim=0)
        most = 1
        while most < int(number.max()):
            fewest, most = most, 2 * most
            chosen = ((number > fewest) & (number <= most)).nonzero()[:, 0]
            if len(chosen):
                candidates = largest[:, chosen].topk(min(most, classes), dim=0).indices.sort(dim=0).values
                _fill_mixed(corners[..., chosen], candidates, cells[chosen], rows, columns, label_map)


def _fill_mixed(
    corners: Tensor, candidates: Tensor, cells: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor
) -> None:
    """Fill some cells of `label_map` with the best of their candidates, (candidates, cells), at each pixel."""
    step = max(1, CACHED_VALUES // (int(rows.count.max()) * int(columns.count.max())))
    corners = corners.gather(1, candidates.expand(4, -1, -1))
    width = len(columns.count)
    for start in range(0, len(cells), step):
        part = slice(start, start + step)
        y, x = rows.pixels_of(cells[part] // width), columns.pixels_of(cells[part] % width)
        left_weight, right_weight = columns.low_weight[x], columns.high_weight[x]
        top_weight, bottom_weight = rows.low_weight[y][..., None], rows.high_weight[y][..., None]
        best = label = None
        for name, (top_left, top_right, bottom_left, bottom_right) in zip(
            candidates[:, part, None, None], corners[..., part, None].transpose(0, 1), strict=True
        ):
            top = top_left * left_weight + top_right * right_weight
            bottom = bottom_left * left_weight + bottom_right * right_weight
            score = top[:, None] * top_weight + bottom[:, None] * bottom_weight  # (cells, rows, columns)
            label = name.expand_as(score) if best is None else torch.where(score > best, name, label)
            best = score if best is None else torch.maximum(best, score)
        label_map[y[:, :, None], x[:, None]] = label


def _fill_whole(band: Tensor, rows: _Axis, columns: _Axis, label_map: Tensor) -> None:
    """Fill `label_map` with the winners among all classes, upsampled some rows at a time."""
    width = len(columns.low)
    step = max(1, CACHED_VALUES // (len(band) * width))
    for start in range(0, len(rows.low), step):
        part = slice(start, start + step)
        label_map[part] = _upsampled_part(band, rows, part, width).max(dim=0).indices


def _upsampled_part(scores: Tensor, rows: _Axis, part: slice, width: int) -> Tensor:
    """Return some rows of upsampled scores: (classes, any height, any width) -> (classes, rows of `part`, width)."""
    low = rows.low[part]
    first, last = int(low[0]), min(int(low[-1]) + 2, scores.shape[1])
    wide = F.interpolate(scores[:, first:last].float().contiguous(), size=width, mode="linear")
    # One product in place of four gathers and sums of the large result.
    weights = wide.new_zeros(len(low), last - first)
    weights.scatter_(1, (low - first)[:, None], rows.low_weight[part, None])
    high = (low - first + 1).clamp(max=last - first - 1)
    return weights.scatter_add_(1, high[:, None], rows.high_weight[part, None]) @ wide
