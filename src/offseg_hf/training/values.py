"""Values of a recipe, and of the configurations and image processors that it changes: checked by name and type."""

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin, get_type_hints

from offseg_hf.utils.texts import one_line


ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "keys and values",
    list: "a list",
    tuple: "a list",
    NoneType: "null",
}


def construct(kind: type, values: Mapping[str, Any], section: str = "") -> Any:
    """Build the dataclass of `values` that have the right names and types, with the dataclasses in it.

    Raises ValueError, with the section, for values that lack, or that the dataclass itself refuses.
    """
    hints, built = get_type_hints(kind), dict(values)
    for item in settings_of(kind):
        if is_dataclass(hints[item.name]):
            built[item.name] = construct(hints[item.name], values.get(item.name, {}), f"{section}{item.name}.")
        elif (kind_of_items := _items(hints[item.name])) and item.name in values:
            built[item.name] = tuple(
                construct(kind_of_items, part, f"{section}{item.name}[{index}].")
                for index, part in enumerate(values[item.name])
            )
        elif item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            raise ValueError(f"expected {section}{item.name}, got none")
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{section.rstrip('.')}: {error}") from None


def settings_of(kind: Any) -> list[Field]:
    """Return the fields that are values of a file; `metadata={"is_setting": False}` marks the others."""
    return [item for item in fields(kind) if item.metadata.get("is_setting", True)]


@dataclass(frozen=True)
class Setting:
    """A key of a file: its type in words, its default if it has one, and what it is."""

    key: str
    kind: str
    default: Any
    documentation: str

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING


def described(kind: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a dataclass and of those in it; what they are stands in its docstring, below `Args:`."""
    hints, documentation = get_type_hints(kind), _arguments(inspect.getdoc(kind) or "")
    for item in settings_of(kind):
        if is_dataclass(hints[item.name]):
            yield from described(hints[item.name], f"{prefix}{item.name}.")
        else:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            yield Setting(prefix + item.name, _in_words(hints[item.name]), default, documentation.get(item.name, ""))
            if kind_of_items := _items(hints[item.name]):
                yield from described(kind_of_items, f"{prefix}{item.name}[].")


def _items(kind: Any) -> Any:
    """Return the dataclass that a list of the type `kind` is of; None if it is of something else."""
    arguments = get_args(kind)
    return arguments[0] if get_origin(kind) is tuple and arguments and is_dataclass(arguments[0]) else None


def _arguments(docstring: str) -> dict[str, str]:
    """Read the section `Args:` of a docstring: name -> text in one line."""
    section = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in ARGUMENT.findall(section)}


def typed(value: Any, kind: Any, key: str, also: str = "") -> Any:
    """Return `value` as the type `kind`; of a dataclass some of its keys. A kind that is only a name takes anything.

    Args:
        value: as YAML or JSON gives it.
        kind: a type, as of a field of a dataclass.
        key: where the value stands, for errors.
        also: what else is taken there, for errors.
    """
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return typed(value, arguments[0], key)
    if origin in (Union, UnionType):
        return _one_of(value, arguments, key)
    if origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        kinds = arguments if _length(kind) else (arguments[:1] or (Any,)) * len(value)
        if len(kinds) == len(value):
            items = (typed(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))
            return list(items) if origin is list else tuple(items)
    elif is_dataclass(kind) and isinstance(value, dict):
        hints, prefix = get_type_hints(kind), f"{key}." if key else ""
        require_known(value, [item.name for item in settings_of(kind)], prefix)
        return {name: typed(item, hints[name], f"{prefix}{name}") for name, item in value.items()}
    elif origin is dict and isinstance(value, dict):
        if arguments[:1] != (str,) or all(isinstance(name, str) for name in value):
            return value
    elif origin is Literal and value in arguments:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (bool, int, str, dict):
        if type(value) is kind:
            return value
    elif kind is Any or isinstance(kind, str | ForwardRef):  # the name of a type, as of what is not imported there
        return value
    raise ValueError(f"{key}: expected {_in_words(kind)}{also}, got {value!r}")


def _one_of(value: Any, kinds: Sequence[Any], key: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    also = " or null" if NoneType in kinds else ""
    kinds = [kind for kind in kinds if kind is not NoneType]
    if len(kinds) == 1:
        return typed(value, kinds[0], key, also)  # whose error says where in the value it is
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):  # of 1 a whole number, if it may be one
        try:
            return typed(value, kind, key)
        except ValueError:
            continue
    raise ValueError(f"{key}: expected {_any_of(kinds)}{also}, got {value!r}")


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return _any_of(arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (tuple, list, Sequence) and arguments:
        return f"a list{f' of {_length(kind)}' if _length(kind) else ''}, each {_in_words(arguments[0])}"
    if is_dataclass(kind):
        return "keys and values"
    return WORDS.get(origin, getattr(kind, "__name__", str(kind)))


def _any_of(kinds: Sequence[Any]) -> str:
    words = dict.fromkeys(map(_in_words, kinds))  # of lists and tuples once
    if WORDS[float] in words:
        words.pop(WORDS[int], None)
    return " or ".join(words)


def _length(kind: Any) -> int | None:
    """Return how many items a list of the type `kind` has; None if it may have any number."""
    arguments = get_args(kind)
    return len(arguments) if get_origin(kind) is tuple and ... not in arguments else None


def check_settings(section: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a configuration or an image processor in the types that it declares, where it does."""
    return {name: typed(value, kinds.get(name, Any), f"{section}.{name}") for name, value in values.items()}


@contextmanager
def named_settings(section: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Give errors in a block, which uses the `values` of a recipe's section, the names that they have there.

    A ValueError or OSError passes as it is: it says what is wrong. Others are of code that did not expect such values.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:  # of a configuration, whose reason names the field
        raise ValueError(f"{section}: {one_line(error.__cause__ or error)}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        if not values:
            raise
        settings = ", ".join(f"{section}.{name}={value}" for name, value in values.items())
        raise ValueError(f"{settings}: {type(error).__name__}: {one_line(error)}") from error


def require(condition: bool, expected: str, got: Any) -> None:
    """Raise ValueError, with what was expected, unless a condition holds."""
    if not condition:
        raise ValueError(f"expected {expected}, got {got}")


# What other tools call a key.
OTHER_WORDS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "steps": "iterations",
    "max_steps": "iterations",
    "max_iters": "iterations",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch": "batch_size",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "amp": "mixed_precision",
    "workers": "num_workers",
}


def require_known(values: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    """Raise ValueError for a key that is not known, with the known one that is most like it."""
    for name in values:
        if name not in known:
            near = OTHER_WORDS.get(name.lower())
            if near not in known:
                near = next(iter(difflib.get_close_matches(name.lower(), known, n=1)), None)
            hint = f" (did you mean {prefix}{near}?)" if near else ""
            raise ValueError(f"unknown key {prefix}{name}{hint}: expected some of {', '.join(known)}")
