"""Recipes: how a model is trained, as data. `configs/<preset>.yaml` are the 34 official ones.

A recipe's file names those it builds on (`inherit:`, a path or a list, relative to the file): its own values win over
theirs, a later one's over an earlier one's, and the `key=value` of a command line over all. Everything is checked by
name and type, so that a misspelt option is an error and not a training without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.presets import Preset, get_preset
from offseg_hf.training.values import construct, dump_yaml, merge, nearest, parse_yaml, require, require_known, typed


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What is trained, and what it starts from.

    preset: architecture and test protocol, by the name of an official recipe; the classes come with the data.
    pretrained: weights to start from, as `load_pretrained` takes them; None to start from random ones.
    checkpoint: a trained model of any architecture (folder or name on the Hub) to go on from, in place of `preset` and
        `pretrained`.
    config, image_processor: what replaces fields of the preset's model configuration and of its image processor.
    """

    preset: str | None = None
    pretrained: str | None = None
    checkpoint: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.preset is None and self.checkpoint is None:
            raise ValueError("expected preset or checkpoint, got neither")
        if self.preset is not None:
            get_preset(self.preset)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the samples come from, as `load_segmentation_data` takes it.

    source: a folder (of which benchmark, it tells itself), or the name of a data set on the Hub.
    config_name, revision: which configuration and which branch, tag or commit of it.
    labels: the classes, where the data does not know them: a benchmark's name or a classes.json.
    num_workers: processes that read and augment, per process that trains.
    """

    source: str
    config_name: str | None = None
    revision: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    image_column: str | None = None
    label_column: str | None = None
    labels: str | None = None
    num_workers: int = 4

    def __post_init__(self):
        require(self.num_workers >= 0, "num_workers of 0 or more", self.num_workers)


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW. Encoder and head learn at `learning_rate` times their multiplier; what decays: `training.optimization`.

    offset_multiplier: of the head's, for the two projections that offsets come from. From scratch they run ahead of
        the class representations that they move, and want less (0.1).
    max_gradient_norm: to which the norm of all gradients together is clipped; None to leave them.
    """

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    encoder_multiplier: float = 1.0
    head_multiplier: float = 1.0
    offset_multiplier: float = 1.0
    max_gradient_norm: float | None = None

    def __post_init__(self):
        require(self.learning_rate > 0, "a learning_rate above 0", self.learning_rate)
        require(self.weight_decay >= 0, "a weight_decay of 0 or more", self.weight_decay)
        require(all(0 <= beta < 1 for beta in self.betas), "betas in [0, 1)", self.betas)
        require(self.eps > 0, "an eps above 0", self.eps)
        multipliers = (self.encoder_multiplier, self.head_multiplier, self.offset_multiplier)
        require(min(multipliers) >= 0, "multipliers of 0 or more", multipliers)
        norm = self.max_gradient_norm
        require(norm is None or norm > 0, "a max_gradient_norm above 0, or null", norm)


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """How long, and the learning rate over it: a linear warm-up from `warmup_start_factor`, then polynomial decay."""

    iterations: int
    warmup_iterations: int = 0
    warmup_start_factor: float = 1e-6
    power: float = 1.0

    def __post_init__(self):
        require(self.iterations > 0, "iterations above 0", self.iterations)
        fits = 0 <= self.warmup_iterations < self.iterations
        require(fits, f"warmup_iterations from 0 to below iterations ({self.iterations})", self.warmup_iterations)
        require(0 <= self.warmup_start_factor <= 1, "a warmup_start_factor from 0 to 1", self.warmup_start_factor)
        require(self.power > 0, "a power above 0", self.power)


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The rest of the loop. Intervals are in iterations; an iteration is one step of the optimizer.

    batch_size: samples per iteration, of all processes together. device_batch_size: how many of them a device takes at
        once, to save memory; None for its whole part. ema_decay: of averaged weights, which are then what is evaluated
        and saved; None for no averaging. hub_repository: on the Hub, as user/name, where the best model is sent
        whenever it improves; None for nowhere. hub_private: whether it is made a private one.
    """

    batch_size: int
    evaluation_interval: int
    checkpoint_interval: int
    log_interval: int = 50
    device_batch_size: int | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    ema_decay: float | None = None
    seed: int = 0
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    hub_repository: str | None = None
    hub_private: bool = False

    def __post_init__(self):
        for name in ("batch_size", "evaluation_interval", "checkpoint_interval", "log_interval", "device_batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} above 0", value)
        average = self.ema_decay
        require(average is None or 0 < average < 1, "an ema_decay in (0, 1), or null", average)
        require(self.seed >= 0, "a seed of 0 or more", self.seed)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training run needs to know, beside the machine."""

    name: str
    model: ModelRecipe
    data: DataRecipe
    augmentation: TrainingTransform
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    training: TrainingRecipe

    def to_dict(self) -> dict[str, Any]:
        """The recipe in what JSON knows, to save with checkpoints and cards."""
        return json.loads(json.dumps(asdict(self)))

    def dump(self) -> str:
        """The recipe as YAML with nothing left to inherit, which `load_recipe` reads back as it is."""
        return dump_yaml(self.to_dict())

    def model_config(self, **labels) -> PreTrainedConfig:
        """The preset's model configuration with the recipe's changes.

        labels: what the data says about its classes, such as `id2label`; what the configuration has no field for is
            left out.

        Raises ValueError for a change of a field that the configuration does not have.
        """
        preset = self._preset()
        known = [item.name for item in fields(preset.config())]
        require_known(self.model.config, known, "model.config.")
        labels = {name: value for name, value in labels.items() if name in known}
        return preset.config(**(labels | self.model.config))

    def image_processor(self) -> BaseImageProcessor:
        """The preset's image processor, which holds its test protocol, with the recipe's changes.

        Raises ValueError for a change of a setting that the image processor does not have.
        """
        preset = self._preset()
        require_known(self.model.image_processor, list(preset.image_processor().to_dict()), "model.image_processor.")
        return preset.image_processor(**self.model.image_processor)

    def _preset(self) -> Preset:
        if self.model.preset is None:
            raise ValueError("expected model.preset, got none: model.checkpoint has a configuration of its own")
        return get_preset(self.model.preset)


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the official one of that name, with `overrides` such as `"training.seed=1"`.

    The values of overrides are YAML: `optimizer.betas=[0.9, 0.99]`, `model.pretrained=null`. Raises ValueError for
    whatever is not a recipe, with the file and the key, and FileNotFoundError if there is none.
    """
    path = _locate(recipe)
    values = {"name": path.stem} | _read(path, ())
    for override in overrides:
        values = merge(values, _parse_override(override))
    try:
        return construct(Recipe, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def recipe_names() -> list[str]:
    """Names of the official recipes."""
    return sorted(path.stem for path in _recipes_folder().glob("*.yaml"))


def _recipes_folder() -> Path:
    """`configs`: in an installed package its own folder, in a checkout the one at the top."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "configs"


