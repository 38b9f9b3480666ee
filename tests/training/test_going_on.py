"""From a trained model to another training: which weights go on, and which classes of its classifier."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSemanticSegmentation,
    OneFormerConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

from offseg_hf import (
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffsetMask2FormerConfig,
    OffsetMask2FormerForUniversalSegmentation,
    apply_offset_learning,
)
from offseg_hf.data.dataset import label_set_of
from offseg_hf.training.build import build_model, load_split
from offseg_hf.training.going_on import class_axes, load_trained
from offseg_hf.training.loop import train
from offseg_hf.training.recipe import load_recipe
from tests.tiny import MASK2FORMER
from tests.training.tiny import NAMES, own_recipe, write_own, write_segformer


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    return write_segformer(tmp_path_factory.mktemp("models") / "segformer")


def labels_of(folder, names, **facts):
    write_own(folder, train=1, val=1, classes=list(names), **facts)
    return label_set_of(load_split(own_recipe(folder, folder), "train"))


def test_the_weights_are_the_checkpoints_whatever_an_official_recipe_starts_from(in_process, segformer, tmp_path):
    settings = [
        f"data={{source: {write_own(tmp_path / 'data')}, num_workers: 0}}",
        "augmentation={scale: [96, 64], crop_size: [64, 64]}",
        "optimizer={learning_rate: 1e-12, weight_decay: 0}",  # so little that all weights are still the checkpoint's
        "schedule={iterations: 1, warmup_iterations: 0}",
        "training={batch_size: 2, evaluation_interval: 1, checkpoint_interval: 1}",
    ]
    train(load_recipe("segformer-b0-offset-ade", [f"model.checkpoint={segformer}", *settings]), tmp_path / "run")
    got, expected = (
        AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "run" / "last", segformer)
    )
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(got[name], tensor, atol=1e-9, rtol=0)


def test_classes_keep_their_rows_by_name(segformer, tmp_path):
    said = []
    labels = labels_of(tmp_path / "data", ["bus", "Car", "sky"])
    model = load_trained(str(segformer), labels, {}, said.append)
    assert model.config.id2label == {0: "bus", 1: "Car", 2: "sky"}
    old = AutoModelForSemanticSegmentation.from_pretrained(segformer)
    for name in ("weight", "bias"):
        ours, theirs = (getattr(m.decode_head.classifier, name) for m in (model, old))
        assert torch.equal(ours[1], theirs[2]) and torch.equal(ours[2], theirs[0])
    assert not (model.decode_head.classifier.weight[0] == old.decode_head.classifier.weight).all(1).any()
    rest = {name: tensor for name, tensor in old.state_dict().items() if "classifier" not in name}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in rest.items())
    assert said == [f"the classifier: 2 of 3 classes are {segformer}'s, by name; bus begins anew"]


def test_another_order_and_another_number(segformer, tmp_path):
    old = AutoModelForSemanticSegmentation.from_pretrained(segformer).decode_head.classifier.weight
    for count, names in enumerate((NAMES, ("car", "sky", "road"), ("car", "sky"), ("a", "b", "c"))):
        said = []
        model = load_trained(str(segformer), labels_of(tmp_path / str(count), names), {}, said.append)
        rows = model.decode_head.classifier.weight
        assert len(rows) == len(names)
        kept = [index for index, name in enumerate(names) if name in NAMES]
        assert all(torch.equal(rows[index], old[NAMES.index(names[index])]) for index in kept)
        assert len(said) == (len(kept) < len(names))


def test_new_classes_begin_as_background(tmp_path):
    """Where it does not stay, as anything else than the classes that do; their rows are as they were."""
    folder = write_segformer(tmp_path / "model", ["cat", "background", "car"])
    old = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        old.decode_head.classifier.weight.mul_(100)
        old.decode_head.classifier.bias.add_(torch.tensor([1.0, 20.0, 30.0]))
    old.save_pretrained(folder)
    (weight, bias), said = (old.decode_head.classifier.weight, old.decode_head.classifier.bias), []
    model = load_trained(str(folder), labels_of(tmp_path / "data", ("sky", "car", "tree")), {}, said.append)
    rows, biases = model.decode_head.classifier.weight, model.decode_head.classifier.bias
    assert torch.equal(rows[1], weight[2]) and torch.equal(biases[1], bias[2])
    for index in (0, 2):
        torch.testing.assert_close(rows[index], weight[1], atol=0.1, rtol=0.0)
        torch.testing.assert_close(biases[index], bias[1])
    assert not torch.equal(rows[0], rows[2])
    assert said == [f"the classifier: 1 of 3 classes are {folder}'s, by name; sky, tree begin as its background"]
    others = (("background", "sky"), ("sky", "tree"))  # where it stays, and where nothing does
    for count, names in enumerate(others):
        model = load_trained(str(folder), labels_of(tmp_path / str(count), names), {}, said.append)
        assert model.decode_head.classifier.weight[1].abs().max() < 0.2 and said[-1].endswith(" anew")


def test_a_classifier_without_names_is_taken_over_by_numbers(tmp_path):
    folder = write_segformer(tmp_path / "nameless", [f"LABEL_{index}" for index in range(3)])
    said = []
    model = load_trained(str(folder), labels_of(tmp_path / "data", NAMES), {}, said.append)
    old = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert torch.equal(model.decode_head.classifier.weight, old.decode_head.classifier.weight)
    assert "has no names of classes" in said[0] and model.config.id2label[0] == "sky"


def test_what_depends_on_classes_is_found():
    """Rows, their norm, and the row of "no object"."""
    sizes = {"hidden_sizes": [8] * 4, "depths": [1, 1, 2, 2], "mlp_ratios": [[1], [1], [1] * 2, [1] * 2]}
    offseg = OffSegForSemanticSegmentation(
        OffSegConfig(**sizes, num_attention_blocks=1, image_size=64, lateral_channels=[32] * 4, num_labels=5)
    )
    assert set(class_axes(offseg)) == {
        "offset_learning.class_representation",
        "offset_learning.logit_norm.weight",
        "offset_learning.logit_norm.bias",
    }
    masks = OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**MASK2FORMER, num_labels=5))
    assert {"class_predictor.weight", "class_predictor.bias"} <= set(class_axes(masks))


def test_the_ignored_label_reaches_the_loss_of_a_wrapped_model(segformer, tmp_path):
    wrapped = apply_offset_learning(AutoModelForSemanticSegmentation.from_pretrained(segformer))
    wrapped.save_pretrained(tmp_path / "wrapped")
    labels = labels_of(tmp_path / "data", NAMES, ignore_index=100)
    model = load_trained(str(tmp_path / "wrapped"), labels, {}, print)
    assert model.model.config.semantic_loss_ignore_index == 100
    ids = torch.full((1, 64, 64), 100)
    ids[:, :32] = 1
    assert model(pixel_values=torch.zeros(1, 3, 64, 64), labels=ids).loss.isfinite()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.config.hidden_sizes=8", "model.config.hidden_sizes: expected a list, each a whole number, got 8"),
        ("model.config.hidden_sizes=[16, 16, 16, 16]", r"have another shape than .* model.config.hidden_sizes wants"),
        ("model.config.hiden_sizes=8", r"unknown key model.config.hiden_sizes \(did you mean"),
        ("model.image_processor.siz=8", r"unknown key model.image_processor.siz \(did you mean"),
        ("model.image_processor.do_resize=often", "model.image_processor.do_resize: expected true or false or null"),
    ],
)
def test_settings_that_do_not_fit_a_checkpoint(segformer, tmp_path, setting, message):
    recipe = own_recipe(write_own(tmp_path / "data"), segformer, setting)
    with pytest.raises(ValueError, match=message):
        build_model(recipe, label_set_of(load_split(recipe, "train")))


def test_what_a_trained_model_began_with_is_past(tmp_path):
    sizes = {"hidden_sizes": [8] * 4, "depths": [1, 1, 2, 2], "mlp_ratios": [[1], [1], [1] * 2, [1] * 2]}
    config = OffSegConfig(**sizes, num_attention_blocks=1, image_size=64, lateral_channels=[32] * 4, num_labels=3)
    OffSegForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    labels = labels_of(tmp_path / "data", NAMES)
    with pytest.raises(ValueError, match="model.config.start_without_offsets=true has no effect, as the weights"):
        load_trained(str(tmp_path / "model"), labels, {"start_without_offsets": True}, print)
    assert load_trained(str(tmp_path / "model"), labels, {"start_without_offsets": False}, print)


def test_architectures_that_cannot_be_trained(tmp_path):
    labels = labels_of(tmp_path / "data", NAMES)
    OneFormerConfig(is_training=False).save_pretrained(tmp_path / "oneformer")  # refused before weights are missed
    with pytest.raises(ValueError, match="OneFormerForUniversalSegmentation, which needs task_inputs"):
        load_trained(str(tmp_path / "oneformer"), labels, {}, print)
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], out_features=["stage1"])
    ResNetForImageClassification(small).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="model.checkpoint=.*expected a model for semantic .*, got ResNetFor"):
        load_trained(str(tmp_path / "resnet"), labels, {}, print)


def test_a_checkpoint_that_lacks_weights_is_told(segformer, tmp_path):
    folder = tmp_path / "encoder"
    AutoModelForSemanticSegmentation.from_pretrained(segformer).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("decode_head.linear_fuse")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    said = []
    load_trained(str(folder), labels_of(tmp_path / "data", NAMES), {}, said.append)
    assert said == [f"{folder} lacks 1 weights of the model, which begin anew, such as decode_head.linear_fuse.weight"]
