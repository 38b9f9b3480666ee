"""`EvaluationSet`: Trainer counts what `evaluate_model` counts, in one process and in two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    PreTrainedModel,
    SegformerImageProcessorPil,
    Trainer,
    TrainingArguments,
)

from offseg_hf import EvaluationSet, OffSegImageProcessor, load_segmentation_data
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import SCENE_LABELS
from offseg_hf.evaluation import evaluate_model
from tests import semantic_models
from tests.evaluation.uneven import write_uneven
from tests.processes import run_together
from tests.semantic_models import pass_signals
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor


ARGUMENTS = {
    "per_device_eval_batch_size": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "batch_eval_metrics": True,
}


SIZES = [(84 + 10 * index, 60 + 8 * (index % 3)) for index in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The data, and a small model that tells classes apart, with its image processor."""
    folder = tmp_path_factory.mktemp("trainer")
    write_uneven(folder / "scenes", SIZES, train=4)
    save_small_model(folder / "model", "segformer")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "model")
    pass_signals(model)
    model.save_pretrained(folder / "model")
    settings = {"size": {"shortest_edge": 64, "longest_edge": 256}, "window_size": 64, "window_stride": 48}
    OffSegImageProcessor(**settings, size_divisor=32).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def data(folder) -> Dataset:
    return load_segmentation_data(folder / "scenes", "val")


@pytest.fixture(scope="module")
def model(folder) -> PreTrainedModel:
    return AutoModelForSemanticSegmentation.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def processor(folder) -> OffSegImageProcessor:
    return OffSegImageProcessor.from_pretrained(folder / "model")


def trainer_of(model: PreTrainedModel, validation: EvaluationSet, output: Path, **arguments) -> Trainer:
    return Trainer(
        model,
        TrainingArguments(output, **ARGUMENTS | arguments),
        eval_dataset=validation,
        compute_metrics=validation.compute_metrics,
        preprocess_logits_for_metrics=validation.preprocess_logits_for_metrics,
        processing_class=validation.processor,
    )


@pytest.mark.parametrize("at_once", [True, False], ids=["batch by batch", "all at the end"])
def test_trainer_counts_what_evaluate_counts(model, processor, data, tmp_path, at_once):
    validation = EvaluationSet(data, processor)
    assert len({len(sample["windows"]) for sample in validation}) > 1  # windows, and not the same everywhere
    trainer = trainer_of(model, validation, tmp_path, batch_eval_metrics=at_once)
    expected = evaluate_model(model, processor, data)
    for _ in range(2):  # nothing of the first evaluation is left in the second
        metrics = trainer.evaluate()
        assert np.array_equal(validation.metric.confusion_matrix, expected["confusion_matrix"])
        for name in ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall"):
            assert metrics[f"eval_{name}"] == expected[name]
        assert metrics["eval_loss"] > 0
    predicted = trainer.predict(validation)  # which keeps counts, and no label maps
    assert predicted.predictions.shape == (5, len(SCENE_LABELS), len(SCENE_LABELS))
    assert predicted.label_ids.shape == (5,)
    assert np.array_equal(predicted.predictions.sum(0), expected["confusion_matrix"])


def test_the_loss_is_that_of_the_label_maps(model, processor, data):
    sample = EvaluationSet(data, processor)[1]
    inputs = {name: value[None] for name, value in sample.items()}
    outputs = model(**inputs)
    height, width = sample["image_sizes"].tolist()
    assert inputs["labels"].shape[1:] != inputs["pixel_values"].shape[2:] != (height, width)
    logits = torch.nn.functional.interpolate(
        outputs.logits[..., :height, :width], size=inputs["labels"].shape[1:], mode="bilinear"
    )
    losses = torch.nn.functional.cross_entropy(logits, inputs["labels"], ignore_index=255, reduction="none")
    assert outputs.loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    two = {name: torch.cat([value, value]) for name, value in inputs.items()}
    two["image_sizes"] = torch.tensor([[height, width], [height, width - 1]])
    with pytest.raises(ValueError, match="beside images of 2 sizes: pass the images one by one"):
        model(**two)


@pytest.mark.parametrize("name", ["segformer", "dpt"])
def test_models_of_transformers(name, folder, tmp_path):
    """Their image processors have one size for all photos: batches of photos of one size do."""
    five = load_segmentation_data(write_five(tmp_path / "five"), "val")
    model, processor = semantic_models.small_model(name), SegformerImageProcessorPil(size={"height": 64, "width": 64})
    validation = EvaluationSet(five, processor)
    trainer_of(model, validation, tmp_path / "output", per_device_eval_batch_size=2).evaluate()
    expected = evaluate_model(model, processor, five)["confusion_matrix"]
    assert expected.sum() == 3 * 40 * 50
    assert np.abs(validation.metric.confusion_matrix.numpy() - expected).sum() <= 8  # rounding of batches


def test_upernet_takes_labels_of_the_image_only(tmp_path):
    """Its loss does; nothing is silently wrong."""
    five = load_segmentation_data(write_five(tmp_path / "five"), "val")
    validation = EvaluationSet(five, SegformerImageProcessorPil(size={"height": 64, "width": 64}))
    trainer = trainer_of(semantic_models.small_model("upernet-convnext"), validation, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer.evaluate()


def write_five(folder: Path) -> Path:
    """Three photos of one size with the five classes of `tests.semantic_models`."""
    rng = np.random.default_rng(0)
    for index in range(3):
        for kind, array in (
            ("images", rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)),
            ("masks", rng.integers(0, 5, (40, 50), dtype=np.uint8)),
        ):
            path = folder / kind / "val" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    names = '", "'.join(semantic_models.LABELS.values())
    (folder / "classes.json").write_text(f'{{"classes": ["{names}"]}}')
    return folder


