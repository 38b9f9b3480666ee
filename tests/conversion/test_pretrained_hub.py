"""Training starts from what the Hub has: files of the published names and shapes, by the classes that published them.

Each family publishes and loads in one process of its own, a client of the Hub of the tests; what the models compute
comes back in a file.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from offseg_hf import load_pretrained
from offseg_hf.models.configuration_offset_segnext import MscanConfig
from offseg_hf.models.modeling_offset_segnext import MscanBackbone
from tests.parity.fill import image, official_state_dict


pytest_plugins = ["tests.local_hub.fixtures"]

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"

PREAMBLE = """
import sys
from dataclasses import asdict
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from safetensors.torch import load_file
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
)

from offseg_hf import load_pretrained

torch.manual_seed(0)
pixel_values = torch.randn(1, 3, 224, 256)  # Swin's windows want 224 at least


@torch.no_grad()
def unlike(model, seed=0):
    "The model, in eval mode and with values in every tensor that cannot be taken for one another."
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "criterion.empty_weight":
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.3 * noise.abs())
            else:
                tensor.add_(0.1 * noise)
    return model.eval()


def as_published(model):
    "The weights under the names that the model is published with."
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def publish_only_bin(weights, name):
    "In the place of what is there."
    with TemporaryDirectory() as folder:
        torch.save(weights, f"{folder}/pytorch_model.bin")
        addition = CommitOperationAdd("pytorch_model.bin", f"{folder}/pytorch_model.bin")
        HfApi().create_commit(name, [CommitOperationDelete("model.safetensors"), addition], commit_message="old form")
"""

SEGFORMER = (
    PREAMBLE
    + """
from offseg_hf import OffsetSegformerConfig, OffsetSegformerForSemanticSegmentation


@torch.no_grad()
def stages(model):
    return model.segformer(pixel_values, output_hidden_states=True).hidden_states


def stock(model_class, num_labels, seed=0):
    model = unlike(model_class(SegformerConfig(num_labels=num_labels)), seed)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # as in the official code
    return model


def ours():
    torch.manual_seed(7)
    return OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig.from_size("b0", num_labels=5)).eval()


results = {}
name = "nvidia/mit-b0"
other = stock(SegformerForImageClassification, 1000, seed=1)
other.push_to_hub(name)
HfApi().create_tag(name, tag="safetensors")
model = stock(SegformerForImageClassification, 1000)
publish_only_bin(as_published(model), name)
for revision, published in ((None, model), ("safetensors", other)):
    start = ours()
    report = asdict(load_pretrained(start, name, revision=revision))
    with torch.no_grad():
        results[f"mit-b0 {revision}"] = {
            "report": report,
            "keys": sorted(as_published(published)),
            "stages": (start.encode(pixel_values), stages(published)),
            "kept": {key: value for key, value in start.state_dict().items() if key in report["initial"]},
            "fresh": ours().state_dict(),
        }

name = "nvidia/segformer-b0-finetuned-ade-512-512"
model = stock(SegformerForSemanticSegmentation, 150)
model.push_to_hub(name)
start = ours()
report = asdict(load_pretrained(start, name))
model.decode_head.classifier = torch.nn.Identity()
with torch.no_grad():
    feature_maps = start.encode(pixel_values)
    decoder = start.pixel_decoder
    laterals = [conv(feature_map) for conv, feature_map in zip(decoder.lateral_convs, feature_maps)]  # not rectified
    size = laterals[0].shape[-2:]
    laterals = [torch.nn.functional.interpolate(lateral, size=size, mode="bilinear") for lateral in laterals]
    pixel_features = decoder.output_conv(torch.cat(laterals, dim=1)).relu()
    results["segformer-b0"] = {
        "report": report,
        "keys": sorted(as_published(stock(SegformerForSemanticSegmentation, 150))),
        "stages": (feature_maps, stages(model)),
        "decoder": (pixel_features, model.decode_head(stages(model))),
    }
torch.save(results, sys.argv[1])
"""
)

MASK2FORMER = (
    PREAMBLE
    + """
from offseg_hf import OffsetMask2FormerConfig, OffsetMask2FormerForUniversalSegmentation

TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
STAGES = [f"stage{i}" for i in range(1, 5)]


def ours(**overrides):
    torch.manual_seed(7)
    config = OffsetMask2FormerConfig.from_size("swin-t", start_without_offsets=True, **overrides)
    return OffsetMask2FormerForUniversalSegmentation(config).eval()


def outputs(model):
    outputs = model(pixel_values)
    return outputs.class_queries_logits, outputs.masks_queries_logits


results = {}
name = "microsoft/swin-tiny-patch4-window7-224"
model = unlike(SwinForImageClassification(SwinConfig(num_labels=1000, **TINY)))
model.push_to_hub(name)
weights = as_published(model)
tables = [key for key in weights if key.endswith("relative_position_bias_table")]
for key in tables:  # no longer among the weights, but in the published files
    weights[key.replace("bias_table", "index")] = torch.full((49, 49), 12345)
