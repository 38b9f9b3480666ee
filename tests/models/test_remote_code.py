"""A saved folder is complete for the Hub: with `trust_remote_code=True` it works where offseg_hf is not installed.

Everything runs in one process of its own, in which importing offseg_hf fails and nobody answers questions.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf import (
    EfficientFormerV2Backbone,
    EfficientFormerV2Config,
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffSegImageProcessor,
)
from tests.comparison import assert_same_outputs, sure_pixels
from tests.processes import run_python
from tests.tiny import EFFICIENTFORMER, NAMES, OFFSEG


SCRIPT = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
folder = sys.argv[1]

import numpy as np
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

trust = {"trust_remote_code": True}
photo = Image.open(f"{folder}/photo.png")
model = AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/offseg", **trust)
processor = AutoImageProcessor.from_pretrained(f"{folder}/offseg", **trust)
# The method itself takes names on the Hub only: before this, it asks there whether the name exists.
backbone = super(AutoBackbone.__base__, AutoBackbone).from_pretrained(f"{folder}/backbone", **trust)
# The folder of a segmentation model names the class that takes its encoder alone.
encoder = super(AutoBackbone.__base__, AutoBackbone).from_pretrained(
    f"{folder}/offseg", out_features=["stage2", "stage4"], **trust
)
segment = pipeline("image-segmentation", model=f"{folder}/offseg", **trust)
origins = {type(part).__module__ for part in (model, model.config, processor, backbone, encoder, segment.model)}
assert all(origin.startswith("transformers_modules.") for origin in origins), origins

inputs = processor(photo, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
    fused = model.fuse()(**inputs).logits
    feature_maps = backbone(inputs.pixel_values).feature_maps
    encoder_maps = encoder(inputs.pixel_values).feature_maps
segments = [(segment["label"], np.asarray(segment["mask"])) for segment in segment(photo)]
torch.save((logits, fused, list(feature_maps), list(encoder_maps)), f"{folder}/outputs.pt")
np.savez(f"{folder}/segments.npz", **dict(segments))

# What came from the Hub can be saved, with its code, and loaded again.
model.save_pretrained(f"{folder}/again")
processor.save_pretrained(f"{folder}/again")
again = AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/again", **trust)
inputs = AutoImageProcessor.from_pretrained(f"{folder}/again", **trust)(photo, return_tensors="pt")
with torch.no_grad():
    torch.save(again(**inputs).logits, f"{folder}/again.pt")
"""


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    model = OffSegForSemanticSegmentation(OffSegConfig(**OFFSEG, **NAMES, layer_scale_init_value=0.5)).eval()
    backbone = EfficientFormerV2Backbone(
        EfficientFormerV2Config(**EFFICIENTFORMER, layer_scale_init_value=0.5, out_features=["stage2", "stage4"])
    ).eval()
    processor = OffSegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, window_size=64, window_stride=48)
    return model, backbone, processor


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Saved models, and beside them what the process without the package wrote."""
    folder = tmp_path_factory.mktemp("hub")
    model, backbone, processor = models
    for part, name in ((model, "offseg"), (processor, "offseg"), (backbone, "backbone")):
        part.save_pretrained(folder / name)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(folder / "photo.png")
    run_python(SCRIPT, folder, cwd=folder)  # not in the repository
    return folder


@torch.no_grad()
def test_outputs_are_the_same(models, folder):
    model, backbone, processor = models
    inputs = processor(Image.open(folder / "photo.png"), return_tensors="pt")
    logits, fused, feature_maps, encoder_maps = torch.load(folder / "outputs.pt")
    assert_same_outputs(torch.load(folder / "again.pt"), logits)
    assert_same_outputs((logits, fused), (model(**inputs).logits,) * 2)
    assert_same_outputs(feature_maps, backbone(inputs.pixel_values).feature_maps)
    encoded = model(inputs.pixel_values, output_hidden_states=True).hidden_states
    for feature_map, expected in zip(encoder_maps, encoded[1::2], strict=True):
        assert_same_outputs(feature_map, expected[..., : feature_map.shape[-2], : feature_map.shape[-1]])


@torch.no_grad()
def test_pipeline_is_the_same(models, folder):
    model, _, processor = models
    photo = Image.open(folder / "photo.png")
    output = model(**processor(photo, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[(120, 160)], return_segmentation_scores=True
    )
    sure = sure_pixels(expected["segmentation_scores"]).numpy()
    label_map = expected["segmentation"].numpy()
    assert sure.mean() > 0.99
    with np.load(folder / "segments.npz") as segments:
        for label, mask in segments.items():
            assert np.array_equal(mask[sure] == 255, label_map[sure] == model.config.label2id[label])
        assert set(segments) >= {model.config.id2label[i] for i in np.unique(label_map[sure])}
        assert len(segments) > 1


def test_folder_is_complete(folder):
    """Every folder holds its code, and nothing that its code does not import."""
    for name, parts in (("offseg", ("modeling", "configuration", "image_processing")), ("backbone", ("modeling",))):
        written = {path.name for path in (folder / name).glob("*.py")}
        assert {f"{part}_offseg.py" for part in parts} < written
        config = json.loads((folder / name / "config.json").read_text())
        assert all("--" not in reference for reference in config["auto_map"].values())
    assert {path.name for path in (folder / "again").iterdir()} == {
        path.name for path in (folder / "offseg").iterdir()
    }


def test_processor_has_both_backends(folder):
    """`AutoImageProcessor` wants a class named for each of them, or it asks a question."""
    settings = json.loads((folder / "offseg" / "preprocessor_config.json").read_text())
    assert settings["auto_map"]["AutoImageProcessor"] == dict.fromkeys(
        ("torchvision", "pil"), "image_processing_offseg.OffSegImageProcessor"
    )
