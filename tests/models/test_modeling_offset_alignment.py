"""Mask classification models whose masks come from offset alignment, beside the stock models they are made of."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    DetrConfig,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessorPil,
    PreTrainedModel,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

from offseg_hf import OffsetAlignment, OffsetAlignmentConfig, OffsetAlignmentForUniversalSegmentation
from offseg_hf.models.modeling_offset_alignment import align_masks
from offseg_hf.models.offset_learning import OffsetLearningOptions
from tests.comparison import assert_same_outputs, assert_same_weights
from tests.processes import run_python


LABELS = ("sky", "tree", "road", "car")
SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
COMMON = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
}
EOMT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_blocks": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "num_queries": 5,
    "num_register_tokens": 2,
    "train_num_points": 64,
}


def maskformer() -> MaskFormerForInstanceSegmentation:
    decoder = DetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=3,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
    )
    config = MaskFormerConfig(
        backbone_config=SwinConfig(**SWIN), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **COMMON
    )
    return MaskFormerForInstanceSegmentation(config)


def mask2former() -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=5,
        train_num_points=64,
        **COMMON,
    )
    return Mask2FormerForUniversalSegmentation(config)


STOCK = {
    "maskformer": maskformer,
    "mask2former": mask2former,
    "eomt": lambda: EomtForUniversalSegmentation(EomtConfig(**EOMT, **COMMON)),
    "eomt_dinov3": lambda: EomtDinov3ForUniversalSegmentation(
        EomtDinov3Config(**EOMT, intermediate_size=32, **COMMON)
    ),
}
PROCESSORS = {
    "maskformer": MaskFormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}),
    "mask2former": Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}),
    "eomt": EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True),
}
SUBTASKS = {
    "maskformer": ("semantic", "instance", "panoptic"),
    "mask2former": ("semantic", "instance", "panoptic"),
    "eomt": ("semantic", "panoptic"),  # transformers' pipeline has no EoMT instances
}


def stock_model(kind: str) -> PreTrainedModel:
    """In eval mode, with masks and classes that differ by more than rounding."""
    torch.manual_seed(0)
    model = STOCK[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def moved_model(kind: str, **branches: bool) -> OffsetAlignmentForUniversalSegmentation:
    """Aligned, with offsets that show."""
    model = align_masks(stock_model(kind), OffsetLearningOptions(**branches))
    for projection in projections(model).values():
        torch.nn.init.normal_(projection, std=0.3)
    return model


@pytest.fixture(params=STOCK)
def kind(request) -> str:
    return request.param


@pytest.fixture
def stock(kind) -> PreTrainedModel:
    return stock_model(kind)


@pytest.fixture
def model(kind) -> OffsetAlignmentForUniversalSegmentation:
    return moved_model(kind)


def projections(model: OffsetAlignmentForUniversalSegmentation) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if ".alignment." in name}


def pixel_values() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def labels() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    masks = [torch.randint(0, 2, (count, 64, 64), generator=generator).float() for count in (3, 2)]
    return {"mask_labels": masks, "class_labels": [torch.tensor([0, 1, 3]), torch.tensor([2, 2])]}


@torch.no_grad()
def outputs(model: PreTrainedModel) -> list[Tensor]:
    output = model(pixel_values())
    assert output.masks_queries_logits.isfinite().all()
    return [output.masks_queries_logits, output.class_queries_logits]


def everything(output) -> list[Tensor]:
    """All tensors of an output, those of the auxiliary predictions too."""
    if output is None or isinstance(output, Tensor):
        return [] if output is None else [output]
    values = output.values() if hasattr(output, "values") else output
    return [tensor for value in values for tensor in everything(value)]


def ask_for_auxiliary_logits(model: PreTrainedModel) -> dict[str, bool]:
    """Sets what a configuration has to say about them, and returns what a call has to."""
    model.config.use_auxiliary_loss = True
    eomt = model.config.model_type.startswith("eomt")
    return {} if eomt else {"output_auxiliary_logits": True, "output_hidden_states": True}


def assert_same_model(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    assert type(loaded) is type(model)
    for tensors in ("state_dict", "named_parameters", "named_buffers"):
        expected, actual = (dict(getattr(m, tensors)()) for m in (model, loaded))
        assert_same_weights(actual, expected)
    assert_same_outputs(outputs(loaded), outputs(model))


@torch.no_grad()
def test_warm_start_equals_the_stock_model(stock):
    asked = ask_for_auxiliary_logits(stock)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    model = align_masks(stock)
    expected, actual = (everything(m(pixel_values(), **asked)) for m in (stock, model))
    assert len(actual) == len(expected) > 2
    assert_same_outputs(actual, expected)
    assert_same_weights(stock, before)
    assert type(model(pixel_values())) is type(stock(pixel_values(), **asked))


@torch.no_grad()
def test_every_mask_is_aligned(kind, stock):
    """All predictions are the alignment's own, and it is one for all layers."""
    asked = ask_for_auxiliary_logits(stock)
    model = align_masks(stock, OffsetLearningOptions(warm_start=False))
    (alignment,) = [module for module in model.modules() if isinstance(module, OffsetAlignment)]
    masks = []
    alignment.register_forward_hook(lambda module, inputs, output: masks.append(output))
    output = model(pixel_values(), **asked)
    assert len(masks) == (4 if kind == "maskformer" else 3)  # and the queries before the first layer
    predicted = [output.masks_queries_logits]
    if asked:
        predicted = [layer["masks_queries_logits"] for layer in output.auxiliary_logits] + predicted
        assert len(predicted) == len(masks)
    assert all(torch.equal(a, b) for a, b in zip(predicted[::-1], masks[::-1]))  # the same tensors


