"""Measuring what depends on the machine and the moment: times as ratios in one process, memory in a fresh one."""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from offseg_hf.benchmark.machine import describe_machine, reset_peak, resident_bytes


def interleaved_medians(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of every function, after one call of each that does not count.

    They take turns, so that a machine which slows down slows all of them down.
    """
    seconds = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes by which the resident set grows at most while `function` runs, after one call that does not count.

    Start the process with `MALLOC_MMAP_THRESHOLD_` set to some 100 kB: otherwise glibc keeps freed tensors in its heap
    and the result says more about its fragments than about the tensors alive. Linux only.
    """
    function()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    base = resident_bytes()
    function()
    return resident_bytes(peak=True) - base


# By which glibc gives back what is freed, as `peak_memory` wants it.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def in_fresh_process(script: str, order: list, environment: Mapping[str, str] = RETURNS_MEMORY) -> str:
    """Return the last line that a script prints which is told, by `--measure`, what to measure.

    Args:
        script: its file; it has the options `--threads` and `--measure`.
        order: what to measure, of what JSON can hold.
        environment: variables that it has, beside this process's own.
    """
    import torch

    command = [sys.executable, script, "--threads", str(torch.get_num_threads()), "--measure", json.dumps(order)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout
    return output.splitlines()[-1]


def count_macs(function: Callable[[], object]) -> int:
    """Multiply-accumulate operations of all convolutions and matrix products in `function`, attention included."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as plain products: the counter does not know the fused operator of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counter.get_total_flops() // 2


def machine() -> str:
    """The processor, the number of threads and the versions that a measurement was made with."""
    facts = describe_machine()
    return "{processor} ({instructions}), {threads} threads, Python {python}, torch {torch}".format(**facts)


def markdown_table(header: list[str], rows: list[list[object]]) -> str:
    """Rows under a header; everything but the first column is aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
