"""`export_model`: a model by name to a complete folder for another runtime, checked against the model itself."""

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, BatchFeature

from offseg_hf import __version__
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from offseg_hf.export.onnx import export_onnx, quantize, to_half
from offseg_hf.export.openvino import convert_to_openvino
from offseg_hf.export.runtime import FILES, RUNTIMES, ExportedConfig, ExportedForSemanticSegmentation, require
from offseg_hf.export.web.page import check_page, write_page
from offseg_hf.inference.files import read_photo
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.utils.files import new_folder


# Precision -> formats that have it, and the share of a photo's labels that must stay.
PRECISIONS = {
    Precision.fp32: ((Format.onnx, Format.openvino), 0.999),
    Precision.fp16: ((Format.onnx,), 0.99),
    Precision.bf16: ((Format.openvino,), 0.97),
    Precision.int8: ((Format.onnx, Format.openvino), 0.95),
}
LARGEST_DIFFERENCE = 1e-3  # of logits in fp32, relative to the largest
CHECKED_PHOTOS = 4
CALIBRATION_IMAGES = 32
REPEATS = 5
SCENE_SIZE = (512, 384)
REPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Args:
        format: of the file.
        precision: that it computes in.
        web: whether to write a page that runs it in a browser, and a folder for transformers.js, beside it.
    """

    format: Format = Format.onnx
    precision: Precision = Precision.fp32
    web: bool = False

    def check(self) -> None:
        """Raise ValueError for what cannot be."""
        formats, _ = PRECISIONS[Precision(self.precision)]
        if Format(self.format) not in formats:
            raise ValueError(
                f"expected {self.precision} in the format {' or '.join(formats)}, got {self.format}: its runtime "
                "would compute in float32 on the CPU"
            )


DEFAULTS = ExportOptions()


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    options: ExportOptions = DEFAULTS,
    photos: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a model, by name, to a folder that `pipeline`, `offseg segment` and `offseg evaluate` take as a model.

    Args:
        model: folder, or name on the Hub; for semantic segmentation, of this package or of transformers.
        output: the folder.
        options: how.
        photos: to check the export with; by default generated scenes. For int8 every second one calibrates, and the
            others check.
        overwrite: replace the output, if it is the folder of a model.

    Returns:
        The report, as it is written to `export.json`: the largest difference of logits, the share of equal labels,
        and the milliseconds of both for one image.

    Raises:
        ValueError: for a model that cannot be exported, and for an export that differs by more than its precision
            explains, of which nothing is written.
    """
    options.check()
    for package in ("onnx", "onnxscript", RUNTIMES[options.format]):
        require(package)
    if options.precision == Precision.int8 and len(photos) < 2:
        raise ValueError("int8 needs photos to calibrate with: pass two or more, as the model is to see (--photos)")
    segmenter = Segmenter(model, "cpu")
    config = segmenter.model.config
    if isinstance(segmenter.model, ExportedForSemanticSegmentation):
        raise ValueError(f"{model} is an exported model: export the model that it was made of")
    if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        raise ValueError(
            f"expected a model for semantic segmentation, got {type(segmenter.model).__name__}, whose masks and "
            "classes are put together by its image processor: its export is not supported"
        )
    if options.web:
        check_page(segmenter, options.format)
    with new_folder(output, overwrite=overwrite) as folder:
        is_calibrated = options.precision == Precision.int8
        pictures = list(_pictures(photos[1::2] if is_calibrated else photos))
        view = segmenter.prepare(pictures[0])
        example = next(_images(view)).contiguous()
        segmenter.fuse(view, (pictures[0].height, pictures[0].width))
        facts = _facts(segmenter, str(model), options)
        seen = (
            _of_size(image, example.shape[-2:])
            for path in (photos[::2] if is_calibrated else ())
            for image in _images(segmenter.prepare(read_photo(path)))
        )
        network = segmenter.network
        assert isinstance(network, nn.Module)
        _write(network, folder, example, options, facts, islice(seen, CALIBRATION_IMAGES))
        exported_config = ExportedConfig(
            format=options.format,
            precision=options.precision,
            size=list(example.shape[-2:]),
            num_channels=getattr(config, "num_channels", 3),
            num_parameters=segmenter.model.num_parameters(),
            source=json.loads(facts["source"]),
            sha256=_digest(folder / FILES[options.format][-1]),
            id2label=dict(config.id2label),
            label2id=dict(config.label2id),
            architectures=[ExportedForSemanticSegmentation.__name__],
        )
        exported_config.save_pretrained(folder)
        segmenter.processor.save_pretrained(folder)
        report: dict[str, Any] = {
            "model": str(model),
            "format": options.format,
            "precision": options.precision,
            "offseg_hf": __version__,
            "photos": len(pictures),
            "generated": not photos,
            **compare(segmenter, Segmenter(folder, "cpu"), pictures, example),
        }
        report["megabytes"] = round(sum((folder / file).stat().st_size for file in FILES[options.format]) / 1e6, 1)
        _require_alike(report, options.precision)
        if options.web:
            report["onnxruntime_web"] = write_page(folder, segmenter, exported_config, str(model))
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def compare(
    ours: Segmenter, theirs: Segmenter, pictures: Sequence[Image.Image], example: torch.Tensor
) -> dict[str, Any]:
    """Compare an exported model with the model it is of.

    Args:
        ours: the model.
        theirs: what was exported.
        pictures: photos, whose label maps are compared.
        example: images whose logits are compared, and timed, in turns.

    Returns:
        The part of the report that says how they differ.
    """
    seconds: dict[Segmenter, list[float]] = {ours: [], theirs: []}
    logits = {}
    with torch.inference_mode():
        for _ in range(REPEATS):
            for each, times in seconds.items():
                start = time.perf_counter()
                logits[each] = each.network(pixel_values=example).logits
                times.append(time.perf_counter() - start)
    expected, got = logits[ours], logits[theirs]
    if expected.shape != got.shape:
        raise ValueError(f"expected logits of the shape {tuple(expected.shape)}, got {tuple(got.shape)} of the export")
    return {
        "largest_difference": float((expected - got).abs().max()),
        "largest_logit": float(expected.abs().max()),
        "computed_in": theirs.model.network.computes_in,
        "equal_labels": round(statistics.mean((ours(each) == theirs(each)).mean() for each in pictures), 6),
        "image": list(example.shape[-2:]),
        "torch_ms": round(1000 * statistics.median(seconds[ours]), 1),
        "runtime_ms": round(1000 * statistics.median(seconds[theirs]), 1),
    }


