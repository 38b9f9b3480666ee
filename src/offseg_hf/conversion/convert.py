"""Turn an official checkpoint into a folder that is complete for the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offseg_hf import auto_model_class
from offseg_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from offseg_hf.conversion.keys import Fit, KeyTable, fit
from offseg_hf.conversion.output import new_folder
from offseg_hf.conversion.tables import OFFICIAL_TABLES
from offseg_hf.presets import PRESETS, Preset, get_preset


SAMPLED = 25  # one key in so many tells most presets apart


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: `used` keys of the checkpoint are weights in `output`, those in `dropped` are not."""

    used: int
    dropped: list[str]
    output: Path
    num_parameters: int


def convert_checkpoint(
    checkpoint: str | Path, preset: str, output: str | Path, *, overwrite: bool = False
) -> ConversionReport:
    """Write config, weights, image processor and model code of the official `checkpoint` of `preset` into `output`.

    The folder appears whole or not at all. An existing one is kept, unless `overwrite`, which replaces it if it is a
    model's. Raises ValueError for an unknown preset or a checkpoint that is damaged or of another preset, and OSError
    for an output that exists or cannot be written.
    """
    recipe = get_preset(preset)
    with new_folder(output, overwrite=overwrite) as folder:
        model, fitted = load_official_weights(recipe, read_checkpoint(checkpoint), str(checkpoint))
        model.save_pretrained(folder)
        recipe.image_processor().save_pretrained(folder)
    return ConversionReport(len(fitted.used), fitted.dropped, Path(output), model.num_parameters())


def load_official_weights(preset: Preset, weights: Mapping[str, Tensor], source: str) -> tuple[PreTrainedModel, Fit]:
    """The model of `preset` with the official `weights` in it, in eval mode; every key is consumed or dropped by name.

    Raises `CheckpointError`, which names `source`, the keys that do not fit and the preset that they belong to.
    """
    model = build_model(preset)
    fitted = fit(weights, OFFICIAL_TABLES[model.config.model_type], model.state_dict())
    if not fitted.is_complete:
        names = fitting_presets(weights)
        got = f"those of {names[0]} ({fitted.counts()}); convert with that preset" if names else fitted.problems()
        raise CheckpointError(f"{source}: expected the weights of {preset.name}, got {got}")
    model.load_state_dict(fitted.weights, strict=False)  # strict but for batch counters, which `fit` leaves out
    return model.eval(), fitted


def fitting_presets(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the presets whose keys and shapes `weights` has."""
    shapes = {key: tensor.to("meta") for key, tensor in weights.items()}
    some = dict(islice(shapes.items(), 0, None, SAMPLED))
    names = []
    for name, (table, ours) in _preset_weights().items():
        sample = fit(some, table, ours)  # what is wrong with some of the keys is wrong with all of them
        if not (sample.left_over or sample.misshaped) and fit(shapes, table, ours).is_complete:
            names.append(name)
    return names


def describe_misfit(weights: Mapping[str, Tensor]) -> str:
    """Of weights that no preset fits, which one is nearest and what is wrong."""
    shapes = {key: tensor.to("meta") for key, tensor in weights.items()}
    fits = {name: fit(shapes, table, ours) for name, (table, ours) in _preset_weights().items()}
    nearest = min(fits, key=lambda name: fits[name].num_problems)
    return f"of none: {', '.join(list(weights)[:3])}, ... (the nearest is {nearest}: {fits[nearest].counts()})"


@cache
def _preset_weights() -> dict[str, tuple[KeyTable, dict[str, Tensor]]]:
    """Of every preset the table of its family and the state dict of its model, without values."""
    with torch.device("meta"):
        models = {name: build_model(preset) for name, preset in PRESETS.items()}
    return {name: (OFFICIAL_TABLES[model.config.model_type], model.state_dict()) for name, model in models.items()}


def build_model(preset: Preset) -> PreTrainedModel:
    config = preset.config()
    return auto_model_class(config).from_config(config)
