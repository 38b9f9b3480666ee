"""The Hub of the tests is one to the real clients, huggingface_hub and transformers, in processes of their own."""

import json
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

TEXT = "offsets for classes and features\n"
WEIGHTS = bytes(range(256)) * 10_000  # 2.56 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of every kind: text, large, nested, empty, with a name that must be quoted, and a model card."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "sub folder" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "sub folder" / "100% ä+b.txt").write_text(TEXT)
    (folder / "sub folder" / "deep" / "weights.bin").write_bytes(WEIGHTS[:1000])
    (folder / "README.md").write_text("---\npipeline_tag: image-segmentation\ntags:\n- offset\n---\n# Card\n")
    return folder


@pytest.fixture(scope="module")
def public(local_hub, folder) -> str:
    """The name of a repository that holds `folder`."""
    local_hub.run(
        "import sys; from huggingface_hub import HfApi; HfApi().create_repo('hvision/public');"
        "HfApi().upload_folder(repo_id='hvision/public', folder_path=sys.argv[1])",
        folder,
    )
    return "hvision/public"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


DOWNLOAD = """
import json
import sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

name = sys.argv[1]
api = HfApi()
info = api.model_info(name, files_metadata=True)
tree = list(api.list_repo_tree(name))
print(json.dumps({
    "user": api.whoami()["name"],
    "snapshot": snapshot_download(name),
    "file": hf_hub_download(name, "sub folder/100% ä+b.txt"),
    "tag": info.pipeline_tag,
    "card": info.card_data.to_dict(),
    "sizes": {file.rfilename: file.size for file in info.siblings},
    "hash": next(file.lfs.sha256 for file in info.siblings if file.rfilename == "model.safetensors"),
    "top": [entry.path for entry in tree],
    "below": [entry.path for entry in api.list_repo_tree(name, "sub folder", recursive=True)],
    "some": [entry.path for entry in api.get_paths_info(name, ["config.json", "sub folder", "nothing"])],
    "titles": [commit.title for commit in api.list_repo_commits(name)],
    "sha": info.sha,
}))
"""


def test_what_was_uploaded_comes_back(local_hub, public, folder):
    local_hub.log.clear()
    seen = json.loads(local_hub.run(DOWNLOAD, public))
    assert seen["user"] == "tester"
    assert contents(Path(seen["snapshot"])) == contents(folder)
    assert Path(seen["file"]).read_text() == TEXT
    assert Path(seen["snapshot"]).name == seen["sha"]

    assert seen["tag"] == "image-segmentation" and seen["card"]["tags"] == ["offset"]
    assert seen["sizes"].pop(".gitattributes") > 0
    assert seen["sizes"] == {name: len(content) for name, content in contents(folder).items()}
    assert (local_hub.hub.blobs.folder / seen["hash"]).read_bytes() == WEIGHTS
    assert seen["top"] == [
        "sub folder",
        ".gitattributes",
        "README.md",
        "config.json",
        "empty.txt",
        "model.safetensors",
    ]
    assert seen["below"] == ["sub folder/deep", "sub folder/100% ä+b.txt", "sub folder/deep/weights.bin"]
    assert sorted(seen["some"]) == ["config.json", "sub folder"]
    assert seen["titles"] == ["Upload folder using huggingface_hub", "initial commit"]

    redirected = [entry for entry in local_hub.log if entry.status == 302 and entry.method == "HEAD"]
    assert sorted(entry.path.rpartition("/")[2] for entry in redirected) == ["model.safetensors", "weights.bin"]
    from_network = [entry for entry in local_hub.log if entry.path.startswith("/cdn/")]
    assert len(from_network) == 2 and all("authorization" not in map(str.lower, e.headers) for e in from_network)


CHANGE = """
import sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

api = HfApi()
name = "tester/changing"
first = api.create_repo(name, exist_ok=True)
assert first == api.create_repo(name, exist_ok=True)
additions = [CommitOperationAdd("a.txt", b"one"), CommitOperationAdd("b/c.txt", b"c")]
one = api.create_commit(name, additions, commit_message="1")
api.create_tag(name, tag="v1")
api.create_branch(name, branch="feature/x")
api.upload_file(repo_id=name, path_or_fileobj=b"branch", path_in_repo="a.txt", revision="feature/x")
two = api.create_commit(
    name, [CommitOperationAdd("a.txt", b"two"), CommitOperationDelete("b/", is_folder=True)], commit_message="2"
)
for revision in (None, "main", "v1", "feature/x", one.oid, one.oid[:10], two.oid):
    with open(api.hf_hub_download(name, "a.txt", revision=revision)) as file:
        print(revision if revision in (None, "main", "v1", "feature/x") else "commit", file.read())
refs = api.list_repo_refs(name)
print([branch.name for branch in refs.branches], [tag.name for tag in refs.tags])
print(api.list_repo_files(name), api.list_repo_files(name, revision="v1"))
for refused in ({"parent_commit": one.oid}, {"create_pr": True}):
    try:
        api.create_commit(name, [CommitOperationAdd("a.txt", b"3")], commit_message="3", **refused)
    except OSError as error:
        print(error.response.status_code)
api.delete_branch(name, branch="feature/x")
api.delete_tag(name, tag="v1")
print(api.revision_exists(name, "v1"), api.revision_exists(name, "main"))
api.delete_repo(name)
print(api.repo_exists(name))
"""


