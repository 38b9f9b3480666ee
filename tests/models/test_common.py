"""What every family's model must do, whatever it is made of: trained, run, saved and loaded in every way."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config, MscanBackbone, MscanConfig
from offseg_hf.models.configuration_offset import described_fields
from offseg_hf.models.layers import FixedBatchNorm2d
from offseg_hf.models.modeling_utils import checkpoint_learning_once
from offseg_hf.zoo.families import FAMILIES as ROWS
from offseg_hf.zoo.families import load_class
from offseg_hf.zoo.registration import auto_model_class
from tests.comparison import ROUNDINGS, assert_same_gradients, assert_same_outputs, assert_same_weights
from tests.processes import run_python
from tests.tiny import EFFICIENTFORMER, FAMILIES, MSCAN, random_values, tiny_model, tiny_processor


every_family = pytest.mark.parametrize("family", FAMILIES)
# Those that classify pixels, with one head and one forward.
SEMANTIC = tuple(name for name in FAMILIES if ROWS[name].auto_class == "AutoModelForSemanticSegmentation")
every_semantic_family = pytest.mark.parametrize("family", SEMANTIC)
HALVES = (torch.float16, torch.bfloat16)


def test_no_family_is_forgotten():
    assert set(FAMILIES) == set(ROWS) and len(SEMANTIC) == 3


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tensors(output) -> tuple[Tensor, ...]:
    """What a model has found out, of any kind of output."""
    names = ("logits", "class_queries_logits", "masks_queries_logits")
    return tuple(output.feature_maps) if "feature_maps" in output else tuple(output[n] for n in names if n in output)


def targets(family: str, batch: int, height: int, width: int) -> dict[str, Tensor | list[Tensor]]:
    """Labels of all three classes, or of mask2former masks of them."""
    labels = torch.arange(batch * height * width).view(batch, height, width) // 5 % 3
    if family in SEMANTIC:
        return {"labels": labels}
    masks = [torch.stack([label == index for index in range(3)]).float() for label in labels]
    return {"mask_labels": masks, "class_labels": [torch.arange(3)] * batch}


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with the statistics that its weights lead to, which keep values within the range of half precision."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1
    model.train()(images(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


# -- what it computes -------------------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_batch_is_its_images(family):
    model, pixel_values = tiny_model(family), images(3, 3, 61, 96)
    separate = [tensors(model(one)) for one in pixel_values.split(1)]
    expected = [torch.cat(parts) for parts in zip(*separate, strict=True)]
    roundings = ROUNDINGS * (4 if family == "segnext" else 1)  # its factorization is iterated
    assert_same_outputs(tensors(model(pixel_values)), expected, roundings)


@every_semantic_family
@torch.no_grad()
def test_outputs(family):
    model, pixel_values = tiny_model(family), images(1, 3, 64, 64)
    output = model(pixel_values)
    assert output.hidden_states is None and output.loss is None and output.image_sizes is None
    logits, hidden_states = model(pixel_values, output_hidden_states=True, return_dict=False)
    assert_same_outputs(logits, output.logits)
    assert [tuple(x.shape[2:]) for x in hidden_states] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@every_semantic_family
@torch.no_grad()
def test_windows(family):
    """Logits of the windows are upsampled and averaged; the loss is that of the assembled logits."""
    model, pixel_values = tiny_model(family), images(1, 3, 64, 100)
    windows = torch.tensor([[[0, 0, 64, 64], [0, 36, 64, 100]]])
    labels, image_sizes = torch.ones(1, 64, 100, dtype=torch.long), torch.tensor([[60, 100]])
    output = model(pixel_values, windows=windows, image_sizes=image_sizes, labels=labels)
    left, right = (
        F.interpolate(model(pixel_values[..., a:b]).logits, size=(64, 64), mode="bilinear")
        for a, b in ((0, 64), (36, 100))
    )
    expected = torch.cat([left[..., :36], (left[..., 36:] + right[..., :28]) / 2, right[..., 28:]], dim=-1)
    assert_same_outputs((output.logits, output.loss), (expected, -expected.log_softmax(dim=1)[:, 1].mean()))
    assert torch.equal(output.image_sizes, image_sizes)
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values, windows=windows, output_hidden_states=True)
    with pytest.raises(ValueError, match="pass windows too, or neither"):
        model(pixel_values, image_sizes=image_sizes)


@every_semantic_family
@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
@torch.no_grad()
def test_fused_is_equal(family, size):
    """The batch norms go into the convolutions; what is computed stays."""
    single, pixel_values = tiny_model(family), images(2, 3, *size)
    double = copy.deepcopy(single).double()
    expected, actual = (
        (output.logits, *output.hidden_states)
        for output in (m(pixel_values.double(), output_hidden_states=True) for m in (double, double.fuse()))
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d | FixedBatchNorm2d) for module in double.fuse().modules())
    assert_same_outputs(single.fuse()(pixel_values).logits, single(pixel_values).logits)


@every_semantic_family
def test_fused_is_not_saved(family, tmp_path):
    with pytest.raises(ValueError, match="cannot be saved: save the model it was made of"):
        tiny_model(family).fuse().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["offseg", "segformer"])  # SegNeXt's factorization magnifies rounding: see there
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fused", [False, True], ids=["as-loaded", "fused"])
@torch.no_grad()
def test_half_precision(family, dtype, fused):
    model, pixel_values = with_statistics(tiny_model(family)), images(1, 3, 64, 64)
    expected = model(pixel_values).logits
    logits = (model.fuse() if fused else model).to(dtype)(pixel_values.to(dtype)).logits
    assert logits.dtype == dtype
    assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


# -- what it cannot take ----------------------------------------------------------------------------------------------


@every_semantic_family
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64)])
def test_wrong_images(family, shape):
    with pytest.raises(ValueError, match=r"must have the shape \(batch, 3, height, width\), got"):
        tiny_model(family)(images(*shape))


@every_semantic_family
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 64, 64), 3), r"in \[0, 2\] or 255 \(ignored\), got 4096 pixels with other values, such as 3"),
        (torch.full((1, 64, 64), -1), "got 4096 pixels with other values, such as -1"),
        (torch.zeros(1, 32, 32, dtype=torch.long), r"\(1, 64, 64\), got \(1, 32, 32\)"),
        (torch.zeros(1, 64, 64), "must be integers"),
    ],
    ids=["too-large", "negative", "another-size", "floats"],
)
def test_wrong_labels(family, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(family)(images(1, 3, 64, 64), labels=labels)


@every_semantic_family
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "must be 3 numbers, one per class, or None; got 2"),
        ([1, 1, -1], r"must be finite and 0 or more, got \[1, 1, -1\]"),
        ([1, 1, float("nan")], "must be finite"),
    ],
)
def test_wrong_class_weights(family, weights, message):
    model = tiny_model(family, semantic_loss_class_weights=weights)
    with pytest.raises(ValueError, match=message):
        model(images(1, 3, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.long))


# -- how it is trained ------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("use_class_offset", [True, False])
@pytest.mark.parametrize("use_feature_offset", [True, False])
def test_every_parameter_learns(family, use_class_offset, use_feature_offset):
    """Whatever row of the paper's Table 6: no parameter is without effect, and none too many is there."""
    branches = {"use_class_offset": use_class_offset, "use_feature_offset": use_feature_offset}
    model = tiny_model(family, **branches).train()
    model(images(2, 3, 128, 96), **targets(family, 2, 128, 96)).loss.backward()
    # A bias before a batch norm moves nothing in training, nor does that of the keys, which a softmax takes away.
    without_effect = {
        f"{name}.conv.bias"
        for name, module in model.named_modules()
        if isinstance(getattr(module, "norm", None), nn.BatchNorm2d)
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        may_rest = name in without_effect or name.endswith(("k_proj.bias", ".key.conv.bias", ".key.norm.bias"))
        assert may_rest or parameter.grad.abs().max() > 0, name
    projections = {name.split(".")[-2] for name, _ in model.named_parameters() if "offset_proj" in name}
    used = {"class_offset_proj": use_class_offset, "feature_offset_proj": use_feature_offset}
    assert projections == {name for name, is_used in used.items() if is_used}


@every_semantic_family
def test_loss_ignores(family):
    """The mean is over all pixels; an image of ignored ones gives 0 and gradients of 0, not NaN."""
    model, pixel_values = tiny_model(family), images(1, 3, 64, 64)
    labels = torch.full((1, 64, 64), 255)
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())

    labels[:, :16] = 1
    output = model(pixel_values, labels=labels)
    upsampled = F.interpolate(output.logits, size=(64, 64), mode="bilinear")
    assert_same_outputs(output.loss, F.cross_entropy(upsampled[:, :, :16], labels[:, :16]) / 4)


