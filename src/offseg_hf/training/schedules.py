"""Learning rates over a training as transformers' `get_scheduler` has them, as functions of the iteration."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal


ScheduleKind = Literal[
    "polynomial",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]
# Of its arguments, what other settings say; and min_lr, as groups of parameters have learning rates of their own.
NO_OPTIONS = ("optimizer", "last_epoch", "num_warmup_steps", "num_training_steps", "min_lr")


def options_of_schedule(kind: ScheduleKind) -> tuple[list[str], list[str]]:
    """Return the names of the options of a schedule, and of those that it needs."""
    if kind == "polynomial":  # is ours
        return [], []
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]).parameters.values()
    options = [parameter for parameter in parameters if parameter.name not in NO_OPTIONS]
    needed = [option.name for option in options if option.default is option.empty]
    return [option.name for option in options], needed


def factors_of_transformers(
    kind: ScheduleKind, warmup_iterations: int, iterations: int, options: Mapping[str, Any]
) -> Callable[[int], float]:
    """Return what maps an iteration, from 0, to what its learning rates are multiplied by."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # of which they are not asked more than that there is one
    scheduler: Any = get_scheduler(
        kind, optimizer, warmup_iterations, iterations, scheduler_specific_kwargs=dict(options)
    )
    return scheduler.lr_lambdas[0]