def test_revisions(local_hub):
    assert local_hub.run(CHANGE).splitlines() == [
        "None two",
        "main two",
        "v1 one",
        "feature/x branch",
        "commit one",
        "commit one",
        "commit two",
        "['main', 'feature/x'] ['v1']",
        "['.gitattributes', 'a.txt'] ['.gitattributes', 'a.txt', 'b/c.txt']",
        "412",
        "400",
        "False True",
        "False",
    ]


def test_upload_in_parts(local_hub, folder, monkeypatch):
    """And once only: contents that the Hub has are not sent again."""
    monkeypatch.setattr(local_hub.hub, "part_size", 300_000)
    (folder.parent / "large.bin").write_bytes(WEIGHTS[::-1])
    script = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("tester/parts", exist_ok=True)
HfApi().upload_file(repo_id="tester/parts", path_or_fileobj=sys.argv[1], path_in_repo=sys.argv[2])
"""
    local_hub.log.clear()
    local_hub.run(script, folder.parent / "large.bin", "large.bin")
    local_hub.run(script, folder.parent / "large.bin", "again.bin")
    sent = [(entry.method, entry.status) for entry in local_hub.log if entry.path.startswith("/lfs/")]
    assert sent == [("PUT", 200)] * 9 + [("POST", 200)]
    files = local_hub.hub.repository("models", "tester/parts", local_hub.token).resolve("main").files
    assert files["large.bin"] == files["again.bin"]
    assert local_hub.hub.blobs.read(files["again.bin"]) == WEIGHTS[::-1]


ACCESS = """
import sys
from tempfile import TemporaryDirectory
from huggingface_hub import hf_hub_download

name, file, revision, *tokens = sys.argv[1:]
for token in tokens:
    with TemporaryDirectory() as cache:  # of its own: what one has downloaded, the next would find
        try:
            hf_hub_download(name, file, revision=revision, token=token or False, cache_dir=cache)
            print("downloaded")
        except OSError as error:
            print(type(error).__name__, error.response.status_code)
"""
RESTRICT = """
from huggingface_hub import HfApi

api = HfApi()
for kind in ("private", "gated"):
    api.create_repo(f"hvision/{kind}", private=kind == "private")
    api.upload_file(repo_id=f"hvision/{kind}", path_or_fileobj=b"{}", path_in_repo="config.json")
api.update_repo_settings("hvision/gated", gated="manual")
"""
GRANT = "from huggingface_hub import HfApi; HfApi().grant_access('hvision/gated', 'stranger')"


def test_access(local_hub, public):
    """Without a token, with a stranger's, the owner's, one that the Hub never gave out, and one of the past."""
    local_hub.run(RESTRICT)
    tokens = ("", local_hub.stranger_token, local_hub.token, "hf_invented", local_hub.expired_token)
    hidden = ["RepositoryNotFoundError 401", "RepositoryNotFoundError 404"]
    refused = ["HfHubHTTPError 401", "RepositoryNotFoundError 401"]
    for name, expected in {
        public: ["downloaded"] * 3 + refused,
        "hvision/private": [*hidden, "downloaded", *refused],
        "hvision/missing": [*hidden, hidden[1], *refused],
        "hvision/gated": ["GatedRepoError 401", "GatedRepoError 403", "downloaded", *refused],
    }.items():
        assert local_hub.run(ACCESS, name, "config.json", "main", *tokens).splitlines() == expected, name
    local_hub.run(GRANT)
    assert local_hub.run(ACCESS, "hvision/gated", "config.json", "main", *tokens[:2]).split() == [
        "GatedRepoError",
        "401",
        "downloaded",
    ]


@pytest.mark.parametrize(
    ("file", "revision", "error"),
    [("nothing.json", "main", "RemoteEntryNotFoundError"), ("config.json", "v9", "RevisionNotFoundError")],
)
def test_what_is_missing_is_named(local_hub, public, file, revision, error):
    assert local_hub.run(ACCESS, public, file, revision, "") == f"{error} 404\n"


LISTS = """
import json
import os
from huggingface_hub import HfApi, auth_check
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

api = HfApi()
for name in ("one", "two", "three"):
    api.create_repo(f"timm/{name}", private=name == "three")
