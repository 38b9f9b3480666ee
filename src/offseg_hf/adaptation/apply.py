"""Offset learning for models that exist: `apply_offset_learning` replaces the classifier of a network.

```python
from offseg_hf import apply_offset_learning

model = apply_offset_learning(AutoModelForSemanticSegmentation.from_pretrained("openmmlab/upernet-convnext-tiny"))
```
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from offseg_hf.models.offset_classifier import is_linear_layer, replace_classifier
from offseg_hf.models.offset_learning import OffsetLearningOptions


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Their classes are scores of queries, not of pixels: what is aligned are masks and pixels.
MASK_CLASSIFICATION = (
    "EomtDinov3ForUniversalSegmentation",
    "EomtForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
)


def apply_offset_learning(
    model: nn.Module,
    classifier: str | None = None,
    *,
    warm_start: bool = True,
    use_class_offset: bool = True,
    use_feature_offset: bool = True,
) -> nn.Module:
    """Return a copy of `model` that classifies pixels by offset learning; the given model stays as it is.

    A model of transformers becomes an [`OffsetLearningForSemanticSegmentation`] (one that classifies masks, an
    [`OffsetAlignmentForUniversalSegmentation`]): it trains with `Trainer`, is saved by `save_pretrained` and loaded by
    its Auto class's `from_pretrained`, after `import offseg_hf` or, as its code is saved beside it, with
    `trust_remote_code=True`. Save the model's own image processor in the same folder and
    `pipeline("image-segmentation", model=folder)` works as well.

    A model of segmentation_models.pytorch keeps its class and its `save_pretrained`; to load it:
    `with_offset_learning(smp.Unet).from_pretrained(folder)`.

    Any other module stays of its own type. Save its `state_dict()`; to load it, build the model and apply offset
    learning with the same arguments, then `load_state_dict` (the same `warm_start` too: a continued classifier has a
    bias where a new one has a norm).

    Args:
        model: A model of transformers or of segmentation_models.pytorch, or any module.
        classifier: Dotted name of the layer to replace, a convolution or a linear layer with one output per class, as
            in `model.named_modules()`. In models of transformers for semantic segmentation and in those of
            segmentation_models.pytorch it is found. Mask classification models (MaskFormer, Mask2Former, EoMT) have
            none: there masks and pixels are aligned.
        warm_start: Continue the trained classifier: the result gives the same logits as `model` at first (to rounding,
            about 1e-5). Otherwise offset learning begins anew, with the official initialization.
        use_class_offset: Move the class representations towards the image.
        use_feature_offset: Move the pixel features towards the classes.

    Raises:
        ValueError: Where the classifier cannot be found or replaced; it says what was looked for, and how to name it.

    Example:
    ```python
    >>> from transformers import AutoModelForSemanticSegmentation
    >>> from offseg_hf import apply_offset_learning

    >>> model = AutoModelForSemanticSegmentation.from_pretrained("nvidia/segformer-b0-finetuned-ade-512-512")
    >>> model = apply_offset_learning(model)
    >>> model.save_pretrained("segformer-b0-offset")  # and later, after `import offseg_hf`
    >>> model = AutoModelForSemanticSegmentation.from_pretrained("segformer-b0-offset")

    >>> network = apply_offset_learning(network, "head.5", warm_start=False)  # any nn.Module
    ```
    """
    options = OffsetLearningOptions(warm_start, use_class_offset, use_feature_offset)
    _check_not_applied(model)
    if _classifies_masks(model):
        return _align(model, classifier, options)
    if type(model).__module__.startswith("segmentation_models_pytorch"):
        from offseg_hf.adaptation import smp

        return smp.apply(model, classifier, options)
    if _is_transformers_model(model):
        return _wrap(model, classifier, options)
    if classifier is None:
        raise ValueError(
            f"which layer of {type(model).__name__} classifies pixels cannot be told without running it. "
            f"{_how_to(_layers(model))}"
        )
    model = deepcopy(model)
    replace_classifier(model, classifier, options)
    return model


def find_classifier(model: "PreTrainedModel") -> str:
    """Return the dotted name of the classifier of pixels in one of transformers' models for semantic segmentation.

    It is the layer with `config.num_labels` outputs that is in no auxiliary head; among several, the one called
    "classifier".

    Raises:
        ValueError: Where that does not leave exactly one.
    """
    num_labels = model.config.num_labels
    found = [
        name
        for name in _layers(model)
        if _num_outputs(model.get_submodule(name)) == num_labels and "auxiliary" not in name
    ]
    if len(found) > 1:
        found = [name for name in found if "classifier" in name.split(".")] or found
    if len(found) != 1:
        candidates = found or _layers(model)
        raise ValueError(
            f"{type(model).__name__}: looked for one convolution or linear layer with {num_labels} outputs "
            f"(config.num_labels), outside of auxiliary heads, and found {len(found) or 'none'}. {_how_to(candidates)}"
        )
    return found[0]


def _classifies_masks(model: nn.Module) -> "TypeGuard[PreTrainedModel]":
    return type(model).__name__ in MASK_CLASSIFICATION


def _align(model: "PreTrainedModel", classifier: str | None, options: OffsetLearningOptions) -> "PreTrainedModel":
    from offseg_hf.models.modeling_offset_alignment import align_masks

    if classifier is not None:
        raise ValueError(
            f"{type(model).__name__} classifies masks: offset learning aligns them with pixels and replaces no "
            f"classifier. Leave out classifier={classifier!r}"
        )
    return align_masks(model, options)


def _wrap(model: "PreTrainedModel", classifier: str | None, options: OffsetLearningOptions) -> "PreTrainedModel":
    from offseg_hf.models.configuration_offset_learning import OffsetLearningConfig
    from offseg_hf.models.modeling_offset_learning import OffsetLearningForSemanticSegmentation

    _check_can_be_rebuilt(model)
    num_labels = model.config.num_labels
    if num_labels == 1:
        raise ValueError(
            f"{type(model).__name__} has one label: offset learning compares pixels with classes against each other. "
            "Train a binary task with two (background, object), and load the model with num_labels=2, "
            "ignore_mismatched_sizes=True"
        )
    classifier = classifier or find_classifier(model)
    base = deepcopy(model)
    replace_classifier(base, classifier, options)
    outputs = _num_outputs(model.get_submodule(classifier))
    if outputs != num_labels:
        raise ValueError(
            f"{type(model).__name__}.{classifier} has {outputs} outputs where config.num_labels is {num_labels}, by "
            "which from_pretrained would build it: name the classifier, or set id2label and label2id of the config"
        )
    config = OffsetLearningConfig(
        base_config=base.config,
        classifier=classifier,
        normalize_logits=not options.warm_start,
        dtype=base.dtype,
        use_class_offset=options.use_class_offset,
        use_feature_offset=options.use_feature_offset,
    )
    return OffsetLearningForSemanticSegmentation(config, base).train(model.training)


def _check_not_applied(model: nn.Module) -> None:
    """Refuse a model that has offset learning, by the names of classes: code from the Hub has classes of its own."""
    for name, module in model.named_modules():
        if any(cls.__name__ == "OffsetAlignment" for cls in type(module).__mro__):
            raise ValueError(f"{type(model).__name__} has offset learning already, in {name or 'itself'}")


def _is_transformers_model(model: nn.Module) -> "TypeGuard[PreTrainedModel]":
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _check_can_be_rebuilt(model: "PreTrainedModel") -> None:
    """Refuse what the Auto class would not build: `from_pretrained` makes of a configuration nothing else."""
    from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

    config_class = type(model.config)
    built: Any = (
        config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
        and (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[config_class])
    )
    if type(model) is not built:
        raise ValueError(
            f"expected a model as AutoModelForSemanticSegmentation builds it; of a {config_class.__name__} that is "
            f"{built.__name__ if built else 'none'}, got {type(model).__name__}, which could not be loaded again. "
            "A class of your own has to be registered first: AutoConfig.register(model_type, ConfigClass) and "
            "AutoModelForSemanticSegmentation.register(ConfigClass, ModelClass)"
        )


def _num_outputs(layer: Any) -> int:
    return len(layer.weight)


def _layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and is_linear_layer(module)]


def _how_to(layers: list[str]) -> str:
    """Return the last of the layers, where classifiers are, and the words to choose one with."""
    if not layers:
        return "It has no convolution with stride 1 and without groups, and no linear layer"
    before = f" ({len(layers) - 8} before them)" if len(layers) > 8 else ""
    return (
        f"Layers: {', '.join(layers[-8:])}{before}. "
        f"Name the classifier, for example apply_offset_learning(model, classifier={layers[-1]!r})"
    )
