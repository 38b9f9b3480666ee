"""Mask2Former with offset learning: a Mask2Former but for its masks, which trains, saves and reloads."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, Mask2FormerConfig, ResNetConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentation

from offseg_hf import OffsetAlignment, OffsetMask2FormerConfig, OffsetMask2FormerForUniversalSegmentation
from offseg_hf.models import modeling_offset_mask2former
from tests.comparison import assert_same_outputs


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = {
    "backbone_config": {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "out_features": STAGES,
    },
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "num_attention_heads": 2,
    "num_queries": 6,
    "train_num_points": 256,
    "id2label": {0: "sky", 1: "tree", 2: "road"},
    "label2id": {"sky": 0, "tree": 1, "road": 2},
}
ALIGNMENT = "model.transformer_module.decoder.mask_predictor.alignment."
ALIGNMENT_KEYS = {f"{ALIGNMENT}class_offset_proj.weight", f"{ALIGNMENT}feature_offset_proj.weight"}


def random_values(model: nn.Module) -> nn.Module:
    """In eval mode, with every parameter unlike that of any initialization."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_model(**overrides) -> OffsetMask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    return random_values(OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**(SMALL | overrides))))


def images(batch: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def targets(height: int = 64, width: int = 96) -> dict[str, list[torch.Tensor]]:
    """Two images: one of two halves, one of one corner."""
    masks = torch.zeros(3, height, width)
    masks[0, :, : width // 2] = masks[1, :, width // 2 :] = masks[2, : height // 2, : width // 2] = 1
    return {
        "mask_labels": [masks[:2], masks[2:]],
        "class_labels": [torch.tensor([0, 2]), torch.tensor([1])],
    }


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory) -> Path:
    """A Mask2Former of the same size, saved as its authors published theirs."""
    folder = tmp_path_factory.mktemp("mask2former")
    random_values(Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**SMALL))).save_pretrained(folder)
    return folder


def loaded_from(folder: Path, **kwargs) -> OffsetMask2FormerForUniversalSegmentation:
    """Also checks that all but the alignment was in the folder, and nothing else."""
    model, info = OffsetMask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert set(info.pop("missing_keys")) == ALIGNMENT_KEYS
    assert not any(info.values()), info
    return model


@torch.no_grad()
def test_begins_as_the_mask2former_it_continues(stock_folder):
    model = loaded_from(stock_folder, start_without_offsets=True)
    stock = Mask2FormerForUniversalSegmentation.from_pretrained(stock_folder)
    arguments = {"output_auxiliary_logits": True, "output_hidden_states": True}
    actual, expected = (m(images(), **arguments) for m in (model, stock))
    assert_same_outputs(dict(actual), dict(expected))
    assert expected.masks_queries_logits.std() > 0.1


def test_alignment_from_scratch(stock_folder):
    """The official initialization: normal, truncated at 2, which is far out."""
    torch.manual_seed(0)
    for model in (
        loaded_from(stock_folder),
        OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**SMALL)),
    ):
        for key in ALIGNMENT_KEYS:
            assert model.get_parameter(key).std().item() == pytest.approx(0.02, rel=0.1)


def test_half_an_alignment(tmp_path):
    """What is loaded stays, what is missing is initialized."""
    model = small_model(use_feature_offset=False)
    model.save_pretrained(tmp_path)
    key, missing = sorted(ALIGNMENT_KEYS)
    for start_without_offsets in (False, True):
        loaded = OffsetMask2FormerForUniversalSegmentation.from_pretrained(
            tmp_path, use_feature_offset=True, start_without_offsets=start_without_offsets
        )
        assert torch.equal(loaded.get_parameter(key), model.get_parameter(key))
        assert (loaded.get_parameter(missing).abs().max() == 0) == start_without_offsets


