"""What goes to the Hub beside a model's weights is fit for it: flat, whole, and without the package."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports


MODELS = Path(__file__).parents[2] / "src" / "offseg_hf" / "models"
HUB_LIBRARIES = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}  # what transformers works with
CONFIGURATION_LIBRARIES = {"transformers", "huggingface_hub"}
MOST_FILES = 10  # with a model


def unfit_for_hub(folder: Path) -> list[str]:
    """What the Hub's loader could not copy, find or install, by its own scan of the files."""
    problems = []
    for path in sorted(folder.glob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        allowed = CONFIGURATION_LIBRARIES if path.name.startswith("configuration_") else HUB_LIBRARIES
        foreign = sorted(set(get_imports(path)) - allowed - set(sys.stdlib_module_names))
        problems += [f"{path.name} imports {library}" for library in foreign]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and (node.level > 1 or not node.module):
                problems.append(f"{path.name}:{node.lineno} must be `from .name import X`")
            is_check = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance"
            if is_check and "Config" in ast.unparse(node.args[1]):
                problems.append(f"{path.name}:{node.lineno} compares classes of configs: on the Hub they have twins")
        written = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        for name in get_relative_imports(path):
            if name not in written:
                problems.append(f"{path.name} seems to import .{name}: the scan reads docstrings too")
            elif not (folder / f"{name}.py").is_file():
                problems.append(f"{path.name} imports .{name}, which is not in the folder")
    return problems


def test_models_are_fit_for_the_hub():
    assert unfit_for_hub(MODELS) == []


ENTRIES = [path.name for kind in ("modeling", "image_processing") for path in (MODELS).glob(f"{kind}_*.py")]


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_models_are_flat(entry):
    files = get_relative_import_files(MODELS / entry)
    assert files and {Path(file).parent for file in files} == {MODELS}
    assert not [path for path in (MODELS).iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize(
    "entries",
    [
        ("modeling_offseg.py", "image_processing_offseg.py"),
        ("modeling_offset_segformer.py", "image_processing_offseg.py"),
        ("modeling_offset_segnext.py", "image_processing_offseg.py"),
        ("modeling_offset_mask2former.py", "image_processing_offset_mask2former.py"),
    ],
)
def test_a_model_brings_few_files(entries):
    files = {Path(file).name for entry in entries for file in get_relative_import_files(MODELS / entry)}
    assert len(files | set(entries)) <= MOST_FILES


@pytest.mark.parametrize(
    "source",
    [
        "from . import other",
        "from .sub.other import X",
        "from ..other import X",
        "from .missing import X",
        "from offseg_hf.models.other import X",
        "import timm",
        '"""\n    from .other import X\n"""',
        "if TYPE_CHECKING:\n    import scipy",
        "def f(config):\n    return isinstance(config, OtherConfig)",
        "def f(config):\n    return isinstance(config, (A, configuration.OtherConfig))",
    ],
)
def test_unfit_for_the_hub_is_found(tmp_path, source):
    (tmp_path / "other.py").write_text("X = 1")
    (tmp_path / "modeling_x.py").write_text("import torch\nfrom .other import X\n")
    assert unfit_for_hub(tmp_path) == []
    (tmp_path / "modeling_x.py").write_text(source)
    assert unfit_for_hub(tmp_path)
