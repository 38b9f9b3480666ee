"""Parameter groups and learning rates against those of the official training."""

import gzip
import json
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from offseg_hf import apply_offset_learning
from offseg_hf.conversion.convert import build_model
from offseg_hf.conversion.keys import fit
from offseg_hf.conversion.tables import OFFICIAL_TABLES
from offseg_hf.training.optimization import (
    build_optimizer,
    encoder_modules,
    learning_rate_factor,
    optimizer_groups,
    parameter_multipliers,
    set_learning_rates,
)
from offseg_hf.training.recipe import ScheduleRecipe, load_recipe
from offseg_hf.zoo.presets import PRESETS
from tests.parity.fill import official_keys


GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "parity/goldens/optimizer.json.gz").read_bytes()))
STAGES = ["stage1", "stage2", "stage3", "stage4"]
GROUPS, RATES = GOLDEN["groups"], GOLDEN["lr_at_iteration"]


@cache
def meta_model(preset: str) -> PreTrainedModel:
    with torch.device("meta"):
        return build_model(PRESETS[preset])


def origins(preset: str) -> dict[str, str]:
    """Our parameter -> the official one."""
    model = meta_model(preset)
    official = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in official_keys()[preset].items()
    }
    found = fit(official, OFFICIAL_TABLES[model.config.model_type], model.state_dict()).origins
    return {name: found[name] for name, _ in model.named_parameters()}


def multipliers(model: nn.Module, recipe: str = "offseg-t-ade") -> dict[str, tuple[float, float]]:
    return {name: (lr, decay) for name, lr, decay in parameter_multipliers(model, load_recipe(recipe))}


@pytest.mark.parametrize("preset", GROUPS)
def test_every_parameter_has_the_official_multipliers(preset):
    official, ours = GROUPS[preset]["lr_mult_decay_mult"], multipliers(meta_model(preset), preset)
    assert {name: list(pair) for name, pair in ours.items()} == {
        name: official[key] for name, key in origins(preset).items()
    }
    unused = official.keys() - origins(preset).values()
    assert unused <= {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}


@pytest.mark.parametrize("preset", GROUPS)
def test_official_optimizer(preset):
    recipe, official = load_recipe(preset).optimizer, GROUPS[preset]
    assert official["optimizer"] == {
        "type": "AdamW",
        "lr": recipe.learning_rate,
        "betas": list(recipe.betas),
        "weight_decay": recipe.weight_decay,
        **({"eps": recipe.eps} if "eps" in official["optimizer"] else {}),
    }
    clipping = {"max_norm": recipe.max_gradient_norm, "norm_type": 2} if recipe.max_gradient_norm else None
    assert official["clip_grad"] == clipping


def official_multipliers(key: str) -> list[float]:
    """By the rules of all official configurations but Mask2Former's; of two substrings, the first counts."""
    if "head" in key:
        return [10.0, 1.0]
    return [1.0, 0.0] if "norm" in key else [1.0, 1.0]


# The sizes that the golden lacks.
@pytest.mark.parametrize(
    "preset", ["offseg-l-cocostuff", "segformer-b2-offset-cocostuff", "segnext-s-offset-cityscapes"]
)
def test_other_sizes_follow_the_official_rules(preset):
    for known in set(GROUPS) - {"mask2former-swin-t-offset-ade"}:
        official = GROUPS[known]["lr_mult_decay_mult"]
        assert {key: official_multipliers(key) for key in official} == official
    ours = multipliers(meta_model(preset), preset)
    assert {name: list(pair) for name, pair in ours.items()} == {
        name: official_multipliers(key) for name, key in origins(preset).items()
    }


@pytest.mark.parametrize("preset", GROUPS)
def test_groups_hold_every_parameter_once(preset):
    recipe, model = load_recipe(preset), meta_model(preset)
    groups = optimizer_groups(model, recipe)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = multipliers(model, preset)
    for group in groups:
        pairs = {expected[by_id[id(parameter)]] for parameter in group["params"]}
        rate, decay = recipe.optimizer.learning_rate, recipe.optimizer.weight_decay
        assert [(group["lr"], group["weight_decay"])] == [(rate * lr, decay * on) for lr, on in pairs]
        assert group["initial_lr"] == group["lr"]
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups) <= 4


