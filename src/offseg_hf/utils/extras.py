"""Packages that only some uses need: the extras of pyproject.toml."""

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import a package of an extra.

    Args:
        module: as Python names it.
        extra: which has it.

    Raises:
        ValueError: says what to type, if it is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(
            f'this needs {error.name}, which is not installed: pip install "offseg-hf[{extra}]"'
        ) from None
