"""Trainings as real processes, forked of one that has imported everything, so that each starts at once.

As a script this is that one: it takes requests as JSON lines on stdin and answers on stdout.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


ROOT = Path(__file__).parents[2]


class Training:
    """A process that runs `scripts/train.py`; `messages` is what it has written to stdout and stderr."""

    def __init__(self, ask, pid: int, output: Path):
        self._ask, self.pid, self._output = ask, pid, output

    @property
    def messages(self) -> str:
        return self._output.read_text()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, condition, timeout: float = 60) -> None:
        """Until `condition()`; fails the test if that is not before the process ends."""
        end = time.monotonic() + timeout
        while not condition():
            code = self._ask({"poll": self.pid})
            assert code is None, f"ended with {code}: {self.messages}"
            assert time.monotonic() < end, f"timed out: {self.messages}"
            time.sleep(0.005)

    def wait(self, timeout: float = 120) -> int:
        """The exit code, -9 and the like for a signal."""
        end = time.monotonic() + timeout
        while (code := self._ask({"poll": self.pid})) is None:
            assert time.monotonic() < end, f"timed out: {self.messages}"
            time.sleep(0.01)
        return code


class Trainings:
    """Starts trainings, in `folder`."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self._process, self.folder, self._count = process, folder, 0

    def start(self, *arguments: str | Path, **environment: str) -> Training:
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        output.touch()
        request = {
            "start": [str(argument) for argument in arguments],
            "output": str(output),
            "environment": environment,
        }
        return Training(self._ask, self._ask(request), output)

    def run(self, *arguments: str | Path, **environment: str) -> str:
        """What a training writes; fails the test if it does not end well."""
        training = self.start(*arguments, **environment)
        assert training.wait() == 0, training.messages
        return training.messages

    def _ask(self, request: dict):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def trainings(folder: Path) -> Iterator[Trainings]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    ) as process:
        try:
            yield Trainings(process, folder)
        finally:
            process.stdin.close()


def main() -> None:
    import runpy

    import datasets  # noqa: F401 - what takes long to import

    import offseg_hf.cli
    import offseg_hf.training.loop  # noqa: F401

    codes = {}
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if not answer:
                os.environ.update(request["environment"])
                with open(request["output"], "w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                sys.stdin.close()
                script = ROOT / "scripts" / "train.py"
                sys.argv = [str(script), *request["start"]]
                runpy.run_path(str(script), run_name="__main__")
                return
        else:
            pid = request["poll"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
