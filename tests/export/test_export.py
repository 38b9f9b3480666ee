"""`offseg export`, as its user meets it: a folder that the commands and `pipeline` take as they take a model."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, pipeline

from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.export import Format, Precision
from offseg_hf.export.export import ExportOptions, export_model
from offseg_hf.export.onnx import quantize
from offseg_hf.export.runtime import open_network
from offseg_hf.inference.segmenter import Segmenter
from tests.cli.running import offseg
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, photos, and the model exported for its windows of 64 x 64, as ONNX and for OpenVINO."""
    folder = tmp_path_factory.mktemp("export")
    save_small_model(folder / "model", "segformer")
    write_scenes(folder / "scenes", train=1, val=3, size=(128, 96))
    for format in ("onnx", "openvino"):
        result = offseg(
            *("export", folder / "model", "--format", format),
            *("--photos", folder / "scenes" / "images" / "val", "--output", folder / format),
        )
        assert result.returncode == 0, result.stderr
        assert f"exported to {folder / format}" in result.stdout and "of labels are equal on 3 photos" in result.stdout
    return folder


every_format = pytest.mark.parametrize("format", ["onnx", "openvino"])


@every_format
def test_the_folder_is_complete(folder, format):
    names = {path.name for path in (folder / format).iterdir() if path.suffix != ".py"}  # code of the processor
    files = {"model.onnx"} if format == "onnx" else {"model.xml", "model.bin"}
    assert names == {"config.json", "preprocessor_config.json", "export.json"} | files
    report = json.loads((folder / format / "export.json").read_text())
    assert report["equal_labels"] > 0.999 and report["largest_difference"] < 1e-4 < report["largest_logit"]
    assert not report["generated"] and report["image"] == [64, 64] and report["megabytes"] > 0.1


def test_the_file_tells_what_it_is(folder):
    network = onnx.load(folder / "onnx" / "model.onnx")
    facts = {entry.key: entry.value for entry in network.metadata_props}
    protocol, names = json.loads(facts["protocol"]), json.loads(facts["id2label"])
    assert protocol["window_size"] == 64 and len(protocol["image_mean"]) == 3 and protocol["size"]
    assert names == {str(key): name for key, name in Segmenter(folder / "model").model.config.id2label.items()}
    assert len(json.loads(facts["palette"])) == len(names)
    assert not {node.op_type for node in network.graph.node} & {"Loop", "SequenceEmpty", "If"}


@every_format
def test_the_pipeline_takes_it(folder, format):
    photo = Image.open(folder / "scenes" / "images" / "val" / "000001.png")
    ours, theirs = (
        {part["label"]: np.asarray(part["mask"]) for part in pipeline("image-segmentation", model=str(path))(photo)}
        for path in (folder / "model", folder / format)
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).mean() > 0.999 for name in ours)


@every_format
def test_label_maps_are_those_of_the_model(folder, format):
    ours, theirs = Segmenter(folder / "model"), Segmenter(folder / format)
    for path in (folder / "scenes" / "images" / "val").iterdir():
        photo = Image.open(path)
        assert (ours(photo) == theirs(photo)).mean() > 0.999
    assert theirs.model.num_parameters() == ours.model.num_parameters() > 0


def test_commands_take_it(folder, tmp_path):
    segmented = offseg(
        "segment", folder / "scenes" / "images" / "val", "--model", folder / "onnx", "--output", tmp_path / "s"
    )
    assert segmented.returncode == 0 and "3 of 3 segmented" in segmented.stdout
    scores = []
    for name in ("model", "onnx"):
        arguments = ("--data", folder / "scenes", "--output", tmp_path / name)
        result = offseg("evaluate", "--model", folder / name, *arguments)
        assert result.returncode == 0, result.stderr
        scores.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    ours, theirs = (score["metrics"]["mIoU"] for score in scores)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert scores[0]["model"]["num_parameters"] == scores[1]["model"]["num_parameters"]


