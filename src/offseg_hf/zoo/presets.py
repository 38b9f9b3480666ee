"""The recipes of the official repository by name: architecture, classes and test protocol, one row each.

A preset's name is also the name of its recipe and of its repository on the Hub. Figures from the configurations of
HVision-NKU/OffSeg @ 1414f6d.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig


@dataclass(frozen=True)
class Protocol:
    """How a photo is tested: resized, keeping its ratio, into `scale` (long side, short side), then cut into windows.

    window, stride: side of the square sliding window and its step, in pixels; None to test the whole image at once.
    size_divisor: what the sides of the image are padded to multiples of, before it is cut.
    """

    scale: tuple[int, int]
    window: int | None = None
    stride: int | None = None
    size_divisor: int | None = None


SLIDE_512 = Protocol(scale=(2048, 512), window=512, stride=480)
SLIDE_1024 = Protocol(scale=(2048, 1024), window=1024, stride=768)
WHOLE_32 = Protocol(scale=(2048, 512), size_divisor=32)
SLIDE_480_32 = Protocol(scale=(520, 520), window=480, stride=320, size_divisor=32)
SLIDE_1024_32 = Protocol(scale=(2048, 1024), window=1024, stride=768, size_divisor=32)

# family -> module of its configuration, class in it, module of the image processor, class in it
FAMILIES = {
    "offseg": ("configuration_offseg", "OffSegConfig", "image_processing_offseg", "OffSegImageProcessor"),
    "segformer": (
        "configuration_offset_segformer",
        "OffsetSegformerConfig",
        "image_processing_offseg",
        "OffSegImageProcessor",
    ),
    "segnext": (
        "configuration_offset_segnext",
        "OffsetSegNextConfig",
        "image_processing_offseg",
        "OffSegImageProcessor",
    ),
    "mask2former": (
        "configuration_offset_mask2former",
        "OffsetMask2FormerConfig",
        "image_processing_offset_mask2former",
        "OffsetMask2FormerImageProcessor",
    ),
}


@dataclass(frozen=True)
class Preset:
    """One official recipe.

    encoder: type of the backbone in the official configuration.
    num_parameters: of the official model, without its unused `conv_seg`.
    """

    name: str
    family: str
    size: str
    data: str
    encoder: str
    protocol: Protocol
    num_parameters: int

    @property
    def labels(self) -> LabelSet:
        return LABEL_SETS[self.data]

    def config(self, **overrides) -> PreTrainedConfig:
        """The model's configuration with the class names; `overrides` replace its fields."""
        module, name, _, _ = FAMILIES[self.family]
        config_class = getattr(import_module(f"offseg_hf.models.{module}"), name)
        names = {"id2label": self.labels.id2label(), "label2id": self.labels.label2id()}
        return config_class.from_size(self.size, **(names | overrides))

    def image_processor(self, **overrides) -> BaseImageProcessor:
        """The image processor with the official test protocol; `overrides` replace its settings."""
        _, _, module, name = FAMILIES[self.family]
        processor_class = getattr(import_module(f"offseg_hf.models.{module}"), name)
        return processor_class(**(self.image_processor_settings() | overrides))

    def image_processor_settings(self) -> dict:
        """The arguments of the image processor that make it follow the official test protocol."""
        long_side, short_side = self.protocol.scale
        return {
            "size": {"longest_edge": long_side, "shortest_edge": short_side},
            "window_size": self.protocol.window,
            "window_stride": self.protocol.stride,
            "size_divisor": self.protocol.size_divisor,
            "do_reduce_labels": self.labels.reduce_zero_label,
        }


