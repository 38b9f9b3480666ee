"""Fit the weights of one naming scheme onto the parameters of another, by a table of regexes."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


# Counts batches for a momentum that nobody uses; it exists or not, depending on who saved the file.
COUNTER = "num_batches_tracked"
LISTED = 10
# What this package alone calls so; the official code has cls_repr, cls_offset_proj and feat_offset_proj.
OWN_NAME = re.compile(r"(.*\.)?(class_representation|(class|feature)_offset_proj\..*)")


@dataclass(frozen=True)
class KeyTable:
    """How the keys of one family's checkpoints become ours.

    `renames` (pattern, replacement) are applied one after another; `drops` (pattern of a whole official key, reason)
    name what is not wanted; `splits` (pattern in a renamed key, replacements) part a tensor that is several of ours,
    equally along its first dimension; `transforms` (pattern at the end of one of our keys, function) change the tensor
    itself.
    """

    renames: tuple[tuple[str, str], ...]
    drops: tuple[tuple[str, str], ...] = ()
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    transforms: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()

    def rename(self, key: str) -> str:
        """Return our name of a published `key`."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def is_dropped(self, key: str) -> bool:
        """Return whether a `key` is left out on purpose."""
        return any(re.fullmatch(pattern, key) for pattern, _ in self.drops)

    def split(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the parts of `tensor` by their keys; most tensors are one part, under the `key` they have."""
        for pattern, replacements in self.splits:
            if re.search(pattern, key):
                parts = tensor.tensor_split(len(replacements)) if tensor.ndim else [tensor] * len(replacements)
                return {re.sub(pattern, name, key): part for name, part in zip(replacements, parts)}
        return {key: tensor}

    def transform(self, key: str, tensor: Tensor) -> Tensor:
        """Return `tensor` as our layer of the name `key` has it."""
        for pattern, function in self.transforms:
            if re.search(f"{pattern}$", key):
                tensor = function(tensor)
        return tensor


@dataclass(frozen=True)
class PretrainedForm:
    """One form in which weights to start training from are published.

    name: what it is, for messages. marker: a key that this form has and no other.
    kept: pattern of the whole names of our parameters that keep their values where the weights lack them or have them
        in another shape.
    """

    name: str
    marker: str
    table: KeyTable
    kept: str


@dataclass
class Fit:
    """Weights under our names, and everything that did not fit: nothing, if they belong to the model."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # our key -> official key
    dropped: list[str] = field(default_factory=list)  # official keys
    missing: list[str] = field(default_factory=list)  # our keys
    left_over: list[str] = field(default_factory=list)  # official keys
    misshaped: dict[str, str] = field(default_factory=dict)  # our key -> official key and both shapes, in words

    @property
    def used(self) -> set[str]:
        """The official keys whose tensors, or parts of them, are among the weights."""
        return {self.origins[name] for name in self.weights}

    @property
    def is_complete(self) -> bool:
        """Whether every tensor has found its place."""
        return not (self.missing or self.left_over or self.misshaped)

    @property
    def num_problems(self) -> int:
        """How many keys have not."""
        return len(self.missing) + len(self.left_over) + len(self.misshaped)

    def counts(self) -> str:
        """Say how many keys of each kind do not fit."""
        return ", ".join(f"{len(keys)} {kind}" for kind, keys in self._kinds())

    def problems(self) -> str:
        """Say in one line how many keys of each kind do not fit, and the first of them."""
        return "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in self._kinds())

    def _kinds(self) -> list[tuple[str, list[str]]]:
        kinds = {"missing": self.missing, "left over": self.left_over, "mis-shaped": list(self.misshaped.values())}
        return [(kind, keys) for kind, keys in kinds.items() if keys]


OWN_TABLE = KeyTable(renames=())


def has_own_names(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor] | None = None) -> bool:
    """Return whether weights are named as this package names them, so that no table of another's names is for them.

    This is asked once, before any table: most of them change what has our names already.
    ours: the state dict of a model, all of whose names count as ours too; an encoder alone has no others.
    """
    names = [name for name in weights if not name.endswith(COUNTER)]
    is_part = ours is not None and bool(names) and all(name in ours for name in names)
    return is_part or any(OWN_NAME.fullmatch(name) for name in names)


def without_prefixes(weights: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Return the weights under their names, then without the first part of these, as long as all of them share one.

    Whatever a model lay in when it was saved (`model.`, `student.`) is before all of its names.
    """
    yield weights
    first = {name.partition(".")[0] for name in weights}
    while len(first) == 1 and all("." in name for name in weights):
        weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
        yield weights
        first = {name.partition(".")[0] for name in weights}


def fit_any(weights: Mapping[str, Tensor], table: KeyTable, ours: Mapping[str, Tensor]) -> Fit:
    """Return the best of the fits (`fit`) with and without the prefixes that all weights share."""
    bare, *others = without_prefixes(weights)
    best = fit(bare, table, ours)
    for bare in others:
        if best.is_complete:
            break
        best = min(best, fit(bare, table, ours), key=lambda found: found.num_problems)
    return best


def other_num_classes(fitted: Fit, ours: Mapping[str, Tensor], num_labels: int) -> int | None:
    """Return how many classes weights are of, if that is all that distinguishes their shapes from those of `ours`.

    ours: the state dict of a model of `num_labels` classes, whose tensors have a dimension for them, or one for them
        and for none of them. None if nothing differs, or anything else does.
    """
    found = set()
    for name in fitted.misshaped:
        theirs, own = fitted.weights[name].shape, ours[name].shape
        differing = [(a, b) for a, b in zip(theirs, own) if a != b]
        if len(theirs) != len(own) or not differing or any(b - num_labels not in (0, 1) for _, b in differing):
            return None
        found |= {a - (b - num_labels) for a, b in differing}
    return found.pop() if len(found) == 1 else None


def fit(official: Mapping[str, Tensor], table: KeyTable, ours: Mapping[str, Tensor]) -> Fit:
    """Fit `official` weights onto `ours`, a model's state dict (which may live on the meta device).

    Floating-point weights of any precision fit: loading them converts, and from half to float32 it does so exactly.
    """
    result = Fit()
    for key, tensor in official.items():
        parts = table.split(table.rename(key), tensor)
        if table.is_dropped(key) or (key.endswith(COUNTER) and parts.keys().isdisjoint(ours)):
            result.dropped.append(key)
        elif any(name not in ours or name in result.weights for name in parts):
            result.left_over.append(key)
        else:
            for name, part in parts.items():
                part = table.transform(name, part)
                if part.shape != ours[name].shape or not _is_compatible(part.dtype, ours[name].dtype):
                    result.misshaped[name] = f"{key} is {_describe(part)} instead of {_describe(ours[name])}"
                result.weights[name] = part
                result.origins[name] = key
    result.missing = [name for name in ours if name not in result.weights and not name.endswith(COUNTER)]
    return result


def _is_compatible(dtype: torch.dtype, wanted: torch.dtype) -> bool:
    return dtype == wanted or (dtype.is_floating_point and wanted.is_floating_point)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:LISTED]) + (", ..." if len(keys) > LISTED else "")
