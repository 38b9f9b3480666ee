import sys
from importlib.metadata import version

import torch

from offseg_hf import __version__
from tests.cli.running import MAIN, OFFSEG, offseg
from tests.processes import run_python


def test_env():
    result = offseg("env")
    assert (result.returncode, result.stderr) == (0, "")
    facts = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert facts["offseg_hf"] == __version__
    assert facts["python"] == sys.version.split()[0]
    for name in ("torch", "transformers", "datasets", "accelerate", "huggingface_hub"):
        assert facts[name] == version(name)
    assert int(facts["CPUs"]) > 0 and facts["platform"]
    assert (facts["CUDA devices"] == "none") == (torch.cuda.device_count() == 0)


def test_env_of_a_broken_installation():
    """Which is when it is asked for."""
    result = run_python(f"import sys; sys.modules['torch'] = None; {MAIN}", "env", name=str(OFFSEG))
    assert "CUDA devices: unknown, as torch cannot be imported (" in result.stdout
