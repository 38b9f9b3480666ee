"""Evaluation: the numbers of a plain loop, the same from any number of processes, and the files that come of it."""

import json
import os
import random
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitImageProcessorPil,
    MobileViTImageProcessorPil,
    PreTrainedModel,
    SegformerImageProcessorPil,
)

from offseg_hf import (
    OffSegImageProcessor,
    OffsetMask2FormerForUniversalSegmentation,
    OffsetMask2FormerImageProcessor,
    apply_offset_learning,
)
from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.label_image import LabelImage
from offseg_hf.data.label_sets import LABEL_SETS
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.evaluation import (
    OFFICIAL_SCALES,
    EvaluationOptions,
    Outputs,
    Sample,
    Sink,
    comparison_lines,
    draw_comparison,
    draw_confusion_matrix,
    evaluate,
    evaluate_model,
    metric_for,
    outputs,
    predict,
    report_again,
    result_line,
    result_table,
)
from offseg_hf.evaluation.calibration import grid
from offseg_hf.evaluation.evaluate import check_classes
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.outputs import file_stems, submission_image, weights_digest, write_json
from offseg_hf.evaluation.prediction import predict_with_probability, prepare
from offseg_hf.evaluation.samples import SampleReader
from offseg_hf.models.image_operations import keep_ratio_size, resize_bilinear, sliding_windows
from offseg_hf.utils.files import whole_file
from tests.comparison import assert_same_counts, sure_pixels
from tests.evaluation.uneven import write_uneven
from tests.processes import run_together
from tests.semantic_models import LABELS, pass_signals
from tests.semantic_models import small_model as transformers_model
from tests.small_model import save_small_model
from tests.tiny import tiny_config


