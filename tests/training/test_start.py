"""What a training looks at before its first iteration, and what it makes of samples that teach nothing."""

import json
import math
import re
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTImageProcessorPil,
)

from offseg_hf import apply_offset_learning
from offseg_hf.cli.console import _at_home, _message
from offseg_hf.data.classes_json import label_set_beside
from offseg_hf.data.dataset import label_set_of
from offseg_hf.data.label_sets import LABEL_SETS
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.training.build import build_model, load_split, settings_without_effect
from offseg_hf.training.checkpoint import save_checkpoint
from offseg_hf.training.log import JsonLines, read_log
from offseg_hf.training.loop import train
from offseg_hf.training.recipe import load_recipe
from offseg_hf.training.state import Progress
from tests.training.tiny import NAMES, RECIPE, own_recipe, write_own, write_segformer


@pytest.fixture(scope="module")
def segformer(tmp_path_factory) -> Path:
    return write_segformer(tmp_path_factory.mktemp("models") / "segformer")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_own(tmp_path / "data")


@pytest.fixture(scope="module")
def trained(segformer, tmp_path_factory) -> Path:
    """A folder with `data` and `run`, which ended after two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    train(own_recipe(write_own(folder / "data"), segformer), folder / "run")
    return folder


@pytest.fixture
def going_on(trained, tmp_path) -> Path:
    """A copy that may be changed; `train` with `schedule.iterations=2` is done."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def make_void(folder: Path, *names: str) -> None:
    for path in sorted(folder.iterdir()):
        if not names or path.name in names:
            Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)


def log_of(output: Path) -> list[dict]:
    return read_log(output / "log.jsonl")


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_without_a_labeled_pixel_are_an_error(in_process, segformer, data, tmp_path, split):
    make_void(data / "masks" / split)
    with pytest.raises(
        ValueError, match=rf"data.{split}\w*_split=.*: expected label maps with classes, got . in which"
    ):
        train(own_recipe(data, segformer), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["segformer", "offset learning"])
def test_a_void_sample_weighs_nothing(in_process, segformer, data, tmp_path, is_wrapped):
    """In models of transformers, whose loss would be no number: as much as a sample of loss 0 and gradients 0."""
    model = segformer
    if is_wrapped:
        model = tmp_path / "wrapped"
        apply_offset_learning(AutoModelForSemanticSegmentation.from_pretrained(segformer)).save_pretrained(model)
        shutil.copy(segformer / "preprocessor_config.json", model)
    make_void(data / "masks" / "train", "1.png")
    train(own_recipe(data, model, "training.device_batch_size=1"), tmp_path / "run")
    losses = [line["loss"] for line in log_of(tmp_path / "run") if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < math.inf for loss in losses)
    weights = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_batch_that_is_void_leaves_the_weights(in_process, segformer, data, tmp_path):
    """All of whose gradients are 0."""
    make_void(data / "masks" / "train", "0.png", "1.png", "2.png")  # and of the last, what is cropped is not
    settings = ("training.batch_size=1", "schedule.iterations=4", "training.checkpoint_interval=9")
    train(own_recipe(data, segformer, *settings, "training.evaluation_interval=9"), tmp_path / "run")
    lines = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert sorted(line["loss"] == 0 for line in lines) == [False, True, True, True]
    assert all((line["gradient_norm"] == 0) == (line["loss"] == 0) for line in lines)


def test_json_has_no_nan(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"iteration": 1, "mIoU": math.nan, "gradient_norm": math.inf, "loss": 0.5})
    log.close()
    expected = {"iteration": 1, "mIoU": None, "gradient_norm": None, "loss": 0.5}
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail) == expected


def test_nan_is_never_the_best():
    progress = Progress(iteration=2, best_score=math.nan, best_iteration=1)  # of an older version
    assert progress.best_score is progress.best_iteration is None


