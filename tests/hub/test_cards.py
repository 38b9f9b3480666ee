"""Cards: valid to the Hub's own client, true to the models, and with code that runs as it stands."""

import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import jinja2
import jinja2.meta
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil, pipeline

from offseg_hf import (
    OffSegImageProcessor,
    OffsetMask2FormerConfig,
    OffsetMask2FormerForUniversalSegmentation,
    OffsetMask2FormerImageProcessor,
    OffsetSegformerConfig,
    OffsetSegformerForSemanticSegmentation,
    OffsetSegNextConfig,
    OffsetSegNextForSemanticSegmentation,
)
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.evaluation import EvaluationOptions, Outputs, evaluate
from offseg_hf.hub.cards import official_card_files
from offseg_hf.hub.training_card import shareable, training_card_files
from offseg_hf.training.loop import train
from offseg_hf.training.recipe import load_recipe
from offseg_hf.zoo.families import FAMILIES
from offseg_hf.zoo.presets import PRESETS, get_preset
from offseg_hf.zoo.results import load_results, model_cards_folder
from tests.models.test_modeling_offset_mask2former import SMALL as MASK2FORMER
from tests.models.test_modeling_offset_segformer import SMALL as SEGFORMER
from tests.models.test_modeling_offset_segnext import SEGNEXT
from tests.small_model import save_small_model
from tests.training.tiny import write_tiny


pytest_plugins = ["tests.local_hub.fixtures"]

SIZE = {"shortest_edge": 64, "longest_edge": 256}


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def sections(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, flags=re.MULTILINE)


# -- of the official models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_official_card_is_valid(name):
    """huggingface_hub reads back what was written, down to the last byte, and finds the paper's figure as such."""
    preset = get_preset(name)
    family = FAMILIES[preset.family]
    result, data_set = load_results().of(preset)
    files = official_card_files(preset, f"hvision/{name}")
    text = files.pop("README.md")
    card = ModelCard(text)
    assert card.content == text
    data = card.data
    assert (data.license, data.pipeline_tag, data.library_name) == ("other", "image-segmentation", "transformers")
    assert re.fullmatch(r"[a-z0-9-.]+", data.license_name) and data.license_link.startswith(
        "https://github.com/HVision"
    )
    assert data.model_name == name
    (found,) = data.eval_results
    assert isinstance(found, EvalResult)
    assert (found.metric_type, found.metric_value, found.verified) == ("mean_iou", result.miou, False)
    assert found.source_url == "https://arxiv.org/abs/2508.08811"
    assert data.datasets == ([data_set.hub_id] if data_set.hub_id else None)

    assert files.keys() == ({".eval_results/ade.yaml"} if preset.label_set == "ade" else set())
    for entries in files.values():
        (entry,) = parse_eval_result_entries(yaml.safe_load(entries))
        assert (entry.dataset_id, entry.value) == (data_set.hub_id, result.miou)
        assert entry.source_url == found.source_url

    assert not re.search(r"\{\{|\{%|\bNone\b|\n\n\n", card.text)
    assert sections(card.text) == [
        "Use it",
        "Results",
        "Test protocol",
        "Training",
        "Conversion",
        "Intended use and limits",
        "License",
        "Citation",
    ]
    assert f"{preset.num_parameters:,} parameters" in card.text
    assert f"its Table {family.table}" in card.text
    assert f"{len(preset.labels)} classes" in card.text


def test_protocol_of_the_card_is_that_of_the_processor():
    for name, parts in {
        "offseg-t-ade": (
            "more than 2048 and whose short side no more than 512",
            "windows of 512x512, 480 pixels apart",
        ),
        "segnext-t-offset-ade": ("padded to multiples of 32", "looked at whole"),
        "segnext-s-offset-context59": ("no more than 520", "multiples of 32", "windows of 480x480, 320 pixels"),
    }.items():
        card = official_card_files(get_preset(name), f"hvision/{name}")["README.md"]
        assert all(part in card for part in parts)


