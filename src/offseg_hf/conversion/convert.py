"""Turn an official checkpoint into a folder that is complete for the Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import initialization as init

from offseg_hf.conversion.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from offseg_hf.conversion.keys import Fit, KeyTable, fit, fit_any, has_own_names, other_num_classes, without_prefixes
from offseg_hf.conversion.tables import OFFICIAL_TABLES, PRETRAINED_FORMS
from offseg_hf.utils.files import new_folder
from offseg_hf.zoo.presets import PRESETS, Preset, get_preset
from offseg_hf.zoo.registration import auto_model_class


SAMPLED = 25  # one key in so many tells most presets apart
UNUSUAL = 1009  # classes of the models whose shapes are looked at: no layer has as many channels
CONVERTED_ALREADY = (
    "weights under offseg_hf's names: they are converted already, load their folder with from_pretrained"
)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: `used` keys of the checkpoint are weights in `output`, those in `dropped` are not.

    names: of the classes. left_aside: keys of other weights in the file, as averages beside those of the model.
    """

    used: int
    dropped: list[str]
    output: Path
    num_parameters: int
    names: tuple[str, ...]
    left_aside: tuple[str, ...]


def convert_checkpoint(
    checkpoint: str | Path,
    preset: str,
    output: str | Path,
    *,
    num_labels: int | None = None,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Write config, weights, image processor and model code of a `checkpoint` of the official code into `output`.

    The checkpoint is the authors' of a preset, or of a training of one's own by its recipe, on classes of one's own.
    The folder appears whole or not at all. An existing one is kept, unless `overwrite`, which replaces it if it is a
    model's.

    Args:
        checkpoint: the file.
        preset: the one whose architecture it has.
        output: the folder.
        num_labels: the number of classes; by default, and always, the one that the weights have.
        names: of the classes; by default those that mmengine has written into the file, or the preset's if these are
            as many, or LABEL_0, LABEL_1, ...
        overwrite: whether to replace the folder.

    Raises:
        ValueError: for an unknown preset; a checkpoint that is damaged, of another preset or converted already; a
            number of classes or names that the weights do not have.
        OSError: for an output that exists or cannot be written.
    """
    chosen = get_preset(preset)
    with new_folder(output, overwrite=overwrite) as folder:
        file = open_checkpoint(checkpoint)
        names = _choose_names(chosen, file, str(checkpoint), num_labels, names)
        model, fitted = load_official_weights(chosen, file.weights, str(checkpoint), names)
        model.save_pretrained(folder)
        # Which values the masks of other data have, nobody knows here: data sets of this package have ids already.
        own = {} if names == chosen.labels.names else {"do_reduce_labels": False}
        chosen.image_processor(**own).save_pretrained(folder)
    return ConversionReport(
        len(fitted.used), fitted.dropped, Path(output), model.num_parameters(), names, file.left_aside
    )


def load_official_weights(
    preset: Preset, weights: Mapping[str, Tensor], source: str, names: Sequence[str] | None = None
) -> tuple[PreTrainedModel, Fit]:
    """Return the model of `preset` with the official `weights` in it, in eval mode.

    Every key is consumed or dropped by name. `names` are those of its classes, by default the preset's.

    Raises:
        CheckpointError: which names `source` and what is probably the matter: the preset that the weights belong to,
            their number of classes, or the keys that do not fit.
    """
    _refuse_own(weights, source)
    with init.no_init_weights():  # random values take longer than those that replace them
        model = build_model(preset, names)
    fitted = fit_any(weights, OFFICIAL_TABLES[model.config.model_type], model.state_dict())
    if not fitted.is_complete:
        raise CheckpointError(f"{source}: expected the weights of {preset.name}, got {_describe(weights, fitted)}")
    model.load_state_dict(fitted.weights, strict=False)  # strict but for batch counters, which `fit` leaves out
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # which keeps them as they are
    model.init_weights()  # what is in no checkpoint: the bases of SegNeXt's matrix factorization
    return model.eval(), fitted


def _choose_names(
    preset: Preset, file: Checkpoint, source: str, num_labels: int | None, names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the classes of a checkpoint; raises ValueError for a wrong number of them."""
    count = _count_classes(preset, file.weights, source)
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"expected different names of classes, got {', '.join(names)}")
    for given, what in ((num_labels, "classes"), (names and len(names), "names of classes")):
        if given not in (None, count):
            raise CheckpointError(f"{source}: expected {count} {what}, which its weights have, got {given}")
    written = file.class_names if file.class_names and len(file.class_names) == count else None
    if names is not None:
        return tuple(names)
    if count != len(preset.labels) and num_labels is None:
        for other in fitting_presets(file.weights):  # the authors' for other data, unless it says otherwise itself
            if written is None or same_names(written, PRESETS[other].labels.names):
                got = f"those of {other} ({_classes_of(count, preset)}); convert with that preset"
                raise CheckpointError(f"{source}: expected the weights of {preset.name}, got {got}")
    if count == len(preset.labels) and (written is None or same_names(written, preset.labels.names)):
        return preset.labels.names
    if written is not None and len(set(written)) == count:
        return written
    return tuple(f"LABEL_{index}" for index in range(count))


def _count_classes(preset: Preset, weights: Mapping[str, Tensor], source: str) -> int:
    """Return how many classes official weights are of.

    Raises:
        CheckpointError: if more than that distinguishes them from the preset's.
    """
    _refuse_own(weights, source)
    table, ours = _weights_of(preset.name)
    fitted = fit_any(on_meta(weights), table, ours)
    count = other_num_classes(fitted, ours, len(preset.labels))
    if fitted.missing or fitted.left_over or (fitted.misshaped and count is None):
        raise CheckpointError(f"{source}: expected the weights of {preset.name}, got {_describe(weights, fitted)}")
    return count or len(preset.labels)


