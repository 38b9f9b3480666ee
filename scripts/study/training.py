"""Training and testing one model of the study, on maps of its encoder where that is frozen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from offset_statistics import centred, class_attention, class_offset, logit_parts
from torch import Tensor

from offseg_hf.evaluation.boundary import boundary_width, in_boundary
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.models.image_operations import upsampled_argmax
from offseg_hf.models.offset_learning import OffsetLearning
from offseg_hf.training.losses import cross_entropy
from offseg_hf.training.optimization import set_learning_rates
from offseg_hf.training.recipe import ScheduleRecipe
from study.arms import LinearResidual, parameter_groups
from study.network import Segmenter
from study.photos import Photos


IGNORE_INDEX = 255
LOOKED_AT = 24  # photos of a test that the statistics of offsets are means over
BATCH_OF_FORWARDS = 8


@dataclass(frozen=True)
class Phase:
    """A training.

    Args:
        iterations: Steps.
        learning_rate: Of the decoder and the classifier.
        frozen_maps: How many of the encoder's four maps, and all that makes them, stay as they are.
        mirrored: Whether half of the photos are seen in a mirror.
    """

    iterations: int
    learning_rate: float
    frozen_maps: int
    mirrored: bool


@dataclass(frozen=True)
class Recipe:
    """How all models of the study are trained; fixed on a part of the photos to train on."""

    pixels: int = 256 * 192
    batch_size: int = 4
    weight_decay: float = 0.01
    encoder_multiplier: float = 0.3
    warmup_iterations: int = 20
    base: Phase = field(default_factory=lambda: Phase(400, 1e-3, frozen_maps=2, mirrored=True))
    continued: Phase = field(default_factory=lambda: Phase(160, 5e-4, frozen_maps=4, mirrored=False))


@dataclass(frozen=True)
class Maps:
    """The first maps of photos, which training leaves as they are, in half precision."""

    levels: list[Tensor]

    def __len__(self) -> int:
        return len(self.levels[0])

    def __getitem__(self, indices: Tensor | slice) -> list[Tensor]:
        return [level[indices].float().contiguous(memory_format=torch.channels_last) for level in self.levels]

    @classmethod
    @torch.no_grad()
    def of(cls, number: int, forward: Callable[[slice], Sequence[Tensor]]) -> "Maps":
        """Compute the maps of `number` photos, a slice at a time."""
        batches = [
            [level.half() for level in forward(slice(first, min(first + BATCH_OF_FORWARDS, number)))]
            for first in range(0, number, BATCH_OF_FORWARDS)
        ]
        return cls([torch.cat(levels).contiguous(memory_format=torch.channels_last) for levels in zip(*batches)])


def maps_of(model: Segmenter, photos: Photos, number: int) -> Maps:
    """Return the first `number` maps of photos."""
    return Maps.of(len(photos), lambda part: model.encoder(model.encoder.pixel_values(photos.images[part]), number))


@dataclass(frozen=True)
class View:
    """The photos to train on, as they are or all in a mirror: their first maps, and classes at stride 4."""

    maps: Maps
    label_maps: Tensor

    @classmethod
    def of(cls, model: Segmenter, photos: Photos, number: int, mirrored: bool = False) -> "View":
        """Compute the first `number` maps; of a stride of 4, the class of a pixel is that of one in its middle."""
        if mirrored:
            photos = replace(photos, images=photos.images.flip(-1), label_maps=photos.label_maps.flip(-1))
        return cls(maps_of(model, photos, number), photos.label_maps[:, 2::4, 2::4].long())


def train(
    views: Sequence[View],
    class_weights: list[float],
    recipe: Recipe,
    phase: Phase,
    seed: int,
    model: Segmenter,
    multiplier: float,
    iterations: range,
) -> list[float]:
    """Train a model, in place, and return the loss of every iteration.

    Args:
        views: A batch is of one of them, by chance.
        class_weights: Of the loss.
        recipe: Of the study.
        phase: Of the recipe.
        seed: Of the order of the photos.
        model: One of the study.
        multiplier: Of the learning rate of what an arm adds.
        iterations: Those of the phase that are trained here.
    """
    model.encoder.freeze(phase.frozen_maps)
    groups = parameter_groups(model, phase.learning_rate, recipe.weight_decay, recipe.encoder_multiplier, multiplier)
    optimizer = torch.optim.AdamW(list(groups), fused=True)
    schedule = ScheduleRecipe(
        iterations=phase.iterations, warmup_iterations=min(recipe.warmup_iterations, phase.iterations - 1)
    )
    losses = []
    model.train()
    numbered = enumerate(batches(views, recipe.batch_size, phase.iterations, seed))
    for iteration, (view, indices) in islice(numbered, iterations.start, iterations.stop):
        set_learning_rates(optimizer, iteration, schedule)
        loss = cross_entropy(model(view.maps[indices]), view.label_maps[indices], IGNORE_INDEX, class_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def batches(views: Sequence[View], size: int, iterations: int, seed: int) -> Iterator[tuple[View, Tensor]]:
    """Yield a view and indices of photos for every iteration; each epoch has every photo once."""
    generator = torch.Generator().manual_seed(seed)
    number = len(views[0].label_maps)
    epochs = -(-iterations * size // number)
    order = torch.cat([torch.randperm(number, generator=generator) for _ in range(epochs)])
    choices = torch.randint(len(views), (iterations,), generator=generator)
    for iteration in range(iterations):
        yield views[choices[iteration]], order[iteration * size : (iteration + 1) * size]


@torch.no_grad()
def evaluate(model: Segmenter, maps: Maps, photos: Photos) -> tuple[ImageCounts, Tensor]:
    """Count confusions and boundaries of every photo, at the size that all have, and confusions in boundaries."""
    model.eval()
    counts = ImageCounts(len(photos.labels))
    in_boundaries = MeanIoU(counts.num_classes, IGNORE_INDEX)
    width = boundary_width(*photos.label_maps.shape[1:])
    for index, name in enumerate(photos.names):
        label_map = photos.label_maps[index].long()
        (logits,) = model(maps[slice(index, index + 1)])
        prediction = upsampled_argmax(logits, (label_map.shape[0], label_map.shape[1]))
        metric = MeanIoU(counts.num_classes, IGNORE_INDEX)
        metric.update(prediction, label_map)
        counts.add(index, name, metric.confusion_matrix, prediction, label_map, None)
        in_boundaries.update(prediction, label_map.where(in_boundary(label_map[None], width)[0], IGNORE_INDEX))
    return counts, in_boundaries.confusion_matrix


@torch.no_grad()
def offset_statistics(model: Segmenter, maps: Maps) -> dict | None:
    """Return what `scripts/offset_statistics.py` shows, means over some photos; None without attention."""
    head = model.classifier
    if not isinstance(head, OffsetLearning) or isinstance(head, LinearResidual):
        return None
    found = []
    for index in range(0, len(maps), max(1, len(maps) // LOOKED_AT)):
        features = model.pixel_features(maps[slice(index, index + 1)])[0].flatten(1).T  # (pixels, channels)
        attended = torch.special.entr(class_attention(head, features)).sum(dim=1).exp() / len(features)
        offset = class_offset(head, features)
        lengths = [centred(x, 0).norm(dim=1) for x in (head.class_representation[0], offset)]
        parts = torch.stack([centred(part, 1).std() for part in logit_parts(head, features, offset)])
        found.append([attended, *lengths, parts])
    names = ("attended", "representation", "offset", "logits")
    return {
        name: torch.stack(values).mean(0).tolist()
        for name, values in zip(names, zip(*found, strict=True), strict=True)
    }