def test_the_recipe_sets_the_multipliers():
    changes = {"head": 3, "encoder": 0.5, "offset": 0.1}
    recipe = load_recipe("offseg-t-ade", [f"optimizer.{name}_multiplier={value}" for name, value in changes.items()])
    found = {name: (lr, decay) for name, lr, decay in parameter_multipliers(meta_model("offseg-t-ade"), recipe)}
    assert found["offset_learning.class_representation"] == (3, 1)
    assert found["encoder.stem.conv1.conv.weight"] == (0.5, 1)
    for name in ("class", "feature"):
        assert found[f"offset_learning.{name}_offset_proj.weight"] == (pytest.approx(0.3), 1)
    assert {rate for rate, _ in found.values()} == {0.5, 3, found["offset_learning.class_offset_proj.weight"][0]}


def test_frozen_parameters_stay_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    recipe = load_recipe("offseg-t-ade")
    grouped = {id(parameter) for group in optimizer_groups(model, recipe) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model[1].parameters()}
    with pytest.raises(ValueError, match="expected a Sequential with parameters that train, got none"):
        optimizer_groups(model.requires_grad_(False), recipe)


@pytest.fixture
def segformer():
    config = SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    return SegformerForSemanticSegmentation(config)


def check_generic(model: nn.Module, encoder: str | tuple[str, ...]) -> None:
    """The parameters under `encoder` learn at 1, the others at 10; vectors do not decay."""
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith(encoder) for name in names) and not all(name.startswith(encoder) for name in names)
    assert multipliers(model) == {
        name: (1.0 if name.startswith(encoder) else 10.0, float(parameter.ndim > 1))
        for name, parameter in model.named_parameters()
    }


def test_models_of_transformers(segformer):
    check_generic(segformer, "segformer.")
    with torch.device("meta"):
        swin = SwinConfig(
            embed_dim=12, depths=[1] * 4, num_heads=[1] * 4, out_features=[f"stage{i + 1}" for i in range(4)]
        )
        check_generic(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=swin)), "backbone.")


def test_a_model_that_offset_learning_was_applied_to(segformer):
    adapted = apply_offset_learning(segformer)
    check_generic(adapted, "model.segformer.")
    assert [name for name, pair in multipliers(adapted).items() if "offset" in name and pair == (10, 1)]


def test_mask2former_of_transformers():
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=12, depths=[1] * 4, num_heads=[1] * 4, out_features=STAGES),
        encoder_layers=1,
        decoder_layers=2,
    )
    with torch.device("meta"):
        check_generic(Mask2FormerForUniversalSegmentation(config), "model.pixel_level_module.encoder.")


def test_a_model_without_a_known_encoder_learns_alike():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert multipliers(model) == {"0.weight": (1, 1), "0.bias": (1, 0), "1.weight": (1, 0), "1.bias": (1, 0)}


@pytest.mark.parametrize("preset", RATES)
def test_learning_rate_at_every_iteration(preset):
    """The official code multiplies from iteration to iteration, which adds up to 1e-9 of the rate."""
    recipe = load_recipe(preset)
    base = recipe.optimizer.learning_rate
    ours = {i: base * learning_rate_factor(int(i), recipe.schedule) for i in RATES[preset]}
    assert ours == pytest.approx(RATES[preset], rel=1e-9, abs=1e-9 * base)
    assert learning_rate_factor(recipe.schedule.iterations - 1, recipe.schedule) == 0


@pytest.mark.parametrize("warmup", [0, 1, 2, 9])
def test_short_schedules(warmup):
    schedule = ScheduleRecipe(iterations=10, warmup_iterations=warmup, warmup_start_factor=0.1, power=2.0)
    factors = [learning_rate_factor(i, schedule) for i in range(12)]
    peak = max(warmup - 1, 0)
    assert factors[peak] == 1 and factors[:peak] == sorted(factors[:peak])
    assert factors[peak:10] == sorted(factors[peak:10], reverse=True)
    assert factors[0] == (0.1 if warmup > 1 else 1.0)
    assert factors[9:] == ([1.0] * 3 if warmup == 9 else [0.0] * 3)
    assert learning_rate_factor(0, ScheduleRecipe(iterations=1)) == 1


def test_training_follows_the_schedule_and_resumes_bitwise(segformer):
    recipe = load_recipe("offseg-t-ade", ["schedule={iterations: 6, warmup_iterations: 3}"])

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, iterations: range) -> None:
        for iteration in iterations:
            set_learning_rates(optimizer, iteration, recipe.schedule)
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (iteration - 1.5) * (index % 3 - 1.2))
            optimizer.step()

    start = {name: value.clone() for name, value in segformer.state_dict().items()}
    optimizer = build_optimizer(segformer, recipe)
    train(segformer, optimizer, range(3))
    saved = {name: value.clone() for name, value in segformer.state_dict().items()}
    state = deepcopy(optimizer.state_dict())
    assert all(group["lr"] == group["initial_lr"] for group in optimizer.param_groups)
    train(segformer, optimizer, range(3, 6))
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    straight = segformer.state_dict()
    assert all(not torch.equal(straight[name], start[name]) for name, _ in segformer.named_parameters())

    resumed = SegformerForSemanticSegmentation(segformer.config)
    resumed.load_state_dict(saved)
    optimizer = build_optimizer(resumed, recipe)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, range(3, 6))
    assert all(torch.equal(value, straight[name]) for name, value in resumed.state_dict().items())


