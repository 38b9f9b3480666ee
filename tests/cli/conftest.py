from pathlib import Path

import pytest

from offseg_hf.data.scenes.street import render_scene
from tests.small_model import save_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "segformer")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        render_scene(seed, (60, 40))[0].save(folder / f"{seed}.png")
    return folder
