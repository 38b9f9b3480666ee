"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) in the encoder of models, by peft; the rest trains whole.

The model stays what it is, with layers of peft in the places of its own. What is saved is the model with its adapters
merged, which any `from_pretrained` reads, and in `adapter/` beside it what peft adds to what it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from offseg_hf.hub.training_card import ADAPTER, HUB_ID
from offseg_hf.training.optimization import encoder_of


GEOMETRY = ("kernel_size", "stride", "dilation")


def require_peft() -> None:
    """Raise ValueError, with the command that installs it, if peft is not there."""
    if find_spec("peft") is None:
        raise ValueError('model.lora_rank needs the package peft: pip install "offseg-hf[lora]"')


def add_adapters(model: PreTrainedModel, base: str, rank: int, alpha: int | None = None) -> None:
    """Put adapters beside the linear layers and 1x1 convolutions of the encoder, which rests beside that.

    Args:
        model: what is trained, in place.
        base: the checkpoint or the backbone that it begins with, a folder or a name on the Hub.
        rank: of the adapters.
        alpha: their scale times the rank; by default the rank.

    Raises:
        ValueError: without peft, and for a model in which no such layer is known as the encoder's.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    encoder, layers = encoder_of(model), adapted_layers(model)
    if not layers:
        raise ValueError(
            f"model.lora_rank={rank}: nothing in this {type(model).__name__} is known as a linear layer or a 1x1 "
            "convolution of its encoder"
        )
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = [name for name, _ in _parts_besides(model, encoder.match)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers), model)
    model.peft_config["default"] = replace(  # for `save_model`
        model.peft_config["default"], modules_to_save=whole, base_model_name_or_path=base
    )
    for name in layers:
        layer = model.get_submodule(name)
        for attribute in GEOMETRY:  # by which MobileNets pad what they give to a convolution
            if hasattr(layer.get_base_layer(), attribute):
                setattr(layer, attribute, getattr(layer.get_base_layer(), attribute))
    for name, parameter in model.named_parameters():
        if name in learning and not encoder.match(name):
            parameter.requires_grad_(True)


def adapted_layers(model: nn.Module) -> list[str]:
    """Name the linear layers and 1x1 convolutions of the encoder, but those that others compute with as they are."""
    encoder = encoder_of(model)
    of_others = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    return [
        name
        for name, module in model.named_modules()
        if encoder.match(f"{name}.weight") and _is_linear(module) and not name.startswith(tuple(of_others))
    ]


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as every model is; one with adapters merged, and what peft adds to its base beside it."""
    if not hasattr(model, "peft_config"):
        model.save_pretrained(folder)
        return
    merged(model).save_pretrained(folder)
    config = model.peft_config["default"]
    base = config.base_model_name_or_path
    is_on_hub = bool(HUB_ID.fullmatch(base)) and not Path(base).exists()
    config = replace(config, base_model_name_or_path=base if is_on_hub else Path(base).name, inference_mode=True)
    config.save_pretrained(folder / ADAPTER)
    parts = tuple(f"{name}." for name in config.modules_to_save)
    weights = {name: value for name, value in model.state_dict().items() if ".lora_" in name or name.startswith(parts)}
    save_file(
        {f"base_model.model.{name.replace('.default.', '.')}": _plain(value) for name, value in weights.items()},
        folder / ADAPTER / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


@torch.no_grad()
def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy without adapters that computes the same, but for rounding: the model itself is trained on."""
    from peft.tuners.lora import LoraLayer

    copy = deepcopy(model)
    for name, layer in [(name, module) for name, module in copy.named_modules() if isinstance(module, LoraLayer)]:
        layer.merge()
        copy.set_submodule(name, layer.get_base_layer())
    del copy.peft_config
    return copy


def _is_linear(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.kernel_size == (1, 1) and module.groups == 1
    return type(module) is nn.Linear


def _parts_besides(model: nn.Module, matches: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest modules that have parameters, none of which matches."""
    found: list[str] = []
    for name, module in model.named_modules():
        names = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and names and not is_inside and not any(map(matches, names)):
            found.append(name)
            yield name, module


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()
