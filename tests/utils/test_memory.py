"""Memory that is freed stays, where there is glibc."""

import platform
import resource

import pytest

from tests.processes import run_python


SCRIPT = """
import resource
import sys
import torch
from offseg_hf.utils.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**23)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back, and can be told not to")
def test_memory_is_not_mapped_again():
    faults = {name: int(run_python(SCRIPT, name).stdout) for name in ("default", "kept")}
    assert faults["default"] - faults["kept"] > 10 * 2**25 // resource.getpagesize()
