"""`offseg finetune`, as a user runs it: a model and a folder of data, to a model that is better on it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from offseg_hf.data.scenes.folder import write_scenes
from tests.cli.running import assert_one_line, offseg
from tests.processes import run_together
from tests.small_model import save_small_model
from tests.training.tiny import write_segformer


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """A folder with `scenes`, `segformer` and `offseg`."""
    folder = tmp_path_factory.mktemp("things")
    write_scenes(folder / "scenes", train=6, val=2, size=(96, 64))
    write_segformer(folder / "segformer")
    save_small_model(folder / "offseg")
    return folder


def finetune(things: Path, model: str, output: Path, *arguments: str):
    common = ("--data", things / "scenes", "--model", things / model, "--output", output, "data.num_workers=0")
    return offseg("finetune", *common, *arguments)


def test_one_line(things, tmp_path):
    """With offset learning, patience that ends it, and more patience with which it goes on."""
    arguments = ("--epochs", "3", "--offset-learning", "optimizer.learning_rate=1e-12", "training.ema_decay=null")
    result = finetune(things, "segformer", tmp_path / "run", *arguments, "training.patience=1")
    assert result.returncode == 0, result.stderr
    said = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in said[1:6]] == ["data", "size", "length", "learning", "loss"]
    assert "6 iterations of 4 samples, 2 an epoch" in said[3]
    assert re.search(r"ended at iteration \d of 6: 1 evaluation in a row without a better mIoU", result.stderr)
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["model_type"] == "offset_learning"

    assert_one_line(finetune(things, "segformer", tmp_path / "run", *arguments), "--resume auto")
    result = finetune(things, "segformer", tmp_path / "run", *arguments, "training.patience=9", "--resume", "auto")
    assert result.returncode == 0 and "going on from" in result.stderr and "iteration 6: mIoU" in result.stderr


def test_offseg_with_its_encoder_frozen(things, tmp_path):
    result = finetune(things, "offseg", tmp_path / "run", "--epochs", "1", "--freeze-encoder")
    assert result.returncode == 0, result.stderr
    assert "the encoder frozen" in result.stderr and "iteration 2: mIoU" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--epochs", "2", "schedule.epochs=3"), 2, "expected schedule.epochs once, got --epochs and schedule.epochs"),
        (("--model", "offseg-t-ade"), 2, "expected a trained model, got the preset offseg-t-ade, which is an archi"),
        (("--backbone", "dinov2"), 2, "expected --model or --backbone, got --model and --backbone"),
        (("offseg-t-ade",), 2, "expected settings as key=value, got offseg-t-ade"),
        (("training.patients=3",), 1, "unknown key training.patients (did you mean training.patience?)"),
        (("--offset-learning",), 1, "model.offset_learning=true does not go with"),
        (("loss=[{kind: dice, gamma: 1}]",), 1, "loss[0]: gamma=1.0 has no effect, as kind=dice does not take it"),
    ],
)
def test_errors_are_one_line(things, tmp_path, arguments, code, message):
    result = finetune(things, "offseg", tmp_path / "run", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr.splitlines()[-1]


def test_what_is_no_backbone(things, tmp_path):
    arguments = ("--data", things / "scenes", "--backbone", things / "scenes", "--output", tmp_path / "run")
    assert_one_line(offseg("finetune", *arguments), "scenes: expected an image processor", "pass the image_mean")
    result = offseg("finetune", "--data", things / "scenes")
    assert result.returncode == 2 and "expected --model or --backbone, got neither" in result.stderr


def test_two_processes_fine_tune_together(things, tmp_path):
    """What was chosen is told once: of photos without a split to validate on, too. With adapters, which are merged."""
    shutil.copytree(things / "scenes", tmp_path / "scenes")
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / "scenes" / kind / "val")
    script = "import os, runpy, sys; os.environ['ACCELERATE_USE_CPU'] = 'true'; sys.argv[0] = 'offseg'; "
    script += "runpy.run_module('offseg_hf.cli', run_name='__main__')"  # as `accelerate launch --cpu` starts it
    common = ("--data", tmp_path / "scenes", "--model", things / "segformer", "--output", tmp_path / "run")
    first, second = run_together(2, script, "finetune", *common, "--epochs", "1", "--lora", "2", "data.num_workers=0")
    assert first.stderr.count("of warm-up") == first.stderr.count("no split to validate on: no groups to tell") == 1
    assert "2 processes on cpu" in first.stderr
    assert "warm-up" not in second.stderr
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "best" / "adapter" / "adapter_model.safetensors").is_file()
