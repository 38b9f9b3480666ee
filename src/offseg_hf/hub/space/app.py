"""What a model makes of a photo: its classes in color, and their shares. `space.json` beside it says which model."""

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps


SETTINGS = json.loads(Path(__file__).with_name("space.json").read_text(encoding="utf-8"))
NAMES, PALETTE = SETTINGS["names"], np.array(SETTINGS["palette"], dtype=np.float32)
OPACITY = 0.6
SWATCH = "display:inline-block;width:1em;height:1em;border-radius:.25em;vertical-align:-.1em"


@cache
def load() -> tuple[Any, Any]:
    """Return the image processor and the model."""
    name = SETTINGS["model"]
    processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    model = getattr(transformers, SETTINGS["auto_class"]).from_pretrained(name, trust_remote_code=True)
    return processor, model.eval()


def label_map(photo: Image.Image) -> np.ndarray:
    """Return the class of every pixel of an upright photo."""
    processor, model = load()
    inputs = processor(images=photo, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    sizes = [(photo.height, photo.width)]
    return processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy()


def overlay(photo: Image.Image, labels: np.ndarray, opacity: float) -> Image.Image:
    """Return the photo under the colors of its classes."""
    pixels = np.asarray(photo, dtype=np.float32)
    blended = pixels + opacity * (PALETTE[labels] - pixels)
    return Image.fromarray(blended.round().astype(np.uint8))


def legend(labels: np.ndarray) -> str:
    """Return the classes of a label map and their shares, the largest first, as HTML."""
    count = np.bincount(labels.ravel(), minlength=len(NAMES))
    rows = [
        f'<tr><td style="width:2.5em"><span style="{SWATCH};background:rgb{tuple(SETTINGS["palette"][index])}">'
        f"</span></td><td>{html.escape(NAMES[index])}</td>"
        f'<td style="text-align:right">{_percent(count[index] / labels.size)}</td></tr>'
        for index in np.argsort(-count, kind="stable")
        if count[index]
    ]
    return f'<table style="width:100%">{"".join(rows)}</table>'


def _percent(share: float) -> str:
    return "&lt; 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def segment(photo: Image.Image | None, opacity: float) -> tuple[Any, ...]:
    """Return what is kept of a photo, and what is shown of it."""
    if photo is None:
        return None, None, ""
    photo = ImageOps.exif_transpose(photo).convert("RGB")
    labels = label_map(photo)
    return (photo, labels), overlay(photo, labels, opacity), legend(labels)


def fade(kept: tuple[Image.Image, np.ndarray] | None, opacity: float) -> Image.Image | None:
    """Return the photo under its classes again, in another opacity; the network is not asked."""
    return None if kept is None else overlay(*kept, opacity)


def build() -> Any:
    """Return the page."""
    import gradio as gr

    with gr.Blocks(title=SETTINGS["title"]) as page:
        gr.Markdown(
            f"# {SETTINGS['title']}\n\nSemantic segmentation with [{SETTINGS['model']}]({SETTINGS['url']}): "
            f"{len(NAMES)} classes."
        )
        kept = gr.State()
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="pil", sources=["upload", "webcam", "clipboard"], label="Photo")
                opacity = gr.Slider(0, 1, value=OPACITY, step=0.05, label="Opacity of the colors")
                start = gr.Button("Segment", variant="primary")
                examples = sorted(map(str, Path(__file__).parent.glob("examples/*")))
                gr.Examples(examples, photo, label="Examples")
            with gr.Column():
                shown = gr.Image(label="Classes", format="png", interactive=False)
                classes = gr.HTML()
        results = [kept, shown, classes]
        start.click(segment, [photo, opacity], results, api_name="segment")
        photo.input(segment, [photo, opacity], results, api_visibility="private")
        opacity.release(fade, [kept, opacity], shown, show_progress="hidden", api_visibility="private")
    return page


if __name__ == "__main__":
    build().launch()
