"""Training starts from what the Hub has of SegFormer: files that transformers' own classes write."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

from offseg_hf import OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation, load_pretrained
from offseg_hf.conversion.convert import load_official_weights
from offseg_hf.zoo.presets import get_preset


SMALL = {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 5, 8]}


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """With values unlike those of any initialization in every parameter and statistic; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def classifier(**fields) -> SegformerForImageClassification:
    """The kind of `nvidia/mit-b*`."""
    return filled(SegformerForImageClassification(SegformerConfig(**SMALL | fields, num_labels=10)))


def segmenter(**fields) -> SegformerForSemanticSegmentation:
    """The kind of `nvidia/segformer-b*-finetuned-*`."""
    return filled(SegformerForSemanticSegmentation(SegformerConfig(**SMALL | fields, num_labels=10)))


def ours(**fields) -> OffsetSegformerForSemanticSegmentation:
    return filled(
        OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig(**SMALL | {"num_labels": 10} | fields)), seed=1
    )


def copied(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def assert_encoder_loaded(model: nn.Module, stock: PreTrainedModel) -> None:
    expected = stock.segformer.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.segformer.state_dict().items())


def parts(state_dict: dict[str, torch.Tensor]) -> set[str]:
    """What keeps its values where a source has an encoder only: all our names but the encoder's and the counters'."""
    return {name for name in state_dict if not name.startswith("segformer.") and "num_batches" not in name}


@pytest.mark.parametrize("original", [True, False], ids=["as on the Hub", "names of transformers 5"])
def test_encoder_of_a_classifier(original, tmp_path):
    stock, model = classifier(), ours()
    before = copied(model.state_dict())
    stock.save_pretrained(tmp_path, save_original_format=original)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert ("segformer.encoder.block.0.0.attention.self.query.weight" in names) == original

    report = load_pretrained(model, tmp_path)
    assert_encoder_loaded(model, stock)
    assert sorted(report.dropped) == ["classifier.bias", "classifier.weight"]
    assert report.used == len(stock.segformer.state_dict()) == len(names) - 2
    assert set(report.initial) == parts(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.initial)


@pytest.mark.parametrize("original", [True, False], ids=["as on the Hub", "names of transformers 5"])
@torch.no_grad()
def test_decoder_that_fits(original, tmp_path):
    """It gives what SegFormer's gives before its classifier, where the ReLU that it has not does nothing."""
    stock, model = segmenter(decoder_hidden_size=24), ours(decoder_hidden_size=24)
    for norm in (conv.norm for conv in model.pixel_decoder.lateral_convs):  # as they are initialized
        nn.init.ones_(norm.weight)
        norm.reset_running_stats()
    generator = torch.Generator().manual_seed(2)
    nn.init.normal_(stock.decode_head.linear_fuse.weight, std=0.1, generator=generator)
    stock.save_pretrained(tmp_path, save_original_format=original)

    report = load_pretrained(model, tmp_path)
    assert_encoder_loaded(model, stock)
    assert sorted(report.dropped) == ["decode_head.classifier.bias", "decode_head.classifier.weight"]
    assert report.used + 2 == len(stock.state_dict())
    assert all("offset_learning" in name or ".norm." in name for name in report.initial)

    feature_maps = [
        torch.rand(2, c, 16 >> i, 24 >> i, generator=generator) for i, c in enumerate(SMALL["hidden_sizes"])
    ]
    stock.decode_head.classifier = nn.Identity()
    expected = stock.decode_head(feature_maps)
    assert 0.2 < (expected == 0).float().mean() < 0.8
    torch.testing.assert_close(model.pixel_decoder(feature_maps), expected, rtol=1e-3, atol=1e-3)


def test_decoder_that_does_not_fit(tmp_path):
    """From B2 on, SegFormer's decoder has 768 channels: ours keeps its values, and the report says so."""
    stock, model = segmenter(decoder_hidden_size=768), ours()
    before = copied(model.state_dict())
    stock.save_pretrained(tmp_path)
    report = load_pretrained(model, tmp_path)
    assert_encoder_loaded(model, stock)
    assert set(report.initial) == parts(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.initial)
    left = {name for name in stock.state_dict() if name.startswith("decode_head.") and "num_batches" not in name}
    assert {name.replace("linear_c.", "linear_projections.") for name in report.dropped} == left


def test_files_that_torch_wrote(tmp_path):
    """The repositories of nvidia have `pytorch_model.bin`; here with the real shapes of a B0."""
    stock = classifier(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2])
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig.from_size("b0", num_labels=7))
    assert load_pretrained(model, tmp_path).used == len(weights) - 2
    assert_encoder_loaded(model, stock)