NAMES = SCENE_LABELS.names
NUM_CLASSES = len(NAMES)
NUM_IMAGES = 5
CPU = EvaluationOptions(device="cpu")
PIXELS = sum(60 * (84 + 10 * index) for index in range(NUM_IMAGES))
IMAGENET = {"mean": np.array([0.485, 0.456, 0.406]) * 255, "std": np.array([0.229, 0.224, 0.225]) * 255}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A small model that tells classes apart, if not the right ones."""
    folder = save_small_model(tmp_path_factory.mktemp("model"), "segformer")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    pass_signals(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder) -> PreTrainedModel:
    return AutoModelForSemanticSegmentation.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def processor() -> OffSegImageProcessor:
    """Cuts the scenes into windows, after padding them."""
    return OffSegImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, window_size=64, window_stride=48, size_divisor=32
    )


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory) -> Path:
    """Scenes of unequal sizes, partly not annotated."""
    sizes = [(84 + 10 * index, 60) for index in range(NUM_IMAGES)]
    return write_uneven(tmp_path_factory.mktemp("data") / "scenes", sizes)


@pytest.fixture(scope="module")
def scenes(scenes_folder) -> Dataset:
    return load_segmentation_data(scenes_folder, "val")


def plain_confusion(dataset: Dataset, num_classes: int, label_map_of) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for row in dataset:
        label = np.asarray(row["label"]).astype(np.int64)
        prediction = np.asarray(label_map_of(row["image"], label.shape))
        counted = label != 255
        np.add.at(matrix, (label[counted], prediction[counted]), 1)
    return matrix


def assert_same_report(actual: dict, expected: dict) -> None:
    """Of the same labels, and of the same predictions but for pixels that rounding may have decided."""
    assert actual["dataset"]["num_images"] == expected["dataset"]["num_images"]
    assert [row["pixels"] for row in actual["classes"]] == [row["pixels"] for row in expected["classes"]]
    assert actual["metrics"] == pytest.approx(expected["metrics"], abs=0.002)


def through(model, processor):
    """The plain way from a photo to its label map."""

    @torch.no_grad()
    def label_map(photo: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        outputs = model(**processor(images=photo, return_tensors="pt"))
        return processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]

    return label_map


# -- the metric of a loaded model ------------------------------------------------------------------------------------


def test_metrics_are_those_of_a_plain_loop(model, processor, scenes):
    result = evaluate_model(model, processor, scenes)
    expected = plain_confusion(scenes, NUM_CLASSES, through(model, processor))
    assert np.count_nonzero(expected.sum(0)) > 3  # several classes are predicted
    assert_same_counts(result["confusion_matrix"], expected)
    expected = result["confusion_matrix"]
    hits = np.diag(expected)
    union = expected.sum(0) + expected.sum(1) - hits
    assert result["mIoU"] == pytest.approx((hits[union > 0] / union[union > 0]).mean(), abs=1e-12)
    assert result["aAcc"] == pytest.approx(hits.sum() / expected.sum(), abs=1e-12)
    assert result["num_images"] == NUM_IMAGES


@pytest.mark.parametrize("options", [{"workers": 2}, {"streaming": True}], ids=["workers", "streaming"])
def test_reading_in_another_way_changes_nothing(model, processor, scenes_folder, scenes, options):
    dataset = load_segmentation_data(scenes_folder, "val", streaming=options.pop("streaming", False))
    result = evaluate_model(model, processor, dataset, **options)
    expected = evaluate_model(model, processor, scenes)
    assert_same_counts(result["confusion_matrix"], expected["confusion_matrix"])
    assert result["num_images"] == NUM_IMAGES


def test_of_a_stream_what_others_read_is_not_decoded(processor, scenes_folder, scenes, monkeypatch):
    decoded, read = [], LabelImage.read
    monkeypatch.setattr(LabelImage, "read", lambda *cell, **tokens: decoded.append(1) or read(*cell, **tokens))
    reader = SampleReader(load_segmentation_data(scenes_folder, "val", streaming=True), processor, ())
    for place, expected in (((0, 2, 0), [0, 2, 4]), ((1, 2, 0), [1, 3]), ((0, 2, 2), [4]), ((1, 2, 2), [])):
        decoded.clear()
        samples = list(reader.stream(*place))
        assert [sample.index for sample in samples] == expected and len(decoded) == len(expected)
        for sample in samples:
            assert np.array_equal(sample.label, scenes[sample.index]["label"])


def test_training_goes_on_as_if_there_had_been_no_evaluation(model, processor, scenes):
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    weights = weights_digest(model)
    evaluate_model(model, processor, scenes.take(1), workers=1)
    evaluate_model(model, processor, scenes.take(1))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and np.array_equal(before[2], after[2])
    assert weights_digest(model) == weights  # statistics of batch norms too
    model.eval()


def test_memory_does_not_grow_with_the_number_of_images(model, processor, scenes):
    samples = []
    alive = []

    class Watch(Sink):
        def keep(self, sample: Sample, prediction: torch.Tensor) -> None:
            samples.append(weakref.ref(sample))
            alive.append(sum(reference() is not None for reference in samples))

    evaluate_model(model, processor, scenes, sink=Watch(metric_for(scenes)))
    assert len(samples) == NUM_IMAGES and max(alive) <= 2


def test_going_on_with_a_metric(model, processor, scenes):
    whole = evaluate_model(model, processor, scenes)
    first = Sink(MeanIoU(NUM_CLASSES))
    evaluate_model(model, processor, scenes.take(2), sink=first)
    steps = []
    sink = Sink(first.metric, progress=lambda *step: steps.append(step), done=first.done)
    rest = evaluate_model(model, processor, scenes, sink=sink)
    assert_same_counts(rest["confusion_matrix"], whole["confusion_matrix"])
    assert rest["num_images"] == NUM_IMAGES
    assert steps == [(3, 5), (4, 5), (5, 5)]


def test_half_precision(model_folder, processor, scenes):
    model = AutoModelForSemanticSegmentation.from_pretrained(model_folder, dtype=torch.bfloat16)
    result = evaluate_model(model, processor, scenes.take(2))
    expected = plain_confusion(
        scenes.take(2),
        NUM_CLASSES,
        lambda photo, size: processor.post_process_semantic_segmentation(
            model(**processor(images=photo, return_tensors="pt").to(torch.bfloat16)), target_sizes=[size]
        )[0],
    )
    assert_same_counts(result["confusion_matrix"], expected, share=0.05)  # bfloat16 has 8 bits


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_used_is_named(model, processor, tmp_path, workers):
    photo, label_map = render_scene(0, (40, 40))
    photo.save(tmp_path / "fine.png")
    Image.fromarray(label_map).save(tmp_path / "label.png")
    Image.fromarray(label_map[:20]).save(tmp_path / "half.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "fine.png").read_bytes()[:500])

    def dataset(image: str, label: str) -> Dataset:
        features = Features(image=ImageFeature(), label=LabelImage.of(SCENE_LABELS))
        return Dataset.from_dict(
            {"image": [str(tmp_path / image)], "label": [str(tmp_path / label)]}, features=features
        )

    def error(image: str, label: str) -> str:
        with pytest.raises(ValueError) as caught:
            evaluate_model(model, processor, dataset(image, label), workers=workers)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{tmp_path}/")

    assert error("broken.png", "label.png").startswith("broken.png: cannot be read as an image: image file is trunc")
    assert error("fine.png", "broken.png").startswith("broken.png: cannot be read as a label map: ")
    assert error("fine.png", "fine.png").startswith("fine.png: expected a label map of one id per pixel")
    assert error("fine.png", "gone.png").startswith("gone.png: cannot be read as a label map: ")
    assert error("fine.png", "half.png") == (
        f"half.png: the label map is 40x20, but its image {tmp_path / 'fine.png'} is 40x40"
    )
    with pytest.raises(ValueError, match=r"fine\.png: expected classes 0 to 2, .* got label"):
        evaluate_model(model, processor, dataset("fine.png", "label.png"), sink=Sink(MeanIoU(3)))
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate_model(model, processor, dataset("fine.png", "label.png").select([]))


def test_a_sample_without_a_label_map(model, processor, tmp_path):
    render_scene(0, (40, 40))[0].save(tmp_path / "fine.png")
    features = Features(image=ImageFeature(), label=LabelImage.of(SCENE_LABELS))
    data = Dataset.from_dict({"image": [str(tmp_path / "fine.png")], "label": [None]}, features=features)
    with pytest.raises(
        ValueError, match=r"the label map of .*fine\.png: cannot be read as a label map: there is none"
    ):
        evaluate_model(model, processor, data)


def test_a_model_that_does_not_take_a_size(five):
    """Its patches are counted by its configuration: other sizes than that are an error somewhere in its middle."""
    model = transformers_model("data2vec-vision")
    processor = BeitImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    assert evaluate_model(model, processor, five.take(1))["num_images"] == 1
    expected = "Data2VecVisionForSemanticSegmentation with BeitImageProcessorPil makes no label map of it"
    with pytest.raises(ValueError, match=expected) as caught:
        evaluate_model(model, processor, five.take(1), scales=(0.5, 1.0))
    assert "\n" not in str(caught.value)


def test_a_photo_that_is_not_rgb(model, processor, tmp_path):
    gray = render_scene(0, (40, 40))[0].convert("L")
    gray.save(tmp_path / "gray.png")
    Image.new("L", (40, 40)).save(tmp_path / "label.png")
    features = Features(image=ImageFeature(), label=LabelImage.of(SCENE_LABELS))
    paths = {name: [str(tmp_path / f"{file}.png")] for name, file in (("image", "gray"), ("label", "label"))}
    samples = []
    data = Dataset.from_dict(paths, features=features)

    class Keep(Sink):
        def keep(self, sample: Sample, prediction: torch.Tensor) -> None:
            samples.append((sample, prediction.numpy()))

    evaluate_model(model, processor, data, sink=Keep(metric_for(data)))
    sample, prediction = samples[0]
    assert np.array_equal(np.asarray(sample.photo), np.repeat(np.asarray(gray)[..., None], 3, axis=2))
    assert np.mean(prediction != through(model, processor)(gray, (40, 40)).numpy()) < 0.002


# -- models of others, and those that classify masks -----------------------------------------------------------------


@pytest.fixture(scope="module")
def five(scenes, tmp_path_factory) -> Dataset:
    """The scenes as if they had the five classes of `tests.semantic_models`, and nothing elsewhere; images without
    names."""
    path = tmp_path_factory.mktemp("five") / "classes.json"
    path.write_text(json.dumps({"title": "five classes", "classes": list(LABELS.values())}))
    ids = [Image.fromarray(np.where(np.asarray(row) < 5, row, 255).astype(np.uint8)) for row in scenes["label"]]
    features = Features(image=ImageFeature(), label=ImageFeature())
    plain = Dataset.from_dict({"image": scenes["image"][:], "label": ids}, features=features)
    return load_segmentation_data(plain, labels=path)


@pytest.mark.parametrize("offset_learning", [False, True])
def test_models_of_transformers(five, offset_learning):
    model = transformers_model("segformer")
    if offset_learning:
        model = apply_offset_learning(model).eval()
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 64})
    result = evaluate_model(model, processor, five)
    expected = plain_confusion(five, 5, through(model, processor))
    assert_same_counts(result["confusion_matrix"], expected)
    assert expected.sum() > 0
    # With fixed sizes scales are relative to these.
    sizes = [view["pixel_values"].shape[2:] for view in prepare(five[0]["image"], processor, (0.5, 1.0, 1.25))]
    assert sizes == [(32, 32), (64, 64), (80, 80)]
    assert evaluate_model(model, processor, five.take(1), scales=(0.5, 1.0), flip=True)["num_images"] == 1


def test_no_part_of_a_photo_is_cropped_away():
    """MobileViT's processor cuts out the center, and post-processing stretches its label map over the whole photo."""
    processor = MobileViTImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    photo = render_scene(0, (128, 64))[0]
    assert processor(images=photo, return_tensors="pt")["pixel_values"].shape[2:] == (64, 64)
    assert prepare(photo, processor)[0]["pixel_values"].shape[2:] == (64, 128)


