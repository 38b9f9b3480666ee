"""The models compute what the official code computes: README.md says what the goldens are."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature, ImageSegmentationPipeline, PreTrainedModel, pipeline

from offseg_hf.conversion.convert import build_model, load_official_weights
from offseg_hf.zoo.presets import PRESETS, get_preset
from tests.parity.conftest import converted, fused
from tests.parity.fill import image, label_maps, official_keys, official_state_dict, rgb_image


GOLDENS = Path(__file__).parent / "goldens"
RAW = sorted(path.stem for path in GOLDENS.glob("*.raw-*.npz"))
SEMANTIC = [name for name in RAW if not name.startswith("mask2former")]
UNIVERSAL = [name for name in RAW if name.startswith("mask2former")]
IMAGES = sorted(path.stem for path in GOLDENS.glob("*.image-*.npz"))
LOSSES = sorted(path.name for path in GOLDENS.glob("*.loss-*.json.gz"))

# The official code in float32 is within 5e-5 of itself in float64, on logits up to 6; ours was seen within 4e-5 of it.
TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}


def load(name: str) -> tuple[dict[str, np.ndarray], str, tuple[int, int]]:
    """The arrays of a golden, its preset and the (height, width) of its image."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    preset, size = name.replace(".raw-", ":").replace(".image-", ":").split(":")
    height, width = size.split("x")
    return arrays, preset, (int(height), int(width))


