"""What goes wrong on the way to the Hub and back: an upload goes on, and nothing half-written is ever loaded.

The clients are the real ones, in processes of their own, with large files as LFS and by xet.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.local_hub import MODES
from tests.local_hub.clients import WITHOUT_WAITING
from tests.local_hub.faults import Answer, CutDownload, CutUpload
from tests.parity.fill import official_state_dict
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

every_mode = pytest.mark.parametrize("mode", MODES)
SIZE = 1_000_000  # bytes of each large file that is uploaded
CUT = SIZE // 3
CONTENT = {"lfs": "/lfs/.*", "xet": "/xet/v1/xorbs/.*"}  # paths that contents are sent to


@pytest.fixture(autouse=True)
def no_faults(local_hub):
    yield
    local_hub.faults.clear()
    local_hub.come_back()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two large files, of contents that no other test uploads, and a small one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("first.bin", "second.bin"):
        (folder / name).write_bytes(np.random.default_rng().bytes(SIZE))
    return folder


def remote(local_hub, name: str) -> dict[str, bytes]:
    """What is in a repository, but for what the Hub itself put there."""
    files = local_hub.hub.repository("models", name, local_hub.token).resolve("main").files
    return {path: local_hub.hub.blobs.read(blob) for path, blob in files.items() if path != ".gitattributes"}


def titles(local_hub, name: str) -> list[str]:
    return [commit.title for commit in local_hub.hub.repository("models", name, local_hub.token).history("main")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


UPLOAD = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

HfApi().create_repo(sys.argv[2], exist_ok=True)
try:
    HfApi().upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1], commit_message="upload")
    print("uploaded")
except HfHubHTTPError as error:
    print(error.response.status_code)
"""


@every_mode
def test_upload_goes_on_when_the_hub_is_back(local_hub, folder, tmp_path, mode):
    name = f"hvision/back-{mode}"
    fault = local_hub.faults.add("PUT|POST", CONTENT[mode], CutUpload(CUT), goes_away=True)
    client = local_hub.start(UPLOAD, folder, name, HF_HOME=tmp_path, **MODES[mode])
    assert fault.happened.wait(60)
    assert remote(local_hub, name) == {}
    local_hub.come_back()
    printed, errors = client.communicate()
    assert printed == "uploaded\n", errors
    assert remote(local_hub, name) == contents(folder)
    assert titles(local_hub, name) == ["upload", "initial commit"]


@pytest.mark.parametrize(
    ("mode", "place"),
    [
        ("lfs", ".*/commit/main"),
        ("xet", CONTENT["xet"]),
        pytest.param("lfs", CONTENT["lfs"], marks=pytest.mark.slow),
        pytest.param("xet", "/xet/v1/shards", marks=pytest.mark.slow),
    ],
)
def test_upload_that_was_killed_goes_on(local_hub, folder, tmp_path, mode, place):
    """By the same command; until then, the repository is as it was."""
    name = f"hvision/killed-{mode}-{'content' if place == CONTENT[mode] else 'end'}"
    fault = local_hub.faults.add("PUT|POST", place, CutUpload(after=10), goes_away=True)
    client = local_hub.start(UPLOAD, folder, name, HF_HOME=tmp_path, **MODES[mode])
    assert fault.happened.wait(60)
    client.kill()
    client.communicate()
    local_hub.come_back()
    assert remote(local_hub, name) == {}
    local_hub.log.clear()
    assert local_hub.run(UPLOAD, folder, name, HF_HOME=tmp_path, **MODES[mode]) == "uploaded\n"
    assert remote(local_hub, name) == contents(folder)
    assert titles(local_hub, name) == ["upload", "initial commit"]
    if place == ".*/commit/main":  # all contents were there already
        assert not [entry for entry in local_hub.log if entry.path.startswith("/lfs/")]


@every_mode
def test_only_what_is_missing_is_sent_again(local_hub, folder, tmp_path, mode):
    """Of large files that are sent in parts, or in blocks, those that arrived stay."""
    name, half = f"hvision/half-{mode}", tmp_path / "half"
    half.mkdir()
    (folder / "first.bin").rename(half / "first.bin")
    assert local_hub.run(UPLOAD, half, name, HF_HOME=tmp_path, **MODES[mode]) == "uploaded\n"
    (half / "first.bin").rename(folder / "first.bin")
    local_hub.log.clear()
    assert local_hub.run(UPLOAD, folder, name, HF_HOME=tmp_path, **MODES[mode]) == "uploaded\n"
    sent = [
        int(entry.headers["content-length"])
        for entry in local_hub.log
        if entry.path.startswith(("/lfs/", "/xet/v1/xorbs/"))
    ]
    assert SIZE <= sum(sent) < 1.1 * SIZE
    assert remote(local_hub, name) == contents(folder)


