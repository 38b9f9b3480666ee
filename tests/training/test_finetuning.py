"""What `offseg finetune` fits to data and model, and the trainings of epochs that it starts."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, EomtImageProcessorPil, SegformerImageProcessorPil

from offseg_hf.data.dataset import label_set_of, load_data, sample_names
from offseg_hf.data.source import DataSource
from offseg_hf.training.build import load_splits
from offseg_hf.training.finetuning import fit_recipe, look_at, sizes
from offseg_hf.training.log import read_log
from offseg_hf.training.loop import train
from tests.tiny import tiny_processor
from tests.training.tiny import NAMES, killed_in, write_own, write_segformer


@pytest.fixture(scope="module")
def segformer(tmp_path_factory) -> Path:
    return write_segformer(tmp_path_factory.mktemp("models") / "segformer")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_own(tmp_path / "data", train=6)


def asked(data: Path, model: Path, *settings: str) -> list[str]:
    return [f"data.source={data}", f"model.checkpoint={model}", "data.num_workers=0", *settings]


SEGFORMER = SegformerImageProcessorPil(size={"height": 64, "width": 96})
CUTTING = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True)


@pytest.mark.parametrize(
    ("processor", "size", "scale", "crop"),
    [
        (SEGFORMER, (64, 96), (96, 64), (64, 96)),
        (SEGFORMER, (128, 48), (128, 48), (64, 96)),  # stretched, of the same area
        (SegformerImageProcessorPil(do_resize=False), (90, 600), (600, 90), (96, 512)),
        (tiny_processor("offseg"), (128, 256), (128, 64), (64, 64)),  # windows of 64
        (tiny_processor("offseg"), (32, 256), (256, 32), (64, 64)),  # bounded by the longest edge
        (tiny_processor("mask2former"), (128, 256), (128, 64), (64, 128)),
        (CUTTING, (128, 256), (128, 64), (64, 128)),  # of an EoMT it is the model's size
    ],
)
def test_training_is_at_the_size_of_evaluation(processor, size, scale, crop):
    found = sizes(size, processor)
    assert found[0] == scale and found[1] == crop


def test_shares_of_classes_are_counted(data):
    facts = look_at(load_data(DataSource(data), "train"))
    assert (facts.num_samples, facts.size, facts.report.num_counted) == (6, (64, 64), 6)
    assert int(facts.report.pixels.sum()) == 6 * 64 * 64 and facts.rare_classes() == []


def test_what_is_fitted(data, segformer, tmp_path):
    recipe, lines = fit_recipe(asked(data, segformer, "schedule.epochs=5"), tmp_path / "run")
    assert recipe.augmentation.crop_size == recipe.augmentation.scale == (64, 64)
    assert (recipe.training.batch_size, recipe.schedule.epochs, recipe.training.evaluation_interval) == (4, 5, None)
    assert recipe.optimizer.learning_rate == pytest.approx(1e-4 / 2) and recipe.optimizer.head_multiplier == 20
    assert (recipe.training.ema_decay, recipe.training.patience) == (0.999, 10)
    assert recipe.loss == () and recipe.written >= {"schedule.epochs"}
    assert [line.partition(":")[0] for line in lines] == ["data", "size", "length", "learning", "loss"]
    assert "10 iterations of 4 samples, 2 an epoch" in lines[2]


def test_what_is_written_wins(data, segformer, tmp_path):
    settings = (
        "schedule.iterations=8",
        "augmentation.shortest_edges=[64]",
        "training.batch_size=2",
        "loss=[{kind: dice}]",
    )
    recipe, _ = fit_recipe(asked(data, segformer, *settings), tmp_path / "run")
    assert (recipe.schedule.iterations, recipe.schedule.epochs, recipe.training.batch_size) == (8, None, 2)
    assert (recipe.augmentation.shortest_edges, recipe.augmentation.scale) == ((64,), None)
    assert [term.kind for term in recipe.loss] == ["dice"]
    with pytest.raises(ValueError, match="schedule.power=2.0 has no effect"):
        fit_recipe(asked(data, segformer, "schedule.kind=cosine", "schedule.power=2"), tmp_path / "run")


def without_validation(data: Path, groups: int = 5, frames: int = 2) -> Path:
    """The same photos as frames of videos, in one split."""
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "val")
        (first, *others) = sorted((data / kind / "train").iterdir())
        for index in range(groups * frames):
            shutil.copy(first, first.with_name(f"video {'abcdefgh'[index // frames]}_{index % frames:02d}.png"))
        for path in (first, *others):
            path.unlink()
    return data


def names_of(data) -> list[str]:
    return [Path(name).stem for name in sample_names(data)]


def test_photos_are_held_out_where_nothing_is_to_validate_on(data, segformer, tmp_path):
    """In whole groups, always the same, wherever the data lies; and told."""
    recipe, lines = fit_recipe(asked(without_validation(data), segformer), tmp_path / "run")
    assert recipe.data.validation_share == 0.2 and "data.validation_share" not in recipe.written
    assert lines[0].startswith("data: 8 samples to train on, 3 classes, photos of 64x64; no split to validate on: ")
    assert "whole groups: 1 of 5 with 2 of 10 photos to validate on (a group is a folder and a name" in lines[0]
    splits = load_splits(recipe)
    train, validation = names_of(splits.train), names_of(splits.validation)
    assert len({name[:7] for name in validation}) == 1 and not {name[:7] for name in train} & {validation[0][:7]}
    assert len(train) == 8 and len({*train, *validation}) == 10
    moved = replace(recipe.data, source=str(data.rename(tmp_path / "moved")))
    again = load_splits(replace(recipe, data=moved))
    assert (names_of(again.train), names_of(again.validation)) == (train, validation)
    assert again.fingerprint == splits.fingerprint
    assert again.train[0]["image"].size == (64, 64) and label_set_of(again.validation).names == NAMES


def test_a_share_that_is_asked_for(data, segformer, tmp_path):
    """Of `offseg train` too; refused where there is a split, and so is a split that there is not."""
    settings = asked(data, segformer, "data.validation_share=0.4")
    with pytest.raises(ValueError, match=r"validation_share=0.4 has no effect, as the data has the split validation"):
        fit_recipe(settings, tmp_path / "run")
    without_validation(data)
    recipe, _ = fit_recipe(settings, tmp_path / "run")
    assert len(load_splits(recipe).validation) == 4
    for wrong in ("data.validation_split=dev", "data.validation_share=null"):
        with pytest.raises(ValueError, match=r"no split '(dev|validation)', it has train; data.validation_share=0.2"):
            fit_recipe(asked(data, segformer, wrong), tmp_path / "run")
    with pytest.raises(ValueError, match=r"a validation_share above 0 and up to 0.5, or null, got 0.9"):
        fit_recipe(asked(data, segformer, "data.validation_share=0.9"), tmp_path / "run")
    for kind in ("images", "masks"):
        for path in sorted((data / kind / "train").iterdir())[1:]:
            path.unlink()
    with pytest.raises(ValueError, match=r"of which one is to validate on, got 1: add photos, or .*n_split=train\)"):
        fit_recipe(asked(data, segformer), tmp_path / "run")
    recipe, _ = fit_recipe(asked(data, segformer, "data.validation_split=train"), tmp_path / "run")
    assert len(load_splits(recipe).validation) == 1


def test_a_wrong_value_is_told_before_training_where_it_is_validated_on(data, segformer, tmp_path):
    path = sorted((data / "masks" / "val").iterdir())[-1]
    values = np.asarray(Image.open(path)).copy()
    values[0, 0] = 9
    Image.fromarray(values).save(path)
    with pytest.raises(
        ValueError, match=rf"{path.name}: value 9 out of range, in data there are 0-2, 255; classes.json"
    ):
        fit_recipe(asked(data, segformer), tmp_path / "run")


def test_one_class_is_nothing_to_tell_apart(data, segformer, tmp_path):
    """As of masks of 0 and 255 whose only name would be that of 0, while 255 is void."""
    (data / "classes.json").write_text('{"classes": ["crack"], "void_value": [1, 2]}')
    recipe, lines = fit_recipe(asked(data, segformer), tmp_path / "run")
    assert lines[0].startswith("data: 6 samples to train on, 1 class, ")
    with pytest.raises(ValueError, match='got crack alone, .* {"classes": {"0": "background", "255": "crack"}}, by'):
        train(recipe, tmp_path / "run")


def test_data_without_splits_is_not_validated_on_what_it_trains_on(data, segformer, tmp_path):
    """As `save_to_disk` writes it: whichever split is asked for is all of it."""
    load_data(DataSource(data), "train").save_to_disk(tmp_path / "saved")
    recipe, lines = fit_recipe(asked(tmp_path / "saved", segformer), tmp_path / "run")
    assert lines[0].startswith("data: 5 samples to train on") and "scores are too good" in lines[0]
    assert len(load_splits(recipe).validation) == 1


def test_what_is_held_out_stays_so(in_process, data, segformer, tmp_path):
    """In a training that goes on, which must not be evaluated on what it has learned."""
    settings = asked(without_validation(data), segformer, "schedule.epochs=1")
    recipe, _ = fit_recipe(settings, tmp_path / "run")
    train(recipe, tmp_path / "run")
    again, lines = fit_recipe(settings, tmp_path / "run", "auto")
    assert again.data == recipe.data and "whole groups" in lines[0]
    assert train(again, tmp_path / "run", "auto").iteration == 2
    for kind in ("images", "masks"):
        for index in range(20):
            shutil.copy(data / kind / "train" / "video a_00.png", data / kind / "train" / f"new {index}.png")
    again, _ = fit_recipe(settings, tmp_path / "run", "auto")
    with pytest.raises(ValueError, match=r"expected the photos that it held out .*, as photos came or went: give it"):
        train(again, tmp_path / "run", "auto")


def test_rare_classes_weigh_more(data, segformer, tmp_path):
    """Of a class with a few pixels, and no more than ten times."""
    from PIL import Image

    for path in sorted((data / "masks" / "train").iterdir()):
        ids = np.asarray(Image.open(path)) % 2
        ids[:2, :1] = 2
        Image.fromarray(ids.astype(np.uint8)).save(path)
    recipe, lines = fit_recipe(asked(data, segformer), tmp_path / "run")
    (term,) = recipe.loss
    assert term.kind == "cross_entropy" and term.class_weights[2] == 10 and max(term.class_weights[:2]) < 2
    assert lines[4] == "loss: cross_entropy, classes weighted; rare classes: car"
    config = "model.config.num_attention_heads=[1, 1, 2, 2]"
    recipe, lines = fit_recipe(asked(data, segformer, config, "loss=[]"), tmp_path / "run")
    assert recipe.loss == () and lines[4].startswith("loss: that of the model; rare classes: car")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


def test_epochs_resume_bitwise(in_process, data, segformer, tmp_path):
    """Interrupted in the second epoch; evaluated after each."""
    settings = asked(data, segformer, "schedule.epochs=3", "schedule.kind=cosine", "loss=[{kind: lovasz}]")
    recipe, _ = fit_recipe(settings, tmp_path / "whole")
    train(recipe, tmp_path / "whole")
    lines = [line["iteration"] for line in read_log(tmp_path / "whole" / "log.jsonl") if "mIoU" in line]
    assert lines == [2, 4, 6]
    with killed_in(iteration=3):
        train(recipe, tmp_path / "parts")
    for path in (data / "masks" / "train" / "0.png", data / "images" / "train" / "0.png"):
        path.with_name("6.png").write_bytes(path.read_bytes())  # another batch size, warm-up, ... would fit now
    again, _ = fit_recipe(settings, tmp_path / "parts", "auto")
    assert again == replace(recipe, training=replace(recipe.training, mixed_precision="no"))
    for path in (data / "masks" / "train" / "6.png", data / "images" / "train" / "6.png"):
        path.unlink()
    train(again, tmp_path / "parts", "auto")
    whole, parts = (weights_of(tmp_path / name / "last") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert yaml.safe_load((tmp_path / "parts" / "recipe.yaml").read_text())["schedule"]["epochs"] == 3


def test_patience_ends_it(in_process, data, segformer, tmp_path, capfd):
    """After as many evaluations without a better one; with more patience it goes on."""
    settings = asked(data, segformer, "schedule.epochs=8", "optimizer.learning_rate=1e-12", "training.ema_decay=null")
    recipe, _ = fit_recipe([*settings, "training.patience=1"], tmp_path / "run")
    progress = train(recipe, tmp_path / "run")
    ended = progress.iteration
    assert ended < 16 and (progress.best_iteration, progress.evaluations_since_best) == (ended - 2, 1)
    said = (
        f"ended at iteration {ended} of 16: 1 evaluation in a row without a better mIoU (training.patience); best/ is"
    )
    assert said in capfd.readouterr().err
    assert train(recipe, tmp_path / "run", "auto").iteration == ended
    recipe, _ = fit_recipe([*settings, "training.patience=null"], tmp_path / "run", "auto")
    assert train(recipe, tmp_path / "run", "auto").iteration == 16
