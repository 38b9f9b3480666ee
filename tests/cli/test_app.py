"""The command as a whole: help, names of commands, wrong usage."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner, Result

from offseg_hf.cli import app
from offseg_hf.zoo.presets import PRESETS
from tests.cli.running import OFFSEG, offseg


# Wide, without colors, and never on the network.
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
USERS = ("segment", "train", "evaluate", "presets", "recipe", "push", "env", "data")
MAINTAINERS = ("convert", "publish")


def test_version():
    result = subprocess.run([OFFSEG, "--version"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("offseg-hf ")


def in_this_process(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="offseg", env={"COLUMNS": "80"})


def test_help_lists_users_commands_first():
    result = offseg("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == offseg("-h").stdout
    places = [result.stdout.index(f"│ {name} ") for name in (*USERS, *MAINTAINERS)]
    assert places == sorted(places)
    assert places[len(USERS) - 1] < result.stdout.index("For maintainers") < places[len(USERS)]
    assert "--install-completion" in result.stdout


@pytest.mark.parametrize(
    "name", [(name,) for name in (*USERS, *MAINTAINERS)] + [("data", name) for name in ("check", "push", "scenes")]
)
def test_help_of_a_command(name):
    """Paragraphs that wrap where the terminal ends, no types beside flags, and three examples at least."""
    result = in_this_process(*name, "-h")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == in_this_process(*name, "--help").stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "<bool>" not in result.stdout and max(map(len, lines)) <= 80
    examples = [line for line in lines[lines.index("Examples:") + 1 :] if line]
    assert len(examples) >= 3 and all("offseg " in example for example in examples)
    about = lines[: next(place for place, line in enumerate(lines) if line.startswith("╭"))]
    for line, following in pairwise(about):
        if line and following:
            assert len(f"{line} {following.split()[0]}") > 78, "a line that ends before the terminal does"


def test_help_and_presets_do_without_torch():
    """Importing torch takes seconds."""
    code = (
        "import sys; sys.argv = ['offseg', 'presets']\n"
        "from offseg_command import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_leave_the_processor_to_others_unless_the_user_says(own, expected):
    code = (
        "import os, sys; sys.argv = ['offseg', 'presets']\n"
        "from offseg_command import main\n"
        "try: main()\n"
        "except SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | own)
    assert result.stdout.splitlines()[-1] == expected, result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("offseg ev", ["evaluate"]),
        ("offseg data ch", ["check"]),
        ("offseg train segnext-t", [name for name in PRESETS if name.startswith("segnext-t")]),
        ("offseg convert a.pth --preset mask2f", ["mask2former-swin-t-offset-ade"]),
    ],
)
def test_completion_in_bash(words, expected):
    place = str(len(words.split()) - 1)
    result = offseg(_OFFSEG_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=place)
    assert result.stdout.split() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "a.jpg"], "unknown command 'predict' (did you mean segment?): `offseg --help` lists them"),
        (["val"], "'val' (did you mean evaluate?)"),
        (["test"], "'test' (did you mean evaluate?)"),
        (["eval"], "'eval' (did you mean evaluate?)"),
        (["fit"], "'fit' (did you mean train?)"),
        (["segmnet", "--model", "m"], "'segmnet' (did you mean segment?)"),
        (["data", "chek"], "'chek' (did you mean check?): `offseg data --help` lists them"),
        (["zzz"], "unknown command 'zzz': `offseg --help` lists them"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(arguments, message):
    result = in_this_process(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "a.jpg", "--model", "m"],
        ["segment", "--model", "m", "--output", "o"],
        ["segment", "a.jpg", "--model", "m", "--output", "o", "--opacity", "2"],
        ["segment", "a.jpg", "--model", "m", "--output", "o", "--dtype", "int8"],
        ["convert", "a.pth", "--output", "o"],
        ["data", "scenes"],
    ],
)
def test_wrong_usage(arguments):
    result = offseg(*arguments)
    assert result.returncode == 2
    assert result.stdout == "" and "Usage: offseg" in result.stderr and "Traceback" not in result.stderr
