import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import offseg_hf
from offseg_hf import convert_checkpoint
from offseg_hf.conversion import CheckpointError
from offseg_hf.conversion.class_names import read_names
from offseg_hf.conversion.tables.offseg import OFFICIAL as OFFSEG
from tests.processes import run_python, run_script


PRESET = "offseg-t-ade"
NUM_PARAMETERS = 6_183_626
CODE = {
    "configuration_offseg.py",
    "configuration_offset.py",
    "encoder_efficientformer_v2.py",
    "image_operations.py",
    "image_processing_offseg.py",
    "layers.py",
    "modeling_offseg.py",
    "modeling_utils.py",
    "offset_learning.py",
    "pixel_decoder_freqfusion.py",
}


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.fixture(scope="module")
def state_dict(official_state_dict) -> dict[str, torch.Tensor]:
    return official_state_dict(PRESET)


@pytest.fixture(scope="module")
def checkpoint(state_dict, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "offseg-t-ade.pth"
    torch.save({"meta": {}, "state_dict": state_dict}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    """A converted checkpoint; tests only read it."""
    path = tmp_path_factory.mktemp("converted") / PRESET
    convert_checkpoint(checkpoint, PRESET, path)
    return path


def test_training_checkpoint_becomes_a_folder(state_dict, mmengine_checkpoint, tmp_path):
    path = mmengine_checkpoint(state_dict, tmp_path / "iter_160000.pth")
    report = convert_checkpoint(str(path), PRESET, str(tmp_path / "models" / PRESET))

    assert report.output == tmp_path / "models" / PRESET
    assert entries(tmp_path) == {"iter_160000.pth", "models"} and entries(tmp_path / "models") == {PRESET}
    assert entries(report.output) == CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert report.num_parameters == NUM_PARAMETERS
    assert report.used + len(report.dropped) == len(state_dict) and len(report.dropped) == 26

    model = AutoModelForSemanticSegmentation.from_pretrained(report.output)
    ours = model.state_dict()
    assert len(ours) == report.used
    for key, value in state_dict.items():
        if key not in report.dropped:
            assert torch.equal(ours[OFFSEG.rename(key)], value), key
    assert model.config.id2label[0] == "wall" and model.config.label2id["flag"] == 149


def test_processor_has_the_protocol_of_the_preset(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (dict(processor.size), processor.do_reduce_labels) == ({"longest_edge": 2048, "shortest_edge": 512}, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(state_dict, tmp_path, dtype):
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}
    torch.save(half, tmp_path / "half.pth")
    convert_checkpoint(tmp_path / "half.pth", PRESET, tmp_path / "converted")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    assert model.dtype == torch.float32
    expected = half["decode_head.offset_learning.cls_repr"].float()
    assert torch.equal(model.offset_learning.class_representation, expected)


def test_code_is_flat_and_whole(folder):
    """The modules import each other as `from .name import X`, only what is there, and else what transformers needs."""
    source = Path(offseg_hf.__file__).parent / "models"
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (source / path.name).read_bytes()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and (folder / f"{node.module}.py").is_file()
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                allowed = {*sys.stdlib_module_names, "torch", "transformers", "numpy", "PIL", "huggingface_hub"}
                assert {module.split(".")[0] for module in modules} <= allowed, path.name


WITHOUT_OFFSEG_HF = """
import json, sys
sys.modules["offseg_hf"] = None  # importing it fails
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

folder, image, again = sys.argv[1:]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
model, info = AutoModelForSemanticSegmentation.from_pretrained(folder, output_loading_info=True, **trust)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
with torch.no_grad():
    inputs = processor(Image.open(image), return_tensors="pt")
    outputs = model(**inputs)
labels = processor.post_process_semantic_segmentation(outputs, [(60, 80)])[0]
segments = pipeline("image-segmentation", model=folder, **trust)(image)
model.save_pretrained(again)
processor.save_pretrained(again)
print(json.dumps({
    "modules": [type(x).__module__.split(".")[0] for x in (config, model, processor)],
    "problems": sum(map(len, info.values())),
    "labels": labels.tolist(),
    "pixels": {segment["label"]: segment["mask"].histogram()[255] for segment in segments},
}))
"""


def test_the_folder_works_without_the_package(folder, tmp_path):
    """Model, processor and stock pipeline, from the code in the folder, with nobody to answer a question."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (15, 20, 3), generator=generator, dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BILINEAR)
    image.save(tmp_path / "image.png")
    arguments = [str(folder), str(tmp_path / "image.png"), str(tmp_path / "again")]
    process = run_python(WITHOUT_OFFSEG_HF, *arguments, cwd=tmp_path)
    result = json.loads(process.stdout)

    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, [(60, 80)])[0]
    assert result["modules"] == ["transformers_modules"] * 3
    assert result["problems"] == 0
    assert (torch.tensor(result["labels"]) != labels).float().mean() < 0.002  # rounding decides of equal classes
    classes, counts = labels.unique(return_counts=True)
    assert len(classes) > 1
    assert result["pixels"] == {model.config.id2label[int(i)]: int(n) for i, n in zip(classes, counts)}
    assert entries(tmp_path / "again") == entries(folder)


def test_another_preset_is_named(checkpoint, tmp_path):
    for preset in ("offseg-b-ade", "offseg-t-cityscapes"):
        with pytest.raises(CheckpointError) as error:
            convert_checkpoint(checkpoint, preset, tmp_path / "out")
        assert f"expected the weights of {preset}, got those of {PRESET} (" in str(error.value)
        assert str(error.value).endswith("); convert with that preset")
    assert not entries(tmp_path)


@pytest.mark.parametrize("preset", ["offseg-x-ade", "", "OffSeg-T-ADE"])
def test_unknown_presets_are_refused_before_anything(tmp_path, preset):
    with pytest.raises(ValueError, match="unknown preset .*`offseg presets` lists them"):
        convert_checkpoint(tmp_path / "missing.pth", preset, tmp_path / "out")
    assert not entries(tmp_path)


def test_keys_that_do_not_fit_are_listed(state_dict, tmp_path):
    weights = dict(state_dict)
    del weights["backbone.patch_embed.0.bias"]
    weights["decode_head.extra.weight"] = torch.ones(1)
    weights["decode_head.align.conv.weight"] = torch.ones(256, 1, 1, 1)
    torch.save(weights, tmp_path / "edited.pth")
    with pytest.raises(CheckpointError) as error:
        convert_checkpoint(tmp_path / "edited.pth", PRESET, tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path / 'edited.pth'}: expected the weights of {PRESET}, got "
        "1 missing: encoder.stem.conv1.conv.bias; 1 left over: decode_head.extra.weight; 1 mis-shaped: "
        "decode_head.align.conv.weight is float32 (256, 1, 1, 1) instead of float32 (256, 256, 1, 1)"
    )
    assert entries(tmp_path) == {"edited.pth"}


def test_an_existing_folder_is_kept_or_replaced_whole(checkpoint, tmp_path):
    output = tmp_path / "model"
    output.mkdir()
    convert_checkpoint(checkpoint, PRESET, output)  # an empty folder is no loss
    (output / "notes.txt").write_text("mine")
    before = (output / "model.safetensors").stat().st_mtime_ns

    with pytest.raises(FileExistsError, match="model exists and is kept; .*--overwrite"):
        convert_checkpoint(checkpoint, PRESET, output)
    with pytest.raises(CheckpointError):
        convert_checkpoint(checkpoint, "offseg-b-ade", output, overwrite=True)
    assert "notes.txt" in entries(output) and (output / "model.safetensors").stat().st_mtime_ns == before

    convert_checkpoint(checkpoint, PRESET, output, overwrite=True)
    assert "notes.txt" not in entries(output) and (output / "model.safetensors").stat().st_mtime_ns != before
    assert entries(tmp_path) == {"model"}


def test_overwrite_does_not_delete_what_is_no_model(checkpoint, tmp_path):
    for name, files in {
        "photos": ["photo.jpg"],
        "project": ["config.json", "model.safetensors"],
        "clone": [".git/HEAD", "config.json", "model.safetensors"],
    }.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text('{"model_type": "offseg"}' if name == "clone" else "{}")
        with pytest.raises(FileExistsError, match="exists and is kept: only a folder with a model's config.json"):
            convert_checkpoint(checkpoint, PRESET, tmp_path / name, overwrite=True)
        assert all((tmp_path / name / file).is_file() for file in files)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a folder to write into, got a file"):
        convert_checkpoint(checkpoint, PRESET, tmp_path / "file", overwrite=True)
    assert entries(tmp_path) == {"photos", "project", "clone", "file"}


def test_outputs_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected to write .*model, but .*file takes no folder"):
        convert_checkpoint(checkpoint, PRESET, tmp_path / "file" / "model")
    with pytest.raises(OSError, match="takes no folder"):  # not even root may
        convert_checkpoint(checkpoint, PRESET, "/proc/model")


def test_a_failure_while_writing_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offseg_hf.models.image_processing_offseg.OffSegImageProcessor.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(checkpoint, PRESET, tmp_path / "models" / "model")
    assert not entries(tmp_path)


def test_a_linked_output_is_written_where_it_leads(checkpoint, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    convert_checkpoint(checkpoint, PRESET, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and "config.json" in entries(tmp_path / "disk")


def test_script(checkpoint, tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "convert.py"
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    for path, code in ((checkpoint, 0), (tmp_path / "cut.pth", 1)):
        process = run_script(script, path, "--preset", PRESET, "--output", tmp_path / f"out{code}")
        assert process.returncode == code, process.stderr
    assert process.stderr.count("\n") == 1 and "truncated or damaged" in process.stderr
    assert entries(tmp_path) == {"cut.pth", "out0"}


# -- checkpoints of one's own, of the official code and of this package -----------------------------------------------


def of_seven_classes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As if the official code had been trained on 7 classes instead of 150."""
    cuts = {"decode_head.offset_learning.cls_repr": (slice(None), slice(7))}
    cuts |= {f"decode_head.offset_learning.mask_norm.{part}": slice(7) for part in ("weight", "bias")}
    cuts |= {f"decode_head.conv_seg.{part}": slice(7) for part in ("weight", "bias")}
    return {name: tensor[cuts[name]].clone() if name in cuts else tensor for name, tensor in weights.items()}


SEVEN = ("sky", "road", "car", "tree", "wall", "bed", "sea")


@pytest.fixture(scope="module")
def seven(state_dict, tmp_path_factory) -> Path:
    """Trained on seven classes by the official code: mmengine writes their names beside the weights."""
    path = tmp_path_factory.mktemp("seven") / "iter_8000.pth"
    meta = {"dataset_meta": {"classes": SEVEN, "palette": [[0, 0, 0]] * 7}}
    torch.save({"meta": meta, "state_dict": of_seven_classes(state_dict)}, path)
    return path


def test_classes_of_ones_own(seven, state_dict, tmp_path):
    report = convert_checkpoint(seven, PRESET, tmp_path / "named")
    assert report.names == SEVEN and report.used + len(report.dropped) == len(state_dict)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "named")
    assert [model.config.id2label[index] for index in range(7)] == list(SEVEN)
    assert model.config.label2id == {name: index for index, name in enumerate(SEVEN)}
    ours, weights = model.state_dict(), of_seven_classes(state_dict)
    assert all(torch.equal(ours[OFFSEG.rename(key)], weights[key]) for key in weights if key not in report.dropped)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "named")
    assert processor.window_size == 512 and not processor.do_reduce_labels

    report = convert_checkpoint(seven, PRESET, tmp_path / "renamed", num_labels=7, names=list("abcdefg"))
    assert report.names == tuple("abcdefg")


def test_classes_that_nobody_has_named(state_dict, tmp_path):
    torch.save(of_seven_classes(state_dict), tmp_path / "seven.pth")
    report = convert_checkpoint(tmp_path / "seven.pth", PRESET, tmp_path / "out")
    assert report.names == tuple(f"LABEL_{index}" for index in range(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 8}, "expected 7 classes, which its weights have, got 8"),
        ({"names": ["a", "b"]}, "expected 7 names of classes, which its weights have, got 2"),
        ({"names": ["a"] * 7}, "expected different names of classes, got a, a"),
    ],
)
def test_classes_that_the_weights_do_not_have(seven, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(seven, PRESET, tmp_path / "out", **options)
    assert not entries(tmp_path)


def test_what_the_matter_probably_is(seven, state_dict, folder, tmp_path):
    def error(weights, preset: str = PRESET) -> str:
        if not isinstance(weights, Path):
            torch.save(weights, tmp_path / "weights.pth")
            weights = tmp_path / "weights.pth"
        with pytest.raises(CheckpointError) as caught:
            convert_checkpoint(weights, preset, tmp_path / "out")
        return str(caught.value).removeprefix(f"{weights}: ")

    for converted in (folder / "model.safetensors", load_file_of(folder)):
        expected = (
            "expected a checkpoint of the official code, got weights under offseg_hf's names: they are converted"
        )
        assert error(converted).startswith(expected)
    assert error(seven, "offseg-b-ade") == (
        f"expected the weights of offseg-b-ade, got those of {PRESET} for 7 classes instead of 150; convert with that "
        "preset"
    )
    encoder = {name.removeprefix("backbone."): value for name, value in state_dict.items() if "backbone." in name}
    assert "got those of EfficientFormerV2 of its authors, which are none of a whole model" in error(encoder)


def load_file_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("wrap", ["model.", "module._orig_mod.", "_orig_mod.module.", "student.model.", "module."])
def test_names_within_wrappers(state_dict, tmp_path, wrap):
    """Whatever the model lay in when it was saved, also beside the optimizer and an average."""
    wrapped = {f"{wrap}{name}": tensor for name, tensor in state_dict.items()}
    average = {"steps": torch.tensor(5)} | {name: torch.zeros_like(tensor) for name, tensor in wrapped.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    torch.save({"model": wrapped, "model_ema": average, "optimizer": optimizer}, tmp_path / "wrapped.pth")
    report = convert_checkpoint(tmp_path / "wrapped.pth", PRESET, tmp_path / "out")
    assert report.left_aside == ("model_ema",) and report.used + len(report.dropped) == len(state_dict)
    ours = load_file_of(tmp_path / "out")
    assert torch.equal(ours["pixel_decoder.output_conv.conv.weight"], state_dict["decode_head.align.conv.weight"])


def test_names_from_the_command_line(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    (tmp_path / "names.txt").write_text("\ufeffsky\n\nroad\n", encoding="utf-8")
    for text in (str(tmp_path / "classes.json"), str(tmp_path / "names.txt"), "sky, road"):
        assert read_names(text) == ("sky", "road")
    assert len(read_names("ade")) == 150
    with pytest.raises(ValueError, match="expected a file with names of classes, or names with commas"):
        read_names("sky,,road")
