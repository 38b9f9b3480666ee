"""Going on from a trained model in another training: with its weights, and of its classifier the classes in common."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from offseg_hf.data.label_sets import LabelSet, plain_name
from offseg_hf.inference.segmenter import require_segmentation_model
from offseg_hf.training.values import check_settings, named_settings, require_known
from offseg_hf.zoo.registration import auto_model_class


SHOWN_NAMES = 8
# What a model begins with, and a trained one has left behind.
INITIAL = ("layer_scale_init_value", "start_without_offsets")
IGNORED_LABEL = ("semantic_loss_ignore_index", "loss_ignore_index")


def load_trained(
    checkpoint: str, labels: LabelSet, changes: Mapping[str, Any], say: Callable[[str], None]
) -> PreTrainedModel:
    """Load a trained model for the classes of `labels`.

    A class that the checkpoint knows by the same name, whatever its number there, keeps its rows of the classifier;
    the others begin anew.

    Args:
        checkpoint: folder, or name on the Hub.
        labels: the classes.
        changes: of fields of its configuration.
        say: told which classes are new, and what else the checkpoint lacks.

    Raises:
        ValueError: for changes that do not fit the weights.
    """
    config = _configuration(checkpoint, changes)
    known: Mapping[Any, str] = config.id2label or {}
    names = [known.get(index, f"LABEL_{index}") for index in range(_num_classes(config))]
    model = _load(checkpoint, config, changes, say)
    if _is_nameless(names) and len(names) == len(labels):
        say(f"{checkpoint} has no names of classes: its classifier is taken over by their numbers")
    elif names != list(labels.names):
        wanted = _set_classes(_configuration(checkpoint, changes), labels)
        pairs = _same_names(names, labels.names)
        rest = _background(names, pairs)
        if [old for _, old in pairs] != list(range(len(names))) or len(names) != len(labels):
            model = _with_classes(
                model, auto_model_class(wanted).from_config(wanted, dtype=torch.float32), pairs, rest
            )
        new = [name for index, name in enumerate(labels.names) if index not in dict(pairs)]
        if new:
            shown = ", ".join(new[:SHOWN_NAMES]) + (", ..." if len(new) > SHOWN_NAMES else "")
            kept = f"{len(pairs)} of {len(labels)} classes are {checkpoint}'s, by name"
            begin = f"begin{'s' if len(new) == 1 else ''} {'anew' if rest is None else f'as its {names[rest]}'}"
            say(f"the classifier: {kept}; {shown} {begin}")
    _set_classes(model.config, labels)
    return model


def _configuration(checkpoint: str, changes: Mapping[str, Any]) -> PreTrainedConfig:
    own = {"trust_remote_code": False}  # nor is there a question whether to run the code of others
    config = AutoConfig.from_pretrained(checkpoint, **own)
    require_known(changes, list(config.to_dict()), "model.config.")
    changes = check_settings("model.config", changes, {item.name: item.type for item in fields(config)})
    for name in INITIAL:
        if name in changes and changes[name] != getattr(config, name):
            raise ValueError(
                f"model.config.{name}={json.dumps(changes[name])} has no effect, as the weights are those of "
                f"{checkpoint}, which began with {json.dumps(getattr(config, name))}: remove it"
            )
    with named_settings("model.config", changes):
        return AutoConfig.from_pretrained(checkpoint, **own, **({"semantic_loss_class_weights": None} | dict(changes)))


def _load(
    checkpoint: str, config: PreTrainedConfig, changes: Mapping[str, Any], say: Callable[[str], None]
) -> PreTrainedModel:
    require_segmentation_model(f"model.checkpoint={checkpoint}", config, training=True)
    with named_settings("model.config", changes):
        model, found = auto_model_class(config).from_pretrained(
            checkpoint,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    if found["mismatched_keys"]:
        name, there, here = sorted(found["mismatched_keys"])[0]
        raise ValueError(
            f"{len(found['mismatched_keys'])} weights of {checkpoint} have another shape than its configuration with "
            f"{', '.join(f'model.config.{name}' for name in changes) or 'nothing changed'} wants, such as {name}: "
            f"{tuple(there)}, wanted {tuple(here)}"
        )
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        say(f"{checkpoint} lacks {len(names)} weights of the model, which begin anew, such as {names[0]}")
    return model


def _set_classes(config: PreTrainedConfig, labels: LabelSet) -> PreTrainedConfig:
    """Set the classes of a configuration, and in those in it the label that does not count in a loss."""
    config.id2label, config.label2id = labels.id2label(), labels.label2id()
    parts = [config]
    for part in parts:
        for name in IGNORED_LABEL:
            if hasattr(part, name):
                setattr(part, name, labels.ignore_index)
        parts += [
            getattr(part, name) for name in part.sub_configs if isinstance(getattr(part, name), PreTrainedConfig)
        ]
    return config


def _num_classes(config: PreTrainedConfig) -> int:
    return config.num_labels or 0


def _is_nameless(names: Sequence[str]) -> bool:
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def _same_names(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Pair (class id here, class id there) of the classes that both have; case and punctuation are no difference."""
    pairs: dict[int, int] = {}
    for form in (str, plain_name):
        there, here = Counter(map(form, old)), Counter(map(form, new))
        index_of = {form(name): index for index, name in enumerate(old)}
        for index, name in enumerate(map(form, new)):
            if index not in pairs and there[name] == here[name] == 1:
                pairs[index] = index_of[name]
    return sorted(pairs.items())


