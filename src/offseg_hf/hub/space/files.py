"""What is in the repository of a Space that shows a model."""

import io
import json
from importlib.resources import files
from pathlib import Path

import torch
import transformers
import yaml
from transformers import AutoConfig

from offseg_hf.data.classes_json import label_set_beside
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.hub.repository import CARD
from offseg_hf.visualization import palette_for
from offseg_hf.zoo.registration import auto_model_class, register


GRADIO = "6.31.0"  # with a Pillow of its own choice: it does not take the one that this package is tested with
EXAMPLE_SIZE = (640, 480)


def space_files(folder: Path, repository: str, endpoint: str) -> dict[str, Path | bytes]:
    """Return the files of a Space by their paths there.

    Args:
        folder: of the model.
        repository: that it is in, as user/name.
        endpoint: the Hub's address.
    """
    register()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = [config.id2label[index] for index in range(config.num_labels)]
    title = repository.partition("/")[2]
    settings = {
        "title": title,
        "model": repository,
        "url": f"{endpoint}/{repository}",
        "auto_class": auto_model_class(config).__name__,
        "names": names,
        "palette": [[int(value) for value in color] for color in palette_for(names, label_set_beside(folder))],
    }
    front = {
        "title": title,
        "emoji": "🖼️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "models": [repository],
        "tags": ["image-segmentation", "offseg_hf"],
    }
    card = (
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n# {title}\n\n"
        f"Semantic segmentation with [{repository}]({endpoint}/{repository}): a photo or a picture of the camera goes "
        "in, its classes and their shares come out. The license is that of the model.\n"
    )
    versions = [f"gradio=={GRADIO}", f"torch=={torch.__version__.partition('+')[0]}"]
    versions += [f"transformers=={transformers.__version__}", "pillow", "numpy", "scipy"]
    example = io.BytesIO()
    render_scene(0, EXAMPLE_SIZE)[0].save(example, "PNG")
    return {
        CARD: card.encode(),
        "app.py": files("offseg_hf.hub.space").joinpath("app.py").read_bytes(),
        "space.json": (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
        "requirements.txt": ("\n".join(versions) + "\n").encode(),
        "examples/drawn_street.png": example.getvalue(),
    }
