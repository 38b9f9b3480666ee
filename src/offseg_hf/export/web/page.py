"""The page beside an exported model: HTML, style and scripts from `templates/`, and what they need to know as JSON."""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from offseg_hf import __version__
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from offseg_hf.export.runtime import FILES, ExportedConfig
from offseg_hf.export.web.onnxruntime_web import VERSION, place_runtime, runtime_settings
from offseg_hf.export.web.transformers_js import write_transformers_js
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor


PAGE = "index.html"
EXAMPLE = "example.png"
EXAMPLE_SIZE = (640, 480)
# As a static Space on the Hub. Its headers let WebAssembly use several threads.
CARD = """---
title: {quoted}
emoji: 🖼️
colorFrom: blue
colorTo: green
sdk: static
app_file: index.html
custom_headers:
  cross-origin-embedder-policy: credentialless
  cross-origin-opener-policy: same-origin
  cross-origin-resource-policy: cross-origin
tags: [image-segmentation, offseg_hf]
---

# {title}

A page that runs the model in the browser: `python -m http.server`, then http://localhost:8000. The license is that of
the model.
"""
# What `protocol.js` reads of an image processor.
PROTOCOL = (
    *("do_resize", "size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad"),
    *("size_divisor", "window_size", "window_stride"),
)


def check_page(segmenter: Segmenter, format: Format) -> None:
    """Raise ValueError for a model that a page cannot run as Python does."""
    if format != Format.onnx:
        raise ValueError(f"a page runs ONNX, got the format {format}: leave out --format, or --web")
    if not isinstance(segmenter.processor, OffSegImageProcessor):
        raise ValueError(
            "a page prepares photos as OffSegImageProcessor does, got a model with "
            f"{type(segmenter.processor).__name__}: save the model with an OffSegImageProcessor, or leave out --web"
        )
    channels = getattr(segmenter.model.config, "num_channels", 3)
    if channels != 3:
        raise ValueError(f"a page shows a network the 3 channels of a photo, got one for {channels}")


def write_page(folder: Path, segmenter: Segmenter, config: ExportedConfig, name: str) -> str:
    """Write the page, what it runs on, and the folder for transformers.js beside an exported model.

    Args:
        folder: of the exported model.
        segmenter: the model that was exported.
        config: of what was exported.
        name: of the model, as it was asked for.

    Returns:
        Where the page finds ONNX Runtime Web: "./", or an address if its files could not be fetched.
    """
    assert config.size is not None  # of a graph for one size
    base = place_runtime(folder)
    file = folder / FILES[Format.onnx][0]
    title = title_of(name)
    settings = {
        "names": segmenter.names,
        "palette": [[int(value) for value in color] for color in segmenter.palette],
        "protocol": protocol_of(segmenter.processor),
        "model": {
            "name": file.name,
            "bytes": file.stat().st_size,
            "sha256": config.sha256,
            "size": list(config.size),
        },
        "runtime": runtime_settings(base),
    }
    about = f"{len(segmenter.names)} classes · {file.stat().st_size / 1e6:.1f} MB · {config.precision}"
    credit = f"Made with offseg-hf {__version__} and ONNX Runtime Web {VERSION}."
    for template in files("offseg_hf.export.web").joinpath("templates").iterdir():
        text = template.read_text(encoding="utf-8")
        if template.name == PAGE:
            text = fill(text, settings, title=title, about=about, credit=credit)
        (folder / template.name).write_text(text, encoding="utf-8")
    card = folder / "README.md"  # of the exported model
    checked = card.read_text(encoding="utf-8") if card.exists() else ""
    text = CARD.format(title=title, quoted=json.dumps(title))
    card.write_text("\n".join((text, checked)) if checked else text, encoding="utf-8")
    render_scene(0, EXAMPLE_SIZE)[0].save(folder / EXAMPLE)
    write_transformers_js(folder, segmenter, Precision(config.precision), title)
    return base


def protocol_of(processor: OffSegImageProcessor) -> dict[str, Any]:
    """Return how a photo is prepared, as JSON has it."""
    values = {name: getattr(processor, name) for name in PROTOCOL}
    return values | {"size": {edge: length for edge, length in dict(values["size"]).items() if length}}


def fill(text: str, settings: dict[str, Any], **values: str) -> str:
    """Return the page's text with settings and values in their places."""
    # Nothing that a script can hold ends it, nor begins a comment.
    content = json.dumps(settings, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {name: html.escape(value) for name, value in values.items()} | {"settings": content}
    return re.sub(r"{{ (\w+) }}", lambda match: parts[match[1]], text)


def title_of(name: str) -> str:
    """Return a model's name without the folders of this computer."""
    parts: Sequence[str] = Path(name).resolve().parts if Path(name).exists() else Path(name).parts
    return parts[-2] if parts[-1] in ("best", "last") and len(parts) > 1 else parts[-1]
