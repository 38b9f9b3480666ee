"""`evaluate`: a model and a data set by name, to metrics, JSON, label maps and pictures, as `offseg evaluate` does."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from offseg_hf.data.dataset import label_set_of, load_data, sample_names
from offseg_hf.data.label_sets import plain_name
from offseg_hf.data.source import AnySource, DataSource
from offseg_hf.evaluation.comparison import SavedEvaluation, check_comparable, compare
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.outputs import FolderSink, Outputs, Sink, identify, weights_digest, write_json
from offseg_hf.evaluation.page import write_page
from offseg_hf.evaluation.pictures import draw_confusion_matrix
from offseg_hf.evaluation.prediction import OFFICIAL_SCALES
from offseg_hf.evaluation.protocol import evaluate_model, metric_for
from offseg_hf.evaluation.report import environment, metric_report
from offseg_hf.evaluation.samples import SampleReader
from offseg_hf.inference.segmenter import FUSED_FROM, Segmenter, require_segmentation_model
from offseg_hf.utils.files import file_digests, whole_file
from offseg_hf.utils.processes import Processes


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class EvaluationOptions:
    """How a model is evaluated.

    Args:
        tta: average over `OFFICIAL_SCALES`, each mirrored as well.
        limit: number of images to evaluate, from the first; None for all.
        check_names: whether the model's class names must be those of the data, in this order; else only their number.
        streaming: read a data set on the Hub without downloading it first.
        workers: processes that read images ahead.
        device: as torch names it, by default a GPU where there is one; of several processes each gets its own, or the
            CPU for "cpu".
        dtype: precision of the model.
    """

    tta: bool = False
    limit: int | None = None
    check_names: bool = True
    streaming: bool = False
    workers: int = 0
    device: str | None = None
    dtype: torch.dtype = torch.float32


DEFAULTS, NOTHING_WRITTEN = EvaluationOptions(), Outputs()


def evaluate(
    model: str | Path,
    data: AnySource,
    split: str | None = "validation",
    *,
    options: EvaluationOptions = DEFAULTS,
    outputs: Outputs = NOTHING_WRITTEN,
    compare_with: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any] | None:
    """Evaluate a model, by name, on a data set.

    Args:
        model: folder, or name on the Hub; of this package or any model of transformers for semantic segmentation, or
            for universal segmentation, whose image processor makes label maps.
        data: the data set, or only its folder or name on the Hub.
        split: train, validation (or val) or test; None for data of one split.
        options: how.
        outputs: what to write. What exists is kept, with an error at once.
        compare_with: the `evaluation.json` of an older evaluation of the same images, written with this version.
        progress: as of `Sink`; of several processes the main one calls it.

    A model of eight images or more is fused, if that leaves the label map of the first as it is; the report says so.

    Returns:
        The report, as it is written to JSON; None on other processes than the main one.

    Raises:
        ValueError, OSError: say what does not fit, before anything is evaluated where possible.
    """
    outputs.check()
    other = None if compare_with is None else SavedEvaluation.load(compare_with)
    processes, source = Processes.launched(options.device), DataSource.of(data)
    dataset = load_data(source, split, streaming=options.streaming)
    if isinstance(dataset, dict):
        raise ValueError(f"expected the split to evaluate on, got None: there are {', '.join(dataset)}")
    label_set = label_set_of(dataset)
    title = str(source.path) if isinstance(source.path, str | Path) else label_set.title
    is_streaming = not hasattr(dataset, "__len__")
    if options.limit is not None:
        dataset = dataset.take(options.limit if is_streaming else min(options.limit, len(dataset)))
    segmenter = Segmenter(model, processes.device(options.device), options.dtype)
    if options.tta:
        require_segmentation_model(str(model), segmenter.model.config, segmenter.processor, every_size=True)
    check_classes(segmenter.names, label_set.names, str(model), title, options.check_names)

    names = None if is_streaming else sample_names(dataset)
    split_title = f"{label_set.title}, {split or dataset.split}"
    if other is not None:
        check_comparable(other, label_set.names, names, split_title)

    facts: dict[str, Any] = {
        "model": _model_facts(str(model), segmenter.model),
        "dataset": {
            "source": title,
            "config_name": source.config_name,
            "revision": source.revision,
            "name": label_set.name,
            "title": label_set.title,
            "split": str(split or dataset.split),
            "num_classes": len(label_set),
        },
        "protocol": _protocol(segmenter.processor, options),
    }
    facts_of_run = environment(segmenter.device, processes.count)
    facts_of_run["fused"] = names is not None and len(names) >= FUSED_FROM and _fuse(segmenter, dataset)
    progress, metric = progress if processes.is_main else None, metric_for(dataset)
    sink = Sink(metric, progress, counts=ImageCounts(len(label_set)))
    if outputs.save_dir is not None:
        identity = {
            **facts,
            "environment": facts_of_run,
            "config": segmenter.model.config.to_dict(),
            "processor": segmenter.processor.to_dict(),
            "labels": asdict(dataset.features["label"]),
            "samples": names,
            "outputs": [outputs.submission, outputs.overlays],
            "process": [processes.index, processes.count],
        }
        folder_sink = FolderSink(outputs, label_set, names, identify(identity), metric, progress)
        folder_sink.go_on(SampleReader(dataset, segmenter.processor, ()), processes.index, processes.count)
        sink = folder_sink
    start = time.monotonic()
    result = evaluate_model(
        segmenter.network,
        segmenter.processor,
        dataset,
        accelerator=processes.accelerator,
        scales=OFFICIAL_SCALES if options.tta else None,
        flip=options.tta,
        workers=options.workers,
        sink=sink,
    )
    sink.finish()
    if not processes.is_main:
        return None

    facts["dataset"]["num_images"] = result["num_images"]
    facts_of_run["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    facts_of_run["seconds"] = round(time.monotonic() - start, 1)
    report = {**metric_report(result, label_set), **facts, "environment": facts_of_run}
    if outputs.save_dir is not None:
        with whole_file(Path(outputs.save_dir, "confusion_matrix.png")) as path:
            draw_confusion_matrix(result["confusion_matrix"], label_set.names).savefig(path, format="png")
        result["image_counts"].write(Path(outputs.save_dir))
    try:
        if other is not None:
            report["comparison"] = compare(result["image_counts"], other, label_set.names, split_title)
    except ValueError:  # of annotations, or the names of a stream: known only now, and no reason to lose the rest
        _write(report, result["image_counts"], None, outputs)
        raise
    _write(report, result["image_counts"], other, outputs)
    return report


def report_again(folder: str | Path, compare_with: str | Path | None = None) -> dict[str, Any]:
    """Write the report of a finished evaluation again, from its counts: no model is run.

    Args:
        folder: with its `evaluation.json`.
        compare_with: the `evaluation.json` of another evaluation of the same images.

    Returns:
        The content of `evaluation.json`, which is written again as well.

    Raises:
        ValueError, OSError: say what is missing, or cannot be compared.
    """
    evaluation = SavedEvaluation.load(folder)
    report = {key: value for key, value in evaluation.report.items() if key != "comparison"}
    other = None if compare_with is None else SavedEvaluation.load(compare_with)
    if other is not None:
        report["comparison"] = compare(evaluation.counts, other, evaluation.class_names, evaluation.title)
    _write(report, evaluation.counts, other, Outputs(evaluation.path.parent))
    return report


def _write(report: dict[str, Any], counts: ImageCounts, other: SavedEvaluation | None, outputs: Outputs) -> None:
    """Write the page, and last the JSON, which says that everything is there."""
    if outputs.save_dir is not None:
        write_page(Path(outputs.save_dir), report, counts, other)
    for file in outputs.report_files:
        write_json(file, report)


def check_classes(
    model_names: Sequence[str], data_names: Sequence[str], model: str, data: str, check_names: bool = True
) -> None:
    """Raise ValueError if a class id means something else in the model than in the data.

    Case and punctuation of names are no difference, and a model without names (LABEL_0, ...) has none to differ.
    """
    if len(model_names) != len(data_names):
        raise ValueError(
            f"{model} has {len(model_names)} classes, {data} has {len(data_names)}: evaluate the model on data with "
            "the classes that it was trained for"
        )
    if not check_names or all(name == f"LABEL_{index}" for index, name in enumerate(model_names)):
        return
    ours, theirs = ([plain_name(name) for name in names] for names in (model_names, data_names))
    differing = [index for index in range(len(ours)) if ours[index] != theirs[index]]
    if not differing:
        return
    first = differing[0]
    order = ", which has the same classes in another order" if sorted(ours) == sorted(theirs) else ""
    raise ValueError(
        f"class {first} is {model_names[first]!r} in {model}, but {data_names[first]!r} in {data}{order} "
        f"({len(differing)} of {len(ours)} classes differ). If they mean the same, pass check_names=False "
        "(--no-check-names)"
    )


def _fuse(segmenter: Segmenter, dataset: "Dataset") -> bool:
    """Run the fused model from now on, if it gives the first photo the same label map; returns whether it is."""
    sample = SampleReader(dataset, segmenter.processor, [0])[0]
    if isinstance(sample, ValueError):  # which the evaluation tells
        return False
    height, width = sample.label.shape
    return segmenter.fuse(sample.views[0], (height, width))


def _model_facts(name: str, model: PreTrainedModel) -> dict[str, Any]:
    return {
        "name": name,
        "class": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "weights": weights_digest(model),
        "files": file_digests(Path(name)),
    }


def _protocol(processor: Any, options: EvaluationOptions) -> dict[str, Any]:
    settings = {name: getattr(processor, name, None) for name in ("window_size", "window_stride", "size_divisor")}
    return {
        "size": {key: value for key, value in dict(processor.size).items() if value is not None},
        **settings,
        "test_time_augmentation": {"scales": list(OFFICIAL_SCALES), "flip": True} if options.tta else None,
        "dtype": str(options.dtype).removeprefix("torch."),
        "limit": options.limit,
    }
