"""The code of the documents runs, and its commands are ones that there are."""

import json
import re
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    BitImageProcessorPil,
    Dinov2Model,
    SegformerConfig,
    SegformerImageProcessorPil,
)

from offseg_hf import register
from offseg_hf.cli import app
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.training.recipe import load_recipe
from offseg_hf.zoo.presets import PRESETS
from tests import semantic_models
from tests.backbones import backbone_config
from tests.docs.documents import DOCUMENTS, ROOT, blocks, command_lines, inline_commands, name_of
from tests.inference.videos import scenes, write_video
from tests.processes import run_python
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor


WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]
SLOW = ("docs/deploy.md",)  # exports a model
# Shorter trainings; everything else runs as it is written.
CHANGED = {
    "docs/trainer.md": {
        "num_train_epochs=40,": "num_train_epochs=1, use_cpu=True,",
        "per_device_train_batch_size=8": "per_device_train_batch_size=2",
        "crop_size=(256, 256)": "crop_size=(64, 64)",
        '"shortest_edge": 256, "longest_edge": 1024': '"shortest_edge": 64, "longest_edge": 128',
        "num_train_epochs=10,": "num_train_epochs=1, use_cpu=True,",
        "n_trials=20": "n_trials=2",
    }
}
if find_spec("optuna") is None:  # the rest of that code runs nevertheless
    CHANGED["docs/trainer.md"]["search.hyperparameter_search("] = "dict("


def save_stock(folder: Path, name: str) -> None:
    """A small model of transformers with its image processor."""
    semantic_models.small_model(name).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """What the documents name, in folders of these names: models, photos, data sets. Models are small ones.

    Where a folder is, nothing is asked of the Hub.
    """
    register()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("things")
    save_stock(folder / "nvidia/segformer-b0-finetuned-ade-512-512", "segformer")
    save_stock(folder / "openmmlab/upernet-convnext-tiny", "upernet-convnext")
    b0 = AutoModelForSemanticSegmentation.from_config(SegformerConfig(num_labels=19))
    b0.save_pretrained(folder / "nvidia/segformer-b0-finetuned-cityscapes-1024-1024")
    Dinov2Model(backbone_config("dinov2")).save_pretrained(folder / "facebook/dinov2-small")
    BitImageProcessorPil().save_pretrained(folder / "facebook/dinov2-small")
    save_small_model(folder / "offseg-t-ade")
    tiny_model("mask2former").save_pretrained(folder / "mask2former-swin-t-offset-ade")
    tiny_processor("mask2former").save_pretrained(folder / "mask2former-swin-t-offset-ade")

    photo, label_map = render_scene(0, (60, 40))
    photo.save(folder / "photo.jpg")
    write_video(folder / "drive.mp4", scenes(3))
    write_scenes(folder / "scenes", train=2, val=1, size=(96, 64))
    for kind, image in (("images", photo), ("masks", Image.fromarray((label_map % 2).astype(np.uint8)))):
        for split in ("train", "val"):
            (folder / "my_photos" / kind / split).mkdir(parents=True)
            image.save(folder / "my_photos" / kind / split / f"{split}.png")
    (folder / "my_photos" / "classes.json").write_text(json.dumps({"classes": ["road", "crack"]}))
    return folder


@pytest.mark.parametrize(
    "document",
    [pytest.param(d, marks=[pytest.mark.slow] * (name_of(d) in SLOW), id=name_of(d)) for d in WITH_PYTHON],
)
def test_python_runs(things, tmp_path, document):
    """All blocks of a document, one after the other, in a process of their own that has the things by their names."""
    code = "\n".join(blocks(document, "python"))
    for before, after in CHANGED.get(name_of(document), {}).items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    shutil.copytree(things, tmp_path / "things")
    run_python(code, cwd=tmp_path / "things", HF_HOME=str(tmp_path / "home"))


