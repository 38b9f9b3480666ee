"""The presets against the official configurations and the models they describe."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from offseg_hf.presets import PRESETS, get_preset


# number of the official model's parameters without `conv_seg`, and (long, short side), window, stride of its test
OFFICIAL = {
    "offseg-t-ade": (6_183_626, (2048, 512), 512, 480),
    "offseg-t-cityscapes": (6_149_828, (2048, 1024), 1024, 768),
    "offseg-t-cocostuff": (6_189_044, (2048, 512), 512, 480),
    "offseg-b-ade": (12_916_850, (2048, 512), 512, 480),
    "offseg-b-cityscapes": (12_883_052, (2048, 1024), 1024, 768),
    "offseg-b-cocostuff": (12_922_268, (2048, 512), 512, 480),
    "offseg-l-ade": (26_375_458, (2048, 512), 512, 480),
    "offseg-l-cityscapes": (26_341_660, (2048, 1024), 1024, 768),
    "offseg-l-cocostuff": (26_380_876, (2048, 512), 512, 480),
}


def test_all_presets_are_here():
    assert list(PRESETS) == list(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_model_has_the_official_number_of_parameters(name):
    preset = get_preset(name)
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(preset.config())
    assert model.num_parameters() == preset.num_parameters == OFFICIAL[name][0]


@pytest.mark.parametrize("name", OFFICIAL)
def test_config_names_the_classes(name):
    preset = get_preset(name)
    config = preset.config()
    assert config.num_labels == len(preset.labels)
    assert tuple(config.id2label.values()) == preset.labels.names
    assert config.label2id == preset.labels.label2id()
    assert config.semantic_loss_ignore_index == preset.labels.ignore_index


@pytest.mark.parametrize("name", OFFICIAL)
def test_image_processor_follows_the_official_protocol(name, tmp_path):
    preset = get_preset(name)
    preset.image_processor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    _, (long_side, short_side), window, stride = OFFICIAL[name]
    assert dict(processor.size) == {"longest_edge": long_side, "shortest_edge": short_side}
    assert (processor.window_size, processor.window_stride) == (window, stride)
    assert processor.do_reduce_labels == name.endswith("-ade")
    assert [255 * mean for mean in processor.image_mean] == pytest.approx([123.675, 116.28, 103.53])
    assert [255 * std for std in processor.image_std] == pytest.approx([58.395, 57.12, 57.375])


def test_overrides():
    preset = get_preset("offseg-t-ade")
    assert preset.config(use_class_offset=False, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).num_labels == 2
    assert preset.image_processor(window_size=None).window_size is None


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="did you mean offseg-t-ade") as caught:
        get_preset("Offseg_T_ade")
    assert all(name in str(caught.value) for name in PRESETS)
    with pytest.raises(ValueError, match=r"unknown preset 'x': expected one of offseg-t-ade, "):
        get_preset("x")
