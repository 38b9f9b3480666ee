"""What the encoders of this package share as backbones for models of transformers."""

from os import PathLike

from torch import Tensor
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple


class EncoderBackboneMixin(BackboneMixin):
    """The forward of a backbone that says, in `encode`, what its stem and its stages give."""

    has_attentions = False

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """What the stem gives, and the feature maps of the stages."""
        raise NotImplementedError

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """Images (batch, num_channels, height, width) of any size -> the maps named by `config.out_features`.

        Stage i, and the stem as stage 1, gives (batch, channels, ceil(height / 2 ** (i + 1)), ceil(width / ...)).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.encode(pixel_values)
        return BackboneOutput(
            feature_maps=tuple(x for name, x in zip(self.stage_names, hidden_states) if name in self.out_features),
            hidden_states=hidden_states if output_hidden_states else None,
        )


class CodeOfBackboneMixin:
    """Names, in what is saved with its code, the class that takes the encoder alone: `AutoBackbone` finds it there."""

    backbone_code: str  # module.class

    def save_pretrained(self, save_directory: str | PathLike, **kwargs):
        """As every model's; the code beside the weights is named to AutoBackbone too."""
        if self._auto_class is not None:
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = auto_map | {"AutoBackbone": self.backbone_code}
        super().save_pretrained(save_directory, **kwargs)
