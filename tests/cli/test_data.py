import re

from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import SCENE_LABELS
from offseg_hf.training.recipe import load_recipe
from tests.cli.running import offseg


def test_data_check_proposes_class_weights(tmp_path):
    """As a recipe takes them."""
    write_scenes(tmp_path / "scenes", train=3, val=0, size=(96, 64))
    result = offseg("data", "check", tmp_path / "scenes", "--split", "train", "--stats")
    assert result.returncode == 0, result.stderr
    (setting,) = re.findall(r"^semantic_loss_class_weights: (\[.*\])$", result.stdout, re.MULTILINE)
    recipe = load_recipe("offseg-t-ade", [f"model.config.semantic_loss_class_weights={setting}"])
    weights = recipe.model_config().semantic_loss_class_weights
    assert len(weights) == len(SCENE_LABELS) and 0 < min(weights) < 1 < max(weights)
