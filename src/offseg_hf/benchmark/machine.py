"""The machine that something is measured on, and what this process takes of its memory."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino")


def describe_machine() -> dict[str, object]:
    """Return the processor, its instructions, the threads, and the versions of what computes."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    facts: dict[str, object] = {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if accelerator is not None:
        is_cuda = accelerator.type == "cuda"
        facts["accelerator"] = torch.cuda.get_device_name() if is_cuda else accelerator.type
    for name in LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def processor_name() -> str:
    """Return the processor as Linux names it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def resident_bytes(peak: bool = False) -> int | None:
    """Return the resident set of this process, or its peak since `reset_peak`; None where the system has no /proc."""
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Let the peak of the resident set begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
