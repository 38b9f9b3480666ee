"""Every error that a user can meet between here and the Hub is one line that says what to do.

The commands run in a process that is a client of the tests' Hub; what the package is not asked to do by a command, the
real clients do themselves.
"""

import errno
import json
import os

import pytest
from PIL import Image
from safetensors import SafetensorError

from offseg_hf.utils.hub_errors import explain, is_temporary
from tests.local_hub import MODES
from tests.local_hub.faults import Answer, CutUpload
from tests.local_hub.fixtures import EXPIRED_TOKEN, READ_ONLY_TOKEN, STRANGER_TOKEN, TOKEN
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

SETUP = """
import json
import sys
from huggingface_hub import HfApi, snapshot_download

api, folder = HfApi(), sys.argv[1]
for name in ("private", "gated"):
    for kind, file in (("model", "config.json"), ("dataset", "data.csv")):
        api.create_repo(f"timm/{name}", repo_type=kind, private=name == "private")
        api.upload_file(repo_id=f"timm/{name}", repo_type=kind, path_or_fileobj=b"{}", path_in_repo=file)
for kind in ("model", "dataset"):
    api.update_repo_settings("timm/gated", repo_type=kind, gated="manual")
foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.Foreign"}}
for name, config in (("foreign", foreign), ("newer", {"model_type": "offseg-9"})):
    api.create_repo(f"tester/{name}")
    for file, content in (("config.json", config), ("preprocessor_config.json", config)):
        content = json.dumps(content).encode()
        api.upload_file(repo_id=f"tester/{name}", path_or_fileobj=content, path_in_repo=file)
api.create_repo("tester/model")
api.upload_folder(repo_id="tester/model", folder_path=folder)
api.create_tag("tester/model", tag="v0.1.0")
snapshot_download("tester/model")  # for who is offline later
"""

COMMANDS = """
import io
import json
import os
import sys
from contextlib import redirect_stderr
from offseg_hf.cli import app

for name, token, arguments in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    said, code = io.StringIO(), 0
    with redirect_stderr(said):
        try:
            app(arguments, prog_name="offseg")
        except SystemExit as error:
            code = error.code
    print("RESULT " + json.dumps([name, code, said.getvalue()]))
"""

CALLS = """
import json
import os
import sys
from datasets import load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
import offseg_hf
from offseg_hf.utils.hub_errors import explain, is_temporary

api = HfApi()


calls = {
    "client": lambda: hf_hub_download("tester/model", "config.json", revision="v9"),
    "transformers": lambda: AutoConfig.from_pretrained("tester/model", revision="v9"),
    "datasets": lambda: load_dataset("timm/private", revision="v9"),
    "file": lambda: hf_hub_download("tester/model", "weights/model.bin", revision="v0.1.0"),
    "name": lambda: hf_hub_download("not/a/name", "config.json"),
    "upload": lambda: api.upload_file(repo_id="tester/model", path_or_fileobj=b"1", path_in_repo="a.txt"),
    "conflict": lambda: api.upload_file(
        repo_id="tester/model", path_or_fileobj=b"1", path_in_repo="a.txt", parent_commit="0" * 40
    ),
    "create": lambda: api.create_repo("tester/new"),
    "refused": lambda: api.create_repo("facebook2/new"),
    "ours": lambda: int("x"),
}
explained = {}
for name, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        calls[name.partition(" ")[0]]()
    except Exception as error:
        explained[name] = [explain(error), is_temporary(error)]
print(json.dumps(explained))
"""


@pytest.fixture(scope="module")
def hub(local_hub, tmp_path_factory):
    """With a model, private and gated repositories, models that are not for this package; `.folder` has a photo."""
    local_hub.folder = tmp_path_factory.mktemp("files")
    local_hub.run(SETUP, save_small_model(local_hub.folder / "model"))
    Image.new("RGB", (64, 64)).save(local_hub.folder / "photo.png")
    return local_hub


def results(printed: str) -> list:
    return [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]


