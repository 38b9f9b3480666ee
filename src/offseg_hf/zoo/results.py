"""The table that model cards are made from, `model_cards/results.yaml`: the paper's figures, and what we count."""

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import yaml

from offseg_hf.zoo.presets import PRESETS, Preset


@dataclass(frozen=True)
class Paper:
    """Where the figures come from."""

    title: str
    venue: str
    url: str


@dataclass(frozen=True)
class DataSet:
    """What the presets of a data set share.

    hub_id, config: on the Hub; None if there is no well-known one. images: to train on, and to validate with.
    image_size: height and width that figures of cost are of. The rest is of the paper's trainings.
    """

    url: str
    images: list[int]
    image_size: list[int]
    iterations: int
    batch_size: int
    crop_size: int
    hub_id: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Baseline:
    """What the paper compares with, the network without offset learning as others trained it: no paired run.

    mIoU in %, parameters in millions.
    """

    miou: float
    parameters: float


@dataclass(frozen=True)
class Result:
    """One preset's figures.

    miou: in %, one scale; parameters: in millions; gflops: None if there are none. The three are the paper's, and so
        is `without`, of the networks that it has with and without offset learning.
    gmacs: multiply-accumulate operations, in billions, counted in our model.
    """

    miou: float
    parameters: float
    gmacs: float
    gflops: float | None = None
    without: Baseline | None = None


@dataclass(frozen=True)
class ResultsTable:
    """All of it; `data_sets` and `results` by name, the latter by that of the preset."""

    paper: Paper
    data_sets: dict[str, DataSet]
    results: dict[str, Result]

    def of(self, preset: Preset) -> tuple[Result, DataSet]:
        """Return the results of a preset, and its data set."""
        return self.results[preset.name], self.data_sets[preset.label_set]


def model_cards_folder() -> Path:
    """Return `model_cards`: in an installed package its own folder, in a checkout the one at the top."""
    installed = Path(__file__).parents[1] / "model_cards"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "model_cards"


@cache
def load_results() -> ResultsTable:
    """Return the table in `model_cards/results.yaml`."""
    return read_results(model_cards_folder() / "results.yaml")


def read_results(path: Path) -> ResultsTable:
    """Return the table in a file.

    Raises:
        ValueError: for one that lacks a preset or a figure, or has one too many.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        _require_keys(values, [item.name for item in fields(ResultsTable)], "")
        for section, names in (
            ("data_sets", {preset.label_set: None for preset in PRESETS.values()}),
            ("results", PRESETS),
        ):
            _require_keys(values[section], names, f"{section}.")
        table = ResultsTable(
            paper=_row(Paper, values["paper"], "paper"),
            data_sets={name: _row(DataSet, row, name) for name, row in values["data_sets"].items()},
            results={name: _row(Result, values["results"][name], name) for name in PRESETS},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return table


def _require_keys(values: Any, names: Any, prefix: str) -> None:
    found = values.keys() if isinstance(values, dict) else set()
    differing = ", ".join(f"{prefix}{name}" for name in sorted(found ^ set(names)))
    if differing:
        raise ValueError(f"expected exactly the keys {', '.join(names)}; add or remove {differing}")


def _row(kind: type, values: Any, name: str) -> Any:
    """Return the dataclass of `values`, whose types its fields say."""
    try:
        if kind is Result and "without" in values:
            values = values | {"without": _row(Baseline, values["without"], f"{name}.without")}
        row = kind(**values)
    except TypeError as error:
        expected = ", ".join(item.name for item in fields(kind))
        raise ValueError(f"{name}: expected {expected}, got {values!r} ({error})") from None
    for item in fields(kind):
        value = getattr(row, item.name)
        kind_of_value: Any = get_origin(item.type) if get_origin(item.type) in (list, dict) else item.type
        if not isinstance(value, kind_of_value):
            raise ValueError(f"{name}.{item.name}: expected {item.type}, got {value!r}")
    return row
