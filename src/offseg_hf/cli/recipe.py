"""`offseg recipe`: a recipe with all that it inherits, and all keys; and how commands are told a recipe."""

from typing import Annotated

import typer

from offseg_hf.cli.console import preset_names, stdout, wrong_usage


Name = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A recipe: a file, or the name of a preset.", autocompletion=preset_names),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the recipe's, such as data.source=photos; `offseg recipe --keys` lists them all.",
    ),
]
Config = Annotated[str | None, typer.Option(hidden=True, help="The recipe, as an option.")]


def recipe(
    name: Name = None,
    settings: Settings = None,
    config: Config = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List all keys of recipes: type, default, and what they do.")
    ] = False,
) -> None:
    """Print a recipe as YAML, with all that it inherits.

    Examples:
        offseg recipe --keys
        offseg recipe offseg-t-ade data.source=my_photos > my_recipe.yaml
        offseg recipe my_recipe.yaml training.batch_size=8
    """
    if keys:
        if name is not None or config is not None:
            wrong_usage("expected --keys alone, as the keys are those of every recipe")
        _print_keys()
        return
    chosen, changes = recipe_and_settings("recipe", name, settings, config)

    from offseg_hf.training.recipe import load_recipe

    stdout.print(load_recipe(chosen, changes).dump(), end="")


def _print_keys() -> None:
    from offseg_hf.training.recipe import Recipe
    from offseg_hf.training.values import described
    from offseg_hf.utils.yaml_files import dump_yaml

    for setting in described(Recipe):
        default = "required" if setting.is_required else dump_yaml({"default": setting.default}).strip()
        stdout.print(f"{setting.key}: {setting.kind} ({default})\n    {setting.documentation}")


def recipe_and_settings(
    command: str, name: str | None, settings: list[str] | None, config: str | None
) -> tuple[str, list[str]]:
    """Return which recipe was meant, and the settings that replace its own.

    Args:
        command: which asks, for its error.
        name: its first argument.
        settings: its other arguments; of all of them the one without `=` is the recipe, wherever it stands.
        config: the recipe as an option. With neither or both the command ends as one that was called wrongly.
    """
    arguments = [name, *(settings or [])] if name is not None else []
    names = [argument for argument in arguments if "=" not in argument]
    if config is not None and names:
        wrong_usage(f"expected one recipe, got {names[0]} and --config {config}: leave out one of them")
    if config is None and not names:
        wrong_usage(
            f"expected a recipe, which is a file or one of the presets that `offseg presets` lists, as in "
            f"`offseg {command} offseg-t-ade`"
        )
    if len(names) > 1:
        wrong_usage(f"expected one recipe and settings as key=value, got {' and '.join(names)}")
    return config or names[0], [argument for argument in arguments if "=" in argument]
