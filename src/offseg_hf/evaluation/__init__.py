"""Evaluation by the official protocol: `evaluate_model` for what is loaded, `evaluate` for the `offseg` command."""

from offseg_hf.evaluation.evaluate import EvaluationOptions, evaluate, report_again
from offseg_hf.evaluation.outputs import Outputs, Sink
from offseg_hf.evaluation.pictures import draw_comparison, draw_confusion_matrix
from offseg_hf.evaluation.prediction import OFFICIAL_SCALES, predict
from offseg_hf.evaluation.protocol import evaluate_model, metric_for
from offseg_hf.evaluation.report import comparison_lines, result_line, result_table
from offseg_hf.evaluation.samples import Sample


__all__ = [
    "OFFICIAL_SCALES",
    "EvaluationOptions",
    "Outputs",
    "Sample",
    "Sink",
    "comparison_lines",
    "draw_comparison",
    "draw_confusion_matrix",
    "evaluate",
    "evaluate_model",
    "metric_for",
    "predict",
    "report_again",
    "result_line",
    "result_table",
]
