"""The names of other libraries that they call private and the code uses all the same: all of them, and why.

A new version may change them without a word. So each has a test that says which name of which library it is, what
rests on it and what to do; and no further one comes in unnamed.
"""

import ast
import importlib
import inspect
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
import torch._inductor
from torch import nn
from torch.utils.data import DataLoader
from transformers import ImageSegmentationPipeline, PreTrainedConfig, PreTrainedModel, SwinConfig, UperNetConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature

from offseg_hf.models.configuration_offseg import EfficientFormerV2Config
from offseg_hf.models.modeling_utils import OffsetModelMixin


ROOT = Path(__file__).parents[1]
# What a package's documentation has subclasses define, or import, is still private by name: of these it is only tested
# that the library knows them.
DOCUMENTED = "the library's documentation names it to those who derive from it: see what it says there now"


class Model(OffsetModelMixin, PreTrainedModel):
    """A linear layer in a container without parameters of its own."""

    config: PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.seen = []
        self.block = nn.Sequential(nn.Linear(2, 2))
        self.post_init()

    def _init_weights(self, module):
        self.seen.append(type(module))
        if isinstance(module, nn.Sequential):  # overrules the layer's own
            init.constant_(module[0].weight, 7.0)


def initialize_weights() -> None:
    model = Model(PreTrainedConfig())
    assert model.seen == [nn.Linear, nn.Sequential, Model], f"`_init_weights` is called of {model.seen} only"
    assert (model.block[0].weight == 7).all(), "what a container does to its layers is overwritten"
    calls = []

    class Outer(PreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.inner = Inner(config)
            self.post_init()

    class Inner(Model):
        def _initialize_weights(self, module, *args, **kwargs):
            calls.append(type(module))
            return super()._initialize_weights(module, *args, **kwargs)

    Outer(PreTrainedConfig())
    assert calls[:3] == [nn.Linear, nn.Sequential, Inner], f"of a model inside of another it is called of {calls}"


def set_gradient_checkpointing() -> None:
    calls = []

    class Checkpointed(Model):
        supports_gradient_checkpointing = True

        def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=None, **kwargs):
            calls.append((enable, gradient_checkpointing_func))

    model = Checkpointed(PreTrainedConfig())
    model.activation_checkpointing_enable()
    assert calls and calls[0][0] and callable(calls[0][1]), f"activation_checkpointing_enable calls it with {calls}"


def is_hf_initialized() -> None:
    tensor = nn.Parameter(torch.ones(3))
    tensor._is_hf_initialized = True
    init.zeros_(tensor)
    assert tensor.sum() == 3, "transformers.initialization overwrites a parameter that is marked with it"
    model = Model(PreTrainedConfig())
    model.seen.clear()
    for module in model.modules():
        module._is_hf_initialized = True
    model.initialize_weights()
    assert not model.seen, "initialize_weights initialises a module that is marked with it"


def attention_implementation() -> None:
    config = UperNetConfig(backbone_config=SwinConfig())
    config._attn_implementation = {"": "eager", "backbone_config": {"": "sdpa"}}
    found = config._attn_implementation, config.backbone_config._attn_implementation
    assert found == ("eager", "sdpa"), f"set by a dict to eager and sdpa, it reads {found}"
    assert "_attn_implementation" not in config.to_json_string(), "it is written into config.json"


def preprocess_image_like_inputs() -> None:
    calls = []

    class Processor(PilBackend):
        size = {"height": 2, "width": 2}
        do_resize = True
        resample = 2

        def _preprocess_image_like_inputs(self, *args, **kwargs):
            calls.append((args, kwargs))
            return BatchFeature()

    Processor().preprocess("images", "label maps", image_like_kwargs={"more": 1})
    assert calls, "preprocess does not call it"
    args, kwargs = calls[0]
    assert args == ("images", "label maps"), f"preprocess calls it with {args} for images and label maps"
    assert kwargs["more"] == 1 and kwargs["size"].height == 2, f"its settings have changed: {kwargs}"


