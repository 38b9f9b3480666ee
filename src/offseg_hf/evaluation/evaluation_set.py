"""`EvaluationSet`: the official protocol in transformers' Trainer, which then counts what `evaluate_model` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, EvalPrediction
from transformers.modeling_outputs import SemanticSegmenterOutput

from offseg_hf.data.dataset import label_set_of
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.prediction import prepare
from offseg_hf.evaluation.report import MEANS
from offseg_hf.evaluation.samples import SampleReader
from offseg_hf.inference.windows import AveragedWindows
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor


if TYPE_CHECKING:
    from datasets import Dataset


PADDING = -100  # below labels that are not as high as those of another process: Trainer's


class EvaluationSet(torch.utils.data.Dataset):
    """Photos as a model is evaluated on them, for transformers' `Trainer`, and the metrics of what it predicts.

    A sample is what the image processor makes of a photo, windows included, and as `labels` the label map at the size
    of its file. `Trainer` takes the set and two of its methods:

        Trainer(
            model,
            arguments,
            eval_dataset=validation,
            compute_metrics=validation.compute_metrics,
            preprocess_logits_for_metrics=validation.preprocess_logits_for_metrics,
        )

    `metric` is the [`MeanIoU`] of the last evaluation, which also has the ratios of every class.

    Args:
        dataset: from `load_segmentation_data`, not streaming.
        processor: the model's image processor.

    Raises:
        ValueError: for a streaming data set.
    """

    def __init__(self, dataset: Dataset, processor: BaseImageProcessor):
        if not hasattr(dataset, "__len__"):
            raise ValueError("expected a data set of known length, got a streaming one: load it without streaming")
        self.labels = label_set_of(dataset)
        self.processor = processor
        self.metric = self._new_metric()
        self._reader = SampleReader(dataset, processor, ())
        self._counted, self._images = self._new_metric(), 0  # of the evaluation that goes on
        self._views: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int], int]] = {}

    def __len__(self) -> int:
        return len(self._reader.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self._reader.read(index, self._reader.rows[index])
        inputs = {name: value[0] for name, value in sample.views[0].items()}
        return inputs | {"labels": sample.label.long()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Return the samples of a batch; raises ValueError if they are not of one size."""
        samples = [self[index] for index in indices]
        sizes = {sample["labels"].shape for sample in samples}
        if len(sizes) > 1:
            raise ValueError(
                f"photos of {len(sizes)} sizes in a batch: evaluate them one by one, as officially "
                "(TrainingArguments(per_device_eval_batch_size=1)); the windows of a photo run together anyway"
            )
        return samples

    @torch.no_grad()
    def preprocess_logits_for_metrics(self, logits: Tensor | tuple, labels: Tensor) -> Tensor:
        """Count the pixels of every image by label and prediction, at the size of the label map.

        Empties `labels`: Trainer would gather them from all processes, which takes label maps of one size, and keep
        them. Nothing else of an evaluation grows with the photos.

        Args:
            logits: of a model for semantic segmentation, (batch, classes, any height, any width), and perhaps more.
            labels: (batch, height, width), and rows of padding.

        Returns:
            Counts (batch, classes, classes), int32.

        Raises:
            ValueError: for a model of masks, one of other classes, and one that does not look through windows, though
                its image processor makes some.
        """
        scores = logits[0] if isinstance(logits, tuple | list) else logits
        if not isinstance(labels, Tensor) or scores.ndim != 4:
            raise ValueError(
                "expected logits (batch, classes, height, width) and labels, as models for semantic segmentation have "
                "them: a model of masks (MaskFormer, Mask2Former, EoMT) is evaluated by offseg evaluate, or "
                "offseg_hf.evaluation.evaluate_model"
            )
        if scores.shape[1] != len(self.labels):
            raise ValueError(f"the model has {scores.shape[1]} classes, the data {len(self.labels)}")
        height = int((labels[0, :, 0] != PADDING).sum())
        counts = []
        for image_scores, label in zip(scores, labels[:, :height], strict=True):
            metric = self._new_metric()
            metric.update(self._label_map(image_scores, (height, label.shape[1])), label)
            counts.append(metric.confusion_matrix.int())
        labels.data = labels.new_zeros(len(labels))
        return torch.stack(counts)

    def compute_metrics(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Compute mIoU, mAcc, aAcc, mDice, mFscore, mPrecision and mRecall, from 0 to 1, as `MeanIoU.compute` does.

        Args:
            prediction: counts as `preprocess_logits_for_metrics` gives them, of all images or, with
                `TrainingArguments(batch_eval_metrics=True)`, of the next ones.
            compute_result: whether these were the last ones.

        Raises:
            ValueError: if the counts are of more or fewer images than there are.
        """
        counts = torch.as_tensor(prediction.predictions)
        self._counted.confusion_matrix += counts.sum(dim=0).cpu()
        self._images += len(counts)
        if not compute_result:
            return {}
        metric, images = self._counted, self._images
        self._counted, self._images = self._new_metric(), 0
        if images != len(self):
            raise ValueError(
                f"expected the counts of {len(self)} images, got those of {images}: an evaluation before was "
                "interrupted, or this is not the set that was evaluated; evaluate again"
            )
        self.metric = metric
        result = metric.compute()
        return {name: float(result[name]) for name in MEANS}

    def _new_metric(self) -> MeanIoU:
        return MeanIoU(len(self.labels), self.labels.ignore_index)

    def _label_map(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the label map, of a size, that the image processor makes of the scores of an image."""
        if not isinstance(self.processor, OffSegImageProcessor):
            outputs = SemanticSegmenterOutput(logits=scores[None])
            return self.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        image_size, (height, width), windows = self._view_of(size)
        if scores.shape[1:] != (height, width) and windows > 1:
            raise ValueError(
                f"the image processor cuts photos of {size[0]} x {size[1]} (height x width) into {windows} windows, "
                "and the model does not look through them in Trainer: evaluate it by offseg evaluate, or "
                "offseg_hf.evaluation.evaluate_model"
            )
        image = AveragedWindows(image_size)
        image.add(slice(0, height), slice(0, width), scores)
        return image.label_map(size)

    def _view_of(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Return the size of the image and of `pixel_values`, and how many windows there are, of photos of a size."""
        if size not in self._views:
            view = prepare(Image.new("RGB", size[::-1]), self.processor)[0]
            image_height, image_width = view["image_sizes"][0].tolist()
            height, width = view["pixel_values"].shape[2:]
            self._views[size] = (image_height, image_width), (height, width), len(view["windows"][0])
        return self._views[size]
