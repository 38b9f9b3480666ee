"""Evaluation by the official protocol: `evaluate_model` for what is loaded, `evaluate` for the `offseg` command."""

from .pictures import draw_comparison, draw_confusion_matrix
from .prediction import OFFICIAL_SCALES, predict
from .protocol import evaluate_model
from .report import result_line, result_table
from .run import evaluate
from .samples import Sample


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
