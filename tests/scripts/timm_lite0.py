"""timm's EfficientNet-Lite0 as a reference: `python tests/scripts/timm_lite0.py FOLDER` writes weights and maps.

In a process of its own, as `tests.timm_support` says. Weights are named as those of `study.network`.
"""

import re
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import save_file

from tests.timm_support import import_timm, randomize


# Of the first block, which does not expand, and of the others.
LAYERS = (
    {"conv_dw": "depthwise.conv", "bn1": "depthwise.norm", "conv_pw": "project.conv", "bn2": "project.norm"},
    {
        "conv_pw": "expand.conv",
        "bn1": "expand.norm",
        "conv_dw": "depthwise.conv",
        "bn2": "depthwise.norm",
        "conv_pwl": "project.conv",
        "bn3": "project.norm",
    },
)


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by our names; blocks are numbered through, and those after the maps are left out."""
    found, blocks = {}, {}
    for name, tensor in weights.items():
        if match := re.match(r"blocks\.(\d+\.\d+)\.(\w+)\.(.+)", name):
            number = blocks.setdefault(match[1], len(blocks))
            name = f"blocks.{number}.{LAYERS[number > 0][match[2]]}.{match[3]}"
        elif match := re.match(r"(conv_stem|bn1)\.(.+)", name):
            name = f"stem.{'conv' if match[1] == 'conv_stem' else 'norm'}.{match[2]}"
        else:
            continue
        found[name] = tensor
    return found


@torch.no_grad()
def main(folder: Path) -> None:
    timm = import_timm()
    model = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    randomize(model)
    pixel_values = torch.randn(2, 3, 100, 76, generator=torch.Generator().manual_seed(1))
    maps = {f"map{index}": x.contiguous() for index, x in enumerate(model(pixel_values))}
    save_file({"pixel_values": pixel_values, **maps, **renamed(model.state_dict())}, folder / "maps.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
