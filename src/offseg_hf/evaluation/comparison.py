"""Two evaluations on the same images: differences, and how far these would vary with other images.

The interval is that of a paired bootstrap: images are drawn with replacement, the same for both models, and the
difference is computed anew from the counts of those drawn. What varies is the choice of images, not the training.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offseg_hf.evaluation.image_counts import COUNTS_FILE, ImageCounts, PerImage, mean_of_numbers, ratio


DRAWS = 1000
CONFIDENCE = 0.95
SEED = 0
DRAWS_AT_A_TIME = 100


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation as it was written.

    Args:
        path: of its `evaluation.json`.
        report: the content of that.
        counts: of its images.
    """

    path: Path
    report: dict[str, Any]
    counts: ImageCounts

    @classmethod
    def load(cls, path: str | Path) -> "SavedEvaluation":
        """Read `evaluation.json`, or that of a folder, and the counts beside it.

        Raises:
            ValueError, OSError: say what is missing, or does not belong together.
        """
        path = Path(path)
        path = path / "evaluation.json" if path.is_dir() else path
        again = f"evaluate again, with a folder for the results (--output), which gets {COUNTS_FILE}"
        try:
            report = json.loads(path.read_bytes())
            names = [row["name"] for row in report["classes"]]
            pixels = [row["pixels"] for row in report["classes"]]
            report["dataset"]["num_images"], report["metrics"]["mIoU"]
        except FileNotFoundError:
            raise ValueError(f"{path}: expected the evaluation.json of an evaluation, got no file") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: expected the evaluation.json of an evaluation, got another file") from None
        file = path.with_name(COUNTS_FILE)
        if not file.is_file():
            raise ValueError(f"{path} has no {COUNTS_FILE} beside it, the counts of every image: {again}")
        try:
            counts = ImageCounts.from_bytes(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}: {again}") from None
        found = counts.per_image().labeled.sum(axis=0).tolist() if counts.num_classes == len(names) else None
        if found != pixels or len(counts) != report["dataset"]["num_images"]:
            raise ValueError(f"{file} is not of the evaluation in {path}: {again}")
        return cls(path, report, counts)

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of their ids."""
        return [row["name"] for row in self.report["classes"]]

    @property
    def title(self) -> str:
        """Name the data set and split."""
        dataset = self.report["dataset"]
        return f"{dataset['title']}, {dataset['split']}"


def check_comparable(
    other: SavedEvaluation, class_names: Sequence[str], image_names: Sequence[str] | None, title: str
) -> None:
    """Raise ValueError that names the first difference, if an evaluation is not of these classes and images.

    Args:
        other: the evaluation.
        class_names: in the order of their ids.
        image_names: in their order, if they are known; folders are no difference.
        title: of the data set and split.
    """

    def refuse(what: str, theirs: Any, ours: Any) -> None:
        raise ValueError(
            f"{other.path} cannot be compared with: {what} is {theirs!r} there ({other.title}), but {ours!r} here "
            f"({title}). Compare evaluations of the same images, in the same order, with the same classes"
        )

    for what, theirs, ours in (
        ("class", other.class_names, list(class_names)),
        ("image", _file_names(other.counts.names), None if image_names is None else _file_names(image_names)),
    ):
        if ours is None:
            continue
        for index, (their_name, our_name) in enumerate(zip(theirs, ours)):
            if their_name != our_name:
                refuse(f"{what} {index}", their_name, our_name)
        if len(theirs) != len(ours):
            refuse(f"the number of {what}{'es' if what == 'class' else 's'}", len(theirs), len(ours))


def compare(ours: ImageCounts, other: SavedEvaluation, class_names: Sequence[str], title: str) -> dict[str, Any]:
    """Compare an evaluation with an older one of the same images.

    Args:
        ours: counts of the evaluation.
        other: what it is compared with.
        class_names: in the order of their ids.
        title: of the data set and split.

    Returns:
        For `evaluation.json`: `metrics` and `classes` with what is here and there, the difference (here - there) and
        its interval, None where there is no number; and how many `images` changed.

    Raises:
        ValueError: for evaluations of other images or annotations.
    """
    check_comparable(other, class_names, ours.names, title)
    here, there = ours.per_image(), other.counts.per_image()
    differing = np.flatnonzero((here.labeled != there.labeled).any(axis=1))
    if len(differing):
        raise ValueError(
            f"{other.path} cannot be compared with: the annotation of {ours.names[differing[0]]} is another one there "
            f"({len(differing)} of {len(ours)} differ)"
        )
    rows = _differences(here, there)
    changes = here.scores()["mIoU"] - there.scores()["mIoU"]
    return {
        "with": str(other.path),
        "model": other.report["model"]["name"],
        "interval": {"level": CONFIDENCE, "draws": DRAWS, "seed": SEED, "over": "images, paired"},
        "metrics": {name: rows[name][0] for name in ("mIoU", "mBoundaryIoU", "aAcc")},
        "classes": [
            {"id": index, "name": name, "IoU": rows["IoU"][index], "BoundaryIoU": rows["BoundaryIoU"][index]}
            for index, name in enumerate(class_names)
        ],
        "images": {"better": int((changes > 0).sum()), "worse": int((changes < 0).sum()), "of": len(ours)},
    }


def statistics(tables: PerImage, weights: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
    """Return metrics over all images, and over draws of them.

    Args:
        tables: counts.
        weights: how often each image is in a draw, (draws, images); by default one draw of each image once.

    Returns:
        IoU, BoundaryIoU (draws, classes); mIoU, mBoundaryIoU and aAcc (draws, 1).
    """
    weights = np.ones((1, len(tables.hits))) if weights is None else weights

    def drawn(counts: np.ndarray) -> np.ndarray:
        return weights @ counts.astype(np.float64)  # integers far below 2 ** 53, and exact

    hits, labeled = drawn(tables.hits), drawn(tables.labeled)
    iou = ratio(hits, drawn(tables.union))
    boundary = ratio(drawn(tables.boundary_intersection), drawn(tables.boundary_union))
    return {
        "IoU": iou,
        "BoundaryIoU": boundary,
        "mIoU": mean_of_numbers(iou)[:, None],
        "mBoundaryIoU": mean_of_numbers(boundary)[:, None],
        "aAcc": ratio(hits.sum(axis=1), labeled.sum(axis=1))[:, None],
    }


def _differences(here: PerImage, there: PerImage) -> dict[str, list[dict[str, Any]]]:
    """Return of each of `statistics`, per column, what is here and there, the difference, and its interval."""
    generator, images = np.random.default_rng(SEED), len(here.hits)
    drawn: dict[str, list[np.ndarray]] = defaultdict(list)
    for _ in range(0, DRAWS, DRAWS_AT_A_TIME):
        draws = [generator.integers(images, size=images) for _ in range(DRAWS_AT_A_TIME)]
        weights = np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float64)
        ours, theirs = statistics(here, weights), statistics(there, weights)
        for name in ours:
            drawn[name].append(ours[name] - theirs[name])
    ours, theirs = statistics(here), statistics(there)
    return {
        name: [
            {"here": _number(x), "there": _number(y), "difference": _number(x - y), "interval": _interval(values)}
            for x, y, values in zip(ours[name][0], theirs[name][0], np.concatenate(drawn[name]).T)
        ]
        for name in ours
    }


def _interval(values: np.ndarray) -> list[float | None] | None:
    """Return the percentiles of the differences over draws; None where most draws have none."""
    numbers = values[~np.isnan(values)]
    if 2 * len(numbers) <= len(values):
        return None
    return [_number(end) for end in np.quantile(numbers, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2))]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _file_names(names: Sequence[str]) -> list[str]:
    return [Path(name).name for name in names]
