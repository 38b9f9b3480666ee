"""What the runs say: differences between two arms, seed by seed, and how sure they are.

Two intervals of 95 %, as two things vary. That of Student's t is over the seeds: other trainings, tested on the same
photos. That of the bootstrap is over the photos: other photos, of the same trainings.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

import numpy as np
from benchmark.measure import markdown_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offseg_hf.data.label_sets import distinct_colors
from offseg_hf.evaluation.comparison import statistics
from offseg_hf.evaluation.image_counts import PerImage, mean_of_numbers, ratio
from offseg_hf.visualization.style import DPI, chart_style
from study.arms import ARMS, Table
from study.runs import SCORES, Run


DRAWS, SEED = 2000, 0
DRAWS_AT_A_TIME = 200
# 97.5 % quantiles of Student's t, for one degree of freedom and more.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
TITLES = {"mIoU": "mIoU", "mBoundaryIoU": "Boundary mIoU", "aAcc": "pixel accuracy"}


@dataclass(frozen=True)
class Difference:
    """A score of an arm minus that of another, in percentage points.

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
        return t_interval(list(self.by_seed.values()))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the ends of the t interval of the mean of values; None of a single one."""
    number = len(values)
    if number < 2:
        return None
    half = STUDENT_T[min(number - 1, len(STUDENT_T)) - 1] * stdev(values) / number**0.5
    return mean(values) - half, mean(values) + half


class DataSetResults:
    """The runs of a table, of one architecture and data set: of each arm the seeds that the reference has too.

    Args:
        runs: All that there are, of other tables too.
        table: Which one.
    """

    def __init__(self, runs: Sequence[Run], table: Table):
        self.table = table
        self.runs = {(run.arm, run.seed): run for run in runs if run.arm in (*table.arms, table.origin)}
        self.seeds = sorted(seed for arm, seed in self.runs if arm == table.reference)
        self.arms = [arm for arm in table.arms if self.seeds_of(arm)]

    def seeds_of(self, arm: str) -> list[int]:
        """Return the seeds of an arm that the reference has too."""
        return [seed for seed in self.seeds if (arm, seed) in self.runs]

    @cached_property
    def tables(self) -> dict[tuple[str, int], PerImage]:
        """The counts of each run."""
        return {key: run.counts.per_image() for key, run in self.runs.items()}

    def scores(self, arm: str, score: str) -> dict[int, float]:
        """Return a score of every seed, in %."""
        return {seed: 100 * self.runs[arm, seed].record[score] for seed in self.seeds_of(arm)}

    @property
    def first(self) -> Run:
        """The reference's first run."""
        return self.runs[self.table.reference, self.seeds[0]]

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of their ids."""
        return self.first.record["data"]["classes"]

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the reference."""
        return self.arms[1:]

    @cached_property
    def differences(self) -> dict[tuple[str, str], dict[str, Difference]]:
        """By the two arms and score; the photos drawn are the same for all."""
        drawn, found = self._drawn(), {}
        pairs = [(arm, self.table.reference) for arm in self.others]
        pairs += [pair for pair in self.table.pairs if set(pair) <= set(self.arms)]
        for arm, other in pairs:
            seeds = [seed for seed in self.seeds_of(arm) if (other, seed) in self.runs]
            if not seeds:
                continue
            found[arm, other] = {}
            for score in SCORES:
                ours, theirs = self.scores(arm, score), self.scores(other, score)
                of_draws = [drawn[arm, seed][score] - drawn[other, seed][score] for seed in seeds]
                by_seed = {seed: ours[seed] - theirs[seed] for seed in seeds}
                found[arm, other][score] = Difference(by_seed, _interval(np.mean(of_draws, axis=0)))
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

    def class_ious(self, arm: str, seed: int) -> np.ndarray:
        """Return the IoU of each class in %, (classes,); NaN of those that are nowhere."""
        return 100 * statistics(self.tables[arm, seed])["IoU"][0]

    def class_gains(self, arm: str) -> np.ndarray:
        """Return what an arm has more of IoU than the reference, (seeds, classes)."""
        reference = self.table.reference
        return np.stack([self.class_ious(arm, seed) - self.class_ious(reference, seed) for seed in self.seeds_of(arm)])

    @cached_property
    def labeled(self) -> np.ndarray:
        """The pixels of each class in each photo, (photos, classes)."""
        return self.tables[self.table.reference, self.seeds[0]].labeled

    def class_groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield rare, middling and common classes, a third of those in the labels each: what they are, and which."""
        pixels = self.labeled.sum(axis=0)
        order = np.argsort(pixels)[(pixels == 0).sum() :]
        for name, part in zip(("rarest", "middle", "commonest"), np.array_split(order, 3), strict=True):
            shares = 100 * pixels[part] / pixels.sum()
            yield f"{name} {len(part)}, {shares.min():.2g} to {shares.max():.2g} % of the pixels", part

    def photo_groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield photos with few, some and many classes: what they are, and which."""
        number = (self.labeled > 0).sum(axis=1)
        low, high = np.quantile(number, (1 / 3, 2 / 3))
        for part in (number <= low, (number > low) & (number <= high), number > high):
            if part.any():
                yield f"{number[part].min()} to {number[part].max()} classes, {part.sum()} photos", part

    def accuracy_gains(self, arm: str, photos: np.ndarray) -> np.ndarray:
        """Return what an arm has more of pixel accuracy than the reference in some photos, (seeds,)."""
        hits = {key: tables.hits[photos].sum() for key, tables in self.tables.items()}
        more = [hits[arm, seed] - hits[self.table.reference, seed] for seed in self.seeds_of(arm)]
        return 100 * np.array(more) / self.labeled[photos].sum()

    def region_groups(self) -> Iterator[tuple[str, bool]]:
        """Yield the boundaries of classes in the labels, as Boundary IoU has them, and all other pixels."""
        share = 100 * np.sum(self.first.record["in_boundaries"]) / self.labeled.sum()
        yield f"in boundaries, {share:.0f} % of the pixels", True
        yield "elsewhere", False

    def region_gains(self, arm: str, in_boundaries: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return what an arm has more of mIoU and of pixel accuracy than the reference in a region, (seeds,) each."""
        scores = {
            (name, seed): self._region_scores(name, seed, in_boundaries)
            for name in (arm, self.table.reference)
            for seed in self.seeds_of(arm)
        }
        gains = [scores[arm, seed] - scores[self.table.reference, seed] for seed in self.seeds_of(arm)]
        miou, accuracy = np.transpose(gains)
        return miou, accuracy

    def _region_scores(self, arm: str, seed: int, in_boundaries: bool) -> np.ndarray:
        """Return mIoU and pixel accuracy in a region, in %."""
        confusion = np.array(self.runs[arm, seed].record["in_boundaries"])  # labels by predictions
        there = np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])
        if not in_boundaries:
            of = self.tables[arm, seed]
            there = np.stack([pixels.sum(axis=0) for pixels in (of.hits, of.labeled, of.predicted)]) - there
        hits, labeled, predicted = there
        miou = mean_of_numbers(ratio(hits, labeled + predicted - hits))
        return 100 * np.array([miou, hits.sum() / labeled.sum()])


def summary(results: DataSetResults) -> dict:
    """Return all figures, for results.json."""
    return {
        **{name: results.first.record[name] for name in ("data", "recipe", "size")},
        "photos": len(results.first.counts),
        "differences": {
            f"{arm} - {other}": {
                score: {
                    "by_seed": {seed: round(value, 3) for seed, value in difference.by_seed.items()},
                    "mean": round(difference.mean, 3),
                    "over_seeds": _rounded(difference.over_seeds),
                    "over_photos": _rounded(difference.over_photos),
                }
                for score, difference in of.items()
            }
            for (arm, other), of in results.differences.items()
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
    """Write, in Markdown, mIoU of each arm by seed, and what it has more than the others."""
    table, seeds = results.table, results.seeds
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", "difference", "over seeds", "over photos"]
    rows = []
    for arm in results.arms if table.origin is None else (table.origin, *results.arms):
        scores = results.scores(arm, "mIoU")
        by_seed = (f"{scores[seed]:.2f}" if seed in scores else "" for seed in seeds)
        title = "what all go on from" if arm == table.origin else ARMS[arm].title
        cells = _cells(results.differences.get((arm, table.reference)))
        rows.append([title, *by_seed, f"{mean(scores.values()):.2f}" if scores else "", *cells])
    for (arm, other), difference in results.differences.items():
        if other != table.reference:
            of_seeds = difference["mIoU"].by_seed
            by_seed = (f"{of_seeds[seed]:+.2f}" if seed in of_seeds else "" for seed in seeds)
            rows.append([f"*{arm}* minus *{other}*", *by_seed, "", *_cells(difference)])
    return markdown_table(header, rows)


def _cells(difference: Mapping[str, Difference] | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    of = difference["mIoU"]
    return f"**{of.mean:+.2f}**", _written(of.over_seeds), _written(of.over_photos)


def score_table(results: DataSetResults) -> str:
    """Write, in Markdown, the differences in all scores, with the interval over seeds."""
    header = ["", *(TITLES[score] for score in SCORES), "pairs ahead, mIoU", "worst pair"]
    rows = []
    for (arm, other), of in results.differences.items():
        cells = [f"{of[score].mean:+.2f} {_written(of[score].over_seeds)}".strip() for score in SCORES]
        values = of["mIoU"].by_seed.values()
        ahead = f"{sum(value > 0 for value in values)} of {len(values)}"
        rows.append([f"*{arm}* minus *{other}*", *cells, ahead, f"{min(values):+.2f}"])
    return markdown_table(header, rows)


def table_of_all(all_results: Sequence[DataSetResults]) -> str:
    """Write, in Markdown, the differences in mIoU in all architectures and data sets, with the interval over seeds.

    What varies from seed to seed is their mean; of the seeds that all of them have.
    """
    header = ["", "architectures and data sets", TITLES["mIoU"], "pairs ahead", "worst pair"]
    rows = []
    for arm, other in dict.fromkeys(pair for results in all_results for pair in results.differences):
        found = [results.differences.get((arm, other)) for results in all_results]
        by_seed = [of["mIoU"].by_seed for of in found if of is not None]
        values = [value for of in by_seed for value in of.values()]
        means = [mean(of[seed] for of in by_seed) for seed in sorted(set.intersection(*map(set, by_seed)))]
        rows.append(
            [
                f"*{arm}* minus *{other}*",
                f"{len(by_seed)}",
                f"{mean(means):+.2f} {_written(t_interval(means))}".strip() if means else "",
                f"{sum(value > 0 for value in values)} of {len(values)}",
                f"{min(values):+.2f}",
            ]
        )
    return markdown_table(header, rows)


def class_table(results: DataSetResults) -> str:
    """Write, in Markdown, the IoU of each class and the differences of the arms, means of seeds."""
    reference = results.table.reference
    theirs = np.mean([results.class_ious(reference, seed) for seed in results.seeds], axis=0)
    gains = {arm: results.class_gains(arm).mean(axis=0) for arm in results.others}
    labeled = results.labeled
    shares, photos = labeled.sum(axis=0) / labeled.sum(), (labeled > 0).mean(axis=0)
    rows = [
        [
            name,
            f"{100 * shares[index]:.1f} %",
            f"{100 * photos[index]:.0f} %",
            f"{theirs[index]:.1f}",
            *(f"{of[index]:+.1f}" for of in gains.values()),
        ]
        for index, name in enumerate(results.classes)
        if labeled[:, index].any()
    ]
    return markdown_table(["class", "of the pixels", "of the photos", reference, *gains], rows)


def where_table(results: DataSetResults) -> str:
    """Write, in Markdown, where the arms gain: in which classes, which photos, and in boundaries or elsewhere."""
    rows = [
        [f"IoU: {title}", *(_of_seeds(results.class_gains(arm)[:, part].mean(axis=1)) for arm in results.others)]
        for title, part in results.class_groups()
    ]
    rows += [
        [f"accuracy: {title}", *(_of_seeds(results.accuracy_gains(arm, part)) for arm in results.others)]
        for title, part in results.photo_groups()
    ]
    for title, in_boundaries in results.region_groups():
        gains = [results.region_gains(arm, in_boundaries) for arm in results.others]
        for score, of_arms in zip(("mIoU", "accuracy"), zip(*gains, strict=True), strict=True):
            rows.append([f"{score}: {title}", *map(_of_seeds, of_arms)])
    return markdown_table(["", *results.others], rows)


def _of_seeds(gains: np.ndarray) -> str:
    return f"{gains.mean():+.2f} {_written(t_interval(gains.tolist()))}".strip()


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


def draw_differences(rows: Mapping[str, Mapping[str, DataSetResults]]) -> Figure:
    """Draw, of every arm, the seeds, their mean, and both intervals.

    Args:
        rows: By what stands before a row of the picture, and by data set.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    arms = {title: list(dict.fromkeys(arm for of in row.values() for arm in of.others)) for title, row in rows.items()}
    heights = [len(of) + 1 for of in arms.values()]
    with chart_style():
        size = (4.2 * len(columns) + 1.6, 0.4 * sum(heights) + 0.8 * len(rows))
        figure = Figure(size, dpi=DPI, layout="constrained")
        all_axes = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False, height_ratios=heights)
        for row_axes, (title, row) in zip(all_axes, rows.items(), strict=True):
            for axes, name in zip(row_axes, columns, strict=True):
                if name in row:
                    _draw(axes, row[name], arms[title])
                    axes.set_title(f"{name}: mIoU minus that of {row[name].table.reference}", fontsize=9)
                else:
                    axes.set_axis_off()
            row_axes[0].set_yticks(range(len(arms[title])), arms[title])
            row_axes[0].set_ylim(len(arms[title]) - 0.5, -0.5)
            row_axes[0].set_ylabel(title, fontsize=8)
        figure.supxlabel(
            "percentage points; rings: seeds; diamond: their mean; thick: 95 % over seeds; thin: 95 % over photos",
            fontsize=8,
        )
    return figure


def _draw(axes: Axes, results: DataSetResults, arms: Sequence[str]) -> None:
    """Draw the arms of a table, one below the other."""
    colors = dict(zip(ARMS, distinct_colors(len(ARMS)), strict=True))
    for row, arm in enumerate(arms):
        if arm not in results.others:
            continue
        difference = results.differences[arm, results.table.reference]["mIoU"]
        style: dict[str, Any] = {"color": tuple(x / 255 for x in colors[arm])}
        axes.plot(difference.over_photos, (row + 0.22,) * 2, **style, linewidth=1.5, alpha=0.6)
        if difference.over_seeds:
            axes.plot(difference.over_seeds, (row,) * 2, **style, linewidth=3, alpha=0.5)
        values = list(difference.by_seed.values())
        axes.plot(values, [row] * len(values), "o", **style, markersize=4, markerfacecolor="white")
        axes.plot([difference.mean], [row], "D", **style, markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x")


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _written(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(end, 3) for end in interval]
