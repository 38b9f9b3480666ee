"""What all configurations of this package share: a field that does not exist is refused by its name."""

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# What transformers takes beside a configuration's fields, and gives a meaning to.
OTHER_ARGUMENTS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}
# The older words for `backbone_config`, of configurations that have one.
BACKBONE_ARGUMENTS = {"backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"}

# The base of mixins, for type checkers: what the class has that they are mixed into.
AnyBase: Any = object


class OffsetConfigMixin(AnyBase):
    """Refuses fields that the configuration does not have; transformers keeps them, and nobody reads them.

    A saved configuration may have fields of a newer version, or of the one it was made from. They stay, as
    attributes, and there is a warning about those that are nearly a field's name.
    """

    def __post_init__(self, **kwargs):
        # Every saved configuration has its model_type. Another's (a SegFormer's, read as ours) would hide our own.
        is_saved = kwargs.pop("model_type", None) is not None or self.transformers_version is not None
        self._check_names(kwargs, is_saved)
        for name in ("id2label", "label2id"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"{name}: expected a dictionary of ids and names, got {getattr(self, name)!r}")
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and (not isinstance(num_labels, int) or num_labels < 1):
            raise ValueError(f"num_labels: expected an integer of at least 1, got {num_labels!r}")
        super().__post_init__(**kwargs)
        if self.id2label is not None and self.label2id is None:
            self.label2id: dict[str, int] | None = {label: index for index, label in self.id2label.items()}

    def _check_names(self, names: Iterable[str], is_saved: bool) -> None:
        known = {*(field.name for field in fields(self)), *OTHER_ARGUMENTS, *self.attribute_map}
        if "backbone_config" in known:
            known |= BACKBONE_ARGUMENTS
        unknown = [name for name in names if name not in known and not name.startswith("_")]
        if is_saved:
            for name in unknown:
                near = get_close_matches(name, described_fields(type(self)), n=1, cutoff=0.8)
                if near and not hasattr(type(self), name):
                    logger.warning(f"{type(self).__name__} has no field {name!r}: is {near[0]!r} meant?")
        elif unknown:
            refuse_name(type(self).__name__, unknown[0], described_fields(type(self)))

    @classmethod
    def from_dict(cls, config_dict: dict, return_unused_kwargs: bool = False, **kwargs):
        """Make one of saved fields; of `kwargs` that are no fields, those that nearly are one are refused."""
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        if return_unused_kwargs:
            return config, unused
        refuse_near_names(cls.__name__, unused, described_fields(cls))
        return config


def described_fields(config_class: type) -> list[str]:
    """Return the fields of a configuration that not every model of transformers has, and the number of classes."""
    standard = {field.name for field in fields(PreTrainedConfig)}
    names = [field.name for field in fields(config_class) if not field.name.startswith("_")]
    return ["num_labels", *(name for name in names if name not in standard)]


def refuse_name(owner: str, name: str, known: list[str]) -> None:
    """Raise ValueError for a name that is none of the `known` ones, with the one that is nearest."""
    near = get_close_matches(name, known, n=1)
    hint = f"is {near[0]!r} meant?" if near else f"expected one of {', '.join(sorted(known))}"
    raise ValueError(f"{owner} has no setting {name!r}: {hint}")


def refuse_near_names(owner: str, names: Iterable[str], known: list[str]) -> None:
    """Raise ValueError for a name that is nearly one of the `known` ones.

    Others may be meant for others: pipelines give what a model is loaded with to its configuration and its image
    processor too.
    """
    for name in names:
        if get_close_matches(name, known, n=1, cutoff=0.8):
            refuse_name(owner, name, known)


def row_of(table: dict[str, dict], size: str) -> dict:
    """Return the fields of a model of this `size`; raise ValueError for one that the `table` has not."""
    if size not in table:
        raise ValueError(f"unknown size {size!r}: expected one of {', '.join(table)}")
    return table[size]
