"""Training that reads its data from the Hub and sends its best model there, whatever the Hub does in the meantime."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load

from tests.local_hub.faults import Answer
from tests.processes import ROOT
from tests.training.tiny import write_tiny


pytest_plugins = ["tests.local_hub.fixtures"]
pytestmark = pytest.mark.slow

TRAININGS = """
import io
import json
import os
import sys
from contextlib import redirect_stderr
from offseg_hf.cli import app
from offseg_hf.data.push import push_segmentation_data

os.chdir(sys.argv[1])
push_segmentation_data("scenes", "tester/scenes")
schedule = ["schedule.iterations=2", "schedule.warmup_iterations=1", "training.evaluation_interval=1"]
common = ["data.source=tester/scenes", *schedule]


def run(name, *arguments, token=os.environ["HF_TOKEN"]):
    os.environ["HF_TOKEN"], said, code = token, io.StringIO(), 0
    with redirect_stderr(said):
        try:
            app(list(arguments), prog_name="offseg")
        except SystemExit as error:
            code = error.code
    print("RESULT " + json.dumps([name, code, said.getvalue()]))


def train(name, *options, **others):
    settings = [*common, f"training.hub_repository={name}", "--output", f"runs/{name}", *options]
    run(name, "train", "--config", "tiny.yaml", *settings, **others)


train("once", "training.hub_private=true")
train("never")
train("never", "--resume", "auto")
run("push", "push", "runs/never/best", "tester/pushed")
train("anonymous", token="")
train("google/model")
"""


@pytest.fixture(scope="module")
def hub(local_hub, tmp_path_factory):
    """After the trainings; `.folder` has their runs, `.outcomes` their exit codes and messages in order.

    The first upload of `once` fails, and all of the first training of `never` do.
    """
    local_hub.folder = tmp_path_factory.mktemp("trainings")
    write_tiny(local_hub.folder)
    local_hub.faults.add("POST", ".*/tester/once/commit/main", Answer(500))
    local_hub.faults.add("POST", ".*/tester/never/commit/main", Answer(503), times=3)
    printed = local_hub.run(TRAININGS, local_hub.folder).splitlines()
    local_hub.outcomes = [json.loads(line.removeprefix("RESULT ")) for line in printed if line.startswith("RESULT ")]
    return local_hub


def files(hub, name: str) -> dict[str, bytes]:
    found = hub.hub.repository("models", name, hub.token).resolve("main").files
    return {path: hub.hub.blobs.read(blob) for path, blob in found.items()}


def test_the_best_model_is_there(hub):
    """It was sent again after a failure; weights, code and card, but not the state of the training."""
    _, code, said = hub.outcomes[0]
    assert code == 0, said
    assert "not uploaded: the Hub has a problem of its own (500" in said and "will try again" in said
    assert f"uploaded: {hub.endpoint}/tester/once" in said
    there, best = files(hub, "tester/once"), hub.folder / "runs" / "once" / "best"
    assert there["model.safetensors"] == (best / "model.safetensors").read_bytes()
    assert {"config.json", "preprocessor_config.json", "modeling_offseg.py", "README.md"} < there.keys()
    assert "training_state.pt" not in there
    assert hub.hub.repository("models", "tester/once", hub.token).private


def test_its_card_is_of_the_whole_training(hub):
    card = ModelCard(files(hub, "tester/once")["README.md"].decode())
    log = [json.loads(line) for line in (hub.folder / "runs" / "once" / "log.jsonl").read_text().splitlines()]
    best = max((line for line in log if "mIoU" in line), key=lambda line: line["mIoU"])
    assert f"{100 * best['mIoU']:.2f}" in card.text
    assert card.data.datasets == ["tester/scenes"]


def test_a_training_whose_uploads_fail_is_done_nevertheless(hub):
    _, code, said = hub.outcomes[1]
    assert code == 1
    error = said.splitlines()[-1]
    assert error.startswith("error: the training is done and runs/never/best holds its best model, but it is not on")
    assert "`offseg push runs/never/best tester/never` sends it" in error
    lines = (hub.folder / "runs" / "never" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 2 and "mIoU" in json.loads(lines[-1])
    weights = [
        load((hub.folder / "runs" / name / "last/model.safetensors").read_bytes()) for name in ("once", "never")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((value == weights[1][key]).all() for key, value in weights[0].items())


def test_what_was_not_sent_is_sent_when_it_goes_on(hub):
    _, code, said = hub.outcomes[2]
    assert code == 0 and f"uploaded: {hub.endpoint}/tester/never" in said
    best = hub.folder / "runs" / "never" / "best"
    for name in ("tester/never", "tester/pushed"):
        assert files(hub, name)["model.safetensors"] == (best / "model.safetensors").read_bytes()


def test_without_a_login_or_rights_it_does_not_begin(hub):
    """What will not pass by itself is an error before the first iteration."""
    (anonymous, foreign) = hub.outcomes[4:]
    assert anonymous[1] == foreign[1] == 1
    assert "error: not logged in to the Hub" in anonymous[2]
    assert "error: expected a member of google, got tester" in foreign[2]
    for name in ("anonymous", "google/model"):
        assert not Path(hub.folder, "runs", name, "last").exists()


def test_environment(hub):
    environment = json.loads((hub.folder / "runs" / "never" / "environment.json").read_text())
    assert environment.keys() == {
        *("offseg_hf", "torch", "transformers", "datasets", "accelerate", "python"),
        *("device", "processes", "git_commit", "started"),
    }
    assert environment["processes"] == 1 and environment["device"].startswith(("cpu (", "cuda ("))
    assert environment["git_commit"] is None  # the folder is in no repository


@pytest.mark.slow
def test_two_processes(hub):
    """One of them sends, the other waits."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = ["training.hub_repository=tester/two", "--output", "runs/two"]
    process = subprocess.run(
        [*launcher, ROOT / "scripts" / "train.py", "--config", "tiny.yaml", *settings],
        cwd=hub.folder,
        env=hub.environment | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    best = hub.folder / "runs" / "two" / "best"
    assert files(hub, "tester/two")["model.safetensors"] == (best / "model.safetensors").read_bytes()
    assert json.loads((best.parent / "environment.json").read_text())["processes"] == 2
