"""Trainings as real processes that start at once."""

import os
import time
from pathlib import Path

from tests.processes import ROOT, Server, with_ours


SCRIPT = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"


class Training:
    """A process that runs `scripts/train.py`; `messages` is what it has written to stdout and stderr."""

    def __init__(self, server: Server, pid: int, output: Path):
        self._server, self._pid, self._output = server, pid, output
        self._code: int | None = None

    @property
    def messages(self) -> str:
        return self._output.read_text()

    def send(self, number: int) -> None:
        os.kill(self._pid, number)

    def poll(self) -> int | None:
        """The exit code, -9 and the like for a signal; None if it has not ended."""
        if self._code is None:
            self._code = self._server.wait(self._pid, blocks=False)
        return self._code

    def wait_for(self, condition, timeout: float = 60) -> None:
        """Until `condition()`; fails the test if that is not before the process ends."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, f"ended with {self.poll()}: {self.messages}"
            assert time.monotonic() < end, f"timed out: {self.messages}"
            time.sleep(0.005)

    def wait(self, timeout: float = 120) -> int:
        """The exit code."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"timed out: {self.messages}"
            time.sleep(0.01)
        return code


class Trainings:
    """Starts trainings, in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self._count = folder, 0

    def start(self, *arguments: str | Path, **environment: str) -> Training:
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        output.touch()
        words = [str(ROOT / "scripts" / "train.py"), *map(str, arguments)]
        pid = with_ours().start(SCRIPT, words, self.folder, environment, stdout=str(output), stderr=str(output))
        return Training(with_ours(), pid, output)

    def run(self, *arguments: str | Path, **environment: str) -> str:
        """What a training writes; fails the test if it does not end well."""
        training = self.start(*arguments, **environment)
        assert training.wait() == 0, training.messages
        return training.messages
