"""The training loop: what it learns, what it writes, and what stops it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from offseg_hf.data.training_set import TrainingSet
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.training.batches import model_inputs
from offseg_hf.training.build import build_model, checkpoint_activations, load_split, synchronize_batch_norms
from offseg_hf.training.log import check_tracker
from offseg_hf.training.loop import train
from offseg_hf.training.pixels import require_same_pixels
from offseg_hf.training.recipe import ModelRecipe, Recipe, load_recipe
from offseg_hf.training.state import WeightAverage, seed_generators
from tests.semantic_models import small_model
from tests.training.tiny import killed_in, own_recipe, write_own, write_segformer


@pytest.fixture
def recipe(processes, monkeypatch) -> Recipe:
    monkeypatch.chdir(processes.folder)
    return load_recipe("tiny.yaml")


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns(processes):
    """The loss falls far below that of the first iterations, and what is saved is a model for anyone."""
    output = processes.folder / "learned"
    settings = ("optimizer.learning_rate=8e-3", "schedule.iterations=28")
    intervals = ("training.evaluation_interval=14", "training.checkpoint_interval=1000", "training.log_interval=4")
    regular = ("training.ema_decay=null", "model.config.drop_path_rate=0", "augmentation.photometric=false")
    alike = "augmentation.ratio_range=[1.0, 1.0]"
    messages = processes.run("--config", "tiny.yaml", "--output", output, *settings, *intervals, *regular, alike)
    losses = [line["loss"] for line in log_of(output) if "loss" in line]
    assert len(losses) == 7
    assert losses[0] > 1.8 and losses[-1] < 0.5 * losses[0]
    scores = {line["iteration"]: line["mIoU"] for line in log_of(output) if "mIoU" in line}
    assert scores.keys() == {14, 28}
    assert max(scores.values()) > 0.15  # sky everywhere would be 0.05
    assert f"{max(scores.values()):.4f}" in messages

    assert AutoModelForSemanticSegmentation.from_pretrained(output / "last").config.id2label[0] == "sky"
    segments = pipeline("image-segmentation", model=str(output / "best"))(
        Image.open(next((processes.folder / "scenes" / "images" / "val").iterdir()))
    )
    assert "sky" in {segment["label"] for segment in segments}


@pytest.mark.parametrize("interval, way_back", [(1000, "There is no checkpoint"), (1, "The last good checkpoint is")])
def test_a_loss_that_is_no_number_stops_it(processes, tmp_path, interval, way_back):
    training = processes.start(
        "--config", "tiny.yaml", "--output", tmp_path, "optimizer.learning_rate=1e18",
        f"training.checkpoint_interval={interval}", "training.evaluation_interval=1000",
        "schedule.warmup_iterations=0",
    )  # fmt: skip
    assert training.wait() == 1
    (message,) = re.findall(r"^error: .*", training.messages, re.MULTILINE)
    found = re.search(
        r"(the loss|the norm of the gradients) is (nan|inf) in iteration (\d+), of (.*): stopped", message
    )
    assert found and way_back in message
    assert len(re.findall(r"\d{6}\.png \(epoch \d+, index \d+\)", found[4])) == 4
    if interval == 1:
        state = torch.load(tmp_path / "last" / "training_state.pt")
        assert state["progress"]["iteration"] <= int(found[3])
        assert f"{tmp_path}/last, of iteration {state['progress']['iteration']};" in message
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    else:
        assert not (tmp_path / "last").exists()


def test_a_sample_that_cannot_be_used_is_named(processes, tmp_path):
    data = tmp_path / "scenes"
    shutil.copytree(processes.folder / "scenes", data)
    for mask in (data / "masks" / "train").iterdir():
        Image.new("L", (96, 64), 77).save(mask)
    training = processes.start("--config", "tiny.yaml", "--output", tmp_path / "output", f"data.source={data}")
    assert training.wait() == 1
    assert re.search(r"^error: .*masks/train/\d{6}\.png.*77", training.messages, re.MULTILINE)
    assert "Traceback" not in training.messages


def test_trainer_of_transformers(recipe, tmp_path):
    """The models train with it out of the box, on the same samples, augmented anew in every epoch."""
    data = load_split(recipe, "train")
    model, _ = build_model(recipe, data.features["label"].label_set())
    samples = TrainingSet(data, recipe.augmentation)
    seen = []

    def collate(batch: list[dict]) -> dict:
        seen.extend(sample["pixel_values"].numpy().tobytes() for sample in batch)
        return default_data_collator(batch)

    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=2,
        per_device_train_batch_size=3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=samples, data_collator=collate)
    assert trainer.train().training_loss < 4
    for epoch, of_epoch in enumerate((seen[: len(data)], seen[len(data) :])):
        expected = [samples[epoch, index]["pixel_values"].numpy().tobytes() for index in range(len(data))]
        assert sorted(of_epoch) == sorted(expected)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"encoder.stem.conv1.conv.weight", "offset_learning.class_representation"} <= changed


def test_batch_norms_over_processes_leave_fixed_ones_fixed():
    block = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(FixedBatchNorm2d(4), nn.GroupNorm(2, 4))
    )
    keys = block.state_dict().keys()
    synchronize_batch_norms(block)
    types = [type(module) for module in block.modules()]
    assert types == [nn.Sequential, nn.Conv2d, nn.SyncBatchNorm, nn.Sequential, FixedBatchNorm2d, nn.GroupNorm]
    assert block.state_dict().keys() == keys


def test_models_of_masks_get_masks():
    labels = torch.full((2, 8, 8), 255)
    labels[0, :4], labels[0, 4:6] = 3, 1
    inputs = model_inputs({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": labels}, True, 255)
    assert [classes.tolist() for classes in inputs["class_labels"]] == [[1, 3], []]
    assert [tuple(masks.shape) for masks in inputs["mask_labels"]] == [(2, 8, 8), (0, 8, 8)]
    assert inputs["mask_labels"][0].sum((1, 2)).tolist() == [16, 32]


def test_averaged_weights_follow():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 3
    average.update(model, iteration=1000)
    torch.testing.assert_close(average.model[0].weight, start + 0.5)
    torch.testing.assert_close(average.model[1].running_mean, model[1].running_mean)
    average.update(model, iteration=0)  # at first it follows faster: 0.9 of the way
    torch.testing.assert_close(average.model[0].weight, start + 0.95)


def test_random_numbers_are_a_function_of_their_purpose():
    def drawn(*key: int) -> float:
        seed_generators(*key)
        return torch.rand(1).item()

    keys = [(0, 1, 5, 0), (0, 1, 5, 1), (0, 1, 6, 0), (1, 1, 5, 0), (0, 0)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert drawn(0, 1, 5, 0) == drawn(0, 1, 5, 0)


def test_class_weights_are_the_recipes(recipe, tmp_path):
    """A checkpoint's own were for other data; and a field that its configuration does not have is an error."""
    labels = load_split(recipe, "train").features["label"].label_set()
    weights = [1.0 + index for index in range(len(labels))]
    weighing = {"semantic_loss_class_weights": weights}
    model, processor = build_model(replace(recipe, model=replace(recipe.model, config=weighing)), labels)
    assert model.config.semantic_loss_class_weights == weights
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    for config, expected in (({}, None), (weighing, weights)):
        going_on = replace(recipe, model=ModelRecipe(checkpoint=str(tmp_path), config=config))
        assert build_model(going_on, labels)[0].config.semantic_loss_class_weights == expected
    misspelled = replace(recipe, model=ModelRecipe(checkpoint=str(tmp_path), config={"class_weights": weights}))
    with pytest.raises(
        ValueError, match=r"unknown key model.config.class_weights \(did you mean .*_class_weights\?\)"
    ):
        build_model(misspelled, labels)


