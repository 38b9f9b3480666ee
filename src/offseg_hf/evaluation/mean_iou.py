"""`mean_iou` for Hugging Face's `evaluate`: its interface, in constant memory and without files.

    metric = evaluate.load(offseg_hf.MEAN_IOU_SCRIPT)
    metric.add_batch(predictions=..., references=...)
    metric.compute(num_labels=150, ignore_index=255)

evaluate's own `mean_iou` (huggingface/evaluate, metrics/mean_iou) encodes every map as an image on disk and reads them
all back into memory. Here a batch becomes counts of (reference, prediction) pairs of raw values, and `compute` applies
`label_map` and `reduce_labels` to the values: what the caller passes is only read, memory does not grow with images.

The numbers are the same but where evaluate's are wrong:
- `label_map` maps all ids at once; there, one after the other ({0: 1, 1: 0} makes all 0), in place, and an error for
  the images that `compute` gets;
- `reduce_labels` does not shift an `ignore_index` that is no class (there, -100 becomes -101, which counts), and
  leaves the background out: there, if `ignore_index` is not 255, what is predicted on it counts as wrong in the IoU;
- what is no class is a ValueError, but for predictions on ignored pixels; there, it falls out of the histograms, and
  whatever was predicted on such a reference counts as wrong in the IoU but not in the accuracy;
- shapes that differ are named, and classes that never occur give no warnings.
As there, `nan_to_num` replaces NaN in the results and does not enter the means.
"""

from collections import Counter

import datasets
import evaluate
import numpy as np
import torch
import torch.distributed as dist

from offseg_hf.evaluation.metric import LabelMaps, MeanIoU, count_pairs


_DESCRIPTION = "Mean intersection over union of predicted and true label maps, over all pixels of all images."
_INPUTS = """
Args:
    predictions, references: label maps (height, width) of integers, of any sizes: a list, or a batch of one size.
    num_labels (int): number of classes.
    ignore_index (int, optional): label of the pixels that are not evaluated; None evaluates all.
    nan_to_num (float, optional): takes the place of NaN, the ratios of classes that never occur.
    label_map (dict, optional): new ids of old ids in the references, all replaced at once.
    reduce_labels (bool): subtracts 1 of the references, after `label_map`; 0, the background, and 255 are left out.

Returns:
    mean_iou, mean_accuracy, overall_accuracy (float), per_category_iou, per_category_accuracy (num_labels,).
"""
_CITATION = """\
@misc{mmsegmentation,
    title = {{MMSegmentation}: {OpenMMLab} Semantic Segmentation Toolbox and Benchmark},
    author = {{MMSegmentation Contributors}},
    year = {2020},
    url = {https://github.com/open-mmlab/mmsegmentation},
}"""

NO_CLASS = 255  # what `reduce_labels` makes of the background, by evaluate's interface