def _background(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> int | None:
    """Find the class that is all that other classes are not, if there is one and it does not stay.

    Scores count by their distance from those of other classes alone. Beside a class that stays, new ones, whose scores
    are near 0, would be far from it anywhere: DeepLabV3's car would be all of a street (loss 7.7, 2.5 with this).
    """
    found = [index for index, name in enumerate(names) if plain_name(name) == "background"]
    return found[0] if len(found) == 1 and pairs and found[0] not in dict(pairs).values() else None


@torch.no_grad()
def _with_classes(
    old: PreTrainedModel, new: PreTrainedModel, pairs: Sequence[tuple[int, int]], background: int | None
) -> PreTrainedModel:
    """Give `new` the weights of `old` that do not depend on classes, and of the rest what belongs to `pairs`.

    Other classes begin near `background` in layers that give scores.
    """
    axes, weights = class_axes(old), old.state_dict()
    for name, tensor in new.state_dict().items():
        if name not in axes:
            tensor.copy_(weights[name])
        elif axes[name] is not None:
            _copy_classes(tensor.movedim(axes[name], 0), weights[name].movedim(axes[name], 0), old, new, pairs)
            layer = new.get_submodule(name.rpartition(".")[0])
            if background is not None and isinstance(layer, nn.Linear | nn.Conv2d):
                others = [index for index in range(_num_classes(new.config)) if index not in dict(pairs)]
                tensor[others] += weights[name][background]
    return new


def _copy_classes(
    new: Tensor, old: Tensor, old_model: PreTrainedModel, new_model: PreTrainedModel, pairs: Sequence[tuple[int, int]]
) -> None:
    """Copy rows of classes; those behind them, as for "no object", are the same in both."""
    for here, there in pairs:
        new[here] = old[there]
    if (behind := len(old) - _num_classes(old_model.config)) > 0:
        new[_num_classes(new_model.config) :] = old[-behind:]


def class_axes(model: PreTrainedModel) -> dict[str, int | None]:
    """Find the tensors whose shape depends on the number of classes: which axis counts them; None if it is several.

    By what a class more would change.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = _num_classes(config) + 1
    with torch.device("meta"):
        larger = auto_model_class(config).from_config(config).state_dict()
    axes: dict[str, int | None] = {}
    for name, tensor in model.state_dict().items():
        differing = [axis for axis, (a, b) in enumerate(zip(tensor.shape, larger[name].shape, strict=True)) if a != b]
        if differing:
            axes[name] = differing[0] if len(differing) == 1 else None
    return axes
