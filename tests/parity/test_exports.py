"""The goldens hold in other runtimes: exported networks give the official label maps, by our protocol."""

from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

from offseg_hf.export import Format
from offseg_hf.export.export import export_model
from offseg_hf.export.onnx import export_onnx
from offseg_hf.export.openvino import convert_to_openvino
from offseg_hf.export.runtime import (
    ExportedConfig,
    ExportedForSemanticSegmentation,
    ExportedForUniversalSegmentation,
    ExportedUniversalConfig,
    open_network,
)
from offseg_hf.export.trace import trace
from offseg_hf.zoo.presets import get_preset
from tests.parity.conftest import converted, fused
from tests.parity.test_goldens import IMAGES, assert_label_map, inputs_of, load, slow_but
from tests.webgpu import outside_webgpu


# The only one that every `make test` exports; the larger photo is seen through windows of the same network.
FAST = "offseg-t-ade.image-375x500"
WINDOW = (512, 512)
ANY_SIZE = "segnext"  # its photos are seen whole


@pytest.fixture(scope="module")
def files_of(tmp_path_factory):
    """A function preset and (height, width) -> the folder of its network as ONNX and for OpenVINO."""

    @cache
    def export(preset: str, height: int, width: int) -> Path:
        folder = tmp_path_factory.mktemp(preset)
        is_universal = preset.startswith("mask2former")
        outputs = class_of(is_universal).outputs
        model = converted(preset) if is_universal else fused(preset)
        program = trace(model, outputs, torch.zeros(1, 3, height, width), dynamic=preset.startswith(ANY_SIZE))
        export_onnx(program, folder / "model.onnx", outputs, {})
        convert_to_openvino(folder / "model.onnx", folder / "model.xml", {})
        return folder

    return export


def class_of(is_universal: bool) -> type:
    return ExportedForUniversalSegmentation if is_universal else ExportedForSemanticSegmentation


@torch.no_grad()
@pytest.mark.parametrize("name", slow_but((FAST,), IMAGES))
@pytest.mark.parametrize(("format", "file"), [(Format.onnx, "model.onnx"), (Format.openvino, "model.xml")])
def test_photo(name, format, file, files_of):
    golden, preset, size = load(name)
    is_universal = preset.startswith("mask2former")
    inputs = inputs_of(preset, size)
    seen = tuple(inputs["pixel_values"].shape[-2:]) if is_universal else WINDOW
    config = (ExportedUniversalConfig if is_universal else ExportedConfig)(
        format=format,
        size=None if preset.startswith(ANY_SIZE) else seen,
        id2label=converted(preset).config.id2label,
        label2id=converted(preset).config.label2id,
    )
    model = class_of(is_universal)(config, open_network(files_of(preset, *seen) / file, format, "fp32")).eval()
    outputs = model(**inputs)
    (labels,) = get_preset(preset).image_processor().post_process_semantic_segmentation(outputs, target_sizes=[size])
    assert_label_map(labels.numpy(), golden)


def test_a_browser_computes_it_on_the_gpu(files_of):
    """Every node, as it was seen with onnxruntime-node's WebGPU provider."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(files_of("offseg-t-ade", *WINDOW) / "model.onnx")).graph
    assert len(graph.node) > 1000 and not outside_webgpu(graph)
    assert not {node.op_type for node in graph.node if node.op_type in ("Loop", "If") or "Sequence" in node.op_type}


def test_openvino_has_known_shapes_and_no_tables(files_of):
    """What is constant is computed before, unless that makes the file larger than ONNX's."""
    folder = files_of("offseg-t-ade", *WINDOW)
    assert 'type="ShapeOf"' not in (folder / "model.xml").read_text()
    assert (folder / "model.bin").stat().st_size <= (folder / "model.onnx").stat().st_size


@pytest.mark.slow
def test_the_whole_command_on_a_golden(tmp_path):
    """Saved, loaded, fused, exported and checked on the photos of the check."""
    converted("segformer-b0-offset-ade").save_pretrained(tmp_path / "model")
    get_preset("segformer-b0-offset-ade").image_processor().save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "x")
    assert report["size"] == [512, 512] and report["equal_labels"] > 0.999
