"""Python processes that have most of what they import already, so that each starts at once.

They are forked of a process per session of tests, which as a script this is: it takes requests as JSON lines on stdin
and answers on stdout. None of ours is imported before a process does it. There are three kinds of it:

- `with_transformers`: torch and transformers are there, with settings from an environment that is offline and has a
  cache of its own for the code of saved models: nothing that is read on import can be set for a single process.
- `clients_with`: the same for the clients of one Hub, whose environments differ in nothing that is read on import.
- `with_torch`: torch is there, and what is neither ours nor of Hugging Face, whose libraries look at the environment
  when they are imported: for clients of a Hub, each with an environment of its own.

For what importing itself does, start a real process.
"""

import json
import os
import re
import socket
import subprocess
import sys
import traceback
from atexit import register
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory


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
NEEDS_MODELS = re.compile("offseg_hf|transformers")
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


def run_python(
    script: str, *arguments: object, cwd: Path = ROOT, check: bool = True, name: str = "-c", **environment: str
) -> subprocess.CompletedProcess:
    """What `python -c script arguments` does in a process without offseg_hf, until the script imports it.

    Nobody answers its questions. With `check`, a script that fails fails the test.
    """
    (process,) = _run(
        _with_transformers(), WITH_TRANSFORMERS, [environment], script, [name, *map(str, arguments)], cwd
    )
    assert not (check and process.returncode), process.stderr
    return process


def run_script(path: Path, *arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """The same for a script of this repository, as `python path arguments` runs it; it may fail."""
    script = (
        "import os, runpy, sys; sys.path[0] = os.path.dirname(sys.argv[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return run_python(script, *arguments, cwd=cwd, check=False, name=str(path), **environment)


def run_client(script: str, *arguments: object, clients: "Server", **environment: str) -> subprocess.CompletedProcess:
    """The same for one of the `clients` of a Hub: with these changes of their environment."""
    changed = {name for name, value in environment.items() if clients.environment.get(name) != value}
    if not changed <= READ_WHEN_USED:
        server, modules = _with_torch(), WITH_TORCH
    else:
        server, modules = clients, WITH_TRANSFORMERS if NEEDS_MODELS.search(script) else WITH_HUB
    environment = clients.environment | environment
    (process,) = _run(server, modules, [environment], script, ["-c", *map(str, arguments)], Path.cwd())
    return process


def clients_with(environment: dict[str, str]) -> "Server":
    """Of processes with torch and transformers, which have this environment and no other; to be closed."""
    folder = TemporaryDirectory()
    return Server(_serve(folder, environment), environment, folder.name)


def run_together(number: int, script: str, *arguments: object, cwd: Path = ROOT) -> list[subprocess.CompletedProcess]:
    """The same for processes that find each other, as `torchrun --nproc_per_node number` starts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    world = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    processes = _run(_with_transformers(), WITH_TRANSFORMERS, ranks, script, ["-c", *map(str, arguments)], cwd)
    assert not any(process.returncode for process in processes), [process.stderr for process in processes]
    return processes


@dataclass(frozen=True)
class Server:
    """The process that others are forked of, the environment that theirs adds to, and a folder for what they say."""

    process: subprocess.Popen
    environment: dict[str, str]
    folder: str

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def _run(
    server: Server,
    modules: tuple[str, ...],
    environments: list[dict[str, str]],
    script: str,
    arguments: list[str],
    cwd: Path,
) -> list[subprocess.CompletedProcess]:
    """At the same time, one for each environment."""
    requests = [
        {
            "script": script,
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": server.environment | environment,
            **{stream: f"{server.folder}/{stream}-{index}" for stream in ("stdout", "stderr")},
        }
        for index, environment in enumerate(environments)
    ]
    server.process.stdin.write(json.dumps([modules, requests]) + "\n")
    server.process.stdin.flush()
    return [
        subprocess.CompletedProcess(
            arguments, code, **{stream: Path(request[stream]).read_text() for stream in ("stdout", "stderr")}
        )
        for request, code in zip(requests, json.loads(server.process.stdout.readline()), strict=True)
    ]


@cache
def _with_transformers() -> Server:
    folder = TemporaryDirectory()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{folder.name}/modules"}
    return Server(_serve(folder, environment), environment, folder.name)


@cache
def _with_torch() -> Server:
    folder = TemporaryDirectory()
    return Server(_serve(folder, dict(os.environ)), {}, folder.name)


def _serve(folder: TemporaryDirectory, environment: dict[str, str]) -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder.name,
    )
    register(folder.cleanup)
    register(server.wait)
    register(server.stdin.close)
    return server


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        modules, requests = json.loads(line)
        for module in modules:
            import_module(module)
        assert "offseg_hf" not in sys.modules
        children = [start(request) for request in requests]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)
    os._exit(0)  # what has been imported takes long to be put away


def start(request: dict) -> int:
    """The number of a process that does what is asked."""
    child = os.fork()
    if not child:
        os._exit(run(**request))
    return child


def run(script: str, arguments: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> int:
    """The exit code."""
    with open(os.devnull) as nothing, open(stdout, "w") as out, open(stderr, "w") as err:
        for file, number in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
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
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
