"""The processes that share a piece of work, as `accelerate launch`, torchrun or MPI started them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """The processes of an accelerator, or without one this process alone.

    An Accelerator for one process would be more than nothing: it settles device and precision for all that follows.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.index: int = 0 if accelerator is None else accelerator.process_index
        self.count: int = 1 if accelerator is None else accelerator.num_processes

    @classmethod
    def launched(cls, device: str | None) -> Processes:
        """Return the processes that were launched together, or this one alone; `device` is what the user asked for."""
        counts = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
        if all(int(os.environ.get(name, 1)) == 1 for name in counts):
            return cls()
        import torch
        from accelerate import Accelerator

        # Without being told, accelerate takes several processes on CPUs for as many single ones.
        return cls(Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available()))

    @property
    def is_main(self) -> bool:
        """Whether this one reports for all."""
        return self.accelerator is None or self.accelerator.is_main_process

    def device(self, asked: str | None) -> str | None:
        """Return the device of this process: what was asked for, or of several processes each its own."""
        return asked if self.accelerator is None else str(self.accelerator.device)

    def autocast(self) -> AbstractContextManager:
        """Compute in the precision that the processes were started with."""
        return nullcontext() if self.accelerator is None else self.accelerator.autocast()
