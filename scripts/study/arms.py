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


def new_head(
    model: Segmenter, *, use_class_offset: bool = True, use_feature_offset: bool = True, from_zero: bool = False
) -> Segmenter:
    """Put the paper's head, with its layer norm, in the place of the classifier of `model`, which is changed."""
    num_classes, channels = model.classifier.weight.shape[:2]
    head = OffsetLearning(num_classes, channels, use_class_offset, use_feature_offset)
    if from_zero:
        head.start_without_offsets()
    model.set_submodule(CLASSIFIER, head)
    return model


@dataclass(frozen=True)
class Arm:
    """A classifier, and how the model that has it is trained.

    Args:
        title: In tables.
        head: Makes the model of the plain one.
        multiplier: Of the learning rate of its offsets.
        goes_on: Whether from the trained plain model of the same seed; otherwise from pretrained weights.
        plain_before: For how much of the training the model is the plain one.
    """

    title: str
    head: Callable[[Segmenter], nn.Module] = lambda model: model
    multiplier: float = 1.0
    goes_on: bool = False
    plain_before: float = 0.0


@dataclass(frozen=True)
class Table:
    """Arms with one beginning and as many iterations.

    Args:
        title: Of the question.
        arms: All of them; the others are compared with the first.
        pairs: What else is compared, and with what.
        origin: What all go on from.
    """

    title: str
    arms: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    origin: str | None = None

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]


_offsets = partial(apply_offset_learning, classifier=CLASSIFIER)
BASE = "base"  # the plain model
PLAIN = "plain"
SLOW = 0.1
ARMS = {
    BASE: Arm("plain"),
    "norm": Arm("a layer norm alone", partial(new_head, use_class_offset=False, use_feature_offset=False)),
    "paper": Arm("offset learning as in the paper", new_head),
    "zero-slow": Arm("the same, offsets from zero at 0.1 of the rate", partial(new_head, from_zero=True), SLOW),
    "zero-slow-no-norm": Arm("the same without the layer norm", _offsets, SLOW),
    "last-quarter": Arm("plain, offset learning in the last quarter", _offsets, plain_before=0.75),
    PLAIN: Arm("plain, the same classifier", goes_on=True),
    "offsets": Arm("offset learning", _offsets, goes_on=True),
    "control": Arm("control: a linear residual, no attention", apply_linear_residual, goes_on=True),
    "offsets-slow": Arm("offset learning, offsets at 0.1 of the rate", _offsets, SLOW, goes_on=True),
    "class": Arm("class branch alone", partial(_offsets, use_feature_offset=False), goes_on=True),
    "feature": Arm("feature branch alone", partial(_offsets, use_class_offset=False), goes_on=True),
}
TABLES = {
    "warm-start": Table(
        "a trained model goes on",
        (PLAIN, "offsets", "control", "offsets-slow", "class", "feature"),
        pairs=(("offsets", "control"), ("class", "control"), ("class", "offsets"), ("offsets-slow", "offsets")),
        origin=BASE,
    ),
    "new-head": Table(
        "a new head",
        (BASE, "norm", "paper", "zero-slow", "zero-slow-no-norm", "last-quarter"),
        pairs=(("paper", "norm"), ("zero-slow-no-norm", "zero-slow"), ("last-quarter", "paper")),
    ),
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