def test_two_processes_count_what_one_counts(model, processor, data, folder, tmp_path):
    """Of five images of unequal sizes: the one that fills up the last batch does not count."""
    script = """
import sys
import numpy as np
from transformers import AutoModelForSemanticSegmentation, Trainer, TrainingArguments
from offseg_hf import EvaluationSet, OffSegImageProcessor, load_segmentation_data

folder, output = sys.argv[1:]
validation = EvaluationSet(
    load_segmentation_data(f"{folder}/scenes", "val"), OffSegImageProcessor.from_pretrained(f"{folder}/model")
)
trainer = Trainer(
    AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/model"),
    TrainingArguments(output, per_device_eval_batch_size=1, batch_eval_metrics=True, report_to="none", use_cpu=True),
    eval_dataset=validation,
    compute_metrics=validation.compute_metrics,
    preprocess_logits_for_metrics=validation.preprocess_logits_for_metrics,
)
metrics = trainer.evaluate()
assert trainer.args.world_size == 2
print(metrics["eval_mIoU"])
np.save(f"{output}-{trainer.args.process_index}.npy", validation.metric.confusion_matrix.numpy())
"""
    processes = run_together(2, script, folder, tmp_path / "two")
    expected = evaluate_model(model, processor, data)
    for index, process in enumerate(processes):
        assert f"{expected['mIoU']!r}" in process.stdout.split()
        assert np.array_equal(np.load(tmp_path / f"two-{index}.npy"), expected["confusion_matrix"])


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_photos_of_several_sizes_in_a_batch(model, processor, data, tmp_path):
    trainer = trainer_of(model, EvaluationSet(data, processor), tmp_path, per_device_eval_batch_size=2)
    with pytest.raises(ValueError, match=r"2 sizes in a batch: .*per_device_eval_batch_size=1"):
        trainer.evaluate()


def test_a_model_of_masks(data, tmp_path):
    classes = {"id2label": SCENE_LABELS.id2label(), "label2id": SCENE_LABELS.label2id()}
    validation = EvaluationSet(data, tiny_processor("mask2former"))
    trainer = trainer_of(tiny_model("mask2former", **classes), validation, tmp_path)
    with pytest.raises(ValueError, match="a model of masks .* is evaluated by offseg evaluate"):
        trainer.evaluate()


def test_a_model_of_other_classes(processor, data, tmp_path):
    twenty = {str(index): index for index in range(20)}
    model = tiny_model("segformer", id2label={index: name for name, index in twenty.items()}, label2id=twenty)
    trainer = trainer_of(model, EvaluationSet(data, processor), tmp_path)
    with pytest.raises(ValueError, match=f"the model has 20 classes, the data {len(SCENE_LABELS)}"):
        trainer.evaluate()


def test_a_model_that_does_not_look_through_windows(data, tmp_path, processor):
    """Trainer drops what a model does not take: the windows of the image processor."""
    classes = {"id2label": SCENE_LABELS.id2label(), "label2id": SCENE_LABELS.label2id()}
    model = semantic_models.small_model("segformer", **classes)
    whole = OffSegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, window_size=None, size_divisor=32)
    validation = EvaluationSet(data, whole)
    trainer_of(model, validation, tmp_path).evaluate()
    expected = evaluate_model(model, whole, data)
    assert np.array_equal(validation.metric.confusion_matrix, expected["confusion_matrix"])
    with pytest.raises(ValueError, match=r"into \d windows, and the model does not look through them in Trainer"):
        trainer_of(model, EvaluationSet(data, processor), tmp_path).evaluate()


def test_counts_of_an_interrupted_evaluation_are_not_taken(processor, data):
    validation = EvaluationSet(data, processor)
    counts = np.ones((1, len(SCENE_LABELS), len(SCENE_LABELS)), np.int32)
    validation.compute_metrics(EvalPrediction(counts, None), compute_result=False)
    counts = counts.repeat(len(data), axis=0)
    with pytest.raises(ValueError, match="expected the counts of 5 images, got those of 6"):
        validation.compute_metrics(EvalPrediction(counts, None))
    assert validation.compute_metrics(EvalPrediction(counts, None))["aAcc"] == pytest.approx(1 / len(SCENE_LABELS))


def test_a_stream(folder, processor):
    stream = load_segmentation_data(folder / "scenes", "val", streaming=True)
    with pytest.raises(ValueError, match="got a streaming one"):
        EvaluationSet(stream, processor)


def test_a_sample_that_cannot_be_used_is_named(processor, tmp_path):
    write_scenes(tmp_path, train=0, val=1, size=(64, 64))
    Image.new("L", (32, 32)).save(tmp_path / "masks" / "val" / "000000.png")
    with pytest.raises(ValueError, match=r"masks/val/000000.png: the label map is 32x32, but its image .* is 64x64"):
        EvaluationSet(load_segmentation_data(tmp_path, "val"), processor)[0]
