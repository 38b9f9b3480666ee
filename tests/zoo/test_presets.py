"""The presets against the official configurations and the models they describe."""

import shutil

import pytest
from transformers import AutoImageProcessor

from offseg_hf.zoo.presets import PRESETS, configs_folder, get_preset, read_presets


# number of the official model's parameters without `conv_seg`; (long, short side), window, stride, divisor of its test
OFFICIAL = {
    "offseg-t-ade": (6_183_626, (2048, 512), 512, 480, None),
    "offseg-t-cityscapes": (6_149_828, (2048, 1024), 1024, 768, None),
    "offseg-t-cocostuff": (6_189_044, (2048, 512), 512, 480, None),
    "offseg-b-ade": (12_916_850, (2048, 512), 512, 480, None),
    "offseg-b-cityscapes": (12_883_052, (2048, 1024), 1024, 768, None),
    "offseg-b-cocostuff": (12_922_268, (2048, 512), 512, 480, None),
    "offseg-l-ade": (26_375_458, (2048, 512), 512, 480, None),
    "offseg-l-cityscapes": (26_341_660, (2048, 1024), 1024, 768, None),
    "offseg-l-cocostuff": (26_380_876, (2048, 512), 512, 480, None),
    "segformer-b0-offset-ade": (3_884_940, (2048, 512), 512, 480, None),
    "segformer-b0-offset-cocostuff": (3_890_358, (2048, 512), 512, 480, None),
    "segformer-b1-offset-ade": (13_848_044, (2048, 512), 512, 480, None),
    "segformer-b1-offset-cocostuff": (13_853_462, (2048, 512), 512, 480, None),
    "segformer-b2-offset-ade": (24_892_908, (2048, 512), 512, 480, None),
    "segformer-b2-offset-cocostuff": (24_898_326, (2048, 512), 512, 480, None),
    "segformer-b3-offset-ade": (44_768_748, (2048, 512), 512, 480, None),
    "segformer-b3-offset-cocostuff": (44_774_166, (2048, 512), 512, 480, None),
    "segformer-b4-offset-ade": (61_539_308, (2048, 512), 512, 480, None),
    "segformer-b4-offset-cocostuff": (61_544_726, (2048, 512), 512, 480, None),
    "segformer-b5-offset-ade": (82_139_628, (2048, 512), 512, 480, None),
    "segformer-b5-offset-cocostuff": (82_145_046, (2048, 512), 512, 480, None),
    "segnext-t-offset-ade": (4_394_636, (2048, 512), None, None, 32),
    "segnext-t-offset-cityscapes": (4_360_838, (2048, 1024), 1024, 768, 32),
    "segnext-t-offset-cocostuff": (4_400_054, (2048, 512), None, None, 32),
    "segnext-t-offset-context59": (4_371_158, (520, 520), 480, 320, 32),
    "segnext-s-offset-ade": (14_064_108, (2048, 512), None, None, 32),
    "segnext-s-offset-cityscapes": (14_030_310, (2048, 1024), 1024, 768, 32),
    "segnext-s-offset-cocostuff": (14_069_526, (2048, 512), None, None, 32),
    "segnext-s-offset-context59": (14_040_630, (520, 520), 480, 320, 32),
    "segnext-b-offset-ade": (28_160_748, (2048, 512), None, None, 32),
    "segnext-b-offset-cityscapes": (28_093_414, (2048, 1024), 1024, 768, 32),
    "segnext-b-offset-cocostuff": (28_171_542, (2048, 512), None, None, 32),
    "segnext-b-offset-context59": (28_113_974, (520, 520), 480, 320, 32),
    "mask2former-swin-t-offset-ade": (47_570_705, (2048, 512), None, None, 32),
}


def test_all_presets_are_here():
    assert list(PRESETS) == list(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_number_of_parameters_is_the_official_one(name):
    """That the models have as many is among the goldens (parity/test_goldens.py)."""
    assert get_preset(name).num_parameters == OFFICIAL[name][0]


@pytest.mark.parametrize("name", OFFICIAL)
def test_config_names_the_classes(name):
    preset = get_preset(name)
    config = preset.config()
    assert config.num_labels == len(preset.labels)
    assert tuple(config.id2label.values()) == preset.labels.names
    assert config.label2id == preset.labels.label2id()
    if preset.family != "mask2former":  # learns from one mask per class, of which an ignored pixel has none
        assert config.semantic_loss_ignore_index == preset.labels.ignore_index


@pytest.mark.parametrize("name", OFFICIAL)
def test_image_processor_follows_the_official_protocol(name, tmp_path):
    preset = get_preset(name)
    preset.image_processor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    _, (long_side, short_side), window, stride, size_divisor = OFFICIAL[name]
    assert dict(processor.size) == {"longest_edge": long_side, "shortest_edge": short_side}
    assert (processor.window_size, processor.window_stride) == (window, stride)
    assert processor.size_divisor == size_divisor
    assert processor.do_reduce_labels == name.endswith(("-ade", "-context59"))
    assert [255 * mean for mean in processor.image_mean] == pytest.approx([123.675, 116.28, 103.53])
    assert [255 * std for std in processor.image_std] == pytest.approx([58.395, 57.12, 57.375])


def test_a_recipe_of_ones_own_among_them_is_no_preset(tmp_path):
    shutil.copytree(configs_folder(), tmp_path / "configs")
    (tmp_path / "configs" / "mine.yaml").write_text("inherit: offseg-t-ade.yaml\ntraining: {seed: 1}\n")
    (tmp_path / "configs" / "whole.yaml").write_text("data: {source: photos}\n")
    assert read_presets(tmp_path / "configs") == PRESETS


def test_overrides():
    preset = get_preset("offseg-t-ade")
    assert preset.config(use_class_offset=False, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).num_labels == 2
    assert preset.image_processor(window_size=None).window_size is None


def test_unknown_preset_has_the_nearest():
    with pytest.raises(ValueError, match="did you mean offseg-t-ade, ") as caught:
        get_preset("Offseg_T_ade")
    assert sum(name in str(caught.value) for name in PRESETS) == 3
    with pytest.raises(ValueError, match=r"\(did you mean offseg-t-ade\?\)"):
        get_preset("OffSeg-T-ADE")
    with pytest.raises(ValueError, match=r"unknown preset 'x': `offseg presets` lists them"):
        get_preset("x")