def shutdown_workers() -> None:
    batches = iter(DataLoader(range(4), num_workers=1))
    next(batches)
    assert multiprocessing.active_children()
    batches._shutdown_workers()
    assert not multiprocessing.active_children(), "workers of a data loader outlive it"


def apply() -> None:
    calls = []

    class Layer(nn.Linear):
        def _apply(self, fn, recurse=True):
            calls.append(fn)
            return super()._apply(fn, recurse)

    nn.Sequential(Layer(2, 2)).half()
    assert len(calls) == 1, f"half() of a model calls it {len(calls)} times of a layer"


def out_features() -> None:
    config = EfficientFormerV2Config(out_features=["stage1", "stage3"])
    assert (config.out_features, config.out_indices) == (["stage1", "stage3"], [1, 3])
    assert (config._out_features, config._out_indices) == (["stage1", "stage3"], [1, 3])
    assert isinstance(config, BackboneConfigMixin)


def type_of_feature() -> None:
    assert "_type" in {field.name for field in fields(datasets.Image)}, "datasets.Image has no field of it"
    assert datasets.Features({"a": datasets.Image()}).to_dict()["a"]["_type"] == "Image", "to_dict does not write it"


def has(owner: type, *names: str) -> Callable[[], None]:
    def check() -> None:
        for name in names:
            assert hasattr(owner, name), f"{owner.__name__} has no {name} any more"

    return check


def fake_tensors() -> None:
    importlib.import_module("torch._subclasses.fake_tensor").FakeTensorMode(allow_non_fake_inputs=True)


def aotinductor() -> None:
    inductor = importlib.import_module("torch._inductor")
    assert "inductor_configs" in inspect.signature(inductor.aoti_compile_and_package).parameters
    assert "run_single_threaded" in inspect.signature(inductor.aoti_load_package).parameters


@dataclass(frozen=True)
class PrivateName:
    """names: of `library`. used_for: what rests on them. check: raises where that has changed. instead: what to do."""

    library: str
    names: tuple[str, ...]
    used_for: str
    check: Callable[[], None]
    instead: str = DOCUMENTED


