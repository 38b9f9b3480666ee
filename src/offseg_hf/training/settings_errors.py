"""Errors of libraries about a setting, as recipes name it: `model.config.hidden_sizes: expected a list, got 8`."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError

from offseg_hf.utils.texts import one_line


# What huggingface_hub's validation of dataclasses says, which keeps neither field nor type beside its texts.
FIELD = re.compile(r"field '(\w+)'")
EXPECTED = re.compile(r"expected (?:an? )?(\w+), got")
ITEM = re.compile(r"Invalid item at index \d+ in (?:list|tuple)")
DECLARED = re.compile(r"\w+\[[^]]*\]")
WORDS = {
    "list": "a list",
    "tuple": "a list",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "dict": "keys and values",
    "None": "null",
    "NoneType": "null",
}


@contextmanager
def named_settings(section: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Give errors in a block, which uses the `values` of a recipe's section, the names that they have there.

    A ValueError or OSError passes as it is: it says what is wrong. Others are of code that did not expect such values.
    """
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(_in_words(error, section, values)) from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        if not values:
            raise
        settings = ", ".join(f"{section}.{name}={value}" for name, value in values.items())
        raise ValueError(f"{settings}: {type(error).__name__}: {one_line(error)}") from error


def check_types(section: str, values: Mapping[str, Any], declared: type) -> None:
    """Raise ValueError if a value is not of the type that a TypedDict declares; a whole number is a number, too."""
    for name, value in values.items():
        with named_settings(section, values):
            try:
                validate_typed_dict(declared, {name: value})
            except StrictDataclassError:
                if (numbers := _numbers(value)) is value:
                    raise
                validate_typed_dict(declared, {name: numbers})


def _numbers(value: Any) -> Any:
    """Whole numbers, one or a list, as floats."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if type(value) is int else value


def _in_words(error: StrictDataclassError, section: str, values: Mapping[str, Any]) -> str:
    """Of a field: the type it wants. Of a configuration as a whole: the reason itself."""
    reason, field = one_line(error.__cause__ or error), FIELD.search(str(error))
    if field is None:
        return f"{section}: {reason}"
    name = field[1]
    if name not in values or not isinstance(error.__cause__, TypeError):
        return f"{section}.{name}: {reason}"
    expected = list(dict.fromkeys(WORDS.get(kind, kind) for kind in EXPECTED.findall(reason)))
    if ITEM.search(reason):
        declared = DECLARED.search(reason)
        expected = [declared[0] if declared else "a list of other items"]
    if "a number" in expected and "a whole number" in expected:
        expected.remove("a whole number")
    return f"{section}.{name}: expected {' or '.join(expected) or reason}, got {values[name]!r}"