class MeanIou(evaluate.Metric):  # evaluate names a module after its class: mean_iou
    """evaluate's `mean_iou`, counted as it comes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._reset()

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Image()
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": image, "references": image}),
            reference_urls=["https://github.com/open-mmlab/mmsegmentation"],
        )

    def __len__(self) -> int:
        """Return the number of images added since the last `compute`."""
        return self._num_images

    def add_batch(self, *, predictions: LabelMaps, references: LabelMaps) -> None:
        """Count a batch of predicted and true label maps."""
        counts = count_values(predictions, references)
        self._pairs.update(counts)
        self._num_images += len(predictions)

    def add(self, *, prediction: LabelMaps | None = None, reference: LabelMaps | None = None, **plural) -> None:
        """Count one predicted and one true label map."""
        # evaluate.combine hands single examples over under the plural names
        self.add_batch(
            predictions=[plural.get("predictions", prediction)], references=[plural.get("references", reference)]
        )

    def compute(
        self, *, predictions: LabelMaps | None = None, references: LabelMaps | None = None, **kwargs
    ) -> dict[str, float | np.ndarray] | None:
        """Add the batch, if there is one, and return the metrics of everything added; then start afresh.

        With `num_process` above 1 the counts of all processes are summed through torch.distributed, and only process 0
        gets them. What is wrong with an argument leaves everything as it was before the call.
        """
        pairs, num_images = self._pairs.copy(), self._num_images
        if predictions is not None or references is not None:
            pairs.update(count_values(predictions, references))
            assert predictions is not None  # or that were an error
            num_images += len(predictions)
        if self.num_process > 1:
            pairs = self._sum_over_processes(pairs)
        if not pairs and not num_images and self.num_process == 1:
            raise ValueError("nothing to compute: call add or add_batch before, or give predictions and references")
        results = mean_iou(pairs, **kwargs) if self.process_id == 0 else None
        self._reset()
        return results

    def _compute(
        self,
        predictions: LabelMaps,
        references: LabelMaps,
        num_labels: int,
        ignore_index: int | None = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, float | np.ndarray]:
        """Return the metrics of this batch alone, as SegFormer's guides call it; what was added before stays."""
        pairs = count_values(predictions, references)
        return mean_iou(pairs, num_labels, ignore_index, nan_to_num, label_map, reduce_labels)

    def _reset(self) -> None:
        self._pairs: Counter[tuple[int, int]] = Counter()  # (reference, prediction) -> pixels
        self._num_images = 0

    def _sum_over_processes(self, pairs: Counter) -> Counter:
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes != self.num_process:
            raise ValueError(
                f"loaded with num_process={self.num_process}, but torch.distributed runs {processes} and counts are "
                f"summed through it. Start the processes with torchrun or accelerate launch and initialize it first"
            )
        gathered: list[Counter] = [Counter()] * processes
        dist.all_gather_object(gathered, pairs)
        return sum(gathered, Counter())


def count_values(predictions: LabelMaps | None, references: LabelMaps | None) -> Counter[tuple[int, int]]:
    """Count pixels by (reference, prediction), of raw values."""
    if predictions is None or references is None:
        raise ValueError(f"{'predictions' if predictions is None else 'references'} are missing: both are needed")
    counts: Counter[tuple[int, int]] = Counter()
    for reference_values, prediction_values, table in count_pairs(list(predictions), list(references)):
        cells = table.nonzero()
        pixels = table[cells[:, 0], cells[:, 1]].tolist()
        for (i, j), number in zip(cells.tolist(), pixels, strict=True):
            counts[reference_values[i], prediction_values[j]] += number
    return counts


def mean_iou(
    pairs: Counter[tuple[int, int]],
    num_labels: int,
    ignore_index: int | None = 255,
    nan_to_num: float | None = None,
    label_map: dict[int, int] | None = None,
    reduce_labels: bool = False,
) -> dict[str, float | np.ndarray]:
    """Compute the results of `evaluate`'s mean_iou from counts of (reference, prediction) pairs."""
    new_ids = {int(old): int(new) for old, new in (label_map or {}).items()}
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    void = "" if ignore_index is None else f", and {ignore_index} in references where there is none"
    for (reference, prediction), pixels in pairs.items():
        mapped = new_ids.get(reference, reference)
        label = reduced(mapped, num_labels, ignore_index) if reduce_labels else mapped
        if label is None or label == ignore_index:
            continue
        if not (0 <= label < num_labels and 0 <= prediction < num_labels):
            changed = "" if label == reference else f" ({reference} before label_map and reduce_labels)"
            raise ValueError(
                f"expected classes 0 to {num_labels - 1}{void}; got "
                f"prediction {prediction} beside reference {label}{changed} at {pixels} pixels"
            )
        matrix[label, prediction] += pixels
    metric = MeanIoU(num_labels, ignore_index)
    metric.confusion_matrix = torch.from_numpy(matrix)
    ratios = metric.compute()
    results = {
        "mean_iou": ratios["mIoU"],
        "mean_accuracy": ratios["mAcc"],
        "overall_accuracy": ratios["aAcc"],
        "per_category_iou": ratios["IoU_per_class"],
        "per_category_accuracy": ratios["Acc_per_class"],
    }
    if nan_to_num is not None:
        results = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in results.items()}
    return results


def reduced(label: int, num_labels: int, ignore_index: int | None) -> int | None:
    """Return `label` less 1; None for the background, and for what stands for no class, before and after."""
    no_class = {value for value in (NO_CLASS, ignore_index) if value is None or not 0 <= value < num_labels}
    return None if label == 0 or label in no_class else label - 1