@every_semantic_family
@torch.no_grad()
def test_class_weights(family):
    """They multiply the loss of every pixel by its class; the mean goes over all pixels, ignored ones too."""
    weights = [0.5, 2, 0]
    model = tiny_model(family, semantic_loss_class_weights=weights)
    pixel_values, labels = images(2, 3, 64, 64), torch.arange(4).repeat(2, 64, 16)
    labels[labels == 3] = 255
    output = model(pixel_values, labels=labels)
    log_probabilities = F.interpolate(output.logits, size=(64, 64), mode="bilinear").log_softmax(dim=1)
    losses = [-weight * log_probabilities[:, i][labels == i].sum() for i, weight in enumerate(weights)]
    assert_same_outputs(output.loss, sum(losses) / labels.numel())
    assert type(model.config).from_dict(model.config.to_dict()).semantic_loss_class_weights == weights


@every_family
def test_gradient_checkpointing(family):
    rates = {"drop_path_rate": 0.0} if family in SEMANTIC else {}
    model, pixel_values = tiny_model(family, **rates).train(), images(2, 3, 64, 64)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()

    def step() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # mask2former's loss draws points, its encoder paths to drop
        model(pixel_values, **targets(family, 2, 64, 64)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = step()
    model.activation_checkpointing_enable()
    runs = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            runs[name] = 0
            leaf = next(part for part in module.modules() if not list(part.children()))

            def count(*_, name=name):
                runs[name] += 1

            leaf.register_forward_hook(count)
    assert_same_gradients(step(), plain)
    # Every block ran forward twice; those inside of another one that did so, more often.
    config = model.config if family in SEMANTIC else model.config.backbone_config
    assert len(runs) >= sum(config.depths) and min(runs.values()) == 2
    assert family not in SEMANTIC or set(runs.values()) == {2}


def test_compiled_checkpoints_learn_statistics_once():
    """As one graph, in which nothing may remember whether it was run before."""
    part = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).train()
    again = partial(checkpoint_learning_once, partial(checkpoint, use_reentrant=False), [part[0]])
    compiled = torch.compile(lambda x: again(part.forward, x).sum(), backend="aot_eager", fullgraph=True)
    compiled(images(2, 3, 8, 8)).backward()
    assert part[0].num_batches_tracked == 1


