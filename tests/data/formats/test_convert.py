"""From every format the same label maps, or every problem with its file."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offseg_hf.data.check import check_segmentation_data
from offseg_hf.data.classes_json import read_classes
from offseg_hf.data.formats.convert import ConversionError, convert_segmentation_data
from offseg_hf.data.label_sets import distinct_colors
from tests.data.formats import cases


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in (folder / "masks").rglob("*.png")}


NO_PHOTOS = ("all", "SegmentationClass", "SegmentationObject")  # folders of label maps with their names
COMPRESSED = {3: "V26:0000000000000j5", 7: "888000004L00000000000000L40000000000000000000000"}  # car, road
VOID_IN_FORMAT = ("panoptic", "camvid")  # uncovered pixels are void there by definition


@pytest.mark.parametrize("uncovered", ["background", "void"])
@pytest.mark.parametrize("name", cases.FORMATS)
def test_the_same_label_maps(tmp_path, name, uncovered):
    source = cases.FORMATS[name](tmp_path / "source")
    output = tmp_path / "output"
    result = convert_segmentation_data(source, output, uncovered=uncovered)
    is_class = uncovered == "background" and name not in VOID_IN_FORMAT
    labels = read_classes(output / "classes.json")
    assert sorted(labels.names) == ["background"] * is_class + cases.NAMES
    bare = labels.names.index("background") if is_class else 255
    wanted = cases.expected(bare, labels.names.index("car"), labels.names.index("road"))
    found = masks(output)
    assert sorted(found) == sorted(cases.STEMS)
    for ids in found.values():
        assert np.array_equal(ids, wanted)
    assert result.splits == {"train": 1, "validation": 1} and result.problems == []
    reports = check_segmentation_data(output)
    assert [report.problems for report in reports] == [[], []]
    for path in output.glob("images/*/*"):
        originals = [p for p in (tmp_path / "source").rglob(path.name) if p.parent.name not in NO_PHOTOS]
        assert [p.read_bytes() for p in originals] == [path.read_bytes()]


def test_an_archive_is_its_folder(tmp_path):
    source = cases.cvat(tmp_path / "source")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", source)
    convert_segmentation_data(source, tmp_path / "a")
    convert_segmentation_data(archive, tmp_path / "b")
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(files) == 5
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()}


def test_photos_elsewhere(tmp_path):
    """As CVAT exports them: without."""
    source = cases.cvat(tmp_path / "source")
    (source / "JPEGImages").rename(tmp_path / "photos")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", source)
    with pytest.raises(ConversionError) as error:
        convert_segmentation_data(archive, tmp_path / "output")
    assert [problem.file for problem in error.value.problems] == [
        f"{archive}/SegmentationClass/{stem}.png" for stem in cases.STEMS
    ]
    result = convert_segmentation_data(archive, tmp_path / "output", images=tmp_path / "photos")
    assert sum(result.splits.values()) == 2


def test_splits_of_the_source_are_kept(tmp_path):
    cases.coco(tmp_path / "all")
    content = json.loads((tmp_path / "all" / "annotations" / "all.json").read_text())
    source = tmp_path / "coco"
    (tmp_path / "all" / "images").rename(tmp_path / "photos")
    for split, number in (("train2017", 1), ("val2017", 0)):
        part = content | {"images": [content["images"][number]]}
        part["annotations"] = [a for a in content["annotations"] if a["image_id"] == number]
        cases.write(source / "annotations" / f"instances_{split}.json", part)
    convert_segmentation_data(source, tmp_path / "output", images=tmp_path / "photos")
    assert (tmp_path / "output" / "masks" / "train" / "street_01.png").is_file()
    assert (tmp_path / "output" / "masks" / "val" / "park_01.png").is_file()


def test_one_photo_in_two_splits_is_a_problem(tmp_path):
    source = cases.coco(tmp_path / "source")
    shutil.copy(source, source.with_name("instances_val.json"))
    source.rename(source.with_name("instances_train.json"))
    with pytest.raises(ConversionError, match="is in several splits"):
        convert_segmentation_data(tmp_path / "source", tmp_path / "output")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_crowds_and_stuff(tmp_path):
    """Run lengths, compressed (as pycocotools 2.0.11 writes these) and not, of a crowd and of stuff."""
    source = cases.coco(tmp_path / "source")
    content = json.loads(source.read_text())
    ids = cases.expected(0, 1, 2)
    for annotation in content["annotations"]:
        mask = (ids == (1 if annotation["category_id"] == 3 else 2)).T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
        counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
        annotation["segmentation"] = {"size": [16, 24], "counts": counts}
        annotation["iscrowd"] = 1
    cases.write(source, content)
    convert_segmentation_data(source, tmp_path / "output")
    for found in masks(tmp_path / "output").values():
        assert np.array_equal(found, np.asarray([2, 0, 1])[ids])
    for annotation in content["annotations"]:
        annotation["segmentation"]["counts"] = COMPRESSED[annotation["category_id"]]
    cases.write(source, content)
    convert_segmentation_data(source, tmp_path / "again")
    for found in masks(tmp_path / "again").values():
        assert np.array_equal(found, np.asarray([2, 0, 1])[ids])


def test_void_labels(tmp_path):
    """LabelMe's own words for no class and for the background."""
    source = cases.labelme(tmp_path / "source")
    for path in source.glob("*.json"):
        content = json.loads(path.read_text())
        content["shapes"] += [
            {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 0], [3, 2]]},
            {"label": "_background_", "shape_type": "polygon", "points": [[20, 0], [24, 0], [24, 2], [20, 2]]},
        ]
        cases.write(path, content)
    convert_segmentation_data(source, tmp_path / "output")
    labels = read_classes(tmp_path / "output" / "classes.json")
    assert sorted(labels.names) == ["_background_", "car", "road"]
    wanted = cases.expected(*map(labels.names.index, ("_background_", "car", "road")))
    wanted[:2, :3] = 255
    for ids in masks(tmp_path / "output").values():
        assert np.array_equal(ids, wanted)
    convert_segmentation_data(source, tmp_path / "void", uncovered="void")
    assert read_classes(tmp_path / "void" / "classes.json").names == ("car", "road")
    for ids in masks(tmp_path / "void").values():
        assert (ids[:6] == 255)[:, :4].all() and (ids[:2, 20:] == 255).all()


