"""Python processes that have torch and transformers imported and nothing of ours, so that each starts at once.

They are forked of one process per session of tests, which as a script this is: it takes requests as JSON lines on
stdin and answers on stdout. What it has imported took its settings from its environment: it is offline, with a cache
of its own for the code of saved models. So nothing that is read on import can be set for a single process; for that,
and for what importing itself does, start a real one.
"""

import json
import os
import socket
import subprocess
import sys
import traceback
from atexit import register
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory


ROOT = Path(__file__).parents[1]
IMPORTED = (
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
    (process,) = _run([environment], script, [name, *map(str, arguments)], cwd)
    assert not (check and process.returncode), process.stderr
    return process


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
    processes = _run(ranks, script, ["-c", *map(str, arguments)], cwd)
    assert not any(process.returncode for process in processes), [process.stderr for process in processes]
    return processes


def _run(
    environments: list[dict[str, str]], script: str, arguments: list[str], cwd: Path
) -> list[subprocess.CompletedProcess]:
    """At the same time, one for each environment."""
    server, folder = _server()
    requests = [
        {
            "script": script,
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": environment,
            **{stream: f"{folder}/{stream}-{index}" for stream in ("stdout", "stderr")},
        }
        for index, environment in enumerate(environments)
    ]
    server.stdin.write(json.dumps(requests) + "\n")
    server.stdin.flush()
    return [
        subprocess.CompletedProcess(
            arguments, code, **{stream: Path(request[stream]).read_text() for stream in ("stdout", "stderr")}
        )
        for request, code in zip(requests, json.loads(server.stdout.readline()), strict=True)
    ]


@cache
def _server() -> tuple[subprocess.Popen, str]:
    folder = TemporaryDirectory()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{folder.name}/modules"}
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
    return server, folder.name


def main() -> None:
    for module in IMPORTED:
        import_module(module)
    assert "offseg_hf" not in sys.modules
    for line in iter(sys.stdin.readline, ""):
        children = [start(request) for request in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


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
