"""Files to files: which photos are found, what their outputs are called, and what is in them."""

import copy
import json
import os
import time
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPSegConfig,
    DetrConfig,
    EomtConfig,
    EomtImageProcessorPil,
    Mask2FormerConfig,
    MaskFormerConfig,
    MaskFormerImageProcessorPil,
    OneFormerConfig,
    SamConfig,
    SegformerConfig,
    UperNetConfig,
    VideomtConfig,
    ViTConfig,
    ViTImageProcessorPil,
    pipeline,
)

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffSegImageProcessor
from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.label_sets import LABEL_SETS
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.inference.files import ahead, plan, read_photo, segment
from offseg_hf.inference.segmenter import Segmenter, require_segmentation_model
from offseg_hf.visualization import class_shares, draw_legend, draw_overlay, label_image, palette_for
from tests.processes import run_together
from tests.small_model import save_small_model


NAMES = SCENE_LABELS.names


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """With the colors of its data beside it, as trainings leave them."""
    folder = save_small_model(tmp_path_factory.mktemp("model"))
    (folder / FILE_NAME).write_text(classes_json(SCENE_LABELS))
    return folder


@pytest.fixture(scope="module")
def segmenter(model_folder) -> Segmenter:
    return Segmenter(model_folder, device="cpu")