api.create_repo("timm/scenes", repo_type="dataset")
card = "---\\ntags:\\n- offset\\n---\\n"
api.upload_file(repo_id="timm/two", path_or_fileobj=card.encode(), path_in_repo="README.md")
stranger = HfApi(token=os.environ["STRANGER"])
stranger.create_repo("stranger/gated")
stranger.update_repo_settings("stranger/gated", gated="auto")
auth_check("timm/three")
try:
    auth_check("stranger/gated")
except GatedRepoError as error:
    refused = error.response.status_code
try:
    HfApi(token=os.environ["EXPIRED"]).whoami()
except HfHubHTTPError as error:
    expired = error.response.headers["X-Error-Message"]
print(json.dumps({
    "refused": refused,
    "expired": expired,
    "models": [model.id for model in api.list_models(author="timm")],
    "public": [model.id for model in stranger.list_models(author="timm")],
    "found": [model.id for model in api.list_models(author="timm", search="T")],
    "limited": [model.id for model in api.list_models(author="timm", limit=2)],
    "tagged": [model.id for model in api.list_models(filter="offset", author="timm")],
    "datasets": [data.id for data in api.list_datasets(author="timm")],
    "tree": sorted(api.list_repo_files("hvision/public")),
}))
"""


def test_lists(local_hub, public, folder, monkeypatch):
    """They come in pages, of one entry each here."""
    monkeypatch.setattr(local_hub.hub, "page_size", 1)
    tokens = {"STRANGER": local_hub.stranger_token, "EXPIRED": local_hub.expired_token}
    seen = json.loads(local_hub.run(LISTS, **tokens))
    assert seen["refused"] == 403 and seen["expired"].endswith("is expired")
    assert seen["models"] == ["timm/three", "timm/two", "timm/one"]
    assert seen["public"] == ["timm/two", "timm/one"]
    assert seen["found"] == ["timm/three", "timm/two", "timm/one"]  # in the whole name
    assert seen["limited"] == ["timm/three", "timm/two"]
    assert seen["tagged"] == ["timm/two"]
    assert seen["datasets"] == ["timm/scenes"]
    assert seen["tree"] == sorted([".gitattributes", *contents(folder)])


def test_only_members_write(local_hub, public):
    script = """
from huggingface_hub import HfApi

for attempt in (
    lambda: HfApi().create_repo("hvision/mine"),
    lambda: HfApi().upload_file(repo_id="hvision/public", path_or_fileobj=b"", path_in_repo="config.json"),
):
    try:
        attempt()
    except OSError as error:
        print(error.response.status_code)
"""
    for token in (local_hub.stranger_token, local_hub.read_only_token):
        assert local_hub.run(script, HF_TOKEN=token).split() == ["403", "403"]
    assert local_hub.run(script, HF_TOKEN="").split() == ["401", "401"]


@pytest.mark.parametrize(
    ("wanted", "status", "expected"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=2559990-", 206, slice(2559990, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=2559990-9999999", 206, slice(2559990, None)),
        ("bytes=2560000-", 416, None),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges(local_hub, public, wanted, status, expected):
    commit = local_hub.hub.repository("models", public, None).resolve("main")
    connection = HTTPConnection(urlsplit(local_hub.endpoint).netloc)
    path = f"/cdn/{commit.files['model.safetensors'].sha256}"
    connection.request("GET", path, headers={"Range": wanted})
    response = connection.getresponse()
    body = response.read()
    assert response.status == status
    if expected is not None:
        assert body == WEIGHTS[expected]
    if status == 206:
        start = expected.indices(len(WEIGHTS))[0]
        assert response.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(WEIGHTS)}"

    connection.request("HEAD", path)  # over the same connection: nothing of the last answer is left in it
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"], response.read()) == (200, "2560000", b"")
    connection.close()


PUSH_AND_LOAD = """
import sys
import offseg_hf
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

folder, name = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
model.push_to_hub(name, private=True)
processor.push_to_hub(name)
with torch.no_grad():
    model.offset_learning.class_representation.zero_()
model.push_to_hub(name, revision="zero")

for revision in ("main", "zero"):
    again = AutoModelForSemanticSegmentation.from_pretrained(name, revision=revision)
    print(type(again).__name__, again.offset_learning.class_representation.any().item())
assert AutoImageProcessor.from_pretrained(name).to_dict() == processor.to_dict()
try:
    AutoModelForSemanticSegmentation.from_pretrained(name, token=False, cache_dir=folder)
except OSError as error:
    print("is not a valid model identifier" in str(error))
"""


def test_models_of_transformers(local_hub, tmp_path):
    """Pushed to a private repository and to a branch of it, and loaded from there."""
    save_small_model(tmp_path)
    lines = local_hub.run(PUSH_AND_LOAD, tmp_path, "hvision/offseg-small").splitlines()
    assert lines == ["OffSegForSemanticSegmentation True", "OffSegForSemanticSegmentation False", "True"]
    files = local_hub.hub.repository("models", "hvision/offseg-small", local_hub.token).resolve("main").files
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_offseg.py"} <= set(files)
