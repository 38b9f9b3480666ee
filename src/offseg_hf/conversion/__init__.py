"""Official checkpoints and published encoder weights, under our names."""

from offseg_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from offseg_hf.conversion.convert import ConversionReport, convert_checkpoint
from offseg_hf.conversion.pretrained import PretrainedReport, load_pretrained


__all__ = [
    "CheckpointError",
    "ConversionReport",
    "PretrainedReport",
    "convert_checkpoint",
    "load_pretrained",
    "read_checkpoint",
]