def test_from_scratch(stock):
    model = align_masks(stock, OffsetLearningOptions(warm_start=False))
    assert len(projections(model)) == 2
    for projection in projections(model).values():
        assert projection.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.allclose(outputs(model)[0], outputs(stock)[0], rtol=1e-3, atol=1e-3)


def test_offsets_change_masks_only_where_they_may(kind):
    """In MaskFormer masks are an end; Mask2Former and EoMT look where they are, so the classes depend on them too."""
    aligned, stock = outputs(moved_model(kind)), outputs(stock_model(kind))
    assert not torch.allclose(aligned[0], stock[0], atol=1e-2)
    assert torch.allclose(aligned[1], stock[1], rtol=1e-4, atol=1e-4) == (kind == "maskformer")


@pytest.mark.parametrize("branch", ["class", "feature"])
def test_one_branch(branch, tmp_path):
    branches = {f"use_{name}_offset": name == branch for name in ("class", "feature")}
    model = moved_model("mask2former", **branches)
    assert [name.split(".")[-2] for name in projections(model)] == [f"{branch}_offset_proj"]
    model.save_pretrained(tmp_path)
    assert_same_model(AutoModelForUniversalSegmentation.from_pretrained(tmp_path), model)


def test_loss_starts_where_the_stock_model_stands(stock):
    losses = []
    for model in (stock, align_masks(stock)):
        torch.manual_seed(0)  # of the points that masks are compared at
        losses.append(model(pixel_values(), **labels()).loss)
    assert_same_outputs(losses[1], losses[0])


def test_auxiliary_losses_of_maskformer():
    """Off by default there; without hidden states asked for, as Trainer cannot."""
    stock = stock_model("maskformer")
    plain = align_masks(stock)(pixel_values(), **labels()).loss
    stock.config.use_auxiliary_loss = True
    loss = align_masks(stock)(pixel_values(), **labels()).loss
    assert loss > plain
    assert_same_outputs(loss, stock(pixel_values(), **labels(), output_hidden_states=True).loss)


def test_gradients(stock):
    """At the warm start already, where all projections are zero."""
    model = align_masks(stock).train()
    model(pixel_values(), **labels()).loss.backward()
    learning = dict(stock.train().named_parameters())
    stock(pixel_values(), **labels()).loss.backward()
    for name, parameter in projections(model).items():
        assert parameter.grad is not None and parameter.grad.any(), name
    for name, parameter in model.model.named_parameters():
        if name in learning:
            assert (parameter.grad is None) == (learning[name].grad is None), name


def test_training_state_is_kept(kind):
    stock = stock_model(kind).to(torch.bfloat16).train()
    frozen = [name for i, (name, parameter) in enumerate(stock.named_parameters()) if i % 2]
    for name in frozen:
        stock.get_parameter(name).requires_grad_(False)
    model = align_masks(stock)
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert frozen == [name for name, parameter in model.model.named_parameters() if not parameter.requires_grad]
    assert all(projection.requires_grad for projection in projections(model).values())
    assert model.config.base_config is not stock.config


