"""Segmentation metrics: `MeanIoU`, and the same as a module of Hugging Face's `evaluate`.

A package because `evaluate.load` takes a file that holds nothing but its module: `evaluate.load(MEAN_IOU_SCRIPT)`.
"""

from pathlib import Path

from offseg_hf.metrics.confusion_matrix import MeanIoU


MEAN_IOU_SCRIPT = str(Path(__file__).with_name("mean_iou.py"))

__all__ = ["MEAN_IOU_SCRIPT", "MeanIoU"]
