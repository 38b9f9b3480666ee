"""Offset learning for models of segmentation_models.pytorch (smp), which is not imported here: models bring it.

```python
import segmentation_models_pytorch as smp
from offseg_hf import apply_offset_learning, with_offset_learning

model = apply_offset_learning(smp.Unet("resnet18", classes=21))
model.save_pretrained("unet-offset")
model = with_offset_learning(smp.Unet).from_pretrained("unet-offset")
```
"""

from copy import deepcopy
from dataclasses import asdict
from functools import cache
from typing import Any

from torch import nn

from offseg_hf.models.offset_classifier import is_linear_layer, replace_classifier
from offseg_hf.models.offset_learning import OffsetLearningOptions


SmpModel = Any  # a SegmentationModel of smp


class SmpOffsetLearning:
    """Make of a model class of smp one that classifies pixels by offset learning; a mixin, which comes before it.

    Args:
        offset_learning: `classifier`, the dotted name of the layer that is replaced, and the fields of
            [`OffsetLearningOptions`]. huggingface_hub's mixin writes it into config.json with all other arguments.
        kwargs: Arguments of the model class of smp.
    """

    smp_class: type[nn.Module]

    def __init__(self: Any, *, offset_learning: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        options = dict(offset_learning)
        replace_classifier(self, options.pop("classifier"), OffsetLearningOptions(**options))

    def __reduce__(self):
        return _blank, (self.smp_class,), self.__dict__  # the class itself cannot be found by its name

    def generate_model_card(self, *args, **kwargs):
        """Return smp's card, with the line of code that loads this model."""
        card = super().generate_model_card(*args, **kwargs)  # type: ignore[misc] # of smp
        import_line = "import segmentation_models_pytorch as smp\n"
        ours = "from offseg_hf import with_offset_learning\n"
        card.text = card.text.replace(import_line, import_line + ours, 1)
        loader = f"with_offset_learning(smp.{self.smp_class.__name__}).from_pretrained"
        card.text = card.text.replace("smp.from_pretrained", loader, 1)
        return card


@cache
def with_offset_learning(smp_class: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a model class of smp that classifies pixels by offset learning, to load what was saved.

    Args:
        smp_class: `smp.Unet` or another; the result is called `OffsetUnet`, and takes its arguments by keyword.

    Example:
    ```python
    >>> model = with_offset_learning(smp.Unet).from_pretrained("unet-offset")
    ```
    """
    names = {"__module__": __name__, "smp_class": smp_class}
    return type(f"Offset{smp_class.__name__}", (SmpOffsetLearning, smp_class), names)


def apply(model: SmpModel, classifier: str | None, options: OffsetLearningOptions) -> nn.Module:
    """Return a copy of a model of smp with offset learning as its classifier: see `apply_offset_learning`.

    It is still an instance of the model's class, in all but the classifier and how it is loaded.
    """
    classifier = find_classifier(model) if classifier is None else classifier
    result = _blank(type(model))
    result.__setstate__(deepcopy(model.__dict__))  # as copying and pickling do: what is frozen stays so
    replace_classifier(result, classifier, options)
    # What is saved holds the encoder's weights: nothing is to be downloaded on loading it.
    result.config.update(encoder_weights=None, offset_learning={"classifier": classifier, **asdict(options)})
    return result


def find_classifier(model: SmpModel) -> str:
    """Return the dotted name of the classifier: the last layer with weights of `model.segmentation_head`.

    Raises:
        ValueError: Where that is no convolution with one output per class.
    """
    head = getattr(model, "segmentation_head", None)
    with_weights = [] if head is None else [(n, m) for n, m in head.named_modules() if [*m.parameters(recurse=False)]]
    name, layer = with_weights[-1] if with_weights else ("", None)
    classes = model.config["classes"]
    if layer is None or not is_linear_layer(layer) or len(layer.weight) != classes:
        raise ValueError(
            f"{type(model).__name__}: looked for a convolution with {classes} outputs (classes) as the last layer of "
            f"segmentation_head that has weights, and found {layer}. Name the layer that classifies pixels: "
            'apply_offset_learning(model, classifier="segmentation_head.0")'
        )
    return f"segmentation_head.{name}" if name else "segmentation_head"


def _blank(smp_class: type[nn.Module]) -> Any:
    """Return a model without layers, which takes those of another."""
    offset_class = with_offset_learning(smp_class)  # type: ignore[arg-type] # classes are hashable
    return offset_class.__new__(offset_class)
