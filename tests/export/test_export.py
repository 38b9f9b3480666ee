"""`offseg export`, as its user meets it: a folder that the commands and `pipeline` take as they take a model."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    pipeline,
)

from offseg_hf import apply_offset_learning
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from offseg_hf.export.end_to_end import open_end_to_end
from offseg_hf.export.export import ExportOptions, export_model
from offseg_hf.export.onnx import quantize
from offseg_hf.export.runtime import Network, open_network
from offseg_hf.export.size import images_of, stretch
from offseg_hf.inference.segmenter import Segmenter
from tests.cli.running import offseg
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor
from tests.webgpu import outside_webgpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, photos, and the model exported for its windows of 64 x 64, as ONNX."""
    folder = tmp_path_factory.mktemp("export")
    save_small_model(folder / "model", "segformer")
    write_scenes(folder / "scenes", train=1, val=3, size=(128, 96))
    photos = folder / "scenes" / "images" / "val"
    result = offseg(
        *("export", folder / "model", "--end-to-end", "--dataset", folder / "scenes"),
        *("--photos", photos, "--output", folder / "onnx"),
    )
    assert result.returncode == 0, result.stderr
    for text in (f"exported to {folder / 'onnx'}", "of labels are equal on 3 photos", "not the official protocol"):
        assert text in " ".join(result.stdout.split())
    return folder


@pytest.fixture(autouse=True)
def exported_too(request, folder) -> None:
    """For OpenVINO, where a test asks for that."""
    if request.node.get_closest_marker("slow") and not (folder / "openvino").exists():
        photos = sorted((folder / "scenes" / "images" / "val").iterdir())
        export_model(folder / "model", folder / "openvino", options=ExportOptions(Format.openvino), photos=photos)


# tests/parity/test_exports.py runs OpenVINO in the fast tests.
every_format = pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])


@every_format
def test_the_folder_is_complete(folder, format):
    names = {path.name for path in (folder / format).iterdir() if path.suffix != ".py"}  # code of the processor
    files = {"model.onnx"} if format == "onnx" else {"model.xml", "model.bin"}
    files |= {"end_to_end.onnx"} if format == "onnx" else set()
    assert names == {"config.json", "preprocessor_config.json", "export.json", "README.md"} | files
    report = json.loads((folder / format / "export.json").read_text())
    assert report["equal_labels"] > 0.999 and report["largest_difference"] < 1e-4 < report["largest_logit"]
    assert not report["generated"] and report["image"] == report["size"] == [64, 64]
    size = sum((folder / format / name).stat().st_size for name in files - {"end_to_end.onnx"})
    assert report["megabytes"] == round(size / 1e6, 1) > 0
    assert min(report[f"{each}_{figure}"] for each in ("torch", "runtime") for figure in ("ms", "memory_mb")) > 0
    card = (folder / format / "README.md").read_text()
    number = "any number of images" if format == "onnx" else "one image"
    assert "fp32" in card and f"{number} of 64x64" in card and "% of labels are equal" in card


def test_both_are_evaluated_on_a_data_set(folder):
    report = json.loads((folder / "onnx" / "export.json").read_text())
    assert report["torch_miou"] == pytest.approx(report["runtime_miou"], abs=0.1)
    assert f"mIoU {report['runtime_miou']:.2f}" in (folder / "onnx" / "README.md").read_text()


def test_from_pixels_to_labels(folder):
    """One graph does what resizing, normalization, the network and an argmax do, on photos of any size."""
    photos = sorted((folder / "scenes" / "images" / "val").iterdir())
    labels_of = open_end_to_end(folder / "onnx" / "end_to_end.onnx")
    segmenter = Segmenter(folder / "model")
    for size in ((128, 96), (75, 131)):
        photo = Image.open(photos[0]).resize(size)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, size=(64, 64), mode="bilinear").round().byte()
        inputs = segmenter.processor(images=pixels[0], return_tensors="pt", do_resize=False)
        with torch.no_grad():
            scores = F.interpolate(segmenter.model(inputs.pixel_values).logits, size[::-1], mode="bilinear")
        labels = labels_of(photo)
        assert labels.dtype == np.uint8 and labels.shape == size[::-1]
        assert (labels == scores.argmax(dim=1)[0].numpy()).mean() > 0.995
    facts = {prop.key: prop.value for prop in onnx.load(folder / "onnx" / "end_to_end.onnx").metadata_props}
    assert "not the official protocol" in facts["protocol"] and json.loads(facts["id2label"])
    report = json.loads((folder / "onnx" / "export.json").read_text())
    assert 0 < report["end_to_end"]["equal_labels"] < 1


