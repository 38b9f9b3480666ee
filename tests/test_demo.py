"""`make demo`, but for the length of the training."""

import subprocess
import sys
from pathlib import Path

import pytest

from offseg_hf.visualization import draw_curves


DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"
SHORT = ("schedule.iterations=4", "schedule.warmup_iterations=1", "training.log_interval=1")


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, DEMO, "--output", tmp_path, *SHORT]
    for _ in range(2):  # the second time, all but the end is there
        process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert process.returncode == 0, process.stderr
        assert "the model" in process.stdout and "the commonest class everywhere" in process.stdout
    assert (tmp_path / "training" / "best" / "model.safetensors").is_file()
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "curve.png",
        *(f"scene{index}_{kind}.png" for index in range(4) for kind in ("model", "truth", "labels")),
    }


def test_curves_are_drawn_to_their_own_scales():
    image = draw_curves("training", {"loss": [(1, 4.0), (2, 1.0)], "mIoU": [(2, 0.5)]})
    assert image.size == (640, 360) and len(image.getcolors(100_000)) > 4
    assert image.tobytes() != draw_curves("training", {"loss": [(1, 4.0), (2, 2.0)], "mIoU": [(2, 0.5)]}).tobytes()
