"""The four families: a row says all there is to know of one, and everything else loops over the rows.

Adding a family is a row here, its modules in `models/` and its table of keys in `conversion/tables/`; adding a size is
one entry in `from_size` of its configuration and in `sizes` here, and a file per data set in `configs/`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Encoder:
    """An encoder that is a backbone of its own, for any model of transformers that takes one.

    Args:
        model_type: of its configuration.
        config, model: the classes, as `module.class` in `offseg_hf.models`.
    """

    model_type: str
    config: str
    model: str


@dataclass(frozen=True)
class Family:
    """What the presets of a family share. Classes are written as `module.class`, of modules in `offseg_hf.models`.

    Args:
        name: as presets and their files in `conversion/tables/` have it.
        sizes: in the order of the paper's tables.
        model_type: of the configuration.
        config, model, image_processor: the classes.
        auto_class: of transformers, for the model.
        encoder: the encoder alone, if it is one of this package.
        encoder_of_model: the class that reads the encoder out of a whole model's weights, if there is one.
        encoder_parameters: how names of parameters begin that learn like the encoder, as a regular expression. The
            official multipliers go by substrings of the official names, so that the attention's `talking_head` learns
            like the head.
        undecayed_parameters: the same for parameters without weight decay. Officially the head's norms decay, and so
            do the encoder's norms that are named by a number.
        title: of a model, with `{size}` in it.
        architecture: in words.
        table: the table of the paper with its results.
        compared: which outputs of the official code the tests compare with.
    """

    name: str
    sizes: tuple[str, ...]
    model_type: str
    config: str
    model: str
    image_processor: str
    auto_class: str
    encoder_parameters: str
    undecayed_parameters: str
    title: str
    architecture: str
    table: int
    compared: str
    encoder: Encoder | None = None
    encoder_of_model: str | None = None


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="offseg",
            sizes=("t", "b", "l"),
            model_type="offseg",
            config="configuration_offseg.OffSegConfig",
            model="modeling_offseg.OffSegForSemanticSegmentation",
            image_processor="image_processing_offseg.OffSegImageProcessor",
            auto_class="AutoModelForSemanticSegmentation",
            encoder=Encoder(
                "efficientformer_v2",
                "configuration_offseg.EfficientFormerV2Config",
                "modeling_offseg.EfficientFormerV2Backbone",
            ),
            encoder_of_model="modeling_offseg.OffSegBackbone",
            encoder_parameters=r"encoder\.(?!.*\.talking_head)",
            undecayed_parameters=r"encoder\.(stages\..*\.mlp\.\w+|downsample\.[01]\.projection)\.norm\.",
            title="OffSeg-{size}",
            architecture="an EfficientFormerV2 encoder, a FreqFusion pixel decoder and offset learning",
            table=2,
            compared="features, logits and label maps of OffSeg-T and OffSeg-B, and loss and gradients of OffSeg-T",
        ),
        Family(
            name="segformer",
            sizes=("b0", "b1", "b2", "b3", "b4", "b5"),
            model_type="offset_segformer",
            config="configuration_offset_segformer.OffsetSegformerConfig",
            model="modeling_offset_segformer.OffsetSegformerForSemanticSegmentation",
            image_processor="image_processing_offseg.OffSegImageProcessor",
            auto_class="AutoModelForSemanticSegmentation",
            encoder_parameters=r"segformer\.",
            undecayed_parameters=r"segformer\.stages\.\d+\.(patch_embeddings|blocks)\..*norm",
            title="SegFormer-{size} with offset learning",
            architecture="a MiT encoder, SegFormer's pixel decoder and, as its classifier, offset learning",
            table=4,
            compared=(
                "features, logits and label maps of SegFormer-B0 and SegFormer-B2, and loss and gradients of "
                "SegFormer-B0"
            ),
        ),
        Family(
            name="segnext",
            sizes=("t", "s", "b"),
            model_type="offset_segnext",
            config="configuration_offset_segnext.OffsetSegNextConfig",
            model="modeling_offset_segnext.OffsetSegNextForSemanticSegmentation",
            image_processor="image_processing_offseg.OffSegImageProcessor",
            auto_class="AutoModelForSemanticSegmentation",
            encoder=Encoder(
                "mscan", "configuration_offset_segnext.MscanConfig", "modeling_offset_segnext.MscanBackbone"
            ),
            encoder_of_model="modeling_offset_segnext.OffsetSegNextBackbone",
            encoder_parameters=r"encoder\.",
            undecayed_parameters=r"encoder\.(?!stem\.).*norm",
            title="SegNeXt-{size} with offset learning",
            architecture="an MSCAN encoder, the Hamburger decoder and, as its classifier, offset learning",
            table=3,
            compared="features, logits, label maps, loss and gradients of SegNeXt-T",
        ),
        Family(
            name="mask2former",
            sizes=("swin-t",),
            model_type="offset_mask2former",
            config="configuration_offset_mask2former.OffsetMask2FormerConfig",
            model="modeling_offset_mask2former.OffsetMask2FormerForUniversalSegmentation",
            image_processor="image_processing_offset_mask2former.OffsetMask2FormerImageProcessor",
            auto_class="AutoModelForUniversalSegmentation",
            encoder_parameters=r"model\.pixel_level_module\.encoder\.",
            undecayed_parameters=(
                r".*(norm|\.relative_position_bias_table$)"
                r"|model\.pixel_level_module\.decoder\.(input_projections\.\d+|adapter_\d+|layer_\d+)\.1\."
                r"|model\.transformer_module\.(level_embed|queries_embedder|queries_features)\."
            ),
            title="Mask2Former {size} with offset learning",
            architecture="a Mask2Former in which offset learning aligns masks and pixels",
            table=5,
            compared="features, queries, masks and label maps of this model",
        ),
    )
}


def family_of(model_type: str | None) -> Family | None:
    """Return the family whose models have this `model_type`, or None."""
    return next((family for family in FAMILIES.values() if family.model_type == model_type), None)


def load_class(name: str) -> Any:
    """Return a class of `offseg_hf.models`, by `module.class`."""
    module, _, class_name = name.partition(".")
    return getattr(import_module(f"offseg_hf.models.{module}"), class_name)
