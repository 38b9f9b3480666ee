"""What `from offseg_hf import ...` gives is what type checkers are told."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import offseg_hf


def test_checkers_see_what_there_is():
    tree = ast.parse(Path(offseg_hf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert {*told, "register"} == set(offseg_hf.__all__)
    for name, module in told.items():
        assert getattr(offseg_hf, name) is getattr(import_module(module), name)


def test_the_metric_is_where_it_was():
    assert import_module("offseg_hf.metrics").MEAN_IOU_SCRIPT == offseg_hf.MEAN_IOU_SCRIPT


@pytest.mark.parametrize(("first", "registered"), [("", True), ("import offseg_command; ", False)])
def test_import_registers_the_models_but_for_the_command(first, registered):
    """Whatever the program is called."""
    script = (
        f"import sys; sys.argv = ['offseg']; {first}import offseg_hf; print('transformers' in sys.modules); "
        "offseg_hf.OffSegConfig; from transformers import CONFIG_MAPPING; print('offseg' in CONFIG_MAPPING)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(registered), "True"]
