"""All runs of a data set, a folder each that is there whole or not at all; what is there is not done again."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offseg_hf.evaluation.comparison import statistics
from offseg_hf.evaluation.image_counts import COUNTS_FILE, ImageCounts
from offseg_hf.utils.files import replacing
from study.arms import ARMS
from study.network import Segmenter
from study.photos import Photos, read_photos
from study.training import Phase, Recipe, View, evaluate, maps_of, offset_statistics, train


BASE = "base"  # the plain model that all arms of a seed begin with
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
    """The runs of one data set.

    Args:
        source: The data set.
        split: To test on.
        weights: The file of the pretrained encoder.
        output: The folder for the runs.
        recipe: Of all runs.
    """

    def __init__(self, source: Path, split: str, weights: Path, output: Path, recipe: Recipe):
        self.source, self.split, self.weights, self.output, self.recipe = source, split, weights, output, recipe

    def run(self, seed: int, arms: Sequence[str]) -> None:
        """Do what is not done of a seed: the plain model, then each arm that goes on from it."""
        missing = [arm for arm in arms if not self._is_done(arm, seed)]
        if self._is_done(BASE, seed) and not missing:
            return
        if not self._is_done(BASE, seed):
            self._train_base(seed)
        base = self._new_model(seed)
        base.load_state_dict(load_file(self._folder(BASE, seed) / WEIGHTS_FILE))
        phase = self.recipe.continued
        train_photos, test_photos = self.photos
        views = [View.of(base, train_photos, phase.frozen_maps, mirrored) for mirrored in self._mirrors(phase)]
        tested = maps_of(base, test_photos, phase.frozen_maps)
        for arm in missing:
            model = ARMS[arm].apply(deepcopy(base))
            self._finish(arm, seed, model, phase, views, tested, ARMS[arm].multiplier)

    def _train_base(self, seed: int) -> None:
        phase = self.recipe.base
        model = self._new_model(seed)
        views, tested = self._first_maps
        self._finish(BASE, seed, model, phase, views, tested, 1.0)

    def _finish(self, arm, seed, model, phase, views, tested, multiplier) -> None:
        """Train, test and write a run."""
        begin = time.process_time()
        losses = train(model, views, self.class_weights, self.recipe, phase, seed, multiplier)
        trained = time.process_time()
        counts = evaluate(model, tested, self.photos[1])
        scores = statistics(counts.per_image())
        record = {
            "data": {"name": self.source.name, "split": self.split, "classes": list(self.photos[1].labels.names)},
            "arm": arm,
            "seed": seed,
            "recipe": asdict(self.recipe),
            "size": list(self.photos[1].label_maps.shape[1:]),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": {"training": round(trained - begin, 1), "test": round(time.process_time() - trained, 1)},
            **{name: float(scores[name].item()) for name in SCORES},
            "loss": [round(loss, 4) for loss in losses],
            "offsets": offset_statistics(model, tested),
        }
        with replacing(self._folder(arm, seed)) as folder:
            counts.write(folder)
            save_file(_trained(model) if arm != BASE else _contiguous(model.state_dict()), folder / WEIGHTS_FILE)
            (folder / RUN_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")
        shown = ", ".join(f"{name} {100 * record[name]:.2f}" for name in SCORES)
        print(f"{self.source.name}, seed {seed}, {arm}: {shown}; {record['seconds']} s of CPU", flush=True)

    def _is_done(self, arm: str, seed: int) -> bool:
        """Return whether a run is there; raise ValueError if it was made otherwise."""
        path = self._folder(arm, seed) / RUN_FILE
        if not path.is_file():
            return False
        record = json.loads(path.read_text(encoding="utf-8"))
        found, expected = record["recipe"], asdict(self.recipe)
        if arm == BASE:  # however it is continued
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
        model = Segmenter(len(self.photos[0].labels))
        model.encoder.load(self.weights)
        return model.to(memory_format=torch.channels_last)

    def _mirrors(self, phase: Phase) -> list[bool]:
        return [False, True] if phase.mirrored else [False]

    @cached_property
    def photos(self) -> tuple[Photos, Photos]:
        """The photos to train on, and to test on."""
        return read_photos(self.source, self.split, self.recipe.pixels)

    @cached_property
    def class_weights(self) -> list[float]:
        """Of the loss, by the photos to train on."""
        return self.photos[0].class_weights()

    @cached_property
    def _first_maps(self):
        """The maps of ImageNet that the plain models begin with, which are the same for all seeds."""
        train_photos, test_photos = self.photos
        model, phase = self._new_model(0), self.recipe.base
        views = [View.of(model, train_photos, phase.frozen_maps, mirrored) for mirrored in self._mirrors(phase)]
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
