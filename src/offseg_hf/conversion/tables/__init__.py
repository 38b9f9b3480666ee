"""Published keys -> ours: per family a module with the official checkpoints and the forms to start training from."""

from importlib import import_module

from offseg_hf.conversion.keys import KeyTable, PretrainedForm
from offseg_hf.zoo.families import FAMILIES


# By `model_type` of the configuration. Each module has OFFICIAL, the table of the official code's keys; MARKER, a key
# that tells them; PRETRAINED, the published forms for a whole model, and, where the encoder is a model of ours,
# PRETRAINED_ENCODER for it alone.
OFFICIAL_TABLES: dict[str, KeyTable] = {}
OFFICIAL_MARKERS: dict[str, str] = {}
PRETRAINED_FORMS: dict[str, tuple[PretrainedForm, ...]] = {}
for _family in FAMILIES.values():
    _table = import_module(f"{__name__}.{_family.name}")
    OFFICIAL_TABLES[_family.model_type] = _table.OFFICIAL
    OFFICIAL_MARKERS[_family.model_type] = _table.MARKER
    PRETRAINED_FORMS[_family.model_type] = _table.PRETRAINED
    if _family.encoder is not None:
        PRETRAINED_FORMS[_family.encoder.model_type] = _table.PRETRAINED_ENCODER
