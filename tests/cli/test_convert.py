"""`offseg convert`: the conversion itself is tested in tests/conversion."""

import os

import torch
from PIL import Image

from offseg_hf.zoo.presets import PRESETS
from tests.cli.running import assert_one_line, offseg
from tests.parity.fill import official_state_dict


def test_convert_and_segment(photos, tmp_path):
    """From an official checkpoint to the label map of a photo."""
    preset = "segformer-b0-offset-ade"  # the smallest
    torch.save({"meta": {}, "state_dict": official_state_dict(preset)}, tmp_path / "official.pth")
    model = tmp_path / "model"
    result = offseg("convert", tmp_path / "official.pth", "--preset", preset, "--output", model)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith(f"{model}: {preset}, 3,884,940 parameters, from ")
    assert "dropped decode_head.conv_seg.weight" in result.stdout.splitlines()

    result = offseg("segment", photos / "0.png", "--model", model, "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert Image.open(tmp_path / "out" / "0_labels.png").size == (60, 40)


def test_convert_errors_are_one_line(tmp_path):
    checkpoint, output = tmp_path / "none.pth", tmp_path / "out"
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade20k", "--output", output)
    assert_one_line(
        result, "unknown preset 'offseg-t-ade20k' (did you mean offseg-t-ade, ", "`offseg presets` lists them"
    )
    assert sum(name in result.stderr for name in PRESETS) == 3
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(checkpoint))
    assert not output.exists()

    checkpoint.write_bytes(b"PK\x03\x04 and then the connection broke")
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(checkpoint))
    assert not output.exists()

    output.mkdir()
    (output / "mine.txt").write_text("mine")
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(output))
    assert os.listdir(output) == ["mine.txt"]
