"""The paired ablation, as a user runs it, and what the repository says that it found."""

import json
import subprocess
import sys
from pathlib import Path

from tests.training.tiny import write_tiny


ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    script = str(ROOT / "scripts" / "ablation.py")
    return subprocess.run([sys.executable, script, *arguments], cwd=folder, capture_output=True, text=True)


def test_ablation(tmp_path):
    """Two arms are trained on the same seed and compared; what is done is not done again."""
    write_tiny(tmp_path)
    command = ("--config", "tiny.yaml", "--output", "runs", "--seeds", "3", "--jobs", "2")
    settings = ("schedule.iterations=4", "data.num_workers=0")
    first = run(tmp_path, *command, *settings)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    both, none = results["runs"]
    assert (both["arm"], none["arm"], both["seed"]) == ("both", "none", 3)
    assert both["parameters"] - none["parameters"] == 2 * 32 * 32
    assert [iteration for iteration, _ in both["loss"]] == [1, 2, 3, 4] and both["loss"] != none["loss"]
    assert len(both["IoU"]) == results["data"]["num_classes"] and results["data"]["num_images"] == 5
    row = next(line for line in first.stdout.splitlines() if line.startswith("| both |"))
    assert f"{100 * (both['mIoU'] - none['mIoU']):+.2f}" in row
    assert (tmp_path / "runs" / "curves.png").is_file()

    weights = tmp_path / "runs" / "both-3" / "last" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run(tmp_path, *command, *settings)
    assert again.stdout == first.stdout.partition("| branches")[1] + first.stdout.partition("| branches")[2]
    assert weights.stat().st_mtime_ns == written


def test_a_run_that_fails_is_told(tmp_path):
    write_tiny(tmp_path)
    command = ("--config", "tiny.yaml", "--seeds", "0", "1", "--output", "runs", "data.source=nowhere/at/all")
    result = run(tmp_path, *command)
    assert result.returncode == 1
    assert "both, seed 0: train failed: error: nowhere/at/all" in result.stderr
    assert not (tmp_path / "runs" / "both-1").exists()
