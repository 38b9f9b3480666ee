"""Label sets of one's own: more classes than 8 bits hold, and another value than 255 where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

from offseg_hf import OffsetMask2FormerForUniversalSegmentation
from tests.tiny import MASK2FORMER
from tests.training.tiny import RECIPE


def write_data(folder: Path, num_classes: int, ignore_index: int) -> None:
    """Photos of noise in which blocks of 8x8 pixels are of the first, last and other classes, or of none."""
    folder.mkdir()
    names = [f"class {index}" for index in range(num_classes)]
    (folder / "classes.json").write_text(json.dumps({"classes": names, "ignore_index": ignore_index}))
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            ids = rng.integers(0, num_classes, (8, 12))
            ids[0], ids[1], ids[2] = num_classes - 1, ignore_index, min(255, num_classes - 1)
            ids = ids.repeat(8, 0).repeat(8, 1).astype(np.uint8 if ignore_index < 256 else np.uint16)
            photo = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            for kind, array in (("images", photo), ("masks", ids)):
                path = folder / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


@pytest.mark.parametrize("num_classes, ignore_index", [(9, 100), (300, 65534)])
@pytest.mark.parametrize("model", ["offseg", pytest.param("mask2former", marks=pytest.mark.slow)])
def test_they_train(processes, tmp_path, num_classes, ignore_index, model):
    write_data(tmp_path / "data", num_classes, ignore_index)
    values = yaml.safe_load(RECIPE)
    values["data"]["source"] = str(tmp_path / "data")
    values["augmentation"] |= {"ratio_range": [0.5, 0.5]}  # smaller than the crop, so that it is padded
    values["schedule"] = {"iterations": 2}
    if model == "mask2former":
        values["model"] = {"preset": "mask2former-swin-t-offset-ade", "config": MASK2FORMER}
        values["optimizer"] |= {"max_gradient_norm": 0.01, "encoder_multiplier": 0.1}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    processes.run(tmp_path / "own.yaml", "--output", tmp_path / "run")
    first, second, evaluated = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert np.isfinite([first["loss"], second["loss"]]).all() and first["loss"] != second["loss"]
    assert 0 <= evaluated["mIoU"] < 1
    if model == "offseg":
        trained = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last")
        assert trained.config.semantic_loss_ignore_index == ignore_index
    else:
        trained = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run" / "last")
        assert isinstance(trained, OffsetMask2FormerForUniversalSegmentation)
    assert trained.config.num_labels == num_classes
