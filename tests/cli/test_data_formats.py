"""`offseg data convert` and `offseg data show`, in processes."""

import os
import signal
import time

import numpy as np
from PIL import Image

from offseg_hf.data.scenes.folder import write_scenes
from tests.cli.running import MAIN, offseg
from tests.data.formats import cases
from tests.processes import with_ours


def test_convert_and_check(tmp_path):
    source = cases.coco(tmp_path / "coco")
    result = offseg("data", "convert", source, "--output", tmp_path / "mine")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path}/mine: from COCO, 3 classes, train 1, validation 1\n"
    notes = result.stderr.splitlines()
    assert all(line.startswith("note: ") for line in notes) and len(notes) == 3
    assert "whole groups" in notes[0] or "no groups" in notes[0]
    assert "the class background (--uncovered void" in notes[1] and "the smaller one's" in notes[2]
    assert offseg("data", "check", tmp_path / "mine").returncode == 0


def test_problems_by_file(tmp_path):
    source = cases.labelme(tmp_path / "labelme")
    (source / "park_01.png").unlink()
    result = offseg("data", "convert", source, "--output", tmp_path / "mine")
    assert result.returncode == 1 and result.stdout == ""
    first, last = result.stderr.splitlines()
    assert first.startswith(f"error: {source}/park_01.json: its photo park_01.png is not below")
    assert last == "1 problems, nothing was written (--leave-out writes the other photos)"
    assert not (tmp_path / "mine").exists()
    result = offseg("data", "convert", source, "--output", tmp_path / "mine", "--leave-out")
    assert result.returncode == 0 and result.stdout.endswith("train 1\n")
    assert result.stderr.startswith(f"left out: {source}/park_01.json: its photo")


def test_interrupted(tmp_path):
    """Nothing is left of it, and nothing of the archive's content."""
    source = cases.yolo(tmp_path / "yolo")
    line = "0 " + " ".join(f"{x / 999:.4f} {x % 2}" for x in range(1000))
    (source / "labels" / "park_01.txt").write_text("\n".join([line] * 60))
    for number in range(400):
        os.link(source / "images" / "park_01.png", source / "images" / f"more{number}.png")
        os.link(source / "labels" / "park_01.txt", source / "labels" / f"more{number}.txt")
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + MAIN
    streams = [str(tmp_path / name) for name in ("out", "err")]
    arguments = ["offseg", "data", "convert", str(source), "--output", str(tmp_path / "mine")]
    server = with_ours()
    pid = server.start(script, arguments, tmp_path, {}, *streams)
    deadline = time.monotonic() + 60
    while not [*tmp_path.glob(".mine.*.new/masks/train/*.png")] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [*tmp_path.glob(".mine.*.new/masks/train/*.png")]
    os.kill(pid, signal.SIGINT)
    assert server.wait(pid) == 130
    assert (tmp_path / "err").read_text() == "interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out", "yolo"]


def test_contact_sheet(tmp_path):
    write_scenes(tmp_path / "scenes", train=3, val=1, size=(96, 64))
    sheets = [tmp_path / "plain.png", tmp_path / "augmented.png"]
    result = offseg("data", "show", tmp_path / "scenes", "--number", 2, "--output", sheets[0])
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{sheets[0]}: 2 samples of train\n"
    recipe = ["--augmented", "offseg-t-ade"]
    assert offseg("data", "show", tmp_path / "scenes", "--number", 2, *recipe, "--output", sheets[1]).returncode == 0
    plain, augmented = (Image.open(path) for path in sheets)
    assert plain.width > 2 * 480 and plain.height > 2 * 320
    assert augmented.width > plain.width + 2 * 300
    photo = Image.open(tmp_path / "scenes" / "images" / "train" / "000000.png").resize((480, 320), 2)
    assert np.array_equal(np.asarray(plain)[8:328, 8:488], np.asarray(photo))  # the first one, as it is
    result = offseg("data", "show", tmp_path / "scenes", "--output", tmp_path / "sheet.jpg")
    assert result.returncode == 1 and "ends in .png" in result.stderr