def save_scene(path: Path, seed: int = 0, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    render_scene(seed, size)[0].save(path)
    return path


def names_of(inputs: list, output: Path) -> dict[str, str]:
    """Name of the outputs by photo."""
    jobs, outcomes = plan(inputs, output)
    assert not outcomes
    return {job.source.name: str(job.name.relative_to(output)) for job in jobs}


# -- finding the photos -----------------------------------------------------------------------------------------------


def test_a_folder_is_searched_with_its_subfolders_and_mirrored(tmp_path):
    for name in ("a.jpg", "B.PNG", "deep/er/c.webp", ".hidden.png", "notes.txt", "scan.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    expected = {"a.jpg": "a", "B.PNG": "B", "c.webp": str(Path("deep/er/c"))}
    assert names_of([tmp_path], tmp_path / "out") == expected


def test_globs_and_files_and_nothing_twice(tmp_path):
    for name in ("a.jpg", "b.png", "deep/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    output = tmp_path / "out"
    assert names_of([f"{tmp_path}/*"], output) == {"a.jpg": "a", "b.png": "b"}
    assert names_of([f"{tmp_path}/**/*.jpg"], output) == {"a.jpg": "a", "c.jpg": "c"}
    assert names_of([tmp_path / "a.jpg", f"{tmp_path}/*.jpg", tmp_path / "deep" / ".." / "a.jpg"], output) == {
        "a.jpg": "a"
    }
    assert names_of([tmp_path / "notes.txt"], output) == {"notes.txt": "notes"}  # named outright: tried


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    photo = save_scene(tmp_path / "cat[1].png")
    assert names_of([photo], tmp_path / "out") == {"cat[1].png": "cat[1]"}


def test_equal_stems_do_not_share_outputs(tmp_path):
    photos = [tmp_path / name for name in ("a/cat.jpg", "a/cat.png", "b/cat.jpg", "b/dog.jpg", "b/CAT.webp")]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        photo.write_bytes(b"whatever")
    jobs, _ = plan(photos, tmp_path / "out")
    names = [job.name.relative_to(tmp_path / "out").as_posix() for job in jobs]
    assert names == ["a/cat.jpg", "cat.png", "b/cat.jpg", "dog", "CAT.webp"]


def test_inputs_that_yield_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    jobs, outcomes = plan([tmp_path / "empty", tmp_path / "no.jpg", f"{tmp_path}/*.jpg"], tmp_path / "out")
    assert not jobs
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3
    assert [outcome.message.split(" (")[0] for outcome in outcomes] == [
        "no images in this folder",
        "no such file or folder",
        "no image matches this pattern",
    ]


def test_own_outputs_are_not_photos(tmp_path, segmenter):
    """Segmenting a folder into itself twice does not segment the results of the first time."""
    save_scene(tmp_path / "a.png")
    jobs, _ = plan([tmp_path], tmp_path)
    assert [outcome.status for outcome in segment(jobs, segmenter)] == ["written"]
    jobs, outcomes = plan([tmp_path, f"{tmp_path}/*"], tmp_path)
    assert not jobs
    assert [(outcome.status, Path(outcome.source).name) for outcome in outcomes] == [("kept", "a.png")]


def test_no_input_is_overwritten(tmp_path):
    photo, victim = save_scene(tmp_path / "a.png"), save_scene(tmp_path / "a_labels.png", seed=1)
    jobs, outcomes = plan([photo, victim], tmp_path, overwrite=True)
    assert [job.source for job in jobs] == [victim]
    assert outcomes[0].status == "failed" and "is one of the inputs" in outcomes[0].message


# -- segmenting them --------------------------------------------------------------------------------------------------


def test_outputs(tmp_path, segmenter, model_folder):
    photo = save_scene(tmp_path / "street.png", seed=4, size=(150, 100))
    output = tmp_path / "out"
    jobs, _ = plan([photo], output)
    assert [outcome.status for outcome in segment(jobs, segmenter)] == ["written"]
    assert sorted(os.listdir(output)) == ["street_classes.json", "street_labels.png", "street_overlay.png"]

    with Image.open(output / "street_labels.png") as image:
        assert image.mode == "P" and image.size == (150, 100)
        assert image.getpalette()[:30] == [channel for colour in SCENE_LABELS.palette for channel in colour]
        label_map = np.asarray(image)
    stock = pipeline("image-segmentation", model=str(model_folder), device="cpu")(str(photo))
    assert len(stock) > 1
    masks = {part["label"]: np.asarray(part["mask"]) > 0 for part in stock}
    for name, mask in masks.items():  # equal but where two classes are, to rounding
        assert np.mean(mask != (label_map == NAMES.index(name))) < 0.002
    assert {NAMES[label] for label, pixels in enumerate(np.bincount(label_map.ravel())) if pixels > 30} <= set(masks)

    summary = json.loads((output / "street_classes.json").read_text())
    assert (summary["file"], summary["width"], summary["height"]) == (str(photo), 150, 100)
    for row in summary["classes"]:
        assert row["pixels"] == (label_map == row["id"]).sum() > 0
        assert row["name"] == NAMES[row["id"]]
        assert row["share"] == pytest.approx(row["pixels"] / 15000, abs=1e-6)
    assert sum(row["pixels"] for row in summary["classes"]) == 15000

    with Image.open(output / "street_overlay.png") as image:
        assert image.mode == "RGB" and image.width == 300 and image.height > 100  # the legend's least width


def test_label_map_is_that_of_the_upright_photo(tmp_path, segmenter):
    upright = render_scene(2, (60, 40))[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    photo = read_photo(tmp_path / "turned.png")
    assert np.array_equal(photo, upright)
    assert segmenter(photo).shape == (40, 60)
    with Image.open(tmp_path / "turned.png") as lying:
        assert lying.size == (40, 60) and np.array_equal(segmenter(lying), segmenter(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("size", [(1, 1), (70, 33)])
def test_every_mode_and_size(tmp_path, segmenter, mode, size):
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read its own TIFFs of YCbCr")
    photo = Image.new(mode, size, 1) if mode in ("1", "I;16") else Image.new("RGB", size, (9, 99, 199)).convert(mode)
    path = tmp_path / "photo.tif"
    if mode in ("HSV",):  # no file format has it
        photo = photo.convert("RGB")
    photo.save(path)
    jobs, _ = plan([path], tmp_path / "out")
    (outcome,) = segment(jobs, segmenter)
    assert outcome.status == "written", outcome
    with Image.open(tmp_path / "out" / "photo_labels.png") as image:
        assert image.size == size


def test_floats_have_no_black_and_white(tmp_path, segmenter):
    Image.new("F", (70, 33), 0.5).save(tmp_path / "photo.tif")
    (outcome,) = segment(plan([tmp_path / "photo.tif"], tmp_path / "out")[0], segmenter)
    assert outcome.status == "failed" and "got floats (mode F): scale them to 0..255" in outcome.message


def test_a_broken_file_among_many(tmp_path, segmenter):
    for seed in range(3):
        save_scene(tmp_path / f"{seed}.png", seed)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    jobs, _ = plan([tmp_path], tmp_path / "out")
    outcomes = {Path(outcome.source).name: outcome for outcome in segment(jobs, segmenter)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "0.png": "written",
        "1.png": "failed",
        "2.png": "written",
        "text.jpg": "failed",
    }
    for name in ("1.png", "text.jpg"):
        assert "cannot be read as an image" in outcomes[name].message
        assert "\n" not in outcomes[name].message
    assert len(os.listdir(tmp_path / "out")) == 6


def test_existing_outputs_are_kept_unless_overwrite(tmp_path, segmenter):
    photo = save_scene(tmp_path / "a.png")
    kept = tmp_path / "out" / "a_overlay.png"
    kept.parent.mkdir()
    kept.write_text("mine")
    jobs, outcomes = plan([photo], tmp_path / "out")
    assert not jobs and outcomes[0].status == "kept" and str(kept) in outcomes[0].message
    jobs, outcomes = plan([photo], tmp_path / "out", overwrite=True)
    assert not outcomes
    assert [outcome.status for outcome in segment(jobs, segmenter)] == ["written"]
    assert Image.open(kept).format == "PNG"


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in folder.rglob("*_labels.png")}


def test_batches_of_photos_of_many_sizes_give_what_each_gives_alone(tmp_path, segmenter):
    for seed, size in enumerate([(60, 40), (40, 60), (64, 64), (90, 33), (60, 40)]):
        save_scene(tmp_path / "in" / f"{seed}.png", seed, size)
    (tmp_path / "in" / "2b.jpg").write_text("no image")
    alone, together = (plan([tmp_path / "in"], tmp_path / name)[0] for name in ("alone", "together"))
    expected = [outcome.status for outcome in segment(alone, segmenter)]
    assert [outcome.status for outcome in segment(together, segmenter, batch_size=3)] == expected
    assert expected.count("failed") == 1
    maps = label_maps(tmp_path / "together")
    assert len(maps) == 5
    for name, label_map in label_maps(tmp_path / "alone").items():
        assert (maps[name] == label_map).mean() > 0.999


def test_of_a_batch_that_fails_each_photo_is_tried_alone(tmp_path, segmenter, monkeypatch):
    for seed in range(3):
        save_scene(tmp_path / f"{seed}.png", seed)
    give = segmenter.label_maps

    def fail_together(inputs, sizes):
        if len(inputs) > 1 or torch.equal(inputs[0]["pixel_values"], second):
            raise RuntimeError("out of memory")
        return give(inputs, sizes)

    second = segmenter.prepare(Image.open(tmp_path / "1.png"))["pixel_values"]
    monkeypatch.setattr(segmenter, "label_maps", fail_together)
    outcomes = list(segment(plan([tmp_path], tmp_path / "out")[0], segmenter, batch_size=3))
    assert [outcome.status for outcome in outcomes] == ["written", "failed", "written"]
    assert outcomes[1].message == "out of memory"


def test_many_photos_are_segmented_by_the_fused_model(tmp_path, model_folder):
    for seed in range(8):
        save_scene(tmp_path / "in" / f"{seed}.png", seed)
    segmenter = Segmenter(model_folder, device="cpu")
    few, many = plan([tmp_path / "in"], tmp_path / "few")[0][:7], plan([tmp_path / "in"], tmp_path / "many")[0]
    assert {outcome.status for outcome in segment(few, segmenter)} == {"written"}
    assert segmenter.network is segmenter.model
    assert {outcome.status for outcome in segment(many, segmenter)} == {"written"}
    assert segmenter.network.is_fused and not segmenter.model.is_fused
    maps = label_maps(tmp_path / "many")
    for name, label_map in label_maps(tmp_path / "few").items():
        assert (maps[name] == label_map).mean() > 0.999


def test_a_model_that_fused_is_another_is_not_fused(tmp_path, model_folder, monkeypatch):
    segmenter = Segmenter(model_folder, device="cpu")
    other = copy.deepcopy(segmenter.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(segmenter.model, "fuse", lambda: other)
    photo = render_scene(0, (60, 40))[0]
    assert not segmenter.fuse(segmenter.prepare(photo), (40, 60))
    assert segmenter.network is segmenter.model


def test_work_goes_ahead_in_order_and_not_too_far():
    begun, ended = [], []

    def work(item):
        time.sleep(0.01 * (item % 3))
        return 10 * item

    def items():
        for item in range(12):
            begun.append(item)
            assert len(begun) - len(ended) <= 4
            yield item

    for result in ahead(work, items(), 3):
        ended += [result]
    assert ended == [10 * item for item in range(12)]
    with pytest.raises(ValueError, match="third"):
        for result in ahead(lambda item: 1 / 0 if item < 0 else item, iter([1, 2, 3]), 1):
            if result == 3:
                raise ValueError("third")


def test_processes_share_the_photos(tmp_path, model_folder):
    """Each photo is segmented by one of them, and those that are there already by none."""
    for seed in range(5):
        save_scene(tmp_path / "in" / f"{seed}.png", seed)
    kept = tmp_path / "out" / "3_labels.png"
    kept.parent.mkdir()
    kept.write_text("mine")
    script = "import runpy, sys; sys.argv[0] = 'offseg'; runpy.run_module('offseg_hf.cli', run_name='__main__')"
    arguments = ["segment", tmp_path / "in", "--model", model_folder, "--output", tmp_path / "out", "--device", "cpu"]
    first, second = run_together(2, script, *arguments)
    # The last lines: torch before 2.11 says there that processes have met.
    assert first.stdout.splitlines()[-1] == f"3 of 3 segmented, see {tmp_path / 'out'}"
    assert second.stdout.splitlines()[-1] == f"1 of 2 segmented, see {tmp_path / 'out'}" and "kept" in second.stderr
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 4 and kept.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interruption_leaves_nothing_half_written(tmp_path, segmenter, monkeypatch, error):
    """The outputs appear together: one that stops at the last of them leaves none."""
    jobs, _ = plan([save_scene(tmp_path / "a.png")], tmp_path / "out")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            list(segment(jobs, segmenter))
    else:
        assert [outcome.status for outcome in segment(jobs, segmenter)] == ["failed"]
    assert os.listdir(tmp_path / "out") == []


def test_half_precision(model_folder, segmenter):
    photo = render_scene(4, (90, 60))[0]
    label_map = Segmenter(model_folder, device="cpu", dtype=torch.bfloat16)(photo)
    assert (label_map == segmenter(photo)).mean() > 0.9


def test_models_that_are_none(tmp_path, model_folder):
    with pytest.raises(ValueError, match="has no config.json"):
        Segmenter(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        Segmenter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot use the device 'tpu9'"):
        Segmenter(model_folder, device="tpu9")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(ValueError, match="cannot load a segmentation model"):
        Segmenter(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot load a segmentation model"):
        Segmenter(tmp_path)


def test_incomplete_weights_are_refused(tmp_path, model_folder):
    """transformers would fill in random ones."""
    model = OffSegForSemanticSegmentation.from_pretrained(model_folder)
    weights = model.state_dict()
    lost = weights.pop("offset_learning.class_representation")
    assert lost.numel() > 0
    model.save_pretrained(tmp_path, state_dict=weights)
    OffSegImageProcessor.from_pretrained(model_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="offset_learning.class_representation"):
        Segmenter(tmp_path)


# -- which models -----------------------------------------------------------------------------------------------------


def test_models_that_are_supported():
    """By their configurations alone: nothing is built or loaded."""
    for config in (OffSegConfig(), SegformerConfig(), EomtConfig(), MaskFormerConfig(), Mask2FormerConfig()):
        require_segmentation_model("mine", config, training=True)
    require_segmentation_model("mine", DetrConfig())
    require_segmentation_model("mine", MaskFormerConfig(), MaskFormerImageProcessorPil(), every_size=True)
    require_segmentation_model("mine", EomtConfig(), EomtImageProcessorPil())


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (OneFormerConfig(), {}, "got OneFormerForUniversalSegmentation, which needs task_inputs: it is not supported"),
        (VideomtConfig(), {}, "got VideomtForUniversalSegmentation, which needs pixel_values_videos"),
        (CLIPSegConfig(), {}, "expected a model for semantic or universal segmentation, got a clipseg"),
        (SamConfig(), {}, "expected a model for semantic or universal segmentation, got a sam"),
        (ViTConfig(architectures=["ViTForImageClassification"]), {}, "got ViTForImageClassification"),
        (DetrConfig(), {"training": True}, "got DetrForSegmentation, which does not: its training is not supported"),
        (UperNetConfig(), {"processor": ViTImageProcessorPil()}, "expected an image processor that makes label maps"),
        (EomtConfig(), {"processor": EomtImageProcessorPil(), "every_size": True}, r"which has one size: .*\(--tta\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_are_not_supported(config, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        require_segmentation_model("mine", config, **options)
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)


def test_an_unsupported_model_is_refused_before_its_weights_are_read(tmp_path):
    OneFormerConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: .*OneFormerForUniversalSegmentation, which needs task_inputs"):
        Segmenter(tmp_path)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_overlay_blends_the_colours():
    photo = Image.new("RGB", (400, 2), (100, 100, 100))
    label_map = np.zeros((2, 400), np.uint8)
    label_map[:, 200:] = 1
    label_map[:, 300:] = 255
    overlay = draw_overlay(photo, label_map, ("a", "b"), [(200, 0, 0), (0, 100, 50)], opacity=0.5)
    assert overlay.width == 400
    assert [overlay.getpixel((x, 1)) for x in (0, 250, 399)] == [(150, 50, 50), (50, 100, 75), (100, 100, 100)]
    with pytest.raises(ValueError, match="label map is 400x2, but the photo 2x400"):
        draw_overlay(photo.resize((2, 400)), label_map, ("a", "b"), [(0, 0, 0)] * 2)


def test_legend_shows_the_classes_present_and_no_other():
    labels = LABEL_SETS["ade"]
    label_map = np.arange(0, 48, 2, dtype=np.uint8).reshape(4, 6)
    overlay = draw_overlay(Image.new("RGB", (6, 4)), label_map, labels.names, labels.palette, opacity=0)
    colours = {colour for _, colour in overlay.getcolors(maxcolors=1 << 16)}
    for index in range(48):
        others = {labels.palette[other] for other in range(0, 48, 2)}
        if index % 2 == 0 or labels.palette[index] not in others:
            assert (labels.palette[index] in colours) == (index % 2 == 0), labels.names[index]


@pytest.mark.parametrize("font_size", [12, 30])
@pytest.mark.parametrize("count", [1, 2, 7, 171])
def test_legend_has_room_for_every_entry(count, font_size):
    """No entry is cut off or hidden: all the swatches are whole, and the text keeps off the rim."""
    palette = palette_for([str(index) for index in range(count)])
    entries = [("a rather long name of a class", "< 0.1 %", colour) for colour in palette]
    legend = draw_legend(entries, width=500, font_size=font_size)
    pixels = {colour: count for count, colour in legend.getcolors(maxcolors=1 << 16)}
    assert min(pixels[colour] for colour in palette) > (0.9 * font_size) ** 2
    legend = np.asarray(legend)
    assert (legend[0] == 255).all() and (legend[-1] == 255).all() and (legend[:, -1] == 255).all()


def test_class_shares():
    label_map = np.asarray([[2, 2, 0], [2, 1, 255]], np.uint8)
    assert class_shares(label_map, 3) == [(2, 3, 3 / 6), (0, 1, 1 / 6), (1, 1, 1 / 6)]


@pytest.mark.parametrize(("count", "mode"), [(2, "P"), (171, "P"), (256, "P"), (300, "I;16")])
def test_label_images_keep_the_ids(tmp_path, count, mode):
    label_map = np.arange(300).reshape(15, 20) % count
    label_image(label_map, palette_for([str(index) for index in range(count)])).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), label_map)


def test_palettes():
    for labels in LABEL_SETS.values():
        assert palette_for(list(labels.names)) == labels.palette
    assert palette_for(list(SCENE_LABELS.names), SCENE_LABELS) == SCENE_LABELS.palette
    assert palette_for(list(LABEL_SETS["ade"].names), SCENE_LABELS) == LABEL_SETS["ade"].palette
    colours = palette_for([f"class {index}" for index in range(40)])
    assert len(set(colours)) == 40
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