def test_mask2former(five):
    torch.manual_seed(0)
    config = tiny_config("mask2former", id2label=LABELS, label2id={name: i for i, name in LABELS.items()})
    model = OffsetMask2FormerForUniversalSegmentation(config).eval()
    processor = OffsetMask2FormerImageProcessor(size={"shortest_edge": 60, "longest_edge": 120})
    result = evaluate_model(model, processor, five.take(3))
    expected = plain_confusion(five.take(3), 5, through(model, processor))
    assert_same_counts(result["confusion_matrix"], expected)
    assert expected.sum() > 0
    augmented = evaluate_model(model, processor, five.take(1), scales=(0.75, 1.0), flip=True)
    assert augmented["num_images"] == 1 and augmented["confusion_matrix"].sum() == expected_pixels(five)
    for options in ({}, {"scales": (0.75, 1.0)}):
        sink = Sink(metric_for(five), counts=ImageCounts(5))
        counts = evaluate_model(model, processor, five.take(1), sink=sink, **options)["image_counts"]
        assert len(counts) == 1 and counts.calibration() is None  # what masks add up to are no probabilities


def expected_pixels(dataset: Dataset) -> int:
    return int((np.asarray(dataset[0]["label"]) != 255).sum())


# -- probabilities of the winners -------------------------------------------------------------------------------------