@torch.no_grad()
@pytest.mark.parametrize("use_class_offset", [True, False])
@pytest.mark.parametrize("use_feature_offset", [True, False])
def test_masks_of_all_layers_equal_the_plain_arithmetic(use_class_offset, use_feature_offset):
    """One alignment serves the prediction before the first layer and after each."""
    model = small_model(use_class_offset=use_class_offset, use_feature_offset=use_feature_offset)
    (alignment,) = (module for module in model.modules() if isinstance(module, OffsetAlignment))
    inputs = []
    alignment.register_forward_pre_hook(lambda module, args: inputs.append([x.double() for x in args]))
    output = model(images(), output_auxiliary_logits=True)
    predictions = [*output.auxiliary_logits, output]

    assert len(inputs) == len(predictions) == model.config.decoder_layers
    for (masks, pixels), prediction in zip(inputs, predictions):
        pixels = pixels.flatten(2).transpose(1, 2)
        attention = pixels @ masks.transpose(1, 2)  # (batch, pixels, masks)
        moved_masks, moved_pixels = masks, pixels
        if use_class_offset:
            weight = alignment.class_offset_proj.weight.double()
            moved_masks = masks + (attention.softmax(dim=1).transpose(1, 2) @ pixels) @ weight.T
        if use_feature_offset:
            weight = alignment.feature_offset_proj.weight.double()
            moved_pixels = pixels + (attention.softmax(dim=2) @ masks) @ weight.T
        expected = (moved_masks @ moved_pixels.transpose(1, 2)).unflatten(2, (16, 24)).float()
        torch.testing.assert_close(prediction["masks_queries_logits"], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("use_auxiliary_loss", [True, False])
def test_outputs(use_auxiliary_loss):
    """Each on request, in any combination, whatever the auxiliary losses."""
    model = small_model(use_auxiliary_loss=use_auxiliary_loss)
    image_sizes = torch.tensor([[60, 90], [64, 96]])
    output = model(images(), image_sizes=image_sizes)
    always = {
        "class_queries_logits": (2, 6, 4),
        "masks_queries_logits": (2, 6, 16, 24),
        "encoder_last_hidden_state": (2, 128, 2, 3),
        "pixel_decoder_last_hidden_state": (2, 32, 16, 24),
        "transformer_decoder_last_hidden_state": (2, 6, 32),
        "image_sizes": (2, 2),
    }
    assert {name: tuple(value.shape) for name, value in output.items()} == always
    assert output.image_sizes is image_sizes

    everything = model(
        images(), output_hidden_states=True, output_auxiliary_logits=True, output_attentions=True, **targets()
    )
    added = {"auxiliary_logits", "attentions", "loss"}
    added |= {f"{name}_hidden_states" for name in ("encoder", "pixel_decoder", "transformer_decoder")}
    assert set(everything) == added | always.keys() - {"image_sizes"}
    assert_same_outputs(everything.masks_queries_logits, output.masks_queries_logits)

    loss, class_logits, mask_logits, *_ = model(images(), **targets(), return_dict=False)
    assert loss.ndim == 0
    assert_same_outputs((class_logits, mask_logits), (output.class_queries_logits, output.masks_queries_logits))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(70, 90), (33, 128)])
def test_any_size(height, width):
    masks = small_model()(images(1, height, width)).masks_queries_logits
    assert masks.shape == (1, 6, -(-height // 4), -(-width // 4))
    assert masks.isfinite().all()


@pytest.mark.parametrize("use_auxiliary_loss", [True, False])
def test_loss_is_that_of_mask2former(use_auxiliary_loss):
    """With offsets of zero; points are sampled at random, from the same seed."""
    model = small_model(use_auxiliary_loss=use_auxiliary_loss)
    model.model.transformer_module.decoder.mask_predictor.alignment.start_without_offsets()
    stock = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**SMALL)).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    torch.manual_seed(0)
    loss = model(images(), **targets()).loss
    torch.manual_seed(0)
    output = stock(images(), output_auxiliary_logits=True)
    expected = stock.get_loss_dict(
        output.masks_queries_logits,
        output.class_queries_logits,
        *targets().values(),
        output.auxiliary_logits if use_auxiliary_loss else None,
    )
    assert len(expected) == (12 if use_auxiliary_loss else 3)
    assert_same_outputs(loss, sum(expected.values()))


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**SMALL)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(10):
        loss = model(images(), **targets()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_an_image_without_masks_counts_as_background():
    labels = targets()
    labels["mask_labels"][0], labels["class_labels"][0] = torch.zeros(0, 64, 96), torch.zeros(0, dtype=torch.long)
    for batch in (slice(0, 2), slice(0, 1)):
        model = small_model().train()
        loss = model(images()[batch], **{name: values[batch] for name, values in labels.items()}).loss
        loss.backward()
        assert loss > 0
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_masks_and_classes_go_together():
    with pytest.raises(ValueError, match="mask_labels and class_labels go together: pass both, or neither"):
        small_model()(images(), class_labels=targets()["class_labels"])


def test_training_without_scipy(monkeypatch):
    monkeypatch.setattr(modeling_offset_mask2former, "is_scipy_available", lambda: False)
    model = small_model()
    model(images())
    with pytest.raises(ImportError, match="pip install scipy"):
        model(images(), **targets())


@torch.no_grad()
def test_another_encoder():
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES)
    model = small_model(backbone_config=backbone)
    assert model(images()).masks_queries_logits.shape == (2, 6, 16, 24)


def test_config(tmp_path):
    config = OffsetMask2FormerConfig.from_size(
        "swin-t", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}, use_class_offset=False
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is OffsetMask2FormerConfig
    assert type(loaded.backbone_config) is type(config.backbone_config)
    for name in ("id2label", "label2id", "use_class_offset", "use_feature_offset", "num_queries"):
        assert getattr(loaded, name) == getattr(config, name)
    for other in (loaded, OffsetMask2FormerConfig()):
        assert other.backbone_config.to_dict() == config.backbone_config.to_dict()
    with pytest.raises(ValueError, match="unknown size 'swin-s': expected one of swin-t"):
        OffsetMask2FormerConfig.from_size("swin-s")


def test_reentrant_checkpoints_are_refused():
    model = OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**SMALL))
    with pytest.raises(ValueError, match='expected {"use_reentrant": False}, the default'):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()


def test_half_precision(tmp_path):
    model = small_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = OffsetMask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    output = loaded(images().bfloat16(), **targets())
    assert output.loss.isfinite()
    assert output.masks_queries_logits.dtype == torch.bfloat16
