"""The `offseg` command as a user meets it: in a process of its own, with its output, errors and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner

from offseg_hf.cli.console import command, stdout
from offseg_hf.data.scenes.folder import write_scenes
from offseg_hf.data.scenes.street import SCENE_LABELS, render_scene
from offseg_hf.training.recipe import load_recipe
from offseg_hf.zoo.presets import PRESETS
from tests.parity.fill import official_state_dict
from tests.processes import run_python
from tests.small_model import save_small_model


OFFSEG = Path(sys.executable).with_name("offseg")
# Wide, without colours, and never on the network.
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


MAIN = "from offseg_hf.cli import main; main()"  # what the script of that name does


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


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "segformer")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        render_scene(seed, (60, 40))[0].save(folder / f"{seed}.png")
    return folder


# -- the command ------------------------------------------------------------------------------------------------------


def test_version_and_help():
    result = subprocess.run([OFFSEG, "--version"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("offseg-hf ")
    result = offseg("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("convert", "segment", "presets"))


def test_help_and_presets_do_without_torch():
    """Importing torch takes seconds."""
    code = (
        "import sys; sys.argv = ['offseg', 'presets']\n"
        "from offseg_hf.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_presets():
    result = offseg("presets", COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {words[0]: words for words in map(str.split, result.stdout.splitlines()) if words and words[0] in PRESETS}
    assert list(rows) == list(PRESETS)
    assert rows["offseg-b-cityscapes"][1:] == ["12.88", "M", "19", "2048x1024", "1024/768"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "a.jpg", "--model", "m"],
        ["segment", "--model", "m", "--output", "o"],
        ["segment", "a.jpg", "--model", "m", "--output", "o", "--opacity", "2"],
        ["segment", "a.jpg", "--model", "m", "--output", "o", "--dtype", "int8"],
        ["convert", "a.pth", "--output", "o"],
        ["paint"],
    ],
)
def test_wrong_usage(arguments):
    result = offseg(*arguments)
    assert result.returncode == 2
    assert result.stdout == "" and "Usage: offseg" in result.stderr and "Traceback" not in result.stderr


# -- what all commands share, in this process -------------------------------------------------------------------------


def invoke(function, *arguments: str, **settings):
    """The outcome of a command that does what `function` does."""
    commands = typer.Typer(pretty_exceptions_enable=False)
    commands.callback()(lambda: None)
    command(commands)(function)
    return CliRunner().invoke(commands, [function.__name__, *arguments], env={"COLUMNS": "80"}, **settings)


def test_reasons_are_told_whole():
    """Also those of several lines, and those that no one has foreseen."""
    errors = {
        "a: 1\nb: 2": ValueError("a: 1\nb: 2"),
        "RuntimeError: first second (OFFSEG_DEBUG=1 shows where)": RuntimeError("first\n  second"),
        "KeyError: 'stage5' (OFFSEG_DEBUG=1 shows where)": KeyError("stage5"),
        "AssertionError: AssertionError (OFFSEG_DEBUG=1 shows where)": AssertionError(),
        "ValueError: ValueError (OFFSEG_DEBUG=1 shows where)": ValueError(),
    }
    for expected, error in errors.items():

        def fail(raised=error) -> None:
            raise raised

        def failing() -> None:
            fail()

        result = invoke(failing)
        assert (result.exit_code, result.stderr) == (1, f"error: {expected}\n")


def test_tables_in_a_pipe_are_whole():
    """Whatever COLUMNS says: nobody sees where such a line ends."""

    def show() -> None:
        table = Table("class", "value")
        table.add_row("a name of a class that is longer than a terminal is wide " * 3, "of the same length " * 5)
        stdout.print(table)

    text = invoke(show).stdout
    assert "…" not in text and "a name of a class that is longer than a terminal is wide " * 3 in text


def test_a_tilde_is_home_wherever_it_stands(tmp_path, monkeypatch):
    """No shell makes that of `--output=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []

    def take(
        source: str,
        rest: Annotated[list[str], typer.Argument()],
        output: Annotated[Path, typer.Option()],
        name: Annotated[str, typer.Option()] = "a~b",
    ) -> None:
        seen.extend([source, *rest, output, name])

    result = invoke(take, "~/photos", "~/a.jpg", "b.jpg", "--output=~/out")
    assert result.exit_code == 0, result.stderr
    assert seen == [f"{tmp_path}/photos", f"{tmp_path}/a.jpg", "b.jpg", tmp_path / "out", "a~b"]


# -- convert: the conversion itself is tested in tests/conversion -----------------------------------------------------


def test_convert_and_segment(photos, tmp_path):
    """From an official checkpoint to the label map of a photo."""
    torch.save({"meta": {}, "state_dict": official_state_dict("offseg-t-ade")}, tmp_path / "official.pth")
    model = tmp_path / "model"
    result = offseg("convert", tmp_path / "official.pth", "--preset", "offseg-t-ade", "--output", model)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith(f"{model}: offseg-t-ade, 6,183,626 parameters, from ")
    assert "dropped decode_head.conv_seg.weight" in result.stdout.splitlines()

    result = offseg("segment", photos / "0.png", "--model", model, "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert Image.open(tmp_path / "out" / "0_labels.png").size == (60, 40)


def test_convert_errors_are_one_line(tmp_path):
    checkpoint, output = tmp_path / "none.pth", tmp_path / "out"
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade20k", "--output", output)
    assert_one_line(result, "unknown preset 'offseg-t-ade20k' (did you mean offseg-t-ade?)", *PRESETS)
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(checkpoint))
    assert not output.exists()

    checkpoint.write_bytes(b"PK\x03\x04 and then the connection broke")
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(checkpoint))
    assert not output.exists()

    output.mkdir()
    (output / "mine.txt").write_text("mine")
    result = offseg("convert", checkpoint, "--preset", "offseg-t-ade", "--output", output)
    assert_one_line(result, str(output))
    assert os.listdir(output) == ["mine.txt"]


# -- segment ----------------------------------------------------------------------------------------------------------


def test_segment(photos, model, tmp_path):
    output = tmp_path / "out"
    result = offseg("segment", photos, "--model", model, "--output", output, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"2 of 2 segmented, see {output}\n"
    suffixes = ("classes.json", "labels.png", "overlay.png")
    assert sorted(os.listdir(output)) == [f"{seed}_{suffix}" for seed in range(2) for suffix in suffixes]
    assert json.loads((output / "0_classes.json").read_text())["file"] == str(photos / "0.png")


def test_one_broken_among_many(photos, model, tmp_path):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:300])
    (photos / "nan.tif").parent.mkdir(exist_ok=True)
    Image.new("F", (8, 8), float("nan")).save(photos / "nan.tif")
    output = tmp_path / "out"
    inputs = [photos, photos / "missing.jpg", photos / "*.webp"]
    result = offseg("segment", *inputs, "--model", model, "--output", output)
    assert result.returncode == 1
    assert result.stdout == f"1 of 5 segmented, see {output}\n"
    lines = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        str(photos / name) for name in ("missing.jpg", "*.webp", "1.png", "nan.tif")
    ]
    assert lines[0].endswith("no such file or folder")
    assert "cannot be read as an image" in lines[2]
    assert "NaN" in lines[3]
    assert len(os.listdir(output)) == 3


def test_existing_outputs_are_kept(photos, model, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "0_labels.png").write_text("mine")
    arguments = ["segment", photos / "0.png", "--model", model, "--output", output]
    result = offseg(*arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("kept: ") and str(output / "0_labels.png") in line and "--overwrite" in line
    assert (output / "0_labels.png").read_text() == "mine"
    assert offseg(*arguments, "--overwrite").returncode == 0
    assert Image.open(output / "0_labels.png").size == (60, 40)


def test_bad_inputs_are_one_line(photos, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    for name, message in {
        "none.jpg": "no such file or folder",
        "*.bmp": "no image matches this pattern",
        "empty": "no images in this folder",
        "text.jpg": "cannot be read as an image",
    }.items():
        output = tmp_path / "out"
        result = offseg("segment", tmp_path / name, "--model", model, "--output", output)
        assert_one_line(result, str(tmp_path / name), message)
        assert not output.exists() or not os.listdir(output)


def test_bad_models_are_one_line(photos, model, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for name, message in {
        photos: "has no config.json",
        photos / "0.png": "is not the folder of a model",
        tmp_path / "nowhere": "no such folder",
        "nobody/nothing": "no such folder, and offline mode is on (HF_HUB_OFFLINE)",
        tmp_path: "cannot load a segmentation model",
    }.items():
        result = offseg("segment", photos / "0.png", "--model", name, "--output", tmp_path / "out")
        assert_one_line(result, str(name), message)


def test_outputs_that_cannot_be_written(photos, model, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for output, reason in {file: "it is a file", file / "out": "Not a directory"}.items():
        result = offseg("segment", photos, "--model", model, "--output", output)
        assert_one_line(result, f"cannot write to the folder {output}: {reason}")
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(photos, model, tmp_path):
    tmp_path.chmod(0o500)
    result = offseg("segment", photos, "--model", model, "--output", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert_one_line(result, "Permission denied")


def test_device_and_traceback(photos, model, tmp_path):
    arguments = ["segment", photos, "--model", model, "--output", tmp_path / "out", "--device", "tpu9"]
    assert_one_line(offseg(*arguments), "cannot use the device 'tpu9'")
    result = offseg(*arguments, OFFSEG_DEBUG="1")
    assert result.returncode == 1 and "Traceback" in result.stderr


# The command in a process of its own, whose stderr is a terminal: what is drawn there, with its exit code.
ON_A_TERMINAL = f"""
import os, pty, sys
terminal, stderr = pty.openpty()
command = os.fork()
if not command:
    os.dup2(stderr, 2)
    os.close(terminal)
    {MAIN}
os.close(stderr)
try:
    while chunk := os.read(terminal, 4096):
        os.write(1, chunk)
except OSError:  # how Linux says that the other end is closed
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_progress_is_for_terminals(photos, model, tmp_path):
    """On a terminal a bar is drawn; elsewhere (test_segment) nothing."""
    arguments = ["segment", photos, "--model", model, "--output", tmp_path / "out"]
    process = run_python(ON_A_TERMINAL, *arguments, COLUMNS="200", NO_COLOR="1", TERM="xterm")
    assert "2/2" in process.stdout and "━" in process.stdout


# The same, which gets Ctrl-C when its first output is there. A job in the background of a shell ignores Ctrl-C, and so
# do its children: the tests may be such a job.
INTERRUPTED = f"""
import os, signal, sys, time
from pathlib import Path
command = os.fork()
if not command:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {MAIN}
deadline = time.monotonic() + 120
while not list(Path(sys.argv[-1]).glob("*_classes.json")) and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(command, signal.SIGINT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_interrupt(model, tmp_path):
    """Ctrl-C: exit code 130, one line, and every output that is there is whole."""
    render_scene(0, (240, 160))[0].save(tmp_path / "000.jpg")
    for index in range(1, 400):
        os.link(tmp_path / "000.jpg", tmp_path / f"{index:03}.jpg")
    output = tmp_path / "out"
    arguments = ["segment", tmp_path, "--model", model, "--output", output]
    process = run_python(INTERRUPTED, *arguments, check=False, COLUMNS="200", NO_COLOR="1")
    assert (process.returncode, process.stderr) == (130, "interrupted\n")
    files = os.listdir(output)
    assert 0 < len(files) < 1200 and len(files) % 3 == 0
    for name in files:
        if name.endswith(".png"):
            Image.open(output / name).load()
        else:
            json.loads((output / name).read_text())


def test_data_check_proposes_class_weights(tmp_path):
    """As a recipe takes them."""
    write_scenes(tmp_path / "scenes", train=3, val=0, size=(96, 64))
    result = offseg("data", "check", tmp_path / "scenes", "--split", "train", "--stats")
    assert result.returncode == 0, result.stderr
    (setting,) = re.findall(r"^semantic_loss_class_weights: (\[.*\])$", result.stdout, re.MULTILINE)
    recipe = load_recipe("offseg-t-ade", [f"model.config.semantic_loss_class_weights={setting}"])
    weights = recipe.model_config().semantic_loss_class_weights
    assert len(weights) == len(SCENE_LABELS) and 0 < min(weights) < 1 < max(weights)
