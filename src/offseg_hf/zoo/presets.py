"""The presets: architecture, size and data set of the official models, and how they are tested.

A preset is a file in `configs/`, after which it is called, and so are its recipe (the rest of the file) and its
repository on the Hub. Figures from the configurations of HVision-NKU/OffSeg @ 1414f6d.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.utils.yaml_files import parse_yaml
from offseg_hf.zoo.families import FAMILIES, load_class


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An official model.

    Args:
        name: of its file.
        family: a key of `FAMILIES`.
        size: one of the family's.
        label_set: a key of `LABEL_SETS`.
        scale: what a photo is resized into for the test, keeping its ratio: (long side, short side) in pixels.
        window, stride: side of the square sliding window and its step, in pixels; None where the whole image is
            tested at once.
        size_divisor: what the sides of the image are padded to multiples of, before it is cut.
        num_parameters: of the official model, without its unused `conv_seg`.
        base_model: the repository of ImageNet weights that training starts from; None where the Hub has none.
    """

    name: str
    family: str
    size: str
    label_set: str
    scale: tuple[int, int]
    num_parameters: int
    window: int | None = None
    stride: int | None = None
    size_divisor: int | None = None
    base_model: str | None = None

    @property
    def labels(self) -> LabelSet:
        """The label set."""
        return LABEL_SETS[self.label_set]

    def config(self, **overrides: Any) -> PreTrainedConfig:
        """Return the model's configuration with the class names; `overrides` replace its fields."""
        names = {"id2label": self.labels.id2label(), "label2id": self.labels.label2id()}
        return load_class(FAMILIES[self.family].config).from_size(self.size, **(names | overrides))

    def image_processor(self, **overrides: Any) -> BaseImageProcessor:
        """Return the image processor with the official test protocol; `overrides` replace its settings."""
        return load_class(FAMILIES[self.family].image_processor)(**(self.image_processor_settings() | overrides))

    def image_processor_settings(self) -> dict[str, Any]:
        """Return the arguments of the image processor that make it follow the official test protocol."""
        long_side, short_side = self.scale
        return {
            "size": {"longest_edge": long_side, "shortest_edge": short_side},
            "window_size": self.window,
            "window_stride": self.stride,
            "size_divisor": self.size_divisor,
            "do_reduce_labels": self.labels.reduce_zero_label,
        }


def configs_folder() -> Path:
    """Return `configs`: in an installed package its own folder, in a checkout the one at the top."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "configs"


@cache
def _values(path: Path) -> dict[str, Any]:
    return parse_yaml(path.read_text(encoding="utf-8"))


def _section(path: Path, name: str) -> dict[str, Any]:
    """Return what a file says in the section `name`, over what those say that it builds on."""
    values = _values(path)
    parents = values.get("inherit", [])
    section: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        section |= _section(path.parent / parent, name)
    return section | values.get(name, {})


def read_presets(folder: Path) -> dict[str, Preset]:
    """Return those of a folder by family, size and data set: the files that have a section `preset`.

    The others are recipes, perhaps someone's own.
    """
    presets = []
    for path in folder.glob("*.yaml"):
        if "preset" in _values(path):
            section, start = _section(path, "preset"), _section(path, "model").get("pretrained")
            section["scale"] = tuple(section["scale"])
            is_file = start is None or start.startswith(".")
            presets.append(Preset(name=path.stem, base_model=None if is_file else start, **section))
    families, label_sets = list(FAMILIES), list(LABEL_SETS)

    def place(preset: Preset) -> tuple[int, int, int]:
        sizes = FAMILIES[preset.family].sizes
        return families.index(preset.family), sizes.index(preset.size), label_sets.index(preset.label_set)

    return {preset.name: preset for preset in sorted(presets, key=place)}


PRESETS = read_presets(configs_folder())


def get_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        ValueError: which has the nearest names, if there is none.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"unknown preset {name!r}{nearest_presets(name)}: `offseg presets` lists them")


def nearest_presets(name: str) -> str:
    """Return a question for the presets whose names are like a wrong one, to put into an error; nothing for none."""
    name = name.lower()
    names = [name] if name in PRESETS else difflib.get_close_matches(name, PRESETS, n=3)
    if not names:
        return ""
    *others, last = names
    return f" (did you mean {', '.join(others)} or {last}?)" if others else f" (did you mean {last}?)"
