"""What a training carries from iteration to iteration, beside the weights and the optimizer's moments."""

import math
import random
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass
class Progress:
    """How far a training is.

    iteration: steps of the optimizer done. evaluated: the last iteration that was evaluated.
    best_score, best_iteration: the highest mIoU so far, and when.
    loss_sum, loss_count: of the iterations since the last line in the log.
    """

    iteration: int = 0
    evaluated: int = 0
    best_score: float | None = None
    best_iteration: int | None = None
    loss_sum: float = 0.0
    loss_count: int = 0

    def __post_init__(self):
        if self.best_score is not None and math.isnan(self.best_score):  # as nothing could be better, once
            self.forget_best()

    def forget_best(self) -> None:
        """What was the best so far is no longer comparable."""
        self.best_score = self.best_iteration = None

    def includes(self, line: dict[str, float]) -> bool:
        """Whether a line of the log was written before this moment."""
        return line["iteration"] <= (self.evaluated if "mIoU" in line else self.iteration)


def seed_generators(seed: int, *purpose: int) -> None:
    """Make all that torch, numpy and Python draw from here on a function of `seed` and `purpose`.

    Every iteration begins with it (drop path and dropout draw from torch's generator). So there is no state of
    generators to save, and what else has drawn, an evaluation or the start of workers, does not matter.
    """
    value = int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


class WeightAverage:
    """An exponential moving average of a model's weights, as a `model` of its own; buffers are copied.

    In the first iterations the average follows faster, or it would show the initial weights for long.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Take in the weights after `iteration` steps."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        follow = get_ema_multi_avg_fn(decay)
        follow(list(self.model.parameters()), list(model.parameters()), iteration)
        for average, buffer in zip(self.model.buffers(), model.buffers()):
            average.copy_(buffer)
