"""`offseg publish`, as its user meets it: official checkpoints in a folder, a Hub, and what goes wrong in between."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offseg_hf import OffSegForSemanticSegmentation, OffSegImageProcessor, __version__
from offseg_hf.conversion.convert import fitting_presets
from offseg_hf.hub.publish import VerificationError, recognize, verify
from offseg_hf.zoo.presets import PRESETS
from tests.local_hub.faults import Answer, CutUpload
from tests.parity.fill import official_keys, official_state_dict
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

OFFSEG = Path(sys.executable).with_name("offseg")
OFFSEG_COMMAND = "from offseg_command import main; main()"
NAMES = ("offseg-t-ade", "segnext-t-offset-context59")
TAG = f"v{__version__}"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Two checkpoints under names that say nothing, one of them of a training; beside them what is no checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "from the link").mkdir()
    moments = {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": []}
    training = {"meta": {}, "state_dict": official_state_dict(NAMES[0]), "optimizer": moments}
    torch.save(training, folder / "from the link" / "iter_160000.pth")
    torch.save(official_state_dict(NAMES[1]), folder / "best.pth")
    (folder / "README.md").write_text("Downloaded on Monday.")
    return folder


def start(hub, folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [OFFSEG, "publish", str(folder), "--org", "hvision", *arguments],
        env=hub.environment | {"NO_COLOR": "1", "TMPDIR": str(hub.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def publish(hub, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; nothing may be left behind."""
    hub.home.mkdir(exist_ok=True)
    command = ["publish", folder, "--org", "hvision", *arguments]
    process = hub.clients.run(OFFSEG_COMMAND, *command, TMPDIR=str(hub.home), NO_COLOR="1")
    assert not list(hub.home.glob("offseg-publish-*"))
    return process.returncode, process.stdout, process.stderr


def rows(printed: str) -> dict[str, str]:
    """The summary: preset -> status and detail."""
    lines = [re.split(r"\s{2,}", line, maxsplit=2) for line in printed.splitlines()]
    return {repository.removeprefix("hvision/"): f"{status} {detail}" for repository, status, detail in lines}


def repository(hub, name: str):
    return hub.hub.repository("models", f"hvision/{name}", hub.token)


def weights_of(hub, name: str) -> str:
    return repository(hub, name).resolve("main").files["model.safetensors"].sha256


def exists(hub, name: str) -> bool:
    return ("models", f"hvision/{name}") in hub.hub._repositories


# -- which preset a file is of ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_preset_is_recognised():
    for name, keys in official_keys().items():
        with torch.device("meta"):
            weights = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, shape) in keys.items()}
        assert fitting_presets(weights) == [name]
    assert official_keys().keys() == PRESETS.keys()


def test_a_training_of_ones_own_is_not_the_authors(tmp_path):
    """It has our names, other classes, or says that its classes are others."""
    torch.manual_seed(1)
    OffSegForSemanticSegmentation(PRESETS[NAMES[0]].config()).save_pretrained(tmp_path / "runs" / "best")
    weights = official_state_dict(NAMES[0])
    meta = {"dataset_meta": {"classes": [f"thing {index}" for index in range(150)]}}
    torch.save({"meta": meta, "state_dict": weights}, tmp_path / "others.pth")
    head = "decode_head.offset_learning"
    weights[f"{head}.cls_repr"] = weights[f"{head}.cls_repr"][:, :7]
    for part in ("weight", "bias"):
        weights[f"{head}.mask_norm.{part}"] = weights[f"{head}.mask_norm.{part}"][:7]
    torch.save({"meta": meta, "state_dict": weights}, tmp_path / "seven.pth")
    found, others = recognize(tmp_path)
    assert not found
    reasons = {other.source.name: other.reason for other in others}
    assert "weights under offseg_hf's names" in reasons["model.safetensors"]
    assert "got one for other classes (thing 0, thing 1, thing 2, ...)" in reasons["others.pth"]
    assert "of 7 classes instead of 150: they are offseg-t-ade's but for that" in reasons["seven.pth"]


