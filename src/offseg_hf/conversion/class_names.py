"""The names of classes as they are given on the command line."""

from pathlib import Path

from offseg_hf.data.classes_json import read_classes
from offseg_hf.data.label_sets import LABEL_SETS


def read_names(text: str) -> tuple[str, ...]:
    """Return the names in a classes.json, in a file of one per line, of a benchmark, or in a list with commas.

    Raises:
        ValueError: if it is none of these.
        OSError: if a file cannot be read.
    """
    path = Path(text)
    if path.suffix == ".json":
        return read_classes(path).names
    if path.is_file():
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if text in LABEL_SETS:
        return LABEL_SETS[text].names
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or path.suffix == ".txt":
        raise ValueError(f"expected a file with names of classes, or names with commas between them, got {text!r}")
    return names
