"""Makes transformers' common tests importable as they import each other, from `tests`.

`make test-transformers` unpacks them from the source distribution, which lacks what they share with the tests of
single models. Those imports get stand-ins: empty mixins that only tests of text models and exporters fill, and plain
values.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import import_utils

import tests
from offseg_hf import (
    EfficientFormerV2Backbone,
    EfficientFormerV2Config,
    MscanBackbone,
    MscanConfig,
    OffSegImageProcessor,
)
from tests.transformers_mixins.pipelines import ImageSegmentationPipelineTests
from tests.transformers_mixins.tiny import write_tiny_models


TRANSFORMERS_TESTS = Path(os.environ.get("TRANSFORMERS_TESTS", "")).resolve()

# A value that is not the default for the fields that all configurations have.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def pytest_configure(config: pytest.Config) -> None:
    if not (TRANSFORMERS_TESTS / "test_modeling_common.py").is_file():
        pytest.exit("These tests need those of transformers: run `make test-transformers`", returncode=1)
    tests.__path__.append(str(TRANSFORMERS_TESTS))
    for source in TRANSFORMERS_TESTS.glob("*.py"):
        for marker in set(re.findall(r"\bmark\.(\w+)", source.read_text())):
            config.addinivalue_line("markers", f"{marker}: of transformers")
    config.addinivalue_line("markers", "is_pipeline_test: of transformers")

    stand_in("tests.exporters")
    stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in("tests.generation")
    stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stand_in("tests.utils")
    stand_in("tests.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    stand_in("tests.pipelines")
    stand_in(
        "tests.pipelines.test_pipelines_image_segmentation",
        ImageSegmentationPipelineTests=ImageSegmentationPipelineTests,
    )
    stand_in("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)

    # They import transformers once more from the checkout that they lie in; the installed package is the same version.
    import_utils.direct_transformers_import = transformers.utils.direct_transformers_import = lambda *_: transformers
    transformers.OffSegImageProcessor = OffSegImageProcessor  # the pipeline tests look for processors there

    # Backbones are known by name: they have no loss to train.
    MODEL_FOR_BACKBONE_MAPPING_NAMES[EfficientFormerV2Config.model_type] = EfficientFormerV2Backbone.__name__
    MODEL_FOR_BACKBONE_MAPPING_NAMES[MscanConfig.model_type] = MscanBackbone.__name__

    tiny_models = tempfile.TemporaryDirectory()
    config.add_cleanup(tiny_models.cleanup)
    write_tiny_models(Path(tiny_models.name))
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = tiny_models.name


def stand_in(name: str, **contents) -> None:
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(contents, __path__=[])
