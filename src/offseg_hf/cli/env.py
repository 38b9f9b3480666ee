"""`offseg env`: what a report of a problem should begin with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from offseg_hf import __version__
from offseg_hf.cli.console import stdout


LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub")


def env() -> None:
    """Print versions and devices, to put into a bug report.

    Examples:
        offseg env
        offseg env > env.txt
        CUDA_VISIBLE_DEVICES=0 offseg env
    """
    stdout.print(f"offseg_hf: {__version__}")
    stdout.print(f"python: {platform.python_version()}")
    for name in LIBRARIES:
        stdout.print(f"{name}: {_version(name)}")
    stdout.print(f"platform: {platform.platform()}")
    stdout.print(f"CPUs: {os.cpu_count()}")
    stdout.print(f"CUDA devices: {_cuda_devices()}")


def _version(name: str) -> str:
    try:
        return version(name)  # without importing it, which is what may fail
    except PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> str:
    try:
        import torch
    except Exception as error:  # a broken installation is what is reported, too
        return f"unknown, as torch cannot be imported ({type(error).__name__}: {error})"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"