@torch.no_grad()
def test_probabilities_are_those_of_full_size_scores(model, processor, scenes, five):
    """Through windows, without, from a model of transformers, and over augmented views."""
    photo = scenes[1]["image"]
    size = (photo.height, photo.width)
    plain = OffSegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, window_size=None, size_divisor=32)
    other = transformers_model("segformer"), SegformerImageProcessorPil(size={"height": 64, "width": 64})
    for network, images in ((model, processor), (model, plain), other):
        views = prepare(photo, images)
        label_map, probability = predict_with_probability(network, images, views, size)
        assert torch.equal(label_map, predict(network, images, views, size))
        full = images.post_process_semantic_segmentation(
            network(**views[0]), target_sizes=[size], return_segmentation_scores=True
        )[0].segmentation_scores.softmax(dim=0)
        expected = full.amax(dim=0)[grid(size[0])][:, grid(size[1])]
        torch.testing.assert_close(probability, expected, atol=1e-4, rtol=1e-4)
        assert probability.std() > 0.001
    expected = plain_augmented_scores(model, photo, (0.75, 1.0), (False, True), 64, 48, 32)
    _, probability = predict_with_probability(model, processor, prepare(photo, processor, (0.75, 1.0)), size, True)
    torch.testing.assert_close(
        probability, expected.amax(dim=0)[grid(size[0])][:, grid(size[1])], atol=1e-3, rtol=1e-3
    )


# -- test-time augmentation ------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_augmented_scores(
    model, photo: Image.Image, scales, flips, window: int, stride: int, divisor: int
) -> torch.Tensor:
    """As the official pipeline does it: resize, flip, normalize, pad, windows; crop, flip back, resize, softmax."""
    image = np.asarray(photo).transpose(2, 0, 1)
    height, width = image.shape[1:]
    total, count = 0, 0
    for scale in scales:
        short, long = sorted((int(height * scale + 0.5), int(width * scale + 0.5)))
        resized = resize_bilinear(image, *keep_ratio_size(height, width, short, long))
        for flip in flips:
            view = resized[..., ::-1] if flip else resized
            values = (view - IMAGENET["mean"][:, None, None]) / IMAGENET["std"][:, None, None]
            new_height, new_width = view.shape[1:]
            padding = (0, -new_width % divisor, 0, -new_height % divisor)
            pixel_values = F.pad(torch.tensor(values, dtype=torch.float32)[None], padding)
            canvas = torch.zeros(NUM_CLASSES, *pixel_values.shape[2:])
            seen = torch.zeros(pixel_values.shape[2:])
            for top, left, bottom, right in sliding_windows(*pixel_values.shape[2:], window, stride).tolist():
                logits = model(pixel_values[..., top:bottom, left:right]).logits
                canvas[:, top:bottom, left:right] += F.interpolate(
                    logits, size=(bottom - top, right - left), mode="bilinear"
                )[0]
                seen[top:bottom, left:right] += 1
            logits = (canvas / seen)[None, :, :new_height, :new_width]
            logits = logits.flip(-1) if flip else logits
            total = total + F.interpolate(logits, size=(height, width), mode="bilinear")[0].softmax(0)
            count += 1
    return total / count


@pytest.mark.parametrize(
    ("scales", "flip"),
    [(OFFICIAL_SCALES, True), ((1.0,), True), ((0.5, 1.25), False)],
    ids=["official", "flip", "scales"],
)
def test_augmentation_is_the_official_one(model, processor, scenes, scales, flip):
    photo = scenes[1]["image"]
    size = (photo.height, photo.width)
    expected = plain_augmented_scores(model, photo, scales, (False, True)[: 1 + flip], 64, 48, 32)
    with torch.no_grad():
        label_map = predict(
            model, processor, prepare(photo, processor, scales), size, flip, max_values=7 * NUM_CLASSES * 84
        )
    sure = sure_pixels(expected)
    assert sure.float().mean() > 0.95
    assert torch.equal(label_map[sure], expected.argmax(0)[sure])
    plain = through(model, processor)(photo, size)
    assert (plain != label_map)[sure].float().mean() > 0.001  # it makes a difference


