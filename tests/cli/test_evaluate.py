"""`offseg evaluate`: the evaluation itself is tested in tests/evaluation."""

import json

import pytest

from offseg_hf.data.scenes.folder import write_scenes
from tests.cli.running import assert_one_line, offseg


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=0, val=2, size=(96, 64))
    return folder


@pytest.mark.parametrize(("data", "output"), [("--data", "--output"), ("--dataset", "--save-dir")])
def test_evaluate(model, scenes, tmp_path, data, output):
    """By today's names of its options, and by those of yesterday."""
    folder = tmp_path / "out"
    arguments = ["evaluate", "--model", model, data, scenes, output, folder, "--workers", "0", "--device", "cpu"]
    result = offseg(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"written: {folder}"
    report = json.loads((folder / "evaluation.json").read_text())
    assert f"mIoU {100 * report['metrics']['mIoU']:.2f}" in result.stdout


def test_comparison_and_report_again(model, scenes, tmp_path):
    arguments = ("evaluate", "--model", model, "--data", scenes, "--workers", "0", "--device", "cpu", "--output")
    assert offseg(*arguments, tmp_path / "old").returncode == 0
    old = tmp_path / "old" / "evaluation.json"
    compared = offseg(*arguments, tmp_path / "new", "--compare", old)
    assert (compared.returncode, compared.stderr) == (0, "")
    assert f"compared with {old}" in compared.stdout and "Boundary mIoU +" in compared.stdout
    page = tmp_path / "new" / "report.html"
    page.unlink()
    again = offseg("evaluate", "--output", tmp_path / "new", "--compare", old)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[:-1] == compared.stdout.splitlines()[-7:-1] and page.is_file()
    old.with_name("image_counts.parquet").unlink()
    assert_one_line(offseg("evaluate", "--output", tmp_path / "new", "--compare", old), "evaluate again")
    assert_one_line(offseg("evaluate", "--model", model), "expected --model and --data, or neither and --output")


def test_pictures_want_a_folder(model, scenes):
    result = offseg("evaluate", "--model", model, "--data", scenes, "--overlays")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("need a folder: pass save_dir (--output)")
