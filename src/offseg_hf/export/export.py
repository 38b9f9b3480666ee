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
from offseg_hf.export.check import compare, equal_share, require_alike
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


# The formats that have a precision.
FORMATS: dict[Precision, tuple[Format, ...]] = {
    Precision.fp32: tuple(Format),
    Precision.fp16: (Format.onnx,),
    Precision.bf16: (Format.openvino,),
    Precision.int8: (Format.onnx, Format.openvino),
}
CHECKED_PHOTOS = 4
CHECKED_SIZES = ((2, 61, 97), (1, 96, 160))  # of graphs for any size, beside that of the photos: batch, height, width
CALIBRATION_IMAGES = 32
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
        formats = FORMATS[Precision(self.precision)]
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
    is_calibrated = options.precision == Precision.int8
    if is_calibrated and len(photos) < 2:
        raise ValueError("int8 needs photos to calibrate with: pass two or more, as the model is to see (--photos)")
    segmenter = Segmenter(model, "cpu")
    exported_class = _exported_class(segmenter, options, str(model))
    if options.web:
        check_page(segmenter, options.format)
    with new_folder(output, overwrite=overwrite) as folder:
        pictures = list(_pictures(photos[1::2] if is_calibrated else photos))
        official = None  # label maps by the official protocol, where the network's is another
        if options.size is not None:
            label_maps = [segmenter(picture) for picture in pictures]
            official = label_maps if stretch(segmenter, options.size, pictures) else None
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
        config = exported_class.config_class(
            format=options.format,
            precision=options.precision,
            size=None if options.dynamic else list(example.shape[-2:]),
            batch_size=None if takes_batches(program) else 1,
            num_channels=example.shape[1],
            num_parameters=segmenter.model.num_parameters(),
            source=json.loads(facts["source"]),
            sha256=_digest(folder / FILES[options.format][-1]),
            id2label=dict(segmenter.model.config.id2label),
            label2id=dict(segmenter.model.config.label2id),
            architectures=[exported_class.__name__],
        )
        config.save_pretrained(folder)
        segmenter.processor.save_pretrained(folder)

        exported, label_maps = Segmenter(folder, "cpu"), [segmenter(picture) for picture in pictures]
        report: dict[str, Any] = {
            "model": str(model),
            "format": options.format,
            "precision": options.precision,
            "size": config.size,
            "batch_size": config.batch_size,
            "offseg_hf": __version__,
            "photos": len(pictures),
            "generated": not photos,
            "megabytes": round(sum((folder / file).stat().st_size for file in FILES[options.format]) / 1e6, 1),
            **compare(segmenter, exported, [example, *_of_other_shapes(example, config)]),
            "equal_labels": equal_share(map(exported, pictures), label_maps),
        }
        require_alike(report)
        if options.end_to_end:
            expected = label_maps if official is None else official
            report["end_to_end"] = _add_end_to_end(segmenter, folder, config.size, facts, pictures, expected)
        report["torch_memory_mb"], report["runtime_memory_mb"] = memory_of([str(model), str(folder)], example.shape)
        if score is not None:
            report["torch_miou"] = score(str(model)) if official is None else _score_stretched(segmenter, score)
            report["runtime_miou"] = score(str(folder))
            require_alike(report)
        if official is not None:
            report["stretched"] = {
                "protocol": PROTOCOL.format(*example.shape[-2:]),
                "equal_labels": equal_share(label_maps, official),
                "official_miou": None if score is None else score(str(model)),
            }
        write_card(folder, report)
        if options.web:
            report["onnxruntime_web"] = write_page(folder, segmenter, config, str(model))
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _exported_class(segmenter: Segmenter, options: ExportOptions, name: str) -> Any:
    """Return the class of what is exported of a model; raise ValueError for a model that cannot be."""
    if isinstance(segmenter.model, ExportedMixin):
        raise ValueError(f"{name} is an exported model: export the model that it was made of")
    encoder: Any = getattr(segmenter.model.config, "backbone_config", None)
    if options.dynamic and getattr(encoder, "window_size", None):
        raise ValueError(
            f"{name} has an encoder of windows ({encoder.model_type}), whose number changes with the size: it is "
            "traced for one size. Pass --size HEIGHT WIDTH in the place of --dynamic"
        )
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
        "equal_labels": equal_share(found, label_maps),
        "ms": round(1000 * statistics.median(times), 1),
    }


def _score_stretched(segmenter: Segmenter, score: Callable[[str], float]) -> float:
    """Return the mIoU of a model that sees photos as its image processor is set now."""
    with TemporaryDirectory() as folder:
        segmenter.model.save_pretrained(folder)
        segmenter.processor.save_pretrained(folder)
        return score(folder)


def _of_other_shapes(example: torch.Tensor, config: Any) -> list[torch.Tensor]:
    """Return images of other numbers and sizes, if an export takes them."""
    if config.size is None:
        return [torch.randn(batch, example.shape[1], *size) for batch, *size in CHECKED_SIZES]
    return [torch.cat([example.flip(3), example])] if config.batch_size is None else []


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
