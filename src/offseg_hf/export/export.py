"""`export_model`: a model by name to a complete folder for another runtime, checked against the model itself."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

from offseg_hf import __version__
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from offseg_hf.export import end_to_end as photo_to_labels
from offseg_hf.export.card import write_card
from offseg_hf.export.memory import memory_of
from offseg_hf.export.onnx import export_onnx, quantize, to_half
from offseg_hf.export.openvino import convert_to_openvino
from offseg_hf.export.program import compile_program, write_program
from offseg_hf.export.runtime import (
    FILES,
    RUNTIMES,
    ExportedForSemanticSegmentation,
    ExportedForUniversalSegmentation,
    ExportedMixin,
)
from offseg_hf.export.size import PROTOCOL, images_of, stretch
from offseg_hf.export.trace import takes_batches, trace
from offseg_hf.export.web.page import check_page, write_page
from offseg_hf.inference.files import read_photo
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.utils.extras import require
from offseg_hf.utils.files import new_folder


# Precision -> formats that have it, and the share of a photo's labels that must stay.
PRECISIONS = {
    Precision.fp32: (tuple(Format), 0.999),
    Precision.fp16: ((Format.onnx,), 0.99),
    Precision.bf16: ((Format.openvino,), 0.97),
    Precision.int8: ((Format.onnx, Format.openvino), 0.95),
}
LOST_MIOU = {Precision.fp32: 0.1, Precision.fp16: 0.2, Precision.bf16: 0.5, Precision.int8: 1.0}  # at most, of 100
LARGEST_DIFFERENCE = 1e-3  # of logits in fp32, relative to the largest
CHECKED_PHOTOS = 4
CHECKED_SIZES = ((2, 61, 97), (1, 96, 160))  # of graphs for any size, beside that of the photos: batch, height, width
CALIBRATION_IMAGES = 32
REPEATS = 5
SCENE_SIZE = (512, 384)
REPORT_FILE = "export.json"
# What each format is written and read with, as Python imports it.
PACKAGES: dict[Format, tuple[str, ...]] = {
    Format.onnx: ("onnx", "onnxscript", RUNTIMES[Format.onnx]),
    Format.openvino: ("onnx", "onnxscript", RUNTIMES[Format.openvino]),
    Format.torch: (),
    Format.aotinductor: (),
}


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Args:
        format: of the file.
        precision: that it computes in.
        size: (height, width) that photos are stretched to; None for what the image processor makes of the first photo.
        dynamic: for images of any size, instead of one.
        end_to_end: write `end_to_end.onnx` too, a graph from a photo's pixels to its labels.
        web: whether to write a page that runs it in a browser, and a folder for transformers.js, beside it.
    """

    format: Format = Format.onnx
    precision: Precision = Precision.fp32
    size: tuple[int, int] | None = None
    dynamic: bool = False
    end_to_end: bool = False
    web: bool = False

    @property
    def batches(self) -> bool:
        """Return whether the graph is to take any number of images of its size: where that takes no longer for one."""
        return self.format in (Format.onnx, Format.torch) and not self.web

    def check(self) -> None:
        """Raise ValueError for what cannot be."""
        formats, _ = PRECISIONS[Precision(self.precision)]
        if Format(self.format) not in formats:
            raise ValueError(
                f"expected {self.precision} in the format {' or '.join(formats)}, got {self.format}: its runtime "
                "would compute in float32 on the CPU"
            )
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"expected a height and a width in pixels, got --size {self.size[0]} {self.size[1]}")
        if self.size is not None and self.dynamic:
            raise ValueError("expected a network of one size (--size) or of any (--dynamic), got both")
        if self.dynamic and self.format == Format.aotinductor:
            raise ValueError("aotinductor compiles for one size: expected another format with --dynamic")
        if self.end_to_end and (self.dynamic or self.format != Format.onnx):
            raise ValueError(
                "a graph from pixels to labels is ONNX, around a network of one size: expected --end-to-end with the "
                "format onnx, and without --dynamic"
            )
        if self.web and self.dynamic:
            raise ValueError("a page runs a network of one size: leave out --dynamic, or --web")