@pytest.mark.parametrize("family", ["offseg", "segnext"])
@pytest.mark.parametrize("is_reentrant", [False, True])
def test_gradient_checkpointing_learns_statistics_once(family, is_reentrant):
    """Of a batch whose parts are computed twice, by whoever switches it on."""
    settings = {"drop_path_rate": 0.0} | ({"learn_batch_norm_statistics": True} if family == "offseg" else {})
    plain, again = (tiny_model(family, **settings).train() for _ in range(2))
    again.activation_checkpointing_enable({"use_reentrant": is_reentrant})
    pixel_values = images(2, 3, 64, 64).requires_grad_()  # without, reentrant parts have no gradient
    for model in (plain, again):
        for _ in range(2):
            model(pixel_values, **targets(family, 2, 64, 64)).loss.backward()
    statistics = {name: buffer for name, buffer in plain.named_buffers() if "running" in name or "tracked" in name}
    assert any(buffer.item() == 2 for name, buffer in statistics.items() if "tracked" in name)
    assert all(torch.equal(again.get_buffer(name), buffer) for name, buffer in statistics.items())
    assert_same_gradients(
        *({name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in (again, plain))
    )


@every_semantic_family
@torch.no_grad()
def test_start_without_offsets(family, tmp_path):
    """A new model begins as its own ablation does; what was trained is loaded as it is."""
    config = tiny_model(family, start_without_offsets=True).config
    model = auto_model_class(config).from_config(config).eval()
    assert not any(proj.weight.any() for proj in model.offset_learning.offset_projs())
    assert model.offset_learning.class_representation.any()
    ablated = tiny_model(family, use_class_offset=False, use_feature_offset=False)
    assert not ablated.load_state_dict(model.state_dict(), strict=False).missing_keys
    pixel_values = images(1, 3, 64, 64)
    assert_same_outputs(model(pixel_values).logits, ablated(pixel_values).logits)
    model.offset_learning.reset_parameters()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(proj.weight.any() for proj in loaded.offset_learning.offset_projs())


# -- how it is saved and loaded ---------------------------------------------------------------------------------------


def backbone(model_class: type, config_class: type, fields: dict) -> PreTrainedModel:
    return model_class(config_class(**fields, out_features=["stem", "stage3"]))


# Every class, and what of OffSeg has other modules.
SAVED = {family: partial(tiny_model, family) for family in FAMILIES} | {
    "efficientformer": partial(backbone, EfficientFormerV2Backbone, EfficientFormerV2Config, EFFICIENTFORMER),
    "mscan": partial(backbone, MscanBackbone, MscanConfig, MSCAN),
    "plain decoder": partial(tiny_model, "offseg", pixel_decoder="mlp"),
    "no offsets": partial(tiny_model, "offseg", use_class_offset=False, use_feature_offset=False),
    "learned statistics": partial(tiny_model, "offseg", learn_batch_norm_statistics=True),
}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """In eval mode, with values unlike those of any initialization in every parameter and buffer."""
    torch.manual_seed(0)
    models = {name: random_values(make()) for name, make in SAVED.items()}
    for model in models.values():
        for name, buffer in model.named_buffers():
            if name not in model.state_dict():
                continue
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape))
            else:
                buffer.fill_(7)
    return models


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory) -> Path:
    """A folder with a folder of each."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(params=SAVED)
def name(request) -> str:
    return request.param


@torch.no_grad()
def outputs(model: nn.Module) -> tuple[Tensor, ...]:
    found = tensors(model(images(1, 3, 70, 90)))
    assert found and all(tensor.isfinite().all() for tensor in found)
    return found


def assert_same_model(loaded: nn.Module, model: nn.Module) -> None:
    assert type(loaded) is type(model)
    assert not loaded.training
    # Buffers that are not saved count too: on loading they are made on the meta device.
    for kind in ("state_dict", "named_parameters", "named_buffers"):
        expected, actual = (dict(getattr(m, kind)()) for m in (model, loaded))
        assert_same_weights(actual, expected)
    assert_same_outputs(outputs(loaded), outputs(model))


def test_class(name, models, saved, tmp_path):
    """What was loaded can be saved again, the same to the byte."""
    model, folder = models[name], saved / name
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_model(loaded, model)
    loaded.save_pretrained(tmp_path)
    for first in folder.iterdir():
        second = tmp_path / first.name
        if first.name == "config.json" and name == "mask2former":
            # transformers notes the dtype of the encoder when it loads one
            expected = json.loads(first.read_text())
            expected["backbone_config"]["dtype"] = expected["dtype"]
            assert json.loads(second.read_text()) == expected
        else:
            assert second.read_bytes() == first.read_bytes(), first.name


def test_auto_class(name, models, saved):
    model, folder = models[name], saved / name
    if "Backbone" in type(model).__name__:
        # The method itself takes names on the Hub only: before this, it asks there whether the name exists.
        loaded = super(AutoBackbone.__base__, AutoBackbone).from_pretrained(folder)
    else:
        loaded = auto_model_class(model.config).from_pretrained(folder)
    assert_same_model(loaded, model)
    assert type(AutoConfig.from_pretrained(folder)) is type(model.config)


def test_file(name, models, saved):
    """One entry per parameter and statistic under its own name, none shared and none left over."""
    model, path = models[name], saved / name / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        written = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dictionary)
        assert file.metadata() == {"format": "pt"}
    names = model.state_dict().keys()
    buffers = {key: buffer for key, buffer in model.named_buffers() if key in names}
    assert_same_weights(written, dict(model.named_parameters()) | buffers)
    size = sum(tensor.nbytes for tensor in written.values())
    assert size < path.stat().st_size < size + 250 * len(written)


def test_fresh_process(models, saved, tmp_path):
    """All of them in one that only imports offseg_hf."""
    script = """
