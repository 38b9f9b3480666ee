"""A field that a configuration does not have is refused by its name; saved ones load, whatever they have."""

import copy
import json

import pytest
from transformers import AutoConfig

from offseg_hf import (
    EfficientFormerV2Config,
    MscanConfig,
    OffSegConfig,
    OffsetAlignmentConfig,
    OffsetLearningConfig,
    OffsetMask2FormerConfig,
    OffsetSegformerConfig,
    OffsetSegNextConfig,
)


CONFIGURATIONS = [
    EfficientFormerV2Config,
    MscanConfig,
    OffSegConfig,
    OffsetAlignmentConfig,
    OffsetLearningConfig,
    OffsetMask2FormerConfig,
    OffsetSegformerConfig,
    OffsetSegNextConfig,
]
# What transformers' own code passes to configurations, or reads from them.
STANDARD = {
    "num_labels": 3,
    "output_hidden_states": True,
    "name_or_path": "somewhere",
    "dtype": "float32",
    "architectures": ["A"],
    "attn_implementation": "eager",
    "auto_map": {},
}


@pytest.mark.parametrize("config_class", CONFIGURATIONS)
def test_unknown_fields_are_refused(config_class):
    with pytest.raises(
        ValueError, match=f"{config_class.__name__} has no setting 'num_lables': is 'num_labels' meant"
    ):
        config_class(num_lables=3)
    with pytest.raises(ValueError, match="has no setting 'zzz': expected one of .*num_labels"):
        config_class(zzz=3)
    assert config_class(**STANDARD).num_labels == 3


def test_fields_of_others_are_refused():
    with pytest.raises(ValueError, match="OffsetSegformerConfig has no setting 'backbone_config'"):
        OffsetSegformerConfig(backbone_config={"model_type": "swin"})
    with pytest.raises(ValueError, match="OffSegConfig has no setting 'temperature'"):
        OffSegConfig.from_size("t", temperature=1.0)
    with pytest.raises(ValueError, match="is 'use_class_offset' meant"):
        OffsetSegformerConfig(use_clas_offset=False)


@pytest.mark.parametrize("config_class", CONFIGURATIONS)
def test_saved_ones_load(config_class, tmp_path):
    """With a field of a newer version, that of an older one, and one that a user has set on it."""
    config = config_class(num_labels=3)
    config.of_a_user = 1
    config.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"transformers_version": "9.0.0", "of_a_newer_version": [1], "torch_dtype": "float32", "top_k": 50}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for load in (config_class, AutoConfig):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is config_class and loaded.model_type == config_class.model_type
        assert (loaded.of_a_user, loaded.of_a_newer_version, loaded.num_labels) == (1, [1], 3)
    for again in (
        copy.deepcopy(loaded),
        config_class(**loaded.to_dict()),
        config_class.from_dict(loaded.to_diff_dict()),
    ):
        assert again.to_dict() | {"_name_or_path": ""} == loaded.to_dict() | {"_name_or_path": ""}


def test_what_is_nearly_a_field_is_told(tmp_path, caplog):
    OffSegConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is 'decoder_hidden_size' meant"):
        AutoConfig.from_pretrained(tmp_path, decoder_hiden_size=64)
    assert AutoConfig.from_pretrained(tmp_path, device_map=None).decoder_hidden_size == 256  # pipelines pass such
    saved = OffSegConfig().to_dict() | {"decoder_hiden_size": 64}
    with caplog.at_level("WARNING", logger="transformers"):
        OffSegConfig.from_dict(saved)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"id2label": ["a", "b"]}, "id2label: expected a dictionary"),
        ({"id2label": "ab"}, "id2label: expected a dictionary"),
        ({"label2id": ["a"]}, "label2id: expected a dictionary"),
        ({"num_labels": "5"}, "num_labels: expected an integer of at least 1, got '5'"),
        ({"num_labels": 0}, "num_labels: expected an integer"),
        ({"num_labels": [1, 2]}, "num_labels: expected an integer"),
        ({"hidden_sizes": "abcd"}, "hidden_sizes"),
        ({"hidden_sizes": {1: 2}}, "hidden_sizes"),
        ({"hidden_sizes": [0, 8, 8, 8]}, "hidden_sizes of at least 2"),
        ({"lateral_channels": [16] * 4}, "lateral_channels must be positive multiples of 32"),
        ({"decoder_hidden_size": 48}, "decoder_hidden_size must be a positive multiple of 32, got 48"),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(Exception, match=message):
        OffSegConfig(**fields)


def test_names_of_classes_alone_are_enough():
    assert OffSegConfig(id2label={"0": "sky", "1": "tree"}).label2id == {"sky": 0, "tree": 1}
