"""Models on the Hub are loaded by whoever has offseg_hf, and by whoever has torch and transformers only.

One model per family, small, with image processor and card. Three processes load them, one after the other: with the
package; with `trust_remote_code=True` where importing it fails; and that again without a network, for two of them. All
see what was published, and what was pushed again.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from offseg_hf import EfficientFormerV2Backbone, EfficientFormerV2Config, MscanBackbone, MscanConfig
from tests.comparison import assert_other_outputs, assert_same_outputs
from tests.tiny import EFFICIENTFORMER, FAMILIES, LABELS, MSCAN, random_values, tiny_model, tiny_processor


pytest_plugins = ["tests.local_hub.fixtures"]

MODELS = FAMILIES
BACKBONES: dict[str, Callable[[], torch.nn.Module]] = {
    "efficientformer": lambda: EfficientFormerV2Backbone(
        EfficientFormerV2Config(**EFFICIENTFORMER, out_features=["stage2", "stage4"])
    ),
    "mscan": lambda: MscanBackbone(MscanConfig(**MSCAN, out_features=["stage2", "stage4"])),
}
CARD = "---\npipeline_tag: image-segmentation\nlibrary_name: transformers\n---\n# A small model\n"


def save(folder: Path, seed: int) -> dict[str, torch.nn.Module]:
    """Every model and backbone, as a folder to publish."""
    models = {name: tiny_model(name, seed) for name in MODELS}
    for name, build in BACKBONES.items():
        torch.manual_seed(seed)
        models[name] = random_values(build(), seed)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        if name in MODELS:
            (folder / name / "README.md").write_text(CARD)
            tiny_processor(name).save_pretrained(folder / name)
    return models


# What all three processes run; arguments: a folder for what they see, and what goes before the names of the models.
LOAD = """
import json
import sys
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

folder, prefix = sys.argv[1:]
photo = Image.open(f"{folder}/photo.png")
seen = {}


@torch.no_grad()
def run(model, inputs):
    output = model(**inputs)
    if "feature_maps" in output:
        return list(output.feature_maps)
    return [output.logits] if "logits" in output else [output.class_queries_logits, output.masks_queries_logits]


def auto(name):
    return AutoModelForUniversalSegmentation if name == "mask2former" else AutoModelForSemanticSegmentation


def load(name, revision=None):
    "Model, processor and what they make of the photo."
    model = auto(name).from_pretrained(f"{prefix}{name}", revision=revision, **trust)
    processor = AutoImageProcessor.from_pretrained(f"{prefix}{name}", revision=revision, **trust)
    return model, processor, run(model, processor(photo, return_tensors="pt"))


def look(name):
    "Loads all that is published under a name; returns model and processor."
    model, processor, tensors = load(name)
    segment = pipeline(task, model=f"{prefix}{name}", **trust)
    segments = segment(photo, subtask="semantic")
    assert segment.task == "image-segmentation"
    parts = [model, processor, segment.model, segment.image_processor]
    seen[name] = {
        "modules": sorted({type(part).__module__.split(".")[0] for part in parts}),
        "outputs": tensors,
        "segments": {part["label"]: torch.from_numpy(np.asarray(part["mask"])) for part in segments},
    }
    if not trust or name == "offseg":  # code is the same for all
        seen[name]["v1"] = load(name, "v1")[2]
    return model, processor


def look_at_backbone(name):
    backbone = AutoBackbone.from_pretrained(f"{prefix}{name}", **trust)
    seen[name] = {"outputs": run(backbone, {"pixel_values": torch.load(f"{folder}/pixel_values.pt")})}
    return backbone
"""
WITH_PACKAGE = (
    """
import offseg_hf

trust, task = {}, None
"""
    + LOAD
    + """
for name in ("offseg", "segformer", "segnext", "mask2former"):
    model, processor = look(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)  # in the place of a training
    again = f"tester/trained-{name}"
    model.push_to_hub(again)
    processor.push_to_hub(again)
for name in ("efficientformer", "mscan"):
    look_at_backbone(name)
for name in ("offseg", "segnext"):
    stages = ["stage2", "stage4"]
    encoder, info = AutoBackbone.from_pretrained(f"{prefix}{name}", out_features=stages, output_loading_info=True)
    assert not any(info.values())
    seen[f"encoder of {name}"] = {"outputs": run(encoder, {"pixel_values": torch.load(f"{folder}/pixel_values.pt")})}
torch.save(seen, f"{folder}/with-package.pt")
"""
)
WITHOUT_PACKAGE = (
    """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
trust, task = {"trust_remote_code": True}, None
"""
    + LOAD
    + """
for name in ("offseg", "segformer", "segnext", "mask2former"):
    model, processor = look(name)
    model.save_pretrained(f"{folder}/saved-{name}")
    processor.save_pretrained(f"{folder}/saved-{name}")
    model.push_to_hub(f"tester/again-{name}")
    processor.push_to_hub(f"tester/again-{name}")
for name in ("efficientformer", "mscan"):
    look_at_backbone(name).push_to_hub(f"tester/again-{name}")

for prefix in ("tester/again-", "tester/trained-"):
    for name in ("offseg", "segformer", "segnext", "mask2former"):
        seen[f"{prefix.rpartition('/')[2]}{name}"] = {"outputs": load(name)[2]}
torch.save(seen, f"{folder}/without-package.pt")
"""
)
OFFLINE = (
    WITHOUT_PACKAGE.partition("\nfor name in")[0]
    + """