@pytest.fixture(scope="module")
def explained(hub) -> dict[str, tuple[str | None, bool]]:
    """What is said about each of the calls: the text, and whether it is temporary."""
    for status in (500, 503, 429):
        headers = {"Retry-After": "7"} if status == 429 else {}
        hub.faults.add("POST", "/api/repos/create", Answer(status, headers))
    hub.faults.add("POST", ".*/commit/main", CutUpload(10))
    names = ["client", "transformers", "datasets", "file", "name", "ours"]
    names += ["create 500", "create 503", "create 429", "upload lost", "conflict", "refused"]
    calls = [*((name, TOKEN) for name in names), ("upload read-only", READ_ONLY_TOKEN)]
    found = json.loads(hub.run(CALLS, json.dumps(calls)).splitlines()[-1])
    assert list(found) == [name for name, _ in calls]
    return {name: tuple(result) for name, result in found.items()}


def segment(hub, model: str) -> list[str]:
    return ["segment", str(hub.folder / "photo.png"), "--model", model, "--output", str(hub.folder / "out")]


def train(setting: str) -> list[str]:
    return ["train", "--config", "offseg-t-ade", setting, "data.num_workers=0", "data.source=timm/missing"]


def test_commands(hub):
    """By what must be in the line: the repository, and what to do."""
    model, settings = str(hub.folder / "model"), f"{hub.endpoint}/settings/tokens"
    log_in = "log in (`hf auth login`, or HF_TOKEN"
    cases = {
        # what is not there, or not for everyone
        ("", *segment(hub, "timm/missing")): ["there is no model timm/missing without a login", log_in],
        (TOKEN, *segment(hub, "timm/missing")): ["there is no model timm/missing for this account: check the name"],
        (STRANGER_TOKEN, *segment(hub, "timm/private")): ["no model timm/private for this account", "may read it"],
        ("", *segment(hub, "timm/gated")): ["timm/gated is gated: accept its terms", f"{hub.endpoint}/timm/gated"],
        (STRANGER_TOKEN, *segment(hub, "timm/gated")): [
            "timm/gated is gated: accept its terms",
            "log in with an account that may read it",
        ],
        (TOKEN, "data", "check", "timm/missing"): ["timm/missing", "check the name", "log in"],
        (STRANGER_TOKEN, "data", "check", "timm/gated"): ["timm/gated", "gated", "accept its terms"],
        (TOKEN, "evaluate", "--model", model, "--dataset", "timm/missing"): ["timm/missing", "check the name"],
        (TOKEN, *train("model.checkpoint=null")): ["timm/missing", "check the name"],
        # models that this package does not run
        (TOKEN, *segment(hub, "tester/foreign")): [
            "tester/foreign: nothing installed here knows its model type, foreign and brings code of its own",
            "pip install -U offseg-hf",
        ],
        (TOKEN, *segment(hub, "tester/newer")): ["`pip install -U offseg-hf transformers`"],
        # tokens
        (EXPIRED_TOKEN, *segment(hub, "timm/private")): ["refuses the token", "HF_TOKEN", "expired", settings],
        ("hf_invented", *segment(hub, "tester/model")): ["refuses the token", settings],
        ("", "push", model, "tester/new"): ["not logged in to the Hub", "`hf auth login`", settings],
        (EXPIRED_TOKEN, "push", model, "tester/new"): ["refuses the token", settings],
        (READ_ONLY_TOKEN, "push", model, "tester/new"): ["a token that may write, got one that may read", settings],
        (TOKEN, "push", model, "google/new"): ["expected a member of google, got tester", "ask to be invited"],
        (TOKEN, "push", model, "a/b/c"): ["expected an existing folder, or the name of a repository as user/name"],
        ("", "publish", model, "--org", "hvision"): ["not logged in to the Hub"],
        (STRANGER_TOKEN, "publish", model, "--org", "hvision"): ["expected a member of hvision, got stranger"],
    }
    arguments = [[str(number), token, rest] for number, (token, *rest) in enumerate(cases)]
    outcomes = results(hub.run(COMMANDS, json.dumps(arguments), OFFSEG_DEBUG=""))
    assert len(outcomes) == len(cases)
    for ((_, *rest), parts), (_, code, said) in zip(cases.items(), outcomes):
        (line,) = said.splitlines()
        assert code == 1 and line.startswith("error: "), (rest, said)
        assert all(part in line for part in parts), (rest, line)


