"""OffSeg on backbones of timm: `python tests/models/timm_backbones.py FOLDER` saves and loads a model on each.

In a process of its own, as `tests.timm_support` says.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.timm_support import import_timm


timm = import_timm()  # before transformers looks for it

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import TimmBackboneConfig  # noqa: E402

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation  # noqa: E402


# Four stages of a pyramid, the last four of five, and layers of a ViT, which takes its own size alone.
CASES = {
    "test_convnext": ([0, 1, 2, 3], None, (50, 75)),
    "test_resnet": ([-4, -3, -2, -1], None, (50, 75)),
    "test_vit": ([-4, -3, -2, -1], 16, (160, 160)),
}


def main(folder: Path) -> None:
    for name, (out_indices, patch_size, size) in CASES.items():
        torch.manual_seed(0)
        backbone = TimmBackboneConfig(backbone=name, out_indices=out_indices)
        config = OffSegConfig(backbone_config=backbone, decoder_hidden_size=32, num_labels=3)
        model = OffSegForSemanticSegmentation(config).eval()
        assert model.feature_pyramid.patch_size == patch_size
        pixel_values = torch.randn(2, 3, *size)
        model(pixel_values, labels=torch.ones(2, *size, dtype=torch.long)).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), name

        model.save_pretrained(folder / name)
        loaded, report = OffSegForSemanticSegmentation.from_pretrained(folder / name, output_loading_info=True)
        assert not any(report.values()), report
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        with torch.no_grad():
            logits = loaded(pixel_values).logits
        assert logits.shape == (2, 3, *(-(-length // 4) for length in size))
        with pytest.raises(ValueError, match=r"fuse\(\) knows nothing of encoder._backbone, a timm\."):
            model.fuse()
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