def test_cards_give_the_template_all_that_it_names(monkeypatch):
    """Jinja takes a name that nobody gave for nothing: a card with a hole."""
    source = (model_cards_folder() / "template.md").read_text()
    named = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
    given = {}
    render = ModelCard.from_template.__func__

    def record(cls, data, **values):
        given.update(values, card_data=data)
        return render(cls, data, **values)

    monkeypatch.setattr(ModelCard, "from_template", classmethod(record))
    official_card_files(get_preset("offseg-t-ade"), "hvision/offseg-t-ade")
    of_trainings = {"scores", "scores_note", "curves", "recipe", "training_note", "environment", "adapter"}
    assert named - given.keys() == of_trainings  # which `test_a_training_on_its_card` sees in the text


def save(model, processor):
    def write(folder: Path) -> None:
        torch.manual_seed(0)
        model().save_pretrained(folder)
        processor.save_pretrained(folder)

    return write


WINDOWS = OffSegImageProcessor(size=SIZE, window_size=64, window_stride=48)
MODELS = {
    "offseg-t-ade": save_small_model,
    "segformer-b0-offset-ade": save(
        lambda: OffsetSegformerForSemanticSegmentation(OffsetSegformerConfig(**SEGFORMER)), WINDOWS
    ),
    "segnext-t-offset-ade": save(
        lambda: OffsetSegNextForSemanticSegmentation(OffsetSegNextConfig(**SEGNEXT)), WINDOWS
    ),
    "mask2former-swin-t-offset-ade": save(
        lambda: OffsetMask2FormerForUniversalSegmentation(OffsetMask2FormerConfig(**MASK2FORMER)),
        OffsetMask2FormerImageProcessor(size=SIZE),
    ),
}
UPLOAD = """
import os
import sys
from huggingface_hub import HfApi, ModelCard

folder, repository = sys.argv[1:]
ModelCard.load(f"{folder}/README.md").validate()
HfApi().create_repo(repository)
HfApi().upload_folder(repo_id=repository, folder_path=folder)
"""
BEFORE = """
import os
import sys

os.chdir(sys.argv[1])  # where the photo is
"""
AFTER = """
assert region["mask"].size == (60, 40) and label_map.shape == (40, 60)
assert pipeline(model=sys.argv[2]).task == "image-segmentation"  # which the card says
"""
WITHOUT_PACKAGE = f"""{BEFORE}
sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
"""
OF_THE_HUB = """
for part in (model, processor):
    assert type(part).__module__.startswith("transformers_modules."), type(part)
"""


