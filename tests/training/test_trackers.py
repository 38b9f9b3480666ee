"""What a tracker is told is what the log says, also by a training that was killed and goes on."""

import json
import signal

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from tests.training.processes import Trainings


ITERATIONS = 8


def arguments(tracker: str, output) -> tuple:
    """With checkpoints after iterations 3, 5 and 6, the latter two of evaluation."""
    intervals = ("training.checkpoint_interval=3", "training.evaluation_interval=5")
    return (
        "--config",
        "tiny.yaml",
        "--output",
        output,
        "--resume",
        "auto",
        f"training.report_to={tracker}",
        *intervals,
    )


def test_tensorboard(processes: Trainings, tmp_path):
    """Killed after iteration 4, which is then logged a second time, as the checkpoint is of iteration 3."""
    output = tmp_path / "run"
    training = processes.start(*arguments("tensorboard", output))
    log = output / "log.jsonl"
    training.wait_for(lambda: log.exists() and log.read_text().count("\n") >= 4)
    training.send(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    again = processes.start(*arguments("tensorboard", output))
    assert again.wait() == 0, again.messages
    assert f"going on from {output}/last" in again.messages

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, ITERATIONS + 1))
    assert [line["iteration"] for line in lines if "mIoU" in line] == [5, ITERATIONS]
    for name in ("loss", "learning_rate", "gradient_norm", "mIoU", "mAcc", "aAcc"):
        logged = [(line["iteration"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert values(events.Scalars(name)) == logged, name

    (settings,) = (yaml.safe_load(path.read_text()) for path in output.glob("tensorboard/*/hparams.yml"))
    assert settings["name"] == "tiny" and settings["schedule.iterations"] == ITERATIONS
    assert settings["optimizer.betas"] == "[0.9, 0.999]" and settings["training.device_batch_size"] == "null"
    sections = yaml.safe_load((output / "recipe.yaml").read_text())
    assert len(settings) == sum(len(values) if isinstance(values, dict) else 1 for values in sections.values())


def values(events: list[ScalarEvent]) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events]


def test_a_tracker_that_is_not_installed_is_an_error_at_once(processes: Trainings, tmp_path):
    training = processes.start(*arguments("trackio", tmp_path / "run"))
    assert training.wait() == 1
    expected = "error: training.report_to=trackio needs the package trackio: pip install trackio"
    assert training.messages.splitlines() == [expected]
    assert not (tmp_path / "run").exists()
