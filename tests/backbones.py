"""Tiny configurations of backbones of transformers, of every kind that a model on a backbone meets."""

from transformers import (
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    FocalNetConfig,
    HieraConfig,
    PreTrainedConfig,
    PvtV2Config,
    ResNetConfig,
    SwinConfig,
)


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIZES, DEPTHS = [8, 8, 16, 16], [1, 1, 1, 1]
CONVNEXT = {"hidden_sizes": SIZES, "depths": DEPTHS, "out_features": STAGES}
LAYERS = {
    "image_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "out_features": STAGES,
}

# Name -> class and fields. Those with `patch_size` are plain ViTs, and resampled where it is no power of two.
_BACKBONES: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "convnext": (ConvNextConfig, CONVNEXT | {"layer_scale_init_value": 0.5}),
    "convnextv2": (ConvNextV2Config, CONVNEXT),
    "dinov3_convnext": (DINOv3ConvNextConfig, CONVNEXT | {"layer_scale_init_value": 0.5}),
    "swin": (
        SwinConfig,
        {
            "image_size": 64,
            "embed_dim": 8,
            "depths": DEPTHS,
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
            "out_features": STAGES,
        },
    ),
    "pvt_v2": (
        PvtV2Config,
        {
            "image_size": 64,
            "hidden_sizes": SIZES,
            "depths": DEPTHS,
            "num_attention_heads": [1, 1, 2, 2],
            "mlp_ratios": [2, 2, 2, 2],
            "out_features": STAGES,
        },
    ),
    "resnet": (ResNetConfig, {"embedding_size": 8, "hidden_sizes": SIZES, "depths": DEPTHS, "out_features": STAGES}),
    "focalnet": (
        FocalNetConfig,
        {
            "image_size": 64,
            "embed_dim": 8,
            "hidden_sizes": [16, 32, 64, 64],
            "depths": DEPTHS,
            "focal_levels": DEPTHS,
            "focal_windows": [3, 3, 3, 3],
            "drop_path_rate": 0.0,
            "out_features": ["stem", "stage1", "stage2", "stage4"],
        },
    ),
    "hiera": (
        HieraConfig,
        {
            "image_size": [128, 128],
            "embed_dim": 8,
            "depths": DEPTHS,
            "num_heads": [1, 1, 2, 2],
            "mask_unit_size": [8, 8],
            "out_features": STAGES,
        },
    ),
    "dinov2": (Dinov2Config, LAYERS | {"image_size": 70, "patch_size": 14}),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, LAYERS | {"patch_size": 16}),
    "dinov3_vit": (DINOv3ViTConfig, LAYERS | {"patch_size": 16, "intermediate_size": 32, "num_register_tokens": 2}),
    "beit": (
        BeitConfig,
        LAYERS
        | {
            "patch_size": 8,
            "intermediate_size": 32,
            "use_relative_position_bias": True,
            "reshape_hidden_states": True,
        },
    ),
}
NAMES = tuple(_BACKBONES)


def backbone_config(name: str, **changes) -> PreTrainedConfig:
    config_class, fields = _BACKBONES[name]
    return config_class(**fields | changes)
