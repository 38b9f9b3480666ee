"""Small models of transformers for semantic segmentation, with random weights, and where their classifier is."""

import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DPTConfig,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTV2Config,
    PreTrainedModel,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
)


LABELS = {0: "sky", 1: "tree", 2: "road", 3: "car", 4: "wall"}
SIZE = 64  # height and width of the images; what is resized by the models comes out in another size
STAGES = ["stage1", "stage2", "stage3", "stage4"]
TRANSFORMER = {
    "image_size": SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "auxiliary_channels": 16,
    "auxiliary_num_convs": 1,
}
UPERNET = {"hidden_size": 16, "auxiliary_channels": 16}


# Name -> its configuration, which takes time to make, and dotted name of the classifier.
MODELS = {
    "segformer": (
        lambda: SegformerConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        "decode_head.classifier",
    ),
    "upernet-convnext": (
        lambda: UperNetConfig(
            backbone_config=ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES),
            auxiliary_in_channels=16,
            **UPERNET,
        ),
        "decode_head.classifier",
    ),
    "upernet-swin": (
        lambda: UperNetConfig(
            backbone_config=SwinConfig(
                image_size=SIZE,
                embed_dim=8,
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 2, 2],
                window_size=4,
                out_features=STAGES,
            ),
            auxiliary_in_channels=32,
            **UPERNET,
        ),
        "decode_head.classifier",
    ),
    "dpt": (
        lambda: DPTConfig(
            **TRANSFORMER,
            patch_size=8,
            is_hybrid=False,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
        ),
        "head.head.4",
    ),
    "beit": (
        lambda: BeitConfig(**TRANSFORMER, patch_size=8, out_indices=[1, 2, 3, 4], pool_scales=[1, 2]),
        "decode_head.classifier",
    ),
    "data2vec-vision": (
        lambda: Data2VecVisionConfig(**TRANSFORMER, patch_size=8, out_indices=[0, 1, 2, 3], pool_scales=[1, 2]),
        "decode_head.classifier",
    ),
    "mobilevit": (
        lambda: MobileViTConfig(
            image_size=SIZE,
            hidden_sizes=[16, 16, 24],
            neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
            num_attention_heads=2,
            aspp_out_channels=16,
            output_stride=8,
        ),
        "segmentation_head.classifier.convolution",
    ),
    "mobilevitv2": (
        lambda: MobileViTV2Config(
            image_size=SIZE,
            width_multiplier=0.125,
            n_attn_blocks=[1, 1, 1],
            base_attn_unit_dims=[64, 64, 64],
            aspp_out_channels=16,
            output_stride=8,
        ),
        "segmentation_head.classifier.convolution",
    ),
    "mobilenet_v2": (
        lambda: MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25, depth_divisible_by=8, output_stride=8),
        "segmentation_head.classifier.convolution",
    ),
}
NAMES = tuple(MODELS)


def small_model(name: str, **overrides) -> PreTrainedModel:
    """In eval mode, with labels of its own and a classifier whose bias counts."""
    config = MODELS[name][0]()
    config.id2label, config.label2id = LABELS, {label: i for i, label in LABELS.items()}
    for field, value in overrides.items():
        setattr(config, field, value)
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    pass_signals(model)
    classifier = model.get_submodule(classifier_name(name))
    torch.nn.init.normal_(classifier.bias, std=0.5)
    return model


@torch.no_grad()
def pass_signals(model: PreTrainedModel) -> None:
    """Weights and statistics of the size that training leaves: with those of the initialisation, next to nothing of
    the image arrives at the end of a deep model."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images())
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum


def classifier_name(name: str) -> str:
    return MODELS[name][1]


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def label_maps(batch: int = 2) -> torch.Tensor:
    """With some pixels to ignore."""
    labels = torch.randint(len(LABELS), (batch, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    labels[:, :8] = 255
    return labels