def _refuse_own(weights: Mapping[str, Tensor], source: str) -> None:
    if has_own_names(weights):
        raise CheckpointError(f"{source}: expected a checkpoint of the official code, got {CONVERTED_ALREADY}")


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether names mean the same classes: case and punctuation are no difference, nor a few synonyms."""
    plain = [["".join(filter(str.isalnum, name.casefold())) for name in each] for each in (names, others)]
    agreeing = sum(name == other for name, other in zip(*plain))
    return len(names) == len(others) and 2 * agreeing >= len(names)


def fitting_presets(weights: Mapping[str, Tensor], any_classes: bool = False) -> list[str]:
    """Names of the presets whose keys and shapes `weights` has, or has but for the number of classes.

    Weights under our own names fit none: what is converted, or trained here, is not a checkpoint of the authors.
    """
    if has_own_names(weights):
        return []
    return [name for bare in without_prefixes(on_meta(weights)) for name in PRESETS if _fits(bare, name, any_classes)]


def _fits(weights: Mapping[str, Tensor], name: str, any_classes: bool) -> bool:
    table, ours = _weights_of(name)

    def is_right(fitted: Fit) -> bool:
        is_of_others = any_classes and other_num_classes(fitted, ours, len(PRESETS[name].labels)) is not None
        return not fitted.left_over and (not fitted.misshaped or is_of_others)

    some = dict(islice(weights.items(), 0, None, SAMPLED))
    if not is_right(fit(some, table, ours)):  # what is wrong with some of the keys is wrong with all of them
        return False
    fitted = fit(weights, table, ours)
    return is_right(fitted) and not fitted.missing


def describe_misfit(weights: Mapping[str, Tensor]) -> str:
    """Say of weights that no preset fits what they probably are: `of ...`."""
    if has_own_names(weights):
        return f"of another kind: {CONVERTED_ALREADY}; a model of one's own goes up with `offseg push`"
    if names := fitting_presets(weights, any_classes=True):
        preset = get_preset(names[0])
        count = _count_classes(preset, weights, preset.name)
        return (
            f"of {_classes_of(count, preset)}: they are {preset.name}'s but for that, from a training of one's own; "
            f"`offseg convert --preset {preset.name}` takes them, `offseg push` publishes the model"
        )
    fits = {name: fit_any(on_meta(weights), *_weights_of(name)) for name in PRESETS}
    nearest = min(fits, key=lambda name: fits[name].num_problems)
    return f"of none: {', '.join(list(weights)[:3])}, ... (the nearest is {nearest}: {fits[nearest].counts()})"


def _describe(weights: Mapping[str, Tensor], fitted: Fit) -> str:
    """Return what weights that do not fit a preset as `fitted` says probably are."""
    if names := fitting_presets(weights):
        return f"those of {names[0]} ({fitted.counts()}); convert with that preset"
    if names := fitting_presets(weights, any_classes=True):
        preset = get_preset(names[0])
        count = _count_classes(preset, weights, names[0])
        return f"those of {names[0]} for {_classes_of(count, preset)}; convert with that preset"
    if form := _pretrained_form(weights):
        return (
            f"those of {form}, which are none of a whole model with offset learning: start a training from them "
            "(model.pretrained in a recipe, load_pretrained in Python)"
        )
    return fitted.problems()


def _classes_of(count: int, preset: Preset) -> str:
    return f"{count} classes" + (f" instead of {len(preset.labels)}" if count != len(preset.labels) else "")


def _pretrained_form(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the published form that weights have, to start training from."""
    for bare in without_prefixes(on_meta(weights)):
        for forms in PRETRAINED_FORMS.values():
            for form in forms:
                if form.marker in bare and form.table not in OFFICIAL_TABLES.values():
                    return form.name
    return None


def on_meta(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes alone."""
    return {key: tensor.to("meta") for key, tensor in weights.items()}


@cache
def _weights_of(preset: str) -> tuple[KeyTable, dict[str, Tensor]]:
    """Return the table of a preset's family and the state dict of its model, without values."""
    model_type, weights = _architecture(PRESETS[preset].family, PRESETS[preset].size)
    num_labels = len(PRESETS[preset].labels)
    sizes = {UNUSUAL: num_labels, UNUSUAL + 1: num_labels + 1}  # masks have a class for nothing beside them
    shapes = {key: [sizes.get(length, length) for length in tensor.shape] for key, tensor in weights.items()}
    return OFFICIAL_TABLES[model_type], {key: weights[key].new_empty(shape) for key, shape in shapes.items()}


@cache
def _architecture(family: str, size: str) -> tuple[str, dict[str, Tensor]]:
    """Return the model type and the state dict of a model of UNUSUAL classes, without values."""
    preset = next(preset for preset in PRESETS.values() if (preset.family, preset.size) == (family, size))
    with torch.device("meta"):
        model = build_model(preset, [str(index) for index in range(UNUSUAL)])
    return model.config.model_type, model.state_dict()


def build_model(preset: Preset, names: Sequence[str] | None = None) -> PreTrainedModel:
    """Return the model of a preset with random weights, for classes of other names if there are any."""
    own = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    config = preset.config(**own)
    auto_class: Any = auto_model_class(config)
    return auto_class.from_config(config)
