"""The table of docs/your-model.md: what offset learning costs in models of others, in parameters and GMACs.

    python scripts/offset_learning_table.py

Architectures are those of the published checkpoints named in the table, with random weights: nothing is downloaded.
Models of segmentation_models.pytorch are taken from where `make test` installs it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmark.measure import count_macs, markdown_table

from adaptation.smp_support import SMP_PATH, import_smp
from offseg_hf import apply_offset_learning


SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
CONVNEXT_T = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
DPT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 480,
    "backbone_out_indices": [5, 11, 17, 23],
    "neck_hidden_sizes": [256, 512, 1024, 1024],
}
BEIT_B = {
    "image_size": 640,
    "use_relative_position_bias": True,
    "use_mean_pooling": False,
    "layer_scale_init_value": 0.1,
    "out_indices": [3, 5, 7, 11],
}


def upernet(backbone: transformers.PreTrainedConfig) -> transformers.UperNetConfig:
    return transformers.UperNetConfig(backbone_config=backbone, hidden_size=512, auxiliary_in_channels=384)


def mask2former() -> transformers.Mask2FormerConfig:
    return transformers.Mask2FormerConfig(backbone_config=transformers.SwinConfig(**SWIN_T, **STAGES))


def maskformer() -> transformers.MaskFormerConfig:
    return transformers.MaskFormerConfig(backbone_config=transformers.SwinConfig(**SWIN_T, **STAGES))


# model, arguments of from_pretrained, class, configuration, classes, side of the image
MODELS: tuple[tuple[str, str, str, Callable[[], transformers.PreTrainedConfig], int, int], ...] = (
    (
        "SegFormer-B0",
        '"nvidia/segformer-b0-finetuned-ade-512-512"',
        "SegformerForSemanticSegmentation",
        transformers.SegformerConfig,
        150,
        512,
    ),
    (
        "UperNet ConvNeXt-T",
        '"openmmlab/upernet-convnext-tiny"',
        "UperNetForSemanticSegmentation",
        lambda: upernet(transformers.ConvNextConfig(**CONVNEXT_T, **STAGES)),
        150,
        512,
    ),
    (
        "UperNet Swin-T",
        '"openmmlab/upernet-swin-tiny"',
        "UperNetForSemanticSegmentation",
        lambda: upernet(transformers.SwinConfig(**SWIN_T, **STAGES)),
        150,
        512,
    ),
    (
        "DPT-L",
        '"Intel/dpt-large-ade"',
        "DPTForSemanticSegmentation",
        lambda: transformers.DPTConfig(**DPT_L),
        150,
        480,
    ),
    (
        "BEiT-B",
        '"microsoft/beit-base-finetuned-ade-640-640"',
        "BeitForSemanticSegmentation",
        lambda: transformers.BeitConfig(**BEIT_B),
        150,
        640,
    ),
    (
        "Data2Vec-B",
        '"facebook/data2vec-vision-base", num_labels=150',
        "Data2VecVisionForSemanticSegmentation",
        lambda: transformers.Data2VecVisionConfig(**BEIT_B),
        150,
        640,
    ),
    (
        "MobileViT-S",
        '"apple/deeplabv3-mobilevit-small"',
        "MobileViTForSemanticSegmentation",
        lambda: transformers.MobileViTConfig(output_stride=16),
        21,
        512,
    ),
    (
        "MobileViTV2-1.0",
        '"apple/mobilevitv2-1.0-voc-deeplabv3"',
        "MobileViTV2ForSemanticSegmentation",
        lambda: transformers.MobileViTV2Config(output_stride=16),
        21,
        512,
    ),
    (
        "MobileNetV2 DeepLabV3+",
        '"google/deeplabv3_mobilenet_v2_1.0_513"',
        "MobileNetV2ForSemanticSegmentation",
        lambda: transformers.MobileNetV2Config(output_stride=8),
        21,
        513,
    ),
    (
        "MaskFormer Swin-T",
        '"facebook/maskformer-swin-tiny-ade"',
        "MaskFormerForInstanceSegmentation",
        maskformer,
        150,
        512,
    ),
    (
        "Mask2Former Swin-T",
        '"facebook/mask2former-swin-tiny-ade-semantic"',
        "Mask2FormerForUniversalSegmentation",
        mask2former,
        150,
        512,
    ),
    (
        "EoMT-L",
        '"tue-mps/ade20k_semantic_eomt_large_512"',
        "EomtForUniversalSegmentation",
        lambda: transformers.EomtConfig(image_size=512),
        150,
        512,
    ),
)


SMP_MODELS = ("Unet", "FPN", "DeepLabV3Plus", "Segformer", "UPerNet")


def row(name: str, model: nn.Module, side: int, code: str) -> list[str]:
    """Of a model for square images: its name, parameters and GMACs, before and after, and the code that makes it."""
    pixel_values = torch.zeros((1, 3, side, side))
    cells = []
    for module in (model.eval(), apply_offset_learning(model).eval()):
        parameters = sum(parameter.numel() for parameter in module.parameters())
        macs = count_macs(lambda: module(pixel_values))
        cells.append((f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.1f}"))
    columns = [f"{before} → {after}" for before, after in zip(*cells)]
    return [f"{name}, {side}", *columns, f"`apply_offset_learning({code})`"]


def main() -> None:
    rows = []
    for name, arguments, class_name, config, num_labels, side in MODELS:
        config = config()
        config.num_labels = num_labels
        model = getattr(transformers, class_name)(config)
        rows.append(row(name, model, side, f"{class_name}.from_pretrained({arguments})"))
    if SMP_PATH.is_dir():
        smp = import_smp()
        for class_name in SMP_MODELS:
            model = getattr(smp, class_name)("resnet34", encoder_weights=None, classes=21)
            rows.append(row(f"smp {class_name} ResNet-34", model, 512, f'smp.{class_name}("resnet34", classes=21)'))
    print(markdown_table(["model, side of the image", "parameters", "GMACs", "one line"], rows))


if __name__ == "__main__":
    main()
