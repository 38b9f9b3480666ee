"""Models with the weights of the goldens, converted as a user's checkpoint would be."""

from functools import cache

import pytest
from transformers import PreTrainedModel

from offseg_hf.conversion.convert import load_official_weights
from offseg_hf.zoo.presets import get_preset
from tests.parity.fill import official_state_dict


@cache  # of all goldens together they take half a gigabyte
def converted(preset: str) -> PreTrainedModel:
    return load_official_weights(get_preset(preset), official_state_dict(preset), preset)[0]


@cache
def fused(preset: str) -> PreTrainedModel:
    return converted(preset).fuse()


@pytest.fixture(params=[converted, fused], ids=["as-loaded", "fused"])
def model_of(request):
    """A function preset -> model in eval mode; tests share the models and leave them as they are."""
    return request.param


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """The OffSeg-T for ADE20K."""
    return converted("offseg-t-ade")
