"""`make demo`, but for the length of the training."""

import subprocess
import sys
from pathlib import Path

import pytest


DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
SHORT = ("schedule.iterations=4", "schedule.warmup_iterations=1", "training.log_interval=1")


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, DEMO, "--output", tmp_path, *SHORT]
    for _ in range(2):  # the second time, all but the end is there
        process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert process.returncode == 0, process.stderr
        assert "the model" in process.stdout and "the commonest class everywhere" in process.stdout
    assert (tmp_path / "training" / "best" / "model.safetensors").is_file()
    assert f"{tmp_path}/evaluation/report.html" in process.stdout
    assert (tmp_path / "evaluation" / "report.html").is_file()
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "curve.png",
        *(f"scene{index}_{kind}.png" for index in range(4) for kind in ("model", "truth", "labels")),
    }
