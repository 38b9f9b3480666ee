"""Models with offset learning in the place of their classifier: configuration, saving, loading and training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerImageProcessorPil,
    Trainer,
    TrainingArguments,
    pipeline,
)

from offseg_hf import (
    OffsetLearning,
    OffsetLearningConfig,
    OffsetLearningForSemanticSegmentation,
    apply_offset_learning,
)
from tests.comparison import assert_same_gradients, assert_same_outputs, assert_same_weights
from tests.processes import run_python
from tests.semantic_models import LABELS, NAMES, SIZE, images, label_maps, small_model


def with_any_weights(model: nn.Module) -> nn.Module:
    """In eval mode, with values unlike those of any initialization in every parameter and buffer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.01 + 0.2 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            if buffer.is_floating_point():  # statistics, of which variances are positive
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def outputs(model: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(images(), labels=label_maps(), output_hidden_states=True)
    tensors = [output.loss, output.logits, *output.hidden_states]
    assert all(tensor.isfinite().all() for tensor in tensors)
    return tensors


def assert_same_model(loaded: nn.Module, model: nn.Module) -> None:
    assert type(loaded) is type(model) is OffsetLearningForSemanticSegmentation
    assert type(loaded.model) is type(model.model)
    assert not loaded.training
    for tensors in ("state_dict", "named_parameters", "named_buffers"):
        expected, actual = (dict(getattr(m, tensors)()) for m in (model, loaded))
        assert_same_weights(actual, expected)
    assert_same_outputs(outputs(loaded), outputs(model))


STARTS = pytest.mark.parametrize("name, warm_start", [("segformer", False), *((name, True) for name in NAMES)])


@STARTS
def test_round_trip(name, warm_start, tmp_path):
    """By the Auto class, then by our own from what the first has saved, which is the same to the byte."""
    model = with_any_weights(apply_offset_learning(small_model(name), warm_start=warm_start))
    model.save_pretrained(tmp_path / "first")
    for folder, loader in (
        ("first", AutoModelForSemanticSegmentation),
        ("second", OffsetLearningForSemanticSegmentation),
    ):
        loaded, info = loader.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values()), info
        assert_same_model(loaded, model)
        loaded.save_pretrained(tmp_path / "second")
        for first in (tmp_path / "first").iterdir():
            assert (tmp_path / "second" / first.name).read_bytes() == first.read_bytes(), first.name
    with safe_open(tmp_path / "first" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == model.state_dict().keys()


def test_fresh_process(tmp_path):
    """One that only imports offseg_hf: a model with everything of its own, one with a backbone, one in one piece."""
    names = ("segformer", "upernet-swin", "dpt")
    models = {name: with_any_weights(apply_offset_learning(small_model(name))) for name in names}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    script = """
import sys
from pathlib import Path
import torch
import offseg_hf
from transformers import AutoModelForSemanticSegmentation
from tests.models.test_modeling_offset_learning import outputs

for folder in Path(sys.argv[1]).iterdir():
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    torch.save((model.state_dict(), outputs(model)), folder / "loaded.pt")
"""
    run_python(script, tmp_path)
    for name, model in models.items():
        state_dict, loaded_outputs = torch.load(tmp_path / name / "loaded.pt")
        assert_same_weights(state_dict, model)
        assert_same_outputs(loaded_outputs, outputs(model))


def test_code_from_the_hub(tmp_path):
    """With `trust_remote_code=True` where offseg_hf is not installed, missing weights initialized there too."""
    model = with_any_weights(apply_offset_learning(small_model("upernet-convnext"), warm_start=False))
    for name in ("whole", "headless"):
        model.save_pretrained(tmp_path / name)
    without_head(tmp_path / "headless")
    torch.save((images(), label_maps()), tmp_path / "inputs.pt")
    script = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
folder = sys.argv[1]

import torch
from transformers import AutoModelForSemanticSegmentation

load = AutoModelForSemanticSegmentation.from_pretrained
model = load(f"{folder}/whole", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
torch.manual_seed(0)
headless = load(f"{folder}/headless", trust_remote_code=True)
model.save_pretrained(f"{folder}/again")
model = load(f"{folder}/again", trust_remote_code=True)
pixel_values, labels = torch.load(f"{folder}/inputs.pt")
with torch.no_grad():
    output = model(pixel_values, labels=labels)
torch.save((output.loss, output.logits, headless.state_dict()), f"{folder}/outputs.pt")
"""
    run_python(script, tmp_path, cwd=tmp_path)  # not in the repository
    loss, logits, headless = torch.load(tmp_path / "outputs.pt")
    expected_loss, expected_logits, *_ = outputs(model)
    assert_same_outputs((loss, logits), (expected_loss, expected_logits))
    assert_new_head({name.removeprefix(HEAD): tensor for name, tensor in headless.items() if name.startswith(HEAD)})
    ours = {"modeling_utils", "layers", "offset_classifier", "offset_learning"}
    modules = ours | {"configuration_offset", "configuration_offset_learning", "modeling_offset_learning"}
    for name in ("whole", "again"):
        assert {path.stem for path in (tmp_path / name).glob("*.py")} == modules


HEAD = "model.decode_head.classifier."


def without_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(HEAD)}
    save_file(tensors, file, metadata={"format": "pt"})


def assert_new_head(tensors: dict[str, torch.Tensor]) -> None:
    projs = {"class_offset_proj.weight", "feature_offset_proj.weight"}
    assert tensors.keys() == {"class_representation", "logit_norm.weight", "logit_norm.bias", *projs}
    for name in ("class_representation", *projs):
        assert 0.015 < tensors[name].std() < 0.025 and tensors[name].abs().max() < 0.1, name
    assert tensors["logit_norm.weight"].eq(1).all() and tensors["logit_norm.bias"].eq(0).all()


@pytest.mark.parametrize("name", ["segformer", "upernet-swin", "beit"])
def test_missing_weights_are_initialized(name, tmp_path):
    """The wrapped model initializes its modules by itself, and has never heard of offset learning."""
    model = with_any_weights(apply_offset_learning(small_model(name), warm_start=False))
    model.save_pretrained(tmp_path)
    without_head(tmp_path)
    torch.manual_seed(0)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith(HEAD)}
    assert_new_head(loaded.get_submodule(HEAD.rstrip(".")).state_dict())
    kept, expected = (
        {key: tensor for key, tensor in m.state_dict().items() if not key.startswith(HEAD)} for m in (loaded, model)
    )
    assert_same_weights(kept, expected)


def test_one_missing_weight(tmp_path):
    model = with_any_weights(apply_offset_learning(small_model("segformer"), warm_start=False))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = f"{HEAD}class_representation"
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    assert 0.015 < loaded.pop(missing).std() < 0.025
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in loaded.items())


@STARTS
def test_from_configuration(name, warm_start):
    """The structure without the weights: new ones, and of a continued classifier too."""
    model = apply_offset_learning(small_model(name), warm_start=warm_start)
    torch.manual_seed(0)
    new = AutoModelForSemanticSegmentation.from_config(model.config)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in new.state_dict().items()} == shapes
    (head,) = (module for module in new.modules() if isinstance(module, OffsetLearning))
    assert 0.015 < head.class_representation.std() < 0.025
    assert all(proj.weight.std() > 0.015 for proj in head.offset_projs())
    assert (head.bias is not None) == (head.logit_norm is None) == warm_start


def test_wrapping_keeps_all_weights():
    """Also those of modules that transformers has not initialized, as a head that somebody replaced."""
    base = small_model("segformer")
    base.decode_head.classifier = nn.Conv2d(16, len(LABELS), 1)
    expected = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = apply_offset_learning(base)
    weight = model.model.decode_head.classifier.class_representation
    assert torch.equal(weight[0], expected.pop("decode_head.classifier.weight").flatten(1))
    assert torch.equal(model.model.decode_head.classifier.bias, expected.pop("decode_head.classifier.bias"))
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_configuration(tmp_path):
    config = apply_offset_learning(small_model("upernet-swin"), use_class_offset=False).config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is OffsetLearningConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.base_config) is type(config.base_config)
    assert type(loaded.base_config.backbone_config) is type(config.base_config.backbone_config)
    assert loaded.base_config.backbone_config.window_size == 4
    assert not loaded.use_class_offset and loaded.use_feature_offset and not loaded.normalize_logits
    assert loaded.classifier == "decode_head.classifier"
    assert loaded.id2label == loaded.base_config.id2label == LABELS
    again = OffsetLearningConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_diff_dict() == config.to_diff_dict()


def test_labels_are_one():
    base = SegformerConfig(num_labels=3)
    config = OffsetLearningConfig(base_config=base)
    assert config.num_labels == 3 and config.id2label == base.id2label and config.label2id == base.label2id
    config.num_labels = 7
    assert base.num_labels == 7 and base.id2label == config.id2label and base.label2id == config.label2id
    names = {0: "sky", 1: "tree"}
    config.id2label, config.label2id = names, {"sky": 0, "tree": 1}
    assert base.id2label == names and base.label2id == {"sky": 0, "tree": 1}

    given = OffsetLearningConfig(base_config=SegformerConfig(num_labels=9).to_dict(), id2label=names)
    assert given.base_config.id2label == given.id2label == names
    assert given.label2id == given.base_config.label2id == {"sky": 0, "tree": 1}
    named = SegformerConfig(id2label=names, label2id={"sky": 0, "tree": 1})
    assert OffsetLearningConfig(base_config=named, num_labels=2).id2label == names
    other = OffsetLearningConfig(base_config=named, num_labels=4)
    assert other.num_labels == other.base_config.num_labels == len(other.base_config.label2id) == 4


def test_two_labels(tmp_path):
    """transformers does not write the default names of two labels."""
    config = small_model("segformer").config
    config.num_labels = 2
    model = apply_offset_learning(AutoModelForSemanticSegmentation.from_config(config))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.num_labels == loaded.config.base_config.num_labels == 2
    assert_same_outputs(loaded(images()).logits, model.eval()(images()).logits)


def test_other_labels_for_fine_tuning(tmp_path):
    apply_offset_learning(small_model("segformer")).save_pretrained(tmp_path)
    names = {0: "background", 1: "crack", 2: "rust"}
    torch.manual_seed(0)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, id2label=names, label2id={name: i for i, name in names.items()}, ignore_mismatched_sizes=True
    )
    assert loaded.config.id2label == loaded.model.config.id2label == names
    assert loaded(images()).logits.shape[1] == 3
    assert 0.01 < loaded.model.decode_head.classifier.class_representation.std() < 0.03


def test_configuration_is_the_wrapped_models():
    model = apply_offset_learning(small_model("segformer"))
    assert model.config.base_config is model.model.config is model.model.segformer.config
    model.config.output_hidden_states = True
    assert len(model(images()).hidden_states) == 4
    model.config.output_hidden_states = False
    assert model(images()).hidden_states is None
    model = apply_offset_learning(small_model("upernet-convnext"))
    model.config.return_dict = False
    assert isinstance(model(images()), tuple)


@pytest.mark.parametrize("name", ["segformer", "upernet-swin", "dpt", "mobilevit"])
def test_attention_implementation(name, tmp_path):
    base = small_model(name)

    def chosen(model):
        return [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")]

    model = apply_offset_learning(base)
    assert chosen(model.model) == chosen(base)
    model.save_pretrained(tmp_path)
    assert chosen(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) == chosen(model)
    eager = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation="eager")
    assert set(chosen(eager)) == {"eager"}
    if name != "mobilevit":  # which returns none
        assert eager(images(), output_attentions=True).attentions is not None
    assert_same_outputs(eager(images()).logits, model(images()).logits)
    model.set_attn_implementation("eager")
    assert set(chosen(model)) == {"eager"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    model = apply_offset_learning(small_model("segformer").to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert_same_weights(loaded, model)
    single = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype="float32")
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(single.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["segformer", "dpt", "beit"])
def test_gradient_checkpointing(name):
    model = apply_offset_learning(small_model(name)).eval()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
            model.train()
            for part in model.modules():  # in train mode, for checkpoints, without what makes it differ
                if isinstance(part, nn.BatchNorm2d | nn.Dropout) or "DropPath" in type(part).__name__:
                    part.eval()
        model.zero_grad()
        model(images(), labels=label_maps()).loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert_same_gradients(gradients[1], gradients[0])


def test_gradient_checkpointing_where_there_is_none():
    """As the wrapped model has none."""
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        apply_offset_learning(small_model("mobilenet_v2")).activation_checkpointing_enable()


def test_modules_that_devices_keep_whole():
    model = apply_offset_learning(small_model("segformer"))
    assert model._no_split_modules == set(small_model("segformer")._no_split_modules)


class Pairs(torch.utils.data.Dataset):
    """Four images and their label maps, as a processor would make them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": images(4)[i], "labels": label_maps(4)[i], "filename": "not for the model"}


@pytest.mark.parametrize("name", ["upernet-convnext", pytest.param("segformer", marks=pytest.mark.slow)])
def test_trainer(name, tmp_path):
    """With an auxiliary head too; without one there is less."""
    model = apply_offset_learning(small_model(name))
    start = model.model.decode_head.classifier.class_offset_proj.weight.clone()
    arguments = TrainingArguments(
        tmp_path / "runs",
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=6,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Pairs(), eval_dataset=Pairs())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 6 and losses[-1] < losses[0]
    # A loss that Trainer took for a sum over items would come twice as large from two steps of accumulation.
    assert losses[0] < 1.6 * before
    assert trainer.evaluate()["eval_loss"] < before
    assert not torch.equal(model.model.decode_head.classifier.class_offset_proj.weight, start)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "runs" / "checkpoint-6")
    assert_same_weights(loaded, model)
    assert_same_outputs(outputs(loaded), outputs(model.eval()))


def test_pipeline(tmp_path):
    """The wrapped model's own image processor, saved beside it, is all it wants."""
    base = small_model("segformer")
    with torch.no_grad():  # every class is the likeliest somewhere
        base.decode_head.classifier.bias -= base(images()).logits.mean(dim=(0, 2, 3))
    model = apply_offset_learning(base)
    processor = SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE})
    for folder, part in (("offset", model), ("base", base)):
        part.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((120, 90))
    segments, expected = (pipeline("image-segmentation", str(tmp_path / name))(photo) for name in ("offset", "base"))
    assert [segment["label"] for segment in segments] == [segment["label"] for segment in expected]
    assert len(segments) > 1 and {segment["label"] for segment in segments} <= set(LABELS.values())
    for segment, other in zip(segments, expected):
        assert segment["mask"].size == (120, 90)
        # Equal but for rounding, which may decide between two classes in a pixel or two.
        assert (np.asarray(segment["mask"]) != np.asarray(other["mask"])).sum() <= 2


def test_no_base_configuration_of_ours_alone():
    with pytest.raises(ValueError, match="Unrecognized model type"):
        OffsetLearningConfig(base_config={"model_type": "no such model"})
