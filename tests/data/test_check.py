"""The check finds every problem and goes on, and counts what is right."""

import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from offseg_hf.cli import app
from offseg_hf.data.check import SplitReport, check_segmentation_data, first_look
from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.label_sets import LabelSet
from tests.data import trees


PIXELS = trees.SIZE[0] * trees.SIZE[1]


def problems(report) -> list[str]:
    return [str(problem) for problem in report.problems]


def test_all_is_well(tmp_path):
    trees.plain(tmp_path)
    seen = []
    train, validation = check_segmentation_data(
        tmp_path, workers=2, on_progress=lambda done, total: seen.append((done, total))
    )
    assert (train.name, train.num_samples, train.problems) == ("train", 3, [])
    assert (validation.name, validation.num_samples, validation.problems) == ("validation", 2, [])
    assert seen == [(done, 5) for done in range(1, 6)]
    values = np.resize([7, 3, 9, 0, 200], (trees.SIZE[1], trees.SIZE[0]))  # as `plain` writes them
    counts = [int((values == value).sum()) for value in (7, 3, 9)]
    assert list(train.rows()) == [
        (name, 3 * count, pytest.approx(count / sum(counts)), 3) for name, count in zip(train.labels.names, counts)
    ]
    assert train.ignored == 3 * (PIXELS - sum(counts))


def test_class_weights():
    """Four times as rare weighs twice; the mean over pixels is 1; a class that does not occur has nothing to weigh."""
    labels = LabelSet("abc", "ABC", tuple("abc"), ((0, 0, 0),) * 3, (0, 1, 2), (), False)
    report = SplitReport("train", labels, 1)
    assert report.class_weights() == [1, 1, 1]
    report.add(np.bincount([0] * 80 + [1] * 20 + [255], minlength=256))
    assert report.class_weights() == [0.833, 1.67, 1]


@pytest.mark.parametrize("layout", trees.BENCHMARKS)
def test_counts_of_benchmarks(tmp_path, layout):
    benchmark, write = trees.BENCHMARKS[layout]
    write(tmp_path)
    for report in check_segmentation_data(tmp_path):
        maps = [trees.class_ids(benchmark, report.name, i) for i in range(report.num_samples)]
        expected = sum(np.bincount(ids.ravel(), minlength=256) for ids in maps)
        assert report.problems == [] and report.pixels.tolist() == expected[: len(report.labels)].tolist()
        assert report.ignored == expected[255]
        assert report.images.tolist() == [sum(bool((m == i).any()) for m in maps) for i in range(len(report.labels))]


def test_every_problem_is_found_with_its_file(tmp_path):
    trees.plain(tmp_path, {"train": 8})
    images, masks = tmp_path / "images" / "train", tmp_path / "masks" / "train"
    (images / "0.png").unlink()
    (masks / "1.png").unlink()
    trees.write_mask(masks / "2.png", np.zeros((trees.SIZE[0], trees.SIZE[1])))
    trees.write_mask(masks / "3.png", np.full((trees.SIZE[1], trees.SIZE[0]), 8))
    Image.new("RGB", trees.SIZE).save(masks / "4.png")
    (images / "5.png").write_bytes((images / "5.png").read_bytes()[:300])
    (masks / "5.png").write_text("no picture")
    (masks / "6.png").unlink()
    (masks / "6.png").symlink_to(tmp_path / "gone.png")
    (report,) = check_segmentation_data(tmp_path, "train")
    assert report.num_samples == 6 and report.pixels.sum() + report.ignored == PIXELS
    found = dict(line.split(": ", maxsplit=1) for line in problems(report))
    assert len(problems(report)) == len(found) == 8
    assert found[f"{masks}/0.png"] == f"no image of this name in {images}"
    assert found[f"{images}/1.png"] == f"no label map of this name in {masks}"
    assert found[f"{masks}/2.png"].startswith(f"the label map is 16x24, but its image {images}/2.png is 24x16; images")
    assert found[f"{masks}/3.png"].startswith("value 8 out of range")
    assert found[f"{masks}/4.png"].startswith("expected a label map of one id per pixel")
    assert found[f"{images}/5.png"] == "cannot be read as an image: image file is truncated"
    assert found[f"{masks}/5.png"].startswith("cannot be read as a label map: no picture, or of a format that")
    assert found[f"{masks}/6.png"] == "cannot be read as a label map: No such file or directory"


def binary(root, values, facts=None):
    """Two classes, background and crack, whose masks hold these values half and half."""
    trees.plain(root, {"train": 2, "val": 1}, {"classes": ["background", "crack"]} | (facts or {}))
    for path in (root / "masks").rglob("*.png"):
        trees.write_mask(path, np.resize(values, (trees.SIZE[1], trees.SIZE[0])))


