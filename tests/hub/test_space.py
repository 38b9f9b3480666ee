"""`offseg push --space`: a Space on the tests' Hub, and what runs in it, with the model from there."""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from PIL import Image

from offseg_hf.data.scenes.street import render_scene
from offseg_hf.hub.space.files import GRADIO
from offseg_hf.inference.segmenter import Segmenter
from tests.browser import Browser, find_browser
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

COMMAND = """
import sys
from offseg_hf.cli import app
app(["push", *sys.argv[1:]], prog_name="offseg")
"""
PUSHES = """
import json
import sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi
from offseg_hf.hub.push import push_space

folder, name, api, seen = Path(sys.argv[1]), "tester/model", HfApi(), {}
card = CommitOperationAdd("README.md", b"---\\nsdk: gradio\\n---\\nMine")
api.create_commit(name, [card], commit_message="By hand", repo_type="space")
for overwrite in (False, True):
    changes = push_space(folder, name, overwrite=overwrite).changes
    seen[str(overwrite)] = {"add": sorted(changes.add), "kept": changes.kept}
try:
    push_space(folder, name, private=True)
except ValueError as error:
    seen["private"] = str(error)
print(json.dumps(seen))
"""
# What the Space does, without this package and without gradio.
RUN = """
import sys
sys.modules["offseg_hf"] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import app
from PIL import Image
kept, shown, legend = app.segment(Image.open(sys.argv[2]), 1.0)
Image.fromarray(kept[1].astype("uint8")).save(sys.argv[3])
shown.save(sys.argv[4])
assert (app.np.asarray(app.fade(kept, 0.0)) == app.np.asarray(kept[0])).all()
assert app.segment(None, 0.5) == (None, None, "") and app.fade(None, 0.5) is None
print(legend)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture(scope="module")
def printed(local_hub, folder) -> list[str]:
    """What the command says, the first time and the second."""
    return [local_hub.run(COMMAND, folder, "tester/model", "--space") for _ in range(2)]


@pytest.fixture(scope="module")
def space(local_hub, printed, tmp_path_factory) -> Path:
    """The files of the Space, as the Hub has them."""
    target = tmp_path_factory.mktemp("space")
    files = local_hub.hub.repository("spaces", "tester/model", local_hub.token).resolve("main").files
    for name, entry in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(local_hub.hub.blobs.read(entry))
    return target


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    render_scene(3, (120, 90))[0].save(path)
    return path


def test_model_and_space_go_up(local_hub, printed):
    model, page = printed[0].splitlines()
    assert model.startswith(f"{local_hub.endpoint}/tester/model: ")
    assert page.startswith(f"{local_hub.endpoint}/spaces/tester/model: 5 files")
    assert all(line.endswith(": all was there") for line in printed[1].splitlines())


def test_the_space_is_complete(space, folder):
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert names >= {"README.md", "app.py", "requirements.txt", "space.json", "examples/drawn_street.png"}
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio" and front["sdk_version"] == GRADIO and front["app_file"] == "app.py"
    assert front["models"] == ["tester/model"] and "/tester/model)" in text
    assert f"gradio=={GRADIO}" in (space / "requirements.txt").read_text().splitlines()
    assert json.loads((space / "space.json").read_text())["names"] == Segmenter(folder).names


def test_it_segments_as_the_model_does(local_hub, space, folder, photo, tmp_path):
    legend = local_hub.run(RUN, space, photo, tmp_path / "labels.png", tmp_path / "shown.png")
    segmenter = Segmenter(folder)
    expected, got = segmenter(Image.open(photo)), np.asarray(Image.open(tmp_path / "labels.png"))
    assert expected.shape == got.shape and (expected == got).mean() > 0.999
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), np.asarray(segmenter.palette)[got])
    count = np.bincount(got.ravel())
    largest = int(count.argmax())
    assert segmenter.names[largest] in legend and f"{100 * count[largest] / got.size:.1f} %" in legend
    assert legend.count("<tr>") == np.count_nonzero(count)


@pytest.mark.slow
def test_what_others_changed_is_kept(local_hub, printed, space, folder):
    seen = json.loads(local_hub.run(PUSHES, folder).splitlines()[-1])
    assert seen["False"] == {"add": [], "kept": ["README.md"]}
    assert seen["True"] == {"add": ["README.md"], "kept": []}
    assert f"{local_hub.endpoint}/spaces/tester/model/settings" in seen["private"]


@pytest.fixture(scope="module")
def gradio() -> Path:
    """A Python with gradio and its own Pillow, which borrows all else from this one."""
    folder = Path(__file__).parents[2] / ".cache" / f"gradio-{GRADIO}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", f"gradio=={GRADIO}"], capture_output=True)
        if done.returncode:
            pytest.skip(f"gradio cannot be installed: {done.stderr.decode()[-300:]}")
        packages = next(folder.glob("lib/python*/site-packages"))
        ours = [path for path in sys.path if path.endswith("site-packages")]  # an environment may borrow, too
        (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in ours))
        (folder / "installed").touch()
    return python


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium")
def test_the_space_in_a_browser(local_hub, space, photo, gradio, tmp_path):
    environment = local_hub.environment | {
        "GRADIO_SERVER_PORT": "17860",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(tmp_path),
    }
    server = subprocess.Popen([gradio, "app.py"], cwd=space, env=environment, stderr=subprocess.PIPE)
    try:
        wait_for("http://127.0.0.1:17860/", server)
        with Browser(find_browser()) as browser:
            browser.go("http://127.0.0.1:17860/")
            browser.wait("document.querySelector('input[type=file]')", 60)
            assert "tester/model" in browser.evaluate("document.body.innerText")
            browser.choose_file("input[type=file]", photo)
            browser.wait(
                "document.querySelector('table td img, td span') && document.body.innerText.includes(' %')", 120
            )
            browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "space.png")
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while True:
        assert server.poll() is None, server.stderr.read().decode()[-2000:]
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end, "the Space does not start"
            time.sleep(0.5)
