"""Models with the weights of the goldens, converted as a user's checkpoint would be."""

from functools import cache
from pathlib import Path

import pytest

from offseg_hf import OffSegForSemanticSegmentation
from offseg_hf.conversion.convert import load_official_weights
from offseg_hf.presets import get_preset
from tests.parity.fill import official_state_dict


@cache
def converted(preset: str) -> OffSegForSemanticSegmentation:
    return load_official_weights(get_preset(preset), official_state_dict(preset), preset)[0]


@cache
def fused(preset: str) -> OffSegForSemanticSegmentation:
    return converted(preset).fuse()


@pytest.fixture(params=[converted, fused], ids=["as-loaded", "fused"])
def model_of(request):
    """A function preset -> model in eval mode; tests share the models and leave them as they are."""
    return request.param


@pytest.fixture(scope="session")
def model() -> OffSegForSemanticSegmentation:
    """The OffSeg-T for ADE20K."""
    return converted("offseg-t-ade")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The OffSeg-T for ADE20K and its image processor, saved."""
    folder = tmp_path_factory.mktemp("offseg-t-ade")
    converted("offseg-t-ade").save_pretrained(folder)
    get_preset("offseg-t-ade").image_processor().save_pretrained(folder)
    return folder
