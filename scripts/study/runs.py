"""All runs of a data set, a folder each that is there whole or not at all; what is there is not done again."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offseg_hf.evaluation.comparison import statistics
from offseg_hf.evaluation.image_counts import COUNTS_FILE, ImageCounts
from offseg_hf.utils.files import replacing
from study.architectures import Architecture
from study.arms import ARMS, BASE
from study.network import Segmenter
from study.photos import Photos, read_photos
from study.training import Maps, Phase, Recipe, View, evaluate, maps_of, offset_statistics, train


RUN_FILE, WEIGHTS_FILE = "run.json", "model.safetensors"
SCORES = ("mIoU", "mBoundaryIoU", "aAcc")


@dataclass(frozen=True)
class Run:
    """A run as it was written."""

    arm: str
    seed: int
    record: dict
    counts: ImageCounts


class DataSetRuns:
    """The runs of one architecture on one data set.

    Args:
        source: The data set.
        split: To test on.
        architecture: Of all models.
        weights: Of the architecture.
        output: The folder for the runs.
        recipe: Of all runs.
    """

    def __init__(
        self, source: Path, split: str, architecture: Architecture, weights: Path, output: Path, recipe: Recipe
    ):
        self.source, self.split, self.output, self.recipe = source, split, output, recipe
        self.architecture, self.weights = architecture, weights

    def run(self, seed: int, arms: Sequence[str]) -> None:
        """Do what is not done of a seed: arms that begin anew, then those that go on from the plain one."""
        missing = [arm for arm in arms if not self._is_done(arm, seed)]
        going_on = [arm for arm in missing if ARMS[arm].goes_on]
        if going_on and BASE not in missing and not self._is_done(BASE, seed):
            missing.insert(0, BASE)
        for arm in missing:
            if arm not in going_on:
                self._finish(arm, seed, self._new_model(seed), *self._first_maps)
        if going_on:
            base = self._new_model(seed)
            base.load_state_dict(load_file(self._folder(BASE, seed) / WEIGHTS_FILE))
            maps = self._maps(base, self.recipe.continued)
            for arm in going_on:
                self._finish(arm, seed, deepcopy(base), *maps)

    def _finish(self, name: str, seed: int, model: nn.Module, views: Sequence[View], tested: Maps) -> None:
        """Train, test and write a run, of the plain model that it begins with."""
        arm = ARMS[name]
        phase = self._phase(name)
        switch = round(arm.plain_before * phase.iterations)
        learn = partial(train, views, self.class_weights, self.recipe, phase, seed)
        begin = time.process_time()
        losses = learn(model, 1.0, range(switch))
        model = arm.head(model)
        losses += learn(model, arm.multiplier, range(switch, phase.iterations))
        trained = time.process_time()
        counts, in_boundaries = evaluate(model, tested, self.photos[1])
        scores = statistics(counts.per_image())
        record = {
            "data": {"name": self.source.name, "split": self.split, "classes": list(self.photos[1].labels.names)},
            "arm": name,
            "seed": seed,
            "recipe": asdict(self.recipe),
            "size": list(self.photos[1].label_maps.shape[1:]),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": {"training": round(trained - begin, 1), "test": round(time.process_time() - trained, 1)},
            **{score: float(scores[score].item()) for score in SCORES},
            "loss": [round(loss, 4) for loss in losses],
            "in_boundaries": in_boundaries.tolist(),
            "offsets": offset_statistics(model, tested),
        }
        with replacing(self._folder(name, seed)) as folder:
            counts.write(folder)
            save_file(_trained(model) if name != BASE else _contiguous(model.state_dict()), folder / WEIGHTS_FILE)
            (folder / RUN_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")
        shown = ", ".join(f"{score} {100 * record[score]:.2f}" for score in SCORES)
        print(f"{self.source.name}, seed {seed}, {name}: {shown}; {record['seconds']} s of CPU", flush=True)

    def _is_done(self, arm: str, seed: int) -> bool:
        """Return whether a run is there; raise ValueError if it was made otherwise."""
        path = self._folder(arm, seed) / RUN_FILE
        if not path.is_file():
            return False
        record = json.loads(path.read_text(encoding="utf-8"))
        found, expected = record["recipe"], asdict(self.recipe)
        if not ARMS[arm].goes_on:  # however the plain one is continued
            found, expected = ({**recipe, "continued": None} for recipe in (found, expected))
        if (found, record["data"]["split"]) != (expected, self.split):
            raise ValueError(
                f"{path}: expected a run tested on {self.split} with {expected}, got one on {record['data']['split']} "
                f"with {found}; name another --output"
            )
        return True

    def _folder(self, arm: str, seed: int) -> Path:
        return self.output / f"{arm}-{seed}"

    def _new_model(self, seed: int) -> Segmenter:
        torch.manual_seed(seed)
        return self.architecture.build(self.weights, len(self.photos[0].labels))

    def _phase(self, arm: str) -> Phase:
        return self.recipe.continued if ARMS[arm].goes_on else self.recipe.base

    @cached_property
    def photos(self) -> tuple[Photos, Photos]:
        """The photos to train on, and to test on."""
        return read_photos(self.source, self.split, self.recipe.pixels)

    @cached_property
    def class_weights(self) -> list[float]:
        """Of the loss, by the photos to train on."""
        return self.photos[0].class_weights()

    @cached_property
    def _first_maps(self) -> tuple[list[View], Maps]:
        """The maps of the pretrained weights, which are the same for all seeds."""
        return self._maps(self._new_model(0), self.recipe.base)

    def _maps(self, model: Segmenter, phase: Phase) -> tuple[list[View], Maps]:
        """Return the maps that a phase leaves as they are, of the photos to train on and to test on."""
        train_photos, test_photos = self.photos
        mirrors = [False, True] if phase.mirrored else [False]
        views = [View.of(model, train_photos, phase.frozen_maps, mirrored) for mirrored in mirrors]
        return views, maps_of(model, test_photos, phase.frozen_maps)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that have been trained, which are few where the encoder is frozen."""
    return _contiguous({name: value for name, value in model.named_parameters() if value.requires_grad})


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def read_runs(folder: Path) -> Iterator[Run]:
    """Read all runs of a data set."""
    for path in sorted(folder.glob(f"*/{RUN_FILE}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        counts = ImageCounts.from_bytes((path.parent / COUNTS_FILE).read_bytes())
        yield Run(record["arm"], record["seed"], record, counts)
