"""timm's EfficientFormerV2 as a reference: `python tests/timm_support.py FOLDER SIZE...` writes weights and features.

It runs in a process of its own, which puts `timm` into its path, because torchvision, which timm imports, breaks
transformers beside a build of torch that it was not compiled for (see Makefile).
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


TIMM_PATH = Path(sys.prefix) / "timm"


def import_timm():
    """timm, with the operators declared whose compiled code torchvision may fail to load; we call none of them."""
    sys.path.append(str(TIMM_PATH))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    timm.kept_library = library  # the declarations live as long as it does
    return timm


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Weights of unlike values in every tensor, scaled so that features stay of the order of one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.3 * noise.abs())
        elif name.endswith("gamma"):
            tensor.copy_(0.2 + 0.05 * noise)
        elif name.endswith("attention_biases"):
            tensor.copy_(0.5 * noise)
        elif tensor.ndim > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.1 * noise + name.endswith(("bn.weight", "norm.weight")))


@torch.no_grad()
def main(folder: Path, sizes: list[str]) -> None:
    timm = import_timm()
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for size in sizes:
        model = timm.create_model(f"efficientformerv2_{size}").eval()
        randomize(model)
        feature_maps = model.forward_intermediates(pixel_values, intermediates_only=True)
        save_file(model.state_dict(), folder / f"{size}.safetensors")
        features = {f"feature_map{i}": x.contiguous() for i, x in enumerate(feature_maps)}
        save_file({"pixel_values": pixel_values, **features}, folder / f"{size}.features.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