PRESETS: dict[str, Preset] = {
    row[0]: Preset(*row)
    for row in (
        # name, family, size, data, encoder, protocol, parameters
        ("offseg-t-ade", "offseg", "t", "ade", "efficientformerv2_s1_feat", SLIDE_512, 6_183_626),
        ("offseg-t-cityscapes", "offseg", "t", "cityscapes", "efficientformerv2_s1_feat", SLIDE_1024, 6_149_828),
        ("offseg-t-cocostuff", "offseg", "t", "cocostuff", "efficientformerv2_s1_feat", SLIDE_512, 6_189_044),
        ("offseg-b-ade", "offseg", "b", "ade", "efficientformerv2_s2_feat", SLIDE_512, 12_916_850),
        ("offseg-b-cityscapes", "offseg", "b", "cityscapes", "efficientformerv2_s2_feat", SLIDE_1024, 12_883_052),
        ("offseg-b-cocostuff", "offseg", "b", "cocostuff", "efficientformerv2_s2_feat", SLIDE_512, 12_922_268),
        ("offseg-l-ade", "offseg", "l", "ade", "efficientformerv2_l_feat", SLIDE_512, 26_375_458),
        ("offseg-l-cityscapes", "offseg", "l", "cityscapes", "efficientformerv2_l_feat", SLIDE_1024, 26_341_660),
        ("offseg-l-cocostuff", "offseg", "l", "cocostuff", "efficientformerv2_l_feat", SLIDE_512, 26_380_876),
        ("segformer-b0-offset-ade", "segformer", "b0", "ade", "mit_b0", SLIDE_512, 3_884_940),
        ("segformer-b0-offset-cocostuff", "segformer", "b0", "cocostuff", "mit_b0", SLIDE_512, 3_890_358),
        ("segformer-b1-offset-ade", "segformer", "b1", "ade", "mit_b1", SLIDE_512, 13_848_044),
        ("segformer-b1-offset-cocostuff", "segformer", "b1", "cocostuff", "mit_b1", SLIDE_512, 13_853_462),
        ("segformer-b2-offset-ade", "segformer", "b2", "ade", "mit_b2", SLIDE_512, 24_892_908),
        ("segformer-b2-offset-cocostuff", "segformer", "b2", "cocostuff", "mit_b2", SLIDE_512, 24_898_326),
        ("segformer-b3-offset-ade", "segformer", "b3", "ade", "mit_b3", SLIDE_512, 44_768_748),
        ("segformer-b3-offset-cocostuff", "segformer", "b3", "cocostuff", "mit_b3", SLIDE_512, 44_774_166),
        ("segformer-b4-offset-ade", "segformer", "b4", "ade", "mit_b4", SLIDE_512, 61_539_308),
        ("segformer-b4-offset-cocostuff", "segformer", "b4", "cocostuff", "mit_b4", SLIDE_512, 61_544_726),
        ("segformer-b5-offset-ade", "segformer", "b5", "ade", "mit_b5", SLIDE_512, 82_139_628),
        ("segformer-b5-offset-cocostuff", "segformer", "b5", "cocostuff", "mit_b5", SLIDE_512, 82_145_046),
        ("segnext-t-offset-ade", "segnext", "t", "ade", "mscan_t", WHOLE_32, 4_394_636),
        ("segnext-t-offset-cityscapes", "segnext", "t", "cityscapes", "mscan_t", SLIDE_1024_32, 4_360_838),
        ("segnext-t-offset-cocostuff", "segnext", "t", "cocostuff", "mscan_t", WHOLE_32, 4_400_054),
        ("segnext-t-offset-context59", "segnext", "t", "context59", "mscan_t", SLIDE_480_32, 4_371_158),
        ("segnext-s-offset-ade", "segnext", "s", "ade", "mscan_s", WHOLE_32, 14_064_108),
        ("segnext-s-offset-cityscapes", "segnext", "s", "cityscapes", "mscan_s", SLIDE_1024_32, 14_030_310),
        ("segnext-s-offset-cocostuff", "segnext", "s", "cocostuff", "mscan_s", WHOLE_32, 14_069_526),
        ("segnext-s-offset-context59", "segnext", "s", "context59", "mscan_s", SLIDE_480_32, 14_040_630),
        ("segnext-b-offset-ade", "segnext", "b", "ade", "mscan_b", WHOLE_32, 28_160_748),
        ("segnext-b-offset-cityscapes", "segnext", "b", "cityscapes", "mscan_b", SLIDE_1024_32, 28_093_414),
        ("segnext-b-offset-cocostuff", "segnext", "b", "cocostuff", "mscan_b", WHOLE_32, 28_171_542),
        ("segnext-b-offset-context59", "segnext", "b", "context59", "mscan_b", SLIDE_480_32, 28_113_974),
        ("mask2former-swin-t-offset-ade", "mask2former", "swin-t", "ade", "swin_tiny", WHOLE_32, 47_570_705),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`; raises ValueError, which lists the presets, if there is none."""
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name.lower(), PRESETS, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise ValueError(f"unknown preset {name!r}{hint}: expected one of {', '.join(PRESETS)}")
