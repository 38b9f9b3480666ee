"""Large files by xet, with the real hf_xet: uploaded so, uploaded as LFS, and each downloaded both ways."""

import json
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.local_hub import MODES


pytest_plugins = ["tests.local_hub.fixtures"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By way of uploading, files that xet cuts, compresses and repeats in all the ways it knows."""
    folders = {}
    for seed, mode in enumerate(MODES):
        rng = np.random.default_rng(seed)
        folder = folders[mode] = tmp_path_factory.mktemp(mode)
        weights = rng.standard_normal(300_000, dtype=np.float32).tobytes()  # its bytes are best grouped by fours
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "text.bin").write_bytes(b"%d offsets for classes " % seed * 50_000)
        (folder / "noise.bin").write_bytes(rng.bytes(300_001))  # not to be compressed
        (folder / "zeros.bin").write_bytes(bytes([seed]) * 1_000_003)  # the same chunk, time and again
        (folder / "both.bin").write_bytes(rng.bytes(100_000) + weights + weights)
    return folders


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo(sys.argv[2], exist_ok=True)
print(HfApi().upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1]).oid)
"""


@pytest.fixture(scope="module")
def uploaded(local_hub, folders) -> dict[str, list[str]]:
    """By way of uploading, what the client asked for."""
    requests = {}
    for mode, folder in folders.items():
        local_hub.log.clear()
        local_hub.run(UPLOAD, folder, f"hvision/{mode}", **MODES[mode])
        requests[mode] = [entry.path for entry in local_hub.log]
    return requests


DOWNLOAD = """
import filecmp
import json
import sys
from pathlib import Path
from huggingface_hub import HfFileSystem, snapshot_download
folder, name = sys.argv[1:]
files = sorted(path.name for path in Path(folder).iterdir())
same, *_ = filecmp.cmpfiles(folder, snapshot_download(name), files, shallow=False)
with HfFileSystem().open(f"{name}/both.bin") as file:
    file.seek(99_990)
    part = file.read(20)
print(json.dumps({"same": same, "part": part.hex()}))
"""
# Ranges of files are asked for one after the other, as it is done with files of gigabytes.
SMALL_STEPS = {"HF_XET_RECONSTRUCTION_MIN_RECONSTRUCTION_FETCH_SIZE": "150kb"}


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_comes_back(local_hub, folders, uploaded, tmp_path, mode, by):
    local_hub.log.clear()
    seen = json.loads(
        local_hub.run(DOWNLOAD, folders[mode], f"hvision/{mode}", **MODES[by], **SMALL_STEPS, HF_HOME=tmp_path)
    )
    assert seen["same"] == sorted(path.name for path in folders[mode].iterdir())
    assert bytes.fromhex(seen["part"]) == (folders[mode] / "both.bin").read_bytes()[99_990:][:20]
    paths = [entry.path for entry in local_hub.log]
    is_by_xet = (mode, by) == ("xet", "xet")
    assert is_by_xet == any(path.startswith("/xet/") for path in paths)
    if is_by_xet:
        assert len([path for path in paths if path.startswith("/xet/v1/reconstructions/")]) > len(seen["same"])


def test_way_of_uploading(uploaded):
    for mode, used, not_used in (("lfs", "/lfs/", "/xet/"), ("xet", "/xet/v1/xorbs/", "/lfs/")):
        assert any(path.startswith(used) for path in uploaded[mode])
        assert not any(path.startswith(not_used) for path in uploaded[mode])


def test_nothing_is_uploaded_twice(local_hub, folders, uploaded):
    """By the client that has done it before; nor as LFS, by which the same contents are known too."""
    commit = local_hub.hub.repository("models", "hvision/xet", None).resolve("main").id
    local_hub.log.clear()
    assert local_hub.run(UPLOAD, folders["xet"], "hvision/xet", **MODES["xet"]).strip() == commit
    local_hub.run(UPLOAD, folders["xet"], "hvision/again")
    assert not [entry.path for entry in local_hub.log if entry.path.startswith(("/xet/v1/xorbs/", "/lfs/"))]
    files = local_hub.hub.repository("models", "hvision/again", None).resolve("main").files
    assert (
        files["both.bin"] == local_hub.hub.repository("models", "hvision/xet", None).resolve("main").files["both.bin"]
    )


def test_only_with_tokens_of_xet(local_hub, uploaded):
    (store, *_) = local_hub.hub.xet.segments
    connection = HTTPConnection(urlsplit(local_hub.endpoint).netloc)

    def ask(method: str, path: str, token: str | None) -> tuple[int, dict]:
        connection.request(method, path, b"", {"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    place = "/api/models/hvision/xet/xet-{}-token/main"
    _, read = ask("GET", place.format("read"), local_hub.stranger_token)
    assert ask("GET", place.format("write"), local_hub.stranger_token)[0] == 403
    assert ask("GET", place.format("write"), None)[0] == 401
    file = f"/xet/v1/reconstructions/{store}"
    assert [ask("GET", file, token)[0] for token in (None, local_hub.token, read["accessToken"])] == [401, 401, 200]
    assert ask("GET", f"/xet/v1/reconstructions/{'0' * 64}", read["accessToken"])[0] == 404
    assert ask("POST", f"/xet/v1/xorbs/default/{'0' * 64}", read["accessToken"])[0] == 403
    assert ask("POST", "/xet/v1/shards", read["accessToken"])[0] == 403
    connection.close()
