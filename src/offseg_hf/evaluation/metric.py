"""Mean intersection over union and its relatives, from a matrix of integers whose size depends on the classes only.

The ratios and what is left out of their means are those of mmsegmentation's IoUMetric, which the official OffSeg code
evaluates with; it sums float32 areas, here every count is an int64 and exact.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


MEAN_IOU_SCRIPT = str(Path(__file__).with_name("mean_iou.py"))  # for `evaluate.load`
LabelMaps = Tensor | np.ndarray | Sequence[Any]  # (height, width), (batch, height, width), or a list of maps

CHUNK = 2**19  # pixels counted at a time: bounds the memory of an update, and fits into caches
SIGNED_OR_SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # what torch can compute with
MAX_TABLE = 2**24  # cells: label maps have thousands of different values at most
FAR = 2**10  # from here on leaving ignored pixels out is cheaper than a table with a row for them


class MeanIoU:
    """Streaming metrics of semantic segmentation: `update` per batch, `compute` at the end.

    `confusion_matrix` (num_classes, num_classes), int64, counts pixels by label (row) and prediction (column), on
    `device`, by default that of the first predictions. Pixels whose label is `ignore_index` are not counted, whatever
    is predicted there; with None every pixel is. Metrics of parts of a data set add up: `a + b`, or
    `across_processes`.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, device: torch.device | str | None = None):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.device = None if device is None else torch.device(device)
        self.reset()

    def __repr__(self) -> str:
        pixels = int(self.confusion_matrix.sum())
        return f"MeanIoU(num_classes={self.num_classes}, ignore_index={self.ignore_index}, {pixels} pixels)"

    def reset(self) -> None:
        """Forget everything counted."""
        self.confusion_matrix = torch.zeros(
            self.num_classes, self.num_classes, dtype=torch.int64, device=self.device or "cpu"
        )

    def update(self, predictions: LabelMaps, labels: LabelMaps) -> None:
        """Count label maps (height, width) or (batch, height, width), or lists of maps of unequal sizes.

        Tensors, arrays or images of any integer type. Raises TypeError for other types, ValueError for shapes that
        differ and for values that are no class; then nothing of the batch is counted.
        """
        if self.device is None:
            first = predictions[0] if isinstance(predictions, list | tuple) and predictions else predictions
            self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")
            self.confusion_matrix = self.confusion_matrix.to(self.device)
        counts = torch.zeros_like(self.confusion_matrix)
        far = self.ignore_index if self.ignore_index is not None and self.ignore_index >= FAR else None
        for label_values, prediction_values, table in count_pairs(predictions, labels, self.device, far):
            if self.ignore_index is not None and self.ignore_index in label_values:
                table[label_values.index(self.ignore_index)] = 0
            rows, label_classes = _classes(label_values, self.num_classes)
            columns, prediction_classes = _classes(prediction_values, self.num_classes)
            inside = table[rows][:, columns]
            if inside.sum() != table.sum():
                raise ValueError(self._describe_strangers(label_values, prediction_values, table))
            if isinstance(label_classes, slice):
                counts[label_classes, prediction_classes] += inside
            else:
                counts[torch.tensor(label_classes)[:, None], torch.tensor(prediction_classes)] += inside
        self.confusion_matrix += counts

    def compute(self) -> dict[str, float | np.ndarray]:
        """Compute ratios from 0 to 1: aAcc, mIoU, mAcc, mDice, mFscore, mPrecision, mRecall, and each per class.

        Those per class are `IoU_per_class` etc.

        Where a class has nothing to divide by (it never occurs, or for precision is never predicted) its ratio is NaN,
        and means leave it out. So does the F-score of a class without a single hit (0/0 of precision and recall),
        whose Dice coefficient is 0. Everything is NaN if nothing was counted.
        """
        matrix = self.confusion_matrix.cpu().numpy()
        hits, labeled, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            dice = 2 * hits / (labeled + predicted)
            accuracy = hits / labeled
            per_class = {
                "IoU": hits / (labeled + predicted - hits),
                "Acc": accuracy,
                "Dice": dice,
                "Fscore": np.where(hits > 0, dice, np.nan),
                "Precision": hits / predicted,
                "Recall": accuracy.copy(),
            }
            overall = float(hits.sum() / labeled.sum())
        means = {f"m{name}": float(_mean_of_numbers(values)) for name, values in per_class.items()}
        return {"aAcc": overall, **means, **{f"{name}_per_class": values for name, values in per_class.items()}}

    def __add__(self, other: "MeanIoU") -> "MeanIoU":
        """Return the metric of both data sets together."""
        if not isinstance(other, MeanIoU):
            return NotImplemented
        self._check_same_kind(other.num_classes, other.ignore_index, "added")
        total = MeanIoU(self.num_classes, self.ignore_index, self.device)
        total.confusion_matrix = self.confusion_matrix + other.confusion_matrix.to(self.confusion_matrix.device)
        return total

    def across_processes(self) -> "MeanIoU":
        """Return the metric over the images of all processes of torch.distributed, which must all call this.

        Integers are summed, predictions stay where they are. Counts of this process are kept as they were: going on
        with `update` and calling again counts nothing twice. One process alone gets a copy.
        """
        total = self + MeanIoU(self.num_classes, self.ignore_index)
        if dist.is_available() and dist.is_initialized():
            counts = total.confusion_matrix.to(_meeting_device())
            dist.all_reduce(counts)
            total.confusion_matrix = counts.to(self.confusion_matrix.device)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return what an interrupted evaluation needs to go on."""
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "confusion_matrix": self.confusion_matrix.cpu().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; raises ValueError if it is one of other classes."""
        self._check_same_kind(state_dict["num_classes"], state_dict["ignore_index"], "loaded")
        self.confusion_matrix = state_dict["confusion_matrix"].to(self.confusion_matrix.device, copy=True)

    def _check_same_kind(self, num_classes: int, ignore_index: int | None, verb: str) -> None:
        if (num_classes, ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                f"a metric of num_classes={num_classes}, ignore_index={ignore_index} cannot be {verb} "
                f"to one of num_classes={self.num_classes}, ignore_index={self.ignore_index}"
            )

    def _describe_strangers(self, label_values: Sequence[int], prediction_values: Sequence[int], table: Tensor) -> str:
        found = [
            f"{name} {value} at {pixels} pixels"
            for name, values, totals in (
                ("label", label_values, table.sum(1).tolist()),
                ("prediction", prediction_values, table.sum(0).tolist()),
            )
            for value, pixels in zip(values, totals, strict=True)
            if pixels and not 0 <= value < self.num_classes
        ]
        more = f" and {len(found) - 5} more values" if len(found) > 5 else ""
        void = "" if self.ignore_index is None else f", and {self.ignore_index} in labels where there is none"
        return (
            f"expected classes 0 to {self.num_classes - 1}{void}; "
            f"got {', '.join(found[:5])}{more}. Map the ids of the data set to classes first, or set ignore_index"
        )


