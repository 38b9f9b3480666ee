"""Official checkpoints and published encoder weights, under our names."""

from offseg_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from offseg_hf.conversion.convert import ConversionReport, convert_checkpoint
from offseg_hf.conversion.encoder import EncoderReport, load_pretrained_encoder


__all__ = [
    "CheckpointError",
    "ConversionReport",
    "EncoderReport",
    "convert_checkpoint",
    "load_pretrained_encoder",
    "read_checkpoint",
]
