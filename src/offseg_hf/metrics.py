"""Where `MeanIoU` and `MEAN_IOU_SCRIPT` were at first, for code that imports them from here."""

from offseg_hf.evaluation.metric import MEAN_IOU_SCRIPT, MeanIoU


__all__ = ["MEAN_IOU_SCRIPT", "MeanIoU"]
