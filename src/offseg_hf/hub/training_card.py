"""The card of one's own model, from what its training wrote beside it.

Of `runs/NAME/best` that is `recipe.yaml` and `log.jsonl` in `runs/NAME`, and `environment.json` there: one object of
names and plain values, such as versions, device and `git_commit`. Whatever is not there is left out. A path of this
machine never reaches the card, only the last part of it.
"""

import io
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, PreTrainedConfig

from offseg_hf.data.classes_json import label_set_beside
from offseg_hf.data.label_sets import LABEL_SETS
from offseg_hf.hub.cards import TASK, front_matter, has_offset_learning, render_card
from offseg_hf.hub.repository import CARD
from offseg_hf.utils.files import file_digests
from offseg_hf.utils.texts import one_line
from offseg_hf.visualization import draw_plots, training_plots
from offseg_hf.zoo.registration import auto_model_class, register


# What lies in a training's folder.
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"  # a line of JSON per report
ENVIRONMENT_FILE = "environment.json"
STATE_FILE = "training_state.pt"  # beside the model, in the folder of each checkpoint
ADAPTER = "adapter"  # folder there, of what LoRA adds to what the training began with
ADAPTER_FILES = tuple(f"{ADAPTER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors"))
CURVES = "training_curves.png"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
SCORES = ("mIoU", "mAcc", "aAcc")


@dataclass(frozen=True)
class Training:
    """What is known of a model's training: empty where nothing is.

    recipe: as a tree of texts; recipe_text: the same in YAML. log: a line per report, with `loss` or with `mIoU`.
    iteration: of the weights. scores: ratios from 0 to 1, and `scores_of` says of which data.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    log: list[dict[str, float]] = field(default_factory=list)
    iteration: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    scores_of: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def training_card_files(folder: str | Path, repository: str) -> dict[str, str | bytes]:
    """Return, by path in the repository, all that says on the Hub how the model in `folder` was made.

    Args:
        folder: A checkpoint of a training, or the folder of any model of this package or of transformers.
        repository: The repository's name, as user/name.

    Raises:
        ValueError: For a folder without a model, or with a file beside it that is damaged.
    """
    folder = Path(folder)
    register()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: expected the folder of a model, got none that can be read: {one_line(error)}"
        ) from error
    training = read_training(folder)
    files: dict[str, str | bytes] = {}
    curves = _curves(training.log)
    if curves is not None:
        files[CURVES] = curves
    return {CARD: _card(folder, repository, config, training, CURVES if curves else None)} | files


def read_training(folder: Path) -> Training:
    """Return what lies in and beside the checkpoint `folder`.

    Raises:
        ValueError: For a file that is not what it should be.
    """
    run = folder.resolve().parent
    recipe_text = _read(run / RECIPE_FILE, shareable)
    recipe = _read(run / RECIPE_FILE, lambda text: yaml.load(shareable(text), yaml.BaseLoader)) or {}
    log = (_read(run / LOG_FILE, _lines) or []) if recipe else []
    environment = (_read(run / ENVIRONMENT_FILE, json.loads) or {}) if recipe else {}
    iteration = _iteration(folder / STATE_FILE)
    scores, scores_of = _evaluation(folder)
    if not scores:
        scores = next((line for line in log if line["iteration"] == iteration and "mIoU" in line), {})
        split, is_share = _validation_split(recipe)
        of = f"a part of the split `{split}` that it was not trained on" if is_share else f"the split `{split}`"
        scores_of = f"On {of}, one scale, by the training at iteration {iteration}." if scores else ""
    return Training(
        recipe=recipe,
        recipe_text=recipe_text or "",
        log=log,
        iteration=iteration,
        scores={name: scores[name] for name in SCORES if scores.get(name) is not None},
        scores_of=scores_of,
        environment={name: _without_place(str(value)) for name, value in environment.items()},
    )


def _validation_split(recipe: dict[str, Any]) -> tuple[str, bool]:
    """Return the split that a training was evaluated on, and whether that is a part that was held out of it."""
    data = recipe.get("data", {})
    is_share = data.get("validation_share", "null") != "null"
    name, default = ("train_split", "train") if is_share else ("validation_split", "validation")
    return data.get(name, default), is_share


def shareable(recipe: str) -> str:
    """Return a recipe in YAML without what is private in it: of a machine's paths, the last part only."""
    root = yaml.compose(recipe, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("expected keys and values")
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.ScalarNode):
            node.value = _without_place(node.value)
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value
    return yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=119).strip()


