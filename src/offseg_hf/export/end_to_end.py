"""One ONNX graph from the pixels of a photo to its label map: a network with what comes before and after it.

It stretches the photo to the one size of the network, which sees it whole. That is not the official protocol, which
keeps proportions and looks through windows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offseg_hf.export.runtime import open_session
from offseg_hf.utils.extras import require


FILE = "end_to_end.onnx"
PROTOCOL = (
    "not the official protocol: the photo is stretched to the network's size and seen whole, without its proportions "
    "and without windows"
)


def write_end_to_end(
    source: Path, target: Path, size: tuple[int, int], processor: Any, num_labels: int, facts: Mapping[str, str]
) -> None:
    """Write a network with what is around it as one file.

    Its input `image` is uint8 (1, height, width, 3), RGB, of any size; its output `labels` (1, height, width).

    Args:
        source: the network as ONNX, whose `logits` are those of a `pixel_values`.
        target: the file.
        size: (height, width) of the only images that the network takes.
        processor: the model's image processor, of which mean and standard deviation are taken.
        num_labels: of the network.
        facts: metadata.
    """
    onnx = require("onnx", "export")
    types, node = onnx.TensorProto, onnx.helper.make_node
    model = onnx.load(source)
    graph, label_type = model.graph, types.UINT8 if num_labels <= 256 else types.UINT16
    mean, scale = _normalization(processor)
    channels = len(mean.ravel())

    def constant(name: str, value: np.ndarray) -> Any:
        return onnx.numpy_helper.from_array(value, f"photo.{name}")

    def resize(x: str, sizes: str, output: str) -> Any:
        return node("Resize", [x, "", "", sizes], [output], mode="linear", coordinate_transformation_mode="half_pixel")

    before = [
        node("Transpose", ["image"], ["photo.planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["photo.planes"], ["photo.levels"], to=types.FLOAT),
        resize("photo.levels", "photo.size", "photo.resized"),
        node("Round", ["photo.resized"], ["photo.rounded"]),
        node("Sub", ["photo.rounded", "photo.mean"], ["photo.centered"]),
        node("Mul", ["photo.centered", "photo.scale"], ["pixel_values"]),
    ]
    after = [
        node("Shape", ["image"], ["photo.sides"], start=1, end=3),
        node("Concat", ["photo.classes", "photo.sides"], ["photo.scores_size"], axis=0),
        resize("logits", "photo.scores_size", "photo.scores"),
        node("ArgMax", ["photo.scores"], ["photo.winners"], axis=1, keepdims=0),
        node("Cast", ["photo.winners"], ["labels"], to=label_type),
    ]
    graph.initializer.extend(
        [
            constant("size", np.array([1, channels, *size], np.int64)),
            constant("classes", np.array([1, num_labels], np.int64)),
            constant("mean", mean),
            constant("scale", scale),
        ]
    )
    nodes = [*before, *graph.node, *after]
    for field, values in (
        ("node", nodes),
        ("input", [onnx.helper.make_tensor_value_info("image", types.UINT8, [1, "height", "width", channels])]),
        ("output", [onnx.helper.make_tensor_value_info("labels", label_type, [1, "height", "width"])]),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    protocol = {"protocol": json.dumps(PROTOCOL), "input": "image: uint8 RGB", "output": "labels: ids of id2label"}
    onnx.helper.set_model_props(model, {**facts, **protocol})
    onnx.save(model, target)


def open_end_to_end(path: Path) -> Any:
    """Open such a file: a function from an RGB photo to its label map (height, width)."""
    session = open_session(path)
    return lambda photo: session.run(None, {"image": np.asarray(photo)[None]})[0][0]


def _normalization(processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what to take from the levels of each channel, 0 to 255, and what to multiply them by then."""
    rescale = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    mean, std = (np.asarray(values, np.float64).reshape(1, -1, 1, 1) / rescale for values in (mean, std))
    return mean.astype(np.float32), (1 / std).astype(np.float32)
