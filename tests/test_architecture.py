"""The layout holds: imports point down only, without circles, and what is pushed to the Hub is fit for it."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "offseg_hf"

# Rooms, floor by floor. A room is a module or a package; it imports from floors below its own only. The package itself
# (`offseg_hf`, its public names and the registration with the Auto classes) is the room "".
FLOORS = [
    [
        "models.layers",
        "models.configuration_offset",
        "models.image_operations",
        "data.labels",
        "hub_errors",
        "run_folder",
    ],
    ["models.offset_learning", "models.encoder_*", "models.pixel_decoder_*", "models.configuration_*"],
    ["models.modeling_utils"],
    ["models.offset_classifier", "models.mask_prediction"],
    ["models.modeling_*", "models.image_processing_offseg"],
    ["models.image_processing_offset_*", "pipeline"],
    ["", "data", "presets"],
    ["conversion", "metrics", "visualization", "adaptation_smp"],
    ["adaptation", "hub", "benchmark", "segmentation"],
    ["evaluation"],
    ["training"],
    ["cli"],
    ["scripts"],
]
HUB_LIBRARIES = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}  # what transformers works with
CONFIGURATION_LIBRARIES = {"transformers", "huggingface_hub"}
PACKAGE_OF_DISTRIBUTION = {"pillow": "PIL", "pyyaml": "yaml"}


def read_tree() -> dict[str, str]:
    """Module name below offseg_hf ("" is the package itself, "scripts.x" a script) -> source."""
    tree = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        tree[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return tree | {f"scripts.{path.stem}": path.read_text() for path in (ROOT / "scripts").glob("*.py")}


def absolute(module: str, node: ast.ImportFrom, is_package: bool) -> str:
    """The module that `from ... import` names, as seen from `module` of the package."""
    if node.level == 0:
        return node.module
    package = ["offseg_hf", *filter(None, module.split("."))]
    package = package[: len(package) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(module: str, tree: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Every module that `module` imports, and whether it does so on being imported itself."""
    is_package = module == "" or any(name.startswith(f"{module}.") for name in tree)
    body = ast.parse(tree[module])
    deferred = {
        child
        for node in ast.walk(body)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for child in ast.walk(node)
    }
    for node in ast.walk(body):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node, is_package)
            for alias in node.names:  # `from package import module` imports the module
                name = f"{source}.{alias.name}"
                yield (name if name.removeprefix("offseg_hf.") in tree else source), node not in deferred


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def own_imports(module: str, tree: dict[str, str]) -> dict[str, bool]:
    """Modules of the package that `module` imports -> whether at its own import (of several, the first counts)."""
    found = {}
    for name, at_import in imports(module, tree):
        top, _, below = name.partition(".")
        if top == "offseg_hf":
            found[below] = found.get(below, False) or at_import
    return found


def room(module: str) -> tuple[int, str] | None:
    """(floor, pattern) of the most precise room that `module` is in; None if it has none."""
    found = [
        (floor, pattern)
        for floor, patterns in enumerate(FLOORS)
        for pattern in patterns
        if fnmatch(module, pattern) or (pattern and module.startswith(f"{pattern}."))
    ]
    return max(found, key=lambda place: len(place[1]), default=None)


def misplaced(tree: dict[str, str]) -> list[str]:
    """Modules without a room, and imports that do not point down."""
    problems = []
    for module in sorted(tree.keys() - {"models"}):
        here = room(module)
        if here is None:
            problems.append(f"{module} has no room: give it one in FLOORS")
            continue
        for imported in own_imports(module, tree):
            there = room(imported)
            same_room = there == here and "*" not in here[1]
            if there is None or (there[0] >= here[0] and not same_room):
                problems.append(f"{module} (floor {here[0]}) imports {imported} (floor {there and there[0]})")
            elif here[1] == "models.configuration_*" and imported != "models.configuration_offset":
                problems.append(f"{module} imports {imported}: a configuration is read, it reads nothing of ours")
    return problems