def _without_place(text: str) -> str:
    path = PureWindowsPath(text)  # its parts are separated by either slash
    first = path.parts[0] if path.parts else ""
    is_absolute = path.is_absolute() or PurePosixPath(text).is_absolute() or first.startswith(("~", "file:"))
    return path.name if is_absolute or ".." in path.parts else text


def _read(path: Path, parse: Any) -> Any:
    """Return what `parse` makes of a file; None without one."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: expected what a training writes, got a file that is none: {one_line(error)}"
        ) from error


def _lines(text: str) -> list[dict[str, float]]:
    """JSON lines; one that a kill cut short, the last, is left out."""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _iteration(state: Path) -> int | None:
    """Return the iteration that a checkpoint is of; of the weights in it nothing is read."""
    if not state.is_file():
        return None
    try:
        return torch.load(state, map_location="cpu", weights_only=True, mmap=True)["progress"]["iteration"]
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{state}: expected the state of a training, got a file that cannot be read") from error


def _evaluation(folder: Path) -> tuple[dict[str, float], str]:
    """Return the scores that `offseg evaluate` found for this model, and of what, if its report lies there."""
    for path in (folder / "evaluation.json", folder.resolve().parent / "evaluation.json"):
        report = _read(path, json.loads)
        if report is None or (path.parent != folder and Path(report["model"]["name"]).resolve() != folder.resolve()):
            continue
        files = report["model"].get("files")
        if files and files != file_digests(folder):
            continue  # the model has been changed since
        data, protocol = report["dataset"], report["protocol"]
        scales = "six scales and their mirror images" if protocol["test_time_augmentation"] else "one scale"
        return report["metrics"], f"On {data['num_images']} images, split `{data['split']}`, {scales}."
    return {}, ""


def _curves(log: list[dict[str, float]]) -> bytes | None:
    """Loss and mIoU over the iterations as a PNG; None if there is nothing to draw."""
    plots = training_plots(log)
    if not plots:
        return None
    file = io.BytesIO()
    draw_plots(plots).savefig(file, format="png")
    return file.getvalue()


def _card(folder: Path, repository: str, config: PreTrainedConfig, training: Training, curves: str | None) -> str:
    name = repository.rpartition("/")[2]
    id2label: Any = config.id2label
    classes = [id2label[index] for index in range(len(id2label))]
    model, data = (training.recipe.get(section, {}) for section in ("model", "data"))
    data_id = _hub_id(data.get("source"), folder)
    data_title = _data_title(classes, data.get("source"), folder)
    base_model = _hub_id(_start(model), folder)
    front = ModelCardData(
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=[data_id] if data_id else None,
        metrics=["mean_iou"] if training.scores else None,
        model_name=name,
        eval_results=_eval_results(training, data_id, data_title) or None,
        **front_matter(config, config.model_type),
    )
    if not training.scores:
        front.pop("model_name")
    architecture = (config.architectures or [config.model_type])[0]
    return render_card(
        front,
        config=config,
        repository=repository,
        has_code=bool(getattr(config, "auto_map", None)) and any(folder.glob("*.py")),
        official=False,
        title=name,
        summary=f"{architecture} for the {len(classes)} classes of {data_title}, made with offseg_hf.",
        scores=training.scores,
        scores_note=training.scores_of,
        curves=curves,
        recipe=training.recipe_text,
        training_note=_training_note(training, data_id, data_title, base_model),
        environment=training.environment,
        adapter=_adapter(folder, repository, config, training.recipe_text),
        data_title=data_title,
        classes=classes,
    )


def _adapter(folder: Path, repository: str, config: PreTrainedConfig, recipe: str) -> dict[str, Any] | None:
    """Return what a card says of the adapters beside the model, and the code that puts them on; None without."""
    if not recipe or not all((folder / name).is_file() for name in ADAPTER_FILES):
        return None
    model = yaml.safe_load(recipe)["model"]
    base_name = model.get("checkpoint") or model.get("backbone")
    auto_class, start = auto_model_class(config).__name__, f'"{base_name}"'
    changes = "".join(f", {name}={value!r}" for name, value in (model.get("config") or {}).items())
    changes = f"num_labels={len(config.id2label)}{changes}"
    imports = [f"from transformers import {auto_class}"]
    if model.get("backbone"):
        imports = ["from offseg_hf import OffSegForSemanticSegmentation"]
        base = f"OffSegForSemanticSegmentation.from_backbone({start}, {changes})"
    else:
        base = f"{auto_class}.from_pretrained({start}, {changes}, ignore_mismatched_sizes=True)"
    if model.get("offset_learning"):
        imports.insert(0, "from offseg_hf import apply_offset_learning")
        base = f"apply_offset_learning({base})"
    elif has_offset_learning(config) and not model.get("backbone"):
        imports.insert(0, "import offseg_hf")
    return {
        "megabytes": sum((folder / name).stat().st_size for name in ADAPTER_FILES) / 1e6,
        "rank": model["lora_rank"],
        "base": base_name,
        "code": "\n".join(
            [
                *imports,
                "from peft import PeftModel",
                "",
                f"base = {base}",
                f'model = PeftModel.from_pretrained(base, "{repository}", subfolder="{ADAPTER}").eval()',
            ]
        ),
    }


def _training_note(training: Training, data_id: str | None, data_title: str, base_model: str | None) -> str:
    if not training.recipe:
        return ""
    recipe = training.recipe
    done, schedule = training.iteration, recipe["schedule"]
    is_in_epochs = schedule.get("epochs", "null") != "null"
    length = f"{schedule['epochs']} epochs" if is_in_epochs else f"{schedule['iterations']} iterations"
    if done is not None:
        length = f"{done} iterations (of at most {length})" if is_in_epochs else f"{done} of {length}"
    data = f"[{data_id}](https://huggingface.co/datasets/{data_id})" if data_id else data_title
    start = _start(recipe["model"])
    begin = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else start
    optimizer = recipe["optimizer"]
    learning = f"{optimizer.get('kind', 'AdamW')} at a learning rate of {optimizer['learning_rate']}"
    return (
        f"{length} of {recipe['training']['batch_size']} samples of {data}, split "
        f"`{recipe['data']['train_split']}`, with {learning}, "
        f"beginning from {begin or 'random weights'}."
    )


def _start(model: dict[str, Any]) -> str | None:
    """Return what the weights began from: a name on the Hub, a file or a folder; None for random ones."""
    return next(
        (model[key] for key in ("checkpoint", "backbone", "pretrained") if model.get(key, "null") != "null"), None
    )


def _hub_id(source: str | None, folder: Path) -> str | None:
    """`source` if it is a name on the Hub, and not of something that lies around here."""
    if source is None or not HUB_ID.fullmatch(source) or source.endswith(WEIGHTS):
        return None
    is_local = any((place / source).exists() for place in (Path.cwd(), *folder.resolve().parents))
    return None if is_local else source


def _data_title(classes: list[str], source: str | None, folder: Path) -> str:
    """Name the data set: by its classes.json or a benchmark's classes, else the last part of where it came from."""
    for labels in (label_set_beside(folder), *LABEL_SETS.values()):
        if labels is not None and labels.names == tuple(classes):
            return labels.title
    return PureWindowsPath(source).name if source else "the data that it was trained on"


def _eval_results(training: Training, data_id: str | None, data_title: str) -> list[EvalResult]:
    if "mIoU" not in training.scores:
        return []
    split, _ = _validation_split(training.recipe)
    return [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=data_id or re.sub(r"\W+", "-", data_title.casefold()),
            dataset_name=data_title,
            dataset_split=split,
            metric_type="mean_iou",
            metric_name="mIoU, %",
            metric_value=round(100 * training.scores["mIoU"], 2),
            verified=False,
        )
    ]