def test_augmentation_of_a_photo_too_small(processor):
    with pytest.raises(ValueError, match="1x40 has no pixels left at scale 0.25"):
        prepare(Image.new("RGB", (1, 40)), processor, (0.25,))


# -- from names to files ---------------------------------------------------------------------------------------------


def test_files(model_folder, scenes_folder, scenes, tmp_path):
    steps = []
    report = evaluate(
        model_folder,
        scenes_folder,
        "val",
        outputs=Outputs(
            save_dir=tmp_path / "out",
            overlays=True,
            submission=True,
            json_file=tmp_path / "card" / "result.json",
        ),
        options=CPU,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(i + 1, NUM_IMAGES) for i in range(NUM_IMAGES)]
    stems = [f"{index:06d}.png" for index in range(NUM_IMAGES)]
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(
        ["card/result.json", "out/evaluation.json", "out/confusion_matrix.png"]
        + ["out/report.html", "out/image_counts.parquet"]
        + [f"out/report/photo/{index}.jpg" for index in range(NUM_IMAGES)]
        + [
            f"out/report/{kind}/{index}.png"
            for kind in ("annotation", "prediction", "difference")
            for index in range(NUM_IMAGES)
        ]
        + [f"out/{folder}/{stem}" for folder in ("overlays", "submission") for stem in stems]
    )

    segment = through(
        AutoModelForSemanticSegmentation.from_pretrained(model_folder),
        OffSegImageProcessor.from_pretrained(model_folder),
    )
    for stem, row in zip(stems, scenes):
        size = (row["image"].height, row["image"].width)
        with Image.open(tmp_path / "out" / "submission" / stem) as image:
            assert np.mean(np.asarray(image) != segment(row["image"], size).numpy()) < 0.002

    for file in ("card/result.json", "out/evaluation.json"):
        assert json.loads((tmp_path / file).read_text(), parse_constant=pytest.fail) == report
    matrix = plain_confusion(scenes, NUM_CLASSES, segment)
    assert report["metrics"]["aAcc"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=0.002)
    assert [row["name"] for row in report["classes"]] == list(NAMES)
    assert [row["pixels"] for row in report["classes"]] == matrix.sum(1).tolist()
    assert report["dataset"]["num_images"] == NUM_IMAGES and report["dataset"]["split"] == "val"
    assert report["protocol"]["window_size"] == 64 and report["protocol"]["test_time_augmentation"] is None
    assert report["environment"]["torch"] == torch.__version__


def test_terminal(model_folder, scenes_folder, capsys):
    report = evaluate(model_folder, scenes_folder, "val", options=replace(CPU, limit=1, tta=True))
    assert report["protocol"]["test_time_augmentation"] == {"scales": list(OFFICIAL_SCALES), "flip": True}
    assert report["dataset"]["num_images"] == 1
    from rich.console import Console

    Console(width=100).print(result_table(report))
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.strip().startswith(name) for line in lines) for name in (*NAMES, "mean"))
    sky = next(line for line in lines if line.strip().startswith("sky"))
    assert f"{100 * report['classes'][0]['Acc']:.2f}" in sky
    assert f"mIoU {100 * report['metrics']['mIoU']:.2f}" in result_line(report)


def test_what_exists_is_kept(model_folder, scenes_folder, tmp_path):
    (tmp_path / "result.json").write_text("mine")
    files, options = Outputs(json_file=tmp_path / "result.json"), replace(CPU, limit=1)
    with pytest.raises(ValueError, match="result.json exists and is kept"):
        evaluate(
            "no/such-model", scenes_folder, "val", options=options, outputs=files
        )  # said before anything is loaded
    assert (tmp_path / "result.json").read_text() == "mine"
    evaluate(model_folder, scenes_folder, "val", options=options, outputs=replace(files, overwrite=True))
    assert json.loads((tmp_path / "result.json").read_text())["dataset"]["num_images"] == 1
    with pytest.raises(ValueError, match="need a folder: pass save_dir"):
        evaluate(model_folder, scenes_folder, "val", outputs=Outputs(submission=True))


def test_an_interrupted_evaluation_goes_on(model_folder, scenes_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "SECONDS_BETWEEN_SAVES", 0)
    options = {"outputs": Outputs(save_dir=tmp_path / "out", submission=True), "options": CPU}

    def stop_after_three(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, scenes_folder, "val", progress=stop_after_three, **options)
    assert len(list((tmp_path / "out" / "submission").iterdir())) == 3
    assert not (tmp_path / "out" / "evaluation.json").exists()
    steps = []
    report = evaluate(model_folder, scenes_folder, "val", progress=lambda done, total: steps.append(done), **options)
    assert steps == [4, 5]
    whole = evaluate(model_folder, scenes_folder, "val", options=CPU)
    assert_same_report(report, whole)
    counts = ImageCounts.from_bytes((tmp_path / "out" / "image_counts.parquet").read_bytes())
    assert [row["index"] for row in counts.rows] == list(range(NUM_IMAGES))
    assert counts.per_image().labeled.sum(axis=0).tolist() == [row["pixels"] for row in whole["classes"]]
    assert len(list((tmp_path / "out" / "report" / "difference").iterdir())) == NUM_IMAGES
    assert len(list((tmp_path / "out" / "submission").iterdir())) == NUM_IMAGES
    assert not list((tmp_path / "out").glob(".*"))


