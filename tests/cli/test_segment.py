import json
import os

import numpy as np
import pytest
from PIL import Image

from offseg_hf.data.scenes.street import render_scene
from offseg_hf.inference.segmenter import Segmenter
from tests.cli.running import MAIN, assert_one_line, offseg
from tests.processes import run_python


def test_segment(photos, model, tmp_path):
    output = tmp_path / "out"
    result = offseg("segment", photos, "--model", model, "--output", output, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"2 of 2 segmented, see {output}\n"
    suffixes = ("classes.json", "labels.png", "overlay.png")
    assert sorted(os.listdir(output)) == [f"{seed}_{suffix}" for seed in range(2) for suffix in suffixes]
    assert json.loads((output / "0_classes.json").read_text())["file"] == str(photos / "0.png")


def test_one_broken_among_many(photos, model, tmp_path):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:300])
    (photos / "nan.tif").parent.mkdir(exist_ok=True)
    Image.new("F", (8, 8), float("nan")).save(photos / "nan.tif")
    output = tmp_path / "out"
    inputs = [photos, photos / "missing.jpg", photos / "*.webp"]
    result = offseg("segment", *inputs, "--model", model, "--output", output)
    assert result.returncode == 1
    assert result.stdout == f"1 of 5 segmented, see {output}\n"
    lines = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        str(photos / name) for name in ("missing.jpg", "*.webp", "1.png", "nan.tif")
    ]
    assert lines[0].endswith("no such file or folder")
    assert "cannot be read as an image" in lines[2]
    assert "NaN" in lines[3]
    assert len(os.listdir(output)) == 3