@pytest.mark.parametrize("status", [429, pytest.param(500, marks=pytest.mark.slow)])
@every_mode
def test_upload_is_tried_again(local_hub, folder, tmp_path, mode, status):
    """And waits as long as the Hub wants."""
    name = f"hvision/again-{mode}-{status}"
    fault = Answer(status, {"Retry-After": "0"} if status == 429 else {})
    local_hub.faults.add("PUT|POST", CONTENT[mode], fault, times=1)
    local_hub.log.clear()
    assert local_hub.run(UPLOAD, folder, name, HF_HOME=tmp_path, **MODES[mode]) == "uploaded\n"
    assert status in [entry.status for entry in local_hub.log]
    assert remote(local_hub, name) == contents(folder)


@pytest.mark.parametrize("status", [pytest.param(429, marks=pytest.mark.slow), 500])
def test_commit_that_is_refused_is_told(local_hub, folder, tmp_path, status):
    """By the client for LFS, which does not try it again: it might be done twice. The next upload goes on."""
    name = f"hvision/refused-{status}"
    local_hub.faults.add("POST", ".*/commit/main", Answer(status))
    assert local_hub.run(UPLOAD, folder, name, HF_HOME=tmp_path) == f"{status}\n"
    assert remote(local_hub, name) == {}
    assert local_hub.run(UPLOAD, folder, name, HF_HOME=tmp_path) == "uploaded\n"
    assert remote(local_hub, name) == contents(folder)


@pytest.fixture(scope="module")
def weights(local_hub, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Of the model hvision/small-lfs, and hvision/small-xet."""
    folder = save_small_model(tmp_path_factory.mktemp("small"))
    for mode, environment in MODES.items():
        assert local_hub.run(UPLOAD, folder, f"hvision/small-{mode}", **environment) == "uploaded\n"
    return load_file(folder / "model.safetensors")


LOAD = """
import json
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSemanticSegmentation
import offseg_hf
from offseg_hf.utils.hub_errors import is_temporary

seen = []
for name, cache, is_local in json.loads(sys.argv[1]):
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, cache_dir=cache, local_files_only=is_local)
        save_file(model.state_dict(), f"{cache}/loaded.safetensors")
        seen.append("loaded")
    except Exception as error:
        seen.append("failed for a while" if is_temporary(error) else f"{error!r} from {error.__cause__!r}")
print(json.dumps(seen))
"""
DOWNLOAD = (
    "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1], cache_dir=sys.argv[2])"
)
IMPATIENT = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2", "HF_XET_CLIENT_RETRY_MAX_DURATION": "2s"}
DATA = {"lfs": "/cdn/.*", "xet": "/xet/data/.*"}  # paths that contents come from


def load(local_hub, *cases: tuple[str, Path, bool], script: str = LOAD, **environment: str) -> list[str]:
    """What became of loading each (name, cache, only what is in it)."""
    cases = json.dumps([(name, str(cache), is_local) for name, cache, is_local in cases])
    return json.loads(local_hub.run(script, cases, **environment).splitlines()[-1])


@pytest.mark.slow
def test_half_of_a_download_is_never_loaded(local_hub, weights, tmp_path):
    """Neither when the Hub has gone away nor when the process was killed; the next one downloads the rest."""
    caches = []
    for mode, environment in MODES.items():
        name = f"hvision/small-{mode}"
        caches.append((name, tmp_path / f"gone-{mode}"))
        fault = local_hub.faults.add("GET", DATA[mode], CutDownload(after=10_000), goes_away=True)
        script = WITHOUT_WAITING + LOAD
        seen = load(local_hub, (*caches[-1], False), script=script, **environment, **IMPATIENT)
        assert seen == ["failed for a while"]
        assert fault.happened.wait(5)
        local_hub.come_back()

        caches.append((name, tmp_path / f"killed-{mode}"))
        fault = local_hub.faults.add("GET", DATA[mode], CutDownload(after=10_000), goes_away=True)
        client = local_hub.start(DOWNLOAD, *caches[-1], **environment)
        assert fault.happened.wait(60)
        client.kill()
        client.communicate()
        local_hub.come_back()

    tries = [(*cache, is_local) for cache in caches for is_local in (True, False, True)]
    seen = load(local_hub, *tries)
    for local, downloaded, local_then in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        assert "OSError" in local or local == "failed for a while", local
        assert (downloaded, local_then) == ("loaded", "loaded")
    for _, cache in caches:
        loaded = load_file(cache / "loaded.safetensors")
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def lose_twice(local_hub, mode: str) -> None:
    """Of the next download: the Hub is not to be had, and then the connection is lost."""
    local_hub.faults.add("HEAD", ".*/model.safetensors", Answer(429, {"Retry-After": "0"}))
    local_hub.faults.add("HEAD", ".*/model.safetensors", Answer(503))
    local_hub.faults.add("GET", DATA[mode], CutDownload(after=10_000))


@pytest.mark.parametrize("mode", ["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def test_download_is_tried_again(local_hub, weights, tmp_path, mode):
    """In the same call; the second loads what the first has downloaded."""
    lose_twice(local_hub, mode)
    local_hub.log.clear()
    cache = tmp_path / "cache"
    assert load(local_hub, *[(f"hvision/small-{mode}", cache, False)] * 2, **MODES[mode]) == ["loaded"] * 2
    statuses = [entry.status for entry in local_hub.log if entry.path.endswith("/model.safetensors")]
    assert statuses[:2] == [429, 503]
    assert len([entry for entry in local_hub.log if re.fullmatch(DATA[mode], entry.path)]) == 2
    loaded = load_file(cache / "loaded.safetensors")
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


ACCESS = """
import json
import os
import sys
from transformers import AutoModelForSemanticSegmentation, pipeline
import offseg_hf

