"""Models on the Hub are loaded by whoever has offseg_hf, and by whoever has torch and transformers only.

One model per family, small, with image processor and card, in two groups, of which one is slow. Three processes load
those of a group, one after the other: with the package; with `trust_remote_code=True` where importing it fails; and,
for the first group, that again without a network. All see what was published, and what was pushed again.
"""

import json
from collections.abc import Callable
from functools import cache
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

# Models and backbones that are published and loaded together: each kind of image processor is in the first.
GROUPS = (("offseg", "mask2former", "efficientformer"), ("segformer", "segnext", "mscan"))
BACKBONES: dict[str, Callable[[], torch.nn.Module]] = {
    "efficientformer": lambda: EfficientFormerV2Backbone(
        EfficientFormerV2Config(**EFFICIENTFORMER, out_features=["stage2", "stage4"])
    ),
    "mscan": lambda: MscanBackbone(MscanConfig(**MSCAN, out_features=["stage2", "stage4"])),
}
CARD = "---\npipeline_tag: image-segmentation\nlibrary_name: transformers\n---\n# A small model\n"


def build(name: str, seed: int) -> torch.nn.Module:
    if name in FAMILIES:
        return tiny_model(name, seed)
    torch.manual_seed(seed)
    return random_values(BACKBONES[name](), seed)


def save(folder: Path, names: tuple[str, ...], seed: int) -> None:
    """Models and backbones as folders to publish."""
    for name in names:
        build(name, seed).save_pretrained(folder / name)
        if name in FAMILIES:
            (folder / name / "README.md").write_text(CARD)
            tiny_processor(name).save_pretrained(folder / name)


# What all three processes run; arguments: a folder for what they see, what goes before names, and the names.
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

folder, prefix, *names = sys.argv[1:]
models = [name for name in names if name in ("offseg", "segformer", "segnext", "mask2former")]
backbones = [name for name in names if name not in models]
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
for name in models:
    model, processor = look(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)  # in the place of a training
    again = f"tester/trained-{name}"
    model.push_to_hub(again)
    processor.push_to_hub(again)
for name in backbones:
    look_at_backbone(name)
for name in {"offseg", "segnext"}.intersection(models):
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
for name in models:
    model, processor = look(name)
    model.save_pretrained(f"{folder}/saved-{name}")
    processor.save_pretrained(f"{folder}/saved-{name}")
    model.push_to_hub(f"tester/again-{name}")
    processor.push_to_hub(f"tester/again-{name}")
for name in backbones:
    look_at_backbone(name).push_to_hub(f"tester/again-{name}")

for prefix in ("tester/again-", "tester/trained-"):
    for name in models:
        seen[f"{prefix.rpartition('/')[2]}{name}"] = {"outputs": load(name)[2]}
torch.save(seen, f"{folder}/without-package.pt")
"""
)
OFFLINE = (
    WITHOUT_PACKAGE.partition("\nfor name in")[0]
    + """
task = "image-segmentation"  # which transformers asks the Hub, not the cache, for; as AutoBackbone does for any name
for name in models:
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
def folder_of(local_hub, tmp_path_factory) -> Callable[[str], Path]:
    """What was published of a model's group, of two versions, and what the processes saw of it."""

    @cache
    def publish_and_load(group: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("loading")
        pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "photo.png")
        torch.save(torch.randn(1, 3, 64, 96), folder / "pixel_values.pt")
        for seed in (1, 2):
            save(folder / str(seed), group, seed)
        local_hub.run(PUBLISH, folder, *group)
        for process, script in PROCESSES.items():
            # Whoever has the package and whoever has not share nothing that was downloaded.
            environment = {} if process == "with-package" else {"HF_HOME": folder / "home"}
            if process == "offline":
                if group != GROUPS[0]:
                    continue
                environment["HF_HUB_OFFLINE"] = "1"
            local_hub.run(script, folder, "hvision/", *group, **environment)
        return folder

    return lambda name: next(publish_and_load(group) for group in GROUPS if name in group)


@pytest.fixture
def folder(folder_of, name) -> Path:
    return folder_of(name)


def outputs(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**inputs)
    if "feature_maps" in output:
        return list(output.feature_maps)
    return [output.logits] if "logits" in output else [output.class_queries_logits, output.masks_queries_logits]


def slow_but_first(names: tuple[str, ...]) -> list:
    """The names as parameters; the tests of those that are not in the first group are slow."""
    return [name if name in GROUPS[0] else pytest.param(name, marks=pytest.mark.slow) for name in names]


every_model = pytest.mark.parametrize("name", slow_but_first(FAMILIES))


def inputs(folder: Path, name: str) -> dict[str, torch.Tensor]:
    processor = AutoImageProcessor.from_pretrained(folder / "1" / name)
    return processor(Image.open(folder / "photo.png"), return_tensors="pt")


@pytest.mark.parametrize(
    ("process", "name"),
    [
        pytest.param(process, name, marks=[] if name in GROUPS[0] else pytest.mark.slow)
        for process in PROCESSES
        for name in FAMILIES
        if process != "offline" or name in GROUPS[0]
    ],
)
def test_model(folder, name, process):
    """The newest version, the tagged one, and the pipeline's segments."""
    seen = torch.load(folder / f"{process}.pt")[name]
    assert seen["modules"] == ["offseg_hf" if process == "with-package" else "transformers_modules"]
    assert_same_outputs(seen["outputs"], outputs(build(name, 2), inputs(folder, name)))
    if process == "with-package" or name == "offseg":
        assert_same_outputs(seen["v1"], outputs(build(name, 1), inputs(folder, name)))
        assert_other_outputs(seen["outputs"], seen["v1"])
    assert set(seen["segments"]) <= set(LABELS.values()) and len(seen["segments"]) > 0
    assert all(mask.shape == (120, 160) for mask in seen["segments"].values())


@pytest.mark.parametrize("process", ["with-package", "without-package"])
@pytest.mark.parametrize("name", slow_but_first(tuple(BACKBONES)))
def test_backbone(folder, name, process):
    seen = torch.load(folder / f"{process}.pt")[name]
    inputs = {"pixel_values": torch.load(folder / "pixel_values.pt")}
    assert_same_outputs(seen["outputs"], outputs(build(name, 2), inputs))


@pytest.mark.parametrize(
    ("name", "backbone"), [("offseg", "efficientformer"), pytest.param("segnext", "mscan", marks=pytest.mark.slow)]
)
def test_encoder_of_a_model_is_a_backbone(folder, name, backbone):
    seen = torch.load(folder / "with-package.pt")[f"encoder of {name}"]
    encoder = BACKBONES[backbone]().eval()
    encoder.encoder.load_state_dict(build(name, 2).encoder.state_dict())
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
def test_what_was_trained_has_its_own_code(folder, name):
    """It works where the package is not installed, and is not what was published."""
    trained = build(name, 2)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0.9)
    expected = outputs(trained, inputs(folder, name))
    assert_same_outputs(torch.load(folder / "without-package.pt")[f"trained-{name}"]["outputs"], expected)
