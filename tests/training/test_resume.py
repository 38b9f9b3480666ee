"""A training that was interrupted anywhere and goes on ends with the same files as one that never was, bit for bit."""

import json
import re
import signal
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import load_file

from offseg_hf.training.log import read_log
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
        assert_same(got[key], expected[key], key)


def assert_same(got, expected, where: str) -> None:
    """Of tensors, in whatever they stand, every bit."""
    assert type(got) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype and torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(got[index], value, f"{where}[{index}]")
    else:
        assert got == expected, where


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


def test_signals_end_a_training_with_a_checkpoint(processes, uninterrupted, tmp_path):
    """Two of them, one after the other; of a training whose workers load data, which make no difference."""
    output, log = tmp_path, tmp_path / "log.jsonl"
    reached = 0
    for number, lines in ((signal.SIGINT, 2), (signal.SIGTERM, 6)):
        lines = max(lines, count(log) + 1)  # where the first signal came late
        training = start(processes, output, "data.num_workers=2")
        training.wait_for(lambda: count(log) >= lines)
        training.send(number)
        training.send(number)  # a launcher may repeat it
        assert training.wait() == 128 + number
        if reached:
            assert f"going on from {output}/last, iteration {reached}" in training.messages
        pattern = rf"stopped by {number.name} after iteration (\d+) of 8, which is in \S+/last; .* --resume auto"
        (reached,) = map(int, re.findall(pattern, training.messages))
        assert torch.load(output / "last" / "training_state.pt")["progress"]["iteration"] == reached < 8
        assert "Traceback" not in training.messages

    messages = processes.run("--config", "tiny.yaml", "--output", output, "--resume", "auto")
    assert f"going on from {output}/last, iteration {reached}" in messages
    require_same(output, uninterrupted)


def test_a_signal_before_the_first_iteration(processes, tmp_path):
    training = start(processes, tmp_path)
    training.wait_for((tmp_path / ".lock").exists)
    training.send(signal.SIGTERM)
    assert training.wait() == 143
    assert "stopped by SIGTERM" in training.messages and "Traceback" not in training.messages


@pytest.mark.slow
def test_kills_at_any_moment(processes, uninterrupted, tmp_path):
    """With a checkpoint after every iteration, which takes about as long as one; test_checkpoint.py has every moment
    of writing it."""
    log, state = tmp_path / "log.jsonl", tmp_path / "last" / "training_state.pt"
    speeds = [line["images_per_second"] for line in read_log(uninterrupted / "log.jsonl") if "loss" in line]
    seconds = 4 / median(speeds)  # of an iteration, on this machine
    kills = reached = 0
    for part in (0, 0.4, 0.8, 1.2):
        written = count(log)
        training = start(processes, tmp_path, "training.checkpoint_interval=1", f"data.num_workers={kills % 2}")
        training.wait_for(lambda: count(log) > written)
        time.sleep(part * seconds)
        training.send(signal.SIGKILL)
        if training.wait() == 0:  # so fast was it
            break
        kills += 1
        if state.parent.exists():
            before, reached = reached, torch.load(state)["progress"]["iteration"]
            assert reached >= before
            load_file(state.with_name("model.safetensors"))
    assert kills >= 3 and reached > 0
    processes.run("--config", "tiny.yaml", "--output", tmp_path, "--resume", "auto")
    require_same(tmp_path, uninterrupted)


def count(log: Path) -> int:
    """Its lines."""
    return log.read_text().count("\n") if log.exists() else 0


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
