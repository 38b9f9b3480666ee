"""The optimizer's parameter groups and the learning rate, as the official code has them.

The official multipliers go by substrings of the official parameters' names, so that they reach further than meant:
the attention's `talking_head` learns like the head, the head's norms decay, and so do the encoder's norms that are
named by a number. What came of it is in the rows of `zoo.families`, in our names; the tests hold it against the
official optimizer.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import nn
from torch.optim import Optimizer

from offseg_hf.training.recipe import Recipe, ScheduleRecipe
from offseg_hf.training.schedules import factors_of_transformers
from offseg_hf.training.values import named_settings
from offseg_hf.zoo.families import Family, family_of


# What other models, of transformers and of segmentation_models_pytorch, call their encoder.
ENCODER = r"(model\.)?(pixel_level_module\.)?(encoder|backbone)\."
ENCODER_OF_EOMT = r"(embeddings|layers|layernorm)\."  # queries go through the last of its layers, too
# What is for its pretraining, and the norm before the classifier of a model that is inside of it.
UNUSED_OF_BACKBONE = re.compile(r"encoder\.(.*\bmask_token|(swin|focalnet|beit|model)\.layernorm\.\w+)")
FUSED = ("Adam", "AdamW", "SGD")  # have all of a step in one kernel, on the CPU too
OFFSETS = re.compile(r"(.*\.)?(class|feature)_offset_proj\.")


def parameter_multipliers(model: nn.Module, recipe: Recipe) -> Iterator[tuple[str, float, float]]:
    """Yield (name, multiplier of the learning rate, multiplier of the weight decay) of every parameter.

    Of a model that is not one of ours, vectors (norms, biases) do not decay; all of it learns alike if nothing in it
    is known as the encoder.
    """
    family, encoder = _family(model), encoder_of(model)
    has_encoder = any(encoder.match(name) for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        is_undecayed = re.match(family.undecayed_parameters, name) if family else parameter.ndim <= 1
        part = recipe.optimizer.encoder_multiplier if encoder.match(name) else recipe.optimizer.head_multiplier
        offsets = recipe.optimizer.offset_multiplier if OFFSETS.match(name) else 1.0
        yield name, offsets * (part if has_encoder else 1.0), 0.0 if is_undecayed else 1.0


def encoder_of(model: nn.Module) -> re.Pattern:
    """Return a pattern of what the names of the encoder's parameters begin with."""
    family = _family(model)
    return re.compile(family.encoder_parameters if family else _encoder_pattern(model))


def encoder_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that are the encoder of a model, by name; none of them is in another."""
    encoder = encoder_of(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if encoder.match(f"{name}.") and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def without_effect(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a backbone in our model that no feature map depends on, by name."""
    if _has_other_encoder(model):
        yield from (item for item in model.named_parameters() if UNUSED_OF_BACKBONE.fullmatch(item[0]))


def _family(model: nn.Module) -> Family | None:
    """Return the family whose names the parameters have; those of another encoder in it have none of ours."""
    if _has_other_encoder(model):
        return None
    return family_of(getattr(getattr(model, "config", None), "model_type", None))


def _has_other_encoder(model: nn.Module) -> bool:
    """Return whether a model, of a family with an encoder of its own, is on a backbone instead."""
    config = getattr(model, "config", None)
    family = family_of(getattr(config, "model_type", None))
    return family is not None and family.encoder is not None and getattr(config, "backbone_config", None) is not None


def _encoder_pattern(model: nn.Module) -> str:
    """Find the encoder by what transformers calls the base model; one called `model` holds the head, too."""
    if getattr(getattr(model, "config", None), "model_type", "").startswith("eomt"):
        return ENCODER_OF_EOMT
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    if not isinstance(base, nn.Module):
        return ENCODER
    return rf"model\.({_encoder_pattern(base)})" if prefix == "model" else rf"{re.escape(prefix)}\."


def optimizer_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Group the parameters that train by learning rate (`initial_lr`: that of the recipe) and weight decay.

    The model is the bare one: a wrapper's names are others. Raises ValueError if nothing in it trains.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, learning_rate, weight_decay in parameter_multipliers(model, recipe):
        if parameters[name].requires_grad:
            groups.setdefault((learning_rate, weight_decay), []).append(parameters[name])
    if not groups:
        raise ValueError(f"expected a {type(model).__name__} with parameters that train, got none that requires_grad")
    base = recipe.optimizer
    return [
        {
            "params": group,
            "lr": base.learning_rate * learning_rate,
            "initial_lr": base.learning_rate * learning_rate,
            "weight_decay": base.weight_decay * weight_decay,
        }
        for (learning_rate, weight_decay), group in groups.items()
    ]


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Make the optimizer over `optimizer_groups`; raises ValueError for options that it does not take so."""
    settings = recipe.optimizer
    arguments = {name: getattr(settings, name) for name in ("betas", "eps") if settings.takes(name)}
    if settings.kind in FUSED:
        arguments["fused"] = True
    groups = optimizer_groups(model, recipe)
    with named_settings("optimizer.options", settings.options):
        return getattr(torch.optim, settings.kind)(groups, **arguments, **settings.options)


def learning_rate_factor(iteration: int, schedule: ScheduleRecipe) -> float:
    """Return what the learning rates of an iteration, from 0, are multiplied by.

    Polynomially: the last iteration of the warm-up has the full rate, the last of all has 0, as in mmengine's LinearLR
    and PolyLR.
    """
    if schedule.kind != "polynomial":
        options = json.dumps(schedule.options, sort_keys=True)
        return _factors(schedule.kind, schedule.warmup_iterations, schedule.length, options)(iteration)
    if iteration < schedule.warmup_iterations:
        progress = iteration / (schedule.warmup_iterations - 1) if schedule.warmup_iterations > 1 else 1.0
        return schedule.warmup_start_factor + (1 - schedule.warmup_start_factor) * progress
    length = schedule.length - schedule.warmup_iterations - 1
    done = min(iteration - schedule.warmup_iterations, length)
    return (1 - done / length) ** schedule.power if length else 1.0


@cache
def _factors(kind, warmup_iterations: int, iterations: int, options: str) -> Callable[[int], float]:
    return factors_of_transformers(kind, warmup_iterations, iterations, json.loads(options))


def set_learning_rates(optimizer: Optimizer, iteration: int, schedule: ScheduleRecipe) -> None:
    """Give every group its learning rate of `iteration`, before the step."""
    factor = learning_rate_factor(iteration, schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
