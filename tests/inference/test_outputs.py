"""Labels of photos for other programs: they read back as the label maps that the model makes."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf import load_segmentation_data
from offseg_hf.data.check import check_segmentation_data
from offseg_hf.data.dataset import sample_names
from offseg_hf.data.formats.convert import convert_segmentation_data
from offseg_hf.data.formats.masks import decode_brush, encode_brush
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.inference.confidence import confidence_of_rows
from offseg_hf.inference.files import plan, read_photo, segment
from offseg_hf.inference.outputs import FiftyOne, LabelStudio, OutputKind, TrainingData
from offseg_hf.inference.segmenter import Segmenter
from tests.semantic_models import pass_signals
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor
from tests.training.tiny import write_segformer


CONFIDENCE = 0.33
NAMES = SCENE_LABELS.names


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Segmenter:
    segmenter = Segmenter(save_small_model(tmp_path_factory.mktemp("model"), "segformer"), device="cpu")
    pass_signals(segmenter.model)
    return segmenter


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Of several sizes, cut into windows; one lies on its side, one is in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "in ner").mkdir()
    for index, name in enumerate(("a.png", "b.jpg", "in ner/ü 1.png")):
        render_scene(index, (90 + 20 * index, 60))[0].save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    render_scene(3, (100, 70))[0].save(folder / "turned.jpg", exif=turned)
    return folder


def write(photos: Path, output: Path, segmenter: Segmenter, kind: OutputKind, confidence: float | None) -> None:
    jobs, outcomes = plan([photos], output, kind=kind)
    assert not outcomes
    assert {outcome.status for outcome in segment(jobs, segmenter, confidence)} == {"written"}
    jobs, outcomes = plan([photos], output, kind=kind)  # as after an interruption
    assert not jobs and {outcome.status for outcome in outcomes} == {"kept"}


def problems_of(folder: Path) -> list:
    return [problem for report in check_segmentation_data(folder) for problem in report.problems]


def label_map_of(path: Path, segmenter: Segmenter, confidence: float | None) -> np.ndarray:
    """Label map of a photo, -1 where the plain softmax of plainly upsampled scores is too small."""
    photo = read_photo(path)
    inputs = segmenter.prepare(photo)
    label_map = segmenter(photo).astype(np.int64)
    if confidence is None:
        return label_map
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    (result,) = segmenter.processor.post_process_semantic_segmentation(
        outputs, target_sizes=[label_map.shape], return_segmentation_scores=True
    )
    highest = result.segmentation_scores.softmax(dim=0).amax(dim=0).numpy()
    assert 0.02 < (highest < confidence).mean() < 0.98
    assert not (np.abs(highest - confidence) < 1e-6).any()
    return np.where(highest < confidence, -1, label_map)


@pytest.mark.parametrize("confidence", [None, CONFIDENCE])
def test_a_folder_to_train_on(photos, segmenter, tmp_path, confidence):
    output = tmp_path / "pseudo"
    write(photos, output, segmenter, TrainingData(), confidence)
    assert not problems_of(output)
    data = load_segmentation_data(output, "train")
    assert tuple(data.features["label"].names) == NAMES
    found = {Path(path).name: np.asarray(row["label"]).astype(int) for path, row in zip(sample_names(data), data)}
    assert len(found) == 4
    for name in ("a.png", "b.jpg", "ü 1.png", "turned.jpg"):
        (source,) = photos.rglob(name)
        expected = label_map_of(source, segmenter, confidence)
        assert np.array_equal(found[name], np.where(expected < 0, 255, expected))
        (copy,) = (output / "images").rglob(name)
        assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("confidence", [None, CONFIDENCE])
def test_pre_annotations_of_label_studio_read_back(photos, segmenter, tmp_path, confidence):
    output = tmp_path / "tasks"
    write(photos, output, segmenter, LabelStudio(), confidence)
    conversion = convert_segmentation_data(output, tmp_path / "data", images=photos, uncovered="void")
    assert any("predictions of a model" in note for note in conversion.notes)
    assert sum(conversion.splits.values()) == 4
    names = np.asarray([*conversion.labels.names])
    for mask in (tmp_path / "data" / "masks").rglob("*.png"):
        image = next((tmp_path / "data" / "images").rglob(f"{mask.stem}.*"))
        (source,) = [path for path in photos.rglob("*.*") if path.read_bytes() == image.read_bytes()]
        ids = np.asarray(Image.open(mask)).astype(int)
        expected = label_map_of(source, segmenter, confidence)
        assert np.array_equal(ids == 255, expected < 0)
        assert np.array_equal(names[ids[ids != 255]], np.asarray(NAMES)[expected[expected >= 0]])

    (task,) = json.loads((output / "in ner" / "ü 1_task.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=in%20ner/%C3%BC%201.png"
    config = ElementTree.parse(output / "labeling_config.xml")
    assert [label.get("value") for label in config.iter("Label")] == list(NAMES)
    (brush,) = config.iter("BrushLabels")
    assert {(each["from_name"], each["to_name"]) for each in task["predictions"][0]["result"]} == {
        (brush.get("name"), brush.get("toName"))
    }


def test_samples_of_fiftyone(photos, segmenter, tmp_path):
    output = tmp_path / "fiftyone"
    write(photos, output, segmenter, FiftyOne(), CONFIDENCE)
    samples = [json.loads(path.read_text()) for path in output.rglob("*_sample.json")]
    assert len(samples) == 4
    targets = json.loads((output / "mask_targets.json").read_text())
    assert targets == {str(index + 1): name for index, name in enumerate(NAMES)}
    for sample in samples:
        assert sample["predictions"]["_cls"] == "Segmentation"
        mask = np.asarray(Image.open(sample["predictions"]["mask_path"])).astype(int)
        assert np.array_equal(mask, label_map_of(Path(sample["filepath"]), segmenter, CONFIDENCE) + 1)


# -- going on, and what is not replaced -------------------------------------------------------------------------------


def test_a_photo_without_its_mask_is_done_again(photos, segmenter, tmp_path):
    """As a kill leaves it between the two."""
    write(photos, tmp_path, segmenter, TrainingData(), None)
    (tmp_path / "masks" / "train" / "turned.png").unlink()
    (job,), outcomes = plan([photos], tmp_path, kind=TrainingData())
    assert job.source.name == "turned.jpg" and len(outcomes) == 3
    assert [outcome.status for outcome in segment([job], segmenter)] == ["written"]
    assert not problems_of(tmp_path)
    (tmp_path / "images" / "train" / "turned.jpg").write_bytes(b"mine")
    (outcome,) = segment([job], segmenter)
    assert outcome.status == "failed" and "turned.jpg exists and is another photo" in outcome.message
    assert (tmp_path / "images" / "train" / "turned.jpg").read_bytes() == b"mine"


def test_a_folder_of_other_classes(photos, segmenter, tmp_path):
    (tmp_path / "classes.json").write_text('{"classes": ["cat", "dog"]}')
    jobs, _ = plan([photos], tmp_path, kind=TrainingData())
    with pytest.raises(ValueError, match=r"classes.json has other classes than the model"):
        next(segment(jobs, segmenter))
    assert os.listdir(tmp_path) == ["classes.json"]


# -- confidence and run lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 56), (10, 14), (5, 30), (11, 9), (70, 3)])
def test_confidence_is_the_softmax(size):
    scores = torch.randn(7, 10, 14, generator=torch.Generator().manual_seed(0)) * 3
    upsampled = torch.nn.functional.interpolate(scores[None], size=size, mode="bilinear")[0]
    label_map = upsampled.argmax(dim=0)
    for band_values in (1, 500, 2**22):
        found = confidence_of_rows(lambda top, bottom: scores[:, top:bottom], (7, 10, 14), label_map, band_values)
        torch.testing.assert_close(found, upsampled.softmax(dim=0).amax(dim=0))


def test_confidence_of_a_model_of_transformers(tmp_path):
    """Without windows; its labels are those without a confidence."""
    segmenter = Segmenter(write_segformer(tmp_path), device="cpu")
    photo = render_scene(0, (90, 60))[0]
    inputs = segmenter.prepare(photo)
    ((label_map, confidence),) = segmenter.with_confidence([inputs], [(60, 90)])
    assert np.array_equal(label_map, segmenter(photo))
    with torch.no_grad():
        logits = segmenter.model(**inputs).logits
    scores = torch.nn.functional.interpolate(logits, size=(60, 90), mode="bilinear")[0]
    assert np.allclose(confidence, scores.softmax(dim=0).amax(dim=0), atol=1e-6)


def test_a_model_of_masks_has_no_confidence(photos, tmp_path):
    tiny_model("mask2former").save_pretrained(tmp_path / "model")
    tiny_processor("mask2former").save_pretrained(tmp_path / "model")
    jobs, _ = plan([photos / "a.png"], tmp_path / "out", kind=TrainingData())
    (outcome,) = segment(jobs, Segmenter(tmp_path / "model", device="cpu"), CONFIDENCE)
    assert outcome.status == "failed" and "has no probabilities of classes at pixels" in outcome.message


@pytest.mark.parametrize("kind", ["random", "none", "all", "one"])
def test_brush(kind):
    shape = (300, 257)  # runs beyond 2 ** 16 bytes of RGBA
    masks = {
        "random": np.random.default_rng(0).random(shape) < 0.5,
        "none": np.zeros(shape, bool),
        "all": np.ones(shape, bool),
        "one": np.eye(*shape, dtype=bool),
    }
    assert np.array_equal(decode_brush(encode_brush(masks[kind]), shape[::-1]), masks[kind])