@pytest.mark.parametrize(
    "name", [name if name.startswith("offseg") else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_code_of_the_card_runs(local_hub, tmp_path, name):
    """A small model of the family is put on a Hub with the card; then the card's code is run as it is."""
    repository = f"hvision/{name}"
    MODELS[name](tmp_path / "model")
    files = official_card_files(get_preset(name), repository)
    for path, text in files.items():
        (tmp_path / "model" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / path).write_text(text)
    render_scene(0, (60, 40))[0].save(tmp_path / "photo.jpg")
    local_hub.run(UPLOAD, tmp_path / "model", repository)
    with_pipeline, step_by_step, without_package = code_blocks(files["README.md"])
    local_hub.run(BEFORE + with_pipeline + step_by_step + AFTER, tmp_path, repository)
    local_hub.run(WITHOUT_PACKAGE + without_package + OF_THE_HUB, tmp_path, repository)


def oriented(folder: Path, orientation: int) -> Path:
    """A photo that is stored as a camera held in this way stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / "photo.jpg"
    render_scene(0, (60, 40))[0].save(path, exif=exif)
    return path


def step_by_step(document: str) -> str:
    (block,) = [block for block in code_blocks(document) if "post_process_semantic_segmentation" in block]
    return block


# Each code that there is runs with all eight: that of docs/photos.md, of semantic models and of Mask2Former. Of the
# other cards, which differ in the name alone, with one that lies and one that is mirrored and stands.
EVERY = ("photos.md", "segformer-b0-offset-ade", "mask2former-swin-t-offset-ade")
ORIENTATIONS = dict.fromkeys(MODELS, (3, 7)) | dict.fromkeys(EVERY, range(1, 9))


@pytest.mark.parametrize("document", ORIENTATIONS)
def test_steps_are_the_pipeline_for_every_orientation(tmp_path, monkeypatch, document):
    """The code as it is written, run on photos whose pixels are stored in each of the eight ways."""
    if document == "photos.md":
        name, text = "offseg-t-ade", (Path(__file__).parents[2] / "docs" / document).read_text()
        save_small_model(tmp_path / "model", "segformer")  # of all, the one that is loaded and run the fastest
    else:
        name, text = document, official_card_files(get_preset(document), document)["README.md"]
        MODELS[name](tmp_path / "model")
    code = compile(step_by_step(text).replace(f'"{name}"', '"model"'), document, "exec")
    monkeypatch.chdir(tmp_path)
    segment = pipeline("image-segmentation", model="model")
    for orientation in ORIENTATIONS[document]:
        oriented(tmp_path, orientation)
        run = {}
        exec(code, run)
        label_map, config = run["label_map"], run["model"].config
        assert label_map.shape == ((60, 40) if orientation >= 5 else (40, 60))
        for region in segment("photo.jpg", subtask="semantic"):
            mask = np.asarray(region["mask"]) == 255
            assert ((label_map == config.label2id[region["label"]]).numpy() == mask).mean() > 0.999


# -- of one's own -----------------------------------------------------------------------------------------------------


ENVIRONMENT = {"torch": "2.13.0", "device": "cpu (two cores)", "git_commit": "0afd82f", "python": "/home/me/python3"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A training of eight iterations, whose recipe knows its data by an absolute path."""
    folder = tmp_path_factory.mktemp("a secret place")
    recipe = load_recipe(write_tiny(folder), [f"data.source={folder}/scenes"])
    train(recipe, folder / "runs" / "tiny")
    (folder / "runs" / "tiny" / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder / "runs" / "tiny"


def test_scores_of_photos_that_were_held_out(run, tmp_path):
    """They are no split of the data, which is said."""
    copy = Path(copytree(run, tmp_path / "run"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["data"]["validation_share"] = 0.2
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = training_card_files(copy / "best", "tester/my-scenes")["README.md"]
    assert "On a part of the split `train` that it was not trained on, one scale" in text
    (found,) = ModelCard(text).data.eval_results
    assert found.dataset_split == "train"


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_training_on_its_card(run, checkpoint):
    files = training_card_files(run / checkpoint, "tester/my-scenes")
    text = files["README.md"]
    card = ModelCard(text)
    assert card.content == text
    assert not re.search(r"\{\{|\{%|\bNone\b|\n\n\n", card.text)

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "mIoU" in line]
    iteration = 8 if checkpoint == "last" else max(scores, key=lambda line: line["mIoU"])["iteration"]
    expected = next(line for line in scores if line["iteration"] == iteration)
    (found,) = card.data.eval_results
    assert (found.metric_value, found.verified) == (round(100 * expected["mIoU"], 2), False)
    assert (found.dataset_name, found.dataset_split) == ("generated scenes", "validation")
    assert f"| mIoU | {100 * expected['mIoU']:.2f} |" in text and f"at iteration {iteration}" in text
    assert f"{iteration} of 8 iterations of 4 samples of generated scenes, split `train`" in text
    assert "beginning from random weights" in text
    assert ", ".join(SCENE_LABELS.names) in text

    assert card.data.license is None and "non-commercial" in text
    assert card.data.tags[:2] == ["offseg_hf", "offset-learning"]
    assert "| git_commit | 0afd82f |" in text and "| torch | 2.13.0 |" in text and "| python | python3 |" in text
    assert "a secret place" not in text and "/home/me" not in text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (run / "published.yaml").write_text(recipe)
    ours, theirs = load_recipe(run / "published.yaml").to_dict(), load_recipe(run / "recipe.yaml").to_dict()
    assert ours["data"].pop("source") == "scenes" and theirs["data"].pop("source").endswith("/scenes")
    assert ours == theirs

    assert files.keys() == {"README.md", "training_curves.png"} and "(training_curves.png)" in text
    (run / "curves.png").write_bytes(files["training_curves.png"])
    assert len(Image.open(run / "curves.png").convert("RGB").getcolors(1 << 16)) > 2
    assert files == training_card_files(run / checkpoint, "tester/my-scenes")  # bit by bit: nothing to upload again


def test_an_evaluation_goes_before_the_log(run, tmp_path):
    """Its report is of these weights where it lies in the folder, or beside it and names it."""
    (tmp_path / "runs").mkdir()
    for name in ("best", "last", "recipe.yaml", "log.jsonl"):
        (tmp_path / "runs" / name).symlink_to(run / name)
    copy = tmp_path / "runs" / "best"
    copy.unlink()
    copy.mkdir()
    for path in (run / "best").iterdir():
        (copy / path.name).symlink_to(path)
    source = run.parents[1] / "scenes"
    report = evaluate(
        copy,
        source,
        options=EvaluationOptions(limit=3),
        outputs=Outputs(json_file=tmp_path / "runs" / "evaluation.json"),
    )
    text = training_card_files(copy, "tester/a")["README.md"]
    assert f"| mIoU | {100 * report['metrics']['mIoU']:.2f} |" in text
    assert "On 3 images, split `validation`, one scale." in text
    assert "On 3 images" not in training_card_files(tmp_path / "runs" / "last", "tester/a")["README.md"]
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    assert "On 3 images" not in training_card_files(copy, "tester/a")["README.md"]  # it is of another model now


def test_names_on_the_hub_are_linked(run, tmp_path):
    """The Hub knows what the model began from and learned from, if that is on the Hub and not a folder of ours."""
    folder = tmp_path / "runs" / "model"
    save_small_model(folder)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["source"], recipe["model"]["pretrained"] = "tester/scenes", "nvidia/mit-b0"
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = ModelCard(training_card_files(folder, "tester/a")["README.md"]).data
    assert (data.base_model, data.base_model_relation, data.datasets) == (
        "nvidia/mit-b0",
        "finetune",
        ["tester/scenes"],
    )
    assert data.eval_results is None and data.metrics is None  # no log, no figures
    (tmp_path / "tester" / "scenes").mkdir(parents=True)
    recipe["model"]["pretrained"] = "weights/mscan_t.pth"
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = ModelCard(training_card_files(folder, "tester/a")["README.md"])
    assert card.data.base_model is None and card.data.datasets is None
    assert "beginning from weights/mscan_t.pth" in card.text


def test_a_model_without_a_training(tmp_path):
    (text,) = training_card_files(save_small_model(tmp_path / "model"), "tester/a").values()
    assert sections(text) == ["Use it", "Training", "Intended use and limits", "License", "Citation"]
    assert "no recipe lay beside the model" in text and len(code_blocks(text)) == 3
    assert ModelCard(text).data.eval_results is None


def test_a_model_of_transformers_needs_neither_package_nor_terms(tmp_path):
    config = SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, id2label={0: "<b>", 1: "c|d", 2: "e"})
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessorPil().save_pretrained(tmp_path / "model")
    (text,) = training_card_files(tmp_path / "model", "tester/a").values()
    assert sections(text) == ["Use it", "Training", "Intended use and limits"]
    assert "import offseg_hf" not in text and "trust_remote_code" not in text and "offset-learning" not in text
    assert "&lt;b&gt;, c|d, e" in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("runs/recipe.yaml", "a: [1"),
        ("runs/recipe.yaml", "only text"),
        ("runs/log.jsonl", "{no json}\n"),
        ("runs/environment.json", "{"),
        ("runs/model/training_state.pt", "nothing"),
        ("runs/model/config.json", "{"),
    ],
)
def test_what_cannot_be_read_is_named(run, tmp_path, file, content):
    folder = save_small_model(tmp_path / "runs" / "model")
    (tmp_path / "runs" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    training_card_files(folder, "tester/a")
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="expected") as error:
        training_card_files(folder, "tester/a")
    is_named = str(tmp_path / file) in str(error.value)
    assert is_named or (file.endswith("config.json") and str(folder) in str(error.value))


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/data/ade", "ade"),
        (r"C:\Users\me\ade", "ade"),
        ("~/data/ade", "ade"),
        ("../../me/ade", "ade"),
        ("file:///home/me/ade", "ade"),
        ("data/ade", "data/ade"),
        ("user/name", "user/name"),
    ],
)
def test_paths_of_a_machine_stay_there(path, shown):
    recipe = yaml.safe_dump({"data": {"source": path}, "model": {"config": {"deep": ["é", [path]]}}})
    published = yaml.safe_load(shareable(recipe))
    assert published == {"data": {"source": shown}, "model": {"config": {"deep": ["é", [shown]]}}}


def test_cards_are_not_paid_for_by_help():
    """The room imports torch and transformers: the command line must not import it before it has to."""
    script = "import sys, offseg_command, offseg_hf.cli; print('offseg_hf.hub.cards' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
