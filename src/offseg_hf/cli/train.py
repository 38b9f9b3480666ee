"""`offseg train`: a model by a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.cli.console import quiet_libraries, wrong_usage
from offseg_hf.cli.recipe import Config, Name, Settings, recipe_and_settings


Resume = Annotated[
    str | None,
    typer.Option(help="auto, to go on from the newest checkpoint in the output, or a checkpoint's folder."),
]


def train(
    name: Name = None,
    settings: Settings = None,
    config: Config = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of a data set, or its name on the Hub, instead of the recipe's.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and log; runs/NAME by default.")] = None,
    resume: Resume = None,
) -> None:
    """Train a model by a recipe.

    The same under `accelerate launch` (scripts/train.py) trains in several processes. SIGINT and SIGTERM end it with a
    checkpoint; `--resume auto` goes on as if nothing had happened.

    Examples:
        offseg train offseg-t-ade --data my_photos --output runs/mine
        offseg train recipe.yaml optimizer.learning_rate=1e-4 training.seed=1
        offseg train offseg-t-ade --output runs/mine --resume auto
    """
    chosen, changes = recipe_and_settings("train", name, settings, config)
    if data is not None:
        if any(change.startswith("data.source=") for change in changes):
            wrong_usage("expected the data set once, got --data and data.source: leave out one of them")
        changes.append(f"data.source={json.dumps(data)}")

    from offseg_hf.training.recipe import load_recipe

    recipe = load_recipe(chosen, changes)  # a mistake in it is an error before anything is loaded

    from offseg_hf.training.loop import train as train_by_recipe

    quiet_libraries()
    train_by_recipe(recipe, output or Path("runs", Path(chosen).stem), resume)
