"""`offseg segment` on videos, as a user runs it."""

import json
import os

import pytest
from PIL import Image

from tests.cli.running import MAIN, assert_one_line, offseg
from tests.inference.videos import camera_on_the_network, decoded, scenes, write_video
from tests.processes import run_python


def test_videos_and_photos(model, photos, tmp_path):
    video, output = write_video(tmp_path / "drive.mp4", scenes(6), sound=True), tmp_path / "out"
    arguments = ["segment", video, photos / "0.png", tmp_path / "no.mp4", "--model", model, "--output", output]
    result = offseg(*arguments, "--every", "2", "--smooth", "0.5", "--label-maps", "--opacity", "0.4")
    assert result.returncode == 1  # for what is not there
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / 'no.mp4'}: no such file",
        f"{video}: its sound is left out",
    ]
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{video}: 3 frames, ") and first.endswith(f" a second, see {output}/drive_overlay.mp4")
    assert second == f"2 of 3 segmented, see {output}"
    assert sorted(os.listdir(output / "drive_labels")) == ["000000.png", "000002.png", "000004.png"]
    assert len(decoded(output / "drive_overlay.mp4")[1]) == 3
    assert json.loads((output / "0_classes.json").read_text())["file"] == str(photos / "0.png")
    result = offseg("segment", video, "--model", model, "--output", output)
    assert (result.returncode, result.stdout) == (0, f"nothing to do: the results of all 1 exist, see {output}\n")


@pytest.mark.parametrize(
    ("inputs", "arguments", "parts"),
    [
        (["a.jpg"], ["--every", "2"], ["--every is for videos, and none is among the inputs"]),
        (["a.jpg"], ["--fps", "2"], ["--fps is for videos"]),
        (["a.jpg"], ["--smooth", "0.5"], ["--smooth is for videos"]),
        (["a.jpg"], ["--label-maps"], ["--label-maps is for videos"]),
        (["a.mp4"], ["--format", "dataset"], ["--format dataset is for photos", "segment it apart"]),
        (["a.mp4"], ["--every", "2", "--fps", "1"], ["pass one of them"]),
        (["a.mp4"], ["--smooth", "1"], ["between 0 and 1"]),
    ],
)
def test_options_without_effect(tmp_path, inputs, arguments, parts):
    result = offseg("segment", *inputs, "--model", "none", "--output", tmp_path / "out", *arguments)
    assert_one_line(result, *parts)


def test_what_is_no_video(model, tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    result = offseg("segment", tmp_path / "a.mp4", "9", "--model", model, "--output", tmp_path / "out")
    assert result.returncode == 1 and result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path / 'a.mp4'}: cannot be read as a video: ")
    assert second.startswith("error: 9: cannot open the camera /dev/video9: ")


# The command in a process that gets Ctrl-C when it has written some frames.
INTERRUPTED = f"""
import os, signal, sys, time
from pathlib import Path
command = os.fork()
if not command:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {MAIN}
deadline = time.monotonic() + 120
is_there = lambda: any(path.stat().st_size > 4000 for path in Path(sys.argv[-1]).glob("*_overlay.partial.mp4"))
while not is_there() and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(command, signal.SIGINT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_interrupt(model, tmp_path):
    """A file is to be done again, and says so; its frames can be played."""
    frames = scenes(10, (160, 96))
    video, output = write_video(tmp_path / "drive.mp4", frames * 60), tmp_path / "out"
    arguments = ["segment", video, "--model", model, "--output", output]
    process = run_python(INTERRUPTED, *arguments, check=False, COLUMNS="200", NO_COLOR="1")
    partial = output / "drive_overlay.partial.mp4"
    assert process.returncode == 130 and process.stdout == ""
    number = len(decoded(partial)[1])
    assert 0 < number < 600
    assert process.stderr.startswith(f"interrupted: {number} frames, ") and process.stderr.endswith(f"{partial}\n")
    assert sorted(os.listdir(output)) == ["drive_classes.partial.csv", "drive_overlay.partial.mp4"]


def test_interrupt_of_what_is_live(model, tmp_path):
    """It has no other end: what is there is complete, and all is well."""
    pictures = [Image.effect_noise((96, 64), sigma).convert("RGB") for sigma in range(10, 110, 10)]
    with camera_on_the_network(pictures * 1000) as address:
        arguments = ["segment", address, "--model", model, "--output", tmp_path]
        process = run_python(INTERRUPTED, *arguments, check=False, COLUMNS="200", NO_COLOR="1")
    (overlay,) = tmp_path.glob("*_overlay.mp4")
    assert process.returncode == 0
    assert process.stderr.startswith(f"interrupted: {len(decoded(overlay)[1])} frames, ")
    assert len(os.listdir(tmp_path)) == 2