def _locate(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    names = recipe_names()
    if path.suffix in (".yaml", ".yml"):
        hint = nearest(path.stem, names)
        raise FileNotFoundError(
            f"{path}: expected a recipe's file or an official recipe's name{hint}, got no such file"
        )
    if str(recipe) not in names:
        raise ValueError(
            f"unknown recipe {str(recipe)!r}{nearest(str(recipe), names)}: expected a YAML file or one of "
            f"{', '.join(names)}"
        )
    return _recipes_folder() / f"{recipe}.yaml"


def _read(path: Path, inheriting: tuple[Path, ...]) -> dict[str, Any]:
    """The values in a file, and below them those of the files that it inherits; `inheriting`: how it was reached."""
    chain = (*inheriting, path)
    if path.resolve() in [other.resolve() for other in inheriting]:
        raise ValueError(f"{chain[0]}: expected inheritance that ends, got {' -> '.join(map(str, chain))}")
    if inheriting and not path.is_file():
        raise FileNotFoundError(
            f"{inheriting[-1]}: expected a recipe's file to inherit, got no {path} (paths are relative to the former)"
        )
    try:
        own = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(own, dict):
            raise ValueError(f"expected keys and values, got {own!r}")
        parents = own.pop("inherit", [])
        parents = typed([parents] if isinstance(parents, str) else parents, tuple[str, ...], "inherit")
        own = typed(own, Recipe, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    values = {}
    for parent in parents:
        values = merge(values, _read(path.parent / parent, chain))
    return merge(values, own)


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=1` -> {"a": {"b": 1}}."""
    key, equals, text = override.partition("=")
    if not (key and equals):
        raise ValueError(f"expected key=value, such as training.seed=1, got {override!r}")
    try:
        value = parse_yaml(text)
        for name in reversed(key.strip().split(".")):
            value = {name: value}
        return typed(value, Recipe, "")
    except ValueError as error:
        raise ValueError(f"{override}: {error}") from None
