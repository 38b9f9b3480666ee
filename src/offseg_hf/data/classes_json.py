"""`classes.json`: the classes of a data set, and which values they have in its files.

    {"classes": ["sky", "road"], "palette": [[128, 128, 128], [128, 64, 128]], "void_value": 255}

Only `classes` is needed. `values` are the classes' values in the masks (default: their positions); `classes` may also
name the values itself, as `{"0": "sky", "1": "road"}` or `{"sky": 0, "road": 1}`, and ids follow their order then.
`void_value`, one or a list of them, is what is no class there (default: the ignore index, unless a class has it; null:
nothing), `void_values` another word for it. Masks in RGB are read by the colors of `palette` instead, which must all
differ then; black is void there, unless a class has it. `name` and `title` are those of the data set. `ignore_index`
is what no class becomes when it is read: 255, so that it has to be named for 256 classes or more.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from offseg_hf.data.label_sets import IGNORE_INDEX, LabelSet, distinct_colors
from offseg_hf.utils.texts import expand, is_utf8, printable, read_text


FILE_NAME = "classes.json"
KEYS = ("classes", "palette", "values", "void_value", "void_values", "ignore_index", "name", "title")
# What other tools call it, where that is not one of `KEYS` with a slip of the pen.
OTHER_WORDS = {
    "id2label": "classes",
    "label2id": "classes",
    "labels": "classes",
    "names": "classes",
    "categories": "classes",
    "colors": "palette",
    "colours": "palette",
    "ids": "values",
    "reduce_zero_label": "values",
    "do_reduce_labels": "values",
    "ignore_label": "void_value",
    "ignore_value": "void_value",
    "void": "void_value",
}


def read_classes(path: str | Path) -> LabelSet:
    """Return the label set in a classes.json, in any encoding that has a byte order mark or is UTF-8.

    Raises ValueError with the file's name if it is none.
    """
    path = expand(path)
    try:
        facts = json.loads(read_text(path), object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{printable(str(path))}: expected JSON, got something else: {error}") from None
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from None
    try:
        return _label_set(facts, printable(path.absolute().parent.name) or "custom")
    except ValueError as error:
        raise ValueError(
            f'{printable(str(path))}: {error}; expected {{"classes": [names], "palette": [[r, g, b], ...], '
            '"void_value": 255}, see offseg_hf.data.classes_json'
        ) from None


def label_set_beside(folder: str | Path) -> LabelSet | None:
    """Read the classes.json in a folder, as of a data set, or of a model that was trained on one; None without it."""
    path = Path(folder, FILE_NAME)
    return read_classes(path) if path.is_file() else None


def _label_set(facts: Any, default_name: str) -> LabelSet:
    if not isinstance(facts, dict):
        raise ValueError(f"got {_kind(facts)} where an object with the key `classes` belongs")
    if "classes" not in facts and len(facts) and all(key.isdecimal() for key in facts):
        raise ValueError("no 'classes': put these names below that key")
    _require_known(facts)
    if "classes" not in facts:
        raise ValueError("no 'classes'")
    facts = {key: value for key, value in facts.items() if value is not None or key.startswith(("void", "ignore"))}
    names, values = _names_and_values(facts)
    palette = facts.get("palette", [list(color) for color in distinct_colors(len(names))])
    if not isinstance(palette, list) or len(palette) != len(names) or not all(map(_is_color, palette)):
        raise ValueError(f"`palette` must be {len(names)} colors of three integers in 0..255, as many as classes")
    ignore_index = facts.get("ignore_index", IGNORE_INDEX)
    if type(ignore_index) is not int or not len(names) <= ignore_index < 65535:
        raise ValueError(f"`ignore_index` must lie beyond the {len(names)} classes and below 65535: {ignore_index!r}")
    void = _void_values(facts, values, ignore_index)
    texts = {key: facts.get(key, default_name) for key in ("name", "title")}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise ValueError("`name` and `title` must be texts")
    return LabelSet(
        name=texts["name"],
        title=facts.get("title", texts["name"]),
        names=tuple(names),
        palette=tuple(tuple(color) for color in palette),
        raw_ids=tuple(values),
        void_ids=tuple(void),
        reduce_zero_label=values == list(range(1, len(names) + 1)) and void == [0],
        ignore_index=ignore_index,
    )


def _require_known(facts: dict[str, Any]) -> None:
    for key in facts:
        if key not in KEYS:
            near = OTHER_WORDS.get(key) or next(iter(get_close_matches(key, KEYS, n=1)), None)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(KEYS)}"
            raise ValueError(f"unknown key {printable(key)!r} ({hint})")


def _names_and_values(facts: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Read the classes in the order of their ids, and their values in the masks."""
    classes, values = facts.get("classes"), facts.get("values")
    names: Any
    if isinstance(classes, dict):
        pairs = _pairs(classes)
        if values is not None:
            raise ValueError("`classes` says already which values they have, `values` must be left out then")
        names, values = [name for _, name in pairs], [value for value, _ in pairs]
    else:
        names = classes
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise ValueError(f"`classes` must be a list of names, got {_kind(names)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`classes` must be different names, {twice!r} is there twice")
    values = list(range(len(names))) if values is None else values
    if not isinstance(values, list) or len(values) != len(names) or not all(map(_is_value, values)):
        raise ValueError(f"`values` must be {len(names)} integers in 0..65535, one for each class")
    if len(set(values)) < len(values):
        raise ValueError("`values` must all differ")
    return names, values


def _pairs(classes: dict[str, Any]) -> list[tuple[int, str]]:
    """Read (value, name) of each class by ascending value, of an object that has values as keys or names as keys."""
    if classes and all(key.isdecimal() and isinstance(name, str) for key, name in classes.items()):
        return sorted((int(value), name) for value, name in classes.items())
    if classes and all(type(value) is int for value in classes.values()):
        return sorted((value, name) for name, value in classes.items())
    raise ValueError('`classes` must be a list of names, {"0": name, ...} or {name: 0, ...}, got an object of others')


def _void_values(facts: dict[str, Any], values: list[int], ignore_index: int) -> list[int]:
    """Read what is no class in the masks; by default the ignore index, which gives way to a class of this value."""
    given = [key for key in ("void_value", "void_values") if key in facts]
    if not given:
        return [] if ignore_index in values else [ignore_index]
    if len(given) > 1:
        raise ValueError("`void_value` and `void_values` are two words for one thing, use one of them")
    void = facts[given[0]]
    void = [] if void is None else void if isinstance(void, list) else [void]
    if not all(map(_is_value, void)):
        raise ValueError(f"`{given[0]}` must be an integer in 0..65535, a list of such, or null for none")
    if both := sorted({*values} & {*void}):
        raise ValueError(f"`values` and the void values must all differ, {both[0]} is in both")
    if len(set(void)) < len(void):
        raise ValueError(f"`{given[0]}` must all differ")
    return void


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and is_utf8(name)


def _is_value(value: Any) -> bool:
    return type(value) is int and 0 <= value < 65536


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(_is_value(c) and c < 256 for c in color)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an empty list" if not value else "a list with something else in it"
    names = {dict: "an object", str: "one text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is twice in an object of JSON, of which Python would take the last one."""
    facts = dict(pairs)
    if len(facts) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return facts


def classes_json(labels: LabelSet) -> str:
    """Write a classes.json for masks that hold the class ids of `labels`, whatever its published files hold."""
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
