"""The report: what its page holds, that it needs nothing from elsewhere, and how it looks and answers in a browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.evaluation import page as page_module
from offseg_hf.evaluation.calibration import grid
from offseg_hf.evaluation.comparison import SavedEvaluation, compare
from offseg_hf.evaluation.evaluate import report_again
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.outputs import write_json
from offseg_hf.evaluation.page import PAGE, page, page_data, write_page
from offseg_hf.evaluation.pictures import MAX_SIDE, draw_thumbnail, picture_files, write_pictures
from offseg_hf.evaluation.report import metric_report
from tests.browser import Browser, find_browser
from tests.evaluation.counted import counted


HOSTILE = "</script><script>document.title='broken'</script> & {{ data }} \"'"
VOID_TAGS = {"meta", "input", "link", "br", "img"}


def facts(labels: LabelSet, images: int, model: str = "runs/mine/best") -> dict:
    """What a report has beside its numbers."""
    return {
        "model": {"name": model, "class": "OffSegForSemanticSegmentation", "num_parameters": 6_200_000},
        "dataset": {"title": labels.title, "split": "validation", "num_images": images},
        "protocol": {"test_time_augmentation": None, "dtype": "float32"},
        "environment": {
            **dict.fromkeys(("offseg_hf", "torch", "transformers"), "1.0"),
            "device": "cpu (x)",
            "finished": "2026-11-28T00:00:00+00:00",
        },
    }


def reported(labels: LabelSet, counts: ImageCounts, metric: MeanIoU, model: str = "runs/mine/best") -> dict:
    matrix = metric.confusion_matrix.numpy()
    result = {**metric.compute(), "confusion_matrix": matrix, "image_counts": counts}
    return {**metric_report(result, labels), **facts(labels, len(counts), model)}


def street_evaluation(folder: Path, shift: int, model: str, other: Path | None = None) -> Path:
    """An evaluation of scenes, whose predictions are shifted and whose cars are people; two images are special."""
    counts, metric = ImageCounts(len(SCENE_LABELS)), MeanIoU(len(SCENE_LABELS))
    car, person = SCENE_LABELS.names.index("car"), SCENE_LABELS.names.index("person")
    for index in range(5):
        photo, label = render_scene(index, (64 + 20 * index, 48))
        label[:4, :20] = 255
        prediction = np.where(label == 255, 0, np.roll(label, shift + index, axis=1)).astype(np.int64)
        prediction[prediction == 255] = 0
        if index == 3:
            label[:] = 255
        if index == 4:
            label[10:20, 10:40], prediction[10:20, 10:40] = car, person
        before = metric.confusion_matrix.clone()
        maps = torch.from_numpy(prediction), torch.from_numpy(label)
        metric.update(*maps)
        probability = torch.full((len(grid(48)), len(grid(photo.width))), 0.8)
        name = f"val/{HOSTILE if index == 1 else index}.jpg"
        counts.add(index, name, metric.confusion_matrix - before, *maps, probability)
        write_pictures(folder / "report", index, photo, label, prediction, SCENE_LABELS.palette)
    report = reported(SCENE_LABELS, counts, metric, model)
    saved = None if other is None else SavedEvaluation.load(other)
    if saved is not None:
        report["comparison"] = compare(counts, saved, SCENE_LABELS.names, "scenes")
    counts.write(folder)
    write_page(folder, report, counts, saved)
    write_json(folder / "evaluation.json", report)
    return folder


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    old = street_evaluation(folder / "old", 9, "runs/older/best")
    return street_evaluation(folder / "new", 1, f"runs/{HOSTILE}", old)


def many_classes(images: int) -> tuple[dict, ImageCounts]:
    """Counts of images of 150 classes, of which ten are in each, and about sixty confusions."""
    labels, generator = LABEL_SETS["ade"], np.random.default_rng(0)
    metric, rows = MeanIoU(150), []
    for index in range(images):
        present = generator.choice(149, 10, replace=False)
        pairs = np.array([(x, y) for x in present for y in generator.choice(149, 7, replace=False) if x != y])
        pairs = np.unique(np.concatenate([pairs, np.stack([present, present], axis=1)]), axis=0)
        label, prediction = pairs.T
        pixels = np.where(label == prediction, 30_000, generator.integers(1, 3000, len(pairs)))
        metric.confusion_matrix[label, prediction] += torch.from_numpy(pixels)
        classes = np.unique(pairs)
        union = generator.integers(100, 9000, len(classes))
        row = {"index": index, "image": f"images/validation/ADE_val_{index:08d}.jpg", "height": 512, "width": 683}
        row |= {"label": label, "prediction": prediction, "pixels": pixels}
        row |= {"boundary_class": classes, "boundary_intersection": union // 2, "boundary_union": union}
        row |= dict.fromkeys(("confidence_pixels", "confidence_right", "confidence_sum"), np.empty(0, np.int64))
        rows.append(row)
    counts = ImageCounts(150, rows)
    return reported(labels, counts, metric), counts


# -- the file --------------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """Elements must close in order; addresses and scripts are kept."""

    def __init__(self, text: str):
        super().__init__()
        self.open_tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags and self.open_tags[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], data)


def test_the_page_is_whole_and_names_no_other_place(street):
    text = (street / PAGE).read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert not parsed.open_tags
    assert len(parsed.scripts) == 2  # its data and its script: no name of a file or class has made another one
    assert all(address.startswith("#") for address in parsed.addresses)
    script = parsed.scripts[1][1]
    assert not re.search(r"(https?:)?//[a-z]", script.replace("http://www.w3.org/2000/svg", "").replace("// ", ""))
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    data = json.loads(parsed.scripts[0][1])
    assert data["model"]["name"] == f"runs/{HOSTILE}"
    assert data["images"]["name"][1] == HOSTILE.rpartition("/")[2] + ".jpg"
    report = json.loads((street / "evaluation.json").read_text())
    assert data["metrics"] == report["metrics"] and data["classes"] == report["classes"]
    assert data["images"]["mIoU"][3] is None and data["images"]["annotated"][3] == 0
    assert len(data["thumbnails"]) == 5
    picture = Image.open(io.BytesIO(base64.b64decode(data["thumbnails"]["0"].partition(",")[2])))
    assert picture.format == "WEBP" and picture.size == (4 * 112, 84)


def test_templates_are_part_of_the_package():
    names = {entry.name for entry in files("offseg_hf.evaluation").joinpath("templates").iterdir()}
    assert names == {"report.html", "report.css", "report.js"}


def test_confusions_of_images_are_those_of_the_matrix():
    labels = LABEL_SETS["cityscapes"]
    counts, metric = counted(4, len(labels))
    data = page_data(reported(labels, counts, metric), counts)
    total = np.zeros((19, 19), np.int64)
    label, prediction, pixels = np.reshape(data["confusions"], (-1, 3)).T
    total[label, prediction] = pixels
    np.testing.assert_array_equal(total, metric.confusion_matrix)
    for image, row in zip(data["images"]["confusions"], counts.rows):
        found = np.reshape(image, (-1, 3))
        is_large = (row["label"] != row["prediction"]) & (row["pixels"] >= 0.001 * row["pixels"].sum())
        assert sorted(found[:, 2].tolist()) == sorted(row["pixels"][is_large].tolist())
        assert (np.diff(found[:, 2]) <= 0).all()


def test_of_very_many_images_the_worst_are_listed(monkeypatch):
    labels = LABEL_SETS["cityscapes"]
    counts, metric = counted(6, len(labels))
    report = reported(labels, counts, metric)
    every = page_data(report, counts)["images"]
    monkeypatch.setattr(page_module, "MAX_IMAGES", 2)
    data = page_data(report, counts)
    expected = sorted(sorted(range(6), key=lambda index: every["mIoU"][index])[:2])
    assert data["images"]["index"] == expected and data["dataset"]["num_images"] == 6
    for name, values in data["images"].items():
        assert values == [every[name][index] for index in expected]


def test_two_thousand_images_of_150_classes_are_a_light_page():
    """But for thumbnails, which have a budget of their own. What an image needs does not depend on their number."""
    sizes = [len(page(page_data(*many_classes(images))).encode()) for images in (100, 300)]
    assert sizes[0] + 1900 * (sizes[1] - sizes[0]) / 200 < 2.5 * 2**20


def test_thumbnails_keep_to_a_budget_and_begin_with_the_worst(street, tmp_path, monkeypatch):
    for path in street.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(street)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(street)).write_bytes(path.read_bytes())
    monkeypatch.setattr(page_module, "THUMBNAIL_BYTES", 10_000)
    report_again(tmp_path)
    data = json.loads(Parsed((tmp_path / PAGE).read_text(encoding="utf-8")).scripts[0][1])
    scores = data["images"]["mIoU"]
    worst = sorted((index for index in range(5) if index != 3), key=lambda index: scores[index])
    shown = [int(index) for index in data["thumbnails"]]
    assert shown and len(shown) < 5 and shown == worst[: len(shown)]
    assert sum(map(len, data["thumbnails"].values())) <= 10_000
    assert data["comparison"] is None and "before" not in data["images"]


def test_pictures(tmp_path):
    photo, label = render_scene(2, (80, 60))
    label[:10] = 255
    prediction = np.where(label == 255, 1, label)
    prediction[30:40, 20:30] = (prediction[30:40, 20:30] + 1) % len(SCENE_LABELS)
    write_pictures(tmp_path, 7, photo, label, prediction, SCENE_LABELS.palette)
    pictures = {kind: Image.open(file) for kind, file in picture_files(tmp_path, 7).items()}
    assert {picture.size for picture in pictures.values()} == {(80, 60)}
    annotation, guess, difference = (
        np.asarray(pictures[kind].convert("RGBA")) for kind in ("annotation", "prediction", "difference")
    )
    palette = np.array(SCENE_LABELS.palette)
    np.testing.assert_array_equal(annotation[10:, :, :3], palette[label[10:]])
    np.testing.assert_array_equal(guess[..., :3], palette[prediction])
    assert (annotation[:10, :, 3] == 0).all() and (annotation[10:, :, 3] == 255).all()
    wrong = (difference[..., :3] == (204, 41, 54)).all(axis=-1)
    np.testing.assert_array_equal(wrong, (label != prediction) & (label != 255))
    assert (difference[:10, :, 3] == 0).all()
    assert draw_thumbnail(tmp_path, 7).size == (448, 84) and draw_thumbnail(tmp_path, 8) is None


@pytest.mark.parametrize("size", [(1, 1), (3, 2500), (MAX_SIDE + 100, 40)])
def test_pictures_of_odd_photos_and_of_many_classes(tmp_path, size):
    photo, label = Image.new("RGB", size), np.zeros(size[::-1], np.int32)
    label[-1, -1] = 299
    write_pictures(tmp_path, 0, photo, label, label, [(index % 256, 9, 9) for index in range(300)])
    for file in picture_files(tmp_path, 0).values():
        with Image.open(file) as picture:
            assert max(picture.size) == min(max(size), MAX_SIDE) and min(picture.size) >= 1
    assert draw_thumbnail(tmp_path, 0).size == (448, 84)


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed (apt install chromium): the page is tested as a file only")
    try:
        browser = Browser(path)
    except (AssertionError, OSError) as error:
        pytest.skip(f"{path} does not start here ({error}): the page is tested as a file only")
    with browser:
        yield browser


def text_of(browser: Browser, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.innerText)")


def opened(browser: Browser, folder: Path, **options) -> None:
    browser.open(folder / PAGE, **options)
    browser.wait("document.body.dataset.drawn")
    assert browser.errors == []


@pytest.mark.parametrize("options", [{}, {"dark": True}, {"width": 390}], ids=["light", "dark", "phone"])
def test_it_shows_itself(browser, street, tmp_path, options):
    opened(browser, street, **options)
    assert [request for request in browser.requests if not request.startswith("data:")] == [(street / PAGE).as_uri()]
    report = json.loads((street / "evaluation.json").read_text())
    assert text_of(browser, "h1") == [f"runs/{HOSTILE}"]
    assert f"{100 * report['metrics']['mIoU']:.2f}" in text_of(browser, "#summary dd")[0]
    assert len(text_of(browser, "#class-table tbody tr")) == len(SCENE_LABELS)
    assert browser.evaluate("document.title").startswith("runs/</script>")
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert (np.asarray(picture.convert("L")).mean() < 100) == ("dark" in options)
        assert len(picture.convert("RGB").getcolors(2**20)) > 50


def test_images_by_score_and_by_confusion(browser, street):
    opened(browser, street)
    data = json.loads(browser.evaluate("document.getElementById('data').textContent"))
    scores = [score for score in data["images"]["mIoU"] if score is not None]
    shown = text_of(browser, ".card .caption")
    assert [re.search(r"mIoU ([\d.]+)", caption)[1] for caption in shown[:4]] == [
        f"{100 * score:.1f}" for score in sorted(scores)
    ]
    assert "not annotated" in shown[4]
    car, person = (SCENE_LABELS.names.index(name) for name in ("car", "person"))
    for filter_, index in (("truth", car), ("prediction", person)):
        browser.evaluate(
            f"(select => {{ select.value = {index}; select.dispatchEvent(new Event('change')); }})"
            f"(document.getElementById('{filter_}-filter'))"
        )
    expected = [
        index
        for index, row in enumerate(data["images"]["confusions"])
        if any((x, y) == (car, person) for x, y in zip(row[::3], row[1::3]))
    ]
    names = text_of(browser, ".card .name")
    assert 4 in expected and sorted(names) == sorted(data["images"]["name"][index] for index in expected)
    assert "where car is taken for person" in text_of(browser, "#image-count")[0]
    browser.evaluate("document.getElementById('reset').click()")
    assert len(text_of(browser, ".card")) == 5


def test_one_image_with_the_keyboard(browser, street):
    opened(browser, street)
    browser.evaluate("document.querySelector('.card').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('viewer').open")
    loaded = "[...document.querySelectorAll('#viewer img')].filter(node => node.complete && node.naturalWidth).length"
    browser.wait(f"{loaded} === 4")
    first = text_of(browser, "#viewer-name")
    browser.press("ArrowRight")
    browser.wait(f"document.getElementById('viewer-name').innerText !== {json.dumps(first[0])}")
    browser.press("ArrowLeft")
    browser.wait(f"document.getElementById('viewer-name').innerText === {json.dumps(first[0])}")
    browser.press("Escape")
    browser.wait("!document.getElementById('viewer').open")
    assert browser.errors == []


def test_the_matrix_with_the_keyboard(browser, street):
    opened(browser, street)
    data = json.loads(browser.evaluate("document.getElementById('data').textContent"))
    confusions = np.reshape(data["confusions"], (-1, 3))
    label, prediction, pixels = max(confusions[confusions[:, 0] != confusions[:, 1]].tolist(), key=lambda row: row[2])
    browser.evaluate("document.getElementById('matrix').focus()")
    for key in label * ["ArrowDown"] + prediction * ["ArrowRight"]:
        browser.press(key)
    cell = text_of(browser, "#matrix-cell")[0]
    assert cell.startswith(f"{SCENE_LABELS.names[label]} → {SCENE_LABELS.names[prediction]}: ")
    assert f"({pixels:,} pixels)" in cell
    browser.press("Enter")
    assert browser.evaluate("document.getElementById('truth-filter').value") == str(label)
    assert browser.evaluate("document.getElementById('prediction-filter').value") == str(prediction)


def test_the_comparison(browser, street):
    opened(browser, street)
    comparison = json.loads((street / "evaluation.json").read_text())["comparison"]
    rows = text_of(browser, "#comparison-metrics tbody tr")
    difference = 100 * comparison["metrics"]["mIoU"]["difference"]
    assert difference > 0 and rows[0].startswith("mIoU") and f"+{difference:.2f}" in rows[0]
    assert len(text_of(browser, "#comparison-classes tbody tr")) == len(SCENE_LABELS)
    assert "runs/older/best" in text_of(browser, "#comparison-text")[0]


def test_many_classes_and_no_pictures(browser, tmp_path):
    """Of models of masks: no probabilities. A page that was moved without its pictures says where they are missed."""
    report, counts = many_classes(60)
    write_page(tmp_path, report, counts)
    browser.open(tmp_path / PAGE, width=390)
    browser.wait("document.body.dataset.drawn")
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert len(text_of(browser, "#class-table tbody tr")) == 25
    browser.evaluate("document.querySelector('#class-table .more').click()")
    assert len(text_of(browser, "#class-table tbody tr")) == 150
    assert text_of(browser, "#page-number") == ["1 / 3"]
    assert "no distribution over the classes" in text_of(browser, "#calibration-content")[0]
    browser.evaluate("document.querySelector('.card').click()")
    browser.wait("document.querySelectorAll('#viewer .gone').length === 4")


def test_one_class_and_nothing_annotated(browser, tmp_path):
    labels = LabelSet("one", "one", ("<i>all</i>",), ((9, 9, 9),), (0,), (), False)
    counts, metric = ImageCounts(1), MeanIoU(1)
    maps = torch.zeros(20, 30, dtype=torch.int64), torch.full((20, 30), 255)
    counts.add(0, "only.png", metric.confusion_matrix, *maps, torch.ones(len(grid(20)), len(grid(30))))
    report = reported(labels, counts, metric)
    assert report["metrics"]["mBoundaryIoU"] is None and report["metrics"]["ECE"] is None
    write_pictures(
        tmp_path / "report", 0, Image.new("RGB", (30, 20)), maps[1].numpy(), maps[0].numpy(), labels.palette
    )
    write_page(tmp_path, report, counts)
    opened(browser, tmp_path)
    assert text_of(browser, "#summary dd") == ["–"] * 6
    assert text_of(browser, "#calibration-content") == ["No pixel is annotated."]
    assert text_of(browser, "#class-table tbody td")[0] == "<i>all</i>"
    assert text_of(browser, ".card .caption") == ["only.png\nnot annotated"]
    browser.evaluate("document.querySelector('.card').click()")
    browser.wait("[...document.querySelectorAll('#viewer img')].filter(node => node.naturalWidth).length === 4")
    assert browser.errors == []
