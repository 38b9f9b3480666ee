"""`offseg train` and `offseg recipe`: how they are told a recipe. What they do then is tested in tests/training."""

import pytest
import yaml

from tests.cli.running import offseg


RECIPE = "offseg-t-ade"


@pytest.mark.parametrize(
    "arguments",
    [
        (RECIPE, "training.seed=3"),
        ("training.seed=3", RECIPE),
        ("--config", RECIPE, "training.seed=3"),
        ("training.seed=3", "--config", RECIPE),
        ("own.yaml",),
    ],
)
def test_a_recipe_and_settings(arguments, tmp_path):
    own = tmp_path / "own.yaml"
    result = offseg("recipe", RECIPE, "training.seed=3")
    own.write_text(result.stdout)
    result = offseg("recipe", *(own if part == own.name else part for part in arguments))
    assert (result.returncode, result.stderr) == (0, "")
    values = yaml.safe_load(result.stdout)
    assert (values["model"]["preset"], values["training"]["seed"]) == (RECIPE, 3)


@pytest.mark.parametrize("command", ["train", "recipe"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a recipe, which is a file or one of the presets that `offseg presets` lists"),
        (("training.seed=3",), "expected a recipe"),
        ((RECIPE, "--config", "own.yaml"), f"expected one recipe, got {RECIPE} and --config own.yaml"),
        ((RECIPE, "own.yaml"), f"expected one recipe and settings as key=value, got {RECIPE} and own.yaml"),
    ],
)
def test_no_recipe_or_two(command, arguments, message):
    result = offseg(command, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("arguments", [("offseg_t_ade",), ("--config", "offseg_t_ade")])
def test_train_names_the_nearest_recipes(arguments):
    """And is told a recipe as `recipe` is."""
    result = offseg("train", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "unknown recipe 'offseg_t_ade' (did you mean offseg-t-ade, " in line and len(line) < 250


def test_data_takes_the_place_of_the_recipes(tmp_path):
    """Whatever its name says in YAML."""
    result = offseg("train", RECIPE, "--data", tmp_path / "no: such", "--output", tmp_path / "run")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path}/no: such: no such folder" in result.stderr
    result = offseg("train", RECIPE, "--data", "photos", "data.source=photos")
    assert result.returncode == 2 and "got --data and data.source: leave out one of them" in result.stderr


def test_all_keys_are_listed():
    result = offseg("recipe", "--keys")
    lines = result.stdout.splitlines()
    assert "optimizer.learning_rate: a number (required)" in lines
    assert "training.seed: a whole number (default: 0)" in lines
    assert (
        lines[lines.index("schedule.iterations: a whole number or null (default: null)") + 1]
        == "    Steps of the optimizer."
    )
    assert offseg("recipe", RECIPE, "--keys").returncode == 2