def assert_samples_close(actual: torch.Tensor, golden: np.ndarray, channel_step: int = 1) -> None:
    """Compare the pixels that the golden holds of a map; their distance follows from the widths."""
    step = -(-actual.shape[-1] // golden.shape[-1])
    torch.testing.assert_close(actual[:, ::channel_step, ::step, ::step], torch.from_numpy(golden), **TOLERANCE)


def slow_but(fast: tuple[str, ...], names: list[str]) -> list:
    """The names as parameters; the tests of all but the `fast` ones are slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", SEMANTIC)
def test_features_and_logits(name):
    assert_features_and_logits(name, converted)


# One of each family: that a fused model is equal to the one it is made of is tested for every kind of module elsewhere
# (tests/models, test_modes.py), so that the others repeat the goldens above.
FUSED = ("offseg-t-ade.raw-256x256", "segformer-b0-offset-ade.raw-512x512", "segnext-t-offset-context59.raw-480x480")


@pytest.mark.parametrize("name", slow_but(FUSED, SEMANTIC))
def test_features_and_logits_of_fused_models(name):
    assert_features_and_logits(name, fused)


@torch.no_grad()
def assert_features_and_logits(name: str, model_of: Callable[[str], PreTrainedModel]) -> None:
    golden, preset, size = load(name)
    model = model_of(preset)
    pixel_values = torch.from_numpy(image(f"{preset}:{size[0]}x{size[1]}", (len(golden["argmax"]), 3, *size)))

    pixel_features = []
    hook = model.offset_learning.register_forward_pre_hook(lambda module, inputs: pixel_features.extend(inputs))
    output = model(pixel_values, output_hidden_states=True)
    hook.remove()
    assert_stages_close(output.hidden_states, golden)
    assert_samples_close(*pixel_features, golden["decoder"], channel_step=16)
    assert_samples_close(output.logits, golden["logits"])
    agreement = (output.logits.argmax(dim=1).numpy() == golden["argmax"]).mean()
    assert agreement >= 0.999


@pytest.mark.slow  # what becomes of them in a photo is not
@torch.no_grad()
@pytest.mark.parametrize("name", UNIVERSAL)
def test_queries(name):
    """Features, and classes and masks of the queries before the first and after the last decoder layer."""
    golden, preset, size = load(name)
    model, processor = converted(preset), get_preset(preset).image_processor()
    pixel_values = torch.from_numpy(image(f"{preset}:{size[0]}x{size[1]}", (len(golden["argmax"]), 3, *size)))

    output = model(pixel_values, output_hidden_states=True, output_auxiliary_logits=True)
    assert_stages_close(output.encoder_hidden_states, golden)
    for layer, prediction in ((0, output.auxiliary_logits[0]), (9, output)):
        class_logits = torch.from_numpy(golden[f"class_queries_logits_{layer}"])
        torch.testing.assert_close(prediction["class_queries_logits"], class_logits, **TOLERANCE)
        assert_samples_close(prediction["masks_queries_logits"], golden[f"masks_queries_logits_{layer}"], 8)

    results = processor.post_process_semantic_segmentation(output, return_segmentation_scores=True)
    assert_samples_close(torch.stack([result["segmentation_scores"] for result in results]), golden["semantic"])
    argmax = torch.stack([result["segmentation"] for result in results])[:, ::4, ::4].numpy()
    assert (argmax == golden["argmax"]).mean() >= 0.999


def assert_stages_close(feature_maps: tuple[torch.Tensor, ...], golden: dict[str, np.ndarray]) -> None:
    assert len(feature_maps) == 4
    for stage, feature_map in enumerate(feature_maps):
        assert_samples_close(feature_map, golden[f"stage{stage}"], channel_step=8)


@pytest.mark.parametrize("name", IMAGES)
def test_pixel_values(name):
    """What the model gets of a photo: resize, normalization."""
    golden, preset, size = load(name)
    pixel_values = inputs_of(preset, size).pixel_values
    assert pixel_values.shape == tuple(golden["pixel_shape"])
    assert_samples_close(pixel_values, golden["pixel_values"])


def photo_of(preset: str, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rgb_image(f"{preset}:{size[0]}x{size[1]}", *size))


def inputs_of(preset: str, size: tuple[int, int]) -> BatchFeature:
    return get_preset(preset).image_processor()(photo_of(preset, size), return_tensors="pt")


# A larger photo of the same proportions differs in `test_pixel_values`; from there on it is the same windows.
LARGE = "offseg-t-ade.image-900x1200"


@torch.no_grad()
@pytest.mark.parametrize("name", slow_but(tuple(name for name in IMAGES if name != LARGE), IMAGES))
def test_photo(name):
    """From the photo to logits of its size: windows, averaging."""
    golden, preset, size = load(name)
    processor = get_preset(preset).image_processor()
    output = converted(preset)(**inputs_of(preset, size))
    (result,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[size], return_segmentation_scores=True
    )
    assert_samples_close(result["segmentation_scores"][None], golden["logits"])
    assert_label_map(result["segmentation"].numpy(), golden)


# The smallest photo that is cut into windows: the others repeat it after `test_photo`.
@pytest.mark.parametrize("name", slow_but(("segnext-t-offset-context59.image-333x500",), IMAGES))
def test_stock_pipeline(name, tmp_path):
    """transformers' own pipeline gives the official label map. Lists and batches are tested with small models too
    (tests/models/test_image_processing_*.py)."""
    golden, preset, size = load(name)
    segments = stock_pipeline(preset, tmp_path)(photo_of(preset, size), **subtask_of(preset))
    assert_label_map(as_label_map(segments, converted(preset).config.label2id), golden)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_stock_pipeline_in_batches(name, tmp_path):
    golden, preset, size = load(name)
    for segments in stock_pipeline(preset, tmp_path)([photo_of(preset, size)] * 2, batch_size=2, **subtask_of(preset)):
        assert_label_map(as_label_map(segments, converted(preset).config.label2id), golden)


def stock_pipeline(preset: str, folder: Path) -> ImageSegmentationPipeline:
    """With model and image processor as they were saved."""
    converted(preset).save_pretrained(folder)
    get_preset(preset).image_processor().save_pretrained(folder)
    return pipeline("image-segmentation", model=str(folder))


def subtask_of(preset: str) -> dict[str, str]:
    return {"subtask": "semantic"} if preset.startswith("mask2former") else {}


def as_label_map(segments: list[dict], label2id: dict[str, int]) -> np.ndarray:
    """The masks of the pipeline as one map; they must cover every pixel once."""
    masks = np.stack([np.asarray(segment["mask"]) == 255 for segment in segments])
    assert (masks.sum(axis=0) == 1).all()
    return np.array([label2id[segment["label"]] for segment in segments])[masks.argmax(axis=0)]


def assert_label_map(actual: np.ndarray, golden: dict[str, np.ndarray]) -> None:
    labels = golden["labels"]
    sure = np.unpackbits(golden["sure"], axis=1, count=labels.shape[1]).astype(bool)
    assert actual.shape == labels.shape
    assert np.array_equal(actual[sure], labels[sure])
    assert (actual == labels).mean() >= 0.999


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(name):
    """A training step, without what is random in it: the loss, and the norm of every parameter's gradient."""
    golden = json.loads(gzip.decompress((GOLDENS / name).read_bytes()))
    preset = golden["image"].split(":")[0]
    model, fitted = load_official_weights(get_preset(preset), official_state_dict(preset), preset)
    model.train(golden["mode"] == "train")
    batch, _, height, width = golden["shape"]
    labels = label_maps(golden["image"], (batch, height, width), golden["num_classes"])
    loss = model(torch.from_numpy(image(golden["image"], golden["shape"])), labels=torch.from_numpy(labels)).loss
    loss.backward()

    assert loss.item() == pytest.approx(golden["loss_ce"], rel=1e-5)
    norms = dict.fromkeys(golden["grad_norm"], 0)
    for name, parameter in model.named_parameters():  # several of ours can come from one of theirs
        norms[fitted.origins[name]] = math.hypot(norms[fitted.origins[name]], parameter.grad.norm().item())
    assert norms.keys() == golden["grad_norm"].keys()
    # Absolute: the keys' biases shift every logit of a softmax alike, so that their gradients are rounding errors.
    assert norms == pytest.approx(golden["grad_norm"], rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    """As many parameters as the official model has, without the classifier of its base class, which it never calls."""
    keys = official_keys()[name]
    buffers = ("running_mean", "running_var", "num_batches_tracked", "init_pos", "hamming_lowpass", "hamming_highpass")
    buffers += ("relative_position_index",)
    unused = ("attention_biases", "attention_bias_idxs", "attention_bias_idxs_seg", "conv_seg.weight", "conv_seg.bias")
    official = sum(np.prod(shape, dtype=int) for key, (_, shape) in keys.items() if not key.endswith(buffers + unused))
    with torch.device("meta"):
        model = build_model(get_preset(name))
    assert model.num_parameters() == official == get_preset(name).num_parameters