publish_only_bin(weights, name)
start = ours(num_labels=5)
report = asdict(load_pretrained(start, name))
with torch.no_grad():
    encoder = start.model.pixel_level_module.encoder
    results["swin"] = {
        "report": report,
        "keys": sorted(weights),
        "stages": [
            swin(pixel_values, output_hidden_states=True).reshaped_hidden_states for swin in (encoder.swin, model.swin)
        ],
        "fresh": list(ours(num_labels=5).state_dict()),
    }

name = "facebook/mask2former-swin-tiny-ade-semantic"
swin = SwinConfig(drop_path_rate=0.3, out_features=STAGES, **TINY)
model = unlike(Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=150)))
model.push_to_hub(name)
keys = sorted(as_published(model))
with torch.no_grad():
    expected = outputs(model)
    del model
    for num_labels in (150, 5):
        start = ours(num_labels=num_labels)
        report = asdict(load_pretrained(start, name))
        results[f"mask2former {num_labels}"] = {
            "report": report,
            "keys": keys,
            "outputs": (outputs(start), expected),
        }
    start = OffsetMask2FormerForUniversalSegmentation.from_pretrained(name, start_without_offsets=True).eval()
    results["from_pretrained"] = {"outputs": (outputs(start), expected)}
torch.save(results, sys.argv[1])
"""
)


@pytest.fixture(scope="module")
def segformer(local_hub, tmp_path_factory) -> dict:
    return run(local_hub, SEGFORMER, tmp_path_factory.mktemp("segformer"))


@pytest.fixture(scope="module")
def mask2former(local_hub, tmp_path_factory) -> dict:
    return run(local_hub, MASK2FORMER, tmp_path_factory.mktemp("mask2former"))


def run(hub, script: str, folder: Path) -> dict:
    hub.run(script, folder / "results.pt")
    return torch.load(folder / "results.pt")


def assert_all_close(pair) -> None:
    ours, stock = pair
    assert len(ours) == len(stock)
    for actual, expected in zip(ours, stock):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("revision", [None, "safetensors"])
def test_mit(segformer, revision):
    """Of the newest revision there is `pytorch_model.bin` only, as of the published ones."""
    result = segformer[f"mit-b0 {revision}"]
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in result["keys"]
    assert_all_close(result["stages"])
    report = result["report"]
    assert sorted(report["dropped"]) == ["classifier.bias", "classifier.weight"]
    assert report["used"] == len(result["keys"]) - 2
    fresh = result["fresh"]
    is_counter = re.compile(r".*num_batches_tracked").fullmatch
    assert set(report["initial"]) == {key for key in fresh if not key.startswith("segformer.") and not is_counter(key)}
    for key, value in result["kept"].items():
        assert torch.equal(value, fresh[key]), key


def test_segformer(segformer):
    """Of the decoder all but the norms of its first layers, which SegFormer does not have; not the classifier."""
    result = segformer["segformer-b0"]
    assert "decode_head.linear_c.0.proj.weight" in result["keys"]
    assert_all_close(result["stages"])
    assert_all_close(([result["decoder"][0]], [result["decoder"][1]]))
    report = result["report"]
    norms = [f"pixel_decoder.lateral_convs.{i}.norm" for i in range(4)]
    kept = {f"{norm}.{name}" for norm in norms for name in ("weight", "running_mean", "running_var")}
    assert {key for key in report["initial"] if not key.startswith("offset_learning.")} == kept
    dropped = {key for key in report["dropped"] if not key.endswith("num_batches_tracked")}
    assert dropped == {"decode_head.classifier.weight", "decode_head.classifier.bias"}


@pytest.mark.slow
def test_swin(mask2former):
    result = mask2former["swin"]
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in result["keys"]
    assert_all_close(result["stages"])
    report = result["report"]
    classifier = {"classifier.bias", "classifier.weight", "swin.layernorm.bias", "swin.layernorm.weight"}
    assert {key for key in report["dropped"] if not key.endswith("relative_position_index")} == classifier
    assert report["used"] == len(result["keys"]) - len(report["dropped"])
    assert set(report["initial"]) == {key for key in result["fresh"] if ".encoder.swin." not in key}


@pytest.mark.slow
def test_mask2former(mask2former):
    """All but the alignment: while that does nothing, the outputs are those of the published model."""
    result = mask2former["mask2former 150"]
    keys = result["keys"]
    assert "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight" in keys
    assert_all_close(result["outputs"])
    report = result["report"]
    assert report["initial"] and all("alignment." in key for key in report["initial"])
    assert report["used"] == len(keys) - len(report["dropped"])
    assert all(key == "criterion.empty_weight" or ".swin.layernorm." in key for key in report["dropped"])


@pytest.mark.slow
def test_mask2former_of_other_classes(mask2former):
    """The classifier stays, too; the masks are those of the published model."""
    result = mask2former["mask2former 5"]
    ours, stock = result["outputs"]
    assert ours[0].shape[-1] == 6
    torch.testing.assert_close(ours[1], stock[1], rtol=1e-4, atol=1e-4)
    kept = {key for key in result["report"]["initial"] if "alignment." not in key}
    assert kept == {"class_predictor.weight", "class_predictor.bias"}


@pytest.mark.slow
def test_from_pretrained_of_a_mask2former(mask2former):
    assert_all_close(mask2former["from_pretrained"]["outputs"])


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_mscan_of_openmmlab(tmp_path, is_wrapped):
    """openmmlab publishes files, outside of the Hub: those of the golden's encoder give the golden's features."""
    preset, size = "segnext-t-offset-ade", 512
    weights = {key.removeprefix("backbone."): x for key, x in official_state_dict(preset).items() if "backbone" in key}
    weights |= {"head.weight": torch.ones(1000, 256), "head.bias": torch.ones(1000)}
    file = tmp_path / "mscan_t_20230227-119e8c9f.pth"
    torch.save({"meta": {}, "state_dict": weights} if is_wrapped else weights, file)

    model = MscanBackbone(MscanConfig.from_size("t", out_indices=[1, 2, 3, 4])).eval()
    report = load_pretrained(model, file)
    assert {"head.weight", "head.bias"} <= set(report.dropped) and report.initial == []
    golden = np.load(GOLDENS / f"{preset}.raw-{size}x{size}.npz")
    pixel_values = torch.from_numpy(image(f"{preset}:{size}x{size}", (len(golden["argmax"]), 3, size, size)))
    with torch.no_grad():
        feature_maps = model(pixel_values).feature_maps
    for i, feature_map in enumerate(feature_maps):
        expected = torch.from_numpy(golden[f"stage{i}"])
        step = feature_map.shape[-1] // expected.shape[-1]
        torch.testing.assert_close(feature_map[:, ::8, ::step, ::step], expected, rtol=1e-3, atol=2e-4)


ERRORS = """
import os
import sys
from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config, load_pretrained

