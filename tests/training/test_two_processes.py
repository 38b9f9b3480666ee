"""Two processes compute what one computes: the global batch stays, and no sample counts twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from tests.processes import ROOT, ranks
from tests.training.processes import Training, Trainings


# Drop path draws other numbers in every process, and batch norms see the samples of one only (on CUDA, of all).
ALIKE = (
    "model.config.drop_path_rate=0",
    "model.config.learn_batch_norm_statistics=false",
    "schedule.iterations=4",
)
# So long that a signal is there before the end; what is asked for is of the first iterations.
LONG = ("schedule.iterations=100", "training.evaluation_interval=100", "training.checkpoint_interval=100")


def start(processes: Trainings, number: int, *arguments: str | Path) -> list[Training]:
    """As torchrun does, but of processes that start at once; it does not say that they are to use the CPU."""
    return [processes.start("--config", "tiny.yaml", *ALIKE, *arguments, **rank) for rank in ranks(number)]


def launch(processes: Trainings, number: int, *arguments: str | Path) -> str:
    """What the main one of `number` processes writes, until they end well."""
    started = start(processes, number, *arguments)
    assert [training.wait() for training in started] == [0] * number, [training.messages for training in started]
    assert all("loss" not in training.messages for training in started[1:])
    return started[0].messages


def stop_after(iterations: int, output: Path, started: list[Training]) -> str:
    """What the main one of some processes writes, until a signal to the last one ends them all."""
    log = output / "log.jsonl"
    started[0].wait_for(lambda: log.exists() and log.read_text().count("\n") >= iterations)
    started[-1].send(signal.SIGTERM)
    assert {training.wait() for training in started} == {128 + signal.SIGTERM}
    return started[0].messages


def log_of(output: Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return {line["iteration"]: line[name] for line in lines if name in line}


def assert_same_log(actual: dict[int, float], expected: dict[int, float]) -> None:
    """The numbers of the first iteration differ by the rounding of their sums. AdamW divides a gradient by its size,
    so that what was rounding moves a weight by as much as anything else, and differences grow: to 6e-5 of the loss at
    iteration 8, on an AMD EPYC. Another sample in a batch, or a sum for a mean, shows from the first one on."""
    assert actual.keys() == expected.keys()
    for iteration, value in expected.items():
        assert actual[iteration] == pytest.approx(value, rel=5e-5 if iteration == 1 else 2e-3), iteration


@pytest.fixture(scope="module")
def alone(processes) -> Path:
    launch(processes, 1, "--output", "alone")
    return processes.folder / "alone"


def test_losses_are_the_same(processes, alone):
    launch(processes, 2, "--output", "two")
    launch(processes, 1, "--output", "accumulated", "training.device_batch_size=1")
    for name in ("loss", "gradient_norm"):
        expected = log_of(alone, name)
        assert len(expected) == 4
        for folder in ("two", "accumulated"):
            assert_same_log(log_of(processes.folder / folder, name), expected)


def test_metrics_are_the_same(processes, alone):
    """Of the same weights, on 5 images: a sampler that fills up the second process would count one twice."""
    score, other = log_of(alone, "mIoU")[4], processes.folder / "evaluated_by_two"
    shutil.copytree(alone, other)
    path = other / "last" / "training_state.pt"
    state = torch.load(path)
    state["progress"]["evaluated"] = 0  # as if it had been interrupted before it was evaluated
    torch.save(state, path)
    launch(processes, 2, "--output", "evaluated_by_two", "--resume", "auto")
    # Of 30720 pixels a few may be of two classes equally.
    assert log_of(other, "mIoU")[4] == pytest.approx(score, abs=5e-4)
    best = torch.load(alone / "last" / "training_state.pt")["progress"]["best_score"]
    assert torch.load(path)["progress"]["best_score"] == pytest.approx(best, abs=5e-4)


def test_a_batch_that_cannot_be_shared_is_an_error(processes):
    with pytest.raises(AssertionError, match="training.batch_size: expected a multiple of the 2 processes, got 3"):
        launch(processes, 2, "--output", "uneven", "training.batch_size=3")


def test_accelerate_launch(processes, tmp_path):
    """Two processes, ended by a signal as a terminal sends it, to the launcher and all that it has started, and
    resumed.

    Given `--cpu`, `accelerate launch` starts one process, whatever number it is told.
    """
    script = (ROOT / "scripts" / "train.py", "--config", "tiny.yaml", "--output", tmp_path, *ALIKE, *LONG)
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    command = [*launcher, "--main_process_port", "0", *script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    options = {"cwd": processes.folder, "env": environment, "start_new_session": True}
    with subprocess.Popen(command, **options, stderr=subprocess.PIPE, text=True) as process:
        begin = list(takewhile(lambda line: not line.lstrip().startswith("3/"), process.stderr))
        os.killpg(process.pid, signal.SIGINT)
        end = process.stderr.read()
    assert process.returncode != 0
    assert any("2 processes on cpu" in line for line in begin)
    assert "stopped by SIGINT after iteration" in end
    assert not (tmp_path / "best").exists()
    iterations = len(log_of(tmp_path, "loss")) + 2
    compared = range(1, min(iterations, 10) + 1)  # later on, differences have grown
    messages = stop_after(iterations, tmp_path, start(processes, 2, "--output", tmp_path, "--resume", "auto", *LONG))
    assert "going on from" in messages and "UserWarning" not in messages
    long = processes.folder / "long"
    stop_after(len(compared), long, start(processes, 1, "--output", long, *LONG))
    logs = [log_of(folder, "loss") for folder in (tmp_path, long)]
    assert_same_log(*({iteration: log[iteration] for iteration in compared} for log in logs))
