"""The `offseg` command as a user meets it: in a process of its own, with its output, errors and exit codes."""

import subprocess
import sys
from pathlib import Path

from tests.processes import run_python


OFFSEG = Path(sys.executable).with_name("offseg")
MAIN = "from offseg_command import main; main()"  # what the script of that name does


def offseg(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    settings = {"COLUMNS": "200", "NO_COLOR": "1"} | environment
    return run_python(MAIN, *arguments, name=str(OFFSEG), check=False, **settings)


def assert_one_line(result: subprocess.CompletedProcess, *parts: str) -> None:
    """Exit code 1 and one line on stderr, which has all the parts."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