task = "image-segmentation"  # which transformers asks the Hub, not the cache, for; as AutoBackbone does for any name
for name in ("offseg", "mask2former"):  # of each processor's code
    look(name)
torch.save(seen, f"{folder}/offline.pt")
"""
)
PUBLISH = """
import sys
from huggingface_hub import HfApi

for seed in (1, 2):
    for name in sys.argv[2:]:
        HfApi().create_repo(f"hvision/{name}", exist_ok=True)
        HfApi().upload_folder(repo_id=f"hvision/{name}", folder_path=f"{sys.argv[1]}/{seed}/{name}")
        HfApi().create_tag(f"hvision/{name}", tag=f"v{seed}")
"""
PROCESSES = {"with-package": WITH_PACKAGE, "without-package": WITHOUT_PACKAGE, "offline": OFFLINE}


@pytest.fixture(scope="module")
def folder(local_hub, tmp_path_factory) -> Path:
    """What was published, of two versions, and what the processes saw of it."""
    folder = tmp_path_factory.mktemp("loading")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(folder / "photo.png")
    torch.save(torch.randn(1, 3, 64, 96), folder / "pixel_values.pt")
    for seed in (1, 2):
        save(folder / str(seed), seed)
    local_hub.run(PUBLISH, folder, *MODELS, *BACKBONES)
    for process, script in PROCESSES.items():
        # Whoever has the package and whoever has not share nothing that was downloaded.
        environment = {} if process == "with-package" else {"HF_HOME": folder / "home"}
        if process == "offline":
            environment["HF_HUB_OFFLINE"] = "1"
        local_hub.run(script, folder, "hvision/", **environment)
    return folder


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory) -> dict[int, dict[str, torch.nn.Module]]:
    """What was published, by version."""
    return {seed: save(tmp_path_factory.mktemp("models"), seed) for seed in (1, 2)}


def outputs(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**inputs)
    if "feature_maps" in output:
        return list(output.feature_maps)
    return [output.logits] if "logits" in output else [output.class_queries_logits, output.masks_queries_logits]


every_model = pytest.mark.parametrize("name", MODELS)


def inputs(folder: Path, name: str) -> dict[str, torch.Tensor]:
    processor = AutoImageProcessor.from_pretrained(folder / "1" / name)
    return processor(Image.open(folder / "photo.png"), return_tensors="pt")


@pytest.mark.parametrize(
    ("process", "name"),
    [
        *((process, name) for process in ("with-package", "without-package") for name in MODELS),
        ("offline", "offseg"),
        ("offline", "mask2former"),
    ],
)
def test_model(folder, models, name, process):
    """The newest version, the tagged one, and the pipeline's segments."""
    seen = torch.load(folder / f"{process}.pt")[name]
    assert seen["modules"] == ["offseg_hf" if process == "with-package" else "transformers_modules"]
    assert_same_outputs(seen["outputs"], outputs(models[2][name], inputs(folder, name)))
    if process == "with-package" or name == "offseg":
        assert_same_outputs(seen["v1"], outputs(models[1][name], inputs(folder, name)))
        assert_other_outputs(seen["outputs"], seen["v1"])
    assert set(seen["segments"]) <= set(LABELS.values()) and len(seen["segments"]) > 0
    assert all(mask.shape == (120, 160) for mask in seen["segments"].values())


@pytest.mark.parametrize("process", ["with-package", "without-package"])
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(folder, models, name, process):
    seen = torch.load(folder / f"{process}.pt")[name]
    inputs = {"pixel_values": torch.load(folder / "pixel_values.pt")}
    assert_same_outputs(seen["outputs"], outputs(models[2][name], inputs))


@pytest.mark.parametrize(("name", "backbone"), [("offseg", "efficientformer"), ("segnext", "mscan")])
def test_encoder_of_a_model_is_a_backbone(folder, models, name, backbone):
    seen = torch.load(folder / "with-package.pt")[f"encoder of {name}"]
    encoder = BACKBONES[backbone]().eval()
    encoder.encoder.load_state_dict(models[2][name].encoder.state_dict())
    assert_same_outputs(seen["outputs"], outputs(encoder, {"pixel_values": torch.load(folder / "pixel_values.pt")}))


@every_model
def test_what_was_loaded_can_be_pushed_again(folder, local_hub, name):
    """With its code, from where the package is not installed, and it is the same there."""
    seen = torch.load(folder / "without-package.pt")
    assert_same_outputs(seen[f"again-{name}"]["outputs"], seen[name]["outputs"])
    code = {path.name for path in (folder / "2" / name).glob("*.py")}
    assert code and code == {path.name for path in (folder / f"saved-{name}").glob("*.py")}
    for repository in (f"tester/again-{name}", f"tester/trained-{name}"):
        files = local_hub.hub.repository("models", repository, local_hub.token).resolve("main").files
        assert code == {path for path in files if path.endswith(".py")}
        config = json.loads(local_hub.hub.blobs.read(files["config.json"]))
        assert all("--" not in reference for reference in config["auto_map"].values())


@every_model
def test_what_was_trained_has_its_own_code(folder, models, name):
    """It works where the package is not installed, and is not what was published."""
    trained = deepcopy(models[2][name])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0.9)
    expected = outputs(trained, inputs(folder, name))
    assert_same_outputs(torch.load(folder / "without-package.pt")[f"trained-{name}"]["outputs"], expected)
