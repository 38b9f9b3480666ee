"""What a training ran in, for who reads its results later."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import accelerate
from accelerate import Accelerator

from offseg_hf.evaluation.outputs import write_json
from offseg_hf.evaluation.report import environment
from offseg_hf.run_folder import ENVIRONMENT_FILE


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
    """The commit that the working directory is at, with `-dirty` if files differ from it; None outside of git."""
    command = ("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit in it, or one that takes too long
        return None
