"""Checkpoints: folders that are whole or absent, whenever the process that writes them is killed.

A checkpoint is written under a name of its own (`.last.partial`), renamed when it is complete and on the disk
(`.last.new`), and takes the place of the one before by two more renames. A kill in between leaves at most what
`finish_replacing` puts in order, from the names alone.

A checkpoint is a model's folder, as `from_pretrained` and `pipeline` read it, with the `classes.json` of its data, and
`training_state.pt`, all that the training goes on from.
"""

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedModel

from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.hub.training_card import STATE_FILE
from offseg_hf.training.lora import save_model
from offseg_hf.training.recipe import Recipe
from offseg_hf.training.state import Progress
from offseg_hf.training.values import described
from offseg_hf.utils.files import finish_replacing, replacing
from offseg_hf.utils.texts import one_line
from offseg_hf.utils.yaml_files import flat


CHECKPOINTS = ("last", "best")
# Of a recipe, what makes no difference to the weights but rounding. `training.device_batch_size` may make one, and is
# told: a machine with less memory must be able to go on.
FREE_TO_CHANGE = {
    "name",
    "data.source",
    "data.validation_split",
    "data.num_workers",
    "training.compile",
    "training.device_batch_size",
    "training.gradient_checkpointing",
    "training.evaluation_interval",
    "training.checkpoint_interval",
    "training.log_interval",
    "training.patience",
    "training.report_to",
    "training.hub_repository",
    "training.hub_private",
}
FREE_SECTION = "model.image_processor."
# What scores are measured by: with another of these they are not comparable.
OF_SCORES = ("data.validation_split", FREE_SECTION)


@dataclass
class LastCheckpoint:
    """Record where the newest checkpoint is that a training would go on from, if any, and how far it was there."""

    folder: Path | None
    progress: Progress


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a training goes on from, and the state in it."""

    folder: Path
    state: dict[str, Any]

    @property
    def iteration(self) -> int:
        """How far it is."""
        return self.state["progress"]["iteration"]


def save_checkpoint(
    folder: Path, model: PreTrainedModel, processor: BaseImageProcessor, labels: LabelSet, state: dict[str, Any]
) -> None:
    """Write a checkpoint in the place of the one at `folder`, if there is one.

    Args:
        folder: of the checkpoint.
        model: of transformers; its adapters are merged.
        processor: the model's.
        labels: the classes, whose colors and title come with the model.
        state: of tensors and plain values.

    Raises:
        OSError: if it cannot be written; the one before is left as it was.
    """
    with replacing(folder) as partial:
        try:
            save_model(model, partial)
            processor.save_pretrained(partial)
            (partial / FILE_NAME).write_text(classes_json(labels), encoding="utf-8")
            torch.save(state, partial / STATE_FILE)
        except (SafetensorError, RuntimeError) as error:  # as these writers call errors of the disk
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise OSError(
                f"{folder}: the checkpoint cannot be written ({one_line(error)}); the disk has {free:,.0f} MiB left, "
                "and the checkpoint before is as it was"
            ) from error


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Keep the folder of a training for this process until it ends in whatever way; OSError if another has it."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: workers do not inherit it
        except ModuleNotFoundError:  # not on Windows
            pass
        except BlockingIOError:
            raise OSError(f"{output}: another process trains into it; wait for it, or name another output") from None
        yield


def load_state(folder: Path, mmap: bool = False) -> dict[str, Any]:
    """Load the state in a checkpoint, on the CPU; raises ValueError or OSError if there is none that can be read.

    Args:
        folder: of the checkpoint.
        mmap: read tensors from the disk only when they are used.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a checkpoint to resume from, got no {STATE_FILE} in it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: expected the state of a training, got a file that cannot be read: {one_line(error)}"
        ) from error


def find_resumable(output: Path, resume: str | Path | None) -> Path | None:
    """Find the checkpoint to go on from in a training into `output`; None to begin one.

    Args:
        output: folder of the training.
        resume: "auto" for the newest in `output`, if there is one; the folder of a checkpoint, or one that holds some;
            None if `output` should hold none (FileExistsError).
    """
    for name in CHECKPOINTS:
        finish_replacing(output / name)
    own = find_checkpoints(output)
    if resume is None and own:
        raise FileExistsError(
            f"{output}: expected a folder without a training, got one with {own[0].name}/; go on with it by resume "
            '"auto" (--resume auto), or name another output'
        )
    if resume is None or resume == "auto":
        return own[0] if own else None
    resume = Path(resume).expanduser()
    found = [resume] if (resume / STATE_FILE).is_file() else find_checkpoints(resume)
    if not found:
        raise FileNotFoundError(f"{resume}: expected a checkpoint to resume from, got no {STATE_FILE} there")
    if own and found[0].resolve() not in [folder.resolve() for folder in own]:
        raise FileExistsError(
            f"{output}: expected to go on from its own {own[0].name}/, got {resume}; name another output"
        )
    return found[0]