def test_existing_outputs_are_kept(photos, model, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "0_labels.png").write_text("mine")
    arguments = ["segment", photos / "0.png", "--model", model, "--output", output]
    result = offseg(*arguments)
    assert (result.returncode, result.stdout) == (0, f"nothing to do: the results of all 1 exist, see {output}\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("kept: ") and str(output / "0_labels.png") in line and "--overwrite" in line
    assert (output / "0_labels.png").read_text() == "mine"
    assert offseg(*arguments, "--overwrite").returncode == 0
    assert Image.open(output / "0_labels.png").size == (60, 40)


def test_bad_inputs_are_one_line(photos, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    for name, message in {
        "none.jpg": "no such file or folder",
        "*.bmp": "no image matches this pattern",
        "empty": "no images in this folder",
        "text.jpg": "cannot be read as an image",
    }.items():
        output = tmp_path / "out"
        result = offseg("segment", tmp_path / name, "--model", model, "--output", output)
        assert_one_line(result, str(tmp_path / name), message)
        assert not output.exists() or not os.listdir(output)


def test_bad_models_are_one_line(photos, model, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for name, message in {
        photos: "has no config.json",
        photos / "0.png": "is not the folder of a model",
        tmp_path / "nowhere": "no such folder",
        "nobody/nothing": "no such folder, and the Hub gives none: offline mode is on (HF_HUB_OFFLINE)",
        tmp_path: "cannot load a segmentation model",
    }.items():
        result = offseg("segment", photos / "0.png", "--model", name, "--output", tmp_path / "out")
        assert_one_line(result, str(name), message)


def test_outputs_that_cannot_be_written(photos, model, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for output, reason in {file: "it is a file", file / "out": "Not a directory"}.items():
        result = offseg("segment", photos, "--model", model, "--output", output)
        assert_one_line(result, f"cannot write to the folder {output}: {reason}")
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(photos, model, tmp_path):
    tmp_path.chmod(0o500)
    result = offseg("segment", photos, "--model", model, "--output", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert_one_line(result, "Permission denied")


def test_device_and_traceback(photos, model, tmp_path):
    arguments = ["segment", photos, "--model", model, "--output", tmp_path / "out", "--device", "tpu9"]
    assert_one_line(offseg(*arguments), "cannot use the device 'tpu9'")
    result = offseg(*arguments, OFFSEG_DEBUG="1")
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_labels_to_train_on(photos, model, tmp_path):
    output, segmenter = tmp_path / "pseudo", Segmenter(model, device="cpu")
    inputs = segmenter.prepare(Image.open(photos / "0.png"))
    middle = float(np.median(segmenter.with_confidence([inputs], [(40, 60)])[0][1]))
    arguments = ["segment", photos, "--model", model, "--output", output, "--format", "dataset"]
    arguments += ["--confidence", middle]
    result = offseg(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(os.listdir(output)) == ["classes.json", "images", "masks"]
    assert 0.4 < np.mean(np.asarray(Image.open(output / "masks" / "train" / "0.png")) == 255) < 0.6
    assert offseg("data", "check", output).returncode == 0
    assert "the results of all 2 exist" in offseg(*arguments).stdout


def test_pre_annotations(photos, model, tmp_path):
    for name, files in {
        "label-studio": ["0_task.json", "1_task.json", "labeling_config.xml"],
        "fiftyone": ["0_mask.png", "0_sample.json", "1_mask.png", "1_sample.json", "mask_targets.json"],
    }.items():
        result = offseg("segment", photos, "--model", model, "--output", tmp_path / name, "--format", name)
        assert (result.returncode, sorted(os.listdir(tmp_path / name))) == (0, files)
    result = offseg("data", "convert", tmp_path / "label-studio", "--images", photos, "--output", tmp_path / "data")
    assert result.returncode == 0 and "predictions of a model" in result.stdout + result.stderr


def test_options_without_effect(photos, tmp_path):
    arguments = ["segment", photos, "--model", "none", "--output", tmp_path / "out"]
    assert_one_line(
        offseg(*arguments, "--confidence", "0.9"), "--confidence is for labels", "pass --format (dataset, "
    )
    result = offseg(*arguments, "--format", "dataset", "--opacity", "0.5")
    assert_one_line(result, "--opacity is for pictures, and --format dataset writes none")


# The command in a process of its own, whose stderr is a terminal: what is drawn there, with its exit code.
ON_A_TERMINAL = f"""
import os, pty, sys
terminal, stderr = pty.openpty()
command = os.fork()
if not command:
    os.dup2(stderr, 2)
    os.close(terminal)
    {MAIN}
os.close(stderr)
try:
    while chunk := os.read(terminal, 4096):
        os.write(1, chunk)
except OSError:  # how Linux says that the other end is closed
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_progress_is_for_terminals(photos, model, tmp_path):
    """On a terminal a bar is drawn; elsewhere (test_segment) nothing."""
    arguments = ["segment", photos, "--model", model, "--output", tmp_path / "out"]
    process = run_python(ON_A_TERMINAL, *arguments, COLUMNS="200", NO_COLOR="1", TERM="xterm")
    assert "2/2" in process.stdout and "━" in process.stdout


# The same, which gets Ctrl-C when its first output is there. A job in the background of a shell ignores Ctrl-C, and so
# do its children: the tests may be such a job.
INTERRUPTED = f"""
import os, signal, sys, time
from pathlib import Path
command = os.fork()
if not command:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {MAIN}
deadline = time.monotonic() + 120
while not list(Path(sys.argv[-1]).glob("*_classes.json")) and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(command, signal.SIGINT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_interrupt(model, tmp_path):
    """Ctrl-C: exit code 130, one line, and every output that is there is whole."""
    render_scene(0, (240, 160))[0].save(tmp_path / "000.jpg")
    for index in range(1, 400):
        os.link(tmp_path / "000.jpg", tmp_path / f"{index:03}.jpg")
    output = tmp_path / "out"
    arguments = ["segment", tmp_path, "--model", model, "--output", output]
    process = run_python(INTERRUPTED, *arguments, check=False, COLUMNS="200", NO_COLOR="1")
    assert (process.returncode, process.stderr) == (130, "interrupted\n")
    files = os.listdir(output)
    assert 0 < len(files) < 1200 and len(files) % 3 == 0
    for name in files:
        if name.endswith(".png"):
            Image.open(output / name).load()
        else:
            json.loads((output / name).read_text())
