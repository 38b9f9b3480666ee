"""Adapters on the Hub: a model for everyone, and beside it what its card's code puts on what it began with."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessorPil, Dinov2Model

from tests.backbones import backbone_config
from tests.tiny import random_values
from tests.training.tiny import write_own, write_segformer


pytest_plugins = ["tests.local_hub.fixtures"]

TRAIN = """
import json
import re
import shutil
import sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForSemanticSegmentation
from offseg_hf.hub.push import push_model
from offseg_hf.training.finetuning import fit_recipe
from offseg_hf.training.loop import train

folder, *settings = sys.argv[1:]
api = HfApi()
api.create_repo("tester/base", exist_ok=True)
api.upload_folder(repo_id="tester/base", folder_path=f"{folder}/base", delete_patterns="*")
recipe, _ = fit_recipe([f"data.source={folder}/data", *settings], Path(f"{folder}/run"))
train(recipe, f"{folder}/run")
upload = push_model(f"{folder}/run/best", "tester/tuned")
pixel_values = torch.randn(1, 3, 64, 64)


@torch.no_grad()
def logits(model):
    return model(pixel_values).logits


tuned = AutoModelForSemanticSegmentation.from_pretrained("tester/tuned")
card = open(api.hf_hub_download("tester/tuned", "README.md")).read()
(code,) = [block for block in re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL) if "peft" in block]
exec(code)
torch.testing.assert_close(logits(model), logits(tuned), atol=1e-4, rtol=1e-3)
shutil.rmtree(f"{folder}/run/best/adapter")  # what has none takes their place
after = push_model(f"{folder}/run/best", "tester/tuned").changes
print(json.dumps([code, sorted(upload.changes.add), after.delete, after.add["README.md"].decode()]))
"""
SETTINGS = (
    "model.lora_rank=2",
    "optimizer.learning_rate=0.01",
    "augmentation.crop_size=[64,64]",
    "data.num_workers=0",
    "schedule.epochs=1",
    "training={batch_size: 4, ema_decay: null}",
)
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


def train_and_push(local_hub, folder: Path, *settings: str) -> str:
    """Returns the code of the card that puts the adapters on their base."""
    write_own(folder / "data")
    printed = local_hub.run(TRAIN, folder, *SETTINGS, *settings)
    code, added, deleted, card = json.loads(printed.splitlines()[-1])
    assert set(added) > ADAPTER and set(deleted) == ADAPTER and "peft" not in card
    return code


@pytest.mark.slow
def test_of_a_checkpoint(local_hub, tmp_path):
    """Of other classes."""
    write_segformer(tmp_path / "base", ["sky", "sea"])
    code = train_and_push(local_hub, tmp_path, "model.checkpoint=tester/base")
    assert 'from_pretrained("tester/base", num_labels=3, ignore_mismatched_sizes=True)' in code


@pytest.mark.slow
def test_with_offset_learning(local_hub, tmp_path):
    write_segformer(tmp_path / "base", ["sky", "sea"])
    code = train_and_push(local_hub, tmp_path, "model.checkpoint=tester/base", "model.offset_learning=true")
    assert "base = apply_offset_learning(AutoModelForSemanticSegmentation.from_pretrained(" in code


@pytest.mark.slow
def test_of_a_backbone(local_hub, tmp_path):
    torch.manual_seed(0)
    random_values(Dinov2Model(backbone_config("dinov2"))).save_pretrained(tmp_path / "base")
    BitImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "base")
    small = "model.config={lateral_channels: [32, 32, 32, 32], decoder_hidden_size: 32}"
    code = train_and_push(local_hub, tmp_path, "model.backbone=tester/base", small)
    assert (
        'from_backbone("tester/base", num_labels=3, lateral_channels=[32, 32, 32, 32], decoder_hidden_size=32)' in code
    )
