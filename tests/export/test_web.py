"""`offseg export --web`: the page's folder, and the page in a browser, whose label maps are those of Python."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerImageProcessor

from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format
from offseg_hf.export.export import ExportOptions, export_model
from offseg_hf.export.web import onnxruntime_web
from offseg_hf.export.web.onnxruntime_web import ADDRESS, BESIDE, RUNTIME_FILES, VERSION
from offseg_hf.export.web.page import fill, title_of
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.utils.files import new_folder
from tests.browser import Browser, find_browser
from tests.export.web_support import margins, node_modules, serving
from tests.small_model import save_small_model


MARGIN = 1e-4  # of scores: WebAssembly and torch add up in other orders
SIZES = [(120, 90), (64, 64), (333, 250)]  # of photos: the network sees windows of 64 x 64


# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("web") / "mine" / "best", "segformer")


@pytest.fixture(scope="module")
def offline(model, tmp_path_factory) -> tuple[Path, dict]:
    """A page made where nothing can be fetched, and the report of the export."""
    output = tmp_path_factory.mktemp("offline") / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_web, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_ASSETS_CACHE", str(output.parent / "assets"))
        patch.setattr(onnxruntime_web, "runtime_folder", lambda: output.parent / "assets")
        report = export_model(model, output, options=ExportOptions(web=True))
    return output, report


def settings_of(folder: Path) -> dict:
    return json.loads(re.search(r'id="settings">(.*?)</script>', (folder / "index.html").read_text(), re.S)[1])


@pytest.mark.slow
def test_the_folder_is_a_page_and_a_model(offline, model):
    folder, report = offline
    scripts = {"page.js", "worker.js", "protocol.js", "download.js", "png.js"}
    names = {path.name for path in folder.iterdir()}
    assert names >= scripts | {"index.html", "page.css", "example.png", "model.onnx", "config.json", "README.md"}
    settings, segmenter = settings_of(folder), Segmenter(model)
    assert settings["names"] == segmenter.names and len(settings["palette"]) == len(segmenter.names)
    assert settings["model"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert settings["protocol"]["window_size"] == 64 and settings["model"]["size"] == [64, 64]
    assert report["onnxruntime_web"] == settings["runtime"]["base"] == ADDRESS  # there was no network
    photo = render_scene(1, (100, 80))[0]
    assert (Segmenter(folder)(photo) == segmenter(photo)).mean() > 0.999


@pytest.mark.slow
def test_a_page_is_overwritten_as_a_model_is(offline, tmp_path):
    """Though it has a folder in it; another one in it would be somebody's."""
    shutil.copytree(offline[0], tmp_path / "page")
    (tmp_path / "page" / "mine").mkdir()
    with pytest.raises(FileExistsError), new_folder(tmp_path / "page", overwrite=True):
        pass
    (tmp_path / "page" / "mine").rmdir()
    with new_folder(tmp_path / "page", overwrite=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["new"]


@pytest.mark.slow
def test_the_page_needs_nothing_from_elsewhere(offline):
    """But for ONNX Runtime Web, where that could not be fetched, and what it says in its settings."""
    folder, _ = offline
    for path in (*folder.glob("*.js"), folder / "index.html", folder / "page.css"):
        text = re.sub(r'id="settings">.*?</script>', "", path.read_text(), flags=re.S)
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert "{{" not in text, path
    assert "default-src 'none'" in (folder / "index.html").read_text()


def test_what_a_page_says_of_a_model_is_no_markup():
    hostile = '</script><img src=x onerror="alert(1)"> {{ title }}'
    text = fill('<p>{{ title }}</p><script id="settings">{{ settings }}</script>', {"names": [hostile]}, title=hostile)
    assert "<img" not in text and text.count("</script>") == 1
    assert json.loads(re.search(r'id="settings">(.*)</script>', text)[1]) == {"names": [hostile]}


def test_titles_do_not_tell_folders(model):
    assert title_of(str(model)) == "mine" and title_of("hvision/offseg-t-ade") == "offseg-t-ade"


@pytest.mark.slow
def test_the_folder_for_transformers_js(offline, model):
    folder = offline[0] / "transformers_js"
    config = json.loads((folder / "config.json").read_text())
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert config["model_type"] == "segformer" and config["architectures"] == ["SegformerForSemanticSegmentation"]
    assert list(config["id2label"].values()) == Segmenter(model).names
    assert processor["size"] == {"height": 64, "width": 64} and not processor["do_pad"]
    assert (folder / "onnx" / "model.onnx").read_bytes() == (offline[0] / "model.onnx").read_bytes()
    assert 'pipeline("image-segmentation", "transformers_js", { dtype: "fp32" })' in (folder / "README.md").read_text()


def test_what_a_page_cannot_run_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="a page runs ONNX, got the format openvino: leave out --format, or --web"):
        export_model(model, tmp_path / "x", options=ExportOptions(Format.openvino, web=True))
    shutil.copytree(model, tmp_path / "other")
    SegformerImageProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="as OffSegImageProcessor does, got a model with SegformerImageProcessor"):
        export_model(tmp_path / "other", tmp_path / "x", options=ExportOptions(web=True))
    assert not (tmp_path / "x").exists()


