"""Offset learning for models that exist.

`apply_offset_learning` returns a copy of a model whose classifier is offset learning. transformers' Auto classes load
what it saves, but for models of segmentation_models.pytorch (smp): `with_offset_learning` is the class to load these.

- apply.py: which model is adapted how, and where its classifier is found
- smp.py: models of smp
- The layer that takes the classifier's place, and the models around those of transformers, go to the Hub as code:
  models/offset_classifier.py, models/modeling_offset_learning.py, models/modeling_offset_alignment.py
"""

from offseg_hf.adaptation.apply import apply_offset_learning
from offseg_hf.adaptation.smp import with_offset_learning
from offseg_hf.models.offset_learning import OffsetLearningOptions


__all__ = ["OffsetLearningOptions", "apply_offset_learning", "with_offset_learning"]