PRIVATE_NAMES = [
    PrivateName(
        "transformers",
        ("_init_weights", "_initialize_weights"),
        "the official initialisation of our models, whose code is not transformers' own (models/modeling_utils.py)",
        initialize_weights,
        "find where transformers now decides which modules `_init_weights` sees; OffsetModelMixin can go if "
        "containers without parameters of their own are among them",
    ),
    PrivateName(
        "transformers",
        ("_set_gradient_checkpointing",),
        "batch norms of our models learn of a batch once, though it is seen twice (models/modeling_utils.py)",
        set_gradient_checkpointing,
        "wrap in OffsetModelMixin the function by which transformers now computes parts again",
    ),
    PrivateName(
        "transformers",
        ("_is_hf_initialized",),
        "the weights of a model that apply_offset_learning wraps stay (models/modeling_offset_learning.py), as do "
        "those of an official checkpoint (conversion/convert.py)",
        is_hf_initialized,
        "mark weights in `_keep_weights` and `load_official_weights` as transformers now marks loaded ones",
    ),
    PrivateName(
        "transformers",
        ("_attn_implementation",),
        "a wrapped model and its wrapper name the same attention (models/configuration_offset_learning.py); "
        "exports know what to set again (export/trace.py)",
        attention_implementation,
        "read and set it in `_attention_implementations` and `take_attention_of_base` as configurations now hold it",
    ),
    PrivateName(
        "transformers",
        ("_preprocess_image_like_inputs",),
        "our image processors prepare images together with label maps (models/image_processing_offseg.py)",
        preprocess_image_like_inputs,
        "call `_prepare` from what `BaseImageProcessor.preprocess` now calls with all settings resolved",
    ),
    PrivateName(
        "transformers",
        ("_out_features", "_out_indices"),
        "our encoders as backbones (models/configuration_offseg.py, configuration_offset_segnext.py)",
        out_features,
        "declare in the configurations of encoders what BackboneConfigMixin now sets",
    ),
    PrivateName(
        "transformers",
        (
            "_no_split_modules",
            "_keys_to_ignore_on_load_unexpected",
            "_supports_sdpa",
            "_supports_flash_attn",
            "_supports_flex_attn",
        ),
        "what our models tell `from_pretrained` of themselves",
        has(
            PreTrainedModel,
            "_no_split_modules",
            "_keys_to_ignore_on_load_unexpected",
            "_supports_sdpa",
            "_supports_flash_attn",
            "_supports_flex_attn",
        ),
    ),
    PrivateName(
        "torch",
        ("_shutdown_workers",),
        "the processes that load data end with the training, and so does the command (training/batches.py)",
        shutdown_workers,
        "end the workers of `Batches` as the iterator of DataLoader now ends its own",
    ),
    PrivateName(
        "torch",
        ("_apply",),
        "the bases of the matrix factorization stay in float32 (models/pixel_decoder_hamburger.py)",
        apply,
        "rebuild the bases after whatever nn.Module now calls to move and to cast",
    ),
    PrivateName(
        "torch",
        ("_inductor",),
        "a compiled network on the CPU has its weights as constants (inference/segmenter.py)",
        has(torch._inductor.config, "freezing", "patch"),
        "see how torch.compile is told to freeze weights now: its option `freezing` did nothing in 2.13",
    ),
    PrivateName(
        "torch",
        ("_subclasses",),
        "multiply-accumulates are counted without memory (scripts/zoo_table.py)",
        fake_tensors,
        "import FakeTensorMode from where torch's documentation of fake tensors now has it",
    ),
    PrivateName(
        "torch",
        ("_inductor",),
        "exported networks that AOTInductor has compiled (export/program.py, export/runtime.py)",
        aotinductor,
        "compile and load as torch's documentation of AOTInductor now has it",
    ),
    PrivateName(
        "transformers",
        ("_forward",),
        "label maps of windows without a canvas of all classes in the pipeline (inference/pipeline.py)",
        has(ImageSegmentationPipeline, "_forward"),
    ),
    PrivateName(
        "datasets",
        ("_type",),
        "the type of a column of label maps (data/label_image.py)",
        type_of_feature,
        "name LabelImage as datasets now names the types of its columns",
    ),
    PrivateName(
        "evaluate",
        ("_info", "_compute"),
        "our mean IoU for evaluate (metrics/mean_iou.py, scripts/benchmark_metrics.py)",
        has(evaluate.Metric, "_info", "_compute"),
    ),
]


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.names[0])
def test_still_does_what_it_did(private):
    try:
        private.check()
    except Exception as error:
        names = " and ".join(private.names)
        pytest.fail(
            f"{private.library} {version(private.library)} has changed {names}, private to it, on which rests: "
            f"{private.used_for}. What came: {type(error).__name__}: {error}. What to do: {private.instead}.",
            pytrace=False,
        )


def test_they_are_all_named():
    """By the sources: what begins with an underscore and is not defined for use in our own code."""
    theirs = _private_names_of_others()
    named = {name for private in PRIVATE_NAMES for name in private.names}
    unnamed = {name: sorted(files) for name, files in theirs.items() if name not in named}
    assert not unnamed, f"private names of other libraries; find a public way, or add them to PRIVATE_NAMES: {unnamed}"
    assert not (unused := named - theirs.keys()), f"in PRIVATE_NAMES, but nothing uses them: {unused}"


def _private_names_of_others() -> dict[str, set[str]]:
    """Names with the files they are in: attributes of anything but `self`, members of a class that the class does not
    use itself (a library does), parts of imports, and names in `getattr` and the like."""
    files, ours = defaultdict(set), set()
    for path in (*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                ours.add(node.attr)
                continue
            for name in _names(node):
                if name.startswith("_") and name != "_" and not name.startswith("__"):
                    files[name].add(str(path.relative_to(ROOT)))
    return {name: where for name, where in files.items() if name not in ours}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef):
                yield member.name
            elif isinstance(member, ast.Assign | ast.AnnAssign):
                targets = member.targets if isinstance(member, ast.Assign) else [member.target]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (part for alias in node.names for part in alias.name.split("."))
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", None))
        if called in ("getattr", "setattr", "hasattr", "delattr", "get", "pop"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
