"""What the runs say: differences between arms and the plain one, seed by seed, and how sure they are.

Two intervals of 95 %, as two things vary. That of Student's t is over the seeds: other trainings, tested on the same
photos. That of the bootstrap is over the photos: other photos, of the same trainings.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

import numpy as np
from benchmark.measure import markdown_table
from matplotlib.figure import Figure

from offseg_hf.data.label_sets import distinct_colors
from offseg_hf.evaluation.comparison import statistics
from offseg_hf.evaluation.image_counts import PerImage
from offseg_hf.visualization.style import DPI, chart_style
from study.arms import ARMS, PLAIN
from study.runs import BASE, SCORES, Run


DRAWS, SEED = 2000, 0
DRAWS_AT_A_TIME = 200
# 97.5 % quantiles of Student's t, for one degree of freedom and more.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
TITLES = {"mIoU": "mIoU", "mBoundaryIoU": "Boundary mIoU", "aAcc": "pixel accuracy"}


@dataclass(frozen=True)
class Difference:
    """An arm's score minus that of the plain one, in percentage points.

    Args:
        by_seed: Of each seed.
        over_photos: The ends of the bootstrap's interval of their mean.
    """

    by_seed: dict[int, float]
    over_photos: tuple[float, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return mean(self.by_seed.values())

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """The ends of the t interval; None of a single seed."""
        number = len(self.by_seed)
        if number < 2:
            return None
        half = STUDENT_T[min(number - 1, len(STUDENT_T)) - 1] * stdev(self.by_seed.values()) / number**0.5
        return self.mean - half, self.mean + half


class DataSetResults:
    """The runs of one data set: of each arm the seeds that the plain one has too.

    Args:
        runs: All that there are.
    """

    def __init__(self, runs: Sequence[Run]):
        self.runs = {(run.arm, run.seed): run for run in runs}
        self.seeds = sorted(seed for arm, seed in self.runs if arm == PLAIN)
        if not self.seeds:
            raise ValueError(f"expected runs of {PLAIN}, which all are compared with; found {sorted(self.runs)}")
        self.arms = [arm for arm in ARMS if self.seeds_of(arm)]
        self.first = self.runs[PLAIN, self.seeds[0]]
        self.classes: list[str] = self.first.record["data"]["classes"]

    def seeds_of(self, arm: str) -> list[int]:
        """Return the seeds of an arm that the plain one has too."""
        return [seed for seed in self.seeds if (arm, seed) in self.runs]

    @cached_property
    def tables(self) -> dict[tuple[str, int], PerImage]:
        """The counts of each run."""
        return {key: run.counts.per_image() for key, run in self.runs.items()}

    def scores(self, arm: str, score: str) -> dict[int, float]:
        """Return a score of every seed, in %."""
        return {seed: 100 * self.runs[arm, seed].record[score] for seed in self.seeds_of(arm)}

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """By arm and score; the photos drawn are the same for all."""
        drawn, found = self._drawn(), {}
        for arm in self.arms:
            if arm == PLAIN:
                continue
            found[arm] = {}
            for score in SCORES:
                plain = self.scores(PLAIN, score)
                by_seed = {seed: value - plain[seed] for seed, value in self.scores(arm, score).items()}
                of_draws = [drawn[arm, seed][score] - drawn[PLAIN, seed][score] for seed in by_seed]
                found[arm][score] = Difference(by_seed, _interval(np.mean(of_draws, axis=0)))
        return found

    def _drawn(self) -> dict[tuple[str, int], dict[str, np.ndarray]]:
        """Return the scores of each run on photos drawn with replacement, (DRAWS,) each, in %."""
        generator = np.random.default_rng(SEED)
        number = len(self.first.counts)
        found: dict[tuple[str, int], dict[str, list]] = {key: defaultdict(list) for key in self.tables}
        for _ in range(0, DRAWS, DRAWS_AT_A_TIME):
            draws = generator.integers(number, size=(DRAWS_AT_A_TIME, number))
            weights = np.stack([np.bincount(draw, minlength=number) for draw in draws]).astype(np.float64)
            for key, tables in self.tables.items():
                drawn = statistics(tables, weights)
                for score in SCORES:
                    found[key][score].append(100 * drawn[score][:, 0])
        return {key: {score: np.concatenate(parts) for score, parts in of.items()} for key, of in found.items()}

    def class_ious(self, arm: str, seeds: Sequence[int]) -> np.ndarray:
        """Return the mean IoU of each class in %, (classes,), over seeds."""
        return np.mean([100 * statistics(self.tables[arm, seed])["IoU"][0] for seed in seeds], axis=0)

    def accuracy_by_classes_in_photo(self, arm: str) -> Iterator[tuple[str, int, float]]:
        """Yield, for photos with few, some and many classes: how many, photos, and what an arm has more of pixels."""
        labeled, seeds = self.tables[PLAIN, self.seeds[0]].labeled, self.seeds_of(arm)
        number = (labeled > 0).sum(axis=1)
        low, high = np.quantile(number, (1 / 3, 2 / 3))
        for part in (number <= low, (number > low) & (number <= high), number > high):
            if part.any():
                hits = {key: tables.hits[part].sum() for key, tables in self.tables.items()}
                gain = np.mean([100 * (hits[arm, seed] - hits[PLAIN, seed]) for seed in seeds]) / labeled[part].sum()
                yield f"{number[part].min()} to {number[part].max()}", int(part.sum()), float(gain)


def summary(results: DataSetResults) -> dict:
    """Return all figures, for results.json."""
    return {
        **{name: results.first.record[name] for name in ("data", "recipe", "size")},
        "photos": len(results.first.counts),
        "differences": {
            arm: {
                score: {
                    "by_seed": {seed: round(value, 3) for seed, value in difference.by_seed.items()},
                    "mean": round(difference.mean, 3),
                    "over_seeds": _rounded(difference.over_seeds),
                    "over_photos": _rounded(difference.over_photos),
                }
                for score, difference in of.items()
            }
            for arm, of in results.differences.items()
        },
        "runs": [
            {
                **{name: run.record[name] for name in ("arm", "seed", "parameters", "seconds", *SCORES, "offsets")},
                "IoU": [None if np.isnan(iou) else round(float(iou), 5) for iou in ious],
            }
            for (arm, seed), run in results.runs.items()
            for ious in [statistics(results.tables[arm, seed])["IoU"][0]]
        ],
    }


def main_table(results: DataSetResults) -> str:
    """Write, in Markdown, mIoU of each arm by seed, and what it has more than the plain one."""
    seeds = results.seeds
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", "difference", "over seeds", "over photos"]
    rows = []
    for arm in (BASE, *results.arms):
        scores = results.scores(arm, "mIoU")
        cells = ["", "", ""]
        if arm in results.differences:
            difference = results.differences[arm]["mIoU"]
            cells = [f"**{difference.mean:+.2f}**", _written(difference.over_seeds), _written(difference.over_photos)]
        title = ARMS[arm].title if arm in ARMS else "what all go on from"
        by_seed = (f"{scores[seed]:.2f}" if seed in scores else "" for seed in seeds)
        rows.append([title, *by_seed, f"{mean(scores.values()):.2f}", *cells])
    return markdown_table(header, rows)


def score_table(results: DataSetResults) -> str:
    """Write, in Markdown, the differences in all scores, with the interval over seeds."""
    header = ["difference from plain", *(TITLES[score] for score in SCORES), "pairs ahead, mIoU", "worst pair"]
    rows = []
    for arm, of in results.differences.items():
        cells = [f"{of[score].mean:+.2f} {_written(of[score].over_seeds)}".strip() for score in SCORES]
        values = of["mIoU"].by_seed.values()
        ahead = f"{sum(value > 0 for value in values)} of {len(values)}"
        rows.append([ARMS[arm].title, *cells, ahead, f"{min(values):+.2f}"])
    return markdown_table(header, rows)


def class_table(results: DataSetResults) -> str:
    """Write, in Markdown, the IoU of each class and the differences of the arms from the plain one, means of seeds."""
    others = list(results.differences)
    plain = results.class_ious(PLAIN, results.seeds)
    labeled = results.tables[PLAIN, results.seeds[0]].labeled
    shares, photos = labeled.sum(axis=0) / labeled.sum(), (labeled > 0).mean(axis=0)
    differences = {
        arm: results.class_ious(arm, seeds) - results.class_ious(PLAIN, seeds)
        for arm, seeds in ((arm, results.seeds_of(arm)) for arm in others)
    }
    rows = [
        [
            name,
            f"{100 * shares[index]:.1f} %",
            f"{100 * photos[index]:.0f} %",
            f"{plain[index]:.1f}",
            *(f"{differences[arm][index]:+.1f}" for arm in others),
        ]
        for index, name in enumerate(results.classes)
        if labeled[:, index].any()
    ]
    return markdown_table(["class", "of the pixels", "of the photos", PLAIN, *others], rows)


def photo_table(results: DataSetResults, arm: str) -> str:
    """Write, in Markdown, where an arm gains: in photos with few, some and many classes."""
    rows = [[classes, number, f"{gain:+.2f}"] for classes, number, gain in results.accuracy_by_classes_in_photo(arm)]
    return markdown_table(["classes in a photo", "photos", f"pixel accuracy, {arm} - {PLAIN}"], rows)


def statistics_table(results: DataSetResults) -> str:
    """Write, in Markdown, what the offsets do in the logits, and where classes look; means of seeds."""
    rows = []
    for arm in results.arms:
        found = [results.runs[arm, seed].record["offsets"] for seed in results.seeds_of(arm)]
        if all(found):
            parts = np.mean([of["logits"] for of in found], axis=0)
            attended = 100 * np.mean([of["attended"] for of in found], axis=0)
            lengths = [np.mean([of[name] for of in found]) for name in ("representation", "offset")]
            rows.append(
                [
                    arm,
                    *(f"{part:.2f}" for part in parts),
                    f"{attended.min():.0f} to {attended.max():.0f} %",
                    *(f"{length:.2f}" for length in lengths),
                ]
            )
    header = ["", "logits of the representations", "class branch", "feature branch", "a class looks at"]
    return markdown_table([*header, "representation", "class offset"], rows)


def draw_differences(all_results: Mapping[str, DataSetResults]) -> Figure:
    """Draw a data set beside another: of every arm the seeds, their mean, and both intervals."""
    arms = [arm for arm in ARMS if any(arm in results.differences for results in all_results.values())]
    colors = {arm: tuple(x / 255 for x in color) for arm, color in zip(arms, distinct_colors(len(arms)), strict=True)}
    with chart_style():
        size = (4.2 * len(all_results) + 1.6, 0.5 * len(arms) + 1.1)
        figure = Figure(size, dpi=DPI, layout="constrained")
        all_axes = figure.subplots(1, len(all_results), sharey=True, squeeze=False)[0]
        for axes, (name, results) in zip(all_axes, all_results.items(), strict=True):
            for row, arm in enumerate(arms):
                if arm not in results.differences:
                    continue
                difference, color = results.differences[arm]["mIoU"], colors[arm]
                axes.plot(difference.over_photos, (row + 0.22,) * 2, color=color, linewidth=1.5, alpha=0.6)
                if difference.over_seeds:
                    axes.plot(difference.over_seeds, (row,) * 2, color=color, linewidth=3, alpha=0.5)
                values = list(difference.by_seed.values())
                axes.plot(values, [row] * len(values), "o", color=color, markersize=4, markerfacecolor="white")
                axes.plot([difference.mean], [row], "D", color=color, markersize=6)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_title(f"{name}: mIoU minus that of plain, seeds: {len(results.seeds)}")
            axes.set_xlabel("percentage points")
            axes.grid(axis="x")
        all_axes[0].set_yticks(range(len(arms)), arms)
        all_axes[0].set_ylim(len(arms) - 0.5, -0.5)
        figure.supxlabel(
            "rings: seeds; diamond: their mean; thick: 95 % over seeds; thin: 95 % over photos", fontsize=8
        )
    return figure


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _written(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(end, 3) for end in interval]
