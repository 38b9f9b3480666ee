"""Recipes: how a model is trained, as data. `configs/<preset>.yaml` are the 34 official ones.

A recipe's file names those it builds on (`inherit:`, a path or a list, relative to the file): its own values win over
theirs, a later one's over an earlier one's, and the `key=value` of a command line over all. Everything is checked by
name and type, so that a misspelled key is an error and not a training without it.

A setting without effect is an error if it is written in the recipe itself or on the command line. If it is inherited,
or of an official recipe, it is left out: `model.checkpoint=...` on any of them goes on from that model.

The docstrings here are what `offseg recipe --keys` prints.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from offseg_hf.data.source import DataSource
from offseg_hf.data.transforms import TrainingTransform
from offseg_hf.training.schedules import ScheduleKind, factors_of_transformers, options_of_schedule
from offseg_hf.training.values import (
    check_settings,
    construct,
    named_settings,
    require,
    require_known,
    settings_of,
    typed,
)
from offseg_hf.utils.yaml_files import dump_yaml, flat, merge, parse_yaml, without
from offseg_hf.zoo.presets import PRESETS, Preset, configs_folder, get_preset, nearest_presets


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig


OF_A_PRESET = ("model.preset", "model.pretrained", "model.config", "model.image_processor")
# What a nearer file, or the command line, makes meaningless in those that it builds on: by the setting that does.
SUPERSEDED = {
    "model.checkpoint": (*OF_A_PRESET, "model.backbone"),
    "model.backbone": (*OF_A_PRESET, "model.checkpoint"),
    "model.preset": ("model.checkpoint", "model.backbone"),
    "augmentation.scale": ("augmentation.shortest_edges", "augmentation.longest_edge"),
    "augmentation.shortest_edges": ("augmentation.scale", "augmentation.ratio_range"),
    "schedule.iterations": ("schedule.epochs",),
    "schedule.epochs": ("schedule.iterations",),
}
Precision = Literal["no", "fp16", "bf16"]
OptimizerKind = Literal[
    "AdamW", "Adam", "NAdam", "RAdam", "Adamax", "Adafactor", "Adagrad", "Adadelta", "ASGD", "RMSprop", "SGD"
]
LossKind = Literal["cross_entropy", "focal", "dice", "lovasz", "boundary"]
# The settings that a loss has beside its weight.
LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("class_weights", "label_smoothing", "ohem_threshold", "ohem_min_kept"),
    "focal": ("class_weights", "gamma"),
    "dice": ("smooth",),
    "lovasz": (),
    "boundary": ("class_weights", "radius", "boundary_weight"),
}
# Of an optimizer, what other settings say, and what makes no difference to a training or would turn it around.
NO_OPTIONS = {"params", "lr", "weight_decay", "betas", "eps", "foreach", "fused", "capturable", "differentiable"}
NO_OPTIONS |= {"maximize"}
FINETUNE = "finetune"  # the recipe for data of one's own, which is no preset
OF_THE_DATA = ("id2label", "label2id", "num_labels", "semantic_loss_ignore_index", "loss_ignore_index")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The model, and what it starts from.

    Args:
        preset: Architecture and test protocol, by the name of an official recipe; the classes come with the data.
        pretrained: Weights to start from, as `load_pretrained` takes them; null for random ones.
        checkpoint: A trained model of any architecture (folder or name on the Hub) to go on from, instead of `preset`
            and `pretrained`.
        backbone: A trained backbone (folder or name on the Hub) on which a new OffSeg is built, instead of these.
        config: Changes to fields of the model's configuration, which is that of the preset or the checkpoint.
        image_processor: Changes to settings of the image processor, which is that of the preset or the checkpoint.
        offset_learning: Put offset learning in the place of the checkpoint's classifier, which it continues.
        freeze: Keep the encoder as it is: its weights get no gradients, its norms keep their statistics, and nothing
            in it is dropped at random.
        lora_rank: Rank of low-rank adapters (LoRA) in the encoder of the checkpoint, or in the backbone, whose own
            weights stay as they are; the rest trains whole. What is saved has them merged. Needs peft.
        lora_alpha: Scale of the adapters times their rank; null for the rank.
    """

    preset: str | None = None
    pretrained: str | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)
    offset_learning: bool = False
    freeze: Literal["encoder"] | None = None
    lora_rank: int | None = None
    lora_alpha: int | None = None

    def __post_init__(self):
        for name in ("lora_rank", "lora_alpha"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} above 0, or null", value)
        if self.lora_rank is not None and self.freeze is not None:
            raise ValueError(
                f"lora_rank={self.lora_rank} adapts the encoder, which freeze={self.freeze} leaves as it is: remove "
                "one of them"
            )
        if self.lora_rank is not None and self.checkpoint is None and self.backbone is None:
            raise ValueError(
                f"expected checkpoint or backbone, whose weights lora_rank={self.lora_rank} adapts, got neither"
            )
        for name in ("pretrained", "checkpoint", "backbone"):
            _expand_home(self, name)
        if self.preset is None and self.checkpoint is None and self.backbone is None:
            raise ValueError("expected preset, checkpoint or backbone, got none")
        if self.preset is not None:
            get_preset(self.preset)
        others = {name: getattr(self, name) for name in ("preset", "pretrained", "checkpoint")}
        starts = [f"model.{name}={value}" for name, value in others.items() if value is not None]
        if self.backbone is not None and starts:
            raise ValueError(
                f"model.backbone={self.backbone} is what a new model is built on, beside which {' and '.join(starts)} "
                "would have no effect: remove the latter, or model.backbone"
            )
        beside = {name: getattr(self, name) for name in ("preset", "pretrained") if getattr(self, name) is not None}
        if self.checkpoint is not None and beside:
            given = " and ".join(f"model.{name}={value}" for name, value in beside.items())
            words = " ".join(f"model.{name}=null" for name in beside)
            raise ValueError(
                f"model.checkpoint={self.checkpoint} has an architecture and weights of its own, beside which {given} "
                f"would have no effect: remove the latter ({words}), or model.checkpoint"
            )
        weights = self.config.get("semantic_loss_class_weights")
        if weights and not any(weights):
            raise ValueError("expected config.semantic_loss_class_weights of which one is above 0, got 0 alone")
        for name in OF_THE_DATA:
            if name in self.config:
                raise ValueError(f"config.{name} comes with the data (data.labels, classes.json): remove it here")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The data set, as `load_segmentation_data` takes it.

    Args:
        source: A folder, or the name of a data set on the Hub.
        config_name: Configuration of the data set, if it comes in several.
        revision: Branch, tag or commit of the data set on the Hub.
        train_split: The split to train on.
        validation_split: The split to evaluate on during the training.
        validation_share: Share of the photos of `train_split` that is held out to evaluate on, in whole groups of
            frames, where the data has no `validation_split`.
        image_column: Column of the images, if it is not `image`.
        label_column: Column of the label maps, if it is not `label`.
        labels: The classes, if they do not come with the data: ade, cityscapes, cocostuff, context59 or a
            classes.json.
        num_workers: Processes that read and augment, per process that trains; at most one for each core.
    """

    source: str
    config_name: str | None = None
    revision: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    validation_share: float | None = None
    image_column: str | None = None
    label_column: str | None = None
    labels: str | None = None
    num_workers: int = 4

    def __post_init__(self):
        for name in ("source", "labels"):
            _expand_home(self, name)
        share = self.validation_share
        require(share is None or 0 < share <= 0.5, "a validation_share above 0 and up to 0.5, or null", share)
        require(self.num_workers >= 0, "num_workers of 0 or more", self.num_workers)

    @property
    def workers(self) -> int:
        """Return `num_workers`, or the number of cores that this process may use if that is less."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.num_workers, cores)

    def data_source(self) -> DataSource:
        """Return where the data is, and how it is read."""
        return DataSource(
            self.source, self.config_name, self.revision, self.image_column, self.label_column, self.labels
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """An optimizer of torch; `training.optimization` says which parameters decay.

    Args:
        kind: The optimizer, by its name in `torch.optim`.
        learning_rate: The learning rate after the warm-up, before multipliers.
        weight_decay: Decoupled weight decay, of the weights that decay.
        betas: Decay rates of the gradient's moments.
        eps: Term that keeps the division stable; null for the optimizer's own, such as 1e-8 of AdamW.
        options: Other arguments of the optimizer, such as {momentum: 0.9, nesterov: true} of SGD.
        encoder_multiplier: Multiplies the learning rate of the encoder.
        head_multiplier: Multiplies the learning rate of everything else.
        offset_multiplier: Multiplies, once more, the learning rate of the projections that make offsets; 0.1 helps
            from scratch, where they run ahead of the class representations that they move.
        max_gradient_norm: Clips the norm of all gradients together; null leaves them as they are.
    """

    kind: OptimizerKind = "AdamW"
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    encoder_multiplier: float = 1.0
    head_multiplier: float = 1.0
    offset_multiplier: float = 1.0
    max_gradient_norm: float | None = None

    def __post_init__(self):
        require(self.learning_rate > 0, "a learning_rate above 0", self.learning_rate)
        require(self.weight_decay >= 0, "a weight_decay of 0 or more", self.weight_decay)
        require(all(0 <= beta < 1 for beta in self.betas), "betas in [0, 1)", self.betas)
        if self.eps is None and self.takes("eps"):
            object.__setattr__(self, "eps", self.arguments()["eps"])
        require(self.eps is None or self.eps > 0, "an eps above 0", self.eps)
        multipliers = (self.encoder_multiplier, self.head_multiplier, self.offset_multiplier)
        require(min(multipliers) >= 0, "multipliers of 0 or more", multipliers)
        learns = max(self.encoder_multiplier, self.head_multiplier) > 0
        require(learns, "an encoder_multiplier or a head_multiplier above 0", multipliers[:2])
        norm = self.max_gradient_norm
        require(norm is None or norm > 0, "a max_gradient_norm above 0, or null", norm)
        require_known(self.options, [name for name in self.arguments() if name not in NO_OPTIONS], "options.")

    def arguments(self) -> dict[str, Any]:
        """Return the defaults of the arguments of the optimizer."""
        parameters = inspect.signature(getattr(torch.optim, self.kind)).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def takes(self, name: str) -> bool:
        """Return whether betas or eps are arguments of the optimizer; Adafactor's eps is another."""
        arguments = self.arguments()
        return name in arguments and (name == "betas" or isinstance(arguments[name], float))


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The length of the training, in iterations or in epochs, and the learning rate over it.

    Args:
        iterations: Steps of the optimizer.
        epochs: Times that all samples are seen, instead of `iterations`; an epoch has as many whole iterations as it
            takes to see each of them.
        kind: The learning rate after the warm-up: `polynomial` decay to 0, as officially, or as transformers'
            `get_scheduler` has it.
        warmup_iterations: How many iterations warm up.
        warmup_start_factor: Multiplies the learning rate of the first iteration of the warm-up; transformers' begin
            with 0.
        power: Exponent of the polynomial decay; 1 is linear.
        options: Arguments of transformers' schedule, such as {num_cycles: 3} of cosine_with_restarts.
    """

    iterations: int | None = None
    epochs: int | None = None
    kind: ScheduleKind = "polynomial"
    warmup_iterations: int = 0
    warmup_start_factor: float = 1e-6
    power: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        lengths = [name for name in ("iterations", "epochs") if getattr(self, name) is not None]
        if len(lengths) != 1:
            raise ValueError(f"expected iterations or epochs, got {'both' if lengths else 'neither'}")
        for name in lengths:
            require(getattr(self, name) > 0, f"{name} above 0", getattr(self, name))
        fits = 0 <= self.warmup_iterations < (math.inf if self.iterations is None else self.iterations)
        below = "" if self.iterations is None else f" to below iterations ({self.iterations})"
        require(fits, f"warmup_iterations from 0{below}", self.warmup_iterations)
        require(0 <= self.warmup_start_factor <= 1, "a warmup_start_factor from 0 to 1", self.warmup_start_factor)
        require(self.power > 0, "a power above 0", self.power)
        known, needed = options_of_schedule(self.kind)
        require_known(self.options, known, "options.")
        for name in needed:
            require(name in self.options, f"options.{name}, which {self.kind} needs", "none")
        if self.kind != "polynomial":
            with named_settings("options", self.options):
                factors_of_transformers(self.kind, self.warmup_iterations, self.iterations or 10**6, self.options)(0)

    @property
    def length(self) -> int:
        """How many iterations it has, of one that counts them."""
        assert self.iterations is not None
        return self.iterations

    def in_iterations(self, per_epoch: int) -> ScheduleRecipe:
        """Return the schedule as one that counts iterations, of which an epoch has so many."""
        return self if self.epochs is None else replace(self, iterations=self.epochs * per_epoch, epochs=None)


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """A loss of the logits, at the size of the label maps; a mean over labeled pixels, or over the classes there are.

    Args:
        kind: `cross_entropy`; `focal`, which weighs pixels down that are right already; `dice` and `lovasz`
            (Lovasz-softmax), which follow the overlap of each class; `boundary`, a cross-entropy in which pixels near
            the border of two classes weigh more.
        weight: Multiplies the loss, in the sum of all of them.
        class_weights: Weights of the classes' pixels in the mean, one per class; `offseg data check --stats` proposes
            some.
        label_smoothing: Share of a pixel's label that is spread over all classes.
        ohem_threshold: Count the pixels alone whose class gets less than this probability (online hard example
            mining); null for all.
        ohem_min_kept: Pixels, per sample, that count at least then.
        gamma: Exponent by which the focal loss weighs easy pixels down.
        smooth: Added to both sides of the dice coefficient's fraction.
        radius: Pixels from a border that are near it.
        boundary_weight: What a pixel near a border counts; others count 1.
    """

    kind: LossKind
    weight: float = 1.0
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    ohem_threshold: float | None = None
    ohem_min_kept: int = 10_000
    gamma: float = 2.0
    smooth: float = 1.0
    radius: int = 3
    boundary_weight: float = 5.0

    def __post_init__(self):
        others = {name for names in LOSS_SETTINGS.values() for name in names} - {*LOSS_SETTINGS[self.kind]}
        if self.ohem_threshold is None:
            others.add("ohem_min_kept")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in others and value != item.default:
                reason = (
                    f"kind={self.kind} does not take it"
                    if item.name not in LOSS_SETTINGS[self.kind]
                    else ("ohem_threshold is null")
                )
                raise ValueError(f"{item.name}={json.dumps(value)} has no effect, as {reason}: remove it")
        require(self.weight > 0, "a weight above 0", self.weight)
        weights = self.class_weights
        fits = weights is None or (all(0 <= weight < math.inf for weight in weights) and any(weights))
        require(fits, "class_weights of 0 or more, of which one is above 0", weights)
        require(0 <= self.label_smoothing < 1, "a label_smoothing in [0, 1)", self.label_smoothing)
        threshold = self.ohem_threshold
        require(threshold is None or 0 < threshold <= 1, "an ohem_threshold in (0, 1], or null", threshold)
        require(self.ohem_min_kept > 0, "an ohem_min_kept above 0", self.ohem_min_kept)
        require(self.gamma >= 0, "a gamma of 0 or more", self.gamma)
        require(self.smooth >= 0, "a smooth of 0 or more", self.smooth)
        require(self.radius > 0, "a radius above 0", self.radius)
        require(self.boundary_weight > 0, "a boundary_weight above 0", self.boundary_weight)


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The rest of the loop. Intervals are in iterations; an iteration is one step of the optimizer.

    A smaller `device_batch_size` changes no more than rounding, except where what is computed depends on the samples
    that are seen together: batch norms that learn, paths and units that are dropped, and losses that are means over
    labeled pixels, as those of `loss` and of transformers' own models are.

    Args:
        batch_size: Samples per iteration, of all processes together.
        evaluation_interval: Iterations from one evaluation to the next; null for one each epoch.
        checkpoint_interval: Iterations from one checkpoint to the next; null for one each epoch.
        log_interval: Iterations from one line in the log to the next.
        device_batch_size: Samples that a device takes at once, to save memory; null for its whole part of the batch.
        mixed_precision: Precision of the forward; null for what `accelerate launch` was told, or else none.
        compile: Train with what torch.compile makes of the model, which takes minutes in the first iteration; the
            same up to rounding, and to what is dropped at random. Evaluation runs as it is.
        gradient_checkpointing: Compute activations again for the gradients instead of keeping them: less memory, more
            time, the same weights.
        ema_decay: Decay of averaged weights, which are then evaluated and saved; null for no averaging.
        patience: Evaluations in a row without a better mIoU after which the training stops; null to train to the end.
        seed: Seed of everything random.
        report_to: Tracker that gets what the log gets.
        hub_repository: Repository on the Hub, as user/name, that gets the best model whenever it improves.
        hub_private: Create the repository as a private one.
    """

    batch_size: int
    evaluation_interval: int | None = None
    checkpoint_interval: int | None = None
    log_interval: int = 50
    device_batch_size: int | None = None
    mixed_precision: Precision | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    ema_decay: float | None = None
    patience: int | None = None
    seed: int = 0
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    hub_repository: str | None = None
    hub_private: bool = False

    def __post_init__(self):
        counts = ("batch_size", "evaluation_interval", "checkpoint_interval", "log_interval", "device_batch_size")
        for name in (*counts, "patience"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} above 0", value)
        average = self.ema_decay
        require(average is None or 0 < average < 1, "an ema_decay in (0, 1), or null", average)
        require(self.seed >= 0, "a seed of 0 or more", self.seed)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training needs to know, beside the machine.

    Args:
        name: Name of the recipe, by default its file's.
        loss: Losses whose weighted sum is minimized, such as [{kind: cross_entropy}, {kind: dice, weight: 0.5}]; an
            empty list for the model's own.
        written: The settings (`section.name`) that its user wrote, and did not inherit.
        left_out: Those that were inherited and do not apply.
    """

    name: str = ""
    model: ModelRecipe
    data: DataRecipe
    augmentation: TrainingTransform
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    loss: tuple[LossRecipe, ...] = ()
    training: TrainingRecipe
    written: frozenset[str] = field(default=frozenset(), compare=False, repr=False, metadata={"is_setting": False})
    left_out: tuple[str, ...] = field(default=(), compare=False, repr=False, metadata={"is_setting": False})

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe in what JSON knows, to save with checkpoints and cards."""
        values = asdict(self)
        return json.loads(json.dumps({item.name: values[item.name] for item in settings_of(Recipe)}))

    def dump(self) -> str:
        """Return the recipe as YAML with nothing left to inherit, which `load_recipe` reads back as it is."""
        return dump_yaml(self.to_dict())

    def model_config(self, **labels) -> PreTrainedConfig:
        """Return the preset's model configuration with the recipe's changes.

        Args:
            **labels: what the data says about its classes, such as `id2label`; what the configuration has no field for
                is left out.

        Raises:
            ValueError: for a change of a field that the configuration does not have, or to another type.
        """
        preset = self._preset()
        kinds = {item.name: item.type for item in fields(preset.config())}
        require_known(self.model.config, list(kinds), "model.config.")
        changes = check_settings("model.config", self.model.config, kinds)
        return preset.config(**({name: value for name, value in labels.items() if name in kinds} | changes))

    def image_processor(self) -> BaseImageProcessor:
        """Return the preset's image processor, which holds its test protocol, with the recipe's changes.

        Raises:
            ValueError: for a change of a setting that the image processor does not have, or to another type.
        """
        preset = self._preset()
        standard = preset.image_processor()
        require_known(self.model.image_processor, list(standard.to_dict()), "model.image_processor.")
        kinds = standard.valid_kwargs.__annotations__
        return preset.image_processor(**check_settings("model.image_processor", self.model.image_processor, kinds))

    def _preset(self) -> Preset:
        if self.model.preset is None:
            raise ValueError(
                "expected model.preset, got none: model.checkpoint and model.backbone have configurations of their own"
            )
        return get_preset(self.model.preset)


def load_recipe(recipe: str | Path, overrides: Iterable[str] = (), fitted: Mapping[str, Any] | None = None) -> Recipe:
    """Load the recipe in a YAML file, or that of the package of that name.

    Args:
        recipe: a file, the name of a preset, or "finetune".
        overrides: what replaces its values, such as `"training.seed=1"`; values are YAML, as in
            `"optimizer.betas=[0.9, 0.99]"` and `"model.pretrained=null"`.
        fitted: values by section that were found for some data, which replace the file's, and are replaced by
            `overrides`; nobody has written them.

    Raises:
        ValueError: for whatever is not a recipe, with the file and the key.
        FileNotFoundError: if there is no such file.
    """
    path = _locate(recipe)
    left_out: list[str] = []
    inherited, own = _read(path, (), left_out)
    if is_official(path):  # who takes a recipe of the package has not written it
        inherited, own = _over(inherited, own, left_out), {}
    if fitted is not None:
        inherited, own = _over(_over(inherited, own, left_out), fitted, left_out), {}
    for override in overrides:
        own = merge(own, _parse_override(override))
    values = {"name": path.stem} | _over(inherited, own, left_out)
    try:
        made: Recipe = construct(Recipe, values)
        return _leave_out(replace(made, written=frozenset(flat(own)), left_out=tuple(dict.fromkeys(left_out))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _expand_home(section: ModelRecipe | DataRecipe, name: str) -> None:
    """Replace `~` at the beginning of a path, which shells leave in `data.source=~/data`."""
    if (value := getattr(section, name)) is not None:
        object.__setattr__(section, name, os.path.expanduser(value))


def _locate(recipe: str | Path) -> Path:
    path = Path(os.path.expanduser(recipe))
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise FileNotFoundError(
            f"{path}: expected a recipe's file or a preset's name{nearest_presets(path.stem)}, got no such file"
        )
    if str(recipe) not in (*PRESETS, FINETUNE):
        raise ValueError(
            f"unknown recipe {str(recipe)!r}{nearest_presets(str(recipe))}: expected a YAML file or a preset's name "
            "(`offseg presets` lists them)"
        )
    return configs_folder() / f"{recipe}.yaml"


def _read(path: Path, inheriting: tuple[Path, ...], left_out: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the values of the files that a file inherits, and its own; `inheriting`: how it was reached."""
    chain = (*inheriting, path)
    if path.resolve() in [other.resolve() for other in inheriting]:
        raise ValueError(f"{chain[0]}: expected inheritance that ends, got {' -> '.join(map(str, chain))}")
    if inheriting and not path.is_file():
        raise FileNotFoundError(
            f"{inheriting[-1]}: expected a recipe's file to inherit, got no {path} (paths are relative to the former)"
        )
    try:
        own = parse_yaml(path.read_text(encoding="utf-8-sig"))
        if not isinstance(own, dict):
            raise ValueError(f"expected keys and values, got {own!r}")
        parents = own.pop("inherit", [])
        if is_official(path):
            own = _official(own, path.stem)
        parents = typed([parents] if isinstance(parents, str) else parents, tuple[str, ...], "inherit")
        own = typed(own, Recipe, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    inherited: dict[str, Any] = {}
    for parent in parents:
        below, above = _read(path.parent / os.path.expanduser(parent), chain, left_out)
        inherited = _over(inherited, _over(below, above, left_out), left_out)
    return inherited, own


def is_official(path: Path) -> bool:
    """Return whether a file is that of a preset, or one that those build on."""
    return path.resolve().is_relative_to(configs_folder().resolve())


def _official(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the recipe out of a preset's file: it trains the model of the preset."""
    recipe = {section: value for section, value in values.items() if section != "preset"}
    return merge({"model": {"preset": name}}, recipe) if name in PRESETS else recipe


def _over(below: Mapping[str, Any], above: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """Merge the values of both, of which `above` wins; what it makes meaningless below is left out, and named."""
    said = flat(above)
    dropped = [key for name, keys in SUPERSEDED.items() if said.get(name) is not None for key in keys]
    kept = without(below, dropped)
    left_out += [key for key, value in flat(below).items() if value is not None and key not in flat(kept)]
    return merge(kept, above)


def _leave_out(recipe: Recipe) -> Recipe:
    """Leave out of a recipe what has no effect in it; ValueError if its user wrote that."""
    for key, reason in _without_effect(recipe):
        section, name = key.split(".")
        values = getattr(recipe, section)
        (default,) = (item.default for item in fields(values) if item.name == name)
        if getattr(values, name) == default:
            continue
        refuse_written(recipe, key, reason)
        recipe = replace(recipe, **{section: replace(values, **{name: default})}, left_out=(*recipe.left_out, key))
    config = recipe.model.config
    found = [*config_without_effect(config)]
    if recipe.loss:
        found.append(("semantic_loss_class_weights", "`loss` has class_weights of its own"))
    for name, reason in found:
        if config.get(name):
            refuse_written(recipe, f"model.config.{name}", reason)
            config = without(config, [name])
            recipe = replace(
                recipe,
                model=replace(recipe.model, config=config),
                left_out=(*recipe.left_out, f"model.config.{name}"),
            )
    return recipe


def refuse_written(recipe: Recipe, key: str, reason: str) -> None:
    """Raise ValueError if the recipe's user wrote a setting, which has no effect for this reason."""
    if key in recipe.written:
        value = flat(recipe.to_dict())[key]
        raise ValueError(f"{key}={json.dumps(value)} has no effect, as {reason}: remove it")


def _without_effect(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Find the settings that mean nothing beside the others of a recipe, and why."""
    schedule, optimizer = recipe.schedule, recipe.optimizer
    if schedule.kind == "constant":
        yield "schedule.warmup_iterations", "schedule.kind=constant has no warm-up (constant_with_warmup has)"
    if schedule.kind != "polynomial":
        for name in ("warmup_start_factor", "power"):
            yield f"schedule.{name}", f"it belongs to the kind polynomial, and schedule.kind={schedule.kind}"
    elif schedule.warmup_iterations <= 1:
        reason = f"schedule.warmup_iterations={schedule.warmup_iterations} is no warm-up"
        yield "schedule.warmup_start_factor", reason
    for name in ("betas", "eps"):
        if not optimizer.takes(name):
            yield f"optimizer.{name}", f"optimizer.kind={optimizer.kind} takes none"
    if recipe.model.checkpoint is None:
        new = "the model of a preset" if recipe.model.backbone is None else "a model on a backbone"
        yield "model.offset_learning", f"{new} has it already"
    if recipe.model.lora_rank is None:
        yield "model.lora_alpha", "there are no adapters without model.lora_rank"
    if recipe.model.freeze == "encoder":
        yield "optimizer.encoder_multiplier", "model.freeze=encoder leaves the encoder as it is"
    if recipe.augmentation.scale is None:
        yield "augmentation.ratio_range", "nothing is resized by a ratio without augmentation.scale"
    if recipe.augmentation.shortest_edges is None:
        yield "augmentation.longest_edge", "it bounds augmentation.shortest_edges, of which there are none"
    if recipe.training.hub_repository is None:
        yield "training.hub_private", "training.hub_repository names no repository"
    if not uses_offsets(recipe.model.config):
        yield "optimizer.offset_multiplier", "the model has no offsets"


def config_without_effect(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Find the fields of a model's configuration that mean nothing beside its others, and why."""
    if not uses_offsets(config):
        yield "start_without_offsets", "the model has no offsets (use_class_offset and use_feature_offset are false)"
    if not config.get("use_class_offset", True):
        yield "class_offset_drop_path_rate", "the model has no class offsets (use_class_offset is false)"


def uses_offsets(config: Mapping[str, Any]) -> bool:
    """Return whether the configuration leaves one of the two branches on, as they are by default."""
    return config.get("use_class_offset", True) or config.get("use_feature_offset", True)


def _parse_override(override: str) -> dict[str, Any]:
    """Read `a.b=1` as {"a": {"b": 1}}."""
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