# -- in a browser -----------------------------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(find_browser() is None, reason="needs Chromium, to open the page")


@pytest.fixture(scope="module")
def page(model, tmp_path_factory) -> Path:
    """A page with ONNX Runtime Web beside it."""
    packages = node_modules()
    assets = tmp_path_factory.mktemp("assets")
    for file in (file for both in RUNTIME_FILES.values() for file in both):
        shutil.copy(packages / "onnxruntime-web" / "dist" / file.name, assets / file.name)
    output = tmp_path_factory.mktemp("page") / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_web, "HF_HUB_OFFLINE", True)  # the digests are those of the package
        patch.setattr(onnxruntime_web, "runtime_folder", lambda: assets)
        report = export_model(model, output, options=ExportOptions(web=True))
    assert report["onnxruntime_web"] == BESIDE, VERSION
    return output


@pytest.fixture
def downloads(tmp_path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


READY = "document.documentElement.dataset.backend"
DONE = "document.querySelector('#legend li') && document.querySelector('#status').textContent.includes(' in ')"
# The software that stands in for a graphics processor here has no WebGPU: the page goes on with WebAssembly.
NO_GPU = "No available adapters."


def saved(browser: Browser, folder: Path, name: str) -> np.ndarray:
    browser("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.evaluate("document.querySelector('#save-labels').click()")
    path = folder / name
    for _ in range(200):
        if path.exists():
            break
        browser.evaluate("new Promise(done => setTimeout(done, 100))")
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
@in_a_browser
def test_label_maps_are_those_of_python(page, model, tmp_path, downloads):
    """Of every pixel where the order of sums does not decide; and the network is fetched once."""
    segmenter = Segmenter(model)
    with serving(page) as (url, asked), Browser(find_browser()) as browser:
        browser.go(f"{url}index.html")
        browser.wait(READY, 120)
        for index, size in enumerate(SIZES):
            photo = render_scene(index, size)[0]
            photo.save(tmp_path / f"photo{index}.png")
            browser.evaluate("document.querySelector('#legend').replaceChildren()")
            browser.choose_file("#file", tmp_path / f"photo{index}.png")
            browser.wait(f"{DONE} && document.querySelector('#status').textContent.startsWith('{size[0]} × ')", 120)
            got = saved(browser, downloads, f"photo{index}_labels.png")
            expected, sure = segmenter(photo), margins(segmenter, photo) > MARGIN
            assert got.shape == expected.shape and sure.mean() > 0.999
            assert np.array_equal(got[sure], expected[sure])
        assert not [error for error in browser.errors if NO_GPU not in error]
        assert asked.count("/model.onnx") == 1
        browser.go(f"{url}index.html?again")
        browser.wait(READY, 120)
        assert asked.count("/model.onnx") == asked.count("/ort-wasm-simd-threaded.wasm") == 1
        assert not [path for path in asked if "asyncify" in path]


@pytest.mark.slow
@in_a_browser
def test_the_page_answers(page, model, tmp_path):
    """To pointer and keys, to opacity, and to what is no photo; on a phone nothing is cut off."""
    segmenter, photo = Segmenter(model), render_scene(0, (120, 90))[0]
    photo.save(tmp_path / "photo.png")
    labels = segmenter(photo)
    with serving(page) as (url, _), Browser(find_browser()) as browser:
        browser.go(f"{url}index.html", width=390, height=844, dark=True)
        browser.wait(READY, 120)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        (tmp_path / "text.png").write_text("no photo")
        browser.choose_file("#file", tmp_path / "text.png")
        browser.wait("!document.querySelector('#problem').hidden")
        assert "cannot read text.png as an image" in browser.evaluate("document.querySelector('#problem').textContent")
        browser.choose_file("#file", tmp_path / "photo.png")
        browser.wait(DONE, 120)
        assert browser.evaluate("document.querySelector('#problem').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        legend = browser.evaluate("[...document.querySelectorAll('#legend .name')].map(name => name.textContent)")
        count = np.bincount(labels.ravel(), minlength=len(segmenter.names))
        assert legend[0] == segmenter.names[int(count.argmax())] and len(legend) == np.count_nonzero(count)

        box = browser.evaluate("(({x, y, width, height}) => [x, y, width, height])(overlay.getBoundingClientRect())")
        x, y = 30, 45  # of the photo
        place = {"x": box[0] + (x + 0.5) * box[2] / 120, "y": box[1] + (y + 0.5) * box[3] / 90}
        browser("Input.dispatchMouseEvent", type="mouseMoved", **place)
        browser.wait("!document.querySelector('#tip').hidden")
        named = browser.evaluate("document.querySelector('#tip b').textContent")
        assert named == segmenter.names[labels[y, x]]

        browser.evaluate("document.querySelector('#picture').focus()")
        browser.press("ArrowRight")
        browser.wait("!document.querySelector('#cursor').hidden")
        middle = browser.evaluate("document.querySelector('#spot').textContent")
        assert middle.startswith(segmenter.names[labels[45, 60]])
        browser.press("Enter")
        pressed = "document.querySelector('#legend [aria-pressed=true] .name')?.textContent"
        assert browser.evaluate(pressed) == segmenter.names[labels[45, 60]]
        browser.press("Escape")
        assert browser.evaluate(pressed) is None
        browser.evaluate("opacity.value = 20; opacity.dispatchEvent(new Event('input'))")
        assert browser.evaluate("overlay.style.opacity") == "0.2"
        browser.evaluate("document.querySelector('#example').click()")
        browser.wait("document.querySelector('#status').textContent.startsWith('640 × 480 ')", 120)


TRANSFORMERS_PAGE = """<!doctype html><script type="module">
import { pipeline, env } from "./node_modules/@huggingface/transformers/dist/transformers.min.js";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./";
const own = "./node_modules/@huggingface/transformers/node_modules/onnxruntime-web/dist/";
env.backends.onnx.wasm.wasmPaths = new URL(own, location).href;
try {
  const segmenter = await pipeline("image-segmentation", "transformers_js", { dtype: "fp32", device: "wasm" });
  const segments = await segmenter("photo.png");
  const bits = mask => [...mask.data].map(value => (value > 0 ? 1 : 0)).join("");
  window.result = segments.map(({ label, mask }) => ({ label, mask: bits(mask) }));
} catch (error) {
  window.result = String(error.stack);
}
</script>"""


@pytest.mark.slow
@in_a_browser
def test_transformers_js_loads_its_folder(page, model, tmp_path):
    """A photo of the network's own size is not resized: what is left is its interpolation of the scores."""
    segmenter, photo = Segmenter(model), render_scene(2, (64, 64))[0]
    shutil.copytree(page / "transformers_js", tmp_path / "transformers_js")
    (tmp_path / "node_modules").symlink_to(node_modules())
    (tmp_path / "index.html").write_text(TRANSFORMERS_PAGE)
    photo.save(tmp_path / "photo.png")
    with serving(tmp_path) as (url, _), Browser(find_browser()) as browser:
        browser.go(f"{url}index.html")
        browser.wait("window.result", 180)
        result = browser.evaluate("window.result")
    assert isinstance(result, list), result
    got = np.full((64, 64), -1)
    for segment in result:
        mask = np.frombuffer(segment["mask"].encode(), np.uint8).reshape(64, 64) == ord("1")
        got[mask] = segmenter.names.index(segment["label"])
    assert (got == segmenter(photo)).mean() > 0.95
