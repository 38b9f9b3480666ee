"""How an exported network is compared with the model that it is of, and by how much it may differ."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from offseg_hf.export import Precision
from offseg_hf.inference.segmenter import Segmenter


EQUAL_LABELS = {Precision.fp32: 0.999, Precision.fp16: 0.99, Precision.bf16: 0.97, Precision.int8: 0.95}  # at least
LOST_MIOU = {Precision.fp32: 0.1, Precision.fp16: 0.2, Precision.bf16: 0.5, Precision.int8: 1.0}  # at most, of 100
LARGEST_DIFFERENCE = 1e-3  # of logits in fp32, relative to the largest
REPEATS = 5


def compare(ours: Segmenter, theirs: Segmenter, examples: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Compare what an exported network computes with what the model does.

    Args:
        ours: the model.
        theirs: what was exported.
        examples: images whose logits are compared; the first ones are timed, in turns.

    Returns:
        The part of the report that says how they differ, and milliseconds.

    Raises:
        ValueError: for outputs of other shapes.
    """
    difference = largest = 0.0
    for example in reversed(examples):
        seconds: dict[Segmenter, list[float]] = {ours: [], theirs: []}
        results: dict[Segmenter, list[torch.Tensor]] = {}
        with torch.inference_mode():
            for _ in range(REPEATS if example is examples[0] else 1):
                for each, times in seconds.items():
                    start = time.perf_counter()
                    outputs = each.network(pixel_values=example)
                    times.append(time.perf_counter() - start)
                    results[each] = [outputs[name] for name in theirs.model.outputs]
        for expected, got in zip(results[ours], results[theirs], strict=True):
            if expected.shape != got.shape:
                raise ValueError(
                    f"expected outputs of the shape {tuple(expected.shape)}, got {tuple(got.shape)} of the export"
                )
            difference = max(difference, float((expected - got).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return {
        "largest_difference": difference,
        "largest_logit": largest,
        "computed_in": theirs.model.network.computes_in,
        "image": list(examples[0].shape[-2:]),
        "torch_ms": round(1000 * statistics.median(seconds[ours]), 1),
        "runtime_ms": round(1000 * statistics.median(seconds[theirs]), 1),
    }


def equal_share(found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """Return the share of equal labels, a mean over label maps."""
    return round(statistics.mean((one == other).mean() for one, other in zip(found, expected, strict=True)), 6)


def require_alike(report: Mapping[str, Any]) -> None:
    """Raise ValueError for an export that differs by more than its precision explains."""
    precision, found = report["precision"], []
    share = EQUAL_LABELS[precision]
    if precision == Precision.fp32 and report["largest_difference"] > LARGEST_DIFFERENCE * report["largest_logit"]:
        found.append(
            f"logits up to {report['largest_logit']:.3g} that differ by {LARGEST_DIFFERENCE:g} of that at most, got "
            f"{report['largest_difference']:.2g}"
        )
    if report["equal_labels"] < share:
        found.append(
            f"{100 * share:g} % of equal labels on {report['photos']} photos, got {100 * report['equal_labels']:.2f} %"
        )
    lost = report.get("torch_miou", 0) - report.get("runtime_miou", 0)
    if lost > LOST_MIOU[precision]:
        found.append(f"at most {LOST_MIOU[precision]:g} points of mIoU lost, got {lost:.2f}")
    if found:
        advice = "" if precision == Precision.fp32 else "; try fp32, or photos like those it was trained on (--photos)"
        raise ValueError(
            f"the export differs from the model by more than {precision} explains, and is not kept: expected "
            + "; and ".join(found)
            + advice
        )
