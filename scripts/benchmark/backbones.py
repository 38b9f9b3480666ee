"""OffSeg beside UperNet, both on the same backbone of transformers: parameters, GMACs and the time of a forward.

    python scripts/benchmark/backbones.py                   # the table of docs/your-model.md; some ten minutes
    python scripts/benchmark/backbones.py --only swin --repeats 3 --side 256

Random weights, batch 1, float32, 150 classes. Times are medians of interleaved runs in one process, and the table has
them as ratios to UperNet's: what a machine does beside it slows down both.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from measure import count_macs, interleaved_medians, machine, markdown_table
from transformers import (
    ConvNextConfig,
    Dinov2Config,
    PreTrainedConfig,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation


STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Name -> title and configuration, of facebook/convnext-tiny-224, microsoft/swin-tiny-patch4-window7-224 and
# facebook/dinov2-small.
BACKBONES: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "convnext": (
        "ConvNeXt-T",
        lambda: ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=STAGES),
    ),
    "swin": ("Swin-T", lambda: SwinConfig(out_features=STAGES)),
    "dinov2": (
        "DINOv2-S",
        lambda: Dinov2Config(
            hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, out_indices=[3, 6, 9, 12]
        ),
    ),
}
LATERAL_CHANNELS = [32, 64, 128, 256]  # those of `from_backbone`
NUM_LABELS = 150


def models_on(backbone: Callable[[], PreTrainedConfig]) -> dict[str, torch.nn.Module]:
    """UperNet as it is trained (its auxiliary head is left out at inference, so here too), and ours."""
    torch.manual_seed(0)
    upernet = UperNetConfig(backbone_config=backbone(), use_auxiliary_head=False, num_labels=NUM_LABELS)
    models = {"UperNet": UperNetForSemanticSegmentation(upernet)}
    for title, decoder in (("OffSeg", "freqfusion"), ("OffSeg, plain decoder", "mlp")):
        config = OffSegConfig(
            backbone_config=backbone(),
            pixel_decoder=decoder,
            lateral_channels=LATERAL_CHANNELS,
            num_labels=NUM_LABELS,
        )
        models[title] = OffSegForSemanticSegmentation(config)
    return {title: model.eval() for title, model in models.items()}


def rows_of(title: str, backbone: Callable[[], PreTrainedConfig], side: int, repeats: int) -> list[list[object]]:
    images, models = torch.randn(1, 3, side, side), models_on(backbone)
    runs = {name: lambda model=model: forward(model, images) for name, model in models.items()}
    macs = {name: count_macs(run) for name, run in runs.items()}
    seconds = interleaved_medians(runs, repeats)
    return [
        [
            f"{name}, {title}",
            f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
            f"{macs[name] / 1e9:.1f}",
            f"{seconds[name] / seconds['UperNet']:.2f}",
        ]
        for name, model in models.items()
    ]


@torch.no_grad()
def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    model(images)


def main(
    only: Annotated[str | None, typer.Option(help="One of the backbones: convnext, swin or dinov2.")] = None,
    side: Annotated[int, typer.Option(help="Of the square image, in pixels.")] = 512,
    repeats: Annotated[int, typer.Option(help="Forwards of each model.")] = 15,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
) -> None:
    """Print the table, a backbone at a time."""
    torch.set_num_threads(threads)
    print(f"{machine()}, {side} x {side} pixels\n")
    header = ["model", "parameters", "GMACs", "time beside UperNet"]
    rows: list[list[object]] = []
    for name, (title, backbone) in BACKBONES.items():
        if only in (None, name):
            rows += rows_of(title, backbone, side, repeats)
            print(rows[-3:], flush=True)
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    typer.run(main)