def _write(
    network: nn.Module,
    folder: Path,
    example: torch.Tensor,
    options: ExportOptions,
    facts: Mapping[str, str],
    seen: Iterable[torch.Tensor],
) -> None:
    """Write the files of the network; `seen` are images to calibrate with."""
    file = folder / FILES[Format.onnx][0]
    export_onnx(network, file, example, facts)
    if options.precision == Precision.fp16:
        to_half(file)
    if options.precision == Precision.int8:
        quantize(file, (image.numpy() for image in seen))
    if options.format == Format.openvino:
        convert_to_openvino(file, folder / FILES[Format.openvino][0], facts)
        file.unlink()


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


def _images(inputs: BatchFeature) -> Iterator[torch.Tensor]:
    """Yield what the network sees of a photo: its windows, or the whole image; each (1, channels, height, width)."""
    pixel_values = inputs["pixel_values"]
    if "windows" not in inputs:
        yield pixel_values
        return
    for top, left, bottom, right in inputs["windows"][0].tolist():
        yield pixel_values[..., top:bottom, left:right]


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
    share = PRECISIONS[precision][1]
    differs = (
        precision == Precision.fp32 and report["largest_difference"] > LARGEST_DIFFERENCE * report["largest_logit"]
    )
    if not differs and report["equal_labels"] >= share:
        return
    raise ValueError(
        f"the export differs from the model by more than {precision} explains, and is not kept: expected "
        f"{100 * share:g} % of equal labels on {report['photos']} photos, got {100 * report['equal_labels']:.2f} %; "
        f"logits up to {report['largest_logit']:.3g} differ by {report['largest_difference']:.2g}"
        + ("" if precision == Precision.fp32 else "; try fp32, or photos like those that it was trained on (--photos)")
    )
