"""`classes.json`: the classes of a data set, and which values they have in its files.

    {"classes": ["sky", "road"], "palette": [[128, 128, 128], [128, 64, 128]], "void_value": 255}

Only `classes` is needed. `values` are the classes' values in the masks (default: their positions), `void_value` (one)
or `void_values` what is no class there (default: the ignore index), `name` and `title` those of the data set.
`ignore_index` is what no class becomes when it is read: 255, so that it has to be named for 256 classes or more.
"""

import json
from pathlib import Path

from offseg_hf.data.labels import IGNORE_INDEX, LabelSet, distinct_colours


FILE_NAME = "classes.json"


def read_classes(path: str | Path) -> LabelSet:
    """The label set in a classes.json; ValueError with the file's name if it is none."""
    path = Path(path)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got something else: {error}") from None
    try:
        return _label_set(facts, path.parent.name or "custom")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f'{path}: {reason}; expected {{"classes": [names], "palette": [[r, g, b], ...], "void_value": 255}}, '
            "see offseg_hf.data.classes_json"
        ) from None


def _label_set(facts: dict, default_name: str) -> LabelSet:
    names = facts["classes"]
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError("`classes` must be different names")
    palette = facts.get("palette") or distinct_colours(len(names))
    is_colour = [len(colour) == 3 and all(type(c) is int and 0 <= c <= 255 for c in colour) for colour in palette]
    if len(palette) != len(names) or not all(is_colour):
        raise ValueError(f"`palette` must be {len(names)} colours of three integers in 0..255, as many as classes")
    ignore_index = facts.get("ignore_index", IGNORE_INDEX)
    if type(ignore_index) is not int or not len(names) <= ignore_index < 65535:
        raise ValueError(f"`ignore_index` must lie beyond the {len(names)} classes and below 65535: {ignore_index!r}")
    raw_ids = facts.get("values", list(range(len(names))))
    void_ids = facts.get("void_values", [facts.get("void_value", ignore_index)])
    values = [*raw_ids, *void_ids]
    if len(raw_ids) != len(names) or not all(type(value) is int and 0 <= value < 65536 for value in values):
        raise ValueError(f"`values` must be {len(names)} integers in 0..65535, one for each class")
    if len(set(values)) < len(values):
        raise ValueError("`values` and the void values must all differ")
    name = facts.get("name", default_name)
    return LabelSet(
        name=name,
        title=facts.get("title", name),
        names=tuple(names),
        palette=tuple(tuple(colour) for colour in palette),
        raw_ids=tuple(raw_ids),
        void_ids=tuple(void_ids),
        reduce_zero_label=raw_ids == list(range(1, len(names) + 1)) and void_ids == [0],
        ignore_index=ignore_index,
    )


def classes_json(labels: LabelSet) -> str:
    """A classes.json for masks that hold the class ids of `labels` themselves, whatever its published files hold."""
    facts = {
        "name": labels.name,
        "title": labels.title,
        "classes": labels.names,
        "palette": labels.palette,
        "ignore_index": labels.ignore_index,
        "void_value": labels.ignore_index,
    }
    lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