@pytest.fixture
def interrupted(model_folder, scenes_folder, tmp_path, monkeypatch):
    """Evaluates what it is given until 3 images are done, and then once more: how many images that looks at."""
    monkeypatch.setattr(outputs, "SECONDS_BETWEEN_SAVES", 0)
    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copytree(scenes_folder, tmp_path / "scenes")

    def stop_after_three(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def run(change, options=CPU):
        arguments = (tmp_path / "model", tmp_path / "scenes", "val")
        options = {"outputs": Outputs(save_dir=tmp_path / "out", submission=True), "options": options}
        with pytest.raises(KeyboardInterrupt):
            evaluate(*arguments, progress=stop_after_three, **options)
        change(tmp_path)
        steps = []
        report = evaluate(*arguments, progress=lambda done, total: steps.append(done), **options)
        if len(steps) == NUM_IMAGES:
            assert sum(row["pixels"] for row in report["classes"]) <= PIXELS  # each is counted once
        assert len(list((tmp_path / "out" / "submission").iterdir())) == NUM_IMAGES
        return len(steps)

    return run


def swap_classes(folder: Path) -> None:
    """In the first label map, of the same size on the disk."""
    path = folder / "scenes" / "masks" / "val" / "000000.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    ids = np.asarray(Image.open(path))
    Image.fromarray(np.where(ids < 2, 1 - ids, ids).astype(np.uint8)).save(path)
    os.utime(path, ns=times)


def darken(folder: Path) -> None:
    path = folder / "scenes" / "images" / "val" / "000002.png"
    Image.open(path).point(lambda value: value // 3).save(path)


def edit_json(file: str, **changes):
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def rename_a_class(folder: Path) -> None:
    """In the data and in the model, so that they fit."""
    edit_json("scenes/classes.json", classes=["heaven", *NAMES[1:]])(folder)
    config = json.loads((folder / "model" / "config.json").read_text())
    config["id2label"]["0"] = "heaven"
    edit_json("model/config.json", id2label=config["id2label"], label2id={"heaven": 0})(folder)


def change_weights(folder: Path) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "model")
    model.offset_learning.class_representation.data.mul_(-1)
    model.save_pretrained(folder / "model")


@pytest.mark.parametrize(
    ("change", "streaming"), [(swap_classes, False), (darken, False), (swap_classes, True), (darken, True)]
)
def test_counts_of_files_that_were_changed_are_not_taken(interrupted, change, streaming):
    assert interrupted(change, replace(CPU, streaming=streaming)) == NUM_IMAGES


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        rename_a_class,
        edit_json("scenes/classes.json", classes=list(NAMES), values=[*range(1, NUM_CLASSES), 0]),
        edit_json("model/preprocessor_config.json", image_mean=[0.1, 0.2, 0.3]),
        edit_json("model/preprocessor_config.json", window_stride=32),
        edit_json("model/config.json", window_batch_size=1),
        lambda folder: (folder / "out" / "submission" / "000001.png").unlink(),
    ],
    ids=["weights", "names", "values", "mean", "stride", "config", "picture"],
)
def test_counts_of_another_evaluation_are_not_taken(interrupted, change):
    assert interrupted(change) == NUM_IMAGES


def test_counts_of_the_same_files_are_taken(interrupted):
    assert interrupted(lambda folder: (folder / "scenes" / "masks" / "val" / "000000.png").touch()) == NUM_IMAGES - 3


def test_counts_of_the_same_stream_are_taken(interrupted):
    assert interrupted(lambda folder: None, replace(CPU, streaming=True)) == NUM_IMAGES - 3


def test_another_evaluation_does_not_go_on_there(model_folder, scenes_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "SECONDS_BETWEEN_SAVES", 0)
    files = Outputs(save_dir=tmp_path)

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, scenes_folder, "val", options=CPU, outputs=files, progress=stop)
    state = next(tmp_path.glob(".evaluation-*.pt"))
    report = evaluate(model_folder, scenes_folder, "val", options=replace(CPU, limit=2), outputs=files)
    assert report["dataset"]["num_images"] == 2 and sum(row["pixels"] for row in report["classes"]) < 2 * 94 * 60
    state.write_bytes(b"half a file")  # of another program: these appear whole
    report = evaluate(model_folder, scenes_folder, "val", options=CPU, outputs=replace(files, overwrite=True))
    assert report["dataset"]["num_images"] == NUM_IMAGES


