"""The environment of a training: what its launcher was told, and a record for who reads its results later."""

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast, get_args

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from offseg_hf.evaluation.outputs import write_json
from offseg_hf.evaluation.report import environment
from offseg_hf.hub.training_card import ENVIRONMENT_FILE
from offseg_hf.training.recipe import Precision


TRUE = ("1", "true", "t", "yes", "y", "on")
# What `accelerate launch` sets for ways of training that this one does not know.
UNKNOWN_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def check_launcher(environment: Mapping[str, str]) -> None:
    """Raise ValueError if `accelerate launch`, or an environment variable, asks for what would not be done."""
    for name, way in UNKNOWN_WAYS.items():
        if environment.get(name, "").lower() in TRUE:
            raise ValueError(f"{name}={environment[name]}: {way} is not supported here; launch without it")
    if environment.get("ACCELERATE_USE_SAGEMAKER", "").lower() in TRUE:
        kind = environment.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "no")
        if kind.lower() != "no":
            raise ValueError(f"ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE={kind}: not supported here; launch without it")
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise ValueError(
            f"ACCELERATE_DYNAMO_BACKEND={backend}: the recipe says whether the model is compiled "
            "(training.compile=true); launch without it (--dynamo_backend no)"
        )


def launcher_notes(environment: Mapping[str, str]) -> list[str]:
    """Say what is set and not done here, because the recipe does it."""
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps in ("", "1"):
        return []
    return [f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} is left out: training.device_batch_size accumulates"]


def mixed_precision(wanted: Precision | None, environment: Mapping[str, str]) -> Precision:
    """Choose the recipe's precision; if it says none, that of the launcher, which says "no" unless it is told.

    Raises ValueError where the two differ.
    """
    launched = launched_precision(environment) or "no"
    known = get_args(Precision)
    if launched not in known:
        raise ValueError(f"ACCELERATE_MIXED_PRECISION: expected one of {', '.join(known)}, got {launched}")
    if wanted is not None and launched not in ("no", wanted):
        raise ValueError(
            f"training.mixed_precision={wanted} differs from what accelerate was launched with, {launched} "
            "(ACCELERATE_MIXED_PRECISION): leave out one of the two"
        )
    return wanted or cast(Precision, launched)


def launched_precision(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the precision that the launcher was told, if it is another than float32."""
    launched = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    return None if launched == "no" else launched


def make_accelerator(precision: str, tracker: str | None, output: Path) -> Accelerator:
    """Make the accelerator of a training; gradients are accumulated by the training alone.

    Raises ValueError for fp16 on a CPU, which would be float32.
    """
    once = GradientAccumulationPlugin(num_steps=1)  # or ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide gradients
    accelerator = Accelerator(
        # Without being told, accelerate takes several processes on CPUs, as of torchrun, for as many single ones.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=tracker,
        project_dir=output,
        gradient_accumulation_plugin=once,
    )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.mixed_precision=fp16 needs a GPU, got a CPU: take bf16 or no")
    return accelerator


def write_environment(folder: Path, accelerator: Accelerator) -> None:
    """Write `environment.json`: versions, device, processes, git commit, and when the training began.

    Of a training that goes on, `started` stays and the rest is of now.
    """
    path = folder / ENVIRONMENT_FILE
    facts = environment(accelerator.device, accelerator.num_processes)
    facts |= {"accelerate": accelerate.__version__, "git_commit": git_commit()}
    facts["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    if path.is_file():
        facts["started"] = json.loads(path.read_text(encoding="utf-8"))["started"]
    write_json(path, facts)


def git_commit() -> str | None:
    """Return the commit of the working directory, with `-dirty` if files differ from it; None outside of git."""
    command = ("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit in it, or one that takes too long
        return None
