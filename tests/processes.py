"""Python processes that have most of what they import already, so that each starts at once.

They are forked of a process per session of tests, which as a script this is: it takes requests as JSON lines on stdin
and answers on stdout. There are four kinds of it, of which the first three have imported none of ours:

- `with_transformers`: torch and transformers are there, with settings from an environment that is offline and has a
  cache of its own for the code of saved models: nothing that is read on import can be set for a single process.
- `with_torch`: torch is there, and what is neither ours nor of Hugging Face, whose libraries look at the environment
  when they are imported.
- `Clients`: forked of `with_torch`, with what clients of a Hub have needed so far, for each environment of theirs.
- `with_ours`: forked of `with_transformers`, with what trains and evaluates: for what runs beside a test.

For what importing itself does, start a real process.
"""

import gc
import json
import os
import re
import socket
import subprocess
import sys
import threading
import traceback
from atexit import register
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO


ROOT = Path(__file__).parents[1]
WITH_HUB = ("huggingface_hub",)
WITH_TORCH = (
    "fsspec",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
    "rich.progress",
    "scipy.optimize",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "torch.utils.data",
    "typer",
    "yaml",
)
NEEDS_MODELS = re.compile("offseg_hf|transformers")  # in a client's script
# Of the environment of a Hub's clients, what no library keeps.
READ_WHEN_USED = {"COLUMNS", "HF_TOKEN", "NO_COLOR", "OFFSEG_DEBUG", "TMPDIR"}
WITH_TRANSFORMERS = (
    "accelerate",
    "datasets",
    "scipy.optimize",
    "torch._dynamo",
    "transformers.pipelines",
    "transformers.models.beit.modeling_beit",
    "transformers.models.detr.modeling_detr",
    "transformers.models.eomt.modeling_eomt",
    "transformers.models.mask2former.modeling_mask2former",
    "transformers.models.maskformer.modeling_maskformer",
    "transformers.models.segformer.modeling_segformer",
    "transformers.models.swin.modeling_swin",
    "transformers.models.upernet.modeling_upernet",
)
OURS = ("offseg_hf.cli", "offseg_hf.training.loop", "PIL.PngImagePlugin", "pydantic.type_adapter")


def run_python(
    script: str, *arguments: object, cwd: Path = ROOT, check: bool = True, name: str = "-c", **environment: str
) -> subprocess.CompletedProcess:
    """What `python -c script arguments` does in a process without offseg_hf, until the script imports it.

    Nobody answers its questions. With `check`, a script that fails fails the test.
    """
    (process,) = _run(_with_transformers(), [environment], script, [name, *map(str, arguments)], cwd)
    assert not (check and process.returncode), process.stderr
    return process