def test_weights_of_a_checkpoint_lie_as_a_resumed_training_has_them(recipe, tmp_path):
    """On 64-byte boundaries, by which sums are rounded, and not in the file, whose weights lie anywhere."""
    labels = load_split(recipe, "train").features["label"].label_set()
    for part in build_model(recipe, labels):
        part.save_pretrained(tmp_path)
    mapped = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert any(tensor.data_ptr() % 64 for tensor in mapped.parameters())
    model, _ = build_model(replace(recipe, model=ModelRecipe(checkpoint=str(tmp_path))), labels)
    assert not any(tensor.data_ptr() % 64 for tensor in (*model.parameters(), *model.buffers()))
    assert all(tensor.untyped_storage().nbytes() < 2**16 for tensor in model.buffers())  # each its own


def test_what_does_not_fit_is_an_error(recipe, tmp_path):
    with pytest.raises(ValueError, match="pip install trackio"):
        check_tracker("trackio")
    check_tracker("none")
    _, processor = build_model(recipe, load_split(recipe, "train").features["label"].label_set())
    assert require_same_pixels(recipe.augmentation, processor) == (0, 1, 2)
    processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"augmentation.mean: expected what .* \[127.5"):
        require_same_pixels(recipe.augmentation, processor)


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "last" / "training_state.pt")["model"]


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same_weights(processes, tmp_path):
    """Statistics of batch norms too, which see every batch twice; and a training may go on with it or without."""
    settings = ("--config", "tiny.yaml", "schedule.iterations=3", "training.evaluation_interval=3")
    processes.run(*settings, "--output", tmp_path / "plain")
    processes.run(*settings, "--output", tmp_path / "again", "training.gradient_checkpointing=true")
    plain, again = weights_of(tmp_path / "plain"), weights_of(tmp_path / "again")
    assert any(name.endswith("running_mean") for name in plain)
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.items())
    processes.run(*settings, "--output", tmp_path / "again", "--resume", "auto")


@pytest.mark.slow
def test_a_compiled_training_is_the_same_up_to_rounding(in_process, tmp_path):
    """Of a model without anything dropped, whose random numbers are others; and it goes on without."""
    nothing_dropped = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    data, model = write_own(tmp_path / "data"), write_segformer(tmp_path / "model", **nothing_dropped)
    # Steps of SGD are the gradients; AdamW's of gradients that are zero but for rounding are as large as others.
    steps = ("optimizer.kind=SGD", "optimizer.learning_rate=0.1")
    recipe = own_recipe(data, model, "training.checkpoint_interval=1", *steps)
    train(recipe, tmp_path / "plain")
    in_process()
    with killed_in(1):
        train(replace(recipe, training=replace(recipe.training, compile=True)), tmp_path / "compiled")
    in_process()
    train(recipe, tmp_path / "compiled", resume="auto")
    plain, compiled = weights_of(tmp_path / "plain"), weights_of(tmp_path / "compiled")
    assert compiled.keys() == plain.keys()
    before = AutoModelForSemanticSegmentation.from_pretrained(model).state_dict()
    learned = [name for name, tensor in plain.items() if not torch.equal(tensor, before[name])]
    apart = sum((compiled[name] - plain[name]).square().sum() for name in learned) ** 0.5
    assert len(learned) > 50 and apart < 1e-3 * sum((plain[n] - before[n]).square().sum() for n in learned) ** 0.5


def test_gradient_checkpointing_where_there_is_none(recipe):
    model = small_model("mobilenet_v2")
    with pytest.raises(ValueError, match="training.gradient_checkpointing=true: MobileNetV2.* leave it out"):
        checkpoint_activations(model)