DEFAULTS = ExportOptions()


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    options: ExportOptions = DEFAULTS,
    photos: Sequence[Path] = (),
    score: Callable[[str], float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a model, by name, to a folder that `pipeline`, `offseg segment` and `offseg evaluate` take as a model.

    Args:
        model: folder, or name on the Hub; for semantic or universal segmentation, of this package or of transformers.
        output: the folder.
        options: how.
        photos: to check the export with; by default generated scenes. For int8 every second one calibrates, and the
            others check.
        score: gives the mIoU, in percent, of a model by name; of both, by the same data.
        overwrite: replace the output, if it is the folder of a model.

    Returns:
        The report, as it is written to `export.json`: the largest difference of logits, the share of equal labels,
        and the milliseconds and megabytes of both for one image.

    Raises:
        ValueError: for a model that cannot be exported, and for an export that differs by more than its precision
            explains, of which nothing is written.
    """
    options.check()
    for package in PACKAGES[options.format]:
        require(package, "export")
    if options.precision == Precision.int8 and len(photos) < 2:
        raise ValueError("int8 needs photos to calibrate with: pass two or more, as the model is to see (--photos)")
    segmenter = Segmenter(model, "cpu")
    if isinstance(segmenter.model, ExportedMixin):
        raise ValueError(f"{model} is an exported model: export the model that it was made of")
    exported_class = _exported_class(segmenter, options)
    encoder: Any = getattr(segmenter.model.config, "backbone_config", None)
    if options.dynamic and getattr(encoder, "window_size", None):
        raise ValueError(
            f"{model} has an encoder of windows ({encoder.model_type}), whose number changes with the size: it is "
            "traced for one size. Pass --size HEIGHT WIDTH in the place of --dynamic"
        )
    if options.web:
        check_page(segmenter, options.format)
    with new_folder(output, overwrite=overwrite) as folder, TemporaryDirectory() as stretched:
        is_calibrated = options.precision == Precision.int8
        pictures = list(_pictures(photos[1::2] if is_calibrated else photos))
        official, reference = None, str(model)  # label maps, where the protocol is another; what to compare with
        if options.size is not None:
            label_maps = [segmenter(picture) for picture in pictures]
            if stretch(segmenter, options.size, pictures):
                official, reference = label_maps, stretched
                segmenter.model.save_pretrained(reference)
                segmenter.processor.save_pretrained(reference)
        view = segmenter.prepare(pictures[0])
        example = next(images_of(view)).contiguous()
        segmenter.fuse(view, (pictures[0].height, pictures[0].width))
        facts = _facts(segmenter, str(model), options)
        seen = (
            image.contiguous() if options.dynamic else _of_size(image, example.shape[-2:])
            for path in (photos[::2] if is_calibrated else ())
            for image in images_of(segmenter.prepare(read_photo(path)))
        )
        network = segmenter.network
        assert isinstance(network, nn.Module)
        program = trace(network, exported_class.outputs, example, dynamic=options.dynamic, batches=options.batches)
        _write(program, folder, exported_class.outputs, options, facts, islice(seen, CALIBRATION_IMAGES))
        config = segmenter.model.config
        size = None if options.dynamic else list(example.shape[-2:])
        exported_config = exported_class.config_class(
            format=options.format,
            precision=options.precision,
            size=size,
            batch_size=None if takes_batches(program) else 1,
            num_channels=example.shape[1],
            num_parameters=segmenter.model.num_parameters(),
            source=json.loads(facts["source"]),
            sha256=_digest(folder / FILES[options.format][-1]),
            id2label=dict(config.id2label),
            label2id=dict(config.label2id),
            architectures=[exported_class.__name__],
        )
        exported_config.save_pretrained(folder)
        segmenter.processor.save_pretrained(folder)
        images = [torch.randn(batch, example.shape[1], *side) for batch, *side in CHECKED_SIZES if options.dynamic]
        if size is not None and exported_config.batch_size is None:
            images.append(torch.cat([example.flip(3), example]))
        report: dict[str, Any] = {
            "model": str(model),
            "format": options.format,
            "precision": options.precision,
            "size": size,
            "batch_size": exported_config.batch_size,
            "offseg_hf": __version__,
            "photos": len(pictures),
            "generated": not photos,
            **compare(segmenter, Segmenter(folder, "cpu"), pictures, [example, *images]),
        }
        report["megabytes"] = round(sum((folder / file).stat().st_size for file in FILES[options.format]) / 1e6, 1)
        _require_alike(report, options.precision)
        if options.end_to_end:
            label_maps = official or [segmenter(picture) for picture in pictures]
            report["end_to_end"] = _add_end_to_end(segmenter, folder, size, facts, pictures, label_maps)
        report["torch_memory_mb"], report["runtime_memory_mb"] = memory_of([str(model), str(folder)], example.shape)
        if score is not None:
            report["torch_miou"], report["runtime_miou"] = score(reference), score(str(folder))
            _require_alike(report, options.precision)
        if official is not None:
            report["stretched"] = {
                "protocol": PROTOCOL.format(*example.shape[-2:]),
                "equal_labels": _equal_share(map(segmenter, pictures), official),
                "official_miou": None if score is None else score(str(model)),
            }
        write_card(folder, report)
        if options.web:
            report["onnxruntime_web"] = write_page(folder, segmenter, exported_config, str(model))
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def compare(
    ours: Segmenter, theirs: Segmenter, pictures: Sequence[Image.Image], examples: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Compare an exported model with the model it is of.

    Args:
        ours: the model.
        theirs: what was exported.
        pictures: photos, whose label maps are compared.
        examples: images whose logits are compared; the first ones are timed, in turns.

    Returns:
        The part of the report that says how they differ.
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
        "equal_labels": _equal_share(map(ours, pictures), map(theirs, pictures)),
        "image": list(examples[0].shape[-2:]),
        "torch_ms": round(1000 * statistics.median(seconds[ours]), 1),
        "runtime_ms": round(1000 * statistics.median(seconds[theirs]), 1),
    }


def _exported_class(segmenter: Segmenter, options: ExportOptions) -> Any:
    """Return the class of what is exported."""
    if type(segmenter.model.config) not in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return ExportedForSemanticSegmentation
    if options.end_to_end or options.web:
        raise ValueError(
            f"{type(segmenter.model).__name__} segments into masks, which its image processor puts together: export "
            "it without --end-to-end and --web"
        )
    return ExportedForUniversalSegmentation


def _write(
    program: torch.export.ExportedProgram,
    folder: Path,
    outputs: Sequence[str],
    options: ExportOptions,
    facts: Mapping[str, str],
    seen: Iterable[torch.Tensor],
) -> None:
    """Write the files of the network; `seen` are images to calibrate with."""
    file = folder / FILES[options.format][0]
    if options.format == Format.torch:
        write_program(program, file, facts)
        return
    if options.format == Format.aotinductor:
        compile_program(program, file, facts)
        return
    onnx_file = folder / FILES[Format.onnx][0]
    export_onnx(program, onnx_file, outputs, facts)
    if options.precision == Precision.fp16:
        to_half(onnx_file)
    if options.precision == Precision.int8:
        quantize(onnx_file, (image.numpy() for image in seen))
    if options.format == Format.openvino:
        convert_to_openvino(onnx_file, file, facts)
        onnx_file.unlink()


def _add_end_to_end(
    segmenter: Segmenter,
    folder: Path,
    size: Any,
    facts: Mapping[str, str],
    pictures: Sequence[Image.Image],
    label_maps: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Write the graph from pixels to labels; return how it compares with pictures' label maps by the protocol."""
    file = folder / photo_to_labels.FILE
    network = folder / FILES[Format.onnx][0]
    photo_to_labels.write_end_to_end(network, file, tuple(size), segmenter.processor, len(segmenter.names), facts)
    labels_of, found, times = photo_to_labels.open_end_to_end(file), [], []
    for picture in pictures:
        start = time.perf_counter()
        found.append(labels_of(picture))
        times.append(time.perf_counter() - start)
    return {
        "protocol": photo_to_labels.PROTOCOL,
        "equal_labels": _equal_share(found, label_maps),
        "ms": round(1000 * statistics.median(times), 1),
    }


def _equal_share(found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """Return the share of equal labels, a mean over label maps."""
    return round(statistics.mean((one == other).mean() for one, other in zip(found, expected, strict=True)), 6)


def _facts(segmenter: Segmenter, name: str, options: ExportOptions) -> dict[str, str]:
    """Return what is written into the file, as text: what a runtime without this package needs to know."""
    processor = segmenter.processor
    protocol = {
        key: getattr(processor, key, None)
        for key in ("do_resize", "do_rescale", "rescale_factor", "image_mean", "image_std")
    }
    protocol["size"] = dict(processor.size)
    protocol |= {key: getattr(processor, key, None) for key in ("window_size", "window_stride", "size_divisor")}
    return {
        "id2label": json.dumps(segmenter.model.config.id2label, ensure_ascii=False),
        "palette": json.dumps(np.asarray(segmenter.palette).tolist()),
        "protocol": json.dumps(protocol),
        "source": json.dumps({"model": name, "class": type(segmenter.model).__name__, "offseg_hf": __version__}),
        "precision": options.precision,
        "license": "that of the weights, see the model card of the source",
    }


def _pictures(photos: Sequence[Path]) -> Iterator[Image.Image]:
    if photos:
        yield from map(read_photo, photos[:CHECKED_PHOTOS])
    else:
        yield from (render_scene(seed, SCENE_SIZE)[0] for seed in range(CHECKED_PHOTOS))


def _of_size(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the image, which must have the only size that the export is for."""
    if image.shape[-2:] != size:
        raise ValueError(
            f"expected photos of which the network sees {size[0]} x {size[1]} (height x width), as of the first one "
            f"that checks, got one of which it sees {image.shape[-2]} x {image.shape[-1]}: calibrate with photos of "
            "one shape (--photos)"
        )
    return image.contiguous()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_alike(report: Mapping[str, Any], precision: Precision) -> None:
    """Raise ValueError for an export that differs by more than its precision explains."""
    (_, share), found = PRECISIONS[precision], []
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
        raise ValueError(
            f"the export differs from the model by more than {precision} explains, and is not kept: expected "
            + "; and ".join(found)
            + (
                ""
                if precision == Precision.fp32
                else "; try fp32, or photos like those that it was trained on (--photos)"
            )
        )