def test_many_classes(tmp_path):
    """300 of them need 16 bits."""
    source = cases.yolo(tmp_path / "source")
    names = [f"class {index}" for index in range(300)]
    (source / "data.yaml").write_text(f"train: images\nnames: {json.dumps(names)}\n")
    for path in (source / "labels").iterdir():
        path.write_text("299 0 0 1 0 1 1 0 1\n255 0 0 0.5 0 0.5 1 0 1\n")
    convert_segmentation_data(source, tmp_path / "output", uncovered="void")
    labels = read_classes(tmp_path / "output" / "classes.json")
    assert len(labels) == 300 and labels.palette == distinct_colors(300)
    for ids in masks(tmp_path / "output").values():
        assert (ids[:, :12] == 255).all() and (ids[:, 12:] == 299).all()
    assert [report.problems for report in check_segmentation_data(tmp_path / "output")][1] == []


# -- broken input ----------------------------------------------------------------------------------------------------


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def set_in(*keys, value):
    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def shrink(path: Path) -> None:
    cases.photo(path, (12, 10))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def recolor(path: Path) -> None:
    Image.new("RGB", cases.SIZE, (1, 2, 3)).save(path)


A, B = cases.STEMS
EXPORT, ALL = "export.json", "annotations/all.json"
LS_POINTS = (0, "annotations", 0, "result", 1, "value")
# Format, way, what is done to the folder, and parts of the message. Whatever it is, park_01 is broken.
BROKEN = [
    (
        "coco",
        "outside",
        lambda r: change(r / ALL, set_in("annotations", 0, "segmentation", 0, 0, value=90)),
        [f"{ALL}: {A}.png", "outside of the photo", "90"],
    ),
    (
        "coco",
        "category",
        lambda r: change(r / ALL, set_in("annotations", 0, "category_id", value=5)),
        [f"{ALL}: {A}.png", "category_id 5 is none of"],
    ),
    ("coco", "missing", lambda r: (r / "images" / f"{A}.png").unlink(), [f"{ALL}: {A}.png", "--images"]),
    ("coco", "size", lambda r: shrink(r / "images" / f"{A}.png"), [f"{ALL}: {A}.png", "24x16", "12x10"]),
    (
        "coco",
        "empty",
        lambda r: change(r / ALL, set_in("annotations", 0, "segmentation", value=[])),
        [f"{ALL}: {A}.png", "got nothing"],
    ),
    (
        "panoptic",
        "segment",
        lambda r: change(r / ALL, set_in("annotations", 0, "segments_info", 0, "id", value=9)),
        [f"{ALL}: {A}.png", "segment 70000"],
    ),
    (
        "panoptic",
        "category",
        lambda r: change(r / ALL, set_in("annotations", 0, "segments_info", 0, "category_id", value=5)),
        [f"{ALL}: {A}.png", "category_id 5 is none of"],
    ),
    (
        "panoptic",
        "missing",
        lambda r: (r / "images" / f"{A}.png").unlink() or (r / "annotations" / "all" / f"{A}.png").unlink(),
        [f"{ALL}: {A}.png", "--images"],
    ),
    (
        "panoptic",
        "size",
        lambda r: shrink(r / "annotations" / "all" / f"{A}.png"),
        [f"{ALL}: {A}.png", "12x10", "24x16"],
    ),
    (
        "panoptic",
        "empty",
        lambda r: (r / "annotations" / "all" / f"{A}.png").write_bytes(b""),
        [f"{ALL}: {A}.png", "cannot be read"],
    ),
    (
        "yolo",
        "outside",
        lambda r: rewrite(r / "labels" / f"{A}.txt", "0.500000 0.375000", "1.5 0.375"),
        [f"labels/{A}.txt", "line 1", "outside of the photo"],
    ),
    (
        "yolo",
        "category",
        lambda r: rewrite(r / "labels" / f"{A}.txt", "1 0.0", "4 0.0"),
        [f"labels/{A}.txt", "line 2: class 4 is none of"],
    ),
    (
        "yolo",
        "missing",
        lambda r: (
            (r / "data.yaml").write_text("train: list.txt\nnames: [car, road]")
            and (r / "list.txt").write_text(f"images/gone.png\nimages/{B}.png")
        ),
        ["list.txt: images/gone.png"],
    ),
    (
        "yolo",
        "size",
        lambda r: (r / "labels" / f"{A}.txt").write_text("0 0.5 0.5 0.1 0.1"),
        [f"labels/{A}.txt", "a box of four numbers"],
    ),
    (
        "yolo",
        "empty",
        lambda r: (r / "images" / f"{A}.png").write_bytes(b""),
        [f"labels/{A}.txt", f"{A}.png cannot be read"],
    ),
    (
        "label_studio",
        "outside",
        lambda r: change(r / EXPORT, set_in(*LS_POINTS, "points", 0, value=[400, 0])),
        [f"task 0, data/upload/1/1f2e3d4c-{A}.png", "result b", "outside of the photo"],
    ),
    (
        "label_studio",
        "category",
        lambda r: change(r / EXPORT, set_in(*LS_POINTS, "polygonlabels", value=[])),
        [f"{A}.png", "result b: expected one label"],
    ),
    ("label_studio", "missing", lambda r: (r / "photos" / f"{A}.png").unlink(), [f"{EXPORT}: task 0", "--images"]),
    ("label_studio", "size", lambda r: shrink(r / "photos" / f"{A}.png"), [f"{EXPORT}: task 0", "24x16", "12x10"]),
    (
        "label_studio",
        "empty",
        lambda r: change(r / EXPORT, set_in(0, "annotations", 0, "result", 0, "value", "rle", value=[])),
        [f"{EXPORT}: task 0", "result a", "end too early"],
    ),
    (
        "labelme",
        "outside",
        lambda r: change(r / f"{A}.json", set_in("shapes", 1, "points", 0, value=[-9, 0])),
        [f"{A}.json", "shape 2", "outside of the photo"],
    ),
    (
        "labelme",
        "category",
        lambda r: (r / "labels.txt").write_text("car\nroads\n"),
        [f"{A}.json", "shape 2: label 'road' is none of labels.txt"],
    ),
    ("labelme", "missing", lambda r: (r / f"{A}.png").unlink(), [f"{A}.json", "--images"]),
    ("labelme", "size", lambda r: shrink(r / f"{A}.png"), [f"{A}.json", "24x16", "12x10"]),
    ("labelme", "empty", lambda r: (r / f"{A}.json").write_bytes(b""), [f"{A}.json", "got an empty file"]),
]
for _name, _masks, _photos, _end, _list in (
    ("cvat", "SegmentationClass", "JPEGImages", "", "labelmap.txt"),
    ("camvid", "train_labels", "train", "_L", "class_dict.csv"),
):
    BROKEN += [
        (
            _name,
            "color",
            lambda r, m=_masks, e=_end: recolor(r / m / f"{A}{e}.png"),
            [f"{_masks}/{A}{_end}.png", f"(1, 2, 3) is none of {_list}"],
        ),
        (
            _name,
            "category",
            lambda r, listed=_list, sep="," if _name == "camvid" else ":": rewrite(
                r / listed, f"car{sep}", f"# car{sep}"
            ),
            [f"{_masks}/{A}{_end}.png", f"(64, 0, 128) is none of {_list}"],
        ),
        (
            _name,
            "missing",
            lambda r, p=_photos: (r / p / f"{A}.png").unlink(),
            [f"{_masks}/{A}{_end}.png", "--images"],
        ),
        (
            _name,
            "size",
            lambda r, p=_photos: shrink(r / p / f"{A}.png"),
            [f"{_masks}/{A}{_end}.png", "24x16", "12x10"],
        ),
        (
            _name,
            "empty",
            lambda r, m=_masks, e=_end: (r / m / f"{A}{e}.png").write_bytes(b""),
            [f"{_masks}/{A}{_end}.png", "cannot be read as a label map"],
        ),
    ]


