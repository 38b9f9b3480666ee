"""What models share that are built around a model of transformers."""

import torch
from torch import nn
from transformers import initialization as init

from .offset_learning import OffsetAlignment


class ModuleNamesMixin:
    """Saves weights under the names that modules have: the older published ones are the inner model's."""

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As every model's. `save_original_format` asks for the names of the inner model's first files."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


class InnerOffsetsMixin:
    """Initialises offset learning inside of a model that initialises itself and takes it for its own layers."""

    @torch.no_grad()
    @init.guard_torch_init_functions()  # what was loaded stays
    def initialize_weights(self):
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, OffsetAlignment):
                self.initialize_offsets(module)

    def initialize_offsets(self, module: nn.Module) -> None:
        module.reset_parameters()
