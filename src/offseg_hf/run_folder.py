"""What lies in a training's folder: `training` writes it, and `hub` makes the model's card from it."""

import hashlib
from pathlib import Path


RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"  # a line of JSON per report
ENVIRONMENT_FILE = "environment.json"
STATE_FILE = "training_state.pt"  # beside the model, in the folder of each checkpoint
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")  # what a model does follows from these


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the model in a folder by its name; nothing if there is no such folder."""
    digests = {}
    for path in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