def test_a_default_that_eats_a_class(tmp_path):
    """Masks of 0 and 255, where 255 is void unless it is said to be a class."""
    binary(tmp_path / "data", [0, 255])
    train, validation = check_segmentation_data(tmp_path / "data")
    void = "which is void unless classes.json gives it to a class"
    assert train.notes == [f"`crack` occurs in no image; {PIXELS} pixels have 255, {void}"]
    assert validation.notes == [f"`crack` occurs in no image; {PIXELS // 2} pixels have 255, {void}"]
    only = "only `background` occurs in all of its label maps, nothing to tell apart"
    assert problems(train) + problems(validation) == [f"{tmp_path}/data: {only}"]
    expected = f"train: in the 2 label maps looked at {train.notes[0]}; `offseg data check` reads all"
    assert first_look(load_segmentation_data(tmp_path / "data", "train")) == [expected]

    binary(tmp_path / "named", [0, 255], {"values": [0, 255]})
    for report in check_segmentation_data(tmp_path / "named"):
        assert (report.notes, report.problems) == ([], [])
    assert first_look(load_segmentation_data(tmp_path / "named", "train")) == []

    binary(tmp_path / "from one", [1, 0], {"values": [1, 2], "void_value": 0})
    (train, _) = check_segmentation_data(tmp_path / "from one")
    assert train.notes == [f"`crack` occurs in no image; {PIXELS} pixels have 0, {void}"] and len(train.problems) == 1


@pytest.mark.parametrize(("factor", "is_dark"), [(16, True), (256, False)])
def test_photos_of_16_bits_of_which_12_are_used(tmp_path, factor, is_dark):
    """The upper 8 of 16 bits are seen, as OpenCV does it."""
    trees.plain(tmp_path)
    for path in (tmp_path / "images").rglob("*.png"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(values * factor).save(path)
    notes = first_look(load_segmentation_data(tmp_path, "train"))
    assert [note.partition(" of 255")[0] for note in notes] == (
        ["train: in the 3 photos looked at no value is above 15"] * is_dark
    )


def test_classes_that_are_rare(tmp_path):
    """A split without some of the classes may be as it should: it is noted, and no problem."""
    names = [str(index) for index in range(12)]
    binary(tmp_path, [0, 1], {"classes": names})
    for report in check_segmentation_data(tmp_path):
        assert report.problems == []
        assert report.notes == ["10 of 12 classes occur in no image (2, 3, 4, 5, 6, 7, 8, 9, ...)"]
    binary(tmp_path / "one", [0], {"classes": ["all"]})
    assert [report.problems for report in check_segmentation_data(tmp_path / "one")] == [[], []]


def test_empty_split(tmp_path):
    trees.plain(tmp_path)
    (tmp_path / "masks" / "test").mkdir()
    *_, report = check_segmentation_data(tmp_path)
    assert (report.name, report.num_samples) == ("test", 0)
    assert problems(report) == [f"{tmp_path}/images/test: no images"]


def test_columns(tmp_path):
    """Of embedded images the name may be all there is."""
    trees.plain(tmp_path / "plain", {"train": 2})
    Image.new("L", (3, 3), 7).save(tmp_path / "plain" / "masks" / "train" / "1.png")
    load_segmentation_data(tmp_path / "plain").save_to_disk(tmp_path / "saved")
    (report,) = check_segmentation_data(tmp_path / "saved")
    assert problems(report) == ["1.png: the label map is 3x3, but its image 1.png is 24x16"]


def test_errors_of_the_whole(tmp_path):
    trees.plain(tmp_path / "plain")
    with pytest.raises(ValueError, match="no split 'test'"):
        check_segmentation_data(tmp_path / "plain", "test")
    with pytest.raises(ValueError, match="no such folder"):
        check_segmentation_data(tmp_path / "none")


# -- the command -----------------------------------------------------------------------------------------------------


def offseg_data(*arguments) -> tuple[int, list[str]]:
    """Exit code and lines of a command, in this process."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output.splitlines()


def test_command(tmp_path):
    binary(tmp_path / "data", [0, 255])
    code, lines = offseg_data("check", tmp_path / "data")
    assert code == 1 and len(lines) == 5
    assert (
        lines[0] == f"error: {tmp_path}/data: only `background` occurs in all of its label maps, nothing to tell apart"
    )
    assert lines[1].startswith(f"note: train: `crack` occurs in no image; {PIXELS} pixels have 255, ")
    assert lines[2] == "train: 2 samples, 1 problems"
    binary(tmp_path / "right", [0, 255], {"values": [0, 255]})
    assert offseg_data("check", tmp_path / "right") == (
        0,
        ["train: 2 samples, 0 problems", "validation: 1 samples, 0 problems"],
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", ""),
        ("check", "~nobody/data"),
        ("check", "/dev/null"),
        ("check", os.fsdecode(b"/tmp/\xe9t\xe9")),
        ("check", "{data}", "--split", "Foo"),
        ("check", "{data}", "--labels", "~/none.json"),
        ("check", "{data}", "--image-column", "photo"),
        ("push", "{data}", "no name!!"),
        ("push", "/none", "user/name"),
        ("push", "{broken}", "user/name"),
        ("scenes", "/dev/null/scenes"),
        ("scenes", "{data}"),
        ("scenes", "{data}/new", "--size", "-1", "5"),
        ("scenes", "{data}/new", "--train", "0", "--val", "0"),
    ],
)
def test_errors_of_commands_are_one_line(tmp_path, arguments):
    binary(tmp_path / "data", [0, 1])
    binary(tmp_path / "broken", [0, 1])
    (tmp_path / "broken" / "images" / "train" / "0.png").write_text("no picture")
    code, lines = offseg_data(*(text.format(data=tmp_path / "data", broken=tmp_path / "broken") for text in arguments))
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: ")
    assert not (tmp_path / "data" / "new").exists()