def run_script(path: Path, *arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """The same for a script of this repository, as `python path arguments` runs it; it may fail."""
    script = (
        "import os, runpy, sys; sys.path[0] = os.path.dirname(sys.argv[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return run_python(script, *arguments, cwd=cwd, check=False, name=str(path), **environment)


def run_together(number: int, script: str, *arguments: object, cwd: Path = ROOT) -> list[subprocess.CompletedProcess]:
    """The same for processes that find each other, as `torchrun --nproc_per_node number` starts them."""
    processes = _run(_with_transformers(), ranks(number), script, ["-c", *map(str, arguments)], cwd)
    assert not any(process.returncode for process in processes), [process.stderr for process in processes]
    return processes


def ranks(number: int) -> list[dict[str, str]]:
    """The environments by which so many processes find each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    world = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


@dataclass(frozen=True)
class Server:
    """The process that others are forked of: it is asked, and answers; the environment that theirs adds to."""

    requests: TextIO
    answers: TextIO
    environment: dict[str, str]
    folder: TemporaryDirectory  # for what they say
    process: subprocess.Popen | None = None

    def start(
        self, script: str, arguments: list[str], cwd: Path, environment: dict[str, str], stdout: str, stderr: str
    ) -> int:
        """The number of a process, whose first argument is its name."""
        environment = self.environment | environment
        request = {"script": script, "arguments": arguments, "cwd": str(cwd), "environment": environment}
        return self.ask("start", **request, stdout=stdout, stderr=stderr)

    def wait(self, pid: int, blocks: bool = True) -> int | None:
        """The exit code of a process, once, -9 and the like for a signal; None if it goes on and nothing `blocks`."""
        return self.ask("wait", pid=pid, blocks=blocks)

    def ask(self, kind: str, **request: Any) -> Any:
        self.requests.write(json.dumps([kind, request]) + "\n")
        self.requests.flush()
        return json.loads(self.answers.readline())

    def close(self) -> None:
        self.requests.close()
        self.answers.close()
        if self.process is not None:
            self.process.wait()
        self.folder.cleanup()


class Clients:
    """Processes with the environment of a Hub, some with changes of it.

    The libraries of Hugging Face look at the environment when they are imported: processes whose environments differ
    in what is read then are forked of different ones.
    """

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self._servers: dict[tuple[tuple[str, str], ...], Server] = {}

    def run(self, script: str, *arguments: object, **changed: str) -> subprocess.CompletedProcess:
        """What `python -c script arguments` does, as `run_python` has it, with these changes of the environment."""
        kept = {name: value for name, value in changed.items() if name not in READ_WHEN_USED}
        key = tuple(sorted((self.environment | kept).items()))
        if key not in self._servers:
            self._servers[key] = _forked(_with_torch(), (), dict(key))
        server = self._servers[key]
        server.ask("preload", modules=WITH_TRANSFORMERS if NEEDS_MODELS.search(script) else WITH_HUB)
        (process,) = _run(server, [changed], script, ["-c", *map(str, arguments)], Path.cwd())
        return process

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


def _run(
    server: Server, environments: list[dict[str, str]], script: str, arguments: list[str], cwd: Path
) -> list[subprocess.CompletedProcess]:
    """At the same time, one for each environment."""
    files = [[f"{server.folder.name}/{stream}-{i}" for stream in ("out", "err")] for i in range(len(environments))]
    started = [
        server.start(script, arguments, cwd, environment, *streams)
        for environment, streams in zip(environments, files)
    ]
    codes = [server.wait(pid) for pid in started]
    return [
        subprocess.CompletedProcess(arguments, code, *(Path(stream).read_text() for stream in streams))
        for code, streams in zip(codes, files)
    ]


@cache
def _with_transformers() -> Server:
    folder = TemporaryDirectory()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{folder.name}/modules"}
    return _serve(WITH_TRANSFORMERS, folder, environment, environment)


@cache
def _with_torch() -> Server:
    return _serve(WITH_TORCH, TemporaryDirectory(), dict(os.environ), {})


@cache
def with_ours() -> Server:
    """Of processes that have imported offseg_hf and may be sent signals while they run."""
    server = _forked(_with_transformers(), OURS, _with_transformers().environment)
    register(server.close)
    return server


def _forked(parent: Server, modules: tuple[str, ...], environment: dict[str, str]) -> Server:
    """A process forked of another, with more modules and an environment of its own; to be closed."""
    folder = TemporaryDirectory()
    pipes = requests, answers = [f"{folder.name}/{name}" for name in ("requests", "answers")]
    for pipe in pipes:
        os.mkfifo(pipe)
    parent.ask("fork", modules=modules, requests=requests, answers=answers, environment=environment)
    return Server(open(requests, "w"), open(answers), environment, folder)


def _serve(
    modules: tuple[str, ...], folder: TemporaryDirectory, environment: dict[str, str], of_processes: dict[str, str]
) -> Server:
    process = subprocess.Popen(
        [sys.executable, __file__, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder.name,
    )
    server = Server(process.stdin, process.stdout, of_processes, folder, process)
    register(folder.cleanup)
    register(server.close)
    return server


def main() -> None:
    preload(sys.argv[1:])
    assert "offseg_hf" not in sys.modules
    serve()


def preload(modules: list[str]) -> None:
    gc.disable()  # which looks through all that is imported again and again
    for module in modules:
        import_module(module)
    gc.freeze()  # nor do the processes look through it, which would copy its memory
    gc.enable()


def serve() -> None:
    kinds = {"preload": preload, "start": start, "wait": wait, "fork": fork}
    for line in iter(sys.stdin.readline, ""):
        kind, request = json.loads(line)
        print(json.dumps(kinds[kind](**request)), flush=True)
    os._exit(0)  # what has been imported takes long to be put away


def start(**request: Any) -> int:
    """The number of a process that does what is asked."""
    child = os.fork()
    if not child:
        os._exit(run(**request))
    return child


def wait(pid: int, blocks: bool) -> int | None:
    """Its exit code."""
    ended, status = os.waitpid(pid, 0 if blocks else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def fork(modules: list[str], requests: str, answers: str, environment: dict[str, str]) -> int:
    """The number of a process as this one, which has more modules, other pipes and an environment of its own."""
    child = os.fork()
    if not child:
        try:
            with open(requests) as stdin, open(answers, "w") as stdout:
                os.dup2(stdin.fileno(), 0)
                os.dup2(stdout.fileno(), 1)
            os.environ.clear()
            os.environ.update(environment)
            preload(modules)
            serve()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return child


def run(script: str, arguments: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> int:
    """The exit code."""
    files = {path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in {stdout, stderr}}
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (files[stdout], 1), (files[stderr], 2)):
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = arguments, ""
    code = 0
    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as Python ends: a signal may have come between the start of a thread and its pool's note
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
