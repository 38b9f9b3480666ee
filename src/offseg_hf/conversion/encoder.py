"""Start an encoder from the published ImageNet weights of EfficientFormerV2."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel

from offseg_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from offseg_hf.conversion.keys import Fit, KeyTable, fit
from offseg_hf.conversion.tables import EFFICIENTFORMER_V2, TIMM_EFFICIENTFORMER_V2
from offseg_hf.models.configuration_offseg import ENCODER_SIZES, EfficientFormerV2Config
from offseg_hf.models.modeling_offseg import EfficientFormerV2Backbone


WEIGHTS_NAME = "model.safetensors"
ATTENTION_BIAS = ".attention_bias.table"


@dataclass(frozen=True)
class EncoderReport:
    """What was loaded: `used` keys were taken, those in `dropped` not; parameters in `initial` kept their values."""

    used: int
    dropped: list[str]
    initial: list[str]


def load_pretrained_encoder(model: PreTrainedModel, source: str | Path, revision: str | None = None) -> EncoderReport:
    """Load published EfficientFormerV2 weights into `model.encoder`, in place.

    source: a checkpoint file, a folder with `model.safetensors`, or a repository on the Hub; either of the authors'
        form (`eformer_s1_450.pth`) or of timm's (`timm/efficientformerv2_s1.snap_dist_in1k`), for s0, s1, s2 and l.
    revision: branch, tag or commit on the Hub.

    The published attention biases belong to the grid of 224-pixel images: a model of another `image_size` keeps its
    own, as in the official training, and the report names them. Everything else must fit. Raises ValueError if it does
    not, and OSError if `source` cannot be found.
    """
    weights = read_checkpoint(_locate(source, revision))
    table = _table(weights, source)
    fitted, initial = _fit(weights, table, model)
    if not fitted.is_complete:
        sizes = [size for size in ENCODER_SIZES if _fit(weights, table, _meta_backbone(size))[0].is_complete]
        got = f"{sizes[0].upper()} ({fitted.counts()})" if sizes else fitted.problems()
        widths = list(model.config.hidden_sizes)
        raise CheckpointError(f"{source}: expected the weights of an EfficientFormerV2 of widths {widths}, got {got}")
    model.encoder.load_state_dict(fitted.weights, strict=False)  # checked above; counters and biases may be missing
    return EncoderReport(len(fitted.weights), fitted.dropped, initial)


def _locate(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    if path.is_file():
        return path
    try:
        return Path(hf_hub_download(str(source), WEIGHTS_NAME, revision=revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        message = f"expected a checkpoint file, a folder with {WEIGHTS_NAME} or a repository on the Hub"
        raise FileNotFoundError(f"{source}: {message}, got none of them ({error})") from error


def _table(weights: Mapping[str, Tensor], source: str | Path) -> KeyTable:
    if "patch_embed.0.weight" in weights:
        return EFFICIENTFORMER_V2
    if "stem.conv1.conv.weight" in weights:
        return TIMM_EFFICIENTFORMER_V2
    keys = ", ".join(list(weights)[:3])
    raise CheckpointError(f"{source}: expected EfficientFormerV2 weights of its authors or of timm, got {keys}, ...")


def _fit(weights: Mapping[str, Tensor], table: KeyTable, model: PreTrainedModel) -> tuple[Fit, list[str]]:
    """The weights under the names of `model.encoder`, and the names of its attention biases that keep their values."""
    fitted = fit(weights, table, model.encoder.state_dict())
    initial = [name for name in (*fitted.misshaped, *fitted.missing) if name.endswith(ATTENTION_BIAS)]
    fitted.missing = [name for name in fitted.missing if name not in initial]
    for name in initial:
        if fitted.misshaped.pop(name, None):
            del fitted.weights[name]
            fitted.dropped.append(fitted.origins[name])
    return fitted, initial


def _meta_backbone(size: str) -> PreTrainedModel:
    with torch.device("meta"):
        return EfficientFormerV2Backbone(EfficientFormerV2Config.from_size(size))