def test_the_file_tells_what_it_is(folder):
    network = onnx.load(folder / "onnx" / "model.onnx")
    facts = {entry.key: entry.value for entry in network.metadata_props}
    protocol, names = json.loads(facts["protocol"]), json.loads(facts["id2label"])
    assert protocol["window_size"] == 64 and len(protocol["image_mean"]) == 3 and protocol["size"]
    assert names == {str(key): name for key, name in Segmenter(folder / "model").model.config.id2label.items()}
    assert len(json.loads(facts["palette"])) == len(names)
    assert not any(node.metadata_props or node.doc_string for node in network.graph.node)  # of where code lies here
    assert not outside_webgpu(onnx.shape_inference.infer_shapes(network).graph)


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


@every_format
def test_images_together(folder, format):
    """At once where the graph takes any number, else one by one: the same for each."""
    model, images, seen = Segmenter(folder / format).model, torch.randn(3, 3, 64, 64), []
    network = model.network

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        seen.append(len(pixels))
        return network.run(pixels)

    model.network = Network(run, network.computes_in)
    takes_any = format == "onnx"
    assert model.config.batch_size == (None if takes_any else 1)
    together = model(images).logits
    model.config.batch_size = 1  # as of folders from before
    one_by_one = model(images).logits
    assert seen == ([3] if takes_any else [1] * 3) + [1] * 3
    with torch.no_grad():
        expected = Segmenter(folder / "model").model(images).logits
    for logits in (together, one_by_one):
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


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
        (("--dynamic", "--end-to-end"), "expected --end-to-end with the format onnx, and without --dynamic"),
        (("--photos", "nowhere"), "nowhere: no such file or folder"),
        (("--size", 0, 64), "expected a height and a width in pixels, got --size 0 64"),
        (("--size", 64, 96, "--dynamic"), "expected a network of one size (--size) or of any (--dynamic), got both"),
    ],
)
def test_wrong_options(folder, tmp_path, arguments, message):
    result = offseg("export", folder / "model", *arguments, "--output", tmp_path / "x")
    assert result.returncode == 1 and message in result.stderr and not (tmp_path / "x").exists()


def test_photos_are_stretched_to_a_size(folder):
    """The image processor's protocol is left where it gives that size already."""
    photos = [render_scene(0, (96, 128))[0], render_scene(1, (128, 96))[0]]
    segmenter = Segmenter(folder / "model")

    def seen(photo: Image.Image) -> list[tuple[int, ...]]:
        return [tuple(image.shape[-2:]) for image in images_of(segmenter.prepare(photo))]

    assert not stretch(segmenter, (64, 64), photos)
    assert len(seen(photos[0])) > 1 and set(seen(photos[0])) == {(64, 64)}
    assert stretch(segmenter, (48, 80), photos)
    assert seen(photos[0]) == seen(photos[1]) == [(48, 80)]
    segmenter.processor.size_divisor = 32
    with pytest.raises(ValueError, match="makes 64 x 96 of it: pass --size 64 96"):
        stretch(segmenter, (48, 80), photos)


@pytest.mark.slow
def test_a_network_of_a_size_of_ones_own(folder, tmp_path):
    result = offseg(
        *("export", folder / "model", "--size", 48, 80, "--end-to-end", "--dataset", folder / "scenes"),
        *("--output", tmp_path / "x"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "x" / "export.json").read_text())
    assert report["size"] == report["image"] == [48, 80] and report["equal_labels"] > 0.999
    assert 0 < report["stretched"]["equal_labels"] < 1
    official = json.loads((folder / "onnx" / "export.json").read_text())["torch_miou"]
    assert report["stretched"]["official_miou"] == official != report["torch_miou"]
    assert report["torch_miou"] == pytest.approx(report["runtime_miou"], abs=0.1)
    text = "not the official protocol: photos are stretched to 80x48 and seen whole"
    assert text in (tmp_path / "x" / "README.md").read_text() and text in " ".join(result.stdout.split())
    protocol = {each.key: each.value for each in onnx.load(tmp_path / "x" / "model.onnx").metadata_props}["protocol"]
    assert json.loads(protocol)["size"] == {"height": 48, "width": 80}
    assert Segmenter(tmp_path / "x")(render_scene(0, (96, 128))[0]).shape == (128, 96)