def test_comparison_with_an_older_evaluation(model_folder, scenes_folder, tmp_path):
    options = replace(CPU, limit=3)
    old = evaluate(model_folder, scenes_folder, "val", options=options, outputs=Outputs(save_dir=tmp_path / "old"))
    arguments = {"options": options, "compare_with": tmp_path / "old" / "evaluation.json"}
    new = evaluate(model_folder, scenes_folder, "val", outputs=Outputs(save_dir=tmp_path / "new"), **arguments)
    assert new["comparison"]["metrics"]["mIoU"]["there"] == old["metrics"]["mIoU"]
    assert abs(new["comparison"]["metrics"]["mIoU"]["difference"]) < 0.002
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == new
    lines = comparison_lines(new)
    assert lines[0].startswith("compared with ") and lines[-1].endswith("of 3") and len(lines) == 5

    again = report_again(tmp_path / "new")  # and no model is run
    assert again == {key: value for key, value in new.items() if key != "comparison"}
    assert report_again(tmp_path / "new", tmp_path / "old" / "evaluation.json") == new

    with pytest.raises(ValueError, match="the number of images is 3 there .*, but 2 here"):
        evaluate(model_folder, scenes_folder, "val", **arguments | {"options": replace(CPU, limit=2)})


def test_results_are_kept_if_the_comparison_is_refused_at_the_end(model_folder, scenes_folder, tmp_path):
    shutil.copytree(scenes_folder, tmp_path / "scenes")
    arguments = (model_folder, tmp_path / "scenes", "val")
    options = replace(CPU, limit=2)
    evaluate(*arguments, options=options, outputs=Outputs(save_dir=tmp_path / "old"))
    swap_classes(tmp_path)
    files = Outputs(save_dir=tmp_path / "new")
    with pytest.raises(ValueError, match=r"the annotation of .*000000\.png is another one there"):
        evaluate(*arguments, options=options, outputs=files, compare_with=tmp_path / "old")
    report = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert report["dataset"]["num_images"] == 2 and "comparison" not in report


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), {"b": float("inf")}], "c": 0.5, "d": "nan"})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": [None, {"b": None}],
        "c": 0.5,
        "d": "nan",
    }


def test_files_are_whole_or_absent(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="disk full"), whole_file(tmp_path / "a.txt") as path:
        path.write_text("ne")
        raise OSError("disk full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_classes_that_do_not_agree():
    check_classes(NAMES, NAMES, "model", "data")
    check_classes(["traffic light", "Bed "], ["traffic-light", "bed"], "model", "data")
    check_classes(["LABEL_0", "LABEL_1"], ["sky", "road"], "model", "data")
    check_classes(["a", "b"], ["sky", "road"], "model", "data", check_names=False)
    with pytest.raises(ValueError, match="model has 10 classes, data has 2: evaluate the model on data with"):
        check_classes(NAMES, ["sky", "road"], "model", "data", check_names=False)
    with pytest.raises(ValueError, match=r"class 1 is 'tree' in model, but 'road' in data \(1 of 2 classes differ\)"):
        check_classes(["sky", "tree"], ["sky", "road"], "model", "data")
    with pytest.raises(ValueError, match="the same classes in another order"):
        check_classes(["sky", "road"], ["road", "sky"], "model", "data")


def test_the_split_is_named(model_folder, scenes):
    data = DatasetDict(train=scenes, validation=scenes)
    with pytest.raises(ValueError, match="expected the split to evaluate on, got None: there are train, validation"):
        evaluate(model_folder, data, None, options=CPU)
    assert evaluate(model_folder, data, "val", options=replace(CPU, limit=1))["dataset"]["split"] == "val"


def test_classes_are_compared_before_anything_is_computed(model_folder, five, tmp_path):
    with pytest.raises(ValueError, match="has 10 classes, five classes has 5: "):
        evaluate(model_folder, five, None, outputs=Outputs(save_dir=tmp_path / "out"), options=CPU)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("name", "expected"), [("ade", [1, 3, 150]), ("cityscapes", [7, 11, 33])])
def test_submission_has_the_values_of_the_published_annotations(name, expected):
    labels = LABEL_SETS[name]
    prediction = np.array([[0, 2, len(labels) - 1]])
    image = submission_image(prediction, labels)
    assert image.mode == "L" and np.asarray(image).tolist() == [expected]


def test_names_of_files():
    assert file_stems(["a/x.jpg", "b/y.png", "b/X.png", "sample 3"]) == ["x_0", "y", "X_2", "sample 3"]


# -- pictures --------------------------------------------------------------------------------------------------------


