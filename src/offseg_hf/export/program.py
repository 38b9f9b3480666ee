"""A network as a program of PyTorch, as it was traced or compiled for this machine's processor."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from offseg_hf.export.trace import quiet


FACTS = "offseg_hf.json"


def write_program(program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """Write a traced network as PyTorch loads it, with `facts` as one more file in it."""
    torch.export.save(program, path, extra_files={FACTS: json.dumps(dict(facts))})


def compile_program(program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """Write a traced network compiled by AOTInductor, with `facts` as metadata.

    Raises:
        ValueError: where there is no C++ compiler.
    """
    import torch._inductor

    if shutil.which("g++") is None:
        raise ValueError("the format aotinductor needs the compiler g++, which is not installed")
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(facts)}
        )