def test_offline(hub):
    """What was downloaded works; what was not is told, and so is an upload."""
    model = str(hub.folder / "model")
    cases = [
        ["cached", TOKEN, segment(hub, "tester/model")],
        ["missing", TOKEN, [*segment(hub, "timm/missing"), "--overwrite"]],
        ["data", TOKEN, ["data", "check", "timm/missing"]],
        ["push", TOKEN, ["push", model, "tester/new"]],
    ]
    cached, *others = results(hub.run(COMMANDS, json.dumps(cases), HF_HUB_OFFLINE="1"))
    assert cached[1] == 0, cached
    for name, code, said in others:
        assert code == 1 and "offline mode is on (HF_HUB_OFFLINE)" in said and "unset" in said, (name, said)


def test_without_a_network(hub):
    """Nobody listens at port 9."""
    cases = [["push", TOKEN, ["push", str(hub.folder / "model"), "tester/new"]]]
    ((_, code, said),) = results(hub.run(COMMANDS, json.dumps(cases), HF_ENDPOINT="http://127.0.0.1:9"))
    assert code == 1 and "no connection to http://127.0.0.1:9 (" in said and "run the same command again" in said


def test_revisions_and_files(hub, explained):
    """What was asked for is named, and where it is seen what there is; for whichever library asked."""
    for call, kind, name in (
        ("client", "model", "tester/model"),
        ("transformers", "model", "tester/model"),
        ("datasets", "data set", "timm/private"),
    ):
        text, passes = explained[call]
        assert f"the {kind} {name} has no such revision ({hub.endpoint}/" in text and "v9" in text, text
        assert text.endswith(f"{name}/commits") and not passes
    text, _ = explained["file"]
    asked = f"{hub.endpoint}/tester/model/resolve/v0.1.0/weights/model.bin"
    assert text == f"the model tester/model has no such file ({asked}): see {hub.endpoint}/tester/model/tree/main"
    text, _ = explained["name"]
    assert "'not/a/name'" in text and "as user/name" in text


def test_full_disks():
    """As the system says it, and safetensors, of which there is a text only."""
    system = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/last/model.safetensors")
    text = 'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'
    for error, where in ((system, " at runs/last/model.safetensors"), (SafetensorError(text), "")):
        explanation = explain(error)
        assert explanation.startswith(f"no space left on the disk{where}: free some") and "hf cache rm" in explanation
        assert not is_temporary(error)


XET = """
import os
from huggingface_hub import HfApi
from offseg_hf.utils.hub_errors import explain, is_temporary

for content in range(2):
    try:
        HfApi().upload_file(
            repo_id="tester/model", path_or_fileobj=bytes([content]) * 100_000, path_in_repo="weights.safetensors"
        )
    except Exception as error:
        print(is_temporary(error), explain(error))
"""


def test_xet(hub):
    """Its library has its own errors."""
    hub.faults.add("POST", "/xet/v1/xorbs/.*", Answer(500), times=2)
    hub.faults.add("POST", "/xet/v1/xorbs/.*", CutUpload(100), times=9)
    impatient = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_MAX_DURATION": "2s"}
    trouble, lost = hub.run(XET, **MODES["xet"], **impatient).splitlines()
    assert trouble.startswith("True the Hub has a problem of its own (500): wait a while")
    assert lost.startswith("True the connection to the Hub was lost (Network error: ")


def test_errors_of_other_kinds_are_not_explained(explained):
    assert explained["ours"] == (None, False)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        ("create 500", ["problem of its own (500", "wait a while", "run the same command again"]),
        ("create 503", ["problem of its own (503"]),
        ("create 429", ["too many requests to the Hub: wait 7 seconds"]),
        ("upload lost", ["the connection to the Hub was lost (", "it continues"]),
        ("conflict", ["the repository was changed by someone else meanwhile", "run the same command again"]),
    ],
)
def test_trouble_that_passes(explained, call, parts):
    text, passes = explained[call]
    assert all(part in text for part in parts), text
    assert passes


def test_rights(explained):
    for call in ("upload read-only", "refused"):
        text, passes = explained[call]
        assert text.startswith("no rights for this at the repository") and "may write" in text and not passes