def test_what_only_evaluation_uses_is_tried_first(in_process, segformer, data, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "masks" / "val" / "0.png")
    with pytest.raises(ValueError, match=r"val/0.png: the label map is 9x9, but its image .*val/0.png is 64x64"):
        train(own_recipe(data, segformer), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_window_that_does_not_fit_its_stride_is_told_first(in_process, data, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(RECIPE)
    settings = (f"data={{source: {data}, num_workers: 0}}", "model.image_processor.window_size=24")
    with pytest.raises(ValueError, match="window_stride <= window_size, got window_stride=32 and window_size=24"):
        train(load_recipe(own, settings), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_colors_and_title_of_the_data_come_with_the_model(in_process, segformer, tmp_path):
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    data = write_own(tmp_path / "data", palette=palette, title="My photos")
    train(own_recipe(data, segformer), tmp_path / "run")
    for name in ("last", "best"):
        labels = label_set_beside(tmp_path / "run" / name)
        assert (labels.names, labels.title) == (NAMES, "My photos")
        assert [list(color) for color in Segmenter(tmp_path / "run" / name, device="cpu").palette] == palette
    assert label_set_beside(segformer) is None


def test_how_it_is_evaluated_may_change(in_process, segformer, going_on, capfd):
    """A training that goes on takes it, and what was the best by other settings is no longer."""
    size = "model.image_processor.size={height: 96, width: 96}"
    recipe = own_recipe(going_on / "data", segformer, size)
    before = torch.load(going_on / "run" / "last" / "training_state.pt")["progress"]
    assert train(recipe, going_on / "run", "auto").best_score is None
    said = capfd.readouterr().err
    assert f"the best so far, {before['best_score']:.4f} at 2, does not count any more" in said


CHANGED = {
    "names": ({"classes": ["car", "sky", "road"]}, r"names are \['sky', 'road', 'car'\]; the data has \['car', 'sky'"),
    "values": ({"values": [2, 0, 1]}, r"values are \[0, 1, 2\]; the data has \[2, 0, 1\]"),
    "one more": ({"classes": [*NAMES, "bus"]}, r"\['sky', 'road', 'car', 'bus'\]"),
    "void": ({"void_values": [255, 9]}, r"void values are \[255\]; the data has \[9, 255\]"),
    "ignore index": ({"ignore_index": 99, "void_value": 255}, "ignore index are 255; the data has 99"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_classes_do_not_go_on(in_process, segformer, going_on, name):
    facts, message = CHANGED[name]
    (going_on / "data" / "classes.json").write_text(json.dumps({"classes": NAMES} | facts))
    shutil.rmtree(going_on / "run" / "best")
    with pytest.raises(ValueError, match=message) as error:
        train(own_recipe(going_on / "data", segformer), going_on / "run", "auto")
    assert f"(model.checkpoint={going_on}/run/last)" in str(error.value)


def test_a_checkpoint_without_a_record_of_its_classes(in_process, segformer, going_on):
    """Of an older version: its configuration has their names."""
    path = going_on / "run" / "last" / "training_state.pt"
    state = torch.load(path)
    torch.save({key: value for key, value in state.items() if key != "labels"}, path)
    train(own_recipe(going_on / "data", segformer), going_on / "run", "auto")
    (going_on / "data" / "classes.json").write_text(json.dumps({"classes": ["car", "sky", "road"]}))
    with pytest.raises(ValueError, match="whose names are"):
        train(own_recipe(going_on / "data", segformer), going_on / "run", "auto")


def test_the_advice_of_the_error_works(in_process, segformer, going_on):
    """As it is written, on the command line of the same recipe."""
    with pytest.raises(ValueError, match="training.seed=0 .now 1.") as error:
        train(own_recipe(going_on / "data", segformer, "training.seed=1"), going_on / "run", "auto")
    words = str(error.value).rpartition("(")[2].removesuffix(")").split()
    recipe = own_recipe(going_on / "data", segformer, "training.seed=1", *words)
    assert recipe.model.checkpoint == str(going_on / "run" / "last")
    train(recipe, going_on / "another")


def test_what_goes_on_otherwise_is_told(in_process, segformer, going_on, capfd):
    for kind in ("images", "masks"):
        (going_on / "data" / kind / "train" / "3.png").unlink()
    recipe = own_recipe(going_on / "data", segformer, "training.device_batch_size=2")
    train(recipe, going_on / "run", "auto")
    said = capfd.readouterr().err
    assert "3 samples to train on, where there were 4" in said
    assert "a device takes 2 samples at once, where it took 4" in said


def test_a_processor_that_turns_channels_round_trains(in_process, data, tmp_path):
    """MobileViT's, on the pixels that it makes."""
    config = MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        image_size=64,
        num_attention_heads=2,
        aspp_out_channels=16,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    MobileViTForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    processor = MobileViTImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="got") as error:
        train(own_recipe(data, tmp_path / "model"), tmp_path / "run")
    words = re.findall(r"augmentation\.\w+=\[.*?\]", str(error.value))
    train(own_recipe(data, tmp_path / "model", *words), tmp_path / "run")


def test_statistics_of_one_value_are_told(in_process, data, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(RECIPE)
    settings = (f"data={{source: {data}, num_workers: 0}}", "augmentation.crop_size=[32, 32]", "training.batch_size=1")
    with pytest.raises(ValueError, match="a batch norm gets one value per channel.*from 1 x 32x32 pixels at once"):
        train(load_recipe(own, settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "setting", "name", "reason"),
    [
        ("optimizer", "offset_multiplier: 0.1", "offset_multiplier", "this SegformerForSemanticSegmentation has no"),
        (
            "model.image_processor",
            "do_normalize: false, image_mean: [0, 0, 0]",
            "image_mean",
            "its do_normalize is false",
        ),
        ("model.image_processor", "do_resize: false, resample: 3", "resample", "its do_resize is false"),
    ],
)
def test_settings_that_the_model_has_no_use_for(segformer, data, section, setting, name, reason):
    recipe = own_recipe(data, segformer, f"{section}={{{setting}}}")
    model, processor = build_model(recipe, label_set_of(load_split(recipe, "train")))
    with pytest.raises(ValueError, match=rf"{section}.{name}=.* has no effect, as {reason}.*: remove it"):
        settings_without_effect(recipe, model, processor)
    inherited = replace(recipe, written=frozenset())
    assert settings_without_effect(inherited, model, processor) == [f"{section}.{name}"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_broken_file_is_told_in_one_line(in_process, segformer, data, tmp_path, kind, workers):
    path = sorted((data / kind / "train").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"/train/{path.name}: ") as error:
        train(own_recipe(data, segformer, f"data.num_workers={workers}"), tmp_path / "run")
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_a_full_disk_is_told(segformer, tmp_path):
    """Writers of weights have errors of their own for it."""
    model = AutoModelForSemanticSegmentation.from_pretrained(segformer)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError, match="last: the checkpoint cannot be written .*File too large"):
            save_checkpoint(tmp_path / "last", model, _processor(segformer), LABEL_SETS["ade"], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def _processor(folder: Path):
    return AutoImageProcessor.from_pretrained(folder)


def test_messages_are_whole():
    error = RuntimeError("Error(s) in loading state_dict for Model:\n\tsize mismatch for weight")
    assert _message(error).startswith(
        "RuntimeError: Error(s) in loading state_dict for Model: size mismatch for weight"
    )
    assert _message(KeyError()).startswith("KeyError: KeyError (OFFSEG_DEBUG=1")
    long = _message(RuntimeError("\n".join(map(str, range(100)))))
    assert "... and 88 lines more" in long and "\n" not in long


def test_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert _at_home(Path("~/runs")) == Path("/home/someone/runs")
    assert _at_home(["~/a.png", "b~.png", None]) == ["/home/someone/a.png", "b~.png", None]
    assert _at_home("nvidia/mit-b0") == "nvidia/mit-b0" and _at_home(0.5) == 0.5


def test_an_output_in_ones_home(in_process, segformer, going_on, monkeypatch):
    monkeypatch.setenv("HOME", str(going_on))
    recipe = own_recipe(going_on / "data", segformer)
    assert train(recipe, "~/run", "~/run/last").iteration == 2
