"""The paired ablation, as a user runs it, and what its models show of offset learning."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from offseg_hf import OffsetLearning
from tests.comparison import assert_same_outputs
from tests.processes import run_script
from tests.training.tiny import write_tiny


SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_ablation(tmp_path):
    """Two arms are trained on the same seed and compared; what is done is not done again."""
    write_tiny(tmp_path)
    command = ("--config", "tiny.yaml", "--output", "runs", "--seeds", "3", "--jobs", "2")
    settings = ("schedule.iterations=4",)
    first = run_script(SCRIPTS / "ablation.py", *command, *settings, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    both, none = results["runs"]
    assert (both["arm"], none["arm"], both["seed"]) == ("both", "none", 3)
    assert both["parameters"] - none["parameters"] == 2 * 32 * 32
    assert [iteration for iteration, _ in both["loss"]] == [1, 2, 3, 4] and both["loss"] != none["loss"]
    assert len(both["IoU"]) == results["data"]["num_classes"] and results["data"]["num_images"] == 5
    row = next(line for line in first.stdout.splitlines() if line.startswith("| both |"))
    assert f"{100 * (both['mIoU'] - none['mIoU']):+.2f}" in row
    assert all(f"\n| {name} | {100 * both['IoU'][name]:.1f} | " in first.stdout for name in both["IoU"])
    assert (tmp_path / "runs" / "curves.png").is_file()

    weights = tmp_path / "runs" / "both-3" / "last" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_script(SCRIPTS / "ablation.py", *command, *settings, cwd=tmp_path)
    assert again.stdout == first.stdout.partition("| branches")[1] + first.stdout.partition("| branches")[2]
    assert weights.stat().st_mtime_ns == written

    options = ("--dataset", "scenes", "--photos", "2")
    shown = run_script(SCRIPTS / "offset_statistics.py", "--model", "runs/both-3/last", *options, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("\n| ") == 1 + results["data"]["num_classes"]
    without = run_script(SCRIPTS / "offset_statistics.py", "--model", "runs/none-3/last", *options, cwd=tmp_path)
    assert without.returncode == 0 and "class branch 0.000, feature branch 0.000" in without.stdout


@pytest.mark.slow
def test_a_run_that_fails_is_told(tmp_path):
    write_tiny(tmp_path)
    command = ("--config", "tiny.yaml", "--seeds", "-1", "1", "--output", "runs")
    result = run_script(SCRIPTS / "ablation.py", *command, cwd=tmp_path)
    assert result.returncode == 1
    expected = "error: runs/both--1/arm.yaml: training: expected a seed of 0 or more, got -1"
    assert f"both, seed -1 failed: {expected} (see runs/both--1/output.txt)" in result.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"recipe.yaml", "both--1"}  # no other has begun


@pytest.mark.parametrize("branches", [(True, True), (True, False), (False, True)])
def test_parts_of_the_logits(branches):
    """Together they are the logits before the norm."""
    torch.manual_seed(0)
    script = runpy.run_path(str(SCRIPTS / "offset_statistics.py"))
    head = OffsetLearning(5, 8, *branches)
    features = torch.randn(1, 8, 3, 4)
    expected = head(features).flatten(2)[0].T
    rows = features.flatten(2)[0].T
    parts = script["logit_parts"](head, rows, script["class_offset"](head, rows))
    assert_same_outputs(head.logit_norm(sum(parts)), expected)
    assert [bool(part.any()) for part in parts] == [True, *branches]
