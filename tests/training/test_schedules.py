"""The learning rates of transformers' schedules, iteration by iteration, and what of a schedule is refused."""

import pytest
import torch
from transformers import get_scheduler

from offseg_hf.training.optimization import learning_rate_factor, set_learning_rates
from offseg_hf.training.recipe import ScheduleRecipe, load_recipe


OPTIONS = {
    "linear": {},
    "cosine": {"num_cycles": 0.25},
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": 7},
    "warmup_stable_decay": {"num_decay_steps": 4},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_rates_are_those_of_transformers(kind):
    """As its scheduler sets them step by step, in two groups."""
    warmup = 0 if kind == "constant" else 3
    schedule = ScheduleRecipe(iterations=20, kind=kind, warmup_iterations=warmup, options=OPTIONS[kind])
    groups = [{"params": [torch.zeros(1)], "lr": rate, "initial_lr": rate} for rate in (0.1, 1.0)]
    theirs = torch.optim.SGD([dict(group) for group in groups])
    scheduler = get_scheduler(kind, theirs, warmup, 20, scheduler_specific_kwargs=OPTIONS[kind])
    ours = torch.optim.SGD(groups)
    for iteration in range(20):
        set_learning_rates(ours, iteration, schedule)
        expected = [group["lr"] for group in theirs.param_groups]
        assert [group["lr"] for group in ours.param_groups] == pytest.approx(expected, abs=1e-12)
        theirs.step()
        scheduler.step()


def test_epochs_are_whole_iterations():
    schedule = ScheduleRecipe(epochs=3, warmup_iterations=2, power=2.0)
    assert schedule.in_iterations(5) == ScheduleRecipe(iterations=15, warmup_iterations=2, power=2.0)
    assert learning_rate_factor(14, schedule.in_iterations(5)) == 0
    with pytest.raises(ValueError, match="warmup_iterations from 0 to below iterations"):
        ScheduleRecipe(epochs=1, warmup_iterations=5).in_iterations(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.kind=cosin"], "schedule.kind: expected one of polynomial, linear"),
        (["schedule.options={num_cycles: 2}"], "unknown key options.num_cycles"),
        (["schedule.kind=cosine", "schedule.options={min_lr: 1}"], "unknown key options.min_lr"),
        (["schedule.kind=warmup_stable_decay"], "expected options.num_decay_steps, which warmup_stable_decay needs"),
        (["schedule.kind=cosine_with_min_lr"], "min_lr"),
        (["schedule.kind=cosine", "schedule.power=2"], "schedule.power=2.0 has no effect, as it belongs to the kind"),
        (["schedule.kind=linear", "schedule.warmup_start_factor=0.5"], "schedule.warmup_start_factor=0.5 has no eff"),
        (["schedule.kind=constant", "schedule.warmup_iterations=5"], "schedule.warmup_iterations=5 has no effect"),
        (["schedule.epochs=2", "schedule.iterations=2"], "schedule: expected iterations or epochs, got both"),
        (["schedule.epochs=0"], "epochs above 0"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("offseg-t-ade", settings)


def test_epochs_take_the_place_of_inherited_iterations():
    schedule = load_recipe("offseg-t-ade", ["schedule.epochs=2", "schedule.kind=cosine"]).schedule
    assert (schedule.epochs, schedule.iterations, schedule.warmup_iterations) == (2, None, 1500)
