"""The pipeline gives what image processor and model give, whatever kind of image goes in and whatever the way in."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from offseg_hf.inference.pipeline import OffSegImageSegmentationPipeline
from tests.small_model import save_small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"), "segformer")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of 16 bits, of floats, of a palette, and turned."""
    folder = tmp_path_factory.mktemp("pictures")
    ramp = np.add.outer(np.arange(48) * 700, np.arange(70) * 400).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    Image.fromarray((ramp / 256).astype(np.float32)).save(folder / "float.tiff")
    Image.fromarray((ramp // 256).astype(np.uint8)).convert("P").save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((ramp // 256).astype(np.uint8)).convert("RGB").save(folder / "turned.jpg", exif=exif)
    return folder


def label_map(segments, config):
    classes = np.full(segments[0]["mask"].size[::-1], -1)
    for segment in segments:
        classes[np.asarray(segment["mask"]) == 255] = config.label2id[segment["label"]]
    return classes


@pytest.mark.parametrize("name", ["deep.png", "float.tiff", "palette.png", "turned.jpg"])
def test_pictures_of_every_kind(folder, pictures, name):
    segment = pipeline("image-segmentation", model=str(folder))
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    path = pictures / name
    inputs = processor(path, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    size = (70, 48) if name == "turned.jpg" else (48, 70)
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    text = base64.b64encode(path.read_bytes()).decode()
    for source in (str(path), Image.open(path), text):
        got = label_map(segment(source), model.config)
        assert got.shape == size and (got == expected.numpy()).mean() > 0.999
    several = segment([str(path), str(path)], batch_size=2)
    assert all((label_map(segments, model.config) == expected.numpy()).mean() > 0.999 for segments in several)


def test_it_is_the_stock_pipeline_for_others(pictures, tmp_path):
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes)).save_pretrained(tmp_path)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    ours = pipeline("image-segmentation", model=str(tmp_path))
    stock = ImageSegmentationPipeline(model=ours.model, image_processor=ours.image_processor)
    for name in ("palette.png", "turned.jpg"):
        got, expected = (label_map(each(str(pictures / name)), ours.model.config) for each in (ours, stock))
        assert np.array_equal(got, expected)


def test_it_takes_the_place_of_the_stock_one(folder):
    task = PIPELINE_REGISTRY.supported_tasks["image-segmentation"]
    assert task["impl"] is OffSegImageSegmentationPipeline
    assert {"impl", "pt", "default", "type"} == task.keys()
    segment = pipeline("image-segmentation", model=str(folder))
    assert isinstance(segment, ImageSegmentationPipeline) and segment.task == "image-segmentation"


def test_errors_name_the_file(folder, pictures, tmp_path):
    whole = (pictures / "deep.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    segment = pipeline("image-segmentation", model=str(folder))
    with pytest.raises(ValueError, match=r"image \(.*broken.png\): cannot be decoded"):
        segment(str(tmp_path / "broken.png"))
