"""State that a training carries from iteration to iteration, beside the weights and the optimizer's moments."""

import math
import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


Model = TypeVar("Model", bound=nn.Module)
INITIALIZATION, ITERATION = range(2)  # what random numbers are drawn for


@dataclass
class Progress:
    """Record how far a training is.

    Args:
        iteration: steps of the optimizer done.
        evaluated: the last iteration that was evaluated.
        best_score: the highest mIoU so far.
        best_iteration: when that was.
        evaluations_since_best: how many have not been better since.
        loss_sum: of the iterations since the last line in the log.
        loss_count: their number.
    """

    iteration: int = 0
    evaluated: int = 0
    best_score: float | None = None
    best_iteration: int | None = None
    evaluations_since_best: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0

    def __post_init__(self):
        if self.best_score is not None and math.isnan(self.best_score):  # as nothing could be better, once
            self.forget_best()

    def is_due(self, interval: int) -> bool:
        """Return whether something is due that is done every so many iterations."""
        return self.iteration > 0 and self.iteration % interval == 0

    def add_iteration(self, loss: float) -> None:
        """Count an iteration of this loss."""
        self.iteration += 1
        self.loss_sum += loss
        self.loss_count += 1

    def take_mean_loss(self) -> float:
        """Return the mean loss since this was last asked."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def add_evaluation(self, score: float) -> bool:
        """Count an evaluation of this iteration; returns whether its mIoU is the best so far."""
        self.evaluated = self.iteration
        is_best = not math.isnan(score) and (self.best_score is None or score > self.best_score)
        self.evaluations_since_best += 1
        if is_best:
            self.best_score, self.best_iteration, self.evaluations_since_best = score, self.iteration, 0
        return is_best

    def forget_best(self) -> None:
        """Forget the best score, with which those to come cannot be compared."""
        self.best_score, self.best_iteration, self.evaluations_since_best = None, None, 0

    def includes(self, line: dict[str, float]) -> bool:
        """Return whether a line of the log was written before this moment."""
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


class WeightAverage(Generic[Model]):
    """Keep an exponential moving average of a model's weights, as a `model` of its own; buffers are copied.

    In the first iterations the average follows faster, or it would show the initial weights for long.
    """

    def __init__(self, model: Model, decay: float):
        self.model: Model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, iteration: int) -> None:
        """Take in the weights after `iteration` steps."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        follow = get_ema_multi_avg_fn(decay)
        follow(list(self.model.parameters()), list(model.parameters()), iteration)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
