"""Activation checkpointing by the name that the installed transformers has for it: before 5.23 it was gradient
checkpointing."""

from transformers import PreTrainedModel


NEW = hasattr(PreTrainedModel, "activation_checkpointing_enable")


def enable_checkpointing(model: PreTrainedModel) -> None:
    model.activation_checkpointing_enable() if NEW else model.gradient_checkpointing_enable()


def disable_checkpointing(model: PreTrainedModel) -> None:
    model.activation_checkpointing_disable() if NEW else model.gradient_checkpointing_disable()


def is_checkpointing(model: PreTrainedModel) -> bool:
    return model.is_activation_checkpointing if NEW else model.is_gradient_checkpointing
