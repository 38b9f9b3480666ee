"""The arms of the study: what one trained plain model is continued as."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from offseg_hf import apply_offset_learning
from offseg_hf.models.offset_learning import OffsetLearning
from offseg_hf.training.optimization import ENCODER, OFFSETS
from study.network import CLASSIFIER, Segmenter


class LinearResidual(OffsetLearning):
    """The control: parameters like those of offset learning, from zero and trained like them, without attention.

    Classes and pixel features are moved by what they are themselves, where offset learning moves them by what they
    see of each other.
    """

    def similarity(self, classes: Tensor, features: Tensor) -> Tensor:
        """Return the logits (batch, pixels, classes)."""
        assert self.class_offset_proj is not None and self.feature_offset_proj is not None
        aligned_classes = classes + self.class_offset_proj(classes)
        return self.compare(features + self.feature_offset_proj(features), aligned_classes)


def apply_linear_residual(model: Segmenter) -> Segmenter:
    """Put the control in the place of the classifier of `model`, which is changed."""
    layer = model.classifier
    assert layer.bias is not None
    residual = LinearResidual.from_classifier(layer.weight.detach().flatten(1), layer.bias.detach())
    model.set_submodule(CLASSIFIER, residual)
    return model


@dataclass(frozen=True)
class Arm:
    """A way to go on.

    Args:
        title: In tables.
        apply: Makes the model that goes on of the plain one.
        multiplier: Of the learning rate of what is new.
    """

    title: str
    apply: Callable[[Segmenter], nn.Module] = lambda model: model
    multiplier: float = 1.0


_offsets = partial(apply_offset_learning, classifier=CLASSIFIER)
PLAIN = "plain"
ARMS = {
    PLAIN: Arm("plain, the same classifier"),
    "offsets": Arm("offset learning", _offsets),
    "control": Arm("control: a linear residual, no attention", apply_linear_residual),
    "offsets-slow": Arm("offset learning, offsets at 0.1 of the rate", _offsets, 0.1),
    "class": Arm("class branch alone", partial(_offsets, use_feature_offset=False)),
    "feature": Arm("feature branch alone", partial(_offsets, use_class_offset=False)),
}


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, encoder_multiplier: float, multiplier: float
) -> Iterator[dict]:
    """Yield what trains as groups of an optimizer; vectors (norms, biases) do not decay.

    Args:
        model: One of the study.
        learning_rate: Of the decoder and the classifier.
        weight_decay: Of matrices.
        encoder_multiplier: Multiplies the rate of the encoder.
        multiplier: Multiplies the rate of what an arm adds.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = encoder_multiplier if re.match(ENCODER, name) else multiplier if OFFSETS.match(name) else 1.0
            rate = learning_rate * part
            decay = weight_decay if parameter.ndim > 1 else 0.0
            yield {"params": [parameter], "lr": rate, "initial_lr": rate, "weight_decay": decay}