def _classes(values: range | list[int], num_classes: int) -> tuple[slice | list[int], slice | list[int]]:
    """Find where in `values` the classes are, and which these are."""
    if isinstance(values, range):
        count = min(values.stop, num_classes)
        return slice(-values.start, count - values.start), slice(0, count)
    places = [place for place, value in enumerate(values) if 0 <= value < num_classes]
    return places, [values[place] for place in places]


def _meeting_device() -> torch.device:
    """Find where the processes can exchange tensors: NCCL and its like know their own devices only, Gloo the CPU."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None, "the processes exchange tensors of an accelerator, and there is none"
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _mean_of_numbers(values: np.ndarray) -> float:
    """Average what is not NaN; NaN, without a warning, if there is nothing."""
    numbers = values[~np.isnan(values)]
    return numbers.mean() if len(numbers) else np.nan


def count_pairs(
    predictions: LabelMaps, labels: LabelMaps, device: torch.device | None = None, left_out: int | None = None
) -> Iterator[tuple[range | list[int], range | list[int], Tensor]]:
    """Count how often every value of `labels` meets every value of `predictions`, piece by piece.

    Yields (label values, prediction values, counts): counts[i, j] pixels, int64, have the i-th label value and the
    j-th prediction value. Both are ranges from 0 or below; lists of those that occur, where these are far apart.
    Pixels whose label is `left_out` are not counted. Every shape is checked before the first piece.
    """
    for prediction, label in list(_pairs(predictions, labels)):
        for part in zip(prediction.flatten().split(CHUNK), label.flatten().split(CHUNK), strict=True):
            columns, rows = (x.to(device, x.dtype if x.dtype in SIGNED_OR_SMALL else torch.int64) for x in part)
            if left_out is not None:
                columns, rows = columns[rows != left_out], rows[rows != left_out]
            if not len(rows):
                continue
            extremes = torch.stack([*rows.aminmax(), *columns.aminmax()])  # one wait for the device, not four
            top, bottom, left, right = extremes.tolist()
            top, left = min(top, 0), min(left, 0)  # from 0 where nothing is below: one pass less
            row_values: range | list[int] = range(top, bottom + 1)
            column_values: range | list[int] = range(left, right + 1)
            if len(row_values) * len(column_values) > MAX_TABLE:
                (row_values, rows), (column_values, columns) = _occurring(rows), _occurring(columns)
                top = left = 0
            height, width = len(row_values), len(column_values)
            if height * width > MAX_TABLE:
                raise ValueError(
                    f"expected class ids, got {height} different labels beside {width} different predictions: "
                    f"over {MAX_TABLE} pairs are too many to count. Map the ids of the data set to classes first"
                )
            cells = (rows.to(torch.int32) * width).add_(columns.to(torch.int32))
            if top or left:
                cells -= top * width + left
            yield row_values, column_values, torch.bincount(cells, minlength=height * width).view(height, width)


def _occurring(values: Tensor) -> tuple[list[int], Tensor]:
    """Find the values that occur, and of each element which of them it is."""
    found, places = values.unique(return_inverse=True)
    return found.tolist(), places


def _pairs(predictions: LabelMaps, labels: LabelMaps) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (prediction, label) tensors of equal shapes: one pair for a map or a batch, a pair per map for lists."""
    if not isinstance(predictions, list | tuple) and not isinstance(labels, list | tuple):
        yield _pair(predictions, labels, (2, 3), "")
        return
    predictions, labels = list(predictions), list(labels)
    if len(predictions) != len(labels):
        raise ValueError(f"expected as many predictions as labels, got {len(predictions)} and {len(labels)}")
    for i, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        yield _pair(prediction, label, (2,), f"image {i}: ")


def _pair(prediction: Any, label: Any, dims: tuple[int, ...], where: str) -> tuple[Tensor, Tensor]:
    prediction = _integer_tensor(prediction, f"{where}predictions")
    label = _integer_tensor(label, f"{where}labels")
    if prediction.shape != label.shape or prediction.ndim not in dims:
        kinds = " or ".join({2: "(height, width)", 3: "(batch, height, width)"}[dim] for dim in dims)
        raise ValueError(
            f"{where}expected predictions and labels of one shape {kinds}, got {tuple(prediction.shape)} and "
            f"{tuple(label.shape)}. Resize logits to the size of the labels, then take the class of the highest"
        )
    return prediction, label


def _integer_tensor(values: Any, name: str) -> Tensor:
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind in "iub":
            # A copy, since torch shares neither read-only nor reversed arrays, nor foreign byte orders.
            values = torch.tensor(np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C"))
        else:
            values = array
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex():
        raise TypeError(f"expected {name} to be maps of integers, got {values.dtype} of shape {tuple(values.shape)}")
    return values
