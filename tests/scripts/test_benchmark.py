"""What is measured is what happened."""

import sys
import time
from pathlib import Path

import pytest
import torch
from benchmark.measure import count_macs, interleaved_medians, markdown_table

from tests.processes import run_python, run_script


ROOT = Path(__file__).parents[2]


def test_interleaved_medians():
    calls = []
    functions = {"slow": lambda: (calls.append("slow"), time.sleep(0.02)), "fast": lambda: calls.append("fast")}
    medians = interleaved_medians(functions, repeats=3)
    assert calls == ["slow", "fast"] * 4
    assert medians["slow"] >= 0.02 > medians["fast"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory():
    """40 MB that are freed before the end count, 160 MB that only the call before the count took do not."""
    code = """
import itertools, torch
from benchmark.measure import peak_memory
sizes = itertools.chain([160], itertools.repeat(40))
print(peak_memory(lambda: torch.ones(next(sizes) * 250_000).sum()))
"""
    assert 38e6 < int(run_python(code, cwd=ROOT / "scripts").stdout) < 48e6


def test_markdown_table():
    assert markdown_table(["", "ms"], [["t", 5]]).splitlines() == ["|  | ms |", "| --- | ---: |", "| t | 5 |"]


def test_unknown_case():
    run = run_script(ROOT / "scripts" / "benchmark" / "speed.py", "--only", "offseg-x")
    assert run.returncode == 2
    assert "unknown case offseg-x" in run.stderr and "Traceback" not in run.stderr


def test_macs_are_those_of_convolutions_and_products():
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    images, query = torch.zeros(2, 3, 10, 12), torch.zeros(1, 2, 6, 4)
    assert count_macs(lambda: conv(images)) == 2 * 8 * 3 * 9 * 10 * 12
    assert count_macs(lambda: images[0, 0] @ images[0, 0].T) == 10 * 10 * 12
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_macs(lambda: attention(query, query, query)) == 2 * 2 * 6 * 6 * 4


@pytest.mark.slow
def test_photo():
    script = ROOT / "scripts" / "benchmark" / "photo.py"
    run = run_script(script, "--size", "48", "64", "--repeats", "1", "--threads", "1")
    assert run.returncode == 0, run.stderr
    header, _, *rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if line.startswith("|")]
    assert header == ["48x64, s", "whole", "least", "prepare", "model", "masks"]
    assert [name for name, *_ in rows] == ["OffSeg-T", "OffSeg-T, fused", *(f"SegFormer-B{n}" for n in range(3))]
    for _, *figures in rows:
        whole, least, *steps = map(float, figures)
        assert 0 < least <= whole and sum(steps) <= whole + 0.02
