"""The fixture `local_hub`; a module of tests has it by `pytest_plugins = ["tests.local_hub.fixtures"]`."""

import os
import socket
import subprocess
import sys
from atexit import register
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import rmtree

import pytest

from tests.local_hub import MODES
from tests.local_hub.hub import Hub
from tests.local_hub.server import HubServer
from tests.processes import Clients


USER = "tester"
TOKEN = "hf_of_the_tester"
READ_ONLY_TOKEN = "hf_of_the_tester_to_read"
STRANGER_TOKEN = "hf_of_a_stranger"
EXPIRED_TOKEN = "hf_of_last_year"
ORGANIZATIONS = ("hvision", "nvidia", "microsoft", "facebook", "timm")


class LocalHub(HubServer):
    """A Hub with two users, and processes that are its clients, with a home of their own."""

    token = TOKEN
    read_only_token = READ_ONLY_TOKEN
    stranger_token = STRANGER_TOKEN
    expired_token = EXPIRED_TOKEN

    def __init__(self, folder: Path, home: Path, port: int):
        super().__init__(Hub(folder), port)
        self.home = home
        self._clients: list[subprocess.Popen] = []
        self.hub.add_user(USER, TOKEN, ORGANIZATIONS)
        self.hub.add_user(USER, READ_ONLY_TOKEN)
        self.hub.read_only_tokens.add(READ_ONLY_TOKEN)
        self.hub.add_user("stranger", STRANGER_TOKEN)
        self.hub.expired_tokens.add(EXPIRED_TOKEN)

    @property
    def clients(self) -> Clients:
        """Processes with the environment of this Hub."""
        return _clients(tuple(self.environment.items()))

    def __exit__(self, *exception) -> None:
        for client in self._clients:  # which go on after a test that failed
            client.kill()
        super().__exit__(*exception)

    @property
    def environment(self) -> dict[str, str]:
        """For clients of the user who may write."""
        others = ("HF_", "HUGGING", "PYTEST_")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.home),
            **MODES["lfs"],
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, script: str, *arguments: str | Path, **environment: str | Path) -> subprocess.Popen:
        """A Python script that runs as a client of the Hub."""
        client = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=self.environment | {key: str(value) for key, value in environment.items()},
            stdin=subprocess.DEVNULL,  # nobody answers questions
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._clients.append(client)
        return client

    def run(self, script: str, *arguments: str | Path, **environment: str | Path) -> str:
        """What a Python script prints that runs as a client of the Hub; fails the test if the script fails."""
        changed = {key: str(value) for key, value in environment.items()}
        process = self.clients.run(script, *arguments, **changed)
        assert process.returncode == 0, process.stderr
        return process.stdout


@cache
def _clients(environment: tuple[tuple[str, str], ...]) -> Clients:
    clients = Clients(dict(environment))
    register(clients.close)
    return clients


@pytest.fixture(scope="session")
def _address() -> int:
    """A port for one Hub after the other: with one address and one home, their clients are forked of one process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def local_hub(tmp_path_factory, _address) -> Iterator[LocalHub]:
    """A Hub with nothing in it, for the tests of one module."""
    home = tmp_path_factory.getbasetemp() / "home_of_the_clients"
    rmtree(home, ignore_errors=True)
    with LocalHub(tmp_path_factory.mktemp("local_hub"), home, _address) as hub:
        yield hub
