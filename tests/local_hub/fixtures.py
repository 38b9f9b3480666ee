"""The fixture `local_hub`; a module of tests has it by `pytest_plugins = ["tests.local_hub.fixtures"]`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_hub.hub import Hub
from tests.local_hub.server import HubServer


USER = "tester"
TOKEN = "hf_of_the_tester"
STRANGER_TOKEN = "hf_of_a_stranger"
ORGANIZATIONS = ("hvision", "nvidia", "microsoft", "facebook", "timm")


class LocalHub(HubServer):
    """A Hub with two users, and processes that are its clients, with a home of their own."""

    token = TOKEN
    stranger_token = STRANGER_TOKEN

    def __init__(self, folder: Path):
        super().__init__(Hub(folder / "hub"))
        self.home = folder / "home"
        self.hub.add_user(USER, TOKEN, ORGANIZATIONS)
        self.hub.add_user("stranger", STRANGER_TOKEN)

    @property
    def environment(self) -> dict[str, str]:
        """For clients of the user who may write."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def run(self, script: str, *arguments: str | Path, **environment: str | Path) -> str:
        """What a Python script prints that runs as a client of the Hub; fails the test if the script fails."""
        process = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=self.environment | {key: str(value) for key, value in environment.items()},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout


@pytest.fixture(scope="module")
def local_hub(tmp_path_factory) -> Iterator[LocalHub]:
    """A Hub with nothing in it, for the tests of one module."""
    with LocalHub(tmp_path_factory.mktemp("local_hub")) as hub:
        yield hub
