"""`offseg finetune`: a trained model on data of one's own, by a recipe that is fitted to both."""

import json
from pathlib import Path
from typing import Annotated

import typer

from offseg_hf.cli.console import quiet_libraries, wrong_usage
from offseg_hf.cli.train import Resume


def finetune(
    data: Annotated[str, typer.Option(help="Folder of a data set, or its name on the Hub.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the recipe, such as training.batch_size=4; `offseg recipe --keys` lists them all.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of a trained model, of any architecture, or its name on the Hub.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Folder of a trained backbone, or its name on the Hub, to build a new OffSeg on, instead of --model.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times that all samples are seen; 50 by default.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and log.")] = Path("runs", "finetune"),
    offset_learning: Annotated[
        bool, typer.Option("--offset-learning", help="Put offset learning in the place of the model's classifier.")
    ] = False,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Train the rest of the model alone.")
    ] = False,
    lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Train adapters (LoRA) in the encoder, the rest whole; needs peft."),
    ] = None,
    resume: Resume = None,
) -> None:
    """Fine-tune a trained model on a data set: sizes, batch, learning rates and loss are fitted to both.

    Five lines say what was chosen, before it starts. It is evaluated each epoch, and ends early if that gains nothing.

    Examples:
        offseg finetune --data my_photos --model nvidia/segformer-b0-finetuned-ade-512-512 --output runs/mine
        offseg finetune --data my_photos --model runs/before/best --epochs 20 --freeze-encoder
        offseg finetune --data my_photos --model runs/before/best training.patience=5 loss='[{kind: dice}]'
        offseg finetune --data my_photos --backbone facebook/dinov2-small --output runs/mine
        offseg finetune --data my_photos --backbone facebook/dinov2-small --lora 8 --output runs/mine
    """
    changes = list(settings or [])
    if others := [change for change in changes if "=" not in change]:
        wrong_usage(f"expected settings as key=value, got {others[0]}")
    options = {
        "data.source": ("--data", data),
        "model.checkpoint": ("--model", model),
        "model.backbone": ("--backbone", backbone),
        "schedule.epochs": ("--epochs", epochs),
        "model.offset_learning": ("--offset-learning", offset_learning or None),
        "model.freeze": ("--freeze-encoder", "encoder" if freeze_encoder else None),
        "model.lora_rank": ("--lora", lora),
    }
    keys = [change.partition("=")[0].strip() for change in changes]
    starts = ("model.checkpoint", "model.backbone")
    given = [options[key][0] for key in starts if key in keys or options[key][1] is not None]
    if len(given) != 1:
        wrong_usage(f"expected --model or --backbone, got {' and '.join(given) or 'neither'}")
    for key, (option, value) in options.items():
        if value is None:
            continue
        if key in keys:
            wrong_usage(f"expected {key} once, got {option} and {key}: leave out one of them")
        changes.append(f"{key}={json.dumps(value)}")

    from offseg_hf.training.recipe import FINETUNE, load_recipe
    from offseg_hf.zoo.presets import PRESETS

    if model in PRESETS and not Path(model).exists():
        wrong_usage(
            f"expected a trained model, got the preset {model}, which is an architecture: `offseg train {model} "
            f"--data {data}` trains it from ImageNet weights"
        )

    load_recipe(FINETUNE, changes)  # a mistake in it is an error before anything is loaded

    from offseg_hf.training.finetuning import fit_recipe
    from offseg_hf.training.loop import train

    quiet_libraries()
    recipe, lines = fit_recipe(changes, output, resume)
    train(recipe, output, resume, lines)