def circles(tree: dict[str, str]) -> list[str]:
    """Chains of modules that import each other on being imported."""
    graph = {
        module: [name for name, now in own_imports(module, tree).items() if now and name in tree] for module in tree
    }
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for imported in graph[module]:
                # A package that gathers the names of its modules is no circle: they never ask it for any.
                if imported != module and imported != "":
                    visit(imported, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def unfit_for_hub(folder: Path) -> list[str]:
    """What the Hub's loader could not copy, find or install, by its own scan of the files."""
    problems = []
    for path in sorted(folder.glob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        allowed = CONFIGURATION_LIBRARIES if path.name.startswith("configuration_") else HUB_LIBRARIES
        for library in sorted(set(get_imports(path)) - allowed - set(sys.stdlib_module_names)):
            problems.append(f"{path.name} imports {library}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and (node.level > 1 or not node.module):
                problems.append(f"{path.name}:{node.lineno} must be `from .name import X`")
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance":
                if "Config" in ast.unparse(node.args[1]):
                    problems.append(
                        f"{path.name}:{node.lineno} compares classes of configs: on the Hub they have twins"
                    )
        written = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        for name in get_relative_imports(path):
            if name not in written:
                problems.append(f"{path.name} seems to import .{name}: the scan reads docstrings too")
            elif not (folder / f"{name}.py").is_file():
                problems.append(f"{path.name} imports .{name}, which is not in the folder")
    return problems


def test_imports_point_down():
    assert misplaced(read_tree()) == []


def test_no_circular_imports():
    assert circles(read_tree()) == []


def test_models_are_fit_for_the_hub():
    assert unfit_for_hub(SOURCE / "models") == []


ENTRIES = [path.name for kind in ("modeling", "image_processing") for path in (SOURCE / "models").glob(f"{kind}_*.py")]


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_models_are_flat(entry):
    files = get_relative_import_files(SOURCE / "models" / entry)
    assert files and {Path(file).parent for file in files} == {SOURCE / "models"}
    assert not [path for path in (SOURCE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_every_library_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {dependency.split(">")[0].split("[")[0] for dependency in project["dependencies"]}
    declared = {PACKAGE_OF_DISTRIBUTION.get(name, name) for name in declared}
    tree = read_tree()
    used = {
        name.split(".")[0] for module in tree if not module.startswith("scripts.") for name, _ in imports(module, tree)
    }
    used -= {"offseg_hf", *sys.stdlib_module_names}
    assert used == declared


def test_every_package_is_installed():
    """The list is written out because the recipes and the cards lie outside of `src`."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    roots = {path.parent: SOURCE for path in SOURCE.rglob("*.py")}
    roots |= {path.parent: ROOT for path in (ROOT / "configs").rglob("*.yaml")}
    roots |= {path.parent: ROOT for path in (ROOT / "model_cards").glob("*.yaml")}
    names = {".".join(("offseg_hf", *folder.relative_to(root).parts)) for folder, root in roots.items()}
    assert names == set(packages)


@pytest.mark.parametrize(
    "tree",
    [
        {"models.layers": "from .offset_learning import OffsetLearning", "models.offset_learning": ""},  # up
        {"models.encoder_a": "from .encoder_b import B", "models.encoder_b": ""},  # sideways
        {"models.encoder_a": "from offseg_hf.models.configuration_a import A", "models.configuration_a": ""},
        {"models.configuration_a": "from .layers import fuse", "models.layers": ""},
        {"models.modeling_a": "def f():\n    from offseg_hf.conversion import convert", "conversion": ""},  # deferred
        {"data.labels": "if TYPE_CHECKING:\n    import offseg_hf.presets", "presets": ""},
        {"presets": "from offseg_hf import cli", "cli": "", "": ""},
        {"presets": "from . import cli", "cli": "", "": ""},
        {"visualization": "from .conversion.keys import fit", "conversion": "", "conversion.keys": ""},
        {"models.surprise": ""},  # no room
        {"attic": ""},
    ],
)
def test_wrong_imports_are_found(tree):
    assert misplaced(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"conversion": "from .keys import fit", "conversion.keys": "from ..presets import P", "presets": ""},
        {"cli": "def f():\n    from offseg_hf.segmentation import segment", "segmentation": ""},
        {"scripts.demo": "import offseg_hf", "": ""},
        {"visualization": "from .data.labels import LABEL_SETS", "data.labels": "import json", "data": ""},
    ],
)
def test_right_imports_pass(tree):
    assert misplaced(tree) == []


def test_circles_are_found():
    tree = {"conversion.a": "from .b import B", "conversion.b": "from offseg_hf.conversion import c"}
    assert circles(tree | {"conversion.c": "", "conversion": ""}) == []
    assert circles(tree | {"conversion.c": "from .a import A", "conversion": ""})
    assert circles(tree | {"conversion.c": "def f():\n    from .a import A", "conversion": ""}) == []


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