def test_confusion_matrix_shows_shares_of_rows():
    names = ["sky", "road", "sidewalk $1 $2", "never annotated"]
    matrix = np.zeros((4, 4), np.int64)
    matrix[0, 0], matrix[1, 2], matrix[2, 0], matrix[2, 2] = 5, 700, 1, 3
    figure, tripled = draw_confusion_matrix(matrix, names), draw_confusion_matrix(matrix * 3, names)
    (axes,) = figure.axes
    (image,) = axes.images
    shares = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0.25, 0, 0.75, 0], [np.nan] * 4])
    np.testing.assert_array_equal(image.get_array().filled(np.nan), shares)
    np.testing.assert_array_equal(tripled.axes[0].images[0].get_array().filled(np.nan), shares)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == names
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "100", (1, 2): "100", (2, 0): "25", (2, 2): "75"}
    colors = image.to_rgba(image.get_array())[..., :3]
    assert colors[1, 1].mean() > colors[2, 0].mean() > colors[2, 2].mean() > colors[0, 0].mean()
    np.testing.assert_allclose(colors[3], 0xEC / 255)


def test_confusion_matrix_of_many_classes(tmp_path):
    names = [f"class {index}" for index in range(150)]
    figure = draw_confusion_matrix(np.eye(150, dtype=np.int64), names)
    figure.savefig(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert 1800 <= min(picture.size) < 2200
    assert not figure.axes[0].texts  # no room for numbers
    width = figure.axes[0].get_window_extent().width
    assert width > 0.85 * figure.bbox.width


def test_comparison():
    photo, label = render_scene(1, (320, 200))
    label[:50] = 255
    prediction = np.where(label == 255, 0, label)
    picture = draw_comparison(photo, label, prediction, NAMES, SCENE_LABELS.palette)
    wrong = draw_comparison(photo, label, (prediction + 1) % NUM_CLASSES, NAMES, SCENE_LABELS.palette)
    first, second = (np.asarray(image).astype(int)[:24] for image in (picture, wrong))
    assert np.array_equal(first[:, :320], second[:, :320]) and not np.array_equal(first, second)  # the captions
    pixels = np.asarray(picture)[24 : 24 + 200]
    assert np.array_equal(pixels[:50, :320], np.asarray(photo)[:50])  # not annotated
    assert np.array_equal(pixels[50:, :320], pixels[50:, 328 : 328 + 320])
    draw_comparison(photo, np.full_like(label, 255), prediction, NAMES, SCENE_LABELS.palette)


# -- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_count_what_one_counts(model_folder, scenes_folder, tmp_path):
    script = """
import sys
from offseg_hf.evaluation import EvaluationOptions, Outputs, evaluate

report = evaluate(sys.argv[1], sys.argv[2], "val", outputs=Outputs(save_dir=sys.argv[3], submission=True))
print("MAIN" if report else "OTHER")
options, outputs = EvaluationOptions(streaming=True), Outputs(json_file=sys.argv[3] + ".json")
evaluate(sys.argv[1], sys.argv[2], "val", options=options, outputs=outputs)
"""
    processes = run_together(2, script, model_folder, scenes_folder, tmp_path / "two")
    # The last lines: torch before 2.11 says there that processes have met.
    assert [process.stdout.splitlines()[-1] for process in processes] == ["MAIN", "OTHER"]
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert two["environment"]["processes"] == 2
    files = Outputs(save_dir=tmp_path / "one", submission=True)
    one = evaluate(model_folder, scenes_folder, "val", outputs=files, options=CPU)
    assert_same_report(two, one)
    streamed = json.loads((tmp_path / "two.json").read_text())
    assert_same_report(streamed, one)
    assert streamed["dataset"]["num_images"] == NUM_IMAGES
    counts = [
        ImageCounts.from_bytes((tmp_path / folder / "image_counts.parquet").read_bytes()) for folder in ("two", "one")
    ]
    assert [row["index"] for row in counts[0].rows] == list(range(NUM_IMAGES))
    assert counts[0].names == counts[1].names
    np.testing.assert_array_equal(counts[0].per_image().labeled, counts[1].per_image().labeled)
    page = (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == NUM_IMAGES  # thumbnails of what both wrote
    assert two["metrics"]["ECE"] == pytest.approx(one["metrics"]["ECE"], abs=0.002)
    assert len(list((tmp_path / "two" / "report" / "photo").iterdir())) == NUM_IMAGES
    assert two["dataset"]["num_images"] == NUM_IMAGES  # odd: none is counted twice to make it even
    for path in (tmp_path / "one" / "submission").iterdir():
        label_maps = [np.asarray(Image.open(p)) for p in (path, tmp_path / "two" / "submission" / path.name)]
        assert np.mean(label_maps[0] != label_maps[1]) < 0.002
    sizes = [Image.open(tmp_path / count / "confusion_matrix.png").size for count in ("one", "two")]
    assert sizes[0] == sizes[1]