def test_what_is_not_clear_is_listed(tmp_path):
    weights = official_state_dict(NAMES[0])
    (tmp_path / "runs").mkdir()
    for name in ("iter_80000.pth", "iter_160000.pth"):
        torch.save({"state_dict": weights}, tmp_path / "runs" / name)
    torch.save(official_state_dict(NAMES[1]), tmp_path / "offseg-t-ade.pth")  # its name is wrong
    torch.save({key: value for key, value in weights.items() if key.startswith("backbone.")}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("<!doctype html>")
    save_small_model(tmp_path / "converted")
    steps = []
    found, others = recognize(tmp_path, lambda done, total: steps.append((done, total)))
    assert found == {NAMES[1]: tmp_path / "offseg-t-ade.pth"}
    assert steps == [(done, 6) for done in range(7)]
    reasons = {str(other.source.relative_to(tmp_path)): other.reason for other in others}
    runs = ["runs/iter_160000.pth", "runs/iter_80000.pth"]
    assert list(reasons) == ["a.pth", "b.pth", "converted/model.safetensors", *runs]
    assert "of none: backbone." in reasons["a.pth"] and "nearest is offseg-t-ade: " in reasons["a.pth"]
    assert "missing)" in reasons["a.pth"]
    assert "a web page" in reasons["b.pth"] and not reasons["b.pth"].startswith(str(tmp_path))
    assert "expected the weights of one preset" in reasons["converted/model.safetensors"]
    assert "expected one checkpoint of offseg-t-ade, got" in reasons["runs/iter_80000.pth"]
    assert "iter_160000.pth too" in reasons["runs/iter_80000.pth"]


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with checkpoints .*, got none in it"):
        recognize(tmp_path)


# -- what is written is verified --------------------------------------------------------------------------------------


def test_verification(tmp_path):
    """Of weights, of the configuration and of the image processor it finds what has changed."""
    folder = save_small_model(tmp_path / "model")
    model = OffSegForSemanticSegmentation.from_pretrained(folder)
    processor = OffSegImageProcessor.from_pretrained(folder)
    verify(folder, model, processor)
    for file, change in (
        ("config.json", {"use_class_offset": False}),
        ("preprocessor_config.json", {"do_normalize": False}),
    ):
        text = (folder / file).read_text()
        (folder / file).write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(VerificationError):
            verify(folder, model, processor)
        (folder / file).write_text(text)
    with torch.no_grad():
        model.offset_learning.class_representation[0, 0] += 1
    with pytest.raises(VerificationError, match="other weights"):
        verify(folder, model, processor)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dry_run(local_hub, checkpoints):
    local_hub.log.clear()
    code, out, err = publish(local_hub, checkpoints, "--dry-run", "--only", "offseg-*")
    assert code == 0, err
    assert rows(out).keys() == {"offseg-t-ade"}
    assert re.fullmatch(r"would publish \d+ files, 25\.\d MB", rows(out)["offseg-t-ade"])
    assert not exists(local_hub, "offseg-t-ade")
    assert {entry.method for entry in local_hub.log} == {"GET"}


def test_publish(local_hub, checkpoints, tmp_path):
    """A cut upload goes on, a failure stops no other, a second time nothing happens."""
    fault = local_hub.faults.add("POST", ".*/offseg-t-ade/commit/main", CutUpload(100))
    code, out, err = publish(local_hub, checkpoints)
    assert fault.happened.wait(5) and code == 1
    assert rows(out)["offseg-t-ade"].startswith("failed the connection to the Hub was lost (")
    assert "it continues" in rows(out)["offseg-t-ade"]
    assert rows(out)["segnext-t-offset-context59"].startswith("published ")
    assert set(repository(local_hub, "offseg-t-ade").resolve("main").files) == {".gitattributes"}
    assert "1 of 2: offseg-t-ade, from " in err or "2 of 2: offseg-t-ade, from " in err

    local_hub.log.clear()
    code, out, err = publish(local_hub, checkpoints)
    assert code == 0, err
    assert rows(out)["offseg-t-ade"].startswith("published ") and rows(out)["offseg-t-ade"].endswith(f"; tagged {TAG}")
    assert rows(out)["segnext-t-offset-context59"] == "unchanged all is there"
    assert not [entry for entry in local_hub.log if entry.method == "PUT"]  # the weights were there already

    local_hub.log.clear()
    code, out, err = publish(local_hub, checkpoints)
    assert code == 0 and set(rows(out).values()) == {"unchanged all is there"}
    assert {entry.method for entry in local_hub.log} == {"GET"}
    for name in NAMES:
        published = repository(local_hub, name)
        titles = [commit.title for commit in published.history("main")]
        assert titles == [f"Publish {name} with offseg-hf {__version__}", "initial commit"]
        assert published.tags == {TAG: published.branches["main"]}


LOAD = """
import json
import sys
from PIL import Image
import offseg_hf
from transformers import AutoModelForSemanticSegmentation, pipeline

name, revision = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(name, revision=revision)
segments = pipeline(model=name)(Image.new("RGB", (64, 48)))
print(json.dumps([model.num_parameters(), sum(segment["mask"].histogram()[255] for segment in segments)]))
"""


def test_what_was_published_is_the_model(local_hub):
    """By its version, and without naming its task (after test_publish)."""
    name = NAMES[0]
    files = repository(local_hub, name).resolve(TAG).files
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_offseg.py"} < set(files)
    assert any(path.startswith(".eval_results/") for path in files)
    card = local_hub.hub.blobs.read(files["README.md"]).decode()
    assert f"hvision/{name}" in card
    parameters, pixels = json.loads(local_hub.run(LOAD, f"hvision/{name}", TAG).splitlines()[-1])
    assert parameters == PRESETS[name].num_parameters and pixels == 64 * 48


@pytest.mark.slow
def test_interruption(local_hub, checkpoints):
    """Ctrl-C while it uploads: no half model on the Hub, and nothing left here; the same command goes on."""
    name = NAMES[1]
    fault = local_hub.faults.add("PUT", "/lfs/.*", Answer(500), times=99)  # so that it tries again and again
    local_hub.hub.blobs.path(weights_of(local_hub, name)).unlink()
    local_hub.hub.delete(repository(local_hub, name))
    process = start(local_hub, checkpoints, "--only", name, "--private")
    assert fault.happened.wait(timeout=120)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.endswith("interrupted\n"), err
    assert not list(local_hub.home.glob("offseg-publish-*"))
    assert set(repository(local_hub, name).resolve("main").files) == {".gitattributes"}
    local_hub.faults.clear()
    code, out, err = publish(local_hub, checkpoints, "--only", name, "--private")
    assert code == 0 and rows(out)[name].startswith("published"), err
    assert repository(local_hub, name).private


@pytest.mark.slow
def test_versions_are_not_moved(local_hub, checkpoints):
    """Other files under the same version: the tag stays with what it was made for."""
    name = NAMES[1]
    published = repository(local_hub, name)
    first = published.tags[TAG]
    files = dict(published.resolve("main").files)
    files["layers.py"] = local_hub.hub.blobs.regular(b"# of before\n")
    published.commit("main", "Publish with offseg-hf 0.0.9", "tester", files)
    code, out, err = publish(local_hub, checkpoints, "--only", name)
    assert code == 0, err
    assert f"{TAG} stays at {first[:7]}, which has other files" in rows(out)[name]
    assert published.tags[TAG] == first != published.branches["main"]


@pytest.mark.slow
def test_nothing_of_the_pattern(local_hub, checkpoints):
    code, out, err = publish(local_hub, checkpoints, "--only", "mask2former*")
    assert (code, out) == (1, "")
    assert "expected checkpoints of 'mask2former*', got some of offseg-t-ade, segnext-t-offset-context59" in err


@pytest.mark.slow
def test_every_family(local_hub, tmp_path):
    """Published and verified: SegFormer, and Mask2Former, whose parts are elsewhere named and split."""
    names = ("segformer-b0-offset-ade", "mask2former-swin-t-offset-ade", "offseg-t-cityscapes")
    for name in names:
        torch.save(official_state_dict(name), tmp_path / f"{names.index(name)}.pth")
    code, out, err = publish(local_hub, tmp_path)
    assert code == 0, err
    assert rows(out).keys() == set(names) and all(row.startswith("published ") for row in rows(out).values())
