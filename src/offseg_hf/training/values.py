"""Values of dataclasses: checked by name and type."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def construct(kind: type, values: Mapping[str, Any], section: str = "") -> Any:
    """The dataclass of `values` that have the right names and types, with the dataclasses in it.

    Raises ValueError, with the section, for values that lack, or that the dataclass itself refuses.
    """
    hints, built = get_type_hints(kind), dict(values)
    for item in settings_of(kind):
        if is_dataclass(hints[item.name]):
            built[item.name] = construct(hints[item.name], values.get(item.name, {}), f"{section}{item.name}.")
        elif item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            raise ValueError(f"expected {section}{item.name}, got none")
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{section.rstrip('.')}: {error}") from None


def settings_of(kind: type) -> list[Field]:
    """The fields of a dataclass that are values of a file; `metadata={"is_setting": False}` marks the others."""
    return [item for item in fields(kind) if item.metadata.get("is_setting", True)]


def typed(value: Any, kind: Any, key: str) -> Any:
    """`value` as the type `kind`, some keys of it if `kind` is a dataclass; `key` is where it stands."""
    arguments = get_args(kind)
    if NoneType in arguments:
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else typed(value, kind, key)
    if get_origin(kind) in (tuple, Sequence) and isinstance(value, list | tuple):
        kinds = arguments if _length(kind) else arguments[:1] * len(value)
        if len(kinds) == len(value):
            return tuple(typed(item, kind, f"{key}[{index}]") for index, (item, kind) in enumerate(zip(value, kinds)))
    elif is_dataclass(kind) and isinstance(value, dict):
        hints, prefix = get_type_hints(kind), f"{key}." if key else ""
        require_known(value, [item.name for item in settings_of(kind)], prefix)
        return {name: typed(item, hints[name], f"{prefix}{name}") for name, item in value.items()}
    elif get_origin(kind) is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    elif get_origin(kind) is Literal and value in arguments:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (bool, int, str) and type(value) is kind:
        return value
    raise ValueError(f"{key}: expected {_in_words(kind)}, got {value!r}")


def _in_words(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(kind) in (tuple, Sequence):
        number = f"a list of {_length(kind)}" if _length(kind) else "a list"
        return f"{number}, each {_in_words(arguments[0])}"
    if is_dataclass(kind) or get_origin(kind) is dict:
        return "keys and values"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def _length(kind: Any) -> int | None:
    """Of a list of the type `kind`; None if it may have any."""
    arguments = get_args(kind)
    return None if get_origin(kind) is Sequence or arguments[-1] is ... else len(arguments)


def require(condition: bool, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"expected {expected}, got {got}")


def require_known(values: Mapping[str, Any], known: list[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            hint = nearest(f"{prefix}{name}", [f"{prefix}{other}" for other in known])
            raise ValueError(f"unknown key {prefix}{name}{hint}: expected some of {', '.join(known)}")


def nearest(name: str, known: list[str]) -> str:
    names = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {names[0]}?)" if names else ""
