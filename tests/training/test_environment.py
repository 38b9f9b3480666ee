"""What `accelerate launch` says, and what of it a training does."""

import pytest

from offseg_hf.training.environment import check_launcher, launcher_notes, make_accelerator, mixed_precision


@pytest.mark.parametrize(
    ("recipe", "launched", "expected"),
    [(None, None, "no"), (None, "no", "no"), (None, "bf16", "bf16"), ("bf16", "no", "bf16"), ("bf16", "BF16", "bf16")],
)
def test_the_launchers_precision_counts_where_the_recipe_says_none(recipe, launched, expected):
    environment = {} if launched is None else {"ACCELERATE_MIXED_PRECISION": launched}
    assert mixed_precision(recipe, environment) == expected


@pytest.mark.parametrize(("recipe", "launched"), [("no", "bf16"), ("fp16", "bf16")])
def test_two_precisions_are_an_error(recipe, launched):
    with pytest.raises(ValueError, match=f"mixed_precision={recipe} differs from what .* launched with, {launched}"):
        mixed_precision(recipe, {"ACCELERATE_MIXED_PRECISION": launched})
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION: expected one of no, fp16, bf16, got fp8"):
        mixed_precision(None, {"ACCELERATE_MIXED_PRECISION": "fp8"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_FSDP", "1"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ],
)
def test_ways_of_training_that_are_not_known_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: .* launch without it"):
        check_launcher({name: value})


def test_what_a_plain_launch_sets_is_no_error():
    check_launcher({"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "true"})


def test_gradients_are_accumulated_by_the_training_alone(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator("no", None, tmp_path).gradient_accumulation_steps == 1
    assert launcher_notes({}) == []
    (note,) = launcher_notes({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    assert note == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is left out: training.device_batch_size accumulates"


def test_half_precision_needs_a_gpu(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="training.mixed_precision=fp16 needs a GPU, got a CPU: take bf16 or no"):
        make_accelerator("fp16", None, tmp_path)