model = EfficientFormerV2Backbone(EfficientFormerV2Config.from_size("s0"))
for arguments in sys.argv[1:]:
    source, revision, token = arguments.split(" ")
    os.environ["HF_TOKEN"] = token
    try:
        load_pretrained(model, source, revision or None)
        print("loaded")
    except FileNotFoundError as error:
        print(error)
"""
RESTRICTED = """
from huggingface_hub import HfApi

api = HfApi()
for kind in ("private", "gated", "without-weights"):
    api.create_repo(f"timm/{kind}", private=kind == "private")
    api.upload_file(repo_id=f"timm/{kind}", path_or_fileobj=b"{}", path_in_repo="config.json")
api.update_repo_settings("timm/gated", gated="manual")
"""


def test_what_is_not_there_is_told_in_a_line(local_hub):
    local_hub.run(RESTRICTED)
    what = (
        "expected a checkpoint file, a folder with model.safetensors or pytorch_model.bin or a repository on the Hub"
    )
    not_found = f"{what}, got none of them: check the name, and if the repository is private, log in"
    log_in = "log in (`hf auth login`, or HF_TOKEN)"
    gated = f"expected access to a gated repository, got none: accept its terms at {local_hub.endpoint}/timm/gated"
    neither = "expected a repository with model.safetensors or pytorch_model.bin, got one with neither"
    cases = {
        "timm/missing  ": not_found,
        f"timm/missing  {local_hub.token}": not_found,
        "timm/private  ": not_found,
        f"timm/private  {local_hub.token}": neither,
        "timm/gated  ": f"{gated}, and {log_in}",
        f"timm/gated  {local_hub.stranger_token}": f"{gated}, and {log_in}",
        f"timm/gated  {local_hub.token}": neither,
        "timm/without-weights v9 ": "expected a branch, tag or commit of the repository, got revision 'v9'",
        "timm/without-weights main ": f"{neither} at revision main",
        "timm/without-weights  hf_invented": "expected an answer from the Hub, got 401 (Invalid credentials in",
        "weights/b0.pth  ": not_found,
        "no/such/folder  ": f"{what}, got none of them",
    }
    lines = local_hub.run(ERRORS, *cases).splitlines()
    assert len(lines) == len(cases)
    for line, (case, message) in zip(lines, cases.items()):
        assert line.startswith(f"{case.split(' ')[0]}: {message}")


@pytest.mark.slow
def test_without_a_network(local_hub):
    """The client goes on trying for 20 seconds."""
    (line,) = local_hub.run(ERRORS, "timm/any  ", HF_ENDPOINT="http://127.0.0.1:9").splitlines()
    assert re.match(
        r"timm/any: expected .*, got no file or folder, and no answer from the Hub: connect to it \(", line
    )