def find_checkpoints(output: Path) -> list[Path]:
    """Find the checkpoints in the folder of a training, the newest first; `last` before `best` of one age."""
    folders = [output / name for name in CHECKPOINTS if (output / name / STATE_FILE).is_file()]
    if len(folders) < 2:
        return folders
    return sorted(folders, key=lambda folder: -load_state(folder, mmap=True)["progress"]["iteration"])


def require_same_recipe(recipe: Recipe, saved: dict[str, Any], checkpoint: Path) -> None:
    """Raise ValueError if a training by `recipe` would not go on with that of `saved`, but be another one."""
    changes = _changes(recipe, saved)
    others = [key for key in changes if key not in FREE_TO_CHANGE and not key.startswith(FREE_SECTION)]
    if others:
        told = ", ".join(f"{key}={changes[key][0]!r} (now {changes[key][1]!r})" for key in others)
        raise ValueError(
            f"{checkpoint}: expected the recipe that it was trained by, with {told}; give these values, or "
            f"{_begin_another(checkpoint, recipe)}"
        )


def are_scores_comparable(recipe: Recipe, saved: dict[str, Any]) -> bool:
    """Return whether what is evaluated, and how, is as it was."""
    return not any(key.startswith(OF_SCORES) for key in _changes(recipe, saved))


def label_facts(labels: LabelSet) -> dict[str, Any]:
    """Return what of the classes a training depends on, to save with it."""
    return {
        "names": list(labels.names),
        "values": list(labels.raw_ids),
        "void values": sorted(labels.void_ids),
        "ignore index": labels.ignore_index,
    }


def require_same_labels(recipe: Recipe, labels: LabelSet, state: dict[str, Any], checkpoint: Path) -> None:
    """Raise ValueError, with both lists, if the data has other classes than a training that is to go on."""
    now, saved = label_facts(labels), state.get("labels") or _labels_of_config(checkpoint)
    for key, value in saved.items():
        if now[key] != value:
            raise ValueError(
                f"{checkpoint}: expected the classes that it was trained on, whose {key} are {value}; the data has "
                f"{now[key]}. Give it these classes again (classes.json, data.labels), or "
                f"{_begin_another(checkpoint, recipe)}"
            )


def require_same_held_out(recipe: Recipe, fingerprint: str | None, state: dict[str, Any], checkpoint: Path) -> None:
    """Raise ValueError if the photos held out are others than before: it was trained on what would be validated on."""
    if fingerprint != state.get("held_out"):
        raise ValueError(
            f"{checkpoint}: expected the photos that it held out to validate on (data.validation_share), got others, "
            f"as photos came or went: give it the data as it was, or {_begin_another(checkpoint, recipe)}"
        )


def _labels_of_config(checkpoint: Path) -> dict[str, Any]:
    """Read the classes of a checkpoint without a record of them."""
    names = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("id2label", {})
    return {"names": [names[key] for key in sorted(names, key=int)]} if names else {}


def _begin_another(checkpoint: Path, recipe: Recipe) -> str:
    """Say what to do instead, in settings that the recipe takes beside those that it has."""
    beside = [name for name in ("preset", "pretrained") if f"model.{name}" in recipe.written]
    words = [f"model.checkpoint={checkpoint}", *(f"model.{name}=null" for name in beside)]
    return f"begin a training in another folder from its weights ({' '.join(words)})"


def _changes(recipe: Recipe, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return key -> (value that was saved, value now), of those that differ."""
    now, before = flat(recipe.to_dict()), flat(saved)
    for setting in described(Recipe):  # that came after the checkpoint, which had the default
        if setting.key in now and not setting.is_required:
            before.setdefault(setting.key, json.loads(json.dumps(setting.default)))
    keys = [key for key in {**before, **now} if now.get(key) != before.get(key)]
    return {key: (before.get(key), now.get(key)) for key in keys}
