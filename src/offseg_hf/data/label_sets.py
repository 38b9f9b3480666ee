"""Class names, colors and ids of the four benchmarks, in the official order.

From HVision-NKU/OffSeg @ 1414f6d, mmseg/datasets. `label_sets.json` lists one class per line: name, value in the data
set's own PNG files, color. The position in the list is the id a model is trained on. Colors are not unique (ADE20K
paints road and skyscraper alike): a color cannot be turned back into a class.
"""

import colorsys
import json
from dataclasses import dataclass
from importlib.resources import files


IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSet:
    """The classes of one data set; index i of `names`, `palette` and `raw_ids` is class id i.

    Args:
        name: of the label set.
        title: the same for people.
        names: of the classes.
        palette: their colors.
        raw_ids: their values in the annotation files as published (of Cityscapes the labelIds files).
        void_ids: the other values that occur there; they are not evaluated and become `ignore_index`.
        reduce_zero_label: whether raw values count from 1 and 0 is void, so that `do_reduce_labels` of the image
            processor makes class ids of them.
        ignore_index: the id of what is no class.
    """

    name: str
    title: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    raw_ids: tuple[int, ...]
    void_ids: tuple[int, ...]
    reduce_zero_label: bool
    ignore_index: int = IGNORE_INDEX

    def __len__(self) -> int:
        return len(self.names)

    def id2label(self) -> dict[int, str]:
        """Return class names by id, as `PreTrainedConfig.id2label` wants them."""
        return dict(enumerate(self.names))

    def label2id(self) -> dict[str, int]:
        """Return ids by class name, as `PreTrainedConfig.label2id` wants them."""
        return {name: index for index, name in enumerate(self.names)}

    def raw_to_train_id(self) -> dict[int, int]:
        """Return class ids by value in the annotation files, of void values too; any other value is an error."""
        return dict.fromkeys(self.void_ids, self.ignore_index) | {raw: i for i, raw in enumerate(self.raw_ids)}


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Make colors for classes that have none: consecutive ids are far apart in hue, whatever their number."""
    golden_ratio = (5**0.5 - 1) / 2
    colors = (
        colorsys.hls_to_rgb(i * golden_ratio % 1, (0.45, 0.6, 0.75)[i % 3], (0.85, 0.6)[i // 3 % 2])
        for i in range(count)
    )
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors)


def _read_label_sets() -> dict[str, LabelSet]:
    tables = json.loads(files(__package__).joinpath("label_sets.json").read_text(encoding="utf-8"))
    return {
        name: LabelSet(
            name=name,
            title=table["title"],
            names=tuple(label for label, _, _ in table["classes"]),
            palette=tuple((*bytes.fromhex(color[1:]),) for _, _, color in table["classes"]),
            raw_ids=tuple(raw for _, raw, _ in table["classes"]),
            void_ids=tuple(table["void_ids"]),
            reduce_zero_label=table["reduce_zero_label"],
        )
        for name, table in tables.items()
    }


LABEL_SETS: dict[str, LabelSet] = _read_label_sets()


def plain_name(name: str) -> str:
    """Return the name of a class by which it is known again: case and punctuation are no difference."""
    return "".join(character for character in name.casefold() if character.isalnum())