def test_torch_schedulers_take_the_factor():
    recipe = load_recipe("offseg-t-ade", ["schedule={iterations: 8, warmup_iterations: 3}"])
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    scheduler = LambdaLR(optimizer, partial(learning_rate_factor, schedule=recipe.schedule))
    for iteration in range(8):
        scheduled = [group["lr"] for group in optimizer.param_groups]
        set_learning_rates(optimizer, iteration, recipe.schedule)
        assert scheduled == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()


KINDS = {
    "Adam": {},
    "NAdam": {"momentum_decay": 0.01},
    "RAdam": {"decoupled_weight_decay": True},
    "Adamax": {},
    "Adafactor": {"d": 2.0},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "Adadelta": {"rho": 0.5},
    "ASGD": {"alpha": 0.5},
    "RMSprop": {"momentum": 0.5},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "AdamW": {"amsgrad": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_of_torch_by_name(kind):
    """A step is that of torch's own, with the groups' rates and decays."""
    settings = [f"optimizer.kind={kind}", f"optimizer.options={json.dumps(KINDS[kind])}", "optimizer.eps=1e-6"]
    if kind in ("Adafactor", "ASGD", "SGD"):
        settings.remove("optimizer.eps=1e-6")
    recipe = load_recipe("offseg-t-ade", settings)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = deepcopy(model)
    ours = build_optimizer(model, recipe)
    assert type(ours) is getattr(torch.optim, kind)
    rest = {} if len(settings) == 2 else {"eps": 1e-6}
    groups = [
        {"params": [twin.weight], "lr": 6e-5, "weight_decay": 0.01},
        {"params": [twin.bias], "lr": 6e-5, "weight_decay": 0.0},
    ]
    theirs = getattr(torch.optim, kind)(groups, **rest, **KINDS[kind])
    before = model.weight.detach().clone()
    for optimizer, network in ((ours, model), (theirs, twin)):
        for _ in range(3):
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(model.weight, before)
    assert torch.allclose(model.weight, twin.weight, atol=1e-7) and torch.allclose(model.bias, twin.bias, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_is_the_optimizers_own(kind, tmp_path):
    """If nobody has said otherwise; and a recipe that was saved is read back as it is."""
    recipe = load_recipe("offseg-t-ade", [f"optimizer.kind={kind}"])
    model = nn.Linear(3, 2)
    theirs = getattr(torch.optim, kind)(model.parameters()).defaults.get("eps")
    assert build_optimizer(model, recipe).defaults.get("eps") == theirs
    (tmp_path / "saved.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "saved.yaml", ["name=offseg-t-ade"]).optimizer == recipe.optimizer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["kind=adam"], "optimizer.kind: expected one of AdamW, Adam"),
        (["kind=LBFGS"], "optimizer.kind: expected one of"),
        (["kind=SGD", "betas=[0.5, 0.9]"], r"optimizer.betas=\[0.5, 0.9\] has no effect, as optimizer.kind=SGD"),
        (["kind=Adafactor", "eps=1e-3"], "optimizer.eps=0.001 has no effect, as optimizer.kind=Adafactor"),
        (["kind=SGD", "options={momentun: 1}"], r"unknown key options.momentun \(did you mean options.momentum\?\)"),
        (["options={lr: 1}"], "unknown key options.lr"),
    ],
)
def test_wrong_optimizers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("offseg-t-ade", [f"optimizer.{setting}" for setting in settings])


def test_an_option_that_torch_refuses_is_named():
    recipe = load_recipe("offseg-t-ade", ["optimizer.kind=SGD", "optimizer.options={momentum: fast}"])
    with pytest.raises(ValueError, match="optimizer.options.momentum=fast: TypeError"):
        build_optimizer(nn.Linear(2, 2), recipe)


def test_the_encoder_of_an_eomt():
    config = EomtConfig(hidden_size=32, num_hidden_layers=2, num_blocks=1, num_attention_heads=2, image_size=64)
    with torch.device("meta"):
        model = EomtForUniversalSegmentation(config)
    assert {*encoder_modules(model)} == {"embeddings", "layers", "layernorm"}
    check_generic(model, ("embeddings.", "layers.", "layernorm."))
