"""Evaluation by the official protocol: `evaluate_model` for what is loaded, `evaluate` for the `offseg` command."""

from offseg_hf.evaluation.evaluate import evaluate
from offseg_hf.evaluation.pictures import draw_comparison, draw_confusion_matrix
from offseg_hf.evaluation.prediction import OFFICIAL_SCALES, predict
from offseg_hf.evaluation.protocol import evaluate_model
from offseg_hf.evaluation.report import result_line, result_table
from offseg_hf.evaluation.samples import Sample


__all__ = [
    "OFFICIAL_SCALES",
    "Sample",
    "draw_comparison",
    "draw_confusion_matrix",
    "evaluate",
    "evaluate_model",
    "predict",
    "result_line",
    "result_table",
]