def test_openmmlab(official_state_dict, tmp_path):
    """What the official training starts from: the backbone's weights under its own names."""
    preset = "segformer-b0-offset-ade"
    weights = official_state_dict(preset)
    backbone = {key.removeprefix("backbone."): v for key, v in weights.items() if key.startswith("backbone.")}
    torch.save(backbone, tmp_path / "mit_b0.pth")
    model = OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig.from_size("b0", num_labels=7))
    report = load_pretrained(model, tmp_path / "mit_b0.pth")
    assert report.used == len(backbone) and report.dropped == [] and set(report.initial) == parts(model.state_dict())
    assert_encoder_loaded(model, load_official_weights(get_preset(preset), weights, preset)[0])

    query, key, value = backbone["layers.1.1.0.attn.attn.in_proj_weight"].split(64)
    attention = model.segformer.stages[1].blocks[0].attention
    assert torch.equal(attention.q_proj.weight, query)
    assert torch.equal(attention.k_proj.weight, key)
    assert torch.equal(attention.v_proj.weight, value)


@pytest.mark.parametrize("stock", [classifier, segmenter])
def test_from_pretrained(stock, tmp_path):
    """transformers' own idiom takes the encoder, reports the rest, and makes a model of ours of it."""
    stock = stock()
    stock.save_pretrained(tmp_path / "stock")
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "segformer"
    model, report = OffsetSegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "stock", num_labels=7, output_loading_info=True
    )
    assert_encoder_loaded(model, stock)
    assert {name for name in report["missing_keys"] if "num_batches" not in name} == parts(model.state_dict())
    assert report["unexpected_keys"] == {
        name.replace("linear_projections.", "linear_c.")
        for name in stock.state_dict()
        if not name.startswith("segformer.")
    }
    assert model.config.model_type == "offset_segformer" and model.offset_learning.logit_norm.weight.shape == (7,)
    assert model.offset_learning.class_representation.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pixel_decoder.output_conv.conv.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    for name, buffer in model.pixel_decoder.named_buffers():
        assert (buffer == (1 if name.endswith("running_var") else 0)).all(), name

    model.save_pretrained(tmp_path / "ours")
    again = OffsetSegformerForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    assert again.config.model_type == "offset_segformer"
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    load_pretrained(again, tmp_path / "stock")  # which takes a decoder that fits, too


def test_another_size_is_named(tmp_path):
    classifier(depths=[1, 1, 1, 1]).save_pretrained(tmp_path)
    model = ours()
    before = copied(model.state_dict())
    message = (
        r"expected SegFormer of the size of this OffsetSegformer\w+, got 22 missing: segformer\.stages\.2\.blocks\.1"
    )
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_none(tmp_path):
    """A foreign file is refused, and so are a key too many and tensors that no layer of ours could have been."""
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(
        ValueError, match="expected the weights of SegFormer, or .* MiT of openmmlab, got conv1.weight"
    ):
        load_pretrained(ours(), tmp_path / "resnet.safetensors")

    segmenter(decoder_hidden_size=256).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"segformer.extra": torch.ones(1)}, tmp_path / "extra.safetensors")
    with pytest.raises(ValueError, match=r"1 left over: segformer\.extra$"):
        load_pretrained(ours(), tmp_path / "extra.safetensors")

    for shape in ((), (5,), (256, 1024), (2, 3, 4, 5, 6)):
        for key in ("decode_head.linear_fuse.weight", "decode_head.linear_c.0.proj.weight"):
            save_file(weights | {key: torch.ones(shape)}, tmp_path / "odd.safetensors")
            assert key in load_pretrained(ours(), tmp_path / "odd.safetensors").dropped


@pytest.mark.parametrize("wrap", ["", "model."])
def test_our_own_weights_are_taken_as_they_are(tmp_path, wrap):
    """The layer that reads all stages has them in our order already; a classifier of other classes is not taken."""
    own, model, others = filled(ours(), seed=5), ours(), ours(num_labels=4)
    torch.save({f"{wrap}{name}": tensor for name, tensor in own.state_dict().items()}, tmp_path / "own.pth")
    report = load_pretrained(model, tmp_path / "own.pth")
    assert not report.dropped and not report.initial
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in model.state_dict().items())

    before = copied(others.state_dict())
    report = load_pretrained(others, tmp_path / "own.pth")
    classifier = {"offset_learning.class_representation"}
    classifier |= {f"offset_learning.logit_norm.{part}" for part in ("weight", "bias")}
    assert set(report.initial) == set(report.dropped) == classifier
    for name, tensor in others.state_dict().items():
        assert torch.equal(tensor, (before if name in classifier else own.state_dict())[name]), name

    with pytest.raises(ValueError, match="expected weights of offseg_hf of the size of this .*mis-shaped"):
        load_pretrained(ours(hidden_sizes=[8, 16, 20, 48]), tmp_path / "own.pth")


def test_a_checkpoint_of_the_official_code(official_state_dict, tmp_path):
    """The authors' 150 classes start a model of 7: encoder and decoder are theirs."""
    name = "segformer-b0-offset-ade"
    torch.save({"state_dict": official_state_dict(name)}, tmp_path / "official.pth")
    expected = load_official_weights(get_preset(name), official_state_dict(name), name)[0].state_dict()
    for num_labels, kept in ((150, 0), (7, 3)):
        model = OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig.from_size("b0", num_labels=num_labels))
        report = load_pretrained(model, tmp_path / "official.pth")
        assert len(report.initial) == kept and all("offset_learning" in name for name in report.initial)
        for name_of, tensor in model.state_dict().items():
            assert name_of in report.initial or torch.equal(tensor, expected[name_of]), name_of