seen = {}
for case in sys.argv[1:]:
    name, revision, os.environ["HF_TOKEN"] = case.split(" ")
    loaders = {
        "model": lambda: AutoModelForSemanticSegmentation.from_pretrained(name, revision=revision or None),
        "pipeline": lambda: pipeline("image-segmentation", model=name, revision=revision or None),
    }
    for loader, load in loaders.items():
        try:
            load()
            told = "loaded"
        except OSError as error:
            told = str(error)
        seen[f"{case} {loader}"] = told
print(json.dumps(seen))
"""
RESTRICT = """
import sys
from huggingface_hub import HfApi

for kind in ("private", "gated"):
    HfApi().create_repo(f"hvision/{kind}", private=kind == "private")
    HfApi().upload_folder(repo_id=f"hvision/{kind}", folder_path=sys.argv[1])
HfApi().update_repo_settings("hvision/gated", gated="manual")
"""


def test_models_that_may_not_be_read(local_hub, weights, tmp_path):
    """transformers tells all of them as OSErrors with a reason."""
    local_hub.run(RESTRICT, save_small_model(tmp_path / "small"))
    missing = "not a valid model identifier"
    own, stranger, expired = local_hub.token, local_hub.stranger_token, local_hub.expired_token
    cases = {
        f"hvision/missing  {own}": missing,
        "hvision/missing  ": missing,
        "hvision/private  ": missing,
        f"hvision/private  {stranger}": missing,
        f"hvision/private  {expired}": missing,
        "hvision/gated  ": "gated repo",
        f"hvision/gated  {stranger}": "gated repo",
        f"hvision/small-lfs v9 {own}": "v9 is not a valid git identifier",
        "hvision/small-lfs  hf_invented": "Invalid credentials in Authorization header",
        f"hvision/private  {own}": "loaded",  # last, then it is in the cache
        f"hvision/gated  {own}": "loaded",
    }
    seen = json.loads(local_hub.run(ACCESS, *cases, HF_HOME=tmp_path).splitlines()[-1])
    for case, expected in cases.items():
        for loader in ("model", "pipeline"):
            assert expected in seen[f"{case} {loader}"], (case, loader)


PRETRAINED = """
import json
import sys
import torch
from offseg_hf import MscanBackbone, MscanConfig, load_pretrained

torch.manual_seed(0)
model = MscanBackbone(MscanConfig.from_size("t"))
before = {key: value.clone() for key, value in model.state_dict().items()}
seen = []
for _ in range(2):
    try:
        report = load_pretrained(model, "hvision/mscan")
        seen.append(report.used)
    except OSError as error:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        seen.append(str(error))
print(json.dumps(seen))
"""


def test_load_pretrained_with_a_lost_connection(local_hub, tmp_path):
    """A download that was reset leaves the model as it was; of one that was cut, the rest is asked for."""
    official = official_state_dict("segnext-t-offset-ade")
    weights = {key.removeprefix("backbone."): x for key, x in official.items() if key.startswith("backbone.")}
    folder = tmp_path / "mscan"
    folder.mkdir()
    torch.save({"state_dict": weights}, folder / "pytorch_model.bin")
    assert (folder / "pytorch_model.bin").stat().st_size > 12 * 2**20  # the client goes on at steps of 10 MiB
    assert local_hub.run(UPLOAD, folder, "hvision/mscan") == "uploaded\n"
    local_hub.faults.add("GET", DATA["lfs"], CutDownload(after=12 * 2**20, reset=True))
    local_hub.faults.add("GET", DATA["lfs"], CutDownload(after=12 * 2**20))
    local_hub.log.clear()
    seen = json.loads(local_hub.run(PRETRAINED, HF_HOME=tmp_path).splitlines()[-1])
    assert seen[0].startswith("hvision/mscan: the connection to the Hub was lost (")
    assert seen[1] == len(weights)
    requests = [(entry.headers.get("range"), entry.status) for entry in local_hub.log if entry.path[:5] == "/cdn/"]
    assert requests == [(None, 200), (None, 200), (f"bytes={10 * 2**20}-", 206)]