@pytest.mark.parametrize(("name", "way", "damage", "parts"), BROKEN, ids=[f"{b[0]}-{b[1]}" for b in BROKEN])
def test_broken(tmp_path, name, way, damage, parts):
    """The file and the reason, nothing written; and the other photo if the broken one is to be left out."""
    source = cases.FORMATS[name](tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(ConversionError) as error:
        convert_segmentation_data(source, tmp_path / "output")
    problem = str(error.value.problems[0])
    assert all(part in problem for part in parts), problem
    assert "\n" not in problem and sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    if way != "category" or name not in ("labelme", "cvat", "camvid"):  # these break both photos
        assert len(error.value.problems) == 1
        result = convert_segmentation_data(source, tmp_path / "output", leave_out=True)
        assert result.splits == {"train": 1} or result.splits == {"validation": 1}
        assert [*masks(tmp_path / "output")] == [B] and len(result.problems) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": ""}, "a.json: expected JSON, got an empty file"),
        ({"a.json": "{"}, "a.json: expected JSON, got something else"),
        (
            {"a.json": '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}'},
            "expected annotated",
        ),
        ({"a.json": '{"images": [], "annotations": []}'}, "a.json: expected `categories`"),
        ({"a.json": '{"some": 1}'}, "a.json: expected COCO JSON, YOLO"),
        ({"photo.txt": ""}, "expected COCO JSON, .* found photo.txt"),
        ({"data.yaml": "names: 3\ntrain: images"}, "data.yaml: expected `names` as a list"),
        ({"labelmap.txt": "# label"}, "labelmap.txt: expected names and colors, got none"),
        ({"labelmap.txt": "a:1,2:"}, "labelmap.txt: line 1: expected a name and r, g, b"),
        ({"labelmap.txt": "a:1,2,3::\nb:1,2,3::"}, "a and b have the same color"),
    ],
)
def test_no_source(tmp_path, files, message):
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        convert_segmentation_data(source, tmp_path / "output")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_broken_archive(tmp_path):
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", cases.cvat(tmp_path / "source"))
    data = bytearray(Path(archive).read_bytes())
    with zipfile.ZipFile(archive) as opened:
        start = opened.getinfo("labelmap.txt").header_offset + 30 + len("labelmap.txt")
    data[start] ^= 0xFF
    Path(archive).write_bytes(data)
    with pytest.raises(ValueError, match="export.zip: cannot be unpacked"):
        convert_segmentation_data(archive, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_output_is_kept(tmp_path):
    source = cases.yolo(tmp_path / "source")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        convert_segmentation_data(source, tmp_path / "output")
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["mine.txt"]


def test_no_class_of_nothing(tmp_path):
    """Where shapes cover everything there is no background."""
    source = cases.yolo(tmp_path / "source")
    for path in (source / "labels").iterdir():
        path.write_text("1 0 0 1 0 1 1 0 1\n" + path.read_text())
    convert_segmentation_data(source, tmp_path / "output")
    assert read_classes(tmp_path / "output" / "classes.json").names == ("car", "road")
    assert [report.problems for report in check_segmentation_data(tmp_path / "output")] == [[], []]


@pytest.mark.parametrize(
    ("name", "damage", "parts"),
    [
        ("coco", lambda r: change(r / ALL, set_in("annotations", 0, value=3)), ["all.json", "of another form"]),
        ("coco", lambda r: change(r / ALL, set_in("images", 0, "id", value=[1])), ["all.json", "of another form"]),
        ("label_studio", lambda r: change(r / EXPORT, set_in(0, "data", value=None)), ["task 0", "--images"]),
        ("labelme", lambda r: change(r / f"{A}.json", set_in("shapes", 1, "points", value=3)), [f"{A}.json: shape 2"]),
        ("labelme", lambda r: change(r / f"{A}.json", set_in("shapes", 0, value=None)), [f"{A}.json"]),
        ("yolo", lambda r: (r / "data.yaml").write_text("train: 3\nnames: [car, road]"), ["no folder 3"]),
    ],
)
def test_another_form(tmp_path, name, damage, parts):
    source = cases.FORMATS[name](tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(ValueError) as error:
        convert_segmentation_data(source, tmp_path / "output")
    assert all(part in str(error.value) for part in parts), error.value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_pascal_voc(tmp_path):
    """As it is published: no list of colors, indices with VOC's palette, and lists of the splits."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    colors = {0: (0, 0, 0), 7: (128, 128, 128), 15: (192, 128, 128), 255: (224, 224, 192)}  # car, person, void
    palette = np.zeros((256, 3), np.uint8)
    for index, color in colors.items():
        palette[index] = color
    ids = np.resize(np.repeat([0, 7, 15, 255], 6), cases.SIZE[::-1]).astype(np.uint8)
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        cases.photo(root / "JPEGImages" / f"{name}.png")
        (root / "SegmentationClass").mkdir(exist_ok=True)
        picture = Image.fromarray(ids)
        picture.putpalette(palette.ravel().tolist())
        picture.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    result = convert_segmentation_data(tmp_path / "VOCdevkit", tmp_path / "output")
    assert result.splits == {"train": 1, "validation": 1}
    assert "1 photos are in no list of ImageSets/ and left out" in result.notes
    labels = read_classes(tmp_path / "output" / "classes.json")
    assert len(labels) == 21
    wanted = {0: labels.names.index("background"), 7: labels.names.index("car"), 15: labels.names.index("person")}
    table = np.full(256, 255)
    table[[*wanted]] = [*wanted.values()]
    assert all(np.array_equal(found, table[ids]) for found in masks(tmp_path / "output").values())
    assert labels.palette[wanted[15]] == colors[15]
