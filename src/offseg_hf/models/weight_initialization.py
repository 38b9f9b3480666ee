"""How transformers initialises the weights of models that are not part of it."""

from torch import nn


class WeightInitializationMixin:
    """Lets `_init_weights` see modules that have no parameters of their own, but those of their children to overrule.

    For code that is not its own, transformers passes over modules all of whose own parameters are initialised, so over
    those without any. It need not: what `transformers.initialization` writes to asks every parameter itself whether it
    was loaded. The public `initialize_weights` is called of the outermost model alone, `_initialize_weights` of each.
    """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        super()._initialize_weights(module)