def test_trainer(tmp_path):
    """Columns are kept by the names in the signature, and the loss is not weighed by Trainer."""
    model = align_masks(stock_model("mask2former"))
    names = list(inspect.signature(model.forward).parameters)
    assert names[:5] == ["pixel_values", "mask_labels", "class_labels", "pixel_mask", "patch_offsets"]
    rows = [
        {"pixel_values": image, "mask_labels": masks, "class_labels": classes, "unused": 0}
        for image, masks, classes in zip(pixel_values(), *labels().values())
    ]

    def collate(rows: list[dict]) -> dict:
        batch = {name: [row[name] for row in rows] for name in rows[0]}
        return batch | {"pixel_values": torch.stack(batch["pixel_values"])}

    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no", use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    assert trainer.label_names == ["mask_labels", "class_labels"]
    assert trainer.model_accepts_loss_kwargs is False
    before = {name: projection.clone() for name, projection in projections(model).items()}
    assert trainer.train().training_loss > 0
    assert all(not torch.equal(projection, before[name]) for name, projection in projections(model).items())


def test_round_trip(model, tmp_path):
    """Through three generations, by every class that loads it. What was loaded is saved the same to the byte: loading
    adds the dtype to configurations, so from then on."""
    model.save_pretrained(tmp_path / "0")
    with safe_open(tmp_path / "0" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys()
    for generation, loader in enumerate(
        (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation, type(model))
    ):
        loaded, report = loader.from_pretrained(tmp_path / f"{generation}", output_loading_info=True)
        assert_same_model(loaded, model)
        assert not any(report.values())
        loaded.save_pretrained(tmp_path / f"{generation + 1}")
    for file in (tmp_path / "1").iterdir():
        for generation in ("2", "3"):
            assert (tmp_path / generation / file.name).read_bytes() == file.read_bytes(), file.name
    weights = [(tmp_path / generation / "model.safetensors").read_bytes() for generation in "01"]
    assert weights[0] == weights[1]


def test_config(stock, tmp_path):
    config = align_masks(stock, OffsetLearningOptions(use_feature_offset=False)).config
    assert config.id2label == dict(enumerate(LABELS)) and config.label2id == COMMON["label2id"]
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is OffsetAlignmentConfig and type(loaded.base_config) is type(stock.config)
    assert loaded.num_labels == loaded.base_config.num_labels == len(LABELS)
    assert (loaded.use_class_offset, loaded.use_feature_offset) == (True, False)
    assert loaded.to_json_string() == OffsetAlignmentConfig.from_pretrained(tmp_path).to_json_string()


def test_stock_checkpoint_can_be_loaded(stock, tmp_path):
    """All weights are the checkpoint's but those of the alignment, which are initialized."""
    stock.save_pretrained(tmp_path)
    config = OffsetAlignmentConfig(base_config=AutoConfig.from_pretrained(tmp_path))
    model, report = OffsetAlignmentForUniversalSegmentation.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert report["missing_keys"] == projections(model).keys()
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, tensor in stock.state_dict().items():
        assert torch.equal(model.model.get_parameter_or_buffer(name), tensor), name
    for projection in projections(model).values():
        assert projection.std().item() == pytest.approx(0.02, rel=0.1)


def test_other_labels(tmp_path):
    moved_model("eomt").save_pretrained(tmp_path)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.config.num_labels == model.model.config.num_labels == 7
    assert outputs(model)[1].shape == (2, 5, 7 + 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Saved models with their image processors, and a photo. Other processes add what they made of them."""
    folder = tmp_path_factory.mktemp("hub")
    for kind in STOCK:
        moved_model(kind).save_pretrained(folder / kind)
        PROCESSORS.get(kind, PROCESSORS["eomt"]).save_pretrained(folder / kind)
        torch.save(pixel_values(), folder / "pixel_values.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(folder / "photo.png")
    return folder


FRESH = """
import sys
import torch
import offseg_hf
from tests.models.test_modeling_offset_alignment import STOCK, outputs
from transformers import AutoModelForUniversalSegmentation

for kind in STOCK:
    model = AutoModelForUniversalSegmentation.from_pretrained(f"{sys.argv[1]}/{kind}")
    torch.save((model.state_dict(), outputs(model)), f"{sys.argv[1]}/{kind}.fresh.pt")
"""


def test_fresh_process(folders):
    run_python(FRESH, folders)
    for kind in STOCK:
        state_dict, loaded_outputs = torch.load(folders / f"{kind}.fresh.pt")
        model = moved_model(kind)
        assert_same_weights(state_dict, model)
        assert_same_outputs(loaded_outputs, outputs(model))


REMOTE = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
folder, *kinds = sys.argv[1:]

import torch
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, pipeline

trust = {"trust_remote_code": True}
pixel_values = torch.load(f"{folder}/pixel_values.pt")


def load(name):
    model = AutoModelForUniversalSegmentation.from_pretrained(f"{folder}/{name}", **trust)
    for part in (model, model.config):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    return model


def save(model, name):
    with torch.no_grad():
        torch.save(model(pixel_values).masks_queries_logits, f"{folder}/{name}.remote.pt")


for kind in kinds:
    save(load(kind), kind)

# What came from the Hub can be saved, with its code, by either way of loading.
segment = pipeline("image-segmentation", model=f"{folder}/{kind}", **trust)
assert type(segment.model).__module__.startswith("transformers_modules."), type(segment.model)
for model, name in ((load(kind), "model"), (segment.model, "pipeline")):
    model.save_pretrained(f"{folder}/{name}")
    save(load(name), name)
segments = segment(Image.open(f"{folder}/photo.png"), subtask="semantic")
print(*[segment["label"] for segment in segments])
"""


def test_remote_code(folders):
    found = run_python(REMOTE, folders, *STOCK, cwd=folders).stdout.split()  # not in the repository
    assert set(found) <= set(LABELS) and found
    for kind in STOCK:
        expected = outputs(moved_model(kind))[0]
        assert_same_outputs(torch.load(folders / f"{kind}.remote.pt"), expected)
        written = {path.name for path in (folders / kind).glob("*.py")}
        assert written == {
            "configuration_offset.py",
            "configuration_offset_alignment.py",
            "modeling_utils.py",
            "layers.py",
            "mask_prediction.py",
            "modeling_offset_alignment.py",
            "offset_learning.py",
        }
    for name in ("model", "pipeline"):  # of the last one
        assert_same_outputs(torch.load(folders / f"{name}.remote.pt"), expected)
        config = json.loads((folders / name / "config.json").read_text())
        assert config["auto_map"] == json.loads((folders / kind / "config.json").read_text())["auto_map"]


@pytest.mark.parametrize("kind", SUBTASKS)
def test_pipeline(kind, tmp_path):
    """At the warm start it finds what the stock model finds."""
    stock, segmenters = stock_model(kind), []
    for name, model in (("stock", stock), ("aligned", align_masks(stock))):
        model.save_pretrained(tmp_path / name)
        PROCESSORS[kind].save_pretrained(tmp_path / name)
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert type(processor) is type(PROCESSORS[kind])
        segmenters.append(pipeline("image-segmentation", model=str(tmp_path / name)))
    assert type(segmenters[1].model) is OffsetAlignmentForUniversalSegmentation
    photo = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB")
    thresholds = {"threshold": 0.2, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.1}
    for subtask in SUBTASKS[kind]:
        expected, actual = (segment(photo, subtask=subtask, **thresholds) for segment in segmenters)
        assert len(actual) == len(expected) > 0
        for a, b in zip(actual, expected):
            assert a["label"] == b["label"] in LABELS
            assert a["score"] == (None if b["score"] is None else pytest.approx(b["score"], abs=1e-4))
            assert np.mean(np.asarray(a["mask"]) != np.asarray(b["mask"])) < 1e-3


def test_other_models_are_refused():
    segformer = SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    )

    class Own(EomtForUniversalSegmentation):
        pass

    mask2former = stock_model("mask2former")
    own = Own(EomtConfig(**EOMT))
    for model in (segformer, mask2former.model, own, align_masks(mask2former)):
        with pytest.raises(ValueError, match=f"Mask2FormerForUniversalSegmentation.*; got {type(model).__name__}$"):
            align_masks(model)
    expected = "for maskformer, mask2former, .* got a base_config of model type 'segformer'"
    with pytest.raises(StrictDataclassClassValidationError, match=expected):
        OffsetAlignmentConfig(base_config=segformer.config)


def test_changed_models_are_refused():
    stock = stock_model("eomt")
    stock.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="has been changed.*extra.weight"):
        align_masks(stock)