import sys
import torch
import offseg_hf
from tests.models.test_common import outputs

saved, results, *names = sys.argv[1:]
for name, kind in zip(names[::2], names[1::2]):
    model = getattr(offseg_hf, kind).from_pretrained(f"{saved}/{name}")
    torch.save((model.state_dict(), outputs(model)), f"{results}/{name}.pt")
"""
    names = [name for item in models.items() for name in (item[0], type(item[1]).__name__)]
    run_python(script, saved, tmp_path, *names)
    for name, model in models.items():
        state_dict, loaded_outputs = torch.load(tmp_path / f"{name}.pt")
        assert_same_weights(state_dict, model)
        assert_same_outputs(loaded_outputs, outputs(model))


@every_family
@pytest.mark.parametrize("dtype", HALVES)
def test_saved_in_half_precision(family, dtype, tmp_path):
    model = tiny_model(family).to(dtype)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert_same_weights(loaded, model)
    assert type(model).from_pretrained(tmp_path, dtype="float32").dtype == torch.float32


@every_family
def test_configuration(family, tmp_path):
    row = ROWS[family]
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config = load_class(row.config).from_size(row.sizes[-1], **names, use_class_offset=False)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.to_json_string() == type(config).from_pretrained(tmp_path).to_json_string()
    assert (loaded.id2label, loaded.label2id) == (config.id2label, config.label2id)
    for name in described_fields(type(config)):
        value, expected = (
            json.dumps(field.to_diff_dict() if isinstance(field, PreTrainedConfig) else field)
            for field in (getattr(loaded, name), getattr(config, name))
        )
        assert value == expected, name
    with pytest.raises(ValueError, match=f"unknown size 'xxl': expected one of {', '.join(row.sizes)}"):
        load_class(row.config).from_size("xxl")


@every_family
def test_image_processor(family, tmp_path):
    processor = tiny_processor(family)
    processor.do_reduce_labels = True
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor) is load_class(ROWS[family].image_processor)
    assert loaded.to_dict() == processor.to_dict()
