"""`evaluate`: a model and a data set by name, to metrics, JSON, label maps and pictures, as `offseg evaluate` does.

In `save_dir` come `evaluation.json`, `confusion_matrix.png`, and on request
- `submission/<image>.png`: label maps in the values of the data set's published annotations;
- `overlays/<image>.png`: annotation and prediction over the photo, side by side.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from offseg_hf.data.dataset import ReadingOptions, label_set_of, load_segmentation_data
from offseg_hf.data.label_sets import plain_name
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.outputs import (
    SampleWriter,
    SavedState,
    file_stems,
    identify,
    weights_digest,
    write_json,
)
from offseg_hf.evaluation.pictures import draw_confusion_matrix
from offseg_hf.evaluation.prediction import OFFICIAL_SCALES
from offseg_hf.evaluation.protocol import evaluate_model
from offseg_hf.evaluation.report import environment, metric_report
from offseg_hf.evaluation.samples import Sample, SampleReader, sample_names
from offseg_hf.inference.files import make_folder
from offseg_hf.inference.segmenter import Segmenter, require_segmentation_model
from offseg_hf.utils.files import file_digests, whole_file


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset, DatasetDict, IterableDataset


def evaluate(
    model: str | Path,
    data: "str | Path | Dataset | DatasetDict",
    split: str | None = "validation",
    *,
    streaming: bool = False,
    check_names: bool = True,
    tta: bool = False,
    limit: int | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    save_dir: str | Path | None = None,
    overlays: bool = False,
    submission: bool = False,
    json_file: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    **options: Unpack[ReadingOptions],
) -> dict[str, Any] | None:
    """The report on a model, as it is written to JSON; of several processes on the main one, None on the others.

    model: folder, or name on the Hub; of this package or any model of transformers for semantic segmentation, or for
        universal segmentation, whose image processor makes label maps.
    data, split, streaming, options: see `load_segmentation_data`.
    check_names: whether the model's class names must be those of the data, in this order; their number always must.
    tta: average over `OFFICIAL_SCALES`, each mirrored as well.
    limit: evaluate the first so many images only.
    device: as torch names it, by default a GPU where there is one; of several processes each gets its own, or the CPU
        for "cpu".
    save_dir, json_file: where to write, see above. What exists is kept, with an error at once, unless `overwrite`.
        With a `save_dir` an evaluation that was interrupted goes on where it was when it is started again.

    Raises ValueError or OSError that says what does not fit, before anything is evaluated where possible.
    """
    files = _check_outputs(save_dir, json_file, overlays or submission, overwrite)
    accelerator = _accelerator(device)
    dataset = load_segmentation_data(data, split, streaming=streaming, **options)
    if isinstance(dataset, dict):
        raise ValueError(f"expected the split to evaluate on, got None: there are {', '.join(dataset)}")
    label_set = label_set_of(dataset)
    source = str(data) if isinstance(data, str | Path) else label_set.title
    is_streaming = not hasattr(dataset, "__len__")
    if limit is not None:
        dataset = dataset.take(limit if is_streaming else min(limit, len(dataset)))
    segmenter = Segmenter(model, device if accelerator is None else str(accelerator.device), dtype)
    if tta:
        require_segmentation_model(str(model), segmenter.model.config, segmenter.processor, every_size=True)
    check_classes(segmenter.names, label_set.names, str(model), source, check_names)

    facts = {
        "model": _model_facts(str(model), segmenter.model),
        "dataset": {
            "source": source,
            "config_name": options.get("config_name"),
            "revision": options.get("revision"),
            "name": label_set.name,
            "title": label_set.title,
            "split": str(split or dataset.split),
            "num_classes": len(label_set),
        },
        "protocol": _protocol(segmenter.processor, tta, dtype, limit),
    }
    processes = 1 if accelerator is None else accelerator.num_processes
    facts_of_run = environment(segmenter.device, processes)
    metric = MeanIoU(len(label_set), label_set.ignore_index)
    names = None if is_streaming else sample_names(dataset)
    writer = state = None
    if save_dir is not None:
        writer = SampleWriter(Path(save_dir), label_set, names and file_stems(names), submission, overlays)
        identity = identify(
            {
                **facts,
                "environment": facts_of_run,
                "config": segmenter.model.config.to_dict(),
                "processor": segmenter.processor.to_dict(),
                "labels": asdict(dataset.features["label"]),
                "samples": names,
                "outputs": [submission, overlays],
                "process": _place(accelerator),
            }
        )
        state = SavedState(Path(save_dir), identity, metric)
    start = time.monotonic()
    result = _run(segmenter, dataset, metric, accelerator, tta, workers, writer, state, progress)
    if accelerator is not None and not accelerator.is_main_process:
        return None

    facts["dataset"]["num_images"] = result["num_images"]
    report = {
        **metric_report(result, label_set),
        **facts,
        "environment": {
            **facts_of_run,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1),
        },
    }
    if save_dir is not None:
        with whole_file(Path(save_dir, "confusion_matrix.png")) as path:
            draw_confusion_matrix(result["confusion_matrix"], label_set.names).savefig(path, format="png")
    for file in files:  # last, as it says that everything is there
        write_json(file, report)
    return report


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


def _run(
    segmenter: Segmenter,
    dataset: "Dataset | IterableDataset",
    metric: MeanIoU,
    accelerator: "Accelerator | None",
    tta: bool,
    workers: int,
    writer: SampleWriter | None,
    state: SavedState | None,
    progress: Callable[[int, int | None], None] | None,
) -> dict[str, Any]:
    """`evaluate_model`, going on where it was interrupted; the progress is that of the main process."""
    is_main = accelerator is None or accelerator.is_main_process

    def on_sample(sample: Sample, prediction: np.ndarray) -> None:
        writer(sample, prediction)
        state.add(sample)

    def report_progress(done: int, total: int | None) -> None:
        if state is not None:
            state.save(done)
        if progress is not None and is_main:
            progress(done, total)

    start = 0
    if state is not None:
        reader = SampleReader(dataset, segmenter.processor, ())
        start = state.restore(reader, _place(accelerator), writer)
    result = evaluate_model(
        segmenter.model,
        segmenter.processor,
        dataset,
        metric=metric,
        accelerator=accelerator,
        scales=OFFICIAL_SCALES if tta else None,
        flip=tta,
        workers=workers,
        start=start,
        on_sample=None if state is None else on_sample,
        progress=report_progress,
    )
    if state is not None:
        state.remove()
    return result


def _check_outputs(
    save_dir: str | Path | None, json_file: str | Path | None, has_files: bool, overwrite: bool
) -> list[Path]:
    """The JSON files to write; raises ValueError or OSError for what cannot be written or must be kept."""
    if has_files and save_dir is None:
        raise ValueError("overlays and label maps for submission need a folder: pass save_dir (--output)")
    files = [] if json_file is None else [Path(json_file)]
    if save_dir is not None:
        files.append(Path(save_dir, "evaluation.json"))
    for file in files:
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists and is kept: name another output or pass overwrite (--overwrite)")
        make_folder(file.parent)
    return files


def _accelerator(device: str | None) -> "Accelerator | None":
    """That of the processes of `accelerate launch`, torchrun or MPI; one process alone needs none."""
    counts = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if all(int(os.environ.get(name, 1)) == 1 for name in counts):
        return None
    from accelerate import Accelerator

    # Without being told, accelerate takes several processes on CPUs for as many single ones.
    return Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())


def _model_facts(name: str, model: PreTrainedModel) -> dict[str, Any]:
    return {
        "name": name,
        "class": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "weights": weights_digest(model),
        "files": file_digests(Path(name)),
    }


def _protocol(processor: BaseImageProcessor, tta: bool, dtype: torch.dtype, limit: int | None) -> dict[str, Any]:
    settings = {name: getattr(processor, name, None) for name in ("window_size", "window_stride", "size_divisor")}
    return {
        "size": {key: value for key, value in dict(processor.size).items() if value is not None},
        **settings,
        "test_time_augmentation": {"scales": list(OFFICIAL_SCALES), "flip": True} if tta else None,
        "dtype": str(dtype).removeprefix("torch."),
        "limit": limit,
    }


def _place(accelerator: "Accelerator | None") -> tuple[int, int]:
    """Index of this process, and number of all."""
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