def test_what_it_cannot_do_is_refused(folder, tmp_path):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "onnx")
    with pytest.raises(ValueError, match=r"exported for images of 64 x 64 \(height x width\), got 64 x 96"):
        model(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ValueError, match="copy its folder"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="another --precision, and pass float32"):
        AutoModelForSemanticSegmentation.from_pretrained(folder / "onnx", dtype=torch.float16)
    again = offseg("export", folder / "onnx", "--output", tmp_path / "x")
    assert again.returncode == 1 and "export the model that it was made of" in again.stderr
    trained = offseg("finetune", "--data", folder / "scenes", "--model", folder / "onnx", "--output", tmp_path / "run")
    assert trained.returncode == 1 and "expected a model that learns from labels, got Exported" in trained.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "openvino", "--precision", "fp16"), "expected fp16 in the format onnx, got openvino"),
        (("--precision", "bf16"), "expected bf16 in the format openvino, got onnx"),
        (("--precision", "int8"), "int8 needs photos to calibrate with"),
        (("--photos", "nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_wrong_options(folder, tmp_path, arguments, message):
    result = offseg("export", folder / "model", *arguments, "--output", tmp_path / "x")
    assert result.returncode == 1 and message in result.stderr and not (tmp_path / "x").exists()


def test_models_of_masks_are_refused(tmp_path):
    tiny_model("mask2former", 0).save_pretrained(tmp_path / "model")
    tiny_processor("mask2former").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="expected a model for semantic segmentation, got OffsetMask2Former"):
        export_model(tmp_path / "model", tmp_path / "x")


def test_what_exists_is_kept(folder, tmp_path):
    shutil.copytree(folder / "onnx", tmp_path / "x")
    before = (tmp_path / "x" / "model.onnx").read_bytes()
    result = offseg("export", folder / "model", "--output", tmp_path / "x")
    assert result.returncode == 1 and "exists and is kept" in result.stderr
    assert (tmp_path / "x" / "model.onnx").read_bytes() == before


@pytest.mark.slow
def test_an_export_that_differs_is_no_file(folder, tmp_path):
    """Weights that half precision does not hold."""
    shutil.copytree(folder / "model", tmp_path / "large")
    weights = load_file(tmp_path / "large" / "model.safetensors")
    name = next(name for name in weights if name.endswith("class_representation"))
    weights[name] = weights[name] * 1e6
    save_file(weights, tmp_path / "large" / "model.safetensors", metadata={"format": "pt"})
    options = ExportOptions(precision=Precision.fp16)
    with pytest.raises(ValueError, match="differs from the model by more than fp16 explains, and is not kept"):
        export_model(tmp_path / "large", tmp_path / "x", options=options)
    assert not list(tmp_path.glob("*x*"))


def test_a_missing_package_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ValueError, match=r'needs onnxscript, which is not installed: pip install "offseg-hf\[export\]"'
    ):
        export_model(folder / "model", tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["offseg", "segnext"])
@every_format
def test_families(tmp_path, family, format):
    """The size is that of a window."""
    save_small_model(tmp_path / "model", family)
    report = export_model(tmp_path / "model", tmp_path / "x", options=ExportOptions(Format(format)))
    assert report["image"] == [64, 64] and report["equal_labels"] > 0.999
    ours, theirs = Segmenter(tmp_path / "model").model, Segmenter(tmp_path / "x").model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, ours(images).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("openvino", "bf16")])
def test_precisions(folder, tmp_path, format, precision):
    options = ExportOptions(Format(format), Precision(precision))
    photos = sorted((folder / "scenes" / "images" / "val").iterdir())
    report = export_model(folder / "model", tmp_path / "x", options=options, photos=photos)
    assert report["precision"] == precision and report["equal_labels"] > 0.95
    assert report["computed_in"] in (precision, "fp32" if precision == "bf16" else precision)
    if precision != "bf16":
        file = "model.onnx" if format == "onnx" else "model.bin"
        assert (tmp_path / "x" / file).stat().st_size < (folder / format / file).stat().st_size


@pytest.mark.slow
def test_int8(folder, tmp_path):
    """Its convolutions are quantized; of random weights, whose classes are close, too many labels change."""
    photos = sorted((folder / "scenes" / "images" / "val").iterdir())
    with pytest.raises(ValueError, match="differs from the model by more than int8 explains, and is not kept"):
        export_model(folder / "model", tmp_path / "x", options=ExportOptions(precision=Precision.int8), photos=photos)
    shutil.copy(folder / "onnx" / "model.onnx", tmp_path / "model.onnx")
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    quantize(tmp_path / "model.onnx", (image.numpy() for image in images))
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    assert (tmp_path / "model.onnx").stat().st_size < (folder / "onnx" / "model.onnx").stat().st_size
    exact, got = (
        torch.from_numpy(open_network(path / "model.onnx", "onnx", "int8").run(images[0].numpy()))
        for path in (folder / "onnx", tmp_path)
    )
    assert 0 < (exact - got).abs().mean() < 0.2 * exact.abs().mean()
