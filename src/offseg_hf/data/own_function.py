"""A function of the user's that augments samples, named by where it is imported from."""

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from offseg_hf.utils.texts import one_line


@cache
def load_function(path: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Import the function that `module:function` names; modules in the working directory are found, too.

    Raises ValueError if there is none.
    """
    module_name, _, name = path.partition(":")
    sys.path.insert(0, os.getcwd())  # where the command `offseg` does not look by itself
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # of whatever is done when the module is imported
        raise ValueError(f"extra={path}: cannot be imported: {one_line(error)}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ValueError(f"extra={path}: expected a function, got {type(function).__name__}")
    return function


def augment(path: str, pixels: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the function makes of a crop, drawing from the generators of random, numpy and torch by `seed`.

    Args:
        path: `module:function`.
        pixels: uint8 (height, width, 3), red first; the function may write to it.
        labels: class ids (height, width), the same.
        seed: of the random numbers; what is drawn elsewhere is as if there had been none.

    Raises:
        ValueError: with the name of the function, if it fails or gives something else than an image and label map.
    """
    function, shape, dtype = load_function(path), labels.shape, labels.dtype
    try:
        with _seeded(seed):
            result = function(pixels, labels)
    except Exception as error:
        raise ValueError(f"extra={path} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"extra={path}: expected a tuple (image, label map) from it, got {type(result).__name__}")
    given = {"image": ((*shape, 3), np.dtype(np.uint8)), "label map": (shape, dtype)}
    for (kind, wanted), array in zip(given.items(), result, strict=True):
        found = (getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__))
        if not isinstance(array, np.ndarray) or found != wanted:
            raise ValueError(
                f"extra={path}: expected the {kind} that it was given, {wanted[1]} of shape {wanted[0]}, got "
                f"{found[1]} of shape {found[0]}"
            )
    return result


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that functions draw from, and give them back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