def test_every_block_is_looked_at():
    """A block that is none of these languages is one that nobody reads."""
    languages = {
        language
        for document in DOCUMENTS
        for language in re.findall(r"^ *```(.+)$", document.read_text(), re.MULTILINE)
    }
    assert languages <= {"python", "bash", "json", "yaml", "text", "bibtex"}
    for document in DOCUMENTS:
        for block in blocks(document, "json"):
            json.loads(block)


# -- commands ---------------------------------------------------------------------------------------------------------


def command_of(words: list[str]) -> tuple[typer.core.TyperCommand, list[str], typer.Context]:
    """Which command the words after `offseg` are for, and its own words."""
    command, name = typer.main.get_command(app), "offseg"
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, words, parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    return command, words, context


def check_offseg(words: list[str]) -> None:
    """The command takes these words: parsed as it does, and not run. Settings of recipes are real ones."""
    command, words, parent = command_of(words)
    context = command.make_context(command.name, words, parent=parent)
    if command.name == "finetune":
        load_recipe("finetune", ["data.source=x", "model.checkpoint=x", *(context.params["settings"] or [])])
    if command.name in ("train", "recipe"):
        arguments = [context.params["name"], *(context.params["settings"] or [])]
        names = [argument for argument in arguments if "=" not in argument]
        assert len(names) == 1
        recipe = names[0] if names[0] in PRESETS else "offseg-t-ade"  # a file of the reader's
        load_recipe(recipe, [argument for argument in arguments if "=" in argument])


COMMANDS = [(name_of(document), words) for document in DOCUMENTS for words in command_lines(document)]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
SCRIPTS = {"scripts/train.py": "train", "scripts/evaluate_model.py": "evaluate", "scripts/convert.py": "convert"}


def check_script(words: list[str]) -> None:
    """The script is there and knows these options; one that is a command of ours under another name is one."""
    (place,) = (index for index, word in enumerate(words) if word.endswith(".py"))
    if words[place] in SCRIPTS:
        check_offseg([SCRIPTS[words[place]], *words[place + 1 :]])
    source = (ROOT / words[place]).read_text()
    for word in words[place + 1 :]:
        if word.startswith("--") and words[place] not in SCRIPTS:
            assert f'"{word.partition("=")[0]}"' in source, word


@pytest.mark.parametrize(("document", "words"), COMMANDS, ids=[f"{d}: {' '.join(w)[:60]}" for d, w in COMMANDS])
def test_commands_are_there(document, words):
    match words:
        case ["offseg", *arguments]:
            check_offseg(arguments)
        case ["accelerate", "launch", *_] if "offseg_hf.cli" in words:
            check_offseg(words[words.index("offseg_hf.cli") + 1 :])
        case ["make", *arguments]:
            targets = {argument for argument in arguments if "=" not in argument}
            assert targets <= MAKE_TARGETS
        case ["accelerate" | "torchrun" | "python" | ".venv/bin/python", *_] if any(
            word.endswith(".py") for word in words
        ):
            check_script(words)
        case ["pip", "install", *arguments]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"\[(\w+)\]", " ".join(arguments))) <= extras.keys()
        case [".venv/bin/pytest", *arguments]:
            paths = [argument.partition("::")[0] for argument in arguments if argument.startswith("tests/")]
            assert paths and all((ROOT / path).exists() for path in paths)
        case ["python", "-m", module, *_]:
            assert find_spec(module)
        case ["git" | "hf" | "pre-commit" | ".venv/bin/pre-commit", *_]:
            pass
        case _:
            pytest.fail(f"{document}: nobody knows how to check {words}")


INLINE = [(name_of(document), words) for document in DOCUMENTS for words in inline_commands(document)]


@pytest.mark.parametrize(("document", "words"), INLINE, ids=[f"{d}: {' '.join(w)[:60]}" for d, w in INLINE])
def test_commands_of_the_text_are_there(document, words):
    """Of these arguments may be missing; options and names must be right."""
    words = [word for word in words[1:] if word not in ("...", "COMMAND", "--help")]
    if not words or words[0].startswith("--"):
        known = typer.main.get_command(app)
    else:
        known, words, _ = command_of(words)
    options = {option for parameter in known.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