@pytest.mark.slow
def test_a_lower_score_is_no_file(folder, tmp_path):
    scores = {str(folder / "model"): 41.0}
    with pytest.raises(ValueError, match="expected at most 0.1 points of mIoU lost, got 0.50"):
        export_model(folder / "model", tmp_path / "x", score=lambda name: scores.get(name, 40.5))
    assert not list(tmp_path.iterdir())


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
    assert_same_logits(tmp_path, torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("family", ["offseg", "segformer", "segnext"])
def test_any_size(tmp_path, family, format):
    """Several images of sizes that the check did not see."""
    save_small_model(tmp_path / "model", family)
    report = export_model(tmp_path / "model", tmp_path / "x", options=ExportOptions(Format(format), dynamic=True))
    assert report["size"] is None and report["equal_labels"] > 0.999
    for shape in ((1, 3, 333, 501), (3, 3, 64, 64), (1, 3, 75, 62)):
        assert_same_logits(tmp_path, torch.randn(shape))
    if (family, format) == ("segformer", "torch"):  # whose keys would be one column
        with pytest.raises(ValueError, match=r"images of 75 x 50 .* are not such as this program of PyTorch takes"):
            Segmenter(tmp_path / "x").model(torch.randn(1, 3, 75, 50))
    else:
        assert_same_logits(tmp_path, torch.randn(1, 3, 75, 50))


def assert_same_logits(folder: Path, images: torch.Tensor) -> None:
    ours, theirs = Segmenter(folder / "model").model, Segmenter(folder / "x").model
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, ours(images).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "aotinductor"])
def test_programs_of_pytorch(folder, tmp_path, format):
    report = export_model(folder / "model", tmp_path / "x", options=ExportOptions(Format(format)))
    assert report["equal_labels"] > 0.999 and report["largest_difference"] < 1e-4
    shutil.copytree(folder / "model", tmp_path / "model")
    assert_same_logits(tmp_path, torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@every_format
def test_masks(tmp_path, format):
    """A Mask2Former, which sees photos whole."""
    tiny_model("mask2former", 0).save_pretrained(tmp_path / "model")
    tiny_processor("mask2former").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="segments into masks, which its image processor puts together"):
        export_model(tmp_path / "model", tmp_path / "x", options=ExportOptions(end_to_end=True))
    with pytest.raises(ValueError, match=r"encoder of windows \(swin\), .* Pass --size HEIGHT WIDTH"):
        export_model(tmp_path / "model", tmp_path / "x", options=ExportOptions(dynamic=True))
    report = export_model(tmp_path / "model", tmp_path / "x", options=ExportOptions(Format(format), size=(96, 128)))
    assert report["equal_labels"] > 0.999 and report["size"] == [96, 128]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8))
    ours, theirs = (Segmenter(tmp_path / name) for name in ("model", "x"))
    assert not stretch(theirs, (96, 128), [photo]) and stretch(ours, (96, 128), [photo])
    expected, labels = ours(photo), theirs(photo)
    assert expected.shape == labels.shape == (90, 121) and (expected == labels).mean() > 0.99
    parts = pipeline("image-segmentation", model=str(tmp_path / "x"))(photo, subtask="semantic")
    assert {part["label"] for part in parts} == {report_name(tmp_path, label) for label in np.unique(labels)}


def report_name(folder: Path, label: int) -> str:
    return json.loads((folder / "x" / "config.json").read_text())["id2label"][str(label)]


@pytest.mark.slow
def test_models_of_transformers(tmp_path):
    """As they are, and after `apply_offset_learning`."""
    config = SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=16, num_labels=4)
    model = SegformerForSemanticSegmentation(config).eval()
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 64})
    for name, each in (("plain", model), ("offset", apply_offset_learning(model))):
        each.save_pretrained(tmp_path / name / "model")
        processor.save_pretrained(tmp_path / name / "model")
        report = export_model(tmp_path / name / "model", tmp_path / name / "x")
        assert report["equal_labels"] > 0.999 and report["largest_difference"] < 1e-3 * report["largest_logit"]
        assert_same_logits(tmp_path / name, torch.randn(2, 3, 64, 64))


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
        torch.from_numpy(open_network(path / "model.onnx", "onnx", "int8").run(images[0].numpy())[0])
        for path in (folder / "onnx", tmp_path)
    )
    assert 0 < (exact - got).abs().mean() < 0.2 * exact.abs().mean()
