"""SegFormer with offset learning is loaded as it was saved, also by other processes and as remote code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import SegformerConfig, SegformerModel

from offseg_hf import OffSegImageProcessor, OffsetSegformerForSemanticSegmentation
from tests.comparison import assert_same_outputs, assert_same_weights
from tests.models.test_modeling_offset_segformer import ENCODER, small_model
from tests.processes import run_python


@pytest.fixture(scope="module")
def model() -> OffsetSegformerForSemanticSegmentation:
    return small_model()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("key_mapping", [None, {"^elsewhere": "segformer"}])
def test_second_generation(model, original, key_mapping, tmp_path):
    """Whatever the names in the file and however it was loaded: all is loaded, and saved with our names."""
    model.save_pretrained(tmp_path / "first", save_original_format=original)
    assert any(".encoder.block." in name for name in stored(tmp_path / "first")) == original
    loaded, report = OffsetSegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "first", key_mapping=key_mapping, output_loading_info=True
    )
    assert not any(report.values())
    loaded.save_pretrained(tmp_path / "second")
    assert_same_weights(stored(tmp_path / "second"), model)
    again = OffsetSegformerForSemanticSegmentation.from_pretrained(tmp_path / "second")
    assert_same_weights(again.state_dict(), model)
    assert {m.eps for m in again.segformer.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


REMOTE = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
folder = sys.argv[1]

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

trust = {"trust_remote_code": True}
photo = Image.open(f"{folder}/photo.png")
model = AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/model", **trust)
processor = AutoImageProcessor.from_pretrained(f"{folder}/model", **trust)
assert all(type(x).__module__.startswith("transformers_modules.") for x in (model, model.config, processor))
inputs = processor(photo, return_tensors="pt")
with torch.no_grad():
    logits, fused = model(**inputs).logits, model.fuse()(**inputs).logits
segments = pipeline("image-segmentation", model=f"{folder}/model", **trust)(photo)
masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
assert (masks.sum(axis=0, dtype=int) == 255).all()

model.save_pretrained(f"{folder}/again")
again = AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/again", **trust)
assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))

# The class from the Hub starts from a SegFormer too.
pretrained, report = type(model).from_pretrained(f"{folder}/stock", num_labels=7, output_loading_info=True)
assert not any(key.startswith("segformer.") for key in report["missing_keys"])
torch.save((model.state_dict(), logits, fused, pretrained.segformer.state_dict()), f"{folder}/outputs.pt")
"""


@torch.no_grad()
def test_remote_code(model, tmp_path):
    """A saved folder works where offseg_hf is not installed."""
    processor = OffSegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, window_size=64, window_stride=48)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    stock = SegformerModel(SegformerConfig(**ENCODER))
    stock.load_state_dict(model.segformer.state_dict())
    stock.save_pretrained(tmp_path / "stock")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(tmp_path / "photo.png")

    run_python(REMOTE, tmp_path, cwd=tmp_path)  # not in the repository
    state_dict, logits, fused, encoder = torch.load(tmp_path / "outputs.pt")
    assert_same_weights(state_dict, model)
    assert_same_weights(encoder, model.segformer)
    inputs = processor(Image.open(tmp_path / "photo.png"), return_tensors="pt")
    assert_same_outputs((logits, fused), (model(**inputs).logits,) * 2)
    written = {path.name for path in (tmp_path / "model").glob("*.py")}
    assert {"modeling_offset_segformer.py", "configuration_offset_segformer.py"} < written
    assert "modeling_offseg.py" not in written
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["model_type"] == "offset_segformer"
    assert all("--" not in reference for reference in config["auto_map"].values())
