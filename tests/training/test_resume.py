"""A training that was interrupted anywhere and goes on ends with the same files as one that never was, bit for bit."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.processes import Training, Trainings


FILES = ("model.safetensors", "training_state.pt", "config.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def uninterrupted(processes) -> Path:
    processes.run("--config", "tiny.yaml", "--output", "uninterrupted")
    return processes.folder / "uninterrupted"


def start(processes: Trainings, output: Path, *arguments: str) -> Training:
    return processes.start("--config", "tiny.yaml", "--output", output, "--resume", "auto", *arguments)


def require_same(output: Path, uninterrupted: Path) -> None:
    for folder in ("last", "best"):
        for name in FILES:
            got, expected = (path / folder / name for path in (output, uninterrupted))
            if name == "training_state.pt":
                require_same_state(torch.load(got), torch.load(expected))
            else:
                assert got.read_bytes() == expected.read_bytes(), (folder, name)
    assert log_of(output) == log_of(uninterrupted)


def require_same_state(got, expected) -> None:
    """All that training goes on from, but for settings that may differ."""
    for key in ("progress", "model", "average", "optimizer"):
        assert str(got[key]) == str(expected[key])
    for key in ("model", "average"):
        assert all(torch.equal(got[key][name], tensor) for name, tensor in expected[key].items())
    for number, state in expected["optimizer"]["state"].items():
        assert all(torch.equal(got["optimizer"]["state"][number][name], tensor) for name, tensor in state.items())


def log_of(output: Path) -> list[dict]:
    """Without what is measured by the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds")} for line in lines]


def test_checkpoints_are_complete(uninterrupted):
    assert [line["iteration"] for line in log_of(uninterrupted)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    state = torch.load(uninterrupted / "last" / "training_state.pt")
    assert state["progress"]["iteration"] == state["progress"]["evaluated"] == 8
    # What is saved for users are the averaged weights; those that train are others.
    weights = load_file(uninterrupted / "last" / "model.safetensors")
    assert weights.keys() == state["average"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state["average"].items())
    assert not torch.equal(
        weights["offset_learning.class_representation"], state["model"]["offset_learning.class_representation"]
    )
    assert (uninterrupted / "recipe.yaml").is_file()


@pytest.mark.parametrize("number, lines", [(signal.SIGINT, 2), (signal.SIGTERM, 7)])
def test_signals_end_a_training_with_a_checkpoint(processes, uninterrupted, tmp_path, number, lines):
    training = start(processes, tmp_path)
    log = tmp_path / "log.jsonl"
    training.wait_for(lambda: log.exists() and log.read_text().count("\n") >= lines)
    training.send(number)
    training.send(number)  # a launcher may repeat it
    assert training.wait() == 128 + number
    pattern = rf"stopped by {number.name} after iteration (\d+) of 8, which is in \S+/last; .* --resume auto"
    (iteration,) = re.findall(pattern, training.messages)
    assert torch.load(tmp_path / "last" / "training_state.pt")["progress"]["iteration"] == int(iteration)
    assert "Traceback" not in training.messages

    again = start(processes, tmp_path, "data.num_workers=0")  # workers make no difference
    assert again.wait() == 0, again.messages
    assert f"going on from {tmp_path}/last, iteration {iteration}" in again.messages
    require_same(tmp_path, uninterrupted)


def test_a_signal_before_the_first_iteration(processes, tmp_path):
    training = start(processes, tmp_path)
    training.wait_for((tmp_path / ".lock").exists)
    training.send(signal.SIGTERM)
    assert training.wait() == 143
    assert "stopped by SIGTERM" in training.messages and "Traceback" not in training.messages


def test_kills_at_any_moment(processes, uninterrupted, tmp_path):
    """With a checkpoint after every iteration, so that half of the time one is being written."""
    kills, state = 0, tmp_path / "last" / "training_state.pt"
    seen = 0
    while True:
        training = start(processes, tmp_path, "training.checkpoint_interval=1")
        log, written = tmp_path / "log.jsonl", lines(tmp_path / "log.jsonl")
        try:
            training.wait_for(lambda: lines(log) > written or (kills == 0 and lines(log)), timeout=60)
            time.sleep((0.0, 0.11, 0.23, 0.37)[kills % 4])
        except AssertionError:
            assert training.wait() == 0, training.messages
            break
        training.send(signal.SIGKILL)
        if training.wait() == 0:
            break
        kills += 1
        if state.parent.exists():
            iteration = torch.load(state)["progress"]["iteration"]
            assert iteration >= seen
            seen = iteration
            load_file(state.with_name("model.safetensors"))
        assert kills < 30
    assert kills >= 3
    require_same(tmp_path, uninterrupted)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_a_training_that_is_done_stays_as_it_is(processes, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/*")}
    training = start(processes, uninterrupted)
    assert training.wait() == 0, training.messages
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/*")} == before


def test_a_checkpoint_of_another_recipe_is_an_error(processes, uninterrupted):
    training = start(processes, uninterrupted, "training.seed=1")
    assert training.wait() == 1
    assert "error: uninterrupted/last: expected the recipe" in training.messages.replace(
        f"{uninterrupted.parent}/", ""
    )
    assert "training.seed=0 (now 1)" in training.messages
    training = processes.start("--config", "tiny.yaml", "--output", uninterrupted)
    assert training.wait() == 1
    assert "--resume auto" in training.messages
